//! Data planes that verify client certificates and CRLs by themselves: the real ones, as processes beside a real API server,
//! programmed by a `ClientTrust` and asked by curl.

#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::api::condition::{ACCEPTED, PROGRAMMED, READY, REVOCATION_ENFORCED};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use countersign::pki::inspect::certificates;
use countersign::pki::issue::{IssueRequest, issue};
use countersign::pki::key::Encoding;
use countersign::pki::name::{Attribute, Name};
use countersign::pki::profile::{Profile, Usage};
use countersign::pki::{CertificateAuthority, KeyType, PrivateKey, Serial, certificate_pem};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use support::control_plane::{ControlPlane, free_ports};
use support::operator::{NAMESPACE, Operator};
use support::pki::hours;
use support::servers::{Answer, curl_at, curl_plain, write_files, write_server_certificate_for};
use support::{condition, create, delete, eventually, namespace, patch, program, wait_for};

const HOST: &str = "shop.example.com";
/// A host beside it that asks nobody for a certificate.
const OPEN_HOST: &str = "open.example.com";

const FAST: &str = "rotation: {preparation: 1s, activationTimeout: 1h, reissueWithin: 0s, compromiseGracePeriod: 1s}";

/// How soon a revoked client has to be refused.
const IN_FORCE: Duration = Duration::from_secs(30);

/// HAProxy Ingress with its HAProxy.
struct HaproxyIngress {
    controller: Child,
    https: String,
    http: String,
}

impl HaproxyIngress {
    /// Starts it over the whole cluster, with everything that it listens on on loopback.
    async fn start(plane: &ControlPlane, client: &Client) -> Self {
        let built = std::env::var_os("COUNTERSIGN_HAPROXY_INGRESS").map(PathBuf::from).expect(
            "COUNTERSIGN_HAPROXY_INGRESS names no folder with HAProxy Ingress; run `make test`, or \
             COUNTERSIGN_HAPROXY_INGRESS=$(e2e/kind/cluster haproxy-ingress) cargo test --test dataplanes",
        );
        let [http, https, stats, healthz, controller_healthz] = free_ports();
        let options = json!({
            "metadata": {"name": "ingress-controller"},
            "data": {
                "bind-ip-addr-healthz": "127.0.0.1", "healthz-port": healthz.to_string(),
                "bind-ip-addr-http": "127.0.0.1", "http-port": http.to_string(), "https-port": https.to_string(),
                "bind-ip-addr-stats": "127.0.0.1", "stats-port": stats.to_string(),
            },
        });
        create::<ConfigMap>(&Api::namespaced(client.clone(), "default"), &options.to_string())
            .await;

        // What its image has at these places, in a folder of its own.
        let files = plane.folder().join("haproxy-ingress");
        let lua = files.join("etc/haproxy/lua");
        fs::create_dir_all(&lua).expect("a folder");
        for file in fs::read_dir(built.join("rootfs/etc/lua")).expect("scripts") {
            let file = file.expect("a file");
            fs::copy(file.path(), lua.join(file.file_name())).expect("copied");
        }
        let folder = program("haproxy").parent().expect("a folder").to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::env::split_paths(&path).chain([folder]));
        let log = File::create(Self::log_file(plane)).expect("a log");
        let controller = Command::new(built.join("haproxy-ingress"))
            .arg(format!("--kubeconfig={}", plane.kubeconfig("admin").display()))
            .arg(format!("--local-filesystem-prefix={}", files.display()))
            .arg(format!("--healthz-addr=127.0.0.1:{controller_healthz}"))
            .args(["--configmap=default/ingress-controller", "--master-worker=true"])
            // Both want a pod of its own to be named after.
            .args(["--update-status=false", "--watch-gateway=false"])
            .env_remove("POD_NAME")
            .env_remove("POD_NAMESPACE")
            .env("PATH", path.expect("a PATH"))
            .current_dir(&built) // it looks for rootfs/ here
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("HAProxy Ingress starts");
        let at = |port: u16| format!("127.0.0.1:{port}");
        Self { controller, https: at(https), http: at(http) }
    }

    fn log_file(plane: &ControlPlane) -> PathBuf {
        plane.folder().join("haproxy-ingress.log")
    }

    fn signal(signal: &str, process: &str) {
        // One that has ended is as good.
        let _ = Command::new("kill").args([signal, process]).stderr(Stdio::null()).status();
    }
}

