//! What a `ClientTrust` needs beside its Secret: the data plane's objects and the changes to its targets; and
//! what its status tells.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::Value;

use super::canary;
use super::gate;
use super::ledger::CaKey;
use super::trust_secret::{Anchor, labels, owner, too_large};
use crate::api::condition::{
    self, ACCEPTED, BUNDLE_PUBLISHED, PROGRAMMED, READY, REVOCATION_ENFORCED, Wanted,
};
use crate::api::fields::contains;
use crate::api::trust::{CrlInForce, ForwardIdentity, Mode, Reason, TargetReference, TargetStatus};
use crate::api::{ClientTrust, ClientTrustStatus};
use crate::ingress::{self, DataPlane, Edit, Exposure, GateTls, Request, Revocation};
use crate::pki::crl::CrlNumber;

/// As many CAs are named in status.
const CRLS_IN_STATUS: usize = 64;

/// Everything that the plan depends on.
pub struct World<'a> {
    /// The trust.
    pub trust: &'a ClientTrust,
    /// Its authorities, in the order of the spec.
    pub authorities: Vec<(&'a str, Option<Anchor<'a>>)>,
    /// Its targets, in the order of the spec.
    pub targets: Vec<Target<'a>>,
    /// Every route in the cluster, with the data plane that serves it.
    pub routes: &'a [(&'static DataPlane, Value)],
    /// Base URL of the gate.
    pub gate_url: &'a str,
    /// The gate over TLS, where it knows its callers.
    pub gate_tls: Option<GateTls<'a>>,
    /// What came of `spec.bundle`, if it is set.
    pub bundle: Option<&'a Wanted>,
    /// What keeps the trust's policy from the gate, so that it lets nobody in.
    pub policy_trouble: Option<Wanted>,
    /// What the canary has to tell that was not told yet.
    pub canary: Option<&'a canary::Report>,
    /// Does the trust's Secret hold what it should?
    pub secret_in_place: bool,
    /// The CRL numbers by which every server of the gate answers, when they were asked and it is known.
    pub served: Served<'a>,
    /// The time.
    pub now: Timestamp,
}

/// What is known of the servers of the gate.
#[derive(Clone, Copy, Debug)]
pub enum Served<'a> {
    /// They were not asked, since nothing waits for it: what status tells stays.
    Unasked,
    /// It is not known.
    Unknown,
    /// The CRL numbers by which every one of them answers.
    Known(&'a BTreeMap<CaKey, CrlNumber>),
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
    /// The data planes of the targets, each once.
    pub planes: Vec<&'static DataPlane>,
    /// The data planes' objects, with owner and labels.
    pub objects: Vec<Value>,
    /// The change to each target, in the order of the spec; or why there is none.
    pub edits: Vec<Result<Edit, Wanted>>,
}

/// Plans what a trust needs.
pub fn plan(world: &World<'_>) -> Plan {
    let names = (world.trust.namespace().unwrap_or_default(), world.trust.name_any());
    let request = request(world, &names);
    let mut planes: Vec<&'static DataPlane> = Vec::new();
    let mut edits = Vec::new();
    for target in &world.targets {
        edits.push(edit(&given(&request, target.data_plane.as_ref().ok()), target).inspect(|_| {
            if let Ok(plane) = target.data_plane
                && planes.iter().all(|known| known.name != plane.name)
            {
                planes.push(plane);
            }
        }));
    }
    // A target that nobody is known to serve, since its class is gone, stays closed until it is known.
    let served_by = |plane: &DataPlane| {
        let all = world.targets.iter();
        let its =
            all.filter(|target| target.data_plane.as_ref().map_or(true, |p| p.name == plane.name));
        its.filter_map(|target| target.object.as_ref()).collect::<Vec<_>>()
    };
    let objects = planes
        .iter()
        .flat_map(|plane| (plane.objects)(&given(&request, Some(plane)), &served_by(plane)))
        .map(|object| owned(world.trust, object))
        .collect();
    Plan { planes, objects, edits }
}

fn request<'a>(world: &'a World<'_>, names: &'a (String, String)) -> Request<'a> {
    Request { gate_tls: world.gate_tls, ..of_trust(world.trust, names, world.gate_url) }
}

