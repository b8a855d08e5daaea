//! What an identity's Secret holds, for each type of key, kind of name and form: taken by OpenSSL, Java
//! and nginx from the very Secrets that the controller wrote to a real API server.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use countersign::api::condition::READY;
use countersign::api::{ClientAuthority, ClientIdentity, ClientTrust};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tempfile::TempDir;

use support::control_plane::ControlPlane;
use support::operator::{Operator, control_plane};
use support::servers::{Server, curl, curl_pkcs12, write_files, write_server_certificate};
use support::{ask, create, delete, eventually, namespace, openssl, patch, try_create, wait_for};

/// An authority, the operator, and nginx that lets its clients in.
struct Scene {
    plane: ControlPlane,
    namespace: String,
    client: Client,
    operator: Operator,
    server: Server,
    folder: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let (plane, client) = control_plane().await;
        let operator = Operator::start(&plane);
        let namespace = namespace(&client, "material").await;
        let authorities: Api<ClientAuthority> = Api::all(client.clone());
        let authority =
            "{metadata: {name: clients}, spec: {selfSigned: {commonName: Material CA}}}";
        create(&authorities, authority).await;
        wait_for(&authorities, "clients", READY, "True", "Ready").await;
        let folder = tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder");
        let trusts: Api<ClientTrust> = Api::namespaced(client.clone(), &namespace);
        create(
            &trusts,
            "{metadata: {name: shop}, spec: {authorities: [{name: clients}], \
             targetRefs: [{group: networking.k8s.io, kind: Ingress, name: shop}]}}",
        )
        .await;
        wait_for(&trusts, "shop", READY, "False", "TargetNotFound").await;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        let trust = secrets.get("countersign-shop").await.expect("the trust's Secret");
        write_files(&trust, &["ca.crt", "ca.crl"], folder.path());
        write_server_certificate(folder.path());
        let server = Server::nginx(folder.path());
        Self { plane, namespace, client, operator, server, folder }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn identities(&self) -> Api<ClientIdentity> {
        self.api()
    }

    async fn secret(&self, name: &str) -> Secret {
        self.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret")
    }

    /// Creates an identity and waits for its certificate; the folder with all that its Secret holds.
    async fn issue(&self, name: &str, spec: &str) -> PathBuf {
        create(&self.identities(), &identity(name, spec)).await;
        wait_for(&self.identities(), name, READY, "True", "Issued").await;
        self.fetch(name).await
    }

    async fn fetch(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        let secret = self.secret(name).await;
        let keys: Vec<&str> =
            secret.data.as_ref().expect("data").keys().map(String::as_str).collect();
        write_files(&secret, &keys, &folder);
        folder
    }

