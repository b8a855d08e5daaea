//! `ClientIdentity`: who a client is, and the Secret that proves it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::AuthorityReference;
use super::allow::Usage;
use super::duration::Duration;
use super::lifecycle::{
    CertificateRevision, DeletionPolicy, LastFailure, RevocationPolicy, RolloutRestartTarget,
    SecretTemplate,
};
use super::material::{AdditionalOutputFormat, Keystores, PrivateKeySpec};

/// A client that proves who it is by a certificate.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq)]
#[kube(
    group = "countersign.dev",
    version = "v1alpha1",
    kind = "ClientIdentity",
    plural = "clientidentities",
    shortname = "cid",
    category = "countersign",
    namespaced,
    status = "ClientIdentityStatus",
    derive = "PartialEq",
    doc = "A ClientIdentity says who a client is. Countersign keeps a valid certificate for it in a Secret and revokes it when the ClientIdentity is deleted.",
    selectable = ".spec.authorityRef.name",
    selectable = ".spec.secretName",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Secret", type_ = "string", json_path = ".spec.secretName"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.notAfter"),
    printcolumn(name = "Renews", type_ = "string", json_path = ".status.renewalTime"),
    printcolumn(
        name = "Authority",
        type_ = "string",
        json_path = ".spec.authorityRef.name",
        priority = 1
    ),
    printcolumn(
        name = "Serial",
        type_ = "string",
        json_path = ".status.serialNumber",
        priority = 1
    ),
    printcolumn(
        name = "Revision",
        type_ = "integer",
        json_path = ".status.revision",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.commonName) || (has(self.dnsNames) && size(self.dnsNames) > 0) || (has(self.emailAddresses) && size(self.emailAddresses) > 0) || (has(self.uris) && size(self.uris) > 0) || (has(self.ipAddresses) && size(self.ipAddresses) > 0) || (has(self.userPrincipalNames) && size(self.userPrincipalNames) > 0)")
        .message("spec must name the client: set commonName, dnsNames, emailAddresses, uris, ipAddresses or userPrincipalNames"),
    validation = Rule::new("!has(self.request) || !(has(self.privateKey) || has(self.keystores) || has(self.additionalOutputFormats))")
        .message("spec.request leaves the key with the client: privateKey, keystores and additionalOutputFormats can't be set beside it"),
    validation = Rule::new("!has(self.renewBefore) || duration(self.renewBefore) + duration('10s') <= duration(self.duration)")
        .message("spec.renewBefore must be at least 10s shorter than spec.duration"),
    validation = Rule::new("!has(self.renewBefore) || !has(self.renewBeforePercentage)")
        .message("spec.renewBefore and spec.renewBeforePercentage exclude each other: set one of them")
)]
pub struct ClientIdentitySpec {
    /// The authority that signs.
    pub authority_ref: AuthorityReference,
    /// Common name of the subject. RFC 5280 bounds it to 64 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub common_name: Option<String>,
    /// Further attributes of the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// DNS subject alternative names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(n, n.matches('^([*][.])?([A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?)([.][A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?)*$'))")
        .message("spec.dnsNames must hold DNS names such as laptop-7.example.com"))]
    pub dns_names: Vec<String>,
    /// E-mail subject alternative names (RFC 5280 rfc822Name: ASCII).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 3, max = 254)))]
    #[x_kube(validation = Rule::new("self.all(e, e.matches('^[!-?A-~]+@[-A-Za-z0-9.]+$'))")
        .message("spec.emailAddresses must hold ASCII addresses such as ada@example.com"))]
    pub email_addresses: Vec<String>,
    /// URI subject alternative names, such as `spiffe://example.com/laptop-7`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 3, max = 2048)))]
    #[x_kube(
        validation = Rule::new("self.all(u, u.matches('^[A-Za-z][A-Za-z0-9+.-]*:[!-~]+$') && isURL(u))")
            .message("spec.uris must hold absolute ASCII URIs such as spiffe://example.com/laptop-7"),
        validation = Rule::new("self.all(u, !u.matches('^[Ss][Pp][Ii][Ff][Ff][Ee]:') || (size(self) == 1 && u.matches('^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*$') && !u.matches('/[.][.]?(/|$)')))")
            .message("spec.uris: a SPIFFE ID has the form spiffe://trust-domain/path, lower-case up to the path, and is the only URI of its certificate")
    )]
    pub uris: Vec<String>,
    /// IP address subject alternative names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 2, max = 45)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))")
        .message("spec.ipAddresses must hold IPv4 or IPv6 addresses"))]
    pub ip_addresses: Vec<String>,
    /// User principal names, such as `ada@example.com`, as Active Directory has them (otherName
    /// 1.3.6.1.4.1.311.20.2.3).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 3, max = 256)))]
    #[x_kube(validation = Rule::new("self.all(n, n.matches('^[^@[:cntrl:] ]+@[^@[:cntrl:] ]+$'))")
        .message("spec.userPrincipalNames must hold names such as ada@example.com"))]
    pub user_principal_names: Vec<String>,
    /// What the certificate may be used for. `server auth` is signed only when the authority allows it.
    #[serde(default = "client_auth")]
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("'client auth' in self").message("spec.usages must hold \"client auth\"")
    )]
    pub usages: Vec<Usage>,
    /// The key that is made for the client. ECDSA on P-256, replaced with each certificate, when not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key: Option<PrivateKeySpec>,
    /// A certificate signing request (PKCS #10, PEM) of a client that keeps its key. Its key is certified
    /// and nothing else is taken from it: names and usages are those of this spec. The Secret then holds no
    /// `tls.key` and is of type `Opaque`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub request: Option<String>,
    /// Key stores beside the PEM files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keystores: Option<Keystores>,
    /// Further forms in which the Secret holds key and certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub additional_output_formats: Vec<AdditionalOutputFormat>,
    /// Lifetime of each certificate. At least 5m; cut to the lifetime of the CA.
    #[serde(default = "ninety_days")]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$') && duration(self) >= duration('5m')")
        .message("spec.duration must be at least 5m"))]
    pub duration: Duration,
    /// The certificate is replaced this long before it expires, or up to a tenth of the remaining
    /// time earlier, so that many do not renew at once. A third of the lifetime when not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s')")
        .message("spec.renewBefore must be at least 10s"))]
    pub renew_before: Option<Duration>,
    /// The same as a percentage of the lifetime: with 25 a certificate of 60m is replaced 15m before it
    /// expires. Excludes `renewBefore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 99))]
    pub renew_before_percentage: Option<i32>,
    /// Name of the Secret, in the same namespace, that receives `tls.crt`, `tls.key` and `ca.crt`, and
    /// what else is asked for here.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("spec.secretName must be a valid Secret name: lower-case letters, digits, '-' and '.'"))]
    pub secret_name: String,
    /// Labels and annotations that the Secret carries beside Countersign's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_template: Option<SecretTemplate>,
    /// What becomes of the certificates and the Secret when this object is deleted. A change counts
    /// once `status.observedGeneration` has followed it.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// What becomes of a certificate that was replaced by another one.
    #[serde(default)]
    pub revocation_policy: RevocationPolicy,
    /// Workloads that are restarted, as `kubectl rollout restart` does it, after the certificate was
    /// replaced: once for each certificate, never for the first one, and not when the workload is
    /// younger than the certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["kind".into(), "name".into()]))]
    #[schemars(length(max = 8))]
    pub rollout_restart_targets: Vec<RolloutRestartTarget>,
}

