//! Istio (1.28 and later): the servers of a Gateway (networking.istio.io/v1).
//!
//! Each server that terminates TLS asks for certificates (`tls.mode`), and verifies them by `ca.crt` and `ca.crl` of
//! the trust's Secret, which istiod hands to the gateway's Envoy. Envoy refuses in the handshake. What matters, by
//! the source at 1.31.0-rc.0:
//! - `tls.caCertCredentialName` has to end in `-cacert`, or istiod takes the Secret for that of a server and hands
//!   over nothing (`pilot/pkg/xds/sds.go`, generate). It looks for a Secret of this name, and then for one
//!   without the suffix, which is the trust's (`pilot/pkg/credentials/kube/secrets.go`, GetCaCert). Before 1.28
//!   there is no such field, and nobody gets in.
//! - The Secret has to be in the namespace of the gateway's pods, which is not always that of the Gateway. Where it
//!   is not found nobody gets in; where it is lost, or becomes empty, Envoy goes on with the last one.
//! - `insecureSkipVerify` lets everybody in; it is set to false, and true is a conflict.
//! - A server without `mode` passes TLS through. It, and one without TLS that does not redirect, is told. The backend of
//!   one with `ISTIO_MUTUAL` is asked by the mesh's own certificates.
//! - Of two servers with one port and host, of whatever Gateways of the same pods, the older Gateway's is served
//!   (`pilot/pkg/model/gateway.go`, CheckDuplicates).
//!
//! The backend is told who it is in `X-Forwarded-Client-Cert`; one that a client sends is dropped, unless the mesh
//! says otherwise (`gatewayTopology.forwardClientCertDetails`).

use serde_json::{Value, json};

use super::{
    DataPlane, Edit, Exposure, FieldConflict, Kind, Request, Revocation, group_of, name_of,
    object_name,
};
use crate::api::annotation;
use crate::api::trust::{Mode, Reason};

/// The row of Istio's own Gateway.
pub const ISTIO: DataPlane = DataPlane {
    name: "Istio",
    ingress_controller: None,
    gateway_controller: None,
    kinds: &[Kind { group: GROUP, version: "v1", kind: "Gateway", detach }],
    revocation: Revocation::ByCrl("ca.crl"),
    asks_gate: false,
    secret: None,
    objects: |_, _| Vec::new(),
    beside_gate: None,
    attach,
    hosts,
    exposure,
    conflict,
};

const GROUP: &str = "networking.istio.io";

/// What a server terminates TLS with that asks nobody for a certificate, and others that do.
const SIMPLE: &str = "SIMPLE";
const ASKING: [&str; 2] = ["MUTUAL", "OPTIONAL_MUTUAL"];

/// The Secret of a trust as a Gateway names it.
fn reference(trust: &str) -> String {
    format!("{}-cacert", object_name(trust))
}

fn attach(request: &Request<'_>, target: &Value) -> Result<Edit, FieldConflict> {
    let mut edited = target.clone();
    let reference = reference(request.trust);
    let mode = match request.mode {
        Mode::Required => ASKING[0],
        Mode::Optional => ASKING[1],
    };
    for (i, server) in servers_mut(&mut edited).enumerate() {
        let terminates = [SIMPLE, ASKING[0], ASKING[1]].contains(&text(&server["tls"]["mode"]));
        if !terminates || is_plain(&server["port"]) {
            continue;
        }
        let tls = &mut server["tls"];
        let conflict = |field: &str, value: &str| {
            let field = format!("spec.servers[{i}].tls.{field}");
            Err(FieldConflict { field, value: value.to_owned() })
        };
        match text(&tls["caCertCredentialName"]) {
            "" if tls["mode"] != SIMPLE => return conflict("mode", text(&tls["mode"])),
            found if !found.is_empty() && found != reference => {
                return conflict("caCertCredentialName", found);
            }
            _ if tls["insecureSkipVerify"] == true => {
                return conflict("insecureSkipVerify", "true");
            }
            _ => {}
        }
        tls["mode"] = json!(mode);
        tls["caCertCredentialName"] = json!(reference);
    }
    edited["metadata"]["annotations"][annotation::TRUST] = json!(request.trust);
    Ok(if edited == *target { Edit::Nothing } else { Edit::Replace(edited) })
}

