//! `countersign revoke`: revokes certificates of one identity or of thousands, and waits until it is so.
//!
//! Each identity gets a `CertificateRevocation` of its own, with a name that follows from what was asked
//! for: whoever is interrupted repeats the command, and nothing is asked for twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write, stdin, stdout};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use clap::{ArgGroup, Args, ValueEnum};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use super::progress::{Progress, table};
use crate::api::condition::{ENFORCED, PUBLISHED, RECORDED, is_true};
use crate::api::duration;
use crate::api::lifecycle::CertificateRevision;
use crate::api::revocation::{Certificates, RevocationReason};
use crate::api::{
    CertificateRevocation, CertificateRevocationSpec, ClientIdentity, LocalReference, label,
};
use crate::cluster::Key;
use crate::controller::error::chain;

/// How often the revocations that are waited for are read.
const POLL: Duration = Duration::from_millis(500);
/// As many objects are read by one request.
const PAGE: u32 = 500;
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

/// One request to be made.
struct Wanted {
    object: CertificateRevocation,
    /// What is shown of it.
    row: [String; 4],
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

/// What is waited for.
fn until(args: &RevokeArgs) -> &'static str {
    if args.wait_enforced { "enforced" } else { "published" }
}

/// What is to be asked for.
async fn wanted(
    client: &Client,
    namespace: &str,
    args: &RevokeArgs,
) -> Result<Vec<Wanted>, String> {
    let mut wanted = Vec::new();
    for serial in &args.serial {
        let spec = CertificateRevocationSpec { serial_number: Some(serial.clone()), ..spec(args) };
        wanted.push(one(namespace, serial, spec, args));
    }
    for text in &args.fingerprint {
        let spec = CertificateRevocationSpec { fingerprint: Some(text.clone()), ..spec(args) };
        wanted.push(one(namespace, text, spec, args));
    }
    if !wanted.is_empty() {
        return Ok(wanted);
    }
    for identity in identities(client, namespace, args).await? {
        let name = identity.name_any();
        let spec = CertificateRevocationSpec {
            identity_ref: Some(LocalReference { name: name.clone() }),
            ..spec(args)
        };
        let namespace = identity.namespace().unwrap_or_default();
        let history = identity.status.map(|status| status.revision_history).unwrap_or_default();
        let count = history.iter().filter(|known| is_concerned(known, &spec)).count();
        let authority = identity.spec.authority_ref.name;
        let uid = identity.metadata.uid.unwrap_or_default();
        wanted.push(Wanted {
            object: object(&namespace, &name, &uid, spec, args),
            row: [namespace, name, authority, count.to_string()],
        });
    }
    // The ledger knows identities that are gone.
    let known: BTreeSet<String> = wanted.iter().map(|wanted| wanted.row[1].clone()).collect();
    for name in args.identity.iter().filter(|name| !known.contains(*name)) {
        let identity_ref = Some(LocalReference { name: name.clone() });
        let spec = CertificateRevocationSpec { identity_ref, ..spec(args) };
        wanted.push(one(namespace, name, spec, args));
    }
    if wanted.is_empty() {
        return Err("no ClientIdentity found".to_owned());
    }
    Ok(wanted)
}

fn one(namespace: &str, name: &str, spec: CertificateRevocationSpec, args: &RevokeArgs) -> Wanted {
    let row = [namespace, name, "", "?"].map(str::to_owned);
    let plain: String = name.chars().filter(|c| *c != ':').flat_map(char::to_lowercase).collect();
    Wanted { object: object(namespace, &plain, "", spec, args), row }
}

fn spec(args: &RevokeArgs) -> CertificateRevocationSpec {
    CertificateRevocationSpec {
        identity_ref: None,
        certificates: args.certificates.map(|which| match which {
            Which::All => Certificates::All,
            Which::Current => Certificates::Current,
            Which::Superseded => Certificates::Superseded,
        }),
        issued_before: args.issued_before.map(Time),
        serial_number: None,
        fingerprint: None,
        renew: args.renew,
        renew_timeout: args.renew_timeout,
        reason: args.reason,
    }
}

/// Would this certificate be revoked? As status tells it; the ledger decides.
fn is_concerned(known: &CertificateRevision, spec: &CertificateRevocationSpec) -> bool {
    let state = match spec.certificates.unwrap_or_default() {
        Certificates::All => known.state != "Revoked",
        Certificates::Current => known.state == "Current",
        Certificates::Superseded => known.state == "Superseded",
    };
    let end = spec.issued_before.as_ref().map(|end| end.0);
    state && end.is_none_or(|end| known.issuance_time.as_ref().is_none_or(|time| time.0 < end))
}

