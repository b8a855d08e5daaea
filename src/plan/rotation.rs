//! The CAs of an authority: which one signs, which are trusted, and the next step from what is to what
//! shall be. One step at a time: after each the world is looked at anew.
//!
//! `Prepared -> Active -> Retiring -> Removed`, and `Compromised` instead of `Retiring`. Of two that are
//! `Active` the later one signs, so that one write makes one CA take over from another.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::authority::{Reason, secret_name};
use super::ledger::CaKey;
use crate::api::ClientAuthority;
use crate::api::annotation;
use crate::api::authority::{CaState, Custody, SelfSigned};
use crate::api::condition::{READY, ROTATING, Wanted};
use crate::api::duration::Duration;
use crate::pki::authority::CaFacts;
use crate::pki::sha256_hex;

/// A CA that is made below another must outlast the one before it by so much, else it is of no use.
const WORTH_MAKING: SignedDuration = SignedDuration::from_hours(1);

/// A CA that has retired is trusted for at least this long: an issuance by it may be under way.
const LINGER: SignedDuration = SignedDuration::from_secs(60);

/// One CA of the authority, as its Secret has it.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its number.
    pub number: u32,
    /// What it does.
    pub state: CaState,
    /// Since when.
    pub since: Timestamp,
    /// The user's request that stood on the authority when it was made.
    pub requested: Option<String>,
    /// Hash of what it was made from; absent in Secrets of before there were hashes.
    pub source_hash: Option<String>,
    /// What its certificate says, or why it can't be used.
    pub ca: Result<CaFacts, String>,
    /// How many of its certificates have not expired and are not revoked.
    pub live: usize,
    /// Does its published CRL lack a certificate that is revoked and has not expired?
    pub unpublished: bool,
    /// Entries of its published CRL.
    pub crl_entries: usize,
}

/// Where the next CA would come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// It is made here; hash of what the spec says of it.
    SelfSigned(String),
    /// It lies in a Secret; what its certificate says, or why it can't be used.
    Imported(Result<CaFacts, String>),
}

/// Everything that the decision depends on.
pub struct World<'a> {
    /// The authority.
    pub authority: &'a ClientAuthority,
    /// Its CAs, in the order of their numbers.
    pub generations: &'a [Generation],
    /// Numbers that the ledger, published CRLs or the status know of.
    pub known: &'a BTreeSet<u32>,
    /// Where the next CA would come from.
    pub source: &'a Source,
    /// Who does not hold the present trust bundle yet; nobody when it is in force everywhere.
    pub waits_for: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

/// Why another CA is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// There was none.
    First,
    /// The active one expires soon.
    Renewal,
    /// The spec, or the Secret that it names, holds another one.
    Changed,
    /// The user asked for it.
    Requested,
    /// The key of the active one may be known to others.
    Compromised,
    /// The CRL of the active one has grown to `spec.crl.maxEntries`.
    CRLFull,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a CA, or copy it from where it lies.
    Create {
        /// Its number.
        number: u32,
        /// Its first state.
        state: CaState,
        /// Why.
        trigger: Trigger,
    },
    /// The CA in the Secret has the key of the active one: only its certificate is new.
    Extend {
        /// The active one.
        number: u32,
    },
    /// Change a state.
    Move {
        /// Of which.
        number: u32,
        /// To what.
        to: CaState,
    },
    /// Revoke every certificate of a compromised CA that is still good.
    RevokeAll {
        /// Of which.
        number: u32,
    },
}

/// What to do about the CAs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The number of the one that signs, or why none does.
    pub active: Result<u32, Wanted>,
    /// What to do next, if anything.
    pub step: Option<Step>,
    /// The `Rotating` condition.
    pub rotating: Wanted,
    /// When to look again.
    pub next: Option<Timestamp>,
}

/// Decides what to do.
pub fn decide(world: &World<'_>) -> Decision {
    let active = world.generations.iter().rev().find(|one| one.state == CaState::Active);
    let Some(active) = active else {
        return without_active(world);
    };
    let prepared = world
        .generations
        .iter()
        .find(|one| one.state == CaState::Prepared && one.number > active.number);
    let mut plan = Plan { world, active, next: None };
    // What can fail comes last: it must not keep the rest from happening.
    let step = plan
        .after_takeover()
        .or_else(|| prepared.and_then(|prepared| plan.activate(prepared)))
        .or_else(|| plan.retire())
        .or_else(|| if prepared.is_none() { plan.prepare() } else { None });
    Decision {
        active: usable(world, active),
        rotating: plan.rotating(prepared),
        step,
        next: plan.next,
    }
}

