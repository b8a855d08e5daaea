//! Which identities does `spec.allow.identities` of a `ClientTrust` select?

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use crate::api::gate::IdentitySelector;
use crate::api::{ClientIdentity, ClientTrust};
use crate::plan::allow::selects;

/// Serial numbers of certificates, lower-case hex, by the authority that signed them.
pub type Certificates = BTreeMap<String, BTreeSet<String>>;

/// The selection of a trust, if it makes one.
pub fn selection(trust: &ClientTrust) -> Option<&IdentitySelector> {
    trust.spec.allow.as_ref()?.identities.as_ref()
}

/// Can a trust select identities of this namespace?
pub fn concerns(trust: &ClientTrust, namespace: &str) -> bool {
    selection(trust).is_some_and(|selection| {
        selection.namespace_selector.is_some() || trust.namespace().as_deref() == Some(namespace)
    })
}

/// Does the selection of a trust in the namespace `home` hold an identity? `labels` are those of the identity's
/// namespace, unless it can't be seen. One that is being deleted is not selected.
pub fn is_selected(
    selection: &IdentitySelector,
    home: &str,
    identity: &ClientIdentity,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let near = match &selection.namespace_selector {
        None => identity.namespace().as_deref() == Some(home),
        Some(namespaces) => labels.is_some_and(|labels| selects(namespaces, labels)),
    };
    near && identity.metadata.deletion_timestamp.is_none()
        && selects(&selection.selector, identity.labels())
}

/// Can this change of an identity be one of who is selected, or of its certificates?
pub fn changes(previous: Option<&ClientIdentity>, now: Option<&ClientIdentity>) -> bool {
    previous.map(seen) != now.map(seen)
}

/// Labels, serial number, and whether it is being deleted.
fn seen(identity: &ClientIdentity) -> (&BTreeMap<String, String>, Option<&str>, bool) {
    let serial = identity.status.as_ref().and_then(|status| status.serial_number.as_deref());
    (identity.labels(), serial, identity.metadata.deletion_timestamp.is_some())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn identity(namespace: &str, labels: &[(&str, &str)]) -> ClientIdentity {
        let spec = "{authorityRef: {name: staff}, commonName: till, secretName: till}";
        let mut identity = ClientIdentity::new("till", serde_yaml::from_str(spec).unwrap());
        identity.metadata.namespace = Some(namespace.to_owned());
        identity.metadata.labels = Some(map(labels));
        identity
    }

    fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn identities_are_selected_by_their_labels_and_by_those_of_their_namespace() {
        let blue = "{selector: {matchLabels: {team: blue}}}";
        let shops = "{selector: {matchLabels: {team: blue}}, namespaceSelector: {matchLabels: {shops: 'yes'}}}";
        let anywhere = "{selector: {}, namespaceSelector: {}}";
        let team = [("team", "blue")];
        let (shop, none) = (map(&[("shops", "yes")]), map(&[]));
        for (selection, namespace, labels, of_namespace, expected) in [
            (blue, "home", &team[..], Some(&none), true),
            (blue, "home", &team, None, true),
            (blue, "home", &[("team", "red")], Some(&none), false),
            (blue, "home", &[], Some(&none), false),
            (blue, "other", &team, Some(&shop), false),
            (shops, "other", &team, Some(&shop), true),
            (shops, "other", &[], Some(&shop), false),
            (shops, "home", &team, Some(&none), false),
            (shops, "other", &team, None, false),
            (anywhere, "other", &[], Some(&none), true),
            (anywhere, "home", &[], None, false),
        ] {
            let selection: IdentitySelector = serde_yaml::from_str(selection).unwrap();
            let mut identity = identity(namespace, labels);
            let selected = is_selected(&selection, "home", &identity, of_namespace);
            assert_eq!(selected, expected, "{selection:?} {namespace} {labels:?}");
            identity.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            assert!(!is_selected(&selection, "home", &identity, of_namespace), "it is going");
        }
    }

    #[test]
    fn labels_and_a_new_certificate_count_as_changes() {
        let (one, other) = (identity("home", &[]), identity("home", &[("team", "blue")]));
        let mut renewed = one.clone();
        renewed.status.get_or_insert_default().serial_number = Some("01".to_owned());
        let mut told = one.clone();
        told.status.get_or_insert_default().revision = Some(1);
        for (previous, now, expected) in [
            (None, Some(&one), true),
            (Some(&one), None, true),
            (Some(&one), Some(&other), true),
            (Some(&one), Some(&renewed), true),
            (Some(&one), Some(&told), false),
            (Some(&one), Some(&one), false),
        ] {
            assert_eq!(changes(previous, now), expected);
        }
    }
}
