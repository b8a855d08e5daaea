//! The controller process: watches first, then leadership, then the loops.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use super::context::{Context, Stores, index_key, revocation_keys};
use super::queue;
use super::queues::{Incoming, Queues, queues};
use super::servers::Servers;
use super::{authority, bundle, canary, compaction, identity, policies, revocation, trust};
use crate::api::condition::{RECORDED, is_true};
use crate::api::{
    CertificateRevocation, CertificateRevocationStatus, ClientIdentity, annotation, label,
};
use crate::cluster::Key;
use crate::cluster::client::Clients;
use crate::cluster::events::Events;
use crate::cluster::leader::Candidate;
use crate::cluster::ledger::{LedgerError, LedgerHandle};
use crate::cluster::store::Store;
use crate::ingress::{GATEWAY_CLASS, Kind, traefik};
use crate::metrics::Metrics;
use crate::plan;
use crate::plan::authority::key_of;
use crate::plan::gate::POLICIES;
use crate::token::Token;

/// How the controller is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The operator's namespace: CA keys, CRLs, ledger and lease live there.
    pub namespace: String,
    /// Only these namespaces are looked after; all when empty.
    pub namespaces: Vec<String>,
    /// Name of this replica.
    pub identity: String,
    /// Name of the lease that replicas compete for.
    pub lease: String,
    /// A leader that is silent for so long is replaced.
    pub lease_duration: Duration,
    /// How many identities are worked on at once.
    pub concurrency: usize,
    /// Base URL of the gate, as data planes reach it.
    pub gate_url: String,
    /// The token that holds CA keys, if there is one.
    pub token: Option<Token>,
    /// How canaries are run.
    pub canary: canary::Settings,
    /// `HOST:PORT` of the servers' CRL port; the name has an address for each of them.
    pub crl_servers: Option<String>,
}

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Leadership was lost: another replica works now, this one starts over.
    #[error("lost leadership")]
    LeadershipLost,
}

/// A new leader looks at everything once, also at routes that carry the mark of a trust that is gone.
fn push_everything(stores: &Stores, queues: &Queues) {
    stores.authorities.keys().into_iter().for_each(|key| queues.authority.push(key));
    stores.identities.keys().into_iter().for_each(|key| queues.identity.push(key));
    stores.revocations.keys().into_iter().for_each(|key| queues.revocation.push(key));
    stores.trusts.keys().into_iter().for_each(|key| queues.trust.push(key));
    stores.trusts.keys().into_iter().for_each(|key| queues.canary.push(key));
    for route in stores.all_routes() {
        let metadata = &route["metadata"];
        if let Some(name) = metadata["annotations"][annotation::TRUST].as_str() {
            let namespace = metadata["namespace"].as_str().unwrap_or_default();
            queues.trust.push(Key::new(namespace, name));
        }
    }
}

