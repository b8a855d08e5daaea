//! What a `ClientTrust` needs: the Secret with trust bundle and CRL, the data plane's objects, and the
//! changes to its targets.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use serde_json::Value;

use super::canary;
use crate::api::condition::{self, ACCEPTED, PROGRAMMED, READY, REVOCATION_ENFORCED, Wanted};
use crate::api::trust::{Reason, TargetReference, TargetStatus};
use crate::api::{ClientTrust, ClientTrustStatus, annotation, label};
use crate::ingress::traefik::{host_routes, names_its_hosts};
use crate::ingress::{DataPlane, Edit, HostRoute, Request, object_name};

/// Keys of a trust's Secret.
pub mod secret_key {
    /// The trust bundle, PEM.
    pub const CA: &str = "ca.crt";
    /// The CRLs of all its CAs, PEM, one after the other.
    pub const CRL: &str = "ca.crl";
}

/// Everything that the plan depends on.
pub struct World<'a> {
    /// The trust.
    pub trust: &'a ClientTrust,
    /// Its authorities, in the order of the spec.
    pub authorities: Vec<(&'a str, Option<Anchor<'a>>)>,
    /// Its targets, in the order of the spec.
    pub targets: Vec<Target<'a>>,
    /// Every route in the cluster that the data planes see.
    pub routes: &'a [HostRoute],
    /// Base URL of the gate.
    pub gate_url: &'a str,
    /// What the canary has to tell that was not told yet.
    pub canary: Option<&'a canary::Report>,
    /// The time.
    pub now: Timestamp,
}

/// What an authority contributes to a trust.
#[derive(Clone, Copy, Debug)]
pub struct Anchor<'a> {
    /// Its CA certificates, PEM.
    pub bundle: &'a str,
    /// SHA-256 over these and the CAs that have a CRL, lower-case hex.
    pub mark: &'a str,
    /// Their CRLs, PEM.
    pub crl: &'a str,
}

/// One target as it was found.
pub struct Target<'a> {
    /// Which.
    pub reference: &'a TargetReference,
    /// The object, when it exists.
    pub object: Option<Value>,
    /// What serves it, or what was found instead.
    pub data_plane: Result<&'static DataPlane, String>,
}

/// What to write beside the Secret.
pub struct Plan {
    /// The data planes' objects, with owner and labels.
    pub objects: Vec<Value>,
    /// The change to each target, in the order of the spec; or why there is none.
    pub edits: Vec<Result<Edit, Wanted>>,
}

/// Plans what a trust needs.
pub fn plan(world: &World<'_>) -> Plan {
    let namespace = world.trust.namespace().unwrap_or_default();
    let name = world.trust.name_any();
    let request = Request {
        namespace: &namespace,
        trust: &name,
        mode: world.trust.spec.mode,
        authorities: world.authorities.iter().map(|(name, _)| *name).collect(),
        gate_url: world.gate_url,
    };
    let mut planes: Vec<&'static DataPlane> = Vec::new();
    let mut edits = Vec::new();
    for target in &world.targets {
        edits.push(edit(&request, target).inspect(|_| {
            if let Ok(plane) = target.data_plane
                && planes.iter().all(|known| known.name != plane.name)
            {
                planes.push(plane);
            }
        }));
    }
    let objects = planes
        .iter()
        .flat_map(|plane| (plane.objects)(&request))
        .map(|object| owned(world.trust, object))
        .collect();
    Plan { objects, edits }
}

fn edit(request: &Request<'_>, target: &Target<'_>) -> Result<Edit, Wanted> {
    let TargetReference { kind, name, .. } = target.reference;
    let Some(object) = &target.object else {
        return Err(Wanted::no(
            ACCEPTED,
            Reason::TargetNotFound.as_str(),
            format!(
                "targetRefs: {kind} {name:?} does not exist in namespace {:?}",
                request.namespace
            ),
        ));
    };
    let plane = target.data_plane.as_ref().map_err(|found| {
        Wanted::no(
            ACCEPTED,
            Reason::UnsupportedDataPlane.as_str(),
            format!("targetRefs: {kind} {name:?}: {found}"),
        )
    })?;
    (plane.attach)(request, object).map_err(|conflict| {
        Wanted::no(PROGRAMMED, Reason::Conflict.as_str(), format!("{kind} {name:?}: {conflict}"))
    })
}

/// The Secret of a trust: one Opaque Secret that nginx, HAProxy, Envoy and Traefik controllers all
/// read. While an authority is not ready its clients are missing from it, so that they are refused.
pub fn secret(trust: &ClientTrust, authorities: &[(&str, Option<Anchor<'_>>)]) -> Secret {
    let join = |part: fn(&Anchor<'_>) -> String| -> String {
        authorities.iter().filter_map(|(_, anchor)| anchor.as_ref()).map(part).collect()
    };
    let mut data = BTreeMap::new();
    for (key, text) in [
        (secret_key::CA, join(|anchor| anchor.bundle.to_owned())),
        (secret_key::CRL, join(|anchor| anchor.crl.to_owned())),
    ] {
        data.insert(key.to_owned(), ByteString(text.into_bytes()));
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

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned())])
}

