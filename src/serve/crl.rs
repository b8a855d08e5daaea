//! `GET /crl/<authority>/<generation>.crl`: the CRL as DER, over plain HTTP, from memory (RFC 5280
//! section 4.2.1.13, RFC 2585).

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::{SignedDuration, Timestamp};

use super::http_date;
use super::view::{Published, View};
use crate::plan::ledger::CaKey;

/// A cache keeps a CRL no longer than this: a revocation must not wait for caches.
const MAX_AGE: SignedDuration = SignedDuration::from_mins(5);

/// The routes of the CRL server.
pub fn router(view: Arc<ArcSwap<View>>) -> Router {
    Router::new().route("/crl/{authority}/{file}", get(serve)).with_state(view)
}

async fn serve(
    State(view): State<Arc<ArcSwap<View>>>,
    Path((authority, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let generation = file.strip_suffix(".crl").and_then(|number| number.parse().ok());
    let key = generation.map(|generation| CaKey { authority: authority.into(), generation });
    let view = view.load();
    match key.and_then(|key| view.get(&key)) {
        Some(published) => answer(published, &headers, Timestamp::now()),
        None => (StatusCode::NOT_FOUND, "no such CRL\n").into_response(),
    }
}

fn answer(published: &Published, request: &HeaderMap, now: Timestamp) -> Response {
    let left = published.next_update.duration_since(now).max(SignedDuration::ZERO);
    let max_age = MAX_AGE.min(left / 2);
    let headers = [
        (header::CONTENT_TYPE, "application/pkix-crl".to_owned()),
        (header::ETAG, published.etag.clone()),
        (header::LAST_MODIFIED, http_date(published.this_update)),
        (header::CACHE_CONTROL, format!("public, max-age={}", max_age.as_secs())),
        (header::EXPIRES, http_date(now + max_age)),
    ];
    if is_unchanged(published, request) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, Bytes::from_owner(published.der.clone())).into_response()
}

/// If-None-Match decides alone when it is there (RFC 9110 section 13.2.2).
fn is_unchanged(published: &Published, request: &HeaderMap) -> bool {
    let text = |name| request.get(name).and_then(|value| value.to_str().ok());
    match (text(header::IF_NONE_MATCH), text(header::IF_MODIFIED_SINCE)) {
        (Some(tags), _) => tags
            .split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == published.etag),
        (None, Some(since)) => since == http_date(published.this_update),
        (None, None) => false,
    }
}
