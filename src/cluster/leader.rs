//! Leader election over a Lease (coordination.k8s.io/v1).
//!
//! Every write carries the resourceVersion that was read, so that of two candidates one loses. A
//! holder's silence is measured on our own clock, never by the time it wrote. Leadership saves work;
//! it is not what makes writes safe: see `cluster::apply`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::FIELD_MANAGER;

/// How a candidate behaves.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// Who we are: the pod's name, so that a container that restarts takes its own lease up again.
    pub identity: String,
    /// A holder that is silent for so long has lost it.
    pub duration: Duration,
}

/// What one look at the Lease leads to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Write it as ours.
    Take,
    /// Somebody else holds it.
    Wait,
}

/// What was last seen of another holder, and when on our clock.
struct Observed {
    holder: String,
    renewed: Option<Timestamp>,
    since: Instant,
}

impl Candidate {
    /// Campaigns until `shutdown` says so, then gives the lease back. `leading` is true while we hold
    /// it; when it can't be renewed in time, it turns false and this returns: the caller must stop.
    pub async fn run(
        self,
        client: Client,
        leading: watch::Sender<bool>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let api: Api<Lease> = Api::namespaced(client, &self.namespace);
        let mut observed = None;
        let mut renewed_at: Option<Instant> = None;
        // Renewed three times per duration; given up when two thirds of it passed in vain.
        let (period, deadline) = (self.duration / 6, self.duration * 2 / 3);
        loop {
            // Others count from when they see the renewal, which is not before it was sent.
            let asked = Instant::now();
            match tokio::time::timeout(deadline / 2, self.attempt(&api, &mut observed)).await {
                Ok(Ok(true)) => {
                    renewed_at = Some(asked);
                    if leading.send_if_modified(|leads| !std::mem::replace(leads, true)) {
                        info!(identity = self.identity, "became leader");
                    }
                }
                Ok(Ok(false)) if renewed_at.is_some() => {
                    warn!("another candidate took the lease");
                    leading.send_replace(false);
                    return;
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => warn!(%error, "failed to look after the lease"),
                Err(_) => warn!("the API server does not answer about the lease"),
            }
            if renewed_at.is_some_and(|at| at.elapsed() > deadline) {
                warn!("could not renew the lease in time");
                leading.send_replace(false);
                return;
            }
            tokio::select! {
                () = sleep(period) => {}
                _ = shutdown.wait_for(|stop| *stop) => break,
            }
        }
        if leading.send_replace(false)
            && let Err(error) = self.release(&api).await
        {
            warn!(%error, "failed to release the lease; it will expire");
        }
    }

    /// Looks once; true when we hold the lease now.
    async fn attempt(
        &self,
        api: &Api<Lease>,
        observed: &mut Option<Observed>,
    ) -> Result<bool, kube::Error> {
        let params = self.params();
        let result = match api.get_opt(&self.lease).await? {
            None => api.create(&params, &self.claim(Lease::default())).await,
            Some(present) => match self.step(&present, observed) {
                Step::Wait => return Ok(false),
                Step::Take => api.replace(&self.lease, &params, &self.claim(present)).await,
            },
        };
        match result {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn step(&self, lease: &Lease, observed: &mut Option<Observed>) -> Step {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return Step::Take;
        }
        let renewed = spec.renew_time.map(|time| time.0);
        match observed {
            Some(seen) if seen.holder == holder && seen.renewed == renewed => {
                // The holder's own duration counts: it may run with another setting.
                let seconds = spec.lease_duration_seconds.unwrap_or_default().max(1) as u64;
                if seen.since.elapsed() > Duration::from_secs(seconds) {
                    info!(holder, "the holder of the lease is silent, taking it over");
                    return Step::Take;
                }
            }
            _ => *observed = Some(Observed { holder, renewed, since: Instant::now() }),
        }
        Step::Wait
    }

    fn claim(&self, mut lease: Lease) -> Lease {
        let now = MicroTime(Timestamp::now());
        lease.metadata =
            ObjectMeta { name: Some(self.lease.clone()), managed_fields: None, ..lease.metadata };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(self.duration.as_secs() as i32);
        spec.renew_time = Some(now);
        lease
    }

    async fn release(&self, api: &Api<Lease>) -> Result<(), kube::Error> {
        let mut lease = api.get(&self.lease).await?;
        let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            api.replace(&self.lease, &self.params(), &lease).await?;
            info!("released the lease");
        }
        Ok(())
    }

    fn params(&self) -> PostParams {
        PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate() -> Candidate {
        Candidate {
            namespace: "countersign".into(),
            lease: "countersign".into(),
            identity: "me".into(),
            duration: Duration::from_secs(15),
        }
    }

    fn lease(holder: Option<&str>, renewed: i64) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: holder.map(Into::into),
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_holder_loses_it_and_a_renewing_one_does_not() {
        let me = candidate();
        let mut observed = None;
        // The time in the lease is ancient, but that is the other's clock.
        assert_eq!(me.step(&lease(Some("other"), 0), &mut observed), Step::Wait);
        tokio::time::advance(Duration::from_secs(14)).await;
        assert_eq!(me.step(&lease(Some("other"), 1), &mut observed), Step::Wait);
        tokio::time::advance(Duration::from_secs(14)).await;
        assert_eq!(me.step(&lease(Some("other"), 1), &mut observed), Step::Wait);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(me.step(&lease(Some("other"), 1), &mut observed), Step::Take);
    }

    #[tokio::test]
    async fn a_free_lease_and_our_own_are_taken_at_once() {
        for holder in [None, Some(""), Some("me")] {
            assert_eq!(candidate().step(&lease(holder, 0), &mut None), Step::Take);
        }
    }

    #[test]
    fn a_change_of_holder_is_counted() {
        let claimed = candidate().claim(lease(Some("other"), 0)).spec.unwrap();
        assert_eq!(claimed.lease_transitions, Some(1));
        assert_eq!(claimed.holder_identity.as_deref(), Some("me"));
    }
}
