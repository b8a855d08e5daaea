//! The gate: enforces revocation where the data plane has no CRL support. The data plane verifies the
//! handshake and hands the client's certificate over in a header; the gate answers 200 or 403 from
//! memory. Whatever it does not understand is refused.
//!
//! A refusal is never 401, which Traefik and nginx take for a question, nor 5xx, which Envoy takes for a failure of
//! the gate and may have been told to let pass.

mod form;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use tracing::info;

pub use form::{ENVOY, Form, NGINX, TRAEFIK};

use super::confirmed::Confirmed;
use super::policies::Policies;
use super::published::Published;
use super::view::View;
use crate::api::trust::Mode;
use crate::metrics::{GateLabels, Metrics};
use crate::pki::inspect::{client_names, inspect};
use crate::plan::gate::{TrustPolicy, admits};

/// The header in which a backend is told the certificate (RFC 9440).
const CLIENT_CERT: &str = "client-cert";

/// What the gate shares between requests.
#[derive(Clone)]
pub struct Gate {
    /// The CRLs.
    pub view: Arc<ArcSwap<View>>,
    /// The policies of trusts that have one.
    pub policies: Arc<ArcSwap<Policies>>,
    /// When they were known to be the published ones.
    pub confirmed: Arc<Confirmed>,
    /// For so long they may go unconfirmed.
    pub max_staleness: SignedDuration,
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
    /// The CRL of its CA, or of the CA above, has expired: nobody knows who is revoked.
    CrlExpired,
    /// The CRLs of this server have been unconfirmed for too long.
    Stale,
    /// The trust does not name this client among those that it allows.
    NotAllowed,
    /// The policy of the trust that the request names is not known here, or is about other authorities.
    UnknownPolicy,
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
            Self::Stale => "stale",
            Self::NotAllowed => "not_allowed",
            Self::UnknownPolicy => "unknown_policy",
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
            Self::Stale => {
                "this server has not heard of revocations for too long; ask the operator of this service\n"
            }
            Self::NotAllowed => "the client certificate is of a client that is not allowed here\n",
            Self::UnknownPolicy => {
                "the policy of this route is not known to the gate; ask the operator of this service\n"
            }
            Self::BadRequest => "the gate is not configured for this route\n",
        }
    }
}

/// What the data plane asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    required: bool,
    authorities: Vec<String>,
    // Namespace and name of the trust whose policy counts beside this, as `namespace/name`.
    trust: Option<String>,
}

impl Policy {
    /// Reads `trust=shop/clients&mode=Required&authority=a&authority=b`, the trust if it has a policy. Anything
    /// unknown is refused: a typing error must not open a door.
    pub fn of_query(query: &str) -> Result<Self, Refusal> {
        let (mut mode, mut authorities, mut trust) = (None, Vec::new(), None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("mode", text)) if mode.is_none() => mode = Some(text),
                Some(("trust", name)) if trust.is_none() => trust = Some(name),
                Some(("authority", name)) => authorities.push(name),
                _ => return Err(Refusal::BadRequest),
            }
        }
        Self::new(mode.unwrap_or_default(), authorities, trust.map(str::to_owned))
    }

    /// Reads `Required/a,b` or `trust/shop/clients/Required/a,b`, and leaves out what follows a further slash: where
    /// a data plane puts the client's own path and query behind the gate's, and so could have the client say what
    /// it is judged by.
    pub fn of_path(path: &str) -> Result<Self, Refusal> {
        let mut segments = path.split('/');
        let mut next = || segments.next().unwrap_or_default();
        let (trust, mode) = match next() {
            "trust" => (Some(format!("{}/{}", next(), next())), next()),
            mode => (None, mode),
        };
        Self::new(mode, next().split(',').collect(), trust)
    }

    fn new(mode: &str, authorities: Vec<&str>, trust: Option<String>) -> Result<Self, Refusal> {
        let required = match mode {
            "Required" => true,
            "Optional" => false,
            _ => return Err(Refusal::BadRequest),
        };
        if authorities.is_empty() || authorities.contains(&"") {
            return Err(Refusal::BadRequest);
        }
        let authorities = authorities.into_iter().map(str::to_owned).collect();
        Ok(Self { required, authorities, trust })
    }

    /// What both this and the trust's own policy let pass: while one of them is changed nobody gets in by the
    /// older one.
    fn narrowed(mut self, own: &TrustPolicy) -> Result<Self, Refusal> {
        self.required |= own.mode == Mode::Required;
        self.authorities.retain(|name| own.authorities.contains(name));
        if self.authorities.is_empty() { Err(Refusal::UnknownPolicy) } else { Ok(self) }
    }
}

