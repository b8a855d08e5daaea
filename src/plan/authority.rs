//! The objects of an authority in the operator's namespace, and its status.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::headroom::percent_left;
use super::ledger::CaKey;
use super::publication::Scope;
use crate::api::authority::{CaGeneration, CaState, CertificateCounts, CrlStatus};
use crate::api::condition::{self, BUNDLE_PUBLISHED, Wanted};
use crate::api::{ClientAuthority, ClientAuthorityStatus, annotation, label};
use crate::pki::authority::{AuthorityError, CaFacts, read_chain};
use crate::pki::crl::CrlFacts;
use crate::pki::key::{Encoding, KeyElsewhere, Signer};
use crate::pki::{CertificateAuthority, KeyType, PrivateKey};

/// A CA certificate is valid from this long before it is made: clocks differ.
pub const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// Keys of the Secret that keeps a CA.
pub mod secret_key {
    /// The CA's certificate, then those of the CAs above it.
    pub const CHAIN: &str = "tls.crt";
    /// Its key, PKCS #8.
    pub const KEY: &str = "tls.key";
    /// Instead of the key, where it lies: a `pkcs11:` URI (RFC 7512).
    pub const URI: &str = "pkcs11-uri";
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
    /// What `spec.secretRef` names is not a CA that can be used.
    SourceUnusable,
    /// The next CRL would lack a revoked serial.
    ShrinkGuard,
    /// The ledger is older than the published CRL.
    FreshnessGuard,
    /// A part of the ledger is lost or damaged.
    LedgerDamaged,
    /// Signing or checking the CRL failed.
    CrlFailed,
    /// The token that holds the CA's key is away, or refuses to work.
    TokenUnavailable,
    /// `spec.allow` can't be used: nothing new is signed, the CRL goes on being published.
    InvalidAllow,
}

impl Reason {
    /// The reason as conditions, events and metrics carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::KeyMissing => "KeyMissing",
            Self::KeyUnusable => "KeyUnusable",
            Self::Expired => "Expired",
            Self::SourceUnusable => "SourceUnusable",
            Self::ShrinkGuard => "ShrinkGuard",
            Self::FreshnessGuard => "FreshnessGuard",
            Self::LedgerDamaged => "LedgerDamaged",
            Self::CrlFailed => "CrlFailed",
            Self::TokenUnavailable => "TokenUnavailable",
            Self::InvalidAllow => "InvalidAllow",
        }
    }
}

/// Name of the Secret that holds a CA's certificate and key, in the operator's namespace.
pub fn secret_name(key: &CaKey) -> String {
    format!("ca-{}-{}", key.authority, key.generation)
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

/// A CA as its Secret keeps it.
pub struct Kept {
    /// What it does.
    pub state: CaState,
    /// Since when.
    pub since: Timestamp,
    /// Hash of what it was made from.
    pub source_hash: Option<String>,
    /// The user's request that stood on the authority when it was made.
    pub requested: Option<String>,
    /// Is its key in a token?
    pub in_token: bool,
    /// Its chain, or why it can't be used.
    pub ca: Result<CertificateAuthority, AuthorityError>,
}

/// Where the key of a CA is kept.
pub enum KeptKey<'a> {
    /// In the Secret.
    Here(&'a PrivateKey),
    /// In a token; its `pkcs11:` URI.
    InToken(&'a str),
}

/// Makes the signer for a key in a token, from its URI, its type and its SubjectPublicKeyInfo; fails when
/// the URI is not understood.
pub type FromToken<'a> = dyn Fn(&str, KeyType, Vec<u8>) -> Result<Arc<dyn Signer>, String> + 'a;

/// The Secret that keeps a new CA. It has no owner: deleting a `ClientAuthority` must not destroy
/// the only key that can sign its CRLs.
pub fn render_secret(
    key: &CaKey,
    chain_pem: String,
    kept_key: &KeptKey<'_>,
    state: CaState,
    source_hash: Option<&str>,
    now: Timestamp,
) -> Secret {
    let (name, value) = match kept_key {
        KeptKey::Here(key) => (secret_key::KEY, key.to_pem(Encoding::Pkcs8).as_bytes().to_vec()),
        KeptKey::InToken(uri) => (secret_key::URI, uri.as_bytes().to_vec()),
    };
    // The key of a root may be taken away; that of a TLS Secret must be there.
    let opaque = state == CaState::Root || matches!(kept_key, KeptKey::InToken(_));
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(key)),
            labels: Some(labels(key, "ca")),
            ..ObjectMeta::default()
        },
        type_: Some(if opaque { "Opaque" } else { "kubernetes.io/tls" }.to_owned()),
        data: Some(BTreeMap::from([
            (secret_key::CHAIN.to_owned(), ByteString(chain_pem.into_bytes())),
            (name.to_owned(), ByteString(value)),
        ])),
        ..Secret::default()
    };
    set_state(&mut secret, state, now);
    if let Some(hash) = source_hash {
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert(annotation::SOURCE_HASH.to_owned(), hash.to_owned());
    }
    secret
}

