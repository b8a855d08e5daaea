//! Is a revocation in force wherever its authority is trusted?
//!
//! Each `ClientTrust` tells in status which CRL of each CA its Secret holds, and by which one the gate
//! answers. A revocation is enforced when these are the one that held it first, or later ones: the gate's
//! where a target depends on it, the Secret's in any case. How soon a data plane takes up the Secret
//! can't be seen from here; the canary sees it.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::revocation::Reason;
use super::trust::is_gated;
use crate::api::condition::{self, ENFORCED, Wanted};
use crate::api::revocation::{CrlReference, EnforcedTrust};
use crate::api::trust::{self, CrlInForce, TargetStatus};
use crate::api::{CertificateRevocationStatus, ClientTrust};

/// As many trusts are named in status.
const NAMED_IN_STATUS: usize = 100;
/// As many trusts that lag behind are named in a message.
const NAMED_IN_MESSAGE: usize = 3;

/// Whether a revocation is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Enforcement {
    /// The condition `Enforced`.
    pub condition: Wanted,
    /// Where it is.
    pub trusts: Vec<EnforcedTrust>,
    /// Since when it is everywhere.
    pub time: Option<Time>,
}

/// Decides whether the certificates that stand in these CRLs are refused everywhere. Once that was so it
/// stays so: CRLs don't go back, and a trust that comes later starts with the present one.
pub fn decide(
    before: &CertificateRevocationStatus,
    crls: &[CrlReference],
    trusts: &[Arc<ClientTrust>],
    now: Timestamp,
) -> Enforcement {
    if let Some(known) =
        before.conditions.iter().find(|c| c.type_ == ENFORCED && c.status == "True")
    {
        let nothing = known.reason == Reason::NothingToEnforce.as_str();
        let reason = if nothing { Reason::NothingToEnforce } else { Reason::Enforced };
        return Enforcement {
            condition: Wanted::yes(ENFORCED, reason.as_str(), known.message.clone()),
            trusts: before.trusts.clone(),
            time: before.enforced_time.clone(),
        };
    }
    let now = Time(condition::truncate(now));
    let mut concerned: Vec<&ClientTrust> = trusts.iter().map(|trust| &**trust).collect();
    concerned.retain(|trust| {
        let named = |crl: &CrlReference| {
            trust.spec.authorities.iter().any(|authority| authority.name == crl.authority)
        };
        trust.metadata.deletion_timestamp.is_none() && crls.iter().any(named)
    });
    concerned.sort_by_key(|trust| (trust.namespace(), trust.name_any()));
    if concerned.is_empty() {
        let message = "no ClientTrust trusts the authority: there is nothing to enforce";
        return Enforcement {
            condition: Wanted::yes(ENFORCED, Reason::NothingToEnforce.as_str(), message),
            trusts: Vec::new(),
            time: Some(now),
        };
    }
    let mut enforced = Vec::new();
    let mut missing: Vec<(Reason, String)> = Vec::new();
    for trust in &concerned {
        let (namespace, name) = (trust.namespace().unwrap_or_default(), trust.name_any());
        match in_force(trust, crls) {
            Ok(number) => {
                let known =
                    before.trusts.iter().find(|k| k.namespace == namespace && k.name == name);
                enforced.push(known.cloned().unwrap_or_else(|| EnforcedTrust {
                    namespace,
                    name,
                    crl_number: number.to_string(),
                    time: now.clone(),
                }));
            }
            Err((reason, why)) => {
                missing.push((reason, format!("ClientTrust {namespace}/{name}: {why}")));
            }
        }
    }
    enforced.truncate(NAMED_IN_STATUS);
    let all = concerned.len();
    let Some((reason, _)) = missing.first() else {
        let message = format!("{all} ClientTrust(s) refuse every one of the certificates");
        return Enforcement {
            condition: Wanted::yes(ENFORCED, Reason::Enforced.as_str(), message),
            trusts: enforced,
            time: Some(now),
        };
    };
    let named: Vec<&str> =
        missing.iter().take(NAMED_IN_MESSAGE).map(|(_, message)| message.as_str()).collect();
    let more = missing.len().saturating_sub(NAMED_IN_MESSAGE);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let message =
        format!("{} of {all} ClientTrust(s) lag behind: {}{more}", missing.len(), named.join("; "));
    Enforcement {
        condition: Wanted::no(ENFORCED, reason.as_str(), message),
        trusts: enforced,
        time: None,
    }
}

