//! The beginning of a run: what must be there, and the certificates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt};
use rustls::ClientConfig;

use super::Active;
use crate::api::canary::{Canary, Reason, ServerCaKind};
use crate::api::condition::truncate;
use crate::api::{ClientTrust, annotation};
use crate::cluster::Key;
use crate::controller::authority::STATUS_INTERVAL;
use crate::controller::context::{Context, Signing};
use crate::controller::error::Error;
use crate::controller::material::private_key;
use crate::controller::probe::{Servers, Trust};
use crate::controller::signing::sign;
use crate::ingress::object_name;
use crate::metrics::IssuanceLabels;
use crate::pki::inspect::certificates;
use crate::pki::profile::Profile;
use crate::pki::{KeyType, Serial};
use crate::plan::canary::{holder, lifetime, permit};
use crate::plan::destination::Destination;
use crate::plan::identity::BACKDATE;
use crate::plan::ledger::Issued;
use crate::plan::ledger::record::bounded_subject;
use crate::plan::material::KeySource;
use crate::plan::trial::Run;

/// As many runs are under way at once.
const MOST_RUNS: usize = 8;
/// While others run.
const IN_LINE: Duration = Duration::from_secs(5);
/// While the trust's Secret, or a CA, is brought up to date.
const SOON: Duration = Duration::from_secs(1);
/// A Secret that is not up to date for so long is told of.
const PATIENCE: Duration = Duration::from_secs(60);
/// What came of the attempt to begin a run.
pub(super) enum Begun {
    Run(Active),
    Wait(Duration),
    Blocked(Reason, String),
}

/// Sees to it that all is there that a run needs, and issues the certificates.
pub(super) async fn begin(
    context: &Context,
    key: &Key,
    trust: &ClientTrust,
    canary: &Canary,
    now: Timestamp,
) -> Result<Begun, Error> {
    let authorities: Vec<String> =
        trust.spec.authorities.iter().map(|authority| authority.name.clone()).collect();
    if authorities.iter().any(|name| context.is_loading(name)) {
        return Ok(Begun::Wait(SOON));
    }
    let mut signers = Vec::new();
    let namespace = context.stores.namespaces.get(&Key::cluster(&key.namespace));
    let namespace = namespace.as_deref().map(|namespace| &namespace.metadata);
    for name in &authorities {
        let signing = context.signing(name).filter(|signing| signing.can_sign);
        let Some(signing) = signing.filter(|signing| signing.allowed.policy.is_ok()) else {
            let why = format!(
                "ClientAuthority {name:?} does not exist or is not ready; see its conditions"
            );
            return Ok(Begun::Blocked(Reason::AuthorityNotReady, why));
        };
        let Ok(policy) = &signing.allowed.policy else { continue };
        match permit(policy, trust, canary, name, namespace) {
            Ok(permitted) => signers.push((signing.clone(), permitted)),
            Err(refusal) => {
                let why = format!("ClientAuthority {name:?} does not allow the canary: {refusal}");
                return Ok(Begun::Blocked(Reason::NotAllowed, why));
            }
        }
    }
    if let Some(wait) = wait_for_secret(context, key, &authorities, &signers) {
        return Ok(wait);
    }
    let destinations = canary.endpoints.iter().enumerate().map(|(index, endpoint)| {
        Destination::parse(endpoint).map_err(|why| format!("spec.canary.endpoints[{index}].{why}"))
    });
    let destinations = match destinations.collect::<Result<Vec<_>, _>>() {
        Ok(destinations) => destinations,
        Err(why) => return Ok(Begun::Blocked(Reason::InvalidCanary, why)),
    };
    let servers = match server_trust(context, &key.namespace, canary).await? {
        Ok(trust) => Servers::new(trust).map_err(|why| (Reason::ServerNotVerified, why)),
        Err(why) => Err((Reason::InvalidCanary, format!("spec.canary.serverCA: {why}"))),
    };
    let servers = match servers {
        Ok(servers) => servers,
        Err((reason, why)) => return Ok(Begun::Blocked(reason, why)),
    };
    let anonymous = servers.client(None).map_err(|error| Error::Tls(error.to_string()))?;

    let serials: Vec<_> = signers
        .iter()
        .map(|(signing, _)| (signing.active().key.clone(), Serial::random()))
        .collect();
    // Noted before they are recorded: nobody else takes them for left behind.
    let has_place = {
        let mut states = context.canaries.lock();
        let runs = states.values().filter(|state| !state.certificates.is_empty()).count();
        if runs < MOST_RUNS {
            states.entry(key.clone()).or_default().certificates.clone_from(&serials);
        }
        runs < MOST_RUNS
    };
    if !has_place {
        return Ok(Begun::Wait(IN_LINE));
    }
    let mut clients = Vec::new();
    for ((signing, permitted), (_, serial)) in signers.iter().zip(&serials) {
        let valid = (now - BACKDATE, now + lifetime(canary));
        clients.push(issue(context, trust, &servers, signing, permitted, *serial, valid).await?);
    }
    let timeout = Duration::from_secs(canary.timeout.as_secs().unsigned_abs());
    Ok(Begun::Run(Active {
        run: Run::new(trust.spec.mode, timeout, destinations.len(), authorities.len()),
        clock: Instant::now(),
        generation: trust.metadata.generation,
        authorities,
        destinations,
        anonymous,
        clients,
    }))
}

