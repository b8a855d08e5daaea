//! An identity's Secret: whose it is, what it holds, and how it is written. Reading never fails, it
//! tells what is wrong; rendering cannot fail.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use super::material::{self, ADDITIONAL, Material, Password};
use super::template::dress;
use crate::api::{ClientIdentity, ClientIdentitySpec, annotation, label};
use crate::pki::inspect::{certificates, inspect};
use crate::pki::verify::verify_client;
use crate::pki::{CertificateAuthority, PrivateKey, Serial, sha256_hex};

/// Its keys.
pub mod key {
    /// The certificate, leaf first, then the CAs between it and the root.
    pub const CERTIFICATE: &str = "tls.crt";
    /// The private key, unless the client keeps it.
    pub const KEY: &str = "tls.key";
    /// The trust bundle that verifies peers of the same authority.
    pub const CA: &str = "ca.crt";
    /// Key and certificate in one file.
    pub const COMBINED: &str = "tls-combined.pem";
    /// The private key without its PEM.
    pub const DER: &str = "key.der";
    /// Key and certificate, PKCS #12.
    pub const KEYSTORE: &str = "keystore.p12";
    /// The trust bundle, PKCS #12.
    pub const TRUSTSTORE: &str = "truststore.p12";
}

/// The Secret that an identity names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretView {
    /// There is none.
    Absent,
    /// It belongs to somebody else; why we think so.
    Foreign(String),
    /// It belonged to a deleted identity of the same name and is about to be collected.
    Leaving,
    /// It is ours, of a type that does not go with the spec, and a type can't be changed.
    OtherType {
        /// The type that it has.
        present: String,
        /// The type that it needs.
        wanted: &'static str,
        /// What it holds, by its annotations.
        current: Option<Current>,
    },
    /// It is ours, and what it holds is not a usable certificate; why.
    Broken(&'static str),
    /// It carries our mark for this identity and no owner reference, as a restored backup does, and holds
    /// a certificate with its key: the ledger says whether it is this identity's.
    Restored(Current),
    /// It is ours and holds a certificate with its key.
    Good(Current),
}

/// The certificate in a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// Its serial number.
    pub serial: Serial,
    /// SHA-256, lower-case hex.
    pub fingerprint: String,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// Number of the issuance.
    pub revision: u32,
    /// Hash of what it was made from.
    pub spec_hash: String,
    /// Number of the authority's CA that signed it.
    pub generation: u32,
    /// SHA-256 of the trust bundle beside it, lower-case hex.
    pub bundle_hash: String,
    /// `material::hash` of what else the Secret holds; none when it does not hold that.
    pub data_hash: Option<String>,
    /// SHA-256 of its SubjectPublicKeyInfo; none when only the Secret's metadata was read.
    pub public_key: Option<String>,
    /// Why the key stores that were asked for are missing.
    pub lacks: Option<String>,
}

/// What an authority publishes, as the check of a Secret needs it.
#[derive(Clone, Copy)]
pub struct Published<'a> {
    /// Its CAs.
    pub trusted: &'a [&'a CertificateAuthority],
    /// The trust bundle, PEM.
    pub bundle: &'a str,
}

/// The type of a Secret: that for TLS demands a key.
pub fn secret_type(spec: &ClientIdentitySpec) -> &'static str {
    if spec.request.is_some() { "Opaque" } else { "kubernetes.io/tls" }
}