/// What adapters are given of a trust, by namespace and name, but for the gate over TLS.
fn of_trust<'a>(
    trust: &'a ClientTrust,
    (namespace, name): &'a (String, String),
    gate_url: &'a str,
) -> Request<'a> {
    Request {
        namespace,
        trust: name,
        mode: trust.spec.mode,
        forward_identity: trust.spec.forward_identity,
        authorities: trust.spec.authorities.iter().map(|one| one.name.as_str()).collect(),
        gate_url,
        gate_tls: None,
        by_policy: gate::needs_policy(trust),
        second_factor: trust.spec.second_factor.is_some(),
    }
}

/// Is the gate asked what the trust says now, as far as it decides, wherever clients are let in by CAs and CRLs of the
/// Secret? As long as it is not, a further CA there would let in clients about whom nobody decides. Given are the targets,
/// and what was made for them, with their data planes, and all routes.
pub fn is_asked(
    trust: &ClientTrust,
    gate_url: &str,
    served: &[(&'static DataPlane, &Value)],
    routes: &[Value],
) -> bool {
    let names = (trust.namespace().unwrap_or_default(), trust.name_any());
    let request = of_trust(trust, &names, gate_url);
    let by_secret = |plane: &DataPlane| matches!(plane.revocation, Revocation::ByCrl(_));
    let stands = |wanted: &Value| {
        let same = |route: &&Value| ingress::name_of(route) == ingress::name_of(wanted);
        routes.iter().find(same).is_some_and(|route| contains(route, wanted))
    };
    let is_target =
        |object| trust.spec.target_refs.iter().any(|target| ingress::is_target(object, target));
    let targets = || served.iter().filter(|(_, object)| is_target(*object));
    !request.by_policy
        || targets().filter(|(plane, _)| by_secret(plane)).all(|(plane, target)| {
            let its = targets().filter(|(other, _)| other.name == plane.name);
            let its: Vec<&Value> = its.map(|(_, target)| *target).collect();
            ingress::attach(plane, &request, target) == Ok(Edit::Nothing)
                && (plane.objects)(&request, &its).iter().all(stands)
        })
}

/// What a data plane is given of a trust. One that does not ask the gate can't enforce the gate's policy: it asks
/// everybody for a certificate, and its Secret holds no CA that could have issued one ([`close`]).
fn given<'a>(request: &Request<'a>, plane: Option<&&'static DataPlane>) -> Request<'a> {
    let mut given = request.clone();
    if request.by_policy && plane.is_some_and(|plane| !plane.asks_gate) {
        given.mode = Mode::Required;
    }
    given
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
    ingress::attach(plane, request, object).map_err(|conflict| {
        Wanted::no(PROGRAMMED, Reason::Conflict.as_str(), format!("{kind} {name:?}: {conflict}"))
    })
}

fn owned(trust: &ClientTrust, mut object: Value) -> Value {
    object["metadata"]["labels"] = serde_json::json!(labels());
    object["metadata"]["ownerReferences"] = serde_json::json!([owner(trust)]);
    object
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
    if let Some(message) = too_large(&world.authorities) {
        unready.push(message);
        first_reason = Some(Reason::CRLTooLarge.as_str());
    }
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
    if let Some(bundle) = world.bundle.filter(|bundle| !bundle.status) {
        unready.push(bundle.message.clone());
        first_reason = first_reason.or(Some(bundle.reason));
    }
    let ready = if unready.is_empty() {
        let message = match world.bundle.filter(|_| targets.is_empty()) {
            Some(bundle) => &bundle.message,
            None => "every target refuses clients without a valid certificate and revoked ones",
        };
        Wanted::yes(READY, Reason::Programmed.as_str(), message)
    } else {
        let authority = authority_trouble.then_some(Reason::AuthorityNotReady.as_str());
        let reason = authority.or(first_reason).unwrap_or(Reason::NotProgrammed.as_str());
        let mut message = unready.join("; ");
        message.truncate(message.floor_char_boundary(1024));
        Wanted::no(READY, reason, message)
    };
    let known = condition::retain(&before.conditions, BUNDLE_PUBLISHED, world.bundle.is_some());
    let wanted: Vec<_> = [ready].into_iter().chain(world.bundle.cloned()).collect();
    let conditions = condition::merge(&known, &wanted, generation, world.now);
    let (conditions, canary) = canary::told(world.trust, world.canary, conditions, world.now);
    ClientTrustStatus {
        observed_generation: generation,
        conditions,
        canary,
        crls: crls_in_force(world, &before, targets.iter().any(is_gated)),
        targets,
    }
}

/// Does the target depend on the gate to refuse revoked certificates?
pub fn is_gated(target: &TargetStatus) -> bool {
    let via_gate = Reason::ViaGate.as_str();
    target.conditions.iter().any(|c| c.type_ == REVOCATION_ENFORCED && c.reason == via_gate)
}

/// The CRL in force of each CA: what the Secret holds, and by what the gate answers where it is asked.
fn crls_in_force(world: &World<'_>, before: &ClientTrustStatus, gated: bool) -> Vec<CrlInForce> {
    let in_place = world.secret_in_place && too_large(&world.authorities).is_none();
    let anchors = world.authorities.iter().filter_map(|(_, anchor)| anchor.as_ref());
    let mut crls: Vec<CrlInForce> = anchors
        .flat_map(|anchor| anchor.numbers)
        .filter_map(|(key, number)| {
            let known = before.crls.iter().find(|known| is_of(known, key));
            let served = match world.served {
                _ if !gated => None,
                Served::Unasked => known.and_then(|known| known.gate_crl_number.clone()),
                Served::Unknown => None,
                Served::Known(all) => all.get(key).map(text),
            };
            let crl_number = match known {
                _ if in_place => text(number),
                // What could not be written is not in force.
                known => known?.crl_number.clone(),
            };
            Some(CrlInForce {
                authority: key.authority.to_string(),
                generation: key.generation.into(),
                crl_number,
                gate_crl_number: served,
            })
        })
        .collect();
    crls.truncate(CRLS_IN_STATUS);
    crls
}

/// Does the gate, as far as status tells, answer by an older CRL than the published one, or by an unknown
/// one?
pub fn gate_lags(status: &ClientTrustStatus, numbers: &[(CaKey, CrlNumber)]) -> bool {
    status.targets.iter().any(is_gated)
        && numbers.iter().any(|(key, number)| {
            let known = status.crls.iter().find(|known| is_of(known, key));
            let served = known.and_then(|known| known.gate_crl_number.as_deref()?.parse().ok());
            served.is_none_or(|served: u128| served < number.0)
        })
}

fn is_of(known: &CrlInForce, key: &CaKey) -> bool {
    known.authority == *key.authority && known.generation == i64::from(key.generation)
}

fn text(number: &CrlNumber) -> String {
    number.0.to_string()
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
            let exposure = exposure(world, target);
            vec![
                accepted(target),
                programmed(world, target, &exposure),
                enforced(world, target, &exposure),
            ]
        }
    }
}

