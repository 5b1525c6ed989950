//! How each workload came to be governed, kept with its cgroup so that the next daemon knows.
//! Beside the path: read and written by the enforcer when a workload is made, attached or found.
//! INVARIANT: only a label for people; whatever it says, the workload is governed the same.

use std::path::Path;

use mitm_proxy::Way;

/// Only whoever has CAP_SYS_ADMIN on the host can write it.
const ATTRIBUTE: &str = "trusted.sluice.way";

/// Writes the way down. A crash before leaves a workload that is reported as `run`.
pub(super) fn remember(cgroup: &Path, way: Way) {
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(error) = rustix::fs::setxattr(cgroup, ATTRIBUTE, way.as_str().as_bytes(), flags) {
        tracing::debug!(%error, cgroup = %cgroup.display(), "the way in cannot be noted");
    }
}

/// The cgroup is given back to whoever made it.
pub(super) fn forget(cgroup: &Path) {
    let _never_noted = rustix::fs::removexattr(cgroup, ATTRIBUTE);
}

/// The way that was written down, if any.
pub(super) fn recall(cgroup: &Path) -> Option<Way> {
    let mut name = [0_u8; 16];
    let length = rustix::fs::getxattr(cgroup, ATTRIBUTE, &mut name[..]).ok()?;
    Way::from_name(name.get(..length)?)
}
