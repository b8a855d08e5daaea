//! Traefik 3: `TLSOption` and `Middleware` (traefik.io/v1alpha1), attached to Ingress by annotation
//! and to IngressRoute by its own fields.
//!
//! Traefik has no CRL support (traefik/traefik#3433), so revocation is enforced by the gate. It also
//! serves without client authentication in several misconfigurations; each is closed here:
//! - `clientAuthType` is always set, so that a missing CA Secret closes the host instead of opening it;
//! - the TLSOption is never called `default`, which would make it global;
//! - headers that a client forges are removed before Traefik and the gate set them;
//! - where Traefik asks the gate by a certificate, both come from one Secret, without which the route is closed;
//! - the gate refuses a request that carries no certificate, also when Traefik chose other TLS
//!   options for the host (two routes of one host with different options).

use serde_json::{Value, json};

use super::{
    DataPlane, Edit, Exposure, FieldConflict, Kind, Request, Revocation, annotations, caller_name,
    name_of, object_name,
};
use crate::api::annotation;
use crate::api::trust::{ForwardIdentity, Mode, Reason};

/// The row of Traefik.
pub const TRAEFIK: DataPlane = DataPlane {
    name: "Traefik",
    ingress_controller: Some("traefik.io/ingress-controller"),
    gateway_controller: None,
    kinds: &[Kind { group: GROUP, version: VERSION, kind: "IngressRoute", detach }],
    revocation: Revocation::ViaGate,
    asks_gate: true,
    secret: None,
    objects: |request, _| objects(request),
    beside_gate: None,
    attach,
    hosts,
    exposure,
    conflict,
};

/// API group of Traefik's kinds.
pub const GROUP: &str = "traefik.io";
/// Their version.
pub const VERSION: &str = "v1alpha1";
/// The header in which Traefik forwards the client's certificate.
pub const CERTIFICATE_HEADER: &str = "X-Forwarded-Tls-Client-Cert";
const INFO_HEADER: &str = "X-Forwarded-Tls-Client-Cert-Info";
/// The headers of RFC 9440: they are the proxy's to set, so that a backend may believe them, whoever it is behind.
const CLIENT_CERT: &str = "Client-Cert";
const CLIENT_CERT_CHAIN: &str = "Client-Cert-Chain";
/// It carries the password, which only the gate needs.
const AUTHORIZATION: &str = "Authorization";

/// The common name of callers: what an authority allows them.
const CALLER: &str = "countersign-gate-caller";

const TLS: &str = "traefik.ingress.kubernetes.io/router.tls";
const TLS_OPTIONS: &str = "traefik.ingress.kubernetes.io/router.tls.options";
const MIDDLEWARES: &str = "traefik.ingress.kubernetes.io/router.middlewares";
/// Says that `spec.tls` of an IngressRoute is ours as a whole.
const ADDED_TLS: &str = "countersign.dev/added-tls";

fn objects(request: &Request<'_>) -> Vec<Value> {
    let name = request.object_name();
    let client_auth = match request.mode {
        Mode::Required => "RequireAndVerifyClientCert",
        Mode::Optional => "VerifyClientCertIfGiven",
    };
    let middleware = |suffix: &str, spec: Value| {
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "Middleware",
            "metadata": {"name": format!("{name}{suffix}"), "namespace": request.namespace},
            "spec": spec,
        })
    };
    let mut objects: Vec<Value> = caller(request).into_iter().collect();
    objects.extend([
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "TLSOption",
            "metadata": {"name": name, "namespace": request.namespace},
            "spec": {
                "clientAuth": {"secretNames": [name], "clientAuthType": client_auth},
                "minVersion": "VersionTLS12",
            },
        }),
        middleware(
            "-strip",
            json!({
                "headers": {"customRequestHeaders": {
                    CERTIFICATE_HEADER: "",
                    INFO_HEADER: "",
                    CLIENT_CERT: "",
                    CLIENT_CERT_CHAIN: "",
                }},
            }),
        ),
        middleware(
            "-certificate",
            json!({
                "passTLSClientCert": {
                    "pem": true,
                    "info": {
                        "subject": {"commonName": true, "organization": true, "organizationalUnit": true},
                        "issuer": {"commonName": true},
                        "sans": true,
                        "serialNumber": true,
                        "notAfter": true,
                    },
                },
            }),
        ),
        middleware("-gate", json!({"forwardAuth": forward_auth(request)})),
        middleware(
            "",
            json!({
                "chain": {"middlewares": [
                    {"name": format!("{name}-strip")},
                    {"name": format!("{name}-certificate")},
                    {"name": format!("{name}-gate")},
                ]},
            }),
        ),
    ]);
    objects
}

