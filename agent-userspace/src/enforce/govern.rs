//! Takes a cgroup that lies elsewhere under governance, gives it back, and notices when it is gone.
//! Place on the path: before it, as `admit` is for workloads that Sluice starts itself.
//! INVARIANT: known first (everything is refused), then the programs with egress first, admitted last; given back only when nobody lives in it.

use std::path::Path;

use agent_abi::{Config, MAX_OUTSIDE_LEVELS, workload_flag};
use policies::{AgentId, WorkloadId};

use super::cgroup::{Open, Tree};
use super::error::EnforceError;
use super::instance::WorkloadName;
use super::object::Maps;
use super::outside::{self, Gone, Outside, Unfit};
use super::pins::Pins;
use super::{Admitted, Enforcement, attach, label};

impl Enforcement {
    /// Makes a cgroup that is there already (a unit's, a container's, a pod's) a workload of `agent`, with all that lies below it.
    ///
    /// The cgroup must be of the daemon's cgroup v2 hierarchy, and overlap with no other workload, nor with Sluice's cgroups or
    /// the daemon's own. Processes may live in it already: from here on they are refused every socket that they made before.
    /// Blocks for some milliseconds.
    pub fn govern(&mut self, agent: &AgentId, cgroup: &Path) -> Result<Admitted, EnforceError> {
        let name = WorkloadName {
            agent: agent.clone(),
            number: self.next_number,
        };
        let (workload, open) = Outside::examine(cgroup, name, &self.tree, &self.outside)?;
        self.next_number += 1;
        let admitted = Admitted {
            id: WorkloadId(workload.id),
            name: workload.name.clone(),
            in_hierarchy: workload.in_hierarchy.clone(),
            path: workload.path.clone(),
            cgroup: open
                .file
                .try_clone()
                .map_err(EnforceError::io("opening", &workload.path))?
                .into(),
        };
        // A crash after this leaves a record and no more than refusals: the next start puts the rest in force.
        workload.record(&self.pins)?;
        self.outside.push(workload.clone());
        let enforced = self
            .enforce(&workload, &open)
            .and_then(|()| self.kept.add(&self.object, &workload, &self.pins));
        if let Err(error) = enforced {
            self.give_back(&workload)?;
            return Err(error);
        }
        Ok(admitted)
    }

    /// Ends the governance of a workload elsewhere, once no process lives in it. Its cgroup is left as it is.
    ///
    /// While processes live in it nothing changes; [`set_disabled`](Self::set_disabled) is for those.
    pub fn release(&mut self, id: WorkloadId) -> Result<(), EnforceError> {
        let workload = self.outside.iter().find(|workload| workload.id == id.0);
        let workload = workload.ok_or(EnforceError::WorkloadUnknown(id))?.clone();
        if workload.populated()? == Some(true) {
            return Err(EnforceError::WorkloadAlive(id));
        }
        self.give_back(&workload)
    }

    /// Forgets the workloads elsewhere whose cgroup is there no more, and says which: also those that the start missed.
    ///
    /// Removing a cgroup takes its programs off without a word, and one that is made anew under the same name has none:
    /// whoever keeps it governed calls [`govern`](Self::govern) again.
    pub fn sweep(&mut self) -> Result<Vec<Gone>, EnforceError> {
        for workload in self.outside.clone() {
            if workload.open()?.is_none() {
                self.give_back(&workload)?;
                self.gone.push(workload.gone());
            }
        }
        Ok(std::mem::take(&mut self.gone))
    }

    fn enforce(&mut self, workload: &Outside, open: &Open) -> Result<(), EnforceError> {
        let id = workload.id;
        self.maps.set_workload(id, workload_flag::OUTSIDE)?;
        publish_levels(&self.outside, &mut self.maps)?;
        let pins = workload.pins(&self.pins);
        attach::attach_outside(&mut self.object, &workload.path, open, &pins)?;
        label::label_processes(&self.maps.tasks, id, &workload.path, 0)?;
        self.maps
            .set_workload(id, workload_flag::OUTSIDE | workload_flag::ADMITTED)
    }

    /// A crash in between leaves the record: the next start governs the cgroup again.
    fn give_back(&mut self, workload: &Outside) -> Result<(), EnforceError> {
        self.kept.forget(workload.id);
        workload.forget(&self.pins)?;
        self.outside.retain(|other| other.id != workload.id);
        self.maps.remove_workload(workload.id)?;
        publish_levels(&self.outside, &mut self.maps)
    }
}

/// The workloads elsewhere that an earlier daemon recorded, here or under another version: those that are there, and the others.
pub(super) fn find(
    tree: &Tree,
    pins: &Pins,
    earlier: Vec<Outside>,
) -> Result<(Vec<Outside>, Vec<Gone>), EnforceError> {
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    let recorded = outside::recorded(pins.version(), tree)?;
    for workload in &recorded {
        if workload.open()?.is_some() {
            there.push(workload.clone());
        } else {
            workload.forget(pins)?;
            gone.push(workload.gone());
        }
    }
    for workload in earlier {
        if recorded.iter().any(|known| known.id == workload.id) {
            continue;
        }
        if workload.open()?.is_some() {
            workload.record(pins)?;
            there.push(workload);
        } else {
            gone.push(workload.gone());
        }
    }
    Ok((there, gone))
}

/// Puts the sets of programs that an earlier daemon attached up to date, in place, and completes what it began.
pub(super) fn adopt(
    found: Vec<Outside>,
    object: &mut aya::Ebpf,
    maps: &mut Maps,
    pins: &Pins,
    gone: &mut Vec<Gone>,
) -> Result<Vec<Outside>, EnforceError> {
    for workload in &found {
        // Who was admitted or switched off stays so; the others are refused until their programs are complete.
        let flags = maps.workload(workload.id)?.map_or(0, |state| state.flags);
        maps.set_workload(workload.id, flags | workload_flag::OUTSIDE)?;
    }
    publish_levels(&found, maps)?;
    let mut adopted = Vec::new();
    for workload in found {
        let attached = match workload.open()? {
            Some(open) => {
                attach::attach_outside(object, &workload.path, &open, &workload.pins(pins))
            }
            None => Ok(()),
        };
        if workload.open()?.is_some() {
            attached?;
            adopted.push(workload);
        } else {
            // It went away meanwhile.
            workload.forget(pins)?;
            gone.push(workload.gone());
        }
    }
    Ok(adopted)
}

/// Tells the kernel side how deep to look; without workloads elsewhere it does not look at all.
fn publish_levels(workloads: &[Outside], maps: &mut Maps) -> Result<(), EnforceError> {
    let levels = workloads.iter().map(|workload| workload.level);
    let outside_levels = match (outside::pack(levels), workloads.last()) {
        (Some(levels), _) => levels,
        (None, None) => [0; MAX_OUTSIDE_LEVELS],
        (None, Some(last)) => {
            return Err(EnforceError::CgroupUnfit {
                path: last.path.clone(),
                why: Unfit::Levels,
            });
        }
    };
    let config = maps.config()?;
    if config.outside_levels == outside_levels {
        return Ok(());
    }
    maps.set_config(Config {
        outside_levels,
        ..config
    })
}
