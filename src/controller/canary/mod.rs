//! Runs the canaries: issues their certificates, shows them, revokes them, shows them again, and leaves
//! none behind.

mod begin;
mod measure;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::ResourceExt;
use rustls::ClientConfig;
use tracing::{info, warn};

use self::begin::{Begun, begin};
use self::measure::{forget, measure};
use super::context::Context;
use super::error::Error;
use super::probe;
use super::queue::Outcome;
use super::settle::until;
use crate::api::ClientTrust;
use crate::api::canary::{Canary, Reason};
use crate::api::condition::truncate;
use crate::cluster::Key;
use crate::metrics::authority as label;
use crate::pki::Serial;
use crate::plan::canary::{Report, due, last, trust_of};
use crate::plan::destination::Destination;
pub use crate::plan::destination::Network;
use crate::plan::ledger::{CaKey, Record, Revoked};
use crate::plan::trial::{Run, Step};

/// The controller's name in logs, metrics and events.
pub const NAME: &str = "canary";

/// As many attempts of a run are under way at once.
const MOST_ATTEMPTS: usize = 16;
/// What keeps a canary from running is looked at again after this time.
const BLOCKED: Duration = Duration::from_secs(30);

/// How canaries are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Do they run at all?
    pub enabled: bool,
    /// The networks that they may connect to; when empty, all but the operator's own surroundings.
    pub networks: Vec<Network>,
}

/// The canaries of all trusts.
#[derive(Default)]
pub struct Canaries {
    states: Mutex<HashMap<Key, State>>,
    /// Does a run hold every live certificate of the ledger?
    swept: AtomicBool,
}

/// The canary of one trust.
#[derive(Default)]
struct State {
    uid: Option<String>,
    /// Its live certificates. They are noted before they are recorded.
    certificates: Vec<(CaKey, Serial)>,
    run: Option<Active>,
    report: Option<Report>,
    /// Since when the trust's Secret is waited for.
    waits_since: Option<Instant>,
}

/// A run under way.
struct Active {
    run: Run,
    /// Beginning of the stage.
    clock: Instant,
    generation: Option<i64>,
    authorities: Vec<String>,
    destinations: Vec<Destination>,
    anonymous: Arc<ClientConfig>,
    /// One for each authority.
    clients: Vec<Arc<ClientConfig>>,
}

