//! `CertificateRevocation`: which certificate must die, and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalReference;
use super::duration::Duration;

/// A request to revoke certificates; it can't be taken back.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[kube(
    group = "countersign.dev",
    version = "v1alpha1",
    kind = "CertificateRevocation",
    plural = "certificaterevocations",
    shortname = "crev",
    category = "countersign",
    namespaced,
    status = "CertificateRevocationStatus",
    derive = "PartialEq",
    doc = "A CertificateRevocation revokes certificates of its own namespace: those of one ClientIdentity, or one by its serial number or fingerprint. In the operator's namespace, serial number and fingerprint reach every namespace.",
    printcolumn(
        name = "Recorded",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Recorded\")].status"
    ),
    printcolumn(
        name = "Published",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Published\")].status"
    ),
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].status"
    ),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Identity", type_ = "string", json_path = ".spec.identityRef.name"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Recorded\")].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.identityRef) ? 1 : 0) + (has(self.serialNumber) ? 1 : 0) + (has(self.fingerprint) ? 1 : 0) == 1")
        .message("spec must set exactly one of identityRef, serialNumber and fingerprint"),
    validation = Rule::new("has(self.identityRef) || !(has(self.certificates) || has(self.issuedBefore))")
        .message("spec.certificates and spec.issuedBefore choose among the certificates of spec.identityRef: set it too"),
    validation = Rule::new("!has(self.renew) || !self.renew || !has(self.certificates) || self.certificates != 'Superseded'")
        .message("spec.renew: certificates that were superseded have their successor; leave spec.renew out, or choose All or Current"),
    validation = Rule::new("!has(self.renewTimeout) || (has(self.renew) && self.renew)")
        .message("spec.renewTimeout counts only with spec.renew: set that too"),
    validation = Rule::new("self == oldSelf")
        .message("spec can't be changed: a revocation can't be taken back; create another CertificateRevocation")
)]
pub struct CertificateRevocationSpec {
    /// Revoke certificates of this `ClientIdentity`: all of them unless `certificates` or `issuedBefore`
    /// choose. All of them, without `renew`, also means that no other one is issued while this
    /// `CertificateRevocation` exists. The identity may be gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_ref: Option<LocalReference>,
    /// Which of the identity's certificates: `All`, `Current` or `Superseded`; all when not set. What counts
    /// is how it was when the request was first seen: a certificate that is issued later is not concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<Certificates>,
    /// Only certificates of the identity that were issued before this time. One of which the ledger does not
    /// know when it was issued, since an early version recorded it, counts as issued before any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_before: Option<Time>,
    /// Revoke the certificate of this serial number (hex, as in the identity's status; colons are
    /// ignored). Its identity, if it still uses it, receives another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 59))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2})*$')")
        .message("spec.serialNumber must be hex, such as 3f:a1:... or 3fa1..."))]
    pub serial_number: Option<String>,
    /// Revoke the certificate with this SHA-256 fingerprint (hex; colons are ignored). Its identity, if it
    /// still uses it, receives another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 95))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}$')")
        .message("spec.fingerprint must be a SHA-256 fingerprint in hex: 32 octets, such as 3f:a1:... or 3fa1..."))]
    pub fingerprint: Option<String>,
    /// Have a new certificate issued first, and revoke the old ones as soon as it stands in the identity's
    /// Secret. What still can't be renewed after `renewTimeout` is revoked all the same. Deleting this
    /// object before that withdraws it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub renew: bool,
    /// How long a new certificate is waited for, counted from the creation of this object: 10s to 24h; 10m
    /// when not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$') && duration(self) >= duration('10s') && duration(self) <= duration('24h')")
        .message("spec.renewTimeout must be 10s to 24h"))]
    pub renew_timeout: Option<Duration>,
    /// Why, as RFC 5280 section 5.3.1 names it. Without it the CRL entry carries no reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RevocationReason>,
}

/// Which certificates of an identity.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum Certificates {
    /// Every one that has not expired.
    #[default]
    All,
    /// The one in its Secret.
    Current,
    /// Every one that was replaced by another.
    Superseded,
}

/// Reasons of RFC 5280 section 5.3.1 that a CRL for clients may carry.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum RevocationReason {
    /// The private key may be known to somebody else.
    KeyCompromise,
    /// The subject's name or affiliation changed.
    AffiliationChanged,
    /// The certificate was replaced.
    Superseded,
    /// The certificate is no longer needed.
    CessationOfOperation,
    /// A privilege that the certificate contains was withdrawn.
    PrivilegeWithdrawn,
}

impl RevocationReason {
    /// The CRLReason code of RFC 5280 section 5.3.1.
    pub const fn code(self) -> u8 {
        match self {
            Self::KeyCompromise => 1,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::PrivilegeWithdrawn => 9,
        }
    }
}

impl RevocationReason {
    /// The reason of a CRLReason code.
    pub fn from_code(code: u8) -> Option<Self> {
        let all = [
            Self::KeyCompromise,
            Self::AffiliationChanged,
            Self::Superseded,
            Self::CessationOfOperation,
            Self::PrivilegeWithdrawn,
        ];
        all.into_iter().find(|reason| reason.code() == code)
    }
}

/// What Countersign observed of a revocation.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRevocationStatus {
    /// `Recorded`: the serials stand in the ledger. `Published`: they stand in a published CRL. `Enforced`:
    /// every `ClientTrust` of their authorities has that CRL, or a later one, in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// UID of the `ClientIdentity` that was revoked: a later one of the same name is not.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "identityUID")]
    #[schemars(length(max = 64))]
    pub identity_uid: Option<String>,
    /// The revisions of the identity that are concerned, fixed when the request was first seen. Absent when
    /// that does not depend on the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisions: Option<RevisionRange>,
    /// The revoked certificates; the newest 100 when there are more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub certificates: Vec<RevokedCertificate>,
    /// When they stood in the ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_time: Option<Time>,
    /// Number of the first CRL that holds all of them, decimal; the highest one when several CAs signed
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 48))]
    pub crl_number: Option<String>,
    /// thisUpdate of that CRL is not this; this is when it was seen published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_time: Option<Time>,
    /// For each CA that signed some of them, the first CRL that was seen to hold these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub crls: Vec<CrlReference>,
    /// The `ClientTrust`s of their authorities that have these CRLs, or later ones, in force; 100 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub trusts: Vec<EnforcedTrust>,
    /// When the last one of them had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced_time: Option<Time>,
}

/// Revisions of an identity, from the first to the last.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RevisionRange {
    /// The first one.
    pub first: i64,
    /// The last one.
    pub last: i64,
}

/// One certificate that a revocation revoked.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RevokedCertificate {
    /// The authority that signed it.
    #[schemars(length(max = 63))]
    pub authority: String,
    /// Serial number, lower-case hex.
    #[schemars(length(max = 40))]
    pub serial_number: String,
    /// revocationDate of its CRL entry.
    pub revocation_time: Time,
}

/// One CRL of one CA.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CrlReference {
    /// The authority.
    #[schemars(length(max = 63))]
    pub authority: String,
    /// Number of its CA generation.
    pub generation: i64,
    /// The CRL number, decimal.
    #[schemars(length(max = 48))]
    pub crl_number: String,
}

/// A `ClientTrust` that refuses the revoked certificates.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EnforcedTrust {
    /// Its namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The CRL number in force there, decimal; the lowest one when several CAs are concerned.
    #[schemars(length(max = 48))]
    pub crl_number: String,
    /// When that was seen.
    pub time: Time,
}
