//! A control plane, an operator behind a proxy, and an observer; what a test does to certificates, and
//! what must be true in the end. A part of the tests in `faults.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use countersign::api::condition::{PUBLISHED, READY, is_true};
use countersign::api::{
    CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust, annotation,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::support::control_plane::ControlPlane;
use crate::support::observer::{Hex, Observer};
use crate::support::operator::NAMESPACE;
use crate::support::proxy::{Proxy, Write};
use crate::support::{PATIENCE, create, patch, wait_for};

/// The name of the ConfigMap with the CRL of the one CA.
pub const CRL: &str = "crl-clients-1";
/// The Secret of the one trust.
const TRUST_SECRET: &str = "countersign-edge";
/// No write comes for so long in a steady cluster.
const STEADY: Duration = Duration::from_secs(3);

/// How a certificate ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A `CertificateRevocation` names its identity.
    Revoked,
    /// A `CertificateRevocation` names its serial: it is replaced too.
    Replaced,
    /// Its identity is deleted.
    Deleted,
    /// It is renewed, and superseded certificates are revoked.
    Superseded,
}

/// A write of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first append to the ledger.
    Ledger,
    /// The second: the successor is recorded first, or after.
    SecondLedger,
    /// The Secret of the identity.
    IdentitySecret,
    /// The status of the identity.
    IdentityStatus,
    /// The CRL.
    Crl,
    /// The Secret of the trust, which data planes read.
    TrustSecret,
    /// The status of the revocation.
    RevocationStatus,
    /// The status of the authority.
    AuthorityStatus,
}

use Step::{
    AuthorityStatus, Crl, IdentitySecret, IdentityStatus, Ledger, RevocationStatus, SecondLedger,
    TrustSecret,
};

impl Ending {
    /// Every ending, with the writes that it takes.
    pub const ALL: &[(Self, &[Step])] = &[
        (
            Self::Revoked,
            &[Ledger, Crl, TrustSecret, RevocationStatus, AuthorityStatus, IdentityStatus],
        ),
        (Self::Replaced, &[Ledger, SecondLedger, IdentitySecret, Crl]),
        (Self::Deleted, &[Ledger, Crl, TrustSecret]),
        (Self::Superseded, &[Ledger, IdentitySecret, SecondLedger, Crl, TrustSecret]),
    ];

    /// What the identity says of it.
    pub const fn policy(self) -> &'static str {
        match self {
            Self::Superseded => {
                ", revocationPolicy: {superseded: AfterGracePeriod, gracePeriod: 1s}"
            }
            _ => "",
        }
    }
}

impl Step {
    /// Is it this write?
    pub fn is(self, write: &Write) -> bool {
        let path = &*write.path;
        let holds = |part: &str| path.contains(part);
        match self {
            Ledger | SecondLedger => holds("/configmaps/ledger-"),
            IdentitySecret => holds("/secrets/client-"),
            IdentityStatus => holds("/clientidentities/") && path.ends_with("/status"),
            Crl => holds("/configmaps/crl-"),
            TrustSecret => path.ends_with(&format!("/secrets/{TRUST_SECRET}")),
            RevocationStatus => holds("/certificaterevocations/") && path.ends_with("/status"),
            AuthorityStatus => holds("/clientauthorities/") && path.ends_with("/status"),
        }
    }

    /// How many such writes come before it.
    pub const fn skipped(self) -> usize {
        matches!(self, SecondLedger) as usize
    }
}

/// The seed of this run: `SEED`, or another one each time.
pub fn seed() -> u64 {
    match std::env::var("SEED") {
        Ok(text) => text.parse().expect("SEED is a number"),
        Err(_) => fastrand::u64(..),
    }
}

/// One control plane with one authority and one trust.
pub struct World {
    pub plane: ControlPlane,
    pub client: Client,
    pub proxies: Vec<Proxy>,
    pub observer: Observer,
    pub namespace: String,
    pub identities: Api<ClientIdentity>,
    pub secrets: Api<Secret>,
    pub revocations: Api<CertificateRevocation>,
    /// By so many seconds the operator's clock is ahead.
    pub ahead: AtomicI64,
    /// Serials that must stand in ledger and CRL in the end.
    doomed: Mutex<Vec<Hex>>,
}

impl World {
    /// Starts everything, and waits until the authority is ready.
    pub async fn start() -> Self {
        Self::start_with(&[("controller", &[])], &[]).await
    }

