//! The shop behind a data plane as processes beside a real API server, programmed by a `ClientTrust` and asked by curl.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use countersign::api::condition::READY;
use countersign::api::{ClientAuthority, ClientIdentity, ClientTrust};
use countersign::pki::crl::{self, CrlNumber};
use countersign::pki::issue::{IssueRequest, issue};
use countersign::pki::key::Encoding;
use countersign::pki::name::{Attribute, Name};
use countersign::pki::profile::{Profile, Usage};
use countersign::pki::{CertificateAuthority, KeyType, PrivateKey, Serial, certificate_pem};
use k8s_openapi::api::core::v1::Secret;
use kube::api::DynamicObject;
use kube::{Api, Client};
use serde_json::json;

use super::control_plane::ControlPlane;
use super::data_plane::{DataPlane, HOST, Refusal, open_shop, resource};
use super::operator::{NAMESPACE, Operator, control_plane};
use super::pki::hours;
use super::server::{Answer as Served, Server, curl};
use super::servers::{Answer, curl_at, curl_plain, https_at, write_files};
use super::{create, delete, eventually, namespace, patch, root, wait_for};

pub const FAST: &str = "rotation: {preparation: 1s, activationTimeout: 1h, reissueWithin: 0s, compromiseGracePeriod: 1s}";

/// How soon a revoked client has to be refused.
pub const IN_FORCE: Duration = Duration::from_secs(30);

pub const OPEN: Refusal = Refusal::status(200);
pub const FORBIDDEN: Refusal = Refusal::status(403);

/// The shop behind a data plane, and the operator.
pub struct Scene<P> {
    // The order counts: what uses the API server ends before it.
    pub data_plane: P,
    pub operator: Option<Operator>,
    pub gate: Server,
    pub plane: ControlPlane,
    pub client: Client,
    pub namespace: String,
}

impl<P: DataPlane> Scene<P> {
    /// The operator is there before the data plane, whose kinds it has to find later.
    pub async fn new() -> Self {
        let (plane, client) = control_plane().await;
        let gate = match P::ASKS_BY_SERVICE {
            true => Server::start_behind_service(&plane, &client).await,
            false => Server::start(&plane, None),
        };
        Self::with_gate(plane, client, gate).await
    }

    pub async fn with_gate(plane: ControlPlane, client: Client, gate: Server) -> Self {
        let operator = Some(start_operator(&plane, &gate));
        let namespace = namespace(&client, "shop").await;
        let data_plane = P::start(&plane, &client).await;
        open_shop(&plane, &client, &namespace).await;
        data_plane.route(&client, &namespace, "shop", HOST).await;
        Self { data_plane, operator, gate, plane, client, namespace }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.plane.folder().join(name)
    }

    pub fn authorities(&self) -> Api<ClientAuthority> {
        Api::all(self.client.clone())
    }

