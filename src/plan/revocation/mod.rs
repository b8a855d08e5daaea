//! Which certificates a `CertificateRevocation` revokes and when, and whether the CRL shows them.

mod find;

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use self::find::{Found, awaited, find, scope};
use super::enforcement::{self, Enforcement};
use super::ledger::{CaKey, Ledger, Record, Revoked};
use super::scope::deadline;
use crate::api::condition::{self, ENFORCED, PUBLISHED, RECORDED, Wanted};
use crate::api::revocation::{CrlReference, RevocationReason, RevokedCertificate};
use crate::api::{CertificateRevocation, CertificateRevocationStatus, ClientIdentity, ClientTrust};
use crate::pki::Serial;
use crate::pki::crl::{CrlFacts, CrlNumber};

/// As many certificates are named in status; the ledger holds all.
const NAMED_IN_STATUS: usize = 100;
/// As many CAs are named in status.
const CAS_IN_STATUS: usize = 32;

/// Why a revocation is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The serials stand in the ledger.
    Recorded,
    /// The serials stand in a published CRL.
    Published,
    /// Every trust has that CRL in force.
    Enforced,
    /// No `ClientTrust` trusts the authority.
    NothingToEnforce,
    /// It is under way.
    Pending,
    /// The servers that answer for the gate can't be asked, or nobody said where they are.
    ServersNotObserved,
    /// A `ClientTrust` is not in force itself.
    TrustNotReady,
    /// The new certificate that `spec.renew` asks for is not in place yet.
    WaitingForRenewal,
    /// Nothing that was issued in this namespace matches.
    NotFound,
    /// The certificate was issued in another namespace.
    OtherNamespace,
    /// `spec.serialNumber` is not one.
    InvalidSerialNumber,
    /// `spec.fingerprint` is not one.
    InvalidFingerprint,
    /// Fields of the spec exclude each other.
    InvalidSpec,
}

impl Reason {
    /// The reason as conditions and events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "Recorded",
            Self::Published => "Published",
            Self::Enforced => "Enforced",
            Self::NothingToEnforce => "NothingToEnforce",
            Self::Pending => "Pending",
            Self::ServersNotObserved => "ServersNotObserved",
            Self::TrustNotReady => "TrustNotReady",
            Self::WaitingForRenewal => "WaitingForRenewal",
            Self::NotFound => "NotFound",
            Self::OtherNamespace => "OtherNamespace",
            Self::InvalidSerialNumber => "InvalidSerialNumber",
            Self::InvalidFingerprint => "InvalidFingerprint",
            Self::InvalidSpec => "InvalidSpec",
        }
    }
}

/// One CA with its ledger and published CRL.
pub struct Book<'a> {
    /// Which CA.
    pub key: &'a CaKey,
    /// Its ledger.
    pub ledger: &'a Ledger,
    /// Its published CRL.
    pub published: Option<&'a CrlFacts>,
    /// Is it trusted? Where it is not, nobody asks for its CRL.
    pub trusted: bool,
}

/// The certificate in an identity's Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InSecret {
    /// Its serial number.
    pub serial: Serial,
    /// Number of the issuance.
    pub revision: u32,
}

/// Everything that the decision depends on.
pub struct World<'a> {
    /// The request.
    pub revocation: &'a CertificateRevocation,
    /// The operator's namespace.
    pub home: &'a str,
    /// The identity that it names, or that holds the certificate that it names, when that exists.
    pub identity: Option<&'a ClientIdentity>,
    /// What the identity's Secret holds, when it holds a certificate.
    pub in_secret: Option<InSecret>,
    /// Serial number of the certificate with `spec.fingerprint`, when one is known.
    pub fingerprinted: Option<Serial>,
    /// All CAs.
    pub books: Vec<Book<'a>>,
    /// All trusts.
    pub trusts: &'a [Arc<ClientTrust>],
    /// The time.
    pub now: Timestamp,
}

