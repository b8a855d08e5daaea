//! `countersign rotate`: asks for another CA, and waits until it signs when told to.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use crate::api::authority::CaState;
use crate::api::condition::ROTATING;
use crate::api::{ClientAuthority, annotation};
use crate::controller::error::chain;

/// How often the authority that is waited for is read.
const POLL: Duration = Duration::from_millis(500);

/// Which authority gets another CA.
#[derive(Args)]
pub(super) struct RotateArgs {
    /// Name of a ClientAuthority.
    #[arg(value_name = "NAME")]
    name: String,
    /// Wait until the new CA signs.
    #[arg(long)]
    wait: bool,
    /// Give up waiting after so many seconds.
    #[arg(long, default_value_t = 900, value_name = "SECONDS", requires = "wait")]
    timeout: u64,
}

/// Asks for the rotation; fails when it could not be asked for, or did not come in time.
pub(super) fn run(args: &RotateArgs) -> Result<(), String> {
    super::with_client(|client, _| rotate(client, args))
}

async fn rotate(client: Client, args: &RotateArgs) -> Result<(), String> {
    let api: Api<ClientAuthority> = Api::all(client);
    let name = &args.name;
    let now = Timestamp::now().to_string();
    let body = json!({"metadata": {"annotations": {annotation::ROTATE_REQUESTED_AT: now}}});
    let params =
        PatchParams { field_manager: Some("countersign-cli".to_owned()), ..Default::default() };
    let before = api
        .patch(name, &params, &Patch::Merge(&body))
        .await
        .map_err(|error| format!("clientauthority/{name}: {}", chain(&error)))?;
    println!("clientauthority/{name}: rotation requested");
    if !args.wait {
        return Ok(());
    }
    let before = active(&before);
    let end = Instant::now() + Duration::from_secs(args.timeout);
    let mut told = String::new();
    while Instant::now() < end {
        tokio::time::sleep(POLL).await;
        let authority = api.get(name).await.map_err(|error| chain(&error))?;
        let text = progress(&authority);
        if text != told {
            println!("clientauthority/{name}: {text}");
            told = text;
        }
        if active(&authority) > before {
            return Ok(());
        }
    }
    Err(format!("clientauthority/{name}: no other CA signs within {}s", args.timeout))
}

/// The number of the CA that signs.
fn active(authority: &ClientAuthority) -> Option<i64> {
    let generations = authority.status.iter().flat_map(|status| &status.generations);
    generations.filter(|one| one.state == CaState::Active).map(|one| one.number).max()
}

fn progress(authority: &ClientAuthority) -> String {
    let mut conditions = authority.status.iter().flat_map(|status| &status.conditions);
    conditions
        .find(|condition| condition.type_ == ROTATING)
        .map_or("waiting for the controller".to_owned(), |condition| condition.message.clone())
}
