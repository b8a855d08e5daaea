//! A CRL on its way into the cluster and back: signed and checked on a thread of its own, its parts
//! written before the head that names them, read together again.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};
use tracing::{error, info, warn};

use super::context::{Context, Followed, Published};
use super::error::{Error, chain};
use crate::api::annotation;
use crate::cluster::Key;
use crate::cluster::apply::{WriteError, write};
use crate::metrics::authority as label;
use crate::pki::authority::CaFacts;
use crate::pki::crl::{CrlError, CrlFacts, CrlParams, Entry, Index};
use crate::pki::{CertificateAuthority, crl};
use crate::plan::crl::Publication;
use crate::plan::headroom::SECRET_LIMIT;
use crate::plan::ledger::{CaKey, Revoked};
use crate::plan::publication::{
    Rendered, Scope, assemble, head_name, is_unused, part_bytes, part_names, render,
};

/// So many parts are read or written at once.
pub(super) const AT_ONCE: usize = 4;

/// The CRL of a CA as it stands in the cluster.
pub(super) enum Found {
    /// None; the resourceVersion is that of a ConfigMap without a usable one, which is written over.
    Nothing(Option<String>),
    /// A CRL.
    Crl(Published),
}

/// Runs work that takes long on a thread of its own.
pub(super) async fn apart<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    tokio::task::spawn_blocking(work).await.expect("work on CRLs does not panic")
}

/// Reads the CRL that stands in the cluster. `known` is not read again while its version is the same.
pub(super) async fn read(
    context: &Context,
    key: &CaKey,
    ca: &CaFacts,
    known: Option<&Published>,
) -> Result<Found, Error> {
    let name = head_name(key, Scope::Full);
    let Some(head) = get(context, &name).await? else { return Ok(Found::Nothing(None)) };
    let resource_version = head.resource_version();
    if let Some(known) = known.filter(|known| known.resource_version == resource_version) {
        return Ok(Found::Crl(known.clone()));
    }
    let noted = head.annotations().get(annotation::LEDGER_POSITION);
    let ledger_position = noted.and_then(|position| position.parse().ok());
    let parts = part_names(key, &head);
    let der = fetch(context, key, head).await?;
    let revoked = context.ledger.clone();
    let key_of_ca = key.clone();
    let read = apart(move || {
        let der = der?;
        let facts = crl::read(&der).map_err(|why| why.to_string())?;
        // One that another encoder made is encoded anew, from the ledger.
        let index = crl::index(&der).unwrap_or_else(|| {
            let entry =
                |&Revoked { serial, revoked_at, reason }: &_| Entry { serial, revoked_at, reason };
            let entries: Vec<Entry> = revoked.read(&key_of_ca, |ledger| {
                let listed = facts.serials.iter().filter_map(|serial| ledger.revocation(serial));
                listed.map(entry).collect()
            });
            Index::of(&entries)
        });
        Ok::<_, String>((facts, index, der))
    });
    let (facts, index, der) = match read.await {
        Ok(read) => read,
        Err(why) => {
            error!(name, why, "the published CRL is damaged; it is published anew");
            return Ok(Found::Nothing(resource_version));
        }
    };
    if facts.authority_key_id != ca.key_id {
        warn!(name, "the published CRL is of another CA; it is published anew");
        return Ok(Found::Nothing(resource_version));
    }
    let found = published(facts, index, der, parts, resource_version, None);
    Ok(Found::Crl(Published { ledger_position, ..found }))
}

/// Reads a ConfigMap of the operator's namespace.
pub(super) async fn get(context: &Context, name: &str) -> Result<Option<ConfigMap>, Error> {
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.namespace);
    let found = api.get_opt(name).await;
    found.map_err(|source| Error::Read { object: format!("ConfigMap {name}"), source })
}

/// Removes the ConfigMap of this metadata, and no later one of its name.
pub(super) async fn delete(context: &Context, metadata: &ObjectMeta) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.namespace);
    let preconditions = Preconditions { uid: metadata.uid.clone(), resource_version: None };
    let params = DeleteParams::default().preconditions(preconditions);
    let name = metadata.name.as_deref().unwrap_or_default();
    api.delete(name, &params).await.map(|_| ())
}