    /// OpenSSL verifies the chain as strictly as it can, and nginx lets the client in.
    fn assert_let_in(&self, folder: &Path) {
        let (good, text) = ask(
            folder,
            "openssl",
            &["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "ca.crt", "tls.crt"],
        );
        assert!(good, "{}: {text}", folder.display());
        let answer = curl(self.server.port, Some(folder));
        assert_eq!(answer.status, 200, "{}: {}", folder.display(), answer.body);
    }

    /// The identity's reason and message once it is not ready for this reason.
    async fn refusal(&self, name: &str, reason: &str) -> String {
        let identity = wait_for(&self.identities(), name, READY, "False", reason).await;
        identity.status.expect("a status").conditions[0].message.clone()
    }
}

fn identity(name: &str, spec: &str) -> String {
    format!(
        "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: clients}}, secretName: {name}-tls, {spec}}}}}"
    )
}

#[tokio::test]
async fn each_type_of_key_in_each_encoding_is_let_in() {
    let scene = Scene::new().await;
    for (name, key, header, text) in [
        ("p256", "algorithm: ECDSA", "PRIVATE KEY", "ASN1 OID: prime256v1"),
        ("p384", "algorithm: ECDSA, size: 384", "PRIVATE KEY", "ASN1 OID: secp384r1"),
        ("p521", "algorithm: ECDSA, size: 521", "PRIVATE KEY", "ASN1 OID: secp521r1"),
        ("ed25519", "algorithm: Ed25519", "PRIVATE KEY", "ED25519 Public-Key"),
        ("rsa2048", "algorithm: RSA", "PRIVATE KEY", "(2048 bit)"),
        ("rsa3072", "algorithm: RSA, size: 3072", "PRIVATE KEY", "(3072 bit)"),
        ("rsa4096", "algorithm: RSA, size: 4096", "PRIVATE KEY", "(4096 bit)"),
        ("sec1", "encoding: PKCS1", "EC PRIVATE KEY", "ASN1 OID: prime256v1"),
        ("sec1-521", "size: 521, encoding: PKCS1", "EC PRIVATE KEY", "ASN1 OID: secp521r1"),
        ("pkcs1", "algorithm: RSA, encoding: PKCS1", "RSA PRIVATE KEY", "(2048 bit)"),
    ] {
        let spec = format!("commonName: {name}, privateKey: {{{key}}}");
        let folder = scene.issue(name, &spec).await;
        let pem = fs::read_to_string(folder.join("tls.key")).expect("a key");
        assert!(pem.starts_with(&format!("-----BEGIN {header}-----")), "{name}");
        let shown = openssl(&folder, &["x509", "-in", "tls.crt", "-noout", "-text"]);
        assert!(shown.contains(text), "{name}: {text:?} is not in\n{shown}");
        scene.assert_let_in(&folder);
        let body = curl(scene.server.port, Some(&folder)).body;
        assert!(body.contains(&format!("CN={name}")), "{body}");
    }

    // Another encoding is no new certificate, another size is one.
    let before = scene.secret("p256").await;
    let change = json!({"spec": {"privateKey": {"encoding": "PKCS1"}}});
    patch(&scene.identities(), "p256", change).await;
    let after = eventually("the key is written anew", || async {
        let secret = scene.secret("p256").await;
        secret.data.as_ref()?["tls.key"].0.starts_with(b"-----BEGIN EC").then_some(secret)
    })
    .await;
    assert_eq!(after.data.as_ref().unwrap()["tls.crt"], before.data.unwrap()["tls.crt"]);
    scene.assert_let_in(&scene.fetch("p256").await);
    patch(&scene.identities(), "p256", json!({"spec": {"privateKey": {"size": 384}}})).await;
    eventually("a new certificate", || async {
        let secret = scene.secret("p256").await;
        (secret.data?["tls.crt"] != after.data.as_ref()?["tls.crt"]).then_some(())
    })
    .await;
    scene.assert_let_in(&scene.fetch("p256").await);

    // A key that is kept outlives its certificate.
    let first = scene.issue("kept", "commonName: a, privateKey: {rotationPolicy: Never}").await;
    let key = fs::read(first.join("tls.key")).expect("a key");
    let certificate = fs::read(first.join("tls.crt")).expect("a certificate");
    patch(&scene.identities(), "kept", json!({"spec": {"commonName": "b"}})).await;
    let data = eventually("a new certificate", || async {
        let data = scene.secret("kept").await.data?;
        (data["tls.crt"].0 != certificate).then_some(data)
    })
    .await;
    assert_eq!(data["tls.key"].0, key);
    assert!(!scene.operator.log().contains("PRIVATE KEY"), "a key in the log");
}

#[tokio::test]
async fn each_kind_of_name_is_let_in_and_bad_ones_are_refused() {
    let scene = Scene::new().await;
    for (name, spec, words) in [
        ("cn", "commonName: cn", "Subject: CN = cn"),
        (
            "dns",
            "dnsNames: [a.example.com, \"*.b.example.com\"]",
            "DNS:a.example.com, DNS:*.b.example.com",
        ),
        ("email", "emailAddresses: [ada@example.com]", "email:ada@example.com"),
        ("spiffe", "uris: [\"spiffe://example.com/ns/a\"]", "URI:spiffe://example.com/ns/a"),
        (
            "uri",
            "uris: [\"https://example.com/a\", \"urn:uuid:7\"]",
            "URI:https://example.com/a, URI:urn:uuid:7",
        ),
        (
            "ip",
            "ipAddresses: [10.1.2.3, \"fd00::1\"]",
            "IP Address:10.1.2.3, IP Address:FD00:0:0:0:0:0:0:1",
        ),
        (
            "upn",
            "userPrincipalNames: [\"jürgen@example.com\"]",
            "othername: UPN::jürgen@example.com",
        ),
        (
            "full",
            "commonName: full, subject: {countries: [DE], provinces: [Bayern], localities: [München], \
             organizations: [Example], organizationalUnits: [Laptops, Sales], serialNumber: A-7}, \
             dnsNames: [a.example.com], emailAddresses: [a@example.com], uris: [\"spiffe://example.com/a\"], \
             ipAddresses: [10.1.2.3], userPrincipalNames: [a@example.com], usages: [\"client auth\"]",
            "Subject: C = DE, ST = Bayern, L = München, O = Example, OU = Laptops, OU = Sales, CN = full, serialNumber = A-7",
        ),
    ] {
        let folder = scene.issue(name, spec).await;
        let show =
            ["x509", "-in", "tls.crt", "-noout", "-text", "-nameopt", "oneline,utf8,-esc_msb"];
        let text = openssl(&folder, &show);
        assert!(text.contains(words), "{name}: {words:?} is not in\n{text}");
        scene.assert_let_in(&folder);
    }

    for (spec, words) in [
        ("uris: [\"spiffe://Example.com/a\"]", "spec.uris: a SPIFFE ID has the form"),
        ("uris: [\"SPIFFE://example.com/a\"]", "spec.uris: a SPIFFE ID has the form"),
        ("uris: [\"spiffe://example.com/a/../b\"]", "spec.uris: a SPIFFE ID has the form"),
        ("uris: [\"spiffe://example.com:80/a\"]", "spec.uris: a SPIFFE ID has the form"),
        ("uris: [\"spiffe://example.com/a\", \"urn:a\"]", "is the only URI"),
        ("userPrincipalNames: [ada]", "spec.userPrincipalNames must hold names"),
        ("commonName: a, subject: {countries: [de]}", "codes of ISO 3166"),
        ("commonName: a, subject: {countries: [DEU]}", "spec.subject.countries"),
        ("commonName: a, subject: {serialNumber: \"a_b\"}", "PrintableString"),
        ("commonName: a, usages: [\"server auth\"]", "spec.usages must hold \"client auth\""),
        ("commonName: a, usages: [\"code signing\"]", "spec.usages"),
        ("commonName: a, privateKey: {size: 1024, algorithm: RSA}", "spec.privateKey.size must be"),
        ("commonName: a, privateKey: {size: 2048}", "spec.privateKey.size must be"),
        (
            "commonName: a, privateKey: {size: 256, algorithm: Ed25519}",
            "spec.privateKey.size must be",
        ),
        (
            "commonName: a, privateKey: {encoding: PKCS1, algorithm: Ed25519}",
            "must be PKCS8 with Ed25519",
        ),
        ("commonName: a, request: a, privateKey: {}", "leaves the key with the client"),
        (
            "commonName: a, request: a, additionalOutputFormats: [{type: DER}]",
            "leaves the key with the client",
        ),
        (
            "commonName: a, request: a, keystores: {pkcs12: {create: true, passwordSecretRef: {name: a}}}",
            "leaves the key with the client",
        ),
        (
            "commonName: a, additionalOutputFormats: [{type: DER}, {type: DER}]",
            "additionalOutputFormats",
        ),
    ] {
        let message = try_create(&scene.identities(), &identity("a", spec)).await.expect_err(spec);
        assert!(message.contains(words), "{spec}\n{message}");
    }
    let both = "commonName: both, usages: [\"client auth\", \"server auth\"]";
    create(&scene.identities(), &identity("both", both)).await;
    let message = scene.refusal("both", "NotAllowed").await;
    assert!(message.contains("server auth"), "{message}");
    let authorities: Api<ClientAuthority> = Api::all(scene.client.clone());
    let allow = json!({"spec": {"allow": {"usages": ["client auth", "server auth"]}}});
    patch(&authorities, "clients", allow).await;
    wait_for(&scene.identities(), "both", READY, "True", "Issued").await;
    let folder = scene.fetch("both").await;
    let text = openssl(&folder, &["x509", "-in", "tls.crt", "-noout", "-text"]);
    let words = "TLS Web Client Authentication, TLS Web Server Authentication";
    assert!(text.contains(words), "{text}");
    scene.assert_let_in(&folder);
}

const PASSWORD: &str = "correct horse, battery";

#[tokio::test]
async fn key_stores_are_opened_by_openssl_java_and_curl() {
    let mut scene = Scene::new().await;
    let keystores = |name: &str, more: &str| {
        format!(
            "commonName: {name}, additionalOutputFormats: [{{type: CombinedPEM}}, {{type: DER}}], \
             keystores: {{pkcs12: {{create: true, passwordSecretRef: {{name: p12}}{more}}}}}"
        )
    };
    // Without the password there is a certificate, and a message that says what is missing.
    create(&scene.identities(), &identity("modern", &keystores("modern", ""))).await;
    let message = scene.refusal("modern", "KeystoreFailed").await;
    assert!(message.contains("Secret \"p12\" does not exist; create it"), "{message}");
    let early = scene.fetch("modern").await;
    scene.assert_let_in(&early);
    assert!(!early.join("keystore.p12").exists());

    create(
        &scene.api::<Secret>(),
        &format!("{{metadata: {{name: p12}}, stringData: {{password: \"{PASSWORD}\"}}}}"),
    )
    .await;
    // Any event has it looked at again, a minute would, too.
    let nudge = json!({"metadata": {"annotations": {"example.com/look": "again"}}});
    patch(&scene.identities(), "modern", nudge).await;
    wait_for(&scene.identities(), "modern", READY, "True", "Issued").await;
    let modern = scene.fetch("modern").await;
    let legacy = scene.issue("legacy", &keystores("legacy", ", profile: Legacy")).await;
    let ec = scene
        .issue(
            "ed25519",
            &format!("{}, privateKey: {{algorithm: Ed25519}}", keystores("ed25519", "")),
        )
        .await;
    let rsa = scene
        .issue(
            "rsa",
            &format!("{}, privateKey: {{algorithm: RSA, encoding: PKCS1}}", keystores("rsa", "")),
        )
        .await;

    let pass = format!("pass:{PASSWORD}");
    for folder in [&modern, &legacy, &ec, &rsa] {
        let open = ["pkcs12", "-in", "keystore.p12", "-info", "-nodes", "-passin", &pass];
        let text = openssl(folder, &open);
        let legacy = folder.ends_with("legacy");
        let cipher = if legacy { "pbeWithSHA1And3-KeyTripleDES-CBC" } else { "AES-256-CBC" };
        assert!(text.contains("PRIVATE KEY") && text.contains(cipher), "{text}");
    }
    let (good, _) =
        ask(&modern, "openssl", &["pkcs12", "-in", "keystore.p12", "-passin", "pass:x"]);
    assert!(!good, "another password opens nothing");
    for folder in [&modern, &legacy, &ec, &rsa] {
        for (file, entry) in
            [("keystore.p12", "PrivateKeyEntry"), ("truststore.p12", "trustedCertEntry")]
        {
            let list = ["-list", "-storetype", "PKCS12", "-keystore", file, "-storepass", PASSWORD];
            let (good, text) = ask(folder, "keytool", &list);
            assert!(good && text.contains(entry), "{} {file}: {text}", folder.display());
        }
        let der = openssl(folder, &["pkey", "-inform", "DER", "-in", "key.der", "-pubout"]);
        assert_eq!(der, openssl(folder, &["pkey", "-in", "tls.key", "-pubout"]));
        let combined = fs::read_to_string(folder.join("tls-combined.pem")).expect("a file");
        let part = |name: &str| fs::read_to_string(folder.join(name)).expect("a file");
        assert_eq!(combined, part("tls.key") + &part("tls.crt"));
        scene.assert_let_in(folder);
    }
    for folder in [&modern, &legacy, &ec, &rsa] {
        let answer = curl_pkcs12(scene.server.port, &folder.join("keystore.p12"), PASSWORD);
        assert_eq!(answer.status, 200, "{}: {}", folder.display(), answer.body);
    }
    // Nothing is written again, not even by another process.
    let names = ["modern", "legacy", "ed25519", "rsa"];
    let mut before = Vec::new();
    for name in names {
        before.push(scene.secret(name).await.resource_version());
    }
    assert!(scene.operator.stop().success());
    scene.operator = Operator::start(&scene.plane);
    scene.issue("later", "commonName: later").await;
    for name in names {
        // A change of its own tells that the new process has looked at this one.
        let probe = json!({"spec": {"additionalOutputFormats": [{"type": "DER"}, {"type": "CombinedPEM"}]}});
        let generation = patch(&scene.identities(), name, probe).await.metadata.generation;
        eventually(&format!("{name} was looked at"), || async {
            let identity = scene.identities().get(name).await.expect("an identity");
            (identity.status?.observed_generation == generation).then_some(())
        })
        .await;
    }
    for (name, version) in names.into_iter().zip(before) {
        assert_eq!(scene.secret(name).await.resource_version(), version, "{name}");
    }

    // Another password is found when the Secret is looked at whole; forms that are not asked for go.
    patch(&scene.api::<Secret>(), "p12", json!({"stringData": {"password": "another"}})).await;
    patch(&scene.identities(), "modern", json!({"spec": {"additionalOutputFormats": null}})).await;
    eventually("the key store has the new password", || async {
        let folder = scene.fetch("modern").await;
        let check = ["pkcs12", "-in", "keystore.p12", "-noout", "-passin", "pass:another"];
        ask(&folder, "openssl", &check).0.then_some(())
    })
    .await;
    let data = scene.secret("modern").await.data.expect("data");
    assert!(!data.contains_key("key.der") && !data.contains_key("tls-combined.pem"));
    assert_eq!(data["tls.crt"].0, fs::read(modern.join("tls.crt")).expect("a certificate"));
    assert!(!scene.operator.log().contains(PASSWORD), "a password in the log");
}

/// Makes a key and its CSR by OpenSSL, in a folder of its own.
fn csr(scene: &Scene, name: &str, key: &[&str], more: &[&str]) -> String {
    let folder = scene.folder.path().join(name);
    fs::create_dir_all(&folder).expect("a folder");
    openssl(&folder, &[&["genpkey", "-out", "client.key"], key].concat());
    let request = ["req", "-new", "-key", "client.key", "-out", "client.csr", "-subj", "/CN=asked"];
    openssl(&folder, &[&request, more].concat());
    fs::read_to_string(folder.join("client.csr")).expect("a CSR")
}

fn requested(name: &str, csr: &str) -> String {
    format!(
        "commonName: {name}, dnsNames: [{name}.example.com], request: {}",
        serde_json::to_string(csr).expect("a string")
    )
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];

#[tokio::test]
async fn a_client_that_keeps_its_key_is_let_in_with_it() {
    let scene = Scene::new().await;
    let curve = |name: &'static str| ["-algorithm", "EC", "-pkeyopt", name];
    let bits = |name: &'static str| ["-algorithm", "RSA", "-pkeyopt", name];
    let pss: &[&str] =
        &["-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"];
    for (name, key, more) in [
        ("c-p256", P256, &["-sha256"][..]),
        ("c-p384", &curve("ec_paramgen_curve:P-384"), &["-sha384"]),
        ("c-p384-sha256", &curve("ec_paramgen_curve:P-384"), &["-sha256"]),
        ("c-p521", &curve("ec_paramgen_curve:P-521"), &["-sha512"]),
        ("c-ed25519", &["-algorithm", "ED25519"], &[]),
        ("c-rsa2048", RSA, &["-sha256"]),
        ("c-rsa3072", &bits("rsa_keygen_bits:3072"), &["-sha256"]),
        ("c-rsa4096", &bits("rsa_keygen_bits:4096"), &["-sha512"]),
        ("c-rsa-pss", RSA, pss),
    ] {
        let csr = csr(&scene, name, key, more);
        let folder = scene.issue(name, &requested(name, &csr)).await;
        let secret = scene.secret(name).await;
        assert_eq!(secret.type_.as_deref(), Some("Opaque"));
        assert_eq!(secret.data.unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "tls.crt"]);
        fs::copy(folder.join("client.key"), folder.join("tls.key")).expect("copied");
        scene.assert_let_in(&folder);
    }