    /// The same with these replicas of the operator, each with its name and further arguments; all in
    /// this environment.
    pub async fn start_with(replicas: &[(&str, &[&str])], environment: &[(&str, String)]) -> Self {
        let plane = ControlPlane::start().await;
        plane.install_crds().await;
        let client = plane.client().await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for name in [NAMESPACE, "team"] {
            create(&namespaces, &format!("metadata: {{name: {name}}}")).await;
        }
        let observer = Observer::start(&client).await;
        let mut proxies = Vec::new();
        for (replica, arguments) in replicas {
            proxies.push(Proxy::new(&plane, replica, arguments, environment).await);
        }
        let world = Self {
            identities: Api::namespaced(client.clone(), "team"),
            secrets: Api::namespaced(client.clone(), "team"),
            revocations: Api::namespaced(client.clone(), "team"),
            namespace: "team".to_owned(),
            ahead: AtomicI64::new(0),
            doomed: Mutex::default(),
            plane,
            client,
            proxies,
            observer,
        };
        world.keep_running();
        let authorities: Api<ClientAuthority> = Api::all(world.client.clone());
        create(
            &authorities,
            "{metadata: {name: clients}, spec: {selfSigned: {commonName: Test CA}}}",
        )
        .await;
        wait_for(&authorities, "clients", READY, "True", "Ready").await;
        let trusts: Api<ClientTrust> = Api::namespaced(world.client.clone(), &world.namespace);
        create(
            &trusts,
            "{metadata: {name: edge}, spec: {authorities: [{name: clients}], \
             targetRefs: [{group: networking.k8s.io, kind: Ingress, name: none}]}}",
        )
        .await;
        wait_for(&trusts, "edge", READY, "False", "TargetNotFound").await;
        world
    }

    /// Starts every operator that does not run.
    pub fn keep_running(&self) {
        self.proxies.iter().for_each(|proxy| proxy.keep_running(&self.plane));
    }

    /// From now on no write meets a fault.
    pub fn disarm(&self) {
        self.proxies.iter().for_each(Proxy::disarm);
    }

    /// Begins to observe from what stands there now: the server was put back to an older state.
    pub async fn observe_anew(&mut self) {
        self.observer = Observer::start(&self.client).await;
    }

