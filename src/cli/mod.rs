//! The command line.

mod check;
pub mod crds;
mod ledger;
mod progress;
mod renew;
mod revoke;
mod rotate;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use jiff::SignedDuration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::cluster::client::Clients;
use crate::controller::error::chain;
use crate::metrics::Metrics;
use crate::plan::destination::Network;
use crate::serve::health;
use crate::telemetry::{self, LogFormat};
use crate::token::{Token, TokenConfig};
use crate::{api, controller, serve};

/// Client certificates for Kubernetes: issue, rotate, revoke, publish CRLs, configure ingress trust.
#[derive(Parser)]
#[command(name = "countersign", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller: it keeps certificates, CRLs and the data planes' trust.
    Controller(ControllerArgs),
    /// Run the server: CRLs over HTTP, and the gate that enforces revocation on data planes without CRL support.
    Serve(ServeArgs),
    /// Ask endpoints over plain HTTP, such as the probes; fails unless every one answers 200.
    Check {
        /// An endpoint to ask.
        #[arg(long = "url", required = true, value_name = "URL")]
        urls: Vec<String>,
    },
    /// Have new certificates issued now, whatever the age of the present ones.
    Renew(renew::RenewArgs),
    /// Revoke certificates, of one identity or of many, and wait until it is so.
    Revoke(Box<revoke::RevokeArgs>),
    /// Have another CA take over from the present one of an authority.
    Rotate(rotate::RotateArgs),
    /// Look into the ledger of what was signed and revoked, check it, and recover it.
    Ledger(ledger::LedgerArgs),
    /// Print the custom resource definitions, or write one file each into a folder.
    Crds {
        /// The folder; standard output when not given.
        #[arg(long, value_name = "FOLDER")]
        output: Option<PathBuf>,
    },
}

#[derive(Args)]
struct ProcessArgs {
    /// Log filter, such as `info` or `info,countersign=debug`.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// Log format.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// Where metrics and probes are served.
    #[arg(long, env = "HEALTH_LISTEN", default_value = "0.0.0.0:9402", value_name = "ADDRESS")]
    health_listen: SocketAddr,
    /// The operator's namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "countersign")]
    namespace: String,
}

#[derive(Args)]
struct ControllerArgs {
    #[command(flatten)]
    process: ProcessArgs,
    /// Look after these namespaces only; after all when not given.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// Name of this replica in the lease.
    #[arg(long, env = "POD_NAME", default_value = "countersign")]
    replica: String,
    /// Name of the lease that replicas compete for. Replicas with another one work at the same time: every
    /// write is safe when two do, but both do all the work. For tests of just that.
    #[arg(long, default_value = "countersign-controller", value_name = "NAME")]
    lease_name: String,
    /// Seconds after which a silent leader is replaced.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=3600))]
    lease_seconds: u64,
    /// How many identities are worked on at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Base URL of the gate, as data planes reach it.
    #[arg(
        long,
        env = "GATE_URL",
        default_value = "http://countersign-server.countersign.svc:8081"
    )]
    gate_url: String,
    /// Base URL of the gate over TLS: data planes that can show a certificate ask it there, Traefik so far.
    #[arg(long, env = "GATE_TLS_URL", value_name = "URL", requires = "gate_callers", value_parser = https_url)]
    gate_tls_url: Option<String>,
    /// Name of the ClientAuthority of these certificates, and of the gate's own.
    #[arg(long, env = "GATE_CALLERS", value_name = "AUTHORITY", requires = "gate_tls_url", value_parser = authority_name)]
    gate_callers: Option<String>,
    /// Run the canaries that ClientTrusts ask for.
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "true|false")]
    canaries: bool,
    /// Canaries connect to these networks only, such as 10.0.0.0/8. When not given: everywhere but to loopback and link-local
    /// addresses.
    #[arg(long, value_delimiter = ',', value_name = "NETWORK")]
    canary_networks: Vec<controller::canary::Network>,
    /// The servers' CRL port, under a name that has an address for each of them: they are asked which CRLs
    /// they answer by. Without it no revocation is told to be enforced by the gate.
    #[arg(long, env = "CRL_SERVERS", value_name = "HOST:PORT")]
    crl_servers: Option<String>,
    #[command(flatten)]
    token: TokenArgs,
}

