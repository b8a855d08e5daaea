//! A watch for the server: what is there, every change, and a sign of life.
//!
//! [`Store`](super::store::Store) would keep a second copy of every CRL, take a refused list for an empty
//! one, and not tell whether the API server still answers.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use tokio::sync::mpsc;
use tracing::warn;

use super::apply::Namespaced;
use super::client::Clients;

/// The API server sends a bookmark each minute. After so long without a word the connection is dead, though
/// nobody has closed it.
const SILENCE: Duration = Duration::from_secs(180);
/// After a failure it is tried again: at first after this time, then after longer ones.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Never later than this, so that a revocation is in force soon after the API server is back.
const LAST_RETRY: Duration = Duration::from_secs(8);

/// What the watch saw.
#[derive(Debug)]
pub enum Seen<K> {
    /// An object, new or changed, or perhaps not changed.
    Found(Box<K>),
    /// It was deleted.
    Gone(Box<K>),
    /// These and no others are there; each was told before.
    Listed(BTreeSet<String>),
    /// Nothing changed; the API server answers.
    Alive,
}

/// Which objects of a namespace are watched.
#[derive(Clone, Debug)]
pub enum Selection {
    /// Those that a label selector selects.
    Labels(String),
    /// The one of this name: all that a right by `resourceNames` covers.
    Name(&'static str),
}

impl Selection {
    fn params(&self) -> (ListParams, WatchParams) {
        let (list, watch) = (ListParams::default(), WatchParams::default());
        match self {
            Self::Labels(selector) => (list.labels(selector), watch.labels(selector)),
            Self::Name(name) => {
                let field = format!("metadata.name={name}");
                (list.fields(&field), watch.fields(&field))
            }
        }
    }
}

/// Tells what is there, and then every change, for ever.
pub async fn watch<K: Namespaced>(
    clients: Clients,
    namespace: String,
    selection: Selection,
    seen: mpsc::Sender<Seen<K>>,
) {
    let list: Api<K> = Api::namespaced(clients.call, &namespace);
    let watch: Api<K> = Api::namespaced(clients.watch, &namespace);
    let mut retry = FIRST_RETRY;
    loop {
        let started = Instant::now();
        let Err(error) = follow(&list, &watch, &selection, &seen).await else { return };
        if started.elapsed() > LAST_RETRY {
            retry = FIRST_RETRY;
        }
        warn!(%error, kind = %K::kind(&()), ?selection, "a watch failed, it will be retried");
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// Lists and watches until something fails. `Ok` means that nobody listens any more.
async fn follow<K: Namespaced>(
    list: &Api<K>,
    watch: &Api<K>,
    selection: &Selection,
    seen: &mpsc::Sender<Seen<K>>,
) -> Result<(), WatchError> {
    let (list_params, watch_params) = selection.params();
    let found = list.list(&list_params).await?;
    let mut version = found.metadata.resource_version.clone().unwrap_or_default();
    let names = found.items.iter().map(ResourceExt::name_any).collect();
    let told = found.items.into_iter().map(|object| Seen::Found(Box::new(object)));
    for event in told.chain([Seen::Listed(names)]) {
        if seen.send(event).await.is_err() {
            return Ok(());
        }
    }
    loop {
        let started = Instant::now();
        let mut events = pin!(watch.watch(&watch_params, &version).await?);
        while let Some(event) = tokio::time::timeout(SILENCE, events.next())
            .await
            .map_err(|_| WatchError::Silent(SILENCE))?
        {
            let event = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    version = object.resource_version().unwrap_or(version);
                    Seen::Found(Box::new(object))
                }
                WatchEvent::Deleted(object) => {
                    version = object.resource_version().unwrap_or(version);
                    Seen::Gone(Box::new(object))
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
