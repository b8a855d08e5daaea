//! HAProxy Ingress (jcmoraisjr/haproxy-ingress, 0.14 and later): annotations of Ingress.
//!
//! It verifies the certificate by `ca.crt` and `ca.crl` of the trust's Secret itself, lets every handshake
//! succeed, and refuses the request: 496 without a certificate, 495 with a bad or revoked one. A Secret
//! that is missing or can't be read closes the host, since `auth-tls-strict` is set. What it would let
//! past, by its source at v0.16.1, and what is done about it:
//! - `ca.crl` is ignored in a Secret that has `tls.crt` and `tls.key` too (`pkg/controller/services/ssl.go`,
//!   getCertificate): the trust's Secret never has them.
//! - `auth-tls-*`, `ssl-passthrough` and `server-alias` are read per host, of all Ingresses that have it in
//!   a rule or under `tls`, in whatever namespace; of two values the one of the older Ingress counts
//!   (`pkg/converters/ingress/ingress.go`, addHost; `annotations/mapper.go`, addAnnotation). Where no other
//!   Ingress sets them, the trust holds for all that is served under the host. Another value is a conflict.
//! - A host without an entry under `tls` is served on the plain port alone; with one, the plain port
//!   redirects, unless `ssl-redirect` is false, or the path is one of `no-tls-redirect-locations` of the
//!   controller, by default ACME's (`annotations/backend.go`, buildBackendSSLRedirect).
//! - Certificates are asked for, and missed, by the name in the handshake, which is looked for among the
//!   hosts (`rootfs/etc/templates/haproxy/haproxy.tmpl`, `tls-need-crt`): rules without a host, and the
//!   aliases of a host, get past. A request for a host that needs a certificate on a connection of another
//!   name, or of none, is answered 421; but with `auth-tls-default-secret` in the controller's ConfigMap,
//!   which can't be seen from here, one on a connection without a name gets past with any certificate.
//! - With `ssl-passthrough`, or as a TCP service, it does not see the requests.
//!
//! Where something needs it, the gate is asked about each request (`auth-url`), and whatever is not 2xx, or no answer,
//! refuses (`rootfs/etc/lua/auth-request.lua`; 403 where the URL leads nowhere, `annotations/backend.go`, AlwaysDeny):
//! - It is asked after `X-SSL-Client-*` were removed and set from the handshake, with `auth-external-placement:
//!   backend`. With `frontend` it would be asked before, and believe the client: so that is never left to a default.
//! - `auth-url` is read per path: what other Ingresses serve under the host is not asked about. Each has to be a target of
//!   the same trust then.
//! - Headers of the request are replaced by those of the gate's answer (`auth-headers-succeed`), and can't be removed. So
//!   the gate answers with empty ones, and what a client sends as `Client-Cert` goes whatever `forwardIdentity` says.
//! - `oauth` reopens a path whose `auth-url` leads nowhere (`annotations/backend.go`, buildBackendOAuth), and a snippet of
//!   the backend can let requests past: [`BESIDE`].

use serde_json::{Value, json};

use super::annotations::ACME;
use super::{DataPlane, Edit, Exposure, FieldConflict, Request, Revocation, annotations, name_of};
use crate::api::trust::{Mode, Reason};

/// The row of HAProxy Ingress.
pub const HAPROXY_INGRESS: DataPlane = DataPlane {
    name: "HAProxy Ingress",
    ingress_controller: Some("haproxy-ingress.github.io/controller"),
    gateway_controller: None,
    kinds: &[],
    revocation: Revocation::ByCrl("ca.crl"),
    asks_gate: true,
    secret: None,
    objects: |_, _| Vec::new(),
    beside_gate: None,
    attach,
    hosts,
    exposure,
    conflict,
};

/// Prefixes of its annotations. Where both set the same key, the first one's value counts.
const PREFIXES: [&str; 2] = ["haproxy-ingress.github.io", "ingress.kubernetes.io"];

const SECRET: &str = "auth-tls-secret";
const VERIFY: &str = "auth-tls-verify-client";
const STRICT: &str = "auth-tls-strict";
const PASSTHROUGH: &str = "ssl-passthrough";
const ALIASES: [&str; 2] = ["server-alias", "server-alias-regex"];
const TCP_PORT: &str = "tcp-service-port";
const CERT_HEADER: &str = "auth-tls-cert-header";
const AUTH_URL: &str = "auth-url";
const PLACEMENT: &str = "auth-external-placement";
/// The gate's answers for this data plane.
const FORM: &str = "haproxy";

