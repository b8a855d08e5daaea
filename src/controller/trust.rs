//! Programs the data planes, and restores what was when a trust is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use serde_json::Value;
use tracing::{debug, info};

use super::beside_gate;
use super::bundle;
use super::context::{Context, Signing, Stores};
use super::error::{Error, chain};
use super::policies;
use super::queue::Outcome;
use super::targets::{data_plane, gather_targets, served_routes};
use crate::api::condition::{CANARY_PASSED, PROGRAMMED, READY, Wanted};
use crate::api::trust::{Reason, TargetReference};
use crate::api::{ClientTrust, ClientTrustStatus, annotation};
use crate::cluster::Key;
use crate::cluster::apply::{self, WriteError, write};
use crate::ingress::envoy_gateway::only_asks_gate;
use crate::ingress::gate::may_serve;
use crate::ingress::{self, DATA_PLANES, DataPlane, Edit, Revocation};
use crate::plan::crl::BACKDATE;
use crate::plan::gate::{needs_gate, needs_policy};
use crate::plan::trust::{Plan, Served, World, gate_lags, is_asked, plan, status};
use crate::plan::trust_secret::{
    Anchor, adds_a_ca, close, close_without_crl, crl_keys, is_owned, own_secret, secret,
    secret_key, set_crls,
};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "trust";

/// What was read from the data planes is looked at again after this time.
const RESYNC: Duration = Duration::from_secs(600);
/// While the CA of an authority is being read; it wakes its trusts when it is.
const LOADING: Duration = Duration::from_secs(1);
/// A target that another hand keeps changing is looked at again after this time.
const CONFLICT: Duration = Duration::from_secs(30);
/// While the servers of the gate may lag behind they are asked this often, then ever slower.
const GATE_AT_FIRST: Duration = Duration::from_millis(500);
/// The longest time between two questions to them.
const GATE_AT_LAST: Duration = Duration::from_secs(30);

