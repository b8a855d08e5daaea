//! The ledger as data: what was signed and what was revoked.

pub mod compaction;
pub mod record;
pub mod recovery;
pub mod segment;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use crate::pki::Serial;
use crate::pki::crl::{CrlFacts, Entry};

pub use record::{DecodeError, Holder, Issued, Record, Revoked, Signed};

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

/// A record that is found by its serial alone: it is held once, without a key beside it.
#[derive(Clone, Debug)]
struct BySerial<T>(T);

trait HasSerial {
    fn serial(&self) -> &Serial;
}

impl HasSerial for Issued {
    fn serial(&self) -> &Serial {
        &self.serial
    }
}

impl HasSerial for Revoked {
    fn serial(&self) -> &Serial {
        &self.serial
    }
}

impl<T: HasSerial> Borrow<Serial> for BySerial<T> {
    fn borrow(&self) -> &Serial {
        self.0.serial()
    }
}

impl<T: HasSerial> PartialEq for BySerial<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.serial() == other.0.serial()
    }
}

impl<T: HasSerial> Eq for BySerial<T> {}

impl<T: HasSerial> PartialOrd for BySerial<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: HasSerial> Ord for BySerial<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.serial().cmp(other.0.serial())
    }
}

/// All records of one CA, found by serial and by holder; by anything else they are looked through, which
/// takes milliseconds and no memory.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    issued: BTreeSet<BySerial<Issued>>,
    revoked: BTreeSet<BySerial<Revoked>>,
    fingerprints: BTreeMap<Serial, [u8; 32]>,
    by_holder: HashMap<Arc<str>, Vec<Serial>>,
    namespaces: HashSet<Arc<str>>,
}