impl Drop for HaproxyIngress {
    fn drop(&mut self) {
        // It ends its HAProxy before it ends. If it does not, HAProxy, which leads a process group of its own, has to go by itself.
        let pid = self.controller.id();
        let children = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children: Vec<String> = children
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        Self::signal("-TERM", &pid.to_string());
        let started = Instant::now();
        while matches!(self.controller.try_wait(), Ok(None)) {
            if started.elapsed() > Duration::from_secs(10) {
                for child in &children {
                    Self::signal("-KILL", child);
                }
                let _ = self.controller.kill();
                let _ = self.controller.wait();
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A web shop that tells its clients what it was asked. It serves until the test's process ends.
fn serve_shop() -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    address
}

/// The API server takes no endpoint on loopback: this machine's address on its way out. Nothing is sent there.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect("192.0.2.1:9").expect("this machine has a route, so that it has an address");
    socket.local_addr().expect("an address").ip()
}

/// Answers one request with its head. Health checks come and go without one.
fn answer(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => head.extend_from_slice(&buffer[..length]),
        }
    }
    let length = head.len();
    let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(&[start.as_bytes(), &head].concat());
}

/// The shop behind HAProxy Ingress, and the operator.
struct Scene {
    // The order counts: what uses the API server ends before it.
    ingress: HaproxyIngress,
    operator: Option<Operator>,
    plane: ControlPlane,
    client: Client,
    namespace: String,
}

impl Scene {
    async fn new() -> Self {
        let plane = ControlPlane::start().await;
        plane.install_crds().await;
        let client = plane.client().await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        create(&namespaces, &format!("metadata: {{name: {NAMESPACE}}}")).await;
        let operator = Some(Operator::start(&plane));
        let namespace = namespace(&client, "shop").await;
        let ingress = HaproxyIngress::start(&plane, &client).await;
        let scene = Self { ingress, operator, plane, client, namespace };
        scene.open_shop().await;
        scene
    }

    async fn open_shop(&self) {
        let shop = serve_shop();
        write_server_certificate_for(self.plane.folder(), "*.example.com");
        let pem = fs::read_to_string(self.path("server.pem")).expect("written");
        let (certificate, key) =
            pem.split_at(pem.find("-----BEGIN PRIVATE KEY-----").expect("a key"));
        let secret = json!({
            "metadata": {"name": "shop-server-tls"}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": certificate, "tls.key": key},
        });
        create(&self.api::<Secret>(), &secret.to_string()).await;
        let service = "{metadata: {name: shop}, spec: {ports: [{name: http, port: 80}]}}";
        create(&self.api::<Service>(), service).await;
        let endpoints = json!({
            "metadata": {"name": "shop", "labels": {"kubernetes.io/service-name": "shop"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": shop.port()}],
            "endpoints": [{"addresses": [shop.ip()], "conditions": {"ready": true}}],
        });
        create(&self.api::<EndpointSlice>(), &endpoints.to_string()).await;
        let class =
            "{metadata: {name: haproxy}, spec: {controller: haproxy-ingress.github.io/controller}}";
        create::<IngressClass>(&Api::all(self.client.clone()), class).await;
        self.route("shop", HOST, json!({"example.com/team": "shop"})).await;
    }

    /// An Ingress of HAProxy's class that leads a host to the shop.
    async fn route(&self, name: &str, host: &str, annotations: Value) {
        let backend = json!({"service": {"name": "shop", "port": {"name": "http"}}});
        let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
        let ingress = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "ingressClassName": "haproxy",
                "tls": [{"hosts": [host], "secretName": "shop-server-tls"}],
                "rules": [{"host": host, "http": {"paths": [path]}}],
            },
        });
        create(&self.api::<Ingress>(), &ingress.to_string()).await;
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

    fn authorities(&self) -> Api<ClientAuthority> {
        Api::all(self.client.clone())
    }

