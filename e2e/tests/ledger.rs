//! The ledger on a real API server: what is lost, damaged, put back or restored, found by its commands and
//! mended; two leaders at once; compaction.

#![allow(missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use countersign::api::condition::{PUBLISHED, READY};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, annotation, label};
use countersign::cluster::ledger::{LedgerHandle, fetch};
use countersign::pki::inspect::inspect_pair;
use countersign::pki::{Serial, crl};
use countersign::plan::ledger::segment::{Chain, Draft, Segment, book, chain, render};
use countersign::plan::ledger::{CaKey, Holder, Issued, Ledger, Record};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use support::control_plane::{ControlPlane, binary};
use support::operator::{NAMESPACE, Operator, control_plane};
use support::{condition, create, delete, eventually, namespace, patch, wait_for};

const AUTHORITY: &str = "{metadata: {name: clients}, spec: {selfSigned: {commonName: Test CA}}}";

struct Scene {
    plane: ControlPlane,
    client: Client,
    namespace: String,
}

/// The published CRL.
struct Crl {
    number: u128,
    position: u64,
    serials: BTreeSet<Serial>,
}

impl Scene {
    /// A control plane with an authority; the operator, which is returned too, works on it.
    async fn new(prefix: &str) -> (Self, Operator) {
        let (plane, client) = control_plane().await;
        let namespace = namespace(&client, prefix).await;
        let operator = Operator::start(&plane);
        let scene = Self { plane, client, namespace };
        create(&scene.authorities(), AUTHORITY).await;
        scene.authority_is("True", "Ready").await;
        (scene, operator)
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

    fn home(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn authority_is(&self, status: &str, reason: &str) -> String {
        let authority = wait_for(&self.authorities(), "clients", READY, status, reason).await;
        let conditions = authority.status.expect("a status").conditions;
        condition(&conditions, READY).expect("the condition").message.clone()
    }

    async fn create(&self, name: &str, more: &str) {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: clients}}, commonName: {name}, \
             secretName: {name}-tls{more}}}}}"
        );
        create::<ClientIdentity>(&self.api(), &yaml).await;
    }

    async fn issued(&self, name: &str, more: &str) -> Secret {
        self.create(name, more).await;
        self.ready(name).await
    }

    async fn ready(&self, name: &str) -> Secret {
        wait_for::<ClientIdentity>(&self.api(), name, READY, "True", "Issued").await;
        self.secret(name).await
    }

    async fn secret(&self, name: &str) -> Secret {
        self.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret")
    }

    /// Revokes an identity's certificates, and waits until a CRL says so.
    async fn revoke(&self, name: &str) {
        let yaml =
            format!("{{metadata: {{name: {name}}}, spec: {{identityRef: {{name: {name}}}}}}}");
        let api: Api<CertificateRevocation> = self.api();
        create(&api, &yaml).await;
        wait_for(&api, name, PUBLISHED, "True", "Published").await;
    }

    async fn crl(&self) -> Crl {
        let head = self.home().get("crl-clients-1").await.expect("a CRL");
        let position = head.annotations()[annotation::LEDGER_POSITION].parse().expect("a number");
        let facts = crl::read(&head.binary_data.expect("data")["crl.der"].0).expect("a CRL");
        Crl { number: facts.number.0, position, serials: facts.serials.into_iter().collect() }
    }

    async fn segments(&self) -> (Vec<Segment>, Chain) {
        let found = fetch(&self.client, NAMESPACE, Some(&key())).await.expect("an answer");
        let mut segments = found.into_values().next().unwrap_or_default();
        let chain = chain(&mut segments);
        (segments, chain)
    }

    async fn ledger(&self) -> Ledger {
        let (segments, chain) = self.segments().await;
        assert_eq!(chain.troubles, []);
        book(&segments)
    }

    /// Runs `countersign ledger`; whether it succeeded, and what it printed.
    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(binary())
            .arg("ledger")
            .args(arguments)
            .env("KUBECONFIG", self.plane.kubeconfig("admin"))
            .env_remove("POD_NAMESPACE")
            .output()
            .expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn good(&self, arguments: &[&str]) -> String {
        let (good, text) = self.run(arguments);
        assert!(good, "countersign ledger {arguments:?}: {text}");
        text
    }

    fn bad(&self, arguments: &[&str]) -> String {
        let (good, text) = self.run(arguments);
        assert!(!good, "countersign ledger {arguments:?} succeeded: {text}");
        text
    }

    /// Cuts the only segment in pieces, as if they had been sealed when they were smaller.
    async fn cut(&self, at: &[usize]) -> Vec<ConfigMap> {
        let (segments, _) = self.segments().await;
        let [whole] = segments.as_slice() else { panic!("{} segments", segments.len()) };
        self.home().delete(&whole.name, &DeleteParams::default()).await.expect("deleted");
        let ends = at.iter().copied().chain([whole.records.len()]);
        let (mut start, mut written) = (0, Vec::new());
        for (number, end) in (1..).zip(ends) {
            let mut bytes = Vec::new();
            whole.records[start..end].iter().for_each(|record| record.encode(&mut bytes));
            let range = start as u64..end as u64;
            let draft = Draft { number, range, bytes, ..Draft::default() };
            written.push(self.put_back(&render(&key(), NAMESPACE, &draft)).await);
            start = end;
        }
        written
    }

    /// Puts an older version of an object back, whatever stands there now.
    async fn put_back(&self, config_map: &ConfigMap) -> ConfigMap {
        let mut wanted = config_map.clone();
        wanted.metadata.uid = None;
        wanted.metadata.managed_fields = None;
        let present = self.home().get_opt(&wanted.name_any()).await.expect("an answer");
        wanted.metadata.resource_version = present.and_then(|present| present.resource_version());
        let params = PostParams::default();
        let written = match wanted.metadata.resource_version {
            Some(_) => self.home().replace(&wanted.name_any(), &params, &wanted).await,
            None => self.home().create(&params, &wanted).await,
        };
        written.expect("written")
    }

    async fn last_segment(&self) -> ConfigMap {
        let (segments, _) = self.segments().await;
        self.home().get(&segments.last().expect("a segment").name).await.expect("it exists")
    }
}

