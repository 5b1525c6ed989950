//! The certificates that agents see: one TLS configuration per (tenant, name), made once and kept for a day.
//! Place on the path: after the ClientHello, before the handshake goes on.
//! INVARIANT: the cache key holds the tenant, so that no tenant is ever served another's leaf.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use policies::{Host, Tenant};
use rustls::ServerConfig;
use vault::Vault;

use super::ca::{Authority, CaError};
use super::{H2, HTTP_1_1, provider};

/// Names that are kept ready; a fronting agent that invents SNIs only evicts.
const KEPT: u64 = 8_192;
/// A leaf lives 48 hours and is handed out for 24, so that whoever gets it has a day left.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// All tenants' authorities and the leaves made by them.
pub(crate) struct Leaves {
    vault: Arc<Vault>,
    authorities: Mutex<HashMap<Tenant, Arc<Authority>>>,
    configs: Cache<(Tenant, Host), Arc<ServerConfig>>,
}

impl Leaves {
    pub(crate) fn new(vault: Arc<Vault>) -> Self {
        Self {
            vault,
            authorities: Mutex::default(),
            configs: Cache::builder()
                .max_capacity(KEPT)
                .time_to_live(FRESH)
                .build(),
        }
    }

    /// The tenant's root as PEM.
    pub(crate) fn ca_pem(&self, tenant: &Tenant) -> Result<String, CaError> {
        Ok(self.authority(tenant)?.pem())
    }

    /// The TLS configuration for `name`; concurrent handshakes for one name wait for one signature.
    pub(crate) async fn config(
        &self,
        tenant: &Tenant,
        name: &Host,
    ) -> Result<Arc<ServerConfig>, Arc<CaError>> {
        let key = (tenant.clone(), name.clone());
        self.configs
            .try_get_with(key, async { self.make(tenant, name) })
            .await
    }

    fn make(&self, tenant: &Tenant, name: &Host) -> Result<Arc<ServerConfig>, CaError> {
        let leaf = self.authority(tenant)?.leaf(name)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.certificate], leaf.key)?;
        config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
        Ok(Arc::new(config))
    }

    fn authority(&self, tenant: &Tenant) -> Result<Arc<Authority>, CaError> {
        // The lock is held while a CA is opened, so that two handshakes cannot make two roots.
        let mut authorities = self
            .authorities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(authority) = authorities.get(tenant) {
            return Ok(Arc::clone(authority));
        }
        let authority = Arc::new(Authority::open(&self.vault, tenant)?);
        authorities.insert(tenant.clone(), Arc::clone(&authority));
        Ok(authority)
    }
}
