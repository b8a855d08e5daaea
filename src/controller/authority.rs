//! Keeps each authority's CA and CRL, and revokes what belonged to identities that are gone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tracing::{error, info, warn};

use super::context::{Context, Published, Signing};
use super::error::{Error, chain};
use super::queue::Outcome;
use crate::api::annotation;
use crate::api::authority::CertificateCounts;
use crate::api::condition::{READY, Wanted, is_true, truncate};
use crate::api::revocation::RevocationReason;
use crate::api::{ClientAuthority, ClientIdentity};
use crate::cluster::Key;
use crate::cluster::apply::{self, WriteError, write};
use crate::metrics::authority as label;
use crate::pki::authority::CaParams;
use crate::pki::{CertificateAuthority, PrivateKey, Serial, crl};
use crate::plan::authority::{
    BACKDATE, Decision, Reason, World, crl_key, crl_name, crl_url, decide, render_crl,
    render_secret, secret_name, status,
};
use crate::plan::crl as crl_plan;
use crate::plan::ledger::{CaKey, Issued, Record, Revoked};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "authority";

/// Counts in status are at most this old.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Two looks at an authority are at most this far apart.
const LONGEST: Duration = Duration::from_secs(600);

/// Reconciles one authority.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let Some(authority) = context.stores.authorities.get(&key) else {
        forget(&context, &key);
        return Ok(Outcome::Settled);
    };
    if authority.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Settled);
    }
    let now = Timestamp::now();
    let ca_key = CaKey::first(&key.name);

    let signing = match signing(&context, &authority, &ca_key, now).await? {
        Ok(signing) => signing,
        Err(refusal) => {
            forget(&context, &key);
            put_status(&context, &authority, &ca_key, None, refusal, now).await?;
            return Ok(Outcome::After(LONGEST));
        }
    };
    revoke_orphans(&context, &ca_key, now).await?;
    let (signing, ready, next) = publish(&context, &authority, signing, now).await?;
    let wait = put_status(&context, &authority, &ca_key, Some(&signing), ready, now).await?;
    Ok(Outcome::After(next.min(wait.unwrap_or(LONGEST)).min(LONGEST)))
}

/// An authority that is gone, or can't sign, signs nothing.
fn forget(context: &Context, key: &Key) {
    let removed = context.signing.write().expect("no holder of this lock panics").remove(&key.name);
    if removed.is_some() {
        wake_users(context, &key.name);
    }
}

/// Everybody who waits for this authority, or has its bundle.
fn wake_users(context: &Context, authority: &str) {
    for identity in context.stores.identities.list() {
        if identity.spec.authority_ref.name == authority {
            context.queues.identity.push(Key::of(&*identity));
        }
    }
    wake_trusts(context, authority);
}

fn wake_trusts(context: &Context, authority: &str) {
    for trust in context.stores.trusts.list() {
        if trust.spec.authorities.iter().any(|reference| reference.name == authority) {
            context.queues.trust.push(Key::of(&*trust));
        }
    }
}

/// The CA, read once and kept while its Secret does not change; made when there never was one.
async fn signing(
    context: &Context,
    authority: &ClientAuthority,
    key: &CaKey,
    now: Timestamp,
) -> Result<Result<Arc<Signing>, Wanted>, Error> {
    let name = secret_name(key);
    let url = authority.spec.crl.distribution_point_base_url.as_ref();
    let url = url.map(|base| crl_url(base, key));
    if let Some(known) = context.signing(&key.authority) {
        let seen = context.stores.secrets.get(&Key::new(&context.namespace, &name));
        let version = seen.and_then(|seen| seen.metadata.resource_version.clone());
        let same = version.as_ref() == Some(&known.secret_version) && known.crl_url == url;
        if same && known.ca.facts().not_after > now {
            return Ok(Ok(known));
        }
    }
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.namespace);
    let read = |source| Error::Read { object: format!("Secret {name}"), source };
    let mut secret = api.get_opt(&name).await.map_err(read)?;
    let published = read_published(context, key).await?;
    let known_before = authority.status.as_ref().is_some_and(|s| !s.generations.is_empty());
    let was_in_use = known_before
        || published.is_some()
        || context.ledger.read(key, |ledger| !ledger.is_empty());

    let decision = decide(&World { key, secret: secret.as_ref(), was_in_use, now });
    let ca = match decision {
        Decision::Refuse(refusal) => return Ok(Err(refusal)),
        Decision::Use(ca) => *ca,
        Decision::Mint => {
            let ca = mint(authority, now)?;
            let mut wanted = render_secret(key, ca.certificate_pem(), ca.key());
            wanted.metadata.namespace = Some(context.namespace.clone());
            // Creation fails when another replica was faster: then its CA is read, and ours forgotten.
            secret = Some(write(&context.client, &wanted).await?);
            info!(fingerprint = ca.facts().fingerprint, "made a CA");
            let note = format!("made a CA, kept in Secret {}/{name}", context.namespace);
            context.events.normal(authority, "Mint", "Minted", &note).await;
            ca
        }
    };
    context
        .metrics
        .ca_not_after
        .get_or_create(&label(&key.authority))
        .set(ca.facts().not_after.as_second());
    let published = match published {
        Some(published) => published,
        // An empty CRL exists before the first certificate is issued.
        None => publish_first(context, authority, key, &ca, now).await?,
    };
    let signing = Arc::new(Signing {
        key: key.clone(),
        bundle: ca.certificate_pem(),
        secret_version: secret.and_then(|secret| secret.resource_version()).unwrap_or_default(),
        crl_url: url,
        ca: Arc::new(ca),
        published,
    });
    keep(context, signing.clone());
    wake_users(context, &key.authority);
    Ok(Ok(signing))
}

