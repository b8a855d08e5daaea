//! Formats that others write for us, and that we write for others: OpenSSL's signing requests, and
//! keystores as OpenSSL and Java read them.

#![allow(missing_docs)]

mod support;

use std::fs;
use std::sync::Arc;

use countersign::pki::authority::{CaParams, NameConstraints};
use countersign::pki::csr::{self, CsrError};
use countersign::pki::issue::{IssueRequest, issue};
use countersign::pki::key::Encoding;
use countersign::pki::keystore::{
    KeyEntry, Profile, Protection, Salt, combined_pem, keystore, truststore,
};
use countersign::pki::name::{Attribute, Name};
use countersign::pki::profile::Usage;
use countersign::pki::public_key::UnsupportedKey;
use countersign::pki::{CertificateAuthority, KeyType, PrivateKey, Serial, profile};
use rustls_pki_types::CertificateDer;
use support::{ask, openssl};
use tempfile::TempDir;

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
    fs::read_to_string(path.join("csr.pem")).expect("a CSR")
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

#[test]
fn keys_of_each_type_and_encoding_are_read_by_openssl() {
    let folder = folder();
    for key_type in KeyType::ALL {
        let key = PrivateKey::generate(key_type);
        for encoding in [Encoding::Pkcs8, Encoding::Traditional] {
            fs::write(folder.path().join("tls.key"), key.to_pem(encoding).as_bytes())
                .expect("written");
            let text = openssl(folder.path(), &["pkey", "-in", "tls.key", "-pubout"]);
            let public = pem::parse(text).expect("PEM").into_contents();
            assert_eq!(public, key.public_key_der(), "{key_type:?} {encoding:?}");
        }
    }
}

/// A key, its certificate, and that of the CA.
fn identity(key_type: KeyType) -> (PrivateKey, Vec<CertificateDer<'static>>) {
    let time = |text: &str| text.parse().expect("a time");
    let name = |text: &str| Name(vec![(Attribute::CommonName, text.into())]);
    let ca = CaParams {
        subject: &name("Formats CA"),
        serial: Serial::random(),
        not_before: time("2026-01-01T00:00:00Z"),
        not_after: time("2046-01-01T00:00:00Z"),
        path_length: 0,
        name_constraints: &NameConstraints::default(),
        crl_url: None,
    };
    let signer = Arc::new(PrivateKey::generate(KeyType::EcdsaP256));
    let authority = CertificateAuthority::self_signed(&ca, signer).expect("a CA");
    let key = PrivateKey::generate(key_type);
    let request = IssueRequest {
        profile: &profile::Profile {
            subject: name("Zoë"),
            alternative_names: vec![],
            usages: vec![Usage::ClientAuth],
        },
        public_key_der: &key.public_key_der(),
        serial: Serial::random(),
        not_before: ca.not_before,
        not_after: ca.not_after,
        crl_url: None,
    };
    let leaf = issue(&authority, &request).expect("a certificate").der;
    (key, vec![leaf, authority.certificate().clone()])
}

const PASSWORD: &str = "correct horse";
const PASSIN: &str = "pass:correct horse";

/// Each profile with the options that OpenSSL 3 needs for it, and what it says about it.
const PROFILES: [(Profile, &[&str], [&str; 2]); 2] = [
    (
        Profile::Modern,
        &[],
        [
            "MAC: sha256, Iteration 10000",
            "PBES2, PBKDF2, AES-256-CBC, Iteration 10000, PRF hmacWithSHA256",
        ],
    ),
    (
        Profile::Legacy,
        &["-legacy"],
        ["MAC: sha1, Iteration 2048", "pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 2048"],
    ),
];

