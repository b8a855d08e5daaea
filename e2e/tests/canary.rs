//! The canary of a ClientTrust, as a process beside a real API server, against nginx as a process that is fed from the
//! trust's Secret: what it finds out, what it leaves behind, and what it costs.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use countersign::api::condition::{CANARY_PASSED, READY};
use countersign::api::{ClientAuthority, ClientTrust};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use support::control_plane::{ControlPlane, fixture, free_ports};
use support::operator::{Operator, control_plane};
use support::servers::{Server, write_files, write_server_certificate};
use support::{
    condition, create, delete, eventually, namespace, openssl, patch, try_create, wait_for,
};

/// Tests have nothing but loopback, which canaries may not reach unless it is named.
const LOOPBACK: &[&str] = &["--canary-networks=127.0.0.0/8"];

/// OpenSSL's arguments for a certificate of somebody else.
const SELF_SIGNED: [&str; 11] = [
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-subj",
    "/CN=somebody else",
    "-keyout",
    "other.key",
];

/// An authority, a trust without targets that exist, and the folder that nginx reads.
struct Scene {
    plane: ControlPlane,
    client: Client,
    namespace: String,
    folder: TempDir,
    operator: Option<Operator>,
}

impl Scene {
    async fn new(arguments: &[&str]) -> Self {
        let (plane, client) = control_plane().await;
        let operator = Operator::start_as(&plane, "controller", arguments);
        let namespace = namespace(&client, "canary").await;
        let folder = tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder");
        write_server_certificate(folder.path());
        let scene = Self { plane, client, namespace, folder, operator: Some(operator) };
        let authorities = scene.authorities();
        let spec = "{metadata: {name: clients}, spec: {selfSigned: {commonName: Canary CA}}}";
        create(&authorities, spec).await;
        wait_for(&authorities, "clients", READY, "True", "Ready").await;
        let server = fs::read_to_string(scene.folder.path().join("server.pem")).expect("written");
        let end = "-----END CERTIFICATE-----\n";
        let certificate = &server[..server.find(end).expect("a certificate") + end.len()];
        let map = json!({"metadata": {"name": "server-ca"}, "data": {"ca.crt": certificate}});
        create(&scene.api::<ConfigMap>(), &map.to_string()).await;
        scene
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn authorities(&self) -> Api<ClientAuthority> {
        Api::all(self.client.clone())
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The trust, with or without a canary. Its Secret is there although its target is not.
    async fn create_trust(&self, canary: Option<Value>) {
        let trust = json!({
            "metadata": {"name": "shop"},
            "spec": {
                "authorities": [{"name": "clients"}],
                "targetRefs": [{"group": "networking.k8s.io", "kind": "Ingress", "name": "shop"}],
                "canary": canary,
            },
        });
        create(&self.api::<ClientTrust>(), &trust.to_string()).await;
        wait_for(&self.api::<ClientTrust>(), "shop", READY, "False", "TargetNotFound").await;
    }

    async fn secret(&self) -> Secret {
        self.api::<Secret>().get("countersign-shop").await.expect("the trust's Secret")
    }

    async fn serve(&self) -> Server {
        write_files(&self.secret().await, &["ca.crt", "ca.crl"], self.path());
        Server::nginx(self.path())
    }

    /// Changes the canary, which makes it run, and waits until it has come to this.
    async fn run(&self, change: Value, status: &str, reason: &str) -> ClientTrust {
        let trusts = self.api::<ClientTrust>();
        let changed = patch(&trusts, "shop", json!({"spec": {"canary": change}})).await;
        eventually(&format!("the canary comes to {reason}"), || async {
            let trust = trusts.get("shop").await.expect("the trust");
            let told = condition(&trust.status.as_ref()?.conditions, CANARY_PASSED)?.clone();
            let current = told.observed_generation == changed.metadata.generation;
            current.then_some(()).inspect(|()| {
                let message = &told.message;
                assert_eq!(
                    (told.status.as_str(), told.reason.as_str()),
                    (status, reason),
                    "{message}"
                );
            })
        })
        .await;
        trusts.get("shop").await.expect("the trust")
    }

    /// The same, while nginx is fed with what the trust's Secret holds.
    async fn run_fed(
        &self,
        server: &mut Server,
        change: Value,
        status: &str,
        reason: &str,
    ) -> ClientTrust {
        self.fed(server, self.run(change, status, reason)).await
    }

    /// Feeds nginx with what the trust's Secret holds, as an ingress controller does, as long as something lasts.
    async fn fed<T>(&self, server: &mut Server, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(Duration::from_millis(50)) => {
                    let secret = self.secret().await;
                    let data = secret.data.as_ref().expect("data");
                    let stands = |key: &str| fs::read(self.path().join(key)).is_ok_and(|have| have == data[key].0);
                    if !(stands("ca.crt") && stands("ca.crl")) {
                        write_files(&secret, &["ca.crt", "ca.crl"], self.path());
                        server.reload();
                    }
                }
            }
        }
    }