fn keep(context: &Context, signing: Arc<Signing>) {
    let mut all = context.signing.write().expect("no holder of this lock panics");
    all.insert(signing.key.authority.to_string(), signing);
}

fn mint(authority: &ClientAuthority, now: Timestamp) -> Result<CertificateAuthority, Error> {
    let spec = &authority.spec.self_signed;
    let lifetime = SignedDuration::from_secs(spec.duration.as_secs());
    let params = CaParams {
        common_name: &spec.common_name,
        organization: spec.organization.as_deref(),
        serial: Serial::random(),
        not_before: truncate(now - BACKDATE),
        not_after: truncate(now.saturating_add(lifetime).unwrap_or(Timestamp::MAX)),
    };
    Ok(CertificateAuthority::self_signed(&params, PrivateKey::generate())?)
}

/// The CRL that stands in the cluster.
async fn read_published(context: &Context, key: &CaKey) -> Result<Option<Published>, Error> {
    let name = crl_name(key);
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.namespace);
    let found = api
        .get_opt(&name)
        .await
        .map_err(|source| Error::Read { object: format!("ConfigMap {name}"), source })?;
    let Some(config_map) = found else {
        return Ok(None);
    };
    let resource_version = config_map.resource_version();
    let Some(der) = config_map.binary_data.and_then(|mut data| data.remove(crl_key::DER)) else {
        warn!(name, "the ConfigMap of the CRL holds none; it is published anew");
        return Ok(None);
    };
    let facts = crl::read(&der.0)?;
    Ok(Some(Published {
        facts: Arc::new(facts),
        pem: crl::to_pem(&der.0).into(),
        bytes: der.0.len(),
        resource_version,
        at: None,
    }))
}

fn crl_world<'a>(
    authority: &ClientAuthority,
    ca: &CertificateAuthority,
    ledger: &'a crate::plan::ledger::Ledger,
    published: Option<&'a Published>,
    now: Timestamp,
) -> crl_plan::World<'a> {
    let spec = &authority.spec.crl;
    crl_plan::World {
        ledger,
        published: published.map(|published| &*published.facts),
        published_at: published.and_then(|published| published.at),
        validity: SignedDuration::from_secs(spec.validity.as_secs()),
        refresh: SignedDuration::from_secs(spec.refresh.as_secs()),
        ca_not_after: ca.facts().not_after,
        now,
    }
}

async fn publish_first(
    context: &Context,
    authority: &ClientAuthority,
    key: &CaKey,
    ca: &CertificateAuthority,
    now: Timestamp,
) -> Result<Published, Error> {
    let decision = context
        .ledger
        .read(key, |ledger| crl_plan::decide(&crl_world(authority, ca, ledger, None, now)));
    let crl_plan::Decision::Publish { number, this_update, next_update, entries } = decision else {
        unreachable!("without a published CRL one is always due");
    };
    write_crl(context, key, ca, None, number, this_update, next_update, &entries, now).await
}

