//! One run of the suite: each case without Sluice, as a launched agent, and behind the kernel's wall alone.
//! The program `escape` is this; the wire is its judge.
//! Invariant: a governed attempt is made only after the same attempt was seen to leak.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::agent::{ALLOWED, BEGUN, OUTCOME};
use super::cases::REBOUND;
use super::order::Order;
use super::report::{Baseline, Governed, Refused, Row, Walls};
use super::stage::{Given, INBOUND, Server, Stage};
use super::wire::{self, Sign, Wire};
use super::{Case, Class, Needs, Trace, Who, all};
use crate::output;

/// The name of that refusal.
const TOO_OLD: &str = "kernel_too_old";
/// `sluice run` did not start the command.
const LAUNCHER_REFUSES: i32 = 125;
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after an attempt's end something may still come.
const SETTLE: Duration = Duration::from_millis(250);
/// Reports of groups are sent after a random while, of at most a second.
const SETTLE_GROUP: Duration = Duration::from_millis(1500);

/// What a run is told.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Only cases whose number or name contains this.
    pub filter: Option<String>,
}

/// What came of it.
pub enum Told {
    /// The daemon ran.
    Rows(Vec<Row>),
    /// The daemon refuses this kernel, even in reduced mode.
    Refused(Refused),
}

/// Runs every wanted case; `told` hears each row as it comes.
///
/// # Errors
/// If the suite itself cannot work: then nothing was shown.
pub fn run(wanted: &Wanted, mut told: impl FnMut(&Row)) -> Result<Told> {
    // Mounted on while it lives.
    let _resolver = private_mounts()?;
    let wire = Wire::make()?;
    let mut stage = Stage::set()?;
    let host = Host::look()?;
    if let Err(error) = stage.instance.start() {
        let words = error.to_string();
        // A refusal has a name; anything else is a broken suite.
        let Some(refusal) = words.lines().find(|line| line.contains(TOO_OLD)) else {
            return Err(error);
        };
        return Ok(Told::Refused(Refused {
            kernel: host.kernel,
            bpf_lsm: host.bpf_lsm,
            mode: "refused".to_owned(),
            refusal: refusal.trim().to_owned(),
        }));
    }
    let mut runner = Runner {
        wire,
        mode: mode(&stage),
        scene: Scene::set(stage)?,
        host,
    };
    runner.allowed_call_arrives()?;
    let mut rows = Vec::new();
    for (number, case) in (1_u8..).zip(all()) {
        if !wanted.takes(&case) {
            continue;
        }
        for row in runner.case(number, &case)? {
            told(&row);
            rows.push(row);
        }
    }
    Ok(Told::Rows(rows))
}

fn mode(stage: &Stage) -> &'static str {
    if stage.instance.is_reduced() {
        "reduced"
    } else {
        "full"
    }
}

/// A daemon that runs, an attacker in its workload, and one outside.
struct Scene {
    // Both end before the daemon.
    agent: Server,
    outsider: Server,
    cgroup: PathBuf,
    /// Layers that are not live, with what they leave open.
    layers: Vec<(String, String)>,
    stage: Stage,
}

impl Scene {
    fn set(stage: Stage) -> Result<Scene> {
        let (agent, cgroup) = stage.agent()?;
        Ok(Scene {
            agent,
            outsider: stage.outsider()?,
            cgroup,
            layers: layers(&stage)?,
            stage,
        })
    }
}

