//! Writes the policies of trusts into the Secret that the servers of the gate read.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use tokio::task::JoinSet;

use super::context::{Context, Stores};
use super::error::Error;
use super::queue::Queue;
use super::upkeep;
use crate::api::condition::{PROGRAMMED, Wanted};
use crate::api::trust::Reason;
use crate::api::{ClientTrust, label};
use crate::cluster::Key;
use crate::cluster::apply::{WriteError, write};
use crate::cluster::store::Store;
use crate::plan::gate::identities::{self, Certificates};
use crate::plan::gate::{self, POLICIES, needs_policy, policy_key};
use crate::plan::ledger::CaKey;
use crate::plan::trust_secret::labels;

/// So long changes of identities are gathered before a trust that selects them is looked at.
const SETTLED: Duration = Duration::from_secs(1);

/// The policies by their key, as far as this process has looked at their trusts; none for those without.
pub type Known = BTreeMap<String, Option<Vec<u8>>>;

/// Brings the policy of a trust to the gate; why that can't be, so that the gate lets nobody in, if so.
pub(super) async fn put(context: &Context, trust: &ClientTrust) -> Result<Option<Wanted>, Error> {
    let key = Key::of(trust);
    let secret = match gate::passwords(trust) {
        Some(passwords) => {
            let secret = Key::new(&key.namespace, &passwords.secret_name);
            context.password_watches.follow(context, &secret);
            read(context, &secret).await?
        }
        None => None,
    };
    let certificates = certificates(context, trust, Timestamp::now());
    let policy = gate::policy(trust, certificates, secret.as_ref());
    let Some(policy) = policy else { return Ok(None) };
    let no = |reason: Reason, message| Some(Wanted::no(PROGRAMMED, reason.as_str(), message));
    let invalid = policy.as_ref().err().cloned();
    let text = policy.ok().and_then(|policy| serde_json::to_vec(&policy).ok());
    match set(context, &key, text).await {
        Ok(None) => Ok(invalid.and_then(|message| no(Reason::SecondFactorInvalid, message))),
        Ok(Some(message)) => Ok(no(Reason::PolicyTooLarge, message)),
        Err(Error::Write(WriteError::NotOwned(object))) => {
            let namespace = &context.namespace;
            let message =
                format!("{object} in namespace {namespace:?} exists and is not ours; delete it");
            Ok(no(Reason::NotOwned, message))
        }
        Err(error) => Err(error),
    }
}

/// The certificates of the identities that a trust selects, as the ledger knows them: it does so before a certificate
/// is in its Secret, and no right to change the status of an identity adds one.
fn certificates(context: &Context, trust: &ClientTrust, now: Timestamp) -> Certificates {
    let mut found = Certificates::new();
    let Some(selection) = identities::selection(trust) else { return found };
    let home = trust.namespace().unwrap_or_default();
    let accepted = |ca: &CaKey| trust.spec.authorities.iter().any(|one| one.name == *ca.authority);
    for identity in context.stores.identities.list() {
        let namespace = Key::cluster(identity.namespace().unwrap_or_default());
        let namespace = context.stores.namespaces.get(&namespace);
        let labels = namespace.as_ref().map(|namespace| namespace.labels());
        if !identities::is_selected(selection, &home, &identity, labels) {
            continue;
        }
        let its = upkeep::certificates(context, &identity).into_iter();
        for certificate in its.filter(|one| one.is_live(now) && accepted(&one.ca)) {
            let serials = found.entry(certificate.ca.authority.to_string()).or_default();
            serials.insert(certificate.issued.serial.to_string());
        }
    }
    found
}

/// Wakes the trusts that may select identities of a namespace, of which one has changed: once for many changes.
pub(super) fn wake_selecting(trusts: &Store<ClientTrust>, queue: &Queue, namespace: &str) {
    for trust in trusts.list().iter().filter(|trust| identities::concerns(trust, namespace)) {
        queue.push_after(Key::of(&**trust), SETTLED);
    }
}

