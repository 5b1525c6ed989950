//! The smuggling corpus: numbered cases as bytes, sent by a client that has no manners through the real proxy to an upstream that
//! only writes down bytes. The judge: upstream has seen nothing, by any reader's habits, that no recorded intent stands for.
//! Each family has cases that are served, so that a refusal is not the only thing this can see.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::time::Duration;

use audit::{Kind, Query, Record};
use policies::{Digest, Reason};
use support::raw::{Habit, RawUpstream, Read, read};
use support::{HOST, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What must become of a case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Expected {
    /// This many calls are made and answered.
    Served(usize),
    /// Refused by this name before a decision; upstream sees nothing.
    Refused(Reason),
    /// Decided by its head; the body breaks off and upstream sees no whole request.
    Cut,
    /// The HTTP/2 layer ends the stream or the connection; upstream sees nothing.
    Reset,
}

#[derive(Debug)]
struct Case {
    number: u32,
    title: String,
    expected: Expected,
    lines: Vec<String>,
}

fn cases(text: &str) -> Vec<Case> {
    let mut all: Vec<Case> = Vec::new();
    for line in text.lines().skip(2) {
        let Some(head) = line.strip_prefix("= ") else {
            all.last_mut().unwrap().lines.push(line.to_owned());
            continue;
        };
        let (head, title) = head.split_once(": ").unwrap();
        let words: Vec<&str> = head.split(' ').collect();
        let expected = match words[1..] {
            ["served", count] => Expected::Served(count.parse().unwrap()),
            ["refused", reason] => Expected::Refused(reason.parse().unwrap()),
            ["cut"] => Expected::Cut,
            ["reset"] => Expected::Reset,
            _ => panic!("{line}"),
        };
        all.push(Case {
            number: words[0].parse().unwrap(),
            title: title.to_owned(),
            expected,
            lines: Vec::new(),
        });
    }
    all
}

/// `\r \n \t \\ \xNN`, and `<<a*9000>>` for nine thousand times a.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(repeat) = rest.strip_prefix("<<") {
            let (repeat, after) = repeat.split_once(">>").unwrap();
            let (what, times) = repeat.split_once('*').unwrap();
            out.extend(what.repeat(times.parse().unwrap()).bytes());
            rest = after;
            continue;
        }
        if first != '\\' {
            out.extend(first.to_string().bytes());
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (byte, length) = match &rest[1..2] {
            "r" => (b'\r', 2),
            "n" => (b'\n', 2),
            "t" => (b'\t', 2),
            "\\" => (b'\\', 2),
            "x" => (u8::from_str_radix(&rest[2..4], 16).unwrap(), 4),
            other => panic!("\\{other}"),
        };
        out.push(byte);
        rest = &rest[length..];
    }
    out
}

