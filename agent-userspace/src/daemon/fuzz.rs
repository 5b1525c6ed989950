//! Whatever comes over a channel is one of its messages with its own descriptors, or an error; never a panic, never a leak.
//! Run with more cases and other seeds by `cargo xtask fuzz`; a failing input is kept beside this file.
//! INVARIANT: what is accepted says exactly what its bytes said: sent on, it is the same message.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test panics")]

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;

use super::channel::{Channel, ChannelError};
use super::listeners;
use super::protocol::{
    FromListener, FromRun, FromWorker, Listening, MAX_MESSAGE, Message, ToListener, ToRun, ToWorker,
};

/// A message of each kind that there is; mutations start from these.
const MESSAGES: [&str; 32] = [
    r#"{"to_worker":"start","listeners":{"tcp":1,"dns_tcp":1,"dns_udp":1,"proxy_port":1,"resolver_port":2}}"#,
    r#"{"to_worker":"admit","ticket":1,"workload":{"id":7,"agent":"acme/a","pid":null,"exe":null,"cgroup":"/x","way":"run"},"recorded":["agent_disabled"]}"#,
    r#"{"to_worker":"layers","layers":[{"name":"lsm","state":"absent","leaves_open":["x"]}]}"#,
    r#"{"to_worker":"kernel_refused","workload":7,"kind":"datagram","destination":"[::1]:53"}"#,
    r#"{"to_worker":"kernel_refusals","counts":[["datagram",18446744073709551615]]}"#,
    r#"{"to_worker":"listen","id":7,"listening":{"tcp":1,"dns_tcp":0,"dns_udp":1,"proxy_port":1,"resolver_port":2}}"#,
    r#"{"to_worker":"reload","ticket":2}"#,
    r#"{"to_worker":"started","id":7,"pid":1,"exe":"/bin/x"}"#,
    r#"{"to_worker":"retire","id":7}"#,
    r#"{"to_worker":"stop"}"#,
    r#"{"from_worker":"cannot_start","detail":"x"}"#,
    r#"{"from_worker":"admitted","ticket":1,"refused":{"reason":"agent_unknown","detail":"x"}}"#,
    r#"{"from_worker":"admitted","ticket":1,"refused":null}"#,
    r#"{"from_worker":"reloaded","ticket":1,"bundle":null,"detail":"x"}"#,
    r#"{"from_worker":"set_disabled","ticket":1,"agent":"acme/a","disabled":true}"#,
    r#"{"to_worker":"switched","ticket":1,"switched":{"workloads":1,"sockets":2,"uncut":0,"failed":["x"]}}"#,
    r#"{"to_worker":"happened","event":{"happening":"refused","agent":"acme/a","refusal":{"reason":"cgroup_unfit","detail":"x"},"times":1}}"#,
    r#"{"to_enforcer":"run","agent":"acme/a","argv0":"x","cwd":"/","isolate":false}"#,
    r#"{"to_enforcer":"attach","agent":"acme/a","cgroup":{"shown":"/x"},"pid":7}"#,
    r#"{"to_enforcer":"adopt","agent":"acme/a","what":{"tree":{"pid":7,"started":1}}}"#,
    r#"{"to_enforcer":"adopt","agent":"acme/a","what":{"cgroup":{"directory":"/x"}}}"#,
    r#"{"to_enforcer":"detach","cgroup":{"directory":"/x"},"kill":false}"#,
    r#"{"to_enforcer":"started","pid":1}"#,
    r#"{"to_run":"refused","refusal":{"reason":"cgroup_unfit","detail":"x"}}"#,
    r#"{"from_listener":"failed","detail":"x"}"#,
    r#"{"from_listener":"listening","listening":{"tcp":1,"dns_tcp":0,"dns_udp":0,"proxy_port":1,"resolver_port":2},"cgroup":"/x"}"#,
    r#"{"netns":"host","proxy_port":0,"resolver_port":0}"#,
    r#"{"from_worker":"ready","bundle":{"version":"x","literals":["10.0.0.1"],"disabled":["acme/a"],"processes":[["acme/a","/a/b-*"]]}}"#,
    r#"{"to_enforcer":"panic"}"#,
    r#"{"to_run":"done"}"#,
    "{}",
    "",
];

/// What a packet of this channel is taken for: a message, and what it says when it is sent on.
fn heard<T: Message + Serialize>(
    packet: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<Option<(String, usize)>, ChannelError> {
    let (ours, theirs) = Channel::pair().unwrap();
    send_raw(&ours, packet, fds);
    drop(ours);
    let Some((message, fds)) = theirs.receive::<T>()? else {
        return Ok(None);
    };
    assert!(message.descriptors().contains(&fds.len()));
    Ok(Some((serde_json::to_string(&message).unwrap(), fds.len())))
}

fn send_raw(channel: &Channel, packet: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); 4096];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let slices = [std::io::IoSlice::new(packet)];
    rustix::net::sendmsg(channel, &slices, &mut control, SendFlags::empty()).unwrap();
}

