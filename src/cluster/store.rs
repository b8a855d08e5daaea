//! What the watches saw: a map of objects, an index by one string, and a call for each change.
//!
//! kube's own reflector does not tell of objects that vanished during a relist; level-triggered
//! deletion needs that, so the map is kept here and every key of the old and the new list is told.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::Key;

/// After this time it is looked again whether there is something to watch.
const NOTHING_TO_WATCH: Duration = Duration::from_secs(30);

/// A string that objects are found by, such as `namespace/secretName`.
pub type Index<K> = fn(&K) -> Option<String>;

/// All objects of one kind that the watches cover. Clones share the map.
pub struct Store<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    objects: RwLock<Objects<K>>,
    index: Option<Index<K>>,
    // How many watches have not delivered their first list yet.
    pending: watch::Sender<usize>,
}

struct Objects<K> {
    by_key: HashMap<Key, Arc<K>>,
    by_index: HashMap<String, BTreeSet<Key>>,
}

impl<K> Clone for Store<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: ResourceExt> Default for Store<K> {
    fn default() -> Self {
        Self::new(None)
    }
}

impl<K: ResourceExt> Store<K> {
    /// An empty store.
    pub fn new(index: Option<Index<K>>) -> Self {
        let objects = Objects { by_key: HashMap::new(), by_index: HashMap::new() };
        let shared =
            Shared { objects: RwLock::new(objects), index, pending: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// The object of a key.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().by_key.get(key).cloned()
    }

    /// The objects of an index value, in the order of their keys.
    pub fn find(&self, value: &str) -> Vec<Arc<K>> {
        let objects = self.read();
        let keys = objects.by_index.get(value).into_iter().flatten();
        keys.filter_map(|key| objects.by_key.get(key).cloned()).collect()
    }

    /// All objects.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().by_key.values().cloned().collect()
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        self.read().by_key.keys().cloned().collect()
    }

    /// The keys in one namespace.
    pub fn keys_in(&self, namespace: &str) -> Vec<Key> {
        self.read().by_key.keys().filter(|key| key.namespace == namespace).cloned().collect()
    }

    /// Has every watch delivered its first list?
    pub fn is_complete(&self) -> bool {
        *self.shared.pending.borrow() == 0
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().by_key.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until every watch has delivered its first list: an empty store must not look like an
    /// empty cluster.
    pub async fn ready(&self) {
        let mut pending = self.shared.pending.subscribe();
        // The sender lives in `self`, so this can't fail.
        let _ = pending.wait_for(|count| *count == 0).await;
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Objects<K>> {
        self.shared.objects.read().expect("no holder of this lock panics")
    }

    fn put(&self, object: K) -> Key {
        let key = Key::of(&object);
        let index = self.shared.index;
        let mut objects = self.shared.objects.write().expect("no holder of this lock panics");
        objects.unindex(&key, index);
        if let Some(value) = index.and_then(|index| index(&object)) {
            objects.by_index.entry(value).or_default().insert(key.clone());
        }
        objects.by_key.insert(key.clone(), Arc::new(object));
        key
    }

    fn remove(&self, key: &Key) {
        let mut objects = self.shared.objects.write().expect("no holder of this lock panics");
        objects.unindex(key, self.shared.index);
        objects.by_key.remove(key);
    }
}

impl<K> Objects<K> {
    fn unindex(&mut self, key: &Key, index: Option<Index<K>>) {
        let value = self.by_key.get(key).and_then(|old| index.and_then(|index| index(old)));
        let Some(value) = value else { return };
        if let Some(keys) = self.by_index.get_mut(&value) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_index.remove(&value);
            }
        }
    }
}

impl<K> Store<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Watches an API for ever, keeps what `slim` leaves of each object, and calls `changed` for each
    /// key that came, changed or went. `previous` is the object that the key had before.
    pub fn watch(
        &self,
        api: Api<K>,
        config: watcher::Config,
        slim: fn(&mut K),
        changed: impl Fn(&Key, Option<&K>) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.shared.pending.send_modify(|count| *count += 1);
        let store = self.clone();
        let limited = api.namespace().is_some() || config.field_selector.is_some();
        async move {
            let mut events = pin!(watcher(api, config).default_backoff());
            let mut scope = HashSet::new();
            let mut listing = HashSet::new();
            let mut first = true;
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Init) => listing.clear(),
                    Ok(Event::InitApply(mut object) | Event::Apply(mut object)) => {
                        slim(&mut object);
                        let previous = store.get(&Key::of(&object));
                        let key = store.put(object);
                        listing.insert(key.clone());
                        scope.insert(key.clone());
                        changed(&key, previous.as_deref());
                    }
                    Ok(Event::Delete(object)) => {
                        let key = Key::of(&object);
                        scope.remove(&key);
                        store.remove(&key);
                        changed(&key, Some(&object));
                    }
                    Ok(Event::InitDone) => {
                        for key in scope.difference(&listing).cloned().collect::<Vec<_>>() {
                            let previous = store.get(&key);
                            scope.remove(&key);
                            store.remove(&key);
                            changed(&key, previous.as_deref());
                        }
                        if std::mem::take(&mut first) {
                            store.shared.pending.send_modify(|count| *count -= 1);
                        }
                    }
                    // The kind of an optional data plane that is not installed (yet), or a namespace that
                    // went, and with it the right to look into it.
                    Err(error) if is_answer(&error, 404) || (limited && is_answer(&error, 403)) => {
                        debug!(%error, "nothing to watch");
                        if std::mem::take(&mut first) {
                            store.shared.pending.send_modify(|count| *count -= 1);
                        }
                        // The watch's own backoff starts over with each attempt.
                        tokio::time::sleep(NOTHING_TO_WATCH).await;
                    }
                    Err(error) => warn!(%error, "watch failed, it will be retried"),
                }
            }
        }
    }
}

/// Did the API server answer so?
fn is_answer(error: &watcher::Error, code: u16) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.code == code
}