fn programmed(world: &World<'_>, target: &Target<'_>, exposure: &Option<Exposure>) -> Wanted {
    let plane = target.data_plane.as_ref().ok().copied();
    let deaf = plane.filter(|plane| !plane.asks_gate);
    if let Some(plane) = deaf
        && let Some((field, reason)) = gate::undecided(&world.trust.spec)
    {
        let TargetReference { kind, name, .. } = target.reference;
        let mut message = format!(
            "spec.{field}: {} does not ask the gate, which decides by it, so that no target of this ClientTrust gets a CA that would let anybody in; remove {kind} {name:?} from spec.targetRefs, or have a data plane serve it that asks the gate, or remove spec.{field}",
            plane.name
        );
        if let Some(exposure) = exposure {
            message = format!("{message}. {}", exposure.message);
        }
        return Wanted::no(PROGRAMMED, reason.as_str(), message);
    }
    if let Some(Exposure { reason, message }) = exposure {
        return Wanted::no(PROGRAMMED, reason.as_str(), message.clone());
    }
    if let Some(trouble) = &world.policy_trouble {
        return trouble.clone();
    }
    if let Some(plane) = deaf
        && world.trust.spec.forward_identity == ForwardIdentity::ClientCert
    {
        let message = format!(
            "spec.forwardIdentity: {} does not ask the gate, from which Client-Cert comes; its backends are told by its own headers, which Native is for",
            plane.name
        );
        return Wanted::no(PROGRAMMED, Reason::IdentityNotForwarded.as_str(), message);
    }
    let message = "the data plane's configuration is written";
    Wanted::yes(PROGRAMMED, Reason::Programmed.as_str(), message)
}

