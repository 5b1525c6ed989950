//! The policy resolver: a table of questions and answers.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use policies::{Reason, WorkloadId};
use support::{HOST, OTHER_WORKLOAD, Plan, WORKLOAD, World, is_synthetic};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_names_have_addresses() {
    let world = World::start().await;
    use RecordType as T;
    use ResponseCode as C;
    let table = [
        ("api.pay.test.", T::A, C::NoError, 1, None),
        ("api.pay.test.", T::AAAA, C::NoError, 1, None),
        ("API.Pay.Test.", T::A, C::NoError, 1, None),
        // The wildcard of the connection.
        ("files.pay.test.", T::A, C::NoError, 1, None),
        (
            "evil.example.",
            T::A,
            C::Refused,
            0,
            Some(Reason::NameNotAllowed),
        ),
        (
            "evil.example.",
            T::AAAA,
            C::Refused,
            0,
            Some(Reason::NameNotAllowed),
        ),
        (
            "c2VjcmV0.evil.example.",
            T::A,
            C::Refused,
            0,
            Some(Reason::NameNotAllowed),
        ),
        (
            "localhost.",
            T::A,
            C::Refused,
            0,
            Some(Reason::NameNotAllowed),
        ),
        (
            "127.0.0.1.",
            T::A,
            C::Refused,
            0,
            Some(Reason::NameNotAllowed),
        ),
        (".", T::A, C::Refused, 0, Some(Reason::NameNotAllowed)),
        (
            "1.0.18.198.in-addr.arpa.",
            T::PTR,
            C::Refused,
            0,
            Some(Reason::NameNotAllowed),
        ),
        (
            "api.pay.test.",
            T::TXT,
            C::Refused,
            0,
            Some(Reason::QueryTypeRefused),
        ),
        (
            "api.pay.test.",
            T::HTTPS,
            C::Refused,
            0,
            Some(Reason::QueryTypeRefused),
        ),
        (
            "api.pay.test.",
            T::SVCB,
            C::Refused,
            0,
            Some(Reason::QueryTypeRefused),
        ),
        (
            "api.pay.test.",
            T::ANY,
            C::Refused,
            0,
            Some(Reason::QueryTypeRefused),
        ),
        (
            "api.pay.test.",
            T::MX,
            C::Refused,
            0,
            Some(Reason::QueryTypeRefused),
        ),
        // A search list at work: the client must go on to the name as given.
        ("api.pay.test.corp.lan.", T::A, C::NXDomain, 0, None),
    ];
    for (name, kind, code, answers, reason) in table {
        let before = world.counts.refused.lock().unwrap().len();
        let answer = world.query_as(WORKLOAD, name, kind).await;
        assert_eq!(
            (answer.metadata.response_code, answer.answers.len()),
            (code, answers),
            "{name} {kind}"
        );
        assert_eq!(answer.metadata.id, 77);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        for record in &answer.answers {
            let address = match &record.data {
                RData::A(address) => address.0.into(),
                RData::AAAA(address) => address.0.into(),
                other => panic!("{other:?}"),
            };
            assert!(is_synthetic(address), "{address}");
            assert!(record.ttl <= 60);
        }
        let refused = world.counts.refused.lock().unwrap()[before..].to_vec();
        assert_eq!(
            refused,
            reason.into_iter().collect::<Vec<_>>(),
            "{name} {kind}"
        );
    }
    let log = world.refusals().await;
    assert!(
        log.contains(&Reason::NameNotAllowed) && log.contains(&Reason::QueryTypeRefused),
        "{log:?}"
    );
    assert!(world.counts.names.lock().unwrap().contains(&true));
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_stable_distinct_and_per_name() {
    let world = World::start().await;
    let api = world.address_of(HOST).await;
    let files = world.address_of("files.pay.test").await;
    assert_ne!(api, files);
    assert_eq!(world.address_of(HOST).await, api);
    let world = world.restart(Plan::default()).await;
    assert_eq!(
        world.address_of("files.pay.test").await,
        files,
        "the same after a restart, in any order"
    );
    assert_eq!(world.address_of(HOST).await, api);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_unknown_learns_nothing() {
    let world = World::start().await;
    let answer = world
        .query_as(WorkloadId(99), "api.pay.test.", RecordType::A)
        .await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert!(answer.answers.is_empty());
    // Positive control: the name exists for those who may know it.
    let answer = world
        .query_as(OTHER_WORKLOAD, "api.pay.test.", RecordType::A)
        .await;
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_messages_are_answered_sensibly() {
    let world = World::start().await;
    let question = || Query::query(Name::from_ascii("api.pay.test.").unwrap(), RecordType::A);
    let ask = async |message: Message| {
        let answer = world
            .datagram(Some(WORKLOAD), &message.to_vec().unwrap())
            .await;
        answer.map(|bytes| Message::from_vec(&bytes).unwrap())
    };
    // EDNS is tolerated, unknown versions of it are not.
    let mut message = Message::query();
    message.add_query(question());
    message.set_edns(Edns::new());
    let answer = ask(message.clone()).await.unwrap();
    assert_eq!(
        (answer.metadata.response_code, answer.answers.len()),
        (ResponseCode::NoError, 1)
    );
    assert!(answer.edns.is_some());
    let mut newer = Edns::new();
    newer.set_version(3);
    message.set_edns(newer);
    let refused = ask(message).await.unwrap();
    // BADVERS; the number has two names.
    assert_eq!(u16::from(refused.metadata.response_code), 16);
    let edns = refused.edns.as_ref().unwrap();
    assert_eq!((edns.version(), refused.answers.len()), (0, 0));
    // Two questions, none, another operation, another class.
    let mut two = Message::query();
    two.add_query(question()).add_query(question());
    assert_eq!(
        ask(two).await.unwrap().metadata.response_code,
        ResponseCode::FormErr
    );
    assert_eq!(
        ask(Message::query()).await.unwrap().metadata.response_code,
        ResponseCode::FormErr
    );
    let mut update = Message::query();
    update.metadata.op_code = OpCode::Update;
    update.add_query(question());
    assert_eq!(
        ask(update).await.unwrap().metadata.response_code,
        ResponseCode::NotImp
    );
    let mut chaos = Message::query();
    let mut query = question();
    query.set_query_class(hickory_proto::rr::DNSClass::CH);
    chaos.add_query(query);
    assert_eq!(
        ask(chaos).await.unwrap().metadata.response_code,
        ResponseCode::Refused
    );
    // Garbage: FORMERR where there is an id, silence where there is less, or where it is an answer.
    let garbage = world
        .datagram(Some(WORKLOAD), &[0x12, 0x34, 0x01, 0x00, 0, 9, 1, 2, 3])
        .await
        .unwrap();
    assert_eq!((&garbage[..2], garbage[3] & 0x0f), (&[0x12, 0x34][..], 1));
    assert_eq!(world.datagram(Some(WORKLOAD), &[7]).await, None);
    let reply = Message::response(9, OpCode::Query).to_vec().unwrap();
    assert_eq!(world.datagram(Some(WORKLOAD), &reply).await, None);
    // None of them passed uncounted.
    let counted = world.counts.refused.lock().unwrap().clone();
    let malformed = counted
        .iter()
        .filter(|reason| **reason == Reason::MalformedRequest);
    assert_eq!(malformed.count(), 7, "{counted:?}");
    assert!(world.refusals().await.contains(&Reason::MalformedRequest));
}

#[tokio::test(flavor = "multi_thread")]
async fn edns_follows_rfc_6891() {
    let world = World::start().await;
    let plain = question("api.pay.test.", RecordType::A);
    let answer = world.datagram(Some(WORKLOAD), &plain).await.unwrap();
    // Who did not use EDNS gets none (section 6.1.1).
    assert_eq!(&answer[10..12], &[0, 0]);
    let with = |options: &[&[u8]]| {
        let mut query = plain.clone();
        query[11] = u8::try_from(options.len()).unwrap();
        for option in options {
            query.extend_from_slice(option);
        }
        query
    };
    // Version 0, a tiny payload size, DO set, and an option of an unknown code.
    let odd: &[u8] = &[0, 0, 41, 0, 12, 0, 0, 0x80, 0, 0, 6, 0xff, 0xf0, 0, 2, 1, 2];
    let answer = world.datagram(Some(WORKLOAD), &with(&[odd])).await.unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.answers.len(), 1);
    let edns = answer.edns.unwrap();
    assert!(edns.max_payload() >= 512 && edns.version() == 0);
    assert_eq!(
        edns.options().as_ref().len(),
        0,
        "unknown options are not echoed"
    );
    // Two OPT records (section 6.1.1).
    let answer = world
        .datagram(Some(WORKLOAD), &with(&[odd, odd]))
        .await
        .unwrap();
    assert_eq!(answer[3] & 0x0f, 1, "FORMERR");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_answered_in_the_letters_it_was_asked_in() {
    let world = World::start().await;
    let plain = question("api.pay.test.", RecordType::A);
    let mixed = question("aPI.pAy.TeSt.", RecordType::A);
    assert_ne!(plain, mixed);
    let answer = world.datagram(Some(WORKLOAD), &mixed).await.unwrap();
    assert_eq!(
        answer[12..mixed.len()],
        mixed[12..],
        "0x20: the question, byte for byte"
    );
    let lower = world.datagram(Some(WORKLOAD), &plain).await.unwrap();
    assert_eq!(lower[lower.len() - 4..], answer[answer.len() - 4..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_asks_too_fast_is_refused_by_name_and_no_other_is() {
    let world = World::planned(Plan {
        tune: |settings| {
            settings.limits.questions = 1;
            settings.limits.questions_burst = 5;
        },
        ..Plan::default()
    })
    .await;
    let mut codes = Vec::new();
    for _ in 0..20 {
        let answer = world
            .query_as(WORKLOAD, "api.pay.test.", RecordType::A)
            .await;
        codes.push(answer.metadata.response_code);
    }
    assert_eq!(codes[..5], [ResponseCode::NoError; 5]);
    let refused = codes.iter().filter(|code| **code == ResponseCode::Refused);
    assert!(refused.count() >= 10, "{codes:?}");
    let other = world
        .query_as(OTHER_WORKLOAD, "api.pay.test.", RecordType::A)
        .await;
    assert_eq!(other.answers.len(), 1);
    let counted = world.counts.refused.lock().unwrap().clone();
    assert!(counted.contains(&Reason::NameRateLimited));
    assert!(world.refusals().await.contains(&Reason::NameRateLimited));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_an_address_left_is_refused_by_name_until_one_is_free() {
    let world = World::planned(Plan {
        tune: |settings| {
            settings.limits.names_per_agent = 2;
            settings.limits.names_kept = Duration::from_millis(1500);
        },
        ..Plan::default()
    })
    .await;
    let ask = async |name: &str| {
        let answer = world.query_as(WORKLOAD, name, RecordType::A).await;
        answer.metadata.response_code
    };
    assert_eq!(ask("one.pay.test.").await, ResponseCode::NoError);
    assert_eq!(ask("two.pay.test.").await, ResponseCode::NoError);
    assert_eq!(ask("three.pay.test.").await, ResponseCode::Refused);
    assert_eq!(world.refusals().await, [Reason::NamesExhausted]);
    // What the connection spells out needs none of the agent's share.
    assert_eq!(ask("api.pay.test.").await, ResponseCode::NoError);
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert_eq!(ask("three.pay.test.").await, ResponseCode::NoError);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_keeps_the_address_of_its_name() {
    let world = World::planned(Plan {
        hold: Duration::from_millis(50),
        tune: |settings| {
            settings.limits.names_per_agent = 1;
            settings.limits.names_kept = Duration::from_millis(1);
        },
        ..Plan::default()
    })
    .await;
    let ask = async |name: &str| {
        let answer = world.query_as(WORKLOAD, name, RecordType::A).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        answer.metadata.response_code
    };
    // Positive control: without a held call, the second name gets the first one's place.
    assert_eq!(ask("one.pay.test.").await, ResponseCode::NoError);
    assert_eq!(ask("two.pay.test.").await, ResponseCode::NoError);
    let mut client = world.http1("two.pay.test").await;
    let answer = client
        .call_to("two.pay.test", "POST", "/v1/refunds", "amount=12000")
        .await;
    assert_eq!(answer.reason(), "approval_required");
    drop(client);
    assert_eq!(ask("three.pay.test.").await, ResponseCode::Refused);
    world
        .answer(&world.pending().await, policies::Verdict::Deny)
        .await;
    assert_eq!(ask("three.pay.test.").await, ResponseCode::NoError);
}

#[tokio::test(flavor = "multi_thread")]
async fn arbitrary_bytes_are_answered_or_dropped_and_the_resolver_goes_on() {
    let world = World::planned(Plan {
        tune: |settings| settings.limits.questions_burst = u32::MAX,
        ..Plan::default()
    })
    .await;
    let good = question("api.pay.test.", RecordType::A);
    let socket = world.datagram_socket(WORKLOAD).await;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..=next() % 4 {
            let at = usize::try_from(next()).unwrap_or(0) % bytes.len();
            bytes[at] = u8::try_from(next() & 0xff).unwrap();
        }
        match round % 4 {
            0 => bytes.truncate(usize::try_from(next()).unwrap_or(0) % bytes.len()),
            1 => bytes.extend((0..next() % 64).map(|byte| u8::try_from(byte).unwrap())),
            _ => {}
        }
        socket.send_to(&bytes, world.dns_udp).await.unwrap();
        if round % 16 == 0 {
            // Not faster than the socket's buffer.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let answer = world
        .query_as(WORKLOAD, "api.pay.test.", RecordType::A)
        .await;
    assert_eq!(answer.answers.len(), 1);
    assert!(
        world
            .counts
            .refused
            .lock()
            .unwrap()
            .contains(&Reason::MalformedRequest)
    );
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_answered_over_tcp_too() {
    let world = World::start().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let origin = mitm_proxy::Origin {
        workload: WORKLOAD,
        destination: "192.0.2.53:53".parse().unwrap(),
    };
    world
        .table
        .0
        .lock()
        .unwrap()
        .insert(socket.local_addr().unwrap().port(), origin);
    let mut stream = socket.connect(world.dns_tcp).await.unwrap();
    for (name, answers) in [
        ("api.pay.test.", 1),
        ("evil.example.", 0),
        ("api.pay.test.", 1),
    ] {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let bytes = message.to_vec().unwrap();
        stream
            .write_u16(u16::try_from(bytes.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(
            Message::from_vec(&answer).unwrap().answers.len(),
            answers,
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_over_tcp_are_framed_bounded_and_not_waited_for_without_end() {
    let world = World::planned(Plan {
        tune: |settings| settings.limits.questions_idle = Duration::from_millis(300),
        ..Plan::default()
    })
    .await;
    let framed = |name: &str| {
        let question = question(name, RecordType::AAAA);
        let length = u16::try_from(question.len()).unwrap();
        [&length.to_be_bytes()[..], &question].concat()
    };
    // Several questions in one segment, then one in many (RFC 7766, section 8).
    let mut stream = world.dial_dns(WORKLOAD).await.unwrap();
    let three = framed("api.pay.test.").repeat(3);
    stream.write_all(&three).await.unwrap();
    for byte in framed("api.pay.test.") {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    for _ in 0..4 {
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    }
    // Half a question, and none at all.
    stream.write_all(&three[..5]).await.unwrap();
    let mut silent = world.dial_dns(WORKLOAD).await.unwrap();
    for stream in [&mut stream, &mut silent] {
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await;
        assert!(ended.expect("closed when idle").is_err());
    }
    // A message of no length.
    let mut empty = world.dial_dns(WORKLOAD).await.unwrap();
    empty.write_all(&[0, 0]).await.unwrap();
    assert!(empty.read_u8().await.is_err());
    assert!(
        world
            .counts
            .refused
            .lock()
            .unwrap()
            .contains(&Reason::MalformedRequest)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agents_tcp_connections_leave_room_for_the_others() {
    let world = World::start().await;
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(world.dial_dns(WORKLOAD).await.unwrap());
    }
    let question = question("api.pay.test.", RecordType::A);
    let ask = async |stream: &mut tokio::net::TcpStream| {
        stream
            .write_u16(u16::try_from(question.len()).unwrap())
            .await
            .ok()?;
        stream.write_all(&question).await.ok()?;
        stream.read_u16().await.ok()
    };
    let mut answered = 0;
    for stream in &mut open {
        answered += usize::from(ask(stream).await.is_some());
    }
    assert_eq!(answered, 32);
    assert!(
        world
            .counts
            .refused
            .lock()
            .unwrap()
            .contains(&Reason::Overloaded)
    );
    let mut other = world.dial_dns(OTHER_WORKLOAD).await.unwrap();
    assert!(ask(&mut other).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_names_is_counted_whole_and_recorded_in_part() {
    let world = World::start().await;
    for number in 0..40 {
        world
            .query_as(WORKLOAD, &format!("x{number}.evil.example."), RecordType::A)
            .await;
    }
    assert_eq!(world.counts.refused.lock().unwrap().len(), 40);
    let recorded = world.refusals().await.len();
    assert!((1..40).contains(&recorded), "{recorded}");
}
