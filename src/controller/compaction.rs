//! Looks after the ledgers at leisure: whether they stand as this process knows them, and what of them
//! nobody needs any more.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tracing::warn;

use super::context::Context;
use super::error::chain;
use crate::cluster::Key;
use crate::plan::ledger::CaKey;
use crate::plan::ledger::compaction::Facts;

/// A new leader has other things to do first. By then a predecessor has ended, too.
const FIRST: Duration = Duration::from_secs(60);
/// Two looks at the segments are so far apart.
const AUDIT: Duration = Duration::from_secs(600);
/// Every so many looks what is no longer needed is taken out.
const COMPACT: usize = 6;

/// Runs until `stop` is true.
pub(super) async fn run(context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    let mut wait = FIRST;
    for round in 0.. {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        wait = AUDIT;
        audit(&context).await;
        if round % COMPACT == 0 {
            compact(&context, Timestamp::now()).await;
        }
    }
}

/// A ledger that is found to be in trouble, or out of it, is news to its authority.
async fn audit(context: &Context) {
    let troubled = || -> HashSet<CaKey> {
        let keys: Vec<CaKey> = context.ledger.read_all(|books| books.keys().cloned().collect());
        keys.into_iter().filter(|key| context.ledger.trouble(key).is_some()).collect()
    };
    let before = troubled();
    if let Err(error) = context.ledger.audit().await {
        warn!(error = chain(&error), "could not look at the ledger's segments");
    }
    for key in before.symmetric_difference(&troubled()) {
        context.queues.authority.push(Key::cluster(&*key.authority));
    }
}

async fn compact(context: &Context, now: Timestamp) {
    let published: Vec<_> = {
        let signing = context.signing.read().expect("no holder of this lock panics");
        let generations = signing.values().flat_map(|signing| &signing.generations);
        generations.map(|one| (one.key.clone(), one.published.facts.clone())).collect()
    };
    let identities = context.stores.identities.list();
    let mut holders: HashSet<String> =
        identities.iter().filter_map(|identity| identity.metadata.uid.clone()).collect();
    // Of a namespace that is not looked after nobody knows who exists.
    if !context.namespaces.is_empty() {
        context.ledger.read_all(|books| {
            let all = books.values().flat_map(|book| book.issued()).map(|issued| &issued.holder);
            let unseen =
                all.filter(|holder| !context.namespaces.iter().any(|n| **n == *holder.namespace));
            holders.extend(unseen.map(|holder| holder.uid.to_string()));
        });
    }
    let holders = Arc::new(holders);
    for (key, published) in published {
        let facts = Facts { published, holders: holders.clone(), now };
        if let Err(error) = context.ledger.compact(&key, facts).await {
            warn!(ca = %key, error = chain(&error), "the ledger is not compacted");
        }
    }
}
