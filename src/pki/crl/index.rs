//! The entries of a CRL, each encoded once, kept sorted in chunks of serial ranges: one revocation more
//! touches one chunk.
//!
//! A chunk is a node of the binary trie over serials: all entries whose serials begin with the same
//! bits. It is the highest node whose entries have at most [`CHUNK_BYTES`], so that the same entries
//! always make the same chunks, in whatever order they came, also after a restart.

use std::cmp::Ordering;
use std::sync::Arc;

use super::encode::{encode_entry, entry_length};
use super::{Entry, Serial};
use crate::pki::sha256_hex;

/// No chunk is larger. It stands in one ConfigMap, whose bytes the API takes in base64.
pub const CHUNK_BYTES: usize = 512 * 1024;

/// A serial right-aligned in 20 octets, so that bits can be compared from the first.
type Bits = [u8; 20];

const BITS: u8 = 160;

/// The entries that a CRL lists. Clones share the chunks.
#[derive(Clone, Debug, Default)]
pub struct Index {
    chunks: Vec<Chunk>,
    entries: usize,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Chunk {
    node: Node,
    body: Arc<Body>,
}

/// Encoded entries in their order.
#[derive(Debug)]
struct Body {
    der: Vec<u8>,
    entries: usize,
}

/// A node of the trie: the serials whose first `depth` bits are those of `prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    prefix: Bits,
    depth: u8,
}

impl Node {
    const ROOT: Self = Self { prefix: [0; 20], depth: 0 };

    /// The node of this depth that holds a serial.
    fn above(bits: &Bits, depth: u8) -> Self {
        let mut prefix = [0; 20];
        let (whole, rest) = (usize::from(depth / 8), depth % 8);
        prefix[..whole].copy_from_slice(&bits[..whole]);
        if rest > 0 {
            prefix[whole] = bits[whole] & !(0xff >> rest);
        }
        Self { prefix, depth }
    }

    fn holds(&self, bits: &Bits) -> bool {
        Self::above(bits, self.depth).prefix == self.prefix
    }

    /// The two below.
    fn children(&self) -> [Self; 2] {
        let mut upper = self.prefix;
        upper[usize::from(self.depth / 8)] |= 0x80 >> (self.depth % 8);
        [
            Self { prefix: self.prefix, depth: self.depth + 1 },
            Self { prefix: upper, depth: self.depth + 1 },
        ]
    }
}

fn bits_of(serial: &[u8]) -> Bits {
    let mut bits = [0; 20];
    let start = bits.len() - serial.len();
    bits[start..].copy_from_slice(serial);
    bits
}

/// A bit of a serial, counted from the first of 160.
fn bit(serial: &[u8], position: u8) -> bool {
    let missing = 20 - serial.len();
    let octet = usize::from(position / 8).checked_sub(missing).map_or(0, |at| serial[at]);
    octet & (0x80 >> (position % 8)) != 0
}

/// How many first bits are the same.
fn common(a: &Bits, b: &Bits) -> u8 {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    match (a.get(same), b.get(same)) {
        (Some(a), Some(b)) => same as u8 * 8 + (a ^ b).leading_zeros() as u8,
        _ => BITS,
    }
}

impl Index {
    /// The index of these entries, in any order; of two with one serial the first counts.
    pub fn of(entries: &[Entry]) -> Self {
        let mut index = Self::default();
        index.insert(entries);
        index
    }

    /// Takes over entries that are encoded already: the content of `revokedCertificates` of a CRL that
    /// [`super::lint`] has passed. None when they are not what this encoder makes, or not sorted.
    pub fn of_der(revoked: &[u8]) -> Option<Self> {
        let mut last: &[u8] = &[];
        let mut rest = revoked;
        let mut entries = 0;
        while !rest.is_empty() {
            let (serial, next) = split_entry(rest)?;
            if serial.len() > 20 || order(last, serial) != Ordering::Less {
                return None;
            }
            (last, rest) = (serial, next);
            entries += 1;
        }
        let mut index = Self { chunks: Vec::new(), entries, bytes: revoked.len() };
        split(Node::ROOT, revoked, &mut index.chunks);
        Some(index)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The encoded entries, chunk by chunk.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().map(|chunk| chunk.body.der.as_slice())
    }

