//! `ClientAuthority`: who vouches for clients.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::duration::Duration;

/// A certificate authority that signs client certificates and publishes their CRL.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[kube(
    group = "countersign.dev",
    version = "v1alpha1",
    kind = "ClientAuthority",
    plural = "clientauthorities",
    shortname = "cauth",
    category = "countersign",
    status = "ClientAuthorityStatus",
    derive = "PartialEq",
    doc = "A ClientAuthority vouches for clients: it signs their certificates and publishes the CRL that revokes them.",
    validation = Rule::new("size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')")
        .message("metadata.name must be at most 63 characters and hold no dot: it stands in labels and in the CRL's URL"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Live", type_ = "integer", json_path = ".status.certificates.live"),
    printcolumn(name = "Revoked", type_ = "integer", json_path = ".status.certificates.revoked"),
    printcolumn(name = "CRL expires", type_ = "string", json_path = ".status.crl.nextUpdate"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClientAuthoritySpec {
    /// A CA that Countersign makes: key pair and self-signed certificate, kept in a Secret of the
    /// operator's namespace.
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("spec.selfSigned can't be changed: the CA certificate already carries it; create another ClientAuthority"))]
    pub self_signed: SelfSigned,
    /// How the certificate revocation list is made and where clients' verifiers find it.
    #[serde(default)]
    pub crl: CrlSpec,
}

/// What a CA certificate made by Countersign says.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SelfSigned {
    /// Common name of the CA. RFC 5280 bounds it to 64 characters.
    #[schemars(length(min = 1, max = 64))]
    pub common_name: String,
    /// Organization of the CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub organization: Option<String>,
    /// Lifetime of the CA certificate; no certificate of a client outlives it. At least 1h.
    #[serde(default = "ten_years")]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$') && duration(self) >= duration('1h')")
        .message("spec.selfSigned.duration must be at least 1h"))]
    pub duration: Duration,
}

/// How the CRL is made.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.validity) || !has(self.refresh) || duration(self.refresh) + duration(self.refresh) <= duration(self.validity)")
    .message("spec.crl.refresh must be at most half of spec.crl.validity: an expired CRL shuts out every client"))]
pub struct CrlSpec {
    /// nextUpdate lies this long after thisUpdate. At least 1m.
    #[serde(default = "seven_days")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m')")
        .message("spec.crl.validity must be at least 1m"))]
    pub validity: Duration,
    /// A CRL is signed anew after this long, also when nothing was revoked. At least 10s.
    #[serde(default = "six_hours")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s')")
        .message("spec.crl.refresh must be at least 10s"))]
    pub refresh: Duration,
    /// Base URL of the CRL server as verifiers reach it, such as `http://crl.example.com`. When it is
    /// set, each certificate carries a CRL distribution point
    /// `<base>/crl/<authority>/<generation>.crl` (RFC 5280 section 4.2.1.13). Plain HTTP, as RFC 5280
    /// section 8 advises: a CRL is signed, and TLS to its server would need a CRL in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 200))]
    #[x_kube(validation = Rule::new("self.startsWith('http://') && !self.endsWith('/') && isURL(self)")
        .message("spec.crl.distributionPointBaseURL must be an http:// URL without a trailing slash"))]
    #[serde(rename = "distributionPointBaseURL")]
    pub distribution_point_base_url: Option<String>,
}

impl Default for CrlSpec {
    fn default() -> Self {
        Self { validity: seven_days(), refresh: six_hours(), distribution_point_base_url: None }
    }
}

fn ten_years() -> Duration {
    Duration::from_hours(87_600)
}

fn seven_days() -> Duration {
    Duration::from_hours(168)
}

fn six_hours() -> Duration {
    Duration::from_hours(6)
}

/// What Countersign observed of an authority.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientAuthorityStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the CA can sign and its CRL is published and fresh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The CA certificates of this authority, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub generations: Vec<CaGeneration>,
    /// The published CRL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<CrlStatus>,
    /// How many certificates were signed and have not expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificateCounts>,
}

/// One CA certificate.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CaGeneration {
    /// Counts from 1; stands in the URL of the CRL.
    pub number: i64,
    /// `Active`: it signs certificates and its CRL.
    #[schemars(length(max = 32))]
    pub state: String,
    /// SHA-256 of the certificate, lower-case hex.
    #[schemars(length(max = 64))]
    #[serde(rename = "fingerprintSHA256")]
    pub fingerprint: String,
    /// Start of its validity.
    pub not_before: Time,
    /// End of its validity.
    pub not_after: Time,
}

/// Facts of a published CRL.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CrlStatus {
    /// The CRL number (RFC 5280 section 5.2.3), decimal; a string, since it exceeds 2^53.
    #[schemars(length(max = 48))]
    pub number: String,
    /// When it was made.
    pub this_update: Time,
    /// When it expires: from then on verifiers refuse every client of this authority.
    pub next_update: Time,
    /// Number of revoked certificates on it.
    pub entries: i64,
    /// Size in bytes, DER.
    pub bytes: i64,
}

/// Counts of unexpired certificates.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateCounts {
    /// Signed, not expired, not revoked.
    pub live: i64,
    /// Revoked and not expired.
    pub revoked: i64,
}
