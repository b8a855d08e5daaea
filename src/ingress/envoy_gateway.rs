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

use serde_json::{Value, json};

use super::{
    DataPlane, Edit, Exposure, FieldConflict, GATEWAY, Kind, Request, Revocation, annotations,
    gateway, gateway_api, is_anothers, is_of_kind,
};
use crate::api::annotation;
use crate::api::trust::{Mode, Reason};

const CONTROLLER: &str = "gateway.envoyproxy.io/gatewayclass-controller";

const POLICY: Kind = Kind {
    group: "gateway.envoyproxy.io",
    version: "v1alpha1",
    kind: "ClientTrafficPolicy",
    detach: remove,
};

/// The row of Envoy Gateway.
pub const ENVOY_GATEWAY: DataPlane = DataPlane {
    name: "Envoy Gateway",
    ingress_controller: None,
    gateway_controller: Some(CONTROLLER),
    kinds: &[POLICY],
    revocation: Revocation::ByCrl("ca.crl"),
    asks_gate: false,
    secret: None,
    objects: |request, targets| policy(request, targets).into_iter().collect(),
    attach,
    // A Gateway serves whom its routes name, and asks for certificates on all of its listeners.
    hosts: |_| Vec::new(),
    exposure,
    conflict: |_, _, _, _| None,
};

/// The policy for those Gateways that no other trust has; without any there is none.
fn policy(request: &Request<'_>, targets: &[&Value]) -> Option<Value> {
    let gateways = targets.iter().filter(|target| is_of_kind(target, &GATEWAY));
    let ours = gateways.filter(|gateway| !is_anothers(request, gateway));
    let name = |gateway: &&Value| json!({"group": GATEWAY.group, "kind": GATEWAY.kind, "name": gateway["metadata"]["name"]});
    let references: Vec<Value> = ours.map(name).collect();
    (!references.is_empty()).then(|| {
        let mut spec = wanted(request);
        spec["targetRefs"] = json!(references);
        json!({
            "apiVersion": format!("{}/{}", POLICY.group, POLICY.version),
            "kind": POLICY.kind,
            "metadata": {
                "name": request.object_name(),
                "namespace": request.namespace,
                "annotations": {annotation::TRUST: request.trust},
            },
            "spec": spec,
        })
    })
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

/// Takes the trust off its Gateways by deleting the policy. The mark alone does not make it ours.
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
    let ours = objects.iter().copied().find(|object| {
        is_of_kind(object, &POLICY)
            && object["metadata"]["namespace"] == request.namespace
            && object["metadata"]["name"] == request.object_name()
    });
    gateway::unfit(target)
        .or_else(|| gateway_api::per_port(target))
        .or_else(|| stranger(request, ours?))
        .or_else(|| not_taken(target, ours))
}

/// What another hand set beside our fields in the policy.
fn stranger(request: &Request<'_>, policy: &Value) -> Option<Exposure> {
    let wanted = wanted(request);
    let path = ["tls.clientValidation", "headers.xForwardedClientCert"];
    path.into_iter().find_map(|path| {
        let at = |value: &Value| path.split('.').fold(value.clone(), |value, key| value[key].clone());
        let (present, ours) = (at(&policy["spec"]), at(&wanted));
        let mut fields = present.as_object()?.keys();
        let foreign = fields.find(|field| ours.get(field).is_none())?;
        let name = request.object_name();
        let message = format!(
            "is served by what somebody else set, too: spec.{path}.{foreign} of ClientTrafficPolicy {name:?}; remove it there"
        );
        Some(Exposure { reason: Reason::Conflict, message })
    })
}

/// What Envoy Gateway says of the policy at this Gateway, unless it took it as it is.
fn not_taken(target: &Value, policy: Option<&Value>) -> Option<Exposure> {
    let waits = || {
        let message = "waits for Envoy Gateway to take its ClientTrafficPolicy".to_owned();
        Some(Exposure { reason: Reason::NotProgrammed, message })
    };
    let Some(policy) = policy else { return waits() };
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
    match (current("Accepted"), current("Overridden")) {
        (None, _) => waits(),
        (Some(accepted), _) if accepted["status"] != "True" => {
            let conflicted = accepted["reason"] == "Conflicted";
            let reason = if conflicted { Reason::Conflict } else { Reason::NotProgrammed };
            let said = said(accepted);
            Some(Exposure {
                reason,
                message: format!(
                    "has a ClientTrafficPolicy {name} that Envoy Gateway does not accept: {said}"
                ),
            })
        }
        (_, Some(overridden)) if overridden["status"] == "True" => Some(Exposure {
            reason: Reason::Conflict,
            message: format!(
                "has listeners that do not heed ClientTrafficPolicy {name}: {}; remove these policies",
                said(overridden)
            ),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
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
        let mut policy = policy(&request(Mode::Required), &[&shop()]).unwrap();
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
}