/// Reconciles one trust.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let trust = context.stores.trusts.get(&key);
    let Some(trust) = trust.filter(|trust| trust.metadata.deletion_timestamp.is_none()) else {
        context.forget(NAME, &key);
        detach(&context, &key, None, &context.stores.all_routes()).await?;
        policies::remove(&context, &key).await?;
        beside_gate::prune(&context, DATA_PLANES.iter().copied(), &key.namespace).await?;
        return Ok(Outcome::Settled);
    };
    if !context.is_current(NAME, &*trust) {
        return Ok(Outcome::Settled);
    }
    if trust.spec.authorities.iter().any(|authority| context.is_loading(&authority.name)) {
        return Ok(Outcome::After(LOADING));
    }
    let signing: Vec<(&str, Option<Arc<Signing>>)> = trust
        .spec
        .authorities
        .iter()
        .map(|reference| (reference.name.as_str(), context.signing(&reference.name)))
        .collect();
    let crls: Vec<Option<String>> = signing
        .iter()
        .map(|(_, signing)| signing.as_ref().and_then(|signing| signing.crls()))
        .collect();
    let numbers: Vec<_> = signing
        .iter()
        .map(|(_, signing)| signing.as_ref().map(|signing| signing.numbers()).unwrap_or_default())
        .collect();
    let authorities: Vec<_> = signing
        .iter()
        .zip(crls.iter().zip(&numbers))
        .map(|((name, signing), (crl, numbers))| {
            let anchor = signing.as_ref().map(|signing| Anchor {
                bundle: &signing.bundle,
                mark: &signing.mark,
                crl: crl.as_deref(),
                bytes: signing.secret_bytes(crl_keys(&trust).len()),
                numbers,
            });
            (*name, anchor)
        })
        .collect();
    // The CRL first: nothing that fails further down may keep it from those who read it.
    let routes = context.stores.all_routes();
    let wanted = secret(&trust, &authorities);
    let mut prepared = Ok(BTreeMap::new());
    let planes = data_planes(&context, &trust, &routes);
    let asked = is_asked(&trust, &context.gate_url, &planes, &routes);
    let planes: Vec<&DataPlane> = planes.iter().map(|(plane, _)| *plane).collect();
    for one in secrets(wanted.clone(), &planes) {
        prepared = prepared.and(put_secret(&context, &trust, one, &planes, asked).await);
    }
    let (bundle, bundled) = bundle::of_trust(&context, &trust, &wanted, prepared.as_ref()).await;
    let detached = detach(&context, &key, Some(&trust), &routes).await;
    let routes = served_routes(&context, routes);
    // Before a route relies on it.
    let policy_trouble = policies::put(&context, &trust).await?;
    let canary = context.canaries.report(&key, trust.metadata.uid.as_deref());
    let waits = context.gate_tls.as_ref().and_then(|_| caller_trouble(&context, &key));
    let mut world = World {
        trust: &trust,
        authorities,
        targets: gather_targets(&context, &trust).await?,
        routes: &routes,
        gate_url: &context.gate_url,
        gate_tls: context.gate_tls.as_ref().map(|gate| ingress::GateTls {
            url: &gate.url,
            callers: &gate.callers,
            waits: waits.as_deref(),
        }),
        policy_trouble,
        canary: canary.as_ref(),
        secret_in_place: prepared.is_ok() && bundle.as_ref().is_none_or(|bundle| bundle.status),
        bundle: bundle.as_ref(),
        served: Served::Unasked,
        now: Timestamp::now(),
    };
    let plan = plan(&world);

    // What the targets will refer to comes before them: never a route that names nothing.
    let prepared = match prepared {
        Ok(_) => put_objects(&context, &trust, &plan).await,
        Err(error) => Err(error),
    };
    let mut refused = Ok(());
    let prepared = match prepared {
        Ok(()) => Ok(()),
        Err(WriteError::NotOwned(object)) => Err(Wanted::no(
            PROGRAMMED,
            Reason::NotOwned.as_str(),
            format!(
                "{object} exists and is not ours; delete it, or rename the ClientTrust if it has its name"
            ),
        )),
        Err(error) => {
            let error = Error::from(error);
            let mut message = chain(&error);
            if error.is_unknown() {
                // Its definition may come at any time, and nothing tells: it is looked again soon, as after a conflict.
                message.push_str("; install the data plane with the definitions of its kinds");
            } else if error.is_refusal() {
                refused = Err(error);
            } else {
                return Err(error);
            }
            Err(Wanted::no(PROGRAMMED, Reason::NotProgrammed.as_str(), message))
        }
    };
    let mut outcomes = Vec::new();
    let mut conflict = false;
    for edit in plan.edits {
        let outcome = match (&prepared, edit) {
            (_, Err(refused)) => Err(refused),
            (Err(unprepared), _) => Err(unprepared.clone()),
            (Ok(()), Ok(edit)) => carry_out(&context, edit).await?,
        };
        conflict |= outcome.is_err();
        outcomes.push(outcome);
    }
    if !needs_policy(&trust) && prepared.is_ok() {
        // No route relies on it any more.
        policies::remove(&context, &key).await?;
    }
    let pruned = match needs_gate(&trust) {
        false if prepared.is_ok() => stop_asking(&context, &world, &key).await,
        _ => Ok(()),
    };
    // The gate is asked only while it may lag behind, and by what it says then status is told.
    let numbers = numbers.concat();
    let told = status(&world, &outcomes);
    let observed = match &context.servers {
        Some(servers) if gate_lags(&told, &numbers) => Some(servers.observe().await),
        _ => None,
    };
    world.served = match &observed {
        Some(Ok(served)) => Served::Known(served),
        Some(Err(why)) => {
            debug!(why, "the servers of the gate are not observed");
            Served::Unknown
        }
        None if context.servers.is_none() => Served::Unknown,
        None => Served::Unasked,
    };
    let told = status(&world, &outcomes);
    put_status(&context, &trust, &told).await?;
    detached?;
    refused?;
    bundled?;
    pruned?;
    conflict |= world.policy_trouble.is_some();
    let wait = if conflict { CONFLICT } else { RESYNC };
    let lags = observed.is_some() && gate_lags(&told, &numbers);
    Ok(Outcome::After(if lags { wait.min(pace(&signing, world.now)) } else { wait }))
}

