//! The CRL of each CA: is it in service, is another one due?

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tracing::{error, warn};

use super::context::{Ca, Context, Generation, Published};
use super::error::{Error, chain};
use super::publish::{Found, apart, has_parts, publish, read};
use crate::api::authority::CaState;
use crate::api::condition::{READY, Wanted};
use crate::api::{ClientAuthority, annotation, label};
use crate::cluster::Key;
use crate::cluster::apply::write;
use crate::metrics::{GuardLabels, generation};
use crate::pki::CertificateAuthority;
use crate::pki::authority::CaFacts;
use crate::plan::authority::{Reason, crl_url};
use crate::plan::crl::{Decision, World, decide};
use crate::plan::ledger::CaKey;
use crate::plan::publication::{COMPONENT, Scope, head_name};

/// Two looks at a CRL are at most this far apart.
const LONGEST: Duration = Duration::from_secs(600);
/// While a guard says no, it is looked after this time whether somebody put the ledger right.
pub(super) const GUARDED: Duration = Duration::from_secs(15);
/// A publication that failed is tried again after this time.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// While the root's key is kept elsewhere its CRL can't be renewed; from so long before its end on it
/// must.
const ROOT_CRL_ALARM: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The CRL of one CA after it was looked after.
pub(super) struct Kept {
    /// The published one.
    pub published: Published,
    /// Did this process or another one publish it since the last time?
    pub is_new: bool,
    /// What is wrong, if anything.
    pub trouble: Option<Wanted>,
    /// When to look again.
    pub next: Duration,
}

/// Publishes a CRL when one is due. `known` is the newest one that this process knows of.
pub(super) async fn keep(
    context: &Context,
    authority: &ClientAuthority,
    ca: &Ca,
    signer: &Arc<CertificateAuthority>,
    known: Option<&Published>,
    now: Timestamp,
) -> Result<Kept, Error> {
    let key = &ca.key;
    let (published, in_service) = match known {
        Some(known) => in_service(context, key, signer.facts(), known).await?,
        None => match read(context, key, signer.facts(), None).await? {
            Found::Crl(published) => (published, true),
            // An empty CRL exists before the first certificate is issued.
            Found::Nothing(version) => {
                let first = match due(context, authority, ca, signer, None, now).await {
                    Decision::Publish(first) => first,
                    Decision::Refuse(guard, message) => {
                        return Err(Error::Guard { reason: guard.reason(), message });
                    }
                    Decision::WaitUntil(_) => {
                        unreachable!("without a published CRL one is always due")
                    }
                };
                let published = publish(context, key, signer, None, version, first, now).await?;
                return Ok(kept(published, true, Duration::from_secs(1)));
            }
        },
    };
    let is_new = known.is_none_or(|known| known.facts.number != published.facts.number);
    let current = Some((&published, in_service));
    let publication = match due(context, authority, ca, signer, current, now).await {
        Decision::WaitUntil(due) => {
            let wait = Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO);
            return Ok(kept(published, is_new, wait));
        }
        Decision::Refuse(guard, message) => {
            let trouble = Wanted::no(READY, guard.reason().as_str(), message);
            let kept = kept(published, is_new, GUARDED);
            return Ok(Kept { trouble: Some(trouble), ..kept });
        }
        Decision::Publish(publication) => publication,
    };
    let missing = !publication.added.is_empty();
    let version = published.resource_version.clone();
    match publish(context, key, signer, Some(&published), version, publication, now).await {
        Ok(published) => Ok(kept(published, true, Duration::from_secs(1))),
        Err(error) if error.is_conflict() => Err(error),
        // The one in service goes on: that it is not renewed must be told, not stop the rest.
        Err(error) => {
            let left = published.facts.next_update.duration_since(now);
            let quiet = ca.state == CaState::Root && !missing && left > ROOT_CRL_ALARM;
            let message = format!(
                "the CRL of generation {} was not published: {}",
                key.generation,
                chain(&error)
            );
            let trouble = Wanted::no(READY, Reason::CrlFailed.as_str(), message);
            Ok(Kept {
                trouble: (!quiet).then_some(trouble),
                ..kept(published, is_new, if quiet { LONGEST } else { RETRY })
            })
        }
    }
}

fn kept(published: Published, is_new: bool, next: Duration) -> Kept {
    Kept { published, is_new, trouble: None, next }
}

/// The newest CRL, under the version that stands in the cluster, and whether it is what stands there.
/// It is read again when the watch shows another version. Of two publishers the later CRL counts; an
/// older one that somebody put back, or none, does not.
async fn in_service(
    context: &Context,
    key: &CaKey,
    ca: &CaFacts,
    ours: &Published,
) -> Result<(Published, bool), Error> {
    let name = Key::new(&context.namespace, head_name(key, Scope::Full));
    let seen = context.stores.crls.get(&name).and_then(|crl| crl.metadata.resource_version.clone());
    let ours = ours.clone();
    if seen.is_some() && seen == ours.resource_version {
        let whole = has_parts(context, &ours.parts);
        return Ok((ours, whole));
    }
    Ok(match read(context, key, ca, Some(&ours)).await? {
        Found::Crl(found) if found.facts.number >= ours.facts.number => {
            let same = found.facts.number == ours.facts.number;
            (
                Published {
                    at: ours.at,
                    followed: same.then_some(ours.followed).flatten(),
                    ..found
                },
                true,
            )
        }
        Found::Crl(Published { resource_version, .. }) | Found::Nothing(resource_version) => {
            (Published { resource_version, ..ours }, false)
        }
    })
}