/// Runs until `shutdown` is true or leadership is lost. `ready` turns true when the watches are
/// complete: this replica could take over at once.
pub async fn run(
    config: Config,
    clients: Clients,
    metrics: Arc<Metrics>,
    ready: watch::Sender<bool>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let (queues, mut incoming) = queues();
    let stores = Stores::default();
    let mut watches = JoinSet::new();
    start_watches(&config, &clients.watch, &stores, &queues, &mut watches);

    // Every store is full before anything is decided: an empty one would look like an empty cluster.
    tokio::select! {
        () = stores.ready() => {}
        _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
    }
    info!(identities = stores.identities.len(), "watches are complete");
    ready.send_replace(true);

    let (leading, mut leads) = watch::channel(false);
    let candidate = Candidate {
        namespace: config.namespace.clone(),
        lease: config.lease.clone(),
        identity: config.identity.clone(),
        duration: config.lease_duration,
    };
    // The lease is given back only after the loops have ended.
    let (release, released) = watch::channel(false);
    let election = tokio::spawn(candidate.run(clients.call.clone(), leading, released));
    loop {
        tokio::select! {
            _ = leads.wait_for(|leads| *leads) => break,
            _ = shutdown.wait_for(|stop| *stop) => {
                release.send_replace(true);
                let _ = election.await;
                return Ok(());
            }
            // What the watches ask for while another replica works is not kept.
            () = tokio::time::sleep(Duration::from_secs(1)) => incoming.drain(),
        }
    }
    incoming.drain();
    push_everything(&stores, &queues);
    metrics.leader.set(1.0);

    let ledger = LedgerHandle::load(clients.call.clone(), &config.namespace).await?;
    let context = Arc::new(Context {
        client: clients.call.clone(),
        watch_client: clients.watch,
        namespace: config.namespace.clone(),
        namespaces: config.namespaces.clone(),
        gate_url: config.gate_url.clone(),
        token: config.token.clone(),
        servers: config.crl_servers.clone().map(Servers::new),
        events: Events::new(clients.call, "controller", Some(config.identity.clone())),
        stores,
        queues,
        ledger,
        metrics: metrics.clone(),
        cas: RwLock::new(HashMap::new()),
        in_force: Mutex::new(HashMap::new()),
        signing: RwLock::new(HashMap::new()),
        shards: Mutex::new(HashMap::new()),
        checked: Mutex::new(HashMap::new()),
        written: Mutex::new(HashMap::new()),
        awaited: Mutex::new(HashMap::new()),
        repairs: Mutex::new(HashMap::new()),
        restarted: Mutex::new(HashMap::new()),
        status_written: Mutex::new(HashMap::new()),
        canary_settings: config.canary.clone(),
        canaries: canary::Canaries::default(),
        revoking: Mutex::new(HashMap::new()),
        policies: Default::default(),
        password_watches: Default::default(),
    });
    canary::wake(&context);
    let (stop, stopped) = watch::channel(false);
    let loops = tokio::spawn(run_loops(context, incoming, config.concurrency, stopped));
    let lost = tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => false,
        _ = leads.wait_for(|leads| !*leads) => true,
    };
    info!("stopping");
    stop.send_replace(true);
    if lost {
        // Another replica works already: what is under way here must not go on beside it.
        loops.abort();
    } else if let Err(error) = loops.await {
        std::panic::resume_unwind(error.into_panic());
    }
    release.send_replace(true);
    let _ = election.await;
    metrics.leader.set(0.0);
    watches.abort_all();
    if lost { Err(RunError::LeadershipLost) } else { Ok(()) }
}

async fn run_loops(
    context: Arc<Context>,
    incoming: Incoming,
    concurrency: usize,
    stop: watch::Receiver<bool>,
) {
    macro_rules! control {
        ($module:path, $queue:ident, $concurrency:expr) => {{
            use $module as module;
            let context = context.clone();
            let metrics = context.metrics.clone();
            queue::run(
                module::NAME,
                incoming.$queue,
                $concurrency,
                metrics,
                stop.clone(),
                move |key| module::reconcile(context.clone(), key),
            )
        }};
    }
    tokio::join!(
        control!(authority, authority, 4),
        control!(identity, identity, concurrency),
        control!(revocation::record, revocation, revocation::record::CONCURRENCY),
        control!(revocation::tell, revocation_status, concurrency),
        control!(trust, trust, 4),
        control!(bundle, bundle, 8),
        control!(canary, canary, 4),
        compaction::run(context.clone(), stop.clone()),
    );
}

/// The APIs of a namespaced kind that the configuration covers: one for all namespaces, or one each.
fn scoped<K>(client: &Client, namespaces: &[String]) -> Vec<Api<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    if namespaces.is_empty() {
        vec![Api::all(client.clone())]
    } else {
        namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
    }
}

/// The namespaces that are looked after, and the operator's own; none when that is all of them.
fn with_home(config: &Config) -> Vec<String> {
    let mut namespaces = config.namespaces.clone();
    if !namespaces.is_empty() && !namespaces.contains(&config.namespace) {
        namespaces.push(config.namespace.clone());
    }
    namespaces
}

/// The index values of revocations that name the certificate that an identity's status tells of.
fn named_by(key: &Key, identity: &ClientIdentity) -> Vec<String> {
    let status = identity.status.as_ref();
    let serial = status.and_then(|status| status.serial_number.as_deref()?.parse().ok());
    let fingerprint = status.and_then(|status| status.fingerprint.as_deref());
    let keys = serial.zip(fingerprint).map(|(serial, text)| revocation_keys(key, &serial, text));
    keys.into_iter().flatten().collect()
}