/// Why a data plane has no certificate to ask the gate by for a trust, if it has none.
fn caller_trouble(context: &Context, trust: &Key) -> Option<String> {
    let name = ingress::caller_name(&trust.name);
    let Some(identity) = context.stores.identities.get(&Key::new(&trust.namespace, &name)) else {
        return Some("it does not exist yet".to_owned());
    };
    let conditions = identity.status.as_ref().map(|status| &*status.conditions).unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == READY) {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(ready.message.clone()),
        None => Some("it has no certificate yet".to_owned()),
    }
}

/// The older the newest CRL is that the gate's servers should have, the slower they are asked.
fn pace(signing: &[(&str, Option<Arc<Signing>>)], now: Timestamp) -> Duration {
    let generations = signing.iter().flat_map(|(_, signing)| signing).flat_map(|s| &s.generations);
    let newest = generations.map(|one| one.published.facts.this_update).max();
    let age = newest.map(|newest| now.duration_since(newest).saturating_add(-BACKDATE));
    let age = age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
    (age / 4).clamp(GATE_AT_FIRST, GATE_AT_LAST)
}

/// Changes an object of the user; a conflict is the trust's condition, not an error.
async fn carry_out(context: &Context, edit: Edit) -> Result<Result<(), Wanted>, Error> {
    let result = match edit {
        Edit::Nothing => return Ok(Ok(())),
        Edit::Apply(body) => match apply::apply_unforced(&context.client, &body).await {
            Err(WriteError::Conflict { object, message }) => {
                let message = format!(
                    "{object}: {message}; remove the field there, or the target from the ClientTrust"
                );
                return Ok(Err(Wanted::no(PROGRAMMED, Reason::Conflict.as_str(), message)));
            }
            other => other,
        },
        Edit::Replace(body) => apply::replace(&context.client, &body).await,
        Edit::Delete(body) => apply::delete(&context.client, &body).await,
    };
    result?;
    Ok(Ok(()))
}

/// Takes the trust off objects that carry its mark and are not its targets. What is open after that
/// is open to everybody, so not the watch but the API server is asked whether the trust is gone.
///
/// By the trust as it is reconciled: what a later one no longer names would be put back by the rest of that reconcile.
async fn detach(
    context: &Context,
    key: &Key,
    trust: Option<&ClientTrust>,
    routes: &[Value],
) -> Result<(), Error> {
    let marked: Vec<&Value> = of_namespace(routes, &key.namespace)
        .filter(|object| object["metadata"]["annotations"][annotation::TRUST] == key.name.as_str())
        .filter(|object| !trust.is_some_and(|trust| names(trust, object)))
        .collect();
    if marked.is_empty() {
        return Ok(());
    }
    let api: Api<ClientTrust> = Api::namespaced(context.client.clone(), &key.namespace);
    let trust = api
        .get_opt(&key.name)
        .await
        .map_err(|source| Error::Read { object: format!("ClientTrust {key}"), source })?;
    let trust = trust.filter(|trust| trust.metadata.deletion_timestamp.is_none());
    for object in marked {
        if trust.as_ref().is_some_and(|trust| names(trust, object)) {
            continue;
        }
        // A conflict here means that the object changed meanwhile: it is read again.
        match ingress::detach(&key.name, object) {
            Edit::Apply(body) => apply::apply_unforced(&context.client, &body).await?,
            Edit::Replace(body) => apply::replace(&context.client, &body).await?,
            Edit::Delete(body) => apply::delete(&context.client, &body).await?,
            Edit::Nothing => continue,
        }
        info!(target = %object["metadata"]["name"], "restored a former target");
    }
    Ok(())
}

/// Takes away what has the gate asked about a trust that does not need it any more: when all else says what holds without
/// the gate.
async fn stop_asking(context: &Context, world: &World<'_>, key: &Key) -> Result<(), Error> {
    let asking = |object: &&Value| {
        only_asks_gate(object) && object["metadata"]["namespace"] == key.namespace.as_str()
    };
    for object in world.routes.iter().map(|(_, object)| object).filter(asking) {
        if let Edit::Delete(body) = ingress::detach(&key.name, object) {
            apply::delete(&context.client, &body).await?;
        }
    }
    let planes = DATA_PLANES.iter().copied();
    let refs = &world.trust.spec.target_refs;
    let concerned = planes.filter(|plane| refs.iter().any(|target| may_serve(plane, target)));
    beside_gate::prune(context, concerned, &key.namespace).await
}

