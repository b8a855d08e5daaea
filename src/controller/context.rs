//! What the controllers share: stores, clients, the ledger, the authorities that can sign.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::{Client, Resource, ResourceExt};
use serde_json::Value;

use super::canary::{Canaries, Settings};
use super::policies::{Known, PasswordWatches};
use super::queues::Queues;
use super::run::GateTls;
use super::servers::Servers;
use super::shards::Shard;
use super::upkeep::Repairs;
use crate::api::allow::Allow;
use crate::api::condition::{READY, is_true};
use crate::api::trust::TargetReference;
use crate::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use crate::cluster::Key;
use crate::cluster::events::Events;
use crate::cluster::ledger::LedgerHandle;
use crate::cluster::store::Store;
use crate::ingress::{self, Kind};
use crate::metrics::Metrics;
use rustls_pki_types::CertificateDer;

use crate::api::authority::CaState;
use crate::pki::crl::{CrlFacts, CrlNumber, Entry, Index, pem_len, to_pem};
use crate::pki::{CertificateAuthority, Serial, hex};
use crate::plan::allow::{InvalidPolicy, Policy};
use crate::plan::authority::{is_ca, key_of};
use crate::plan::headroom::SECRET_LIMIT;
use crate::plan::identity::{AuthorityView, Signer};
use crate::plan::ledger::CaKey;
use crate::plan::publication::Scope;
use crate::plan::scope::{Target, target};
use crate::plan::trust_secret::crl_keys;
use crate::token::Token;

/// What the watches saw.
#[derive(Clone)]
pub struct Stores {
    /// All authorities.
    pub authorities: Store<ClientAuthority>,
    /// All identities, found by `namespace/secretName`.
    pub identities: Store<ClientIdentity>,
    /// All trusts.
    pub trusts: Store<ClientTrust>,
    /// All revocations, found by what they name: [`revocation_keys`].
    pub revocations: Store<CertificateRevocation>,
    /// Metadata of the namespaces that are looked after.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    /// Metadata of the Secrets that carry our label; those of CAs found by the name of their authority.
    pub secrets: Store<PartialObjectMeta<Secret>>,
    /// Metadata of the ConfigMaps that publish CRLs, and of those with their parts.
    pub crls: Store<PartialObjectMeta<ConfigMap>>,
    /// Metadata of the ConfigMaps that are bundles.
    pub bundles: Store<PartialObjectMeta<ConfigMap>>,
    /// All Ingresses.
    pub ingresses: Store<Ingress>,
    /// All IngressClasses.
    pub ingress_classes: Store<IngressClass>,
    /// All GatewayClasses, if their kind is installed.
    pub gateway_classes: Store<DynamicObject>,
    /// Gateways and the data planes' own kinds, as far as they are installed.
    pub routes: Vec<(&'static Kind, Store<DynamicObject>)>,
    /// Traefik's TLSOptions that carry our label.
    pub tls_options: Store<DynamicObject>,
    /// Traefik's Middlewares that carry our label.
    pub middlewares: Store<DynamicObject>,
}

impl Default for Stores {
    fn default() -> Self {
        Self {
            authorities: Store::default(),
            identities: Store::new(Some(|identity: &ClientIdentity| {
                Some(index_key(&identity.namespace()?, &identity.spec.secret_name))
            })),
            trusts: Store::default(),
            revocations: Store::new(Some(|revocation: &CertificateRevocation| {
                Some(match target(&revocation.spec).ok()? {
                    Target::Identity(name) => index_key(&revocation.namespace()?, name),
                    Target::Serial(serial) => serial_key(&serial),
                    Target::Fingerprint(fingerprint) => fingerprint_key(&hex(&fingerprint)),
                })
            })),
            namespaces: Store::default(),
            secrets: Store::new(Some(|secret: &PartialObjectMeta<Secret>| {
                let ca = key_of(&secret.metadata).filter(|_| is_ca(&secret.metadata))?;
                Some(ca.authority.to_string())
            })),
            crls: Store::default(),
            bundles: Store::default(),
            ingresses: Store::default(),
            ingress_classes: Store::default(),
            gateway_classes: Store::default(),
            routes: ingress::kinds().map(|kind| (kind, Store::default())).collect(),
            tls_options: Store::default(),
            middlewares: Store::default(),
        }
    }
}

impl Stores {
    /// Waits until every one has its first list.
    pub(super) async fn ready(&self) {
        tokio::join!(
            self.authorities.ready(),
            self.identities.ready(),
            self.trusts.ready(),
            self.revocations.ready(),
            self.namespaces.ready(),
            self.secrets.ready(),
            self.crls.ready(),
            self.bundles.ready(),
            self.ingresses.ready(),
            self.ingress_classes.ready(),
            self.gateway_classes.ready(),
            join_all(self.routes.iter().map(|(_, routes)| routes.ready())),
            self.tls_options.ready(),
            self.middlewares.ready(),
        );
    }

