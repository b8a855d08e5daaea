//! The one task that writes the ledger of a CA.

use std::collections::HashSet;
use std::future::pending;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use super::{Health, LedgerError, Shelf, fetch};
use crate::cluster::apply::{WriteError, write};
use crate::plan::ledger::compaction::{Facts, Step, plan};
use crate::plan::ledger::segment::{
    Chain, Draft, SEGMENT_BYTES, Segment, State, Trouble, advice, book, chain, render, segment_name,
};
use crate::plan::ledger::{CaKey, Record};

/// As many records are appended by one write. The longest has 700 octets: this and a segment that was
/// not sealed yet stay below the 1 MiB of an object.
const APPEND_RECORDS: usize = 1000;
/// An append that meets a conflict so often gives up; its caller comes again.
const ATTEMPTS: usize = 5;
/// A record that may wait for the next append waits so long for one: in a bulk there is one within milliseconds.
const LATER: Duration = Duration::from_millis(250);
/// After a write of such records failed, the next try waits so long.
const RETRY: Duration = Duration::from_secs(60);

type Done<T> = oneshot::Sender<Result<T, LedgerError>>;

/// What a task is asked for.
pub(super) enum Request {
    /// Append these records.
    Append { records: Vec<Record>, done: Done<()> },
    /// Append this one with others.
    Later(Record),
    /// Read the segments again.
    Refresh(Done<()>),
    /// Take out what nobody needs.
    Compact { facts: Facts, done: Done<usize> },
}