/// The token for authorities with `custody: PKCS11`.
#[derive(Args)]
struct TokenArgs {
    /// PKCS #11 module, a shared library: CA keys are made and kept in a token.
    #[arg(
        long,
        env = "PKCS11_MODULE",
        value_name = "FILE",
        requires_all = ["pkcs11_token_label", "pkcs11_pin_file"]
    )]
    pkcs11_module: Option<PathBuf>,
    /// Label of the token.
    #[arg(long, env = "PKCS11_TOKEN_LABEL", value_name = "LABEL", requires = "pkcs11_module")]
    pkcs11_token_label: Option<String>,
    /// File that holds the PIN of the token's user; read at each login.
    #[arg(long, env = "PKCS11_PIN_FILE", value_name = "FILE", requires = "pkcs11_module")]
    pkcs11_pin_file: Option<PathBuf>,
}

#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    process: ProcessArgs,
    /// Where CRLs are served.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    crl_listen: SocketAddr,
    /// Where the gate answers whoever asks, over plain HTTP; `none` when callers ask over TLS alone.
    #[arg(long, default_value = "0.0.0.0:8081", value_name = "ADDRESS|none")]
    gate_listen: Address,
    /// Where the gate answers over TLS callers who show a certificate.
    #[arg(long, value_name = "ADDRESS", requires_all = ["gate_tls", "gate_callers"])]
    gate_tls_listen: Option<SocketAddr>,
    /// Folder with the gate's certificate and key, tls.crt and tls.key. They may come later, and are read again when
    /// they change.
    #[arg(long, value_name = "FOLDER", requires = "gate_tls_listen")]
    gate_tls: Option<PathBuf>,
    /// Name of the ClientAuthority whose certificates these callers show.
    #[arg(long, value_name = "AUTHORITY", requires = "gate_tls_listen", value_parser = authority_name)]
    gate_callers: Option<String>,
    /// For so long the gate answers by CRLs of which the API server does not say that they are still the published
    /// ones; then it refuses everybody. At least 5m: the API server says a word a minute. A CRL is never answered
    /// by past its nextUpdate.
    #[arg(
        long,
        env = "GATE_MAX_STALENESS",
        default_value = "24h",
        value_parser = staleness,
        value_name = "DURATION"
    )]
    gate_max_staleness: SignedDuration,
    /// The services that spec.secondFactor.url of ClientTrusts names are asked in these networks only, such as
    /// 10.0.0.0/8. When not given: everywhere but at loopback and link-local addresses.
    #[arg(long, env = "SECOND_FACTOR_NETWORKS", value_delimiter = ',', value_name = "NETWORK")]
    second_factor_networks: Vec<Network>,
    /// Folder for copies of the last good CRLs: with it a restart while the API server is down serves on.
    #[arg(long, env = "CRL_CACHE", value_name = "FOLDER")]
    crl_cache: Option<PathBuf>,
}

/// Where to listen, if anywhere.
#[derive(Clone, Copy, Debug)]
struct Address(Option<SocketAddr>);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|error| format!("{error}, nor \"none\""));
        address.map(|address| Self(Some(address)))
    }
}

/// An https:// URL without anything behind host and port, but for a slash.
fn https_url(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
    let good = |host: &&str| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    let host = host.filter(good).ok_or("it must be of the form https://<host>:<port>")?;
    Ok(format!("https://{host}"))
}

/// The name of a ClientAuthority, which is a DNS label.
fn authority_name(text: &str) -> Result<String, String> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = (1..=63).contains(&text.len()) && text.chars().all(letters);
    good.then(|| text.to_owned()).ok_or_else(|| "it is no name of a ClientAuthority".to_owned())
}

