//! `countersign check`: asks the operator's own endpoints, for `helm test` in an image without shell.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One endpoint that takes longer than this fails.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks every URL; fails when one does not answer 200.
pub(super) fn run(urls: &[String]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut failed = 0;
        for url in urls {
            let answer = timeout(LIMIT, status(url)).await;
            match answer.unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}"))) {
                Ok(line) if line.split(' ').nth(1) == Some("200") => println!("ok      {url}"),
                Ok(line) | Err(line) => {
                    failed += 1;
                    println!("failed  {url}: {line}");
                }
            }
        }
        if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} checks failed", urls.len())) }
    })
}

/// The status line of a GET over plain HTTP.
async fn status(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("http://").ok_or("only http:// URLs are checked")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address =
        if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let ask = async {
        let mut stream = TcpStream::connect(&address).await?;
        let request = format!("GET /{path} HTTP/1.0\r\nHost: {authority}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(64 * 1024).read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask.await.map_err(|error| error.to_string())?;
    Ok(answer.lines().next().unwrap_or("an empty answer").to_owned())
}
