//! The canary of a trust: who it is, when it runs, and what is told of it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use kube::ResourceExt;
use serde_json::json;

use super::allow::{Asked, Policy};
use super::ledger::Holder;
use super::names;
use super::renewal::fnv1a;
use super::trial;
use crate::api::canary::{Canary, CanaryResult, CanaryStatus, Endpoint, Reason};
use crate::api::condition::{self, CANARY_PASSED, READY, Wanted, is_true};
use crate::api::{ClientIdentity, ClientIdentitySpec, ClientTrust};
use crate::pki::KeyType;
use crate::pki::profile::Profile;

/// The common name of every canary, which no identity may have: whoever lets canaries pass in a rule must
/// not let others pass.
pub const COMMON_NAME: &str = "countersign canary";

/// After a run that failed the next one comes this soon, so that the end of the trouble is seen.
const AFTER_FAILURE: SignedDuration = SignedDuration::from_mins(5);

/// Begins the name of a holder in the ledger that is a `ClientTrust`. No name of an object holds a slash.
const HOLDER_PREFIX: &str = "clienttrust/";

/// Does an identity ask for the name of canaries?
pub fn is_reserved(spec: &ClientIdentitySpec) -> bool {
    spec.common_name.as_deref() == Some(COMMON_NAME)
}

/// The holder of the certificates of a trust's canary, as the ledger names it.
pub fn holder(trust: &ClientTrust) -> Holder {
    Holder {
        uid: trust.uid().unwrap_or_default().into(),
        namespace: trust.namespace().unwrap_or_default().into(),
        name: format!("{HOLDER_PREFIX}{}", trust.name_any()).into(),
    }
}

/// The name of the trust whose canary a holder is, if it is one.
pub fn trust_of(holder: &Holder) -> Option<&str> {
    holder.name.strip_prefix(HOLDER_PREFIX)
}

/// A certificate of a canary is valid for so long: a run, and time to spare.
pub fn lifetime(canary: &Canary) -> SignedDuration {
    SignedDuration::from_secs(2 * canary.timeout.as_secs()) + SignedDuration::from_mins(5)
}

/// The names and the type of key of the certificate that an authority allows the canary: like an identity
/// of the trust's namespace, it gets none that `spec.allow` refuses. Or why it allows none.
pub fn permit(
    policy: &Policy,
    trust: &ClientTrust,
    canary: &Canary,
    authority: &str,
    namespace: Option<&ObjectMeta>,
) -> Result<(KeyType, Profile), String> {
    let home = trust.namespace().unwrap_or_default();
    let duration = format!("{}s", lifetime(canary).as_secs());
    let identity: ClientIdentity = serde_json::from_value(json!({
        "metadata": {"name": trust.name_any(), "namespace": home},
        "spec": {
            "authorityRef": {"name": authority},
            "commonName": COMMON_NAME,
            "subject": {"organizationalUnits": [home]},
            "duration": duration,
            "secretName": "none",
        },
    }))
    .expect("what an identity must have is there");
    let profile = names::parse(&identity.spec).map_err(|error| error.to_string())?;
    let usages: Vec<_> = profile.usages.iter().map(|usage| usage.as_str()).collect();
    let mut refusal = String::new();
    for key_type in KeyType::ALL {
        let asked = Asked {
            identity: &identity,
            namespace,
            duration: identity.spec.duration,
            key_type: key_type.as_str(),
            usages: &usages,
        };
        match policy.check(&asked) {
            Ok(()) => return Ok((key_type, profile)),
            Err(refused) if refusal.is_empty() => refusal = refused.to_string(),
            Err(_) => {}
        }
    }
    Err(refusal)
}

/// What a canary has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The generation of the trust's spec that it is about.
    pub generation: Option<i64>,
    /// How it stands.
    pub reason: Reason,
    /// The same in a sentence.
    pub message: String,
    /// What a run saw; none when something kept it from running.
    pub run: Option<RunReport>,
}

