//! Bundles: CA certificates and CRLs in an object for workloads that verify clients by themselves.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::trust_secret::{labels, secret_key};
use crate::api::bundle::{Bundle, BundleKind, CrlKey};
use crate::api::condition::{BUNDLE_PUBLISHED, Wanted};
use crate::api::{annotation, label};
use crate::pki::sha256_hex;

/// Value of the component label of a bundle.
pub const COMPONENT: &str = "bundle";

/// As many namespaces are named in a message.
const NAMED: usize = 3;

/// Why a bundle is where it should be, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is there, and current.
    Published,
    /// An object of its name exists and is not ours.
    NotOwned,
    /// The API server refused it.
    NotWritten,
    /// Some of the selected namespaces lack it.
    Incomplete,
}

impl Reason {
    /// The reason as conditions and events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "Published",
            Self::NotOwned => "NotOwned",
            Self::NotWritten => "NotWritten",
            Self::Incomplete => "Incomplete",
        }
    }
}

/// What a bundle holds, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    ca: Vec<u8>,
    crls: Vec<u8>,
}

impl Content {
    /// CA certificates and CRLs. Beside CAs without any CRL a workload would take revoked certificates: then it
    /// gets no CA either, and lets nobody in.
    pub fn new(ca: &[u8], crls: Vec<u8>) -> Self {
        let ca = if crls.is_empty() { Vec::new() } else { ca.to_vec() };
        Self { ca, crls }
    }

    /// SHA-256 over all of it, lower-case hex.
    pub fn hash(&self) -> String {
        sha256_hex(&[self.ca.as_slice(), &[0], &self.crls].concat())
    }
}

/// Whose bundle it is, and what is said of it.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The `ClientTrust` or `ClientAuthority`.
    pub owner: OwnerReference,
    /// For each authority the mark of what stands in it; see [`annotation::TRUSTED_BUNDLE_PREFIX`].
    pub marks: BTreeMap<String, String>,
}

/// The object, a ConfigMap or a Secret.
pub fn render(bundle: &Bundle, head: &Head<'_>, content: &Content) -> Value {
    let Bundle { kind, name, crl_key } = bundle;
    let mut annotations = head.marks.clone();
    annotations.insert(annotation::DATA_HASH.to_owned(), content.hash());
    let mut labels = labels();
    labels.insert(label::COMPONENT.to_owned(), COMPONENT.to_owned());
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(head.namespace.to_owned()),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![head.owner.clone()]),
        ..ObjectMeta::default()
    };
    let data = [(secret_key::CA, &content.ca), (crl_key.as_str(), &content.crls)];
    let data = data.map(|(key, bytes)| (key.to_owned(), bytes));
    let rendered = match kind {
        BundleKind::ConfigMap => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let data = data.map(|(key, bytes)| (key, text(bytes))).into();
            serde_json::to_value(ConfigMap { metadata, data: Some(data), ..ConfigMap::default() })
        }
        BundleKind::Secret => {
            let data = data.map(|(key, bytes)| (key, ByteString(bytes.clone()))).into();
            let type_ = Some("Opaque".to_owned());
            serde_json::to_value(Secret { metadata, type_, data: Some(data), ..Secret::default() })
        }
    };
    rendered.expect("strings and bytes are JSON")
}

/// The CRLs in a bundle as it stands in the cluster, PEM.
pub fn crls_in(present: &Value, kind: BundleKind, key: CrlKey) -> Vec<u8> {
    let data = &present["data"][key.as_str()];
    match kind {
        BundleKind::ConfigMap => data.as_str().unwrap_or_default().as_bytes().to_vec(),
        BundleKind::Secret => {
            let bytes: Result<ByteString, _> = serde_json::from_value(data.clone());
            bytes.map(|bytes| bytes.0).unwrap_or_default()
        }
    }
}

