//! `ClientAuthority`: who vouches for clients.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalReference;
use super::allow::Allow;
use super::bundle::ClusterBundle;
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
    validation = Rule::new("(has(self.spec.selfSigned) && has(self.spec.selfSigned.intermediate)) == (has(oldSelf.spec.selfSigned) && has(oldSelf.spec.selfSigned.intermediate))")
        .message("spec.selfSigned.intermediate can't be added or removed later: create another ClientAuthority"),
    validation = Rule::new("!has(oldSelf.spec.compromisedGenerations) || (has(self.spec.compromisedGenerations) && oldSelf.spec.compromisedGenerations.all(n, n in self.spec.compromisedGenerations))")
        .message("spec.compromisedGenerations: a generation can't be taken off the list: its key is known to others for good"),
    validation = Rule::new("has(self.spec.selfSigned) != has(self.spec.secretRef)")
        .message("spec must say where the CA comes from: set exactly one of selfSigned and secretRef"),
    validation = Rule::new("!has(self.spec.crl) || !has(self.spec.crl.maxEntries) || has(self.spec.selfSigned)")
        .message("spec.crl.maxEntries needs spec.selfSigned: another CA can't be made in the place of one from elsewhere"),
    validation = Rule::new("!has(self.spec.crl) || !has(self.spec.crl.shards) || has(self.spec.crl.distributionPointBaseURL)")
        .message("spec.crl.shards needs spec.crl.distributionPointBaseURL: certificates name the URL of their shard"),
    validation = Rule::new("!has(oldSelf.spec.crl) || !has(oldSelf.spec.crl.shards) || (has(self.spec.crl) && has(self.spec.crl.shards) && self.spec.crl.shards == oldSelf.spec.crl.shards && has(self.spec.crl.distributionPointBaseURL) && self.spec.crl.distributionPointBaseURL == oldSelf.spec.crl.distributionPointBaseURL)")
        .message("spec.crl.shards, and spec.crl.distributionPointBaseURL with it, can't be changed once set: certificates name the URL of their shard"),
    validation = Rule::new("!has(self.spec.crl) || !has(self.spec.crl.delta) || !self.spec.crl.delta || has(self.spec.crl.distributionPointBaseURL)")
        .message("spec.crl.delta needs spec.crl.distributionPointBaseURL: the CRL names its URL"),
    validation = Rule::new("!has(self.spec.crl) || !has(self.spec.crl.delta) || !self.spec.crl.delta || !has(self.spec.crl.shards)")
        .message("spec.crl.delta can't go with spec.crl.shards: certificates name their shard, to which there is none"),
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
    /// A CA that Countersign makes: key pair and certificate, kept in a Secret of the operator's
    /// namespace. A change makes another CA, which takes over by rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_signed: Option<SelfSigned>,
    /// A CA that was made elsewhere: a Secret in the operator's namespace with its certificate, then
    /// those of the CAs above it up to the self-signed root, in `tls.crt`, and its key in `tls.key`. It is
    /// copied; when the Secret holds another CA, that one takes over by rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<LocalReference>,
    /// How one CA takes over from another.
    #[serde(default)]
    pub rotation: Rotation,
    /// Generations whose key somebody else may have. Another CA takes over at once; every certificate of
    /// theirs is replaced, and revoked after `rotation.compromiseGracePeriod`; then nobody trusts them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1)))]
    pub compromised_generations: Vec<i64>,
    /// How the certificate revocation list is made and where clients' verifiers find it.
    #[serde(default)]
    pub crl: CrlSpec,
    /// Who may use this authority, and what they may ask for. When it is not set: every namespace,
    /// every name, and the key usage `client auth`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Allow>,
    /// A ConfigMap with the CA certificates and the CRLs in each of these namespaces, for workloads that verify
    /// clients by themselves. When it is not set there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<ClusterBundle>,
}

/// What a CA certificate made by Countersign says.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.intermediate) || !has(self.intermediate.duration) || duration(self.intermediate.duration) <= duration(self.duration)")
    .message("spec.selfSigned.intermediate.duration must be at most spec.selfSigned.duration"))]
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
    /// The key of the CA.
    #[serde(default)]
    pub private_key: CaPrivateKey,
    /// Where the keys of CAs are made and kept. A change concerns the next CA, which takes over by
    /// rotation; each one, and a root, stays where it was made.
    #[serde(default)]
    pub custody: Custody,
    /// How many CAs may follow below the one that signs clients' certificates (RFC 5280 section 4.2.1.9).
    #[serde(default)]
    #[schemars(range(min = 0, max = 8))]
    pub path_length: i32,
    /// The names that the CA may sign for, whatever `allow` says: verifiers hold it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_constraints: Option<NameConstraints>,
    /// Splits the CA in two: a root that signs only the CAs below it, and those sign the certificates of
    /// clients and take over from each other. The root is generation 0; its key can be exported from
    /// Secret `ca-<authority>-0` and removed there. It is needed again for a rotation. Can't be added or
    /// removed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate: Option<Intermediate>,
}

