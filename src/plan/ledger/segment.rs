//! Segments: the ledger of a CA in pieces, each a ConfigMap, and the positions that chain them.
//!
//! Every record has a position, counted from 0 in the order in which they were appended. A segment states
//! the first position that it covers and the one after its last. Compaction takes records out of a segment
//! and leaves what it covers as it is: so the segments of a whole ledger cover all positions from 0 on
//! without a gap, and one that was deleted, or put back in an older version, leaves one.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{CaKey, Ledger, Record};
use crate::api::annotation;
use crate::pki::sha256_hex;
use crate::plan::authority::{key_of, labels};

/// A segment of this size is sealed: a write costs what the open segment holds.
pub const SEGMENT_BYTES: usize = 24 * 1024;
/// Key of the records in a segment.
const RECORDS: &str = "records";
/// Key of the bytes that a segment held before it was recovered.
const DAMAGED: &str = "damaged";

/// Why a segment has fewer records than positions, or positions that another one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Records that nobody needs any more were taken out.
    Compacted,
    /// The records of some positions are lost, and somebody who knew it let the ledger go on.
    Recovered,
    /// It was begun behind records that were lost: put back later, these may have its positions, too.
    AfterLoss,
}

impl State {
    /// The state as the annotation carries it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Compacted => "Compacted",
            Self::Recovered => "Recovered",
            Self::AfterLoss => "AfterLoss",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Compacted, Self::Recovered, Self::AfterLoss]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// A segment as it stands on the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Name of the ConfigMap.
    pub name: String,
    /// Its number: later ones hold later records.
    pub number: u32,
    /// resourceVersion of the ConfigMap.
    pub resource_version: Option<String>,
    /// The positions that it states to cover; earlier versions stated none.
    pub stated: Option<Range<u64>>,
    /// Why it has fewer records than positions, if it may.
    pub state: Option<State>,
    /// Its content.
    pub bytes: Vec<u8>,
    /// The records that can be read.
    pub records: Vec<Record>,
    /// What is wrong with it, if anything.
    pub damage: Option<String>,
}

impl Segment {
    /// May the next one have some of its positions, since it took records of that one in?
    pub fn may_overlap(&self) -> bool {
        matches!(self.state, Some(State::Compacted | State::AfterLoss))
    }
}

/// A segment to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// Its number.
    pub number: u32,
    /// resourceVersion of the one that it replaces; none for a new one.
    pub resource_version: Option<String>,
    /// The positions that it covers.
    pub range: Range<u64>,
    /// Why it has fewer records than positions, if so.
    pub state: Option<State>,
    /// Its content.
    pub bytes: Vec<u8>,
    /// What a damaged segment held before, for whoever wants to look into it.
    pub damaged: Option<Vec<u8>>,
}

/// Name of the ConfigMap of a segment, in the operator's namespace.
pub fn segment_name(key: &CaKey, number: u32) -> String {
    format!("ledger-{}-{}-{number:06}", key.authority, key.generation)
}

fn segment_number(name: &str) -> Option<u32> {
    name.rsplit_once('-')?.1.parse().ok()
}

/// What the metadata of a segment say, without its records, and whose it is; nothing when the ConfigMap
/// is none.
pub fn outline(metadata: &ObjectMeta) -> Option<(CaKey, Segment)> {
    let name = metadata.name.clone()?;
    let (key, number) = key_of(metadata).zip(segment_number(&name))?;
    let note = |name: &str| metadata.annotations.as_ref()?.get(name);
    let position = |name: &str| note(name)?.parse::<u64>().ok();
    let stated = position(annotation::LEDGER_FIRST).zip(position(annotation::LEDGER_NEXT));
    let segment = Segment {
        name,
        number,
        resource_version: metadata.resource_version.clone(),
        stated: stated.map(|(first, next)| first..next).filter(|range| range.start <= range.end),
        state: note(annotation::LEDGER_STATE).and_then(|state| State::parse(state)),
        bytes: Vec::new(),
        records: Vec::new(),
        damage: None,
    };
    Some((key, segment))
}

