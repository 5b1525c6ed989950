//! The roots of one tenant: the one that signs and, while a rotation is not finished, the one before.
//! Place on the path: between a handshake and the authority that signs its leaf.
//! INVARIANT: who may trust nothing but the former root is shown leaves of it alone; a change is sealed before it takes effect.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use policies::{Tenant, WorkloadId};
use vault::{Secret, Vault};

use super::ca::{Authority, CaError, make_root};

/// The vault's label of a tenant's first root, before any rotation.
const FIRST: &str = "proxy-ca-v1";
/// Of its roots, from the first rotation on.
const ROTATED: &str = "proxy-ca-v2";

/// A tenant's roots, opened.
pub(crate) struct Roots {
    current: Sealed,
    former: Option<Former>,
}

/// A root, and the form that it is sealed in.
struct Sealed {
    authority: Arc<Authority>,
    stored: Secret,
}

/// The root before, and the workloads that started when there was no other.
struct Former {
    root: Sealed,
    workloads: BTreeSet<WorkloadId>,
}

/// One root, as it is shown.
#[derive(Clone, Debug)]
pub struct Root {
    /// Which of the tenant's, from 1.
    pub generation: u32,
    /// The certificate as PEM.
    pub pem: String,
    /// The same as DER.
    pub der: Vec<u8>,
    /// The live workloads that trust this one and not the next; of the current root none.
    pub alone: Vec<WorkloadId>,
    /// Whether it is the one that new workloads are shown leaves of.
    pub current: bool,
}

impl Roots {
    /// Opens the tenant's roots; makes the first one the first time.
    ///
    /// A crash between making and sealing leaves nothing; after sealing, the same root is found again.
    pub(crate) fn open(vault: &Vault, tenant: &Tenant) -> Result<Self, CaError> {
        if let Some(stored) = vault.unsealed(tenant, ROTATED)? {
            return Self::read(tenant, stored.expose())
                .unwrap_or_else(|| Err(CaError::Stored(tenant.clone())));
        }
        let stored = vault.sealed(tenant, FIRST, || make_root(tenant, 1))?;
        Ok(Self {
            current: Sealed::open(tenant, 1, stored)?,
            former: None,
        })
    }

    /// Who signs for this workload.
    pub(crate) fn of(&self, workload: WorkloadId) -> &Arc<Authority> {
        match &self.former {
            Some(former) if former.workloads.contains(&workload) => &former.root.authority,
            _ => &self.current.authority,
        }
    }

    /// All roots as PEM, for trust stores: the former first.
    pub(crate) fn pem(&self) -> String {
        let former = self.former.as_ref();
        let former = former.map(|former| former.root.authority.pem());
        former.unwrap_or_default() + &self.current.authority.pem()
    }

    /// As they are shown.
    pub(crate) fn shown(&self, live: &BTreeSet<WorkloadId>) -> Vec<Root> {
        let root = |sealed: &Sealed, alone: Vec<WorkloadId>, current| Root {
            generation: sealed.authority.generation(),
            pem: sealed.authority.pem(),
            der: sealed.authority.certificate().to_vec(),
            alone,
            current,
        };
        let former = self.former.as_ref().map(|former| {
            let alone = former.workloads.intersection(live).copied().collect();
            root(&former.root, alone, false)
        });
        former
            .into_iter()
            .chain([root(&self.current, Vec::new(), true)])
            .collect()
    }

