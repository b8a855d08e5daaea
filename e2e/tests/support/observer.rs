//! An observer that sees every version of every CRL, ledger segment, Secret and revocation through the
//! API server itself, and judges each by code that is not the operator's: OpenSSL reads and verifies
//! CRLs, rustls matches keys with certificates.
//!
//! What one version shows is judged at once; what must have happened before what, by the order of
//! resourceVersions when the run is over.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign::api::CertificateRevocation;
use countersign::api::condition::{PUBLISHED, RECORDED, is_true};
use countersign::plan::ledger::Record;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::operator::NAMESPACE;
use super::{eventually, program};

/// A serial as OpenSSL and the API print it: lower-case hex, an even number of digits.
pub type Hex = String;

/// Watches until it is dropped.
pub struct Observer {
    client: Client,
    state: Arc<Mutex<State>>,
    watches: JoinSet<()>,
}

/// A CRL as OpenSSL reads it.
#[derive(Clone, Debug)]
pub struct Crl {
    pub number: u128,
    pub this_update: Timestamp,
    pub next_update: Timestamp,
    pub serials: BTreeSet<Hex>,
}

/// What was seen, and what was wrong with it.
#[derive(Default)]
struct State {
    wrong: Vec<String>,
    /// The operator's clock is wrong: a thisUpdate may lie in the future, or fall.
    clock_is_wrong: bool,
    /// What stood there when the observer came is older than everything that it saw.
    baseline: bool,
    /// The newest resourceVersion of each watch.
    seen: HashMap<&'static str, u64>,
    folder: Option<TempDir>,
    /// CRLs by their DER: each is judged once.
    known: HashMap<Vec<u8>, Crl>,
    /// The last CRL of each place: a ConfigMap, or a CA in a Secret.
    last: BTreeMap<String, Crl>,
    /// How many versions of CRL ConfigMaps were seen.
    versions: usize,
    /// resourceVersion at which a CRL was first in its ConfigMap, by DER.
    published: HashMap<Vec<u8>, u64>,
    /// resourceVersion at which a serial first stood in a CRL ConfigMap.
    listed: HashMap<Hex, u64>,
    /// resourceVersions at which a serial first stood in the ledger as issued, and as revoked.
    issued: HashMap<Hex, u64>,
    revoked: HashMap<Hex, u64>,
    /// The revoked serials of each segment now.
    segments: HashMap<String, HashSet<Hex>>,
    /// (resourceVersion, place, DER): CRLs seen in Secrets of trusts.
    in_service: Vec<(u64, String, Vec<u8>)>,
    /// (resourceVersion, name, serial): certificates seen in Secrets of identities.
    visible: Vec<(u64, String, Hex)>,
    /// (resourceVersion, name, serials): revocations that said Recorded, and Published.
    told_recorded: Vec<(u64, String, Vec<Hex>)>,
    told_published: Vec<(u64, String, Vec<Hex>)>,
}

impl Observer {
    /// Looks at everything there is, and from then on at every version.
    pub async fn start(client: &Client) -> Self {
        let state = Arc::new(Mutex::new(State {
            folder: Some(TempDir::new().expect("a folder")),
            baseline: true,
            ..State::default()
        }));
        let mut observer = Self { client: client.clone(), state, watches: JoinSet::new() };
        observer.watch().await;
        observer.lock().baseline = false;
        observer
    }

    async fn watch(&mut self) {
        let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let secrets: Api<Secret> = Api::all(self.client.clone());
        let revocations: Api<CertificateRevocation> = Api::all(self.client.clone());
        let (watches, state) = (&mut self.watches, &self.state);
        follow(watches, state, "configmaps", config_maps, State::config_map).await;
        follow(watches, state, "secrets", secrets, State::secret).await;
        follow(watches, state, "revocations", revocations, State::revocation).await;
    }

    /// Whether the operator's clock differs from ours from now on.
    pub fn clock_is_wrong(&self, wrong: bool) {
        self.lock().clock_is_wrong = wrong;
    }

    /// Panics with everything that was wrong so far.
    pub fn assert_good(&self) {
        let wrong = self.lock().wrong.clone();
        assert!(wrong.is_empty(), "{} violation(s):\n{}", wrong.len(), wrong.join("\n"));
    }

    /// The newest CRL of a CA that was seen in its ConfigMap.
    pub fn crl(&self, name: &str) -> Option<Crl> {
        self.lock().last.get(&format!("ConfigMap {name}")).cloned()
    }

    /// The newest CRLs that were seen in the Secret of a trust, by the order of its CAs.
    pub fn crls_in_secret(&self, namespace: &str, name: &str) -> Vec<Crl> {
        let prefix = format!("Secret {namespace}/{name} of ");
        let state = self.lock();
        let places = state.last.iter().filter(|(place, _)| place.starts_with(&prefix));
        places.map(|(_, crl)| crl.clone()).collect()
    }