/// What to do about a revocation.
#[derive(Debug, PartialEq)]
pub struct Decision {
    /// What to record first.
    pub record: Vec<(CaKey, Record)>,
    /// The status once that is recorded.
    pub status: CertificateRevocationStatus,
    /// Is the identity awaited, until this time at the latest?
    pub awaits: Option<Timestamp>,
    /// Does what is decided rest on what the identity's Secret holds? A cache alone must not say so.
    pub rests_on_secret: bool,
}

/// Decides which certificates are revoked.
pub fn decide(world: &World<'_>) -> Decision {
    let spec = &world.revocation.spec;
    let known = world.revocation.status.clone().unwrap_or_default();
    let before = known.clone();
    let scope = match scope(world, &known) {
        Ok(scope) => scope,
        Err(refusal) => return refusal.into_decision(world, before),
    };
    let found = match find(world, &scope) {
        Ok(found) => found,
        Err(refusal) => return refusal.into_decision(world, before),
    };
    let due: Vec<&Found<'_>> = found.iter().filter(|found| found.revoked.is_none()).collect();
    let late = deadline(world.revocation) <= world.now;
    let cause = found.first().filter(|_| spec.renew).and_then(|one| awaited(world, &scope, one));
    if let (Some(cause), false, false) = (&cause, late, due.is_empty()) {
        let end = deadline(world.revocation);
        let message = format!(
            "{cause}. {} certificate(s) are revoked once the new one is in place, and at {end} all the same",
            due.len()
        );
        let mut decision = told(world, before, Reason::WaitingForRenewal, message);
        decision.status.identity_uid = scope.uid().map(Into::into);
        decision.awaits = Some(end);
        return decision;
    }

    let revoked_at = condition::truncate(world.now);
    let reason = spec.reason.map(RevocationReason::code);
    let revoked = |found: &Found<'_>| {
        let serial = found.issued.serial;
        found.revoked.unwrap_or(Revoked { serial, revoked_at, reason })
    };
    let record: Vec<_> =
        due.iter().map(|due| (due.book.key.clone(), Record::Revoked(revoked(due)))).collect();
    let mut certificates: Vec<_> = found
        .iter()
        .map(|found| RevokedCertificate {
            authority: found.book.key.authority.to_string(),
            serial_number: found.issued.serial.to_string(),
            revocation_time: Time(revoked(found).revoked_at),
        })
        .collect();
    let count = certificates.len();
    certificates.drain(..count.saturating_sub(NAMED_IN_STATUS));

    let known = before.conditions.iter().find(|c| c.type_ == RECORDED && c.status == "True");
    let recorded = match known.filter(|_| record.is_empty()) {
        // Told once: what it says of how it came about can't be seen later.
        Some(known) => known.message.clone(),
        None => match cause.filter(|_| late) {
            Some(cause) => format!(
                "{count} certificate(s) recorded as revoked; no new one came within the time of spec.renewTimeout: {cause}"
            ),
            None => format!("{count} certificate(s) recorded as revoked"),
        },
    };
    let recorded = Wanted::yes(RECORDED, Reason::Recorded.as_str(), recorded);
    let status = CertificateRevocationStatus {
        identity_uid: scope.uid().map(Into::into),
        recorded_time: before.recorded_time.clone().or(Some(Time(revoked_at))),
        certificates,
        ..before
    };
    let status = published(world, &found, recorded, !record.is_empty(), status);
    Decision { rests_on_secret: spec.renew && !record.is_empty(), record, status, awaits: None }
}

