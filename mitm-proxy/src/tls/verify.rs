//! Verification of upstream: which roots count, and what a failed handshake is called.
//! Place on the path: the last check before a credential leaves.
//! INVARIANT: there is no way to switch verification off; a fixed address changes where, never who.

use std::sync::Arc;

use policies::Reason;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

use super::peer::{NotPinned, Shown};
use super::{H2, HTTP_1_1, provider};

/// Why upstream cannot be verified at all.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// An extra root is not a certificate.
    #[error("extra root number {number} is not a usable certificate: {source}")]
    ExtraRoot {
        /// Position in the configured list, from 1.
        number: usize,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The crypto provider has no usable protocol version.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// How upstreams are verified.
#[derive(Clone)]
pub(crate) struct Verification {
    /// For connections that ask for nothing besides.
    pub(crate) usual: Arc<ClientConfig>,
    /// What a verified chain ends in.
    pub(crate) roots: Arc<RootCertStore>,
}

/// The client configuration for upstream: system roots and `extra`, HTTP/2 preferred.
pub(crate) fn verification(extra: &[CertificateDer<'static>]) -> Result<Verification, RootsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    let (added, unusable) = roots.add_parsable_certificates(system.certs);
    if added == 0 {
        tracing::warn!(unusable, errors = ?system.errors, "no system roots: only extra_roots can verify upstream");
    }
    for (at, root) in extra.iter().enumerate() {
        roots
            .add(root.clone())
            .map_err(|source| RootsError::ExtraRoot {
                number: at + 1,
                source,
            })?;
    }
    let roots = Arc::new(roots);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(&roots))
        .with_client_cert_resolver(Arc::new(Shown(None)));
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    let usual = Arc::new(config);
    Ok(Verification { usual, roots })
}

/// What a failed handshake with upstream is called. `asked`: it wanted to know who we are, which comes after it was verified;
/// whatever it then says no to is that.
pub(crate) fn upstream_reason(error: &std::io::Error, asked: bool) -> Reason {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
            if other.0.is::<NotPinned>() =>
        {
            Reason::UpstreamPin
        }
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            Reason::ClientCertificateRequired
        }
        Some(rustls::Error::AlertReceived(_)) if asked => Reason::ClientCertificateRequired,
        Some(
            rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::UnsupportedNameType
            | rustls::Error::InvalidCertRevocationList(_),
        ) => Reason::UpstreamCertificate,
        _ => Reason::UpstreamUnreachable,
    }
}

/// What a failed handshake with an agent is called: an alert about our certificate means that it does not trust the CA.
pub(crate) fn agent_reason(error: &std::io::Error) -> Reason {
    use rustls::AlertDescription as Alert;
    match tls_error(error) {
        Some(rustls::Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::CertificateExpired
            | Alert::AccessDenied,
        )) => Reason::TlsRefusedByClient,
        // The name that it shows is served like any other; the one that it hides is not to be had (RFC 9849 section 6.1.6).
        Some(rustls::Error::AlertReceived(Alert::EncryptedClientHelloRequired)) => {
            Reason::EncryptedHello
        }
        _ => Reason::TlsHandshake,
    }
}

/// Whether upstream broke off because it was not told who we are, or not to its liking. In TLS 1.3 it says so after the
/// handshake, so that the call is under way: nothing of it was answered.
pub(crate) fn wants_certificate(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(current) = cause {
        let io = current.downcast_ref::<std::io::Error>();
        if let Some(error) = io.and_then(tls_error) {
            return matches!(error, rustls::Error::AlertReceived(_));
        }
        cause = current.source();
    }
    false
}

fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}