/// Is this object among the trust's targets, or made for them?
fn names(trust: &ClientTrust, object: &Value) -> bool {
    trust.spec.target_refs.iter().any(|target| ingress::serves(object, target))
}

fn of_namespace<'a>(routes: &'a [Value], namespace: &str) -> impl Iterator<Item = &'a Value> {
    routes.iter().filter(move |object| object["metadata"]["namespace"] == namespace)
}

async fn put_secret(
    context: &Context,
    trust: &ClientTrust,
    mut wanted: Secret,
    planes: &[&DataPlane],
    asked: bool,
) -> Result<BTreeMap<String, ByteString>, WriteError> {
    let (namespace, name) = (trust.namespace().unwrap_or_default(), wanted.name_any());
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let object = format!("Secret {name}");
    let present = api
        .get_opt(&name)
        .await
        .map_err(|source| WriteError::Api { object: object.clone(), source })?;
    if let Some(present) = &present {
        if !is_owned(trust, &present.metadata) {
            return Err(WriteError::NotOwned(object));
        }
        // CRLs that don't fit: the last ones that did are better than none.
        let data = wanted.data.get_or_insert_default();
        for key in crl_keys(trust) {
            if let Some(kept) = present.data.as_ref().and_then(|data| data.get(key)) {
                data.entry(key.to_owned()).or_insert_with(|| kept.clone());
            }
        }
        keep_later_crls(context, trust, &mut wanted, present);
    }
    if planes.iter().any(|plane| plane.revocation != Revocation::ViaGate) {
        close_without_crl(&mut wanted);
    }
    // One of them lets clients in by this Secret, without asking the gate.
    if needs_policy(trust) && planes.iter().any(|plane| !plane.asks_gate) {
        close(&mut wanted);
    }
    // Nor may more clients come by it than before, while one that asks the gate does not yet do so by what the trust says
    // now. The change that has it do so wakes the trust.
    if !asked && adds_a_ca(&wanted, present.as_ref()) {
        close(&mut wanted);
    }
    if let Some(present) = present {
        // Labels and annotations that others added stay.
        let mut labels = present.metadata.labels.clone().unwrap_or_default();
        labels.extend(wanted.metadata.labels.take().unwrap_or_default());
        let mut annotations = present.metadata.annotations.clone().unwrap_or_default();
        annotations.retain(|name, _| !name.starts_with(annotation::TRUSTED_BUNDLE_PREFIX));
        annotations.extend(wanted.metadata.annotations.take().unwrap_or_default());
        if present.data == wanted.data
            && present.metadata.labels.as_ref() == Some(&labels)
            && present.metadata.annotations.as_ref() == Some(&annotations)
        {
            return Ok(wanted.data.unwrap_or_default());
        }
        wanted.metadata.labels = Some(labels);
        wanted.metadata.annotations = Some(annotations);
        wanted.metadata.resource_version = present.resource_version();
    }
    write(&context.client, &wanted).await?;
    Ok(wanted.data.unwrap_or_default())
}

/// A trust's targets and what was made for them, as far as the watch shows them, with their data planes.
fn data_planes<'a>(
    context: &Context,
    trust: &ClientTrust,
    routes: &'a [Value],
) -> Vec<(&'static DataPlane, &'a Value)> {
    let namespace = trust.namespace().unwrap_or_default();
    let of_trust = of_namespace(routes, &namespace).filter(|object| names(trust, object));
    of_trust.filter_map(|object| Some((data_plane(context, object).ok()?, object))).collect()
}

