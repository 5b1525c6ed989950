//! The door to the audit logs: one per tenant and the host's own.
//! Step 7 of a request's path calls `intent`; everything that happens or is refused ends in one of the calls here.
//! INVARIANT: `Ok` means durable, but for `outcome`, which is queued and told later.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use policies::{Approval, Permit, Tenant};

use crate::draft;
use crate::error::{AuditError, OpenError};
use crate::evidence::{Owed, ReadPermit, Recorded, Sorted};
use crate::export;
use crate::facts::{ApprovalEvent, HostEvent, IntentFacts, Outcome, RefusalFacts};
use crate::files;
use crate::key::LogKey;
use crate::log::{self, Log, Opener};
use crate::proof::{self, Consistency, Inclusion};
use crate::query::{self, Entry, Query};
use crate::queue::{ApprovalWrite, NotQueued};
use crate::record::Record;
use crate::store;

const HOST: &str = "host";
const KEY_FILE: &str = "checkpoint.key";

/// One commit of one log.
#[derive(Clone, Copy, Debug)]
pub struct CommitStats {
    /// How many records it made durable.
    pub records: usize,
    /// From taking them out of the queue to the end of the flush.
    pub duration: Duration,
}

/// Called on the writer's thread after every commit: must be quick.
pub type OnCommit = Arc<dyn Fn(CommitStats) + Send + Sync>;

/// How to open a ledger.
#[derive(Clone)]
pub struct Options {
    /// Name of the signing key: the host's id. Used when the key is made; the name in an existing key file wins.
    pub key_name: String,
    /// How many records of one log may wait for their commit; more are refused as `Overloaded`.
    pub queue: usize,
    /// For the metric of the commit time.
    pub on_commit: OnCommit,
}

/// When a call whose risk classes are all `read` may leave.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Reads {
    /// When its intent is on disk, like every other call.
    #[default]
    Durable,
    /// When its intent is queued; intents of reads share commits, and a crash may lose those of the last milliseconds.
    Grouped,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            key_name: "sluice".to_owned(),
            queue: 4096,
            on_commit: Arc::new(|_| {}),
        }
    }
}

/// The audit logs of this host. Cheap to clone.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    options: Options,
    key: Arc<LogKey>,
    /// Whether reads are [`Reads::Grouped`].
    grouped: AtomicBool,
    logs: RwLock<BTreeMap<Tenant, Arc<Log>>>,
}

impl Ledger {
    /// Opens the host's log and every tenant's log in `dir`, which is made where it is missing.
    ///
    /// Blocks: redb reads every page of every log. Calls that an earlier process left without an outcome are recorded
    /// as `unknown`. The signing key is made with the first log.
    ///
    /// # Errors
    /// A log that is damaged, altered, in use or not writable: nothing may be served then.
    pub fn open(dir: &Path, options: Options) -> Result<Ledger, OpenError> {
        files::make_dir(dir)?;
        let tenants = tenants_in(dir)?;
        let key = LogKey::load(&dir.join(KEY_FILE), &options.key_name, tenants.is_empty())?;
        let inner = Inner {
            dir: dir.to_owned(),
            options,
            key: Arc::new(key),
            grouped: AtomicBool::new(false),
            logs: RwLock::default(),
        };
        for tenant in tenants.iter().chain([&Ledger::host_tenant()]) {
            inner.open_log(tenant)?;
        }
        Ok(Ledger(Arc::new(inner)))
    }

    /// The name under which the host's own log is listed. No agent may belong to it.
    pub fn host_tenant() -> Tenant {
        // NOTE(unwrap): four lower-case letters are a name; a test holds it.
        #[expect(clippy::expect_used, reason = "a constant that a test holds")]
        HOST.parse().expect("\"host\" is a name")
    }

    /// Says when the calls from now on may leave that only read. Durably, unless this was called.
    pub fn set_reads(&self, reads: Reads) {
        self.0
            .grouped
            .store(reads == Reads::Grouped, Ordering::Relaxed);
    }

    /// Records that a permitted call is about to leave; durable when it returns, but for a read under [`Reads::Grouped`].
    /// If the permit used an approval, the approval becomes `Used` in the same commit.
    ///
    /// # Errors
    /// The call must be refused: [`AuditError::reason`] says as what. If the caller goes away while it waits and
    /// the intent was written after all, its outcome is recorded as `aborted`.
    pub async fn intent(&self, permit: Permit, facts: IntentFacts) -> Result<Recorded, AuditError> {
        let record = Box::new(draft::intent(&permit, facts)?);
        let log = self.agents_log(&record.tenant).await?;
        let (permit, record) = if self.0.grouped.load(Ordering::Relaxed) {
            match queued(&log, permit, record)? {
                Queued::Yes(recorded) => return Ok(recorded),
                Queued::No(permit, record) => (permit, record),
            }
        } else {
            (permit, record)
        };
        let approval = permit
            .approval()
            .map_or(ApprovalWrite::None, |id| ApprovalWrite::Use(*id));
        let owed = log.intent(record, approval).await?;
        Ok(Recorded::durable(permit, owed))
    }

