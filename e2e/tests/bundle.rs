//! Bundles for workloads that verify clients by themselves, judged by OpenSSL, as a process beside a real API server.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::PathBuf;

use countersign::api::condition::{BUNDLE_PUBLISHED, PUBLISHED, READY};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity, ClientTrust};
use countersign::pki::inspect::certificates;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use support::control_plane::ControlPlane;
use support::operator::{Operator, control_plane};
use support::servers::write_files;
use support::{ask, condition, create, delete, eventually, namespace, patch, try_create, wait_for};

struct Scene {
    // The order counts: it ends before the API server.
    _operator: Operator,
    plane: ControlPlane,
    client: Client,
    namespace: String,
}

impl Scene {
    /// An authority `staff`, and identities of it.
    async fn new(spec: &str, identities: &[&str]) -> Self {
        let (plane, client) = control_plane().await;
        let operator = Operator::start(&plane);
        let namespace = namespace(&client, "workloads").await;
        let scene = Self { _operator: operator, plane, client, namespace };
        let yaml = format!(
            "{{metadata: {{name: staff}}, spec: {{selfSigned: {{commonName: staff}}{spec}}}}}"
        );
        create(&scene.authorities(), &yaml).await;
        wait_for(&scene.authorities(), "staff", READY, "True", "Ready").await;
        for name in identities {
            let yaml = format!(
                "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: staff}}, commonName: {name}, secretName: {name}-tls}}}}"
            );
            create(&scene.api::<ClientIdentity>(), &yaml).await;
        }
        for name in identities {
            wait_for(&scene.api::<ClientIdentity>(), name, READY, "True", "Issued").await;
            let secret = scene.api::<Secret>().get(&format!("{name}-tls")).await.expect("a Secret");
            let folder = scene.path(name);
            fs::create_dir_all(&folder).expect("a folder");
            write_files(&secret, &["tls.crt"], &folder);
        }
        scene
    }

    fn authorities(&self) -> Api<ClientAuthority> {
        Api::all(self.client.clone())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        self.api_in(&self.namespace)
    }

    fn api_in<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.plane.folder().join(name)
    }

    async fn revoke(&self, identity: &str) {
        let api = self.api::<CertificateRevocation>();
        let yaml = format!(
            "{{metadata: {{name: {identity}}}, spec: {{identityRef: {{name: {identity}}}}}}}"
        );
        create(&api, &yaml).await;
        wait_for(&api, identity, PUBLISHED, "True", "Published").await;
    }

    /// OpenSSL's verdict on an identity's certificate with what a workload was given: `OK` or the reason.
    fn verify(&self, identity: &str, ca: &str, crl: &str) -> String {
        let folder = self.path(identity);
        fs::write(folder.join("ca.crt"), ca).expect("written");
        fs::write(folder.join("ca.crl"), crl).expect("written");
        let arguments =
            ["verify", "-crl_check_all", "-CAfile", "ca.crt", "-CRLfile", "ca.crl", "tls.crt"];
        let (good, text) = ask(&folder, "openssl", &arguments);
        if good {
            return "OK".to_owned();
        }
        let reason = text.lines().find_map(|line| line.split_once("lookup: "));
        reason.map_or(text.clone(), |(_, reason)| reason.to_owned())
    }

    /// Waits until a ConfigMap of a namespace leads OpenSSL to this verdict.
    async fn verdict_in(&self, namespace: &str, map: &str, identity: &str, verdict: &str) {
        eventually(&format!("{map} in {namespace}: {identity} {verdict}"), || async {
            let map = self.api_in::<ConfigMap>(namespace).get_opt(map).await.expect("an answer")?;
            let data = map.data.unwrap_or_default();
            let of = |key: &str| data.get(key).cloned().unwrap_or_default();
            (self.verify(identity, &of("ca.crt"), &of("ca.crl")) == verdict).then_some(())
        })
        .await;
    }

    async fn verdict(&self, map: &str, identity: &str, verdict: &str) {
        self.verdict_in(&self.namespace, map, identity, verdict).await;
    }

    async fn trust(&self, bundle: &str) {
        let yaml = format!(
            "{{metadata: {{name: clients}}, spec: {{authorities: [{{name: staff}}], bundle: {bundle}}}}}"
        );
        create(&self.api::<ClientTrust>(), &yaml).await;
    }

    async fn published(&self) {
        let trusts = self.api::<ClientTrust>();
        wait_for(&trusts, "clients", BUNDLE_PUBLISHED, "True", "Published").await;
        wait_for(&trusts, "clients", READY, "True", "Programmed").await;
    }
}

