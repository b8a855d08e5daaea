//! Keeps each identity's Secret.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt};
use tracing::info;

use super::adoption::adopt;
use super::context::{Context, Signing, index_key, revocation_keys};
use super::error::Error;
use super::material::{Found, add_keystores, gather_secret, private_key};
use super::queue::Outcome;
use super::settle::{put_status, settle, told, until};
use super::signing::sign;
use super::upkeep;
use crate::api::condition::truncate;
use crate::api::identity::Reason;
use crate::api::{ClientIdentity, annotation};
use crate::cluster::apply::write;
use crate::cluster::{FIELD_MANAGER, Key};
use crate::metrics::IssuanceLabels;
use crate::pki::Serial;
use crate::plan::identity::{AuthorityView, Decision, Issuance, Trigger, World, decide, holder};
use crate::plan::ledger::Issued;
use crate::plan::ledger::record::bounded_subject;
use crate::plan::material::{KeySource, Material};
use crate::plan::renewal::renewal;
use crate::plan::retry::{Repair, held_until, is_drifting, repair};
use crate::plan::scope::{self, Renewal, holds};
use crate::plan::secret::{
    Current, Rendered, SecretView, last_writer, present_chain, present_key, render_refresh,
    render_secret, view_metadata,
};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "identity";

/// While the garbage collector removes a predecessor's Secret.
const WAIT: Duration = Duration::from_secs(1);
/// The watch brings our own write long before this.
const CATCH_UP: Duration = Duration::from_secs(5);
/// While the CA of an authority is being read; it wakes its identities when it is.
const LOADING: Duration = Duration::from_secs(5);
/// A Secret that is not ours is not watched: somebody may have made room.
const FOREIGN: Duration = Duration::from_secs(60);

