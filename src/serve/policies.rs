//! The policies of trusts, as the controller wrote them into the one Secret that the server may read. They are kept
//! in memory only.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Secret;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::gate::Service;
use crate::cluster::client::Clients;
use crate::cluster::watch::{Seen, Selection, watch};
use crate::plan::gate::{POLICIES, SecondFactor, TrustPolicy, trust_of_key};

/// The policies that are known, by `namespace/name` of their trust.
#[derive(Default)]
pub struct Policies(HashMap<String, Arc<Known>>);

/// A policy, and what is made of it once for all requests.
pub struct Known {
    /// The policy.
    pub policy: TrustPolicy,
    /// The service that its second factor names, ready to be asked.
    pub service: Option<Service>,
}

impl Known {
    fn read(text: &[u8]) -> Result<Self, String> {
        // The error would tell of the text.
        let policy: TrustPolicy = serde_json::from_slice(text).map_err(|_| "it is none")?;
        let service = match &policy.second_factor {
            Some(SecondFactor::Url(service)) => Some(Service::new(service)?),
            _ => None,
        };
        Ok(Self { policy, service })
    }
}

impl Policies {
    /// Reads the Secret. A policy that can't be read is not known, so that its trust lets nobody in.
    pub fn read(secret: &Secret) -> Self {
        let mut policies = HashMap::new();
        for (key, text) in secret.data.iter().flatten() {
            let trust = trust_of_key(key).ok_or_else(|| "its key names no trust".to_owned());
            match trust.and_then(|trust| Ok((trust, Known::read(&text.0)?))) {
                Ok(((namespace, name), known)) => {
                    policies.insert(format!("{namespace}/{name}"), Arc::new(known));
                }
                Err(error) => warn!(
                    key,
                    error, "a policy of the gate can't be read; its ClientTrust lets nobody in"
                ),
            }
        }
        Self(policies)
    }

    /// The policy of a trust.
    pub fn get(&self, trust: &str) -> Option<Arc<Known>> {
        self.0.get(trust).cloned()
    }
}

/// Keeps the policies up to date, for ever. While the API server is away those known last stay.
pub async fn follow(clients: Clients, namespace: String, policies: Arc<ArcSwap<Policies>>) {
    let (sender, mut seen) = mpsc::channel(16);
    let watching = watch(clients, namespace, Selection::Name(POLICIES), sender);
    let taking_in = async {
        while let Some(event) = seen.recv().await {
            let found: Policies = match event {
                Seen::Found(secret) => Policies::read(&secret),
                Seen::Listed(names) if !names.is_empty() => continue,
                Seen::Gone(_) | Seen::Listed(_) => Policies::default(),
                Seen::Alive => continue,
            };
            info!(policies = found.0.len(), "read the policies of the gate");
            policies.store(Arc::new(found));
        }
    };
    tokio::join!(watching, taking_in);
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use std::collections::BTreeMap;

    #[test]
    fn a_policy_that_can_t_be_read_is_not_known() {
        let good = r#"{"mode":"Required","authorities":["staff"]}"#;
        // A service over TLS that nobody could verify.
        let tls = good
            .replace('}', r#","secondFactor":{"url":{"endpoint":"https://a/","timeout":"1s"}}}"#);
        let texts = [
            ("shop.good", good),
            ("shop.bad", "{}"),
            ("nodot", good),
            ("shop.text", "x"),
            ("shop.tls", &tls),
        ];
        let data: BTreeMap<_, _> =
            texts.map(|(key, text)| (key.to_owned(), ByteString(text.into()))).into();
        let policies = Policies::read(&Secret { data: Some(data), ..Secret::default() });
        assert_eq!(policies.0.len(), 1);
        assert_eq!(policies.get("shop/good").unwrap().policy.authorities, ["staff"]);
        assert!(policies.get("shop/bad").is_none());
    }
}
