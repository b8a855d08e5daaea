//! A CRL that fits no ConfigMap, published on a real kube-apiserver: in parts, of which one more
//! revocation rewrites one.

#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;

use countersign::api::condition::{PUBLISHED, READY};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity};
use countersign::cluster::ledger::LedgerHandle;
use countersign::pki::crl::{self, CrlFacts};
use countersign::pki::{CertificateAuthority, Serial};
use countersign::plan::ledger::{CaKey, Record, Revoked};
use countersign::plan::publication::{assemble, part_bytes, part_names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use support::control_plane::ControlPlane;
use support::operator::{NAMESPACE, Operator, control_plane};
use support::{create, delete, eventually, namespace, wait_for};

/// 49 octets each: more than an object holds, and several parts.
const REVOKED: usize = 30_000;

/// The published CRL and its parts, by their names, with their UIDs.
struct Seen {
    der: Vec<u8>,
    facts: CrlFacts,
    parts: Vec<String>,
    uids: BTreeMap<String, String>,
}

async fn seen(client: &Client) -> Option<Seen> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let head = api.get("crl-clients-1").await.expect("a head");
    let found = api.list(&ListParams::default().labels("countersign.dev/component=crl-part")).await;
    let found = found.expect("the API server answers").items;
    let parts = part_names(&key(), &head);
    // None while a part is missing, or was when it was listed.
    let der = assemble(&key(), &head, |name| {
        found.iter().find(|part| part.name_any() == name).and_then(part_bytes)
    });
    let der = der.ok()?;
    let uids = found.iter().map(|part| (part.name_any(), part.uid().unwrap_or_default()));
    Some(Seen { facts: crl::read(&der).expect("a CRL"), der, parts, uids: uids.collect() })
}

fn key() -> CaKey {
    CaKey::first("clients")
}

#[tokio::test]
async fn a_crl_that_outgrew_an_object_is_published_in_parts() {
    let (plane, client) = control_plane().await;
    let operator = Operator::start(&plane);
    let authorities: Api<ClientAuthority> = Api::all(client.clone());
    create(&authorities, "{metadata: {name: clients}, spec: {selfSigned: {commonName: Test CA}}}")
        .await;
    wait_for(&authorities, "clients", READY, "True", "Ready").await;
    let ns = namespace(&client, "large").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    create(
        &identities,
        "{metadata: {name: laptop}, spec: {authorityRef: {name: clients}, commonName: laptop, secretName: laptop}}",
    )
    .await;
    wait_for(&identities, "laptop", READY, "True", "Issued").await;
    operator.stop();

    // Years of revocations, by way of the ledger: of certificates whose end nobody knows.
    let ledger = LedgerHandle::load(client.clone(), NAMESPACE).await.expect("a ledger");
    let revoked_at = Timestamp::from_second(1_790_000_000).expect("a time");
    let revoked = |reason| Revoked { serial: Serial::random(), revoked_at, reason };
    let records = (0..REVOKED).map(|number| Record::Revoked(revoked(Some([1, 4, 5][number % 3]))));
    ledger.record(&key(), records.collect()).await.expect("recorded");
    drop(ledger);

    let operator = Operator::start(&plane);
    let first = eventually("the CRL is published in parts", || async {
        seen(&client).await.filter(|seen| seen.facts.serials.len() == REVOKED)
    })
    .await;
    assert!(first.der.len() > 1 << 20 && first.parts.len() > 2, "{} octets", first.der.len());
    openssl_takes(&plane, &client, &first.der).await;

    // One more: one part and the head.
    wait_for(&authorities, "clients", READY, "True", "Ready").await;
    let before = plane.writes("operator").len();
    let revocations: Api<CertificateRevocation> = Api::namespaced(client.clone(), &ns);
    create(
        &revocations,
        "{metadata: {name: stolen}, spec: {identityRef: {name: laptop}, reason: KeyCompromise}}",
    )
    .await;
    wait_for(&revocations, "stolen", PUBLISHED, "True", "Published").await;
    let second = seen(&client).await.expect("whole");
    assert_eq!(second.facts.serials.len(), REVOKED + 1);
    assert!(second.facts.number > first.facts.number);
    let kept = second.parts.iter().filter(|part| first.parts.contains(part));
    let same = kept.clone().filter(|part| first.uids[*part] == second.uids[*part]);
    assert_eq!(kept.count(), first.parts.len() - 1, "one part changed");
    assert_eq!(same.count(), first.parts.len() - 1, "the others were not written again");
    assert_eq!(crl_writes(&plane, before).await, [("create", true), ("update", false)]);
    openssl_takes(&plane, &client, &second.der).await;

    // After a restart it is read together again, and nothing is written.
    operator.stop();
    let before = plane.writes("operator").len();
    let operator = Operator::start(&plane);
    eventually("the operator has looked at the authority", || async {
        operator.log().matches("watches are complete").nth(2).map(drop)
    })
    .await;
    // A part that somebody deletes comes back with the next CRL.
    let parts: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    delete(&parts, &second.parts[0]).await;
    let third = eventually("the CRL is whole again", || async {
        seen(&client).await.filter(|seen| seen.facts.number > second.facts.number)
    })
    .await;
    assert_eq!(third.facts.serials, second.facts.serials);
    assert_eq!(third.parts, second.parts, "the same entries make the same parts");
    let writes = crl_writes(&plane, before).await;
    assert_eq!(
        writes,
        [("create", true), ("update", false)],
        "nothing was written for the restart"
    );
}

/// What the operator wrote of CRLs since then, up to a head: the verb, and whether it was a part.
async fn crl_writes(plane: &ControlPlane, before: usize) -> Vec<(&'static str, bool)> {
    eventually("a CRL is published", || async {
        let writes = plane.writes("operator").split_off(before);
        let verb = |verb: &str| if verb == "create" { "create" } else { "update" };
        let writes: Vec<_> = writes
            .iter()
            .filter(|write| {
                write.resource == "configmaps" && write.name.starts_with("countersign/crl-")
            })
            .map(|write| (verb(&write.verb), write.name.starts_with("countersign/crl-part-")))
            .collect();
        writes.iter().any(|(_, part)| !part).then_some(writes)
    })
    .await
}

async fn openssl_takes(plane: &ControlPlane, client: &Client, der: &[u8]) {
    use k8s_openapi::api::core::v1::Secret;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let data = secrets.get("ca-clients-1").await.expect("a CA").data.expect("data");
    let [chain, key] = ["tls.crt", "tls.key"].map(|name| String::from_utf8(data[name].0.clone()));
    let ca = CertificateAuthority::from_pem(&chain.expect("text"), &key.expect("text"));
    crl::lint::lint(der, ca.expect("a CA").facts()).expect("it keeps the rules");
    let folder = plane.folder();
    std::fs::write(folder.join("large.crl"), der).expect("written");
    std::fs::write(folder.join("large-ca.pem"), &data["tls.crt"].0).expect("written");
    let told = support::openssl(
        folder,
        &["crl", "-inform", "DER", "-in", "large.crl", "-CAfile", "large-ca.pem", "-noout"],
    );
    assert!(told.contains("verify OK"), "{told}");
}