fn scoped_dynamic(
    client: &Client,
    namespaces: &[String],
    resource: &ApiResource,
) -> Vec<Api<DynamicObject>> {
    if namespaces.is_empty() {
        return vec![Api::all_with(client.clone(), resource)];
    }
    let one = |namespace: &String| Api::namespaced_with(client.clone(), namespace, resource);
    namespaces.iter().map(one).collect()
}

/// managedFields are half of an object's bytes, and nothing here reads them.
fn slim<K: ResourceExt>(object: &mut K) {
    object.managed_fields_mut().clear();
}

fn start_watches(
    config: &Config,
    client: &Client,
    stores: &Stores,
    queues: &Queues,
    tasks: &mut JoinSet<()>,
) {
    let all = watcher::Config::default().page_size(500);
    let ours = all.clone().labels(label::SELECTOR);

    let queue = queues.authority.clone();
    let changed = move |key: &Key, _: Option<&_>| queue.push(key.clone());
    let api = Api::all(client.clone());
    tasks.spawn(stores.authorities.watch(api, all.clone(), slim, changed));

    for api in scoped(client, &config.namespaces) {
        let (queue, identities) = (queues.clone(), stores.identities.clone());
        let revocations = stores.revocations.clone();
        let changed = move |key: &Key, previous: Option<&ClientIdentity>| {
            queue.identity.push(key.clone());
            // Whoever waited for the name of a Secret, before or after the change.
            let now = identities.get(key);
            let name = |identity: &ClientIdentity| identity.spec.secret_name.clone();
            let names = [previous.map(name), now.as_deref().map(name)];
            if names[0] != names[1] {
                let names = names.iter().flatten().map(|name| index_key(&key.namespace, name));
                let others = names.flat_map(|name| identities.find(&name));
                let others = others.map(|other| Key::of(&*other)).filter(|other| other != key);
                others.for_each(|other| queue.identity.push(other));
            }
            let both = previous.into_iter().chain(now.as_deref());
            let named = both.flat_map(|identity| named_by(key, identity));
            let mut named: Vec<String> =
                named.chain([index_key(&key.namespace, &key.name)]).collect();
            named.sort();
            named.dedup();
            for revocation in named.iter().flat_map(|value| revocations.find(value)) {
                queue.revocation.push(Key::of(&*revocation));
            }
        };
        tasks.spawn(stores.identities.watch(api, all.clone(), slim, changed));
    }
    // Those of the operator's own namespace reach every other one.
    for api in scoped(client, &with_home(config)) {
        let (queue, revocations) = (queues.clone(), stores.revocations.clone());
        let changed = move |key: &Key, previous: Option<&CertificateRevocation>| {
            queue.revocation.push(key.clone());
            let now = revocations.get(key);
            // Until it is recorded there is nothing to tell of it; recording wakes whom it concerns.
            let is_told =
                |status: &CertificateRevocationStatus| is_true(&status.conditions, RECORDED);
            if now.as_ref().is_some_and(|now| !now.status.as_ref().is_some_and(is_told)) {
                return;
            }
            let either = now.as_deref().or(previous);
            if let Some(name) = either.and_then(|one| one.spec.identity_ref.as_ref()) {
                queue.identity.push(Key::new(&key.namespace, &name.name));
            }
        };
        tasks.spawn(stores.revocations.watch(api, all.clone(), slim, changed));
    }
    for api in scoped(client, &config.namespaces) {
        let (queue, revocations) = (queues.clone(), stores.revocations.clone());
        let changed = move |key: &Key, _: Option<&_>| {
            queue.trust.push(key.clone());
            queue.canary.push(key.clone());
            for revocation in revocations.list() {
                if revocation::waits_for_trusts(&revocation) {
                    queue.revocation.push(Key::of(&*revocation));
                }
            }
        };
        tasks.spawn(stores.trusts.watch(api, all.clone(), slim, changed));
    }
    watch_namespaces(config, client, stores, queues, &all, tasks);
    watch_secrets(config, client, stores, queues, &ours, tasks);

    let (queue, crls) = (queues.authority.clone(), stores.crls.clone());
    let changed = move |key: &Key, previous: Option<&PartialObjectMeta<ConfigMap>>| {
        let now = crls.get(key);
        let ca = now.as_deref().or(previous).and_then(|crl| key_of(&crl.metadata));
        ca.into_iter().for_each(|ca| queue.push(Key::cluster(&*ca.authority)));
    };
    let api = Api::namespaced(client.clone(), &config.namespace);
    // One watch for heads and parts: what it shows is in one order.
    let components = format!("{} in (crl,crl-part)", label::COMPONENT);
    let selector = format!("{},{components}", label::SELECTOR);
    let crls = all.clone().labels(&selector);
    tasks.spawn(stores.crls.watch(api, crls, slim, changed));

    let bundles = format!("{},{}={}", label::SELECTOR, label::COMPONENT, plan::bundle::COMPONENT);
    for api in scoped(client, &config.namespaces) {
        let (queues, store) = (queues.clone(), stores.bundles.clone());
        let changed = move |key: &Key, previous: Option<&PartialObjectMeta<ConfigMap>>| {
            let now = store.get(key);
            let owners = now.as_deref().or(previous).map(|map| map.owner_references().to_vec());
            for owner in owners.into_iter().flatten() {
                let queue = match owner.kind.as_str() {
                    "ClientAuthority" => &queues.bundle,
                    _ => &queues.trust,
                };
                queue.push(Key::new(&key.namespace, &owner.name));
            }
        };
        tasks.spawn(stores.bundles.watch(api, all.clone().labels(&bundles), slim, changed));
    }

    for api in scoped(client, &config.namespaces) {
        let changed = wake_trusts(queues, stores, stores.ingresses.clone());
        tasks.spawn(stores.ingresses.watch(api, all.clone(), slim, changed));
    }
    let api = Api::all(client.clone());
    let changed = wake_all_trusts(queues, stores);
    tasks.spawn(stores.ingress_classes.watch(api, all.clone(), slim, changed));
    let api = Api::all_with(client.clone(), &resource(&GATEWAY_CLASS));
    let changed = wake_all_trusts(queues, stores);
    tasks.spawn(stores.gateway_classes.watch(api, all.clone(), slim, changed));

    for (kind, routes) in &stores.routes {
        for api in scoped_dynamic(client, &config.namespaces, &resource(kind)) {
            let changed = wake_trusts(queues, stores, routes.clone());
            tasks.spawn(routes.watch(api, all.clone(), slim, changed));
        }
    }
    watch_traefik(config, client, stores, queues, &ours, tasks);
}

