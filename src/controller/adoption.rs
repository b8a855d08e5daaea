//! Takes over the certificates of identities that a backup brought back.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use tracing::info;

use super::context::Context;
use super::error::Error;
use super::material::Found;
use crate::api::{ClientIdentity, annotation};
use crate::cluster::Key;
use crate::plan::adoption::{Known, RESTORE_WINDOW, adopted, is_awaited};
use crate::plan::ledger::{CaKey, Issued, Record};
use crate::plan::secret::{SecretView, is_ownerless};

/// Secrets without owner, by the serial that they carry.
pub(super) type Ownerless = HashMap<String, Key>;

/// Has the identity take over the certificate of its restored Secret, when that is its own. The ledger
/// knows it as its holder before anything else is done.
pub(super) async fn adopt(
    context: &Context,
    identity: &ClientIdentity,
    found: &mut Found,
    now: Timestamp,
) -> Result<(), Error> {
    let SecretView::Restored(current) = &found.view else { return Ok(()) };
    let record: Option<(CaKey, Issued)> = context.ledger.read_all(|books| {
        let (ca, ledger) = books.iter().find(|(_, book)| book.find(&current.serial).is_some())?;
        let known = Known {
            ca,
            issued: ledger.find(&current.serial)?,
            revoked: books.values().any(|book| book.revocation(&current.serial).is_some()),
            fingerprint: ledger.fingerprint(&current.serial),
        };
        Some((ca.clone(), adopted(identity, current, &known, now)?))
    });
    let Some((ca, issued)) = record else { return Ok(()) };
    info!(serial = %issued.serial, "taking over the certificate of a restored Secret");
    context.ledger.record(&ca, vec![Record::Issued(issued)]).await?;
    found.view = SecretView::Good(current.clone());
    Ok(())
}

/// Is the identity of this certificate about to be restored, or about to take it over? Not for ever:
/// what is not taken over in time is revoked. `identity` is one of the holder's name under another UID.
pub(super) async fn is_expected(
    context: &Context,
    issued: &Issued,
    identity: Option<&ClientIdentity>,
    ownerless: &Ownerless,
    now: Timestamp,
) -> Result<bool, Error> {
    let namespace = &*issued.holder.namespace;
    let name = match identity {
        Some(identity) => Some(identity.spec.secret_name.clone()),
        None => {
            let found = ownerless.get(&issued.serial.to_string());
            found.filter(|key| key.namespace == namespace).map(|key| key.name.clone())
        }
    };
    let Some(name) = name else { return Ok(false) };
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let found = api
        .get_metadata_opt(&name)
        .await
        .map_err(|source| Error::Read { object: format!("Secret {namespace}/{name}"), source })?;
    if !found.is_some_and(|secret| is_awaited(issued, &secret.metadata, identity.is_some(), now)) {
        return Ok(false);
    }
    if let Some(identity) = identity {
        context.queues.identity.push(Key::of(identity));
    }
    let mut awaited = context.awaited.lock().expect("no holder of this lock panics");
    awaited.retain(|_, since| now.duration_since(*since) < RESTORE_WINDOW * 2);
    let since = *awaited.entry(issued.serial).or_insert(now);
    Ok(now.duration_since(since) < RESTORE_WINDOW)
}

/// The Secrets that a backup may have brought back, as the watch shows them.
pub(super) fn ownerless(context: &Context) -> Ownerless {
    let secrets = context.stores.secrets.list();
    let found = secrets.iter().filter_map(|secret| {
        let notes = secret.annotations();
        let (serial, identity) = (notes.get(annotation::SERIAL)?, notes.get(annotation::IDENTITY)?);
        let is_candidate = is_ownerless(&secret.metadata, identity);
        is_candidate.then(|| (serial.clone(), Key::of(&**secret)))
    });
    found.collect()
}
