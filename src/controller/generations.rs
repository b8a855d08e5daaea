//! The CAs of an authority in their Secrets: read, made, copied, moved from state to state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt};
use tracing::{info, warn};

use super::bundle;
use super::context::{Ca, Context};
use super::crl;
use super::error::Error;
use crate::api::authority::{CaKeyAlgorithm, CaState, Custody, NameConstraints, SelfSigned};
use crate::api::bundle::BundleKind;
use crate::api::condition::{READY, is_true, truncate};
use crate::api::revocation::RevocationReason;
use crate::api::{ClientAuthority, annotation, label};
use crate::cluster::Key;
use crate::cluster::apply::write;
use crate::ingress::object_name;
use crate::metrics::authority as authority_label;
use crate::pki::authority::{self, CaParams, Subtree};
use crate::pki::crl::CrlFacts;
use crate::pki::key::Signer;
use crate::pki::name::{Attribute, Name};
use crate::pki::{CertificateAuthority, KeyType, PrivateKey, Serial};
use crate::plan::authority::{
    BACKDATE, KeptKey, crl_url, key_of, read_secret, render_secret, secret_key, secret_name,
    set_state, text_of,
};
use crate::plan::ledger::{CaKey, Record, Revoked};
use crate::plan::publication::Scope;
use crate::plan::rotation::{Generation, Source, Step, request, source_hash};
use crate::token::{InvalidUri, TokenError, TokenKey};

/// Data planes and clients load a new bundle within this time of holding it.
const SETTLE: Duration = Duration::from_secs(5);
/// Stands for the hash of what a CA was made from, when it was not made here.
const IMPORTED: &str = "imported";

/// The CAs of an authority, read again only when the watch shows other Secrets.
pub(super) async fn load(context: &Context, authority: &str) -> Result<Arc<Vec<Ca>>, Error> {
    let seen = context.stores.secrets.find(authority);
    let cached = context.cas.read().expect("no holder of this lock panics").get(authority).cloned();
    if let Some(cached) = cached.filter(|cached| is_same(cached, &seen)) {
        return Ok(cached);
    }
    reload(context, authority).await
}

fn is_same(cached: &[Ca], seen: &[Arc<PartialObjectMeta<Secret>>]) -> bool {
    let versions: BTreeSet<_> = cached.iter().map(|ca| Some(ca.secret_version.as_str())).collect();
    let seen: BTreeSet<_> =
        seen.iter().map(|secret| secret.metadata.resource_version.as_deref()).collect();
    !cached.is_empty() && versions == seen
}

/// The CAs of an authority, from the API server.
pub(super) async fn reload(context: &Context, authority: &str) -> Result<Arc<Vec<Ca>>, Error> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.namespace);
    let selector = format!("{}=ca,{}={authority}", label::COMPONENT, label::AUTHORITY);
    let found = api.list(&ListParams::default().labels(&selector)).await;
    let found = found.map_err(|source| Error::Read {
        object: format!("Secrets of ClientAuthority {authority}"),
        source,
    })?;
    let mut cas: Vec<Ca> = found.items.iter().filter_map(|secret| read(context, secret)).collect();
    cas.sort_by_key(|ca| ca.key.generation);
    let cas = Arc::new(cas);
    let mut all = context.cas.write().expect("no holder of this lock panics");
    all.insert(authority.to_owned(), cas.clone());
    Ok(cas)
}

fn read(context: &Context, secret: &Secret) -> Option<Ca> {
    let key = key_of(&secret.metadata)?;
    if secret.name_any() != secret_name(&key) {
        warn!(secret = secret.name_any(), "carries the labels of a CA under another name");
        return None;
    }
    let kept = read_secret(secret, &|uri, key_type, public_key_der| {
        let uri = uri.parse().map_err(|error: InvalidUri| error.to_string())?;
        Ok(Arc::new(TokenKey::known(context.token.clone(), uri, key_type, public_key_der)))
    });
    Some(Ca {
        key,
        state: kept.state,
        since: kept.since,
        source_hash: kept.source_hash,
        requested: kept.requested,
        in_token: kept.in_token,
        authority: kept.ca.map(Arc::new).map_err(|error| error.to_string()),
        secret_version: secret.resource_version().unwrap_or_default(),
    })
}

