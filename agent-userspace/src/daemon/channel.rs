//! One typed message per SOCK_SEQPACKET packet, with descriptors beside it, blocking or on a tokio reactor.
//! Carries everything the daemon's processes and `sluice run` say to each other.
//! INVARIANT: a packet is a whole message or an error; truncation, excess descriptors and unknown fields never pass.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::protocol::{MAX_MESSAGE, Message};

/// Most descriptors that one message carries.
pub(super) const MAX_FDS: usize = 16;

/// One end of a SOCK_SEQPACKET connection; blocking.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Why a message could not be sent or received. Hang up after one.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side hung up in mid-conversation.
    #[error("the other side hung up")]
    HungUp,
    /// The system refused.
    #[error("channel: {0}")]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    /// The packet is no message of this channel.
    #[error("not a message of this protocol: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A message is longer than [`MAX_MESSAGE`] or carries more than [`MAX_FDS`] descriptors.
    #[error("a message is too long, or carries too many descriptors")]
    TooLong,
    /// A descriptor is not of the kind that belongs to its message.
    #[error("a descriptor that should be a {0} is none")]
    WrongKind(&'static str),
    /// A message came without the descriptors that belong to it, or with others.
    #[error("a message came with {found} descriptors instead of {expected}")]
    WrongDescriptors {
        /// How many belong to it.
        expected: usize,
        /// How many came.
        found: usize,
    },
}

impl From<rustix::io::Errno> for ChannelError {
    fn from(errno: rustix::io::Errno) -> Self {
        ChannelError::Io(errno.into())
    }
}

impl Channel {
    /// Two connected ends, both close-on-exec.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Channel(ours), Channel(theirs)))
    }

    /// The end that this process was started with as its standard input.
    ///
    /// # Errors
    /// Standard input is closed.
    pub fn from_stdin() -> io::Result<Channel> {
        Ok(Channel(io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// A connection that a tokio listener accepted; blocking again.
    ///
    /// # Errors
    /// The system refuses to change its mode.
    pub(super) fn from_accepted(stream: UnixStream) -> io::Result<Channel> {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(Channel(stream.into()))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other side hung up, or the message is too long.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        send(self.0.as_fd(), message, fds)
    }

    /// Receives one message, or `None` when the other side hung up.
    ///
    /// # Errors
    /// The packet is no message, or reading failed.
    pub fn receive<T: Message>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        receive(self.0.as_fd())
    }

    /// Receives one message, for which it waits at most this long.
    ///
    /// # Errors
    /// As [`Channel::receive`], and [`ChannelError::Late`].
    pub fn receive_within<T: Message>(
        &self,
        patience: Duration,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        let receive_timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&self.0, receive_timeout, Some(patience))?;
        let received = match self.receive() {
            Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(ChannelError::Late(patience))
            }
            received => received,
        };
        rustix::net::sockopt::set_socket_timeout(&self.0, receive_timeout, None)?;
        received
    }

    /// Receives one message that must come, with exactly this many descriptors.
    ///
    /// # Errors
    /// As [`Channel::receive`], and when the other side hung up.
    pub fn expect<T: Message>(&self, fds: usize) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        let (message, found) = self.receive()?.ok_or(ChannelError::HungUp)?;
        if found.len() != fds {
            return Err(ChannelError::WrongDescriptors {
                expected: fds,
                found: found.len(),
            });
        }
        Ok((message, found))
    }

    /// The same connection on the current tokio runtime.
    ///
    /// # Errors
    /// The reactor cannot watch it.
    pub fn into_async(self) -> io::Result<AsyncChannel> {
        let stream = std::os::unix::net::UnixStream::from(self.0);
        stream.set_nonblocking(true)?;
        Ok(AsyncChannel(UnixStream::from_std(stream)?))
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Channel(fd)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One end of a SOCK_SEQPACKET connection on a tokio reactor. The reactor takes it for a stream, and only waits for it.
#[derive(Debug)]
pub struct AsyncChannel(UnixStream);

impl AsyncChannel {
    /// Sends one message; waits while the other side's queue is full.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub async fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.0
            .async_io(Interest::WRITABLE, || {
                would_block(send(self.0.as_fd(), message, fds))
            })
            .await?
    }

    /// Receives one message, or `None` when the other side hung up. Cancelling it loses nothing.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub async fn receive<T: Message>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        self.0
            .async_io(Interest::READABLE, || would_block(receive(self.0.as_fd())))
            .await?
    }
}

/// What the reactor must see: "not now" outside, everything else inside.
fn would_block<T>(done: Result<T, ChannelError>) -> io::Result<Result<T, ChannelError>> {
    match done {
        Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        done => Ok(done),
    }
}

fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ChannelError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(ChannelError::TooLong);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ChannelError::TooLong);
    }
    match rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    ) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(ChannelError::HungUp),
        Err(errno) => Err(errno.into()),
    }
}

