//! The ledger on the API server: append-only segments, one ConfigMap each, in the operator's
//! namespace.
//!
//! Appends of the same moment share one write (group commit). A write carries the resourceVersion of
//! the segment; when it is stale, somebody else appended: the segments are read again and the append
//! is repeated on what stands there, so that no record is ever lost or written over.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::apply::{WriteError, write};
use crate::api::label;
use crate::plan::authority::{key_of, labels};
use crate::plan::ledger::{CaKey, DecodeError, Ledger, Record};

/// A segment of this size is sealed: a write costs what the open segment holds.
const SEGMENT_BYTES: usize = 24 * 1024;
/// As many records are appended by one write. The longest has 600 octets: this and a segment that was
/// not sealed yet stay below the 1 MiB of an object.
const APPEND_RECORDS: usize = 1000;
/// Key of the records in a segment.
const RECORDS: &str = "records";
/// An append that meets a conflict so often gives up; its caller comes again.
const ATTEMPTS: usize = 5;

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The API server refused or could not be reached.
    #[error("failed to read the ledger")]
    Read(#[source] kube::Error),
    /// The API server refused or could not be reached, or others keep writing.
    #[error("failed to append to the ledger: {0}")]
    Append(String),
    /// A segment is damaged.
    #[error("ledger segment {segment} can't be read: {source}; restore it from a backup")]
    Damaged {
        /// Name of the ConfigMap.
        segment: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The task that writes has ended.
    #[error("the ledger is closed")]
    Closed,
}

type Books = HashMap<CaKey, Ledger>;

/// The ledgers of all CAs. Clones share them.
#[derive(Clone)]
pub struct LedgerHandle {
    books: Arc<RwLock<Books>>,
    requests: mpsc::UnboundedSender<Request>,
}

struct Request {
    key: CaKey,
    records: Vec<Record>,
    done: oneshot::Sender<Result<(), LedgerError>>,
}

/// The segment that is appended to.
#[derive(Clone, Debug, Default)]
struct Open {
    number: u32,
    resource_version: Option<String>,
    bytes: Vec<u8>,
}

struct Writer {
    client: Client,
    namespace: String,
    books: Arc<RwLock<Books>>,
    open: HashMap<CaKey, Open>,
}

impl LedgerHandle {
    /// Reads every segment and starts the task that appends; it ends when the last handle is dropped.
    pub async fn load(client: Client, namespace: &str) -> Result<Self, LedgerError> {
        let books = Arc::new(RwLock::new(Books::new()));
        let mut writer = Writer {
            client,
            namespace: namespace.to_owned(),
            books: books.clone(),
            open: HashMap::new(),
        };
        writer.reload(None).await?;
        let (requests, incoming) = mpsc::unbounded_channel();
        tokio::spawn(writer.run(incoming));
        Ok(Self { books, requests })
    }

    /// Appends records; when this returns, they are on the API server.
    pub async fn record(&self, key: &CaKey, records: Vec<Record>) -> Result<(), LedgerError> {
        if records.is_empty() {
            return Ok(());
        }
        let (done, result) = oneshot::channel();
        let request = Request { key: key.clone(), records, done };
        self.requests.send(request).map_err(|_| LedgerError::Closed)?;
        result.await.map_err(|_| LedgerError::Closed)?
    }

    /// Looks into the ledger of a CA; an empty one when nothing was recorded.
    pub fn read<R>(&self, key: &CaKey, look: impl FnOnce(&Ledger) -> R) -> R {
        let books = self.books.read().expect("no holder of this lock panics");
        match books.get(key) {
            Some(ledger) => look(ledger),
            None => look(&Ledger::default()),
        }
    }

    /// Looks into all ledgers.
    pub fn read_all<R>(&self, look: impl FnOnce(&HashMap<CaKey, Ledger>) -> R) -> R {
        look(&self.books.read().expect("no holder of this lock panics"))
    }
}

impl Writer {
    async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Request>) {
        while let Some(first) = incoming.recv().await {
            // Everything that waits by now shares this write.
            let mut batches: HashMap<CaKey, Vec<Request>> = HashMap::new();
            batches.entry(first.key.clone()).or_default().push(first);
            while let Ok(next) = incoming.try_recv() {
                batches.entry(next.key.clone()).or_default().push(next);
            }
            for (key, requests) in batches {
                let records: Vec<Record> =
                    requests.iter().flat_map(|request| request.records.clone()).collect();
                debug!(ca = %key, records = records.len(), "appending to the ledger");
                let result = self.append_all(&key, records).await;
                for request in requests {
                    // A caller that went away needs no answer.
                    let _ = request.done.send(match &result {
                        Ok(()) => Ok(()),
                        Err(error) => Err(LedgerError::Append(error.to_string())),
                    });
                }
            }
        }
    }

    async fn append_all(&mut self, key: &CaKey, records: Vec<Record>) -> Result<(), LedgerError> {
        // A wiped namespace can revoke more at once than an object holds.
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            self.append(key, records.by_ref().take(APPEND_RECORDS).collect()).await?;
        }
        Ok(())
    }

    async fn append(&mut self, key: &CaKey, records: Vec<Record>) -> Result<(), LedgerError> {
        for attempt in 1..=ATTEMPTS {
            match self.append_once(key, &records).await {
                Ok(()) => {
                    let mut books = self.books.write().expect("no holder of this lock panics");
                    let ledger = books.entry(key.clone()).or_default();
                    records.into_iter().for_each(|record| ledger.apply(record));
                    return Ok(());
                }
                // Also after an answer that was lost: what was written then stands in the segments.
                Err(error) if attempt < ATTEMPTS => {
                    warn!(ca = %key, %error, attempt, "reading the ledger again");
                    self.reload(Some(key)).await?;
                }
                Err(error) => return Err(LedgerError::Append(error.to_string())),
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn append_once(&mut self, key: &CaKey, records: &[Record]) -> Result<(), WriteError> {
        let mut added = Vec::new();
        {
            let books = self.books.read().expect("no holder of this lock panics");
            let known = books.get(key);
            for record in records {
                if !known.is_some_and(|ledger| ledger.holds(record)) {
                    record.encode(&mut added);
                }
            }
        }
        if added.is_empty() {
            return Ok(());
        }
        let mut open = self.open.get(key).cloned().unwrap_or(Open { number: 1, ..Open::default() });
        if open.bytes.len() >= SEGMENT_BYTES {
            open = Open { number: open.number + 1, ..Open::default() };
        }
        open.bytes.extend_from_slice(&added);
        let written = write(&self.client, &self.render(key, &open)).await?;
        open.resource_version = written.resource_version();
        self.open.insert(key.clone(), open);
        Ok(())
    }

    fn render(&self, key: &CaKey, open: &Open) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(segment_name(key, open.number)),
                namespace: Some(self.namespace.clone()),
                resource_version: open.resource_version.clone(),
                labels: Some(labels(key, "ledger")),
                ..ObjectMeta::default()
            },
            binary_data: Some(BTreeMap::from([(
                RECORDS.to_owned(),
                ByteString(open.bytes.clone()),
            )])),
            ..ConfigMap::default()
        }
    }

    /// Reads the segments of one CA, or of all.
    async fn reload(&mut self, only: Option<&CaKey>) -> Result<(), LedgerError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut selector = format!("{}=ledger", label::COMPONENT);
        if let Some(key) = only {
            selector += &format!(
                ",{}={},{}={}",
                label::AUTHORITY,
                key.authority,
                label::GENERATION,
                key.generation
            );
        }
        let list = api.list(&ListParams::default().labels(&selector)).await;
        let mut books = Books::new();
        let mut open: HashMap<CaKey, Open> = HashMap::new();
        for segment in list.map_err(LedgerError::Read)?.items {
            let name = segment.name_any();
            let Some((key, number)) = key_of(&segment.metadata).zip(segment_number(&name)) else {
                warn!(segment = name, "a ConfigMap with the ledger's label is not a segment");
                continue;
            };
            let resource_version = segment.resource_version();
            let bytes = segment.binary_data.unwrap_or_default().remove(RECORDS);
            let bytes = bytes.map(|bytes| bytes.0).unwrap_or_default();
            let records = Record::decode_all(&bytes)
                .map_err(|source| LedgerError::Damaged { segment: name, source })?;
            let ledger = books.entry(key.clone()).or_default();
            records.into_iter().for_each(|record| ledger.apply(record));
            let latest = open.entry(key).or_default();
            if number >= latest.number {
                *latest = Open { number, resource_version, bytes };
            }
        }
        let mut shared = self.books.write().expect("no holder of this lock panics");
        match only {
            None => {
                *shared = books;
                self.open = open;
            }
            Some(key) => {
                shared.insert(key.clone(), books.remove(key).unwrap_or_default());
                match open.remove(key) {
                    Some(open) => self.open.insert(key.clone(), open),
                    None => self.open.remove(key),
                };
            }
        }
        Ok(())
    }
}

fn segment_name(key: &CaKey, number: u32) -> String {
    format!("ledger-{}-{}-{number:06}", key.authority, key.generation)
}

fn segment_number(name: &str) -> Option<u32> {
    name.rsplit_once('-')?.1.parse().ok()
}