/// Annotations beside which the gate may not be asked.
const BESIDE: [&str; 4] =
    ["oauth", "config-backend", "config-backend-early", "config-backend-late"];

fn wanted(request: &Request<'_>) -> Vec<(&'static str, String)> {
    let verify = match request.mode {
        Mode::Required => "on",
        Mode::Optional => "optional",
    };
    let mut wanted = vec![
        (SECRET, request.object_name()),
        (VERIFY, verify.to_owned()),
        (STRICT, "true".to_owned()),
        // X-SSL-Client-Cert beside the headers that the backend is sent anyway.
        (CERT_HEADER, "true".to_owned()),
        ("ssl-redirect", "true".to_owned()),
    ];
    if request.needs_gate() {
        let (mut asked, mut replaced) =
            ("X-SSL-Client-Cert".to_owned(), "Client-Cert,Client-Cert-Chain".to_owned());
        if request.second_factor {
            asked.push_str(",Authorization");
            // By an empty one: the password stays between client and gate.
            replaced.push_str(",Authorization");
        }
        wanted.extend([
            (AUTH_URL, request.gate_address(FORM)),
            (PLACEMENT, "backend".to_owned()),
            ("auth-method", "GET".to_owned()),
            ("auth-headers-request", asked),
            ("auth-headers-succeed", replaced),
            ("auth-headers-fail", "Content-Type,WWW-Authenticate".to_owned()),
        ]);
    }
    wanted
}

fn attach(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    let [ours, other] = PREFIXES;
    let wanted = wanted(request);
    for (key, value) in &wanted {
        let annotation = format!("{other}/{key}");
        if let Some(found) = annotations::value(target, &annotation).filter(|found| found != value)
        {
            let (field, value) = (annotations::field(&annotation), found.to_owned());
            return Err(FieldConflict { field, value });
        }
    }
    let wanted = wanted.into_iter().map(|(key, value)| (format!("{ours}/{key}"), json!(value)));
    let wanted = Value::Object(wanted.collect());
    match annotations::attach(request, target, wanted.clone()) {
        // Those that ask the gate may be left from when it was needed; applying none of them removes ours.
        Edit::Nothing if !request.needs_gate() && is_asking(target) => {
            Ok(annotations::apply(request, target, wanted))
        }
        edit => Ok(edit),
    }
}

/// Does an Ingress ask a gate of Countersign?
fn is_asking(target: &Value) -> bool {
    let path = format!("/gate/{FORM}?");
    setting(target, AUTH_URL).is_some_and(|(_, url)| url.contains(&path))
}

/// The value of a configuration key, and the annotation that sets it.
fn setting<'a>(object: &'a Value, key: &str) -> Option<(String, &'a str)> {
    PREFIXES.iter().find_map(|prefix| {
        let annotation = format!("{prefix}/{key}");
        let value = annotations::value(object, &annotation)?;
        Some((annotation, value))
    })
}

fn hosts(object: &Value) -> Vec<String> {
    if object["kind"] != "Ingress" {
        return Vec::new();
    }
    annotations::rule_hosts(object)
        .chain(annotations::tls_hosts(object))
        .map(str::to_owned)
        .collect()
}

/// What takes a host, or some of its names, out of the trust.
fn opening(object: &Value) -> Option<(String, &str)> {
    let on = |(_, value): &(String, &str)| !value.is_empty() && *value != "false";
    [PASSTHROUGH, ALIASES[0], ALIASES[1]].iter().find_map(|key| setting(object, key).filter(on))
}

/// What may keep the gate from being asked.
fn beside<'a>(request: &Request<'_>, object: &'a Value) -> Option<(String, &'a str)> {
    if !request.needs_gate() {
        return None;
    }
    BESIDE.iter().find_map(|key| setting(object, key))
}

