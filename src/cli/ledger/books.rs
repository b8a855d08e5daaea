//! What the commands read: segments, published CRLs, certificates of CAs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::Which;
use crate::api::{annotation, label};
use crate::cluster::ledger::fetch;
use crate::controller::error::chain as causes;
use crate::pki::crl_import::{SignedCrl, import};
use crate::pki::inspect::certificates;
use crate::plan::authority::{key_of, secret_key, text_of};
use crate::plan::ledger::segment::{Chain, Segment, book, chain};
use crate::plan::ledger::{CaKey, Ledger};
use crate::plan::publication::{self, Scope, assemble, crl_key, part_bytes, part_names};

/// The ledger of one CA as it stands in the cluster.
pub(super) struct Book {
    /// Which CA.
    pub(super) key: CaKey,
    /// Its segments, in their order.
    pub(super) segments: Vec<Segment>,
    /// How they follow on each other.
    pub(super) chain: Chain,
    /// What they say together.
    pub(super) ledger: Ledger,
    /// Its published CRL, if there is one.
    pub(super) published: Option<Published>,
}

/// A published CRL.
pub(super) struct Published {
    /// The position of the ledger's next record when it was made.
    pub(super) position: Option<u64>,
    /// What it says, or why it can't be used.
    pub(super) crl: Result<SignedCrl, String>,
}

impl Book {
    /// The ledger that these segments are.
    pub(super) fn of(key: CaKey, mut segments: Vec<Segment>, published: Option<Published>) -> Self {
        let chain = chain(&mut segments);
        let ledger = book(&segments);
        Self { key, segments, chain, ledger, published }
    }

    /// Why the ledger is not whole, and what to do; nothing when it is.
    pub(super) fn trouble(&self) -> Option<String> {
        self.chain.trouble(&self.key)
    }

    /// How many of its certificates are good, revoked and not expired, and expired.
    pub(super) fn counts(&self, now: Timestamp) -> [usize; 3] {
        let expired = self.ledger.issued().filter(|issued| issued.not_after <= now).count();
        [self.ledger.live(now).count(), self.ledger.revoked_count(now), expired]
    }
}

/// The ledgers of all CAs that are asked for, in the order of their names.
pub(super) async fn read(
    client: &Client,
    namespace: &str,
    which: &Which,
) -> Result<Vec<Book>, String> {
    let is_meant = |key: &CaKey| {
        which.authority.as_ref().is_none_or(|name| **name == *key.authority)
            && which.generation.is_none_or(|number| number == key.generation)
    };
    let mut found = fetch(client, namespace, None).await.map_err(|error| causes(&error))?;
    let mut crls = published(client, namespace).await?;
    for key in crls.keys() {
        found.entry(key.clone()).or_default();
    }
    let mut books = Vec::new();
    for (key, segments) in found.into_iter().filter(|(key, _)| is_meant(key)) {
        let published = crls.remove(&key);
        books.push(Book::of(key, segments, published));
    }
    match (&which.authority, which.generation) {
        (Some(name), generation) if books.is_empty() => {
            let generation = generation.map_or(String::new(), |g| format!(", generation {g}"));
            Err(format!(
                "nothing is recorded of ClientAuthority {name:?}{generation} in namespace {namespace:?}"
            ))
        }
        _ => Ok(books),
    }
}

/// The published CRLs, each checked against the certificate of its CA.
async fn published(client: &Client, namespace: &str) -> Result<BTreeMap<CaKey, Published>, String> {
    let cas = ca_certificates(client, namespace, None).await?;
    let mut published = BTreeMap::new();
    for (key, head) in heads(client, namespace).await? {
        let crl = match cas.get(&key) {
            Some(ca) => {
                let bytes = whole(client, namespace, &key, &head).await;
                bytes.and_then(|der| import(&der, ca).map_err(|error| error.to_string()))
            }
            None => Err("the certificate of its CA is missing".to_owned()),
        };
        let position = head.annotations().get(annotation::LEDGER_POSITION);
        let position = position.and_then(|position| position.parse().ok());
        published.insert(key, Published { position, crl });
    }
    Ok(published)
}

/// The ConfigMaps of the complete CRLs.
async fn heads(client: &Client, namespace: &str) -> Result<BTreeMap<CaKey, ConfigMap>, String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let labels = format!("{}={}", label::COMPONENT, publication::COMPONENT);
    let list = api.list(&ListParams::default().labels(&labels)).await;
    let list = list.map_err(|error| format!("failed to list the CRLs: {}", causes(&error)))?;
    let complete = |head: &ConfigMap| Scope::of(&head.metadata) == Some(Scope::Full);
    let heads = list.items.into_iter().filter(complete);
    Ok(heads.filter_map(|head| Some((key_of(&head.metadata)?, head))).collect())
}

/// A CRL, DER.
async fn whole(
    client: &Client,
    namespace: &str,
    key: &CaKey,
    head: &ConfigMap,
) -> Result<Vec<u8>, String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let mut parts = BTreeMap::new();
    for name in part_names(key, head) {
        let found = api.get_opt(&name).await.map_err(|error| causes(&error))?;
        if let Some(bytes) = found.as_ref().and_then(part_bytes) {
            parts.insert(name, bytes.to_vec());
        }
    }
    assemble(key, head, |name| parts.remove(name)).map_err(|error| error.to_string())
}

/// The certificates of CAs, DER, of one authority or of all: from their Secrets, and where these can't be
/// read from beside their CRLs.
pub(super) async fn ca_certificates(
    client: &Client,
    namespace: &str,
    authority: Option<&str>,
) -> Result<BTreeMap<CaKey, Vec<u8>>, String> {
    let mut cas = BTreeMap::new();
    let first = |pem: &str| Some(certificates(pem.as_bytes()).ok()?.first()?.to_vec());
    for (key, head) in heads(client, namespace).await? {
        let pem = head.data.as_ref().and_then(|data| data.get(crl_key::CA));
        if let Some(ca) = pem.and_then(|pem| first(pem)) {
            cas.insert(key, ca);
        }
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let labels = format!("{}=ca", label::COMPONENT);
    match api.list(&ListParams::default().labels(&labels)).await {
        Ok(list) => {
            let of_secret = list.items.iter().filter_map(|secret| {
                Some((key_of(&secret.metadata)?, first(text_of(secret, secret_key::CHAIN))?))
            });
            cas.extend(of_secret);
        }
        // Who may look into the ledger need not be one who may read keys.
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        Err(error) => return Err(format!("failed to list the CAs: {}", causes(&error))),
    }
    cas.retain(|key, _| authority.is_none_or(|name| *name == *key.authority));
    Ok(cas)
}