/// Reconciles one identity.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let Some(identity) = context.stores.identities.get(&key) else {
        context.forget(NAME, &key);
        // Its certificates must die: the authorities look for holders that are gone.
        for authority in context.stores.authorities.keys() {
            context.queues.authority.push(authority);
        }
        return Ok(Outcome::Settled);
    };
    if identity.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Settled);
    }
    if !context.is_current(NAME, &*identity) {
        return Ok(Outcome::After(CATCH_UP));
    }
    if context.is_loading(&identity.spec.authority_ref.name) {
        return Ok(Outcome::After(LOADING));
    }
    let signing = context.signing(&identity.spec.authority_ref.name);
    let retiring = signing.as_ref().map(|signing| signing.retiring()).unwrap_or_default();
    let namespace = context.stores.namespaces.get(&Key::cluster(&key.namespace));
    let namespace = namespace.as_deref().map(|namespace| &namespace.metadata);
    let now = Timestamp::now();
    if is_drifting(&identity, now)
        && let Some(wait) = upkeep::wait_for_look(&context, &key)
    {
        return Ok(Outcome::After(wait));
    }
    upkeep::record_retention(&context, &identity, now).await?;

    // Metadata is enough as long as nothing is to be written.
    let judge = |found: &Found| {
        decide(&gather(&context, &identity, namespace, signing.as_deref(), &retiring, found, now))
    };
    let mut found = gather_secret(&context, &identity, signing.as_deref(), now, false).await?;
    adopt(&context, &identity, &mut found, now).await?;
    let mut decision = judge(&found);
    if !found.whole && matches!(decision, Decision::Issue(_) | Decision::Refresh(_)) {
        found = gather_secret(&context, &identity, signing.as_deref(), now, true).await?;
        adopt(&context, &identity, &mut found, now).await?;
        decision = judge(&found);
    }

    match decision {
        Decision::Keep { current, renewal } => {
            let settled =
                !is_drifting(&identity, now) || upkeep::look(&context, &key, found.version.clone());
            if !settled {
                return Ok(Outcome::After(upkeep::LOOK));
            }
            // Without its CA at hand a chain and a bundle could not be checked.
            if let (Some(secret), Some(_)) = (&found.secret, &signing) {
                context.note_checked(key, secret);
            }
            if signing.is_some() {
                upkeep::record_certificate(&context, &identity, &current, now).await?;
            }
            settle(&context, &identity, &current, renewal, now).await
        }
        Decision::Refresh(current) => {
            // Not so when the authority has published another bundle.
            let by_others = !found.dressed
                || found.noted(annotation::BUNDLE) != Some(&current.bundle_hash)
                || (current.data_hash.is_none()
                    && found.noted(annotation::DATA_HASH).is_some()
                    && signing.as_ref().is_some_and(|s| s.bundle_hash == current.bundle_hash));
            let held = hold(&context, &identity, &found, by_others, Some(&current), now).await?;
            if let Some(wait) = held {
                return Ok(wait);
            }
            let signing = signing.expect("a bundle is published by an authority that can sign");
            let present = found.secret.expect("the Secret was read before it is refreshed");
            let private_key = present_key(&present).filter(|_| identity.spec.request.is_none());
            let mut material = Material {
                chain: present_chain(&present),
                key: private_key.as_ref(),
                bundle: &signing.bundle,
                keystores: None,
            };
            let lacks = add_keystores(&identity, &mut material, found.password.as_ref());
            info!("writing the Secret anew around its certificate");
            let wanted = render_refresh(&identity, present, &material);
            match write(&context.client, &wanted).await {
                Ok(written) => {
                    context.note_checked(key, &written);
                    let current = Current { lacks, ..current };
                    let renewal = renewal(&identity, &current);
                    settle(&context, &identity, &current, renewal, now).await
                }
                Err(error) => Err(told(&context, &identity, error.into(), true, now).await?),
            }
        }
        Decision::Issue(issuance) => {
            // A namespace that goes takes the Secret first: what is issued now nobody could keep.
            let again = issuance.trigger == Trigger::Missing && has_certificate(&identity);
            if again && is_terminating(&context, &key.namespace).await? {
                return Ok(Outcome::After(CATCH_UP));
            }
            let repairs = matches!(issuance.trigger, Trigger::Repair | Trigger::Missing);
            if let Some(wait) = hold(&context, &identity, &found, repairs, None, now).await? {
                return Ok(wait);
            }
            let good = matches!(
                issuance.trigger,
                Trigger::Renewal
                    | Trigger::Requested
                    | Trigger::Changed
                    | Trigger::AuthorityRotated
            );
            let still_good = good
                && identity
                    .status
                    .as_ref()
                    .and_then(|status| status.not_after.as_ref())
                    .is_some_and(|end| end.0 > now);
            let signing = signing.expect("only an authority that can sign leads to an issuance");
            let issued = issue_into(&context, &identity, &signing, issuance, found, now);
            match issued.await {
                Ok(current) => {
                    let renewal = renewal(&identity, &current);
                    settle(&context, &identity, &current, renewal, now).await
                }
                Err(error) => {
                    // A token that went is noticed here first.
                    if error.is_signing() {
                        let authority = &identity.spec.authority_ref.name;
                        context.queues.authority.push(Key::cluster(authority));
                    }
                    Err(told(&context, &identity, error, still_good, now).await?)
                }
            }
        }
        Decision::Refuse { reason, message, current } => {
            // What was superseded ends also while nothing new is issued.
            let certificates = upkeep::certificates(&context, &identity);
            let grace_ends = match &current {
                Some(current) => {
                    upkeep::revoke_superseded(&context, &identity, current, &certificates, now)
                        .await?
                }
                None => None,
            };
            let ready = Err((reason, message));
            put_status(&context, &identity, current.as_ref(), ready, None, None, now).await?;
            if let Some(end) = grace_ends {
                return Ok(Outcome::After(until(end, now)));
            }
            Ok(match (reason, current) {
                (Reason::SecretNotOwned, _) => Outcome::After(FOREIGN),
                // Its condition says that the certificate is valid.
                (Reason::NotAllowed, Some(current)) if current.not_after > now => {
                    Outcome::After(until(current.not_after, now))
                }
                _ => Outcome::Settled,
            })
        }
        Decision::Wait => Ok(Outcome::After(WAIT)),
    }
}

