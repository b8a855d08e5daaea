//! `countersign check`: asks the operator's own endpoints, for `helm test` in an image without shell.

use std::time::Duration;

use tokio::time::timeout;

use crate::cluster::http::{self, Answer};

/// One endpoint that takes longer than this fails.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks every URL; fails when one does not answer 200.
pub(super) fn run(urls: &[String]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut failed = 0;
        for url in urls {
            let answer = timeout(LIMIT, ask(url)).await;
            match answer.unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}"))) {
                Ok(answer) if answer.is_ok() => println!("ok      {url}"),
                Ok(Answer { status: line, .. }) | Err(line) => {
                    failed += 1;
                    println!("failed  {url}: {line}");
                }
            }
        }
        if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} checks failed", urls.len())) }
    })
}

/// A GET over plain HTTP.
async fn ask(url: &str) -> Result<Answer, String> {
    let rest = url.strip_prefix("http://").ok_or("only http:// URLs are checked")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address =
        if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    http::get(&address, authority, &format!("/{path}")).await.map_err(|error| error.to_string())
}