/// Labels and annotations of namespaces: what `spec.allow` of an authority selects by.
fn watch_namespaces(
    config: &Config,
    client: &Client,
    stores: &Stores,
    queues: &Queues,
    all: &watcher::Config,
    tasks: &mut JoinSet<()>,
) {
    // One by one when they are named: RBAC can limit the right to these.
    let one = |name: &String| all.clone().fields(&format!("metadata.name={name}"));
    let watches = match &*config.namespaces {
        [] => vec![all.clone()],
        names => names.iter().map(one).collect(),
    };
    for watch in watches {
        let (queues, identities) = (queues.clone(), stores.identities.clone());
        let (store, authorities) = (stores.namespaces.clone(), stores.authorities.clone());
        let changed = move |key: &Key, previous: Option<&PartialObjectMeta<Namespace>>| {
            let now = store.get(key);
            let seen = |namespace: &PartialObjectMeta<Namespace>| {
                let metadata = &namespace.metadata;
                (metadata.labels.clone(), metadata.annotations.clone())
            };
            // Everything is looked at anyway after the first lists.
            if store.is_complete() && previous.map(seen) != now.as_deref().map(seen) {
                identities.keys_in(&key.name).into_iter().for_each(|key| queues.identity.push(key));
                let authorities = authorities.list();
                for authority in authorities.iter().filter(|one| one.spec.bundle.is_some()) {
                    queues.bundle.push(Key::new(&key.name, authority.name_any()));
                    queues.authority.push(Key::of(&**authority));
                }
            }
        };
        tasks.spawn(stores.namespaces.watch(Api::all(client.clone()), watch, slim, changed));
    }
}

