//! Puts bundles where `ClientAuthority`s and `ClientTrust`s want them, and takes away former ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use tracing::info;

use super::context::{Context, Signing};
use super::error::{Error, chain};
use super::queue::Outcome;
use crate::api::bundle::{Bundle, BundleKind, ClusterBundle};
use crate::api::condition::Wanted;
use crate::api::{ClientAuthority, ClientTrust, annotation, label};
use crate::cluster::Key;
use crate::cluster::apply::{self, WriteError};
use crate::pki::crl_bundle;
use crate::plan::allow::selects;
use crate::plan::bundle::{
    COMPONENT, Content, Head, Reason, cluster_condition, condition, crls_in, emptied, over, render,
};
use crate::plan::trust_secret::{is_controlled, secret_key};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "bundle";

/// While bundles are on their way they are looked at this often.
const SPREADING: Duration = Duration::from_secs(5);
/// When that has lasted for so long, something is in the way, and they are looked at this often.
const IN_THE_WAY: Duration = Duration::from_secs(60);

/// Reconciles the bundle of an authority in a namespace; the key has the authority's name.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let authority = context.stores.authorities.get(&Key::cluster(&key.name));
    // With the authority go its bundles, by their owner reference.
    let Some(authority) = authority.filter(|one| one.metadata.deletion_timestamp.is_none()) else {
        return Ok(Outcome::Settled);
    };
    let wanted = authority.spec.bundle.as_ref();
    let wanted = wanted.filter(|bundle| is_selected(&context, bundle, &key.namespace));
    let kept = wanted.map(|bundle| (BundleKind::ConfigMap, bundle.name.as_str()));
    sweep(&context, &key.namespace, authority.metadata.uid.as_deref(), kept).await?;
    // It is woken again when the authority can sign.
    let (Some(wanted), Some(signing)) = (wanted, context.signing(&key.name)) else {
        return Ok(Outcome::Settled);
    };
    let bundle = of_cluster(wanted);
    let head = Head {
        namespace: &key.namespace,
        owner: authority.controller_owner_ref(&()).expect("it was read from the API server"),
        marks: BTreeMap::from([mark(&key.name, &signing)]),
    };
    let (ca, crls) = (signing.bundle.as_bytes(), signing.crls().map(String::into_bytes));
    match put(&context, &bundle, &head, ca, crls, &[&key.name]).await {
        Ok(()) => Ok(Outcome::Settled),
        Err(WriteError::NotOwned(object)) => {
            let message = format!(
                "{object} in namespace {:?} exists and is not ours; delete it or choose another spec.bundle.name",
                key.namespace
            );
            context
                .events
                .warning(&*authority, "Publish", Reason::NotOwned.as_str(), &message)
                .await;
            Ok(Outcome::Settled)
        }
        Err(error) => Err(error.into()),
    }
}

fn of_cluster(bundle: &ClusterBundle) -> Bundle {
    Bundle { kind: BundleKind::ConfigMap, name: bundle.name.clone(), crl_key: bundle.crl_key }
}

fn mark(authority: &str, signing: &Signing) -> (String, String) {
    (format!("{}{authority}", annotation::TRUSTED_BUNDLE_PREFIX), signing.mark.clone())
}

fn is_selected(context: &Context, bundle: &ClusterBundle, namespace: &str) -> bool {
    let namespace = context.stores.namespaces.get(&Key::cluster(namespace));
    let living = namespace.filter(|one| one.metadata.deletion_timestamp.is_none());
    living.is_some_and(|one| selects(&bundle.namespace_selector, one.labels()))
}

/// The namespaces that an authority's bundle is to be in, and those of them that lack the present one.
pub(super) fn spread(
    context: &Context,
    name: &str,
    bundle: &ClusterBundle,
) -> (usize, Vec<String>) {
    let signing = context.signing(name);
    let current = signing.as_ref().map(|signing| {
        let crls = signing.crls().map(String::into_bytes);
        // CRLs that don't fit leave the former ones in place: only the mark tells.
        let hash = crls.map(|crls| Content::new(signing.bundle.as_bytes(), crls).hash());
        (mark(name, signing), hash)
    });
    let is_current = |map: &PartialObjectMeta<ConfigMap>| {
        current.as_ref().is_some_and(|((note, mark), hash)| {
            let noted = |key: &str| map.annotations().get(key);
            noted(note) == Some(mark)
                && hash.as_ref().is_none_or(|hash| noted(annotation::DATA_HASH) == Some(hash))
        })
    };
    let namespaces = context.stores.namespaces.keys();
    let selected = namespaces.into_iter().map(|key| key.name);
    let selected: Vec<_> = selected.filter(|name| is_selected(context, bundle, name)).collect();
    let lacks = |namespace: &&String| {
        let map = context.stores.bundles.get(&Key::new(*namespace, &bundle.name));
        !map.is_some_and(|map| is_current(&map))
    };
    let mut lacking: Vec<String> = selected.iter().filter(lacks).cloned().collect();
    lacking.sort();
    (selected.len(), lacking)
}