/// The frames of an HTTP/2 case, each head on a stream of its own; returns how many streams there are.
fn frames(lines: &[String]) -> (Vec<u8>, usize) {
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let (mut stream, mut at) = (0_u32, 0);
    while at < lines.len() {
        let directive = lines[at].strip_prefix("> ").unwrap();
        let fields = lines[at + 1..]
            .iter()
            .take_while(|line| !line.starts_with("> "));
        let block: Vec<u8> = fields.clone().flat_map(|field| hpack(field)).collect();
        at += 1 + fields.count();
        let (kind, flags, payload) = match directive.split_once(' ').unwrap_or((directive, "")) {
            ("headers", end) => {
                stream = if stream == 0 { 1 } else { stream + 2 };
                let end = if end == "end" { END_STREAM } else { 0 };
                (1, END_HEADERS | end, block)
            }
            ("trailers", _) => (1, END_HEADERS | END_STREAM, block),
            ("data", rest) => match rest.strip_prefix("end") {
                Some(text) => (0, END_STREAM, bytes(text.trim_start())),
                None => (0, 0, bytes(rest)),
            },
            _ => panic!("{directive}"),
        };
        out.extend(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
        out.extend([kind, flags]);
        out.extend(stream.max(1).to_be_bytes());
        out.extend(payload);
    }
    (out, usize::try_from(stream.div_ceil(2)).unwrap())
}

/// A field as a literal without indexing, without Huffman (RFC 7541 section 6.2.2).
fn hpack(line: &str) -> Vec<u8> {
    let at = 1 + line[1..].find(": ").map_or(line.len() - 1, |at| at);
    let (name, value) = match line.strip_prefix(": ") {
        Some(value) => ("", value),
        None => (&line[..at], line.get(at + 2..).unwrap_or_default()),
    };
    let mut out = vec![0];
    for text in [bytes(name), bytes(value)] {
        assert!(text.len() < 127, "{line}");
        out.push(u8::try_from(text.len()).unwrap());
        out.extend(text);
    }
    out
}

struct Stage {
    world: World,
    upstream: RawUpstream,
}

/// What a case left behind.
struct Traces {
    intents: Vec<Record>,
    outcomes: Vec<Record>,
    seen: Vec<Read>,
    refused: Vec<Reason>,
}

impl Stage {
    async fn start() -> Self {
        let world = World::start().await;
        let upstream = RawUpstream::start(&[HOST]).await;
        let mut settings = mitm_proxy::Settings::default();
        settings.connect_to.insert(
            format!("{HOST}:443").parse().unwrap(),
            upstream.address.to_string(),
        );
        let root = rustls_pki_types::CertificateDer::from(upstream.root.clone());
        settings.extra_roots.push(root);
        world.proxy.replace_settings(settings).unwrap();
        Self { world, upstream }
    }

    async fn traces(&self, since: usize, seen: usize, refused: usize) -> Traces {
        let ledger = self.world.ledger.clone();
        let query = Query {
            tenant: Some("acme".parse().unwrap()),
            from: Some(since.try_into().unwrap()),
            limit: 1000,
            ..Query::default()
        };
        let entries = tokio::task::spawn_blocking(move || ledger.list(&query))
            .await
            .unwrap()
            .unwrap();
        let of = |kind| {
            let all = entries.iter().map(audit::Entry::record).cloned();
            all.filter(|record: &Record| record.kind == kind)
                .collect::<Vec<_>>()
        };
        Traces {
            intents: of(Kind::Intent),
            outcomes: of(Kind::Outcome),
            seen: self.upstream.seen()[seen..].to_vec(),
            refused: self.world.counts.refused.lock().unwrap()[refused..].to_vec(),
        }
    }

    /// One case: sends it, in one piece or the head before the rest, waits until what it set off is over, and judges.
    async fn check(&self, case: &Case, in_two: bool) -> Result<(), String> {
        let what = format!("case {:03} ({}, in two: {in_two})", case.number, case.title);
        let h2 = case.lines[0].starts_with("> ");
        let since = self.records().await;
        let seen = self.upstream.seen().len();
        let refused = self.world.counts.refused.lock().unwrap().len();
        let said = if h2 {
            let (frames, streams) = frames(&case.lines);
            let ends: Vec<usize> = (1..case.lines.len())
                .filter(|at| in_two && case.lines[*at].starts_with("> "))
                .map(|at| self::frames(&case.lines[..at]).0.len())
                .collect();
            let first = ends.first().copied().unwrap_or(frames.len());
            self.speak(b"h2", frames.split_at(first), &|said| {
                h2_over(said, streams)
            })
            .await
        } else {
            let bytes = bytes(&case.lines.concat());
            let answers = match case.expected {
                Expected::Served(count) => count,
                _ => 1,
            };
            let over = |said: &[u8]| read_answers(said).len() >= answers;
            let head = bytes.windows(4).position(|window| window == b"\r\n\r\n");
            let first = head.map_or(bytes.len(), |at| at + 4);
            let first = if in_two { first } else { bytes.len() };
            self.speak(b"http/1.1", bytes.split_at(first), &over).await
        };
        let mut traces = self.traces(since, seen, refused).await;
        for _ in 0..300 {
            let over = traces.intents.len() == traces.outcomes.len()
                && match case.expected {
                    Expected::Served(count) => traces.intents.len() == count,
                    Expected::Refused(_) => !traces.refused.is_empty(),
                    Expected::Cut => !traces.intents.is_empty() || !traces.refused.is_empty(),
                    Expected::Reset => true,
                };
            if over {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            traces = self.traces(since, seen, refused).await;
        }
        judge(case.expected, &traces, &said, h2).map_err(|why| format!("{what}: {why}"))
    }

    async fn records(&self) -> usize {
        let ledger = self.world.ledger.clone();
        let query = Query {
            tenant: Some("acme".parse().unwrap()),
            limit: 1,
            ..Query::default()
        };
        let last = tokio::task::spawn_blocking(move || ledger.list(&query))
            .await
            .unwrap()
            .unwrap();
        last.last().map_or(0, |entry| {
            usize::try_from(entry.record().index).unwrap() + 1
        })
    }

    /// Writes, and reads until the peer closes, or `over` holds and nothing more comes.
    async fn speak(
        &self,
        alpn: &[u8],
        (first, rest): (&[u8], &[u8]),
        over: &dyn Fn(&[u8]) -> bool,
    ) -> Vec<u8> {
        let stream = self.world.dial(HOST, 443).await;
        let mut stream = self.world.shake(stream, HOST, alpn).await;
        // The peer may close while we still write; what it said is read all the same.
        let _ = stream.write_all(first).await;
        if !rest.is_empty() {
            tokio::time::sleep(Duration::from_millis(60)).await;
            let _ = stream.write_all(rest).await;
        }
        let mut said = Vec::new();
        for _ in 0..60 {
            let mut part = [0; 4096];
            let read = stream.read(&mut part);
            match tokio::time::timeout(Duration::from_millis(50), read).await {
                Ok(Ok(length @ 1..)) => said.extend_from_slice(&part[..length]),
                Ok(_) => break,
                Err(_) if over(&said) => break,
                Err(_) => {}
            }
        }
        said
    }
}

fn judge(expected: Expected, traces: &Traces, said: &[u8], h2: bool) -> Result<(), String> {
    let Traces {
        intents,
        outcomes,
        seen,
        refused,
    } = traces;
    // The one that must hold whatever was expected: no request without an intent that stands for it.
    for request in seen {
        let stands = intents.iter().any(|intent| {
            let digest = outcomes
                .iter()
                .find(|outcome| outcome.intent == Some(intent.index))
                .and_then(salted);
            intent.method.as_deref() == Some(&request.method)
                && intent.path.as_deref() == request.path.split('?').next()
                && intent.host.as_deref() == Some(&request.host)
                && request.body.as_ref().is_none_or(|body| {
                    digest.is_some_and(|(salt, digest)| {
                        digest == Digest::of(&[&salt[..], &body[..]].concat())
                    })
                })
        });
        if !stands {
            return Err(format!("upstream saw {request:?}, not decided"));
        }
    }
    let answered = outcomes
        .iter()
        .filter(|outcome| format!("{:?}", outcome.outcome) == "Some(Answered)")
        .count();
    let ok = if h2 {
        h2_heads(said).into_iter().filter(|ok| *ok).count()
    } else {
        read_answers(said).iter().filter(|it| **it == 200).count()
    };
    let whole = seen.iter().filter(|it| it.body.is_some()).count();
    let as_expected = seen.len() <= intents.len()
        && match expected {
            Expected::Served(count) => {
                (answered, ok, whole) == (count, count, count) && refused.is_empty()
            }
            Expected::Refused(reason) => (intents.len(), ok) == (0, 0) && *refused == [reason],
            Expected::Cut => (answered, ok, whole) == (0, 0, 0) && intents.len() <= 1,
            Expected::Reset => (intents.len(), ok) == (0, 0),
        };
    if as_expected {
        return Ok(());
    }
    let outcomes: Vec<_> = outcomes.iter().map(|it| (&it.outcome, it.reason)).collect();
    Err(format!(
        "{expected:?}, but {} intents, outcomes {outcomes:?}, refused {refused:?}, upstream saw {seen:?}, the agent {ok} good answers: {}",
        intents.len(),
        String::from_utf8_lossy(said)
    ))
}

fn salted(outcome: &Record) -> Option<([u8; 16], Digest)> {
    let salt = u128::from_str_radix(outcome.salt.as_deref()?, 16).ok()?;
    Some((salt.to_be_bytes(), outcome.request_digest?))
}

/// The statuses in a stream of HTTP/1 answers; our bodies never hold the word that is looked for.
fn read_answers(said: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(said);
    text.match_indices("HTTP/1.")
        .filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok())
        .collect()
}

/// Kind, flags, stream and payload of each frame.
fn h2_frames(mut said: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while said.len() >= 9 {
        let length = usize::try_from(u32::from_be_bytes([0, said[0], said[1], said[2]])).unwrap();
        let stream = u32::from_be_bytes([said[5], said[6], said[7], said[8]]);
        let Some(payload) = said.get(9..9 + length) else {
            break;
        };
        all.push((said[3], said[4], stream, payload.to_vec()));
        said = &said[9 + length..];
    }
    all
}

/// For each answer, whether it begins with `:status: 200`, index 8 of the static table.
fn h2_heads(said: &[u8]) -> Vec<bool> {
    let heads = h2_frames(said).into_iter().filter(|(kind, ..)| *kind == 1);
    heads
        .map(|(.., block)| {
            let first = block.iter().find(|byte| !(0x20..0x40).contains(*byte));
            first == Some(&0x88)
        })
        .collect()
}

/// Every stream has ended, or the connection has.
fn h2_over(said: &[u8], streams: usize) -> bool {
    let frames = h2_frames(said);
    let ended = frames.iter().filter(|(kind, flags, ..)| match kind {
        0 | 1 => flags & 1 != 0,
        3 => true,
        _ => false,
    });
    ended.count() >= streams.max(1) || frames.iter().any(|(kind, ..)| *kind == 7)
}

fn data(file: &str) -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/smuggling");
    std::fs::read_to_string(format!("{directory}/{file}.txt")).unwrap()
}

