//! Certificate revocation lists (RFC 5280 section 5): one complete CRL per CA certificate, version 2,
//! with authority key identifier and CRL number, without issuingDistributionPoint, so that every
//! verifier takes it; shards of it for verifiers that fetch what a certificate names; and delta CRLs to it.
//!
//! Entries are encoded once and kept sorted; a CRL is a header, those bytes and one signature. What was
//! made is read again by code that had no part in it, before anyone sees it.

pub mod encode;
mod frame;
pub mod index;
pub mod lint;
pub mod signed;
pub mod verify;

use jiff::{SignedDuration, Timestamp};

use super::key::SignError;
use super::{CertificateAuthority, Serial};
pub use encode::{Encoded, encode};
use frame::Frame;
pub use index::Index;
pub use verify::verify;

/// The reasons that a CRL may name (RFC 5280 section 5.3.1): keyCompromise, affiliationChanged, superseded,
/// cessationOfOperation, privilegeWithdrawn. The others say that nothing is known, speak of a hold, or of
/// certificates that are not a client's.
pub const REASONS: [u8; 5] = [1, 3, 4, 5, 9];

/// One revoked certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its serial number.
    pub serial: Serial,
    /// When it was revoked.
    pub revoked_at: Timestamp,
    /// CRLReason code, one of [`REASONS`]; absent instead of `unspecified`. A CRL names no other one.
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

    /// How much later this one was made than an earlier one, as far as their numbers tell.
    pub fn age(self, earlier: Self) -> SignedDuration {
        let nanos = i64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(i64::MAX);
        SignedDuration::from_nanos(nanos)
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
    /// It breaks a rule of the standards.
    #[error(transparent)]
    Lint(#[from] lint::Broken),
}

/// What a CRL shall say beside its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrlParams<'a> {
    /// Its number.
    pub number: CrlNumber,
    /// When it was made.
    pub this_update: Timestamp,
    /// When it expires.
    pub next_update: Timestamp,
    /// The one URL of its shard, as the certificates have it (RFC 5280 section 5.2.5). A complete CRL has
    /// none.
    pub distribution_point: Option<&'a str>,
    /// Number of the complete CRL to which a delta CRL adds (RFC 5280 section 5.2.4).
    pub base: Option<CrlNumber>,
    /// Where the delta CRL to a complete one is (RFC 5280 section 5.2.6).
    pub freshest: Option<&'a str>,
}

impl CrlParams<'_> {
    /// Those of a complete CRL.
    pub fn complete(number: CrlNumber, this_update: Timestamp, next_update: Timestamp) -> Self {
        Self {
            number,
            this_update,
            next_update,
            distribution_point: None,
            base: None,
            freshest: None,
        }
    }
}

/// Makes a complete CRL, DER, of entries in any order.
pub fn sign(
    authority: &CertificateAuthority,
    number: CrlNumber,
    this_update: Timestamp,
    next_update: Timestamp,
    entries: &[Entry],
) -> Result<Vec<u8>, CrlError> {
    let params = CrlParams::complete(number, this_update, next_update);
    Ok(encode(authority, &params, &Index::of(entries))?.der)
}

/// Reads a CRL.
pub fn read(der: &[u8]) -> Result<CrlFacts, CrlError> {
    let frame = Frame::read(der)?;
    let instant = |field| frame::time(field).ok_or(CrlError::Unusable("a time can't be read"));
    let next_update = frame.next_update.ok_or(CrlError::Unusable("no nextUpdate"))?;
    let serials = frame.entries().map(|entry| entry?.serial());
    Ok(CrlFacts {
        number: frame.number().ok_or(CrlError::Unusable("no CRL number"))?,
        this_update: instant(frame.this_update)?,
        next_update: instant(next_update)?,
        issuer_der: frame.issuer.to_vec(),
        authority_key_id: frame.authority_key_id().unwrap_or_default().to_vec(),
        serials: serials.collect::<Result<_, _>>()?,
    })
}

/// The number of the complete CRL to which a delta CRL adds; none when it is no delta CRL.
pub fn base(der: &[u8]) -> Result<Option<CrlNumber>, CrlError> {
    Ok(Frame::read(der)?.base())
}

/// The entries of a CRL of ours, as they are encoded. None when another encoder made it.
pub fn index(der: &[u8]) -> Option<Index> {
    Index::of_der(Frame::read(der).ok()?.revoked.unwrap_or_default())
}

/// A CRL as PEM, for data planes that read files.
pub fn to_pem(der: &[u8]) -> String {
    super::pem_block("X509 CRL", der)
}

