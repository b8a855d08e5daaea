//! The gate behind real data planes: each verifies the handshake, asks the gate by the certificate, and tells the
//! backend what the gate says of the client. Nobody gets in, or passes for somebody else, by a header.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::api::condition::{PUBLISHED, READY};
use countersign::api::{
    CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust, annotation,
};
use countersign::pki::inspect::certificates;
use countersign::plan::gate::POLICIES;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Api, Client};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;

use support::control_plane::{ControlPlane, Process, fixture, free_ports};
use support::data_plane::escape;
use support::operator::{NAMESPACE, Operator, control_plane};
use support::server::{Answer, Server, curl};
use support::servers::{
    envoy_address, envoy_config, envoy_typed, wait_until, write_files, write_server_certificate,
};
use support::{create, eventually, namespace, patch, program, run, wait_for};

/// An authority with clients, a server that answers for it, and a backend that tells what it was sent.
struct Scene {
    client: Client,
    namespace: String,
    files: TempDir,
    server: Server,
    backend: u16,
    // Ended in this order.
    operator: Option<Operator>,
    plane: ControlPlane,
}

/// What a data plane lets in without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Required,
    Optional,
}

impl Scene {
    /// `good` and `stolen` are clients of the authority `clients`, which the gate is asked about, and `stranger` is
    /// one of another, which the data planes trust too.
    async fn new() -> Self {
        Self::start(&[], &[]).await
    }

    /// The same, with further arguments of the server and of the controller.
    async fn start(of_server: &[String], of_controller: &[String]) -> Self {
        let (plane, client) = control_plane().await;
        grant(&client).await;
        let kubeconfig = plane.kubeconfig("server").display().to_string();
        let environment =
            [("KUBECONFIG", kubeconfig), ("SECOND_FACTOR_NETWORKS", "127.0.0.0/8".to_owned())];
        let server = Server::start_with(&plane, &environment, of_server);
        let gate = format!("--gate-url=http://127.0.0.1:{}", server.gate);
        let mut arguments = vec![&*gate];
        arguments.extend(of_controller.iter().map(String::as_str));
        let operator = Operator::start_as(&plane, "controller", &arguments);
        let namespace = namespace(&client, "gate").await;
        let files = tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder");
        write_server_certificate(files.path());
        let scene = Self {
            client,
            namespace,
            files,
            server,
            backend: backend(),
            operator: Some(operator),
            plane,
        };
        let authorities: Api<ClientAuthority> = Api::all(scene.client.clone());
        let mut bundle = Vec::new();
        for (authority, clients) in
            [("clients", &["good", "stolen"][..]), ("others", &["stranger"])]
        {
            let yaml = format!(
                "{{metadata: {{name: {authority}}}, spec: {{selfSigned: {{commonName: {authority}}}}}}}"
            );
            create(&authorities, &yaml).await;
            wait_for(&authorities, authority, READY, "True", "Ready").await;
            for name in clients {
                bundle.extend(scene.identity(name, authority).await);
            }
        }
        fs::write(scene.path("ca.crt"), bundle).expect("written");
        scene.server.until_ready().await;
        scene
    }

    /// Has a certificate issued, and puts it where curl finds it; the CA's.
    async fn identity(&self, name: &str, authority: &str) -> Vec<u8> {
        let identities: Api<ClientIdentity> = self.api();
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: {authority}}}, commonName: {name}, \
             uris: [\"spiffe://example.com/{name}\"], secretName: {name}-tls}}}}"
        );
        create(&identities, &yaml).await;
        wait_for(&identities, name, READY, "True", "Issued").await;
        let secret = self.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret");
        fs::create_dir_all(self.path(name)).expect("a folder");
        write_files(&secret, &["tls.crt", "tls.key", "ca.crt"], &self.path(name));
        fs::read(self.path(name).join("ca.crt")).expect("a CA")
    }

    async fn revoke(&self, name: &str) {
        let api: Api<CertificateRevocation> = self.api();
        let yaml =
            format!("{{metadata: {{name: {name}}}, spec: {{identityRef: {{name: {name}}}}}}}");
        create(&api, &yaml).await;
        wait_for(&api, name, PUBLISHED, "True", "Published").await;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn pem(&self, name: &str) -> String {
        fs::read_to_string(self.path(name).join("tls.crt")).expect("a certificate")
    }

    /// A client's certificate as RFC 9440 has it.
    fn client_cert(&self, name: &str) -> String {
        let chain = certificates(self.pem(name).as_bytes()).expect("a chain");
        format!(":{}:", STANDARD.encode(&chain[0]))
    }

    /// Asks a data plane as a client, or as nobody, with further headers.
    fn ask(&self, plane: &DataPlane, client: Option<&str>, headers: &[String]) -> Told {
        let DataPlane { host, port, .. } = plane;
        let url = format!("https://{host}:{port}/shop?x=1&authority=others");
        let to = format!("{host}:{port}:127.0.0.1");
        let mut arguments = vec!["--insecure".to_owned(), "--resolve".to_owned(), to];
        if let Some(name) = client {
            let file = |file: &str| self.path(name).join(file).display().to_string();
            arguments.extend(["--cert".into(), file("tls.crt"), "--key".into(), file("tls.key")]);
        }
        for header in headers {
            arguments.extend(["--header".to_owned(), header.clone()]);
        }
        arguments.push(url);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Told::of(curl(&arguments))
    }

    /// The same story for every data plane: who gets in, and what the backend is told. `own` are the headers by
    /// which the data plane tells the gate and its backends of the client.
    fn story(&self, required: &DataPlane, optional: &DataPlane, own: &[&str]) {
        let good = self.client_cert("good");
        for plane in [required, optional] {
            let told = self.ask(plane, Some("good"), &[]);
            assert_eq!((told.status, told.header("client-cert")), (200, vec![&*good]), "{told:?}");
            assert_eq!(self.ask(plane, Some("stranger"), &[]).status, plane.refusal);
        }
        assert_eq!(self.ask(required, None, &[]).status, required.refusal);
        let told = self.ask(optional, None, &[]);
        assert_eq!((told.status, told.header("client-cert").len()), (200, 0), "{told:?}");

        // Headers from outside, without a certificate and with one's own.
        let pem = escape(&self.pem("good"));
        let der = good.trim_matches(':').to_owned();
        let xfcc = format!("Hash=00;Cert=\"{pem}\"");
        let mut forged = ["Client-Cert", "Client_Cert", "Client-Cert-Chain"]
            .map(|name| format!("{name}: {good}"))
            .to_vec();
        for name in own {
            for value in [&*pem, &*der, &*xfcc, "SUCCESS"] {
                forged.push(format!("{name}: {value}"));
            }
        }
        let forged_all = forged.clone();
        for headers in forged.iter().map(std::slice::from_ref).chain([&*forged_all]) {
            for client in [None, Some("stranger")] {
                let told = self.ask(required, client, headers);
                assert_eq!(told.status, required.refusal, "{headers:?}: {told:?}");
            }
            let told = self.ask(optional, None, headers);
            assert_eq!(told.status, 200, "{headers:?}");
            assert!(!told.tells(&der) && !told.tells(&pem), "{headers:?}: {told:?}");
            let told = self.ask(required, Some("stolen"), headers);
            let stolen = self.client_cert("stolen");
            assert_eq!((told.status, told.header("client-cert")), (200, vec![&*stolen]));
            assert!(!told.tells(&der) && !told.tells(&pem), "{headers:?}: {told:?}");
        }
    }

    /// Asks until the answer has this status.
    async fn until(
        &self,
        plane: &DataPlane,
        client: Option<&str>,
        headers: &[String],
        status: u16,
    ) -> Told {
        let what = format!("{}: {client:?} gets {status}", plane.host);
        eventually(&what, || async {
            let told = self.ask(plane, client, headers);
            (told.status == status).then_some(told)
        })
        .await
    }

    /// After the revocation of `stolen`.
    async fn refused(&self, plane: &DataPlane) {
        self.until(plane, Some("stolen"), &[], 403).await;
        assert_eq!(self.ask(plane, Some("good"), &[]).status, 200);
    }
}

