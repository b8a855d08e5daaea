//! Certificate revocation lists (RFC 5280 section 5): one complete CRL per CA certificate, version 2,
//! with authority key identifier and CRL number, without issuingDistributionPoint, so that every
//! verifier takes it.
//!
//! Entries are encoded once and kept sorted; a CRL is a header, those bytes and one signature.

use jiff::Timestamp;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::der::{self, SEQUENCE};
use super::encode;
use super::key::SignError;
use super::public_key::verify_signature;
use super::{CertificateAuthority, Serial};

const ID_CE_CRL_NUMBER: &[u8] = &[0x55, 0x1d, 0x14];
const ID_CE_CRL_REASONS: &[u8] = &[0x55, 0x1d, 0x15];
const ID_CE_AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];

/// One revoked certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its serial number.
    pub serial: Serial,
    /// When it was revoked.
    pub revoked_at: Timestamp,
    /// CRLReason code (RFC 5280 section 5.3.1); absent instead of `unspecified`.
    pub reason: Option<u8>,
}

/// The number of a CRL (RFC 5280 section 5.2.3): rises with every CRL of the same CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrlNumber(pub u128);

impl CrlNumber {
    /// The next number: the time in nanoseconds, so that no stored counter is needed, but always
    /// above the previous one, so that a clock that was set back does no harm.
    pub fn next(previous: Option<Self>, now: Timestamp) -> Self {
        let nanos = u128::try_from(now.as_nanosecond()).unwrap_or(0);
        Self(previous.map_or(nanos, |previous| nanos.max(previous.0 + 1)))
    }
}

/// What a CRL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlFacts {
    /// Its number.
    pub number: CrlNumber,
    /// When it was made.
    pub this_update: Timestamp,
    /// When it expires.
    pub next_update: Timestamp,
    /// Issuer Name, DER.
    pub issuer_der: Vec<u8>,
    /// Authority key identifier.
    pub authority_key_id: Vec<u8>,
    /// The revoked serials, in their order.
    pub serials: Vec<Serial>,
}