    /// Creates an identity.
    pub async fn declare(&self, name: &str, more: &str) {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: clients}}, \
             commonName: {name}, secretName: {name}-tls{more}}}}}"
        );
        create(&self.identities, &yaml).await;
    }

    /// Waits until an identity has its certificate; its serial.
    pub async fn issued(&self, name: &str) -> Hex {
        wait_for(&self.identities, name, READY, "True", "Issued").await;
        self.serial(name).await.expect("a Secret")
    }

    /// Does an identity have its certificate?
    pub async fn is_issued(&self, name: &str) -> Option<()> {
        let status = self.identities.get(name).await.ok()?.status?;
        is_true(&status.conditions, READY).then_some(())
    }

    /// The serial in the Secret of an identity.
    pub async fn serial(&self, name: &str) -> Option<Hex> {
        let secret = self.secrets.get_opt(&format!("{name}-tls")).await.expect("an answer");
        Some(secret?.annotations()[annotation::SERIAL].clone())
    }

    /// Ends the certificate of an identity in this way; the serials that are revoked by it.
    pub async fn end(&self, name: &str, ending: Ending) -> Ended {
        let serial = self.serial(name).await.expect("a Secret");
        let mut doomed = vec![serial.clone()];
        // With the identity go its earlier certificates.
        if matches!(ending, Ending::Revoked | Ending::Deleted) {
            doomed.extend(self.observer.visible_in(&format!("{}/{name}-tls", self.namespace)));
        }
        self.doomed.lock().expect("nobody panics").extend(doomed);
        match ending {
            Ending::Revoked => self.revoke(name, &format!("identityRef: {{name: {name}}}")).await,
            Ending::Replaced => self.revoke(name, &format!("serialNumber: \"{serial}\"")).await,
            Ending::Deleted => {
                let parameters = DeleteParams::default();
                self.identities.delete(name, &parameters).await.expect("deleted");
            }
            Ending::Superseded => self.renew(name).await,
        }
        Ended { ending, serial }
    }

    async fn revoke(&self, name: &str, target: &str) {
        let yaml =
            format!("{{metadata: {{name: {name}}}, spec: {{{target}, reason: KeyCompromise}}}}");
        create(&self.revocations, &yaml).await;
    }

    /// Asks for a new certificate, as `countersign renew` does on the operator's clock: a time of its
    /// future is a request for then.
    pub async fn renew(&self, name: &str) {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        let annotations =
            json!({annotation::RENEW_REQUESTED_AT: (Timestamp::now() + ahead).to_string()});
        patch(&self.identities, name, json!({"metadata": {"annotations": annotations}})).await;
    }

    /// Asks for a new certificate and waits for it.
    pub async fn renewed(&self, name: &str) {
        let before = self.serial(name).await;
        self.renew(name).await;
        self.until(&format!("{name} is renewed"), || async {
            (self.serial(name).await != before).then_some(())
        })
        .await;
    }

    /// Waits until the certificate is refused everywhere, and its successor is there if it has one.
    pub async fn ended(&self, name: &str, ended: &Ended, what: &str) {
        let Ended { ending, serial } = ended;
        self.until(&format!("{what}: {serial} of {name} stands in the CRL"), || async {
            let crl = self.observer.crl(CRL)?;
            let recorded = self.observer.is_revoked(serial);
            (recorded && crl.serials.contains(serial)).then_some(())
        })
        .await;
        self.until(&format!("{what}: {serial} of {name} stands in the trust's CRL"), || async {
            let crls = self.observer.crls_in_secret(&self.namespace, TRUST_SECRET);
            crls.iter().any(|crl| crl.serials.contains(serial)).then_some(())
        })
        .await;
        if matches!(ending, Ending::Revoked | Ending::Replaced) {
            self.until(&format!("{what}: revocation {name} is Published"), || async {
                let status = self.revocations.get(name).await.ok()?.status?;
                is_true(&status.conditions, PUBLISHED).then_some(())
            })
            .await;
        }
        let (status, reason) = match ending {
            Ending::Deleted => return,
            Ending::Revoked => ("False", "Revoked"),
            Ending::Replaced | Ending::Superseded => ("True", "Issued"),
        };
        self.until(&format!("{what}: identity {name} is {reason}"), || async {
            let identity = self.identities.get(name).await.ok()?;
            let conditions = identity.status?.conditions;
            let ready = crate::support::condition(&conditions, READY)?;
            let as_told = ready.status == status && ready.reason == reason;
            let replaced = status == "False" || self.serial(name).await.as_ref() != Some(serial);
            (as_told && replaced).then_some(())
        })
        .await;
    }

    /// Asks until the answer is `Some`, with an operator that is started again whenever it is gone.
    pub async fn until<T, R>(&self, what: &str, mut ask: impl FnMut() -> R) -> T
    where
        R: Future<Output = Option<T>>,
    {
        let started = Instant::now();
        loop {
            self.keep_running();
            if let Some(answer) = ask().await {
                return answer;
            }
            self.observer.assert_good();
            assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What must be true in the end: every doomed serial stands in ledger and CRL, whoever is Ready
    /// holds a certificate that is not revoked, and a steady cluster sees no write, also right after a
    /// restart.
    pub async fn conclude(&self) {
        // Of two leaders each counts what it has seen of the ledger: they agree when they start anew.
        if self.proxies.len() == 1 {
            self.steady().await;
        }
        self.proxies.iter().for_each(Proxy::kill);
        self.keep_running();
        self.steady().await;
        self.observer.conclude().await;
        let crl = self.observer.crl(CRL).expect("a CRL");
        let doomed = self.doomed.lock().expect("nobody panics").clone();
        for serial in &doomed {
            assert!(crl.serials.contains(serial), "{serial} is missing from the CRL");
            assert!(self.observer.is_revoked(serial), "{serial} is missing from the ledger");
        }
        // A certificate whose Secret was not written is recorded, and superseded by the next.
        for serial in crl.serials.iter().filter(|serial| !doomed.contains(serial)) {
            assert!(!self.observer.was_visible(serial), "{serial} was good, and is revoked");
        }
        let identities = self.identities.list(&ListParams::default()).await.expect("an answer");
        for identity in identities {
            let status = identity.status.clone().unwrap_or_default();
            let serial = status.serial_number.clone().unwrap_or_default();
            let good = self.serial(&identity.name_any()).await.as_ref() == Some(&serial)
                && !crl.serials.contains(&serial);
            let ready = is_true(&status.conditions, READY);
            assert_eq!(good, ready, "{}: {status:?}", identity.name_any());
        }
    }

    /// Waits until no write has come for a while.
    pub async fn steady(&self) {
        let started = Instant::now();
        let mut count = usize::MAX;
        loop {
            let writes = self.plane.writes("operator");
            if writes.len() == count {
                return;
            }
            count = writes.len();
            let last = writes.last();
            assert!(started.elapsed() < PATIENCE, "it writes on and on; last {last:?}");
            tokio::time::sleep(STEADY).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for proxy in &self.proxies {
                let log = proxy.log(&self.plane);
                let lines: Vec<_> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(80)..].join("\n");
                println!("the operator's log ends:\n{last}");
            }
        }
    }
}

/// A certificate that was ended.
pub struct Ended {
    ending: Ending,
    serial: Hex,
}
