//! The gate as Envoy's external authorisation over gRPC (`envoy.service.auth.v3.Authorization/Check`), which is all
//! that Contour and Istio speak. The messages hold what is needed here of `envoy/service/auth/v3/*.proto`, by the
//! numbers of their fields.
//!
//! Whatever is not understood is an answer, too, that denies: a gRPC error is to Envoy a failure of the gate, which
//! `failure_mode_allow` lets pass.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use prost::Message;
use rustls_pki_types::CertificateDer;

use super::form::{ENVOY, client_cert, escaped_pem};
use super::{CLIENT_CERT, CLIENT_CERT_CHAIN, Gate, Policy, Refusal};

/// Where it is asked.
pub const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Largest question: Envoy's headers, and no body of the request.
const LIMIT: usize = 1024 * 1024;
/// google.rpc.Code of an answer that denies.
const PERMISSION_DENIED: i32 = 7;
/// HeaderValueOption.HeaderAppendAction: what the client sent in the header goes.
const OVERWRITE_IF_EXISTS_OR_ADD: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(message, tag = "1")]
    attributes: Option<AttributeContext>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeContext {
    #[prost(message, tag = "1")]
    source: Option<Peer>,
    #[prost(message, tag = "4")]
    request: Option<Request>,
    #[prost(map = "string, string", tag = "10")]
    context_extensions: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Peer {
    // With include_peer_certificate: percent-encoded PEM of what the handshake showed.
    #[prost(string, tag = "5")]
    certificate: String,
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, tag = "2")]
    http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct HttpRequest {
    // By lower-case name; several of one name are joined by commas.
    #[prost(map = "string, string", tag = "3")]
    headers: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(message, tag = "1")]
    status: Option<Status>,
    #[prost(message, tag = "2")]
    denied_response: Option<DeniedHttpResponse>,
    #[prost(message, tag = "3")]
    ok_response: Option<OkHttpResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct DeniedHttpResponse {
    #[prost(message, tag = "1")]
    status: Option<HttpStatus>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderValueOption>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, Message)]
struct HttpStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct OkHttpResponse {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderValueOption>,
    #[prost(string, repeated, tag = "5")]
    headers_to_remove: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderValueOption {
    #[prost(message, tag = "1")]
    header: Option<Header>,
    #[prost(int32, tag = "3")]
    append_action: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

fn header(name: &HeaderName, value: &HeaderValue) -> HeaderValueOption {
    let value = value.to_str().unwrap_or_default().to_owned();
    let header = Header { key: name.to_string(), value };
    HeaderValueOption { header: Some(header), append_action: OVERWRITE_IF_EXISTS_OR_ADD }
}

/// Answers one question.
pub async fn check(State(gate): State<Gate>, body: Body) -> Response {
    let question = read(body).await;
    let policy = question.as_ref().map_err(|refusal| *refusal).and_then(policy);
    let trust = policy.as_ref().ok().and_then(|policy| policy.trust.clone());
    let headers = question.as_ref().map(authorization).unwrap_or_default();
    let shown = question.and_then(|question| certificate(&question));
    let answer = match gate.decision(policy, || shown, &headers).await {
        Ok(shown) => {
            let asks_for_more = trust.as_deref().is_some_and(|trust| gate.asks_for_more(trust));
            allowed(shown.as_ref(), asks_for_more)
        }
        Err(refusal) => denied(refusal, trust.as_deref()),
    };
    reply(&answer)
}

/// The one message of a unary call, not compressed.
async fn read(body: Body) -> Result<AttributeContext, Refusal> {
    let body = Limited::new(body, LIMIT).collect().await.map_err(|_| Refusal::BadRequest)?;
    let body = body.to_bytes();
    let message = match body.split_first_chunk::<5>() {
        Some(([0, length @ ..], message))
            if u32::from_be_bytes(*length) as usize == message.len() =>
        {
            message
        }
        _ => return Err(Refusal::BadRequest),
    };
    let request = CheckRequest::decode(message).map_err(|_| Refusal::BadRequest)?;
    request.attributes.ok_or(Refusal::BadRequest)
}

/// Reads `mode`, `authorities` (separated by commas) and `trust` from the context extensions of the route.
fn policy(question: &AttributeContext) -> Result<Policy, Refusal> {
    let known = ["mode", "authorities", "trust", "certificate"];
    let said = |key: &str| question.context_extensions.get(key).map(String::as_str);
    if question.context_extensions.keys().any(|key| !known.contains(&key.as_str())) {
        return Err(Refusal::BadRequest);
    }
    let authorities = said("authorities").unwrap_or_default().split(',').collect();
    Policy::new(said("mode").unwrap_or_default(), authorities, said("trust").map(str::to_owned))
}

/// The certificate that the handshake showed. What a header says is believed where the route says so, since Envoy
/// may hand on what the client wrote there.
fn certificate(question: &AttributeContext) -> Result<Option<CertificateDer<'static>>, Refusal> {
    let source = question.source.as_ref().map(|peer| peer.certificate.as_str()).unwrap_or_default();
    match question.context_extensions.get("certificate").map(String::as_str) {
        None if source.is_empty() => Ok(None),
        None => escaped_pem(source).map(Some).ok_or(Refusal::BadCertificate),
        Some(name) if name == ENVOY.header => {
            let mut headers = HeaderMap::new();
            if let Some(value) = sent(question, name) {
                let value = HeaderValue::from_str(value).map_err(|_| Refusal::BadCertificate)?;
                headers.insert(HeaderName::from_static(ENVOY.header), value);
            }
            ENVOY.certificate(&headers)
        }
        Some(_) => Err(Refusal::BadRequest),
    }
}

fn sent<'a>(question: &'a AttributeContext, name: &str) -> Option<&'a str> {
    question.request.as_ref()?.http.as_ref()?.headers.get(name).map(String::as_str)
}

