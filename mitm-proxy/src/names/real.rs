//! Real addresses of names, asked only after a call was decided, and kept no longer than their answer says.
//! Place on the path: the first step of leaving.
//! INVARIANT: what is dialled is a [`Dialable`]: an address that was checked here, or that an operator wrote down.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use policies::{Endpoint, Reason};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::ask::{self, Answer};
use super::public::not_public;
use crate::meter::Meter;
use crate::settings::Settings;
use crate::upstream::Failed;

/// An answer is kept for a second even if it says less: calls that come at once are one question.
const LEAST: Duration = Duration::from_secs(1);
/// How long an answer is kept that does not say for how long it holds: a literal, the hosts file, the host's own resolver.
const UNSAID: Duration = Duration::from_secs(30);
/// The longest that a "no" is kept, whatever it says: a name that was just made should be found soon.
const LONGEST_NO: Duration = Duration::from_secs(30);

/// An address that may be dialled. Made only here, and dialled as it is: a name is never asked a second time between
/// the check and the connect, so an answer that changes (rebinding) changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dialable(SocketAddr);

impl Dialable {
    /// Whether it is an IPv4 address.
    pub(crate) fn is_ipv4(&self) -> bool {
        self.0.is_ipv4()
    }

    #[cfg(test)]
    pub(crate) fn for_test(address: SocketAddr) -> Self {
        Self(address)
    }

    /// Opens a connection to exactly this address.
    pub(crate) async fn dial(self) -> io::Result<TcpStream> {
        TcpStream::connect(self.0).await
    }
}

/// Where an endpoint is, and until when that holds. Without addresses: it has none.
#[derive(Debug)]
struct Resolved {
    addresses: Arc<[Dialable]>,
    until: Instant,
}

/// What was looked up, for as long as it holds.
#[derive(Debug, Default)]
pub(crate) struct Known(RwLock<HashMap<Endpoint, Resolved>>);

impl Known {
    /// Where an endpoint is, or the operator's fixed address or proxy for it.
    pub(crate) async fn addresses(
        &self,
        endpoint: &Endpoint,
        settings: &Settings,
        meter: &dyn Meter,
    ) -> Result<Arc<[Dialable]>, Failed> {
        let now = Instant::now();
        {
            let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = known.get(endpoint).filter(|entry| now < entry.until) {
                return Ok(Arc::clone(&entry.addresses));
            }
        }
        let fixed = settings.connect_to.get(endpoint);
        let fixed = fixed.or(settings.outbound.as_ref());
        let fixed = fixed.map(String::as_str);
        let entry = Box::pin(resolve(endpoint, fixed, settings, meter)).await?;
        let addresses = Arc::clone(&entry.addresses);
        self.write().insert(endpoint.clone(), entry);
        Ok(addresses)
    }

