//! The controller as a process against a real kube-apiserver and etcd.

#![allow(missing_docs)]

mod lifecycle;
mod support;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use countersign::api::condition::{PUBLISHED, READY, RECORDED};
use countersign::api::{
    CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust, annotation,
};
use countersign::pki::inspect::inspect_pair;
use countersign::pki::{Serial, crl};
use countersign::plan::ledger::{Ledger, Record};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use support::control_plane::ControlPlane;
use support::operator::{NAMESPACE, Operator, control_plane};
use support::{create, delete, eventually, namespace, patch, try_create, wait_for};

async fn authority(client: &Client, name: &str) -> ClientAuthority {
    let api: Api<ClientAuthority> = Api::all(client.clone());
    let yaml = format!(
        "{{apiVersion: countersign.dev/v1alpha1, kind: ClientAuthority, metadata: {{name: {name}}}, \
         spec: {{selfSigned: {{commonName: Test CA {name}}}}}}}"
    );
    create(&api, &yaml).await;
    wait_for(&api, name, READY, "True", "Ready").await
}

fn identity_yaml(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: countersign.dev/v1alpha1, kind: ClientIdentity, metadata: {{name: {name}}}, \
         spec: {{authorityRef: {{name: clients}}, commonName: {name}, secretName: {name}-tls{more}}}}}"
    )
}

fn revocation_yaml(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: countersign.dev/v1alpha1, kind: CertificateRevocation, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
    )
}

/// The serial in a Secret, after checking that key, leaf and annotations belong together.
fn serial_of(secret: &Secret) -> Serial {
    let data = secret.data.as_ref().expect("data");
    let facts = inspect_pair(&data["tls.crt"].0, &data["tls.key"].0).expect("key and leaf match");
    assert_eq!(secret.annotations()[annotation::SERIAL], facts.serial.to_string());
    facts.serial
}

async fn published_serials(client: &Client, authority: &str) -> (crl::CrlNumber, Vec<Serial>) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let config_map = api.get(&format!("crl-{authority}-1")).await.expect("a CRL");
    let facts = crl::read(&config_map.binary_data.expect("data")["crl.der"].0).expect("a CRL");
    (facts.number, facts.serials)
}

async fn ledger(client: &Client) -> Vec<Record> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let segments =
        api.list(&ListParams::default().labels("countersign.dev/component=ledger")).await;
    let mut segments = segments.expect("the API server answers").items;
    segments.sort_by_key(ResourceExt::name_any);
    segments
        .into_iter()
        .flat_map(|segment| {
            let bytes = &segment.binary_data.expect("data")["records"].0;
            Record::decode_all(bytes).expect("records")
        })
        .collect()
}

