//! The published CRLs as the server sees them.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tokio::sync::mpsc;

use super::client::Clients;
use super::watch::{self, Seen, Selection};
use crate::api::label;
use crate::plan::publication::{COMPONENT, part_bytes};

/// Tells which CRLs are there, and then every change, for ever.
pub async fn watch(clients: Clients, namespace: String, seen: mpsc::Sender<Seen<ConfigMap>>) {
    let selector = format!("{},{}={COMPONENT}", label::SELECTOR, label::COMPONENT);
    watch::watch(clients, namespace, Selection::Labels(selector), seen).await;
}

/// The bytes of a part. None when it is not there: then a newer CRL is, or will be.
pub async fn part(api: &Api<ConfigMap>, name: &str) -> Result<Option<Vec<u8>>, kube::Error> {
    let found = api.get_opt(name).await?;
    Ok(found.and_then(|part| part_bytes(&part).map(<[u8]>::to_vec)))
}