/// The identity as which Traefik asks the gate.
fn caller(request: &Request<'_>) -> Option<Value> {
    let name = caller_name(request.trust);
    request.gate_tls.map(|gate| {
        json!({
            "apiVersion": "countersign.dev/v1alpha1",
            "kind": "ClientIdentity",
            "metadata": {"name": name, "namespace": request.namespace},
            "spec": {
                "authorityRef": {"name": gate.callers},
                "commonName": CALLER,
                "secretName": name,
            },
        })
    })
}

fn forward_auth(request: &Request<'_>) -> Value {
    let mut forward_auth = json!({
        "address": request.gate_address("traefik"),
        // Without it Traefik deletes every X-Forwarded header before it asks the gate.
        "trustForwardHeader": true,
        "authRequestHeaders": [CERTIFICATE_HEADER],
    });
    // Traefik replaces the request's header by the gate's, and removes it where the gate sends none.
    let mut replaced = Vec::new();
    if request.forward_identity == ForwardIdentity::ClientCert {
        replaced.push(CLIENT_CERT);
    }
    if request.second_factor {
        forward_auth["authRequestHeaders"] = json!([CERTIFICATE_HEADER, AUTHORIZATION]);
        replaced.push(AUTHORIZATION);
    }
    if !replaced.is_empty() {
        forward_auth["authResponseHeaders"] = json!(replaced);
    }
    if let Some(gate) = request.gate_tls {
        // `ca.crt`, by which the gate is verified, and `tls.crt` and `tls.key` of the caller.
        let secret = caller_name(request.trust);
        forward_auth["address"] = json!(request.gate_address_at(gate.url, "traefik"));
        forward_auth["tls"] = json!({"caSecret": secret, "certSecret": secret});
    }
    forward_auth
}

fn attach(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    if target["kind"] != "Ingress" {
        return attach_ingress_route(request, target);
    }
    let reference = reference(request.namespace, &request.object_name());
    let wanted = json!({TLS: "true", TLS_OPTIONS: reference, MIDDLEWARES: reference});
    Ok(annotations::attach(request, target, wanted))
}

/// An object of Traefik's kinds as annotations name it.
fn reference(namespace: &str, name: &str) -> String {
    format!("{namespace}-{name}@kubernetescrd")
}

fn attach_ingress_route(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    let name = request.object_name();
    let options = json!({"name": name, "namespace": request.namespace});
    let mut edited = target.clone();

    if !edited["spec"]["tls"].is_object() {
        edited["spec"]["tls"] = json!({});
        edited["metadata"]["annotations"][ADDED_TLS] = json!("true");
    }
    let present = &edited["spec"]["tls"]["options"];
    let ours = present["name"] == options["name"];
    if !present.is_null() && !ours {
        let value = present["name"].as_str().unwrap_or_default().to_owned();
        return Err(FieldConflict { field: "spec.tls.options.name".to_owned(), value });
    }
    edited["spec"]["tls"]["options"] = options;
    for route in edited["spec"]["routes"].as_array_mut().into_iter().flatten() {
        let mut middlewares = others(route, &name);
        // First, so that nothing of the user's acts on a request that will be refused.
        middlewares.insert(0, json!({"name": name}));
        route["middlewares"] = Value::Array(middlewares);
    }
    edited["metadata"]["annotations"][annotation::TRUST] = json!(request.trust);
    Ok(if edited == *target { Edit::Nothing } else { Edit::Replace(edited) })
}

/// The middlewares of a route that are not ours.
fn others(route: &Value, ours: &str) -> Vec<Value> {
    let middlewares = route["middlewares"].as_array().into_iter().flatten();
    middlewares.filter(|middleware| middleware["name"] != ours).cloned().collect()
}

fn detach(trust: &str, target: &Value) -> Edit {
    let name = object_name(trust);
    let mut edited = target.clone();
    let added = edited["metadata"]["annotations"][ADDED_TLS] == "true";
    if let Some(annotations) = edited["metadata"]["annotations"].as_object_mut() {
        annotations.remove(annotation::TRUST);
        annotations.remove(ADDED_TLS);
    }
    if edited["spec"]["tls"]["options"]["name"] == name {
        edited["spec"]["tls"].as_object_mut().map(|tls| tls.remove("options"));
    }
    if added && edited["spec"]["tls"] == json!({}) {
        edited["spec"].as_object_mut().map(|spec| spec.remove("tls"));
    }
    for route in edited["spec"]["routes"].as_array_mut().into_iter().flatten() {
        let middlewares = others(route, &name);
        if middlewares.is_empty() {
            route.as_object_mut().map(|route| route.remove("middlewares"));
        } else {
            route["middlewares"] = Value::Array(middlewares);
        }
    }
    Edit::Replace(edited)
}

