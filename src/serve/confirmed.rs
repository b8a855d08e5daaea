//! When this server last knew that the CRLs it holds are those that the cluster publishes.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

use super::view::View;
use crate::metrics::{Metrics, NoLabels};

/// The time of the last confirmation, which the metrics tell too. It is confirmed by each word of the watch, one a
/// minute at least, once no part of a CRL is missing.
#[derive(Debug, Default)]
pub struct Confirmed(AtomicI64);

impl Confirmed {
    /// What copies from the disk prove: their newest CRL was published no earlier than it says. Nobody looked
    /// at the cluster since, or nobody wrote down that he did.
    pub fn by_copies(&self, copies: &View, metrics: &Metrics) {
        if let Some(newest) = copies.all().map(|one| one.this_update).max() {
            self.confirm(newest, metrics);
        }
    }

    /// It was so at this time.
    pub fn confirm(&self, at: Timestamp, metrics: &Metrics) {
        self.0.store(at.as_second(), Ordering::Relaxed);
        metrics.crl_watch.get_or_create(&NoLabels {}).set(at.as_second());
    }

    /// When the CRLs become stale, if they may go unconfirmed for so long.
    pub fn stale_at(&self, max_staleness: SignedDuration) -> Timestamp {
        let at = Timestamp::from_second(self.0.load(Ordering::Relaxed)).unwrap_or_default();
        at.saturating_add(max_staleness).unwrap_or(Timestamp::MAX)
    }
}
