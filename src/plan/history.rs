//! An identity's certificates that are still out there, as the ledger knows them: what status tells of
//! them, which are to be revoked since they were replaced, and whether they outlive the identity.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::identity::holder;
use super::ledger::record::bounded_subject;
use super::ledger::{CaKey, Issued, Record, Revoked};
use super::names::parse;
use super::secret::Current;
use crate::api::ClientIdentity;
use crate::api::condition::truncate;
use crate::api::lifecycle::{
    CertificateRevision, DeletionPolicy, RevocationPolicy, SupersededPolicy,
};
use crate::api::revocation::RevocationReason;
use crate::pki::Serial;

/// As many certificates are named in status; the ledger holds all.
const NAMED_IN_STATUS: usize = 16;

/// A certificate, its CA and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The CA whose ledger knows it.
    pub ca: CaKey,
    /// What was signed.
    pub issued: Issued,
    /// Its revocation.
    pub revoked: Option<Revoked>,
}

impl Certificate {
    /// Is it neither revoked nor expired?
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.issued.not_after > now
    }
}

/// What status tells of the unexpired certificates, newest first, the current one always among them.
/// One that has expired leaves with the next write that is due for another reason.
pub fn history(
    certificates: &[Certificate],
    current: Option<&Serial>,
    before: &[CertificateRevision],
    now: Timestamp,
) -> Vec<CertificateRevision> {
    let is_current = |certificate: &Certificate| Some(&certificate.issued.serial) == current;
    let mut listed: Vec<_> =
        certificates.iter().filter(|c| c.issued.not_after > now || is_current(c)).collect();
    listed.sort_by_key(|c| std::cmp::Reverse((c.issued.revision, c.issued.serial)));
    if let Some(place) = listed.iter().position(|c| is_current(c))
        && place >= NAMED_IN_STATUS
    {
        let current = listed.remove(place);
        listed.insert(NAMED_IN_STATUS - 1, current);
    }
    listed.truncate(NAMED_IN_STATUS);
    let wanted: Vec<_> = listed.into_iter().map(|c| told(c, is_current(c))).collect();
    let unexpired = before.iter().filter(|known| known.not_after.0 > now || wanted.contains(known));
    if unexpired.eq(wanted.iter()) { before.to_vec() } else { wanted }
}

fn told(certificate: &Certificate, is_current: bool) -> CertificateRevision {
    let Certificate { issued, revoked, .. } = certificate;
    let state = match (revoked, is_current) {
        (Some(_), _) => "Revoked",
        (None, true) => "Current",
        (None, false) => "Superseded",
    };
    let reason = revoked.and_then(|revoked| RevocationReason::from_code(revoked.reason?));
    CertificateRevision {
        revision: issued.revision.into(),
        serial_number: issued.serial.to_string(),
        issuance_time: issued.issued_at.map(Time),
        not_after: Time(issued.not_after),
        state: state.to_owned(),
        revocation_time: revoked.map(|revoked| Time(revoked.revoked_at)),
        revocation_reason: reason.map(|reason| format!("{reason:?}")),
    }
}

/// Certificates to be revoked since they were replaced, and when the next one is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Superseded {
    /// What to record now.
    pub due: Vec<(CaKey, Record)>,
    /// When the next grace period ends.
    pub next: Option<Timestamp>,
}

/// Which certificates have been replaced for longer than the grace period. `current` is the one that the
/// Secret holds; it, and whatever is newer, is never among them.
///
/// A certificate was superseded when the next one was issued that came into the Secret. One that was
/// recorded and then never written must not count: each record names the revision that it found in the
/// Secret, so the current one leads back to all that were there. Where the chain is broken (a Secret
/// that was deleted, a record of an older version) the oldest known link stands in for what is missing,
/// which can only be later.
pub fn superseded(
    certificates: &[Certificate],
    current: &Current,
    policy: &RevocationPolicy,
    now: Timestamp,
) -> Superseded {
    let mut plan = Superseded::default();
    if policy.superseded == SupersededPolicy::Never {
        return plan;
    }
    let mut replacements = Vec::new();
    let mut revision = current.revision;
    while let Some(link) = certificates.iter().find(|c| c.issued.revision == revision) {
        let fallback = || super::renewal::made(current);
        replacements.push((revision, link.issued.issued_at.unwrap_or_else(fallback)));
        if !(1..revision).contains(&link.issued.supersedes) {
            break;
        }
        revision = link.issued.supersedes;
    }
    let grace = SignedDuration::from_secs(policy.grace_period.as_secs());
    for certificate in certificates {
        let issued = &certificate.issued;
        let old = issued.revision < current.revision && issued.serial != current.serial;
        if !old || !certificate.is_live(now) {
            continue;
        }
        let replaced = replacements.iter().rev().find(|(revision, _)| *revision > issued.revision);
        let Some((_, since)) = replaced else { continue };
        let end = since.saturating_add(grace).unwrap_or(Timestamp::MAX);
        if end <= now {
            let revoked = Revoked {
                serial: issued.serial,
                revoked_at: truncate(now),
                reason: Some(RevocationReason::Superseded.code()),
            };
            plan.due.push((certificate.ca.clone(), Record::Revoked(revoked)));
        } else if end < issued.not_after {
            plan.next = Some(plan.next.map_or(end, |next| next.min(end)));
        }
    }
    plan
}

