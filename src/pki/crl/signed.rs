//! A CRL as whoever serves it and asks it needs it: signed by its CA, with an index of the revoked serials
//! in its own bytes, four octets an entry.

use bytes::Bytes;
use jiff::Timestamp;
use x509_parser::der_parser::asn1_rs::BitString;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AlgorithmIdentifier;

use super::frame::{self, Frame, ID_CE_DELTA_CRL_INDICATOR, ID_CE_ISSUING_DISTRIBUTION_POINT};
use super::{CrlError, CrlNumber};
use crate::pki::Serial;
use crate::pki::der::{self, INTEGER, SEQUENCE};
use crate::pki::public_key::verify_signature;

/// A CRL whose signature is its CA's.
#[derive(Clone)]
pub struct SignedCrl {
    /// The CRL, DER.
    pub der: Bytes,
    /// Its number.
    pub number: CrlNumber,
    /// When it was made.
    pub this_update: Timestamp,
    /// When it expires.
    pub next_update: Timestamp,
    /// Issuer Name, DER: the CA's subject.
    pub issuer_der: Vec<u8>,
    /// Authority key identifier: the CA's subject key identifier.
    pub authority_key_id: Vec<u8>,
    /// The revoked serials.
    pub revoked: Revoked,
    /// Does it speak of every certificate of the CA? A delta, or a CRL of another scope, has a critical
    /// extension that says what it lacks (RFC 5280 sections 5.2.4 and 5.2.5).
    pub is_complete: bool,
    /// The URL of a shard: all that it speaks of are the certificates whose distribution point is this one.
    pub distribution_point: Option<String>,
    /// The complete CRL to which a delta CRL adds.
    pub base: Option<CrlNumber>,
}

/// The revoked serials of a CRL. A set of a million takes 4 MB beside the CRL itself, which is in memory
/// anyway; as a hash set it would take 46 MB.
#[derive(Clone)]
pub struct Revoked {
    // The entries, within the CRL.
    entries: Bytes,
    // Where each serial stands in them, in the order of the serials.
    offsets: Box<[u32]>,
}

impl Revoked {
    /// Is the certificate with this serial revoked?
    pub fn contains(&self, serial: &Serial) -> bool {
        let at =
            |offset: &u32| serial_at(&self.entries, *offset).expect("every entry was read before");
        self.offsets.binary_search_by(|offset| at(offset).cmp(serial)).is_ok()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }
}

/// Reads a CRL (RFC 5280 section 5.1) and checks that this CA signed it.
pub fn read_signed(der: Bytes, ca: &[u8]) -> Result<SignedCrl, CrlError> {
    let unusable = CrlError::Unusable;
    let (_, ca) =
        X509Certificate::from_der(ca).map_err(|_| unusable("the CA certificate can't be read"))?;
    let frame = Frame::read(&der)?;
    check_signature(&frame, &ca)?;
    if frame.issuer != ca.subject().as_raw() {
        return Err(unusable("another issuer than the CA"));
    }
    let authority_key_id = frame.authority_key_id().unwrap_or_default().to_vec();
    let key_id = ca.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    });
    if key_id.is_some_and(|id| id != authority_key_id) {
        return Err(unusable("another authority key identifier than the CA's"));
    }
    let instant = |field| frame::time(field).ok_or(unusable("a time can't be read"));
    let entries = frame.revoked.unwrap_or_default();
    let critical = frame.extensions.iter().filter(|extension| extension.critical);
    let critical: Vec<&[u8]> = critical.map(|extension| extension.oid).collect();
    // One says what the CRL speaks of; several are none of ours.
    let says = |oid| critical == [oid];
    let url = frame.distribution_point().filter(|_| says(ID_CE_ISSUING_DISTRIBUTION_POINT));
    Ok(SignedCrl {
        number: frame.number().ok_or(unusable("no CRL number"))?,
        this_update: instant(frame.this_update)?,
        next_update: instant(frame.next_update.ok_or(unusable("no nextUpdate"))?)?,
        issuer_der: frame.issuer.to_vec(),
        authority_key_id,
        revoked: Revoked { entries: der.slice_ref(entries), offsets: index(entries)? },
        is_complete: critical.is_empty(),
        distribution_point: url.and_then(|url| Some(str::from_utf8(url).ok()?.to_owned())),
        base: frame.base().filter(|_| says(ID_CE_DELTA_CRL_INDICATOR)),
        der,
    })
}

