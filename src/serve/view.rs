//! What the server knows: every published CRL with its CA, by CA and by path, and the list of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use serde::Serialize;
use tracing::{error, info, warn};

use super::document::Document;
use super::published::{Published, Source};
use crate::plan::authority::key_of;
use crate::plan::ledger::CaKey;
use crate::plan::publication::{Scope, head_name};

/// Path of the list of CRLs.
const INDEX: &str = "/crl/index.json";

/// Every CRL. A change makes another view.
pub struct View {
    by_key: BTreeMap<(CaKey, Scope), Arc<Published>>,
    by_path: HashMap<String, File>,
}

/// What is at a path.
pub enum File {
    /// The list of CRLs.
    Index(Box<Document>),
    /// A CRL, DER.
    Der(Arc<Published>),
    /// A CRL, PEM.
    Pem(Arc<Published>),
}

/// The list, as JSON.
#[derive(Serialize)]
struct Index<'a> {
    crls: Vec<Listed<'a>>,
}

/// A CRL in the list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    authority: &'a str,
    generation: u32,
    path: String,
    // `full`, or which shard.
    scope: String,
    // Too large for the numbers of most JSON readers.
    number: String,
    sha256: &'a str,
    this_update: String,
    next_update: String,
    entries: usize,
    bytes: usize,
}

impl Default for View {
    fn default() -> Self {
        Self::of(BTreeMap::new())
    }
}

impl View {
    fn of(by_key: BTreeMap<(CaKey, Scope), Arc<Published>>) -> Self {
        let mut by_path =
            HashMap::from([(INDEX.to_owned(), File::Index(Box::new(index(by_key.values()))))]);
        for ((key, scope), published) in &by_key {
            let path = scope.path(key);
            let pem = path.strip_suffix(".crl").map(|stem| format!("{stem}.pem"));
            by_path.extend(pem.map(|pem| (pem, File::Pem(published.clone()))));
            by_path.insert(path, File::Der(published.clone()));
        }
        Self { by_key, by_path }
    }

    /// The complete CRL of a CA.
    pub fn get(&self, key: &CaKey) -> Option<&Arc<Published>> {
        self.scoped(key, Scope::Full)
    }

    /// A CRL of a CA.
    pub fn scoped(&self, key: &CaKey, scope: Scope) -> Option<&Arc<Published>> {
        self.by_key.get(&(key.clone(), scope))
    }

    /// What is at a path.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.by_path.get(path)
    }

    /// Every CRL, those of one authority together.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Published>> {
        self.by_key.values()
    }

    /// The complete CRLs of all CAs of an authority: any other does not say who is not revoked.
    pub fn of_authority<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Published>> {
        self.all().filter(move |one| &*one.key.authority == name && one.scope == Scope::Full)
    }

    /// The view with one ConfigMap taken in. One that can't be read changes nothing: the last good
    /// CRL stays in service until it expires.
    pub fn with(&self, head: &ConfigMap) -> Self {
        self.with_parts(head, &HashMap::new(), Source::Cluster)
    }

    /// The same for a ConfigMap that may name parts; those that the CRL of before does not have are in
    /// `fetched`.
    pub fn with_parts(
        &self,
        head: &ConfigMap,
        fetched: &HashMap<String, Bytes>,
        source: Source,
    ) -> Self {
        let mut by_key = self.by_key.clone();
        let slot = key_of(&head.metadata).zip(Scope::of(&head.metadata));
        let known = slot.and_then(|slot| by_key.get(&slot)).cloned();
        match Published::read(head, fetched, known.as_deref(), source) {
            Ok(published) => {
                if let Some(published) = succeed(known.as_deref(), published) {
                    info!(
                        ca = %published.key, scope = %published.scope, number = published.number.0,
                        entries = published.revoked.len(), ?source, "took in a CRL"
                    );
                    let slot = (published.key.clone(), published.scope);
                    by_key.insert(slot, Arc::new(published));
                }
            }
            Err(why) => {
                error!(name = head.name_any(), why, ?source, "a published CRL can't be used");
            }
        }
        Self::of(by_key)
    }

    /// The view without the CRL of a ConfigMap that is gone.
    pub fn without(&self, head: &ConfigMap) -> Self {
        let mut by_key = self.by_key.clone();
        if let Some(slot) = key_of(&head.metadata).zip(Scope::of(&head.metadata)) {
            by_key.remove(&slot);
        }
        Self::of(by_key)
    }

    /// The view with nothing but what the ConfigMaps of these names publish.
    pub fn only(&self, names: &BTreeSet<String>) -> Self {
        let mut by_key = self.by_key.clone();
        by_key.retain(|(key, scope), _| {
            let name = head_name(key, *scope);
            let kept = names.contains(&name);
            if !kept {
                warn!(name, "a CRL is not published any more");
            }
            kept
        });
        Self::of(by_key)
    }
}