#[tokio::test]
async fn the_life_of_an_identity() {
    let (plane, client) = control_plane().await;
    let operator = Operator::start(&plane);
    authority(&client, "clients").await;
    let ns = namespace(&client, "life").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &ns);
    let revocations: Api<CertificateRevocation> = Api::namespaced(client.clone(), &ns);

    // Issued, and the status says what the Secret holds.
    create(&identities, &identity_yaml("laptop", "")).await;
    let ready = wait_for(&identities, "laptop", READY, "True", "Issued").await;
    let first = secrets.get("laptop-tls").await.expect("a Secret");
    let status = ready.status.clone().expect("a status");
    assert_eq!(status.serial_number, Some(serial_of(&first).to_string()));
    assert_eq!(status.revision, Some(1));
    assert_eq!(first.type_.as_deref(), Some("kubernetes.io/tls"));

    // A deleted Secret comes back, with another key and serial.
    delete(&secrets, "laptop-tls").await;
    let second = eventually("the Secret comes back", || async {
        secrets.get_opt("laptop-tls").await.expect("an answer")
    })
    .await;
    assert_ne!(serial_of(&second), serial_of(&first));
    assert_ne!(second.data.as_ref().unwrap()["tls.key"], first.data.as_ref().unwrap()["tls.key"]);

    // Edited by hand, it is repaired; what others added stays.
    let edit =
        json!({"data": {"tls.crt": first.data.as_ref().unwrap()["tls.crt"], "note": "bWluZQ=="}});
    patch(&secrets, "laptop-tls", edit).await;
    let third = eventually("the Secret is repaired", || async {
        let secret = secrets.get("laptop-tls").await.expect("a Secret");
        let data = secret.data.as_ref()?;
        let whole = inspect_pair(&data["tls.crt"].0, &data["tls.key"].0).is_ok();
        whole.then_some(secret)
    })
    .await;
    assert_eq!(third.data.as_ref().unwrap()["note"].0, b"mine");
    patch(&secrets, "laptop-tls", json!({"data": {"ca.crt": null}})).await;
    let restored = eventually("the bundle is restored", || async {
        let secret = secrets.get("laptop-tls").await.expect("a Secret");
        secret.data.as_ref()?.contains_key("ca.crt").then_some(secret)
    })
    .await;
    assert_eq!(serial_of(&restored), serial_of(&third), "a lost bundle costs no certificate");

    // A change of the spec is a new certificate.
    patch(&identities, "laptop", json!({"spec": {"commonName": "laptop-2"}})).await;
    let fourth = eventually("a new certificate", || async {
        let secret = secrets.get("laptop-tls").await.expect("a Secret");
        (serial_of(&secret) != serial_of(&third)).then_some(secret)
    })
    .await;

    // Revoked by name: every certificate of it, and no other is issued.
    create(
        &revocations,
        &revocation_yaml("stolen", "identityRef: {name: laptop}, reason: KeyCompromise"),
    )
    .await;
    wait_for(&revocations, "stolen", RECORDED, "True", "Recorded").await;
    let revoked = wait_for(&revocations, "stolen", PUBLISHED, "True", "Published").await;
    let (number, serials) = published_serials(&client, "clients").await;
    for secret in [&first, &second, &third, &fourth] {
        assert!(serials.contains(&serial_of(secret)), "{}", serial_of(secret));
    }
    assert_eq!(revoked.status.unwrap().crl_number, Some(number.0.to_string()));
    wait_for(&identities, "laptop", READY, "False", "Revoked").await;

    // Its revocation object deleted: the serials stay revoked, a new certificate is issued.
    delete(&revocations, "stolen").await;
    wait_for(&identities, "laptop", READY, "True", "Issued").await;
    let fifth = secrets.get("laptop-tls").await.expect("a Secret");
    let (_, serials) = published_serials(&client, "clients").await;
    assert!(!serials.contains(&serial_of(&fifth)) && serials.contains(&serial_of(&fourth)));

    // Revoked by serial: replaced at once.
    let serial = serial_of(&fifth).to_string();
    create(&revocations, &revocation_yaml("leaked", &format!("serialNumber: \"{serial}\""))).await;
    wait_for(&revocations, "leaked", PUBLISHED, "True", "Published").await;
    let sixth = eventually("a replacement", || async {
        let secret = secrets.get("laptop-tls").await.expect("a Secret");
        (serial_of(&secret) != serial_of(&fifth)).then_some(secret)
    })
    .await;

    // Deleted: its certificates are revoked, without a finalizer.
    delete(&identities, "laptop").await;
    eventually("the certificate of the deleted identity is revoked", || async {
        let (_, serials) = published_serials(&client, "clients").await;
        serials.contains(&serial_of(&sixth)).then_some(())
    })
    .await;
    let log = operator.log();
    assert!(!log.contains("PRIVATE KEY"), "a key in the log");
    assert!(operator.stop().success(), "an orderly end");
}

#[tokio::test]
async fn rotation_replaces_key_and_certificate_before_they_expire() {
    let (plane, client) = control_plane().await;
    let _operator = Operator::start(&plane);
    authority(&client, "clients").await;
    let ns = namespace(&client, "rotate").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &ns);
    create(&identities, &identity_yaml("short", ", duration: 5m, renewBefore: 4m50s")).await;
    wait_for(&identities, "short", READY, "True", "Issued").await;
    let first = secrets.get("short-tls").await.expect("a Secret");
    let second = eventually("the next certificate", || async {
        let secret = secrets.get("short-tls").await.expect("a Secret");
        (serial_of(&secret) != serial_of(&first)).then_some(secret)
    })
    .await;
    assert_ne!(second.data.as_ref().unwrap()["tls.key"], first.data.as_ref().unwrap()["tls.key"]);
    assert_eq!(second.annotations()[annotation::REVISION], "2");
    let (_, revoked) = published_serials(&client, "clients").await;
    assert!(revoked.is_empty(), "a rotated certificate is superseded, not revoked");
}

