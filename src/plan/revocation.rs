//! Which certificates a `CertificateRevocation` revokes, and whether the CRL shows them.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::ledger::{CaKey, Issued, Ledger, Record, Revoked};
use crate::api::condition::{self, PUBLISHED, RECORDED, Wanted};
use crate::api::revocation::{RevocationReason, RevokedCertificate};
use crate::api::{CertificateRevocation, CertificateRevocationStatus};
use crate::pki::Serial;
use crate::pki::crl::{CrlFacts, CrlNumber};

/// As many certificates are named in status; the ledger holds all.
const NAMED_IN_STATUS: usize = 100;

/// Why a revocation is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The serials stand in the ledger.
    Recorded,
    /// The serials stand in a published CRL.
    Published,
    /// The CRL that holds them is not published yet.
    Pending,
    /// Nothing that was issued in this namespace matches.
    NotFound,
    /// `spec.serialNumber` is not one.
    InvalidSerialNumber,
}

impl Reason {
    /// The reason as conditions and events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "Recorded",
            Self::Published => "Published",
            Self::Pending => "Pending",
            Self::NotFound => "NotFound",
            Self::InvalidSerialNumber => "InvalidSerialNumber",
        }
    }
}

/// One CA with its ledger and published CRL.
pub struct Book<'a> {
    /// Which CA.
    pub key: &'a CaKey,
    /// Its ledger.
    pub ledger: &'a Ledger,
    /// Its published CRL.
    pub published: Option<&'a CrlFacts>,
    /// Is it trusted? Where it is not, nobody asks for its CRL.
    pub trusted: bool,
}

/// Everything that the decision depends on.
pub struct World<'a> {
    /// The request.
    pub revocation: &'a CertificateRevocation,
    /// UID of the identity that it names, when that exists.
    pub identity_uid: Option<&'a str>,
    /// All CAs.
    pub books: Vec<Book<'a>>,
    /// The time.
    pub now: Timestamp,
}

/// What to do about a revocation.
#[derive(Debug, PartialEq)]
pub struct Decision {
    /// What to record first.
    pub record: Vec<(CaKey, Record)>,
    /// The status once that is recorded.
    pub status: CertificateRevocationStatus,
}

/// Decides which certificates are revoked.
pub fn decide(world: &World<'_>) -> Decision {
    let spec = &world.revocation.spec;
    let before = world.revocation.status.clone().unwrap_or_default();
    let namespace = world.revocation.metadata.namespace.as_deref().unwrap_or_default();

    let target = match (&spec.identity_ref, &spec.serial_number) {
        (Some(identity), _) => match holder_uid(world, &before, namespace, &identity.name) {
            Some(uid) => Target::Holder(uid),
            None => {
                return nothing(
                    world,
                    before,
                    Reason::NotFound,
                    format!(
                        "spec.identityRef.name: no ClientIdentity {:?} exists in namespace {namespace:?}, and the ledger knows no certificate of one",
                        identity.name
                    ),
                );
            }
        },
        (None, serial) => match serial.as_deref().unwrap_or_default().parse() {
            Ok(serial) => Target::Serial(serial),
            Err(error) => {
                let message = format!("spec.serialNumber: {error}");
                return nothing(world, before, Reason::InvalidSerialNumber, message);
            }
        },
    };

    let mut record = Vec::new();
    let mut certificates = Vec::new();
    let mut numbers = Vec::new();
    let mut pending = 0;
    for book in &world.books {
        let mut here = 0;
        for issued in matching(book.ledger, &target, namespace) {
            let known = book.ledger.revocation(&issued.serial);
            // An expired certificate is refused anyway; one already revoked stays so.
            if known.is_none() && issued.not_after <= world.now {
                continue;
            }
            let revoked = known.copied().unwrap_or(Revoked {
                serial: issued.serial,
                revoked_at: condition::truncate(world.now),
                reason: spec.reason.map(RevocationReason::code),
            });
            if known.is_none() {
                record.push((book.key.clone(), Record::Revoked(revoked)));
            }
            let listed =
                book.published.is_some_and(|crl| crl.serials.binary_search(&issued.serial).is_ok());
            let left = book.ledger.may_leave(&issued.serial, book.published);
            pending += usize::from(book.trusted && !listed && !left);
            here += 1;
            certificates.push(RevokedCertificate {
                authority: book.key.authority.to_string(),
                serial_number: issued.serial.to_string(),
                revocation_time: Time(revoked.revoked_at),
            });
        }
        if here > 0 {
            numbers.extend(book.published.map(|crl| crl.number));
        }
    }
    let identity_uid = match &target {
        Target::Holder(uid) => Some(uid.to_string()),
        Target::Serial(_) => None,
    };
    if certificates.is_empty() {
        // The identity exists but holds nothing to revoke; it is on hold all the same.
        if let (Target::Holder(_), Some(_)) = (&target, world.identity_uid) {
            let message = "the ClientIdentity holds no unexpired certificate; none is issued while this object exists";
            let mut decision = nothing(world, before, Reason::Recorded, message.to_owned());
            decision.status.identity_uid = identity_uid;
            return decision;
        }
        let message = match &target {
            Target::Serial(serial) => format!(
                "spec.serialNumber: no unexpired certificate {serial} was issued in namespace {namespace:?}"
            ),
            Target::Holder(_) => "every certificate of the identity has expired".to_owned(),
        };
        return nothing(world, before, Reason::NotFound, message);
    }

    let count = certificates.len();
    let recorded = Wanted::yes(
        RECORDED,
        Reason::Recorded.as_str(),
        format!("{count} certificate(s) recorded as revoked"),
    );
    // `Published` says that the CRL held them once; it does not fall back when entries expire.
    let was_published = condition::is_true(&before.conditions, PUBLISHED) && record.is_empty();
    let published = if pending == 0 || was_published {
        Wanted::yes(
            PUBLISHED,
            Reason::Published.as_str(),
            "every certificate stands in the published CRL",
        )
    } else {
        Wanted::no(
            PUBLISHED,
            Reason::Pending.as_str(),
            format!("{pending} certificate(s) wait for the next CRL"),
        )
    };
    let first_time = published.status && before.published_time.is_none();
    certificates.drain(..count.saturating_sub(NAMED_IN_STATUS));
    let status = CertificateRevocationStatus {
        identity_uid,
        certificates,
        crl_number: if first_time {
            numbers.into_iter().max().map(text)
        } else {
            before.crl_number
        },
        published_time: if first_time {
            Some(Time(condition::truncate(world.now)))
        } else {
            before.published_time
        },
        conditions: condition::merge(
            &before.conditions,
            &[recorded, published],
            world.revocation.metadata.generation,
            world.now,
        ),
    };
    Decision { record, status }
}

