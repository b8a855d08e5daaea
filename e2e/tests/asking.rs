//! What the gate decides at the data planes that ask it: the real ones, as processes beside a real API server. What they
//! refuse by themselves is in `dataplanes.rs`.

#![allow(missing_docs)]

mod support;

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::api::ClientTrust;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use kube::ResourceExt;
use kube::api::PostParams;
use serde_json::{Value, json};

use support::contour::Contour;
use support::data_plane::{DataPlane, HOST, Refusal, leaf, objects, told};
use support::envoy_gateway::{EnvoyGateway, make};
use support::haproxy_ingress::HaproxyIngress;
use support::ingress_nginx::IngressNginx;
use support::operator::{NAMESPACE, control_plane};
use support::scene::{FORBIDDEN, OPEN, Scene, assert_told_to_users, start_operator};
use support::server::{Server, clock};
use support::traefik::{self, Ingresses, Traefik};
use support::{create, delete, eventually, patch};

/// A line as `htpasswd -nbBC 4` makes it, of "correct horse".
const USERS: &str = "ada:$2y$04$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi";

#[tokio::test]
async fn ingress_nginx_asks_who_may_pass_and_for_a_password() {
    asks_who_may_pass_and_for_a_password::<IngressNginx>().await;
}

#[tokio::test]
async fn haproxy_ingress_asks_who_may_pass_and_for_a_password() {
    asks_who_may_pass_and_for_a_password::<HaproxyIngress>().await;
}

#[tokio::test]
async fn traefik_in_place_of_ingress_nginx_asks_who_may_pass_and_for_a_password() {
    asks_who_may_pass_and_for_a_password::<Traefik<traefik::Nginx>>().await;
}

#[tokio::test]
async fn traefik_asks_who_may_pass_and_for_a_password() {
    asks_who_may_pass_and_for_a_password::<Traefik<Ingresses>>().await;
}

#[tokio::test]
async fn contour_asks_who_may_pass_and_for_a_password() {
    asks_who_may_pass_and_for_a_password::<Contour>().await;
}

#[tokio::test]
async fn envoy_gateway_asks_who_may_pass_and_for_a_password() {
    asks_who_may_pass_and_for_a_password::<EnvoyGateway>().await;
}

/// Where the gate is asked it decides by more than the CRL.
async fn asks_who_may_pass_and_for_a_password<P: DataPlane>() {
    let scene = Scene::<P>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.identity("other", "staff").await;
    let trusts = scene.api::<ClientTrust>();
    scene.trust().await;
    scene.until("everybody of the staff is let in", Some("other"), OPEN).await;
    // The clients of another authority never get in, though its CA comes to where those are who need not ask.
    scene.authority("partners").await;
    scene.identity("partner", "partners").await;
    scene.until("they do not before", Some("partner"), P::UNKNOWN).await;
    let authorities = json!([{"name": "staff"}, {"name": "partners"}]);
    let allow = json!({"commonNames": ["good"]});
    let spec = json!({"authorities": authorities, "allow": allow});
    patch(&trusts, "clients", json!({"spec": spec})).await;
    eventually("the gate refuses the other authority's client", || async {
        let partner = scene.ask(Some("partner"), &[]);
        assert_ne!(partner.status, 200, "{partner:?}");
        FORBIDDEN.is(&partner).then_some(())
    })
    .await;
    scene.until("a client that is not allowed is refused", Some("other"), FORBIDDEN).await;
    scene.until("the one that is allowed is let in", Some("good"), OPEN).await;
    scene.ready().await;

    let users = json!({"metadata": {"name": "users"}, "stringData": {"auth": USERS}});
    create(&scene.api::<Secret>(), &users.to_string()).await;
    let factor = json!({"spec": {"secondFactor": {"basic": {"secretName": "users"}}}});
    patch(&trusts, "clients", factor).await;
    let asked = Refusal::status(401);
    scene.until("a password is asked for", Some("good"), asked).await;
    let basic = |pair: &str| format!("Authorization: Basic {}", STANDARD.encode(pair));
    let (right, wrong) = (basic("ada:correct horse"), basic("ada:battery"));
    scene.until_with(&[&right], "the right one lets in", Some("good"), OPEN).await;
    scene.until_with(&[&wrong], "a wrong one does not", Some("good"), asked).await;
    let (other, nobody) = (scene.ask(Some("other"), &[&right]), scene.ask(None, &[&right]));
    assert!(FORBIDDEN.is(&other), "no password replaces the right certificate: {other:?}");
    assert!(P::MISSING.or(FORBIDDEN).may_be(&nobody), "nor any: {nobody:?}");
    let mut forged = P::forged(&scene.path("good"));
    forged.push(right.clone());
    let forged: Vec<&str> = forged.iter().map(String::as_str).collect();
    let other = scene.ask(Some("other"), &forged);
    assert!(FORBIDDEN.is(&other), "nor does the name of another client: {other:?}");
    // A client that waits to be asked is asked.
    let answer = scene.ask_for("/", Some("good"), &["--anyauth", "--user", "ada:correct horse"]);
    assert_eq!(answer.status, 200, "{}", answer.headers);
    assert!(answer.headers.contains(" 401 "), "{}", answer.headers);
    // The gate asks at once, and the data plane keeps it from the backend when it has taken that up.
    eventually("the backend does not get the password", || async {
        let answer = scene.ask(Some("good"), &[&right]);
        let told = told(&answer, "Authorization");
        told.iter().all(|value| value.is_empty()).then_some(())
    })
    .await;
    scene.ready().await;
    let allowed = [&[&*right][..], &[&wrong], &[]];
    let mut row = allowed.map(|headers| scene.cell_with(headers, Some("good"))).to_vec();
    row.extend([&[&*right], &*forged].map(|headers| scene.cell_with(headers, Some("other"))));
    assert_told_to_users::<P>(&row);
}