/// Notes a state on the Secret of a CA.
pub fn set_state(secret: &mut Secret, state: CaState, now: Timestamp) {
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::STATE.to_owned(), state.as_str().to_owned());
    let since = condition::truncate(now).to_string();
    annotations.insert(annotation::STATE_SINCE.to_owned(), since);
}

/// Reads the Secret of a CA. One without a state is of before there were states: it was the only one.
pub fn read_secret(secret: &Secret, from_token: &FromToken<'_>) -> Kept {
    let note = |name: &str| secret.metadata.annotations.as_ref().and_then(|notes| notes.get(name));
    let created = secret.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let state = note(annotation::STATE).and_then(|state| CaState::parse(state));
    let since = note(annotation::STATE_SINCE).and_then(|since| since.parse().ok());
    let state = state.unwrap_or(CaState::Active);
    Kept {
        state,
        since: since.or(created).unwrap_or(Timestamp::UNIX_EPOCH),
        source_hash: note(annotation::SOURCE_HASH).cloned(),
        requested: note(annotation::ROTATE_REQUESTED_AT).cloned(),
        in_token: !text_of(secret, secret_key::URI).is_empty(),
        ca: read_ca(secret, state, from_token),
    }
}

/// The text under a key of a Secret; nothing when it is missing or no text.
pub fn text_of<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default()
}

fn read_ca(
    secret: &Secret,
    state: CaState,
    from_token: &FromToken<'_>,
) -> Result<CertificateAuthority, AuthorityError> {
    let uri = text_of(secret, secret_key::URI);
    let (chain, key) = (text_of(secret, secret_key::CHAIN), text_of(secret, secret_key::KEY));
    if !uri.is_empty() {
        let chain = read_chain(chain)?;
        let mut refused = None;
        let ca = CertificateAuthority::with_remote_key(chain, |key_type, public_key_der| {
            from_token(uri, key_type, public_key_der).unwrap_or_else(|why| {
                refused = Some(why);
                Arc::new(KeyElsewhere { key_type })
            })
        });
        return refused.map_or(ca, |why| Err(AuthorityError::KeyPlace(why)));
    }
    if state == CaState::Root && key.is_empty() {
        return CertificateAuthority::without_key(read_chain(chain)?);
    }
    CertificateAuthority::from_pem(chain, key)
}

/// Does an object in the operator's namespace keep a CA?
pub fn is_ca(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(label::COMPONENT))
        .is_some_and(|component| component == "ca")
}

/// URL of a CRL of a CA below a base URL.
pub fn crl_url(base: &str, key: &CaKey, scope: Scope) -> String {
    format!("{base}{}", scope.path(key))
}

/// One CA as the status tells of it.
pub struct GenerationView<'a> {
    /// Its number.
    pub number: u32,
    /// What it does.
    pub state: CaState,
    /// Since when.
    pub since: Timestamp,
    /// What its certificate says.
    pub facts: &'a CaFacts,
}

/// The CRL of the active CA as the status tells of it.
#[derive(Clone, Copy)]
pub struct CrlView<'a> {
    /// What it says.
    pub facts: &'a CrlFacts,
    /// Its size, DER.
    pub bytes: usize,
    /// What all CA certificates and CRLs of the authority take in the Secret of a `ClientTrust`.
    pub secret_bytes: usize,
}

/// So many CAs that are trusted no more stay in the status.
const REMOVED_IN_STATUS: usize = 3;

/// The API server takes so many.
const IN_STATUS: usize = 16;