/// The CAs as the plan needs them.
pub(super) fn view(context: &Context, cas: &[Ca], now: Timestamp) -> Vec<Generation> {
    let one = |ca: &Ca| Generation {
        number: ca.key.generation,
        state: ca.state,
        since: ca.since,
        source_hash: ca.source_hash.clone(),
        requested: ca.requested.clone(),
        ca: ca.authority.as_ref().map(|ca| ca.facts().clone()).map_err(Clone::clone),
        live: context.ledger.read(&ca.key, |ledger| ledger.live(now).count()),
        unpublished: is_unpublished(context, ca),
        crl_entries: published(context, ca).map_or(0, |facts| facts.serials.len()),
    };
    cas.iter().map(one).collect()
}

/// What the published CRL of a trusted CA says.
fn published(context: &Context, ca: &Ca) -> Option<Arc<CrlFacts>> {
    let signing = context.signing(&ca.key.authority)?;
    let generation = signing.generations.iter().find(|one| one.key == ca.key)?;
    Some(generation.published.facts.clone())
}

/// Does the published CRL lack a certificate that is revoked and has not expired?
fn is_unpublished(context: &Context, ca: &Ca) -> bool {
    let published = published(context, ca);
    let published = published.as_deref();
    context.ledger.read(&ca.key, |ledger| crate::plan::crl::is_unpublished(ledger, published))
}

/// The generations that the ledger and the status know of.
pub(super) fn traces(context: &Context, authority: &ClientAuthority) -> BTreeSet<u32> {
    let name = authority.name_any();
    let mut known: BTreeSet<u32> = context.ledger.read_all(|books| {
        let used = books.iter().filter(|(key, book)| *key.authority == *name && !book.is_empty());
        used.map(|(key, _)| key.generation).collect()
    });
    let status = authority.status.iter().flat_map(|status| &status.generations);
    known.extend(status.filter_map(|one| u32::try_from(one.number).ok()));
    known
}

/// The generations that left a trace: one whose Secret is gone was in use all the same.
pub(super) async fn known(
    context: &Context,
    authority: &ClientAuthority,
) -> Result<BTreeSet<u32>, Error> {
    let name = authority.name_any();
    let mut known = traces(context, authority);
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.namespace);
    let selector = format!("{}=crl,{}={name}", label::COMPONENT, label::AUTHORITY);
    let crls = api.list_metadata(&ListParams::default().labels(&selector)).await;
    let crls = crls.map_err(|source| Error::Read { object: format!("CRLs of {name}"), source })?;
    known.extend(crls.iter().filter_map(|crl| key_of(&crl.metadata)).map(|key| key.generation));
    Ok(known)
}

/// Where the next CA would come from. An imported one also as PEM: chain and key.
pub(super) async fn source(
    context: &Context,
    authority: &ClientAuthority,
) -> Result<(Source, Option<Secret>), Error> {
    if let Some(spec) = &authority.spec.self_signed {
        return Ok((Source::SelfSigned(source_hash(spec)), None));
    }
    let name = authority.spec.secret_ref.as_ref().map(|reference| reference.name.as_str());
    let name = name.unwrap_or_default();
    let unusable = |why: String| {
        let place = format!("spec.secretRef.name: Secret {name:?} in the operator's namespace");
        Source::Imported(Err(format!("{place}: {why}")))
    };
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.namespace);
    let found = api
        .get_opt(name)
        .await
        .map_err(|source| Error::Read { object: format!("Secret {name}"), source })?;
    let Some(secret) = found else {
        return Ok((unusable("it does not exist".to_owned()), None));
    };
    let (chain, key) = (text_of(&secret, secret_key::CHAIN), text_of(&secret, secret_key::KEY));
    Ok(match CertificateAuthority::from_pem(chain, key) {
        Ok(ca) if ca.facts().not_after <= Timestamp::now() => {
            (unusable(format!("the CA expired at {}", ca.facts().not_after)), None)
        }
        Ok(ca) => (Source::Imported(Ok(ca.facts().clone())), Some(secret)),
        Err(error) => (unusable(error.to_string()), None),
    })
}

/// Who does not hold this bundle yet, or why the CA can't sign.
pub(super) fn waits_for(context: &Context, prepared: &Ca, bundle_hash: &str) -> Option<String> {
    let key = &prepared.key;
    let away = prepared.authority.as_ref().ok().and_then(|ca| ca.signer().check().err());
    // A bundle that holds the root of several CAs stays the same: their CRLs don't.
    let has_crl = context
        .signing(&key.authority)
        .is_some_and(|signing| signing.generations.iter().any(|one| one.key == *key));
    let missing = away
        .map(|why| format!("its token ({})", why.0))
        .or_else(|| (!has_crl).then(|| "its first CRL".to_owned()))
        .or_else(|| lacks_bundle(context, &key.authority, bundle_hash));
    let mark = format!("{key}/{bundle_hash}");
    let mut in_force = context.in_force.lock().expect("no holder of this lock panics");
    if missing.is_some() {
        in_force.remove(&mark);
        return missing;
    }
    let since = in_force.entry(mark).or_insert_with(Instant::now);
    (since.elapsed() < SETTLE).then(|| "every data plane".to_owned())
}

