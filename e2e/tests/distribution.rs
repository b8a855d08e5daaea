//! CRLs over HTTP, and the gate, from the server as a process: what it serves is what the controller
//! published, to curl and OpenSSL, also while there is no API server.

#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::api::condition::{PUBLISHED, READY};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use countersign::pki::authority::{CaParams, CertificateAuthority, NameConstraints};
use countersign::pki::crl::{self, CrlNumber, Entry};
use countersign::pki::inspect::{certificates, inspect};
use countersign::pki::name::{Attribute, Name};
use countersign::pki::{KeyType, PrivateKey, Serial, sha256_hex};
use countersign::plan::ledger::CaKey;
use countersign::plan::publication::{Rendered, Scope, head_name, render};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{Patch, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use support::control_plane::ControlPlane;
use support::operator::{NAMESPACE, Operator, control_plane};
use support::server::{Server, clock, curl};
use support::{ask, create, delete, eventually, namespace, openssl, try_create, wait_for};

/// A control plane with an authority and identities, and a folder for what clients fetch.
struct Scene {
    plane: ControlPlane,
    client: Client,
    namespace: String,
}

impl Scene {
    async fn new(identities: &[&str]) -> (Self, Operator) {
        let (plane, client) = control_plane().await;
        let operator = Operator::start(&plane);
        let authorities: Api<ClientAuthority> = Api::all(client.clone());
        create(
            &authorities,
            "{metadata: {name: clients}, spec: {selfSigned: {commonName: Distribution CA}}}",
        )
        .await;
        wait_for(&authorities, "clients", READY, "True", "Ready").await;
        let namespace = namespace(&client, "distribution").await;
        let scene = Self { plane, client, namespace };
        for name in identities {
            let yaml = format!(
                "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: clients}}, commonName: {name}, secretName: {name}-tls}}}}"
            );
            create(&scene.identities(), &yaml).await;
        }
        for name in identities {
            wait_for(&scene.identities(), name, READY, "True", "Issued").await;
        }
        (scene, operator)
    }

    fn identities(&self) -> Api<ClientIdentity> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn folder(&self) -> &Path {
        self.plane.folder()
    }

    fn serve(&self, cache: Option<&Path>) -> Server {
        Server::start(&self.plane, cache)
    }

    /// The identity's certificate as Traefik hands it over.
    async fn header(&self, identity: &str) -> String {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secret = secrets.get(&format!("{identity}-tls")).await.expect("a Secret");
        let chain = certificates(&secret.data.expect("data")["tls.crt"].0).expect("a chain");
        STANDARD.encode(&chain[0])
    }

    async fn revoke(&self, identity: &str) {
        let api: Api<CertificateRevocation> = Api::namespaced(self.client.clone(), &self.namespace);
        let yaml = format!(
            "{{metadata: {{name: {identity}}}, spec: {{identityRef: {{name: {identity}}}, reason: KeyCompromise}}}}"
        );
        create(&api, &yaml).await;
        wait_for(&api, identity, PUBLISHED, "True", "Published").await;
    }

    async fn published(&self) -> ConfigMap {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        api.get("crl-clients-1").await.expect("a CRL")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder().join("server.log")).unwrap_or_default()
    }
}

/// Runs curl in a folder as a user would; what it wrote to standard output.
fn fetch(folder: &Path, arguments: &[&str]) -> String {
    let (good, text) = ask(folder, "curl", &[&["--silent", "--show-error"], arguments].concat());
    assert!(good, "curl {arguments:?}: {text}");
    text
}

