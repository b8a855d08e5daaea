//! Conditions: their types, and merging a new set into the one that stands in status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The condition that every kind carries: is the whole thing as the spec wants it?
pub const READY: &str = "Ready";
/// `ClientAuthority`: another CA is about to take over, or has just done so.
pub const ROTATING: &str = "Rotating";
/// `ClientAuthority`: its CRLs fit the Secrets that carry them to data planes.
pub const CRL_FITS: &str = "CRLFits";
/// `CertificateRevocation`: the serials stand in the ledger.
pub const RECORDED: &str = "Recorded";
/// `CertificateRevocation`: the serials stand in a published CRL.
pub const PUBLISHED: &str = "Published";
/// `CertificateRevocation`: every `ClientTrust` of the authorities has that CRL, or a later one, in force.
pub const ENFORCED: &str = "Enforced";
/// `ClientTrust`, `ClientAuthority`: what `spec.bundle` asks for is there and current. Present only with it.
pub const BUNDLE_PUBLISHED: &str = "BundlePublished";
/// `ClientTrust` target: the target exists and a known data plane serves it.
pub const ACCEPTED: &str = "Accepted";
/// `ClientTrust` target: the data plane's configuration is written.
pub const PROGRAMMED: &str = "Programmed";
/// `ClientTrust` target: how a revoked certificate is refused.
pub const REVOCATION_ENFORCED: &str = "RevocationEnforced";
/// `ClientTrust`: the canary saw that good clients are accepted and revoked ones refused. Present only
/// with `spec.canary`.
pub const CANARY_PASSED: &str = "CanaryPassed";

/// `ClientIdentity`: the annotation that asks for a renewal can be understood. Present only when not.
pub const RENEWAL_REQUEST: &str = "RenewalRequestValid";
/// `ClientIdentity`: the workloads of `spec.rolloutRestartTargets` are restarted.
pub const ROLLOUT_RESTARTED: &str = "RolloutRestarted";

/// One condition as the planner wants it, before times are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The condition's type.
    pub type_: &'static str,
    /// `True`, `False` or `Unknown`; the data-plane conditions also use named values in `reason`.
    pub status: bool,
    /// A CamelCase reason from the kind's enum.
    pub reason: &'static str,
    /// What happened and what to do, in a sentence. Never holds key material.
    pub message: String,
}

impl Wanted {
    /// A condition that holds.
    pub fn yes(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status: true, reason, message: message.into() }
    }

    /// A condition that does not hold.
    pub fn no(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status: false, reason, message: message.into() }
    }
}

/// The conditions without the one of a type that is present only when it is wanted.
pub fn retain(current: &[Condition], type_: &str, wanted: bool) -> Vec<Condition> {
    current.iter().filter(|known| wanted || known.type_ != type_).cloned().collect()
}

/// The conditions to write: those wanted, plus every one of other types that stood before (they are
/// somebody else's). `lastTransitionTime` moves only when the status of a condition flips.
pub fn merge(
    current: &[Condition],
    wanted: &[Wanted],
    observed_generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let foreign = current.iter().filter(|c| wanted.iter().all(|w| w.type_ != c.type_)).cloned();
    let ours = wanted.iter().map(|want| {
        let status = if want.status { "True" } else { "False" };
        let since = current
            .iter()
            .find(|c| c.type_ == want.type_ && c.status == status)
            .map_or(Time(truncate(now)), |c| c.last_transition_time.clone());
        Condition {
            type_: want.type_.to_owned(),
            status: status.to_owned(),
            reason: want.reason.to_owned(),
            message: want.message.clone(),
            last_transition_time: since,
            observed_generation,
        }
    });
    ours.chain(foreign).collect()
}

/// Is the condition of this type `True`?
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}

/// The API stores whole seconds; a finer time would differ from itself when read back.
pub fn truncate(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_stays_keeps_its_time_and_foreign_ones_survive() {
        let then = Timestamp::from_second(1_000).unwrap();
        let now = Timestamp::from_second(2_000).unwrap();
        let wanted = [Wanted::yes(READY, "Issued", "ok")];
        let mut current = merge(&[], &wanted, Some(1), then);
        current.push(Condition { type_: "Foreign".into(), ..current[0].clone() });

        let same = merge(&current, &wanted, Some(1), now);
        assert_eq!(same, current);

        let flipped = merge(&current, &[Wanted::no(READY, "Expired", "late")], Some(1), now);
        assert_eq!(flipped[0].last_transition_time, Time(now));
        assert_eq!(flipped[1].type_, "Foreign");
    }
}
