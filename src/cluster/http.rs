//! A GET over plain HTTP/1.0: all that the operator's own endpoints need of a client.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};

/// A longer answer is cut off.
const LONGEST: u64 = 4 * 1024 * 1024;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its first line, such as `HTTP/1.1 200 OK`.
    pub status: String,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// Is its status 200?
    pub fn is_ok(&self) -> bool {
        self.status.split(' ').nth(1) == Some("200")
    }
}

/// Asks `address` for a path; `host` is what the request calls it.
pub async fn get(address: impl ToSocketAddrs, host: &str, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or("an empty answer").to_owned();
    Ok(Answer { status, body: body.to_owned() })
}
