//! Workloads of the user that are restarted: read, and one annotation of their pod template written.

use std::collections::BTreeMap;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::json;

/// The field manager of this one annotation: what else we write has nothing to do with it.
const FIELD_MANAGER: &str = "countersign-rollout";

fn api(client: &Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind));
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// A workload of `apps/v1`, if it exists.
pub async fn get(
    client: &Client,
    namespace: &str,
    kind: &str,
    name: &str,
) -> Result<Option<DynamicObject>, kube::Error> {
    api(client, namespace, kind).get_opt(name).await
}

/// Sets annotations of a workload's pod template, which makes its controller replace the pods. A merge
/// patch creates nothing, should the workload have gone.
pub async fn annotate_pods(
    client: &Client,
    namespace: &str,
    kind: &str,
    name: &str,
    annotations: &BTreeMap<&str, String>,
) -> Result<(), kube::Error> {
    let body = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api(client, namespace, kind).patch(name, &params, &Patch::Merge(&body)).await.map(|_| ())
}
