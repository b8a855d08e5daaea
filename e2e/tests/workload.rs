//! Clients that come, are renewed and end, at random, while operators are killed and writes meet faults.
//! A part of the tests in `faults.rs`.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::proxy::Fault;
use crate::world::{Ending, World};

/// What goes on, and for how long.
pub struct Workload {
    pub duration: Duration,
    /// As many clients live at once.
    pub clients: usize,
    /// An operator is killed after so many seconds, on average.
    pub kill_every: f64,
    /// The probability that a write meets a fault.
    pub fault: f64,
}

/// What went on.
pub struct Done {
    ended: usize,
    renewed: usize,
    killed: usize,
    faults: usize,
    seconds: u64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ended, renewed, killed, faults, seconds } = self;
        write!(
            f,
            "{ended} certificates ended, {renewed} renewals, {faults} faults, {killed} kills, {seconds} s"
        )
    }
}

/// Runs until the time is over and every client that was begun has ended.
pub async fn run(world: &World, workload: &Workload, seed: u64) -> Done {
    let started = Instant::now();
    let mut rng = fastrand::Rng::with_seed(seed);
    for proxy in &world.proxies {
        let (mut rng, probability) = (rng.fork(), workload.fault);
        proxy.plan(move |_| (rng.f64() < probability).then(|| some_fault(&mut rng)));
    }
    let (ended, renewed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let clients = (0..workload.clients).map(|client| {
        let (mut rng, ended, renewed) = (rng.fork(), &ended, &renewed);
        async move {
            for life in 0.. {
                if started.elapsed() > workload.duration {
                    return;
                }
                let name = format!("client-{client}-{life}");
                let (ending, _) = Ending::ALL[rng.usize(..Ending::ALL.len())];
                world.declare(&name, ending.policy()).await;
                let what = format!("{name} is issued");
                world.until(&what, || world.is_issued(&name)).await;
                // Superseded certificates are revoked here only when they are to end so.
                if ending != Ending::Superseded && rng.bool() {
                    world.renewed(&name).await;
                    renewed.fetch_add(1, Ordering::Relaxed);
                }
                let end = world.end(&name, ending).await;
                world.ended(&name, &end, &format!("{ending:?}")).await;
                ended.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let clients = futures::future::join_all(clients);
    let killed = AtomicUsize::new(0);
    let killer = async {
        loop {
            let pause = workload.kill_every * 2.0 * rng.f64();
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            world.proxies[rng.usize(..world.proxies.len())].kill();
            world.keep_running();
            killed.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::select! {
        _ = clients => {}
        () = killer => {}
    }
    world.disarm();
    let met: Vec<_> = world.proxies.iter().flat_map(|proxy| proxy.met()).collect();
    let by_fault = met.iter().filter(|(fault, _)| fault.kills()).count();
    Done {
        ended: ended.into_inner(),
        renewed: renewed.into_inner(),
        killed: killed.into_inner() + by_fault,
        faults: met.len(),
        seconds: started.elapsed().as_secs(),
    }
}

fn some_fault(rng: &mut fastrand::Rng) -> Fault {
    let time = Duration::from_millis(rng.u64(0..1000));
    match rng.u8(0..20) {
        0..3 => Fault::Reset,
        3..6 => Fault::LoseAnswer,
        6..8 => Fault::Refuse(409),
        8 => Fault::Refuse(429),
        9..11 => Fault::Refuse(500),
        11 => Fault::Refuse(503),
        12..14 => Fault::DelayRequest(time),
        14..16 => Fault::DelayAnswer(time),
        16 => Fault::KillBefore,
        17..19 => Fault::KillAfter,
        _ => Fault::KillAnswered(time / 20),
    }
}