/// A dead watch is noticed after three minutes and begun anew: a shorter bound would shut out everybody for that.
fn staleness(text: &str) -> Result<SignedDuration, String> {
    let bound: api::duration::Duration =
        text.parse().map_err(|error: api::duration::ParseDurationError| error.to_string())?;
    if bound.as_secs() < 300 {
        return Err("it must be 5m or more".to_owned());
    }
    Ok(SignedDuration::from_secs(bound.as_secs()))
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    // rustls refuses to guess when features bring more than one provider into a build.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let result = match Cli::parse().command {
        Command::Controller(args) => run_controller(args),
        Command::Serve(args) => run_server(args),
        Command::Check { urls } => check::run(&urls),
        Command::Renew(args) => renew::run(&args),
        Command::Revoke(args) => revoke::run(&args),
        Command::Rotate(args) => rotate::run(&args),
        Command::Ledger(args) => ledger::run(&args),
        Command::Crds { output } => crds::run(output.as_deref()).map_err(|e| e.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("countersign: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a short command against the cluster that KUBECONFIG, or the pod, names, with the namespace of
/// the current context.
fn with_client(
    work: impl AsyncFnOnce(kube::Client, String) -> Result<(), String>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let config = kube::Config::infer().await.map_err(|error| {
            format!("failed to find a cluster: set KUBECONFIG ({})", chain(&error))
        })?;
        let namespace = config.default_namespace.clone();
        let client = Clients::new(config).map_err(|error| chain(&error))?.call;
        work(client, namespace).await
    })
}

fn run_controller(args: ControllerArgs) -> Result<(), String> {
    let mut namespaces: Vec<String> =
        args.watch_namespaces.into_iter().filter(|namespace| !namespace.is_empty()).collect();
    namespaces.sort();
    namespaces.dedup();
    let token = args.token.open()?;
    let config = controller::run::Config {
        token: token.clone(),
        namespace: args.process.namespace.clone(),
        namespaces,
        identity: args.replica,
        lease: args.lease_name,
        lease_duration: Duration::from_secs(args.lease_seconds),
        concurrency: args.concurrency.into(),
        gate_url: args.gate_url.trim_end_matches('/').to_owned(),
        gate_tls: args
            .gate_tls_url
            .zip(args.gate_callers)
            .map(|(url, callers)| controller::run::GateTls { url, callers }),
        canary: controller::canary::Settings {
            enabled: args.canaries,
            networks: args.canary_networks,
        },
        crl_servers: args.crl_servers.filter(|address| !address.is_empty()),
    };
    run_process(args.process, |clients, metrics, ready, shutdown| async move {
        // One that is absent may come yet, and authorities without it go on.
        if let Some(Err(error)) = token.map(|token| token.check()) {
            warn!(%error, "the PKCS#11 token can't be used now");
        }
        let result = controller::run::run(config, clients, metrics, ready, shutdown).await;
        result.map_err(|error| chain(&error))
    })
}

impl TokenArgs {
    /// Loads the module. What can't come right by itself ends the start.
    fn open(self) -> Result<Option<Token>, String> {
        let (Some(module), Some(label), Some(pin_file)) =
            (self.pkcs11_module, self.pkcs11_token_label, self.pkcs11_pin_file)
        else {
            return Ok(None);
        };
        let token = Token::open(TokenConfig { module, label, pin_file });
        token.map(Some).map_err(|error| format!("--pkcs11-module: {error}"))
    }
}

fn run_server(args: ServeArgs) -> Result<(), String> {
    let gate_tls = match (args.gate_tls_listen, args.gate_tls, args.gate_callers) {
        (Some(listen), Some(folder), Some(callers)) => {
            Some(serve::run::GateTls { listen, folder, callers })
        }
        // clap takes all of them or none.
        _ => None,
    };
    let config = serve::run::Config {
        namespace: args.process.namespace.clone(),
        crl_listen: args.crl_listen,
        gate_listen: args.gate_listen.0,
        gate_tls,
        gate_max_staleness: args.gate_max_staleness,
        second_factor_networks: args.second_factor_networks,
        crl_cache: args.crl_cache,
    };
    run_process(args.process, |clients, metrics, ready, shutdown| async move {
        let result = serve::run::run(config, clients, metrics, ready, shutdown).await;
        result.map_err(|error| chain(&error))
    })
}

/// What every long-running command has: a log, health and metrics, and an orderly end on SIGTERM.
fn run_process<R>(
    args: ProcessArgs,
    work: impl FnOnce(Clients, Arc<Metrics>, watch::Sender<bool>, watch::Receiver<bool>) -> R,
) -> Result<(), String>
where
    R: Future<Output = Result<(), String>>,
{
    telemetry::init(&args.log_level, args.log_format)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let (stop, shutdown) = watch::channel(false);
        let (ready, is_ready) = watch::channel(false);
        let metrics = Arc::new(Metrics::default());
        let address = args.health_listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| format!("--health-listen: failed to listen on {address}: {error}"))?;
        tokio::spawn(health::serve(listener, is_ready, metrics.clone(), shutdown.clone()));
        tokio::spawn(stop_on_signal(stop));
        let clients = Clients::infer().await.map_err(|error| chain(&error))?;
        info!(version = env!("CARGO_PKG_VERSION"), "starting");
        let result = work(clients, metrics, ready, shutdown).await;
        match &result {
            Ok(()) => info!("stopped"),
            Err(message) => error!(message, "stopped"),
        }
        result
    })
}

