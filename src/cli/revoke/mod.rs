//! `countersign revoke`: revokes certificates of one identity or of thousands, and waits until it is so.
//!
//! Each identity gets a `CertificateRevocation` of its own, with a name that follows from what was asked
//! for: whoever is interrupted repeats the command, and nothing is asked for twice.

mod select;
mod wait;

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write, stdin, stdout};

use clap::{ArgGroup, Args, ValueEnum};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use self::select::{Wanted, wanted};
use self::wait::{until, wait};
use super::progress::{Progress, table};
use crate::api::CertificateRevocation;
use crate::api::duration;
use crate::api::revocation::RevocationReason;
use crate::cluster::Key;
use crate::controller::error::chain;

/// As many failures are told one by one.
const TOLD: usize = 20;

/// Which certificates are revoked, and how.
#[derive(Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true)
    .args(["identity", "serial", "fingerprint", "selector", "authority", "issued_before"]))]
pub(super) struct RevokeArgs {
    /// Names of ClientIdentities.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["serial", "fingerprint", "selector", "authority"])]
    identity: Vec<String>,
    /// Serial numbers, hex. In the operator's namespace they reach every namespace.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["selector", "authority", "issued_before", "certificates"])]
    serial: Vec<String>,
    /// SHA-256 fingerprints, hex.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["selector", "authority", "issued_before", "certificates"])]
    fingerprint: Vec<String>,
    /// ClientIdentities with these labels, such as `team=blue`.
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// ClientIdentities of this ClientAuthority.
    #[arg(long, value_name = "NAME")]
    authority: Option<String>,
    /// Only certificates that were issued before this time, such as 2026-05-01T10:00:00Z.
    #[arg(long, value_name = "TIME")]
    issued_before: Option<Timestamp>,
    /// Which certificates of each identity. Without --issued-before and --renew, `all` also keeps the
    /// identity from getting another one.
    #[arg(long, value_enum)]
    certificates: Option<Which>,
    /// The namespace; that of the current context when not given.
    #[arg(long, short)]
    namespace: Option<String>,
    /// ClientIdentities of all namespaces.
    #[arg(long, short = 'A', conflicts_with_all = ["namespace", "identity", "serial", "fingerprint"])]
    all_namespaces: bool,
    /// Why, such as `KeyCompromise`.
    #[arg(long, value_parser = reason)]
    reason: Option<RevocationReason>,
    /// Have new certificates issued first, and revoke the old ones once these are in place.
    #[arg(long)]
    renew: bool,
    /// How long a new certificate is waited for before the old ones are revoked all the same: 10s to 24h.
    #[arg(long, value_name = "DURATION", requires = "renew")]
    renew_timeout: Option<duration::Duration>,
    /// Name of the request. The same request under the same name is made once, however often it is asked
    /// for.
    #[arg(long, default_value = "revoke", value_name = "NAME")]
    name: String,
    /// Show what would be revoked.
    #[arg(long)]
    dry_run: bool,
    /// Don't ask.
    #[arg(long, short)]
    yes: bool,
    /// Wait until the certificates are refused wherever their authority is trusted, not only until they
    /// stand in the CRL.
    #[arg(long)]
    wait_enforced: bool,
    /// Give up waiting after so many seconds.
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    timeout: u64,
    /// As many requests are under way at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
}

/// Which certificates of an identity.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    All,
    Current,
    Superseded,
}

fn reason(text: &str) -> Result<RevocationReason, String> {
    serde_json::from_value(text.into()).map_err(|_| {
        "KeyCompromise, AffiliationChanged, Superseded, CessationOfOperation or PrivilegeWithdrawn"
            .to_owned()
    })
}

/// Revokes; fails when something could not be revoked, or was not in time.
pub(super) fn run(args: &RevokeArgs) -> Result<(), String> {
    super::with_client(async |client, namespace| {
        let namespace = args.namespace.clone().unwrap_or(namespace);
        revoke(client, &namespace, args).await
    })
}

async fn revoke(client: Client, namespace: &str, args: &RevokeArgs) -> Result<(), String> {
    let wanted = wanted(&client, namespace, args).await?;
    if args.dry_run {
        let rows: Vec<_> = wanted.iter().map(|wanted| wanted.row.clone()).collect();
        print!("{}", table(["NAMESPACE", "NAME", "AUTHORITY", "CERTIFICATES"], &rows));
        println!("{}: nothing is revoked, since this is a dry run", summary(&wanted, args));
        return Ok(());
    }
    confirm(&summary(&wanted, args), args.yes)?;
    let (requested, mut failed) = request(&client, wanted, args).await;
    let outcome = wait(&client, requested, args).await?;
    failed.extend(outcome.failed);
    let counts = [
        (until(args), outcome.done),
        ("nothing to revoke", outcome.nothing),
        ("failed", failed.len()),
    ];
    let rows = counts.map(|(what, count)| [what.to_owned(), count.to_string()]);
    print!("{}", table(["RESULT", "COUNT"], &rows));
    for (key, why) in failed.iter().take(TOLD) {
        eprintln!("certificaterevocation/{}: {why}", key.name);
    }
    match failed.len() {
        0 => Ok(()),
        count => Err(format!("{count} request(s) failed; repeat the command to go on with them")),
    }
}

