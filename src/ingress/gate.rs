//! What data planes that ask the gate over gRPC (Envoy's `ext_authz`) have in common: how the question looks, and by
//! which object beside the gate they find it.

use serde_json::{Value, json};

use super::{DataPlane, Exposure, Request};
use crate::api::trust::{ForwardIdentity, Reason, TargetReference};

/// Name, or the beginning of it, of what stands in the namespace of the gate for a data plane.
pub const NAME: &str = "countersign-gate";

/// The longest time that a question takes: `spec.secondFactor.url.timeout` is bounded by 10 seconds.
pub const TIMEOUT: &str = "15s";

/// The Service of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateService<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The port of the Service.
    pub port: u16,
}

impl<'a> GateService<'a> {
    /// The Service that a URL such as `http://countersign-server.countersign.svc:8081` names, with the domain of the
    /// cluster behind it or not; none if it names no Service.
    pub fn of_url(url: &'a str) -> Option<Self> {
        let authority = url.strip_prefix("http://")?.trim_end_matches('/');
        let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
        let mut labels = host.trim_end_matches('.').split('.');
        let (name, namespace, svc) = (labels.next()?, labels.next()?, labels.next()?);
        let named = !name.is_empty() && !namespace.is_empty() && svc == "svc";
        named.then_some(Self { namespace, name, port: port.parse().ok()? })
    }
}

/// Is there something that only the gate can do: decide by a policy, or tell the backend by `Client-Cert`?
pub fn is_needed(by_policy: bool, forward_identity: ForwardIdentity) -> bool {
    by_policy || forward_identity == ForwardIdentity::ClientCert
}

/// Can what a trust names be a target of this data plane? Whose a Gateway is follows from its class, which is not known here.
pub fn may_serve(plane: &DataPlane, target: &TargetReference) -> bool {
    let own = plane.kinds.iter().any(|own| own.group == target.group && own.kind == target.kind);
    let gateway = super::GATEWAY;
    own || plane.gateway_controller.is_some()
        && target.group == gateway.group
        && target.kind == gateway.kind
}

/// The context extensions of the question: what the path and the query say where the gate is asked over HTTP.
pub fn context(request: &Request<'_>) -> Value {
    let authorities = request.authorities.join(",");
    let mut context = json!({"mode": request.mode.as_str(), "authorities": authorities});
    if request.by_policy {
        context["trust"] = json!(format!("{}/{}", request.namespace, request.trust));
    }
    context
}

/// What is told where the gate is needed, its URL names no Service, and the data plane takes nothing else.
pub fn homeless(request: &Request<'_>, plane: &str) -> Option<Exposure> {
    if !request.needs_gate() || GateService::of_url(request.gate_url).is_some() {
        return None;
    }
    let message = format!(
        "is served by {plane}, which asks the gate by its Service, and {} is not of the form http://<service>.<namespace>.svc:<port>, so that nobody gets in: set --gate-url of the controller",
        request.gate_url
    );
    Some(Exposure { reason: Reason::NotProgrammed, message })
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::super::{contour, envoy_gateway, traefik};
    use super::*;
    use crate::api::trust::Mode;

    #[test]
    fn a_service_is_found_in_its_url_and_nowhere_else() {
        let service = |port| GateService { namespace: "countersign", name: "gate", port };
        for (url, expected) in [
            ("http://gate.countersign.svc:8081", Some(service(8081))),
            ("http://gate.countersign.svc:8081/", Some(service(8081))),
            ("http://gate.countersign.svc.cluster.local", Some(service(80))),
            ("http://gate.countersign.svc.cluster.local.:81", Some(service(81))),
            ("https://gate.countersign.svc:8081", None),
            ("http://gate.countersign:8081", None),
            ("http://gate.example.com:8081", None),
            ("http://127.0.0.1:8081", None),
            ("http://.countersign.svc:8081", None),
            ("http://gate.countersign.svc:x", None),
        ] {
            assert_eq!(GateService::of_url(url), expected, "{url}");
        }
    }

    #[test]
    fn the_question_names_the_trust_where_a_policy_counts() {
        let request = Request { authorities: vec!["staff", "devices"], ..request(Mode::Optional) };
        let expected = json!({"mode": "Optional", "authorities": "staff,devices"});
        assert_eq!(context(&request), expected);
        let by_policy = context(&Request { by_policy: true, ..request });
        assert_eq!(by_policy["trust"], "shop/clients");
    }

    #[test]
    fn a_target_may_be_served_by_its_kind() {
        let target = |group: &str, kind: &str| TargetReference {
            group: group.into(),
            kind: kind.into(),
            name: "shop".into(),
        };
        let gateway = target("gateway.networking.k8s.io", "Gateway");
        assert!(may_serve(&envoy_gateway::ENVOY_GATEWAY, &gateway));
        assert!(!may_serve(&contour::CONTOUR, &gateway));
        assert!(may_serve(&contour::CONTOUR, &target("projectcontour.io", "HTTPProxy")));
        assert!(!may_serve(&traefik::TRAEFIK, &target("projectcontour.io", "HTTPProxy")));
        assert!(!may_serve(
            &envoy_gateway::ENVOY_GATEWAY,
            &target("networking.istio.io", "Gateway")
        ));
    }
}
