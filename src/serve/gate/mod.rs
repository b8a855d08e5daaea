//! The gate: enforces revocation where the data plane has no CRL support. The data plane verifies the
//! handshake and hands the client's certificate over in a header; the gate answers 200 or 403 from
//! memory. Whatever it does not understand is refused.
//!
//! A refusal is 401, which has a browser ask for a password, only where the certificate is good and a password is
//! missing or wrong; and never 5xx, which Envoy takes for a failure of the gate and may have been told to let pass.

mod authorizer;
mod callers;
mod ext_authz;
mod form;
mod password;

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use tracing::info;

pub use authorizer::{Authorizers, Service};
pub use callers::{Caller, Callers, guarded};
pub use form::{ENVOY, Form, HAPROXY, NGINX, TRAEFIK};
pub use password::Passwords;

use super::confirmed::Confirmed;
use super::policies::Policies;
use super::published::Published;
use super::view::View;
use crate::api::trust::Mode;
use crate::metrics::{GateLabels, Metrics};
use crate::pki::inspect::{client_names, inspect};
use crate::plan::gate::{SecondFactor, TrustPolicy, admits};

/// The header in which a backend is told the certificate (RFC 9440).
const CLIENT_CERT: &str = "client-cert";
/// Its sister, which the gate never sets.
const CLIENT_CERT_CHAIN: &str = "client-cert-chain";

/// What the gate shares between requests.
#[derive(Clone)]
pub struct Gate {
    /// The CRLs.
    pub view: Arc<ArcSwap<View>>,
    /// The policies of trusts that have one.
    pub policies: Arc<ArcSwap<Policies>>,
    /// What checks passwords.
    pub passwords: Arc<Passwords>,
    /// What asks other services.
    pub authorizers: Arc<Authorizers>,
    /// When the CRLs were known to be the published ones.
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
    /// The certificate is good; the password is missing.
    PasswordMissing,
    /// The certificate is good; the password is wrong, or the service that decides says so.
    PasswordWrong,
    /// The service that decides beside the certificate refuses.
    NotAuthorized,
    /// That service gave no answer.
    NoAuthorizer,
    /// Too many requests wait for the check of a password.
    Busy,
    /// The policy of the trust that the request names is not known here, or is about other authorities.
    UnknownPolicy,
    /// The request does not say which authorities are accepted.
    BadRequest,
}

impl Refusal {
    /// The label in metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::UnknownAuthority => "unknown_authority",
            Self::NotVerified => "not_verified",
            Self::Revoked => "revoked",
            Self::CrlExpired => "crl_expired",
            Self::Stale => "stale",
            Self::NotAllowed => "not_allowed",
            Self::PasswordMissing => "password_missing",
            Self::PasswordWrong => "password_wrong",
            Self::NotAuthorized => "not_authorized",
            Self::NoAuthorizer => "no_authorizer",
            Self::Busy => "busy",
            Self::UnknownPolicy => "unknown_policy",
            Self::BadRequest => "bad_request",
        }
    }

    /// The answer; browsers show the `realm` when they ask for a password.
    fn answer(self, realm: Option<&str>) -> Response {
        if !matches!(self, Self::PasswordMissing | Self::PasswordWrong) {
            return (StatusCode::FORBIDDEN, self.message()).into_response();
        }
        let realm = realm.and_then(|trust| trust.rsplit('/').next()).unwrap_or_default();
        // The name of a trust whose policy is known holds no quote.
        let question = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
        (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, question)], self.message()).into_response()
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
            Self::PasswordMissing => "a password is required beside the client certificate\n",
            Self::PasswordWrong => "the user name or the password is wrong\n",
            Self::NotAuthorized => "this client is not authorized\n",
            Self::NoAuthorizer => {
                "the service that authorizes clients gave no answer; ask the operator of this service\n"
            }
            Self::Busy => "too many clients are waiting for the check of a password; try again\n",
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
            let policy = Policy::of_query(uri.query().unwrap_or_default());
            gate.answer(form, policy, &headers).await
        })
    };
    let by_path = async |State(gate): State<Gate>, uri: Uri, headers: HeaderMap| {
        let path = uri.path().strip_prefix("/gate/envoy/").unwrap_or_default();
        gate.answer(&ENVOY, Policy::of_path(path), &headers).await
    };
    Router::new()
        .route("/gate/traefik", by_query(&TRAEFIK))
        .route("/gate/nginx", by_query(&NGINX))
        .route("/gate/haproxy", by_query(&HAPROXY))
        .route("/gate/envoy/{*policy}", any(by_path))
        .route(ext_authz::PATH, post(ext_authz::check))
        .with_state(gate)
}