/// The lowest CRL number in force at a trust, of the CAs concerned; or why it does not refuse the
/// certificates for certain.
fn in_force(trust: &ClientTrust, crls: &[CrlReference]) -> Result<u128, (Reason, String)> {
    let status = trust.status.clone().unwrap_or_default();
    if status.observed_generation != trust.metadata.generation {
        return Err((Reason::Pending, "its last change was not looked at yet".to_owned()));
    }
    if let Some(target) = status.targets.iter().find(|target| is_open(target)) {
        let reference = &target.target_ref;
        let message = format!(
            "{} {:?} is not programmed, or not with the newest CRL",
            reference.kind, reference.name
        );
        return Err((Reason::TrustNotReady, message));
    }
    let gated = status.targets.iter().any(is_gated);
    let mut lowest: Option<u128> = None;
    for crl in crls {
        if trust.spec.authorities.iter().all(|authority| authority.name != crl.authority) {
            continue;
        }
        let mut of_authority = status.crls.iter().filter(|known| known.authority == crl.authority);
        let Some(known) = status.crls.iter().find(|known| is_of(known, crl)) else {
            // A CA that is not trusted any more while others of its authority are lets nobody in.
            if of_authority.next().is_some() {
                continue;
            }
            let message = format!("it holds no CRL of authority {:?} yet", crl.authority);
            return Err((Reason::Pending, message));
        };
        let wanted = number(&crl.crl_number);
        let in_secret = number(&known.crl_number);
        if in_secret < wanted {
            return Err((Reason::Pending, "its Secret holds an older CRL".to_owned()));
        }
        let mut number = in_secret;
        if gated {
            let Some(served) = known.gate_crl_number.as_deref().map(self::number) else {
                let message = "which CRL the gate's servers answer by is not known: is --crl-servers of the controller set, and can it reach them?";
                return Err((Reason::ServersNotObserved, message.to_owned()));
            };
            if served < wanted {
                let message = "a server of the gate answers by an older CRL";
                return Err((Reason::Pending, message.to_owned()));
            }
            number = number.min(served);
        }
        lowest = Some(lowest.map_or(number.unwrap_or(0), |lowest| lowest.min(number.unwrap_or(0))));
    }
    Ok(lowest.unwrap_or(0))
}

fn is_of(known: &CrlInForce, crl: &CrlReference) -> bool {
    known.authority == crl.authority && known.generation == crl.generation
}

/// Where a target does not exist nobody gets in. Where it exists and is not programmed, anybody may.
fn is_open(target: &TargetStatus) -> bool {
    let mut conditions = target.conditions.iter();
    let absent = trust::Reason::TargetNotFound.as_str();
    let absent = target.conditions.iter().any(|c| c.status != "True" && c.reason == absent);
    !absent && conditions.any(|c| c.status != "True")
}

