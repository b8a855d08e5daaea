//! Contour (projectcontour.io, 1.22 and later): `spec.virtualhost.tls.clientValidation` of HTTPProxy.
//!
//! Contour hands `ca.crt` and `crl.pem` of the trust's Secret to Envoy, which refuses the handshake by a TLS
//! alert: `certificate required`, `unknown ca`, `certificate revoked`. A Secret that is missing, or has one of
//! them empty, makes the HTTPProxy invalid, and closes its host. Whether it is valid Contour says in its status.
//! The backend is told who it is in `X-Forwarded-Client-Cert`; one that a client sends is dropped. What gets
//! past, by its source at v1.33.8 (`internal/dag/httpproxy_processor.go`), and what is done about it:
//! - client certificates are asked for by the root of a tree of HTTPProxies, the one with a virtualhost and a
//!   `secretName` under `tls`; with `passthrough` Envoy does not see the handshake, and with
//!   `enableFallbackCertificate` Contour refuses to ask. None of these is programmed, and all are told.
//! - the plain port redirects, but for routes with `permitInsecure`, of the root and of all that it includes.
//! - `skipClientCertValidation` is set to false, so that a true one is a conflict.
//!
//! Where something needs it, the gate is asked about each request (`authorization`), with the certificate of the
//! handshake (`internal/envoy/v3/listener.go`, FilterExternalAuthz); without its answer Envoy refuses with 403.
//! - It is found by an ExtensionService in the namespace of its Service. Without that, or with another one, the HTTPProxy
//!   is invalid and nobody is served.
//! - Any route, of the root or of what it includes, can switch the question off (`authPolicy.disabled`), or say something
//!   else in it (`authPolicy.context`, of which the route's counts). Both are told.
//! - With `tcpproxy` it serves a stream, and asks nobody, which is told.
//! - A route that redirects has no context, and the gate refuses.
//! - Envoy lets `Client_Cert` pass, which many backends take for `Client-Cert`: the gate has it removed.

use serde_json::{Value, json};

use super::gate::{self, GateService};
use super::{
    DataPlane, Edit, Exposure, FieldConflict, Kind, Request, Revocation, annotations, name_of,
};
use crate::api::annotation;
use crate::api::fields::contains;
use crate::api::trust::{Mode, Reason};

/// The row of Contour.
pub const CONTOUR: DataPlane = DataPlane {
    name: "Contour",
    // It serves Ingresses, too, and asks none of their clients for a certificate.
    ingress_controller: None,
    gateway_controller: None,
    kinds: &[Kind {
        group: "projectcontour.io",
        version: "v1",
        kind: "HTTPProxy",
        detach: |_, target| annotations::detach(target),
    }],
    revocation: Revocation::ByCrl("crl.pem"),
    asks_gate: true,
    secret: None,
    objects: |_, _| Vec::new(),
    beside_gate: Some(extension_service),
    attach,
    hosts,
    exposure,
    // Two roots with one host are both invalid, and their status names the other.
    conflict: |_, _, _, _| None,
};

/// One for all. It names Services of its own namespace only.
fn extension_service(gate: &GateService<'_>, _: &str) -> Value {
    json!({
        "apiVersion": "projectcontour.io/v1alpha1",
        "kind": "ExtensionService",
        "metadata": {"name": gate::NAME, "namespace": gate.namespace},
        "spec": {"protocol": "h2c", "services": [{"name": gate.name, "port": gate.port}]},
    })
}

fn validation(request: &Request<'_>) -> Value {
    let secret = request.object_name();
    json!({
        "caSecret": secret,
        "crlSecret": secret,
        "crlOnlyVerifyLeafCert": false,
        "skipClientCertValidation": false,
        "optionalClientCertificate": request.mode == Mode::Optional,
        "forwardClientCertificate": {"subject": true, "cert": true, "dns": true, "uri": true},
    })
}