    /// Does the ledger hold the revocation of this serial, in any segment?
    pub fn is_revoked(&self, serial: &str) -> bool {
        self.lock().segments.values().any(|segment| segment.contains(serial))
    }

    /// Did this certificate ever stand in the Secret of an identity?
    pub fn was_visible(&self, serial: &str) -> bool {
        self.lock().visible.iter().any(|(_, _, visible)| visible == serial)
    }

    /// The certificates that ever stood in this Secret (`namespace/name`).
    pub fn visible_in(&self, secret: &str) -> Vec<Hex> {
        let state = self.lock();
        let visible = state.visible.iter().filter(|(_, name, _)| name == secret);
        visible.map(|(_, _, serial)| serial.clone()).collect()
    }

    /// How many versions of CRLs were published.
    pub fn versions(&self) -> usize {
        self.lock().versions
    }

    /// Waits until every watch has seen what stands on the API server now, then judges the order of
    /// things. Panics with everything that was wrong.
    pub async fn conclude(&self) {
        let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let secrets: Api<Secret> = Api::all(self.client.clone());
        let revocations: Api<CertificateRevocation> = Api::all(self.client.clone());
        let newest = [
            ("configmaps", newest(&config_maps).await),
            ("secrets", newest(&secrets).await),
            ("revocations", newest(&revocations).await),
        ];
        eventually("the observer has seen everything", || async {
            let state = self.lock();
            newest.iter().all(|(watch, version)| state.seen[watch] >= *version).then_some(())
        })
        .await;
        self.lock().judge_order();
        self.assert_good();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics")
    }
}

/// The highest resourceVersion of the objects of an API.
async fn newest<K>(api: &Api<K>) -> u64
where
    K: Clone + DeserializeOwned + Debug + ResourceExt,
{
    let all = api.list(&ListParams::default()).await.expect("the API server answers");
    all.items.iter().map(version).max().unwrap_or_default()
}

/// A resourceVersion; they are comparable (KEP-5504).
fn version<K: ResourceExt>(object: &K) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).expect("a resourceVersion")
}

/// Hands each version of each object to `judge`, deletions too.
async fn follow<K>(
    watches: &mut JoinSet<()>,
    state: &Arc<Mutex<State>>,
    name: &'static str,
    api: Api<K>,
    judge: fn(&mut State, &K, bool),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let list = api.list(&ListParams::default()).await.expect("the API server answers");
    let mut from = list.metadata.resource_version.clone().expect("a resourceVersion");
    let take = move |state: &Mutex<State>, object: &K, gone: bool| {
        let mut state = state.lock().expect("nobody panics");
        judge(&mut state, object, gone);
        state.seen.insert(name, version(object));
    };
    state.lock().expect("nobody panics").seen.insert(name, 0);
    list.items.iter().for_each(|object| take(state, object, false));
    let state = state.clone();
    watches.spawn(async move {
        loop {
            let params = WatchParams::default().timeout(250);
            let Ok(events) = api.watch(&params, &from).await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let mut events = events.boxed();
            while let Ok(Some(event)) = events.try_next().await {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        from = object.resource_version().expect("a resourceVersion");
                        take(&state, &object, false);
                    }
                    WatchEvent::Deleted(object) => {
                        from = object.resource_version().expect("a resourceVersion");
                        take(&state, &object, true);
                    }
                    WatchEvent::Bookmark(mark) => from = mark.metadata.resource_version,
                    WatchEvent::Error(error) => {
                        let mut state = state.lock().expect("nobody panics");
                        state.wrong.push(format!("the watch of {name} has a gap: {error:?}"));
                        return;
                    }
                }
            }
        }
    });
}

impl State {
    /// Since when something stands there that is first seen in this version.
    fn since(&self, version: u64) -> u64 {
        if self.baseline { 0 } else { version }
    }

    fn config_map(&mut self, object: &ConfigMap, gone: bool) {
        let component = object.labels().get("countersign.dev/component").map(String::as_str);
        match component {
            Some("crl") => self.crl_config_map(object, gone),
            Some("ledger") => self.segment(object, gone),
            _ => {}
        }
    }

    fn crl_config_map(&mut self, object: &ConfigMap, gone: bool) {
        let (name, version) = (object.name_any(), version(object));
        if gone {
            self.wrong.push(format!("{version}: ConfigMap {name} was deleted"));
            return;
        }
        let der = object.binary_data.as_ref().and_then(|data| data.get("crl.der"));
        let ca = object.data.as_ref().and_then(|data| data.get("ca.crt"));
        let Some((der, ca)) = der.zip(ca) else {
            self.wrong.push(format!("{version}: ConfigMap {name} holds no CRL with its CA"));
            return;
        };
        let Some(crl) = self.read(version, &name, &der.0, ca) else { return };
        self.versions += 1;
        let since = self.since(version);
        for serial in &crl.serials {
            self.listed.entry(serial.clone()).or_insert(since);
        }
        let is_new = !self.published.contains_key(&der.0);
        self.published.entry(der.0.clone()).or_insert(since);
        self.follows(version, format!("ConfigMap {name}"), crl, is_new);
    }

