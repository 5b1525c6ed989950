//! Reaching upstream: the first of its addresses that answers, or a tunnel through the operator's own proxy.
//! Place on the path: between the real address and TLS.
//! INVARIANT: only a [`Dialable`] is dialled; what a tunnel leads to is verified by TLS like everything else.

use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use policies::{Endpoint, Reason};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::names::real::Dialable;
use crate::upstream::Failed;

/// How long an address has before the next one is tried beside it (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to the first address that answers; the families take turns, beginning with the one that the resolver put first.
/// Whoever loses the race is dropped.
pub(crate) async fn first(
    addresses: &[Dialable],
    endpoint: &Endpoint,
    within: Duration,
) -> Result<(Dialable, TcpStream), Failed> {
    let mut rest = in_turns(addresses).into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = Failed::new(
        Reason::UpstreamUnreachable,
        format!("{endpoint} has no address."),
    );
    loop {
        match rest.next() {
            Some(address) => {
                attempts.spawn(async move { (address, timeout(within, address.dial()).await) });
            }
            None if attempts.is_empty() => return Err(failed),
            None => {}
        }
        let ended = if rest.len() == 0 {
            attempts.join_next().await
        } else {
            match timeout(HEAD_START, attempts.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        };
        failed = match ended {
            Some(Ok((address, Ok(Ok(stream))))) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY towards upstream");
                }
                return Ok((address, stream));
            }
            Some(Ok((_, Ok(Err(error))))) => Failed::new(
                Reason::UpstreamUnreachable,
                format!("No connection to {endpoint}: {error}."),
            ),
            Some(Ok((_, Err(_)))) => Failed::new(
                Reason::UpstreamTimeout,
                format!("No connection to {endpoint} in time."),
            ),
            // A task is neither cancelled nor does it panic.
            Some(Err(_)) | None => failed,
        };
    }
}

/// The addresses, families in turns; the order within each is the resolver's.
fn in_turns(addresses: &[Dialable]) -> Vec<Dialable> {
    let v4_first = addresses.first().is_some_and(|first| first.is_ipv4());
    let (mut one, mut other): (Vec<Dialable>, Vec<Dialable>) = addresses
        .iter()
        .copied()
        .partition(|address| address.is_ipv4() == v4_first);
    one.reverse();
    other.reverse();
    let mut all = Vec::with_capacity(addresses.len());
    while let Some(next) = one.pop().or_else(|| other.pop()) {
        all.push(next);
        all.extend(other.pop());
    }
    all
}

/// Asks the operator's proxy for a tunnel to `endpoint` (RFC 9110 section 9.3.6).
pub(crate) async fn tunnel(stream: TcpStream, endpoint: &Endpoint) -> Result<TcpStream, Failed> {
    let failed = |why: String| {
        let detail = format!("The outbound proxy gave no tunnel to {endpoint}: {why}.");
        Failed::new(Reason::UpstreamUnreachable, detail)
    };
    let broken = |error: hyper::Error| failed(error.to_string());
    let authority = endpoint.to_string();
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = authority
        .parse()
        .map_err(|_| failed("its name cannot be written".to_owned()))?;
    let host = HeaderValue::from_str(&authority)
        .map_err(|_| failed("its name cannot be written".to_owned()))?;
    request.headers_mut().insert(HOST, host);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let connection = tokio::spawn(connection.with_upgrades());
    let answer = sender.send_request(request).await.map_err(broken)?;
    if !answer.status().is_success() {
        connection.abort();
        return Err(failed(format!("it said {}", answer.status())));
    }
    let tunnel = hyper::upgrade::on(answer).await.map_err(broken)?;
    let parts = tunnel
        .downcast::<TokioIo<TcpStream>>()
        .map_err(|_| failed("it is not the connection that was opened".to_owned()))?;
    // In a tunnel to a TLS or HTTP server the client speaks first.
    if parts.read_buf.is_empty() {
        Ok(parts.io.into_inner())
    } else {
        Err(failed("it spoke before it was asked".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn dialable(text: &str) -> Dialable {
        Dialable::for_test(text.parse::<SocketAddr>().unwrap())
    }

    /// A listener whose backlog is full: what connects to it hears nothing.
    struct Full {
        address: Dialable,
        _listener: socket2::Socket,
        _waiting: Vec<TcpStream>,
    }

    impl Full {
        async fn at(place: &str) -> Full {
            let place: SocketAddr = place.parse().unwrap();
            let domain = socket2::Domain::for_address(place);
            let listener = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            listener.bind(&place.into()).unwrap();
            listener.listen(0).unwrap();
            let place = listener.local_addr().unwrap().as_socket().unwrap();
            let mut waiting = Vec::new();
            for _ in 0..8 {
                let connecting = timeout(Duration::from_millis(50), TcpStream::connect(place));
                waiting.extend(connecting.await.ok().map(Result::unwrap));
            }
            Full {
                address: dialable(&place.to_string()),
                _listener: listener,
                _waiting: waiting,
            }
        }
    }

    #[test]
    fn families_take_turns_and_lose_nobody() {
        let turns = |given: &[&str]| {
            let given: Vec<Dialable> = given.iter().copied().map(dialable).collect();
            in_turns(&given)
        };
        let expected: Vec<Dialable> = ["[::1]:1", "1.0.0.1:1", "[::2]:1", "1.0.0.2:1", "1.0.0.3:1"]
            .map(dialable)
            .to_vec();
        assert_eq!(
            turns(&["[::1]:1", "[::2]:1", "1.0.0.1:1", "1.0.0.2:1", "1.0.0.3:1"]),
            expected
        );
        assert_eq!(
            turns(&["1.0.0.1:1", "[::1]:1"]),
            ["1.0.0.1:1", "[::1]:1"].map(dialable)
        );
        assert!(turns(&[]).is_empty());
    }

    #[tokio::test]
    async fn a_dead_ipv6_address_does_not_hold_ipv4_up() {
        let endpoint: Endpoint = "api.pay.test:443".parse().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let v4 = dialable(&listener.local_addr().unwrap().to_string());
        let full = Full::at("[::1]:0").await;
        let v6 = full.address;
        let patience = Duration::from_secs(60);
        // Positive control: alone it is waited for.
        let alone = timeout(HEAD_START * 2, first(&[v6], &endpoint, patience)).await;
        assert!(alone.is_err(), "{alone:?}");
        let (address, _) = first(&[v6, v4], &endpoint, patience).await.unwrap();
        assert_eq!(address, v4);
    }

    #[tokio::test]
    async fn an_address_that_says_nothing_does_not_hold_the_next_one_up() {
        let endpoint: Endpoint = "api.pay.test:443".parse().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = dialable(&listener.local_addr().unwrap().to_string());
        let full = Full::at("127.0.0.1:0").await;
        let silent = full.address;
        let patience = Duration::from_secs(60);
        // Positive control: alone it is waited for.
        let alone = timeout(
            Duration::from_millis(600),
            first(&[silent], &endpoint, patience),
        )
        .await;
        assert!(alone.is_err(), "{alone:?}");
        let (address, _) = first(&[silent, good], &endpoint, patience).await.unwrap();
        assert_eq!(address, good);
        // One that refuses is passed over at once.
        let closed = dialable("127.0.0.1:1");
        let (address, _) = first(&[closed, good], &endpoint, patience).await.unwrap();
        assert_eq!(address, good);
        let none = first(&[closed], &endpoint, patience).await.unwrap_err();
        assert_eq!(none.reason, Reason::UpstreamUnreachable);
    }
}
