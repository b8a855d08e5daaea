//! May this identity have a certificate of that authority? `spec.allow`, compiled once and asked for each
//! identity. Whatever can't be decided is refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use kube::core::{Expression as Requirement, Selector, SelectorExt};
use serde_json::{Value as Json, json};

use super::cel::{Expression, Patterns, Scope};
use crate::api::ClientIdentity;
use crate::api::allow::{Allow, KeyType, LabelOperator, LabelSelector, Usage};
use crate::api::duration::Duration;

/// Rules loop over labels and annotations; an object with more of them is refused where rules read them.
const MOST_ENTRIES: usize = 128;

/// What an identity asks for.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The identity.
    pub identity: &'a ClientIdentity,
    /// Its namespace; none when it can't be seen.
    pub namespace: Option<&'a ObjectMeta>,
    /// Lifetime of the certificate.
    pub duration: Duration,
    /// The key's algorithm and size, in the words of `spec.allow.keyTypes`.
    pub key_type: &'a str,
    /// The key usages, in the words of `spec.allow.usages`.
    pub usages: &'a [&'a str],
}

/// Why an identity may not have a certificate: the field that refuses, and what it was asked for.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {why}")]
pub struct Refusal {
    /// Path of the field, such as `spec.allow.rules[1]`.
    pub field: String,
    /// What it says.
    pub why: String,
}

impl Refusal {
    fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

/// Why `spec.allow` can't be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {why}")]
pub struct InvalidPolicy {
    /// Path of the field, such as `spec.allow.rules[1].expression`.
    pub field: String,
    /// What is wrong with it, in the compiler's words.
    pub why: String,
}

/// A compiled `spec.allow`.
#[derive(Debug)]
pub struct Policy {
    selector: Option<Selector>,
    rules: Vec<Rule>,
    patterns: Arc<Patterns>,
    max_duration: Option<Duration>,
    key_types: Vec<KeyType>,
    usages: Vec<Usage>,
}

#[derive(Debug)]
struct Rule {
    expression: Expression,
    /// Its message, or its text.
    says: String,
}

impl Rule {
    /// Does it read more of the namespace than its name, which the identity carries too?
    fn reads_namespace(&self) -> bool {
        let mut reads = self.expression.reads.iter();
        reads.any(|path| {
            path.starts_with("namespaceObject") && path != "namespaceObject.metadata.name"
        })
    }
}

impl Policy {
    /// Compiles what an authority allows; none allows every name in every namespace for `client auth`.
    pub fn compile(allow: Option<&Allow>) -> Result<Self, InvalidPolicy> {
        let everything = Allow::default();
        let allow = allow.unwrap_or(&everything);
        let mut patterns = HashMap::new();
        let compile = |(index, rule): (usize, &crate::api::allow::AllowRule)| {
            let expression = Expression::compile(&rule.expression, &SAMPLE, &mut patterns);
            let expression = expression.map_err(|error| InvalidPolicy {
                field: format!("spec.allow.rules[{index}].expression"),
                why: error.to_string(),
            })?;
            let says = match &rule.message {
                Some(message) => message.clone(),
                None => format!("{} is not true", rule.expression),
            };
            Ok(Rule { expression, says })
        };
        let rules = allow.rules.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        Ok(Self {
            selector: allow.namespace_selector.as_ref().map(selector),
            rules,
            patterns: Arc::new(patterns),
            max_duration: allow.max_duration,
            key_types: allow.key_types.clone(),
            usages: match &*allow.usages {
                [] => vec![Usage::ClientAuth],
                usages => usages.to_vec(),
            },
        })
    }