/// The key of a CA.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.size) || (self.algorithm == 'ECDSA' && self.size in [256, 384, 521]) || (self.algorithm == 'RSA' && self.size in [2048, 3072, 4096])")
    .message("privateKey.size must be 256, 384 or 521 with ECDSA, 2048, 3072 or 4096 with RSA, and absent with Ed25519"))]
pub struct CaPrivateKey {
    /// The algorithm.
    #[serde(default)]
    pub algorithm: CaKeyAlgorithm,
    /// Size in bits: the curve with ECDSA (256 when not set), the modulus with RSA (2048 when not set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i32>,
}

/// Where the key of a CA is kept.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum Custody {
    /// In a Secret of the operator's namespace.
    #[default]
    Secret,
    /// In the PKCS #11 token that the operator is configured with: made there, and never outside. The
    /// Secret then says where it lies.
    PKCS11,
}

/// The algorithm of a CA's key.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum CaKeyAlgorithm {
    /// Elliptic curves of NIST.
    #[default]
    ECDSA,
    /// RFC 8410. Not every data plane takes certificates that are signed by it.
    Ed25519,
    /// PKCS #1 v1.5 signatures with SHA-256.
    RSA,
}

/// What names may stand below a CA (RFC 5280 section 4.2.1.10). E-mail addresses and URIs can't be
/// constrained: rustls refuses every certificate that holds one below such a CA.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NameConstraints {
    /// DNS names may only lie in these domains. Empty: anywhere.
    #[serde(default, rename = "permittedDNSDomains", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(d, d.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'))")
        .message("permittedDNSDomains must hold domains such as example.com"))]
    pub permitted_dns_domains: Vec<String>,
    /// DNS names may not lie in these domains.
    #[serde(default, rename = "excludedDNSDomains", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(d, d.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'))")
        .message("excludedDNSDomains must hold domains such as example.com"))]
    pub excluded_dns_domains: Vec<String>,
    /// IP addresses may only lie in these ranges, such as `10.0.0.0/8`. Empty: anywhere.
    #[serde(default, rename = "permittedIPRanges", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 49)))]
    #[x_kube(validation = Rule::new("self.all(r, isCIDR(r))").message("permittedIPRanges must hold ranges such as 10.0.0.0/8"))]
    pub permitted_ip_ranges: Vec<String>,
    /// IP addresses may not lie in these ranges.
    #[serde(default, rename = "excludedIPRanges", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 49)))]
    #[x_kube(validation = Rule::new("self.all(r, isCIDR(r))").message("excludedIPRanges must hold ranges such as 10.0.0.0/8"))]
    pub excluded_ip_ranges: Vec<String>,
}

/// The CAs below the root.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Intermediate {
    /// Lifetime of each. At least 1h; cut to the lifetime of the root.
    #[serde(default = "one_year")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h')")
        .message("spec.selfSigned.intermediate.duration must be at least 1h"))]
    pub duration: Duration,
    /// The root's CRL is valid for this long, so that it lasts while the root's key is not here. It is
    /// signed anew after a twelfth of this, as long as the key is.
    #[serde(default = "one_year", rename = "rootCRLValidity")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('24h')")
        .message("spec.selfSigned.intermediate.rootCRLValidity must be at least 24h"))]
    pub root_crl_validity: Duration,
}

