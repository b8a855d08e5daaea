//! A certificate authority: certificate and key that belong together and may sign.

use std::sync::Arc;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, GeneralSubtree, IsCa,
    KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::encode::{self, EncodeError, IssuerName};
use super::inspect::certificates;
use super::key::{KeyElsewhere, Signer};
use super::name::Name;
use super::public_key::{KeyType, verify_signature};
use super::{PrivateKey, Serial, offset_date_time, pem_block, sha256_hex};

/// The most certificates that an imported chain may hold.
const CHAIN_LIMIT: usize = 8;

/// A CA that can sign certificates and CRLs.
#[derive(Clone, Debug)]
pub struct CertificateAuthority {
    /// Its certificate, then that of each CA above it, up to the root.
    chain: Vec<CertificateDer<'static>>,
    signer: Arc<dyn Signer>,
    facts: CaFacts,
}

/// What a CA certificate says, as far as issuing and revoking need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFacts {
    /// The subject Name, DER: the issuer of leaves and CRLs, byte for byte.
    pub subject_der: Vec<u8>,
    /// Subject key identifier: the AKI of leaves and CRLs.
    pub key_id: Vec<u8>,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
    /// Its serial number.
    pub serial: Serial,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_der: Vec<u8>,
    /// SHA-256 of the root's certificate, lower-case hex.
    pub root_fingerprint: String,
    /// The type of its key.
    pub key_type: KeyType,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity; of the CA above it, when that ends earlier.
    pub not_after: Timestamp,
}

/// What a CA certificate that is made here shall say.
#[derive(Clone, Debug)]
pub struct CaParams<'a> {
    /// Subject.
    pub subject: &'a Name,
    /// Serial number.
    pub serial: Serial,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// How many CAs may follow below it (RFC 5280 section 4.2.1.9).
    pub path_length: u8,
    /// What names may stand below it.
    pub name_constraints: &'a NameConstraints,
    /// URL of the CRL that would revoke it; for a CA below another.
    pub crl_url: Option<&'a str>,
}

/// The names that a CA may sign for (RFC 5280 section 4.2.1.10). All empty: any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameConstraints {
    /// Of each kind of name that is mentioned here, only these.
    pub permitted: Vec<Subtree>,
    /// None of these.
    pub excluded: Vec<Subtree>,
}

/// A part of a name space. Not of e-mail addresses or URIs: rustls refuses every certificate that holds
/// such a name below a CA with such a constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subtree {
    /// A domain with all its subdomains.
    Dns(String),
    /// A range of addresses, as `10.0.0.0/8`.
    Ip(String),
}

