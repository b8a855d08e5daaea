//! Gateways of controllers that take the Gateway API's own field for client certificates, `spec.tls.frontend`
//! (GEP-91, Gateway API 1.5 and later), and nothing better.
//!
//! It names our Secret with `ca.crt`: all of the controllers below take one. Rendered by what their documents and
//! sources say, not run:
//! - NGINX Gateway Fabric (2.6 and later) and kgateway (2.2 and later) have no CRL, nor can they ask the gate: they
//!   let revoked clients in until their certificates expire, which is told.
//! - Istio (1.28 and later) hands `ca.crl` of the same Secret to Envoy.
//! - The field holds for HTTPS listeners, and `perPort` goes before `default`. What it does not hold for is told.
//! - There is no mode for clients that may come without a certificate, but not with a bad one.
//!   `AllowInsecureFallback` lets bad ones in, too. So clients need one in mode `Optional` as well, which is told.

use serde_json::{Value, json};

use super::{DataPlane, Edit, Exposure, FieldConflict, Request, Revocation, annotations, gateway};
use crate::api::annotation;
use crate::api::trust::{Mode, Reason};

/// The row of NGINX Gateway Fabric.
pub const NGINX_GATEWAY_FABRIC: DataPlane = row(
    "NGINX Gateway Fabric",
    "gateway.nginx.org/nginx-gateway-controller",
    Revocation::Unenforced,
);

/// The row of kgateway.
pub const KGATEWAY: DataPlane = row("kgateway", "kgateway.dev/kgateway", Revocation::Unenforced);

/// The row of Istio's Gateways of the Gateway API.
pub const ISTIO_GATEWAY_API: DataPlane =
    row("Istio by Gateway API", "istio.io/gateway-controller", Revocation::ByCrl("ca.crl"));

/// Controllers whose Gateways can't ask for client certificates: `spec.controllerName`, and what to do.
pub const UNABLE: &[(&str, &str)] = &[
    (
        "traefik.io/gateway-controller",
        "Traefik asks for no client certificate at a Gateway; name an Ingress or an IngressRoute of it",
    ),
    (
        "io.cilium/gateway-controller",
        "Cilium asks for no client certificate at a Gateway; put another data plane before it",
    ),
];

const fn row(name: &'static str, controller: &'static str, revocation: Revocation) -> DataPlane {
    DataPlane {
        name,
        ingress_controller: None,
        gateway_controller: Some(controller),
        kinds: &[],
        revocation,
        asks_gate: false,
        secret: None,
        objects: |_, _| Vec::new(),
        beside_gate: None,
        attach,
        hosts: |_| Vec::new(),
        exposure,
        conflict: |_, _, _, _| None,
    }
}

fn wanted(request: &Request<'_>) -> Value {
    let secret = json!({"group": "", "kind": "Secret", "name": request.object_name()});
    json!({"mode": "AllowValidOnly", "caCertificateRefs": [secret]})
}

/// Names our Secret in the Gateway.
pub fn attach(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    if is_attached(request, target) {
        return Ok(Edit::Nothing);
    }
    let mark = json!({"annotations": {annotation::TRUST: request.trust}});
    let mut applied = annotations::applied(target, mark);
    applied["spec"] = json!({"tls": {"frontend": {"default": {"validation": wanted(request)}}}});
    Ok(Edit::Apply(applied))
}

fn is_attached(request: &Request<'_>, target: &Value) -> bool {
    let present = &target["spec"]["tls"]["frontend"]["default"]["validation"];
    annotations::value(target, annotation::TRUST) == Some(request.trust)
        && *present == wanted(request)
}

fn exposure(request: &Request<'_>, target: &Value, _: &[&Value]) -> Option<Exposure> {
    gateway::unfit(target)
        .or_else(|| per_port(target))
        .or_else(|| not_by_frontend(target))
        .or_else(|| not_taken(request, target))
        .or_else(|| inexpressible(request))
}

/// What `spec.tls.frontend.default` does not hold for.
fn not_by_frontend(target: &Value) -> Option<Exposure> {
    let mut listeners = gateway::listeners(target);
    let other = listeners.find(|listener| listener["protocol"] != "HTTPS")?;
    let message = format!(
        "has a listener {} of protocol {}, and spec.tls.frontend is for HTTPS; move the listener to another Gateway",
        other["name"], other["protocol"]
    );
    Some(Exposure { reason: Reason::Conflict, message })
}

/// What goes before `spec.tls.frontend.default`.
pub fn per_port(target: &Value) -> Option<Exposure> {
    let ports = target["spec"]["tls"]["frontend"]["perPort"].as_array();
    let message = "has spec.tls.frontend.perPort set, which goes before what the trust asks for on these ports; remove it";
    let exposure = Exposure { reason: Reason::Conflict, message: message.to_owned() };
    ports.is_some_and(|ports| !ports.is_empty()).then_some(exposure)
}

/// What the controller says of the listeners, unless it took all as they are.
fn not_taken(request: &Request<'_>, target: &Value) -> Option<Exposure> {
    let untaken = |message| Some(Exposure { reason: Reason::NotProgrammed, message });
    let waits = || untaken("waits for its controller to take its configuration".to_owned());
    if !is_attached(request, target) {
        return waits();
    }
    let told = target["status"]["listeners"].as_array().into_iter().flatten();
    let told: Vec<&Value> = told.collect();
    for listener in gateway::listeners(target) {
        let found = told.iter().find(|told| told["name"] == listener["name"]);
        let conditions = found.and_then(|found| found["conditions"].as_array());
        for type_ in ["Accepted", "ResolvedRefs", "Programmed"] {
            let is_current = |condition: &&Value| {
                condition["type"] == type_
                    && condition["observedGeneration"].as_i64()
                        == target["metadata"]["generation"].as_i64()
            };
            match conditions.into_iter().flatten().find(is_current) {
                None => return waits(),
                Some(condition) if condition["status"] == "True" => {}
                Some(condition) => {
                    return untaken(format!(
                        "has a listener {} of which its controller says: {}",
                        listener["name"],
                        condition["message"].as_str().unwrap_or_default()
                    ));
                }
            }
        }
    }
    None
}

