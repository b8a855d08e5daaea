//! `ClientTrust`: where clients must show their certificate.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AuthorityReference;
use super::bundle::Bundle;
use super::canary::{Canary, CanaryStatus};
use super::gate::{AllowedClients, SecondFactor};

/// Trust in the clients of some authorities, put before some routes.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[kube(
    group = "countersign.dev",
    version = "v1alpha1",
    kind = "ClientTrust",
    plural = "clienttrusts",
    shortname = "ctrust",
    category = "countersign",
    namespaced,
    status = "ClientTrustStatus",
    derive = "PartialEq",
    doc = "A ClientTrust makes ingress routes ask for a client certificate, accept those of its authorities, and refuse revoked ones.",
    validation = Rule::new("size(self.metadata.name) <= 200 && !self.metadata.name.contains('.')")
        .message("metadata.name must be at most 200 characters and hold no dot: the data plane's objects are named after it"),
    validation = Rule::new("(has(self.spec.targetRefs) && size(self.spec.targetRefs) > 0) || has(self.spec.bundle)")
        .message("spec must say where the clients are trusted: set targetRefs, bundle or both"),
    validation = Rule::new("!has(self.spec.bundle) || (!has(self.spec.allow) && !has(self.spec.secondFactor))")
        .message("spec.bundle: whoever reads it takes every client of the authorities, whatever allow and secondFactor say; give the bundle a ClientTrust of its own"),
    validation = Rule::new("!has(self.spec.bundle) || self.spec.bundle.kind != 'Secret' || self.spec.bundle.name != 'countersign-' + self.metadata.name")
        .message("spec.bundle.name: the Secret of this name is the one that the data planes read; choose another"),
    validation = Rule::new("!has(self.spec.canary) || !has(self.spec.secondFactor)")
        .message("spec.canary has no password, and nobody but it would be refused; set canary or secondFactor"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Canary", type_ = "string", json_path = ".status.conditions[?(@.type==\"CanaryPassed\")].reason", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClientTrustSpec {
    /// Clients of these authorities are accepted.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, a.name == b.name))")
        .message("spec.authorities must not name an authority twice"))]
    pub authorities: Vec<AuthorityReference>,
    /// The routes that ask for the certificate, in the same namespace. There can be none with `bundle`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, a.kind == b.kind && a.name == b.name))")
        .message("spec.targetRefs must not name an object twice"))]
    pub target_refs: Vec<TargetReference>,
    /// What happens to a client that shows no certificate.
    #[serde(default)]
    pub mode: Mode,
    /// Which clients of the authorities may pass; when it is not set, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowedClients>,
    /// What a client must have beside its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_factor: Option<SecondFactor>,
    /// By which headers the backend is told who the client is. What a client sends in any of them never reaches
    /// it.
    #[serde(default)]
    pub forward_identity: ForwardIdentity,
    /// Tries on a schedule whether good clients are accepted and revoked ones refused. When it is not set
    /// nothing is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// An object with the CA certificates and the CRLs, for workloads that verify clients by themselves. When it
    /// is not set there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Bundle>,
}

/// What happens to a client that shows no certificate.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It is refused.
    #[default]
    Required,
    /// It is let through; the backend sees that it showed none. A bad certificate is refused all the same.
    Optional,
}

impl Mode {
    /// As it stands in the API and in the questions to the gate.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Required => "Required",
            Self::Optional => "Optional",
        }
    }
}

/// By which headers the backend is told who the client is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum ForwardIdentity {
    /// By those of the data plane: `X-Forwarded-Tls-Client-Cert` and `X-Forwarded-Tls-Client-Cert-Info` of Traefik,
    /// `X-SSL-Client-Cert` and others of HAProxy Ingress, `ssl-client-cert` and others of ingress-nginx.
    #[default]
    Native,
    /// By these, and by `Client-Cert` of RFC 9440, the client's certificate; where the data plane asks the gate.
    ClientCert,
}

