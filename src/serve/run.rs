//! The server process: watches the published CRLs, serves them, and answers the gate's questions.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::watcher;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use super::gate::{self, Gate};
use super::health::until;
use super::view::View;
use crate::api::label;
use crate::cluster::Key;
use crate::cluster::client::Clients;
use crate::cluster::store::Store;
use crate::metrics::Metrics;

/// How the server is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The operator's namespace: CRLs are published there.
    pub namespace: String,
    /// Where CRLs are served, plain HTTP.
    pub crl_listen: SocketAddr,
    /// Where the gate answers, plain HTTP.
    pub gate_listen: SocketAddr,
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address is taken, or not ours.
    #[error("failed to listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// A listener broke.
    #[error("failed to serve")]
    Serve(#[from] std::io::Error),
}

/// Serves until `shutdown` is true. `ready` turns true when every published CRL is in memory.
pub async fn run(
    config: Config,
    clients: Clients,
    metrics: Arc<Metrics>,
    ready: watch::Sender<bool>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let bind = async |address| {
        TcpListener::bind(address).await.map_err(|error| RunError::Listen(address, error))
    };
    let crl_listener = bind(config.crl_listen).await?;
    let gate_listener = bind(config.gate_listen).await?;

    let view = Arc::new(ArcSwap::from_pointee(View::default()));
    let store: Store<ConfigMap> = Store::default();
    let api = Api::namespaced(clients.watch, &config.namespace);
    let selector = format!("{},{}=crl", label::SELECTOR, label::COMPONENT);
    let changed = {
        let (view, store) = (view.clone(), store.clone());
        move |key: &Key, previous: Option<&ConfigMap>| match (store.get(key), previous) {
            (Some(now), _) => view.store(Arc::new(view.load().with(&now))),
            (None, Some(gone)) => view.store(Arc::new(view.load().without(gone))),
            (None, None) => {}
        }
    };
    let config = watcher::Config::default().labels(&selector);
    let watching = tokio::spawn(store.watch(api, config, |_| {}, changed));
    tokio::spawn(async move {
        store.ready().await;
        info!("every published CRL is in memory");
        ready.send_replace(true);
    });

    let crl = axum::serve(crl_listener, super::crl::router(view.clone()))
        .with_graceful_shutdown(until(shutdown.clone()));
    let gate = axum::serve(gate_listener, gate::router(Gate { view, metrics }))
        .with_graceful_shutdown(until(shutdown));
    tokio::try_join!(async { crl.await }, async { gate.await })?;
    watching.abort();
    Ok(())
}
