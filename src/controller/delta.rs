//! The delta CRL to each complete one, when the authority asks for it: it follows every publication, and
//! nothing of Countersign decides by it.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use tracing::{error, info, warn};

use super::context::{Context, Generation};
use super::error::{Error, chain};
use super::publish::{apart, delete, fetch, get, install, make_beside, read_beside, sweep};
use crate::api::{ClientAuthority, annotation};
use crate::cluster::Key;
use crate::pki::CertificateAuthority;
use crate::pki::crl::{self, CrlParams, Index};
use crate::plan::delta::{Decision, Delta, decide, next_update, url_base};
use crate::plan::ledger::CaKey;
use crate::plan::publication::{Scope, head_name, part_names};

/// What stands in the cluster.
#[derive(Default)]
struct InService {
    /// The delta CRL and its entries; none when it can't be used.
    published: Option<(Delta, Index)>,
    parts: Vec<String>,
    resource_version: Option<String>,
}

/// Has the delta CRLs to these CRLs published, or removed.
pub(super) async fn keep(
    context: &Context,
    authority: &ClientAuthority,
    crls: &[Generation],
    now: Timestamp,
) -> Result<(), Error> {
    let wanted = url_base(&authority.spec.crl)?.is_some();
    let refresh = SignedDuration::from_secs(authority.spec.crl.refresh.as_secs());
    let mut kept = Ok(());
    for full in crls {
        if wanted {
            kept = kept.and(follow(context, full, refresh, now).await);
        } else {
            remove(context, &full.key, now).await;
        }
    }
    kept
}

/// Publishes a delta CRL when a complete one was published that it does not belong to yet.
async fn follow(
    context: &Context,
    full: &Generation,
    refresh: SignedDuration,
    now: Timestamp,
) -> Result<(), Error> {
    let facts = &full.published.facts;
    let Some(followed) = &full.published.followed else { return Ok(()) };
    let name = head_name(&full.key, Scope::Delta);
    let seen = context.stores.crls.get(&Key::new(&context.namespace, &name));
    let noted = seen.and_then(|head| head.annotations().get(annotation::CRL_NUMBER).cloned());
    if noted == Some(facts.number.0.to_string()) {
        return Ok(());
    }
    let InService { published, parts, resource_version } = in_service(context, full, name).await?;
    let delta = published.as_ref().map(|(delta, _)| *delta);
    let (base, mut index) = match decide(delta, Some(followed.number), facts.number, refresh) {
        Decision::Wait => return Ok(()),
        Decision::Extend(base) => (base, published.map(|(_, index)| index).unwrap_or_default()),
        Decision::Begin(base) => (base, Index::default()),
    };
    let (full_facts, followed, ca, key) =
        (facts.clone(), followed.clone(), full.ca.clone(), full.key.clone());
    let rendered = apart(move || {
        index.insert(&followed.added);
        // What has left the complete one need not be told any more.
        let gone = |serial: &_| full_facts.serials.binary_search(serial).is_err();
        index.remove(&index.serials().filter(gone).collect::<Vec<_>>());
        let (number, this_update) = (full_facts.number, full_facts.this_update);
        let next_update = next_update(this_update, full_facts.next_update, refresh);
        let complete = CrlParams::complete(number, this_update, next_update);
        let params = CrlParams { base: Some(base), ..complete };
        make_beside(&key, Scope::Delta, &ca, &params, &index)
    });
    let rendered = rendered.await?;
    install(context, &full.key, Scope::Delta, rendered, &parts, resource_version, now).await?;
    info!(key = %full.key, number = facts.number.0, base = base.0, "published a delta CRL");
    Ok(())
}

async fn in_service(
    context: &Context,
    full: &Generation,
    name: String,
) -> Result<InService, Error> {
    let Some(head) = get(context, &name).await? else { return Ok(InService::default()) };
    let (resource_version, parts) = (head.resource_version(), part_names(&full.key, &head));
    let der = fetch(context, &full.key, head).await?;
    let ca = full.ca.clone();
    let published = match apart(move || der.and_then(|der| read(&der, &ca))).await {
        Ok(published) => Some(published),
        Err(why) => {
            error!(name, why, "the published delta CRL can't be used; another one begins");
            None
        }
    };
    Ok(InService { published, parts, resource_version })
}

fn read(der: &[u8], ca: &CertificateAuthority) -> Result<(Delta, Index), String> {
    let base = crl::base(der).map_err(|error| error.to_string())?.ok_or("it is no delta CRL")?;
    let (facts, index) =
        read_beside(der, ca, |complete| CrlParams { base: Some(base), ..complete })?;
    Ok((Delta { number: facts.number, base }, index))
}

/// Removes the delta CRL that is wanted no more: nothing would renew it. What can't be removed now can be the
/// next time.
async fn remove(context: &Context, key: &CaKey, now: Timestamp) {
    sweep(context, key, Scope::Delta, &[], now).await;
    let name = head_name(key, Scope::Delta);
    let Some(head) = context.stores.crls.get(&Key::new(&context.namespace, &name)) else { return };
    match delete(context, &head.metadata).await {
        Ok(()) => info!(%key, "removed the delta CRL"),
        Err(error) => warn!(name, error = chain(&error), "could not remove a delta CRL"),
    }
}
