//! What a systemd service is given in place of a launch: files to show, and the settings of its drop-in that show them and take the rest away.
//! Called by `sluice agents attach --unit` for the settings, and by the unit's own hook for the files, before anything of the unit runs.
//! INVARIANT: settings only take away, but for the files and variables of CA trust; a service whose files are missing trusts nobody more.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::thread::LinkNameSpaceType;

use super::hide::BROKERS;
use super::trust;
use crate::config::{public_directory, replace};

/// Where the bundle is shown on a system that has none.
const DEFAULT_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// System calls that lead to other processes, to the kernel's programs, or past the socket hooks.
const REFUSED_CALLS: &str = "~bpf io_uring_enter io_uring_register io_uring_setup open_by_handle_at perf_event_open pidfd_getfd process_vm_readv process_vm_writev ptrace setns";

/// The files that one unit is shown.
#[derive(Clone, Debug)]
pub struct UnitFiles(PathBuf);

impl UnitFiles {
    /// Below the runtime directory: gone after a boot, and written anew before each start.
    #[must_use]
    pub fn of(runtime: &Path, unit: &str) -> UnitFiles {
        UnitFiles(runtime.join("units").join(unit))
    }

    fn bundle(&self) -> PathBuf {
        self.0.join("ca-bundle.pem")
    }

    fn resolv(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    /// Writes them. A crash in between leaves the former ones, and the unit unstarted.
    ///
    /// # Errors
    /// They cannot be written, or the root is no certificate.
    pub fn write(&self, root_pem: &str, nameserver: IpAddr) -> io::Result<()> {
        // Else the system's bundle is the one that the last start was shown.
        see_the_hosts_mounts()?;
        self.write_as_seen(root_pem, nameserver)
    }

    fn write_as_seen(&self, root_pem: &str, nameserver: IpAddr) -> io::Result<()> {
        let bundle = trust::combined_bundle(root_pem).map_err(io::Error::other)?;
        let resolv = format!("nameserver {nameserver}\noptions edns0 timeout:2 attempts:2\n");
        public_directory(&self.0)?;
        for (path, content) in [(self.bundle(), bundle), (self.resolv(), resolv.into())] {
            replace(&path, &content, 0o644)?;
        }
        Ok(())
    }
}

/// systemd makes a mount namespace for every command of a service that is shown files. For a process with one thread.
fn see_the_hosts_mounts() -> io::Result<()> {
    let (own, first) = (
        fs::File::open("/proc/self/ns/mnt")?,
        fs::File::open("/proc/1/ns/mnt")?,
    );
    if own.metadata()?.ino() == first.metadata()?.ino() {
        return Ok(());
    }
    let kind = Some(LinkNameSpaceType::Mount);
    rustix::thread::move_into_link_name_space(first.as_fd(), kind)?;
    Ok(())
}

/// The settings of a drop-in's `[Service]` section, in order. `hidden` are directories that an agent must not look into.
#[must_use]
pub fn settings(files: &UnitFiles, hidden: &[&Path]) -> Vec<(&'static str, String)> {
    let mut bundles = trust::system_bundles();
    if bundles.is_empty() {
        bundles.push(DEFAULT_BUNDLE.into());
    }
    let mut settings = Vec::new();
    let mut show = |file: &Path, at: &Path| {
        // systemd shows them to the hook, too, which makes them: the first time they are not there yet.
        let value = format!("-{}:{}", file.display(), at.display());
        settings.push(("BindReadOnlyPaths", value));
    };
    for bundle in &bundles {
        show(&files.bundle(), bundle);
    }
    show(&files.resolv(), Path::new("/etc/resolv.conf"));
    if let Some(bundle) = bundles.first() {
        let (variables, removed) = trust::variables(bundle);
        for (name, value) in variables {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            settings.push(("Environment", format!("{name}={value}")));
        }
        settings.push(("UnsetEnvironment", removed.join(" ")));
    }
    // Each with a hyphen: what is not there at a start need not be hidden.
    let own = hidden.iter().map(|path| format!("-{}", path.display()));
    let brokers = BROKERS.iter().map(|broker| format!("-{broker}"));
    let bpf = std::iter::once("-/sys/fs/bpf".to_owned());
    for path in own.chain(bpf).chain(brokers) {
        settings.push(("InaccessiblePaths", path));
    }
    let walls = [
        ("AmbientCapabilities", ""),
        ("CapabilityBoundingSet", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectControlGroups", "yes"),
        ("ProtectKernelLogs", "yes"),
        ("ProtectKernelModules", "yes"),
        ("ProtectKernelTunables", "yes"),
        (
            "RestrictAddressFamilies",
            "AF_INET AF_INET6 AF_NETLINK AF_UNIX",
        ),
        ("RestrictNamespaces", "yes"),
        ("SystemCallErrorNumber", "EPERM"),
        ("SystemCallFilter", REFUSED_CALLS),
    ];
    settings.extend(walls.map(|(key, value)| (key, value.to_owned())));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_shown_its_files_and_the_rest_is_taken_away() {
        let files = UnitFiles::of(Path::new("/run/sluice"), "bot.service");
        let settings = settings(&files, &[Path::new("/etc/sluice")]);
        let has = |key: &str, value: &str| {
            let found = settings.iter().any(|(k, v)| *k == key && v == value);
            assert!(found, "{key}={value} in {settings:#?}");
        };
        let resolv = "-/run/sluice/units/bot.service/resolv.conf:/etc/resolv.conf";
        has("BindReadOnlyPaths", resolv);
        has("CapabilityBoundingSet", "");
        has("InaccessiblePaths", "-/etc/sluice");
        has("InaccessiblePaths", "-/run/dbus");
        has("NoNewPrivileges", "yes");
        let is_set = |name: &str| {
            let begins = |(key, value): &(&str, String)| {
                *key == "Environment" && value.starts_with(&format!("{name}=/"))
            };
            settings.iter().any(begins)
        };
        assert!(is_set("SSL_CERT_FILE") && is_set("NODE_EXTRA_CA_CERTS"));
    }

    #[test]
    fn the_files_are_the_systems_roots_the_tenants_and_a_name_server() {
        let place = tempfile::tempdir().unwrap();
        let files = UnitFiles::of(place.path(), "bot.service");
        let pem = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n";
        for _ in 0..2 {
            files
                .write_as_seen(pem, "198.18.0.1".parse().unwrap())
                .unwrap();
            assert!(fs::read_to_string(files.bundle()).unwrap().ends_with(pem));
            let resolv = fs::read_to_string(files.resolv()).unwrap();
            assert!(resolv.starts_with("nameserver 198.18.0.1\n"), "{resolv}");
        }
        assert!(
            files
                .write_as_seen("root:x:0", "198.18.0.1".parse().unwrap())
                .is_err()
        );
    }
}
