//! What failed, and when it is tried again.
//!
//! The state of a backoff is the identity's status, so that it outlives a restart: `lastFailure` counts,
//! `nextTry` holds back. (A lost update is no failure: it costs milliseconds, in the queue.)

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::renewal::requested;
use crate::api::ClientIdentity;
use crate::api::condition::truncate;
use crate::api::lifecycle::LastFailure;

/// So many times an hour a Secret that another hand changes is put right at once.
pub const REPAIRS: u32 = 4;
/// The time over which repairs are counted.
pub const REPAIR_WINDOW: SignedDuration = SignedDuration::from_hours(1);
/// A Secret that was left alone for so long after its last failure may be repaired at once again. Longer
/// than the longest delay: a writer that comes back after each repair must not start afresh.
const FORGIVEN: SignedDuration = SignedDuration::from_hours(2);
/// The API server takes no longer message in status.
const MESSAGE: usize = 1024;

/// What kind of thing failed; each has its own backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// The API server refused the Secret: a quota, a policy, an invalid field. Repeating it helps once
    /// somebody has changed something.
    Refused,
    /// Signing, or the check of what was signed.
    SigningFailed,
    /// The API server could not be reached, or did not answer well: it passes.
    Unavailable,
    /// Another writer changes the Secret again and again.
    Drifted,
}

impl FailureReason {
    /// The reason as status carries it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "Refused",
            Self::SigningFailed => "SigningFailed",
            Self::Unavailable => "Unavailable",
            Self::Drifted => "Drifted",
        }
    }

    /// How long to wait after so many failures in a row, from 1: doubling from a second to five minutes
    /// for what passes by itself, from a minute to an hour for what somebody has to mend.
    pub fn delay(self, failures: u32) -> SignedDuration {
        let (first, longest) = match self {
            Self::Unavailable => (1, 300),
            Self::Refused | Self::SigningFailed | Self::Drifted => (60, 3600),
        };
        let doubled = 1i64 << failures.saturating_sub(1).min(16);
        SignedDuration::from_secs((first * doubled).min(longest))
    }
}

/// A failure, as status tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What happened.
    pub last: LastFailure,
    /// When it is tried again.
    pub next_try: Timestamp,
}

/// The failure that an identity's status tells of and that holds it back, when its spec is still the one
/// that failed.
fn standing(identity: &ClientIdentity) -> Option<(&LastFailure, Option<Timestamp>)> {
    let status = identity.status.as_ref()?;
    let same = status.observed_generation == identity.metadata.generation;
    let next = status.next_try.as_ref().map(|next| next.0);
    status.last_failure.as_ref().filter(|_| same).map(|last| (last, next))
}

/// Until when nothing is tried: the last attempt failed, and neither the spec has changed since nor was
/// a renewal requested.
pub fn held_until(identity: &ClientIdentity, now: Timestamp) -> Option<Timestamp> {
    let (last, next) = standing(identity)?;
    let request = requested(identity).ok().flatten().filter(|at| *at > last.time.0);
    let next = next.map(|next| request.map_or(next, |at| at.min(next)));
    next.filter(|next| *next > now)
}

/// Is the identity held back since its Secret is changed by others?
pub fn is_drifting(identity: &ClientIdentity, now: Timestamp) -> bool {
    let drifted =
        standing(identity).is_some_and(|(last, _)| last.reason == FailureReason::Drifted.as_str());
    drifted && held_until(identity, now).is_some()
}

/// A failure at this time, counted on from the one before.
pub fn failed(
    identity: &ClientIdentity,
    reason: FailureReason,
    message: impl FnOnce(Timestamp) -> String,
    now: Timestamp,
) -> Failure {
    let before = standing(identity).filter(|(last, _)| last.reason == reason.as_str());
    // A repair ends a hold without ending the drift: that is over when the Secret was left alone.
    let in_a_row = before.filter(|(last, next)| match reason {
        FailureReason::Drifted => now.duration_since(last.time.0) < FORGIVEN,
        _ => next.is_some(),
    });
    let failures = in_a_row.map_or(0, |(last, _)| last.failures.max(0)).saturating_add(1);
    let next_try = truncate(now + reason.delay(failures as u32));
    let mut message = message(next_try);
    message.truncate(message.floor_char_boundary(MESSAGE));
    let last = LastFailure {
        time: Time(truncate(now)),
        reason: reason.as_str().to_owned(),
        message,
        failures,
    };
    Failure { last, next_try }
}