fn authorization(question: &AttributeContext) -> HeaderMap {
    let value = sent(question, AUTHORIZATION.as_str());
    let value = value.and_then(|value| HeaderValue::from_str(value).ok());
    value.into_iter().map(|value| (AUTHORIZATION, value)).collect()
}

/// What many backends take for the headers that tell who the client is: Envoy lets underscores pass unless it is told not
/// to, which not everybody who configures it can say.
static WITH_UNDERSCORES: LazyLock<Vec<String>> = LazyLock::new(|| {
    [CLIENT_CERT, CLIENT_CERT_CHAIN, ENVOY.header].into_iter().flat_map(with_underscores).collect()
});

/// Every way to write the name of a header with an underscore in place of a hyphen, or of several.
fn with_underscores(name: &str) -> Vec<String> {
    let words: Vec<&str> = name.split('-').collect();
    let written = |choice: usize| {
        let mut written = words[0].to_owned();
        for (place, word) in words[1..].iter().enumerate() {
            written.push(if choice >> place & 1 == 1 { '_' } else { '-' });
            written.push_str(word);
        }
        written
    };
    (1..1 << (words.len() - 1)).map(written).collect()
}

/// The backend is told the certificate, and neither what the client wrote in its place nor the password.
fn allowed(shown: Option<&CertificateDer<'_>>, asks_for_more: bool) -> CheckResponse {
    let mut removed = vec![CLIENT_CERT_CHAIN.to_owned()];
    removed.extend(WITH_UNDERSCORES.iter().cloned());
    // Envoy removes after it has set: only what is not set may stand here.
    removed.extend(shown.is_none().then(|| CLIENT_CERT.to_owned()));
    removed.extend(asks_for_more.then(|| AUTHORIZATION.to_string()));
    let told = shown.map(|der| header(&HeaderName::from_static(CLIENT_CERT), &client_cert(der)));
    CheckResponse {
        status: Some(Status { code: 0 }),
        denied_response: None,
        ok_response: Some(OkHttpResponse {
            headers: told.into_iter().collect(),
            headers_to_remove: removed,
        }),
    }
}

fn denied(refusal: Refusal, trust: Option<&str>) -> CheckResponse {
    let answer = refusal.answer(trust);
    let question = answer.headers().get(WWW_AUTHENTICATE);
    CheckResponse {
        status: Some(Status { code: PERMISSION_DENIED }),
        denied_response: Some(DeniedHttpResponse {
            status: Some(HttpStatus { code: answer.status().as_u16().into() }),
            headers: question.map(|value| header(&WWW_AUTHENTICATE, value)).into_iter().collect(),
            body: refusal.message().to_owned(),
        }),
        ok_response: None,
    }
}

