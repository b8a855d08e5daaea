//! Keeps each authority's CAs, has their CRLs published, and tells of both in status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kube::{Api, ResourceExt};
use rustls_pki_types::CertificateDer;
use tracing::warn;

use super::bundle::keep as keep_bundles;
use super::context::{Allowed, Ca, Context, Generation, Signing};
use super::crl;
use super::delta;
use super::error::{Error, chain};
use super::generations;
use super::orphans::revoke_orphans;
use super::queue::Outcome;
use super::shards;
use crate::api::ClientAuthority;
use crate::api::authority::{CaState, CertificateCounts};
use crate::api::condition::{PUBLISHED, READY, ROTATING, Wanted, is_true};
use crate::cluster::Key;
use crate::cluster::apply;
use crate::metrics::authority as label;
use crate::pki::crl::CrlError;
use crate::pki::{CertificateAuthority, certificate_pem, hex, sha256_hex};
use crate::plan::authority::{CrlView, GenerationView, Reason, status};
use crate::plan::headroom;
use crate::plan::rotation::{Decision, World, decide};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "authority";

/// Counts in status are at most this old.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Two looks at an authority are at most this far apart.
const LONGEST: Duration = Duration::from_secs(600);
/// An imported CA's Secret carries no label of ours, so it is not watched.
const LOOK_AT_SOURCE: Duration = Duration::from_secs(60);
/// While a backup is being restored.
const RESTORING: Duration = Duration::from_secs(15);
/// While a new trust bundle spreads.
const SPREADING: Duration = Duration::from_secs(2);
/// A token that works is looked at after this time: one that went shall be known before it is needed.
const LOOK_AT_TOKEN: Duration = Duration::from_secs(30);
/// A token that is away may come back.
const TOKEN_AWAY: Duration = Duration::from_secs(5);
/// More steps than this are not taken at once.
const STEPS: usize = 8;

