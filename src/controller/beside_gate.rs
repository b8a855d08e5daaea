//! What data planes need beside the gate, in its namespace, to ask it.

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use tracing::info;

use super::context::{Context, Stores};
use super::error::Error;
use crate::api::{ClientTrust, label};
use crate::cluster::apply::{self, WriteError};
use crate::ingress::gate::{GateService, may_serve};
use crate::ingress::{DataPlane, name_of};
use crate::plan::gate::needs_gate;
use crate::plan::trust_secret::labels;

/// Brings there what these data planes need for the trusts of a namespace. The objects of a gate that is no Service of
/// the cluster are nowhere.
pub(super) async fn put(
    context: &Context,
    planes: &[&DataPlane],
    namespace: &str,
) -> Result<(), WriteError> {
    let Some(gate) = GateService::of_url(&context.gate_url) else { return Ok(()) };
    for plane in planes {
        let Some(beside) = plane.beside_gate else { continue };
        let mut object = beside(&gate, namespace);
        object["metadata"]["labels"] = json!(labels());
        // Several trusts may need the same object: nobody takes it away meanwhile.
        let _turn = context.beside_gate.lock().await;
        let ours = |found: &DynamicObject| label::is_ours(&found.metadata);
        let put =
            apply::ensure(&context.client, &object, ours).await.map_err(|error| match error {
                WriteError::NotOwned(object) => {
                    WriteError::NotOwned(format!("{object} in namespace {:?}", gate.namespace))
                }
                error => error,
            })?;
        if put {
            info!(object = name_of(&object), plane = plane.name, "the gate can be asked");
        }
    }
    Ok(())
}

/// Takes away what no trust of a namespace needs any more.
pub(super) async fn prune(
    context: &Context,
    planes: impl Iterator<Item = &'static DataPlane>,
    namespace: &str,
) -> Result<(), Error> {
    let Some(gate) = GateService::of_url(&context.gate_url) else { return Ok(()) };
    for plane in planes {
        let Some(beside) = plane.beside_gate else { continue };
        let object = beside(&gate, namespace);
        // By what the watch shows then.
        let _turn = context.beside_gate.lock().await;
        if is_needed(&context.stores, plane, |other| beside(&gate, other) == object) {
            continue;
        }
        let found = apply::find(&context.client, &object).await;
        let found = found.map_err(|source| Error::Read { object: name_of(&object), source })?;
        if let Some(present) = found.filter(|found| label::is_ours(&found.metadata)) {
            let present: Value = serde_json::to_value(&present).unwrap_or_default();
            apply::delete(&context.client, &present).await?;
        }
    }
    Ok(())
}

/// Is there a trust, of a namespace that it is for, that may have a target there about which the gate is asked?
fn is_needed(stores: &Stores, plane: &DataPlane, is_for: impl Fn(&str) -> bool) -> bool {
    let needs = |trust: &ClientTrust| {
        trust.metadata.deletion_timestamp.is_none()
            && needs_gate(trust)
            && trust.spec.target_refs.iter().any(|target| may_serve(plane, target))
            && is_for(&trust.namespace().unwrap_or_default())
    };
    stores.trusts.list().iter().any(|trust| needs(trust))
}