    /// A new root beside this one. `publish` puts both where workloads that start from now on find them; who lives then has
    /// the former alone.
    ///
    /// A crash before the end leaves the former root in force, and perhaps one more certificate in the published file.
    pub(crate) fn rotate(
        &self,
        vault: &Vault,
        tenant: &Tenant,
        publish: impl FnOnce(&str) -> io::Result<()>,
        live: impl FnOnce() -> BTreeSet<WorkloadId>,
    ) -> Result<Self, CaError> {
        if self.former.is_some() {
            return Err(CaError::Rotating(tenant.clone()));
        }
        let generation = self.current.authority.generation().saturating_add(1);
        let stored = make_root(tenant, generation)?;
        let mut rotated = Self {
            current: Sealed::open(tenant, generation, stored)?,
            former: Some(Former {
                root: self.current.again(tenant)?,
                workloads: BTreeSet::new(),
            }),
        };
        publish(&rotated.pem()).map_err(CaError::Publish)?;
        // After publishing: whoever is admitted later reads both.
        if let Some(former) = &mut rotated.former {
            former.workloads = live();
        }
        vault.reseal(tenant, ROTATED, &rotated.write(), &[FIRST])?;
        Ok(rotated)
    }

    /// The former root is trusted no longer, and its key is gone.
    pub(crate) fn finish(
        &self,
        vault: &Vault,
        tenant: &Tenant,
        publish: impl FnOnce(&str) -> io::Result<()>,
        live: &BTreeSet<WorkloadId>,
        force: bool,
    ) -> Result<Self, CaError> {
        let Some(former) = &self.former else {
            return Err(CaError::NotRotating(tenant.clone()));
        };
        let count = former.workloads.intersection(live).count();
        if count > 0 && !force {
            return Err(CaError::StillTrusted {
                tenant: tenant.clone(),
                count,
            });
        }
        let finished = Self {
            current: self.current.again(tenant)?,
            former: None,
        };
        publish(&finished.pem()).map_err(CaError::Publish)?;
        vault.reseal(tenant, ROTATED, &finished.write(), &[FIRST])?;
        Ok(finished)
    }

    /// Sealed form: a count of roots; for each, the former first, its generation and length (u32, big endian) and what
    /// `make_root` made; then the workloads (u64) that have the former alone.
    fn write(&self) -> Secret {
        let roots = self.former.iter().map(|former| &former.root);
        let mut bytes = vec![1 + u8::from(self.former.is_some())];
        for root in roots.chain([&self.current]) {
            let stored = root.stored.expose();
            let length = u32::try_from(stored.len()).unwrap_or(u32::MAX);
            bytes.extend(root.authority.generation().to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes.extend(stored);
        }
        for workload in self.former.iter().flat_map(|former| &former.workloads) {
            bytes.extend(workload.0.to_be_bytes());
        }
        Secret::new(bytes)
    }

    /// None if it is not what `write` writes.
    fn read(tenant: &Tenant, stored: &[u8]) -> Option<Result<Self, CaError>> {
        let (count, mut rest) = stored.split_first()?;
        let mut roots = Vec::new();
        for _ in 0..*count {
            let (generation, after) = rest.split_first_chunk::<4>()?;
            let (length, after) = after.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            let (root, after) = after.split_at_checked(length)?;
            let generation = u32::from_be_bytes(*generation);
            match Sealed::open(tenant, generation, Secret::new(root.to_vec())) {
                Ok(root) => roots.push(root),
                Err(error) => return Some(Err(error)),
            }
            rest = after;
        }
        let (workloads, nothing) = rest.as_chunks::<8>();
        if !nothing.is_empty() {
            return None;
        }
        let current = roots.pop()?;
        let workloads = workloads
            .iter()
            .map(|id| WorkloadId(u64::from_be_bytes(*id)))
            .collect();
        let former = roots.pop().map(|root| Former { root, workloads });
        roots.is_empty().then_some(Ok(Self { current, former }))
    }
}

impl Sealed {
    fn open(tenant: &Tenant, generation: u32, stored: Secret) -> Result<Self, CaError> {
        let authority = Arc::new(Authority::open(tenant, generation, stored.expose())?);
        Ok(Self { authority, stored })
    }

    /// A secret has no copy: it is opened once more.
    fn again(&self, tenant: &Tenant) -> Result<Self, CaError> {
        let stored = Secret::new(self.stored.expose().to_vec());
        Self::open(tenant, self.authority.generation(), stored)
    }
}
