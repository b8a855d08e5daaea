//! `countersign ledger recover`.

use std::io::Read;
use std::time::Duration;

use clap::Args;
use kube::Client;
use tokio::time::timeout;

use super::Which;
use super::books::{self, Book};
use crate::cluster::apply::write;
use crate::cluster::http::ask;
use crate::cluster::ledger::LedgerHandle;
use crate::controller::error::chain as causes;
use crate::pki::crl_import::{SignedCrl, import};
use crate::plan::ledger::recovery::{mend, missing};
use crate::plan::ledger::segment::render;
use crate::plan::ledger::{CaKey, Record};

/// A CRL is fetched within this time.
const LIMIT: Duration = Duration::from_secs(60);
/// A CRL of a million entries has less than half of this.
const LARGEST: u64 = 128 * 1024 * 1024;
/// What was mended is looked at again; it settles within a few rounds.
const ROUNDS: usize = 8;

/// Which ledger, and from which CRL.
#[derive(Args)]
pub(super) struct RecoverArgs {
    /// Name of the ClientAuthority.
    #[arg(long, value_name = "NAME")]
    authority: String,
    /// The generation of its CA; the one that signed the CRL when not given.
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u32>,
    /// Where the newest CRL of the CA is: a file, `-` for standard input, an http:// URL, or `published` for
    /// the one in the cluster. DER or PEM. It must be signed by the CA.
    #[arg(long, value_name = "FILE|-|URL|published")]
    from_crl: String,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Recovers the ledger; fails when the CRL is not the CA's, or something can't be written.
pub(super) async fn recover(
    client: &Client,
    namespace: &str,
    args: &RecoverArgs,
) -> Result<(), String> {
    let (key, crl) = source(client, namespace, args).await?;
    println!("{key}: the CRL of {} has {} entries", crl.this_update, crl.entries.len());
    for _ in 0..ROUNDS {
        let book = read(client, namespace, &key).await?;
        let noted = book.published.as_ref().and_then(|published| published.position);
        let drafts = mend(&book.segments, &book.chain, noted);
        if drafts.is_empty() {
            break;
        }
        for (draft, accepted) in drafts {
            let wanted = render(&key, namespace, &draft);
            let name = wanted.metadata.name.clone().unwrap_or_default();
            if args.dry_run {
                println!("{key}: would accept in ConfigMap {name}: {accepted}");
            } else {
                write(client, &wanted).await.map_err(|error| causes(&error))?;
                println!("{key}: accepted in ConfigMap {name}: {accepted}");
            }
        }
        if args.dry_run {
            break;
        }
    }
    let book = read(client, namespace, &key).await?;
    let records = missing(&book.ledger, &crl.entries);
    let count = records.len();
    if args.dry_run {
        println!("{key}: would record {count} revocation(s) from the CRL");
        return Ok(());
    }
    record(client, namespace, &key, records).await?;
    println!("{key}: recorded {count} revocation(s) from the CRL");
    let book = read(client, namespace, &key).await?;
    match book.trouble() {
        None => {
            println!(
                "{key}: the ledger is whole; the controller publishes CRLs again within seconds"
            );
            Ok(())
        }
        Some(trouble) => Err(format!("{key}: the ledger is still not whole: {trouble}")),
    }
}

async fn record(
    client: &Client,
    namespace: &str,
    key: &CaKey,
    records: Vec<Record>,
) -> Result<(), String> {
    let ledger = LedgerHandle::load(client.clone(), namespace).await;
    let ledger = ledger.map_err(|error| causes(&error))?;
    ledger.record(key, records).await.map_err(|error| causes(&error))
}

/// The ledger of the CA; an empty one when all of it is gone.
async fn read(client: &Client, namespace: &str, key: &CaKey) -> Result<Book, String> {
    let books = books::read(client, namespace, &Which::ALL).await?;
    let of_it = books.into_iter().find(|book| book.key == *key);
    Ok(of_it.unwrap_or_else(|| Book::of(key.clone(), Vec::new(), None)))
}

/// The CRL, and the CA that signed it.
async fn source(
    client: &Client,
    namespace: &str,
    args: &RecoverArgs,
) -> Result<(CaKey, SignedCrl), String> {
    let (authority, from) = (&args.authority, args.from_crl.as_str());
    let mut cas = books::ca_certificates(client, namespace, Some(authority)).await?;
    cas.retain(|key, _| args.generation.is_none_or(|number| number == key.generation));
    if cas.is_empty() {
        return Err(format!(
            "--authority {authority}: neither a Secret nor a ConfigMap in namespace {namespace:?} holds the certificate of its CA"
        ));
    }
    if from == "published" {
        return published(client, namespace, args).await;
    }
    let bytes = match from {
        "-" => {
            let mut bytes = Vec::new();
            let mut input = std::io::stdin().lock().take(LARGEST);
            input.read_to_end(&mut bytes).map_err(|error| format!("--from-crl -: {error}"))?;
            bytes
        }
        url if url.starts_with("http://") => {
            let answer = timeout(LIMIT, ask(url, LARGEST)).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}")));
            let answer = answer.map_err(|error| format!("--from-crl {url}: {error}"))?;
            if !answer.is_ok() {
                return Err(format!("--from-crl {url}: {}", answer.status));
            }
            answer.body
        }
        url if url.starts_with("https://") => {
            return Err(format!(
                "--from-crl {url}: CRLs are fetched over http:// only; download it"
            ));
        }
        file => std::fs::read(file).map_err(|error| format!("--from-crl {file}: {error}"))?,
    };
    let mut refusals = Vec::new();
    for (key, ca) in cas {
        match import(&bytes, &ca) {
            Ok(crl) => return Ok((key, crl)),
            Err(error) => refusals.push(format!("generation {}: {error}", key.generation)),
        }
    }
    Err(format!("--from-crl {from}: not of ClientAuthority {authority:?}: {}", refusals.join("; ")))
}

/// The published CRL of the generation that is asked for; of the only one when none is.
async fn published(
    client: &Client,
    namespace: &str,
    args: &RecoverArgs,
) -> Result<(CaKey, SignedCrl), String> {
    let which = Which { authority: Some(args.authority.clone()), generation: args.generation };
    let books = books::read(client, namespace, &which).await?;
    let mut found = books.into_iter().filter_map(|book| Some((book.key, book.published?)));
    match (found.next(), found.next()) {
        (Some((key, published)), None) => match published.crl {
            Ok(crl) => Ok((key, crl)),
            Err(why) => Err(format!("--from-crl published: the CRL of {key} can't be used: {why}")),
        },
        (None, _) => Err("--from-crl published: no CRL is published".to_owned()),
        (Some(_), Some(_)) => {
            Err("--from-crl published: several generations have one; add --generation".to_owned())
        }
    }
}