/// Looks after the bundles of an authority: wakes those that are not what they should be. Tells how far they
/// are, if there is to be any, and when to look again, if they are not where they should be.
pub(super) fn keep(
    context: &Context,
    authority: &ClientAuthority,
    now: Timestamp,
) -> Option<(Wanted, Option<Duration>)> {
    let name = authority.name_any();
    let mut awake = Vec::new();
    let told = authority.spec.bundle.as_ref().map(|bundle| {
        let (selected, lacking) = spread(context, &name, bundle);
        let names: Vec<_> = lacking.iter().map(String::as_str).collect();
        let told = cluster_condition(&bundle.name, selected, &names);
        awake.extend(lacking);
        told
    });
    let uid = authority.metadata.uid.as_deref();
    let former = context.stores.bundles.list().into_iter().filter(|map| {
        let wanted = authority.spec.bundle.as_ref().filter(|bundle| bundle.name == map.name_any());
        let namespace = map.namespace().unwrap_or_default();
        is_controlled(uid, &map.metadata)
            && !wanted.is_some_and(|bundle| is_selected(context, bundle, &namespace))
    });
    awake.extend(former.filter_map(|map| map.namespace()));
    for namespace in awake {
        context.queues.bundle.push(Key::new(&namespace, &name));
    }
    told.map(|told| {
        let conditions = authority.status.iter().flat_map(|status| &status.conditions);
        let lasts = conditions.filter(|known| known.type_ == told.type_ && known.status == "False");
        let since = lasts.map(|known| known.last_transition_time.0).max();
        let blocked = since.is_some_and(|since| now > since + IN_THE_WAY);
        let wait = if blocked { IN_THE_WAY } else { SPREADING };
        let again = (!told.status).then_some(wait);
        (told, again)
    })
}

/// Reconciles the bundle of a trust, by what stands in its Secret. What came of it, if there is to be one; and
/// the error, if it is to be tried again.
pub(super) async fn of_trust(
    context: &Context,
    trust: &ClientTrust,
    secret: &Secret,
    data: Result<&BTreeMap<String, ByteString>, &WriteError>,
) -> (Option<Wanted>, Result<(), Error>) {
    let namespace = trust.namespace().unwrap_or_default();
    let wanted = trust.spec.bundle.as_ref();
    let kept = wanted.map(|bundle| (bundle.kind, bundle.name.as_str()));
    let swept = sweep(context, &namespace, trust.metadata.uid.as_deref(), kept).await;
    let Some(bundle) = wanted else { return (None, swept) };
    let data = match data {
        Ok(data) => data,
        Err(error) => {
            let why = format!("the trust's own Secret comes first: {error}");
            return (Some(condition(bundle, Err((Reason::NotWritten, why)))), swept);
        }
    };
    let marks = secret.annotations().iter();
    let marks = marks.filter(|(name, _)| name.starts_with(annotation::TRUSTED_BUNDLE_PREFIX));
    let head = Head {
        namespace: &namespace,
        owner: trust.controller_owner_ref(&()).expect("it was read from the API server"),
        marks: marks.map(|(name, mark)| (name.clone(), mark.clone())).collect(),
    };
    let of = |key| data.get(key).map(|bytes| bytes.0.clone()).unwrap_or_default();
    let (ca, crls) = (of(secret_key::CA), of(secret_key::CRL));
    let authorities: Vec<_> = trust.spec.authorities.iter().map(|one| one.name.as_str()).collect();
    match put(context, bundle, &head, &ca, Some(crls), &authorities).await {
        Ok(()) => (Some(condition(bundle, Ok(()))), swept),
        Err(WriteError::NotOwned(object)) => {
            let why = format!("{object} exists and is not ours; delete it or choose another name");
            (Some(condition(bundle, Err((Reason::NotOwned, why)))), swept)
        }
        Err(error) => {
            let error = Error::from(error);
            let why = chain(&error);
            (Some(condition(bundle, Err((Reason::NotWritten, why)))), Err(error))
        }
    }
}

