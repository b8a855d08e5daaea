//! The whole thing in a cluster: installed by the chart, with the chart's rights, behind a real
//! Traefik, asked by a real curl from outside. `e2e/setup` brings the cluster to where these start.
//! Some of them disturb the installation: run them one at a time.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::api::authority::CaState;
use countersign::api::condition::{ACCEPTED, PROGRAMMED, PUBLISHED, READY, REVOCATION_ENFORCED};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use countersign::plan::gate::POLICIES;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{
    DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams,
};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;

use support::servers::{curl_with, write_files, write_server_certificate_for};
use support::shop::{Shop, client, trust_yaml};
use support::traffic::{Mount, Traffic};
use support::{
    condition, create, delete, eventually, kubectl, namespace, patch, program, root, wait_for,
};

const OPERATOR: &str = "countersign";
const CONTROLLER: &str = "system:serviceaccount:countersign:countersign-controller";
const SERVER: &str = "system:serviceaccount:countersign:countersign-server";

const INGRESS: &str = "{group: networking.k8s.io, kind: Ingress, name: shop}";
const INGRESS_ROUTE: &str = "{group: traefik.io, kind: IngressRoute, name: shop}";

#[tokio::test]
async fn a1_the_examples_work_as_they_are() {
    let client = client().await;
    kubectl(&["delete", "namespace", "countersign-quickstart", "--ignore-not-found", "--wait"], "");
    let files = tempfile::tempdir().expect("a folder");
    write_server_certificate_for(files.path(), "shop.example.com");
    let apply = |file: &str| {
        let path = root().join("examples").join(file).display().to_string();
        kubectl(&["apply", "-f", &path], "");
    };
    for file in [
        "00-namespace.yaml",
        "01-authority.yaml",
        "02-identity.yaml",
        "09-request.yaml",
        "10-keystore.yaml",
    ] {
        apply(file);
    }
    let pem = files.path().join("server.pem").display().to_string();
    let ns = "countersign-quickstart";
    kubectl(
        &["-n", ns, "create", "secret", "tls", "shop-server-tls", "--cert", &pem, "--key", &pem],
        "",
    );
    apply("03-backend.yaml");
    apply("04-trust.yaml");
    apply("05-ingressroute.yaml");
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), ns);
    let trusts: Api<ClientTrust> = Api::namespaced(client.clone(), ns);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), ns);
    for identity in ["laptop", "sensor", "app"] {
        wait_for(&identities, identity, READY, "True", "Issued").await;
    }
    let sensor = secrets.get("sensor-tls").await.expect("a Secret").data.expect("data");
    assert_eq!(sensor.keys().collect::<Vec<_>>(), ["ca.crt", "tls.crt"]);
    let app = secrets.get("app-tls").await.expect("a Secret").data.expect("data");
    assert!(
        ["keystore.p12", "truststore.p12", "tls-combined.pem"]
            .iter()
            .all(|key| app.contains_key(*key))
    );
    apply("08-allow.yaml");
    wait_for(&identities, "tablet", READY, "True", "Issued").await;
    wait_for(&identities, "impostor", READY, "False", "NotAllowed").await;
    apply("13-bundle.yaml");
    for trust in ["shop", "catalogue", "workloads"] {
        wait_for(&trusts, trust, READY, "True", "Programmed").await;
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), ns);
    let bundle = maps.get("client-ca").await.expect("a bundle").data.expect("data");
    assert!(bundle["ca.crt"].contains("CERTIFICATE") && bundle["ca.crl"].contains("X509 CRL"));
    delete(&trusts, "workloads").await;
    eventually("the bundle goes with its trust", || async {
        maps.get_opt("client-ca").await.expect("an answer").is_none().then_some(())
    })
    .await;
    for identity in ["laptop", "app"] {
        let folder = files.path().join(identity);
        fs::create_dir(&folder).expect("a folder");
        let secret = secrets.get(&format!("{identity}-tls")).await.expect("a Secret");
        write_files(&secret, &["tls.crt", "tls.key"], &folder);
    }
    let ca = files.path().join("server.pem");
    let shop = |identity: Option<&str>| {
        let folder = identity.map(|identity| files.path().join(identity));
        curl_with("shop.example.com", &ca, folder.as_deref(), None).status
    };
    let until = async |identity: Option<&str>, status: u16| {
        eventually(&format!("{identity:?} gets {status}"), || async {
            (shop(identity) == status).then_some(())
        })
        .await;
    };
    for (identity, status) in [(Some("laptop"), 200), (Some("app"), 200), (None, 0)] {
        until(identity, status).await;
    }
    apply("16-allow-clients.yaml");
    until(Some("app"), 403).await;
    until(Some("laptop"), 200).await;
    kubectl(&["-n", ns, "label", "clientidentity", "app", "shop=allowed"], "");
    until(Some("app"), 200).await;

    let started = Instant::now();
    apply("06-revocation.yaml");
    until(Some("laptop"), 403).await;
    println!("refused {:.1} s after the revocation was applied", started.elapsed().as_secs_f64());
    let revocations: Api<CertificateRevocation> = Api::namespaced(client.clone(), ns);
    wait_for(&revocations, "laptop-stolen", PUBLISHED, "True", "Published").await;
    apply("07-lifecycle.yaml");
    wait_for(&identities, "batch", READY, "True", "Issued").await;
    apply("11-renew.yaml");
    wait_for(&revocations, "app-leaked", PUBLISHED, "True", "Published").await;
    wait_for(&identities, "app", READY, "True", "Issued").await;
    kubectl(&["delete", "namespace", ns, "--wait=false"], "");
}