fn lacks_bundle(context: &Context, authority: &str, bundle_hash: &str) -> Option<String> {
    let holds = |namespace: &str, secret: &str, note: &str, value: &str| {
        let secret = context.stores.secrets.get(&Key::new(namespace, secret));
        secret.map(|secret| secret.annotations().get(note).is_some_and(|noted| noted == value))
    };
    let note = format!("{}{authority}", annotation::TRUSTED_BUNDLE_PREFIX);
    let mark = context.signing(authority).map(|signing| signing.mark.clone()).unwrap_or_default();
    for trust in context.stores.trusts.list() {
        let concerned = trust.spec.authorities.iter().any(|one| one.name == authority);
        if !concerned || trust.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let namespace = trust.namespace().unwrap_or_default();
        let secret = object_name(&trust.name_any());
        let lacks = |secret: &str| holds(&namespace, secret, &note, &mark) != Some(true);
        let lacks_bundle = trust.spec.bundle.as_ref().is_some_and(|bundle| match bundle.kind {
            BundleKind::Secret => lacks(&bundle.name),
            BundleKind::ConfigMap => {
                let map = context.stores.bundles.get(&Key::new(&namespace, &bundle.name));
                map.is_none_or(|map| map.annotations().get(&note) != Some(&mark))
            }
        });
        if lacks(&secret) || lacks_bundle {
            return Some(format!("ClientTrust {namespace}/{}", trust.name_any()));
        }
    }
    let found = context.stores.authorities.get(&Key::cluster(authority));
    if let Some(bundle) = found.as_ref().and_then(|found| found.spec.bundle.as_ref())
        && let Some(namespace) = bundle::spread(context, authority, bundle).1.first()
    {
        return Some(format!("ConfigMap {namespace}/{}", bundle.name));
    }
    for identity in context.stores.identities.list() {
        if identity.spec.authority_ref.name != authority
            || identity.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        // One that is refused keeps what it has, and must not hold up all others.
        let conditions = identity.status.as_ref().map(|status| status.conditions.as_slice());
        if !is_true(conditions.unwrap_or_default(), READY) {
            continue;
        }
        let namespace = identity.namespace().unwrap_or_default();
        // One that has no certificate yet will get it with the new bundle.
        if holds(&namespace, &identity.spec.secret_name, annotation::BUNDLE, bundle_hash)
            == Some(false)
        {
            return Some(format!("ClientIdentity {namespace}/{}", identity.name_any()));
        }
    }
    None
}

/// Takes one step.
pub(super) async fn carry_out(
    context: &Context,
    authority: &ClientAuthority,
    cas: &[Ca],
    imported: Option<&Secret>,
    step: &Step,
    now: Timestamp,
) -> Result<(), Error> {
    let name = authority.name_any();
    let key = |generation| CaKey { authority: name.as_str().into(), generation };
    match *step {
        Step::Create { number, state, trigger } => {
            let mut secret = match (&authority.spec.self_signed, imported) {
                (Some(spec), _) => {
                    mint(context, authority, spec, cas, &key(number), state, now).await?
                }
                (None, Some(imported)) => copy(imported, &key(number), state, now)?,
                (None, None) => return Ok(()),
            };
            secret.metadata.namespace = Some(context.namespace.clone());
            if let Some(request) = request(authority) {
                let annotations = secret.metadata.annotations.get_or_insert_default();
                annotations.insert(annotation::ROTATE_REQUESTED_AT.to_owned(), request.to_owned());
            }
            // Creation fails when another replica was faster: then its CA is read, and ours forgotten.
            write(&context.client, &secret).await?;
            info!(generation = number, ?trigger, state = state.as_str(), "made a CA");
            let note = format!(
                "made CA generation {number} ({trigger:?}), kept in Secret {}/{}",
                context.namespace,
                secret_name(&key(number))
            );
            context.events.normal(authority, "Mint", "Minted", &note).await;
        }
        Step::Extend { number } => {
            let Some(imported) = imported else { return Ok(()) };
            let mut secret = get(context, &key(number)).await?;
            let renewed = copy(imported, &key(number), CaState::Active, now)?;
            secret.data = renewed.data;
            write(&context.client, &secret).await?;
            info!(generation = number, "took the renewed certificate of the CA");
        }
        Step::Move { number, to } => {
            if to == CaState::Removed {
                revoke_authority(context, cas, &key(number), now).await?;
            }
            let mut secret = get(context, &key(number)).await?;
            // Under the version that was decided on: a decision of before must not undo a later one.
            let seen = cas.iter().find(|ca| ca.key.generation == number);
            secret.metadata.resource_version = seen.map(|ca| ca.secret_version.clone());
            secret.metadata.managed_fields = None;
            set_state(&mut secret, to, now);
            write(&context.client, &secret).await?;
            if to == CaState::Removed {
                crl::retire(context, &key(number)).await?;
            }
            info!(generation = number, state = to.as_str(), "moved a CA");
            let note = format!("CA generation {number} is {} now", to.as_str());
            context.events.normal(authority, "Rotate", to.as_str(), &note).await;
        }
        Step::RevokeAll { number } => {
            let key = key(number);
            let records: Vec<Record> = context.ledger.read(&key, |ledger| {
                let revoked = |serial| Revoked {
                    serial,
                    revoked_at: truncate(now),
                    reason: Some(RevocationReason::KeyCompromise.code()),
                };
                ledger.live(now).map(|issued| Record::Revoked(revoked(issued.serial))).collect()
            });
            let count = records.len();
            let label = authority_label(&name);
            context.metrics.revoked.get_or_create(&label).inc_by(count as u64);
            context.ledger.record(&key, records).await?;
            revoke_authority(context, cas, &key, now).await?;
            info!(generation = number, count, "revoked the certificates of a compromised CA");
            let note =
                format!("revoked {count} certificate(s) of compromised CA generation {number}");
            context.events.warning(authority, "Revoke", "Compromised", &note).await;
            // Whoever still holds one gets another.
            for identity in context.stores.identities.list() {
                if identity.spec.authority_ref.name == name {
                    context.queues.identity.push(Key::of(&*identity));
                }
            }
        }
    }
    Ok(())
}

