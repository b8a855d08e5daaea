//! A thread of its own for code that may hang: callers wait for a bounded time, and once it is known
//! to hang they don't wait at all.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};

/// A state that lives in a thread.
pub(super) struct Worker<S> {
    jobs: Sender<Job<S>>,
    current: Arc<Mutex<Option<Current>>>,
}

/// The job that is under way.
struct Current {
    began: Instant,
    /// A caller's time was over while it went on.
    hangs: bool,
}

struct Job<S> {
    deadline: Instant,
    work: Box<dyn FnOnce(&mut S) + Send>,
}

/// No answer within the limit: for how long the thread has been at work on one job.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hung(pub(super) Duration);

impl<S: Send + 'static> Worker<S> {
    /// Starts the thread. It ends with the last caller.
    pub(super) fn start(mut state: S) -> std::io::Result<Self> {
        let (jobs, incoming) = mpsc::channel::<Job<S>>();
        let current = Arc::new(Mutex::new(None));
        let shared = current.clone();
        let set = move |current| *shared.lock().unwrap_or_else(PoisonError::into_inner) = current;
        thread::Builder::new().name("token".into()).spawn(move || {
            for job in incoming {
                let now = Instant::now();
                // Nobody waits any more for what has been in the queue for too long.
                if now < job.deadline {
                    set(Some(Current { began: now, hangs: false }));
                    (job.work)(&mut state);
                    set(None);
                }
            }
        })?;
        Ok(Self { jobs, current })
    }

    /// Has the thread do something and waits for the result, no longer than `limit`, and not at all while
    /// it hangs. Work that has begun goes on after that, and its result is lost. May be called on a thread
    /// of a runtime.
    pub(super) fn call<R: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&mut S) -> R + Send + 'static,
    ) -> Result<R, Hung> {
        if let Some(current) = &*self.current()
            && current.hangs
        {
            return Err(Hung(current.began.elapsed()));
        }
        let (answer, result) = mpsc::sync_channel(1);
        let work = Box::new(move |state: &mut S| {
            // The caller may have gone.
            let _ = answer.send(work(state));
        });
        let job = Job { deadline: Instant::now() + limit, work };
        self.jobs.send(job).unwrap_or_else(|_| panic!("the token's thread has panicked"));
        match off_the_runtime(|| result.recv_timeout(limit)) {
            Ok(result) => Ok(result),
            // Or it was thrown away because its time was over.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let mut current = self.current();
                current.iter_mut().for_each(|current| current.hangs = true);
                Err(Hung(current.as_ref().map_or(limit, |current| current.began.elapsed())))
            }
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks the thread; on a thread of a multi-threaded runtime its other tasks move elsewhere before.
fn off_the_runtime<R>(block: impl FnOnce() -> R) -> R {
    let threads = Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if threads { tokio::task::block_in_place(block) } else { block() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(500);

    #[test]
    fn work_is_done_in_order_on_one_state() {
        let worker = Worker::start(Vec::new()).unwrap();
        for number in 0..3 {
            worker.call(LONG, move |state| state.push(number)).unwrap();
        }
        assert_eq!(worker.call(LONG, |state| state.clone()), Ok(vec![0, 1, 2]));
    }

    #[test]
    fn a_hang_costs_the_first_caller_its_limit_the_next_nothing_and_is_over_when_it_is_over() {
        let worker = Worker::start(0).unwrap();
        let (release, hang) = mpsc::channel::<()>();
        let first = worker.call(SHORT, move |count| {
            let _ = hang.recv();
            *count += 1;
        });
        assert!(matches!(first, Err(Hung(_))), "{first:?}");
        let started = Instant::now();
        let next = worker.call(LONG, |count| *count += 100);
        assert!(matches!(next, Err(Hung(_))), "{next:?}");
        assert!(started.elapsed() < LONG / 2, "the next caller waited for {:?}", started.elapsed());
        release.send(()).unwrap();
        // It counted once: what was refused is not done later.
        while worker.call(LONG, |count| *count) != Ok(1) {
            assert!(started.elapsed() < LONG, "it does not come back");
            thread::yield_now();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn other_tasks_go_on_while_a_caller_waits() {
        let worker = Worker::start(()).unwrap();
        let (release, wait) = mpsc::channel::<()>();
        // The runtime has one thread, the caller blocks it: the other task runs all the same.
        let caller = tokio::spawn(async move { worker.call(LONG, move |()| wait.recv().is_ok()) });
        let other = tokio::spawn(async move { release.send(()) });
        other.await.unwrap().unwrap();
        assert_eq!(caller.await.unwrap(), Ok(true));
    }
}