/// The routes of the gate.
pub fn router(gate: Gate) -> Router {
    let by_query = |form: &'static Form| {
        any(async move |State(gate): State<Gate>, uri: Uri, headers: HeaderMap| {
            gate.answer(form, Policy::of_query(uri.query().unwrap_or_default()), &headers)
        })
    };
    let by_path = async |State(gate): State<Gate>, uri: Uri, headers: HeaderMap| {
        let path = uri.path().strip_prefix("/gate/envoy/").unwrap_or_default();
        gate.answer(&ENVOY, Policy::of_path(path), &headers)
    };
    Router::new()
        .route("/gate/traefik", by_query(&TRAEFIK))
        .route("/gate/nginx", by_query(&NGINX))
        .route("/gate/envoy/{*policy}", any(by_path))
        .with_state(gate)
}

impl Gate {
    fn answer(
        &self,
        form: &Form,
        policy: Result<Policy, Refusal>,
        headers: &HeaderMap,
    ) -> Response {
        let decision = policy.and_then(|policy| {
            let certificate = form.certificate(headers)?;
            self.judge(policy, certificate.as_ref(), Timestamp::now())?;
            Ok(certificate)
        });
        let label = decision.as_ref().map_or_else(|refusal| refusal.label(), |_| "allowed");
        self.metrics.gate_decisions.get_or_create(&GateLabels { decision: label }).inc();
        match decision {
            Ok(Some(leaf)) => [(CLIENT_CERT, form::client_cert(&leaf))].into_response(),
            Ok(None) => StatusCode::OK.into_response(),
            Err(refusal) => {
                info!(reason = label, "refused");
                (StatusCode::FORBIDDEN, refusal.message()).into_response()
            }
        }
    }
}

impl Gate {
    /// Decides about the certificate that the client showed, by the question and by the policy of the trust.
    fn judge(
        &self,
        policy: Policy,
        leaf: Option<&CertificateDer<'_>>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let stale_at = self.confirmed.stale_at(self.max_staleness);
        let Some(trust) = &policy.trust else {
            return decide(&self.view.load(), stale_at, &policy, leaf, now);
        };
        let own = self.policies.load().get(trust).ok_or(Refusal::UnknownPolicy)?;
        decide(&self.view.load(), stale_at, &policy.narrowed(&own)?, leaf, now)?;
        match (&own.allow, leaf) {
            (Some(allow), Some(leaf)) => {
                let names = client_names(leaf).map_err(|_| Refusal::BadCertificate)?;
                admits(allow, &names).then_some(()).ok_or(Refusal::NotAllowed)
            }
            _ => Ok(()),
        }
    }
}