#[tokio::test]
async fn bad_input_gets_a_clear_answer() {
    let (plane, client) = control_plane().await;
    let _operator = Operator::start(&plane);
    authority(&client, "clients").await;
    let ns = namespace(&client, "bad").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &ns);
    let revocations: Api<CertificateRevocation> = Api::namespaced(client.clone(), &ns);
    let trusts: Api<ClientTrust> = Api::namespaced(client.clone(), &ns);
    let authorities: Api<ClientAuthority> = Api::all(client.clone());

    // Refused by the API server, with object and field.
    for (yaml, words) in [
        (identity_yaml("a", ", duration: 1m"), "spec.duration must be at least 5m"),
        (identity_yaml("a", ", duration: 1x"), "spec.duration"),
        (
            identity_yaml("a", ", duration: 1h, renewBefore: 1h"),
            "spec.renewBefore must be at least 10s shorter than spec.duration",
        ),
        (
            identity_yaml("a", ", renewBefore: 2200h"),
            "spec.renewBefore must be at least 10s shorter than spec.duration",
        ),
        (identity_yaml("a", ", uris: [\"no scheme\"]"), "spec.uris must hold absolute ASCII URIs"),
        (
            identity_yaml("a", ", uris: [\"spiffe://example.com/\u{e4}\"]"),
            "spec.uris must hold absolute ASCII URIs",
        ),
        (
            identity_yaml("a", ", ipAddresses: [\"10.0.0\"]"),
            "spec.ipAddresses must hold IPv4 or IPv6 addresses",
        ),
        (identity_yaml("a", ", dnsNames: [\"a b\"]"), "spec.dnsNames must hold DNS names"),
        (identity_yaml("a", ", emailAddresses: [\"ada\"]"), "spec.emailAddresses"),
        (identity_yaml("a", "").replace(", commonName: a", ""), "must name the client"),
        (
            identity_yaml("a", "").replace("secretName: a-tls", "secretName: A_b"),
            "spec.secretName must be a valid Secret name",
        ),
    ] {
        let message = try_create(&identities, &yaml).await.expect_err(&yaml);
        assert!(message.contains(words), "{yaml}\n{message}");
        assert!(message.contains("ClientIdentity") && message.contains("\"a\""), "{message}");
    }
    for (spec, words) in [
        ("", "exactly one of identityRef, serialNumber and fingerprint"),
        (
            "identityRef: {name: a}, serialNumber: \"0a\"",
            "exactly one of identityRef, serialNumber and fingerprint",
        ),
        ("serialNumber: xyz", "spec.serialNumber must be hex"),
        ("identityRef: {name: a}, reason: Boredom", "spec.reason"),
    ] {
        let yaml = revocation_yaml("r", spec);
        let message = try_create(&revocations, &yaml).await.expect_err(&yaml);
        assert!(message.contains(words), "{yaml}\n{message}");
    }
    let authority_yaml = |name: &str, spec: &str| {
        format!(
            "{{apiVersion: countersign.dev/v1alpha1, kind: ClientAuthority, metadata: {{name: {name}}}, spec: {{selfSigned: {{commonName: x{spec}}}}}}}"
        )
    };
    for (yaml, words) in [
        (
            authority_yaml("with.dot", ""),
            "metadata.name must be at most 63 characters and hold no dot",
        ),
        (authority_yaml("a", ", duration: 1m"), "spec.selfSigned.duration must be at least 1h"),
        (
            authority_yaml("a", "}, crl: {refresh: 8h, validity: 8h"),
            "spec.crl.refresh must be at most half of spec.crl.validity",
        ),
        (
            authority_yaml("a", "}, crl: {distributionPointBaseURL: \"https://x\""),
            "must be an http:// URL",
        ),
        (
            authority_yaml("a", "}, allow: {maxDuration: 4m"),
            "spec.allow.maxDuration must be at least 5m",
        ),
        (
            authority_yaml(
                "a",
                &format!("}}, allow: {{rules: [{{expression: {}}}]", "a".repeat(1025)),
            ),
            "may not be more than 1024",
        ),
        (
            authority_yaml(
                "a",
                &format!("}}, allow: {{rules: [{{expression: a, message: {}}}]", "a".repeat(257)),
            ),
            "may not be more than 256",
        ),
        (
            authority_yaml(
                "a",
                &format!("}}, allow: {{rules: [{}]", "{expression: a}, ".repeat(33)),
            ),
            "must have at most 32 items",
        ),
        (
            authority_yaml("a", "}, allow: {usages: [client auth, code signing]"),
            "spec.allow.usages[1]: Unsupported value: \"code signing\"",
        ),
        (
            authority_yaml("a", "}, allow: {keyTypes: [ECDSA-256, ECDSA-256]"),
            "spec.allow.keyTypes[1]: Duplicate value",
        ),
        (
            authority_yaml("a", "}, allow: {keyTypes: []"),
            "spec.allow.keyTypes in body should have at least 1 items",
        ),
        (
            authority_yaml(
                "a",
                "}, allow: {namespaceSelector: {matchExpressions: [{key: a, operator: In}]}",
            ),
            "In and NotIn need values",
        ),
        (
            authority_yaml(
                "a",
                "}, allow: {namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            ),
            "Exists and DoesNotExist have none",
        ),
        (
            authority_yaml(
                "a",
                "}, allow: {namespaceSelector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}",
            ),
            "Unsupported value: \"Like\"",
        ),
    ] {
        let message = try_create(&authorities, &yaml).await.expect_err(&yaml);
        assert!(message.contains(words), "{yaml}\n{message}");
    }
    let trust_yaml = |target: &str, authority: &str| {
        format!(
            "{{apiVersion: countersign.dev/v1alpha1, kind: ClientTrust, metadata: {{name: t}}, spec: {{authorities: [{{name: {authority}}}], targetRefs: [{target}]}}}}"
        )
    };
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
    let message =
        try_create(&trusts, &trust_yaml(route, "clients")).await.expect_err("an HTTPRoute");
    assert!(message.contains("targetRefs must name an Ingress"), "{message}");

    let ingress = "{group: networking.k8s.io, kind: Ingress, name: i}";
    for (allow, words) in [
        ("{}", "spec.allow must name clients"),
        ("{uris: []}", "spec.allow.uris"),
        ("{uris: ['spiffe://example.com*']}", "an asterisk may only be the last character"),
        ("{uris: ['spiffe://*/shop']}", "an asterisk may only be the last character"),
        ("{uris: ['no scheme']}", "spec.allow.uris must hold absolute ASCII URIs"),
        ("{dnsNames: ['*']}", "spec.allow.dnsNames must hold DNS names"),
        ("{dnsNames: ['a.*.example.com']}", "spec.allow.dnsNames must hold DNS names"),
        ("{emailAddresses: ['*@example.com']}", "without an asterisk"),
        ("{commonNames: ['']}", "spec.allow.commonNames"),
    ] {
        let yaml =
            trust_yaml(ingress, "clients").replace("spec: {", &format!("spec: {{allow: {allow}, "));
        let message = try_create(&trusts, &yaml).await.expect_err(&yaml);
        assert!(message.contains(words), "{yaml}\n{message}");
    }
    for (more, words) in [
        ("secondFactor: {}", "exactly one of basic and url"),
        (
            "secondFactor: {basic: {secretName: a}, url: {endpoint: 'http://a/'}}",
            "exactly one of basic and url",
        ),
        ("secondFactor: {url: {endpoint: 'ftp://a/'}}", "must be a URL such as https://"),
        (
            "secondFactor: {url: {endpoint: 'https://a/'}}",
            "spec.secondFactor.url.caBundle must hold the CA certificates",
        ),
        (
            "secondFactor: {url: {endpoint: 'https://a/', caBundle: ''}}",
            "spec.secondFactor.url.caBundle: Invalid value",
        ),
        (
            "secondFactor: {url: {endpoint: 'http://a/', caBundle: x}}",
            "spec.secondFactor.url.caBundle verifies nobody at an http:// endpoint",
        ),
        ("secondFactor: {url: {endpoint: 'http://ada@a/'}}", "without user and fragment"),
        ("secondFactor: {url: {endpoint: 'http://a/', timeout: 1m}}", "at most 10s"),
        (
            "secondFactor: {basic: {secretName: a}}, canary: {endpoints: [{url: 'https://a/'}]}",
            "set canary or secondFactor",
        ),
    ] {
        let yaml = trust_yaml(ingress, "clients").replace("spec: {", &format!("spec: {{{more}, "));
        let message = try_create(&trusts, &yaml).await.expect_err(&yaml);
        assert!(message.contains(words), "{yaml}\n{message}");
    }

    // What a bundle holds is looked at later.
    let over_tls = "spec: {secondFactor: {url: {endpoint: 'https://a/', caBundle: x}}, ";
    let yaml = trust_yaml(ingress, "clients").replace("spec: {", over_tls);
    try_create(&trusts, &yaml).await.expect("a trust whose service is asked over TLS");
    delete(&trusts, "t").await;

    // Told by a condition, with object and field.
    let message_of = async |name: &str, reason: &str| {
        let identity = wait_for(&identities, name, READY, "False", reason).await;
        identity.status.unwrap().conditions[0].message.clone()
    };
    create(&identities, &identity_yaml("lost", "").replace("name: clients", "name: nobody")).await;
    let message = message_of("lost", "AuthorityNotFound").await;
    assert!(message.contains("spec.authorityRef.name: ClientAuthority \"nobody\""), "{message}");

    create(&identities, &identity_yaml("older", "")).await;
    wait_for(&identities, "older", READY, "True", "Issued").await;
    tokio::time::sleep(Duration::from_millis(1100)).await; // creationTimestamp has whole seconds
    create(&identities, &identity_yaml("younger", "").replace("younger-tls", "older-tls")).await;
    let message = message_of("younger", "SecretNameConflict").await;
    assert!(message.contains("spec.secretName: ClientIdentity \"older\" is older"), "{message}");
    // When the older one goes, the younger may have the name.
    delete(&identities, "older").await;
    delete(&secrets, "older-tls").await; // there is no garbage collector in this control plane
    wait_for(&identities, "younger", READY, "True", "Issued").await;

    let foreign: Secret =
        serde_yaml::from_str("{metadata: {name: taken-tls}, stringData: {a: b}}").unwrap();
    secrets.create(&PostParams::default(), &foreign).await.expect("created");
    create(&identities, &identity_yaml("taken", "")).await;
    let message = message_of("taken", "SecretNotOwned").await;
    assert!(
        message.contains("spec.secretName: Secret \"taken-tls\" exists and is not ours"),
        "{message}"
    );
    let kept = secrets.get("taken-tls").await.expect("a Secret");
    assert_eq!(kept.data.unwrap()["a"].0, b"b");
    delete(&secrets, "taken-tls").await;
    // No watch tells of a Secret without our label: the next look finds the name free.
    patch(&identities, "taken", json!({"metadata": {"annotations": {"look": "again"}}})).await;
    wait_for(&identities, "taken", READY, "True", "Issued").await;

    create(&revocations, &revocation_yaml("nobody", "identityRef: {name: nobody}")).await;
    wait_for(&revocations, "nobody", RECORDED, "False", "NotFound").await;

    let ingress = "{group: networking.k8s.io, kind: Ingress, name: missing}";
    create(&trusts, &trust_yaml(ingress, "clients")).await;
    let trust = wait_for(&trusts, "t", READY, "False", "TargetNotFound").await;
    let message = trust.status.unwrap().conditions[0].message.clone();
    assert!(message.contains("targetRefs: Ingress \"missing\" does not exist"), "{message}");
}

