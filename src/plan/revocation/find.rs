//! Whom and what a request concerns, by the ledger and by what its identity's Secret holds.

use kube::ResourceExt;

use super::{Book, Decision, Reason, World, told};
use crate::api::CertificateRevocationStatus;
use crate::api::condition::{self, READY, RECORDED};
use crate::api::material::RotationPolicy;
use crate::plan::ledger::{Issued, Revoked};
use crate::plan::scope::{Scope, Target, holds, reaches, revisions, target};

/// A certificate that the request concerns.
pub(super) struct Found<'a> {
    /// The CA that signed it.
    pub book: &'a Book<'a>,
    /// The certificate.
    pub issued: &'a Issued,
    /// Its revocation.
    pub revoked: Option<Revoked>,
}

impl Found<'_> {
    /// Does it wait for a CRL?
    pub fn is_pending(&self) -> bool {
        let (serial, published) = (&self.issued.serial, self.book.published);
        let listed = published.is_some_and(|crl| crl.serials.binary_search(serial).is_ok());
        self.book.trusted && !listed && !self.book.ledger.may_leave(serial, published)
    }
}

/// Why nothing is revoked now.
pub(super) enum Refusal {
    /// The condition says why.
    Told(Reason, String),
    /// Which certificates are concerned is written down first.
    Fix(Box<CertificateRevocationStatus>),
    /// The identity holds nothing, and gets nothing.
    Held(String),
}

impl Refusal {
    pub fn into_decision(self, world: &World<'_>, before: CertificateRevocationStatus) -> Decision {
        match self {
            // What was revoked stays so, also when the ledger has forgotten what expired.
            Self::Told(..) if condition::is_true(&before.conditions, RECORDED) => Decision {
                record: Vec::new(),
                status: before,
                awaits: None,
                rests_on_secret: false,
            },
            Self::Told(reason, message) => told(world, before, reason, message),
            Self::Fix(fixed) => {
                let (reason, message) = if world.revocation.spec.renew {
                    (Reason::WaitingForRenewal, "a new certificate is asked for")
                } else {
                    (Reason::Pending, "it is being recorded")
                };
                let decision = told(world, *fixed, reason, message.to_owned());
                Decision { rests_on_secret: true, ..decision }
            }
            Self::Held(uid) => {
                let message = "the ClientIdentity holds no unexpired certificate; none is issued while this object exists";
                let mut decision = told(world, before, Reason::Recorded, message.to_owned());
                decision.status.identity_uid = Some(uid);
                decision
            }
        }
    }
}

/// What the request concerns, or why it can't be told.
pub(super) fn scope<'a>(
    world: &'a World<'_>,
    before: &'a CertificateRevocationStatus,
) -> Result<Scope<'a>, Refusal> {
    let spec = &world.revocation.spec;
    let namespace = world.revocation.metadata.namespace.as_deref().unwrap_or_default();
    let name = match target(spec).map_err(|(reason, message)| Refusal::Told(reason, message))? {
        Target::Serial(serial) => return Ok(Scope::One(serial)),
        Target::Fingerprint(_) => {
            // Found once, it is not lost when others forget it.
            let known = before.certificates.first().and_then(|one| one.serial_number.parse().ok());
            return known.or(world.fingerprinted).map(Scope::One).ok_or_else(|| {
                let message = format!(
                    "spec.fingerprint: no unexpired certificate with this fingerprint is known in namespace {namespace:?}; \
                     if you have its serial number, spec.serialNumber finds it too"
                );
                Refusal::Told(Reason::NotFound, message)
            });
        }
        Target::Identity(name) => name,
    };
    let Some(uid) = holder_uid(world, before, namespace, name) else {
        return Err(Refusal::Told(
            Reason::NotFound,
            format!(
                "spec.identityRef.name: no ClientIdentity {name:?} exists in namespace {namespace:?}, and the ledger knows no certificate of one"
            ),
        ));
    };
    if before.revisions.is_none() {
        let last = world.books.iter().map(|book| book.ledger.last_revision(uid)).max().unwrap_or(0);
        let identity = world.identity;
        let told =
            identity.and_then(|identity| identity.status.as_ref()?.revision?.try_into().ok());
        let current = world.in_secret.map(|current| current.revision).or(told);
        let key = identity.and_then(|identity| identity.spec.private_key.as_ref());
        let keeps_key = key.is_some_and(|key| key.rotation_policy == RotationPolicy::Never);
        let fixed = revisions(spec, last, current, keeps_key);
        if fixed.is_some() {
            let identity_uid = Some(uid.to_owned());
            return Err(Refusal::Fix(Box::new(CertificateRevocationStatus {
                identity_uid,
                revisions: fixed,
                ..before.clone()
            })));
        }
    }
    let issued_before = spec.issued_before.as_ref().map(|time| time.0);
    Ok(Scope::Held { uid, revisions: before.revisions, issued_before })
}

