//! The published CRLs as the server sees them: what is there, every change, and a sign of life.
//!
//! [`Store`](super::store::Store) would keep a second copy of every CRL, take a refused list for an empty
//! one, and not tell whether the API server still answers.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use tokio::sync::mpsc;
use tracing::warn;

use super::client::Clients;
use crate::api::label;
use crate::plan::publication::{COMPONENT, part_bytes};

/// The API server sends a bookmark each minute. After so long without a word the connection is dead, though
/// nobody has closed it.
const SILENCE: Duration = Duration::from_secs(180);
/// After a failure it is tried again: at first after this time, then after longer ones.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Never later than this, so that a revocation is in force soon after the API server is back.
const LAST_RETRY: Duration = Duration::from_secs(8);

/// What the watch saw.
#[derive(Debug)]
pub enum Seen {
    /// A CRL, new or changed, or perhaps not changed.
    Published(Box<ConfigMap>),
    /// It was deleted.
    Gone(Box<ConfigMap>),
    /// These and no others are there; each was told before.
    Listed(BTreeSet<String>),
    /// Nothing changed; the API server answers.
    Alive,
}

/// Tells what is there, and then every change, for ever.
pub async fn watch(clients: Clients, namespace: String, seen: mpsc::Sender<Seen>) {
    let selector = format!("{},{}={COMPONENT}", label::SELECTOR, label::COMPONENT);
    let list: Api<ConfigMap> = Api::namespaced(clients.call, &namespace);
    let watch: Api<ConfigMap> = Api::namespaced(clients.watch, &namespace);
    let mut retry = FIRST_RETRY;
    loop {
        let started = Instant::now();
        let Err(error) = follow(&list, &watch, &selector, &seen).await else { return };
        if started.elapsed() > LAST_RETRY {
            retry = FIRST_RETRY;
        }
        warn!(%error, "the watch of published CRLs failed, it will be retried");
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// The bytes of a part. None when it is not there: then a newer CRL is, or will be.
pub async fn part(api: &Api<ConfigMap>, name: &str) -> Result<Option<Vec<u8>>, kube::Error> {
    let found = api.get_opt(name).await?;
    Ok(found.and_then(|part| part_bytes(&part).map(<[u8]>::to_vec)))
}

/// Lists and watches until something fails. `Ok` means that nobody listens any more.
async fn follow(
    list: &Api<ConfigMap>,
    watch: &Api<ConfigMap>,
    selector: &str,
    seen: &mpsc::Sender<Seen>,
) -> Result<(), WatchError> {
    let found = list.list(&ListParams::default().labels(selector)).await?;
    let mut version = found.metadata.resource_version.clone().unwrap_or_default();
    let names = found.items.iter().map(ResourceExt::name_any).collect();
    let told = found.items.into_iter().map(|crl| Seen::Published(Box::new(crl)));
    for event in told.chain([Seen::Listed(names)]) {
        if seen.send(event).await.is_err() {
            return Ok(());
        }
    }
    loop {
        let started = Instant::now();
        let params = WatchParams::default().labels(selector);
        let mut events = pin!(watch.watch(&params, &version).await?);
        while let Some(event) = tokio::time::timeout(SILENCE, events.next())
            .await
            .map_err(|_| WatchError::Silent(SILENCE))?
        {
            let event = match event? {
                WatchEvent::Added(crl) | WatchEvent::Modified(crl) => {
                    version = crl.resource_version().unwrap_or(version);
                    Seen::Published(Box::new(crl))
                }
                WatchEvent::Deleted(crl) => {
                    version = crl.resource_version().unwrap_or(version);
                    Seen::Gone(Box::new(crl))
                }
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    Seen::Alive
                }
                // The version is too old, in the main: listing anew helps.
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            };
            if seen.send(event).await.is_err() {
                return Ok(());
            }
        }
        // The API server ends each watch after some minutes. One that ends at once is not asked in a loop.
        if started.elapsed() < Duration::from_secs(1) {
            return Err(WatchError::Ended);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("the API server does not answer well: {0}")]
    Api(#[from] kube::Error),
    #[error("no word from the API server for {0:?}")]
    Silent(Duration),
    #[error("the API server ended the watch at once")]
    Ended,
}
