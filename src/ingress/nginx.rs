//! ingress-nginx (kubernetes/ingress-nginx, retired upstream in March 2026): annotations of Ingress.
//!
//! Traefik's provider `kubernetesIngressNGINX` serves the same IngressClass and reads the same annotations, but
//! not `ca.crl`, and an Ingress does not tell which of both serves it. So both are told to ask the gate for each
//! request (`auth-url`), and ingress-nginx verifies by the `ca.crl` of the trust's Secret as well: 400 where it
//! refuses, 403 where the gate does. Both hand the certificate over to the gate and the backend in
//! `ssl-client-cert`, after they removed what the client sent, and answer 500 when the gate does not answer.
//! What is done about the rest, by the sources of ingress-nginx v1.15.1 and Traefik v3.7.13:
//! - A Secret that is missing or without a CA closes the host: ingress-nginx answers 403
//!   (`internal/ingress/annotations/authtls/main.go`, AuthTLSError), and stays with the last CA and CRL when a
//!   Secret becomes empty (`controller/store/backend_ssl.go`, syncSecret); Traefik serves nothing there
//!   (`pkg/provider/kubernetes/ingress-nginx/build.go`).
//! - ingress-nginx takes `auth-tls-*` of the oldest Ingress of a host that has them, for the whole host
//!   (`controller/controller.go`, getBackendServers), and `auth-url` per Ingress. To
//!   Traefik v3.7.13 two Ingresses that differ have different TLS options (`pkg/server/aggregator.go`): it asks
//!   nobody, and the gate refuses all; v3.7.15 asks by those that are there. So each Ingress of a host has to
//!   be a target of the same trust. A canary has no say of its own in either.
//! - The plain port redirects also without `spec.tls`, since `force-ssl-redirect` is set. ingress-nginx
//!   neither redirects nor asks the gate where a path begins with ACME's (`no-tls-redirect-locations`,
//!   `no-auth-locations`). Where Traefik believes a client's `X-Forwarded-Proto` it does not redirect, and leaves
//!   forged headers in; it then tells the gate that the scheme is http, which the gate refuses
//!   (`pkg/middlewares/ingressnginx/snippet/snippet.go`, writeHeader).
//! - `auth-response-headers` is the only way to remove `Client-Cert` from requests. So the gate's is forwarded
//!   whatever `forwardIdentity` says.
//! - Whatever lets a request past the gate, or its answer be that for another client, is told: [`BESIDE`].
//!   `auth-tls-error-page`, `auth-tls-match-cn`, `server-alias` and `use-regex` don't: what an error page leads
//!   to asks the gate, too, and aliases belong to the server, or the router, of their host.
//! - ingress-nginx resolves the gate's name by DNS alone, without search domains (`proxy_pass $target`): one
//!   that ends in `.svc` is told.

use serde_json::{Value, json};

use super::annotations::ACME;
use super::{DataPlane, Edit, Exposure, FieldConflict, Request, Revocation, annotations, name_of};
use crate::api::trust::{Mode, Reason};

/// The row of ingress-nginx, and of Traefik in its place.
pub const INGRESS_NGINX: DataPlane = DataPlane {
    name: "ingress-nginx",
    ingress_controller: Some("k8s.io/ingress-nginx"),
    gateway_controller: None,
    kinds: &[],
    revocation: Revocation::ViaGate,
    asks_gate: true,
    secret: None,
    objects: |_, _| Vec::new(),
    beside_gate: None,
    attach,
    hosts,
    exposure,
    conflict,
};

const PREFIX: &str = "nginx.ingress.kubernetes.io";

const SECRET: &str = "auth-tls-secret";
const VERIFY: &str = "auth-tls-verify-client";
const PASS: &str = "auth-tls-pass-certificate-to-upstream";
const PASSTHROUGH: &str = "ssl-passthrough";
const CANARY: &str = "canary";
const SERVER_SNIPPET: &str = "server-snippet";
/// As many CAs between a leaf and the trust anchor; the default is one.
const DEPTH: &str = "8";

