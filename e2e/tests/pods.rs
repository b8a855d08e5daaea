//! Data planes other than Traefik as pods of the cluster, asked by a real curl from outside; Countersign is installed by
//! the chart, with the chart's rights. `e2e/setup data-planes` brings the cluster to where these start. What each of
//! them makes of a trust in detail is in `dataplanes.rs`, with processes.

#![allow(missing_docs)]

mod support;

use std::time::{Duration, Instant};

use countersign::api::ClientTrust;
use countersign::api::condition::{READY, REVOCATION_ENFORCED};
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::json;

use support::contour::Contour;
use support::data_plane::{DataPlane, Refusal};
use support::envoy_gateway::EnvoyGateway;
use support::haproxy_ingress::HaproxyIngress;
use support::shop::{Shop, trust_yaml};
use support::{condition, create, delete, eventually, kubectl, patch, wait_for};

/// How long a revoked client may get in.
const BOUND: Duration = Duration::from_secs(30);

/// A shop behind a data plane that listens at an address, with its route named `shop`.
async fn story<P: DataPlane>(shop: Shop) {
    shop.until("the open shop answers", None, 200).await;
    let staff = shop.authority("staff").await;
    for name in ["good", "stolen"] {
        shop.identity(name, &staff).await;
    }
    let trusts = shop.api::<ClientTrust>();
    let [group, _, kind] = P::ROUTE;
    let target = format!("{{group: {group}, kind: {kind}, name: shop}}");
    create(&trusts, &trust_yaml(&staff, &target, "Required")).await;
    let trust = wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    let target = &trust.status.expect("a status").targets[0];
    let enforced = condition(&target.conditions, REVOCATION_ENFORCED).expect("a condition");
    assert_eq!((enforced.status.as_str(), enforced.reason.as_str()), ("True", P::ENFORCED));

    refused(&shop, "no certificate", None, P::MISSING).await;
    shop.until("a valid certificate is let in", Some("good"), 200).await;
    shop.until("and another one", Some("stolen"), 200).await;

    let started = Instant::now();
    shop.revoke("stolen").await;
    refused(&shop, "a revoked certificate", Some("stolen"), P::REVOKED).await;
    let after = started.elapsed();
    println!("{}: refused {:.1} s after the revocation", P::NAME, after.as_secs_f64());
    assert!(after < BOUND, "{}: {after:?}", P::NAME);
    shop.until("nobody else is refused", Some("good"), 200).await;

    // The gate of the chart decides who may pass.
    shop.identity("other", &staff).await;
    shop.until("everybody of the staff is let in", Some("other"), 200).await;
    let spec = json!({"allow": {"commonNames": ["good"]}, "forwardIdentity": "ClientCert"});
    patch(&trusts, "clients", json!({"spec": spec})).await;
    shop.until("a client that is not allowed is refused", Some("other"), 403).await;
    shop.until("the one that is allowed is let in", Some("good"), 200).await;
    wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    let answer = shop.ask(Some("good"), None);
    assert!(Shop::client_cert(&answer).is_some_and(|told| told.starts_with(":MI")), "{answer:?}");

    delete(&trusts, "clients").await;
    shop.until("the shop is open again", None, 200).await;
    shop.close().await;
}

/// Waits until a client is refused as it must be.
async fn refused(shop: &Shop, what: &str, identity: Option<&str>, how: Refusal) {
    eventually(&format!("{what} is refused: {how:?}"), || async {
        how.is(&shop.ask(identity, None)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn haproxy_ingress() {
    let shop = Shop::without_route("haproxy", "127.0.0.1:30444").await;
    let ingress = HaproxyIngress::ingress("shop", &[&shop.host], json!({}));
    create(&shop.api::<Ingress>(), &ingress.to_string()).await;
    story::<HaproxyIngress>(shop).await;
}

#[tokio::test]
async fn contour() {
    let shop = Shop::without_route("contour", "127.0.0.1:30445").await;
    let proxy = json!({
        "apiVersion": "projectcontour.io/v1", "kind": "HTTPProxy",
        "metadata": {"name": "shop", "namespace": shop.namespace},
        "spec": {
            "virtualhost": {"fqdn": shop.host, "tls": {"secretName": "shop-server-tls"}},
            "routes": [{"services": [{"name": "shop", "port": 80}]}],
        },
    });
    kubectl(&["apply", "-f", "-"], &proxy.to_string());
    story::<Contour>(shop).await;
}

#[tokio::test]
async fn envoy_gateway() {
    let shop = Shop::without_route("envoy", "127.0.0.1:30446").await;
    EnvoyGateway::gateway(&shop.client, &shop.namespace, "shop", &shop.host, "127.0.0.1:443").await;
    story::<EnvoyGateway>(shop).await;
}