/// Reads a segment. A damaged one is read as far as that goes.
pub fn read(config_map: ConfigMap) -> Option<(CaKey, Segment)> {
    let (key, outline) = outline(&config_map.metadata)?;
    let bytes = config_map.binary_data.unwrap_or_default().remove(RECORDS);
    let bytes = bytes.map(|bytes| bytes.0).unwrap_or_default();
    let (records, undecodable) = Record::decode_prefix(&bytes);
    let notes = config_map.metadata.annotations.unwrap_or_default();
    let states_any = [annotation::LEDGER_FIRST, annotation::LEDGER_NEXT, annotation::LEDGER_SHA256]
        .iter()
        .any(|name| notes.contains_key(*name));
    let (count, is_whole) = (records.len() as u64, outline.state.is_none());
    let damage = match (undecodable, &outline.stated) {
        (Some(error), _) => Some(format!("can't be read: {error}")),
        // Earlier versions stated nothing.
        (None, None) if !states_any => None,
        (None, None) => Some("does not state which positions it covers".to_owned()),
        (None, Some(_)) if notes.get(annotation::LEDGER_SHA256) != Some(&sha256_hex(&bytes)) => {
            Some("does not hold what was written to it: its SHA-256 is another".to_owned())
        }
        (None, Some(Range { start, end })) => {
            let wrong = count > end - start || (count < end - start && is_whole);
            wrong.then(|| format!("holds {count} record(s) for {} position(s)", end - start))
        }
    };
    Some((key, Segment { bytes, records, damage, ..outline }))
}

/// The ConfigMap of a segment.
pub fn render(key: &CaKey, namespace: &str, draft: &Draft) -> ConfigMap {
    let mut notes = BTreeMap::from([
        (annotation::LEDGER_FIRST.to_owned(), draft.range.start.to_string()),
        (annotation::LEDGER_NEXT.to_owned(), draft.range.end.to_string()),
        (annotation::LEDGER_SHA256.to_owned(), sha256_hex(&draft.bytes)),
    ]);
    if let Some(state) = draft.state {
        notes.insert(annotation::LEDGER_STATE.to_owned(), state.as_str().to_owned());
    }
    let mut data = BTreeMap::from([(RECORDS.to_owned(), ByteString(draft.bytes.clone()))]);
    if let Some(damaged) = &draft.damaged {
        data.insert(DAMAGED.to_owned(), ByteString(damaged.clone()));
    }
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(segment_name(key, draft.number)),
            namespace: Some(namespace.to_owned()),
            resource_version: draft.resource_version.clone(),
            labels: Some(labels(key, "ledger")),
            annotations: Some(notes),
            ..ObjectMeta::default()
        },
        binary_data: Some(data),
        ..ConfigMap::default()
    }
}

/// Why a ledger is not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A segment is damaged: its name, and how.
    Damaged(String, String),
    /// No segment covers these positions, which come before the named one.
    Gap(Range<u64>, String),
    /// Segments are missing before the named one, which states no positions.
    Missing(String),
    /// The named segment begins at positions that the one before it covers already.
    Overlap(Range<u64>, String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(name, how) => write!(f, "ConfigMap {name} {how}"),
            Self::Gap(gap, name) => write!(
                f,
                "record(s) {} to {} are missing before ConfigMap {name}: a segment was deleted, or put back in an older version",
                gap.start,
                gap.end - 1
            ),
            Self::Missing(name) => {
                write!(f, "the segment before ConfigMap {name} is missing: it was deleted")
            }
            Self::Overlap(both, name) => write!(
                f,
                "ConfigMap {name} and the segment before it both cover record(s) {} to {}: one was put back in an older version",
                both.start,
                both.end - 1
            ),
        }
    }
}

/// The segments of a CA as one ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What each segment covers, in their order.
    pub ranges: Vec<Range<u64>>,
    /// The position of the next record.
    pub position: u64,
    /// Why it is not whole.
    pub troubles: Vec<Trouble>,
}

