//! `countersign serve` as a process, asked by curl.

use std::fs::{self, OpenOptions};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kube::Client;
use serde_json::Value;

use super::control_plane::{ControlPlane, Process, binary, free_ports};
use super::data_plane::{make_service, own_address};
use super::operator::NAMESPACE;
use super::{eventually, program};

/// The server as a process.
pub struct Server {
    process: Process,
    pub crl: u16,
    pub gate: u16,
    pub health: u16,
    gate_host: IpAddr,
}

impl Server {
    /// Starts it with the rights of the user `operator`. Its log is appended to.
    pub fn start(plane: &ControlPlane, cache: Option<&Path>) -> Self {
        Self::start_in(plane, cache, &[])
    }

    /// The same, with further environment variables.
    pub fn start_in(
        plane: &ControlPlane,
        cache: Option<&Path>,
        environment: &[(&str, String)],
    ) -> Self {
        Self::start_at(plane, Ipv4Addr::LOCALHOST.into(), cache, environment, &[])
    }

    /// The same, with further arguments.
    pub fn start_with(
        plane: &ControlPlane,
        environment: &[(&str, String)],
        arguments: &[String],
    ) -> Self {
        Self::start_at(plane, Ipv4Addr::LOCALHOST.into(), None, environment, arguments)
    }

    /// The same with the gate behind the Service `gate`, which is made.
    pub async fn start_behind_service(plane: &ControlPlane, client: &Client) -> Self {
        let server = Self::start_at(plane, own_address(), None, &[], &[]);
        let endpoint = (server.gate_host, server.gate).into();
        make_service(client, NAMESPACE, "gate", 8081, endpoint).await;
        server
    }

    fn start_at(
        plane: &ControlPlane,
        gate_host: IpAddr,
        cache: Option<&Path>,
        environment: &[(&str, String)],
        arguments: &[String],
    ) -> Self {
        let log = plane.folder().join("server.log");
        let log = OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let [crl, gate, health] = free_ports();
        let mut command = Command::new(binary());
        if arguments.iter().all(|argument| !argument.starts_with("--gate-listen")) {
            command.arg("serve").arg(format!("--gate-listen={gate_host}:{gate}"));
        } else {
            command.arg("serve");
        }
        command
            .args(["--namespace", NAMESPACE])
            .arg(format!("--crl-listen=127.0.0.1:{crl}"))
            .args(arguments)
            .arg(format!("--health-listen=127.0.0.1:{health}"))
            .args(cache.map(|folder| format!("--crl-cache={}", folder.display())))
            .env("KUBECONFIG", plane.kubeconfig("operator"))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        let child = command.spawn().expect("the server starts");
        Self { process: Process(child), crl, gate, health, gate_host }
    }

    /// Where data planes ask the gate.
    pub fn gate_url(&self) -> String {
        match self.gate_host.is_loopback() {
            true => format!("http://127.0.0.1:{}", self.gate),
            false => format!("http://gate.{NAMESPACE}.svc:8081"),
        }
    }

    /// Ends it without warning.
    pub fn kill(mut self) {
        self.end();
    }

    /// The same, where others still ask for its ports.
    pub fn end(&mut self) {
        self.process.0.kill().expect("it runs");
        self.process.0.wait().expect("it ends");
    }

    /// Asks it to end, as Kubernetes does.
    pub fn stop(mut self) {
        let pid = self.process.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        assert!(self.process.0.wait().expect("it ends").success());
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.crl)
    }

    pub fn health(&self, path: &str) -> Answer {
        curl(&[&format!("http://127.0.0.1:{}{path}", self.health)])
    }

    pub async fn until_ready(&self) {
        eventually("the server is ready", || async {
            (self.health("/readyz").status == 200).then_some(())
        })
        .await;
    }

    /// What the gate says to a certificate.
    pub fn ask_gate(&self, certificate: &str) -> u16 {
        self.gate_answer(certificate).status
    }

    /// The same with all that it says.
    pub fn gate_answer(&self, certificate: &str) -> Answer {
        let gate = self.gate;
        let url = format!("http://127.0.0.1:{gate}/gate/traefik?mode=Required&authority=clients");
        curl(&["--header", &format!("X-Forwarded-Tls-Client-Cert: {certificate}"), &url])
    }

    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = String::from_utf8(self.health("/metrics").body).expect("text");
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// The entry of the authority's CRL in the list, once the list has one.
    pub fn listed(&self) -> Option<Value> {
        let answer = curl(&[&self.url("/crl/index.json")]);
        let index: Value = serde_json::from_slice(&answer.body).ok()?;
        index["crls"].as_array()?.first().cloned()
    }

    /// Waits until a CRL with so many entries is served.
    pub async fn until_entries(&self, entries: u64) -> Value {
        eventually(&format!("a CRL with {entries} entries is served"), || async {
            self.listed().filter(|listed| listed["entries"] == entries)
        })
        .await
    }
}

/// What curl got: 0 when nobody answered.
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.headers.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// What curl gets.
pub fn curl(arguments: &[&str]) -> Answer {
    let folder = tempfile::tempdir().expect("a folder");
    let (head, body) = (folder.path().join("head"), folder.path().join("body"));
    let output = Command::new(program("curl"))
        .args(["--silent", "--max-time", "10", "--write-out", "%{http_code}"])
        .arg("--dump-header")
        .arg(&head)
        .arg("--output")
        .arg(&body)
        .args(arguments)
        .output()
        .expect("curl runs");
    let status = String::from_utf8_lossy(&output.stdout);
    Answer {
        status: status.parse().expect("a status"),
        headers: fs::read_to_string(head).unwrap_or_default(),
        body: fs::read(body).unwrap_or_default(),
    }
}

/// libfaketime, for a process whose clock is off by what a file says. A step of the clock moves no timer: those of
/// the kernel don't follow it either.
pub fn clock(file: &Path) -> [(&'static str, String); 4] {
    [
        ("LD_PRELOAD", libfaketime().display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

/// The library of Debian's package `libfaketime`.
fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file())
        .expect("libfaketime is not installed; `make test` installs what the tests need")
}
