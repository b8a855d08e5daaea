//! Carries out `CertificateRevocation`s: ledger first, then the CRL, then the status that says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt};
use tracing::info;

use super::context::Context;
use super::error::Error;
use super::queue::Outcome;
use super::settle::until;
use crate::api::condition::{ENFORCED, PUBLISHED, is_true};
use crate::api::{CertificateRevocation, CertificateRevocationStatus, ClientIdentity};
use crate::cluster::Key;
use crate::cluster::apply;
use crate::metrics::authority as label;
use crate::pki::{Serial, hex};
use crate::plan::ledger::{CaKey, Record};
use crate::plan::revocation::{Book, Decision, InSecret, World, decide};
use crate::plan::scope::{Target, target};
use crate::plan::secret::{ownership, view_metadata};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "revocation";

/// A new certificate that is waited for wakes its revocation; this is for what nobody saw.
const AWAITING: Duration = Duration::from_secs(30);

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
    let begun = begun(&context, &key, &revocation, now);
    let subject = Subject::of(&context, &revocation);
    let mut in_secret = subject.watched_secret(&context);
    let mut decision = decide_in(&context, &revocation, &subject, in_secret, now);
    if decision.rests_on_secret {
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
        record(&context, &revocation, decision.record).await?;
        // Decided anew over the ledger as it is now.
        decision = decide_in(&context, &revocation, &subject, in_secret, now);
    }
    let wanted = decision.status;
    if revocation.status.as_ref() != Some(&wanted) {
        let api: Api<CertificateRevocation> =
            Api::namespaced(context.client.clone(), &key.namespace);
        let written = apply::status(&api, &key.name, &wanted).await?;
        context.wrote(NAME, &written);
        measure(&context, revocation.status.as_ref(), &wanted, begun);
    }
    if is_true(&wanted.conditions, ENFORCED) {
        context.revoking.lock().expect("no holder of this lock panics").remove(&key);
    }
    let Some(end) = decision.awaits else { return Ok(Outcome::Settled) };
    if let Some(identity) = &subject.identity {
        context.queues.identity.push(Key::of(&**identity));
    }
    Ok(Outcome::After(until(end, now).min(AWAITING)))
}

/// Are its certificates published, and not known to be refused everywhere?
pub fn waits_for_trusts(revocation: &CertificateRevocation) -> bool {
    revocation.status.as_ref().is_some_and(|status| {
        is_true(&status.conditions, PUBLISHED) && !is_true(&status.conditions, ENFORCED)
    })
}

