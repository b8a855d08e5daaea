//! etcd and kube-apiserver as plain processes on loopback, with an audit log: the real ones, alone.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::Value;
use tempfile::TempDir;

use super::root;

/// A control plane; its processes end when it is dropped.
pub struct ControlPlane {
    folder: TempDir,
    url: String,
    ca_pem: String,
    // The order counts: the API server ends before its etcd.
    apiserver: Server,
    etcd: Server,
}

/// A program with its arguments, and the process while it runs.
struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    process: Option<Process>,
}

/// A process that is ended, by its id, when dropped.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A write that the API server's audit log shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    pub user: String,
    pub verb: String,
    pub resource: String,
    pub name: String,
    pub code: i64,
}

impl ControlPlane {
    /// Starts both and waits until the API server is ready.
    pub async fn start() -> Self {
        let tools = std::env::var_os("COUNTERSIGN_TOOLS").map(PathBuf::from).expect(
            "COUNTERSIGN_TOOLS names no folder with etcd and kube-apiserver; run `make test`, or \
             COUNTERSIGN_TOOLS=$(e2e/kind/cluster tools etcd kube-apiserver) cargo test --test integration",
        );
        let folder = tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder");
        let path = folder.path();
        let [etcd_port, peer_port, port] = free_ports();
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let etcd = Server::new(
            tools.join("etcd"),
            vec![
                format!("--data-dir={}", path.join("etcd").display()),
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
                format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"),
            ],
        );

        let ca_pem = write_credentials(path);
        let file = |name: &str| path.join(name).display().to_string();
        let apiserver = Server::new(
            tools.join("kube-apiserver"),
            vec![
                format!("--etcd-servers={etcd_url}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                format!("--tls-cert-file={}", file("server.crt")),
                format!("--tls-private-key-file={}", file("server.key")),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                format!("--service-account-issuer=https://127.0.0.1:{port}"),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                format!("--service-account-key-file={}", file("sa.pub")),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                // There is no controller manager that would make the default ServiceAccounts.
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                format!("--audit-policy-file={}", file("audit.yaml")),
                format!("--audit-log-path={}", file("audit.log")),
                "--audit-log-mode=blocking".to_owned(),
            ],
        );
        let mut plane =
            Self { url: format!("https://127.0.0.1:{port}"), ca_pem, folder, apiserver, etcd };
        plane.resume().await;
        plane
    }

    /// Ends both processes.
    pub fn stop(&mut self) {
        self.apiserver.process = None;
        self.etcd.process = None;
    }

    /// Starts both, on the same ports and with what lies in the folder of etcd, and waits until the API
    /// server is ready.
    pub async fn resume(&mut self) {
        self.etcd.spawn(self.folder.path());
        self.apiserver.spawn(self.folder.path());
        self.wait_until_ready().await;
    }

    /// Ends the API server, without warning.
    pub fn stop_apiserver(&mut self) {
        self.apiserver.process = None;
    }

    /// Starts it again at the same address, over the same etcd, and waits until it is ready.
    pub async fn restart_apiserver(&mut self) {
        self.apiserver.spawn(self.folder.path());
        self.wait_until_ready().await;
    }

    /// The folder with all that etcd knows.
    pub fn etcd_data(&self) -> PathBuf {
        self.folder.path().join("etcd")
    }

    /// A client with every right, of a user that the audit log tells apart.
    pub async fn client(&self) -> Client {
        Client::try_from(self.config("admin").await).expect("a client")
    }

    /// The configuration of a user: `admin` or `operator`, or `server`, who has no rights of its own.
    pub async fn config(&self, user: &str) -> Config {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(user)).expect("a kubeconfig");
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .expect("a usable kubeconfig")
    }

