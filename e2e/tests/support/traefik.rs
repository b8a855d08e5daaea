//! Traefik by each of its providers that Countersign programs.

use std::fs::File;
use std::marker::PhantomData;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::pki::certificate_pem;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{DynamicObject, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::control_plane::{ControlPlane, free_ports};
use super::data_plane::{DataPlane, Front, Refusal, end, escape, kubectl, leaf, resource, told};
use super::servers::Answer;
use super::{create, program};

/// One of Traefik's providers.
pub trait Provider {
    const NAME: &str;
    /// Group, version and kind of a route.
    const ROUTE: [&str; 3];
    /// What Traefik is told beside its entry points.
    const OPTIONS: &[&str];
    /// Name and controller of the IngressClass.
    const CLASS: [&str; 2] = ["traefik", "traefik.io/ingress-controller"];
    /// The header with the certificate, and what stands in it.
    const HEADER: &str = "X-Forwarded-Tls-Client-Cert";

    fn in_header(certificate: &[u8]) -> String {
        STANDARD.encode(certificate)
    }
}

/// Ingresses of the class of ingress-nginx.
pub struct Nginx;

impl Provider for Nginx {
    const NAME: &str = "Traefik in place of ingress-nginx";
    const ROUTE: [&str; 3] = ["networking.k8s.io", "v1", "Ingress"];
    const OPTIONS: &[&str] = &[
        "--providers.kubernetesingressnginx=true",
        "--providers.kubernetesingressnginx.httpentrypoint=web",
        "--providers.kubernetesingressnginx.httpsentrypoint=websecure",
        // What a client says of the scheme is believed on the plain port alone, and must gain nothing.
        "--entrypoints.web.forwardedheaders.insecure=true",
    ];
    const CLASS: [&str; 2] = ["nginx", "k8s.io/ingress-nginx"];
    const HEADER: &str = "Ssl-Client-Cert";

    fn in_header(certificate: &[u8]) -> String {
        escape(&certificate_pem(certificate))
    }
}

/// Ingresses of Traefik's own class.
pub struct Ingresses;

impl Provider for Ingresses {
    const NAME: &str = "Traefik, Ingress";
    const ROUTE: [&str; 3] = ["networking.k8s.io", "v1", "Ingress"];
    const OPTIONS: &[&str] = &[
        "--providers.kubernetesingress=true",
        "--entrypoints.websecure.http.tls=true",
        "--providers.kubernetescrd=true",
        "--providers.kubernetescrd.safenaming=false",
    ];
}

/// Traefik's own kind.
pub struct IngressRoutes;

impl Provider for IngressRoutes {
    const NAME: &str = "Traefik, IngressRoute";
    const ROUTE: [&str; 3] = ["traefik.io", "v1alpha1", "IngressRoute"];
    const OPTIONS: &[&str] =
        &["--providers.kubernetescrd=true", "--providers.kubernetescrd.safenaming=false"];
}

pub struct Traefik<P> {
    process: Child,
    front: Front,
    provider: PhantomData<P>,
}

/// An Ingress of this class that leads a host's path to the shop.
pub fn ingress(class: &str, name: &str, host: &str, path: &str) -> Value {
    let backend = json!({"service": {"name": "shop", "port": {"name": "http"}}});
    let path = json!({"path": path, "pathType": "Prefix", "backend": backend});
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "annotations": {"example.com/team": "shop"}},
        "spec": {
            "ingressClassName": class,
            "tls": [{"hosts": [host], "secretName": "shop-server-tls"}],
            "rules": [{"host": host, "http": {"paths": [path]}}],
        },
    })
}

impl<P: Provider> DataPlane for Traefik<P> {
    const NAME: &str = P::NAME;
    const ROUTE: [&str; 3] = P::ROUTE;
    const ENFORCED: &str = "ViaGate";
    const MISSING: Refusal = Refusal::alert("alert certificate required");
    const UNKNOWN: Refusal = Refusal::alert("alert unknown ca");
    const EXPIRED: Refusal = Refusal::alert("alert certificate expired");
    const REVOKED: Refusal = Refusal::status(403);