/// What `sluice doctor` says is not live, and what that leaves open.
fn layers(stage: &Stage) -> Result<Vec<(String, String)>> {
    let report = stage
        .instance
        .ask(&["doctor", "--format", "json"])?
        .json()?;
    let layers = report
        .pointer("/layers")
        .and_then(Value::as_array)
        .context("doctor names no layers")?;
    let word = |layer: &Value, key: &str| {
        layer
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let not_live = layers.iter().filter(|layer| word(layer, "state") != "live");
    Ok(not_live
        .filter_map(|layer| {
            let open = layer.get("leaves_open")?.as_array()?.first()?.as_str()?;
            Some((word(layer, "name"), open.to_owned()))
        })
        .collect())
}

impl Wanted {
    fn takes(&self, case: &Case) -> bool {
        self.filter.as_deref().is_none_or(|filter| {
            case.id.eq_ignore_ascii_case(filter)
                || case.name.contains(filter)
                || case.class.name().contains(filter)
        })
    }
}

/// The kernel that this runs on.
struct Host {
    kernel: String,
    bpf_lsm: bool,
}

impl Host {
    fn look() -> Result<Host> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        Ok(Host {
            kernel: kernel.trim().to_owned(),
            bpf_lsm: modules.trim().split(',').any(|module| module == "bpf"),
        })
    }
}

/// In which world an attempt is made.
#[derive(Clone, Copy, Eq, PartialEq)]
enum World {
    Ungoverned,
    Behind(Walls),
}

impl World {
    /// Its own net of documentation addresses.
    fn address(self, number: u8) -> (Ipv4Addr, Ipv6Addr) {
        let (net, salt) = match self {
            Self::Ungoverned => ([192, 0, 2], 1),
            Self::Behind(Walls::Both) => ([198, 51, 100], 2),
            Self::Behind(Walls::Kernel) => ([203, 0, 113], 3),
        };
        let [a, b, c] = net;
        (
            Ipv4Addr::new(a, b, c, number),
            Ipv6Addr::new(0x2001, 0xdb8, 0xe5c, salt, 0, 0, 0x51, u16::from(number)),
        )
    }
}

/// How an attempt ended: the frame that left, or how the attacker says it was stopped.
enum Ended {
    Left(Vec<u8>),
    Stayed(String),
}

struct Runner {
    wire: Wire,
    scene: Scene,
    host: Host,
    mode: &'static str,
}

impl Runner {
    /// The control of controls: an allowed call reaches the far end through the proxy, or "closed" would mean nothing.
    fn allowed_call_arrives(&mut self) -> Result<()> {
        let call = Case {
            id: ALLOWED,
            trace: Trace::Token,
            ..*all().first().context("no cases")?
        };
        match self.attempt(0, &call, World::Behind(Walls::Both))? {
            Ended::Left(_) => Ok(()),
            Ended::Stayed(said) => bail!(
                "an allowed call does not arrive, so nothing can be shown: {said}\n{}",
                self.scene.stage.instance.log_tail()
            ),
        }
    }

    fn case(&mut self, number: u8, case: &Case) -> Result<Vec<Row>> {
        let (kernel, bpf_lsm, mode) = (self.host.kernel.clone(), self.host.bpf_lsm, self.mode);
        let row = |walls, baseline, governed, detail, layer| Row {
            case: case.id.to_owned(),
            name: case.name.to_owned(),
            class: case.class.name().to_owned(),
            kernel: kernel.clone(),
            bpf_lsm,
            mode: mode.to_owned(),
            walls,
            baseline,
            governed,
            detail,
            layer,
        };
        let both = [Walls::Both, Walls::Kernel];
        let ungoverned = self.attempt(number, case, World::Ungoverned)?;
        if let Ended::Stayed(why) = ungoverned {
            let same = |walls| {
                let why = format!("without Sluice: {why}");
                row(
                    walls,
                    Baseline::NotApplicable,
                    Governed::NotApplicable,
                    why,
                    None,
                )
            };
            return Ok(both.map(same).to_vec());
        }
        let mut rows = Vec::new();
        for walls in both {
            let ended = self.attempt(number, case, World::Behind(walls));
            if walls == Walls::Kernel && self.is_unmade(case) {
                self.set_the_scene_anew()?;
            }
            let (governed, detail, layer) = match ended {
                Ok(ended) => judge(case, walls, ended, &self.scene.layers),
                Err(error) => (Governed::Broken, format!("{error:#}"), None),
            };
            rows.push(row(walls, Baseline::Leaks, governed, detail, layer));
        }
        Ok(rows)
    }

