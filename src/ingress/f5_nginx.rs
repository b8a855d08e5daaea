//! F5 NGINX Ingress Controller (nginx/kubernetes-ingress, 5.5 and later; VirtualServer 4.0 and later): a Policy with
//! `ingressMTLS` (k8s.nginx.org/v1), named by `spec.policies` of a VirtualServer or by the annotation
//! `nginx.org/policies` of an Ingress.
//!
//! It verifies by `ca.crt` and `ca.crl` of a Secret of type `nginx.org/ca`, which stands beside the trust's own,
//! and answers 400 to whom it refuses. A Policy or Secret that is missing or can't be read makes it answer 500
//! for the whole host. What it would let past, by its source at v5.5.4, and what is done about it:
//! - `crlFileName` of the Policy would win over `ca.crl` (`internal/configs/policy.go`, addIngressMTLSConfig): the
//!   Policy is ours and does not have it.
//! - Of several `ingressMTLS` Policies of a route the first one counts: ours comes first.
//! - TLS alone is verified. A VirtualServer serves plain HTTP, too, unless `tls.redirect` is enabled, and by the scheme
//!   of the connection (`version2/nginx.virtualserver.tmpl`); an Ingress does with `ssl-redirect: false`, or where
//!   the host does not stand under `spec.tls` (`internal/configs/ingress.go`). Each is told.
//! - Of two routes of one host, of whatever kind, the older one is served alone, but for the minions of a
//!   mergeable Ingress, which are part of their master; a minion can't have such a Policy itself.
//! - Snippets of the server can do anything. They are told.
//!
//! It hands nothing of the certificate over to the backend.

use serde_json::{Value, json};

use super::{
    DataPlane, Edit, Exposure, FieldConflict, Kind, OwnSecret, Request, Revocation, annotations,
    name_of, object_name,
};
use crate::api::annotation;
use crate::api::trust::{Mode, Reason};

/// The row of F5 NGINX Ingress Controller.
pub const F5_NGINX: DataPlane = DataPlane {
    name: "F5 NGINX Ingress Controller",
    ingress_controller: Some("nginx.org/ingress-controller"),
    gateway_controller: None,
    kinds: &[Kind { group: GROUP, version: VERSION, kind: "VirtualServer", detach }],
    revocation: Revocation::ByCrl("ca.crl"),
    asks_gate: false,
    secret: Some(SECRET),
    objects: |request, _| objects(request),
    beside_gate: None,
    attach,
    hosts,
    exposure,
    conflict,
};

const GROUP: &str = "k8s.nginx.org";
const VERSION: &str = "v1";
const SECRET: OwnSecret = OwnSecret { suffix: "-nginx", type_: "nginx.org/ca" };

/// The Policies of an Ingress: a list, separated by commas.
const POLICIES: &str = "nginx.org/policies";
const MERGEABLE: &str = "nginx.org/mergeable-ingress-type";
const SSL_REDIRECT: [&str; 2] = ["nginx.org/ssl-redirect", "ingress.kubernetes.io/ssl-redirect"];
const SNIPPETS: &str = "nginx.org/server-snippets";
/// As many CAs between a leaf and the trust anchor; the default is one.
const DEPTH: u8 = 8;

fn objects(request: &Request<'_>) -> Vec<Value> {
    let name = request.object_name();
    let verify = match request.mode {
        Mode::Required => "on",
        Mode::Optional => "optional",
    };
    vec![json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Policy",
        "metadata": {"name": name, "namespace": request.namespace},
        "spec": {
            "ingressMTLS": {
                "clientCertSecret": format!("{name}{}", SECRET.suffix),
                "verifyClient": verify,
                "verifyDepth": DEPTH,
            },
        },
    })]
}

fn attach(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    let name = request.object_name();
    let mut edited = target.clone();
    edited["metadata"]["annotations"][annotation::TRUST] = json!(request.trust);
    // First, so that it counts.
    if target["kind"] == "Ingress" {
        let others = other_names(target, &name);
        let policies: Vec<&str> = [name.as_str()].into_iter().chain(others).collect();
        edited["metadata"]["annotations"][POLICIES] = json!(policies.join(","));
    } else {
        let mut policies = vec![json!({"name": name})];
        policies.extend(other_references(target, &name).cloned());
        edited["spec"]["policies"] = Value::Array(policies);
    }
    Ok(if edited == *target { Edit::Nothing } else { Edit::Replace(edited) })
}

