//! `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Serves until `shutdown` is true.
pub async fn serve(
    listener: TcpListener,
    ready: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let readiness = move || {
        let answer = if *ready.borrow() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "watches are not complete\n")
        };
        async move { answer }
    };
    let scrape = move || {
        let text = metrics.encode();
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        async move { ([(header::CONTENT_TYPE, kind)], text) }
    };
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(scrape));
    axum::serve(listener, router).with_graceful_shutdown(until(shutdown)).await
}

/// Resolves when the process shall stop.
pub async fn until(mut shutdown: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the process.
    let _ = shutdown.wait_for(|stop| *stop).await;
}