fn key() -> CaKey {
    CaKey::first("clients")
}

/// The serial in a Secret, after checking that key, leaf and annotations belong together.
fn serial_of(secret: &Secret) -> Serial {
    let data = secret.data.as_ref().expect("data");
    let facts = inspect_pair(&data["tls.crt"].0, &data["tls.key"].0).expect("key and leaf match");
    assert_eq!(secret.annotations()[annotation::SERIAL], facts.serial.to_string());
    facts.serial
}

/// An object as a backup brings it back: without UID, owners and status.
fn backup<K: ResourceExt + Clone>(object: &K) -> K {
    let mut restored = object.clone();
    let metadata = restored.meta_mut();
    metadata.uid = None;
    metadata.resource_version = None;
    metadata.owner_references = None;
    metadata.managed_fields = None;
    metadata.creation_timestamp = None;
    metadata.generation = None;
    restored
}

#[tokio::test]
async fn a_certificate_is_found_by_whatever_is_known_of_it() {
    let (scene, _operator) = Scene::new("find").await;
    let more = ", subject: {organizations: [Example]}";
    let secret = scene.issued("laptop", more).await;
    scene.issued("desk", "").await;
    let serial = serial_of(&secret).to_string();
    let fingerprint = secret.annotations()[annotation::FINGERPRINT].clone();
    let of = format!("{}/laptop", scene.namespace);
    // The fingerprint comes later, with other records or after a short while.
    eventually("the fingerprints are recorded", || async {
        let ledger = scene.ledger().await;
        let known = ledger.issued().filter(|one| ledger.fingerprint(&one.serial).is_some());
        (known.count() == 2).then_some(())
    })
    .await;
    scene.revoke("desk").await;
    for by in [
        ["--serial", &serial],
        ["--fingerprint", &fingerprint.to_uppercase()],
        ["--identity", &of],
        ["--subject", "CN=laptop,O=Example"],
    ] {
        let told = scene.good(&["find", by[0], by[1]]);
        assert!(told.contains(&serial) && told.contains(&of) && told.contains(" live "), "{told}");
        assert!(!told.contains("desk"), "{told}");
        let told = scene.good(&["find", by[0], by[1], "--output", "json"]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told[0]["fingerprint"], fingerprint.as_str());
        assert_eq!(told[0]["subject"], "CN=laptop,O=Example");
    }
    assert!(scene.bad(&["find", "--serial", "0a"]).contains("no such certificate"));
    assert!(scene.bad(&["find"]).contains("--serial"), "it says what it can be asked for");
    let desk = scene.good(&["find", "--subject", "CN=desk"]);
    assert!(desk.contains(" revoked 20"), "{desk}");

    // Also when it is gone.
    delete::<ClientIdentity>(&scene.api(), "laptop").await;
    eventually("it is revoked", || async {
        let told = scene.good(&["find", "--identity", &of]);
        told.contains("CessationOfOperation").then_some(())
    })
    .await;
    let show: serde_json::Value =
        serde_json::from_str(&scene.good(&["show", "-o", "json"])).expect("JSON");
    assert_eq!((&show[0]["live"], &show[0]["revoked"]), (&json!(0), &json!(2)));
    assert_eq!((&show[0]["segments"], &show[0]["trouble"]), (&json!(1), &json!(null)));
    let table = scene.good(&["show"]);
    assert!(table.contains("clients/1") && table.contains("whole"), "{table}");
    let export = scene.good(&["export"]);
    let records: Vec<serde_json::Value> =
        export.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let positions: Vec<_> = records.iter().map(|one| one["position"].as_u64()).collect();
    let expected: Vec<_> = (0..records.len() as u64).map(Some).collect();
    assert_eq!(positions, expected);
    assert_eq!(show[0]["records"], json!(records.len()));
    let told = scene.good(&["verify"]);
    assert!(told.contains("clients/1: whole"), "{told}");
}

