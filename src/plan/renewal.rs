//! When a certificate is replaced: in time before it expires, or on request.

use jiff::Timestamp;

use super::identity::BACKDATE;
use super::secret::Current;
use crate::api::{ClientIdentity, ClientIdentitySpec, annotation};

/// When a certificate is replaced: `renewBefore` or `renewBeforePercentage` before it expires, and up
/// to a tenth of the time until then earlier, by the identity's UID, so that many made in one minute do
/// not renew in one.
pub fn renewal(identity: &ClientIdentity, current: &Current) -> Timestamp {
    let spec = &identity.spec;
    // Counted from when it was made: a certificate must never be due for renewal as it is born.
    let end = current.not_after.as_second();
    let made = end.min(current.not_before.as_second() + BACKDATE.as_secs());
    let lifetime = end - made;
    let before = match (spec.renew_before, spec.renew_before_percentage) {
        (Some(before), _) => Some(before.as_secs()),
        (None, Some(percentage)) => Some(lifetime / 100 * i64::from(percentage)),
        (None, None) => None,
    };
    // A certificate that was cut to its CA's lifetime may be shorter than renewBefore.
    let before = before.filter(|before| before + 10 <= lifetime).unwrap_or(lifetime / 3);
    let spread = (lifetime - before) / 10;
    let uid = identity.metadata.uid.as_deref().unwrap_or_default();
    let earlier = if spread > 0 { fnv1a(uid.as_bytes()) as i64 & i64::MAX } else { 0 };
    let earlier = if spread > 0 { earlier % (spread + 1) } else { 0 };
    Timestamp::from_second(end - before - earlier).unwrap_or(current.not_after)
}

/// FNV-1a, 64 bits: a stable hash that spreads UIDs; nothing depends on its strength.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// What is wrong with the spec's word on renewal: field and reason. The CRD checks it first; an object
/// that was stored before its rules were comes here all the same.
pub fn check(spec: &ClientIdentitySpec) -> Result<(), String> {
    match (spec.renew_before, spec.renew_before_percentage) {
        (Some(_), Some(_)) => {
            Err("spec.renewBeforePercentage: spec.renewBefore is set too; set one of them"
                .to_owned())
        }
        (None, Some(percentage)) if !(1..=99).contains(&percentage) => {
            Err(format!("spec.renewBeforePercentage: {percentage} is not in 1..=99"))
        }
        _ => Ok(()),
    }
}

/// From when on a certificate is too old, by the annotation that asks for a renewal; `Err` with what is
/// wrong when it is not understood. A time of the future asks for a renewal then.
pub fn requested(identity: &ClientIdentity) -> Result<Option<Timestamp>, String> {
    let annotations = identity.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|all| all.get(annotation::RENEW_REQUESTED_AT)) else {
        return Ok(None);
    };
    let time: Timestamp = text.trim().parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        format!(
            "metadata.annotations[{}]: {shown:?} is not a time such as 2026-05-01T10:00:00Z; nothing is renewed for it",
            annotation::RENEW_REQUESTED_AT
        )
    })?;
    // Certificates are dated in whole seconds: rounded down, a request could count as served by a
    // certificate of the same second that is older.
    let up = i64::from(time.subsec_nanosecond() > 0);
    Ok(Some(Timestamp::from_second(time.as_second() + up).unwrap_or(Timestamp::MAX)))
}

/// When a certificate was issued, as its own dates tell it; the ledger knows better.
pub fn made(current: &Current) -> Timestamp {
    current.not_before.saturating_add(BACKDATE).unwrap_or(current.not_after).min(current.not_after)
}

/// Is a certificate issued at `made` older than the request, which is due?
pub(super) fn is_requested(identity: &ClientIdentity, made: Timestamp, now: Timestamp) -> bool {
    requested(identity).ok().flatten().is_some_and(|time| made < time && time <= now)
}