    async fn authority(&self, name: &str) {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{selfSigned: {{commonName: {name}}}, {FAST}}}}}"
        );
        create(&self.authorities(), &yaml).await;
        wait_for(&self.authorities(), name, READY, "True", "Ready").await;
    }

    /// A `ClientTrust` in the clients of the staff, before the shop.
    async fn trust(&self) -> ClientTrust {
        let trusts = self.api::<ClientTrust>();
        let trust = json!({
            "metadata": {"name": "clients"},
            "spec": {
                "authorities": [{"name": "staff"}],
                "targetRefs": [{"group": "networking.k8s.io", "kind": "Ingress", "name": "shop"}],
                "mode": "Required",
            },
        });
        create(&trusts, &trust.to_string()).await;
        wait_for(&trusts, "clients", READY, "True", "Programmed").await
    }

    /// Waits until the trust tells why it does not hold; and the revocations, too.
    async fn not_ready(&self, reason: &str) {
        wait_for(&self.api::<ClientTrust>(), "clients", READY, "False", reason).await;
    }

    async fn ready(&self) {
        wait_for(&self.api::<ClientTrust>(), "clients", READY, "True", "Programmed").await;
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

    /// A client certificate of the staff's CA that has expired.
    async fn write_expired(&self, name: &str) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let secret = secrets.get("ca-staff-1").await.expect("the CA's Secret");
        let text = |key: &str| String::from_utf8(data(&secret, key).to_vec()).expect("PEM");
        let authority = CertificateAuthority::from_pem(&text("tls.crt"), &text("tls.key"));
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
        let leaf = issue(&authority.expect("a CA"), &request).expect("a certificate").der;
        fs::create_dir_all(self.path(name)).expect("a folder");
        fs::write(self.path(name).join("tls.crt"), certificate_pem(&leaf)).expect("written");
        let key = key.to_pem(Encoding::Pkcs8);
        fs::write(self.path(name).join("tls.key"), &*key).expect("written");
    }

    fn ask(&self, identity: Option<&str>, headers: &[&str]) -> Answer {
        let folder = identity.map(|name| self.path(name));
        let ca = self.path("server.pem");
        curl_at(&self.ingress.https, HOST, &ca, folder.as_deref(), headers)
    }

    /// Waits until a client is answered so.
    async fn until(&self, what: &str, identity: Option<&str>, status: u16) {
        let started = Instant::now();
        let mut last = self.ask(identity, &[]);
        while last.status != status {
            assert!(
                started.elapsed() < IN_FORCE,
                "waited {IN_FORCE:?} in vain: {what} ({status}); last {last:?}; its log:\n{}",
                fs::read_to_string(HaproxyIngress::log_file(&self.plane)).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
            last = self.ask(identity, &[]);
        }
    }

    fn plain(&self, host: &str) -> u16 {
        curl_plain(&self.ingress.http, host).status
    }

    async fn ingress_now(&self) -> Ingress {
        self.api::<Ingress>().get("shop").await.expect("the Ingress")
    }
}

fn data<'a>(secret: &'a Secret, key: &str) -> &'a [u8] {
    &secret.data.as_ref().expect("data")[key].0
}

/// The headers of this name that the shop got.
fn told<'a>(answer: &'a Answer, name: &str) -> Vec<&'a str> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let headers = answer.body.lines().filter_map(|line| line.split_once(':'));
    headers
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// A certificate as the data plane hands it over.
fn in_header(folder: &Path) -> String {
    let pem = fs::read(folder.join("tls.crt")).expect("a certificate");
    STANDARD.encode(&certificates(&pem).expect("a chain")[0])
}