#[tokio::test]
async fn fingerprints_cost_a_bulk_of_issuances_no_writes_of_their_own() {
    let (scene, _operator) = Scene::new("bulk").await;
    let writes = || {
        let writes = scene.plane.writes("operator");
        writes.iter().filter(|write| write.name.contains("/ledger-clients")).count()
    };
    let before = writes();
    for number in 0..100 {
        scene.create(&format!("client-{number}"), "").await;
    }
    for number in 0..100 {
        scene.ready(&format!("client-{number}")).await;
    }
    eventually("all fingerprints are recorded", || async {
        let ledger = scene.ledger().await;
        let known = ledger.issued().filter(|one| ledger.fingerprint(&one.serial).is_some());
        (known.count() == 100).then_some(())
    })
    .await;
    let cost = writes() - before;
    assert!(cost <= 100, "{cost} writes of the ledger for 100 certificates");
    println!("{cost} writes of the ledger for 100 certificates");
}

#[tokio::test]
async fn a_restored_backup_goes_on_with_its_certificates() {
    let (scene, operator) = Scene::new("restore").await;
    let (identities, secrets) = (scene.api::<ClientIdentity>(), scene.api::<Secret>());
    let names = ["laptop", "kept", "spoilt", "revoked", "lost"];
    let mut before = BTreeMap::new();
    for name in names {
        let more = if name == "kept" { ", deletionPolicy: Retain" } else { "" };
        before.insert(name, scene.issued(name, more).await);
    }
    scene.revoke("revoked").await;
    let serial = |name: &str| serial_of(&before[name]);
    // A renewal, so that there is a revision that must not be given twice.
    let now = Timestamp::now().to_string();
    let notes = json!({"metadata": {"annotations": {annotation::RENEW_REQUESTED_AT: now}}});
    patch(&identities, "laptop", notes).await;
    let laptop = eventually("the renewal", || async {
        let secret = scene.secret("laptop").await;
        (serial_of(&secret) != serial("laptop")).then_some(secret)
    })
    .await;
    before.insert("laptop", laptop);
    let serial = |name: &str| serial_of(&before[name]);
    scene.ready("laptop").await;
    let known: Vec<_> = identities.list(&ListParams::default()).await.expect("an answer").items;
    assert!(operator.stop().success());

    // The cluster is lost, and so are all identities and Secrets of the namespace. One is not in the backup.
    for name in names {
        delete(&identities, name).await;
        delete(&secrets, &format!("{name}-tls")).await;
    }
    delete::<CertificateRevocation>(&scene.api(), "revoked").await;
    // Secrets come back first, and the operator is there before the identities are.
    for (name, secret) in before.iter().filter(|(name, _)| **name != "lost") {
        let mut restored = backup(secret);
        if *name == "spoilt" {
            let data = restored.data.as_mut().expect("data");
            data.insert(
                "tls.key".into(),
                before["laptop"].data.as_ref().unwrap()["tls.key"].clone(),
            );
        }
        secrets.create(&PostParams::default(), &restored).await.expect("restored");
    }
    let operator = Operator::start(&scene.plane);
    eventually("what is not in the backup is revoked", || async {
        scene.crl().await.serials.contains(&serial("lost")).then_some(())
    })
    .await;
    let crl = scene.crl().await;
    for name in ["laptop", "kept", "spoilt"] {
        assert!(!crl.serials.contains(&serial(name)), "{name} was revoked during the restore");
    }

    for identity in known.iter().filter(|identity| identity.name_any() != "lost") {
        identities.create(&PostParams::default(), &backup(identity)).await.expect("restored");
    }
    // Somebody has another identity reach for a certificate that is not its own.
    let mut stolen = backup(&before["laptop"]);
    stolen.metadata.name = Some("thief-tls".into());
    let notes = stolen.metadata.annotations.as_mut().expect("annotations");
    notes.insert(annotation::IDENTITY.into(), "thief".into());
    secrets.create(&PostParams::default(), &stolen).await.expect("created");
    scene.create("thief", "").await;

    for name in ["laptop", "kept"] {
        let restored = scene.ready(name).await;
        assert_eq!(serial_of(&restored), serial(name), "{name} goes on with its certificate");
        let uid = identities.get(name).await.expect("it exists").uid().expect("a UID");
        let ledger = scene.ledger().await;
        let record = ledger.find(&serial(name)).expect("recorded");
        assert_eq!(*record.holder.uid, *uid);
        assert_eq!(record.retain, name == "kept");
        let owners = eventually("the Secret has its owner again", || async {
            let owners = scene.secret(name).await.metadata.owner_references.unwrap_or_default();
            (name == "kept" || !owners.is_empty()).then_some(owners)
        })
        .await;
        assert!(owners.iter().all(|owner| owner.uid == uid));
    }
    let status = identities.get("laptop").await.expect("it exists").status.expect("a status");
    assert_eq!(status.revision, Some(2));
    for name in ["spoilt", "revoked", "thief"] {
        let secret = eventually("a certificate of its own", || async {
            scene.ready(name).await;
            let secret = scene.secret(name).await;
            let theirs = before.get(name).unwrap_or(&before["laptop"]);
            (secret.annotations()[annotation::SERIAL] != theirs.annotations()[annotation::SERIAL])
                .then_some(secret)
        })
        .await;
        serial_of(&secret);
    }
    eventually("the certificate whose key was lost is revoked", || async {
        scene.crl().await.serials.contains(&serial("spoilt")).then_some(())
    })
    .await;
    let crl = scene.crl().await;
    assert!(!crl.serials.contains(&serial("laptop")) && !crl.serials.contains(&serial("kept")));

    // Nothing moves after a restart, and the end of the identity is still the end of its certificate.
    assert!(operator.stop().success());
    let _operator = Operator::start(&scene.plane);
    delete(&identities, "laptop").await;
    eventually("the restored identity's certificate is revoked with it", || async {
        scene.crl().await.serials.contains(&serial("laptop")).then_some(())
    })
    .await;
    assert_eq!(serial_of(&scene.secret("kept").await), serial("kept"));
}

