//! A data plane beside a control plane, and the shop behind it.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use countersign::pki::inspect::certificates;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::json;

use super::control_plane::ControlPlane;
use super::servers::{Answer, server_secret, write_server_certificate_for};
use super::{create, eventually, run};

/// The host of the shop; its certificate is good for every host beside it.
pub const HOST: &str = "shop.example.com";

/// A real data plane as processes on this machine, which end when it is dropped.
pub trait DataPlane: Sized {
    const NAME: &str;
    /// Group, version and kind of a route.
    const ROUTE: [&str; 3];
    /// The reason of `RevocationEnforced`.
    const ENFORCED: &str = "ByCRL";
    /// Does it ask the gate by its Service?
    const ASKS_BY_SERVICE: bool = false;
    /// How a client is refused that has no certificate, one of another CA, one that has expired, a revoked one.
    const MISSING: Refusal;
    const UNKNOWN: Refusal;
    const EXPIRED: Refusal;
    const REVOKED: Refusal;

    /// Starts it over the whole cluster, with everything that it listens on on loopback.
    async fn start(plane: &ControlPlane, client: &Client) -> Self;

    /// Where it listens and logs.
    fn front(&self) -> &Front;

    /// Where it listens for HTTPS.
    fn https(&self) -> &str {
        &self.front().https
    }

    /// Where it listens for HTTP.
    fn http(&self) -> &str {
        &self.front().http
    }

    /// What it logged.
    fn log(&self) -> String {
        let logs = self.front().logs.iter();
        logs.map(|log| fs::read_to_string(log).unwrap_or_default()).collect()
    }

    /// Makes a route from a host to the shop, with an annotation of somebody else.
    async fn route(&self, client: &Client, namespace: &str, name: &str, host: &str);

    /// Headers by which a client passes itself off as the one with the certificate in this folder.
    fn forged(folder: &Path) -> Vec<String>;

    /// Panics unless the shop was told of the client with the certificate in this folder, or of none, and of
    /// nobody else.
    fn assert_told(answer: &Answer, folder: Option<&Path>);
}

/// Where a data plane listens, on loopback, and the files that it logs to.
pub struct Front {
    https: String,
    http: String,
    logs: Vec<PathBuf>,
}

impl Front {
    pub fn new(https: u16, http: u16, logs: &[&Path]) -> Self {
        let [https, http] = [https, http].map(|port| format!("127.0.0.1:{port}"));
        Self { https, http, logs: logs.iter().map(|log| log.to_path_buf()).collect() }
    }
}

/// Installs kinds, and waits until each is served: group and version, and kind.
pub async fn install_kinds(
    plane: &ControlPlane,
    client: &Client,
    definitions: &Path,
    kinds: &[(&str, &str)],
) {
    let definitions = definitions.display().to_string();
    kubectl(plane, &["apply", "--server-side", "-f", &definitions], "");
    for (version, kind) in kinds {
        eventually(&format!("{kind} is served"), || async {
            let found = client.list_api_group_resources(version).await.ok()?;
            found.resources.iter().any(|resource| resource.kind == *kind).then_some(())
        })
        .await;
    }
}

/// The certificate in a client's folder, DER.
pub fn leaf(folder: &Path) -> Vec<u8> {
    let pem = fs::read(folder.join("tls.crt")).expect("a certificate");
    certificates(&pem).expect("a chain")[0].to_vec()
}

/// Percent-encodes a text as nginx does, and others after it.
pub fn escape(text: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let one = |byte| if kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

/// The kind of a data plane's routes.
pub fn resource<P: DataPlane>() -> ApiResource {
    let [group, version, kind] = P::ROUTE;
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// The objects of a kind: group, version and kind; of a namespace, or those that have none.
pub fn objects(
    client: &Client,
    namespace: Option<&str>,
    [group, version, kind]: [&str; 3],
) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// How a client is refused: by an HTTP status, or by an alert, with the status 0.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    status: u16,
    alert: &'static str,
    /// Or so.
    other: Option<(u16, &'static str)>,
}

impl Refusal {
    pub const fn status(status: u16) -> Self {
        Self { status, alert: "", other: None }
    }

    pub const fn alert(alert: &'static str) -> Self {
        Self { status: 0, alert, other: None }
    }

    /// Or so, until the data plane has everything.
    pub const fn or(self, other: Self) -> Self {
        Self { other: Some((other.status, other.alert)), ..self }
    }

    /// As it is when the data plane has everything.
    pub const fn at_last(self) -> Self {
        Self { other: None, ..self }
    }

    fn ways(&self) -> impl Iterator<Item = (u16, &'static str)> {
        [(self.status, self.alert)].into_iter().chain(self.other)
    }

    pub fn is(&self, answer: &Answer) -> bool {
        self.ways().any(|(status, alert)| answer.status == status && answer.body.contains(alert))
    }

    /// The same, or the end of the connection came before the alert.
    pub fn may_be(&self, answer: &Answer) -> bool {
        let lost = |(status, _)| answer.status == status && !answer.body.contains("alert");
        self.is(answer) || self.ways().any(lost)
    }
}

/// kubectl as an administrator.
pub fn kubectl(plane: &ControlPlane, arguments: &[&str], input: &str) {
    let tools = std::env::var_os("COUNTERSIGN_TOOLS").map(PathBuf::from).expect("tools");
    let kubeconfig = format!("--kubeconfig={}", plane.kubeconfig("admin").display());
    let kubectl = tools.join("kubectl").display().to_string();
    run(&kubectl, &[&[kubeconfig.as_str()], arguments].concat(), input);
}

/// Opens the shop, but for its route: the Secret `shop-server-tls` with its certificate, whose CA is `server.pem`
/// in the folder of the control plane, and the Service `shop` with the port `http`. It tells its clients what it
/// was asked, and serves until the test's process ends.
pub async fn open_shop(plane: &ControlPlane, client: &Client, namespace: &str) {
    write_server_certificate_for(plane.folder(), "*.example.com");
    let secret = server_secret(plane.folder());
    create::<Secret>(&Api::namespaced(client.clone(), namespace), &secret.to_string()).await;
    make_service(client, namespace, "shop", 80, serve()).await;
}

/// A Service of this name and port whose one endpoint is here.
pub async fn make_service(
    client: &Client,
    namespace: &str,
    name: &str,
    port: u16,
    endpoint: SocketAddr,
) {
    let service =
        json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": port}]}});
    create::<Service>(&Api::namespaced(client.clone(), namespace), &service.to_string()).await;
    let endpoints = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": endpoint.port()}],
        "endpoints": [{"addresses": [endpoint.ip()], "conditions": {"ready": true}}],
    });
    create::<EndpointSlice>(&Api::namespaced(client.clone(), namespace), &endpoints.to_string())
        .await;
}

fn serve() -> SocketAddr {
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
pub fn own_address() -> IpAddr {
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

/// The headers of this name that the shop got.
pub fn told<'a>(answer: &'a Answer, name: &str) -> Vec<&'a str> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let headers = answer.body.lines().filter_map(|line| line.split_once(':'));
    headers
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// Sends a signal to a process.
pub fn signal(signal: &str, process: &str) {
    // One that has ended is as good.
    let _ =
        Command::new("kill").args([signal, process]).stderr(std::process::Stdio::null()).status();
}

/// Asks a process to end; whether it did.
pub fn end(process: &mut Child) -> bool {
    signal("-TERM", &process.id().to_string());
    let started = Instant::now();
    while matches!(process.try_wait(), Ok(None)) {
        if started.elapsed() > Duration::from_secs(10) {
            let _ = process.kill();
            let _ = process.wait();
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    true
}