/// Annotations beside which the trust does not hold, and what they do.
const BESIDE: [(&str, &str); 9] = [
    (PASSTHROUGH, "the handshake is not seen"),
    (
        CANARY,
        "what the Ingress says of certificates does not count; name the Ingress whose canary it is",
    ),
    ("satisfy", "a request may get past the gate"),
    ("auth-cache-key", "what the gate said of one client may be taken for another's, or for long"),
    ("auth-keepalive", "ingress-nginx mixes up the headers that the gate answers with"),
    ("auth-proxy-set-headers", "the gate may be asked about another certificate"),
    ("auth-snippet", "the gate may be asked about another certificate"),
    ("configuration-snippet", "what is configured for the trust may be overruled"),
    (SERVER_SNIPPET, "what is configured for the trust may be overruled"),
];

fn wanted(request: &Request<'_>) -> [(&'static str, String); 7] {
    // What the gate answers without is removed: the password stays between client and gate.
    let forwarded = match request.second_factor {
        true => "Client-Cert,Client-Cert-Chain,Authorization",
        false => "Client-Cert,Client-Cert-Chain",
    };
    let verify = match request.mode {
        Mode::Required => "on",
        Mode::Optional => "optional",
    };
    [
        (SECRET, format!("{}/{}", request.namespace, request.object_name())),
        (VERIFY, verify.to_owned()),
        ("auth-tls-verify-depth", DEPTH.to_owned()),
        (PASS, "true".to_owned()),
        ("auth-url", request.gate_address("nginx")),
        ("auth-response-headers", forwarded.to_owned()),
        ("force-ssl-redirect", "true".to_owned()),
    ]
}

fn attach(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    let wanted = wanted(request).map(|(key, value)| (annotation(key), json!(value)));
    Ok(annotations::attach(request, target, Value::Object(wanted.into_iter().collect())))
}

fn annotation(key: &str) -> String {
    format!("{PREFIX}/{key}")
}

fn setting<'a>(ingress: &'a Value, key: &str) -> Option<&'a str> {
    annotations::value(ingress, &annotation(key))
}

/// Is something set, and not set to its default?
fn is_on(value: &str) -> bool {
    !["", "0", "all", "false"].contains(&&*value.to_lowercase())
}

fn hosts(object: &Value) -> Vec<String> {
    if object["kind"] != "Ingress" {
        return Vec::new();
    }
    annotations::rule_hosts(object).map(str::to_owned).collect()
}

/// Is the gate's name one that needs a search domain?
fn needs_search_domain(gate_url: &str) -> bool {
    let (_, rest) = gate_url.split_once("://").unwrap_or(("", gate_url));
    rest.split([':', '/']).next().is_some_and(|host| host.ends_with(".svc"))
}

fn exposure(request: &Request<'_>, target: &Value, _: &[&Value]) -> Option<Exposure> {
    let exposed = |reason, message: String| Some(Exposure { reason, message });
    for (key, why) in BESIDE {
        if let Some(value) = setting(target, key).filter(|value| is_on(value)) {
            let field = annotations::field(&annotation(key));
            let message =
                format!("has {field} set to {value:?}, beside which {why}; remove the annotation");
            return exposed(Reason::Conflict, message);
        }
    }
    if needs_search_domain(request.gate_url) {
        let message = format!(
            "asks the gate at {}, a name that ingress-nginx can't resolve, so that nobody gets in: set the chart's clusterDomain, or --gate-url of the controller, to a complete one",
            request.gate_url
        );
        return exposed(Reason::NotProgrammed, message);
    }
    if !annotations::names_its_hosts(target) {
        let message = "has a rule without an exact host, or a default backend, for which other Ingresses have a say that can't be looked for; give every rule its host";
        return exposed(Reason::HostMissing, message.to_owned());
    }
    if annotations::paths(target).any(|path| path.starts_with(ACME)) {
        let message = format!(
            "has a path that begins with {ACME}, where ingress-nginx neither redirects plain HTTP nor asks the gate; give it to an Ingress of its own under another host"
        );
        return exposed(Reason::PlainHTTP, message);
    }
    None
}