/// Takes the policy of a trust that needs none any more, or is gone, away from the gate.
pub(super) async fn remove(context: &Context, key: &Key) -> Result<(), Error> {
    context.password_watches.prune(context);
    let name = policy_key(&key.namespace, &key.name);
    let known = context.policies.lock().await.get(&name).map(Option::is_some);
    // Most clusters have no policies at all.
    let any = || context.stores.secrets.get(&Key::new(&context.namespace, POLICIES)).is_some();
    if !known.unwrap_or_else(any) {
        return Ok(());
    }
    match set(context, key, None).await {
        // A Secret that is not ours is told to those who need it.
        Ok(_) | Err(Error::Write(WriteError::NotOwned(_))) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A trust that needs a policy: its reconcile writes those of all.
pub(super) fn any_trust(stores: &Stores) -> Option<Key> {
    stores.trusts.list().iter().find(|trust| needs_policy(trust)).map(|trust| Key::of(&**trust))
}

/// Writes the Secret as it shall be, with the policy of this trust. Why that one is left out, if it is.
async fn set(
    context: &Context,
    key: &Key,
    policy: Option<Vec<u8>>,
) -> Result<Option<String>, Error> {
    let name = policy_key(&key.namespace, &key.name);
    // One after the other: each writes the whole Secret.
    let mut known = context.policies.lock().await;
    let present = read(context, &Key::new(&context.namespace, POLICIES)).await?;
    if present.as_ref().is_some_and(|present| !label::is_ours(&present.metadata)) {
        return Err(WriteError::NotOwned(format!("Secret {POLICIES}")).into());
    }
    let before = present.as_ref().and_then(|secret| secret.data.clone()).unwrap_or_default();
    let exists = |namespace: &str, name: &str| {
        context.stores.trusts.get(&Key::new(namespace, name)).is_some()
    };
    known.retain(|key, _| gate::trust_of_key(key).is_some_and(|(space, name)| exists(space, name)));
    known.insert(name.clone(), policy);
    let mut wanted = gate::policies(&known, &before, exists);
    let trouble = gate::too_large(&name, &wanted).filter(|_| wanted.contains_key(&name));
    if trouble.is_some() {
        known.insert(name.clone(), None);
        wanted = gate::policies(&known, &before, exists);
    }
    if before != wanted
        && let Err(error) = write(&context.client, &secret(context, present, wanted)).await
    {
        // What is not written is not known to be so.
        known.remove(&name);
        return Err(error.into());
    }
    Ok(trouble)
}

fn secret(
    context: &Context,
    present: Option<Secret>,
    data: BTreeMap<String, ByteString>,
) -> Secret {
    let mut secret = present.unwrap_or_else(|| {
        let mut secret = Secret { type_: Some("Opaque".to_owned()), ..Secret::default() };
        secret.metadata.name = Some(POLICIES.to_owned());
        secret.metadata.namespace = Some(context.namespace.clone());
        secret.metadata.labels = Some(labels());
        secret
    });
    secret.data = Some(data);
    secret
}

async fn read(context: &Context, key: &Key) -> Result<Option<Secret>, Error> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &key.namespace);
    let found = api.get_opt(&key.name).await;
    found.map_err(|source| Error::Read { object: format!("Secret {key}"), source })
}

/// The watches on Secrets that trusts take passwords from, which carry no label of ours; each is a task, which ends
/// with its set.
#[derive(Default)]
pub struct PasswordWatches(Mutex<HashMap<Key, JoinSet<()>>>);

impl PasswordWatches {
    /// Wakes the trusts that take passwords from a Secret whenever it changes.
    fn follow(&self, context: &Context, secret: &Key) {
        self.prune(context);
        let mut watches = self.0.lock().expect("no holder of this lock panics");
        watches.entry(secret.clone()).or_insert_with(|| {
            let api: Api<PartialObjectMeta<Secret>> =
                Api::namespaced(context.watch_client.clone(), &secret.namespace);
            let only = watcher::Config::default().fields(&format!("metadata.name={}", secret.name));
            let (queue, trusts) = (context.queues.trust.clone(), context.stores.trusts.clone());
            let changed = move |key: &Key, _: Option<&_>| {
                takers(&trusts, key).into_iter().for_each(|trust| queue.push(trust));
            };
            let store = Store::<PartialObjectMeta<Secret>>::default();
            let mut tasks = JoinSet::new();
            tasks.spawn(store.watch(api, only, |_| {}, changed));
            tasks
        });
    }

    /// Ends those that no trust needs.
    fn prune(&self, context: &Context) {
        let mut watches = self.0.lock().expect("no holder of this lock panics");
        watches.retain(|key, _| !takers(&context.stores.trusts, key).is_empty());
    }
}

/// The trusts that take passwords from a Secret.
fn takers(trusts: &Store<ClientTrust>, secret: &Key) -> Vec<Key> {
    let takes = |trust: &&Arc<ClientTrust>| {
        trust.namespace().as_ref() == Some(&secret.namespace)
            && gate::passwords(trust).is_some_and(|from| from.secret_name == secret.name)
    };
    trusts.list().iter().filter(takes).map(|trust| Key::of(&**trust)).collect()
}
