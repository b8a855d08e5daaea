//! Who may ask the gate over TLS: whoever shows a certificate of the callers' authority, is judged as the gate judges
//! clients. In the handshake, and again at each request, since a connection may be older than a revocation.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tracing::warn;

use super::{Gate, Policy, Refusal, decide, router};
use crate::cluster::tls;
use crate::metrics::GateLabels;
use crate::serve::tls_listener::TlsListener;

/// What decides about callers.
pub struct Callers {
    gate: Gate,
    policy: Policy,
    provider: Arc<CryptoProvider>,
}

/// The certificate that the caller of a connection showed in the handshake.
#[derive(Clone, Debug)]
pub struct Caller(Option<CertificateDer<'static>>);

impl Connected<IncomingStream<'_, TlsListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        let (_, session) = stream.io().get_ref();
        Self(session.peer_certificates().and_then(|chain| chain.first()).cloned())
    }
}

/// The routes of the gate, for these callers alone.
pub fn guarded(callers: Arc<Callers>) -> Router {
    router(callers.gate.clone()).layer(middleware::from_fn_with_state(callers, admitted))
}

async fn admitted(
    State(callers): State<Arc<Callers>>,
    ConnectInfo(Caller(certificate)): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    match callers.judge(certificate.as_ref(), Timestamp::now()) {
        Ok(()) => next.run(request).await,
        // A data plane hands this on to its client, who is not to blame.
        Err(_) => {
            let message =
                "the gate does not answer this data plane; ask the operator of this service\n";
            (StatusCode::FORBIDDEN, message).into_response()
        }
    }
}

impl Callers {
    /// Those with a certificate of this authority.
    pub fn new(gate: Gate, authority: &str) -> Self {
        let authorities = vec![authority.to_owned()];
        let policy = Policy { required: true, authorities, trust: None };
        Self { gate, policy, provider: tls::provider() }
    }