#[test]
fn keystores_are_opened_by_openssl_and_java() {
    for (profile, options, facts) in PROFILES {
        for key_type in [KeyType::EcdsaP256, KeyType::Ed25519, KeyType::Rsa2048] {
            let (key, chain) = identity(key_type);
            let folder = folder();
            let path = folder.path();
            let protection = Protection::new(PASSWORD, profile).expect("a password");
            let entry =
                KeyEntry { key_pkcs8_der: key.pkcs8_der(), chain: &chain, alias: "laptop-7" };
            let store = keystore(&entry, &protection, Salt::random()).expect("a keystore");
            fs::write(path.join("keystore.p12"), store).expect("written");

            let read = ["pkcs12", "-in", "keystore.p12", "-info", "-nodes", "-passin"];
            let text = openssl(path, &[&read[..], &[PASSIN], options].concat());
            for words in [&facts[..], &["friendlyName: laptop-7", "Shrouded Keybag"]].concat() {
                assert!(text.contains(words), "{words:?} is not in\n{text}");
            }
            let text =
                openssl(path, &[&read[..5], &["-passin", PASSIN, "-nocerts"], options].concat());
            let start = text.find("-----BEGIN").unwrap_or_else(|| panic!("no key in {text}"));
            let found = PrivateKey::from_pem(text[start..].trim_end()).expect("a key");
            assert_eq!(found.public_key_der(), key.public_key_der());
            let certificates =
                openssl(path, &[&read[..5], &["-passin", PASSIN, "-nokeys"], options].concat());
            let blocks = pem::parse_many(&certificates).expect("PEM");
            let found: Vec<&[u8]> = blocks.iter().map(|block| block.contents()).collect();
            assert_eq!(found, chain.iter().map(|der| &der[..]).collect::<Vec<_>>());
            let (good, text) =
                ask(path, "openssl", &[&read[..], &["pass:wrong"], options].concat());
            assert!(!good && text.contains("Mac verify error"), "{text}");

            let list = ["-list", "-v", "-keystore", "keystore.p12", "-storepass"];
            let (good, text) = ask(path, "keytool", &[&list[..], &[PASSWORD]].concat());
            assert!(good, "{text}");
            for words in [
                "Your keystore contains 1 entry",
                "Alias name: laptop-7",
                "Entry type: PrivateKeyEntry",
                "Certificate chain length: 2",
                "Owner: CN=Formats CA",
            ] {
                assert!(text.contains(words), "{words:?} is not in\n{text}");
            }
            let (good, text) = ask(path, "keytool", &[&list[..], &["wrong password"]].concat());
            assert!(!good && text.contains("password was incorrect"), "{text}");
            // A list does not need the key; a copy does.
            let copy =
                ["-importkeystore", "-srckeystore", "keystore.p12", "-srcstorepass", PASSWORD];
            let to = ["-destkeystore", "copy.p12", "-deststorepass", PASSWORD];
            let (good, text) = ask(path, "keytool", &[&copy[..], &to].concat());
            assert!(good && text.contains("1 entries successfully imported"), "{text}");
        }
    }
}

#[test]
fn truststores_are_opened_by_openssl_and_java() {
    let bundle: Vec<CertificateDer<'static>> =
        (0..2).map(|_| identity(KeyType::EcdsaP256).1.remove(1)).collect();
    for (profile, options, facts) in PROFILES {
        let folder = folder();
        let path = folder.path();
        let protection = Protection::new(PASSWORD, profile).expect("a password");
        let store = truststore(&bundle, &protection, Salt::random()).expect("a truststore");
        fs::write(path.join("truststore.p12"), store).expect("written");

        let read = ["pkcs12", "-in", "truststore.p12", "-info", "-passin", PASSIN];
        let text = openssl(path, &[&read[..], options].concat());
        for words in facts {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
        assert_eq!(pem::parse_many(&text).expect("PEM").len(), 2, "{text}");

        let list = ["-list", "-v", "-keystore", "truststore.p12", "-storepass", PASSWORD];
        let (good, text) = ask(path, "keytool", &list);
        assert!(good && text.contains("Your keystore contains 2 entries"), "{text}");
        assert_eq!(text.matches("Entry type: trustedCertEntry").count(), 2, "{text}");
    }
}

#[test]
fn a_combined_file_is_read_by_haproxy_and_openssl() {
    for (key_type, encoding) in
        [(KeyType::EcdsaP256, Encoding::Pkcs8), (KeyType::Rsa2048, Encoding::Traditional)]
    {
        let (key, chain) = identity(key_type);
        let folder = folder();
        let path = folder.path();
        let text = combined_pem(&key.to_pem(encoding), &chain);
        fs::write(path.join("tls-combined.pem"), text.as_bytes()).expect("written");
        openssl(path, &["pkey", "-in", "tls-combined.pem", "-noout", "-check"]);
        openssl(path, &["x509", "-in", "tls-combined.pem", "-noout"]);
        let config = "defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  \
                      timeout connect 5s\nfrontend f\n  bind 127.0.0.1:1 ssl crt tls-combined.pem\n";
        fs::write(path.join("haproxy.cfg"), config).expect("written");
        let (good, text) = ask(path, "haproxy", &["-c", "-f", "haproxy.cfg"]);
        assert!(good, "{text}");
    }
}
