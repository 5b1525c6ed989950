//! The policy resolver: a table of questions and answers.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

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
    assert_eq!(ask(message).await.unwrap().answers.len(), 0);
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
