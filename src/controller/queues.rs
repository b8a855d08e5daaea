//! The queues of all controllers.

use std::time::Duration;

use tokio::sync::mpsc;

use super::queue::Queue;
use crate::cluster::Key;

/// The queues, one for each controller.
#[derive(Clone)]
pub struct Queues {
    /// Authorities.
    pub authority: Queue,
    /// Identities.
    pub identity: Queue,
    /// Revocations, to be recorded.
    pub revocation: Queue,
    /// Revocations, to be told of in their status.
    pub revocation_status: Queue,
    /// Trusts.
    pub trust: Queue,
    /// Bundles of authorities: the namespace, and the name of the authority.
    pub bundle: Queue,
    /// Canaries, by the trust that they try.
    pub canary: Queue,
}

/// The incoming end of each queue.
pub(super) struct Incoming {
    pub authority: mpsc::UnboundedReceiver<(Key, Duration)>,
    pub identity: mpsc::UnboundedReceiver<(Key, Duration)>,
    pub revocation: mpsc::UnboundedReceiver<(Key, Duration)>,
    pub revocation_status: mpsc::UnboundedReceiver<(Key, Duration)>,
    pub trust: mpsc::UnboundedReceiver<(Key, Duration)>,
    pub bundle: mpsc::UnboundedReceiver<(Key, Duration)>,
    pub canary: mpsc::UnboundedReceiver<(Key, Duration)>,
}

impl Incoming {
    /// Forgets what was asked for.
    pub fn drain(&mut self) {
        for queue in [
            &mut self.authority,
            &mut self.identity,
            &mut self.revocation,
            &mut self.revocation_status,
            &mut self.trust,
            &mut self.bundle,
            &mut self.canary,
        ] {
            while queue.try_recv().is_ok() {}
        }
    }
}

/// All queues, and what is asked for through them.
pub(super) fn queues() -> (Queues, Incoming) {
    let (authority, authority_in) = Queue::new();
    let (identity, identity_in) = Queue::new();
    let (revocation, revocation_in) = Queue::new();
    let (revocation_status, revocation_status_in) = Queue::new();
    let (trust, trust_in) = Queue::new();
    let (bundle, bundle_in) = Queue::new();
    let (canary, canary_in) = Queue::new();
    (
        Queues { authority, identity, revocation, revocation_status, trust, bundle, canary },
        Incoming {
            authority: authority_in,
            identity: identity_in,
            revocation: revocation_in,
            revocation_status: revocation_status_in,
            trust: trust_in,
            bundle: bundle_in,
            canary: canary_in,
        },
    )
}
