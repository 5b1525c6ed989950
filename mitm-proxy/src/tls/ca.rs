//! The certificate authority of one tenant: a P-256 key that lives in the vault, and the root that agents trust.
//! Place on the path: signs the leaf that a handshake needs.
//! INVARIANT: the CA key never serves a handshake itself and never leaves this process unsealed.
//!
//! Why not hudsucker's `CertificateAuthority`, which the product's card names: its implementation hands out leaves that
//! reuse the CA's private key, live a year, and carry IP literals as DNS names; its trait asks for a `ServerConfig` by
//! authority alone, so one cache would serve every tenant. A tenant is exactly the boundary that a leaf must not cross, so
//! the trait does not fit and rcgen is used directly. The rest of hudsucker (its engine tunnels what it does not
//! understand) has no place in a path that fails closed.

use std::time::{Duration, SystemTime};

use policies::{Host, Tenant};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use vault::{SealedError, Secret, VaultError};

/// Life of a root: ten years. Agents' trust stores are rebuilt at each launch, so that the root can be replaced long before;
/// a shorter life would only add a day on which everything stops.
const ROOT_LIFE: Duration = Duration::from_secs(3653 * 24 * 3600);
/// Life of a leaf: 48 hours, of which it is handed out for at most 24 (see `leaf`).
const LEAF_LIFE: Duration = Duration::from_secs(48 * 3600);
/// Certificates start this long ago, for a clock that was just stepped back.
const BACKDATE: Duration = Duration::from_secs(300);
/// Why there is no CA for a tenant.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// rcgen or the crypto provider would not make or sign a certificate.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// No randomness for a serial number.
    #[error("no randomness: {0}")]
    Entropy(getrandom::Error),
    /// There is no former root whose time could end.
    #[error("tenant {0} has one root only: there is no rotation to finish")]
    NotRotating(Tenant),
    /// The roots could not be put where workloads find them.
    #[error("the roots cannot be published: {0}")]
    Publish(std::io::Error),
    /// A rotation began that is not finished.
    #[error(
        "tenant {0} has two roots already: finish that rotation first (`sluice ca rotate {0} --finish`)"
    )]
    Rotating(Tenant),
    /// What the vault returned is not a key and a certificate that this version wrote.
    #[error("the stored CA of tenant {0} is not readable")]
    Stored(Tenant),
    /// Workloads live that trust nothing but the former root.
    #[error(
        "{count} workloads of tenant {tenant} trust nothing but the former root: start them anew, or add --force, which makes their calls fail"
    )]
    StillTrusted {
        /// Whose.
        tenant: Tenant,
        /// How many.
        count: usize,
    },
    /// rustls would not use the certificate.
    #[error("cannot use the certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The vault could not be read or written.
    #[error("the vault refused the CA key: {0}")]
    Vault(#[from] VaultError),
}

impl From<SealedError<CaError>> for CaError {
    fn from(error: SealedError<CaError>) -> Self {
        match error {
            SealedError::Make(error) => error,
            SealedError::Vault(error) => Self::Vault(error),
        }
    }
}

/// One root of a tenant and its key, opened.
pub(crate) struct Authority {
    generation: u32,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf certificate and its own key.
pub(crate) struct Leaf {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Authority {
    /// Opens a root from its sealed form.
    pub(super) fn open(tenant: &Tenant, generation: u32, stored: &[u8]) -> Result<Self, CaError> {
        let (key, certificate) = unpack(stored).ok_or_else(|| CaError::Stored(tenant.clone()))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(key),
            &PKCS_ECDSA_P256_SHA256,
        )?;
        let issuer = Issuer::new(root_params(tenant, generation), key);
        Ok(Self {
            generation,
            certificate: CertificateDer::from(certificate),
            issuer,
        })
    }

    /// Which of the tenant's roots this is, from 1.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The root as PEM, for trust stores.
    pub(crate) fn pem(&self) -> String {
        use std::fmt::Write as _;
        let encoded = base64(&self.certificate);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(64));
            // NOTE: writing to a String cannot fail.
            let _ = writeln!(pem, "{line}");
            rest = tail;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }

    /// Signs a leaf for `name`, with a key of its own.
    pub(crate) fn leaf(&self, name: &Host) -> Result<Leaf, CaError> {
        let text = name.to_string();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![match text.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(text.as_str().try_into()?),
        }];
        // X.520 bounds a common name at 64 characters; clients read the SAN, so that a longer name needs none.
        params.distinguished_name = rcgen::DistinguishedName::new();
        if text.len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, text);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        set_life(&mut params, LEAF_LIFE);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }
}

/// A new root in its sealed form.
pub(super) fn make_root(tenant: &Tenant, generation: u32) -> Result<Secret, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = root_params(tenant, generation);
    params.serial_number = Some(serial()?);
    set_life(&mut params, ROOT_LIFE);
    let certificate = params.self_signed(&key)?;
    Ok(Secret::new(pack(&key.serialize_der(), certificate.der())))
}

/// What of a root is the same each time it is opened: subject, constraints, usages. Roots of one tenant differ in their
/// name, so that a client that has two of them finds the right one by it.
///
/// Name constraints are absent: wildcard connections would need a new root, and so a new trust store, at each reload.
fn root_params(tenant: &Tenant, generation: u32) -> CertificateParams {
    let mut name: String = format!("Sluice CA of {tenant}").chars().take(64).collect();
    if generation > 1 {
        let number = format!(" {generation}");
        name = name.chars().take(64 - number.len()).collect::<String>() + &number;
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Sluice");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let start = SystemTime::now()
        .checked_sub(BACKDATE)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    params.not_before = start.into();
    params.not_after = (start + life).into();
}

/// 16 random bytes; positive, as RFC 5280 section 4.1.2.2 asks.
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(CaError::Entropy)?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sealed form: length of the PKCS#8 key (u32, big endian), the key, the root certificate (DER).
fn pack(key: &[u8], certificate: &[u8]) -> Vec<u8> {
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), key, certificate].concat()
}

fn unpack(stored: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (length, rest) = stored.split_first_chunk::<4>()?;
    let (key, certificate) =
        rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    Some((key.to_vec(), certificate.to_vec()))
}

/// Standard base64 with padding (RFC 4648 section 4); small enough not to need a dependency.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0_u32, |sum, (at, byte)| {
            sum | (u32::from(*byte) << (16 - 8 * at))
        });
        for at in 0..4 {
            let index = usize::try_from((group >> (18 - 6 * at)) & 0x3f).unwrap_or(0);
            text.push(
                if at <= chunk.len() {
                    ALPHABET.get(index).copied().unwrap_or(b'=')
                } else {
                    b'='
                }
                .into(),
            );
        }
    }
    text
}
