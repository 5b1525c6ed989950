//! The command line's end of the control socket.
//! Blocking: a command asks one thing and prints the answer.
//! INVARIANT: no daemon is a case of its own, so that a command can decide to work without one.

use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroizing;

use super::protocol::{ErrorReply, Reply, Request};

/// A connection to the daemon, good for one request.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects; `None` if no daemon listens there.
    ///
    /// # Errors
    /// The socket exists but may not be used.
    pub fn connect(path: &Path) -> Result<Option<Client>, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Some(Client {
                path: path.to_owned(),
                stream,
            })),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(source) => Err(ClientError::Connect {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Connects to a daemon that must be there.
    ///
    /// # Errors
    /// There is none, or the socket may not be used.
    pub fn require(path: &Path) -> Result<Client, ClientError> {
        Client::connect(path)?.ok_or_else(|| ClientError::NoDaemon {
            path: path.to_owned(),
        })
    }

    /// Asks, and hands each part of the answer to `each` as it arrives.
    ///
    /// # Errors
    /// The daemon refused, or the connection broke before the answer was complete.
    pub fn ask<E: From<ClientError>>(
        self,
        request: &Request,
        mut each: impl FnMut(Part) -> Result<(), E>,
    ) -> Result<(), E> {
        let broken = |source| ClientError::Broken {
            path: self.path.clone(),
            source,
        };
        let mut line =
            Zeroizing::new(serde_json::to_vec(request).map_err(|error| broken(error.into()))?);
        line.push(b'\n');
        // A peer that is refused is answered before its request is read: writing then fails, and the answer says why.
        let written = (&self.stream).write_all(&line);
        for line in BufReader::new(&self.stream).lines() {
            let line = line.map_err(broken)?;
            let reply: Reply = serde_json::from_str(&line).map_err(|error| broken(error.into()))?;
            match reply {
                Reply::Chunk(text) => each(Part::Chunk(text))?,
                Reply::Done {} => return Ok(()),
                Reply::Error(error) => return Err(ClientError::Refused(error).into()),
                Reply::Item(value) => each(Part::Item(value))?,
            }
        }
        let source = written
            .err()
            .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
        Err(broken(source).into())
    }

    /// Asks for a single object.
    ///
    /// # Errors
    /// As [`Client::ask`]; an answer of another shape counts as a broken connection.
    pub fn ask_one<T: DeserializeOwned>(self, request: &Request) -> Result<T, ClientError> {
        let path = self.path.clone();
        let mut found = None;
        self.ask(request, |part| {
            if let Part::Item(value) = part {
                found = Some(value);
            }
            Ok::<(), ClientError>(())
        })?;
        let value = found.unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|error| ClientError::Broken {
            path,
            source: error.into(),
        })
    }
}

/// A part of an answer.
#[derive(Debug)]
pub enum Part {
    /// Text, as it is.
    Chunk(String),
    /// An object.
    Item(Value),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection broke.
    #[error("the daemon at {} hung up before it had answered: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The socket may not be used.
    #[error("cannot connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Nobody listens.
    #[error("no daemon listens on {}; start one with `sluice daemon`, or name another with --runtime-dir", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon said no.
    #[error("{0}")]
    Refused(ErrorReply),
}