/// What lets clients past the trust at a target whose configuration is written.
fn exposure(world: &World<'_>, target: &Target<'_>) -> Option<Exposure> {
    let (Some(object), Ok(plane)) = (&target.object, &target.data_plane) else { return None };
    let names = (world.trust.namespace().unwrap_or_default(), world.trust.name_any());
    let request = given(&request(world, &names), Some(plane));
    let same = world.routes.iter().filter(|(other, _)| other.name == plane.name);
    let routes: Vec<&Value> = same.map(|(_, route)| route).collect();
    if let Some(message) = ingress::conflict(plane, &request, object, routes.iter().copied()) {
        return Some(Exposure { reason: Reason::Conflict, message });
    }
    let found = (plane.exposure)(&request, object, &routes)?;
    let TargetReference { kind, name, .. } = target.reference;
    Some(Exposure { message: format!("{kind} {name:?} {}", found.message), ..found })
}

fn enforced(world: &World<'_>, target: &Target<'_>, exposure: &Option<Exposure>) -> Wanted {
    let no = |reason: Reason, message| Wanted::no(REVOCATION_ENFORCED, reason.as_str(), message);
    match target.data_plane.as_ref().map(|plane| plane.revocation) {
        Ok(Revocation::Unenforced) => {
            let TargetReference { kind, name, .. } = target.reference;
            let plane = target.data_plane.as_ref().map_or("", |plane| plane.name);
            let message = format!(
                "{kind} {name:?}: {plane} has no CRL support and can't ask the gate, so that revoked clients get in until their certificates expire: give these a short spec.duration, or serve the target by a data plane that refuses them"
            );
            no(Reason::DataPlaneLacksCRL, message)
        }
        Ok(_) if let Some(exposure) = exposure => {
            no(Reason::NotProgrammed, exposure.message.clone())
        }
        Ok(Revocation::ViaGate) => Wanted::yes(
            REVOCATION_ENFORCED,
            Reason::ViaGate.as_str(),
            "the data plane asks the gate, which refuses revoked certificates",
        ),
        Ok(Revocation::ByCrl(_)) => match too_large(&world.authorities) {
            Some(message) => no(Reason::CRLTooLarge, message),
            None => Wanted::yes(
                REVOCATION_ENFORCED,
                Reason::ByCRL.as_str(),
                "the data plane refuses revoked certificates by the CRLs in the trust's Secret",
            ),
        },
        Err(found) => no(Reason::NotProgrammed, found.clone()),
    }
}

fn accepted(target: &Target<'_>) -> Wanted {
    let name = target.data_plane.as_ref().map_or("", |plane| plane.name);
    Wanted::yes(ACCEPTED, Reason::Programmed.as_str(), format!("served by {name}"))
}

