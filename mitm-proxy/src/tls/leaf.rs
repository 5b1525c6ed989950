//! The certificates that agents see: one TLS configuration per (tenant, root, name), made once and kept for a day.
//! Place on the path: after the ClientHello, before the handshake goes on.
//! INVARIANT: the cache key holds the tenant and the root, so that nobody is served a leaf of another tenant, or of a root that it has not.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use moka::future::Cache;
use policies::{Host, Tenant};
use rustls::ServerConfig;
use vault::Vault;

use super::ca::{Authority, CaError};
use super::roots::Roots;
use super::{H2, HTTP_1_1, provider};
use crate::workload::Workload;

/// Names that are kept ready; a fronting agent that invents SNIs only evicts.
const KEPT: u64 = 8_192;
/// A leaf lives 48 hours and is handed out for 24, so that whoever gets it has a day left.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// All tenants' roots and the leaves made by them.
pub(crate) struct Leaves {
    vault: Arc<Vault>,
    roots: RwLock<HashMap<Tenant, Arc<Roots>>>,
    configs: Cache<(Tenant, u32, Host), Arc<ServerConfig>>,
}

impl Leaves {
    pub(crate) fn new(vault: Arc<Vault>) -> Self {
        Self {
            vault,
            roots: RwLock::default(),
            configs: Cache::builder()
                .max_capacity(KEPT)
                .time_to_live(FRESH)
                .build(),
        }
    }

    /// The TLS configuration for `name`, as this workload can verify it; concurrent handshakes for one name wait for one
    /// signature.
    pub(crate) async fn config(
        &self,
        workload: &Workload,
        name: &Host,
    ) -> Result<Arc<ServerConfig>, Arc<CaError>> {
        let tenant = &workload.agent.tenant;
        let roots = self.roots(tenant).map_err(Arc::new)?;
        let authority = roots.of(workload.id);
        let key = (tenant.clone(), authority.generation(), name.clone());
        self.configs
            .try_get_with(key, async { make(authority, name) })
            .await
    }

    /// The tenant's roots, opened or made the first time.
    pub(crate) fn roots(&self, tenant: &Tenant) -> Result<Arc<Roots>, CaError> {
        let known = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(roots) = known.get(tenant) {
            return Ok(Arc::clone(roots));
        }
        drop(known);
        // The lock is held while roots are opened, so that two handshakes cannot make two of them.
        let mut known = self.roots.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(roots) = known.get(tenant) {
            return Ok(Arc::clone(roots));
        }
        let roots = Arc::new(Roots::open(&self.vault, tenant)?);
        known.insert(tenant.clone(), Arc::clone(&roots));
        Ok(roots)
    }

    /// Replaces the tenant's roots by what `change` makes of them. Blocks; handshakes wait meanwhile, so that none is signed by
    /// a root that is on its way out.
    pub(crate) fn change(
        &self,
        tenant: &Tenant,
        change: impl FnOnce(&Roots, &Vault) -> Result<Roots, CaError>,
    ) -> Result<Arc<Roots>, CaError> {
        let before = self.roots(tenant)?;
        let mut known = self.roots.write().unwrap_or_else(PoisonError::into_inner);
        // Of two changes at once the second sees what the first made.
        let before = known.get(tenant).cloned().unwrap_or(before);
        let after = Arc::new(change(&before, &self.vault)?);
        known.insert(tenant.clone(), Arc::clone(&after));
        Ok(after)
    }
}

fn make(authority: &Authority, name: &Host) -> Result<Arc<ServerConfig>, CaError> {
    let leaf = authority.leaf(name)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.certificate], leaf.key)?;
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    Ok(Arc::new(config))
}