fn is_compromised(world: &World<'_>, number: u32) -> bool {
    world.authority.spec.compromised_generations.contains(&i64::from(number))
}

/// Can this CA sign now?
fn usable(world: &World<'_>, active: &Generation) -> Result<u32, Wanted> {
    let refuse = |reason: Reason, message| Err(Wanted::no(READY, reason.as_str(), message));
    match &active.ca {
        Err(why) => {
            let name = secret_name(&key(world, active.number));
            refuse(Reason::KeyUnusable, format!("Secret {name} in the operator's namespace: {why}"))
        }
        Ok(facts) if facts.not_after <= world.now => {
            refuse(Reason::Expired, format!("the CA expired at {}", facts.not_after))
        }
        Ok(_) => Ok(active.number),
    }
}

fn key(world: &World<'_>, generation: u32) -> CaKey {
    let authority = world.authority.metadata.name.as_deref().unwrap_or_default().into();
    CaKey { authority, generation }
}

/// The first CA is made at once; one that was lost is never replaced unasked.
fn without_active(world: &World<'_>) -> Decision {
    let idle = Wanted::no(ROTATING, "Idle", "no CA is active");
    let refuse = |reason: Reason, message: String| Decision {
        active: Err(Wanted::no(READY, reason.as_str(), message)),
        step: None,
        rotating: idle.clone(),
        next: None,
    };
    let lost = world.generations.iter().map(|one| one.number).chain(world.known.iter().copied());
    if let Some(lost) = lost.filter(|number| *number > 0).max() {
        let lost = last_active(world.authority).unwrap_or(lost);
        return refuse(
            Reason::KeyMissing,
            format!(
                "Secret {} in the operator's namespace, which holds the CA key, is gone: restore it from a backup. \
                 No new CA is made, since clients hold certificates of the old one",
                secret_name(&key(world, lost))
            ),
        );
    }
    if let Source::Imported(Err(why)) = world.source {
        return refuse(Reason::SourceUnusable, why.clone());
    }
    let root = world.generations.iter().any(|one| one.state == CaState::Root);
    let step = if is_split(world) && !root {
        Step::Create { number: 0, state: CaState::Root, trigger: Trigger::First }
    } else {
        Step::Create { number: 1, state: CaState::Active, trigger: Trigger::First }
    };
    Decision { step: Some(step), ..refuse(Reason::KeyMissing, "the CA is being made".into()) }
}

fn is_split(world: &World<'_>) -> bool {
    world.authority.spec.self_signed.as_ref().is_some_and(|spec| spec.intermediate.is_some())
}

fn last_active(authority: &ClientAuthority) -> Option<u32> {
    let generations = &authority.status.as_ref()?.generations;
    let active = generations.iter().filter(|one| one.state == CaState::Active);
    active.filter_map(|one| u32::try_from(one.number).ok()).max()
}

struct Plan<'a> {
    world: &'a World<'a>,
    active: &'a Generation,
    next: Option<Timestamp>,
}

