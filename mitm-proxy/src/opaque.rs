//! Hosts that a connection declares opaque: databases, brokers, mail: whatever speaks no HTTP. Nothing said to them is read.
//! Place on the path: after the origin, before the first byte; `serve` decides it as one call, to connect.
//! INVARIANT: only a name and port that a connection declares opaque is reached like this, within bounds, and on record.

use policies::Reason;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vault::Armed;

use crate::Proxy;
use crate::accept::Connection;
use crate::body::Body;
use crate::refusal::Refusal;
use crate::tunnel::{Plain, Tunnel};
use crate::upstream::{Departure, Failed, Upstream};

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
        if let Some((reason, _)) = ended {
            let agent = &connection.workload.agent;
            self.meter()
                .refused(Some(&agent.tenant), Some(agent), reason);
        }
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

    /// A connection to the first address that answers.
    async fn first(&self, departure: &Departure<'_>) -> Result<TcpStream, Failed> {
        let endpoint = departure.endpoint;
        let mut last = Failed::new(
            Reason::UpstreamUnreachable,
            format!("{endpoint} has no address."),
        );
        for address in self.addresses(departure).await?.iter() {
            match timeout(departure.settings.limits.connect, address.dial()).await {
                Ok(Ok(stream)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY towards upstream");
                    }
                    return Ok(stream);
                }
                Ok(Err(error)) => {
                    let detail = format!("No connection to {endpoint}: {error}.");
                    last = Failed::new(Reason::UpstreamUnreachable, detail);
                }
                Err(_) => {
                    let detail = format!("No connection to {endpoint} in time.");
                    last = Failed::new(Reason::UpstreamTimeout, detail);
                }
            }
        }
        Err(last)
    }
}