    async fn start(plane: &ControlPlane, client: &Client) -> Self {
        let crds = std::env::var("TRAEFIK_CRDS").expect(
            "TRAEFIK_CRDS names no file; run `make test`, or TRAEFIK_CRDS=$(e2e/traefik/crds) \
             PATH=$(e2e/kind/cluster traefik):$PATH cargo test --test dataplanes",
        );
        kubectl(plane, &["apply", "--server-side", "-f", &crds], "");
        let established = ["wait", "--for", "condition=Established", "--timeout", "60s", "-f"];
        kubectl(plane, &[&established[..], &[&crds]].concat(), "");
        let [name, controller] = P::CLASS;
        let class = json!({"metadata": {"name": name}, "spec": {"controller": controller}});
        create::<IngressClass>(&Api::all(client.clone()), &class.to_string()).await;

        let [http, https, admin] = free_ports();
        let log = plane.folder().join("traefik.log");
        let file = File::create(&log).expect("a log");
        let process = Command::new(program("traefik"))
            .arg(format!("--entrypoints.web.address=127.0.0.1:{http}"))
            .arg(format!("--entrypoints.websecure.address=127.0.0.1:{https}"))
            .arg(format!("--entrypoints.traefik.address=127.0.0.1:{admin}"))
            .args(["--global.checknewversion=false", "--global.sendanonymoususage=false"])
            .args(P::OPTIONS)
            .env("KUBECONFIG", plane.kubeconfig("admin"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn()
            .expect("Traefik starts");
        Self { process, front: Front::new(https, http, &[&log]), provider: PhantomData }
    }

    fn front(&self) -> &Front {
        &self.front
    }

    async fn route(&self, client: &Client, namespace: &str, name: &str, host: &str) {
        if P::ROUTE[2] == "Ingress" {
            let ingress = ingress(P::CLASS[0], name, host, "/");
            let api: Api<Ingress> = Api::namespaced(client.clone(), namespace);
            create(&api, &ingress.to_string()).await;
            return;
        }
        let service = json!({"name": "shop", "port": "http"});
        let route = json!({
            "apiVersion": "traefik.io/v1alpha1", "kind": "IngressRoute",
            "metadata": {"name": name, "annotations": {"example.com/team": "shop"}},
            "spec": {
                "entryPoints": ["websecure"],
                "tls": {"secretName": "shop-server-tls"},
                "routes": [{"kind": "Rule", "match": format!("Host(`{host}`)"), "services": [service]}],
            },
        });
        let route: DynamicObject = serde_json::from_value(route).expect("an IngressRoute");
        let api = Api::namespaced_with(client.clone(), namespace, &resource::<Self>());
        api.create(&PostParams::default(), &route).await.expect("created");
    }

    fn forged(folder: &Path) -> Vec<String> {
        let certificate = in_header::<P>(folder);
        vec![
            format!("{}: {certificate}", P::HEADER),
            "Ssl-Client-Verify: SUCCESS".to_owned(),
            "Ssl-Client-Subject-Dn: CN=lost".to_owned(),
            format!("Client-Cert: :{}:", STANDARD.encode(leaf(folder))),
            // What the proxy says of the client is not for a client to take away.
            format!("Connection: {}, Ssl-Client-Verify, Client-Cert", P::HEADER),
        ]
    }

    fn assert_told(answer: &Answer, folder: Option<&Path>) {
        let expected: Vec<String> = folder.map(in_header::<P>).into_iter().collect();
        assert_eq!(told(answer, P::HEADER), expected);
        let rfc9440 = folder.map(|folder| format!(":{}:", STANDARD.encode(leaf(folder))));
        let rfc9440: Vec<String> = rfc9440.into_iter().filter(|_| is_nginx::<P>()).collect();
        assert_eq!(told(answer, "Client-Cert"), rfc9440);
        if is_nginx::<P>() {
            let name = folder.map(|folder| folder.file_name().expect("a name").display());
            let subject: Vec<String> = name.map(|name| format!("CN={name}")).into_iter().collect();
            assert_eq!(told(answer, "Ssl-Client-Subject-Dn"), subject);
            let verdict = if folder.is_some() { "SUCCESS" } else { "NONE" };
            assert_eq!(told(answer, "Ssl-Client-Verify"), [verdict]);
        }
    }
}

fn is_nginx<P: Provider>() -> bool {
    P::CLASS[0] == "nginx"
}

fn in_header<P: Provider>(folder: &Path) -> String {
    P::in_header(&leaf(folder))
}

impl<P> Drop for Traefik<P> {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}