/// Metadata of what carries our label: Secrets of identities and trusts, and CA keys.
fn watch_secrets(
    config: &Config,
    client: &Client,
    stores: &Stores,
    queues: &Queues,
    ours: &watcher::Config,
    tasks: &mut JoinSet<()>,
) {
    for api in scoped::<PartialObjectMeta<Secret>>(client, &with_home(config)) {
        let (queues, home) = (queues.clone(), config.namespace.clone());
        let (store, identities) = (stores.secrets.clone(), stores.identities.clone());
        let all = stores.clone();
        let changed = move |key: &Key, previous: Option<&PartialObjectMeta<Secret>>| {
            let now = store.get(key);
            let Some(metadata) = now.as_deref().or(previous).map(|secret| &secret.metadata) else {
                return;
            };
            if key.namespace == home && key.name == POLICIES {
                policies::any_trust(&all).into_iter().for_each(|key| queues.trust.push(key));
            }
            if key.namespace == home
                && let Some(ca) = key_of(metadata)
            {
                queues.authority.push(Key::cluster(&*ca.authority));
            }
            for owner in metadata.owner_references.iter().flatten() {
                if owner.kind == "ClientTrust" {
                    queues.trust.push(Key::new(&key.namespace, &owner.name));
                }
            }
            for identity in identities.find(&index_key(&key.namespace, &key.name)) {
                queues.identity.push(Key::of(&*identity));
            }
        };
        tasks.spawn(stores.secrets.watch(api, ours.clone(), slim, changed));
    }
}

fn resource(Kind { group, version, kind, .. }: &Kind) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Wakes every trust: which data plane its targets have may be another one.
fn wake_all_trusts<K>(queues: &Queues, stores: &Stores) -> impl Fn(&Key, Option<&K>) + use<K> {
    let (queue, trusts) = (queues.trust.clone(), stores.trusts.clone());
    move |_: &Key, _: Option<&K>| trusts.keys().into_iter().for_each(|key| queue.push(key))
}

/// Wakes the trusts that a change of a route concerns, by what it was and by what it is.
fn wake_trusts<K>(
    queues: &Queues,
    stores: &Stores,
    routes: Store<K>,
) -> impl Fn(&Key, Option<&K>) + Send + 'static
where
    K: ResourceExt + Serialize + Send + Sync + 'static,
{
    let (queue, stores) = (queues.trust.clone(), stores.clone());
    move |key: &Key, previous: Option<&K>| {
        let now = routes.get(key);
        for route in previous.into_iter().chain(now.as_deref()) {
            let route = serde_json::to_value(route).unwrap_or_default();
            let trusts = trust::trusts_of_route(&stores, &route);
            trusts.into_iter().for_each(|trust| queue.push(trust));
        }
    }
}

/// The objects that were made for Traefik.
fn watch_traefik(
    config: &Config,
    client: &Client,
    stores: &Stores,
    queues: &Queues,
    ours: &watcher::Config,
    tasks: &mut JoinSet<()>,
) {
    let resource = |kind: &str| {
        ApiResource::from_gvk(&GroupVersionKind::gvk(traefik::GROUP, traefik::VERSION, kind))
    };
    for (kind, store) in [("TLSOption", &stores.tls_options), ("Middleware", &stores.middlewares)] {
        for api in scoped_dynamic(client, &config.namespaces, &resource(kind)) {
            let (queue, objects) = (queues.trust.clone(), store.clone());
            let changed = move |key: &Key, previous: Option<&DynamicObject>| {
                let now = objects.get(key);
                let owners = now.as_deref().or(previous).map(|o| o.owner_references().to_vec());
                for owner in owners.into_iter().flatten() {
                    queue.push(Key::new(&key.namespace, &owner.name));
                }
            };
            tasks.spawn(store.watch(api, ours.clone(), slim, changed));
        }
    }
}