    /// Refuses what is not allowed; the first field that refuses is told.
    pub fn check(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        if let Some(selector) = &self.selector {
            let field = "spec.allow.namespaceSelector";
            let namespace = asked.namespace.ok_or_else(|| unseen(field, asked.identity))?;
            if !selector.matches(namespace.labels.as_ref().unwrap_or(&BTreeMap::new())) {
                let name = namespace.name.as_deref().unwrap_or_default();
                let why = format!("the labels of Namespace {name:?} do not match");
                return Err(Refusal::new(field, why));
            }
        }
        if let Some(most) = self.max_duration.filter(|most| asked.duration > *most) {
            let why = format!("at most {most}; spec.duration is {}", asked.duration);
            return Err(Refusal::new("spec.allow.maxDuration", why));
        }
        let known = self.key_types.iter().map(|known| known.as_str());
        if !self.key_types.is_empty() && !known.clone().any(|known| known == asked.key_type) {
            let why = format!("{}; asked for: {}", list(known), asked.key_type);
            return Err(Refusal::new("spec.allow.keyTypes", why));
        }
        let known = self.usages.iter().map(|known| known.as_str());
        let more = |usage: &&&str| !known.clone().any(|known| known == **usage);
        if let Some(usage) = asked.usages.iter().find(more) {
            let why = format!("{}; asked for: {usage}", list(known));
            return Err(Refusal::new("spec.allow.usages", why));
        }
        self.check_rules(asked)
    }