/// How the gate is asked. Contour takes a namespace that is not given for that of the HTTPProxy, where there is none.
fn authorization(request: &Request<'_>) -> Value {
    let gate = GateService::of_url(request.gate_url);
    json!({
        "extensionRef": {
            "apiVersion": "projectcontour.io/v1alpha1",
            "name": gate::NAME,
            "namespace": gate.map_or(request.namespace, |gate| gate.namespace),
        },
        "authPolicy": {"disabled": false, "context": gate::context(request)},
        "failOpen": false,
        "responseTimeout": gate::TIMEOUT,
    })
}

fn attach(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    if unfit(target).is_some() || is_attached(request, target) {
        return Ok(Edit::Nothing);
    }
    let mark = json!({"annotations": {annotation::TRUST: request.trust}});
    let mut applied = annotations::applied(target, mark);
    applied["spec"] = json!({"virtualhost": {"tls": {"clientValidation": validation(request)}}});
    if request.needs_gate() {
        applied["spec"]["virtualhost"]["authorization"] = authorization(request);
    }
    Ok(Edit::Apply(applied))
}

fn is_attached(request: &Request<'_>, target: &Value) -> bool {
    let virtualhost = &target["spec"]["virtualhost"];
    let present = &virtualhost["authorization"];
    annotations::value(target, annotation::TRUST) == Some(request.trust)
        && contains(&virtualhost["tls"]["clientValidation"], &validation(request))
        // It may be left from when it was needed; applying none removes ours, and nobody else's.
        && match request.needs_gate() {
            true => contains(present, &authorization(request)),
            false => present["extensionRef"]["name"] != gate::NAME,
        }
}

fn hosts(object: &Value) -> Vec<String> {
    let host = object["spec"]["virtualhost"]["fqdn"].as_str();
    let own = host.filter(|_| object["kind"] == "HTTPProxy");
    own.map(str::to_lowercase).into_iter().collect()
}

/// Why Contour can't ask the clients of an HTTPProxy for a certificate.
fn unfit(target: &Value) -> Option<Exposure> {
    let virtualhost = &target["spec"]["virtualhost"];
    let tls = &virtualhost["tls"];
    let (reason, message) = if virtualhost.is_null() {
        let message = "has no spec.virtualhost, and client certificates are asked for where one is; name the HTTPProxy that includes it";
        (Reason::HostMissing, message)
    } else if tls["passthrough"] == true {
        let message = "has spec.virtualhost.tls.passthrough set, so that Envoy does not see the certificate; remove it and set secretName";
        (Reason::Conflict, message)
    } else if tls["secretName"].as_str().is_none_or(str::is_empty) {
        let message = "has no spec.virtualhost.tls.secretName, so that it is served over plain HTTP, where nobody is asked for a certificate; set it";
        (Reason::PlainHTTP, message)
    } else if tls["enableFallbackCertificate"] == true {
        let message = "has spec.virtualhost.tls.enableFallbackCertificate set, beside which Contour asks nobody for a certificate; remove it";
        (Reason::Conflict, message)
    } else {
        return None;
    };
    Some(Exposure { reason, message: message.to_owned() })
}

fn exposure(request: &Request<'_>, target: &Value, routes: &[&Value]) -> Option<Exposure> {
    unfit(target)
        .or_else(|| gate::homeless(request, CONTOUR.name))
        .or_else(|| foreign_question(request, target))
        .or_else(|| stream(request, target))
        .or_else(|| past(request, target, routes))
        .or_else(|| not_taken(request, target))
}

/// As a stream of TCP it is served without asking the gate, which is told of requests.
fn stream(request: &Request<'_>, target: &Value) -> Option<Exposure> {
    let stream = request.needs_gate() && !target["spec"]["tcpproxy"].is_null();
    let message = "has spec.tcpproxy set, so that Contour serves a stream, about whose requests the gate is not asked; remove it, or what of the ClientTrust needs the gate";
    stream.then(|| Exposure { reason: Reason::Conflict, message: message.to_owned() })
}

/// What another hand has the gate asked beside what we say: it knows no such question, and refuses.
fn foreign_question(request: &Request<'_>, target: &Value) -> Option<Exposure> {
    let ours = gate::context(request);
    let present = &target["spec"]["virtualhost"]["authorization"]["authPolicy"]["context"];
    let mut keys = present.as_object().filter(|_| request.needs_gate())?.keys();
    let key = keys.find(|key| ours.get(key).is_none())?;
    let message = format!(
        "has spec.virtualhost.authorization.authPolicy.context.{key} set, which the gate does not know, so that it lets nobody in; remove it"
    );
    Some(Exposure { reason: Reason::Conflict, message })
}

