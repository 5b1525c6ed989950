//! `sluice agents attach --unit` and `detach --unit`: a drop-in, by which each start of a systemd service is governed before its first instruction.
//! Beside `attach`, which governs a cgroup at once; here `unit_hook` does, whenever systemd starts the service.
//! INVARIANT: a unit that could run anything before it is governed is refused; what runs already is never said to be governed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;

use policies::AgentId;
use serde::Serialize;

use super::super::{Failure, Global, Output};
use super::attach::{failed, require_root};
use super::drop_in::DropIn;
use super::systemd::{Systemd, Unit};

/// Where an administrator's units and drop-ins lie.
const UNITS: &str = "/etc/systemd/system";
/// Late in the order of names: whatever another drop-in says of the same setting, this one adds to it or replaces it.
const FILE: &str = "zz-sluice.conf";

/// The name of a service, as systemd knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct UnitName(String);

impl UnitName {
    pub(in crate::cli) fn as_str(&self) -> &str {
        &self.0
    }

    fn drop_in(&self) -> PathBuf {
        Path::new(UNITS).join(format!("{}.d", self.0)).join(FILE)
    }
}

impl FromStr for UnitName {
    type Err = String;

    fn from_str(text: &str) -> Result<UnitName, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":_.@-".contains(&byte);
        let Some(stem) = text.strip_suffix(".service") else {
            return Err("a service's name ends with .service; no other kind of unit runs a program of its own".to_owned());
        };
        if stem.is_empty() || text.len() > 255 || !text.bytes().all(plain) {
            return Err("a service's name has letters, digits, and :_.@- alone".to_owned());
        }
        if stem.ends_with('@') {
            return Err(format!(
                "{text} is a template; name one of its instances, {stem}x.service"
            ));
        }
        Ok(UnitName(text.to_owned()))
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was done, and what it means for what runs.
#[derive(Debug, Serialize)]
struct Report<'a> {
    unit: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a AgentId>,
    drop_in: &'a Path,
    /// Whether the service runs now, as it was started.
    running: bool,
    notes: Vec<String>,
}

/// Writes the drop-in.
///
/// # Errors
/// `not_root`, `systemd_missing`, `unit_unknown`, `unit_unfit`.
pub(super) fn attach(
    global: &Global,
    agent: &AgentId,
    unit: &UnitName,
    print: bool,
) -> Result<ExitCode, Failure> {
    let text = DropIn::new(&global.paths, agent, unit).and_then(|drop_in| drop_in.text());
    let text = text.map_err(failed)?;
    if print {
        Output::new(global).line(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = unit.drop_in();
    let running = put(unit, &path, &text).map_err(failed)?;
    let mut notes = Vec::new();
    if running.active {
        notes.push(format!(
            "it runs, as it was started: it is not governed until `systemctl restart {unit}`"
        ));
    }
    if running.root {
        notes.push(
            "it runs as root, without capabilities; `User=` gives it less of this host's files"
                .to_owned(),
        );
    }
    let report = Report {
        unit: unit.as_str(),
        agent: Some(agent),
        drop_in: &path,
        running: running.active,
        notes,
    };
    Output::new(global).object(&report, |report| {
        let first = format!(
            "each start of {unit} is governed as {agent}, by {}",
            path.display()
        );
        lines(first, &report.notes)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn put(unit: &UnitName, path: &Path, text: &str) -> Result<Unit, String> {
    require_root()?;
    let systemd = Systemd::find()?;
    let hook = |unit: &Unit| unit.conditions.iter().filter(|line| is_hook(line)).count();
    let before = systemd.unit(unit)?;
    before.fit(unit, hook(&before))?;
    let write = |error: std::io::Error| format!("{}: {error}", path.display());
    if let Some(directory) = path.parent() {
        crate::config::public_directory(directory).map_err(write)?;
    }
    let former = crate::config::read_text(path).ok();
    crate::config::replace(path, text.as_bytes(), 0o644).map_err(write)?;
    let taken = systemd.reload().and_then(|()| systemd.unit(unit)).and_then(|after| {
        if after.conditions.len() == 1 && hook(&after) == 1 {
            return Ok(after);
        }
        Err(format!("unit_unfit: another file overrides the drop-in's ExecCondition=; see `systemctl cat {unit}`"))
    });
    if taken.is_err() {
        // As it was: half a drop-in would say that it is governed.
        let undone = match former {
            Some(former) => crate::config::replace(path, former.as_bytes(), 0o644),
            None => std::fs::remove_file(path),
        };
        undone.map_err(write)?;
        systemd.reload()?;
    }
    taken
}

/// As `systemctl show` says it: `{ path=/usr/bin/sluice ; argv[]=/usr/bin/sluice unit-hook ..`.
fn is_hook(condition: &str) -> bool {
    condition.split_whitespace().any(|word| word == "unit-hook")
}

/// Removes the drop-in. What runs stays governed until it ends: the daemon looks after its cgroup.
///
/// # Errors
/// `not_root`, `systemd_missing`, `not_attached`.
pub(super) fn detach(global: &Global, unit: &UnitName) -> Result<ExitCode, Failure> {
    let path = unit.drop_in();
    let active = remove(unit, &path).map_err(failed)?;
    let mut notes = Vec::new();
    if active {
        notes.push(format!(
            "what runs stays governed until it ends; `systemctl restart {unit}` starts it anew, not governed"
        ));
    }
    let report = Report {
        unit: unit.as_str(),
        agent: None,
        drop_in: &path,
        running: active,
        notes,
    };
    Output::new(global).object(&report, |report| {
        lines(
            format!("starts of {unit} are not governed any more"),
            &report.notes,
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn remove(unit: &UnitName, path: &Path) -> Result<bool, String> {
    require_root()?;
    let systemd = Systemd::find()?;
    std::fs::remove_file(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("not_attached: {unit} has no drop-in {}", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    })?;
    // Where it is not the last one, the directory stays.
    let _others = path.parent().map(std::fs::remove_dir);
    systemd.reload()?;
    Ok(systemd.unit(unit).is_ok_and(|unit| unit.active))
}

fn lines(first: String, notes: &[String]) -> String {
    let mut lines = vec![first];
    lines.extend(notes.iter().map(|note| format!("- {note}")));
    lines.join("\n")
}

/// A command of systemd's, without its pager.
pub(super) fn systemctl() -> Command {
    let mut command = Command::new("systemctl");
    command.arg("--no-pager").stdin(std::process::Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_name_is_a_services() {
        for good in ["bot.service", "bot@one.service", "a-b_c.d.service"] {
            assert_eq!(good.parse::<UnitName>().unwrap().as_str(), good);
        }
        for bad in [
            "bot",
            ".service",
            "bot.timer",
            "bot@.service",
            "../x.service",
            "a b.service",
            "a%n.service",
            "a\\x2d.service",
        ] {
            assert!(bad.parse::<UnitName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_hook_is_told_from_other_conditions() {
        assert!(is_hook(
            "{ path=/usr/bin/sluice ; argv[]=/usr/bin/sluice unit-hook --unit a.service ; x }"
        ));
        assert!(!is_hook(
            "{ path=/bin/test ; argv[]=/bin/test -e /unit-hook ; x }"
        ));
    }
}