/// The issuance of a certificate that the ledger does not know, as far as it can be told from its Secret.
pub fn unrecorded(identity: &ClientIdentity, current: &Current) -> Issued {
    // The certificate was checked against the spec.
    let subject = parse(&identity.spec).ok().map(|profile| profile.subject.to_rfc4514());
    Issued {
        serial: current.serial,
        revision: current.revision,
        not_after: current.not_after,
        holder: holder(identity),
        subject: subject.and_then(|subject| bounded_subject(&subject)),
        issued_at: Some(truncate(super::renewal::made(current))),
        supersedes: 0,
        retain: identity.spec.deletion_policy == DeletionPolicy::Retain,
    }
}

/// The records to append so that every live certificate is known to outlive its identity, or not to.
pub fn retention(
    certificates: &[Certificate],
    retain: bool,
    now: Timestamp,
) -> Vec<(CaKey, Record)> {
    let changed = certificates.iter().filter(|c| c.is_live(now) && c.issued.retain != retain);
    let record = |c: &Certificate| Record::Issued(Issued { retain, ..c.issued.clone() });
    changed.map(|c| (c.ca.clone(), record(c))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::duration::Duration;
    use crate::plan::ledger::tests::{issued, revoked};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A certificate with revision and serial alike, issued at a time, good for 10,000 seconds.
    fn certificate(revision: u32, issued_at: i64, supersedes: u32) -> Certificate {
        let serial = format!("{revision:02x}");
        let issued = issued(&serial, "uid", revision, issued_at + 10_000);
        Certificate {
            ca: CaKey::first("clients"),
            issued: Issued { issued_at: Some(at(issued_at)), supersedes, ..issued },
            revoked: None,
        }
    }

    fn current(revision: u32) -> Current {
        Current {
            serial: format!("{revision:02x}").parse().unwrap(),
            fingerprint: String::new(),
            not_before: at(0),
            not_after: at(1_000_000),
            revision,
            spec_hash: String::new(),
            generation: 1,
            bundle_hash: String::new(),
            data_hash: None,
            public_key: None,
            lacks: None,
        }
    }

    fn policy(seconds: u32) -> RevocationPolicy {
        RevocationPolicy {
            superseded: SupersededPolicy::AfterGracePeriod,
            grace_period: Duration::from_secs(seconds),
        }
    }

    fn due(plan: &Superseded) -> Vec<String> {
        plan.due
            .iter()
            .map(|(_, record)| match record {
                Record::Revoked(revoked) => {
                    assert_eq!(revoked.reason, Some(4));
                    revoked.serial.to_string()
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn each_link_of_a_chain_has_its_own_grace_period() {
        let all = [certificate(1, 1000, 0), certificate(2, 2000, 1), certificate(3, 2500, 2)];
        let run = |now| superseded(&all, &current(3), &policy(600), at(now));
        assert_eq!(run(2599), Superseded { due: vec![], next: Some(at(2600)) });
        let plan = run(2600);
        assert_eq!((due(&plan), plan.next), (vec!["01".to_owned()], Some(at(3100))));
        let plan = run(3100);
        assert_eq!((due(&plan), plan.next), (vec!["01".to_owned(), "02".to_owned()], None));
        let never = RevocationPolicy::default();
        assert_eq!(superseded(&all, &current(3), &never, at(9999)), Superseded::default());
    }

    #[test]
    fn a_certificate_that_never_came_into_the_secret_starts_no_grace_period() {
        // The second was recorded, and its process died; the third replaced the first.
        let all = [certificate(1, 1000, 0), certificate(2, 2000, 1), certificate(3, 5000, 1)];
        let run = |now| superseded(&all, &current(3), &policy(600), at(now));
        assert!(due(&run(5599)).is_empty());
        assert_eq!(due(&run(5600)), ["01", "02"]);
    }

    #[test]
    fn a_broken_chain_revokes_later_never_earlier() {
        let all = [certificate(1, 1000, 0), certificate(2, 2000, 0), certificate(3, 5000, 2)];
        let run = |now| due(&superseded(&all, &current(3), &policy(600), at(now)));
        assert_eq!(run(2600), ["01"], "the second is known to have been in the Secret");
        let mut old = all.clone();
        old[1].issued.issued_at = None;
        old[2].issued = Issued { issued_at: None, supersedes: 0, ..old[2].issued.clone() };
        let run = |now| due(&superseded(&old, &current(3), &policy(600), at(now)));
        // The dates of the current certificate are all that is known: made at 60.
        assert_eq!(run(659), [""; 0]);
        assert_eq!(run(660), ["01", "02"]);
    }

    #[test]
    fn the_current_one_and_what_is_newer_is_never_revoked() {
        let mut all = vec![certificate(1, 1000, 0), certificate(2, 2000, 1)];
        // An older Secret was restored.
        assert!(due(&superseded(&all, &current(1), &policy(0), at(9000))).is_empty());
        // Another one has the revision of the current: only the serial tells them apart.
        all.push(Certificate { ca: CaKey::first("other"), ..certificate(2, 1500, 1) });
        assert_eq!(due(&superseded(&all, &current(2), &policy(0), at(9000))), ["01"]);
        // Revoked or expired ones stay as they are.
        all[0].revoked = Some(revoked("01", 5));
        assert!(due(&superseded(&all, &current(2), &policy(0), at(9000))).is_empty());
        all[0].revoked = None;
        assert!(due(&superseded(&all, &current(2), &policy(0), at(11_000))).is_empty());
        // A ledger that does not know the current certificate knows nothing of succession.
        assert!(due(&superseded(&all[..1], &current(7), &policy(0), at(9000))).is_empty());
    }

    #[test]
    fn status_tells_of_every_unexpired_certificate() {
        let mut all =
            vec![certificate(1, 1000, 0), certificate(2, 2000, 1), certificate(3, 3000, 2)];
        all[1].revoked = Some(revoked("02", 2500));
        let serial = current(3).serial;
        let run =
            |before: &[CertificateRevision], now| history(&all, Some(&serial), before, at(now));
        let first = run(&[], 4000);
        let told: Vec<_> = first
            .iter()
            .map(|c| (c.serial_number.as_str(), c.state.as_str(), c.revocation_reason.as_deref()))
            .collect();
        assert_eq!(
            told,
            [
                ("03", "Current", None),
                ("02", "Revoked", Some("KeyCompromise")),
                ("01", "Superseded", None)
            ]
        );
        assert_eq!(run(&first, 4000), first);
        // An expired one alone is no reason to write; it leaves when there is another.
        assert_eq!(run(&first, 11_500), first);
        all[2].revoked = Some(revoked("03", 11_000));
        let changed = history(&all, Some(&serial), &first, at(11_500));
        assert_eq!(changed.len(), 2);
        assert_eq!(changed[0].state, "Revoked");
    }

    #[test]
    fn status_names_sixteen_and_always_the_current_one() {
        let all: Vec<_> = (1..=40).map(|n| certificate(n, 1000, n - 1)).collect();
        let named = |revision| history(&all, Some(&current(revision).serial), &[], at(2000));
        let newest = named(40);
        assert_eq!((newest.len(), newest[0].revision, newest[15].revision), (16, 40, 25));
        let restored = named(3);
        assert_eq!((restored.len(), restored[0].revision, restored[15].revision), (16, 40, 3));
        assert_eq!(restored[15].state, "Current");
    }

    #[test]
    fn a_change_of_the_deletion_policy_is_recorded_once_for_each_live_certificate() {
        let mut all =
            vec![certificate(1, 1000, 0), certificate(2, 2000, 1), certificate(3, 9000, 2)];
        all[1].revoked = Some(revoked("02", 2500));
        let now = at(10_500);
        let change = retention(&all, true, at(10_500));
        assert_eq!(change.len(), 2);
        let (_, Record::Issued(issued)) = &change[0] else { panic!("{change:?}") };
        assert!(issued.retain);
        for certificate in &mut all {
            certificate.issued.retain = true;
        }
        assert!(retention(&all, true, now).is_empty());
        assert_eq!(retention(&all, false, now).len(), 2);
        assert!(retention(&all, false, at(50_000)).is_empty(), "the expired are let be");
    }
}