    /// Whether it has come to something: where bpf(2) is refused to workloads, what needs it has unmade nothing.
    fn is_unmade(&self, case: &Case) -> bool {
        case.unmakes
            && (case.layers.is_empty()
                || self
                    .scene
                    .layers
                    .iter()
                    .any(|(name, _)| case.layers.contains(&name.as_str())))
    }

    /// What unmakes walls is tried on a daemon that nothing else is tried on.
    fn set_the_scene_anew(&mut self) -> Result<()> {
        let mut stage = Stage::set()?;
        if self.scene.stage.instance.is_reduced() {
            stage.instance.reduce();
        }
        stage.instance.start()?;
        self.scene = Scene::set(stage)?;
        Ok(())
    }

    fn attempt(&mut self, number: u8, case: &Case, world: World) -> Result<Ended> {
        let order = self.order(number, case, world);
        let order = &order;
        let since = self.wire.mark();
        let (helper, order) = match case.needs {
            Needs::Helper(role) => {
                let mut theirs = order.clone();
                theirs.who = Some(order.who.unwrap_or(Who::Bare));
                theirs.cgroup = None;
                let (helper, place) = match self.scene.stage.helper(role, &theirs) {
                    Ok(found) => found,
                    Err(error) if world == World::Ungoverned => {
                        return Ok(Ended::Stayed(format!("{error:#}")));
                    }
                    Err(error) => return Err(error),
                };
                let mut order = order.clone();
                order.helper = place;
                (Some(helper), order)
            }
            Needs::Nothing | Needs::Stdin(_) => (None, order.clone()),
        };
        if case.class == Class::Inbound || case.needs == Needs::Stdin(Given::TcpListening) {
            self.dial_in(&order);
        }
        let said = match case.needs {
            Needs::Stdin(given) => self.attempt_with(given, &order, world)?,
            Needs::Nothing | Needs::Helper(_) => {
                let server = match world {
                    World::Behind(Walls::Both) => &mut self.scene.agent,
                    World::Ungoverned | World::Behind(Walls::Kernel) => &mut self.scene.outsider,
                };
                server.attempt(&order.words())?
            }
        };
        let settle = match (case.trace, case.needs) {
            (Trace::Group, _) => SETTLE_GROUP,
            // Somebody else sends, a moment later.
            (Trace::Rebound, _) | (_, Needs::Helper(_)) => SETTLE,
            _ if case.class == Class::Fronting => SETTLE,
            _ => Duration::ZERO,
        };
        let left = self.wire.wait(since, &signs(case, &order), settle)?;
        drop(helper);
        if case.class == Class::Namespaces {
            wire::tidy();
        }
        Ok(match left {
            Some(frame) => Ended::Left(frame),
            None => Ended::Stayed(said),
        })
    }

    /// A socket from outside is standard input from the start.
    fn attempt_with(&self, given: Given, order: &Order, world: World) -> Result<String> {
        let mut words = vec!["attempt".to_owned()];
        words.extend(order.words());
        let mut command = match world {
            World::Behind(Walls::Both) => self.scene.stage.launched(&words),
            World::Ungoverned | World::Behind(Walls::Kernel) => self.scene.stage.plain(&words),
        };
        match given.make(order) {
            Ok(socket) => run_with(&mut command, socket.into()),
            Err(error) => Ok(format!("outside: {error:#}")),
        }
    }

    fn order(&self, number: u8, case: &Case, world: World) -> Order {
        let (v4, v6) = world.address(number);
        let helper = match case.needs {
            // A path of its own in each world; the abstract name is the same text.
            Needs::Helper(_) => {
                let place = self.scene.stage.open.join(format!("{}-{v4}.sock", case.id));
                place.to_string_lossy().into_owned()
            }
            Needs::Nothing | Needs::Stdin(_) => "-".to_owned(),
        };
        Order {
            case: case.id.to_owned(),
            token: token(),
            v4,
            v6,
            who: (world != World::Behind(Walls::Both)).then_some(case.who),
            cgroup: (world == World::Behind(Walls::Kernel)).then(|| self.scene.cgroup.clone()),
            governed: world != World::Ungoverned,
            helper,
            device: wire::NEAR.to_owned(),
            hierarchy: self.scene.stage.hierarchy.clone(),
        }
    }