/// Why a CRL can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It can't be parsed.
    #[error("not a usable CRL: {0}")]
    Unusable(&'static str),
    /// The signature is not the CA's.
    #[error("CRL is not signed by the CA")]
    Signature,
    /// It holds something else than was asked for.
    #[error("CRL has another {0} than was asked for")]
    Differs(&'static str),
}

/// Makes a CRL, DER. `entries` must be sorted by serial and hold none twice.
pub fn sign(
    authority: &CertificateAuthority,
    number: CrlNumber,
    this_update: Timestamp,
    next_update: Timestamp,
    entries: &[Entry],
) -> Result<Vec<u8>, CrlError> {
    let mut revoked = Vec::with_capacity(entries.len() * 48);
    for entry in entries {
        encode_entry(&mut revoked, entry);
    }
    let facts = authority.facts();
    let mut body = Vec::with_capacity(revoked.len() + 512);
    der::value(&mut body, der::INTEGER, &[1]);
    body.extend(authority.signer().key_type().signature_algorithm_der());
    body.extend_from_slice(&facts.subject_der);
    der::time(&mut body, this_update);
    der::time(&mut body, next_update);
    // RFC 5280 section 5.1.2.6: when there are no revoked certificates the list MUST be absent.
    if !revoked.is_empty() {
        der::value(&mut body, SEQUENCE, &revoked);
    }
    let extensions = der::tlv(SEQUENCE, &extensions(&facts.key_id, number));
    der::value(&mut body, 0xa0, &extensions);

    Ok(encode::signed(der::tlv(SEQUENCE, &body), authority.signer())?)
}

fn encode_entry(out: &mut Vec<u8>, entry: &Entry) {
    let mut content = Vec::with_capacity(48);
    der::unsigned(&mut content, entry.serial.as_be_bytes());
    der::time(&mut content, entry.revoked_at);
    if let Some(reason) = entry.reason {
        let code = der::tlv(der::ENUMERATED, &[reason]);
        let extension = extension(ID_CE_CRL_REASONS, &code);
        der::value(&mut content, SEQUENCE, &extension);
    }
    der::value(out, SEQUENCE, &content);
}

fn extensions(key_id: &[u8], number: CrlNumber) -> Vec<u8> {
    // AuthorityKeyIdentifier ::= SEQUENCE { keyIdentifier [0] IMPLICIT OCTET STRING }
    let key_identifier = der::tlv(SEQUENCE, &der::tlv(0x80, key_id));
    let mut crl_number = Vec::new();
    der::unsigned(&mut crl_number, &number.0.to_be_bytes());
    let mut out = extension(ID_CE_AUTHORITY_KEY_IDENTIFIER, &key_identifier);
    out.extend(extension(ID_CE_CRL_NUMBER, &crl_number));
    out
}

fn extension(oid: &[u8], content: &[u8]) -> Vec<u8> {
    let mut body = der::tlv(der::OID, oid);
    der::value(&mut body, der::OCTET_STRING, content);
    der::tlv(SEQUENCE, &body)
}

/// Reads a CRL.
pub fn read(der: &[u8]) -> Result<CrlFacts, CrlError> {
    let crl = parse(der)?;
    facts(&crl)
}

/// Reads a CRL by independent code and checks that it is signed by the CA and says what was asked.
pub fn verify(
    der: &[u8],
    authority: &CertificateAuthority,
    number: CrlNumber,
    entries: &[Entry],
) -> Result<CrlFacts, CrlError> {
    let crl = parse(der)?;
    let (_, certificate) = X509Certificate::from_der(authority.certificate())
        .map_err(|_| CrlError::Unusable("the CA certificate can't be read"))?;
    verify_signature(
        certificate.public_key(),
        &crl.signature_algorithm,
        &crl.signature_value,
        crl.tbs_cert_list.as_ref(),
    )
    .map_err(|_| CrlError::Signature)?;
    let facts = facts(&crl)?;
    let same_serials = facts.serials.iter().eq(entries.iter().map(|entry| &entry.serial));
    let checks = [
        ("number", facts.number == number),
        ("issuer", facts.issuer_der == authority.facts().subject_der),
        ("authority key identifier", facts.authority_key_id == authority.facts().key_id),
        ("set of serials", same_serials),
    ];
    match checks.into_iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(CrlError::Differs(what)),
        None => Ok(facts),
    }
}

fn parse(der: &[u8]) -> Result<CertificateRevocationList<'_>, CrlError> {
    match CertificateRevocationList::from_der(der) {
        Ok(([], crl)) => Ok(crl),
        Ok(_) => Err(CrlError::Unusable("bytes after the CRL")),
        Err(_) => Err(CrlError::Unusable("not DER of a CertificateList")),
    }
}

fn facts(crl: &CertificateRevocationList<'_>) -> Result<CrlFacts, CrlError> {
    let instant = |seconds| {
        Timestamp::from_second(seconds).map_err(|_| CrlError::Unusable("a time is out of range"))
    };
    let next_update = crl.next_update().ok_or(CrlError::Unusable("no nextUpdate"))?;
    let mut number = None;
    let mut authority_key_id = Vec::new();
    for extension in crl.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::CRLNumber(value) => {
                number = u128::try_from(value).ok();
            }
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                authority_key_id = id.key_identifier.as_ref().map_or(Vec::new(), |k| k.0.to_vec());
            }
            _ => {}
        }
    }
    let serials = crl
        .iter_revoked_certificates()
        .map(|revoked| Serial::from_be_bytes(revoked.raw_serial()))
        .collect::<Result<_, _>>()
        .map_err(|_| CrlError::Unusable("a serial number is not positive"))?;
    Ok(CrlFacts {
        number: CrlNumber(number.ok_or(CrlError::Unusable("no CRL number"))?),
        this_update: instant(crl.last_update().timestamp())?,
        next_update: instant(next_update.timestamp())?,
        issuer_der: crl.issuer().as_raw().to_vec(),
        authority_key_id,
        serials,
    })
}

