//! Reading certificates back: ours from Secrets, clients' from headers.

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

use super::profile::Usage;
use super::{PrivateKey, Serial, sha256_hex};

/// What a client's certificate says, as far as Countersign needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafFacts {
    /// Serial number.
    pub serial: Serial,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// Issuer Name, DER.
    pub issuer_der: Vec<u8>,
    /// Subject Name, DER.
    pub subject_der: Vec<u8>,
    /// Authority key identifier, empty when there is none.
    pub authority_key_id: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_der: Vec<u8>,
    /// How many subject alternative names it holds.
    pub alternative_names: usize,
    /// Extended key usages, as far as we know them.
    pub usages: Vec<Usage>,
}

/// By what names a certificate calls its client. What is no text is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientNames {
    /// URI subject alternative names.
    pub uris: Vec<String>,
    /// DNS subject alternative names.
    pub dns_names: Vec<String>,
    /// E-mail subject alternative names.
    pub email_addresses: Vec<String>,
    /// Common names of the subject.
    pub common_names: Vec<String>,
    /// Organizational units of the subject.
    pub organizational_units: Vec<String>,
}

/// Why a certificate can't be read.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Not PEM, or not one of certificates.
    #[error("not a PEM certificate")]
    Pem,
    /// Not a certificate.
    #[error("not an X.509 certificate")]
    Der,
    /// The serial number breaks RFC 5280 section 4.1.2.2.
    #[error("serial number is not positive or longer than 20 octets")]
    Serial(#[from] super::serial::InvalidSerial),
    /// A time that no calendar knows.
    #[error("validity is out of range")]
    Validity,
    /// The key is not one, or is another certificate's.
    #[error("private key does not belong to the certificate")]
    KeyMismatch,
}

/// Reads one certificate.
pub fn inspect(der: &[u8]) -> Result<LeafFacts, InspectError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| InspectError::Der)?;
    if !rest.is_empty() {
        return Err(InspectError::Der);
    }
    let instant = |seconds| Timestamp::from_second(seconds).map_err(|_| InspectError::Validity);
    let mut authority_key_id = Vec::new();
    let (mut alternative_names, mut usages) = (0, Vec::new());
    for extension in certificate.iter_extensions() {
        match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                authority_key_id = id.key_identifier.as_ref().map_or(Vec::new(), |k| k.0.to_vec());
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                alternative_names = names.general_names.len();
            }
            ParsedExtension::ExtendedKeyUsage(extended) => {
                usages.extend(extended.client_auth.then_some(Usage::ClientAuth));
                usages.extend(extended.server_auth.then_some(Usage::ServerAuth));
            }
            _ => {}
        }
    }
    Ok(LeafFacts {
        serial: Serial::from_be_bytes(certificate.raw_serial())?,
        fingerprint: sha256_hex(der),
        not_before: instant(certificate.validity().not_before.timestamp())?,
        not_after: instant(certificate.validity().not_after.timestamp())?,
        issuer_der: certificate.issuer().as_raw().to_vec(),
        subject_der: certificate.subject().as_raw().to_vec(),
        authority_key_id,
        public_key_der: certificate.public_key().raw.to_vec(),
        alternative_names,
        usages,
    })
}

/// Reads the names of a certificate.
pub fn client_names(der: &[u8]) -> Result<ClientNames, InspectError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| InspectError::Der)?;
    let subject = certificate.subject();
    let text = |attribute: &AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    let mut names = ClientNames {
        common_names: subject.iter_common_name().filter_map(text).collect(),
        organizational_units: subject.iter_organizational_unit().filter_map(text).collect(),
        ..ClientNames::default()
    };
    for extension in certificate.iter_extensions() {
        let ParsedExtension::SubjectAlternativeName(alternative) = extension.parsed_extension()
        else {
            continue;
        };
        for name in &alternative.general_names {
            let (list, name) = match name {
                GeneralName::URI(name) => (&mut names.uris, name),
                GeneralName::DNSName(name) => (&mut names.dns_names, name),
                GeneralName::RFC822Name(name) => (&mut names.email_addresses, name),
                _ => continue,
            };
            list.push((*name).to_owned());
        }
    }
    Ok(names)
}

/// The certificates of a PEM file, in their order; anything else in it is an error.
pub fn certificates(pem_text: &[u8]) -> Result<Vec<CertificateDer<'static>>, InspectError> {
    let blocks = pem::parse_many(pem_text).map_err(|_| InspectError::Pem)?;
    if blocks.is_empty() || blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
        return Err(InspectError::Pem);
    }
    Ok(blocks.into_iter().map(|block| block.into_contents().into()).collect())
}

/// Reads the leaf of a chain and checks that the key is its own.
pub fn inspect_pair(chain_pem: &[u8], key_pem: &[u8]) -> Result<LeafFacts, InspectError> {
    let leaf = certificates(chain_pem)?.swap_remove(0);
    let facts = inspect(&leaf)?;
    let key = std::str::from_utf8(key_pem)
        .ok()
        .and_then(|text| PrivateKey::from_pem(text).ok())
        .ok_or(InspectError::KeyMismatch)?;
    if key.public_key_der() == facts.public_key_der {
        Ok(facts)
    } else {
        Err(InspectError::KeyMismatch)
    }
}
