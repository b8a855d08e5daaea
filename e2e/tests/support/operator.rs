//! The operator as a process: what runs in the pod, without the pod.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

use super::control_plane::{ControlPlane, Process, binary, free_ports};
use super::create;

/// Namespace of the operator in tests.
pub const NAMESPACE: &str = "countersign";

/// A control plane with our kinds and the operator's namespace, and a client of it.
pub async fn control_plane() -> (ControlPlane, Client) {
    let plane = ControlPlane::start().await;
    plane.install_crds().await;
    let client = plane.client().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    create(&namespaces, &format!("metadata: {{name: {NAMESPACE}}}")).await;
    (plane, client)
}

/// A running controller.
pub struct Operator {
    process: Process,
    log: PathBuf,
    pub health_port: u16,
}

impl Operator {
    /// Starts a controller that works as the user `operator`. Its log is appended to.
    pub fn start(plane: &ControlPlane) -> Self {
        Self::start_as(plane, "controller", &[])
    }

    /// Starts a replica of this name with further arguments.
    pub fn start_as(plane: &ControlPlane, replica: &str, arguments: &[&str]) -> Self {
        Self::start_in(plane, replica, arguments, &[])
    }

    /// The same, with further environment variables.
    pub fn start_in(
        plane: &ControlPlane,
        replica: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let log = plane.folder().join(format!("{replica}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let [health_port] = free_ports();
        let mut command = Command::new(binary());
        command.args(["controller", "--replica", replica]);
        if !arguments.contains(&"--lease-seconds") {
            command.args(["--lease-seconds", "6"]);
        }
        let child = command
            .arg(format!("--health-listen=127.0.0.1:{health_port}"))
            .args(["--log-level", "info,countersign=debug"])
            .args(arguments)
            .env("KUBECONFIG", plane.kubeconfig("operator"))
            .env_remove("POD_NAMESPACE")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn()
            .expect("the operator starts");
        Self { process: Process(child), log, health_port }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Has it not ended yet?
    pub fn is_running(&mut self) -> bool {
        self.process.0.try_wait().expect("a child").is_none()
    }

    /// Ends it without warning, if it has not ended yet.
    pub fn kill(mut self) {
        self.process.0.kill().expect("a child");
        self.process.0.wait().expect("it ends");
    }

    /// Asks it to end, by SIGTERM, and returns its exit status.
    pub fn stop(mut self) -> std::process::ExitStatus {
        let pid = self.process.0.id().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(status.success());
        self.process.0.wait().expect("it ends")
    }
}
