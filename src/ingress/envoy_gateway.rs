//! Envoy Gateway (gateway.envoyproxy.io, 1.8 and later): a ClientTrafficPolicy for Gateways.
//!
//! Envoy Gateway hands `ca.crt` and `ca.crl` of the trust's Secret to Envoy, which refuses the handshake by a TLS
//! alert: `certificate required`, `unknown ca`, `certificate revoked`. With a Secret that is missing, or has one
//! of them empty or an expired CRL, the policy is not accepted, and all routes of the listeners with TLS answer
//! 500; what it thinks of it Envoy Gateway says in the policy's status. The backend is told who it is in
//! `X-Forwarded-Client-Cert`; one that a client sends is dropped. What gets past, by its source at v1.9.1
//! (`internal/gatewayapi/clienttrafficpolicy.go`), and what is done about it:
//! - the policy is about listeners that end TLS. One that speaks plain HTTP, or passes TLS through, asks nobody;
//!   nor is it known what listeners ListenerSets bring along. All are told.
//! - of two policies for one Gateway the older one counts, and one for a listener before that for its Gateway.
//!   Either way the status of ours says so.
//! - without the Secret a listener asks nobody for a certificate, and its routes answer 500; the former is in force
//!   a moment earlier. So `spec.tls.frontend` of the Gateway names the Secret, too: it gives way to the policy, but
//!   when it is broken there is no listener. Its `perPort` would go before it, and is told.
//! - our own policy may get fields from another hand, such as `allowExpiredCertificate`, which is told.
//!
//! Where something needs it, the gate is asked about each request by a SecurityPolicy with `extAuth`; without its answer
//! Envoy refuses with 403, and when the SecurityPolicy can't be taken, with 500 (`internal/gatewayapi/securitypolicy.go`):
//! - the handshake's certificate is not in the question. The gate takes the one in `X-Forwarded-Client-Cert`, which our
//!   ClientTrafficPolicy has Envoy write.
//! - the gate is in another namespace, which a ReferenceGrant there permits: one for each namespace, since one holds 16.
//! - a SecurityPolicy for a listener or a route goes before that for the Gateway, or is merged with it: the status says
//!   so, and it is told.
//! - connections of a TCPRoute are asked about by nobody, so that a listener that may have one is told.

use serde_json::{Value, json};

use super::gate::{self, GateService};
use super::{
    DataPlane, Edit, Exposure, FieldConflict, GATEWAY, Kind, Request, Revocation, annotations,
    gateway, gateway_api, is_anothers, is_of_kind,
};
use crate::api::annotation;
use crate::api::fields::contains;
use crate::api::trust::{Mode, Reason};

const CONTROLLER: &str = "gateway.envoyproxy.io/gatewayclass-controller";

const POLICY: Kind = Kind {
    group: "gateway.envoyproxy.io",
    version: "v1alpha1",
    kind: "ClientTrafficPolicy",
    detach: remove,
};

/// What has the gate asked.
const SECURITY_POLICY: Kind = Kind { kind: "SecurityPolicy", ..POLICY };

/// The row of Envoy Gateway.
pub const ENVOY_GATEWAY: DataPlane = DataPlane {
    name: "Envoy Gateway",
    ingress_controller: None,
    gateway_controller: Some(CONTROLLER),
    kinds: &[POLICY, SECURITY_POLICY],
    revocation: Revocation::ByCrl("ca.crl"),
    asks_gate: true,
    secret: None,
    objects: policies,
    beside_gate: Some(grant),
    attach,
    // A Gateway serves whom its routes name, and asks for certificates on all of its listeners.
    hosts: |_| Vec::new(),
    exposure,
    conflict: |_, _, _, _| None,
};

/// The policies for those Gateways that no other trust has; without any there are none.
fn policies(request: &Request<'_>, targets: &[&Value]) -> Vec<Value> {
    let gateways = targets.iter().filter(|target| is_of_kind(target, &GATEWAY));
    let ours = gateways.filter(|gateway| !is_anothers(request, gateway));
    let name = |gateway: &&Value| json!({"group": GATEWAY.group, "kind": GATEWAY.kind, "name": gateway["metadata"]["name"]});
    let references: Vec<Value> = ours.map(name).collect();
    if references.is_empty() {
        return Vec::new();
    }
    let policy = |kind: &Kind, mut spec: Value| {
        spec["targetRefs"] = json!(references);
        json!({
            "apiVersion": format!("{}/{}", kind.group, kind.version),
            "kind": kind.kind,
            "metadata": {
                "name": request.object_name(),
                "namespace": request.namespace,
                "annotations": {annotation::TRUST: request.trust},
            },
            "spec": spec,
        })
    };
    // What asks the gate first: no request without its question.
    let asking = request.needs_gate().then(|| policy(&SECURITY_POLICY, question(request)));
    asking.into_iter().chain([policy(&POLICY, wanted(request))]).collect()
}

