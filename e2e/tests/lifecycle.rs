//! The life of a certificate after it was issued: renewal on request, rivals, failures, supersession,
//! retention, restarts, labels. A part of the tests in `integration.rs`.

use std::process::Command;
use std::time::Instant;

use countersign::api::condition::{RENEWAL_REQUEST, ROLLOUT_RESTARTED};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::DeleteParams;

use super::*;
use crate::support::condition;
use crate::support::control_plane::binary;

struct Place {
    plane: ControlPlane,
    client: Client,
    namespace: String,
    identities: Api<ClientIdentity>,
    secrets: Api<Secret>,
}

impl Place {
    /// A control plane with an authority; the operator, which is returned too, works on it.
    async fn new(prefix: &str) -> (Self, Operator) {
        let (plane, client) = control_plane().await;
        let operator = Operator::start(&plane);
        authority(&client, "clients").await;
        let namespace = namespace(&client, prefix).await;
        let identities = Api::namespaced(client.clone(), &namespace);
        let secrets = Api::namespaced(client.clone(), &namespace);
        (Self { plane, client, namespace, identities, secrets }, operator)
    }

    async fn issued(&self, name: &str, more: &str) -> Secret {
        create(&self.identities, &identity_yaml(name, more)).await;
        wait_for(&self.identities, name, READY, "True", "Issued").await;
        self.secret(name).await
    }

    async fn secret(&self, name: &str) -> Secret {
        self.secrets.get(&format!("{name}-tls")).await.expect("a Secret")
    }

    async fn status(&self, name: &str) -> countersign::api::ClientIdentityStatus {
        self.identities.get(name).await.expect("it exists").status.expect("a status")
    }

    /// Asks for a renewal by hand, and waits until it is told.
    async fn renewed(&self, name: &str) -> Secret {
        let before = self.status(name).await.serial_number;
        self.request(name, &jiff::Timestamp::now().to_string()).await;
        eventually("the requested certificate", || async {
            (self.status(name).await.serial_number != before).then_some(())
        })
        .await;
        self.secret(name).await
    }

    async fn request(&self, name: &str, text: &str) {
        let annotations = json!({annotation::RENEW_REQUESTED_AT: text});
        patch(&self.identities, name, json!({"metadata": {"annotations": annotations}})).await;
    }

    async fn issuances(&self) -> usize {
        let records = ledger(&self.client).await;
        let mut serials = HashSet::new();
        for record in records {
            if let Record::Issued(issued) = record {
                serials.insert(issued.serial);
            }
        }
        serials.len()
    }

    fn writes(&self, resource: &str) -> usize {
        let writes = self.plane.writes("operator");
        writes.iter().filter(|write| write.resource == resource).count()
    }

    fn renew(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(binary())
            .args(["renew", "-n", &self.namespace])
            .args(arguments)
            .env("KUBECONFIG", self.plane.kubeconfig("admin"))
            .output()
            .expect("it runs");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.success(), text)
    }
}

/// The state of each certificate in status, newest first: `revision state`.
fn states(status: &countersign::api::ClientIdentityStatus) -> Vec<String> {
    let all = status.revision_history.iter();
    all.map(|known| format!("{} {}", known.revision, known.state)).collect()
}

async fn is_revoked(client: &Client, secret: &Secret) -> bool {
    published_serials(client, "clients").await.1.contains(&serial_of(secret))
}

