//! What an identity's Secret wears beside its facts: our label and marks, the owner reference, and the
//! labels and annotations of `spec.secretTemplate`. What others added stays.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::api::lifecycle::{DeletionPolicy, SecretTemplate};
use crate::api::{ClientIdentity, ClientIdentitySpec, GROUP, annotation, label};

/// The names that a template has set on a Secret, so that they can be taken off again.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Set {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    labels: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    annotations: BTreeSet<String>,
}

impl Set {
    fn of(template: &SecretTemplate) -> Self {
        Self {
            labels: template.labels.keys().cloned().collect(),
            annotations: template.annotations.keys().cloned().collect(),
        }
    }

    fn read(metadata: &ObjectMeta) -> Self {
        let text =
            metadata.annotations.as_ref().and_then(|all| all.get(annotation::SECRET_TEMPLATE));
        // Another hand may have spoilt it; then nothing is taken off.
        let mut set: Self =
            text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        set.labels.retain(|name| !is_reserved(name));
        set.annotations.retain(|name| !is_reserved(name));
        set
    }
}

fn is_reserved(name: &str) -> bool {
    name.starts_with("countersign.dev/") || name == label::MANAGED_BY
}

/// What is wrong with a spec's template: field and reason. The CRD checks it first; an object that was
/// stored before its rules were comes here all the same.
pub fn check(spec: &ClientIdentitySpec) -> Result<(), String> {
    let Some(template) = &spec.secret_template else { return Ok(()) };
    for (field, map) in [("labels", &template.labels), ("annotations", &template.annotations)] {
        if let Some(name) = map.keys().find(|name| is_reserved(name)) {
            return Err(format!(
                "spec.secretTemplate.{field}: {name:?} is Countersign's own; choose another name"
            ));
        }
    }
    Ok(())
}

/// Dresses a Secret: what is missing is put on, what the template no longer says is taken off.
pub fn dress(identity: &ClientIdentity, metadata: &mut ObjectMeta) {
    let nothing = SecretTemplate::default();
    let template = identity.spec.secret_template.as_ref().unwrap_or(&nothing);
    let (before, wanted) = (Set::read(metadata), Set::of(template));

    let labels = metadata.labels.get_or_insert_default();
    before.labels.difference(&wanted.labels).for_each(|name| drop(labels.remove(name)));
    labels.extend(template.labels.clone());
    labels.insert(label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned());

    let annotations = metadata.annotations.get_or_insert_default();
    before
        .annotations
        .difference(&wanted.annotations)
        .for_each(|name| drop(annotations.remove(name)));
    annotations.extend(template.annotations.clone());
    annotations.insert(annotation::IDENTITY.to_owned(), identity.name_any());
    put(annotations, annotation::SECRET_TEMPLATE, record(&wanted));
    put(annotations, annotation::IDENTITY_UID, uid_mark(identity));

    metadata.owner_references = owners(identity, metadata);
}

/// Does a Secret wear everything that [`dress`] would put on, and nothing that it would take off?
pub fn is_dressed(identity: &ClientIdentity, metadata: &ObjectMeta) -> bool {
    let mut wanted = metadata.clone();
    dress(identity, &mut wanted);
    // An empty map and none are the same.
    let maps = |metadata: &ObjectMeta| {
        (
            metadata.labels.clone().unwrap_or_default(),
            metadata.annotations.clone().unwrap_or_default(),
        )
    };
    let owns = |metadata: &ObjectMeta| {
        let owners = metadata.owner_references.iter().flatten();
        owners.filter(|owner| is_ours(identity, owner)).count()
    };
    maps(metadata) == maps(&wanted) && owns(metadata) == owns(&wanted)
}

fn put(annotations: &mut BTreeMap<String, String>, name: &str, value: Option<String>) {
    match value {
        Some(value) => drop(annotations.insert(name.to_owned(), value)),
        None => drop(annotations.remove(name)),
    }
}

fn record(set: &Set) -> Option<String> {
    let text = || serde_json::to_string(set).expect("a set of strings has a JSON form");
    (*set != Set::default()).then(text)
}

/// A Secret that is retained has no owner reference, since the garbage collector would delete it with
/// its owner. Its mark says in place of it whose it is.
fn uid_mark(identity: &ClientIdentity) -> Option<String> {
    identity.metadata.uid.clone().filter(|_| is_retained(identity))
}

fn is_retained(identity: &ClientIdentity) -> bool {
    identity.spec.deletion_policy == DeletionPolicy::Retain
}

fn is_ours(identity: &ClientIdentity, owner: &OwnerReference) -> bool {
    Some(&owner.uid) == identity.metadata.uid.as_ref()
}

fn owners(identity: &ClientIdentity, metadata: &ObjectMeta) -> Option<Vec<OwnerReference>> {
    if !is_retained(identity) {
        let present = metadata.owner_references.clone();
        let has = present.iter().flatten().any(|owner| is_ours(identity, owner));
        return if has { present } else { Some(vec![owner(identity)]) };
    }
    // A predecessor's reference, as a restored backup has it, would have the Secret collected.
    let of_identity = |o: &OwnerReference| {
        o.kind == ClientIdentity::kind(&()) && o.api_version.starts_with(GROUP)
    };
    let others = metadata.owner_references.iter().flatten().filter(|owner| !of_identity(owner));
    Some(others.cloned().collect::<Vec<_>>()).filter(|others| !others.is_empty())
}