/// The object to write over `present`: with its version, and the labels and annotations that others added. `None`
/// when everything stands as it should, and nothing beside it.
pub fn over(present: &Value, mut wanted: Value) -> Option<Value> {
    for field in ["labels", "annotations"] {
        let mut entries = present["metadata"][field].as_object().cloned().unwrap_or_default();
        entries.retain(|name, _| !name.starts_with(annotation::TRUSTED_BUNDLE_PREFIX));
        entries.extend(wanted["metadata"][field].as_object().cloned().unwrap_or_default());
        wanted["metadata"][field] = Value::Object(entries);
    }
    let same = |field: &str| present["metadata"][field] == wanted["metadata"][field];
    if present["data"] == wanted["data"]
        && present.get("binaryData").is_none()
        && ["labels", "annotations"].iter().all(|field| same(field))
    {
        return None;
    }
    wanted["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"].clone();
    Some(wanted)
}

/// A Secret that is a trust's bundle no longer: emptied, so that nobody who reads it trusts anybody. The operator
/// has no right to delete Secrets; it goes with the trust.
pub fn emptied(present: &Value) -> Value {
    let mut emptied = present.clone();
    emptied["data"] = json!({});
    for (field, key) in [("labels", label::COMPONENT), ("annotations", annotation::DATA_HASH)] {
        if let Some(entries) = emptied["metadata"][field].as_object_mut() {
            entries.remove(key);
            entries.retain(|name, _| !name.starts_with(annotation::TRUSTED_BUNDLE_PREFIX));
        }
    }
    emptied
}

/// The condition `BundlePublished` of a trust, after its bundle was written or was not.
pub fn condition(bundle: &Bundle, written: Result<(), (Reason, String)>) -> Wanted {
    let object = format!("{} {:?}", bundle.kind.as_str(), bundle.name);
    match written {
        Ok(()) => {
            let message = format!("{object} holds the CA certificates and the CRLs");
            Wanted::yes(BUNDLE_PUBLISHED, Reason::Published.as_str(), message)
        }
        Err((reason, why)) => {
            Wanted::no(BUNDLE_PUBLISHED, reason.as_str(), format!("spec.bundle: {why}"))
        }
    }
}