/// Reconciles one authority.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let Some(authority) = context.stores.authorities.get(&key) else {
        forget(&context, &key);
        return Ok(Outcome::Settled);
    };
    if authority.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Settled);
    }
    // Before anything can fail: what is no longer allowed must not be signed meanwhile.
    let allowed = allowed(&context, &authority);
    let now = Timestamp::now();
    let (cas, mut decision) = rotate(&context, &authority, now).await?;
    let stopped = decision.active.as_ref().ok().and_then(|number| stopped(&cas, *number));
    let crls = keep_crls(&context, &authority, &cas, now).await;

    // Whatever fails there must not keep a CRL from being published: an expired one shuts out all.
    let mut orphans = Ok(false);
    for ca in cas.iter().filter(|ca| ca.state != CaState::Root) {
        let revoked = revoke_orphans(&context, &ca.key, now).await;
        orphans = orphans.and_then(|waited| revoked.map(|waits| waits || waited));
    }
    let crls = match crls {
        // Not even its first CRL could be signed.
        Err(error) if stopped.is_some() && context.signing(&key.name).is_none() => {
            warn!(error = chain(&error), "no CRL is published yet");
            Crls { next: LONGEST, ..Crls::default() }
        }
        other => other?,
    };
    let Crls { generations, sound, is_new, trouble, next } = crls;
    crl::measure(&context, &cas, &generations);
    let signing = match &decision.active {
        Ok(number) => signing(&authority, generations, *number, stopped.is_none(), allowed.clone()),
        Err(_) => None,
    };
    let has_stopped = stopped.is_some();
    let mut ready = match (&decision.active, stopped.or(trouble)) {
        (Err(refusal), _) => refusal.clone(),
        (Ok(_), Some(trouble)) => trouble,
        (Ok(_), None) if let Err(error) = &allowed.policy => {
            let message = format!("{error}; no certificate is signed until this is put right");
            Wanted::no(READY, Reason::InvalidAllow.as_str(), message)
        }
        (Ok(_), None) => {
            let good = "the CA can sign and its CRL is published";
            Wanted::yes(READY, Reason::Ready.as_str(), good)
        }
    };
    // A shard is there before the first certificate names it. Later on those who wait for the complete CRL
    // are told of it first.
    let keep_shards = || shards::keep(&context, &authority, &sound, now);
    let is_first = context.signing(&key.name).is_none();
    let first = if is_first { Some(keep_shards().await) } else { None };
    match &signing {
        Some(signing) => take_over(&context, &key.name, signing.clone(), is_new),
        None => forget(&context, &key),
    }
    let mut wait = next.min(LONGEST);
    let divided = match first {
        Some(divided) => divided,
        None => keep_shards().await,
    };
    let followed = delta::keep(&context, &authority, &sound, now).await;
    match divided.and_then(|next| followed.map(|()| next)) {
        Ok(next) => wait = wait.min(next),
        Err(error) if error.is_conflict() => return Err(error),
        Err(error) => {
            wait = wait.min(crl::RETRY);
            if ready.status {
                let message =
                    format!("a CRL beside the complete one was not published: {}", chain(&error));
                ready = Wanted::no(READY, Reason::CrlFailed.as_str(), message);
            }
        }
    }
    if authority.spec.secret_ref.is_some() {
        wait = wait.min(LOOK_AT_SOURCE);
    }
    if cas.iter().any(|ca| ca.state == CaState::Prepared) {
        wait = wait.min(SPREADING);
    }
    if has_stopped || ready.reason == Reason::TokenUnavailable.as_str() {
        wait = wait.min(TOKEN_AWAY);
    } else if cas.iter().any(|ca| ca.in_token) {
        wait = wait.min(LOOK_AT_TOKEN);
    }
    if let Some(next) = decision.next {
        let until = Duration::try_from(next.duration_since(now)).unwrap_or(Duration::ZERO);
        wait = wait.min(until + Duration::from_secs(1));
    }
    decision.rotating.type_ = ROTATING;
    let mut conditions = vec![ready, decision.rotating];
    let crl = signing.as_ref().map(|signing| {
        let published = &signing.active().published;
        let secret_bytes = signing.secret_bytes(context.stores.crl_copies(&key.name));
        CrlView { facts: &published.facts, bytes: published.bytes, secret_bytes }
    });
    if let Some(CrlView { secret_bytes: bytes, .. }) = crl {
        context
            .metrics
            .crl_headroom
            .get_or_create(&label(&key.name))
            .set(headroom::bytes_left(bytes));
        conditions.push(headroom::condition(bytes, authority.spec.crl.max_entries));
    }
    if let Some((told, again)) = keep_bundles(&context, &authority, now) {
        wait = wait.min(again.unwrap_or(LONGEST));
        conditions.push(told);
    }
    let later = put_status(&context, &authority, &cas, crl, &conditions, now).await?;
    if orphans? {
        wait = wait.min(RESTORING);
    }
    Ok(Outcome::After(wait.min(later.unwrap_or(LONGEST))))
}

/// Takes the steps that are due, and returns the CAs as they are then.
async fn rotate(
    context: &Context,
    authority: &ClientAuthority,
    now: Timestamp,
) -> Result<(Arc<Vec<Ca>>, Decision), Error> {
    let name = authority.name_any();
    let (source, imported) = generations::source(context, authority).await?;
    let mut cas = generations::load(context, &name).await?;
    for round in 1.. {
        let active = cas.iter().any(|ca| ca.state == CaState::Active);
        // What left a trace counts only when nothing is active: it costs a request.
        let known = if active {
            generations::traces(context, authority)
        } else {
            generations::known(context, authority).await?
        };
        let prepared = cas.iter().find(|ca| ca.state == CaState::Prepared);
        let waits_for = prepared.and_then(|prepared| {
            let hash = sha256_hex(bundle(&trusted_roots(&cas)).as_bytes());
            generations::waits_for(context, prepared, &hash)
        });
        let mut decision = decide(&World {
            authority,
            generations: &generations::view(context, &cas, now),
            known: &known,
            source: &source,
            waits_for: waits_for.as_deref(),
            now,
        });
        let Some(step) = decision.step.take().filter(|_| round <= STEPS) else {
            return Ok((cas, decision));
        };
        let taken =
            generations::carry_out(context, authority, &cas, imported.as_ref(), &step, now).await;
        match taken {
            Ok(()) => cas = generations::reload(context, &name).await?,
            // The first CA is made when the token is there.
            Err(Error::Token(error)) if decision.active.is_err() => {
                decision.active = Err(token_unavailable(&error.to_string()));
                return Ok((cas, decision));
            }
            // As long as one can sign, what keeps another from being made is only told.
            Err(error) if decision.active.is_ok() && !error.is_conflict() => {
                let message = format!("another CA can't take over: {}", chain(&error));
                decision.rotating = Wanted::no(ROTATING, "Failed", message);
                return Ok((cas, decision));
            }
            Err(error) => {
                generations::reload(context, &name).await?;
                return Err(error);
            }
        }
    }
    unreachable!("the last round returns")
}