fn summary(wanted: &[Wanted], args: &RevokeArgs) -> String {
    let namespaces: BTreeSet<&String> = wanted.iter().map(|wanted| &wanted.row[0]).collect();
    let spec = &select::spec(args);
    let which = spec.certificates.unwrap_or_default();
    let what = if args.serial.is_empty() && args.fingerprint.is_empty() {
        let before = args.issued_before.map(|end| format!(" that were issued before {end}"));
        format!(
            "certificates ({which:?}){} of {} ClientIdentit(ies)",
            before.unwrap_or_default(),
            wanted.len()
        )
    } else {
        format!("{} certificate(s)", wanted.len())
    };
    let reason = args.reason.map_or("without a reason".to_owned(), |r| format!("reason {r:?}"));
    let renew = if args.renew { ", once new ones are in place" } else { "" };
    format!("{what} in {} namespace(s), {reason}{renew}", namespaces.len())
}

/// Asks whoever sits there; where nobody does, only `--yes` goes on.
fn confirm(what: &str, yes: bool) -> Result<(), String> {
    println!("revoking {what}");
    if yes {
        return Ok(());
    }
    if !stdin().is_terminal() {
        return Err("there is no terminal to ask at: nothing is revoked without --yes".to_owned());
    }
    print!("This can't be taken back. Type yes to go on: ");
    let mut answer = String::new();
    stdout().flush().and_then(|()| stdin().read_line(&mut answer)).map_err(|e| e.to_string())?;
    if answer.trim() == "yes" { Ok(()) } else { Err("nothing was revoked".to_owned()) }
}

type Failed = Vec<(Key, String)>;

/// Creates the objects; those that stand there already are as good. The keys of what was asked for, and
/// what failed.
async fn request(
    client: &Client,
    wanted: Vec<Wanted>,
    args: &RevokeArgs,
) -> (BTreeSet<Key>, Failed) {
    let mut progress = Progress::new("requested", wanted.len());
    let (mut requested, mut failed, mut earlier) = (BTreeSet::new(), Vec::new(), 0);
    let mut answers = stream::iter(wanted.into_iter().map(|wanted| async move {
        let key = Key::of(&wanted.object);
        let api: Api<CertificateRevocation> = Api::namespaced(client.clone(), &key.namespace);
        let params = PostParams {
            field_manager: Some("countersign-cli".to_owned()),
            ..PostParams::default()
        };
        let answer = match api.create(&params, &wanted.object).await {
            Ok(_) => Ok(false),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(true),
            Err(error) => Err(chain(&error)),
        };
        (key, answer)
    }))
    .buffer_unordered(args.concurrency.into());
    while let Some((key, answer)) = answers.next().await {
        match answer {
            Ok(known) => {
                earlier += usize::from(known);
                requested.insert(key);
            }
            Err(why) => failed.push((key, why)),
        }
        progress.set(requested.len() + failed.len());
    }
    progress.end();
    if earlier > 0 {
        println!(
            "{earlier} of them were asked for earlier, and are not asked for again; what was issued since is another request: give it another --name"
        );
    }
    (requested, failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: RevokeArgs,
    }

    pub(super) fn parse(arguments: &[&str]) -> Result<RevokeArgs, String> {
        let all = std::iter::once(&"revoke").chain(arguments);
        Command::try_parse_from(all).map(|command| command.args).map_err(|e| e.to_string())
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        for arguments in [
            &[][..],
            &["--renew"],
            &["--identity", "a", "--serial", "0a"],
            &["--identity", "a", "-A"],
            &["--serial", "0a", "--issued-before", "2026-05-01T10:00:00Z"],
            &["--serial", "0a", "--certificates", "current"],
            &["--identity", "a", "--renew-timeout", "1m"],
            &["--identity", "a", "--reason", "Boredom"],
            &["--identity", "a", "--issued-before", "yesterday"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
        for arguments in [
            &["--identity", "a", "--identity", "b", "--certificates", "current"][..],
            &["--selector", "team=blue", "-A", "--authority", "clients", "--renew"],
            &["--issued-before", "2026-05-01T10:00:00Z", "--reason", "KeyCompromise"],
            &["--serial", "0a:0b", "--fingerprint", "0a", "--renew", "--renew-timeout", "1m"],
        ] {
            assert_eq!(parse(arguments).err(), None, "{arguments:?}");
        }
    }
}
