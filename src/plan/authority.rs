//! Does an authority have its CA, and may one be made?

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::ledger::CaKey;
use crate::api::authority::{CaGeneration, CertificateCounts, CrlStatus};
use crate::api::condition::{self, READY, Wanted};
use crate::api::{ClientAuthority, ClientAuthorityStatus, annotation, label};
use crate::pki::authority::CaFacts;
use crate::pki::crl::{CrlFacts, CrlNumber};
use crate::pki::key::Encoding;
use crate::pki::{CertificateAuthority, PrivateKey};

/// A CA certificate is valid from this long before it is made: clocks differ.
pub const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// Keys of the ConfigMap that holds a CRL.
pub mod crl_key {
    /// The CRL, DER.
    pub const DER: &str = "crl.der";
    /// The certificate of its CA, PEM, so that the server can tell issuers apart.
    pub const CA: &str = "ca.crt";
}

/// Why an authority is, or is not, ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The CA can sign, its CRL is published.
    Ready,
    /// The Secret of a CA that was in use is gone: no other CA takes its place unasked.
    KeyMissing,
    /// The Secret of the CA can't be used.
    KeyUnusable,
    /// The CA has expired.
    Expired,
    /// The next CRL would lack a revoked serial.
    ShrinkGuard,
    /// Signing or checking the CRL failed.
    CrlFailed,
}

impl Reason {
    /// The reason as conditions, events and metrics carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::KeyMissing => "KeyMissing",
            Self::KeyUnusable => "KeyUnusable",
            Self::Expired => "Expired",
            Self::ShrinkGuard => "ShrinkGuard",
            Self::CrlFailed => "CrlFailed",
        }
    }
}

/// Everything that the decision depends on.
pub struct World<'a> {
    /// Which CA.
    pub key: &'a CaKey,
    /// The Secret of the CA, read from the API server.
    pub secret: Option<&'a Secret>,
    /// Does the ledger or a published CRL show that this CA was in use?
    pub was_in_use: bool,
    /// The time.
    pub now: Timestamp,
}

/// What to do about the CA.
#[derive(Debug)]
pub enum Decision {
    /// Use this one.
    Use(Box<CertificateAuthority>),
    /// There never was one: make it.
    Mint,
    /// Neither: the condition says why.
    Refuse(Wanted),
}

/// Decides which CA signs.
pub fn decide(world: &World<'_>) -> Decision {
    let name = secret_name(world.key);
    let refuse =
        |reason: Reason, message| Decision::Refuse(Wanted::no(READY, reason.as_str(), message));
    let Some(secret) = world.secret else {
        if world.was_in_use {
            return refuse(
                Reason::KeyMissing,
                format!(
                    "Secret {name} in the operator's namespace, which holds the CA key, is gone: restore it from a backup. \
                     No new CA is made, since clients hold certificates of the old one"
                ),
            );
        }
        return Decision::Mint;
    };
    let field = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default()
    };
    match CertificateAuthority::from_pem(field("tls.crt"), field("tls.key")) {
        Err(error) => refuse(
            Reason::KeyUnusable,
            format!("Secret {name} in the operator's namespace: {error}"),
        ),
        Ok(ca) if ca.facts().not_after <= world.now => {
            refuse(Reason::Expired, format!("the CA expired at {}", ca.facts().not_after))
        }
        Ok(ca) => Decision::Use(Box::new(ca)),
    }
}

/// Name of the Secret that holds a CA's certificate and key, in the operator's namespace.
pub fn secret_name(key: &CaKey) -> String {
    format!("ca-{}-{}", key.authority, key.generation)
}

/// Name of the ConfigMap that holds a CA's published CRL, in the operator's namespace.
pub fn crl_name(key: &CaKey) -> String {
    format!("crl-{}-{}", key.authority, key.generation)
}

/// Labels of everything in the operator's namespace that belongs to a CA.
pub fn labels(key: &CaKey, component: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned()),
        (label::COMPONENT.to_owned(), component.to_owned()),
        (label::AUTHORITY.to_owned(), key.authority.to_string()),
        (label::GENERATION.to_owned(), key.generation.to_string()),
    ])
}

/// Which CA an object in the operator's namespace belongs to.
pub fn key_of(metadata: &ObjectMeta) -> Option<CaKey> {
    let labels = metadata.labels.as_ref()?;
    Some(CaKey {
        authority: labels.get(label::AUTHORITY)?.as_str().into(),
        generation: labels.get(label::GENERATION)?.parse().ok()?,
    })
}

