//! Faults at every write between revoke and publish: the API server refuses, loses or delays it, the
//! operator is killed around it. Afterwards nothing may be lost, and at no moment may a CRL have been
//! wrong: an observer judges every version.
//!
//! `SEED` repeats a run's choices.

#![allow(missing_docs)]

mod sabotage;
mod support;
mod workload;
mod world;

use std::time::{Duration, Instant};

use support::proxy::Fault;
use workload::Workload;
use world::{Ending, Step, World};

/// As many control planes, each with an operator of its own, share the campaign: most of it is waiting.
const LANES: usize = 4;

/// One round: a certificate ends in this way, and these faults meet this write.
#[derive(Clone, Debug)]
struct Round {
    ending: Ending,
    step: Step,
    faults: Vec<Fault>,
}

/// Every step of every ending with every fault alone, and with some in a row.
fn rounds(rng: &mut fastrand::Rng) -> Vec<Round> {
    let mut rounds = Vec::new();
    for (ending, steps) in Ending::ALL {
        for &step in *steps {
            for fault in every_fault(rng) {
                rounds.push(Round { ending: *ending, step, faults: vec![fault] });
            }
            let mut row = every_fault(rng);
            rng.shuffle(&mut row);
            row.truncate(3);
            rounds.push(Round { ending: *ending, step, faults: row });
        }
    }
    rng.shuffle(&mut rounds);
    rounds
}

fn every_fault(rng: &mut fastrand::Rng) -> Vec<Fault> {
    let mut some = |from: u64, to: u64| Duration::from_millis(rng.u64(from..to));
    vec![
        Fault::Reset,
        Fault::Refuse(409),
        Fault::Refuse(429),
        Fault::Refuse(500),
        Fault::Refuse(503),
        Fault::LoseAnswer,
        Fault::DelayRequest(some(200, 1500)),
        Fault::DelayAnswer(some(200, 1500)),
        Fault::KillBefore,
        Fault::KillAfter,
        Fault::KillAnswered(some(0, 5)),
        Fault::KillAnswered(some(5, 200)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_fault_between_revoke_and_publish_loses_a_revocation() {
    let seed = world::seed();
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let rounds = rounds(&mut rng);
    let started = Instant::now();
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES {
        let share: Vec<_> = rounds.iter().skip(lane).step_by(LANES).cloned().collect();
        lanes.spawn(campaign(share));
    }
    let (mut met, mut killed, mut versions) = (0, 0, 0);
    while let Some(lane) = lanes.join_next().await {
        let (faults, seen) =
            lane.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        met += faults.len();
        killed += faults.iter().filter(|fault| fault.kills()).count();
        versions += seen;
    }
    println!(
        "{} rounds, {met} faults, {killed} kills among them; {versions} versions of CRLs judged; {} s",
        rounds.len(),
        started.elapsed().as_secs()
    );
    assert!(met >= 100, "{met} faults");
}

/// Plays the rounds, one after the other; the faults that writes met, and how many CRLs were seen.
async fn campaign(rounds: Vec<Round>) -> (Vec<Fault>, usize) {
    let world = World::start().await;
    let names: Vec<_> = (0..rounds.len()).map(|index| format!("client-{index}")).collect();
    for (name, round) in names.iter().zip(&rounds) {
        world.declare(name, round.ending.policy()).await;
    }
    for name in &names {
        world.issued(name).await;
    }
    for (name, round) in names.iter().zip(&rounds) {
        let started = Instant::now();
        play(&world, name, round).await;
        println!("{:5} ms {round:?}", started.elapsed().as_millis());
        world.observer.assert_good();
    }
    world.disarm();
    world.conclude().await;
    let met = world.proxies[0].met().into_iter().map(|(fault, _)| fault).collect();
    (met, world.observer.versions())
}

async fn play(world: &World, name: &str, round: &Round) {
    let before = world.proxies[0].met().len();
    let (step, ending) = (round.step, round.ending);
    world.proxies[0].arm(move |write| step.is(write), step.skipped(), &round.faults);
    let ended = world.end(name, ending).await;
    world
        .until(&format!("{round:?}: the write of {name} comes"), || async {
            (world.proxies[0].met().len() > before).then_some(())
        })
        .await;
    // A write that was carried out does not come again: not every row is used up.
    world.ended(name, &ended, &format!("{round:?}")).await;
    world.disarm();
}

/// For `SOAK_SECONDS`; `make soak` runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "long; `make soak` runs it"]
async fn soak() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(Ok(600), |text| text.parse());
    let duration = Duration::from_secs(seconds.expect("SOAK_SECONDS is a number"));
    let seed = world::seed();
    println!("SEED={seed}");
    let world = World::start().await;
    let workload = Workload { duration, clients: 12, kill_every: 10.0, fault: 0.1 };
    let done = workload::run(&world, &workload, seed).await;
    world.conclude().await;
    println!("{done}; {} versions of CRLs judged", world.observer.versions());
}