/// Why a CA can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate is not one.
    #[error("failed to read CA certificate: {0}")]
    Certificate(String),
    /// The key is not one.
    #[error(transparent)]
    Key(#[from] super::key::InvalidKey),
    /// The key is another certificate's.
    #[error("the CA key does not belong to the CA certificate")]
    KeyMismatch,
    /// Where the key lies is not said in a way that is understood.
    #[error("{0}")]
    KeyPlace(String),
    /// A rule of RFC 5280 is broken.
    #[error("not a usable CA certificate: {0}")]
    Unusable(&'static str),
    /// A certificate of the chain does not sign the one before it.
    #[error("not a usable chain: certificate {position} ({subject}): {why}")]
    Chain {
        /// Counted from 1, the CA itself.
        position: usize,
        /// Its subject.
        subject: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A range that is none.
    #[error("name constraint {0:?} is not a range of IP addresses such as 10.0.0.0/8")]
    IpRange(String),
    /// Encoding or signing failed.
    #[error("failed to make CA certificate")]
    Encode(#[from] EncodeError),
}

impl CertificateAuthority {
    /// Makes a self-signed CA.
    pub fn self_signed(
        params: &CaParams<'_>,
        signer: Arc<dyn Signer>,
    ) -> Result<Self, AuthorityError> {
        let name_der = params.subject.to_der();
        let issuer = IssuerName { name_der: &name_der, key_id: None };
        let public_key = signer.public_key_der();
        let der = encode::certificate(params.rcgen()?, &name_der, &public_key, &issuer, &*signer)?;
        Self::new(vec![der], signer)
    }

    /// Makes a CA below this one.
    pub fn sign_authority(
        &self,
        params: &CaParams<'_>,
        signer: Arc<dyn Signer>,
    ) -> Result<Self, AuthorityError> {
        let (name_der, public_key) = (params.subject.to_der(), signer.public_key_der());
        let der = encode::certificate(
            params.rcgen()?,
            &name_der,
            &public_key,
            &self.issuer(),
            self.signer(),
        )?;
        Self::new([&[der][..], &self.chain].concat(), signer)
    }

    /// Reads chain and key as a Secret holds them, and makes the checks of `new`.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, AuthorityError> {
        Self::new(read_chain(chain)?, Arc::new(PrivateKey::from_pem(key)?))
    }

    /// Takes a CA whose key is kept elsewhere: it can be trusted, and signs nothing.
    pub fn without_key(chain: Vec<CertificateDer<'static>>) -> Result<Self, AuthorityError> {
        let facts = read_facts(&chain, None)?;
        let signer = Arc::new(KeyElsewhere { key_type: facts.key_type });
        Ok(Self { chain, signer, facts })
    }

    /// Takes a CA whose key is in a token, which need not be there now: `signer` is made from what the
    /// certificate says of it, its type and its SubjectPublicKeyInfo.
    pub fn with_remote_key(
        chain: Vec<CertificateDer<'static>>,
        signer: impl FnOnce(KeyType, Vec<u8>) -> Arc<dyn Signer>,
    ) -> Result<Self, AuthorityError> {
        let facts = read_facts(&chain, None)?;
        let (_, certificate) = X509Certificate::from_der(&chain[0])
            .map_err(|error| AuthorityError::Certificate(error.to_string()))?;
        let signer = signer(facts.key_type, certificate.public_key().raw.to_vec());
        Ok(Self { chain, signer, facts })
    }

    /// Takes a CA whose certificate comes first in the chain and whose root comes last. Checks that key
    /// and certificate belong together, that it may sign certificates and CRLs, and that each certificate
    /// of the chain is signed by the next one.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        signer: Arc<dyn Signer>,
    ) -> Result<Self, AuthorityError> {
        let facts = read_facts(&chain, Some(&signer.public_key_der()))?;
        Ok(Self { chain, signer, facts })
    }

    /// What the certificate says.
    pub fn facts(&self) -> &CaFacts {
        &self.facts
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// Its certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        pem_block("CERTIFICATE", self.certificate())
    }

    /// Its certificate and those of the CAs above it, up to the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The same as PEM.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| pem_block("CERTIFICATE", der)).collect()
    }

    /// The root: what verifiers trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().expect("a chain holds the CA itself")
    }

    /// What a client presents beside its own certificate: every CA but the root.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.chain[..self.chain.len() - 1]
    }

    /// What a client presents, PEM: its certificate, then the CAs between it and the root.
    pub fn with_intermediates(&self, leaf: &CertificateDer<'_>) -> String {
        let chain = std::iter::once(leaf).chain(self.intermediates());
        chain.map(|der| pem_block("CERTIFICATE", der)).collect()
    }

    /// Whoever signs for it.
    pub fn signer(&self) -> &dyn Signer {
        &*self.signer
    }

    pub(super) fn issuer(&self) -> IssuerName<'_> {
        IssuerName { name_der: &self.facts.subject_der, key_id: Some(&self.facts.key_id) }
    }
}

impl CaParams<'_> {
    fn rcgen(&self) -> Result<CertificateParams, AuthorityError> {
        let subtrees = |subtrees: &[Subtree]| {
            subtrees.iter().map(Subtree::rcgen).collect::<Result<Vec<_>, AuthorityError>>()
        };
        let mut certificate = CertificateParams::default();
        certificate.serial_number = Some(SerialNumber::from_slice(self.serial.as_be_bytes()));
        certificate.not_before = offset_date_time(self.not_before);
        certificate.not_after = offset_date_time(self.not_after);
        certificate.is_ca = IsCa::Ca(BasicConstraints::Constrained(self.path_length));
        certificate.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        if *self.name_constraints != NameConstraints::default() {
            certificate.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: subtrees(&self.name_constraints.permitted)?,
                excluded_subtrees: subtrees(&self.name_constraints.excluded)?,
            });
        }
        let point = self.crl_url.map(|url| CrlDistributionPoint { uris: vec![url.to_owned()] });
        certificate.crl_distribution_points = point.into_iter().collect();
        Ok(certificate)
    }
}

