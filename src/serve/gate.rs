//! The gate: enforces revocation where the data plane has no CRL support. The data plane verifies the
//! handshake and hands the client's certificate over in a header; the gate answers 200 or 403 from
//! memory. Whatever it does not understand is refused.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use tracing::info;

use super::view::View;
use crate::metrics::{GateLabels, Metrics};
use crate::pki::inspect::inspect;
use crate::pki::verify::verify_client;

/// The header in which Traefik's PassTLSClientCert puts the certificate.
const TRAEFIK_HEADER: &str = "x-forwarded-tls-client-cert";

/// Longest certificate that is looked at, base64.
const HEADER_LIMIT: usize = 64 * 1024;

/// What the gate shares between requests.
#[derive(Clone)]
pub struct Gate {
    /// The CRLs.
    pub view: Arc<ArcSwap<View>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No certificate, where one is required.
    NoCertificate,
    /// The header does not hold a certificate.
    BadCertificate,
    /// None of the accepted authorities signed it.
    UnknownAuthority,
    /// It has expired, is not valid yet, or its signature is wrong.
    NotVerified,
    /// It is revoked.
    Revoked,
    /// The CRL of its authority has expired: nobody knows who is revoked.
    CrlExpired,
    /// The request does not say which authorities are accepted.
    BadRequest,
}

impl Refusal {
    /// The label in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::UnknownAuthority => "unknown_authority",
            Self::NotVerified => "not_verified",
            Self::Revoked => "revoked",
            Self::CrlExpired => "crl_expired",
            Self::BadRequest => "bad_request",
        }
    }

    /// What the client is told.
    pub const fn message(self) -> &'static str {
        match self {
            Self::NoCertificate => "a client certificate is required\n",
            Self::BadCertificate => "the client certificate can't be read\n",
            Self::UnknownAuthority => {
                "the client certificate is of an authority that is not accepted here\n"
            }
            Self::NotVerified => "the client certificate is not valid\n",
            Self::Revoked => "the client certificate is revoked\n",
            Self::CrlExpired => {
                "the revocation list has expired; ask the operator of this service\n"
            }
            Self::BadRequest => "the gate is not configured for this route\n",
        }
    }
}

/// What the data plane asks for: `?mode=Required&authority=a&authority=b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    required: bool,
    authorities: Vec<String>,
}

impl Policy {
    /// Reads the query. Anything unknown is refused: a typing error must not open a door.
    pub fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let (mut required, mut authorities) = (None, Vec::new());
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("mode", "Required")) => required = Some(true),
                Some(("mode", "Optional")) => required = Some(false),
                Some(("authority", name)) if !name.is_empty() => authorities.push(name.to_owned()),
                _ => return Err(Refusal::BadRequest),
            }
        }
        match required {
            Some(required) if !authorities.is_empty() => Ok(Self { required, authorities }),
            _ => Err(Refusal::BadRequest),
        }
    }
}

/// The routes of the gate.
pub fn router(gate: Gate) -> Router {
    Router::new().route("/gate/traefik", any(traefik)).with_state(gate)
}

async fn traefik(
    State(gate): State<Gate>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let header = headers.get(TRAEFIK_HEADER).map(|value| value.as_bytes());
    let decision = Policy::parse(query.as_deref())
        .and_then(|policy| decide(&gate.view.load(), &policy, header, Timestamp::now()));
    let label = decision.map_or_else(Refusal::label, |()| "allowed");
    gate.metrics.gate_decisions.get_or_create(&GateLabels { decision: label }).inc();
    match decision {
        Ok(()) => StatusCode::OK.into_response(),
        Err(refusal) => {
            info!(reason = label, "refused");
            (StatusCode::FORBIDDEN, refusal.message()).into_response()
        }
    }
}