/// Gives the server the rights that the chart gives it, and no others.
async fn grant(client: &Client) {
    let roles: Api<Role> = Api::namespaced(client.clone(), NAMESPACE);
    let rules = "[{apiGroups: [\"\"], resources: [configmaps], verbs: [get, list, watch]}, \
                 {apiGroups: [\"\"], resources: [secrets], resourceNames: [countersign-gate-policies], verbs: [get, list, watch]}]";
    create(&roles, &format!("{{metadata: {{name: server}}, rules: {rules}}}")).await;
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), NAMESPACE);
    let binding = "{metadata: {name: server}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: server}, \
                   subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: server}]}";
    create(&bindings, binding).await;
}

/// What a client was told, and what its backend was told of it.
#[derive(Debug)]
struct Told {
    status: u16,
    /// Whether it was asked for a password.
    asked: String,
    text: String,
}

impl Told {
    fn of(answer: Answer) -> Self {
        let asked = answer.header("www-authenticate").to_owned();
        Self {
            status: answer.status,
            asked,
            text: String::from_utf8_lossy(&answer.body).into_owned(),
        }
    }

    /// The values of a header that the backend was sent.
    fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.text.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    fn tells(&self, what: &str) -> bool {
        self.text.contains(what)
    }
}

/// A data plane as a process.
struct DataPlane {
    host: String,
    port: u16,
    /// What a client is told that is not let in: 403 by the gate, or 0 where the handshake fails.
    refusal: u16,
    _process: Rc<Process>,
}

impl DataPlane {
    fn start(mut command: Command, port: u16, log: &Path) -> Self {
        let host = "127.0.0.1".to_owned();
        let log = fs::File::create(log).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let process = Rc::new(Process(command.spawn().expect("it starts")));
        wait_until("the data plane listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { host, port, refusal: 403, _process: process }
    }

    /// Another host of the same data plane, which is programmed for one and asks for certificates by itself.
    fn programmed(&self, host: &str) -> Self {
        let process = self._process.clone();
        Self { host: host.to_owned(), port: self.port, refusal: 0, _process: process }
    }
}

/// A backend that answers with the headers that it is sent.
fn backend() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || tell(stream));
        }
    });
    port
}

fn tell(stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut head = String::new();
    while reader.read_line(&mut head).ok()? > 2 {}
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{head}",
        head.len()
    );
    (&stream).write_all(answer.as_bytes()).ok()
}