/// The CRL that a head publishes, DER, put together from its parts; or why that can't be done.
pub(super) async fn fetch(
    context: &Context,
    key: &CaKey,
    head: ConfigMap,
) -> Result<Result<Vec<u8>, String>, Error> {
    let names = part_names(key, &head);
    let read = names.iter().cloned().map(|name| async move { get(context, &name).await });
    let read = stream::iter(read);
    let read: Vec<Option<ConfigMap>> = read.buffered(AT_ONCE).try_collect().await?;
    let key = key.clone();
    let assembled = apart(move || {
        let mut read = names.iter().zip(&read);
        assemble(&key, &head, |name| {
            read.find(|(known, _)| *known == name)?.1.as_ref().and_then(part_bytes)
        })
    });
    Ok(assembled.await.map_err(|why| why.to_string()))
}

fn published(
    facts: CrlFacts,
    index: Index,
    der: Vec<u8>,
    parts: Vec<String>,
    resource_version: Option<String>,
    at: Option<Timestamp>,
) -> Published {
    let bytes = der.len();
    Published {
        facts: Arc::new(facts),
        index: Arc::new(index),
        der: (crl::pem_len(bytes) <= SECRET_LIMIT).then(|| der.into()),
        bytes,
        parts: parts.into(),
        resource_version,
        at,
        followed: None,
        ledger_position: None,
    }
}

/// Are all parts of a CRL in the cluster? The watch shows them before the head that names them.
pub(super) fn has_parts(context: &Context, parts: &[String]) -> bool {
    parts.iter().all(|name| is_there(context, name))
}

fn is_there(context: &Context, part: &str) -> bool {
    context.stores.crls.get(&Key::new(&context.namespace, part)).is_some()
}

/// Signs, checks by independent code, and publishes under the version of what stood before. `previous` is
/// the CRL that the publication follows.
pub(super) async fn publish(
    context: &Context,
    key: &CaKey,
    ca: &Arc<CertificateAuthority>,
    previous: Option<&Published>,
    previous_version: Option<String>,
    publication: Publication,
    now: Timestamp,
) -> Result<Published, Error> {
    let (number, next_update) = (publication.number, publication.next_update);
    let ledger_position = publication.ledger_position;
    let (added, leaving) = (publication.added.len(), publication.leaving.len());
    let (made, publication) = {
        let (key, ca, previous) = (key.clone(), ca.clone(), previous.cloned());
        apart(move || {
            let made = make(&key, &ca, previous.as_ref(), &publication)?;
            Ok::<_, Error>((made, publication))
        })
        .await?
    };
    let Made { facts, index, der, mut rendered } = made;

    let known = previous.map(|previous| previous.parts.clone()).unwrap_or_default();
    let annotations = rendered.head.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::LEDGER_POSITION.to_owned(), ledger_position.to_string());
    let (parts, resource_version) =
        install(context, key, Scope::Full, rendered, &known, previous_version, now).await?;
    let (entries, bytes) = (facts.serials.len(), der.len());
    info!(number = number.0, entries, added, leaving, bytes, %next_update, "published a CRL");
    context.metrics.crl_publications.get_or_create(&label(&key.authority)).inc();
    let published = published(facts, index, der, parts, resource_version, Some(now));
    let followed = previous.map(|previous| {
        Arc::new(Followed { number: previous.facts.number, added: publication.added })
    });
    Ok(Published { ledger_position: Some(ledger_position), followed, ..published })
}