    // Another CSR is another certificate; the same one is none.
    let before = scene.secret("c-p256").await;
    let second = csr(&scene, "second", P256, &[]);
    patch(&scene.identities(), "c-p256", json!({"spec": {"request": second}})).await;
    eventually("a certificate for the new key", || async {
        let data = scene.secret("c-p256").await.data?;
        (data["tls.crt"] != before.data.as_ref()?["tls.crt"]).then_some(())
    })
    .await;
    let folder = scene.fetch("c-p256").await;
    fs::copy(scene.folder.path().join("second/client.key"), folder.join("tls.key"))
        .expect("copied");
    scene.assert_let_in(&folder);

    // The type of a Secret can't be changed: whoever wants that deletes it.
    scene.issue("switch", "commonName: switch").await;
    let third = csr(&scene, "third", P256, &[]);
    patch(&scene.identities(), "switch", json!({"spec": {"request": third}})).await;
    let message = scene.refusal("switch", "SecretTypeConflict").await;
    assert!(message.contains("delete the Secret"), "{message}");
    assert!(scene.secret("switch").await.data.unwrap().contains_key("tls.key"), "not touched");
    delete(&scene.api::<Secret>(), "switch-tls").await;
    wait_for(&scene.identities(), "switch", READY, "True", "Issued").await;
    let secret = scene.secret("switch").await;
    assert!(!secret.data.unwrap().contains_key("tls.key"));
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
}