pub(super) fn check_signature(frame: &Frame<'_>, ca: &X509Certificate<'_>) -> Result<(), CrlError> {
    let algorithm = AlgorithmIdentifier::from_der(frame.outer_algorithm);
    let signature = BitString::from_der(frame.signature);
    let (Ok((_, algorithm)), Ok((_, signature))) = (algorithm, signature) else {
        return Err(CrlError::Signature);
    };
    // RFC 5280 section 5.1.1.2: the algorithm that is signed is the same.
    if frame.inner_algorithm != frame.outer_algorithm || signature.unused_bits != 0 {
        return Err(CrlError::Signature);
    }
    verify_signature(ca.public_key(), &algorithm, &signature, frame.tbs)
        .map_err(|_| CrlError::Signature)
}

/// Where the serial of each entry stands, in the order of the serials.
fn index(entries: &[u8]) -> Result<Box<[u32]>, CrlError> {
    let unusable = CrlError::Unusable;
    if u32::try_from(entries.len()).is_err() {
        return Err(unusable("longer than 4 GiB"));
    }
    // An entry of ours with a serial of 16 octets has 35, or 49 with a reason.
    let mut offsets = Vec::with_capacity(entries.len() / 35 + 1);
    let mut values = der::Values(entries);
    let mut at = 0;
    for entry in values.by_ref() {
        let content = der::read(entry, SEQUENCE).ok_or(unusable("an entry is no SEQUENCE"))?;
        let offset = (at + entry.len() - content.len()) as u32;
        serial_at(entries, offset).ok_or(unusable("a serial number is not positive"))?;
        offsets.push(offset);
        at += entry.len();
    }
    if !values.0.is_empty() {
        return Err(unusable("an entry can't be read"));
    }
    let serial = |offset: &u32| serial_at(entries, *offset).expect("read above");
    if !offsets.is_sorted_by_key(serial) {
        offsets.sort_unstable_by_key(serial);
    }
    Ok(offsets.into_boxed_slice())
}

