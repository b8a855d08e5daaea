//! The Secret of a `ClientTrust`: trust bundle and CRLs, as data planes read them.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use super::headroom::SECRET_LIMIT;
use super::ledger::CaKey;
use crate::api::{ClientTrust, annotation, label};
use crate::ingress::{self, OwnSecret, Revocation, object_name};
use crate::pki::crl::CrlNumber;
use crate::pki::inspect::certificates;

/// Keys of a trust's Secret.
pub mod secret_key {
    /// The trust bundle, PEM.
    pub const CA: &str = "ca.crt";
    /// The CRLs of all its CAs, PEM, one after the other.
    pub const CRL: &str = "ca.crl";
}

/// The keys under which the CRLs stand in a trust's Secret: the one for everybody, and others that the data
/// planes of its targets insist on.
pub fn crl_keys(trust: &ClientTrust) -> Vec<&'static str> {
    let mut keys = vec![secret_key::CRL];
    for target in &trust.spec.target_refs {
        let plane = ingress::by_kind(&target.group, &target.kind);
        if let Some(Revocation::ByCrl(key)) = plane.map(|(plane, _)| plane.revocation)
            && !keys.contains(&key)
        {
            keys.push(key);
        }
    }
    keys
}

/// What an authority contributes to a trust.
#[derive(Clone, Copy, Debug)]
pub struct Anchor<'a> {
    /// Its CA certificates, PEM.
    pub bundle: &'a str,
    /// SHA-256 over these and the CAs that have a CRL, lower-case hex.
    pub mark: &'a str,
    /// Their CRLs, PEM; absent when they alone don't fit a Secret.
    pub crl: Option<&'a str>,
    /// What certificates and CRLs take in the Secret, PEM, the CRLs under each of the [`crl_keys`].
    pub bytes: usize,
    /// Which CRLs these are.
    pub numbers: &'a [(CaKey, CrlNumber)],
}

