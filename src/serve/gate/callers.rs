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