/// Decides from memory about the certificate that the client showed; from `stale_at` on the view is good for
/// nothing.
pub fn decide(
    view: &View,
    stale_at: Timestamp,
    policy: &Policy,
    certificate: Option<&CertificateDer<'_>>,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Some(der) = certificate else {
        return if policy.required { Err(Refusal::NoCertificate) } else { Ok(()) };
    };
    let leaf = inspect(der).map_err(|_| Refusal::BadCertificate)?;
    let accepted = || policy.authorities.iter().flat_map(|name| view.of_authority(name));
    let published = accepted()
        .find(|p| p.issuer_der == leaf.issuer_der && p.key_id == leaf.authority_key_id)
        .filter(|published| !published.removed)
        .ok_or(Refusal::UnknownAuthority)?;
    // A CA below a root stands on the root's CRL when its key was stolen.
    let (issuer_der, key_id, serial) = &published.above;
    let above = || accepted().filter(|p| p.issuer_der == *issuer_der && p.key_id == *key_id);
    if published.revoked.contains(&leaf.serial) || above().any(|p| p.revoked.contains(serial)) {
        return Err(Refusal::Revoked);
    }
    let expired = |p: &Published| !p.removed && p.next_update <= now;
    if expired(published) || above().any(|p| expired(p)) {
        return Err(Refusal::CrlExpired);
    }
    if stale_at <= now {
        return Err(Refusal::Stale);
    }
    // The data plane has verified it already, unless another route of the host made it not do so.
    let good = published.verified.verify(der, &leaf, &published.ca, now);
    good.then_some(()).ok_or(Refusal::NotVerified)
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
        Policy::of_query("mode=Required&authority=staff").unwrap()
    }

    fn fresh() -> Timestamp {
        instant("2027-01-01T00:00:00Z")
    }

    #[test]
    fn a_good_certificate_passes_and_a_revoked_one_does_not() {
        let ca = sample();
        let leaf = sample_leaf(&ca);
        let serial = inspect(&leaf).unwrap().serial;
        let revoked_at = instant("2026-05-31T00:00:00Z");
        let ask = |view: &View| decide(view, fresh(), &required(), Some(&leaf), instant(NOW));
        assert_eq!(ask(&view(&ca, &[])), Ok(()));
        let entry = Entry { serial, revoked_at, reason: None };
        assert_eq!(ask(&view(&ca, &[entry])), Err(Refusal::Revoked));
    }

    #[test]
    fn everything_else_is_refused() {
        let ca = sample();
        let view = view(&ca, &[]);
        let (good, of_other_ca) = (sample_leaf(&ca), sample_leaf(&sample()));
        let garbage = CertificateDer::from(&b"AAAA"[..]);
        let other = Policy::of_query("mode=Required&authority=devices").unwrap();
        let later = "2026-06-08T00:00:00Z";
        for (policy, leaf, now, refusal) in [
            (required(), None, NOW, Refusal::NoCertificate),
            (required(), Some(&garbage), NOW, Refusal::BadCertificate),
            (required(), Some(&of_other_ca), NOW, Refusal::UnknownAuthority),
            (other, Some(&good), NOW, Refusal::UnknownAuthority),
            (required(), Some(&good), later, Refusal::CrlExpired),
        ] {
            assert_eq!(decide(&view, fresh(), &policy, leaf, instant(now)), Err(refusal));
        }
        let optional = Policy::of_query("mode=Optional&authority=staff").unwrap();
        assert_eq!(decide(&view, fresh(), &optional, None, instant(NOW)), Ok(()));
        assert!(decide(&view, fresh(), &optional, Some(&garbage), instant(NOW)).is_err());
    }

    #[test]
    fn a_view_that_nobody_confirmed_for_long_lets_nobody_in() {
        let ca = sample();
        let leaf = sample_leaf(&ca);
        let policy = required();
        let ask = |stale_at, policy: &Policy, leaf| {
            decide(&view(&ca, &[]), instant(stale_at), policy, leaf, instant(NOW))
        };
        assert_eq!(ask("2026-06-01T00:00:01Z", &policy, Some(&leaf)), Ok(()));
        assert_eq!(ask(NOW, &policy, Some(&leaf)), Err(Refusal::Stale));
        let optional = Policy::of_query("mode=Optional&authority=staff").unwrap();
        assert_eq!(ask(NOW, &optional, Some(&leaf)), Err(Refusal::Stale));
        assert_eq!(ask(NOW, &optional, None), Ok(()), "nobody's certificate is to be judged");
    }

    #[test]
    fn a_forged_signature_is_refused() {
        let ca = sample();
        let mut leaf = sample_leaf(&ca).to_vec();
        let last = leaf.len() - 1;
        leaf[last] ^= 1;
        let leaf = CertificateDer::from(leaf);
        let refused = decide(&view(&ca, &[]), fresh(), &required(), Some(&leaf), instant(NOW));
        assert_eq!(refused, Err(Refusal::NotVerified));
    }

    #[test]
    fn a_ca_that_is_trusted_no_more_or_stands_on_its_roots_crl_lets_nobody_in() {
        use crate::api::annotation;
        use crate::pki::authority::tests::sample_below;
        let (root, ca) = sample_below();
        let leaf = sample_leaf(&ca);
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant("2026-06-07T00:00:00Z"));
        let publish =
            |view: &View, ca: &CertificateAuthority, generation, number, revoked: &[Entry]| {
                let der = crl::sign(ca, CrlNumber(number), this, next, revoked).unwrap();
                let key = CaKey { authority: "staff".into(), generation };
                view.with(&head(&key, ca, &der, CrlNumber(number)))
            };
        let ask = |view: &View| decide(view, fresh(), &required(), Some(&leaf), instant(NOW));
        let view = publish(&publish(&View::default(), &ca, 1, 1, &[]), &root, 0, 1, &[]);
        assert_eq!(ask(&view), Ok(()));
        let entry = Entry { serial: ca.facts().serial, revoked_at: this, reason: Some(1) };
        assert_eq!(ask(&publish(&view, &root, 0, 2, &[entry])), Err(Refusal::Revoked));
        let der = crl::sign(&root, CrlNumber(2), this, instant(NOW), &[]).unwrap();
        let key = CaKey { authority: "staff".into(), generation: 0 };
        let expired = view.with(&head(&key, &root, &der, CrlNumber(2)));
        assert_eq!(ask(&expired), Err(Refusal::CrlExpired), "the root's");

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
    fn a_policy_that_is_not_understood_is_refused() {
        for query in [
            "",
            "mode=Required",
            "authority=a",
            "mode=required&authority=a",
            "mode=Required&authority=",
            "mode=Required&authority=a&x=1",
            "mode=Required&authority=a&mode=Optional",
            "trust=a/b&trust=a/c&mode=Required&authority=a",
            "trust=a/b",
        ] {
            assert_eq!(Policy::of_query(query), Err(Refusal::BadRequest), "{query}");
        }
        for path in [
            "",
            "Required",
            "Required/",
            "Required//a",
            "Required/a,",
            "required/a",
            "trust/a/b",
            "trust/a/b/Required",
            "trust/a/Required/c",
        ] {
            assert_eq!(Policy::of_path(path), Err(Refusal::BadRequest), "{path}");
        }
    }

    #[test]
    fn a_policy_is_the_same_in_a_query_and_in_a_path() {
        let of_query = Policy::of_query("mode=Optional&authority=a&authority=b").unwrap();
        for path in ["Optional/a,b", "Optional/a,b/", "Optional/a,b/../../Required/c"] {
            assert_eq!(Policy::of_path(path).as_ref(), Ok(&of_query), "{path}");
        }
    }

    #[test]
    fn a_trust_is_the_same_in_a_query_and_in_a_path() {
        let of_query = Policy::of_query("trust=shop/t&mode=Optional&authority=a").unwrap();
        assert_eq!(of_query.trust.as_deref(), Some("shop/t"));
        for path in ["trust/shop/t/Optional/a", "trust/shop/t/Optional/a/../../trust/shop/u"] {
            assert_eq!(Policy::of_path(path).as_ref(), Ok(&of_query), "{path}");
        }
    }

    /// A gate that knows the trust `shop/t` with this policy.
    fn gate(view: View, policy: &str) -> Gate {
        use k8s_openapi::ByteString;
        use k8s_openapi::api::core::v1::Secret;
        let data = [("shop.t".to_owned(), ByteString(policy.into()))].into();
        let secret = Secret { data: Some(data), ..Secret::default() };
        let confirmed = Confirmed::default();
        let metrics = Arc::new(Metrics::default());
        confirmed.confirm(instant(NOW), &metrics);
        Gate {
            view: Arc::new(ArcSwap::from_pointee(view)),
            policies: Arc::new(ArcSwap::from_pointee(Policies::read(&secret))),
            confirmed: Arc::new(confirmed),
            max_staleness: SignedDuration::from_hours(24),
            metrics,
        }
    }

    #[test]
    fn the_policy_of_a_trust_narrows_what_the_question_asks() {
        let own = |mode, authorities: &[&str]| TrustPolicy {
            mode,
            authorities: authorities.iter().map(|name| (*name).to_owned()).collect(),
            allow: None,
        };
        let asked = |query: &str| Policy::of_query(&format!("trust=shop/t&{query}")).unwrap();
        let both = asked("mode=Optional&authority=a&authority=b");
        assert_eq!(both.clone().narrowed(&own(Mode::Optional, &["b", "a"])), Ok(both.clone()));
        for (question, own) in [
            ("mode=Optional&authority=a&authority=b", own(Mode::Required, &["b", "c"])),
            ("mode=Required&authority=b", own(Mode::Optional, &["a", "b"])),
        ] {
            assert_eq!(asked(question).narrowed(&own), Ok(asked("mode=Required&authority=b")));
        }
        let apart = both.narrowed(&own(Mode::Optional, &["c"]));
        assert_eq!(apart, Err(Refusal::UnknownPolicy));
    }

    #[test]
    fn only_those_whom_the_trust_allows_get_in_and_nobody_where_its_policy_is_not_known() {
        let ca = sample();
        let leaf = sample_leaf(&ca);
        let name = client_names(&leaf).unwrap().common_names.swap_remove(0);
        let allow = |name: &str| format!(r#","allow":{{"commonNames":["{name}"]}}"#);
        let (own, other) = (allow(&name), allow("other"));
        let ask = |trust: &str, mode: &str, allow: &str, leaf: Option<&CertificateDer<'_>>| {
            let policy = format!(r#"{{"mode":"{mode}","authorities":["staff"]{allow}}}"#);
            let question = format!("trust={trust}&mode={mode}&authority=staff");
            let question = Policy::of_query(&question).unwrap();
            gate(view(&ca, &[]), &policy).judge(question, leaf, instant(NOW))
        };
        for mode in ["Required", "Optional"] {
            assert_eq!(ask("shop/t", mode, "", Some(&leaf)), Ok(()));
            assert_eq!(ask("shop/t", mode, &own, Some(&leaf)), Ok(()));
            assert_eq!(ask("shop/t", mode, &other, Some(&leaf)), Err(Refusal::NotAllowed));
            for trust in ["shop/other", "", "shop.t", "t"] {
                assert_eq!(ask(trust, mode, &own, Some(&leaf)), Err(Refusal::UnknownPolicy));
            }
            assert_eq!(ask("shop/t", mode, "x", Some(&leaf)), Err(Refusal::UnknownPolicy));
        }
        assert_eq!(ask("shop/t", "Required", &own, None), Err(Refusal::NoCertificate));
        assert_eq!(ask("shop/t", "Optional", &own, None), Ok(()), "nobody's name is to be judged");
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
}
