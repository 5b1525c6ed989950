//! The escape suite: each way around Sluice that is known, tried with and without it, and judged by what reaches the wire.
//! `cargo xtask escape` runs it here, `cargo xtask escape --vm` on Debian's kernels; the attempts are made by a program of their own.
//! Invariant: a case whose leak is not seen without Sluice says nothing: it is not applicable, never closed.

pub mod agent;
mod cases;
mod dns;
mod far;
mod helper;
mod order;
pub mod report;
mod stage;
pub mod suite;
mod sys;
mod wire;

pub use cases::all;
pub use order::{Order, Stop};

/// What the way out goes through; the table is grouped by it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Class {
    /// TCP in all its forms.
    Tcp,
    /// UDP in all its forms.
    Udp,
    /// IP protocols other than TCP and UDP.
    Protocols,
    /// Families other than IPv4 and IPv6.
    Families,
    /// Socket calls that no socket call makes.
    IoUring,
    /// Options and headers that choose another way for a packet.
    Ways,
    /// Reports that the kernel sends for a socket.
    Groups,
    /// Connections from outside.
    Inbound,
    /// Sockets that were made by somebody else.
    Foreign,
    /// Other processes' memory and descriptors.
    Processes,
    /// Leaving the cgroup.
    Cgroups,
    /// Other namespaces and devices of one's own.
    Namespaces,
    /// Others who act for whoever asks.
    Deputies,
    /// Sluice's own ports.
    Proxy,
    /// Questions that carry data.
    Names,
    /// Names that are not what they seem.
    Fronting,
    /// The programs and maps themselves.
    Programs,
}

impl Class {
    /// The word of the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Protocols => "protocols",
            Self::Families => "families",
            Self::IoUring => "io_uring",
            Self::Ways => "ways",
            Self::Groups => "groups",
            Self::Inbound => "inbound",
            Self::Foreign => "foreign sockets",
            Self::Processes => "processes",
            Self::Cgroups => "cgroups",
            Self::Namespaces => "namespaces",
            Self::Deputies => "deputies",
            Self::Proxy => "proxy",
            Self::Names => "names",
            Self::Fronting => "fronting",
            Self::Programs => "programs",
        }
    }
}

/// The least that an attacker must be for the attempt to make sense.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Who {
    /// Any user.
    User,
    /// uid 0 without a capability, as the launcher leaves it.
    Bare,
    /// uid 0 with the capabilities that container runtimes leave.
    Container,
    /// uid 0 with every capability.
    Root,
}

impl Who {
    /// The word of the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Bare => "bare",
            Self::Container => "container",
            Self::Root => "root",
        }
    }

    fn parse(word: &str) -> Option<Who> {
        [Self::User, Self::Bare, Self::Container, Self::Root]
            .into_iter()
            .find(|who| who.name() == word)
    }
}

/// What must be there before the attempt, outside of every workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// Another process, of the attacker's own user.
    Helper(helper::Role),
    /// A socket that somebody outside made, as standard input.
    Stdin(stage::Given),
}

/// What on the wire is a leak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trace {
    /// A frame with the token, or one that goes to the attempt's own address.
    Any,
    /// A frame with the token; the address itself may be seen (somebody outside speaks to it).
    Token,
    /// A frame that names the attempt's multicast group.
    Group,
    /// A frame to where a name of the suite's leads.
    Rebound,
}

/// One way around Sluice.
#[derive(Clone, Copy)]
pub struct Case {
    /// Stable: `E01`.
    pub id: &'static str,
    /// For people.
    pub name: &'static str,
    /// Its group.
    pub class: Class,
    /// Who can try it.
    pub who: Who,
    /// What it needs.
    pub needs: Needs,
    /// How a leak shows.
    pub trace: Trace,
    /// Run inside the attacker.
    pub attempt: fn(&Order) -> Result<(), Stop>,
    /// Layers of `sluice doctor`; while one of them is not live, this may be open.
    pub layers: &'static [&'static str],
    /// Why a task that was not started by the launcher gets through: the wall is the launcher's alone.
    pub launcher: Option<&'static str>,
    /// What it does to Sluice itself would spoil the cases after it.
    pub unmakes: bool,
}

impl Case {
    /// A case that needs nothing and that no layer leaves open.
    const fn new(
        id: &'static str,
        name: &'static str,
        class: Class,
        who: Who,
        attempt: fn(&Order) -> Result<(), Stop>,
    ) -> Case {
        Case {
            id,
            name,
            class,
            who,
            needs: Needs::Nothing,
            trace: Trace::Any,
            attempt,
            layers: &[],
            launcher: None,
            unmakes: false,
        }
    }

    const fn with(self, role: helper::Role) -> Case {
        Case {
            needs: Needs::Helper(role),
            ..self
        }
    }

    const fn given(self, given: stage::Given) -> Case {
        Case {
            needs: Needs::Stdin(given),
            ..self
        }
    }

    const fn seen_by(self, trace: Trace) -> Case {
        Case { trace, ..self }
    }

    const fn open_without(self, layers: &'static [&'static str]) -> Case {
        Case { layers, ..self }
    }

    const fn unmaking(self) -> Case {
        Case {
            unmakes: true,
            ..self
        }
    }

    const fn launcher_closes(self, why: &'static str) -> Case {
        Case {
            launcher: Some(why),
            ..self
        }
    }
}
