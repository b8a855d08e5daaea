//! nginx, configured as ingress-nginx configures it: its own program can't be had here, so that what its template makes
//! of the annotations is written by this file (`rootfs/etc/nginx/template/nginx.tmpl` of v1.15.1), for what
//! Countersign sets, and followed by a thread.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign::pki::certificate_pem;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::ListParams;
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;

use super::control_plane::{ControlPlane, free_ports};
use super::data_plane::{DataPlane, Front, Refusal, end, escape, leaf, signal, told};
use super::servers::Answer;
use super::traefik::ingress;
use super::{create, program};

pub struct IngressNginx {
    controller: Option<JoinHandle<()>>,
    stopped: Arc<AtomicBool>,
    front: Front,
}

impl DataPlane for IngressNginx {
    const NAME: &str = "nginx as ingress-nginx configures it";
    const ROUTE: [&str; 3] = ["networking.k8s.io", "v1", "Ingress"];
    const ENFORCED: &str = "ViaGate";
    const MISSING: Refusal = Refusal::status(400);
    const UNKNOWN: Refusal = Refusal::status(400);
    const EXPIRED: Refusal = Refusal::status(400);
    // The gate follows at once, and the CRL with the next reload.
    const REVOKED: Refusal = Refusal::status(400).or(Refusal::status(403));

    async fn start(plane: &ControlPlane, client: &Client) -> Self {
        let class =
            json!({"metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/ingress-nginx"}});
        create::<IngressClass>(&Api::all(client.clone()), &class.to_string()).await;
        let [http, https] = free_ports();
        let folder = plane.folder().join("nginx");
        fs::create_dir(&folder).expect("a folder");
        let (log, stopped) = (folder.join("log"), Arc::new(AtomicBool::new(false)));
        let mut follower = Follower {
            config: plane.config("admin").await,
            folder,
            ports: [http, https],
            nginx: None,
            last: String::new(),
        };
        let until = stopped.clone();
        let controller = thread::spawn(move || follower.follow(&until));
        Self { controller: Some(controller), stopped, front: Front::new(https, http, &[&log]) }
    }

    fn front(&self) -> &Front {
        &self.front
    }

    async fn route(&self, client: &Client, namespace: &str, name: &str, host: &str) {
        let ingress = ingress("nginx", name, host, "/");
        create::<Ingress>(&Api::namespaced(client.clone(), namespace), &ingress.to_string()).await;
    }

    fn forged(folder: &Path) -> Vec<String> {
        let leaf = leaf(folder);
        vec![
            format!("ssl-client-cert: {}", escape(&certificate_pem(&leaf))),
            "ssl-client-verify: SUCCESS".to_owned(),
            "ssl-client-subject-dn: CN=lost".to_owned(),
            format!("Client-Cert: :{}:", STANDARD.encode(&leaf)),
            "Connection: ssl-client-cert, ssl-client-verify, client-cert".to_owned(),
        ]
    }

    fn assert_told(answer: &Answer, folder: Option<&Path>) {
        let leaf = folder.map(leaf);
        let one = |value: Option<String>| value.into_iter().collect::<Vec<_>>();
        let pem = one(leaf.as_ref().map(|leaf| escape(&certificate_pem(leaf))));
        assert_eq!(told(answer, "ssl-client-cert"), pem);
        let der = one(leaf.map(|leaf| format!(":{}:", STANDARD.encode(leaf))));
        assert_eq!(told(answer, "Client-Cert"), der);
        let name = |folder: &Path| format!("CN={}", folder.file_name().expect("a name").display());
        assert_eq!(told(answer, "ssl-client-subject-dn"), one(folder.map(name)));
        let verdict = if folder.is_some() { "SUCCESS" } else { "NONE" };
        assert_eq!(told(answer, "ssl-client-verify"), [verdict]);
    }
}

impl Drop for IngressNginx {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = self.controller.take().expect("a thread").join();
    }
}

/// Keeps nginx at what the Ingresses and their Secrets say.
struct Follower {
    config: Config,
    folder: PathBuf,
    ports: [u16; 2],
    nginx: Option<Child>,
    /// The last configuration, with its files.
    last: String,
}