fn detach(trust: &str, target: &Value) -> Edit {
    let mut edited = target.clone();
    let reference = reference(trust);
    if let Some(annotations) = edited["metadata"]["annotations"].as_object_mut() {
        annotations.remove(annotation::TRUST);
    }
    for server in servers_mut(&mut edited) {
        // No other server has it, and a server that asked for itself never got it.
        if let Some(tls) = server.get_mut("tls").and_then(Value::as_object_mut)
            && tls.get("caCertCredentialName").is_some_and(|found| *found == reference)
        {
            tls.remove("caCertCredentialName");
            tls.insert("mode".to_owned(), json!(SIMPLE));
        }
    }
    Edit::Replace(edited)
}

fn servers_mut(gateway: &mut Value) -> impl Iterator<Item = &mut Value> {
    gateway["spec"]["servers"].as_array_mut().into_iter().flatten()
}

fn servers(gateway: &Value) -> impl Iterator<Item = &Value> {
    gateway["spec"]["servers"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Is this a port without TLS, at which a server's `tls` says at most that it redirects?
fn is_plain(port: &Value) -> bool {
    ["HTTP", "HTTP2", "GRPC", "GRPC-WEB"].contains(&&*text(&port["protocol"]).to_uppercase())
}

/// The hosts of a server, without the namespaces whose routes it takes.
fn hosts_of(server: &Value) -> impl Iterator<Item = String> {
    let hosts = server["hosts"].as_array().into_iter().flatten().filter_map(Value::as_str);
    hosts.map(|host| host.rsplit('/').next().unwrap_or(host).to_lowercase())
}

fn hosts(object: &Value) -> Vec<String> {
    if group_of(object) != GROUP || object["kind"] != "Gateway" {
        return Vec::new();
    }
    servers(object).flat_map(hosts_of).collect()
}

fn exposure(_: &Request<'_>, target: &Value, _: &[&Value]) -> Option<Exposure> {
    let open = |(i, server): (usize, &Value)| {
        let (tls, port) = (&server["tls"], &server["port"]);
        let mode = text(&tls["mode"]);
        let server = format!("spec.servers[{i}] (port {})", port["number"]);
        if is_plain(port) {
            return (tls["httpsRedirect"] != true).then(|| {
                (Reason::PlainHTTP, format!("serves plain HTTP, where nobody is asked for a certificate: set tls.httpsRedirect of {server} to true, or give it to a Gateway of its own"))
            });
        }
        if !ASKING.contains(&mode) {
            let mode = if mode.is_empty() { "PASSTHROUGH" } else { mode };
            return Some((
                Reason::Conflict,
                format!(
                    "does not verify certificates of clients at {server}, whose tls.mode is {mode}: set it to {SIMPLE}, or give it to a Gateway of its own"
                ),
            ));
        }
        let names = tls["credentialNames"].as_array().is_some_and(|names| !names.is_empty());
        if text(&tls["credentialName"]).is_empty() && !names {
            return Some((
                Reason::Conflict,
                format!(
                    "has its certificate in a file at {server}, beside which Istio takes no CA from a Secret; set tls.credentialName"
                ),
            ));
        }
        None
    };
    let (reason, message) = servers(target).enumerate().find_map(open)?;
    Some(Exposure { reason, message })
}

/// Another server of the same pods with this host and port.
fn conflict(_: &Request<'_>, host: &str, target: &Value, other: &Value) -> Option<String> {
    if target["spec"]["selector"] != other["spec"]["selector"] {
        return None;
    }
    let ports = |gateway| -> Vec<&Value> {
        let of_host = |server: &&Value| {
            hosts_of(server).any(|found| found == host) && !is_plain(&server["port"])
        };
        servers(gateway).filter(of_host).map(|server| &server["port"]["number"]).collect()
    };
    let theirs = ports(other);
    let port = ports(target).into_iter().find(|port| theirs.contains(port))?;
    Some(format!(
        "{} serves host {host:?} on port {port}, too: Istio serves the older one alone, which may not be {}; serve one of both under another host or port",
        name_of(other),
        name_of(target)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::super::{attach, detach};
    use super::*;

    fn gateway() -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "shop", "namespace": "shop", "resourceVersion": "7", "annotations": {"mine": "1"}},
            "spec": {
                "selector": {"istio": "ingressgateway"},
                "servers": [
                    {
                        "port": {"number": 80, "name": "http", "protocol": "HTTP"},
                        "hosts": ["Shop.example.com"],
                        "tls": {"httpsRedirect": true},
                    },
                    {
                        "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
                        "hosts": ["shop/shop.example.com", "*/www.example.com"],
                        "tls": {"mode": "SIMPLE", "credentialName": "shop-tls"},
                    },
                ],
            },
        })
    }

    fn edited(mode: Mode) -> Value {
        let edit = attach(&ISTIO, &request(mode), &gateway());
        let Ok(Edit::Replace(edited)) = edit else { panic!("kept") };
        edited
    }

    #[test]
    fn every_server_with_tls_asks_and_is_restored() {
        for (mode, expected) in [(Mode::Required, "MUTUAL"), (Mode::Optional, "OPTIONAL_MUTUAL")] {
            let now = edited(mode);
            let mut wanted = gateway();
            wanted["metadata"]["annotations"][annotation::TRUST] = json!("clients");
            wanted["spec"]["servers"][1]["tls"] = json!({
                "mode": expected,
                "credentialName": "shop-tls",
                "caCertCredentialName": "countersign-clients-cacert",
            });
            assert_eq!(now, wanted);
            assert_eq!(attach(&ISTIO, &request(mode), &now), Ok(Edit::Nothing));
            assert_eq!(detach("clients", &now), Edit::Replace(gateway()));
            assert_eq!(detach("another", &now), Edit::Nothing);
        }
        // From one mode to the other.
        let changed = attach(&ISTIO, &request(Mode::Optional), &edited(Mode::Required));
        assert_eq!(changed, Ok(Edit::Replace(edited(Mode::Optional))));
    }

    #[test]
    fn what_somebody_else_verifies_by_is_a_conflict() {
        for (field, value, expected) in [
            ("mode", json!("MUTUAL"), "spec.servers[1].tls.mode"),
            ("mode", json!("OPTIONAL_MUTUAL"), "spec.servers[1].tls.mode"),
            ("caCertCredentialName", json!("theirs"), "spec.servers[1].tls.caCertCredentialName"),
            ("insecureSkipVerify", json!(true), "spec.servers[1].tls.insecureSkipVerify"),
        ] {
            let mut gateway = gateway();
            gateway["spec"]["servers"][1]["tls"][field] = value;
            let error = attach(&ISTIO, &request(Mode::Required), &gateway).unwrap_err();
            assert_eq!(error.field, expected);
        }
        let mut skipping = edited(Mode::Required);
        skipping["spec"]["servers"][1]["tls"]["insecureSkipVerify"] = json!(true);
        assert!(attach(&ISTIO, &request(Mode::Required), &skipping).is_err());
    }

    #[test]
    fn what_lets_clients_past_is_told() {
        let with = |edit: fn(&mut Value)| {
            let mut gateway = edited(Mode::Required);
            edit(&mut gateway["spec"]["servers"]);
            gateway
        };
        for (target, expected) in [
            (edited(Mode::Required), None),
            (with(|servers| servers[0]["tls"] = json!(null)), Some(Reason::PlainHTTP)),
            (
                with(|servers| servers[1]["tls"]["mode"] = json!("PASSTHROUGH")),
                Some(Reason::Conflict),
            ),
            (
                with(|servers| servers[1]["tls"] = json!({"credentialName": "a"})),
                Some(Reason::Conflict),
            ),
            (
                with(|servers| servers[1]["tls"]["mode"] = json!("ISTIO_MUTUAL")),
                Some(Reason::Conflict),
            ),
            (
                with(|servers| servers[1]["tls"]["credentialName"] = json!(null)),
                Some(Reason::Conflict),
            ),
            (
                with(|servers| {
                    servers[1]["tls"]["credentialName"] = json!(null);
                    servers[1]["tls"]["credentialNames"] = json!(["a", "b"]);
                }),
                None,
            ),
        ] {
            let told =
                exposure(&request(Mode::Required), &target, &[]).map(|exposure| exposure.reason);
            assert_eq!(told, expected, "{target}");
        }
    }

    #[test]
    fn another_server_of_the_host_and_port_is_told() {
        let conflict = |edit: fn(&mut Value)| {
            let mut other = gateway();
            other["metadata"]["namespace"] = json!("other");
            edit(&mut other["spec"]);
            super::super::conflict(&ISTIO, &request(Mode::Required), &gateway(), [&other]).is_some()
        };
        assert!(conflict(|_| {}));
        assert!(!conflict(|spec| spec["selector"]["istio"] = json!("internal")));
        assert!(!conflict(|spec| spec["servers"][1]["port"]["number"] = json!(8443)));
        assert!(!conflict(|spec| spec["servers"][1]["hosts"] = json!(["*/api.example.com"])));
        let mut other_group = gateway();
        other_group["apiVersion"] = json!("gateway.networking.k8s.io/v1");
        assert!(hosts(&other_group).is_empty());
        assert_eq!(hosts(&gateway()), ["shop.example.com", "shop.example.com", "www.example.com"]);
    }
}