    /// Judges a CRL by the one that stood in the same place before. No certificate of a test expires
    /// during it, so that no serial may vanish.
    fn follows(&mut self, version: u64, place: String, crl: Crl, must_rise: bool) {
        let now = Timestamp::now();
        let mut wrong = Vec::new();
        if crl.next_update <= now {
            wrong.push(format!("expired: nextUpdate {}", crl.next_update));
        }
        if crl.this_update > now && !self.clock_is_wrong {
            wrong.push(format!("not valid yet: thisUpdate {}", crl.this_update));
        }
        if let Some(before) = self.last.get(&place) {
            if crl.number < before.number || (must_rise && crl.number == before.number) {
                wrong.push(format!("number {} after {}", crl.number, before.number));
            }
            // One that lay in the future was good for nothing.
            let comparable = !self.clock_is_wrong && before.this_update <= now;
            if comparable && crl.this_update < before.this_update {
                wrong.push(format!("thisUpdate {} after {}", crl.this_update, before.this_update));
            }
            let lost: Vec<_> = before.serials.difference(&crl.serials).collect();
            if !lost.is_empty() {
                wrong.push(format!("shrunken: {lost:?} vanished"));
            }
        }
        let told = wrong.iter().map(|what| format!("{version}: CRL in {place}: {what}"));
        self.wrong.extend(told);
        self.last.insert(place, crl);
    }

    fn segment(&mut self, object: &ConfigMap, gone: bool) {
        let (name, version) = (object.name_any(), version(object));
        let since = self.since(version);
        let data = object.binary_data.as_ref().and_then(|data| data.get("records"));
        let records = data.map(|data| Record::decode_all(&data.0).expect("records"));
        let mut revoked = HashSet::new();
        for record in records.into_iter().flatten().filter(|_| !gone) {
            let serial = record.serial().to_string();
            match record {
                Record::Revoked(_) => {
                    self.revoked.entry(serial.clone()).or_insert(since);
                    revoked.insert(serial);
                }
                Record::Issued(_) => {
                    self.issued.entry(serial).or_insert(since);
                }
                #[allow(unreachable_patterns)]
                _ => {}
            }
        }
        let before = self.segments.insert(name.clone(), revoked).unwrap_or_default();
        for serial in before {
            if !self.segments.values().any(|segment| segment.contains(&serial)) {
                self.wrong
                    .push(format!("{version}: segment {name} lost the revocation of {serial}"));
            }
        }
    }

    fn secret(&mut self, object: &Secret, gone: bool) {
        let Some(data) = object.data.as_ref().filter(|_| !gone) else { return };
        let (version, namespace) = (version(object), object.namespace().unwrap_or_default());
        let name = format!("{namespace}/{}", object.name_any());
        if let Some((certificate, key)) = data.get("tls.crt").zip(data.get("tls.key")) {
            match check_pair(&certificate.0, &key.0) {
                // The CA's own Secret is not a client's.
                Ok(_) if namespace == NAMESPACE => {}
                Ok(serial) => self.visible.push((version, name.clone(), serial)),
                Err(why) => self.wrong.push(format!("{version}: Secret {name}: {why}")),
            }
        }
        let Some((crls, ca)) = data.get("ca.crl").zip(data.get("ca.crt")) else { return };
        let ca = String::from_utf8_lossy(&ca.0).into_owned();
        let ders = CertificateRevocationListDer::pem_slice_iter(&crls.0);
        let Ok(ders) = ders.collect::<Result<Vec<_>, _>>() else {
            self.wrong.push(format!("{version}: Secret {name}: ca.crl is not PEM"));
            return;
        };
        for (index, der) in ders.into_iter().enumerate() {
            let place = format!("Secret {name} of {index}");
            self.in_service.push((version, place.clone(), der.to_vec()));
            if let Some(crl) = self.read(version, &name, &der, &ca) {
                self.follows(version, place, crl, false);
            }
        }
    }

    fn revocation(&mut self, object: &CertificateRevocation, gone: bool) {
        let Some(status) = object.status.as_ref().filter(|_| !gone) else { return };
        let serials: Vec<Hex> =
            status.certificates.iter().map(|one| one.serial_number.clone()).collect();
        let told = (version(object), object.name_any(), serials);
        if is_true(&status.conditions, RECORDED) {
            self.told_recorded.push(told.clone());
        }
        if is_true(&status.conditions, PUBLISHED) {
            self.told_published.push(told);
        }
    }

