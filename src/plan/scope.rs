//! Which certificates a `CertificateRevocation` names, and what it means for the identity that holds them.

use jiff::{SignedDuration, Timestamp};

use super::ledger::Issued;
use super::revocation::Reason;
use crate::api::revocation::{Certificates, RevisionRange};
use crate::api::{CertificateRevocation, CertificateRevocationSpec};
use crate::pki::Serial;

/// How long a new certificate is waited for when the spec does not say.
const RENEW_TIMEOUT: SignedDuration = SignedDuration::from_mins(10);

/// What a spec names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Certificates of the identity of this name.
    Identity(&'a str),
    /// One certificate, by its serial number.
    Serial(Serial),
    /// One certificate, by its SHA-256 fingerprint.
    Fingerprint([u8; 32]),
}

/// Reads what a spec names, or what is wrong with it. The API server checks it first; an object that was
/// stored before its rules were comes here all the same, and must not revoke what nobody meant.
pub fn target(spec: &CertificateRevocationSpec) -> Result<Target<'_>, (Reason, String)> {
    let invalid = |message: &str| Err((Reason::InvalidSpec, message.to_owned()));
    let target = match (&spec.identity_ref, &spec.serial_number, &spec.fingerprint) {
        (Some(identity), None, None) => Target::Identity(&identity.name),
        (None, Some(serial), None) => Target::Serial(serial.parse().map_err(|error| {
            (Reason::InvalidSerialNumber, format!("spec.serialNumber: {error}"))
        })?),
        (None, None, Some(text)) => Target::Fingerprint(fingerprint(text).ok_or_else(|| {
            let message = "spec.fingerprint: expected a SHA-256 fingerprint, 32 octets in hex";
            (Reason::InvalidFingerprint, message.to_owned())
        })?),
        _ => {
            return invalid(
                "spec must set exactly one of identityRef, serialNumber and fingerprint",
            );
        }
    };
    let chooses = spec.certificates.is_some() || spec.issued_before.is_some();
    if chooses && spec.identity_ref.is_none() {
        return invalid(
            "spec.certificates and spec.issuedBefore choose among the certificates of spec.identityRef: set it too",
        );
    }
    if spec.renew && spec.certificates == Some(Certificates::Superseded) {
        return invalid(
            "spec.renew: certificates that were superseded have their successor; leave spec.renew out, or choose All or Current",
        );
    }
    if spec.renew_timeout.is_some() && !spec.renew {
        return invalid("spec.renewTimeout counts only with spec.renew: set that too");
    }
    let bounds = 10..=24 * 3600;
    if spec.renew_timeout.is_some_and(|timeout| !bounds.contains(&timeout.as_secs())) {
        return invalid("spec.renewTimeout must be 10s to 24h");
    }
    Ok(target)
}

/// A SHA-256 fingerprint in hex; colons are ignored.
pub fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[pair.len() - 1]).collect();
    bytes.try_into().ok().filter(|_| digits.len() == 64)
}

/// Does the request keep the identity from getting another certificate as long as it exists?
pub fn holds(spec: &CertificateRevocationSpec) -> bool {
    let all = spec.certificates.unwrap_or_default() == Certificates::All;
    spec.identity_ref.is_some() && all && spec.issued_before.is_none() && !spec.renew
}

/// Until when a new certificate is waited for.
pub fn deadline(revocation: &CertificateRevocation) -> Timestamp {
    let timeout = revocation.spec.renew_timeout;
    let timeout =
        timeout.map_or(RENEW_TIMEOUT, |timeout| SignedDuration::from_secs(timeout.as_secs()));
    // One that was never stored waits for nothing.
    let created = revocation.metadata.creation_timestamp.as_ref();
    let created = created.map_or(Timestamp::UNIX_EPOCH, |created| created.0);
    created.saturating_add(timeout).unwrap_or(Timestamp::MAX)
}

