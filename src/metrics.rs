//! Prometheus metrics of the controller and the server. Labels are bounded: names of authorities,
//! controllers and enums, and of trusts with a canary; never those of identities.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Label: which authority.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct AuthorityLabel {
    /// Name of the `ClientAuthority`.
    pub authority: String,
}

/// Labels: which CA.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct GenerationLabel {
    /// Name of the `ClientAuthority`.
    pub authority: String,
    /// Number of the generation.
    pub generation: u32,
}

/// Labels of a publication that a guard stopped.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct GuardLabels {
    /// Name of the `ClientAuthority`.
    pub authority: String,
    /// Which guard: `ShrinkGuard`, `FreshnessGuard` or `LedgerDamaged`.
    pub guard: &'static str,
}

/// Labels of an issuance.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct IssuanceLabels {
    /// Name of the `ClientAuthority`.
    pub authority: String,
    /// Why it was issued.
    pub trigger: &'static str,
}

/// Labels of a reconcile.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// Which controller.
    pub controller: &'static str,
    /// `settled` or the category of the error.
    pub outcome: &'static str,
}

/// Label: which controller.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ControllerLabel {
    /// Which controller.
    pub controller: &'static str,
}

/// Labels of the gate's answers.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct GateLabels {
    /// `allowed`, or why not.
    pub decision: &'static str,
}

/// No label: a family of one, which is not there in processes that do not set it.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct NoLabels {}

/// Label of the CRL server's answers.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CrlRequestLabels {
    /// HTTP status.
    pub code: u16,
}

/// Labels: which trust.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TrustLabels {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub trust: String,
}

/// Labels of a canary's result.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CanaryLabels {
    /// The trust's namespace.
    pub namespace: String,
    /// The trust's name.
    pub trust: String,
    /// `Passed`, or what went wrong.
    pub result: &'static str,
}

