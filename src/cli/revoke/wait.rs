//! Waits until what `countersign revoke` asked for is so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use tokio::time::Instant;

use super::select::{list, request_label};
use super::{Failed, RevokeArgs};
use crate::api::condition::{ENFORCED, PUBLISHED, RECORDED, is_true};
use crate::api::{CertificateRevocation, label};
use crate::cli::progress::Progress;
use crate::cluster::Key;

/// How often the revocations that are waited for are read.
const POLL: Duration = Duration::from_millis(500);

/// What is waited for.
pub(super) fn until(args: &RevokeArgs) -> &'static str {
    if args.wait_enforced { "enforced" } else { "published" }
}

/// What came of the requests.
pub(super) struct Outcome {
    /// So many are as they should be.
    pub done: usize,
    /// So many found nothing to revoke.
    pub nothing: usize,
    /// These failed.
    pub failed: Failed,
}

/// Reads the objects until each one is done or has failed, or the time is over.
pub(super) async fn wait(
    client: &Client,
    mut waiting: BTreeSet<Key>,
    args: &RevokeArgs,
) -> Result<Outcome, String> {
    let (what, total) = (until(args), waiting.len());
    let mut progress = Progress::new(what, total);
    let end = Instant::now() + Duration::from_secs(args.timeout);
    let selector = format!("{}={}", label::REQUEST, request_label(args));
    let bulk = args.identity.is_empty() && args.serial.is_empty() && args.fingerprint.is_empty();
    let mut outcome = Outcome { done: 0, nothing: 0, failed: Vec::new() };
    let mut last: BTreeMap<Key, String> = BTreeMap::new();
    while !waiting.is_empty() && Instant::now() < end {
        // Reading thousands again and again would slow down what is waited for.
        tokio::time::sleep(POLL + Duration::from_millis(waiting.len() as u64)).await;
        let namespaces: BTreeSet<String> =
            waiting.iter().map(|key| key.namespace.clone()).collect();
        let scopes = if args.all_namespaces {
            vec![None]
        } else {
            namespaces.iter().map(|namespace| Some(namespace.as_str())).collect()
        };
        for scope in scopes {
            let found: Vec<CertificateRevocation> = list(client, scope, Some(&selector)).await?;
            for revocation in found {
                let key = Key::of(&revocation);
                if !waiting.contains(&key) {
                    continue;
                }
                match state(&revocation, args.wait_enforced) {
                    State::Done => outcome.done += 1,
                    State::Nothing(_) if bulk => outcome.nothing += 1,
                    State::Nothing(why) | State::Failed(why) => {
                        outcome.failed.push((key.clone(), why));
                    }
                    State::Waiting(why) => {
                        last.insert(key, why);
                        continue;
                    }
                }
                waiting.remove(&key);
            }
        }
        progress.set(total - waiting.len());
    }
    progress.end();
    for key in waiting {
        let why = last.remove(&key).unwrap_or_else(|| "the controller has not seen it".to_owned());
        outcome.failed.push((key, format!("not {what} within {}s: {why}", args.timeout)));
    }
    Ok(outcome)
}

/// How far a revocation is.
#[derive(Debug, PartialEq)]
enum State {
    Done,
    Waiting(String),
    Nothing(String),
    Failed(String),
}

fn state(revocation: &CertificateRevocation, wait_enforced: bool) -> State {
    let conditions =
        revocation.status.as_ref().map(|status| &*status.conditions).unwrap_or_default();
    let find = |type_| conditions.iter().find(|condition| condition.type_ == type_);
    if is_true(conditions, PUBLISHED) && (!wait_enforced || is_true(conditions, ENFORCED)) {
        return State::Done;
    }
    let recorded = find(RECORDED);
    let told = |condition: Option<&Condition>| {
        condition.map_or("the controller has not seen it".to_owned(), |condition| {
            format!("{}: {}", condition.reason, condition.message)
        })
    };
    match recorded {
        Some(found) if found.status != "True" => match found.reason.as_str() {
            "Pending" | "WaitingForRenewal" => State::Waiting(told(recorded)),
            "NotFound" => State::Nothing(told(recorded)),
            _ => State::Failed(told(recorded)),
        },
        // On hold, with nothing to publish.
        Some(_) if find(PUBLISHED).is_none() => State::Done,
        Some(_) if is_true(conditions, PUBLISHED) => State::Waiting(told(find(ENFORCED))),
        Some(_) => State::Waiting(told(find(PUBLISHED))),
        None => State::Waiting(told(None)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::select::{one, spec};
    use super::super::tests::parse;
    use super::*;
    use crate::api::CertificateRevocationStatus;
    use crate::api::condition::{Wanted, merge};
    use jiff::Timestamp;

    #[test]
    fn how_far_a_revocation_is() {
        let with = |conditions: &[Wanted]| {
            let args = parse(&["--serial", "0a"]).unwrap();
            let mut object = one("team", "0a", spec(&args), &args).object;
            object.status = Some(CertificateRevocationStatus {
                conditions: merge(&[], conditions, Some(1), Timestamp::UNIX_EPOCH),
                ..Default::default()
            });
            object
        };
        let recorded = Wanted::yes(RECORDED, "Recorded", "");
        let published = Wanted::yes(PUBLISHED, "Published", "");
        let late = Wanted::no(ENFORCED, "ServersNotObserved", "why");
        let all = [recorded.clone(), published, late];
        assert_eq!(state(&with(&all), false), State::Done);
        let waiting = State::Waiting("ServersNotObserved: why".into());
        assert_eq!(state(&with(&all), true), waiting);
        let pending = Wanted::no(PUBLISHED, "Pending", "soon");
        let waiting = State::Waiting("Pending: soon".into());
        assert_eq!(state(&with(&[recorded, pending]), false), waiting);
        for (reason, expected) in [
            ("WaitingForRenewal", State::Waiting("WaitingForRenewal: x".into())),
            ("NotFound", State::Nothing("NotFound: x".into())),
            ("OtherNamespace", State::Failed("OtherNamespace: x".into())),
        ] {
            assert_eq!(state(&with(&[Wanted::no(RECORDED, reason, "x")]), false), expected);
        }
        assert!(matches!(state(&with(&[]), false), State::Waiting(_)));
    }
}