/// How one CA takes over from another. The next one is first trusted (`Prepared`), then signs
/// (`Active`) while the one before is still trusted (`Retiring`), until its last certificate has expired.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// The next CA is prepared this long before the active one expires. A third of its lifetime when
    /// not set. Does not apply to a CA that was made elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m')")
        .message("spec.rotation.renewBefore must be at least 1m"))]
    pub renew_before: Option<Duration>,
    /// The next CA stays `Prepared` for at least this long, so that whoever holds a copy of the trust
    /// bundle can fetch it anew.
    #[serde(default = "five_minutes")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s')")
        .message("spec.rotation.preparation must not be negative"))]
    pub preparation: Duration,
    /// The next CA becomes `Active` when every ClientTrust and every identity's Secret holds the new
    /// trust bundle; after this time all the same.
    #[serde(default = "one_day")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s')")
        .message("spec.rotation.activationTimeout must be at least 10s"))]
    pub activation_timeout: Duration,
    /// Certificates of the CA before are replaced within this time after the next one became `Active`,
    /// those that last longest first.
    #[serde(default = "one_hour")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s')")
        .message("spec.rotation.reissueWithin must not be negative"))]
    pub reissue_within: Duration,
    /// Certificates of a compromised CA are replaced at once, and revoked this long after.
    #[serde(default = "ten_minutes")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s')")
        .message("spec.rotation.compromiseGracePeriod must not be negative"))]
    pub compromise_grace_period: Duration,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            renew_before: None,
            preparation: five_minutes(),
            activation_timeout: one_day(),
            reissue_within: one_hour(),
            compromise_grace_period: ten_minutes(),
        }
    }
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
    /// When so many revoked certificates stand on the CRL of the active CA, another CA with a CRL of its
    /// own takes over, as in any rotation. So each CRL stays complete, and small enough for every
    /// verifier. The Secret of a `ClientTrust` has room for about 15000 entries of all CAs that it trusts
    /// together. Only with `selfSigned`; best with `selfSigned.intermediate`, which leaves the root as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 10_000_000))]
    pub max_entries: Option<u32>,
    /// Divides the CRL as well into so many shards, by serial number: each certificate then carries the URL of
    /// its shard, `<base>/crl/<authority>/<generation>/<shard>-of-<shards>.crl`, which has an
    /// issuingDistributionPoint with that URL (RFC 5280 section 5.2.5). For verifiers that fetch the CRL which
    /// a certificate names; nginx, HAProxy and Envoy take the complete one, which goes on beside. Needs
    /// `distributionPointBaseURL`; neither can be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 64))]
    pub shards: Option<u32>,
    /// Publishes a delta CRL beside each complete one (RFC 5280 section 5.2.4), at
    /// `<base>/crl/<authority>/<generation>/delta.crl`: what was revoked since the complete one of the last
    /// refresh. The complete one names it (freshestCRL). For verifiers that use both; nginx, HAProxy and Envoy
    /// take the complete one alone. Needs `distributionPointBaseURL`; not with `shards`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delta: bool,
}

impl Default for CrlSpec {
    fn default() -> Self {
        Self {
            validity: seven_days(),
            refresh: six_hours(),
            distribution_point_base_url: None,
            max_entries: None,
            shards: None,
            delta: false,
        }
    }
}

fn ten_years() -> Duration {
    Duration::from_hours(87_600)
}

fn one_year() -> Duration {
    Duration::from_hours(8760)
}

fn one_day() -> Duration {
    Duration::from_hours(24)
}

fn one_hour() -> Duration {
    Duration::from_hours(1)
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
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
    /// `Ready`: the CA can sign and its CRL is published and fresh. `Rotating`: another CA is about to
    /// take over, or has just done so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The CAs of this authority, oldest first: all that are trusted, and the last ones that were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub generations: Vec<CaGeneration>,
    /// The published CRL of the active CA.
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
    /// Counts from 1, the root of intermediate CAs is 0; stands in the URL of the CRL.
    pub number: i64,
    /// What it does.
    pub state: CaState,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// SHA-256 of the certificate, lower-case hex.
    #[schemars(length(max = 64))]
    #[serde(rename = "fingerprintSHA256")]
    pub fingerprint: String,
    /// Start of its validity.
    pub not_before: Time,
    /// End of its validity.
    pub not_after: Time,
}

/// What a CA does for its authority.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum CaState {
    /// It signs the CAs of the authority, and its CRL.
    Root,
    /// It is trusted, and signs its CRL only: the next one.
    Prepared,
    /// It signs certificates and its CRL.
    Active,
    /// It is trusted, and signs its CRL only: the one before.
    Retiring,
    /// Its key may be known to others; its certificates are being replaced.
    Compromised,
    /// Nobody trusts it any more.
    Removed,
}

impl CaState {
    /// The state as annotations and messages carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "Root",
            Self::Prepared => "Prepared",
            Self::Active => "Active",
            Self::Retiring => "Retiring",
            Self::Compromised => "Compromised",
            Self::Removed => "Removed",
        }
    }

    /// The state of this name.
    pub fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::Root,
            Self::Prepared,
            Self::Active,
            Self::Retiring,
            Self::Compromised,
            Self::Removed,
        ];
        all.into_iter().find(|state| state.as_str() == text)
    }
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
    /// How much of the Secret of a `ClientTrust` the CA certificates and CRLs of this authority leave
    /// free, in percent of 1 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headroom_percent: Option<i32>,
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