#[tokio::test]
async fn what_is_published_is_served_as_the_standards_have_it() {
    let names: Vec<String> = (0..40).map(|number| format!("device-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (scene, _operator) = Scene::new(&names).await;
    let server = scene.serve(None);
    server.until_ready().await;
    assert_eq!(server.listed().expect("an empty CRL")["entries"], 0);

    // Enough revocations for gzip to pay.
    for name in &names {
        scene.identities().delete(name, &Default::default()).await.expect("deleted");
    }
    let listed = server.until_entries(40).await;

    let folder = scene.folder().join("fetched");
    fs::create_dir(&folder).expect("a folder");
    let path = |name: &str| folder.join(name);
    let url = server.url(listed["path"].as_str().expect("a path"));
    let published = scene.published().await;
    let der = &published.binary_data.as_ref().expect("data")["crl.der"].0;

    // DER and PEM, judged by OpenSSL.
    let whole = curl(&[&url]);
    assert_eq!((whole.status, &whole.body), (200, der));
    assert_eq!(whole.header("content-type"), "application/pkix-crl");
    assert_eq!(whole.header("content-length"), der.len().to_string());
    assert_eq!(whole.header("etag"), format!("\"{}\"", sha256_hex(der)));
    assert!(whole.header("expires").ends_with(" GMT") && !whole.header("date").is_empty());
    fs::write(path("crl.der"), &whole.body).expect("written");
    fs::write(path("ca.crt"), &published.data.as_ref().expect("data")["ca.crt"]).expect("written");
    let verify = ["crl", "-inform", "DER", "-in", "crl.der", "-noout", "-CAfile", "ca.crt"];
    assert!(openssl(&folder, &verify).contains("verify OK"));
    let pem_url = url.replace(".crl", ".pem");
    fetch(&folder, &["-o", "crl.pem", &pem_url]);
    openssl(&folder, &["crl", "-in", "crl.pem", "-outform", "DER", "-out", "from-pem.der"]);
    assert_eq!(&fs::read(path("from-pem.der")).expect("a CRL"), der);

    // The list.
    assert_eq!(listed["sha256"], sha256_hex(der));
    assert_eq!(listed["bytes"], der.len());
    let number =
        openssl(&folder, &["crl", "-inform", "DER", "-in", "crl.der", "-noout", "-crlnumber"]);
    let number = number.trim().trim_start_matches("crlNumber=0x");
    let number = u128::from_str_radix(number.trim_start_matches("crlNumber="), 16).expect("hex");
    assert_eq!(listed["number"], number.to_string());

    // A client that has it gets nothing again, by tag and by date.
    fetch(&folder, &["--etag-save", "tag", "-R", "-o", "kept.crl", &url]);
    let code = ["-o", "again.crl", "-w", "%{http_code} %{size_download}"];
    let tag = ["--etag-compare", "tag"];
    assert_eq!(fetch(&folder, &[&code[..], &tag, &[&url]].concat()), "304 0");
    assert_eq!(fetch(&folder, &[&code[..], &["-z", "kept.crl"], &[&url]].concat()), "304 0");
    let long_ago = ["-z", "Mon, 01 Jan 2024 00:00:00 GMT"];
    let sent = fetch(&folder, &[&code[..], &long_ago, &[&url]].concat());
    assert_eq!(sent, format!("200 {}", der.len()));

    // A download that broke goes on where it was.
    fs::write(path("part.crl"), &der[..500]).expect("written");
    let code = ["-w", "%{http_code} %{size_download}", "-C", "-", "-o", "part.crl"];
    let sent = fetch(&folder, &[&code[..], &[&url]].concat());
    assert_eq!(sent, format!("206 {}", der.len() - 500));
    assert_eq!(&fs::read(path("part.crl")).expect("a CRL"), der);
    assert_eq!(curl(&["--range", "-20", &url]).body, der[der.len() - 20..]);
    let beyond = curl(&["--range", "100000-", &url]);
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), format!("bytes */{}", der.len()));

    // gzip: fewer bytes, the same file. It may be ready a moment after the CRL is.
    eventually("the CRL comes compressed", || async {
        let packed = curl(&["-H", "Accept-Encoding: gzip", &url]);
        let good = packed.header("content-encoding") == "gzip" && packed.body.len() < der.len();
        good.then_some(())
    })
    .await;
    assert_eq!(curl(&["--compressed", &url]).body, *der);
    assert_eq!(curl(&["-H", "Accept-Encoding: gzip;q=0", &url]).body, *der);

    // HEAD, other methods, other paths; HTTP/1.0 too.
    let head = curl(&["--head", &url]);
    assert_eq!((head.status, head.header("content-length")), (200, &*der.len().to_string()));
    assert_eq!(head.header("etag"), whole.header("etag"));
    let post = curl(&["--request", "POST", "--data", "x=y", &url]);
    assert_eq!((post.status, post.header("allow")), (405, "GET, HEAD"));
    assert_eq!(curl(&[&server.url("/crl/clients/2.crl")]).status, 404);
    assert_eq!(curl(&["--http1.0", &url]).body, *der);

    for code in [200, 206, 304, 404, 405, 416] {
        let metric = format!("countersign_crl_requests_total{{code=\"{code}\"}}");
        assert!(server.metric(&metric).is_some_and(|count| count >= 1.0), "{metric}");
    }
    server.stop();
}

