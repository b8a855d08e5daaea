//! What a `ClientIdentity` says of the life of its certificates: renewal, revocation, deletion, who is
//! told; and what its status tells of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::duration::Duration;

/// Labels and annotations for the Secret.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretTemplate {
    /// Labels of the Secret, at most 16. One that is removed here is removed there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    #[x_kube(validation = Rule::new("self.all(k, k.size() <= 317 && k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$') && self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))")
        .message("spec.secretTemplate.labels must hold valid label names and values"))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('countersign.dev/') && k != 'app.kubernetes.io/managed-by')")
        .message("spec.secretTemplate.labels: countersign.dev/* and app.kubernetes.io/managed-by are Countersign's own"))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the Secret, at most 16, with values of at most 4096 characters. One that is
    /// removed here is removed there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations_schema")]
    #[x_kube(validation = Rule::new("self.all(k, k.size() <= 317 && k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))")
        .message("spec.secretTemplate.annotations must hold valid annotation names"))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('countersign.dev/') && k != 'app.kubernetes.io/managed-by')")
        .message("spec.secretTemplate.annotations: countersign.dev/* and app.kubernetes.io/managed-by are Countersign's own"))]
    pub annotations: BTreeMap<String, String>,
}

fn labels_schema(_: &mut SchemaGenerator) -> Schema {
    map_schema(63)
}

fn annotations_schema(_: &mut SchemaGenerator) -> Schema {
    map_schema(4096)
}

fn map_schema(longest: u32) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": longest},
    })
}

/// What becomes of the certificates and the Secret when the `ClientIdentity` is deleted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum DeletionPolicy {
    /// The certificates are revoked, the Secret is deleted.
    #[default]
    Revoke,
    /// The certificates stay valid, the Secret stays. They can be revoked by a
    /// `CertificateRevocation` all the same.
    Retain,
}

/// What becomes of a certificate that was replaced by another one.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RevocationPolicy {
    /// Is it revoked before it expires?
    #[serde(default)]
    pub superseded: SupersededPolicy,
    /// How long it stays good after its successor was issued, with `AfterGracePeriod`: what uses it
    /// has this time to take up the new one.
    #[serde(default = "one_hour")]
    pub grace_period: Duration,
}

impl Default for RevocationPolicy {
    fn default() -> Self {
        Self { superseded: SupersededPolicy::default(), grace_period: one_hour() }
    }
}

fn one_hour() -> Duration {
    Duration::from_hours(1)
}

/// Whether superseded certificates are revoked.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum SupersededPolicy {
    /// It stays good until it expires.
    #[default]
    Never,
    /// It is revoked (RFC 5280 reason `superseded`) when the grace period is over.
    AfterGracePeriod,
}

/// A workload that is restarted after its certificate was replaced.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRestartTarget {
    /// What kind of workload.
    pub kind: WorkloadKind,
    /// Its name, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kinds of `apps/v1` that are restarted by a change of their pod template.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A StatefulSet.
    StatefulSet,
    /// A DaemonSet.
    DaemonSet,
}

impl WorkloadKind {
    /// The kind as the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
        }
    }
}

/// One certificate of an identity that has not expired.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRevision {
    /// Number of the issuance.
    pub revision: i64,
    /// Serial number, lower-case hex.
    #[schemars(length(max = 40))]
    pub serial_number: String,
    /// When it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuance_time: Option<Time>,
    /// End of its validity.
    pub not_after: Time,
    /// `Current`: in the Secret. `Superseded`: replaced, but good until it expires. `Revoked`.
    #[schemars(length(max = 32))]
    pub state: String,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation_time: Option<Time>,
    /// Why it was revoked (RFC 5280 section 5.3.1), when a reason was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub revocation_reason: Option<String>,
}

/// The last time that something failed.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// When.
    pub time: Time,
    /// `Refused`: the API server refused the Secret. `SigningFailed`: signing, or the check of what was
    /// signed. `Unavailable`: the API server did not answer well. `Drifted`: another writer changes the
    /// Secret.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What happened.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// How often in a row, for this reason.
    pub failures: i32,
}
