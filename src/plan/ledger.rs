//! The ledger as data: what was signed and what was revoked, and the bytes that record it.
//!
//! A record is `kind (1 octet), length (2 octets, big-endian), body`. Records are only ever appended;
//! one of an unknown kind stops the reader, so that a newer format is never half understood.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use crate::pki::Serial;
use crate::pki::crl::{CrlFacts, Entry};

/// One CA certificate of an authority: its name and the number of the generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaKey {
    /// Name of the `ClientAuthority`.
    pub authority: Arc<str>,
    /// Number of the generation, from 1.
    pub generation: u32,
}

impl CaKey {
    /// The first generation of an authority.
    pub fn first(authority: &str) -> Self {
        Self { authority: authority.into(), generation: 1 }
    }
}

impl fmt::Display for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.authority, self.generation)
    }
}

/// Who a certificate was issued to. The object may be gone; this is not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// UID of the `ClientIdentity`.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A certificate that was, or was about to be, signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Its serial number.
    pub serial: Serial,
    /// The number of the issuance for this holder.
    pub revision: u32,
    /// End of its validity.
    pub not_after: Timestamp,
    /// Who it was issued to.
    pub holder: Holder,
    /// When it was issued; absent in records of versions that did not note it.
    pub issued_at: Option<Timestamp>,
    /// Revision of the certificate that it replaces in the Secret; 0 when there was none.
    pub supersedes: u32,
    /// Does it outlive its holder (`deletionPolicy: Retain`)? When the policy changes the record is
    /// appended anew, and the last one counts.
    pub retain: bool,
}

/// A certificate that was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number.
    pub serial: Serial,
    /// When.
    pub revoked_at: Timestamp,
    /// CRLReason code; absent instead of `unspecified`.
    pub reason: Option<u8>,
}

/// One entry of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Written before the certificate is signed.
    Issued(Issued),
    /// Written before the CRL is.
    Revoked(Revoked),
}

/// Why bytes are not records.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end within a record.
    #[error("record at offset {0} is cut short")]
    Truncated(usize),
    /// A kind that this version does not know.
    #[error("record at offset {1} has unknown kind {0}: it was written by a newer version")]
    UnknownKind(u8, usize),
    /// A field holds something impossible.
    #[error("record at offset {0} is damaged")]
    Damaged(usize),
}

const ISSUED: u8 = 1;
const REVOKED: u8 = 2;
/// Ends a record without issuance time that was appended anew since its holder retains it.
const RETAIN_ONLY: u8 = 2;

impl Record {
    /// The serial that the record is about.
    pub fn serial(&self) -> Serial {
        match self {
            Self::Issued(issued) => issued.serial,
            Self::Revoked(revoked) => revoked.serial,
        }
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(96);
        let kind = match self {
            Self::Issued(issued) => {
                put_bytes(&mut body, issued.serial.as_be_bytes());
                body.extend_from_slice(&issued.revision.to_be_bytes());
                body.extend_from_slice(&issued.not_after.as_second().to_be_bytes());
                for text in [&issued.holder.uid, &issued.holder.namespace, &issued.holder.name] {
                    put_bytes(&mut body, text.as_bytes());
                }
                if let Some(issued_at) = issued.issued_at {
                    body.push(u8::from(issued.retain));
                    body.extend_from_slice(&issued.supersedes.to_be_bytes());
                    body.extend_from_slice(&issued_at.as_second().to_be_bytes());
                } else if issued.retain {
                    body.push(RETAIN_ONLY);
                }
                ISSUED
            }
            Self::Revoked(revoked) => {
                put_bytes(&mut body, revoked.serial.as_be_bytes());
                body.extend_from_slice(&revoked.revoked_at.as_second().to_be_bytes());
                body.push(revoked.reason.unwrap_or(0));
                REVOKED
            }
        };
        out.push(kind);
        out.extend_from_slice(&(body.len() as u16).to_be_bytes());
        out.extend_from_slice(&body);
    }