impl Subtree {
    fn rcgen(&self) -> Result<GeneralSubtree, AuthorityError> {
        Ok(match self {
            Self::Dns(domain) => GeneralSubtree::DnsName(domain.clone()),
            Self::Ip(range) => GeneralSubtree::IpAddress(
                range.parse().map_err(|_| AuthorityError::IpRange(range.clone()))?,
            ),
        })
    }
}

/// Reads the certificates of a chain, PEM, and puts nothing in order: the CA must come first.
pub fn read_chain(pem_text: &str) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let chain = certificates(pem_text.as_bytes())
        .map_err(|error| AuthorityError::Certificate(error.to_string()))?;
    if chain.len() > CHAIN_LIMIT {
        let message = format!("more than {CHAIN_LIMIT} certificates in the chain");
        return Err(AuthorityError::Certificate(message));
    }
    Ok(chain)
}

/// Makes all checks that need no key; with the CA's SubjectPublicKeyInfo also that it is this CA's.
pub fn read_facts(
    chain: &[CertificateDer<'_>],
    public_key_der: Option<&[u8]>,
) -> Result<CaFacts, AuthorityError> {
    let parsed = chain
        .iter()
        .map(|der| match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Ok(certificate),
            Ok(_) => Err(AuthorityError::Certificate("bytes after a certificate".into())),
            Err(error) => Err(AuthorityError::Certificate(error.to_string())),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let ca = parsed
        .first()
        .ok_or_else(|| AuthorityError::Certificate("there is no certificate".into()))?;
    if public_key_der.is_some_and(|public_key| ca.public_key().raw != public_key) {
        return Err(AuthorityError::KeyMismatch);
    }
    let key_id = check(ca).map_err(AuthorityError::Unusable)?;
    let key_type = KeyType::of(ca.public_key().raw)
        .map_err(|_| AuthorityError::Unusable("the type of its key is not supported"))?;
    let out_of_range = AuthorityError::Unusable("validity is out of range");
    let serial = Serial::from_be_bytes(ca.raw_serial())
        .map_err(|_| AuthorityError::Unusable("its serial number is not positive"))?;
    for (position, pair) in parsed.windows(2).enumerate() {
        check_link(&pair[0], &pair[1], position).map_err(|why| AuthorityError::Chain {
            position: position + 2,
            subject: pair[1].subject().to_string(),
            why,
        })?;
    }
    let root = parsed.last().expect("the CA itself is there");
    if root.subject().as_raw() != root.issuer().as_raw() {
        return Err(AuthorityError::Chain {
            position: parsed.len(),
            subject: root.subject().to_string(),
            why: "the chain ends here, but this is no root: append its issuer, up to the self-signed root",
        });
    }
    let end = parsed.iter().map(|certificate| certificate.validity().not_after.timestamp()).min();
    Ok(CaFacts {
        subject_der: ca.subject().as_raw().to_vec(),
        key_id,
        fingerprint: sha256_hex(&chain[0]),
        serial,
        public_key_der: ca.public_key().raw.to_vec(),
        root_fingerprint: sha256_hex(chain.last().expect("the CA itself is there")),
        key_type,
        not_before: Timestamp::from_second(ca.validity().not_before.timestamp())
            .map_err(|_| AuthorityError::Unusable("validity is out of range"))?,
        not_after: end.and_then(|end| Timestamp::from_second(end).ok()).ok_or(out_of_range)?,
    })
}

/// May this certificate sign certificates of clients and CRLs? Returns its key identifier.
fn check(ca: &X509Certificate<'_>) -> Result<Vec<u8>, &'static str> {
    if ca.subject().iter().next().is_none() {
        return Err("its subject is empty");
    }
    if !ca.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca) {
        return Err("basicConstraints does not say cA");
    }
    let usage = ca.key_usage().ok().flatten().map(|usage| usage.value);
    if !usage.is_some_and(|usage| usage.key_cert_sign() && usage.crl_sign()) {
        return Err("keyUsage lacks keyCertSign or cRLSign");
    }
    let extended = ca.extended_key_usage().map_err(|_| "extendedKeyUsage stands in it twice")?;
    if extended.is_some_and(|usage| !usage.value.client_auth && !usage.value.any) {
        return Err("extendedKeyUsage lacks clientAuth");
    }
    let mut key_id = None;
    for extension in ca.iter_extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => key_id = Some(id.0.to_vec()),
            ParsedExtension::NameConstraints(constraints) => {
                let subtrees = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
                let uri = subtrees
                    .into_iter()
                    .flatten()
                    .flatten()
                    .any(|subtree| matches!(subtree.base, GeneralName::URI(_)));
                // RUSTSEC-2026-0098: since then rustls refuses every certificate below such a CA.
                if uri {
                    return Err(
                        "nameConstraints on URIs: many verifiers refuse every certificate below",
                    );
                }
            }
            ParsedExtension::UnsupportedExtension { .. } | ParsedExtension::ParseError { .. }
                if extension.critical =>
            {
                return Err("a critical extension is not known");
            }
            _ => {}
        }
    }
    key_id.filter(|id| !id.is_empty()).ok_or("no subjectKeyIdentifier")
}