    /// Records how a call ended. Queued, not waited for; after a failed commit it is tried again.
    pub fn outcome(&self, owed: Owed, outcome: Outcome) {
        owed.settle(outcome);
    }

    /// Records a refusal; durable when it returns its index.
    ///
    /// # Errors
    /// The refusal stands; it is only not on record.
    pub async fn refused(&self, refusal: RefusalFacts) -> Result<u64, AuditError> {
        let log = self.log(&refusal.tenant).await?;
        log.append(Box::new(draft::refusal(refusal)), ApprovalWrite::None)
            .await
    }

    /// Records what happened to an approval and stores its state, in one commit.
    ///
    /// Call it before anybody may act on the new state: what is stored decides whether an intent may use it.
    ///
    /// # Errors
    /// [`AuditError::ApprovalSpent`] if the stored approval is closed already; else the log cannot be written.
    pub async fn approval(
        &self,
        event: ApprovalEvent,
        approval: &Approval,
    ) -> Result<u64, AuditError> {
        let at = match event {
            ApprovalEvent::Answered => approval
                .answers
                .last()
                .map_or_else(log::now, |last| last.at),
            ApprovalEvent::Expired => approval.expires_at,
            ApprovalEvent::Requested => approval.requested_at,
        };
        let log = self.agents_log(&approval.agent.tenant).await?;
        let store = ApprovalWrite::Store(Box::new(approval.clone()));
        log.append(Box::new(draft::approval(event, approval, at)), store)
            .await
    }

    /// The stored approvals that a starting daemon takes up: open ones, and closed ones for a day. Reads; blocks.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn open_approvals(&self) -> Result<Vec<Approval>, AuditError> {
        let now = log::now();
        let mut kept = Vec::new();
        for log in self.all() {
            let tenant = &log.shared.tenant;
            let stored = log
                .shared
                .read(|snapshot| store::approvals(snapshot, tenant))?;
            kept.extend(
                stored
                    .into_iter()
                    .filter(|approval| store::is_kept(approval, now)),
            );
        }
        Ok(kept)
    }

    /// Records something outside any call, in the tenant's log or (`None`) the host's.
    ///
    /// # Errors
    /// The log cannot be written.
    pub async fn event(
        &self,
        tenant: Option<&Tenant>,
        event: HostEvent,
    ) -> Result<u64, AuditError> {
        let tenant = tenant.cloned().unwrap_or_else(Ledger::host_tenant);
        let log = self.log(&tenant).await?;
        let record = Box::new(draft::event(tenant, event, log::now()));
        log.append(record, ApprovalWrite::None).await
    }

    /// Records that match, oldest first. Reads; blocks.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn list(&self, query: &Query) -> Result<Vec<Entry>, AuditError> {
        query::list(&self.all(), query)
    }

    /// One record. Reads; blocks.
    ///
    /// # Errors
    /// There is no such log or record, or it cannot be read.
    pub fn show(&self, tenant: &Tenant, index: u64) -> Result<Entry, AuditError> {
        query::show(&self.existing(tenant)?.shared, index)
    }

    /// The log's last checkpoint: a signed note to keep off the host. Reads; blocks.
    ///
    /// # Errors
    /// There is no such log, or it cannot be read.
    pub fn checkpoint(&self, tenant: &Tenant) -> Result<String, AuditError> {
        self.existing(tenant)?.shared.read(store::checkpoint_text)
    }

    /// Writes the whole log to `out` in the form that [`crate::verify()`] checks, and says how many records it has. Blocks.
    ///
    /// # Errors
    /// There is no such log, it cannot be read, or `out` fails.
    pub fn export(&self, tenant: &Tenant, out: &mut dyn Write) -> Result<u64, AuditError> {
        self.existing(tenant)?
            .shared
            .read(|snapshot| export::write(snapshot, out))
    }

    /// Proof that the checkpoint covers record `index`. Reads; blocks.
    ///
    /// # Errors
    /// There is no such log or record, or it cannot be read.
    pub fn prove_inclusion(&self, tenant: &Tenant, index: u64) -> Result<Inclusion, AuditError> {
        let log = self.existing(tenant)?;
        log.shared
            .read(|snapshot| proof::inclusion(snapshot, tenant, index))
    }

    /// Proof that the log of `old_size` records is a prefix of today's. Reads; blocks.
    ///
    /// # Errors
    /// There is no such log, it was never that small, or it cannot be read.
    pub fn prove_consistency(
        &self,
        tenant: &Tenant,
        old_size: u64,
    ) -> Result<Consistency, AuditError> {
        let log = self.existing(tenant)?;
        log.shared
            .read(|snapshot| proof::consistency(snapshot, tenant, old_size))
    }

    /// The public key as a signed-note verifier key, `name+hash+base64`. Keep a copy off the host.
    pub fn public_key(&self) -> String {
        self.0.key.public().to_string()
    }

    /// The tenants that have a log, in alphabetical order; the host's own log among them.
    pub fn tenants(&self) -> Vec<Tenant> {
        self.all()
            .iter()
            .map(|log| log.shared.tenant.clone())
            .collect()
    }

    async fn agents_log(&self, tenant: &Tenant) -> Result<Arc<Log>, AuditError> {
        if tenant.as_str() == HOST {
            return Err(AuditError::TenantReserved);
        }
        self.log(tenant).await
    }

    /// The tenant's log, made with its first record.
    async fn log(&self, tenant: &Tenant) -> Result<Arc<Log>, AuditError> {
        if let Ok(log) = self.existing(tenant) {
            return Ok(log);
        }
        let (inner, tenant) = (self.0.clone(), tenant.clone());
        let opened = tokio::task::spawn_blocking(move || inner.open_log(&tenant)).await;
        let opened = opened.map_err(|_| AuditError::Closed)?;
        opened.map_err(|error| AuditError::Open(Arc::new(error)))
    }

    fn existing(&self, tenant: &Tenant) -> Result<Arc<Log>, AuditError> {
        let logs = self.0.logs.read().unwrap_or_else(PoisonError::into_inner);
        logs.get(tenant)
            .cloned()
            .ok_or_else(|| AuditError::NoLog(tenant.clone()))
    }

    fn all(&self) -> Vec<Arc<Log>> {
        let logs = self.0.logs.read().unwrap_or_else(PoisonError::into_inner);
        logs.values().cloned().collect()
    }
}

