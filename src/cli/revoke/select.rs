//! What `countersign revoke` is to ask for: one object for each identity or certificate that is chosen.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::{RevokeArgs, Which};
use crate::api::lifecycle::CertificateRevision;
use crate::api::revocation::Certificates;
use crate::api::{
    CertificateRevocation, CertificateRevocationSpec, ClientIdentity, LocalReference, label,
};
use crate::cluster::Key;
use crate::controller::error::chain;

/// As many objects are read by one request.
const PAGE: u32 = 500;

/// One request to be made.
pub(super) struct Wanted {
    /// The object that asks for it.
    pub object: CertificateRevocation,
    /// What is shown of it.
    pub row: [String; 4],
}

/// What is to be asked for.
pub(super) async fn wanted(
    client: &Client,
    namespace: &str,
    args: &RevokeArgs,
) -> Result<Vec<Wanted>, String> {
    let mut wanted = Vec::new();
    for serial in &args.serial {
        let spec = CertificateRevocationSpec { serial_number: Some(serial.clone()), ..spec(args) };
        wanted.push(one(namespace, serial, spec, args));
    }
    for text in &args.fingerprint {
        let spec = CertificateRevocationSpec { fingerprint: Some(text.clone()), ..spec(args) };
        wanted.push(one(namespace, text, spec, args));
    }
    if !wanted.is_empty() {
        return Ok(wanted);
    }
    for identity in identities(client, namespace, args).await? {
        let name = identity.name_any();
        let spec = CertificateRevocationSpec {
            identity_ref: Some(LocalReference { name: name.clone() }),
            ..spec(args)
        };
        let namespace = identity.namespace().unwrap_or_default();
        let history = identity.status.map(|status| status.revision_history).unwrap_or_default();
        let count = history.iter().filter(|known| is_concerned(known, &spec)).count();
        let authority = identity.spec.authority_ref.name;
        let uid = identity.metadata.uid.unwrap_or_default();
        wanted.push(Wanted {
            object: object(&namespace, &name, &uid, spec, args),
            row: [namespace, name, authority, count.to_string()],
        });
    }
    // The ledger knows identities that are gone.
    let known: BTreeSet<String> = wanted.iter().map(|wanted| wanted.row[1].clone()).collect();
    for name in args.identity.iter().filter(|name| !known.contains(*name)) {
        let identity_ref = Some(LocalReference { name: name.clone() });
        let spec = CertificateRevocationSpec { identity_ref, ..spec(args) };
        wanted.push(one(namespace, name, spec, args));
    }
    if wanted.is_empty() {
        return Err("no ClientIdentity found".to_owned());
    }
    Ok(wanted)
}

pub(super) fn one(
    namespace: &str,
    name: &str,
    spec: CertificateRevocationSpec,
    args: &RevokeArgs,
) -> Wanted {
    let row = [namespace, name, "", "?"].map(str::to_owned);
    let plain: String = name.chars().filter(|c| *c != ':').flat_map(char::to_lowercase).collect();
    Wanted { object: object(namespace, &plain, "", spec, args), row }
}

/// What all objects of a request have in common.
pub(super) fn spec(args: &RevokeArgs) -> CertificateRevocationSpec {
    CertificateRevocationSpec {
        identity_ref: None,
        certificates: args.certificates.map(|which| match which {
            Which::All => Certificates::All,
            Which::Current => Certificates::Current,
            Which::Superseded => Certificates::Superseded,
        }),
        issued_before: args.issued_before.map(Time),
        serial_number: None,
        fingerprint: None,
        renew: args.renew,
        renew_timeout: args.renew_timeout,
        reason: args.reason,
    }
}

/// Would this certificate be revoked? As status tells it; the ledger decides.
fn is_concerned(known: &CertificateRevision, spec: &CertificateRevocationSpec) -> bool {
    let state = match spec.certificates.unwrap_or_default() {
        Certificates::All => known.state != "Revoked",
        Certificates::Current => known.state == "Current",
        Certificates::Superseded => known.state == "Superseded",
    };
    let end = spec.issued_before.as_ref().map(|end| end.0);
    state && end.is_none_or(|end| known.issuance_time.as_ref().is_none_or(|time| time.0 < end))
}

/// The object. Its name follows from what is asked for, and of which identity.
fn object(
    namespace: &str,
    subject: &str,
    uid: &str,
    spec: CertificateRevocationSpec,
    args: &RevokeArgs,
) -> CertificateRevocation {
    let json = serde_json::to_string(&spec).expect("a spec has a JSON form");
    let subject: String = subject.chars().take(100).collect();
    let subject = subject.trim_end_matches(['-', '.']);
    let name = format!("{}-{subject}-{}", args.name, short_hash(&format!("{uid} {json}")));
    let mut object = CertificateRevocation::new(&name, spec);
    object.metadata = ObjectMeta {
        name: Some(name),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([(label::REQUEST.to_owned(), request_label(args))])),
        ..ObjectMeta::default()
    };
    object
}

/// The label that all objects of one request share: they are found by it.
pub(super) fn request_label(args: &RevokeArgs) -> String {
    let json = serde_json::to_string(&spec(args)).expect("a spec has a JSON form");
    short_hash(&format!("{} {json}", args.name))
}

fn short_hash(text: &str) -> String {
    let digest = digest(&SHA256, text.as_bytes());
    digest.as_ref().iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

async fn identities(
    client: &Client,
    namespace: &str,
    args: &RevokeArgs,
) -> Result<Vec<ClientIdentity>, String> {
    let mut found = list(client, scope(namespace, args), args.selector.as_deref()).await?;
    found.retain(|identity: &ClientIdentity| {
        let names = &args.identity;
        let authority = &identity.spec.authority_ref.name;
        (names.is_empty() || names.contains(&identity.name_any()))
            && args.authority.as_ref().is_none_or(|wanted| wanted == authority)
    });
    found.sort_by_key(Key::of);
    Ok(found)
}

fn scope<'a>(namespace: &'a str, args: &RevokeArgs) -> Option<&'a str> {
    Some(namespace).filter(|_| !args.all_namespaces)
}

/// Reads all objects of a kind, page by page.
pub(super) async fn list<K>(
    client: &Client,
    namespace: Option<&str>,
    selector: Option<&str>,
) -> Result<Vec<K>, String>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector = selector.map(Into::into);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|error| {
            format!("failed to list objects of kind {}: {}", K::kind(&()), chain(&error))
        })?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;

    #[test]
    fn the_same_request_has_the_same_name_and_another_one_has_another() {
        let name = |arguments: &[&str], uid: &str| {
            let args = parse(arguments).unwrap();
            object("team", "laptop", uid, spec(&args), &args).name_any()
        };
        let base = ["--identity", "laptop", "--reason", "KeyCompromise"];
        let first = name(&base, "uid-1");
        assert_eq!(first, name(&base, "uid-1"));
        assert!(first.starts_with("revoke-laptop-"), "{first}");
        let mut others = vec![name(&base, "uid-2"), name(&base[..2], "uid-1")];
        others.push(name(&[&base[..], &["--renew"]].concat(), "uid-1"));
        others.push(name(&[&base[..], &["--name", "again"]].concat(), "uid-1"));
        assert!(!others.contains(&first), "{others:?}");
        let args = parse(&["--serial", "0A:0B"]).unwrap();
        let of_serial = one("team", "0A:0B", spec(&args), &args).object.name_any();
        assert!(of_serial.starts_with("revoke-0a0b-"), "{of_serial}");
    }
}