/// Does the parent sign the child, which has so many CAs below it?
fn check_link(
    child: &X509Certificate<'_>,
    parent: &X509Certificate<'_>,
    below: usize,
) -> Result<(), &'static str> {
    if child.issuer().as_raw() != parent.subject().as_raw() {
        return Err("its subject is not the issuer of the certificate before it");
    }
    let constraints = parent.basic_constraints().ok().flatten().map(|found| found.value);
    let constraints = constraints.filter(|constraints| constraints.ca);
    let constraints = constraints.ok_or("basicConstraints does not say cA")?;
    if constraints.path_len_constraint.is_some_and(|length| (length as usize) < below + 1) {
        return Err("its path length does not allow that many CAs below");
    }
    let usage = parent.key_usage().ok().flatten().map(|usage| usage.value);
    if usage.is_some_and(|usage| !usage.key_cert_sign()) {
        return Err("keyUsage lacks keyCertSign");
    }
    verify_signature(
        parent.public_key(),
        &child.signature_algorithm,
        &child.signature_value,
        child.tbs_certificate.as_ref(),
    )
    .map_err(|_| "its key did not sign the certificate before it, or not with SHA-2")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pki::key::Encoding;
    use crate::pki::name::Attribute;

    pub(crate) fn instant(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn subject() -> Name {
        Name(vec![
            (Attribute::Organization, "Countersign".into()),
            (Attribute::OrganizationalUnit, "One".into()),
            (Attribute::OrganizationalUnit, "Two".into()),
            (Attribute::CommonName, "Test CA".into()),
        ])
    }

    fn params<'a>(subject: &'a Name, name_constraints: &'a NameConstraints) -> CaParams<'a> {
        CaParams {
            subject,
            serial: Serial::random(),
            not_before: instant("2026-01-01T00:00:00Z"),
            not_after: instant("2036-01-01T00:00:00Z"),
            path_length: 0,
            name_constraints,
            crl_url: None,
        }
    }

    fn fresh(key_type: KeyType) -> Arc<PrivateKey> {
        Arc::new(PrivateKey::generate(key_type))
    }

    pub(crate) fn sample() -> CertificateAuthority {
        sample_of(KeyType::EcdsaP256)
    }

    pub(crate) fn sample_of(key_type: KeyType) -> CertificateAuthority {
        sample_with_key(fresh(key_type))
    }

    pub(crate) fn sample_with_key(key: Arc<PrivateKey>) -> CertificateAuthority {
        let (subject, any) = (subject(), NameConstraints::default());
        CertificateAuthority::self_signed(&params(&subject, &any), key).unwrap()
    }

    /// A root, and a CA below it.
    pub(crate) fn sample_below() -> (CertificateAuthority, CertificateAuthority) {
        let (subject, any) = (subject(), NameConstraints::default());
        let root = CaParams { path_length: 1, ..params(&subject, &any) };
        let root = CertificateAuthority::self_signed(&root, fresh(KeyType::EcdsaP256)).unwrap();
        let below = Name(vec![(Attribute::CommonName, "Below".into())]);
        let key = fresh(KeyType::EcdsaP256);
        let ca = root.sign_authority(&params(&below, &any), key).unwrap();
        (root, ca)
    }

    #[test]
    fn a_ca_of_each_key_type_survives_storage() {
        for key_type in KeyType::ALL {
            let key = fresh(key_type);
            let made = sample_with_key(key.clone());
            let read = CertificateAuthority::from_pem(
                &made.chain_pem(),
                &key.to_pem(Encoding::Traditional),
            );
            assert_eq!(read.unwrap().facts(), made.facts());
        }
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let made = sample();
        let foreign = fresh(KeyType::EcdsaP256).to_pem(Encoding::Pkcs8);
        let error = CertificateAuthority::from_pem(&made.chain_pem(), &foreign);
        assert!(matches!(error, Err(AuthorityError::KeyMismatch)), "{error:?}");
    }

    #[test]
    fn a_leaf_is_refused_as_a_ca() {
        let key = fresh(KeyType::EcdsaP256);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        let name = subject().to_der();
        let issuer = IssuerName { name_der: &name, key_id: None };
        let der = encode::certificate(params, &name, &key.public_key_der(), &issuer, &*key);
        let error = CertificateAuthority::new(vec![der.unwrap()], key);
        assert!(matches!(error, Err(AuthorityError::Unusable(_))), "{error:?}");
    }

    #[test]
    fn a_chain_is_checked_link_by_link() {
        let (subject, any) = (subject(), NameConstraints::default());
        let root_key = fresh(KeyType::EcdsaP521);
        let root_params = CaParams { path_length: 1, ..params(&subject, &any) };
        let root = CertificateAuthority::self_signed(&root_params, root_key.clone()).unwrap();
        let below = Name(vec![(Attribute::CommonName, "Below".into())]);
        let key = fresh(KeyType::Rsa2048);
        let ca = root.sign_authority(&params(&below, &any), key.clone()).unwrap();
        assert_eq!((ca.intermediates().len(), ca.root()), (1, root.certificate()));

        let chain = ca.chain().to_vec();
        let why = |chain: Vec<CertificateDer<'static>>| {
            CertificateAuthority::new(chain, key.clone()).unwrap_err().to_string()
        };
        assert!(why(vec![chain[0].clone()]).contains("append its issuer"));
        let other = fresh(KeyType::EcdsaP256);
        let other = CertificateAuthority::self_signed(&root_params, other).unwrap();
        let foreign = vec![chain[0].clone(), other.certificate().clone()];
        assert!(why(foreign).contains("did not sign"), "the same name, another key");
        assert!(why(vec![chain[1].clone(), chain[0].clone()]).contains("does not belong"));

        // A root that allows no CA below it.
        let strict = CaParams { path_length: 0, ..root_params };
        let strict = CertificateAuthority::self_signed(&strict, root_key).unwrap();
        let error = strict.sign_authority(&params(&below, &any), key.clone()).unwrap_err();
        assert!(error.to_string().contains("path length"), "{error}");
    }

    #[test]
    fn name_constraints_are_in_force() {
        use crate::pki::issue::tests::sample_leaf;
        use crate::pki::verify::verify_client;
        let subject = subject();
        for (range, permitted) in [("10.0.0.0/8", true), ("192.168.0.0/16", false)] {
            let constraints = NameConstraints {
                permitted: vec![Subtree::Ip(range.into()), Subtree::Dns("example.com".into())],
                excluded: vec![Subtree::Dns("evil.example.com".into())],
            };
            let ca = CertificateAuthority::self_signed(
                &params(&subject, &constraints),
                fresh(KeyType::EcdsaP256),
            )
            .unwrap();
            let leaf = sample_leaf(&ca);
            let now = instant("2026-06-01T00:00:00Z");
            let verified = verify_client(&leaf, &[], &[ca.root().clone()], now);
            assert_eq!(verified.is_ok(), permitted, "{range}: {verified:?}");
        }
    }
}