/// When to look next for the sake of renewal: at the renewal time, or at a requested time before it.
pub fn next_look(identity: &ClientIdentity, renewal: Timestamp, now: Timestamp) -> Timestamp {
    let requested = requested(identity).ok().flatten().filter(|time| *time > now);
    requested.map_or(renewal, |time| time.min(renewal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::duration::Duration;
    use crate::pki::Serial;
    use crate::pki::authority::tests::instant;
    use crate::plan::identity::tests::identity;
    use jiff::SignedDuration;
    use proptest::prelude::*;

    const MADE: &str = "2026-05-01T10:00:00Z";

    fn current(lifetime: i64) -> Current {
        let made = instant(MADE);
        Current {
            serial: Serial::random(),
            fingerprint: String::new(),
            not_before: made - BACKDATE,
            not_after: made + SignedDuration::from_secs(lifetime),
            revision: 1,
            spec_hash: String::new(),
            generation: 1,
            bundle_hash: String::new(),
            data_hash: None,
            public_key: None,
            lacks: None,
        }
    }

    #[test]
    fn a_percentage_is_of_the_lifetime_and_remains_at_the_renewal() {
        for (percentage, minutes) in [(25, 45), (50, 30), (1, 59), (99, 0)] {
            let mut identity = identity();
            identity.spec.renew_before = None;
            identity.spec.renew_before_percentage = Some(percentage);
            let latest = instant(MADE) + SignedDuration::from_mins(minutes);
            let at = renewal(&identity, &current(3600));
            let earliest = latest - SignedDuration::from_secs(minutes * 6 + 36);
            assert!(at <= latest + SignedDuration::from_secs(36), "{percentage}: {at}");
            assert!(at >= earliest && at >= instant(MADE), "{percentage}: {at}");
        }
    }

    #[test]
    fn a_spec_of_two_minds_is_refused_by_field() {
        let mut spec = identity().spec;
        spec.renew_before_percentage = Some(10);
        assert!(check(&spec).unwrap_err().starts_with("spec.renewBeforePercentage: "));
        spec.renew_before = None;
        assert_eq!(check(&spec), Ok(()));
        for wrong in [0, 100, -1] {
            spec.renew_before_percentage = Some(wrong);
            assert!(check(&spec).unwrap_err().starts_with("spec.renewBeforePercentage: "));
        }
    }

    #[test]
    fn a_request_counts_once_and_only_for_an_older_certificate() {
        let now = instant("2026-05-02T10:00:00Z");
        let asked = |text: &str| {
            let mut identity = identity();
            let annotations = identity.metadata.annotations.get_or_insert_default();
            annotations.insert(annotation::RENEW_REQUESTED_AT.into(), text.into());
            identity
        };
        for (text, made, due) in [
            ("2026-05-02T09:00:00Z", "2026-05-01T10:00:00Z", true),
            ("2026-05-02T11:00:00+02:00", "2026-05-01T10:00:00Z", true),
            // Served by a certificate of the same second or later.
            ("2026-05-02T09:00:00Z", "2026-05-02T09:00:00Z", false),
            ("2026-05-02T09:00:00Z", "2026-05-02T09:30:00Z", false),
            // A fraction of a second after the certificate was made.
            ("2026-05-02T09:00:00.25Z", "2026-05-02T09:00:00Z", true),
            ("2026-05-02T09:00:00.25Z", "2026-05-02T09:00:01Z", false),
            // Not yet.
            ("2026-05-02T10:00:00.5Z", "2026-05-01T10:00:00Z", false),
            ("2026-05-03T10:00:00Z", "2026-05-01T10:00:00Z", false),
            // Not understood.
            ("now", "2026-05-01T10:00:00Z", false),
            ("", "2026-05-01T10:00:00Z", false),
        ] {
            assert_eq!(is_requested(&asked(text), instant(made), now), due, "{text} {made}");
        }
        assert_eq!(requested(&identity()), Ok(None));
        let wrong = requested(&asked("tomorrow")).unwrap_err();
        assert!(wrong.contains("renew-requested-at") && wrong.contains("\"tomorrow\""), "{wrong}");
        let planned = asked("2026-05-02T12:00:00Z");
        let renewal = instant("2026-05-04T10:00:00Z");
        assert_eq!(next_look(&planned, renewal, now), instant("2026-05-02T12:00:00Z"));
        assert_eq!(next_look(&asked("2026-05-02T09:00:00Z"), renewal, now), renewal);
    }

    proptest! {
        #[test]
        fn renewal_lies_within_the_certificates_life_and_spreads(
            uid in "[0-9a-f]{8}",
            lifetime in 300i64..100_000_000,
            before in proptest::option::of(1i64..100_000_000),
            percentage in proptest::option::of(1i32..=99),
        ) {
            let mut identity = identity();
            identity.metadata.uid = Some(uid);
            identity.spec.renew_before = before.map(|b| Duration::from_secs(b as u32));
            identity.spec.renew_before_percentage = percentage;
            let current = current(lifetime);
            let at = renewal(&identity, &current);
            prop_assert!(at < current.not_after);
            // Not due at once, whatever the spec says.
            prop_assert!(at >= instant(MADE) + SignedDuration::from_secs(9));
        }
    }

    #[test]
    fn ten_thousand_identities_do_not_renew_in_one_minute() {
        let current = current(86_400);
        let mut minutes = std::collections::HashMap::new();
        for number in 0..10_000 {
            let mut identity = identity();
            identity.metadata.uid = Some(format!("{number:08x}-0000-4000-8000-000000000000"));
            *minutes.entry(renewal(&identity, &current).as_second() / 60).or_insert(0) += 1;
        }
        // Sixteen hours until renewal, a tenth of it to spread over: 96 minutes.
        assert!(minutes.len() >= 90, "{}", minutes.len());
        assert!(minutes.values().all(|count| *count < 400), "{minutes:?}");
    }
}