fn receive<T: Message>(socket: BorrowedFd<'_>) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = match rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    ) {
        Ok(received) => received,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    // Drained first: whatever the verdict on the message, its descriptors are ours to close.
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            fds.extend(rights);
        }
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(ChannelError::TooLong);
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let message: T = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?;
    let (expected, found) = (message.descriptors(), fds.len());
    if !expected.contains(&found) {
        let expected = *expected.start();
        return Err(ChannelError::WrongDescriptors { expected, found });
    }
    Ok(Some((message, fds)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use policies::Reason;

    use super::super::protocol::{FromRun, FromWorker, Refusal, Ticket, ToWorker};
    use super::*;

    #[test]
    fn a_message_and_its_descriptors_arrive_together() {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"text").unwrap();
        let ticket = Ticket(7);
        ours.send(&ToWorker::Reload { ticket }, &[file.as_fd()])
            .unwrap();
        let (message, mut fds) = theirs.expect::<ToWorker>(1).unwrap();
        assert!(matches!(message, ToWorker::Reload { ticket: Ticket(7) }));
        let mut same = File::from(fds.remove(0));
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }

    #[test]
    fn hanging_up_is_not_an_error_between_messages() {
        let (ours, theirs) = Channel::pair().unwrap();
        drop(ours);
        assert!(theirs.receive::<ToWorker>().unwrap().is_none());
        assert!(matches!(
            theirs.send(&ToWorker::Stop {}, &[]),
            Err(ChannelError::HungUp)
        ));
    }

    #[test]
    fn unknown_messages_and_fields_are_errors() {
        for text in [
            "{\"to_worker\":\"dance\"}",
            "{\"to_worker\":\"stop\",\"now\":true}",
            "{\"to_worker\":\"retire\",\"id\":1,\"force\":true}",
            "{\"to_worker\":\"retire\"}",
            "{\"to_worker\":\"stop\"} {\"to_worker\":\"stop\"}",
            "[]",
            "stop",
        ] {
            let (ours, theirs) = Channel::pair().unwrap();
            rustix::net::send(&ours.0, text.as_bytes(), SendFlags::empty()).unwrap();
            assert!(
                matches!(
                    theirs.receive::<ToWorker>(),
                    Err(ChannelError::Malformed(_))
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn a_message_of_another_channel_is_an_error() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&ToWorker::Stop {}, &[]).unwrap();
        assert!(matches!(
            theirs.receive::<FromRun>(),
            Err(ChannelError::Malformed(_))
        ));
    }

    #[test]
    fn a_long_message_is_refused_on_both_sides() {
        let (ours, theirs) = Channel::pair().unwrap();
        let long = FromWorker::CannotStart {
            detail: "x".repeat(MAX_MESSAGE),
        };
        assert!(matches!(ours.send(&long, &[]), Err(ChannelError::TooLong)));
        let bytes = serde_json::to_vec(&long).unwrap();
        rustix::net::send(&ours.0, &bytes, SendFlags::empty()).unwrap();
        assert!(matches!(
            theirs.receive::<FromWorker>(),
            Err(ChannelError::TooLong)
        ));
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (ours, theirs) = Channel::pair().unwrap();
        let many = vec![ours.as_fd(); MAX_FDS + 1];
        assert!(matches!(
            ours.send(&ToWorker::Stop {}, &many),
            Err(ChannelError::TooLong)
        ));
        ours.send(&ToWorker::Stop {}, &[ours.as_fd()]).unwrap();
        let error = theirs.expect::<ToWorker>(0).unwrap_err();
        assert!(matches!(
            error,
            ChannelError::WrongDescriptors {
                expected: 0,
                found: 1
            }
        ));
    }

    #[test]
    fn refusals_keep_their_name() {
        let (ours, theirs) = Channel::pair().unwrap();
        let refusal = Refusal {
            reason: Reason::AgentUnknown,
            detail: "no agent acme/nobody".to_owned(),
        };
        ours.send(
            &FromWorker::Admitted {
                ticket: Ticket(3),
                refused: Some(refusal.clone()),
            },
            &[],
        )
        .unwrap();
        let (message, _) = theirs.expect::<FromWorker>(0).unwrap();
        let FromWorker::Admitted {
            ticket: Ticket(3),
            refused: Some(found),
        } = message
        else {
            panic!("{message:?}")
        };
        assert_eq!(found, refusal);
    }

    #[test]
    fn patience_ends_and_a_message_in_time_is_heard() {
        let (ours, theirs) = Channel::pair().unwrap();
        let patience = Duration::from_millis(50);
        let late = theirs.receive_within::<ToWorker>(patience);
        assert!(matches!(late, Err(ChannelError::Late(_))), "{late:?}");
        ours.send(&ToWorker::Stop {}, &[]).unwrap();
        let heard = theirs.receive_within::<ToWorker>(patience).unwrap();
        assert!(matches!(heard, Some((ToWorker::Stop {}, _))));
    }

    #[tokio::test]
    async fn an_async_end_waits_for_the_message() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = theirs.into_async().unwrap();
        let reader = tokio::spawn(async move { theirs.receive::<ToWorker>().await });
        tokio::task::yield_now().await;
        ours.send(&ToWorker::Stop {}, &[]).unwrap();
        let (message, _) = reader.await.unwrap().unwrap().unwrap();
        assert!(matches!(message, ToWorker::Stop {}));
    }
}
