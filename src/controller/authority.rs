//! Keeps each authority's CA, has its CRL published, and tells of both in status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use tracing::{error, info};

use super::context::{Context, Published, Signing};
use super::crl::{self, Found};
use super::error::{Error, chain};
use super::orphans::revoke_orphans;
use super::queue::Outcome;
use crate::api::ClientAuthority;
use crate::api::authority::CertificateCounts;
use crate::api::condition::{PUBLISHED, READY, Wanted, is_true, truncate};
use crate::cluster::Key;
use crate::cluster::apply::{self, write};
use crate::metrics::authority as label;
use crate::pki::authority::{CaParams, NameConstraints};
use crate::pki::name::{Attribute, Name};
use crate::pki::{CertificateAuthority, KeyType, PrivateKey, Serial};
use crate::plan::authority::{
    BACKDATE, Decision, Reason, World, crl_name, crl_url, decide, render_secret, secret_name,
    status,
};
use crate::plan::crl as crl_plan;
use crate::plan::ledger::CaKey;

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
    // Whatever fails there must not keep a CRL from being published: an expired one shuts out all.
    let orphans = revoke_orphans(&context, &ca_key, now).await;
    let (signing, ready, next) = publish(&context, &authority, signing, now).await?;
    let wait = put_status(&context, &authority, &ca_key, Some(&signing), ready, now).await?;
    orphans?;
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
    let found = crl::read(context, key).await?;
    let known_before = authority.status.as_ref().is_some_and(|s| !s.generations.is_empty());
    let was_in_use = known_before
        || matches!(found, Found::Crl(_))
        || context.ledger.read(key, |ledger| !ledger.is_empty());

    let decision = decide(&World { key, secret: secret.as_ref(), was_in_use, now });
    let ca = match decision {
        Decision::Refuse(refusal) => return Ok(Err(refusal)),
        Decision::Use(ca) => *ca,
        Decision::Mint => {
            let private_key = Arc::new(PrivateKey::generate(KeyType::EcdsaP256));
            let ca = mint(authority, private_key.clone(), now)?;
            let mut wanted = render_secret(key, ca.certificate_pem(), &private_key);
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
    let published = match found {
        Found::Crl(published) => {
            crl::measure(context, key, &published);
            published
        }
        // An empty CRL exists before the first certificate is issued.
        Found::Nothing(version) => {
            let due = crl::due(context, authority, key, &ca, None, now);
            let crl_plan::Decision::Publish(first) = due else {
                unreachable!("without a published CRL one is always due");
            };
            crl::publish(context, key, &ca, version, &first, now).await?
        }
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

fn mint(
    authority: &ClientAuthority,
    key: Arc<PrivateKey>,
    now: Timestamp,
) -> Result<CertificateAuthority, Error> {
    let spec = &authority.spec.self_signed;
    let lifetime = SignedDuration::from_secs(spec.duration.as_secs());
    let organization = spec.organization.iter().map(|o| (Attribute::Organization, o.clone()));
    let common_name = [(Attribute::CommonName, spec.common_name.clone())];
    let params = CaParams {
        subject: &Name(organization.chain(common_name).collect()),
        path_length: 0,
        name_constraints: &NameConstraints::default(),
        crl_url: None,
        serial: Serial::random(),
        not_before: truncate(now - BACKDATE),
        not_after: truncate(now.saturating_add(lifetime).unwrap_or(Timestamp::MAX)),
    };
    Ok(CertificateAuthority::self_signed(&params, key)?)
}

/// Publishes a CRL when one is due; tells what the Ready condition says and when to look again.
async fn publish(
    context: &Context,
    authority: &ClientAuthority,
    signing: Arc<Signing>,
    now: Timestamp,
) -> Result<(Arc<Signing>, Wanted, Duration), Error> {
    let good = "the CA can sign and its CRL is published";
    let good = Wanted::yes(READY, Reason::Ready.as_str(), good);
    let (key, ca) = (&signing.key, &signing.ca);
    let (published, in_service) = in_service(context, &signing).await?;
    let known = Some((&published, in_service));
    let publication = match crl::due(context, authority, key, ca, known, now) {
        crl_plan::Decision::WaitUntil(due) => {
            let wait = Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO);
            if published.resource_version == signing.published.resource_version {
                return Ok((signing, good, wait));
            }
            // Another process published it: its revocations are in force, so they are in ours.
            let newer = published.facts.number != signing.published.facts.number;
            let taken = Arc::new(Signing { published, ..(*signing).clone() });
            keep(context, taken.clone());
            if newer {
                wake_trusts(context, &taken.key.authority);
            }
            return Ok((taken, good, wait));
        }
        crl_plan::Decision::Refuse(message) => {
            error!(message, "the CRL is not published");
            context.metrics.crl_guard_trips.get_or_create(&label(&key.authority)).inc();
            let refused = Wanted::no(READY, Reason::ShrinkGuard.as_str(), message);
            return Ok((signing, refused, LONGEST));
        }
        crl_plan::Decision::Publish(publication) => publication,
    };
    let version = published.resource_version;
    let published = match crl::publish(context, key, ca, version, &publication, now).await {
        Ok(published) => published,
        Err(error) => {
            if !error.is_conflict() {
                let message = format!("the CRL was not published: {}", chain(&error));
                let refused = Wanted::no(READY, Reason::CrlFailed.as_str(), message);
                put_status(context, authority, key, Some(&signing), refused, now).await?;
            }
            return Err(error);
        }
    };
    let fresh = Arc::new(Signing { published, ..(*signing).clone() });
    keep(context, fresh.clone());
    wake_trusts(context, &fresh.key.authority);
    for revocation in context.stores.revocations.list() {
        let status = revocation.status.as_ref();
        if !status.is_some_and(|status| is_true(&status.conditions, PUBLISHED)) {
            context.queues.revocation.push(Key::of(&*revocation));
        }
    }
    Ok((fresh, good, Duration::from_secs(1)))
}

/// The newest CRL, under the version that stands in the cluster, and whether it is what stands there.
/// It is read again when the watch shows another version. Of two publishers the later CRL counts; an
/// older one that somebody put back, or none, does not.
async fn in_service(context: &Context, signing: &Signing) -> Result<(Published, bool), Error> {
    let name = Key::new(&context.namespace, crl_name(&signing.key));
    let seen = context.stores.crls.get(&name).and_then(|crl| crl.metadata.resource_version.clone());
    let ours = signing.published.clone();
    if seen.is_some() && seen == ours.resource_version {
        return Ok((ours, true));
    }
    Ok(match crl::read(context, &signing.key).await? {
        Found::Crl(found) if found.facts.number >= ours.facts.number => {
            (Published { at: ours.at, ..found }, true)
        }
        Found::Crl(Published { resource_version, .. }) | Found::Nothing(resource_version) => {
            (Published { resource_version, ..ours }, false)
        }
    })
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
