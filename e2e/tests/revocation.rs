//! `CertificateRevocation` on a real API server: which certificates it reaches, renewal before revocation,
//! namespaces, where it is in force, and `countersign revoke`.

#![allow(missing_docs)]

mod support;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use countersign::api::condition::{ENFORCED, PUBLISHED, READY, RECORDED};
use countersign::api::{
    CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust, annotation, label,
};
use countersign::pki::crl;
use countersign::pki::inspect::inspect_pair;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use support::control_plane::{ControlPlane, Process, binary, free_ports};
use support::operator::{NAMESPACE, Operator, control_plane};
use support::{
    condition, create, delete, eventually, namespace, openssl, patch, try_create, wait_for,
};

struct Scene {
    plane: ControlPlane,
    client: Client,
    namespace: String,
    operator: Operator,
}

impl Scene {
    /// A control plane with the authority `clients`, and the operator at work on it.
    async fn new() -> Self {
        Self::with(&[], async |_| ()).await
    }

    /// The same, with arguments for the operator and what must be there before it starts.
    async fn with(arguments: &[&str], prepare: impl AsyncFnOnce(&Client)) -> Self {
        let (plane, client) = control_plane().await;
        prepare(&client).await;
        let operator = Operator::start_as(&plane, "controller", arguments);
        let scene = Self { namespace: namespace(&client, "team").await, plane, client, operator };
        let authority = "{metadata: {name: clients}, spec: {selfSigned: {commonName: Test CA}}}";
        create(&scene.authorities(), authority).await;
        wait_for(&scene.authorities(), "clients", READY, "True", "Ready").await;
        scene
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn authorities(&self) -> Api<ClientAuthority> {
        Api::all(self.client.clone())
    }

    fn revocations(&self) -> Api<CertificateRevocation> {
        self.api()
    }

    async fn issued(&self, name: &str, more: &str) -> String {
        create(&self.api::<ClientIdentity>(), &identity_yaml(name, more)).await;
        wait_for(&self.api::<ClientIdentity>(), name, READY, "True", "Issued").await;
        self.serial(name).await
    }

    /// The serial number in the identity's Secret.
    async fn serial(&self, name: &str) -> String {
        let secret = self.secret(name).await;
        secret.annotations()[annotation::SERIAL].clone()
    }

    async fn secret(&self, name: &str) -> Secret {
        self.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret")
    }

    /// Waits for another certificate than the one of this serial number; its own.
    async fn renewed(&self, name: &str, before: &str) -> String {
        eventually("another certificate", || async {
            Some(self.serial(name).await).filter(|serial| serial != before)
        })
        .await
    }

    /// SHA-256 of an identity's certificate, as OpenSSL tells it.
    async fn fingerprint(&self, identity: &str) -> String {
        let data = self.secret(identity).await.data.expect("data");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("tls.crt"), &data["tls.crt"].0).expect("written");
        let asked = ["x509", "-in", "tls.crt", "-noout", "-fingerprint", "-sha256"];
        let told = openssl(folder.path(), &asked);
        told.trim().split_once('=').expect("a fingerprint").1.to_owned()
    }

    /// Has a new certificate issued by hand.
    async fn renew(&self, name: &str) -> String {
        let before = self.serial(name).await;
        let now = Timestamp::now().to_string();
        let annotations = json!({annotation::RENEW_REQUESTED_AT: now});
        let body = json!({"metadata": {"annotations": annotations}});
        patch(&self.api::<ClientIdentity>(), name, body).await;
        let after = self.renewed(name, &before).await;
        eventually("status has followed", || async {
            let identity = self.api::<ClientIdentity>().get(name).await.expect("it exists");
            (identity.status?.serial_number? == after).then_some(())
        })
        .await;
        after
    }

    async fn revoke(&self, name: &str, spec: &str) -> CertificateRevocation {
        create(&self.revocations(), &revocation_yaml(name, spec)).await;
        wait_for(&self.revocations(), name, PUBLISHED, "True", "Published").await
    }