impl Canaries {
    /// What the canary of a trust has to tell.
    pub(super) fn report(&self, key: &Key, uid: Option<&str>) -> Option<Report> {
        let states = self.lock();
        let state = states.get(key).filter(|state| state.uid.as_deref() == uid);
        state.and_then(|state| state.report.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, State>> {
        self.states.lock().expect("no holder of this lock panics")
    }

    /// Looks at, or changes, the canary of a trust.
    fn with<R>(&self, key: &Key, change: impl FnOnce(&mut State) -> R) -> R {
        change(self.lock().entry(key.clone()).or_default())
    }

    /// Forgets a certificate or several without their being revoked: the next look finds them.
    fn lose(&self) {
        self.swept.store(false, Ordering::SeqCst);
    }
}

/// Asks for a look at every canary that left a live certificate: the run died with the process before.
pub(super) fn wake(context: &Context) {
    for (_, _, trust) in live(context) {
        context.queues.canary.push(trust);
    }
}

/// Reconciles the canary of one trust.
pub async fn reconcile(context: Arc<Context>, key: Key) -> Result<Outcome, Error> {
    let trust = context.stores.trusts.get(&key);
    let trust = trust.filter(|trust| trust.metadata.deletion_timestamp.is_none());
    let spec = trust.as_ref().and_then(|trust| trust.spec.canary.clone());
    let Some((trust, canary)) = trust.zip(spec) else {
        if context.canaries.lock().remove(&key).is_some_and(|state| !state.certificates.is_empty())
        {
            context.canaries.lose();
        }
        forget(&context, &key);
        sweep(&context).await?;
        return Ok(Outcome::Settled);
    };
    let active = take_up(&context, &key, &trust);
    sweep(&context).await?;
    let now = Timestamp::now();
    if let Some(active) = active {
        return go_on(&context, &key, &trust, &canary, active).await;
    }
    if !context.canary_settings.enabled {
        let message = "the operator runs without canaries: the chart's value canary.enabled";
        tell(&context, &key, &trust, Report::blocked(&trust, Reason::Disabled, message.into()));
        return Ok(Outcome::Settled);
    }
    let report = context.canaries.with(&key, |state| state.report.clone());
    let due = due(&trust, &canary, last(&trust, report.as_ref()), now);
    if due > now {
        return Ok(Outcome::After(until(due, now)));
    }
    match begin(&context, &key, &trust, &canary, now).await? {
        Begun::Run(active) => go_on(&context, &key, &trust, &canary, active).await,
        Begun::Wait(wait) => Ok(Outcome::After(wait)),
        Begun::Blocked(reason, message) => {
            tell(&context, &key, &trust, Report::blocked(&trust, reason, message));
            Ok(Outcome::After(BLOCKED))
        }
    }
}

/// The run that is under way, if it is of this very spec. Certificates that no run holds any more are
/// given up.
fn take_up(context: &Context, key: &Key, trust: &ClientTrust) -> Option<Active> {
    let (uid, mut lost) = (trust.uid(), false);
    let mut states = context.canaries.lock();
    if states.get(key).is_some_and(|state| state.uid != uid) {
        lost = states.remove(key).is_some_and(|state| !state.certificates.is_empty());
    }
    let known = states.contains_key(key);
    let state = states.entry(key.clone()).or_default();
    state.uid = uid;
    let active = state.run.take().filter(|run| run.generation == trust.metadata.generation);
    if active.is_none() {
        lost |= !std::mem::take(&mut state.certificates).is_empty();
    }
    drop(states);
    if !known {
        measure(context, trust, None);
    }
    if lost {
        context.canaries.lose();
    }
    active
}

/// Every live certificate of a canary, with its CA and its trust.
fn live(context: &Context) -> Vec<(CaKey, Serial, Key)> {
    let now = Timestamp::now();
    context.ledger.read_all(|books| {
        let mut found = Vec::new();
        for (ca, ledger) in books {
            found.extend(ledger.live(now).filter_map(|issued| {
                let trust = Key::new(&*issued.holder.namespace, trust_of(&issued.holder)?);
                Some((ca.clone(), issued.serial, trust))
            }));
        }
        found
    })
}

/// Revokes every live certificate of a canary that no run holds: its run was broken off, or its
/// trust is gone. To err here costs a run, so that no other witness is asked.
async fn sweep(context: &Context) -> Result<(), Error> {
    if context.canaries.swept.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    // In this order: what is recorded has been noted before.
    let live = live(context);
    let held: HashSet<Serial> = {
        let states = context.canaries.lock();
        let certificates = states.values().flat_map(|state| &state.certificates);
        certificates.map(|(_, serial)| *serial).collect()
    };
    let left = live.into_iter().filter(|(_, serial, _)| !held.contains(serial));
    let left: Vec<_> = left.map(|(ca, serial, _)| (ca, serial)).collect();
    if left.is_empty() {
        return Ok(());
    }
    info!(certificates = left.len(), "revoking what canaries left");
    let result = revoke(context, &left).await;
    if result.is_err() {
        context.canaries.lose();
    }
    result
}

/// Revokes certificates of canaries, as far as they are recorded, and has the CRLs published.
async fn revoke(context: &Context, certificates: &[(CaKey, Serial)]) -> Result<(), Error> {
    let mut by_ca: HashMap<&CaKey, Vec<Record>> = HashMap::new();
    let revoked_at = truncate(Timestamp::now());
    for (ca, serial) in certificates {
        let is_live = context.ledger.read(ca, |ledger| {
            ledger.find(serial).is_some() && ledger.revocation(serial).is_none()
        });
        if is_live {
            let revoked = Revoked { serial: *serial, revoked_at, reason: None };
            by_ca.entry(ca).or_default().push(Record::Revoked(revoked));
        }
    }
    for (ca, records) in by_ca {
        let count = records.len() as u64;
        context.ledger.record(ca, records).await?;
        context.metrics.revoked.get_or_create(&label(&ca.authority)).inc_by(count);
        context.queues.authority.push(Key::cluster(&*ca.authority));
    }
    Ok(())
}

/// Goes on with a run: one round of attempts for each look, so that many runs share the time.
async fn go_on(
    context: &Context,
    key: &Key,
    trust: &ClientTrust,
    canary: &Canary,
    mut active: Active,
) -> Result<Outcome, Error> {
    let mut tried = false;
    loop {
        let elapsed = active.clock.elapsed();
        match active.run.step(elapsed) {
            Step::Try(_) if tried => {
                let pause = active.run.pause(elapsed);
                context.canaries.with(key, |state| state.run = Some(active));
                return Ok(Outcome::After(pause));
            }
            Step::Try(attempts) => {
                let networks = &context.canary_settings.networks;
                let asked = stream::iter(attempts.into_iter().map(|attempt| {
                    let (clock, client) = (
                        active.clock,
                        match attempt.client {
                            None => active.anonymous.clone(),
                            Some(authority) => active.clients[authority].clone(),
                        },
                    );
                    let destination = &active.destinations[attempt.endpoint];
                    async move {
                        let answer = probe::ask(client, destination, networks).await;
                        (attempt, answer, clock.elapsed())
                    }
                }));
                let answers: Vec<_> = asked.buffer_unordered(MOST_ATTEMPTS).collect().await;
                for (attempt, answer, elapsed) in answers {
                    active.run.answered(attempt, answer, elapsed);
                }
                tried = true;
            }
            Step::Revoke => {
                // From here on each moment counts, that of recording too.
                active.clock = Instant::now();
                let issued = context.canaries.with(key, |state| state.certificates.clone());
                revoke(context, &issued).await?;
                active.run.revoked();
                tried = false;
            }
            Step::Finished => {
                context.canaries.with(key, |state| state.certificates.clear());
                let (outcomes, now) = (active.run.outcomes(), Timestamp::now());
                for outcome in &outcomes {
                    if let (Some(client), Some(after)) = (outcome.client, outcome.refused_after) {
                        let label = label(&active.authorities[client]);
                        let seconds = context.metrics.canary_refused_seconds.get_or_create(&label);
                        seconds.observe(after.as_secs_f64());
                    }
                }
                let (authorities, endpoints) = (&active.authorities, &canary.endpoints);
                let report =
                    Report::of_run(active.generation, authorities, endpoints, &outcomes, now);
                match report.reason {
                    Reason::Passed => info!("{}", report.message),
                    reason => warn!(reason = reason.as_str(), "{}", report.message),
                }
                let next = due(trust, canary, last(trust, Some(&report)), now);
                tell(context, key, trust, report);
                return Ok(Outcome::After(until(next, now)));
            }
        }
    }
}

/// Has a report written into the trust's status, and shows it in the metrics.
fn tell(context: &Context, key: &Key, trust: &ClientTrust, report: Report) {
    measure(context, trust, Some(&report));
    let is_new = context.canaries.with(key, |state| {
        let is_new = state.report.as_ref() != Some(&report);
        state.report = Some(report);
        is_new
    });
    if is_new {
        context.queues.trust.push(key.clone());
    }
}