/// Must the Secret stay as it is for now, since an attempt has failed or another writer changes it again
/// and again? Then until when. Otherwise a repair is counted. `repairs` says that the Secret is not what
/// was written: by the hand of others, unless the spec has changed or nothing was written yet.
async fn hold(
    context: &Context,
    identity: &ClientIdentity,
    found: &Found,
    repairs: bool,
    current: Option<&Current>,
    now: Timestamp,
) -> Result<Option<Outcome>, Error> {
    let key = Key::of(identity);
    if let Some(next) = held_until(identity, now) {
        upkeep::look(context, &key, found.version.clone());
        return Ok(Some(Outcome::After(until(next, now))));
    }
    let status = identity.status.as_ref();
    let same_spec =
        status.is_some_and(|status| status.observed_generation == identity.metadata.generation);
    if !repairs || !same_spec || !has_certificate(identity) {
        return Ok(None);
    }
    let writer = found.secret.as_ref().and_then(|secret| last_writer(secret, FIELD_MANAGER));
    let failure = match repair(identity, upkeep::repairs(context, &key, now), writer, now) {
        Repair::Now => {
            upkeep::count_repair(context, &key, now);
            return Ok(None);
        }
        Repair::Hold(failure) => failure,
    };
    upkeep::look(context, &key, found.version.clone());
    let next = failure.next_try;
    let ready = Err((Reason::Drifted, failure.last.message.clone()));
    put_status(context, identity, current, ready, Some(failure), None, now).await?;
    Ok(Some(Outcome::After(until(next, now))))
}

fn gather<'a>(
    context: &Context,
    identity: &'a ClientIdentity,
    metadata: Option<&'a ObjectMeta>,
    signing: Option<&'a Signing>,
    retiring: &'a [u32],
    found: &Found,
    now: Timestamp,
) -> World<'a> {
    let namespace = identity.namespace().unwrap_or_default();
    let authority = &identity.spec.authority_ref.name;
    let uid = identity.metadata.uid.as_deref().unwrap_or_default();
    let serial = match &found.view {
        SecretView::Good(current) => Some(current.serial),
        _ => None,
    };
    let (issued_at, last_revision) = context.ledger.read_all(|books| {
        let issued = serial.and_then(|serial| books.values().find_map(|book| book.find(&serial)));
        let last_revision = books.values().map(|book| book.last_revision(uid)).max().unwrap_or(0);
        (issued.and_then(|issued| issued.issued_at), last_revision)
    });
    let (renewal, reserved) = match &found.view {
        SecretView::Good(current) => wanted_renewal(context, &Key::of(identity), current),
        _ => (Renewal::Unconcerned, 0),
    };
    World {
        identity,
        namespace: metadata,
        authority: match signing {
            Some(signing) => signing.view(retiring),
            None if context.stores.authorities.get(&Key::cluster(authority)).is_none() => {
                AuthorityView::NotFound
            }
            _ => AuthorityView::NotReady,
        },
        secret: found.view.clone(),
        rival: rival(context, identity, &namespace),
        hold: revocation_of(context, identity, &namespace, uid),
        revoked: serial.is_some_and(|serial| is_revoked(context, &serial)),
        to_be_revoked: renewal == Renewal::Wanted,
        issued_at,
        dressed: found.dressed,
        last_revision: last_revision.max(reserved),
        now,
    }
}

/// Is a certificate revoked? A serial is unique, whichever authority signed it.
fn is_revoked(context: &Context, serial: &Serial) -> bool {
    context.ledger.read_all(|books| books.values().any(|book| book.revocation(serial).is_some()))
}

/// What `CertificateRevocation`s want that are to revoke a certificate once another one is in place, and the
/// last revision that they concern: the other one has a higher one.
fn wanted_renewal(context: &Context, identity: &Key, current: &Current) -> (Renewal, u32) {
    let keys = revocation_keys(identity, &current.serial, &current.fingerprint);
    let named: Vec<_> =
        keys.iter().flat_map(|value| context.stores.revocations.find(value)).collect();
    if named.is_empty() {
        return (Renewal::Unconcerned, 0);
    }
    let (serial, home) = (&current.serial, &context.namespace);
    let wanted = context.ledger.read_all(|books| {
        let issued = books.values().find_map(|book| book.find(serial))?;
        let wanted = named.iter().map(|one| {
            let renewal = scope::renewal(one, issued, &current.fingerprint, home);
            let concerned = renewal == Renewal::Wanted;
            (renewal, if concerned { scope::last_revision(one) } else { 0 })
        });
        wanted.reduce(|all, one| (all.0.max(one.0), all.1.max(one.1)))
    });
    wanted.unwrap_or((Renewal::Unconcerned, 0))
}

/// The oldest identity that names a Secret owns it; the name decides between two of one second.
fn rival(context: &Context, identity: &ClientIdentity, namespace: &str) -> Option<String> {
    let age = |identity: &ClientIdentity| {
        (identity.metadata.creation_timestamp.as_ref().map(|time| time.0), identity.name_any())
    };
    let ours = age(identity);
    let others = context.stores.identities.find(&index_key(namespace, &identity.spec.secret_name));
    let oldest = others.iter().map(|other| age(other)).min()?;
    (oldest < ours).then_some(oldest.1)
}