    /// Waits until the authority counts so many live certificates and at least so many revoked ones.
    async fn wait_for_counts(&self, live: i64, revoked: i64) {
        eventually(&format!("{live} live, {revoked} revoked"), || async {
            let authority = self.authorities().get("clients").await.expect("the authority");
            let counts = authority.status?.certificates?;
            (counts.live == live && counts.revoked >= revoked).then_some(())
        })
        .await;
    }

    async fn metrics(&self) -> String {
        let port = self.operator.as_ref().expect("it runs").health_port;
        let mut stream =
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("metrics");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        text
    }
}

fn canary(port: u16) -> Value {
    json!({
        "endpoints": [{"url": format!("https://127.0.0.1:{port}/")}],
        "serverCA": {"kind": "ConfigMap", "name": "server-ca"},
        "timeout": "20s",
    })
}

fn message(trust: &ClientTrust) -> String {
    let status = trust.status.as_ref().expect("a status");
    condition(&status.conditions, CANARY_PASSED).expect("told").message.clone()
}

#[tokio::test]
async fn it_finds_out_who_refuses_and_who_does_not_and_sees_the_end_of_the_trouble() {
    let scene = Scene::new(LOOPBACK).await;
    scene.create_trust(None).await;
    let mut server = scene.serve().await;
    let port = server.port;

    let trust = scene.run_fed(&mut server, canary(port), "True", "Passed").await;
    let text = message(&trust);
    assert!(text.starts_with("good client accepted, revoked client refused after "), "{text}");
    assert!(text.ends_with("see the condition Ready"), "no target is programmed: {text}");
    let first = trust.status.expect("a status").canary.expect("a canary");
    assert!(first.last_run_time.is_some() && first.last_run_time == first.last_success_time);
    let after = first.refused_after_milliseconds.expect("a time");
    assert!((1..20_000).contains(&after), "{after}");
    assert_eq!(first.results.len(), 1);
    let result = &first.results[0];
    assert_eq!((result.authority.as_str(), result.reason.as_str()), ("clients", "Passed"));
    assert_eq!(result.refused_after_milliseconds, Some(after));
    let metrics = scene.metrics().await;
    let of_trust = format!("namespace=\"{}\",trust=\"shop\"", scene.namespace);
    for line in [
        format!("countersign_canary_result{{{of_trust},result=\"Passed\"}} 1"),
        "countersign_canary_refused_seconds_count{authority=\"clients\"} 1".to_owned(),
        format!("countersign_canary_last_success_timestamp_seconds{{{of_trust}}} "),
    ] {
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }

    // The key was nowhere but in memory, and nothing of it is alive.
    let secrets = scene.api::<Secret>().list(&ListParams::default()).await.expect("a list");
    let names: Vec<_> = secrets.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["countersign-shop"]);
    scene.wait_for_counts(0, 1).await;
    write_files(&scene.secret().await, &["ca.crl"], scene.path());
    let crl = openssl(scene.path(), &["crl", "-in", "ca.crl", "-noout", "-text"]);
    assert_eq!(crl.matches("Serial Number:").count(), 1, "{crl}");

    // A data plane that does not load the new CRL.
    let trust = scene.run(json!({"timeout": "4s"}), "False", "RevokedClientAccepted").await;
    let text = message(&trust);
    assert!(text.contains("ClientAuthority \"clients\" is accepted: HTTP 200 4 s later"), "{text}");
    let second = trust.status.expect("a status").canary.expect("a canary");
    assert!(second.last_run_time > first.last_run_time);
    assert_eq!(second.last_success_time, first.last_success_time);
    assert_eq!(second.results[0].reason, "RevokedClientAccepted");
    let metrics = scene.metrics().await;
    let result =
        |reason: &str| format!("countersign_canary_result{{{of_trust},result=\"{reason}\"}} 1");
    assert!(metrics.contains(&result("RevokedClientAccepted")), "{metrics}");
    assert!(!metrics.contains(&result("Passed")), "{metrics}");
    scene.wait_for_counts(0, 2).await;

    scene.run_fed(&mut server, json!({"timeout": "20s"}), "True", "Passed").await;

    // One that trusts another CA than the Secret names: it refuses everybody.
    let path = scene.path();
    openssl(path, &[&SELF_SIGNED[..], &["-out", "ca.crt"]].concat());
    server.reload();
    let trust = scene.run(json!({"timeout": "2s"}), "False", "GoodClientRefused").await;
    assert!(message(&trust).contains("HTTP 400"), "{}", message(&trust));
    scene.wait_for_counts(0, 4).await;

    // None at all.
    drop(server);
    let trust = scene.run(json!({"timeout": "1s"}), "False", "Unreachable").await;
    assert!(message(&trust).contains("refused"), "{}", message(&trust));
    scene.wait_for_counts(0, 5).await;

    // Another port, the same trouble gone.
    let mut server = scene.serve().await;
    let port = server.port;
    let trust = scene.run_fed(&mut server, canary(port), "True", "Passed").await;
    let last = trust.status.expect("a status").canary.expect("a canary");
    assert_eq!(last.last_run_time, last.last_success_time);

    // Somebody who shows another certificate is not asked at all.
    openssl(
        path,
        &[&SELF_SIGNED[..], &["-addext", "subjectAltName=IP:127.0.0.1", "-out", "other.crt"]]
            .concat(),
    );
    let other = fs::read_to_string(path.join("other.crt")).expect("written");
    let map = json!({"metadata": {"name": "other-ca"}, "data": {"ca.crt": other}});
    create(&scene.api::<ConfigMap>(), &map.to_string()).await;
    let wrong = json!({"serverCA": {"kind": "ConfigMap", "name": "other-ca"}, "timeout": "2s"});
    scene.run(wrong, "False", "ServerNotVerified").await;
    let nobody = json!({"serverCA": {"kind": "ConfigMap", "name": "nobody"}});
    let trust = scene.run(nobody, "False", "InvalidCanary").await;
    assert!(message(&trust).contains("ConfigMap \"nobody\" does not exist"), "{}", message(&trust));
    let anybody =
        json!({"serverCA": null, "insecureSkipServerVerification": true, "timeout": "20s"});
    scene.run_fed(&mut server, anybody, "True", "Passed").await;

    // Without a canary nothing is told of one.
    patch(&scene.api::<ClientTrust>(), "shop", json!({"spec": {"canary": null}})).await;
    eventually("the canary is forgotten", || async {
        let status = scene.api::<ClientTrust>().get("shop").await.expect("the trust").status?;
        let told = condition(&status.conditions, CANARY_PASSED).is_some();
        (!told && status.canary.is_none()).then_some(())
    })
    .await;
    let metrics = scene.metrics().await;
    assert!(!metrics.contains(&of_trust), "{metrics}");
}

