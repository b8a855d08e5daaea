//! Clients: one for watches, one for calls. Watches live long and have no read timeout; a call that
//! hangs must not hold a reconcile for ever, and must not be repeated behind our back.

use std::time::Duration;

use kube::{Client, Config};

/// The two clients.
#[derive(Clone)]
pub struct Clients {
    /// For watches.
    pub watch: Client,
    /// For everything else.
    pub call: Client,
}

impl Clients {
    /// From `KUBECONFIG`, the default kubeconfig, or the pod's ServiceAccount.
    pub async fn infer() -> Result<Self, ClientError> {
        let config = Config::infer().await?;
        Self::new(config)
    }

    /// From a configuration.
    pub fn new(config: Config) -> Result<Self, ClientError> {
        let mut call = config.clone();
        call.read_timeout = Some(Duration::from_secs(30));
        call.reset_reader_on_write = true;
        // kube's default repeats every method up to 15 times, which can outlive a lease.
        call.default_retry = false;
        Ok(Self { watch: Client::try_from(config)?, call: Client::try_from(call)? })
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a ServiceAccount.
    #[error("failed to find a cluster: set KUBECONFIG, or run in a pod with a ServiceAccount")]
    Infer(#[from] kube::config::InferConfigError),
    /// It can't be used.
    #[error("failed to set up the API client")]
    Client(#[from] kube::Error),
}
