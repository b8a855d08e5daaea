//! Does an identity need a certificate?
//!
//! `decide` runs an ordered list of checks over the gathered world; the first that has something to
//! say decides.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

use super::allow::{Asked, Policy};
use super::canary;
use super::ledger::CaKey;
use super::material::{self, KeySource};
use super::names::parse;
use super::renewal::{self, fnv1a, is_requested, made, renewal};
use super::secret::{Current, SecretView};
use super::template;
use crate::api::condition;
use crate::api::identity::Reason;
use crate::api::{ClientIdentity, ClientIdentitySpec};
use crate::pki::authority::CaFacts;
use crate::pki::profile::Profile;
use crate::pki::{KeyType, hex, sha256_hex};

/// A certificate is valid from this long before it is made: clocks differ.
pub const BACKDATE: SignedDuration = SignedDuration::from_secs(60);

/// No certificate is signed for less time than this, the minimum of `spec.duration`.
pub const SHORTEST: SignedDuration = SignedDuration::from_mins(5);

/// Everything that the decision depends on.
pub struct World<'a> {
    /// The identity.
    pub identity: &'a ClientIdentity,
    /// Its namespace; none when it can't be seen.
    pub namespace: Option<&'a ObjectMeta>,
    /// Its authority.
    pub authority: AuthorityView<'a>,
    /// The Secret that it names.
    pub secret: SecretView,
    /// Name of an older identity that names the same Secret.
    pub rival: Option<String>,
    /// Name of a `CertificateRevocation` that names this identity.
    pub hold: Option<String>,
    /// Is the certificate in the Secret revoked?
    pub revoked: bool,
    /// Does a `CertificateRevocation` wait for another certificate to revoke this one?
    pub to_be_revoked: bool,
    /// When the certificate in the Secret was issued, as the ledger knows it.
    pub issued_at: Option<Timestamp>,
    /// Does the Secret wear the labels, annotations and owner reference that the spec wants?
    pub dressed: bool,
    /// The highest revision in the ledger.
    pub last_revision: u32,
    /// The time.
    pub now: Timestamp,
}

/// An identity's authority, as issuing needs it.
#[derive(Clone, Copy)]
pub enum AuthorityView<'a> {
    /// There is none of that name.
    NotFound,
    /// It can't sign now.
    NotReady,
    /// It can.
    Ready(Signer<'a>),
}

/// What of a CA a certificate depends on.
#[derive(Clone, Copy)]
pub struct Signer<'a> {
    /// Which CA.
    pub key: &'a CaKey,
    /// What its certificate says.
    pub facts: &'a CaFacts,
    /// SHA-256 of the trust bundle, lower-case hex.
    pub bundle_hash: &'a str,
    /// Base URL of the CRL server.
    pub crl_base: Option<&'a str>,
    /// Since when it signs.
    pub active_since: Timestamp,
    /// Certificates of the CAs that retire are replaced within this time after that.
    pub reissue_within: SignedDuration,
    /// The generations that retire. Certificates of any other one are replaced at once.
    pub retiring: &'a [u32],
    /// What its authority allows.
    pub policy: &'a Policy,
}

/// Why a certificate is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// There was no Secret.
    Missing,
    /// The Secret was damaged or edited by hand.
    Repair,
    /// The spec or the CA changed.
    Changed,
    /// The renewal time came.
    Renewal,
    /// Another CA signs now.
    AuthorityRotated,
    /// The annotation `countersign.dev/renew-requested-at` asks for it.
    Requested,
    /// The current one is revoked, or about to be.
    Revoked,
}

impl Trigger {
    /// The trigger as logs and metrics carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "Missing",
            Self::Repair => "Repair",
            Self::Changed => "Changed",
            Self::Renewal => "Renewal",
            Self::AuthorityRotated => "AuthorityRotated",
            Self::Requested => "Requested",
            Self::Revoked => "Revoked",
        }
    }
}

/// What to do about an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The certificate is good until it is renewed.
    Keep {
        /// The certificate.
        current: Current,
        /// When it is renewed.
        renewal: Timestamp,
    },
    /// The certificate is good, but what stands beside it is not what the spec and the published trust
    /// want: bundle, forms of the key, key stores, labels and annotations.
    Refresh(Current),
    /// A new certificate is needed.
    Issue(Issuance),
    /// Nothing may be issued; the condition says why.
    Refuse {
        /// The reason.
        reason: Reason,
        /// The message of the condition: names object and field, says what to do.
        message: String,
        /// What the Secret holds all the same.
        current: Option<Current>,
    },
    /// Look again soon: the garbage collector is at work.
    Wait,
}

