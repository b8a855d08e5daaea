//! The listener of the CRL server, which anybody may reach: HTTP/1.1 with keep-alive and pipelining, and
//! a bound on what a client can hold for how long.
//!
//! axum's own server has neither a timeout for headers nor a limit of connections.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use super::crl;
use super::health::until;
use super::view::View;
use crate::metrics::{CrlRequestLabels, Metrics};

/// So many connections at once; further ones wait. One takes about 20 KiB, the CRLs are shared.
const CONNECTIONS: usize = 4096;
/// The head of a request must be there within this time, counted from the answer before: an idle connection
/// ends then too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// After this time a connection gets no further request, so that clients spread over new replicas.
const LIFETIME: Duration = Duration::from_secs(300);
/// Then, or when the process ends, so long for the answer under way. Whoever reads a large CRL more slowly
/// goes on by a range on another connection.
const LAST_ANSWER: Duration = Duration::from_secs(300);
/// The same when the process ends: Kubernetes kills it after 30 s.
const LAST_ANSWER_AT_END: Duration = Duration::from_secs(10);
/// Longest head of a request.
const HEAD_LIMIT: usize = 16 * 1024;

/// What a connection needs.
#[derive(Clone)]
struct Server {
    view: Arc<ArcSwap<View>>,
    metrics: Arc<Metrics>,
    http: http1::Builder,
}

/// Serves until `shutdown` is true and the answers under way are out.
pub async fn serve(
    listener: TcpListener,
    view: Arc<ArcSwap<View>>,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .pipeline_flush(true);
    let server = Server { view, metrics, http };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stop = pin!(until(shutdown.clone()));
    loop {
        let place = places.clone().acquire_owned();
        let next = async { (place.await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = &mut stop => break,
        };
        let place = place.expect("the semaphore is never closed");
        match accepted {
            Ok((stream, _)) => {
                let connection = server.clone().connection(stream, shutdown.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            // The client is gone already, or this process has no file descriptor left.
            Err(error) => {
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let all = places.acquire_many(CONNECTIONS as u32);
    // What is not out by then is cut off.
    let _ = tokio::time::timeout(LAST_ANSWER_AT_END, all).await;
}

impl Server {
    async fn connection(self, stream: TcpStream, shutdown: watch::Receiver<bool>) {
        // Without it a short answer after another one would wait for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| self.answer(request));
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let done = tokio::select! {
            biased;
            done = &mut connection => Some(done),
            () = until(shutdown) => None,
            () = tokio::time::sleep(LIFETIME) => None,
        };
        let done = match done {
            Some(done) => done,
            None => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(LAST_ANSWER, connection).await {
                    Ok(done) => done,
                    Err(_) => return debug!("a client read too slowly"),
                }
            }
        };
        if let Err(error) = done {
            debug!(%error, "a connection ended");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path();
        // The lock of the view is not held while something is waited for.
        let unmade = crl::unmade(&self.view.load(), path);
        if let Some(published) = unmade {
            let made = tokio::task::spawn_blocking(move || published.pem().body().len()).await;
            debug!(bytes = made.ok(), "made the PEM form of a CRL");
        }
        let view = self.view.load();
        let answer =
            crl::answer(&view, request.method(), path, request.headers(), Timestamp::now());
        let labels = CrlRequestLabels { code: answer.status().as_u16() };
        self.metrics.crl_requests.get_or_create(&labels).inc();
        Ok(answer)
    }
}