/// All metrics, each made whether this process uses it or not.
pub struct Metrics {
    registry: Registry,
    /// Certificates issued.
    pub issued: Family<IssuanceLabels, Counter>,
    /// Certificates revoked.
    pub revoked: Family<AuthorityLabel, Counter>,
    /// Reconciles by outcome.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// Seconds per reconcile.
    pub reconcile_seconds: Family<ControllerLabel, Histogram>,
    /// CRLs published.
    pub crl_publications: Family<AuthorityLabel, Counter>,
    /// CRLs that were not published since a guard said no.
    pub crl_guard_trips: Family<GuardLabels, Counter>,
    /// Entries of the published CRL.
    pub crl_entries: Family<GenerationLabel, Gauge<i64, AtomicI64>>,
    /// Bytes of the published CRL.
    pub crl_bytes: Family<GenerationLabel, Gauge<i64, AtomicI64>>,
    /// Bytes that CA certificates and CRLs leave free in the Secret of a `ClientTrust`.
    pub crl_headroom: Family<AuthorityLabel, Gauge<i64, AtomicI64>>,
    /// thisUpdate of the published CRL.
    pub crl_this_update: Family<GenerationLabel, Gauge<i64, AtomicI64>>,
    /// nextUpdate of the published CRL.
    pub crl_next_update: Family<GenerationLabel, Gauge<i64, AtomicI64>>,
    /// End of the CA's validity.
    pub ca_not_after: Family<AuthorityLabel, Gauge<i64, AtomicI64>>,
    /// Is this process the leader?
    pub leader: Gauge<f64, AtomicU64>,
    /// The gate's answers.
    pub gate_decisions: Family<GateLabels, Counter>,
    /// Seconds from the revocation of a canary's certificate until it was refused.
    pub canary_refused_seconds: Family<AuthorityLabel, Histogram>,
    /// When a canary's run last ended with all as it should be.
    pub canary_last_success: Family<TrustLabels, Gauge<i64, AtomicI64>>,
    /// How a canary stands.
    pub canary_result: Family<CanaryLabels, Gauge<i64, AtomicI64>>,
    /// Seconds from a `CertificateRevocation` to the CRL that holds its certificates.
    pub revocation_published_seconds: Histogram,
    /// Seconds from a `CertificateRevocation` until every `ClientTrust` had that CRL in force.
    pub revocation_enforced_seconds: Histogram,
    /// The CRL server's answers.
    pub crl_requests: Family<CrlRequestLabels, Counter>,
    /// thisUpdate of the CRL that this server serves.
    pub crl_served_this_update: Family<AuthorityLabel, Gauge>,
    /// nextUpdate of the CRL that this server serves.
    pub crl_served_next_update: Family<AuthorityLabel, Gauge>,
    /// CRLs that this server knows from its disk alone.
    pub crl_served_from_disk: Family<NoLabels, Gauge>,
    /// When the API server last confirmed that the CRLs of this server are those that are published.
    pub crl_watch: Family<NoLabels, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let long = || Histogram::new(exponential_buckets(0.05, 2.0, 14));
        let mut metrics = Self {
            registry: Registry::with_prefix("countersign"),
            issued: Family::default(),
            revoked: Family::default(),
            reconciles: Family::default(),
            reconcile_seconds: Family::new_with_constructor(seconds),
            crl_publications: Family::default(),
            crl_guard_trips: Family::default(),
            crl_entries: Family::default(),
            crl_bytes: Family::default(),
            crl_headroom: Family::default(),
            crl_this_update: Family::default(),
            crl_next_update: Family::default(),
            ca_not_after: Family::default(),
            leader: Gauge::default(),
            gate_decisions: Family::default(),
            canary_refused_seconds: Family::new_with_constructor(long),
            canary_last_success: Family::default(),
            canary_result: Family::default(),
            revocation_published_seconds: long(),
            revocation_enforced_seconds: long(),
            crl_requests: Family::default(),
            crl_served_this_update: Family::default(),
            crl_served_next_update: Family::default(),
            crl_served_from_disk: Family::default(),
            crl_watch: Family::default(),
        };
        let r = &mut metrics.registry;
        r.register("certificates_issued", "Certificates issued", metrics.issued.clone());
        r.register("certificates_revoked", "Certificates revoked", metrics.revoked.clone());
        r.register("reconciles", "Reconciles by outcome", metrics.reconciles.clone());
        r.register("reconcile_seconds", "Seconds per reconcile", metrics.reconcile_seconds.clone());
        r.register("crl_publications", "CRLs published", metrics.crl_publications.clone());
        r.register(
            "crl_guard_trips",
            "CRLs that were not published since they, or the ledger, might lack a revoked serial",
            metrics.crl_guard_trips.clone(),
        );
        r.register("crl_entries", "Entries of the published CRL", metrics.crl_entries.clone());
        r.register("crl_bytes", "Bytes of the published CRL", metrics.crl_bytes.clone());
        r.register(
            "crl_headroom_bytes",
            "Bytes that CA certificates and CRLs leave free in the Secret of a ClientTrust; negative when they do not fit",
            metrics.crl_headroom.clone(),
        );
        r.register(
            "crl_this_update_timestamp_seconds",
            "thisUpdate of the published CRL",
            metrics.crl_this_update.clone(),
        );
        r.register(
            "crl_next_update_timestamp_seconds",
            "nextUpdate of the published CRL; past it every client is refused",
            metrics.crl_next_update.clone(),
        );
        r.register(
            "ca_not_after_timestamp_seconds",
            "End of the CA's validity",
            metrics.ca_not_after.clone(),
        );
        r.register("leader", "1 when this process is the leader", metrics.leader.clone());
        r.register("gate_decisions", "Answers of the gate", metrics.gate_decisions.clone());
        r.register(
            "canary_refused_seconds",
            "Seconds from the revocation of a canary's certificate until it was refused",
            metrics.canary_refused_seconds.clone(),
        );
        r.register(
            "canary_last_success_timestamp_seconds",
            "End of the last run of a trust's canary in which all was as it should be",
            metrics.canary_last_success.clone(),
        );
        r.register(
            "canary_result",
            "1 for the result of the last run of a trust's canary",
            metrics.canary_result.clone(),
        );
        r.register(
            "revocation_published_seconds",
            "Seconds from a CertificateRevocation to the CRL that holds its certificates",
            metrics.revocation_published_seconds.clone(),
        );
        r.register(
            "revocation_enforced_seconds",
            "Seconds from a CertificateRevocation until every ClientTrust had that CRL in force",
            metrics.revocation_enforced_seconds.clone(),
        );
        r.register("crl_requests", "Answers of the CRL server", metrics.crl_requests.clone());
        r.register(
            "crl_served_this_update_timestamp_seconds",
            "thisUpdate of the CRL that this server serves",
            metrics.crl_served_this_update.clone(),
        );
        r.register(
            "crl_served_next_update_timestamp_seconds",
            "nextUpdate of the CRL that this server serves; past it the gate refuses every client",
            metrics.crl_served_next_update.clone(),
        );
        r.register(
            "crl_served_from_disk",
            "CRLs that this server knows from its disk alone",
            metrics.crl_served_from_disk.clone(),
        );
        r.register(
            "crl_watch_timestamp_seconds",
            "When the API server last confirmed that the CRLs of this server are those that are published, each minute at least; after a start with copies from the disk, thisUpdate of the newest",
            metrics.crl_watch.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// The text that Prometheus scrapes.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String can't fail");
        text
    }
}

/// The label of an authority.
pub fn authority(name: &str) -> AuthorityLabel {
    AuthorityLabel { authority: name.to_owned() }
}

/// The labels of a CA.
pub fn generation(authority: &str, generation: u32) -> GenerationLabel {
    GenerationLabel { authority: authority.to_owned(), generation }
}
