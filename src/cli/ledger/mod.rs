//! `countersign ledger`: looks into what was signed and revoked, checks that it is whole, and lets it go on
//! when it is not.

mod books;
mod recover;
mod table;
mod tell;
mod verify;

use clap::{Args, Subcommand, ValueEnum};

/// Looks into the ledger: what was signed and what was revoked.
#[derive(Args)]
pub(super) struct LedgerArgs {
    /// The operator's namespace, where the ledger is kept.
    #[arg(long, short, env = "POD_NAMESPACE", default_value = "countersign", global = true)]
    namespace: String,
    #[command(subcommand)]
    command: LedgerCommand,
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// How much is recorded for each CA, and whether it is whole.
    Show {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Find certificates, also such whose identity is gone.
    Find {
        #[command(flatten)]
        by: FindArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print every record as JSON, one on a line, in the order in which they were recorded.
    Export {
        #[command(flatten)]
        which: Which,
    },
    /// Check that every record can be read, that none is missing, and that every serial of the published
    /// CRLs is recorded as revoked; fails when not.
    Verify {
        #[command(flatten)]
        which: Which,
    },
    /// Let a ledger that lost records go on: take the revocations that it lacks from a CRL, and accept that
    /// the rest is lost. Restoring the ledger's ConfigMaps from a backup, where there is one, comes first.
    Recover(recover::RecoverArgs),
}

/// Which CAs.
#[derive(Args)]
struct Which {
    /// Of this ClientAuthority only.
    #[arg(long, value_name = "NAME")]
    authority: Option<String>,
    /// Of this generation of its CA only.
    #[arg(long, value_name = "NUMBER", requires = "authority")]
    generation: Option<u32>,
}

impl Which {
    /// All CAs.
    const ALL: Self = Self { authority: None, generation: None };
}

/// What is known of a certificate. Together they must all hold.
#[derive(Args)]
#[group(required = true, multiple = true)]
struct FindArgs {
    /// Its serial number, in hex; colons may separate the octets.
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Its SHA-256 fingerprint, in hex; colons may separate the octets.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// The ClientIdentity that it was issued to.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    identity: Option<String>,
    /// A part of its subject, such as `CN=laptop-7` (RFC 4514: the common name comes first).
    #[arg(long, value_name = "TEXT")]
    subject: Option<String>,
}

#[derive(Args)]
struct OutputArgs {
    /// How it is printed.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people.
    #[default]
    Table,
    /// JSON for programs.
    Json,
}

/// Runs the command; fails when something is wrong with the ledger, or nothing was found.
pub(super) fn run(args: &LedgerArgs) -> Result<(), String> {
    super::with_client(async |client, _| {
        let namespace = &args.namespace;
        match &args.command {
            LedgerCommand::Show { which, output } => {
                tell::show(&books::read(&client, namespace, which).await?, output.output)
            }
            LedgerCommand::Find { by, output } => {
                let books = books::read(&client, namespace, &Which::ALL).await?;
                tell::find(&books, by, output.output)
            }
            LedgerCommand::Export { which } => {
                tell::export(&books::read(&client, namespace, which).await?)
            }
            LedgerCommand::Verify { which } => {
                verify::verify(&books::read(&client, namespace, which).await?)
            }
            LedgerCommand::Recover(args) => recover::recover(&client, namespace, args).await,
        }
    })
}
