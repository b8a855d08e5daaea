//! Another service decides beside the certificate: the gate asks it about each request.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, Uri};
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::warn;

use super::{Refusal, form};
use crate::api::gate::Authorizer;
use crate::cluster::http;
use crate::plan::destination::{Network, may_reach};

/// So many questions are under way at once; further requests are refused.
const AT_ONCE: usize = 256;

/// Asks the services that trusts name.
pub struct Authorizers {
    // Only these are reached; when there is none, everything but this host and link-local addresses.
    networks: Vec<Network>,
    places: Arc<Semaphore>,
}

impl Authorizers {
    /// With a bound on where they may be.
    pub fn new(networks: Vec<Network>) -> Self {
        Self { networks, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Does the service let the request pass?
    pub async fn check(
        &self,
        service: &Authorizer,
        authorization: Option<&HeaderValue>,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Result<(), Refusal> {
        let _place = self.places.try_acquire().map_err(|_| Refusal::Busy)?;
        let limit = Duration::from_secs(service.timeout.as_secs().unsigned_abs());
        let certificate = certificate.map(form::client_cert);
        let headers = [("authorization", authorization), ("client-cert", certificate.as_ref())];
        let answer = timeout(limit, self.ask(&service.endpoint, &headers)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        match answer {
            Ok(200..=299) => Ok(()),
            Ok(401) => Err(Refusal::PasswordWrong),
            Ok(_) => Err(Refusal::NotAuthorized),
            Err(error) => {
                warn!(
                    endpoint = service.endpoint,
                    error, "the service of a second factor did not decide"
                );
                Err(Refusal::NoAuthorizer)
            }
        }
    }

    async fn ask(
        &self,
        endpoint: &str,
        headers: &[(&str, Option<&HeaderValue>)],
    ) -> Result<u16, String> {
        let uri: Uri = endpoint.parse().map_err(|_| "it is not a URL")?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.ok_or("it must begin with http://")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(80);
        let found =
            tokio::net::lookup_host((host, port)).await.map_err(|error| error.to_string())?;
        let reached: Vec<_> = found.filter(|at| may_reach(at.ip(), &self.networks)).collect();
        if reached.is_empty() {
            return Err("its address may not be reached; see --second-factor-networks".to_owned());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let headers =
            headers.iter().filter_map(|(name, value)| Some((*name, (*value)?.as_bytes())));
        let headers: Vec<_> = headers.collect();
        let status = http::status(&*reached, authority.as_str(), path, &headers).await;
        status.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::duration::Duration as Limit;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A service that gives this answer, and the head of each request that it got.
    fn service(answer: &'static str) -> (Authorizer, std::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (told, heads) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut one = [0];
                    if stream.read(&mut one).unwrap_or(0) == 0 {
                        break;
                    }
                    head.push(one[0]);
                }
                let _ = told.send(String::from_utf8_lossy(&head).into_owned());
                let _ = stream.write_all(answer.as_bytes());
                if answer.is_empty() {
                    std::mem::forget(stream);
                }
            }
        });
        let endpoint = format!("http://127.0.0.1:{port}/check?a=b");
        (Authorizer { endpoint, timeout: Limit::from_secs(1) }, heads)
    }

    fn loopback() -> Authorizers {
        Authorizers::new(vec!["127.0.0.0/8".parse().unwrap()])
    }

    #[tokio::test]
    async fn it_is_told_password_and_certificate_and_its_status_decides() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Ok(())),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", Ok(())),
            ("HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n", Err(Refusal::NotAuthorized)),
            ("HTTP/1.1 401 Unauthorized\r\n\r\n", Err(Refusal::PasswordWrong)),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", Err(Refusal::NotAuthorized)),
            ("HTTP/1.1 500 No\r\n\r\n", Err(Refusal::NotAuthorized)),
            ("HTTP/1.1 200 OK\r\n", Err(Refusal::NoAuthorizer)),
            ("HTTP/1.1 20 OK\r\n\r\n", Err(Refusal::NotAuthorized)),
            ("200 OK\r\n\r\n", Err(Refusal::NoAuthorizer)),
            ("SSH-2.0\r\n\r\n", Err(Refusal::NoAuthorizer)),
            // It says nothing.
            ("", Err(Refusal::NoAuthorizer)),
        ] {
            // The stream ends where there is an answer, whole or not.
            let (service, heads) = service(answer);
            let (password, der) = ("Basic YTpi".parse().unwrap(), CertificateDer::from(&b"A"[..]));
            let told = loopback().check(&service, Some(&password), Some(&der)).await;
            assert_eq!(told, expected, "{answer}");
            let head = heads.recv().unwrap().to_ascii_lowercase();
            assert!(head.starts_with("get /check?a=b http/1"), "{head}");
            assert!(head.contains("\r\nauthorization: basic ytpi\r\n"), "{head}");
            assert!(head.contains("\r\nclient-cert: :qq==:\r\n"), "{head}");
        }
    }

    #[tokio::test]
    async fn this_host_is_not_reached_and_one_that_is_away_lets_nobody_pass() {
        let (good, heads) = service("HTTP/1.1 200 OK\r\n\r\n");
        let answer = Authorizers::new(Vec::new()).check(&good, None, None).await;
        assert_eq!(answer, Err(Refusal::NoAuthorizer));
        assert!(heads.try_recv().is_err(), "nobody asked");
        assert_eq!(loopback().check(&good, None, None).await, Ok(()));
        let head = heads.recv().unwrap().to_ascii_lowercase();
        assert!(!head.contains("authorization") && !head.contains("client-cert"), "{head}");
        for endpoint in ["http://127.0.0.1:1/", "https://127.0.0.1/", "x", "http://x.invalid/"] {
            let away = Authorizer { endpoint: endpoint.into(), ..good.clone() };
            let answer = loopback().check(&away, None, None).await;
            assert_eq!(answer, Err(Refusal::NoAuthorizer), "{endpoint}");
        }
    }
}