pub(super) struct Writer {
    client: Client,
    namespace: Arc<str>,
    key: CaKey,
    shelf: Arc<RwLock<Shelf>>,
    /// The segment that is appended to, if there is one that can be.
    open: Option<Draft>,
    /// The position of the next record, by the segments.
    position: u64,
    /// The highest position that this process has seen.
    reached: u64,
    /// The highest position that a published CRL is known to be made from.
    noted: u64,
    /// The highest number of a segment that is known to have been used.
    number: u32,
    /// What waits for the next append, and until when.
    later: Vec<Record>,
    flush_at: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        client: Client,
        namespace: Arc<str>,
        key: CaKey,
        shelf: Arc<RwLock<Shelf>>,
    ) -> Self {
        Self {
            client,
            namespace,
            key,
            shelf,
            open: None,
            position: 0,
            reached: 0,
            noted: 0,
            number: 0,
            later: Vec::new(),
            flush_at: None,
        }
    }

    /// Works until nobody is left to ask.
    pub(super) async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Request>) {
        loop {
            let flush_at = self.flush_at;
            let flush = async {
                match flush_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                request = incoming.recv() => {
                    let Some(first) = request else { break };
                    self.serve(first, &mut incoming).await;
                }
                () = flush => self.flush().await,
            }
        }
        self.flush().await;
    }

    /// Everything that waits by now is served together: the appends by one write.
    async fn serve(&mut self, first: Request, incoming: &mut mpsc::UnboundedReceiver<Request>) {
        let mut records = Vec::new();
        let mut callers = Vec::new();
        let mut others = Vec::new();
        let waiting = std::iter::from_fn(|| incoming.try_recv().ok());
        for request in std::iter::once(first).chain(waiting) {
            match request {
                Request::Append { records: more, done } => {
                    records.extend(more);
                    callers.push(done);
                }
                Request::Later(record) => self.later.push(record),
                other => others.push(other),
            }
        }
        if !callers.is_empty() || self.later.len() >= APPEND_RECORDS {
            debug!(ca = %self.key, records = records.len(), "appending to the ledger");
            let result = self.append_all(records).await;
            for done in callers {
                // A caller that went away needs no answer.
                let _ = done.send(match &result {
                    Ok(()) => Ok(()),
                    Err(error) => Err(LedgerError::Append(error.to_string())),
                });
            }
        }
        if self.flush_at.is_none() && !self.later.is_empty() {
            self.flush_at = Some(Instant::now() + LATER);
        }
        for other in others {
            match other {
                Request::Refresh(done) => {
                    let _ = done.send(self.refresh().await);
                }
                Request::Compact { facts, done } => {
                    let _ = done.send(self.compact(&facts).await);
                }
                Request::Append { .. } | Request::Later(_) => unreachable!("served above"),
            }
        }
    }

    async fn flush(&mut self) {
        if !self.later.is_empty()
            && let Err(error) = self.append_all(Vec::new()).await
        {
            warn!(ca = %self.key, %error, "fingerprints are not recorded yet");
            // They can be told from Secrets again: a long outage must not make them pile up.
            self.later.truncate(APPEND_RECORDS);
            self.flush_at = Some(Instant::now() + RETRY);
        }
    }

    /// Appends these records, and those that wait for company.
    async fn append_all(&mut self, records: Vec<Record>) -> Result<(), LedgerError> {
        let later = std::mem::take(&mut self.later);
        self.flush_at = None;
        // A wiped namespace can revoke more at once than an object holds.
        let mut all = records.into_iter().chain(later.iter().cloned()).peekable();
        while all.peek().is_some() {
            let result = self.append(all.by_ref().take(APPEND_RECORDS).collect()).await;
            if let Err(error) = result {
                self.later = later;
                self.flush_at = Some(Instant::now() + RETRY);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn append(&mut self, records: Vec<Record>) -> Result<(), LedgerError> {
        for attempt in 1..=ATTEMPTS {
            match self.append_once(&records).await {
                Ok(()) => return Ok(()),
                // Also after an answer that was lost: what was written then stands in the segments.
                Err(error) if attempt < ATTEMPTS => {
                    warn!(ca = %self.key, %error, attempt, "reading the ledger again");
                    self.reload().await?;
                }
                Err(error) => return Err(LedgerError::Append(error.to_string())),
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn append_once(&mut self, records: &[Record]) -> Result<(), WriteError> {
        let mut draft = self.draft();
        let added = {
            let shelf = self.shelf.read().expect("no holder of this lock panics");
            let known = shelf.books.get(&self.key);
            let is_new = |record: &&Record| !known.is_some_and(|ledger| ledger.holds(record));
            let mut added = Vec::new();
            let mut seen = HashSet::new();
            for record in records.iter().filter(is_new) {
                let mut bytes = Vec::new();
                record.encode(&mut bytes);
                if !seen.contains(&bytes) {
                    draft.bytes.extend_from_slice(&bytes);
                    seen.insert(bytes);
                    added.push(record);
                }
            }
            added
        };
        if added.is_empty() {
            return Ok(());
        }
        draft.range.end += added.len() as u64;
        self.put(draft).await?;
        let mut shelf = self.shelf.write().expect("no holder of this lock panics");
        let ledger = shelf.books.entry(self.key.clone()).or_default();
        added.into_iter().for_each(|record| ledger.apply(record.clone()));
        Ok(())
    }

    /// The segment to append to. Where records are known to be lost a new one begins behind them: the gap
    /// stays to be seen, whatever is appended.
    fn draft(&self) -> Draft {
        let next = self.position.max(self.reached).max(self.noted);
        let lost = self.position < next;
        match &self.open {
            Some(open) if open.bytes.len() < SEGMENT_BYTES && !lost => open.clone(),
            // The number of a lost segment stays free for it to be put back.
            _ => Draft {
                number: self.number + if lost { 2 } else { 1 },
                range: next..next,
                state: lost.then_some(State::AfterLoss),
                ..Draft::default()
            },
        }
    }

    async fn put(&mut self, mut draft: Draft) -> Result<(), WriteError> {
        let written = write(&self.client, &render(&self.key, &self.namespace, &draft)).await?;
        draft.resource_version = written.resource_version();
        let mut shelf = self.shelf.write().expect("no holder of this lock panics");
        let state = shelf.states.entry(self.key.clone()).or_default();
        state.position = draft.range.end;
        if draft.range.start > self.position {
            let name = segment_name(&self.key, draft.number);
            let gap = Trouble::Gap(self.position..draft.range.start, name);
            state.trouble = Some(format!("{gap}. {}", advice(&self.key)));
        }
        drop(shelf);
        self.position = draft.range.end;
        self.reached = self.reached.max(self.position);
        self.number = self.number.max(draft.number);
        self.open = Some(draft);
        Ok(())
    }

    async fn refresh(&mut self) -> Result<(), LedgerError> {
        self.reload().await?;
        // What only this process knows must outlive it.
        if self.position < self.reached
            && let Err(error) = self.put(self.draft()).await
        {
            warn!(ca = %self.key, %error, "could not note in the ledger that records are lost");
        }
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), LedgerError> {
        let found = fetch(&self.client, &self.namespace, Some(&self.key)).await?;
        let mut segments = found.into_values().next().unwrap_or_default();
        self.take_over(&mut segments);
        Ok(())
    }

    /// Takes the segments for the ledger as it is now.
    pub(super) fn take_over(&mut self, segments: &mut [Segment]) {
        let found = chain(segments);
        self.position = found.position;
        let trouble = self.trouble(&found);
        self.reached = self.reached.max(found.position);
        self.open = segments.last().zip(found.ranges.last()).and_then(|(last, range)| {
            self.number = self.number.max(last.number);
            let usable = last.damage.is_none() && range.end == found.position;
            usable.then(|| Draft {
                number: last.number,
                resource_version: last.resource_version.clone(),
                range: range.clone(),
                state: last.state,
                bytes: last.bytes.clone(),
                damaged: None,
            })
        });
        let mut shelf = self.shelf.write().expect("no holder of this lock panics");
        let ledger = shelf.books.entry(self.key.clone()).or_default();
        if trouble.is_some() {
            // What was known is not forgotten since it is gone there.
            for segment in &*segments {
                segment.records.iter().for_each(|record| ledger.apply(record.clone()));
            }
        } else {
            *ledger = book(segments);
        }
        let health = Health { position: self.position, trouble };
        if let Some(trouble) = &health.trouble {
            error!(ca = %self.key, trouble, "the ledger is not whole");
        }
        shelf.states.insert(self.key.clone(), health);
    }

    fn trouble(&self, found: &Chain) -> Option<String> {
        found.trouble(&self.key).or_else(|| {
            (found.position < self.reached).then(|| {
                format!(
                    "the ledger ends before record {}, and held {} before: its last segment was deleted, or put back in an older version. {}",
                    found.position,
                    self.reached,
                    advice(&self.key)
                )
            })
        })
    }

    /// Notes from which position a CRL was made.
    pub(super) fn expect(&mut self, noted: u64) {
        self.noted = self.noted.max(noted);
    }

    async fn compact(&mut self, facts: &Facts) -> Result<usize, LedgerError> {
        let found = fetch(&self.client, &self.namespace, Some(&self.key)).await?;
        let mut segments = found.into_values().next().unwrap_or_default();
        let chain = chain(&mut segments);
        if self.trouble(&chain).is_some() {
            return Ok(0);
        }
        let steps = plan(&segments, &chain.ranges, facts);
        let count = steps.len();
        for step in steps {
            let result = self.take(step).await;
            if let Err(why) = result {
                self.reload().await?;
                return Err(LedgerError::Compact(why));
            }
        }
        if count > 0 {
            info!(ca = %self.key, segments = count, "compacted the ledger");
            self.reload().await?;
        }
        Ok(count)
    }

    async fn take(&self, step: Step) -> Result<(), String> {
        match step {
            Step::Rewrite(draft) => {
                let wanted = render(&self.key, &self.namespace, &draft);
                write(&self.client, &wanted).await.map(|_| ()).map_err(|error| error.to_string())
            }
            Step::Delete { number, resource_version } => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
                let preconditions = Preconditions { resource_version, uid: None };
                let params =
                    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                let name = segment_name(&self.key, number);
                api.delete(&name, &params).await.map(|_| ()).map_err(|error| error.to_string())
            }
        }
    }
}