#[tokio::test]
async fn a_deleted_segment_stops_crls_until_it_is_back_or_given_up() {
    let (scene, operator) = Scene::new("deleted").await;
    for name in ["a", "b", "c", "d"] {
        scene.issued(name, "").await;
    }
    scene.revoke("a").await;
    scene.revoke("b").await;
    let revoked = scene.crl().await.serials;
    assert!(operator.stop().success());
    let (_, whole) = scene.segments().await;
    assert!(whole.position >= 6, "{whole:?}");
    let pieces = scene.cut(&[2, 4]).await;
    scene.good(&["verify"]);

    // A sealed one is deleted.
    scene.home().delete(&pieces[1].name_any(), &DeleteParams::default()).await.expect("deleted");
    let told = scene.bad(&["verify"]);
    assert!(
        told.contains("record(s) 2 to 3 are missing before ConfigMap ledger-clients-1-000003"),
        "{told}"
    );
    let crl = scene.crl().await;
    let operator = Operator::start(&scene.plane);
    let message = scene.authority_is("False", "LedgerDamaged").await;
    assert!(
        message.contains("record(s) 2 to 3") && message.contains("ledger recover"),
        "{message}"
    );
    // All else works, and the CRL stays as it is.
    scene.issued("e", "").await;
    assert_eq!(scene.crl().await.number, crl.number);
    let pieces_again = scene.put_back(&pieces[1]).await;
    scene.authority_is("True", "Ready").await;
    scene.good(&["verify"]);
    scene.revoke("e").await;
    assert!(scene.crl().await.number > crl.number);

    // Deleted again, and there is no backup. Behind the operator's back: it finds out when it looks.
    assert!(operator.stop().success());
    scene.home().delete(&pieces_again.name_any(), &DeleteParams::default()).await.expect("deleted");
    let operator = Operator::start(&scene.plane);
    scene.authority_is("False", "LedgerDamaged").await;
    let before = scene.crl().await;
    let dry =
        scene.good(&["recover", "--authority", "clients", "--from-crl", "published", "--dry-run"]);
    assert!(dry.contains("would accept in ConfigMap ledger-clients-1-000003"), "{dry}");
    assert!(scene.run(&["verify"]).1.contains("2 to 3"), "a dry run writes nothing");
    let told = scene.good(&["recover", "--authority", "clients", "--from-crl", "published"]);
    assert!(told.contains("accepted in ConfigMap ledger-clients-1-000003"), "{told}");
    scene.authority_is("True", "Ready").await;
    scene.good(&["verify"]);
    scene.issued("f", "").await;
    scene.revoke("f").await;
    let after = scene.crl().await;
    assert!(after.number > before.number && after.position > before.position);
    assert!(after.serials.is_superset(&revoked) && after.serials.is_superset(&before.serials));
    // What stands in Secrets is recorded again.
    for name in ["c", "d"] {
        let serial = serial_of(&scene.secret(name).await);
        eventually("it is recorded again", || async {
            scene.ledger().await.find(&serial).map(|_| ())
        })
        .await;
    }
    operator.kill();
}

