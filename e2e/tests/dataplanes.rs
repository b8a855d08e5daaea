//! Data planes that verify client certificates, and the CRLs or ask the gate: the real ones, as processes beside a real API server,
//! programmed by a `ClientTrust` and asked by curl.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use countersign::api::condition::{ACCEPTED, PROGRAMMED, READY, REVOCATION_ENFORCED};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use countersign::pki::inspect::certificates;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{DynamicObject, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use support::contour::Contour;
use support::control_plane::free_ports;
use support::data_plane::{DataPlane, HOST, Refusal, kubectl, resource};
use support::envoy_gateway::{EnvoyGateway, install, make};
use support::haproxy_ingress::HaproxyIngress;
use support::ingress_nginx::IngressNginx;
use support::operator::{Operator, control_plane};
use support::scene::{IN_FORCE, OPEN, Scene, assert_told_to_users, data, start_operator};
use support::server::curl;
use support::servers::curl_at;
use support::traefik::{self, IngressRoutes, Ingresses, Traefik, ingress};
use support::{condition, create, delete, eventually, namespace, patch, wait_for};

/// A host beside it that asks nobody for a certificate.
const OPEN_HOST: &str = "open.example.com";
/// A host of an Ingress that has the shop's, too.
const OTHER_HOST: &str = "other.example.com";

#[tokio::test]
async fn haproxy_ingress_lets_in_whom_the_trust_names_and_nobody_who_is_revoked() {
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<HaproxyIngress>().await;
}

#[tokio::test]
async fn contour_lets_in_whom_the_trust_names_and_nobody_who_is_revoked() {
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<Contour>().await;
}

#[tokio::test]
async fn ingress_nginx_lets_in_whom_the_trust_names_and_nobody_who_is_revoked() {
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<IngressNginx>().await;
}

#[tokio::test]
async fn traefik_in_place_of_ingress_nginx_lets_in_whom_the_trust_names_and_nobody_who_is_revoked()
{
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<Traefik<traefik::Nginx>>().await;
}

#[tokio::test]
async fn traefik_lets_in_whom_the_trust_of_an_ingress_names_and_nobody_who_is_revoked() {
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<Traefik<Ingresses>>().await;
}

#[tokio::test]
async fn traefik_lets_in_whom_the_trust_of_an_ingress_route_names_and_nobody_who_is_revoked() {
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<Traefik<IngressRoutes>>().await;
}

#[tokio::test]
async fn envoy_gateway_lets_in_whom_the_trust_names_and_nobody_who_is_revoked() {
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<EnvoyGateway>().await;
}

