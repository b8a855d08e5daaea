//! What a trust names, and which data plane serves it.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::IngressClass;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::context::{Context, Stores};
use super::error::Error;
use crate::api::ClientTrust;
use crate::api::trust::TargetReference;
use crate::cluster::Key;
use crate::cluster::apply;
use crate::ingress::{self, DataPlane, gateway_api};
use crate::plan::trust::Target;

/// Annotation of an IngressClass that serves Ingresses without a class.
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
/// The annotation that named the class before `spec.ingressClassName` did.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Every route with the data plane that serves it. One whose class is nobody's that we know concerns none.
pub(super) fn served_routes(
    context: &Context,
    routes: Vec<Value>,
) -> Vec<(&'static DataPlane, Value)> {
    let served = |object: Value| Some((data_plane(context, &object).ok()?, object));
    routes.into_iter().filter_map(served).collect()
}

pub(super) async fn gather_targets<'a>(
    context: &Context,
    trust: &'a ClientTrust,
) -> Result<Vec<Target<'a>>, Error> {
    let namespace = trust.namespace().unwrap_or_default();
    let mut targets = Vec::new();
    for reference in &trust.spec.target_refs {
        let object = read_target(context, &namespace, reference).await?;
        let data_plane = match &object {
            Some(object) => data_plane(context, object),
            None => Err("it does not exist".to_owned()),
        };
        targets.push(Target { reference, object, data_plane });
    }
    Ok(targets)
}

async fn read_target(
    context: &Context,
    namespace: &str,
    reference: &TargetReference,
) -> Result<Option<Value>, Error> {
    let own = ingress::by_kind(&reference.group, &reference.kind);
    let version = own.map_or("v1", |(_, kind)| kind.version);
    let api_version = format!("{}/{version}", reference.group);
    let stub = json!({
        "apiVersion": api_version,
        "kind": reference.kind,
        "metadata": {"name": reference.name, "namespace": namespace},
    });
    let found = apply::find(&context.client, &stub).await.map_err(|source| {
        let object = format!("{} {namespace}/{}", reference.kind, reference.name);
        Error::Read { object, source }
    })?;
    Ok(found.and_then(|object| {
        let mut value = serde_json::to_value(&object).ok()?;
        value["metadata"].as_object_mut()?.remove("managedFields");
        Some(value)
    }))
}

/// Which data plane serves an object follows from its kind; that of an Ingress from its class.
pub(super) fn data_plane(context: &Context, object: &Value) -> Result<&'static DataPlane, String> {
    let kind = object["kind"].as_str().unwrap_or_default();
    if ingress::is_of_kind(object, &ingress::GATEWAY) {
        return of_gateway(&context.stores, object);
    }
    if kind != "Ingress" {
        return ingress::by_object(object)
            .map(|(plane, _)| plane)
            .ok_or_else(|| format!("no data plane is known for kind {kind}"));
    }
    let field = object["spec"]["ingressClassName"].as_str();
    let annotated = object["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    // Which of both counts is the choice of each data plane, and of its options.
    if let (Some(field), Some(annotated)) = (field, annotated)
        && field != annotated
    {
        return Err(format!(
            "spec.ingressClassName is {field:?}, and its annotation {CLASS_ANNOTATION} is {annotated:?}; remove the annotation"
        ));
    }
    let named = field.or(annotated);
    let class = match named {
        Some(name) => context
            .stores
            .ingress_classes
            .get(&Key::cluster(name))
            .ok_or_else(|| format!("its IngressClass {name:?} does not exist"))?,
        None => {
            let classes = context.stores.ingress_classes.list();
            let is_default = |class: &Arc<IngressClass>| {
                class.annotations().get(DEFAULT_CLASS).is_some_and(|value| value == "true")
            };
            classes.into_iter().find(is_default).ok_or_else(|| {
                "it names no IngressClass and the cluster has no default one".to_owned()
            })?
        }
    };
    let controller = class.spec.as_ref().and_then(|spec| spec.controller.as_deref());
    let controller = controller.unwrap_or_default();
    ingress::by_ingress_controller(controller).ok_or_else(|| {
        format!(
            "its IngressClass {:?} is served by {controller:?}, which Countersign can't program",
            class.name_any()
        )
    })
}

/// That of a Gateway follows from its class.
fn of_gateway(stores: &Stores, gateway: &Value) -> Result<&'static DataPlane, String> {
    let name = gateway["spec"]["gatewayClassName"].as_str().unwrap_or_default();
    let class = stores
        .gateway_classes
        .get(&Key::cluster(name))
        .ok_or_else(|| format!("its GatewayClass {name:?} does not exist"))?;
    let controller = class.data["spec"]["controllerName"].as_str().unwrap_or_default();
    ingress::by_gateway_controller(controller).ok_or_else(|| {
        let unable = gateway_api::UNABLE.iter().find(|(known, _)| *known == controller);
        let why = unable.map_or("Countersign can't program it", |(_, why)| why);
        format!("its GatewayClass {name:?} is served by {controller:?}: {why}")
    })
}
