//! Which workloads are restarted after a certificate was replaced.

use jiff::Timestamp;
use serde_json::Value;

use super::history::Certificate;
use super::renewal::made;
use super::secret::Current;
use crate::api::annotation;
use crate::api::condition::{ROLLOUT_RESTARTED, Wanted};
use crate::api::lifecycle::RolloutRestartTarget;

/// When the certificate in the Secret was issued, if it replaced another one; the first one of an
/// identity restarts nothing.
pub fn replaced_at(certificates: &[Certificate], current: &Current) -> Option<Timestamp> {
    let issued = certificates.iter().find(|c| c.issued.serial == current.serial)?;
    match issued.issued.issued_at {
        Some(at) => (issued.issued.supersedes > 0).then_some(at),
        // A record of a version that did not note what it replaced.
        None => (current.revision > 1).then(|| made(current)),
    }
}

/// Must this workload be restarted for the certificate? Not when it was restarted for it already, nor
/// when it is younger: its pods never saw another one. The annotation and the ledger decide, so that
/// it happens once for each certificate, whoever died in between.
pub fn needs_restart(workload: &Value, current: &Current, replaced_at: Timestamp) -> bool {
    let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
    let done = annotations[annotation::RESTARTED_FOR].as_str() == Some(&current.serial.to_string());
    let created = workload["metadata"]["creationTimestamp"].as_str();
    let created: Option<Timestamp> = created.and_then(|text| text.parse().ok());
    !done && created.is_none_or(|created| created < replaced_at)
}

/// Why a workload was not restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// There is none of that name.
    NotFound,
    /// The operator may not.
    Forbidden,
    /// Something else; what.
    Other(String),
}

/// What the condition says of the workloads that could not be restarted.
pub fn condition(current: &Current, failed: &[(&RolloutRestartTarget, Failed)]) -> Wanted {
    let Some((_, first)) = failed.first() else {
        let message = format!(
            "every workload of spec.rolloutRestartTargets is restarted for certificate {}",
            current.serial
        );
        return Wanted::yes(ROLLOUT_RESTARTED, "Restarted", message);
    };
    let reason = match first {
        Failed::NotFound => "TargetNotFound",
        Failed::Forbidden => "Forbidden",
        Failed::Other(_) => "RestartFailed",
    };
    let each: Vec<_> = failed
        .iter()
        .map(|(target, failed)| {
            let object = format!("{} {:?}", target.kind.as_str(), target.name);
            match failed {
                Failed::NotFound => format!("{object} does not exist"),
                Failed::Forbidden => format!(
                    "may not restart {object}; set the chart's value rolloutRestart.enabled to true"
                ),
                Failed::Other(why) => format!("{object}: {why}"),
            }
        })
        .collect();
    let message = format!("spec.rolloutRestartTargets: {}", each.join("; "));
    Wanted::no(ROLLOUT_RESTARTED, reason, message)
}

/// What the condition says while the first certificate is in use.
pub fn nothing_to_do() -> Wanted {
    let message = "the first certificate is in use; workloads are restarted when it is replaced";
    Wanted::yes(ROLLOUT_RESTARTED, "NotNeeded", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::lifecycle::WorkloadKind;
    use crate::pki::authority::tests::instant;
    use crate::plan::ledger::tests::issued;
    use crate::plan::ledger::{CaKey, Issued};
    use serde_json::json;

    const ISSUED: &str = "2026-05-01T10:00:00Z";

    fn current(revision: u32) -> Current {
        Current {
            serial: "0a0b".parse().unwrap(),
            fingerprint: String::new(),
            not_before: instant("2026-05-01T09:59:00Z"),
            not_after: instant("2026-05-02T10:00:00Z"),
            revision,
            spec_hash: String::new(),
            generation: 1,
            bundle_hash: String::new(),
            data_hash: None,
            public_key: None,
            lacks: None,
        }
    }

    #[test]
    fn only_a_certificate_that_replaced_another_restarts() {
        let certificate = |issued_at, supersedes| Certificate {
            ca: CaKey::first("clients"),
            issued: Issued { issued_at, supersedes, ..issued("0a0b", "uid", 2, 9000) },
            revoked: None,
        };
        let at = Some(instant(ISSUED));
        assert_eq!(replaced_at(&[certificate(at, 1)], &current(2)), at);
        // The first attempt was lost: the second is the first that anybody saw.
        assert_eq!(replaced_at(&[certificate(at, 0)], &current(2)), None);
        assert_eq!(replaced_at(&[certificate(None, 0)], &current(2)), at);
        assert_eq!(replaced_at(&[certificate(None, 0)], &current(1)), None);
        assert_eq!(replaced_at(&[], &current(2)), None);
    }

    #[test]
    fn a_workload_is_restarted_once_and_only_when_it_is_older() {
        let workload = |created: &str, serial: Option<&str>| {
            json!({
                "metadata": {"creationTimestamp": created},
                "spec": {"template": {"metadata": {"annotations": {annotation::RESTARTED_FOR: serial}}}},
            })
        };
        for (created, serial, due) in [
            ("2026-04-01T00:00:00Z", None, true),
            ("2026-04-01T00:00:00Z", Some("09"), true),
            ("2026-04-01T00:00:00Z", Some("0a0b"), false),
            ("2026-05-01T10:00:00Z", None, false),
            ("2026-05-01T11:00:00Z", Some("09"), false),
        ] {
            let workload = workload(created, serial);
            assert_eq!(needs_restart(&workload, &current(2), instant(ISSUED)), due, "{workload}");
        }
        assert!(needs_restart(&json!({}), &current(2), instant(ISSUED)));
    }

    #[test]
    fn the_condition_names_each_target_and_what_to_do() {
        let web = RolloutRestartTarget { kind: WorkloadKind::Deployment, name: "web".into() };
        let db = RolloutRestartTarget { kind: WorkloadKind::StatefulSet, name: "db".into() };
        let told = condition(&current(2), &[(&web, Failed::NotFound), (&db, Failed::Forbidden)]);
        assert_eq!((told.status, told.reason), (false, "TargetNotFound"));
        for words in ["Deployment \"web\" does not exist", "rolloutRestart.enabled"] {
            assert!(told.message.contains(words), "{}", told.message);
        }
        assert!(condition(&current(2), &[]).status);
    }
}