async fn lets_in_whom_the_trust_names_and_nobody_who_is_revoked<P: DataPlane>() {
    let scene = Scene::<P>::new().await;
    scene.authority("staff").await;
    scene.authority("strangers").await;
    for (name, authority) in
        [("good", "staff"), ("stolen", "staff"), ("lost", "staff"), ("stranger", "strangers")]
    {
        scene.identity(name, authority).await;
    }
    scene.until("the shop is open before there is a trust", None, OPEN).await;
    let before = scene.route().await;

    let trusts = scene.api::<ClientTrust>();
    let trust = scene.trust().await;
    let conditions = &trust.status.expect("a status").targets[0].conditions;
    for (type_, reason) in
        [(ACCEPTED, "Programmed"), (PROGRAMMED, "Programmed"), (REVOCATION_ENFORCED, P::ENFORCED)]
    {
        let found = condition(conditions, type_).expect(type_);
        assert_eq!((found.status.as_str(), found.reason.as_str()), ("True", reason), "{type_}");
    }

    // No certificate, a valid one, one of another CA, an expired one.
    scene.until("no certificate is refused", None, P::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;
    scene.until("a certificate of another CA is refused", Some("stranger"), P::UNKNOWN).await;
    scene.write_expired("late").await;
    scene.until("an expired certificate is refused", Some("late"), P::EXPIRED).await;

    // The backend is told who it is, whatever the client says.
    let forged = P::forged(&scene.path("lost"));
    let forged: Vec<&str> = forged.iter().map(String::as_str).collect();
    P::assert_told(&scene.ask(Some("good"), &forged), Some(&scene.path("good")));

    // Revoked, by a CertificateRevocation and by deleting the identity.
    scene.until("it is let in as long as it is not revoked", Some("stolen"), OPEN).await;
    let started = Instant::now();
    let revocation = "{metadata: {name: stolen}, spec: {identityRef: {name: stolen}}}";
    create(&scene.api::<CertificateRevocation>(), revocation).await;
    scene.until("a revoked certificate is refused", Some("stolen"), P::REVOKED).await;
    let took = started.elapsed();
    println!("{}: refused {:.1} s after the revocation", P::NAME, took.as_secs_f64());
    assert!(took < IN_FORCE, "{took:?}");
    delete(&scene.api::<ClientIdentity>(), "lost").await;
    scene.until("the certificate of a deleted identity is refused", Some("lost"), P::REVOKED).await;
    scene.expect("nobody else is refused", Some("good"), OPEN);
    scene.until("so it stays", Some("stolen"), P::REVOKED.at_last()).await;
    let clients = [None, Some("good"), Some("stranger"), Some("late"), Some("stolen")];
    let mut row: Vec<String> = clients.map(|client| scene.cell(client)).into();

    // Revoked, then reissued: the new one is good, the old one stays dead.
    delete(&scene.api::<CertificateRevocation>(), "stolen").await;
    wait_for(&scene.api::<ClientIdentity>(), "stolen", READY, "True", "Issued").await;
    scene.expect("the revoked certificate", Some("stolen"), P::REVOKED);
    scene.fetch("stolen").await;
    scene.until("the reissued certificate is let in", Some("stolen"), OPEN).await;
    row.push(scene.cell(Some("stolen")));

    // Optional: without a certificate one gets in, and forging gains nothing.
    patch(&trusts, "clients", json!({"spec": {"mode": "Optional"}})).await;
    scene.until("no certificate is let in when it is optional", None, OPEN).await;
    // A worker of nginx from before the reload may still answer one connection.
    let answer = eventually("whoever forges is let in, too", || async {
        let answer = scene.ask(None, &forged);
        (answer.status == 200).then_some(answer)
    })
    .await;
    row.push(answer.status.to_string());
    P::assert_told(&answer, None);
    row.push("dropped".to_owned());
    scene.expect("a good certificate is let in", Some("good"), OPEN);
    scene.expect("a revoked one is refused all the same", Some("lost"), P::REVOKED);
    scene.expect("and so is one of another CA", Some("stranger"), P::UNKNOWN);

    // Deleted: the route is what it was, and the shop open again, even to the revoked.
    delete(&trusts, "clients").await;
    eventually("the route is restored", || async {
        let now = scene.route().await;
        let same =
            now.annotations() == before.annotations() && now.data["spec"] == before.data["spec"];
        same.then_some(())
    })
    .await;
    scene.until("the shop is open again", None, OPEN).await;
    scene.until("and asks for no certificate", Some("lost"), OPEN).await;

    assert_told_to_users::<P>(&row);
}

#[tokio::test]
async fn haproxy_ingress_follows_a_rotation_of_the_ca() {
    follows_a_rotation_of_the_ca::<HaproxyIngress>().await;
}

#[tokio::test]
async fn contour_follows_a_rotation_of_the_ca() {
    follows_a_rotation_of_the_ca::<Contour>().await;
}

#[tokio::test]
async fn ingress_nginx_follows_a_rotation_of_the_ca() {
    follows_a_rotation_of_the_ca::<IngressNginx>().await;
}

#[tokio::test]
async fn traefik_in_place_of_ingress_nginx_follows_a_rotation_of_the_ca() {
    follows_a_rotation_of_the_ca::<Traefik<traefik::Nginx>>().await;
}

#[tokio::test]
async fn traefik_follows_a_rotation_of_the_ca() {
    follows_a_rotation_of_the_ca::<Traefik<IngressRoutes>>().await;
}

#[tokio::test]
async fn envoy_gateway_follows_a_rotation_of_the_ca() {
    follows_a_rotation_of_the_ca::<EnvoyGateway>().await;
}

async fn follows_a_rotation_of_the_ca<P: DataPlane>() {
    let scene = Scene::<P>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.trust().await;
    scene.until("no certificate is refused", None, P::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;
    fs::rename(scene.path("good"), scene.path("old")).expect("renamed");

    let now = jiff::Timestamp::now().to_string();
    let rotate = json!({"metadata": {"annotations": {"countersign.dev/rotate-requested-at": now}}});
    patch(&scene.authorities(), "staff", rotate).await;
    let secret = eventually("another CA issues", || async {
        assert_eq!(scene.ask(Some("old"), &[]).status, 200, "no request fails on the way");
        let secret = scene.api::<Secret>().get("good-tls").await.expect("a Secret");
        (secret.annotations()["countersign.dev/generation"] == "2").then_some(secret)
    })
    .await;
    assert_eq!(certificates(data(&secret, "ca.crt")).expect("a bundle").len(), 2);
    scene.fetch("good").await;
    scene.until("the old certificate is good in the overlap", Some("old"), OPEN).await;
    scene.until("the new one, too", Some("good"), OPEN).await;
    assert_told_to_users::<P>(&["old", "good"].map(|client| scene.cell(Some(client))));

    let compromised = json!({"spec": {"compromisedGenerations": [1]}});
    patch(&scene.authorities(), "staff", compromised).await;
    let refused = P::REVOKED.or(P::UNKNOWN);
    scene.until("the certificate of the CA before is refused", Some("old"), refused).await;
    scene.until("the new one is let in", Some("good"), OPEN).await;
}

#[tokio::test]
async fn haproxy_ingress_stays_closed_and_what_opens_it_is_told() {
    let mut scene = Scene::<HaproxyIngress>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.data_plane.route(&scene.client, &scene.namespace, "open", OPEN_HOST).await;
    let trusts = scene.api::<ClientTrust>();
    let ingresses = scene.api::<Ingress>();
    scene.until("the shop is open before there is a trust", None, OPEN).await;
    assert_eq!(scene.plain(HOST), 302, "the plain port redirects");
    scene.trust().await;
    scene.until("no certificate is refused", None, HaproxyIngress::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;

    // Neither the plain port nor a connection of another name leads past.
    assert_eq!(scene.plain(HOST), 302);
    assert_eq!(scene.ask_at(OPEN_HOST, None, &[]).status, 200);
    let fronted = format!("Host: {HOST}");
    assert_eq!(scene.ask_at(OPEN_HOST, None, &[&fronted]).status, 421);

    let refusal = HaproxyIngress::REVOKED;
    scene.outlives_the_loss_of_the_secret(refusal, Some(refusal)).await;

    // A stranger takes an annotation away, which is restored, and then sets it, which is told.
    let verify = |value: Value| {
        let key = "haproxy-ingress.github.io/auth-tls-verify-client";
        json!({"metadata": {"annotations": {key: value}}})
    };
    patch(&ingresses, "shop", verify(Value::Null)).await;
    eventually("the annotation is restored", || async {
        let now = ingresses.get("shop").await.expect("the Ingress");
        now.annotations().get("haproxy-ingress.github.io/auth-tls-verify-client").cloned()
    })
    .await;
    patch(&ingresses, "shop", verify(json!("off"))).await;
    scene.not_ready("Conflict").await;
    scene.until("the stranger has opened the shop", None, OPEN).await;
    patch(&ingresses, "shop", verify(Value::Null)).await;
    scene.ready().await;
    scene.until("it is closed again", None, HaproxyIngress::MISSING).await;

    // Another Ingress of the host that says otherwise. By its other host one sees that it is in force.
    let annotations = verify(json!("off"))["metadata"]["annotations"].clone();
    let ingress = HaproxyIngress::ingress("other", &[HOST, OTHER_HOST], annotations);
    create(&ingresses, &ingress.to_string()).await;
    scene.not_ready("Conflict").await;
    let other = |status| (scene.ask_at(OTHER_HOST, None, &[]).status == status).then_some(());
    eventually("the other Ingress is in force", || async { other(200) }).await;
    assert_eq!(scene.ask(None, &[]).status, 496, "the older Ingress counts");
    delete(&ingresses, "other").await;
    scene.ready().await;
    eventually("the other Ingress is gone", || async { other(0) }).await;

    // Without TLS it is open on the plain port.
    let tls = ingresses.get("shop").await.expect("the Ingress").spec.expect("a spec").tls;
    patch(&ingresses, "shop", json!({"spec": {"tls": null}})).await;
    scene.not_ready("PlainHTTP").await;
    eventually("the plain port is open", || async { (scene.plain(HOST) == 200).then_some(()) })
        .await;
    patch(&ingresses, "shop", json!({"spec": {"tls": tls}})).await;
    scene.ready().await;
    eventually("the plain port redirects again", || async {
        (scene.plain(HOST) == 302).then_some(())
    })
    .await;
    scene.until("no certificate is refused", None, HaproxyIngress::MISSING).await;

    // Its class becomes one that nobody serves, and the trust goes: nothing of it stays.
    let foreign = "{metadata: {name: foreign}, spec: {controller: example.com/unknown}}";
    create::<IngressClass>(&Api::all(scene.client.clone()), foreign).await;
    let class = ingresses.get("shop").await.expect("it").spec.expect("a spec").ingress_class_name;
    patch(&ingresses, "shop", json!({"spec": {"ingressClassName": "foreign"}})).await;
    scene.not_ready("UnsupportedDataPlane").await;
    delete(&trusts, "clients").await;
    eventually("the annotations are gone", || async {
        let now = ingresses.get("shop").await.expect("the Ingress");
        let ours = |key: &&String| key.contains("haproxy") || key.contains("countersign");
        now.annotations().keys().find(ours).is_none().then_some(())
    })
    .await;
    patch(&ingresses, "shop", json!({"spec": {"ingressClassName": class}})).await;
    scene.until("the shop is open again", None, OPEN).await;
}

#[tokio::test]
async fn ingress_nginx_refuses_by_the_crl_too_and_stays_closed_without_the_gate() {
    let mut scene = Scene::<IngressNginx>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.identity("stolen", "staff").await;
    scene.trust().await;
    scene.until("no certificate is refused", None, IngressNginx::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;
    assert_eq!(scene.plain(HOST), 308);
    let revocation = "{metadata: {name: stolen}, spec: {identityRef: {name: stolen}}}";
    create(&scene.api::<CertificateRevocation>(), revocation).await;
    scene.until("the CRL refuses before the gate", Some("stolen"), Refusal::status(400)).await;
    scene.outlives_the_loss_of_the_secret(Refusal::status(403), Some(Refusal::status(400))).await;
    scene.gate.end();
    scene.until("the gate is gone", Some("good"), Refusal::status(500)).await;
    scene.expect("the CRL is not", Some("stolen"), Refusal::status(400));
}

#[tokio::test]
async fn traefik_in_place_of_ingress_nginx_stays_closed_and_what_opens_it_is_told() {
    type Nginx = Traefik<traefik::Nginx>;
    let mut scene = Scene::<Nginx>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.data_plane.route(&scene.client, &scene.namespace, "open", OPEN_HOST).await;
    let ingresses = scene.api::<Ingress>();
    scene.trust().await;
    scene.until("no certificate is refused", None, Nginx::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;

    // Neither the plain port nor a connection of another name leads past.
    assert_eq!(scene.plain(HOST), 308, "the plain port redirects");
    assert_eq!(scene.ask_at(OPEN_HOST, None, &[]).status, 200);
    let fronted = format!("Host: {HOST}");
    assert_eq!(scene.ask_at(OPEN_HOST, None, &[&fronted]).status, 421);

    // A client that is believed to come over TLS is not redirected, and what it sends stays; the gate knows.
    let plain = |mode: &str| {
        let to = format!("http://{}/", scene.data_plane.http());
        let forged = Nginx::forged(&scene.path("good"));
        let mut arguments = vec![to.as_str(), "--header", &fronted];
        for header in ["X-Forwarded-Proto: https"].into_iter().chain(forged.iter().map(|f| &**f)) {
            if !header.starts_with("Connection") {
                arguments.extend(["--header", header]);
            }
        }
        let answer = curl(&arguments);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(
            (answer.status, &*text),
            (403, "the client certificate is not valid\n"),
            "{mode}"
        );
    };
    plain("Required");
    let mode = |mode: &str| json!({"spec": {"mode": mode}});
    patch(&scene.api::<ClientTrust>(), "clients", mode("Optional")).await;
    scene.until("no certificate is let in when it is optional", None, OPEN).await;
    plain("Optional");
    patch(&scene.api::<ClientTrust>(), "clients", mode("Required")).await;
    scene.until("no certificate is refused", None, Nginx::MISSING).await;

    scene.outlives_the_loss_of_the_secret(Refusal::status(404), None).await;
    scene.ready().await;

    // A stranger takes an annotation away, which is restored, and then sets it, which is told. The gate is asked
    // all the same.
    let set = |key: &str, value: Value| {
        let key = format!("nginx.ingress.kubernetes.io/{key}");
        json!({"metadata": {"annotations": {key: value}}})
    };
    patch(&ingresses, "shop", set("auth-url", Value::Null)).await;
    eventually("the annotation is restored", || async {
        let now = ingresses.get("shop").await.expect("the Ingress");
        now.annotations().get("nginx.ingress.kubernetes.io/auth-url").cloned()
    })
    .await;
    patch(&ingresses, "shop", set("auth-tls-verify-client", json!("off"))).await;
    scene.not_ready("Conflict").await;
    scene.until("nobody is asked, and the gate refuses", Some("good"), Refusal::status(403)).await;
    patch(&ingresses, "shop", set("auth-tls-verify-client", Value::Null)).await;
    scene.ready().await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;
    patch(&ingresses, "shop", set("satisfy", json!("any"))).await;
    scene.not_ready("Conflict").await;
    patch(&ingresses, "shop", set("satisfy", Value::Null)).await;
    scene.ready().await;

    // Another Ingress of the host that asks nobody. By its other host one sees that it is in force.
    let mut other = ingress("nginx", "other", HOST, "/other");
    let mut rule = other["spec"]["rules"][0].clone();
    rule["host"] = json!(OTHER_HOST);
    other["spec"]["rules"].as_array_mut().expect("rules").push(rule);
    create(&ingresses, &other.to_string()).await;
    scene.not_ready("Conflict").await;
    let other = |status| (scene.ask_at(OTHER_HOST, None, &[]).status == status).then_some(());
    eventually("the other Ingress is in force", || async { other(404) }).await;
    scene.expect("no certificate is refused", None, Nginx::MISSING.or(Nginx::REVOKED));
    delete(&ingresses, "other").await;
    scene.ready().await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;

    // Without TLS the plain port redirects all the same. By another host one sees that it is in force.
    let mut spec = json!(ingresses.get("shop").await.expect("the Ingress").spec);
    spec["tls"] = Value::Null;
    let mut rule = spec["rules"][0].clone();
    rule["host"] = json!(OTHER_HOST);
    spec["rules"].as_array_mut().expect("rules").push(rule);
    patch(&ingresses, "shop", json!({"spec": spec})).await;
    eventually("it is in force", || async {
        (scene.ask_at(OTHER_HOST, Some("good"), &[]).status == 200).then_some(())
    })
    .await;
    assert_eq!(scene.plain(HOST), 308);
    assert_eq!(scene.ask_at(OTHER_HOST, None, &[]).status, 0);
    scene.expect("no certificate is refused", None, Nginx::MISSING);
    scene.ready().await;

    // Without the gate nobody gets in.
    scene.gate.end();
    scene.until("the gate is gone", Some("good"), Refusal::status(500)).await;
}

#[tokio::test]
async fn contour_stays_closed_and_what_opens_it_is_told() {
    let mut scene = Scene::<Contour>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.data_plane.route(&scene.client, &scene.namespace, "open", OPEN_HOST).await;
    let trusts = scene.api::<ClientTrust>();
    let proxies = scene.routes();
    scene.trust().await;
    scene.until("no certificate is refused", None, Contour::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;

    // Neither the plain port nor a connection of another name leads past.
    assert_eq!(scene.plain(HOST), 301, "the plain port redirects");
    assert_eq!(scene.ask_at(OPEN_HOST, None, &[]).status, 200);
    let fronted = format!("Host: {HOST}");
    assert_eq!(scene.ask_at(OPEN_HOST, None, &[&fronted]).status, 421);

    let expired = Refusal::alert("alert certificate expired");
    scene.outlives_the_loss_of_the_secret(Refusal::alert(""), Some(expired)).await;
    scene.ready().await;

    // A stranger takes a field away, which is restored, and then sets it, which is told.
    let validation = |field: &str, value: Value| json!({"spec": {"virtualhost": {"tls": {"clientValidation": {field: value}}}}});
    patch(&proxies, "shop", validation("crlSecret", Value::Null)).await;
    eventually("the field is restored", || async {
        let tls = &scene.route().await.data["spec"]["virtualhost"]["tls"];
        (tls["clientValidation"]["crlSecret"] == "countersign-clients").then_some(())
    })
    .await;
    scene.ready().await;
    patch(&proxies, "shop", validation("skipClientCertValidation", json!(true))).await;
    scene.not_ready("Conflict").await;
    patch(&proxies, "shop", validation("skipClientCertValidation", Value::Null)).await;
    scene.ready().await;
    scene.until("no certificate is refused", None, Contour::MISSING).await;

    // Another HTTPProxy of the host: Contour serves neither, and says so.
    scene.data_plane.route(&scene.client, &scene.namespace, "other", HOST).await;
    scene.not_ready("NotProgrammed").await;
    let trust = trusts.get("clients").await.expect("the trust").status.expect("a status");
    let message = &condition(&trust.conditions, READY).expect("told").message;
    assert!(message.contains("is used in multiple HTTPProxies"), "{message}");
    delete(&proxies, "other").await;
    scene.ready().await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;

    // Routes on the plain port, of the root and of what it includes; that has no host, and can be no target.
    let routes = |insecure: bool| {
        let service = json!({"name": "shop", "port": 80});
        json!([{"services": [service], "permitInsecure": insecure}])
    };
    let plain = async |expected| {
        let what = format!("{expected} on the plain port");
        eventually(&what, || async { (scene.plain(HOST) == expected).then_some(()) }).await;
    };
    patch(&proxies, "shop", json!({"spec": {"routes": routes(true)}})).await;
    scene.not_ready("PlainHTTP").await;
    plain(200).await;
    patch(&proxies, "shop", json!({"spec": {"routes": null, "includes": [{"name": "part"}]}}))
        .await;
    let part = json!({
        "apiVersion": "projectcontour.io/v1", "kind": "HTTPProxy", "metadata": {"name": "part"},
        "spec": {"routes": routes(false)},
    });
    let part = serde_json::from_value(part).expect("an HTTPProxy");
    proxies.create(&PostParams::default(), &part).await.expect("created");
    scene.ready().await;
    plain(301).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;
    patch(&proxies, "part", json!({"spec": {"routes": routes(true)}})).await;
    scene.not_ready("PlainHTTP").await;
    plain(200).await;
    patch(&proxies, "part", json!({"spec": {"routes": routes(false)}})).await;
    scene.ready().await;
    let target =
        |name: &str| json!([{"group": "projectcontour.io", "kind": "HTTPProxy", "name": name}]);
    patch(&trusts, "clients", json!({"spec": {"targetRefs": target("part")}})).await;
    scene.not_ready("HostMissing").await;
    scene.until("the former target is open", None, OPEN).await;
    patch(&trusts, "clients", json!({"spec": {"targetRefs": target("shop")}})).await;
    scene.ready().await;
    scene.until("no certificate is refused", None, Contour::MISSING).await;
    delete(&trusts, "clients").await;
    scene.until("the shop is open again", None, OPEN).await;
}

#[tokio::test]
async fn envoy_gateway_stays_closed_and_what_opens_it_is_told() {
    let mut scene = Scene::<EnvoyGateway>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    let trusts = scene.api::<ClientTrust>();
    let gateways = scene.routes();
    let policies = EnvoyGateway::policies(&scene.client, &scene.namespace);
    scene.trust().await;
    scene.until("no certificate is refused", None, EnvoyGateway::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;
    let fronted = format!("Host: {OPEN_HOST}");
    assert_eq!(scene.ask(Some("good"), &[&fronted]).status, 404, "no other host is served there");

    // While the policy is not accepted there is no listener, or it answers 500.
    let refusal = Refusal::status(0).or(Refusal::status(500));
    scene.outlives_the_loss_of_the_secret(refusal, Some(refusal)).await;
    scene.ready().await;

    // A stranger takes a field of the policy away, which is restored, and then sets another, which is told.
    let ours = "countersign-clients";
    let validation = |fields: Value| json!({"spec": {"tls": {"clientValidation": fields}}});
    patch(&policies, ours, validation(json!({"crl": null}))).await;
    eventually("the field is restored", || async {
        let policy = policies.get(ours).await.expect("the policy").data;
        let crl = &policy["spec"]["tls"]["clientValidation"]["crl"];
        (crl["refs"][0]["name"] == ours).then_some(())
    })
    .await;
    scene.ready().await;
    patch(&policies, ours, validation(json!({"allowExpiredCertificate": true}))).await;
    scene.not_ready("Conflict").await;
    patch(&policies, ours, validation(json!({"allowExpiredCertificate": null}))).await;
    scene.ready().await;

    // Another policy for the Gateway comes too late; one for its listener goes before ours.
    let policy = |name: &str, section: Option<&str>| {
        json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "ClientTrafficPolicy", "metadata": {"name": name},
            "spec": {"targetRefs": [{
                "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "shop", "sectionName": section,
            }]},
        })
    };
    make(&scene.client, Some(&scene.namespace), policy("late", None)).await;
    eventually("it is not accepted", || async {
        let late = policies.get("late").await.expect("it").data;
        (late["status"]["ancestors"][0]["conditions"][0]["reason"] == "Conflicted").then_some(())
    })
    .await;
    scene.expect("no certificate", None, EnvoyGateway::MISSING);
    make(&scene.client, Some(&scene.namespace), policy("listener", Some("https"))).await;
    scene.not_ready("Conflict").await;
    scene.expect("the Gateway's own field still asks", None, EnvoyGateway::MISSING);
    delete(&policies, "listener").await;
    scene.ready().await;
    scene.until("no certificate is refused", None, EnvoyGateway::MISSING).await;

    // A listener that speaks plain HTTP.
    let listeners = gateways.get("shop").await.expect("it").data["spec"]["listeners"].clone();
    let (_, port) = scene.data_plane.http().rsplit_once(':').expect("a port");
    let plain =
        json!({"name": "http", "protocol": "HTTP", "port": port.parse::<u16>().expect("a port")});
    let both = json!([listeners[0], plain]);
    patch(&gateways, "shop", json!({"spec": {"listeners": both}})).await;
    scene.not_ready("PlainHTTP").await;
    eventually("the plain port is open", || async { (scene.plain(HOST) == 200).then_some(()) })
        .await;
    patch(&gateways, "shop", json!({"spec": {"listeners": listeners}})).await;
    scene.ready().await;

    // Two targets, one policy: one that is taken off the trust opens, and the other one stays closed.
    let [port] = free_ports();
    let address = format!("127.0.0.1:{port}");
    EnvoyGateway::gateway(&scene.client, &scene.namespace, "other", OTHER_HOST, &address).await;
    let other = || curl_at(&address, OTHER_HOST, &scene.path("server.pem"), None, &[]);
    let other_is = async |expected: Refusal| {
        eventually(&format!("the other Gateway answers {expected:?}"), || async {
            expected.is(&other()).then_some(())
        })
        .await;
    };
    let targets = |names: &[&str]| {
        let target =
            |name: &&str| json!({"group": EnvoyGateway::ROUTE[0], "kind": "Gateway", "name": name});
        json!({"spec": {"targetRefs": names.iter().map(target).collect::<Vec<_>>()}})
    };
    other_is(OPEN).await;
    patch(&trusts, "clients", targets(&["shop", "other"])).await;
    other_is(EnvoyGateway::MISSING).await;
    scene.ready().await;
    patch(&trusts, "clients", targets(&["shop"])).await;
    other_is(OPEN).await;
    scene.expect("no certificate", None, EnvoyGateway::MISSING);
    let mark = "countersign.dev/client-trust";
    eventually("it has no mark", || async {
        let other = gateways.get("other").await.expect("it");
        (!other.annotations().contains_key(mark)).then_some(())
    })
    .await;

    // None is left: nor is the policy.
    let elsewhere = json!([{"group": "networking.k8s.io", "kind": "Ingress", "name": "none"}]);
    patch(&trusts, "clients", json!({"spec": {"targetRefs": elsewhere}})).await;
    scene.until("the former target is open", None, OPEN).await;
    assert!(policies.get_opt(ours).await.expect("an answer").is_none());
    // Ours is the newer one now, and gives way.
    patch(&trusts, "clients", targets(&["shop"])).await;
    scene.not_ready("Conflict").await;
    scene.until("the Gateway's own field asks", None, EnvoyGateway::MISSING).await;
    delete(&policies, "late").await;
    scene.ready().await;
    scene.until("no certificate is refused", None, EnvoyGateway::MISSING).await;

    // A class that nobody serves; the policy outlasts it.
    let foreign = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "foreign"},
        "spec": {"controllerName": "example.com/unknown"},
    });
    make(&scene.client, None, foreign).await;
    let class = |name: &str| json!({"spec": {"gatewayClassName": name}});
    let uid = policies.get(ours).await.expect("the policy").metadata.uid;
    patch(&gateways, "shop", class("foreign")).await;
    scene.not_ready("UnsupportedDataPlane").await;
    assert_eq!(policies.get(ours).await.expect("the policy").metadata.uid, uid);
    patch(&gateways, "shop", class("envoy")).await;
    scene.ready().await;
    scene.until("no certificate is refused", None, EnvoyGateway::MISSING).await;

    // The trust goes while nobody looks.
    scene.operator.take().expect("an operator").kill();
    delete(&trusts, "clients").await;
    scene.expect("it stays closed", None, EnvoyGateway::MISSING);
    scene.operator = Some(start_operator(&scene.plane, &scene.gate));
    scene.until("the shop is open again", None, OPEN).await;
}

/// No controller of these runs here: what is written is what the API server takes, and nothing is claimed of it.
#[tokio::test]
async fn gateways_of_other_controllers_get_the_field_of_the_gateway_api() {
    let (plane, client) = control_plane().await;
    let _operator = Operator::start(&plane);
    let namespace = namespace(&client, "shop").await;
    install(&plane, &client).await;
    let authorities: Api<ClientAuthority> = Api::all(client.clone());
    create(&authorities, "{metadata: {name: staff}, spec: {selfSigned: {commonName: staff}}}")
        .await;
    let [group, version, kind] = EnvoyGateway::ROUTE;
    let gateways: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &namespace, &resource::<EnvoyGateway>());
    let trusts: Api<ClientTrust> = Api::namespaced(client.clone(), &namespace);
    let trust_in = |name: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"authorities": [{"name": "staff"}], "targetRefs": [{"group": group, "kind": kind, "name": name}]},
        })
    };
    for (name, controller) in [
        ("fabric", "gateway.nginx.org/nginx-gateway-controller"),
        ("traefik", "traefik.io/gateway-controller"),
    ] {
        let class = json!({
            "apiVersion": format!("{group}/{version}"), "kind": "GatewayClass", "metadata": {"name": name},
            "spec": {"controllerName": controller},
        });
        make(&client, None, class).await;
        EnvoyGateway::gateway(&client, &namespace, name, HOST, ":443").await;
        patch(&gateways, name, json!({"spec": {"gatewayClassName": name}})).await;
        create(&trusts, &trust_in(name).to_string()).await;
    }

    let trust = eventually("it waits for a controller that is not there", || async {
        let trust = trusts.get("fabric").await.expect("it");
        let message = &condition(&trust.status.as_ref()?.conditions, READY)?.message;
        message.contains("waits for its controller").then_some(trust)
    })
    .await;
    let conditions = &trust.status.expect("a status").targets[0].conditions;
    let revocation = condition(conditions, REVOCATION_ENFORCED).expect("told");
    assert_eq!((&*revocation.status, &*revocation.reason), ("False", "DataPlaneLacksCRL"));
    let fabric = gateways.get("fabric").await.expect("it").data;
    let validation = &fabric["spec"]["tls"]["frontend"]["default"]["validation"];
    let expected = json!({
        "mode": "AllowValidOnly",
        "caCertificateRefs": [{"group": "", "kind": "Secret", "name": "countersign-fabric"}],
    });
    assert_eq!(validation, &expected);

    wait_for(&trusts, "traefik", READY, "False", "UnsupportedDataPlane").await;
    let status = trusts.get("traefik").await.expect("it").status.expect("a status");
    let message = &condition(&status.conditions, READY).expect("told").message;
    assert!(message.contains("name an Ingress or an IngressRoute"), "{message}");

    // Who does not ask the gate gets no CA that would let anybody in by what only the gate decides.
    let ca = async || {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        let secret = secrets.get("countersign-fabric").await.expect("the trust's Secret");
        data(&secret, "ca.crt").to_vec()
    };
    let before = ca().await;
    let service = json!({"url": {"endpoint": "http://login.example.com/"}});
    for (field, value, reason) in [
        ("allow", json!({"commonNames": ["good"]}), "AllowNotEnforced"),
        ("secondFactor", service, "SecondFactorNotEnforced"),
    ] {
        let mut spec = json!({"mode": "Optional", "allow": null});
        spec[field] = value;
        patch(&trusts, "fabric", json!({"spec": spec})).await;
        let trust = wait_for(&trusts, "fabric", READY, "False", reason).await;
        let told = &trust.status.expect("a status").targets[0].conditions;
        let told = &condition(told, PROGRAMMED).expect("it").message;
        assert!(told.contains(&format!("spec.{field}")), "{told}");
        assert!(told.contains("NGINX Gateway Fabric"), "{told}");
        assert_ne!(ca().await, before);
    }
    let spec = json!({"mode": "Required", "secondFactor": null});
    patch(&trusts, "fabric", json!({"spec": spec})).await;
    wait_for(&trusts, "fabric", READY, "False", "NotProgrammed").await;
    assert_eq!(ca().await, before);

    // Another hand's value for a port goes first, and is told; its value for the whole Gateway is not overruled.
    let ports = |ports: Value| json!({"spec": {"tls": {"frontend": {"perPort": ports}}}});
    patch(&gateways, "fabric", ports(json!([{"port": 443, "tls": {}}]))).await;
    wait_for(&trusts, "fabric", READY, "False", "Conflict").await;
    patch(&gateways, "fabric", ports(Value::Null)).await;
    wait_for(&trusts, "fabric", READY, "False", "NotProgrammed").await;
    EnvoyGateway::gateway(&client, &namespace, "taken", HOST, ":443").await;
    let reference = json!({"group": "", "kind": "ConfigMap", "name": "theirs"});
    let theirs = json!({"caCertificateRefs": [reference], "mode": "AllowInsecureFallback"});
    let spec = json!({"gatewayClassName": "fabric", "tls": {"frontend": {"default": {"validation": theirs}}}});
    patch(&gateways, "taken", json!({"spec": spec})).await;
    create(&trusts, &trust_in("taken").to_string()).await;
    wait_for(&trusts, "taken", READY, "False", "Conflict").await;
    let taken = gateways.get("taken").await.expect("it").data;
    assert_eq!(taken["spec"]["tls"]["frontend"]["default"]["validation"], theirs);

    delete(&trusts, "fabric").await;
    eventually("nothing of it stays", || async {
        let fabric = gateways.get("fabric").await.expect("it");
        let marked = fabric.annotations().contains_key("countersign.dev/client-trust");
        (fabric.data["spec"]["tls"]["frontend"].is_null() && !marked).then_some(())
    })
    .await;
}