#[tokio::test]
async fn a_lost_ledger_is_recovered_from_a_crl_that_the_ca_signed() {
    let (scene, operator) = Scene::new("lost").await;
    for name in ["a", "b"] {
        scene.issued(name, "").await;
        scene.revoke(name).await;
    }
    let crl = scene.crl().await;
    let head = scene.home().get("crl-clients-1").await.expect("a CRL");
    let file = scene.plane.folder().join("saved.crl");
    let der = head.binary_data.as_ref().expect("data")["crl.der"].0.clone();
    std::fs::write(&file, &der).expect("written");
    let mut forged = der;
    *forged.last_mut().expect("not empty") ^= 1;
    let forgery = scene.plane.folder().join("forged.crl");
    std::fs::write(&forgery, &forged).expect("written");
    operator.kill();
    let all = ListParams::default().labels(&format!("{}=ledger", label::COMPONENT));
    scene.home().delete_collection(&DeleteParams::default(), &all).await.expect("deleted");

    let operator = Operator::start(&scene.plane);
    let message = scene.authority_is("False", "FreshnessGuard").await;
    assert!(message.contains("before record 0"), "{message}");
    let told = scene.bad(&["verify"]);
    assert!(told.contains("2 serial(s) of the published CRL are not recorded"), "{told}");
    let from = |file: &std::path::Path| {
        let file = file.to_str().expect("a path").to_owned();
        ["recover".into(), "--authority".into(), "clients".into(), "--from-crl".into(), file]
    };
    let refused: [String; 5] = from(&forgery);
    let told = scene.bad(&refused.each_ref().map(String::as_str));
    assert!(told.contains("not signed by the CA"), "{told}");
    let good: [String; 5] = from(&file);
    let told = scene.good(&good.each_ref().map(String::as_str));
    assert!(told.contains("recorded 2 revocation(s)"), "{told}");
    scene.authority_is("True", "Ready").await;
    scene.good(&["verify"]);
    scene.issued("c", "").await;
    scene.revoke("c").await;
    let after = scene.crl().await;
    assert!(after.serials.is_superset(&crl.serials) && after.serials.len() == 3);
    assert!(after.number > crl.number && after.position > crl.position);
    // Twice does no harm.
    assert!(scene.good(&good.each_ref().map(String::as_str)).contains("recorded 0"));
    operator.kill();
}