/// The object that asks for it. Its name follows from what is asked for, and of which identity.
fn object(
    namespace: &str,
    subject: &str,
    uid: &str,
    spec: CertificateRevocationSpec,
    args: &RevokeArgs,
) -> CertificateRevocation {
    let json = serde_json::to_string(&spec).expect("a spec has a JSON form");
    let subject: String = subject.chars().take(100).collect();
    let subject = subject.trim_end_matches(['-', '.']);
    let name = format!("{}-{subject}-{}", args.name, short_hash(&format!("{uid} {json}")));
    let mut object = CertificateRevocation::new(&name, spec);
    object.metadata = ObjectMeta {
        name: Some(name),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([(label::REQUEST.to_owned(), request_label(args))])),
        ..ObjectMeta::default()
    };
    object
}

/// The label that all objects of one request share: they are found by it.
fn request_label(args: &RevokeArgs) -> String {
    let json = serde_json::to_string(&spec(args)).expect("a spec has a JSON form");
    short_hash(&format!("{} {json}", args.name))
}

fn short_hash(text: &str) -> String {
    let digest = digest(&SHA256, text.as_bytes());
    digest.as_ref().iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

async fn identities(
    client: &Client,
    namespace: &str,
    args: &RevokeArgs,
) -> Result<Vec<ClientIdentity>, String> {
    let mut found = list(client, scope(namespace, args), args.selector.as_deref()).await?;
    found.retain(|identity: &ClientIdentity| {
        let names = &args.identity;
        let authority = &identity.spec.authority_ref.name;
        (names.is_empty() || names.contains(&identity.name_any()))
            && args.authority.as_ref().is_none_or(|wanted| wanted == authority)
    });
    found.sort_by_key(|identity| Key::of(identity));
    Ok(found)
}

fn scope<'a>(namespace: &'a str, args: &RevokeArgs) -> Option<&'a str> {
    Some(namespace).filter(|_| !args.all_namespaces)
}

/// Reads all objects of a kind, page by page.
async fn list<K>(
    client: &Client,
    namespace: Option<&str>,
    selector: Option<&str>,
) -> Result<Vec<K>, String>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector = selector.map(Into::into);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|error| {
            format!("failed to list objects of kind {}: {}", K::kind(&()), chain(&error))
        })?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

