//! Keeps each identity's Secret.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, ResourceExt};
use tracing::{debug, info};

use super::context::{Context, Signing, index_key};
use super::error::{Error, chain};
use super::queue::Outcome;
use crate::api::condition::{READY, is_true};
use crate::api::identity::Reason;
use crate::api::{ClientIdentity, ClientIdentityStatus};
use crate::cluster::Key;
use crate::cluster::apply::{self, write};
use crate::metrics::IssuanceLabels;
use crate::pki::issue::{IssueRequest, issue};
use crate::pki::verify::verify_issued;
use crate::pki::{KeyType, PrivateKey, Serial};
use crate::plan::authority::crl_url;
use crate::plan::identity::{
    AuthorityView, Decision, Issuance, Signer, Trigger, World, decide, holder, renewal, status,
};
use crate::plan::ledger::{Issued, Record};
use crate::plan::secret::{
    Current, Rendered, SecretView, ownership, render_bundle, render_secret, view_metadata,
    view_secret,
};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "identity";

/// While the garbage collector removes a predecessor's Secret.
const WAIT: Duration = Duration::from_secs(1);
/// The watch brings our own write long before this.
const CATCH_UP: Duration = Duration::from_secs(5);
/// A Secret that another hand keeps changing or deleting is put right so often in this time, not more.
const REPAIRS: (u32, Duration) = (5, Duration::from_secs(60));
/// While the CA of an authority is being read; it wakes its identities when it is.
const LOADING: Duration = Duration::from_secs(5);
/// A Secret that is not ours is not watched: somebody may have made room.
const FOREIGN: Duration = Duration::from_secs(60);
/// Two looks at an identity are at most this far apart.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

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
    let now = Timestamp::now();

    // Metadata is enough as long as nothing is to be written.
    let (view, mut present, whole) =
        gather_secret(&context, &identity, signing.as_deref(), now, false).await?;
    let mut decision =
        decide(&gather(&context, &identity, signing.as_deref(), &retiring, view, now));
    if !whole && matches!(decision, Decision::Issue(_) | Decision::Refresh(_)) {
        let (view, read, _) =
            gather_secret(&context, &identity, signing.as_deref(), now, true).await?;
        present = read;
        decision = decide(&gather(&context, &identity, signing.as_deref(), &retiring, view, now));
    }

    match decision {
        Decision::Keep { current, renewal } => {
            // Without its CA at hand a chain and a bundle could not be checked.
            if let (Some(secret), Some(_)) = (&present, &signing) {
                context.note_checked(key, secret);
            }
            put_status(&context, &identity, Some(&current), Ok(()), now).await?;
            Ok(Outcome::After(until(renewal, now)))
        }
        Decision::Refresh(current) => {
            if let Some(wait) = repair_wait(&context, &key) {
                return Ok(Outcome::After(wait));
            }
            let signing = signing.expect("a bundle is published by an authority that can sign");
            let present = present.expect("the Secret was read before its bundle is replaced");
            info!("replacing the trust bundle");
            let written = write(&context.client, &render_bundle(present, &signing.bundle)).await?;
            context.note_checked(key, &written);
            put_status(&context, &identity, Some(&current), Ok(()), now).await?;
            Ok(Outcome::After(CATCH_UP))
        }
        Decision::Issue(issuance) => {
            if matches!(issuance.trigger, Trigger::Repair | Trigger::Missing)
                && let Some(wait) = repair_wait(&context, &key)
            {
                return Ok(Outcome::After(wait));
            }
            // A namespace that goes takes the Secret first: what is issued now nobody could keep.
            let again = issuance.trigger == Trigger::Missing && has_certificate(&identity);
            if again && is_terminating(&context, &key.namespace).await? {
                return Ok(Outcome::After(CATCH_UP));
            }
            let still_good = matches!(issuance.trigger, Trigger::Renewal | Trigger::Changed)
                && identity
                    .status
                    .as_ref()
                    .and_then(|status| status.not_after.as_ref())
                    .is_some_and(|end| end.0 > now);
            let signing = signing.expect("only an authority that can sign leads to an issuance");
            let issued = issue_into(&context, &identity, &signing, issuance, present, now).await;
            match issued {
                Ok(current) => {
                    put_status(&context, &identity, Some(&current), Ok(()), now).await?;
                    let renewal = renewal(&identity, &current);
                    Ok(Outcome::After(until(renewal, now)))
                }
                Err(error) => {
                    // What fails for a moment is not told as long as the present certificate is good.
                    if (error.is_refusal() || (!still_good && !error.is_conflict()))
                        && !has_reason(&identity, Reason::IssuanceFailed)
                    {
                        let ready = Err((Reason::IssuanceFailed, chain(&error)));
                        put_status(&context, &identity, None, ready, now).await?;
                    }
                    Err(error)
                }
            }
        }
        Decision::Refuse { reason, message, current } => {
            let ready = Err((reason, message));
            put_status(&context, &identity, current.as_ref(), ready, now).await?;
            Ok(if reason == Reason::SecretNotOwned {
                Outcome::After(FOREIGN)
            } else {
                Outcome::Settled
            })
        }
        Decision::Wait => Ok(Outcome::After(WAIT)),
    }
}

