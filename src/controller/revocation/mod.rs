//! Carries out `CertificateRevocation`s: ledger first, then the CRL, then the status that says so.
//!
//! Two loops, since thousands may be asked for at once: [`record`] writes what is revoked into the
//! ledger, very many at a time, as these share a write; [`tell`] writes a status for each, and no
//! certificate stays good because of the paperwork of others.

pub mod record;
pub mod tell;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt};

use super::context::Context;
use super::error::Error;
use crate::api::condition::{ENFORCED, PUBLISHED, is_true};
use crate::api::{CertificateRevocation, ClientIdentity};
use crate::cluster::Key;
use crate::pki::{Serial, hex};
use crate::plan::ledger::CaKey;
use crate::plan::revocation::{Book, Decision, InSecret, World, decide};
use crate::plan::scope::{Target, target};
use crate::plan::secret::{ownership, view_metadata};

/// What is kept of revocations in memory is kept by this name.
pub const NAME: &str = "revocation";

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