/// A CSR whose key has no octets; no program makes one.
fn csr_without_key() -> String {
    let algorithm = "301306072A8648CE3D020106082A8648CE3D030107"; // ecPublicKey, P-256
    let key = format!("3018{algorithm}030100");
    let info = format!("3021020100{}{key}A000", "3000");
    let der = format!("3032{info}300A06082A8648CE3D040302030100");
    let bytes: Vec<u8> = (0..der.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&der[at..at + 2], 16).expect("hex"))
        .collect();
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes))
}

#[tokio::test]
async fn ten_bad_requests_get_nothing_beyond_the_spec() {
    let scene = Scene::new().await;

    // Wishes that are none of the CSR's business: a certificate that says what the spec says.
    for (name, wish) in [
        ("ca", &["-addext", "basicConstraints=critical,CA:TRUE"][..]),
        ("other-cn", &["-subj", "/O=Other/CN=root"]),
        ("extension", &["-addext", "1.2.3.4.5=critical,DER:DEADBEEF"]),
        ("twice", &["-addext", "subjectAltName=DNS:evil.example.com,DNS:evil.example.com"]),
        ("non-ia5", &["-addext", "subjectAltName=DER:30:06:82:04:C3:BC:C3:B6"]),
    ] {
        let csr = csr(&scene, name, P256, wish);
        let folder = scene.issue(name, &requested(name, &csr)).await;
        fs::copy(folder.join("client.key"), folder.join("tls.key")).expect("copied");
        scene.assert_let_in(&folder);
        let text = openssl(&folder, &["x509", "-in", "tls.crt", "-noout", "-text"]);
        for words in [
            format!("Subject: CN = {name}\n"),
            format!("DNS:{name}.example.com\n"),
            "CA:FALSE".into(),
        ] {
            assert!(text.contains(&words), "{name}: {words:?} is not in\n{text}");
        }
        for words in ["CA:TRUE", "evil", "root", "1.2.3.4.5", "asked"] {
            assert!(!text.contains(words), "{name}: {words:?} is in\n{text}");
        }
    }

    // No CSR that could be signed: a condition that says why, and no Secret.
    let good = csr(&scene, "good", P256, &[]);
    let mut forged = pem::parse(&good).expect("PEM").into_contents();
    *forged.last_mut().expect("octets") ^= 1;
    let forged = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", forged));
    let weak = csr(&scene, "weak", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], &[]);
    for (name, csr, words) in [
        ("forged", forged.as_str(), "signature"),
        ("weak", &weak, "1024"),
        ("garbage", "no CSR at all", "CERTIFICATE REQUEST"),
        ("empty-key", &csr_without_key(), "no public key"),
    ] {
        create(&scene.identities(), &identity(name, &requested(name, csr))).await;
        let message = scene.refusal(name, "InvalidRequest").await;
        assert!(message.starts_with("spec.request: ") && message.contains(words), "{message}");
        let secret = scene.api::<Secret>().get_opt(&format!("{name}-tls")).await;
        assert!(secret.expect("an answer").is_none(), "{name}");
    }
    let huge = identity("huge", &requested("huge", &"A".repeat(20_000)));
    let message = try_create(&scene.identities(), &huge).await.expect_err("huge");
    assert!(message.contains("spec.request") && message.contains("16384"), "{message}");

    // The operator goes on, and a CSR that was put right is served.
    patch(&scene.identities(), "garbage", json!({"spec": {"request": good}})).await;
    wait_for(&scene.identities(), "garbage", READY, "True", "Issued").await;
    let folder = scene.fetch("garbage").await;
    fs::copy(scene.folder.path().join("good/client.key"), folder.join("tls.key")).expect("copied");
    scene.assert_let_in(&folder);
}
