//! Everything that can go wrong while the kernel side is set up or kept.
//! Place on the path: before any request; the enforcer reports these and does not start.
//! INVARIANT: each variant says what was attempted and on what; none means "go on without".

use std::io;
use std::path::PathBuf;

use policies::WorkloadId;

use super::outside::Unfit;

/// Why enforcement could not be set up, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    /// A program could not be attached.
    #[error("eBPF program `{program}` could not be attached")]
    Attach {
        /// The program.
        program: &'static str,
        /// The kernel's answer.
        source: Box<aya::programs::ProgramError>,
    },
    /// A raw bpf(2) call failed.
    #[error("bpf({call}) on {subject}")]
    Bpf {
        /// The command.
        call: &'static str,
        /// What it was about.
        subject: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No cgroup v2 hierarchy is mounted, and none could be.
    #[error(
        "no cgroup v2 hierarchy is mounted; mount one with `mount -t cgroup2 none /sys/fs/cgroup`"
    )]
    CgroupMissing,
    /// A cgroup that cannot become a workload.
    #[error("{} cannot be governed: {why}", path.display())]
    CgroupUnfit {
        /// The directory.
        path: PathBuf,
        /// Why not.
        why: Unfit,
    },
    /// Another daemon holds this instance.
    #[error("another sluice daemon already runs as instance `{0}`")]
    InUse(String),
    /// A file, directory or mount.
    #[error("{what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// More literal addresses than the kernel side has room for; the former ones stay.
    #[error(
        "literals_full: connections name more IP addresses than the kernel side has room for ({})",
        agent_abi::MAX_LITERALS
    )]
    LiteralsFull,
    /// The kernel does not take the object or a program of it; the verifier's words are in the source.
    #[error("the kernel refused the eBPF object{}", program.map(|p| format!(" (program `{p}`)")).unwrap_or_default())]
    Load {
        /// The program, where one is to blame.
        program: Option<&'static str>,
        /// The kernel's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map could not be read or written.
    #[error("eBPF map `{map}`")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: Box<aya::maps::MapError>,
    },
    /// Pins of another version are there, and workloads still run under them.
    #[error("{} was pinned by another version of sluice and its workloads still run; stop them, or start that version", path.display())]
    OtherVersion {
        /// The pin directory.
        path: PathBuf,
    },
    /// A pinned map does not look as this version made it.
    #[error("the pinned map {} has another type or size; stop all workloads, remove its directory, and start again", path.display())]
    PinForeign {
        /// The pin.
        path: PathBuf,
    },
    /// A workload still has processes.
    #[error("workload {0} still has processes")]
    WorkloadAlive(WorkloadId),
    /// As many workloads as the kernel side has room for live already.
    #[error(
        "workloads_full: {} workloads live on this host, and the kernel side has no room for more",
        agent_abi::MAX_WORKLOADS
    )]
    WorkloadsFull,
    /// No such workload.
    #[error("there is no workload {0}")]
    WorkloadUnknown(WorkloadId),
}

impl EnforceError {
    /// A closure that dresses an I/O error.
    pub(super) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> EnforceError {
        let path = path.into();
        move |source| EnforceError::Io { what, path, source }
    }

    /// A closure that dresses an error of a map.
    pub(super) fn map(map: &'static str) -> impl Fn(aya::maps::MapError) -> EnforceError {
        move |source| EnforceError::Map {
            map,
            source: Box::new(source),
        }
    }
}
