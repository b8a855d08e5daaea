//! Which CRLs the servers answer by, as each of them says itself: what the gate enforces.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::cluster::http;
use crate::pki::crl::CrlNumber;
use crate::plan::ledger::CaKey;
use crate::plan::publication::Scope;

/// A server that takes longer is not observed.
const LIMIT: Duration = Duration::from_secs(2);
/// As much of an answer is read.
const LONGEST: u64 = 4 * 1024 * 1024;
/// Whoever asks within this time shares an observation.
const SHARED: Duration = Duration::from_millis(250);
/// As many servers are asked at once.
const AT_ONCE: usize = 16;
/// Where a server lists its CRLs.
const INDEX: &str = "/crl/index.json";

/// The CRL numbers by which every server answers: of each CA that all of them know the lowest one. Or why
/// that is not known.
pub type Observation = Result<Arc<BTreeMap<CaKey, CrlNumber>>, String>;

/// The servers behind one address.
pub struct Servers {
    address: String,
    last: Mutex<Option<(Instant, Observation)>>,
}

/// What of a server's list counts here.
#[derive(Deserialize)]
struct Index {
    crls: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    authority: String,
    generation: u32,
    number: String,
    // Servers of earlier versions list nothing but complete CRLs.
    #[serde(default = "full")]
    scope: String,
}

fn full() -> String {
    Scope::Full.to_string()
}

impl Servers {
    /// The servers behind `HOST:PORT`; the name is resolved each time anew, to one address for each server.
    pub fn new(address: String) -> Self {
        Self { address, last: Mutex::new(None) }
    }

    /// Asks every server.
    pub async fn observe(&self) -> Observation {
        // Who waits here is served by the one who asks.
        let mut last = self.last.lock().await;
        if let Some((at, observation)) = &*last
            && at.elapsed() < SHARED
        {
            return observation.clone();
        }
        let observation = self.ask().await;
        *last = Some((Instant::now(), observation.clone()));
        observation
    }

    async fn ask(&self) -> Observation {
        let address = &self.address;
        let resolved = timeout(LIMIT, tokio::net::lookup_host(address)).await;
        let resolved = resolved.map_err(|_| format!("{address} was not resolved in {LIMIT:?}"))?;
        let servers: Vec<SocketAddr> =
            resolved.map_err(|error| format!("failed to resolve {address}: {error}"))?.collect();
        if servers.is_empty() {
            return Err(format!("{address} has no address"));
        }
        let asked = stream::iter(servers.into_iter().map(|server| self.index(server)));
        let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        let answers: Result<Vec<_>, String> = answers.into_iter().collect();
        Ok(Arc::new(lowest(answers?)))
    }

    async fn index(&self, server: SocketAddr) -> Result<BTreeMap<CaKey, CrlNumber>, String> {
        let answer = timeout(LIMIT, http::get(server, &self.address, INDEX, LONGEST)).await;
        let answer = answer.map_err(|_| format!("{server} gave no answer in {LIMIT:?}"))?;
        let answer = answer.map_err(|error| format!("{server}: {error}"))?;
        if !answer.is_ok() {
            return Err(format!("{server}{INDEX}: {}", answer.status));
        }
        read(&answer.body).ok_or_else(|| format!("{server}{INDEX}: not a list of CRLs"))
    }
}

fn read(text: &[u8]) -> Option<BTreeMap<CaKey, CrlNumber>> {
    let index: Index = serde_json::from_slice(text).ok()?;
    let one = |listed: Listed| {
        let key = CaKey { authority: listed.authority.into(), generation: listed.generation };
        Some((key, CrlNumber(listed.number.parse().ok()?)))
    };
    // The gate decides by complete CRLs alone.
    index.crls.into_iter().filter(|listed| listed.scope == full()).map(one).collect()
}

/// Of each CA that all servers know the lowest number.
fn lowest(answers: Vec<BTreeMap<CaKey, CrlNumber>>) -> BTreeMap<CaKey, CrlNumber> {
    let together = answers.into_iter().reduce(|mut all, one| {
        all.retain(|key, number| {
            let known = one.get(key);
            known.inspect(|known| *number = (*number).min(**known)).is_some()
        });
        all
    });
    together.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(crls: &[(&str, u32, u128)]) -> BTreeMap<CaKey, CrlNumber> {
        let all: Vec<_> = crls
            .iter()
            .map(|(authority, generation, number)| {
                format!(
                    "{{\"authority\":\"{authority}\",\"generation\":{generation},\"path\":\"/crl/{authority}/{generation}.crl\",\"number\":\"{number}\"}}"
                )
            })
            .collect();
        read(format!("{{\"crls\":[{}]}}", all.join(",")).as_bytes()).expect("an index")
    }

    #[test]
    fn what_every_server_answers_by_is_the_lowest_number_of_what_all_of_them_know() {
        let (one, two) =
            (index(&[("a", 1, 7), ("a", 2, 5), ("b", 1, 1)]), index(&[("a", 1, 6), ("a", 2, 9)]));
        assert_eq!(lowest(vec![one.clone()]), one);
        assert_eq!(lowest(vec![one, two]), index(&[("a", 1, 6), ("a", 2, 5)]));
        assert_eq!(lowest(vec![index(&[("a", 1, 7)]), index(&[])]), index(&[]));
    }

    #[test]
    fn a_shard_is_not_what_the_gate_answers_by() {
        let entry = |scope: &str, number: u32| {
            format!(
                "{{\"authority\":\"a\",\"generation\":1,\"scope\":\"{scope}\",\"number\":\"{number}\"}}"
            )
        };
        let crls = [entry("shard-0-of-2", 9), entry("full", 5), entry("shard-1-of-2", 3)];
        let text = format!("{{\"crls\":[{}]}}", crls.join(","));
        assert_eq!(read(text.as_bytes()), Some(index(&[("a", 1, 5)])));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in
            ["", "[]", "{}", "{\"crls\":[{\"authority\":\"a\",\"generation\":1,\"number\":\"x\"}]}"]
        {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_server_that_can_t_be_reached_is_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let told = Servers::new(address.clone()).observe().await.unwrap_err();
        assert!(told.contains(&address), "{told}");
    }
}