#[cfg(test)]
mod tests {
    use super::super::headroom::SECRET_LIMIT;
    use super::super::trust_secret::*;
    use super::*;
    use crate::api::gate::{AllowedClients, SecondFactor};
    use crate::api::{AuthorityReference, ClientTrustSpec};
    use crate::ingress::haproxy::HAPROXY_INGRESS;
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
                allow: None,
                second_factor: None,
                forward_identity: ForwardIdentity::Native,
                bundle: None,
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
        routes: &'a [(&'static DataPlane, Value)],
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
            gate_tls: None,
            bundle: None,
            policy_trouble: None,
            canary: None,
            secret_in_place: true,
            served: Served::Unasked,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    const ANCHOR: Anchor<'static> =
        Anchor { bundle: "CA\n", mark: "hash", crl: Some("CRL\n"), bytes: 7, numbers: &[] };

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
        assert_eq!(secret.type_.as_deref(), Some("Opaque"));
        // With tls.crt and tls.key beside them HAProxy Ingress ignores the CRLs.
        let keys: Vec<_> = secret.data.iter().flatten().map(|(key, _)| &**key).collect();
        assert_eq!(keys, ["ca.crl", "ca.crt"]);
        assert_eq!(secret.data.unwrap()["ca.crl"].0, b"CRL\n");
        assert_eq!(secret.metadata.annotations.unwrap()["bundle.countersign.dev/staff"], "hash");
    }

    #[test]
    fn the_crls_stand_under_each_key_that_a_target_reads() {
        let mut trust = trust();
        assert_eq!(crl_keys(&trust), ["ca.crl"]);
        for name in ["shop", "other"] {
            trust.spec.target_refs.push(TargetReference {
                group: "projectcontour.io".into(),
                kind: "HTTPProxy".into(),
                name: name.into(),
            });
        }
        assert_eq!(crl_keys(&trust), ["ca.crl", "crl.pem"]);
        let data = secret(&trust, &[("staff", Some(ANCHOR))]).data.unwrap();
        assert_eq!(data["crl.pem"], data["ca.crl"]);
        let large = Anchor { bytes: SECRET_LIMIT + 1, ..ANCHOR };
        let data = secret(&trust, &[("staff", Some(large))]).data.unwrap();
        assert_eq!(data.keys().collect::<Vec<_>>(), ["ca.crt"]);
    }

    #[test]
    fn a_data_plane_may_insist_on_a_secret_of_its_own_type() {
        let trust = trust();
        let secret = secret(&trust, &[("staff", Some(ANCHOR))]);
        let own = crate::ingress::f5_nginx::F5_NGINX.secret.expect("one");
        let copy = own_secret(&secret, own);
        assert_eq!(copy.metadata.name.as_deref(), Some("countersign-clients-nginx"));
        assert_eq!(copy.type_.as_deref(), Some("nginx.org/ca"));
        assert!(is_owned(&trust, &copy.metadata));
        assert_eq!(copy.data, secret.data);
    }

    #[test]
    fn crls_that_do_not_fit_are_left_out_and_told() {
        let trust = trust();
        let half = Anchor { bytes: SECRET_LIMIT / 2 + 1, ..ANCHOR };
        let alone = Anchor { bytes: 2 * SECRET_LIMIT, crl: None, ..ANCHOR };
        for (anchors, fits) in [(vec![half], true), (vec![half, half], false), (vec![alone], false)]
        {
            let mut world = world(&trust, None, Some(ingress()), &[]);
            world.authorities = anchors.into_iter().map(|anchor| ("staff", Some(anchor))).collect();
            let data = secret(&trust, &world.authorities).data.unwrap();
            assert_eq!(data.contains_key("ca.crl"), fits);
            assert!(!data["ca.crt"].0.is_empty());
            let expected = if fits { ("True", "Programmed") } else { ("False", "CRLTooLarge") };
            assert_eq!(condition(&status(&world, &[Ok(())]), READY), expected);
        }
    }

    #[test]
    fn without_a_crl_a_data_plane_that_reads_it_gets_no_ca() {
        let trust = trust();
        let alone = Anchor { bytes: 2 * SECRET_LIMIT, crl: None, ..ANCHOR };
        for (anchor, open) in [(ANCHOR, true), (alone, false)] {
            let mut secret = secret(&trust, &[("staff", Some(anchor))]);
            close_without_crl(&mut secret);
            assert_eq!(!secret.data.unwrap()["ca.crt"].0.is_empty(), open);
        }
    }

    /// One that does not ask the gate.
    static DEAF: DataPlane = DataPlane { asks_gate: false, ..HAPROXY_INGRESS };

    #[test]
    fn a_data_plane_with_crl_support_enforces_by_the_secret() {
        let trust = trust();
        let told = |anchor, spec: Value| {
            let mut object = ingress();
            object["spec"] = spec;
            let mut world = world(&trust, Some(anchor), Some(object), &[]);
            world.targets[0].data_plane = Ok(&HAPROXY_INGRESS);
            status(&world, &[Ok(())])
        };
        let host = "shop.example.com";
        let closed = json!({"rules": [{"host": host}], "tls": [{"hosts": [host]}]});
        let ready = told(ANCHOR, closed.clone());
        assert_eq!(condition(&ready, READY), ("True", "Programmed"));
        assert_eq!(condition(&ready, REVOCATION_ENFORCED), ("True", "ByCRL"));
        assert!(!is_gated(&ready.targets[0]));
        let open = told(ANCHOR, json!({"rules": [{"host": host}]}));
        assert_eq!(condition(&open, PROGRAMMED), ("False", "PlainHTTP"));
        assert_eq!(condition(&open, REVOCATION_ENFORCED), ("False", "NotProgrammed"));
        let alone = Anchor { bytes: 2 * SECRET_LIMIT, crl: None, ..ANCHOR };
        let old = told(alone, closed.clone());
        assert_eq!(condition(&old, PROGRAMMED), ("True", "Programmed"));
        assert_eq!(condition(&old, REVOCATION_ENFORCED), ("False", "CRLTooLarge"));

        let mut asking = trust.clone();
        asking.spec.forward_identity = ForwardIdentity::ClientCert;
        let mut object = ingress();
        object["spec"] = closed;
        let mut world = world(&asking, Some(ANCHOR), Some(object), &[]);
        world.targets[0].data_plane = Ok(&DEAF);
        let silent = status(&world, &[Ok(())]);
        assert_eq!(condition(&silent, PROGRAMMED), ("False", "IdentityNotForwarded"));
        assert_eq!(condition(&silent, REVOCATION_ENFORCED), ("True", "ByCRL"));
    }

    #[test]
    fn a_data_plane_that_does_not_ask_the_gate_lets_nobody_in_where_the_gate_decides() {
        let allow: fn(&mut ClientTrustSpec) = |spec| spec.allow = Some(AllowedClients::default());
        let second: fn(&mut ClientTrustSpec) =
            |spec| spec.second_factor = Some(SecondFactor { basic: None, url: None });
        for (set, reason) in [(allow, "AllowNotEnforced"), (second, "SecondFactorNotEnforced")] {
            let mut trust = trust();
            trust.spec.mode = Mode::Optional;
            set(&mut trust.spec);
            let host = "shop.example.com";
            let mut object = ingress();
            object["spec"] = json!({"rules": [{"host": host}], "tls": [{"hosts": [host]}]});
            let mut world = world(&trust, Some(ANCHOR), Some(object), &[]);
            world.targets[0].data_plane = Ok(&DEAF);
            let Ok(Edit::Apply(edit)) = &plan(&world).edits[0] else { panic!("it is programmed") };
            let verify = "haproxy-ingress.github.io/auth-tls-verify-client";
            assert_eq!(edit["metadata"]["annotations"][verify], "on", "not what the trust says");
            let told = status(&world, &[Ok(())]);
            assert_eq!(condition(&told, READY), ("False", reason));
            assert_eq!(condition(&told, PROGRAMMED), ("False", reason));
            let mut secret = secret(&trust, &[("staff", Some(ANCHOR))]);
            close(&mut secret);
            assert!(secret.data.unwrap()["ca.crt"].0.is_empty());

            world.targets[0].data_plane = Ok(&TRAEFIK);
            assert_eq!(condition(&status(&world, &[Ok(())]), PROGRAMMED), ("True", "Programmed"));
            world.policy_trouble = Some(Wanted::no(PROGRAMMED, "PolicyTooLarge", ""));
            let told = status(&world, &[Ok(())]);
            assert_eq!(condition(&told, PROGRAMMED), ("False", "PolicyTooLarge"));
        }
    }

    #[test]
    fn a_data_plane_that_can_not_refuse_revoked_clients_never_makes_a_trust_ready() {
        let trust = trust();
        let mut world = world(&trust, Some(ANCHOR), Some(ingress()), &[]);
        static LACKING: DataPlane = DataPlane { revocation: Revocation::Unenforced, ..TRAEFIK };
        world.targets[0].data_plane = Ok(&LACKING);
        let status = status(&world, &[Ok(())]);
        assert_eq!(condition(&status, PROGRAMMED), ("True", "Programmed"));
        assert_eq!(condition(&status, REVOCATION_ENFORCED), ("False", "DataPlaneLacksCRL"));
        assert_eq!(condition(&status, READY), ("False", "DataPlaneLacksCRL"));
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
    fn the_crl_in_force_is_what_the_secret_holds_and_what_every_server_answers_by() {
        let mut trust = trust();
        let key = CaKey::first("staff");
        let numbers = [(key.clone(), CrlNumber(7))];
        let anchor = Anchor { numbers: &numbers, ..ANCHOR };
        let served = BTreeMap::from([(key, CrlNumber(6))]);
        let told = |trust: &ClientTrust, secret_in_place, served| {
            let world = World {
                secret_in_place,
                served,
                ..world(trust, Some(anchor), Some(ingress()), &[])
            };
            status(&world, &[Ok(())])
        };
        let crls = |status: &ClientTrustStatus| {
            let one = |crl: &CrlInForce| (crl.crl_number.clone(), crl.gate_crl_number.clone());
            status.crls.iter().map(one).collect::<Vec<_>>()
        };
        // What could not be written is not in force.
        assert!(told(&trust, false, Served::Unknown).crls.is_empty());
        let first = told(&trust, true, Served::Known(&served));
        assert_eq!(crls(&first), [("7".to_owned(), Some("6".to_owned()))]);
        assert!(gate_lags(&first, &numbers));
        trust.status = Some(first.clone());
        // Nobody asked: it stays. Not known any more: it is not told on.
        assert_eq!(told(&trust, true, Served::Unasked), first);
        let unknown = told(&trust, true, Served::Unknown);
        assert_eq!(crls(&unknown), [("7".to_owned(), None)]);
        assert!(gate_lags(&unknown, &numbers));
        let served = BTreeMap::from([(CaKey::first("staff"), CrlNumber(7))]);
        let caught_up = told(&trust, true, Served::Known(&served));
        assert!(!gate_lags(&caught_up, &numbers), "{caught_up:?}");
        // A newer CRL that is not written yet.
        trust.status = Some(caught_up);
        let newer = [(CaKey::first("staff"), CrlNumber(9))];
        let anchor = Anchor { numbers: &newer, ..ANCHOR };
        let world =
            World { secret_in_place: false, ..world(&trust, Some(anchor), Some(ingress()), &[]) };
        let status = status(&world, &[Ok(())]);
        assert_eq!(crls(&status), [("7".to_owned(), Some("7".to_owned()))]);
        assert!(gate_lags(&status, &newer));
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
        let route = |options: &str| {
            let mut route = ingress();
            route["metadata"]["namespace"] = json!("other");
            let key = "traefik.ingress.kubernetes.io/router.tls.options";
            route["metadata"]["annotations"] = json!({key: options});
            (&TRAEFIK, route)
        };
        for (options, expected) in
            [("", "Conflict"), ("shop-countersign-clients@kubernetescrd", "Programmed")]
        {
            let routes = [route(options)];
            let status = status(&world(&trust, Some(ANCHOR), Some(ingress()), &routes), &[Ok(())]);
            assert_eq!(condition(&status, PROGRAMMED).1, expected);
        }
    }

    #[test]
    fn who_lets_clients_in_by_the_secret_is_asked_about_before_it_gets_another_ca() {
        let mut trust = trust();
        trust.spec.target_refs[0].group = "projectcontour.io".into();
        trust.spec.target_refs[0].kind = "HTTPProxy".into();
        let url = "http://gate.countersign.svc:8081";
        let mut proxy = json!({
            "apiVersion": "projectcontour.io/v1", "kind": "HTTPProxy",
            "metadata": {"name": trust.spec.target_refs[0].name, "namespace": trust.namespace()},
            "spec": {"virtualhost": {"fqdn": "a", "tls": {"secretName": "s"}}},
        });
        let asked = |trust: &ClientTrust, proxy: &Value| {
            let routes = [proxy.clone()];
            is_asked(trust, url, &[(&ingress::contour::CONTOUR, proxy)], &routes)
        };
        assert!(asked(&trust, &proxy), "nothing has to be asked");
        trust.spec.allow = Some(Default::default());
        assert!(!asked(&trust, &proxy));
        let names = (trust.namespace().unwrap(), trust.name_any());
        let request = of_trust(&trust, &names, url);
        let edit = ingress::attach(&ingress::contour::CONTOUR, &request, &proxy);
        let Ok(Edit::Apply(applied)) = edit else { panic!("{edit:?}") };
        proxy["metadata"]["annotations"] = applied["metadata"]["annotations"].clone();
        let virtualhost = &applied["spec"]["virtualhost"];
        proxy["spec"]["virtualhost"]["authorization"] = virtualhost["authorization"].clone();
        proxy["spec"]["virtualhost"]["tls"]["clientValidation"] =
            virtualhost["tls"]["clientValidation"].clone();
        assert!(asked(&trust, &proxy));
        trust.spec.mode = Mode::Optional;
        assert!(!asked(&trust, &proxy), "it asks by what the trust said before");
        // One that goes by the gate alone is no matter of the Secret.
        assert!(is_asked(&trust, url, &[(&TRAEFIK, &ingress())], &[ingress()]));
    }
}