/// An object that routes traffic.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.group == 'networking.k8s.io' && self.kind == 'Ingress') || (self.group == 'traefik.io' && self.kind == 'IngressRoute') || (self.group == 'projectcontour.io' && self.kind == 'HTTPProxy') || (self.group == 'k8s.nginx.org' && self.kind == 'VirtualServer') || (self.group == 'networking.istio.io' && self.kind == 'Gateway') || (self.group == 'gateway.networking.k8s.io' && self.kind == 'Gateway')")
        .message("targetRefs must name an Ingress of group networking.k8s.io, an IngressRoute of group traefik.io, an HTTPProxy of group projectcontour.io, a VirtualServer of group k8s.nginx.org or a Gateway of group gateway.networking.k8s.io or networking.istio.io")
)]
pub struct TargetReference {
    /// API group of the object.
    #[schemars(length(min = 1, max = 253))]
    pub group: String,
    /// Its kind.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its name, in the namespace of the `ClientTrust`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What Countersign observed of a trust.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientTrustStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: every target is programmed and refuses revoked certificates. `CanaryPassed`: the canary saw
    /// it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The state of each target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub targets: Vec<TargetStatus>,
    /// What the canary saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
    /// The CRL in force of each CA that is trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub crls: Vec<CrlInForce>,
}

/// The CRL in force of one CA.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CrlInForce {
    /// The authority.
    #[schemars(length(max = 63))]
    pub authority: String,
    /// Number of its CA generation.
    pub generation: i64,
    /// Number of the CRL in the trust's Secret, decimal.
    #[schemars(length(max = 48))]
    pub crl_number: String,
    /// Number of the CRL by which the gate answers, decimal: the lowest one of all servers. Absent when no
    /// target depends on the gate, or the servers can't be observed.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "gateCRLNumber")]
    #[schemars(length(max = 48))]
    pub gate_crl_number: Option<String>,
}

/// The state of one target.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// Which target.
    pub target_ref: TargetReference,
    /// `Accepted`, `Programmed` and `RevocationEnforced`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// Why a `ClientTrust`, or one of its targets, is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Everything is in place.
    Programmed,
    /// Revoked certificates are refused by the data plane, by the CRLs in the trust's Secret.
    ByCRL,
    /// Revoked certificates are refused by the gate, since the data plane has no CRL support.
    ViaGate,
    /// An authority does not exist or has no CRL yet.
    AuthorityNotReady,
    /// The target does not exist.
    TargetNotFound,
    /// No data plane that we know serves the target.
    UnsupportedDataPlane,
    /// Another route of the same host says otherwise, or a field is somebody else's.
    Conflict,
    /// The target leaves the host open, so that the data plane asks nobody for a certificate.
    HostMissing,
    /// The target is served over plain HTTP, too, where nobody can be asked for a certificate.
    PlainHTTP,
    /// The data plane can't tell its backends who the client is in the way that `forwardIdentity` asks for.
    IdentityNotForwarded,
    /// The data plane does not ask the gate, which decides by `allow`; nobody is let in there.
    AllowNotEnforced,
    /// The data plane does not ask the gate, which decides by `secondFactor`; nobody is let in there.
    SecondFactorNotEnforced,
    /// The passwords of `secondFactor`, or what its `url` says, can't be used; nobody is let in.
    SecondFactorInvalid,
    /// The gate's policies don't fit a Secret, and this one is left out: nobody is let in.
    PolicyTooLarge,
    /// An object of the name that we need exists and is not ours.
    NotOwned,
    /// The CRLs of its authorities don't fit a Secret.
    CRLTooLarge,
    /// Nobody refuses revoked certificates, since the data plane has no CRL support and can't ask the gate.
    DataPlaneLacksCRL,
    /// The target is not programmed, so nothing is enforced there.
    NotProgrammed,
}

impl Reason {
    /// The reason as conditions carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Programmed => "Programmed",
            Self::ByCRL => "ByCRL",
            Self::ViaGate => "ViaGate",
            Self::AuthorityNotReady => "AuthorityNotReady",
            Self::TargetNotFound => "TargetNotFound",
            Self::UnsupportedDataPlane => "UnsupportedDataPlane",
            Self::Conflict => "Conflict",
            Self::HostMissing => "HostMissing",
            Self::PlainHTTP => "PlainHTTP",
            Self::IdentityNotForwarded => "IdentityNotForwarded",
            Self::AllowNotEnforced => "AllowNotEnforced",
            Self::SecondFactorNotEnforced => "SecondFactorNotEnforced",
            Self::SecondFactorInvalid => "SecondFactorInvalid",
            Self::PolicyTooLarge => "PolicyTooLarge",
            Self::NotOwned => "NotOwned",
            Self::CRLTooLarge => "CRLTooLarge",
            Self::DataPlaneLacksCRL => "DataPlaneLacksCRL",
            Self::NotProgrammed => "NotProgrammed",
        }
    }
}
