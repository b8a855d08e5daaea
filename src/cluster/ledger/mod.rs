//! The ledger on the API server: append-only segments, one ConfigMap each, in the operator's
//! namespace.
//!
//! Appends of the same moment share one write (group commit). A write carries the resourceVersion of
//! the segment; when it is stale, somebody else appended: the segments are read again and the append
//! is repeated on what stands there, so that no record is ever lost or written over.

mod writer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, RwLock};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use self::writer::{Request, Writer};
use crate::api::{annotation, label};
use crate::plan::authority::key_of;
use crate::plan::ledger::compaction::Facts;
use crate::plan::ledger::segment::{Segment, chain, outline, read};
use crate::plan::ledger::{CaKey, Ledger, Record};

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The API server refused or could not be reached.
    #[error("failed to read the ledger")]
    Read(#[source] kube::Error),
    /// The API server refused or could not be reached, or others keep writing.
    #[error("failed to append to the ledger: {0}")]
    Append(String),
    /// The API server refused or could not be reached, or somebody else wrote in between.
    #[error("failed to compact the ledger: {0}")]
    Compact(String),
    /// The task that writes has ended.
    #[error("the ledger is closed")]
    Closed,
}

/// How whole the ledger of a CA is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The position of the next record: as many were ever appended.
    pub position: u64,
    /// Why it is not whole, and what to do; nothing when it is.
    pub trouble: Option<String>,
}

/// What this process knows of all ledgers.
#[derive(Default)]
struct Shelf {
    books: HashMap<CaKey, Ledger>,
    states: HashMap<CaKey, Health>,
}

/// The ledgers of all CAs. Clones share them.
#[derive(Clone)]
pub struct LedgerHandle {
    client: Client,
    namespace: Arc<str>,
    shelf: Arc<RwLock<Shelf>>,
    /// A task for each CA, so that none waits for another's write. Each ends with the last handle.
    writers: Arc<Mutex<HashMap<CaKey, mpsc::UnboundedSender<Request>>>>,
}

impl LedgerHandle {
    /// Reads every segment. What can't be read of one is a trouble of its CA alone.
    pub async fn load(client: Client, namespace: &str) -> Result<Self, LedgerError> {
        let mut found = fetch(&client, namespace, None).await?;
        let noted = noted_positions(&client, namespace).await?;
        let handle = Self {
            client,
            namespace: namespace.into(),
            shelf: Arc::default(),
            writers: Arc::default(),
        };
        let keys: HashSet<CaKey> = found.keys().chain(noted.keys()).cloned().collect();
        for key in keys {
            let mut segments = found.remove(&key).unwrap_or_default();
            let mut writer = handle.writer(key.clone());
            writer.take_over(&mut segments);
            // Behind what a CRL was made from a new record must not fill the place of a lost one.
            writer.expect(noted.get(&key).copied().unwrap_or_default());
            handle.start(key, writer);
        }
        Ok(handle)
    }

    /// Appends records; when this returns, they are on the API server.
    pub async fn record(&self, key: &CaKey, records: Vec<Record>) -> Result<(), LedgerError> {
        if records.is_empty() {
            return Ok(());
        }
        self.ask(key, |done| Request::Append { records, done }).await
    }

    /// Appends a record with the next others, or a little later: it may get lost with this process.
    pub fn record_later(&self, key: &CaKey, record: Record) {
        // A task that ended has nobody left to write for.
        let _ = self.sender(key).send(Request::Later(record));
    }

    /// Reads the ledger of a CA again: another replica may have appended to it.
    pub async fn refresh(&self, key: &CaKey) -> Result<(), LedgerError> {
        self.ask(key, Request::Refresh).await
    }

    /// Takes out of a ledger what nobody needs any more; tells how many segments were written or deleted.
    /// One that is not whole is left alone.
    pub async fn compact(&self, key: &CaKey, facts: Facts) -> Result<usize, LedgerError> {
        self.ask(key, |done| Request::Compact { facts, done }).await
    }