fn owner(trust: &ClientTrust) -> OwnerReference {
    trust
        .controller_owner_ref(&())
        .expect("a trust that was read from the API server has a name and a UID")
}

fn owned(trust: &ClientTrust, mut object: Value) -> Value {
    object["metadata"]["labels"] = serde_json::json!(labels());
    object["metadata"]["ownerReferences"] = serde_json::json!([owner(trust)]);
    object
}

/// Is an existing object controlled by this trust?
pub fn is_owned(trust: &ClientTrust, existing: &ObjectMeta) -> bool {
    existing.owner_references.iter().flatten().any(|owner| {
        owner.controller == Some(true) && Some(&owner.uid) == trust.metadata.uid.as_ref()
    })
}

/// The status after the plan was carried out. `outcomes` holds, for each target, what kept it from
/// being programmed.
pub fn status(world: &World<'_>, outcomes: &[Result<(), Wanted>]) -> ClientTrustStatus {
    let before = world.trust.status.clone().unwrap_or_default();
    let generation = world.trust.metadata.generation;
    let mut unready = Vec::new();
    for (name, anchor) in &world.authorities {
        if anchor.is_none() {
            unready.push(format!(
                "spec.authorities: ClientAuthority {name:?} does not exist or is not ready; its clients are refused"
            ));
        }
    }
    let authority_trouble = !unready.is_empty();
    let mut first_reason = None;
    let mut targets = Vec::new();
    for (target, outcome) in world.targets.iter().zip(outcomes) {
        let wanted = target_conditions(world, target, outcome);
        if let Some(failed) = wanted.iter().find(|condition| !condition.status) {
            unready.push(failed.message.clone());
            first_reason = first_reason.or(Some(failed.reason));
        }
        let known = before.targets.iter().find(|known| known.target_ref == *target.reference);
        let current = known.map(|known| known.conditions.as_slice()).unwrap_or_default();
        targets.push(TargetStatus {
            target_ref: target.reference.clone(),
            conditions: condition::merge(current, &wanted, generation, world.now),
        });
    }
    let ready = if unready.is_empty() {
        Wanted::yes(
            READY,
            Reason::Programmed.as_str(),
            "every target refuses clients without a valid certificate and revoked ones",
        )
    } else {
        let authority = authority_trouble.then_some(Reason::AuthorityNotReady.as_str());
        let reason = authority.or(first_reason).unwrap_or(Reason::NotProgrammed.as_str());
        let mut message = unready.join("; ");
        message.truncate(message.floor_char_boundary(1024));
        Wanted::no(READY, reason, message)
    };
    let conditions = condition::merge(&before.conditions, &[ready], generation, world.now);
    let (conditions, canary) = canary::told(world.trust, world.canary, conditions, world.now);
    ClientTrustStatus { observed_generation: generation, conditions, targets, canary }
}

fn target_conditions(
    world: &World<'_>,
    target: &Target<'_>,
    outcome: &Result<(), Wanted>,
) -> Vec<Wanted> {
    let not_programmed = |type_, message: &str| {
        Wanted::no(type_, Reason::NotProgrammed.as_str(), message.to_owned())
    };
    match outcome {
        Err(failed) if failed.type_ == ACCEPTED => vec![
            failed.clone(),
            not_programmed(PROGRAMMED, &failed.message),
            not_programmed(REVOCATION_ENFORCED, &failed.message),
        ],
        Err(failed) => vec![
            accepted(target),
            failed.clone(),
            not_programmed(REVOCATION_ENFORCED, &failed.message),
        ],
        Ok(()) => {
            let open = target.object.as_ref().is_some_and(|object| !names_its_hosts(object));
            let programmed = match conflicting_route(world, target) {
                None if open => Wanted::no(
                    PROGRAMMED,
                    Reason::HostMissing.as_str(),
                    format!(
                        "{} {:?} has a rule without an exact host: Traefik then asks nobody for a certificate; give every rule its host",
                        target.reference.kind, target.reference.name
                    ),
                ),
                None => Wanted::yes(
                    PROGRAMMED,
                    Reason::Programmed.as_str(),
                    "the data plane's configuration is written",
                ),
                Some(message) => Wanted::no(PROGRAMMED, Reason::Conflict.as_str(), message),
            };
            let enforced = Wanted::yes(
                REVOCATION_ENFORCED,
                Reason::ViaGate.as_str(),
                "the data plane has no CRL support; the gate refuses revoked certificates",
            );
            vec![accepted(target), programmed, enforced]
        }
    }
}

fn accepted(target: &Target<'_>) -> Wanted {
    let name = target.data_plane.as_ref().map_or("", |plane| plane.name);
    Wanted::yes(ACCEPTED, Reason::Programmed.as_str(), format!("served by {name}"))
}