fn exposure(request: &Request<'_>, target: &Value, _: &[&Value]) -> Option<Exposure> {
    let exposed = |reason, message: String| Some(Exposure { reason, message });
    let tcp = setting(target, TCP_PORT);
    if let Some((annotation, value)) = tcp.or_else(|| opening(target)) {
        let field = annotations::field(&annotation);
        let message = format!(
            "has {field} set to {value:?}, which lets clients past HAProxy Ingress' check of their certificates; remove it"
        );
        return exposed(Reason::Conflict, message);
    }
    if let Some((annotation, value)) = beside(request, target) {
        let field = annotations::field(&annotation);
        let message = format!(
            "has {field} set to {value:?}, beside which HAProxy Ingress may not ask the gate; remove it"
        );
        return exposed(Reason::Conflict, message);
    }
    if !annotations::names_its_hosts(target) {
        let message = "has a rule without an exact host, for which HAProxy Ingress asks nobody for a certificate; give every rule its host";
        return exposed(Reason::HostMissing, message.to_owned());
    }
    let plain = |host: &&str| !annotations::tls_hosts(target).any(|tls| tls == *host);
    if let Some(host) = annotations::rule_hosts(target).find(plain) {
        let message = format!(
            "has no entry under spec.tls with host {host:?}, so that HAProxy Ingress serves it over plain HTTP, where nobody is asked for a certificate; add one"
        );
        return exposed(Reason::PlainHTTP, message);
    }
    // The default of `no-tls-redirect-locations`.
    if annotations::paths(target).any(|path| path.starts_with(ACME)) {
        let message = format!(
            "has a path that begins with {ACME}, which HAProxy Ingress serves over plain HTTP, where nobody is asked for a certificate; give it to an Ingress of its own"
        );
        return exposed(Reason::PlainHTTP, message);
    }
    None
}

