//! ClientHellos that nobody would send, to the acceptor that reads them: arbitrary, damaged, in pieces.
//! Place on the path: a test beside it; `accept` asks the same acceptor for the server name.
//! INVARIANT: nothing panics, and where the bytes are cut does not change which name is read.

use std::sync::Arc;

use policies::Host;
use proptest::prelude::*;
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;

use super::provider;

fn hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The name that is read, as `accept` reads it; an error where the hello is not taken, and nothing where it is not all there.
fn read(pieces: &[&[u8]]) -> Result<Option<Option<Host>>, ()> {
    let mut acceptor = Acceptor::default();
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let before = rest.len();
            acceptor.read_tls(&mut rest).map_err(drop)?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let name = hello.server_name();
                    return Ok(Some(name.and_then(|name| Host::parse(name).ok())));
                }
                Err(_) => return Err(()),
            }
            if rest.len() == before {
                return Ok(None);
            }
        }
    }
    Ok(None)
}

#[test]
fn a_plain_hello_is_read() {
    let host = Host::parse("api.pay.test").unwrap();
    let bytes = hello("api.pay.test");
    assert_eq!(read(&[&bytes]), Ok(Some(Some(host.clone()))));
    let (one, rest) = bytes.split_at(1);
    assert_eq!(read(&[one, rest]), Ok(Some(Some(host))));
}

proptest! {
    #[test]
    fn fuzz_client_hellos(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        end in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = hello("api.pay.test");
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()));
        }
        let (one, two) = bytes.split_at(cut.index(bytes.len() + 1));
        let singly: Vec<&[u8]> = bytes.chunks(1).collect();
        let whole = read(&[&bytes]);
        prop_assert_eq!(read(&[one, two]), whole.clone());
        prop_assert_eq!(read(&singly), whole);
    }

    #[test]
    fn fuzz_bytes_that_are_no_hello(bytes in prop::collection::vec(any::<u8>(), 0..300), handshake in any::<bool>()) {
        let mut bytes = bytes;
        if handshake {
            bytes.splice(0..0, [0x16, 3, 1, 0, 200]);
        }
        let _ = read(&[&bytes]);
    }
}
