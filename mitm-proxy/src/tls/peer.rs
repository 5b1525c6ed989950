//! What a connection asks of its upstream's TLS besides the usual verification: pins, and a client certificate to show.
//! Place on the path: the handshake with upstream; what it finds is a named refusal before a byte of the call is sent.
//! INVARIANT: a pin is looked for in the chain that was verified, never in what upstream merely sent; what one connection shows is resumed by no other.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use policies::{Peer, Pin};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
    ServerName, UnixTime,
};
use vault::{Identity, KeyForm};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, spki_for_anchor};

use super::provider;

/// A verified chain in which no pinned key is.
#[derive(Debug, thiserror::Error)]
#[error("no key of the verified chain is pinned by this connection")]
pub(crate) struct NotPinned;

tokio::task_local! {
    /// Whether upstream asked for a client certificate in the handshake of this task.
    static ASKED: Cell<bool>;
}

/// Runs a handshake, and says whether upstream asked for a client certificate in it.
pub(crate) async fn watched<T>(handshake: impl Future<Output = T>) -> (T, bool) {
    let watched = async {
        let done = handshake.await;
        (done, ASKED.with(Cell::get))
    };
    ASKED.scope(Cell::new(false), watched).await
}

/// Answers an upstream that asks who we are: with what the connection was lent, or with nothing. Notes that it asked.
pub(crate) struct Shown(pub(crate) Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // Without a watch nobody wants to know.
        let _ = ASKED.try_with(|asked| asked.set(true));
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown(..)")
    }
}

/// The chain and the key as the handshake uses them. The vault's copy is wiped when `identity` is dropped; the library has one
/// of its own for as long as the connection lives, and wipes it then.
pub(crate) fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, Error> {
    let der = identity.key.expose();
    let key: PrivateKeyDer<'_> = match identity.form {
        KeyForm::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
        KeyForm::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
        KeyForm::Sec1 => PrivateSec1KeyDer::from(der).into(),
    };
    let chain = identity.chain.iter().cloned().map(CertificateDer::from);
    let certified = CertifiedKey::new(chain.collect(), any_supported_type(&key)?);
    certified.keys_match()?;
    Ok(Arc::new(certified))
}

/// The usual configuration, narrowed to what the connection pins, and with what it shows. Nothing is resumed with it: a session
/// would stand for a verification, or for a proof of who we are, that another connection made.
pub(crate) fn narrowed(
    usual: &ClientConfig,
    roots: &Arc<RootCertStore>,
    peer: &Peer,
    shown: Option<Arc<CertifiedKey>>,
) -> Result<ClientConfig, Error> {
    let mut config = usual.clone();
    config.resumption = Resumption::disabled();
    config.client_auth_cert_resolver = Arc::new(Shown(shown));
    if !peer.pins().is_empty() {
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(Pinned {
                usual,
                roots: Arc::clone(roots),
                pins: peer.pins().to_vec(),
            }));
    }
    Ok(config)
}

/// The usual verification, and then the pins.
#[derive(Debug)]
struct Pinned {
    usual: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    pins: Vec<Pin>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.usual
                .verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        if self.is_pinned(end_entity, intermediates, now) {
            Ok(verified)
        } else {
            let why = CertificateError::Other(OtherError(Arc::new(NotPinned)));
            Err(Error::InvalidCertificate(why))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

impl Pinned {
    /// Whether some chain from the certificate to a root goes through a pinned key. A certificate that upstream sends along
    /// but that signs nothing here is in no such chain: whoever has another authority's certificate cannot buy the pin with it.
    fn is_pinned(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> bool {
        let Ok(end_entity) = EndEntityCert::try_from(end_entity) else {
            return false;
        };
        let pinned = |path: &VerifiedPath<'_>| {
            let mut keys = vec![Pin::of(&path.end_entity().subject_public_key_info())];
            for certificate in path.intermediate_certificates() {
                keys.push(Pin::of(&certificate.subject_public_key_info()));
            }
            keys.push(Pin::of(&spki_for_anchor(path.anchor())));
            if keys.iter().any(|key| self.pins.contains(key)) {
                Ok(())
            } else {
                // The path builder tries the next one.
                Err(webpki::Error::UnknownIssuer)
            }
        };
        let algorithms = provider().signature_verification_algorithms;
        let usage = KeyUsage::server_auth();
        end_entity
            .verify_for_usage(
                algorithms.all,
                &self.roots.roots,
                intermediates,
                now,
                usage,
                None,
                Some(&pinned),
            )
            .is_ok()
    }
}