/// The Secret that keeps a new CA. It has no owner: deleting a `ClientAuthority` must not destroy
/// the only key that can sign its CRLs.
pub fn render_secret(key: &CaKey, ca_pem: String, private_key: &PrivateKey) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(key)),
            labels: Some(labels(key, "ca")),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            ("tls.crt".to_owned(), ByteString(ca_pem.into_bytes())),
            (
                "tls.key".to_owned(),
                ByteString(private_key.to_pem(Encoding::Pkcs8).as_bytes().to_vec()),
            ),
        ])),
        ..Secret::default()
    }
}

/// The ConfigMap that publishes a CRL.
pub fn render_crl(key: &CaKey, ca_pem: &str, der: Vec<u8>, number: CrlNumber) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(crl_name(key)),
            labels: Some(labels(key, "crl")),
            annotations: Some(BTreeMap::from([(
                annotation::CRL_NUMBER.to_owned(),
                number.0.to_string(),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(crl_key::CA.to_owned(), ca_pem.to_owned())])),
        binary_data: Some(BTreeMap::from([(crl_key::DER.to_owned(), ByteString(der))])),
        ..ConfigMap::default()
    }
}

/// URL of a CA's CRL below a base URL.
pub fn crl_url(base: &str, key: &CaKey) -> String {
    format!("{base}/crl/{}/{}.crl", key.authority, key.generation)
}

/// The status of an authority.
pub fn status(
    authority: &ClientAuthority,
    key: &CaKey,
    ca: Option<&CaFacts>,
    crl: Option<(&CrlFacts, usize)>,
    counts: CertificateCounts,
    ready: Wanted,
    now: Timestamp,
) -> ClientAuthorityStatus {
    let current = authority.status.clone().unwrap_or_default();
    let generation = authority.metadata.generation;
    ClientAuthorityStatus {
        observed_generation: generation,
        conditions: condition::merge(&current.conditions, &[ready], generation, now),
        generations: match ca {
            // What was known of a CA that can't be read now is kept.
            None => current.generations,
            Some(ca) => vec![CaGeneration {
                number: key.generation.into(),
                state: "Active".to_owned(),
                fingerprint: ca.fingerprint.clone(),
                not_before: Time(ca.not_before),
                not_after: Time(ca.not_after),
            }],
        },
        crl: crl.map(|(facts, bytes)| CrlStatus {
            number: facts.number.0.to_string(),
            this_update: Time(facts.this_update),
            next_update: Time(facts.next_update),
            entries: facts.serials.len() as i64,
            bytes: bytes as i64,
        }),
        certificates: Some(counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::KeyType;
    use crate::pki::authority::tests::{instant, sample_with_key};
    use std::sync::Arc;

    fn pair() -> (Arc<PrivateKey>, CertificateAuthority) {
        let key = Arc::new(PrivateKey::generate(KeyType::EcdsaP256));
        (key.clone(), sample_with_key(key))
    }

    fn world<'a>(key: &'a CaKey, secret: Option<&'a Secret>, was_in_use: bool) -> World<'a> {
        World { key, secret, was_in_use, now: instant("2026-05-01T00:00:00Z") }
    }

    fn reason(decision: Decision) -> &'static str {
        match decision {
            Decision::Use(_) => "Use",
            Decision::Mint => "Mint",
            Decision::Refuse(wanted) => wanted.reason,
        }
    }

    #[test]
    fn a_ca_is_made_once_and_never_replaced_unasked() {
        let key = CaKey::first("clients");
        let (private_key, ca) = pair();
        let good = render_secret(&key, ca.certificate_pem(), &private_key);
        let swapped = render_secret(&key, ca.certificate_pem(), &pair().0);
        for (secret, was_in_use, expected) in [
            (None, false, "Mint"),
            (None, true, "KeyMissing"),
            (Some(&good), true, "Use"),
            (Some(&good), false, "Use"),
            (Some(&swapped), true, "KeyUnusable"),
        ] {
            assert_eq!(reason(decide(&world(&key, secret, was_in_use))), expected);
        }
        let late = World { now: instant("2036-01-01T00:00:00Z"), ..world(&key, Some(&good), true) };
        assert_eq!(reason(decide(&late)), "Expired");
    }

    #[test]
    fn a_ca_is_found_again_by_its_labels() {
        let key = CaKey::first("clients");
        let (private_key, ca) = pair();
        let secret = render_secret(&key, ca.certificate_pem(), &private_key);
        assert_eq!(key_of(&secret.metadata), Some(key));
    }
}
