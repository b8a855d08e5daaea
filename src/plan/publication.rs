//! How a published CRL lies in the operator's namespace: one ConfigMap, the head, and for a large CRL
//! further ones, its parts, each named by its own digest. A revocation more then costs one part and
//! the head, however long the CRL is.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::authority::{key_of, labels};
use super::ledger::CaKey;
use crate::api::{annotation, label};
use crate::pki::Serial;
use crate::pki::crl::CrlNumber;
use crate::pki::sha256_hex;

/// Up to this size, DER, a CRL stands in one ConfigMap: the API server takes objects of 1 MiB.
pub const WHOLE_BYTES: usize = 900 * 1024;

/// A part that nothing names stays for so long: another publisher may be about to name it, or a reader may
/// be reading what named it.
const GRACE: SignedDuration = SignedDuration::from_mins(10);

/// Value of the component label of a head.
pub const COMPONENT: &str = "crl";
/// Value of the component label of a part.
pub const PART_COMPONENT: &str = "crl-part";

/// Keys of the ConfigMaps.
pub mod crl_key {
    /// The CRL, DER, when it is small.
    pub const DER: &str = "crl.der";
    /// The certificate of its CA, PEM, so that the server can tell issuers apart.
    pub const CA: &str = "ca.crt";
    /// What comes before the parts of a large CRL.
    pub const HEAD: &str = "crl.head";
    /// What comes after them.
    pub const TAIL: &str = "crl.tail";
    /// SHA-256 of each part in their order, lower-case hex, one on a line.
    pub const PARTS: &str = "crl.parts";
    /// SHA-256 of the whole DER, lower-case hex.
    pub const SHA256: &str = "crl.sha256";
    /// In the ConfigMap of a part: its bytes.
    pub const PART: &str = "part";
}

/// Which certificates of a CA a CRL speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All of them: the complete CRL, without issuingDistributionPoint.
    #[default]
    Full,
    /// Those of one of so many shards: complete for the certificates that name its URL. The number of
    /// shards stands in its URL too: one of another division must not answer in its place.
    Shard {
        /// Which, from 0.
        index: u32,
        /// Of how many.
        of: u32,
    },
    /// What was revoked since an earlier complete CRL.
    Delta,
}

/// The shard, from 0, of a certificate: the last four octets of its serial number, as a number, modulo the
/// number of shards.
pub fn shard_of(serial: &Serial, of: u32) -> u32 {
    let last = serial.as_be_bytes().iter().rev().take(4).rev();
    last.fold(0, |number: u32, octet| number << 8 | u32::from(*octet)).checked_rem(of).unwrap_or(0)
}

impl Scope {
    /// The scope of the CRL that a certificate names: its shard, or all when there are none.
    pub fn of_serial(serial: &Serial, shards: Option<u32>) -> Self {
        shards.map_or(Self::Full, |of| Self::Shard { index: shard_of(serial, of), of })
    }

    /// The scopes of all shards.
    pub fn shards(of: u32) -> impl Iterator<Item = Self> {
        (0..of).map(move |index| Self::Shard { index, of })
    }

    /// Path of its URL below the base URL.
    pub fn path(self, key: &CaKey) -> String {
        let CaKey { authority, generation } = key;
        match self {
            Self::Full => format!("/crl/{authority}/{generation}.crl"),
            Self::Delta => format!("/crl/{authority}/{generation}/delta.crl"),
            Self::Shard { index, of } => {
                format!("/crl/{authority}/{generation}/{index}-of-{of}.crl")
            }
        }
    }

    /// Which CRL a head publishes, by its annotations. None for one that this version does not know: it
    /// must not be taken for the complete one.
    pub fn of(metadata: &ObjectMeta) -> Option<Self> {
        let notes = metadata.annotations.as_ref();
        let noted = notes.and_then(|notes| notes.get(annotation::CRL_SCOPE));
        noted.map_or(Some(Self::Full), |scope| Self::parse(scope))
    }

    /// Reads what [`fmt::Display`] writes of a shard or a delta.
    fn parse(text: &str) -> Option<Self> {
        if text == "delta" {
            return Some(Self::Delta);
        }
        let (index, of) = text.strip_prefix("shard-")?.split_once("-of-")?;
        let (index, of) = (index.parse().ok()?, of.parse().ok()?);
        let scope = Self::Shard { index, of };
        // `+1` and `01` are numbers too, but no shard of ours.
        (index < of && scope.to_string() == text).then_some(scope)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Shard { index, of } => write!(f, "shard-{index}-of-{of}"),
            Self::Delta => f.write_str("delta"),
        }
    }
}

/// Name of the head. What follows the generation is no number, so that no authority has a CRL of the
/// same name.
pub fn head_name(key: &CaKey, scope: Scope) -> String {
    format!("crl-{}", stem(key, scope))
}