/// A certificate to be issued, before its serial and key are drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuance {
    /// Why.
    pub trigger: Trigger,
    /// The client's names.
    pub profile: Profile,
    /// Where its key comes from.
    pub key: KeySource,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// Number of the issuance.
    pub revision: u32,
    /// Revision of the certificate that it replaces in the Secret; 0 when there is none.
    pub supersedes: u32,
    /// Hash of what it is made from.
    pub spec_hash: String,
}

/// Decides what an identity needs.
pub fn decide(world: &World<'_>) -> Decision {
    let spec = &world.identity.spec;
    let current = match &world.secret {
        SecretView::Good(current) => Some(current.clone()),
        SecretView::OtherType { current, .. } => current.clone(),
        _ => None,
    };
    let refuse = |reason, message| Decision::Refuse { reason, message, current: current.clone() };

    // The order counts: what the user must mend first is said first.
    if canary::is_reserved(spec) {
        let message = format!(
            "spec.commonName: {:?} is the name of canaries; choose another one",
            canary::COMMON_NAME
        );
        return refuse(Reason::InvalidSpec, message);
    }
    let profile = match parse(spec) {
        Ok(profile) => profile,
        Err(error) => return refuse(Reason::InvalidSpec, error.to_string()),
    };
    if let Err(message) = renewal::check(spec).and_then(|()| template::check(spec)) {
        return refuse(Reason::InvalidSpec, message);
    }
    let key = match KeySource::of(spec) {
        Ok(key) => key,
        Err((reason, message)) => return refuse(reason, message),
    };
    if let Some(rival) = &world.rival {
        let message = format!(
            "spec.secretName: ClientIdentity {rival:?} is older and writes to Secret {:?}; choose another name",
            spec.secret_name
        );
        return refuse(Reason::SecretNameConflict, message);
    }
    if let Some(hold) = &world.hold {
        let message = format!(
            "revoked by CertificateRevocation {hold:?}; delete it to have a new certificate issued"
        );
        return refuse(Reason::Revoked, message);
    }
    match &world.secret {
        SecretView::Foreign(why) => {
            let message = format!(
                "spec.secretName: Secret {:?} exists and is not ours ({why}); delete it or choose another name",
                spec.secret_name
            );
            return refuse(Reason::SecretNotOwned, message);
        }
        SecretView::OtherType { present, wanted, .. } => {
            let message = format!(
                "spec.secretName: Secret {:?} is of type {present}, {wanted} is needed, and a type can't be changed; delete the Secret or choose another name",
                spec.secret_name
            );
            return refuse(Reason::SecretTypeConflict, message);
        }
        SecretView::Leaving => return Decision::Wait,
        _ => {}
    }
    let name = &spec.authority_ref.name;
    let signer = match world.authority {
        AuthorityView::Ready(signer) => signer,
        AuthorityView::NotFound => {
            let message =
                format!("spec.authorityRef.name: ClientAuthority {name:?} does not exist");
            return refuse(Reason::AuthorityNotFound, message);
        }
        AuthorityView::NotReady => {
            return match &world.secret {
                // Its authority's trouble does not unmake a good certificate.
                SecretView::Good(good)
                    if good.not_after > world.now && !world.revoked && !world.to_be_revoked =>
                {
                    Decision::Keep { current: good.clone(), renewal: renewal(world.identity, good) }
                }
                _ => refuse(
                    Reason::AuthorityNotReady,
                    format!(
                        "spec.authorityRef.name: ClientAuthority {name:?} is not ready; see its conditions"
                    ),
                ),
            };
        }
    };
    let usages: Vec<_> = profile.usages.iter().map(|usage| usage.as_str()).collect();
    let asked = Asked {
        identity: world.identity,
        namespace: world.namespace,
        duration: spec.duration,
        key_type: key.key_type().as_str(),
        usages: &usages,
    };
    if let Err(refusal) = signer.policy.check(&asked) {
        let keeps = current.as_ref().filter(|good| good.not_after > world.now && !world.revoked);
        let keeps = keeps.map_or(String::new(), |good| {
            format!(
                "; the present certificate is valid until {} and is not renewed: delete the ClientIdentity, or create \
                 a CertificateRevocation, to revoke it",
                good.not_after
            )
        });
        let message = format!("ClientAuthority {name:?} does not allow it: {refusal}{keeps}");
        return refuse(Reason::NotAllowed, message);
    }
    let spec_hash = spec_hash(spec, &profile, &key, &signer);
    let Some(trigger) = trigger(world, &signer, &spec_hash) else {
        let current = current.expect("without a usable certificate there is a trigger");
        let stands = current.bundle_hash == signer.bundle_hash
            && current.data_hash == Some(material::hash(spec, current.lacks.is_none()));
        if !stands || !world.dressed {
            return Decision::Refresh(current);
        }
        let renewal = renewal(world.identity, &current);
        let renewal =
            reissue(world.identity, &current, &signer).map_or(renewal, |at| at.min(renewal));
        return Decision::Keep { current, renewal };
    };
    if let (Trigger::Revoked, KeySource::Requested(request), Some(current)) =
        (trigger, &key, &current)
        && current.public_key == Some(sha256_hex(&request.public_key_der))
    {
        let state = if world.revoked { "revoked" } else { "about to be revoked" };
        let message = format!(
            "spec.request: the certificate of this CSR's key is {state}; put the CSR of a new key there"
        );
        return refuse(Reason::Revoked, message);
    }
    let not_before = world.now - BACKDATE;
    let wanted = SignedDuration::from_secs(spec.duration.as_secs());
    let not_after =
        world.now.saturating_add(wanted).unwrap_or(Timestamp::MAX).min(signer.facts.not_after);
    if not_after.duration_since(world.now) < SHORTEST {
        let message = format!(
            "spec.authorityRef.name: the CA of ClientAuthority {name:?} expires at {}, too soon to sign",
            signer.facts.not_after
        );
        return refuse(Reason::AuthorityExpired, message);
    }
    let supersedes = superseded_revision(world, current.as_ref());
    Decision::Issue(Issuance {
        trigger,
        profile,
        key,
        not_before: condition::truncate(not_before.max(signer.facts.not_before)),
        not_after: condition::truncate(not_after),
        revision: world.last_revision.max(supersedes).saturating_add(1),
        supersedes,
        spec_hash,
    })
}