/// The same of an authority: `lacking` are those of the `selected` namespaces that don't have it.
pub fn cluster_condition(name: &str, selected: usize, lacking: &[&str]) -> Wanted {
    if lacking.is_empty() {
        let message = format!("ConfigMap {name:?} is current in {selected} namespaces");
        return Wanted::yes(BUNDLE_PUBLISHED, Reason::Published.as_str(), message);
    }
    let named = lacking.iter().take(NAMED).map(|name| format!("{name:?}"));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = if lacking.len() > NAMED { ", ..." } else { "" };
    let message = format!(
        "spec.bundle: ConfigMap {name:?} is not current in {} of {selected} namespaces: {named}{more}; events of this ClientAuthority say why, if it lasts",
        lacking.len(),
    );
    Wanted::no(BUNDLE_PUBLISHED, Reason::Incomplete.as_str(), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(kind: BundleKind, crl_key: CrlKey) -> Bundle {
        Bundle { kind, name: "client-ca".to_owned(), crl_key }
    }

    fn head() -> Head<'static> {
        let mark = format!("{}staff", annotation::TRUSTED_BUNDLE_PREFIX);
        Head {
            namespace: "shop",
            owner: OwnerReference { name: "clients".to_owned(), ..OwnerReference::default() },
            marks: BTreeMap::from([(mark, "m1".to_owned())]),
        }
    }

    fn content(crls: &str) -> Content {
        Content::new(b"CA\n", crls.as_bytes().to_vec())
    }

    #[test]
    fn both_kinds_hold_the_same() {
        let map = render(&bundle(BundleKind::ConfigMap, CrlKey::CaCrl), &head(), &content("CRL\n"));
        assert_eq!(map["data"], json!({"ca.crt": "CA\n", "ca.crl": "CRL\n"}));
        assert_eq!(map["kind"], "ConfigMap");
        let secret =
            render(&bundle(BundleKind::Secret, CrlKey::CrlPem), &head(), &content("CRL\n"));
        assert_eq!(secret["data"], json!({"ca.crt": "Q0EK", "crl.pem": "Q1JMCg=="}));
        assert_eq!((&secret["kind"], &secret["type"]), (&json!("Secret"), &json!("Opaque")));
        for (object, kind, key) in [
            (&map, BundleKind::ConfigMap, CrlKey::CaCrl),
            (&secret, BundleKind::Secret, CrlKey::CrlPem),
        ] {
            assert_eq!(crls_in(object, kind, key), b"CRL\n");
            assert_eq!(object["metadata"]["ownerReferences"][0]["name"], "clients");
            assert_eq!(object["metadata"]["labels"][label::COMPONENT], COMPONENT);
        }
        assert_eq!(crls_in(&json!({}), BundleKind::Secret, CrlKey::CaCrl), b"");
    }

    #[test]
    fn without_a_crl_nobody_is_trusted() {
        assert_eq!(content("").ca, b"");
        assert_ne!(content("").hash(), content("CRL\n").hash());
    }

    #[test]
    fn what_others_added_stays_and_what_they_changed_does_not() {
        let wanted =
            || render(&bundle(BundleKind::ConfigMap, CrlKey::CaCrl), &head(), &content("CRL\n"));
        let mut present = wanted();
        present["metadata"]["resourceVersion"] = json!("7");
        present["metadata"]["labels"]["team"] = json!("shop");
        assert_eq!(over(&present, wanted()), None);
        for (field, value) in [
            ("data", json!({"ca.crt": "CA\n", "ca.crl": "CRL\n", "more": "x"})),
            ("data", json!({"ca.crt": "MINE\n", "ca.crl": "CRL\n"})),
            ("binaryData", json!({"ca.crt": "AA=="})),
        ] {
            let mut changed = present.clone();
            changed[field] = value;
            let written = over(&changed, wanted()).expect("a write");
            assert_eq!(written["data"], wanted()["data"]);
            assert!(written.get("binaryData").is_none());
            assert_eq!(written["metadata"]["labels"]["team"], "shop");
            assert_eq!(written["metadata"]["resourceVersion"], "7");
        }
        // An authority that is no longer trusted leaves no mark.
        let other = format!("{}devices", annotation::TRUSTED_BUNDLE_PREFIX);
        present["metadata"]["annotations"][&other] = json!("m2");
        let written = over(&present, wanted()).expect("a write");
        assert!(written["metadata"]["annotations"].get(&other).is_none());
    }

    #[test]
    fn a_former_bundle_is_emptied_and_is_none_any_more() {
        let secret = render(&bundle(BundleKind::Secret, CrlKey::CaCrl), &head(), &content("CRL\n"));
        let emptied = emptied(&secret);
        assert_eq!(emptied["data"], json!({}));
        assert_eq!(emptied["metadata"]["annotations"], json!({}));
        let labels = &emptied["metadata"]["labels"];
        assert_eq!(labels, &json!({label::MANAGED_BY: label::MANAGED_BY_VALUE}));
    }

    #[test]
    fn a_condition_names_the_object_and_some_namespaces() {
        let bundle = bundle(BundleKind::Secret, CrlKey::CaCrl);
        assert!(condition(&bundle, Ok(())).message.starts_with("Secret \"client-ca\""));
        let refused = condition(&bundle, Err((Reason::NotOwned, "why".to_owned())));
        assert_eq!((refused.reason, refused.message.as_str()), ("NotOwned", "spec.bundle: why"));
        assert!(cluster_condition("ca", 2, &[]).status);
        let lacking = cluster_condition("ca", 9, &["a", "b", "c", "d"]).message;
        assert!(lacking.contains("4 of 9 namespaces: \"a\", \"b\", \"c\", ...;"), "{lacking}");
    }
}
