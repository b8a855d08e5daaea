//! Data planes that are programmed and don't run here: the API server, with their own resource definitions, takes what is
//! written for them, and has what was there before when the trust is gone.

#![allow(missing_docs)]

mod support;

use countersign::api::condition::READY;
use countersign::api::{ClientAuthority, ClientTrust};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use support::control_plane::ControlPlane;
use support::data_plane::kubectl;
use support::operator::{Operator, control_plane};
use support::{create, delete, eventually, namespace, patch, wait_for};

/// A route of a data plane, and the operator.
struct Scene {
    // The order counts: what uses the API server ends before it.
    _operator: Operator,
    _plane: ControlPlane,
    client: Client,
    namespace: String,
    routes: Api<DynamicObject>,
}

impl Scene {
    /// With the definitions of a file and a route `shop` of this group, version and kind.
    async fn new(crds: &str, [group, version, kind]: [&str; 3], spec: Value) -> Self {
        let (plane, client) = control_plane().await;
        kubectl(&plane, &["apply", "--server-side", "-f", crds], "");
        let established = ["wait", "--for", "condition=Established", "--timeout", "60s", "-f"];
        kubectl(&plane, &[&established[..], &[crds]].concat(), "");
        let operator = Operator::start(&plane);
        let namespace = namespace(&client, "shop").await;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let routes = Api::namespaced_with(client.clone(), &namespace, &resource);
        let route = json!({
            "apiVersion": format!("{group}/{version}"), "kind": kind,
            "metadata": {"name": "shop", "annotations": {"example.com/team": "shop"}}, "spec": spec,
        });
        let route = serde_json::from_value(route).expect("an object");
        routes.create(&PostParams::default(), &route).await.expect("created");
        let authority = "{metadata: {name: staff}, spec: {selfSigned: {commonName: staff}}}";
        let authorities: Api<ClientAuthority> = Api::all(client.clone());
        create(&authorities, authority).await;
        wait_for(&authorities, "staff", READY, "True", "Ready").await;
        let scene = Self { _operator: operator, _plane: plane, client, namespace, routes };
        let trust = json!({
            "metadata": {"name": "clients"},
            "spec": {
                "authorities": [{"name": "staff"}],
                "targetRefs": [{"group": group, "kind": kind, "name": "shop"}],
            },
        });
        create(&scene.trusts(), &trust.to_string()).await;
        scene
    }

    fn trusts(&self) -> Api<ClientTrust> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn until(&self, status: &str, reason: &str) {
        wait_for(&self.trusts(), "clients", READY, status, reason).await;
    }

    async fn route(&self) -> DynamicObject {
        self.routes.get("shop").await.expect("the route")
    }

    async fn change(&self, spec: Value) {
        patch(&self.routes, "shop", json!({ "spec": spec })).await;
    }

    async fn secret(&self, name: &str) -> Secret {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let secret = secrets.get(name).await.expect("a Secret");
        for key in ["ca.crt", "ca.crl"] {
            assert!(!secret.data.as_ref().expect("data")[key].0.is_empty(), "{key}");
        }
        secret
    }

    /// Deletes the trust: nothing of it stays.
    async fn ends_as(&self, spec: &Value) {
        delete(&self.trusts(), "clients").await;
        eventually("the route is restored", || async {
            let now = self.route().await;
            let annotations: Vec<_> = now.annotations().keys().collect();
            (now.data["spec"] == *spec && annotations == ["example.com/team"]).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_gateway_of_istio_asks_for_certificates_at_every_server_with_tls() {
    let crds = std::env::var("ISTIO_CRDS").expect(
        "ISTIO_CRDS names no file; run `make test`, or ISTIO_CRDS=$(e2e/istio/crds) cargo test --test rendered",
    );
    let host = "shop.example.com";
    let server = |number: u16, protocol: &str, tls: Value| {
        let port = json!({"number": number, "name": protocol.to_lowercase(), "protocol": protocol});
        json!({"port": port, "hosts": [host], "tls": tls})
    };
    let redirect = server(80, "HTTP", json!({"httpsRedirect": true}));
    let before = json!({
        "selector": {"istio": "ingressgateway"},
        "servers": [redirect, server(443, "HTTPS", json!({"mode": "SIMPLE", "credentialName": "shop-tls"}))],
    });
    let scene = Scene::new(&crds, ["networking.istio.io", "v1", "Gateway"], before.clone()).await;
    scene.until("True", "Programmed").await;
    let with = |mode: &str| {
        let ca = "countersign-clients-cacert";
        let tls = json!({"mode": mode, "credentialName": "shop-tls", "caCertCredentialName": ca});
        json!([redirect, server(443, "HTTPS", tls)])
    };
    assert_eq!(scene.route().await.data["spec"]["servers"], with("MUTUAL"));
    scene.secret("countersign-clients").await;

    patch(&scene.trusts(), "clients", json!({"spec": {"mode": "Optional"}})).await;
    eventually("certificates are optional", || async {
        (scene.route().await.data["spec"]["servers"] == with("OPTIONAL_MUTUAL")).then_some(())
    })
    .await;

    // What lets clients past is told.
    let mut open = with("OPTIONAL_MUTUAL");
    open[0]["tls"]["httpsRedirect"] = json!(false);
    scene.change(json!({ "servers": open })).await;
    scene.until("False", "PlainHTTP").await;
    let mut open = with("OPTIONAL_MUTUAL");
    open[1]["tls"]["insecureSkipVerify"] = json!(true);
    scene.change(json!({ "servers": open })).await;
    scene.until("False", "Conflict").await;
    scene.change(json!({ "servers": with("OPTIONAL_MUTUAL") })).await;
    scene.until("True", "Programmed").await;
    scene.ends_as(&before).await;
}
