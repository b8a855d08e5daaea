//! Formats that others write for us, and that we write for others: OpenSSL's signing requests, and
//! keystores as OpenSSL and Java read them.

#![allow(missing_docs)]

mod support;

use std::path::Path;
use std::process::Command;

use countersign::pki::KeyType;
use countersign::pki::csr::{self, CsrError};
use countersign::pki::public_key::UnsupportedKey;
use support::program;
use tempfile::TempDir;

/// Runs a program in a folder; whether it succeeded, and what it printed.
fn ask(folder: &Path, name: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program(name)).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let (good, text) = ask(folder, "openssl", arguments);
    assert!(good, "openssl {arguments:?}: {text}");
    text
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder")
}

/// A CSR made by `openssl req -new`, with a key of its own and more arguments.
fn request(key: &[&str], more: &[&str]) -> String {
    let folder = folder();
    let path = folder.path();
    openssl(path, &[&["genpkey", "-out", "key.pem"], key].concat());
    let command = ["req", "-new", "-key", "key.pem", "-subj", "/CN=laptop-7", "-out", "csr.pem"];
    openssl(path, &[&command, more].concat());
    std::fs::read_to_string(path.join("csr.pem")).expect("a CSR")
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
const P521: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];
const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];

#[test]
fn requests_of_openssl_are_read_whatever_they_are_signed_with() {
    use KeyType::{EcdsaP256, EcdsaP384, EcdsaP521, Ed25519, Rsa2048, Rsa3072, Rsa4096};
    let rsa_of = |bits| ["-algorithm", "RSA", "-pkeyopt", bits];
    let pss = ["-sha384", "-sigopt", "rsa_padding_mode:pss"];
    let short = ["-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"];
    for (key_type, key, more) in [
        (EcdsaP256, P256, &["-sha256"][..]),
        (EcdsaP256, P256, &["-sha512"]),
        // What rcgen takes for a P-256 key.
        (EcdsaP384, P384, &["-sha256"]),
        (EcdsaP384, P384, &["-sha384"]),
        (EcdsaP521, P521, &["-sha256"]),
        (EcdsaP521, P521, &["-sha384"]),
        (EcdsaP521, P521, &["-sha512"]),
        (Ed25519, &["-algorithm", "ED25519"], &[]),
        (Rsa2048, RSA, &["-sha256"]),
        (Rsa2048, RSA, &["-sha512"]),
        (Rsa3072, &rsa_of("rsa_keygen_bits:3072"), &["-sha384"]),
        (Rsa4096, &rsa_of("rsa_keygen_bits:4096"), &["-sha256"]),
        (Rsa2048, RSA, &pss),
        (Rsa2048, RSA, &short),
        (EcdsaP256, P256, &["-newhdr"]),
        (EcdsaP256, P256, &["-text"]),
    ] {
        let pem = request(key, more);
        let read = csr::read(&pem).unwrap_or_else(|error| panic!("{key:?} {more:?}: {error}"));
        assert_eq!(read.key_type, key_type, "{more:?}");
    }
}

#[test]
fn what_requests_of_openssl_ask_for_is_ignored() {
    for wish in [
        "basicConstraints=critical,CA:TRUE,pathlen:3",
        "keyUsage=critical,keyCertSign,cRLSign",
        "extendedKeyUsage=serverAuth,1.2.3.4.5",
        "1.2.3.4.5=critical,DER:DEADBEEF",
        "subjectAltName=DNS:a.example.com,DNS:a.example.com,DNS:a.example.com",
        "subjectAltName=DER:30:06:82:04:C3:BC:C3:B6",
        "subjectAltName=URI:spiffe://other.example/admin",
    ] {
        let read = csr::read(&request(P256, &["-addext", wish]));
        assert_eq!(read.map(|read| read.key_type), Ok(KeyType::EcdsaP256), "{wish}");
    }
    let other = request(P256, &["-subj", "/O=Somebody else/CN=admin"]);
    assert!(csr::read(&other).is_ok());
}

#[test]
fn requests_that_are_no_good_are_refused_by_name() {
    let unsupported = |what: &str| CsrError::Key(UnsupportedKey::Algorithm(what.into()));
    let rsa_size = |bits| CsrError::Key(UnsupportedKey::RsaSize(bits));
    let rsa = |option| [RSA, &["-pkeyopt", option]].concat();
    let ec = |option| [P256, &["-pkeyopt", option]].concat();
    for (key, more, error) in [
        (rsa("rsa_keygen_bits:1024"), &[][..], rsa_size(1024)),
        (rsa("rsa_keygen_bits:2560"), &[], rsa_size(2560)),
        (rsa("rsa_keygen_pubexp:3"), &[], UnsupportedKey::RsaExponent.into()),
        (RSA.to_vec(), &["-sha1"], CsrError::WeakHash("SHA-1")),
        (RSA.to_vec(), &["-md5"], CsrError::WeakHash("MD5")),
        (P256.to_vec(), &["-sha1"], CsrError::WeakHash("SHA-1")),
        (ec("ec_paramgen_curve:secp256k1"), &[], unsupported("ECDSA on curve 1.3.132.0.10")),
        (ec("ec_param_enc:explicit"), &[], CsrError::ExplicitCurve),
        (vec!["-algorithm", "ED448"], &[], unsupported("1.3.101.113")),
        (vec!["-algorithm", "RSA-PSS"], &[], unsupported("1.2.840.113549.1.1.10")),
    ] {
        assert_eq!(csr::read(&request(&key, more)), Err(error), "{key:?} {more:?}");
    }

    // A signature that was changed on its way.
    let good = request(P256, &[]);
    let mut der = pem::parse(&good).expect("PEM").into_contents();
    let last = der.len() - 1;
    der[last] ^= 1;
    let changed = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
    assert_eq!(csr::read(&changed), Err(CsrError::Signature));

    let names: Vec<String> = (0..2000).map(|i| format!("DNS:client-{i}.example.com")).collect();
    let huge = request(P256, &["-addext", &format!("subjectAltName={}", names.join(","))]);
    assert_eq!(csr::read(&huge), Err(CsrError::TooLarge(huge.len())));
}