/// The hosts that a route serves.
fn hosts(object: &Value) -> Vec<String> {
    if object["kind"] == "Ingress" {
        return annotations::rule_hosts(object).map(str::to_owned).collect();
    }
    let routes = object["spec"]["routes"].as_array().into_iter().flatten();
    routes.filter_map(|route| route["match"].as_str()).flat_map(hosts_of_rule).collect()
}

/// The TLS options of a route, as annotations name them; empty when it has none.
fn options(object: &Value) -> String {
    if object["kind"] == "Ingress" {
        return annotations::value(object, TLS_OPTIONS).unwrap_or_default().to_owned();
    }
    let options = &object["spec"]["tls"]["options"];
    let namespace = options["namespace"].as_str().or(object["metadata"]["namespace"].as_str());
    let name = options["name"].as_str().filter(|name| !name.is_empty());
    name.map(|name| reference(namespace.unwrap_or_default(), name)).unwrap_or_default()
}

/// Traefik chooses TLS options by the host that the client names in the handshake; a rule without one gets
/// its default options, which ask nobody for a certificate.
/// And without the Secret of its caller's identity it can't ask the gate, and serves nobody.
fn exposure(request: &Request<'_>, object: &Value, _: &[&Value]) -> Option<Exposure> {
    if !names_its_hosts(object) {
        return Some(Exposure {
            reason: Reason::HostMissing,
            message: "has a rule without an exact host: Traefik then asks nobody for a certificate; give every rule its host".to_owned(),
        });
    }
    let why = request.gate_tls?.waits?;
    let identity = caller_name(request.trust);
    Some(Exposure {
        reason: Reason::NotProgrammed,
        message: format!(
            "waits for ClientIdentity {identity:?}, by whose certificate Traefik asks the gate: {why}"
        ),
    })
}

/// Does every rule of a route name its hosts one by one?
fn names_its_hosts(object: &Value) -> bool {
    if object["kind"] == "Ingress" {
        return annotations::names_its_hosts(object);
    }
    let named =
        |route: &Value| route["match"].as_str().is_some_and(|rule| !hosts_of_rule(rule).is_empty());
    let routes = object["spec"]["routes"].as_array();
    routes.is_some_and(|routes| !routes.is_empty() && routes.iter().all(named))
}

/// Another route of the same host with other TLS options: Traefik then applies its default options to
/// the whole host, asks nobody for a certificate, and the gate refuses everybody.
fn conflict(request: &Request<'_>, host: &str, target: &Value, other: &Value) -> Option<String> {
    let ours = reference(request.namespace, &request.object_name());
    (options(other) != ours).then(|| {
        format!(
            "{} serves host {host:?} with other TLS options than {}: Traefik then asks no client of the host for a certificate, and all are refused; give both the same options",
            name_of(other),
            name_of(target)
        )
    })
}

