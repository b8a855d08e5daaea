//! Data planes: what each can do, and how a `ClientTrust` looks in its terms. Pure: objects in,
//! objects out. One file per data plane, one row in [`DATA_PLANES`].

pub mod traefik;

use serde_json::Value;

use crate::api::trust::{ForwardIdentity, Mode};

/// What every adapter is given.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Namespace of the `ClientTrust` and its targets.
    pub namespace: &'a str,
    /// Name of the `ClientTrust`.
    pub trust: &'a str,
    /// What happens to a client without certificate.
    pub mode: Mode,
    /// By which headers the backend is told of the client.
    pub forward_identity: ForwardIdentity,
    /// The authorities whose clients are accepted.
    pub authorities: Vec<&'a str>,
    /// Base URL of the gate, such as `http://countersign-server.countersign.svc:8081`.
    pub gate_url: &'a str,
}

impl Request<'_> {
    /// Name of everything that is made for this trust. The prefix keeps a trust that is called
    /// `default` from making a TLSOption of that name, which Traefik would apply everywhere.
    pub fn object_name(&self) -> String {
        object_name(self.trust)
    }
}

/// Name of the Secret with trust bundle and CRL, and of the data plane's objects, of a trust.
pub fn object_name(trust: &str) -> String {
    format!("countersign-{trust}")
}

/// How an object of the user is changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Server-side apply of these fields and no others, never forced.
    Apply(Value),
    /// The whole object, written under its resourceVersion: for fields that stand in lists which
    /// server-side apply can only own whole.
    Replace(Value),
    /// It is as it should be.
    Nothing,
}

/// Somebody else set a field that we need.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is set to {value:?}; remove it, or remove the target from the ClientTrust")]
pub struct FieldConflict {
    /// Path of the field.
    pub field: String,
    /// What stands there.
    pub value: String,
}

/// One data plane.
pub struct DataPlane {
    /// Its name in messages and metrics.
    pub name: &'static str,
    /// `spec.controller` of the IngressClass that it serves.
    pub ingress_controller: &'static str,
    /// Kinds of its own that it serves, beside Ingress: group and kind.
    pub kinds: &'static [(&'static str, &'static str)],
    /// The objects that it needs in the namespace of the trust.
    pub objects: fn(&Request<'_>) -> Vec<Value>,
    /// Puts the trust on a target: its present state in, the change out.
    pub attach: fn(&Request<'_>, &Value) -> Result<Edit, FieldConflict>,
    /// Takes the trust off a target.
    pub detach: fn(trust: &str, &Value) -> Edit,
}

/// Every data plane that Countersign can program.
pub const DATA_PLANES: &[&DataPlane] = &[&traefik::TRAEFIK];

/// The data plane that serves Ingresses of a class with this `spec.controller`.
pub fn by_ingress_controller(controller: &str) -> Option<&'static DataPlane> {
    DATA_PLANES.iter().copied().find(|plane| plane.ingress_controller == controller)
}

/// The data plane that a kind of its own belongs to.
pub fn by_kind(group: &str, kind: &str) -> Option<&'static DataPlane> {
    DATA_PLANES.iter().copied().find(|plane| plane.kinds.contains(&(group, kind)))
}

/// One host that a route serves, with what the route says of TLS options: two routes of one host
/// that differ in them are a conflict on Traefik.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// The host.
    pub host: String,
    /// Kind, namespace and name of the route, for messages.
    pub route: String,
    /// Its TLS options, in a form that can be compared; empty when it has none.
    pub options: String,
}
