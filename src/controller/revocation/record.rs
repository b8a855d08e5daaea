//! Records what a `CertificateRevocation` revokes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::info;

use super::{Subject, begun, decide_in};
use crate::api::condition::{PUBLISHED, RECORDED, is_true};
use crate::cluster::Key;
use crate::controller::context::Context;
use crate::controller::error::Error;
use crate::controller::queue::Outcome;
use crate::controller::settle::until;
use crate::metrics::authority as label;
use crate::plan::ledger::{CaKey, Record};

/// The loop's name in logs and metrics.
pub const NAME: &str = super::NAME;

/// As many are recorded at once. They wait for one write of the ledger together.
pub const CONCURRENCY: usize = 8192;

/// A new certificate that is waited for wakes its revocation; this is for what nobody saw.
const AWAITING: Duration = Duration::from_secs(30);

/// A CRL that comes later than this is not waited for: the status says that it is not there yet.
const PUBLICATION: Duration = Duration::from_secs(3);

/// Records what there is to record, and leaves the status to [`super::tell`].
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let Some(revocation) = context.stores.revocations.get(&key) else {
        context.forget(NAME, &key);
        return Ok(Outcome::Settled);
    };
    if !context.is_current(NAME, &*revocation) {
        return Ok(Outcome::Settled);
    }
    let now = Timestamp::now();
    begun(&context, &key, &revocation, now);
    let subject = Subject::of(&context, &revocation);
    let mut in_secret = subject.watched_secret(&context);
    let mut decision = decide_in(&context, &revocation, &subject, in_secret, now);
    if decision.rests_on_secret && !decision.record.is_empty() {
        in_secret = subject.read_secret(&context).await?;
        decision = decide_in(&context, &revocation, &subject, in_secret, now);
    }
    // Once more when a certificate came meanwhile, so that the status names only what is recorded.
    while !decision.record.is_empty() {
        if revocation.spec.renew {
            // What counts as delay is not the wait for the new certificate.
            let mut all = context.revoking.lock().expect("no holder of this lock panics");
            all.insert(key.clone(), Instant::now());
        }
        record(&context, decision.record).await?;
        // Decided anew over the ledger as it is now.
        decision = decide_in(&context, &revocation, &subject, in_secret, now);
    }
    let told = &decision.status.conditions;
    if is_true(told, RECORDED) && !is_true(told, PUBLISHED) {
        // The next CRL is due, and wakes it: one write tells both.
        context.queues.revocation_status.push_after(key, PUBLICATION);
    } else {
        context.queues.revocation_status.push(key);
    }
    let Some(end) = decision.awaits else { return Ok(Outcome::Settled) };
    if let Some(identity) = &subject.identity {
        context.queues.identity.push(Key::of(&**identity));
    }
    Ok(Outcome::After(until(end, now).min(AWAITING)))
}

async fn record(context: &Context, records: Vec<(CaKey, Record)>) -> Result<(), Error> {
    let mut by_ca: BTreeMap<CaKey, Vec<Record>> = BTreeMap::new();
    for (ca, record) in records {
        by_ca.entry(ca).or_default().push(record);
    }
    for (ca, records) in by_ca {
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
    Ok(())
}