    /// May who showed this certificate ask? A refusal is counted.
    fn judge(
        &self,
        certificate: Option<&CertificateDer<'_>>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let stale_at = self.gate.confirmed.stale_at(self.gate.max_staleness);
        let decision = decide(&self.gate.view.load(), stale_at, &self.policy, certificate, now);
        decision.inspect_err(|refusal| {
            let labels = GateLabels { decision: "caller_refused" };
            self.gate.metrics.gate_decisions.get_or_create(&labels).inc();
            warn!(reason = refusal.label(), "refused a caller of the gate");
        })
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Callers").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Callers {
    /// Names none: the CAs of the authority change while connections stay.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.judge(Some(certificate), Timestamp::now()) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(Refusal::Revoked) => Err(CertificateError::Revoked.into()),
            Err(Refusal::UnknownAuthority) => Err(CertificateError::UnknownIssuer.into()),
            Err(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gate, view_until};
    use super::*;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::Entry;
    use crate::pki::inspect::inspect;
    use crate::pki::issue::tests::sample_pair;
    use crate::pki::{CertificateAuthority, PrivateKey};
    use crate::serve::view::View;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::RootCertStore;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls_pki_types::{PrivateKeyDer, ServerName};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    type Pair = (CertificateDer<'static>, PrivateKey);

    const LATER: &str = "2036-01-01T00:00:00Z";
    /// No caller's clock.
    const PAST: &str = "2026-06-02T00:00:00Z";

    fn pair(ca: &CertificateAuthority) -> Pair {
        sample_pair(ca, instant("2035-01-01T00:00:00Z"))
    }

    fn revoked((certificate, _): &Pair) -> Entry {
        let serial = inspect(certificate).unwrap().serial;
        Entry { serial, revoked_at: instant("2026-05-31T00:00:00Z"), reason: None }
    }

    /// A gate with these CRLs, which were confirmed just now.
    fn gate_of(view: View) -> Gate {
        let gate = gate(view, "{}");
        gate.confirmed.confirm(Timestamp::now(), &gate.metrics);
        gate
    }

    /// A gate that listens, and by which certificate callers know it.
    struct Served {
        address: SocketAddr,
        certificate: CertificateDer<'static>,
    }

    /// Has it answer callers of the authority `staff`.
    async fn serve(gate: &Gate) -> Served {
        let callers = Arc::new(Callers::new(gate.clone(), "staff"));
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["gate.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let own = CertifiedKey::from_der(vec![certificate.clone()], key, &tls::provider()).unwrap();
        let config = tls::server(callers.clone(), Arc::new(SingleCertAndKey::from(own))).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TlsListener::start(listener, config).unwrap();
        let address = axum::serve::Listener::local_addr(&listener).unwrap();
        let service = guarded(callers).into_make_service_with_connect_info::<Caller>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        Served { address, certificate }
    }

    async fn connect(
        served: &Served,
        pair: Option<(&CertificateDer<'static>, &PrivateKey)>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let pair = pair.map(|(certificate, key)| {
            let key = PrivateKeyDer::try_from(key.pkcs8_der().to_vec()).unwrap();
            (vec![certificate.clone()], key)
        });
        let mut roots = RootCertStore::empty();
        roots.add(served.certificate.clone()).unwrap();
        let config = tls::client(tls::verifier(roots).unwrap(), pair);
        let config = config.map_err(std::io::Error::other)?;
        let stream = TcpStream::connect(served.address).await?;
        let name = ServerName::try_from("gate.example").unwrap();
        TlsConnector::from(config).connect(name, stream).await
    }

    /// The answer over a connection that stays; empty when it was closed.
    async fn ask(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
        let question = "/gate/traefik?mode=Optional&authority=staff";
        let request = format!("GET {question} HTTP/1.1\r\nHost: gate.example\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    /// Does whoever shows this get no answer at all?
    async fn is_shut_out(
        served: &Served,
        pair: Option<(&CertificateDer<'static>, &PrivateKey)>,
    ) -> bool {
        match connect(served, pair).await {
            Ok(mut stream) => ask(&mut stream).await.is_err(),
            Err(_) => true,
        }
    }

    #[tokio::test]
    async fn only_a_good_certificate_of_the_callers_authority_gets_an_answer() {
        let (ca, other) = (sample(), sample());
        let (good, stolen, stranger) = (pair(&ca), pair(&ca), pair(&other));
        let old = sample_pair(&ca, instant(PAST));
        let gate = gate_of(view_until(&ca, LATER, &[revoked(&stolen)]));
        let served = serve(&gate).await;
        for _ in 0..2 {
            let mut stream = connect(&served, Some((&good.0, &good.1))).await.unwrap();
            let answer = ask(&mut stream).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        assert!(is_shut_out(&served, None).await);
        for (certificate, key) in [&stolen, &stranger, &old] {
            assert!(is_shut_out(&served, Some((certificate, key))).await);
        }
        // Who knows the certificate alone has not its key.
        assert!(is_shut_out(&served, Some((&good.0, &stranger.1))).await);
        let refused = GateLabels { decision: "caller_refused" };
        assert_eq!(gate.metrics.gate_decisions.get_or_create(&refused).get(), 3);
    }

    #[tokio::test]
    async fn a_connection_that_is_open_lasts_no_longer_than_the_right_to_ask() {
        let ca = sample();
        let good = pair(&ca);
        let fresh = || Arc::new(view_until(&ca, LATER, &[]));
        let gate = gate_of(view_until(&ca, LATER, &[]));
        let served = serve(&gate).await;
        let mut stream = connect(&served, Some((&good.0, &good.1))).await.unwrap();
        let mut status = async || ask(&mut stream).await.unwrap()[9..12].to_owned();
        assert_eq!(status().await, "200");
        for (view, why) in [
            (view_until(&ca, LATER, &[revoked(&good)]), "revoked"),
            (view_until(&ca, PAST, &[]), "the CRL has expired"),
            (view_until(&sample(), LATER, &[]), "another CA"),
            (View::default(), "nothing is known"),
        ] {
            gate.view.store(Arc::new(view));
            assert_eq!(status().await, "403", "{why}");
            gate.view.store(fresh());
            assert_eq!(status().await, "200", "{why}");
        }
        gate.confirmed.confirm(instant(PAST), &gate.metrics);
        assert_eq!(status().await, "403", "nobody confirmed the CRLs for long");
    }
}