#[tokio::test]
async fn haproxy_ingress_lets_in_whom_the_trust_names_and_nobody_who_is_revoked() {
    let scene = Scene::new().await;
    scene.authority("staff").await;
    scene.authority("strangers").await;
    for (name, authority) in
        [("good", "staff"), ("stolen", "staff"), ("lost", "staff"), ("stranger", "strangers")]
    {
        scene.identity(name, authority).await;
    }
    scene.until("the shop is open before there is a trust", None, 200).await;
    let before = scene.ingress_now().await;

    let trusts = scene.api::<ClientTrust>();
    let trust = scene.trust().await;
    let conditions = &trust.status.expect("a status").targets[0].conditions;
    for (type_, reason) in
        [(ACCEPTED, "Programmed"), (PROGRAMMED, "Programmed"), (REVOCATION_ENFORCED, "ByCRL")]
    {
        let found = condition(conditions, type_).expect(type_);
        assert_eq!((found.status.as_str(), found.reason.as_str()), ("True", reason), "{type_}");
    }

    // No certificate, a valid one, one of another CA, an expired one.
    scene.until("no certificate is refused", None, 496).await;
    scene.until("a valid certificate is let in", Some("good"), 200).await;
    scene.until("a certificate of another CA is refused", Some("stranger"), 495).await;

    scene.write_expired("late").await;
    scene.until("an expired certificate is refused", Some("late"), 495).await;

    // The backend is told who it is, whatever the client says.
    let certificate = in_header(&scene.path("lost"));
    let forged = ["X-SSL-Client-CN: admin".to_owned(), format!("X-SSL-Client-Cert: {certificate}")];
    let forged = forged.each_ref().map(String::as_str);
    let answer = scene.ask(Some("good"), &forged);
    assert_eq!(told(&answer, "X-SSL-Client-CN"), ["good"]);
    assert_eq!(told(&answer, "X-SSL-Client-Cert"), [in_header(&scene.path("good"))]);

    // Revoked, by a CertificateRevocation and by deleting the identity.
    scene.until("it is let in as long as it is not revoked", Some("stolen"), 200).await;
    let started = Instant::now();
    let revocation = "{metadata: {name: stolen}, spec: {identityRef: {name: stolen}}}";
    create(&scene.api::<CertificateRevocation>(), revocation).await;
    scene.until("a revoked certificate is refused", Some("stolen"), 495).await;
    let took = started.elapsed();
    println!("HAProxy Ingress: refused {:.1} s after the revocation", took.as_secs_f64());
    assert!(took < IN_FORCE, "{took:?}");
    delete(&scene.api::<ClientIdentity>(), "lost").await;
    scene.until("the certificate of a deleted identity is refused", Some("lost"), 495).await;
    assert_eq!(scene.ask(Some("good"), &[]).status, 200, "nobody else is refused");

    // Revoked, then reissued: the new one is good, the old one stays dead.
    delete(&scene.api::<CertificateRevocation>(), "stolen").await;
    wait_for(&scene.api::<ClientIdentity>(), "stolen", READY, "True", "Issued").await;
    assert_eq!(scene.ask(Some("stolen"), &[]).status, 495, "the revoked certificate");
    scene.fetch("stolen").await;
    scene.until("the reissued certificate is let in", Some("stolen"), 200).await;

    // Optional: without a certificate one gets in, and forging gains nothing.
    patch(&trusts, "clients", json!({"spec": {"mode": "Optional"}})).await;
    scene.until("no certificate is let in when it is optional", None, 200).await;
    let answer = scene.ask(None, &forged);
    for name in ["X-SSL-Client-CN", "X-SSL-Client-Cert"] {
        let values = told(&answer, name);
        assert!(values.iter().all(|value| value.is_empty()), "{name}: {values:?}");
    }
    assert_eq!(scene.ask(Some("good"), &[]).status, 200);
    assert_eq!(scene.ask(Some("lost"), &[]).status, 495, "a revoked one is refused all the same");
    assert_eq!(scene.ask(Some("stranger"), &[]).status, 495, "and so is one of another CA");

    // Deleted: the Ingress is what it was, and the shop open again, even to the revoked.
    delete(&trusts, "clients").await;
    eventually("the Ingress is restored", || async {
        let now = scene.ingress_now().await;
        let annotations: &BTreeMap<String, String> = now.annotations();
        (annotations == before.annotations() && now.spec == before.spec).then_some(())
    })
    .await;
    scene.until("the shop is open again", None, 200).await;
    scene.until("and asks for no certificate", Some("lost"), 200).await;
}

#[tokio::test]
async fn haproxy_ingress_follows_a_rotation_of_the_ca() {
    let scene = Scene::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.trust().await;
    scene.until("no certificate is refused", None, 496).await;
    scene.until("a valid certificate is let in", Some("good"), 200).await;
    fs::rename(scene.path("good"), scene.path("old")).expect("renamed");

    let now = jiff::Timestamp::now().to_string();
    let rotate = json!({"metadata": {"annotations": {"countersign.dev/rotate-requested-at": now}}});
    patch(&scene.authorities(), "staff", rotate).await;
    let secret = eventually("another CA issues", || async {
        assert_eq!(scene.ask(Some("old"), &[]).status, 200, "no request fails on the way");
        let secret = scene.api::<Secret>().get("good-tls").await.expect("a Secret");
        (secret.annotations()["countersign.dev/generation"] == "2").then_some(secret)
    })
    .await;
    assert_eq!(certificates(data(&secret, "ca.crt")).expect("a bundle").len(), 2);
    scene.fetch("good").await;
    scene.until("the old certificate is good in the overlap", Some("old"), 200).await;
    scene.until("the new one, too", Some("good"), 200).await;

    let compromised = json!({"spec": {"compromisedGenerations": [1]}});
    patch(&scene.authorities(), "staff", compromised).await;
    scene.until("the certificate of the CA before is refused", Some("old"), 495).await;
    scene.until("the new one is let in", Some("good"), 200).await;
}