/// Creates the authority `clients` with an `allow`.
async fn authority_that_allows(client: &Client, allow: &str) -> Api<ClientAuthority> {
    let api: Api<ClientAuthority> = Api::all(client.clone());
    create(
        &api,
        &format!(
            "{{metadata: {{name: clients}}, spec: {{selfSigned: {{commonName: x}}, allow: {allow}}}}}"
        ),
    )
    .await;
    api
}

fn ready_message(object: &impl support::HasConditions) -> String {
    let conditions = object.conditions();
    support::condition(&conditions, READY).expect("a condition").message.clone()
}

#[tokio::test]
async fn a_name_that_is_not_allowed_is_never_signed() {
    let (plane, client) = control_plane().await;
    let _operator = Operator::start(&plane);
    let authorities = authority_that_allows(
        &client,
        "{namespaceSelector: {matchLabels: {clients: allowed}}, maxDuration: 720h, rules: [\
         {expression: \"identity.dnsNames == []\"}, \
         {expression: \"identity.commonName.startsWith(namespaceObject.metadata.labels.team + '-')\", \
          message: commonName must begin with the team}]}",
    )
    .await;
    wait_for(&authorities, "clients", READY, "True", "Ready").await;
    let ns = namespace(&client, "allow").await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &ns);

    // Each refusal names its field; nothing is signed, and nothing stands in the ledger.
    let refused = async |name: &str, words: &str| {
        eventually(&format!("{name} is refused: {words}"), || async {
            let identity = identities.get(name).await.ok()?;
            let status = identity.status.as_ref()?;
            let ready = support::condition(&status.conditions, READY)?;
            let told = ready.reason == "NotAllowed" && ready.message.contains(words);
            (told && ready.status == "False").then_some(())
        })
        .await;
    };
    create(&identities, &identity_yaml("red-1", ", duration: 24h")).await;
    create(&identities, &identity_yaml("blue-1", ", duration: 24h")).await;
    create(&identities, &identity_yaml("red-2", "")).await;
    for name in ["red-1", "blue-1", "red-2"] {
        refused(
            name,
            "ClientAuthority \"clients\" does not allow it: spec.allow.namespaceSelector: ",
        )
        .await;
    }
    patch(&namespaces, &ns, json!({"metadata": {"labels": {"clients": "allowed"}}})).await;
    refused("red-1", "spec.allow.rules[1].expression: it can't be decided").await;
    refused("red-2", "spec.allow.maxDuration: at most 720h; spec.duration is 2160h").await;
    assert!(ledger(&client).await.is_empty(), "{:?}", ledger(&client).await);
    assert!(secrets.list(&ListParams::default()).await.expect("an answer").items.is_empty());

    // The namespace gets the label: what it allows is issued, and nothing else.
    patch(&namespaces, &ns, json!({"metadata": {"labels": {"team": "red"}}})).await;
    wait_for(&identities, "red-1", READY, "True", "Issued").await;
    refused("blue-1", "spec.allow.rules[1]: commonName must begin with the team; asked for: commonName \"blue-1\"").await;
    let first = secrets.get("red-1-tls").await.expect("a Secret");
    assert!(secrets.get_opt("blue-1-tls").await.expect("an answer").is_none());

    // An identity that changes to what is not allowed keeps what it has, and gets nothing new; nor does
    // one whose Secret is lost.
    patch(&identities, "red-1", json!({"spec": {"dnsNames": ["admin.example.com"]}})).await;
    refused("red-1", "spec.allow.rules[0]: identity.dnsNames == [] is not true").await;
    refused("red-1", "the present certificate is valid until").await;
    assert_eq!(serial_of(&secrets.get("red-1-tls").await.expect("a Secret")), serial_of(&first));
    let (_, revoked) = published_serials(&client, "clients").await;
    assert!(revoked.is_empty());
    patch(&identities, "red-1", json!({"spec": {"dnsNames": null}})).await;
    wait_for(&identities, "red-1", READY, "True", "Issued").await;
    patch(&namespaces, &ns, json!({"metadata": {"labels": {"clients": "no-more"}}})).await;
    refused("red-1", "spec.allow.namespaceSelector: ").await;
    delete(&secrets, "red-1-tls").await;
    patch(&identities, "red-1", json!({"spec": {"commonName": "red-11"}})).await;
    eventually("the change is looked at", || async {
        let identity = identities.get("red-1").await.ok()?;
        let seen = identity.status?.observed_generation == identity.metadata.generation;
        seen.then_some(())
    })
    .await;
    assert!(secrets.get_opt("red-1-tls").await.expect("an answer").is_none());
    assert_eq!(ledger_of_issued(&client).await, 1, "{:?}", ledger(&client).await);

    // The authority becomes more generous: whoever was refused gets a certificate.
    patch(&authorities, "clients", json!({"spec": {"allow": null}})).await;
    for name in ["red-1", "red-2", "blue-1"] {
        wait_for(&identities, name, READY, "True", "Issued").await;
    }
}