impl Gate {
    async fn answer(
        &self,
        form: &Form,
        policy: Result<Policy, Refusal>,
        headers: &HeaderMap,
    ) -> Response {
        let realm = policy.as_ref().ok().and_then(|policy| policy.trust.clone());
        match self.decision(policy, || form.certificate(headers), headers).await {
            Ok(leaf) => {
                let empty = |name| (HeaderName::from_static(name), HeaderValue::from_static(""));
                let mut told: HeaderMap = form.emptied.iter().copied().map(empty).collect();
                if let Some(leaf) = leaf {
                    told.insert(CLIENT_CERT, form::client_cert(&leaf));
                }
                told.into_response()
            }
            Err(refusal) => refusal.answer(realm.as_deref()),
        }
    }

    /// The certificate that was `shown` by a client who is let in, and may have shown none; it is counted.
    async fn decision(
        &self,
        policy: Result<Policy, Refusal>,
        shown: impl FnOnce() -> Result<Option<CertificateDer<'static>>, Refusal>,
        headers: &HeaderMap,
    ) -> Result<Option<CertificateDer<'static>>, Refusal> {
        let decide = async {
            let policy = policy?;
            let certificate = shown()?;
            self.judge(policy, certificate.as_ref(), headers, Timestamp::now()).await?;
            Ok(certificate)
        };
        let decision = decide.await;
        let label = decision.as_ref().map_or_else(Refusal::label, |_| "allowed");
        self.metrics.gate_decisions.get_or_create(&GateLabels { decision: label }).inc();
        decision.inspect_err(|_| info!(reason = label, "refused"))
    }

    /// Does a trust ask for a second factor, as far as it is known here?
    fn asks_for_more(&self, trust: &str) -> bool {
        self.policies.load().get(trust).is_some_and(|own| own.policy.second_factor.is_some())
    }

    /// Decides by the question and by the policy of the trust: about the certificate that the client showed, and
    /// only about a good one, what else the client must have.
    async fn judge(
        &self,
        policy: Policy,
        leaf: Option<&CertificateDer<'_>>,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let stale_at = self.confirmed.stale_at(self.max_staleness);
        let Some(trust) = policy.trust.clone() else {
            return decide(&self.view.load(), stale_at, &policy, leaf, now);
        };
        let known = self.policies.load().get(&trust).ok_or(Refusal::UnknownPolicy)?;
        let own = &known.policy;
        decide(&self.view.load(), stale_at, &policy.narrowed(own)?, leaf, now)?;
        if let (Some(allow), Some(leaf)) = (&own.allow, leaf) {
            let names = client_names(leaf).map_err(|_| Refusal::BadCertificate)?;
            if !admits(allow, &names) && !is_selected(&self.view.load(), own, leaf) {
                return Err(Refusal::NotAllowed);
            }
        }
        let mut said = headers.get_all(AUTHORIZATION).iter();
        // One that comes twice was perhaps not written by who knows the password alone.
        let said = said.next().filter(|_| said.next().is_none());
        match &own.second_factor {
            None => Ok(()),
            Some(SecondFactor::Basic(users)) => self.passwords.check(&trust, users, said).await,
            Some(SecondFactor::Url(_)) => {
                let service = known.service.as_ref().ok_or(Refusal::NoAuthorizer)?;
                self.authorizers.check(service, said, leaf).await
            }
        }
    }
}