    /// Every Ingress, every Gateway, and every object of a data plane's own kind.
    pub fn all_routes(&self) -> Vec<Value> {
        let ingresses = self.ingresses.list();
        let ingresses =
            ingresses.iter().filter_map(|ingress| serde_json::to_value(&**ingress).ok());
        let own = self.routes.iter().flat_map(|(_, routes)| routes.list());
        ingresses.chain(own.filter_map(|route| serde_json::to_value(&*route).ok())).collect()
    }

    /// The route that a trust of a namespace names.
    pub fn route(&self, namespace: &str, target: &TargetReference) -> Option<Value> {
        let key = Key::new(namespace, &target.name);
        let own = |(kind, _): &&(&Kind, _)| kind.group == target.group && kind.kind == target.kind;
        match self.routes.iter().find(own) {
            Some((_, routes)) => serde_json::to_value(&*routes.get(&key)?).ok(),
            None => serde_json::to_value(&*self.ingresses.get(&key)?).ok(),
        }
    }

    /// How many copies of an authority's CRLs stand in the Secret that has the most of them.
    pub fn crl_copies(&self, authority: &str) -> usize {
        let trusts = self.trusts.list();
        let names = |trust: &&Arc<ClientTrust>| {
            trust.spec.authorities.iter().any(|reference| reference.name == authority)
        };
        let copies = trusts.iter().filter(names).map(|trust| crl_keys(trust).len());
        copies.max().unwrap_or(1)
    }
}

/// The index of a namespaced name.
pub fn index_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

// No namespace has a name with a colon.
fn serial_key(serial: &Serial) -> String {
    format!("serial:{serial}")
}

fn fingerprint_key(fingerprint: &str) -> String {
    format!("fingerprint:{fingerprint}")
}

/// The index values of every revocation that names this identity, or the certificate in its Secret.
pub fn revocation_keys(identity: &Key, serial: &Serial, fingerprint: &str) -> [String; 3] {
    let name = index_key(&identity.namespace, &identity.name);
    [name, serial_key(serial), fingerprint_key(fingerprint)]
}

/// A CA as it was read from its Secret.
#[derive(Clone)]
pub struct Ca {
    /// Which CA.
    pub key: CaKey,
    /// What it does.
    pub state: CaState,
    /// Since when.
    pub since: Timestamp,
    /// The user's request that stood on the authority when it was made.
    pub requested: Option<String>,
    /// Hash of what it was made from.
    pub source_hash: Option<String>,
    /// Is its key in a token?
    pub in_token: bool,
    /// The CA, or why it can't be used.
    pub authority: Result<Arc<CertificateAuthority>, String>,
    /// resourceVersion of its Secret.
    pub secret_version: String,
}

/// A trusted CA, with its published CRL.
#[derive(Clone)]
pub struct Generation {
    /// Which CA.
    pub key: CaKey,
    /// What it does.
    pub state: CaState,
    /// Since when.
    pub since: Timestamp,
    /// The CA.
    pub ca: Arc<CertificateAuthority>,
    /// Its published CRL.
    pub published: Published,
}

/// An authority's `spec.allow`, compiled.
pub struct Allowed {
    /// What it was compiled from.
    pub spec: Option<Allow>,
    /// The policy, or why there is none: then nothing is signed.
    pub policy: Result<Policy, InvalidPolicy>,
}

impl Allowed {
    /// Compiles the `spec.allow` of an authority.
    pub fn compile(spec: Option<&Allow>) -> Self {
        Self { spec: spec.cloned(), policy: Policy::compile(spec) }
    }
}

/// An authority that can sign.
#[derive(Clone)]
pub struct Signing {
    /// Its trusted CAs, in the order of their numbers.
    pub generations: Vec<Generation>,
    /// The place of the one that signs.
    pub active: usize,
    /// Can it sign now? Not while its key is in a token that is away.
    pub can_sign: bool,
    /// The roots, each once: what verifiers trust.
    pub roots: Vec<CertificateDer<'static>>,
    /// The same as PEM: the trust bundle.
    pub bundle: String,
    /// SHA-256 of the bundle, lower-case hex.
    pub bundle_hash: String,
    /// SHA-256 over the bundle and the CAs whose CRLs go with it: what a trust's Secret holds.
    pub mark: String,
    /// Base URL of the CRL server.
    pub crl_base: Option<String>,
    /// Into so many shards is each CRL divided as well; certificates name their shard.
    pub shards: Option<u32>,
    /// Certificates of earlier CAs are replaced within this time after the active one became so.
    pub reissue_within: SignedDuration,
    /// What may be signed.
    pub allowed: Arc<Allowed>,
}

impl Signing {
    /// The CA that signs.
    pub fn active(&self) -> &Generation {
        &self.generations[self.active]
    }

