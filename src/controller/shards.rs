//! The shards of each CRL, when the authority asks for them: made of the complete CRL in service, and
//! published as that one is. Nothing of Countersign decides by them.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use tracing::{error, info};

use super::context::{Context, Generation};
use super::error::Error;
use super::publish::{AT_ONCE, apart, fetch, get, has_parts, install, make_beside, read_beside};
use crate::api::ClientAuthority;
use crate::cluster::Key;
use crate::pki::crl::{CrlFacts, CrlNumber, CrlParams, Index};
use crate::pki::{CertificateAuthority, Serial};
use crate::plan::authority::crl_url;
use crate::plan::publication::{Scope, head_name, part_names, shard_of};
use crate::plan::shard::{self, Decision, decide, division};

/// A shard as it stands in the cluster.
#[derive(Clone)]
pub struct Shard {
    // None when what stands there can't be used.
    published: Option<shard::Shard>,
    // The complete CRL whose entries it was last compared with, and found to have.
    compared: Option<CrlNumber>,
    parts: Arc<[String]>,
    resource_version: Option<String>,
}

/// What all shards of a CRL have in common.
struct Division<'a> {
    context: &'a Context,
    full: &'a Generation,
    base: &'a str,
    of: u32,
    refresh: SignedDuration,
    now: Timestamp,
}

