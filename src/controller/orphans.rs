//! Revokes the certificates of identities that are gone.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tracing::{debug, info};

use super::adoption::{is_expected, ownerless};
use super::context::Context;
use super::error::Error;
use crate::api::ClientIdentity;
use crate::api::condition::truncate;
use crate::api::revocation::RevocationReason;
use crate::cluster::Key;
use crate::metrics::authority as label;
use crate::plan::ledger::{CaKey, Issued, Record, Revoked};

/// Revokes every live certificate whose identity is gone, unless the ledger says that it outlives it: no finalizer is needed, so also when this
/// process was down at the time or the whole namespace was wiped. The store only suggests; a
/// consistent list decides. Tells whether one waits for its identity to be restored from a backup.
pub(super) async fn revoke_orphans(
    context: &Context,
    key: &CaKey,
    now: Timestamp,
) -> Result<bool, Error> {
    let mut waits = false;
    let mut candidates = None;
    let mut suspects: BTreeMap<String, Vec<Issued>> = BTreeMap::new();
    context.ledger.read(key, |ledger| {
        for issued in ledger.live(now) {
            let holder = &issued.holder;
            let identity =
                context.stores.identities.get(&Key::new(&*holder.namespace, &*holder.name));
            let alive = identity.is_some_and(|i| i.metadata.uid.as_deref() == Some(&*holder.uid));
            if !alive && !issued.retain {
                suspects.entry(holder.namespace.to_string()).or_default().push(issued.clone());
            }
        }
    });
    for (namespace, issued) in suspects {
        let api: Api<ClientIdentity> = Api::namespaced(context.client.clone(), &namespace);
        let present = match api.list(&ListParams::default()).await {
            Ok(list) => list.items,
            // The right to look into a namespace goes with it. If it is there, nothing is known of what
            // is in it, so nothing is revoked.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let namespaces: Api<Namespace> = Api::all(context.client.clone());
                match namespaces.get_opt(&namespace).await {
                    Ok(None) => Vec::new(),
                    Ok(Some(_)) | Err(_) => {
                        debug!(namespace, "may not list ClientIdentities; certificates stay");
                        continue;
                    }
                }
            }
            Err(source) => {
                let object = format!("ClientIdentities of namespace {namespace}");
                return Err(Error::Read { object, source });
            }
        };
        let uids: HashSet<_> =
            present.iter().filter_map(|identity| identity.metadata.uid.as_deref()).collect();
        let mut gone = Vec::new();
        for issued in issued.into_iter().filter(|issued| !uids.contains(&*issued.holder.uid)) {
            let mut others = present.iter();
            let other = others.find(|other| other.name_any() == *issued.holder.name);
            let secrets = candidates.get_or_insert_with(|| ownerless(context));
            if is_expected(context, &issued, other, secrets, now).await? {
                waits = true;
            } else {
                gone.push(issued);
            }
        }
        // Meanwhile somebody may have taken it over.
        context.ledger.read(key, |ledger| {
            gone.retain(|issued| {
                ledger.find(&issued.serial).is_some_and(|now| now.holder == issued.holder)
            });
        });
        if gone.is_empty() {
            continue;
        }
        let records = gone.iter().map(|issued| {
            Record::Revoked(Revoked {
                serial: issued.serial,
                revoked_at: truncate(now),
                reason: Some(RevocationReason::CessationOfOperation.code()),
            })
        });
        context.ledger.record(key, records.collect()).await?;
        // The CRL of this pass was decided before.
        context.queues.authority.push(Key::cluster(&*key.authority));
        context.metrics.revoked.get_or_create(&label(&key.authority)).inc_by(gone.len() as u64);
        for issued in &gone {
            let holder = format!("{namespace}/{}", issued.holder.name);
            info!(serial = %issued.serial, holder, "revoked: the ClientIdentity is gone");
        }
    }
    Ok(waits)
}