/// Waits until the log, which every start continues, tells so many times of leadership.
async fn leads(operator: &Operator, times: usize) {
    eventually("it leads", || async {
        (operator.log().matches("became leader").count() >= times).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_writer_that_never_rests_causes_no_issuance_loop() {
    let (place, operator) = Place::new("rival").await;
    let good = place.issued("laptop", "").await;
    let broken = json!({"data": {"tls.crt": "Z2FyYmFnZQ=="}});
    let started = Instant::now();
    let mut attacks = 0;
    while started.elapsed() < Duration::from_secs(20) {
        let params =
            kube::api::PatchParams { field_manager: Some("rival".into()), ..Default::default() };
        let body = kube::api::Patch::Merge(&broken);
        place.secrets.patch("laptop-tls", &params, &body).await.expect("patched");
        attacks += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(attacks > 50, "the writer rested: {attacks}");
    let issued = place.issuances().await;
    assert!((3..=5).contains(&issued), "{issued} issuances under {attacks} attacks");

    let drifted = wait_for(&place.identities, "laptop", READY, "False", "Drifted").await;
    let status = drifted.status.expect("a status");
    let message = &condition(&status.conditions, READY).expect("it is there").message;
    for words in ["Secret \"laptop-tls\"", "5 times within", "(last by \"rival\")", "repaired at"] {
        assert!(message.contains(words), "{message}");
    }
    let failure = status.last_failure.expect("a failure");
    assert_eq!((failure.reason.as_str(), failure.failures), ("Drifted", 1));
    let next = status.next_try.expect("a next try").0;
    let wait = next.duration_since(failure.time.0).as_secs();
    assert_eq!(wait, 60);
    let statuses = place.writes("clientidentities/status");
    assert!(statuses <= 16, "{statuses} writes of status under {attacks} attacks");

    // A restart forgets nothing of it.
    assert!(operator.stop().success());
    let operator = Operator::start(&place.plane);
    leads(&operator, 2).await;
    tokio::time::sleep(Duration::from_secs(3)).await; // it is what must not happen
    assert_eq!(place.issuances().await, issued);
    assert_eq!(place.writes("clientidentities/status"), statuses);

    // Put right by others, it is ready; the certificate is the last one that was issued.
    patch(&place.identities, "laptop", json!({"spec": {"commonName": "laptop-2"}})).await;
    wait_for(&place.identities, "laptop", READY, "True", "Issued").await;
    assert_ne!(serial_of(&place.secret("laptop").await), serial_of(&good));
    assert_eq!(place.status("laptop").await.next_try, None, "a change of the spec does not wait");
}

#[tokio::test]
async fn a_secret_that_is_put_back_ends_the_drift() {
    let (place, _operator) = Place::new("calm").await;
    let mut good = place.issued("laptop", "").await;
    for _ in 0..20 {
        let status = place.status("laptop").await;
        if condition(&status.conditions, READY).is_some_and(|ready| ready.reason == "Drifted") {
            break;
        }
        good = place.secret("laptop").await;
        patch(&place.secrets, "laptop-tls", json!({"data": {"tls.crt": "Z2FyYmFnZQ=="}})).await;
        eventually("repaired, or told", || async {
            let status = place.status("laptop").await;
            let told = condition(&status.conditions, READY).is_some_and(|r| r.reason == "Drifted");
            let secret = place.secret("laptop").await;
            let data = secret.data.as_ref()?;
            (told || inspect_pair(&data["tls.crt"].0, &data["tls.key"].0).is_ok()).then_some(())
        })
        .await;
    }
    wait_for(&place.identities, "laptop", READY, "False", "Drifted").await;
    let issued = place.issuances().await;
    let data = json!({"tls.crt": good.data.as_ref().unwrap()["tls.crt"]});
    patch(&place.secrets, "laptop-tls", json!({"data": data})).await;
    wait_for(&place.identities, "laptop", READY, "True", "Issued").await;
    assert_eq!(place.issuances().await, issued, "nothing was issued for it");
}

#[tokio::test]
async fn what_the_api_server_refuses_waits_and_says_until_when() {
    let (place, _operator) = Place::new("refused").await;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(place.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(place.client.clone());
    create(
        &policies,
        "{metadata: {name: no-secrets}, spec: {matchConstraints: {resourceRules: [{apiGroups: [\"\"], \
         apiVersions: [v1], operations: [CREATE], resources: [secrets]}]}, \
         validations: [{expression: \"!object.metadata.name.startsWith('refused')\", message: no more of these}]}}",
    )
    .await;
    create(
        &bindings,
        "{metadata: {name: no-secrets}, spec: {policyName: no-secrets, validationActions: [Deny]}}",
    )
    .await;
    let probe: Secret = serde_yaml::from_str("{metadata: {name: refused-probe}}").unwrap();
    eventually("the policy is in force", || async {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        place.secrets.create(&params, &probe).await.is_err().then_some(())
    })
    .await;

    create(&place.identities, &identity_yaml("refused", "")).await;
    wait_for(&place.identities, "refused", READY, "False", "IssuanceFailed").await;
    tokio::time::sleep(Duration::from_secs(5)).await; // it is what must not happen
    let status = place.status("refused").await;
    let failure = status.last_failure.clone().expect("a failure");
    assert_eq!((failure.reason.as_str(), failure.failures), ("Refused", 1));
    assert!(failure.message.contains("no more of these"), "{}", failure.message);
    let wait = status.next_try.clone().expect("a next try").0.duration_since(failure.time.0);
    assert_eq!(wait.as_secs(), 60);
    assert_eq!(place.issuances().await, 1, "one attempt, one serial");
    assert_eq!(place.writes("clientidentities/status"), 1);

    // A change of the spec is tried at once, and counts from one.
    patch(&place.identities, "refused", json!({"spec": {"commonName": "other"}})).await;
    eventually("the second attempt", || async {
        let second = place.status("refused").await.last_failure?;
        (second.time != failure.time).then_some(())
    })
    .await;
    assert_eq!(place.status("refused").await.last_failure.expect("a failure").failures, 1);

    // What stood in the way is gone; whoever does not want to wait asks.
    bindings.delete("no-secrets", &DeleteParams::default()).await.expect("deleted");
    eventually("the policy is gone", || async {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        place.secrets.create(&params, &probe).await.ok()
    })
    .await;
    let (success, text) = place.renew(&["refused", "--wait", "--timeout", "30"]);
    assert!(success, "{text}");
    let status = place.status("refused").await;
    assert_eq!(status.next_try, None);
    assert!(status.last_failure.is_some(), "kept as a memory");
}

#[tokio::test]
async fn a_renewal_can_be_asked_for() {
    let (place, operator) = Place::new("renew").await;
    let first = place.issued("laptop", "").await;
    place.issued("phone", "").await;

    // One name, with patience.
    let (success, text) = place.renew(&["laptop", "--wait"]);
    assert!(success, "{text}");
    let second = place.secret("laptop").await;
    assert_ne!(serial_of(&second), serial_of(&first));
    for words in ["clientidentity/laptop: renewal requested", &serial_of(&second).to_string()] {
        assert!(text.contains(words), "{text}");
    }
    // Once: a restart does not serve it again.
    assert!(operator.stop().success());
    let _operator = Operator::start(&place.plane);
    // All, and by label.
    patch(&place.identities, "phone", json!({"metadata": {"labels": {"team": "blue"}}})).await;
    let (success, text) = place.renew(&["--all", "--wait"]);
    assert!(
        success && text.contains("phone: renewed") && text.contains("laptop: renewed"),
        "{text}"
    );
    let (success, text) = place.renew(&["-l", "team=blue", "--wait"]);
    assert!(success && text.contains("phone: renewed") && !text.contains("laptop"), "{text}");
    assert_eq!(place.status("laptop").await.revision, Some(3));
    assert_eq!(place.status("phone").await.revision, Some(3));
    assert_eq!(place.issuances().await, 6);

    // Clear words for what can't be.
    for (arguments, words) in [
        (&["nobody"][..], "clientidentity/nobody: "),
        (&["-l", "team=red"], "no ClientIdentity found in namespace"),
        (&[], "required"),
        (&["laptop", "--all"], "cannot be used with"),
    ] {
        let (success, text) = place.renew(arguments);
        assert!(!success && text.contains(words), "{arguments:?}: {text}");
    }
    let serial = place.status("laptop").await.serial_number;
    place.request("laptop", "tomorrow").await;
    let told = wait_for(&place.identities, "laptop", RENEWAL_REQUEST, "False", "InvalidTime").await;
    let status = told.status.expect("a status");
    let message = &condition(&status.conditions, RENEWAL_REQUEST).expect("it is there").message;
    assert!(message.contains("\"tomorrow\" is not a time"), "{message}");
    assert_eq!(status.serial_number, serial, "nothing is lost");
    assert_eq!(condition(&status.conditions, READY).expect("it is there").status, "True");
}

#[tokio::test]
async fn superseded_certificates_end_after_their_grace_period_also_over_a_restart() {
    let (place, operator) = Place::new("grace").await;
    let policy = ", revocationPolicy: {superseded: AfterGracePeriod, gracePeriod: 12s}";
    let first = place.issued("laptop", policy).await;
    place.issued("keeper", "").await;
    let second = place.renewed("laptop").await;
    let replaced = Instant::now();
    let kept = place.secret("keeper").await;
    place.renewed("keeper").await;
    assert_eq!(states(&place.status("laptop").await), ["2 Current", "1 Superseded"]);
    assert!(!is_revoked(&place.client, &first).await);

    // The operator is away as a grace period runs.
    operator.kill();
    tokio::time::sleep(Duration::from_secs(3)).await; // a part of the grace period
    let operator = Operator::start(&place.plane);
    eventually("the first certificate is revoked", || async {
        is_revoked(&place.client, &first).await.then_some(())
    })
    .await;
    assert!(replaced.elapsed() > Duration::from_secs(10), "too early: {:?}", replaced.elapsed());
    eventually("status tells of it", || async {
        let states = states(&place.status("laptop").await);
        (states == ["2 Current", "1 Revoked"]).then_some(())
    })
    .await;
    let status = place.status("laptop").await;
    assert_eq!(status.revision_history[1].revocation_reason.as_deref(), Some("Superseded"));
    let third = place.renewed("laptop").await;
    eventually("the second certificate is revoked", || async {
        is_revoked(&place.client, &second).await.then_some(())
    })
    .await;
    assert!(!is_revoked(&place.client, &third).await, "the current one stays");
    assert!(!is_revoked(&place.client, &kept).await, "another identity's policy is Never");
    assert_eq!(states(&place.status("keeper").await), ["2 Current", "1 Superseded"]);

    // All of it is known to a new process, which has nothing to write.
    assert!(operator.stop().success());
    let before = place.plane.writes("operator");
    let operator = Operator::start(&place.plane);
    leads(&operator, 3).await;
    tokio::time::sleep(Duration::from_secs(13)).await; // it is what must not happen
    let after = place.plane.writes("operator");
    let of_identity =
        |write: &&support::control_plane::Write| write.resource.contains("identities");
    let writes: Vec<_> = after[before.len()..].iter().filter(of_identity).collect();
    assert!(writes.is_empty(), "{writes:?}");
}

#[tokio::test]
async fn retained_certificates_outlive_their_identity() {
    let (place, operator) = Place::new("retain").await;
    let retained = place.issued("retained", ", deletionPolicy: Retain").await;
    assert_eq!(retained.metadata.owner_references, None, "the garbage collector would take it");
    let early = place.issued("opted-in", "").await;
    let late = place.issued("opted-out", ", deletionPolicy: Retain").await;
    place.issued("probe", "").await;

    // A change of mind counts when status has followed it, and costs no certificate.
    for (name, policy) in [("opted-in", "Retain"), ("opted-out", "Revoke")] {
        patch(&place.identities, name, json!({"spec": {"deletionPolicy": policy}})).await;
        eventually("it is recorded", || async {
            let identity = place.identities.get(name).await.ok()?;
            let observed = identity.status?.observed_generation;
            (observed == identity.metadata.generation).then_some(())
        })
        .await;
    }
    eventually("the owner references follow", || async {
        let opted_in = place.secret("opted-in").await.metadata.owner_references;
        let opted_out = place.secret("opted-out").await.metadata.owner_references;
        (opted_in.is_none_or(|owners| owners.is_empty()) && opted_out.is_some()).then_some(())
    })
    .await;
    assert_eq!(serial_of(&place.secret("opted-in").await), serial_of(&early));
    assert_eq!(serial_of(&place.secret("opted-out").await), serial_of(&late));

    // Deleted while nobody looks.
    operator.kill();
    for name in ["retained", "opted-in", "opted-out", "probe"] {
        delete(&place.identities, name).await;
    }
    let _operator = Operator::start(&place.plane);
    eventually("what is not retained is revoked", || async {
        is_revoked(&place.client, &late).await.then_some(())
    })
    .await;
    assert_eq!(published_serials(&place.client, "clients").await.1.len(), 2, "and the probe's");
    assert!(!is_revoked(&place.client, &retained).await);
    assert!(!is_revoked(&place.client, &early).await);
    assert!(place.secrets.get_opt("retained-tls").await.expect("an answer").is_some());

    // It can be revoked all the same.
    let revocations: Api<CertificateRevocation> =
        Api::namespaced(place.client.clone(), &place.namespace);
    create(&revocations, &revocation_yaml("stolen", "identityRef: {name: retained}")).await;
    wait_for(&revocations, "stolen", PUBLISHED, "True", "Published").await;
    assert!(is_revoked(&place.client, &retained).await);
    // A successor of the name takes the Secret over and goes on with its certificate, as one that a backup
    // brought back does.
    let taken = place.issued("opted-in", ", deletionPolicy: Retain").await;
    assert_eq!(serial_of(&taken), serial_of(&early));
    assert!(!is_revoked(&place.client, &taken).await);
}

#[tokio::test]
async fn retained_certificates_outlive_their_namespace() {
    let (place, operator) = Place::new("wiped").await;
    let retained = place.issued("retained", ", deletionPolicy: Retain").await;
    let revoked = place.issued("revoked", "").await;
    operator.kill();
    // What the namespace controller does, of which there is none in this control plane.
    let namespaces: Api<Namespace> = Api::all(place.client.clone());
    namespaces.delete(&place.namespace, &DeleteParams::default()).await.expect("deleted");
    for name in ["retained", "revoked"] {
        delete(&place.identities, name).await;
        delete(&place.secrets, &format!("{name}-tls")).await;
    }
    let mut namespace = namespaces.get(&place.namespace).await.expect("it is on its way");
    namespace.spec.get_or_insert_default().finalizers = None;
    let body = serde_json::to_vec(&namespace).expect("JSON");
    let uri = format!("/api/v1/namespaces/{}/finalize", place.namespace);
    let request = http::Request::put(uri).header("Content-Type", "application/json").body(body);
    place.client.request_text(request.expect("a request")).await.expect("finalized");
    eventually("the namespace is gone", || async {
        namespaces.get_opt(&place.namespace).await.expect("an answer").is_none().then_some(())
    })
    .await;

    let _operator = Operator::start(&place.plane);
    eventually("what is not retained is revoked", || async {
        is_revoked(&place.client, &revoked).await.then_some(())
    })
    .await;
    assert!(!is_revoked(&place.client, &retained).await);
}

#[tokio::test]
async fn workloads_restart_once_for_each_certificate() {
    let (place, operator) = Place::new("rollout").await;
    let deployments: Api<Deployment> = Api::namespaced(place.client.clone(), &place.namespace);
    let web = "{metadata: {name: web}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: \
               {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}";
    create(&deployments, web).await;
    tokio::time::sleep(Duration::from_millis(1100)).await; // creationTimestamp has whole seconds
    let targets = ", rolloutRestartTargets: [{kind: Deployment, name: web}]";
    place.issued("laptop", targets).await;
    let told = wait_for(&place.identities, "laptop", ROLLOUT_RESTARTED, "True", "NotNeeded").await;
    assert!(told.status.is_some());
    assert_eq!(place.writes("deployments"), 0, "the first certificate restarts nothing");

    let second = place.renewed("laptop").await;
    wait_for(&place.identities, "laptop", ROLLOUT_RESTARTED, "True", "Restarted").await;
    let restarted_for = async || {
        let web = deployments.get("web").await.expect("it exists");
        let template = web.spec.template.metadata.expect("metadata");
        template.annotations.unwrap_or_default().remove(annotation::RESTARTED_FOR)
    };
    assert_eq!(restarted_for().await, Some(serial_of(&second).to_string()));
    assert_eq!(place.writes("deployments"), 1);

    // Killed just after a rotation, or restarted later: once for each certificate.
    place.request("laptop", &jiff::Timestamp::now().to_string()).await;
    eventually("a new certificate", || async {
        (serial_of(&place.secret("laptop").await) != serial_of(&second)).then_some(())
    })
    .await;
    operator.kill();
    let third = serial_of(&place.secret("laptop").await).to_string();
    for time in 2..4 {
        let operator = Operator::start(&place.plane);
        leads(&operator, time).await;
        eventually("the restart", || async {
            (restarted_for().await.as_ref() == Some(&third)).then_some(())
        })
        .await;
        eventually("told", || async {
            (place.status("laptop").await.serial_number.as_ref() == Some(&third)).then_some(())
        })
        .await;
        assert!(operator.stop().success());
    }
    assert_eq!(place.writes("deployments"), 2);

    // A missing one is named, and stands in nobody's way.
    let _operator = Operator::start(&place.plane);
    let more =
        json!([{"kind": "Deployment", "name": "web"}, {"kind": "StatefulSet", "name": "gone"}]);
    patch(&place.identities, "laptop", json!({"spec": {"rolloutRestartTargets": more}})).await;
    let told =
        wait_for(&place.identities, "laptop", ROLLOUT_RESTARTED, "False", "TargetNotFound").await;
    let status = told.status.expect("a status");
    let message = &condition(&status.conditions, ROLLOUT_RESTARTED).expect("it is there").message;
    assert!(message.contains("StatefulSet \"gone\" does not exist"), "{message}");
    assert_eq!(condition(&status.conditions, READY).expect("it is there").status, "True");
}

#[tokio::test]
async fn labels_and_annotations_of_the_secret_follow_the_template() {
    let (place, operator) = Place::new("template").await;
    let template = ", secretTemplate: {labels: {team: blue, tier: a}, annotations: {example.com/reload: \"true\"}}";
    let first = place.issued("laptop", template).await;
    assert_eq!(first.labels()["team"], "blue");
    assert_eq!(first.annotations()["example.com/reload"], "true");
    patch(&place.secrets, "laptop-tls", json!({"metadata": {"labels": {"theirs": "1"}}})).await;

    let change = json!({"spec": {"secretTemplate": {"labels": {"team": "red", "tier": null}, "annotations": null}}});
    patch(&place.identities, "laptop", change).await;
    let second = eventually("the new dress", || async {
        let secret = place.secret("laptop").await;
        (secret.labels()["team"] == "red").then_some(secret)
    })
    .await;
    assert_eq!(serial_of(&second), serial_of(&first), "a label costs no certificate");
    assert!(!second.labels().contains_key("tier") && second.labels()["theirs"] == "1");
    assert!(!second.annotations().contains_key("example.com/reload"));
    // Taken off by another hand, it is put on again.
    patch(&place.secrets, "laptop-tls", json!({"metadata": {"labels": {"team": null}}})).await;
    eventually("the label is back", || async {
        place.secret("laptop").await.labels().contains_key("team").then_some(())
    })
    .await;
    assert!(operator.stop().success());
    let before = (place.writes("secrets"), place.writes("clientidentities/status"));
    let operator = Operator::start(&place.plane);
    leads(&operator, 2).await;
    tokio::time::sleep(Duration::from_secs(5)).await; // it is what must not happen
    let after = (place.writes("secrets"), place.writes("clientidentities/status"));
    assert_eq!(after, before, "dressed once");

    for (more, words) in [
        ("secretTemplate: {labels: {countersign.dev/a: b}}", "are Countersign's own"),
        ("secretTemplate: {annotations: {app.kubernetes.io/managed-by: b}}", "Countersign's own"),
        ("secretTemplate: {labels: {\"a b\": c}}", "must hold valid label names and values"),
        ("secretTemplate: {labels: {a: \"b c\"}}", "must hold valid label names and values"),
        ("secretTemplate: {annotations: {\"a/b/c\": d}}", "must hold valid annotation names"),
        ("renewBeforePercentage: 100", "spec.renewBeforePercentage"),
        ("renewBefore: 1h, renewBeforePercentage: 10", "exclude each other"),
        ("deletionPolicy: Orphan", "spec.deletionPolicy"),
        ("revocationPolicy: {gracePeriod: soon}", "spec.revocationPolicy.gracePeriod"),
        ("rolloutRestartTargets: [{kind: Pod, name: a}]", "spec.rolloutRestartTargets[0].kind"),
        (
            "rolloutRestartTargets: [{kind: Deployment, name: a}, {kind: Deployment, name: a}]",
            "Duplicate value",
        ),
    ] {
        let yaml = identity_yaml("bad", &format!(", {more}"));
        let message = try_create(&place.identities, &yaml).await.expect_err(&yaml);
        assert!(message.contains(words), "{yaml}\n{message}");
    }
}