impl Follower {
    fn follow(&mut self, stopped: &AtomicBool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let client = Client::try_from(self.config.clone()).expect("a client");
            while !stopped.load(Ordering::Relaxed) {
                if let Some(files) = self.render(&client).await {
                    self.take(files);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        self.nginx.as_mut().map(end);
    }

    fn take(&mut self, files: Vec<(String, String)>) {
        let now = format!("{files:?}");
        if now == self.last {
            return;
        }
        for (name, content) in files {
            fs::write(self.folder.join(name), content).expect("written");
        }
        self.last = now;
        if let Some(nginx) = &self.nginx {
            signal("-HUP", &nginx.id().to_string());
            return;
        }
        let log = File::options().create(true).append(true).open(self.folder.join("log"));
        let nginx = Command::new(program("nginx"))
            .arg("-c")
            .arg(self.folder.join("nginx.conf"))
            .arg("-e")
            .arg(self.folder.join("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn();
        self.nginx = Some(nginx.expect("nginx starts"));
    }

    /// The files, by name. `None` when the API server does not answer.
    async fn render(&self, client: &Client) -> Option<Vec<(String, String)>> {
        let all = ListParams::default();
        let slices = Api::<EndpointSlice>::all(client.clone()).list(&all).await.ok()?;
        let shop = slices.items.iter().find(|slice| slice.name_any() == "shop")?;
        let port = shop.ports.as_ref()?.first()?.port?;
        let backend = format!("{}:{port}", shop.endpoints.as_ref()?.first()?.addresses.first()?);
        let ingresses = Api::<Ingress>::all(client.clone()).list(&all).await.ok()?;
        let (mut files, mut servers) = (Vec::new(), String::new());
        for ingress in ingresses {
            let namespace = ingress.namespace()?;
            let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
            let trusted = match setting(&ingress, "auth-tls-secret") {
                None => None,
                Some(reference) => {
                    let name = reference.strip_prefix(&format!("{namespace}/"))?;
                    Some(secrets.get_opt(name).await.ok()?)
                }
            };
            let name = ingress.name_any();
            let text = |key| {
                let data = trusted.as_ref()?.as_ref()?.data.as_ref()?;
                let value = String::from_utf8(data.get(key)?.0.clone()).ok()?;
                (!value.is_empty()).then_some(value)
            };
            let (ca, crl) = (text("ca.crt"), text("ca.crl"));
            let spec = ingress.spec.as_ref()?;
            let host = spec.rules.as_ref()?.first()?.host.as_ref()?;
            let files_of = |key: &str| format!("{}/{name}.{key}", self.folder.display());
            let tls = if trusted.is_none() {
                String::new()
            } else if ca.is_none() {
                "return 403;\n".to_owned()
            } else {
                let mut tls = format!("ssl_client_certificate {};\n", files_of("ca"));
                let verify = setting(&ingress, "auth-tls-verify-client").unwrap_or("on");
                let depth = setting(&ingress, "auth-tls-verify-depth").unwrap_or("1");
                writeln!(tls, "ssl_verify_client {verify};\nssl_verify_depth {depth};").ok()?;
                if crl.is_some() {
                    writeln!(tls, "ssl_crl {};", files_of("crl")).ok()?;
                }
                tls
            };
            let locations = locations(&ingress, ca.is_some(), &backend);
            let [http, https] = self.ports;
            let pem = self.folder.parent()?.join("server.pem");
            let pem = pem.display();
            write!(
                servers,
                "server {{\n\
                 listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl; server_name {host};\n\
                 ssl_certificate {pem}; ssl_certificate_key {pem};\n{tls}{locations}}}\n"
            )
            .ok()?;
            let both = [("ca", ca), ("crl", crl)].into_iter();
            files.extend(both.filter_map(|(key, text)| Some((format!("{name}.{key}"), text?))));
        }
        let path = self.folder.display();
        let config = format!(
            "daemon off; pid {path}/pid; error_log {path}/log info;\n\
             events {{}}\n\
             http {{\n\
             access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
             fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n\
             {servers}}}\n"
        );
        files.push(("nginx.conf".to_owned(), config));
        Some(files)
    }
}

fn setting<'a>(ingress: &'a Ingress, key: &str) -> Option<&'a str> {
    ingress.annotations().get(&format!("nginx.ingress.kubernetes.io/{key}")).map(String::as_str)
}

/// The locations of an Ingress with the path `/`.
fn locations(ingress: &Ingress, has_ca: bool, backend: &str) -> String {
    let mut client = String::new();
    if has_ca {
        if setting(ingress, "auth-tls-pass-certificate-to-upstream") == Some("true") {
            client += "proxy_set_header ssl-client-cert $ssl_client_escaped_cert;\n";
        }
        client += "proxy_set_header ssl-client-verify $ssl_client_verify;\n\
                   proxy_set_header ssl-client-subject-dn $ssl_client_s_dn;\n\
                   proxy_set_header ssl-client-issuer-dn $ssl_client_i_dn;\n";
    }
    let (mut auth, mut location) = (String::new(), String::new());
    if setting(ingress, "force-ssl-redirect") == Some("true") {
        // Done by Lua there.
        location += "if ($scheme = http) { return 308 https://$host$request_uri; }\n";
    }
    if let Some(url) = setting(ingress, "auth-url") {
        let path = format!("/_external-auth-{}-Prefix", URL_SAFE_NO_PAD.encode("/"));
        let (_, rest) = url.split_once("://").expect("a URL");
        let (host, _) = rest.split_once('/').expect("a path");
        auth = format!(
            "location = {path} {{\n\
             internal;\n\
             proxy_intercept_errors off;\n\
             proxy_pass_request_body off;\n\
             proxy_set_header Content-Length \"\";\n\
             proxy_set_header X-Forwarded-Proto \"\";\n\
             proxy_set_header Host {host};\n\
             proxy_set_header X-Original-URL $scheme://$http_host$request_uri;\n\
             proxy_set_header X-Original-Method $request_method;\n\
             proxy_set_header X-Real-IP $remote_addr;\n\
             proxy_set_header X-Forwarded-For $remote_addr;\n\
             proxy_set_header X-Auth-Request-Redirect $request_uri;\n\
             proxy_pass_request_headers on;\n\
             {client}\
             proxy_http_version 1.1;\n\
             set $target \"{url}\";\n\
             proxy_pass $target;\n\
             }}\n"
        );
        writeln!(location, "auth_request {path};").expect("written");
        let headers = setting(ingress, "auth-response-headers").unwrap_or_default();
        for (i, header) in headers.split(',').enumerate() {
            let variable = header.to_lowercase().replace('-', "_");
            writeln!(location, "auth_request_set $authHeader{i} $upstream_http_{variable};\nproxy_set_header '{header}' $authHeader{i};").expect("written");
        }
    }
    format!(
        "{auth}location / {{\n{location}proxy_set_header Host $http_host;\n{client}\
         proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_set_header X-Forwarded-Proto $scheme;\n\
         proxy_http_version 1.1;\n\
         proxy_pass http://{backend};\n}}\n"
    )
}
