//! Data planes: what each can do, and how a `ClientTrust` looks in its terms. Pure: objects in,
//! objects out. One file per data plane, one row in [`DATA_PLANES`].

pub mod annotations;
pub mod contour;
pub mod envoy_gateway;
pub mod f5_nginx;
pub mod gate;
pub mod gateway;
pub mod gateway_api;
pub mod haproxy;
pub mod istio;
pub mod nginx;
pub mod traefik;

use serde_json::Value;

use self::gate::GateService;
use crate::api::annotation;
use crate::api::trust::{ForwardIdentity, Mode, Reason, TargetReference};

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
    /// How a data plane that can show the gate a certificate asks it, if it is to.
    pub gate_tls: Option<GateTls<'a>>,
    /// Does the gate decide by a policy of the trust's own, too?
    pub by_policy: bool,
    /// Must clients have a password beside their certificate? The backend is not told it.
    pub second_factor: bool,
}

/// The gate over TLS, where it knows its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateTls<'a> {
    /// Its base URL, such as `https://countersign-server.countersign.svc:8444`.
    pub url: &'a str,
    /// The authority of callers, and of the gate's own certificate.
    pub callers: &'a str,
    /// Why the caller has no certificate yet, if it has none.
    pub waits: Option<&'a str>,
}

impl Request<'_> {
    /// Name of everything that is made for this trust. The prefix keeps a trust that is called
    /// `default` from making a TLSOption of that name, which Traefik would apply everywhere.
    pub fn object_name(&self) -> String {
        object_name(self.trust)
    }

    /// Is there something that only the gate can do?
    pub fn needs_gate(&self) -> bool {
        gate::is_needed(self.by_policy, self.forward_identity)
    }

    /// Where the gate answers a data plane that hands certificates over in this form, such as `traefik`. A policy
    /// that the gate does not know lets nobody in.
    /// ingress-nginx takes no URL with other characters than letters, digits and `-._~/:,?&=`.
    pub fn gate_address(&self, form: &str) -> String {
        self.gate_address_at(self.gate_url, form)
    }

    /// The same under another base URL.
    pub fn gate_address_at(&self, base: &str, form: &str) -> String {
        let mode = self.mode.as_str();
        // Names of namespaces, trusts and authorities are DNS labels: nothing to escape.
        let trust = format!("trust={}/{}&", self.namespace, self.trust);
        let trust = if self.by_policy { &*trust } else { "" };
        let authorities: String =
            self.authorities.iter().map(|name| format!("&authority={name}")).collect();
        format!("{base}/gate/{form}?{trust}mode={mode}{authorities}")
    }
}

/// Name of the Secret with trust bundle and CRL, and of the data plane's objects, of a trust.
pub fn object_name(trust: &str) -> String {
    format!("countersign-{trust}")
}

/// Name of the identity, and of its Secret, as which a data plane asks the gate for a trust.
pub fn caller_name(trust: &str) -> String {
    format!("{}-gate", object_name(trust))
}

/// How an object of the user is changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Server-side apply of these fields and no others, never forced.
    Apply(Value),
    /// The whole object, written under its resourceVersion: for fields that stand in lists which
    /// server-side apply can only own whole.
    Replace(Value),
    /// Deletes this object, which is ours, unless it has changed since it was read.
    Delete(Value),
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

/// Why the trust does not hold at a target although its configuration is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Of what sort it is.
    pub reason: Reason,
    /// What it is and what to do; it follows the name of the target.
    pub message: String,
}

/// How a data plane refuses revoked certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// By the CRLs, PEM, under this key of the trust's Secret.
    ByCrl(&'static str),
    /// It has no CRL support, and asks the gate.
    ViaGate,
    /// It has no CRL support and can't ask the gate: nobody refuses them.
    Unenforced,
}

/// A kind of a data plane's own.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its API group.
    pub group: &'static str,
    /// The version in which it is read and written.
    pub version: &'static str,
    /// Its name.
    pub kind: &'static str,
    /// Takes a trust, whose mark the object carries, off it.
    pub detach: fn(trust: &str, &Value) -> Edit,
}

/// A Secret that a data plane insists on, with what is in the trust's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnSecret {
    /// What follows the name of the trust's Secret in its name.
    pub suffix: &'static str,
    /// Its type.
    pub type_: &'static str,
}