/// Decides from memory. `header` is what the data plane forwarded.
pub fn decide(
    view: &View,
    policy: &Policy,
    header: Option<&[u8]>,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Some(header) = header.filter(|header| !header.is_empty()) else {
        return if policy.required { Err(Refusal::NoCertificate) } else { Ok(()) };
    };
    let der = decode(header).ok_or(Refusal::BadCertificate)?;
    let leaf = inspect(&der).map_err(|_| Refusal::BadCertificate)?;
    let published = policy
        .authorities
        .iter()
        .flat_map(|name| view.of_authority(name))
        .find(|p| p.issuer_der == leaf.issuer_der && p.key_id == leaf.authority_key_id)
        .filter(|published| !published.removed)
        .ok_or(Refusal::UnknownAuthority)?;
    // A CA below a root stands on the root's CRL when its key was stolen.
    let (issuer_der, key_id, serial) = &published.above;
    let ca_is_revoked = policy
        .authorities
        .iter()
        .flat_map(|name| view.of_authority(name))
        .filter(|p| p.issuer_der == *issuer_der && p.key_id == *key_id)
        .any(|p| p.revoked.contains(serial));
    if ca_is_revoked || published.revoked.contains(&leaf.serial) {
        return Err(Refusal::Revoked);
    }
    if published.next_update <= now {
        return Err(Refusal::CrlExpired);
    }
    // The data plane has verified it already, unless another route of the host made it not do so.
    verify_client(&der, &[], std::slice::from_ref(&published.ca), now)
        .map_err(|_| Refusal::NotVerified)
}

