//! One published CRL and its CA, ready to be served and asked.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use rustls_pki_types::CertificateDer;

use super::document::Document;
use super::verified::Verified;
use crate::api::annotation;
use crate::api::authority::CaState;
use crate::pki::crl::signed::{Revoked, read_signed};
use crate::pki::crl::{CrlNumber, to_pem};
use crate::pki::inspect::{LeafFacts, certificates, inspect};
use crate::pki::{Serial, certificate_pem};
use crate::plan::authority::key_of;
use crate::plan::ledger::CaKey;
use crate::plan::publication::{AssembleError, Scope, assemble, crl_key, part_names};

/// The media type of RFC 2585 section 4.2.
const DER: &str = "application/pkix-crl";
/// PEM has no registered one; this is what OpenSSL's and Debian's tools know it by.
const PEM: &str = "application/x-pem-file";

/// One CA and its CRL. Clones share what is large.
#[derive(Clone)]
pub struct Published {
    /// Which CA.
    pub key: CaKey,
    /// Of which certificates it speaks.
    pub scope: Scope,
    /// The CA's certificate.
    pub ca: CertificateDer<'static>,
    /// Issuer Name of its certificates and CRLs, DER.
    pub issuer_der: Vec<u8>,
    /// Its key identifier.
    pub key_id: Vec<u8>,
    /// Its number.
    pub number: CrlNumber,
    /// thisUpdate.
    pub this_update: Timestamp,
    /// nextUpdate.
    pub next_update: Timestamp,
    /// The revoked serials.
    pub revoked: Revoked,
    /// Who signed the CA: issuer Name, key identifier, and the CA's serial number on that one's CRL.
    pub above: (Vec<u8>, Vec<u8>, Serial),
    /// The CA's certificates that were verified before; with the next CRL too.
    pub verified: Arc<Verified>,
    /// Does nobody trust the CA any more?
    pub removed: bool,
    /// Is it known from the disk alone?
    pub from_disk: bool,
    document: Arc<Document>,
    pem: Arc<OnceLock<Document>>,
    // Name of each part of a large one, and where it lies.
    parts: Arc<[(String, Range<usize>)]>,
}

/// Where a CRL was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the cluster.
    Cluster,
    /// On the disk: a copy of earlier.
    Disk,
}

impl Published {
    /// Does a certificate name this CA as its issuer?
    pub fn is_issuer_of(&self, leaf: &LeafFacts) -> bool {
        self.issuer_der == leaf.issuer_der && self.key_id == leaf.authority_key_id
    }

    /// Reads what a ConfigMap publishes. Nothing is taken whose signature is not the CA's. `fetched` are
    /// parts by name; those of the CRL `known` of before need not be fetched again.
    pub fn read(
        head: &ConfigMap,
        fetched: &HashMap<String, Bytes>,
        known: Option<&Self>,
        source: Source,
    ) -> Result<Self, String> {
        let key = key_of(&head.metadata).ok_or("its labels name no CA")?;
        let scope = Scope::of(&head.metadata).ok_or("its scope is not known to this version")?;
        let pem = head.data.as_ref().and_then(|data| data.get(crl_key::CA));
        let ca = certificates(pem.ok_or("it holds no CA certificate")?.as_bytes())
            .map_err(|error| error.to_string())?
            .swap_remove(0);
        let facts = inspect(&ca).map_err(|error| error.to_string())?;
        let state = head.annotations().get(annotation::STATE);
        let (der, parts) =
            put_together(&key, head, fetched, known).map_err(|error| error.to_string())?;
        let crl = read_signed(der, &ca).map_err(|error| error.to_string())?;
        let point = crl.distribution_point;
        let good = match scope {
            Scope::Full => crl.is_complete,
            Scope::Delta => crl.base.is_some(),
            Scope::Shard { .. } => point.is_some_and(|url| url.ends_with(&scope.path(&key))),
        };
        if !good {
            return Err(format!("it does not speak of the certificates of its scope, {scope}"));
        }
        // Validators of the same second can't tell two CRLs apart (RFC 9110 section 8.8.2.2).
        let told_by_date = known
            .is_none_or(|known| known.number == crl.number || known.this_update < crl.this_update);
        let before = known.filter(|known| known.ca == ca).map(|known| known.verified.clone());
        let modified = told_by_date.then_some(crl.this_update);
        Ok(Self {
            key,
            scope,
            ca,
            issuer_der: crl.issuer_der,
            key_id: crl.authority_key_id,
            number: crl.number,
            this_update: crl.this_update,
            next_update: crl.next_update,
            revoked: crl.revoked,
            above: (facts.issuer_der, facts.authority_key_id, facts.serial),
            verified: before.unwrap_or_default(),
            removed: state.is_some_and(|state| state == CaState::Removed.as_str()),
            from_disk: source == Source::Disk,
            document: Arc::new(Document::new(crl.der, DER, modified, Some(crl.next_update))),
            pem: Arc::default(),
            parts: parts.into(),
        })
    }

    /// The same CRL of a CA that nobody trusts any more.
    pub fn retired(self) -> Self {
        Self { removed: true, ..self }
    }

    /// The CRL, DER.
    pub fn der(&self) -> &Bytes {
        self.document.body()
    }

    /// The CRL as a file.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// The CRL as PEM, which is made when somebody first asks for it: few do, and a large one would take
    /// more memory than the CRL itself.
    pub fn pem(&self) -> &Document {
        self.pem.get_or_init(|| {
            let modified = self.document.modified();
            Document::new(to_pem(self.der()).into(), PEM, modified, Some(self.next_update))
        })
    }

    /// Was the PEM form made?
    pub fn has_pem(&self) -> bool {
        self.pem.get().is_some()
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> String {
        certificate_pem(&self.ca)
    }

    /// The bytes of a part that this CRL was put together from.
    pub fn part(&self, name: &str) -> Option<Bytes> {
        let (_, range) = self.parts.iter().find(|(part, _)| part == name)?;
        Some(self.der().slice(range.clone()))
    }
}

/// A part's name, and where it lies in the CRL.
type Placed = (String, Range<usize>);

/// The whole CRL, and where each of its parts lies in it.
fn put_together(
    key: &CaKey,
    head: &ConfigMap,
    fetched: &HashMap<String, Bytes>,
    known: Option<&Published>,
) -> Result<(Bytes, Vec<Placed>), AssembleError> {
    let mut lengths = Vec::new();
    let der = assemble(key, head, |name| {
        let part = fetched.get(name).cloned().or_else(|| known?.part(name))?;
        lengths.push(part.len());
        Some(part)
    })?;
    let first = head.binary_data.as_ref().and_then(|data| data.get(crl_key::HEAD));
    let mut at = first.map_or(0, |first| first.0.len());
    let place = |(name, length): (String, usize)| {
        let range = at..at + length;
        at = range.end;
        (name, range)
    };
    let parts = part_names(key, head).into_iter().zip(lengths).map(place).collect();
    Ok((der.into(), parts))
}