    /// The kubeconfig file of a user.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{user}.kubeconfig"));
        if !path.exists() {
            use base64::Engine;
            let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca_pem);
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
                 clusters: [{{name: test, cluster: {{server: \"{}\", certificate-authority-data: {ca}}}}}]\n\
                 contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
                 users: [{{name: test, user: {{token: {user}-token}}}}]\n",
                self.url
            );
            fs::write(&path, text).expect("written");
        }
        path
    }

    /// The folder of this control plane: its logs, and room for those of others.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Every completed write of a user so far, in order. Leases and events are not counted: they
    /// are not about anybody's objects.
    pub fn writes(&self, user: &str) -> Vec<Write> {
        let log = fs::read_to_string(self.folder.path().join("audit.log")).expect("an audit log");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut writes = Vec::new();
        for line in log.lines() {
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            let reference = &event["objectRef"];
            let mut resource = text(&reference["resource"]);
            if let Some(sub) = reference["subresource"].as_str() {
                resource = format!("{resource}/{sub}");
            }
            let write = Write {
                user: text(&event["user"]["username"]),
                verb: text(&event["verb"]),
                resource,
                name: format!("{}/{}", text(&reference["namespace"]), text(&reference["name"])),
                code: event["responseStatus"]["code"].as_i64().unwrap_or_default(),
            };
            let counted = !["leases", "events"].contains(&write.resource.as_str());
            if write.user == user && counted {
                writes.push(write);
            }
        }
        writes
    }

    /// Installs our CRDs and waits until they are served.
    pub async fn install_crds(&self) {
        use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
        use kube::Api;
        use kube::api::PostParams;
        let api: Api<CustomResourceDefinition> = Api::all(self.client().await);
        for (_, crd) in countersign::api::crds() {
            let name = crd.metadata.name.clone().expect("a CRD has a name");
            api.create(&PostParams::default(), &crd).await.expect("a valid CRD");
            super::eventually(&format!("{name} is established"), || async {
                let crd = api.get(&name).await.ok()?;
                let conditions = crd.status?.conditions?;
                conditions
                    .iter()
                    .any(|c| c.type_ == "Established" && c.status == "True")
                    .then_some(())
            })
            .await;
        }
    }

    async fn wait_until_ready(&mut self) {
        let client = self.client().await;
        let started = Instant::now();
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            if client.request_text(request).await.is_ok() {
                return;
            }
            let process = self.apiserver.process.as_mut().expect("it was started");
            let ended = process.0.try_wait().expect("a child");
            assert!(
                ended.is_none() && started.elapsed() < Duration::from_secs(60),
                "kube-apiserver is not ready: {}",
                fs::read_to_string(self.folder.path().join("kube-apiserver.log"))
                    .unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Server {
    fn new(program: PathBuf, arguments: Vec<String>) -> Self {
        Self { program, arguments, process: None }
    }

    fn spawn(&mut self, folder: &Path) {
        let name = self.program.file_name().expect("a program").to_string_lossy();
        let log = folder.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        self.process = Some(Process(child));
    }
}

/// Ports that nobody listens on now. Another process may take one in between; then the start fails
/// with its message.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

/// The API server's certificate, its ServiceAccount key, its users and its audit policy.
fn write_credentials(folder: &Path) -> String {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "control plane");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let mut server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server = server.signed_by(&key, &ca).expect("a certificate");
    let service_accounts = KeyPair::generate().expect("a key");
    let files = [
        ("server.crt", server.pem()),
        ("server.key", key.serialize_pem()),
        ("sa.key", service_accounts.serialize_pem()),
        ("sa.pub", service_accounts.public_key_pem()),
        (
            "tokens.csv",
            "admin-token,admin,1,\"system:masters\"\noperator-token,operator,2,\"system:masters\"\n\
             server-token,server,3\n"
                .to_owned(),
        ),
        (
            "audit.yaml",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
             - level: None\n  verbs: [get, list, watch]\n- level: Metadata\n"
                .to_owned(),
        ),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("written");
    }
    ca.pem()
}

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("COUNTERSIGN_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_countersign")), PathBuf::from)
}

/// The folder of the checkout, for fixtures.
pub fn fixture(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