/// Why the CRLs don't fit the Secret of a trust, if they don't.
pub fn too_large(authorities: &[(&str, Option<Anchor<'_>>)]) -> Option<String> {
    let anchors = || authorities.iter().filter_map(|(_, anchor)| anchor.as_ref());
    let bytes: usize = anchors().map(|anchor| anchor.bytes).sum();
    let fits = bytes <= SECRET_LIMIT && anchors().all(|anchor| anchor.crl.is_some());
    (!fits).then(|| {
        format!(
            "spec.authorities: their CA certificates and CRLs take {} KiB, and a Secret holds {} KiB: its {} stays as it is, and expires. See condition CRLFits of the ClientAuthorities, or trust fewer of them here",
            bytes.div_ceil(1024),
            SECRET_LIMIT / 1024,
            secret_key::CRL
        )
    })
}

/// The Secret of a trust: one Opaque Secret that nginx, HAProxy, Envoy and Traefik controllers all
/// read. While an authority is not ready its clients are missing from it, so that they are refused. CRLs
/// that don't fit are left out: whoever writes it leaves what stands there.
pub fn secret(trust: &ClientTrust, authorities: &[(&str, Option<Anchor<'_>>)]) -> Secret {
    let anchors = || authorities.iter().filter_map(|(_, anchor)| anchor.as_ref());
    let bundles: String = anchors().map(|anchor| anchor.bundle).collect();
    let mut data = BTreeMap::from([(secret_key::CA.to_owned(), ByteString(bundles.into_bytes()))]);
    if too_large(authorities).is_none() {
        let crls: String = anchors().filter_map(|anchor| anchor.crl).collect();
        set_crls(trust, &mut data, &ByteString(crls.into_bytes()));
    }
    // The authority reads these: a new CA signs only when its bundle is everywhere.
    let bundles = authorities.iter().map(|(name, anchor)| {
        let hash = anchor.map_or("", |anchor| anchor.mark);
        (format!("{}{name}", annotation::TRUSTED_BUNDLE_PREFIX), hash.to_owned())
    });
    Secret {
        metadata: ObjectMeta {
            name: Some(object_name(&trust.name_any())),
            namespace: trust.namespace(),
            labels: Some(labels()),
            annotations: Some(bundles.collect()),
            owner_references: Some(vec![owner(trust)]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}

/// The Secret of a trust as a data plane insists on it.
pub fn own_secret(secret: &Secret, own: OwnSecret) -> Secret {
    let mut copy = secret.clone();
    copy.metadata.name = secret.metadata.name.as_ref().map(|name| format!("{name}{}", own.suffix));
    copy.type_ = Some(own.type_.to_owned());
    copy
}

/// Puts CRLs into the data of a trust's Secret.
pub fn set_crls(trust: &ClientTrust, data: &mut BTreeMap<String, ByteString>, crls: &ByteString) {
    data.extend(crl_keys(trust).into_iter().map(|key| (key.to_owned(), crls.clone())));
}

/// For a data plane that takes whoever has a certificate of the authorities, and must take nobody.
pub fn close(secret: &mut Secret) {
    secret.data.get_or_insert_default().insert(secret_key::CA.to_owned(), ByteString::default());
}

/// Does a Secret hold a CA certificate that the other one, if there is one, does not? What can't be read may be one.
pub fn adds_a_ca(wanted: &Secret, present: Option<&Secret>) -> bool {
    let cas = |secret: &Secret| {
        let pem = secret.data.as_ref().and_then(|data| data.get(secret_key::CA));
        match pem.map(|pem| &*pem.0).unwrap_or_default() {
            [] => Ok(Vec::new()),
            pem => certificates(pem),
        }
    };
    let known = present.and_then(|present| cas(present).ok()).unwrap_or_default();
    cas(wanted).map_or(true, |wanted| wanted.iter().any(|ca| !known.contains(ca)))
}

/// For a data plane that refuses revoked certificates by `ca.crl` alone: beside CAs without any CRL it would
/// take them, so it gets no CA either and lets nobody in.
pub fn close_without_crl(secret: &mut Secret) {
    let crls = secret.data.as_ref().and_then(|data| data.get(secret_key::CRL));
    if crls.is_none_or(|crls| crls.0.is_empty()) {
        close(secret);
    }
}

/// The labels of what is made for a trust, or for all of them.
pub fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned())])
}

/// The owner reference to a trust.
pub(super) fn owner(trust: &ClientTrust) -> OwnerReference {
    trust
        .controller_owner_ref(&())
        .expect("a trust that was read from the API server has a name and a UID")
}

/// Is an existing object controlled by this trust?
pub fn is_owned(trust: &ClientTrust, existing: &ObjectMeta) -> bool {
    is_controlled(trust.metadata.uid.as_deref(), existing)
}

/// Is an existing object controlled by the owner with this UID?
pub fn is_controlled(owner: Option<&str>, existing: &ObjectMeta) -> bool {
    let mut owners = existing.owner_references.iter().flatten();
    owners.any(|one| one.controller == Some(true) && Some(&*one.uid) == owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::certificate_pem;

    #[test]
    fn another_ca_is_found_wherever_it_stands() {
        let pem = |name: &str| certificate_pem(name.as_bytes());
        let secret = |names: &[&str]| {
            let text: String = names.iter().map(|name| pem(name)).collect();
            let data = [(secret_key::CA.to_owned(), ByteString(text.into_bytes()))];
            Secret { data: Some(data.into()), ..Secret::default() }
        };
        let (none, one, two) = (secret(&[]), secret(&["a"]), secret(&["b", "a"]));
        assert!(adds_a_ca(&one, None) && adds_a_ca(&one, Some(&none)));
        assert!(adds_a_ca(&two, Some(&one)) && adds_a_ca(&one, Some(&secret(&["b"]))));
        assert!(!adds_a_ca(&one, Some(&two)) && !adds_a_ca(&one, Some(&one)));
        assert!(!adds_a_ca(&none, None) && !adds_a_ca(&none, Some(&one)));
    }
}
