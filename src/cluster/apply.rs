//! Writes. Each is safe when two leaders make it: creation fails if the object exists, an update
//! carries the resourceVersion that was read, server-side apply is forced only on objects whose owner
//! reference is ours.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use crate::api::fields::contains;

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Somebody else wrote in between, or owns a field: read again and decide anew.
    #[error("{object}: {message}")]
    Conflict {
        /// Kind and name.
        object: String,
        /// The API server's words.
        message: String,
    },
    /// An object of the name exists and is not ours.
    #[error("{0} exists and is not ours")]
    NotOwned(String),
    /// The API server refused or could not be reached.
    #[error("failed to write {object}")]
    Api {
        /// Kind and name.
        object: String,
        /// Why.
        source: kube::Error,
    },
}

impl WriteError {
    fn new(object: String, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => {
                Self::Conflict { object, message: status.message }
            }
            source => Self::Api { object, source },
        }
    }
}

/// A kind that has a namespace.
pub trait Namespaced:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
{
}

impl<K> Namespaced for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
{
}

/// Creates an object, or replaces the one whose resourceVersion it carries.
pub async fn write<K: Namespaced>(client: &Client, object: &K) -> Result<K, WriteError> {
    let name = object.name_any();
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let params = params();
    let result = if object.resource_version().is_some() {
        api.replace(&name, &params, object).await
    } else {
        api.create(&params, object).await
    };
    result.map_err(|error| WriteError::new(format!("{} {namespace}/{name}", K::kind(&())), error))
}

/// Applies a status: only the fields given, by the status subresource. The object must exist.
pub async fn status<K>(api: &Api<K>, name: &str, status: &impl Serialize) -> Result<K, WriteError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch_status(name, &params, &Patch::Apply(&body))
        .await
        .map_err(|error| WriteError::new(format!("status of {} {name}", K::kind(&())), error))
}

/// The API of an object that is known only as JSON.
pub fn dynamic_api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let api_version = text(&object["apiVersion"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let kind = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
    let resource = ApiResource::from_gvk(&kind);
    Api::namespaced_with(client.clone(), &text(&object["metadata"]["namespace"]), &resource)
}

/// The name of an object, and its kind and name for messages.
fn describe(object: &Value) -> (&str, String) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    (name, format!("{} {name}", object["kind"].as_str().unwrap_or_default()))
}

/// The object of this kind and name, if there is one. Nor is there one of a kind that is not installed, of which the API
/// server says less.
pub async fn find(client: &Client, object: &Value) -> kube::Result<Option<DynamicObject>> {
    let (name, _) = describe(object);
    match dynamic_api(client, object).get(name).await {
        Ok(found) => Ok(Some(found)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Brings an object of ours to the wanted state by server-side apply, unless its wanted fields stand
/// already. One of the same name that `owned` does not recognise is left alone.
pub async fn ensure(
    client: &Client,
    wanted: &Value,
    owned: impl Fn(&DynamicObject) -> bool,
) -> Result<bool, WriteError> {
    let api = dynamic_api(client, wanted);
    let (name, object) = describe(wanted);
    let failed = |error| WriteError::new(object.clone(), error);
    if let Some(present) = api.get_opt(name).await.map_err(failed)? {
        if !owned(&present) {
            return Err(WriteError::NotOwned(object));
        }
        let present = serde_json::to_value(&present).unwrap_or_default();
        if contains(&present, wanted) {
            return Ok(false);
        }
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name, &params, &Patch::Apply(wanted)).await.map_err(failed)?;
    Ok(true)
}

/// Applies our fields to an object of the user, never forced: a field that somebody else set is a
/// conflict.
pub async fn apply_unforced(client: &Client, body: &Value) -> Result<(), WriteError> {
    let api = dynamic_api(client, body);
    let (name, object) = describe(body);
    let params = PatchParams::apply(FIELD_MANAGER);
    api.patch(name, &params, &Patch::Apply(body))
        .await
        .map(|_| ())
        .map_err(|error| WriteError::new(object, error))
}

/// Replaces an object of the user under the resourceVersion that it carries.
pub async fn replace(client: &Client, body: &Value) -> Result<(), WriteError> {
    let api = dynamic_api(client, body);
    let (name, object) = describe(body);
    let typed = typed(body, &object)?;
    api.replace(name, &params(), &typed)
        .await
        .map(|_| ())
        .map_err(|error| WriteError::new(object, error))
}

/// Creates an object of ours, or replaces the one whose resourceVersion it carries.
pub async fn put(client: &Client, body: &Value) -> Result<(), WriteError> {
    if body["metadata"].get("resourceVersion").is_some() {
        return replace(client, body).await;
    }
    let (_, object) = describe(body);
    let typed = typed(body, &object)?;
    let created = dynamic_api(client, body).create(&params(), &typed).await;
    created.map(|_| ()).map_err(|error| WriteError::new(object, error))
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn typed(body: &Value, object: &str) -> Result<DynamicObject, WriteError> {
    serde_json::from_value(body.clone()).map_err(|source| WriteError::Api {
        object: object.to_owned(),
        source: kube::Error::SerdeError(source),
    })
}

/// Deletes an object of ours, unless it has changed since it was read. One that is gone is as good.
pub async fn delete(client: &Client, object: &Value) -> Result<(), WriteError> {
    let (name, described) = describe(object);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let preconditions = Preconditions {
        uid: text(&object["metadata"]["uid"]),
        resource_version: text(&object["metadata"]["resourceVersion"]),
    };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match dynamic_api(client, object).delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(WriteError::new(described, error)),
    }
}
