//! A queue of keys: each is reconciled by one task at a time, many keys at once, again after a time
//! that the reconcile chose, or with growing delay after a failure.
//!
//! kube's `Controller` reconciles only objects that exist; level-triggered clean-up needs the key of
//! one that is gone. Hence this loop, over keys.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, debug, info_span, warn};

use super::error::{Error, chain};
use crate::cluster::Key;
use crate::metrics::{ControllerLabel, Metrics, ReconcileLabels};

/// First delay after a failure; it doubles each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// Longest delay after a failure.
const LONGEST_BACKOFF: Duration = Duration::from_secs(120);
/// First delay after a conflict, long enough for the watch to catch up; it doubles each time.
const CONFLICT_DELAY: Duration = Duration::from_millis(50);
/// Longest delay after a conflict.
const LONGEST_CONFLICT_DELAY: Duration = Duration::from_secs(5);
/// A reconcile that takes longer is given up and tried again.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What a reconcile that went well asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until something changes.
    Settled,
    /// To be called again after this time.
    After(Duration),
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Well(Outcome),
    Conflict,
    Failure,
}

/// Puts keys into a queue.
#[derive(Clone)]
pub struct Queue(mpsc::UnboundedSender<(Key, Duration)>);

impl Queue {
    /// A queue and the end that [`run`] reads.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<(Key, Duration)>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Asks for a reconcile now.
    pub fn push(&self, key: Key) {
        self.push_after(key, Duration::ZERO);
    }

    /// Asks for a reconcile within this time; an earlier one serves as well.
    pub fn push_after(&self, key: Key, delay: Duration) {
        // When the loop has ended the process is about to.
        let _ = self.0.send((key, delay));
    }
}