/// What a run saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunReport {
    /// When it ended.
    pub ended: Timestamp,
    /// How long after its revocation the last client was refused; only when all passed.
    pub refused_after: Option<Duration>,
    /// What was seen at each endpoint with each certificate.
    pub results: Vec<CanaryResult>,
}

impl Report {
    /// Something kept the canary from running.
    pub fn blocked(trust: &ClientTrust, reason: Reason, message: String) -> Self {
        Self { generation: trust.metadata.generation, reason, message, run: None }
    }

    /// A run is over.
    pub fn of_run(
        generation: Option<i64>,
        authorities: &[String],
        endpoints: &[Endpoint],
        outcomes: &[trial::Outcome],
        now: Timestamp,
    ) -> Self {
        let worst = outcomes.iter().filter(|outcome| outcome.reason != Reason::Passed);
        let failures = worst.clone().count();
        let reason = worst.clone().map(|outcome| outcome.reason).min().unwrap_or(Reason::Passed);
        let worst = worst.clone().find(|outcome| outcome.reason == reason);
        let refused_after = outcomes.iter().filter_map(|outcome| outcome.refused_after).max();
        let message = match worst {
            None => {
                let after = refused_after.unwrap_or_default().as_secs_f64();
                format!("good client accepted, revoked client refused after {after:.1} s")
            }
            Some(worst) => {
                let url = &endpoints[worst.endpoint].url;
                let client = worst.client.map(|client| authorities[client].as_str());
                let more = match failures - 1 {
                    0 => String::new(),
                    more => format!("; and {more} more, see status.canary"),
                };
                format!("{url}: {}{more}", sentence(worst, client))
            }
        };
        let results = outcomes.iter().filter_map(|outcome| {
            let authority = authorities[outcome.client?].clone();
            // What the client without certificate met concerns every authority there.
            let anonymous = outcomes
                .iter()
                .find(|other| other.endpoint == outcome.endpoint && other.client.is_none())?;
            let Endpoint { url, address } = endpoints[outcome.endpoint].clone();
            let reason = if outcome.reason == Reason::Passed { anonymous } else { outcome }.reason;
            Some(CanaryResult {
                url,
                address,
                authority,
                reason: reason.as_str().to_owned(),
                refused_after_milliseconds: outcome.refused_after.map(milliseconds),
            })
        });
        Self {
            generation,
            reason,
            message,
            run: Some(RunReport {
                ended: condition::truncate(now),
                refused_after: refused_after.filter(|_| reason == Reason::Passed),
                results: results.collect(),
            }),
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}

fn sentence(outcome: &trial::Outcome, authority: Option<&str>) -> String {
    let seen = &outcome.seen;
    let of = authority.map_or(String::new(), |name| format!(" of ClientAuthority {name:?}"));
    match outcome.reason {
        Reason::RevokedClientAccepted => {
            format!("a revoked client{of} is accepted: {seen}; does the data plane load the CRL?")
        }
        Reason::AnonymousClientAccepted => {
            format!("a client without certificate is accepted: {seen}; spec.mode is Required")
        }
        Reason::AnonymousClientRefused => {
            format!("a client without certificate is refused: {seen}; spec.mode is Optional")
        }
        Reason::GoodClientRefused => {
            format!(
                "a good client{of} is refused: {seen}; does the data plane trust the authority, and is its CRL fresh?"
            )
        }
        Reason::ServerNotVerified => {
            format!("the server's certificate is not verified: {seen}; see spec.canary.serverCA")
        }
        _ => format!("nothing can be told of the client{of}: {seen}"),
    }
}

/// The last run, as far as the next one depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// When it ended.
    pub ended: Timestamp,
    /// The generation of the trust's spec that it was about.
    pub generation: Option<i64>,
    /// Was all as it should be?
    pub passed: bool,
}

/// The last run; none when there was none, or when something kept the canary from running since.
pub fn last(trust: &ClientTrust, report: Option<&Report>) -> Option<Last> {
    if let Some(report) = report {
        let run = report.run.as_ref()?;
        let passed = report.reason == Reason::Passed;
        return Some(Last { ended: run.ended, generation: report.generation, passed });
    }
    let status = trust.status.as_ref()?;
    let told = status.conditions.iter().find(|condition| condition.type_ == CANARY_PASSED)?;
    let blocked = [
        Reason::InvalidCanary,
        Reason::NotAllowed,
        Reason::AuthorityNotReady,
        Reason::TrustNotReady,
        Reason::Disabled,
    ];
    if blocked.iter().any(|reason| reason.as_str() == told.reason) {
        return None;
    }
    Some(Last {
        ended: status.canary.as_ref()?.last_run_time.as_ref()?.0,
        generation: told.observed_generation,
        passed: told.status == "True",
    })
}

/// When the next run is due. Each trust has times of its own, `interval` apart, so that the runs of many
/// trusts are spread; the first run, and the first after a change of the spec, comes at once.
pub fn due(trust: &ClientTrust, canary: &Canary, last: Option<Last>, now: Timestamp) -> Timestamp {
    // A time that lies ahead is of a clock that was set back.
    let same = |last: &Last| last.generation == trust.metadata.generation && last.ended <= now;
    let Some(last) = last.filter(same) else { return now };
    let interval = canary.interval.as_secs().max(60);
    let uid = trust.uid().unwrap_or_default();
    let offset = (fnv1a(uid.as_bytes()) % interval.unsigned_abs()).cast_signed();
    let since = (last.ended.as_second() - offset).rem_euclid(interval);
    let next = SignedDuration::from_secs(interval - since);
    let next = if last.passed { next } else { next.min(AFTER_FAILURE) };
    last.ended.saturating_add(next).unwrap_or(Timestamp::MAX)
}

/// The conditions and the status of a trust with what its canary tells. Without a report that of before
/// stands; without a canary there is none.
pub fn told(
    trust: &ClientTrust,
    report: Option<&Report>,
    conditions: Vec<Condition>,
    now: Timestamp,
) -> (Vec<Condition>, Option<CanaryStatus>) {
    if trust.spec.canary.is_none() {
        let others = conditions.into_iter().filter(|condition| condition.type_ != CANARY_PASSED);
        return (others.collect(), None);
    }
    let before = trust.status.as_ref().and_then(|status| status.canary.clone());
    let Some(report) = report else { return (conditions, before) };
    let mut message = report.message.clone();
    if !is_true(&conditions, READY) {
        message += "; the trust is not in force at every target: see the condition Ready";
    }
    message.truncate(message.floor_char_boundary(1024));
    let wanted = Wanted {
        type_: CANARY_PASSED,
        status: report.reason == Reason::Passed,
        reason: report.reason.as_str(),
        message,
    };
    let mut conditions = condition::merge(&conditions, &[wanted], report.generation, now);
    // Last, where it stays when there is no report: another order would be another status.
    conditions.rotate_left(1);
    let status = match &report.run {
        None => before,
        Some(run) => {
            let before = before.unwrap_or_default();
            let passed = report.reason == Reason::Passed;
            Some(CanaryStatus {
                last_run_time: Some(Time(run.ended)),
                last_success_time: match passed {
                    true => Some(Time(run.ended)),
                    false => before.last_success_time,
                },
                refused_after_milliseconds: match passed {
                    true => run.refused_after.map(milliseconds),
                    false => before.refused_after_milliseconds,
                },
                results: run.results.clone(),
            })
        }
    };
    (conditions, status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ClientTrustSpec;
    use crate::api::allow::Allow;
    use crate::api::trust::{ClientTrustStatus, Mode};
    use crate::pki::authority::tests::instant;
    use crate::plan::ledger::{Issued, Ledger, Record};
    use proptest::prelude::{prop_assert, proptest};

    const NOW: &str = "2026-05-01T10:00:00Z";
    const URL: &str = "https://shop.example.com/";

    fn trust(canary: &str) -> ClientTrust {
        let spec: ClientTrustSpec = serde_json::from_value(json!({
            "authorities": [{"name": "staff"}],
            "targetRefs": [{"group": "networking.k8s.io", "kind": "Ingress", "name": "shop"}],
            "canary": serde_yaml::from_str::<serde_json::Value>(canary).unwrap(),
        }))
        .unwrap();
        let mut trust = ClientTrust::new("shop", spec);
        trust.metadata.namespace = Some("team".into());
        trust.metadata.uid = Some("4e1b2a".into());
        trust.metadata.generation = Some(3);
        trust
    }

    fn canary(trust: &ClientTrust) -> &Canary {
        trust.spec.canary.as_ref().unwrap()
    }

    fn sample() -> ClientTrust {
        trust("endpoints: [{url: 'https://shop.example.com/'}]")
    }

    fn outcome(client: Option<usize>, reason: Reason, after: Option<u64>) -> trial::Outcome {
        trial::Outcome {
            endpoint: 0,
            client,
            reason,
            seen: "HTTP 200".into(),
            refused_after: after.map(Duration::from_millis),
        }
    }

    fn report(outcomes: &[trial::Outcome], now: &str) -> Report {
        let endpoints = [Endpoint { url: URL.into(), address: None }];
        let authorities = ["staff".to_owned(), "devices".to_owned()];
        Report::of_run(Some(3), &authorities, &endpoints, outcomes, instant(now))
    }

    fn passed(now: &str) -> Report {
        let anonymous = outcome(None, Reason::Passed, None);
        report(&[anonymous, outcome(Some(0), Reason::Passed, Some(1400))], now)
    }

    #[test]
    fn the_defaults_are_those_that_the_documentation_names() {
        let trust = sample();
        let canary = canary(&trust);
        assert_eq!((canary.interval.as_secs(), canary.timeout.as_secs()), (3600, 60));
        assert!(!canary.insecure_skip_server_verification);
        assert_eq!(trust.spec.mode, Mode::Required);
        assert_eq!(lifetime(canary), SignedDuration::from_mins(7));
    }

    #[test]
    fn a_holder_that_is_a_trust_is_no_identity_and_survives_the_ledger() {
        let holder = holder(&sample());
        assert_eq!(trust_of(&holder), Some("shop"));
        let mut identity = holder.clone();
        identity.name = "shop".into();
        assert_eq!(trust_of(&identity), None);
        let record = Record::Issued(Issued {
            serial: "0a0b".parse().unwrap(),
            revision: 0,
            not_after: instant(NOW),
            holder: Holder { name: format!("{HOLDER_PREFIX}{}", "x".repeat(200)).into(), ..holder },
            subject: None,
            issued_at: Some(instant(NOW)),
            supersedes: 0,
            retain: true,
        });
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(Record::decode_all(&bytes), Ok(vec![record.clone()]));
        let mut ledger = Ledger::default();
        ledger.apply(record);
        assert_eq!(ledger.of_holder("4e1b2a").count(), 1);
    }

    #[test]
    fn the_canary_is_allowed_what_an_identity_of_its_name_is_allowed() {
        let trust = sample();
        let namespace = ObjectMeta { name: Some("team".into()), ..ObjectMeta::default() };
        let ask = |allow: serde_json::Value| {
            let allow: Allow = serde_json::from_value(allow).unwrap();
            let policy = Policy::compile(Some(&allow)).unwrap();
            permit(&policy, &trust, canary(&trust), "staff", Some(&namespace))
        };
        let (key_type, profile) = ask(json!({})).unwrap();
        assert_eq!(key_type, KeyType::EcdsaP256);
        let subject = profile.subject.0.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>();
        assert_eq!(subject, ["team", COMMON_NAME]);
        assert!(profile.alternative_names.is_empty());

        let rsa = json!({"keyTypes": ["RSA-3072", "RSA-2048"]});
        assert_eq!(ask(rsa).unwrap().0, KeyType::Rsa2048);
        for refusing in [
            json!({"rules": [{"expression": "identity.commonName.startsWith(namespaceObject.metadata.name + '.')"}]}),
            json!({"namespaceSelector": {"matchLabels": {"certificates": "yes"}}}),
            json!({"maxDuration": "5m"}),
        ] {
            let refusal = ask(refusing.clone()).unwrap_err();
            assert!(refusal.starts_with("spec.allow."), "{refusing}: {refusal}");
        }
        let exempt = "identity.commonName == 'countersign canary' && identity.subject.organizationalUnits == [namespaceObject.metadata.name]";
        assert!(ask(json!({"rules": [{"expression": exempt}]})).is_ok());
    }

    #[test]
    fn no_identity_has_the_canarys_name() {
        use crate::plan::identity::tests::identity;
        let mut identity = identity();
        assert!(!is_reserved(&identity.spec));
        identity.spec.common_name = Some(COMMON_NAME.into());
        assert!(is_reserved(&identity.spec));
    }

    #[test]
    fn the_first_run_comes_at_once_and_then_each_at_the_trusts_own_time() {
        let mut trust = sample();
        let now = instant(NOW);
        let spec = canary(&trust).clone();
        assert_eq!(due(&trust, &spec, None, now), now);
        let good = Last { ended: now, generation: Some(3), passed: true };
        let first = due(&trust, &spec, Some(good), now);
        let hour = SignedDuration::from_hours(1);
        assert!(first > now && first.duration_since(now) <= hour, "{first}");
        // It ended a little later, as runs do: the next one comes an hour after that time all the same.
        let later = first + SignedDuration::from_secs(70);
        let next = due(&trust, &spec, Some(Last { ended: later, ..good }), later);
        assert_eq!(next.duration_since(first), hour);

        trust.metadata.uid = Some("another".into());
        assert_ne!(due(&trust, &spec, Some(good), now), first, "trusts are spread");

        let bad = Last { passed: false, ..good };
        assert!(due(&trust, &spec, Some(bad), now).duration_since(now) <= AFTER_FAILURE);
        for last in [Last { generation: Some(2), ..good }, Last { ended: now + hour, ..good }] {
            assert_eq!(due(&trust, &spec, Some(last), now), now, "{last:?}");
        }
    }

    #[test]
    fn a_report_says_what_was_seen() {
        let good = passed(NOW);
        assert_eq!(good.reason, Reason::Passed);
        assert_eq!(good.message, "good client accepted, revoked client refused after 1.4 s");
        let run = good.run.unwrap();
        assert_eq!(run.refused_after, Some(Duration::from_millis(1400)));
        assert_eq!(run.results.len(), 1);
        assert_eq!(run.results[0].refused_after_milliseconds, Some(1400));

        let bad = report(
            &[
                outcome(None, Reason::AnonymousClientAccepted, None),
                outcome(Some(0), Reason::Passed, Some(1400)),
                outcome(Some(1), Reason::RevokedClientAccepted, None),
            ],
            NOW,
        );
        assert_eq!(bad.reason, Reason::RevokedClientAccepted, "the worst counts");
        assert!(bad.message.starts_with("https://shop.example.com/: a revoked client of ClientAuthority \"devices\" is accepted: HTTP 200"), "{}", bad.message);
        assert!(bad.message.ends_with("and 1 more, see status.canary"), "{}", bad.message);
        let run = bad.run.unwrap();
        assert_eq!(run.refused_after, None);
        let reasons: Vec<_> = run.results.iter().map(|result| result.reason.as_str()).collect();
        assert_eq!(reasons, ["AnonymousClientAccepted", "RevokedClientAccepted"]);
    }

    fn tell(trust: &mut ClientTrust, report: Option<&Report>, now: &str) -> Option<CanaryStatus> {
        let mut status = trust.status.clone().unwrap_or_default();
        let ready = Wanted::yes(READY, "Programmed", "");
        let conditions = condition::merge(&status.conditions, &[ready], Some(3), instant(now));
        (status.conditions, status.canary) = told(trust, report, conditions, instant(now));
        let canary = status.canary.clone();
        trust.status = Some(status);
        canary
    }

    #[test]
    fn what_is_told_stays_told_and_a_failure_keeps_the_memory_of_the_success() {
        let mut trust = sample();
        assert_eq!(tell(&mut trust, None, NOW), None);
        let told = tell(&mut trust, Some(&passed(NOW)), NOW).unwrap();
        assert_eq!(told.last_success_time, told.last_run_time);
        assert_eq!(told.refused_after_milliseconds, Some(1400));
        let status = trust.status.clone().unwrap();
        assert!(is_true(&status.conditions, CANARY_PASSED));

        // Told again, or by a process that knows of no run: nothing changes.
        let later = "2026-05-01T10:20:00Z";
        for report in [Some(&passed(NOW)), None] {
            tell(&mut trust, report, later);
            assert_eq!(trust.status.as_ref(), Some(&status));
        }
        let bad = report(
            &[
                outcome(None, Reason::Passed, None),
                outcome(Some(0), Reason::RevokedClientAccepted, None),
            ],
            later,
        );
        let told = tell(&mut trust, Some(&bad), later).unwrap();
        assert_eq!(told.last_run_time, Some(Time(instant(later))));
        assert_eq!(told.last_success_time, Some(Time(instant(NOW))));
        assert_eq!(told.refused_after_milliseconds, Some(1400));
        assert!(!is_true(&trust.status.as_ref().unwrap().conditions, CANARY_PASSED));

        let blocked = Report::blocked(&trust, Reason::AuthorityNotReady, "it is not".into());
        assert_eq!(tell(&mut trust, Some(&blocked), later).unwrap(), told, "that was no run");
        trust.spec.canary = None;
        assert_eq!(tell(&mut trust, Some(&bad), later), None);
        assert!(trust.status.unwrap().conditions.iter().all(|c| c.type_ == READY));
    }

    #[test]
    fn a_trust_that_is_not_in_force_everywhere_says_so_beside_what_the_canary_saw() {
        let trust = sample();
        let (conditions, _) = told(&trust, Some(&passed(NOW)), Vec::new(), instant(NOW));
        assert_eq!(conditions[0].status, "True");
        assert!(conditions[0].message.ends_with("see the condition Ready"));
    }

    #[test]
    fn a_new_process_goes_on_where_the_one_before_ended() {
        let mut trust = sample();
        assert_eq!(last(&trust, None), None);
        tell(&mut trust, Some(&passed(NOW)), NOW);
        let known = last(&trust, Some(&passed(NOW)));
        assert_eq!(known, Some(Last { ended: instant(NOW), generation: Some(3), passed: true }));
        assert_eq!(last(&trust, None), known);
        let blocked = Report::blocked(&trust, Reason::InvalidCanary, "no".into());
        assert_eq!(last(&trust, Some(&blocked)), None, "it runs as soon as it can");
        tell(&mut trust, Some(&blocked), NOW);
        assert_eq!(last(&trust, None), None);
        assert!(
            trust.status.as_ref().is_some_and(|status: &ClientTrustStatus| status.canary.is_some())
        );
    }

    proptest! {
        #[test]
        fn the_next_run_is_ahead_and_within_the_interval(uid: String, second in 0i64..4_000_000_000, interval in 60u32..604_800) {
            let mut trust = sample();
            trust.metadata.uid = Some(uid);
            let mut spec = canary(&trust).clone();
            spec.interval = crate::api::duration::Duration::from_secs(interval);
            let now = Timestamp::from_second(second).unwrap();
            let last = Last { ended: now, generation: Some(3), passed: true };
            let wait = due(&trust, &spec, Some(last), now).duration_since(now).as_secs();
            prop_assert!(wait > 0 && wait <= i64::from(interval), "{wait}");
        }
    }
}
