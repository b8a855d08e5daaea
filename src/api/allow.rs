//! `ClientAuthority.spec.allow`: who may use an authority, and what they may ask for.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::duration::Duration;

/// Which identities may have certificates of an authority. What any part refuses is never signed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Allow {
    /// Identities of namespaces with these labels may use the authority; of every namespace when it
    /// is not set. The label `kubernetes.io/metadata.name` selects by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Conditions that every identity must fulfil, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub rules: Vec<AllowRule>,
    /// The longest `spec.duration` that an identity may ask for. At least 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$') && duration(self) >= duration('5m')")
        .message("spec.allow.maxDuration must be at least 5m"))]
    pub max_duration: Option<Duration>,
    /// The kinds of keys that may be certified; all when it is not set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 7))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub key_types: Vec<KeyType>,
    /// The key usages that may be asked for; `client auth` alone when it is not set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub usages: Vec<Usage>,
}

/// A condition, written in CEL.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AllowRule {
    /// A CEL expression that must be true. It sees `identity` (`name`, `labels`, `annotations` and the
    /// fields of the spec; strings that are not set are "", lists are []) and `namespaceObject`
    /// (`metadata.name`, `metadata.labels`, `metadata.annotations`), such as
    /// `identity.commonName.startsWith(namespaceObject.metadata.name + '.')`.
    #[schemars(length(min = 1, max = 1024))]
    pub expression: String,
    /// What the identity's condition says when the expression is not true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub message: Option<String>,
}

/// A selection of objects by their labels, as Kubernetes has it: all that is said must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// A requirement on one label.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0")
    .message("matchExpressions: In and NotIn need values, Exists and DoesNotExist have none"))]
pub struct LabelRequirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label relates to the values.
    pub operator: LabelOperator,
    /// The values of `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a label relates to values.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum LabelOperator {
    /// The label exists with one of the values.
    In,
    /// The label does not exist, or has another value.
    NotIn,
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

/// An algorithm with its size, in cert-manager's words joined by a hyphen.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// ECDSA on P-256.
    #[serde(rename = "ECDSA-256")]
    Ecdsa256,
    /// ECDSA on P-384.
    #[serde(rename = "ECDSA-384")]
    Ecdsa384,
    /// ECDSA on P-521.
    #[serde(rename = "ECDSA-521")]
    Ecdsa521,
    /// Ed25519.
    Ed25519,
    /// RSA, 2048 bits.
    #[serde(rename = "RSA-2048")]
    Rsa2048,
    /// RSA, 3072 bits.
    #[serde(rename = "RSA-3072")]
    Rsa3072,
    /// RSA, 4096 bits.
    #[serde(rename = "RSA-4096")]
    Rsa4096,
}

impl KeyType {
    /// The word of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ecdsa256 => "ECDSA-256",
            Self::Ecdsa384 => "ECDSA-384",
            Self::Ecdsa521 => "ECDSA-521",
            Self::Ed25519 => "Ed25519",
            Self::Rsa2048 => "RSA-2048",
            Self::Rsa3072 => "RSA-3072",
            Self::Rsa4096 => "RSA-4096",
        }
    }
}

/// An extended key usage, in cert-manager's words.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum Usage {
    /// id-kp-clientAuth (RFC 5280 section 4.2.1.12).
    #[serde(rename = "client auth")]
    ClientAuth,
    /// id-kp-serverAuth.
    #[serde(rename = "server auth")]
    ServerAuth,
}

impl Usage {
    /// The word of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientAuth => "client auth",
            Self::ServerAuth => "server auth",
        }
    }
}

fn label_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}