/// Has the shards of these CRLs published, and says when to look again.
pub(super) async fn keep(
    context: &Context,
    authority: &ClientAuthority,
    crls: &[Generation],
    now: Timestamp,
) -> Result<Duration, Error> {
    let spec = &authority.spec.crl;
    let mut next = Duration::MAX;
    let Some((of, base)) = division(spec)? else { return Ok(next) };
    let refresh = SignedDuration::from_secs(spec.refresh.as_secs());
    let mut failed = None;
    for full in crls {
        match (Division { context, full, base, of, refresh, now }).keep().await {
            Ok(due) => {
                let wait = Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO);
                next = next.min(wait.max(Duration::from_secs(1)));
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(next), Err)
}

impl Division<'_> {
    /// Publishes the shards that are due; when the next one is.
    async fn keep(&self) -> Result<Timestamp, Error> {
        let scopes = stream::iter(Scope::shards(self.of).map(|scope| self.in_service(scope)));
        let mut shards: Vec<Option<Shard>> = scopes.buffered(AT_ONCE).try_collect().await?;
        let number = self.full.published.facts.number;
        let entries = |shard: &Shard| Some(shard.published.as_ref()?.entries.clone());
        let is_compared = |shard: &Option<Shard>| {
            let shard = shard.as_ref().filter(|shard| shard.compared == Some(number));
            let entries = shard.and_then(entries)?;
            matches!(self.decide(shard, &entries), Decision::WaitUntil(_)).then_some(())
        };
        if !shards.iter().all(|shard| is_compared(shard).is_some()) {
            shards = self.publish(shards).await?;
        }
        let due = shards.iter().map(|shard| {
            let entries = shard.as_ref().and_then(entries).unwrap_or_default();
            match self.decide(shard.as_ref(), &entries) {
                Decision::WaitUntil(due) => due,
                Decision::Sign => self.now,
            }
        });
        Ok(due.min().unwrap_or(self.now))
    }

    /// Compares each shard with the complete CRL, and publishes those that are due.
    async fn publish(&self, shards: Vec<Option<Shard>>) -> Result<Vec<Option<Shard>>, Error> {
        let (index, of) = (self.full.published.index.clone(), self.of);
        let wanted = apart(move || {
            let place = |serial: &Serial| shard_of(serial, of) as usize;
            let parts = index.partition(of as usize, place).into_iter();
            parts.map(|index| (index.sha256(), index)).collect::<Vec<_>>()
        });
        let all = Scope::shards(of).zip(shards).zip(wanted.await);
        let kept = all.map(|((scope, shard), (entries, index))| async move {
            if self.decide(shard.as_ref(), &entries) == Decision::Sign {
                return self.sign(scope, shard, entries, index).await.map(Some);
            }
            let same =
                |shard: &Shard| shard.published.as_ref().map(|one| &one.entries) == Some(&entries);
            let number = self.full.published.facts.number;
            let compared =
                |shard: Shard| Shard { compared: same(&shard).then_some(number), ..shard };
            Ok(shard.map(compared).inspect(|shard| self.note(scope, shard)))
        });
        stream::iter(kept).buffered(AT_ONCE).try_collect().await
    }

    fn decide(&self, shard: Option<&Shard>, entries: &str) -> Decision {
        let published = shard.and_then(|shard| shard.published.as_ref());
        let not_after = self.full.ca.facts().not_after;
        decide(published, &self.full.published.facts, entries, self.refresh, not_after, self.now)
    }

    fn url(&self, scope: Scope) -> String {
        crl_url(self.base, &self.full.key, scope)
    }

    fn note(&self, scope: Scope, shard: &Shard) {
        let mut shards = self.context.shards.lock().expect("no holder of this lock panics");
        shards.insert((self.full.key.clone(), scope), shard.clone());
    }

    /// The shard that stands in the cluster. It is read again when the watch shows another version.
    async fn in_service(&self, scope: Scope) -> Result<Option<Shard>, Error> {
        let (context, key) = (self.context, &self.full.key);
        let name = head_name(key, scope);
        let known = {
            let shards = context.shards.lock().expect("no holder of this lock panics");
            shards.get(&(key.clone(), scope)).cloned()
        };
        let head = context.stores.crls.get(&Key::new(&context.namespace, &name));
        let seen = head.and_then(|head| head.metadata.resource_version.clone());
        let is_known = |version: &Option<String>| {
            let known = known.as_ref().filter(|known| known.resource_version == *version);
            known.filter(|known| version.is_some() && has_parts(context, &known.parts)).cloned()
        };
        if let Some(known) = is_known(&seen) {
            return Ok(Some(known));
        }
        let Some(head) = get(context, &name).await? else { return Ok(None) };
        let resource_version = head.resource_version();
        if let Some(known) = is_known(&resource_version) {
            return Ok(Some(known));
        }
        let parts = part_names(key, &head).into();
        let der = fetch(context, key, head).await?;
        let (ca, url) = (self.full.ca.clone(), self.url(scope));
        let published = match apart(move || der.and_then(|der| read(&der, &ca, &url))).await {
            Ok(published) => Some(published),
            Err(why) => {
                error!(name, why, "the published shard can't be used; it is published anew");
                None
            }
        };
        Ok(Some(Shard { published, compared: None, parts, resource_version }))
    }

    /// Signs, checks by independent code, and publishes.
    async fn sign(
        &self,
        scope: Scope,
        before: Option<Shard>,
        entries: String,
        index: Index,
    ) -> Result<Shard, Error> {
        let full = &self.full.published.facts;
        let (number, this_update, next_update) = (full.number, full.this_update, full.next_update);
        let (key, ca, url) = (self.full.key.clone(), self.full.ca.clone(), self.url(scope));
        let rendered = apart(move || {
            let complete = CrlParams::complete(number, this_update, next_update);
            let params = CrlParams { distribution_point: Some(&url), ..complete };
            make_beside(&key, scope, &ca, &params, &index)
        });
        let rendered = rendered.await?;
        let (known, version) =
            before.map_or_else(Default::default, |one| (one.parts, one.resource_version));
        let (parts, resource_version) =
            install(self.context, &self.full.key, scope, rendered, &known, version, self.now)
                .await?;
        info!(key = %self.full.key, %scope, number = number.0, "published a shard of a CRL");
        let published = shard::Shard { number, this_update, next_update, entries };
        let shard = Shard {
            published: Some(published),
            compared: Some(number),
            parts: parts.into(),
            resource_version,
        };
        self.note(scope, &shard);
        Ok(shard)
    }
}

fn read(der: &[u8], ca: &CertificateAuthority, url: &str) -> Result<shard::Shard, String> {
    let of_shard = |complete| CrlParams { distribution_point: Some(url), ..complete };
    let (CrlFacts { number, this_update, next_update, .. }, index) =
        read_beside(der, ca, of_shard)?;
    Ok(shard::Shard { number, this_update, next_update, entries: index.sha256() })
}