/// A `CertificateRevocation` of all certificates of this very identity, not of an earlier one of its name.
fn revocation_of(
    context: &Context,
    identity: &ClientIdentity,
    namespace: &str,
    uid: &str,
) -> Option<String> {
    let key = index_key(namespace, &identity.name_any());
    let revocations = context.stores.revocations.find(&key);
    let hold = revocations.iter().find(|revocation| {
        let of = revocation.status.as_ref().and_then(|status| status.identity_uid.as_deref());
        holds(&revocation.spec) && of.is_none_or(|of| of == uid)
    })?;
    Some(hold.name_any())
}

/// Records the serial, signs, checks, and writes key pair and chain in one write.
async fn issue_into(
    context: &Context,
    identity: &ClientIdentity,
    signing: &Signing,
    issuance: Issuance,
    found: Found,
    now: Timestamp,
) -> Result<Current, Error> {
    let Found { secret: present, password, .. } = found;
    let serial = Serial::random();
    // The key of a certificate that was revoked, or is about to be, may be known to others.
    let noted = present.as_ref().and_then(|present| view_metadata(&present.metadata));
    let kept = present.as_ref().filter(|_| {
        let holder = Key::of(identity);
        noted.is_some_and(|noted| {
            !is_revoked(context, &noted.serial)
                && wanted_renewal(context, &holder, &noted).0 == Renewal::Unconcerned
        })
    });
    let key = private_key(&issuance.key, kept).await;
    let public_key = match &issuance.key {
        KeySource::Requested(request) => request.public_key_der.clone(),
        _ => key.as_ref().expect("whoever asks for no key gets one").public_key_der(),
    };
    let record = Issued {
        serial,
        revision: issuance.revision,
        not_after: issuance.not_after,
        holder: holder(identity),
        subject: bounded_subject(&issuance.profile.subject.to_rfc4514()),
        issued_at: Some(truncate(now)),
        supersedes: issuance.supersedes,
        retain: upkeep::retains(&identity.spec),
    };
    let (profile, not_before) = (&issuance.profile, issuance.not_before);
    let (issued, facts) =
        sign(&context.ledger, signing, record, profile, &public_key, not_before, now).await?;
    let active = signing.active();
    let mut material = Material {
        chain: active.ca.with_intermediates(&issued.der).into_bytes(),
        key: key.as_ref(),
        bundle: &signing.bundle,
        keystores: None,
    };
    let lacks = add_keystores(identity, &mut material, password.as_ref());
    let current = Current {
        serial,
        fingerprint: facts.fingerprint,
        not_before: facts.not_before,
        not_after: facts.not_after,
        revision: issuance.revision,
        spec_hash: issuance.spec_hash,
        generation: active.key.generation,
        bundle_hash: signing.bundle_hash.clone(),
        data_hash: None,
        public_key: None,
        lacks,
    };
    let rendered = Rendered { current: &current, material };
    let repaired = issuance.trigger == Trigger::Repair;
    let written = write(&context.client, &render_secret(identity, present, &rendered)).await?;
    context.note_checked(Key::of(identity), &written);
    upkeep::record_certificate(context, identity, &current, now).await?;

    let trigger = issuance.trigger.as_str();
    info!(trigger, %serial, revision = current.revision, not_after = %current.not_after, "issued");
    let labels = IssuanceLabels { authority: active.key.authority.to_string(), trigger };
    context.metrics.issued.get_or_create(&labels).inc();
    if repaired {
        let note = format!(
            "Secret {:?} did not hold what was issued; it was replaced by a new certificate",
            identity.spec.secret_name
        );
        context.events.warning(identity, "Issue", "SecretRepaired", &note).await;
    }
    // The counts in the authority's status follow at leisure.
    let authority = Key::cluster(&*active.key.authority);
    context.queues.authority.push_after(authority, super::authority::STATUS_INTERVAL);
    Ok(current)
}

fn has_certificate(identity: &ClientIdentity) -> bool {
    identity.status.as_ref().is_some_and(|status| status.serial_number.is_some())
}

async fn is_terminating(context: &Context, namespace: &str) -> Result<bool, Error> {
    let api: Api<Namespace> = Api::all(context.client.clone());
    let found = api
        .get_opt(namespace)
        .await
        .map_err(|source| Error::Read { object: format!("Namespace {namespace}"), source })?;
    Ok(found.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
}