    /// Forgets what holds no longer.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.write().retain(|_, entry| now < entry.until);
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.write().clear();
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Endpoint, Resolved>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a question came to, before anything is checked.
#[derive(Debug)]
struct Found {
    addresses: Vec<SocketAddr>,
    /// As the answer says; bounded by whoever keeps it.
    holds: Duration,
}

/// Resolves `endpoint`, or the fixed `host:port` that the operator set for it.
async fn resolve(
    endpoint: &Endpoint,
    fixed: Option<&str>,
    settings: &Settings,
    meter: &dyn Meter,
) -> Result<Resolved, Failed> {
    let limits = &settings.limits;
    let lookup = async |target: String| match fixed {
        Some(_) => by_system(target).await,
        None => by_wire(endpoint, target, settings).await,
    };
    let within = (limits.connect, limits.resolved);
    resolve_by(lookup, endpoint, fixed, within, meter).await
}

/// By the host's own resolver, which says nothing about how long its answer holds.
async fn by_system(target: String) -> io::Result<Found> {
    Ok(Found {
        addresses: lookup_host(target).await?.collect(),
        holds: UNSAID,
    })
}

/// By the name servers that the operator named, or the host's. Where these cannot say, or know no such name, the host's own
/// resolver is asked, which may know other sources; not so where the operator named some.
async fn by_wire(endpoint: &Endpoint, target: String, settings: &Settings) -> io::Result<Found> {
    let named = settings.nameservers.as_slice();
    if named.is_empty() && ask::is_in_hosts(Path::new("/etc/hosts"), &endpoint.host) {
        return by_system(target).await;
    }
    let hosts;
    let servers = if named.is_empty() {
        hosts = ask::servers(Path::new("/etc/resolv.conf"));
        hosts.as_slice()
    } else {
        named
    };
    let seconds = |ttl: u32| Duration::from_secs(ttl.into());
    let no = match ask::ask(servers, &endpoint.host).await {
        Ok(Answer::Found(addresses, ttl)) => {
            let at = |address| SocketAddr::new(address, endpoint.port);
            return Ok(Found {
                addresses: addresses.into_iter().map(at).collect(),
                holds: seconds(ttl),
            });
        }
        Ok(Answer::None(ttl)) => Ok(Found {
            addresses: Vec::new(),
            holds: seconds(ttl).min(LONGEST_NO),
        }),
        Err(error) => Err(error),
    };
    if !named.is_empty() {
        return no;
    }
    match by_system(target).await {
        Ok(found) => Ok(found),
        Err(error) => no.or(Err(error)),
    }
}

/// An answer that mixes public and other addresses loses the others, and each is counted. Refusing the whole answer
/// would protect nothing more, since only checked addresses are dialled, and would break names whose owners publish
/// an internal address beside the public ones.
async fn resolve_by<Asked>(
    lookup: impl FnOnce(String) -> Asked,
    endpoint: &Endpoint,
    fixed: Option<&str>,
    (within, longest): (Duration, Duration),
    meter: &dyn Meter,
) -> Result<Resolved, Failed>
where
    Asked: Future<Output = io::Result<Found>>,
{
    let found = |addresses: Vec<SocketAddr>, holds: Duration| Resolved {
        addresses: addresses.into_iter().map(Dialable).collect(),
        until: Instant::now() + holds.max(LEAST).min(longest),
    };
    // A connection that names the literal is the operator's word, too.
    if let (Some(address), None) = (endpoint.host.ip(), fixed) {
        let literal = vec![SocketAddr::new(address, endpoint.port)];
        return Ok(found(literal, UNSAID));
    }
    let target = fixed.map_or_else(
        || format!("{}:{}", endpoint.host, endpoint.port),
        str::to_owned,
    );
    let late = |_| {
        Failed::new(
            Reason::UpstreamTimeout,
            format!("{endpoint} was not resolved in time."),
        )
    };
    let answer = timeout(within, lookup(target)).await.map_err(late)?;
    let Found {
        mut addresses,
        holds,
    } = answer.map_err(|error| {
        Failed::new(
            Reason::UpstreamUnreachable,
            format!("{endpoint} has no address: {error}."),
        )
    })?;
    if fixed.is_some() {
        return Ok(found(addresses, holds));
    }
    let none = addresses.is_empty();
    addresses.retain(|address| {
        let kind = not_public(address.ip());
        if let Some(kind) = kind {
            meter.address_refused(kind);
        }
        kind.is_none()
    });
    if addresses.is_empty() && !none {
        let detail = format!(
            "{endpoint} resolves only to private or local addresses; if that is meant, an operator can set \
             [proxy.connect_to] for it."
        );
        return Err(Failed::new(Reason::UpstreamAddress, detail));
    }
    Ok(found(addresses, holds))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::meter::NoMeter;

    const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    /// A name server that gives these answers, one after the other.
    struct Scripted(Mutex<VecDeque<Vec<&'static str>>>);

    impl Scripted {
        fn new(answers: &[&[&'static str]]) -> Self {
            Self(Mutex::new(
                answers.iter().map(|answer| answer.to_vec()).collect(),
            ))
        }

        fn answer(&self) -> Vec<SocketAddr> {
            let answer = self.0.lock().unwrap().pop_front().unwrap();
            answer
                .iter()
                .map(|address| SocketAddr::new(address.parse().unwrap(), 443))
                .collect()
        }

        async fn resolve(
            &self,
            endpoint: &str,
            fixed: Option<&str>,
        ) -> Result<Vec<String>, Reason> {
            let lookup = async |_| {
                Ok(Found {
                    addresses: self.answer(),
                    holds: UNSAID,
                })
            };
            let endpoint = self::endpoint(endpoint);
            match resolve_by(lookup, &endpoint, fixed, PATIENCE, &NoMeter).await {
                Ok(found) => Ok(found
                    .addresses
                    .iter()
                    .map(|it| it.0.ip().to_string())
                    .collect()),
                Err(failed) => Err(failed.reason),
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_is_bound_anew_to_a_private_address_is_refused() {
        let answers: &[&[&str]] = &[
            &["1.1.1.1"],
            &["127.0.0.1"],
            &["169.254.169.254", "fd00:ec2::254"],
            &["1.1.1.1"],
        ];
        // Positive control: the server does change its answer to this host.
        let control = Scripted::new(answers);
        control.answer();
        assert!(
            control
                .answer()
                .iter()
                .any(|address| address.ip().is_loopback())
        );

        let rebinding = Scripted::new(answers);
        let ask = || rebinding.resolve("evil.test:443", None);
        assert_eq!(ask().await, Ok(vec!["1.1.1.1".to_owned()]));
        assert_eq!(ask().await, Err(Reason::UpstreamAddress));
        assert_eq!(ask().await, Err(Reason::UpstreamAddress));
        assert_eq!(ask().await, Ok(vec!["1.1.1.1".to_owned()]));
    }

    #[tokio::test]
    async fn an_answer_is_kept_for_its_ttl_within_bounds() {
        let endpoint = endpoint("api.pay.test:443");
        let keeps = async |addresses: &[&str], ttl: u64| {
            let found = Found {
                addresses: addresses
                    .iter()
                    .map(|address| SocketAddr::new(address.parse().unwrap(), 443))
                    .collect(),
                holds: Duration::from_secs(ttl),
            };
            let asked = Instant::now();
            let kept = resolve_by(async |_| Ok(found), &endpoint, None, PATIENCE, &NoMeter);
            (kept.await.unwrap().until - asked).as_secs()
        };
        assert_eq!(keeps(&["1.1.1.1"], 20).await, 20);
        assert_eq!(keeps(&["1.1.1.1"], 0).await, LEAST.as_secs());
        assert_eq!(keeps(&["1.1.1.1"], 86_400).await, 300);
        assert_eq!(keeps(&[], 7).await, 7);
    }

    #[tokio::test]
    async fn a_name_that_moves_is_followed_when_its_ttl_is_over_and_never_to_a_private_address() {
        use hickory_proto::op::{Message, OpCode};
        use hickory_proto::rr::rdata::A;
        use hickory_proto::rr::{RData, Record, RecordType};
        // Each question for an IPv4 address takes the next of these: address, and TTL.
        let says = [("1.1.1.1", 1), ("127.0.0.1", 3600), ("1.0.0.1", 3600)];
        let says = says.map(|(address, ttl)| (address.parse().unwrap(), ttl));
        let left = Arc::new(Mutex::new(VecDeque::from(says)));
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut settings = Settings::default();
        settings.nameservers.push(socket.local_addr().unwrap());
        let script = Arc::clone(&left);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let query = question.queries[0].clone();
                let mut answer = Message::response(question.metadata.id, OpCode::Query);
                if query.query_type() == RecordType::A {
                    let (address, ttl) = script.lock().unwrap().pop_front().unwrap();
                    let data = RData::A(A(address));
                    answer.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
                }
                answer.add_query(query);
                let bytes = answer.to_vec().unwrap();
                socket.send_to(&bytes, from).await.unwrap();
            }
        });
        let (known, endpoint) = (Known::default(), endpoint("api.pay.test:443"));
        let ask = async || {
            let found = known.addresses(&endpoint, &settings, &NoMeter).await;
            found
                .map(|found| found[0].0.to_string())
                .map_err(|failed| failed.reason)
        };
        assert_eq!(ask().await, Ok("1.1.1.1:443".to_owned()));
        // Positive control: it is remembered, although the server would say something else by now.
        assert_eq!(ask().await, Ok("1.1.1.1:443".to_owned()));
        assert_eq!(left.lock().unwrap().len(), 2);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(ask().await, Err(Reason::UpstreamAddress));
        // What was refused is not remembered, whatever its TTL says.
        assert_eq!(ask().await, Ok("1.0.0.1:443".to_owned()));
        assert_eq!(ask().await, Ok("1.0.0.1:443".to_owned()));
        known.sweep();
        assert_eq!(ask().await, Ok("1.0.0.1:443".to_owned()));
    }

    #[tokio::test]
    async fn private_addresses_of_a_mixed_answer_are_dropped() {
        let mixed = Scripted::new(&[&[
            "10.0.0.1",
            "1.1.1.1",
            "::1",
            "2606:4700::1111",
            "64:ff9b::7f00:1",
        ]]);
        let found = mixed.resolve("mixed.test:443", None).await;
        assert_eq!(
            found,
            Ok(vec!["1.1.1.1".to_owned(), "2606:4700::1111".to_owned()])
        );
    }

    #[tokio::test]
    async fn a_private_address_is_dialled_only_where_an_operator_named_it() {
        let private = || Scripted::new(&[&["10.0.0.1"]]);
        let refused = private().resolve("in.test:443", None).await;
        assert_eq!(refused, Err(Reason::UpstreamAddress));
        let fixed = private().resolve("in.test:443", Some("in.corp:443")).await;
        assert_eq!(fixed, Ok(vec!["10.0.0.1".to_owned()]));
        let literal = private().resolve("10.0.0.2:443", None).await;
        assert_eq!(literal, Ok(vec!["10.0.0.2".to_owned()]));
    }

    proptest! {
        #[test]
        fn whatever_a_name_server_answers_only_public_addresses_are_dialled(
            v4 in proptest::collection::vec(any::<[u8; 4]>(), 0..4),
            v6 in proptest::collection::vec((prop::sample::select(vec![
                0_u16, 0x64, 0x100, 0x2001, 0x2002, 0x2606, 0x3fff, 0xfc00, 0xfd00, 0xfe80, 0xff02,
            ]), any::<[u16; 7]>()), 0..4),
        ) {
            let mut all: Vec<SocketAddr> = Vec::new();
            all.extend(v4.iter().map(|octets| SocketAddr::from((*octets, 443))));
            all.extend(v6.iter().map(|(first, rest)| {
                let mut segments = [*first; 8];
                segments[1..].copy_from_slice(rest);
                SocketAddr::from((segments, 443))
            }));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let name = endpoint("any.test:443");
            let answer = all.clone();
            let found = runtime.block_on(resolve_by(async |_| Ok(Found { addresses: answer, holds: UNSAID }), &name, None, PATIENCE, &NoMeter));
            let dialled: Vec<SocketAddr> = found.map_or_else(|_| Vec::new(), |found| found.addresses.iter().map(|it| it.0).collect());
            let public: Vec<SocketAddr> = all.into_iter().filter(|address| not_public(address.ip()).is_none()).collect();
            prop_assert_eq!(dialled, public);
        }
    }
}