/// How many octets [`to_pem`] makes of so many.
pub const fn pem_len(der_len: usize) -> usize {
    const ARMOUR: usize = "-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n".len();
    let base64 = der_len.div_ceil(3) * 4;
    ARMOUR + base64 + base64.div_ceil(64)
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

    fn serials(entries: &[Entry]) -> impl Iterator<Item = Serial> {
        entries.iter().map(|entry| entry.serial)
    }

    #[test]
    fn a_crl_says_what_was_asked_and_is_signed_by_the_ca() {
        let authority = sample();
        for count in [0, 1, 7, 500] {
            let entries = entries(count);
            let (this, next) = (instant("2026-05-01T10:00:00Z"), instant("2026-05-08T10:00:00Z"));
            let complete = CrlParams::complete(CrlNumber(7), this, next);
            for base in [None, Some(CrlNumber(3))] {
                let params = CrlParams { base, ..complete };
                let der = encode(&authority, &params, &Index::of(&entries)).unwrap().der;
                let facts = verify(&der, &authority, &params, serials(&entries), &entries).unwrap();
                assert_eq!((facts.this_update, facts.next_update), (this, next));
                assert_eq!((read(&der).unwrap(), super::base(&der).unwrap()), (facts, base));
            }
        }
    }

    #[test]
    fn another_cas_crl_and_a_changed_one_are_refused() {
        let authority = sample();
        let entries = entries(3);
        let (now, next) = (instant("2026-05-01T10:00:00Z"), instant("2026-05-08T10:00:00Z"));
        let params = CrlParams::complete(CrlNumber(7), now, next);
        let mut der = sign(&authority, CrlNumber(7), now, next, &entries).unwrap();
        let check = |der: &[u8], authority: &_, params: &_, entries: &[Entry]| {
            verify(der, authority, params, serials(entries), entries).unwrap_err().to_string()
        };
        let differs = |what| CrlError::Differs(what).to_string();
        assert_eq!(check(&der, &sample(), &params, &entries), CrlError::Signature.to_string());
        let other = CrlParams { number: CrlNumber(8), ..params };
        assert_eq!(check(&der, &authority, &other, &entries), differs("number"));
        let other = CrlParams { base: Some(CrlNumber(1)), ..params };
        assert_eq!(check(&der, &authority, &other, &entries), differs("base"));
        let other = CrlParams { freshest: Some("http://x/1.crl"), ..params };
        assert_eq!(check(&der, &authority, &other, &entries), differs("freshest CRL"));
        let other = CrlParams { distribution_point: Some("http://x/1.crl"), ..params };
        assert_eq!(
            check(&der, &authority, &other, &entries),
            differs("issuing distribution point")
        );
        assert_eq!(check(&der, &authority, &params, &entries[1..]), differs("set of serials"));
        let mut later = entries.clone();
        later[1].revoked_at = now + jiff::SignedDuration::from_secs(1);
        let what = differs("revocation date or reason");
        assert_eq!(check(&der, &authority, &params, &later), what);
        let last = der.len() - 1;
        der[last] ^= 1;
        check(&der, &authority, &params, &entries);
    }

    #[test]
    fn a_shard_names_its_url_as_the_certificates_do_octet_for_octet() {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let authority = sample();
        let leaf = crate::pki::issue::tests::sample_leaf(&authority);
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
        let points = leaf.iter_extensions().find(|one| one.oid.as_bytes() == [0x55, 0x1d, 0x1f]);
        let points = points.unwrap().value;
        let url = "http://crl.example.com/crl/test/1.crl";
        let (this, next) = (instant("2026-05-01T10:00:00Z"), instant("2026-05-08T10:00:00Z"));
        let complete = CrlParams::complete(CrlNumber(7), this, next);
        let params = CrlParams { distribution_point: Some(url), ..complete };
        let der = encode(&authority, &params, &Index::default()).unwrap().der;
        verify(&der, &authority, &params, [], &[]).unwrap();
        assert!(verify(&der, &authority, &complete, [], &[]).is_err(), "it is not complete");
        let frame = Frame::read(&der).unwrap();
        let point = frame.extension(frame::ID_CE_ISSUING_DISTRIBUTION_POINT).unwrap();
        assert!(point.critical);
        // CRLDistributionPoints is a SEQUENCE of what is, with nothing but a name, the same here.
        let of_one = super::super::der::tlv(super::super::der::SEQUENCE, point.value);
        assert_eq!(of_one, points);
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
    fn the_length_of_pem_is_known_before_it_is_made() {
        for length in (0..300).chain([1000, 1001, 1002, 4800]) {
            assert_eq!(pem_len(length), to_pem(&vec![0; length]).len(), "{length}");
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