    /// The CRLs of all trusted CAs, PEM, one after the other; nothing when they don't fit a Secret.
    pub fn crls(&self) -> Option<String> {
        if self.secret_bytes(1) > SECRET_LIMIT {
            return None;
        }
        self.generations.iter().map(|one| one.published.der.as_deref().map(to_pem)).collect()
    }

    /// What the trust bundle and so many copies of the CRLs take in the Secret of a `ClientTrust`.
    pub fn secret_bytes(&self, copies: usize) -> usize {
        let crls = self.generations.iter().map(|one| pem_len(one.published.bytes));
        self.bundle.len() + copies * crls.sum::<usize>()
    }

    /// Which CRLs these are.
    pub fn numbers(&self) -> Vec<(CaKey, CrlNumber)> {
        let all = self.generations.iter();
        all.map(|one| (one.key.clone(), one.published.facts.number)).collect()
    }

    /// What issuing needs. Without the key, or without a policy, nothing can be signed.
    pub fn view<'a>(&'a self, retiring: &'a [u32]) -> AuthorityView<'a> {
        let (Ok(policy), true) = (&self.allowed.policy, self.can_sign) else {
            return AuthorityView::NotReady;
        };
        AuthorityView::Ready(Signer {
            key: &self.active().key,
            facts: self.active().ca.facts(),
            bundle_hash: &self.bundle_hash,
            crl_base: self.crl_base.as_deref(),
            active_since: self.active().since,
            reissue_within: self.reissue_within,
            retiring,
            policy,
        })
    }

    /// Numbers of the CAs whose certificates are replaced at leisure.
    pub fn retiring(&self) -> Vec<u32> {
        let retiring = self.generations.iter().filter(|one| one.state == CaState::Retiring);
        retiring.map(|one| one.key.generation).collect()
    }
}

/// The CRL that another one followed.
pub struct Followed {
    /// Its number.
    pub number: CrlNumber,
    /// What the next one has and this one had not, sorted by serial.
    pub added: Vec<Entry>,
}

/// A published CRL.
#[derive(Clone)]
pub struct Published {
    /// What it says.
    pub facts: Arc<CrlFacts>,
    /// Its entries, encoded: the next one is made from them.
    pub index: Arc<Index>,
    /// The CRL, DER; none when its PEM would fit no Secret.
    pub der: Option<Arc<[u8]>>,
    /// Its size, DER.
    pub bytes: usize,
    /// Names of the ConfigMaps that hold its parts; none for a small one.
    pub parts: Arc<[String]>,
    /// resourceVersion of the ConfigMap that publishes it.
    pub resource_version: Option<String>,
    /// When this process published it, if it did.
    pub at: Option<Timestamp>,
    /// The one that it followed, when this process published it.
    pub followed: Option<Arc<Followed>>,
    /// The position of the ledger's next record when it was made; earlier versions did not note it.
    pub ledger_position: Option<u64>,
}

/// What the controllers share.
pub struct Context {
    /// The client for calls.
    pub client: Client,
    /// The client for watches.
    pub watch_client: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// Only these namespaces are looked after; all when empty.
    pub namespaces: Vec<String>,
    /// Base URL of the gate.
    pub gate_url: String,
    /// The gate over TLS, where it knows its callers.
    pub gate_tls: Option<GateTls>,
    /// The token that holds CA keys, if there is one.
    pub token: Option<Token>,
    /// The servers that answer for the gate, if it is known where they are.
    pub servers: Option<Servers>,
    /// What the watches saw.
    pub stores: Stores,
    /// The queues.
    pub queues: Queues,
    /// The ledger.
    pub ledger: LedgerHandle,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Events.
    pub events: Events,
    /// The CAs of each authority, as they were read.
    pub cas: RwLock<HashMap<String, Arc<Vec<Ca>>>>,
    /// Since when the trust bundle with this hash is in force everywhere.
    pub in_force: Mutex<HashMap<String, Instant>>,
    /// The shards of CRLs as they stand in the cluster.
    pub shards: Mutex<HashMap<(CaKey, Scope), Shard>>,
    /// The authorities that can sign, by name.
    pub signing: RwLock<HashMap<String, Arc<Signing>>>,
    /// For each identity, the resourceVersion of its Secret when its data was written or checked by
    /// this process: as long as the watch shows the same one, the annotations tell the truth.
    pub checked: Mutex<HashMap<Key, String>>,
    /// resourceVersions of our last status writes: older ones in a store are stale.
    pub written: Mutex<HashMap<(&'static str, Key), u64>>,
    /// Certificates that wait for a restored identity to take them over, and since when.
    pub awaited: Mutex<HashMap<Serial, Timestamp>>,
    /// How often an identity's Secret was put right, since when, and what others do to it.
    pub repairs: Mutex<HashMap<Key, Repairs>>,
    /// For each identity, the certificate and the generation of the spec for which every workload was
    /// restarted.
    pub restarted: Mutex<HashMap<Key, (Serial, Option<i64>)>>,
    /// When an authority's status was last written.
    pub status_written: Mutex<HashMap<String, Instant>>,
    /// How canaries are run.
    pub canary_settings: Settings,
    /// The canaries.
    pub canaries: Canaries,
    /// The policies of the gate.
    pub policies: tokio::sync::Mutex<Known>,
    /// Held while an object beside the gate is written.
    pub beside_gate: tokio::sync::Mutex<()>,
    /// The watches on Secrets with passwords.
    pub password_watches: PasswordWatches,
    /// Since when each revocation that is not in force yet could have been.
    pub revoking: Mutex<HashMap<Key, Instant>>,
}

impl Context {
    /// The authority of this name, when it can sign.
    pub fn signing(&self, authority: &str) -> Option<Arc<Signing>> {
        self.signing.read().expect("no holder of this lock panics").get(authority).cloned()
    }