    /// Looks whether the segments are as this process knows them, by their metadata alone, and reads those
    /// of a CA again where they are not.
    pub async fn audit(&self) -> Result<(), LedgerError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = ListParams::default().labels(&selector(None));
        let list = api.list_metadata(&params).await.map_err(LedgerError::Read)?;
        let mut found: HashMap<CaKey, Vec<Segment>> = HashMap::new();
        for (key, segment) in list.items.iter().filter_map(|one| outline(&one.metadata)) {
            found.entry(key).or_default().push(segment);
        }
        let known: HashMap<CaKey, Health> = {
            let shelf = self.shelf.read().expect("no holder of this lock panics");
            shelf.states.clone()
        };
        let keys: HashSet<CaKey> = found.keys().chain(known.keys()).cloned().collect();
        for key in keys {
            let there = chain(found.entry(key.clone()).or_default());
            let here = known.get(&key).cloned().unwrap_or_default();
            let same = there.position == here.position && there.troubles.is_empty();
            if !same || here.trouble.is_some() {
                self.refresh(&key).await?;
            }
        }
        Ok(())
    }

    /// Looks into the ledger of a CA; an empty one when nothing was recorded.
    pub fn read<R>(&self, key: &CaKey, look: impl FnOnce(&Ledger) -> R) -> R {
        self.view(key, |ledger, _| look(ledger))
    }

    /// Looks into the ledger of a CA and at how whole it is, as of one moment.
    pub fn view<R>(&self, key: &CaKey, look: impl FnOnce(&Ledger, &Health) -> R) -> R {
        let shelf = self.shelf.read().expect("no holder of this lock panics");
        let (nothing, whole) = (Ledger::default(), Health::default());
        let state = shelf.states.get(key).unwrap_or(&whole);
        look(shelf.books.get(key).unwrap_or(&nothing), state)
    }

    /// Looks into all ledgers.
    pub fn read_all<R>(&self, look: impl FnOnce(&HashMap<CaKey, Ledger>) -> R) -> R {
        look(&self.shelf.read().expect("no holder of this lock panics").books)
    }

    /// Why the ledger of a CA is not whole, and what to do; nothing when it is.
    pub fn trouble(&self, key: &CaKey) -> Option<String> {
        self.view(key, |_, state| state.trouble.clone())
    }

    /// The position of the next record of a CA.
    pub fn position(&self, key: &CaKey) -> u64 {
        self.view(key, |_, state| state.position)
    }

    async fn ask<T>(
        &self,
        key: &CaKey,
        request: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Request,
    ) -> Result<T, LedgerError> {
        let (done, result) = oneshot::channel();
        self.sender(key).send(request(done)).map_err(|_| LedgerError::Closed)?;
        result.await.map_err(|_| LedgerError::Closed)?
    }

    fn sender(&self, key: &CaKey) -> mpsc::UnboundedSender<Request> {
        let known = self.writers.lock().expect("no holder of this lock panics").get(key).cloned();
        known.unwrap_or_else(|| self.start(key.clone(), self.writer(key.clone())))
    }

    fn writer(&self, key: CaKey) -> Writer {
        Writer::new(self.client.clone(), self.namespace.clone(), key, self.shelf.clone())
    }

    /// Starts the task of a CA, unless there is one.
    fn start(&self, key: CaKey, writer: Writer) -> mpsc::UnboundedSender<Request> {
        let mut writers = self.writers.lock().expect("no holder of this lock panics");
        let entry = writers.entry(key).or_insert_with(|| {
            let (requests, incoming) = mpsc::unbounded_channel();
            tokio::spawn(writer.run(incoming));
            requests
        });
        entry.clone()
    }
}

/// The segments of one CA, or of all, by a consistent read. They are in no order.
pub async fn fetch(
    client: &Client,
    namespace: &str,
    only: Option<&CaKey>,
) -> Result<BTreeMap<CaKey, Vec<Segment>>, LedgerError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default().labels(&selector(only))).await;
    let mut found: BTreeMap<CaKey, Vec<Segment>> = BTreeMap::new();
    for config_map in list.map_err(LedgerError::Read)?.items {
        let name = config_map.name_any();
        match read(config_map) {
            Some((key, segment)) => found.entry(key).or_default().push(segment),
            None => warn!(name, "a ConfigMap with the ledger's label is not a segment"),
        }
    }
    Ok(found)
}

/// The ledger positions that the published CRLs were made from.
pub async fn noted_positions(
    client: &Client,
    namespace: &str,
) -> Result<HashMap<CaKey, u64>, LedgerError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("{}=crl", label::COMPONENT));
    let list = api.list_metadata(&params).await.map_err(LedgerError::Read)?;
    let mut noted: HashMap<CaKey, u64> = HashMap::new();
    for crl in &list.items {
        let position = crl.annotations().get(annotation::LEDGER_POSITION);
        let position = position.and_then(|position| position.parse::<u64>().ok());
        if let Some((key, position)) = key_of(&crl.metadata).zip(position) {
            let highest = noted.entry(key).or_default();
            *highest = position.max(*highest);
        }
    }
    Ok(noted)
}

fn selector(only: Option<&CaKey>) -> String {
    let mut selector = format!("{}=ledger", label::COMPONENT);
    if let Some(CaKey { authority, generation }) = only {
        let more = format!(",{}={authority},{}={generation}", label::AUTHORITY, label::GENERATION);
        selector += &more;
    }
    selector
}