#[tokio::test]
async fn an_older_version_of_a_segment_is_found_out() {
    let (scene, operator) = Scene::new("older").await;
    scene.issued("a", "").await;
    scene.issued("b", "").await;
    scene.revoke("a").await;
    let older = scene.last_segment().await;
    scene.revoke("b").await;
    scene.issued("c", "").await;
    assert!(operator.stop().success());
    let newest = scene.last_segment().await;
    let crl = scene.crl().await;

    // The open one, while nobody looks.
    scene.put_back(&older).await;
    let told = scene.bad(&["verify"]);
    assert!(told.contains("and the published CRL was made when it held"), "{told}");
    let operator = Operator::start(&scene.plane);
    // What stands in a Secret is recorded again, behind the gap.
    let message = scene.authority_is("False", "LedgerDamaged").await;
    assert!(message.contains("are missing before ConfigMap"), "{message}");
    assert_eq!(scene.crl().await.number, crl.number);
    scene.put_back(&newest).await;
    scene.authority_is("True", "Ready").await;

    // The same under a running operator, which remembers: the next append finds it out.
    scene.put_back(&older).await;
    scene.issued("d", "").await;
    let message = scene.authority_is("False", "LedgerDamaged").await;
    assert!(message.contains("are missing"), "{message}");
    scene.bad(&["verify"]);
    scene.put_back(&newest).await;
    scene.good(&["recover", "--authority", "clients", "--from-crl", "published"]);
    scene.authority_is("True", "Ready").await;
    scene.good(&["verify"]);
    scene.revoke("d").await;
    assert!(scene.crl().await.serials.is_superset(&crl.serials));
    operator.kill();
}

#[tokio::test]
async fn an_older_version_of_a_sealed_segment_is_found_out() {
    let (scene, operator) = Scene::new("sealed").await;
    for name in ["a", "b", "c"] {
        scene.issued(name, "").await;
    }
    scene.revoke("a").await;
    operator.kill();
    let pieces = scene.cut(&[3]).await;
    let (segments, _) = scene.segments().await;
    let mut bytes = Vec::new();
    segments[0].records[..2].iter().for_each(|record| record.encode(&mut bytes));
    let draft = Draft { number: 1, range: 0..2, bytes, ..Draft::default() };
    scene.put_back(&render(&key(), NAMESPACE, &draft)).await;
    let told = scene.bad(&["verify"]);
    assert!(told.contains("record(s) 2 to 2 are missing"), "{told}");
    let operator = Operator::start(&scene.plane);
    scene.authority_is("False", "LedgerDamaged").await;
    scene.put_back(&pieces[0]).await;
    scene.authority_is("True", "Ready").await;
    operator.kill();
}

#[tokio::test]
async fn a_damaged_segment_stops_the_crl_of_its_ca_and_nothing_else() {
    let (scene, operator) = Scene::new("damaged").await;
    create(&scene.authorities(), &AUTHORITY.replace("name: clients", "name: others")).await;
    wait_for(&scene.authorities(), "others", READY, "True", "Ready").await;
    scene.issued("a", "").await;
    scene.revoke("a").await;
    operator.kill();
    let mut segment = scene.last_segment().await;
    let bytes = &mut segment.binary_data.as_mut().expect("data").get_mut("records").unwrap().0;
    bytes.extend([77, 0, 0]);
    scene.put_back(&segment).await;

    let operator = Operator::start(&scene.plane);
    let message = scene.authority_is("False", "LedgerDamaged").await;
    assert!(
        message.contains("ledger-clients-1-000001") && message.contains("kind 77"),
        "{message}"
    );
    let told = scene.bad(&["verify"]);
    assert!(told.contains("clients/1: ConfigMap ledger-clients-1-000001 can't be read"), "{told}");
    let crl = scene.crl().await;
    scene.issued("b", "").await;
    create::<ClientIdentity>(
        &scene.api(),
        "{metadata: {name: c}, spec: {authorityRef: {name: others}, commonName: c, secretName: c-tls}}",
    )
    .await;
    scene.ready("c").await;
    scene.revoke("c").await;
    assert_eq!(scene.crl().await.number, crl.number);
    // Metrics say which guard it was.
    let address = format!("http://127.0.0.1:{}/metrics", operator.health_port);
    let metrics = support::run("curl", &["-sS", &address], "");
    let family = "countersign_crl_guard_trips_total{authority=\"clients\",guard=\"LedgerDamaged\"}";
    assert!(metrics.contains(family), "{metrics}");

    scene.good(&["recover", "--authority", "clients", "--from-crl", "published"]);
    scene.authority_is("True", "Ready").await;
    scene.revoke("b").await;
    scene.good(&["verify"]);
    operator.kill();
}

