//! The header in which a data plane hands a certificate over. Nothing that is made up may pass.
#![no_main]

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::pki::authority::{CaParams, CertificateAuthority, NameConstraints};
use countersign::pki::crl::{self, CrlNumber};
use countersign::pki::name::{Attribute, Name};
use countersign::pki::{KeyType, PrivateKey, Serial};
use countersign::plan::ledger::CaKey;
use countersign::plan::publication::{Scope, render};
use countersign::serve::gate::{ENVOY, Form, NGINX, Policy, TRAEFIK, decide};
use countersign::serve::view::View;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;

static NOW: LazyLock<Timestamp> = LazyLock::new(|| "2026-06-01T00:00:00Z".parse().unwrap());

/// One authority with an empty CRL, under the name that the seeds have too.
static VIEW: LazyLock<View> = LazyLock::new(|| {
    let times = ["2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"].map(|time| time.parse().unwrap());
    let params = CaParams {
        subject: &Name(vec![(Attribute::CommonName, "Fuzz CA".into())]),
        serial: Serial::random(),
        not_before: times[0],
        not_after: times[1],
        path_length: 0,
        name_constraints: &NameConstraints::default(),
        crl_url: None,
    };
    let signer = std::sync::Arc::new(PrivateKey::generate(KeyType::EcdsaP256));
    let ca = CertificateAuthority::self_signed(&params, signer).unwrap();
    let der = crl::sign(&ca, CrlNumber(1), times[0], times[1], &[]).unwrap();
    let key = CaKey::first("staff");
    let rendered = render(&key, Scope::Full, &ca.certificate_pem(), &der, &[], CrlNumber(1));
    View::default().with(&rendered.head)
});

/// Does a header of this text open the gate?
fn passes(form: &Form, policy: &Policy, text: &[u8]) -> bool {
    let Ok(value) = HeaderValue::from_bytes(text) else { return false };
    let headers = HeaderMap::from_iter([(HeaderName::from_static(form.header), value)]);
    let decided = form
        .certificate(&headers)
        .and_then(|certificate| decide(&VIEW, Timestamp::MAX, policy, certificate.as_ref(), *NOW));
    decided.is_ok()
}

fuzz_target!(|data: &[u8]| {
    for query in ["mode=Required&authority=staff", "mode=Optional&authority=staff"] {
        let policy = Policy::of_query(query).unwrap();
        for form in [&TRAEFIK, &NGINX, &ENVOY] {
            for text in [data, STANDARD.encode(data).as_bytes()] {
                let passed = passes(form, &policy, text);
                assert!(!passed || text.is_empty() && query.contains("Optional"));
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (Policy::of_query(text), Policy::of_path(text));
    }
});