/// The status of an authority. Without any generation what was known of them is kept.
pub fn status(
    authority: &ClientAuthority,
    generations: &[GenerationView<'_>],
    crl: Option<CrlView<'_>>,
    counts: CertificateCounts,
    conditions: &[Wanted],
    now: Timestamp,
) -> ClientAuthorityStatus {
    let current = authority.status.clone().unwrap_or_default();
    let generation = authority.metadata.generation;
    let removed = generations.iter().filter(|one| one.state == CaState::Removed).count();
    let shown = generations.iter().scan(removed, |removed, one| {
        let old = one.state == CaState::Removed && *removed > REMOVED_IN_STATUS;
        *removed -= usize::from(one.state == CaState::Removed);
        Some((!old).then_some(one))
    });
    let shown: Vec<CaGeneration> = shown
        .flatten()
        .map(|one| CaGeneration {
            number: one.number.into(),
            state: one.state,
            since: Some(Time(condition::truncate(one.since))),
            fingerprint: one.facts.fingerprint.clone(),
            not_before: Time(one.facts.not_before),
            not_after: Time(one.facts.not_after),
        })
        .collect();
    let mut shown = shown;
    // The root comes first and stays; of the others the latest count.
    let first = usize::from(shown.first().is_some_and(|one| one.state == CaState::Root));
    let excess = shown.len().saturating_sub(IN_STATUS);
    shown.drain(first..first + excess);
    let bundled = conditions.iter().any(|wanted| wanted.type_ == BUNDLE_PUBLISHED);
    let known = condition::retain(&current.conditions, BUNDLE_PUBLISHED, bundled);
    ClientAuthorityStatus {
        observed_generation: generation,
        conditions: condition::merge(&known, conditions, generation, now),
        generations: if shown.is_empty() { current.generations } else { shown },
        crl: crl.map(|CrlView { facts, bytes, secret_bytes }| CrlStatus {
            number: facts.number.0.to_string(),
            this_update: Time(facts.this_update),
            next_update: Time(facts.next_update),
            entries: facts.serials.len() as i64,
            bytes: bytes as i64,
            headroom_percent: i32::try_from(percent_left(secret_bytes)).ok(),
        }),
        certificates: Some(counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::{instant, sample_with_key};

    fn no_token(uri: &str, _: KeyType, _: Vec<u8>) -> Result<Arc<dyn Signer>, String> {
        Err(format!("no token for {uri}"))
    }

    #[test]
    fn a_ca_and_its_state_survive_storage() {
        let private_key = Arc::new(PrivateKey::generate(KeyType::EcdsaP256));
        let ca = sample_with_key(private_key.clone());
        let key = CaKey { authority: "clients".into(), generation: 3 };
        let now = instant("2026-05-01T10:00:00Z");
        let mut secret = render_secret(
            &key,
            ca.chain_pem(),
            &KeptKey::Here(&private_key),
            CaState::Prepared,
            Some("hash"),
            now,
        );
        assert_eq!(key_of(&secret.metadata), Some(key));
        let kept = read_secret(&secret, &no_token);
        assert_eq!((kept.state, kept.since), (CaState::Prepared, now));
        assert_eq!(kept.source_hash.as_deref(), Some("hash"));
        assert_eq!(kept.ca.unwrap().facts(), ca.facts());

        set_state(&mut secret, CaState::Active, now);
        assert_eq!(read_secret(&secret, &no_token).state, CaState::Active);
        secret.data.as_mut().unwrap().remove(secret_key::KEY);
        assert!(read_secret(&secret, &no_token).ca.is_err());
        set_state(&mut secret, CaState::Root, now);
        let root = read_secret(&secret, &no_token).ca.unwrap();
        assert!(root.signer().sign(b"x").is_err(), "its key is not here");
        assert!(root.signer().check().is_err(), "its key is not here");
    }

    #[test]
    fn a_ca_in_a_token_is_read_while_the_token_is_away() {
        let private_key = Arc::new(PrivateKey::generate(KeyType::EcdsaP384));
        let ca = sample_with_key(private_key.clone());
        let key = CaKey { authority: "clients".into(), generation: 1 };
        let now = instant("2026-05-01T10:00:00Z");
        let in_token = KeptKey::InToken("pkcs11:there");
        let secret = render_secret(&key, ca.chain_pem(), &in_token, CaState::Active, None, now);
        let data = secret.data.as_ref().unwrap();
        assert_eq!(data.keys().collect::<Vec<_>>(), [secret_key::URI, secret_key::CHAIN]);
        assert_eq!(secret.type_.as_deref(), Some("Opaque"), "a TLS Secret would need a key");

        let kept = read_secret(&secret, &|uri, key_type, public_key_der| {
            assert_eq!((uri, key_type), ("pkcs11:there", KeyType::EcdsaP384));
            assert_eq!(public_key_der, private_key.public_key_der());
            Ok(private_key.clone())
        });
        assert!(kept.in_token);
        assert_eq!(kept.ca.unwrap().facts(), ca.facts());
        let error = read_secret(&secret, &no_token).ca.unwrap_err();
        assert_eq!(error.to_string(), "no token for pkcs11:there");
    }
}
