//! A web shop in the cluster that `KUBECONFIG` names, with a Countersign installed by the chart: what clients want to reach.

use std::fs;
use std::path::PathBuf;

use countersign::api::condition::READY;
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, Client};
use tempfile::TempDir;

use super::servers::{
    Answer, curl_at, server_secret, traefik_address, write_files, write_server_certificate_for,
};
use super::{create, eventually, kubectl, namespace, root, wait_for};

/// A client of the cluster.
pub async fn client() -> Client {
    Client::try_default().await.expect("KUBECONFIG names a cluster; `make test` sees to that")
}

/// A web shop of its own, in a namespace of its own, as `examples/` has it.
pub struct Shop {
    pub client: Client,
    pub namespace: String,
    pub host: String,
    /// Where clients find it: IP:PORT.
    address: String,
    files: TempDir,
}

impl Shop {
    /// Opens it behind Traefik.
    pub async fn open(prefix: &str) -> Self {
        let shop = Self::without_route(prefix, &traefik_address()).await;
        let (_, ingress) = shop.backend();
        kubectl(&["apply", "-f", "-"], &ingress);
        shop.until("the open shop answers", None, 200).await;
        shop
    }

    /// Opens it where no client gets to it yet: the data plane that listens at this address is to lead there.
    pub async fn without_route(prefix: &str, address: &str) -> Self {
        let client = client().await;
        let namespace = namespace(&client, prefix).await;
        let host = format!("{namespace}.example.com");
        let files = tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder");
        write_server_certificate_for(files.path(), &host);
        let shop = Self { client, namespace, host, address: address.to_owned(), files };
        create(&shop.api::<Secret>(), &server_secret(shop.files.path()).to_string()).await;
        let (backend, _) = shop.backend();
        kubectl(&["apply", "-f", "-"], &backend);
        let ns = shop.namespace.as_str();
        kubectl(&["-n", ns, "rollout", "status", "deployment/shop", "--timeout", "120s"], "");
        shop
    }

    /// The web server, which tells what it was told, and its Ingress.
    fn backend(&self) -> (String, String) {
        let told = "You are: $http_x_forwarded_tls_client_cert_info\\n";
        let more = format!("{told}Client-Cert: $http_client_cert\\n");
        let backend = self.example("03-backend.yaml").replace(told, &more);
        assert!(backend.contains(&more));
        let (backend, ingress) = backend.rsplit_once("---\n").expect("several documents");
        assert!(ingress.contains("kind: Ingress"));
        (backend.to_owned(), ingress.to_owned())
    }

    /// An example, with this shop's namespace and host instead of the quick start's.
    pub fn example(&self, file: &str) -> String {
        let text = fs::read_to_string(root().join("examples").join(file)).expect("an example");
        text.replace("countersign-quickstart", &self.namespace)
            .replace("shop.example.com", &self.host)
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// An authority named after the namespace, so that tests do not meet.
    pub async fn authority(&self, suffix: &str) -> String {
        let name = format!("{}-{suffix}", self.namespace);
        let api: Api<ClientAuthority> = Api::all(self.client.clone());
        create(
            &api,
            &format!(
                "{{metadata: {{name: {name}}}, spec: {{selfSigned: {{commonName: {suffix}}}}}}}"
            ),
        )
        .await;
        wait_for(&api, &name, READY, "True", "Ready").await;
        name
    }

    pub async fn identity(&self, name: &str, authority: &str) {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: {authority}}}, commonName: {name}, \
             uris: [\"spiffe://example.com/{name}\"], secretName: {name}-tls}}}}"
        );
        create(&self.api::<ClientIdentity>(), &yaml).await;
        wait_for(&self.api::<ClientIdentity>(), name, READY, "True", "Issued").await;
        self.fetch(name).await;
    }

    /// Puts what is in an identity's Secret now where curl finds it.
    pub async fn fetch(&self, name: &str) {
        let secret = self.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret");
        fs::create_dir_all(self.path(name)).expect("a folder");
        write_files(&secret, &["tls.crt", "tls.key"], &self.path(name));
    }

    pub fn ask(&self, identity: Option<&str>, header: Option<&str>) -> Answer {
        let folder = identity.map(|name| self.path(name));
        let ca = self.path("server.pem");
        curl_at(&self.address, &self.host, &ca, folder.as_deref(), header.as_slice())
    }

    pub async fn until(&self, what: &str, identity: Option<&str>, status: u16) {
        eventually(&format!("{what} ({status})"), || async {
            (self.ask(identity, None).status == status).then_some(())
        })
        .await;
    }

    pub async fn revoke(&self, identity: &str) {
        let yaml = format!(
            "{{metadata: {{name: {identity}}}, spec: {{identityRef: {{name: {identity}}}}}}}"
        );
        create(&self.api::<CertificateRevocation>(), &yaml).await;
    }

    /// What the backend was told of the client.
    pub fn told(answer: &Answer) -> String {
        let line = answer.body.lines().find_map(|line| line.strip_prefix("You are: "));
        line.unwrap_or_else(|| panic!("not the shop's answer: {answer:?}")).to_owned()
    }

    /// What the backend was told in `Client-Cert`; nothing if it was not asked.
    pub fn client_cert(answer: &Answer) -> Option<&str> {
        answer.body.lines().find_map(|line| line.strip_prefix("Client-Cert: "))
    }

    pub async fn close(self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &Default::default()).await.expect("deleted");
    }
}

/// A ClientTrust `clients`.
pub fn trust_yaml(authority: &str, target: &str, mode: &str) -> String {
    format!(
        "{{metadata: {{name: clients}}, spec: {{authorities: [{{name: {authority}}}], targetRefs: [{target}], mode: {mode}}}}}"
    )
}