/// The arguments of each ``Host(`a`, `b`)`` in a rule.
fn hosts_of_rule(rule: &str) -> Vec<String> {
    let arguments = rule.split("Host(").skip(1).filter_map(|rest| rest.split(')').next());
    arguments
        .flat_map(|list| list.split(','))
        .map(|host| host.trim().trim_matches(['`', '"']).to_lowercase())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::GateTls;
    use super::super::tests::request as of_trust;
    use super::*;

    fn request() -> Request<'static> {
        Request { authorities: vec!["staff", "devices"], ..of_trust(Mode::Required) }
    }

    fn ingress_route() -> Value {
        json!({
            "apiVersion": "traefik.io/v1alpha1",
            "kind": "IngressRoute",
            "metadata": {"name": "shop", "namespace": "shop", "resourceVersion": "7"},
            "spec": {
                "entryPoints": ["websecure"],
                "routes": [
                    {"match": "Host(`shop.example.com`, `www.example.com`) && PathPrefix(`/a`)", "kind": "Rule"},
                    {"match": "Host(`api.example.com`)", "kind": "Rule", "middlewares": [{"name": "mine"}]},
                ],
            },
        })
    }

    #[test]
    fn the_gate_is_told_the_password_and_the_backend_is_not() {
        let gate = |request: Request<'_>| {
            let objects = objects(&request);
            let gate = objects.into_iter().find(|o| !o["spec"]["forwardAuth"].is_null());
            gate.unwrap()["spec"]["forwardAuth"].take()
        };
        let native = gate(Request { second_factor: true, ..request() });
        let asked = json!(["X-Forwarded-Tls-Client-Cert", "Authorization"]);
        assert_eq!(native["authRequestHeaders"], asked);
        assert_eq!(native["authResponseHeaders"], json!(["Authorization"]));
        let forward_identity = ForwardIdentity::ClientCert;
        let told = gate(Request { second_factor: true, forward_identity, ..request() });
        assert_eq!(told["authResponseHeaders"], json!(["Client-Cert", "Authorization"]));
        let without = gate(request());
        assert_eq!(without["authRequestHeaders"], json!(["X-Forwarded-Tls-Client-Cert"]));
    }

    #[test]
    fn a_trust_with_a_policy_is_named_to_the_gate() {
        let objects = objects(&Request { by_policy: true, ..request() });
        let gate = objects.iter().find(|o| !o["spec"]["forwardAuth"].is_null()).unwrap();
        assert_eq!(
            gate["spec"]["forwardAuth"]["address"],
            "http://gate.example:8081/gate/traefik?trust=shop/clients&mode=Required&authority=staff&authority=devices"
        );
    }

    #[test]
    fn the_gate_is_asked_by_the_certificate_of_an_identity_where_it_knows_its_callers() {
        let gate = GateTls { url: "https://gate.example:8444", callers: "callers", waits: None };
        let request = Request { gate_tls: Some(gate), ..request() };
        let objects = objects(&request);
        let identity = objects.iter().find(|object| object["kind"] == "ClientIdentity").unwrap();
        assert_eq!(identity["spec"]["authorityRef"]["name"], "callers");
        assert_eq!(identity["spec"]["secretName"], "countersign-clients-gate");
        let middleware = objects.iter().find(|o| !o["spec"]["forwardAuth"].is_null());
        let asked = &middleware.unwrap()["spec"]["forwardAuth"];
        assert_eq!(
            asked["address"],
            "https://gate.example:8444/gate/traefik?mode=Required&authority=staff&authority=devices"
        );
        let secret = &identity["spec"]["secretName"];
        assert_eq!(asked["tls"], json!({"caSecret": secret, "certSecret": secret}));

        let told = |waits| {
            let request = Request { gate_tls: Some(GateTls { waits, ..gate }), ..request.clone() };
            exposure(&request, &ingress_route(), &[])
        };
        assert_eq!(told(None), None);
        let told = told(Some("it is revoked")).unwrap();
        assert_eq!(told.reason, Reason::NotProgrammed);
        assert!(told.message.contains("countersign-clients-gate"), "{}", told.message);
        assert!(told.message.ends_with("it is revoked"), "{}", told.message);
    }

    #[test]
    fn client_authentication_is_never_left_to_a_default() {
        for (mode, expected) in [
            (Mode::Required, "RequireAndVerifyClientCert"),
            (Mode::Optional, "VerifyClientCertIfGiven"),
        ] {
            let objects = objects(&Request { mode, trust: "default", ..request() });
            let options = objects.iter().find(|object| object["kind"] == "TLSOption").unwrap();
            assert_eq!(options["spec"]["clientAuth"]["clientAuthType"], expected);
            assert_eq!(options["metadata"]["name"], "countersign-default");
        }
    }

    #[test]
    fn the_gate_comes_after_the_certificate_and_that_after_the_strip() {
        let objects = objects(&request());
        let chain = objects.iter().find(|object| !object["spec"]["chain"].is_null()).unwrap();
        let names: Vec<_> = chain["spec"]["chain"]["middlewares"]
            .as_array()
            .unwrap()
            .iter()
            .map(|middleware| middleware["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "countersign-clients-strip",
                "countersign-clients-certificate",
                "countersign-clients-gate"
            ]
        );
        let gate = objects.iter().find(|o| !o["spec"]["forwardAuth"].is_null()).unwrap();
        assert_eq!(
            gate["spec"]["forwardAuth"]["address"],
            "http://gate.example:8081/gate/traefik?mode=Required&authority=staff&authority=devices"
        );
        assert_eq!(gate["spec"]["forwardAuth"]["trustForwardHeader"], true);
    }

    #[test]
    fn client_cert_is_removed_from_every_request_and_comes_from_the_gate_alone() {
        for mode in [Mode::Required, Mode::Optional] {
            for (forward_identity, expected) in [
                (ForwardIdentity::Native, Value::Null),
                (ForwardIdentity::ClientCert, json!(["Client-Cert"])),
            ] {
                let objects = objects(&Request { mode, forward_identity, ..request() });
                let of = |suffix: &str| {
                    let name = format!("countersign-clients-{suffix}");
                    &objects.iter().find(|o| o["metadata"]["name"] == *name).unwrap()["spec"]
                };
                assert_eq!(
                    of("strip")["headers"]["customRequestHeaders"],
                    json!({
                        "X-Forwarded-Tls-Client-Cert": "",
                        "X-Forwarded-Tls-Client-Cert-Info": "",
                        "Client-Cert": "",
                        "Client-Cert-Chain": "",
                    })
                );
                assert_eq!(of("gate")["forwardAuth"]["authResponseHeaders"], expected);
            }
        }
    }

    #[test]
    fn an_ingress_gets_our_annotations_and_nothing_else() {
        let mut ingress = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": "shop", "namespace": "shop", "uid": "u", "annotations": {"mine": "1"}},
            "spec": {"rules": [{"host": "shop.example.com"}]},
        });
        let Ok(Edit::Apply(applied)) = attach(&request(), &ingress) else { panic!("not applied") };
        assert!(applied.get("spec").is_none());
        assert_eq!(applied["metadata"]["uid"], "u");
        let annotations = applied["metadata"]["annotations"].as_object().unwrap();
        assert_eq!(annotations[TLS_OPTIONS], "shop-countersign-clients@kubernetescrd");
        assert!(!annotations.contains_key("mine"));

        for (key, value) in annotations {
            ingress["metadata"]["annotations"][key] = value.clone();
        }
        assert_eq!(attach(&request(), &ingress), Ok(Edit::Nothing));
        let Edit::Apply(removed) = super::super::detach("clients", &ingress) else {
            panic!("kept")
        };
        assert!(removed["metadata"].get("annotations").is_none());
        assert_eq!(super::super::detach("another", &ingress), Edit::Nothing);
    }

    #[test]
    fn an_ingress_route_is_restored_to_what_it_was() {
        let original = ingress_route();
        let Ok(Edit::Replace(edited)) = attach(&request(), &original) else { panic!("kept") };
        assert_eq!(edited["spec"]["tls"]["options"]["name"], "countersign-clients");
        let routes = edited["spec"]["routes"].as_array().unwrap();
        assert_eq!(routes[0]["middlewares"], json!([{"name": "countersign-clients"}]));
        assert_eq!(
            routes[1]["middlewares"],
            json!([{"name": "countersign-clients"}, {"name": "mine"}])
        );
        assert_eq!(attach(&request(), &edited), Ok(Edit::Nothing));

        let restored = super::super::detach("clients", &edited);
        let Edit::Replace(mut restored) = restored else { panic!("kept") };
        assert_eq!(restored["metadata"]["annotations"], json!({}));
        restored["metadata"].as_object_mut().unwrap().remove("annotations");
        assert_eq!(restored, original);
    }

    #[test]
    fn foreign_tls_options_are_a_conflict() {
        let mut route = ingress_route();
        route["spec"]["tls"] = json!({"options": {"name": "theirs"}});
        let error = attach(&request(), &route).unwrap_err();
        assert_eq!(error.field, "spec.tls.options.name");
        assert_eq!(error.value, "theirs");
    }

    #[test]
    fn a_second_trust_on_a_target_is_a_conflict() {
        let mut route = ingress_route();
        route["metadata"]["annotations"] = json!({annotation::TRUST: "first"});
        let error = super::super::attach(&TRAEFIK, &request(), &route).unwrap_err();
        assert_eq!(error.value, "first");
    }

    #[test]
    fn rules_that_leave_the_host_open_are_told() {
        let ingress = |rules: Value| json!({"kind": "Ingress", "spec": {"rules": rules}});
        for (object, expected) in [
            (ingress_route(), true),
            (ingress(json!([{"host": "a.example.com"}])), true),
            (ingress(json!([{"host": "*.example.com"}])), false),
            (ingress(json!([{"host": "a.example.com"}, {}])), false),
            (ingress(json!(null)), false),
            (
                json!({"kind": "IngressRoute", "spec": {"routes": [{"match": "PathPrefix(`/`)"}]}}),
                false,
            ),
            (
                json!({"kind": "IngressRoute", "spec": {"routes": [{"match": "HostRegexp(`.+`)"}]}}),
                false,
            ),
        ] {
            assert_eq!(names_its_hosts(&object), expected, "{object}");
        }
    }

    #[test]
    fn hosts_are_found_in_rules() {
        let hosts = hosts(&ingress_route());
        assert_eq!(hosts, ["shop.example.com", "www.example.com", "api.example.com"]);
    }
}
