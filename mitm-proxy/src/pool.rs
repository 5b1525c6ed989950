//! Upstream connections kept open between calls, never shared between agents.
//! Place on the path: upstream takes a connection from here and the end of an answer's body gives it back.
//! INVARIANT: the key holds the agent: what one agent did to a connection is never seen by another.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use policies::{AgentId, Endpoint, Peer};

use crate::body::Body;
use crate::names::real::Dialable;

/// Whose connection, to what, where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) agent: AgentId,
    pub(crate) endpoint: Endpoint,
    pub(crate) address: Dialable,
    pub(crate) secure: bool,
    pub(crate) prior_knowledge: bool,
    /// What the connection asks of TLS and shows in it, where it does: such a connection is shared with no other.
    pub(crate) peer: Option<Pinned>,
}

/// A connection's demands, and the version of the client certificate that it was lent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pinned {
    pub(crate) peer: Arc<Peer>,
    pub(crate) shown: Option<u32>,
}

/// A connection that can send a request now.
#[derive(Debug)]
pub(crate) enum Sender {
    /// One call at a time.
    Http1(http1::SendRequest<Body>),
    /// Many at once; the pool keeps a clone.
    Http2(http2::SendRequest<Body>),
}

/// A connection on loan; dropping it closes it (HTTP/1) or only forgets it (HTTP/2).
#[derive(Debug)]
pub(crate) struct Borrowed {
    pub(crate) sender: Sender,
    /// It was idle in the pool before: upstream may have closed it in that moment.
    pub(crate) reused: bool,
    /// Upstream wanted to know who we are when it was opened.
    pub(crate) asked: bool,
    key: Key,
    pool: Weak<Shelves>,
    most: usize,
}

/// All kept connections.
#[derive(Debug, Default)]
pub(crate) struct Pool(Arc<Shelves>);

#[derive(Debug, Default)]
struct Shelves(Mutex<HashMap<Key, Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    /// Last in, first out: the warmest connection is used, the coldest times out.
    idle: Vec<(Instant, http1::SendRequest<Body>)>,
    shared: Option<http2::SendRequest<Body>>,
}

impl Pool {
    /// A connection for `key` that is open and idle, if there is one.
    pub(crate) fn take(&self, key: &Key, idle: Duration, most: usize) -> Option<Borrowed> {
        let mut shelves = self.0.lock();
        let shelf = shelves.get_mut(key)?;
        if let Some(shared) = &shelf.shared {
            if shared.is_closed() {
                shelf.shared = None;
            } else {
                return Some(self.lend(Sender::Http2(shared.clone()), key, true, most));
            }
        }
        while let Some((since, sender)) = shelf.idle.pop() {
            if since.elapsed() < idle && !sender.is_closed() && sender.is_ready() {
                return Some(self.lend(Sender::Http1(sender), key, true, most));
            }
        }
        None
    }

    /// Takes a new connection into account; an HTTP/2 one is shared from now on.
    pub(crate) fn adopt(&self, sender: Sender, key: &Key, most: usize) -> Borrowed {
        if let Sender::Http2(shared) = &sender {
            self.0.lock().entry(key.clone()).or_default().shared = Some(shared.clone());
        }
        self.lend(sender, key, false, most)
    }

    /// Closes what has been idle for too long; called now and then.
    pub(crate) fn sweep(&self, idle: Duration) {
        self.0.lock().retain(|_, shelf| {
            shelf
                .idle
                .retain(|(since, sender)| since.elapsed() < idle && !sender.is_closed());
            if shelf
                .shared
                .as_ref()
                .is_some_and(http2::SendRequest::is_closed)
            {
                shelf.shared = None;
            }
            !shelf.idle.is_empty() || shelf.shared.is_some()
        });
    }

    /// Closes everything; used when what upstream may be changes.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    fn lend(&self, sender: Sender, key: &Key, reused: bool, most: usize) -> Borrowed {
        Borrowed {
            sender,
            reused,
            asked: false,
            key: key.clone(),
            pool: Arc::downgrade(&self.0),
            most,
        }
    }
}

impl Shelves {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Shelf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, key: Key, sender: http1::SendRequest<Body>, most: usize) {
        let mut shelves = self.lock();
        let shelf = shelves.entry(key).or_default();
        if shelf.idle.len() < most {
            shelf.idle.push((Instant::now(), sender));
        }
    }
}

impl Borrowed {
    /// The answer's body has ended in order: the connection can serve the next call.
    pub(crate) fn give_back(self) {
        let Sender::Http1(mut sender) = self.sender else {
            return;
        };
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => pool.put(self.key, sender, self.most),
            Poll::Ready(Err(_)) => {}
            // hyper has not seen the end itself yet, or the request's body is still being sent.
            Poll::Pending => {
                let pool = Arc::downgrade(&pool);
                let ready = async move {
                    let ready = tokio::time::timeout(
                        Duration::from_secs(5),
                        poll_fn(|cx| sender.poll_ready(cx)),
                    )
                    .await;
                    if let (Ok(Ok(())), Some(pool)) = (ready, pool.upgrade()) {
                        pool.put(self.key, sender, self.most);
                    }
                };
                tokio::spawn(ready);
            }
        }
    }
}