/// Notes on the CRLs of a CA that nobody trusts any more that it is so: they are served on, and the gate
/// lets nobody in by them.
pub(super) async fn retire(context: &Context, key: &CaKey) -> Result<(), Error> {
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.namespace);
    let CaKey { authority, generation } = key;
    let selector = format!(
        "{}={COMPONENT},{}={authority},{}={generation}",
        label::COMPONENT,
        label::AUTHORITY,
        label::GENERATION
    );
    let failed = |source| Error::Read { object: format!("CRLs of {key}"), source };
    let heads = api.list_metadata(&ListParams::default().labels(&selector)).await;
    for head in heads.map_err(failed)? {
        // One by one: a head may hold a megabyte.
        let Some(mut crl) = api.get_opt(&head.name_any()).await.map_err(failed)? else { continue };
        let annotations = crl.metadata.annotations.get_or_insert_default();
        let removed = CaState::Removed.as_str().to_owned();
        annotations.insert(annotation::STATE.to_owned(), removed);
        crl.metadata.managed_fields = None;
        write(&context.client, &crl).await?;
    }
    Ok(())
}

/// Decides whether a CRL is due. `published` is the newest one, and whether it stands in the cluster.
/// Before a guard says no the ledger is read again: another replica may have appended what is missing.
async fn due(
    context: &Context,
    authority: &ClientAuthority,
    ca: &Ca,
    signer: &CertificateAuthority,
    published: Option<(&Published, bool)>,
    now: Timestamp,
) -> Decision {
    let decide = || due_by_view(context, authority, ca, signer, published, now);
    let decision = decide().await;
    if !matches!(decision, Decision::Refuse(..)) {
        return decision;
    }
    let key = &ca.key;
    if let Err(error) = context.ledger.refresh(key).await {
        warn!(%key, error = chain(&error), "could not read the ledger again");
    }
    let decision = decide().await;
    if let Decision::Refuse(guard, message) = &decision {
        error!(%key, message, "the CRL is not published");
        let authority = key.authority.to_string();
        let labels = GuardLabels { authority, guard: guard.reason().as_str() };
        context.metrics.crl_guard_trips.get_or_create(&labels).inc();
    }
    decision
}

async fn due_by_view(
    context: &Context,
    authority: &ClientAuthority,
    ca: &Ca,
    signer: &CertificateAuthority,
    published: Option<(&Published, bool)>,
    now: Timestamp,
) -> Decision {
    let spec = &authority.spec.crl;
    let seconds =
        |duration: crate::api::duration::Duration| SignedDuration::from_secs(duration.as_secs());
    let split = authority.spec.self_signed.as_ref().and_then(|spec| spec.intermediate.as_ref());
    let (validity, refresh) = match split.filter(|_| ca.state == CaState::Root) {
        Some(split) => (seconds(split.root_crl_validity), seconds(split.root_crl_validity) / 12),
        None => (seconds(spec.validity), seconds(spec.refresh)),
    };
    // A root's certificates are few: no delta CRL goes with its CRL.
    let delta = crate::plan::delta::url_base(spec).ok().flatten();
    let delta = delta.filter(|_| ca.state != CaState::Root);
    let freshest = delta.map(|base| crl_url(base, &ca.key, Scope::Delta));
    let (ledger, key, ca_not_after) =
        (context.ledger.clone(), ca.key.clone(), signer.facts().not_after);
    let in_service = published.is_some_and(|(_, in_service)| in_service);
    let published_at = published.and_then(|(published, _)| published.at);
    let facts = published.map(|(published, _)| published.facts.clone());
    let published_position = published.and_then(|(published, _)| published.ledger_position);
    // A million of each are compared.
    apart(move || {
        ledger.view(&key, |ledger, health| {
            decide(&World {
                ledger,
                trouble: health.trouble.as_deref(),
                position: health.position,
                published_position,
                published: facts.as_deref(),
                in_service,
                published_at,
                validity,
                refresh,
                freshest: freshest.as_deref(),
                ca_not_after,
                now,
            })
        })
    })
    .await
}

/// Shows the CRL of each trusted CA in the metrics, also one that an earlier process published.
pub(super) fn measure(context: &Context, cas: &[Ca], generations: &[Generation]) {
    let metrics = &context.metrics;
    let families = [
        &metrics.crl_entries,
        &metrics.crl_bytes,
        &metrics.crl_this_update,
        &metrics.crl_next_update,
    ];
    for ca in cas {
        let label = generation(&ca.key.authority, ca.key.generation);
        let Some(one) = generations.iter().find(|one| one.key == ca.key) else {
            // Nobody shall be woken by the age of a CRL that nobody needs.
            for family in families {
                family.remove(&label);
            }
            continue;
        };
        let Published { facts, bytes, .. } = &one.published;
        let values = [
            facts.serials.len() as i64,
            *bytes as i64,
            facts.this_update.as_second(),
            facts.next_update.as_second(),
        ];
        for (family, value) in families.iter().zip(values) {
            family.get_or_create(&label).set(value);
        }
    }
}