#[tokio::test]
async fn an_allow_that_does_not_compile_stops_signing_but_not_the_crl() {
    let (plane, client) = control_plane().await;
    let operator = Operator::start(&plane);
    authority(&client, "clients").await;
    let authorities: Api<ClientAuthority> = Api::all(client.clone());
    let ns = namespace(&client, "invalid").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    let revocations: Api<CertificateRevocation> = Api::namespaced(client.clone(), &ns);
    create(&identities, &identity_yaml("before", "")).await;
    let before = wait_for(&identities, "before", READY, "True", "Issued").await;

    let broken =
        json!({"spec": {"allow": {"rules": [{"expression": "identity.comonName == 'x'"}]}}});
    patch(&authorities, "clients", broken).await;
    let told = wait_for(&authorities, "clients", READY, "False", "InvalidAllow").await;
    let message = ready_message(&told);
    let words = "spec.allow.rules[0].expression: identity has no field comonName; it has ";
    assert!(message.starts_with(words), "{message}");
    create(&identities, &identity_yaml("after", "")).await;
    wait_for(&identities, "after", READY, "False", "AuthorityNotReady").await;
    // What is good stays good, what is stolen dies.
    wait_for(&identities, "before", READY, "True", "Issued").await;
    create(&revocations, &revocation_yaml("stolen", "identityRef: {name: before}")).await;
    wait_for(&revocations, "stolen", PUBLISHED, "True", "Published").await;
    let (_, serials) = published_serials(&client, "clients").await;
    let serial = before.status.unwrap().serial_number.unwrap();
    assert!(serials.iter().any(|revoked| revoked.to_string() == serial));

    // Also after a restart, until it is put right.
    assert!(operator.stop().success());
    let _operator = Operator::start(&plane);
    create(&identities, &identity_yaml("later", "")).await;
    wait_for(&identities, "later", READY, "False", "AuthorityNotReady").await;
    assert_eq!(ledger_of_issued(&client).await, 1);
    let mended =
        json!({"spec": {"allow": {"rules": [{"expression": "identity.commonName != 'later'"}]}}});
    patch(&authorities, "clients", mended).await;
    wait_for(&authorities, "clients", READY, "True", "Ready").await;
    wait_for(&identities, "after", READY, "True", "Issued").await;
    wait_for(&identities, "later", READY, "False", "NotAllowed").await;
}