fn trigger(world: &World<'_>, signer: &Signer<'_>, spec_hash: &str) -> Option<Trigger> {
    let current = match &world.secret {
        SecretView::Good(current) => current,
        SecretView::Broken(_) | SecretView::Restored(_) => return Some(Trigger::Repair),
        _ => return Some(Trigger::Missing),
    };
    if world.revoked || world.to_be_revoked {
        Some(Trigger::Revoked)
    } else if current.spec_hash != spec_hash {
        Some(Trigger::Changed)
    } else if reissue(world.identity, current, signer).is_some_and(|at| at <= world.now) {
        Some(Trigger::AuthorityRotated)
    } else if is_requested(world.identity, world.issued_at.unwrap_or(made(current)), world.now) {
        Some(Trigger::Requested)
    } else if renewal(world.identity, current) <= world.now {
        Some(Trigger::Renewal)
    } else {
        None
    }
}

/// The certificate that stands in the Secret, or, when that was spoilt or deleted, stood there last.
fn superseded_revision(world: &World<'_>, current: Option<&Current>) -> u32 {
    let told = world.identity.status.as_ref().and_then(|status| status.revision);
    let told = || told.and_then(|revision| u32::try_from(revision).ok()).unwrap_or(0);
    current.map_or_else(told, |current| current.revision)
}

/// When a certificate of an earlier CA is replaced; never when the active one signed it. Those with the
/// most of their life before them come first: they would keep the earlier CA trusted for longest. A
/// quarter of the time spreads those that are alike.
fn reissue(identity: &ClientIdentity, current: &Current, signer: &Signer<'_>) -> Option<Timestamp> {
    if current.generation == signer.key.generation {
        return None;
    }
    if !signer.retiring.contains(&current.generation) {
        return Some(Timestamp::MIN);
    }
    let within = signer.reissue_within.as_secs();
    let (start, end) = (current.not_before.as_second(), current.not_after.as_second());
    let lifetime = (end - start).max(1);
    let used = (signer.active_since.as_second() - start).clamp(0, lifetime);
    let uid = identity.metadata.uid.as_deref().unwrap_or_default();
    let spread = (fnv1a(uid.as_bytes()) % 1024) as i64;
    let after = within * 3 / 4 * used / lifetime + within / 4 * spread / 1024;
    let at = signer.active_since.saturating_add(SignedDuration::from_secs(after));
    Some(at.unwrap_or(signer.active_since))
}

/// Hash of what a certificate is made from: when it changes, a new one is issued. It must come out
/// the same after a restart and an upgrade, so it is taken over JSON of named fields.
fn spec_hash(
    spec: &ClientIdentitySpec,
    profile: &Profile,
    key: &KeySource,
    signer: &Signer<'_>,
) -> String {
    #[derive(Serialize)]
    struct Input<'a> {
        authority: &'a str,
        crl: Option<&'a str>,
        subject: String,
        names: Vec<String>,
        usages: Vec<&'static str>,
        duration: i64,
        // Left out with the default, as before there was another.
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        request: Option<&'a str>,
    }
    let (key, request) = match key {
        KeySource::Requested(request) => (None, Some(request.fingerprint.as_str())),
        made => (Some(made.key_type()).filter(|made| *made != KeyType::EcdsaP256), None),
    };
    let input = Input {
        authority: &signer.key.authority,
        crl: signer.crl_base,
        subject: hex(&profile.subject.to_der()),
        names: profile.alternative_names.iter().map(ToString::to_string).collect(),
        usages: profile.usages.iter().map(|usage| usage.as_str()).collect(),
        duration: spec.duration.as_secs(),
        key: key.map(KeyType::as_str),
        request,
    };
    let json = serde_json::to_vec(&input).expect("strings and numbers have a JSON form");
    sha256_hex(&json)[..32].to_owned()
}