/// Adds what became of the recorded certificates: are they published, and enforced?
fn published(
    world: &World<'_>,
    found: &[Found<'_>],
    recorded: Wanted,
    is_new: bool,
    before: CertificateRevocationStatus,
) -> CertificateRevocationStatus {
    let pending = found.iter().filter(|found| found.is_pending()).count();
    // `Published` says that the CRL held them once; it does not fall back when entries expire. Another
    // leader may have said it of fewer.
    let known = world.revocation.status.iter().flat_map(|status| &status.certificates);
    let known: HashSet<&str> = known.map(|known| known.serial_number.as_str()).collect();
    let named = found.iter().rev().take(NAMED_IN_STATUS);
    let is_same = named.map(|found| found.issued.serial.to_string()).all(|s| known.contains(&*s));
    let was_published = condition::is_true(&before.conditions, PUBLISHED) && !is_new && is_same;
    let published = if pending == 0 || was_published {
        let message = "every certificate stands in the published CRL";
        Wanted::yes(PUBLISHED, Reason::Published.as_str(), message)
    } else {
        let message = format!("{pending} certificate(s) wait for the next CRL");
        Wanted::no(PUBLISHED, Reason::Pending.as_str(), message)
    };
    let mut crls = before.crls.clone();
    let mut published_time = before.published_time.clone();
    let mut crl_number = before.crl_number.clone();
    if published.status && (published_time.is_none() || crls.is_empty()) {
        let mut holding: Vec<(&CaKey, CrlNumber)> = found
            .iter()
            .filter(|found| found.book.trusted)
            .filter_map(|found| Some((found.book.key, found.book.published?.number)))
            .collect();
        holding.sort();
        holding.dedup();
        let highest = holding.iter().map(|(_, number)| *number).max();
        crl_number = crl_number.or(highest.map(text));
        crls = holding
            .into_iter()
            .take(CAS_IN_STATUS)
            .map(|(key, number)| CrlReference {
                authority: key.authority.to_string(),
                generation: key.generation.into(),
                crl_number: text(number),
            })
            .collect();
        published_time = published_time.or(Some(Time(condition::truncate(world.now))));
    }
    let Enforcement { condition: enforced, trusts, time } = if published.status {
        enforcement::decide(&before, &crls, world.trusts, world.now)
    } else {
        let message = "the certificates are not published yet";
        let condition = Wanted::no(ENFORCED, Reason::Pending.as_str(), message);
        Enforcement { condition, trusts: Vec::new(), time: None }
    };
    CertificateRevocationStatus {
        crls,
        crl_number,
        published_time,
        trusts,
        enforced_time: time,
        conditions: condition::merge(
            &before.conditions,
            &[recorded, published, enforced],
            world.revocation.metadata.generation,
            world.now,
        ),
        ..before
    }
}

/// Tells by `Recorded` how things are, and revokes nothing.
fn told(
    world: &World<'_>,
    before: CertificateRevocationStatus,
    reason: Reason,
    message: String,
) -> Decision {
    let recorded = Wanted {
        status: reason == Reason::Recorded,
        ..Wanted::no(RECORDED, reason.as_str(), message)
    };
    let generation = world.revocation.metadata.generation;
    let conditions = condition::merge(&before.conditions, &[recorded], generation, world.now);
    Decision {
        record: Vec::new(),
        status: CertificateRevocationStatus { conditions, ..before },
        awaits: None,
        rests_on_secret: false,
    }
}

fn text(number: CrlNumber) -> String {
    number.0.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::condition::READY;
    use crate::api::revocation::{Certificates, RevisionRange};
    use crate::api::{CertificateRevocationSpec, ClientIdentityStatus, LocalReference};
    use crate::plan::identity::tests::identity as some_identity;
    use crate::plan::ledger::Issued;
    use crate::plan::ledger::tests::issued;
    use crate::plan::scope::holds;
    use proptest::prelude::*;

    const NOW: i64 = 100;

    fn revocation(identity: Option<&str>, serial: Option<&str>) -> CertificateRevocation {
        let mut revocation = CertificateRevocation::new(
            "stolen",
            CertificateRevocationSpec {
                identity_ref: identity.map(|name| LocalReference { name: name.into() }),
                certificates: None,
                issued_before: None,
                serial_number: serial.map(Into::into),
                fingerprint: None,
                renew: false,
                renew_timeout: None,
                reason: Some(RevocationReason::KeyCompromise),
            },
        );
        revocation.metadata.namespace = Some("team".into());
        revocation.metadata.creation_timestamp = Some(Time(second(NOW)));
        revocation
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Serials are revisions; the first one has expired, the third one was issued at 60.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.apply(Record::Issued(issued("01", "uid-1", 1, 50)));
        ledger.apply(Record::Issued(issued("02", "uid-1", 2, 5000)));
        let dated = Issued { issued_at: Some(second(60)), ..issued("03", "uid-1", 3, 6000) };
        ledger.apply(Record::Issued(dated));
        ledger.apply(Record::Issued(issued("f4", "uid-2", 1, 4000)));
        ledger
    }

    fn identity(uid: &str) -> ClientIdentity {
        let mut identity = some_identity();
        identity.metadata.uid = Some(uid.into());
        identity.metadata.name = Some("laptop".into());
        identity.metadata.namespace = Some("team".into());
        identity
    }

    struct Scene {
        revocation: CertificateRevocation,
        ledger: Ledger,
        identity: Option<ClientIdentity>,
        in_secret: Option<InSecret>,
        fingerprinted: Option<Serial>,
        crl: Option<CrlFacts>,
        now: i64,
    }

    impl Scene {
        fn new(revocation: CertificateRevocation) -> Self {
            let identity = Some(identity("uid-1"));
            let in_secret = Some(InSecret { serial: "03".parse().unwrap(), revision: 3 });
            Self {
                revocation,
                ledger: ledger(),
                identity,
                in_secret,
                fingerprinted: None,
                crl: None,
                now: NOW,
            }
        }

        fn decide(&self) -> Decision {
            let key = CaKey::first("clients");
            let published = self.crl.as_ref();
            let books = vec![Book { key: &key, ledger: &self.ledger, published, trusted: true }];
            decide(&World {
                revocation: &self.revocation,
                home: "home",
                identity: self.identity.as_ref(),
                in_secret: self.in_secret,
                fingerprinted: self.fingerprinted,
                books,
                trusts: &[],
                now: second(self.now),
            })
        }

        /// Decides, and does it, until nothing changes; the serials that were recorded.
        fn settle(&mut self) -> Vec<String> {
            let mut recorded = Vec::new();
            for _ in 0..5 {
                let decision = self.decide();
                for (_, record) in &decision.record {
                    recorded.push(record.serial().to_string());
                    self.ledger.apply(record.clone());
                }
                // What was recorded is told by a decision over the ledger as it is then.
                let status = self.decide().status;
                if decision.record.is_empty() && self.revocation.status.as_ref() == Some(&status) {
                    return recorded;
                }
                self.revocation.status = Some(status);
            }
            panic!("it does not come to rest: {:?}", self.revocation.status);
        }

        fn issue(&mut self, revision: u32) {
            let serial = format!("{revision:02x}");
            let new = issued(&serial, "uid-1", revision, 9000);
            self.ledger.apply(Record::Issued(Issued { issued_at: Some(second(self.now)), ..new }));
            self.in_secret = Some(InSecret { serial: serial.parse().unwrap(), revision });
        }

        fn recorded(&self) -> (&str, &str, &str) {
            let status = self.revocation.status.as_ref().expect("a status");
            let recorded = status.conditions.iter().find(|c| c.type_ == RECORDED).expect("told");
            (&recorded.status, &recorded.reason, &recorded.message)
        }
    }

    fn run(
        revocation: &CertificateRevocation,
        ledger: &Ledger,
        uid: Option<&str>,
        crl: Option<&CrlFacts>,
    ) -> Decision {
        let scene = Scene {
            ledger: ledger.clone(),
            identity: uid.map(identity),
            crl: crl.cloned(),
            ..Scene::new(revocation.clone())
        };
        scene.decide()
    }

    fn crl(serials: &[&str]) -> CrlFacts {
        CrlFacts {
            number: CrlNumber(42),
            this_update: Timestamp::from_second(90).unwrap(),
            next_update: Timestamp::from_second(9000).unwrap(),
            issuer_der: vec![],
            authority_key_id: vec![],
            serials: serials.iter().map(|serial| serial.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn an_identity_loses_all_its_unexpired_certificates_and_no_other_loses_any() {
        let ledger = ledger();
        let revocation = revocation(Some("laptop"), None);
        let decision = run(&revocation, &ledger, Some("uid-1"), None);
        let serials: Vec<_> =
            decision.record.iter().map(|(_, record)| record.serial().to_string()).collect();
        assert_eq!(serials, ["02", "03"]);
        assert!(condition::is_true(&decision.status.conditions, RECORDED));
        assert!(!condition::is_true(&decision.status.conditions, PUBLISHED));
        assert_eq!(decision.status.identity_uid.as_deref(), Some("uid-1"));
    }

    #[test]
    fn each_scope_revokes_what_it_says_and_fixes_that_before() {
        let before = |second: i64| Some(Time(self::second(second)));
        for (certificates, issued_before, expected) in [
            (Some(Certificates::Current), None, vec!["03"]),
            (Some(Certificates::Superseded), None, vec!["02"]),
            // No date in the ledger is before any.
            (None, before(60), vec!["02"]),
            (None, before(61), vec!["02", "03"]),
            (Some(Certificates::Current), before(60), vec![]),
            (Some(Certificates::Superseded), before(0), vec!["02"]),
        ] {
            let mut revocation = revocation(Some("laptop"), None);
            revocation.spec.certificates = certificates;
            revocation.spec.issued_before = issued_before.clone();
            let mut scene = Scene::new(revocation);
            let first = scene.decide();
            assert!(first.record.is_empty() && first.status.revisions.is_some());
            assert!(first.rests_on_secret, "which is the current one is not for a cache to say");
            // Whatever is issued from now on is no business of this request.
            scene.revocation.status = Some(first.status);
            scene.issue(4);
            assert_eq!(scene.settle(), expected, "{certificates:?} {issued_before:?}");
            scene.issue(5);
            assert!(scene.settle().is_empty());
            let reason = if expected.is_empty() { "NotFound" } else { "Recorded" };
            assert_eq!(scene.recorded().1, reason);
        }
    }

    #[test]
    fn with_renew_nothing_is_revoked_before_the_new_certificate_is_in_place() {
        let mut of_identity = revocation(Some("laptop"), None);
        of_identity.spec.renew = true;
        let mut of_serial = revocation(None, Some("03"));
        of_serial.spec.renew = true;
        for (revocation, expected) in [(of_identity, vec!["02", "03"]), (of_serial, vec!["03"])] {
            let mut scene = Scene::new(revocation);
            assert!(scene.settle().is_empty());
            let (status, reason, message) = scene.recorded();
            assert_eq!((status, reason), ("False", "WaitingForRenewal"), "{message}");
            assert_eq!(scene.decide().awaits, Some(second(NOW + 600)));
            // The Secret is away for a moment: that is no new certificate.
            let old = scene.in_secret.take();
            assert!(scene.settle().is_empty());
            scene.in_secret = old;
            scene.issue(4);
            assert!(scene.decide().rests_on_secret);
            assert_eq!(scene.settle(), expected);
            assert_eq!(scene.recorded().1, "Recorded");
            scene.issue(5);
            assert!(scene.settle().is_empty(), "later ones are no business of this request");
        }
    }

    #[test]
    fn a_renewal_that_does_not_come_is_told_with_its_cause_and_ends_in_revocation() {
        let mut revocation = revocation(Some("laptop"), None);
        revocation.spec.renew = true;
        revocation.spec.renew_timeout = Some(crate::api::duration::Duration::from_secs(60));
        let mut scene = Scene::new(revocation);
        let refused = Wanted::no(READY, "NotAllowed", "the authority refuses");
        let conditions = condition::merge(&[], &[refused], Some(1), second(NOW));
        let status = ClientIdentityStatus { conditions, ..Default::default() };
        scene.identity.as_mut().unwrap().status = Some(status);
        scene.now = NOW + 59;
        assert!(scene.settle().is_empty());
        let (_, reason, message) = scene.recorded();
        assert_eq!(reason, "WaitingForRenewal");
        assert!(message.contains("NotAllowed: the authority refuses"), "{message}");
        scene.now = NOW + 60;
        assert_eq!(scene.settle(), ["02", "03"]);
        let (_, reason, message) = scene.recorded();
        assert_eq!(reason, "Recorded");
        assert!(message.contains("no new one came within"), "{message}");
        // Told once, and kept when the new one comes after all.
        scene.issue(4);
        let told = scene.recorded().2.to_owned();
        assert!(scene.settle().is_empty());
        assert_eq!(scene.recorded().2, told);
    }

    #[test]
    fn where_no_new_certificate_will_come_renew_waits_for_none() {
        let mut revocation = revocation(Some("laptop"), None);
        revocation.spec.renew = true;
        let mut gone = Scene { identity: None, in_secret: None, ..Scene::new(revocation.clone()) };
        assert_eq!(gone.settle(), ["02", "03"]);
        let mut leaving = Scene::new(revocation.clone());
        leaving.identity.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(second(NOW)));
        assert_eq!(leaving.settle(), ["02", "03"]);
        // The one in the Secret was issued since: there is nothing to wait for.
        revocation.spec.issued_before = Some(Time(second(60)));
        assert_eq!(Scene::new(revocation).settle(), ["02"]);
    }

    #[test]
    fn an_issuance_under_way_that_keeps_the_key_is_concerned_too() {
        let mut revocation = revocation(Some("laptop"), None);
        revocation.spec.renew = true;
        let mut scene = Scene::new(revocation);
        let spec = &mut scene.identity.as_mut().unwrap().spec;
        spec.private_key = Some(serde_json::from_str("{\"rotationPolicy\": \"Never\"}").unwrap());
        assert!(scene.settle().is_empty());
        scene.issue(4);
        assert!(scene.settle().is_empty(), "decided on before the request was seen");
        scene.issue(5);
        assert_eq!(scene.settle(), ["02", "03", "04"]);
    }

    #[test]
    fn a_deleted_identity_is_found_in_the_ledger() {
        let decision = run(&revocation(Some("laptop"), None), &ledger(), None, None);
        assert_eq!(decision.status.identity_uid.as_deref(), Some("uid-1"));
        assert_eq!(decision.record.len(), 2);
    }

    #[test]
    fn published_is_told_with_the_number_once_the_crl_holds_them() {
        let mut ledger = ledger();
        let mut revocation = revocation(None, Some("02"));
        let first = run(&revocation, &ledger, None, Some(&crl(&[])));
        assert_eq!(first.record.len(), 1);
        ledger.apply(first.record[0].1.clone());
        revocation.status = Some(first.status);

        let second = run(&revocation, &ledger, None, Some(&crl(&["02"])));
        assert!(second.record.is_empty());
        assert!(condition::is_true(&second.status.conditions, PUBLISHED));
        assert_eq!(second.status.crl_number.as_deref(), Some("42"));
        let [one] = &*second.status.crls else { panic!("{:?}", second.status.crls) };
        assert_eq!((&*one.authority, one.generation, &*one.crl_number), ("clients", 1, "42"));
        revocation.status = Some(second.status.clone());
        let third = run(&revocation, &ledger, None, Some(&crl(&["02", "03"])));
        assert_eq!(third.status, second.status, "a settled revocation must not change");
        // Also when the ledger has forgotten what expired.
        let fourth = run(&revocation, &Ledger::default(), None, None);
        assert_eq!((fourth.record, fourth.status), (vec![], second.status));
    }

    #[test]
    fn nothing_of_another_namespace_is_revoked_but_from_the_operators_own() {
        let mut foreign = Scene::new(revocation(None, Some("02")));
        foreign.revocation.metadata.namespace = Some("other".into());
        assert!(foreign.settle().is_empty());
        let (status, reason, message) = foreign.recorded();
        assert_eq!((status, reason), ("False", "OtherNamespace"));
        assert!(!message.contains("team") && !message.contains("laptop"), "{message}");
        let mut at_home = Scene::new(revocation(None, Some("02")));
        at_home.revocation.metadata.namespace = Some("home".into());
        assert_eq!(at_home.settle(), ["02"]);
        for namespace in ["other", "home"] {
            let mut named = revocation(Some("laptop"), None);
            named.metadata.namespace = Some(namespace.into());
            assert!(run(&named, &ledger(), None, None).record.is_empty(), "{namespace}");
            // Not even by a UID that somebody wrote into its status.
            let identity_uid = Some("uid-1".into());
            named.status = Some(CertificateRevocationStatus { identity_uid, ..Default::default() });
            assert!(run(&named, &ledger(), None, None).record.is_empty(), "{namespace}");
        }
    }

    #[test]
    fn a_fingerprint_finds_its_certificate_and_is_not_lost_when_others_forget_it() {
        let mut revocation = revocation(None, None);
        revocation.spec.fingerprint = Some("ab".repeat(32));
        let mut scene = Scene::new(revocation);
        assert!(scene.settle().is_empty());
        let (_, reason, message) = scene.recorded();
        assert_eq!(reason, "NotFound");
        assert!(message.contains("spec.serialNumber finds it too"), "{message}");
        scene.fingerprinted = Some("03".parse().unwrap());
        assert_eq!(scene.settle(), ["03"]);
        scene.fingerprinted = None;
        assert!(scene.settle().is_empty());
        assert_eq!(scene.recorded().1, "Recorded");
    }

    #[test]
    fn what_does_not_exist_is_said_to_be_not_found() {
        for revocation in [revocation(Some("nobody"), None), revocation(None, Some("99"))] {
            let decision = run(&revocation, &ledger(), None, None);
            assert_eq!(decision.status.conditions[0].reason, "NotFound");
            assert_eq!(decision.status.conditions[0].status, "False");
        }
    }

    #[test]
    fn a_ca_that_nobody_trusts_has_nothing_left_to_publish() {
        let (key, scene) = (CaKey::first("clients"), Scene::new(revocation(Some("laptop"), None)));
        for (trusted, status) in [(true, "False"), (false, "True")] {
            let books = vec![Book { key: &key, ledger: &scene.ledger, published: None, trusted }];
            let world = World {
                revocation: &scene.revocation,
                home: "home",
                identity: scene.identity.as_ref(),
                in_secret: None,
                fingerprinted: None,
                books,
                trusts: &[],
                now: second(NOW),
            };
            let conditions = decide(&world).status.conditions;
            let published = conditions.iter().find(|found| found.type_ == PUBLISHED).unwrap();
            assert_eq!(published.status, status);
        }
    }

    proptest! {
        #[test]
        fn a_revocation_never_revokes_more_than_its_scope_and_comes_to_rest(
            which in 0usize..4, renew: bool, cut in proptest::option::of(0i64..200),
            steps in proptest::collection::vec(0u8..4, 0..12),
        ) {
            let mut revocation = revocation(Some("laptop"), None);
            let spec = &mut revocation.spec;
            spec.certificates =
                [None, Some(Certificates::All), Some(Certificates::Current), Some(Certificates::Superseded)][which];
            spec.renew = renew && spec.certificates != Some(Certificates::Superseded);
            spec.issued_before = cut.map(|cut| Time(second(cut)));
            let hold = holds(spec);
            let mut scene = Scene::new(revocation);
            scene.settle();
            let mut revision = 3;
            for step in steps {
                match step {
                    0 => scene.now += 200,
                    1 => scene.in_secret = None,
                    _ if hold => {}
                    _ => {
                        revision += 1;
                        scene.issue(revision);
                    }
                }
                scene.settle();
            }
            for serial in 1..=revision {
                let serial: Serial = format!("{serial:02x}").parse().unwrap();
                if scene.ledger.revocation(&serial).is_some() {
                    let issued = scene.ledger.find(&serial).unwrap();
                    prop_assert!(issued.revision <= 3, "issued after the request was seen");
                    let early = cut.is_none_or(|cut| issued.issued_at.is_none_or(|at| at < second(cut)));
                    prop_assert!(early, "issued after spec.issuedBefore");
                    match scene.revocation.spec.certificates {
                        Some(Certificates::Current) => prop_assert_eq!(issued.revision, 3),
                        Some(Certificates::Superseded) => prop_assert!(issued.revision < 3),
                        _ => {}
                    }
                }
            }
            let other: Serial = "f4".parse().unwrap();
            prop_assert!(scene.ledger.revocation(&other).is_none());
            let range = scene.revocation.status.unwrap().revisions;
            prop_assert_eq!(range.is_none(), hold);
            if let Some(RevisionRange { last, .. }) = range {
                prop_assert!(last <= 3);
            }
        }
    }
}
