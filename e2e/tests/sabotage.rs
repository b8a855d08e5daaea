//! Sabotage: a clock that is an hour off, two leaders at once, an etcd that is put back to an older state.
//! A part of the tests in `faults.rs`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use countersign::api::ClientAuthority;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::support::condition;
use crate::support::control_plane::binary;
use crate::support::operator::NAMESPACE;
use crate::support::server;
use crate::workload::{self, Workload};
use crate::world::{CRL, Ending, World, seed};

/// How long two leaders work at once.
const BOTH_LEAD: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_an_hour_off_does_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = folder.path().join("clock");
    // The CA is older than what the clock is off by.
    fs::write(&clock, "-3h").expect("written");
    let world = World::start_with(&[("controller", &[])], &server::clock(&clock)).await;
    fs::write(&clock, "+0").expect("written");
    // The clock goes wrong and right again under a living operator, and across a restart.
    let mut index = 0;
    for restart in [false, true] {
        for (offset, ahead) in [("-1h", -3600), ("+0", 0), ("+1h", 3600), ("+0", 0)] {
            let what = format!("clock {offset}, restart: {restart}");
            println!("{what}");
            world.observer.clock_is_wrong(offset != "+0");
            world.ahead.store(ahead, Ordering::Relaxed);
            fs::write(&clock, offset).expect("written");
            if restart {
                world.proxies[0].kill();
                world.keep_running();
            }
            for (ending, _) in Ending::ALL {
                let name = format!("client-{index}");
                index += 1;
                world.declare(&name, ending.policy()).await;
                world.until(&format!("{what}: {name} is issued"), || world.is_issued(&name)).await;
                let ended = world.end(&name, *ending).await;
                world.ended(&name, &ended, &what).await;
            }
            let crl = world.observer.crl(CRL).expect("a CRL");
            let (now, hour) = (Timestamp::now(), jiff::SignedDuration::from_hours(1));
            let ahead = crl.this_update.duration_since(now);
            match offset {
                "-1h" => assert!(ahead <= -hour, "{what}: the clock did not change: {crl:?}"),
                "+1h" => assert!(ahead > hour / 2, "{what}: the clock did not change: {crl:?}"),
                _ => assert!(ahead <= jiff::SignedDuration::ZERO, "{what}: not valid yet: {crl:?}"),
            }
            // Neither CRLs nor certificates are made in a loop.
            world.steady().await;
        }
    }
    world.conclude().await;
    println!("{} versions of CRLs judged", world.observer.versions());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_leaders_at_once_do_no_harm() {
    let seed = seed();
    println!("SEED={seed}");
    let world = World::start_with(
        &[("one", &["--lease-name", "one"]), ("two", &["--lease-name", "two"])],
        &[],
    )
    .await;
    let workload = Workload { duration: BOTH_LEAD, clients: 8, kill_every: 6.0, fault: 0.0 };
    let done = workload::run(&world, &workload, seed).await;
    for replica in &world.proxies {
        let log = replica.log(&world.plane);
        assert!(log.contains("became leader") && log.contains("appending"), "one was idle");
    }
    world.conclude().await;
    println!("{done}; {} versions of CRLs judged", world.observer.versions());
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(status.success(), "{from:?} is copied to {to:?}");
}

