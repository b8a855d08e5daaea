//! The CRL in the cluster: read, decide, sign, check, publish.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};
use tracing::{error, info, warn};

use super::context::{Context, Published};
use super::error::Error;
use crate::api::ClientAuthority;
use crate::cluster::apply::write;
use crate::metrics::authority as label;
use crate::pki::{CertificateAuthority, crl};
use crate::plan::authority::{crl_key, crl_name, render_crl};
use crate::plan::crl::{Decision, Publication, World, decide};
use crate::plan::ledger::CaKey;

/// The CRL of a CA as it stands in the cluster.
pub(super) enum Found {
    /// None; the resourceVersion is that of a ConfigMap without a usable one, which is written over.
    Nothing(Option<String>),
    /// A CRL.
    Crl(Published),
}

/// Reads the CRL that stands in the cluster.
pub(super) async fn read(context: &Context, key: &CaKey) -> Result<Found, Error> {
    let name = crl_name(key);
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.namespace);
    let found = api
        .get_opt(&name)
        .await
        .map_err(|source| Error::Read { object: format!("ConfigMap {name}"), source })?;
    let Some(config_map) = found else { return Ok(Found::Nothing(None)) };
    let resource_version = config_map.resource_version();
    let Some(der) = config_map.binary_data.and_then(|mut data| data.remove(crl_key::DER)) else {
        warn!(name, "the ConfigMap of the CRL holds none; it is published anew");
        return Ok(Found::Nothing(resource_version));
    };
    let facts = match crl::read(&der.0) {
        Ok(facts) => facts,
        Err(why) => {
            error!(name, %why, "the published CRL is damaged; it is published anew");
            return Ok(Found::Nothing(resource_version));
        }
    };
    Ok(Found::Crl(Published {
        facts: Arc::new(facts),
        pem: crl::to_pem(&der.0).into(),
        bytes: der.0.len(),
        resource_version,
        at: None,
    }))
}

/// Decides whether a CRL is due. `published` is the newest one, and whether it stands in the cluster.
pub(super) fn due(
    context: &Context,
    authority: &ClientAuthority,
    key: &CaKey,
    ca: &CertificateAuthority,
    published: Option<(&Published, bool)>,
    now: Timestamp,
) -> Decision {
    let spec = &authority.spec.crl;
    context.ledger.read(key, |ledger| {
        decide(&World {
            ledger,
            published: published.map(|(published, _)| &*published.facts),
            in_service: published.is_some_and(|(_, in_service)| in_service),
            published_at: published.and_then(|(published, _)| published.at),
            validity: SignedDuration::from_secs(spec.validity.as_secs()),
            refresh: SignedDuration::from_secs(spec.refresh.as_secs()),
            ca_not_after: ca.facts().not_after,
            now,
        })
    })
}

/// Signs, checks by independent code, and publishes under the version of what stood before.
pub(super) async fn publish(
    context: &Context,
    key: &CaKey,
    ca: &CertificateAuthority,
    previous_version: Option<String>,
    publication: &Publication,
    now: Timestamp,
) -> Result<Published, Error> {
    let Publication { number, this_update, next_update, entries } = publication;
    let der = crl::sign(ca, *number, *this_update, *next_update, entries)?;
    let facts = crl::verify(&der, ca, *number, entries)?;
    let (pem, bytes) = (crl::to_pem(&der), der.len());

    let mut wanted = render_crl(key, &ca.certificate_pem(), der, *number);
    wanted.metadata.namespace = Some(context.namespace.clone());
    wanted.metadata.resource_version = previous_version;
    let written = write(&context.client, &wanted).await?;
    info!(number = number.0, entries = entries.len(), bytes, %next_update, "published a CRL");
    context.metrics.crl_publications.get_or_create(&label(&key.authority)).inc();
    let published = Published {
        facts: Arc::new(facts),
        pem: pem.into(),
        bytes,
        resource_version: written.resource_version(),
        at: Some(now),
    };
    measure(context, key, &published);
    Ok(published)
}

/// Shows a published CRL in the metrics, also one that an earlier process published.
pub(super) fn measure(context: &Context, key: &CaKey, published: &Published) {
    let (label, metrics) = (label(&key.authority), &context.metrics);
    let facts = &published.facts;
    metrics.crl_entries.get_or_create(&label).set(facts.serials.len() as i64);
    metrics.crl_bytes.get_or_create(&label).set(published.bytes as i64);
    metrics.crl_this_update.get_or_create(&label).set(facts.this_update.as_second());
    metrics.crl_next_update.get_or_create(&label).set(facts.next_update.as_second());
}
