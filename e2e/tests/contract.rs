//! What Countersign writes is what real verifiers take: OpenSSL, nginx, HAProxy and Envoy, fed from the very
//! Secrets that the controller wrote to a real API server.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use countersign::api::condition::{PUBLISHED, READY};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use tempfile::TempDir;

use support::control_plane::ControlPlane;
use support::operator::{NAMESPACE, Operator, control_plane};
use support::servers::{Answer, Server, curl, write_files, write_server_certificate};
use support::{ask, create, eventually, namespace, wait_for};

/// Two clients and a trust of one authority, and the folder that servers read.
struct Scene {
    plane: ControlPlane,
    client: Client,
    namespace: String,
    folder: TempDir,
    _operator: Operator,
}

const IDENTITY: &str = "{metadata: {name: NAME}, spec: {authorityRef: {name: clients}, commonName: NAME, \
     uris: [\"spiffe://example.com/NAME\"], dnsNames: [NAME.example.com], emailAddresses: [NAME@example.com], \
     ipAddresses: [10.1.2.3, \"fd00::1\"], subject: {organizations: [Example], organizationalUnits: [Laptops]}, \
     secretName: NAME-tls}}";

impl Scene {
    async fn new() -> Self {
        let (plane, client) = control_plane().await;
        let operator = Operator::start(&plane);
        let namespace = namespace(&client, "contract").await;
        let authorities: Api<ClientAuthority> = Api::all(client.clone());
        create(
            &authorities,
            "{metadata: {name: clients}, spec: {selfSigned: {commonName: Contract CA, organization: Example}, \
             crl: {distributionPointBaseURL: \"http://crl.example.com\"}}}",
        )
        .await;
        wait_for(&authorities, "clients", READY, "True", "Ready").await;
        let folder = tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder");
        let scene = Self { plane, client, namespace, folder, _operator: operator };
        for name in ["good", "stolen"] {
            create(&scene.api::<ClientIdentity>(), &IDENTITY.replace("NAME", name)).await;
            wait_for(&scene.api::<ClientIdentity>(), name, READY, "True", "Issued").await;
            let secret = scene.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret");
            fs::create_dir(scene.path(name)).expect("a folder");
            write_files(&secret, &["tls.crt", "tls.key", "ca.crt"], &scene.path(name));
        }
        // The Secret of a trust is there whether or not its targets are.
        create(
            &scene.api::<ClientTrust>(),
            "{metadata: {name: shop}, spec: {authorities: [{name: clients}], \
             targetRefs: [{group: networking.k8s.io, kind: Ingress, name: shop}]}}",
        )
        .await;
        wait_for(&scene.api::<ClientTrust>(), "shop", READY, "False", "TargetNotFound").await;
        scene.write_trust().await;
        write_server_certificate(scene.folder.path());
        scene
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn trust(&self) -> Secret {
        self.api::<Secret>().get("countersign-shop").await.expect("the trust's Secret")
    }

    async fn write_trust(&self) {
        write_files(&self.trust().await, &["ca.crt", "ca.crl"], self.folder.path());
    }

    /// Revokes an identity and waits until the trust's Secret holds the new CRL.
    async fn revoke(&self, name: &str) {
        let before = self.trust().await.data.expect("data")["ca.crl"].clone();
        create(
            &self.api::<CertificateRevocation>(),
            &format!("{{metadata: {{name: {name}}}, spec: {{identityRef: {{name: {name}}}, reason: KeyCompromise}}}}"),
        )
        .await;
        wait_for(&self.api::<CertificateRevocation>(), name, PUBLISHED, "True", "Published").await;
        eventually("the trust's Secret holds the new CRL", || async {
            (self.trust().await.data.expect("data")["ca.crl"] != before).then_some(())
        })
        .await;
    }
}

async fn server_takes_the_secret(start: fn(&Path) -> Server, none: u16, revoked: u16) {
    let scene = Scene::new().await;
    let mut server = start(scene.folder.path());
    let ask = |name: &str| curl(server.port, Some(&scene.path(name)));

    for name in ["good", "stolen"] {
        let Answer { status, body } = ask(name);
        assert_eq!(status, 200, "{name}: {body}");
        assert!(body.contains(&format!("CN={name}")), "{body}");
    }
    assert_eq!(curl(server.port, None).status, none, "no certificate");

    scene.revoke("stolen").await;
    scene.write_trust().await;
    server.reload();
    let port = server.port;
    for _ in 0..5 {
        assert_eq!(curl(port, Some(&scene.path("stolen"))).status, revoked);
        assert_eq!(curl(port, Some(&scene.path("good"))).status, 200);
    }
    drop(scene.plane);
}

#[tokio::test]
async fn nginx_takes_the_secret_and_refuses_who_is_revoked_after_a_reload() {
    server_takes_the_secret(Server::nginx, 400, 400).await;
}

#[tokio::test]
async fn haproxy_takes_the_secret_and_refuses_who_is_revoked_after_a_reload() {
    // It refuses within the handshake: there is no HTTP status.
    server_takes_the_secret(Server::haproxy, 0, 0).await;
}

#[tokio::test]
async fn envoy_takes_the_secret_and_refuses_who_is_revoked_without_a_reload() {
    // It follows its files by itself, and refuses within the handshake.
    server_takes_the_secret(Server::envoy, 0, 0).await;
}

#[tokio::test]
async fn openssl_reads_everything_and_agrees() {
    let scene = Scene::new().await;
    let openssl = |arguments: &[&str]| ask(scene.folder.path(), "openssl", arguments);

    let (_, text) = openssl(&["x509", "-in", "good/tls.crt", "-noout", "-text"]);
    for words in [
        "Subject: O = Example, OU = Laptops, CN = good",
        "Issuer: O = Example, CN = Contract CA",
        "TLS Web Client Authentication",
        "CA:FALSE",
        "Digital Signature",
        "URI:spiffe://example.com/good",
        "DNS:good.example.com",
        "email:good@example.com",
        "IP Address:10.1.2.3",
        "IP Address:FD00:0:0:0:0:0:0:1",
        "URI:http://crl.example.com/crl/clients/1.crl",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    assert!(!text.contains("TLS Web Server Authentication"), "{text}");
    let (_, text) = openssl(&["x509", "-in", "ca.crt", "-noout", "-text"]);
    for words in ["CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign"] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }

    let verify = ["verify", "-x509_strict", "-purpose", "sslclient", "-crl_check_all"];
    let files = ["-CAfile", "ca.crt", "-CRLfile", "ca.crl", "stolen/tls.crt"];
    let (good, text) = openssl(&[&verify[..], &files].concat());
    assert!(good, "{text}");
    let (_, text) = openssl(&["crl", "-in", "ca.crl", "-noout", "-text"]);
    assert!(text.contains("No Revoked Certificates"), "an empty CRL comes first: {text}");

    scene.revoke("stolen").await;
    scene.write_trust().await;
    let (good, text) = openssl(&[&verify[..], &files].concat());
    assert!(!good && text.contains("certificate revoked"), "{text}");
    let (_, text) = openssl(&["crl", "-in", "ca.crl", "-noout", "-text", "-CAfile", "ca.crt"]);
    for words in [
        "Version 2",
        "Key Compromise",
        "X509v3 CRL Number",
        "X509v3 Authority Key Identifier",
        "verify OK",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    assert!(!text.contains("Issuing Distribution Point"), "{text}");

    // The CRL that is served over HTTP and the one in the Secret are the same.
    let config_maps: Api<ConfigMap> = Api::namespaced(scene.client.clone(), NAMESPACE);
    let der = config_maps.get("crl-clients-1").await.expect("a CRL").binary_data.expect("data");
    fs::write(scene.path("crl.der"), &der["crl.der"].0).expect("written");
    let (_, pem) = openssl(&["crl", "-inform", "DER", "-in", "crl.der"]);
    assert_eq!(pem, fs::read_to_string(scene.path("ca.crl")).expect("a CRL"));
}
