//! CAs of the library, their clients and their CRLs, without a cluster.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use countersign::pki::authority::{CaParams, NameConstraints};
use countersign::pki::crl::{self, CrlNumber, Entry};
use countersign::pki::issue::{IssueRequest, issue};
use countersign::pki::key::Encoding;
use countersign::pki::name::{Attribute, Name};
use countersign::pki::profile::{Profile, Usage};
use countersign::pki::{CertificateAuthority, KeyType, PrivateKey, Serial, certificate_pem};
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;

use super::openssl;

/// The library's codes for reasons (RFC 5280 section 5.3.1) that a CRL of ours may carry, and none.
pub const REASONS: [Option<u8>; 6] = [None, Some(1), Some(3), Some(4), Some(5), Some(9)];

/// The time, in whole seconds, so many hours from now.
pub fn hours(hours: i64) -> Timestamp {
    let now = Timestamp::from_second(Timestamp::now().as_second()).expect("in range");
    now + SignedDuration::from_hours(hours)
}

/// What a CRL shall say beside its entries.
#[derive(Clone, Copy, Debug)]
pub struct CrlParams {
    pub number: u128,
    pub this_update: Timestamp,
    pub next_update: Timestamp,
}

impl Default for CrlParams {
    fn default() -> Self {
        Self { number: 7, this_update: hours(-1), next_update: hours(7 * 24) }
    }
}

/// The one place where these tests make a CRL: signed and checked as the controller does it.
pub fn sign_crl(ca: &CertificateAuthority, params: CrlParams, entries: &[Entry]) -> Vec<u8> {
    let CrlParams { number, this_update, next_update } = params;
    let number = CrlNumber(number);
    let der = crl::sign(ca, number, this_update, next_update, entries).expect("a CRL");
    let params = crl::CrlParams::complete(number, this_update, next_update);
    let mut sorted = entries.to_vec();
    sorted.sort_by_key(|entry| entry.serial);
    let serials = sorted.iter().map(|entry| entry.serial);
    crl::verify(&der, ca, &params, serials, &sorted).expect("a CRL that we take ourselves");
    der
}

/// An entry of a serial that was revoked an hour ago.
pub fn entry(serial: Serial, reason: Option<u8>) -> Entry {
    Entry { serial, revoked_at: hours(-1), reason }
}

/// A CA with its key.
pub struct Ca {
    pub authority: CertificateAuthority,
    key: Arc<PrivateKey>,
}

impl Ca {
    /// A root with a P-256 key.
    pub fn root(common_name: &str) -> Self {
        Self::root_of(KeyType::EcdsaP256, common_name)
    }

    /// A root with a key of this type.
    pub fn root_of(key_type: KeyType, common_name: &str) -> Self {
        let key = Arc::new(PrivateKey::generate(key_type));
        let subject = name(common_name);
        let authority = CertificateAuthority::self_signed(&params(&subject, 1), key.clone());
        Self { authority: authority.expect("a CA"), key }
    }

    /// A CA below this one.
    pub fn below(&self, common_name: &str) -> Self {
        let key = Arc::new(PrivateKey::generate(KeyType::EcdsaP256));
        let subject = name(common_name);
        let authority = self.authority.sign_authority(&params(&subject, 0), key.clone());
        Self { authority: authority.expect("a CA"), key }
    }

    /// A client without a distribution point.
    pub fn client(&self, common_name: &str) -> Client {
        self.issue(common_name, Serial::random(), None)
    }

    /// A client with this serial, and a distribution point.
    pub fn issue(&self, common_name: &str, serial: Serial, crl_url: Option<&str>) -> Client {
        let key = PrivateKey::generate(KeyType::EcdsaP256);
        let request = IssueRequest {
            profile: &Profile {
                subject: name(common_name),
                alternative_names: vec![],
                usages: vec![Usage::ClientAuth],
            },
            public_key_der: &key.public_key_der(),
            serial,
            not_before: hours(-2),
            not_after: hours(24),
            crl_url,
        };
        let leaf = issue(&self.authority, &request).expect("a certificate").der;
        Client {
            name: common_name.to_owned(),
            serial,
            chain_pem: self.authority.with_intermediates(&leaf),
            intermediates: self.authority.intermediates().to_vec(),
            leaf,
            key_pem: key.to_pem(Encoding::Pkcs8).to_string(),
        }
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.authority.certificate_pem()
    }