/// Since when the revocation could have been in force: since this process saw it, or since it was made
/// when an earlier one did.
fn begun(
    context: &Context,
    key: &Key,
    revocation: &CertificateRevocation,
    now: Timestamp,
) -> Instant {
    let mut all = context.revoking.lock().expect("no holder of this lock panics");
    if let Some(begun) = all.get(key) {
        return *begun;
    }
    let status = revocation.status.as_ref();
    if status.is_some_and(|status| is_true(&status.conditions, ENFORCED)) {
        return Instant::now();
    }
    let made = status.and_then(|status| status.recorded_time.as_ref()).map(|time| time.0);
    let age = made.and_then(|made| Duration::try_from(now.duration_since(made)).ok());
    let begun = age.and_then(|age| Instant::now().checked_sub(age)).unwrap_or_else(Instant::now);
    all.insert(key.clone(), begun);
    begun
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

/// Whom a request concerns, as the watches know it.
struct Subject {
    identity: Option<Arc<ClientIdentity>>,
    fingerprinted: Option<Serial>,
}

impl Subject {
    fn of(context: &Context, revocation: &CertificateRevocation) -> Self {
        let nobody = Self { identity: None, fingerprinted: None };
        let Ok(target) = target(&revocation.spec) else { return nobody };
        let status = revocation.status.as_ref();
        let namespace = revocation.namespace().unwrap_or_default();
        let (serial, fingerprinted) = match target {
            Target::Identity(name) => {
                let identity = context.stores.identities.get(&Key::new(namespace, name));
                let known = status.and_then(|status| status.identity_uid.as_deref());
                let is_meant = |identity: &Arc<ClientIdentity>| {
                    known.is_none_or(|known| identity.metadata.uid.as_deref() == Some(known))
                };
                return Self { identity: identity.filter(is_meant), fingerprinted: None };
            }
            Target::Serial(serial) => (Some(serial), None),
            Target::Fingerprint(fingerprint) => {
                let known = status.and_then(|status| status.certificates.first());
                let known = known.and_then(|known| known.serial_number.parse().ok());
                let found = known.or_else(|| find_by_fingerprint(context, &fingerprint));
                (found, found)
            }
        };
        let holder = serial.and_then(|serial| {
            context.ledger.read_all(|books| {
                books.values().find_map(|book| book.find(&serial)).map(|one| one.holder.clone())
            })
        });
        let identity = holder.and_then(|holder| {
            let identity =
                context.stores.identities.get(&Key::new(&*holder.namespace, &*holder.name));
            identity.filter(|found| found.metadata.uid.as_deref() == Some(&*holder.uid))
        });
        Self { identity, fingerprinted }
    }

    /// What the identity's Secret holds, as the watch shows it.
    fn watched_secret(&self, context: &Context) -> Option<InSecret> {
        let identity = self.identity.as_ref()?;
        let name = &identity.spec.secret_name;
        let secret = context.stores.secrets.get(&Key::new(identity.namespace()?, name))?;
        in_secret(identity, &secret.metadata)
    }

    /// The same as the API server knows it.
    async fn read_secret(&self, context: &Context) -> Result<Option<InSecret>, Error> {
        let Some(identity) = &self.identity else { return Ok(None) };
        let namespace = identity.namespace().unwrap_or_default();
        let name = &identity.spec.secret_name;
        let api: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
        let secret = api.get_metadata_opt(name).await.map_err(|source| Error::Read {
            object: format!("Secret {namespace}/{name}"),
            source,
        })?;
        Ok(secret.and_then(|secret| in_secret(identity, &secret.metadata)))
    }
}

fn in_secret(identity: &ClientIdentity, secret: &ObjectMeta) -> Option<InSecret> {
    let current = view_metadata(secret).filter(|_| ownership(identity, secret).is_none())?;
    Some(InSecret { serial: current.serial, revision: current.revision })
}

/// The serial number of the certificate with this fingerprint. Records of before there were fingerprints in
/// the ledger have none; then the identity that holds the certificate knows it.
fn find_by_fingerprint(context: &Context, fingerprint: &[u8; 32]) -> Option<Serial> {
    let recorded = context
        .ledger
        .read_all(|books| books.values().find_map(|book| book.find_fingerprint(fingerprint)));
    let wanted = hex(fingerprint);
    let held = || {
        context.stores.identities.list().iter().find_map(|identity| {
            let status = identity.status.as_ref()?;
            let found = status.fingerprint.as_deref() == Some(&wanted);
            status.serial_number.as_deref().filter(|_| found)?.parse().ok()
        })
    };
    recorded.or_else(held)
}

fn decide_in(
    context: &Context,
    revocation: &CertificateRevocation,
    subject: &Subject,
    in_secret: Option<InSecret>,
    now: Timestamp,
) -> Decision {
    let signing = context.signing.read().expect("no holder of this lock panics").clone();
    let crls: BTreeMap<CaKey, _> = signing
        .values()
        .flat_map(|signing| &signing.generations)
        .map(|one| (one.key.clone(), one.published.facts.clone()))
        .collect();
    let trusts = context.stores.trusts.list();
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
        decide(&World {
            revocation,
            home: &context.namespace,
            identity: subject.identity.as_deref(),
            in_secret,
            fingerprinted: subject.fingerprinted,
            books,
            trusts: &trusts,
            now,
        })
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
