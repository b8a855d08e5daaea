//! GETs over HTTP/1.0: all that the operator's own endpoints, and services that the gate asks, need of a client,
//! also in an image without a shell.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its first line, such as `HTTP/1.1 200 OK`.
    pub status: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Is its status 200?
    pub fn is_ok(&self) -> bool {
        self.status.split(' ').nth(1) == Some("200")
    }
}

/// Asks an http:// URL; an answer of more than `limit` octets is an error.
pub async fn ask(url: &str, limit: u64) -> Result<Answer, String> {
    let rest = url.strip_prefix("http://").ok_or("only http:// URLs are asked")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address =
        if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let answer = get(address, authority, &format!("/{path}"), limit).await;
    answer.map_err(|error| error.to_string())
}

/// Asks `address` for a path; `host` is what the request calls it.
pub async fn get(
    address: impl ToSocketAddrs,
    host: &str,
    path: &str,
    limit: u64,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(limit).read_to_end(&mut answer).await?;
    parse(&answer)
}

/// Longest head of an answer that is read.
const HEAD_LIMIT: usize = 16 * 1024;

/// The status of the answer to a request over this connection, with these headers, whose values hold no line breaks;
/// its body is not read.
pub async fn status(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
    headers: &[(&str, &[u8])],
) -> io::Result<u16> {
    let mut request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n").into_bytes();
    for (name, value) in headers {
        request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    stream.write_all(&request).await?;
    // TLS may keep back a part.
    stream.flush().await?;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|octets| octets == b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 || answer.len() > HEAD_LIMIT {
            return Err(io::Error::other("the head of the answer is cut short or too long"));
        }
    }
    let line = answer.split(|octet| *octet == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).ok().filter(|line| line.starts_with("HTTP/1."));
    let status = line.and_then(|line| line.split(' ').nth(1)?.parse().ok());
    status.ok_or_else(|| io::Error::other("the answer is none of HTTP"))
}

fn parse(answer: &[u8]) -> io::Result<Answer> {
    let end = answer.windows(4).position(|octets| octets == b"\r\n\r\n");
    let end = end.ok_or_else(|| io::Error::other("an empty answer, or none of HTTP"))?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let body = answer[end + 4..].to_vec();
    let length = head.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if length.is_some_and(|length| length != body.len()) {
        return Err(io::Error::other("the answer was cut short"));
    }
    Ok(Answer { status: head.lines().next().unwrap_or_default().to_owned(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_cut_short_is_none() {
        let answer = parse(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab").unwrap();
        assert!(answer.is_ok());
        assert_eq!(answer.body, b"ab");
        assert!(!parse(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap().is_ok());
        for bad in [&b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nab"[..], b"", b"nonsense"] {
            assert!(parse(bad).is_err());
        }
    }
}