/// The revisions of an identity that a request concerns, as things are now; none when it holds back every
/// other certificate, so that there is nothing to tell apart. They are fixed before anything is revoked:
/// which certificate is the current one changes with the revocation itself.
///
/// `last` is the highest revision in the ledger, `current` that of the certificate in the Secret. One
/// between the two is about to be written there, and is no successor that anybody may rely on.
/// `keeps_key` says that renewals keep the identity's key: one that was decided on before the request was
/// seen, and is recorded only after this, would keep it too, so that it is concerned as well.
pub fn revisions(
    spec: &CertificateRevocationSpec,
    last: u32,
    current: Option<u32>,
    keeps_key: bool,
) -> Option<RevisionRange> {
    if spec.identity_ref.is_none() || holds(spec) {
        return None;
    }
    let current = i64::from(current.unwrap_or(last));
    let last = i64::from(last) + i64::from(spec.renew && keeps_key);
    Some(match spec.certificates.unwrap_or_default() {
        Certificates::All => RevisionRange { first: 1, last },
        Certificates::Current => RevisionRange { first: current, last },
        Certificates::Superseded => RevisionRange { first: 1, last: current - 1 },
    })
}

/// The certificates that a request concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Certificates of one identity.
    Held {
        /// UID of the identity.
        uid: &'a str,
        /// Only these revisions.
        revisions: Option<RevisionRange>,
        /// Only those that were issued before this time.
        issued_before: Option<Timestamp>,
    },
    /// One.
    One(Serial),
}

impl<'a> Scope<'a> {
    /// UID of the identity, unless it is one certificate that is named.
    pub fn uid(&self) -> Option<&'a str> {
        match self {
            Self::Held { uid, .. } => Some(uid),
            Self::One(_) => None,
        }
    }

    /// Does it concern this certificate?
    pub fn contains(&self, issued: &Issued) -> bool {
        match self {
            Self::One(serial) => issued.serial == *serial,
            Self::Held { uid, revisions, issued_before } => {
                let revision = i64::from(issued.revision);
                &*issued.holder.uid == *uid
                    && revisions
                        .is_none_or(|range| (range.first..=range.last).contains(&revision))
                    // One without a date counts as issued before any.
                    && issued_before.is_none_or(|end| issued.issued_at.is_none_or(|at| at < end))
            }
        }
    }
}

/// May a request of this namespace revoke this certificate? Who may write in a namespace may revoke what
/// was issued there. Who may write in the operator's namespace, `home`, has the CAs' keys anyway.
pub fn reaches(namespace: &str, home: &str, issued: &Issued) -> bool {
    namespace == home || &*issued.holder.namespace == namespace
}

/// What a request with `spec.renew` wants of the identity that holds a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Renewal {
    /// Nothing: it does not concern this certificate.
    Unconcerned,
    /// It was not looked at yet: what is issued meanwhile must not keep the key.
    Announced,
    /// A new certificate, with another key.
    Wanted,
}