/// An answer of a call that went well.
fn reply(answer: &CheckResponse) -> Response {
    let message = answer.encode_to_vec();
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.extend_from_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(frame)).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    use super::super::tests::gate;
    use super::*;
    use crate::pki::authority::tests::sample;
    use crate::pki::certificate_pem;
    use crate::pki::issue::tests::sample_leaf;
    use crate::serve::view::View;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn question(
        certificate: &str,
        extensions: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> AttributeContext {
        AttributeContext {
            source: Some(Peer { certificate: certificate.to_owned() }),
            request: Some(Request { http: Some(HttpRequest { headers: map(headers) }) }),
            context_extensions: map(extensions),
        }
    }

    /// What is always removed, and this.
    fn removed(more: &[&str]) -> Vec<String> {
        let always = WITH_UNDERSCORES.iter().map(String::as_str);
        let always = ["client-cert-chain"].into_iter().chain(always);
        always.chain(more.iter().copied()).map(str::to_owned).collect()
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
    }

    async fn ask(body: Vec<u8>) -> CheckResponse {
        let answer = check(State(gate(View::default(), "{}")), Body::from(body)).await;
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/grpc");
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        CheckResponse::decode(&body.to_bytes()[5..]).unwrap()
    }

    #[test]
    fn names_of_headers_are_written_with_underscores_in_every_way() {
        assert_eq!(with_underscores("client-cert"), ["client_cert"]);
        let expected = ["client_cert-chain", "client-cert_chain", "client_cert_chain"];
        assert_eq!(with_underscores("client-cert-chain"), expected);
        assert_eq!(WITH_UNDERSCORES.len(), 1 + 3 + 7);
    }

    #[test]
    fn a_message_of_envoy_is_read_by_the_numbers_of_its_fields() {
        // attributes { source { principal: "p" certificate: "c" } request { time {} http { id: "1"
        // headers { "a": "b" } } } context_extensions { "mode": "Required" } }, by protoc.
        let text = b"\x0a\x31\x0a\x06\x22\x01p\x2a\x01c\x22\x0f\x0a\x00\x12\x0b\x0a\x011\x1a\x06\x0a\x01a\x12\x01b\x52\x10\x0a\x04mode\x12\x08Required";
        let text = [&text[..1], &[(text.len() - 2) as u8], &text[2..]].concat();
        let read = CheckRequest::decode(&*text).unwrap().attributes.unwrap();
        assert_eq!(read, question("c", &[("mode", "Required")], &[("a", "b")]));
    }

    #[test]
    fn only_the_handshake_is_believed_unless_the_route_says_otherwise() {
        let leaf = sample_leaf(&sample());
        let pem = certificate_pem(&leaf).replace('\n', "%0A").replace('+', "%2B");
        let header = ("x-forwarded-client-cert", &*format!("Hash=00;Cert=\"{pem}\""));
        let by_header = ("certificate", "x-forwarded-client-cert");
        let of = |source: &str, extensions: &[(&str, &str)], headers: &[(&str, &str)]| {
            certificate(&question(source, extensions, headers))
        };
        assert_eq!(of(&pem, &[], &[]), Ok(Some(leaf.clone())));
        assert_eq!(of("", &[], &[header]), Ok(None), "anybody can write a header");
        assert_eq!(of("", &[by_header], &[header]), Ok(Some(leaf)));
        assert_eq!(of(&pem, &[by_header], &[]), Ok(None));
        assert_eq!(of("x", &[], &[]), Err(Refusal::BadCertificate));
        assert_eq!(
            of("", &[by_header], &[("x-forwarded-client-cert", "x")]),
            Err(Refusal::BadCertificate)
        );
        assert_eq!(of(&pem, &[("certificate", "x")], &[]), Err(Refusal::BadRequest));
    }

    #[test]
    fn the_route_says_what_is_asked() {
        let of = |extensions: &[(&str, &str)]| policy(&question("", extensions, &[]));
        let (mode, authorities) = (("mode", "Optional"), ("authorities", "a,b"));
        assert_eq!(of(&[mode, authorities]), Policy::of_path("Optional/a,b"));
        let trust = of(&[mode, authorities, ("trust", "shop/t")]);
        assert_eq!(trust, Policy::of_path("trust/shop/t/Optional/a,b"));
        for extensions in [
            &[][..],
            &[mode],
            &[authorities],
            &[mode, ("authorities", "a,")],
            &[mode, authorities, ("Trust", "a/b")],
        ] {
            assert_eq!(of(extensions), Err(Refusal::BadRequest), "{extensions:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_understood_is_denied_and_no_failure() {
        let extensions = [("mode", "Optional"), ("authorities", "staff")];
        let attributes = Some(question("", &extensions, &[]));
        let good = framed(&CheckRequest { attributes }.encode_to_vec());
        let answer = ask(good.clone()).await;
        let ok = answer.ok_response.unwrap();
        assert_eq!((answer.status.unwrap().code, answer.denied_response), (0, None));
        assert_eq!(ok.headers_to_remove, removed(&["client-cert"]));
        let compressed = [&[1][..], &good[1..]].concat();
        let long = [&good[..], b"x"].concat();
        for bad in [
            Vec::new(),
            good[..4].to_vec(),
            compressed,
            long,
            framed(b"\xff"),
            framed(b""),
            vec![0; LIMIT + 1],
        ] {
            let answer = ask(bad).await;
            assert_eq!(
                (answer.status.unwrap().code, answer.ok_response),
                (PERMISSION_DENIED, None)
            );
            assert_eq!(answer.denied_response.unwrap().status, Some(HttpStatus { code: 403 }));
        }
    }

    #[test]
    fn the_backend_is_told_what_the_gate_says() {
        let der = CertificateDer::from(&b"A"[..]);
        let ok = allowed(Some(&der), true).ok_response.unwrap();
        let set = ok.headers[0].header.clone().unwrap();
        assert_eq!((&*set.key, &*set.value), ("client-cert", ":QQ==:"));
        assert_eq!(ok.headers[0].append_action, OVERWRITE_IF_EXISTS_OR_ADD);
        assert_eq!(ok.headers_to_remove, removed(&["authorization"]));
        let denied = denied(Refusal::PasswordMissing, Some("shop/t")).denied_response.unwrap();
        assert_eq!(denied.status.unwrap().code, 401);
        assert_eq!(denied.headers[0].header.as_ref().unwrap().key, "www-authenticate");
    }

    proptest! {
        #[test]
        fn foreign_messages_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(request) = CheckRequest::decode(&*bytes) {
                let question = request.attributes.unwrap_or_default();
                let _ = certificate(&question);
                prop_assert_eq!(policy(&question), Err(Refusal::BadRequest));
            }
        }
    }
}
