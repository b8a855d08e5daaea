//! What a `ClientTrust` asks of clients beyond a valid certificate of its authorities; the gate decides by it.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Which clients of the authorities may pass. A client that any entry names is let in, every other one is
/// refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize, KubeSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.uris) || has(self.dnsNames) || has(self.emailAddresses) || has(self.commonNames) || has(self.organizationalUnits)")
        .message("spec.allow must name clients: set uris, dnsNames, emailAddresses, commonNames or organizationalUnits, or remove it")
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
}
