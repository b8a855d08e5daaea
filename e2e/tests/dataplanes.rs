//! Data planes that verify client certificates and CRLs by themselves: the real ones, as processes beside a real API server,
//! programmed by a `ClientTrust` and asked by curl.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use countersign::api::condition::{ACCEPTED, PROGRAMMED, READY, REVOCATION_ENFORCED};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use support::contour::Contour;
use support::control_plane::ControlPlane;
use support::data_plane::{DataPlane, HOST, Refusal, open_shop};
use support::haproxy_ingress::HaproxyIngress;
use support::operator::{NAMESPACE, Operator};
use support::servers::{Answer, curl_at, write_files};
use support::{condition, create, delete, eventually, namespace, patch, wait_for};

/// How soon a revoked client has to be refused.
const IN_FORCE: Duration = Duration::from_secs(30);

const OPEN: Refusal = Refusal::status(200);

/// The shop behind a data plane, and the operator.
struct Scene<P> {
    // The order counts: what uses the API server ends before it.
    data_plane: P,
    _operator: Operator,
    plane: ControlPlane,
    client: Client,
    namespace: String,
}

impl<P: DataPlane> Scene<P> {
    /// The operator is there before the data plane, whose kinds it has to find later.
    async fn new() -> Self {
        let plane = ControlPlane::start().await;
        plane.install_crds().await;
        let client = plane.client().await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        create(&namespaces, &format!("metadata: {{name: {NAMESPACE}}}")).await;
        let operator = Operator::start(&plane);
        let namespace = namespace(&client, "shop").await;
        let data_plane = P::start(&plane, &client).await;
        open_shop(&plane, &client, &namespace).await;
        data_plane.route(&client, &namespace).await;
        Self { data_plane, _operator: operator, plane, client, namespace }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.plane.folder().join(name)
    }

    async fn authority(&self, name: &str) {
        let authorities: Api<ClientAuthority> = Api::all(self.client.clone());
        let yaml =
            format!("{{metadata: {{name: {name}}}, spec: {{selfSigned: {{commonName: {name}}}}}}}");
        create(&authorities, &yaml).await;
        wait_for(&authorities, name, READY, "True", "Ready").await;
    }

    async fn identity(&self, name: &str, authority: &str) {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: {authority}}}, commonName: {name}, secretName: {name}-tls}}}}"
        );
        create(&self.api::<ClientIdentity>(), &yaml).await;
        wait_for(&self.api::<ClientIdentity>(), name, READY, "True", "Issued").await;
        self.fetch(name).await;
    }

    /// Puts what is in an identity's Secret now where curl finds it.
    async fn fetch(&self, name: &str) {
        let secret = self.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret");
        fs::create_dir_all(self.path(name)).expect("a folder");
        write_files(&secret, &["tls.crt", "tls.key"], &self.path(name));
    }

    fn ask(&self, identity: Option<&str>, headers: &[String]) -> Answer {
        let folder = identity.map(|name| self.path(name));
        let ca = self.path("server.pem");
        curl_at(self.data_plane.https(), HOST, &ca, folder.as_deref(), headers)
    }

    /// Waits until a client is answered so.
    async fn until(&self, what: &str, identity: Option<&str>, expected: Refusal) {
        let started = Instant::now();
        let mut last = self.ask(identity, &[]);
        while !expected.is(&last) {
            assert!(
                started.elapsed() < IN_FORCE,
                "waited {IN_FORCE:?} in vain: {what} ({expected:?}); last {last:?}; its log:\n{}",
                self.data_plane.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
            last = self.ask(identity, &[]);
        }
    }

    /// Is a client answered so now? Of a handshake that is refused curl does not always get to see the alert.
    fn expect(&self, what: &str, identity: Option<&str>, expected: Refusal) {
        for _ in 0..10 {
            let answer = self.ask(identity, &[]);
            assert_eq!(answer.status, expected.status, "{what}: {answer:?}");
            if expected.is(&answer) {
                return;
            }
        }
        panic!("{what}: no {expected:?} in ten attempts");
    }

    async fn route(&self) -> DynamicObject {
        let [group, version, kind, _] = P::ROUTE;
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        api.get("shop").await.expect("the route")
    }

    /// A ClientTrust in the staff before the shop.
    async fn trust(&self) {
        let [group, _, kind, _] = P::ROUTE;
        let trust = json!({
            "metadata": {"name": "clients"},
            "spec": {
                "authorities": [{"name": "staff"}],
                "targetRefs": [{"group": group, "kind": kind, "name": "shop"}],
                "mode": "Required",
            },
        });
        create(&self.api::<ClientTrust>(), &trust.to_string()).await;
    }
}

#[tokio::test]
async fn haproxy_ingress_lets_in_whom_the_trust_names_and_nobody_who_is_revoked() {
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<HaproxyIngress>().await;
}

#[tokio::test]
async fn contour_lets_in_whom_the_trust_names_and_nobody_who_is_revoked() {
    lets_in_whom_the_trust_names_and_nobody_who_is_revoked::<Contour>().await;
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
    scene.trust().await;
    let trust = wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    let conditions = &trust.status.expect("a status").targets[0].conditions;
    for (type_, reason) in
        [(ACCEPTED, "Programmed"), (PROGRAMMED, "Programmed"), (REVOCATION_ENFORCED, "ByCRL")]
    {
        let found = condition(conditions, type_).expect(type_);
        assert_eq!((found.status.as_str(), found.reason.as_str()), ("True", reason), "{type_}");
    }

    // No certificate, a valid one, one of another CA.
    scene.until("no certificate is refused", None, P::MISSING).await;
    scene.until("a valid certificate is let in", Some("good"), OPEN).await;
    scene.until("a certificate of another CA is refused", Some("stranger"), P::UNKNOWN).await;

    // The backend is told who it is, whatever the client says.
    let forged = P::forged(&scene.path("lost"));
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

    // Revoked, then reissued: the new one is good, the old one stays dead.
    delete(&scene.api::<CertificateRevocation>(), "stolen").await;
    wait_for(&scene.api::<ClientIdentity>(), "stolen", READY, "True", "Issued").await;
    scene.expect("the revoked certificate", Some("stolen"), P::REVOKED);
    scene.fetch("stolen").await;
    scene.until("the reissued certificate is let in", Some("stolen"), OPEN).await;

    // Optional: without a certificate one gets in, and forging gains nothing.
    patch(&trusts, "clients", json!({"spec": {"mode": "Optional"}})).await;
    scene.until("no certificate is let in when it is optional", None, OPEN).await;
    P::assert_told(&scene.ask(None, &forged), None);
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
}