/// The Policies of an Ingress that are not ours.
fn other_names<'a>(ingress: &'a Value, ours: &str) -> impl Iterator<Item = &'a str> {
    let list = annotations::value(ingress, POLICIES).unwrap_or_default();
    list.split(',').map(str::trim).filter(move |name| !name.is_empty() && *name != ours)
}

/// The Policies of a VirtualServer that are not ours.
fn other_references<'a>(route: &'a Value, ours: &str) -> impl Iterator<Item = &'a Value> {
    let policies = route["spec"]["policies"].as_array().into_iter().flatten();
    policies.filter(move |policy| policy["name"] != ours)
}

/// Is this an Ingress that the trust was put on by its Policy?
pub fn is_attached(trust: &str, ingress: &Value) -> bool {
    let list = annotations::value(ingress, POLICIES).unwrap_or_default();
    list.split(',').any(|name| name.trim() == object_name(trust))
}

/// Takes a trust off an Ingress or a VirtualServer.
pub fn detach(trust: &str, target: &Value) -> Edit {
    let name = object_name(trust);
    let mut edited = target.clone();
    let names: Vec<&str> = other_names(target, &name).collect();
    if let Some(annotations) = edited["metadata"]["annotations"].as_object_mut() {
        annotations.remove(annotation::TRUST);
        if names.is_empty() {
            annotations.remove(POLICIES);
        } else {
            annotations[POLICIES] = json!(names.join(","));
        }
    }
    if target["kind"] != "Ingress" {
        let policies: Vec<Value> = other_references(target, &name).cloned().collect();
        if policies.is_empty() {
            edited["spec"].as_object_mut().map(|spec| spec.remove("policies"));
        } else {
            edited["spec"]["policies"] = Value::Array(policies);
        }
    }
    Edit::Replace(edited)
}