/// The Secret of a trust, and before it what data planes insist on beside it: by the trust's the authorities see
/// that a new CA is everywhere.
fn secrets(secret: Secret, planes: &[&DataPlane]) -> Vec<Secret> {
    let mut secrets: Vec<Secret> = Vec::new();
    for own in planes.iter().filter_map(|plane| plane.secret) {
        let copy = own_secret(&secret, own);
        if secrets.iter().all(|known| known.metadata.name != copy.metadata.name) {
            secrets.push(copy);
        }
    }
    secrets.push(secret);
    secrets
}

/// A later CRL than this process has seen stays.
fn keep_later_crls(context: &Context, trust: &ClientTrust, wanted: &mut Secret, present: &Secret) {
    let crls = |secret: &Secret| secret.data.as_ref()?.get(secret_key::CRL).cloned();
    let (Some(ours), Some(in_service)) = (crls(wanted), crls(present)) else { return };
    if ours == in_service {
        return;
    }
    let authorities: Vec<_> = trust.spec.authorities.iter().map(|one| one.name.as_str()).collect();
    let kept = bundle::later_crls(context, &authorities, ours.0.clone(), &in_service.0);
    if kept != ours.0 {
        info!("the Secret holds a later CRL than was seen here; it stays");
        set_crls(trust, wanted.data.get_or_insert_default(), &ByteString(kept));
    }
}

async fn put_objects(
    context: &Context,
    trust: &ClientTrust,
    plan: &Plan,
) -> Result<(), WriteError> {
    if needs_gate(trust) {
        let namespace = trust.namespace().unwrap_or_default();
        beside_gate::put(context, &plan.planes, &namespace).await?;
    }
    for object in &plan.objects {
        let owned = |present: &kube::api::DynamicObject| is_owned(trust, &present.metadata);
        if apply::ensure(&context.client, object, owned).await? {
            info!(kind = %object["kind"], name = %object["metadata"]["name"], "programmed");
        }
    }
    Ok(())
}

async fn put_status(
    context: &Context,
    trust: &ClientTrust,
    wanted: &ClientTrustStatus,
) -> Result<(), Error> {
    let before = trust.status.clone().unwrap_or_default();
    if *wanted == before {
        return Ok(());
    }
    let namespace = trust.namespace().unwrap_or_default();
    let api: Api<ClientTrust> = Api::namespaced(context.client.clone(), &namespace);
    let written = apply::status(&api, &trust.name_any(), wanted).await?;
    context.wrote(NAME, &written);
    for (type_, action) in [(READY, "Program"), (CANARY_PASSED, "Try")] {
        let found = wanted.conditions.iter().find(|condition| condition.type_ == type_);
        let known = before.conditions.iter().find(|condition| condition.type_ == type_);
        if let Some(found) = found.filter(|f| known.is_none_or(|known| known.reason != f.reason)) {
            if found.status == "True" {
                context.events.normal(trust, action, &found.reason, &found.message).await;
            } else {
                context.events.warning(trust, action, &found.reason, &found.message).await;
            }
        }
    }
    Ok(())
}

/// The trusts that a change of a route concerns: those that name it, the one whose mark it carries,
/// and those of another route with one of its hosts.
pub fn trusts_of_route(stores: &Stores, route: &Value) -> Vec<Key> {
    let namespace = route["metadata"]["namespace"].as_str().unwrap_or_default();
    let hosts = ingress::hosts(route);
    let concerns = |trust: &ClientTrust, target: &TargetReference| {
        let same_namespace = trust.namespace().as_deref() == Some(namespace);
        if same_namespace && ingress::serves(route, target) {
            return true;
        }
        // One that serves no host may be a part of any other.
        if hosts.is_empty() && ingress::is_of_same_kind(route, target) {
            return true;
        }
        let other = stores.route(&trust.namespace().unwrap_or_default(), target);
        other.is_some_and(|other| ingress::hosts(&other).iter().any(|host| hosts.contains(host)))
    };
    let trusts = stores.trusts.list();
    let mut keys: Vec<Key> = trusts
        .iter()
        .filter(|trust| trust.spec.target_refs.iter().any(|target| concerns(trust, target)))
        .map(|trust| Key::of(&**trust))
        .collect();
    let mark = route["metadata"]["annotations"][annotation::TRUST].as_str();
    keys.extend(mark.map(|name| Key::new(namespace, name)));
    keys
}