/// One data plane.
pub struct DataPlane {
    /// Its name in messages and metrics.
    pub name: &'static str,
    /// `spec.controller` of the IngressClass whose Ingresses it serves with client certificates.
    pub ingress_controller: Option<&'static str>,
    /// `spec.controllerName` of the GatewayClass whose Gateways it serves with client certificates.
    pub gateway_controller: Option<&'static str>,
    /// Kinds of its own that it serves, beside Ingress; or, where it serves Gateways, by which it is told how.
    pub kinds: &'static [Kind],
    /// How it refuses revoked certificates.
    pub revocation: Revocation,
    /// Does it ask the gate, which decides about more than revocation? Not before something needs that
    /// ([`Request::needs_gate`]) where it reads CRLs itself.
    pub asks_gate: bool,
    /// A Secret of its own beside the trust's, if it does not take that one.
    pub secret: Option<OwnSecret>,
    /// The objects that it needs in the namespace of the trust, for these targets.
    pub objects: fn(&Request<'_>, &[&Value]) -> Vec<Value>,
    /// The object in the namespace of the gate without which it can't, or may not, ask it for trusts of this namespace.
    pub beside_gate: Option<fn(&GateService<'_>, namespace: &str) -> Value>,
    /// Puts the trust on a target that no other trust has: its present state in, the change out.
    pub attach: fn(&Request<'_>, &Value) -> Result<Edit, FieldConflict>,
    /// The hosts for which a route has a say, lower-case.
    pub hosts: fn(&Value) -> Vec<String>,
    /// What in a target lets clients past the trust, or keeps it from being in force. The last argument is
    /// every route that the data plane serves.
    pub exposure: fn(&Request<'_>, &Value, &[&Value]) -> Option<Exposure>,
    /// What another route that has a say for a host of the target does to it, in one sentence; `None` if
    /// nothing. Arguments: the host, the target, the other route.
    pub conflict: fn(&Request<'_>, &str, &Value, &Value) -> Option<String>,
}

/// Every data plane that Countersign can program.
pub const DATA_PLANES: &[&DataPlane] = &[
    &traefik::TRAEFIK,
    &haproxy::HAPROXY_INGRESS,
    &contour::CONTOUR,
    &nginx::INGRESS_NGINX,
    &f5_nginx::F5_NGINX,
    &istio::ISTIO,
    &envoy_gateway::ENVOY_GATEWAY,
    &gateway_api::NGINX_GATEWAY_FABRIC,
    &gateway_api::KGATEWAY,
    &gateway_api::ISTIO_GATEWAY_API,
];

/// The Gateway of the Gateway API. What serves it follows from its GatewayClass.
pub const GATEWAY: Kind = Kind {
    group: "gateway.networking.k8s.io",
    version: "v1",
    kind: "Gateway",
    detach: |_, target| annotations::detach(target),
};

/// The class that a Gateway names.
pub const GATEWAY_CLASS: Kind =
    Kind { kind: "GatewayClass", detach: |_, _| Edit::Nothing, ..GATEWAY };

/// The data plane that serves Ingresses of a class with this `spec.controller`.
pub fn by_ingress_controller(controller: &str) -> Option<&'static DataPlane> {
    DATA_PLANES.iter().copied().find(|plane| plane.ingress_controller == Some(controller))
}

/// The data plane that serves Gateways of a class with this `spec.controllerName`.
pub fn by_gateway_controller(controller: &str) -> Option<&'static DataPlane> {
    DATA_PLANES.iter().copied().find(|plane| plane.gateway_controller == Some(controller))
}

/// The Gateway, and the data planes' own kinds.
pub fn kinds() -> impl Iterator<Item = &'static Kind> {
    [&GATEWAY].into_iter().chain(DATA_PLANES.iter().flat_map(|plane| plane.kinds))
}

/// The data plane that a kind of its own belongs to, and that kind.
pub fn by_kind(group: &str, kind: &str) -> Option<(&'static DataPlane, &'static Kind)> {
    DATA_PLANES.iter().copied().find_map(|plane| {
        let mut kinds = plane.kinds.iter();
        kinds.find(|own| own.group == group && own.kind == kind).map(|own| (plane, own))
    })
}

/// The same of an object.
pub fn by_object(object: &Value) -> Option<(&'static DataPlane, &'static Kind)> {
    by_kind(group_of(object), object["kind"].as_str()?)
}

/// The API group of an object.
pub fn group_of(object: &Value) -> &str {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    version.split_once('/').map_or("", |(group, _)| group)
}

/// Is this an object of the kind?
pub fn is_of_kind(object: &Value, kind: &Kind) -> bool {
    group_of(object) == kind.group && object["kind"] == kind.kind
}

/// Is this object the target, or what was made for targets such as this one?
pub fn serves(object: &Value, target: &TargetReference) -> bool {
    if target.group == GATEWAY.group && is_policy(object) {
        return true;
    }
    is_target(object, target)
}

/// Is this object the target itself?
pub fn is_target(object: &Value, target: &TargetReference) -> bool {
    is_of_same_kind(object, target) && object["metadata"]["name"] == *target.name
}

/// Is an object of the kind that a target names? There are two of the name Gateway.
pub fn is_of_same_kind(object: &Value, target: &TargetReference) -> bool {
    group_of(object) == target.group && object["kind"] == *target.kind
}

/// Does the object tell a data plane how to serve Gateways?
fn is_policy(object: &Value) -> bool {
    by_object(object).is_some_and(|(plane, _)| plane.gateway_controller.is_some())
}

/// Has another trust put its mark on the target?
pub fn is_anothers(request: &Request<'_>, target: &Value) -> bool {
    annotations::value(target, annotation::TRUST).is_some_and(|mark| mark != request.trust)
}

/// Puts a trust on a target of this data plane.
///
/// # Errors
/// Another trust has it, or somebody set a field that we need.
pub fn attach(
    plane: &DataPlane,
    request: &Request<'_>,
    target: &Value,
) -> Result<Edit, FieldConflict> {
    // Two trusts write as the same field manager: to the API server there would be no conflict.
    let mark = annotations::value(target, annotation::TRUST);
    if let Some(other) = mark.filter(|mark| *mark != request.trust) {
        return Err(FieldConflict {
            field: annotations::field(annotation::TRUST),
            value: other.to_owned(),
        });
    }
    (plane.attach)(request, target)
}

/// Takes a trust off an object that carries its mark. Nobody has to know which data plane an Ingress or a
/// Gateway had: its class may be another one by now, and gone is whatever was applied.
pub fn detach(trust: &str, object: &Value) -> Edit {
    if annotations::value(object, annotation::TRUST) != Some(trust) {
        return Edit::Nothing;
    }
    match by_object(object) {
        Some((_, own)) => (own.detach)(trust, object),
        None if f5_nginx::is_attached(trust, object) => f5_nginx::detach(trust, object),
        None => annotations::detach(object),
    }
}

/// The hosts for which a route has a say in any data plane, lower-case.
pub fn hosts(route: &Value) -> Vec<String> {
    DATA_PLANES.iter().flat_map(|plane| (plane.hosts)(route)).collect()
}

/// What another route of one of the target's hosts does to the target, in one sentence.
pub fn conflict<'a>(
    plane: &DataPlane,
    request: &Request<'_>,
    target: &Value,
    others: impl IntoIterator<Item = &'a Value>,
) -> Option<String> {
    let hosts = (plane.hosts)(target);
    let same = |other: &Value| {
        other["kind"] == target["kind"]
            && other["metadata"]["namespace"] == target["metadata"]["namespace"]
            && other["metadata"]["name"] == target["metadata"]["name"]
    };
    others.into_iter().filter(|other| !same(other)).find_map(|other| {
        let theirs = (plane.hosts)(other);
        let shared = hosts.iter().filter(|host| theirs.contains(host));
        shared.into_iter().find_map(|host| (plane.conflict)(request, host, target, other))
    })
}

/// A route as messages name it: kind, namespace and name.
pub fn name_of(route: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &route["metadata"];
    format!("{} {}/{}", text(&route["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What adapters are given for a trust `clients` in the namespace `shop`.
    pub fn request(mode: Mode) -> Request<'static> {
        Request {
            namespace: "shop",
            trust: "clients",
            mode,
            forward_identity: ForwardIdentity::Native,
            authorities: vec!["staff"],
            gate_url: "http://gate.example:8081",
            gate_tls: None,
            by_policy: false,
            second_factor: false,
        }
    }

    /// The same with something that needs the gate, which is a Service.
    pub fn gated() -> Request<'static> {
        Request {
            by_policy: true,
            gate_url: "http://gate.countersign.svc:8081",
            ..request(Mode::Required)
        }
    }

    /// The Ingress `shop` in that namespace, with TLS, and with these annotations.
    pub fn ingress(annotations: Value) -> Value {
        serde_json::json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": "shop", "namespace": "shop", "uid": "u", "annotations": annotations},
            "spec": {
                "tls": [{"hosts": ["shop.example.com"], "secretName": "shop-tls"}],
                "rules": [{"host": "shop.example.com", "http": {"paths": [{"path": "/"}]}}],
            },
        })
    }
}
