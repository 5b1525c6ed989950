//! Real addresses of names, asked of the host's resolver only after a call was decided.
//! Place on the path: the first step of leaving.
//! INVARIANT: what is dialled is a [`Dialable`]: an address that was checked here, or that an operator wrote down.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use policies::{Endpoint, Reason};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::public::not_public;
use crate::meter::Meter;
use crate::upstream::Failed;

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

/// Where an endpoint is, as of `at`.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) addresses: Arc<[Dialable]>,
    pub(crate) at: Instant,
}

/// Resolves `endpoint`, or the fixed `host:port` that the operator set for it.
pub(crate) async fn resolve(
    endpoint: &Endpoint,
    fixed: Option<&str>,
    within: Duration,
    meter: &dyn Meter,
) -> Result<Resolved, Failed> {
    let lookup = async |target: String| Ok(lookup_host(target).await?.collect());
    resolve_by(lookup, endpoint, fixed, within, meter).await
}

/// An answer that mixes public and other addresses loses the others, and each is counted. Refusing the whole answer
/// would protect nothing more, since only checked addresses are dialled, and would break names whose owners publish
/// an internal address beside the public ones.
async fn resolve_by<Answer>(
    lookup: impl FnOnce(String) -> Answer,
    endpoint: &Endpoint,
    fixed: Option<&str>,
    within: Duration,
    meter: &dyn Meter,
) -> Result<Resolved, Failed>
where
    Answer: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let found = |addresses: Vec<SocketAddr>| Resolved {
        addresses: addresses.into_iter().map(Dialable).collect(),
        at: Instant::now(),
    };
    // A connection that names the literal is the operator's word, too.
    if let (Some(address), None) = (endpoint.host.ip(), fixed) {
        return Ok(found(vec![SocketAddr::new(address, endpoint.port)]));
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
    let mut addresses = answer.map_err(|error| {
        Failed::new(
            Reason::UpstreamUnreachable,
            format!("{endpoint} has no address: {error}."),
        )
    })?;
    if fixed.is_some() {
        return Ok(found(addresses));
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
    Ok(found(addresses))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::meter::NoMeter;

    const PATIENCE: Duration = Duration::from_secs(5);

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
            let lookup = async |_| Ok(self.answer());
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
            let found = runtime.block_on(resolve_by(async |_| Ok(answer), &name, None, PATIENCE, &NoMeter));
            let dialled: Vec<SocketAddr> = found.map_or_else(|_| Vec::new(), |found| found.addresses.iter().map(|it| it.0).collect());
            let public: Vec<SocketAddr> = all.into_iter().filter(|address| not_public(address.ip()).is_none()).collect();
            prop_assert_eq!(dialled, public);
        }
    }
}