/// Reads the Secret, or, when its data is known to be what its annotations say, only these. Also tells
/// whether it was read whole.
async fn gather_secret(
    context: &Context,
    identity: &ClientIdentity,
    signing: Option<&Signing>,
    now: Timestamp,
    whole: bool,
) -> Result<(SecretView, Option<Secret>, bool), Error> {
    let namespace = identity.namespace().unwrap_or_default();
    let name = &identity.spec.secret_name;
    let seen = context.stores.secrets.get(&Key::new(&namespace, name));
    if let Some(seen) = seen.filter(|seen| !whole && context.is_checked(&Key::of(identity), seen))
        && ownership(identity, &seen.metadata).is_none()
        && let Some(current) = view_metadata(&seen.metadata)
    {
        return Ok((SecretView::Good(current), None, false));
    }
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let secret = api
        .get_opt(name)
        .await
        .map_err(|source| Error::Read { object: format!("Secret {namespace}/{name}"), source })?;
    let generations = signing.map(|signing| signing.generations.as_slice()).unwrap_or_default();
    let trusted: Vec<_> = generations.iter().map(|one| &*one.ca).collect();
    let view = view_secret(identity, secret.as_ref(), &trusted, now);
    Ok((view, secret, true))
}

fn gather<'a>(
    context: &Context,
    identity: &'a ClientIdentity,
    signing: Option<&'a Signing>,
    retiring: &'a [u32],
    secret: SecretView,
    now: Timestamp,
) -> World<'a> {
    let namespace = identity.namespace().unwrap_or_default();
    let authority = &identity.spec.authority_ref.name;
    let uid = identity.metadata.uid.as_deref().unwrap_or_default();
    let serial = match &secret {
        SecretView::Good(current) => Some(current.serial),
        _ => None,
    };
    let (revoked, last_revision) = context.ledger.read_all(|books| {
        // A serial is unique, whichever authority signed it.
        let revoked = serial
            .is_some_and(|serial| books.values().any(|book| book.revocation(&serial).is_some()));
        (revoked, books.values().map(|book| book.last_revision(uid)).max().unwrap_or(0))
    });
    World {
        identity,
        authority: match signing {
            Some(signing) => AuthorityView::Ready(Signer {
                key: &signing.active().key,
                facts: signing.active().ca.facts(),
                bundle_hash: &signing.bundle_hash,
                crl_base: signing.crl_base.as_deref(),
                active_since: signing.active().since,
                reissue_within: signing.reissue_within,
                retiring,
            }),
            None if context.stores.authorities.get(&Key::cluster(authority)).is_none() => {
                AuthorityView::NotFound
            }
            None => AuthorityView::NotReady,
        },
        secret,
        rival: rival(context, identity, &namespace),
        hold: hold(context, identity, &namespace, uid),
        revoked,
        last_revision,
        now,
    }
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

/// A `CertificateRevocation` of this very identity, not of an earlier one of its name.
fn hold(
    context: &Context,
    identity: &ClientIdentity,
    namespace: &str,
    uid: &str,
) -> Option<String> {
    let key = index_key(namespace, &identity.name_any());
    let revocations = context.stores.revocations.find(&key);
    let hold = revocations.iter().find(|revocation| {
        let of = revocation.status.as_ref().and_then(|status| status.identity_uid.as_deref());
        of.is_none_or(|of| of == uid)
    })?;
    Some(hold.name_any())
}

