//! Questions to the host's name servers, asked by ourselves: only on the wire does an answer say for how long it holds.
//! Place on the path: below `real`, which checks each address before it is dialled.
//! INVARIANT: an answer counts only from the server that was asked, with the id and the question that were sent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use policies::Host;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server has to answer before the next one is asked.
const PATIENCE: Duration = Duration::from_millis(1500);
/// What we say we can receive; more comes over TCP.
const EDNS_SIZE: u16 = 1232;
/// Aliases that are followed inside one answer.
const ALIASES: usize = 16;
/// A "no" that does not say how long it holds (RFC 2308 section 5: without SOA it is not kept; we spare the server a burst).
const UNSAID: u32 = 1;

/// What the wire says of a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Where it is, and for how many seconds that holds.
    Found(Vec<IpAddr>, u32),
    /// It has no address, and for how many seconds that holds.
    None(u32),
}

/// The servers of `resolv.conf`, in its order; none where there is no such file or it names none.
pub(crate) fn servers(resolv_conf: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver");
        let address: IpAddr = address.and(words.next())?.parse().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(server).collect()
}

/// Whether a hosts file names the host: then that is what the operator means, whatever name servers say.
pub(crate) fn is_in_hosts(hosts: &Path, host: &Host) -> bool {
    let text = std::fs::read_to_string(hosts).unwrap_or_default();
    let names = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        let mut names = line.split_ascii_whitespace().skip(1);
        names.any(|name| {
            name.trim_end_matches('.')
                .eq_ignore_ascii_case(host.as_str())
        })
    };
    text.lines().any(names)
}

/// Asks for both families at once, one server after the other until one knows.
///
/// # Errors
/// No server gave an answer that counts: none was reached, or none could say.
pub(crate) async fn ask(servers: &[SocketAddr], host: &Host) -> io::Result<Answer> {
    let name = Name::from_ascii(format!("{host}."))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "no name server is known");
    for server in servers {
        let both = async {
            tokio::try_join!(
                question(*server, &name, RecordType::AAAA),
                question(*server, &name, RecordType::A)
            )
        };
        failed = match timeout(PATIENCE, both).await {
            Ok(Ok((v6, v4))) => return Ok(together(v6, v4)),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{server} did not answer in time"),
            ),
        };
    }
    Err(failed)
}

/// What holds of both answers holds for as long as the shorter one says. A "no" of one family does not shorten the other's yes:
/// it would only be asked again.
fn together(v6: Answer, v4: Answer) -> Answer {
    match (v6, v4) {
        (Answer::Found(mut all, one), Answer::Found(more, other)) => {
            all.extend(more);
            Answer::Found(all, one.min(other))
        }
        (Answer::Found(all, ttl), Answer::None(_)) | (Answer::None(_), Answer::Found(all, ttl)) => {
            Answer::Found(all, ttl)
        }
        (Answer::None(one), Answer::None(other)) => Answer::None(one.min(other)),
    }
}

async fn question(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Answer> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_SIZE);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let answer = over_udp(server, &bytes, &message).await?;
    let answer = if answer.metadata.truncation {
        over_tcp(server, &bytes, &message).await?
    } else {
        answer
    };
    read(&answer, name, kind)
}

/// The first datagram that is the answer; whatever else arrives is not.
async fn over_udp(server: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket, and with it a random port, for each question; connected, so that the kernel drops what others send.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0_u8; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let arrived = buffer.get(..length).unwrap_or_default();
        if let Some(answer) = answer_to(asked, arrived) {
            return Ok(answer);
        }
    }
}

/// RFC 7766: a length before each message.
async fn over_tcp(server: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await?;
    let mut arrived = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut arrived).await?;
    answer_to(asked, &arrived)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer to what was asked"))
}

fn answer_to(asked: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.metadata.op_code == OpCode::Query
        && answer.queries == asked.queries;
    same.then_some(answer)
}

