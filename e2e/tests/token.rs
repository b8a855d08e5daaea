//! CA keys in a token: SoftHSM, a PKCS #11 module without hardware. Each test has a token and, since a
//! module has one state for all of a process, a process of its own.

#![allow(missing_docs)]

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign::pki::authority::{CaParams, NameConstraints};
use countersign::pki::crl::{self, CrlNumber, CrlParams, Entry, Index};
use countersign::pki::issue::{IssueRequest, issue};
use countersign::pki::key::Signer;
use countersign::pki::name::{Attribute, Name};
use countersign::pki::profile::{Profile, Usage};
use countersign::pki::verify::verify_issued;
use countersign::pki::{CertificateAuthority, KeyType, PrivateKey, Serial};
use countersign::token::{KeyUri, Token, TokenConfig, TokenError, TokenKey};
use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{
    Attribute as CkAttribute, AttributeInfo, AttributeType, ObjectClass, ObjectHandle,
};
use cryptoki::session::Session;
use jiff::{Timestamp, ToSpan};
use tempfile::TempDir;

use countersign::api::condition::{PUBLISHED, READY};
use countersign::api::{CertificateRevocation, ClientAuthority, ClientIdentity};
use countersign::pki::crl::CrlFacts;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::json;

use support::control_plane::ControlPlane;
use support::operator::{NAMESPACE, Operator, control_plane};
use support::{condition, create, eventually, namespace, patch, program, run, wait_for};

const LABEL: &str = "Countersign test";
const PIN: &str = "correct-horse";
/// Names the folder of a test to the process that does its work.
const FOLDER: &str = "COUNTERSIGN_TOKEN_FOLDER";

/// SoftHSM with a door: the file `hang` makes C_Sign wait, the file `fail` holds what it returns
/// once, and each C_Login leaves a mark in the file `logins`. CK_FUNCTION_LIST is a version and then
/// pointers in the order of PKCS #11 v2.40 section 3.6.
const PROXY: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
typedef unsigned long (*function)();
struct list { unsigned char version[2]; function functions[68]; };
enum { LOGIN = 18, SIGN = 43 };
static struct list ours;
static function login, sign;
static const char *path(const char *name) {
  static char text[4096];
  snprintf(text, sizeof text, "%s/%s", getenv("COUNTERSIGN_TOKEN_FOLDER"), name);
  return text;
}
static unsigned long our_login(unsigned long session, unsigned long user, void *pin, unsigned long length) {
  FILE *file = fopen(path("logins"), "a");
  fputc('x', file);
  fclose(file);
  return login(session, user, pin, length);
}
static unsigned long our_sign(unsigned long session, void *data, unsigned long length, void *out, void *out_length) {
  unsigned long code = 0;
  FILE *file = fopen(path("fail"), "r");
  if (file) {
    if (fscanf(file, "%lx", &code) != 1) abort();
    fclose(file);
    unlink(path("fail"));
    return code;
  }
  while (access(path("hang"), F_OK) == 0) usleep(10000);
  return sign(session, data, length, out, out_length);
}
unsigned long C_GetFunctionList(struct list **out) {
  void *library = dlopen(SOFTHSM, RTLD_NOW);
  struct list *theirs;
  unsigned long code = ((function)dlsym(library, "C_GetFunctionList"))(&theirs);
  ours = *theirs;
  login = ours.functions[LOGIN];
  sign = ours.functions[SIGN];
  ours.functions[LOGIN] = our_login;
  ours.functions[SIGN] = our_sign;
  *out = &ours;
  return code;
}
"#;

fn softhsm() -> &'static str {
    let places = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
    ];
    let found = places.into_iter().find(|place| Path::new(place).exists());
    found.expect("SoftHSM is installed; `make test` installs what the tests need")
}