/// The serial whose INTEGER begins there.
fn serial_at(entries: &[u8], offset: u32) -> Option<Serial> {
    let value = der::Values(&entries[offset as usize..]).next()?;
    let digits = der::read(value, INTEGER)?;
    // A set top bit is a negative number.
    let positive = digits.first().is_some_and(|first| first & 0x80 == 0);
    positive.then(|| Serial::from_be_bytes(digits).ok()).flatten()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pki::CertificateAuthority;
    use crate::pki::KeyType;
    use crate::pki::authority::tests::{instant, sample, sample_of};
    use crate::pki::crl::{self, Entry};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn signed(ca: &CertificateAuthority, serials: &[Serial]) -> Bytes {
        let (this, next) = (instant("2026-05-01T10:00:00Z"), instant("2051-01-01T00:00:00Z"));
        let entry = |serial: &Serial| Entry { serial: *serial, revoked_at: this, reason: Some(1) };
        let entries: Vec<Entry> = serials.iter().map(entry).collect();
        crl::sign(ca, CrlNumber(7), this, next, &entries).unwrap().into()
    }

    fn serials(count: usize) -> Vec<Serial> {
        let mut serials: Vec<Serial> = (0..count).map(|_| Serial::random()).collect();
        serials.sort_unstable();
        serials
    }

    #[test]
    fn it_says_what_the_other_reader_says() {
        let ca = sample();
        for count in [0, 1, 7, 3000] {
            let mut serials = serials(count);
            // Of another length, as foreign CAs have them.
            serials.splice(0..0, (count > 0).then(|| "0aff".parse().unwrap()));
            let der = signed(&ca, &serials);
            let read = read_signed(der.clone(), ca.certificate()).unwrap();
            let facts = crl::read(&der).unwrap();
            assert_eq!(
                (read.number, read.this_update, read.next_update),
                (facts.number, facts.this_update, facts.next_update)
            );
            assert_eq!(
                (read.issuer_der, read.authority_key_id),
                (facts.issuer_der, facts.authority_key_id)
            );
            assert_eq!(read.revoked.len(), facts.serials.len());
            assert_eq!(read.revoked.is_empty(), count == 0);
            assert!(facts.serials.iter().all(|serial| read.revoked.contains(serial)));
            assert!(!(0..100).any(|_| read.revoked.contains(&Serial::random())));
        }
    }

    #[test]
    fn entries_in_any_order_are_found() {
        let (ca, serials) = (sample(), serials(50));
        let read = read_signed(signed(&ca, &serials), ca.certificate()).unwrap();
        let mut entries: Vec<&[u8]> = der::Values(&read.revoked.entries).collect();
        entries.reverse();
        let entries = Bytes::from(entries.concat());
        let revoked = Revoked { offsets: index(&entries).unwrap(), entries };
        assert!(serials.iter().all(|serial| revoked.contains(serial)));
        assert!(!revoked.contains(&Serial::random()));
    }

    #[test]
    fn every_type_of_key_is_checked() {
        for key_type in KeyType::ALL {
            let ca = sample_of(key_type);
            let mut der = signed(&ca, &serials(2)).to_vec();
            assert!(read_signed(der.clone().into(), ca.certificate()).is_ok(), "{key_type:?}");
            *der.last_mut().unwrap() ^= 1;
            let refused = read_signed(der.into(), ca.certificate());
            assert!(matches!(refused, Err(CrlError::Signature)), "{key_type:?}");
        }
    }

    #[test]
    fn not_one_changed_octet_is_taken() {
        let ca = sample();
        let der = signed(&ca, &serials(2));
        for at in 0..der.len() {
            let mut changed = der.to_vec();
            changed[at] ^= 1;
            assert!(read_signed(changed.into(), ca.certificate()).is_err(), "octet {at}");
        }
        for end in 0..der.len() {
            assert!(read_signed(der.slice(..end), ca.certificate()).is_err(), "{end} octets");
        }
        assert!(read_signed([&der[..], &[0]].concat().into(), ca.certificate()).is_err());
    }

    /// A delta CRL, DER: with a critical deltaCRLIndicator (RFC 5280 section 5.2.4), base CRL number 1.
    pub(crate) fn delta(ca: &CertificateAuthority) -> Vec<u8> {
        let whole = signed(ca, &[]);
        let [tbs, ..] = der::parts::<3>(&whole, SEQUENCE).unwrap();
        let fields: Vec<&[u8]> = der::Values(der::read(tbs, SEQUENCE).unwrap()).collect();
        let (extensions, before) = fields.split_last().unwrap();
        let list = der::read(der::read(extensions, 0xa0).unwrap(), SEQUENCE).unwrap();
        let delta = [
            &der::tlv(der::OID, &[0x55, 0x1d, 0x1b])[..],
            &[1, 1, 0xff],
            &der::tlv(der::OCTET_STRING, &[2, 1, 1]),
        ];
        let list = [list, &der::tlv(SEQUENCE, &delta.concat())].concat();
        let extensions = der::tlv(0xa0, &der::tlv(SEQUENCE, &list));
        let body = [&before.concat()[..], &extensions].concat();
        crate::pki::encode::signed(der::tlv(SEQUENCE, &body), ca.signer()).unwrap()
    }

    #[test]
    fn a_crl_of_a_scope_of_its_own_is_told_from_a_complete_one() {
        let ca = sample();
        let (this, next) = (instant("2026-05-01T10:00:00Z"), instant("2051-01-01T00:00:00Z"));
        let url = "http://crl.example.com/crl/staff/1/0-of-4.crl";
        let complete = crl::CrlParams::complete(CrlNumber(7), this, next);
        let params = crl::CrlParams { distribution_point: Some(url), ..complete };
        let shard = crl::encode(&ca, &params, &crl::Index::default()).unwrap().der;
        let params = crl::CrlParams { base: Some(CrlNumber(1)), ..params };
        let both = crl::encode(&ca, &params, &crl::Index::default()).unwrap().der;
        for (der, complete, point) in [
            (signed(&ca, &[]), true, (None, None)),
            (delta(&ca).into(), false, (None, Some(CrlNumber(1)))),
            (shard.into(), false, (Some(url), None)),
            (both.into(), false, (None, None)),
        ] {
            let read = read_signed(der, ca.certificate()).unwrap();
            let scope = (read.distribution_point.as_deref(), read.base);
            assert_eq!((read.is_complete, scope), (complete, point));
        }
    }

    #[test]
    fn another_cas_crl_is_refused() {
        let (ca, other) = (sample(), sample());
        let refused = read_signed(signed(&ca, &serials(2)), other.certificate());
        assert!(matches!(refused, Err(CrlError::Signature)));
    }

    static CA: LazyLock<CertificateAuthority> = LazyLock::new(sample);

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = index(&bytes);
            let _ = read_signed(bytes.into(), CA.certificate());
        }
    }
}