#[tokio::test]
async fn traefik_lets_nobody_in_while_the_gate_has_not_heard_of_revocations_for_too_long() {
    lets_nobody_in_while_the_gate_is_cut_off::<Traefik<Ingresses>>().await;
}

#[tokio::test]
async fn ingress_nginx_lets_nobody_in_while_the_gate_has_not_heard_of_revocations_for_too_long() {
    lets_nobody_in_while_the_gate_is_cut_off::<IngressNginx>().await;
}

/// The bound is a day, and the gate's clock goes ahead: the data plane's does not.
async fn lets_nobody_in_while_the_gate_is_cut_off<P: DataPlane>() {
    let (plane, client) = control_plane().await;
    let time = plane.folder().join("time");
    fs::write(&time, "+0").expect("written");
    let gate = Server::start_in(&plane, None, &clock(&time));
    let mut scene = Scene::<P>::with_gate(plane, client, gate).await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.trust().await;
    scene.until("no certificate is refused", None, P::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;

    scene.plane.stop_apiserver();
    fs::write(&time, "+23h").expect("written");
    scene.expect("within the bound", Some("good"), OPEN);
    fs::write(&time, "+25h").expect("written");
    scene.until("it has passed", Some("good"), FORBIDDEN).await;
    scene.expect("nor is who shows no certificate let in", None, P::MISSING);
    let answer = scene.ask(Some("good"), &[]);
    assert!(FORBIDDEN.is(&answer), "it stays so: {answer:?}");

    scene.plane.restart_apiserver().await;
    eventually("the gate has heard, and lets in again", || async {
        OPEN.is(&scene.ask(Some("good"), &[])).then_some(())
    })
    .await;
    let answer = scene.ask(Some("good"), &[]);
    assert!(OPEN.is(&answer), "it stays so: {answer:?}");
}

#[tokio::test]
async fn haproxy_ingress_asks_the_gate_and_what_leads_past_it_is_told() {
    let mut scene = Scene::<HaproxyIngress>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.identity("other", "staff").await;
    let (trusts, ingresses) = (scene.api::<ClientTrust>(), scene.api::<Ingress>());
    let before = scene.route().await;
    scene.trust().await;
    let spec = json!({"mode": "Optional", "forwardIdentity": "ClientCert", "allow": {"commonNames": ["good"]}});
    patch(&trusts, "clients", json!({"spec": spec})).await;
    scene.until("a client that is not allowed is refused", Some("other"), FORBIDDEN).await;
    scene.until("the one that is allowed is let in", Some("good"), OPEN).await;
    scene.until("no certificate is let in", None, OPEN).await;
    scene.ready().await;
    assert_eq!(scene.plain(HOST), 302);

    // Client-Cert is the gate's, whatever the client says.
    let forged = ["Client-Cert: :AAAA:", "Client-Cert: :BBBB:", "Client-Cert-Chain: :AAAA:"];
    let answer = scene.ask(Some("good"), &forged);
    let leaf = format!(":{}:", STANDARD.encode(leaf(&scene.path("good"))));
    assert_eq!(told(&answer, "Client-Cert"), [leaf]);
    assert_eq!(told(&answer, "Client-Cert-Chain"), [""]);
    let answer = scene.ask(None, &forged);
    assert_eq!(told(&answer, "Client-Cert"), [""]);
    assert_eq!(told(&answer, "Client-Cert-Chain"), [""]);

    // Another Ingress of the host: about its paths nobody asks.
    let mut other = HaproxyIngress::ingress("other", &[HOST], json!({}));
    other["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!("/other");
    create(&ingresses, &other.to_string()).await;
    scene.not_ready("Conflict").await;
    eventually("the other Ingress lets everybody in", || async {
        (scene.ask_for("/other", Some("other"), &[]).status == 200).then_some(())
    })
    .await;
    scene.expect("but not by this one", Some("other"), FORBIDDEN);
    // It becomes a target, too.
    let target =
        |name: &str| json!({"group": HaproxyIngress::ROUTE[0], "kind": "Ingress", "name": name});
    let targets = |names: &[&str]| {
        let targets: Vec<Value> = names.iter().map(|name| target(name)).collect();
        json!({"spec": {"targetRefs": targets}})
    };
    patch(&trusts, "clients", targets(&["shop", "other"])).await;
    scene.ready().await;
    eventually("the gate is asked there", || async {
        (scene.ask_for("/other", Some("other"), &[]).status == 403).then_some(())
    })
    .await;
    assert_eq!(scene.ask_for("/other", Some("good"), &[]).status, 200);
    delete(&ingresses, "other").await;
    patch(&trusts, "clients", targets(&["shop"])).await;
    scene.ready().await;

    // A stranger has the gate asked before the headers are set, or not at all.
    let set = |key: &str, value: Value| {
        let key = format!("haproxy-ingress.github.io/{key}");
        json!({"metadata": {"annotations": {key: value}}})
    };
    for (key, value) in [("auth-external-placement", "frontend"), ("auth-url", ""), ("oauth", "x")]
    {
        patch(&ingresses, "shop", set(key, json!(value))).await;
        scene.not_ready("Conflict").await;
        patch(&ingresses, "shop", set(key, Value::Null)).await;
        scene.ready().await;
    }
    scene.until("the gate is asked", Some("other"), FORBIDDEN).await;

    // Without the gate nobody gets in, until nothing needs it.
    scene.gate.end();
    let gone = Refusal::status(503).or(Refusal::status(500));
    scene.until("the gate is gone", Some("good"), gone).await;
    scene.expect("no certificate", None, gone);
    let spec = json!({"forwardIdentity": "Native", "allow": null});
    patch(&trusts, "clients", json!({"spec": spec})).await;
    scene.until("the gate is not asked", Some("other"), OPEN).await;
    let asking = |key: &&String| key.contains("/auth-url") || key.contains("/auth-external");
    assert!(!scene.route().await.annotations().keys().any(|key| asking(&key)));
    delete(&trusts, "clients").await;
    eventually("the route is restored", || async {
        (scene.route().await.annotations() == before.annotations()).then_some(())
    })
    .await;
    scene.until("the shop is open again", None, OPEN).await;
}

/// What only the gate decides by, where no certificate is needed.
fn decided_by_the_gate() -> Value {
    let allow = json!({"commonNames": ["good"]});
    json!({"spec": {"mode": "Optional", "forwardIdentity": "ClientCert", "allow": allow}})
}

impl<P: DataPlane> Scene<P> {
    /// The trust lets `good` in, who shows nothing, and not `other`; and the backend is told by the gate who it is,
    /// whatever the client says.
    async fn asks_the_gate(&self) {
        patch(&self.api::<ClientTrust>(), "clients", decided_by_the_gate()).await;
        self.until("a client that is not allowed is refused", Some("other"), FORBIDDEN).await;
        self.until("the one that is allowed is let in", Some("good"), OPEN).await;
        self.until("no certificate is let in", None, OPEN).await;
        self.ready().await;
        let forged = ["Client-Cert: :AAAA:", "Client-Cert: :BBBB:", "Client-Cert-Chain: :AAAA:"];
        let leaf = format!(":{}:", STANDARD.encode(leaf(&self.path("good"))));
        let answer = self.ask(Some("good"), &forged);
        assert_eq!(told(&answer, "Client-Cert"), [leaf]);
        assert!(told(&answer, "Client-Cert-Chain").is_empty());
        assert!(told(&self.ask(None, &forged), "Client-Cert").is_empty());
        // Many backends take these for the same.
        for name in ["Client_Cert", "Client_Cert_Chain", "Client-Cert_Chain", "Client_Cert-Chain"] {
            let answer = self.ask(None, &[&format!("{name}: :AAAA:")]);
            // Envoy Gateway has the whole request refused, by the end of the stream.
            let refused = answer.status == 0 && answer.body.contains("was not closed cleanly");
            assert!(refused || told(&answer, name).is_empty(), "{name}: {answer:?}");
        }
    }

    /// Nobody gets in without the gate, until nothing needs it.
    async fn needs_the_gate_as_long_as_something_does(&mut self) {
        self.gate.end();
        self.until("the gate is gone", Some("good"), FORBIDDEN).await;
        self.expect("no certificate", None, FORBIDDEN);
        let native = json!({"spec": {"forwardIdentity": "Native", "allow": null}});
        patch(&self.api::<ClientTrust>(), "clients", native).await;
        self.until("the gate is not asked", Some("other"), OPEN).await;
        self.ready().await;
    }
}

#[tokio::test]
async fn contour_asks_the_gate_and_what_leads_past_it_is_told() {
    let mut scene = Scene::<Contour>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.identity("other", "staff").await;
    let (trusts, proxies) = (scene.api::<ClientTrust>(), scene.routes());
    let before = scene.route().await;
    scene.trust().await;
    scene.asks_the_gate().await;

    // Routes that switch it off, or ask something else.
    let routes = |policy: Value| {
        let service = json!({"name": "shop", "port": 80});
        json!([{"services": [service], "authPolicy": policy}])
    };
    patch(&proxies, "shop", json!({"spec": {"routes": routes(json!({"disabled": true}))}})).await;
    scene.not_ready("Conflict").await;
    scene.until("the gate is not asked there", Some("other"), OPEN).await;
    let part = json!({
        "apiVersion": "projectcontour.io/v1", "kind": "HTTPProxy", "metadata": {"name": "part"},
        "spec": {"routes": routes(Value::Null)},
    });
    let part = serde_json::from_value(part).expect("an HTTPProxy");
    proxies.create(&PostParams::default(), &part).await.expect("created");
    patch(&proxies, "shop", json!({"spec": {"routes": null, "includes": [{"name": "part"}]}}))
        .await;
    scene.ready().await;
    scene.until("the gate is asked about what is included", Some("other"), FORBIDDEN).await;
    scene.until("the one that is allowed is let in", Some("good"), OPEN).await;
    let lax = json!({"context": {"mode": "Optional", "trust": "shop/none"}});
    patch(&proxies, "part", json!({"spec": {"routes": routes(lax)}})).await;
    scene.not_ready("Conflict").await;
    patch(&proxies, "part", json!({"spec": {"routes": routes(Value::Null)}})).await;
    scene.ready().await;

    // A stranger has requests pass when the gate is away, which is undone or told.
    let open =
        |open: Value| json!({"spec": {"virtualhost": {"authorization": {"failOpen": open}}}});
    patch(&proxies, "shop", open(json!(true))).await;
    scene.not_ready("Conflict").await;
    patch(&proxies, "shop", open(Value::Null)).await;
    scene.ready().await;

    // The object by which it is found is put back when it is gone, and until then nobody gets in.
    let kind = ["projectcontour.io", "v1alpha1", "ExtensionService"];
    let services = objects(&scene.client, Some(NAMESPACE), kind);
    let uid = services.get("countersign-gate").await.expect("it").metadata.uid;
    scene.operator.take().expect("an operator").kill();
    delete(&services, "countersign-gate").await;
    let closed = Refusal::alert("");
    scene.until("nobody gets in", Some("good"), closed).await;
    scene.expect("nor who shows nothing", None, closed);
    scene.operator = Some(start_operator(&scene.plane, &scene.gate));
    scene.until("it is put back", Some("good"), OPEN).await;
    assert_ne!(services.get("countersign-gate").await.expect("it").metadata.uid, uid);
    scene.ready().await;

    patch(
        &proxies,
        "shop",
        json!({"spec": {"includes": null, "routes": before.data["spec"]["routes"]}}),
    )
    .await;
    scene.needs_the_gate_as_long_as_something_does().await;
    assert!(scene.route().await.data["spec"]["virtualhost"]["authorization"].is_null());
    eventually("what stood beside the gate is gone", || async {
        services.get_opt("countersign-gate").await.expect("an answer").is_none().then_some(())
    })
    .await;
    delete(&trusts, "clients").await;
    eventually("the route is restored", || async {
        (scene.route().await.data["spec"] == before.data["spec"]).then_some(())
    })
    .await;
    scene.until("the shop is open again", None, OPEN).await;
}

#[tokio::test]
async fn envoy_gateway_asks_the_gate_and_what_leads_past_it_is_told() {
    let mut scene = Scene::<EnvoyGateway>::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.identity("other", "staff").await;
    let trusts = scene.api::<ClientTrust>();
    let policies = EnvoyGateway::security_policies(&scene.client, &scene.namespace);
    scene.trust().await;
    scene.asks_the_gate().await;

    // A policy of somebody else for the route goes before ours.
    let other = json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "SecurityPolicy", "metadata": {"name": "theirs"},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "shop"}],
            "cors": {"allowOrigins": ["https://example.com"]},
        },
    });
    make(&scene.client, Some(&scene.namespace), other.clone()).await;
    scene.not_ready("Conflict").await;
    scene.until("the gate is not asked there", Some("other"), OPEN).await;
    delete(&policies, "theirs").await;
    scene.ready().await;
    scene.until("the gate is asked again", Some("other"), FORBIDDEN).await;
    let mut merged = other;
    merged["spec"]["mergeType"] = json!("StrategicMerge");
    make(&scene.client, Some(&scene.namespace), merged).await;
    scene.not_ready("Conflict").await;
    delete(&policies, "theirs").await;
    scene.ready().await;

    // Another hand in our policy: what we say is restored, what it says beside that is told.
    let ours = "countersign-clients";
    let set = |field: &str, value: Value| json!({"spec": {"extAuth": {field: value}}});
    patch(&policies, ours, set("failOpen", json!(true))).await;
    eventually("the gate's word is needed", || async {
        let policy = policies.get(ours).await.expect("the policy").data;
        (policy["spec"]["extAuth"]["failOpen"] == false).then_some(())
    })
    .await;
    patch(&policies, ours, set("headersToExtAuth", json!(["x"]))).await;
    scene.not_ready("Conflict").await;
    patch(&policies, ours, set("headersToExtAuth", Value::Null)).await;
    scene.ready().await;
    scene.until("the one that is allowed is let in", Some("good"), OPEN).await;

    // Without the permission of the gate's namespace nobody gets in, until it is put back.
    let grants = EnvoyGateway::grants(&scene.client, NAMESPACE);
    let grant = format!("countersign-gate-{}", scene.namespace);
    scene.operator.take().expect("an operator").kill();
    delete(&grants, &grant).await;
    let closed = Refusal::status(500);
    scene.until("nobody gets in", Some("good"), closed).await;
    scene.expect("nor who shows nothing", None, closed);
    scene.operator = Some(start_operator(&scene.plane, &scene.gate));
    scene.until("it is put back", Some("good"), OPEN).await;
    scene.ready().await;

    scene.needs_the_gate_as_long_as_something_does().await;
    assert!(policies.get_opt(ours).await.expect("an answer").is_none());
    eventually("the permission is gone", || async {
        grants.get_opt(&grant).await.expect("an answer").is_none().then_some(())
    })
    .await;
    delete(&trusts, "clients").await;
    scene.until("the shop is open again", None, OPEN).await;
}