/// How the gate is asked. Where its URL names no Service, one that does not exist: nobody gets in.
fn question(request: &Request<'_>) -> Value {
    let mut context = gate::context(request);
    context["certificate"] = json!("x-forwarded-client-cert");
    let extension = |(name, value)| json!({"name": name, "type": "Value", "value": value});
    let context: Vec<Value> = context.as_object().into_iter().flatten().map(extension).collect();
    let nobody = GateService { namespace: request.namespace, name: gate::NAME, port: 1 };
    let gate = GateService::of_url(request.gate_url).unwrap_or(nobody);
    json!({"extAuth": {
        "failOpen": false,
        "timeout": gate::TIMEOUT,
        "contextExtensions": context,
        "grpc": {"backendRefs": [{
            "group": "",
            "kind": "Service",
            "namespace": gate.namespace,
            "name": gate.name,
            "port": gate.port,
        }]},
    }})
}

/// Permits the SecurityPolicies of a namespace to name the gate.
fn grant(gate: &GateService<'_>, namespace: &str) -> Value {
    let from = json!({"group": SECURITY_POLICY.group, "kind": SECURITY_POLICY.kind, "namespace": namespace});
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1beta1",
        "kind": "ReferenceGrant",
        "metadata": {"name": format!("{}-{namespace}", gate::NAME), "namespace": gate.namespace},
        "spec": {"from": [from], "to": [{"group": "", "kind": "Service", "name": gate.name}]},
    })
}

/// Is the object one that is there to ask the gate, and for nothing else?
pub fn only_asks_gate(object: &Value) -> bool {
    is_of_kind(object, &SECURITY_POLICY)
}

fn wanted(request: &Request<'_>) -> Value {
    let secret = json!({"group": "", "kind": "Secret", "name": request.object_name()});
    let mode = match request.mode {
        Mode::Required => "RequireAndVerify",
        Mode::Optional => "VerifyIfGiven",
    };
    json!({
        "tls": {"clientValidation": {
            "mode": mode,
            "caCertificateRefs": [secret],
            "crl": {"refs": [secret], "onlyVerifyLeafCertificate": false},
        }},
        "headers": {"xForwardedClientCert": {
            "mode": "SanitizeSet",
            "certDetailsToAdd": ["Subject", "URI", "DNS", "Cert"],
        }},
    })
}

/// The Gateway itself gets the mark, and a second lock. When the Secret is lost Envoy Gateway takes the policy's
/// demand for certificates away a moment before it answers 500; for this one it takes the listener away.
fn attach(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    gateway_api::attach(request, target)
}

/// Takes the trust off its Gateways by deleting a policy. The mark alone does not make it ours.
fn remove(trust: &str, policy: &Value) -> Edit {
    let mut owners = policy["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let is_owner = |owner: &Value| {
        owner["controller"] == true && owner["kind"] == "ClientTrust" && owner["name"] == trust
    };
    if !owners.any(is_owner) {
        return Edit::Nothing;
    }
    let version = json!({"resourceVersion": policy["metadata"]["resourceVersion"]});
    Edit::Delete(annotations::applied(policy, version))
}

fn exposure(request: &Request<'_>, target: &Value, objects: &[&Value]) -> Option<Exposure> {
    let ours = |kind: &Kind| {
        objects.iter().copied().find(|object| {
            is_of_kind(object, kind)
                && object["metadata"]["namespace"] == request.namespace
                && object["metadata"]["name"] == request.object_name()
        })
    };
    let (policy, asking) = (ours(&POLICY), ours(&SECURITY_POLICY));
    gateway::unfit(target)
        .or_else(|| gateway_api::per_port(target))
        .or_else(|| stranger(request, &POLICY, policy?))
        .or_else(|| not_taken(target, &POLICY, policy, &wanted(request)))
        .or_else(|| if request.needs_gate() { unasked(request, target, asking) } else { None })
}