#[tokio::test]
async fn a_server_serves_on_without_the_api_server() {
    let (mut scene, operator) = Scene::new(&["good", "stolen"]).await;
    let (good, stolen) = (scene.header("good").await, scene.header("stolen").await);
    let trusts: Api<ClientTrust> = Api::namespaced(scene.client.clone(), &scene.namespace);
    let trust = "{metadata: {name: gated}, spec: {authorities: [{name: clients}], allow: {commonNames: [good]}, \
                 targetRefs: [{group: networking.k8s.io, kind: Ingress, name: missing}]}}";
    create(&trusts, trust).await;
    // By the policy of the trust, which is nowhere but in the cluster and in memory.
    let namespace = scene.namespace.clone();
    let by_policy = |server: &Server, certificate: &str| {
        let gate = server.gate;
        let url = format!(
            "http://127.0.0.1:{gate}/gate/traefik?trust={namespace}/gated&mode=Required&authority=clients"
        );
        curl(&["--header", &format!("X-Forwarded-Tls-Client-Cert: {certificate}"), &url]).status
    };
    scene.revoke("stolen").await;
    let cache = scene.folder().join("cache");
    let server = scene.serve(Some(&cache));
    server.until_ready().await;
    server.until_entries(1).await;
    assert_eq!((server.ask_gate(&good), server.ask_gate(&stolen)), (200, 403));
    eventually("the policy is known", || async {
        (by_policy(&server, &good) == 200).then_some(())
    })
    .await;
    let before = curl(&[&server.url("/crl/clients/1.crl")]);
    assert_eq!(server.metric("countersign_crl_served_from_disk"), Some(0.0));
    let copy = cache.join("crl-clients-1.json");
    eventually("the copy is on the disk", || async { copy.exists().then_some(()) }).await;

    // While it runs, the API server's end changes nothing.
    operator.kill();
    scene.plane.stop_apiserver();
    assert_eq!((server.ask_gate(&good), server.ask_gate(&stolen)), (200, 403));
    assert_eq!((by_policy(&server, &good), by_policy(&server, &stolen)), (200, 403));
    server.kill();

    // Nor when it has to start anew; it says what it lives on.
    let server = scene.serve(Some(&cache));
    server.until_ready().await;
    let again = curl(&[&server.url("/crl/clients/1.crl")]);
    assert_eq!((again.status, &again.body), (200, &before.body));
    assert_eq!(again.header("etag"), before.header("etag"));
    assert_eq!((server.ask_gate(&good), server.ask_gate(&stolen)), (200, 403));
    assert_eq!(by_policy(&server, &good), 403, "no policy is on the disk");
    assert_eq!(server.metric("countersign_crl_served_from_disk"), Some(1.0));
    let confirmed = server.metric("countersign_crl_watch_timestamp_seconds");
    let this = "countersign_crl_served_this_update_timestamp_seconds{authority=\"clients\"}";
    assert!(confirmed.is_some_and(|time| Some(time) == server.metric(this)));
    let next = "countersign_crl_served_next_update_timestamp_seconds{authority=\"clients\"}";
    assert!(server.metric(next).is_some_and(|time| time > 1.0));

    // One without copies, and one whose copy was changed, serve nothing and are not ready.
    let damaged = tampered(&cache, &copy);
    for cache in [None, Some(damaged.as_path())] {
        let server = scene.serve(cache);
        eventually("it answers", || async {
            (server.health("/livez").status == 200).then_some(())
        })
        .await;
        eventually("it has looked at the disk", || async {
            (curl(&[&server.url("/crl/clients/1.crl")]).status == 404).then_some(())
        })
        .await;
        assert_eq!(server.health("/readyz").status, 503);
        assert_eq!((server.ask_gate(&good), server.ask_gate(&stolen)), (403, 403));
        server.kill();
    }
    assert!(scene.log().contains("a published CRL can't be used"), "{}", scene.log());

    // The API server is back: what was served is confirmed, and a new revocation is in force.
    scene.plane.restart_apiserver().await;
    let _operator = Operator::start(&scene.plane);
    eventually("the copy is confirmed", || async {
        (server.metric("countersign_crl_served_from_disk") == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!((server.ask_gate(&good), server.ask_gate(&stolen)), (200, 403));
    eventually("the policy is known", || async {
        (by_policy(&server, &good) == 200).then_some(())
    })
    .await;
    scene.revoke("good").await;
    server.until_entries(2).await;
    assert_eq!((server.ask_gate(&good), server.ask_gate(&stolen)), (403, 403));
    let confirmed_again = server.metric("countersign_crl_watch_timestamp_seconds");
    assert!(confirmed_again > confirmed, "{confirmed_again:?}");

    // A CRL that is published no more is served no more, and its copy goes.
    let config_maps: Api<ConfigMap> = Api::namespaced(scene.client.clone(), NAMESPACE);
    drop(_operator);
    delete(&config_maps, "crl-clients-1").await;
    eventually("it is gone", || async {
        (server.listed().is_none() && !copy.exists()).then_some(())
    })
    .await;
    server.stop();
}

#[tokio::test]
async fn the_gate_shuts_when_its_crls_go_unconfirmed_and_opens_when_they_are_confirmed() {
    let (mut scene, operator) = Scene::new(&["good"]).await;
    let good = scene.header("good").await;
    let (cache, time) = (scene.folder().join("cache"), scene.folder().join("time"));
    fs::write(&time, "+0").expect("written");
    let mut server = Server::start_in(&scene.plane, Some(&cache), &clock(&time));
    server.until_ready().await;
    server.until_entries(0).await;
    assert_eq!(server.ask_gate(&good), 200);
    let copy = cache.join("crl-clients-1.json");
    eventually("the copy is on the disk", || async { copy.exists().then_some(()) }).await;
    operator.kill();
    scene.plane.stop_apiserver();

    // The bound is a day; a CRL is valid for a week. A restart begins no new day.
    for restart in [false, true] {
        if restart {
            server.kill();
            fs::write(&time, "+0").expect("written");
            server = Server::start_in(&scene.plane, Some(&cache), &clock(&time));
            server.until_ready().await;
        }
        for (offset, status, why) in [
            ("+23h", 200, ""),
            ("+25h", 403, "has not heard of revocations for too long"),
            ("+169h", 403, "the revocation list has expired"),
        ] {
            fs::write(&time, offset).expect("written");
            let answer = server.gate_answer(&good);
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert_eq!(answer.status, status, "{offset}, restart: {restart}: {text}");
            assert!(text.contains(why), "{offset}, restart: {restart}: {text}");
        }
    }
    let refused = "countersign_gate_decisions_total{decision=\"stale\"}";
    assert_eq!(server.metric(refused), Some(1.0));

    // The API server is back, and the server, as it is, lets in again.
    fs::write(&time, "+25h").expect("written");
    assert_eq!(server.ask_gate(&good), 403);
    scene.plane.restart_apiserver().await;
    eventually("a good client is let in again", || async {
        (server.ask_gate(&good) == 200).then_some(())
    })
    .await;
    server.stop();
}

/// A folder with the copy, one octet of whose CRL is another one.
fn tampered(cache: &Path, copy: &Path) -> PathBuf {
    let mut config_map: ConfigMap =
        serde_json::from_slice(&fs::read(copy).expect("a copy")).expect("a ConfigMap");
    let der = config_map.binary_data.as_mut().and_then(|data| data.get_mut("crl.der"));
    let der = &mut der.expect("a CRL").0;
    let middle = der.len() / 2;
    der[middle] ^= 1;
    let folder = cache.with_file_name("tampered");
    fs::create_dir(&folder).expect("a folder");
    let text = serde_json::to_vec(&config_map).expect("JSON");
    fs::write(folder.join(copy.file_name().expect("a name")), text).expect("written");
    folder
}

/// A CRL of so many entries, signed by a CA of the test's own, as a publisher writes it: the parts, then
/// the head.
fn large_crl(ca: &CertificateAuthority, number: u128, entries: u64) -> (Vec<u8>, Rendered) {
    let now = Timestamp::now();
    let entry = |at: u64| Entry {
        serial: Serial::from_be_bytes(&(at + 1).to_be_bytes()).expect("positive"),
        revoked_at: now,
        reason: None,
    };
    let entries: Vec<Entry> = (0..entries).map(entry).collect();
    let (this, next) = (now - SignedDuration::from_secs(60), now + SignedDuration::from_hours(24));
    let der = crl::sign(ca, CrlNumber(number), this, next, &entries).expect("a CRL");
    let end = der.len() - 300;
    let mut cuts: Vec<usize> = (300..end).step_by(400_000).collect();
    cuts.push(end);
    let key = CaKey::first("large");
    let number = CrlNumber(number);
    let rendered = render(&key, Scope::Full, &ca.certificate_pem(), &der, &cuts, number);
    (der, rendered)
}

#[tokio::test]
async fn a_large_crl_is_served_when_all_its_parts_are_there() {
    let mut plane = ControlPlane::start().await;
    let client = plane.client().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    create(&namespaces, &format!("metadata: {{name: {NAMESPACE}}}")).await;
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let cache = plane.folder().join("cache");
    let server = Server::start(&plane, Some(&cache));
    server.until_ready().await;

    let now = Timestamp::now();
    let params = CaParams {
        subject: &Name(vec![(Attribute::CommonName, "Large CA".into())]),
        serial: Serial::random(),
        not_before: now,
        not_after: now + SignedDuration::from_hours(1000),
        path_length: 0,
        name_constraints: &NameConstraints::default(),
        crl_url: None,
    };
    let signer = Arc::new(PrivateKey::generate(KeyType::EcdsaP256));
    let ca = CertificateAuthority::self_signed(&params, signer).expect("a CA");
    let ((first, at_first), (second, at_second)) =
        (large_crl(&ca, 7, 60_000), large_crl(&ca, 8, 60_001));
    assert!(at_first.parts.len() > 2);
    let post = PostParams::default();
    for object in at_first.parts.iter().chain([&at_first.head]) {
        api.create(&post, object).await.expect("created");
    }
    server.until_entries(60_000).await;
    let url = server.url("/crl/large/1.crl");
    let served = || curl(&["--compressed", &url]).body;
    assert_eq!(served(), first);

    // The head of the next one comes first, by a publisher in a hurry: the last good one stays.
    let mut head = at_second.head.clone();
    head.metadata.resource_version =
        api.get("crl-large-1").await.expect("a head").metadata.resource_version;
    api.replace("crl-large-1", &post, &head).await.expect("replaced");
    let log = || fs::read_to_string(plane.folder().join("server.log")).unwrap_or_default();
    eventually("the part is missed", || async {
        log().contains("a part of a CRL is not there").then_some(())
    })
    .await;
    assert_eq!(served(), first);
    for part in at_second.parts.iter().filter(|part| !at_first.parts.contains(part)) {
        api.create(&post, part).await.expect("created");
    }
    server.until_entries(60_001).await;
    assert_eq!(served(), second);

    // The copy on the disk is whole.
    eventually("the copy is written", || async {
        let copy = fs::read_to_string(cache.join("crl-large-1.json")).unwrap_or_default();
        copy.contains("countersign.dev/crl-number\":\"8\"").then_some(())
    })
    .await;
    plane.stop_apiserver();
    server.kill();
    let server = Server::start(&plane, Some(&cache));
    server.until_ready().await;
    assert_eq!(curl(&[&server.url("/crl/large/1.crl")]).body, second);
    server.stop();
}

const SHARDS: u32 = 4;

/// What the list says of each CRL of authority `sharded`, by scope.
fn by_scope(server: &Server) -> Option<BTreeMap<String, Value>> {
    let answer = curl(&[&server.url("/crl/index.json")]);
    let index: Value = serde_json::from_slice(&answer.body).ok()?;
    let crls = index["crls"].as_array()?.iter().filter(|crl| crl["authority"] == "sharded");
    let crls = crls.map(|crl| Some((crl["scope"].as_str()?.to_owned(), crl.clone())));
    crls.collect::<Option<BTreeMap<_, _>>>().filter(|crls| crls.len() == 1 + SHARDS as usize)
}

/// A certificate of authority `sharded`, written to `<name>.pem`.
struct Sharded {
    name: String,
    scope: Scope,
    url: String,
}

impl Scene {
    /// Issues a certificate, and writes it to `<name>.pem`, and its CA to `ca.pem`.
    async fn certificate(&self, folder: &Path, authority: &str, name: &str) -> Vec<u8> {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: {authority}}}, commonName: {name}, secretName: {name}-tls}}}}"
        );
        create(&self.identities(), &yaml).await;
        wait_for(&self.identities(), name, READY, "True", "Issued").await;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secret = secrets.get(&format!("{name}-tls")).await.expect("a Secret");
        let data = secret.data.expect("data");
        fs::write(folder.join(format!("{name}.pem")), &data["tls.crt"].0).expect("written");
        fs::write(folder.join("ca.pem"), &data["ca.crt"].0).expect("written");
        certificates(&data["tls.crt"].0).expect("a chain").swap_remove(0).to_vec()
    }

    /// Issues one of authority `sharded`, and reads where its CRL is as OpenSSL reads it.
    async fn sharded(&self, folder: &Path, name: &str) -> Sharded {
        let leaf = self.certificate(folder, "sharded", name).await;
        let file = format!("{name}.pem");
        let points =
            openssl(folder, &["x509", "-in", &file, "-noout", "-ext", "crlDistributionPoints"]);
        let urls: Vec<&str> = points.split("URI:").skip(1).collect();
        let [url] = urls[..] else { panic!("one URL: {points}") };
        let serial = inspect(&leaf).expect("a certificate").serial;
        let scope = Scope::of_serial(&serial, Some(SHARDS));
        Sharded { name: name.to_owned(), scope, url: url.trim().to_owned() }
    }
}