async fn ledger_of_issued(client: &Client) -> usize {
    let records = ledger(client).await;
    records.iter().filter(|record| matches!(record, Record::Issued(_))).count()
}

#[tokio::test]
async fn an_operator_of_some_namespaces_sees_the_labels_of_these() {
    let (plane, client) = control_plane().await;
    let ns = namespace(&client, "inside").await;
    let operator = Operator::start_as(&plane, "limited", &["--watch-namespaces", &ns]);
    let allow = format!(
        "{{namespaceSelector: {{matchExpressions: [{{key: kubernetes.io/metadata.name, operator: In, values: [{ns}]}}]}}}}"
    );
    authority_that_allows(&client, &allow).await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    create(&identities, &identity_yaml("laptop", "")).await;
    wait_for(&identities, "laptop", READY, "True", "Issued").await;
    drop(operator);

    // As the chart has it: a right to list and watch namespaces by name covers these watches, and no more.
    let roles: Api<ClusterRole> = Api::all(client.clone());
    create(
        &roles,
        &format!(
            "{{metadata: {{name: limited}}, rules: [{{apiGroups: [''], resources: [namespaces], verbs: [list, watch], resourceNames: [{ns}]}}]}}"
        ),
    )
    .await;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    create(
        &bindings,
        "{metadata: {name: limited}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: limited}, \
         subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: limited}]}",
    )
    .await;
    let mut config = plane.config("admin").await;
    config.auth_info.impersonate = Some("limited".to_owned());
    let namespaces: Api<Namespace> = Api::all(Client::try_from(config).expect("a client"));
    let named = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
    let seen =
        eventually("the right is in force", || async { namespaces.list(&named(&ns)).await.ok() })
            .await;
    assert_eq!(seen.items.len(), 1);
    assert!(namespaces.list(&ListParams::default()).await.is_err());
    assert!(namespaces.list(&named("default")).await.is_err());
}

