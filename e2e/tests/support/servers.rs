//! Real TLS servers as plain processes, and a real client.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::control_plane::{Process, free_ports};
use super::program;

/// The programs that ask for client certificates here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// With `ssl_verify_client` and `ssl_crl`.
    Nginx,
    /// With `verify required` and `crl-file`.
    Haproxy,
    /// With a validation context that it is told over file-based SDS.
    Envoy,
}

/// Which TLS sessions a server resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// None.
    Never,
    /// Those that it resumes without being told to.
    Default,
    /// Those of before a reload too: what is set where several servers, or the workers of before and after a
    /// reload, are to know each other's sessions.
    Lasting,
}

/// A server that asks for a client certificate.
pub struct Server {
    process: Process,
    pub port: u16,
    reload: Reload,
}

/// How a server is told to read its files again.
#[derive(Clone)]
enum Reload {
    /// By this signal; its new workers have read them.
    Signal(&'static str),
    /// Not at all: it watches for a rename in this folder, as the kubelet makes one when a Secret changes, and
    /// counts on this port.
    Watch { folder: PathBuf, admin_port: u16 },
}

impl Program {
    pub const ALL: [Self; 3] = [Self::Nginx, Self::Haproxy, Self::Envoy];

    /// Starts it over the files of `folder`: `server.pem`, `ca.crt` and `ca.crl`.
    pub fn start(self, folder: &Path, sessions: Sessions) -> Server {
        let [port, admin_port] = free_ports();
        let (command, reload) = match self {
            Self::Nginx => (nginx(folder, port, sessions), Reload::Signal("HUP")),
            Self::Haproxy => (haproxy(folder, port, sessions), Reload::Signal("USR2")),
            Self::Envoy => (
                envoy(folder, port, admin_port, sessions),
                Reload::Watch { folder: folder.to_owned(), admin_port },
            ),
        };
        Server::start(command, port, reload)
    }
}

fn nginx(folder: &Path, port: u16, sessions: Sessions) -> Command {
    let path = folder.display();
    let sessions = match sessions {
        Sessions::Never => "ssl_session_cache off; ssl_session_tickets off;".to_owned(),
        Sessions::Default => String::new(),
        Sessions::Lasting => format!(
            "ssl_session_cache shared:clients:1m; ssl_session_ticket_key {};",
            ticket_key(folder, 80).display()
        ),
    };
    let config = format!(
        "daemon off; pid {path}/nginx.pid; error_log {path}/nginx.log info;\n\
         events {{}}\n\
         http {{\n\
         access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
         fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n\
         server {{\n\
         listen 127.0.0.1:{port} ssl;\n\
         ssl_certificate {path}/server.pem; ssl_certificate_key {path}/server.pem;\n\
         ssl_client_certificate {path}/ca.crt; ssl_crl {path}/ca.crl;\n\
         ssl_verify_client on; {sessions}\n\
         ssl_protocols TLSv1.2 TLSv1.3;\n\
         location / {{ return 200 \"hello $ssl_client_s_dn\\n\"; }}\n\
         }}\n}}\n"
    );
    fs::write(folder.join("nginx.conf"), config).expect("written");
    let mut command = Command::new(program("nginx"));
    command.args(["-c", &format!("{path}/nginx.conf"), "-e", &format!("{path}/nginx.log")]);
    command
}

fn haproxy(folder: &Path, port: u16, sessions: Sessions) -> Command {
    let path = folder.display();
    let (global, bind) = match sessions {
        Sessions::Never => ("tune.ssl.cachesize 0", "no-tls-tickets".to_owned()),
        Sessions::Default => ("", String::new()),
        Sessions::Lasting => {
            let file = ticket_key(folder, 48);
            let key = base64(&fs::read(&file).expect("a key"));
            // It wants three of them, in base64, one a line.
            fs::write(&file, format!("{key}\n{key}\n{key}\n")).expect("written");
            ("", format!("tls-ticket-keys {}", file.display()))
        }
    };
    let config = format!(
        "global\n  log stderr format raw local0\n  {global}\n\
         defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  timeout connect 5s\n\
         frontend f\n  bind 127.0.0.1:{port} ssl crt {path}/server.pem ca-file {path}/ca.crt \
         crl-file {path}/ca.crl verify required {bind}\n\
         \x20 http-request return status 200 content-type text/plain lf-string \"hello %[ssl_c_s_dn]\\n\"\n"
    );
    fs::write(folder.join("haproxy.cfg"), config).expect("written");
    let mut command = Command::new(program("haproxy"));
    command.args([
        "-W",
        "-f",
        &format!("{path}/haproxy.cfg"),
        "-p",
        &format!("{path}/haproxy.pid"),
    ]);
    command
}

/// An address of Envoy's configuration.
pub fn envoy_address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

/// The configuration of one of Envoy's extensions.
pub fn envoy_typed(name: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.{name}").into();
    config
}

/// Envoy's configuration with one listener: by what it meets clients, and what it does with their requests.
pub fn envoy_config(port: u16, tls: Value, manager: Value) -> Value {
    let network = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({
        "node": { "id": "e2e", "cluster": "e2e" },
        "static_resources": { "listeners": [{
            "name": "clients",
            "address": envoy_address(port),
            "filter_chains": [{
                "transport_socket": {
                    "name": "tls",
                    "typed_config": envoy_typed("transport_sockets.tls.v3.DownstreamTlsContext", tls),
                },
                "filters": [{ "name": "http", "typed_config": envoy_typed(network, manager) }],
            }],
        }] },
    })
}

fn envoy(folder: &Path, port: u16, admin_port: u16, sessions: Sessions) -> Command {
    let file = |name: &str| json!({ "filename": folder.join(name) });
    // The validation context stands in a file of its own, so that Envoy follows the files that it names.
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "clients",
        "validation_context": {
            "trusted_ca": file("ca.crt"),
            "crl": file("ca.crl"),
            "watched_directory": { "path": folder },
        },
    });
    fs::write(folder.join("sds.json"), json!({ "resources": [context] }).to_string())
        .expect("written");
    let mut tls = json!({
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_certificates": [{
                "certificate_chain": file("server.pem"), "private_key": file("server.pem"),
            }],
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3" },
            "validation_context_sds_secret_config": {
                "name": "clients",
                "sds_config": { "path_config_source": { "path": folder.join("sds.json") }, "resource_api_version": "V3" },
            },
        },
    });
    match sessions {
        Sessions::Never => {
            tls["disable_stateless_session_resumption"] = true.into();
            tls["disable_stateful_session_resumption"] = true.into();
        }
        Sessions::Default => {}
        Sessions::Lasting => {
            let key = ticket_key(folder, 80);
            tls["session_ticket_keys"] = json!({ "keys": [{ "filename": key }] });
        }
    }
    let hello = json!({
        "status": 200,
        "body": { "inline_string": "hello\n" },
        "body_format": { "text_format_source": { "inline_string": "hello %DOWNSTREAM_PEER_SUBJECT%\n" } },
    });
    let manager = json!({
        "stat_prefix": "http",
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "direct_response": hello }],
        }] },
        "http_filters": [{
            "name": "router", "typed_config": envoy_typed("filters.http.router.v3.Router", json!({})),
        }],
    });
    let mut config = envoy_config(port, tls, manager);
    config["admin"] = json!({ "address": envoy_address(admin_port) });
    let (path, log) = (folder.join("envoy.json"), folder.join("envoy.log"));
    fs::write(&path, config.to_string()).expect("written");
    let mut command = Command::new(program("envoy"));
    command.args(["--disable-hot-restart", "--concurrency", "1", "--log-path"]).arg(log);
    command.arg("--config-path").arg(path);
    command
}