/// The same story for every kind of target that Traefik serves.
async fn story(prefix: &str, target: &str) {
    let shop = Shop::open(prefix).await;
    if target == INGRESS_ROUTE {
        use_ingress_route(&shop).await;
    }
    let staff = shop.authority("staff").await;
    let strangers = shop.authority("strangers").await;
    for (name, authority) in
        [("good", &staff), ("stolen", &staff), ("lost", &staff), ("stranger", &strangers)]
    {
        shop.identity(name, authority).await;
    }
    let before = target_object(&shop, target).await;
    let trusts = shop.api::<ClientTrust>();
    create(&trusts, &trust_yaml(&staff, target, "Required")).await;
    let trust = wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    let status = trust.status.expect("a status");
    let conditions = &status.targets[0].conditions;
    for (type_, reason) in
        [(ACCEPTED, "Programmed"), (PROGRAMMED, "Programmed"), (REVOCATION_ENFORCED, "ViaGate")]
    {
        let found = condition(conditions, type_).expect(type_);
        assert_eq!((found.status.as_str(), found.reason.as_str()), ("True", reason), "{type_}");
    }

    // No certificate, a valid one, one of another CA.
    shop.until("no certificate is refused in the handshake", None, 0).await;
    shop.until("a valid certificate is let in", Some("good"), 200).await;
    let told = Shop::told(&shop.ask(Some("good"), None));
    assert!(
        told.contains("CN%3Dgood") && told.contains("spiffe%3A%2F%2Fexample.com%2Fgood"),
        "{told}"
    );
    assert_eq!(shop.ask(Some("stranger"), None).status, 0, "another CA");

    // A header that the client forged does not reach the backend.
    let forged = "X-Forwarded-Tls-Client-Cert-Info: Subject=\"CN=admin\"";
    let told = Shop::told(&shop.ask(Some("good"), Some(forged)));
    assert!(told.contains("CN%3Dgood") && !told.contains("admin"), "{told}");

    // Client-Cert comes from the gate, when it is asked for, and from nobody else.
    let forged_identity = Some("Client-Cert: :AAAA:");
    assert_eq!(Shop::client_cert(&shop.ask(Some("good"), forged_identity)), Some(""));
    patch(&trusts, "clients", json!({"spec": {"forwardIdentity": "ClientCert"}})).await;
    let pem = fs::read(shop.path("good/tls.crt")).expect("a certificate");
    let chain = countersign::pki::inspect::certificates(&pem).expect("a chain");
    let client_cert = format!(":{}:", STANDARD.encode(&chain[0]));
    eventually("the backend is told the certificate", || async {
        let answer = shop.ask(Some("good"), forged_identity);
        (Shop::client_cert(&answer) == Some(&client_cert)).then_some(())
    })
    .await;

    // Rotated: the old and the new certificate are good.
    delete(&shop.api::<Secret>(), "good-tls").await;
    eventually("the Secret is back", || async {
        shop.api::<Secret>().get_opt("good-tls").await.expect("an answer")
    })
    .await;
    assert_eq!(shop.ask(Some("good"), None).status, 200, "the superseded certificate");
    let old = fs::read(shop.path("good/tls.crt")).expect("a certificate");
    shop.fetch("good").await;
    assert_ne!(fs::read(shop.path("good/tls.crt")).expect("a certificate"), old);
    assert_eq!(shop.ask(Some("good"), None).status, 200, "the new certificate");

    // Revoked, by a CertificateRevocation and by deleting the identity.
    assert_eq!(shop.ask(Some("stolen"), None).status, 200);
    let started = Instant::now();
    shop.revoke("stolen").await;
    shop.until("a revoked certificate is refused", Some("stolen"), 403).await;
    println!("{prefix}: refused {:.1} s after the revocation", started.elapsed().as_secs_f64());
    assert!(shop.ask(Some("stolen"), None).body.contains("revoked"));
    delete(&shop.api::<ClientIdentity>(), "lost").await;
    shop.until("the certificate of a deleted identity is refused", Some("lost"), 403).await;
    assert_eq!(shop.ask(Some("good"), None).status, 200, "nobody else is refused");

    // Revoked, then reissued: the new one is good, the old one stays dead.
    delete(&shop.api::<CertificateRevocation>(), "stolen").await;
    wait_for(&shop.api::<ClientIdentity>(), "stolen", READY, "True", "Issued").await;
    assert_eq!(shop.ask(Some("stolen"), None).status, 403, "the revoked certificate");
    shop.fetch("stolen").await;
    shop.until("the reissued certificate is let in", Some("stolen"), 200).await;

    // Optional: without a certificate one gets in, and forging gains nothing.
    patch(&trusts, "clients", json!({"spec": {"mode": "Optional"}})).await;
    shop.until("no certificate is let in when it is optional", None, 200).await;
    let told = Shop::told(&shop.ask(None, Some(forged)));
    assert!(!told.contains("admin"), "{told}");
    assert_eq!(Shop::client_cert(&shop.ask(None, forged_identity)), Some(""));
    let certificate = fs::read_to_string(shop.path("good/tls.crt")).expect("a certificate");
    let der: String = certificate.lines().filter(|line| !line.starts_with("---")).collect();
    let told = Shop::told(&shop.ask(None, Some(&format!("X-Forwarded-Tls-Client-Cert: {der}"))));
    assert!(!told.contains("good"), "{told}");
    assert_eq!(
        shop.ask(Some("stranger"), None).status,
        0,
        "a bad certificate is refused all the same"
    );
    assert_eq!(shop.ask(Some("lost"), None).status, 403, "and so is a revoked one");

    // Deleted: the target is what it was, and open again.
    delete(&trusts, "clients").await;
    shop.until("the shop is open again", None, 200).await;
    eventually("the target is restored", || async {
        (target_object(&shop, target).await == before).then_some(())
    })
    .await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b3_no_request_fails_while_the_ca_rotates_and_while_it_is_compromised() {
    let shop = Shop::open("rotation").await;
    let name = format!("{}-staff", shop.namespace);
    let authorities: Api<ClientAuthority> = Api::all(shop.client.clone());
    create(
        &authorities,
        &format!(
            "{{metadata: {{name: {name}}}, spec: {{selfSigned: {{commonName: Staff}}, rotation: {{preparation: 5s, \
             reissueWithin: 4s, compromiseGracePeriod: 15s}}}}}}"
        ),
    )
    .await;
    wait_for(&authorities, &name, READY, "True", "Ready").await;
    shop.identity("laptop", &name).await;
    let trusts = shop.api::<ClientTrust>();
    create(&trusts, &trust_yaml(&name, INGRESS, "Required")).await;
    wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    // In this order: an open shop lets the laptop in too, and Traefik takes its two providers' news one
    // after the other, with a route of middlewares that it does not know yet in between (404).
    shop.until("nobody without a certificate is let in", None, 0).await;
    shop.until("the laptop is let in", Some("laptop"), 200).await;

    let mount = shop.path("mount");
    let secrets = shop.api::<Secret>();
    let mut mounted = Mount::new(&mount);
    mounted.sync(&secrets, "laptop-tls", &["tls.crt", "tls.key"]).await;
    let first = Mount::current(&mount);
    let (host, ca) = (shop.host.clone(), shop.path("server.pem"));
    let ask = move |identity: &Path| curl_with(&host, &ca, Some(identity), None);
    let traffic = Traffic::start(mount.clone(), ask.clone());
    // What kubelet does for a pod that mounts the Secret.
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let sync = tokio::spawn(async move {
        while !*stopped.borrow() {
            mounted.sync(&secrets, "laptop-tls", &["tls.crt", "tls.key"]).await;
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    });
    let states = async |wanted: &[(i64, CaState)]| {
        eventually(&format!("{wanted:?}"), || async {
            let status = authorities.get(&name).await.expect("an authority").status;
            let generations = status.map(|status| status.generations).unwrap_or_default();
            let found: Vec<_> = generations.iter().map(|one| (one.number, one.state)).collect();
            (found == wanted).then_some(())
        })
        .await;
    };

    let now = jiff::Timestamp::now().to_string();
    let request =
        json!({"metadata": {"annotations": {"countersign.dev/rotate-requested-at": now}}});
    patch(&authorities, &name, request).await;
    states(&[(1, CaState::Active), (2, CaState::Prepared)]).await;
    states(&[(1, CaState::Retiring), (2, CaState::Active)]).await;
    let leaf = |folder: &Path| fs::read(folder.join("tls.crt")).expect("a certificate");
    eventually("the laptop has a certificate of the new CA", || async {
        (leaf(&Mount::current(&mount)) != leaf(&first)).then_some(())
    })
    .await;
    assert_eq!(ask(&first).status, 200, "the one before is good until it expires");

    patch(&authorities, &name, json!({"spec": {"compromisedGenerations": [1, 2]}})).await;
    states(&[(1, CaState::Removed), (2, CaState::Removed), (3, CaState::Active)]).await;
    let stolen = first;
    eventually("a certificate of the compromised CA is refused", || async {
        (ask(&stolen).status != 200).then_some(())
    })
    .await;
    stop.send_replace(true);
    sync.await.expect("the Secret was there all the time");
    traffic.stop();
    assert_eq!(ask(&Mount::current(&mount)).status, 200);
    shop.close().await;
}

/// What of a target a trust may change.
async fn target_object(shop: &Shop, target: &str) -> serde_json::Value {
    let (annotations, spec) = if target == INGRESS_ROUTE {
        let route = ingress_routes(shop).get("shop").await.expect("an IngressRoute");
        (route.annotations().clone(), route.data["spec"].clone())
    } else {
        let ingress = shop.api::<Ingress>().get("shop").await.expect("an Ingress");
        (ingress.annotations().clone(), json!(ingress.spec))
    };
    let mut annotations = annotations;
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    json!({"annotations": annotations, "spec": spec})
}

fn ingress_routes(shop: &Shop) -> Api<DynamicObject> {
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk("traefik.io", "v1alpha1", "IngressRoute"));
    Api::namespaced_with(shop.client.clone(), &shop.namespace, &resource)
}

/// Puts an IngressRoute in the place of the shop's Ingress.
async fn use_ingress_route(shop: &Shop) {
    delete(&shop.api::<Ingress>(), "shop").await;
    let yaml = format!(
        "{{apiVersion: traefik.io/v1alpha1, kind: IngressRoute, metadata: {{name: shop, namespace: {}}}, \
         spec: {{entryPoints: [websecure], routes: [{{kind: Rule, match: 'Host(`{}`)', services: [{{name: shop, port: http}}]}}], \
         tls: {{secretName: shop-server-tls}}}}}}",
        shop.namespace, shop.host
    );
    kubectl(&["apply", "-f", "-"], &yaml);
    shop.until("the IngressRoute answers", None, 200).await;
}

#[tokio::test]
async fn b1_an_ingress_of_traefik() {
    story("ingress", INGRESS).await;
}

#[tokio::test]
async fn b2_an_ingress_route_of_traefik() {
    story("route", INGRESS_ROUTE).await;
}

#[tokio::test]
async fn c1_what_breaks_shuts_the_door() {
    let shop = Shop::open("closed").await;
    let staff = shop.authority("staff").await;
    shop.identity("good", &staff).await;
    let trusts = shop.api::<ClientTrust>();
    create(&trusts, &trust_yaml(&staff, INGRESS, "Required")).await;
    shop.until("no certificate is refused", None, 0).await;
    shop.until("a valid certificate is let in", Some("good"), 200).await;

    // Another route of the host with other TLS options: Traefik then asks nobody for a certificate.
    let other = shop
        .example("03-backend.yaml")
        .split("---\n")
        .find(|document| document.contains("kind: Ingress"))
        .expect("an Ingress")
        .replace("name: shop\n  namespace", "name: other\n  namespace")
        .replace("path: /\n", "path: /other\n");
    kubectl(&["apply", "-f", "-"], &other);
    wait_for(&trusts, "clients", READY, "False", "Conflict").await;
    shop.until("nobody gets in without a certificate", None, 403).await;
    assert_eq!(shop.ask(None, None).status, 403);
    delete(&shop.api::<Ingress>(), "other").await;
    wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    shop.until("the certificate is asked for again", None, 0).await;
    shop.until("and a valid one is let in", Some("good"), 200).await;

    // The trust's Secret deleted: made again, and open to nobody without a certificate meanwhile.
    let secrets = shop.api::<Secret>();
    delete(&secrets, "countersign-clients").await;
    for _ in 0..20 {
        assert_ne!(shop.ask(None, None).status, 200);
    }
    eventually("the Secret is back", || async {
        secrets.get_opt("countersign-clients").await.expect("an answer")
    })
    .await;
    shop.until("a valid certificate is let in", Some("good"), 200).await;

    // What we made for Traefik edited or deleted: repaired.
    kubectl(
        &[
            "-n",
            &shop.namespace,
            "patch",
            "tlsoption",
            "countersign-clients",
            "--type",
            "merge",
            "-p",
            "{\"spec\":{\"clientAuth\":{\"clientAuthType\":\"NoClientCert\"}}}",
        ],
        "",
    );
    kubectl(&["-n", &shop.namespace, "delete", "middleware", "countersign-clients-gate"], "");
    eventually("the TLSOption is repaired", || async {
        let options = kubectl(
            &["-n", &shop.namespace, "get", "tlsoption", "countersign-clients", "-o", "yaml"],
            "",
        );
        options.contains("RequireAndVerifyClientCert").then_some(())
    })
    .await;
    shop.until("no certificate is refused", None, 0).await;
    shop.until("a valid certificate is let in", Some("good"), 200).await;

    // The user's own setting in a field that we need: a conflict that names it, not a fight.
    let mine = json!({"metadata": {"annotations": {"traefik.ingress.kubernetes.io/router.middlewares": "mine"}}});
    let ingresses = shop.api::<Ingress>();
    delete(&trusts, "clients").await;
    eventually("the Ingress is restored", || async {
        let ingress = ingresses.get("shop").await.expect("an Ingress");
        (!ingress.annotations().contains_key("countersign.dev/client-trust")).then_some(())
    })
    .await;
    patch(&ingresses, "shop", mine).await;
    create(&trusts, &trust_yaml(&staff, INGRESS, "Required")).await;
    let conflict = wait_for(&trusts, "clients", READY, "False", "Conflict").await;
    let message = conflict.status.expect("a status").conditions[0].message.clone();
    assert!(message.contains("router.middlewares"), "{message}");
    let kept = ingresses.get("shop").await.expect("an Ingress");
    assert_eq!(kept.annotations()["traefik.ingress.kubernetes.io/router.middlewares"], "mine");

    // An Ingress that nobody we know serves.
    patch(&ingresses, "shop", json!({"spec": {"ingressClassName": "unknown"}})).await;
    wait_for(&trusts, "clients", READY, "False", "UnsupportedDataPlane").await;
    shop.close().await;
}

#[tokio::test]
async fn c2_without_the_gate_nobody_gets_in() {
    let shop = Shop::open("gate").await;
    let staff = shop.authority("staff").await;
    shop.identity("good", &staff).await;
    create(&shop.api::<ClientTrust>(), &trust_yaml(&staff, INGRESS, "Required")).await;
    shop.until("a valid certificate is let in", Some("good"), 200).await;
    let deployments: Api<Deployment> = Api::namespaced(shop.client.clone(), OPERATOR);
    let replicas = deployments.get("countersign-server").await.expect("it").spec.replicas;
    patch(&deployments, "countersign-server", json!({"spec": {"replicas": 0}})).await;
    shop.until("nobody gets in without the gate", Some("good"), 500).await;
    patch(&deployments, "countersign-server", json!({"spec": {"replicas": replicas}})).await;
    shop.until("a valid certificate is let in again", Some("good"), 200).await;
    shop.close().await;
}

async fn may(
    client: &Client,
    user: &str,
    verb: &str,
    resource: &str,
    group: &str,
    namespace: &str,
) -> bool {
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            groups: Some(vec![
                "system:serviceaccounts".into(),
                "system:serviceaccounts:countersign".into(),
                "system:authenticated".into(),
            ]),
            resource_attributes: Some(ResourceAttributes {
                namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
                verb: Some(verb.to_owned()),
                resource: Some(resource.to_owned()),
                group: Some(group.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let review = api.create(&PostParams::default(), &review).await.expect("an answer");
    review.status.expect("a status").allowed
}

/// A client that the API server takes for one of our ServiceAccounts.
async fn client_as(user: &str) -> Client {
    let mut config = Config::infer().await.expect("a cluster");
    config.auth_info.impersonate = Some(user.to_owned());
    config.auth_info.impersonate_groups = Some(vec![
        "system:serviceaccounts".into(),
        "system:serviceaccounts:countersign".into(),
        "system:authenticated".into(),
    ]);
    Client::try_from(config).expect("a client")
}

#[tokio::test]
async fn d1_the_rights_are_the_least_and_the_policy_guards_foreign_secrets() {
    let client = client().await;
    let ns = namespace(&client, "rights").await;
    for (verb, resource, group) in [
        ("get", "secrets", ""),
        ("list", "secrets", ""),
        ("create", "secrets", ""),
        ("get", "pods", ""),
        ("get", "clientidentities", "countersign.dev"),
        ("update", "configmaps", ""),
    ] {
        for place in [ns.as_str(), OPERATOR] {
            assert!(
                !may(&client, SERVER, verb, resource, group, place).await,
                "server: {verb} {resource}"
            );
        }
    }
    assert!(may(&client, SERVER, "watch", "configmaps", "", OPERATOR).await);
    // Of Secrets the server reads the one with the policies of the gate.
    let as_server: Api<Secret> = Api::namespaced(client_as(SERVER).await, OPERATOR);
    as_server.get_opt(POLICIES).await.expect("it may look whether there are policies");
    let only = ListParams::default().fields(&format!("metadata.name={POLICIES}"));
    as_server.list(&only).await.expect("and list that one");
    as_server.get_opt("another").await.expect_err("another Secret");
    for (verb, resource, group) in [
        ("delete", "secrets", ""),
        ("deletecollection", "secrets", ""),
        ("patch", "configmaps", ""),
        ("deletecollection", "configmaps", ""),
        ("get", "pods", ""),
        ("create", "pods", ""),
        ("update", "clientidentities", "countersign.dev"),
        ("delete", "clientidentities", "countersign.dev"),
        ("create", "roles", "rbac.authorization.k8s.io"),
        ("escalate", "clusterroles", "rbac.authorization.k8s.io"),
        ("impersonate", "users", ""),
        ("create", "ingresses", "networking.k8s.io"),
        ("delete", "ingresses", "networking.k8s.io"),
        ("update", "deployments", "apps"),
        ("list", "deployments", "apps"),
        ("patch", "replicasets", "apps"),
        ("create", "extensionservices", "projectcontour.io"),
        ("create", "referencegrants", "gateway.networking.k8s.io"),
        ("list", "referencegrants", "gateway.networking.k8s.io"),
    ] {
        assert!(
            !may(&client, CONTROLLER, verb, resource, group, &ns).await,
            "controller: {verb} {resource}"
        );
    }
    assert!(may(&client, CONTROLLER, "create", "secrets", "", &ns).await);
    // What data planes need to ask the gate stands in the operator's namespace.
    for (resource, group) in [
        ("extensionservices", "projectcontour.io"),
        ("referencegrants", "gateway.networking.k8s.io"),
    ] {
        assert!(may(&client, CONTROLLER, "create", resource, group, OPERATOR).await, "{resource}");
    }

    // RBAC would let the controller change any Secret; the admission policy does not.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &ns);
    create(&secrets, "{metadata: {name: foreign}, stringData: {password: theirs}}").await;
    create(
        &secrets,
        "{metadata: {name: ours, labels: {app.kubernetes.io/managed-by: countersign}}}",
    )
    .await;
    let as_controller: Api<Secret> = Api::namespaced(client_as(CONTROLLER).await, &ns);
    let refused = |error: kube::Error| {
        let kube::Error::Api(status) = error else { panic!("{error}") };
        assert!(status.message.contains("ValidatingAdmissionPolicy"), "{}", status.message);
    };
    let mut foreign = secrets.get("foreign").await.expect("a Secret");
    foreign.data = None;
    refused(
        as_controller
            .replace("foreign", &PostParams::default(), &foreign)
            .await
            .expect_err("a foreign Secret"),
    );
    // Nor by putting the label on it.
    foreign.labels_mut().insert("app.kubernetes.io/managed-by".into(), "countersign".into());
    refused(
        as_controller
            .replace("foreign", &PostParams::default(), &foreign)
            .await
            .expect_err("a foreign Secret"),
    );
    let unlabelled: Secret = serde_yaml::from_str("{metadata: {name: new}}").expect("a Secret");
    refused(
        as_controller
            .create(&PostParams::default(), &unlabelled)
            .await
            .expect_err("a Secret without label"),
    );
    let ours = secrets.get("ours").await.expect("a Secret");
    as_controller.replace("ours", &PostParams::default(), &ours).await.expect("a Secret of ours");
    let kept = secrets.get("foreign").await.expect("a Secret");
    assert_eq!(kept.data.expect("data")["password"].0, b"theirs");

    // The same of ConfigMaps.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &ns);
    let foreign = create(&maps, "{metadata: {name: foreign}, data: {theirs: 'yes'}}").await;
    let as_controller: Api<ConfigMap> = Api::namespaced(client_as(CONTROLLER).await, &ns);
    let replaced = as_controller.replace("foreign", &PostParams::default(), &foreign).await;
    refused(replaced.expect_err("a foreign ConfigMap"));
    let deleted = as_controller.delete("foreign", &DeleteParams::default()).await;
    refused(deleted.expect_err("a foreign ConfigMap"));
    let own = "{metadata: {name: own, labels: {app.kubernetes.io/managed-by: countersign}}}";
    create(&as_controller, own).await;
    as_controller.delete("own", &DeleteParams::default()).await.expect("a ConfigMap of ours");
}

#[tokio::test]
async fn d1_workloads_may_be_restarted_and_not_changed_otherwise() {
    let client = client().await;
    let ns = namespace(&client, "restarts").await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &ns);
    let yaml = "{metadata: {name: web, labels: {x: one}}, spec: {replicas: 0, selector: {matchLabels: \
                {a: b}}, template: {metadata: {labels: {a: b}, annotations: {keep: me}}, spec: \
                {containers: [{name: c, image: i}]}}}}";
    create(&deployments, yaml).await;
    let as_controller: Api<Deployment> = Api::namespaced(client_as(CONTROLLER).await, &ns);
    let annotated = |annotations: serde_json::Value| json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    let image = json!({"template": {"spec": {"containers": [{"name": "c", "image": "other"}]}}});
    for (body, allowed) in [
        (annotated(json!({"countersign.dev/restarted-for-serial": "0a"})), true),
        (annotated(json!({"countersign.dev/restarted-for-serial": "0b"})), true),
        (annotated(json!({"keep": "other"})), false),
        (annotated(json!({"keep": null})), false),
        (annotated(json!({"other": "x"})), false),
        (json!({"spec": {"replicas": 3}}), false),
        (json!({"spec": {"minReadySeconds": 3}}), false),
        (json!({"spec": {"template": {"spec": {"hostNetwork": true}}}}), false),
        (json!({"spec": image}), false),
        (json!({"metadata": {"labels": {"x": "two"}}}), false),
    ] {
        let (params, change) = (PatchParams::default(), Patch::Merge(&body));
        match as_controller.patch("web", &params, &change).await {
            Ok(_) => assert!(allowed, "{body}"),
            Err(error) => {
                assert!(!allowed && error.to_string().contains("only restart"), "{body}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn d2_crls_metrics_and_logs_can_be_had() {
    let client = client().await;
    let ns = namespace(&client, "served").await;
    let authorities: Api<ClientAuthority> = Api::all(client.clone());
    let spec = "{selfSigned: {commonName: served}, crl: {distributionPointBaseURL: \"http://crl.example.com\"}}";
    create(&authorities, &format!("{{metadata: {{name: {ns}}}, spec: {spec}}}")).await;
    wait_for(&authorities, &ns, READY, "True", "Ready").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    create(&identities, &format!("{{metadata: {{name: laptop}}, spec: {{authorityRef: {{name: {ns}}}, commonName: x, secretName: x}}}}")).await;
    let ready = wait_for(&identities, "laptop", READY, "True", "Issued").await;
    let serial = ready.status.expect("a status").serial_number.expect("a serial");

    // As a verifier gets it, by the URL in the certificate, through the Service.
    let service = format!("/api/v1/namespaces/{OPERATOR}/services");
    let crl = format!("{service}/countersign-crl:http/proxy/crl/{ns}/1.crl");
    let files = tempfile::tempdir().expect("a folder");
    let listed = || {
        let der = files.path().join("crl.der");
        let output =
            Command::new("kubectl").args(["get", "--raw", &crl]).output().expect("kubectl runs");
        fs::write(&der, output.stdout).expect("written");
        let text = Command::new(program("openssl"))
            .args(["crl", "-inform", "DER", "-noout", "-text", "-in"])
            .arg(&der)
            .output()
            .expect("openssl runs");
        String::from_utf8_lossy(&text.stdout).into_owned()
    };
    eventually("the CRL is served", || async {
        listed().contains("No Revoked Certificates").then_some(())
    })
    .await;
    delete(&identities, "laptop").await;
    eventually("the served CRL holds the serial", || async {
        let text = listed();
        (text.contains(&serial.to_uppercase()) && text.contains("Cessation Of Operation"))
            .then_some(())
    })
    .await;

    let metrics = kubectl(
        &["get", "--raw", &format!("{service}/countersign-controller:metrics/proxy/metrics")],
        "",
    );
    for line in [
        format!("countersign_crl_entries{{authority=\"{ns}\",generation=\"1\"}} 1"),
        format!(
            "countersign_certificates_issued_total{{authority=\"{ns}\",trigger=\"Missing\"}} 1"
        ),
        "countersign_leader 1".to_owned(),
        "countersign_reconciles_total{controller=\"identity\",outcome=\"settled\"}".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), OPERATOR);
    let selector = "app.kubernetes.io/component=controller";
    let pod =
        pods.list(&ListParams::default().labels(selector)).await.expect("pods").items.remove(0);
    let log = pods.logs(&pod.name_any(), &LogParams::default()).await.expect("a log");
    let issued =
        log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find(
            |line| line["message"] == "issued" && line["span"]["object"] == format!("{ns}/laptop"),
        );
    assert!(issued.is_some(), "no JSON line tells of the issuance:\n{log}");
    assert!(!log.contains("PRIVATE KEY"), "a key in the log");
    let events =
        kubectl(&["get", "events", "-A", "-o", "jsonpath={.items[*].reportingComponent}"], "");
    assert!(events.contains("countersign.dev/controller"), "{events}");
    helm(&["test", "countersign", "-n", OPERATOR, "--timeout", "2m"]);
}

#[tokio::test]
async fn d3_a_chart_value_limits_the_operator_to_named_namespaces() {
    let client = client().await;
    let (inside, outside) =
        (namespace(&client, "inside").await, namespace(&client, "outside").await);
    upgrade(&format!("namespaces=[\"{inside}\"]"));
    let authorities: Api<ClientAuthority> = Api::all(client.clone());
    create(
        &authorities,
        // The labels of a namespace are seen with the limited rights too.
        &format!(
            "{{metadata: {{name: {inside}}}, spec: {{selfSigned: {{commonName: limited}}, allow: {{namespaceSelector: \
             {{matchExpressions: [{{key: kubernetes.io/metadata.name, operator: In, values: [{inside}, {outside}]}}]}}}}}}}}"
        ),
    )
    .await;
    wait_for(&authorities, &inside, READY, "True", "Ready").await;
    let yaml = format!(
        "{{metadata: {{name: laptop}}, spec: {{authorityRef: {{name: {inside}}}, commonName: x, secretName: x}}}}"
    );
    let there: Api<ClientIdentity> = Api::namespaced(client.clone(), &outside);
    create(&there, &yaml).await;
    let here: Api<ClientIdentity> = Api::namespaced(client.clone(), &inside);
    create(&here, &yaml).await;
    wait_for(&here, "laptop", READY, "True", "Issued").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &outside);
    assert!(secrets.get_opt("x").await.expect("an answer").is_none());
    for verb in ["get", "list", "watch", "create", "update"] {
        assert!(!may(&client, CONTROLLER, verb, "secrets", "", &outside).await, "{verb} outside");
        assert!(!may(&client, CONTROLLER, verb, "secrets", "", "").await, "{verb} everywhere");
        assert!(may(&client, CONTROLLER, verb, "secrets", "", &inside).await, "{verb} inside");
    }
    upgrade("namespaces=[]");
    wait_for(&there, "laptop", READY, "True", "Issued").await;
}

/// Upgrades the release with one more value.
fn upgrade(value: &str) {
    let chart = root().join("charts/countersign").display().to_string();
    let release = ["upgrade", "countersign", &chart, "-n", OPERATOR, "--reuse-values"];
    helm(&[&release[..], &["--wait", "--timeout", "3m", "--set-json", value]].concat());
}

#[tokio::test]
async fn d4_the_gate_knows_its_callers_by_a_chart_value() {
    let shop = Shop::open("callers").await;
    let staff = shop.authority("staff").await;
    for name in ["good", "stolen"] {
        shop.identity(name, &staff).await;
    }
    let trusts = shop.api::<ClientTrust>();
    create(&trusts, &trust_yaml(&staff, INGRESS, "Required")).await;
    wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    shop.until("a valid certificate is let in", Some("good"), 200).await;

    // First all but Traefik's part, until the gate has its certificate, for which nobody waits two minutes here.
    upgrade("gate.callerAuthentication={\"enabled\": true, \"prepareOnly\": true}");
    let gate: Api<ClientIdentity> = Api::namespaced(shop.client.clone(), OPERATOR);
    wait_for(&gate, "countersign-gate", READY, "True", "Issued").await;
    let server = "deployment/countersign-server";
    kubectl(&["-n", OPERATOR, "rollout", "restart", server], "");
    kubectl(&["-n", OPERATOR, "rollout", "status", server, "--timeout", "120s"], "");
    upgrade("gate.callerAuthentication={\"enabled\": true, \"prepareOnly\": false}");
    let address = || {
        let path = "jsonpath={.spec.forwardAuth.address}";
        let middleware = "middleware/countersign-clients-gate";
        kubectl(&["-n", &shop.namespace, "get", middleware, "-o", path], "")
    };
    eventually("Traefik is to ask over TLS", || async {
        address().starts_with("https://countersign-server.countersign.svc").then_some(())
    })
    .await;
    wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    shop.until("a valid certificate is let in by the gate over TLS", Some("good"), 200).await;
    shop.until("and another one", Some("stolen"), 200).await;
    shop.revoke("stolen").await;
    shop.until("a revoked one is refused", Some("stolen"), 403).await;
    shop.until("nobody else is", Some("good"), 200).await;

    upgrade("gate.callerAuthentication={\"enabled\": false}");
    eventually("Traefik is to ask on the plain port", || async {
        address().starts_with("http://").then_some(())
    })
    .await;
    shop.until("a valid certificate is let in", Some("good"), 200).await;
    shop.until("the revoked one is not", Some("stolen"), 403).await;
    shop.close().await;
}

fn helm(arguments: &[&str]) -> String {
    support::run("helm", arguments, "")
}

#[test]
fn d3_the_program_of_the_image_says_that_it_loads_no_modules() {
    // The image of a given cluster is not ours to look into.
    if std::env::var_os("COUNTERSIGN_CLUSTER").is_some_and(|given| given == "given") {
        return;
    }
    let output = Command::new(root().join("target/image/countersign"))
        .args(["controller", "--pkcs11-module=/usr/lib/softhsm/libsofthsm2.so"])
        .args(["--pkcs11-token-label=any", "--pkcs11-pin-file=/nowhere"])
        .output()
        .expect("e2e/setup built it");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("this build can't load PKCS#11 modules"), "{error}");
}
