//! Trust bundles and CRLs for workloads that verify clients by themselves.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::allow::LabelSelector;

/// `ClientTrust.spec.bundle`: an object of the trust's namespace with the CA certificates of its authorities in
/// `ca.crt`, and their CRLs. It goes with the trust.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// Its kind. What is in it is no secret; some programs read Secrets alone.
    #[serde(default)]
    pub kind: BundleKind,
    /// Its name. An object of this name that is not the trust's is left alone.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("spec.bundle.name holds lower-case letters, digits, '-' and '.'"))]
    pub name: String,
    /// The key of the CRLs, PEM, one after the other.
    #[serde(default, rename = "crlKey")]
    pub crl_key: CrlKey,
}

/// The kind of a bundle.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum BundleKind {
    /// A ConfigMap.
    #[default]
    ConfigMap,
    /// An Opaque Secret.
    Secret,
}

impl BundleKind {
    /// The kind as the API names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// The key under which CRLs stand in a bundle. One only: they can take most of the 1 MiB that fit.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum CrlKey {
    /// As nginx, HAProxy and Envoy Gateway read it.
    #[default]
    #[serde(rename = "ca.crl")]
    CaCrl,
    /// As Contour and Emissary read it.
    #[serde(rename = "crl.pem")]
    CrlPem,
}

impl CrlKey {
    /// The key.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CaCrl => "ca.crl",
            Self::CrlPem => "crl.pem",
        }
    }
}

/// `ClientAuthority.spec.bundle`: a ConfigMap in each of many namespaces with the authority's CA certificates in
/// `ca.crt`, and their CRLs.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBundle {
    /// Its name in each of them. A ConfigMap of this name that is not the authority's is left alone.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("spec.bundle.name holds lower-case letters, digits, '-' and '.'"))]
    pub name: String,
    /// The key of the CRLs, PEM, one after the other.
    #[serde(default, rename = "crlKey")]
    pub crl_key: CrlKey,
    /// The namespaces, by their labels; `{}` selects all. In one that is no longer selected it is deleted.
    pub namespace_selector: LabelSelector,
}
