//! The policy resolver: answers A and AAAA for names that the asking agent's connections allow, with synthetic addresses.
//! Place on the path: every DNS query of a workload, UDP and TCP, is sent here by the kernel side.
//! INVARIANT: nothing is ever forwarded; what is not allowed is REFUSED, counted and recorded.

// Answers follow RFC 1035 with RFC 2308 (no data), 6891 (EDNS), 7766 (TCP) and 8482 (ANY). Other types than A and AAAA
// are REFUSED and not answered with "no data": that would claim, and let caches keep, that there is no such record.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use policies::{AgentId, Host, Reason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Proxy;
use crate::probe::is_probe;
use crate::workload::Workload;

/// Seconds that an answer may be kept: short, because addresses on demand are gone after a restart.
const TTL: u32 = 30;
/// Largest datagram that is read; queries are far smaller.
const DATAGRAM: usize = 4096;
/// What we say we can receive (EDNS); our own answers always fit 512 bytes.
const EDNS_SIZE: u16 = 1232;
/// TCP connections to the resolver at a time.
const TCP_ROOM: usize = 256;
/// And of one agent: the others need theirs.
const TCP_ROOM_OF_AGENT: usize = 32;

/// Answers datagrams until `stop`.
pub(crate) async fn udp(proxy: Proxy, socket: UdpSocket, stop: CancellationToken) {
    let mut buffer = [0_u8; DATAGRAM];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                // An ICMP error of an earlier answer; the socket itself is fine.
                tracing::debug!(%error, "DNS receive");
                continue;
            }
        };
        let workload = proxy
            .origins()
            .datagram(socket.as_fd(), from)
            .and_then(|origin| proxy.workloads().get(origin.workload));
        let query = buffer.get(..length).unwrap_or_default();
        if let Some(answer) = proxy.resolve(query, workload.as_ref(), from).await
            && let Err(error) = socket.send_to(&answer, from).await
        {
            tracing::debug!(%error, "DNS send");
        }
    }
}

/// Answers queries over TCP until `stop`.
pub(crate) async fn tcp(
    proxy: Proxy,
    listener: TcpListener,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(TCP_ROOM));
    let seats = Seats::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, from)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let origin = proxy.origins().accepted(stream.as_fd());
        let workload = origin.and_then(|origin| proxy.workloads().get(origin.workload));
        let agent = workload.as_ref().map(|workload| &workload.agent);
        let permit = Arc::clone(&room).try_acquire_owned();
        let (Ok(permit), Some(seat)) = (permit, seats.take(agent)) else {
            let tenant = agent.map(|agent| &agent.tenant);
            proxy.meter().refused(tenant, agent, Reason::Overloaded);
            continue;
        };
        let (proxy, stop) = (proxy.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = session(&proxy, stream, workload, from) => {}
            }
            drop((permit, seat));
        });
    }
}

/// How many TCP connections each agent has open, and all together whom the kernel does not know.
#[derive(Clone, Default)]
struct Seats(Arc<Mutex<HashMap<Option<AgentId>, usize>>>);

/// One of an agent's connections; gives its place back when dropped.
struct Seat(Seats, Option<AgentId>);

impl Seats {
    fn take(&self, agent: Option<&AgentId>) -> Option<Seat> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(agent.cloned()).or_default();
        if *count >= TCP_ROOM_OF_AGENT {
            return None;
        }
        *count += 1;
        Some(Seat(self.clone(), agent.cloned()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.1) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.1);
            }
        }
    }
}

/// One TCP connection: queries with a length before each (RFC 1035 section 4.2.2).
async fn session(
    proxy: &Proxy,
    mut stream: TcpStream,
    workload: Option<Workload>,
    from: SocketAddr,
) {
    let idle = proxy.settings().limits.questions_idle;
    let mut query = Vec::new();
    loop {
        let Ok(Ok(length)) = timeout(idle, stream.read_u16()).await else {
            return;
        };
        query.resize(usize::from(length), 0);
        let Ok(Ok(_)) = timeout(idle, stream.read_exact(&mut query)).await else {
            return;
        };
        let Some(answer) = proxy.resolve(&query, workload.as_ref(), from).await else {
            return;
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return;
        };
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        let Ok(Ok(())) = timeout(idle, stream.write_all(&framed)).await else {
            return;
        };
    }
}

/// How a question was settled.
enum Settled {
    /// With an address.
    Answered(RData),
    /// The name does not exist, and saying so lets the client try its next spelling.
    NoSuchName,
    /// It is not answered.
    Refused(Reason, String),
}