    /// Somebody beyond the wire connects to where the attempt listens, again and again for a while.
    fn dial_in(&self, order: &Order) {
        let from = order.v4;
        self.wire.at_far_end(move || {
            std::thread::spawn(move || super::far::dial(from, (wire::HOST4, INBOUND).into()));
        });
    }
}

fn judge(
    case: &Case,
    walls: Walls,
    ended: Ended,
    layers: &[(String, String)],
) -> (Governed, String, Option<String>) {
    let frame = match ended {
        Ended::Stayed(said) => return (Governed::Closed, said, None),
        Ended::Left(frame) => wire::describe(&frame),
    };
    let admitted = layers
        .iter()
        .find(|(name, _)| case.layers.contains(&name.as_str()));
    match (admitted, case.launcher) {
        (Some((name, open)), _) => (Governed::Open, frame, Some(format!("{name}: {open}"))),
        (None, Some(why)) if walls == Walls::Kernel => {
            (Governed::LauncherOnly, format!("{frame}; {why}"), None)
        }
        (None, _) => (Governed::Leak, frame, None),
    }
}

fn signs(case: &Case, order: &Order) -> Vec<Sign> {
    let token = Sign::Bytes(order.data().to_vec());
    match case.trace {
        Trace::Token => vec![token],
        Trace::Any => vec![
            token,
            Sign::Bytes(order.v4.octets().to_vec()),
            Sign::Bytes(order.v6.octets().to_vec()),
        ],
        Trace::Rebound => REBOUND
            .iter()
            .map(|(_, address)| match address.to_canonical() {
                IpAddr::V4(v4) => Sign::Dials(v4.octets().to_vec()),
                IpAddr::V6(v6) => Sign::Dials(v6.octets().to_vec()),
            })
            .chain([token])
            .collect(),
        Trace::Group => vec![
            Sign::Bytes(order.group4().octets().to_vec()),
            Sign::Bytes(order.group6().octets().to_vec()),
        ],
    }
}

/// Runs the attacker, and gives its own account.
fn run_with(command: &mut Command, stdin: Stdio) -> Result<String> {
    let output = output::run_at_most(command, stdin, PATIENCE)?;
    let lines = || output.stdout.lines();
    if lines().any(|line| line == BEGUN) {
        let account = lines().rev().find_map(|line| line.strip_prefix(OUTCOME));
        return Ok(account.map_or_else(
            || format!("ended with {}", output.status),
            |said| said.trim().to_owned(),
        ));
    }
    let last = output.stderr.lines().last().unwrap_or_default();
    if output.status.code() == Some(LAUNCHER_REFUSES) {
        return Ok(last.to_owned());
    }
    // What was never tried was not stopped either.
    bail!(
        "no attempt was made: {} {last}",
        lines().last().unwrap_or_default()
    )
}

/// Something that is on the wire only if this attempt put it there.
fn token() -> String {
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let plain: String = random
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(16)
        .collect();
    format!("slc{plain}")
}

/// What is mounted here from now on is seen by this process and its children only.
fn private_mounts() -> Result<tempfile::NamedTempFile> {
    #[expect(
        deprecated,
        reason = "its unsafe successor guards descriptor tables, which are not unshared here"
    )]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).context("a mount namespace")?;
    let flags =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    // The root of an initramfs is no mount point of its own on every kernel.
    let _on_an_initramfs = rustix::mount::mount_change(Path::new("/"), flags);
    // The host's resolver is beyond the wire.
    let resolver = tempfile::NamedTempFile::new()?;
    fs::write(resolver.path(), format!("nameserver {}\n", wire::FAR4))?;
    fs::set_permissions(resolver.path(), fs::Permissions::from_mode(0o644))?;
    let place = fs::canonicalize("/etc/resolv.conf").context("/etc/resolv.conf")?;
    rustix::mount::mount_bind(resolver.path(), &place).context("a resolv.conf of its own")?;
    Ok(resolver)
}