/// Routes that are served without TLS, or without asking the gate where it has to be asked, of the target and of what it
/// includes, at whatever depth.
fn past(request: &Request<'_>, target: &Value, routes: &[&Value]) -> Option<Exposure> {
    let exposed = |reason, message| Some(Exposure { reason, message });
    let mut tree = vec![target];
    let mut next = 0;
    while let Some(proxy) = tree.get(next).copied() {
        next += 1;
        for route in proxy["spec"]["routes"].as_array().into_iter().flatten() {
            if route["permitInsecure"] == true {
                let message = format!(
                    "is served over plain HTTP, too, where nobody is asked for a certificate: {} has permitInsecure set in a route; remove it there",
                    name_of(proxy)
                );
                return exposed(Reason::PlainHTTP, message);
            }
            let policy = &route["authPolicy"];
            let context = policy["context"].as_object().is_some_and(|context| !context.is_empty());
            if request.needs_gate() && (policy["disabled"] == true || context) {
                let field = if context { "context" } else { "disabled" };
                let message = format!(
                    "has a route about which the gate is not asked by what this ClientTrust says: {} has authPolicy.{field} set in it; remove it there",
                    name_of(proxy)
                );
                return exposed(Reason::Conflict, message);
            }
        }
        for include in proxy["spec"]["includes"].as_array().into_iter().flatten() {
            let namespace = match include["namespace"].as_str() {
                None | Some("") => proxy["metadata"]["namespace"].as_str(),
                named => named,
            };
            let is_it = |route: &&&Value| {
                let metadata = &route["metadata"];
                metadata["name"] == include["name"] && metadata["namespace"].as_str() == namespace
            };
            let Some(included) = routes.iter().find(is_it) else {
                let message = format!(
                    "includes HTTPProxy {}/{}, which does not exist or is in no namespace that Countersign looks after: what its routes permit is not known",
                    namespace.unwrap_or_default(),
                    include["name"].as_str().unwrap_or_default()
                );
                return exposed(Reason::PlainHTTP, message);
            };
            if tree.iter().all(|known| known["metadata"] != included["metadata"]) {
                tree.push(included);
            }
        }
    }
    None
}