/// Signs, checks by independent code, and publishes under the version of the CRL before.
#[allow(clippy::too_many_arguments)]
async fn write_crl(
    context: &Context,
    key: &CaKey,
    ca: &CertificateAuthority,
    previous: Option<&Published>,
    number: crl::CrlNumber,
    this_update: Timestamp,
    next_update: Timestamp,
    entries: &[crl::Entry],
    now: Timestamp,
) -> Result<Published, Error> {
    let der = crl::sign(ca, number, this_update, next_update, entries)?;
    let facts = crl::verify(&der, ca, number, entries)?;
    let (pem, bytes) = (crl::to_pem(&der), der.len());
    let mut wanted = render_crl(key, &ca.certificate_pem(), der, number);
    wanted.metadata.namespace = Some(context.namespace.clone());
    wanted.metadata.resource_version = match previous {
        Some(previous) => previous.resource_version.clone(),
        // A ConfigMap that lost its CRL is written over; one that is not there is created.
        None => {
            let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.namespace);
            let found = api.get_opt(&crl_name(key)).await;
            let found = found.map_err(|source| Error::Read {
                object: format!("ConfigMap {}", crl_name(key)),
                source,
            })?;
            found.and_then(|found| found.resource_version())
        }
    };
    let written = write(&context.client, &wanted).await?;
    info!(number = number.0, entries = entries.len(), bytes, %next_update, "published a CRL");
    let label = label(&key.authority);
    let metrics = &context.metrics;
    metrics.crl_publications.get_or_create(&label).inc();
    metrics.crl_entries.get_or_create(&label).set(entries.len() as i64);
    metrics.crl_bytes.get_or_create(&label).set(bytes as i64);
    metrics.crl_this_update.get_or_create(&label).set(this_update.as_second());
    metrics.crl_next_update.get_or_create(&label).set(next_update.as_second());
    Ok(Published {
        facts: Arc::new(facts),
        pem: pem.into(),
        bytes,
        resource_version: written.resource_version(),
        at: Some(now),
    })
}

/// Publishes a CRL when one is due; tells what the Ready condition says and when to look again.
async fn publish(
    context: &Context,
    authority: &ClientAuthority,
    signing: Arc<Signing>,
    now: Timestamp,
) -> Result<(Arc<Signing>, Wanted, Duration), Error> {
    let good =
        Wanted::yes(READY, Reason::Ready.as_str(), "the CA can sign and its CRL is published");
    let decision = context.ledger.read(&signing.key, |ledger| {
        crl_plan::decide(&crl_world(authority, &signing.ca, ledger, Some(&signing.published), now))
    });
    let (number, this_update, next_update, entries) = match decision {
        crl_plan::Decision::WaitUntil(due) => {
            let wait = Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO);
            return Ok((signing, good, wait));
        }
        crl_plan::Decision::Refuse(message) => {
            error!(message, "the CRL is not published");
            context.metrics.crl_guard_trips.get_or_create(&label(&signing.key.authority)).inc();
            let refused = Wanted::no(READY, Reason::ShrinkGuard.as_str(), message);
            return Ok((signing, refused, LONGEST));
        }
        crl_plan::Decision::Publish { number, this_update, next_update, entries } => {
            (number, this_update, next_update, entries)
        }
    };
    let previous = Some(&signing.published);
    let written = write_crl(
        context,
        &signing.key,
        &signing.ca,
        previous,
        number,
        this_update,
        next_update,
        &entries,
        now,
    );
    let published = match written.await {
        Ok(published) => published,
        Err(error) => {
            // Somebody else published, or ours arrived without our hearing of it: read it again.
            if matches!(error, Error::Write(WriteError::Conflict { .. })) {
                forget(context, &Key::cluster(&*signing.key.authority));
            } else {
                let message = format!("the CRL was not published: {}", chain(&error));
                let refused = Wanted::no(READY, Reason::CrlFailed.as_str(), message);
                put_status(context, authority, &signing.key, Some(&signing), refused, now).await?;
            }
            return Err(error);
        }
    };
    let fresh = Arc::new(Signing {
        key: signing.key.clone(),
        ca: signing.ca.clone(),
        bundle: signing.bundle.clone(),
        secret_version: signing.secret_version.clone(),
        crl_url: signing.crl_url.clone(),
        published,
    });
    keep(context, fresh.clone());
    wake_trusts(context, &fresh.key.authority);
    for revocation in context.stores.revocations.list() {
        let conditions = revocation.status.iter().flat_map(|status| &status.conditions);
        let conditions: Vec<_> = conditions.cloned().collect();
        if !is_true(&conditions, crate::api::condition::PUBLISHED) {
            context.queues.revocation.push(Key::of(&*revocation));
        }
    }
    Ok((fresh, good, Duration::from_secs(1)))
}