    /// Its key, PEM.
    pub fn key_pem(&self) -> String {
        self.key.to_pem(Encoding::Pkcs8).to_string()
    }

    /// A CRL with these serials, PEM.
    pub fn crl(&self, revoked: &[Serial]) -> String {
        self.crl_of(CrlParams::default(), revoked)
    }

    /// A CRL with these serials, PEM.
    pub fn crl_of(&self, params: CrlParams, revoked: &[Serial]) -> String {
        let mut entries: Vec<Entry> =
            revoked.iter().map(|serial| entry(*serial, Some(1))).collect();
        entries.sort_by_key(|entry| entry.serial);
        crl::to_pem(&sign_crl(&self.authority, params, &entries))
    }

    /// A CRL with an issuingDistributionPoint, PEM: made by OpenSSL, since the library makes none.
    pub fn partitioned_crl(&self, scope: &str, revoked: &[Serial]) -> String {
        let folder = folder();
        let write =
            |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        write("ca.pem", &self.pem());
        write("ca.key", &self.key_pem());
        write("number", "07\n");
        let line = |serial: &Serial| {
            format!("R\t491231235959Z\t260101000000Z\t{serial}\tunknown\t/CN=x\n")
        };
        write(
            "index.txt",
            &revoked
                .iter()
                .map(line)
                .collect::<String>()
                .to_uppercase()
                .replace("UNKNOWN", "unknown"),
        );
        write(
            "ca.conf",
            &format!(
                "[ca]\ndefault_ca = ca_default\n\
                 [ca_default]\ndatabase = index.txt\ncrlnumber = number\ndefault_md = sha256\ndefault_crl_days = 7\n\
                 [extensions]\nauthorityKeyIdentifier = keyid\nissuingDistributionPoint = critical, @scope\n\
                 [scope]\n{scope}\n"
            ),
        );
        openssl(
            folder.path(),
            &[
                "ca",
                "-gencrl",
                "-config",
                "ca.conf",
                "-cert",
                "ca.pem",
                "-keyfile",
                "ca.key",
                "-crlexts",
                "extensions",
                "-out",
                "out.pem",
            ],
        );
        fs::read_to_string(folder.path().join("out.pem")).expect("a CRL")
    }
}

fn name(common_name: &str) -> Name {
    Name(vec![
        (Attribute::Organization, "Example".into()),
        (Attribute::CommonName, common_name.into()),
    ])
}

fn params(subject: &Name, path_length: u8) -> CaParams<'_> {
    static NONE: NameConstraints = NameConstraints { permitted: vec![], excluded: vec![] };
    CaParams {
        subject,
        serial: Serial::random(),
        not_before: hours(-24),
        not_after: hours(24 * 365 * 40),
        path_length,
        name_constraints: &NONE,
        crl_url: None,
    }
}

/// A client with its key.
pub struct Client {
    pub name: String,
    pub serial: Serial,
    pub leaf: CertificateDer<'static>,
    pub intermediates: Vec<CertificateDer<'static>>,
    pub chain_pem: String,
    key_pem: String,
}

impl Client {
    /// Writes `tls.crt` and `tls.key`, and `intermediates.pem` where there are some.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).expect("a folder");
        if !self.intermediates.is_empty() {
            let pem: String = self.intermediates.iter().map(|der| certificate_pem(der)).collect();
            fs::write(folder.join("intermediates.pem"), pem).expect("written");
        }
        fs::write(folder.join("tls.crt"), &self.chain_pem).expect("written");
        fs::write(folder.join("tls.key"), &self.key_pem).expect("written");
    }
}

/// A folder of a test.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("countersign-").tempdir().expect("a folder")
}