    /// Reads all records of a segment.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, DecodeError> {
        let mut records = Vec::new();
        let mut offset = 0;
        while offset < bytes.len() {
            let truncated = DecodeError::Truncated(offset);
            let Some(&[kind, high, low]) = bytes.get(offset..offset + 3) else {
                return Err(truncated);
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let body = bytes.get(offset + 3..offset + 3 + length).ok_or(truncated)?;
            let mut reader = Reader(body);
            let record = match kind {
                ISSUED => reader.issued().map(Self::Issued),
                REVOKED => reader.revoked().map(Self::Revoked),
                other => return Err(DecodeError::UnknownKind(other, offset)),
            };
            match record {
                Some(record) if reader.0.is_empty() => records.push(record),
                _ => return Err(DecodeError::Damaged(offset)),
            }
            offset += 3 + length;
        }
        Ok(records)
    }
}

/// A length in one octet, then the bytes. Names of the API have at most 253.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length =
        u8::try_from(bytes.len()).expect("UIDs, names and serials have at most 255 octets");
    out.push(length);
    out.extend_from_slice(bytes);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn issued(&mut self) -> Option<Issued> {
        let mut issued = Issued {
            serial: self.serial()?,
            revision: u32::from_be_bytes(self.array()?),
            not_after: self.time()?,
            holder: Holder { uid: self.text()?, namespace: self.text()?, name: self.text()? },
            issued_at: None,
            supersedes: 0,
            retain: false,
        };
        // The first version's records end here.
        if !self.0.is_empty() {
            let [kind] = self.array()?;
            issued.retain = kind != 0;
            match kind {
                0 | 1 => {
                    issued.supersedes = u32::from_be_bytes(self.array()?);
                    issued.issued_at = Some(self.time()?);
                }
                RETAIN_ONLY => {}
                _ => return None,
            }
        }
        Some(issued)
    }

    fn revoked(&mut self) -> Option<Revoked> {
        Some(Revoked {
            serial: self.serial()?,
            revoked_at: self.time()?,
            reason: Some(self.array::<1>()?[0]).filter(|code| *code != 0),
        })
    }

    fn serial(&mut self) -> Option<Serial> {
        Serial::from_be_bytes(self.bytes()?).ok()
    }

    fn time(&mut self) -> Option<Timestamp> {
        Timestamp::from_second(i64::from_be_bytes(self.array()?)).ok()
    }

    fn text(&mut self) -> Option<Arc<str>> {
        std::str::from_utf8(self.bytes()?).ok().map(Arc::from)
    }

    fn bytes(&mut self) -> Option<&[u8]> {
        let (length, rest) = self.0.split_first()?;
        let (bytes, rest) = rest.split_at_checked(usize::from(*length))?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }
}

/// All records of one CA, found by serial and by holder.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    issued: BTreeMap<Serial, Issued>,
    revoked: BTreeMap<Serial, Revoked>,
    by_holder: HashMap<Arc<str>, Vec<Serial>>,
}