/// Writes a CRL: the parts that are not there, then the head under the version of what stood before; and
/// removes the parts that neither this CRL names nor, as `known`, the one before it. Returns the names of
/// the parts, and the version of the head.
pub(super) async fn install(
    context: &Context,
    key: &CaKey,
    scope: Scope,
    rendered: Rendered,
    known: &[String],
    version: Option<String>,
    now: Timestamp,
) -> Result<(Vec<String>, Option<String>), Error> {
    let Rendered { mut head, parts: new } = rendered;
    let parts: Vec<String> = new.iter().map(ResourceExt::name_any).collect();
    let new = new.into_iter().filter(|part| !is_there(context, &part.name_any()));
    stream::iter(new.map(Ok)).try_for_each_concurrent(AT_ONCE, |part| put(context, part)).await?;
    head.metadata.namespace = Some(context.namespace.clone());
    head.metadata.resource_version = version;
    let written = write(&context.client, &head).await?;
    sweep(context, key, scope, &[known, &parts], now).await;
    Ok((parts, written.resource_version()))
}

/// Signs a CRL that goes beside the complete one, and checks it by independent code.
pub(super) fn make_beside(
    key: &CaKey,
    scope: Scope,
    ca: &CertificateAuthority,
    params: &CrlParams<'_>,
    index: &Index,
) -> Result<Rendered, CrlError> {
    let crl::Encoded { der, cuts } = crl::encode(ca, params, index)?;
    crl::verify(&der, ca, params, index.serials(), &[])?;
    Ok(render(key, scope, &ca.certificate_pem(), &der, &cuts, params.number))
}

/// Reads a CRL beside the complete one that somebody published, with all the checks of one that is about to
/// be. `beside` makes of the parameters of a complete CRL those that it must have.
pub(super) fn read_beside<'a>(
    der: &[u8],
    ca: &CertificateAuthority,
    beside: impl FnOnce(CrlParams<'a>) -> CrlParams<'a>,
) -> Result<(CrlFacts, Index), String> {
    let why = |error: CrlError| error.to_string();
    let facts = crl::read(der).map_err(why)?;
    let complete = CrlParams::complete(facts.number, facts.this_update, facts.next_update);
    crl::verify(der, ca, &beside(complete), facts.serials.iter().copied(), &[]).map_err(why)?;
    let index = crl::index(der).ok_or("another encoder made it")?;
    Ok((facts, index))
}

struct Made {
    facts: CrlFacts,
    index: Index,
    der: Vec<u8>,
    rendered: Rendered,
}

fn make(
    key: &CaKey,
    ca: &CertificateAuthority,
    previous: Option<&Published>,
    publication: &Publication,
) -> Result<Made, Error> {
    let Publication { number, this_update, next_update, freshest, added, leaving, .. } =
        publication;
    let mut index = previous.map_or_else(Index::default, |previous| (*previous.index).clone());
    index.remove(leaving);
    index.insert(added);
    let complete = CrlParams::complete(*number, *this_update, *next_update);
    let params = CrlParams { freshest: freshest.as_deref(), ..complete };
    let crl::Encoded { der, cuts } = crl::encode(ca, &params, &index)?;
    let listed = previous.map_or(&[][..], |previous| &previous.facts.serials);
    let facts = crl::verify(&der, ca, &params, publication.serials(listed), added)?;
    let rendered = render(key, Scope::Full, &ca.certificate_pem(), &der, &cuts, *number);
    Ok(Made { facts, index, der, rendered })
}

/// Writes a part. One that is there already has the same content: its name says so.
async fn put(context: &Context, mut part: ConfigMap) -> Result<(), Error> {
    part.metadata.namespace = Some(context.namespace.clone());
    match write(&context.client, &part).await {
        Ok(_) | Err(WriteError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes the parts of a CA's CRLs of one scope that neither the published one nor the one before it names,
/// also those of a publisher that died before it wrote the head. What can't be removed now can be the next
/// time.
pub(super) async fn sweep(
    context: &Context,
    key: &CaKey,
    scope: Scope,
    named: &[&[String]],
    now: Timestamp,
) {
    for part in context.stores.crls.list() {
        if !is_unused(key, scope, &part.metadata, named, now) {
            continue;
        }
        if let Err(error) = delete(context, &part.metadata).await {
            warn!(
                name = part.name_any(),
                error = chain(&error),
                "could not remove an old part of a CRL"
            );
        }
    }
}
