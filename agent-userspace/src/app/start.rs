//! What the proxy process does once: the master key while it is still root, then every part it serves with.
//! Between `daemon::worker` and `serve`.
//! INVARIANT: a vault that cannot be opened, a broken bundle or an unreadable kill switch ends the start.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use audit::{Ledger, OpenError, Options};
use mitm_proxy::{Pools, Settings};
use policies::{AgentId, Bundle, Diagnostics};
use vault::{MasterKey, MasterKeySource, Vault, VaultError};

use crate::config::{Config, Paths, Snapshot, credentials_directory};
use crate::metrics::Metrics;

/// The name of the master key among systemd's credentials.
const MASTER_KEY_CREDENTIAL: &str = "sluice-master-key";

/// What was read while the process could still read it.
pub struct Prepared {
    pub(super) snapshot: Snapshot,
    pub(super) config: Config,
    pub(super) master: MasterKey,
}

/// Reads the settings and the vault's master key; makes the key at the first start. Call it before privileges are dropped.
///
/// # Errors
/// The settings are broken, or there is no usable key.
pub fn prepare(paths: &Paths, snapshot: Snapshot) -> Result<Prepared, StartError> {
    let config = snapshot.config()?;
    let master = master_key(paths, &config)?;
    Ok(Prepared {
        snapshot,
        config,
        master,
    })
}

/// The master key from where the settings say, else systemd's credential, else the state directory.
pub(crate) fn master_key(paths: &Paths, config: &Config) -> Result<MasterKey, StartError> {
    if let Some(path) = &config.vault.key_file {
        return Ok(MasterKey::load(&MasterKeySource::KeyFile(path.clone()))?);
    }
    if let Some(directory) =
        credentials_directory().filter(|directory| directory.join(MASTER_KEY_CREDENTIAL).exists())
    {
        let name = MASTER_KEY_CREDENTIAL.to_owned();
        return Ok(MasterKey::load(&MasterKeySource::Systemd {
            directory,
            name,
        })?);
    }
    let path = paths.master_key_file();
    if path.exists() {
        return Ok(MasterKey::load(&MasterKeySource::KeyFile(path))?);
    }
    // A new key beside an old vault would open nothing and hide what is wrong.
    if paths.vault_file().exists() {
        return Err(StartError::MasterKeyMissing {
            key: path,
            vault: paths.vault_file(),
        });
    }
    crate::config::private_directory(&paths.state).map_err(|source| StartError::Directory {
        path: paths.state.clone(),
        source,
    })?;
    Ok(MasterKey::create(&path)?)
}

/// Opens the audit logs; `metrics` counts their commits where there is somebody to read them.
pub(crate) fn open_ledger(
    paths: &Paths,
    metrics: Option<Arc<Metrics>>,
) -> Result<Ledger, StartError> {
    let directory = paths.audit_dir();
    crate::config::private_directory(&directory).map_err(|source| StartError::Directory {
        path: directory.clone(),
        source,
    })?;
    let mut options = Options::default();
    if let Some(metrics) = metrics {
        options.on_commit = Arc::new(move |stats: audit::CommitStats| {
            metrics.audit_commit(stats.duration, stats.records)
        });
    }
    Ok(Ledger::open(&directory, options)?)
}

/// Opens the vault with a key that must fit.
pub(crate) fn open_vault(paths: &Paths, master: MasterKey) -> Result<Vault, StartError> {
    Ok(Vault::open(&paths.vault_file(), master)?)
}

/// The path's settings from the configuration.
pub(super) fn settings(config: &Config, snapshot: &Snapshot) -> Result<Settings, Diagnostics> {
    let connect_to: HashMap<_, _> = config
        .proxy
        .connect_to
        .iter()
        .map(|(from, to)| (from.clone(), to.clone()))
        .collect();
    Ok(Settings {
        connect_to,
        outbound: config.proxy.outbound.clone(),
        nameservers: config.proxy.nameservers.clone(),
        extra_roots: snapshot.trust_anchors()?,
        hold: config.approvals.hold,
        names: Pools {
            v4: config.names.pool4,
            v6: config.names.pool6,
        },
        limits: config.limits.clone(),
    })
}

/// What the enforcer needs to know of `bundle`.
pub(super) fn ready(bundle: &Bundle, disabled: impl IntoIterator<Item = AgentId>) -> super::Ready {
    let mut literals: Vec<_> = bundle
        .agents()
        .flat_map(|agent| bundle.exact_hosts(agent.id()))
        .filter_map(|host| host.ip())
        .collect();
    literals.sort();
    literals.dedup();
    // One more than there is room for says as much as all of them, and what is told has to fit into a message.
    literals.truncate(agent_abi::MAX_LITERALS as usize + 1);
    super::Ready {
        version: bundle.version(),
        literals,
        disabled: disabled.into_iter().collect(),
        processes: bundle
            .agents()
            .flat_map(|agent| {
                agent
                    .processes()
                    .map(|rule| (agent.id().clone(), rule.clone()))
            })
            .collect(),
    }
}

/// Why the proxy process cannot start. A restart would fail the same way.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The audit logs cannot be opened.
    #[error(transparent)]
    Audit(#[from] OpenError),
    /// A record of the start could not be written.
    #[error("the start cannot be recorded: {0}")]
    AuditWrite(#[from] audit::AuditError),
    /// The settings, agents, connectors or policies are broken.
    #[error("{0}")]
    Configuration(#[from] Diagnostics),
    /// A directory cannot be made.
    #[error("cannot make {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The kill switch's state cannot be read.
    #[error("cannot read which agents are switched off from {}: {source}", path.display())]
    Disabled {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The vault is there and its key is not.
    #[error("the master key {} is missing, but {} was encrypted with it; put the key back", key.display(), vault.display())]
    MasterKeyMissing {
        /// Where the key should be.
        key: PathBuf,
        /// The vault.
        vault: PathBuf,
    },
    /// The metrics address cannot be used.
    #[error("cannot serve metrics on {address}: {source}")]
    Metrics {
        /// `[metrics] listen`.
        address: SocketAddr,
        /// What happened.
        source: io::Error,
    },
    /// The path of requests cannot start.
    #[error(transparent)]
    Proxy(#[from] mitm_proxy::StartError),
    /// A tenant's certificate authority cannot be read or made.
    #[error(transparent)]
    Ca(#[from] mitm_proxy::CaError),
    /// A tenant's certificate cannot be written.
    #[error("cannot write the certificate {}: {source}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The vault cannot be opened or decrypted.
    #[error(transparent)]
    Vault(#[from] VaultError),
}