    /// How many octets the encoded entries have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes entries in, in any order. One whose serial stands here already changes nothing: a
    /// revocation date must not move.
    pub fn insert(&mut self, entries: &[Entry]) {
        let mut sorted: Vec<&Entry> = entries.iter().collect();
        // Stable: of two with one serial the first stays.
        sorted.sort_by_key(|entry| entry.serial);
        sorted.dedup_by_key(|entry| entry.serial);
        let mut chunks = Vec::with_capacity(self.chunks.len() + 1);
        let mut old = std::mem::take(&mut self.chunks).into_iter().peekable();
        let mut rest = sorted.as_slice();
        while let Some(first) = rest.first() {
            let bits = bits_of(first.serial.as_be_bytes());
            while let Some(before) =
                old.next_if(|chunk| chunk.node.prefix < bits && !chunk.node.holds(&bits))
            {
                chunks.push(before);
            }
            let within = old.next_if(|chunk| chunk.node.holds(&bits));
            let node = within.as_ref().map_or_else(
                || {
                    // As high as no other chunk lies in it.
                    let neighbours = chunks.last().into_iter().chain(old.peek());
                    let taken = neighbours.map(|chunk: &Chunk| common(&chunk.node.prefix, &bits));
                    Node::above(&bits, taken.max().map_or(0, |common| common + 1))
                },
                |chunk| chunk.node,
            );
            let end = rest.partition_point(|e| node.holds(&bits_of(e.serial.as_be_bytes())));
            let (new, later) = rest.split_at(end);
            match within {
                None => grow(node, new, &mut chunks),
                Some(chunk) => split(node, &merge(&chunk.body.der, new), &mut chunks),
            }
            rest = later;
        }
        chunks.extend(old);
        self.replace(chunks);
    }

    /// Takes entries out; those that are not here don't matter. `serials` is sorted.
    pub fn remove(&mut self, serials: &[Serial]) {
        let mut rest = serials;
        let mut chunks = Vec::with_capacity(self.chunks.len());
        for chunk in std::mem::take(&mut self.chunks) {
            let skip = rest.partition_point(|serial| {
                let bits = bits_of(serial.as_be_bytes());
                bits < chunk.node.prefix
            });
            rest = &rest[skip..];
            let count =
                rest.partition_point(|serial| chunk.node.holds(&bits_of(serial.as_be_bytes())));
            let (gone, later) = rest.split_at(count);
            rest = later;
            if gone.is_empty() {
                chunks.push(chunk);
                continue;
            }
            let der = without(&chunk.body.der, gone);
            if !der.is_empty() {
                chunks.push(Chunk::new(chunk.node, der));
            }
        }
        let mut joined = Vec::with_capacity(chunks.len());
        join(Node::ROOT, &chunks, &mut joined);
        self.replace(joined);
    }

    /// The serials, in their order.
    pub fn serials(&self) -> impl Iterator<Item = Serial> {
        self.encoded().map(|(serial, _)| serial)
    }

    /// Each serial, and its entry.
    fn encoded(&self) -> impl Iterator<Item = (Serial, &[u8])> {
        self.chunks().flat_map(|mut rest| {
            std::iter::from_fn(move || {
                let (octets, next) = split_entry(rest)?;
                let entry = &rest[..rest.len() - next.len()];
                rest = next;
                Some((Serial::from_be_bytes(octets).ok()?, entry))
            })
        })
    }

    /// The entries in so many indexes, each in the one that `place` says of its serial, counted from 0.
    pub fn partition(&self, count: usize, place: impl Fn(&Serial) -> usize) -> Vec<Self> {
        let mut parts = vec![Vec::new(); count];
        for (serial, entry) in self.encoded() {
            parts[place(&serial)].extend_from_slice(entry);
        }
        let index = |der: Vec<u8>| Self::of_der(&der).expect("sorted entries of an index are");
        parts.into_iter().map(index).collect()
    }

    /// SHA-256 over the encoded entries, lower-case hex.
    pub fn sha256(&self) -> String {
        sha256_hex(&self.chunks().collect::<Vec<_>>().concat())
    }

    fn replace(&mut self, chunks: Vec<Chunk>) {
        self.entries = chunks.iter().map(|chunk| chunk.body.entries).sum();
        self.bytes = chunks.iter().map(|chunk| chunk.body.der.len()).sum();
        self.chunks = chunks;
    }
}

impl Chunk {
    fn new(node: Node, der: Vec<u8>) -> Self {
        let mut rest = der.as_slice();
        let mut entries = 0;
        while let Some((_, next)) = split_entry(rest) {
            rest = next;
            entries += 1;
        }
        Self { node, body: Arc::new(Body { der, entries }) }
    }
}

/// The serial of the first entry, without leading zeros, and what follows the entry. Entries of ours are
/// so short that each length is one octet.
fn split_entry(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x30, length, 0x02, serial_length, ..] = *entries else { return None };
    let (length, serial_length) = (usize::from(length), usize::from(serial_length));
    if length >= 0x80 || serial_length == 0 || serial_length + 2 > length {
        return None;
    }
    let (entry, rest) = entries.split_at_checked(2 + length)?;
    let serial = &entry[4..4 + serial_length];
    Some((serial.strip_prefix(&[0]).unwrap_or(serial), rest))
}

