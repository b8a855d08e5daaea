//! The policy of a `ClientTrust` by which the gate decides beyond revocation. The controller writes those of all
//! trusts into one Secret of its own namespace, the only one that the servers may read.

mod allow;
pub mod authorizer;
pub mod identities;
pub mod password;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};

pub use allow::admits;
use identities::Certificates;

use super::headroom::SECRET_LIMIT;
use crate::api::gate::{AllowedClients, Authorizer, Passwords};
use crate::api::trust::{Mode, Reason};
use crate::api::{ClientTrust, ClientTrustSpec};
use crate::ingress::gate::is_needed;

/// Name of the Secret that holds the policies, one JSON document of each trust.
pub const POLICIES: &str = "countersign-gate-policies";

/// The longest key of a Secret (Kubernetes API, `DNS1123SubdomainMaxLength`).
const LONGEST_KEY: usize = 253;

/// By what the gate decides at the routes of one trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustPolicy {
    /// What happens to a client that shows no certificate.
    pub mode: Mode,
    /// The authorities whose clients are accepted.
    pub authorities: Vec<String>,
    /// Which of these clients may pass; all when it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowedClients>,
    /// Certificates that may pass whatever names are in them: those of the identities that the trust selects.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub certificates: Certificates,
    /// What they must have beside their certificate; nothing when it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_factor: Option<SecondFactor>,
}

/// What clients must have beside their certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SecondFactor {
    /// A password: the hash of each user's.
    Basic(BTreeMap<String, String>),
    /// The word of a service.
    Url(Authorizer),
}

impl fmt::Debug for SecondFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic(users) => write!(f, "Basic(of {} users)", users.len()),
            Self::Url(service) => f.debug_tuple("Url").field(service).finish(),
        }
    }
}

/// Does a trust ask for more than the gate is told in its URL?
pub fn needs_policy(trust: &ClientTrust) -> bool {
    undecided(&trust.spec).is_some()
}

/// Is there something about a trust that only the gate can do?
pub fn needs_gate(trust: &ClientTrust) -> bool {
    is_needed(needs_policy(trust), trust.spec.forward_identity)
}

/// What of a trust only the gate decides by, and the reason for which a target has that does not ask it.
pub fn undecided(spec: &ClientTrustSpec) -> Option<(&'static str, Reason)> {
    let allow = spec.allow.as_ref().map(|_| ("allow", Reason::AllowNotEnforced));
    let second = || ("secondFactor", Reason::SecondFactorNotEnforced);
    allow.or_else(|| spec.second_factor.as_ref().map(|_| second()))
}

/// The Secret that a trust takes passwords from, and the key there.
pub fn passwords(trust: &ClientTrust) -> Option<&Passwords> {
    trust.spec.second_factor.as_ref()?.basic.as_ref()
}

/// The policy of a trust, if it needs one; or why it can't be had. `certificates` are those of the identities that it
/// selects; `secret` is the one with the passwords, if it exists.
pub fn policy(
    trust: &ClientTrust,
    certificates: Certificates,
    secret: Option<&Secret>,
) -> Option<Result<TrustPolicy, String>> {
    needs_policy(trust).then(|| {
        let by_names = |allow: AllowedClients| AllowedClients { identities: None, ..allow };
        Ok(TrustPolicy {
            mode: trust.spec.mode,
            authorities: trust.spec.authorities.iter().map(|one| one.name.clone()).collect(),
            allow: trust.spec.allow.clone().map(by_names),
            certificates,
            second_factor: second_factor(&trust.spec, secret)?,
        })
    })
}

fn second_factor(
    spec: &ClientTrustSpec,
    secret: Option<&Secret>,
) -> Result<Option<SecondFactor>, String> {
    let Some(wanted) = &spec.second_factor else { return Ok(None) };
    if let Some(service) = &wanted.url {
        authorizer::read(service).map_err(|why| format!("{why}; nobody is let in"))?;
        return Ok(Some(SecondFactor::Url(service.clone())));
    }
    let Some(Passwords { secret_name, key }) = &wanted.basic else {
        return Err("spec.secondFactor: neither basic nor url is set".to_owned());
    };
    let wrong = |why: &str| {
        format!("spec.secondFactor.basic: Secret {secret_name:?} {why}; nobody is let in")
    };
    let secret = secret.ok_or_else(|| wrong("does not exist"))?;
    let file = secret.data.as_ref().and_then(|data| data.get(key));
    let file = file.ok_or_else(|| wrong(&format!("has no key {key:?}")))?;
    let users = password::read_users(&file.0).map_err(|why| {
        wrong(&format!("key {key:?}: {why}; put lines user:hash there, as htpasswd -B makes them"))
    })?;
    Ok(Some(SecondFactor::Basic(users)))
}

/// The key of a trust's policy in the Secret. Neither a namespace nor the name of a trust holds a dot.
pub fn policy_key(namespace: &str, trust: &str) -> String {
    format!("{namespace}.{trust}")
}

/// The namespace and the name of the trust that a key belongs to.
pub fn trust_of_key(key: &str) -> Option<(&str, &str)> {
    key.split_once('.')
}

/// What the Secret shall hold: `known` policies by their key, none for trusts that need none, and of those that
/// this process has not looked at yet what is `present`, as long as the trust `exists`.
pub fn policies(
    known: &BTreeMap<String, Option<Vec<u8>>>,
    present: &BTreeMap<String, ByteString>,
    exists: impl Fn(&str, &str) -> bool,
) -> BTreeMap<String, ByteString> {
    let lives = |key: &str| trust_of_key(key).is_some_and(|(space, name)| exists(space, name));
    let ours = known.iter().filter_map(|(key, policy)| Some((key, policy.as_ref()?)));
    let ours = ours.map(|(key, policy)| (key.clone(), ByteString(policy.clone())));
    let kept = present.iter().filter(|(key, _)| !known.contains_key(*key));
    let kept = kept.map(|(key, policy)| (key.clone(), policy.clone()));
    ours.chain(kept).filter(|(key, _)| lives(key)).collect()
}

