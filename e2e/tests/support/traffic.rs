//! A client that never stops asking, with the certificate that its Secret holds at the moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};

use super::servers::{Answer, write_files};

/// Requests per second.
pub const RATE: u32 = 25;

/// A folder that shows what a Secret holds, changed as a whole as kubelet does it.
pub struct Mount {
    folder: PathBuf,
    version: Option<String>,
    count: usize,
}

impl Mount {
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        Self { folder: folder.to_owned(), version: None, count: 0 }
    }

    /// Reads the Secret; tells whether it changed.
    pub async fn sync(&mut self, api: &Api<Secret>, name: &str, keys: &[&str]) -> bool {
        let secret = api.get(name).await.expect("the Secret is there");
        if secret.resource_version() == self.version {
            return false;
        }
        self.count += 1;
        let version = self.folder.join(format!("v{}", self.count));
        fs::create_dir(&version).expect("a folder");
        write_files(&secret, keys, &version);
        let link = self.folder.join("next");
        std::os::unix::fs::symlink(&version, &link).expect("a link");
        fs::rename(&link, self.folder.join("current")).expect("renamed");
        self.version = secret.resource_version();
        true
    }

    /// What it shows at this moment; stays as it is when the Secret changes.
    pub fn current(folder: &Path) -> PathBuf {
        fs::canonicalize(folder.join("current")).expect("something is mounted")
    }
}

/// Requests that go on in a thread of their own.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Report>,
}

/// What came of the requests.
pub struct Report {
    pub sent: usize,
    pub elapsed: Duration,
    pub failed: Vec<(Duration, Answer)>,
}

impl Traffic {
    /// Asks [`RATE`] times a second with what `mount` shows, by several threads so that a slow answer
    /// holds nobody up.
    pub fn start(mount: PathBuf, ask: impl Fn(&Path) -> Answer + Send + Sync + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (started, ask) = (Instant::now(), Arc::new(ask));
            let mut requests = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let due = Duration::from_secs(1) * requests.len() as u32 / RATE;
                std::thread::sleep(due.saturating_sub(started.elapsed()));
                let (mount, ask) = (mount.clone(), ask.clone());
                requests.push(std::thread::spawn(move || {
                    let at = started.elapsed();
                    (at, ask(&Mount::current(&mount)))
                }));
            }
            let elapsed = started.elapsed();
            let answers = requests.into_iter().map(|request| request.join().expect("asked"));
            let answers: Vec<_> = answers.collect();
            let sent = answers.len();
            let failed = answers.into_iter().filter(|(_, answer)| answer.status != 200).collect();
            Report { sent, elapsed, failed }
        });
        Self { stop, thread }
    }

    /// Ends the requests; panics if one was refused or fewer were sent than 20 a second.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let report = self.thread.join().expect("asked");
        println!(
            "{} requests in {:?}, {} failed",
            report.sent,
            report.elapsed,
            report.failed.len()
        );
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        let rate = report.sent as f64 / report.elapsed.as_secs_f64();
        assert!(rate >= 20.0, "only {rate} requests a second");
        report
    }
}