#[tokio::test]
async fn a_steady_cluster_sees_no_write_also_after_a_restart() {
    let (plane, client) = control_plane().await;
    let operator = Operator::start(&plane);
    authority(&client, "clients").await;
    let ns = namespace(&client, "steady").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    let revocations: Api<CertificateRevocation> = Api::namespaced(client.clone(), &ns);
    for number in 0..20 {
        create(&identities, &identity_yaml(&format!("client-{number}"), "")).await;
    }
    create(&identities, &identity_yaml("broken", "").replace("name: clients", "name: nobody"))
        .await;
    wait_for(&identities, "client-0", READY, "True", "Issued").await;
    create(&revocations, &revocation_yaml("stolen", "identityRef: {name: client-0}")).await;
    wait_for(&revocations, "stolen", PUBLISHED, "True", "Published").await;
    let trusts: Api<ClientTrust> = Api::namespaced(client.clone(), &ns);
    create(
        &trusts,
        "{metadata: {name: shop}, spec: {authorities: [{name: clients}], \
         targetRefs: [{group: networking.k8s.io, kind: Ingress, name: missing}]}}",
    )
    .await;
    wait_for(&trusts, "shop", READY, "False", "TargetNotFound").await;
    for number in 1..20 {
        wait_for(&identities, &format!("client-{number}"), READY, "True", "Issued").await;
    }
    wait_for(&identities, "broken", READY, "False", "AuthorityNotFound").await;
    wait_for(&identities, "client-0", READY, "False", "Revoked").await;
    wait_for(&revocations, "stolen", PUBLISHED, "True", "Published").await;
    // The counts in the authority's status follow within ten seconds; after that nothing may move.
    let authorities: Api<ClientAuthority> = Api::all(client.clone());
    eventually("the counts are right", || async {
        let status = authorities.get("clients").await.ok()?.status?;
        let counts = status.certificates?;
        (counts.live == 19 && counts.revoked == 1).then_some(())
    })
    .await;

    let before = plane.writes("operator");
    assert!(before.len() >= 40, "the audit log shows no writes: {before:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let after = plane.writes("operator");
    assert_eq!(
        after.len(),
        before.len(),
        "writes in a steady cluster: {:?}",
        &after[before.len()..]
    );

    assert!(operator.stop().success());
    let again = Operator::start(&plane);
    eventually("the new process leads and has looked at everything", || async {
        again.log().matches("became leader").count().ge(&2).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let restarted = plane.writes("operator");
    assert_eq!(
        restarted.len(),
        before.len(),
        "writes after a restart: {:?}",
        &restarted[before.len()..]
    );
}

#[tokio::test]
async fn killed_at_any_moment_of_a_rotation_key_and_leaf_match() {
    const KILLS: usize = 60;
    let (plane, client) = control_plane().await;
    let operator = Operator::start(&plane);
    authority(&client, "clients").await;
    operator.stop();
    let ns = namespace(&client, "kill").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &ns);
    for number in 0..8 {
        create(&identities, &identity_yaml(&format!("client-{number}"), "")).await;
    }
    // Every process finds all eight identities in need of a rotation and dies in the middle of it.
    let mut random = Random(0x5eed);
    for kill in 0..KILLS {
        for number in 0..8 {
            let change = json!({"spec": {"commonName": format!("client-{number}-{kill}")}});
            patch(&identities, &format!("client-{number}"), change).await;
        }
        let operator = Operator::start(&plane);
        // Half of the kills wait for the first write of this round, to fall into the thick of it.
        let before = plane.writes("operator").len();
        if kill % 2 == 0 {
            eventually("a write", || async {
                (plane.writes("operator").len() > before).then_some(())
            })
            .await;
            tokio::time::sleep(Duration::from_micros(random.below(40_000))).await;
        } else {
            tokio::time::sleep(Duration::from_micros(random.below(600_000))).await;
        }
        operator.kill();
        for secret in secrets.list(&ListParams::default()).await.expect("an answer").items {
            serial_of(&secret);
        }
    }
    let operator = Operator::start(&plane);
    for number in 0..8 {
        let name = format!("client-{number}");
        eventually(&format!("{name} settles"), || async {
            let identity = identities.get(&name).await.ok()?;
            let secret = secrets.get_opt(&format!("{name}-tls")).await.ok()??;
            let status = identity.status?;
            let settled = status.serial_number == Some(serial_of(&secret).to_string())
                && status.observed_generation == identity.metadata.generation;
            settled.then_some(())
        })
        .await;
    }
    operator.stop();

    let mut book = Ledger::default();
    let mut by_revision: BTreeMap<(String, u32), HashSet<Serial>> = BTreeMap::new();
    for record in ledger(&client).await {
        if let Record::Issued(issued) = &record {
            let key = (issued.holder.name.to_string(), issued.revision);
            by_revision.entry(key).or_default().insert(issued.serial);
        }
        book.apply(record);
    }
    let rotations = by_revision.len();
    assert!(
        rotations > KILLS,
        "only {rotations} issuances in {KILLS} rounds: the kills hit nothing"
    );
    for (revision, serials) in &by_revision {
        assert_eq!(serials.len(), 1, "{revision:?} has more than one serial");
    }
    for secret in secrets.list(&ListParams::default()).await.expect("an answer").items {
        let serial = serial_of(&secret);
        let issued = book.find(&serial).expect("every certificate stands in the ledger");
        assert_eq!(secret.annotations()[annotation::REVISION], issued.revision.to_string());
        assert!(book.revocation(&serial).is_none());
    }
    println!("{KILLS} kills, {rotations} issuances");
}

#[tokio::test]
async fn a_namespace_that_goes_burns_no_serial() {
    let (plane, client) = control_plane().await;
    let _operator = Operator::start(&plane);
    authority(&client, "clients").await;
    let ns = namespace(&client, "going").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &ns);
    create(&identities, &identity_yaml("laptop", "")).await;
    wait_for(&identities, "laptop", READY, "True", "Issued").await;
    // Without a controller manager the namespace stays in its deletion, as a large one does for a while.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.delete(&ns, &Default::default()).await.expect("deleted");
    delete(&secrets, "laptop-tls").await;
    tokio::time::sleep(Duration::from_secs(4)).await; // nothing to wait for: it is what must not happen
    assert_eq!(ledger_of_issued(&client).await, 1, "{:?}", ledger(&client).await);
}

#[tokio::test]
async fn two_replicas_have_one_ca_and_one_leader() {
    let (plane, client) = control_plane().await;
    let first = Operator::start_as(&plane, "one", &[]);
    let second = Operator::start_as(&plane, "two", &[]);
    authority(&client, "clients").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let cas = secrets.list(&ListParams::default().labels("countersign.dev/component=ca")).await;
    assert_eq!(cas.expect("an answer").items.len(), 1);
    let leads = |operator: &Operator| operator.log().contains("became leader");
    assert!(leads(&first) != leads(&second), "exactly one leads");

    // The other takes over when the leader goes, and works.
    let (leader, other) = if leads(&first) { (first, second) } else { (second, first) };
    leader.kill();
    let ns = namespace(&client, "failover").await;
    let identities: Api<ClientIdentity> = Api::namespaced(client.clone(), &ns);
    create(&identities, &identity_yaml("laptop", "")).await;
    wait_for(&identities, "laptop", READY, "True", "Issued").await;
    assert!(leads(&other));
}

#[tokio::test]
async fn a_lost_ca_key_is_never_replaced_unasked() {
    let (plane, client) = control_plane().await;
    let _operator = Operator::start(&plane);
    authority(&client, "clients").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let kept = secrets.get("ca-clients-1").await.expect("a CA");
    delete(&secrets, "ca-clients-1").await;
    let authorities: Api<ClientAuthority> = Api::all(client.clone());
    wait_for(&authorities, "clients", READY, "False", "KeyMissing").await;
    let mut restored = kept;
    restored.metadata.resource_version = None;
    restored.metadata.uid = None;
    secrets.create(&PostParams::default(), &restored).await.expect("restored");
    wait_for(&authorities, "clients", READY, "True", "Ready").await;
}

/// A small generator, so that a failing run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