/// The holder of an identity's certificates, as the ledger names it.
pub fn holder(identity: &ClientIdentity) -> super::ledger::Holder {
    let text = |text: Option<&str>| Arc::from(text.unwrap_or_default());
    super::ledger::Holder {
        uid: text(identity.metadata.uid.as_deref()),
        namespace: text(identity.metadata.namespace.as_deref()),
        name: text(identity.metadata.name.as_deref()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::api::allow::Usage;
    use crate::api::duration::Duration;
    use crate::api::lifecycle::{DeletionPolicy, RevocationPolicy};
    use crate::api::{AuthorityReference, ClientIdentityStatus, annotation};
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::issue::{IssueRequest, issue};
    use crate::pki::{CertificateAuthority, PrivateKey, Serial, inspect};
    use crate::plan::material::Material;
    use crate::plan::secret::{Published, Rendered, render_secret, view_metadata, view_secret};
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::Secret;

    const NOW: &str = "2026-05-01T10:00:00Z";

    pub(crate) fn identity() -> ClientIdentity {
        let mut identity = ClientIdentity::new(
            "laptop-7",
            ClientIdentitySpec {
                authority_ref: AuthorityReference { name: "clients".into() },
                common_name: Some("laptop-7".into()),
                subject: None,
                dns_names: vec![],
                email_addresses: vec![],
                uris: vec!["spiffe://example.com/laptop-7".into()],
                ip_addresses: vec![],
                user_principal_names: vec![],
                usages: vec![Usage::ClientAuth],
                private_key: None,
                request: None,
                keystores: None,
                additional_output_formats: vec![],
                duration: Duration::from_hours(24),
                renew_before: Some(Duration::from_hours(8)),
                secret_name: "laptop-7-tls".into(),
                renew_before_percentage: None,
                secret_template: None,
                deletion_policy: DeletionPolicy::Revoke,
                revocation_policy: RevocationPolicy::default(),
                rollout_restart_targets: vec![],
            },
        );
        identity.metadata.namespace = Some("team".into());
        identity.metadata.uid = Some("c0ffee".into());
        identity.metadata.generation = Some(1);
        identity
    }

    /// Owns what a `World` borrows.
    struct Fixture {
        ca: CertificateAuthority,
        bundle: String,
        bundle_hash: String,
        key: CaKey,
        identity: ClientIdentity,
        policy: Policy,
    }

    impl Fixture {
        fn new() -> Self {
            let ca = sample();
            let bundle = ca.certificate_pem();
            let bundle_hash = sha256_hex(bundle.as_bytes());
            let key = CaKey::first("clients");
            let policy = Policy::compile(None).unwrap();
            Self { ca, bundle, bundle_hash, key, identity: identity(), policy }
        }

        fn world(&self, secret: SecretView) -> World<'_> {
            World {
                identity: &self.identity,
                namespace: None,
                authority: AuthorityView::Ready(Signer {
                    key: &self.key,
                    facts: self.ca.facts(),
                    bundle_hash: &self.bundle_hash,
                    crl_base: None,
                    active_since: instant("2026-01-01T00:00:00Z"),
                    reissue_within: SignedDuration::from_hours(1),
                    retiring: &[],
                    policy: &self.policy,
                }),
                secret,
                rival: None,
                hold: None,
                revoked: false,
                to_be_revoked: false,
                issued_at: None,
                dressed: true,
                last_revision: 0,
                now: instant(NOW),
            }
        }

        /// Does what the controller does with a decision to issue.
        fn issue(&self, issuance: &Issuance, present: Option<Secret>) -> Secret {
            let key = PrivateKey::generate(KeyType::EcdsaP256);
            let public_key = key.public_key_der();
            let request = IssueRequest {
                profile: &issuance.profile,
                public_key_der: &public_key,
                serial: Serial::random(),
                not_before: issuance.not_before,
                not_after: issuance.not_after,
                crl_url: None,
            };
            let issued = issue(&self.ca, &request).unwrap();
            let facts = inspect::inspect(&issued.der).unwrap();
            let current = Current {
                serial: facts.serial,
                fingerprint: facts.fingerprint,
                not_before: facts.not_before,
                not_after: facts.not_after,
                revision: issuance.revision,
                spec_hash: issuance.spec_hash.clone(),
                generation: self.key.generation,
                bundle_hash: self.bundle_hash.clone(),
                data_hash: None,
                public_key: None,
                lacks: None,
            };
            let rendered = Rendered {
                current: &current,
                material: Material {
                    chain: issued.pem().into_bytes(),
                    key: Some(&key),
                    bundle: &self.bundle,
                    keystores: None,
                },
            };
            render_secret(&self.identity, present, &rendered)
        }

        fn issued(&self) -> Secret {
            let Decision::Issue(issuance) = decide(&self.world(SecretView::Absent)) else {
                panic!("an absent Secret must be issued")
            };
            self.issue(&issuance, None)
        }

        fn view(&self, secret: &Secret) -> SecretView {
            let published = Published { trusted: &[&self.ca], bundle: &self.bundle };
            view_secret(&self.identity, Some(secret), Some(published), None, instant(NOW))
        }
    }

    fn trigger_of(decision: Decision) -> Option<Trigger> {
        match decision {
            Decision::Issue(issuance) => Some(issuance.trigger),
            _ => None,
        }
    }

    fn reason_of(decision: Decision) -> Option<Reason> {
        match decision {
            Decision::Refuse { reason, .. } => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn what_was_issued_is_kept_until_its_renewal() {
        let fixture = Fixture::new();
        let secret = fixture.issued();
        let view = fixture.view(&secret);
        let mut world = fixture.world(view);
        let Decision::Keep { current, renewal } = decide(&world) else {
            panic!("planned again after its own issuance: {:?}", decide(&world))
        };
        assert_eq!(current.revision, 1);
        let latest = instant(NOW) + SignedDuration::from_hours(16);
        assert!(renewal <= latest && renewal >= latest - SignedDuration::from_mins(97));

        world.now = renewal - SignedDuration::from_secs(1);
        assert!(matches!(decide(&world), Decision::Keep { .. }));
        world.now = renewal;
        let Decision::Issue(issuance) = decide(&world) else { panic!("not renewed") };
        assert_eq!((issuance.trigger, issuance.revision), (Trigger::Renewal, 2));
    }

    #[test]
    fn metadata_alone_leads_to_the_same_decision() {
        let fixture = Fixture::new();
        let secret = fixture.issued();
        let current = view_metadata(&secret.metadata).unwrap();
        let decision = decide(&fixture.world(SecretView::Good(current.clone())));
        let SecretView::Good(read) = fixture.view(&secret) else { panic!("not good") };
        assert_eq!(Current { public_key: None, ..read }, current);
        assert!(matches!(decision, Decision::Keep { .. }));
    }

    #[test]
    fn a_secret_edited_by_hand_is_repaired_and_additions_of_others_stay() {
        let fixture = Fixture::new();
        let good = fixture.issued();
        let other = fixture.issued();
        let swap = |key: &str, from: Option<&Secret>| {
            let mut secret = good.clone();
            let data = secret.data.as_mut().unwrap();
            match from {
                Some(from) => data.insert(key.into(), from.data.as_ref().unwrap()[key].clone()),
                None => data.remove(key),
            };
            secret
        };
        let mut both = swap("tls.crt", Some(&other));
        both.data = other.data.clone();
        for broken in [
            swap("tls.crt", Some(&other)),
            swap("tls.key", Some(&other)),
            swap("tls.crt", None),
            swap("tls.key", None),
            both,
        ] {
            let decision = decide(&fixture.world(fixture.view(&broken)));
            assert_eq!(trigger_of(decision), Some(Trigger::Repair));
        }
        let mut stripped = good.clone();
        stripped.metadata.annotations = None;
        let decision = decide(&fixture.world(fixture.view(&stripped)));
        assert_eq!(trigger_of(decision), Some(Trigger::Repair));

        let bundle = decide(&fixture.world(fixture.view(&swap("ca.crt", None))));
        assert!(matches!(bundle, Decision::Refresh(_)), "{bundle:?}");

        let mut added = good;
        added.data.as_mut().unwrap().insert("note".into(), ByteString(b"mine".to_vec()));
        assert!(matches!(decide(&fixture.world(fixture.view(&added))), Decision::Keep { .. }));
        let Decision::Issue(issuance) =
            decide(&World { revoked: true, ..fixture.world(fixture.view(&added)) })
        else {
            panic!("a revoked certificate must be replaced")
        };
        let replaced = fixture.issue(&issuance, Some(added));
        assert_eq!(replaced.data.unwrap()["note"].0, b"mine");
    }

    #[test]
    fn a_change_of_names_ca_or_duration_issues_anew() {
        let mut fixture = Fixture::new();
        let secret = fixture.issued();
        let view = fixture.view(&secret);
        let original = fixture.identity.clone();

        fixture.identity.spec.common_name = Some("laptop-8".into());
        assert_eq!(trigger_of(decide(&fixture.world(view.clone()))), Some(Trigger::Changed));
        fixture.identity = original.clone();
        fixture.identity.spec.duration = Duration::from_hours(48);
        assert_eq!(trigger_of(decide(&fixture.world(view.clone()))), Some(Trigger::Changed));
        fixture.identity = original.clone();
        fixture.identity.spec.renew_before = Some(Duration::from_hours(9));
        assert_eq!(trigger_of(decide(&fixture.world(view))), None);

        fixture.identity = original;
        fixture.identity.spec.authority_ref.name = "others".into();
        fixture.key.authority = "others".into();
        let of_other_ca = fixture.view(&secret);
        assert_eq!(trigger_of(decide(&fixture.world(of_other_ca))), Some(Trigger::Changed));
    }

    #[test]
    fn certificates_of_an_earlier_ca_are_replaced_the_longest_lasting_first() {
        let fixture = Fixture::new();
        let SecretView::Good(current) = fixture.view(&fixture.issued()) else { panic!("not good") };
        let key = CaKey { generation: 2, ..fixture.key.clone() };
        let decide_at = |current: &Current, retiring: &[u32], now: &str| {
            let mut world = fixture.world(SecretView::Good(current.clone()));
            let AuthorityView::Ready(signer) = world.authority else { unreachable!() };
            let active_since = instant(NOW);
            let signer = Signer { key: &key, retiring, active_since, ..signer };
            world.authority = AuthorityView::Ready(signer);
            world.now = instant(now);
            (trigger_of(decide(&world)), reissue(&fixture.identity, current, &signer).unwrap())
        };
        // Compromised: at once.
        assert_eq!(decide_at(&current, &[], NOW).0, Some(Trigger::AuthorityRotated));
        // Retiring: within the hour.
        let (none, fresh) = decide_at(&current, &[1], NOW);
        assert_eq!(none, None);
        let old = Current { not_before: instant("2026-04-30T12:00:00Z"), ..current.clone() };
        let (_, used_up) = decide_at(&old, &[1], NOW);
        assert!(instant(NOW) <= fresh && fresh < used_up, "{fresh} {used_up}");
        assert!(used_up <= instant(NOW) + SignedDuration::from_hours(1));
        let late = decide_at(&current, &[1], "2026-05-01T11:00:00Z");
        assert_eq!(late.0, Some(Trigger::AuthorityRotated));
    }

    #[test]
    fn a_foreign_secret_is_never_overwritten() {
        let fixture = Fixture::new();
        let ours = fixture.issued();
        let mut unowned = ours.clone();
        unowned.metadata.owner_references = None;
        unowned.metadata.labels = None;
        let mut of_deployment = ours.clone();
        of_deployment.metadata.owner_references.as_mut().unwrap()[0].kind = "Deployment".into();
        of_deployment.metadata.owner_references.as_mut().unwrap()[0].uid = "other".into();
        let mut of_another = ours.clone();
        of_another.metadata.owner_references.as_mut().unwrap()[0].uid = "other".into();
        of_another.metadata.owner_references.as_mut().unwrap()[0].name = "other".into();
        for foreign in [unowned, of_deployment, of_another] {
            let decision = decide(&fixture.world(fixture.view(&foreign)));
            assert_eq!(reason_of(decision), Some(Reason::SecretNotOwned));
        }
        let mut predecessor = ours.clone();
        predecessor.metadata.owner_references.as_mut().unwrap()[0].uid = "other".into();
        assert_eq!(decide(&fixture.world(fixture.view(&predecessor))), Decision::Wait);
        let mut unlabelled = ours;
        unlabelled.metadata.labels = None;
        let decision = decide(&fixture.world(fixture.view(&unlabelled)));
        assert_eq!(trigger_of(decision), Some(Trigger::Repair), "it would not be watched");
    }

    #[test]
    fn a_restored_secret_is_kept_when_its_certificate_is_taken_over_and_replaced_otherwise() {
        let fixture = Fixture::new();
        let mut restored = fixture.issued();
        restored.metadata.owner_references = None;
        let SecretView::Restored(current) = fixture.view(&restored) else {
            panic!("{:?}", fixture.view(&restored))
        };
        let decision = decide(&fixture.world(SecretView::Restored(current.clone())));
        assert_eq!(trigger_of(decision), Some(Trigger::Repair));
        let taken_over = World { dressed: false, ..fixture.world(SecretView::Good(current)) };
        assert!(matches!(decide(&taken_over), Decision::Refresh(_)));
        // Without the right key, or from a CA that nobody trusts, it is not even looked up.
        let mut keyless = restored.clone();
        keyless.data.as_mut().unwrap().remove("tls.key");
        assert!(matches!(fixture.view(&keyless), SecretView::Broken(_)));
        let none = Published { trusted: &[], bundle: &fixture.bundle };
        let view = |published| {
            view_secret(&fixture.identity, Some(&restored), published, None, instant(NOW))
        };
        assert!(matches!(view(Some(none)), SecretView::Broken(_)));
        assert!(matches!(view(None), SecretView::Broken(_)));
    }

    #[test]
    fn refusals_name_object_and_field() {
        let fixture = Fixture::new();
        let world = || fixture.world(SecretView::Absent);
        for (world, reason, words) in [
            (
                World { authority: AuthorityView::NotFound, ..world() },
                Reason::AuthorityNotFound,
                "spec.authorityRef.name: ClientAuthority \"clients\" does not exist",
            ),
            (
                World { authority: AuthorityView::NotReady, ..world() },
                Reason::AuthorityNotReady,
                "is not ready",
            ),
            (
                World { rival: Some("older".into()), ..world() },
                Reason::SecretNameConflict,
                "spec.secretName: ClientIdentity \"older\"",
            ),
            (
                World { hold: Some("stolen".into()), ..world() },
                Reason::Revoked,
                "CertificateRevocation \"stolen\"",
            ),
            (
                World { now: instant("2035-12-31T23:58:00Z"), ..world() },
                Reason::AuthorityExpired,
                "too soon to sign",
            ),
        ] {
            let Decision::Refuse { reason: got, message, .. } = decide(&world) else {
                panic!("{reason:?} was not refused")
            };
            assert_eq!(got, reason);
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_valid_certificate_outlasts_its_authoritys_trouble() {
        let fixture = Fixture::new();
        let view = fixture.view(&fixture.issued());
        let world = World { authority: AuthorityView::NotReady, ..fixture.world(view) };
        assert!(matches!(decide(&world), Decision::Keep { .. }));
        let expired = World { now: instant("2026-05-03T00:00:00Z"), ..world };
        assert_eq!(reason_of(decide(&expired)), Some(Reason::AuthorityNotReady));
    }

    fn rules(expression: &str) -> Policy {
        let allow = format!("{{rules: [{{expression: {expression:?}, message: no}}]}}");
        Policy::compile(Some(&serde_yaml::from_str(&allow).unwrap())).unwrap()
    }

    #[test]
    fn what_is_not_allowed_is_never_issued_whatever_the_trigger() {
        let mut fixture = Fixture::new();
        let secret = fixture.issued();
        let good = fixture.view(&secret);
        let mut damaged = secret;
        damaged.data.as_mut().unwrap().remove("tls.key");
        let damaged = fixture.view(&damaged);
        fixture.policy = rules("identity.commonName == 'laptop-8'");
        let late = instant(NOW) + SignedDuration::from_hours(23);
        let kept = |decision: Decision| match decision {
            Decision::Refuse { reason: Reason::NotAllowed, message, current } => {
                let words = "ClientAuthority \"clients\" does not allow it: spec.allow.rules[0]: no; asked for: ";
                assert!(message.contains(words), "{message}");
                assert_eq!(message.contains("valid until 2026-05-02T10:00:00Z"), current.is_some());
                current.is_some()
            }
            other => panic!("not refused: {other:?}"),
        };
        let world = |secret: &SecretView| fixture.world(secret.clone());
        assert!(!kept(decide(&world(&SecretView::Absent))));
        assert!(!kept(decide(&world(&damaged))));
        assert!(kept(decide(&world(&good))));
        assert!(kept(decide(&World { now: late, ..world(&good) })), "at its renewal");

        // What is revoked or expired is not called valid.
        for world in [
            World { revoked: true, ..world(&good) },
            World { now: instant("2026-05-03T00:00:00Z"), ..world(&good) },
        ] {
            let Decision::Refuse { reason, message, .. } = decide(&world) else { panic!("issued") };
            assert_eq!(reason, Reason::NotAllowed);
            assert!(!message.contains("valid until"), "{message}");
        }

        // Also a change of its own spec: it asks for more than it has.
        fixture.policy = rules("identity.dnsNames == []");
        assert!(matches!(decide(&fixture.world(good.clone())), Decision::Keep { .. }));
        fixture.identity.spec.dns_names = vec!["other.example.com".into()];
        assert_eq!(reason_of(decide(&fixture.world(good))), Some(Reason::NotAllowed));
    }

    #[test]
    fn the_labels_of_the_namespace_decide_as_they_are_now() {
        let mut fixture = Fixture::new();
        let allow = "{namespaceSelector: {matchLabels: {clients: 'yes'}}}";
        fixture.policy = Policy::compile(Some(&serde_yaml::from_str(allow).unwrap())).unwrap();
        let namespace = |value: &str| ObjectMeta {
            name: Some("team".into()),
            labels: Some([("clients".to_owned(), value.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let (yes, no) = (namespace("yes"), namespace("no"));
        let world = || fixture.world(SecretView::Absent);
        assert_eq!(reason_of(decide(&world())), Some(Reason::NotAllowed), "unseen");
        let refused = World { namespace: Some(&no), ..world() };
        assert_eq!(reason_of(decide(&refused)), Some(Reason::NotAllowed));
        let allowed = World { namespace: Some(&yes), ..world() };
        assert_eq!(trigger_of(decide(&allowed)), Some(Trigger::Missing));
    }

    #[test]
    fn a_request_for_renewal_is_served_once() {
        let mut fixture = Fixture::new();
        let secret = fixture.issued();
        let annotations = fixture.identity.metadata.annotations.get_or_insert_default();
        annotations.insert(annotation::RENEW_REQUESTED_AT.into(), "2026-05-01T11:00:00Z".into());
        let view = fixture.view(&secret);
        let now = instant("2026-05-01T11:00:00Z");
        let world = |issued_at| World { issued_at, now, ..fixture.world(view.clone()) };
        assert_eq!(trigger_of(decide(&world(None))), Some(Trigger::Requested));
        let before = Some(instant("2026-05-01T10:59:59Z"));
        assert_eq!(trigger_of(decide(&world(before))), Some(Trigger::Requested));
        assert!(matches!(decide(&world(Some(now))), Decision::Keep { .. }), "served");
        let early = World { now: instant("2026-05-01T10:59:59Z"), ..world(None) };
        assert!(matches!(decide(&early), Decision::Keep { .. }), "not yet");
    }

    #[test]
    fn a_certificate_that_is_to_be_revoked_is_replaced_and_trouble_with_that_is_told() {
        let fixture = Fixture::new();
        let view = || fixture.view(&fixture.issued());
        let doomed = || World { to_be_revoked: true, ..fixture.world(view()) };
        assert_eq!(trigger_of(decide(&doomed())), Some(Trigger::Revoked));
        // A good certificate outlives its authority's trouble; one that must go does not hide it.
        let world = World { authority: AuthorityView::NotReady, ..doomed() };
        assert_eq!(reason_of(decide(&world)), Some(Reason::AuthorityNotReady));
        let world = World { to_be_revoked: false, ..world };
        assert!(matches!(decide(&world), Decision::Keep { .. }));
    }

    #[test]
    fn a_change_of_dress_alone_is_no_new_certificate() {
        let fixture = Fixture::new();
        let view = fixture.view(&fixture.issued());
        let world = World { dressed: false, ..fixture.world(view) };
        assert!(matches!(decide(&world), Decision::Refresh(_)));
    }

    #[test]
    fn a_certificate_names_the_one_that_it_replaces() {
        let mut fixture = Fixture::new();
        let first = fixture.issued();
        let supersedes = |fixture: &Fixture, view, last_revision| {
            let world = World { last_revision, revoked: true, ..fixture.world(view) };
            let Decision::Issue(issuance) = decide(&world) else { panic!("not issued") };
            (issuance.supersedes, issuance.revision)
        };
        assert_eq!(supersedes(&fixture, fixture.view(&first), 1), (1, 2));
        // Others were recorded since, and never written.
        assert_eq!(supersedes(&fixture, fixture.view(&first), 4), (1, 5));
        assert_eq!(supersedes(&fixture, SecretView::Absent, 0), (0, 1));
        // The Secret is gone: status knows what it held.
        let status = ClientIdentityStatus { revision: Some(3), ..Default::default() };
        fixture.identity.status = Some(status);
        assert_eq!(supersedes(&fixture, SecretView::Absent, 4), (3, 5));
    }

    #[test]
    fn a_retained_secret_is_known_by_its_mark_and_by_no_other() {
        let mut fixture = Fixture::new();
        fixture.identity.spec.deletion_policy = DeletionPolicy::Retain;
        let retained = fixture.issued();
        assert_eq!(retained.metadata.owner_references, None);
        assert!(matches!(fixture.view(&retained), SecretView::Good(_)));
        // Back under the garbage collector: no new certificate for that.
        fixture.identity.spec.deletion_policy = DeletionPolicy::Revoke;
        assert!(matches!(fixture.view(&retained), SecretView::Good(_)));
        // Another identity of that name finds it: its certificate is another's.
        fixture.identity.metadata.uid = Some("another".into());
        let decision = decide(&fixture.world(fixture.view(&retained)));
        assert_eq!(trigger_of(decision), Some(Trigger::Repair));
        // One of another name may not have it, nor one that lost our label.
        fixture.identity.metadata.name = Some("other".into());
        assert!(matches!(fixture.view(&retained), SecretView::Foreign(_)));
        fixture.identity.metadata = identity().metadata;
        let mut bare = retained;
        bare.metadata.labels = None;
        assert!(matches!(fixture.view(&bare), SecretView::Foreign(_)));
    }

    #[test]
    fn a_revision_is_never_used_twice() {
        let fixture = Fixture::new();
        let world = World { last_revision: 4, ..fixture.world(SecretView::Absent) };
        let Decision::Issue(issuance) = decide(&world) else { panic!("not issued") };
        assert_eq!(issuance.revision, 5);
    }
}
