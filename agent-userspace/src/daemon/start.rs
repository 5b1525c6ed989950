//! The daemon's main function: read, lock, put the kernel side in force, open the listeners, supervise, stop.
//! Everything that can fail before an agent is served fails here, and is taken back.
//! INVARIANT: two daemons never enforce one instance; reduced mode is never entered without being asked for.

use tokio::sync::mpsc;

use super::DaemonError;
use super::appearing::Appearing;
use super::enforcer::{Enforcer, Given};
use super::error::in_full;
use super::events::Inputs;
use super::listeners::Sockets;
use super::namespaces::Namespaces;
use super::places::{self, Places};
use super::protocol::WorkerAccount;
use super::runs;
use crate::config::{Config, Paths, Snapshot, reduced_by_environment};
use crate::enforce::launch::{Account, close_inherited_on_exec};
use crate::enforce::{Enforcement, Instance, Mode, Ports, Settings};
use crate::layers::LayerState;

/// How many messages may wait for the main loop.
const QUEUE: usize = 256;

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// It could not start, and nothing was published; or it could not stop cleanly.
pub fn run(paths: &Paths) -> Result<(), DaemonError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    kernel_is_new_enough(&release())?;
    // What whoever started us left open is nobody else's business, least of all the proxy process's.
    close_inherited_on_exec().map_err(DaemonError::io("descriptors"))?;
    let snapshot = Snapshot::read(paths)?;
    let config = snapshot.config()?;
    let account = worker_account(&config)?;
    let places = Places::prepare(paths, &account)?;
    let control = places::control_socket(paths, config.control.group.is_some())?;
    let socket = places::enforcer_socket(paths)?;
    let enforcement = enforce(paths, &config)?;
    let sockets = match listen(&enforcement) {
        Ok(sockets) => sockets,
        Err(error) => return Err(undo(enforcement, error)),
    };
    // One thread: the proxy process dies with the thread that started it, so that must be the one that lives longest.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::io("the runtime cannot be started"))?;
    let served = runtime.block_on(async {
        let governed = governed(&sockets.cgroup);
        let ports = Ports {
            proxy: sockets.listening.proxy_port,
            resolver: sockets.listening.resolver_port,
        };
        let (news, heard) = mpsc::channel(QUEUE);
        let (asks, asked) = mpsc::channel(QUEUE);
        let (appearing, appeared) = Appearing::new();
        let mut inputs = Inputs::new(heard, asked, appeared)?;
        let kernel = enforcement.events()?;
        let given = Given {
            paths: paths.clone(),
            snapshot,
            config,
            account,
            governed: governed.clone(),
            sockets,
            control,
        };
        let namespaces = Namespaces::new(enforcement.proxy_cgroup(), ports)?;
        let mut enforcer = Enforcer::new(given, kernel, news, namespaces, appearing, enforcement);
        if let Err(error) = enforcer.start(&mut inputs).await {
            return Err(undo(enforcer.into_enforcement(), error));
        }
        tokio::spawn(runs::accept(socket, governed, asks));
        enforcer.serve(&mut inputs).await;
        enforcer.stop(inputs).await
    });
    drop(places);
    served
}

/// The oldest kernel whose hooks are all that the walls need: network namespace cookies in every hook, LSM programs by cgroup.
const OLDEST: (u32, u32) = (6, 1);

fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Refused by name, before some call that an old kernel does not know fails. A release that cannot be read is no known kernel.
fn kernel_is_new_enough(release: &str) -> Result<(), DaemonError> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    match numbers.next().zip(numbers.next()) {
        Some(version) if version >= OLDEST => Ok(()),
        _ => Err(DaemonError::KernelTooOld(release.to_owned())),
    }
}

/// The account of `[proxy] user`, which must not be root.
fn worker_account(config: &Config) -> Result<WorkerAccount, DaemonError> {
    let account = Account::find(&config.proxy.user)?;
    if account.uid == 0 || account.gid == 0 {
        return Err(DaemonError::RootAccount);
    }
    Ok(WorkerAccount {
        uid: account.uid,
        gid: account.gid,
    })
}

/// Puts the kernel side in force; in reduced mode only if somebody opted in.
fn enforce(paths: &Paths, config: &Config) -> Result<Enforcement, DaemonError> {
    let runtime = std::fs::canonicalize(&paths.runtime)
        .map_err(DaemonError::io(paths.runtime.display().to_string()))?;
    let settings = Settings {
        instance: Instance::of(&runtime),
        pool4: config.names.pool4,
        pool6: config.names.pool6,
    };
    let enforcement = Enforcement::start(&settings)?;
    if enforcement.mode() == Mode::Full {
        return Ok(enforcement);
    }
    let layers = enforcement.layers();
    let open: Vec<String> = layers
        .iter()
        .filter(|layer| layer.state != LayerState::Live)
        .flat_map(|layer| {
            layer
                .leaves_open
                .iter()
                .map(move |open| format!("{}: {open}", layer.name))
        })
        .collect();
    if !config.enforcement.reduced && !reduced_by_environment() {
        return Err(undo(enforcement, DaemonError::Reduced(open)));
    }
    tracing::warn!("REDUCED MODE: not every layer is live. Open without it:");
    for escape in &open {
        tracing::warn!("  {escape}");
    }
    Ok(enforcement)
}

/// On the ports of before, where there are any: no workload can have taken them.
fn listen(enforcement: &Enforcement) -> Result<Sockets, DaemonError> {
    Sockets::open(enforcement.proxy_cgroup(), enforcement.published()?)
}

/// A start that failed leaves nothing behind, unless a former daemon's workloads still run.
fn undo(enforcement: Enforcement, why: DaemonError) -> DaemonError {
    if let Err(error) = enforcement.stop() {
        tracing::error!(
            error = in_full(&error),
            "the kernel side could not be taken back; it denies everything"
        );
    }
    why
}

/// The cgroup path of all workloads, given that of the listeners: they lie beside each other.
fn governed(proxy: &str) -> String {
    let parent = proxy.rsplit_once('/').map_or("", |(parent, _)| parent);
    format!("{parent}/agents")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_1_are_refused_by_name() {
        for old in ["5.10.0-46-cloud-amd64", "6.0.19", "4.19", "", "unknown"] {
            let refused = kernel_is_new_enough(old).unwrap_err().to_string();
            assert!(refused.starts_with("kernel_too_old") && refused.contains(old));
        }
        for new in ["6.1.0-56-cloud-amd64", "6.12.117+deb13", "7.3.4", "10.0"] {
            kernel_is_new_enough(new).unwrap();
        }
    }
}