/// A number that can't be read is older than every other one.
fn number(text: &str) -> Option<u128> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::condition::{ACCEPTED, PROGRAMMED, REVOCATION_ENFORCED};
    use crate::api::trust::{ForwardIdentity, Mode, TargetReference};
    use crate::api::{AuthorityReference, ClientTrustSpec, ClientTrustStatus};

    fn trust(name: &str, crls: &[(u32, &str, Option<&str>)], gated: bool) -> ClientTrust {
        let target_ref = TargetReference {
            group: "networking.k8s.io".into(),
            kind: "Ingress".into(),
            name: "shop".into(),
        };
        let mut trust = ClientTrust::new(
            name,
            ClientTrustSpec {
                authorities: vec![AuthorityReference { name: "staff".into() }],
                target_refs: vec![target_ref.clone()],
                allow: None,
                second_factor: None,
                mode: Mode::Required,
                forward_identity: ForwardIdentity::default(),
                canary: None,
                bundle: None,
            },
        );
        trust.metadata.namespace = Some("shop".into());
        trust.metadata.generation = Some(2);
        let target = |how| {
            let wanted = [
                Wanted::yes(ACCEPTED, "Programmed", ""),
                Wanted::yes(PROGRAMMED, "Programmed", ""),
                Wanted::yes(REVOCATION_ENFORCED, how, ""),
            ];
            let conditions = condition::merge(&[], &wanted, Some(2), Timestamp::UNIX_EPOCH);
            TargetStatus { target_ref: target_ref.clone(), conditions }
        };
        // One that depends on the gate makes the whole trust depend on it.
        let targets = ["ByCRL", "ViaGate"].into_iter().take(if gated { 2 } else { 1 });
        let targets = targets.map(target).collect();
        trust.status = Some(ClientTrustStatus {
            canary: None,
            observed_generation: Some(2),
            conditions: Vec::new(),
            targets,
            crls: crls
                .iter()
                .map(|(generation, number, served)| CrlInForce {
                    authority: "staff".into(),
                    generation: (*generation).into(),
                    crl_number: (*number).into(),
                    gate_crl_number: served.map(Into::into),
                })
                .collect(),
        });
        trust
    }

    fn crl(authority: &str, generation: u32) -> CrlReference {
        CrlReference {
            authority: authority.into(),
            generation: generation.into(),
            crl_number: "42".into(),
        }
    }

    fn ask(trusts: Vec<ClientTrust>, crls: &[CrlReference]) -> Enforcement {
        let trusts: Vec<_> = trusts.into_iter().map(Arc::new).collect();
        let before = CertificateRevocationStatus::default();
        decide(&before, crls, &trusts, Timestamp::from_second(100).unwrap())
    }

    #[test]
    fn every_trust_must_have_the_crl_in_its_secret_and_behind_its_gate() {
        let first = [crl("staff", 1)];
        for (trust, enforced, reason) in [
            (trust("a", &[(1, "42", None)], false), true, "Enforced"),
            (trust("a", &[(1, "43", None)], false), true, "Enforced"),
            (trust("a", &[(1, "41", None)], false), false, "Pending"),
            (trust("a", &[(1, "42", None)], true), false, "ServersNotObserved"),
            (trust("a", &[(1, "42", Some("41"))], true), false, "Pending"),
            (trust("a", &[(1, "42", Some("42"))], true), true, "Enforced"),
            // Longer, but older: numbers are not texts.
            (trust("a", &[(1, "9", None)], false), false, "Pending"),
            // Another generation alone: the CA is not trusted there any more. None: not ready.
            (trust("a", &[(2, "1", None)], false), true, "Enforced"),
            (trust("a", &[], false), false, "Pending"),
        ] {
            let told = format!("{:?}", trust.status.as_ref().unwrap().crls);
            let Enforcement { condition, trusts, time } = ask(vec![trust], &first);
            assert_eq!((condition.status, condition.reason), (enforced, reason), "{told}");
            assert_eq!((trusts.len() == 1, time.is_some()), (enforced, enforced), "{told}");
        }
    }

    #[test]
    fn the_trusts_that_lag_behind_are_named_and_the_others_are_listed() {
        let good = trust("good", &[(1, "50", None)], false);
        let late = trust("late", &[(1, "41", None)], false);
        let mut foreign = trust("foreign", &[], false);
        foreign.spec.authorities[0].name = "partners".into();
        let Enforcement { condition, trusts, time } =
            ask(vec![late, foreign, good], &[crl("staff", 1)]);
        assert_eq!((condition.status, time), (false, None));
        assert!(
            condition
                .message
                .starts_with("1 of 2 ClientTrust(s) lag behind: ClientTrust shop/late")
        );
        assert_eq!((trusts.len(), &*trusts[0].name, &*trusts[0].crl_number), (1, "good", "50"));
    }

    #[test]
    fn a_trust_that_is_not_in_force_itself_enforces_nothing() {
        let with = |target: Wanted| {
            let mut trust = trust("a", &[(1, "42", None)], false);
            let conditions = &mut trust.status.as_mut().unwrap().targets[0].conditions;
            *conditions = condition::merge(conditions, &[target], Some(2), Timestamp::UNIX_EPOCH);
            trust
        };
        let open = with(Wanted::no(PROGRAMMED, "Conflict", ""));
        assert_eq!(ask(vec![open], &[crl("staff", 1)]).condition.reason, "TrustNotReady");
        let full = with(Wanted::no(REVOCATION_ENFORCED, "CRLTooLarge", ""));
        assert_eq!(ask(vec![full], &[crl("staff", 1)]).condition.reason, "TrustNotReady");
        let absent = with(Wanted::no(ACCEPTED, "TargetNotFound", ""));
        assert_eq!(ask(vec![absent], &[crl("staff", 1)]).condition.reason, "Enforced");
        let mut changed = trust("a", &[(1, "42", None)], false);
        changed.metadata.generation = Some(3);
        assert_eq!(ask(vec![changed], &[crl("staff", 1)]).condition.reason, "Pending");
    }

    #[test]
    fn where_nobody_trusts_the_authority_there_is_nothing_to_enforce() {
        let elsewhere = trust("a", &[(1, "42", None)], false);
        let told = ask(vec![elsewhere], &[crl("partners", 1)]);
        assert_eq!((told.condition.status, told.condition.reason), (true, "NothingToEnforce"));
    }

    #[test]
    fn what_was_enforced_once_stays_so() {
        let now = Timestamp::from_second(100).unwrap();
        let good = trust("a", &[(1, "42", None)], false);
        let Enforcement { condition, trusts, time } = ask(vec![good], &[crl("staff", 1)]);
        let before = CertificateRevocationStatus {
            conditions: condition::merge(&[], std::slice::from_ref(&condition), Some(1), now),
            trusts: trusts.clone(),
            enforced_time: time.clone(),
            ..Default::default()
        };
        let later = now + jiff::SignedDuration::from_secs(5);
        let late = Arc::new(trust("late", &[], false));
        let again = decide(&before, &[crl("staff", 1)], &[late], later);
        assert_eq!(again, Enforcement { condition, trusts, time });
    }
}
