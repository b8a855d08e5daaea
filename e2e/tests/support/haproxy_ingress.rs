//! HAProxy Ingress with its HAProxy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::control_plane::{ControlPlane, free_ports};
use super::data_plane::{DataPlane, Front, Refusal, end, leaf, signal, told};
use super::servers::Answer;
use super::{create, program};

pub struct HaproxyIngress {
    controller: Child,
    front: Front,
}

impl HaproxyIngress {
    /// An Ingress of its class that leads hosts to the shop.
    pub fn ingress(name: &str, hosts: &[&str], annotations: Value) -> Value {
        let backend = json!({"service": {"name": "shop", "port": {"name": "http"}}});
        let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
        let rule = |host: &&str| json!({"host": host, "http": {"paths": [path]}});
        let rules: Vec<Value> = hosts.iter().map(rule).collect();
        json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "ingressClassName": "haproxy",
                "tls": [{"hosts": hosts, "secretName": "shop-server-tls"}],
                "rules": rules,
            },
        })
    }
}

impl DataPlane for HaproxyIngress {
    const NAME: &str = "HAProxy Ingress";
    const ROUTE: [&str; 3] = ["networking.k8s.io", "v1", "Ingress"];
    const MISSING: Refusal = Refusal::status(496);
    const UNKNOWN: Refusal = Refusal::status(495);
    const EXPIRED: Refusal = Refusal::status(495);
    const REVOKED: Refusal = Refusal::status(495);

    async fn start(plane: &ControlPlane, client: &Client) -> Self {
        let built = std::env::var_os("COUNTERSIGN_HAPROXY_INGRESS").map(PathBuf::from).expect(
            "COUNTERSIGN_HAPROXY_INGRESS names no folder with HAProxy Ingress; run `make test`, or \
             COUNTERSIGN_HAPROXY_INGRESS=$(e2e/kind/cluster haproxy-ingress) cargo test --test dataplanes",
        );
        let [http, https, stats, healthz, controller_healthz, asking] = free_ports();
        let options = json!({
            "metadata": {"name": "ingress-controller"},
            "data": {
                "bind-ip-addr-healthz": "127.0.0.1", "healthz-port": healthz.to_string(),
                "bind-ip-addr-http": "127.0.0.1", "http-port": http.to_string(), "https-port": https.to_string(),
                // Behind it it asks the gate.
                "auth-proxy": format!("_front__auth__local:{asking}-{asking}"),
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
        let log = plane.folder().join("haproxy-ingress.log");
        let file = File::create(&log).expect("a log");
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
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn()
            .expect("HAProxy Ingress starts");
        let class =
            "{metadata: {name: haproxy}, spec: {controller: haproxy-ingress.github.io/controller}}";
        create::<IngressClass>(&Api::all(client.clone()), class).await;
        Self { controller, front: Front::new(https, http, &[&log]) }
    }

    fn front(&self) -> &Front {
        &self.front
    }

    async fn route(&self, client: &Client, namespace: &str, name: &str, host: &str) {
        let ingress = Self::ingress(name, &[host], json!({"example.com/team": "shop"}));
        let api: Api<Ingress> = Api::namespaced(client.clone(), namespace);
        create(&api, &ingress.to_string()).await;
    }

    fn forged(folder: &Path) -> Vec<String> {
        let certificate = format!("X-SSL-Client-Cert: {}", in_header(folder));
        vec!["X-SSL-Client-CN: admin".to_owned(), certificate]
    }

    fn assert_told(answer: &Answer, folder: Option<&Path>) {
        let Some(folder) = folder else {
            for name in ["X-SSL-Client-CN", "X-SSL-Client-Cert"] {
                let values = told(answer, name);
                assert!(values.iter().all(|value| value.is_empty()), "{name}: {values:?}");
            }
            return;
        };
        let name = folder.file_name().expect("a name").to_str().expect("text");
        assert_eq!(told(answer, "X-SSL-Client-CN"), [name]);
        assert_eq!(told(answer, "X-SSL-Client-Cert"), [in_header(folder)]);
    }
}

/// A certificate as the data plane hands it over.
fn in_header(folder: &Path) -> String {
    STANDARD.encode(leaf(folder))
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
        if !end(&mut self.controller) {
            children.iter().for_each(|child| signal("-KILL", child));
        }
    }
}