fn conflict(request: &Request<'_>, host: &str, target: &Value, other: &Value) -> Option<String> {
    let namespace = other["metadata"]["namespace"].as_str().unwrap_or_default();
    let secret = format!("{}/{}", request.namespace, request.object_name());
    let differs = |key: &str, wanted: &str, value: &str| match key {
        SECRET => {
            let name = value.strip_prefix("secret://").unwrap_or(value);
            name != secret && (name.contains('/') || format!("{namespace}/{name}") != secret)
        }
        _ => value != wanted,
    };
    let wanted = wanted(request);
    if request.needs_gate() && annotations::rule_hosts(other).any(|theirs| theirs == host) {
        let keys = [AUTH_URL, PLACEMENT, CERT_HEADER];
        let mut asking = wanted.iter().filter(|(key, _)| keys.contains(key));
        let same = |(key, wanted): &(&'static str, String)| {
            setting(other, key).is_some_and(|(_, value)| value == wanted)
        };
        let found = match beside(request, other) {
            Some((annotation, value)) => Some(format!("{annotation} set to {value:?}")),
            None if asking.all(same) => None,
            None => Some(format!("another {AUTH_URL}, or none")),
        };
        if let Some(found) = found {
            return Some(format!(
                "{} has host {host:?}, too, and {found}: HAProxy Ingress does not ask the gate about its paths, where every client with a good certificate gets in; have the same ClientTrust name it and {}, or serve one of both under another host",
                name_of(other),
                name_of(target)
            ));
        }
    }
    let host_wide = wanted.iter().filter(|(key, _)| [SECRET, VERIFY, STRICT].contains(key));
    let (annotation, value) = host_wide
        .filter_map(|(key, wanted)| {
            setting(other, key).filter(|(_, value)| differs(key, wanted, value))
        })
        .next()
        .or_else(|| opening(other))?;
    Some(format!(
        "{} has host {host:?}, too, and {annotation} set to {value:?}: HAProxy Ingress takes the value of the older Ingress for the whole host, and it may not be that of {}; remove it there, or serve one of both under another host",
        name_of(other),
        name_of(target)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ingress, request};
    use super::*;
    use crate::api::annotation;
    use crate::api::trust::ForwardIdentity;

    #[test]
    fn an_ingress_gets_these_annotations() {
        for (mode, verify) in [(Mode::Required, "on"), (Mode::Optional, "optional")] {
            let edit = attach(&request(mode), &ingress(json!({"mine": "1"})));
            let expected = json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "Ingress",
                "metadata": {
                    "name": "shop", "namespace": "shop", "uid": "u",
                    "annotations": {
                        "haproxy-ingress.github.io/auth-tls-secret": "countersign-clients",
                        "haproxy-ingress.github.io/auth-tls-verify-client": verify,
                        "haproxy-ingress.github.io/auth-tls-strict": "true",
                        "haproxy-ingress.github.io/auth-tls-cert-header": "true",
                        "haproxy-ingress.github.io/ssl-redirect": "true",
                        annotation::TRUST: "clients",
                    },
                },
            });
            assert_eq!(edit, Ok(Edit::Apply(expected.clone())));
            let there = ingress(expected["metadata"]["annotations"].clone());
            assert_eq!(attach(&request(mode), &there), Ok(Edit::Nothing));
        }
        assert!((HAPROXY_INGRESS.objects)(&request(Mode::Required), &[]).is_empty());
    }

    fn asking() -> Request<'static> {
        Request { by_policy: true, ..request(Mode::Required) }
    }

    #[test]
    fn the_gate_is_asked_where_something_needs_it() {
        let annotations = |request: &Request<'_>| match attach(request, &ingress(json!({}))) {
            Ok(Edit::Apply(object)) => object["metadata"]["annotations"].clone(),
            edit => panic!("{edit:?}"),
        };
        let plain = annotations(&request(Mode::Required));
        let gate = "http://gate.example:8081/gate/haproxy?trust=shop/clients&mode=Required&authority=staff";
        let mut expected = plain.clone();
        for (key, value) in [
            ("auth-url", gate),
            ("auth-external-placement", "backend"),
            ("auth-method", "GET"),
            ("auth-headers-request", "X-SSL-Client-Cert"),
            ("auth-headers-succeed", "Client-Cert,Client-Cert-Chain"),
            ("auth-headers-fail", "Content-Type,WWW-Authenticate"),
        ] {
            expected[format!("haproxy-ingress.github.io/{key}")] = json!(value);
        }
        assert_eq!(annotations(&asking()), expected);
        assert_eq!(attach(&asking(), &ingress(expected.clone())), Ok(Edit::Nothing));

        let with_password = annotations(&Request { second_factor: true, ..asking() });
        for (key, value) in [
            ("auth-headers-request", "X-SSL-Client-Cert,Authorization"),
            ("auth-headers-succeed", "Client-Cert,Client-Cert-Chain,Authorization"),
        ] {
            assert_eq!(with_password[format!("haproxy-ingress.github.io/{key}")], value);
        }
        let forward_identity = ForwardIdentity::ClientCert;
        let told = annotations(&Request { forward_identity, ..request(Mode::Required) });
        let gate = "http://gate.example:8081/gate/haproxy?mode=Required&authority=staff";
        assert_eq!(told["haproxy-ingress.github.io/auth-url"], gate);

        // It is needed no more: what asks it goes. What others ask stays.
        let edit = attach(&request(Mode::Required), &ingress(expected));
        let Ok(Edit::Apply(applied)) = edit else { panic!("{edit:?}") };
        assert_eq!(applied["metadata"]["annotations"], plain);
        let mut theirs = plain;
        theirs["haproxy-ingress.github.io/auth-url"] = json!("http://login.example.com/");
        assert_eq!(attach(&request(Mode::Required), &ingress(theirs)), Ok(Edit::Nothing));
    }

    #[test]
    fn what_keeps_the_gate_from_being_asked_is_told() {
        for key in ["oauth", "config-backend", "config-backend-early", "config-backend-late"] {
            for prefix in PREFIXES {
                let target = ingress(json!({format!("{prefix}/{key}"): "x"}));
                let told = exposure(&asking(), &target, &[]).map(|exposure| exposure.reason);
                assert_eq!(told, Some(Reason::Conflict), "{prefix}/{key}");
                assert_eq!(exposure(&request(Mode::Required), &target, &[]), None);
            }
        }
    }

    #[test]
    fn another_ingress_of_the_host_must_ask_the_gate_too() {
        let wanted = wanted(&asking());
        let with = |changes: &[(&str, Value)]| {
            let mut annotations = json!({});
            for (key, value) in &wanted {
                annotations[format!("haproxy-ingress.github.io/{key}")] = json!(value);
            }
            for (key, value) in changes {
                annotations[format!("haproxy-ingress.github.io/{key}")] = value.clone();
            }
            annotations
        };
        let conflict = |annotations: Value, spec: Option<Value>| {
            let mut other = ingress(annotations);
            other["metadata"]["name"] = json!("other");
            if let Some(spec) = spec {
                other["spec"] = spec;
            }
            super::super::conflict(&HAPROXY_INGRESS, &asking(), &ingress(json!({})), [&other])
        };
        for (annotations, expected) in [
            (with(&[]), false),
            (json!({}), true),
            (with(&[("auth-url", json!(null))]), true),
            (with(&[("auth-url", json!("http://login.example.com/"))]), true),
            (with(&[("auth-external-placement", json!("frontend"))]), true),
            (with(&[("auth-tls-cert-header", json!("false"))]), true),
            (with(&[("config-backend", json!("http-request allow"))]), true),
            (with(&[("oauth", json!("oauth2_proxy"))]), true),
        ] {
            let told = conflict(annotations.clone(), None);
            assert_eq!(told.is_some(), expected, "{annotations}: {told:?}");
        }
        // One that has the host under `tls` alone has no paths.
        let tls = json!({"tls": [{"hosts": ["shop.example.com"]}]});
        assert_eq!(conflict(json!({}), Some(tls)), None);
    }

    #[test]
    fn a_foreign_value_under_the_other_prefix_is_a_conflict() {
        let with = |value: &str| ingress(json!({"ingress.kubernetes.io/ssl-redirect": value}));
        let error = attach(&request(Mode::Required), &with("false")).unwrap_err();
        assert_eq!(error.field, "metadata.annotations[ingress.kubernetes.io/ssl-redirect]");
        assert!(attach(&request(Mode::Required), &with("true")).is_ok());
    }

    #[test]
    fn what_lets_clients_past_is_told() {
        let spec = |edit: fn(&mut Value)| {
            let mut ingress = ingress(json!({}));
            edit(&mut ingress["spec"]);
            ingress
        };
        let annotated = |key: &str, value: &str| ingress(json!({key: value}));
        for (target, expected) in [
            (ingress(json!({})), None),
            (annotated("haproxy-ingress.github.io/ssl-passthrough", "false"), None),
            (
                annotated("haproxy-ingress.github.io/ssl-passthrough", "true"),
                Some(Reason::Conflict),
            ),
            (
                annotated("ingress.kubernetes.io/server-alias", "www.example.com"),
                Some(Reason::Conflict),
            ),
            (
                annotated("haproxy-ingress.github.io/server-alias-regex", "."),
                Some(Reason::Conflict),
            ),
            (annotated("haproxy-ingress.github.io/tcp-service-port", "9"), Some(Reason::Conflict)),
            (spec(|spec| spec["tls"] = json!(null)), Some(Reason::PlainHTTP)),
            (
                spec(|spec| spec["tls"][0]["hosts"] = json!(["*.example.com"])),
                Some(Reason::PlainHTTP),
            ),
            (
                spec(|spec| {
                    let path = &mut spec["rules"][0]["http"]["paths"][0]["path"];
                    *path = json!("/.well-known/acme-challenge/x");
                }),
                Some(Reason::PlainHTTP),
            ),
            (
                spec(|spec| spec["rules"][0]["host"] = json!("*.example.com")),
                Some(Reason::HostMissing),
            ),
            (spec(|spec| spec["defaultBackend"] = json!({})), Some(Reason::HostMissing)),
        ] {
            let told =
                exposure(&request(Mode::Required), &target, &[]).map(|exposure| exposure.reason);
            assert_eq!(told, expected, "{target}");
        }
    }

    #[test]
    fn another_ingress_of_the_host_must_not_say_otherwise() {
        let conflict = |namespace: &str, annotations: Value, spec: Value| {
            let mut other = ingress(annotations);
            other["metadata"]["namespace"] = json!(namespace);
            other["metadata"]["name"] = json!("other");
            other["spec"] = spec;
            let request = request(Mode::Required);
            super::super::conflict(&HAPROXY_INGRESS, &request, &ingress(json!({})), [&other])
        };
        let rule = json!({"rules": [{"host": "shop.example.com"}]});
        let secret = |value: &str| json!({"haproxy-ingress.github.io/auth-tls-secret": value});
        let verify = |value: &str| json!({"ingress.kubernetes.io/auth-tls-verify-client": value});
        for (namespace, annotations, expected) in [
            ("shop", json!({}), false),
            ("shop", secret("countersign-clients"), false),
            ("other", secret("shop/countersign-clients"), false),
            ("other", secret("secret://shop/countersign-clients"), false),
            // The same name, and another Secret.
            ("other", secret("countersign-clients"), true),
            ("shop", secret("theirs"), true),
            ("shop", secret(""), true),
            ("shop", verify("on"), false),
            ("other", verify("off"), true),
            ("shop", json!({"haproxy-ingress.github.io/auth-tls-strict": "false"}), true),
            ("other", json!({"haproxy-ingress.github.io/ssl-passthrough": "true"}), true),
            ("other", json!({"haproxy-ingress.github.io/server-alias": "a.example.com"}), true),
            ("shop", json!({"haproxy-ingress.github.io/ssl-redirect": "false"}), false),
        ] {
            let told = conflict(namespace, annotations.clone(), rule.clone());
            assert_eq!(told.is_some(), expected, "{namespace} {annotations}: {told:?}");
        }
        // It has a say by its TLS entry alone, and none under another host.
        let tls = json!({"tls": [{"hosts": ["shop.example.com"]}]});
        assert!(conflict("other", verify("off"), tls).is_some());
        let elsewhere = json!({"rules": [{"host": "www.example.com"}]});
        assert_eq!(conflict("other", verify("off"), elsewhere), None);
    }
}
