//! Takes in what the watch saw: fetches the parts of large CRLs, puts them into the view, and says so in
//! the metrics.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::confirmed::Confirmed;
use super::published::{Published, Source};
use super::view::View;
use crate::cluster::client::Clients;
use crate::cluster::crls;
use crate::cluster::watch::Seen;
use crate::metrics::{Metrics, NoLabels, authority as label};
use crate::plan::authority::key_of;
use crate::plan::publication::{Scope, part_names};

/// A part that could not be fetched is asked for again after this time.
const RETRY: Duration = Duration::from_secs(2);

/// What the intake works with.
pub struct Intake {
    view: Arc<ArcSwap<View>>,
    confirmed: Arc<Confirmed>,
    metrics: Arc<Metrics>,
    api: Api<ConfigMap>,
    changed: Arc<Notify>,
    // Heads whose parts are not there yet; the last good CRL serves on.
    waiting: BTreeMap<String, ConfigMap>,
}

impl Intake {
    /// `changed` is told of each change of the view.
    pub fn new(
        view: Arc<ArcSwap<View>>,
        confirmed: Arc<Confirmed>,
        metrics: Arc<Metrics>,
        clients: Clients,
        namespace: &str,
        changed: Arc<Notify>,
    ) -> Self {
        let api = Api::namespaced(clients.call, namespace);
        Self { view, confirmed, metrics, api, changed, waiting: BTreeMap::new() }
    }

    /// Works until the watch ends. `ready` turns true when every published CRL is in memory.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Seen<ConfigMap>>,
        ready: watch::Sender<bool>,
    ) {
        self.set(self.view.load_full());
        let mut listed = false;
        let mut retry = Instant::now();
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    listed |= matches!(event, Seen::Listed(_));
                    self.handle(event).await;
                    if listed && self.waiting.is_empty() {
                        self.confirmed.confirm(Timestamp::now(), &self.metrics);
                    }
                }
                () = tokio::time::sleep_until(retry), if !self.waiting.is_empty() => {
                    for (_, head) in std::mem::take(&mut self.waiting) {
                        self.take_in(head).await;
                    }
                    retry = Instant::now() + RETRY;
                }
            }
            if listed && self.waiting.is_empty() && !ready.send_replace(true) {
                info!("every published CRL is in memory");
            }
        }
    }

    async fn handle(&mut self, event: Seen<ConfigMap>) {
        match event {
            Seen::Found(head) => {
                self.waiting.remove(&head.name_any());
                self.take_in(*head).await;
            }
            Seen::Gone(head) => {
                self.waiting.remove(&head.name_any());
                self.set(Arc::new(self.view.load().without(&head)));
            }
            Seen::Listed(names) => {
                self.waiting.retain(|name, _| names.contains(name));
                self.set(Arc::new(self.view.load().only(&names)));
            }
            Seen::Alive => {}
        }
    }

    /// Takes in a CRL with all its parts, or leaves the head to wait for them.
    async fn take_in(&mut self, head: ConfigMap) {
        let view = self.view.load_full();
        let fetched = match self.fetch(&view, &head).await {
            Ok(fetched) => fetched,
            Err(why) => {
                let name = head.name_any();
                warn!(
                    name,
                    why, "a part of a CRL is not there, the last good CRL stays in service"
                );
                self.waiting.insert(name, head);
                return;
            }
        };
        // A large CRL takes a fraction of a second to check.
        let work = move || view.with_parts(&head, &fetched, Source::Cluster);
        if let Ok(view) = tokio::task::spawn_blocking(work).await {
            self.set(Arc::new(view));
        }
    }

    /// The parts that the CRL in service does not have, by name.
    async fn fetch(&self, view: &View, head: &ConfigMap) -> Result<HashMap<String, Bytes>, String> {
        let mut fetched = HashMap::new();
        let slot = key_of(&head.metadata).zip(Scope::of(&head.metadata));
        let Some((key, scope)) = slot else { return Ok(fetched) };
        let known = view.scoped(&key, scope);
        for name in part_names(&key, head) {
            if known.is_some_and(|known| known.part(&name).is_some()) {
                continue;
            }
            let part = crls::part(&self.api, &name).await;
            let part = part.map_err(|error| error.to_string())?;
            let part = part.ok_or_else(|| format!("ConfigMap {name} is missing"))?;
            fetched.insert(name, part.into());
        }
        Ok(fetched)
    }

    /// Puts a view into service. What can wait comes after.
    fn set(&self, view: Arc<View>) {
        self.view.store(view.clone());
        self.changed.notify_one();
        self.measure(&view);
        tokio::task::spawn_blocking(move || {
            for one in view.all() {
                one.document().compress();
            }
        });
    }

    /// Of the complete CRLs of an authority the oldest counts; one of a CA that nobody trusts any more does
    /// not.
    fn measure(&self, view: &View) {
        let metrics = &self.metrics;
        metrics.crl_served_this_update.clear();
        metrics.crl_served_next_update.clear();
        let in_force = |one: &&Arc<Published>| one.scope == Scope::Full && !one.removed;
        for one in view.all().filter(in_force) {
            let label = label(&one.key.authority);
            let oldest = |family: &Family<_, Gauge>, time: Timestamp| {
                let gauge = family.get_or_create(&label);
                let known = gauge.get();
                gauge.set(if known == 0 { time.as_second() } else { known.min(time.as_second()) });
            };
            oldest(&metrics.crl_served_this_update, one.this_update);
            oldest(&metrics.crl_served_next_update, one.next_update);
        }
        let from_disk = view.all().filter(|one| one.from_disk).count();
        metrics.crl_served_from_disk.get_or_create(&NoLabels {}).set(from_disk as i64);
    }
}
