//! Envoy Gateway with its Envoy.
//!
//! Its ports and the folder of its certificates are fixed: the tests take turns, and it has a file system of its
//! own to look at.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DynamicObject, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::contour::{assert_told_by_envoy, forged_for_envoy};
use super::control_plane::{ControlPlane, free_ports};
use super::data_plane::{DataPlane, Front, Refusal, end, install_kinds, objects};
use super::servers::{Answer, curl_plain};
use super::{PATIENCE, create, program, run};

/// Where it answers when it is there.
const HEALTH: &str = "127.0.0.1:8081";
/// The version of Envoy that it is told to start; what it finds there is the one in PATH.
const ENVOY: &str = "1.40.0";

pub struct EnvoyGateway {
    process: Child,
    front: Front,
    _turn: File,
}

/// The folder with Envoy Gateway and its kinds.
fn built() -> PathBuf {
    std::env::var_os("COUNTERSIGN_ENVOY_GATEWAY").map(PathBuf::from).expect(
            "COUNTERSIGN_ENVOY_GATEWAY names no folder with Envoy Gateway; run `make test`, or \
             COUNTERSIGN_ENVOY_GATEWAY=$(e2e/kind/cluster envoy-gateway) PATH=$(e2e/kind/cluster envoy):$PATH cargo test --test dataplanes",
        )
}

/// Installs the kinds of the Gateway API and of Envoy Gateway.
pub async fn install(plane: &ControlPlane, client: &Client) {
    let kinds = [
        ("gateway.networking.k8s.io/v1", "GatewayClass"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("gateway.envoyproxy.io/v1alpha1", "EnvoyProxy"),
        ("gateway.envoyproxy.io/v1alpha1", "ClientTrafficPolicy"),
        ("gateway.envoyproxy.io/v1alpha1", "SecurityPolicy"),
    ];
    install_kinds(plane, client, &built().join("crds.yaml"), &kinds).await;
}

/// Makes an object of the Gateway API or of Envoy Gateway.
pub async fn make(client: &Client, namespace: Option<&str>, object: Value) {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = api_version.split_once('/').expect("a group");
    let object = serde_json::from_value(object).expect("an object");
    let api = objects(client, namespace, [group, version, &kind]);
    api.create(&PostParams::default(), &object).await.expect("created");
}

impl EnvoyGateway {
    /// The ClientTrafficPolicies of a namespace.
    pub fn policies(client: &Client, namespace: &str) -> Api<DynamicObject> {
        objects(
            client,
            Some(namespace),
            ["gateway.envoyproxy.io", "v1alpha1", "ClientTrafficPolicy"],
        )
    }

    /// The SecurityPolicies of a namespace.
    pub fn security_policies(client: &Client, namespace: &str) -> Api<DynamicObject> {
        objects(client, Some(namespace), ["gateway.envoyproxy.io", "v1alpha1", "SecurityPolicy"])
    }

    /// The ReferenceGrants of a namespace.
    pub fn grants(client: &Client, namespace: &str) -> Api<DynamicObject> {
        objects(client, Some(namespace), ["gateway.networking.k8s.io", "v1beta1", "ReferenceGrant"])
    }

    /// A Gateway for one host, and its route to the shop.
    pub async fn gateway(client: &Client, namespace: &str, name: &str, host: &str, port: &str) {
        let (_, port) = port.rsplit_once(':').expect("a port");
        let listener = json!({
            "name": "https", "protocol": "HTTPS", "port": port.parse::<u16>().expect("a port"), "hostname": host,
            "tls": {"certificateRefs": [{"name": "shop-server-tls"}]},
        });
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": name, "annotations": {"example.com/team": "shop"}},
            "spec": {"gatewayClassName": "envoy", "listeners": [listener]},
        });
        make(client, Some(namespace), gateway).await;
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
            "spec": {
                "parentRefs": [{"name": name}],
                "hostnames": [host],
                "rules": [{"backendRefs": [{"name": "shop", "port": 80}]}],
            },
        });
        make(client, Some(namespace), route).await;
    }
}

