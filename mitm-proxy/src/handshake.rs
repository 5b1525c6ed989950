//! The TLS handshake with upstream: verified for the name that was decided on, and as the connection asks besides.
//! Place on the path: between the TCP connection and the first byte of the call.
//! INVARIANT: no byte of a call is sent to a peer that was not verified; a client certificate is read from the vault here alone.

use std::sync::{Arc, PoisonError};

use policies::Reason;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tls::{HTTP_1_1, peer, verify};
use crate::upstream::{Departure, Failed, Upstream};

/// Whether a failure is about who somebody is, so that no other address would change it.
pub(crate) fn is_about_identity(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ClientCertificateRequired
            | Reason::CredentialUnavailable
            | Reason::UpstreamCertificate
            | Reason::UpstreamPin
    )
}

/// Upstream wants to know who we are, and was not told to its liking.
pub(crate) fn client_certificate(departure: &Departure<'_>) -> Failed {
    let endpoint = departure.endpoint;
    let detail = match &departure.identity {
        Some(lent) => format!(
            "{endpoint} does not accept the client certificate {} of this connection.",
            lent.credential().0
        ),
        None => format!(
            "{endpoint} asked for a client certificate, this connection has none, and the call was not answered; an operator \
             can name one with client_certificate = \"NAME\", filled by `sluice vault put TENANT/NAME`."
        ),
    };
    Failed::new(Reason::ClientCertificateRequired, detail)
}

impl Upstream {
    /// Shakes hands; says also whether upstream asked who we are.
    pub(crate) async fn verified(
        &self,
        stream: TcpStream,
        departure: &Departure<'_>,
    ) -> Result<(TlsStream<TcpStream>, bool), Failed> {
        let endpoint = departure.endpoint;
        let name = ServerName::try_from(endpoint.host.to_string()).map_err(|_| {
            Failed::new(
                Reason::UpstreamCertificate,
                format!("{endpoint} cannot be verified by name."),
            )
        })?;
        let mut tls = self.config(departure)?;
        if departure.socket.is_some() {
            Arc::make_mut(&mut tls).alpn_protocols = vec![HTTP_1_1.to_vec()];
        }
        let (shaken, asked) = peer::watched(TlsConnector::from(tls).connect(name, stream)).await;
        match shaken {
            Ok(stream) => Ok((stream, asked)),
            Err(error) => Err(match verify::upstream_reason(&error, asked) {
                Reason::ClientCertificateRequired => client_certificate(departure),
                reason => Failed::new(
                    reason,
                    format!("The TLS handshake with {endpoint} failed: {error}."),
                ),
            }),
        }
    }

    fn config(&self, departure: &Departure<'_>) -> Result<Arc<ClientConfig>, Failed> {
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner);
        let tls = tls.clone();
        let Some(asked) = departure.peer.as_deref() else {
            return Ok(tls.usual);
        };
        let unusable = |error: &dyn std::fmt::Display| {
            let what = asked.client_certificate();
            let what = what.map_or_else(String::new, |id| format!(" {id}"));
            let detail =
                format!("The client certificate{what} of this connection cannot be used: {error}.");
            Failed::new(Reason::CredentialUnavailable, detail)
        };
        let shown = match &departure.identity {
            None => None,
            Some(lent) => {
                let identity = lent.open().map_err(|error| unusable(&error))?;
                Some(peer::certified(&identity).map_err(|error| unusable(&error))?)
            }
        };
        let narrowed = peer::narrowed(&tls.usual, &tls.roots, asked, shown).map_err(|error| {
            let detail = format!("{} cannot be verified: {error}.", departure.endpoint);
            Failed::new(Reason::UpstreamCertificate, detail)
        })?;
        Ok(Arc::new(narrowed))
    }
}