/// What is guaranteed when etcd is put back to a backup:
/// - An operator that lives on has seen a newer CRL, and publishes none that lacks a serial of it: either
///   the next one holds them all, or the authority says why there is none.
/// - Once it is restarted nobody knows what the backup does not hold. What was revoked after it is not any
///   more, also by the objects that said so, which went with it. Once `countersign ledger recover` was told
///   so, the state is whole and consistent, and CRL numbers go on above every one ever published, so that
///   verifiers take the CRLs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_backup_of_etcd_shrinks_no_crl_under_a_living_operator() {
    // The lease outlasts the time without a server: the operator lives on.
    let arguments: &[&str] = &["--lease-seconds", "600"];
    let mut world = World::start_with(&[("controller", arguments)], &[]).await;
    for index in 0..6 {
        world.declare(&format!("client-{index}"), "").await;
    }
    for index in 0..6 {
        world.issued(&format!("client-{index}")).await;
    }
    end(&world, "client-0", Ending::Revoked).await;
    world.steady().await;
    world.observer.conclude().await;

    let backup = world.plane.folder().join("backup");
    // So that the observer misses nothing while it can't watch.
    world.proxies[0].kill();
    world.plane.stop();
    copy(&world.plane.etcd_data(), &backup);
    world.plane.resume().await;
    world.observe_anew().await;
    let old = world.observer.crl(CRL).expect("a CRL");
    assert_eq!(old.serials.len(), 1);
    for (name, ending) in [
        ("client-1", Ending::Revoked),
        ("client-2", Ending::Replaced),
        ("client-3", Ending::Deleted),
    ] {
        end(&world, name, ending).await;
    }
    world.steady().await;
    world.observer.conclude().await;
    let known = world.observer.crl(CRL).expect("a CRL");
    assert_eq!(known.serials.len(), 4);

    // Put back under the living operator. That revisions go on above the old ones is what
    // `etcdutl snapshot restore --bump-revision` does.
    let leaderships = world.proxies[0].log(&world.plane).matches("became leader").count();
    let newest = revision(&world).await;
    world.plane.stop();
    fs::remove_dir_all(world.plane.etcd_data()).expect("removed");
    copy(&backup, &world.plane.etcd_data());
    world.plane.resume().await;
    while revision(&world).await < newest + 100 {}
    world.observe_anew().await;

    // More is revoked: the operator must not sign what lacks the serials that it knows.
    let ended = world.end("client-4", Ending::Revoked).await;
    let authorities: Api<ClientAuthority> = Api::all(world.client.clone());
    let told = world
        .until("the authority tells, or the CRL holds everything", || async {
            let crl = world.observer.crl(CRL)?;
            if crl.number != old.number {
                return Some(format!("published {} entries", crl.serials.len()));
            }
            let status = authorities.get("clients").await.ok()?.status?;
            let ready = condition(&status.conditions, "Ready")?;
            let is_guard = ["ShrinkGuard", "FreshnessGuard", "LedgerDamaged"];
            (ready.status == "False" && is_guard.contains(&&*ready.reason))
                .then(|| format!("{}: {}", ready.reason, ready.message))
        })
        .await;
    println!("with a living operator: {told}");
    world.steady().await;
    let crl = world.observer.crl(CRL).expect("a CRL");
    if crl.number != old.number {
        assert!(crl.number > known.number, "{crl:?}");
        assert!(known.serials.is_subset(&crl.serials), "shrunken: {crl:?}");
    }

    let log = world.proxies[0].log(&world.plane);
    assert_eq!(log.matches("became leader").count(), leaderships, "it did not live on");

    // Everything that knew is gone, but for the gap that the living operator left in the ledger. Somebody
    // has to say that what stood there is lost.
    world.proxies[0].kill();
    let told = Command::new(binary())
        .args(["ledger", "recover", "--authority", "clients", "--from-crl", "published"])
        .env("KUBECONFIG", world.plane.kubeconfig("admin"))
        .env_remove("POD_NAMESPACE")
        .output()
        .expect("countersign runs");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    println!("{}", String::from_utf8_lossy(&told.stdout).trim_end());
    world.ended("client-4", &ended, "after a restart on the backup").await;
    let crl = world.observer.crl(CRL).expect("a CRL");
    assert!(crl.number > known.number, "{} after {}", crl.number, known.number);
    for index in [1, 2, 3, 5] {
        world.issued(&format!("client-{index}")).await;
    }
    // What was revoked after the backup is asked for again.
    for name in ["client-1", "client-2", "client-3"] {
        end(&world, name, Ending::Revoked).await;
    }
    world.conclude().await;
    let crl = world.observer.crl(CRL).expect("a CRL");
    assert!(known.serials.is_subset(&crl.serials), "revoked again: {crl:?}");
}

async fn end(world: &World, name: &str, ending: Ending) {
    let started = Instant::now();
    let ended = world.end(name, ending).await;
    world.ended(name, &ended, &format!("{ending:?}")).await;
    println!("{ending:?} {name}: {} ms", started.elapsed().as_millis());
}

/// The revision of etcd after a write of ours.
async fn revision(world: &World) -> u64 {
    let api: Api<ConfigMap> = Api::namespaced(world.client.clone(), NAMESPACE);
    let mut object = ConfigMap::default();
    object.metadata.generate_name = Some("revision-".to_owned());
    let made = api.create(&PostParams::default(), &object).await.expect("created");
    let name = made.metadata.name.expect("a name");
    api.delete(&name, &DeleteParams::default()).await.expect("deleted");
    made.metadata.resource_version.and_then(|version| version.parse().ok()).expect("a number")
}
