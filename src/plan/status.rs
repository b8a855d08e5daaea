//! The status of an identity: what its Secret holds, and whether that is as the spec wants it.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::history::{Certificate, history};
use super::renewal::{renewal, requested};
use super::retry::Failure;
use super::secret::Current;
use crate::api::condition::{self, READY, RENEWAL_REQUEST, ROLLOUT_RESTARTED, Wanted};
use crate::api::identity::Reason;
use crate::api::{ClientIdentity, ClientIdentityStatus};

/// What is to be told of an identity.
pub struct Observed<'a> {
    /// The certificate in the Secret, when it is known.
    pub current: Option<&'a Current>,
    /// Is all well, or why not?
    pub ready: Result<(), (Reason, String)>,
    /// What failed just now.
    pub failure: Option<Failure>,
    /// Its certificates, as the ledger knows them.
    pub certificates: &'a [Certificate],
    /// The state of the workloads that are restarted; it stays as it was told when it is not known.
    pub rollout: Option<Wanted>,
}

/// The status of an identity.
pub fn status(
    identity: &ClientIdentity,
    observed: Observed<'_>,
    now: Timestamp,
) -> ClientIdentityStatus {
    let before = identity.status.clone().unwrap_or_default();
    let generation = identity.metadata.generation;
    let lacks = observed.current.and_then(|current| current.lacks.clone());
    let lacks = lacks.map_or(Ok(()), |why| Err((Reason::KeystoreFailed, why)));
    let ready = match observed.ready.and(lacks) {
        Ok(()) => {
            Wanted::yes(READY, Reason::Issued.as_str(), "the Secret holds a valid certificate")
        }
        Err((reason, message)) => Wanted::no(READY, reason.as_str(), message),
    };
    let request = requested(identity)
        .err()
        .map(|message| Wanted::no(RENEWAL_REQUEST, "InvalidTime", message));
    let wanted: Vec<_> = [Some(ready), request, observed.rollout].into_iter().flatten().collect();
    // These are there only while there is something to tell.
    let is_over = |type_: &str| match type_ {
        RENEWAL_REQUEST => wanted.iter().all(|want| want.type_ != RENEWAL_REQUEST),
        ROLLOUT_RESTARTED => identity.spec.rollout_restart_targets.is_empty(),
        _ => false,
    };
    let known = before.conditions.iter().filter(|c| !is_over(&c.type_));
    let known: Vec<_> = known.cloned().collect();
    let conditions = condition::merge(&known, &wanted, generation, now);
    let serial = match observed.current {
        Some(current) => Some(current.serial),
        None => before.serial_number.as_deref().and_then(|serial| serial.parse().ok()),
    };
    let next_try = observed.failure.as_ref().map(|failure| Time(failure.next_try));
    let last_failure = observed.failure.map(|failure| failure.last);
    let status = ClientIdentityStatus {
        observed_generation: generation,
        conditions,
        revision_history: history(
            observed.certificates,
            serial.as_ref(),
            &before.revision_history,
            now,
        ),
        last_failure: last_failure.or(before.last_failure),
        next_try,
        ..before
    };
    let Some(current) = observed.current else { return status };
    ClientIdentityStatus {
        serial_number: Some(current.serial.to_string()),
        fingerprint: Some(current.fingerprint.clone()),
        not_before: Some(Time(current.not_before)),
        not_after: Some(Time(current.not_after)),
        renewal_time: Some(Time(renewal(identity, current))),
        revision: Some(current.revision.into()),
        ..status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::annotation;
    use crate::pki::Serial;
    use crate::pki::authority::tests::instant;
    use crate::plan::identity::tests::identity;
    use crate::plan::retry::{FailureReason, failed};

    fn observed<'a>(current: &'a Current) -> Observed<'a> {
        Observed {
            current: Some(current),
            ready: Ok(()),
            failure: None,
            certificates: &[],
            rollout: None,
        }
    }

    fn current() -> Current {
        Current {
            serial: Serial::random(),
            fingerprint: "f".into(),
            not_before: instant("2026-05-01T09:59:00Z"),
            not_after: instant("2026-05-02T10:00:00Z"),
            revision: 2,
            spec_hash: String::new(),
            generation: 1,
            bundle_hash: String::new(),
            data_hash: None,
            public_key: None,
            lacks: None,
        }
    }

    #[test]
    fn a_status_told_again_is_the_same_and_a_failure_is_kept_after_it_was_overcome() {
        let now = instant("2026-05-01T10:00:00Z");
        let (current, mut identity) = (current(), identity());
        let failure = failed(&identity, FailureReason::Refused, |_| "quota".into(), now);
        let told = Observed { failure: Some(failure), ..observed(&current) };
        let first = status(&identity, told, now);
        assert!(first.next_try.is_some() && first.last_failure.is_some());
        identity.status = Some(first.clone());
        let later = instant("2026-05-01T11:00:00Z");
        let second = status(&identity, observed(&current), later);
        assert_eq!((second.next_try.clone(), &second.last_failure), (None, &first.last_failure));
        identity.status = Some(second.clone());
        let latest = instant("2026-05-01T12:00:00Z");
        assert_eq!(status(&identity, observed(&current), latest), second);
    }

    #[test]
    fn a_bad_request_is_told_by_a_condition_while_it_stands() {
        let now = instant("2026-05-01T10:00:00Z");
        let (current, mut identity) = (current(), identity());
        identity
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(annotation::RENEW_REQUESTED_AT.into(), "soon".into());
        let told = status(&identity, observed(&current), now);
        let bad = told.conditions.iter().find(|c| c.type_ == RENEWAL_REQUEST).expect("told");
        assert_eq!((bad.status.as_str(), bad.reason.as_str()), ("False", "InvalidTime"));
        assert!(condition::is_true(&told.conditions, READY), "nothing is lost");
        identity.status = Some(told);
        identity.metadata.annotations = None;
        let mended = status(&identity, observed(&current), now);
        assert!(mended.conditions.iter().all(|c| c.type_ == READY));
    }
}