/// What a request wants of the identity that holds this certificate, whose SHA-256 is `fingerprint` in hex.
pub fn renewal(
    revocation: &CertificateRevocation,
    issued: &Issued,
    fingerprint: &str,
    home: &str,
) -> Renewal {
    let spec = &revocation.spec;
    let namespace = revocation.metadata.namespace.as_deref().unwrap_or_default();
    let Ok(target) = target(spec) else { return Renewal::Unconcerned };
    if !spec.renew || !reaches(namespace, home, issued) {
        return Renewal::Unconcerned;
    }
    let status = revocation.status.as_ref();
    let (concerned, fixed) = match target {
        Target::Serial(serial) => (Scope::One(serial).contains(issued), true),
        Target::Fingerprint(wanted) => (self::fingerprint(fingerprint) == Some(wanted), true),
        Target::Identity(name) => {
            let revisions = status.and_then(|status| status.revisions);
            let known = status.and_then(|status| status.identity_uid.as_deref());
            let scope = Scope::Held {
                uid: known.unwrap_or(&issued.holder.uid),
                revisions,
                issued_before: spec.issued_before.as_ref().map(|time| time.0),
            };
            let same_name = &*issued.holder.name == name && &*issued.holder.namespace == namespace;
            (same_name && scope.contains(issued), revisions.is_some())
        }
    };
    match (concerned, fixed) {
        (false, _) => Renewal::Unconcerned,
        (true, false) => Renewal::Announced,
        (true, true) => Renewal::Wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::LocalReference;
    use crate::api::duration::Duration;
    use crate::plan::ledger::tests::issued;
    use proptest::prelude::*;

    fn spec() -> CertificateRevocationSpec {
        CertificateRevocationSpec {
            identity_ref: None,
            certificates: None,
            issued_before: None,
            serial_number: None,
            fingerprint: None,
            renew: false,
            renew_timeout: None,
            reason: None,
        }
    }

    fn of_identity() -> CertificateRevocationSpec {
        CertificateRevocationSpec {
            identity_ref: Some(LocalReference { name: "laptop".into() }),
            ..spec()
        }
    }

    fn range(first: i64, last: i64) -> Option<RevisionRange> {
        Some(RevisionRange { first, last })
    }

    #[test]
    fn what_excludes_each_other_is_refused_here_too() {
        let serial = Some("0a".to_owned());
        let of_serial = || CertificateRevocationSpec { serial_number: serial.clone(), ..spec() };
        for (spec, words) in [
            (spec(), "exactly one of"),
            (
                CertificateRevocationSpec { serial_number: serial.clone(), ..of_identity() },
                "exactly one of",
            ),
            (
                CertificateRevocationSpec { certificates: Some(Certificates::All), ..of_serial() },
                "set it too",
            ),
            (
                CertificateRevocationSpec {
                    renew: true,
                    certificates: Some(Certificates::Superseded),
                    ..of_identity()
                },
                "have their successor",
            ),
            (
                CertificateRevocationSpec {
                    renew_timeout: Some(Duration::from_secs(60)),
                    ..of_serial()
                },
                "counts only with spec.renew",
            ),
            (
                CertificateRevocationSpec {
                    renew: true,
                    renew_timeout: Some(Duration::from_hours(25)),
                    ..of_serial()
                },
                "10s to 24h",
            ),
            (
                CertificateRevocationSpec { serial_number: Some("xy".into()), ..spec() },
                "spec.serialNumber",
            ),
            (
                CertificateRevocationSpec { fingerprint: Some("0a0b".into()), ..spec() },
                "spec.fingerprint",
            ),
        ] {
            let (_, message) = target(&spec).expect_err(words);
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_openssl_and_others_write_it() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(fingerprint(&plain), Some([0xab; 32]));
        assert_eq!(fingerprint(&colons), Some([0xab; 32]));
        for bad in ["", "ab", &plain[1..], &format!("{plain}ab"), &"xy".repeat(32)] {
            assert_eq!(fingerprint(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_request_for_all_without_renewal_holds_the_identity() {
        assert!(holds(&of_identity()));
        let before = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH);
        for spec in [
            CertificateRevocationSpec { renew: true, ..of_identity() },
            CertificateRevocationSpec { issued_before: Some(before), ..of_identity() },
            CertificateRevocationSpec {
                certificates: Some(Certificates::Current),
                ..of_identity()
            },
            CertificateRevocationSpec { serial_number: Some("0a".into()), ..spec() },
        ] {
            assert!(!holds(&spec));
        }
    }

    #[test]
    fn the_revisions_that_are_concerned() {
        let of = |certificates, renew| CertificateRevocationSpec {
            certificates: Some(certificates),
            renew,
            ..of_identity()
        };
        for (spec, current, keeps_key, expected) in [
            (of(Certificates::All, false), Some(5), false, None),
            (of(Certificates::All, true), Some(5), false, range(1, 5)),
            // One that was decided on before, and is recorded after, would keep the key.
            (of(Certificates::All, true), Some(5), true, range(1, 6)),
            (of(Certificates::Current, false), Some(5), true, range(5, 5)),
            (of(Certificates::Superseded, false), Some(5), false, range(1, 4)),
            // Revision 5 is about to be written: it is as current as the one in the Secret.
            (of(Certificates::Current, false), Some(4), false, range(4, 5)),
            (of(Certificates::Superseded, false), Some(4), false, range(1, 3)),
            // No Secret.
            (of(Certificates::Current, false), None, false, range(5, 5)),
        ] {
            assert_eq!(revisions(&spec, 5, current, keeps_key), expected, "{spec:?}");
        }
    }

    #[test]
    fn a_renewal_is_wanted_of_the_holder_once_it_is_known_what_is_concerned() {
        let issued = issued("0a", "uid", 3, 5000);
        let print = "ab".repeat(32);
        let request = |spec: CertificateRevocationSpec, namespace: &str| {
            let mut request = CertificateRevocation::new("lost", spec);
            request.metadata.namespace = Some(namespace.into());
            request
        };
        let renew = |spec| CertificateRevocationSpec { renew: true, ..spec };
        let ask = |request: &CertificateRevocation| renewal(request, &issued, &print, "home");
        let of_serial = CertificateRevocationSpec { serial_number: Some("0A".into()), ..spec() };
        assert_eq!(ask(&request(of_serial.clone(), "team")), Renewal::Unconcerned);
        let of_serial = renew(of_serial);
        for (namespace, expected) in
            [("team", Renewal::Wanted), ("home", Renewal::Wanted), ("other", Renewal::Unconcerned)]
        {
            assert_eq!(ask(&request(of_serial.clone(), namespace)), expected, "{namespace}");
        }
        let of_print =
            renew(CertificateRevocationSpec { fingerprint: Some(print.clone()), ..spec() });
        assert_eq!(ask(&request(of_print, "team")), Renewal::Wanted);
        let mut of_name = request(renew(of_identity()), "team");
        assert_eq!(ask(&of_name), Renewal::Announced, "it was not looked at yet");
        for (revisions, expected) in
            [(range(1, 3), Renewal::Wanted), (range(1, 2), Renewal::Unconcerned)]
        {
            of_name.status = Some(crate::api::CertificateRevocationStatus {
                identity_uid: Some("uid".into()),
                revisions,
                ..Default::default()
            });
            assert_eq!(ask(&of_name), expected);
        }
        of_name.status.as_mut().unwrap().identity_uid = Some("another".into());
        assert_eq!(ask(&of_name), Renewal::Unconcerned, "a later identity of the name");
        let at_home = request(renew(of_identity()), "home");
        assert_eq!(ask(&at_home), Renewal::Unconcerned, "names are those of a namespace");
    }

    proptest! {
        #[test]
        fn what_is_issued_after_the_request_was_seen_is_never_concerned(
            last in 1u32..50, current in proptest::option::of(1u32..50), later in 1u32..50,
            which in 0usize..3, renew: bool, keeps_key: bool, dated: bool,
        ) {
            let certificates = [Certificates::All, Certificates::Current, Certificates::Superseded][which];
            let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::MAX);
            let spec = CertificateRevocationSpec {
                certificates: Some(certificates),
                issued_before: dated.then_some(time),
                renew,
                ..of_identity()
            };
            let current = current.filter(|current| *current <= last);
            let revisions = revisions(&spec, last, current, keeps_key);
            prop_assert_eq!(revisions.is_none(), holds(&spec));
            let scope = Scope::Held { uid: "uid", revisions, issued_before: None };
            let reserved = u32::from(renew && keeps_key);
            let after = issued("0a", "uid", last + reserved + later, 5000);
            prop_assert!(!scope.contains(&after) || holds(&spec));
            let of_another = issued("0a", "another", 1, 5000);
            prop_assert!(!scope.contains(&of_another));
        }
    }
}