fn summary(wanted: &[Wanted], args: &RevokeArgs) -> String {
    let namespaces: BTreeSet<&String> = wanted.iter().map(|wanted| &wanted.row[0]).collect();
    let spec = &spec(args);
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

/// What came of the requests.
struct Outcome {
    done: usize,
    nothing: usize,
    failed: Failed,
}

async fn wait(
    client: &Client,
    mut waiting: BTreeSet<Key>,
    args: &RevokeArgs,
) -> Result<Outcome, String> {
    let (what, total) = (until(args), waiting.len());
    let mut progress = Progress::new(what, total);
    let end = Instant::now() + Duration::from_secs(args.timeout);
    let selector = format!("{}={}", label::REQUEST, request_label(args));
    let bulk = args.identity.is_empty() && args.serial.is_empty() && args.fingerprint.is_empty();
    let mut outcome = Outcome { done: 0, nothing: 0, failed: Vec::new() };
    let mut last: BTreeMap<Key, String> = BTreeMap::new();
    while !waiting.is_empty() && Instant::now() < end {
        // Reading thousands again and again would slow down what is waited for.
        tokio::time::sleep(POLL + Duration::from_millis(waiting.len() as u64)).await;
        let namespaces: BTreeSet<String> =
            waiting.iter().map(|key| key.namespace.clone()).collect();
        let scopes = if args.all_namespaces {
            vec![None]
        } else {
            namespaces.iter().map(|namespace| Some(namespace.as_str())).collect()
        };
        for scope in scopes {
            let found: Vec<CertificateRevocation> = list(client, scope, Some(&selector)).await?;
            for revocation in found {
                let key = Key::of(&revocation);
                if !waiting.contains(&key) {
                    continue;
                }
                match state(&revocation, args.wait_enforced) {
                    State::Done => outcome.done += 1,
                    State::Nothing(_) if bulk => outcome.nothing += 1,
                    State::Nothing(why) | State::Failed(why) => {
                        outcome.failed.push((key.clone(), why));
                    }
                    State::Waiting(why) => {
                        last.insert(key, why);
                        continue;
                    }
                }
                waiting.remove(&key);
            }
        }
        progress.set(total - waiting.len());
    }
    progress.end();
    for key in waiting {
        let why = last.remove(&key).unwrap_or_else(|| "the controller has not seen it".to_owned());
        outcome.failed.push((key, format!("not {what} within {}s: {why}", args.timeout)));
    }
    Ok(outcome)
}

/// How far a revocation is.
#[derive(Debug, PartialEq)]
enum State {
    Done,
    Waiting(String),
    Nothing(String),
    Failed(String),
}

fn state(revocation: &CertificateRevocation, wait_enforced: bool) -> State {
    let conditions =
        revocation.status.as_ref().map(|status| &*status.conditions).unwrap_or_default();
    let find = |type_| conditions.iter().find(|condition| condition.type_ == type_);
    if is_true(conditions, PUBLISHED) && (!wait_enforced || is_true(conditions, ENFORCED)) {
        return State::Done;
    }
    let recorded = find(RECORDED);
    let told = |condition: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>| {
        condition.map_or("the controller has not seen it".to_owned(), |condition| {
            format!("{}: {}", condition.reason, condition.message)
        })
    };
    match recorded {
        Some(found) if found.status != "True" => match found.reason.as_str() {
            "Pending" | "WaitingForRenewal" => State::Waiting(told(recorded)),
            "NotFound" => State::Nothing(told(recorded)),
            _ => State::Failed(told(recorded)),
        },
        // On hold, with nothing to publish.
        Some(_) if find(PUBLISHED).is_none() => State::Done,
        Some(_) if is_true(conditions, PUBLISHED) => State::Waiting(told(find(ENFORCED))),
        Some(_) => State::Waiting(told(find(PUBLISHED))),
        None => State::Waiting(told(None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CertificateRevocationStatus;
    use crate::api::condition::{Wanted, merge};
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: RevokeArgs,
    }

    fn parse(arguments: &[&str]) -> Result<RevokeArgs, String> {
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

    #[test]
    fn the_same_request_has_the_same_name_and_another_one_has_another() {
        let name = |arguments: &[&str], uid: &str| {
            let args = parse(arguments).unwrap();
            object("team", "laptop", uid, spec(&args), &args).name_any()
        };
        let base = ["--identity", "laptop", "--reason", "KeyCompromise"];
        let first = name(&base, "uid-1");
        assert_eq!(first, name(&base, "uid-1"));
        assert!(first.starts_with("revoke-laptop-"), "{first}");
        let mut others = vec![name(&base, "uid-2"), name(&base[..2], "uid-1")];
        others.push(name(&[&base[..], &["--renew"]].concat(), "uid-1"));
        others.push(name(&[&base[..], &["--name", "again"]].concat(), "uid-1"));
        assert!(!others.contains(&first), "{others:?}");
        let args = parse(&["--serial", "0A:0B"]).unwrap();
        let of_serial = one("team", "0A:0B", spec(&args), &args).object.name_any();
        assert!(of_serial.starts_with("revoke-0a0b-"), "{of_serial}");
    }

    #[test]
    fn how_far_a_revocation_is() {
        let with = |conditions: &[Wanted]| {
            let args = parse(&["--serial", "0a"]).unwrap();
            let mut object = one("team", "0a", spec(&args), &args).object;
            object.status = Some(CertificateRevocationStatus {
                conditions: merge(&[], conditions, Some(1), Timestamp::UNIX_EPOCH),
                ..Default::default()
            });
            object
        };
        let recorded = Wanted::yes(RECORDED, "Recorded", "");
        let published = Wanted::yes(PUBLISHED, "Published", "");
        let late = Wanted::no(ENFORCED, "ServersNotObserved", "why");
        let all = [recorded.clone(), published, late];
        assert_eq!(state(&with(&all), false), State::Done);
        let waiting = State::Waiting("ServersNotObserved: why".into());
        assert_eq!(state(&with(&all), true), waiting);
        let pending = Wanted::no(PUBLISHED, "Pending", "soon");
        let waiting = State::Waiting("Pending: soon".into());
        assert_eq!(state(&with(&[recorded, pending]), false), waiting);
        for (reason, expected) in [
            ("WaitingForRenewal", State::Waiting("WaitingForRenewal: x".into())),
            ("NotFound", State::Nothing("NotFound: x".into())),
            ("OtherNamespace", State::Failed("OtherNamespace: x".into())),
        ] {
            assert_eq!(state(&with(&[Wanted::no(RECORDED, reason, "x")]), false), expected);
        }
        assert!(matches!(state(&with(&[]), false), State::Waiting(_)));
    }
}
