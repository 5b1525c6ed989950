//! Tests of the reader of WebSocket frames: every cut of the bytes gives the same frames.
//! Part of `frames`; no network and no files.
//! INVARIANT: the frames that leave are the frames that came, but for masked secrets.

use super::*;

fn run(frames: &mut Frames, parts: &[&[u8]]) -> (Vec<u8>, Option<End>) {
    let mut out = BytesMut::new();
    for part in parts {
        if let Err(end) = frames.pass(part, &mut out) {
            return (out.to_vec(), Some(end));
        }
    }
    (out.to_vec(), None)
}

/// A server's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(u8::try_from(length).unwrap()),
        length => {
            bytes.push(126);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn frames_pass_as_they_came_however_they_are_cut() {
    let bytes = [
        frame(0x81, b"hello"),
        frame(0x01, b"in "),
        frame(0x89, b"ping"),
        frame(0x80, b"two"),
        frame(0x82, &[7; 300]),
        frame(0x82, b""),
        frame(0x88, b"\x03\xe8bye"),
    ]
    .concat();
    for at in 0..bytes.len() {
        let mut frames = Frames::new(Side::Upstream, false, 100, None);
        let (one, two) = bytes.split_at(at);
        assert_eq!(run(&mut frames, &[one, two]), (bytes.clone(), None), "{at}");
        assert_eq!(frames.frames(), Some(7));
        assert!(!frames.between(), "nothing may follow a closing frame");
    }
}

#[test]
fn what_two_readers_could_take_differently_ends_the_connection() {
    let masked = [0x81, 0x81, 1, 2, 3, 4, 0];
    let long = [&[0x82, 127][..], &[0x80, 0, 0, 0, 0, 0, 0, 0]].concat();
    for (name, bytes) in [
        ("masked by a server", masked.to_vec()),
        ("reserved bit", frame(0xc1, b"x")),
        ("unknown kind", frame(0x83, b"x")),
        ("continues nothing", frame(0x80, b"x")),
        (
            "a message in a message",
            [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
        ),
        ("a control frame in parts", frame(0x09, b"x")),
        ("a long control frame", frame(0x89, &[0; 126])),
        ("a long length", vec![0x82, 126, 0, 5]),
        ("a negative length", long),
    ] {
        let mut frames = Frames::new(Side::Upstream, false, 100, None);
        let (_, end) = run(&mut frames, &[&bytes]);
        assert!(matches!(end, Some(End::Broken(_))), "{name}: {end:?}");
    }
    let mut agent = Frames::new(Side::Agent, false, 100, None);
    assert!(matches!(
        run(&mut agent, &[&frame(0x81, b"x")]).1,
        Some(End::Broken(_))
    ));
    assert_eq!(
        run(&mut Frames::new(Side::Agent, false, 1, None), &[&masked]).1,
        None
    );
    let mut extended = Frames::new(Side::Upstream, true, 1, None);
    assert_eq!(run(&mut extended, &[&frame(0xc1, b"x")]).1, None);
}

#[test]
fn what_follows_a_closing_frame_goes_no_further_and_breaks_nothing() {
    let end = frame(0x88, b"\x03\xe8");
    for more in [frame(0x88, b"\x03\xe8"), frame(0x89, b""), vec![0xff; 30]] {
        let mut frames = Frames::new(Side::Upstream, false, 100, None);
        let bytes = [end.clone(), more.clone()].concat();
        assert_eq!(
            run(&mut frames, &[&bytes, &more]),
            (end.clone(), None),
            "{more:?}"
        );
        assert_eq!(frames.frames(), Some(1));
    }
}

#[test]
fn frames_are_bounded_before_one_too_many_leaves() {
    let mut frames = Frames::new(Side::Upstream, false, 2, None);
    let one = frame(0x81, b"x");
    let (out, end) = run(&mut frames, &[&one, &one, &one]);
    assert_eq!(out, [one.clone(), one].concat());
    assert!(matches!(end, Some(End::Limit(_))));
}

proptest::proptest! {
    /// Whatever arrives, in whatever pieces: no panic, and the pieces change nothing.
    #[test]
    fn fuzz_frames(
        bytes in proptest::collection::vec(proptest::sample::select(vec![0_u8, 1, 2, 5, 0x80, 0x81, 0x82, 0x85, 0x88, 0x89, 0xfe, 126, 127, 200]), 0..60),
        cut in 0_usize..60,
    ) {
        let (one, two) = bytes.split_at(cut.min(bytes.len()));
        let whole = run(&mut Frames::new(Side::Agent, false, 9, None), &[&bytes]);
        let parts = run(&mut Frames::new(Side::Agent, false, 9, None), &[one, two]);
        proptest::prop_assert_eq!(&whole, &parts);
        proptest::prop_assert!(bytes.starts_with(&whole.0));
    }
}