    fn check_rules(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let ours = &asked.identity.metadata;
        for (metadata, of) in [(Some(ours), "ClientIdentity"), (asked.namespace, "Namespace")] {
            let Some(metadata) = metadata else { continue };
            for entries in [&metadata.labels, &metadata.annotations] {
                if entries.as_ref().is_some_and(|entries| entries.len() > MOST_ENTRIES) {
                    let why = format!(
                        "the {of} has more than {MOST_ENTRIES} labels or annotations, too many to check"
                    );
                    return Err(Refusal::new("spec.allow.rules", why));
                }
            }
        }
        let scope = Scope::new(&variables(asked), self.patterns.clone());
        for (index, rule) in self.rules.iter().enumerate() {
            let field = format!("spec.allow.rules[{index}]");
            if asked.namespace.is_none() && rule.reads_namespace() {
                return Err(unseen(&field, asked.identity));
            }
            match rule.expression.is_true(&scope) {
                Ok(true) => {}
                Ok(false) => {
                    let why = format!("{}; asked for: {}", rule.says, names(asked.identity));
                    return Err(Refusal::new(field, why));
                }
                Err(error) => {
                    let why = format!("it can't be decided: {error}; {}", rule.says);
                    return Err(Refusal::new(format!("{field}.expression"), why));
                }
            }
        }
        Ok(())
    }
}

fn unseen(field: &str, identity: &ClientIdentity) -> Refusal {
    let name = identity.metadata.namespace.as_deref().unwrap_or_default();
    Refusal::new(field, format!("Namespace {name:?} can't be seen, so its labels are not known"))
}

/// Does a selector match these labels?
pub fn selects(labels: &LabelSelector, of: &BTreeMap<String, String>) -> bool {
    selector(labels).matches(of)
}

fn selector(selector: &LabelSelector) -> Selector {
    let labels = selector.match_labels.iter();
    let labels = labels.map(|(key, value)| Requirement::Equal(key.clone(), value.clone()));
    let requirements = selector.match_expressions.iter().map(|requirement| {
        let (key, values) = (requirement.key.clone(), requirement.values.iter().cloned());
        match requirement.operator {
            LabelOperator::In => Requirement::In(key, values.collect()),
            LabelOperator::NotIn => Requirement::NotIn(key, values.collect()),
            LabelOperator::Exists => Requirement::Exists(key),
            LabelOperator::DoesNotExist => Requirement::DoesNotExist(key),
        }
    });
    labels.chain(requirements).collect()
}

/// The variables of rules for an identity with nothing in it.
static SAMPLE: LazyLock<Json> = LazyLock::new(|| {
    let metadata = json!({"name": "", "labels": {}, "annotations": {}});
    let mut identity = metadata.clone();
    let crd = ClientIdentity::crd();
    let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
    let schema = schema.and_then(|schema| schema.open_api_v3_schema.as_ref());
    let spec = schema.and_then(|schema| schema.properties.as_ref()?.get("spec"));
    overlay(&mut identity, spec.map(empty).unwrap_or_default());
    json!({"identity": identity, "namespaceObject": {"metadata": metadata}})
});

/// What stands for a field that is not set: "", 0, false, [], or an object of such fields.
fn empty(schema: &JSONSchemaProps) -> Json {
    let fields = schema.properties.iter().flatten();
    match schema.type_.as_deref() {
        Some("string") => json!(""),
        Some("integer" | "number") => json!(0),
        Some("boolean") => json!(false),
        Some("array") => json!([]),
        _ => fields.map(|(name, field)| (name.clone(), empty(field))).collect(),
    }
}

/// Puts the fields of one object over those of another, at every depth.
fn overlay(base: &mut Json, over: Json) {
    match (base, over) {
        (Json::Object(base), Json::Object(over)) => {
            for (name, value) in over {
                overlay(base.entry(name).or_insert(Json::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// What rules see.
fn variables(asked: &Asked<'_>) -> Json {
    let metadata = |metadata: &ObjectMeta| {
        json!({
            "name": metadata.name.as_deref().unwrap_or_default(),
            "labels": metadata.labels.clone().unwrap_or_default(),
            "annotations": metadata.annotations.clone().unwrap_or_default(),
        })
    };
    let mut identity = serde_json::to_value(&asked.identity.spec).unwrap_or_default();
    overlay(&mut identity, metadata(&asked.identity.metadata));
    let name = asked.identity.metadata.namespace.as_deref().unwrap_or_default();
    let mut variables = SAMPLE.clone();
    overlay(&mut variables["identity"], identity);
    variables["namespaceObject"]["metadata"] = match asked.namespace {
        Some(namespace) => metadata(namespace),
        None => json!({"name": name}),
    };
    variables
}

/// The names that an identity asks for, for its condition.
fn names(identity: &ClientIdentity) -> String {
    const LONGEST: usize = 200;
    let spec = &identity.spec;
    let mut parts = Vec::new();
    parts.extend(spec.common_name.iter().map(|name| format!("commonName {name:?}")));
    for (field, names) in [
        ("dnsNames", &spec.dns_names),
        ("emailAddresses", &spec.email_addresses),
        ("uris", &spec.uris),
        ("ipAddresses", &spec.ip_addresses),
    ] {
        if !names.is_empty() {
            parts.push(format!("{field} {names:?}"));
        }
    }
    let text = parts.join(", ");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    format!("allowed: {}", words.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::identity::tests::identity;
    use proptest::prelude::*;

    fn allow(yaml: &str) -> Allow {
        serde_yaml::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
    }

    fn policy(yaml: &str) -> Policy {
        Policy::compile(Some(&allow(yaml))).unwrap_or_else(|error| panic!("{yaml}: {error}"))
    }

    fn rules(expression: &str) -> Allow {
        let rule = crate::api::allow::AllowRule { expression: expression.into(), message: None };
        Allow { rules: vec![rule], ..Allow::default() }
    }

    fn namespace(labels: &[(&str, &str)]) -> ObjectMeta {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        ObjectMeta {
            name: Some("team".into()),
            labels: Some(labels.iter().map(own).collect()),
            ..ObjectMeta::default()
        }
    }

    fn asked<'a>(identity: &'a ClientIdentity, namespace: Option<&'a ObjectMeta>) -> Asked<'a> {
        Asked {
            identity,
            namespace,
            duration: Duration::from_hours(24),
            key_type: "ECDSA-256",
            usages: &["client auth"],
        }
    }

    /// The field that refuses the usual identity, laptop-7 in namespace team; "" when none does.
    fn refusing(policy: &Policy, namespace: Option<&ObjectMeta>) -> String {
        let identity = identity();
        let refusal = policy.check(&asked(&identity, namespace));
        refusal.err().map(|refusal| refusal.field).unwrap_or_default()
    }

    #[test]
    fn without_allow_everybody_may_have_any_name_for_client_auth_only() {
        let policy = Policy::compile(None).unwrap();
        let identity = identity();
        let usual = asked(&identity, None);
        assert_eq!(policy.check(&usual), Ok(()));
        assert_eq!(policy.check(&Asked { key_type: "RSA-2048", ..usual }), Ok(()));
        assert_eq!(
            policy.check(&Asked { duration: Duration::from_hours(99_999), ..usual }),
            Ok(())
        );
        let both = Asked { usages: &["client auth", "server auth"], ..usual };
        let refusal = policy.check(&both).unwrap_err().to_string();
        assert_eq!(refusal, "spec.allow.usages: allowed: client auth; asked for: server auth");
    }

    #[test]
    fn each_limit_refuses_what_is_beyond_it_and_says_so() {
        let identity = identity();
        let usual = asked(&identity, None);
        for (yaml, asked, refusal) in [
            ("{maxDuration: 24h}", usual, ""),
            (
                "{maxDuration: 23h}",
                usual,
                "spec.allow.maxDuration: at most 23h; spec.duration is 24h",
            ),
            ("{keyTypes: [Ed25519, ECDSA-256]}", usual, ""),
            (
                "{keyTypes: [Ed25519, RSA-4096]}",
                usual,
                "spec.allow.keyTypes: allowed: Ed25519, RSA-4096; asked for: ECDSA-256",
            ),
            (
                "{keyTypes: [Ed25519]}",
                Asked { key_type: "unheard of", ..usual },
                "spec.allow.keyTypes: allowed: Ed25519; asked for: unheard of",
            ),
            (
                "{usages: [client auth, server auth]}",
                Asked { usages: &["server auth"], ..usual },
                "",
            ),
            (
                "{usages: [server auth]}",
                usual,
                "spec.allow.usages: allowed: server auth; asked for: client auth",
            ),
            (
                "{usages: [server auth]}",
                Asked { usages: &["server auth", "any"], ..usual },
                "spec.allow.usages: allowed: server auth; asked for: any",
            ),
        ] {
            let found = policy(yaml).check(&asked).err().map(|refusal| refusal.to_string());
            assert_eq!(found.unwrap_or_default(), refusal, "{yaml}");
        }
    }

    #[test]
    fn namespaces_are_selected_as_kubernetes_does() {
        let team = namespace(&[("kubernetes.io/metadata.name", "team"), ("tier", "gold")]);
        let bare = ObjectMeta { name: Some("team".into()), ..ObjectMeta::default() };
        for (selector, gold, none) in [
            ("{}", true, true),
            ("{matchLabels: {tier: gold}}", true, false),
            ("{matchLabels: {tier: silver}}", false, false),
            ("{matchLabels: {tier: gold, other: x}}", false, false),
            ("{matchLabels: {kubernetes.io/metadata.name: team}}", true, false),
            (
                "{matchExpressions: [{key: tier, operator: In, values: [silver, gold]}]}",
                true,
                false,
            ),
            ("{matchExpressions: [{key: tier, operator: In, values: [silver]}]}", false, false),
            ("{matchExpressions: [{key: tier, operator: NotIn, values: [gold]}]}", false, true),
            ("{matchExpressions: [{key: tier, operator: NotIn, values: [silver]}]}", true, true),
            ("{matchExpressions: [{key: tier, operator: Exists}]}", true, false),
            ("{matchExpressions: [{key: tier, operator: DoesNotExist}]}", false, true),
            (
                "{matchLabels: {tier: gold}, matchExpressions: [{key: x, operator: Exists}]}",
                false,
                false,
            ),
        ] {
            let policy = policy(&format!("{{namespaceSelector: {selector}}}"));
            let field = "spec.allow.namespaceSelector";
            let expected = |allowed: bool| if allowed { "" } else { field };
            assert_eq!(refusing(&policy, Some(&team)), expected(gold), "{selector}");
            assert_eq!(refusing(&policy, Some(&bare)), expected(none), "{selector}");
            // What can't be seen is never let pass.
            assert_eq!(refusing(&policy, None), field, "{selector}");
        }
    }

    #[test]
    fn rules_see_the_identity_and_its_namespace() {
        let mut team = namespace(&[("tier", "gold")]);
        team.annotations = Some([("owner".to_owned(), "ada".to_owned())].into());
        let mut identity = identity();
        identity.metadata.labels = Some([("device".to_owned(), "laptop".to_owned())].into());
        for (expression, allowed) in [
            ("true", true),
            ("false", false),
            ("identity.commonName == 'laptop-7'", true),
            ("identity.commonName.startsWith(namespaceObject.metadata.name + '-')", false),
            ("identity.name == 'laptop-7' && identity.labels.device == 'laptop'", true),
            ("identity.labels['device'] == 'laptop' && !('x' in identity.labels)", true),
            ("identity.uris.all(u, u.startsWith('spiffe://example.com/'))", true),
            ("identity.uris.exists(u, u.endsWith('/laptop-8'))", false),
            // What is not set is empty, not an error.
            ("identity.dnsNames == [] && size(identity.emailAddresses) == 0", true),
            ("identity.subject.organizations.all(o, o == 'Example')", true),
            ("identity.subject.organizations == ['Example']", false),
            ("identity.duration == '24h' && identity.secretName != ''", true),
            ("identity.authorityRef.name == 'clients'", true),
            ("identity.commonName.matches('^laptop-[0-9]+$')", true),
            ("matches(identity.commonName, '^server')", false),
            ("'LapTop-7'.lowerAscii() == identity.commonName", true),
            ("identity.commonName.split('-')[1] == '7'", true),
            ("namespaceObject.metadata.labels.tier in ['gold', 'silver']", true),
            ("namespaceObject.metadata.annotations.owner == 'ada'", true),
            ("has(namespaceObject.metadata.labels.tier)", true),
            ("has(namespaceObject.metadata.labels.absent)", false),
            ("namespaceObject.metadata.name == 'team'", true),
            ("identity.uris.all(u, ['spiffe:', 'https:'].exists(s, u.startsWith(s)))", true),
            ("int(identity.commonName.split('-')[1]) < 10", true),
            ("string(size(identity.uris)) == '1'", true),
            ("identity.uris.map(u, size(u)).filter(n, n > 100) == []", true),
            ("{'team': 'laptop-7'}[namespaceObject.metadata.name] == identity.commonName", true),
        ] {
            let policy = Policy::compile(Some(&rules(expression)));
            let policy = policy.unwrap_or_else(|error| panic!("{expression}: {error}"));
            let answer = policy.check(&asked(&identity, Some(&team)));
            assert_eq!(answer.is_ok(), allowed, "{expression}: {answer:?}");
        }
    }

    #[test]
    fn the_rule_that_refuses_is_named_with_its_message_and_what_was_asked_for() {
        let policy = policy(
            "{rules: [{expression: 'true'}, {expression: identity.commonName == 'x', message: call it x}]}",
        );
        let identity = identity();
        let refusal = policy.check(&asked(&identity, None)).unwrap_err().to_string();
        let expected = "spec.allow.rules[1]: call it x; asked for: commonName \"laptop-7\", uris \
                        [\"spiffe://example.com/laptop-7\"]";
        assert_eq!(refusal, expected);
        let policy = Policy::compile(Some(&rules("identity.commonName == 'x'"))).unwrap();
        let refusal = policy.check(&asked(&identity, None)).unwrap_err().to_string();
        assert!(refusal.contains("identity.commonName == 'x' is not true"), "{refusal}");
        let mut long = identity;
        long.spec.uris = vec!["spiffe://\u{e4}".repeat(300)];
        let refusal = policy.check(&asked(&long, None)).unwrap_err().to_string();
        assert!(refusal.len() < 400 && refusal.ends_with("..."), "{refusal}");
    }

    #[test]
    fn what_can_not_be_decided_is_refused() {
        let team = namespace(&[]);
        for (expression, words) in [
            ("namespaceObject.metadata.labels.tier == 'gold'", "tier"),
            ("namespaceObject.metadata.labels['tier'] == 'gold'", "tier"),
            ("identity.dnsNames[0] == 'x'", "out of bounds"),
            ("int(identity.commonName) == 7", "invalid digit"),
            ("1 / size(identity.dnsNames) == 1", "zero"),
            ("identity.labels[identity.commonName] == 'x'", "no such key"),
        ] {
            let policy = Policy::compile(Some(&rules(expression)));
            let policy = policy.unwrap_or_else(|error| panic!("{expression}: {error}"));
            let identity = identity();
            let refusal = policy.check(&asked(&identity, Some(&team))).unwrap_err();
            assert_eq!(refusal.field, "spec.allow.rules[0].expression", "{expression}");
            assert!(refusal.why.contains("can't be decided"), "{refusal}");
            assert!(refusal.why.to_lowercase().contains(&words.to_lowercase()), "{refusal}");
        }
        // Nothing of a namespace that can't be seen is known but its name.
        for (expression, field) in [
            ("namespaceObject.metadata.name == 'team'", ""),
            ("!has(namespaceObject.metadata.labels.banned)", "spec.allow.rules[0]"),
            ("namespaceObject.metadata['labels'] == {}", "spec.allow.rules[0]"),
            (
                "identity.uris.all(u, !(u in namespaceObject.metadata.labels))",
                "spec.allow.rules[0]",
            ),
            ("[namespaceObject].all(n, !('banned' in n.metadata.labels))", "spec.allow.rules[0]"),
        ] {
            let policy = Policy::compile(Some(&rules(expression))).expect(expression);
            assert_eq!(refusing(&policy, None), field, "{expression}");
            assert_eq!(refusing(&policy, Some(&team)), "", "{expression}");
        }
        let mut crowded = namespace(&[]);
        crowded.annotations =
            Some((0..=MOST_ENTRIES).map(|n| (n.to_string(), String::new())).collect());
        let policy = Policy::compile(Some(&rules("true"))).unwrap();
        assert_eq!(refusing(&policy, Some(&crowded)), "spec.allow.rules");
    }

    #[test]
    fn an_expression_that_does_not_compile_names_its_field_and_the_trouble() {
        let deep = format!("identity.uris{} == 'x'", "[0]".repeat(32));
        let fields = format!("identity.labels{} == 'x'", ".a".repeat(32));
        let long = format!("'{}' == ''", "a".repeat(1024));
        let chain = format!("identity.uris{} == []", ".map(x, x)".repeat(3));
        let doubling = format!("'a'{} == ''", " + 'a'".repeat(17));
        for (expression, words) in [
            ("", "1:"),
            ("1 +", "1:"),
            ("(", "1:"),
            ("identity.commonName ==", "1:"),
            ("namespace.name == 'x'", "reserved identifier: namespace"),
            ("identity.comonName == 'x'", "identity has no field comonName; it has "),
            ("has(identity.foo)", "identity has no field foo"),
            ("identity.commonName.foo == 'x'", "identity.commonName has no fields"),
            ("identity.subject.country == 'x'", "identity.subject has no field country"),
            (
                "object.spec == 1",
                "there is no variable object; there are identity, namespaceObject",
            ),
            ("oops", "there is no variable oops"),
            ("frobnicate(identity.commonName)", "there is no function frobnicate"),
            ("identity.commonName.replace('a', 'b') == 'x'", "there is no function replace"),
            ("identity.commonName", "neither true nor false"),
            ("'true'", "neither true nor false"),
            ("1", "neither true nor false"),
            ("identity.dnsNames.startsWith('x')", "no matching overload"),
            ("identity.commonName + 1 == 'x'", "types don't fit: operator"),
            ("identity.commonName.matches('(')", "matches(): regex parse error"),
            ("identity.commonName.matches('(a{1000}){1000}')", "matches(): "),
            ("identity.commonName.matches(identity.name)", "must be a string literal"),
            ("Foo{a: 1} == 1", "it makes an object"),
            (&long, "longer than 1024 bytes"),
            ("identity.labels.map(l, l)[0] == 'x'", "labels and annotations have no order"),
            ("identity.annotations.filter(a, true) == []", "labels and annotations have no order"),
            (&deep, "nested deeper than 32 levels"),
            (&fields, "nested deeper than 32 levels"),
            (&chain, "loops within loops"),
            (&doubling, "more than 16 additions"),
            (
                "identity.uris.all(a, identity.uris.all(b, identity.uris.all(c, a == b && b == c)))",
                "loops within loops",
            ),
        ] {
            let all = Allow {
                rules: [rules("true").rules, rules(expression).rules].concat(),
                ..Allow::default()
            };
            let error = Policy::compile(Some(&all)).expect_err(expression);
            assert_eq!(error.field, "spec.allow.rules[1].expression", "{expression}");
            assert!(error.why.contains(words), "{expression}: {error}");
            assert!(error.why.len() < 400, "{expression}: {error}");
        }
    }

    #[test]
    fn a_refusal_reads_the_same_each_time() {
        let mut identity = identity();
        let entry = |n: usize| (format!("label-{n}"), String::new());
        identity.metadata.labels = Some((0..100).map(entry).collect());
        let team = namespace(&[]);
        for expression in [
            "identity.labels.all(l, namespaceObject.metadata.labels[l] == 'x')",
            "identity.labels.all(l, int(l) == 1)",
            "identity.labels == {} || namespaceObject.metadata.labels.x == identity.labels",
        ] {
            let policy = Policy::compile(Some(&rules(expression))).expect(expression);
            let refusals: std::collections::HashSet<String> = (0..20)
                .map(|_| policy.check(&asked(&identity, Some(&team))).unwrap_err().to_string())
                .collect();
            assert_eq!(refusals.len(), 1, "{refusals:?}");
        }
    }

    #[test]
    fn the_example_allows_the_one_and_refuses_the_other() {
        let text = include_str!("../../examples/08-allow.yaml");
        let mut parts = text.split("---\n");
        let authority: crate::api::ClientAuthority =
            serde_yaml::from_str(parts.next().unwrap()).unwrap();
        let policy = Policy::compile(authority.spec.allow.as_ref()).unwrap();
        let own = ("kubernetes.io/metadata.name", "countersign-quickstart");
        let mut here = namespace(&[own]);
        here.name = Some("countersign-quickstart".into());
        let refused = |part: &str| {
            let identity: ClientIdentity = serde_yaml::from_str(part).unwrap();
            let refusal = policy.check(&asked(&identity, Some(&here)));
            refusal.err().map(|refusal| refusal.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(parts.next().unwrap()), "");
        let refusal = refused(parts.next().unwrap());
        assert!(refusal.starts_with("spec.allow.rules[0]: commonName must be the"), "{refusal}");
        assert_eq!(parts.next(), None);
    }

    #[test]
    fn the_deepest_and_the_dearest_expressions_are_evaluated_on_a_small_stack() {
        let mut identity = identity();
        let entry = |n: usize| (format!("annotation-{n}"), "x".repeat(63));
        identity.metadata.annotations = Some((0..MOST_ENTRIES).map(entry).collect());
        for expression in [
            format!("identity.uris{} == 'x'", "[0]".repeat(28)),
            format!("{}true{}", "true ? (".repeat(30), ") : false".repeat(30)),
            format!("{}true", "identity.name != '' && ".repeat(40)),
            "identity.annotations.all(a, identity.annotations.all(b, a != '' && b != ''))".into(),
            "identity.annotations.all(a, (a + a + a + a).split('x').map(b, b + b) != [])".into(),
        ] {
            let policy = Policy::compile(Some(&rules(&expression)));
            let policy = policy.unwrap_or_else(|error| panic!("{expression}: {error}"));
            let start = std::time::Instant::now();
            std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().stack_size(1 << 20);
                let check = || policy.check(&asked(&identity, None)).is_ok();
                thread.spawn_scoped(scope, check).unwrap().join().unwrap();
            });
            println!("{:?} {expression}", start.elapsed());
        }
    }

    /// Pieces of CEL, so that some of what is made of them compiles.
    fn expressions() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "identity",
            "namespaceObject",
            ".commonName",
            ".uris",
            ".metadata",
            ".labels",
            "'a'",
            "1",
            "x",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            "+",
            "-",
            "!",
            "&&",
            "||",
            "==",
            "<",
            "in",
            " ",
            "?",
            ":",
            ",",
            ".all(x,",
            ".map(x,",
            ".matches(",
            "size(",
            "has(",
            "b'",
            "\\u",
            "\"\"\"",
            "r'",
            "`",
            "//",
            "\n",
            "\0",
            ">",
            "0x",
            "e9",
            "null",
        ]);
        prop_oneof![
            any::<String>(),
            prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        /// Whatever an expression holds, the answer is an answer; and next to a rule that refuses,
        /// nothing that stands in another rule lets anybody pass.
        #[test]
        fn no_expression_panics_or_overrules_another(expression in expressions()) {
            let identity = identity();
            let team = namespace(&[]);
            if let Ok(policy) = Policy::compile(Some(&rules(&expression))) {
                let _ = policy.check(&asked(&identity, Some(&team)));
                let _ = policy.check(&asked(&identity, None));
            }
            let all = Allow { rules: [rules(&expression).rules, rules("false").rules].concat(), ..Allow::default() };
            if let Ok(policy) = Policy::compile(Some(&all)) {
                prop_assert!(policy.check(&asked(&identity, Some(&team))).is_err());
            }
        }

        /// Text that says nothing true allows nothing.
        #[test]
        fn arbitrary_text_never_allows(text in any::<String>()) {
            if let Ok(policy) = Policy::compile(Some(&rules(&text))) {
                let identity = identity();
                prop_assert!(policy.check(&asked(&identity, None)).is_err(), "{text:?}");
            }
        }
    }
}