#[tokio::test]
async fn a_workload_reads_from_a_bundle_who_is_trusted_and_who_is_revoked() {
    let scene = Scene::new("", &["good", "stolen"]).await;
    let (trusts, maps) = (scene.api::<ClientTrust>(), scene.api::<ConfigMap>());
    scene.trust("{name: client-ca}").await;
    scene.published().await;
    scene.verdict("client-ca", "good", "OK").await;
    scene.verdict("client-ca", "stolen", "OK").await;
    scene.revoke("stolen").await;
    scene.verdict("client-ca", "stolen", "certificate revoked").await;
    scene.verdict("client-ca", "good", "OK").await;

    // What somebody else changes or deletes is put back; what they add to the metadata stays.
    let change =
        json!({"metadata": {"labels": {"team": "shop"}}, "data": {"ca.crl": "", "more": "x"}});
    patch(&maps, "client-ca", change).await;
    scene.verdict("client-ca", "stolen", "certificate revoked").await;
    eventually("it holds nothing else", || async {
        let map = maps.get("client-ca").await.expect("it");
        (map.labels()["team"] == "shop" && map.data.unwrap_or_default().len() == 2).then_some(())
    })
    .await;
    delete(&maps, "client-ca").await;
    scene.verdict("client-ca", "stolen", "certificate revoked").await;

    // Another name: the former one goes.
    patch(&trusts, "clients", json!({"spec": {"bundle": {"name": "staff-ca"}}})).await;
    scene.verdict("staff-ca", "good", "OK").await;
    eventually("the former one is gone", || async {
        maps.get_opt("client-ca").await.expect("an answer").is_none().then_some(())
    })
    .await;

    // None: the condition goes with it. Something has to be left of the trust.
    let route = json!([{"group": "networking.k8s.io", "kind": "Ingress", "name": "shop"}]);
    patch(&trusts, "clients", json!({"spec": {"bundle": null, "targetRefs": route}})).await;
    eventually("the bundle is gone", || async {
        let trust = trusts.get("clients").await.expect("it");
        let conditions = trust.status.expect("a status").conditions;
        let told = condition(&conditions, BUNDLE_PUBLISHED).is_some();
        (!told && maps.get_opt("staff-ca").await.expect("an answer").is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_bundle_can_be_a_secret_and_trusts_nobody_when_it_is_none_any_more() {
    let scene = Scene::new("", &["good", "stolen"]).await;
    let (trusts, secrets) = (scene.api::<ClientTrust>(), scene.api::<Secret>());
    scene.trust("{kind: Secret, name: client-ca, crlKey: crl.pem}").await;
    scene.published().await;
    scene.revoke("stolen").await;
    eventually("OpenSSL refuses the revoked one by it", || async {
        let secret = secrets.get("client-ca").await.expect("it");
        assert_eq!(secret.type_.as_deref(), Some("Opaque"));
        let data = secret.data.expect("data");
        assert_eq!(data.keys().collect::<Vec<_>>(), ["ca.crt", "crl.pem"]);
        let text = |key: &str| String::from_utf8(data[key].0.clone()).expect("PEM");
        let (ca, crl) = (text("ca.crt"), text("crl.pem"));
        assert_eq!(scene.verify("good", &ca, &crl), "OK");
        (scene.verify("stolen", &ca, &crl) == "certificate revoked").then_some(())
    })
    .await;
    patch(
        &trusts,
        "clients",
        json!({"spec": {"bundle": {"kind": "ConfigMap", "crlKey": "ca.crl"}}}),
    )
    .await;
    scene.verdict("client-ca", "stolen", "certificate revoked").await;
    eventually("the Secret is emptied", || async {
        let secret = secrets.get("client-ca").await.expect("it goes with the trust");
        secret.data.unwrap_or_default().is_empty().then_some(())
    })
    .await;
    // And back: it is still the trust's.
    patch(&trusts, "clients", json!({"spec": {"bundle": {"kind": "Secret"}}})).await;
    eventually("the Secret is a bundle again", || async {
        let data = secrets.get("client-ca").await.expect("it").data.unwrap_or_default();
        data.contains_key("ca.crl").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_object_that_is_somebody_elses_is_left_alone_and_a_bundle_without_sense_is_refused() {
    let scene = Scene::new("", &["good"]).await;
    let (trusts, maps) = (scene.api::<ClientTrust>(), scene.api::<ConfigMap>());
    for (spec, told) in [
        ("{authorities: [{name: staff}]}", "set targetRefs, bundle or both"),
        (
            "{authorities: [{name: staff}], bundle: {kind: Secret, name: countersign-clients}}",
            "the Secret of this name is the one that the data planes read",
        ),
        (
            "{authorities: [{name: staff}], bundle: {name: ca}, allow: {commonNames: [good]}}",
            "give the bundle a ClientTrust of its own",
        ),
        ("{authorities: [{name: staff}], bundle: {name: CA}}", "spec.bundle.name"),
        ("{authorities: [{name: staff}], bundle: {name: ca, crlKey: tls.crl}}", "crlKey"),
    ] {
        let yaml = format!("{{metadata: {{name: clients}}, spec: {spec}}}");
        let refused = try_create(&trusts, &yaml).await.expect_err(spec);
        assert!(refused.contains(told), "{refused}");
    }
    create(&maps, "{metadata: {name: client-ca}, data: {mine: 'yes'}}").await;
    scene.trust("{name: client-ca}").await;
    let trust = wait_for(&trusts, "clients", BUNDLE_PUBLISHED, "False", "NotOwned").await;
    let conditions = trust.status.expect("a status").conditions;
    let ready = condition(&conditions, READY).expect("Ready");
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "NotOwned"));
    assert!(ready.message.contains("ConfigMap client-ca exists and is not ours"), "{ready:?}");
    let kept = maps.get("client-ca").await.expect("it").data.expect("data");
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [("mine".to_owned(), "yes".to_owned())]);
    patch(&trusts, "clients", json!({"spec": {"bundle": {"name": "ours"}}})).await;
    scene.published().await;
    scene.verdict("ours", "good", "OK").await;
}

#[tokio::test]
async fn a_bundle_of_the_authority_follows_the_labels_of_namespaces() {
    let bundle = ", rotation: {preparation: 1s, activationTimeout: 1h, reissueWithin: 0s}, \
                  bundle: {name: staff-ca, namespaceSelector: {matchLabels: {clients: staff}}}";
    let scene = Scene::new(bundle, &["good", "stolen"]).await;
    let namespaces: Api<Namespace> = Api::all(scene.client.clone());
    let other = namespace(&scene.client, "other").await;
    let authorities = scene.authorities();
    let told = |selected: usize| {
        let (authorities, told) = (authorities.clone(), format!("in {selected} namespaces"));
        async move {
            eventually(&told, || async {
                let conditions = authorities.get("staff").await.ok()?.status?.conditions;
                let found = condition(&conditions, BUNDLE_PUBLISHED)?;
                (found.status == "True" && found.message.contains(&told)).then_some(())
            })
            .await;
        }
    };
    told(0).await;
    let label = |value: serde_json::Value| json!({"metadata": {"labels": {"clients": value}}});
    for name in [&scene.namespace, &other] {
        patch(&namespaces, name, label(json!("staff"))).await;
        scene.verdict_in(name, "staff-ca", "good", "OK").await;
    }
    told(2).await;
    scene.revoke("stolen").await;
    for name in [&scene.namespace, &other] {
        scene.verdict_in(name, "staff-ca", "stolen", "certificate revoked").await;
    }
    let elsewhere = scene.api_in::<ConfigMap>("default").get_opt("staff-ca").await;
    assert!(elsewhere.expect("an answer").is_none(), "only where the labels say so");

    // It is put back where it is deleted, and taken away where it is not wanted any more.
    delete(&scene.api_in::<ConfigMap>(&other), "staff-ca").await;
    scene.verdict_in(&other, "staff-ca", "stolen", "certificate revoked").await;
    patch(&namespaces, &other, label(json!(null))).await;
    eventually("it is gone from a namespace without the label", || async {
        let found = scene.api_in::<ConfigMap>(&other).get_opt("staff-ca").await;
        found.expect("an answer").is_none().then_some(())
    })
    .await;
    told(1).await;

    // What is in the way is told, left alone, and holds up the next CA: those who read it would refuse its clients.
    create(&scene.api_in::<ConfigMap>(&other), "{metadata: {name: staff-ca}}").await;
    patch(&namespaces, &other, label(json!("staff"))).await;
    let authority = wait_for(&authorities, "staff", BUNDLE_PUBLISHED, "False", "Incomplete").await;
    let conditions = authority.status.expect("a status").conditions;
    let message = &condition(&conditions, BUNDLE_PUBLISHED).expect("it").message;
    assert!(message.contains(&format!("1 of 2 namespaces: {other:?}")), "{message}");
    let events: Api<Event> = Api::all(scene.client.clone());
    eventually("an event says why", || async {
        let listed = events.list(&ListParams::default()).await.expect("events");
        let about = |event: &Event| event.note.as_deref().unwrap_or_default().contains(&other);
        listed.iter().any(|e| e.reason.as_deref() == Some("NotOwned") && about(e)).then_some(())
    })
    .await;
    let now = jiff::Timestamp::now().to_string();
    let rotate = json!({"metadata": {"annotations": {"countersign.dev/rotate-requested-at": now}}});
    patch(&authorities, "staff", rotate).await;
    let waits = format!("ConfigMap {other}/staff-ca");
    eventually("the next CA waits for it", || async {
        let conditions = authorities.get("staff").await.ok()?.status?.conditions;
        condition(&conditions, "Rotating")?.message.contains(&waits).then_some(())
    })
    .await;
    let cas = || async {
        let map = scene.api::<ConfigMap>().get("staff-ca").await.expect("it");
        certificates(map.data.expect("data")["ca.crt"].as_bytes()).expect("PEM").len()
    };
    assert_eq!(cas().await, 2, "it is trusted before it signs");
    delete(&scene.api_in::<ConfigMap>(&other), "staff-ca").await;
    scene.verdict_in(&other, "staff-ca", "stolen", "certificate revoked").await;
    eventually("the next CA signs", || async {
        let generations = authorities.get("staff").await.ok()?.status?.generations;
        let active = generations.iter().find(|one| format!("{:?}", one.state) == "Active")?;
        (active.number == 2).then_some(())
    })
    .await;

    // Not asked for any more: it is gone everywhere.
    patch(&authorities, "staff", json!({"spec": {"bundle": null}})).await;
    eventually("it is gone everywhere", || async {
        let maps: Api<ConfigMap> = Api::all(scene.client.clone());
        let left = maps.list(&ListParams::default()).await.expect("ConfigMaps");
        let conditions = authorities.get("staff").await.ok()?.status?.conditions;
        let told = condition(&conditions, BUNDLE_PUBLISHED).is_some();
        (!told && left.iter().all(|map| map.name_any() != "staff-ca")).then_some(())
    })
    .await;
}
