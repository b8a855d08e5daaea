//! An identity's Secret: whose it is, what it holds, and how it is written. Reading never fails, it
//! tells what is wrong; rendering cannot fail.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use super::template::dress;
use crate::api::{ClientIdentity, annotation, label};
use crate::pki::inspect::{certificates, inspect_pair};
use crate::pki::key::Encoding;
use crate::pki::verify::verify_client;
use crate::pki::{CertificateAuthority, PrivateKey, Serial, sha256_hex};

/// Its keys.
pub mod key {
    /// The certificate, leaf first.
    pub const CERTIFICATE: &str = "tls.crt";
    /// The private key, PKCS#8.
    pub const KEY: &str = "tls.key";
    /// The trust bundle that verifies peers of the same authority.
    pub const CA: &str = "ca.crt";
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
    /// It is ours, and what it holds is not a usable certificate; why.
    Broken(&'static str),
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
                && is_ours(secret) =>
        {
            Some(SecretView::Leaving)
        }
        Some(owner) => {
            Some(SecretView::Foreign(format!("controlled by {} {:?}", owner.kind, owner.name)))
        }
        // One that outlives its identity carries its UID instead of an owner reference.
        None if is_ours(secret)
            && uid.is_some()
            && mark(secret, annotation::IDENTITY_UID) == uid.as_ref() =>
        {
            None
        }
        // A restored backup comes without owner references. The Secret is taken over when it carries
        // our mark for this very identity, its certificate is not: the ledger knows it as another's.
        None if is_ours(secret)
            && mark(secret, annotation::IDENTITY) == identity.metadata.name.as_ref() =>
        {
            Some(SecretView::Broken("it has lost its owner reference"))
        }
        None => {
            Some(SecretView::Foreign("it carries no owner reference to this ClientIdentity".into()))
        }
    }
}

fn is_ours(secret: &ObjectMeta) -> bool {
    let labels = secret.labels.as_ref();
    labels.and_then(|labels| labels.get(label::MANAGED_BY)).map(String::as_str)
        == Some(label::MANAGED_BY_VALUE)
}

fn mark<'a>(secret: &'a ObjectMeta, name: &str) -> Option<&'a String> {
    secret.annotations.as_ref().and_then(|annotations| annotations.get(name))
}

/// Reads a whole Secret: does it hold a certificate with its own key, and does the CA verify it that
/// says to have signed it? `trusted` are the CAs of the identity's authority.
pub fn view_secret(
    identity: &ClientIdentity,
    secret: Option<&Secret>,
    trusted: &[&CertificateAuthority],
    now: Timestamp,
) -> SecretView {
    let Some(secret) = secret else {
        return SecretView::Absent;
    };
    if let Some(view) = ownership(identity, &secret.metadata) {
        return view;
    }
    if !is_ours(&secret.metadata) {
        // The watch selects by the label: without it nobody would see the next change.
        return SecretView::Broken("it has lost its label");
    }
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let field = |key: &str| data.get(key).map(|bytes| bytes.0.as_slice()).unwrap_or_default();
    let chain = field(key::CERTIFICATE);
    let Ok(facts) = inspect_pair(chain, field(key::KEY)) else {
        return SecretView::Broken("tls.crt and tls.key are not a certificate and its key");
    };
    let Some(noted) = view_metadata(&secret.metadata) else {
        return SecretView::Broken("annotations are missing");
    };
    if (noted.serial, &noted.fingerprint) != (facts.serial, &facts.fingerprint) {
        return SecretView::Broken("tls.crt is not the certificate that was issued");
    }
    // An expired certificate is not broken, and one of another CA is not: both are replaced for what
    // they are.
    let verified_at = now.min(facts.not_after).max(facts.not_before);
    if let Some(ca) = trusted.iter().find(|ca| ca.facts().key_id == facts.authority_key_id) {
        let verified = certificates(chain).is_ok_and(|chain| {
            let root = std::slice::from_ref(ca.root());
            verify_client(&chain[0], &chain[1..], root, verified_at).is_ok()
        });
        if !verified {
            return SecretView::Broken("the published trust does not verify tls.crt");
        }
    }
    SecretView::Good(Current {
        not_before: facts.not_before,
        not_after: facts.not_after,
        bundle_hash: sha256_hex(field(key::CA)),
        ..noted
    })
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
    })
}

/// A certificate as it goes into a Secret.
pub struct Rendered<'a> {
    /// The certificate's facts.
    pub current: &'a Current,
    /// The certificate and the CAs between it and the root, PEM.
    pub certificate: String,
    /// Its key.
    pub key: &'a PrivateKey,
    /// The trust bundle, PEM.
    pub bundle: &'a str,
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
        (annotation::BUNDLE, current.bundle_hash.clone()),
    ] {
        annotations.insert(key.to_owned(), value);
    }
    if secret.type_.is_none() {
        secret.type_ = Some("kubernetes.io/tls".to_owned());
    }
    let data = secret.data.get_or_insert_default();
    let certificate = rendered.certificate.clone().into_bytes();
    data.insert(key::CERTIFICATE.to_owned(), ByteString(certificate));
    data.insert(
        key::KEY.to_owned(),
        ByteString(rendered.key.to_pem(Encoding::Pkcs8).as_bytes().to_vec()),
    );
    data.insert(key::CA.to_owned(), ByteString(rendered.bundle.as_bytes().to_vec()));
    secret
}

/// The present Secret with the published trust bundle, dressed as the spec says.
pub fn render_refresh(identity: &ClientIdentity, mut present: Secret, bundle: &str) -> Secret {
    let data = present.data.get_or_insert_default();
    data.insert(key::CA.to_owned(), ByteString(bundle.as_bytes().to_vec()));
    let annotations = present.metadata.annotations.get_or_insert_default();
    annotations.insert(annotation::BUNDLE.to_owned(), sha256_hex(bundle.as_bytes()));
    present.metadata.managed_fields = None;
    dress(identity, &mut present.metadata);
    present
}

/// The field manager of the last write of a Secret by another than `ours`.
pub fn last_writer<'a>(secret: &'a Secret, ours: &str) -> Option<&'a str> {
    let entries = secret.metadata.managed_fields.iter().flatten();
    let others = entries.filter(|entry| entry.manager.as_deref() != Some(ours));
    let last = others.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?;
    last.manager.as_deref()
}