#[tokio::test]
async fn two_leaders_at_once_lose_no_record_and_publish_nothing_older() {
    const IDENTITIES: usize = 60;
    let (scene, first) = Scene::new("leaders").await;
    let second = Operator::start_as(&scene.plane, "second", &["--lease-name", "another"]);
    eventually("the second leads too", || async {
        second.log().contains("became leader").then_some(())
    })
    .await;
    let watch = tokio::spawn(watch_crl(scene.home()));
    for number in 0..IDENTITIES {
        scene.create(&format!("client-{number}"), "").await;
    }
    for number in 0..IDENTITIES {
        scene.ready(&format!("client-{number}")).await;
        if number % 3 == 0 {
            let name = format!("client-{number}");
            delete::<ClientIdentity>(&scene.api(), &name).await;
        }
    }
    let expected = IDENTITIES.div_ceil(3);
    eventually("all that is deleted is revoked", || async {
        (scene.crl().await.serials.len() >= expected).then_some(())
    })
    .await;
    for number in (0..IDENTITIES).filter(|number| number % 3 != 0) {
        scene.ready(&format!("client-{number}")).await;
    }
    scene.good(&["verify"]);
    watch.abort();
    let watched = watch.await.expect_err("it watches until it is told to stop");
    assert!(watched.is_cancelled(), "{watched}");
    let ledger = scene.ledger().await;
    let crl = scene.crl().await;
    for number in (0..IDENTITIES).filter(|number| number % 3 != 0) {
        let serial = serial_of(&scene.secret(&format!("client-{number}")).await);
        assert!(ledger.find(&serial).is_some(), "a visible certificate is not recorded");
        assert!(!crl.serials.contains(&serial));
    }
    let (segments, chain) = scene.segments().await;
    let records: usize = segments.iter().map(|segment| segment.records.len()).sum();
    assert_eq!(records as u64, chain.position);
    for operator in [&first, &second] {
        assert!(operator.log().contains("reading the ledger again"), "they never met");
    }
    println!("{records} records of two leaders in {} segments", segments.len());
}