/// Who a Secret belongs to, seen from an identity that names it.
pub fn ownership(identity: &ClientIdentity, secret: &ObjectMeta) -> Option<SecretView> {
    let controller =
        secret.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let uid = &identity.metadata.uid;
    match controller {
        Some(owner) if Some(&owner.uid) == uid.as_ref() => None,
        Some(owner)
            if owner.kind == ClientIdentity::kind(&())
                && owner.name == identity.name_any()
                && label::is_ours(secret) =>
        {
            Some(SecretView::Leaving)
        }
        Some(owner) => {
            Some(SecretView::Foreign(format!("controlled by {} {:?}", owner.kind, owner.name)))
        }
        // One that outlives its identity carries its UID instead of an owner reference.
        None if label::is_ours(secret)
            && uid.is_some()
            && mark(secret, annotation::IDENTITY_UID) == uid.as_ref() =>
        {
            None
        }
        None if is_ownerless(secret, &identity.name_any()) => {
            Some(SecretView::Broken("it has lost its owner reference"))
        }
        None => {
            Some(SecretView::Foreign("it carries no owner reference to this ClientIdentity".into()))
        }
    }
}

/// Does a Secret belong to nobody, and carry our mark for an identity of this name, as a restored backup
/// does?
pub fn is_ownerless(secret: &ObjectMeta, identity: &str) -> bool {
    let is_controlled =
        secret.owner_references.iter().flatten().any(|owner| owner.controller == Some(true));
    let mark = mark(secret, annotation::IDENTITY);
    !is_controlled && label::is_ours(secret) && mark.is_some_and(|mark| mark == identity)
}

fn mark<'a>(secret: &'a ObjectMeta, name: &str) -> Option<&'a String> {
    secret.annotations.as_ref().and_then(|annotations| annotations.get(name))
}

/// Reads a whole Secret: does it hold a certificate with its own key, does the CA verify it that says to
/// have signed it, and does all stand there that the spec asks for beside it? The password is that of the
/// key stores, when there shall be some.
pub fn view_secret(
    identity: &ClientIdentity,
    secret: Option<&Secret>,
    published: Option<Published<'_>>,
    password: Option<&Password>,
    now: Timestamp,
) -> SecretView {
    let Some(secret) = secret else {
        return SecretView::Absent;
    };
    let owned = match ownership(identity, &secret.metadata) {
        Some(view @ (SecretView::Foreign(_) | SecretView::Leaving)) => return view,
        other => other,
    };
    let wanted = secret_type(&identity.spec);
    if let Some(present) = secret.type_.as_deref().filter(|present| *present != wanted) {
        let current = view_metadata(&secret.metadata);
        return SecretView::OtherType { present: present.to_owned(), wanted, current };
    }
    let is_restored = owned.is_some();
    if !label::is_ours(&secret.metadata) {
        // The watch selects by the label: without it nobody would see the next change.
        return SecretView::Broken("it has lost its label");
    }
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let field = |key: &str| data.get(key).map(|bytes| bytes.0.as_slice()).unwrap_or_default();
    let chain = certificates(field(key::CERTIFICATE)).unwrap_or_default();
    let Some(facts) = chain.first().and_then(|leaf| inspect(leaf).ok()) else {
        return SecretView::Broken("tls.crt is not a certificate");
    };
    let private_key = present_key(secret);
    if identity.spec.request.is_none()
        && private_key.as_ref().map(PrivateKey::public_key_der).as_ref()
            != Some(&facts.public_key_der)
    {
        return SecretView::Broken("tls.crt and tls.key are not a certificate and its key");
    }
    let Some(noted) = view_metadata(&secret.metadata) else {
        return SecretView::Broken("annotations are missing");
    };
    if (noted.serial, &noted.fingerprint) != (facts.serial, &facts.fingerprint) {
        return SecretView::Broken("tls.crt is not the certificate that was issued");
    }
    // An expired certificate is not broken, and one of another CA is not: both are replaced for what
    // they are.
    let verified_at = now.min(facts.not_after).max(facts.not_before);
    let trusted = published.map(|published| published.trusted).unwrap_or_default();
    let ca = trusted.iter().find(|ca| ca.facts().key_id == facts.authority_key_id);
    if is_restored && ca.is_none() {
        return SecretView::Broken("it has lost its owner reference");
    }
    if let Some(ca) = ca
        && verify_client(&chain[0], &chain[1..], std::slice::from_ref(ca.root()), verified_at)
            .is_err()
    {
        return SecretView::Broken("the published trust does not verify tls.crt");
    }
    let mut current = Current {
        not_before: facts.not_before,
        not_after: facts.not_after,
        bundle_hash: sha256_hex(field(key::CA)),
        public_key: Some(sha256_hex(&facts.public_key_der)),
        ..noted
    };
    current.lacks = lacks(&identity.spec, data, &current, published, password);
    if let Some(Published { bundle, .. }) = published {
        let key = private_key.filter(|_| identity.spec.request.is_none());
        let material = Material {
            chain: field(key::CERTIFICATE).to_vec(),
            key: key.as_ref(),
            bundle,
            // Made anew they would differ from themselves: they are opened instead.
            keystores: None,
        };
        let expected = material::data(&identity.spec, &material);
        let asked = |key: &str| {
            expected.contains_key(key)
                || ([key::KEYSTORE, key::TRUSTSTORE].contains(&key)
                    && material::pkcs12(&identity.spec).is_some()
                    && current.lacks.is_none())
        };
        let same = expected.iter().all(|(key, value)| data.get(key) == Some(value))
            && noted_keys(&secret.metadata).all(|key| asked(key) || !data.contains_key(key))
            && match password {
                Some(Ok(password)) => material::is_sealed(identity, data, &material, password),
                _ => true,
            };
        if !same {
            current.data_hash = None;
        }
    }
    if is_restored { SecretView::Restored(current) } else { SecretView::Good(current) }
}