/// Issues a certificate that is kept here only, and makes a client of it.
async fn issue(
    context: &Context,
    trust: &ClientTrust,
    servers: &Servers,
    signing: &Signing,
    (key_type, profile): &(KeyType, Profile),
    serial: Serial,
    (not_before, not_after): (Timestamp, Timestamp),
) -> Result<Arc<ClientConfig>, Error> {
    let active = signing.active();
    let (ca, now) = (active.ca.facts(), Timestamp::now());
    let fresh = KeySource::Fresh(*key_type);
    let key = private_key(&fresh, None).await.expect("whoever asks for no key gets one");
    let record = Issued {
        serial,
        revision: 0,
        not_after: truncate(not_after.min(ca.not_after)),
        holder: holder(trust),
        subject: bounded_subject(&profile.subject.to_rfc4514()),
        issued_at: Some(truncate(now)),
        supersedes: 0,
        // No ClientIdentity is to be looked for: it is revoked here.
        retain: true,
    };
    let (not_before, public_key) = (truncate(not_before.max(ca.not_before)), key.public_key_der());
    let (issued, _) =
        sign(&context.ledger, signing, record, profile, &public_key, not_before, now).await?;
    let authority = active.key.authority.to_string();
    let labels = IssuanceLabels { authority, trigger: "Canary" };
    context.metrics.issued.get_or_create(&labels).inc();
    // The counts in the authority's status follow at leisure.
    let authority = Key::cluster(&*active.key.authority);
    context.queues.authority.push_after(authority, STATUS_INTERVAL);
    let (_root, chain) = active.ca.chain().split_last().expect("a chain holds the CA");
    let chain = std::iter::once(issued.der).chain(chain.iter().cloned()).collect();
    servers.client(Some((chain, &key))).map_err(|error| Error::Tls(error.to_string()))
}

/// While the trust's Secret lacks what verifies the canary's certificates, nobody could accept them.
fn wait_for_secret(
    context: &Context,
    key: &Key,
    authorities: &[String],
    signers: &[(Arc<Signing>, (KeyType, Profile))],
) -> Option<Begun> {
    let name = object_name(&key.name);
    let secret = context.stores.secrets.get(&Key::new(&key.namespace, &name));
    let is_current = secret.is_some_and(|secret| {
        authorities.iter().zip(signers).all(|(authority, (signing, _))| {
            let mark = format!("{}{authority}", annotation::TRUSTED_BUNDLE_PREFIX);
            secret.annotations().get(&mark) == Some(&signing.mark)
        })
    });
    let since = context.canaries.with(key, |state| {
        let since = state.waits_since.get_or_insert_with(Instant::now).elapsed();
        if is_current {
            state.waits_since = None;
        }
        since
    });
    if is_current {
        return None;
    }
    if since < PATIENCE {
        return Some(Begun::Wait(SOON));
    }
    let why = format!(
        "Secret {name:?} does not hold the authorities' trust bundle; see the condition Ready"
    );
    Some(Begun::Blocked(Reason::TrustNotReady, why))
}

/// Whose word is taken for who the servers are; or what is wrong with what the spec says of it.
async fn server_trust(
    context: &Context,
    namespace: &str,
    canary: &Canary,
) -> Result<Result<Trust, String>, Error> {
    let Some(reference) = &canary.server_ca else {
        let anybody = canary.insecure_skip_server_verification;
        return Ok(Ok(if anybody { Trust::Anybody } else { Trust::System }));
    };
    let (name, key) = (&reference.name, &reference.key);
    let (kind, found) = match reference.kind {
        ServerCaKind::Secret => {
            let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
            let found = api.get_opt(name).await;
            let value = |secret: Secret| Some(secret.data?.remove(key)?.0);
            ("Secret", found.map(|found| found.map(value)))
        }
        ServerCaKind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
            let found = api.get_opt(name).await;
            let value = |map: ConfigMap| Some(map.data?.remove(key)?.into_bytes());
            ("ConfigMap", found.map(|found| found.map(value)))
        }
    };
    let object = format!("{kind} {name:?}");
    Ok(match found {
        Ok(None) => Err(format!("{object} does not exist in namespace {namespace:?}")),
        Ok(Some(None)) => Err(format!("{object} has no key {key:?}")),
        Ok(Some(Some(pem))) => certificates(&pem).map(Trust::Given).map_err(|_| {
            format!("key {key:?} of {object} holds something else than PEM certificates")
        }),
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            Err(format!("the operator may not read {object}"))
        }
        Err(source) => {
            let object = format!("{kind} {namespace}/{name}");
            return Err(Error::Read { object, source });
        }
    })
}
