//! What an identity's certificates need beside being issued: their record, their end, and repairs in
//! measure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::info;

use super::context::Context;
use super::error::Error;
use crate::api::lifecycle::DeletionPolicy;
use crate::api::{ClientIdentity, ClientIdentitySpec};
use crate::cluster::Key;
use crate::metrics::authority as label;
use crate::pki::sha256_from_hex;
use crate::plan::history::{Certificate, retention, superseded, unrecorded};
use crate::plan::ledger::{CaKey, Record, Signed};
use crate::plan::retry::REPAIR_WINDOW;
use crate::plan::secret::Current;

/// A Secret that is left as others made it is looked at so often.
pub const LOOK: Duration = Duration::from_secs(5);

/// What others do to an identity's Secret.
#[derive(Clone, Debug, Default)]
pub struct Repairs {
    made: Option<(u32, Timestamp)>,
    looked: Option<Instant>,
    version: Option<String>,
}

/// How often the Secret was put right within the last window, and since when.
pub(super) fn repairs(context: &Context, key: &Key, now: Timestamp) -> Option<(u32, Timestamp)> {
    let all = context.repairs.lock().expect("no holder of this lock panics");
    all.get(key)?.made.filter(|(_, since)| now < *since + REPAIR_WINDOW)
}

/// Counts a repair.
pub(super) fn count_repair(context: &Context, key: &Key, now: Timestamp) {
    let (count, since) = repairs(context, key, now).unwrap_or((0, now));
    let mut all = context.repairs.lock().expect("no holder of this lock panics");
    all.entry(key.clone()).or_default().made = Some((count + 1, since));
}

/// How long until the Secret of an identity that is held back is looked at again.
pub(super) fn wait_for_look(context: &Context, key: &Key) -> Option<Duration> {
    let all = context.repairs.lock().expect("no holder of this lock panics");
    LOOK.checked_sub(all.get(key)?.looked?.elapsed()).filter(|wait| !wait.is_zero())
}

/// Notes a look at the Secret; tells whether it is as it was at the look before. Who changes it all the
/// time must not have us write a status each time.
pub(super) fn look(context: &Context, key: &Key, version: Option<String>) -> bool {
    let mut all = context.repairs.lock().expect("no holder of this lock panics");
    let known = all.entry(key.clone()).or_default();
    let same = known.looked.is_some() && known.version == version;
    (known.looked, known.version) = (Some(Instant::now()), version);
    same
}

/// The certificates of an identity, as the ledger knows them.
pub(super) fn certificates(context: &Context, identity: &ClientIdentity) -> Vec<Certificate> {
    let uid = identity.metadata.uid.as_deref().unwrap_or_default();
    context.ledger.read_all(|books| {
        let of_book = books.iter().flat_map(|(ca, ledger)| {
            ledger.of_holder(uid).map(|issued| Certificate {
                ca: ca.clone(),
                revoked: ledger.revocation(&issued.serial).copied(),
                issued: issued.clone(),
            })
        });
        of_book.collect()
    })
}

/// Do an identity's certificates outlive it?
pub(super) fn retains(spec: &ClientIdentitySpec) -> bool {
    spec.deletion_policy == DeletionPolicy::Retain
}

/// Brings the ledger to know whether the certificates outlive the identity. It is what decides when the
/// identity is gone.
pub(super) async fn record_retention(
    context: &Context,
    identity: &ClientIdentity,
    now: Timestamp,
) -> Result<(), Error> {
    let retain = retains(&identity.spec);
    let changed = retention(&certificates(context, identity), retain, now);
    if !changed.is_empty() {
        info!(retain, certificates = changed.len(), "recording the deletion policy");
        record(context, changed).await?;
    }
    Ok(())
}

/// Brings the ledger to know a certificate that stands in its Secret. Its issuance is recorded before it is
/// signed, and only missing when the ledger lost it. Its fingerprint comes later, with the next records: it
/// is not worth a write of its own, and can be told from the Secret again.
pub(super) async fn record_certificate(
    context: &Context,
    identity: &ClientIdentity,
    current: &Current,
    now: Timestamp,
) -> Result<(), Error> {
    let authority = identity.spec.authority_ref.name.as_str();
    let ca = CaKey { authority: authority.into(), generation: current.generation };
    let serial = current.serial;
    let (is_lost, is_new) = context.ledger.read_all(|books| {
        let of_ca = books.get(&ca);
        let is_lost = books.values().all(|book| book.find(&serial).is_none());
        (is_lost, of_ca.is_none_or(|book| book.fingerprint(&serial).is_none()))
    });
    if is_lost && current.not_after > now {
        info!(%serial, "recording a certificate that the ledger lost");
        let record = Record::Issued(unrecorded(identity, current));
        context.ledger.record(&ca, vec![record]).await?;
    }
    let fingerprint = sha256_from_hex(&current.fingerprint).filter(|_| is_new);
    let is_known = || context.ledger.read(&ca, |ledger| ledger.find(&serial).is_some());
    if let Some(fingerprint) = fingerprint.filter(|_| is_known()) {
        context.ledger.record_later(&ca, Record::Signed(Signed { serial, fingerprint }));
    }
    Ok(())
}

/// Revokes what was replaced for longer than the grace period; tells when the next one is due.
pub(super) async fn revoke_superseded(
    context: &Context,
    identity: &ClientIdentity,
    current: &Current,
    certificates: &[Certificate],
    now: Timestamp,
) -> Result<Option<Timestamp>, Error> {
    let plan = superseded(certificates, current, &identity.spec.revocation_policy, now);
    record(context, plan.due.clone()).await?;
    for (ca, revoked) in &plan.due {
        info!(serial = %revoked.serial(), authority = %ca.authority, "revoked: superseded");
        context.metrics.revoked.get_or_create(&label(&ca.authority)).inc();
        context.queues.authority.push(Key::cluster(&*ca.authority));
    }
    Ok(plan.next)
}

async fn record(context: &Context, records: Vec<(CaKey, Record)>) -> Result<(), Error> {
    let mut by_ca: BTreeMap<CaKey, Vec<Record>> = BTreeMap::new();
    for (ca, record) in records {
        by_ca.entry(ca).or_default().push(record);
    }
    for (ca, records) in by_ca {
        context.ledger.record(&ca, records).await?;
    }
    Ok(())
}