fn hosts(object: &Value) -> Vec<String> {
    match object["kind"].as_str() {
        Some("Ingress") => annotations::rule_hosts(object).map(str::to_owned).collect(),
        Some("VirtualServer") => {
            object["spec"]["host"].as_str().map(str::to_lowercase).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn exposure(_: &Request<'_>, target: &Value, _: &[&Value]) -> Option<Exposure> {
    let told = if target["kind"] == "Ingress" { ingress_exposure(target) } else { open(target) };
    let (reason, message) = told.or_else(|| not_taken(target))?;
    Some(Exposure { reason, message })
}

fn ingress_exposure(target: &Value) -> Option<(Reason, String)> {
    if annotations::value(target, MERGEABLE) == Some("minion") {
        let message =
            "is a minion of a mergeable Ingress, which can't ask for certificates; name its master";
        return Some((Reason::Conflict, message.to_owned()));
    }
    if annotations::value(target, SNIPPETS).is_some_and(|snippets| !snippets.is_empty()) {
        let field = annotations::field(SNIPPETS);
        return Some((Reason::Conflict, overruled(&field)));
    }
    if !annotations::names_its_hosts(target) {
        let message = "has a rule without an exact host, or a default backend, for which other routes have a say that can't be looked for; give every rule its host";
        return Some((Reason::HostMissing, message.to_owned()));
    }
    let off = |key: &&&str| {
        let value = annotations::value(target, key);
        value.is_some_and(|value| !value.eq_ignore_ascii_case("true"))
    };
    if let Some(key) = SSL_REDIRECT.iter().find(off) {
        let field = annotations::field(key);
        let message = format!(
            "is served over plain HTTP, too, where nobody is asked for a certificate: {field} is not true; remove it"
        );
        return Some((Reason::PlainHTTP, message));
    }
    let plain = |host: &&str| !annotations::tls_hosts(target).any(|tls| tls == *host);
    let host = annotations::rule_hosts(target).find(plain)?;
    let message = format!(
        "has no entry under spec.tls with host {host:?}, without which NGINX Ingress Controller asks nobody for a certificate; add one"
    );
    Some((Reason::PlainHTTP, message))
}

fn overruled(field: &str) -> String {
    format!("has {field} set, which may overrule what is configured for the trust; remove it")
}

/// What leaves a VirtualServer open.
fn open(target: &Value) -> Option<(Reason, String)> {
    let spec = &target["spec"];
    if spec["server-snippets"].as_str().is_some_and(|snippets| !snippets.is_empty()) {
        return Some((Reason::Conflict, overruled("spec.server-snippets")));
    }
    let redirect = &spec["tls"]["redirect"];
    let by_scheme = redirect["basedOn"].as_str().is_none_or(|by| by.is_empty() || by == "scheme");
    let message = if spec["tls"]["secret"].as_str().is_none_or(str::is_empty) {
        "has no spec.tls.secret, without which NGINX Ingress Controller answers everybody 500; set it, and spec.tls.redirect.enable"
    } else if redirect["enable"] != true {
        "is served over plain HTTP, too, where nobody is asked for a certificate; set spec.tls.redirect.enable to true"
    } else if !by_scheme {
        "is served over plain HTTP to whoever says that it is not, in X-Forwarded-Proto; remove spec.tls.redirect.basedOn"
    } else {
        return None;
    };
    Some((Reason::PlainHTTP, message.to_owned()))
}

/// What NGINX Ingress Controller says of a VirtualServer that it does not serve as it is.
fn not_taken(target: &Value) -> Option<(Reason, String)> {
    let status = &target["status"];
    let state = status["state"].as_str().filter(|state| ["Invalid", "Warning"].contains(state))?;
    let said = status["message"].as_str().unwrap_or_default();
    let message = format!("is not served as it is: NGINX Ingress Controller says {state}: {said}");
    Some((Reason::NotProgrammed, message))
}

fn conflict(_: &Request<'_>, host: &str, target: &Value, other: &Value) -> Option<String> {
    let kind_of = |route| annotations::value(route, MERGEABLE);
    if (kind_of(target), kind_of(other)) == (Some("master"), Some("minion")) {
        return None;
    }
    Some(format!(
        "{} has host {host:?}, too: NGINX Ingress Controller serves the older one alone, which may not be {}; serve one of both under another host",
        name_of(other),
        name_of(target)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ingress, request};
    use super::*;

    fn virtual_server() -> Value {
        json!({
            "apiVersion": "k8s.nginx.org/v1",
            "kind": "VirtualServer",
            "metadata": {"name": "shop", "namespace": "shop", "resourceVersion": "7"},
            "spec": {
                "host": "Shop.example.com",
                "tls": {"secret": "shop-tls", "redirect": {"enable": true}},
                "upstreams": [{"name": "shop", "service": "shop", "port": 80}],
                "routes": [{"path": "/", "action": {"pass": "shop"}}],
            },
        })
    }

    #[test]
    fn the_policy_verifies_by_a_secret_of_its_type() {
        for (mode, verify) in [(Mode::Required, "on"), (Mode::Optional, "optional")] {
            let expected = json!({
                "apiVersion": "k8s.nginx.org/v1",
                "kind": "Policy",
                "metadata": {"name": "countersign-clients", "namespace": "shop"},
                "spec": {"ingressMTLS": {
                    "clientCertSecret": "countersign-clients-nginx",
                    "verifyClient": verify,
                    "verifyDepth": 8,
                }},
            });
            assert_eq!(objects(&request(mode)), [expected]);
        }
    }

    #[test]
    fn a_virtual_server_is_restored_to_what_it_was() {
        let mut with_others = virtual_server();
        with_others["spec"]["policies"] =
            json!([{"name": "rate"}, {"name": "cors", "namespace": "a"}]);
        for (original, expected) in [
            (virtual_server(), json!([{"name": "countersign-clients"}])),
            (
                with_others,
                json!([{"name": "countersign-clients"}, {"name": "rate"}, {"name": "cors", "namespace": "a"}]),
            ),
        ] {
            let request = request(Mode::Required);
            let edit = super::super::attach(&F5_NGINX, &request, &original);
            let Ok(Edit::Replace(edited)) = edit else { panic!("kept") };
            assert_eq!(edited["spec"]["policies"], expected);
            assert_eq!(edited["metadata"]["annotations"], json!({annotation::TRUST: "clients"}));
            assert_eq!(attach(&request, &edited), Ok(Edit::Nothing));
            let restored = super::super::detach("clients", &edited);
            let Edit::Replace(mut restored) = restored else { panic!("kept") };
            restored["metadata"].as_object_mut().unwrap().remove("annotations");
            assert_eq!(restored, original);
            assert_eq!(super::super::detach("another", &edited), Edit::Nothing);
        }
    }

    #[test]
    fn an_ingress_is_restored_to_what_it_was() {
        for (original, expected) in [
            (ingress(json!({"mine": "1"})), "countersign-clients"),
            (
                ingress(json!({POLICIES: "rate,a/cors", "mine": "1"})),
                "countersign-clients,rate,a/cors",
            ),
        ] {
            let request = request(Mode::Required);
            let Ok(Edit::Replace(edited)) = attach(&request, &original) else { panic!("kept") };
            assert_eq!(annotations::value(&edited, POLICIES), Some(expected));
            assert_eq!(attach(&request, &edited), Ok(Edit::Nothing));
            let restored = super::super::detach("clients", &edited);
            assert_eq!(restored, Edit::Replace(original));
        }
    }

    #[test]
    fn what_lets_clients_past_is_told() {
        let server = |edit: fn(&mut Value)| {
            let mut server = virtual_server();
            edit(&mut server);
            server
        };
        let annotated = |key: &str, value: &str| ingress(json!({key: value}));
        for (target, expected) in [
            (virtual_server(), None),
            (server(|s| s["spec"]["tls"] = json!(null)), Some(Reason::PlainHTTP)),
            (server(|s| s["spec"]["tls"]["redirect"] = json!(null)), Some(Reason::PlainHTTP)),
            (
                server(|s| s["spec"]["tls"]["redirect"]["enable"] = json!(false)),
                Some(Reason::PlainHTTP),
            ),
            (
                server(|s| s["spec"]["tls"]["redirect"]["basedOn"] = json!("x-forwarded-proto")),
                Some(Reason::PlainHTTP),
            ),
            (server(|s| s["spec"]["tls"]["redirect"]["basedOn"] = json!("scheme")), None),
            (
                server(|s| s["spec"]["server-snippets"] = json!("ssl_verify_client off;")),
                Some(Reason::Conflict),
            ),
            (server(|s| s["status"] = json!({"state": "Valid"})), None),
            (server(|s| s["status"] = json!({"state": "Warning"})), Some(Reason::NotProgrammed)),
            (ingress(json!({})), None),
            (annotated("nginx.org/ssl-redirect", "true"), None),
            (annotated("nginx.org/ssl-redirect", "false"), Some(Reason::PlainHTTP)),
            (annotated("ingress.kubernetes.io/ssl-redirect", "False"), Some(Reason::PlainHTTP)),
            (annotated("nginx.org/server-snippets", "return 200;"), Some(Reason::Conflict)),
            (annotated("nginx.org/mergeable-ingress-type", "minion"), Some(Reason::Conflict)),
            (annotated("nginx.org/mergeable-ingress-type", "master"), None),
        ] {
            let told =
                exposure(&request(Mode::Required), &target, &[]).map(|exposure| exposure.reason);
            assert_eq!(told, expected, "{target}");
        }
        let mut plain = ingress(json!({}));
        plain["spec"]["tls"][0]["hosts"] = json!(["www.example.com"]);
        let told = exposure(&request(Mode::Required), &plain, &[]).unwrap();
        assert_eq!(told.reason, Reason::PlainHTTP);
        assert!(told.message.contains("\"shop.example.com\""), "{}", told.message);
        plain["spec"]["rules"][0]["host"] = json!(null);
        let told = exposure(&request(Mode::Required), &plain, &[]).unwrap();
        assert_eq!(told.reason, Reason::HostMissing);
    }

    #[test]
    fn another_route_of_the_host_is_told_unless_it_is_a_part() {
        let conflict = |target: &Value, mut other: Value| {
            other["metadata"]["name"] = json!("other");
            super::super::conflict(&F5_NGINX, &request(Mode::Required), target, [&other]).is_some()
        };
        let merged = |role: &str| ingress(json!({MERGEABLE: role}));
        assert!(conflict(&virtual_server(), virtual_server()));
        assert!(conflict(&virtual_server(), ingress(json!({}))));
        assert!(conflict(&ingress(json!({})), virtual_server()));
        assert!(conflict(&ingress(json!({})), merged("minion")));
        assert!(!conflict(&merged("master"), merged("minion")));
        let mut elsewhere = virtual_server();
        elsewhere["spec"]["host"] = json!("www.example.com");
        assert!(!conflict(&virtual_server(), elsewhere));
    }
}