/// Name of the part with this digest.
fn part_name(key: &CaKey, scope: Scope, sha256: &str) -> String {
    format!("crl-part-{}-{}", stem(key, scope), sha256.get(..16).unwrap_or(sha256))
}

fn stem(CaKey { authority, generation }: &CaKey, scope: Scope) -> String {
    match scope {
        Scope::Full => format!("{authority}-{generation}"),
        Scope::Shard { index, of } => format!("{authority}-{generation}-s{index}of{of}"),
        Scope::Delta => format!("{authority}-{generation}-delta"),
    }
}

/// The ConfigMaps that publish a CRL. The parts must be there before the head that names them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The head.
    pub head: ConfigMap,
    /// The parts, in their order; none for a small CRL.
    pub parts: Vec<ConfigMap>,
}

/// The ConfigMaps of a CRL. `cuts` are the offsets at which a part of a large one begins, and the one at
/// which the last of them ends.
pub fn render(
    key: &CaKey,
    scope: Scope,
    ca_pem: &str,
    der: &[u8],
    cuts: &[usize],
    number: CrlNumber,
) -> Rendered {
    let mut annotations =
        BTreeMap::from([(annotation::CRL_NUMBER.to_owned(), number.0.to_string())]);
    if scope != Scope::Full {
        annotations.insert(annotation::CRL_SCOPE.to_owned(), scope.to_string());
    }
    let mut data = BTreeMap::from([(crl_key::CA.to_owned(), ca_pem.to_owned())]);
    let mut parts = Vec::new();
    let binary_data = if der.len() <= WHOLE_BYTES {
        BTreeMap::from([(crl_key::DER.to_owned(), ByteString(der.to_vec()))])
    } else {
        let (start, end) = (cuts.first().copied(), cuts.last().copied());
        let (start, end) = start.zip(end).unwrap_or_default();
        let slices = cuts.windows(2).map(|cut| &der[cut[0]..cut[1]]);
        let digests: Vec<String> = slices.clone().map(sha256_hex).collect();
        parts =
            slices.zip(&digests).map(|(bytes, sha256)| part(key, scope, bytes, sha256)).collect();
        data.insert(crl_key::PARTS.to_owned(), digests.join("\n"));
        data.insert(crl_key::SHA256.to_owned(), sha256_hex(der));
        BTreeMap::from([
            (crl_key::HEAD.to_owned(), ByteString(der[..start].to_vec())),
            (crl_key::TAIL.to_owned(), ByteString(der[end..].to_vec())),
        ])
    };
    let head = ConfigMap {
        metadata: ObjectMeta {
            name: Some(head_name(key, scope)),
            labels: Some(labels(key, COMPONENT)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        data: Some(data),
        binary_data: Some(binary_data),
        ..ConfigMap::default()
    };
    Rendered { head, parts }
}

fn part(key: &CaKey, scope: Scope, bytes: &[u8], sha256: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(part_name(key, scope, sha256)),
            labels: Some(labels(key, PART_COMPONENT)),
            ..ObjectMeta::default()
        },
        binary_data: Some(BTreeMap::from([(crl_key::PART.to_owned(), ByteString(bytes.to_vec()))])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// Is an object a part of a CA's CRLs of this scope that can be removed, since none of those that count
/// names it? A publisher that died before it wrote the head left such parts.
pub fn is_unused(
    key: &CaKey,
    scope: Scope,
    part: &ObjectMeta,
    named: &[&[String]],
    now: Timestamp,
) -> bool {
    let component = part.labels.as_ref().and_then(|labels| labels.get(label::COMPONENT));
    let ours = component.is_some_and(|component| component == PART_COMPONENT)
        && key_of(part).as_ref() == Some(key);
    let created = part.creation_timestamp.as_ref().map(|time| time.0);
    let old = created.is_some_and(|created| now.duration_since(created) > GRACE);
    let name = part.name.as_deref().unwrap_or_default();
    let digest = name.rsplit('-').next().unwrap_or_default();
    let ours = ours && name == part_name(key, scope, digest);
    ours && old && !named.iter().copied().flatten().any(|known| known == name)
}

/// The bytes in the ConfigMap of a part.
pub fn part_bytes(config_map: &ConfigMap) -> Option<&[u8]> {
    let data = config_map.binary_data.as_ref()?;
    data.get(crl_key::PART).map(|bytes| bytes.0.as_slice())
}

/// Names of the ConfigMaps that hold the parts of a CRL, in their order; none for a small one.
pub fn part_names(key: &CaKey, head: &ConfigMap) -> Vec<String> {
    let scope = Scope::of(&head.metadata).unwrap_or_default();
    digests(head).map(|sha256| part_name(key, scope, sha256)).collect()
}

fn digests(head: &ConfigMap) -> impl Iterator<Item = &str> {
    let parts = head.data.as_ref().and_then(|data| data.get(crl_key::PARTS));
    parts.into_iter().flat_map(|parts| parts.lines())
}

/// Why a CRL can't be put together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AssembleError {
    /// The head has neither the whole CRL nor what is needed to find its parts.
    #[error("ConfigMap {head} holds no CRL: key {key:?} is missing")]
    NoCrl {
        /// Name of the head.
        head: String,
        /// The key that is not there.
        key: &'static str,
    },
    /// A part is not there, or not yet.
    #[error("ConfigMap {part} with a part of the CRL in ConfigMap {head} is missing")]
    PartMissing {
        /// Name of the head.
        head: String,
        /// Name of the part.
        part: String,
    },
    /// Head and parts don't make the CRL that was published.
    #[error("ConfigMap {head} and its parts don't make a CRL with the SHA-256 in {key:?}", key = crl_key::SHA256)]
    Digest {
        /// Name of the head.
        head: String,
    },
}

/// Puts a CRL together, DER. `part` finds the bytes of a part by the name of its ConfigMap.
pub fn assemble<B: AsRef<[u8]>>(
    key: &CaKey,
    head: &ConfigMap,
    mut part: impl FnMut(&str) -> Option<B>,
) -> Result<Vec<u8>, AssembleError> {
    let name = || head.metadata.name.clone().unwrap_or_default();
    let bytes = |key: &'static str| {
        let found = head.binary_data.as_ref().and_then(|data| data.get(key));
        found.map(|bytes| bytes.0.as_slice()).ok_or(key)
    };
    let missing = |key| AssembleError::NoCrl { head: name(), key };
    if let Ok(der) = bytes(crl_key::DER) {
        return Ok(der.to_vec());
    }
    let (start, end) = (bytes(crl_key::HEAD), bytes(crl_key::TAIL));
    // A head without any of the keys lacks the one that most have.
    let start = start.map_err(|_| missing(crl_key::DER))?;
    let end = end.map_err(missing)?;
    let sha256 = head.data.as_ref().and_then(|data| data.get(crl_key::SHA256));
    let sha256 = sha256.ok_or_else(|| missing(crl_key::SHA256))?;

    let names = part_names(key, head);
    let mut der = Vec::with_capacity(start.len() + names.len() * 512 * 1024 + end.len());
    der.extend_from_slice(start);
    for name_of_part in names {
        let bytes = part(&name_of_part)
            .ok_or_else(|| AssembleError::PartMissing { head: name(), part: name_of_part })?;
        der.extend_from_slice(bytes.as_ref());
    }
    der.extend_from_slice(end);
    if sha256_hex(&der) == *sha256 { Ok(der) } else { Err(AssembleError::Digest { head: name() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use proptest::prelude::*;

    fn key() -> CaKey {
        CaKey { authority: "staff".into(), generation: 3 }
    }

    /// Octets that don't repeat.
    fn octets(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn rendered(der: &[u8], cuts: &[usize]) -> Rendered {
        render(&key(), Scope::Full, "CA\n", der, cuts, CrlNumber(7))
    }

    fn assembled(rendered: &Rendered) -> Result<Vec<u8>, AssembleError> {
        let find = |name: &str| {
            let mut parts = rendered.parts.iter();
            let found = parts.find(|part| part.metadata.name.as_deref() == Some(name))?;
            part_bytes(found).map(<[u8]>::to_vec)
        };
        assemble(&key(), &rendered.head, find)
    }

    #[test]
    fn what_was_rendered_is_put_together_again() {
        for size in [0, 1, WHOLE_BYTES, WHOLE_BYTES + 1, 3 * WHOLE_BYTES] {
            let der = octets(size);
            let cuts: Vec<usize> = (100..size.saturating_sub(50)).step_by(300_000).collect();
            let rendered = rendered(&der, &cuts);
            assert_eq!(rendered.parts.is_empty(), size <= WHOLE_BYTES, "{size}");
            assert_eq!(assembled(&rendered), Ok(der), "{size}");
            for object in rendered.parts.iter().chain([&rendered.head]) {
                assert!(serde_json::to_vec(object).unwrap().len() < 3 << 19, "{size}");
            }
        }
    }

    #[test]
    fn a_missing_part_is_named_and_a_foreign_one_is_refused() {
        let der = octets(2 * WHOLE_BYTES);
        let mut rendered = rendered(&der, &[10, 500_000, 1_000_000, der.len() - 5]);
        let names = part_names(&key(), &rendered.head);
        let lost = rendered.parts.remove(1);
        assert_eq!(
            assembled(&rendered),
            Err(AssembleError::PartMissing { head: "crl-staff-3".into(), part: names[1].clone() })
        );
        let mut foreign = rendered.parts[0].clone();
        foreign.metadata.name = lost.metadata.name;
        rendered.parts.push(foreign);
        assert_eq!(assembled(&rendered), Err(AssembleError::Digest { head: "crl-staff-3".into() }));
        rendered.head.binary_data = None;
        let no_crl = AssembleError::NoCrl { head: "crl-staff-3".into(), key: crl_key::DER };
        assert_eq!(assembled(&rendered), Err(no_crl));
    }

    #[test]
    fn only_what_changed_gets_another_name() {
        let mut der = octets(2 * WHOLE_BYTES);
        let cuts = [10, 500_000, 1_000_000, der.len() - 5];
        let before = part_names(&key(), &rendered(&der, &cuts).head);
        der[600_000] ^= 1;
        let after = part_names(&key(), &rendered(&der, &cuts).head);
        let changed: Vec<_> = (0..3).filter(|at| before[*at] != after[*at]).collect();
        assert_eq!(changed, [1]);
    }

    #[test]
    fn a_part_is_removed_only_when_nothing_names_it_and_nobody_may_be_about_to() {
        let der = octets(2 * WHOLE_BYTES);
        let mut part = rendered(&der, &[10, der.len() - 5]).parts.remove(0).metadata;
        let now: Timestamp = "2026-05-01T10:00:00Z".parse().unwrap();
        part.creation_timestamp = Some(Time(now - GRACE - SignedDuration::from_secs(1)));
        let name = part.name.clone().unwrap();
        let unused = |part: &ObjectMeta, named: &[&[String]]| {
            is_unused(&key(), Scope::Full, part, named, now)
        };
        assert!(unused(&part, &[&[], &["crl-part-staff-3-0".to_owned()]]));
        assert!(!unused(&part, &[&[], &[name]]));
        let fresh = ObjectMeta { creation_timestamp: Some(Time(now - GRACE)), ..part.clone() };
        assert!(!unused(&fresh, &[]));
        assert!(!is_unused(&CaKey::first("staff"), Scope::Full, &part, &[], now), "of another CA");
        let shard = Scope::Shard { index: 3, of: 8 };
        assert!(!is_unused(&key(), shard, &part, &[], now), "of another scope");
        let mut head = rendered(&der, &[]).head.metadata;
        head.creation_timestamp = part.creation_timestamp;
        assert!(!unused(&head, &[]), "not a part");
    }

    #[test]
    fn each_scope_has_its_own_path_name_and_annotation() {
        let mut seen = std::collections::BTreeSet::new();
        for scope in
            [Scope::Full, Scope::Delta].into_iter().chain(Scope::shards(2)).chain(Scope::shards(13))
        {
            let der = octets(2 * WHOLE_BYTES);
            let Rendered { head, parts } =
                render(&key(), scope, "", &der, &[9, der.len()], CrlNumber(1));
            assert_eq!(Scope::of(&head.metadata), Some(scope));
            assert_eq!(head.metadata.name, Some(head_name(&key(), scope)));
            assert_eq!(part_names(&key(), &head), [parts[0].metadata.name.clone().unwrap()]);
            assert!(seen.insert(head.metadata.name) && seen.insert(Some(scope.path(&key()))));
            assert!(seen.insert(parts[0].metadata.name.clone()));
        }
        let mut head = render(&key(), Scope::Full, "", &[], &[], CrlNumber(1)).head;
        for text in ["deltas", "shard-1", "shard-2-of-2", "shard-01-of-2", "shard-1-of-+2", "full"]
        {
            let noted = (annotation::CRL_SCOPE.to_owned(), text.to_owned());
            head.metadata.annotations.get_or_insert_default().extend([noted]);
            assert_eq!(Scope::of(&head.metadata), None, "{text} is not taken for the complete one");
        }
    }

    proptest! {
        #[test]
        fn every_serial_has_one_shard(octets in proptest::collection::vec(any::<u8>(), 1..21), of in 2u32..65) {
            if let Ok(serial) = Serial::from_be_bytes(&octets) {
                let scope = Scope::of_serial(&serial, Some(of));
                prop_assert_eq!(Scope::shards(of).filter(|shard| *shard == scope).count(), 1);
                prop_assert_eq!(Scope::of_serial(&serial, None), Scope::Full);
                let number = serial.as_be_bytes().iter().fold(0, |number, octet| (number * 256 + u64::from(*octet)) % (1 << 32));
                prop_assert_eq!(scope, Scope::Shard { index: (number % u64::from(of)) as u32, of });
            }
        }
    }
}