/// Why the active CA can't sign now, if its key is in a token that does not work.
fn stopped(cas: &[Ca], active: u32) -> Option<Wanted> {
    let active = cas.iter().find(|ca| ca.key.generation == active && ca.in_token)?;
    let why = active.authority.as_ref().ok()?.signer().check().err()?;
    Some(token_unavailable(&why.0))
}

fn token_unavailable(why: &str) -> Wanted {
    let message = format!(
        "{why}. Until the token works again nothing is signed: certificates and the CRL in service stay good until they expire"
    );
    Wanted::no(READY, Reason::TokenUnavailable.as_str(), message)
}

/// The roots of all CAs that are trusted, each once.
fn trusted_roots(cas: &[Ca]) -> Vec<CertificateDer<'static>> {
    let trusted = cas.iter().filter(|ca| ca.state != CaState::Removed);
    roots(trusted.filter_map(|ca| ca.authority.as_deref().ok()))
}

/// The roots of these CAs, each once.
fn roots<'a>(cas: impl Iterator<Item = &'a CertificateAuthority>) -> Vec<CertificateDer<'static>> {
    let mut roots: Vec<CertificateDer<'static>> = Vec::new();
    for ca in cas {
        if !roots.contains(ca.root()) {
            roots.push(ca.root().clone());
        }
    }
    roots
}

