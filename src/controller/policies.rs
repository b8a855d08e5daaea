//! Writes the policies of trusts into the Secret that the servers of the gate read.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};

use super::context::{Context, Stores};
use super::error::Error;
use crate::api::condition::{PROGRAMMED, Wanted};
use crate::api::trust::Reason;
use crate::api::{ClientTrust, label};
use crate::cluster::Key;
use crate::cluster::apply::{WriteError, write};
use crate::plan::gate::{self, POLICIES, needs_policy, policy_key};

/// The policies by their key, as far as this process has looked at their trusts; none for those without.
pub type Known = BTreeMap<String, Option<Vec<u8>>>;

/// Brings the policy of a trust to the gate; why that can't be, so that the gate lets nobody in, if so.
pub(super) async fn put(context: &Context, trust: &ClientTrust) -> Result<Option<Wanted>, Error> {
    let key = Key::of(trust);
    let Some(policy) = gate::policy(trust) else { return Ok(None) };
    let text = serde_json::to_vec(&policy).unwrap_or_default();
    match set(context, &key, Some(text)).await {
        Ok(None) => Ok(None),
        Ok(Some(message)) => {
            Ok(Some(Wanted::no(PROGRAMMED, Reason::PolicyTooLarge.as_str(), message)))
        }
        Err(Error::Write(WriteError::NotOwned(object))) => {
            let message = format!(
                "{object} in namespace {:?} exists and is not ours; delete it",
                context.namespace
            );
            Ok(Some(Wanted::no(PROGRAMMED, Reason::NotOwned.as_str(), message)))
        }
        Err(error) => Err(error),
    }
}

/// Takes the policy of a trust that needs none any more, or is gone, away from the gate.
pub(super) async fn remove(context: &Context, key: &Key) -> Result<(), Error> {
    // Most clusters have no policies at all.
    if context.stores.secrets.get(&Key::new(&context.namespace, POLICIES)).is_none() {
        return Ok(());
    }
    match set(context, key, None).await {
        // It is not what the servers take for ours.
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
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.namespace);
    let object = || format!("Secret {POLICIES}");
    let present =
        api.get_opt(POLICIES).await.map_err(|source| Error::Read { object: object(), source })?;
    let ours = |secret: &Secret| {
        secret.labels().get(label::MANAGED_BY).is_some_and(|value| value == label::MANAGED_BY_VALUE)
    };
    if present.as_ref().is_some_and(|present| !ours(present)) {
        return Err(WriteError::NotOwned(object()).into());
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
    if before != wanted {
        write(&context.client, &secret(context, present, wanted)).await?;
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
        let ours = (label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned());
        secret.metadata.labels = Some(BTreeMap::from([ours]));
        secret
    });
    secret.data = Some(data);
    secret
}