enum Target {
    Holder(Arc<str>),
    Serial(Serial),
}

/// The identity of the name, or, when it is gone, the last one that held a certificate.
fn holder_uid(
    world: &World<'_>,
    before: &CertificateRevocationStatus,
    namespace: &str,
    name: &str,
) -> Option<Arc<str>> {
    if let Some(uid) = before.identity_uid.as_deref().or(world.identity_uid) {
        return Some(uid.into());
    }
    let held = world.books.iter().flat_map(|book| book.ledger.issued());
    held.filter(|issued| &*issued.holder.namespace == namespace && &*issued.holder.name == name)
        .max_by_key(|issued| issued.not_after)
        .map(|issued| issued.holder.uid.clone())
}

/// Only certificates of the request's own namespace: who may write there may revoke there.
fn matching<'a>(ledger: &'a Ledger, target: &Target, namespace: &str) -> Vec<&'a Issued> {
    let candidates: Vec<&Issued> = match target {
        Target::Holder(uid) => ledger.of_holder(uid).collect(),
        Target::Serial(serial) => ledger.find(serial).into_iter().collect(),
    };
    candidates.into_iter().filter(|issued| &*issued.holder.namespace == namespace).collect()
}

fn nothing(
    world: &World<'_>,
    before: CertificateRevocationStatus,
    reason: Reason,
    message: String,
) -> Decision {
    let recorded = Wanted {
        status: reason == Reason::Recorded,
        ..Wanted::no(RECORDED, reason.as_str(), message)
    };
    let generation = world.revocation.metadata.generation;
    let conditions = condition::merge(&before.conditions, &[recorded], generation, world.now);
    Decision { record: Vec::new(), status: CertificateRevocationStatus { conditions, ..before } }
}

