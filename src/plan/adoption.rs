//! Identities that a backup brought back: under another UID, with the Secret that they had. Such a Secret
//! carries no owner reference, since the owner's UID is not known to the cluster that it is restored to.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::identity::holder;
use super::ledger::{CaKey, Issued};
use super::secret::{Current, is_ownerless};
use crate::api::lifecycle::DeletionPolicy;
use crate::api::{ClientIdentity, annotation};
use crate::pki::hex;

/// A restore brings Secrets back before their identities: so long after its Secret was made a certificate
/// is not revoked for want of its identity, and so long after its identity was found anew it is not for
/// not being adopted yet.
pub const RESTORE_WINDOW: SignedDuration = SignedDuration::from_mins(15);

/// What the ledger knows of the certificate in a Secret.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The CA whose ledger knows it.
    pub ca: &'a CaKey,
    /// What was signed.
    pub issued: &'a Issued,
    /// Is it revoked?
    pub revoked: bool,
    /// SHA-256 of the certificate, when it was recorded.
    pub fingerprint: Option<&'a [u8; 32]>,
}

/// The record to append so that an identity takes over the certificate of a restored Secret, which was
/// verified with its key; nothing when it may not, and gets one of its own.
///
/// Only the certificate of an identity of the same namespace and name is taken over: whoever may create
/// identities in a namespace gets none of another name, and none that is revoked. What it says is
/// compared with the spec afterwards, as that of any certificate.
pub fn adopted(
    identity: &ClientIdentity,
    current: &Current,
    known: &Known<'_>,
    now: Timestamp,
) -> Option<Issued> {
    let Known { ca, issued, revoked, fingerprint } = *known;
    let new = holder(identity);
    let same_name = issued.holder.namespace == new.namespace && issued.holder.name == new.name;
    let same_ca =
        *ca.authority == *identity.spec.authority_ref.name && ca.generation == current.generation;
    let same_certificate = issued.serial == current.serial
        && issued.not_after == current.not_after
        && issued.revision == current.revision
        && fingerprint.is_none_or(|fingerprint| hex(fingerprint) == current.fingerprint);
    let is_live = !revoked && issued.not_after > now;
    (same_name && same_ca && same_certificate && is_live).then(|| Issued {
        holder: new,
        retain: identity.spec.deletion_policy == DeletionPolicy::Retain,
        ..issued.clone()
    })
}

/// May the identity of a certificate be about to be restored? `secret` are the metadata of the one that
/// carries its serial; `identity` says that one of its name exists, under another UID.
pub fn is_awaited(issued: &Issued, secret: &ObjectMeta, identity: bool, now: Timestamp) -> bool {
    let note = |name: &str| secret.annotations.as_ref().and_then(|notes| notes.get(name));
    let of_it = secret.namespace.as_deref() == Some(&*issued.holder.namespace)
        && note(annotation::SERIAL) == Some(&issued.serial.to_string())
        && is_ownerless(secret, &issued.holder.name);
    let made = secret.creation_timestamp.as_ref().map(|time| time.0);
    // One that has stood there for long was left by its identity, not restored.
    let is_new = made.is_some_and(|made| now.duration_since(made) < RESTORE_WINDOW);
    of_it && secret.deletion_timestamp.is_none() && (identity || is_new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::identity::tests::identity;
    use crate::plan::ledger::Holder;
    use crate::plan::ledger::tests::issued;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn current() -> Current {
        Current {
            serial: "0a".parse().unwrap(),
            fingerprint: "07".repeat(32),
            not_before: at(0),
            not_after: at(1000),
            revision: 3,
            spec_hash: String::new(),
            generation: 1,
            bundle_hash: String::new(),
            data_hash: None,
            public_key: None,
            lacks: None,
        }
    }

    fn before() -> Issued {
        let new = holder(&identity());
        let old = issued("0a", "old", 3, 1000);
        Issued { holder: Holder { uid: "old".into(), ..new }, retain: true, ..old }
    }

    #[test]
    fn an_identity_takes_over_what_was_issued_to_its_name_and_nothing_else() {
        let (identity, ca, other_ca) = (identity(), CaKey::first("clients"), CaKey::first("other"));
        let next = CaKey { generation: 2, ..ca.clone() };
        let issued = before();
        let known = Known { ca: &ca, issued: &issued, revoked: false, fingerprint: Some(&[7; 32]) };
        let take = |known: Known<'_>, now| adopted(&identity, &current(), &known, at(now));
        let record = take(known, 500).expect("it is its own");
        assert_eq!(record.holder, holder(&identity));
        assert_eq!(Issued { holder: issued.holder.clone(), retain: true, ..record }, issued);
        assert!(take(Known { fingerprint: None, ..known }, 500).is_some());

        assert_eq!(take(known, 1000), None, "it has expired");
        let of = |name: &str, namespace: &str| {
            let holder =
                Holder { name: name.into(), namespace: namespace.into(), ..issued.holder.clone() };
            Issued { holder, ..issued.clone() }
        };
        let (name, namespace) = (&*issued.holder.name, &*issued.holder.namespace);
        for (why, known) in [
            ("revoked", Known { revoked: true, ..known }),
            ("another name", Known { issued: &of("desk", namespace), ..known }),
            ("another namespace", Known { issued: &of(name, "elsewhere"), ..known }),
            ("another authority", Known { ca: &other_ca, ..known }),
            ("another CA", Known { ca: &next, ..known }),
            ("another certificate", Known { fingerprint: Some(&[8; 32]), ..known }),
            ("another end", Known { issued: &Issued { not_after: at(900), ..before() }, ..known }),
            ("another revision", Known { issued: &Issued { revision: 2, ..before() }, ..known }),
        ] {
            assert_eq!(take(known, 500), None, "{why}");
        }
    }

    #[test]
    fn only_a_restored_secret_keeps_a_certificate_waiting_for_its_identity() {
        let issued = before();
        let notes = [(annotation::SERIAL, "0a"), (annotation::IDENTITY, &*issued.holder.name)];
        let secret = ObjectMeta {
            namespace: Some(issued.holder.namespace.to_string()),
            labels: Some(
                [(crate::api::label::MANAGED_BY.to_owned(), "countersign".to_owned())].into(),
            ),
            annotations: Some(
                notes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ),
            creation_timestamp: Some(Time(at(100))),
            ..ObjectMeta::default()
        };
        let waits =
            |secret: &ObjectMeta, identity, now| is_awaited(&issued, secret, identity, at(now));
        assert!(waits(&secret, false, 100) && waits(&secret, false, 900));
        assert!(!waits(&secret, false, 1001), "it was there before its identity went");
        assert!(waits(&secret, true, 1001), "its identity is about to look at it");
        let mut owned = secret.clone();
        owned.owner_references =
            Some(vec![OwnerReference { controller: Some(true), ..OwnerReference::default() }]);
        let mut leaving = secret.clone();
        leaving.deletion_timestamp = Some(Time(at(200)));
        let mut foreign = secret.clone();
        foreign.labels = None;
        let mut of_another = secret.clone();
        of_another.annotations.as_mut().unwrap().insert(annotation::IDENTITY.into(), "desk".into());
        let mut newer = secret.clone();
        newer.annotations.as_mut().unwrap().insert(annotation::SERIAL.into(), "0b".into());
        let mut elsewhere = secret;
        elsewhere.namespace = Some("elsewhere".into());
        for other in [owned, leaving, foreign, of_another, newer, elsewhere] {
            assert!(!waits(&other, true, 200), "{other:?}");
        }
    }
}
