//! Verification of upstream: which roots count, and what a failed handshake is called.
//! Place on the path: the last check before a credential leaves.
//! INVARIANT: there is no way to switch verification off; a fixed address changes where, never who.

use std::sync::Arc;

use policies::Reason;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

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

/// The client configuration for upstream: system roots and `extra`, HTTP/2 preferred.
pub(crate) fn client_config(
    extra: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, RootsError> {
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
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    Ok(Arc::new(config))
}

/// What a failed handshake with upstream is called.
pub(crate) fn upstream_reason(error: &std::io::Error) -> Reason {
    match tls_error(error) {
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

fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}
