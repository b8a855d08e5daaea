//! One request as a client makes it: a new connection, a handshake, a GET, the status line of the answer.
//! Nothing is resumed, no redirect is followed, and no body is read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::api::canary::Reason;
use crate::cluster::tls;
use crate::pki::PrivateKey;
use crate::pki::verify::verify_pinned_server;
use crate::plan::destination::{Destination, Network, may_reach};
use crate::plan::trial::Answer;

/// An attempt that takes longer tells nothing.
const LIMIT: Duration = Duration::from_secs(5);
/// What of an answer is read to find its status.
const HEAD_LIMIT: usize = 16 * 1024;

/// Whose word is taken for who a server is.
pub(super) enum Trust {
    /// The roots of the system's store.
    System,
    /// These CAs, and these very certificates.
    Given(Vec<CertificateDer<'static>>),
    /// Nobody's: every server is taken.
    Anybody,
}

/// Verifies servers.
#[derive(Clone, Debug)]
pub(super) struct Servers(Arc<Verifier>);

impl Servers {
    /// Servers that are verified so; or why none could be.
    pub(super) fn new(trust: Trust) -> Result<Self, String> {
        let (roots, given) = match trust {
            Trust::Anybody => (None, Vec::new()),
            Trust::Given(given) => (Some(given.clone()), given),
            Trust::System => {
                let found = rustls_native_certs::load_native_certs().certs;
                if found.is_empty() {
                    let why = "the operator's image holds no roots of the system; set spec.canary.serverCA";
                    return Err(why.to_owned());
                }
                (Some(found), Vec::new())
            }
        };
        let web_pki = match roots {
            None => None,
            Some(certificates) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates);
                Some(tls::verifier(roots)?)
            }
        };
        Ok(Self(Arc::new(Verifier { web_pki, given, provider: tls::provider() })))
    }

    /// A client without a certificate, or with one: its chain and its key.
    pub(super) fn client(
        &self,
        certificate: Option<(Vec<CertificateDer<'static>>, &PrivateKey)>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let certificate = certificate.map(|(chain, key)| {
            let key = PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec());
            (chain, PrivateKeyDer::Pkcs8(key))
        });
        tls::client(self.0.clone(), certificate)
    }
}

