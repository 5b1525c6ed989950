//! What is asked of systemd about a service, through `systemctl`.
//! Below `unit`, before and after a drop-in is written.
//! INVARIANT: a property that is not told makes the unit unfit; nothing is guessed.

use std::collections::BTreeMap;

use super::unit::{UnitName, systemctl};

/// What matters of a service.
const PROPERTIES: &str =
    "LoadState,ActiveState,Type,ExecCondition,User,DynamicUser,PrivateNetwork,NetworkNamespacePath";

/// The system's service manager, which runs.
pub(super) struct Systemd(());

/// A service, as systemd has it loaded.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) active: bool,
    /// Whether it has root's uid.
    pub(super) root: bool,
    /// What runs before everything else of it, one line each.
    pub(super) conditions: Vec<String>,
    kind: String,
    own_network: bool,
}

impl Systemd {
    /// Finds out whether it runs here.
    pub(super) fn find() -> Result<Systemd, String> {
        if !std::path::Path::new("/run/systemd/system").is_dir() {
            return Err("systemd_missing: this host was not booted with systemd".to_owned());
        }
        Ok(Systemd(()))
    }

    /// Has it read its unit files again.
    pub(super) fn reload(&self) -> Result<(), String> {
        ask(&["daemon-reload"]).map(drop)
    }

    /// Looks a service up.
    pub(super) fn unit(&self, unit: &UnitName) -> Result<Unit, String> {
        Unit::parse(
            &ask(&["show", "--property", PROPERTIES, "--", unit.as_str()])?,
            unit,
        )
    }
}

impl Unit {
    fn parse(text: &str, unit: &UnitName) -> Result<Unit, String> {
        let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            found.entry(key).or_default().push(value);
        }
        let one = |key: &str| match found.get(key).map(Vec::as_slice) {
            Some([value]) => Ok(*value),
            _ => Err(format!("systemd_strange: it does not say {key}= of {unit}")),
        };
        if one("LoadState")? != "loaded" {
            return Err(format!(
                "unit_unknown: systemd has no {unit} ({})",
                one("LoadState")?
            ));
        }
        let conditions = found.get("ExecCondition").into_iter().flatten();
        Ok(Unit {
            active: !matches!(one("ActiveState")?, "inactive" | "failed"),
            root: matches!(one("User")?, "" | "0" | "root") && one("DynamicUser")? != "yes",
            conditions: conditions
                .filter(|line| !line.is_empty())
                .map(|line| (*line).to_owned())
                .collect(),
            kind: one("Type")?.to_owned(),
            own_network: one("PrivateNetwork")? == "yes"
                || !one("NetworkNamespacePath")?.is_empty(),
        })
    }

    /// Whether every instruction of it can be governed, and it can work then. `hooks` are the conditions that are Sluice's own.
    pub(super) fn fit(&self, unit: &UnitName, hooks: usize) -> Result<(), String> {
        if self.conditions.len() > hooks {
            return Err(format!(
                "unit_unfit: {unit} has an ExecCondition= of its own, which would run before it is governed; make it an ExecStartPre="
            ));
        }
        if matches!(self.kind.as_str(), "dbus" | "notify" | "notify-reload") {
            return Err(format!(
                "unit_unfit: {unit} has Type={}, but a workload may not speak to the service manager; give it Type=exec",
                self.kind
            ));
        }
        if self.own_network {
            return Err(format!(
                "unit_unfit: {unit} has a network namespace of its own, which is made after the proxy's listeners would have to be in it; leave PrivateNetwork= and NetworkNamespacePath= out, it reaches nothing but the proxy anyway"
            ));
        }
        Ok(())
    }
}

fn ask(args: &[&str]) -> Result<String, String> {
    let output = systemctl()
        .args(args)
        .output()
        .map_err(|error| format!("systemd_missing: systemctl: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("systemctl {}: {}", args.join(" "), said.trim()));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("systemctl: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Type=simple\nUser=\nDynamicUser=no\nLoadState=loaded\nActiveState=active\nPrivateNetwork=no\nNetworkNamespacePath=\n";

    fn unit(text: &str) -> Result<Unit, String> {
        Unit::parse(text, &"bot.service".parse().unwrap())
    }

    #[test]
    fn what_cannot_be_governed_wholly_is_refused() {
        let name: UnitName = "bot.service".parse().unwrap();
        let found = unit(SHOWN).unwrap();
        assert!(found.active && found.root && found.conditions.is_empty());
        found.fit(&name, 0).unwrap();
        let check = |from: &str, to: &str| {
            let refused = unit(&SHOWN.replace(from, to)).and_then(|unit| unit.fit(&name, 0));
            refused.unwrap_err()
        };
        let own = "\nExecCondition={ path=/bin/true }\nUser=";
        for (from, to) in [
            ("Type=simple", "Type=notify"),
            ("PrivateNetwork=no", "PrivateNetwork=yes"),
            ("NetworkNamespacePath=", "NetworkNamespacePath=/run/netns/x"),
            ("\nUser=", own),
        ] {
            let refused = check(from, to);
            assert!(refused.starts_with("unit_unfit"), "{refused}");
        }
        assert!(check("loaded", "not-found").starts_with("unit_unknown"));
        assert!(check("Type=simple\n", "").starts_with("systemd_strange"));
        // The hook that is there already is none of the unit's own.
        unit(&SHOWN.replace("\nUser=", own))
            .unwrap()
            .fit(&name, 1)
            .unwrap();
    }
}