/// A compromised CA below a root stands on the root's CRL, so that nothing it signs counts.
async fn revoke_authority(
    context: &Context,
    cas: &[Ca],
    key: &CaKey,
    now: Timestamp,
) -> Result<(), Error> {
    let ca = cas.iter().find(|ca| ca.key == *key && ca.state == CaState::Compromised);
    let root = cas.iter().find(|ca| ca.state == CaState::Root);
    let (Some(ca), Some(root)) = (ca.and_then(|ca| ca.authority.as_ref().ok()), root) else {
        return Ok(());
    };
    let below = root.authority.as_ref().is_ok_and(|root| root.certificate() == ca.root());
    if !below {
        return Ok(());
    }
    let revoked = Revoked {
        serial: ca.facts().serial,
        revoked_at: truncate(now),
        reason: Some(RevocationReason::KeyCompromise.code()),
    };
    Ok(context.ledger.record(&root.key, vec![Record::Revoked(revoked)]).await?)
}

async fn get(context: &Context, key: &CaKey) -> Result<Secret, Error> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.namespace);
    let name = secret_name(key);
    api.get(&name).await.map_err(|source| Error::Read { object: format!("Secret {name}"), source })
}

/// Makes a CA: self-signed, or signed by the authority's root.
async fn mint(
    context: &Context,
    authority: &ClientAuthority,
    spec: &SelfSigned,
    cas: &[Ca],
    key: &CaKey,
    state: CaState,
    now: Timestamp,
) -> Result<Secret, Error> {
    let made = make_key(context, authority, spec, key).await?;
    let split = spec.intermediate.as_ref().filter(|_| state != CaState::Root);
    let mut subject: Vec<_> =
        spec.organization.iter().map(|o| (Attribute::Organization, o.clone())).collect();
    let mut common_name = spec.common_name.clone();
    if split.is_some() {
        let number = format!(" {}", key.generation);
        let most = Attribute::CommonName.upper_bound() - number.len();
        common_name = common_name.chars().take(most).collect::<String>() + &number;
    }
    subject.push((Attribute::CommonName, common_name));
    let duration = split.map_or(spec.duration, |split| split.duration);
    let lifetime = SignedDuration::from_secs(duration.as_secs());
    let end = now.saturating_add(lifetime).unwrap_or(Timestamp::MAX);
    let below = u8::from(state == CaState::Root);
    let base = authority.spec.crl.distribution_point_base_url.as_deref();
    let mut params = CaParams {
        subject: &Name(subject),
        serial: Serial::random(),
        not_before: truncate(now - BACKDATE),
        not_after: truncate(end),
        path_length: u8::try_from(spec.path_length).unwrap_or(0) + below,
        name_constraints: &name_constraints(spec.name_constraints.as_ref()),
        crl_url: None,
    };
    let ca = match split {
        None => CertificateAuthority::self_signed(&params, made.signer())?,
        Some(_) => {
            let root = cas.iter().find(|ca| ca.state == CaState::Root);
            let root = root.ok_or_else(|| Error::Root("there is none".into()))?;
            let signer = root.authority.as_ref().map_err(|why| Error::Root(why.clone()))?;
            let url = base.map(|base| crl_url(base, &root.key, Scope::Full));
            params.not_after = params.not_after.min(signer.facts().not_after);
            params.crl_url = url.as_deref();
            signer.sign_authority(&params, made.signer())?
        }
    };
    let hash = (state != CaState::Root).then(|| source_hash(spec));
    let uri;
    let kept_key = match &made {
        MadeKey::Here(private_key) => KeptKey::Here(private_key),
        MadeKey::InToken(token_key) => {
            uri = token_key.uri().to_string();
            KeptKey::InToken(&uri)
        }
    };
    Ok(render_secret(key, ca.chain_pem(), &kept_key, state, hash.as_deref(), now))
}

