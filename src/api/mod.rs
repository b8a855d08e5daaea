//! The four kinds of `countersign.dev/v1alpha1` and what they share: conditions, durations, names of
//! labels and annotations. Nothing here does I/O.

pub mod allow;
pub mod authority;
pub mod bundle;
pub mod canary;
pub mod condition;
pub mod duration;
pub mod fields;
pub mod gate;
pub mod identity;
pub mod lifecycle;
pub mod material;
pub mod revocation;
pub mod trust;

pub use authority::{ClientAuthority, ClientAuthoritySpec, ClientAuthorityStatus};
pub use identity::{ClientIdentity, ClientIdentitySpec, ClientIdentityStatus};
pub use revocation::{
    CertificateRevocation, CertificateRevocationSpec, CertificateRevocationStatus,
};
pub use trust::{ClientTrust, ClientTrustSpec, ClientTrustStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The API group of every kind.
pub const GROUP: &str = "countersign.dev";
/// The served version.
pub const VERSION: &str = "v1alpha1";

/// Labels that Countersign writes on what it owns; watches select by them.
pub mod label {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    /// The standard label that says who manages an object.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Its value on everything that Countersign owns.
    pub const MANAGED_BY_VALUE: &str = "countersign";
    /// What an object holds: in the operator's namespace `ca`, `crl`, `crl-part` or `ledger`, elsewhere `bundle`.
    pub const COMPONENT: &str = "countersign.dev/component";
    /// The `ClientAuthority` that an object belongs to.
    pub const AUTHORITY: &str = "countersign.dev/authority";
    /// The number of the authority's CA generation.
    pub const GENERATION: &str = "countersign.dev/generation";
    /// On a `CertificateRevocation` that the command line made: which request it belongs to.
    pub const REQUEST: &str = "countersign.dev/request";

    /// Selects everything that Countersign owns.
    pub const SELECTOR: &str = "app.kubernetes.io/managed-by=countersign";

    /// Does an object carry the mark of what Countersign manages?
    pub fn is_ours(object: &ObjectMeta) -> bool {
        let mark = object.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
        mark.is_some_and(|value| value == MANAGED_BY_VALUE)
    }
}

/// Annotations that carry facts, so that watching metadata is enough.
pub mod annotation {
    /// The `ClientIdentity` that a Secret belongs to.
    pub const IDENTITY: &str = "countersign.dev/client-identity";
    /// Serial number of the leaf, lower-case hex.
    pub const SERIAL: &str = "countersign.dev/serial-number";
    /// notAfter of the leaf, RFC 3339.
    pub const NOT_AFTER: &str = "countersign.dev/not-after";
    /// notBefore of the leaf, RFC 3339.
    pub const NOT_BEFORE: &str = "countersign.dev/not-before";
    /// SHA-256 of the leaf, lower-case hex.
    pub const FINGERPRINT: &str = "countersign.dev/fingerprint-sha256";
    /// Number of the issuance, from 1.
    pub const REVISION: &str = "countersign.dev/revision";
    /// Hash of what the certificate was made from: spec and CA.
    pub const SPEC_HASH: &str = "countersign.dev/spec-hash";
    /// On a `ClientIdentity`: a new certificate is wanted if the present one is older than this time,
    /// RFC 3339.
    pub const RENEW_REQUESTED_AT: &str = "countersign.dev/renew-requested-at";
    /// UID of the `ClientIdentity` that a Secret without owner reference belongs to.
    pub const IDENTITY_UID: &str = "countersign.dev/client-identity-uid";
    /// The labels and annotations of a Secret that `spec.secretTemplate` has set, as JSON.
    pub const SECRET_TEMPLATE: &str = "countersign.dev/secret-template";
    /// On the pod template of a workload: when it was restarted for that, RFC 3339.
    pub const RESTARTED_AT: &str = "countersign.dev/restarted-at";
    /// On the pod template of a workload: the serial number of the certificate that it was restarted
    /// for.
    pub const RESTARTED_FOR: &str = "countersign.dev/restarted-for-serial";
    /// Hash of what else the Secret's data is made from: forms of the key, key stores.
    pub const DATA_HASH: &str = "countersign.dev/data-hash";
    /// The keys of the Secret that were asked for beside the usual ones, comma-separated.
    pub const ADDITIONAL_KEYS: &str = "countersign.dev/additional-keys";
    /// The `ClientTrust` that wrote on an object of the user.
    pub const TRUST: &str = "countersign.dev/client-trust";
    /// Number of the authority's CA generation that signed the leaf.
    pub const GENERATION: &str = "countersign.dev/generation";
    /// SHA-256 of the trust bundle in an identity's Secret, lower-case hex.
    pub const BUNDLE: &str = "countersign.dev/bundle-sha256";
    /// Prefix of annotations on a trust's Secret: the rest is the name of an authority, the value a
    /// SHA-256 over what of this authority stands in the Secret: its bundle, and whose CRLs.
    pub const TRUSTED_BUNDLE_PREFIX: &str = "bundle.countersign.dev/";
    /// State of a CA, on the Secret that keeps it.
    pub const STATE: &str = "countersign.dev/state";
    /// Since when the CA is in its state, RFC 3339.
    pub const STATE_SINCE: &str = "countersign.dev/state-since";
    /// Hash of what a CA was made from.
    pub const SOURCE_HASH: &str = "countersign.dev/source-hash";
    /// On a `ClientAuthority`, by its user: another CA shall take over; the time, RFC 3339. Each value
    /// counts once.
    pub const ROTATE_REQUESTED_AT: &str = "countersign.dev/rotate-requested-at";
    /// The CRL number of a published CRL.
    pub const CRL_NUMBER: &str = "countersign.dev/crl-number";
    /// Which certificates a published CRL speaks of, such as `shard-3-of-8`, or `delta`. The complete CRL has
    /// none.
    pub const CRL_SCOPE: &str = "countersign.dev/crl-scope";
    /// On a published CRL: the position of the ledger's next record when it was made.
    pub const LEDGER_POSITION: &str = "countersign.dev/ledger-position";
    /// On a segment of the ledger: the position of the first record that it covers.
    pub const LEDGER_FIRST: &str = "countersign.dev/ledger-first";
    /// On a segment of the ledger: the position after the last record that it covers.
    pub const LEDGER_NEXT: &str = "countersign.dev/ledger-next";
    /// On a segment of the ledger: SHA-256 of its content, lower-case hex.
    pub const LEDGER_SHA256: &str = "countersign.dev/ledger-sha256";
    /// On a segment of the ledger that holds fewer records than it covers: `Compacted` or `Recovered`.
    pub const LEDGER_STATE: &str = "countersign.dev/ledger-state";
}

/// A reference to a `ClientAuthority` by name.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityReference {
    /// Name of a `ClientAuthority` (cluster-scoped).
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of a ClientAuthority holds lower-case letters, digits and '-'"))]
    pub name: String,
}

/// A reference to an object in the same namespace by name.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// Name of an object in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The definitions of all kinds, as `countersign crds` prints them, with the name of their file.
pub fn crds() -> Vec<(String, CustomResourceDefinition)> {
    [
        ClientAuthority::crd(),
        ClientIdentity::crd(),
        ClientTrust::crd(),
        CertificateRevocation::crd(),
    ]
    .into_iter()
    .map(|crd| (format!("{GROUP}_{}.yaml", crd.spec.names.plural), crd))
    .collect()
}
