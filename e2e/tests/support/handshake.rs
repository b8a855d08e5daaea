//! One TLS connection by OpenSSL's client, which tells what curl does not: the alert, and whether a session
//! was resumed.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::program;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n";

/// What came of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The HTTP status, 0 when there was no answer.
    pub status: u16,
    /// The text of the alert that the server sent, if any.
    pub alert: Option<String>,
    /// Did the server take up the session that it was shown?
    pub resumed: bool,
    /// All that OpenSSL said.
    pub text: String,
}

impl Handshake {
    /// Was the client let in?
    pub fn is_in(&self) -> bool {
        self.status == 200
    }

    fn read(text: String) -> Self {
        let status = text.split("HTTP/1.1 ").nth(1).and_then(|rest| rest.get(..3)?.parse().ok());
        // Such as `error:0A000414:SSL routines:ssl3_read_bytes:sslv3 alert certificate revoked:../ssl/...`
        let alert = text.split(" alert ").nth(1).and_then(|rest| rest.split(':').next());
        Self {
            status: status.unwrap_or(0),
            alert: alert.map(str::to_owned),
            resumed: text.contains("\nReused, "),
            text,
        }
    }
}

/// Connects to a server on this machine with the certificate of `identity`, a folder as [`super::pki::Client`]
/// writes it, and asks for `/`.
pub fn handshake(port: u16, identity: &Path, more: &[&str]) -> Handshake {
    let mut child = client(port, identity, more);
    let request = format!("{REQUEST}Connection: close\r\n\r\n");
    // A server that refused has closed the connection by now.
    let _ = child.stdin.as_mut().expect("a pipe").write_all(request.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    Handshake::read(String::from_utf8_lossy(&text).into_owned())
}

fn client(port: u16, identity: &Path, more: &[&str]) -> Child {
    // OpenSSL's client waits for the end of the connection without a limit of its own.
    let mut command = Command::new(program("timeout"));
    command
        .arg("15")
        .arg(program("openssl"))
        .args(["s_client", "-ign_eof", "-connect", &format!("127.0.0.1:{port}"), "-cert"])
        .arg(identity.join("tls.crt"))
        .arg("-key")
        .arg(identity.join("tls.key"))
        .args(more);
    // Of `tls.crt` it takes the first certificate alone.
    let intermediates = identity.join("intermediates.pem");
    if intermediates.exists() {
        command.arg("-cert_chain").arg(intermediates);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl starts")
}

/// A TLS session of a client, kept in a file.
pub struct Session {
    file: PathBuf,
    version: &'static str,
}

impl Session {
    /// Connects with TLS `1_2` or `1_3`; the session that the server gave, if it gave one.
    pub fn begin(port: u16, identity: &Path, version: &'static str) -> (Handshake, Option<Self>) {
        let file = identity.join(format!("session-{version}.pem"));
        let _ = std::fs::remove_file(&file);
        let more = [&format!("-tls{version}"), "-sess_out", &file.display().to_string()];
        let first = handshake(port, identity, &more);
        // OpenSSL writes an empty file when there is nothing to keep.
        let kept = std::fs::metadata(&file).is_ok_and(|file| file.len() > 0);
        (first, kept.then_some(Self { file, version }))
    }

    /// Shows the session to the server.
    pub fn resume(&self, port: u16, identity: &Path) -> Handshake {
        let file = self.file.display().to_string();
        handshake(port, identity, &[&format!("-tls{}", self.version), "-sess_in", &file])
    }
}

/// A connection that stays open between two requests.
pub struct Connection {
    client: Child,
}

impl Connection {
    /// Connects, and makes a first request; panics unless it is answered by 200.
    pub fn open(port: u16, identity: &Path) -> Self {
        let mut connection = Self { client: client(port, identity, &["-quiet"]) };
        let answer = connection.ask();
        assert!(answer.contains("HTTP/1.1 200"), "{answer}");
        connection
    }

    /// Makes a request; what came until the body `hello`, the end, or five seconds later.
    pub fn ask(&mut self) -> String {
        let request = format!("{REQUEST}\r\n");
        let stdin = self.client.stdin.as_mut().expect("a pipe");
        if stdin.write_all(request.as_bytes()).is_err() {
            return String::new();
        }
        let (mut text, mut buffer, started) = (String::new(), [0; 4096], Instant::now());
        // The client ends by itself (see `client`), so that a read does not wait for ever.
        while !text.contains("hello") && started.elapsed() < Duration::from_secs(5) {
            match self.client.stdout.as_mut().expect("a pipe").read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
            }
        }
        text
    }

    /// Has the server closed it? OpenSSL's client ends with it.
    pub fn is_closed(&mut self) -> bool {
        self.client.try_wait().expect("a child").is_some()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