/// On every channel: no panic, and what is accepted is stable.
fn check(packet: &[u8], fds: &[BorrowedFd<'_>]) {
    fn on<T: Message + Serialize>(packet: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let Ok(Some((text, count))) = heard::<T>(packet, fds) else {
            return false;
        };
        let again = heard::<T>(text.as_bytes(), &fds[..count]).unwrap();
        assert_eq!(again, Some((text, count)));
        true
    }
    let accepted = [
        on::<ToWorker>(packet, fds),
        on::<FromWorker>(packet, fds),
        on::<FromRun>(packet, fds),
        on::<ToRun>(packet, fds),
        on::<FromListener>(packet, fds),
        on::<ToListener>(packet, fds),
    ];
    let channels = accepted.iter().filter(|accepted| **accepted).count();
    assert!(channels <= 1, "a message of two channels: {packet:?}");
}

/// One change of a packet.
#[derive(Clone, Debug)]
enum Change {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, usize),
    Splice(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    let tokens = prop::sample::select(vec![
        "null",
        "-1",
        "1e999",
        "[[[[",
        "{\"",
        "\\u0000",
        "\u{fffd}",
        "18446744073709551616",
        ",\"x\":1",
        "\"",
    ]);
    let bytes = prop_oneof![
        tokens.prop_map(|token| token.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..8),
    ];
    prop_oneof![
        index().prop_map(Change::Cut),
        (index(), any::<u8>()).prop_map(|(at, byte)| Change::Flip(at, byte)),
        (index(), bytes).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (index(), 1..5000_usize).prop_map(|(at, times)| Change::Repeat(at, times)),
        (index(), index()).prop_map(|(at, other)| Change::Splice(at, other)),
    ]
}

fn changed(packet: &mut Vec<u8>, change: Change) {
    if packet.is_empty() {
        return;
    }
    match change {
        Change::Cut(at) => packet.truncate(at.index(packet.len())),
        Change::Flip(at, byte) => *at.get_mut(packet) ^= byte,
        Change::Insert(at, bytes) => {
            let at = at.index(packet.len());
            packet.splice(at..at, bytes);
        }
        Change::Repeat(at, times) => {
            let at = at.index(packet.len());
            let byte = packet[at];
            packet.splice(at..at, std::iter::repeat_n(byte, times));
        }
        Change::Splice(at, other) => {
            let other = other.get(&MESSAGES).as_bytes();
            let at = at.index(packet.len());
            packet.truncate(at);
            packet.extend_from_slice(other.get(at..).unwrap_or_default());
        }
    }
    packet.truncate(MAX_MESSAGE + 1);
}

/// Descriptors of the kinds that a process can have.
fn descriptor(kind: u8) -> OwnedFd {
    match kind % 7 {
        0 => File::open("/dev/null").unwrap().into(),
        1 => std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
        2 => std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        3 => std::os::unix::net::UnixDatagram::unbound().unwrap().into(),
        4 => rustix::pipe::pipe().unwrap().0,
        5 => tempfile::tempfile().unwrap().into(),
        _ => File::open("/proc/self").unwrap().into(),
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

proptest! {
    #[test]
    fn fuzz_messages(
        start in prop::sample::select(MESSAGES.to_vec()),
        changes in prop::collection::vec(change(), 0..4),
    ) {
        let mut packet = start.as_bytes().to_vec();
        for change in changes {
            changed(&mut packet, change);
        }
        check(&packet, &[]);
    }

    #[test]
    fn fuzz_bytes(packet in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&packet, &[]);
    }

    #[test]
    fn fuzz_descriptors(
        start in prop::sample::select(MESSAGES.to_vec()),
        kinds in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let fds: Vec<OwnedFd> = kinds.iter().map(|kind| descriptor(*kind)).collect();
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        let before = open_descriptors();
        check(start.as_bytes(), &borrowed);
        // Only this thread's: what another test of the process opened meanwhile is not ours.
        if std::env::var_os("NEXTEST").is_some() {
            prop_assert_eq!(open_descriptors(), before, "a refused descriptor is closed");
        }
    }

    #[test]
    fn fuzz_listeners(
        kinds in prop::collection::vec(any::<u8>(), 0..8),
        tcp in 0..4_usize,
        dns_tcp in 0..4_usize,
    ) {
        let dns_udp = kinds.len().saturating_sub(tcp + dns_tcp);
        let listening = Listening { tcp, dns_tcp, dns_udp, proxy_port: 1, resolver_port: 2 };
        let fds: Vec<OwnedFd> = kinds.iter().map(|kind| descriptor(*kind)).collect();
        let wanted = |at: usize| if at < tcp + dns_tcp { 1 } else { 2 };
        let right = kinds.len() == listening.sockets()
            && kinds.iter().enumerate().all(|(at, kind)| kind % 7 == wanted(at));
        prop_assert_eq!(listeners::sort(listening, fds).is_ok(), right);
    }
}

/// The starting points are what they are meant to be: most are messages, and mutations reach both sides of the border.
#[test]
fn the_messages_that_mutations_start_from_are_messages() {
    let file = tempfile::tempfile().unwrap();
    for text in MESSAGES.iter().take(24) {
        let accepted = (0..8).any(|count| {
            let fds = vec![file.as_fd(); count];
            let packet = text.as_bytes();
            heard::<ToWorker>(packet, &fds).is_ok_and(|heard| heard.is_some())
                || heard::<FromWorker>(packet, &fds).is_ok_and(|heard| heard.is_some())
                || heard::<FromRun>(packet, &fds).is_ok_and(|heard| heard.is_some())
                || heard::<ToRun>(packet, &fds).is_ok_and(|heard| heard.is_some())
                || heard::<FromListener>(packet, &fds).is_ok_and(|heard| heard.is_some())
                || heard::<ToListener>(packet, &fds).is_ok_and(|heard| heard.is_some())
        });
        assert!(accepted, "{text}");
    }
}
