//! `countersign check`: asks the operator's own endpoints, for `helm test` in an image without shell.

use std::time::Duration;

use tokio::time::timeout;

use crate::cluster::http::ask;

/// One endpoint that takes longer than this fails.
const LIMIT: Duration = Duration::from_secs(10);
/// As much of an answer is read.
const LENGTH: u64 = 4 * 1024 * 1024;

/// Asks every URL; fails when one does not answer 200.
pub(super) fn run(urls: &[String]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut failed = 0;
        for url in urls {
            let answer = timeout(LIMIT, ask(url, LENGTH)).await;
            match answer.unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}"))) {
                Ok(answer) if answer.is_ok() => println!("ok      {url}"),
                Ok(answer) => {
                    failed += 1;
                    println!("failed  {url}: {}", answer.status);
                }
                Err(why) => {
                    failed += 1;
                    println!("failed  {url}: {why}");
                }
            }
        }
        if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} checks failed", urls.len())) }
    })
}