    /// Is an authority about to be able to sign? Just after the start its CA is still being read, while
    /// its status says that it is ready: whoever needs it waits instead of taking it for broken. The
    /// same when its `spec.allow` has changed: nothing is decided by one that is no longer in force.
    pub fn is_loading(&self, authority: &str) -> bool {
        let Some(found) = self.stores.authorities.get(&Key::cluster(authority)) else {
            return false;
        };
        match self.signing(authority) {
            Some(signing) => signing.allowed.spec != found.spec.allow,
            None => found.status.as_ref().is_some_and(|status| is_true(&status.conditions, READY)),
        }
    }

    /// Notes a write of ours, so that an older state from the watch is not taken for the present one.
    pub fn wrote<K: Resource<DynamicType = ()> + ResourceExt>(
        &self,
        kind: &'static str,
        object: &K,
    ) {
        let Some(version) = version(object) else {
            return;
        };
        let mut written = self.written.lock().expect("no holder of this lock panics");
        written.insert((kind, Key::of(object)), version);
    }

    /// Has the watch caught up with our last write of this object? (Versions of one resource type
    /// compare as integers: KEP-5504.)
    pub fn is_current<K: Resource<DynamicType = ()> + ResourceExt>(
        &self,
        kind: &'static str,
        object: &K,
    ) -> bool {
        let written = self.written.lock().expect("no holder of this lock panics");
        match (written.get(&(kind, Key::of(object))), version(object)) {
            (Some(ours), Some(seen)) => seen >= *ours,
            _ => true,
        }
    }

    /// Forgets what was noted of an object that is gone.
    pub fn forget(&self, kind: &'static str, key: &Key) {
        self.written.lock().expect("no holder of this lock panics").remove(&(kind, key.clone()));
        if kind == super::identity::NAME {
            self.repairs.lock().expect("no holder of this lock panics").remove(key);
            self.restarted.lock().expect("no holder of this lock panics").remove(key);
        }
        if kind == super::revocation::NAME {
            self.revoking.lock().expect("no holder of this lock panics").remove(key);
        }
        self.checked.lock().expect("no holder of this lock panics").remove(key);
    }

    /// Notes that the data of an identity's Secret is what its annotations say.
    pub fn note_checked(&self, identity: Key, secret: &Secret) {
        let Some(version) = secret.resource_version() else {
            return;
        };
        let mut checked = self.checked.lock().expect("no holder of this lock panics");
        checked.insert(identity, version);
    }

    /// Is the data of this version of the Secret known to be what its annotations say?
    pub fn is_checked(&self, identity: &Key, secret: &PartialObjectMeta<Secret>) -> bool {
        let checked = self.checked.lock().expect("no holder of this lock panics");
        let known = checked.get(identity);
        known.is_some() && known == secret.metadata.resource_version.as_ref()
    }
}

fn version<K: ResourceExt>(object: &K) -> Option<u64> {
    object.resource_version()?.parse().ok()
}
