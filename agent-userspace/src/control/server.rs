//! The daemon's end of the control socket: accept, identify, read one bounded line, answer, hang up.
//! Runs in the proxy process beside the path of requests, and never waits for it.
//! INVARIANT: nothing is read from a peer before it is identified; every wait has a deadline.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::answer::answer;
use super::peer::{Access, Peer, PeerRefused, identify};
use super::protocol::{ErrorCode, ErrorReply, MAX_REQUEST, Reply, Request};
use crate::app::Shared;

/// Clients that are served at the same time.
const MAX_CLIENTS: usize = 64;
/// How long a request may take to arrive, and a reply line to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: UnixListener,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: the next round would fail at once as well.
                tracing::warn!(%error, "the control socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else {
            continue;
        };
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve_one(stream, &shared) => {}
            }
            drop(permit);
        });
    }
}

/// One client, one request.
async fn serve_one(stream: UnixStream, shared: &Arc<Shared>) {
    let peer =
        shared.identify(|governed, group, accounts| identify(&stream, governed, group, accounts));
    let (reader, writer) = stream.into_split();
    let mut replies = Replies { writer };
    let outcome = match peer {
        Ok(peer) => match read_request(reader).await {
            Ok(request) => admit_and_answer(&peer, request, shared, &mut replies).await,
            Err(error) => Err(error),
        },
        Err(refused) => {
            shared.control_refused(&refused).await;
            Err(refused_reply(&refused))
        }
    };
    let last = match outcome {
        Ok(()) => Reply::Done {},
        Err(error) => Reply::Error(error),
    };
    // The client may be gone; there is nobody to tell.
    let _ = replies.send(&last).await;
}

async fn admit_and_answer(
    peer: &Peer,
    request: Request,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    if peer.access == Access::Member && !request.open_to_members() {
        return Err(ErrorReply::new(
            ErrorCode::Forbidden,
            format!("only root may do this, and you are {}", peer.user),
        ));
    }
    answer(peer, request, shared, replies).await
}

fn refused_reply(refused: &PeerRefused) -> ErrorReply {
    let code = match refused {
        PeerRefused::Governed { .. } => ErrorCode::Governed,
        PeerRefused::NotAMember { .. } | PeerRefused::Unknown(_) => ErrorCode::Forbidden,
    };
    ErrorReply::new(code, refused.to_string())
}

async fn read_request(reader: impl tokio::io::AsyncRead + Unpin) -> Result<Request, ErrorReply> {
    // One byte more than allowed tells a line that is too long from one that just fits.
    let mut reader = BufReader::new(reader.take(MAX_REQUEST as u64 + 1));
    let mut line = Zeroizing::new(Vec::new());
    let read = timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await;
    match read {
        Err(_) => Err(ErrorReply::new(
            ErrorCode::Timeout,
            "the request took too long to arrive",
        )),
        Ok(Err(error)) => Err(ErrorReply::new(
            ErrorCode::Malformed,
            format!("the request cannot be read: {error}"),
        )),
        Ok(Ok(_)) if line.len() > MAX_REQUEST || line.last() != Some(&b'\n') => {
            Err(ErrorReply::new(
                ErrorCode::Malformed,
                format!("a request is one line of at most {MAX_REQUEST} bytes"),
            ))
        }
        Ok(Ok(_)) => serde_json::from_slice(&line).map_err(|error| {
            ErrorReply::new(
                ErrorCode::Malformed,
                format!("not a request of this protocol: {error}"),
            )
        }),
    }
}

/// Where the lines of an answer go.
pub(super) struct Replies {
    writer: OwnedWriteHalf,
}

impl Replies {
    /// Sends one object.
    pub(super) async fn item(&mut self, value: &impl serde::Serialize) -> Result<(), ErrorReply> {
        let value = serde_json::to_value(value)
            .map_err(|error| ErrorReply::new(ErrorCode::Malformed, error.to_string()))?;
        self.send(&Reply::Item(value)).await
    }

    /// Sends a piece of text.
    pub(super) async fn chunk(&mut self, text: String) -> Result<(), ErrorReply> {
        self.send(&Reply::Chunk(text)).await
    }

    async fn send(&mut self, reply: &Reply) -> Result<(), ErrorReply> {
        let mut line = serde_json::to_vec(reply)
            .map_err(|error| ErrorReply::new(ErrorCode::Malformed, error.to_string()))?;
        line.push(b'\n');
        match timeout(PATIENCE, self.writer.write_all(&line)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ErrorReply::new(
                ErrorCode::Timeout,
                "the client does not take the answer",
            )),
        }
    }

    /// Returns when the client has hung up.
    pub(super) async fn hung_up(&self) {
        // Half-closed is hung up too: a client that waits for more does not shut its end.
        let _ = self.writer.ready(tokio::io::Interest::ERROR).await;
    }
}
