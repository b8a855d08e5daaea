//! Certificates as bytes. rcgen encodes what it can; names go in as they are, and the signature is made
//! by a `Signer`, which may be far away from the key.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, Issuer, KeyIdMethod, PublicKeyData,
    SignatureAlgorithm, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;

use super::der::{self, BIT_STRING, SEQUENCE, Values};
use super::key::{SignError, Signer};

/// Who signs, as the certificate has it.
pub(super) struct IssuerName<'a> {
    /// Issuer Name, DER.
    pub(super) name_der: &'a [u8],
    /// Authority key identifier; none in a self-signed certificate.
    pub(super) key_id: Option<&'a [u8]>,
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// rcgen failed.
    #[error("failed to encode certificate: {0}")]
    Encode(#[from] rcgen::Error),
    /// The signer failed.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// Stands in for the key while rcgen encodes: what it "signs" is thrown away.
struct Unsigned<'a> {
    algorithm: &'static SignatureAlgorithm,
    public_key_der: &'a [u8],
}

impl PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public_key_der
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for Unsigned<'_> {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Vec::new())
    }
}

/// Encodes and signs. The names in `params` do not count: `subject_der` and the issuer's do.
pub(super) fn certificate(
    mut params: CertificateParams,
    subject_der: &[u8],
    public_key_der: &[u8],
    issuer: &IssuerName<'_>,
    signer: &dyn Signer,
) -> Result<CertificateDer<'static>, EncodeError> {
    params.distinguished_name = DistinguishedName::new();
    if der::read(subject_der, SEQUENCE).is_some_and(|attributes| !attributes.is_empty()) {
        // rcgen marks subjectAltName as critical when the subject is empty (RFC 5280 section 4.2.1.6).
        params.distinguished_name.push(DnType::CommonName, "-");
    }
    params.use_authority_key_identifier_extension = issuer.key_id.is_some();
    let key_id = issuer.key_id.unwrap_or_default().to_vec();
    let mut issuer_params = CertificateParams::default();
    issuer_params.key_identifier_method = KeyIdMethod::PreSpecified(key_id);
    let unsigned = Unsigned {
        algorithm: signer.key_type().signature_algorithm(),
        public_key_der: &signer.public_key_der(),
    };
    let public_key = SubjectPublicKeyInfo::from_der(public_key_der)?;
    let draft = params.signed_by(&public_key, &Issuer::from_params(&issuer_params, unsigned))?;

    let tbs = with_names(draft.der(), issuer.name_der, subject_der)
        .expect("rcgen wrote a Certificate as RFC 5280 has it");
    Ok(signed(tbs, signer)?.into())
}

/// The TBSCertificate of a draft, with these names.
fn with_names(draft: &[u8], issuer_der: &[u8], subject_der: &[u8]) -> Option<Vec<u8>> {
    // TBSCertificate ::= SEQUENCE { [0] version, serialNumber, signature, issuer, validity, subject, … }
    const ISSUER: usize = 3;
    const SUBJECT: usize = 5;
    let tbs = Values(der::read(draft, SEQUENCE)?).next()?;
    let mut content = Vec::with_capacity(draft.len() + issuer_der.len() + subject_der.len());
    for (position, value) in Values(der::read(tbs, SEQUENCE)?).enumerate() {
        content.extend_from_slice(match position {
            ISSUER => issuer_der,
            SUBJECT => subject_der,
            _ => value,
        });
    }
    Some(der::tlv(SEQUENCE, &content))
}

/// SEQUENCE { toBeSigned, signatureAlgorithm, signature }: the form of certificates and of CRLs.
pub(super) fn signed(tbs: Vec<u8>, signer: &dyn Signer) -> Result<Vec<u8>, SignError> {
    let signature = signer.sign(&tbs)?;
    let mut content = tbs;
    content.extend(signer.key_type().signature_algorithm_der());
    der::header(&mut content, BIT_STRING, signature.len() + 1);
    content.push(0);
    content.extend_from_slice(&signature);
    Ok(der::tlv(SEQUENCE, &content))
}