fn text(number: CrlNumber) -> String {
    number.0.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{CertificateRevocationSpec, LocalReference};
    use crate::plan::ledger::tests::issued;

    fn revocation(identity: Option<&str>, serial: Option<&str>) -> CertificateRevocation {
        let mut revocation = CertificateRevocation::new(
            "stolen",
            CertificateRevocationSpec {
                identity_ref: identity.map(|name| LocalReference { name: name.into() }),
                serial_number: serial.map(Into::into),
                reason: Some(RevocationReason::KeyCompromise),
            },
        );
        revocation.metadata.namespace = Some("team".into());
        revocation
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.apply(Record::Issued(issued("01", "uid-1", 1, 50)));
        ledger.apply(Record::Issued(issued("02", "uid-1", 2, 5000)));
        ledger.apply(Record::Issued(issued("03", "uid-1", 3, 6000)));
        ledger.apply(Record::Issued(issued("04", "uid-2", 1, 4000)));
        ledger
    }

    fn run(
        revocation: &CertificateRevocation,
        ledger: &Ledger,
        uid: Option<&str>,
        crl: Option<&CrlFacts>,
    ) -> Decision {
        let key = CaKey::first("clients");
        let books = vec![Book { key: &key, ledger, published: crl, trusted: true }];
        let now = Timestamp::from_second(100).unwrap();
        decide(&World { revocation, identity_uid: uid, books, now })
    }

    fn crl(serials: &[&str]) -> CrlFacts {
        CrlFacts {
            number: CrlNumber(42),
            this_update: Timestamp::from_second(90).unwrap(),
            next_update: Timestamp::from_second(9000).unwrap(),
            issuer_der: vec![],
            authority_key_id: vec![],
            serials: serials.iter().map(|serial| serial.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn an_identity_loses_all_its_unexpired_certificates_and_no_other_loses_any() {
        let ledger = ledger();
        let revocation = revocation(Some("laptop"), None);
        let decision = run(&revocation, &ledger, Some("uid-1"), None);
        let serials: Vec<_> =
            decision.record.iter().map(|(_, record)| record.serial().to_string()).collect();
        assert_eq!(serials, ["02", "03"]);
        assert!(condition::is_true(&decision.status.conditions, RECORDED));
        assert!(!condition::is_true(&decision.status.conditions, PUBLISHED));
        assert_eq!(decision.status.identity_uid.as_deref(), Some("uid-1"));
    }

    #[test]
    fn a_deleted_identity_is_found_in_the_ledger() {
        let decision = run(&revocation(Some("laptop"), None), &ledger(), None, None);
        assert_eq!(decision.status.identity_uid.as_deref(), Some("uid-1"));
        assert_eq!(decision.record.len(), 2);
    }

    #[test]
    fn published_is_told_with_the_number_once_the_crl_holds_them() {
        let mut ledger = ledger();
        let mut revocation = revocation(None, Some("02"));
        let first = run(&revocation, &ledger, None, Some(&crl(&[])));
        assert_eq!(first.record.len(), 1);
        ledger.apply(first.record[0].1.clone());
        revocation.status = Some(first.status);

        let second = run(&revocation, &ledger, None, Some(&crl(&["02"])));
        assert!(second.record.is_empty());
        assert!(condition::is_true(&second.status.conditions, PUBLISHED));
        assert_eq!(second.status.crl_number.as_deref(), Some("42"));
        revocation.status = Some(second.status.clone());
        let third = run(&revocation, &ledger, None, Some(&crl(&["02", "03"])));
        assert_eq!(third.status, second.status, "a settled revocation must not change");
    }

    #[test]
    fn nothing_of_another_namespace_is_revoked() {
        let mut foreign = revocation(None, Some("02"));
        foreign.metadata.namespace = Some("other".into());
        let decision = run(&foreign, &ledger(), None, None);
        assert!(decision.record.is_empty());
        assert_eq!(decision.status.conditions[0].reason, "NotFound");
        let mut foreign = revocation(Some("laptop"), None);
        foreign.metadata.namespace = Some("other".into());
        assert!(run(&foreign, &ledger(), None, None).record.is_empty());
    }

    #[test]
    fn what_does_not_exist_is_said_to_be_not_found() {
        for revocation in [revocation(Some("nobody"), None), revocation(None, Some("99"))] {
            let decision = run(&revocation, &ledger(), None, None);
            assert_eq!(decision.status.conditions[0].reason, "NotFound");
            assert_eq!(decision.status.conditions[0].status, "False");
        }
    }

    #[test]
    fn a_ca_that_nobody_trusts_has_nothing_left_to_publish() {
        let (key, ledger, revocation) =
            (CaKey::first("clients"), ledger(), revocation(Some("laptop"), None));
        for (trusted, status) in [(true, "False"), (false, "True")] {
            let books = vec![Book { key: &key, ledger: &ledger, published: None, trusted }];
            let now = Timestamp::from_second(100).unwrap();
            let identity_uid = Some("uid-1");
            let world = World { revocation: &revocation, identity_uid, books, now };
            let conditions = decide(&world).status.conditions;
            let published = conditions.iter().find(|found| found.type_ == PUBLISHED).unwrap();
            assert_eq!(published.status, status);
        }
    }
}