    fn judge_order(&mut self) {
        let mut wrong = Vec::new();
        for (version, name, serial) in &self.visible {
            if self.issued.get(serial).is_none_or(|recorded| recorded > version) {
                wrong
                    .push(format!("{version}: {name} shows {serial}, which was not in the ledger"));
            }
        }
        for (serial, version) in &self.listed {
            if self.revoked.get(serial).is_none_or(|recorded| recorded > version) {
                wrong.push(format!("{version}: a CRL lists {serial} before the ledger does"));
            }
        }
        for (version, place, der) in &self.in_service {
            if self.published.get(der).is_none_or(|published| published > version) {
                wrong.push(format!("{version}: {place}: a CRL that was not published"));
            }
        }
        for (told, place, what) in [
            (&self.told_recorded, &self.revoked, "Recorded"),
            (&self.told_published, &self.listed, "Published"),
        ] {
            for (version, name, serials) in told {
                for serial in serials {
                    if place.get(serial).is_none_or(|done| done > version) {
                        let since = place.get(serial);
                        wrong.push(format!(
                            "{version}: {name} says {what}; {serial} is so since {since:?}"
                        ));
                    }
                }
            }
        }
        self.wrong.extend(wrong);
    }

    /// Reads a CRL and verifies its signature by OpenSSL; tells if it does not hold.
    fn read(&mut self, version: u64, place: &str, der: &[u8], ca_pem: &str) -> Option<Crl> {
        if let Some(known) = self.known.get(der) {
            return Some(known.clone());
        }
        let folder = self.folder.as_ref().expect("a folder").path();
        let ca = folder.join("ca.pem");
        fs::write(&ca, ca_pem).expect("written");
        match openssl_crl(&ca.display().to_string(), der) {
            Ok(crl) => {
                self.known.insert(der.to_vec(), crl.clone());
                Some(crl)
            }
            Err(why) => {
                self.wrong.push(format!("{version}: CRL in {place}: {why}"));
                None
            }
        }
    }
}

/// The serial of the first certificate, if its key is this one.
fn check_pair(chain: &[u8], key: &[u8]) -> Result<Hex, String> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("tls.crt: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("tls.key: {error}"))?;
    let (_, leaf) = x509_parser::parse_x509_certificate(chain.first().ok_or("tls.crt: empty")?)
        .map_err(|error| format!("tls.crt: {error}"))?;
    let serial = hex(&format!("{:X}", leaf.serial));
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| format!("tls.key: {error}"))?;
    rustls::sign::CertifiedKey::new(chain, signer)
        .keys_match()
        .map_err(|error| format!("tls.key is not that of tls.crt: {error}"))?;
    Ok(serial)
}

/// Hex of an even number of digits, lower-case.
fn hex(text: &str) -> Hex {
    let text = text.to_ascii_lowercase();
    if text.len().is_multiple_of(2) { text } else { format!("0{text}") }
}

fn openssl_crl(ca: &str, der: &[u8]) -> Result<Crl, String> {
    let mut child = Command::new(program("openssl"))
        .args(["crl", "-inform", "DER", "-verify", "-CAfile", ca, "-no-CApath", "-no-CAstore"])
        .args(["-noout", "-text"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    child.stdin.take().expect("a pipe").write_all(der).map_err(|error| error.to_string())?;
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let verdict = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !verdict.contains("verify OK") {
        return Err(format!("OpenSSL refuses it: {verdict}"));
    }
    let after = |mark: &str| {
        let line = text.lines().skip_while(|line| !line.contains(mark));
        line.map(|line| line.split_once(mark).map_or(line, |(_, rest)| rest).trim())
            .find(|rest| !rest.is_empty())
            .ok_or(format!("no {mark}"))
    };
    let time = |mark: &str| -> Result<Timestamp, String> {
        let text = after(mark)?.split_whitespace().collect::<Vec<_>>().join(" ");
        let parsed = jiff::fmt::strtime::parse("%b %d %H:%M:%S %Y GMT", &text)
            .and_then(|time| time.to_datetime())
            .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC));
        Ok(parsed.map_err(|error| format!("{mark} {text}: {error}"))?.timestamp())
    };
    let number = after("X509v3 CRL Number:")?;
    let number = match number.strip_prefix("0x") {
        Some(hex) => u128::from_str_radix(hex, 16),
        None => number.parse(),
    };
    Ok(Crl {
        number: number.map_err(|error| format!("number: {error}"))?,
        this_update: time("Last Update:")?,
        next_update: time("Next Update:")?,
        serials: text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Serial Number: "))
            .map(hex)
            .collect(),
    })
}
