//! The controller process: watches first, then leadership, then the loops.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use super::context::{Context, Stores};
use super::queue;
use super::queues::{Incoming, Queues, queues};
use super::servers::Servers;
use super::{authority, bundle, canary, compaction, identity, revocation, trust, watches};
use crate::api::annotation;
use crate::cluster::Key;
use crate::cluster::client::Clients;
use crate::cluster::events::Events;
use crate::cluster::leader::Candidate;
use crate::cluster::ledger::{LedgerError, LedgerHandle};
use crate::metrics::Metrics;
use crate::token::Token;

/// How the controller is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The operator's namespace: CA keys, CRLs, ledger and lease live there.
    pub namespace: String,
    /// Only these namespaces are looked after; all when empty.
    pub namespaces: Vec<String>,
    /// Name of this replica.
    pub identity: String,
    /// Name of the lease that replicas compete for.
    pub lease: String,
    /// A leader that is silent for so long is replaced.
    pub lease_duration: Duration,
    /// How many identities are worked on at once.
    pub concurrency: usize,
    /// Base URL of the gate, as data planes reach it.
    pub gate_url: String,
    /// The gate over TLS, where it knows its callers.
    pub gate_tls: Option<GateTls>,
    /// The token that holds CA keys, if there is one.
    pub token: Option<Token>,
    /// How canaries are run.
    pub canary: canary::Settings,
    /// `HOST:PORT` of the servers' CRL port; the name has an address for each of them.
    pub crl_servers: Option<String>,
}

/// How data planes that can show the gate a certificate ask it.
#[derive(Clone, Debug)]
pub struct GateTls {
    /// Its base URL over TLS.
    pub url: String,
    /// Name of the authority of their certificates, and of the gate's own.
    pub callers: String,
}

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Leadership was lost: another replica works now, this one starts over.
    #[error("lost leadership")]
    LeadershipLost,
}

/// A new leader looks at everything once, also at routes that carry the mark of a trust that is gone.
fn push_everything(stores: &Stores, queues: &Queues) {
    stores.authorities.keys().into_iter().for_each(|key| queues.authority.push(key));
    stores.identities.keys().into_iter().for_each(|key| queues.identity.push(key));
    stores.revocations.keys().into_iter().for_each(|key| queues.revocation.push(key));
    stores.trusts.keys().into_iter().for_each(|key| queues.trust.push(key));
    stores.trusts.keys().into_iter().for_each(|key| queues.canary.push(key));
    for route in stores.all_routes() {
        let metadata = &route["metadata"];
        if let Some(name) = metadata["annotations"][annotation::TRUST].as_str() {
            let namespace = metadata["namespace"].as_str().unwrap_or_default();
            queues.trust.push(Key::new(namespace, name));
        }
    }
}

/// Runs until `shutdown` is true or leadership is lost. `ready` turns true when the watches are
/// complete: this replica could take over at once.
pub async fn run(
    config: Config,
    clients: Clients,
    metrics: Arc<Metrics>,
    ready: watch::Sender<bool>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let (queues, mut incoming) = queues();
    let stores = Stores::default();
    let mut watches = JoinSet::new();
    watches::start(&config, &clients.watch, &stores, &queues, &mut watches);

    // Every store is full before anything is decided: an empty one would look like an empty cluster.
    tokio::select! {
        () = stores.ready() => {}
        _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
    }
    info!(identities = stores.identities.len(), "watches are complete");
    ready.send_replace(true);

    let (leading, mut leads) = watch::channel(false);
    let candidate = Candidate {
        namespace: config.namespace.clone(),
        lease: config.lease.clone(),
        identity: config.identity.clone(),
        duration: config.lease_duration,
    };
    // The lease is given back only after the loops have ended.
    let (release, released) = watch::channel(false);
    let election = tokio::spawn(candidate.run(clients.call.clone(), leading, released));
    loop {
        tokio::select! {
            _ = leads.wait_for(|leads| *leads) => break,
            _ = shutdown.wait_for(|stop| *stop) => {
                release.send_replace(true);
                let _ = election.await;
                return Ok(());
            }
            // What the watches ask for while another replica works is not kept.
            () = tokio::time::sleep(Duration::from_secs(1)) => incoming.drain(),
        }
    }
    incoming.drain();
    push_everything(&stores, &queues);
    metrics.leader.set(1.0);

    let ledger = LedgerHandle::load(clients.call.clone(), &config.namespace).await?;
    let context = Arc::new(Context {
        client: clients.call.clone(),
        watch_client: clients.watch,
        namespace: config.namespace.clone(),
        namespaces: config.namespaces.clone(),
        gate_url: config.gate_url.clone(),
        gate_tls: config.gate_tls.clone(),
        token: config.token.clone(),
        servers: config.crl_servers.clone().map(Servers::new),
        events: Events::new(clients.call, "controller", Some(config.identity.clone())),
        stores,
        queues,
        ledger,
        metrics: metrics.clone(),
        cas: RwLock::new(HashMap::new()),
        in_force: Mutex::new(HashMap::new()),
        signing: RwLock::new(HashMap::new()),
        shards: Mutex::new(HashMap::new()),
        checked: Mutex::new(HashMap::new()),
        written: Mutex::new(HashMap::new()),
        awaited: Mutex::new(HashMap::new()),
        repairs: Mutex::new(HashMap::new()),
        restarted: Mutex::new(HashMap::new()),
        status_written: Mutex::new(HashMap::new()),
        canary_settings: config.canary.clone(),
        canaries: canary::Canaries::default(),
        revoking: Mutex::new(HashMap::new()),
        policies: Default::default(),
        beside_gate: Default::default(),
        password_watches: Default::default(),
    });
    canary::wake(&context);
    let (stop, stopped) = watch::channel(false);
    let loops = tokio::spawn(run_loops(context, incoming, config.concurrency, stopped));
    let lost = tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => false,
        _ = leads.wait_for(|leads| !*leads) => true,
    };
    info!("stopping");
    stop.send_replace(true);
    if lost {
        // Another replica works already: what is under way here must not go on beside it.
        loops.abort();
    } else if let Err(error) = loops.await {
        std::panic::resume_unwind(error.into_panic());
    }
    release.send_replace(true);
    let _ = election.await;
    metrics.leader.set(0.0);
    watches.abort_all();
    if lost { Err(RunError::LeadershipLost) } else { Ok(()) }
}

async fn run_loops(
    context: Arc<Context>,
    incoming: Incoming,
    concurrency: usize,
    stop: watch::Receiver<bool>,
) {
    macro_rules! control {
        ($module:path, $queue:ident, $concurrency:expr) => {{
            use $module as module;
            let context = context.clone();
            let metrics = context.metrics.clone();
            queue::run(
                module::NAME,
                incoming.$queue,
                $concurrency,
                metrics,
                stop.clone(),
                move |key| module::reconcile(context.clone(), key),
            )
        }};
    }
    tokio::join!(
        control!(authority, authority, 4),
        control!(identity, identity, concurrency),
        control!(revocation::record, revocation, revocation::record::CONCURRENCY),
        control!(revocation::tell, revocation_status, concurrency),
        control!(trust, trust, 4),
        control!(bundle, bundle, 8),
        control!(canary, canary, 4),
        compaction::run(context.clone(), stop.clone()),
    );
}
