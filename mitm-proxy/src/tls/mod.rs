//! TLS on both legs: the tenant's CA and leaves towards the agent, verification towards upstream.
//! Place on the path: between the accepted socket and the first request, and again before the call leaves.
//! INVARIANT: a leaf is only ever signed by the CA of the connection's own tenant; upstream is always verified.

pub(crate) mod ca;
pub(crate) mod leaf;
pub(crate) mod peer;
pub(crate) mod roots;
pub(crate) mod verify;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use ca::CaError;
pub use roots::Root;

/// ALPN of HTTP/2.
pub(crate) const H2: &[u8] = b"h2";
/// ALPN of HTTP/1.1.
pub(crate) const HTTP_1_1: &[u8] = b"http/1.1";

#[cfg(test)]
mod hello;

/// The one crypto provider of the path; never the process default, which anyone may set.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
