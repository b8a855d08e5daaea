//! Canaries in the metrics.

use crate::api::ClientTrust;
use crate::api::canary::Reason;
use crate::api::condition::CANARY_PASSED;
use crate::cluster::Key;
use crate::controller::context::Context;
use crate::metrics::{CanaryLabels, TrustLabels};
use crate::plan::canary::Report;

/// Shows how the canary of a trust stands: by its report, or by what an earlier process told.
pub(super) fn measure(context: &Context, trust: &ClientTrust, report: Option<&Report>) {
    let key = Key::of(trust);
    let status = trust.status.as_ref();
    let told = status.and_then(|status| {
        let mut conditions = status.conditions.iter();
        conditions.find(|condition| condition.type_ == CANARY_PASSED)
    });
    let result = report.map_or_else(
        || told.map(|told| told.reason.as_str()),
        |report| Some(report.reason.as_str()),
    );
    let success = match report {
        Some(report) if report.reason == Reason::Passed => {
            report.run.as_ref().map(|run| run.ended.as_second())
        }
        _ => status.and_then(|status| {
            Some(status.canary.as_ref()?.last_success_time.as_ref()?.0.as_second())
        }),
    };
    for reason in Reason::ALL {
        let labels = canary_labels(&key, reason);
        if Some(reason.as_str()) == result {
            context.metrics.canary_result.get_or_create(&labels).set(1);
        } else {
            context.metrics.canary_result.remove(&labels);
        }
    }
    if let Some(success) = success {
        context.metrics.canary_last_success.get_or_create(&trust_labels(&key)).set(success);
    }
}

/// A canary that is gone has nothing to show.
pub(super) fn forget(context: &Context, key: &Key) {
    for reason in Reason::ALL {
        context.metrics.canary_result.remove(&canary_labels(key, reason));
    }
    context.metrics.canary_last_success.remove(&trust_labels(key));
}

fn trust_labels(key: &Key) -> TrustLabels {
    TrustLabels { namespace: key.namespace.clone(), trust: key.name.clone() }
}

fn canary_labels(key: &Key, reason: Reason) -> CanaryLabels {
    let TrustLabels { namespace, trust } = trust_labels(key);
    CanaryLabels { namespace, trust, result: reason.as_str() }
}