/// What Contour says of the target, unless it took it as it is.
fn not_taken(request: &Request<'_>, target: &Value) -> Option<Exposure> {
    let untaken = |message| Some(Exposure { reason: Reason::NotProgrammed, message });
    let mut conditions = target["status"]["conditions"].as_array().into_iter().flatten();
    let valid = conditions.find(|condition| condition["type"] == "Valid");
    let is_current = |valid: &&Value| {
        valid["observedGeneration"].as_i64() == target["metadata"]["generation"].as_i64()
    };
    match valid.filter(is_current).filter(|_| is_attached(request, target)) {
        None => untaken("waits for Contour to take its configuration".to_owned()),
        Some(valid) if valid["status"] == "True" => None,
        Some(valid) => {
            let errors = valid["errors"].as_array().into_iter().flatten();
            let errors = errors.filter_map(|error| error["message"].as_str());
            let mut said = errors.collect::<Vec<_>>().join("; ");
            if said.is_empty() {
                said = valid["message"].as_str().unwrap_or_default().to_owned();
            }
            untaken(format!("is invalid, so that Contour serves nobody there: {said}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gated, request};
    use super::super::{attach, detach};
    use super::*;

    fn proxy() -> Value {
        json!({
            "apiVersion": "projectcontour.io/v1",
            "kind": "HTTPProxy",
            "metadata": {"name": "shop", "namespace": "shop", "uid": "u", "generation": 3, "annotations": {"mine": "1"}},
            "spec": {
                "virtualhost": {"fqdn": "Shop.example.com", "tls": {"secretName": "shop-tls"}},
                "routes": [{"services": [{"name": "shop", "port": 80}]}],
            },
        })
    }

    /// The proxy as it stands after the trust was put on it and Contour looked at it.
    fn taken(mode: Mode) -> Value {
        let mut proxy = proxy();
        let Ok(Edit::Apply(applied)) = attach(&CONTOUR, &request(mode), &proxy) else {
            panic!("not applied")
        };
        let fields = &applied["spec"]["virtualhost"]["tls"]["clientValidation"];
        proxy["spec"]["virtualhost"]["tls"]["clientValidation"] = fields.clone();
        proxy["metadata"]["annotations"][annotation::TRUST] = json!("clients");
        proxy["status"]["conditions"] =
            json!([{"type": "Valid", "status": "True", "observedGeneration": 3}]);
        proxy
    }

    fn exposed(target: &Value, routes: &[&Value]) -> Option<Reason> {
        exposure(&request(Mode::Required), target, routes).map(|found| found.reason)
    }

    #[test]
    fn a_proxy_gets_our_fields_and_nothing_else() {
        for (mode, optional) in [(Mode::Required, false), (Mode::Optional, true)] {
            let applied = attach(&CONTOUR, &request(mode), &proxy());
            let expected = json!({
                "apiVersion": "projectcontour.io/v1",
                "kind": "HTTPProxy",
                "metadata": {"name": "shop", "namespace": "shop", "uid": "u", "annotations": {annotation::TRUST: "clients"}},
                "spec": {"virtualhost": {"tls": {"clientValidation": {
                    "caSecret": "countersign-clients",
                    "crlSecret": "countersign-clients",
                    "crlOnlyVerifyLeafCert": false,
                    "skipClientCertValidation": false,
                    "optionalClientCertificate": optional,
                    "forwardClientCertificate": {"subject": true, "cert": true, "dns": true, "uri": true},
                }}}},
            });
            assert_eq!(applied, Ok(Edit::Apply(expected)));
            assert_eq!(attach(&CONTOUR, &request(mode), &taken(mode)), Ok(Edit::Nothing));
        }
        let other_mode = attach(&CONTOUR, &request(Mode::Optional), &taken(Mode::Required));
        assert!(matches!(other_mode, Ok(Edit::Apply(_))));
    }

    #[test]
    fn what_the_user_forwards_beside_it_is_no_difference() {
        let mut proxy = taken(Mode::Required);
        let validation = &mut proxy["spec"]["virtualhost"]["tls"]["clientValidation"];
        validation["forwardClientCertificate"]["chain"] = json!(true);
        assert_eq!(attach(&CONTOUR, &request(Mode::Required), &proxy), Ok(Edit::Nothing));
        let validation = &mut proxy["spec"]["virtualhost"]["tls"]["clientValidation"];
        validation["crlOnlyVerifyLeafCert"] = json!(true);
        let edit = attach(&CONTOUR, &request(Mode::Required), &proxy);
        assert!(matches!(edit, Ok(Edit::Apply(_))));
    }

    /// The proxy as it stands when the gate is asked.
    fn asking() -> Value {
        let mut proxy = taken(Mode::Required);
        proxy["spec"]["virtualhost"]["authorization"] = authorization(&gated());
        proxy
    }

    #[test]
    fn the_gate_is_asked_where_something_needs_it() {
        let edit = attach(&CONTOUR, &gated(), &taken(Mode::Required));
        let Ok(Edit::Apply(applied)) = edit else { panic!("{edit:?}") };
        let expected = json!({
            "extensionRef": {"apiVersion": "projectcontour.io/v1alpha1", "name": "countersign-gate", "namespace": "countersign"},
            "authPolicy": {
                "disabled": false,
                "context": {"mode": "Required", "authorities": "staff", "trust": "shop/clients"},
            },
            "failOpen": false,
            "responseTimeout": "15s",
        });
        assert_eq!(applied["spec"]["virtualhost"]["authorization"], expected);
        assert!(!applied["spec"]["virtualhost"]["tls"]["clientValidation"].is_null());
        assert_eq!(attach(&CONTOUR, &gated(), &asking()), Ok(Edit::Nothing));
        // It stays away from the other hand's, and takes its own away.
        let edit = attach(&CONTOUR, &request(Mode::Required), &asking());
        let Ok(Edit::Apply(applied)) = edit else { panic!("{edit:?}") };
        assert!(applied["spec"]["virtualhost"].get("authorization").is_none());
        let mut foreign = taken(Mode::Required);
        foreign["spec"]["virtualhost"]["authorization"] =
            json!({"extensionRef": {"name": "theirs"}, "failOpen": true});
        assert_eq!(attach(&CONTOUR, &request(Mode::Required), &foreign), Ok(Edit::Nothing));
        assert!(matches!(attach(&CONTOUR, &gated(), &foreign), Ok(Edit::Apply(_))));
        let mut open = asking();
        open["spec"]["virtualhost"]["authorization"]["failOpen"] = json!(true);
        assert!(matches!(attach(&CONTOUR, &gated(), &open), Ok(Edit::Apply(_))));
    }

    #[test]
    fn the_gate_is_found_by_its_service() {
        let gate = GateService::of_url(gated().gate_url).unwrap();
        let service = CONTOUR.beside_gate.unwrap()(&gate, "shop");
        let expected = json!({
            "apiVersion": "projectcontour.io/v1alpha1",
            "kind": "ExtensionService",
            "metadata": {"name": "countersign-gate", "namespace": "countersign"},
            "spec": {"protocol": "h2c", "services": [{"name": "gate", "port": 8081}]},
        });
        assert_eq!(service, expected);
        let elsewhere = Request { gate_url: "http://gate.example:8081", ..gated() };
        let told = exposure(&elsewhere, &asking(), &[]).unwrap();
        assert!(told.reason == Reason::NotProgrammed && told.message.contains("--gate-url"));
        // Which nothing asks for there.
        assert_eq!(exposed(&taken(Mode::Required), &[]), None);
    }

    #[test]
    fn routes_about_which_the_gate_is_not_asked_are_told_at_whatever_depth() {
        let told = |target: &Value, routes: &[&Value]| exposure(&gated(), target, routes);
        assert_eq!(told(&asking(), &[]), None);
        let with = |policy: Value| json!({"services": [], "authPolicy": policy});
        for (policy, open) in [
            (json!({"disabled": false}), false),
            (json!({"context": {}}), false),
            (json!({"disabled": true}), true),
            (json!({"context": {"mode": "Optional"}}), true),
        ] {
            let mut root = asking();
            root["spec"]["routes"] = json!([with(policy.clone())]);
            let found = told(&root, &[]).map(|found| found.reason);
            assert_eq!(found, open.then_some(Reason::Conflict), "{policy}");
            let mut root = asking();
            root["spec"]["includes"] = json!([{"name": "part"}]);
            let part = json!({
                "kind": "HTTPProxy", "metadata": {"name": "part", "namespace": "shop"},
                "spec": {"routes": [with(policy.clone())]},
            });
            let found = told(&root, &[&root, &part]).map(|found| found.reason);
            assert_eq!(found, open.then_some(Reason::Conflict), "{policy}");
            // Nobody minds where the gate is not needed.
            root["spec"]["virtualhost"]["authorization"] = json!(null);
            assert_eq!(exposed(&root, &[&root, &part]), None);
        }
        let mut stream = asking();
        stream["spec"]["tcpproxy"] = json!({"services": []});
        assert_eq!(told(&stream, &[]).unwrap().reason, Reason::Conflict);
        assert_eq!(exposed(&stream, &[]), Some(Reason::NotProgrammed), "it still asks");
        let mut foreign = asking();
        foreign["spec"]["virtualhost"]["authorization"]["authPolicy"]["context"]["x"] = json!("y");
        assert!(told(&foreign, &[]).unwrap().message.contains("authPolicy.context.x"));
    }

    #[test]
    fn detaching_applies_none_of_our_fields() {
        let Edit::Apply(removed) = detach("clients", &taken(Mode::Required)) else {
            panic!("kept")
        };
        assert!(removed.get("spec").is_none() && removed["metadata"].get("annotations").is_none());
        assert_eq!(removed["metadata"]["uid"], "u");
        assert_eq!(detach("another", &taken(Mode::Required)), Edit::Nothing);
        assert_eq!(detach("clients", &proxy()), Edit::Nothing);
    }

    #[test]
    fn a_second_trust_on_a_proxy_is_a_conflict() {
        let other = Request { trust: "others", ..request(Mode::Required) };
        let error = attach(&CONTOUR, &other, &taken(Mode::Required)).unwrap_err();
        assert_eq!(error.value, "clients");
    }

    #[test]
    fn a_proxy_whose_clients_contour_would_not_ask_is_left_alone_and_told() {
        let tls = |tls: Value| {
            let mut proxy = proxy();
            proxy["spec"]["virtualhost"]["tls"] = tls;
            proxy
        };
        let mut included = proxy();
        included["spec"].as_object_mut().unwrap().remove("virtualhost");
        for (target, reason) in [
            (included, Reason::HostMissing),
            (tls(json!(null)), Reason::PlainHTTP),
            (tls(json!({"secretName": ""})), Reason::PlainHTTP),
            (tls(json!({"passthrough": true})), Reason::Conflict),
            (tls(json!({"secretName": "s", "enableFallbackCertificate": true})), Reason::Conflict),
        ] {
            let edit = attach(&CONTOUR, &request(Mode::Required), &target);
            assert_eq!(edit, Ok(Edit::Nothing), "{target}");
            assert_eq!(exposed(&target, &[]), Some(reason), "{target}");
        }
    }

    #[test]
    fn routes_that_permit_plain_http_are_told_at_whatever_depth() {
        let mut root = taken(Mode::Required);
        assert_eq!(exposed(&root, &[]), None);
        root["spec"]["includes"] = json!([{"name": "child", "namespace": "other"}]);
        assert_eq!(exposed(&root, &[]), Some(Reason::PlainHTTP), "it is not known");
        let part = |name: &str, spec: Value| json!({"kind": "HTTPProxy", "metadata": {"name": name, "namespace": "other"}, "spec": spec});
        // A loop is an error of the user's; Contour says so.
        let child = part("child", json!({"includes": [{"name": "grandchild"}, {"name": "child"}]}));
        for (insecure, expected) in [(false, None), (true, Some(Reason::PlainHTTP))] {
            let leaf = part("grandchild", json!({"routes": [{"permitInsecure": insecure}]}));
            assert_eq!(exposed(&root, &[&root, &child, &leaf]), expected);
        }
        root["spec"]["routes"][0]["permitInsecure"] = json!(true);
        assert_eq!(exposed(&root, &[]), Some(Reason::PlainHTTP));
    }

    #[test]
    fn what_contour_has_not_taken_is_not_programmed() {
        let told = |target: &Value| exposure(&request(Mode::Required), target, &[]);
        let status = |condition: Value| {
            let mut proxy = taken(Mode::Required);
            proxy["status"]["conditions"] = json!([condition]);
            told(&proxy)
        };
        assert_eq!(told(&taken(Mode::Required)), None);
        // It was valid before the trust was put on it.
        let mut before = taken(Mode::Required);
        before["spec"]["virtualhost"]["tls"]["clientValidation"] = json!(null);
        for found in [
            told(&before),
            status(json!({"type": "Valid", "status": "True", "observedGeneration": 2})),
            status(json!({"type": "Other", "status": "True", "observedGeneration": 3})),
        ] {
            assert!(found.unwrap().message.starts_with("waits for Contour"));
        }
        let found = status(json!({
            "type": "Valid", "status": "False", "observedGeneration": 3, "message": "see Errors",
            "errors": [{"type": "VirtualHostError", "message": "fqdn is used in multiple HTTPProxies"}],
        }));
        assert!(found.unwrap().message.ends_with(": fqdn is used in multiple HTTPProxies"));
    }

    #[test]
    fn the_host_of_a_proxy_is_compared_in_lower_case() {
        assert_eq!(hosts(&proxy()), ["shop.example.com"]);
        assert!(hosts(&json!({"kind": "Ingress"})).is_empty());
    }
}
