//! Compaction: which records nobody needs any more, and how they leave without a moment at which the
//! ledger would say something wrong.
//!
//! Sealed segments are written anew in place, under their resourceVersion, with fewer records and the same
//! positions. When nothing is left to be taken out, small neighbours are merged: the first takes the
//! records of the others in, then these are deleted. A crash in between leaves records standing twice,
//! which changes nothing; the next run deletes them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::segment::{Draft, SEGMENT_BYTES, Segment, State, book};
use super::{Ledger, Record};
use crate::pki::Serial;
use crate::pki::crl::CrlFacts;

/// A certificate that expired this long ago is forgotten: clocks differ.
const KEPT_AFTER_EXPIRY: SignedDuration = SignedDuration::from_hours(24);
/// A segment is written anew when at least one in so many octets may leave.
const WORTH: usize = 4;
/// As many steps are taken at once; the rest waits for the next run.
const STEPS: usize = 64;

/// What compaction depends on beside the segments.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The published CRL of the CA.
    pub published: Arc<CrlFacts>,
    /// UIDs of the identities that exist: the number of the last issuance of each stays known.
    pub holders: Arc<HashSet<String>>,
    /// The time.
    pub now: Timestamp,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Replaces a segment.
    Rewrite(Draft),
    /// Deletes a segment whose records stand in an earlier one.
    Delete {
        /// Its number.
        number: u32,
        /// The version that may be deleted.
        resource_version: Option<String>,
    },
}

/// The writes that are worth it, in the order in which they must be made; after one that fails none of
/// the others. `segments` are those of a whole ledger, sorted, and what each covers. The last is the open
/// one, which stays as it is.
pub fn plan(segments: &[Segment], ranges: &[Range<u64>], facts: &Facts) -> Vec<Step> {
    let Some((_, sealed)) = segments.split_last() else { return Vec::new() };
    let mut steps = leftovers(sealed);
    if steps.is_empty() {
        steps = rewrites(segments, sealed, ranges, facts);
    }
    if steps.is_empty() {
        steps = merges(sealed, ranges);
    }
    steps
}

/// The serials of which nobody needs a record any more.
fn leaving(ledger: &Ledger, open: &Segment, facts: &Facts) -> HashSet<Serial> {
    let mut last: HashMap<&str, u32> = HashMap::new();
    for issued in ledger.issued() {
        let revision = last.entry(&issued.holder.uid).or_default();
        *revision = issued.revision.max(*revision);
    }
    let in_use: HashSet<Serial> = open.records.iter().map(Record::serial).collect();
    let past = facts.now.saturating_sub(KEPT_AFTER_EXPIRY).unwrap_or(Timestamp::MIN);
    let leaves = ledger.issued().filter(|issued| {
        let holder = &issued.holder.uid;
        let is_last = last.get(&**holder) == Some(&issued.revision);
        let serial = &issued.serial;
        let unlisted = ledger.revocation(serial).is_none()
            || (ledger.may_leave(serial, Some(&facts.published))
                && facts.published.serials.binary_search(serial).is_err());
        issued.not_after < past
            && unlisted
            && !(is_last && facts.holders.contains(&**holder))
            && !in_use.contains(serial)
    });
    leaves.map(|issued| issued.serial).collect()
}