/// Revokes every live certificate whose identity is gone: no finalizer is needed, so also when this
/// process was down at the time or the whole namespace was wiped. The store only suggests; a
/// consistent list decides.
async fn revoke_orphans(context: &Context, key: &CaKey, now: Timestamp) -> Result<(), Error> {
    let mut suspects: BTreeMap<String, Vec<Issued>> = BTreeMap::new();
    context.ledger.read(key, |ledger| {
        for issued in ledger.live(now) {
            let holder = &issued.holder;
            let identity =
                context.stores.identities.get(&Key::new(&*holder.namespace, &*holder.name));
            let alive = identity.is_some_and(|i| i.metadata.uid.as_deref() == Some(&*holder.uid));
            if !alive {
                suspects.entry(holder.namespace.to_string()).or_default().push(issued.clone());
            }
        }
    });
    for (namespace, issued) in suspects {
        let api: Api<ClientIdentity> = Api::namespaced(context.client.clone(), &namespace);
        let present = match api.list(&ListParams::default()).await {
            Ok(list) => list.items,
            // A namespace that the operator may no longer look into: nothing is known, so nothing
            // is revoked.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                warn!(
                    namespace,
                    "may not list ClientIdentities; their certificates stay as they are"
                );
                continue;
            }
            Err(source) => {
                let object = format!("ClientIdentities of namespace {namespace}");
                return Err(Error::Read { object, source });
            }
        };
        let uids: HashSet<_> =
            present.iter().filter_map(|identity| identity.metadata.uid.as_deref()).collect();
        let adopted = adopted_serials(context, &namespace, &present);
        let gone: Vec<_> = issued
            .into_iter()
            .filter(|issued| !uids.contains(&*issued.holder.uid))
            .filter(|issued| !adopted.contains(&issued.serial))
            .collect();
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
        context.metrics.revoked.get_or_create(&label(&key.authority)).inc_by(gone.len() as u64);
        for issued in &gone {
            let holder = format!("{namespace}/{}", issued.holder.name);
            info!(serial = %issued.serial, holder, "revoked: the ClientIdentity is gone");
        }
    }
    Ok(())
}

/// Serials that a restored identity (same name, new UID) carries on in its Secret.
fn adopted_serials(
    context: &Context,
    namespace: &str,
    present: &[ClientIdentity],
) -> BTreeSet<Serial> {
    let names = present.iter().map(|identity| &identity.spec.secret_name);
    names
        .filter_map(|name| context.stores.secrets.get(&Key::new(namespace, name)))
        .filter(|secret| {
            // A Secret that a deleted identity still controls is being collected, not carried on.
            let owners = secret.metadata.owner_references.iter().flatten();
            let mut controllers = owners.filter(|owner| owner.controller == Some(true));
            controllers.all(|owner| {
                present.iter().any(|identity| Some(&owner.uid) == identity.metadata.uid.as_ref())
            })
        })
        .filter_map(|secret| {
            let annotations = secret.metadata.annotations.as_ref()?;
            annotations.get(annotation::SERIAL)?.parse().ok()
        })
        .collect()
}

/// Writes the status when it differs. A change of the counts alone waits for its interval; then the
/// time until that is returned.
async fn put_status(
    context: &Context,
    authority: &ClientAuthority,
    key: &CaKey,
    signing: Option<&Signing>,
    ready: Wanted,
    now: Timestamp,
) -> Result<Option<Duration>, Error> {
    let before = authority.status.clone().unwrap_or_default();
    let counts = context.ledger.read(key, |ledger| CertificateCounts {
        live: ledger.live(now).count() as i64,
        revoked: ledger.revoked_count(now) as i64,
    });
    let ca = signing.map(|signing| signing.ca.facts());
    let crl = signing.map(|signing| (&*signing.published.facts, signing.published.bytes));
    let warning = (!ready.status).then(|| (ready.reason, ready.message.clone()));
    let mut wanted = status(authority, key, ca, crl, counts, ready, now);
    if signing.is_none() {
        wanted.crl.clone_from(&before.crl);
    }
    if wanted == before {
        return Ok(None);
    }
    let only_counts = {
        let mut same = wanted.clone();
        same.certificates.clone_from(&before.certificates);
        same == before
    };
    let name = authority.name_any();
    if only_counts {
        let written = context.status_written.lock().expect("no holder of this lock panics");
        let since = written.get(&name).map(Instant::elapsed);
        if let Some(since) = since.filter(|since| *since < STATUS_INTERVAL) {
            return Ok(Some(STATUS_INTERVAL - since));
        }
    }
    let api: Api<ClientAuthority> = Api::all(context.client.clone());
    apply::status(&api, &name, &wanted).await?;
    context
        .status_written
        .lock()
        .expect("no holder of this lock panics")
        .insert(name, Instant::now());
    if let Some((reason, message)) = warning {
        let known = before.conditions.iter().find(|condition| condition.type_ == READY);
        if known.is_none_or(|known| known.reason != reason) {
            context.events.warning(authority, "Publish", reason, &message).await;
        }
    }
    Ok(None)
}