impl Proxy {
    /// The answer to one message; `None` where silence is right (an answer sent to us). Every message is counted as
    /// answered or not, and what is not answered has a reason.
    async fn resolve(
        &self,
        query: &[u8],
        workload: Option<&Workload>,
        from: SocketAddr,
    ) -> Option<Vec<u8>> {
        let refuse = async |reason, detail: &str| {
            self.meter().name(false);
            self.refuse_name(workload, reason, String::new(), detail.to_owned(), from)
                .await;
        };
        let agent = workload.map(|workload| &workload.agent);
        let (rate, burst) = {
            let limits = &self.settings().limits;
            (limits.questions, limits.questions_burst)
        };
        if !self.questions().admit(agent, rate, burst, Instant::now()) {
            let detail = format!("More than {rate} questions a second, after {burst} at once.");
            refuse(Reason::NameRateLimited, &detail).await;
            return failed(query, ResponseCode::Refused);
        }
        let Ok(message) = Message::from_vec(query) else {
            refuse(Reason::MalformedRequest, "The DNS message cannot be read.").await;
            return failed(query, ResponseCode::FormErr);
        };
        if message.metadata.message_type != MessageType::Query {
            refuse(Reason::MalformedRequest, "The DNS message is an answer.").await;
            return None;
        }
        let mut answer = Message::response(message.metadata.id, message.metadata.op_code);
        answer.metadata.recursion_desired = message.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = ResponseCode::NoError;
        if let Some(asked) = &message.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_SIZE);
            answer.set_edns(edns);
            if asked.version() > 0 {
                refuse(Reason::MalformedRequest, "The EDNS version is not known.").await;
                answer.metadata.response_code = ResponseCode::BADVERS;
                return answer.to_vec().ok();
            }
        }
        if message.metadata.op_code != OpCode::Query {
            refuse(Reason::MalformedRequest, "The DNS message is no question.").await;
            answer.metadata.response_code = ResponseCode::NotImp;
            return answer.to_vec().ok();
        }
        let [question] = message.queries.as_slice() else {
            refuse(
                Reason::MalformedRequest,
                "The DNS message has not one question.",
            )
            .await;
            answer.metadata.response_code = ResponseCode::FormErr;
            return answer.to_vec().ok();
        };
        answer.add_query(question.clone());
        let settled = self.settle_question(question, workload);
        self.meter().name(matches!(settled, Settled::Answered(_)));
        match settled {
            Settled::Answered(data) => {
                answer.metadata.authoritative = true;
                answer.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
            }
            Settled::NoSuchName => answer.metadata.response_code = ResponseCode::NXDomain,
            Settled::Refused(reason, detail) => {
                answer.metadata.response_code = ResponseCode::Refused;
                let name = spoken(question.name());
                self.refuse_name(workload, reason, name, detail, from).await;
            }
        }
        answer.to_vec().ok()
    }

    fn settle_question(&self, question: &Query, workload: Option<&Workload>) -> Settled {
        let Some(workload) = workload else {
            let detail = "The kernel knows no workload that asked this.".to_owned();
            return Settled::Refused(Reason::OriginUnknown, detail);
        };
        let agent = &workload.agent;
        let text = spoken(question.name());
        let not_allowed = || {
            let detail =
                format!("No connection of {agent} allows the name {text}; ask for one that does.");
            Settled::Refused(Reason::NameNotAllowed, detail)
        };
        let Ok(host) = Host::parse(&text) else {
            return not_allowed();
        };
        let bundle = self.bundle();
        if question.query_class() != DNSClass::IN || host.is_ip() {
            return not_allowed();
        }
        if !bundle.resolves(agent, &host) && !is_probe(&host) {
            // `api.example.com.corp.lan`: a search list at work. REFUSED would end the client's search before it tries
            // the name as it was given.
            let shorter = prefixes(&host).any(|prefix| bundle.resolves(agent, &prefix));
            return if shorter {
                Settled::NoSuchName
            } else {
                not_allowed()
            };
        }
        if !matches!(question.query_type(), RecordType::A | RecordType::AAAA) {
            let detail = format!(
                "{} records of {host} are not answered; only A and AAAA are.",
                question.query_type()
            );
            return Settled::Refused(Reason::QueryTypeRefused, detail);
        }
        // A call that was answered "ask again once it is approved" is sent again to the name it was made to.
        let held = LazyCell::new(|| self.approvals().open_agents_of(&agent.tenant));
        let still_meant = |name: &Host| held.iter().any(|holder| bundle.resolves(holder, name));
        let addresses = match self
            .names()
            .assign(agent, &host, Instant::now(), still_meant)
        {
            Ok(addresses) => addresses,
            Err(exhausted) => {
                let detail = format!("{agent} gets no address for {host}: {exhausted}.");
                return Settled::Refused(Reason::NamesExhausted, detail);
            }
        };
        Settled::Answered(match question.query_type() {
            RecordType::A => RData::A(A(addresses.v4)),
            _ => RData::AAAA(AAAA(addresses.v6)),
        })
    }

    /// Counts every refused name; records them at a bounded rate, since a query costs its sender nothing.
    async fn refuse_name(
        &self,
        workload: Option<&Workload>,
        reason: Reason,
        name: String,
        detail: String,
        from: SocketAddr,
    ) {
        let agent = workload.map(|workload| &workload.agent);
        self.meter()
            .refused(agent.map(|agent| &agent.tenant), agent, reason);
        // Keyed by agent and not by name: names can be invented, one for each record that one wants to cause.
        let Some(left_out) = self
            .damper()
            .admit((agent.cloned(), reason, String::new()), Instant::now())
        else {
            tracing::debug!(%name, %from, %reason, "name refused, not recorded");
            return;
        };
        self.record_refusal(workload, reason, name, detail, left_out)
            .await;
    }
}

/// A name as people write it: lower case, without the final dot (but for the root).
fn spoken(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    match text.strip_suffix('.') {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => text,
    }
}

/// The name without its last label, without its last two, and so on.
fn prefixes(host: &Host) -> impl Iterator<Item = Host> {
    let text = host.as_str();
    let dots: Vec<usize> = text.match_indices('.').map(|(at, _)| at).collect();
    dots.into_iter()
        .rev()
        .filter_map(move |at| text.get(..at).and_then(|prefix| Host::parse(prefix).ok()))
}

/// A bare answer for what has at least an id and is a query; nothing for less.
fn failed(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let (id, rest) = query.split_first_chunk::<2>()?;
    // QR bit: an answer to us gets no answer.
    if rest.first()? & 0x80 != 0 {
        return None;
    }
    Message::error_msg(u16::from_be_bytes(*id), OpCode::Query, code)
        .to_vec()
        .ok()
}
