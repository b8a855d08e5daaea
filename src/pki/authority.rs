//! A certificate authority: certificate and key that belong together and may sign.

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber, SigningKey,
};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{PrivateKey, Serial, offset_date_time, pem_block, sha256_hex};

/// A CA that can sign certificates and CRLs.
#[derive(Debug)]
pub struct CertificateAuthority {
    der: CertificateDer<'static>,
    key: PrivateKey,
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
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

/// What a self-signed CA certificate shall say.
#[derive(Clone, Debug)]
pub struct CaParams<'a> {
    /// Subject CN.
    pub common_name: &'a str,
    /// Subject O.
    pub organization: Option<&'a str>,
    /// Serial number.
    pub serial: Serial,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

/// Why a CA can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate is not one.
    #[error("failed to read CA certificate: {0}")]
    Certificate(String),
    /// The key is not one.
    #[error("failed to read CA key")]
    Key(#[from] super::key::InvalidKey),
    /// The key is another certificate's.
    #[error("CA key does not belong to the CA certificate")]
    KeyMismatch,
    /// A rule of RFC 5280 is broken.
    #[error("not a usable CA certificate: {0}")]
    Unusable(&'static str),
    /// rcgen failed.
    #[error("failed to sign CA certificate")]
    Sign(#[from] rcgen::Error),
}

impl CertificateAuthority {
    /// Makes a self-signed CA that may sign end-entity certificates and CRLs, and no further CA.
    pub fn self_signed(params: &CaParams<'_>, key: PrivateKey) -> Result<Self, AuthorityError> {
        let mut name = DistinguishedName::new();
        if let Some(organization) = params.organization {
            name.push(DnType::OrganizationName, organization);
        }
        name.push(DnType::CommonName, params.common_name);

        let mut certificate = CertificateParams::default();
        certificate.distinguished_name = name;
        certificate.serial_number = Some(SerialNumber::from_slice(params.serial.as_be_bytes()));
        certificate.not_before = offset_date_time(params.not_before);
        certificate.not_after = offset_date_time(params.not_after);
        certificate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        certificate.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

        let der = certificate.self_signed(key.key_pair())?.der().clone();
        Self::new(der, key)
    }

    /// Reads certificate and key as a Secret holds them, and checks that they belong together and
    /// may sign certificates and CRLs.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let block = pem::parse(certificate)
            .map_err(|error| AuthorityError::Certificate(error.to_string()))?;
        if block.tag() != "CERTIFICATE" {
            return Err(AuthorityError::Certificate(format!("PEM block is a {}", block.tag())));
        }
        Self::new(block.into_contents().into(), PrivateKey::from_pem(key)?)
    }

    fn new(der: CertificateDer<'static>, key: PrivateKey) -> Result<Self, AuthorityError> {
        let facts = CaFacts::read(&der, &key.public_key_der())?;
        Ok(Self { der, key, facts })
    }

    /// What the certificate says.
    pub fn facts(&self) -> &CaFacts {
        &self.facts
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        pem_block("CERTIFICATE", &self.der)
    }

    /// The key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    pub(super) fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_der(&self.der, self.key.key_pair())
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.key_pair().sign(message)
    }
}

impl CaFacts {
    fn read(der: &[u8], public_key: &[u8]) -> Result<Self, AuthorityError> {
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| AuthorityError::Certificate(error.to_string()))?;
        if !rest.is_empty() {
            return Err(AuthorityError::Certificate("bytes after the certificate".into()));
        }
        if certificate.public_key().raw != public_key {
            return Err(AuthorityError::KeyMismatch);
        }
        let ca = certificate.basic_constraints().ok().flatten().is_some_and(|c| c.value.ca);
        if !ca {
            return Err(AuthorityError::Unusable("basicConstraints does not say cA"));
        }
        let usage = certificate.key_usage().ok().flatten().map(|usage| usage.value);
        if !usage.is_some_and(|usage| usage.key_cert_sign() && usage.crl_sign()) {
            return Err(AuthorityError::Unusable("keyUsage lacks keyCertSign or cRLSign"));
        }
        let key_id = certificate
            .iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
            .ok_or(AuthorityError::Unusable("no subjectKeyIdentifier"))?;
        let instant = |seconds| {
            Timestamp::from_second(seconds)
                .map_err(|_| AuthorityError::Unusable("validity is out of range"))
        };
        Ok(Self {
            subject_der: certificate.subject().as_raw().to_vec(),
            key_id,
            fingerprint: sha256_hex(der),
            not_before: instant(certificate.validity().not_before.timestamp())?,
            not_after: instant(certificate.validity().not_after.timestamp())?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn instant(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    pub(crate) fn sample() -> CertificateAuthority {
        let params = CaParams {
            common_name: "Test CA",
            organization: Some("Countersign"),
            serial: Serial::random(),
            not_before: instant("2026-01-01T00:00:00Z"),
            not_after: instant("2036-01-01T00:00:00Z"),
        };
        CertificateAuthority::self_signed(&params, PrivateKey::generate()).unwrap()
    }

    #[test]
    fn a_ca_survives_storage() {
        let made = sample();
        let read =
            CertificateAuthority::from_pem(&made.certificate_pem(), &made.key().to_pem()).unwrap();
        assert_eq!(read.facts(), made.facts());
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let made = sample();
        let error = CertificateAuthority::from_pem(
            &made.certificate_pem(),
            &PrivateKey::generate().to_pem(),
        );
        assert!(matches!(error, Err(AuthorityError::KeyMismatch)), "{error:?}");
    }

    #[test]
    fn a_leaf_is_refused_as_a_ca() {
        let key = PrivateKey::generate();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        let der = params.self_signed(key.key_pair()).unwrap().der().clone();
        let error = CertificateAuthority::new(der, key);
        assert!(matches!(error, Err(AuthorityError::Unusable(_))), "{error:?}");
    }
}