fn conflict(request: &Request<'_>, host: &str, target: &Value, other: &Value) -> Option<String> {
    let is_canary = setting(other, CANARY).is_some_and(is_on);
    let wanted = wanted(request);
    let host_wide = wanted.iter().filter(|(key, _)| [SECRET, VERIFY, PASS].contains(key));
    let differs = |(key, wanted): &(&'static str, String)| match setting(other, key) {
        None => (!is_canary).then(|| format!("no {}", annotation(key))),
        Some(value) if value == wanted => None,
        Some(value) => Some(format!("{} set to {value:?}", annotation(key))),
    };
    let overrules = |key: &&str| {
        let value = setting(other, key).filter(|value| is_on(value))?;
        Some(format!("{} set to {value:?}", annotation(key)))
    };
    let found = host_wide
        .filter_map(differs)
        .next()
        .or_else(|| [PASSTHROUGH, SERVER_SNIPPET].iter().find_map(overrules))?;
    Some(format!(
        "{} has host {host:?}, too, and {found}: ingress-nginx takes that of the older Ingress for the whole host, and Traefik in its place may ask none of its clients for a certificate; have the same ClientTrust name it and {}, without other settings, or serve one of both under another host",
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
        for (mode, verify, name) in
            [(Mode::Required, "on", "Required"), (Mode::Optional, "optional", "Optional")]
        {
            let edit = attach(&request(mode), &ingress(json!({"mine": "1"})));
            let gate = format!("http://gate.example:8081/gate/nginx?mode={name}&authority=staff");
            let expected = json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "Ingress",
                "metadata": {
                    "name": "shop", "namespace": "shop", "uid": "u",
                    "annotations": {
                        "nginx.ingress.kubernetes.io/auth-tls-secret": "shop/countersign-clients",
                        "nginx.ingress.kubernetes.io/auth-tls-verify-client": verify,
                        "nginx.ingress.kubernetes.io/auth-tls-verify-depth": "8",
                        "nginx.ingress.kubernetes.io/auth-tls-pass-certificate-to-upstream": "true",
                        "nginx.ingress.kubernetes.io/auth-url": gate,
                        "nginx.ingress.kubernetes.io/auth-response-headers": "Client-Cert,Client-Cert-Chain",
                        "nginx.ingress.kubernetes.io/force-ssl-redirect": "true",
                        annotation::TRUST: "clients",
                    },
                },
            });
            assert_eq!(edit, Ok(Edit::Apply(expected.clone())));
            let there = ingress(expected["metadata"]["annotations"].clone());
            assert_eq!(attach(&request(mode), &there), Ok(Edit::Nothing));
        }
        let with_password = Request { second_factor: true, ..request(Mode::Required) };
        let headers =
            wanted(&with_password).into_iter().find(|(key, _)| *key == "auth-response-headers");
        assert!(headers.is_some_and(|(_, value)| value.ends_with(",Authorization")));
        assert!((INGRESS_NGINX.objects)(&request(Mode::Required), &[]).is_empty());
    }

    #[test]
    fn what_lets_clients_past_is_told() {
        let annotated = |key: &str, value: &str| ingress(json!({annotation(key): value}));
        let spec = |edit: fn(&mut Value)| {
            let mut ingress = ingress(json!({}));
            edit(&mut ingress["spec"]);
            ingress
        };
        for (target, expected) in [
            (ingress(json!({})), None),
            (annotated("ssl-passthrough", "false"), None),
            (annotated("ssl-passthrough", "True"), Some(Reason::Conflict)),
            (annotated("satisfy", "all"), None),
            (annotated("satisfy", "any"), Some(Reason::Conflict)),
            (annotated("canary", "true"), Some(Reason::Conflict)),
            (annotated("auth-keepalive", "0"), None),
            (annotated("auth-keepalive", "10"), Some(Reason::Conflict)),
            (annotated("auth-cache-key", "$remote_user"), Some(Reason::Conflict)),
            (annotated("auth-proxy-set-headers", "shop/headers"), Some(Reason::Conflict)),
            (annotated("auth-snippet", "set $x 1;"), Some(Reason::Conflict)),
            (annotated("configuration-snippet", "auth_request off;"), Some(Reason::Conflict)),
            (annotated("server-snippet", "return 200;"), Some(Reason::Conflict)),
            (annotated("auth-tls-match-cn", "CN=a"), None),
            (annotated("server-alias", "www.example.com"), None),
            // force-ssl-redirect redirects all the same.
            (spec(|spec| spec["tls"] = json!(null)), None),
            (annotated("ssl-redirect", "false"), None),
            (spec(|spec| spec["rules"][0]["host"] = json!(null)), Some(Reason::HostMissing)),
            (
                spec(|spec| spec["rules"][0]["host"] = json!("*.example.com")),
                Some(Reason::HostMissing),
            ),
            (spec(|spec| spec["defaultBackend"] = json!({})), Some(Reason::HostMissing)),
            (
                spec(|spec| {
                    let path = &mut spec["rules"][0]["http"]["paths"][0]["path"];
                    *path = json!("/.well-known/acme-challenge/x");
                }),
                Some(Reason::PlainHTTP),
            ),
        ] {
            let told =
                exposure(&request(Mode::Required), &target, &[]).map(|exposure| exposure.reason);
            assert_eq!(told, expected, "{target}");
        }
    }

    #[test]
    fn a_gate_that_ingress_nginx_can_not_find_is_told() {
        for (gate_url, expected) in [
            ("http://countersign-server.countersign.svc:8081", Some(Reason::NotProgrammed)),
            ("http://countersign-server.countersign.svc", Some(Reason::NotProgrammed)),
            ("http://countersign-server.countersign.svc.cluster.local:8081", None),
            ("http://192.0.2.1:8081", None),
        ] {
            let request = Request { gate_url, ..request(Mode::Required) };
            let told = exposure(&request, &ingress(json!({})), &[]).map(|told| told.reason);
            assert_eq!(told, expected, "{gate_url}");
        }
    }

    #[test]
    fn another_ingress_of_the_host_must_say_the_same() {
        let conflict = |namespace: &str, annotations: &Value| {
            let mut other = ingress(annotations.clone());
            other["metadata"]["namespace"] = json!(namespace);
            other["metadata"]["name"] = json!("other");
            let request = request(Mode::Required);
            super::super::conflict(&INGRESS_NGINX, &request, &ingress(json!({})), [&other])
        };
        let with = |changes: &[(&str, Value)]| {
            let mut annotations = json!({});
            for (key, value) in wanted(&request(Mode::Required)) {
                annotations[annotation(key)] = json!(value);
            }
            for (key, value) in changes {
                annotations[annotation(key)] = value.clone();
            }
            annotations
        };
        let canary =
            |key: &str, value: &str| json!({annotation(CANARY): "true", annotation(key): value});
        for (annotations, expected) in [
            (with(&[]), false),
            (with(&[("limit-rps", json!("5"))]), false),
            (with(&[("auth-tls-secret", Value::Null)]), true),
            (with(&[("auth-tls-secret", json!("shop/theirs"))]), true),
            (with(&[("auth-tls-verify-client", json!("off"))]), true),
            (with(&[("auth-tls-pass-certificate-to-upstream", json!("false"))]), true),
            (with(&[("ssl-passthrough", json!("true"))]), true),
            (with(&[("server-snippet", json!("ssl_verify_client off;"))]), true),
            (json!({}), true),
            // A canary serves by what the Ingress says whose canary it is.
            (canary("canary-weight", "10"), false),
            (canary("auth-tls-secret", "shop/theirs"), true),
        ] {
            for namespace in ["shop", "other"] {
                let told = conflict(namespace, &annotations);
                assert_eq!(told.is_some(), expected, "{namespace} {annotations}: {told:?}");
            }
        }
    }
}