/// The addresses of the name, or of what it is an alias of; a record of anything else in the message is not looked at.
fn read(answer: &Message, name: &Name, kind: RecordType) -> io::Result<Answer> {
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Err(io::Error::other(format!("the name server says {code}"))),
    }
    let (mut name, mut ttl) = (name.clone(), u32::MAX);
    for _ in 0..ALIASES {
        let mut addresses = Vec::new();
        let mut alias = None;
        let of_name = |record: &&hickory_proto::rr::Record| {
            record.name == name && record.dns_class == DNSClass::IN
        };
        for record in answer.answers.iter().filter(of_name) {
            match &record.data {
                RData::A(address) if kind == RecordType::A => addresses.push(address.0.into()),
                RData::AAAA(address) if kind == RecordType::AAAA => {
                    addresses.push(address.0.into());
                }
                RData::CNAME(target) => alias = Some(target.0.clone()),
                _ => continue,
            }
            ttl = ttl.min(record.ttl);
        }
        if !addresses.is_empty() {
            return Ok(Answer::Found(addresses, ttl));
        }
        let Some(target) = alias else {
            break;
        };
        name = target;
    }
    // RFC 2308 section 5: the lesser of the SOA's own TTL and its minimum.
    let soa = answer
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        });
    Ok(Answer::None(soa.unwrap_or(UNSAID).min(ttl)))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA};
    use tokio::net::TcpListener;

    use super::*;

    type Script = fn(&Message, bool) -> Vec<Message>;

    /// A name server on loopback, over UDP and TCP; what it says to a question (and whether that came over TCP) is the script's.
    struct Server {
        at: SocketAddr,
        asked: Arc<Mutex<Vec<(RecordType, bool)>>>,
    }

    impl Server {
        async fn start(script: Script) -> Self {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = tcp.local_addr().unwrap();
            let udp = UdpSocket::bind(at).await.unwrap();
            let asked: Arc<Mutex<Vec<_>>> = Arc::default();
            let (one, other) = (asked.clone(), asked.clone());
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                    let question = Message::from_vec(&buffer[..length]).unwrap();
                    one.lock()
                        .unwrap()
                        .push((question.queries[0].query_type(), false));
                    for answer in script(&question, false) {
                        udp.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                    }
                }
            });
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = tcp.accept().await {
                    let length = stream.read_u16().await.unwrap();
                    let mut bytes = vec![0; usize::from(length)];
                    stream.read_exact(&mut bytes).await.unwrap();
                    let question = Message::from_vec(&bytes).unwrap();
                    other
                        .lock()
                        .unwrap()
                        .push((question.queries[0].query_type(), true));
                    for answer in script(&question, true) {
                        let bytes = answer.to_vec().unwrap();
                        let length = u16::try_from(bytes.len()).unwrap();
                        stream.write_u16(length).await.unwrap();
                        stream.write_all(&bytes).await.unwrap();
                    }
                }
            });
            Self { at, asked }
        }

        async fn ask(&self) -> io::Result<Answer> {
            ask(&[self.at], &"api.pay.test".parse().unwrap()).await
        }
    }

    fn answer(question: &Message, records: &[(&str, u32, RData)]) -> Message {
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.add_query(question.queries[0].clone());
        for (name, ttl, data) in records {
            let record = Record::from_rdata(Name::from_ascii(name).unwrap(), *ttl, data.clone());
            match data {
                RData::SOA(_) => answer.add_authority(record),
                _ => answer.add_answer(record),
            };
        }
        answer
    }

    fn v4(text: &str) -> RData {
        RData::A(A(text.parse().unwrap()))
    }

    fn v6(text: &str) -> RData {
        RData::AAAA(AAAA(text.parse().unwrap()))
    }

    fn alias(text: &str) -> RData {
        RData::CNAME(CNAME(Name::from_ascii(text).unwrap()))
    }

    fn soa(minimum: u32) -> RData {
        let name = Name::from_ascii("pay.test.").unwrap();
        RData::SOA(SOA::new(name.clone(), name, 1, 1, 1, 1, minimum))
    }

    fn found(addresses: &[&str], ttl: u32) -> Answer {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        Answer::Found(addresses.collect(), ttl)
    }

    #[tokio::test]
    async fn both_families_are_asked_for_and_the_least_ttl_of_an_alias_chain_counts() {
        let server = Server::start(|question, _| {
            let address = match question.queries[0].query_type() {
                RecordType::A => ("b.cdn.test.", 60, v4("1.1.1.1")),
                _ => ("b.cdn.test.", 50, v6("2606:4700::1111")),
            };
            vec![answer(
                question,
                &[
                    address,
                    ("API.pay.test.", 300, alias("a.cdn.test.")),
                    ("a.cdn.test.", 40, alias("b.cdn.test.")),
                    // Not what was asked about.
                    ("other.test.", 1, v4("9.9.9.9")),
                ],
            )]
        })
        .await;
        let expected = found(&["2606:4700::1111", "1.1.1.1"], 40);
        assert_eq!(server.ask().await.unwrap(), expected);
        assert_eq!(server.asked.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn one_family_is_enough_and_a_loop_of_aliases_ends() {
        let server = Server::start(|question, _| {
            vec![match question.queries[0].query_type() {
                RecordType::A => answer(question, &[("api.pay.test.", 7, v4("1.1.1.1"))]),
                _ => answer(
                    question,
                    &[
                        ("api.pay.test.", 1, alias("a.test.")),
                        ("a.test.", 1, alias("api.pay.test.")),
                    ],
                ),
            }]
        })
        .await;
        assert_eq!(server.ask().await.unwrap(), found(&["1.1.1.1"], 7));
    }

    #[tokio::test]
    async fn a_no_holds_as_long_as_its_soa_says() {
        let server = Server::start(|question, _| {
            // The lesser of the record's TTL and its minimum; the lesser of both families.
            let (ttl, minimum) = match question.queries[0].query_type() {
                RecordType::A => (900, 20),
                _ => (25, 900),
            };
            let mut answer = answer(question, &[("pay.test.", ttl, soa(minimum))]);
            answer.metadata.response_code = ResponseCode::NXDomain;
            vec![answer]
        })
        .await;
        assert_eq!(server.ask().await.unwrap(), Answer::None(20));
        let bare = Server::start(|question, _| vec![answer(question, &[])]).await;
        assert_eq!(bare.ask().await.unwrap(), Answer::None(UNSAID));
    }

    #[tokio::test]
    async fn what_does_not_fit_a_datagram_is_asked_for_over_tcp() {
        let server = Server::start(|question, tcp| {
            if !tcp {
                let mut short = answer(question, &[]);
                short.metadata.truncation = true;
                return vec![short];
            }
            vec![match question.queries[0].query_type() {
                RecordType::A => answer(question, &[("api.pay.test.", 9, v4("1.1.1.1"))]),
                _ => answer(question, &[]),
            }]
        })
        .await;
        assert_eq!(server.ask().await.unwrap(), found(&["1.1.1.1"], 9));
        let asked = server.asked.lock().unwrap().clone();
        assert_eq!(asked.iter().filter(|(_, tcp)| *tcp).count(), 2);
    }

    #[tokio::test]
    async fn an_answer_to_another_question_is_no_answer() {
        let server = Server::start(|question, _| {
            let good = match question.queries[0].query_type() {
                RecordType::A => answer(question, &[("api.pay.test.", 9, v4("1.1.1.1"))]),
                _ => answer(question, &[]),
            };
            let evil = answer(question, &[("api.pay.test.", 9, v4("6.6.6.6"))]);
            let mut other_id = evil.clone();
            other_id.metadata.id ^= 1;
            let mut other_name = evil.clone();
            let name = Name::from_ascii("other.test.").unwrap();
            other_name.queries[0].set_name(name);
            let mut question_again = evil;
            question_again.metadata.message_type = MessageType::Query;
            vec![other_id, other_name, question_again, good]
        })
        .await;
        assert_eq!(server.ask().await.unwrap(), found(&["1.1.1.1"], 9));
    }

    #[tokio::test]
    async fn a_server_that_cannot_say_is_passed_over() {
        let broken = Server::start(|question, _| {
            let mut answer = answer(question, &[]);
            answer.metadata.response_code = ResponseCode::ServFail;
            vec![answer]
        })
        .await;
        let good = Server::start(|question, _| {
            vec![match question.queries[0].query_type() {
                RecordType::A => answer(question, &[("api.pay.test.", 9, v4("1.1.1.1"))]),
                _ => answer(question, &[]),
            }]
        })
        .await;
        assert!(broken.ask().await.is_err());
        let closed: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let host: Host = "api.pay.test".parse().unwrap();
        let answer = ask(&[closed, broken.at, good.at], &host).await.unwrap();
        assert_eq!(answer, found(&["1.1.1.1"], 9));
        assert!(ask(&[], &host).await.is_err());
    }

    #[test]
    fn the_hosts_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let (resolv, hosts) = (
            directory.path().join("resolv.conf"),
            directory.path().join("hosts"),
        );
        std::fs::write(&resolv, "# by hand\nsearch corp\nnameserver 10.0.0.53\nnameserver fd00::53\nnameserver bad\noptions edns0\n").unwrap();
        assert_eq!(
            servers(&resolv),
            [
                "10.0.0.53:53".parse().unwrap(),
                "[fd00::53]:53".parse::<SocketAddr>().unwrap()
            ]
        );
        std::fs::write(
            &hosts,
            "127.0.0.1 localhost\n10.0.0.9 API.pay.test. api # x.test\n",
        )
        .unwrap();
        let named = |host: &str| is_in_hosts(&hosts, &host.parse().unwrap());
        assert!(named("api.pay.test") && named("localhost"));
        assert!(!named("x.test") && !named("pay.test"));
        let none = directory.path().join("none");
        assert!(servers(&none).is_empty() && !is_in_hosts(&none, &"a.test".parse().unwrap()));
    }
}