impl DataPlane for EnvoyGateway {
    const NAME: &str = "Envoy Gateway";
    const ROUTE: [&str; 3] = ["gateway.networking.k8s.io", "v1", "Gateway"];
    const ASKS_BY_SERVICE: bool = true;
    const MISSING: Refusal = Refusal::alert("alert certificate required");
    const UNKNOWN: Refusal = Refusal::alert("alert unknown ca");
    const EXPIRED: Refusal = Refusal::alert("alert certificate expired");
    const REVOKED: Refusal = Refusal::alert("alert certificate revoked");

    async fn start(plane: &ControlPlane, client: &Client) -> Self {
        let built = built();
        let turn = File::create(std::env::temp_dir().join("countersign-envoy-gateway.lock"));
        let turn = turn.expect("a file");
        turn.lock().expect("its turn");

        install(plane, client).await;
        let kubeconfig = plane.kubeconfig("admin");
        let folder = plane.folder().join("envoy-gateway");
        let home = |name: &str| folder.join(name).display().to_string();
        let binaries = folder.join("data/envoy-versions").join(ENVOY).join("bin");
        fs::create_dir_all(&binaries).expect("a folder");
        symlink(program("envoy"), binaries.join("envoy")).expect("linked");
        let binary = built.join("envoy-gateway").display().to_string();
        run(&binary, &["certgen", "--local", "--config-home", &home("config")], "");
        let config = json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "EnvoyGateway",
            "gateway": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
            "provider": {"type": "Custom", "custom": {
                "resource": {"type": "Kubernetes", "kubernetes": {"leaderElection": {"disable": true}}},
                "infrastructure": {"type": "Host", "host": {
                    "dataHome": home("data"), "configHome": home("config"),
                    "stateHome": home("state"), "runtimeDir": home("run"),
                }},
            }},
        });
        fs::write(folder.join("config.yaml"), config.to_string()).expect("written");

        create::<Namespace>(&Api::all(client.clone()), "{metadata: {name: envoy-gateway-system}}")
            .await;
        let proxy = json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "EnvoyProxy", "metadata": {"name": "host"},
            "spec": {"provider": {"type": "Host", "host": {"envoyVersion": ENVOY}}, "concurrency": 1, "extraArgs": ["--disable-hot-restart"]},
        });
        make(client, Some("envoy-gateway-system"), proxy).await;
        let class = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "envoy"},
            "spec": {
                "controllerName": "gateway.envoyproxy.io/gatewayclass-controller",
                "parametersRef": {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "namespace": "envoy-gateway-system", "name": "host"},
            },
        });
        make(client, None, class).await;

        // It looks for its certificates in /certs, and nowhere else; for that the test has to be root.
        let log = folder.join("log");
        let output = || File::options().create(true).append(true).open(&log).expect("a log");
        let script = "mkdir -p /certs && mount --bind \"$1\" /certs && exec \"$2\" server --config-path \"$3\"";
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(folder.join("config/certs/envoy-gateway"))
            .args([&binary, &home("config.yaml")])
            .env("KUBECONFIG", &kubeconfig)
            .env("ENVOY_GATEWAY_NAMESPACE", "envoy-gateway-system")
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .spawn()
            .expect("Envoy Gateway starts");
        let [https, http] = free_ports();
        let front = Front::new(https, http, &[&log]);
        let gateway = Self { process, front, _turn: turn };
        let started = Instant::now();
        while curl_plain(HEALTH, "localhost").status == 0 {
            assert!(started.elapsed() < PATIENCE, "it is not there: {}", gateway.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        gateway
    }

    fn front(&self) -> &Front {
        &self.front
    }

    async fn route(&self, client: &Client, namespace: &str, name: &str, host: &str) {
        Self::gateway(client, namespace, name, host, self.https()).await;
    }

    fn forged(folder: &Path) -> Vec<String> {
        forged_for_envoy(folder)
    }

    fn assert_told(answer: &Answer, folder: Option<&Path>) {
        assert_told_by_envoy(answer, folder);
    }
}

impl Drop for EnvoyGateway {
    fn drop(&mut self) {
        end(&mut self.process);
        // It was made to have a place to mount on; one that holds something is not ours.
        let _ = fs::remove_dir("/certs");
    }
}