/// Key stores are missing when their password can't be had, unless those that stand there were made as
/// the spec says.
fn lacks(
    spec: &ClientIdentitySpec,
    data: &BTreeMap<String, ByteString>,
    noted: &Current,
    published: Option<Published<'_>>,
    password: Option<&Password>,
) -> Option<String> {
    material::pkcs12(spec)?;
    let stand = [key::KEYSTORE, key::TRUSTSTORE].iter().all(|key| data.contains_key(*key))
        && noted.data_hash == Some(material::hash(spec, true))
        && published
            .is_none_or(|published| noted.bundle_hash == sha256_hex(published.bundle.as_bytes()));
    match password {
        Some(Err(why)) if !stand => Some(why.clone()),
        _ => None,
    }
}

/// The private key that a Secret holds.
pub fn present_key(secret: &Secret) -> Option<PrivateKey> {
    let text = std::str::from_utf8(&secret.data.as_ref()?.get(key::KEY)?.0).ok()?;
    PrivateKey::from_pem(text).ok()
}

/// Can all be told from the metadata of a Secret? Not when it lacks key stores: somebody has to look
/// whether their password is there now.
pub fn is_complete(identity: &ClientIdentity, metadata: &ObjectMeta) -> bool {
    material::pkcs12(&identity.spec).is_none()
        || noted_keys(metadata).any(|noted| noted == key::KEYSTORE)
}

fn noted_keys(metadata: &ObjectMeta) -> impl Iterator<Item = &str> {
    let annotations = metadata.annotations.as_ref();
    let noted = annotations.and_then(|annotations| annotations.get(annotation::ADDITIONAL_KEYS));
    noted
        .map(String::as_str)
        .unwrap_or_default()
        .split(',')
        .filter(|noted| ADDITIONAL.contains(noted))
}

/// Reads the facts that stand in a Secret's annotations.
pub fn view_metadata(metadata: &ObjectMeta) -> Option<Current> {
    let annotations = metadata.annotations.as_ref()?;
    let text = |key: &str| annotations.get(key).map(String::as_str);
    Some(Current {
        serial: text(annotation::SERIAL)?.parse().ok()?,
        fingerprint: text(annotation::FINGERPRINT)?.to_owned(),
        not_before: text(annotation::NOT_BEFORE)?.parse().ok()?,
        not_after: text(annotation::NOT_AFTER)?.parse().ok()?,
        revision: text(annotation::REVISION)?.parse().ok()?,
        spec_hash: text(annotation::SPEC_HASH)?.to_owned(),
        generation: text(annotation::GENERATION)?.parse().ok()?,
        bundle_hash: text(annotation::BUNDLE)?.to_owned(),
        data_hash: text(annotation::DATA_HASH).map(ToOwned::to_owned),
        public_key: None,
        lacks: None,
    })
}