/// As docs/gate.md has it.
fn nginx(scene: &Scene, mode: Mode, trust: Option<&str>) -> DataPlane {
    let [port] = free_ports();
    let folder = scene.path(&format!("nginx-{mode:?}-{}", trust.is_some()));
    let trust = trust.map(|name| format!("trust={}/{name}&", scene.namespace)).unwrap_or_default();
    fs::create_dir_all(&folder).expect("a folder");
    let (path, files) = (folder.display(), scene.files.path().display());
    let (gate, backend) = (scene.server.gate, scene.backend);
    let hidden = if trust.is_empty() { "" } else { "proxy_set_header Authorization \"\";" };
    let config = format!(
        "daemon off; master_process off; pid {path}/pid; error_log {path}/log info;\n\
         events {{}}\n\
         http {{\n\
         access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
         fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n\
         server {{\n\
         listen 127.0.0.1:{port} ssl;\n\
         ssl_certificate {files}/server.pem; ssl_certificate_key {files}/server.pem;\n\
         ssl_client_certificate {files}/ca.crt;\n\
         ssl_verify_client optional;\n\
         location / {{\n\
         auth_request /countersign;\n\
         auth_request_set $client_cert $upstream_http_client_cert;\n\
         proxy_set_header Client-Cert $client_cert;\n\
         proxy_set_header Client-Cert-Chain \"\";\n\
         proxy_set_header ssl-client-cert \"\";\n\
         proxy_set_header ssl-client-verify \"\";\n\
         {hidden}\n\
         proxy_pass http://127.0.0.1:{backend};\n\
         }}\n\
         location = /countersign {{\n\
         internal;\n\
         proxy_pass http://127.0.0.1:{gate}/gate/nginx?{trust}mode={mode:?}&authority=clients;\n\
         proxy_pass_request_body off;\n\
         proxy_set_header Content-Length \"\";\n\
         proxy_set_header ssl-client-cert $ssl_client_escaped_cert;\n\
         proxy_set_header ssl-client-verify $ssl_client_verify;\n\
         }}\n\
         }}\n}}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config).expect("written");
    let mut command = Command::new(program("nginx"));
    command.arg("-c").arg(file).arg("-e").arg(folder.join("log"));
    DataPlane::start(command, port, &folder.join("out"))
}

fn envoy_filter(name: &str, kind: &str, config: Value) -> Value {
    json!({ "name": name, "typed_config": envoy_typed(&format!("filters.http.{kind}"), config) })
}

/// As docs/gate.md has it.
fn envoy(scene: &Scene, mode: Mode, trust: Option<&str>) -> DataPlane {
    let name = format!("envoy-{mode:?}-{}", trust.is_some());
    let trust = trust.map(|name| format!("trust/{}/{name}/", scene.namespace)).unwrap_or_default();
    let hidden = if trust.is_empty() { json!([]) } else { json!([{ "remove": "authorization" }]) };
    let mutation = "header_mutation.v3.HeaderMutation";
    let exact = |name: &str| json!({ "patterns": [{ "exact": name }] });
    let filters = json!([
        envoy_filter(
            "strip",
            mutation,
            json!({ "mutations": {
            "request_mutations": [{ "remove": "client-cert" }, { "remove": "client-cert-chain" }],
        } })
        ),
        envoy_filter(
            "gate",
            "ext_authz.v3.ExtAuthz",
            json!({
                "http_service": {
                    "server_uri": { "uri": "http://gate", "cluster": "gate", "timeout": "1s" },
                    "path_prefix": format!("/gate/envoy/{trust}{mode:?}/clients"),
                    "authorization_response": { "allowed_upstream_headers": exact("client-cert") },
                },
                "allowed_headers": exact("x-forwarded-client-cert"),
                "failure_mode_allow": false,
            })
        ),
        envoy_filter("hide", mutation, json!({ "mutations": { "request_mutations": hidden } })),
        envoy_filter("router", "router.v3.Router", json!({})),
    ]);
    run_envoy(scene, &name, filters, json!({}), json!({}))
}

/// As docs/gate.md has it, over gRPC.
fn envoy_grpc(scene: &Scene, mode: Mode, trust: Option<&str>) -> DataPlane {
    let name = format!("envoy-grpc-{mode:?}-{}", trust.is_some());
    let mut extensions = json!({ "mode": format!("{mode:?}"), "authorities": "clients" });
    if let Some(name) = trust {
        extensions["trust"] = format!("{}/{name}", scene.namespace).into();
    }
    let filters = json!([
        envoy_filter(
            "gate",
            "ext_authz.v3.ExtAuthz",
            json!({
                "grpc_service": { "envoy_grpc": { "cluster_name": "gate" }, "timeout": "1s" },
                "transport_api_version": "V3",
                "include_peer_certificate": true,
                "failure_mode_allow": false,
            })
        ),
        envoy_filter("router", "router.v3.Router", json!({})),
    ]);
    let route = json!({ "gate": envoy_typed("filters.http.ext_authz.v3.ExtAuthzPerRoute", json!({
        "check_settings": { "context_extensions": extensions },
    })) });
    let http2 = envoy_typed(
        "upstreams.http.v3.HttpProtocolOptions",
        json!({
            "explicit_http_config": { "http2_protocol_options": {} },
        }),
    );
    let options = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2 });
    run_envoy(scene, &name, filters, route, options)
}

/// Envoy with these filters, and what they are told of every route; and how it speaks to the gate.
fn run_envoy(scene: &Scene, name: &str, filters: Value, route: Value, gate: Value) -> DataPlane {
    let [port] = free_ports();
    let folder = scene.path(name);
    fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str| json!({ "filename": scene.path(name) });
    let cluster = |name: &str, port: u16, options: Value| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": options,
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": envoy_address(port) } }
            ] }] },
        })
    };
    let manager = json!({
        "stat_prefix": "http",
        "forward_client_cert_details": "SANITIZE_SET",
        "common_http_protocol_options": { "headers_with_underscores_action": "DROP_HEADER" },
        "set_current_client_cert_details": { "cert": true, "subject": true, "uri": true },
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"], "typed_per_filter_config": route,
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "backend" } }],
        }] },
        "http_filters": filters,
    });
    let tls = json!({
        "common_tls_context": {
            "tls_certificates": [{
                "certificate_chain": file("server.pem"), "private_key": file("server.pem"),
            }],
            "validation_context": { "trusted_ca": file("ca.crt") },
        },
    });
    let mut config = envoy_config(port, tls, manager);
    config["static_resources"]["clusters"] = json!([
        cluster("gate", scene.server.gate, gate),
        cluster("backend", scene.backend, json!({})),
    ]);
    let path = folder.join("envoy.json");
    fs::write(&path, config.to_string()).expect("written");
    let mut command = Command::new(program("envoy"));
    command.args(["--disable-hot-restart", "--concurrency", "1", "--config-path"]).arg(path);
    DataPlane::start(command, port, &folder.join("log"))
}

/// Traefik over the cluster's objects.
fn traefik(scene: &Scene) -> DataPlane {
    let [port, other] = free_ports();
    let mut command = Command::new(program("traefik"));
    command
        .arg(format!("--entrypoints.websecure.address=127.0.0.1:{port}"))
        .arg(format!("--entrypoints.traefik.address=127.0.0.1:{other}"))
        .arg("--entrypoints.websecure.http.aliasheadersstrategy=delete")
        .args(["--global.checknewversion=false", "--global.sendanonymoususage=false"])
        .args(["--providers.kubernetescrd=true", "--providers.kubernetescrd.safenaming=false"])
        .arg("--providers.kubernetescrd.allowexternalnameservices=true")
        .env("KUBECONFIG", scene.plane.kubeconfig("admin"));
    DataPlane::start(command, port, &scene.path("traefik.log"))
}

/// A route to the backend for a host, and a trust that guards it.
fn guarded(scene: &Scene, name: &str, trust: &str) -> String {
    let backend = scene.backend;
    let namespace = &scene.namespace;
    format!(
        "apiVersion: traefik.io/v1alpha1\n\
         kind: IngressRoute\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n\
         \x20 entryPoints: [websecure]\n\
         \x20 tls: {{secretName: server}}\n\
         \x20 routes: [{{kind: Rule, match: 'Host(`{name}.example.com`)', services: [{{name: backend, port: {backend}}}]}}]\n\
         ---\n\
         apiVersion: countersign.dev/v1alpha1\n\
         kind: ClientTrust\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n\
         \x20 authorities: [{{name: clients}}]\n\
         \x20 targetRefs: [{{group: traefik.io, kind: IngressRoute, name: {name}}}]\n\
         \x20 {trust}\n\
         ---\n"
    )
}

impl Scene {
    fn kubectl(&self, arguments: &[&str], input: &str) {
        let tools = std::env::var_os("COUNTERSIGN_TOOLS").expect("a folder with kubectl");
        let kubectl = Path::new(&tools).join("kubectl").display().to_string();
        let kubeconfig = self.plane.kubeconfig("admin").display().to_string();
        run(&kubectl, &[&["--kubeconfig", &kubeconfig], arguments].concat(), input);
    }