/// The key of a CA that is being made.
enum MadeKey {
    Here(Arc<PrivateKey>),
    InToken(Arc<TokenKey>),
}

impl MadeKey {
    fn signer(&self) -> Arc<dyn Signer> {
        match self {
            Self::Here(key) => key.clone(),
            Self::InToken(key) => key.clone(),
        }
    }
}

async fn make_key(
    context: &Context,
    authority: &ClientAuthority,
    spec: &SelfSigned,
    key: &CaKey,
) -> Result<MadeKey, Error> {
    let key_type = key_type(spec);
    match spec.custody {
        Custody::Secret => {
            // An RSA key of 4096 bits takes seconds.
            let private_key = tokio::task::spawn_blocking(move || PrivateKey::generate(key_type));
            let private_key = private_key.await.expect("generating a key does not panic");
            Ok(MadeKey::Here(Arc::new(private_key)))
        }
        Custody::PKCS11 => {
            let token = context.token.as_ref().ok_or(TokenError::NotConfigured)?;
            // Several clusters may share a token. Whoever tries again, after a crash or beside another replica,
            // gets the key of the first try.
            let uid = authority.uid().unwrap_or_default();
            let uid = uid.get(..8).unwrap_or(&uid);
            let object = format!("{}-{uid}", secret_name(key));
            Ok(MadeKey::InToken(Arc::new(token.generate(&object, key_type)?)))
        }
    }
}

/// A copy of an imported CA: the one that is replaced in its Secret must go on signing its CRL.
fn copy(imported: &Secret, key: &CaKey, state: CaState, now: Timestamp) -> Result<Secret, Error> {
    let (chain, private_key) =
        (text_of(imported, secret_key::CHAIN), text_of(imported, secret_key::KEY));
    let ca = CertificateAuthority::from_pem(chain, private_key)?;
    let private_key = PrivateKey::from_pem(private_key).map_err(authority::AuthorityError::from)?;
    let kept_key = KeptKey::Here(&private_key);
    Ok(render_secret(key, ca.chain_pem(), &kept_key, state, Some(IMPORTED), now))
}

fn key_type(spec: &SelfSigned) -> KeyType {
    match (spec.private_key.algorithm, spec.private_key.size) {
        (CaKeyAlgorithm::Ed25519, _) => KeyType::Ed25519,
        (CaKeyAlgorithm::ECDSA, Some(384)) => KeyType::EcdsaP384,
        (CaKeyAlgorithm::ECDSA, Some(521)) => KeyType::EcdsaP521,
        (CaKeyAlgorithm::ECDSA, _) => KeyType::EcdsaP256,
        (CaKeyAlgorithm::RSA, Some(3072)) => KeyType::Rsa3072,
        (CaKeyAlgorithm::RSA, Some(4096)) => KeyType::Rsa4096,
        (CaKeyAlgorithm::RSA, _) => KeyType::Rsa2048,
    }
}

fn name_constraints(spec: Option<&NameConstraints>) -> authority::NameConstraints {
    let subtrees = |domains: &[String], ranges: &[String]| {
        let domains = domains.iter().cloned().map(Subtree::Dns);
        domains.chain(ranges.iter().cloned().map(Subtree::Ip)).collect()
    };
    spec.map_or_else(authority::NameConstraints::default, |spec| authority::NameConstraints {
        permitted: subtrees(&spec.permitted_dns_domains, &spec.permitted_ip_ranges),
        excluded: subtrees(&spec.excluded_dns_domains, &spec.excluded_ip_ranges),
    })
}
