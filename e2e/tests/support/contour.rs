//! Contour with its Envoy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::api::{DynamicObject, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::control_plane::{ControlPlane, free_ports};
use super::data_plane::{DataPlane, Front, Refusal, end, install_kinds, resource, told};
use super::servers::{Answer, curl_plain};
use super::{PATIENCE, openssl, program, run};

pub struct Contour {
    // The order counts: Envoy ends before what it asks.
    envoy: Child,
    contour: Child,
    front: Front,
}

impl DataPlane for Contour {
    const NAME: &str = "Contour";
    const ROUTE: [&str; 3] = ["projectcontour.io", "v1", "HTTPProxy"];
    const ASKS_BY_SERVICE: bool = true;
    const MISSING: Refusal = Refusal::alert("alert certificate required");
    const UNKNOWN: Refusal = Refusal::alert("alert unknown ca");
    const EXPIRED: Refusal = Refusal::alert("alert certificate expired");
    const REVOKED: Refusal = Refusal::alert("alert certificate revoked");

    async fn start(plane: &ControlPlane, client: &Client) -> Self {
        let built = std::env::var_os("COUNTERSIGN_CONTOUR").map(PathBuf::from).expect(
            "COUNTERSIGN_CONTOUR names no folder with Contour; run `make test`, or \
             COUNTERSIGN_CONTOUR=$(e2e/kind/cluster contour) PATH=$(e2e/kind/cluster envoy):$PATH cargo test --test dataplanes",
        );
        let kubeconfig = plane.kubeconfig("admin");
        let option = format!("--kubeconfig={}", kubeconfig.display());
        // Contour gives up when it does not find one of them.
        let kinds = [
            ("projectcontour.io/v1", "HTTPProxy"),
            ("projectcontour.io/v1", "TLSCertificateDelegation"),
            ("projectcontour.io/v1alpha1", "ContourConfiguration"),
            ("projectcontour.io/v1alpha1", "ExtensionService"),
        ];
        install_kinds(plane, client, &built.join("crds.yaml"), &kinds).await;

        let folder = plane.folder().join("contour");
        fs::create_dir(&folder).expect("a folder");
        let [xds, http, https, metrics, health, debug, stats, admin] = free_ports();
        let config = folder.join("contour.yaml");
        fs::write(&config, format!("network: {{admin-port: {admin}}}\n")).expect("written");
        let logs = ["contour.log", "envoy.log"].map(|name| folder.join(name));
        let contour = Command::new(built.join("contour"))
            .args(["serve", &option, "--insecure", "--disable-leader-election"])
            .arg(format!("--config-path={}", config.display()))
            .args(["--xds-address=127.0.0.1", &format!("--xds-port={xds}")])
            .args([
                "--envoy-service-http-address=127.0.0.1",
                &format!("--envoy-service-http-port={http}"),
            ])
            .args([
                "--envoy-service-https-address=127.0.0.1",
                &format!("--envoy-service-https-port={https}"),
            ])
            .args(["--http-address=127.0.0.1", &format!("--http-port={metrics}")])
            .args(["--health-address=127.0.0.1", &format!("--health-port={health}")])
            .args(["--debug-http-address=127.0.0.1", &format!("--debug-http-port={debug}")])
            .args(["--stats-address=127.0.0.1", &format!("--stats-port={stats}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&logs[0]).expect("a log"))
            .spawn()
            .expect("Contour starts");
        let started = Instant::now();
        while curl_plain(&format!("127.0.0.1:{health}"), "localhost").status == 0 {
            let log = || fs::read_to_string(&logs[0]).unwrap_or_default();
            assert!(started.elapsed() < PATIENCE, "Contour is not there: {}", log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let bootstrap = folder.join("envoy.json").display().to_string();
        let socket = format!("--admin-address={}", folder.join("admin.sock").display());
        let (address, port) = ("--xds-address=127.0.0.1", format!("--xds-port={xds}"));
        let program_of = |name: &str| built.join(name).display().to_string();
        run(&program_of("contour"), &["bootstrap", &bootstrap, address, &port, &socket], "");
        let envoy = Command::new(program("envoy"))
            .args(["-c", &bootstrap, "--disable-hot-restart", "--concurrency", "1"])
            .args(["--service-cluster", "contour", "--service-node", "envoy-1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&logs[1]).expect("a log"))
            .spawn()
            .expect("Envoy starts");
        Self { envoy, contour, front: Front::new(https, http, &[&logs[0], &logs[1]]) }
    }

    fn front(&self) -> &Front {
        &self.front
    }

    async fn route(&self, client: &Client, namespace: &str, name: &str, host: &str) {
        let proxy = json!({
            "apiVersion": "projectcontour.io/v1", "kind": "HTTPProxy",
            "metadata": {"name": name, "annotations": {"example.com/team": "shop"}},
            "spec": {
                "virtualhost": {"fqdn": host, "tls": {"secretName": "shop-server-tls"}},
                "routes": [{"services": [{"name": "shop", "port": 80}]}],
            },
        });
        let proxy: DynamicObject = serde_json::from_value(proxy).expect("an HTTPProxy");
        let api = Api::namespaced_with(client.clone(), namespace, &resource::<Self>());
        api.create(&PostParams::default(), &proxy).await.expect("created");
    }

    fn forged(folder: &Path) -> Vec<String> {
        forged_for_envoy(folder)
    }

    fn assert_told(answer: &Answer, folder: Option<&Path>) {
        assert_told_by_envoy(answer, folder);
    }
}

/// [`DataPlane::forged`], for every data plane with an Envoy.
pub fn forged_for_envoy(folder: &Path) -> Vec<String> {
    vec![format!("X-Forwarded-Client-Cert: Hash={};Subject=\"CN=admin\"", hash(folder))]
}

/// [`DataPlane::assert_told`], for every data plane with an Envoy.
pub fn assert_told_by_envoy(answer: &Answer, folder: Option<&Path>) {
    let values = told(answer, "X-Forwarded-Client-Cert");
    let Some(folder) = folder else {
        assert!(values.is_empty(), "{values:?}");
        return;
    };
    let name = folder.file_name().expect("a name").display();
    let [value] = values[..] else { panic!("{values:?}") };
    let parts: Vec<_> = value.split(';').collect();
    let subject = format!("Subject=\"CN={name}\"");
    assert_eq!(parts[0], format!("Hash={}", hash(folder)), "{value}");
    assert!(!value.contains(',') && parts.contains(&subject.as_str()), "{value}");
}

fn hash(folder: &Path) -> String {
    let text = openssl(folder, &["x509", "-in", "tls.crt", "-noout", "-fingerprint", "-sha256"]);
    let (_, hex) = text.trim().split_once('=').expect("a fingerprint");
    hex.replace(':', "").to_lowercase()
}

impl Drop for Contour {
    fn drop(&mut self) {
        end(&mut self.envoy);
        end(&mut self.contour);
    }
}