/// A certificate as it goes into a Secret.
pub struct Rendered<'a> {
    /// The certificate's facts.
    pub current: &'a Current,
    /// What the data is made from.
    pub material: Material<'a>,
}

/// The Secret of a newly issued certificate: over the present one, when there is one, so that keys,
/// labels and annotations that others added stay. Key pair and chain change in this one write.
pub fn render_secret(
    identity: &ClientIdentity,
    present: Option<Secret>,
    rendered: &Rendered<'_>,
) -> Secret {
    let mut secret = present.unwrap_or_default();
    let name = &identity.spec.secret_name;
    secret.metadata.name = Some(name.clone());
    secret.metadata.namespace = identity.namespace();
    secret.metadata.managed_fields = None;
    dress(identity, &mut secret.metadata);
    let current = rendered.current;
    let annotations = secret.metadata.annotations.get_or_insert_default();
    for (key, value) in [
        (annotation::SERIAL, current.serial.to_string()),
        (annotation::FINGERPRINT, current.fingerprint.clone()),
        (annotation::NOT_BEFORE, current.not_before.to_string()),
        (annotation::NOT_AFTER, current.not_after.to_string()),
        (annotation::REVISION, current.revision.to_string()),
        (annotation::SPEC_HASH, current.spec_hash.clone()),
        (annotation::GENERATION, current.generation.to_string()),
    ] {
        annotations.insert(key.to_owned(), value);
    }
    secret.type_ = Some(secret_type(&identity.spec).to_owned());
    fill(&identity.spec, &mut secret, &rendered.material);
    secret
}

/// The present Secret with the same certificate and key, and all else as the spec and the published trust
/// want it.
pub fn render_refresh(
    identity: &ClientIdentity,
    mut present: Secret,
    material: &Material<'_>,
) -> Secret {
    fill(&identity.spec, &mut present, material);
    present.metadata.managed_fields = None;
    dress(identity, &mut present.metadata);
    present
}

/// The chain that a Secret holds, PEM.
pub fn present_chain(secret: &Secret) -> Vec<u8> {
    let chain = secret.data.as_ref().and_then(|data| data.get(key::CERTIFICATE));
    chain.map(|chain| chain.0.clone()).unwrap_or_default()
}

/// Puts our data into a Secret, takes out what of it is no longer asked for, and notes both.
fn fill(spec: &ClientIdentitySpec, secret: &mut Secret, material: &Material<'_>) {
    let ours = material::data(spec, material);
    let complete = material::pkcs12(spec).is_none() || material.keystores.is_some();
    let data = secret.data.get_or_insert_default();
    for stale in noted_keys(&secret.metadata).filter(|key| !ours.contains_key(*key)) {
        data.remove(stale);
    }
    let additional: Vec<&str> =
        ADDITIONAL.into_iter().filter(|key| ours.contains_key(*key)).collect();
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::DATA_HASH.to_owned(), material::hash(spec, complete));
    annotations.insert(annotation::BUNDLE.to_owned(), sha256_hex(material.bundle.as_bytes()));
    if additional.is_empty() {
        annotations.remove(annotation::ADDITIONAL_KEYS);
    } else {
        annotations.insert(annotation::ADDITIONAL_KEYS.to_owned(), additional.join(","));
    }
    data.extend(ours);
}

/// The field manager of the last write of a Secret by another than `ours`.
pub fn last_writer<'a>(secret: &'a Secret, ours: &str) -> Option<&'a str> {
    let entries = secret.metadata.managed_fields.iter().flatten();
    let others = entries.filter(|entry| entry.manager.as_deref() != Some(ours));
    let last = others.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?;
    last.manager.as_deref()
}
