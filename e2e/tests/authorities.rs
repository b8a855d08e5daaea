//! Authorities on a real API server, their certificates before a real nginx: rotation, compromise, a root
//! apart, CAs that were made elsewhere.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use countersign::api::authority::CaState;
use countersign::api::condition::{READY, ROTATING};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use countersign::pki::crl;
use countersign::pki::inspect::{certificates, inspect};
use countersign::pki::verify::verify_client;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use serde_json::json;
use tempfile::TempDir;

use support::control_plane::ControlPlane;
use support::operator::{NAMESPACE, Operator, control_plane};
use support::servers::{Server, curl, write_files, write_server_certificate};
use support::traffic::{Mount, Traffic};
use support::{ask, create, eventually, namespace, patch, wait_for};

struct Scene {
    plane: ControlPlane,
    client: Client,
    namespace: String,
    folder: TempDir,
    operator: Operator,
}

impl Scene {
    async fn new() -> Self {
        let (plane, client) = control_plane().await;
        let operator = Operator::start(&plane);
        let namespace = namespace(&client, "authorities").await;
        let folder = tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder");
        Self { plane, client, namespace, folder, operator }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn authorities(&self) -> Api<ClientAuthority> {
        Api::all(self.client.clone())
    }

    fn home(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn authority(&self, name: &str, spec: &str) {
        create(&self.authorities(), &format!("{{metadata: {{name: {name}}}, spec: {spec}}}")).await;
    }

    async fn ready(&self, authority: &str) {
        wait_for(&self.authorities(), authority, READY, "True", "Ready").await;
    }

    /// An identity of the authority, and a trust that has its bundle and CRLs in a Secret.
    async fn identity(&self, name: &str, authority: &str) {
        create(
            &self.api::<ClientIdentity>(),
            &format!("{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: {authority}}}, commonName: {name}, secretName: {name}-tls}}}}"),
        )
        .await;
        wait_for(&self.api::<ClientIdentity>(), name, READY, "True", "Issued").await;
    }

    async fn trust(&self, name: &str, authority: &str) {
        create(
            &self.api::<ClientTrust>(),
            &format!("{{metadata: {{name: {name}}}, spec: {{authorities: [{{name: {authority}}}], targetRefs: [{{group: networking.k8s.io, kind: Ingress, name: none}}]}}}}"),
        )
        .await;
        wait_for(&self.api::<ClientTrust>(), name, READY, "False", "TargetNotFound").await;
    }

    async fn secret(&self, name: &str) -> Secret {
        self.api::<Secret>().get(name).await.expect("a Secret")
    }

    /// States of the generations, oldest first.
    async fn states(&self, authority: &str) -> Vec<(i64, CaState)> {
        let status = self.authorities().get(authority).await.expect("an authority").status;
        let generations = status.map(|status| status.generations).unwrap_or_default();
        generations.iter().map(|one| (one.number, one.state)).collect()
    }

    async fn has_states(&self, authority: &str, wanted: &[(i64, CaState)]) {
        let started = std::time::Instant::now();
        while self.states(authority).await != wanted {
            if started.elapsed() > 2 * support::PATIENCE {
                let status = self.authorities().get(authority).await.expect("it").status;
                panic!("waited in vain for {wanted:?}: {status:#?}\n{}", self.operator.log());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    async fn request_rotation(&self, authority: &str) {
        let now = Timestamp::now().to_string();
        let body =
            json!({"metadata": {"annotations": {"countersign.dev/rotate-requested-at": now}}});
        patch(&self.authorities(), authority, body).await;
    }

    fn openssl(&self, arguments: &[&str]) -> (bool, String) {
        ask(self.folder.path(), "openssl", arguments)
    }
}

fn data<'a>(secret: &'a Secret, key: &str) -> &'a [u8] {
    &secret.data.as_ref().expect("data")[key].0
}

/// Is the leaf of this Secret one that the published trust verifies at this moment?
fn is_trusted(identity: &Secret, trust: &Secret) -> bool {
    let chain = certificates(data(identity, "tls.crt")).expect("a chain");
    let roots = certificates(data(trust, "ca.crt")).expect("a bundle");
    verify_client(&chain[0], &chain[1..], &roots, Timestamp::now()).is_ok()
}

const FAST: &str = "rotation: {preparation: 2s, activationTimeout: 1h, reissueWithin: 4s, compromiseGracePeriod: 8s}";

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_ca_rotates_and_while_it_is_compromised() {
    let scene = Scene::new().await;
    scene.authority("clients", &format!("{{selfSigned: {{commonName: CA}}, {FAST}}}")).await;
    scene.ready("clients").await;
    scene.identity("laptop", "clients").await;
    scene.trust("shop", "clients").await;

    let (client, server) = (scene.path("client"), scene.path("server"));
    let mut mounted = Mount::new(&client);
    let secrets = scene.api::<Secret>();
    mounted.sync(&secrets, "laptop-tls", &["tls.crt", "tls.key"]).await;
    fs::create_dir(&server).expect("a folder");
    write_server_certificate(&server);
    write_files(&scene.secret("countersign-shop").await, &["ca.crt", "ca.crl"], &server);
    let mut nginx = Server::nginx(&server);
    let port = nginx.port;
    let traffic = Traffic::start(client.clone(), move |identity| curl(port, Some(identity)));

    // What kubelet and an ingress controller do, with the delay that they have.
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let sync = tokio::spawn({
        let (secrets, client_folder) = (secrets.clone(), client.clone());
        async move {
            let mut trusted = Mount::new(&client_folder.with_file_name("trust"));
            while !*stopped.borrow_and_update() {
                let (identity, trust) = (
                    secrets.get("laptop-tls").await.expect("a Secret"),
                    secrets.get("countersign-shop").await.expect("a Secret"),
                );
                assert!(is_trusted(&identity, &trust), "a leaf outside the published trust");
                if trusted.sync(&secrets, "countersign-shop", &["ca.crt", "ca.crl"]).await {
                    write_files(&trust, &["ca.crt", "ca.crl"], &server);
                    nginx.reload();
                }
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                mounted.sync(&secrets, "laptop-tls", &["tls.crt", "tls.key"]).await;
            }
            nginx
        }
    });

    let first = Mount::current(&client);
    scene.request_rotation("clients").await;
    scene.has_states("clients", &[(1, CaState::Active), (2, CaState::Prepared)]).await;
    wait_for(&scene.authorities(), "clients", ROTATING, "True", "Preparing").await;
    scene.has_states("clients", &[(1, CaState::Retiring), (2, CaState::Active)]).await;
    let generation = |secret: &Secret| {
        secret.metadata.annotations.as_ref().expect("annotations")["countersign.dev/generation"]
            .clone()
    };
    let replaced = eventually("the leaf is replaced", || async {
        Some(scene.secret("laptop-tls").await).filter(|secret| generation(secret) == "2")
    })
    .await;
    assert_eq!(certificates(data(&replaced, "ca.crt")).expect("a bundle").len(), 2);
    assert_eq!(curl(port, Some(&first)).status, 200, "the one before is good until it expires");

    // Its last certificate is revoked, so that it need not be waited for.
    let serial =
        inspect(&certificates(&fs::read(first.join("tls.crt")).expect("a file")).expect("PEM")[0]);
    create(
        &scene.api::<CertificateRevocation>(),
        &format!(
            "{{metadata: {{name: old}}, spec: {{serialNumber: \"{}\"}}}}",
            serial.expect("a leaf").serial
        ),
    )
    .await;
    scene.has_states("clients", &[(1, CaState::Removed), (2, CaState::Active)]).await;
    eventually("the bundle holds the new CA only", || async {
        let secret = scene.secret("laptop-tls").await;
        (certificates(data(&secret, "ca.crt")).expect("a bundle").len() == 1).then_some(())
    })
    .await;
    wait_for(&scene.authorities(), "clients", ROTATING, "False", "Idle").await;

    let stolen = Mount::current(&client);
    assert_eq!(curl(port, Some(&stolen)).status, 200);
    patch(&scene.authorities(), "clients", json!({"spec": {"compromisedGenerations": [2]}})).await;
    scene
        .has_states(
            "clients",
            &[(1, CaState::Removed), (2, CaState::Compromised), (3, CaState::Active)],
        )
        .await;
    scene
        .has_states(
            "clients",
            &[(1, CaState::Removed), (2, CaState::Removed), (3, CaState::Active)],
        )
        .await;
    eventually("the old leaf is refused", || async {
        (curl(port, Some(&stolen)).status == 400).then_some(())
    })
    .await;
    stop.send_replace(true);
    let nginx = sync.await.expect("every leaf was within the trust");
    traffic.stop();
    assert_eq!(curl(port, Some(&first)).status, 400);
    assert_eq!(curl(port, Some(&Mount::current(&client))).status, 200);
    drop((nginx, scene.operator, scene.plane));
}

#[tokio::test]
async fn a_root_apart_signs_only_cas_and_its_key_can_be_taken_away() {
    let scene = Scene::new().await;
    let spec = format!(
        "{{selfSigned: {{commonName: Root, organization: Example, intermediate: {{duration: 2160h}}, \
         nameConstraints: {{permittedDNSDomains: [example.com]}}}}, \
         crl: {{distributionPointBaseURL: \"http://crl.example.com\"}}, {FAST}}}"
    );
    scene.authority("split", &spec).await;
    scene.ready("split").await;
    scene.has_states("split", &[(0, CaState::Root), (1, CaState::Active)]).await;
    scene.identity("laptop", "split").await;
    scene.trust("shop", "split").await;
    let folder = scene.folder.path();
    write_server_certificate(folder);
    let write = async || {
        write_files(&scene.secret("countersign-shop").await, &["ca.crt", "ca.crl"], folder);
        write_files(&scene.secret("laptop-tls").await, &["tls.crt", "tls.key"], folder);
    };
    write().await;
    let chain = certificates(&fs::read(scene.path("tls.crt")).expect("a file")).expect("a chain");
    assert_eq!(chain.len(), 2, "the leaf and the CA below the root");
    let verify = |trust: &str| {
        let files = ["-CAfile", "ca.crt", "-CRLfile", "ca.crl", "-untrusted", trust, "tls.crt"];
        let strict = ["verify", "-x509_strict", "-purpose", "sslclient", "-crl_check_all"];
        scene.openssl(&[&strict[..], &files].concat())
    };
    let (good, text) = verify("tls.crt");
    assert!(good, "{text}");
    let (_, text) = scene.openssl(&["x509", "-in", "ca.crt", "-noout", "-text"]);
    for words in
        ["Subject: O = Example, CN = Root", "CA:TRUE, pathlen:1", "Permitted:", "DNS:example.com"]
    {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    let server = Server::nginx(folder);
    assert_eq!(curl(server.port, Some(folder)).status, 200);
    drop(server);

    // The root's key goes away: everything goes on, but no other CA can be made.
    let root = scene.home().get("ca-split-0").await.expect("the root's Secret");
    let key = String::from_utf8(data(&root, "tls.key").to_vec()).expect("PEM");
    patch(&scene.home(), "ca-split-0", json!({"data": {"tls.key": null}})).await;
    scene.request_rotation("split").await;
    let told = wait_for(&scene.authorities(), "split", ROTATING, "False", "Failed").await;
    let message = support::condition(&told.status.expect("a status").conditions, ROTATING)
        .expect("a condition")
        .message
        .clone();
    assert!(message.contains("kept elsewhere"), "{message}");
    scene.ready("split").await;
    scene.identity("second", "split").await;

    patch(&scene.home(), "ca-split-0", json!({"stringData": {"tls.key": key}})).await;
    scene
        .has_states("split", &[(0, CaState::Root), (1, CaState::Retiring), (2, CaState::Active)])
        .await;

    // A compromised CA below the root stands on the root's CRL.
    patch(&scene.authorities(), "split", json!({"spec": {"compromisedGenerations": [1]}})).await;
    let old = folder.join("old");
    fs::create_dir(&old).expect("a folder");
    fs::copy(scene.path("tls.crt"), old.join("tls.crt")).expect("copied");
    fs::copy(scene.path("tls.key"), old.join("tls.key")).expect("copied");
    scene
        .has_states("split", &[(0, CaState::Root), (1, CaState::Removed), (2, CaState::Active)])
        .await;
    eventually("the new leaf is good by the new CRLs", || async {
        write().await;
        verify("tls.crt").0.then_some(())
    })
    .await;
    let below = inspect(&chain[1]).expect("a certificate").serial;
    let config_maps: Api<ConfigMap> = Api::namespaced(scene.client.clone(), NAMESPACE);
    eventually("the root's CRL lists the CA", || async {
        let data = config_maps.get("crl-split-0").await.expect("a CRL").binary_data.expect("data");
        crl::read(&data["crl.der"].0).expect("a CRL").serials.contains(&below).then_some(())
    })
    .await;
    write().await;
    let server = Server::nginx(folder);
    assert_eq!(curl(server.port, Some(&old)).status, 400);
    assert_eq!(curl(server.port, Some(folder)).status, 200);
    drop((server, scene.operator, scene.plane));
}

/// A CA made by OpenSSL, as the data of a Secret.
fn openssl_ca(scene: &Scene, name: &str, subject: &str, extensions: &str, more: &[&str]) {
    let config = format!(
        "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nsubjectKeyIdentifier=hash\n{extensions}\n"
    );
    fs::write(scene.path("ca.cnf"), config).expect("written");
    let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
    let mut arguments =
        vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes"];
    arguments.extend([
        "-config",
        "ca.cnf",
        "-extensions",
        "ca",
        "-keyout",
        &key,
        "-out",
        &crt,
        "-subj",
        subject,
    ]);
    arguments.extend(more);
    let (good, text) = scene.openssl(&arguments);
    assert!(good, "{text}");
}

const CA_EXTENSIONS: &str =
    "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign";

async fn put_ca(scene: &Scene, secret: &str, certificate: &Path, key: &Path) {
    let text = |path: &Path| fs::read_to_string(path).expect("a file");
    let body = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret},
        "stringData": {"tls.crt": text(certificate), "tls.key": text(key)},
    });
    let params = kube::api::PatchParams::apply("test").force();
    scene.home().patch(secret, &params, &kube::api::Patch::Apply(body)).await.expect("applied");
}

#[tokio::test]
async fn a_ca_from_elsewhere_is_checked_copied_renewed_and_rotated() {
    let scene = Scene::new().await;
    let valid = ["-days", "3650"];
    // Two organizational units: its name is copied as it is.
    openssl_ca(&scene, "good", "/O=Corp/OU=One/OU=Two/CN=Corp CA", CA_EXTENSIONS, &valid);
    openssl_ca(&scene, "other", "/CN=Other", CA_EXTENSIONS, &valid);
    openssl_ca(&scene, "leaf", "/CN=Leaf", "basicConstraints=CA:false", &valid);
    let no_crl = "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign";
    openssl_ca(&scene, "nocrl", "/CN=No CRL", no_crl, &valid);
    let server = format!("{CA_EXTENSIONS}\nextendedKeyUsage=serverAuth");
    openssl_ca(&scene, "server", "/CN=Server only", &server, &valid);
    let uri = format!("{CA_EXTENSIONS}\nnameConstraints=critical,permitted;URI:example.com");
    openssl_ca(&scene, "uri", "/CN=URI", &uri, &valid);
    fs::write(scene.path("garbage.crt"), "no certificate").expect("written");

    scene.authority("corp", &format!("{{secretRef: {{name: corp-ca}}, {FAST}}}")).await;
    let told = wait_for(&scene.authorities(), "corp", READY, "False", "SourceUnusable").await;
    let message = told.status.expect("a status").conditions[0].message.clone();
    assert!(
        message.contains("spec.secretRef.name: Secret \"corp-ca\"")
            && message.contains("does not exist"),
        "{message}"
    );
    for (certificate, key, words) in [
        ("garbage", "good", "not a PEM certificate"),
        ("leaf", "leaf", "basicConstraints does not say cA"),
        ("nocrl", "nocrl", "keyUsage lacks keyCertSign or cRLSign"),
        ("server", "server", "extendedKeyUsage lacks clientAuth"),
        ("uri", "uri", "nameConstraints on URIs"),
        ("good", "other", "does not belong to the CA certificate"),
    ] {
        put_ca(
            &scene,
            "corp-ca",
            &scene.path(&format!("{certificate}.crt")),
            &scene.path(&format!("{key}.key")),
        )
        .await;
        // It is looked at once a minute; a change of the authority makes it be looked at now.
        let seen = json!({"metadata": {"annotations": {"look": words}}});
        patch(&scene.authorities(), "corp", seen).await;
        eventually(words, || async {
            let status = scene.authorities().get("corp").await.expect("it").status?;
            let ready = support::condition(&status.conditions, READY)?;
            ready.message.contains(words).then_some(())
        })
        .await;
    }
    let look = async || {
        let now = Timestamp::now().to_string();
        patch(&scene.authorities(), "corp", json!({"metadata": {"annotations": {"look": now}}}))
            .await;
    };
    put_ca(&scene, "corp-ca", &scene.path("good.crt"), &scene.path("good.key")).await;
    look().await;
    scene.ready("corp").await;
    scene.identity("laptop", "corp").await;
    scene.trust("shop", "corp").await;
    let verify = || {
        let files = ["-CAfile", "ca.crt", "-CRLfile", "ca.crl", "tls.crt"];
        scene.openssl(
            &[&["verify", "-x509_strict", "-purpose", "sslclient", "-crl_check"][..], &files]
                .concat(),
        )
    };
    let write = async || {
        write_files(
            &scene.secret("countersign-shop").await,
            &["ca.crt", "ca.crl"],
            scene.folder.path(),
        );
        write_files(
            &scene.secret("laptop-tls").await,
            &["tls.crt", "tls.key"],
            scene.folder.path(),
        );
    };
    write().await;
    let (good, text) = verify();
    assert!(good, "{text}");
    let (_, text) = scene.openssl(&["x509", "-in", "tls.crt", "-noout", "-issuer"]);
    assert!(text.contains("O = Corp, OU = One, OU = Two, CN = Corp CA"), "{text}");

    // The same key with a new certificate: the generation stays.
    let renew =
        ["req", "-x509", "-new", "-key", "good.key", "-config", "ca.cnf", "-extensions", "ca"];
    let config = format!(
        "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nsubjectKeyIdentifier=hash\n{CA_EXTENSIONS}\n"
    );
    fs::write(scene.path("ca.cnf"), config).expect("written");
    let subject =
        ["-subj", "/O=Corp/OU=One/OU=Two/CN=Corp CA", "-days", "7300", "-out", "renewed.crt"];
    let (good, text) = scene.openssl(&[&renew[..], &subject].concat());
    assert!(good, "{text}");
    put_ca(&scene, "corp-ca", &scene.path("renewed.crt"), &scene.path("good.key")).await;
    look().await;
    let renewed = fs::read(scene.path("renewed.crt")).expect("a file");
    eventually("the bundle holds the renewed certificate", || async {
        (data(&scene.secret("countersign-shop").await, "ca.crt") == renewed).then_some(())
    })
    .await;
    scene.has_states("corp", &[(1, CaState::Active)]).await;
    write().await;
    let (good, text) = verify();
    assert!(good, "the leaf of before is good: {text}");

    // Another CA takes over.
    put_ca(&scene, "corp-ca", &scene.path("other.crt"), &scene.path("other.key")).await;
    look().await;
    scene.has_states("corp", &[(1, CaState::Retiring), (2, CaState::Active)]).await;
    eventually("the leaf is of the other CA", || async {
        write().await;
        let (_, text) = scene.openssl(&["x509", "-in", "tls.crt", "-noout", "-issuer"]);
        (text.contains("CN = Other") && verify().0).then_some(())
    })
    .await;
    drop((scene.operator, scene.plane));
}

#[tokio::test]
async fn a_ca_of_each_key_type_signs_what_nginx_and_openssl_take() {
    let scene = Scene::new().await;
    let folder = scene.folder.path();
    write_server_certificate(folder);
    for (name, key) in [
        ("p384", "{algorithm: ECDSA, size: 384}"),
        ("p521", "{algorithm: ECDSA, size: 521}"),
        ("ed25519", "{algorithm: Ed25519}"),
        ("rsa2048", "{algorithm: RSA}"),
        ("rsa3072", "{algorithm: RSA, size: 3072}"),
        ("rsa4096", "{algorithm: RSA, size: 4096}"),
    ] {
        scene
            .authority(name, &format!("{{selfSigned: {{commonName: {name}, privateKey: {key}}}}}"))
            .await;
        scene.ready(name).await;
        scene.identity(name, name).await;
        scene.trust(name, name).await;
        write_files(
            &scene.secret(&format!("countersign-{name}")).await,
            &["ca.crt", "ca.crl"],
            folder,
        );
        write_files(&scene.secret(&format!("{name}-tls")).await, &["tls.crt", "tls.key"], folder);
        let verify = ["verify", "-x509_strict", "-purpose", "sslclient", "-crl_check_all"];
        let files = ["-CAfile", "ca.crt", "-CRLfile", "ca.crl", "tls.crt"];
        let (good, text) = scene.openssl(&[&verify[..], &files].concat());
        assert!(good, "{name}: {text}");
        let server = Server::nginx(folder);
        assert_eq!(curl(server.port, Some(folder)).status, 200, "{name}");
    }
    drop((scene.operator, scene.plane));
}

#[tokio::test]
async fn a_crl_that_has_grown_stays_complete_while_another_ca_takes_over() {
    let scene = Scene::new().await;
    scene
        .authority(
            "shards",
            "{selfSigned: {commonName: Shards, intermediate: {}}, rotation: {preparation: 0s, reissueWithin: 0s}, crl: {maxEntries: 10}}",
        )
        .await;
    scene.ready("shards").await;
    scene.trust("edge", "shards").await;
    for number in 0..10 {
        scene.identity(&format!("device-{number}"), "shards").await;
    }
    scene.identity("survivor", "shards").await;
    let before = certificates(data(&scene.secret("survivor-tls").await, "tls.crt")).expect("one");
    for number in 0..10 {
        create(
            &scene.api::<CertificateRevocation>(),
            &format!("{{metadata: {{name: stolen-{number}}}, spec: {{identityRef: {{name: device-{number}}}, reason: KeyCompromise}}}}"),
        )
        .await;
    }
    scene
        .has_states("shards", &[(0, CaState::Root), (1, CaState::Retiring), (2, CaState::Active)])
        .await;

    // The survivor has moved to the new CA; the trust verifies both, and lists all ten, under one root.
    eventually("the survivor has another certificate", async || {
        let now = scene.secret("survivor-tls").await;
        (certificates(data(&now, "tls.crt")).expect("one")[0] != before[0]).then_some(())
    })
    .await;
    let trust = scene.secret("countersign-edge").await;
    assert!(is_trusted(&scene.secret("survivor-tls").await, &trust));
    let crls = pem_blocks(data(&trust, "ca.crl"));
    let mut entries: Vec<usize> =
        crls.iter().map(|der| crl::read(der).expect("a CRL").serials.len()).collect();
    entries.sort_unstable();
    assert_eq!(entries, [0, 0, 10], "the root's, the new CA's, the old one's");
    let status = scene.authorities().get("shards").await.expect("it").status.expect("a status");
    assert_eq!(status.crl.expect("a CRL").headroom_percent, Some(99));
    wait_for(&scene.authorities(), "shards", "CRLFits", "True", "Fits").await;
}

fn pem_blocks(text: &[u8]) -> Vec<Vec<u8>> {
    let blocks = ::pem::parse_many(text).expect("PEM");
    blocks.into_iter().map(::pem::Pem::into_contents).collect()
}
