//! A file as it is served: its bytes, gzipped too where that pays, and its headers, made once. Only what
//! depends on the time is made anew, once a second.

use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};

use super::conditional::{Outcome, Validators, evaluate, prefers_gzip};
use super::http_date;
use crate::pki::sha256_hex;

/// A cache keeps a file no longer than this: a revocation must not wait for caches.
const MAX_AGE: SignedDuration = SignedDuration::from_mins(5);

/// Shorter files fit into a packet or two as they are.
const WORTH_GZIP: usize = 1024;
/// Longer ones are compressed at the fastest level: serials are random, a better one finds little more.
const LARGE: usize = 256 * 1024;

/// A file in memory.
pub struct Document {
    identity: Representation,
    // None inside: it does not pay.
    gzip: OnceLock<Option<Representation>>,
    kind: &'static str,
    modified: Option<Timestamp>,
    expires: Option<Timestamp>,
    freshness: ArcSwapOption<Freshness>,
}

/// The bytes in one coding.
struct Representation {
    body: Bytes,
    etag: String,
    modified: Option<SystemTime>,
    // Of a 200, and of a 304.
    headers: HeaderMap,
    unchanged: HeaderMap,
}

/// The headers that depend on the time.
struct Freshness {
    second: i64,
    cache_control: HeaderValue,
    expires: HeaderValue,
}

impl Document {
    /// A file of a media type. `modified` is when it changed, and `expires` when it is of no use any
    /// more.
    pub fn new(
        body: Bytes,
        kind: &'static str,
        modified: Option<Timestamp>,
        expires: Option<Timestamp>,
    ) -> Self {
        Self {
            identity: Representation::new(body, kind, None, modified),
            gzip: OnceLock::new(),
            kind,
            modified,
            expires,
            freshness: ArcSwapOption::empty(),
        }
    }

    /// The bytes.
    pub fn body(&self) -> &Bytes {
        &self.identity.body
    }

    /// Their SHA-256, lower-case hex.
    pub fn sha256(&self) -> &str {
        self.identity.etag.trim_matches('"')
    }

    /// When it changed.
    pub fn modified(&self) -> Option<Timestamp> {
        self.modified
    }

    /// Compresses it, if that was not done yet. A large file takes a second, in which it is served as
    /// it is.
    pub fn compress(&self) {
        self.gzip.get_or_init(|| {
            let body = &self.identity.body;
            let packed = (body.len() >= WORTH_GZIP).then(|| gzip(body))?;
            // Less than a tenth is not worth the client's time.
            (packed.len() < body.len() / 10 * 9)
                .then(|| Representation::new(packed.into(), self.kind, Some("gzip"), self.modified))
        });
    }

    /// The answer to a GET or HEAD.
    pub fn answer(
        &self,
        method: &Method,
        request: &HeaderMap,
        now: Timestamp,
    ) -> Response<Full<Bytes>> {
        let is_head = method == Method::HEAD;
        let packed = self.gzip.get().and_then(Option::as_ref);
        let chosen = packed.filter(|_| prefers_gzip(request)).unwrap_or(&self.identity);
        let validators = Validators { etag: &chosen.etag, modified: chosen.modified };
        let body = &chosen.body;
        let (status, mut headers, body) = match evaluate(request, is_head, &validators, body.len())
        {
            Outcome::NotModified => {
                (StatusCode::NOT_MODIFIED, chosen.unchanged.clone(), Bytes::new())
            }
            Outcome::Whole => (StatusCode::OK, chosen.headers.clone(), body.clone()),
            Outcome::Part(range) => {
                let mut headers = chosen.headers.clone();
                let (first, last) = (range.start, range.end - 1);
                let place = format!("bytes {first}-{last}/{}", body.len());
                headers.insert(header::CONTENT_RANGE, value(&place));
                headers.insert(header::CONTENT_LENGTH, range.len().into());
                (StatusCode::PARTIAL_CONTENT, headers, body.slice(range))
            }
            Outcome::PreconditionFailed => return plain(StatusCode::PRECONDITION_FAILED, ""),
            Outcome::RangeNotSatisfiable => {
                let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE, "");
                let length = value(&format!("bytes */{}", body.len()));
                response.headers_mut().insert(header::CONTENT_RANGE, length);
                return response;
            }
        };
        let freshness = self.freshness(now);
        headers.insert(header::CACHE_CONTROL, freshness.cache_control.clone());
        headers.insert(header::EXPIRES, freshness.expires.clone());
        let mut response = Response::new(Full::new(if is_head { Bytes::new() } else { body }));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// The headers of this second. Two threads may make them twice, which does no harm.
    fn freshness(&self, now: Timestamp) -> Arc<Freshness> {
        let second = now.as_second();
        let known = self.freshness.load();
        if let Some(known) = known.as_ref().filter(|known| known.second == second) {
            return known.clone();
        }
        let made = Arc::new(Freshness::at(now, self.expires));
        self.freshness.store(Some(made.clone()));
        made
    }
}

impl Freshness {
    /// Neither a fresh copy nor one that is served in place of an error outlives `expires`.
    fn at(now: Timestamp, expires: Option<Timestamp>) -> Self {
        let left = expires.map(|expires| expires.duration_since(now));
        let (cache_control, expires) = match left {
            None => (format!("public, max-age={}", MAX_AGE.as_secs()), now + MAX_AGE),
            Some(left) if left.is_positive() => {
                let max_age = MAX_AGE.min(left / 2).as_secs();
                let stale = left.as_secs() - max_age;
                let text = format!("public, max-age={max_age}, stale-if-error={stale}");
                (text, now + SignedDuration::from_secs(max_age))
            }
            Some(_) => ("public, max-age=0, must-revalidate".to_owned(), expires.unwrap_or(now)),
        };
        Self {
            second: now.as_second(),
            cache_control: value(&cache_control),
            expires: value(&http_date(expires)),
        }
    }
}

impl Representation {
    fn new(
        body: Bytes,
        kind: &'static str,
        coding: Option<&'static str>,
        modified: Option<Timestamp>,
    ) -> Self {
        let etag = format!("\"{}\"", sha256_hex(&body));
        let mut unchanged = HeaderMap::with_capacity(16);
        unchanged.insert(header::ETAG, value(&etag));
        unchanged.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if let Some(modified) = modified {
            unchanged.insert(header::LAST_MODIFIED, value(&http_date(modified)));
        }
        let mut headers = unchanged.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if let Some(coding) = coding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        let modified = modified.map(|modified| {
            SystemTime::from(Timestamp::from_second(modified.as_second()).unwrap_or(modified))
        });
        Self { body, etag, modified, headers, unchanged }
    }
}

/// An answer that is no file. Caches must not keep it: a CRL that is not there yet may come at any time.
pub fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !text.is_empty() {
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let level = if body.len() > LARGE { Compression::fast() } else { Compression::best() };
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(body).expect("writing to a Vec can't fail");
    encoder.finish().expect("writing to a Vec can't fail")
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits, hex and dates are ASCII")
}