/// Attributes of the subject beside the common name.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// Countries (C), two letters each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 2, max = 2)))]
    #[x_kube(validation = Rule::new("self.all(c, c.matches('^[A-Z]{2}$'))")
        .message("spec.subject.countries must hold codes of ISO 3166 such as DE"))]
    pub countries: Vec<String>,
    /// States or provinces (ST).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 128)))]
    pub provinces: Vec<String>,
    /// Localities (L).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 128)))]
    pub localities: Vec<String>,
    /// Organizations (O).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 64)))]
    pub organizations: Vec<String>,
    /// Organizational units (OU).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 64)))]
    pub organizational_units: Vec<String>,
    /// Serial number of the device or person (serialNumber), not of the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[-A-Za-z0-9 ()+,./:=?\\']+$')")
        .message("spec.subject.serialNumber holds letters, digits, space and '()+,-./:=? (PrintableString)"))]
    pub serial_number: Option<String>,
}

fn client_auth() -> Vec<Usage> {
    vec![Usage::ClientAuth]
}

fn ninety_days() -> Duration {
    Duration::from_hours(2160)
}

/// Why a `ClientIdentity` is, or is not, ready. Conditions, events and metrics share these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The Secret holds a valid certificate.
    Issued,
    /// `spec.authorityRef` names a `ClientAuthority` that does not exist.
    AuthorityNotFound,
    /// The authority exists but can't sign now.
    AuthorityNotReady,
    /// The CA expires too soon to sign anything useful.
    AuthorityExpired,
    /// A field of the spec can't be put into a certificate.
    InvalidSpec,
    /// `spec.request` is not a CSR that can be signed.
    InvalidRequest,
    /// The authority's `spec.allow` refuses what this identity asks for.
    NotAllowed,
    /// Another, older `ClientIdentity` names the same Secret.
    SecretNameConflict,
    /// A Secret of that name exists and is not ours.
    SecretNotOwned,
    /// Our Secret is of another type than the spec needs, and a type can't be changed.
    SecretTypeConflict,
    /// The certificate stands in the Secret, but the key store beside it can't be made.
    KeystoreFailed,
    /// A `CertificateRevocation` names this identity: nothing is issued until it is deleted.
    Revoked,
    /// Signing, checking or writing failed; `status.lastFailure` says more.
    IssuanceFailed,
    /// Another writer changes the Secret again and again: it is put right at a slower pace.
    Drifted,
}

impl Reason {
    /// The reason as conditions, events and metrics carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "Issued",
            Self::AuthorityNotFound => "AuthorityNotFound",
            Self::AuthorityNotReady => "AuthorityNotReady",
            Self::AuthorityExpired => "AuthorityExpired",
            Self::InvalidSpec => "InvalidSpec",
            Self::InvalidRequest => "InvalidRequest",
            Self::NotAllowed => "NotAllowed",
            Self::SecretNameConflict => "SecretNameConflict",
            Self::SecretNotOwned => "SecretNotOwned",
            Self::SecretTypeConflict => "SecretTypeConflict",
            Self::KeystoreFailed => "KeystoreFailed",
            Self::Revoked => "Revoked",
            Self::IssuanceFailed => "IssuanceFailed",
            Self::Drifted => "Drifted",
        }
    }
}

/// What Countersign observed of an identity.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientIdentityStatus {
    /// The generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the Secret holds a valid certificate that is not revoked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Serial number of the current certificate, lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub serial_number: Option<String>,
    /// SHA-256 of the current certificate, lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "fingerprintSHA256")]
    #[schemars(length(max = 64))]
    pub fingerprint: Option<String>,
    /// Start of its validity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// End of its validity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// When it will be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_time: Option<Time>,
    /// Number of the issuance, from 1. One is skipped when a write was lost on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Every certificate that has not expired, newest first; the newest 16 when there are more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub revision_history: Vec<CertificateRevision>,
    /// The last failure, kept after it was overcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// When the next attempt is made, while the last one has failed. A change of the spec, or a
    /// request for renewal, does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Time>,
}
