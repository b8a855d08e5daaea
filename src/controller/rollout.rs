//! Restarts the workloads that use a certificate after it was replaced.

use jiff::Timestamp;
use kube::ResourceExt;
use tracing::info;

use super::context::Context;
use super::error::chain;
use crate::api::condition::{Wanted, truncate};
use crate::api::lifecycle::RolloutRestartTarget;
use crate::api::{ClientIdentity, annotation};
use crate::cluster::{Key, workload};
use crate::plan::history::Certificate;
use crate::plan::rollout::{Failed, condition, needs_restart, nothing_to_do, replaced_at};
use crate::plan::secret::Current;

/// Restarts what is to be restarted; tells the condition to write, if the spec names any workload. It
/// never fails: a workload must not stand in the way of a certificate.
pub(super) async fn restart(
    context: &Context,
    identity: &ClientIdentity,
    current: &Current,
    certificates: &[Certificate],
    now: Timestamp,
) -> Option<Wanted> {
    let targets = &identity.spec.rollout_restart_targets;
    if targets.is_empty() {
        return None;
    }
    let Some(replaced_at) = replaced_at(certificates, current) else {
        return Some(nothing_to_do());
    };
    let (key, done) = (Key::of(identity), (current.serial, identity.metadata.generation));
    let known = context.restarted.lock().expect("no holder of this lock panics").get(&key).copied();
    if known == Some(done) {
        return Some(condition(current, &[]));
    }
    let mut failed = Vec::new();
    for target in targets {
        if let Err(why) = restart_one(context, identity, target, current, replaced_at, now).await {
            failed.push((target, why));
        }
    }
    if failed.is_empty() {
        context.restarted.lock().expect("no holder of this lock panics").insert(key, done);
    }
    Some(condition(current, &failed))
}

async fn restart_one(
    context: &Context,
    identity: &ClientIdentity,
    target: &RolloutRestartTarget,
    current: &Current,
    replaced_at: Timestamp,
    now: Timestamp,
) -> Result<(), Failed> {
    let namespace = identity.namespace().unwrap_or_default();
    let (kind, name) = (target.kind.as_str(), &target.name);
    let found = workload::get(&context.client, &namespace, kind, name).await.map_err(why)?;
    let found = serde_json::to_value(found.ok_or(Failed::NotFound)?);
    let found = found.map_err(|error| Failed::Other(error.to_string()))?;
    if !needs_restart(&found, current, replaced_at) {
        return Ok(());
    }
    let annotations = [
        (annotation::RESTARTED_FOR, current.serial.to_string()),
        (annotation::RESTARTED_AT, truncate(now).to_string()),
    ];
    workload::annotate_pods(&context.client, &namespace, kind, name, &annotations.into())
        .await
        .map_err(why)?;
    info!(kind, name, serial = %current.serial, "restarted");
    Ok(())
}

fn why(error: kube::Error) -> Failed {
    match &error {
        kube::Error::Api(status) if status.code == 403 => Failed::Forbidden,
        kube::Error::Api(status) if status.code == 404 => Failed::NotFound,
        _ => Failed::Other(chain(&error)),
    }
}