/// The identity of the name, or, when it is gone, the last one that held a certificate.
fn holder_uid<'a>(
    world: &'a World<'_>,
    before: &'a CertificateRevocationStatus,
    namespace: &str,
    name: &str,
) -> Option<&'a str> {
    let exists = world.identity.and_then(|identity| identity.metadata.uid.as_deref());
    if let Some(uid) = before.identity_uid.as_deref().or(exists) {
        return Some(uid);
    }
    let held = world.books.iter().flat_map(|book| book.ledger.issued());
    held.filter(|issued| &*issued.holder.namespace == namespace && &*issued.holder.name == name)
        .max_by_key(|issued| issued.not_after)
        .map(|issued| &*issued.holder.uid)
}

/// The certificates that are, or are to be, revoked. An expired one is refused anyway.
pub(super) fn find<'a>(world: &'a World<'_>, scope: &Scope<'_>) -> Result<Vec<Found<'a>>, Refusal> {
    let namespace = world.revocation.metadata.namespace.as_deref().unwrap_or_default();
    // Names of identities are those of the request's own namespace, whatever that is.
    let home = if scope.uid().is_some() { namespace } else { world.home };
    let mut found = Vec::new();
    let mut elsewhere = false;
    for book in &world.books {
        let candidates: Vec<&Issued> = match scope {
            Scope::Held { uid, .. } => book.ledger.of_holder(uid).collect(),
            Scope::One(serial) => book.ledger.find(serial).into_iter().collect(),
        };
        let mut candidates: Vec<_> =
            candidates.into_iter().filter(|issued| scope.contains(issued)).collect();
        candidates.sort_by_key(|issued| (issued.revision, issued.serial));
        for issued in candidates {
            let revoked = book.ledger.revocation(&issued.serial).copied();
            let own = scope.uid().is_none() || &*issued.holder.namespace == namespace;
            if !own || !reaches(namespace, home, issued) {
                elsewhere = true;
            } else if revoked.is_some() || issued.not_after > world.now {
                found.push(Found { book, issued, revoked });
            }
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let spec = &world.revocation.spec;
    let field = if spec.serial_number.is_some() { "serialNumber" } else { "fingerprint" };
    Err(match scope {
        Scope::One(_) if elsewhere => Refusal::Told(
            Reason::OtherNamespace,
            format!(
                "spec.{field}: the certificate was issued in another namespace than {namespace:?}; a CertificateRevocation there, \
                 or one in the operator's namespace, can revoke it"
            ),
        ),
        Scope::One(serial) => Refusal::Told(
            Reason::NotFound,
            format!(
                "spec.{field}: no unexpired certificate {serial} was issued in namespace {namespace:?}"
            ),
        ),
        // The identity exists but holds nothing to revoke; it is on hold all the same.
        Scope::Held { uid, .. } if holds(spec) && world.identity.is_some() => {
            Refusal::Held((*uid).to_owned())
        }
        Scope::Held { .. } => {
            let message = "no unexpired certificate of the ClientIdentity is concerned";
            Refusal::Told(Reason::NotFound, message.to_owned())
        }
    })
}

/// Why the new certificate is not in place yet; none when it is, or when none will come.
pub(super) fn awaited(world: &World<'_>, scope: &Scope<'_>, found: &Found<'_>) -> Option<String> {
    let holder = Some(&*found.issued.holder.uid);
    let identity = world.identity.filter(|identity| identity.metadata.uid.as_deref() == holder)?;
    if identity.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let good = world.in_secret.is_some_and(|current| {
        world.books.iter().any(|book| {
            let issued = book.ledger.find(&current.serial);
            issued.is_some_and(|issued| !scope.contains(issued) && issued.not_after > world.now)
                && book.ledger.revocation(&current.serial).is_none()
        })
    });
    if good {
        return None;
    }
    let name = identity.name_any();
    let conditions = identity.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.into_iter().find(|c| c.type_ == READY && c.status != "True");
    Some(ready.map_or_else(
        || format!("waiting for the new certificate of ClientIdentity {name:?}"),
        |ready| {
            let message = &ready.message;
            let mut cause =
                format!("ClientIdentity {name:?} is not ready: {}: {message}", ready.reason);
            cause.truncate(cause.floor_char_boundary(1024));
            cause
        },
    ))
}
