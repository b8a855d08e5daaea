//! The end of a pass over an identity: what follows from a certificate that is in place, and what is
//! told of it, or of a failure, in status.

use std::time::Duration;

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use tracing::info;

use super::context::Context;
use super::error::{Error, chain};
use super::identity::NAME;
use super::queue::Outcome;
use super::{rollout, upkeep};
use crate::api::condition::Wanted;
use crate::api::identity::Reason;
use crate::api::{ClientIdentity, ClientIdentityStatus};
use crate::cluster::apply;
use crate::plan::renewal::next_look;
use crate::plan::retry::{Failure, FailureReason, failed};
use crate::plan::secret::Current;
use crate::plan::status::{Observed, status};

/// While a renewal is overdue, since the authority can't sign.
const OVERDUE: Duration = Duration::from_secs(60);
/// While a workload could not be restarted: it may be about to be created.
const ROLLOUT: Duration = Duration::from_secs(60);
/// The Secret of a password is not ours, so that it is not watched.
const PASSWORD: Duration = Duration::from_secs(60);
/// Two looks at an identity are at most this far apart.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// The Secret holds what it should: ends what was superseded, restarts workloads, writes the status;
/// tells when to look again.
pub(super) async fn settle(
    context: &Context,
    identity: &ClientIdentity,
    current: &Current,
    renewal: Timestamp,
    now: Timestamp,
) -> Result<Outcome, Error> {
    let certificates = upkeep::certificates(context, identity);
    let grace_ends =
        upkeep::revoke_superseded(context, identity, current, &certificates, now).await?;
    let rollout = rollout::restart(context, identity, current, &certificates, now).await;
    let restarted = rollout.as_ref().is_none_or(|rollout| rollout.status);
    put_status(context, identity, Some(current), Ok(()), None, rollout, now).await?;
    let next = next_look(identity, renewal, now);
    let mut wait = until(grace_ends.map_or(next, |end| end.min(next)), now);
    if next <= now {
        // Its authority can't sign, and wakes its identities when it can.
        wait = until(current.not_after, now).min(OVERDUE);
    }
    if current.lacks.is_some() {
        wait = wait.min(PASSWORD);
    }
    Ok(Outcome::After(if restarted { wait } else { wait.min(ROLLOUT) }))
}

/// Tells of a failure in status. What passes by itself is not told as long as the present certificate is
/// good; the queue tries again soon enough.
pub(super) async fn told(
    context: &Context,
    identity: &ClientIdentity,
    error: Error,
    still_good: bool,
    now: Timestamp,
) -> Result<Error, Error> {
    let reason = error.failure();
    if error.is_conflict() || (still_good && reason == FailureReason::Unavailable) {
        return Ok(error);
    }
    let failure = failed(identity, reason, |_| chain(&error), now);
    let message = format!("{}; next try at {}", failure.last.message, failure.next_try);
    let ready = Err((Reason::IssuanceFailed, message));
    put_status(context, identity, None, ready, Some(failure), None, now).await?;
    Ok(error)
}

/// Writes the status when it differs, and tells of a condition that is news.
pub(super) async fn put_status(
    context: &Context,
    identity: &ClientIdentity,
    current: Option<&Current>,
    ready: Result<(), (Reason, String)>,
    failure: Option<Failure>,
    rollout: Option<Wanted>,
    now: Timestamp,
) -> Result<(), Error> {
    let before = identity.status.clone().unwrap_or_default();
    let certificates = upkeep::certificates(context, identity);
    let observed = Observed { current, ready, failure, certificates: &certificates, rollout };
    let wanted: ClientIdentityStatus = status(identity, observed, now);
    if wanted == before {
        return Ok(());
    }
    let namespace = identity.namespace().unwrap_or_default();
    let api: Api<ClientIdentity> = Api::namespaced(context.client.clone(), &namespace);
    let written = apply::status(&api, &identity.name_any(), &wanted).await?;
    context.wrote(NAME, &written);
    for told in wanted.conditions.iter().filter(|condition| condition.status == "False") {
        let known = before.conditions.iter().find(|condition| condition.type_ == told.type_);
        if known.is_none_or(|known| known.reason != told.reason) {
            info!(
                condition = told.type_,
                reason = told.reason,
                message = told.message,
                "condition does not hold"
            );
            context.events.warning(identity, "Issue", &told.reason, &told.message).await;
        }
    }
    Ok(())
}

pub(super) fn until(time: Timestamp, now: Timestamp) -> Duration {
    let wait = Duration::try_from(time.duration_since(now)).unwrap_or(Duration::ZERO);
    // Whole seconds and one more: never awake just before the renewal is due.
    wait.min(LONGEST) + Duration::from_secs(1)
}