#[derive(Debug)]
struct Verifier {
    /// None: every server is taken.
    web_pki: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates that are taken for themselves: what a self-signed server shows is no CA's.
    given: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(web_pki) = &self.web_pki else { return Ok(ServerCertVerified::assertion()) };
        if self.given.iter().any(|given| given == certificate) {
            verify_pinned_server(certificate, server_name, now)
                .map_err(|why| CertificateError::Other(rustls::OtherError(Arc::new(why))))?;
            return Ok(ServerCertVerified::assertion());
        }
        web_pki.verify_server_cert(certificate, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Asks once, over a new connection.
pub(super) async fn ask(
    client: Arc<ClientConfig>,
    destination: &Destination,
    networks: &[Network],
) -> Answer {
    let asked = timeout(LIMIT, attempt(client, destination, networks)).await;
    asked.unwrap_or_else(|_| unreachable(format!("no answer in {} s", LIMIT.as_secs())))
}

fn unreachable(why: impl Into<String>) -> Answer {
    Answer::Neither(Reason::Unreachable, why.into())
}

async fn attempt(
    client: Arc<ClientConfig>,
    destination: &Destination,
    networks: &[Network],
) -> Answer {
    let stream = match connect(destination, networks).await {
        Ok(stream) => stream,
        Err(answer) => return answer,
    };
    let connector = TlsConnector::from(client);
    let mut stream = match connector.connect(destination.server_name.clone(), stream).await {
        Ok(stream) => stream,
        Err(error) => return of_error(&error, false),
    };
    let Destination { path, authority, .. } = destination;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: countersign-canary/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    // A server that refuses may have closed already: why, is still to be read.
    let sent = stream.write_all(request.as_bytes()).await;
    if sent.is_ok() {
        let _ = stream.flush().await;
    }
    let mut head = Vec::new();
    loop {
        match status(&head) {
            Ok(Some(status)) => return Answer::of_status(status),
            Ok(None) if head.len() < HEAD_LIMIT => {}
            Ok(None) | Err(NotHttp) => return unreachable("the answer is not HTTP/1.1"),
        }
        match stream.read_buf(&mut head).await {
            Ok(0) => return of_error(&io::ErrorKind::UnexpectedEof.into(), true),
            Ok(_) => {}
            Err(error) => return of_error(&error, true),
        }
    }
}

/// Connects to the first address that may be reached and answers.
async fn connect(destination: &Destination, networks: &[Network]) -> Result<TcpStream, Answer> {
    let Destination { host, port, .. } = destination;
    let found = tokio::net::lookup_host((host.as_str(), *port)).await;
    let found: Vec<SocketAddr> =
        found.map_err(|error| unreachable(format!("{host}: {error}")))?.collect();
    let mut answer = unreachable(format!("{host} has no address"));
    for address in found {
        // What the name resolved to, not the name: it may be somebody else's to change.
        if !may_reach(address.ip(), networks) {
            let why = format!("{host} is {}, where the operator may not connect", address.ip());
            answer = Answer::Neither(Reason::AddressNotAllowed, why);
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => answer = unreachable(format!("{address}: {error}")),
        }
    }
    Err(answer)
}

/// What a failed connection says of the client. `certified`: the client has finished its handshake, so
/// that the server has seen what it shows.
fn of_error(error: &io::Error, certified: bool) -> Answer {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) if is_refusal(*alert) => {
            Answer::Refused(format!("TLS alert {alert:?}"))
        }
        Some(rustls::Error::InvalidCertificate(why)) => {
            Answer::Neither(Reason::ServerNotVerified, why.to_string())
        }
        // With TLS 1.3 a server tells of its refusal after the client's handshake, and some only close.
        None if certified && is_end(error.kind()) => {
            Answer::Refused("the connection was closed after the handshake".to_owned())
        }
        _ => unreachable(error.to_string()),
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

/// Does an alert say that the client's certificate, or that there is none, is the reason? OpenSSL says
/// `handshake_failure` in TLS 1.2 when there is none.
fn is_refusal(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::HandshakeFailure
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

#[derive(Debug, PartialEq, Eq)]
struct NotHttp;

/// The status of the final response (RFC 9112 section 4), as far as it was read; interim ones are passed
/// over.
fn status(mut head: &[u8]) -> Result<Option<u16>, NotHttp> {
    loop {
        let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") else {
            return Ok(None);
        };
        let status = match &head[..end] {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', code @ ..] => {
                let code = code.split(|byte| *byte == b' ').next().unwrap_or_default();
                let code = std::str::from_utf8(code).ok().filter(|code| code.len() == 3);
                code.and_then(|code| code.parse().ok()).ok_or(NotHttp)?
            }
            _ => return Err(NotHttp),
        };
        if status >= 200 {
            return Ok(Some(status));
        }
        let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        head = &head[end + 4..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    #[test]
    fn the_status_of_the_final_response_counts() {
        for (head, expected) in [
            ("", Ok(None)),
            ("HTTP/1.1 200", Ok(None)),
            ("HTTP/1.1 200 OK\r\n", Ok(Some(200))),
            ("HTTP/1.0 403 Forbidden\r\nA: b\r\n\r\n", Ok(Some(403))),
            ("HTTP/1.1 495\r\n", Ok(Some(495))),
            ("HTTP/1.1 103 Early Hints\r\nLink: a\r\n", Ok(None)),
            (
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 No Content\r\n",
                Ok(Some(204)),
            ),
            ("HTTP/2 200\r\n", Err(NotHttp)),
            ("HTTP/1.1 20 OK\r\n", Err(NotHttp)),
            ("HTTP/1.1 2000 OK\r\n", Err(NotHttp)),
            ("SSH-2.0-OpenSSH_9.2\r\n", Err(NotHttp)),
        ] {
            assert_eq!(status(head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn only_what_concerns_the_client_is_a_refusal() {
        let alert = |alert| io::Error::other(rustls::Error::AlertReceived(alert));
        let refused =
            |error: &io::Error, certified| matches!(of_error(error, certified), Answer::Refused(_));
        assert!(refused(&alert(AlertDescription::CertificateRevoked), true));
        assert!(refused(&alert(AlertDescription::HandshakeFailure), false));
        assert!(!refused(&alert(AlertDescription::UnrecognisedName), false));
        assert!(!refused(&alert(AlertDescription::InternalError), true));
        let closed = io::ErrorKind::ConnectionReset.into();
        assert!(refused(&closed, true));
        assert!(!refused(&closed, false), "before the client showed anything");
        assert!(!refused(&io::ErrorKind::ConnectionRefused.into(), true));
    }

    proptest! {
        #[test]
        fn foreign_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = status(&bytes);
        }
    }
}