impl Ledger {
    /// Takes a record in. Taking it in again changes nothing. Of two issuances of one serial the last
    /// counts, which may say another `retain`; of two revocations the first, since a revocation date
    /// must not move.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Issued(issued) => {
                let serial = issued.serial;
                let uid = issued.holder.uid.clone();
                if self.issued.insert(serial, issued).is_none() {
                    self.by_holder.entry(uid).or_default().push(serial);
                }
            }
            Record::Revoked(revoked) => {
                self.revoked.entry(revoked.serial).or_insert(revoked);
            }
        }
    }

    /// Does the record stand here already?
    pub fn holds(&self, record: &Record) -> bool {
        match record {
            Record::Issued(issued) => self.issued.get(&issued.serial) == Some(issued),
            Record::Revoked(revoked) => self.revoked.contains_key(&revoked.serial),
        }
    }

    /// Is nothing recorded?
    pub fn is_empty(&self) -> bool {
        self.issued.is_empty() && self.revoked.is_empty()
    }

    /// The certificate of this serial.
    pub fn find(&self, serial: &Serial) -> Option<&Issued> {
        self.issued.get(serial)
    }

    /// The revocation of this serial.
    pub fn revocation(&self, serial: &Serial) -> Option<&Revoked> {
        self.revoked.get(serial)
    }

    /// Every certificate, in the order of serials.
    pub fn issued(&self) -> impl Iterator<Item = &Issued> {
        self.issued.values()
    }

    /// Every revocation, in the order of serials.
    pub fn revoked(&self) -> impl Iterator<Item = &Revoked> {
        self.revoked.values()
    }

    /// Every certificate of a holder, oldest first.
    pub fn of_holder(&self, uid: &str) -> impl Iterator<Item = &Issued> {
        self.by_holder.get(uid).into_iter().flatten().filter_map(|serial| self.issued.get(serial))
    }

    /// The highest revision recorded for a holder; 0 when there is none.
    pub fn last_revision(&self, uid: &str) -> u32 {
        self.of_holder(uid).map(|issued| issued.revision).max().unwrap_or(0)
    }

    /// Certificates that have not expired and are not revoked.
    pub fn live(&self, now: Timestamp) -> impl Iterator<Item = &Issued> {
        self.issued.values().filter(move |issued| {
            issued.not_after > now && !self.revoked.contains_key(&issued.serial)
        })
    }

    /// How many revoked certificates have not expired.
    pub fn revoked_count(&self, now: Timestamp) -> usize {
        self.revoked.keys().filter(|serial| self.expiry(serial).is_none_or(|end| end > now)).count()
    }

    /// The entries of the next CRL, sorted by serial. A revoked certificate leaves only after it stood
    /// in a CRL that was made after its notAfter (RFC 5280 section 3.3).
    pub fn crl_entries(&self, published: Option<&CrlFacts>) -> Vec<Entry> {
        self.revoked
            .values()
            .filter(|revoked| !self.may_leave(&revoked.serial, published))
            .map(|revoked| Entry {
                serial: revoked.serial,
                revoked_at: revoked.revoked_at,
                reason: revoked.reason,
            })
            .collect()
    }

    /// May this serial be missing from the CRL that follows the published one?
    pub fn may_leave(&self, serial: &Serial, published: Option<&CrlFacts>) -> bool {
        // A serial of which we know no expiry stays for ever: better a long CRL than a short one.
        let Some((published, end)) = published.zip(self.expiry(serial)) else {
            return false;
        };
        end < published.this_update
    }

    fn expiry(&self, serial: &Serial) -> Option<Timestamp> {
        self.issued.get(serial).map(|issued| issued.not_after)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pki::crl::CrlNumber;
    use proptest::prelude::*;

    pub(crate) fn issued(serial: &str, uid: &str, revision: u32, not_after: i64) -> Issued {
        Issued {
            serial: serial.parse().unwrap(),
            revision,
            not_after: Timestamp::from_second(not_after).unwrap(),
            holder: Holder { uid: uid.into(), namespace: "team".into(), name: "laptop".into() },
            issued_at: None,
            supersedes: 0,
            retain: false,
        }
    }

    pub(crate) fn revoked(serial: &str, at: i64) -> Revoked {
        Revoked {
            serial: serial.parse().unwrap(),
            revoked_at: Timestamp::from_second(at).unwrap(),
            reason: Some(1),
        }
    }

    fn published(this_update: i64, serials: &[&str]) -> CrlFacts {
        let this_update = Timestamp::from_second(this_update).unwrap();
        CrlFacts {
            number: CrlNumber(1),
            this_update,
            next_update: this_update,
            issuer_der: vec![],
            authority_key_id: vec![],
            serials: serials.iter().map(|serial| serial.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn records_survive_storage() {
        let records = vec![
            Record::Issued(issued("0a0b", "uid-1", 3, 1000)),
            Record::Revoked(revoked("0a0b", 500)),
            Record::Revoked(Revoked { reason: None, ..revoked("0c", 501) }),
        ];
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        assert_eq!(Record::decode_all(&bytes), Ok(records));
        assert_eq!(
            Record::decode_all(&bytes[..bytes.len() - 1]).map(|records| records.len()),
            Err(DecodeError::Truncated(bytes.len() - 14))
        );
        bytes.extend([9, 0, 0]);
        assert!(matches!(Record::decode_all(&bytes), Err(DecodeError::UnknownKind(9, _))));
    }

    #[test]
    fn records_of_the_first_version_are_read_and_new_facts_survive() {
        let old = issued("0a0b", "uid-1", 3, 1000);
        let mut bytes = Vec::new();
        Record::Issued(old.clone()).encode(&mut bytes);
        // kind, length, serial, revision, notAfter, uid, namespace, name: nothing else.
        assert_eq!(bytes.len(), 3 + 3 + 4 + 8 + 6 + 5 + 7);
        assert_eq!(Record::decode_all(&bytes), Ok(vec![Record::Issued(old.clone())]));
        for changed in [
            Issued { retain: true, ..old.clone() },
            Issued { issued_at: Some(Timestamp::UNIX_EPOCH), supersedes: 2, ..old.clone() },
            Issued { issued_at: Some(Timestamp::UNIX_EPOCH), retain: true, ..old },
        ] {
            let mut bytes = Vec::new();
            Record::Issued(changed.clone()).encode(&mut bytes);
            assert_eq!(Record::decode_all(&bytes), Ok(vec![Record::Issued(changed)]));
        }
    }

    #[test]
    fn the_last_word_on_retaining_counts() {
        let first = issued("0a", "uid-1", 1, 1000);
        let second = Issued { retain: true, ..first.clone() };
        let mut ledger = Ledger::default();
        ledger.apply(Record::Issued(first.clone()));
        assert!(!ledger.holds(&Record::Issued(second.clone())), "a change must be appended");
        ledger.apply(Record::Issued(second));
        assert!(ledger.find(&first.serial).unwrap().retain);
        assert_eq!(ledger.of_holder("uid-1").count(), 1);
        ledger.apply(Record::Issued(first.clone()));
        assert!(!ledger.find(&first.serial).unwrap().retain);
    }

    #[test]
    fn a_revoked_serial_leaves_only_after_a_crl_made_past_its_expiry() {
        let mut ledger = Ledger::default();
        ledger.apply(Record::Issued(issued("0a", "uid-1", 1, 1000)));
        ledger.apply(Record::Revoked(revoked("0a", 500)));
        let listed = |crl: Option<&CrlFacts>| ledger.crl_entries(crl).len();
        assert_eq!(listed(None), 1);
        assert_eq!(listed(Some(&published(999, &["0a"]))), 1);
        assert_eq!(listed(Some(&published(1000, &["0a"]))), 1);
        assert_eq!(listed(Some(&published(1001, &["0a"]))), 0);
    }

    #[test]
    fn a_revocation_of_unknown_expiry_stays() {
        let mut ledger = Ledger::default();
        ledger.apply(Record::Revoked(revoked("0a", 500)));
        assert_eq!(ledger.crl_entries(Some(&published(i32::MAX.into(), &[]))).len(), 1);
    }

    #[test]
    fn the_first_revocation_counts() {
        let mut ledger = Ledger::default();
        ledger.apply(Record::Revoked(revoked("0a", 500)));
        ledger.apply(Record::Revoked(revoked("0a", 900)));
        let kept = ledger.revocation(&"0a".parse().unwrap()).unwrap();
        assert_eq!(kept.revoked_at.as_second(), 500);
    }

    #[test]
    fn live_certificates_and_revisions_are_counted_by_holder() {
        let mut ledger = Ledger::default();
        for (serial, uid, revision, end) in
            [("01", "a", 1, 50), ("02", "a", 2, 500), ("03", "b", 1, 500)]
        {
            ledger.apply(Record::Issued(issued(serial, uid, revision, end)));
        }
        ledger.apply(Record::Revoked(revoked("03", 10)));
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(ledger.live(now).count(), 1);
        assert_eq!(ledger.revoked_count(now), 1);
        assert_eq!(ledger.last_revision("a"), 2);
        assert_eq!(ledger.last_revision("nobody"), 0);
    }

    proptest! {
        #[test]
        fn reading_foreign_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode_all(&bytes);
        }
    }
}
