//! A secret from standard input: never from the arguments, which every process of the host can read.
//! Used by `vault put` and `vault rotate`.
//! INVARIANT: the terminal's echo is restored however reading ends, short of being killed.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::Failure;
use super::failure::ArgumentError;

/// The longest secret that is read; the vault's own limit is smaller.
const MAX_SECRET: usize = 64 * 1024;

/// Reads a secret: typed without echo on a terminal, else everything up to the end of input. One line end at its
/// end is dropped, since `echo` and editors add one.
pub(super) fn read(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let stdin = io::stdin();
    let mut secret = if stdin.is_terminal() {
        prompt(what)?
    } else {
        read_all()?
    };
    if secret.last() == Some(&b'\n') {
        secret.pop();
        if secret.last() == Some(&b'\r') {
            secret.pop();
        }
    }
    match secret.len() {
        0 => Err(ArgumentError::Secret("the secret on standard input is empty").into()),
        length if length > MAX_SECRET => {
            Err(ArgumentError::Secret("the secret is longer than 64 KiB").into())
        }
        _ => Ok(secret),
    }
}

fn read_all() -> Result<Zeroizing<Vec<u8>>, Failure> {
    // The capacity is there from the start, so that growing leaves no copies behind.
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 3));
    io::stdin()
        .lock()
        .take(MAX_SECRET as u64 + 3)
        .read_to_end(&mut secret)
        .map_err(failed)?;
    Ok(secret)
}

fn prompt(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let _ = write!(io::stderr().lock(), "secret of {what} (not shown): ");
    let quiet = Quiet::new().map_err(failed)?;
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 3));
    let mut byte = [0_u8];
    let mut stdin = io::stdin().lock();
    while secret.len() <= MAX_SECRET && stdin.read(&mut byte).map_err(failed)? == 1 {
        let [byte] = byte;
        secret.push(byte);
        if byte == b'\n' {
            break;
        }
    }
    drop(quiet);
    let _ = writeln!(io::stderr().lock());
    Ok(secret)
}

/// A terminal that does not echo, until dropped.
struct Quiet {
    before: Termios,
}

impl Quiet {
    fn new() -> io::Result<Quiet> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Quiet { before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

fn failed(source: io::Error) -> Failure {
    Failure::Io {
        path: "standard input".into(),
        source,
    }
}
