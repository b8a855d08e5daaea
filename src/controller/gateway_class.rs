//! Which data plane serves a Gateway.

use serde_json::Value;

use super::context::Stores;
use crate::cluster::Key;
use crate::ingress::{self, DataPlane, gateway_api};

/// It follows from the class of the Gateway; where none is known, why not.
pub fn data_plane(stores: &Stores, gateway: &Value) -> Result<&'static DataPlane, String> {
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