/// What serves after another one was found; None when the known one stays as it is. The number must rise,
/// also when somebody puts an older state back.
fn succeed(known: Option<&Published>, found: Published) -> Option<Published> {
    let Some(known) = known else { return Some(found) };
    // A new CA under an old name begins anew. A copy on the disk has no say against the cluster.
    if known.ca != found.ca || known.number < found.number {
        return Some(found);
    }
    if known.number == found.number && known.from_disk && !found.from_disk {
        return Some(found);
    }
    if known.number > found.number {
        warn!(
            ca = %found.key, number = found.number.0, serves = known.number.0,
            "an older CRL than the one in service was published; it is not served"
        );
    }
    (found.removed && !known.removed).then(|| known.clone().retired())
}

fn index<'a>(all: impl Iterator<Item = &'a Arc<Published>>) -> Document {
    let listed = all.map(|one| Listed {
        authority: &one.key.authority,
        generation: one.key.generation,
        path: one.scope.path(&one.key),
        scope: one.scope.to_string(),
        number: one.number.0.to_string(),
        sha256: one.document().sha256(),
        this_update: one.this_update.to_string(),
        next_update: one.next_update.to_string(),
        entries: one.revoked.len(),
        bytes: one.der().len(),
    });
    let mut text = serde_json::to_string(&Index { crls: listed.collect() })
        .expect("text and numbers are JSON");
    text.push('\n');
    let document = Document::new(text.into(), "application/json", None, None);
    document.compress();
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::annotation;
    use crate::pki::CertificateAuthority;
    use crate::pki::Serial;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::{self, CrlNumber, Entry, sign};
    use crate::plan::publication::{Rendered, crl_key, part_bytes, render};

    fn key() -> CaKey {
        CaKey::first("staff")
    }

    fn signed(ca: &CertificateAuthority, number: u128, entries: usize) -> Vec<u8> {
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant("2026-06-07T00:00:00Z"));
        let serial = |at: usize| Serial::from_be_bytes(&(at as u64 + 1).to_be_bytes()).unwrap();
        let entry = |at| Entry { serial: serial(at), revoked_at: this, reason: None };
        let entries: Vec<Entry> = (0..entries).map(entry).collect();
        sign(ca, CrlNumber(number), this, next, &entries).unwrap()
    }

    fn published(ca: &CertificateAuthority, number: u128) -> ConfigMap {
        let der = signed(ca, number, 1);
        render(&key(), Scope::Full, &ca.certificate_pem(), &der, &[], CrlNumber(number)).head
    }

    fn shard(ca: &CertificateAuthority, url: &str) -> Vec<u8> {
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant("2026-06-07T00:00:00Z"));
        let complete = crl::CrlParams::complete(CrlNumber(7), this, next);
        let params = crl::CrlParams { distribution_point: Some(url), ..complete };
        crl::encode(ca, &params, &crl::Index::default()).unwrap().der
    }

    fn large(ca: &CertificateAuthority, number: u128, entries: usize) -> Rendered {
        let der = signed(ca, number, entries);
        let mut cuts: Vec<usize> = (200..der.len() - 200).step_by(400_000).collect();
        cuts.push(der.len() - 200);
        render(&key(), Scope::Full, &ca.certificate_pem(), &der, &cuts, CrlNumber(number))
    }

    fn by_name(parts: &[ConfigMap]) -> HashMap<String, Bytes> {
        let part = |part: &ConfigMap| {
            (part.name_any(), Bytes::copy_from_slice(part_bytes(part).expect("bytes")))
        };
        parts.iter().map(part).collect()
    }

    fn number(view: &View) -> Option<u128> {
        view.get(&key()).map(|one| one.number.0)
    }

    #[test]
    fn what_its_ca_did_not_sign_is_not_served() {
        let (ca, other) = (sample(), sample());
        let view = View::default().with(&published(&ca, 7));
        let mut forged = published(&other, 8);
        forged.data = published(&ca, 8).data;
        assert_eq!(number(&view.with(&forged)), Some(7));
        let mut damaged = published(&ca, 8);
        let bytes = &mut damaged.binary_data.as_mut().unwrap().get_mut(crl_key::DER).unwrap().0;
        bytes[100] ^= 1;
        assert_eq!(number(&view.with(&damaged)), Some(7));
        assert_eq!(number(&View::default().with(&damaged)), None);
        let mut nameless = published(&ca, 8);
        nameless.metadata.labels = None;
        assert_eq!(number(&view.with(&nameless)), Some(7));
    }

    #[test]
    fn the_cluster_has_the_last_word_on_what_the_disk_says() {
        let (ca, other) = (sample(), sample());
        let disk = |config_map: &ConfigMap| {
            View::default().with_parts(config_map, &HashMap::new(), Source::Disk)
        };
        let from_disk = |view: &View| view.get(&key()).unwrap().from_disk;
        let retired = |number| {
            let mut config_map = published(&ca, number);
            let note = (annotation::STATE.to_owned(), "Removed".to_owned());
            config_map.metadata.annotations.get_or_insert_default().extend([note]);
            config_map
        };
        // The same CRL, confirmed; a newer one.
        for number in [7, 8] {
            let view = disk(&published(&ca, 7)).with(&published(&ca, number));
            assert_eq!((self::number(&view), from_disk(&view)), (Some(number), false));
        }
        // A newer one on the disk: the cluster was put back.
        let view = disk(&published(&ca, 7)).with(&published(&ca, 6));
        assert_eq!((number(&view), from_disk(&view)), (Some(7), true));
        let view = disk(&published(&ca, 7)).with(&retired(6));
        assert!(view.get(&key()).unwrap().removed && number(&view) == Some(7));
        // Another CA, or a state that the cluster does not know of.
        let view = disk(&published(&other, 9)).with(&published(&ca, 7));
        assert_eq!(&view.get(&key()).unwrap().ca, ca.certificate());
        let view = disk(&retired(7)).with(&published(&ca, 7));
        assert!(!view.get(&key()).unwrap().removed);
        // What is published no more.
        assert_eq!(number(&disk(&published(&ca, 7)).only(&BTreeSet::new())), None);
        let names = BTreeSet::from(["crl-staff-1".to_owned()]);
        assert_eq!(number(&disk(&published(&ca, 7)).only(&names)), Some(7));
    }

    #[test]
    fn a_large_crl_is_taken_in_when_all_its_parts_are_there() {
        let ca = sample();
        let (first, second) = (large(&ca, 7, 60_000), large(&ca, 8, 60_001));
        assert!(first.parts.len() > 2);
        let take = |view: &View, head: &ConfigMap, parts: &[ConfigMap]| {
            view.with_parts(head, &by_name(parts), Source::Cluster)
        };
        assert_eq!(number(&take(&View::default(), &first.head, &first.parts[1..])), None);
        let view = take(&View::default(), &first.head, &first.parts);
        assert_eq!(view.get(&key()).unwrap().revoked.len(), 60_000);

        // What did not change need not come again. A part that is not what was published is refused.
        let news: Vec<ConfigMap> =
            second.parts.iter().filter(|part| !first.parts.contains(part)).cloned().collect();
        assert!(!news.is_empty() && news.len() < second.parts.len());
        assert_eq!(number(&take(&view, &second.head, &[])), Some(7));
        assert_eq!(number(&take(&view, &second.head, &news)), Some(8));
        let mut wrong = by_name(&news);
        wrong.values_mut().for_each(|part| *part = Bytes::from_static(b"no part"));
        assert_eq!(number(&view.with_parts(&second.head, &wrong, Source::Cluster)), Some(7));
    }

    #[test]
    fn only_a_complete_crl_is_for_the_gate() {
        let ca = sample();
        let pem = ca.certificate_pem();
        let scope = Scope::Shard { index: 1, of: 4 };
        let head = |der: &[u8], scope| render(&key(), scope, &pem, der, &[], CrlNumber(7)).head;
        let url = |path: &str| format!("http://crl.example.com{path}");
        let der = shard(&ca, &url("/crl/staff/1/1-of-4.crl"));
        let view = View::default().with(&head(&der, scope));
        assert!(view.file("/crl/staff/1/1-of-4.crl").is_some());
        assert!(view.file("/crl/staff/1/1-of-4.pem").is_some());
        assert!(view.file("/crl/staff/1.crl").is_none());
        assert_eq!((view.get(&key()).is_none(), view.of_authority("staff").count()), (true, 0));
        let Some(File::Index(list)) = view.file(INDEX) else { panic!("a list") };
        let list = String::from_utf8(list.body().to_vec()).unwrap();
        assert!(list.contains("\"scope\":\"shard-1-of-4\""), "{list}");
        let both = view.with(&published(&ca, 8));
        assert_eq!((both.all().count(), both.of_authority("staff").count()), (2, 1));
        assert_eq!(both.without(&head(&der, scope)).all().count(), 1);

        let delta = crate::pki::crl::signed::tests::delta(&ca);
        let with_delta = View::default().with(&head(&delta, Scope::Delta));
        assert!(with_delta.file("/crl/staff/1/delta.crl").is_some());
        assert!(with_delta.get(&key()).is_none());
        assert_eq!(with_delta.of_authority("staff").count(), 0);

        // What a CRL speaks of must be what its place says.
        let other = shard(&ca, &url("/crl/staff/1/2-of-4.crl"));
        for (der, scope) in [
            (&der, Scope::Full),
            (&delta, Scope::Full),
            (&delta, scope),
            (&other, scope),
            (&signed(&ca, 9, 1), scope),
            (&signed(&ca, 9, 1), Scope::Delta),
            (&other, Scope::Delta),
        ] {
            assert_eq!(View::default().with(&head(der, scope)).all().count(), 0, "{scope}");
            let kept = both.with(&head(der, scope));
            let numbers: Vec<u128> = kept.all().map(|one| one.number.0).collect();
            assert_eq!(numbers, [8, 7], "{scope}");
        }
    }
}