impl Plan<'_> {
    /// Not yet: look again then.
    fn wait_until(&mut self, time: Timestamp) {
        self.next = Some(self.next.map_or(time, |next| next.min(time)));
    }

    fn may_sign(&self, one: &Generation) -> bool {
        one.ca.as_ref().is_ok_and(|facts| facts.not_after > self.world.now)
    }

    /// What was active before the active one retires, and what is compromised is treated as such.
    fn after_takeover(&self) -> Option<Step> {
        self.world.generations.iter().find_map(|one| {
            let number = one.number;
            let compromised = is_compromised(self.world, number);
            let to = match one.state {
                CaState::Active if number == self.active.number => return None,
                CaState::Active | CaState::Retiring if compromised => CaState::Compromised,
                CaState::Active => CaState::Retiring,
                // It has signed nothing yet. One that can't be used must not stand in another's way.
                CaState::Prepared
                    if compromised || number < self.active.number || !self.may_sign(one) =>
                {
                    CaState::Removed
                }
                _ => return None,
            };
            Some(Step::Move { number, to })
        })
    }

    /// The next one takes over when its trust is in force.
    fn activate(&mut self, prepared: &Generation) -> Option<Step> {
        let rotation = &self.world.authority.spec.rotation;
        let expired = self.active.ca.as_ref().is_ok_and(|facts| facts.not_after <= self.world.now);
        let urgent = is_compromised(self.world, self.active.number);
        let prepared_until = after(prepared.since, rotation.preparation);
        let timeout = after(prepared.since, rotation.activation_timeout);
        let in_force = self.world.waits_for.is_none();
        let due = expired
            || self.world.now >= timeout
            || (in_force && (urgent || self.world.now >= prepared_until));
        if due {
            return Some(Step::Move { number: prepared.number, to: CaState::Active });
        }
        self.wait_until(timeout);
        if in_force {
            self.wait_until(prepared_until);
        }
        None
    }

    /// Is there a reason to make another one?
    fn prepare(&mut self) -> Option<Step> {
        let (world, active) = (self.world, self.active);
        let facts = active.ca.as_ref().ok()?;
        let create = |trigger| {
            let numbers = world.generations.iter().map(|one| one.number);
            let number = numbers.chain(world.known.iter().copied()).max().unwrap_or(0) + 1;
            Some(Step::Create { number, state: CaState::Prepared, trigger })
        };
        match world.source {
            Source::Imported(Err(_)) => return None,
            Source::Imported(Ok(found)) if found.fingerprint != facts.fingerprint => {
                if self.why_not(found).is_some() {
                    return None;
                }
                return if found.public_key_der == facts.public_key_der {
                    Some(Step::Extend { number: active.number })
                } else {
                    create(Trigger::Changed)
                };
            }
            Source::Imported(Ok(_)) => return None,
            Source::SelfSigned(hash) => {
                if active.source_hash.as_ref().is_some_and(|made_from| made_from != hash) {
                    return create(Trigger::Changed);
                }
            }
        }
        if is_compromised(world, active.number) {
            return create(Trigger::Compromised);
        }
        // Each request counts once: the CA that came of it carries it.
        if let Some(request) = request(world.authority)
            && world.generations.iter().all(|one| one.requested.as_deref() != Some(request))
        {
            return create(Trigger::Requested);
        }
        let most = world.authority.spec.crl.max_entries;
        if most.is_some_and(|most| active.crl_entries >= most as usize) {
            return create(Trigger::CRLFull);
        }
        let due = renewal(world.authority, facts);
        if due > world.now {
            self.wait_until(due);
            return None;
        }
        self.outlasts(facts).then(|| create(Trigger::Renewal)).flatten()
    }

    /// Why the CA in the Secret of `spec.secretRef` can't take over, or that it must be replaced.
    fn why_not(&self, found: &CaFacts) -> Option<&'static str> {
        let facts = self.active.ca.as_ref().ok()?;
        if found.public_key_der != facts.public_key_der {
            // One that had its time and was put back would be trusted again by mistake.
            let had = self.world.generations.iter().any(|one| {
                one.ca.as_ref().is_ok_and(|known| known.public_key_der == found.public_key_der)
            });
            return had
                .then_some("the CA in it was one of this authority before: put a new one there");
        }
        if is_compromised(self.world, self.active.number) {
            return Some(
                "the key of the CA in it is compromised: put another CA there, which then takes over at once",
            );
        }
        let same = (&found.subject_der, &found.root_fingerprint)
            == (&facts.subject_der, &facts.root_fingerprint);
        // A self-signed CA is its own root, which its renewal changes.
        let self_signed = |facts: &CaFacts| facts.root_fingerprint == facts.fingerprint;
        let renewed =
            found.subject_der == facts.subject_der && self_signed(found) && self_signed(facts);
        let why = "the CA in it has the key of the active one under another name or root: put a CA with a key of its own there";
        (!same && !renewed).then_some(why)
    }

    /// A CA below a root that ends with it is not worth making again and again.
    fn outlasts(&self, facts: &CaFacts) -> bool {
        let root = self.world.generations.iter().find(|one| one.state == CaState::Root);
        let end = root.and_then(|root| root.ca.as_ref().ok()).map(|root| root.not_after);
        end.is_none_or(|end| end.duration_since(facts.not_after) >= WORTH_MAKING)
    }

    /// The last certificate of a CA ends its service.
    fn retire(&mut self) -> Option<Step> {
        let grace = self.world.authority.spec.rotation.compromise_grace_period;
        for one in self.world.generations {
            let (number, removed) = (one.number, CaState::Removed);
            match one.state {
                // Who still asks for its CRL shall find everything on it.
                CaState::Retiring if one.live == 0 && one.unpublished => {}
                CaState::Retiring if one.live == 0 => {
                    let end = after_linger(one.since);
                    if self.world.now >= end {
                        return Some(Step::Move { number, to: removed });
                    }
                    self.wait_until(end);
                }
                CaState::Compromised => {
                    let end = after(one.since, grace);
                    if self.world.now < end {
                        self.wait_until(end);
                    } else if one.live > 0 {
                        return Some(Step::RevokeAll { number });
                    } else if one.unpublished && self.world.now < after_linger(end) {
                        // Its trust must end also when its CRL can't be signed.
                        self.wait_until(after_linger(end));
                    } else {
                        return Some(Step::Move { number, to: removed });
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn rotating(&self, prepared: Option<&Generation>) -> Wanted {
        let yes = |reason, message| Wanted::yes(ROTATING, reason, message);
        if let Some(prepared) = prepared {
            let number = prepared.number;
            return match (&prepared.ca, self.world.waits_for) {
                (Err(why), _) => Wanted::no(
                    ROTATING,
                    Reason::KeyUnusable.as_str(),
                    format!("generation {number} can't become Active: {why}"),
                ),
                (Ok(_), Some(waits_for)) => yes(
                    "Preparing",
                    format!(
                        "generation {number} is trusted from now on; before it signs, {waits_for} must hold the new trust bundle"
                    ),
                ),
                (Ok(_), None) => yes(
                    "Preparing",
                    format!("generation {number} is trusted everywhere and is about to sign"),
                ),
            };
        }
        let source_unusable =
            |why: &str| Wanted::no(ROTATING, Reason::SourceUnusable.as_str(), why.to_owned());
        match self.world.source {
            Source::Imported(Err(why)) => return source_unusable(why),
            Source::Imported(Ok(found)) => {
                if let Some(why) = self.why_not(found) {
                    let spec = &self.world.authority.spec;
                    let name = spec.secret_ref.as_ref().map(|reference| reference.name.as_str());
                    let name = name.unwrap_or_default();
                    return source_unusable(&format!(
                        "spec.secretRef.name: Secret {name:?}: {why}"
                    ));
                }
            }
            Source::SelfSigned(_) => {}
        }
        let leaving = self
            .world
            .generations
            .iter()
            .find(|one| matches!(one.state, CaState::Retiring | CaState::Compromised));
        match leaving {
            Some(one) => yes(
                one.state.as_str(),
                format!(
                    "generation {} signs; generation {} is trusted until its last certificate is replaced or has expired",
                    self.active.number, one.number
                ),
            ),
            None => {
                Wanted::no(ROTATING, "Idle", format!("generation {} signs", self.active.number))
            }
        }
    }
}

/// When the next CA is prepared: `renewBefore` before the active one expires.
pub fn renewal(authority: &ClientAuthority, facts: &CaFacts) -> Timestamp {
    let lifetime = facts.not_after.duration_since(facts.not_before);
    let before = authority.spec.rotation.renew_before;
    let before = before.map_or(lifetime / 3, |before| SignedDuration::from_secs(before.as_secs()));
    // One that was cut to its root's lifetime may be shorter than renewBefore.
    let before = if before < lifetime { before } else { lifetime / 3 };
    facts.not_after.saturating_sub(before).unwrap_or(facts.not_after)
}

/// The user's request for another CA.
pub fn request(authority: &ClientAuthority) -> Option<&str> {
    let annotations = authority.metadata.annotations.as_ref()?;
    annotations.get(annotation::ROTATE_REQUESTED_AT).map(String::as_str)
}

fn after_linger(time: Timestamp) -> Timestamp {
    time.saturating_add(LINGER).unwrap_or(Timestamp::MAX)
}

fn after(time: Timestamp, duration: Duration) -> Timestamp {
    time.saturating_add(SignedDuration::from_secs(duration.as_secs())).unwrap_or(Timestamp::MAX)
}

/// Hash of what a CA is made from. Only what differs from the defaults goes in, so that fields of later
/// versions change no hash of today.
pub fn source_hash(spec: &SelfSigned) -> String {
    let mut text = format!("cn={};duration={}", spec.common_name, spec.duration.as_secs());
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!(";{name}={value}");
        }
    };
    add("o", spec.organization.clone());
    let default = Default::default();
    add("key", (spec.private_key != default).then(|| json(&spec.private_key)));
    add("custody", (spec.custody == Custody::PKCS11).then(|| json(&spec.custody)));
    add("path", (spec.path_length != 0).then(|| spec.path_length.to_string()));
    add("names", spec.name_constraints.as_ref().map(json));
    add("intermediate", spec.intermediate.as_ref().map(|ca| ca.duration.to_string()));
    sha256_hex(text.as_bytes())[..32].to_owned()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and numbers have a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ClientAuthoritySpec;
    use crate::pki::authority::tests::{instant, sample};
    use proptest::prelude::*;

    const NOW: &str = "2026-05-01T10:00:00Z";

    #[test]
    fn only_another_custody_asks_for_another_ca() {
        let kept = SelfSigned { custody: Custody::Secret, ..spec() };
        assert_eq!(source_hash(&kept), source_hash(&spec()));
        let moved = SelfSigned { custody: Custody::PKCS11, ..spec() };
        assert_ne!(source_hash(&moved), source_hash(&spec()));
    }

    fn spec() -> SelfSigned {
        serde_json::from_str(r#"{"commonName": "CA", "duration": "87600h"}"#).unwrap()
    }

    fn authority() -> ClientAuthority {
        ClientAuthority::new(
            "clients",
            ClientAuthoritySpec {
                self_signed: Some(spec()),
                secret_ref: None,
                rotation: Default::default(),
                compromised_generations: vec![],
                allow: None,
                crl: Default::default(),
                bundle: None,
            },
        )
    }

    fn generation(number: u32, state: CaState) -> Generation {
        Generation {
            number,
            state,
            since: instant("2026-05-01T09:00:00Z"),
            requested: None,
            source_hash: Some(source_hash(&spec())),
            ca: Ok(sample().facts().clone()),
            live: 3,
            unpublished: false,
            crl_entries: 0,
        }
    }

    /// A world in which nothing is to be done, for a table to change.
    struct Case {
        authority: ClientAuthority,
        generations: Vec<Generation>,
        known: BTreeSet<u32>,
        source: Source,
        waits_for: Option<&'static str>,
        now: Timestamp,
    }

    impl Case {
        fn new(generations: &[(u32, CaState)]) -> Self {
            Self {
                authority: authority(),
                generations: generations.iter().map(|(n, state)| generation(*n, *state)).collect(),
                known: BTreeSet::new(),
                source: Source::SelfSigned(source_hash(&spec())),
                waits_for: None,
                now: instant(NOW),
            }
        }

        fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
            change(&mut self);
            self
        }

        fn decide(&self) -> Decision {
            decide(&World {
                authority: &self.authority,
                generations: &self.generations,
                known: &self.known,
                source: &self.source,
                waits_for: self.waits_for,
                now: self.now,
            })
        }

        fn step(&self) -> Option<Step> {
            self.decide().step
        }

        fn reason(&self) -> &'static str {
            self.decide().active.map_or_else(|refusal| refusal.reason, |_| "Ready")
        }
    }

    use CaState::{Active, Compromised, Prepared, Removed, Retiring, Root};

    fn create(number: u32, state: CaState, trigger: Trigger) -> Option<Step> {
        Some(Step::Create { number, state, trigger })
    }

    fn to(number: u32, to: CaState) -> Option<Step> {
        Some(Step::Move { number, to })
    }

    #[test]
    fn a_crl_that_has_grown_asks_for_another_ca() {
        let case = |most: Option<u32>, entries| {
            Case::new(&[(1, Active)]).with(|case| {
                case.authority.spec.crl.max_entries = most;
                case.generations[0].crl_entries = entries;
            })
        };
        assert_eq!(case(None, 1_000_000).step(), None);
        assert_eq!(case(Some(100), 99).step(), None);
        assert_eq!(case(Some(100), 100).step(), create(2, Prepared, Trigger::CRLFull));
        // While one is on its way, and when the one before goes on having many, no other is made.
        for generations in [[(1, Active), (2, Prepared)], [(1, Retiring), (2, Active)]] {
            let case = Case::new(&generations).with(|case| {
                case.authority.spec.crl.max_entries = Some(100);
                case.generations[0].crl_entries = 500;
            });
            assert!(!matches!(case.step(), Some(Step::Create { .. })));
        }
    }

    #[test]
    fn the_first_ca_is_made_once_and_never_replaced_unasked() {
        assert_eq!(Case::new(&[]).step(), create(1, Active, Trigger::First));
        let split = |case: &mut Case| {
            let spec = case.authority.spec.self_signed.as_mut().unwrap();
            spec.intermediate = Some(serde_json::from_str("{}").unwrap());
        };
        assert_eq!(Case::new(&[]).with(split).step(), create(0, Root, Trigger::First));
        let rooted = Case::new(&[(0, Root)]).with(split);
        assert_eq!(rooted.step(), create(1, Active, Trigger::First));

        let lost = Case::new(&[]).with(|case| case.known = [1].into());
        assert_eq!((lost.step(), lost.reason()), (None, "KeyMissing"));
        let lost = Case::new(&[(1, Retiring)]);
        assert_eq!((lost.step(), lost.reason()), (None, "KeyMissing"));
        let unusable = Source::Imported(Err("spec.secretRef.name: no".into()));
        let unusable = Case::new(&[]).with(|case| case.source = unusable);
        assert_eq!((unusable.step(), unusable.reason()), (None, "SourceUnusable"));
    }

    #[test]
    fn a_steady_authority_needs_no_step() {
        let steady = Case::new(&[(0, Root), (1, Removed), (2, Active)]);
        assert_eq!((steady.step(), steady.reason()), (None, "Ready"));
        let decision = Case::new(&[(1, Active)]).decide();
        assert_eq!(decision.rotating.reason, "Idle");
        let facts = sample().facts().clone();
        assert_eq!(decision.next, Some(renewal(&authority(), &facts)));
    }

    #[test]
    fn another_ca_is_prepared_for_each_reason() {
        let case = || Case::new(&[(1, Removed), (2, Active)]);
        let late = case().with(|case| case.now = instant("2034-01-01T00:00:00Z"));
        assert_eq!(late.step(), create(3, Prepared, Trigger::Renewal));
        let changed = case().with(|case| case.source = Source::SelfSigned("other".into()));
        assert_eq!(changed.step(), create(3, Prepared, Trigger::Changed));
        let compromised = case().with(|case| case.authority.spec.compromised_generations = vec![2]);
        assert_eq!(compromised.step(), create(3, Prepared, Trigger::Compromised));
        let known = case().with(|case| {
            case.known = [7].into();
            case.authority.spec.compromised_generations = vec![2];
        });
        assert_eq!(known.step(), create(8, Prepared, Trigger::Compromised), "numbers never repeat");
        let at = "2026-05-01T09:30:00Z";
        let request = (annotation::ROTATE_REQUESTED_AT.to_owned(), at.to_owned());
        let requested =
            case().with(|case| case.authority.metadata.annotations = Some([request].into()));
        assert_eq!(requested.step(), create(3, Prepared, Trigger::Requested));
        let served = requested.with(|case| case.generations[1].requested = Some(at.to_owned()));
        assert_eq!(served.step(), None, "a request counts once");
    }

    #[test]
    fn an_imported_ca_is_copied_extended_or_left() {
        let active = generation(1, Active);
        let of = |facts: CaFacts| {
            let mut case = Case::new(&[]);
            case.generations = vec![active.clone()];
            case.source = Source::Imported(Ok(facts));
            case
        };
        let same = active.ca.clone().unwrap();
        assert_eq!(of(same.clone()).step(), None);
        let fingerprint = String::from("other");
        let extended = CaFacts { root_fingerprint: fingerprint.clone(), fingerprint, ..same };
        assert_eq!(of(extended.clone()).step(), Some(Step::Extend { number: 1 }));
        let compromised =
            of(extended.clone()).with(|case| case.authority.spec.compromised_generations = vec![1]);
        assert_eq!(compromised.step(), None, "no certificate makes a stolen key good");
        assert!(compromised.decide().rotating.message.contains("put another CA there"));
        let moved = CaFacts { root_fingerprint: "another".into(), ..extended };
        assert_eq!(of(moved.clone()).step(), None);
        assert!(of(moved).decide().rotating.message.contains("another name or root"));
        let other = sample().facts().clone();
        assert_eq!(of(other.clone()).step(), create(2, Prepared, Trigger::Changed));
        let mut back = of(other.clone());
        back.generations.push(Generation { ca: Ok(other), ..generation(2, Removed) });
        assert_eq!(back.step(), None, "one that had its time is not trusted again");
    }

    #[test]
    fn the_next_ca_signs_only_when_its_trust_is_in_force_or_the_wait_is_over() {
        let case = || Case::new(&[(1, Active), (2, Prepared)]);
        let prepared_at = |case: &mut Case, at: &str| case.generations[1].since = instant(at);
        assert_eq!(case().step(), to(2, Active));
        let waits = case().with(|case| case.waits_for = Some("ClientTrust team/shop"));
        assert_eq!(waits.step(), None);
        assert!(waits.decide().rotating.message.contains("ClientTrust team/shop"));
        let fresh = case().with(|case| prepared_at(case, "2026-05-01T09:56:00Z"));
        assert_eq!(fresh.step(), None, "not before its preparation is over");
        assert_eq!(fresh.decide().next, Some(instant("2026-05-01T10:01:00Z")));
        let urgent = case().with(|case| {
            prepared_at(case, "2026-05-01T09:56:00Z");
            case.authority.spec.compromised_generations = vec![1];
        });
        assert_eq!(urgent.step(), to(2, Active));
        let over = case().with(|case| {
            case.waits_for = Some("ClientTrust team/shop");
            prepared_at(case, "2026-04-30T09:59:00Z");
        });
        assert_eq!(over.step(), to(2, Active));
        let broken = case().with(|case| case.generations[1].ca = Err("no key".into()));
        assert_eq!((broken.step(), broken.reason()), (to(2, Removed), "Ready"));
    }

    #[test]
    fn what_was_active_retires_and_is_removed_after_its_last_certificate() {
        assert_eq!(Case::new(&[(1, Active), (2, Active)]).step(), to(1, Retiring));
        let case = || Case::new(&[(1, Retiring), (2, Active)]);
        assert_eq!(case().step(), None);
        let empty = case().with(|case| case.generations[0].live = 0);
        assert_eq!(empty.step(), to(1, Removed));
        let unpublished = case().with(|case| {
            case.generations[0].live = 0;
            case.generations[0].unpublished = true;
        });
        assert_eq!(unpublished.step(), None, "its CRL comes first");
        let just_now = case().with(|case| {
            case.generations[0].live = 0;
            case.generations[0].since = instant("2026-05-01T09:59:30Z");
        });
        assert_eq!(just_now.step(), None, "an issuance by it may be under way");
        assert_eq!(Case::new(&[(1, Prepared), (2, Active)]).step(), to(1, Removed));
    }

    #[test]
    fn a_compromised_ca_loses_its_certificates_after_the_grace_period() {
        let listed = |case: &mut Case| case.authority.spec.compromised_generations = vec![1];
        let taken_over = Case::new(&[(1, Active), (2, Active)]).with(listed);
        assert_eq!(taken_over.step(), to(1, Compromised));
        assert_eq!(
            Case::new(&[(1, Retiring), (2, Active)]).with(listed).step(),
            to(1, Compromised)
        );
        let case = || Case::new(&[(1, Compromised), (2, Active)]).with(listed);
        assert_eq!(case().step(), Some(Step::RevokeAll { number: 1 }));
        let grace = case().with(|case| case.generations[0].since = instant("2026-05-01T09:55:00Z"));
        assert_eq!(grace.step(), None);
        assert_eq!(grace.decide().next, Some(instant("2026-05-01T10:05:00Z")));
        let revoked = case().with(|case| case.generations[0].live = 0);
        assert_eq!(revoked.step(), to(1, Removed));
    }

    #[test]
    fn a_ca_that_ends_with_its_root_is_not_made_again_and_again() {
        let case = Case::new(&[(0, Root), (1, Active)])
            .with(|case| case.now = instant("2034-01-01T00:00:00Z"));
        assert_eq!(case.step(), None);
    }

    #[test]
    fn every_step_leads_to_a_world_without_it() {
        // The steps of a whole rotation, one after the other, each carried out as the controller does.
        let mut case = Case::new(&[]);
        let mut steps = 0;
        for hour in 0..100_000 {
            case.now = instant(NOW) + SignedDuration::from_hours(hour);
            for one in &mut case.generations {
                one.live = usize::from(
                    one.state == Active || case.now < one.since + SignedDuration::from_hours(5),
                );
            }
            let active = case.generations.iter().filter(|one| one.state == Active).count();
            assert!(active <= 2);
            let Some(step) = case.step() else { continue };
            steps += 1;
            match step {
                Step::Create { number, state, .. } => {
                    let mut facts = sample().facts().clone();
                    facts.not_before = case.now;
                    facts.not_after = case.now + SignedDuration::from_hours(24 * 90);
                    case.generations.push(Generation {
                        since: case.now,
                        ca: Ok(facts),
                        ..generation(number, state)
                    });
                }
                Step::Move { number, to } => {
                    let one = case.generations.iter_mut().find(|one| one.number == number).unwrap();
                    assert_ne!(one.state, to);
                    (one.state, one.since) = (to, case.now);
                }
                other => panic!("{other:?}"),
            }
        }
        // About eleven years with a CA of 90 days, each replaced after 60: four steps for each.
        assert!((260..290).contains(&steps), "{steps}");
    }

    #[derive(Clone, Debug)]
    enum Event {
        Hours(i64),
        Request,
        Compromise,
        Change,
        Issue,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0i64..2000).prop_map(Event::Hours),
            1 => Just(Event::Request),
            1 => Just(Event::Compromise),
            1 => Just(Event::Change),
            6 => Just(Event::Issue),
        ]
    }

    /// The certificates of a simulated authority: which CA signed each, and when it expires.
    struct Simulation {
        case: Case,
        leaves: Vec<(u32, Timestamp)>,
    }

    impl Simulation {
        fn happen(&mut self, event: &Event, count: usize) {
            let case = &mut self.case;
            let active = case.decide().active.ok();
            match event {
                Event::Hours(hours) => case.now += SignedDuration::from_hours(*hours),
                Event::Request => {
                    let request = (annotation::ROTATE_REQUESTED_AT.to_owned(), count.to_string());
                    case.authority.metadata.annotations = Some([request].into());
                }
                Event::Compromise => {
                    let listed = &mut case.authority.spec.compromised_generations;
                    listed.extend(active.map(i64::from));
                }
                Event::Change => case.source = Source::SelfSigned(count.to_string()),
                Event::Issue => {
                    let end = case.now + SignedDuration::from_hours(24 * 30);
                    let ca = |n: u32| case.generations.iter().find(|one| one.number == n);
                    if let Some(ca) = active.and_then(ca) {
                        let last = ca.ca.as_ref().expect("usable").not_after;
                        self.leaves.push((ca.number, end.min(last)));
                    }
                }
            }
        }

        /// Takes steps until there is none, as the controller does.
        fn settle(&mut self) {
            for _ in 0..50 {
                let now = self.case.now;
                self.leaves.retain(|(_, end)| *end > now);
                for one in &mut self.case.generations {
                    one.live = self.leaves.iter().filter(|(ca, _)| *ca == one.number).count();
                }
                let Some(step) = self.case.step() else { return };
                let numbers = |state| {
                    let all = self.case.generations.iter().filter(move |one| one.state == state);
                    all.map(|one| one.number).collect::<Vec<_>>()
                };
                match step {
                    Step::Create { number, state, .. } => {
                        assert!(numbers(Prepared).is_empty(), "one is prepared already");
                        let mut facts = sample().facts().clone();
                        facts.not_before = now;
                        facts.not_after = now + SignedDuration::from_hours(24 * 90);
                        let hash = match &self.case.source {
                            Source::SelfSigned(hash) => hash.clone(),
                            Source::Imported(_) => unreachable!("not in this simulation"),
                        };
                        self.case.generations.push(Generation {
                            since: now,
                            source_hash: Some(hash),
                            requested: request(&self.case.authority).map(str::to_owned),
                            ca: Ok(facts),
                            ..generation(number, state)
                        });
                    }
                    Step::Move { number, to } => {
                        let live = self.leaves.iter().any(|(ca, _)| *ca == number);
                        assert!(to != Removed || !live, "{number} has certificates");
                        let mut all = self.case.generations.iter_mut();
                        let one = all.find(|one| one.number == number).unwrap();
                        (one.state, one.since) = (to, now);
                    }
                    Step::RevokeAll { number } => {
                        assert!(numbers(Compromised).contains(&number));
                        self.leaves.retain(|(ca, _)| *ca != number);
                    }
                    Step::Extend { .. } => unreachable!("nothing is imported"),
                }
            }
            panic!("no end of steps: {:?}", self.case.generations);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
        #[test]
        fn the_bundle_always_holds_the_signer_of_every_live_certificate(
            events in proptest::collection::vec(event(), 0..60),
        ) {
            let mut simulation = Simulation { case: Case::new(&[]), leaves: Vec::new() };
            simulation.settle();
            for (count, event) in events.iter().enumerate() {
                simulation.happen(event, count);
                simulation.settle();
                let generations = &simulation.case.generations;
                for (ca, _) in &simulation.leaves {
                    let signer = generations.iter().find(|one| one.number == *ca).unwrap();
                    prop_assert!(signer.state != Removed, "{ca} is trusted no more: {events:?}");
                }
                let mut numbers: Vec<_> = generations.iter().map(|one| one.number).collect();
                numbers.dedup();
                prop_assert_eq!(numbers.len(), generations.len(), "a number is used twice");
                prop_assert_eq!(generations.iter().filter(|one| one.state == Active).count(), 1);
            }
        }
    }
}
