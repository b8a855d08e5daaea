//! Ingresses that are programmed by annotations: what every such data plane has in common.

use serde_json::{Value, json};

use super::{Edit, Request};
use crate::api::annotation;

/// Puts a trust on an Ingress by these annotations, a JSON object of strings, and the trust's mark.
pub fn attach(request: &Request<'_>, target: &Value, wanted: Value) -> Edit {
    let fields = wanted.as_object().expect("an object literal");
    let annotations = &target["metadata"]["annotations"];
    let there = fields.iter().all(|(key, value)| &annotations[key] == value);
    if there && annotations[annotation::TRUST] == request.trust {
        return Edit::Nothing;
    }
    apply(request, target, wanted)
}

/// The same whatever stands there: annotations that were applied before, and are not wanted now, go.
pub fn apply(request: &Request<'_>, target: &Value, mut wanted: Value) -> Edit {
    wanted[annotation::TRUST] = json!(request.trust);
    Edit::Apply(applied(target, json!({"annotations": wanted})))
}

/// Takes the trust off an object that it was put on by server-side apply. Applying none of our fields removes
/// those that we applied before; the version keeps it from removing what another trust applied since.
pub fn detach(target: &Value) -> Edit {
    let version = json!({"resourceVersion": target["metadata"]["resourceVersion"]});
    Edit::Apply(applied(target, version))
}

/// The least that server-side apply needs to find the object; the UID keeps it from making one.
pub fn applied(target: &Value, extra: Value) -> Value {
    let mut metadata = json!({
        "name": target["metadata"]["name"],
        "namespace": target["metadata"]["namespace"],
        "uid": target["metadata"]["uid"],
    });
    if let (Some(metadata), Value::Object(extra)) = (metadata.as_object_mut(), extra) {
        metadata.extend(extra);
    }
    json!({"apiVersion": target["apiVersion"], "kind": target["kind"], "metadata": metadata})
}

/// An annotation of an object.
pub fn value<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"][key].as_str()
}

/// The path of an annotation, for messages.
pub fn field(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

/// The hosts of an Ingress' rules.
pub fn rule_hosts(ingress: &Value) -> impl Iterator<Item = &str> {
    let rules = ingress["spec"]["rules"].as_array().into_iter().flatten();
    rules.filter_map(|rule| rule["host"].as_str())
}

/// The hosts under `tls` of an Ingress.
pub fn tls_hosts(ingress: &Value) -> impl Iterator<Item = &str> {
    let entries = ingress["spec"]["tls"].as_array().into_iter().flatten();
    let hosts = entries.flat_map(|entry| entry["hosts"].as_array().into_iter().flatten());
    hosts.filter_map(Value::as_str)
}

/// Where ACME's challenges are answered (RFC 8555 section 8.3), which some data planes leave open.
pub const ACME: &str = "/.well-known/acme-challenge";

/// The paths of an Ingress' rules.
pub fn paths(ingress: &Value) -> impl Iterator<Item = &str> {
    let rules = ingress["spec"]["rules"].as_array().into_iter().flatten();
    let paths = rules.flat_map(|rule| rule["http"]["paths"].as_array().into_iter().flatten());
    paths.filter_map(|path| path["path"].as_str())
}

/// Has every rule of an Ingress an exact host, and it no backend for all others?
pub fn names_its_hosts(ingress: &Value) -> bool {
    let exact = |rule: &Value| rule["host"].as_str().is_some_and(|host| !host.starts_with('*'));
    let rules = ingress["spec"]["rules"].as_array();
    ingress["spec"]["defaultBackend"].is_null()
        && rules.is_some_and(|rules| !rules.is_empty() && rules.iter().all(exact))
}