async fn family(file: &str) {
    let stage = Stage::start().await;
    let all = cases(&data(file));
    assert!(
        all.iter()
            .any(|case| matches!(case.expected, Expected::Served(1..))),
        "a family without a case that is served shows nothing"
    );
    let mut wrong = Vec::new();
    for case in &all {
        wrong.extend(stage.check(case, false).await.err());
        if case.expected == Expected::Cut {
            wrong.extend(stage.check(case, true).await.err());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    stage.upstream.is_unambiguous();
}

macro_rules! families {
    ($($name:ident: $file:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            family($file).await;
        })*

        #[test]
        fn there_are_at_least_150_cases_and_each_has_a_number_of_its_own() {
            let texts = [$(data($file)),*];
            let numbers: Vec<u32> = texts.iter().flat_map(|text| cases(text)).map(|case| case.number).collect();
            assert_eq!(numbers, (1..=u32::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
            assert!(numbers.len() >= 150, "{}", numbers.len());
        }
    };
}

families! {
    a_length_beside_chunked_is_never_guessed_at: "01-length-and-chunked";
    a_length_is_one_plain_number: "02-content-length";
    a_transfer_encoding_is_chunked_or_refused: "03-transfer-encoding";
    a_chunk_that_is_not_plain_breaks_the_call_off: "04-chunks";
    lines_and_names_have_one_reading: "05-lines";
    every_place_that_names_a_host_names_the_connections: "06-targets";
    a_path_has_one_spelling: "07-paths";
    a_request_hides_in_no_other: "08-hidden";
    http2_fields_become_no_other_request: "h2";
}

/// The detector sees a leak: what CL.TE smuggles where a front passes both headers on is two requests to one reader and one to another.
#[test]
fn the_judge_sees_a_smuggled_request() {
    let leak = b"POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 53\r\nTransfer-Encoding: chunked\r\n\r\n\
                 0\r\n\r\nGET /v1/refunds HTTP/1.1\r\nHost: api.pay.test\r\n\r\n";
    let strict = read(leak, Habit::Strict);
    assert_eq!(strict.len(), 2);
    assert_eq!(strict[1].path, "/v1/refunds");
    assert_ne!(read(leak, Habit::LengthFirst), strict);
    let hidden = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n";
    assert_ne!(
        read(hidden, Habit::LooseChunked),
        read(hidden, Habit::Strict)
    );
    let lf = b"GET / HTTP/1.1\r\nHost: a\r\nX: b\n\nGET /2 HTTP/1.1\r\n\r\n";
    assert_ne!(read(lf, Habit::BareLf), read(lf, Habit::Strict));
}