    pub async fn authority(&self, name: &str) {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{selfSigned: {{commonName: {name}}}, {FAST}}}}}"
        );
        create(&self.authorities(), &yaml).await;
        wait_for(&self.authorities(), name, READY, "True", "Ready").await;
    }

    /// A `ClientTrust` in the clients of the staff, before the shop.
    pub async fn trust(&self) -> ClientTrust {
        let trusts = self.api::<ClientTrust>();
        let [group, _, kind] = P::ROUTE;
        let trust = json!({
            "metadata": {"name": "clients"},
            "spec": {
                "authorities": [{"name": "staff"}],
                "targetRefs": [{"group": group, "kind": kind, "name": "shop"}],
                "mode": "Required",
            },
        });
        create(&trusts, &trust.to_string()).await;
        wait_for(&trusts, "clients", READY, "True", "Programmed").await
    }

    /// Waits until the trust tells why it does not hold.
    pub async fn not_ready(&self, reason: &str) {
        wait_for(&self.api::<ClientTrust>(), "clients", READY, "False", reason).await;
    }

    pub async fn ready(&self) {
        wait_for(&self.api::<ClientTrust>(), "clients", READY, "True", "Programmed").await;
    }

    pub async fn identity(&self, name: &str, authority: &str) {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: {authority}}}, commonName: {name}, secretName: {name}-tls}}}}"
        );
        create(&self.api::<ClientIdentity>(), &yaml).await;
        wait_for(&self.api::<ClientIdentity>(), name, READY, "True", "Issued").await;
        self.fetch(name).await;
    }

    /// Puts what is in an identity's Secret now where curl finds it.
    pub async fn fetch(&self, name: &str) {
        let secret = self.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret");
        fs::create_dir_all(self.path(name)).expect("a folder");
        write_files(&secret, &["tls.crt", "tls.key"], &self.path(name));
    }

    /// The staff's CA.
    pub async fn ca(&self) -> CertificateAuthority {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let secret = secrets.get("ca-staff-1").await.expect("the CA's Secret");
        let text = |key: &str| String::from_utf8(data(&secret, key).to_vec()).expect("PEM");
        CertificateAuthority::from_pem(&text("tls.crt"), &text("tls.key")).expect("a CA")
    }

    /// A client certificate of the staff's CA that has expired.
    pub async fn write_expired(&self, name: &str) {
        let key = PrivateKey::generate(KeyType::EcdsaP256);
        let request = IssueRequest {
            profile: &Profile {
                subject: Name(vec![(Attribute::CommonName, name.to_owned())]),
                alternative_names: vec![],
                usages: vec![Usage::ClientAuth],
            },
            public_key_der: &key.public_key_der(),
            serial: Serial::random(),
            not_before: hours(-2),
            not_after: hours(-1),
            crl_url: None,
        };
        let leaf = issue(&self.ca().await, &request).expect("a certificate").der;
        fs::create_dir_all(self.path(name)).expect("a folder");
        fs::write(self.path(name).join("tls.crt"), certificate_pem(&leaf)).expect("written");
        let key = key.to_pem(Encoding::Pkcs8);
        fs::write(self.path(name).join("tls.key"), &*key).expect("written");
    }

    pub fn ask(&self, identity: Option<&str>, headers: &[&str]) -> Answer {
        self.ask_at(HOST, identity, headers)
    }

    /// Asks another host than the shop's.
    pub fn ask_at(&self, host: &str, identity: Option<&str>, headers: &[&str]) -> Answer {
        let folder = identity.map(|name| self.path(name));
        // A host that is not known is answered with a certificate that nobody can verify.
        let ca = self.path("server.pem");
        curl_at(self.data_plane.https(), host, &ca, folder.as_deref(), headers)
    }

    /// Asks the shop for a path, with further arguments of curl.
    pub fn ask_for(&self, path: &str, identity: Option<&str>, arguments: &[&str]) -> Served {
        let asking = https_at(self.data_plane.https(), HOST, path, &self.path("server.pem"));
        let mut all: Vec<&str> = asking.iter().map(String::as_str).collect();
        let file = |folder: &str, name: &str| self.path(folder).join(name).display().to_string();
        let files = identity.map(|name| [file(name, "tls.crt"), file(name, "tls.key")]);
        if let Some([certificate, key]) = &files {
            all.extend(["--cert", certificate, "--key", key]);
        }
        all.extend(arguments);
        curl(&all)
    }

    /// Waits until a client is answered so.
    pub async fn until(&self, what: &str, identity: Option<&str>, expected: Refusal) {
        self.until_with(&[], what, identity, expected).await;
    }

    /// The same of a client that sends these headers.
    pub async fn until_with(
        &self,
        headers: &[&str],
        what: &str,
        identity: Option<&str>,
        expected: Refusal,
    ) {
        let started = Instant::now();
        let mut last = self.ask(identity, headers);
        while !expected.is(&last) {
            assert!(
                started.elapsed() < IN_FORCE,
                "waited {IN_FORCE:?} in vain: {what} ({expected:?}); last {last:?}; its log:\n{}",
                self.data_plane.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
            last = self.ask(identity, headers);
        }
    }

    /// What a client gets, as the tables in README.md have it: the HTTP status, or `alert`.
    pub fn cell(&self, identity: Option<&str>) -> String {
        self.cell_with(&[], identity)
    }

    /// The same of a client that sends these headers.
    pub fn cell_with(&self, headers: &[&str], identity: Option<&str>) -> String {
        match self.ask(identity, headers).status {
            0 => "alert".to_owned(),
            status => status.to_string(),
        }
    }

    /// Is a client answered so now? The end of the connection may come before the alert.
    pub fn expect(&self, what: &str, identity: Option<&str>, expected: Refusal) {
        let answer = self.ask(identity, &[]);
        assert!(expected.may_be(&answer), "{what}: {answer:?} is not {expected:?}");
    }

    pub fn routes(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource::<P>())
    }

    pub async fn route(&self) -> DynamicObject {
        self.routes().get("shop").await.expect("the route")
    }

    pub fn plain(&self, host: &str) -> u16 {
        curl_plain(self.data_plane.http(), host).status
    }

    /// Puts a CRL that has expired into the trust's Secret, under each of its keys.
    pub async fn expire_the_crl(&self) {
        let crl = crl::sign(&self.ca().await, CrlNumber(1), hours(-2), hours(-1), &[]);
        let pem = crl::to_pem(&crl.expect("a CRL"));
        let secrets = self.api::<Secret>();
        let keys = secrets.get("countersign-clients").await.expect("it").data.expect("data");
        let keys = keys.into_keys().filter(|key| key.contains("crl"));
        let crls: BTreeMap<_, _> = keys.map(|key| (key, pem.clone())).collect();
        patch(&secrets, "countersign-clients", json!({"stringData": crls})).await;
    }

    /// The trust's Secret is deleted: put back, and while nobody does that the shop is closed. How everybody is
    /// refused then. The same with a CRL that has expired, where one is read; how a good client is refused then.
    pub async fn outlives_the_loss_of_the_secret(
        &mut self,
        refusal: Refusal,
        expired: Option<Refusal>,
    ) {
        let missing = P::MISSING.or(refusal);
        let secrets = self.api::<Secret>();
        let uid = secrets.get("countersign-clients").await.expect("it").metadata.uid;
        delete(&secrets, "countersign-clients").await;
        eventually("the Secret is put back", || async {
            self.expect("meanwhile", None, missing);
            let now = secrets.get_opt("countersign-clients").await.expect("an answer")?;
            (now.metadata.uid != uid).then_some(())
        })
        .await;
        self.until("a valid certificate is let in", Some("good"), OPEN).await;
        self.operator.take().expect("an operator").kill();
        if let Some(expired) = expired {
            self.expire_the_crl().await;
            self.until("the CRL has expired", Some("good"), expired).await;
            self.expect("and who has no certificate is refused", None, missing);
        }
        delete(&secrets, "countersign-clients").await;
        self.until("without the Secret everybody is refused", Some("good"), refusal).await;
        self.expect("and so is who has no certificate", None, missing);
        self.operator = Some(start_operator(&self.plane, &self.gate));
        self.until("a valid certificate is let in again", Some("good"), OPEN).await;
    }
}

pub fn start_operator(plane: &ControlPlane, gate: &Server) -> Operator {
    Operator::start_as(plane, "controller", &[&format!("--gate-url={}", gate.gate_url())])
}

pub fn data<'a>(secret: &'a Secret, key: &str) -> &'a [u8] {
    &secret.data.as_ref().expect("data")[key].0
}

/// What users are told is what was seen: a row of a table in README.md.
pub fn assert_told_to_users<P: DataPlane>(cells: &[String]) {
    let row = format!("| {} | {} |", P::NAME, cells.join(" | "));
    println!("{row}");
    let readme = fs::read_to_string(root().join("README.md")).expect("it");
    assert!(readme.lines().any(|line| line == row), "README.md has not this row: {row}");
}
