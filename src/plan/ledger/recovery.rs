//! Recovery: how a ledger that lost records goes on, by somebody who asked for that.

use super::segment::{Chain, Draft, Segment, State, Trouble};
use super::{Ledger, Record, Revoked};
use crate::pki::crl::Entry;

/// The revocations of a CRL that the ledger does not know. Of a serial of which it knows no expiry the
/// revocation stays in the CRL for ever.
pub fn missing(ledger: &Ledger, entries: &[Entry]) -> Vec<Record> {
    let unknown = entries.iter().filter(|entry| ledger.revocation(&entry.serial).is_none());
    let record = |entry: &Entry| {
        let Entry { serial, revoked_at, reason } = *entry;
        Record::Revoked(Revoked { serial, revoked_at, reason })
    };
    unknown.map(record).collect()
}

/// The segments to be written so that the ledger is whole again without what is lost, each with what that
/// accepts. `segments` are sorted, `chain` is theirs; `noted` is the position from which the published CRL
/// was made.
pub fn mend(segments: &[Segment], chain: &Chain, noted: Option<u64>) -> Vec<(Draft, String)> {
    let mut mended = Vec::new();
    let mut next = 0;
    let last = segments.len().saturating_sub(1);
    for (place, segment) in segments.iter().enumerate() {
        let mut range = chain.ranges[place].clone();
        let mut accepted = Vec::new();
        let of_segment = chain.troubles.iter().filter(|trouble| name_of(trouble) == segment.name);
        for trouble in of_segment {
            accepted.push(trouble.to_string());
            // It covers what nobody else does, and leaves to the one before it what that one covers.
            if matches!(trouble, Trouble::Gap(..) | Trouble::Overlap(..)) {
                range = next..range.end.max(next);
            }
        }
        let records = segment.records.len() as u64;
        // More records than positions are no reason to lose one.
        range.end = range.end.max(range.start + records);
        if let Some(noted) = noted.filter(|noted| place == last && range.end < *noted) {
            accepted.push(short(range.end, noted));
            range.end = noted;
        }
        next = next.max(range.end);
        if accepted.is_empty() {
            continue;
        }
        let mut bytes = Vec::new();
        segment.records.iter().for_each(|record| record.encode(&mut bytes));
        let draft = Draft {
            number: segment.number,
            resource_version: segment.resource_version.clone(),
            state: Some(State::Recovered),
            damaged: (bytes != segment.bytes).then(|| segment.bytes.clone()),
            range,
            bytes,
        };
        mended.push((draft, accepted.join("; ")));
    }
    if let Some(noted) = noted.filter(|noted| segments.is_empty() && *noted > 0) {
        let draft =
            Draft { number: 1, range: 0..noted, state: Some(State::Recovered), ..Draft::default() };
        mended.push((draft, short(0, noted)));
    }
    mended
}

fn short(position: u64, noted: u64) -> String {
    format!(
        "the ledger ends before record {position}, and the published CRL was made when it held {noted}"
    )
}

fn name_of(trouble: &Trouble) -> &str {
    match trouble {
        Trouble::Damaged(name, _)
        | Trouble::Gap(_, name)
        | Trouble::Missing(name)
        | Trouble::Overlap(_, name) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ledger::CaKey;
    use crate::plan::ledger::segment::tests::{segment, stored};
    use crate::plan::ledger::segment::{book, chain};
    use crate::plan::ledger::tests::revoked;
    use proptest::prelude::*;

    /// The segments after they were mended, which may take more than one look.
    fn mended(mut segments: Vec<Segment>, noted: Option<u64>) -> Vec<Segment> {
        for _ in 0..segments.len() + 2 {
            let whole = chain(&mut segments);
            for (draft, accepted) in mend(&segments, &whole, noted) {
                assert!(!accepted.is_empty());
                segments.retain(|segment| segment.number != draft.number);
                segments.push(stored(&draft));
            }
        }
        chain(&mut segments);
        segments
    }

    #[test]
    fn a_whole_ledger_is_left_alone() {
        let mut segments = vec![segment(1, 0..3), segment(2, 3..5)];
        let whole = chain(&mut segments);
        assert_eq!(mend(&segments, &whole, Some(5)), []);
        assert_eq!(mend(&segments, &whole, None), []);
    }

    #[test]
    fn a_ledger_that_is_gone_begins_where_the_crl_was_made() {
        let mut segments = mended(Vec::new(), Some(7));
        assert_eq!((segments.len(), chain(&mut segments).position), (1, 7));
        assert!(mended(Vec::new(), None).is_empty());
    }

    #[test]
    fn what_a_crl_says_and_the_ledger_does_not_is_missing() {
        let mut ledger = Ledger::default();
        ledger.apply(Record::Revoked(revoked("0a", 500)));
        let entry = |serial: &str| {
            let Revoked { serial, revoked_at, reason } = revoked(serial, 700);
            Entry { serial, revoked_at, reason }
        };
        let found = missing(&ledger, &[entry("0a"), entry("0b")]);
        assert_eq!(found, [Record::Revoked(revoked("0b", 700))]);
    }

    proptest! {
        /// Whatever is lost, damaged or put back: after it was mended the ledger is whole, reaches at least
        /// as far as the CRL says, and has every record that could be read.
        #[test]
        fn every_ledger_can_be_mended(
            parts in proptest::collection::vec((0_u64..6, 0_u64..6, any::<bool>(), any::<bool>()), 0..6),
            noted in proptest::option::of(0_u64..40),
        ) {
            let mut next = 0;
            let mut segments = Vec::new();
            for (number, (skip, size, back, damaged)) in (1..).zip(parts) {
                let start = if back { u64::saturating_sub(next, skip) } else { next + skip };
                let mut one = segment(number, start..start + size);
                if damaged {
                    one.bytes.push(1);
                    one.damage = Some("was damaged".into());
                }
                next = next.max(start + size);
                segments.push(one);
            }
            let before = book(&segments);
            let mut after = mended(segments, noted);
            let whole = chain(&mut after);
            prop_assert!(whole.trouble(&CaKey::first("clients")).is_none());
            prop_assert!(whole.position >= next.max(noted.unwrap_or(0)));
            let serials = |ledger: &Ledger| ledger.revoked().copied().collect::<Vec<_>>();
            prop_assert_eq!(serials(&before), serials(&book(&after)));
        }
    }
}