async fn stop_on_signal(stop: watch::Sender<bool>) {
    let wait = async |kind| match signal(kind) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
    stop.send_replace(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Command, String> {
        let arguments = ["countersign"].into_iter().chain(arguments.split(' '));
        Cli::try_parse_from(arguments).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn what_authenticates_callers_is_given_together() {
        let listen = "--gate-tls-listen=127.0.0.1:8444";
        let (folder, url) = ("--gate-tls=/tls", "--gate-tls-url=https://gate:8444");
        let callers = "--gate-callers=callers";
        for (arguments, missing) in [
            (format!("serve {listen} {folder} {callers}"), None),
            (format!("serve {listen} {folder}"), Some("--gate-callers")),
            (format!("serve {listen} {callers}"), Some("--gate-tls")),
            (format!("serve {folder} {callers}"), Some("--gate-tls-listen")),
            (format!("controller {url} {callers}"), None),
            (format!("controller {url}"), Some("--gate-callers")),
            (format!("controller {callers}"), Some("--gate-tls-url")),
        ] {
            match (parse(&arguments), missing) {
                (Ok(_), None) => {}
                (Err(why), Some(missing)) => assert!(why.contains(missing), "{arguments}: {why}"),
                (told, _) => panic!("{arguments}: {:?}", told.err()),
            }
        }
        for bad in ["http://gate:8444", "https://", "https://gate/x", "https://gate?x", "gate"] {
            let why = parse(&format!("controller --gate-tls-url={bad} {callers}")).err();
            assert!(why.is_some_and(|why| why.contains("https://<host>:<port>")), "{bad}");
        }
        let bad = parse(&format!("controller {url} --gate-callers=a&authority=b")).err();
        assert!(bad.is_some_and(|why| why.contains("no name of a ClientAuthority")));
        let controller = parse(&format!("controller {url}/ {callers}"));
        let Ok(Command::Controller(args)) = controller else { panic!("no controller") };
        assert_eq!(args.gate_tls_url.as_deref(), Some("https://gate:8444"));
    }

    #[test]
    fn the_plain_port_of_the_gate_can_be_turned_off() {
        for (argument, expected) in
            [("none", Some(None)), ("127.0.0.1:81", Some(Some("127.0.0.1:81"))), ("off", None)]
        {
            let parsed = match parse(&format!("serve --gate-listen={argument}")) {
                Ok(Command::Serve(args)) => Some(args.gate_listen.0.map(|a| a.to_string())),
                Ok(_) => panic!("no server"),
                Err(why) => {
                    assert!(why.contains("nor \"none\""), "{why}");
                    None
                }
            };
            assert_eq!(parsed, expected.map(|a| a.map(str::to_owned)), "{argument}");
        }
    }
}
