//! What an enforcement does while it is in force: looks after itself, repairs, stands still, cuts, kills, panics.
//! Beside the path: the enforcer's watchdog and switches call it.
//! INVARIANT: nothing here widens what a workload may do; a repair that fails leaves what still holds.

use std::io;
use std::path::{Path, PathBuf};

use agent_abi::{Config, PANIC};
use policies::WorkloadId;

use super::cut::{self, Cut};
use super::watch::{Fault, Kept};
use super::{EnforceError, Enforcement, attach, cgroup, freeze, readmit};

/// What a repair changed beyond putting things back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The proxy's cgroup is another one: its listeners must be opened anew, in the new one.
    pub listeners_lost: bool,
}

impl Enforcement {
    /// What is not as this daemon put it. Costs about as much as a hundred system calls.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.kept.faults(&self.tree, &self.pins)
    }

    /// Puts everything back: cgroups, pins, links, programs, and what the kernel side knows of the workloads.
    pub fn repair(&mut self) -> Result<Repaired, EnforceError> {
        let proxy = self.kept.proxy();
        self.tree.restore()?;
        self.pins.restore()?;
        for workload in &self.outside {
            workload.record(&self.pins)?;
        }
        self.kept.pin_maps(&self.pins)?;
        self.kept.pin_links()?;
        attach::attach_all(&mut self.object, &self.tree, &self.pins)?;
        for workload in &self.outside {
            // One that is gone is for `sweep` to tell.
            if let Some(open) = workload.open()? {
                let pins = workload.pins(&self.pins);
                attach::attach_outside(&mut self.object, &workload.path, &open, &pins)?;
            }
        }
        self.tried = attach::try_all(&mut self.object, &self.tree, &self.pins);
        let config = self.maps.config()?;
        let agents = cgroup::id(self.tree.agents())?;
        if config.agents != agents {
            self.maps.set_config(Config { agents, ..config })?;
        }
        let next = readmit(&self.tree, &self.outside, &mut self.maps)?;
        self.next_number = next.max(self.next_number);
        let mut kept = Kept::of(&self.object, &self.tree, &self.pins, &self.tried)?;
        for workload in &self.outside {
            if workload.open()?.is_some() {
                kept.add(&self.object, workload, &self.pins)?;
            }
        }
        self.kept = kept;
        Ok(Repaired {
            listeners_lost: self.kept.proxy() != proxy,
        })
    }

    /// Makes every workload stand still that somebody else has not stopped already.
    pub fn freeze(&mut self) -> Result<(), EnforceError> {
        let mut places = self.places();
        places.retain(|place| !freeze::is_asked_to(place));
        self.frozen.extend(places.iter().cloned());
        each(&places, "freezing", freeze::freeze)
    }

    /// Lets every workload go on that [`freeze`](Self::freeze) stopped.
    pub fn thaw(&mut self) -> Result<(), EnforceError> {
        let mut places = std::mem::take(&mut self.frozen);
        places.retain(|place| place.exists());
        each(&places, "thawing", freeze::thaw)
    }

    /// Ends every process of every workload.
    pub fn kill_workloads(&self) -> Result<(), EnforceError> {
        each(&self.places(), "killing everything in", freeze::kill)
    }

    /// Ends every process of one workload whose cgroup lies elsewhere. They are gone a moment later.
    pub fn kill(&self, id: WorkloadId) -> Result<(), EnforceError> {
        let workload = self.outside.iter().find(|workload| workload.id == id.0);
        let path = &workload.ok_or(EnforceError::WorkloadUnknown(id))?.path;
        freeze::kill(path).map_err(EnforceError::io("killing everything in", path))
    }

    /// The cgroups under which every workload lies. One elsewhere that is gone is left out.
    fn places(&self) -> Vec<PathBuf> {
        let outside = self
            .outside
            .iter()
            .filter(|workload| !matches!(workload.open(), Ok(None)));
        std::iter::once(self.tree.agents())
            .chain(outside.map(|workload| workload.path.as_path()))
            .map(Path::to_owned)
            .collect()
    }

    /// Cuts the sockets of these workloads. One that is gone has none.
    pub fn cut(&self, ids: &[WorkloadId]) -> Result<Cut, EnforceError> {
        let found = self.workloads_found()?.into_iter();
        let paths: Vec<PathBuf> = found
            .filter(|found| ids.contains(&found.id))
            .map(|found| found.path)
            .collect();
        if paths.is_empty() {
            return Ok(Cut::default());
        }
        cut::cut(&paths).map_err(EnforceError::io(
            "cutting the sockets of workloads below",
            self.tree.agents(),
        ))
    }

    /// Cuts the sockets of every workload.
    pub fn cut_all(&self) -> Result<Cut, EnforceError> {
        cut::cut(&self.places()).map_err(EnforceError::io(
            "cutting the sockets of",
            self.tree.agents(),
        ))
    }

    /// Whether the kernel side is in a panic.
    pub fn is_panicked(&self) -> Result<bool, EnforceError> {
        Ok(self.maps.config()?.enabled == PANIC)
    }

    /// Denies everything until [`lift_panic`](Self::lift_panic), whatever is published meanwhile.
    pub fn panic(&mut self) -> Result<(), EnforceError> {
        let config = self.maps.config()?;
        self.maps.set_config(Config {
            enabled: PANIC,
            ..config
        })
    }

    /// Ends the panic. Everything stays denied until the ports are published again.
    pub fn lift_panic(&mut self) -> Result<(), EnforceError> {
        let config = self.maps.config()?;
        self.maps.set_config(Config {
            enabled: 0,
            ..config
        })
    }
}

/// Every place is done, whatever becomes of the others; the first error is told.
fn each(
    places: &[PathBuf],
    what: &'static str,
    act: fn(&Path) -> io::Result<()>,
) -> Result<(), EnforceError> {
    let done: Vec<_> = places
        .iter()
        .map(|place| act(place).map_err(EnforceError::io(what, place)))
        .collect();
    done.into_iter().collect()
}
