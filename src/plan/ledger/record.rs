//! Records, and the bytes that they are.
//!
//! A record is `kind (1 octet), length (2 octets, big-endian), body`. Records are only ever appended;
//! one of an unknown kind stops the reader, so that a newer format is never half understood.

use std::sync::Arc;

use jiff::Timestamp;

use crate::pki::Serial;

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
    /// Its subject as RFC 4514 has it, at most [`SUBJECT_OCTETS`] long, the end of a longer one cut off;
    /// absent when it is empty, and in records of versions that did not note it.
    pub subject: Option<Arc<str>>,
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

/// The SHA-256 of a certificate, which is known only after its serial is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Its serial number.
    pub serial: Serial,
    /// SHA-256 of its DER.
    pub fingerprint: [u8; 32],
}

/// One entry of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Written before the certificate is signed.
    Issued(Issued),
    /// Written before the CRL is.
    Revoked(Revoked),
    /// Written at leisure after the certificate is signed.
    Signed(Signed),
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

/// A subject is noted up to this length: an octet tells it.
pub const SUBJECT_OCTETS: usize = 255;

const ISSUED: u8 = 1;
const REVOKED: u8 = 2;
const SIGNED: u8 = 3;

/// How an issuance goes on after the holder's name. The first version's records end there; the second
/// one's go on with 0 or 1, which is `retain`, and when it was issued, or with 2 alone: retained, time
/// unknown. A subject follows only where this bit is set; then the others say what else does.
const WITH_SUBJECT: u8 = 4;
const RETAINED: u8 = 1;
const DATED: u8 = 8;
/// Ends a record without issuance time that was appended anew since its holder retains it.
const RETAIN_ONLY: u8 = 2;

impl Record {
    /// The serial that the record is about.
    pub fn serial(&self) -> Serial {
        match self {
            Self::Issued(issued) => issued.serial,
            Self::Revoked(revoked) => revoked.serial,
            Self::Signed(signed) => signed.serial,
        }
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(160);
        let kind = match self {
            Self::Issued(issued) => {
                put_bytes(&mut body, issued.serial.as_be_bytes());
                body.extend_from_slice(&issued.revision.to_be_bytes());
                body.extend_from_slice(&issued.not_after.as_second().to_be_bytes());
                for text in [&issued.holder.uid, &issued.holder.namespace, &issued.holder.name] {
                    put_bytes(&mut body, text.as_bytes());
                }
                put_facts(&mut body, issued);
                ISSUED
            }
            Self::Revoked(revoked) => {
                put_bytes(&mut body, revoked.serial.as_be_bytes());
                body.extend_from_slice(&revoked.revoked_at.as_second().to_be_bytes());
                body.push(revoked.reason.unwrap_or(0));
                REVOKED
            }
            Self::Signed(signed) => {
                put_bytes(&mut body, signed.serial.as_be_bytes());
                body.extend_from_slice(&signed.fingerprint);
                SIGNED
            }
        };
        out.push(kind);
        out.extend_from_slice(&(body.len() as u16).to_be_bytes());
        out.extend_from_slice(&body);
    }

    /// Reads all records of a segment.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, DecodeError> {
        match Self::decode_prefix(bytes) {
            (records, None) => Ok(records),
            (_, Some(error)) => Err(error),
        }
    }

    /// Reads the records of a segment up to the first that can't be read, and why it can't.
    pub fn decode_prefix(bytes: &[u8]) -> (Vec<Self>, Option<DecodeError>) {
        let mut records = Vec::new();
        let mut offset = 0;
        while offset < bytes.len() {
            match Self::decode(bytes, offset) {
                Ok((record, end)) => {
                    records.push(record);
                    offset = end;
                }
                Err(error) => return (records, Some(error)),
            }
        }
        (records, None)
    }

    /// Reads the record at an offset; tells where it ends.
    fn decode(bytes: &[u8], offset: usize) -> Result<(Self, usize), DecodeError> {
        let truncated = DecodeError::Truncated(offset);
        let Some(&[kind, high, low]) = bytes.get(offset..offset + 3) else {
            return Err(truncated);
        };
        let end = offset + 3 + usize::from(u16::from_be_bytes([high, low]));
        let mut reader = Reader(bytes.get(offset + 3..end).ok_or(truncated)?);
        let record = match kind {
            ISSUED => reader.issued().map(Self::Issued),
            REVOKED => reader.revoked().map(Self::Revoked),
            SIGNED => reader.signed().map(Self::Signed),
            other => return Err(DecodeError::UnknownKind(other, offset)),
        };
        match record {
            Some(record) if reader.0.is_empty() => Ok((record, end)),
            _ => Err(DecodeError::Damaged(offset)),
        }
    }
}

/// A subject as a record holds it.
pub fn bounded_subject(subject: &str) -> Option<Arc<str>> {
    let end = subject.floor_char_boundary(SUBJECT_OCTETS);
    Some(&subject[..end]).filter(|subject| !subject.is_empty()).map(Arc::from)
}

/// What later versions note of an issuance.
fn put_facts(body: &mut Vec<u8>, issued: &Issued) {
    let dated = |body: &mut Vec<u8>, issued_at: Timestamp| {
        body.extend_from_slice(&issued.supersedes.to_be_bytes());
        body.extend_from_slice(&issued_at.as_second().to_be_bytes());
    };
    let retained = if issued.retain { RETAINED } else { 0 };
    match (&issued.subject, issued.issued_at) {
        (Some(subject), issued_at) => {
            let time = issued_at.map_or(0, |_| DATED);
            body.push(WITH_SUBJECT | retained | time);
            if let Some(issued_at) = issued_at {
                dated(body, issued_at);
            }
            put_bytes(body, subject.as_bytes());
        }
        (None, Some(issued_at)) => {
            body.push(retained);
            dated(body, issued_at);
        }
        (None, None) if issued.retain => body.push(RETAIN_ONLY),
        (None, None) => {}
    }
}