/// Counts a repair; tells how long to wait when there were too many.
fn repair_wait(context: &Context, key: &Key) -> Option<Duration> {
    let (most, window) = REPAIRS;
    let mut repaired = context.repaired.lock().expect("no holder of this lock panics");
    let (count, since) = repaired.entry(key.clone()).or_insert((0, Instant::now()));
    let age = since.elapsed();
    if age > window {
        (*count, *since) = (0, Instant::now());
    } else if *count >= most {
        return Some(window - age);
    }
    *count += 1;
    None
}

/// Records the serial, signs, checks, and writes key pair and chain in one write.
async fn issue_into(
    context: &Context,
    identity: &ClientIdentity,
    signing: &Signing,
    issuance: Issuance,
    present: Option<Secret>,
    now: Timestamp,
) -> Result<Current, Error> {
    let (serial, key) = (Serial::random(), PrivateKey::generate(KeyType::EcdsaP256));
    let record = Record::Issued(Issued {
        serial,
        revision: issuance.revision,
        not_after: issuance.not_after,
        holder: holder(identity),
    });
    // Before the signature exists: a certificate that nobody recorded could not be revoked.
    let active = signing.active();
    context.ledger.record(&active.key, vec![record]).await?;

    let public_key = key.public_key_der();
    let url = signing.crl_base.as_ref().map(|base| crl_url(base, &active.key));
    let request = IssueRequest {
        profile: &issuance.profile,
        public_key_der: &public_key,
        serial,
        not_before: issuance.not_before,
        not_after: issuance.not_after,
        crl_url: url.as_deref(),
    };
    let issued = issue(&active.ca, &request)?;
    let intermediates = active.ca.intermediates();
    let facts = verify_issued(&issued.der, &request, intermediates, &signing.roots, now)?;
    let current = Current {
        serial,
        fingerprint: facts.fingerprint,
        not_before: facts.not_before,
        not_after: facts.not_after,
        revision: issuance.revision,
        spec_hash: issuance.spec_hash,
        generation: active.key.generation,
        bundle_hash: signing.bundle_hash.clone(),
    };
    let rendered = Rendered {
        current: &current,
        certificate: active.ca.with_intermediates(&issued.der),
        key: &key,
        bundle: &signing.bundle,
    };
    let repaired = issuance.trigger == Trigger::Repair;
    let written = write(&context.client, &render_secret(identity, present, &rendered)).await?;
    context.note_checked(Key::of(identity), &written);

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

/// Writes the status when it differs, and tells of a reason that is new.
async fn put_status(
    context: &Context,
    identity: &ClientIdentity,
    current: Option<&Current>,
    ready: Result<(), (Reason, String)>,
    now: Timestamp,
) -> Result<(), Error> {
    let before = identity.status.clone().unwrap_or_default();
    let wanted: ClientIdentityStatus = status(identity, current, ready.clone(), now);
    if wanted == before {
        return Ok(());
    }
    let namespace = identity.namespace().unwrap_or_default();
    let api: Api<ClientIdentity> = Api::namespaced(context.client.clone(), &namespace);
    let written = apply::status(&api, &identity.name_any(), &wanted).await?;
    context.wrote(NAME, &written);
    if let Err((reason, message)) = ready {
        let known = before.conditions.iter().find(|condition| condition.type_ == READY);
        if known.is_none_or(|known| known.reason != reason.as_str()) {
            info!(reason = reason.as_str(), message, "not ready");
            context.events.warning(identity, "Issue", reason.as_str(), &message).await;
        }
    } else if !is_true(&before.conditions, READY) {
        debug!("ready");
    }
    Ok(())
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

/// A message may differ each time; writing it each time would wake the identity each time.
fn has_reason(identity: &ClientIdentity, reason: Reason) -> bool {
    let mut conditions = identity.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|c| c.type_ == READY && c.reason == reason.as_str())
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    let wait = Duration::try_from(time.duration_since(now)).unwrap_or(Duration::ZERO);
    // Whole seconds and one more: never awake just before the renewal is due.
    wait.min(LONGEST) + Duration::from_secs(1)
}