#[tokio::test]
async fn a_server_that_refuses_within_the_handshake_passes_and_is_found_out_too() {
    let scene = Scene::new(LOOPBACK).await;
    scene.create_trust(None).await;
    write_files(&scene.secret().await, &["ca.crt", "ca.crl"], scene.path());
    let mut server = Server::haproxy(scene.path());
    let port = server.port;
    scene.run_fed(&mut server, canary(port), "True", "Passed").await;
    let trust = scene.run(json!({"timeout": "3s"}), "False", "RevokedClientAccepted").await;
    assert!(message(&trust).contains("HTTP 200 3 s later"), "{}", message(&trust));
    scene.run_fed(&mut server, json!({"timeout": "20s"}), "True", "Passed").await;
}

#[tokio::test]
async fn a_run_is_one_write_of_the_status_and_between_runs_there_is_none() {
    let scene = Scene::new(LOOPBACK).await;
    scene.create_trust(None).await;
    let mut server = scene.serve().await;
    let writes = |resource: &str| {
        let all = scene.plane.writes("operator");
        all.into_iter().filter(|write| write.resource == resource).collect::<Vec<_>>()
    };
    // The status also tells the number of the CRL in force: a publication may cost a write too.
    let statuses = || writes("clienttrusts/status").len();
    let publications = || writes("configmaps").iter().filter(|w| w.name.contains("/crl-")).count();
    let (before, published) = (statuses(), publications());
    let most = |runs: usize| before + 2 * runs + publications() - published;
    let mut seldom = canary(server.port);
    seldom["interval"] = "168h".into();
    scene.run_fed(&mut server, seldom, "True", "Passed").await;
    // One that the change of the spec was seen, one for the run.
    assert!(statuses() <= most(1), "{:?}", writes("clienttrusts/status"));

    // The counts in the authority's status follow, then all is still.
    scene.wait_for_counts(0, 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let settled = scene.plane.writes("operator").len();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let all = scene.plane.writes("operator");
    assert_eq!(all.len(), settled, "{:?}", &all[settled..]);

    // A run that comes by itself, at a time of the trust's own.
    let often = json!({"interval": "1m"});
    let first = scene.run_fed(&mut server, often, "True", "Passed").await;
    assert!(statuses() <= most(2), "{:?}", writes("clienttrusts/status"));
    let ran = |trust: &ClientTrust| trust.status.clone()?.canary?.last_run_time;
    let started = Instant::now();
    let second = scene.fed(&mut server, async {
        loop {
            let now = scene.api::<ClientTrust>().get("shop").await.expect("the trust");
            if ran(&now) > ran(&first) {
                return now;
            }
            assert!(started.elapsed() < Duration::from_secs(100), "it does not run by itself");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    assert!(message(&second.await).starts_with("good client accepted"));
    assert!(statuses() <= most(2) + 1, "{:?}", writes("clienttrusts/status"));
}

#[tokio::test]
async fn a_run_that_is_broken_off_leaves_no_live_certificate() {
    let mut scene = Scene::new(LOOPBACK).await;
    let trusts = scene.api::<ClientTrust>();
    // Nobody listens there: the run waits for the timeout, with a live certificate.
    let [port] = free_ports();
    let mut endless = canary(port);
    endless["timeout"] = "10m".into();
    scene.create_trust(Some(endless.clone())).await;
    scene.wait_for_counts(1, 0).await;

    // The process dies, and comes back to a trust without a canary.
    scene.operator.take().expect("it runs").kill();
    patch(&trusts, "shop", json!({"spec": {"canary": null}})).await;
    scene.operator = Some(Operator::start_as(&scene.plane, "second", LOOPBACK));
    scene.wait_for_counts(0, 1).await;

    // The canary is taken away, and changed, in the middle.
    patch(&trusts, "shop", json!({"spec": {"canary": endless}})).await;
    scene.wait_for_counts(1, 1).await;
    patch(&trusts, "shop", json!({"spec": {"canary": {"timeout": "9m"}}})).await;
    scene.wait_for_counts(1, 2).await;
    patch(&trusts, "shop", json!({"spec": {"canary": null}})).await;
    scene.wait_for_counts(0, 3).await;

    // The trust goes in the middle, and while the process is down.
    patch(&trusts, "shop", json!({"spec": {"canary": endless}})).await;
    scene.wait_for_counts(1, 3).await;
    delete(&trusts, "shop").await;
    scene.wait_for_counts(0, 4).await;
    scene.create_trust(Some(endless)).await;
    scene.wait_for_counts(1, 4).await;
    scene.operator.take().expect("it runs").kill();
    delete(&trusts, "shop").await;
    scene.operator = Some(Operator::start_as(&scene.plane, "third", LOOPBACK));
    scene.wait_for_counts(0, 5).await;
}

#[tokio::test]
async fn it_goes_nowhere_and_gets_nothing_that_it_may_not() {
    let mut scene = Scene::new(&[]).await;
    let [port] = free_ports();
    let mut short = canary(port);
    short["timeout"] = "1s".into();
    scene.create_trust(Some(short.clone())).await;
    let trusts = scene.api::<ClientTrust>();
    let trust = wait_for(&trusts, "shop", CANARY_PASSED, "False", "AddressNotAllowed").await;
    assert!(message(&trust).contains("127.0.0.1, where the operator may not connect"));
    // Nor by way of a name, or of the address beside the URL.
    let endpoints = json!([{"url": "https://localhost:444/"}, {"url": "https://a.example/", "address": "localhost:444"}]);
    let trust = scene.run(json!({"endpoints": endpoints}), "False", "AddressNotAllowed").await;
    let results = trust.status.expect("a status").canary.expect("a canary").results;
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|result| result.reason == "AddressNotAllowed"), "{results:?}");

    // An authority that knows no canaries signs for none.
    let allow = json!({"rules": [{"expression": "identity.commonName.startsWith('laptop-')"}]});
    patch(&scene.authorities(), "clients", json!({"spec": {"allow": allow}})).await;
    scene.wait_for_counts(0, 2).await;
    let trust = scene.run(json!({"timeout": "2s"}), "False", "NotAllowed").await;
    assert!(message(&trust).contains("spec.allow.rules[0]"), "{}", message(&trust));
    scene.wait_for_counts(0, 2).await;

    // The example is one, and what can't be is refused by the API server, or told.
    let example = fixture("examples/12-canary.yaml");
    let example = example.replace("countersign-quickstart", &scene.namespace);
    let example = example.replacen("name: shop", "name: example", 1);
    try_create(&trusts, &example).await.expect("the example is taken");
    let refused = |canary: Value| {
        let trusts = trusts.clone();
        async move {
            let trust = json!({
                "metadata": {"name": "other"},
                "spec": {
                    "authorities": [{"name": "clients"}],
                    "targetRefs": [{"group": "networking.k8s.io", "kind": "Ingress", "name": "shop"}],
                    "canary": canary,
                },
            });
            try_create(&trusts, &trust.to_string()).await.expect_err("refused")
        }
    };
    let of_url = |url: &str| json!({"endpoints": [{"url": url}]});
    let of_address =
        |address: &str| json!({"endpoints": [{"url": "https://a.example/", "address": address}]});
    let with = |field: &str, value: Value| {
        let mut canary = of_url("https://a.example/");
        canary[field] = value;
        canary
    };
    for (canary, words) in [
        (of_url("http://a.example/"), "must be a URL such as https://"),
        (of_url("https://user@a.example/"), "must be a URL such as https://"),
        (of_url("https://a.example/#x"), "must be a URL such as https://"),
        (of_url("https://:443/x"), "must be a URL such as https://"),
        (of_url("https://a.example/a b"), "must be a URL such as https://"),
        (of_address("a.example"), "must be a host and a port"),
        (of_address("https://a.example:443"), "must be a host and a port"),
        (json!({"endpoints": []}), "at least 1"),
        (
            json!({"endpoints": [{"url": "https://a.example/"}, {"url": "https://a.example/"}]}),
            "must not name an endpoint twice",
        ),
        (with("interval", "59s".into()), "at least 1m"),
        (with("timeout", "11m".into()), "at most 10m"),
        (with("timeout", "0s".into()), "at least 1s"),
        (
            json!({"endpoints": [{"url": "https://a.example/"}], "serverCA": {"name": "a"}, "insecureSkipServerVerification": true}),
            "set one of them",
        ),
    ] {
        let message = refused(canary.clone()).await;
        assert!(message.contains(words), "{canary}: {message}");
    }
    patch(&scene.authorities(), "clients", json!({"spec": {"allow": null}})).await;
    let port = json!({"endpoints": [{"url": "https://a.example:99999/"}], "timeout": "3s"});
    let trust = scene.run(port, "False", "InvalidCanary").await;
    assert!(message(&trust).contains("spec.canary.endpoints[0].url"), "{}", message(&trust));

    // An operator that runs none says so.
    scene.operator.take().expect("it runs").kill();
    scene.operator = Some(Operator::start_as(&scene.plane, "second", &["--canaries=false"]));
    wait_for(&trusts, "shop", CANARY_PASSED, "False", "Disabled").await;
}
