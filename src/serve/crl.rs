//! CRLs over plain HTTP, from memory (RFC 5280 section 4.2.1.13, RFC 2585): `GET` and `HEAD` of
//! `/crl/<authority>/<generation>.crl` (DER), of its shards, the same with `.pem`, and `/crl/index.json`. No
//! redirect and no authentication: a CRL is signed, and whoever fetches one may not be able to do either.
//!
//! A CRL that has expired is served on, uncacheable. Whether to trust it is the verifier's to decide: one
//! that goes on without a CRL would otherwise let in everybody whom the old one names.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use jiff::Timestamp;

use super::document::plain;
use super::published::Published;
use super::view::{File, View};

/// Answers from the view. The only thing that takes time is a PEM form that nobody has asked for before:
/// see [`unmade`].
pub fn answer(
    view: &View,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    now: Timestamp,
) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match view.file(path) {
        Some(File::Index(document)) => document.answer(method, headers, now),
        Some(File::Der(published)) => published.document().answer(method, headers, now),
        Some(File::Pem(published)) => published.pem().answer(method, headers, now),
        None => plain(StatusCode::NOT_FOUND, "no such CRL\n"),
    }
}

/// The CRL at this path whose PEM form is still to be made, which is not for a thread that others wait for.
pub fn unmade(view: &View, path: &str) -> Option<Arc<Published>> {
    match view.file(path) {
        Some(File::Pem(published)) if !published.has_pem() => Some(published.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::CertificateAuthority;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::{CrlNumber, Entry, sign};
    use crate::pki::{Serial, sha256_hex};
    use crate::plan::ledger::CaKey;
    use crate::plan::publication::{Scope, render};
    use flate2::read::GzDecoder;
    use http_body_util::BodyExt;
    use std::io::Read;

    const THIS: &str = "2026-05-31T00:00:00Z";
    const NEXT: &str = "2026-06-07T00:00:00Z";
    const NOW: &str = "2026-06-01T00:00:00Z";
    const PATH: &str = "/crl/staff/1.crl";

    /// What came back: status, headers, body.
    struct Answer(u16, HeaderMap, Vec<u8>);

    impl Answer {
        fn header(&self, name: &str) -> &str {
            self.1.get(name).map_or("", |value| value.to_str().unwrap())
        }
    }

    fn publish(view: &View, ca: &CertificateAuthority, number: u128, entries: usize) -> View {
        let mut serials: Vec<Serial> = (0..entries).map(|_| Serial::random()).collect();
        serials.sort_unstable();
        let entry = |serial: Serial| Entry { serial, revoked_at: instant(THIS), reason: Some(1) };
        let entries: Vec<Entry> = serials.into_iter().map(entry).collect();
        let der = sign(ca, CrlNumber(number), instant(THIS), instant(NEXT), &entries).unwrap();
        let key = CaKey::first("staff");
        let pem = ca.certificate_pem();
        view.with(&render(&key, Scope::Full, &pem, &der, &[], CrlNumber(number)).head)
    }

    /// A view with a CRL of some kilobytes, compressed.
    fn view() -> View {
        let view = publish(&View::default(), &sample(), 7, 200);
        view.all().for_each(|one| one.document().compress());
        view
    }

    fn ask_at(view: &View, method: &str, path: &str, lines: &[(&str, &str)], now: &str) -> Answer {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: axum::http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let method = method.parse().unwrap();
        let (parts, body) = answer(view, &method, path, &headers, instant(now)).into_parts();
        let body = futures::executor::block_on(body.collect()).unwrap().to_bytes();
        Answer(parts.status.as_u16(), parts.headers, body.into())
    }

    fn ask(view: &View, method: &str, path: &str, lines: &[(&str, &str)]) -> Answer {
        ask_at(view, method, path, lines, NOW)
    }

    #[test]
    fn a_crl_comes_whole_with_everything_that_is_to_be_said() {
        let view = view();
        let der = view.get(&CaKey::first("staff")).unwrap().der().clone();
        let got = ask(&view, "GET", PATH, &[]);
        assert_eq!((got.0, &got.2[..]), (200, &der[..]));
        for (name, value) in [
            ("content-type", "application/pkix-crl"),
            ("content-length", &der.len().to_string()[..]),
            ("content-encoding", ""),
            ("etag", &format!("\"{}\"", sha256_hex(&der))),
            ("last-modified", "Sun, 31 May 2026 00:00:00 GMT"),
            ("vary", "accept-encoding"),
            ("accept-ranges", "bytes"),
            ("cache-control", "public, max-age=300, stale-if-error=518100"),
            ("expires", "Mon, 01 Jun 2026 00:05:00 GMT"),
        ] {
            assert_eq!(got.header(name), value, "{name}");
        }
        let head = ask(&view, "HEAD", PATH, &[]);
        assert_eq!((head.0, head.2.len()), (200, 0));
        assert_eq!(head.1, got.1);
    }

    #[test]
    fn a_client_that_has_it_is_told_so() {
        let view = view();
        let got = ask(&view, "GET", PATH, &[]);
        for method in ["GET", "HEAD"] {
            let again = ask(&view, method, PATH, &[("if-none-match", got.header("etag"))]);
            assert_eq!((again.0, again.2.len()), (304, 0));
            for name in ["etag", "vary", "cache-control", "expires", "last-modified"] {
                assert_eq!(again.header(name), got.header(name), "{name}");
            }
            assert_eq!(again.header("content-length"), "");
        }
        let since = [("if-modified-since", got.header("last-modified"))];
        assert_eq!(ask(&view, "GET", PATH, &since).0, 304);
        assert_eq!(ask(&view, "GET", PATH, &[("if-match", "\"other\"")]).0, 412);
    }

    #[test]
    fn gzip_is_another_representation_of_the_same() {
        let view = view();
        let plain = ask(&view, "GET", PATH, &[]);
        let accept = ("accept-encoding", "gzip");
        let packed = ask(&view, "GET", PATH, &[accept]);
        assert_eq!((packed.0, packed.header("content-encoding")), (200, "gzip"));
        assert_eq!(packed.header("content-length"), packed.2.len().to_string());
        assert_eq!(packed.header("content-type"), "application/pkix-crl");
        let mut unpacked = Vec::new();
        GzDecoder::new(&packed.2[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain.2);
        assert!(packed.2.len() < plain.2.len() * 9 / 10);

        let (etag, etag_packed) = (plain.header("etag"), packed.header("etag"));
        assert_ne!(etag, etag_packed);
        assert_eq!(ask(&view, "GET", PATH, &[accept, ("if-none-match", etag_packed)]).0, 304);
        assert_eq!(ask(&view, "GET", PATH, &[("if-none-match", etag_packed)]).0, 200);
        let part =
            ask(&view, "GET", PATH, &[accept, ("range", "bytes=2-4"), ("if-range", etag_packed)]);
        assert_eq!((part.0, &part.2[..]), (206, &packed.2[2..5]));

        let small = publish(&View::default(), &sample(), 7, 0);
        small.all().for_each(|one| one.document().compress());
        assert_eq!(ask(&small, "GET", PATH, &[accept]).header("content-encoding"), "");
    }

    #[test]
    fn a_broken_download_goes_on() {
        let view = view();
        let whole = ask(&view, "GET", PATH, &[]);
        let length = whole.2.len();
        let rest = ask(&view, "GET", PATH, &[("range", "bytes=1000-")]);
        assert_eq!((rest.0, &rest.2[..]), (206, &whole.2[1000..]));
        assert_eq!(rest.header("content-range"), format!("bytes 1000-{}/{length}", length - 1));
        assert_eq!(rest.header("content-length"), (length - 1000).to_string());
        assert_eq!(rest.header("etag"), whole.header("etag"));
        let none = ask(&view, "GET", PATH, &[("range", &format!("bytes={length}-"))]);
        assert_eq!((none.0, none.2.len()), (416, 0));
        assert_eq!(none.header("content-range"), format!("bytes */{length}"));
        let other = [("range", "bytes=1000-"), ("if-range", "\"of another CRL\"")];
        assert_eq!(ask(&view, "GET", PATH, &other).0, 200);
    }

    #[test]
    fn no_copy_is_fresh_past_next_update() {
        let view = view();
        for (now, cache_control, expires) in [
            (
                "2026-06-06T23:58:00Z",
                "public, max-age=60, stale-if-error=60",
                "Sat, 06 Jun 2026 23:59:00 GMT",
            ),
            (
                "2026-06-06T23:59:59Z",
                "public, max-age=0, stale-if-error=1",
                "Sat, 06 Jun 2026 23:59:59 GMT",
            ),
            // It is served on.
            (NEXT, "public, max-age=0, must-revalidate", "Sun, 07 Jun 2026 00:00:00 GMT"),
            (
                "2027-01-01T00:00:00Z",
                "public, max-age=0, must-revalidate",
                "Sun, 07 Jun 2026 00:00:00 GMT",
            ),
        ] {
            let got = ask_at(&view, "GET", PATH, &[], now);
            assert_eq!(got.0, 200);
            assert_eq!(
                (got.header("cache-control"), got.header("expires")),
                (cache_control, expires)
            );
        }
    }

    #[test]
    fn dates_do_not_tell_crls_of_one_second_apart() {
        let ca = sample();
        let first = publish(&View::default(), &ca, 7, 1);
        let second = publish(&first, &ca, 8, 2);
        let since = [("if-modified-since", "Sun, 31 May 2026 00:00:00 GMT")];
        assert_eq!(ask(&first, "GET", PATH, &since).0, 304);
        let got = ask(&second, "GET", PATH, &since);
        assert_eq!((got.0, got.header("last-modified")), (200, ""));
    }

    #[test]
    fn pem_is_the_same_crl() {
        let view = view();
        assert!(unmade(&view, "/crl/staff/1.pem").is_some() && unmade(&view, PATH).is_none());
        let got = ask(&view, "GET", "/crl/staff/1.pem", &[]);
        assert_eq!((got.0, got.header("content-type")), (200, "application/x-pem-file"));
        let block = pem::parse(&got.2).unwrap();
        assert_eq!(
            (block.tag(), block.contents()),
            ("X509 CRL", &ask(&view, "GET", PATH, &[]).2[..])
        );
        assert!(unmade(&view, "/crl/staff/1.pem").is_none());
        let again = [("if-none-match", got.header("etag"))];
        assert_eq!(ask(&view, "GET", "/crl/staff/1.pem", &again).0, 304);
    }

    #[test]
    fn the_list_says_what_is_served() {
        let view = view();
        let got = ask(&view, "GET", "/crl/index.json", &[]);
        assert_eq!((got.0, got.header("content-type")), (200, "application/json"));
        assert_eq!(got.header("cache-control"), "public, max-age=300");
        let der = ask(&view, "GET", PATH, &[]).2;
        let expected = serde_json::json!({"crls": [{
            "authority": "staff", "generation": 1, "path": PATH,
                "scope": "full", "number": "7",
            "sha256": sha256_hex(&der), "thisUpdate": THIS, "nextUpdate": NEXT,
            "entries": 200, "bytes": der.len(),
        }]});
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&got.2).unwrap(), expected);
        let again = [("if-none-match", got.header("etag"))];
        assert_eq!(ask(&view, "GET", "/crl/index.json", &again).0, 304);
        let empty = ask(&View::default(), "GET", "/crl/index.json", &[]);
        assert_eq!(empty.2, b"{\"crls\":[]}\n");
    }

    #[test]
    fn nothing_else_is_there() {
        let view = view();
        for path in [
            "/",
            "/crl",
            "/crl/",
            "/crl/staff",
            "/crl/staff/1",
            "/crl/staff/01.crl",
            "/crl/staff/2.crl",
            "/crl/other/1.crl",
            "/crl/staff/1.crl/",
            "//crl/staff/1.crl",
            "/crl/staff/../staff/1.crl",
            "/metrics",
        ] {
            let got = ask(&view, "GET", path, &[]);
            assert_eq!((got.0, got.header("cache-control")), (404, "no-store"), "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PURGE"] {
            let got = ask(&view, method, PATH, &[]);
            assert_eq!((got.0, got.header("allow")), (405, "GET, HEAD"), "{method}");
        }
    }
}
