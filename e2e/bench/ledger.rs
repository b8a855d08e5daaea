//! Serials recorded per second, by group commit and by a write for each, through a real API server.

#![allow(missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use countersign::cluster::ledger::{LedgerHandle, fetch};
use countersign::pki::Serial;
use countersign::plan::ledger::segment::chain;
use countersign::plan::ledger::{CaKey, Holder, Issued, Record};
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use support::control_plane::ControlPlane;
use support::create;
use support::operator::NAMESPACE;

/// As many identities are worked on at once, as the controller does by default.
const AT_ONCE: usize = 64;

#[tokio::main]
async fn main() {
    let count = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let (few, many) = (count("FEW", 500), count("MANY", 5000));
    let plane = ControlPlane::start().await;
    let client = plane.client().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    create(&namespaces, &format!("metadata: {{name: {NAMESPACE}}}")).await;

    let each = one_append_each(&client, few).await;
    let object = one_object_each(&client, few).await;
    let group = group_commit(&client, "group", many, AT_ONCE).await;
    let all = group_commit(&client, "all", many, many).await;
    println!("{:52}{:>12}{:>10}", "way of recording a serial", "serials/s", "ratio");
    for (way, rate) in [
        ("an append for each, one after the other", each),
        (&*format!("an object for each, {AT_ONCE} at once"), object),
        (&*format!("group commit, {AT_ONCE} at once"), group),
        (&*format!("group commit, {many} at once"), all),
    ] {
        println!("{way:52}{rate:>12.0}{:>10.1}", rate / each);
    }
    println!("group commit, {AT_ONCE} at once, to an object for each: {:.1}", group / object);
}

fn record(number: usize) -> Record {
    let now = Timestamp::UNIX_EPOCH;
    Record::Issued(Issued {
        serial: Serial::random(),
        revision: 1,
        not_after: now + SignedDuration::from_hours(24),
        holder: Holder {
            uid: format!("00000000-0000-0000-0000-{number:012}").into(),
            namespace: "team-of-some-kind".into(),
            name: format!("client-{number}").into(),
        },
        subject: Some(format!("CN=client-{number},O=Example").into()),
        issued_at: Some(now),
        supersedes: 0,
        retain: false,
    })
}

async fn one_append_each(client: &Client, count: usize) -> f64 {
    let (ledger, key) = (ledger(client).await, CaKey::first("each"));
    let start = Instant::now();
    for number in 0..count {
        ledger.record(&key, vec![record(number)]).await.expect("recorded");
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    check(client, &key, count).await;
    rate
}

async fn one_object_each(client: &Client, count: usize) -> f64 {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let start = Instant::now();
    stream::iter(0..count)
        .for_each_concurrent(AT_ONCE, async |number| {
            let mut bytes = Vec::new();
            record(number).encode(&mut bytes);
            let object = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(format!("serial-{number}")),
                    ..ObjectMeta::default()
                },
                binary_data: Some(BTreeMap::from([("record".to_owned(), ByteString(bytes))])),
                ..ConfigMap::default()
            };
            api.create(&PostParams::default(), &object).await.expect("created");
        })
        .await;
    count as f64 / start.elapsed().as_secs_f64()
}

async fn group_commit(client: &Client, name: &str, count: usize, at_once: usize) -> f64 {
    let (ledger, key) = (Arc::new(ledger(client).await), CaKey::first(name));
    let start = Instant::now();
    stream::iter(0..count)
        .for_each_concurrent(at_once, async |number| {
            ledger.record(&key, vec![record(number)]).await.expect("recorded");
        })
        .await;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    check(client, &key, count).await;
    rate
}

async fn ledger(client: &Client) -> LedgerHandle {
    LedgerHandle::load(client.clone(), NAMESPACE).await.expect("a ledger")
}

/// Every serial stands on the API server.
async fn check(client: &Client, key: &CaKey, count: usize) {
    let found = fetch(client, NAMESPACE, Some(key)).await.expect("an answer");
    let mut segments = found.into_values().next().expect("segments");
    let chain = chain(&mut segments);
    let records: usize = segments.iter().map(|segment| segment.records.len()).sum();
    assert_eq!((records, chain.position as usize, chain.troubles), (count, count, vec![]));
}