    /// Traefik's kinds and what its routes name; the backend's Service.
    fn prepare_traefik(&self) -> String {
        let crds = std::env::var("TRAEFIK_CRDS").expect(
            "TRAEFIK_CRDS names no file; run `make test`, or TRAEFIK_CRDS=$(e2e/traefik/crds) cargo test --test gate",
        );
        self.kubectl(&["apply", "--server-side", "-f", &crds], "");
        self.kubectl(
            &["wait", "--for", "condition=Established", "--timeout", "60s", "-f", &crds],
            "",
        );
        let (namespace, pem) = (&*self.namespace, self.path("server.pem").display().to_string());
        let secret = ["create", "secret", "tls", "server", "--cert", &pem, "--key", &pem];
        self.kubectl(&[&["-n", namespace], &secret[..]].concat(), "");
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: backend, namespace: {namespace}}}\n\
             spec: {{type: ExternalName, externalName: localhost, ports: [{{port: {}}}]}}\n---\n",
            self.backend
        )
    }
}

#[tokio::test]
async fn traefik_lets_in_whom_the_gate_lets_in_and_tells_the_backend_as_the_trust_says() {
    let scene = Scene::new().await;
    let service = scene.prepare_traefik();
    let trusts = [
        ("required", "forwardIdentity: ClientCert"),
        ("optional", "mode: Optional\n  forwardIdentity: ClientCert"),
        ("native", "mode: Required"),
    ];
    let trusts = trusts.map(|(name, trust)| guarded(&scene, name, trust));
    scene.kubectl(&["apply", "-f", "-"], &(service + &trusts.concat()));
    for name in ["required", "optional", "native"] {
        wait_for(&scene.api::<ClientTrust>(), name, READY, "True", "Programmed").await;
    }
    let traefik = traefik(&scene);
    let [required, optional, native] = ["required", "optional", "native"]
        .map(|name| traefik.programmed(&format!("{name}.example.com")));
    for plane in [&required, &optional, &native] {
        scene.until(plane, Some("good"), &[], 200).await;
    }
    let own = ["X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info"];
    scene.story(&required, &optional, &own);

    // Unless it is asked for there is no Client-Cert, neither the gate's nor a forged one.
    let good = scene.client_cert("good");
    for header in ["Client-Cert", "Client-Cert-Chain"] {
        let forged = [format!("{header}: {good}")];
        let told = scene.ask(&native, Some("good"), &forged);
        assert_eq!((told.status, told.header(header).len()), (200, 0), "{told:?}");
        let forwarded = told.header("x-forwarded-tls-client-cert");
        assert_eq!(forwarded, [good.trim_matches(':')], "{told:?}");
    }
    scene.revoke("stolen").await;
    for plane in [&required, &optional, &native] {
        scene.refused(plane).await;
    }
}

#[tokio::test]
async fn nginx_and_envoy_let_in_whom_the_gate_lets_in() {
    let mut scene = Scene::new().await;
    let [required, optional] =
        [Mode::Required, Mode::Optional].map(|mode| nginx(&scene, mode, None));
    scene.story(&required, &optional, &["ssl-client-cert", "ssl-client-verify"]);
    let mut planes = vec![required];
    for envoy in [envoy, envoy_grpc] {
        let [required, optional] =
            [Mode::Required, Mode::Optional].map(|mode| envoy(&scene, mode, None));
        scene.story(&required, &optional, &["x-forwarded-client-cert"]);
        planes.push(optional);
    }
    for plane in &planes {
        assert_eq!(scene.ask(plane, Some("stolen"), &[]).status, 200);
    }
    scene.revoke("stolen").await;
    for plane in &planes {
        scene.refused(plane).await;
    }
    // Without the gate nobody gets in.
    [scene.server.gate] = free_ports();
    for (plane, status) in [
        (nginx(&scene, Mode::Optional, None), 500),
        (envoy(&scene, Mode::Optional, None), 403),
        (envoy_grpc(&scene, Mode::Optional, None), 403),
    ] {
        for client in [Some("good"), None] {
            assert_eq!(scene.ask(&plane, client, &[]).status, status);
        }
    }
}

/// Lines as `htpasswd -nbBC 4` makes them: of "correct horse", and of "battery staple".
const ADA: &str = "ada:$2y$04$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi";
const ADA_CHANGED: &str = "ada:$2y$04$6X32v/fJ8cvwwAw1wRRaeu3YMkA5LwMIH51RlXI83IcIS2ZPJ4xhi";
const MD5: &str = "bob:$apr1$K7urAYhL$S0oFZQd53lymQtV/tixss1";

/// The header of a user with this password.
fn password(said: &str) -> String {
    format!("Authorization: Basic {}", STANDARD.encode(said))
}

impl Scene {
    /// Puts these lines into the Secret with the passwords.
    async fn passwords(&self, lines: &[&str]) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "users" },
            "stringData": { "auth": lines.join("\n") },
        });
        let namespace = ["-n", &self.namespace];
        self.kubectl(&[&namespace[..], &["apply", "-f", "-"]].concat(), &secret.to_string());
    }

    /// Certificate and password, at a route that requires both and at one where the certificate is optional.
    fn needs_both(&self, required: &DataPlane, optional: &DataPlane) {
        let (right, wrong) = ([password("ada:correct horse")], [password("ada:wrong")]);
        let twice = [right[0].clone(), right[0].clone()];
        for plane in [required, optional] {
            let told = self.ask(plane, Some("good"), &right);
            assert_eq!((told.status, told.header("authorization").len()), (200, 0), "{told:?}");
            for headers in [&[][..], &wrong, &[password("eve:correct horse")]] {
                let told = self.ask(plane, Some("good"), headers);
                assert_eq!(told.status, 401, "{headers:?}: {told:?}");
                assert!(told.asked.starts_with("Basic realm=\""), "{told:?}");
            }
            // nginx takes no second one at all.
            let told = self.ask(plane, Some("good"), &twice);
            assert!([400, 401].contains(&told.status), "{told:?}");
            for headers in [&[][..], &right] {
                let told = self.ask(plane, Some("stranger"), headers);
                assert_eq!((told.status, &*told.asked), (plane.refusal, ""), "{told:?}");
            }
        }
        assert_eq!(self.ask(required, None, &right).status, required.refusal);
        // Leaving the certificate out does not get around the password.
        let told = self.ask(optional, None, &[]);
        assert_eq!((told.status, told.asked.is_empty()), (401, false), "{told:?}");
        let told = self.ask(optional, None, &right);
        assert_eq!((told.status, told.header("client-cert").len()), (200, 0), "{told:?}");
        assert_eq!(told.header("authorization").len(), 0, "{told:?}");
    }
}