/// Does OpenSSL take a certificate by the CRL that is at this URL?
fn openssl_takes(folder: &Path, one: &Sharded, url: &str) -> Result<(), String> {
    fetch(folder, &["--fail", "-o", "fetched.der", url]);
    openssl(folder, &["crl", "-inform", "DER", "-in", "fetched.der", "-out", "fetched.pem"]);
    let leaf = format!("{}.pem", one.name);
    let crl = ["-crl_check", "-CAfile", "ca.pem", "-CRLfile", "fetched.pem"];
    let (good, told) = ask(folder, "openssl", &[&["verify"], &crl[..], &[&leaf]].concat());
    if good { Ok(()) } else { Err(told) }
}

#[tokio::test]
async fn a_client_that_fetches_what_the_certificate_names_gets_its_shard() {
    let (mut scene, operator) = Scene::new(&[]).await;
    let cache = scene.folder().join("cache");
    let server = scene.serve(Some(&cache));
    server.until_ready().await;
    let authorities: Api<ClientAuthority> = Api::all(scene.client.clone());
    let authority = |crl: &str| {
        format!(
            "{{metadata: {{name: sharded}}, spec: {{selfSigned: {{commonName: Sharded CA}}, crl: {crl}}}}}"
        )
    };
    let base = server.url("");
    let refused = try_create(&authorities, &authority("{shards: 4}")).await.unwrap_err();
    assert!(
        refused.contains("spec.crl.shards needs spec.crl.distributionPointBaseURL"),
        "{refused}"
    );
    for shards in [1, 65] {
        let crl = format!("{{shards: {shards}, distributionPointBaseURL: '{base}'}}");
        try_create(&authorities, &authority(&crl)).await.unwrap_err();
    }
    let crl = format!("{{shards: {SHARDS}, distributionPointBaseURL: '{base}'}}");
    create(&authorities, &authority(&crl)).await;
    wait_for(&authorities, "sharded", READY, "True", "Ready").await;
    for change in [
        json!({ "shards": 8 }),
        json!({ "shards": null }),
        json!({ "distributionPointBaseURL": "http://other.example.com" }),
    ] {
        let patch = Patch::Merge(json!({ "spec": { "crl": change } }));
        let refused = authorities.patch("sharded", &Default::default(), &patch).await.unwrap_err();
        assert!(refused.to_string().contains("can't be changed once set"), "{refused}");
    }

    // Before anything is revoked every shard is there, empty.
    let before = eventually("the shards are listed", || async { by_scope(&server) }).await;
    let number = &before["full"]["number"];
    for (scope, listed) in &before {
        assert_eq!((&listed["entries"], &listed["number"]), (&json!(0), number), "{scope}");
    }

    // Certificates until two shards have one, as each of them says itself.
    let folder = scene.folder().join("sharded");
    fs::create_dir(&folder).expect("a folder");
    let mut issued: Vec<Sharded> = Vec::new();
    let (stolen, other) = loop {
        let one = scene.sharded(&folder, &format!("device-{}", issued.len())).await;
        let path = one.scope.path(&CaKey::first("sharded"));
        assert_eq!(one.url, format!("{base}{path}"));
        let known = issued.iter().position(|known| known.scope != one.scope);
        issued.push(one);
        if let Some(known) = known {
            break (&issued[known], issued.last().expect("just issued"));
        }
    };
    for one in [stolen, other] {
        openssl_takes(&folder, one, &one.url).expect("not revoked");
    }

    scene.revoke(&stolen.name).await;
    let shard = stolen.scope.to_string();
    let after = eventually("the shard has the revoked certificate", || async {
        by_scope(&server)
            .filter(|crls| crls[&shard]["entries"] == 1 && crls["full"]["entries"] == 1)
    })
    .await;
    let refused = openssl_takes(&folder, stolen, &stolen.url).unwrap_err();
    assert!(refused.contains("error 23"), "{refused}");
    openssl_takes(&folder, other, &other.url).expect("not revoked");
    let refused = openssl_takes(&folder, stolen, &other.url).unwrap_err();
    assert!(refused.contains("error 44"), "a shard is no answer for others: {refused}");
    // OpenSSL by itself, from nothing but the certificate.
    for (one, good) in [(stolen, false), (other, true)] {
        let leaf = format!("{}.pem", one.name);
        let by_itself = ["verify", "-crl_check", "-crl_download", "-CAfile", "ca.pem", &leaf];
        let (taken, told) = ask(&folder, "openssl", &by_itself);
        assert_eq!(taken, good, "{}: {told}", one.name);
    }
    // The complete one goes on for those who take that.
    let full = server.url("/crl/sharded/1.crl");
    openssl_takes(&folder, other, &full).expect("not revoked");
    let refused = openssl_takes(&folder, stolen, &full).unwrap_err();
    assert!(refused.contains("error 23"), "{refused}");
    // Only the shard whose entries changed was signed anew, under the number of the complete one.
    for (scope, listed) in &after {
        let changed = *scope == shard || scope == "full";
        let number = if changed { &after["full"]["number"] } else { number };
        assert_eq!(&listed["number"], number, "{scope}");
    }
    assert_ne!(&after["full"]["number"], number);

    // As files like any other.
    let whole = curl(&[&stolen.url]);
    assert_eq!(whole.header("etag"), format!("\"{}\"", sha256_hex(&whole.body)));
    assert_eq!(after[&shard]["sha256"], sha256_hex(&whole.body));
    let tag = format!("If-None-Match: {}", whole.header("etag"));
    assert_eq!(curl(&["-H", &tag, &stolen.url]).status, 304);
    assert_eq!(curl(&["--range", "0-9", &stolen.url]).body, whole.body[..10]);
    fetch(&folder, &["-o", "shard.pem", &stolen.url.replace(".crl", ".pem")]);
    openssl(&folder, &["crl", "-in", "shard.pem", "-outform", "DER", "-out", "shard.der"]);
    assert_eq!(fs::read(folder.join("shard.der")).expect("a CRL"), whole.body);

    // One that somebody deletes comes back. After a restart none is signed again.
    let config_maps: Api<ConfigMap> = Api::namespaced(scene.client.clone(), NAMESPACE);
    let name = head_name(&CaKey::first("sharded"), other.scope);
    delete(&config_maps, &name).await;
    eventually("the shard is back", || async { config_maps.get_opt(&name).await.ok().flatten() })
        .await;
    let settled = eventually("it is listed", || async { by_scope(&server) }).await;
    operator.stop();
    let written = scene.plane.writes("operator").len();
    let operator = Operator::start(&scene.plane);
    scene.sharded(&folder, "after-the-restart").await;
    let patch = Patch::Merge(json!({ "spec": { "crl": { "validity": "100h" } } }));
    let patched = authorities.patch("sharded", &Default::default(), &patch).await.expect("patched");
    eventually("the authority was looked at", || async {
        let seen = authorities.get("sharded").await.ok()?.status?.observed_generation;
        (seen == patched.metadata.generation).then_some(())
    })
    .await;
    let writes = scene.plane.writes("operator").split_off(written);
    let of_crls: Vec<_> =
        writes.iter().filter(|write| write.name.starts_with("countersign/crl-sharded")).collect();
    assert!(of_crls.is_empty() && !writes.is_empty(), "{of_crls:?}");
    assert_eq!(by_scope(&server), Some(settled));

    // Copies of them serve on while there is no API server.
    let copies = Scope::shards(SHARDS).map(|scope| head_name(&CaKey::first("sharded"), scope));
    for name in copies {
        let copy = cache.join(format!("{name}.json"));
        eventually("the copy is on the disk", || async { copy.exists().then_some(()) }).await;
    }
    operator.kill();
    scene.plane.stop_apiserver();
    server.kill();
    let server = scene.serve(Some(&cache));
    server.until_ready().await;
    let path = stolen.scope.path(&CaKey::first("sharded"));
    assert_eq!(curl(&[&server.url(&path)]).body, whole.body);
}