/// Segments without the records that may leave, latest first.
///
/// A revocation without its issuance would have no known expiry and stay in the CRL for ever. So an
/// issuance leaves in the same write as its revocation, or in a later one, never before.
fn rewrites(
    segments: &[Segment],
    sealed: &[Segment],
    ranges: &[Range<u64>],
    facts: &Facts,
) -> Vec<Step> {
    let ledger = book(segments);
    let leaving = leaving(&ledger, &segments[sealed.len()], facts);
    let is_worth_it = |segment: &Segment| {
        let leave = segment.records.iter().filter(|record| leaving.contains(&record.serial()));
        let mut bytes = Vec::new();
        leave.for_each(|record| record.encode(&mut bytes));
        !bytes.is_empty() && bytes.len() * WORTH >= segment.bytes.len()
    };
    let chosen: Vec<bool> = sealed.iter().map(is_worth_it).collect();
    let mut revoked_in: HashMap<Serial, Vec<usize>> = HashMap::new();
    for (place, segment) in sealed.iter().enumerate() {
        for record in &segment.records {
            if matches!(record, Record::Revoked(_)) {
                revoked_in.entry(record.serial()).or_default().push(place);
            }
        }
    }
    let mut steps = Vec::new();
    for (place, segment) in sealed.iter().enumerate().rev().filter(|(place, _)| chosen[*place]) {
        let stays = |record: &&Record| {
            let serial = record.serial();
            let places = revoked_in.get(&serial).map(Vec::as_slice).unwrap_or_default();
            let gone = |at: &usize| *at == place || (*at > place && chosen[*at]);
            let waits = matches!(record, Record::Issued(_)) && !places.iter().all(gone);
            waits || !leaving.contains(&serial)
        };
        let mut bytes = Vec::new();
        segment.records.iter().filter(stays).for_each(|record| record.encode(&mut bytes));
        if bytes.len() < segment.bytes.len() && steps.len() < STEPS {
            steps.push(Step::Rewrite(rewritten(segment, ranges[place].clone(), bytes)));
        }
    }
    steps
}

/// Neighbours that fit into one segment.
fn merges(sealed: &[Segment], ranges: &[Range<u64>]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut start = 0;
    while start < sealed.len() && steps.len() < STEPS {
        let mut bytes = sealed[start].bytes.clone();
        let mut end = start + 1;
        while end < sealed.len() && bytes.len() + sealed[end].bytes.len() <= SEGMENT_BYTES {
            bytes.extend_from_slice(&sealed[end].bytes);
            end += 1;
        }
        if end > start + 1 {
            let range = ranges[start].start..ranges[end - 1].end;
            steps.push(Step::Rewrite(rewritten(&sealed[start], range, bytes)));
            // In their order: what still stands twice must end as it did before.
            steps.extend(sealed[start + 1..end].iter().map(delete));
        }
        start = end;
    }
    steps
}

/// Segments that were merged into an earlier one and still stand.
fn leftovers(sealed: &[Segment]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut merged: Option<&Segment> = None;
    for segment in sealed {
        if let Some(into) = merged
            && let (Some(outer), Some(inner)) = (&into.stated, &segment.stated)
            && outer.start <= inner.start
            && inner.end <= outer.end
        {
            if segment.records.iter().all(|record| into.records.contains(record)) {
                steps.push(delete(segment));
            }
        } else {
            merged = Some(segment).filter(|segment| segment.may_overlap());
        }
    }
    steps
}

fn rewritten(segment: &Segment, range: Range<u64>, bytes: Vec<u8>) -> Draft {
    Draft {
        number: segment.number,
        resource_version: segment.resource_version.clone(),
        range,
        state: segment.state.filter(|state| *state == State::AfterLoss).or(Some(State::Compacted)),
        bytes,
        damaged: None,
    }
}