/// A service that lets pass who says the word, and tells what it was asked; over TLS, if it is told how.
fn authorizer(tls: Option<ServerConfig>) -> (u16, std::sync::mpsc::Receiver<String>) {
    let tls = tls.map(Arc::new);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (told, heads) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let head = match &tls {
                None => authorize(stream),
                Some(tls) => {
                    let server = ServerConnection::new(tls.clone()).expect("a configuration");
                    authorize(StreamOwned::new(server, stream))
                }
            };
            let _ = told.send(head);
        }
    });
    (port, heads)
}

/// Answers one request, and tells its head, which is empty when there was none.
fn authorize(stream: impl Read + Write) -> String {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while reader.read_line(&mut head).is_ok_and(|read| read > 2) {}
    let status = if head.contains("Bearer sesame") { "204 No Content" } else { "403 Forbidden" };
    let _ = write!(reader.get_mut(), "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
    head
}

/// A CA, PEM, and a server on this host by its certificate.
fn tls_server() -> (String, ServerConfig) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = || KeyPair::generate().expect("a key");
    let ca = CertifiedIssuer::self_signed(params, key()).expect("a CA");
    let (params, key) = (CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name"), key());
    let certificate = params.signed_by(&key, &ca).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a key that matches");
    (ca.pem(), config)
}

#[tokio::test]
async fn a_second_factor_is_asked_for_beside_the_certificate_and_never_instead_of_it() {
    let scene = Scene::new().await;
    let service = scene.prepare_traefik();
    let (port, asked) = authorizer(None);
    let ((ca, server), (other_ca, _)) = (tls_server(), tls_server());
    let (tls_port, asked_over_tls) = authorizer(Some(server));
    let basic = "secondFactor: {basic: {secretName: users}}";
    let trusts = [
        guarded(&scene, "required", basic),
        guarded(&scene, "optional", &format!("mode: Optional\n  {basic}")),
        guarded(
            &scene,
            "service",
            &format!("secondFactor: {{url: {{endpoint: 'http://127.0.0.1:{port}/check'}}}}"),
        ),
        guarded(
            &scene,
            "over-tls",
            &format!(
                "secondFactor: {{url: {{endpoint: 'https://127.0.0.1:{tls_port}/check', caBundle: {other_ca:?}}}}}"
            ),
        ),
    ];
    // Before there are passwords nobody gets in.
    scene.kubectl(&["apply", "-f", "-"], &(service + &trusts.concat()));
    let api = scene.api::<ClientTrust>();
    let invalid = async |what: &str| {
        let trust = wait_for(&api, "required", READY, "False", "SecondFactorInvalid").await;
        let told = trust.status.expect("a status").conditions[0].message.clone();
        assert!(told.contains("Secret \"users\"") && told.contains(what), "{told}");
        assert!(!told.contains("K7ur"), "{told}");
    };
    invalid("does not exist").await;
    wait_for(&api, "service", READY, "True", "Programmed").await;
    let traefik = traefik(&scene);
    let [required, optional, service, over_tls] = ["required", "optional", "service", "over-tls"]
        .map(|name| traefik.programmed(&format!("{name}.example.com")));
    let right = [password("ada:correct horse")];
    let told = scene.until(&required, Some("good"), &right, 403).await;
    assert!(told.tells("policy of this route is not known"), "{told:?}");
    scene.passwords(&["# staff", ADA]).await;
    for name in ["required", "optional"] {
        wait_for(&api, name, READY, "True", "Programmed").await;
    }
    for plane in [&required, &optional] {
        scene.until(plane, Some("good"), &right, 200).await;
    }
    scene.needs_both(&required, &optional);
    let forged = [
        right[0].clone(),
        format!("X-Forwarded-Tls-Client-Cert: {}", scene.client_cert("good").trim_matches(':')),
    ];
    let told = scene.ask(&optional, None, &forged);
    assert!(told.status == 200 && !told.tells(forged[1].as_str()), "{told:?}");

    // nginx and Envoy ask by hand.
    let trusts = ["required", "optional"].map(Some);
    let by_hand = |of: fn(&Scene, Mode, Option<&str>) -> DataPlane| {
        [of(&scene, Mode::Required, trusts[0]), of(&scene, Mode::Optional, trusts[1])]
    };
    for [required, optional] in [by_hand(nginx), by_hand(envoy), by_hand(envoy_grpc)] {
        scene.needs_both(&required, &optional);
    }

    // A service whose certificate is of another CA, or by a bundle that is none, is not asked.
    let word = ["Authorization: Bearer sesame".to_owned()];
    let bundle = |pem: &str| json!({"spec": {"secondFactor": {"url": {"caBundle": pem}}}});
    wait_for(&api, "over-tls", READY, "True", "Programmed").await;
    let refused = async |why: &str| {
        eventually(&format!("over TLS: {why}"), || async {
            let told = scene.ask(&over_tls, Some("good"), &word);
            (told.status == 403 && told.tells(why)).then_some(())
        })
        .await;
    };
    refused("gave no answer").await;
    let log = fs::read_to_string(scene.plane.folder().join("server.log")).expect("a log");
    assert!(log.contains("invalid peer certificate"), "{log}");
    patch(&api, "over-tls", bundle("-----BEGIN CERTIFICATE-----")).await;
    let trust = wait_for(&api, "over-tls", READY, "False", "SecondFactorInvalid").await;
    let told = trust.status.expect("a status").conditions[0].message.clone();
    assert!(told.contains("spec.secondFactor.url.caBundle: it must hold"), "{told}");
    refused("policy of this route is not known").await;
    assert!(asked_over_tls.try_iter().all(|head| head.is_empty()));
    patch(&api, "over-tls", bundle(&ca)).await;

    // A service decides; its word is needed each time.
    for (plane, asked) in [(&service, asked), (&over_tls, asked_over_tls)] {
        scene.until(plane, Some("good"), &word, 200).await;
        // Those that gave up in the handshake asked nothing.
        let head = asked.iter().find(|head| !head.is_empty()).expect("it was asked");
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("get /check "), "{head}");
        let certificate = format!("client-cert: {}", scene.client_cert("good"));
        assert!(head.contains(&certificate.to_ascii_lowercase()), "{head}");
        for headers in [&[][..], &right] {
            assert_eq!(scene.ask(plane, Some("good"), headers).status, 403);
        }
        assert_eq!(scene.ask(plane, None, &word).status, 0);
    }

    // Other passwords; a file that can't be used; none.
    scene.passwords(&[ADA_CHANGED]).await;
    let changed = [password("ada:battery staple")];
    scene.until(&required, Some("good"), &changed, 200).await;
    assert_eq!(scene.ask(&required, Some("good"), &right).status, 401);
    scene.passwords(&[ADA, MD5]).await;
    invalid("line 2: not a hash of bcrypt").await;
    scene.until(&required, Some("good"), &right, 403).await;
    scene.passwords(&[ADA]).await;
    scene.until(&required, Some("good"), &right, 200).await;
    scene.kubectl(&["-n", &scene.namespace, "delete", "secret", "users"], "");
    invalid("does not exist").await;
    scene.until(&required, Some("good"), &right, 403).await;
    scene.passwords(&[ADA]).await;
    scene.until(&required, Some("good"), &right, 200).await;

    // The right password does not help a revoked certificate.
    assert_eq!(scene.ask(&required, Some("stolen"), &right).status, 200);
    scene.revoke("stolen").await;
    for plane in [&required, &optional] {
        let told = scene.until(plane, Some("stolen"), &right, 403).await;
        assert!(told.asked.is_empty() && told.tells("revoked"), "{told:?}");
    }
    assert_eq!(scene.ask(&required, Some("stolen"), &[]).status, 403);

    // The example's passwords can be used, though its route is not there.
    let quickstart = "countersign-quickstart";
    scene.kubectl(&["create", "namespace", quickstart], "");
    scene.kubectl(&["apply", "-f", "-"], &fixture("examples/15-second-factor.yaml"));
    eventually("the example's policy is there", || async {
        policies(&scene).await.contains(&format!("{quickstart}.shop")).then_some(())
    })
    .await;

    // Neither a password nor a hash is told to anybody.
    for log in ["server.log", "controller.log"] {
        let log = fs::read_to_string(scene.plane.folder().join(log)).expect("a log");
        for secret in
            ["correct horse", "battery", "4I3P1N9FF", "K7urAYhL", "sesame", &right[0][21..]]
        {
            assert!(!log.contains(secret), "{secret}");
        }
    }
    scene.kubectl(&["-n", &scene.namespace, "delete", "clienttrust", "required"], "");
    scene.until(&required, None, &[], 200).await;
}