/// Why the policy of a key can't stand in the Secret beside the others, if it can't.
pub fn too_large(key: &str, policies: &BTreeMap<String, ByteString>) -> Option<String> {
    if key.len() > LONGEST_KEY {
        return Some(format!(
            "the names of its namespace and of the ClientTrust are longer than {LONGEST_KEY} characters together; give the ClientTrust a shorter name"
        ));
    }
    let bytes: usize = policies.iter().map(|(key, policy)| key.len() + policy.0.len()).sum();
    (bytes > SECRET_LIMIT).then(|| {
        format!(
            "the gate's policies take {} KiB with that of this ClientTrust, and the Secret {POLICIES} holds {} KiB; shorten spec.allow, select fewer identities, or shorten the lists of users and the caBundles, here or elsewhere",
            bytes.div_ceil(1024),
            SECRET_LIMIT / 1024
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        let one =
            |(key, text): &(&str, &str)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()));
        entries.iter().map(one).collect()
    }

    #[test]
    fn the_secret_holds_what_is_known_and_what_other_trusts_left_and_nothing_of_those_that_are_gone()
     {
        let known = BTreeMap::from([
            ("shop.a".to_owned(), Some(b"new".to_vec())),
            ("shop.closed".to_owned(), None),
            ("shop.gone".to_owned(), Some(b"old".to_vec())),
        ]);
        let present =
            data(&[("shop.a", "old"), ("shop.b", "b"), ("shop.closed", "c"), ("x.y", "z")]);
        let exists = |space: &str, name: &str| space == "shop" && name != "gone";
        let wanted = policies(&known, &present, exists);
        assert_eq!(wanted, data(&[("shop.a", "new"), ("shop.b", "b")]));
    }

    #[test]
    fn passwords_that_can_t_be_used_are_told_without_them() {
        let hash = "$2y$04$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi";
        let spec: ClientTrustSpec = serde_yaml::from_str(
            "{authorities: [{name: staff}], targetRefs: [], secondFactor: {basic: {secretName: users}}}",
        )
        .unwrap();
        let trust = ClientTrust::new("clients", spec);
        let ask = |secret: Option<Secret>| {
            policy(&trust, Certificates::default(), secret.as_ref()).unwrap()
        };
        let secret = |key: &str, text: &str| {
            Some(Secret { data: Some(data(&[(key, text)])), ..Secret::default() })
        };
        let good = ask(secret("auth", &format!("ada:{hash}\n"))).unwrap();
        assert_eq!(
            good.second_factor,
            Some(SecondFactor::Basic([("ada".into(), hash.into())].into()))
        );
        assert!(!format!("{good:?}").contains("4I3P1N9"));
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<TrustPolicy>(&text).unwrap(), good);
        for (found, why) in [
            (None, "Secret \"users\" does not exist"),
            (secret("other", "x"), "has no key \"auth\""),
            (secret("auth", ""), "it names no user"),
            (
                secret("auth", "\nada:$apr1$K7urAYhL$S0oFZQd53lymQtV/tixss1"),
                "line 2: not a hash of bcrypt",
            ),
        ] {
            let told = ask(found).unwrap_err();
            assert!(told.contains(why) && !told.contains("K7urAYhL"), "{told}");
            assert!(told.starts_with("spec.secondFactor.basic: "), "{told}");
        }
    }

    #[test]
    fn a_service_over_tls_is_in_the_policy_with_its_bundle_or_nobody_is_let_in() {
        let bundle = crate::pki::authority::tests::sample().certificate_pem();
        let ask = |bundle: &str| {
            let mut spec: ClientTrustSpec = serde_yaml::from_str(
                "{authorities: [{name: staff}], targetRefs: [], secondFactor: {url: {endpoint: 'https://a/', caBundle: ''}}}",
            )
            .unwrap();
            spec.second_factor.as_mut().unwrap().url.as_mut().unwrap().ca_bundle =
                Some(bundle.to_owned());
            policy(&ClientTrust::new("clients", spec), Certificates::default(), None).unwrap()
        };
        let text = serde_json::to_string(&ask(&bundle).unwrap()).unwrap();
        // By its length it counts towards the Secret's limit.
        assert!(text.contains(&bundle.replace('\n', "\\n")), "{text}");
        let told = ask("-----BEGIN").unwrap_err();
        assert!(told.starts_with("spec.secondFactor.url.caBundle: "), "{told}");
        assert!(told.ends_with("; nobody is let in"), "{told}");
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let large = "x".repeat(SECRET_LIMIT - "shop.a".len());
        assert_eq!(too_large("shop.a", &data(&[("shop.a", &large)])), None);
        let told = too_large("shop.b", &data(&[("shop.a", &large), ("shop.b", "")])).unwrap();
        assert!(told.contains("1025 KiB") && told.contains(POLICIES), "{told}");
        let (namespace, name) = ("n".repeat(63), "t".repeat(200));
        let told = too_large(&policy_key(&namespace, &name), &BTreeMap::new()).unwrap();
        assert!(told.contains("shorter name"), "{told}");
    }

    #[test]
    fn a_policy_that_says_more_than_this_version_knows_is_none() {
        let text = r#"{"mode":"Required","authorities":["staff"],"allow":{"commonNames":["ada"]}}"#;
        let policy: TrustPolicy = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        let more = text.replacen('{', r#"{"thirdFactor":{},"#, 1);
        assert!(serde_json::from_str::<TrustPolicy>(&more).is_err());
    }
}
