//! The watches of the controller: what they keep in the stores, and whom a change wakes.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use tokio::task::JoinSet;

use super::context::{Stores, index_key, revocation_keys};
use super::queues::Queues;
use super::run::Config;
use super::{policies, revocation, trust};
use crate::api::condition::{RECORDED, is_true};
use crate::api::{CertificateRevocation, CertificateRevocationStatus, ClientIdentity, label};
use crate::cluster::Key;
use crate::cluster::store::Store;
use crate::ingress::{GATEWAY_CLASS, Kind, traefik};
use crate::plan;
use crate::plan::authority::key_of;
use crate::plan::gate::POLICIES;
use crate::plan::gate::identities::changes;

/// Starts them all.
pub(super) fn start(
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
        let (revocations, trusts) = (stores.revocations.clone(), stores.trusts.clone());
        let changed = move |key: &Key, previous: Option<&ClientIdentity>| {
            queue.identity.push(key.clone());
            let now = identities.get(key);
            // Those as which data planes ask the gate.
            let either = now.as_deref().or(previous);
            for owner in either.map(ResourceExt::owner_references).into_iter().flatten() {
                if owner.kind == "ClientTrust" {
                    queue.trust.push(Key::new(&key.namespace, &owner.name));
                }
            }
            if changes(previous, now.as_deref()) {
                policies::wake_selecting(&trusts, &queue.trust, &key.namespace);
            }
            // Whoever waited for the name of a Secret, before or after the change.
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
        let changed = wake_owners(queues, stores.bundles.clone());
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
        let trusts = stores.trusts.clone();
        let changed = move |key: &Key, previous: Option<&PartialObjectMeta<Namespace>>| {
            let now = store.get(key);
            let seen = |namespace: &PartialObjectMeta<Namespace>| {
                let metadata = &namespace.metadata;
                (metadata.labels.clone(), metadata.annotations.clone())
            };
            // Everything is looked at anyway after the first lists.
            if store.is_complete() && previous.map(seen) != now.as_deref().map(seen) {
                identities.keys_in(&key.name).into_iter().for_each(|key| queues.identity.push(key));
                policies::wake_selecting(&trusts, &queues.trust, &key.name);
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

/// Wakes whose object was changed: a trust, or the bundle of an authority.
fn wake_owners<K: ResourceExt>(
    queues: &Queues,
    objects: Store<K>,
) -> impl Fn(&Key, Option<&K>) + use<K> {
    let queues = queues.clone();
    move |key: &Key, previous: Option<&K>| {
        let now = objects.get(key);
        let owners = now.as_deref().or(previous).map(|object| object.owner_references().to_vec());
        for owner in owners.into_iter().flatten() {
            let queue = match owner.kind.as_str() {
                "ClientAuthority" => &queues.bundle,
                _ => &queues.trust,
            };
            queue.push(Key::new(&key.namespace, &owner.name));
        }
    }
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
            let changed = wake_owners(queues, store.clone());
            tasks.spawn(store.watch(api, ours.clone(), slim, changed));
        }
    }
}
