//! Hosts that a connection declares opaque: databases, brokers, mail: whatever speaks no HTTP. Nothing said to them is read.
//! Place on the path: after the origin, before the first byte; `serve` decides it as one call, to connect.
//! INVARIANT: only a name and port that a connection declares opaque is reached like this, within bounds, and on record.

use policies::Reason;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vault::Armed;

use crate::accept::Connection;
use crate::body::Body;
use crate::refusal::Refusal;
use crate::tunnel::{Plain, Tunnel};
use crate::upstream::{Departure, Failed, Upstream};
use crate::{Proxy, dial};

/// A connection upstream that was decided on and recorded.
pub(crate) struct Opened {
    upstream: TcpStream,
    tunnel: Tunnel<Plain>,
}

impl Proxy {
    /// Serves a connection that is not read.
    pub(crate) async fn opaque(
        &self,
        agent: TcpStream,
        connection: &Connection,
        stop: &CancellationToken,
    ) {
        let Some(Opened { upstream, tunnel }) = self.opened(connection).await else {
            return;
        };
        let ended = tunnel
            .carry(agent.into_split(), upstream.into_split(), stop)
            .await;
        self.count_end(connection, ended);
    }
}

impl Upstream {
    /// Connects; the peer is not verified, since what it speaks is not known. Its address is one that was checked.
    pub(crate) async fn open(
        &self,
        armed: Armed<Body>,
        mut departure: Departure<'_>,
    ) -> Result<Opened, Refusal> {
        let (_, _, owed) = armed.into_parts();
        let mut debt = self.debt(owed, None, &mut departure);
        match self.first(&departure).await {
            Ok(upstream) => {
                let limits = &departure.settings.limits;
                let tunnel = Tunnel::new(Plain, Plain, limits, debt);
                Ok(Opened { upstream, tunnel })
            }
            Err(failed) => {
                debt.fail(failed.reason, &failed.detail);
                Err(Refusal::new(failed.reason, failed.detail).already_recorded())
            }
        }
    }

    /// A connection to the first address that answers, or a tunnel of the operator's proxy. There a server that speaks first
    /// is refused.
    async fn first(&self, departure: &Departure<'_>) -> Result<TcpStream, Failed> {
        let endpoint = departure.endpoint;
        let limits = &departure.settings.limits;
        let addresses = self.addresses(departure).await?;
        let _turn = departure.share.dial().await;
        let (_, stream) = dial::first(&addresses, endpoint, limits.connect).await?;
        timeout(limits.upstream_handshake, departure.through(stream))
            .await
            .unwrap_or_else(|_| {
                let detail = format!("The outbound proxy gave no tunnel to {endpoint} in time.");
                Err(Failed::new(Reason::UpstreamTimeout, detail))
            })
    }
}