/// The keys of the Secret that holds the gate's policies.
async fn policies(scene: &Scene) -> Vec<String> {
    let secrets: Api<Secret> = Api::namespaced(scene.client.clone(), NAMESPACE);
    let found = secrets.get_opt(POLICIES).await.expect("an answer");
    found.into_iter().flat_map(|secret| secret.data.unwrap_or_default().into_keys()).collect()
}

#[tokio::test]
async fn only_those_whom_the_trust_allows_get_in() {
    let mut scene = Scene::new().await;
    let service = scene.prepare_traefik();
    let trusts = [
        guarded(&scene, "exact", "allow: {uris: ['spiffe://example.com/good']}"),
        guarded(&scene, "wild", "mode: Optional\n  allow: {uris: ['spiffe://example.com/*']}"),
        guarded(&scene, "open", "mode: Required"),
    ];
    scene.kubectl(&["apply", "-f", "-"], &(service + &trusts.concat()));
    for name in ["exact", "wild", "open"] {
        wait_for(&scene.api::<ClientTrust>(), name, READY, "True", "Programmed").await;
    }
    let traefik = traefik(&scene);
    let [exact, wild, open] =
        ["exact", "wild", "open"].map(|name| traefik.programmed(&format!("{name}.example.com")));
    for plane in [&exact, &wild, &open] {
        scene.until(plane, Some("good"), &[], 200).await;
    }
    assert_eq!(
        policies(&scene).await,
        ["exact", "wild"].map(|t| format!("{}.{t}", scene.namespace))
    );
    let told = scene.ask(&exact, Some("stolen"), &[]);
    assert_eq!(told.status, 403);
    assert!(told.tells("not allowed here"), "{told:?}");
    assert_eq!(scene.ask(&exact, None, &[]).status, 0);
    let forged =
        [format!("X-Forwarded-Tls-Client-Cert: {}", scene.client_cert("good").trim_matches(':'))];
    assert_eq!(scene.ask(&exact, Some("stolen"), &forged).status, 403);
    for client in [Some("stolen"), None] {
        assert_eq!(scene.ask(&wild, client, &[]).status, 200);
    }

    // The list changes while the route stays as it is.
    let trust = |allow: Value| json!({ "spec": { "allow": { "uris": allow } } }).to_string();
    let patch = |name: &str, change: &str| {
        let arguments =
            ["-n", &scene.namespace, "patch", "clienttrust", name, "--type=merge", "-p"];
        scene.kubectl(&[&arguments[..], &[change]].concat(), "");
    };
    patch("wild", &trust(json!(["spiffe://example.com/stolen"])));
    scene.until(&wild, Some("good"), &[], 403).await;
    assert_eq!(scene.ask(&wild, Some("stolen"), &[]).status, 200);
    // It goes, and comes back.
    patch("wild", &json!({ "spec": { "allow": null } }).to_string());
    scene.until(&wild, Some("good"), &[], 200).await;
    eventually("its policy is gone", || async {
        (policies(&scene).await == [format!("{}.exact", scene.namespace)]).then_some(())
    })
    .await;
    patch("wild", &trust(json!(["spiffe://example.com/good"])));
    scene.until(&wild, Some("stolen"), &[], 403).await;
    scene.until(&wild, Some("good"), &[], 200).await;

    // Without the policies nobody gets in but where there is none; the controller puts them back.
    scene.operator.take().expect("it runs").kill();
    let home = ["-n", NAMESPACE];
    scene.kubectl(&[&home[..], &["delete", "secret", POLICIES]].concat(), "");
    for plane in [&exact, &wild] {
        let told = scene.until(plane, Some("good"), &[], 403).await;
        assert!(told.tells("policy of this route is not known"), "{told:?}");
    }
    assert_eq!(scene.ask(&open, Some("good"), &[]).status, 200);
    let gate = format!("--gate-url=http://127.0.0.1:{}", scene.server.gate);
    scene.operator = Some(Operator::start_as(&scene.plane, "controller", &[&gate]));
    for plane in [&exact, &wild] {
        scene.until(plane, Some("good"), &[], 200).await;
        assert_eq!(scene.ask(plane, Some("stolen"), &[]).status, 403);
    }
    scene.kubectl(&[&home[..], &["delete", "secret", POLICIES]].concat(), "");
    eventually("the policies are back", || async {
        (policies(&scene).await.len() == 2).then_some(())
    })
    .await;
    scene.until(&exact, Some("good"), &[], 200).await;

    // All policies stand in one Secret: one that does not fit is left out, and the others stay.
    let users: String = (0..9000).map(|at| format!("user-{at}:{}\n", &ADA[4..])).collect();
    let users = json!({ "metadata": { "name": "users" }, "stringData": { "auth": users } });
    create(&scene.api::<Secret>(), &users.to_string()).await;
    for (name, status, reason) in
        [("large", "True", "Programmed"), ("too-large", "False", "PolicyTooLarge")]
    {
        let trust = guarded(&scene, name, "secondFactor: {basic: {secretName: users}}");
        scene.kubectl(&["apply", "-f", "-"], &trust);
        wait_for(&scene.api::<ClientTrust>(), name, READY, status, reason).await;
    }
    let plane = traefik.programmed("too-large.example.com");
    let right = [password("user-1:correct horse")];
    let told = scene.until(&plane, Some("good"), &right, 403).await;
    assert!(told.tells("policy of this route is not known"), "{told:?}");
    let plane = traefik.programmed("large.example.com");
    scene.until(&plane, Some("good"), &right, 200).await;
    assert_eq!(scene.ask(&exact, Some("good"), &[]).status, 200);
    scene.kubectl(&["-n", &scene.namespace, "delete", "clienttrust", "large", "too-large"], "");

    scene.revoke("good").await;
    let told = scene.until(&exact, Some("good"), &[], 403).await;
    assert!(told.tells("revoked"), "{told:?}");
    // With the trust its policy goes.
    scene.kubectl(&["-n", &scene.namespace, "delete", "clienttrust", "exact"], "");
    scene.until(&exact, None, &[], 200).await;
    eventually("its policy is gone", || async {
        (policies(&scene).await == [format!("{}.wild", scene.namespace)]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn identities_get_in_as_long_as_the_trust_selects_them() {
    let scene = Scene::new().await;
    let service = scene.prepare_traefik();
    let selector = "selector: {matchLabels: {shop: 'yes'}}";
    let shops = "namespaceSelector: {matchLabels: {shops: 'yes'}}";
    let trusts = [
        guarded(&scene, "near", &format!("allow: {{identities: {{{selector}}}}}")),
        guarded(&scene, "any", &format!("allow: {{identities: {{{selector}, {shops}}}}}")),
    ];
    scene.kubectl(&["apply", "-f", "-"], &(service + &trusts.concat()));
    for name in ["near", "any"] {
        wait_for(&scene.api::<ClientTrust>(), name, READY, "True", "Programmed").await;
    }
    let traefik = traefik(&scene);
    let [near, any] =
        ["near", "any"].map(|name| traefik.programmed(&format!("{name}.example.com")));
    for plane in [&near, &any] {
        let told = scene.until(plane, Some("good"), &[], 403).await;
        assert!(told.tells("not allowed here"), "{told:?}");
    }

    let namespace = scene.namespace.as_str();
    let label = |object: &[&str], label: &str| {
        scene.kubectl(&[&["-n", namespace, "label", "--overwrite"], object, &[label]].concat(), "");
    };
    let good = ["clientidentity", "good"];
    label(&good, "shop=yes");
    scene.until(&near, Some("good"), &[], 200).await;
    assert_eq!(scene.ask(&near, Some("stolen"), &[]).status, 403);
    assert_eq!(scene.ask(&any, Some("good"), &[]).status, 403, "its namespace is not selected");
    label(&["namespace", namespace], "shops=yes");
    scene.until(&any, Some("good"), &[], 200).await;

    // The certificate is replaced: the new one gets in, and the one before as long as it is good.
    let before = fs::read(scene.path("good").join("tls.crt")).expect("a certificate");
    fs::create_dir_all(scene.path("before")).expect("a folder");
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        fs::copy(scene.path("good").join(file), scene.path("before").join(file)).expect("copied");
    }
    let renew = format!("{}={}", annotation::RENEW_REQUESTED_AT, jiff::Timestamp::now());
    scene.kubectl(&["-n", namespace, "annotate", "clientidentity", "good", &renew], "");
    let secrets = scene.api::<Secret>();
    let renewed = eventually("a new certificate", || async {
        let secret = secrets.get("good-tls").await.expect("a Secret");
        let data = secret.data.as_ref().expect("data");
        (data["tls.crt"].0 != before).then_some(secret)
    })
    .await;
    write_files(&renewed, &["tls.crt", "tls.key", "ca.crt"], &scene.path("good"));
    for client in ["good", "before"] {
        scene.until(&near, Some(client), &[], 200).await;
        scene.until(&any, Some(client), &[], 200).await;
    }

    label(&["namespace", namespace], "shops-");
    scene.until(&any, Some("good"), &[], 403).await;
    label(&good, "shop-");
    for client in ["good", "before"] {
        scene.until(&near, Some(client), &[], 403).await;
    }
    label(&good, "shop=yes");
    scene.until(&near, Some("good"), &[], 200).await;
    scene.kubectl(&["-n", namespace, "delete", "clientidentity", "good"], "");
    scene.until(&near, Some("good"), &[], 403).await;
}

/// The authority of the gate's callers, `callers`, and the gate's own identity of that name, as the chart has them.
fn callers() -> [String; 2] {
    let chart = fixture("charts/countersign/templates/callers.yaml")
        .replace("{{ $name }}", "callers")
        .replace("{{ .Release.Namespace }}", NAMESPACE)
        .replace("{{ $host }}.svc", "localhost");
    let lines = chart.lines().filter(|line| !line.contains("{{"));
    let objects = lines.collect::<Vec<_>>().join("\n");
    let (authority, identity) = objects.split_once("\n---\n").expect("two objects");
    [authority.to_owned(), identity.to_owned()]
}

/// What the gate says over TLS to whoever shows a certificate of this name, or none.
fn asked_over_tls(scene: &Scene, port: u16, caller: Option<&str>, version: &str) -> u16 {
    let file = |name: &str, file: &str| scene.path(name).join(file).display().to_string();
    let url = format!("https://localhost:{port}/gate/traefik?mode=Optional&authority=clients");
    let mut arguments =
        vec![version.to_owned(), "--cacert".to_owned(), file("caller", "ca.crt"), url];
    if let Some(name) = caller {
        let pair = ["--cert".into(), file(name, "tls.crt"), "--key".into(), file(name, "tls.key")];
        arguments.extend(pair);
    }
    curl(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).status
}

#[tokio::test]
async fn the_gate_answers_traefik_by_its_certificate_and_nobody_else() {
    let [port] = free_ports();
    let folder = tempfile::tempdir().expect("a folder");
    let own = folder.path().join("tls");
    let of_server = [
        "--gate-listen=none".to_owned(),
        format!("--gate-tls-listen=127.0.0.1:{port}"),
        format!("--gate-tls={}", own.display()),
        "--gate-callers=callers".to_owned(),
    ];
    let of_controller =
        [format!("--gate-tls-url=https://localhost:{port}/"), "--gate-callers=callers".to_owned()];
    let mut scene = Scene::start(&of_server, &of_controller).await;
    let service = scene.prepare_traefik();
    let trust = guarded(&scene, "guarded", "mode: Required");
    scene.kubectl(&["apply", "-f", "-"], &(service + &trust));
    let trusts: Api<ClientTrust> = scene.api();
    let told = wait_for(&trusts, "guarded", READY, "False", "NotProgrammed").await;
    let told = told.status.expect("a status").conditions[0].message.clone();
    assert!(told.contains("waits for ClientIdentity \"countersign-guarded-gate\""), "{told}");
    let traefik = traefik(&scene);
    let guarded = traefik.programmed("guarded.example.com");
    let closed = async |what: &str| {
        eventually(what, || async {
            let told = scene.ask(&guarded, Some("good"), &[]);
            [403, 404, 500].contains(&told.status).then_some(())
        })
        .await;
    };
    closed("without a caller's certificate nobody gets in").await;

    // The callers' authority comes, and vouches for Traefik.
    let authorities: Api<ClientAuthority> = Api::all(scene.client.clone());
    let [authority, identity] = callers();
    create(&authorities, &authority).await;
    let caller = "countersign-guarded-gate";
    let identities: Api<ClientIdentity> = scene.api();
    wait_for(&identities, caller, READY, "True", "Issued").await;
    wait_for(&trusts, "guarded", READY, "True", "Programmed").await;
    fs::create_dir_all(scene.path("caller")).expect("a folder");
    let files = ["tls.crt", "tls.key", "ca.crt"];
    let take = async || {
        let secret = scene.api::<Secret>().get(caller).await.expect("a Secret");
        write_files(&secret, &files, &scene.path("caller"));
    };
    take().await;
    closed("the gate has no certificate").await;
    let log = scene.plane.folder().join("server.log");
    let log = || fs::read_to_string(&log).expect("a log");
    assert_eq!(log().matches("the certificate of the gate can't be used").count(), 1);

    // The gate's own certificate comes.
    let home: Api<ClientIdentity> = Api::namespaced(scene.client.clone(), NAMESPACE);
    create(&home, &identity).await;
    wait_for(&home, "callers", READY, "True", "Issued").await;
    let secrets: Api<Secret> = Api::namespaced(scene.client.clone(), NAMESPACE);
    let own_secret = secrets.get("callers-tls").await.expect("a Secret");
    fs::create_dir_all(&own).expect("a folder");
    write_files(&own_secret, &files, &own);
    scene.until(&guarded, Some("good"), &[], 200).await;
    assert_eq!(scene.ask(&guarded, None, &[]).status, 0);

    // Who is no caller is told nothing, and a caller is no client.
    for version in ["--http1.1", "--http2"] {
        assert_eq!(asked_over_tls(&scene, port, Some("caller"), version), 200);
        for nobody in [None, Some("good"), Some("stranger")] {
            assert_eq!(asked_over_tls(&scene, port, nobody, version), 0, "{nobody:?}");
        }
    }
    assert_eq!(scene.ask(&guarded, Some("caller"), &[]).status, 0);
    let plain = format!("http://127.0.0.1:{}/gate/traefik", scene.server.gate);
    assert_eq!(curl(&[&plain]).status, 0, "the plain port is off");
    let refused =
        scene.server.metric("countersign_gate_decisions_total{decision=\"caller_refused\"}");
    assert!(refused.is_some_and(|refused| refused >= 4.0), "{refused:?}");

    // A name in another namespace is not the gate's, nor are other names a caller's.
    for (name, spec) in [
        ("server", "commonName: countersign-gate-caller, usages: [client auth, server auth]"),
        ("named", "commonName: countersign-gate-caller, dnsNames: [localhost]"),
        ("other", "commonName: other"),
    ] {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: callers}}, {spec}, secretName: {name}-tls}}}}"
        );
        create(&identities, &yaml).await;
        wait_for(&identities, name, READY, "False", "NotAllowed").await;
    }

    // Another certificate of the gate is taken up: one that nobody trusts, and again a good one.
    let pem = fs::read_to_string(scene.path("server.pem")).expect("a certificate");
    let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE KEY").expect("a key"));
    fs::write(own.join("tls.crt"), certificate).expect("written");
    fs::write(own.join("tls.key"), key).expect("written");
    eventually("another certificate is shown", || async {
        (asked_over_tls(&scene, port, Some("caller"), "--http1.1") == 0).then_some(())
    })
    .await;
    write_files(&own_secret, &files, &own);
    eventually("the good certificate is shown again", || async {
        (asked_over_tls(&scene, port, Some("caller"), "--http1.1") == 200).then_some(())
    })
    .await;
    scene.until(&guarded, Some("good"), &[], 200).await;

    // A caller whose certificate is revoked is refused, over open connections too, until there is another one.
    let begun = std::time::Instant::now();
    scene.revoke(caller).await;
    eventually("the caller is refused", || async {
        (asked_over_tls(&scene, port, Some("caller"), "--http2") == 0).then_some(())
    })
    .await;
    closed("the gate refuses Traefik").await;
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    let told = wait_for(&trusts, "guarded", READY, "False", "NotProgrammed").await;
    assert!(told.status.expect("a status").conditions[0].message.contains(caller));
    let namespace = scene.namespace.as_str();
    scene.kubectl(&["-n", namespace, "delete", "certificaterevocation", caller], "");
    scene.until(&guarded, Some("good"), &[], 200).await;
    wait_for(&trusts, "guarded", READY, "True", "Programmed").await;
    assert_eq!(asked_over_tls(&scene, port, Some("caller"), "--http2"), 0, "the revoked one");
    take().await;
    assert_eq!(asked_over_tls(&scene, port, Some("caller"), "--http2"), 200);

    // Without the Secret Traefik serves nobody.
    scene.operator.take().expect("it runs").kill();
    scene.kubectl(&["-n", namespace, "delete", "secret", caller], "");
    scene.until(&guarded, Some("good"), &[], 404).await;
    assert_eq!(scene.ask(&guarded, None, &[]).status, 0, "it asks for certificates still");
    let gate = format!("--gate-url=http://127.0.0.1:{}", scene.server.gate);
    let arguments = [&*gate, &*of_controller[0], &*of_controller[1]];
    scene.operator = Some(Operator::start_as(&scene.plane, "controller", &arguments));
    scene.until(&guarded, Some("good"), &[], 200).await;

    // With the trust the identity goes, once the garbage collector has seen it.
    let identity = identities.get(caller).await.expect("an identity");
    let owners = identity.metadata.owner_references.unwrap_or_default();
    assert!(owners.iter().any(|owner| owner.kind == "ClientTrust" && owner.name == "guarded"));
}