#[tokio::test]
async fn a_delta_crl_tells_what_was_revoked_since_its_base() {
    let (scene, _operator) = Scene::new(&[]).await;
    let server = scene.serve(None);
    server.until_ready().await;
    let authorities: Api<ClientAuthority> = Api::all(scene.client.clone());
    let base = server.url("");
    let authority = |crl: &str| {
        format!(
            "{{metadata: {{name: changing}}, spec: {{selfSigned: {{commonName: Changing CA}}, crl: {crl}}}}}"
        )
    };
    for (crl, why) in [
        ("{delta: true}".to_owned(), "spec.crl.delta needs"),
        (
            format!("{{delta: true, shards: 2, distributionPointBaseURL: '{base}'}}"),
            "can't go with spec.crl.shards",
        ),
    ] {
        let refused = try_create(&authorities, &authority(&crl)).await.unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    let crl = format!("{{delta: true, distributionPointBaseURL: '{base}'}}");
    create(&authorities, &authority(&crl)).await;
    wait_for(&authorities, "changing", READY, "True", "Ready").await;

    let folder = scene.folder().join("changing");
    fs::create_dir(&folder).expect("a folder");
    for name in ["lost", "stolen", "good"] {
        scene.certificate(&folder, "changing", name).await;
    }
    let listed = |scope: &str| {
        let answer = curl(&[&server.url("/crl/index.json")]);
        let index: Value = serde_json::from_slice(&answer.body).ok()?;
        let mut crls = index["crls"].as_array()?.iter();
        crls.find(|crl| crl["authority"] == "changing" && crl["scope"] == scope).cloned()
    };
    let with = async |entries: u64| {
        eventually("both have the revocations", || async {
            let (full, delta) = (listed("full")?, listed("delta")?);
            let good = [&full, &delta].iter().all(|crl| crl["entries"] == entries);
            (good && full["number"] == delta["number"]).then_some(full["number"].clone())
        })
        .await
    };
    let pem = |url: &str, name: &str| {
        fetch(&folder, &["--fail", "-o", "fetched.der", url]);
        openssl(&folder, &["crl", "-inform", "DER", "-in", "fetched.der", "-out", name]);
        openssl(&folder, &["crl", "-in", name, "-noout", "-text"])
    };
    let first = listed("full").expect("a CRL")["number"].clone();
    scene.revoke("lost").await;
    let second = with(1).await;
    assert_ne!(first, second);
    let told = pem(&server.url("/crl/changing/1.crl"), "old.pem");
    let freshest = told.split_once("X509v3 Freshest CRL:").expect("it names its delta").1;
    let url = freshest.split_once("URI:").expect("a URL").1;
    let url = url.split_whitespace().next().expect("a URL").to_owned();
    assert_eq!(url, server.url("/crl/changing/1/delta.crl"));

    // What came since is on the delta; the complete one that somebody keeps lacks it.
    scene.revoke("stolen").await;
    with(2).await;
    let told = pem(&url, "delta.pem");
    assert!(told.contains("X509v3 Delta CRL Indicator: critical"), "{told}");
    let both = ["old.pem", "delta.pem"].map(|name| fs::read(folder.join(name)).expect("a CRL"));
    fs::write(folder.join("both.pem"), both.concat()).expect("written");
    let verify = |crls: &str, flags: &[&str], name: &str| {
        let leaf = format!("{name}.pem");
        let all = ["verify", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", crls];
        ask(&folder, "openssl", &[&all, flags, &[&leaf]].concat())
    };
    let deltas = ["-extended_crl", "-use_deltas"];
    assert!(verify("old.pem", &deltas, "stolen").0, "the complete one is of before");
    for (name, good) in [("stolen", false), ("lost", false), ("good", true)] {
        let (taken, told) = verify("both.pem", &deltas, name);
        assert_eq!(taken, good, "{name}: {told}");
        assert!(taken || told.contains("error 23"), "{name}: {told}");
    }
    // A delta is no complete CRL: alone it is none at all.
    let (taken, told) = verify("delta.pem", &deltas, "good");
    assert!(!taken && told.contains("error 3 "), "{told}");

    // It goes when it is wanted no more.
    let patch = Patch::Merge(json!({ "spec": { "crl": { "delta": false } } }));
    authorities.patch("changing", &Default::default(), &patch).await.expect("patched");
    eventually("the delta is gone", || async { (curl(&[&url]).status == 404).then_some(()) }).await;
    scene.revoke("good").await;
    eventually("a CRL without a delta", || async {
        let told = pem(&server.url("/crl/changing/1.crl"), "last.pem");
        (!told.contains("Freshest CRL") && told.matches("Serial Number").count() == 3).then_some(())
    })
    .await;
    server.stop();
}