/// Another route of the same host with other TLS options: Traefik then applies its default options to
/// the whole host, asks nobody for a certificate, and the gate refuses everybody.
fn conflicting_route(world: &World<'_>, target: &Target<'_>) -> Option<String> {
    let namespace = world.trust.namespace().unwrap_or_default();
    let ours = format!("{namespace}-{}@kubernetescrd", object_name(&world.trust.name_any()));
    let object = target.object.as_ref()?;
    host_routes(object).into_iter().find_map(|mine| {
        let other = world.routes.iter().find(|route| {
            route.host == mine.host && route.route != mine.route && route.options != ours
        })?;
        Some(format!(
            "{} serves host {:?} with other TLS options than {}: Traefik then asks no client of the host for a certificate, and all are refused; give both the same options",
            other.route, mine.host, mine.route
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::trust::Mode;
    use crate::api::{AuthorityReference, ClientTrustSpec};
    use crate::ingress::traefik::TRAEFIK;
    use serde_json::json;

    fn trust() -> ClientTrust {
        let mut trust = ClientTrust::new(
            "clients",
            ClientTrustSpec {
                authorities: vec![AuthorityReference { name: "staff".into() }],
                target_refs: vec![TargetReference {
                    group: "networking.k8s.io".into(),
                    kind: "Ingress".into(),
                    name: "shop".into(),
                }],
                mode: Mode::Required,
                canary: None,
            },
        );
        trust.metadata.namespace = Some("shop".into());
        trust.metadata.uid = Some("uid".into());
        trust
    }

    fn ingress() -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": "shop", "namespace": "shop", "uid": "u"},
            "spec": {"rules": [{"host": "shop.example.com"}]},
        })
    }

    fn world<'a>(
        trust: &'a ClientTrust,
        anchor: Option<Anchor<'a>>,
        object: Option<Value>,
        routes: &'a [HostRoute],
    ) -> World<'a> {
        World {
            trust,
            authorities: vec![("staff", anchor)],
            targets: vec![Target {
                reference: &trust.spec.target_refs[0],
                object,
                data_plane: Ok(&TRAEFIK),
            }],
            routes,
            gate_url: "http://gate",
            canary: None,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    const ANCHOR: Anchor<'static> = Anchor { bundle: "CA\n", mark: "hash", crl: "CRL\n" };

    fn condition<'a>(status: &'a ClientTrustStatus, type_: &str) -> (&'a str, &'a str) {
        let conditions = status.conditions.iter().chain(&status.targets[0].conditions);
        let found = conditions.into_iter().find(|condition| condition.type_ == type_).unwrap();
        (&found.status, &found.reason)
    }

    #[test]
    fn everything_made_for_a_trust_is_owned_by_it() {
        let trust = trust();
        let plan = plan(&world(&trust, Some(ANCHOR), Some(ingress()), &[]));
        assert_eq!(plan.objects.len(), 5);
        for object in &plan.objects {
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "uid");
        }
        let secret = secret(&trust, &[("staff", Some(ANCHOR))]);
        assert!(is_owned(&trust, &secret.metadata));
        assert_eq!(secret.data.unwrap()["ca.crl"].0, b"CRL\n");
        assert_eq!(secret.metadata.annotations.unwrap()["bundle.countersign.dev/staff"], "hash");
    }

    #[test]
    fn a_programmed_target_is_ready_and_says_that_the_gate_enforces() {
        let trust = trust();
        let world = world(&trust, Some(ANCHOR), Some(ingress()), &[]);
        let status = status(&world, &[Ok(())]);
        assert_eq!(condition(&status, READY), ("True", "Programmed"));
        assert_eq!(condition(&status, REVOCATION_ENFORCED), ("True", "ViaGate"));
    }

    #[test]
    fn a_missing_target_is_named() {
        let trust = trust();
        let world = world(&trust, Some(ANCHOR), None, &[]);
        let outcome = plan(&world).edits.remove(0).map(|_| ());
        let status = status(&world, &[outcome]);
        assert_eq!(condition(&status, ACCEPTED), ("False", "TargetNotFound"));
        assert_eq!(condition(&status, READY), ("False", "TargetNotFound"));
        assert!(status.conditions[0].message.contains("Ingress \"shop\" does not exist"));
    }

    #[test]
    fn without_its_authority_a_trust_lets_nobody_in_and_says_so() {
        let trust = trust();
        let world = world(&trust, None, Some(ingress()), &[]);
        let plan = plan(&world);
        assert!(secret(&trust, &[("staff", None)]).data.unwrap()["ca.crt"].0.is_empty());
        assert!(matches!(plan.edits[0], Ok(Edit::Apply(_))));
        let status = status(&world, &[Ok(())]);
        assert_eq!(condition(&status, READY), ("False", "AuthorityNotReady"));
    }

    #[test]
    fn another_route_of_the_host_with_other_options_is_a_conflict() {
        let trust = trust();
        let route = |options: &str| HostRoute {
            host: "shop.example.com".into(),
            route: "Ingress other/shop".into(),
            options: options.into(),
        };
        for (options, expected) in
            [("", "Conflict"), ("shop-countersign-clients@kubernetescrd", "Programmed")]
        {
            let routes = [route(options)];
            let status = status(&world(&trust, Some(ANCHOR), Some(ingress()), &routes), &[Ok(())]);
            assert_eq!(condition(&status, PROGRAMMED).1, expected);
        }
    }
}