/// A token of a test, in a folder that also holds what else the test needs.
struct Scene(PathBuf);

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn config(&self, module: impl Into<PathBuf>) -> TokenConfig {
        TokenConfig { module: module.into(), label: LABEL.into(), pin_file: self.path("pin") }
    }

    fn token(&self) -> Token {
        Token::open(self.config(softhsm())).expect("the module loads")
    }

    /// The token behind the door.
    fn proxied(&self) -> Token {
        let (source, module) = (self.path("proxy.c"), self.path("proxy.so"));
        fs::write(&source, PROXY).expect("written");
        let define = format!("-DSOFTHSM=\"{}\"", softhsm());
        let arguments = ["-shared", "-fPIC", "-w", &define, "-o"];
        let status = Command::new(program("cc")).args(arguments).args([&module, &source]).status();
        assert!(status.expect("cc runs").success());
        Token::open(self.config(module)).expect("the module loads")
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("written");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("removed");
    }

    fn logins(&self) -> usize {
        fs::read(self.path("logins")).map_or(0, |marks| marks.len())
    }

    /// The token goes, as if it were unplugged.
    fn unplug(&self) {
        fs::rename(self.path("tokens"), self.path("elsewhere")).expect("moved");
        fs::create_dir(self.path("tokens")).expect("a folder");
    }

    fn plug_in(&self) {
        fs::remove_dir(self.path("tokens")).expect("it is empty");
        fs::rename(self.path("elsewhere"), self.path("tokens")).expect("moved");
    }

    fn openssl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(program("openssl")).args(arguments).current_dir(&self.0).output();
        let output = output.expect("openssl runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if output.status.success() { Ok(text) } else { Err(text) }
    }
}

/// A folder with a fresh token.
fn fresh_token() -> TempDir {
    let folder = tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder");
    let scene = Scene(folder.path().to_owned());
    fs::create_dir(scene.path("tokens")).expect("a folder");
    let tokens = scene.path("tokens");
    scene.write(
        "softhsm2.conf",
        format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()),
    );
    scene.write("pin", format!("{PIN}\n"));
    let arguments =
        ["--init-token", "--free", "--so-pin", "so-secret", "--label", LABEL, "--pin", PIN];
    let output = Command::new(program("softhsm2-util"))
        .args(arguments)
        .env("SOFTHSM2_CONF", scene.path("softhsm2.conf"))
        .output()
        .expect("softhsm2-util runs");
    assert!(output.status.success(), "{output:?}");
    folder
}

