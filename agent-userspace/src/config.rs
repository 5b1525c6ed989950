//! What the operator wrote: paths, settings and the texts a bundle is made of. First step of every command.
//! The only reader of files and environment in the product; everything else receives typed values.
//! INVARIANT: an unknown key, a key set twice or a file that cannot be read is an error with its place, never a default.

mod accounts;
mod duration;
mod limits;
mod merge;
mod panic;
mod settings;
mod snapshot;
mod state;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use policies::Tenant;
use rustix::fs::{FileType, Mode, OFlags};
use tracing_subscriber::EnvFilter;

pub use accounts::{Accounts, ProcessFacts};
pub use duration::parse_duration;
pub use panic::{PanicNote, engage_panic, lift_panic, panic_mark, take_panic_notes};
pub use settings::{
    Approvals, Audit, Config, Control, Enforcement, Launch, Metrics, Names, Proxy, UidRange, Vault,
};
pub use snapshot::{Snapshot, TextFile, read_one, read_toml_files};
pub use state::{
    adopt_owner, private_directory, public_directory, read_disabled, replace, write_disabled,
};

/// Where one instance keeps its files. Several instances run side by side when all three differ.
#[derive(Clone, Debug, clap::Args)]
pub struct Paths {
    /// Directory of config.toml, config.d, agents.d, policies and connectors.d
    #[arg(
        long = "config",
        global = true,
        env = "SLUICE_CONFIG",
        value_name = "DIR",
        default_value = "/etc/sluice"
    )]
    pub config: PathBuf,
    /// Directory of the audit logs and the vault
    #[arg(
        long = "state-dir",
        global = true,
        env = "SLUICE_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/sluice"
    )]
    pub state: PathBuf,
    /// Directory of the sockets and the tenants' CA certificates
    #[arg(
        long = "runtime-dir",
        global = true,
        env = "SLUICE_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/sluice"
    )]
    pub runtime: PathBuf,
}

impl Paths {
    /// The socket that the command line talks to.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// The enforcer's own socket, for `sluice run`.
    #[must_use]
    pub fn enforcer_socket(&self) -> PathBuf {
        self.runtime.join("enforcer.sock")
    }

    /// Where the tenants' root certificates are, for the launcher.
    #[must_use]
    pub fn ca_dir(&self) -> PathBuf {
        self.runtime.join("ca")
    }

    /// One tenant's root certificate.
    #[must_use]
    pub fn ca_pem(&self, tenant: &Tenant) -> PathBuf {
        self.ca_dir().join(format!("{tenant}.pem"))
    }

    /// The directory of the audit logs.
    #[must_use]
    pub fn audit_dir(&self) -> PathBuf {
        self.state.join("audit")
    }

    /// The encrypted secrets.
    #[must_use]
    pub fn vault_file(&self) -> PathBuf {
        self.state.join("vault.redb")
    }

    /// The vault's master key, unless the settings name another place.
    #[must_use]
    pub fn master_key_file(&self) -> PathBuf {
        self.state.join("master.key")
    }

    /// Where the agents that run under a uid of their own have their homes: beside the state directory, which nobody may enter.
    #[must_use]
    pub fn homes(&self) -> PathBuf {
        let mut path = self.state.clone().into_os_string();
        path.push("-agents");
        PathBuf::from(path)
    }

    /// Says that every agent is stopped: beside the sockets, where only root writes.
    #[must_use]
    pub fn panic_file(&self) -> PathBuf {
        self.runtime.join("panic")
    }

    /// The same where it outlives the host's next start.
    #[must_use]
    pub fn lasting_panic_file(&self) -> PathBuf {
        self.state.join("panic")
    }

    /// What `sluice panic` did and no daemon has written down yet.
    #[must_use]
    pub fn panic_notes_file(&self) -> PathBuf {
        self.runtime.join("panic.notes")
    }

    /// The agents that are switched off, one `tenant/name` per line.
    #[must_use]
    pub fn disabled_file(&self) -> PathBuf {
        self.state.join("disabled")
    }
}

/// A tenant's root certificate. It lies in a directory of the proxy process, so a link or a pipe in its place is refused.
///
/// # Errors
/// It cannot be read, or is no file.
pub fn read_certificate(path: &std::path::Path) -> io::Result<String> {
    use std::io::Read as _;
    // Anything longer is none.
    const MAX_PEM: u64 = 64 * 1024;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut text = String::new();
    std::fs::File::from(file)
        .take(MAX_PEM)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// A text file of somebody else's, such as a container's configuration.
///
/// # Errors
/// It cannot be read, is not UTF-8 or larger than 16 MiB.
pub fn read_text(path: &std::path::Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(16 * 1024 * 1024)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// The directory in which systemd put this service's credentials, if it did.
#[must_use]
pub fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Where the environment says that trusted roots are, beside the system's places (as OpenSSL and rustls read it).
#[must_use]
pub fn certificate_places() -> Vec<PathBuf> {
    ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .into_iter()
        .filter_map(std::env::var_os)
        .flat_map(|places| std::env::split_paths(&places).collect::<Vec<_>>())
        .filter(|place| place.is_absolute())
        .collect()
}

/// True if the environment asks for reduced mode.
#[must_use]
pub fn reduced_by_environment() -> bool {
    std::env::var_os("SLUICE_REDUCED").is_some_and(|value| value == "1")
}

/// True if the environment asks for no colour (<https://no-color.org>).
#[must_use]
pub fn no_color_by_environment() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// The environment of this process, which `sluice run` passes on.
#[must_use]
pub fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

/// The working directory of this process.
///
/// # Errors
/// It is gone, or may not be seen.
pub fn working_directory() -> io::Result<PathBuf> {
    std::env::current_dir()
}

/// Logs to standard error: at the level that `SLUICE_LOG` names (as `info`, or `debug,h2=warn`), else `info`.
/// A second call changes nothing.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let color = io::stderr().is_terminal() && !no_color_by_environment();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(color)
        .with_target(false);
    // Another subscriber is there already, and stays.
    let _ = log.try_init();
}
