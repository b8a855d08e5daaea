//! What the server knows: every published CRL with its CA, from the ConfigMaps that publish them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use rustls_pki_types::CertificateDer;
use tracing::{error, info};

use crate::api::annotation;
use crate::api::authority::CaState;
use crate::pki::crl::CrlNumber;
use crate::pki::inspect::{certificates, inspect};
use crate::pki::{Serial, crl, sha256_hex};
use crate::plan::authority::key_of;
use crate::plan::ledger::CaKey;
use crate::plan::publication::{Scope, crl_key};

/// One CA and its CRL, ready to be served and asked.
pub struct Published {
    /// The CA's certificate.
    pub ca: CertificateDer<'static>,
    /// Issuer Name of its certificates and CRLs, DER.
    pub issuer_der: Vec<u8>,
    /// Its key identifier.
    pub key_id: Vec<u8>,
    /// The CRL, DER.
    pub der: Arc<[u8]>,
    /// Strong entity tag: the SHA-256 of the CRL, quoted.
    pub etag: String,
    /// Its number.
    pub number: CrlNumber,
    /// thisUpdate.
    pub this_update: Timestamp,
    /// nextUpdate.
    pub next_update: Timestamp,
    /// The revoked serials.
    pub revoked: HashSet<Serial>,
    /// Who signed the CA: issuer Name, key identifier, and the CA's serial number on that one's CRL.
    pub above: (Vec<u8>, Vec<u8>, Serial),
    /// Does nobody trust the CA any more?
    pub removed: bool,
}

/// Every CRL, by CA.
#[derive(Default)]
pub struct View {
    by_key: HashMap<CaKey, Arc<Published>>,
}

impl View {
    /// The CRL of a CA.
    pub fn get(&self, key: &CaKey) -> Option<&Arc<Published>> {
        self.by_key.get(key)
    }

    /// The CRLs of all CAs of an authority.
    pub fn of_authority<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Published>> {
        let mine = self.by_key.iter().filter(move |(key, _)| &*key.authority == name);
        mine.map(|(_, published)| published)
    }

    /// The view with one ConfigMap taken in. One that can't be read changes nothing: the last good
    /// CRL stays in service until it expires.
    pub fn with(&self, config_map: &ConfigMap) -> Self {
        let mut by_key = self.by_key.clone();
        match read(config_map) {
            Ok((key, published)) => {
                let known = by_key.get(&key);
                // A watch that reconnects may show an older state.
                let retired = |known: &Published| published.removed && !known.removed;
                let newer = |known: &Published| known.number < published.number;
                if known.is_none_or(|known| newer(known) || retired(known)) {
                    info!(ca = %key, number = published.number.0, entries = published.revoked.len(), "took in a CRL");
                    by_key.insert(key, Arc::new(published));
                }
            }
            Err(why) => error!(name = config_map.name_any(), why, "a published CRL can't be read"),
        }
        Self { by_key }
    }

    /// The view without the CRL of a ConfigMap that is gone.
    pub fn without(&self, config_map: &ConfigMap) -> Self {
        let mut by_key = self.by_key.clone();
        let full = Scope::of(&config_map.metadata) == Some(Scope::Full);
        if let Some(key) = key_of(&config_map.metadata).filter(|_| full) {
            by_key.remove(&key);
        }
        Self { by_key }
    }
}

fn read(config_map: &ConfigMap) -> Result<(CaKey, Published), String> {
    let key = key_of(&config_map.metadata).ok_or("its labels name no CA")?;
    if Scope::of(&config_map.metadata) != Some(Scope::Full) {
        return Err("it is not a complete CRL".to_owned());
    }
    let pem = config_map.data.as_ref().and_then(|data| data.get(crl_key::CA));
    let ca = certificates(pem.ok_or("it holds no CA certificate")?.as_bytes())
        .map_err(|error| error.to_string())?
        .swap_remove(0);
    let facts = inspect(&ca).map_err(|error| error.to_string())?;
    let above = (facts.issuer_der, facts.authority_key_id, facts.serial);
    let state = config_map.annotations().get(annotation::STATE);
    let removed = state.is_some_and(|state| state == CaState::Removed.as_str());
    let der = config_map.binary_data.as_ref().and_then(|data| data.get(crl_key::DER));
    let der = &der.ok_or("it holds no CRL")?.0;
    let facts = crl::read(der).map_err(|error| error.to_string())?;
    let published = Published {
        ca,
        issuer_der: facts.issuer_der,
        key_id: facts.authority_key_id,
        etag: format!("\"{}\"", sha256_hex(der)),
        der: der.as_slice().into(),
        number: facts.number,
        this_update: facts.this_update,
        next_update: facts.next_update,
        revoked: facts.serials.into_iter().collect(),
        above,
        removed,
    };
    Ok((key, published))
}