/// Reconciles keys until `shutdown` is true, then waits for those that are under way.
pub async fn run<F, R>(
    controller: &'static str,
    mut incoming: mpsc::UnboundedReceiver<(Key, Duration)>,
    concurrency: usize,
    metrics: Arc<Metrics>,
    mut shutdown: watch::Receiver<bool>,
    reconcile: F,
) where
    F: Fn(Key) -> R,
    R: Future<Output = Result<Outcome, Error>> + Send + 'static,
{
    let mut schedule = Schedule::default();
    let mut tasks: JoinSet<(Key, End)> = JoinSet::new();
    loop {
        while schedule.running.len() < concurrency {
            let Some(key) = schedule.next() else { break };
            let span = info_span!("reconcile", controller, object = %key);
            let work = reconcile(key.clone());
            let metrics = metrics.clone();
            tasks.spawn(supervise(controller, key, work, metrics).instrument(span));
        }
        let wake = schedule.wake();
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => break,
            Some(finished) = tasks.join_next(), if !tasks.is_empty() => match finished {
                Ok((key, end)) => schedule.finish(key, end),
                // A panic takes the process down: half a state must not go on.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Some((key, delay)) = incoming.recv() => {
                schedule.add(key, delay);
                while let Ok((key, delay)) = incoming.try_recv() {
                    schedule.add(key, delay);
                }
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn supervise(
    controller: &'static str,
    key: Key,
    work: impl Future<Output = Result<Outcome, Error>>,
    metrics: Arc<Metrics>,
) -> (Key, End) {
    let started = Instant::now();
    let result = tokio::time::timeout(TIMEOUT, work).await;
    let seconds = started.elapsed().as_secs_f64();
    metrics.reconcile_seconds.get_or_create(&ControllerLabel { controller }).observe(seconds);
    let (label, end) = match result {
        Ok(Ok(outcome)) => ("settled", End::Well(outcome)),
        Ok(Err(error)) if error.is_conflict() => {
            debug!(error = chain(&error), "conflict, reading again");
            (error.category(), End::Conflict)
        }
        Ok(Err(error)) => {
            warn!(error = chain(&error), "reconcile failed, it will be retried");
            (error.category(), End::Failure)
        }
        Err(_) => {
            warn!("reconcile took too long, it will be retried");
            ("timeout", End::Failure)
        }
    };
    metrics.reconciles.get_or_create(&ReconcileLabels { controller, outcome: label }).inc();
    (key, end)
}

/// Which keys wait, run, and come back when.
#[derive(Default)]
struct Schedule {
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    running: HashSet<Key>,
    // Asked for while running: runs once more.
    dirty: HashSet<Key>,
    due: HashMap<Key, Instant>,
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    failures: HashMap<Key, u32>,
}

impl Schedule {
    fn add(&mut self, key: Key, delay: Duration) {
        if !delay.is_zero() {
            self.set_timer(key, Instant::now() + delay);
        } else if self.running.contains(&key) {
            self.dirty.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Keeps the earlier of two times.
    fn set_timer(&mut self, key: Key, at: Instant) {
        if self.due.get(&key).is_none_or(|known| at < *known) {
            self.due.insert(key.clone(), at);
            self.timers.push(Reverse((at, key)));
        }
    }

    fn next(&mut self) -> Option<Key> {
        let now = Instant::now();
        while let Some(Reverse((at, _))) = self.timers.peek() {
            if *at > now {
                break;
            }
            let Some(Reverse((at, key))) = self.timers.pop() else {
                break;
            };
            // A timer that was replaced by an earlier one has nothing to say.
            if self.due.get(&key) == Some(&at) {
                self.due.remove(&key);
                self.add(key, Duration::ZERO);
            }
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        // This run serves whatever the key was to come back for.
        self.due.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn wake(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    fn finish(&mut self, key: Key, end: End) {
        self.running.remove(&key);
        let dirty = self.dirty.remove(&key);
        let (first, longest) = match end {
            End::Well(outcome) => {
                self.failures.remove(&key);
                if let Outcome::After(delay) = outcome {
                    self.set_timer(key.clone(), Instant::now() + delay);
                }
                if dirty {
                    self.add(key, Duration::ZERO);
                }
                return;
            }
            End::Conflict => (CONFLICT_DELAY, LONGEST_CONFLICT_DELAY),
            End::Failure => (FIRST_BACKOFF, LONGEST_BACKOFF),
        };
        let count = self.failures.entry(key.clone()).or_insert(0);
        let delay = first * 2u32.saturating_pow((*count).min(16));
        *count += 1;
        // Also when it was asked for again: a failing key must not spin.
        self.set_timer(key, Instant::now() + delay.min(longest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::cluster(name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_runs_once_at_a_time_and_once_more_when_asked_meanwhile() {
        let mut schedule = Schedule::default();
        schedule.add(key("a"), Duration::ZERO);
        schedule.add(key("a"), Duration::ZERO);
        assert_eq!(schedule.next(), Some(key("a")));
        schedule.add(key("a"), Duration::ZERO);
        schedule.add(key("a"), Duration::ZERO);
        assert_eq!(schedule.next(), None);
        schedule.finish(key("a"), End::Well(Outcome::Settled));
        assert_eq!(schedule.next(), Some(key("a")));
        schedule.finish(key("a"), End::Well(Outcome::Settled));
        assert_eq!(schedule.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_ever_later_and_a_success_forgets_them() {
        let mut schedule = Schedule::default();
        schedule.add(key("a"), Duration::ZERO);
        for expected in [500, 1000, 2000, 4000] {
            assert_eq!(schedule.next(), Some(key("a")));
            schedule.add(key("a"), Duration::ZERO);
            schedule.finish(key("a"), End::Failure);
            assert_eq!(schedule.next(), None, "it must not spin");
            let wait = schedule.wake().unwrap() - Instant::now();
            assert_eq!(wait, Duration::from_millis(expected));
            tokio::time::advance(wait).await;
        }
        assert_eq!(schedule.next(), Some(key("a")));
        schedule.finish(key("a"), End::Well(Outcome::Settled));
        assert!(schedule.failures.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_times_counts() {
        let mut schedule = Schedule::default();
        schedule.add(key("a"), Duration::from_secs(10));
        schedule.add(key("a"), Duration::from_secs(5));
        schedule.add(key("a"), Duration::from_secs(20));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(schedule.next(), Some(key("a")));
        schedule.finish(key("a"), End::Well(Outcome::Settled));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(schedule.next(), None);
    }

    #[tokio::test]
    async fn a_running_reconcile_ends_before_the_loop_does() {
        let (queue, incoming) = Queue::new();
        let (stop, shutdown) = watch::channel(false);
        let (started, mut begun) = mpsc::unbounded_channel();
        let (finished, mut done) = mpsc::unbounded_channel();
        let metrics = Arc::new(Metrics::default());
        let work = move |key: Key| {
            let (started, finished) = (started.clone(), finished.clone());
            async move {
                started.send(()).unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
                finished.send(key).unwrap();
                Ok(Outcome::Settled)
            }
        };
        queue.push(key("a"));
        let task = tokio::spawn(run("test", incoming, 1, metrics, shutdown, work));
        begun.recv().await.unwrap();
        stop.send(true).unwrap();
        task.await.unwrap();
        assert_eq!(done.try_recv(), Ok(key("a")));
    }
}
