//! Tells in the status of a `CertificateRevocation` what became of it.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use kube::Api;

use super::{Subject, begun, decide_in};
use crate::api::condition::{ENFORCED, PUBLISHED, is_true};
use crate::api::{CertificateRevocation, CertificateRevocationStatus};
use crate::cluster::{Key, apply};
use crate::controller::context::Context;
use crate::controller::error::Error;
use crate::controller::queue::Outcome;

/// The loop's name in logs and metrics.
pub const NAME: &str = "revocation-status";

/// Writes the status, when it says anything new.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let Some(revocation) = context.stores.revocations.get(&key) else {
        return Ok(Outcome::Settled);
    };
    if !context.is_current(super::NAME, &*revocation) {
        return Ok(Outcome::Settled);
    }
    let now = Timestamp::now();
    let subject = Subject::of(&context, &revocation);
    let in_secret = subject.watched_secret(&context);
    let mut decision = decide_in(&context, &revocation, &subject, in_secret, now);
    if decision.rests_on_secret {
        let in_secret = subject.read_secret(&context).await?;
        decision = decide_in(&context, &revocation, &subject, in_secret, now);
    }
    if !decision.record.is_empty() {
        // A certificate came meanwhile. The status names only what is recorded.
        context.queues.revocation.push(key);
        return Ok(Outcome::Settled);
    }
    let (before, wanted) = (revocation.status.as_ref(), decision.status);
    if before != Some(&wanted) {
        let begun = begun(&context, &key, &revocation, now);
        let api: Api<CertificateRevocation> =
            Api::namespaced(context.client.clone(), &key.namespace);
        let written = apply::status(&api, &key.name, &wanted).await?;
        context.wrote(super::NAME, &written);
        measure(&context, before, &wanted, begun);
    }
    if is_true(&wanted.conditions, ENFORCED) {
        context.revoking.lock().expect("no holder of this lock panics").remove(&key);
    }
    Ok(Outcome::Settled)
}

/// Shows in the metrics how long it took, once.
fn measure(
    context: &Context,
    before: Option<&CertificateRevocationStatus>,
    now: &CertificateRevocationStatus,
    begun: Instant,
) {
    let seconds = begun.elapsed().as_secs_f64();
    let metrics = &context.metrics;
    for (type_, histogram) in [
        (PUBLISHED, &metrics.revocation_published_seconds),
        (ENFORCED, &metrics.revocation_enforced_seconds),
    ] {
        let was = before.is_some_and(|before| is_true(&before.conditions, type_));
        if !was && is_true(&now.conditions, type_) {
            histogram.observe(seconds);
        }
    }
}