/// Does the work of the test of this name in a process of its own, with a token in a folder.
fn in_process(folder: &Path, test: &str, work: impl FnOnce(&Scene)) {
    let scene = Scene(folder.to_owned());
    if std::env::var_os(FOLDER).is_some() {
        work(&scene);
        let mut done = OpenOptions::new().create(true).append(true).open(scene.path("done"));
        writeln!(done.as_mut().expect("a file"), "{test}").expect("written");
        return;
    }
    let output = Command::new(std::env::current_exe().expect("a program"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env("SOFTHSM2_CONF", scene.path("softhsm2.conf"))
        .output()
        .expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    // Not the exit status: SoftHSM 2.6.1 may corrupt its heap in its own exit handlers, when all is done.
    assert!(text.contains("test result: ok. 1 passed"), "{text}");
    // No test of that name would also be a success.
    let done = fs::read_to_string(scene.path("done")).expect("the test was run");
    assert_eq!(done.trim_end(), test, "{text}");
    fs::remove_file(scene.path("done")).expect("removed");
}

fn with_token(test: &str, work: impl FnOnce(&Scene)) {
    match std::env::var_os(FOLDER) {
        Some(folder) => in_process(Path::new(&folder), test, work),
        None => in_process(fresh_token().path(), test, work),
    }
}

/// A session beside that of the token's thread. The login holds for the process.
fn session() -> Session {
    let library = Pkcs11::new(softhsm()).expect("the module is loaded");
    let slots = library.get_slots_with_token().expect("slots").into_iter();
    let ours = |slot: &_| library.get_token_info(*slot).expect("readable").label() == LABEL;
    let slot = slots.into_iter().find(ours).expect("the token is there");
    library.open_rw_session(slot).expect("a session")
}

fn private_objects(session: &Session, uri: &KeyUri) -> Vec<ObjectHandle> {
    let template = [
        CkAttribute::Class(ObjectClass::PRIVATE_KEY),
        CkAttribute::Label(uri.object.clone().into_bytes()),
    ];
    session.find_objects(&template).expect("a search")
}

fn ca(key: TokenKey) -> CertificateAuthority {
    let subject = Name(vec![(Attribute::CommonName, "Token CA".into())]);
    let now = Timestamp::now();
    let params = CaParams {
        subject: &subject,
        serial: Serial::random(),
        not_before: now - 1.hour(),
        not_after: now + 1000.hours(),
        path_length: 0,
        name_constraints: &NameConstraints::default(),
        crl_url: None,
    };
    CertificateAuthority::self_signed(&params, Arc::new(key)).expect("the token signs")
}

fn signs(key: &TokenKey) -> Result<(), String> {
    key.sign(b"message").map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn what_the_token_signs_is_taken_by_openssl_and_webpki() {
    with_token("what_the_token_signs_is_taken_by_openssl_and_webpki", |scene| {
        let token = scene.token();
        token.check().expect("the token is there");
        for key_type in KeyType::ALL {
            let ca = ca(token.generate(key_type.as_str(), key_type).expect("a key"));
            assert_eq!(ca.facts().key_type, key_type);

            let now = Timestamp::now();
            let profile = Profile {
                subject: Name(vec![(Attribute::CommonName, "client".into())]),
                usages: vec![Usage::ClientAuth],
                ..Profile::default()
            };
            let client = PrivateKey::generate(KeyType::EcdsaP256);
            let [good, stolen] = [(); 2].map(|()| {
                let request = IssueRequest {
                    profile: &profile,
                    public_key_der: &client.public_key_der(),
                    serial: Serial::random(),
                    not_before: now - 1.minute(),
                    not_after: now + 1.hour(),
                    crl_url: None,
                };
                let leaf = issue(&ca, &request).expect("the token signs");
                verify_issued(&leaf.der, &request, ca.chain(), &[ca.root().clone()], now)
                    .expect("webpki takes it");
                (leaf.pem(), request.serial)
            });
            let entry = Entry { serial: stolen.1, revoked_at: now, reason: Some(1) };
            let number = CrlNumber::next(None, now);
            let params = CrlParams::complete(number, now - 1.minute(), now + 1.hour());
            let crl = crl::encode(&ca, &params, &Index::of(&[entry])).expect("the token signs").der;
            crl::verify(&crl, &ca, &params, [entry.serial], &[entry])
                .expect("an independent reader takes it");

            scene.write("ca.pem", ca.certificate_pem());
            scene.write("crl.pem", crl::to_pem(&crl));
            scene.write("good.pem", good.0);
            scene.write("stolen.pem", stolen.0);
            let verify = |leaf| {
                let check = ["-x509_strict", "-check_ss_sig", "-crl_check", "-CRLfile", "crl.pem"];
                scene.openssl(&[&["verify", "-CAfile", "ca.pem"], &check[..], &[leaf]].concat())
            };
            verify("good.pem").unwrap_or_else(|error| panic!("{key_type:?}: {error}"));
            let error = verify("stolen.pem").expect_err("it is revoked");
            assert!(error.contains("certificate revoked"), "{key_type:?}: {error}");
        }
    });
}

#[test]
fn a_key_does_not_leave_the_token() {
    with_token("a_key_does_not_leave_the_token", |scene| {
        let token = scene.token();
        for (key_type, secret) in [
            (KeyType::EcdsaP256, AttributeType::Value),
            (KeyType::Rsa2048, AttributeType::PrivateExponent),
        ] {
            let key = token.generate(key_type.as_str(), key_type).expect("a key");
            let session = session();
            let object = private_objects(&session, key.uri())[0];
            let info = session.get_attribute_info(object, &[secret]).expect("an answer");
            assert!(matches!(info[..], [AttributeInfo::Sensitive]), "{info:?}");
            assert!(session.get_attributes(object, &[secret]).expect("an answer").is_empty());

            // Nor wrapped by a key that the attacker knows.
            let wrapping = [
                CkAttribute::Token(false),
                CkAttribute::Wrap(true),
                CkAttribute::ValueLen(32.into()),
            ];
            let wrapping = session.generate_key(&Mechanism::AesKeyGen, &wrapping).expect("a key");
            let error = session.wrap_key(&Mechanism::AesKeyWrapPad, wrapping, object);
            assert!(format!("{error:?}").contains("KeyUnextractable"), "{error:?}");

            // The same ways lead to a key that somebody made carelessly, which is therefore refused.
            let names =
                [CkAttribute::Label(b"careless".to_vec()), CkAttribute::Id(vec![key_type as u8])];
            let mut public = names.to_vec();
            let mut private = names.to_vec();
            let mechanism = if key_type == KeyType::Rsa2048 {
                public.push(CkAttribute::ModulusBits(2048.into()));
                Mechanism::RsaPkcsKeyPairGen
            } else {
                let p256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
                public.push(CkAttribute::EcParams(p256.to_vec()));
                Mechanism::EccKeyPairGen
            };
            public.push(CkAttribute::Token(true));
            private.extend([
                CkAttribute::Token(true),
                CkAttribute::Sensitive(false),
                CkAttribute::Extractable(true),
                CkAttribute::Private(true),
            ]);
            let made = session.generate_key_pair(&mechanism, &public, &private);
            let (_, careless) = made.expect("a key");
            assert_eq!(session.get_attributes(careless, &[secret]).expect("an answer").len(), 1);
            session.wrap_key(&Mechanism::AesKeyWrapPad, wrapping, careless).expect("it leaves");
            let error = token.generate("careless", key_type).expect_err("it is refused");
            assert!(error.to_string().contains("may leave the token"), "{error}");
            session.destroy_object(careless).expect("destroyed");
        }
    });
}

#[test]
fn a_label_has_one_key_whoever_asks() {
    let folder = fresh_token();
    let folder = std::env::var_os(FOLDER).map_or(folder.path().to_owned(), PathBuf::from);
    for _ in 0..2 {
        in_process(&folder, "a_label_has_one_key_whoever_asks", |scene| {
            let token = scene.token();
            let key = token.generate("ca/1", KeyType::EcdsaP384).expect("a key");
            let again = token.generate("ca/1", KeyType::EcdsaP384).expect("a key");
            assert_eq!(key.uri(), again.uri());
            assert_eq!(key.public_key_der(), again.public_key_der());
            let session = session();
            assert_eq!(private_objects(&session, key.uri()).len(), 1);

            let found = token.find(&key.uri().to_string().parse().expect("a URI")).expect("a key");
            assert_eq!(found.public_key_der(), key.public_key_der());
            let other = token.generate("ca/2", KeyType::EcdsaP384).expect("a key");
            assert_ne!(other.uri(), key.uri());

            let error = token.generate("ca/1", KeyType::EcdsaP256).expect_err("another type");
            assert!(error.to_string().contains("ECDSA-384"), "{error}");
            let uri = KeyUri { id: vec![7], ..key.uri().clone() };
            assert!(matches!(token.find(&uri), Err(TokenError::NoKey { .. })));
            let uri = KeyUri { token: "other".into(), ..key.uri().clone() };
            assert!(matches!(token.find(&uri), Err(TokenError::OtherToken { .. })));

            let mut uris = OpenOptions::new().create(true).append(true).open(scene.path("uris"));
            writeln!(uris.as_mut().expect("a file"), "{}", key.uri()).expect("written");
        });
        if std::env::var_os(FOLDER).is_some() {
            return;
        }
    }
    let uris = fs::read_to_string(folder.join("uris")).expect("uris");
    let uris: Vec<&str> = uris.lines().collect();
    assert!(uris.len() == 2 && uris[0] == uris[1], "{uris:?}");
}

#[test]
fn a_token_that_went_is_named_and_one_that_came_back_signs() {
    with_token("a_token_that_went_is_named_and_one_that_came_back_signs", |scene| {
        let token = scene.token();
        let key = token.generate("ca", KeyType::EcdsaP256).expect("a key");
        let ca = ca(key.clone());
        for _ in 0..2 {
            scene.unplug();
            for error in [
                signs(&key).expect_err("the token is away"),
                token.check().expect_err("the token is away").to_string(),
                token.find(key.uri()).expect_err("the token is away").to_string(),
                token.generate("ca", KeyType::EcdsaP256).expect_err("away").to_string(),
            ] {
                assert!(error.contains(LABEL) && error.contains("is not there"), "{error}");
            }
            scene.plug_in();
            signs(&key).expect("the token is back");
            let same = token.find(key.uri()).expect("the token is back");
            assert_eq!(same.public_key_der(), ca.signer().public_key_der());
        }
        // A process that starts while the token is away finds it later.
        scene.unplug();
        let late = scene.token();
        assert!(matches!(late.check(), Err(TokenError::Absent { .. })));
        scene.plug_in();
        late.check().expect("the token is back");
    });
}

#[test]
fn a_reset_device_costs_a_login_and_nothing_else() {
    with_token("a_reset_device_costs_a_login_and_nothing_else", |scene| {
        let token = scene.proxied();
        let key = token.generate("ca", KeyType::EcdsaP256).expect("a key");
        signs(&key).expect("a signature");
        assert_eq!(scene.logins(), 1);
        // CKR_SESSION_HANDLE_INVALID, CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT, CKR_USER_NOT_LOGGED_IN,
        // CKR_KEY_HANDLE_INVALID, CKR_GENERAL_ERROR.
        for (count, code) in ["b3", "32", "e0", "101", "60", "5"].into_iter().enumerate() {
            scene.write("fail", code);
            signs(&key).unwrap_or_else(|error| panic!("{code}: {error}"));
            assert!(!scene.path("fail").exists(), "{code}: nothing failed");
            assert_eq!(scene.logins(), count + 2, "{code}");
        }
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    with_token("a_wrong_pin_is_tried_once", |scene| {
        scene.write("pin", "battery-staple");
        let token = scene.proxied();
        for _ in 0..5 {
            let error = token.check().expect_err("a wrong PIN");
            assert!(matches!(error, TokenError::PinRefused { .. }), "{error}");
            let text = format!("{error} {error:?} {token:?}");
            assert!(!text.contains("battery"), "{text}");
        }
        assert_eq!(scene.logins(), 1, "a token locks itself after a few wrong PINs");
        scene.write("pin", PIN);
        token.check().expect("the right PIN");
        assert_eq!(scene.logins(), 2);
        scene.write("pin", "\n");
        token.check().expect("it is logged in already");

        let key = token.generate("ca", KeyType::EcdsaP256).expect("a key");
        scene.write("fail", "b3");
        let error = signs(&key).expect_err("no PIN to log in with");
        assert!(error.contains("it is empty") && error.contains("pin"), "{error}");
        scene.remove("pin");
        assert!(matches!(token.check(), Err(TokenError::PinFile { .. })));
        scene.write("pin", PIN);
        signs(&key).expect("the PIN is back");
    });
}

#[test]
fn a_module_that_hangs_holds_nobody_up_for_long() {
    with_token("a_module_that_hangs_holds_nobody_up_for_long", |scene| {
        let token = scene.proxied();
        let key = token.generate("ca", KeyType::EcdsaP256).expect("a key");
        scene.write("hang", "");
        let started = Instant::now();
        let error = signs(&key).expect_err("the module hangs");
        assert!(error.contains("does not answer"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        // It is known now: nobody waits.
        let started = Instant::now();
        for _ in 0..100 {
            signs(&key).expect_err("the module hangs");
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        scene.remove("hang");
        let started = Instant::now();
        while signs(&key).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "it does not come back");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn what_is_no_module_is_named() {
    with_token("what_is_no_module_is_named", |scene| {
        let missing = scene.path("missing.so");
        let error = Token::open(scene.config(&missing)).expect_err("no such file").to_string();
        assert!(error.contains("missing.so") && error.contains("No such file"), "{error}");
        scene.write("text.so", "text");
        let error = Token::open(scene.config(scene.path("text.so"))).expect_err("a text");
        assert!(matches!(error, TokenError::Module { .. }), "{error}");
        let source = run(
            "cc",
            &["-shared", "-x", "c", "-o", &scene.path("empty.so").to_string_lossy(), "-"],
            "int nothing;",
        );
        assert_eq!(source, "");
        let error = Token::open(scene.config(scene.path("empty.so"))).expect_err("no functions");
        assert!(error.to_string().contains("C_GetFunctionList"), "{error}");
    });
}

/// An operator with a token, beside a real API server.
struct Cluster {
    plane: ControlPlane,
    client: Client,
    namespace: String,
    token: TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let (plane, client) = control_plane().await;
        let namespace = namespace(&client, "token").await;
        Self { plane, client, namespace, token: fresh_token() }
    }

    fn scene(&self) -> Scene {
        Scene(self.token.path().to_owned())
    }

    fn operator(&self) -> Operator {
        let scene = self.scene();
        let (pin, conf) = (scene.path("pin"), scene.path("softhsm2.conf"));
        let arguments = [
            "--pkcs11-module",
            softhsm(),
            "--pkcs11-token-label",
            LABEL,
            "--pkcs11-pin-file",
            &pin.to_string_lossy(),
        ];
        let environment = [("SOFTHSM2_CONF", &*conf.to_string_lossy())];
        Operator::start_in(&self.plane, "controller", &arguments, &environment)
    }

    fn authorities(&self) -> Api<ClientAuthority> {
        Api::all(self.client.clone())
    }

    fn identities(&self) -> Api<ClientIdentity> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn revocations(&self) -> Api<CertificateRevocation> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The CAs' Secrets.
    async fn ca_secrets(&self) -> Vec<Secret> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let cas = ListParams::default().labels("countersign.dev/component=ca");
        api.list(&cas).await.expect("the API server answers").items
    }

    async fn ledger_versions(&self) -> Vec<Option<String>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let ledger = ListParams::default().labels("countersign.dev/component=ledger");
        let found = api.list(&ledger).await.expect("the API server answers").items;
        found.into_iter().map(|segment| segment.metadata.resource_version).collect()
    }

    async fn crl(&self, generation: u32) -> CrlFacts {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let found = api.get(&format!("crl-clients-{generation}")).await.expect("a CRL");
        crl::read(&found.binary_data.expect("data")["crl.der"].0).expect("a CRL")
    }

    async fn identity(&self, name: &str, reason: &str) -> ClientIdentity {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{authorityRef: {{name: clients}}, commonName: {name}, \
             secretName: {name}-tls}}}}"
        );
        create(&self.identities(), &yaml).await;
        let status = if reason == "Issued" { "True" } else { "False" };
        wait_for(&self.identities(), name, READY, status, reason).await
    }

    async fn revoke(&self, name: &str) {
        let yaml = format!(
            "{{metadata: {{name: {name}}}, spec: {{identityRef: {{name: {name}}}, reason: KeyCompromise}}}}"
        );
        create(&self.revocations(), &yaml).await;
        wait_for(&self.revocations(), name, PUBLISHED, "True", "Published").await;
    }

    async fn wait_for_authority(&self, status: &str, reason: &str) -> ClientAuthority {
        wait_for(&self.authorities(), "clients", READY, status, reason).await
    }

    async fn is_ready(&self, name: &str) -> bool {
        let identity = self.identities().get(name).await.expect("an identity");
        let conditions = identity.status.expect("a status").conditions;
        condition(&conditions, READY).is_some_and(|ready| ready.status == "True")
    }
}

const AUTHORITY: &str = "{metadata: {name: clients}, spec: {rotation: {preparation: 0s, activationTimeout: 10s}, \
     selfSigned: {commonName: Token CA, custody: PKCS11, privateKey: {algorithm: ECDSA, size: 384}}}}";

#[tokio::test]
async fn an_authority_lives_on_its_token() {
    let cluster = Cluster::start().await;
    let scene = cluster.scene();

    // No token, no CA: nothing is made in its place.
    scene.unplug();
    let operator = cluster.operator();
    create(&cluster.authorities(), AUTHORITY).await;
    let waiting = cluster.wait_for_authority("False", "TokenUnavailable").await;
    let conditions = waiting.status.expect("a status").conditions;
    let message = &condition(&conditions, READY).expect("a condition").message;
    assert!(message.contains(LABEL) && message.contains("is not there"), "{message}");
    assert_eq!(cluster.ca_secrets().await, []);

    // The key is made in the token, and stays there.
    scene.plug_in();
    cluster.wait_for_authority("True", "Ready").await;
    let [ca] = &cluster.ca_secrets().await[..] else { panic!("one CA") };
    let data = ca.data.as_ref().expect("data");
    assert_eq!(data.keys().collect::<Vec<_>>(), ["pkcs11-uri", "tls.crt"]);
    let uri: KeyUri = String::from_utf8_lossy(&data["pkcs11-uri"].0).parse().expect("a URI");
    assert!(uri.object.starts_with("ca-clients-1-"), "{uri}");

    // Issued, revoked, published.
    cluster.identity("laptop", "Issued").await;
    cluster.identity("stolen", "Issued").await;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    for name in ["laptop", "stolen"] {
        let secret = secrets.get(&format!("{name}-tls")).await.expect("a Secret");
        let data = secret.data.expect("data");
        scene.write(&format!("{name}.pem"), &data["tls.crt"].0);
        scene.write("ca.pem", &data["ca.crt"].0);
    }
    cluster.revoke("stolen").await;
    let crls: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let crl_map = crls.get("crl-clients-1").await.expect("a CRL");
    scene.write("crl.pem", crl::to_pem(&crl_map.binary_data.expect("data")["crl.der"].0));
    let verify = |leaf| {
        let check = ["verify", "-CAfile", "ca.pem", "-crl_check", "-CRLfile", "crl.pem", leaf];
        scene.openssl(&check)
    };
    verify("laptop.pem").expect("it is good");
    let error = verify("stolen.pem").expect_err("it is revoked");
    assert!(error.contains("certificate revoked"), "{error}");
    let status = cluster.wait_for_authority("True", "Ready").await.status.expect("a status");
    assert_eq!(status.generations.len(), 1);

    // The token goes, which an issuance finds out. Good certificates stay so, the CRL stays, no CA is
    // made in its place, and from now on no serial is written down for nothing.
    scene.unplug();
    let before = cluster.crl(1).await;
    cluster.identity("late", "AuthorityNotReady").await;
    cluster.wait_for_authority("False", "TokenUnavailable").await;
    let ledger = cluster.ledger_versions().await;
    assert!(cluster.is_ready("laptop").await);
    assert_eq!(operator.stop().code(), Some(0));
    let operator = cluster.operator();
    cluster.identity("later", "AuthorityNotReady").await;
    cluster.wait_for_authority("False", "TokenUnavailable").await;
    assert!(cluster.is_ready("laptop").await);
    assert_eq!(cluster.crl(1).await, before);
    assert_eq!(cluster.ca_secrets().await.len(), 1);
    assert_eq!(cluster.ledger_versions().await, ledger, "no serial of what was not signed");

    // It comes back, and all goes on by itself.
    scene.plug_in();
    cluster.wait_for_authority("True", "Ready").await;
    for name in ["late", "later"] {
        wait_for(&cluster.identities(), name, READY, "True", "Issued").await;
    }
    cluster.revoke("late").await;
    assert!(cluster.crl(1).await.number > before.number);

    // Another custody is another CA. The one before goes on signing its CRL in the token.
    let spec = json!({"spec": {"selfSigned": {"custody": "Secret"}}});
    patch(&cluster.authorities(), "clients", spec).await;
    eventually("generation 2 signs, with a key in its Secret", || async {
        let secrets = cluster.ca_secrets().await;
        let second =
            secrets.iter().find(|one| one.metadata.name.as_deref() == Some("ca-clients-2"))?;
        let keys: Vec<_> = second.data.as_ref()?.keys().collect();
        assert_eq!(keys, ["tls.crt", "tls.key"]);
        let state = second.metadata.annotations.as_ref()?.get("countersign.dev/state")?;
        (state == "Active").then_some(())
    })
    .await;
    let number = cluster.crl(1).await.number;
    let laptop = cluster.identities().get("laptop").await.expect("an identity");
    let laptop = laptop.status.expect("a status").serial_number.expect("a serial number");
    cluster.revoke("laptop").await;
    eventually("the CRL of generation 1 is signed anew", || async {
        let facts = cluster.crl(1).await;
        let revoked = facts.serials.iter().any(|serial| serial.to_string() == laptop);
        (facts.number > number && revoked).then_some(())
    })
    .await;

    let log = operator.log();
    assert!(log.contains("published a CRL") && !log.contains(PIN), "{log}");
    assert_eq!(operator.stop().code(), Some(0));
}

#[tokio::test]
async fn an_operator_without_a_token_says_so_and_a_wrong_module_ends_the_start() {
    let cluster = Cluster::start().await;
    let operator = Operator::start(&cluster.plane);
    create(&cluster.authorities(), AUTHORITY).await;
    let waiting = cluster.wait_for_authority("False", "TokenUnavailable").await;
    let conditions = waiting.status.expect("a status").conditions;
    let message = &condition(&conditions, READY).expect("a condition").message;
    assert!(message.contains("--pkcs11-module"), "{message}");
    operator.stop();

    let start = |arguments: &[&str]| {
        let output = Command::new(support::control_plane::binary())
            .arg("controller")
            .args(arguments)
            .env("KUBECONFIG", "/nowhere")
            .output()
            .expect("it starts");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = start(&["--pkcs11-module", "/nowhere/module.so"]);
    assert!(error.contains("--pkcs11-token-label"), "{error}");
    let rest = ["--pkcs11-token-label", LABEL, "--pkcs11-pin-file", "/nowhere/pin"];
    let error = start(&[&["--pkcs11-module", "/nowhere/module.so"], &rest[..]].concat());
    assert!(error.contains("failed to load PKCS#11 module /nowhere/module.so"), "{error}");
}