/// Traefik's kinds come and go here while the controller runs, and so does all else, in any order.
#[tokio::test]
async fn any_order_of_install_and_removal_will_do() {
    let (plane, client) = control_plane().await;
    let mut operator = Operator::start(&plane);
    let namespace = namespace(&client, "shop").await;
    let trusts: Api<ClientTrust> = Api::namespaced(client.clone(), &namespace);
    let ingresses: Api<Ingress> = Api::namespaced(client.clone(), &namespace);
    let authorities: Api<ClientAuthority> = Api::all(client.clone());
    let definitions = std::env::var("TRAEFIK_CRDS").expect("TRAEFIK_CRDS names a file");
    let names = ["ingress", "route"];
    let make_trusts = async || {
        for (name, [group, _, kind]) in
            [("ingress", Traefik::<Ingresses>::ROUTE), ("route", Traefik::<IngressRoutes>::ROUTE)]
        {
            let target = json!({"group": group, "kind": kind, "name": "shop"});
            let spec = json!({"authorities": [{"name": "staff"}], "targetRefs": [target]});
            create(&trusts, &json!({"metadata": {"name": name}, "spec": spec}).to_string()).await;
        }
    };
    let make_ingress =
        async || create(&ingresses, &ingress("traefik", "shop", HOST, "/").to_string()).await;
    let make_authority = async || {
        let yaml = "{metadata: {name: staff}, spec: {selfSigned: {commonName: staff}}}";
        create(&authorities, yaml).await;
        wait_for(&authorities, "staff", READY, "True", "Ready").await;
    };
    let install = async || {
        kubectl(&plane, &["apply", "--server-side", "-f", &definitions], "");
        let established = ["wait", "--for", "condition=Established", "--timeout", "60s", "-f"];
        kubectl(&plane, &[&established[..], &[&definitions]].concat(), "");
        let route = json!({
            "apiVersion": "traefik.io/v1alpha1", "kind": "IngressRoute", "metadata": {"name": "shop"},
            "spec": {"routes": [{"match": format!("Host(`{OTHER_HOST}`)"), "kind": "Rule", "services": [{"name": "shop", "port": 80}]}]},
        });
        make(&client, Some(&namespace), route).await;
    };
    let not_ready = async |name: &str, words: &str| {
        eventually(&format!("{name} tells {words:?}"), || async {
            let conditions = trusts.get(name).await.expect("it").status?.conditions;
            let ready = condition(&conditions, READY)?;
            (ready.status == "False" && ready.message.contains(words)).then_some(())
        })
        .await;
    };
    let ready = async || {
        for name in names {
            wait_for(&trusts, name, READY, "True", "Programmed").await;
        }
    };
    let health = operator.health_port;
    let reconciles = || {
        let answer = curl(&[&format!("http://127.0.0.1:{health}/metrics")]);
        let text = String::from_utf8(answer.body).expect("text");
        let counts = text.lines().filter(|line| line.starts_with("countersign_reconciles_total"));
        counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>()
    };
    // Three seconds, some time, in which nothing is written and hardly anything looked at: what is tried again and
    // again at once never comes to that.
    let quiet = async |when: &str| {
        eventually(&format!("nothing is written {when}"), || async {
            let (writes, looks) = (plane.writes("operator").len(), reconciles());
            assert!(looks > 0.0, "its metrics tell");
            tokio::time::sleep(Duration::from_secs(3)).await;
            let written = plane.writes("operator").len() > writes;
            (!written && reconciles() - looks <= 10.0).then_some(())
        })
        .await;
    };
    let mark = "countersign.dev/client-trust";

    // The trusts first, then a target, the authority, and the data plane's kinds with the other target at last.
    make_trusts().await;
    for name in names {
        not_ready(name, "staff").await;
    }
    quiet("without an authority").await;
    let class = "{metadata: {name: traefik}, spec: {controller: traefik.io/ingress-controller}}";
    create::<IngressClass>(&Api::all(client.clone()), class).await;
    make_ingress().await;
    make_authority().await;
    not_ready("ingress", "install the data plane").await;
    not_ready("route", "does not exist").await;
    quiet("without Traefik's kinds").await;
    let unmarked = ingresses.get("shop").await.expect("it");
    assert!(!unmarked.annotations().contains_key(mark), "it would name what is not there");
    install().await;
    ready().await;
    quiet("with everything").await;

    // A target goes, and comes back; so does the authority.
    delete(&ingresses, "shop").await;
    not_ready("ingress", "does not exist").await;
    quiet("without a target").await;
    make_ingress().await;
    ready().await;
    delete(&authorities, "staff").await;
    for name in names {
        not_ready(name, "staff").await;
    }
    quiet("without the authority").await;
    make_authority().await;
    ready().await;

    // The kinds go, and come back. Whoever looks at the trust again is told.
    kubectl(&plane, &["delete", "-f", &definitions], "");
    not_ready("route", "does not exist").await;
    patch(&trusts, "ingress", json!({"spec": {"mode": "Optional"}})).await;
    not_ready("ingress", "install the data plane").await;
    quiet("after the kinds went").await;
    install().await;
    ready().await;

    // All goes, the trusts last, and the kinds before them: nothing of ours is left.
    kubectl(&plane, &["delete", "-f", &definitions], "");
    delete(&authorities, "staff").await;
    for name in names {
        not_ready(name, "staff").await;
        delete(&trusts, name).await;
    }
    eventually("the Ingress is as it was", || async {
        let annotations = ingresses.get("shop").await.expect("it").annotations().clone();
        (annotations.into_keys().collect::<Vec<_>>() == ["example.com/team"]).then_some(())
    })
    .await;
    quiet("when all is gone").await;
    assert!(operator.is_running(), "it was never started anew");
}