fn delete(segment: &Segment) -> Step {
    Step::Delete { number: segment.number, resource_version: segment.resource_version.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ledger::Signed;
    use crate::plan::ledger::segment::chain;
    use crate::plan::ledger::segment::tests::stored;
    use crate::plan::ledger::tests::{issued, published, revoked};
    use proptest::prelude::*;

    const DAY: i64 = 24 * 3600;
    /// Long after what expires at 1000 may be forgotten.
    const NOW: i64 = 1000 + 2 * DAY;

    /// A ledger of these segments.
    fn ledger(contents: &[Vec<Record>]) -> Vec<Segment> {
        let mut next = 0;
        let mut segments = Vec::new();
        for (number, records) in (1..).zip(contents) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            let range = next..next + records.len() as u64;
            next = range.end;
            segments.push(stored(&Draft { number, range, bytes, ..Draft::default() }));
        }
        segments
    }

    fn facts(listed: &[&str], holders: &[&str]) -> Facts {
        Facts {
            published: Arc::new(published(NOW, listed)),
            holders: Arc::new(holders.iter().map(|&uid| uid.to_owned()).collect()),
            now: Timestamp::from_second(NOW).unwrap(),
        }
    }

    fn plan_of(segments: &[Segment], facts: &Facts) -> Vec<Step> {
        let chain = chain(&mut segments.to_vec());
        assert_eq!(chain.troubles, []);
        plan(segments, &chain.ranges, facts)
    }

    /// The segments after these steps.
    fn after(segments: &[Segment], steps: &[Step]) -> Vec<Segment> {
        let mut segments = segments.to_vec();
        for step in steps {
            match step {
                Step::Rewrite(draft) => {
                    let at = segments.iter().position(|one| one.number == draft.number).unwrap();
                    segments[at] = stored(draft);
                }
                Step::Delete { number, .. } => segments.retain(|one| one.number != *number),
            }
        }
        segments
    }

    fn compacted(mut segments: Vec<Segment>, facts: &Facts) -> Vec<Segment> {
        for _ in 0..50 {
            let steps = plan_of(&segments, facts);
            if steps.is_empty() {
                return segments;
            }
            segments = after(&segments, &steps);
        }
        panic!("compaction never ends")
    }

    fn serials(segments: &[Segment]) -> Vec<String> {
        let ledger = book(segments);
        let issued = ledger.issued().map(|issued| issued.serial.to_string());
        issued.chain(ledger.revoked().map(|revoked| format!("-{}", revoked.serial))).collect()
    }

    fn is(serial: &str, uid: &str, revision: u32, end: i64) -> Record {
        Record::Issued(issued(serial, uid, revision, end))
    }

    fn re(serial: &str) -> Record {
        Record::Revoked(revoked(serial, 500))
    }

    #[test]
    fn what_expired_leaves_and_what_lives_or_is_last_of_its_holder_stays() {
        let live = NOW + DAY;
        let segments = ledger(&[
            vec![is("01", "gone", 1, 1000), is("02", "here", 1, 1000), is("03", "here", 2, 1000)],
            vec![is("04", "gone", 2, live), re("04"), is("05", "gone", 3, NOW - DAY / 2)],
            vec![is("06", "gone", 4, 1000)],
        ]);
        let mut after = compacted(segments, &facts(&[], &["here"]));
        // The last segment is the open one.
        assert_eq!(serials(&after), ["03", "04", "05", "06", "-04"]);
        let whole = chain(&mut after);
        assert_eq!((whole.position, whole.troubles), (7, vec![]));
    }

    #[test]
    fn a_revoked_one_leaves_when_the_published_crl_was_made_after_its_expiry_and_lacks_it() {
        let segments = ledger(&[vec![is("01", "gone", 1, 1000), re("01")], vec![]]);
        assert_eq!(serials(&compacted(segments.clone(), &facts(&["01"], &[]))), ["01", "-01"]);
        let early = Facts { published: Arc::new(published(999, &[])), ..facts(&[], &[]) };
        assert_eq!(serials(&compacted(segments.clone(), &early)), ["01", "-01"]);
        assert!(serials(&compacted(segments, &facts(&[], &[]))).is_empty());
        // Nobody knows when this one expires.
        let unknown = ledger(&[vec![re("02")], vec![]]);
        assert_eq!(serials(&compacted(unknown, &facts(&[], &[]))), ["-02"]);
    }

    #[test]
    fn little_is_no_reason_to_write() {
        let live = |n: u32| is(&format!("f{n}"), "here", n, NOW + DAY);
        let mut records: Vec<_> = (1..=9).map(live).collect();
        records.push(is("01", "gone", 1, 1000));
        let segments = ledger(&[records, vec![]]);
        assert_eq!(plan_of(&segments, &facts(&[], &[])), []);
        // Nor is a merge of what does not fit into one.
        let mut large = segments[0].clone();
        large.bytes = vec![0; SEGMENT_BYTES];
        assert_eq!(merges(&[large.clone(), large], &[0..1, 1..2]), []);
    }

    #[test]
    fn small_neighbours_become_one_and_the_open_segment_stays() {
        let live = |n: u32| vec![is(&format!("f{n}"), "here", n, NOW + DAY)];
        let segments = ledger(&[live(1), live(2), live(3), live(4)]);
        let merged = compacted(segments.clone(), &facts(&[], &[]));
        let numbers: Vec<_> = merged.iter().map(|segment| segment.number).collect();
        assert_eq!((numbers, &merged[1]), (vec![1, 4], &segments[3]));
        assert_eq!(merged[0].stated, Some(0..3));
        assert_eq!(serials(&merged), serials(&segments));
    }

    /// Ledgers in which anything may follow anything: issuances of few serials with early and late ends,
    /// again with another holder, revocations before and after, fingerprints.
    fn contents() -> impl Strategy<Value = Vec<Vec<Record>>> {
        let serial = || (1_u32..12).prop_map(|n| format!("{n:02x}"));
        let issued = (1_u32..12, "[a-c]").prop_map(|(n, uid)| {
            // End and revision of a certificate never change.
            let end = [1000, NOW - DAY / 2, NOW + DAY, 1000][n as usize % 4];
            is(&format!("{n:02x}"), &uid, n % 5 + 1, end)
        });
        let revoked = serial().prop_map(|serial| re(&serial));
        let signed = serial().prop_map(|serial| {
            Record::Signed(Signed { serial: serial.parse().unwrap(), fingerprint: [1; 32] })
        });
        let record = prop_oneof![3 => issued, 2 => revoked, 1 => signed];
        let segment = proptest::collection::vec(record, 0..6);
        proptest::collection::vec(segment, 1..7)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Wherever it is cut off, and however often it runs: no position is lost, whatever must stand in
        /// a CRL still does, nothing gets into one, no live certificate is forgotten, and no revision of an
        /// identity that exists can be given twice.
        #[test]
        fn compaction_drops_nothing_that_must_stay(
            contents in contents(),
            listed in proptest::collection::btree_set(1_u32..12, 0..4),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..4),
        ) {
            let mut segments = ledger(&contents);
            let listed: Vec<_> = listed.iter().map(|n| format!("{n:02x}")).collect();
            let listed: Vec<_> = listed.iter().map(String::as_str).collect();
            let facts = facts(&listed, &["a", "b"]);
            let before = book(&segments);
            let position = chain(&mut segments).position;
            for cut in cuts {
                let steps = plan_of(&segments, &facts);
                let taken = cut.index(steps.len() + 1);
                segments = after(&segments, &steps[..taken]);
                check(&before, &segments, &facts, position)?;
            }
            segments = compacted(segments, &facts);
            check(&before, &segments, &facts, position)?;
        }
    }

    fn check(
        before: &Ledger,
        segments: &[Segment],
        facts: &Facts,
        position: u64,
    ) -> Result<(), TestCaseError> {
        let whole = chain(&mut segments.to_vec());
        prop_assert_eq!((whole.position, whole.troubles), (position, vec![]));
        let after = book(segments);
        let crl = |ledger: &Ledger| ledger.crl_entries(Some(&facts.published));
        prop_assert_eq!(crl(before), crl(&after));
        for serial in &facts.published.serials {
            prop_assert_eq!(before.revocation(serial), after.revocation(serial));
        }
        let live = |ledger: &Ledger| ledger.live(facts.now).cloned().collect::<Vec<_>>();
        prop_assert_eq!(live(before), live(&after));
        for uid in facts.holders.iter() {
            prop_assert!(before.last_revision(uid) <= after.last_revision(uid));
        }
        Ok(())
    }
}