    /// The serial numbers of the published CRL.
    async fn revoked(&self) -> Vec<String> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let config_map = api.get("crl-clients-1").await.expect("a CRL");
        let der = &config_map.binary_data.expect("data")["crl.der"].0;
        crl::read(der).expect("a CRL").serials.iter().map(ToString::to_string).collect()
    }

    fn cli(&self, arguments: &[&str], input: Option<&str>) -> Output {
        let mut child = Command::new(binary())
            .arg("revoke")
            .args(arguments)
            .env("KUBECONFIG", self.plane.kubeconfig("admin"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        // One that asks nobody has ended by now.
        let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }
}

impl Scene {
    /// The command at a terminal that somebody types into.
    fn at_terminal(&self, arguments: &str, input: &str) -> (bool, String) {
        let command = format!("{} revoke {arguments}", binary().display());
        let mut child = Command::new(support::program("script"))
            .args(["-q", "-e", "-c", &command, "/dev/null"])
            .env("KUBECONFIG", self.plane.kubeconfig("admin"))
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("script runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("written");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        (output.status.success(), text(&output))
    }
}

fn identity_yaml(name: &str, more: &str) -> String {
    format!(
        "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: clients}}, commonName: {name}, secretName: {name}-tls{more}}}}}"
    )
}

fn revocation_yaml(name: &str, spec: &str) -> String {
    format!("{{metadata: {{name: {name}}}, spec: {{{spec}}}}}")
}

fn serials(revocation: &CertificateRevocation) -> Vec<String> {
    let status = revocation.status.as_ref().expect("a status");
    let mut serials: Vec<_> =
        status.certificates.iter().map(|one| one.serial_number.clone()).collect();
    serials.sort();
    serials
}

fn sorted(serials: &[&String]) -> Vec<String> {
    let mut serials: Vec<String> = serials.iter().map(|serial| (*serial).clone()).collect();
    serials.sort();
    serials
}

fn message(object: &impl support::HasConditions, type_: &str) -> String {
    condition(&object.conditions(), type_).expect("it is there").message.clone()
}

fn text(output: &Output) -> String {
    let both = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[tokio::test]
async fn each_scope_reaches_what_it_says_and_nothing_that_is_issued_later() {
    let scene = Scene::new().await;
    let first = scene.issued("laptop", "").await;
    let other = scene.issued("phone", "").await;
    let second = scene.renew("laptop").await;
    let third = scene.renew("laptop").await;

    // Those that were replaced; the one in use stays.
    let revocation =
        scene.revoke("old", "identityRef: {name: laptop}, certificates: Superseded").await;
    assert_eq!(serials(&revocation), sorted(&[&first, &second]));
    assert_eq!(scene.serial("laptop").await, third, "nothing is issued for it");

    // The one in use; the identity gets another one, which is not concerned.
    let revocation =
        scene.revoke("current", "identityRef: {name: laptop}, certificates: Current").await;
    assert_eq!(serials(&revocation), sorted(&[&third]));
    let fourth = scene.renewed("laptop", &third).await;
    wait_for(&scene.api::<ClientIdentity>(), "laptop", READY, "True", "Issued").await;

    // By date: certificates are dated in whole seconds.
    let date = eventually("the next second", || async {
        let identity = scene.api::<ClientIdentity>().get("laptop").await.expect("it exists");
        let issued = identity.status?.revision_history.first()?.issuance_time.clone()?.0;
        let next = Timestamp::from_second(issued.as_second() + 1).expect("a time");
        (Timestamp::now() >= next).then_some(next)
    })
    .await;
    let fifth = scene.renew("laptop").await;
    let spec = format!("identityRef: {{name: laptop}}, issuedBefore: \"{date}\"");
    let revocation = scene.revoke("dated", &spec).await;
    assert_eq!(serials(&revocation), sorted(&[&first, &second, &third, &fourth]));
    assert_eq!(scene.serial("laptop").await, fifth);

    // By fingerprint, as OpenSSL writes it: of the one in use, and of one that was replaced.
    let fingerprint = scene.fingerprint("laptop").await;
    let revocation = scene.revoke("seen", &format!("fingerprint: \"{fingerprint}\"")).await;
    assert_eq!(serials(&revocation), sorted(&[&fifth]));
    let sixth = scene.renewed("laptop", &fifth).await;
    let fingerprint = scene.fingerprint("phone").await;
    let its_next = scene.renew("phone").await;
    let revocation = scene.revoke("copied", &format!("fingerprint: \"{fingerprint}\"")).await;
    assert_eq!(serials(&revocation), sorted(&[&other]));
    assert_eq!(scene.serial("phone").await, its_next);

    let crl = scene.revoked().await;
    assert_eq!(crl.len(), 6);
    assert!(!crl.contains(&its_next) && !crl.contains(&sixth), "{crl:?}");

    // A restart repeats nothing, and writes nothing.
    let Scene { plane, operator, client, namespace } = scene;
    wait_for(
        &Api::<ClientIdentity>::namespaced(client.clone(), &namespace),
        "laptop",
        READY,
        "True",
        "Issued",
    )
    .await;
    assert!(operator.stop().success());
    let before = plane.writes("operator").len();
    let operator = Operator::start(&plane);
    eventually("it leads", || async {
        (operator.log().matches("became leader").count() >= 2).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(4)).await; // it is what must not happen
    let writes = plane.writes("operator");
    assert_eq!(writes.len(), before, "{:?}", &writes[before..]);
}

#[tokio::test]
async fn with_renew_the_old_certificate_dies_only_when_the_new_one_is_in_place() {
    let scene = Scene::new().await;
    let old = scene.issued("laptop", ", privateKey: {rotationPolicy: Never}").await;
    let old_key = scene.secret("laptop").await.data.expect("data")["tls.key"].clone();
    let before = scene.plane.writes("operator").len();
    let spec = "identityRef: {name: laptop}, renew: true, reason: KeyCompromise";
    let revocation = scene.revoke("leaked", spec).await;
    let new = scene.serial("laptop").await;
    assert_ne!(new, old);
    assert_eq!(serials(&revocation), sorted(&[&old]));
    let leaked = scene.secret("laptop").await;
    assert_eq!(leaked.annotations()[annotation::REVISION], "3", "2 is for one that was under way");
    let data = scene.secret("laptop").await.data.expect("data");
    inspect_pair(&data["tls.crt"].0, &data["tls.key"].0).expect("key and leaf match");
    assert_ne!(data["tls.key"], old_key, "a key that others may know is not kept");
    wait_for(&scene.api::<ClientIdentity>(), "laptop", READY, "True", "Issued").await;

    // The serial of the new one in the ledger, the Secret, then the revocation in the ledger, then the CRL.
    let writes = scene.plane.writes("operator").split_off(before);
    let place = |resource: &str, name: &str| -> Vec<usize> {
        let all = writes.iter().enumerate();
        let found = all.filter(|(_, w)| w.resource == resource && w.name.contains(name));
        found.map(|(place, _)| place).collect()
    };
    let (ledger, secret, crl) = (
        place("configmaps", "ledger-"),
        place("secrets", "laptop-tls"),
        place("configmaps", "crl-"),
    );
    assert_eq!((ledger.len(), secret.len(), crl.len()), (2, 1, 1), "{writes:?}");
    assert!(ledger[0] < secret[0] && secret[0] < ledger[1] && ledger[1] < crl[0], "{writes:?}");

    // By serial number the same.
    let revocation = scene.revoke("again", &format!("serialNumber: \"{new}\", renew: true")).await;
    assert_eq!(serials(&revocation), sorted(&[&new]));
    assert_ne!(scene.serial("laptop").await, new);
    assert_eq!(scene.revoked().await.len(), 2);
}

#[tokio::test]
async fn a_renewal_that_is_refused_is_told_and_ends_in_revocation_all_the_same() {
    let scene = Scene::new().await;
    let old = scene.issued("laptop", "").await;
    let refuse =
        json!({"spec": {"allow": {"rules": [{"expression": "false", "message": "not now"}]}}});
    patch(&scene.authorities(), "clients", refuse.clone()).await;
    wait_for(&scene.api::<ClientIdentity>(), "laptop", READY, "False", "NotAllowed").await;
    create(
        &scene.revocations(),
        &revocation_yaml("leaked", "identityRef: {name: laptop}, renew: true"),
    )
    .await;
    let waits = eventually("the cause is told", || async {
        let waits = scene.revocations().get("leaked").await.expect("it exists");
        let told = condition(&waits.status.as_ref()?.conditions, RECORDED)?.clone();
        (told.reason == "WaitingForRenewal" && told.message.contains("not now")).then_some(told)
    })
    .await;
    assert!(waits.message.contains("NotAllowed"), "{}", waits.message);
    assert!(scene.revoked().await.is_empty(), "the old one works until the new one is in place");
    patch(&scene.authorities(), "clients", json!({"spec": {"allow": null}})).await;
    wait_for(&scene.revocations(), "leaked", PUBLISHED, "True", "Published").await;
    let new = scene.serial("laptop").await;
    assert_eq!(scene.revoked().await, [old]);

    // What can't be renewed must not live for ever.
    patch(&scene.authorities(), "clients", refuse).await;
    wait_for(&scene.api::<ClientIdentity>(), "laptop", READY, "False", "NotAllowed").await;
    let spec = "identityRef: {name: laptop}, renew: true, renewTimeout: 10s";
    let ended = scene.revoke("overdue", spec).await;
    let told = message(&ended, RECORDED);
    assert!(told.contains("no new one came within the time of spec.renewTimeout"), "{told}");
    assert!(scene.revoked().await.contains(&new));
}

#[tokio::test]
async fn a_client_that_keeps_its_key_is_waited_for() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let csr = |name: &str| {
        let new = ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name];
        openssl(folder.path(), &new);
        openssl(folder.path(), &["req", "-new", "-key", name, "-subj", "/CN=sensor"])
    };
    let request = |csr: &str| serde_json::to_string(csr).expect("JSON");
    let old = scene.issued("sensor", &format!(", request: {}", request(&csr("one.key")))).await;
    create(
        &scene.revocations(),
        &revocation_yaml("leaked", "identityRef: {name: sensor}, renew: true"),
    )
    .await;
    eventually("the client is asked for a new CSR", || async {
        let waits = scene.revocations().get("leaked").await.expect("it exists");
        let told = condition(&waits.status.as_ref()?.conditions, RECORDED)?.message.clone();
        told.contains("put the CSR of a new key there").then_some(())
    })
    .await;
    assert!(scene.revoked().await.is_empty());
    let spec = json!({"spec": {"request": csr("two.key")}});
    patch(&scene.api::<ClientIdentity>(), "sensor", spec).await;
    wait_for(&scene.revocations(), "leaked", PUBLISHED, "True", "Published").await;
    assert_eq!(scene.revoked().await, [old]);
    wait_for(&scene.api::<ClientIdentity>(), "sensor", READY, "True", "Issued").await;
}

#[tokio::test]
async fn another_namespace_is_out_of_reach_but_for_the_operators_own() {
    let scene = Scene::new().await;
    let serial = scene.issued("laptop", "").await;
    let elsewhere = namespace(&scene.client, "elsewhere").await;
    let there: Api<CertificateRevocation> = Api::namespaced(scene.client.clone(), &elsewhere);
    let home: Api<CertificateRevocation> = Api::namespaced(scene.client.clone(), NAMESPACE);
    let by_serial = format!("serialNumber: \"{serial}\"");
    create(&there, &revocation_yaml("foreign", &by_serial)).await;
    let refused = wait_for(&there, "foreign", RECORDED, "False", "OtherNamespace").await;
    let told = message(&refused, RECORDED);
    assert!(!told.contains("laptop") && !told.contains(&scene.namespace), "{told}");
    create(&there, &revocation_yaml("named", "identityRef: {name: laptop}")).await;
    wait_for(&there, "named", RECORDED, "False", "NotFound").await;
    assert!(scene.revoked().await.is_empty());

    // Who may revoke in a namespace may not do so in the operator's: RBAC decides, as for every object.
    let rules = "[{apiGroups: [countersign.dev], resources: [certificaterevocations], verbs: [create, get]}]";
    create(
        &Api::<Role>::namespaced(scene.client.clone(), &elsewhere),
        &format!("{{metadata: {{name: revokers}}, rules: {rules}}}"),
    )
    .await;
    create(
        &Api::<RoleBinding>::namespaced(scene.client.clone(), &elsewhere),
        "{metadata: {name: revokers}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: revokers}, \
         subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: dev}]}",
    )
    .await;
    let mut config = scene.plane.config("admin").await;
    config.auth_info.impersonate = Some("dev".to_owned());
    let dev = Client::try_from(config).expect("a client");
    let as_dev = |namespace: &str| Api::<CertificateRevocation>::namespaced(dev.clone(), namespace);
    let yaml = revocation_yaml("by-dev", &by_serial);
    eventually("the Role is in force", || async {
        try_create(&as_dev(&elsewhere), &yaml).await.ok()
    })
    .await;
    let refusal = try_create(&as_dev(NAMESPACE), &yaml).await.expect_err("it is not theirs");
    assert!(refusal.contains("forbidden"), "{refusal}");

    // There, an identity's name means nothing, a serial number everything.
    create(&home, &revocation_yaml("named", "identityRef: {name: laptop}")).await;
    wait_for(&home, "named", RECORDED, "False", "NotFound").await;
    create(&home, &revocation_yaml("stolen", &format!("{by_serial}, renew: true"))).await;
    wait_for(&home, "stolen", PUBLISHED, "True", "Published").await;
    assert_eq!(scene.revoked().await, std::slice::from_ref(&serial));
    assert_ne!(scene.serial("laptop").await, serial);
}

#[tokio::test]
async fn the_operators_own_namespace_is_watched_also_when_others_are_named() {
    let namespaces = "only-this";
    let scene = Scene::with(&["--watch-namespaces", namespaces], async |client| {
        let api: Api<Namespace> = Api::all(client.clone());
        create(&api, &format!("metadata: {{name: {namespaces}}}")).await;
    })
    .await;
    let scene = Scene { namespace: namespaces.to_owned(), ..scene };
    let serial = scene.issued("laptop", "").await;
    let home: Api<CertificateRevocation> = Api::namespaced(scene.client.clone(), NAMESPACE);
    create(&home, &revocation_yaml("stolen", &format!("serialNumber: \"{serial}\""))).await;
    wait_for(&home, "stolen", PUBLISHED, "True", "Published").await;
    assert_eq!(scene.revoked().await, [serial]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_the_api_server() {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let client = plane.client().await;
    let namespace = namespace(&client, "bad").await;
    let api: Api<CertificateRevocation> = Api::namespaced(client, &namespace);
    let print = "ab".repeat(32);
    for (spec, words) in [
        ("reason: KeyCompromise", "exactly one of identityRef, serialNumber and fingerprint"),
        (
            &*format!("serialNumber: \"0a\", fingerprint: \"{print}\""),
            "exactly one of identityRef, serialNumber and fingerprint",
        ),
        ("serialNumber: \"0a\", certificates: All", "spec.certificates and spec.issuedBefore"),
        (
            "serialNumber: \"0a\", issuedBefore: \"2026-05-01T10:00:00Z\"",
            "spec.certificates and spec.issuedBefore",
        ),
        ("identityRef: {name: a}, certificates: Some", "spec.certificates"),
        ("identityRef: {name: a}, issuedBefore: yesterday", "spec.issuedBefore"),
        ("identityRef: {name: a}, certificates: Superseded, renew: true", "have their successor"),
        ("identityRef: {name: a}, renewTimeout: 1m", "counts only with spec.renew"),
        ("identityRef: {name: a}, renew: true, renewTimeout: 5s", "must be 10s to 24h"),
        ("identityRef: {name: a}, renew: true, renewTimeout: 25h", "must be 10s to 24h"),
        ("fingerprint: abab", "spec.fingerprint"),
        (&*format!("fingerprint: \"{}\"", "xy".repeat(32)), "spec.fingerprint must be a SHA-256"),
    ] {
        let refusal = try_create(&api, &revocation_yaml("bad", spec)).await.expect_err(spec);
        assert!(refusal.contains(words), "{spec}: {refusal}");
    }
    create(&api, &revocation_yaml("good", "identityRef: {name: a}, certificates: Current")).await;
    let changed = json!({"spec": {"renew": true}});
    let params = kube::api::PatchParams::default();
    let refusal = api.patch("good", &params, &kube::api::Patch::Merge(&changed)).await;
    assert!(refusal.expect_err("immutable").to_string().contains("spec can't be changed"));
}

/// What a data plane of Traefik brings along; its own definitions are tested in the cluster.
async fn traefik(client: &Client) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (kind, plural) in [
        ("TLSOption", "tlsoptions"),
        ("Middleware", "middlewares"),
        ("IngressRoute", "ingressroutes"),
    ] {
        create(
            &crds,
            &format!(
                "{{metadata: {{name: {plural}.traefik.io}}, spec: {{group: traefik.io, scope: Namespaced, \
                 names: {{kind: {kind}, plural: {plural}}}, versions: [{{name: v1alpha1, served: true, storage: true, \
                 schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}]}}}}"
            ),
        )
        .await;
        let name = format!("{plural}.traefik.io");
        eventually("it is established", || async {
            let conditions = crds.get(&name).await.ok()?.status?.conditions?;
            conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(())
        })
        .await;
    }
    let classes: Api<IngressClass> = Api::all(client.clone());
    let class = "{metadata: {name: traefik}, spec: {controller: traefik.io/ingress-controller}}";
    create(&classes, class).await;
}

fn serve(plane: &ControlPlane, crl_port: u16) -> Process {
    let [gate, health] = free_ports();
    let child = Command::new(binary())
        .args(["serve", &format!("--crl-listen=127.0.0.1:{crl_port}")])
        .arg(format!("--gate-listen=127.0.0.1:{gate}"))
        .arg(format!("--health-listen=127.0.0.1:{health}"))
        .env("KUBECONFIG", plane.kubeconfig("operator"))
        .env_remove("POD_NAMESPACE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process(child.expect("the server starts"))
}

fn signal(process: &Process, name: &str) {
    let pid = process.0.id().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().expect("kill runs").success());
}

#[tokio::test]
async fn a_revocation_is_enforced_when_every_server_of_the_gate_answers_by_its_crl() {
    let [port] = free_ports();
    let servers = format!("127.0.0.1:{port}");
    let scene = Scene::with(&["--crl-servers", &servers], traefik).await;
    let revocations = scene.revocations();
    let first = scene.issued("laptop", "").await;

    // Nobody trusts the authority.
    scene.revoke("early", &format!("serialNumber: \"{first}\"")).await;
    wait_for(&revocations, "early", ENFORCED, "True", "NothingToEnforce").await;
    let second = scene.renewed("laptop", &first).await;

    // A trust whose gate nobody hears of.
    create(
        &scene.api::<Ingress>(),
        "{metadata: {name: shop}, spec: {ingressClassName: traefik, rules: [{host: shop.example.com, http: {paths: \
         [{path: /, pathType: Prefix, backend: {service: {name: shop, port: {number: 80}}}}]}}]}}",
    )
    .await;
    create(
        &scene.api::<ClientTrust>(),
        "{metadata: {name: shop}, spec: {authorities: [{name: clients}], \
         targetRefs: [{group: networking.k8s.io, kind: Ingress, name: shop}]}}",
    )
    .await;
    wait_for(&scene.api::<ClientTrust>(), "shop", READY, "True", "Programmed").await;
    let told = scene.revoke("late", &format!("serialNumber: \"{second}\"")).await;
    let needed = told.status.expect("a status").crl_number.expect("a number");
    let waits = wait_for(&revocations, "late", ENFORCED, "False", "ServersNotObserved").await;
    let told = message(&waits, ENFORCED);
    assert!(told.contains(&format!("ClientTrust {}/shop", scene.namespace)), "{told}");

    let server = serve(&scene.plane, port);
    let enforced = wait_for(&revocations, "late", ENFORCED, "True", "Enforced").await;
    let status = enforced.status.expect("a status");
    let [trust] = &*status.trusts else { panic!("{:?}", status.trusts) };
    assert_eq!((&trust.namespace, &*trust.name), (&scene.namespace, "shop"));
    let number = |text: &str| text.parse::<u128>().expect("a number");
    assert!(number(&trust.crl_number) >= number(&needed));
    assert!(status.enforced_time.is_some());

    // A server that no longer hears us may answer by an older CRL.
    let third = scene.renewed("laptop", &second).await;
    signal(&server, "-STOP");
    scene.revoke("stalled", &format!("serialNumber: \"{third}\"")).await;
    wait_for(&revocations, "stalled", ENFORCED, "False", "ServersNotObserved").await;
    signal(&server, "-CONT");
    wait_for(&revocations, "stalled", ENFORCED, "True", "Enforced").await;
    let trust = scene.api::<ClientTrust>().get("shop").await.expect("it exists");
    let crls = trust.status.expect("a status").crls;
    assert_eq!(crls.len(), 1);
    assert_eq!(crls[0].gate_crl_number.as_ref(), Some(&crls[0].crl_number));

    // It was measured, and nothing goes on.
    let metrics = ["-s", &format!("http://127.0.0.1:{}/metrics", scene.operator.health_port)];
    let metrics = support::run("curl", &metrics, "");
    for family in ["published", "enforced"] {
        let line = format!("countersign_revocation_{family}_seconds_count 3");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    wait_for(&scene.api::<ClientIdentity>(), "laptop", READY, "True", "Issued").await;
    tokio::time::sleep(Duration::from_secs(11)).await; // counts of the authority follow at leisure
    let writes = scene.plane.writes("operator").len();
    tokio::time::sleep(Duration::from_secs(4)).await; // it is what must not happen
    let after = scene.plane.writes("operator");
    assert_eq!(after.len(), writes, "{:?}", &after[writes..]);
    delete(&revocations, "late").await;
}

#[tokio::test]
async fn the_command_line_revokes_hundreds_and_asks_for_nothing_twice() {
    const COUNT: usize = 300;
    // On a machine with little to spare the API server takes its time under such a burst.
    let scene = Scene::with(&["--lease-seconds", "60"], async |_| ()).await;
    let second = namespace(&scene.client, "other").await;
    let keeper = scene.issued("keeper", "").await;
    let labels = "{metadata: {name: NAME, labels: {team: blue}}";
    for index in 0..COUNT {
        let name = format!("device-{index}");
        let namespace = if index % 3 == 0 { &second } else { &scene.namespace };
        let api: Api<ClientIdentity> = Api::namespaced(scene.client.clone(), namespace);
        let yaml = identity_yaml(&name, "");
        let plain = format!("{{metadata: {{name: {name}}}");
        create(&api, &yaml.replace(&plain, &labels.replace("NAME", &name))).await;
    }
    let all: Api<ClientIdentity> = Api::all(scene.client.clone());
    let ready = async || {
        let found = all.list(&ListParams::default()).await.expect("an answer").items;
        let ready = found.iter().filter(|identity| {
            let status = identity.status.as_ref();
            status.is_some_and(|status| status.serial_number.is_some())
        });
        ready.count()
    };
    // As many again and again, as long as it goes on.
    for part in [50, 100, 150, 200, 250, COUNT + 1] {
        eventually(&format!("{part} are ready"), || async {
            (ready().await >= part).then_some(())
        })
        .await;
    }
    let requests: Api<CertificateRevocation> = Api::all(scene.client.clone());
    let made = async || requests.list(&ListParams::default()).await.expect("an answer").items;

    // A dry run tells and does nothing; without a terminal nothing is done unasked.
    let base = ["-A", "-l", "team=blue", "--authority", "clients", "--reason", "KeyCompromise"];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let dry = scene.cli(&with(&["--dry-run"]), None);
    let told = text(&dry);
    assert!(
        dry.status.success() && told.contains("device-299") && !told.contains("keeper"),
        "{told}"
    );
    assert!(told.contains("of 300 ClientIdentit(ies) in 2 namespace(s)"), "{told}");
    let unasked = scene.cli(&base, Some("yes\n"));
    let told = text(&unasked);
    assert!(!unasked.status.success() && told.contains("--yes"), "{told}");
    assert!(made().await.is_empty());

    let started = std::time::Instant::now();
    let output = scene.cli(&with(&["--yes", "--timeout", "240"]), None);
    let told = text(&output);
    println!("{COUNT} identities revoked in {:?}\n{told}", started.elapsed());
    assert!(output.status.success(), "{told}");
    for words in ["requested 300/300", "published 300/300", "published          300"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let crl = scene.revoked().await;
    assert_eq!(crl.len(), COUNT);
    assert!(!crl.contains(&keeper));
    let first = made().await;
    assert_eq!(first.len(), COUNT);
    assert!(first.iter().all(|one| one.labels().contains_key(label::REQUEST)));

    // Interrupted and repeated, it goes on where it was.
    delete(
        &Api::<CertificateRevocation>::namespaced(
            scene.client.clone(),
            &first[7].namespace().expect("a namespace"),
        ),
        &first[7].name_any(),
    )
    .await;
    let again = scene.cli(&with(&["--yes"]), None);
    let told = text(&again);
    assert!(
        again.status.success() && told.contains("299 of them were asked for earlier"),
        "{told}"
    );
    assert_eq!(made().await.len(), COUNT);

    // Somebody sits at a terminal: they are asked, and see a bar.
    let ns = scene.namespace.clone();
    let (_, answered) = scene.at_terminal(&format!("-n {ns} --identity keeper"), "no\n");
    assert!(answered.contains("Type yes to go on") && answered.contains("nothing was revoked"));
    assert_eq!(made().await.len(), COUNT);
    let command = format!("-n {ns} --identity keeper --certificates superseded");
    let (_, answered) = scene.at_terminal(&command, "yes\n");
    assert!(answered.contains("requested    [===") && answered.contains("1/1"), "{answered}");
    assert_eq!(made().await.len(), COUNT + 1);

    // One that fails fails the command, and says why.
    let one = scene.cli(&["-n", &ns, "--identity", "keeper", "--renew", "--yes"], None);
    assert!(one.status.success(), "{}", text(&one));
    assert_ne!(scene.serial("keeper").await, keeper);
    let unknown = scene.cli(&["-n", &ns, "--serial", "0a0b0c", "--serial", &keeper, "--yes"], None);
    let told = text(&unknown);
    assert!(!unknown.status.success(), "{told}");
    assert!(
        told.contains("NotFound: spec.serialNumber") && told.contains("1 request(s) failed"),
        "{told}"
    );
    let nobody = scene.cli(&["-n", &ns, "-l", "team=red", "--yes"], None);
    assert!(text(&nobody).contains("no ClientIdentity found"), "{}", text(&nobody));
}
