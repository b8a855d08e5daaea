//! `ClientTrust.spec.canary`: a client of Countersign's own that tries on a schedule what a trust promises.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::Duration;

/// A canary is given a certificate of each authority of the trust, shows it, has it revoked, and shows it
/// until it is refused. Its certificates are kept in memory only, and are revoked after each run.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.serverCA) || !has(self.insecureSkipServerVerification) || !self.insecureSkipServerVerification")
        .message("spec.canary.insecureSkipServerVerification: spec.canary.serverCA says how the server is verified; set one of them")
)]
pub struct Canary {
    /// Where it tries: what the trust's targets serve.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, a.url == b.url && (has(a.address) ? a.address : '') == (has(b.address) ? b.address : '')))")
        .message("spec.canary.endpoints must not name an endpoint twice"))]
    pub endpoints: Vec<Endpoint>,
    /// The CA certificates, PEM, that verify the servers' certificates, or these certificates themselves.
    /// When it is not set: the roots that the operator's system trusts.
    #[serde(default, rename = "serverCA", skip_serializing_if = "Option::is_none")]
    pub server_ca: Option<ServerCa>,
    /// Takes whatever certificate a server shows. Who answers in its place can then feign every result.
    #[serde(default, skip_serializing_if = "is_false")]
    pub insecure_skip_server_verification: bool,
    /// How often it tries. At least 1m.
    #[serde(default = "one_hour")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('168h')")
        .message("spec.canary.interval must be at least 1m and at most 168h"))]
    pub interval: Duration,
    /// For so long a good client may be refused, and a revoked one accepted, before it counts as a
    /// failure: the time that the data plane may take to load a CRL. At most 10m.
    #[serde(default = "one_minute")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('10m')")
        .message("spec.canary.timeout must be at least 1s and at most 10m"))]
    pub timeout: Duration,
}

/// Something that a target serves.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The URL that is asked for by GET, such as `https://shop.example.com/healthz`. Its host is the server
    /// name of the handshake, too. A good client must be answered there by a status other than 400, 401,
    /// 403, 495, 496 and 5xx.
    #[schemars(length(min = 9, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^https://[!-~]+$') && isURL(self) && url(self).getHostname() != '' && !self.contains('@') && !self.contains('#')")
        .message("spec.canary.endpoints[].url must be a URL such as https://shop.example.com/healthz, without user and fragment"))]
    pub url: String,
    /// Where to connect instead of what the URL's host resolves to: host and port, such as
    /// `traefik.traefik.svc:443`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 259))]
    #[x_kube(validation = Rule::new("self.matches('^([A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9.])?|[[][0-9A-Fa-f:.]+[]]):[0-9]{1,5}$')")
        .message("spec.canary.endpoints[].address must be a host and a port, such as traefik.traefik.svc:443"))]
    pub address: Option<String>,
}

/// Where CA certificates stand: one key of an object in the namespace of the `ClientTrust`.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServerCa {
    /// The object's kind.
    #[serde(default)]
    pub kind: ServerCaKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key that holds the certificates.
    #[serde(default = "ca_crt")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Kinds of objects that hold CA certificates.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum ServerCaKind {
    /// A Secret.
    #[default]
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

/// What the canary of a trust has seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStatus {
    /// When the last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run_time: Option<Time>,
    /// When the last run ended in which all was as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_time: Option<Time>,
    /// How long after its revocation a client was refused everywhere, in milliseconds, in the last run that
    /// succeeded. It is counted from before the revocation is recorded, and holds the publication of the CRL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_after_milliseconds: Option<i64>,
    /// What the last run saw at each endpoint, for each authority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub results: Vec<CanaryResult>,
}

/// What was seen at one endpoint with a certificate of one authority.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CanaryResult {
    /// The endpoint's URL.
    pub url: String,
    /// Where it was asked, if the endpoint says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Name of the `ClientAuthority`.
    pub authority: String,
    /// `Passed`, or what went wrong.
    pub reason: String,
    /// How long after its revocation the client was refused here, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_after_milliseconds: Option<i64>,
}

/// Why the condition `CanaryPassed` is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A good client is accepted, one without certificate is treated as `spec.mode` says, and a revoked one is
    /// refused in time.
    Passed,
    /// A revoked client went on being accepted.
    RevokedClientAccepted,
    /// A client without certificate is accepted although `spec.mode` is `Required`.
    AnonymousClientAccepted,
    /// A client without certificate is refused although `spec.mode` is `Optional`.
    AnonymousClientRefused,
    /// A good client is refused.
    GoodClientRefused,
    /// The server's certificate was not verified.
    ServerNotVerified,
    /// Nobody answered, or the answer says nothing of the client.
    Unreachable,
    /// The operator may not connect to the address.
    AddressNotAllowed,
    /// `spec.canary` can't be used.
    InvalidCanary,
    /// An authority does not allow the canary's certificate.
    NotAllowed,
    /// An authority can't sign, so that there is no certificate to try.
    AuthorityNotReady,
    /// The trust's Secret does not hold what the canary's certificates are verified by.
    TrustNotReady,
    /// The operator runs without canaries.
    Disabled,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::Passed,
        Self::RevokedClientAccepted,
        Self::AnonymousClientAccepted,
        Self::AnonymousClientRefused,
        Self::GoodClientRefused,
        Self::ServerNotVerified,
        Self::Unreachable,
        Self::AddressNotAllowed,
        Self::InvalidCanary,
        Self::NotAllowed,
        Self::AuthorityNotReady,
        Self::TrustNotReady,
        Self::Disabled,
    ];

    /// The reason as conditions carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "Passed",
            Self::RevokedClientAccepted => "RevokedClientAccepted",
            Self::AnonymousClientAccepted => "AnonymousClientAccepted",
            Self::AnonymousClientRefused => "AnonymousClientRefused",
            Self::GoodClientRefused => "GoodClientRefused",
            Self::ServerNotVerified => "ServerNotVerified",
            Self::Unreachable => "Unreachable",
            Self::AddressNotAllowed => "AddressNotAllowed",
            Self::InvalidCanary => "InvalidCanary",
            Self::NotAllowed => "NotAllowed",
            Self::AuthorityNotReady => "AuthorityNotReady",
            Self::TrustNotReady => "TrustNotReady",
            Self::Disabled => "Disabled",
        }
    }
}

fn one_hour() -> Duration {
    Duration::from_hours(1)
}

fn one_minute() -> Duration {
    Duration::from_secs(60)
}

fn ca_crt() -> String {
    "ca.crt".to_owned()
}

fn is_false(value: &bool) -> bool {
    !value
}