/// What to do about a Secret that another hand changed or deleted.
#[derive(Clone, Debug, PartialEq)]
pub enum Repair {
    /// Put it right.
    Now,
    /// Not before the next try.
    Hold(Failure),
}

/// May the Secret be put right now? `repairs` of its repairs were made since `since`; `writer` is who
/// changed it last. Asked only when [`held_until`] does not hold it back.
pub fn repair(
    identity: &ClientIdentity,
    repairs: Option<(u32, Timestamp)>,
    writer: Option<&str>,
    now: Timestamp,
) -> Repair {
    let drifted =
        standing(identity).filter(|(last, _)| last.reason == FailureReason::Drifted.as_str());
    let again = match drifted {
        // The hold is over: this is its next try.
        Some((_, Some(_))) => return Repair::Now,
        Some((last, None)) => now.duration_since(last.time.0) < FORGIVEN,
        None => false,
    };
    let repairs = repairs.filter(|(_, since)| now < *since + REPAIR_WINDOW);
    let often = repairs.filter(|(count, _)| *count >= REPAIRS);
    if !again && often.is_none() {
        return Repair::Now;
    }
    let message = |next_try| {
        let times = match often {
            Some((count, since)) => {
                let seconds = now.duration_since(since).as_secs().max(1);
                format!("{} times within {seconds}s", count + 1)
            }
            None => "again after it was repaired".to_owned(),
        };
        let writer = writer.map(|name| format!(" (last by {name:?})")).unwrap_or_default();
        format!(
            "Secret {:?} was changed or deleted by others {times}{writer}; it is repaired at {next_try}. Find out who writes to it, or choose another spec.secretName",
            identity.spec.secret_name
        )
    };
    Repair::Hold(failed(identity, FailureReason::Drifted, message, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ClientIdentityStatus, annotation};
    use crate::pki::authority::tests::instant;
    use crate::plan::identity::tests::identity;

    const NOW: &str = "2026-05-01T10:00:00Z";

    /// The identity as it is after its status was written.
    fn told(mut identity: ClientIdentity, failure: &Failure, open: bool) -> ClientIdentity {
        identity.status = Some(ClientIdentityStatus {
            observed_generation: identity.metadata.generation,
            last_failure: Some(failure.last.clone()),
            next_try: open.then_some(Time(failure.next_try)),
            ..ClientIdentityStatus::default()
        });
        identity
    }

    #[test]
    fn each_kind_of_failure_has_its_own_pace() {
        use FailureReason::*;
        for (reason, failures, seconds) in [
            (Unavailable, 1, 1),
            (Unavailable, 4, 8),
            (Unavailable, 40, 300),
            (Refused, 1, 60),
            (Refused, 3, 240),
            (Refused, 99, 3600),
            (SigningFailed, 2, 120),
            (Drifted, 1, 60),
            (Drifted, 7, 3600),
        ] {
            assert_eq!(reason.delay(failures).as_secs(), seconds, "{reason:?} {failures}");
        }
    }

    #[test]
    fn failures_in_a_row_double_and_a_new_spec_or_a_success_starts_afresh() {
        let now = instant(NOW);
        let fail = |identity: &ClientIdentity, now| {
            failed(identity, FailureReason::Refused, |_| "quota".into(), now)
        };
        let first = fail(&identity(), now);
        assert_eq!((first.last.failures, first.next_try), (1, instant("2026-05-01T10:01:00Z")));
        let held = told(identity(), &first, true);
        assert_eq!(held_until(&held, now), Some(first.next_try));
        assert_eq!(held_until(&held, first.next_try), None);
        let second = fail(&held, first.next_try);
        assert_eq!((second.last.failures, second.next_try), (2, instant("2026-05-01T10:03:00Z")));
        // Another kind of failure counts for itself.
        let other = failed(&held, FailureReason::Unavailable, |_| String::new(), now);
        assert_eq!(other.last.failures, 1);
        // It went well in between.
        assert_eq!(fail(&told(identity(), &second, false), now).last.failures, 1);
        // The spec has changed since.
        let mut changed = told(identity(), &second, true);
        changed.metadata.generation = Some(2);
        assert_eq!(held_until(&changed, now), None);
        assert_eq!(fail(&changed, now).last.failures, 1);
    }

    #[test]
    fn a_request_for_renewal_does_not_wait() {
        let now = instant(NOW);
        let failure = failed(&identity(), FailureReason::Refused, |_| String::new(), now);
        for (request, held) in [
            ("2026-05-01T10:00:10Z", None),
            ("2026-05-01T10:00:00Z", Some("2026-05-01T10:01:00Z")),
            ("2026-05-01T10:00:30Z", Some("2026-05-01T10:00:30Z")),
            ("2026-05-01T12:00:00Z", Some("2026-05-01T10:01:00Z")),
            ("soon", Some("2026-05-01T10:01:00Z")),
        ] {
            let mut identity = told(identity(), &failure, true);
            let annotations = identity.metadata.annotations.get_or_insert_default();
            annotations.insert(annotation::RENEW_REQUESTED_AT.into(), request.into());
            let later = instant("2026-05-01T10:00:20Z");
            assert_eq!(held_until(&identity, later), held.map(instant), "{request}");
        }
    }

    #[test]
    fn a_message_is_cut_to_what_status_holds() {
        let long = "ä".repeat(2000);
        let failure = failed(&identity(), FailureReason::Refused, |_| long, instant(NOW));
        assert_eq!(failure.last.message.len(), 1024);
    }

    /// A writer that changes the Secret each time it is repaired, for a day.
    #[test]
    fn a_rival_writer_gets_four_repairs_at_once_and_then_one_an_hour() {
        let start = instant(NOW);
        let mut identity = identity();
        let mut count = 0;
        let mut repaired = Vec::new();
        let mut messages = Vec::new();
        for second in 0..86_400 {
            let now = start + SignedDuration::from_secs(second);
            if held_until(&identity, now).is_some() {
                continue;
            }
            match repair(&identity, (count > 0).then_some((count, start)), Some("kubectl"), now) {
                Repair::Now => {
                    count += 1;
                    repaired.push(second);
                    let failure = identity.status.clone().and_then(|status| status.last_failure);
                    if let Some(last) = failure {
                        let failure = Failure { last, next_try: now };
                        identity = told(identity, &failure, false);
                    }
                }
                Repair::Hold(failure) => {
                    messages.push(failure.last.message.clone());
                    identity = told(identity, &failure, true);
                    assert!(is_drifting(&identity, now));
                }
            }
        }
        assert_eq!(repaired[..4], [0, 1, 2, 3]);
        let pauses: Vec<_> = repaired[3..].windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..7], [61, 121, 241, 481, 961, 1921, 3601]);
        assert!(pauses[7..].iter().all(|pause| *pause == 3601), "{pauses:?}");
        assert!(repaired.len() < 40, "{}", repaired.len());
        let first = &messages[0];
        for words in
            ["\"laptop-7-tls\"", "5 times within 4s", "\"kubectl\"", "2026-05-01T10:01:04Z"]
        {
            assert!(first.contains(words), "{first}");
        }
    }

    #[test]
    fn a_secret_that_was_left_alone_is_repaired_at_once() {
        let now = instant(NOW);
        let Repair::Hold(failure) = repair(&identity(), Some((4, now)), None, now) else {
            panic!("not held")
        };
        let calm = told(identity(), &failure, false);
        let soon = now + SignedDuration::from_mins(90);
        assert!(matches!(repair(&calm, None, None, soon), Repair::Hold(_)));
        let later = now + SignedDuration::from_mins(121);
        assert_eq!(repair(&calm, Some((4, now)), None, later), Repair::Now);
    }
}
