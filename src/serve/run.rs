//! The server process: takes in the published CRLs, serves them, and answers the gate's questions. It works
//! on without the API server: by what is in memory, and after a restart by the copies on the disk.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use super::certificate::Certificate;
use super::confirmed::Confirmed;
use super::copies::Copies;
use super::gate::{self, Authorizers, Caller, Callers, Gate, Passwords};
use super::health::until;
use super::intake::Intake;
use super::listener;
use super::policies::{self, Policies};
use super::tls_listener::TlsListener;
use super::view::View;
use crate::cluster::client::Clients;
use crate::cluster::{self, crls};
use crate::metrics::Metrics;
use crate::plan::destination::Network;
use crate::plan::publication::Scope;

/// A copy that could not be written is tried again after this time.
const COPY_RETRY: Duration = Duration::from_secs(30);

/// How the server is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The operator's namespace: CRLs are published there.
    pub namespace: String,
    /// Where CRLs are served, plain HTTP.
    pub crl_listen: SocketAddr,
    /// Where the gate answers whoever asks, plain HTTP; nowhere when there is none.
    pub gate_listen: Option<SocketAddr>,
    /// Where it answers over TLS, and whom.
    pub gate_tls: Option<GateTls>,
    /// For so long the gate answers by CRLs of which the cluster does not say that they are still the ones.
    pub gate_max_staleness: SignedDuration,
    /// The gate asks services in these networks only about second factors; when there is none, everywhere but on its
    /// own host and at link-local addresses.
    pub second_factor_networks: Vec<Network>,
    /// Folder for copies of the last good CRLs.
    pub crl_cache: Option<PathBuf>,
}

/// The gate over TLS.
#[derive(Clone, Debug)]
pub struct GateTls {
    /// Where.
    pub listen: SocketAddr,
    /// Folder with its certificate and key, `tls.crt` and `tls.key`, which may come later and change.
    pub folder: PathBuf,
    /// Name of the authority whose certificates callers show.
    pub callers: String,
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address is taken, or not ours.
    #[error("failed to listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The folder for copies can't be used.
    #[error("--crl-cache: failed to use {0}")]
    Cache(PathBuf, #[source] io::Error),
    /// TLS is not to be had.
    #[error("failed to set up TLS")]
    Tls(#[from] rustls::Error),
    /// A listener broke.
    #[error("failed to serve")]
    Serve(#[from] io::Error),
}

/// Serves until `shutdown` is true. `ready` turns true when every published CRL is in memory, or at once
/// with a copy that has not expired.
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
    let gate_listener = match config.gate_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let gate_tls = match config.gate_tls {
        Some(tls) => Some((bind(tls.listen).await?, tls)),
        None => None,
    };

    let view = Arc::new(ArcSwap::from_pointee(View::default()));
    let confirmed = Arc::new(Confirmed::default());
    let changed = Arc::new(Notify::new());
    if let Some(folder) = config.crl_cache {
        let copies = open(&folder).map_err(|error| RunError::Cache(folder, error))?;
        let (copies, found) = copies;
        let now = Timestamp::now();
        // Without a complete one the gate lets nobody in.
        let complete = found.all().filter(|one| one.scope == Scope::Full);
        let valid = complete.filter(|one| one.next_update > now).count();
        info!(copies = found.all().count(), valid, "read the copies of the last good CRLs");
        ready.send_replace(valid > 0);
        confirmed.by_copies(&found, &metrics);
        view.store(Arc::new(found));
        tokio::spawn(keep_copies(copies, view.clone(), changed.clone()));
    }

    let (policies_clients, namespace) = (clients.clone(), config.namespace.clone());
    let (seen, events) = mpsc::channel(16);
    let watching = tokio::spawn(crls::watch(clients.clone(), config.namespace.clone(), seen));
    let intake = Intake::new(
        view.clone(),
        confirmed.clone(),
        metrics.clone(),
        clients,
        &config.namespace,
        changed,
    );
    let taking_in = tokio::spawn(intake.run(events, ready));

    let policies = Arc::new(ArcSwap::from_pointee(Policies::default()));
    let following = tokio::spawn(policies::follow(policies_clients, namespace, policies.clone()));
    let gate = Gate {
        view: view.clone(),
        policies,
        passwords: Arc::new(Passwords::default()),
        authorizers: Arc::new(Authorizers::new(config.second_factor_networks)),
        confirmed,
        max_staleness: config.gate_max_staleness,
        metrics: metrics.clone(),
    };
    let plain = async {
        let Some(listener) = gate_listener else { return Ok(()) };
        let served = axum::serve(listener, gate::router(gate.clone()));
        served.with_graceful_shutdown(until(shutdown.clone())).await
    };
    let over_tls = async {
        let Some((listener, tls)) = gate_tls else { return Ok(()) };
        serve_callers(listener, tls, gate.clone(), shutdown.clone()).await
    };
    let crl = listener::serve(crl_listener, view, metrics, shutdown.clone());
    let (plain, over_tls, ()) = tokio::join!(plain, over_tls, crl);
    watching.abort();
    taking_in.abort();
    following.abort();
    plain?;
    over_tls
}

/// The gate over TLS, for callers who show a certificate of the authority.
async fn serve_callers(
    listener: TcpListener,
    tls: GateTls,
    gate: Gate,
    shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let certificate = Arc::new(Certificate::default());
    let callers = Arc::new(Callers::new(gate, &tls.callers));
    let listener =
        TlsListener::start(listener, cluster::tls::server(callers.clone(), certificate.clone())?)?;
    let following = tokio::spawn(certificate.follow(tls.folder));
    let served = gate::guarded(callers).into_make_service_with_connect_info::<Caller>();
    let served = axum::serve(listener, served).with_graceful_shutdown(until(shutdown)).await;
    following.abort();
    Ok(served?)
}

fn open(folder: &std::path::Path) -> io::Result<(Copies, View)> {
    let mut copies = Copies::open(folder)?;
    let view = copies.read()?;
    Ok((copies, view))
}

/// Writes a copy of what changed. A disk that hangs or is full holds nothing else up.
async fn keep_copies(mut copies: Copies, view: Arc<ArcSwap<View>>, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        loop {
            let view = view.load_full();
            let work = tokio::task::spawn_blocking(move || {
                let result = copies.keep(&view);
                (copies, result)
            });
            // A panic of the writer is one of the process; and at its end nobody waits.
            let Ok((back, result)) = work.await else { return };
            copies = back;
            let Err(error) = result else { break };
            warn!(%error, "the copies of CRLs are not up to date, it will be retried");
            tokio::time::sleep(COPY_RETRY).await;
        }
    }
}
