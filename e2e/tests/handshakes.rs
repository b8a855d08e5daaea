//! nginx, HAProxy and Envoy over CRLs that the library signs: who gets in, who does not, and what becomes of
//! sessions and connections from before a revocation.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::Path;

use support::handshake::{Connection, Handshake, Session, handshake};
use support::pki::{Ca, Client, folder};
use support::scenarios::{self, Scenario, Verdict, Why};
use support::servers::{Program, Server, Sessions, wait_until, write_server_certificate};
use tempfile::TempDir;

/// Puts a server into scenarios; what came out otherwise. All of the servers look at the whole chain.
fn judge(program: Program, scenarios: Vec<Scenario>) -> Vec<String> {
    let mut wrong = Vec::new();
    for scenario in scenarios {
        let folder = folder();
        let path = folder.path();
        write_server_certificate(path);
        fs::write(path.join("ca.crt"), &scenario.ca).expect("written");
        fs::write(path.join("ca.crl"), &scenario.crl).expect("written");
        let server = program.start(path, Sessions::Never);
        for (index, (client, verdict)) in scenario.clients.iter().enumerate() {
            let identity = path.join(index.to_string());
            client.write(&identity);
            let told = told(program, path, &handshake(server.port, &identity, &[]));
            let wanted = match verdict {
                Verdict::In => "in",
                Verdict::Out(why) | Verdict::OutByChain(why) => words(program, *why),
            };
            if told != wanted {
                wrong.push(format!("{}: {}: {told}, not {wanted}", scenario.name, client.name));
            }
        }
    }
    wrong
}

/// What a server says of a client that it was just asked by.
fn told(program: Program, folder: &Path, answer: &Handshake) -> String {
    match (program, &answer.alert) {
        _ if answer.is_in() => "in".to_owned(),
        // It takes the connection, answers 400 and logs why.
        (Program::Nginx, None) => {
            assert!(answer.text.contains("The SSL certificate error"), "{}", answer.text);
            let log = fs::read_to_string(folder.join("nginx.log")).expect("a log");
            let (_, last) =
                log.rsplit_once("client SSL certificate verify error: (").expect("a reason");
            let reason = last.split_once(')').and_then(|(reason, _)| reason.split_once(':'));
            reason.expect("a number and a reason").1.to_owned()
        }
        (Program::Haproxy | Program::Envoy, Some(alert)) => alert.clone(),
        _ => panic!("neither in nor refused: {}", answer.text),
    }
}

/// What a server says of a refusal: nginx in its log, the others as a TLS alert.
fn words(program: Program, why: Why) -> &'static str {
    match (program, why) {
        (Program::Nginx, why) => why.openssl(),
        (_, Why::Revoked) => "certificate revoked",
        (_, Why::Expired) | (Program::Envoy, Why::Early) => "certificate expired",
        (Program::Haproxy, Why::Early) => "bad certificate",
        (_, Why::Missing) => "unknown ca",
        (_, Why::Scope) => "certificate unknown",
        (_, Why::Forged) => "decrypt error",
    }
}

#[test]
fn nginx_lets_in_and_refuses_as_the_crls_say() {
    // Refused all the same: it logs the last of several reasons.
    let revoked = Why::Revoked.openssl();
    let others = [
        ("without the root's CRL", Why::Missing),
        ("with an expired CRL of the root", Why::Expired),
    ];
    let others = others
        .map(|(what, why)| format!("a chain {what}: stolen: {}, not {revoked}", why.openssl()));
    assert_eq!(judge(Program::Nginx, scenarios::all()), others);
}

#[test]
fn haproxy_lets_in_and_refuses_as_the_crls_say() {
    assert_eq!(judge(Program::Haproxy, scenarios::all()), [""; 0]);
}

#[test]
fn envoy_lets_in_and_refuses_as_the_crls_say() {
    assert_eq!(judge(Program::Envoy, scenarios::all()), [""; 0]);
}

/// Two suspicions that were reported of others do not hold here: that HAProxy heeds the last CRL of a file
/// alone (haproxy#3315, over its runtime API), and that a client passes for whose certificate there is only a
/// CRL of another scope (CVE-2026-4428, in AWS-LC).
#[test]
fn crls_that_are_partitioned_are_put_together_and_a_missing_part_shuts_out() {
    assert_eq!(judge(Program::Haproxy, scenarios::partitioned()), [""; 0]);
    assert_eq!(judge(Program::Envoy, scenarios::partitioned()), [""; 0]);
    let others = ["stolen, shard 1", "stolen, shard 2"].map(|client| {
        format!(
            "the shards alone: {client}: {}, not {}",
            Why::Scope.openssl(),
            Why::Revoked.openssl()
        )
    });
    assert_eq!(judge(Program::Nginx, scenarios::partitioned()), others);
}

/// A server, its CA, and a client with a revocation to come.
struct Scene {
    folder: TempDir,
    ca: Ca,
    client: Client,
    server: Server,
}