/// Follows the published CRL: its number rises, and what it is made from never gets older.
async fn watch_crl(api: Api<ConfigMap>) {
    let (mut number, mut position) = (0, 0);
    let mut serials = BTreeSet::new();
    loop {
        if let Ok(Some(head)) = api.get_opt("crl-clients-1").await {
            let noted: u64 = head.annotations()[annotation::LEDGER_POSITION].parse().unwrap();
            let facts = crl::read(&head.binary_data.unwrap()["crl.der"].0).unwrap();
            assert!(facts.number.0 >= number, "the number fell");
            assert!(noted >= position, "a CRL was made from an older ledger: {noted} < {position}");
            let now: BTreeSet<_> = facts.serials.into_iter().collect();
            assert!(now.is_superset(&serials), "a CRL shrank");
            (number, position, serials) = (facts.number.0, noted, now);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn handles_that_append_at_once_lose_nothing_and_repeat_nothing() {
    let (scene, operator) = Scene::new("append").await;
    operator.kill();
    let (records, handles) = (40, 4);
    let mut tasks = Vec::new();
    for handle in 0..handles {
        let ledger = LedgerHandle::load(scene.client.clone(), NAMESPACE).await.expect("a ledger");
        tasks.push(tokio::spawn(async move {
            for number in 0..records {
                // Every other record is one that all have.
                let serial = if number % 2 == 0 { number } else { number + 1000 * (handle + 1) };
                let revoked = countersign::plan::ledger::Revoked {
                    serial: format!("{:06x}", serial + 1).parse().unwrap(),
                    revoked_at: Timestamp::UNIX_EPOCH,
                    reason: None,
                };
                // A conflict too many is told, and the caller comes again.
                while ledger.record(&key(), vec![Record::Revoked(revoked)]).await.is_err() {}
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let (segments, chain) = scene.segments().await;
    assert_eq!(chain.troubles, []);
    let all: Vec<Serial> =
        segments.iter().flat_map(|segment| &segment.records).map(Record::serial).collect();
    let distinct: BTreeSet<_> = all.iter().copied().collect();
    let expected = records / 2 + handles * records / 2;
    assert_eq!((all.len(), distinct.len()), (expected as usize, expected as usize));
}

/// libfaketime, which Debian's package `faketime` brings, for a process whose clock is ahead.
fn ahead(days: u32) -> [(&'static str, String); 3] {
    let candidates = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|of| format!("/usr/lib/{of}/faketime/libfaketime.so.1"));
    let library = candidates.into_iter().find(|path| std::path::Path::new(path).exists());
    [
        ("LD_PRELOAD", library.expect("faketime is installed; `make test` installs it")),
        ("FAKETIME", format!("+{days}d")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

/// A certificate of an identity that nobody remembers.
fn long_gone() -> Issued {
    Issued {
        serial: Serial::random(),
        revision: 1,
        not_after: Timestamp::UNIX_EPOCH,
        holder: Holder { uid: "gone".into(), namespace: "gone".into(), name: "gone".into() },
        subject: Some("CN=gone,O=An organization of some kind".into()),
        issued_at: Some(Timestamp::UNIX_EPOCH),
        supersedes: 0,
        retain: false,
    }
}

#[tokio::test]
async fn what_expired_leaves_the_ledger_after_it_left_the_crl() {
    const IDENTITIES: usize = 30;
    let (scene, operator) = Scene::new("compact").await;
    let names: Vec<_> = (0..IDENTITIES).map(|number| format!("client-{number}")).collect();
    for name in &names {
        scene.create(name, ", duration: 1h").await;
    }
    for name in &names {
        scene.ready(name).await;
    }
    let (gone, stay) = names.split_at(IDENTITIES - 3);
    for name in gone {
        delete::<ClientIdentity>(&scene.api(), name).await;
    }
    eventually("all that is deleted is revoked", || async {
        (scene.crl().await.serials.len() == gone.len()).then_some(())
    })
    .await;
    assert!(operator.stop().success());
    // Many more that are gone for long, so that the segment is sealed, and one that opens the next.
    let handle = LedgerHandle::load(scene.client.clone(), NAMESPACE).await.expect("a ledger");
    for count in [300, 1] {
        let old = (0..count).map(|_| Record::Issued(long_gone())).collect();
        handle.record(&key(), old).await.expect("recorded");
    }
    let (segments, before) = scene.segments().await;
    assert_eq!(segments.len(), 2);
    let revoked = scene.crl().await.serials;

    // Days later: a first CRL still has them, a second one does not.
    let start = |days: u32, replica: &str| {
        let environment = ahead(days);
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        Operator::start_in(&scene.plane, replica, &[], &environment)
    };
    let operator = start(3, "days-3");
    eventually("a CRL of that day", || async {
        let crl = scene.home().get("crl-clients-1").await.expect("a CRL");
        let facts = crl::read(&crl.binary_data.unwrap()["crl.der"].0).expect("a CRL");
        (facts.this_update > Timestamp::now() + jiff::SignedDuration::from_hours(48)).then_some(())
    })
    .await;
    assert!(scene.crl().await.serials.is_superset(&revoked), "it stood in no CRL of after its end");
    operator.kill();
    let operator = start(4, "days-4");
    eventually("a CRL without what expired", || async {
        scene.crl().await.serials.is_disjoint(&revoked).then_some(())
    })
    .await;
    for name in stay {
        eventually("it is renewed", || async {
            let secret = scene.secret(name).await;
            (secret.annotations()[annotation::REVISION] != "1").then_some(())
        })
        .await;
    }
    // A new leader compacts after a minute.
    let patience = std::time::Instant::now();
    while !operator.log().contains("compacted the ledger") {
        let log = || operator.log();
        assert!(patience.elapsed() < Duration::from_secs(120), "nothing was compacted: {}", log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (segments, after) = scene.segments().await;
    assert_eq!(after.troubles, []);
    assert!(after.position >= before.position);
    let ledger = book(&segments);
    let records: usize = segments.iter().map(|segment| segment.records.len()).sum();
    assert!((records as u64) < before.position, "{records} records are left");
    for serial in &revoked {
        // Without its issuance nobody would know when it expired, and it would come back into the CRL.
        assert!(ledger.revocation(serial).is_none() || ledger.find(serial).is_some(), "{serial}");
    }
    let forgotten = revoked.iter().filter(|serial| ledger.find(serial).is_none()).count();
    assert!(forgotten > 0, "nothing was forgotten");
    for name in stay {
        let uid = scene.api::<ClientIdentity>().get(name).await.unwrap().uid().expect("a UID");
        let secret = scene.secret(name).await;
        let revision = ledger.last_revision(&uid).to_string();
        assert_eq!(secret.annotations()[annotation::REVISION], revision);
    }
    scene.good(&["verify"]);
    let told = scene.good(&["show"]);
    println!("{} positions, {records} records left\n{told}", after.position);
    // What is left is enough to go on.
    scene.revoke(&stay[0]).await;
    operator.kill();
}
