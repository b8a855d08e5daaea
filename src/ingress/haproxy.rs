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
    asks_gate: false,
    secret: None,
    objects: |_, _| Vec::new(),
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

fn wanted(request: &Request<'_>) -> [(&'static str, String); 5] {
    let verify = match request.mode {
        Mode::Required => "on",
        Mode::Optional => "optional",
    };
    [
        (SECRET, request.object_name()),
        (VERIFY, verify.to_owned()),
        (STRICT, "true".to_owned()),
        // X-SSL-Client-Cert beside the headers that the backend is sent anyway.
        ("auth-tls-cert-header", "true".to_owned()),
        ("ssl-redirect", "true".to_owned()),
    ]
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
    Ok(annotations::attach(request, target, Value::Object(wanted.collect())))
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

fn exposure(_: &Request<'_>, target: &Value, _: &[&Value]) -> Option<Exposure> {
    let exposed = |reason, message: String| Some(Exposure { reason, message });
    let tcp = setting(target, TCP_PORT);
    if let Some((annotation, value)) = tcp.or_else(|| opening(target)) {
        let field = annotations::field(&annotation);
        let message = format!(
            "has {field} set to {value:?}, which lets clients past HAProxy Ingress' check of their certificates; remove it"
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