/// A length in one octet, then the bytes. Names of the API have at most 253.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u8::try_from(bytes.len())
        .expect("UIDs, names, subjects and serials have at most 255 octets");
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
            subject: None,
            issued_at: None,
            supersedes: 0,
            retain: false,
        };
        if self.0.is_empty() {
            return Some(issued);
        }
        let [facts] = self.array()?;
        let (dated, subject) = match facts {
            0 | RETAINED => (true, false),
            RETAIN_ONLY => (false, false),
            _ if facts & !(RETAINED | DATED) == WITH_SUBJECT => (facts & DATED != 0, true),
            _ => return None,
        };
        issued.retain = facts == RETAIN_ONLY || facts & RETAINED != 0;
        if dated {
            issued.supersedes = u32::from_be_bytes(self.array()?);
            issued.issued_at = Some(self.time()?);
        }
        if subject {
            issued.subject = Some(self.text()?).filter(|subject| !subject.is_empty());
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

    fn signed(&mut self) -> Option<Signed> {
        Some(Signed { serial: self.serial()?, fingerprint: self.array()? })
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::ledger::tests::{issued, revoked};
    use proptest::prelude::*;

    #[test]
    fn a_subject_is_cut_between_characters_and_an_empty_one_is_none() {
        assert_eq!(bounded_subject(""), None);
        assert_eq!(bounded_subject("CN=a").as_deref(), Some("CN=a"));
        assert_eq!(bounded_subject(&"\u{e4}".repeat(128)), Some("\u{e4}".repeat(127).into()));
    }

    #[test]
    fn what_stands_before_a_damaged_record_is_read() {
        let mut bytes = Vec::new();
        Record::Revoked(revoked("0a", 1)).encode(&mut bytes);
        let whole = bytes.len();
        bytes.extend([REVOKED, 0, 2, 1]);
        let (records, error) = Record::decode_prefix(&bytes);
        assert_eq!(records, [Record::Revoked(revoked("0a", 1))]);
        assert_eq!(error, Some(DecodeError::Truncated(whole)));
        assert!(Record::decode_all(&bytes).is_err());
    }

    #[test]
    fn records_survive_storage() {
        let records = vec![
            Record::Issued(issued("0a0b", "uid-1", 3, 1000)),
            Record::Revoked(revoked("0a0b", 500)),
            Record::Signed(Signed { serial: "0a0b".parse().unwrap(), fingerprint: [7; 32] }),
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
            Issued { issued_at: Some(Timestamp::UNIX_EPOCH), retain: true, ..old.clone() },
            Issued { subject: Some("CN=a".into()), ..old.clone() },
            Issued { subject: bounded_subject(&"\u{e4}".repeat(128)), retain: true, ..old },
        ] {
            let mut bytes = Vec::new();
            Record::Issued(changed.clone()).encode(&mut bytes);
            assert_eq!(Record::decode_all(&bytes), Ok(vec![Record::Issued(changed)]));
        }
    }

    fn instant() -> impl Strategy<Value = Timestamp> {
        (0_i64..4_000_000_000).prop_map(|second| Timestamp::from_second(second).unwrap())
    }

    fn serial() -> impl Strategy<Value = Serial> {
        proptest::collection::vec(1_u8.., 1..20).prop_map(|b| Serial::from_be_bytes(&b).unwrap())
    }

    /// Any record.
    pub(crate) fn record() -> impl Strategy<Value = Record> {
        let facts = (any::<u32>(), any::<bool>(), proptest::option::of(instant()), ".{0,80}");
        let issued = (
            serial(),
            any::<u32>(),
            instant(),
            ["[a-z]{1,5}", "[a-z]{1,63}", "[a-z]{1,253}"],
            facts,
        )
            .prop_map(|(serial, revision, not_after, [uid, namespace, name], facts)| {
                let (supersedes, retain, issued_at, subject) = facts;
                Record::Issued(Issued {
                    serial,
                    revision,
                    not_after,
                    holder: Holder {
                        uid: uid.into(),
                        namespace: namespace.into(),
                        name: name.into(),
                    },
                    subject: bounded_subject(&subject),
                    // Without a time nothing was superseded, by the first version's records.
                    supersedes: if issued_at.is_some() { supersedes } else { 0 },
                    issued_at,
                    retain,
                })
            });
        let revoked = (serial(), instant(), proptest::option::of(1_u8..=10)).prop_map(
            |(serial, revoked_at, reason)| Record::Revoked(Revoked { serial, revoked_at, reason }),
        );
        let signed = (serial(), any::<[u8; 32]>())
            .prop_map(|(serial, fingerprint)| Record::Signed(Signed { serial, fingerprint }));
        prop_oneof![issued, revoked, signed]
    }

    proptest! {
        #[test]
        fn every_record_is_read_back(records in proptest::collection::vec(record(), 0..8)) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            prop_assert_eq!(Record::decode_all(&bytes), Ok(records));
        }

        #[test]
        fn reading_foreign_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode_all(&bytes);
        }
    }
}
