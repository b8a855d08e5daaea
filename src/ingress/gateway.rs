//! Gateways: what every data plane that serves them has in common.

use serde_json::Value;

use super::Exposure;
use crate::api::trust::Reason;

/// The listeners of a Gateway.
pub fn listeners(gateway: &Value) -> impl Iterator<Item = &Value> {
    gateway["spec"]["listeners"].as_array().into_iter().flatten()
}

/// What of a Gateway no data plane can ask for a certificate.
pub fn unfit(gateway: &Value) -> Option<Exposure> {
    let exposed = |reason, message| Some(Exposure { reason, message });
    for listener in listeners(gateway) {
        let name = &listener["name"];
        match listener["protocol"].as_str().unwrap_or_default() {
            "HTTPS" | "TLS" if listener["tls"]["mode"] == "Passthrough" => {
                let message = format!(
                    "passes TLS through in its listener {name}, so that the certificate is not seen; set tls.mode to Terminate, or move the listener to another Gateway"
                );
                return exposed(Reason::Conflict, message);
            }
            "HTTPS" | "TLS" => {}
            protocol => {
                let message = format!(
                    "has a listener {name} of protocol {protocol}, where nobody is asked for a certificate; remove it, or move it to another Gateway"
                );
                return exposed(Reason::PlainHTTP, message);
            }
        }
    }
    if gateway["status"]["attachedListenerSets"].as_i64().is_some_and(|sets| sets > 0) {
        let message = "has ListenerSets, and whether all of their listeners ask for a certificate is not known; move their listeners into spec.listeners";
        return exposed(Reason::Conflict, message.to_owned());
    }
    None
}
