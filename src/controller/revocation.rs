//! Carries out `CertificateRevocation`s: ledger first, then the CRL, then the status that says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use tracing::info;

use super::context::Context;
use super::error::Error;
use super::queue::Outcome;
use crate::api::CertificateRevocation;
use crate::cluster::Key;
use crate::cluster::apply;
use crate::metrics::authority as label;
use crate::plan::ledger::{CaKey, Record};
use crate::plan::revocation::{Book, Decision, World, decide};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "revocation";

/// Reconciles one revocation.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let Some(revocation) = context.stores.revocations.get(&key) else {
        context.forget(NAME, &key);
        return Ok(Outcome::Settled);
    };
    if !context.is_current(NAME, &*revocation) {
        return Ok(Outcome::Settled);
    }
    let now = Timestamp::now();
    let decision = decide_in(&context, &revocation, now);
    let recorded = !decision.record.is_empty();
    if recorded {
        record(&context, &revocation, decision.record).await?;
    }
    // Decided anew over the ledger as it is now, with nothing left to record.
    let wanted =
        if recorded { decide_in(&context, &revocation, now).status } else { decision.status };
    if revocation.status.as_ref() != Some(&wanted) {
        let api: Api<CertificateRevocation> =
            Api::namespaced(context.client.clone(), &key.namespace);
        let written = apply::status(&api, &key.name, &wanted).await?;
        context.wrote(NAME, &written);
    }
    Ok(Outcome::Settled)
}

fn decide_in(context: &Context, revocation: &CertificateRevocation, now: Timestamp) -> Decision {
    let namespace = revocation.namespace().unwrap_or_default();
    let identity = revocation.spec.identity_ref.as_ref();
    let identity = identity
        .and_then(|identity| context.stores.identities.get(&Key::new(namespace, &identity.name)));
    let signing = context.signing.read().expect("no holder of this lock panics").clone();
    let crls: BTreeMap<CaKey, _> = signing
        .values()
        .flat_map(|signing| &signing.generations)
        .map(|one| (one.key.clone(), one.published.facts.clone()))
        .collect();
    context.ledger.read_all(|ledgers| {
        // In one order always: the status lists what they hold.
        let mut books: Vec<_> = ledgers.iter().collect();
        books.sort_by_key(|(key, _)| *key);
        let books = books
            .into_iter()
            .map(|(key, ledger)| Book {
                key,
                ledger,
                published: crls.get(key).map(|facts| &**facts),
                trusted: crls.contains_key(key) || !signing.contains_key(&*key.authority),
            })
            .collect();
        let identity_uid = identity.as_ref().and_then(|identity| identity.metadata.uid.as_deref());
        decide(&World { revocation, identity_uid, books, now })
    })
}

async fn record(
    context: &Context,
    revocation: &CertificateRevocation,
    records: Vec<(CaKey, Record)>,
) -> Result<(), Error> {
    let mut by_ca: BTreeMap<CaKey, Vec<Record>> = BTreeMap::new();
    for (ca, record) in records {
        by_ca.entry(ca).or_default().push(record);
    }
    let mut count = 0;
    for (ca, records) in by_ca {
        count += records.len();
        context.metrics.revoked.get_or_create(&label(&ca.authority)).inc_by(records.len() as u64);
        let holders: Vec<Key> = context.ledger.read(&ca, |ledger| {
            let issued = records.iter().filter_map(|record| ledger.find(&record.serial()));
            issued.map(|issued| Key::new(&*issued.holder.namespace, &*issued.holder.name)).collect()
        });
        for record in &records {
            info!(serial = %record.serial(), authority = %ca.authority, "revoked on request");
        }
        context.ledger.record(&ca, records).await?;
        context.queues.authority.push(Key::cluster(&*ca.authority));
        holders.into_iter().for_each(|holder| context.queues.identity.push(holder));
    }
    let note = format!("{count} certificate(s) revoked");
    context.events.normal(revocation, "Revoke", "Revoked", &note).await;
    Ok(())
}
