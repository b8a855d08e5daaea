//! Another service decides beside the certificate: the gate asks it about each request.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::warn;

use super::{Refusal, form};
use crate::api::gate::Authorizer;
use crate::cluster::{http, tls};
use crate::plan::destination::{Destination, Network, may_reach};
use crate::plan::gate::authorizer;

/// So many questions are under way at once; further requests are refused.
const AT_ONCE: usize = 256;

/// A service that a trust names, ready to be asked.
pub struct Service {
    destination: Destination,
    limit: Duration,
    // None: it is asked over plain HTTP.
    client: Option<Arc<ClientConfig>>,
}

impl Service {
    /// What is said of it must do for that.
    pub fn new(service: &Authorizer) -> Result<Self, String> {
        let (destination, roots) = authorizer::read(service)?;
        let client = roots.map(|roots| {
            tls::client(tls::verifier(roots)?, None).map_err(|error| error.to_string())
        });
        let limit = Duration::from_secs(service.timeout.as_secs().unsigned_abs());
        Ok(Self { destination, limit, client: client.transpose()? })
    }
}

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
        service: &Service,
        authorization: Option<&HeaderValue>,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Result<(), Refusal> {
        let _place = self.places.try_acquire().map_err(|_| Refusal::Busy)?;
        let limit = service.limit;
        let certificate = certificate.map(form::client_cert);
        let headers = [("authorization", authorization), ("client-cert", certificate.as_ref())];
        let answer = timeout(limit, self.ask(service, &headers)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        match answer {
            Ok(200..=299) => Ok(()),
            Ok(401) => Err(Refusal::PasswordWrong),
            Ok(_) => Err(Refusal::NotAuthorized),
            Err(error) => {
                warn!(
                    endpoint = service.destination.url,
                    error, "the service of a second factor did not decide"
                );
                Err(Refusal::NoAuthorizer)
            }
        }
    }

    async fn ask(
        &self,
        service: &Service,
        headers: &[(&str, Option<&HeaderValue>)],
    ) -> Result<u16, String> {
        let Destination { host, port, server_name, authority, path, .. } = &service.destination;
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        let found = found.map_err(|error| error.to_string())?;
        let reached: Vec<_> = found.filter(|at| may_reach(at.ip(), &self.networks)).collect();
        if reached.is_empty() {
            return Err("its address may not be reached; see --second-factor-networks".to_owned());
        }
        let headers =
            headers.iter().filter_map(|(name, value)| Some((*name, (*value)?.as_bytes())));
        let headers: Vec<_> = headers.collect();
        let stream = TcpStream::connect(&*reached).await.map_err(|error| error.to_string())?;
        let status = match &service.client {
            None => http::status(stream, authority, path, &headers).await,
            Some(client) => {
                let connector = TlsConnector::from(client.clone());
                let stream = connector.connect(server_name.clone(), stream).await;
                let stream = stream.map_err(|error| format!("TLS: {error}"))?;
                http::status(stream, authority, path, &headers).await
            }
        };
        status.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::duration::Duration as Limit;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls::{ServerConfig, SupportedProtocolVersion, version};
    use rustls_pki_types::PrivateKeyDer;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsAcceptor;

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
        (Authorizer { endpoint, ca_bundle: None, timeout: Limit::from_secs(1) }, heads)
    }

    fn ready(service: &Authorizer) -> Service {
        Service::new(service).unwrap()
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
            let told = loopback().check(&ready(&service), Some(&password), Some(&der)).await;
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
        let answer = Authorizers::new(Vec::new()).check(&ready(&good), None, None).await;
        assert_eq!(answer, Err(Refusal::NoAuthorizer));
        assert!(heads.try_recv().is_err(), "nobody asked");
        assert_eq!(loopback().check(&ready(&good), None, None).await, Ok(()));
        let head = heads.recv().unwrap().to_ascii_lowercase();
        assert!(!head.contains("authorization") && !head.contains("client-cert"), "{head}");
        for endpoint in ["http://127.0.0.1:1/", "http://x.invalid/"] {
            let away = Authorizer { endpoint: endpoint.into(), ..good.clone() };
            let answer = loopback().check(&ready(&away), None, None).await;
            assert_eq!(answer, Err(Refusal::NoAuthorizer), "{endpoint}");
        }
        for endpoint in ["https://127.0.0.1/", "x"] {
            let never = Authorizer { endpoint: endpoint.into(), ..good.clone() };
            assert!(Service::new(&never).is_err(), "{endpoint}");
        }
    }

    fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// The port of a server on this host that answers 200, or nothing, by a certificate that the authority signed for
    /// a host until the end of a year; and the head of each request that it got.
    async fn tls_service(
        authority: &CertifiedIssuer<'_, KeyPair>,
        (host, year): (&str, i32),
        versions: &[&'static SupportedProtocolVersion],
        answers: bool,
    ) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, authority).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        // A client that offers others only, or none at all, is not what we want to see.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (told, heads) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0
                {
                }
                told.send(String::from_utf8(head).unwrap()).unwrap();
                if answers {
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    let _ = stream.shutdown().await;
                } else {
                    std::mem::forget(stream);
                }
            }
        });
        (port, heads)
    }

    fn over_tls(host: &str, port: u16, authority: &CertifiedIssuer<'_, KeyPair>) -> Service {
        ready(&Authorizer {
            endpoint: format!("https://{host}:{port}/check"),
            ca_bundle: Some(authority.pem()),
            timeout: Limit::from_secs(1),
        })
    }

    #[tokio::test]
    async fn over_tls_it_is_asked_where_its_certificate_is_of_the_bundle() {
        let ours = authority("ours");
        for version in [&version::TLS12, &version::TLS13] {
            for host in ["127.0.0.1", "localhost"] {
                let (port, mut heads) = tls_service(&ours, (host, 4000), &[version], true).await;
                let service = over_tls(host, port, &ours);
                // Each request needs a handshake of its own.
                for _ in 0..2 {
                    let password = "Basic YTpi".parse().unwrap();
                    let told = loopback().check(&service, Some(&password), None).await;
                    assert_eq!(told, Ok(()), "{version:?} {host}");
                    let head = heads.recv().await.unwrap().to_ascii_lowercase();
                    assert!(head.starts_with("get /check http/1"), "{head}");
                    assert!(head.contains(&format!("\r\nhost: {host}:{port}\r\n")), "{head}");
                    assert!(head.contains("\r\nauthorization: basic ytpi\r\n"), "{head}");
                }
            }
        }
    }

    #[tokio::test]
    async fn over_tls_who_is_not_verified_is_told_nothing() {
        let (ours, namesake, other) = (authority("ours"), authority("ours"), authority("other"));
        let both = [&version::TLS12, &version::TLS13];
        for (signer, host, year, why) in [
            (&other, "127.0.0.1", 4000, "invalid peer certificate: UnknownIssuer"),
            (&namesake, "127.0.0.1", 4000, "invalid peer certificate: BadSignature"),
            (&ours, "127.0.0.2", 4000, "not valid for name \"127.0.0.1\""),
            (&ours, "login.example.com", 4000, "not valid for name \"127.0.0.1\""),
            (&ours, "127.0.0.1", 2020, "certificate expired"),
        ] {
            let (port, mut heads) = tls_service(signer, (host, year), &both, true).await;
            let service = over_tls("127.0.0.1", port, &ours);
            let told = loopback().check(&service, None, None).await;
            assert_eq!(told, Err(Refusal::NoAuthorizer), "{why}");
            let logged = loopback().ask(&service, &[]).await.unwrap_err();
            assert!(logged.starts_with("TLS: ") && logged.contains(why), "{logged}");
            assert!(heads.try_recv().is_err(), "{why}: it was asked");
        }
        // Neither a server without TLS, nor one that says nothing, nor one where nobody may connect.
        let (plain, _heads) = service("HTTP/1.1 200 OK\r\n\r\n");
        let port = plain.endpoint.split([':', '/']).nth(4).unwrap().parse().unwrap();
        let without = over_tls("127.0.0.1", port, &ours);
        let (port, mut heads) = tls_service(&ours, ("127.0.0.1", 4000), &both, false).await;
        let silent = over_tls("127.0.0.1", port, &ours);
        for service in [&without, &silent] {
            let told = loopback().check(service, None, None).await;
            assert_eq!(told, Err(Refusal::NoAuthorizer), "{}", service.destination.url);
        }
        heads.recv().await.unwrap();
        let told = Authorizers::new(Vec::new()).check(&silent, None, None).await;
        assert_eq!(told, Err(Refusal::NoAuthorizer));
        assert!(heads.try_recv().is_err(), "nobody asked");
    }
}