fn owner(identity: &ClientIdentity) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: Some(true),
        ..identity
            .controller_owner_ref(&())
            .expect("an identity that was read from the API server has a name and a UID")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::identity::tests::identity;

    fn with_template(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> ClientIdentity {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let mut identity = identity();
        identity.spec.secret_template =
            Some(SecretTemplate { labels: map(labels), annotations: map(annotations) });
        identity
    }

    fn dressed(identity: &ClientIdentity, mut metadata: ObjectMeta) -> ObjectMeta {
        dress(identity, &mut metadata);
        assert!(is_dressed(identity, &metadata), "dressed twice: {metadata:?}");
        metadata
    }

    #[test]
    fn a_template_comes_and_goes_and_what_others_added_stays() {
        let one = with_template(&[("team", "blue"), ("tier", "a")], &[("reloader/match", "true")]);
        let mut secret = dressed(&one, ObjectMeta::default());
        assert_eq!(secret.labels.as_ref().unwrap()["team"], "blue");
        assert_eq!(secret.annotations.as_ref().unwrap()["reloader/match"], "true");
        secret.labels.as_mut().unwrap().insert("theirs".into(), "1".into());
        secret.annotations.as_mut().unwrap().insert("note".into(), "x".into());
        assert!(is_dressed(&one, &secret), "additions of others are no difference");

        let two = with_template(&[("team", "red")], &[]);
        assert!(!is_dressed(&two, &secret));
        let secret = dressed(&two, secret);
        let labels = secret.labels.clone().unwrap();
        assert_eq!(labels["team"], "red");
        assert!(!labels.contains_key("tier") && labels["theirs"] == "1", "{labels:?}");
        let annotations = secret.annotations.as_ref().unwrap();
        assert!(!annotations.contains_key("reloader/match") && annotations["note"] == "x");

        let secret = dressed(&identity(), secret);
        let labels: Vec<_> = secret.labels.unwrap().into_keys().collect();
        assert_eq!(labels, [label::MANAGED_BY, "theirs"]);
        let annotations: Vec<_> = secret.annotations.unwrap().into_keys().collect();
        assert_eq!(annotations, [annotation::IDENTITY, "note"]);
    }

    #[test]
    fn what_another_hand_changed_is_seen_and_a_spoilt_record_takes_nothing_off() {
        let identity = with_template(&[("team", "blue")], &[]);
        let secret = dressed(&identity, ObjectMeta::default());
        let mut edited = secret.clone();
        edited.labels.as_mut().unwrap().insert("team".into(), "red".into());
        assert!(!is_dressed(&identity, &edited));
        let mut gone = secret.clone();
        gone.labels.as_mut().unwrap().remove("team");
        assert!(!is_dressed(&identity, &gone));
        for record in ["{", "{\"labels\":[\"app.kubernetes.io/managed-by\"]}"] {
            let mut spoilt = secret.clone();
            let annotations = spoilt.annotations.as_mut().unwrap();
            annotations.insert(annotation::SECRET_TEMPLATE.into(), record.into());
            let again = dressed(&identity, spoilt);
            assert_eq!(again.labels.unwrap()[label::MANAGED_BY], label::MANAGED_BY_VALUE);
        }
    }

    #[test]
    fn reserved_names_are_refused_by_field() {
        for (identity, field) in [
            (with_template(&[(label::MANAGED_BY, "x")], &[]), "spec.secretTemplate.labels"),
            (with_template(&[], &[(annotation::SERIAL, "x")]), "spec.secretTemplate.annotations"),
        ] {
            assert!(check(&identity.spec).unwrap_err().starts_with(field));
        }
        assert_eq!(check(&with_template(&[("a", "b")], &[("c", "d")]).spec), Ok(()));
    }

    #[test]
    fn a_retained_secret_has_a_mark_in_place_of_its_owner_reference() {
        let mut identity = identity();
        let owned = dressed(&identity, ObjectMeta::default());
        assert_eq!(owned.owner_references.as_ref().unwrap()[0].uid, "c0ffee");
        assert!(!owned.annotations.as_ref().unwrap().contains_key(annotation::IDENTITY_UID));

        identity.spec.deletion_policy = DeletionPolicy::Retain;
        assert!(!is_dressed(&identity, &owned));
        let other = OwnerReference { uid: "x".into(), kind: "App".into(), ..Default::default() };
        let mut shared = owned;
        shared.owner_references.as_mut().unwrap().push(other.clone());
        let retained = dressed(&identity, shared);
        assert_eq!(retained.owner_references, Some(vec![other]));
        assert_eq!(retained.annotations.as_ref().unwrap()[annotation::IDENTITY_UID], "c0ffee");

        identity.spec.deletion_policy = DeletionPolicy::Revoke;
        let owned = dressed(&identity, retained);
        assert!(!owned.annotations.as_ref().unwrap().contains_key(annotation::IDENTITY_UID));
        assert_eq!(owned.owner_references.unwrap()[0].uid, "c0ffee");
    }
}
