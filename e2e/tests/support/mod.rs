//! What the tests share: a real control plane as plain processes, the operator as a process, and
//! waiting on conditions.

#![allow(missing_docs, dead_code)]

pub mod contour;
pub mod control_plane;
pub mod data_plane;
pub mod envoy_gateway;
pub mod handshake;
pub mod haproxy_ingress;
pub mod ingress_nginx;
pub mod observer;
pub mod operator;
pub mod pki;
pub mod proxy;
pub mod scenarios;
pub mod scene;
pub mod server;
pub mod servers;
pub mod shop;
pub mod traefik;
pub mod traffic;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// How long a test waits for something that takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of the checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Asks until the answer is `Some`; panics with `what` after [`PATIENCE`].
pub async fn eventually<T, R>(what: &str, mut ask: impl FnMut() -> R) -> T
where
    R: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The condition of a type.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// A kind whose status carries conditions.
pub trait HasConditions {
    fn conditions(&self) -> Vec<Condition>;
}

macro_rules! has_conditions {
    ($($kind:ty),*) => {$(
        impl HasConditions for $kind {
            fn conditions(&self) -> Vec<Condition> {
                self.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default()
            }
        }
    )*};
}
has_conditions!(ClientAuthority, ClientIdentity, ClientTrust, CertificateRevocation);

/// Waits until an object has a condition of this status and reason.
pub async fn wait_for<K>(api: &Api<K>, name: &str, type_: &str, status: &str, reason: &str) -> K
where
    K: Clone + DeserializeOwned + Debug + HasConditions,
{
    let mut last = None;
    let what = format!("{name}: {type_}={status} ({reason})");
    let started = Instant::now();
    loop {
        if let Some(object) = api.get_opt(name).await.expect("the API server answers") {
            let conditions = object.conditions();
            if let Some(found) = condition(&conditions, type_)
                && found.status == status
                && found.reason == reason
            {
                return object;
            }
            last = Some(conditions);
        }
        assert!(
            started.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain: {what}; last {last:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Creates an object from YAML.
pub async fn create<K>(api: &Api<K>, yaml: &str) -> K
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    try_create(api, yaml).await.unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// Creates an object from YAML, or tells why the API server refused. The text goes to the API server
/// as it is, so that not our types but the server judges it.
pub async fn try_create<K>(api: &Api<K>, yaml: &str) -> Result<K, String>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut object: serde_json::Value = serde_yaml::from_str(yaml).map_err(|e| e.to_string())?;
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    let request = http::Request::post(api.resource_url())
        .header("Content-Type", "application/json")
        .body(object.to_string().into_bytes())
        .map_err(|error| error.to_string())?;
    api.clone().into_client().request(request).await.map_err(|error| match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    })
}

/// Changes an object by merge patch.
pub async fn patch<K>(api: &Api<K>, name: &str, body: serde_json::Value) -> K
where
    K: Clone + DeserializeOwned + Debug,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(&body)).await.expect("patched")
}

/// Deletes an object and waits until it is gone.
pub async fn delete<K>(api: &Api<K>, name: &str)
where
    K: Clone + DeserializeOwned + Debug + ResourceExt,
{
    let uid = api.get(name).await.expect("exists").uid();
    api.delete(name, &DeleteParams::default()).await.expect("deleted");
    eventually(&format!("{name} is gone"), || async {
        let found = api.get_opt(name).await.expect("the API server answers");
        found.is_none_or(|object| object.uid() != uid).then_some(())
    })
    .await;
}

/// A namespace of its own for a test.
pub async fn namespace(client: &Client, prefix: &str) -> String {
    use k8s_openapi::api::core::v1::Namespace;
    let api: Api<Namespace> = Api::all(client.clone());
    let mut namespace = Namespace::default();
    namespace.metadata.generate_name = Some(format!("{prefix}-"));
    api.create(&PostParams::default(), &namespace).await.expect("created").name_any()
}

/// A program that a test needs, by an environment variable or from PATH.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_path_buf()]);
    folders.map(|folder| folder.join(name)).find(|candidate| candidate.is_file()).unwrap_or_else(
        || panic!("{name} is not installed; `make test` installs what the tests need"),
    )
}

/// Runs a program to its end with a text on its standard input; what it prints. Panics if it fails.
pub fn run(name: &str, arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new(program(name))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {text}{errors}\n{input}");
    text
}

/// Runs a program in a folder; whether it succeeded, and what it printed.
pub fn ask(folder: &Path, name: &str, arguments: &[&str]) -> (bool, String) {
    use std::process::Command;
    let output = Command::new(program(name)).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Runs OpenSSL in a folder; what it printed. Panics if it fails.
pub fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let (good, text) = ask(folder, "openssl", arguments);
    assert!(good, "openssl {arguments:?}: {text}");
    text
}

/// Runs kubectl.
pub fn kubectl(arguments: &[&str], input: &str) -> String {
    run("kubectl", arguments, input)
}
