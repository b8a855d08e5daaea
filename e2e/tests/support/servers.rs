//! Real TLS servers as plain processes, and a real client.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use rcgen::{CertificateParams, KeyPair};

use super::control_plane::{Process, free_ports};
use super::program;

/// A server that asks for a client certificate.
pub struct Server {
    process: Process,
    pub port: u16,
    reload: &'static str,
}

impl Server {
    /// nginx with `ssl_verify_client` and `ssl_crl`, over the files of `folder`.
    pub fn nginx(folder: &Path) -> Self {
        let [port] = free_ports();
        let path = folder.display();
        let config = format!(
            "daemon off; pid {path}/nginx.pid; error_log {path}/nginx.log;\n\
             events {{}}\n\
             http {{\n\
             access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
             fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n\
             server {{\n\
             listen 127.0.0.1:{port} ssl;\n\
             ssl_certificate {path}/server.pem; ssl_certificate_key {path}/server.pem;\n\
             ssl_client_certificate {path}/ca.crt; ssl_crl {path}/ca.crl;\n\
             ssl_verify_client on; ssl_session_cache off; ssl_session_tickets off;\n\
             location / {{ return 200 \"hello $ssl_client_s_dn\\n\"; }}\n\
             }}\n}}\n"
        );
        fs::write(folder.join("nginx.conf"), config).expect("written");
        let mut command = Command::new(program("nginx"));
        command.args(["-c", &format!("{path}/nginx.conf"), "-e", &format!("{path}/nginx.log")]);
        Self::start(command, port, "HUP")
    }

    /// HAProxy with `verify required` and `crl-file`, over the files of `folder`.
    pub fn haproxy(folder: &Path) -> Self {
        let [port] = free_ports();
        let path = folder.display();
        let config = format!(
            "global\n  log stderr format raw local0\n\
             defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  timeout connect 5s\n\
             frontend f\n  bind 127.0.0.1:{port} ssl crt {path}/server.pem ca-file {path}/ca.crt \
             crl-file {path}/ca.crl verify required no-tls-tickets\n\
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
        Self::start(command, port, "USR2")
    }

    fn start(mut command: Command, port: u16, reload: &'static str) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the server starts");
        let mut server = Self { process: Process(child), port, reload };
        server.wait();
        server
    }

    /// Has it read its files again, by the signal that its documentation names, and waits until the workers
    /// of before are gone: they answer by what they read before.
    pub fn reload(&mut self) {
        let pid = self.process.0.id();
        let workers = || -> Vec<String> {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            children.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let before = workers();
        assert!(!before.is_empty(), "a server without workers");
        self.signal(self.reload);
        let started = Instant::now();
        while workers().iter().any(|worker| before.contains(worker)) {
            assert!(started.elapsed() < Duration::from_secs(20), "old workers do not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.wait();
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

/// Writes keys of a Secret as files.
pub fn write_files(secret: &Secret, keys: &[&str], folder: &Path) {
    for key in keys {
        fs::write(folder.join(key), &secret.data.as_ref().expect("data")[*key].0).expect("written");
    }
}

/// What a client was told: the HTTP status, 0 when the handshake failed, and the body.
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

/// Asks a host behind the cluster's ingress, whose certificate is verified by `ca`.
pub fn curl_with(host: &str, ca: &Path, identity: Option<&Path>, header: Option<&str>) -> Answer {
    let address = std::env::var("INGRESS_ADDRESS").unwrap_or_else(|_| "127.0.0.1:30443".to_owned());
    let (ip, port) = address.rsplit_once(':').expect("INGRESS_ADDRESS is IP:PORT");
    let (resolve, url) = (format!("{host}:{port}:{ip}"), format!("https://{host}:{port}/"));
    let ca = ca.display().to_string();
    let mut arguments = vec!["--resolve", &resolve, "--cacert", &ca, &url];
    if let Some(header) = header {
        arguments.extend(["--header", header]);
    }
    ask(&arguments, identity)
}

/// The same with a PKCS #12 file in place of PEM.
pub fn curl_pkcs12(port: u16, file: &Path, password: &str) -> Answer {
    let (file, url) =
        (format!("{}:{password}", file.display()), format!("https://127.0.0.1:{port}/"));
    ask(&["--insecure", "--cert-type", "P12", "--cert", &file, &url], None)
}

fn ask(arguments: &[&str], identity: Option<&Path>) -> Answer {
    let mut command = Command::new(program("curl"));
    command.args(["--silent", "--max-time", "10", "--write-out", "\n%{http_code}"]).args(arguments);
    if let Some(folder) = identity {
        command.arg("--cert").arg(folder.join("tls.crt")).arg("--key").arg(folder.join("tls.key"));
    }
    let output = command.output().expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    Answer { status: status.parse().expect("a number"), body: body.to_owned() }
}
