//! What a `ClientTrust` asks of clients beyond a valid certificate of its authorities; the gate decides by it.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::allow::LabelSelector;
use super::duration::Duration;

/// Which clients of the authorities may pass. A client that any entry names is let in, every other one is
/// refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.uris) || has(self.dnsNames) || has(self.emailAddresses) || has(self.commonNames) || has(self.organizationalUnits) || has(self.identities)")
        .message("spec.allow must name clients: set uris, dnsNames, emailAddresses, commonNames, organizationalUnits or identities, or remove it")
)]
pub struct AllowedClients {
    /// URI subject alternative names, octet by octet. One that ends with `/*` or `:*` stands for every URI that
    /// begins with what is before the asterisk and goes on, but for one with a segment `.` or `..`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 3, max = 1024)))]
    #[x_kube(validation = Rule::new("self.all(u, u.matches('^[A-Za-z][A-Za-z0-9+.-]*:[!-)+-~]*([/:][*])?$'))")
        .message("spec.allow.uris must hold absolute ASCII URIs such as spiffe://example.com/laptop-7; an asterisk may only be the last character, after / or :"))]
    pub uris: Vec<String>,
    /// DNS subject alternative names, in either case. The label `*` at the beginning stands for exactly one label,
    /// as in a server's certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(n, n.matches('^([*][.])?([A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?)([.][A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?)*$'))")
        .message("spec.allow.dnsNames must hold DNS names such as laptop-7.example.com, or *.example.com for those one label below"))]
    pub dns_names: Vec<String>,
    /// E-mail subject alternative names; the host in either case, what is before the @ as it stands (RFC 5280
    /// section 7.5).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 3, max = 254)))]
    #[x_kube(validation = Rule::new("self.all(e, e.matches('^[!-)+-?A-~]+@[-A-Za-z0-9.]+$'))")
        .message("spec.allow.emailAddresses must hold ASCII addresses such as ada@example.com, without an asterisk"))]
    pub email_addresses: Vec<String>,
    /// Common names of the subject, as they stand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub common_names: Vec<String>,
    /// Organizational units of the subject, as they stand: a client with any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub organizational_units: Vec<String>,
    /// The clients whose certificates were issued to these `ClientIdentity` objects, whatever names they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identities: Option<IdentitySelector>,
}

/// A selection of `ClientIdentity` objects. Whoever may label them decides who passes.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IdentitySelector {
    /// Those with these labels; `{}` selects all.
    pub selector: LabelSelector,
    /// In namespaces with these labels, `{}` being all; in the namespace of the trust when it is not set. The label
    /// `kubernetes.io/metadata.name` selects by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// What a client must have beside its certificate, which is looked at first. Where `mode` is `Optional`, who shows
/// no certificate must have it, too.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.basic) != has(self.url)")
        .message("spec.secondFactor must set exactly one of basic and url")
)]
pub struct SecondFactor {
    /// A password, by HTTP Basic authentication (RFC 7617). The backend is not told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<Passwords>,
    /// Another service decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Authorizer>,
}

/// The users and the hashes of their passwords.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Passwords {
    /// A Secret in the same namespace with a file of lines `user:hash`, as `htpasswd -B` makes it. A hash is of
    /// bcrypt (`$2y$`, `$2b$`, `$2a$`, cost 14 at most) or argon2id (64 MiB at most).
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// The key of the Secret that holds it.
    #[serde(default = "auth")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn auth() -> String {
    "auth".to_owned()
}

/// A service that the gate asks about each request, with its `Authorization`, if it has one, and the client's
/// certificate in `Client-Cert` (RFC 9440). Status 2xx lets the request pass; 401 has the client asked for a
/// password; everything else, and silence, refuse.
#[derive(Clone, Debug, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.endpoint.startsWith('https://') || has(self.caBundle)")
        .message("spec.secondFactor.url.caBundle must hold the CA certificates, PEM, that verify the service of an https:// endpoint: no public roots are trusted"),
    validation = Rule::new("self.endpoint.startsWith('https://') || !has(self.caBundle)")
        .message("spec.secondFactor.url.caBundle verifies nobody at an http:// endpoint: write https://, or leave it out")
)]
pub struct Authorizer {
    /// Its URL, which is asked by GET, such as `https://login.shop.svc:8443/check`. Passwords go to an `http://` URL
    /// unencrypted: that is for services within the cluster.
    #[schemars(length(min = 8, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[!-~]+$') && isURL(self) && url(self).getHostname() != '' && !self.contains('@') && !self.contains('#')")
        .message("spec.secondFactor.url.endpoint must be a URL such as https://login.shop.svc:8443/check or http://login.shop.svc:8080/check, without user and fragment"))]
    pub endpoint: String,
    /// CA certificates, PEM: one of them must have signed the certificate of the service, or of a CA that it sends
    /// along, and that certificate must hold the host of `endpoint`. With an `https://` endpoint, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32768))]
    pub ca_bundle: Option<String>,
    /// How long it may take to answer, 2s by default. At most 10s.
    #[serde(default = "two_seconds")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('10s')")
        .message("spec.secondFactor.url.timeout must be at least 1s and at most 10s"))]
    pub timeout: Duration,
}

fn two_seconds() -> Duration {
    Duration::from_secs(2)
}