/// The numeric order of serials without leading zeros.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// How many octets of encoded entries come before the first that is not `before`.
fn partition(der: &[u8], before: impl Fn(&[u8]) -> bool) -> usize {
    let mut rest = der;
    while let Some((serial, next)) = split_entry(rest) {
        if !before(serial) {
            break;
        }
        rest = next;
    }
    der.len() - rest.len()
}

/// The chunks of encoded entries that lie below a node.
fn split(node: Node, der: &[u8], chunks: &mut Vec<Chunk>) {
    if der.is_empty() {
        return;
    }
    if der.len() <= CHUNK_BYTES {
        chunks.push(Chunk::new(node, der.to_vec()));
        return;
    }
    let [lower, upper] = node.children();
    // All are below the node: one bit decides.
    let middle = partition(der, |serial| !bit(serial, node.depth));
    let (first, second) = der.split_at(middle);
    split(lower, first, chunks);
    split(upper, second, chunks);
}

/// The chunks of new entries that lie below a node.
fn grow(node: Node, entries: &[&Entry], chunks: &mut Vec<Chunk>) {
    if entries.is_empty() {
        return;
    }
    let length: usize = entries.iter().map(|entry| entry_length(entry)).sum();
    if length <= CHUNK_BYTES {
        let mut der = Vec::with_capacity(length);
        entries.iter().for_each(|entry| encode_entry(&mut der, entry));
        chunks.push(Chunk { node, body: Arc::new(Body { der, entries: entries.len() }) });
        return;
    }
    let [lower, upper] = node.children();
    let middle = entries.partition_point(|e| lower.holds(&bits_of(e.serial.as_be_bytes())));
    grow(lower, &entries[..middle], chunks);
    grow(upper, &entries[middle..], chunks);
}

/// Encoded entries with new ones among them.
fn merge(old: &[u8], new: &[&Entry]) -> Vec<u8> {
    let length: usize = new.iter().map(|entry| entry_length(entry)).sum();
    let mut merged = Vec::with_capacity(old.len() + length);
    let mut rest = old;
    for entry in new {
        let serial = entry.serial.as_be_bytes();
        let middle = partition(rest, |known| order(known, serial) == Ordering::Less);
        let (before, after) = rest.split_at(middle);
        merged.extend_from_slice(before);
        rest = after;
        let known = split_entry(rest).map(|(serial, _)| serial);
        if known != Some(serial) {
            encode_entry(&mut merged, entry);
        }
    }
    merged.extend_from_slice(rest);
    merged
}

/// Encoded entries without these serials.
fn without(der: &[u8], gone: &[Serial]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(der.len());
    let mut gone = gone.iter().peekable();
    let mut rest = der;
    while let Some((serial, next)) = split_entry(rest) {
        let order = |other: &&Serial| order(other.as_be_bytes(), serial);
        while gone.next_if(|other| order(other) == Ordering::Less).is_some() {}
        if gone.next_if(|other| order(other) == Ordering::Equal).is_none() {
            kept.extend_from_slice(&rest[..rest.len() - next.len()]);
        }
        rest = next;
    }
    kept
}

