//! Where upstream is, followed over time: what a name server says, for as long as it says so, and never to a private address.
//! The name server is a small one of our own on loopback.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{RData, Record, RecordType};
use mitm_proxy::meter::AddressKind;
use support::{HOST, Plan, World};
use tokio::net::UdpSocket;

/// What the server says of every name: an address or none, and for how many seconds.
type Says = (Option<Ipv4Addr>, u32);

struct NameServer {
    at: SocketAddr,
    says: Arc<Mutex<Says>>,
    /// Questions for IPv4 addresses so far.
    asked: Arc<Mutex<u32>>,
}

impl NameServer {
    async fn start(says: Says) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            at: socket.local_addr().unwrap(),
            says: Arc::new(Mutex::new(says)),
            asked: Arc::default(),
        };
        let (says, asked) = (this.says.clone(), this.asked.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let query = question.queries[0].clone();
                let mut answer = Message::response(question.metadata.id, OpCode::Query);
                let (address, ttl) = *says.lock().unwrap();
                let name = query.name().clone();
                match address {
                    Some(address) if query.query_type() == RecordType::A => {
                        *asked.lock().unwrap() += 1;
                        let data = RData::A(A(address));
                        answer.add_answer(Record::from_rdata(name, ttl, data));
                    }
                    Some(_) => {}
                    None => {
                        if query.query_type() == RecordType::A {
                            *asked.lock().unwrap() += 1;
                        }
                        answer.metadata.response_code = ResponseCode::NXDomain;
                        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, ttl);
                        answer.add_authority(Record::from_rdata(name, ttl, RData::SOA(soa)));
                    }
                }
                answer.add_query(query);
                socket
                    .send_to(&answer.to_vec().unwrap(), from)
                    .await
                    .unwrap();
            }
        });
        this
    }

    fn now_says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn asked(&self) -> u32 {
        *self.asked.lock().unwrap()
    }

    /// A world that asks this server, and has no fixed address.
    async fn world(&self) -> World {
        let world = World::planned(Plan {
            redirect_upstream: false,
            ..Plan::default()
        })
        .await;
        let mut settings = mitm_proxy::Settings::default();
        settings.nameservers.push(self.at);
        settings.limits.connect = Duration::from_millis(300);
        world.proxy.replace_settings(settings).unwrap();
        world
    }
}

async fn reason(world: &World) -> String {
    world
        .http1(HOST)
        .await
        .call("GET", "/v1/charges", "")
        .await
        .reason()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_exist_is_not_asked_for_again_at_once() {
    let server = NameServer::start((None, 2)).await;
    let world = server.world().await;
    for _ in 0..3 {
        assert_eq!(reason(&world).await, "upstream_unreachable");
    }
    assert_eq!(server.asked(), 1);
    server.now_says((Some(Ipv4Addr::LOCALHOST), 1));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    // By then it does, but leads to where no name may.
    assert_eq!(reason(&world).await, "upstream_address");
    assert_eq!(server.asked(), 2);
    assert_eq!(
        *world.counts.addresses.lock().unwrap(),
        [AddressKind::Loopback]
    );
}