#[tokio::test]
async fn haproxy_ingress_stays_closed_and_what_opens_it_is_told() {
    let mut scene = Scene::new().await;
    scene.authority("staff").await;
    scene.identity("good", "staff").await;
    scene.route("open", OPEN_HOST, json!({})).await;
    let trusts = scene.api::<ClientTrust>();
    let ingresses = scene.api::<Ingress>();
    assert_eq!(scene.plain(HOST), 302, "the plain port redirects");
    scene.trust().await;
    scene.until("no certificate is refused", None, 496).await;
    scene.until("a valid certificate is let in", Some("good"), 200).await;

    // Neither the plain port nor a connection of another name leads past.
    assert_eq!(scene.plain(HOST), 302);
    let ca = scene.path("server.pem");
    assert_eq!(curl_at(&scene.ingress.https, OPEN_HOST, &ca, None, &[]).status, 200);
    let fronted = format!("Host: {HOST}");
    assert_eq!(curl_at(&scene.ingress.https, OPEN_HOST, &ca, None, &[&fronted]).status, 421);

    // The trust's Secret is deleted: put back, and while nobody does that the shop is closed.
    let secrets = scene.api::<Secret>();
    let uid = secrets.get("countersign-clients").await.expect("it").metadata.uid;
    delete(&secrets, "countersign-clients").await;
    eventually("the Secret is put back", || async {
        assert_eq!(scene.ask(None, &[]).status, 496, "meanwhile");
        let now = secrets.get_opt("countersign-clients").await.expect("an answer")?;
        (now.metadata.uid != uid).then_some(())
    })
    .await;
    scene.until("a valid certificate is let in", Some("good"), 200).await;
    scene.operator.take().expect("an operator").kill();
    delete(&secrets, "countersign-clients").await;
    scene.until("without the Secret everybody is refused", Some("good"), 495).await;
    assert_eq!(scene.ask(None, &[]).status, 496);
    scene.operator = Some(Operator::start(&scene.plane));
    scene.until("a valid certificate is let in again", Some("good"), 200).await;

    // A stranger takes an annotation away, which is restored, and then sets it, which is told.
    let verify = |value: Value| {
        let key = "haproxy-ingress.github.io/auth-tls-verify-client";
        json!({"metadata": {"annotations": {key: value}}})
    };
    patch(&ingresses, "shop", verify(Value::Null)).await;
    eventually("the annotation is restored", || async {
        let now = scene.ingress_now().await;
        now.annotations().get("haproxy-ingress.github.io/auth-tls-verify-client").cloned()
    })
    .await;
    patch(&ingresses, "shop", verify(json!("off"))).await;
    scene.not_ready("Conflict").await;
    scene.until("the stranger has opened the shop", None, 200).await;
    patch(&ingresses, "shop", verify(Value::Null)).await;
    scene.ready().await;
    scene.until("it is closed again", None, 496).await;

    // Another Ingress of the host that says otherwise.
    scene.route("other", HOST, verify(json!("off"))["metadata"]["annotations"].clone()).await;
    scene.not_ready("Conflict").await;
    assert_eq!(scene.ask(None, &[]).status, 496, "the older Ingress counts");
    delete(&ingresses, "other").await;
    scene.ready().await;

    // Without TLS it is open on the plain port.
    let tls = scene.ingress_now().await.spec.expect("a spec").tls;
    patch(&ingresses, "shop", json!({"spec": {"tls": null}})).await;
    scene.not_ready("PlainHTTP").await;
    eventually("the plain port is open", || async { (scene.plain(HOST) == 200).then_some(()) })
        .await;
    patch(&ingresses, "shop", json!({"spec": {"tls": tls}})).await;
    scene.ready().await;
    eventually("the plain port redirects again", || async {
        (scene.plain(HOST) == 302).then_some(())
    })
    .await;
    scene.until("no certificate is refused", None, 496).await;
    delete(&trusts, "clients").await;
    scene.until("the shop is open again", None, 200).await;
}