/// Chunks that have become small together are one again.
fn join(node: Node, chunks: &[Chunk], joined: &mut Vec<Chunk>) {
    let bytes: usize = chunks.iter().map(|chunk| chunk.body.der.len()).sum();
    match chunks {
        [] => {}
        [one] if bytes <= CHUNK_BYTES => {
            joined.push(Chunk { node, body: one.body.clone() });
        }
        several if bytes <= CHUNK_BYTES => {
            let mut der = Vec::with_capacity(bytes);
            several.iter().for_each(|chunk| der.extend_from_slice(&chunk.body.der));
            joined.push(Chunk::new(node, der));
        }
        several => {
            let [lower, upper] = node.children();
            let middle = several.partition_point(|chunk| chunk.node.prefix < upper.prefix);
            join(lower, &several[..middle], joined);
            join(upper, &several[middle..], joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::instant;
    use proptest::prelude::*;

    fn entry(serial: &[u8]) -> Entry {
        Entry {
            serial: Serial::from_be_bytes(serial).unwrap(),
            revoked_at: instant("2026-05-01T10:00:00Z"),
            reason: [None, Some(1), Some(9)][serial.len() % 3],
        }
    }

    /// So many entries with random serials.
    fn random(count: usize) -> Vec<Entry> {
        (0..count).map(|_| entry(Serial::random().as_be_bytes())).collect()
    }

    /// Serials that follow each other, as a foreign CA may number them: all first bits are the same.
    fn consecutive(count: u32) -> Vec<Entry> {
        (0..count).map(|n| entry(&(0x0100_0000 + n).to_be_bytes())).collect()
    }

    fn bodies(index: &Index) -> Vec<&[u8]> {
        index.chunks().collect()
    }

    #[test]
    fn chunks_are_the_same_whatever_the_order_of_coming_and_going() {
        for mut all in [random(40_000), consecutive(40_000)] {
            let whole = Index::of(&all);
            assert!(whole.chunks.len() > 2);
            assert!(whole.chunks().all(|chunk| chunk.len() <= CHUNK_BYTES));
            assert_eq!(whole.len(), all.len());
            all.reverse();
            let mut grown = Index::default();
            for some in all.chunks(9_999) {
                grown.insert(some);
            }
            assert_eq!(bodies(&grown), bodies(&whole));

            let more = random(30_000);
            grown.insert(&more);
            let mut gone: Vec<Serial> = more.iter().map(|entry| entry.serial).collect();
            gone.sort();
            grown.remove(&gone);
            assert_eq!(bodies(&grown), bodies(&whole));
            assert_eq!(grown.entries, whole.entries);
        }
    }

    #[test]
    fn one_more_touches_one_chunk_and_one_again_none() {
        let all = random(60_000);
        let mut index = Index::of(&all);
        let before = index.clone();
        let more = random(1);
        index.insert(&more);
        let same = index
            .chunks
            .iter()
            .filter(|chunk| before.chunks.iter().any(|old| Arc::ptr_eq(&old.body, &chunk.body)));
        assert_eq!(same.count() + 1, index.chunks.len());
        let again = Entry { reason: Some(3), ..more[0] };
        let with_one_more = index.clone();
        index.insert(&[again]);
        assert_eq!(bodies(&index), bodies(&with_one_more), "what was published does not change");
    }

    #[test]
    fn what_was_published_is_taken_over_as_it_is() {
        let index = Index::of(&random(30_000));
        let der: Vec<u8> = index.chunks().flatten().copied().collect();
        let read = Index::of_der(&der).unwrap();
        assert_eq!(bodies(&read), bodies(&index));
        assert_eq!((read.entries, read.bytes), (index.entries, index.bytes));
        assert!(Index::of_der(&der[..der.len() - 1]).is_none());
        let (_, rest) = split_entry(&der).unwrap();
        let first = &der[..der.len() - rest.len()];
        assert!(Index::of_der(&[rest, first].concat()).is_none(), "not sorted");
    }

    fn serials_of(index: &Index) -> Vec<Serial> {
        index.serials().collect()
    }

    proptest! {
        #[test]
        fn small_sets_too(serials in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..40), cut in 0usize..40) {
            let all: Vec<Entry> = serials.iter().filter_map(|s| Serial::from_be_bytes(s).ok()).map(|s| entry(s.as_be_bytes())).collect();
            let whole = Index::of(&all);
            let mut grown = Index::default();
            let (first, second) = all.split_at(cut.min(all.len()));
            grown.insert(second);
            grown.insert(first);
            prop_assert_eq!(bodies(&grown), bodies(&whole));
            let mut serials: Vec<Serial> = all.iter().map(|entry| entry.serial).collect();
            serials.sort();
            serials.dedup();
            prop_assert_eq!(&serials_of(&whole), &serials);
            grown.remove(&serials);
            prop_assert!(grown.is_empty());
        }

        #[test]
        fn parts_hold_each_entry_once_in_its_place(serials in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..40), count in 1usize..9) {
            let entries: Vec<Entry> = serials.iter().filter_map(|s| Serial::from_be_bytes(s).ok()).map(|s| entry(s.as_be_bytes())).collect();
            let whole = Index::of(&entries);
            let place = |serial: &Serial| usize::from(*serial.as_be_bytes().last().unwrap()) % count;
            let parts = whole.partition(count, place);
            prop_assert_eq!(parts.len(), count);
            let mut again = Vec::new();
            for (at, part) in parts.iter().enumerate() {
                let of_part: Vec<Entry> = entries.iter().filter(|entry| place(&entry.serial) == at).copied().collect();
                prop_assert_eq!(bodies(part).concat(), bodies(&Index::of(&of_part)).concat());
                prop_assert_eq!(part.sha256() == whole.sha256(), part.len() == whole.len());
                again.extend(serials_of(part));
            }
            again.sort_unstable();
            prop_assert_eq!(again, serials_of(&whole));
        }

        #[test]
        fn reading_foreign_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Index::of_der(&bytes);
        }
    }
}