fn bundle(roots: &[CertificateDer<'_>]) -> String {
    roots.iter().map(|root| certificate_pem(root)).collect()
}

/// The CRLs of an authority after they were looked after.
#[derive(Default)]
struct Crls {
    generations: Vec<Generation>,
    // Those of them that sign certificates and whose CRL is what it must be: shards are made of these.
    sound: Vec<Generation>,
    is_new: bool,
    trouble: Option<Wanted>,
    next: Duration,
}

/// Has the CRL of every trusted CA published.
async fn keep_crls(
    context: &Context,
    authority: &ClientAuthority,
    cas: &[Ca],
    now: Timestamp,
) -> Result<Crls, Error> {
    let known = context.signing(&authority.name_any());
    let mut crls = Crls { next: LONGEST, ..Crls::default() };
    let mut failed = None;
    for ca in cas.iter().filter(|ca| ca.state != CaState::Removed) {
        let Ok(signer) = &ca.authority else { continue };
        let known = known.as_ref().and_then(|known| {
            let mut generations = known.generations.iter();
            generations.find(|one| one.key == ca.key).map(|one| &one.published)
        });
        match crl::keep(context, authority, ca, signer, known, now).await {
            Ok(kept) => {
                let generation = Generation {
                    key: ca.key.clone(),
                    state: ca.state,
                    since: ca.since,
                    ca: signer.clone(),
                    published: kept.published,
                };
                if kept.trouble.is_none() && ca.state != CaState::Root {
                    crls.sound.push(generation.clone());
                }
                crls.generations.push(generation);
                crls.is_new |= kept.is_new;
                crls.trouble = crls.trouble.or(kept.trouble);
                crls.next = crls.next.min(kept.next);
            }
            // Its first CRL can't be signed: without one nobody may trust it, and nobody else shall wait.
            Err(Error::Crl(CrlError::Sign(error))) if ca.state != CaState::Active => {
                let number = ca.key.generation;
                let message = format!("generation {number} has no CRL and is not trusted: {error}");
                let trouble = Wanted::no(READY, Reason::CrlFailed.as_str(), message);
                crls.trouble = crls.trouble.or(Some(trouble));
            }
            // The same where the ledger does not say what the CRL must hold, and none is in service.
            Err(Error::Guard { reason, message }) => {
                let trouble = Wanted::no(READY, reason.as_str(), message);
                crls.trouble = crls.trouble.or(Some(trouble));
                crls.next = crls.next.min(crl::GUARDED);
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(crls), Err)
}

/// What signing needs of an authority.
fn signing(
    authority: &ClientAuthority,
    generations: Vec<Generation>,
    active: u32,
    can_sign: bool,
    allowed: Arc<Allowed>,
) -> Option<Arc<Signing>> {
    let active = generations.iter().position(|one| one.key.generation == active)?;
    let roots = roots(generations.iter().map(|one| &*one.ca));
    let bundle = bundle(&roots);
    let within = authority.spec.rotation.reissue_within;
    let mut mark = bundle.clone();
    for one in &generations {
        mark += &format!("{} {}\n", one.key.generation, hex(&one.ca.facts().key_id));
    }
    Some(Arc::new(Signing {
        mark: sha256_hex(mark.as_bytes()),
        active,
        can_sign,
        bundle_hash: sha256_hex(bundle.as_bytes()),
        bundle,
        roots,
        crl_base: authority.spec.crl.distribution_point_base_url.clone(),
        shards: authority.spec.crl.shards,
        reissue_within: SignedDuration::from_secs(within.as_secs()),
        generations,
        allowed,
    }))
}

/// What the authority allows, compiled once. A change is in force at once for whoever is signed for.
fn allowed(context: &Context, authority: &ClientAuthority) -> Arc<Allowed> {
    let name = authority.name_any();
    let known = context.signing(&name);
    if let Some(known) = known.as_ref().filter(|known| known.allowed.spec == authority.spec.allow) {
        return known.allowed.clone();
    }
    let allowed = Arc::new(Allowed::compile(authority.spec.allow.as_ref()));
    if let Some(known) = known {
        let changed = Arc::new(Signing { allowed: allowed.clone(), ..(*known).clone() });
        let mut all = context.signing.write().expect("no holder of this lock panics");
        all.insert(name.clone(), changed);
        drop(all);
        wake_users(context, &name);
    }
    allowed
}

/// Puts in force what signing needs, and wakes whoever it concerns.
fn take_over(context: &Context, name: &str, signing: Arc<Signing>, new_crl: bool) {
    let facts = signing.active().ca.facts();
    context.metrics.ca_not_after.get_or_create(&label(name)).set(facts.not_after.as_second());
    let before = {
        let mut all = context.signing.write().expect("no holder of this lock panics");
        all.insert(name.to_owned(), signing.clone())
    };
    let shape = |signing: &Signing| {
        let states: Vec<_> =
            signing.generations.iter().map(|one| (one.key.generation, one.state)).collect();
        let how = (signing.crl_base.clone(), signing.reissue_within, signing.can_sign);
        (states, signing.bundle_hash.clone(), how)
    };
    if before.as_ref().map(|before| shape(before)) != Some(shape(&signing)) {
        wake_users(context, name);
    } else if new_crl {
        wake_trusts(context, name);
    }
    if new_crl {
        for revocation in context.stores.revocations.list() {
            let status = revocation.status.as_ref();
            if !status.is_some_and(|status| is_true(&status.conditions, PUBLISHED)) {
                context.queues.revocation.push(Key::of(&*revocation));
            }
        }
    }
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

/// Writes the status when it differs. A change of the counts alone waits for its interval; then the
/// time until that is returned.
async fn put_status(
    context: &Context,
    authority: &ClientAuthority,
    cas: &[Ca],
    crl: Option<CrlView<'_>>,
    conditions: &[Wanted],
    now: Timestamp,
) -> Result<Option<Duration>, Error> {
    let before = authority.status.clone().unwrap_or_default();
    let mut counts = CertificateCounts::default();
    for ca in cas {
        context.ledger.read(&ca.key, |ledger| {
            counts.live += ledger.live(now).count() as i64;
            counts.revoked += ledger.revoked_count(now) as i64;
        });
    }
    let views: Vec<GenerationView<'_>> = cas
        .iter()
        .filter_map(|ca| {
            let facts = ca.authority.as_ref().ok()?.facts();
            let (number, since) = (ca.key.generation, ca.since);
            Some(GenerationView { number, state: ca.state, since, facts })
        })
        .collect();
    let is_signing = crl.is_some();
    let mut wanted = status(authority, &views, crl, counts, conditions, now);
    if !is_signing {
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
    let warns = |c: &&Wanted| !c.status || c.reason == headroom::Reason::NearLimit.as_str();
    for Wanted { type_, reason, message, .. } in conditions.iter().filter(warns) {
        let known = before.conditions.iter().find(|condition| condition.type_ == *type_);
        let told = *type_ == ROTATING && *reason == "Idle";
        if !told && known.is_none_or(|known| known.reason != *reason) {
            context.events.warning(authority, "Publish", reason, message).await;
        }
    }
    Ok(None)
}