impl Ledger {
    /// Takes a record in. Taking it in again changes nothing. Of two issuances of one serial the last
    /// counts, which may say another `retain` or, after a restore, another holder; of two revocations
    /// the first, since a revocation date must not move.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Issued(issued) => self.apply_issued(issued),
            Record::Revoked(revoked) => {
                self.revoked.insert(BySerial(revoked));
            }
            Record::Signed(signed) => {
                self.fingerprints.insert(signed.serial, signed.fingerprint);
            }
        }
    }

    fn apply_issued(&mut self, issued: Issued) {
        let serial = issued.serial;
        let issued = Issued { holder: self.shared(issued.holder), ..issued };
        let uid = issued.holder.uid.clone();
        let before = self.issued.replace(BySerial(issued)).map(|before| before.0.holder.uid);
        if before.as_ref() == Some(&uid) {
            return;
        }
        if let Some(before) = before
            && let Some(serials) = self.by_holder.get_mut(&before)
        {
            serials.retain(|held| *held != serial);
            if serials.is_empty() {
                self.by_holder.remove(&before);
            }
        }
        self.by_holder.entry(uid).or_default().push(serial);
    }

    /// The same holder in the strings that are held already: most records are of a known one.
    fn shared(&mut self, holder: Holder) -> Holder {
        let known = self.of_holder(&holder.uid).next().map(|issued| &issued.holder);
        if let Some(known) = known.filter(|known| **known == holder) {
            return known.clone();
        }
        let namespace = match self.namespaces.get(&holder.namespace) {
            Some(namespace) => namespace.clone(),
            None => {
                self.namespaces.insert(holder.namespace.clone());
                holder.namespace
            }
        };
        Holder { namespace, ..holder }
    }

    /// Does the record stand here already?
    pub fn holds(&self, record: &Record) -> bool {
        match record {
            Record::Issued(issued) => self.find(&issued.serial) == Some(issued),
            Record::Revoked(revoked) => self.revoked.contains(&revoked.serial),
            Record::Signed(signed) => {
                self.fingerprints.get(&signed.serial) == Some(&signed.fingerprint)
            }
        }
    }

    /// Is nothing recorded?
    pub fn is_empty(&self) -> bool {
        self.issued.is_empty() && self.revoked.is_empty()
    }

    /// The certificate of this serial.
    pub fn find(&self, serial: &Serial) -> Option<&Issued> {
        self.issued.get(serial).map(|found| &found.0)
    }

    /// The revocation of this serial.
    pub fn revocation(&self, serial: &Serial) -> Option<&Revoked> {
        self.revoked.get(serial).map(|found| &found.0)
    }

    /// SHA-256 of the certificate of this serial.
    pub fn fingerprint(&self, serial: &Serial) -> Option<&[u8; 32]> {
        self.fingerprints.get(serial)
    }

    /// The serial of the certificate with this SHA-256.
    pub fn find_fingerprint(&self, fingerprint: &[u8; 32]) -> Option<Serial> {
        let mut all = self.fingerprints.iter();
        all.find(|(_, known)| *known == fingerprint).map(|(serial, _)| *serial)
    }

    /// Every certificate, in the order of serials.
    pub fn issued(&self) -> impl Iterator<Item = &Issued> {
        self.issued.iter().map(|issued| &issued.0)
    }

    /// Every revocation, in the order of serials.
    pub fn revoked(&self) -> impl Iterator<Item = &Revoked> {
        self.revoked.iter().map(|revoked| &revoked.0)
    }

    /// Every certificate of a holder, oldest first.
    pub fn of_holder(&self, uid: &str) -> impl Iterator<Item = &Issued> {
        self.by_holder.get(uid).into_iter().flatten().filter_map(|serial| self.find(serial))
    }

    /// Every certificate of identities of this name, whatever their UID, in the order of serials.
    pub fn of_name(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Issued> {
        self.issued().filter(move |issued| {
            *issued.holder.name == *name && *issued.holder.namespace == *namespace
        })
    }

    /// Every certificate whose noted subject contains the text, in the order of serials.
    pub fn of_subject(&self, text: &str) -> impl Iterator<Item = &Issued> {
        self.issued()
            .filter(move |issued| issued.subject.as_ref().is_some_and(|s| s.contains(text)))
    }

    /// The highest revision recorded for a holder; 0 when there is none.
    pub fn last_revision(&self, uid: &str) -> u32 {
        self.of_holder(uid).map(|issued| issued.revision).max().unwrap_or(0)
    }

    /// Certificates that have not expired and are not revoked.
    pub fn live(&self, now: Timestamp) -> impl Iterator<Item = &Issued> {
        self.issued()
            .filter(move |issued| issued.not_after > now && !self.revoked.contains(&issued.serial))
    }

    /// How many revoked certificates have not expired.
    pub fn revoked_count(&self, now: Timestamp) -> usize {
        let unexpired = |serial| self.expiry(serial).is_none_or(|end| end > now);
        self.revoked().filter(|revoked| unexpired(&revoked.serial)).count()
    }

    /// The entries of the next CRL, sorted by serial. A revoked certificate leaves only after it stood
    /// in a CRL that was made after its notAfter (RFC 5280 section 3.3).
    pub fn crl_entries(&self, published: Option<&CrlFacts>) -> Vec<Entry> {
        self.revoked()
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
        self.find(serial).map(|issued| issued.not_after)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pki::crl::CrlNumber;

    pub(crate) fn issued(serial: &str, uid: &str, revision: u32, not_after: i64) -> Issued {
        Issued {
            serial: serial.parse().unwrap(),
            revision,
            not_after: Timestamp::from_second(not_after).unwrap(),
            holder: Holder { uid: uid.into(), namespace: "team".into(), name: "laptop".into() },
            subject: None,
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

    pub(crate) fn published(this_update: i64, serials: &[&str]) -> CrlFacts {
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
    fn a_certificate_that_was_taken_over_is_its_new_holders() {
        let first = issued("0a", "uid-1", 3, 1000);
        let holder = Holder { uid: "uid-2".into(), ..first.holder.clone() };
        let mut ledger = Ledger::default();
        ledger.apply(Record::Issued(first.clone()));
        ledger.apply(Record::Issued(issued("0b", "uid-1", 4, 1000)));
        ledger.apply(Record::Issued(Issued { holder, ..first }));
        let serials = |uid| ledger.of_holder(uid).map(|i| i.serial.to_string()).collect::<Vec<_>>();
        assert_eq!((serials("uid-1"), serials("uid-2")), (vec!["0b".into()], vec!["0a".into()]));
        assert_eq!((ledger.last_revision("uid-1"), ledger.last_revision("uid-2")), (4, 3));
        assert_eq!(ledger.of_name("team", "laptop").count(), 2);
    }

    #[test]
    fn a_certificate_is_found_by_whatever_is_known_of_it() {
        let mut ledger = Ledger::default();
        let subject = Some("CN=laptop-7,O=Example".into());
        ledger.apply(Record::Issued(Issued { subject, ..issued("0a", "uid-1", 1, 1000) }));
        ledger.apply(Record::Issued(issued("0b", "uid-2", 1, 1000)));
        let (serial, fingerprint) = ("0a".parse().unwrap(), [7; 32]);
        ledger.apply(Record::Signed(Signed { serial, fingerprint }));
        assert_eq!(ledger.find_fingerprint(&[7; 32]), Some(serial));
        assert_eq!(ledger.find_fingerprint(&[8; 32]), None);
        assert_eq!(ledger.fingerprint(&serial), Some(&[7; 32]));
        let found = |text| ledger.of_subject(text).map(|issued| issued.serial).collect::<Vec<_>>();
        assert_eq!(found("CN=laptop-7"), [serial]);
        assert_eq!(found("O=Another"), []);
        assert_eq!(ledger.of_name("team", "desk").count(), 0);
        assert_eq!(ledger.of_name("other", "laptop").count(), 0);
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
}