/// A CRL as PEM, for data planes that read files.
pub fn to_pem(der: &[u8]) -> String {
    super::pem_block("X509 CRL", der)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::{instant, sample};
    use proptest::prelude::*;

    fn entries(count: usize) -> Vec<Entry> {
        let mut entries: Vec<Entry> = (0..count)
            .map(|index| Entry {
                serial: Serial::random(),
                revoked_at: instant("2026-05-01T10:00:00Z"),
                reason: [None, Some(1), Some(9)][index % 3],
            })
            .collect();
        entries.sort_by_key(|entry| entry.serial);
        entries
    }

    #[test]
    fn a_crl_says_what_was_asked_and_is_signed_by_the_ca() {
        let authority = sample();
        for count in [0, 1, 7, 500] {
            let entries = entries(count);
            let (this, next) = (instant("2026-05-01T10:00:00Z"), instant("2051-01-01T00:00:00Z"));
            let der = sign(&authority, CrlNumber(7), this, next, &entries).unwrap();
            let facts = verify(&der, &authority, CrlNumber(7), &entries).unwrap();
            assert_eq!((facts.this_update, facts.next_update), (this, next));
        }
    }

    #[test]
    fn another_cas_crl_and_a_changed_one_are_refused() {
        let authority = sample();
        let entries = entries(3);
        let now = instant("2026-05-01T10:00:00Z");
        let mut der = sign(&authority, CrlNumber(7), now, now, &entries).unwrap();
        assert!(matches!(
            verify(&der, &sample(), CrlNumber(7), &entries),
            Err(CrlError::Signature)
        ));
        assert!(matches!(
            verify(&der, &authority, CrlNumber(8), &entries),
            Err(CrlError::Differs("number"))
        ));
        assert!(matches!(
            verify(&der, &authority, CrlNumber(7), &entries[1..]),
            Err(CrlError::Differs("set of serials"))
        ));
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(verify(&der, &authority, CrlNumber(7), &entries).is_err());
    }

    #[test]
    fn webpki_takes_it_and_refuses_the_revoked_serial() {
        let authority = sample();
        let (now, next) = (instant("2026-05-01T10:00:00Z"), instant("2026-05-08T10:00:00Z"));
        for revoked in [false, true] {
            let leaf = crate::pki::issue::tests::sample_leaf(&authority);
            let serial = crate::pki::inspect::inspect(&leaf).unwrap().serial;
            let entry = Entry { serial, revoked_at: now, reason: Some(1) };
            let entries = if revoked { vec![entry] } else { vec![] };
            let der = sign(&authority, CrlNumber(7), now, next, &entries).unwrap();
            let crl = webpki::BorrowedCertRevocationList::from_der(&der).unwrap().into();
            let crls = [&crl];
            let options = webpki::RevocationOptionsBuilder::new(&crls).unwrap().build();
            let anchors = [webpki::anchor_from_trusted_cert(authority.certificate()).unwrap()];
            let time = std::time::Duration::from_secs(now.as_second() as u64);
            let end_entity = webpki::EndEntityCert::try_from(&leaf).unwrap();
            let result = end_entity.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &[],
                rustls_pki_types::UnixTime::since_unix_epoch(time),
                webpki::KeyUsage::client_auth(),
                Some(options),
                None,
            );
            match result {
                Ok(_) => assert!(!revoked),
                Err(error) => assert!(revoked && error == webpki::Error::CertRevoked, "{error}"),
            }
        }
    }

    #[test]
    fn numbers_rise_when_the_clock_goes_back() {
        let first = CrlNumber::next(None, instant("2026-05-01T10:00:00Z"));
        let second = CrlNumber::next(Some(first), instant("2026-05-01T09:00:00Z"));
        assert_eq!(second.0, first.0 + 1);
    }

    proptest! {
        #[test]
        fn reading_foreign_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
        }
    }
}