impl Chain {
    /// What is wrong and what to do about it; nothing when the ledger is whole.
    pub fn trouble(&self, key: &CaKey) -> Option<String> {
        let told: Vec<_> = self.troubles.iter().take(3).map(ToString::to_string).collect();
        let more = self.troubles.len().saturating_sub(told.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        (!told.is_empty()).then(|| format!("{}{more}. {}", told.join("; "), advice(key)))
    }
}

/// What to do about a ledger that is not whole.
pub fn advice(key: &CaKey) -> String {
    format!(
        "Restore the ConfigMaps labelled countersign.dev/component=ledger from a backup, or let it go on without what is \
         lost: countersign ledger recover --authority {} --generation {} --from-crl published",
        key.authority, key.generation
    )
}

/// Sorts the segments of a CA and checks that they follow on each other.
pub fn chain(segments: &mut [Segment]) -> Chain {
    segments.sort_by_key(|segment| segment.number);
    let mut chain = Chain::default();
    let mut before: Option<&Segment> = None;
    for segment in &*segments {
        let name = || segment.name.clone();
        if let Some(how) = &segment.damage {
            chain.troubles.push(Trouble::Damaged(name(), how.clone()));
        }
        let next = chain.position;
        let range = match &segment.stated {
            Some(stated) => {
                if stated.start > next {
                    chain.troubles.push(Trouble::Gap(next..stated.start, name()));
                }
                // One that compaction has merged another into covers what that one did, which is still
                // there when nobody came to delete it.
                let may_overlap = segment.state == Some(State::AfterLoss)
                    || before.is_some_and(Segment::may_overlap);
                if stated.start < next && !may_overlap {
                    let both = stated.start..stated.end.min(next);
                    if !both.is_empty() {
                        chain.troubles.push(Trouble::Overlap(both, name()));
                    }
                }
                stated.clone()
            }
            None => {
                let expected = before.map_or(1, |before| before.number + 1);
                if segment.number != expected {
                    chain.troubles.push(Trouble::Missing(name()));
                }
                next..next + segment.records.len() as u64
            }
        };
        chain.position = next.max(range.end);
        chain.ranges.push(range);
        // What lies within a merged one stands for nothing.
        if segment.stated.as_ref().is_none_or(|s| s.start >= next || s.end > next) {
            before = Some(segment);
        }
    }
    chain
}

/// The records of all segments, which must be sorted.
pub fn book(segments: &[Segment]) -> Ledger {
    let mut ledger = Ledger::default();
    for segment in segments {
        segment.records.iter().for_each(|record| ledger.apply(record.clone()));
    }
    ledger
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::ledger::tests::revoked;
    use proptest::prelude::*;

    fn key() -> CaKey {
        CaKey::first("clients")
    }

    fn record(position: u64) -> Record {
        Record::Revoked(revoked(&format!("{:04x}", position + 1), position as i64))
    }

    /// A segment as it is read back, with one record for each position.
    pub(crate) fn segment(number: u32, range: Range<u64>) -> Segment {
        let mut bytes = Vec::new();
        range.clone().for_each(|position| record(position).encode(&mut bytes));
        stored(&Draft { number, range, bytes, ..Draft::default() })
    }

    /// A draft as it is read back.
    pub(crate) fn stored(draft: &Draft) -> Segment {
        let (of, segment) = read(render(&key(), "countersign", draft)).unwrap();
        assert_eq!(of, key());
        segment
    }

    /// A segment of a version that knew no positions.
    fn unstated(number: u32, range: Range<u64>) -> Segment {
        let mut bytes = Vec::new();
        range.for_each(|position| record(position).encode(&mut bytes));
        let mut config_map =
            render(&key(), "countersign", &Draft { number, bytes, ..Draft::default() });
        config_map.metadata.annotations = None;
        read(config_map).unwrap().1
    }

    fn troubles(mut segments: Vec<Segment>) -> (u64, Vec<Trouble>) {
        let chain = chain(&mut segments);
        assert_eq!(chain.ranges.len(), segments.len());
        (chain.position, chain.troubles)
    }

    #[test]
    fn whole_ledgers_are_in_no_trouble() {
        let after_loss = |number, range: Range<u64>| {
            let Segment { bytes, .. } = segment(number, range.clone());
            let state = Some(State::AfterLoss);
            stored(&Draft { number, range, state, bytes, ..Draft::default() })
        };
        let compacted = |number, range| {
            stored(&Draft { number, range, state: Some(State::Compacted), ..Draft::default() })
        };
        for (segments, position) in [
            (vec![], 0),
            (vec![segment(1, 0..3)], 3),
            (vec![segment(2, 3..5), segment(1, 0..3), segment(3, 5..5)], 5),
            (vec![unstated(1, 0..3)], 3),
            (vec![unstated(1, 0..3), unstated(2, 3..5)], 5),
            (vec![unstated(1, 0..3), segment(2, 3..5), segment(3, 5..9)], 9),
            (vec![compacted(1, 0..3), segment(2, 3..5)], 5),
            // One was merged into the first, and whoever did that died before it was deleted.
            (vec![compacted(1, 0..6), segment(2, 3..6), segment(3, 6..9)], 9),
            // Lost records were put back, more than anybody knew of.
            (vec![segment(1, 0..5), after_loss(3, 4..7), segment(4, 7..8)], 8),
            // Two replicas merged at once.
            (vec![compacted(1, 0..6), compacted(2, 3..9), segment(3, 9..10)], 10),
        ] {
            assert_eq!(troubles(segments.clone()), (position, vec![]), "{segments:?}");
        }
    }

    #[test]
    fn a_gap_is_found_and_named() {
        let name = |number| segment_name(&key(), number);
        let gap = |range, number| Trouble::Gap(range, name(number));
        for (segments, position, trouble) in [
            (vec![segment(2, 3..5)], 5, gap(0..3, 2)),
            (vec![segment(1, 0..3), segment(3, 5..9)], 9, gap(3..5, 3)),
            // A sealed one that was put back as it was before it was full.
            (vec![segment(1, 0..2), segment(2, 3..5)], 5, gap(2..3, 2)),
            (vec![segment(1, 0..2), segment(3, 3..3)], 3, gap(2..3, 3)),
            (vec![unstated(1, 0..2), segment(2, 3..5)], 5, gap(2..3, 2)),
            (vec![unstated(2, 0..2)], 2, Trouble::Missing(name(2))),
            (vec![unstated(1, 0..2), unstated(3, 4..6)], 4, Trouble::Missing(name(3))),
            (vec![segment(1, 0..4), segment(2, 3..5)], 5, Trouble::Overlap(3..4, name(2))),
        ] {
            let mut told = segments.clone();
            assert_eq!(troubles(segments), (position, vec![trouble.clone()]));
            let text = chain(&mut told).trouble(&key()).unwrap();
            assert!(text.contains("ledger-clients-1-00000") && text.contains("recover"), "{text}");
        }
    }

    #[test]
    fn damage_is_found_and_the_rest_is_read() {
        let whole = render(
            &key(),
            "countersign",
            &Draft { number: 1, range: 0..2, bytes: segment(1, 0..2).bytes, ..Draft::default() },
        );
        let changed = |change: &dyn Fn(&mut ConfigMap)| {
            let mut config_map = whole.clone();
            change(&mut config_map);
            read(config_map).unwrap().1
        };
        let note = |config_map: &mut ConfigMap, name: &str, value: Option<&str>| {
            let notes = config_map.metadata.annotations.as_mut().unwrap();
            match value {
                Some(value) => notes.insert(name.into(), value.into()),
                None => notes.remove(name),
            };
        };
        let bytes = |config_map: &mut ConfigMap, change: &dyn Fn(&mut Vec<u8>)| {
            change(&mut config_map.binary_data.as_mut().unwrap().get_mut(RECORDS).unwrap().0);
        };
        assert_eq!(changed(&|_| {}).damage, None);
        for (segment, words, left) in [
            (changed(&|c| bytes(c, &|b| b.truncate(b.len() - 1))), "cut short", 1),
            (changed(&|c| bytes(c, &|b| b.truncate(b.len() / 2))), "SHA-256", 1),
            (changed(&|c| bytes(c, &|b| b[9] ^= 1)), "SHA-256", 2),
            (changed(&|c| bytes(c, &|b| b[0] = 77)), "unknown kind 77", 0),
            (changed(&|c| c.binary_data = None), "SHA-256", 0),
            (changed(&|c| note(c, annotation::LEDGER_NEXT, Some("3"))), "2 record(s) for 3", 2),
            (changed(&|c| note(c, annotation::LEDGER_NEXT, Some("1"))), "2 record(s) for 1", 2),
            (changed(&|c| note(c, annotation::LEDGER_FIRST, Some("9"))), "which positions", 2),
            (changed(&|c| note(c, annotation::LEDGER_FIRST, None)), "which positions", 2),
            (changed(&|c| note(c, annotation::LEDGER_SHA256, None)), "SHA-256", 2),
        ] {
            let damage = segment.damage.clone().expect(words);
            assert!(damage.contains(words), "{damage}");
            assert_eq!(segment.records.len(), left, "{words}");
            let mut all = vec![segment];
            assert!(matches!(chain(&mut all).troubles[0], Trouble::Damaged(..)), "{words}");
        }
    }

    proptest! {
        /// However records were appended, a whole ledger is in no trouble; when one of its segments but
        /// the last is lost, or put back as it was, it is.
        #[test]
        fn no_lost_position_goes_unseen(
            sizes in proptest::collection::vec(1_u64..5, 1..8),
            at in any::<proptest::sample::Index>(),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut next = 0;
            let mut segments = Vec::new();
            for (number, size) in (1..).zip(&sizes) {
                segments.push(segment(number, next..next + size));
                next += size;
            }
            prop_assert_eq!(troubles(segments.clone()), (next, vec![]));
            let at = at.index(segments.len());
            let before = segments[at].stated.clone().unwrap();
            let is_last = at + 1 == segments.len();
            let mut lost = segments.clone();
            lost.remove(at);
            let (position, found) = troubles(lost);
            prop_assert_eq!(found.is_empty(), is_last);
            prop_assert!(!is_last || position < next);
            let end = before.start + cut.index((before.end - before.start) as usize) as u64;
            segments[at] = segment(segments[at].number, before.start..end);
            let (position, found) = troubles(segments);
            prop_assert_eq!(found.is_empty(), is_last);
            prop_assert!(!is_last || position < next);
        }
    }
}