/// Writes a bundle, unless it stands there. Without `crls`, which don't fit then, those that are there stay.
async fn put(
    context: &Context,
    bundle: &Bundle,
    head: &Head<'_>,
    ca: &[u8],
    crls: Option<Vec<u8>>,
    authorities: &[&str],
) -> Result<(), WriteError> {
    let object = format!("{} {}", bundle.kind.as_str(), bundle.name);
    let stub = stub(bundle.kind, head.namespace, &bundle.name);
    let read = apply::dynamic_api(&context.client, &stub).get_opt(&bundle.name).await;
    let present = read.map_err(|source| WriteError::Api { object: object.clone(), source })?;
    let Some(present) = present else {
        let wanted = render(bundle, head, &Content::new(ca, crls.unwrap_or_default()));
        return apply::put(&context.client, &wanted).await;
    };
    if !is_controlled(Some(&head.owner.uid), &present.metadata) {
        return Err(WriteError::NotOwned(object));
    }
    let present = serde_json::to_value(&present).unwrap_or_default();
    let in_service = crls_in(&present, bundle.kind, bundle.crl_key);
    let crls = match crls {
        Some(ours) => later_crls(context, authorities, ours, &in_service),
        None => in_service,
    };
    match over(&present, render(bundle, head, &Content::new(ca, crls))) {
        Some(wanted) => apply::put(&context.client, &wanted).await,
        None => Ok(()),
    }
}

/// Of our CRLs and those in service, PEM, the later one of each CA: this process may not have seen the newest CRL
/// yet, which another leader, or an earlier process, published.
pub(super) fn later_crls(
    context: &Context,
    authorities: &[&str],
    ours: Vec<u8>,
    in_service: &[u8],
) -> Vec<u8> {
    if ours == in_service {
        return ours;
    }
    let signing: Vec<_> = authorities.iter().filter_map(|name| context.signing(name)).collect();
    let generations = signing.iter().flat_map(|signing| &signing.generations);
    let cas: Vec<_> = generations.map(|one| &*one.ca).collect();
    crl_bundle::keep_later(&ours, in_service, &cas, Timestamp::now())
}

fn stub(kind: BundleKind, namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": kind.as_str(), "metadata": {"namespace": namespace, "name": name}})
}

/// Takes away the bundles of an owner in a namespace, but for the one that is kept.
async fn sweep(
    context: &Context,
    namespace: &str,
    owner: Option<&str>,
    kept: Option<(BundleKind, &str)>,
) -> Result<(), Error> {
    let former = |kind, name: &str| kept != Some((kind, name));
    for key in context.stores.bundles.keys_in(namespace) {
        let Some(map) = context.stores.bundles.get(&key) else { continue };
        if is_controlled(owner, &map.metadata) && former(BundleKind::ConfigMap, &key.name) {
            let mut former = stub(BundleKind::ConfigMap, namespace, &key.name);
            former["metadata"]["uid"] = json!(map.metadata.uid);
            apply::delete(&context.client, &former).await?;
            info!(namespace, name = key.name, "removed a former bundle");
        }
    }
    for key in context.stores.secrets.keys_in(namespace) {
        let Some(secret) = context.stores.secrets.get(&key) else { continue };
        let is_bundle = secret.labels().get(label::COMPONENT).is_some_and(|one| one == COMPONENT);
        if is_bundle
            && is_controlled(owner, &secret.metadata)
            && former(BundleKind::Secret, &key.name)
        {
            let api = apply::dynamic_api(&context.client, &stub(BundleKind::Secret, namespace, ""));
            let present = api.get_opt(&key.name).await.map_err(|source| Error::Read {
                object: format!("Secret {namespace}/{}", key.name),
                source,
            })?;
            let present = present.filter(|present| present.metadata.uid == secret.metadata.uid);
            let Some(present) = present.and_then(|one| serde_json::to_value(one).ok()) else {
                continue;
            };
            apply::put(&context.client, &emptied(&present)).await?;
            info!(namespace, name = key.name, "emptied a former bundle");
        }
    }
    Ok(())
}
