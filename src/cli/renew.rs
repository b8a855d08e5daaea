//! `countersign renew`: asks for new certificates, and waits for them when told to.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use crate::api::condition::READY;
use crate::api::{ClientIdentity, annotation};
use crate::controller::error::chain;

/// How often the identities that are waited for are read.
const POLL: Duration = Duration::from_millis(500);

/// Which identities get a new certificate.
#[derive(Args)]
pub(super) struct RenewArgs {
    /// Names of ClientIdentities.
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "selector"])]
    names: Vec<String>,
    /// The namespace; that of the current context when not given.
    #[arg(long, short)]
    namespace: Option<String>,
    /// All ClientIdentities of the namespace.
    #[arg(long, conflicts_with_all = ["names", "selector"])]
    all: bool,
    /// ClientIdentities with these labels, such as `team=blue`.
    #[arg(long, short = 'l', conflicts_with = "names", value_name = "SELECTOR")]
    selector: Option<String>,
    /// Wait until the new certificates are there.
    #[arg(long)]
    wait: bool,
    /// Give up waiting after so many seconds.
    #[arg(long, default_value_t = 120, value_name = "SECONDS", requires = "wait")]
    timeout: u64,
}

/// Asks for the renewals; fails when one could not be asked for, or did not come in time.
pub(super) fn run(args: &RenewArgs) -> Result<(), String> {
    super::with_client(async |client, namespace| {
        let namespace = args.namespace.clone().unwrap_or(namespace);
        renew(client, &namespace, args).await
    })
}

async fn renew(client: Client, namespace: &str, args: &RenewArgs) -> Result<(), String> {
    let api: Api<ClientIdentity> = Api::namespaced(client, namespace);
    let names = names(&api, namespace, args).await?;
    let mut failed = Vec::new();
    // The certificates that are to be replaced.
    let mut waiting = BTreeMap::new();
    for name in names {
        match request(&api, &name).await {
            Ok(identity) => {
                println!("clientidentity/{name}: renewal requested");
                waiting.insert(name, serial(&identity));
            }
            Err(error) => {
                eprintln!("clientidentity/{name}: {error}");
                failed.push(name);
            }
        }
    }
    if args.wait {
        failed.extend(wait(&api, waiting, Duration::from_secs(args.timeout)).await?);
    }
    match failed.as_slice() {
        [] => Ok(()),
        names => Err(format!("not renewed in namespace {namespace:?}: {}", names.join(", "))),
    }
}

async fn names(
    api: &Api<ClientIdentity>,
    namespace: &str,
    args: &RenewArgs,
) -> Result<Vec<String>, String> {
    if !args.names.is_empty() {
        let mut names = args.names.clone();
        names.sort();
        names.dedup();
        return Ok(names);
    }
    let mut params = ListParams::default();
    if let Some(selector) = &args.selector {
        params = params.labels(selector);
    }
    let list = api.list(&params).await.map_err(|error| {
        format!("failed to list ClientIdentities of namespace {namespace:?}: {}", chain(&error))
    })?;
    if list.items.is_empty() {
        return Err(format!("no ClientIdentity found in namespace {namespace:?}"));
    }
    Ok(list.items.iter().map(ResourceExt::name_any).collect())
}

async fn request(api: &Api<ClientIdentity>, name: &str) -> Result<ClientIdentity, String> {
    let now = Timestamp::now().to_string();
    let body = json!({"metadata": {"annotations": {annotation::RENEW_REQUESTED_AT: now}}});
    let params =
        PatchParams { field_manager: Some("countersign-cli".to_owned()), ..Default::default() };
    api.patch(name, &params, &Patch::Merge(&body)).await.map_err(|error| chain(&error))
}

/// Waits until each identity is ready with another certificate than the one given; the names of those
/// that are not.
async fn wait(
    api: &Api<ClientIdentity>,
    mut waiting: BTreeMap<String, Option<String>>,
    limit: Duration,
) -> Result<Vec<String>, String> {
    let end = Instant::now() + limit;
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    while !waiting.is_empty() && Instant::now() < end {
        tokio::time::sleep(POLL).await;
        for (name, before) in waiting.clone() {
            let Some(identity) = api.get_opt(&name).await.map_err(|error| chain(&error))? else {
                return Err(format!("clientidentity/{name} was deleted"));
            };
            let (done, text) = progress(&identity, before.as_deref());
            if told.get(&name) != Some(&text) {
                println!("clientidentity/{name}: {text}");
                told.insert(name.clone(), text);
            }
            if done {
                waiting.remove(&name);
            }
        }
    }
    for name in waiting.keys() {
        eprintln!("clientidentity/{name}: no new certificate within {}s", limit.as_secs());
    }
    Ok(waiting.into_keys().collect())
}

/// Has the identity got what was asked for? And what to say of it.
fn progress(identity: &ClientIdentity, before: Option<&str>) -> (bool, String) {
    let status = identity.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == READY);
    match (ready, status.serial_number) {
        (Some(ready), Some(serial)) if ready.status == "True" && Some(&*serial) != before => {
            let revision = status.revision.unwrap_or_default();
            let end = status.not_after.map(|end| end.0.to_string()).unwrap_or_default();
            (true, format!("renewed: serial {serial}, revision {revision}, valid until {end}"))
        }
        (Some(ready), _) if ready.status != "True" => {
            (false, format!("not ready: {}: {}", ready.reason, ready.message))
        }
        _ => (false, "waiting for the new certificate".to_owned()),
    }
}

fn serial(identity: &ClientIdentity) -> Option<String> {
    identity.status.as_ref().and_then(|status| status.serial_number.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::condition::{Wanted, merge};
    use crate::api::{ClientIdentitySpec, ClientIdentityStatus};

    fn identity(ready: Wanted, serial: &str) -> ClientIdentity {
        let spec: ClientIdentitySpec = serde_json::from_value(json!({
            "authorityRef": {"name": "clients"}, "commonName": "a", "secretName": "a",
        }))
        .expect("a spec");
        let mut identity = ClientIdentity::new("a", spec);
        identity.status = Some(ClientIdentityStatus {
            conditions: merge(&[], &[ready], Some(1), Timestamp::UNIX_EPOCH),
            serial_number: Some(serial.to_owned()),
            revision: Some(2),
            ..ClientIdentityStatus::default()
        });
        identity
    }

    #[test]
    fn only_another_certificate_that_is_ready_is_what_was_asked_for() {
        let ready = || Wanted::yes(READY, "Issued", "ok");
        for (ready, serial, done, words) in [
            (ready(), "0b", true, "renewed: serial 0b, revision 2"),
            (ready(), "0a", false, "waiting"),
            (Wanted::no(READY, "Revoked", "by x"), "0b", false, "not ready: Revoked: by x"),
        ] {
            let (is_done, text) = progress(&identity(ready, serial), Some("0a"));
            assert_eq!(is_done, done, "{text}");
            assert!(text.contains(words), "{text}");
        }
    }
}