/// Makes a file with a key for session tickets.
fn ticket_key(folder: &Path, length: usize) -> PathBuf {
    let path = folder.join("tickets.key");
    let mut key = vec![0; length];
    aws_lc_rs::rand::fill(&mut key).expect("random bytes");
    fs::write(&path, key).expect("written");
    path
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

impl Server {
    /// nginx that resumes no sessions.
    pub fn nginx(folder: &Path) -> Self {
        Program::Nginx.start(folder, Sessions::Never)
    }

    /// HAProxy that resumes no sessions.
    pub fn haproxy(folder: &Path) -> Self {
        Program::Haproxy.start(folder, Sessions::Never)
    }

    /// Envoy that resumes no sessions.
    pub fn envoy(folder: &Path) -> Self {
        Program::Envoy.start(folder, Sessions::Never)
    }

    fn start(mut command: Command, port: u16, reload: Reload) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the server starts");
        let mut server = Self { process: Process(child), port, reload };
        server.wait();
        server
    }

    /// Has it read its files again, in the way that its documentation names, and waits until it answers by
    /// them and by nothing else: the workers of before answer by what they read before.
    pub fn reload(&mut self) {
        match self.reload.clone() {
            Reload::Signal(signal) => self.replace_workers(signal),
            Reload::Watch { folder, admin_port } => await_update(&folder, admin_port),
        }
        self.wait();
    }

    /// Has it read its files again, and does not wait.
    pub fn begin_reload(&self) {
        match &self.reload {
            Reload::Signal(signal) => self.signal(signal),
            Reload::Watch { folder, .. } => rename_in(folder),
        }
    }

    fn replace_workers(&self, signal: &str) {
        let pid = self.process.0.id();
        let workers = || -> Vec<String> {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            children.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let before = workers();
        assert!(!before.is_empty(), "a server without workers");
        self.signal(signal);
        wait_until("old workers end", || !workers().iter().any(|worker| before.contains(worker)));
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.0.id().to_string();
        // A process that has ended is told by `wait`.
        let _ = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
    }

    fn wait(&mut self) {
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.process.0.try_wait().expect("a child");
            assert!(ended.is_none(), "the server ended: {ended:?}");
            assert!(started.elapsed() < Duration::from_secs(20), "the server does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Renames something in a folder, as the kubelet does when the Secret that it mounted there changed.
fn rename_in(folder: &Path) {
    let (from, to) = (folder.join("..data_tmp"), folder.join("..data"));
    fs::write(&from, "").expect("written");
    fs::rename(from, to).expect("renamed");
}

/// Tells Envoy that files changed, and waits until it took them.
fn await_update(folder: &Path, admin_port: u16) {
    let updates = || -> u64 {
        let text = get(admin_port, "/stats?filter=ssl_context_update_by_sds");
        let (_, count) = text.trim().rsplit_once(' ').expect("a counter");
        count.parse().unwrap_or_else(|_| panic!("no number: {text}"))
    };
    let before = updates();
    rename_in(folder);
    wait_until("Envoy takes its files", || updates() > before);
}

/// The body of a GET of plain HTTP on this machine.
fn get(port: u16, path: &str) -> String {
    let url = format!("http://127.0.0.1:{port}{path}");
    super::run("curl", &["--silent", "--fail", "--max-time", "10", &url], "")
}

/// Waits for a condition that takes a moment.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited 20 s in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Killed outright, a master would leave its workers behind.
        self.signal("TERM");
        let _ = self.process.0.wait();
    }
}

/// Writes the certificate that a server shows, into `server.pem`.
pub fn write_server_certificate(folder: &Path) {
    write_server_certificate_for(folder, "127.0.0.1");
}

/// The same for a host.
pub fn write_server_certificate_for(folder: &Path, host: &str) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    let text = format!("{}{}", certificate.pem(), key.serialize_pem());
    fs::write(folder.join("server.pem"), text).expect("written");
}

/// The Secret `shop-server-tls` with the certificate and the key of `server.pem`.
pub fn server_secret(folder: &Path) -> Value {
    let pem = fs::read_to_string(folder.join("server.pem")).expect("written");
    let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE KEY-----").expect("a key"));
    json!({
        "metadata": {"name": "shop-server-tls"}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": certificate, "tls.key": key},
    })
}

/// Writes keys of a Secret as files.
pub fn write_files(secret: &Secret, keys: &[&str], folder: &Path) {
    for key in keys {
        fs::write(folder.join(key), &secret.data.as_ref().expect("data")[*key].0).expect("written");
    }
}

/// What a client was told: the HTTP status and the body; when the handshake failed, 0 and curl's words.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Asks a server on this machine by curl, with the certificate of `identity`, a folder with `tls.crt`
/// and `tls.key`.
pub fn curl(port: u16, identity: Option<&Path>) -> Answer {
    // The server's own certificate is not what is tested here.
    ask(&["--insecure", &format!("https://127.0.0.1:{port}/")], identity)
}

/// Where the cluster's Traefik listens for HTTPS.
pub fn traefik_address() -> String {
    std::env::var("INGRESS_ADDRESS").unwrap_or_else(|_| "127.0.0.1:30443".to_owned())
}

/// Asks a host behind the cluster's Traefik, whose certificate is verified by `ca`.
pub fn curl_with(host: &str, ca: &Path, identity: Option<&Path>, header: Option<&str>) -> Answer {
    curl_at(&traefik_address(), host, ca, identity, header.as_slice())
}

/// Asks a host at an address, `IP:PORT`.
pub fn curl_at(
    address: &str,
    host: &str,
    ca: &Path,
    identity: Option<&Path>,
    headers: &[&str],
) -> Answer {
    let asking = https_at(address, host, "/", ca);
    let mut arguments: Vec<&str> = asking.iter().map(String::as_str).collect();
    for header in headers {
        arguments.extend(["--header", header]);
    }
    ask(&arguments, identity)
}

/// Arguments of curl that ask a host at an address, `IP:PORT`, for a path; its certificate is verified by `ca`.
pub fn https_at(address: &str, host: &str, path: &str, ca: &Path) -> [String; 5] {
    let (ip, port) = address.rsplit_once(':').expect("an address is IP:PORT");
    [
        "--resolve".to_owned(),
        format!("{host}:{port}:{ip}"),
        "--cacert".to_owned(),
        ca.display().to_string(),
        format!("https://{host}:{port}{path}"),
    ]
}

/// Asks a host at an address, `IP:PORT`, over plain HTTP.
pub fn curl_plain(address: &str, host: &str) -> Answer {
    let (ip, port) = address.rsplit_once(':').expect("an address is IP:PORT");
    let (resolve, url) = (format!("{host}:{port}:{ip}"), format!("http://{host}:{port}/"));
    ask(&["--resolve", &resolve, &url], None)
}

/// Asks a server on this machine with a PKCS #12 file in place of PEM.
pub fn curl_pkcs12(port: u16, file: &Path, password: &str) -> Answer {
    let (file, url) =
        (format!("{}:{password}", file.display()), format!("https://127.0.0.1:{port}/"));
    ask(&["--insecure", "--cert-type", "P12", "--cert", &file, &url], None)
}

fn ask(arguments: &[&str], identity: Option<&Path>) -> Answer {
    let mut command = Command::new(program("curl"));
    command
        .args(["--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code}"])
        .args(arguments);
    if let Some(folder) = identity {
        command.arg("--cert").arg(folder.join("tls.crt")).arg("--key").arg(folder.join("tls.key"));
    }
    let output = command.output().expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    let status = status.parse().expect("a number");
    let errors = String::from_utf8_lossy(&output.stderr);
    Answer { status, body: if status == 0 { errors.into_owned() } else { body.to_owned() } }
}