/// Does the certificate belong to an identity that the trust selects? It is known to be of an accepted authority.
fn is_selected(view: &View, own: &TrustPolicy, leaf: &CertificateDer<'_>) -> bool {
    let Ok(leaf) = inspect(leaf) else { return false };
    let serial = leaf.serial.to_string();
    let mut certificates = own.certificates.iter();
    certificates.any(|(authority, serials)| {
        let mut cas = view.of_authority(authority);
        serials.contains(&serial) && cas.any(|published| published.is_issuer_of(&leaf))
    })
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
        .find(|published| published.is_issuer_of(&leaf))
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
pub(crate) mod tests {
    use super::*;
    use crate::pki::CertificateAuthority;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::{self, CrlNumber, Entry};
    use crate::pki::issue::tests::sample_leaf;
    use crate::plan::ledger::CaKey;
    use crate::plan::publication::{Scope, render};
    use axum::http::HeaderValue;
    use k8s_openapi::api::core::v1::ConfigMap;

    const NOW: &str = "2026-06-01T00:00:00Z";

    fn head(key: &CaKey, ca: &CertificateAuthority, der: &[u8], number: CrlNumber) -> ConfigMap {
        render(key, Scope::Full, &ca.certificate_pem(), der, &[], number).head
    }

    fn view(ca: &CertificateAuthority, revoked: &[Entry]) -> View {
        view_until(ca, "2026-06-07T00:00:00Z", revoked)
    }

    /// The view of a CA of the authority `staff` with a CRL until this time.
    pub fn view_until(ca: &CertificateAuthority, next: &str, revoked: &[Entry]) -> View {
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant(next));
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
    pub fn gate(view: View, policy: &str) -> Gate {
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
            passwords: Arc::default(),
            authorizers: Arc::new(Authorizers::new(Vec::new())),
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
            certificates: Default::default(),
            second_factor: None,
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

    /// What a gate answers that knows this policy, to the question with mode, to a client with certificate and
    /// password, or without.
    async fn ask(
        gate: &Gate,
        (trust, mode): (&str, &str),
        leaf: Option<&CertificateDer<'_>>,
        password: Option<&str>,
    ) -> Result<(), Refusal> {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;
        let question = format!("trust={trust}&mode={mode}&authority=staff");
        let mut headers = HeaderMap::new();
        for password in password.into_iter().flat_map(|all| all.split('|')) {
            let value = format!("Basic {}", STANDARD.encode(password));
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        gate.judge(Policy::of_query(&question).unwrap(), leaf, &headers, instant(NOW)).await
    }

    #[tokio::test]
    async fn a_certificate_of_a_selected_identity_passes_whatever_its_names() {
        let (ca, other) = (sample(), sample());
        let leaf = sample_leaf(&ca);
        let serial = inspect(&leaf).unwrap().serial.to_string();
        let policy = |authority: &str, serial: &str| {
            format!(
                r#"{{"mode":"Optional","authorities":["staff"],"allow":{{}},"certificates":{{"{authority}":["{serial}"]}}}}"#
            )
        };
        let question = ("shop/t", "Required");
        let not_allowed = Err(Refusal::NotAllowed);
        for (policy, answer) in [
            (policy("staff", &serial), Ok(())),
            (policy("staff", "00ff"), not_allowed),
            // A serial number of another authority says nothing about this one's.
            (policy("devices", &serial), not_allowed),
        ] {
            let gate = gate(view(&ca, &[]), &policy);
            assert_eq!(ask(&gate, question, Some(&leaf), None).await, answer, "{policy}");
            let stranger = ask(&gate, question, Some(&sample_leaf(&other)), None).await;
            assert_eq!(stranger, Err(Refusal::UnknownAuthority));
        }
    }

    #[tokio::test]
    async fn a_password_is_asked_for_where_the_certificate_is_good_and_nowhere_else() {
        let ca = sample();
        let (leaf, stranger) = (sample_leaf(&ca), sample_leaf(&sample()));
        let factor = r#""secondFactor":{"basic":{"ada":"$2y$04$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi"}}"#;
        let policy =
            |more: &str| format!(r#"{{"mode":"Optional","authorities":["staff"],{factor}{more}}}"#);
        let open = gate(view(&ca, &[]), &policy(""));
        let (right, wrong) = (Some("ada:correct horse"), Some("ada:wrong"));
        let (required, optional) = (("shop/t", "Required"), ("shop/t", "Optional"));
        let unknown = Err(Refusal::UnknownAuthority);
        for (mode, certificate, password, answer) in [
            (required, Some(&leaf), right, Ok(())),
            (required, Some(&leaf), wrong, Err(Refusal::PasswordWrong)),
            (required, Some(&leaf), None, Err(Refusal::PasswordMissing)),
            (
                required,
                Some(&leaf),
                Some("ada:correct horse|ada:correct horse"),
                Err(Refusal::PasswordMissing),
            ),
            (required, Some(&stranger), right, unknown),
            (required, Some(&stranger), None, unknown),
            (required, None, right, Err(Refusal::NoCertificate)),
            (required, None, None, Err(Refusal::NoCertificate)),
            // Who shows no certificate does not get around the password by that.
            (optional, None, None, Err(Refusal::PasswordMissing)),
            (optional, None, wrong, Err(Refusal::PasswordWrong)),
            (optional, None, right, Ok(())),
            (optional, Some(&stranger), right, unknown),
        ] {
            assert_eq!(
                ask(&open, mode, certificate, password).await,
                answer,
                "{mode:?} {password:?}"
            );
        }
        let serial = inspect(&leaf).unwrap().serial;
        let entry = Entry { serial, revoked_at: instant("2026-05-31T00:00:00Z"), reason: None };
        let revoked = gate(view(&ca, &[entry]), &policy(""));
        assert_eq!(ask(&revoked, required, Some(&leaf), right).await, Err(Refusal::Revoked));
        let few = gate(view(&ca, &[]), &policy(r#","allow":{"commonNames":["other"]}"#));
        assert_eq!(ask(&few, required, Some(&leaf), None).await, Err(Refusal::NotAllowed));
    }

    #[test]
    fn only_a_missing_or_wrong_password_is_answered_by_a_question() {
        let question = |refusal: Refusal| {
            let answer = refusal.answer(Some("shop/clients"));
            (answer.status().as_u16(), answer.headers().get(WWW_AUTHENTICATE).cloned())
        };
        let asked = HeaderValue::from_static("Basic realm=\"clients\", charset=\"UTF-8\"");
        for refusal in [Refusal::PasswordMissing, Refusal::PasswordWrong] {
            assert_eq!(question(refusal), (401, Some(asked.clone())));
        }
        for refusal in [
            Refusal::NoCertificate,
            Refusal::BadCertificate,
            Refusal::UnknownAuthority,
            Refusal::NotVerified,
            Refusal::Revoked,
            Refusal::CrlExpired,
            Refusal::Stale,
            Refusal::NotAllowed,
            Refusal::NotAuthorized,
            Refusal::NoAuthorizer,
            Refusal::Busy,
            Refusal::UnknownPolicy,
            Refusal::BadRequest,
        ] {
            assert_eq!(question(refusal), (403, None), "{refusal:?}");
        }
    }

    #[tokio::test]
    async fn only_those_whom_the_trust_allows_get_in_and_nobody_where_its_policy_is_not_known() {
        let ca = sample();
        let leaf = sample_leaf(&ca);
        let name = client_names(&leaf).unwrap().common_names.swap_remove(0);
        let allow = |name: &str| format!(r#","allow":{{"commonNames":["{name}"]}}"#);
        let (own, other) = (allow(&name), allow("other"));
        let ask =
            async |trust: &str, mode: &str, allow: &str, leaf: Option<&CertificateDer<'_>>| {
                let policy = format!(r#"{{"mode":"{mode}","authorities":["staff"]{allow}}}"#);
                ask(&gate(view(&ca, &[]), &policy), (trust, mode), leaf, None).await
            };
        for mode in ["Required", "Optional"] {
            assert_eq!(ask("shop/t", mode, "", Some(&leaf)).await, Ok(()));
            assert_eq!(ask("shop/t", mode, &own, Some(&leaf)).await, Ok(()));
            let refused = ask("shop/t", mode, &other, Some(&leaf)).await;
            assert_eq!(refused, Err(Refusal::NotAllowed));
            for (trust, policy) in
                [("shop/other", &*own), ("", &own), ("shop.t", &own), ("t", &own), ("shop/t", "x")]
            {
                let refused = ask(trust, mode, policy, Some(&leaf)).await;
                assert_eq!(refused, Err(Refusal::UnknownPolicy), "{trust} {policy}");
            }
        }
        assert_eq!(ask("shop/t", "Required", &own, None).await, Err(Refusal::NoCertificate));
        let nobody = ask("shop/t", "Optional", &own, None).await;
        assert_eq!(nobody, Ok(()), "nobody's name is to be judged");
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
