//! The text of a service's drop-in.
//! Made by `agents attach --unit`; what its settings mean is `enforce::launch::unit_settings`' business.
//! INVARIANT: the hook is the first command of the service, and no character of a path or name means anything to systemd.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use policies::AgentId;

use super::unit::UnitName;
use crate::config::Paths;
use crate::enforce::launch::{UnitFiles, unit_settings};

/// What a drop-in is made from.
pub(super) struct DropIn<'a> {
    agent: &'a AgentId,
    unit: &'a UnitName,
    program: PathBuf,
    paths: Paths,
}

impl<'a> DropIn<'a> {
    /// For this very program and instance.
    pub(super) fn new(
        paths: &Paths,
        agent: &'a AgentId,
        unit: &'a UnitName,
    ) -> Result<DropIn<'a>, String> {
        let program = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(DropIn {
            agent,
            unit,
            program,
            paths: Paths {
                config: real(&paths.config),
                state: real(&paths.state),
                runtime: real(&paths.runtime),
            },
        })
    }

    /// The whole file.
    pub(super) fn text(&self) -> Result<String, String> {
        let Paths {
            config,
            state,
            runtime,
        } = &self.paths;
        let mut hook = format!(
            "+{} unit-hook --unit %n --agent {}",
            plain(&self.program)?,
            self.agent
        );
        for (flag, path) in [
            ("config", config),
            ("state-dir", state),
            ("runtime-dir", runtime),
        ] {
            let _infallible = write!(hook, " --{flag} {}", plain(path)?);
        }
        let mut text = format!(
            "# Every start of {} is governed as {}. Written by `sluice agents attach --unit`;\n\
             # `sluice agents detach --unit {}` removes it.\n\
             [Unit]\nWants=sluice.service\nAfter=sluice.service\n\n[Service]\n\
             # The first command of all, with root's rights whatever the service has. If it fails, nothing is started.\n\
             ExecCondition={hook}\n",
            self.unit, self.agent, self.unit
        );
        let files = UnitFiles::of(runtime, self.unit.as_str());
        for (key, value) in unit_settings(&files, &[config, state, runtime]) {
            let _infallible = writeln!(text, "{key}={value}");
        }
        Ok(text)
    }
}

/// A path that stands for itself in a unit file: no blank, quote, colon, backslash or percent sign.
fn plain(path: &Path) -> Result<&str, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._@+,=-".contains(&byte);
    match path.to_str() {
        Some(text) if text.starts_with('/') && text.bytes().all(plain) => Ok(text),
        _ => Err(format!(
            "path_unfit: {} has characters that mean something in a unit file",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop_in(runtime: &str) -> Result<String, String> {
        let paths = Paths {
            config: "/etc/sluice".into(),
            state: "/var/lib/sluice".into(),
            runtime: runtime.into(),
        };
        let agent = "acme/support".parse().unwrap();
        let unit = "bot.service".parse().unwrap();
        DropIn::new(&paths, &agent, &unit)?.text()
    }

    #[test]
    fn the_hook_comes_first_and_knows_its_instance() {
        let text = drop_in("/run/sluice-x").unwrap();
        let mut service = text.split("[Service]\n").nth(1).unwrap().lines();
        let first = service.find(|line| !line.starts_with('#')).unwrap();
        assert!(first.starts_with("ExecCondition=+/"), "{first}");
        for part in [
            " unit-hook ",
            " --unit %n ",
            " --agent acme/support ",
            " --runtime-dir /run/sluice-x",
        ] {
            assert!(first.contains(part), "{first}");
        }
        assert_eq!(text.matches("ExecCondition=").count(), 1);
        assert!(text.contains("\nInaccessiblePaths=-/run/sluice-x\n"));
    }

    #[test]
    fn a_path_that_means_something_to_systemd_is_refused() {
        for runtime in ["/run/a b", "/run/%n", "/run/a:b", "/run/a\\x20"] {
            let refused = drop_in(runtime).unwrap_err();
            assert!(refused.starts_with("path_unfit"), "{refused}");
        }
    }
}