/// What keeps the gate from being asked about all requests, or from knowing the answer.
fn unasked(request: &Request<'_>, target: &Value, asking: Option<&Value>) -> Option<Exposure> {
    gate::homeless(request, ENVOY_GATEWAY.name)
        .or_else(|| stream(target))
        .or_else(|| unknown_question(request, asking?))
        .or_else(|| stranger(request, &SECURITY_POLICY, asking?))
        .or_else(|| not_taken(target, &SECURITY_POLICY, asking, &question(request)))
}

/// A listener whose connections may go through a TCPRoute.
fn stream(target: &Value) -> Option<Exposure> {
    let listener = gateway::listeners(target).find(|listener| listener["protocol"] == "TLS")?;
    let message = format!(
        "has a listener {} of protocol TLS, and the gate is asked about requests, not about the connections of a TCPRoute; move it to another Gateway",
        listener["name"]
    );
    Some(Exposure { reason: Reason::Conflict, message })
}

/// What another hand has the gate asked beside what we say: it knows no such question, and refuses.
fn unknown_question(request: &Request<'_>, asking: &Value) -> Option<Exposure> {
    let extensions = |spec: &Value| spec["extAuth"]["contextExtensions"].as_array().cloned();
    let ours = extensions(&question(request))?;
    let present = extensions(&asking["spec"])?;
    let foreign = |one: &&Value| ours.iter().all(|known| known["name"] != one["name"]);
    let name = &present.iter().find(foreign)?["name"];
    let message = format!(
        "has the gate asked what it does not know, so that it lets nobody in: spec.extAuth.contextExtensions[{name}] of SecurityPolicy {:?}; remove it there",
        request.object_name()
    );
    Some(Exposure { reason: Reason::Conflict, message })
}

/// What another hand set beside our fields in a policy of ours.
fn stranger(request: &Request<'_>, kind: &Kind, policy: &Value) -> Option<Exposure> {
    let (wanted, paths): (_, &[&str]) = match kind.kind == POLICY.kind {
        true => (wanted(request), &["tls.clientValidation", "headers.xForwardedClientCert"]),
        false => (question(request), &["extAuth", "extAuth.grpc"]),
    };
    paths.iter().find_map(|path| {
        let at = |value: &Value| path.split('.').fold(value.clone(), |value, key| value[key].clone());
        let (present, ours) = (at(&policy["spec"]), at(&wanted));
        let mut fields = present.as_object()?.keys();
        let foreign = fields.find(|field| ours.get(field).is_none())?;
        let message = format!(
            "is served by what somebody else set, too: spec.{path}.{foreign} of {} {:?}; remove it there",
            kind.kind,
            request.object_name()
        );
        Some(Exposure { reason: Reason::Conflict, message })
    })
}