/// Whether an intent was queued, or its call must wait.
enum Queued {
    Yes(Recorded),
    No(Permit, Box<Record>),
}

/// Queues the intent of a call that only reads. Whatever else it is, too large perhaps, or the last commit failed: it must wait.
fn queued(log: &Log, permit: Permit, record: Box<Record>) -> Result<Queued, AuditError> {
    let small = draft::is_small(&permit);
    let permit = match ReadPermit::sort(permit) {
        Sorted::Read(permit) if small => permit,
        Sorted::Read(permit) => return Ok(Queued::No(permit.into_permit(), record)),
        Sorted::Other(permit) => return Ok(Queued::No(permit, record)),
    };
    match log.queued_intent(record) {
        Ok(owed) => Ok(Queued::Yes(Recorded::queued(permit, owed))),
        Err(NotQueued::MustWait(record)) => Ok(Queued::No(permit.into_permit(), record)),
        Err(NotQueued::Refused(error)) => Err(error),
    }
}

impl Inner {
    fn open_log(&self, tenant: &Tenant) -> Result<Arc<Log>, OpenError> {
        let mut logs = self.logs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = logs.get(tenant) {
            return Ok(log.clone());
        }
        let path = self.dir.join(format!("{tenant}.redb"));
        let file = path.clone();
        let opener: Opener = Arc::new(move || files::open_log(&file));
        let Options {
            queue, on_commit, ..
        } = self.options.clone();
        let log = Log::open(
            tenant.clone(),
            path,
            opener,
            self.key.clone(),
            queue,
            on_commit,
        )?;
        let log = Arc::new(log);
        logs.insert(tenant.clone(), log.clone());
        Ok(log)
    }
}

fn tenants_in(dir: &Path) -> Result<Vec<Tenant>, OpenError> {
    let mut tenants = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|source| files::io(dir, source))? {
        let path = entry.map_err(|source| files::io(dir, source))?.path();
        if path.extension() != Some(OsStr::new("redb")) {
            continue;
        }
        let name = path
            .file_stem()
            .and_then(OsStr::to_str)
            .and_then(|stem| stem.parse().ok());
        tenants.push(name.ok_or(OpenError::FileName { path })?);
    }
    Ok(tenants)
}