fn inexpressible(request: &Request<'_>) -> Option<Exposure> {
    let message = "asks every client for a certificate: the Gateway API can't say spec.mode Optional of the ClientTrust; set Required";
    let exposure = Exposure { reason: Reason::NotProgrammed, message: message.to_owned() };
    (request.mode == Mode::Optional).then_some(exposure)
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::super::{attach, by_gateway_controller, detach};
    use super::*;

    fn gateway() -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "shop", "namespace": "shop", "uid": "u", "generation": 2},
            "spec": {
                "gatewayClassName": "nginx",
                "listeners": [{"name": "https", "protocol": "HTTPS", "port": 443, "tls": {"certificateRefs": [{"name": "t"}]}}],
            },
        })
    }

    /// The Gateway after the trust was put on it and its controller looked at it.
    fn taken() -> Value {
        let mut gateway = gateway();
        gateway["metadata"]["annotations"] = json!({annotation::TRUST: "clients"});
        gateway["spec"]["tls"]["frontend"]["default"]["validation"] =
            wanted(&request(Mode::Required));
        let condition =
            |type_: &str| json!({"type": type_, "status": "True", "observedGeneration": 2});
        gateway["status"]["listeners"] = json!([{
            "name": "https",
            "conditions": [condition("Accepted"), condition("ResolvedRefs"), condition("Programmed")],
        }]);
        gateway
    }

    fn told(mode: Mode, target: &Value) -> Option<Exposure> {
        exposure(&request(mode), target, &[])
    }

    #[test]
    fn a_gateway_gets_our_fields_and_nothing_else_and_loses_them() {
        let expected = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "shop", "namespace": "shop", "uid": "u", "annotations": {annotation::TRUST: "clients"}},
            "spec": {"tls": {"frontend": {"default": {"validation": {
                "mode": "AllowValidOnly",
                "caCertificateRefs": [{"group": "", "kind": "Secret", "name": "countersign-clients"}],
            }}}}},
        });
        // A client without certificate is refused in both modes, and in one of them that is told.
        for mode in [Mode::Required, Mode::Optional] {
            let edit = attach(&NGINX_GATEWAY_FABRIC, &request(mode), &gateway());
            assert_eq!(edit, Ok(Edit::Apply(expected.clone())));
            assert_eq!(attach(&KGATEWAY, &request(mode), &taken()), Ok(Edit::Nothing));
        }
        assert_eq!(told(Mode::Required, &taken()), None);
        assert!(told(Mode::Optional, &taken()).unwrap().message.contains("spec.mode Optional"));
        let Edit::Apply(removed) = detach("clients", &taken()) else { panic!("kept") };
        assert!(removed.get("spec").is_none());
    }

    #[test]
    fn another_hands_value_is_applied_over_without_force() {
        let mut foreign = taken();
        foreign["spec"]["tls"]["frontend"]["default"]["validation"]["mode"] =
            json!("AllowInsecureFallback");
        let edit = attach(&KGATEWAY, &request(Mode::Required), &foreign);
        assert!(matches!(edit, Ok(Edit::Apply(_))));
        assert_eq!(told(Mode::Required, &foreign).unwrap().reason, Reason::NotProgrammed);
    }

    #[test]
    fn what_the_default_does_not_hold_for_is_told() {
        let mut ports = taken();
        ports["spec"]["tls"]["frontend"]["perPort"] = json!([{"port": 443, "tls": {}}]);
        assert_eq!(told(Mode::Required, &ports).unwrap().reason, Reason::Conflict);
        let listener = |protocol: &str| {
            let mut gateway = taken();
            let listener = json!({"name": "other", "protocol": protocol, "port": 1});
            gateway["spec"]["listeners"].as_array_mut().unwrap().push(listener);
            told(Mode::Required, &gateway).unwrap().reason
        };
        assert_eq!(listener("HTTP"), Reason::PlainHTTP);
        assert_eq!(listener("TLS"), Reason::Conflict);
    }

    #[test]
    fn what_the_controller_has_not_taken_is_not_programmed() {
        let condition = |index: usize, field: &str, value: Value| {
            let mut gateway = taken();
            gateway["status"]["listeners"][0]["conditions"][index][field] = value;
            told(Mode::Required, &gateway).unwrap()
        };
        let old = condition(0, "observedGeneration", json!(1));
        assert!(old.message.starts_with("waits for its controller"));
        let refused = condition(1, "status", json!("False"));
        assert!(refused.message.contains("of which its controller says"));
        let mut silent = taken();
        silent["status"] = json!({});
        assert!(told(Mode::Required, &silent).is_some());
    }

    #[test]
    fn who_serves_a_gateway_follows_from_the_name_of_its_controller() {
        for (controller, revocation) in [
            ("gateway.nginx.org/nginx-gateway-controller", Revocation::Unenforced),
            ("kgateway.dev/kgateway", Revocation::Unenforced),
            ("istio.io/gateway-controller", Revocation::ByCrl("ca.crl")),
            ("gateway.envoyproxy.io/gatewayclass-controller", Revocation::ByCrl("ca.crl")),
        ] {
            assert_eq!(by_gateway_controller(controller).unwrap().revocation, revocation);
        }
        for (controller, _) in UNABLE {
            assert!(by_gateway_controller(controller).is_none());
        }
    }
}
