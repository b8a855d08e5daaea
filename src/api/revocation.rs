//! `CertificateRevocation`: which certificate must die, and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalReference;

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
    doc = "A CertificateRevocation revokes certificates of its own namespace: all of one ClientIdentity, or one by its serial number.",
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
    validation = Rule::new("has(self.identityRef) != has(self.serialNumber)")
        .message("spec must set exactly one of identityRef and serialNumber"),
    validation = Rule::new("self == oldSelf")
        .message("spec can't be changed: a revocation can't be taken back; create another CertificateRevocation")
)]
pub struct CertificateRevocationSpec {
    /// Revoke every unexpired certificate of this `ClientIdentity`, and issue no other one while this
    /// `CertificateRevocation` exists. The identity may be gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_ref: Option<LocalReference>,
    /// Revoke the certificate of this serial number (hex, as in the identity's status; colons are
    /// ignored). Its identity, if it still uses it, receives another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 59))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2})*$')")
        .message("spec.serialNumber must be hex, such as 3f:a1:... or 3fa1..."))]
    pub serial_number: Option<String>,
    /// Why, as RFC 5280 section 5.3.1 names it. Without it the CRL entry carries no reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RevocationReason>,
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
    /// `Recorded`: the serials stand in the ledger. `Published`: they stand in a published CRL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// UID of the `ClientIdentity` that was revoked: a later one of the same name is not.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "identityUID")]
    #[schemars(length(max = 64))]
    pub identity_uid: Option<String>,
    /// The revoked certificates; the newest 100 when there are more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub certificates: Vec<RevokedCertificate>,
    /// Number of the first CRL that holds all of them, decimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 48))]
    pub crl_number: Option<String>,
    /// thisUpdate of that CRL is not this; this is when it was seen published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_time: Option<Time>,
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