/// Base64 of the DER without armour, the leaf first, chain separated by commas; some versions of
/// Traefik percent-encode it.
fn decode(header: &[u8]) -> Option<CertificateDer<'static>> {
    if header.len() > HEADER_LIMIT {
        return None;
    }
    let text = std::str::from_utf8(header).ok()?;
    let leaf = text.split(',').next()?;
    let leaf = leaf.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
    STANDARD.decode(leaf.trim()).ok().map(CertificateDer::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::CertificateAuthority;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::{self, CrlNumber, Entry};
    use crate::pki::issue::tests::sample_leaf;
    use crate::plan::ledger::CaKey;
    use crate::plan::publication::{Scope, render};
    use k8s_openapi::api::core::v1::ConfigMap;
    use proptest::prelude::{prop_assert, proptest};

    const NOW: &str = "2026-06-01T00:00:00Z";

    fn head(key: &CaKey, ca: &CertificateAuthority, der: &[u8], number: CrlNumber) -> ConfigMap {
        render(key, Scope::Full, &ca.certificate_pem(), der, &[], number).head
    }

    fn view(ca: &CertificateAuthority, revoked: &[Entry]) -> View {
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant("2026-06-07T00:00:00Z"));
        let der = crl::sign(ca, CrlNumber(1), this, next, revoked).unwrap();
        let key = CaKey::first("staff");
        View::default().with(&head(&key, ca, &der, CrlNumber(1)))
    }

    fn required() -> Policy {
        Policy::parse(Some("mode=Required&authority=staff")).unwrap()
    }

    fn header(leaf: &[u8]) -> Vec<u8> {
        STANDARD.encode(leaf).into_bytes()
    }

    #[test]
    fn a_good_certificate_passes_and_a_revoked_one_does_not() {
        let ca = sample();
        let leaf = sample_leaf(&ca);
        let serial = inspect(&leaf).unwrap().serial;
        let revoked_at = instant("2026-05-31T00:00:00Z");
        let header = header(&leaf);
        let ask = |view: &View| decide(view, &required(), Some(&header), instant(NOW));
        assert_eq!(ask(&view(&ca, &[])), Ok(()));
        let entry = Entry { serial, revoked_at, reason: None };
        assert_eq!(ask(&view(&ca, &[entry])), Err(Refusal::Revoked));
    }

    #[test]
    fn everything_else_is_refused() {
        let ca = sample();
        let view = view(&ca, &[]);
        let good = header(&sample_leaf(&ca));
        let of_other_ca = header(&sample_leaf(&sample()));
        let other = Policy::parse(Some("mode=Required&authority=devices")).unwrap();
        let later = "2026-06-08T00:00:00Z";
        for (policy, header, now, refusal) in [
            (required(), None, NOW, Refusal::NoCertificate),
            (required(), Some(&b""[..]), NOW, Refusal::NoCertificate),
            (required(), Some(&b"%%%"[..]), NOW, Refusal::BadCertificate),
            (required(), Some(&b"AAAA"[..]), NOW, Refusal::BadCertificate),
            (required(), Some(&of_other_ca[..]), NOW, Refusal::UnknownAuthority),
            (other, Some(&good[..]), NOW, Refusal::UnknownAuthority),
            (required(), Some(&good[..]), later, Refusal::CrlExpired),
        ] {
            assert_eq!(decide(&view, &policy, header, instant(now)), Err(refusal));
        }
        let optional = Policy::parse(Some("mode=Optional&authority=staff")).unwrap();
        assert_eq!(decide(&view, &optional, None, instant(NOW)), Ok(()));
        assert!(decide(&view, &optional, Some(b"AAAA"), instant(NOW)).is_err());
    }

    #[test]
    fn a_forged_signature_is_refused() {
        let ca = sample();
        let mut leaf = sample_leaf(&ca).to_vec();
        let last = leaf.len() - 1;
        leaf[last] ^= 1;
        let refused = decide(&view(&ca, &[]), &required(), Some(&header(&leaf)), instant(NOW));
        assert_eq!(refused, Err(Refusal::NotVerified));
    }

    #[test]
    fn a_ca_that_is_trusted_no_more_or_stands_on_its_roots_crl_lets_nobody_in() {
        use crate::api::annotation;
        use crate::pki::authority::tests::sample_below;
        let (root, ca) = sample_below();
        let header = header(&sample_leaf(&ca));
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant("2026-06-07T00:00:00Z"));
        let publish =
            |view: &View, ca: &CertificateAuthority, generation, number, revoked: &[Entry]| {
                let der = crl::sign(ca, CrlNumber(number), this, next, revoked).unwrap();
                let key = CaKey { authority: "staff".into(), generation };
                view.with(&head(&key, ca, &der, CrlNumber(number)))
            };
        let ask = |view: &View| decide(view, &required(), Some(&header), instant(NOW));
        let view = publish(&publish(&View::default(), &ca, 1, 1, &[]), &root, 0, 1, &[]);
        assert_eq!(ask(&view), Ok(()));
        let entry = Entry { serial: ca.facts().serial, revoked_at: this, reason: Some(1) };
        assert_eq!(ask(&publish(&view, &root, 0, 2, &[entry])), Err(Refusal::Revoked));

        let der = crl::sign(&ca, CrlNumber(1), this, next, &[]).unwrap();
        let key = CaKey { authority: "staff".into(), generation: 1 };
        let mut retired = head(&key, &ca, &der, CrlNumber(1));
        let note = (annotation::STATE.to_owned(), "Removed".to_owned());
        retired.metadata.annotations.get_or_insert_default().extend([note]);
        let view = view.with(&retired);
        assert_eq!(ask(&view), Err(Refusal::UnknownAuthority));
        assert!(view.get(&key).is_some(), "its CRL is served on");
    }

    #[test]
    fn a_query_that_is_not_understood_is_refused() {
        for query in [
            None,
            Some(""),
            Some("mode=Required"),
            Some("authority=a"),
            Some("mode=required&authority=a"),
            Some("mode=Required&authority=a&x=1"),
        ] {
            assert_eq!(Policy::parse(query), Err(Refusal::BadRequest), "{query:?}");
        }
    }

    #[test]
    fn an_older_crl_does_not_replace_a_newer_one() {
        let ca = sample();
        let key = CaKey::first("staff");
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant("2026-06-07T00:00:00Z"));
        let publish = |view: &View, number| {
            let der = crl::sign(&ca, CrlNumber(number), this, next, &[]).unwrap();
            view.with(&head(&key, &ca, &der, CrlNumber(number)))
        };
        let view = publish(&publish(&View::default(), 5), 4);
        assert_eq!(view.get(&key).unwrap().number, CrlNumber(5));
    }

    proptest! {
        #[test]
        fn foreign_headers_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let view = View::default();
            prop_assert!(decide(&view, &required(), Some(&bytes), instant(NOW)).is_err() || bytes.is_empty());
            let _ = decode(STANDARD.encode(&bytes).as_bytes()).map(|der| inspect(&der).is_ok());
        }
    }
}