impl Scene {
    fn new(program: Program, sessions: Sessions) -> Self {
        let folder = folder();
        let ca = Ca::root("Clients CA");
        let client = ca.client("stolen");
        client.write(folder.path());
        write_server_certificate(folder.path());
        fs::write(folder.path().join("ca.crt"), ca.pem()).expect("written");
        fs::write(folder.path().join("ca.crl"), ca.crl(&[])).expect("written");
        let server = program.start(folder.path(), sessions);
        Self { folder, ca, client, server }
    }

    fn revoke(&self) {
        let crl = self.ca.crl(&[self.client.serial]);
        fs::write(self.folder.path().join("ca.crl"), crl).expect("written");
    }
}

/// What becomes of a TLS session from before a revocation.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// There was no session to keep.
    NotKept,
    /// It is not taken up; the whole handshake that follows refuses the client.
    Refused,
    /// It is taken up, and the client, though revoked, is let in.
    LetIn,
}

/// The fates of sessions of TLS 1.2 and 1.3. Before the revocation they must be taken up if `sessions` says so:
/// the rest would mean nothing otherwise.
fn fates(program: Program, sessions: Sessions) -> [Fate; 2] {
    let mut scene = Scene::new(program, sessions);
    let (port, path) = (scene.server.port, scene.folder.path().to_owned());
    // A ticket of TLS 1.3 is good for one use, so each look takes a session of its own.
    let begin = |version| {
        let (first, session) = Session::begin(port, &path, version);
        assert!(first.is_in(), "{}", first.text);
        session
    };
    for version in ["1_2", "1_3"] {
        if let Some(session) = begin(version) {
            let again = session.resume(port, &path);
            assert!(
                again.is_in() && again.resumed == (sessions != Sessions::Never),
                "{}",
                again.text
            );
        }
    }
    let kept = ["1_2", "1_3"].map(begin);
    scene.revoke();
    scene.server.reload();
    let refused = handshake(port, &path, &[]);
    assert_eq!(told(program, &path, &refused), words(program, Why::Revoked), "{program:?}");
    kept.map(|session| {
        let Some(session) = session else { return Fate::NotKept };
        let answer = session.resume(port, &path);
        assert_eq!(answer.is_in(), answer.resumed, "{program:?} {sessions:?}: {}", answer.text);
        if answer.resumed { Fate::LetIn } else { Fate::Refused }
    })
}

/// What users have to be told: a server does not look at the CRL again when it resumes a session. It is safe
/// where the sessions end with the CRL that they began under: with the defaults, where a reload forgets the key
/// of the tickets, and without sessions. Where they outlive a reload (nginx: `ssl_session_cache shared:...` or
/// `ssl_session_ticket_key`; HAProxy: `tls-ticket-keys`) a revoked client is let in for as long as it has a
/// session. nginx from 1.23.2 on keeps the keys of tickets in the shared cache, so that the cache alone does it.
/// `ssl_session_cache off; ssl_session_tickets off` in nginx, `no-tls-tickets` and `tune.ssl.cachesize 0` in
/// HAProxy leave no session. Envoy ties sessions to its validation context, the CRL too, whatever it is told.
#[test]
fn a_session_from_before_a_revocation_lets_nobody_in_unless_it_is_made_to_outlive_the_reload() {
    use Fate::{LetIn, NotKept, Refused};
    use Program::{Envoy, Haproxy, Nginx};
    for (program, sessions, expected) in [
        (Nginx, Sessions::Never, [NotKept, Refused]),
        (Nginx, Sessions::Default, [Refused, Refused]),
        (Nginx, Sessions::Lasting, [LetIn, LetIn]),
        (Haproxy, Sessions::Never, [NotKept, Refused]),
        (Haproxy, Sessions::Default, [Refused, Refused]),
        (Haproxy, Sessions::Lasting, [LetIn, LetIn]),
        (Envoy, Sessions::Never, [NotKept, NotKept]),
        (Envoy, Sessions::Default, [Refused, Refused]),
        (Envoy, Sessions::Lasting, [Refused, Refused]),
    ] {
        assert_eq!(fates(program, sessions), expected, "{program:?} {sessions:?}");
    }
}

/// A CRL is looked at in the handshake alone. nginx and HAProxy close connections that wait for a request when
/// they reload; one in the middle of a request, a WebSocket say, goes on until it ends, or until nginx's
/// `worker_shutdown_timeout` or HAProxy's `hard-stop-after`. Envoy keeps all of them: its limit is
/// `max_connection_duration`.
#[test]
fn an_open_connection_outlives_a_revocation_in_envoy_and_ends_with_a_reload_in_the_others() {
    for program in Program::ALL {
        let scene = Scene::new(program, Sessions::Never);
        let port = scene.server.port;
        let mut connection = Connection::open(port, scene.folder.path());
        scene.revoke();
        scene.server.begin_reload();
        wait_until("new connections are refused", || {
            !handshake(port, scene.folder.path(), &[]).is_in()
        });
        if program == Program::Envoy {
            let answer = connection.ask();
            assert!(answer.contains("HTTP/1.1 200"), "{answer}");
        } else {
            // The new worker answers before the old one is told to end.
            wait_until("the connection that waits is closed", || connection.is_closed());
        }
    }
}