/// What Envoy Gateway says of a policy at this Gateway, unless it took it as it is wanted.
fn not_taken(
    target: &Value,
    kind: &Kind,
    policy: Option<&Value>,
    wanted: &Value,
) -> Option<Exposure> {
    let kind = kind.kind;
    let waits = || {
        let message = format!("waits for Envoy Gateway to take its {kind}");
        Some(Exposure { reason: Reason::NotProgrammed, message })
    };
    // What was written a moment ago was not seen yet.
    let Some(policy) = policy.filter(|policy| contains(&policy["spec"], wanted)) else {
        return waits();
    };
    let metadata = &target["metadata"];
    let ancestors = || policy["status"]["ancestors"].as_array().into_iter().flatten();
    let here = |ancestor: &&Value| {
        let reference = &ancestor["ancestorRef"];
        ancestor["controllerName"] == CONTROLLER
            && reference["kind"] == GATEWAY.kind
            && reference["name"] == metadata["name"]
            && (reference["namespace"].is_null() || reference["namespace"] == metadata["namespace"])
    };
    let conditions = ancestors().find(here).and_then(|here| here["conditions"].as_array());
    let current = |type_: &str| {
        conditions.into_iter().flatten().find(|condition| {
            condition["type"] == type_
                && condition["observedGeneration"].as_i64()
                    == policy["metadata"]["generation"].as_i64()
        })
    };
    let said = |condition: &Value| condition["message"].as_str().unwrap_or_default().to_owned();
    let name = &policy["metadata"]["name"];
    let Some(accepted) = current("Accepted") else { return waits() };
    if accepted["status"] != "True" {
        let conflicted = accepted["reason"] == "Conflicted";
        let reason = if conflicted { Reason::Conflict } else { Reason::NotProgrammed };
        let said = said(accepted);
        let message = format!("has a {kind} {name} that Envoy Gateway does not accept: {said}");
        return Some(Exposure { reason, message });
    }
    let other = |type_| current(type_).filter(|condition| condition["status"] == "True");
    let other = other("Overridden").or_else(|| other("Merged"))?;
    let message =
        format!("is not served by {kind} {name} alone: {}; remove these policies", said(other));
    Some(Exposure { reason: Reason::Conflict, message })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gated, request};
    use super::super::{attach, detach, serves};
    use super::*;
    use crate::api::trust::TargetReference;

    fn shop() -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "shop", "namespace": "shop", "uid": "u"},
            "spec": {
                "gatewayClassName": "envoy",
                "listeners": [{"name": "https", "protocol": "HTTPS", "port": 443, "tls": {"certificateRefs": [{"name": "t"}]}}],
            },
        })
    }

    /// Our policy as Envoy Gateway took it.
    fn taken() -> Value {
        let mut policy = policies(&request(Mode::Required), &[&shop()]).remove(0);
        policy["metadata"]["generation"] = json!(3);
        policy["metadata"]["resourceVersion"] = json!("7");
        policy["metadata"]["ownerReferences"] =
            json!([{"kind": "ClientTrust", "name": "clients", "controller": true}]);
        policy["status"]["ancestors"] = json!([{
            "ancestorRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "shop", "name": "shop"},
            "controllerName": CONTROLLER,
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "observedGeneration": 3}],
        }]);
        policy
    }

    fn told(target: &Value, policy: &Value) -> Option<Exposure> {
        exposure(&request(Mode::Required), target, &[target, policy])
    }

    #[test]
    fn the_policy_names_the_gateways_and_asks_for_what_the_mode_says() {
        for (mode, expected) in
            [(Mode::Required, "RequireAndVerify"), (Mode::Optional, "VerifyIfGiven")]
        {
            let secret = json!({"group": "", "kind": "Secret", "name": "countersign-clients"});
            let expected = json!({
                "apiVersion": "gateway.envoyproxy.io/v1alpha1",
                "kind": "ClientTrafficPolicy",
                "metadata": {
                    "name": "countersign-clients",
                    "namespace": "shop",
                    "annotations": {annotation::TRUST: "clients"},
                },
                "spec": {
                    "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "shop"}],
                    "tls": {"clientValidation": {
                        "mode": expected,
                        "caCertificateRefs": [secret],
                        "crl": {"refs": [secret], "onlyVerifyLeafCertificate": false},
                    }},
                    "headers": {"xForwardedClientCert": {
                        "mode": "SanitizeSet",
                        "certDetailsToAdd": ["Subject", "URI", "DNS", "Cert"],
                    }},
                },
            });
            let objects = (ENVOY_GATEWAY.objects)(&request(mode), &[&shop()]);
            assert_eq!(objects, [expected]);
        }
    }

    #[test]
    fn a_gateway_of_another_trust_is_in_no_policy() {
        let mut other = shop();
        other["metadata"]["name"] = json!("other");
        other["metadata"]["annotations"] = json!({annotation::TRUST: "others"});
        let objects = (ENVOY_GATEWAY.objects)(&request(Mode::Required), &[&other, &shop()]);
        assert_eq!(objects[0]["spec"]["targetRefs"].as_array().unwrap().len(), 1);
        assert!((ENVOY_GATEWAY.objects)(&request(Mode::Required), &[&other]).is_empty());
        let refused = attach(&ENVOY_GATEWAY, &request(Mode::Required), &other);
        assert_eq!(refused.unwrap_err().value, "others");
    }

    #[test]
    fn the_policy_is_deleted_when_nothing_needs_it_and_only_if_it_is_ours() {
        let Edit::Delete(deleted) = detach("clients", &taken()) else { panic!("kept") };
        assert_eq!(deleted["metadata"]["name"], "countersign-clients");
        assert_eq!(deleted["metadata"]["resourceVersion"], "7");
        let mut copied = taken();
        copied["metadata"]["ownerReferences"] = json!([]);
        assert_eq!(detach("clients", &copied), Edit::Nothing);
        assert_eq!(detach("others", &taken()), Edit::Nothing);

        let target = |group: &str, kind: &str| TargetReference {
            group: group.into(),
            kind: kind.into(),
            name: "any".into(),
        };
        assert!(serves(&taken(), &target("gateway.networking.k8s.io", "Gateway")));
        assert!(!serves(&taken(), &target("networking.k8s.io", "Ingress")));
        assert!(!serves(&shop(), &target("gateway.networking.k8s.io", "Gateway")));
    }

    #[test]
    fn listeners_that_ask_nobody_are_told() {
        assert_eq!(told(&shop(), &taken()), None);
        let listener = |listener: Value| {
            let mut gateway = shop();
            gateway["spec"]["listeners"].as_array_mut().unwrap().push(listener);
            told(&gateway, &taken()).map(|found| found.reason)
        };
        assert_eq!(
            listener(json!({"name": "http", "protocol": "HTTP", "port": 80})),
            Some(Reason::PlainHTTP)
        );
        assert_eq!(
            listener(json!({"name": "tcp", "protocol": "TCP", "port": 80})),
            Some(Reason::PlainHTTP)
        );
        assert_eq!(
            listener(
                json!({"name": "t", "protocol": "TLS", "port": 1, "tls": {"mode": "Passthrough"}})
            ),
            Some(Reason::Conflict)
        );
        assert_eq!(
            listener(
                json!({"name": "t", "protocol": "TLS", "port": 1, "tls": {"mode": "Terminate"}})
            ),
            None
        );
        let mut sets = shop();
        sets["status"]["attachedListenerSets"] = json!(1);
        assert_eq!(told(&sets, &taken()).unwrap().reason, Reason::Conflict);
        let mut ports = shop();
        ports["spec"]["tls"]["frontend"]["perPort"] = json!([{"port": 443, "tls": {}}]);
        assert_eq!(told(&ports, &taken()).unwrap().reason, Reason::Conflict);
    }

    #[test]
    fn what_another_hand_set_in_the_policy_is_told() {
        let mut policy = taken();
        policy["spec"]["tls"]["clientValidation"]["allowExpiredCertificate"] = json!(true);
        let found = told(&shop(), &policy).unwrap();
        assert_eq!(found.reason, Reason::Conflict);
        assert!(found.message.contains("clientValidation.allowExpiredCertificate"));
    }

    #[test]
    fn what_envoy_gateway_has_not_taken_is_not_programmed() {
        let with = |path: &str, value: Value| {
            let mut policy = taken();
            *policy.pointer_mut(path).unwrap() = value;
            told(&shop(), &policy).unwrap()
        };
        let ancestor = "/status/ancestors/0";
        for found in [
            exposure(&request(Mode::Required), &shop(), &[]).unwrap(),
            with("/status/ancestors", json!([])),
            with(&format!("{ancestor}/controllerName"), json!("example.com/other")),
            with(&format!("{ancestor}/ancestorRef/name"), json!("other")),
            with(&format!("{ancestor}/conditions/0/observedGeneration"), json!(2)),
        ] {
            assert_eq!(found.reason, Reason::NotProgrammed);
            assert!(found.message.starts_with("waits for Envoy Gateway"), "{}", found.message);
        }
        let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "so", "observedGeneration": 3});
        let conditions = format!("{ancestor}/conditions");
        for (reason, expected) in
            [("Invalid", Reason::NotProgrammed), ("Conflicted", Reason::Conflict)]
        {
            let found = with(&conditions, json!([condition("Accepted", "False", reason)]));
            assert_eq!(found.reason, expected);
            assert!(found.message.ends_with(": so"));
        }
        let overridden = [
            condition("Accepted", "True", "Accepted"),
            condition("Overridden", "True", "Overridden"),
        ];
        assert_eq!(with(&conditions, json!(overridden)).reason, Reason::Conflict);
    }

    /// Our SecurityPolicy as Envoy Gateway took it.
    fn asking() -> Value {
        let mut asking = policies(&gated(), &[&shop()]).remove(0);
        asking["metadata"]["generation"] = json!(3);
        asking["metadata"]["ownerReferences"] = taken()["metadata"]["ownerReferences"].clone();
        asking["status"] = taken()["status"].clone();
        asking
    }

    #[test]
    fn the_gate_is_asked_where_something_needs_it_by_a_policy_that_comes_first() {
        let policies = policies(&gated(), &[&shop()]);
        let kinds: Vec<_> =
            policies.iter().map(|policy| policy["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["SecurityPolicy", "ClientTrafficPolicy"]);
        let extension =
            |name: &str, value: &str| json!({"name": name, "type": "Value", "value": value});
        let expected = json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "SecurityPolicy",
            "metadata": policies[1]["metadata"],
            "spec": {
                "targetRefs": policies[1]["spec"]["targetRefs"],
                "extAuth": {
                    "failOpen": false,
                    "timeout": "15s",
                    "contextExtensions": [
                        extension("authorities", "staff"),
                        extension("certificate", "x-forwarded-client-cert"),
                        extension("mode", "Required"),
                        extension("trust", "shop/clients"),
                    ],
                    "grpc": {"backendRefs": [{
                        "group": "", "kind": "Service", "namespace": "countersign", "name": "gate", "port": 8081,
                    }]},
                },
            },
        });
        assert_eq!(policies[0], expected);
        assert!(only_asks_gate(&policies[0]) && !only_asks_gate(&policies[1]));
        assert!(matches!(detach("clients", &asking()), Edit::Delete(_)));
    }

    #[test]
    fn each_namespace_is_permitted_to_name_the_gate() {
        let gate = GateService::of_url(gated().gate_url).unwrap();
        let expected = json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1",
            "kind": "ReferenceGrant",
            "metadata": {"name": "countersign-gate-shop", "namespace": "countersign"},
            "spec": {
                "from": [{"group": "gateway.envoyproxy.io", "kind": "SecurityPolicy", "namespace": "shop"}],
                "to": [{"group": "", "kind": "Service", "name": "gate"}],
            },
        });
        assert_eq!(ENVOY_GATEWAY.beside_gate.unwrap()(&gate, "shop"), expected);
    }

    #[test]
    fn what_keeps_the_gate_from_being_asked_is_told() {
        let told = |target: &Value, asking: &Value| {
            exposure(&gated(), target, &[target, &taken(), asking])
        };
        assert_eq!(told(&shop(), &asking()), None);
        // Not taken yet, or not made.
        assert!(
            exposure(&gated(), &shop(), &[&taken()]).unwrap().message.contains("SecurityPolicy")
        );
        let mut old = asking();
        old["metadata"]["generation"] = json!(4);
        assert_eq!(told(&shop(), &old).unwrap().reason, Reason::NotProgrammed);
        assert_eq!(exposure(&request(Mode::Required), &shop(), &[&taken(), &old]), None);
        for type_ in ["Overridden", "Merged"] {
            let mut other = asking();
            let condition =
                json!({"type": type_, "status": "True", "message": "so", "observedGeneration": 3});
            let conditions = &mut other["status"]["ancestors"][0]["conditions"];
            conditions.as_array_mut().unwrap().push(condition);
            let found = told(&shop(), &other).unwrap();
            assert!(found.reason == Reason::Conflict && found.message.contains(": so;"));
        }
        let mut foreign = asking();
        foreign["spec"]["extAuth"]["headersToExtAuth"] = json!(["x"]);
        assert!(told(&shop(), &foreign).unwrap().message.contains("extAuth.headersToExtAuth"));
        let mut unknown = asking();
        let extensions = &mut unknown["spec"]["extAuth"]["contextExtensions"];
        extensions
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "x", "type": "Value", "value": "y"}));
        assert!(told(&shop(), &unknown).unwrap().message.contains("contextExtensions[\"x\"]"));
        // What it took is not what is wanted now.
        let other = Request { mode: Mode::Optional, ..gated() };
        let found = exposure(&other, &shop(), &[&taken(), &asking()]).unwrap();
        assert_eq!(found.reason, Reason::NotProgrammed);
        // Connections that carry no requests.
        let mut tcp = shop();
        tcp["spec"]["listeners"][0]["protocol"] = json!("TLS");
        assert_eq!(told(&tcp, &asking()).unwrap().reason, Reason::Conflict);
        assert_eq!(exposure(&request(Mode::Required), &tcp, &[&taken()]), None);
        let elsewhere = Request { gate_url: "http://gate.example:8081", ..gated() };
        let found = exposure(&elsewhere, &shop(), &[&taken(), &asking()]).unwrap();
        assert!(found.message.contains("--gate-url"));
        let service = &question(&elsewhere)["extAuth"]["grpc"]["backendRefs"][0];
        assert_eq!(
            (&service["namespace"], &service["name"]),
            (&json!("shop"), &json!("countersign-gate"))
        );
    }
}
