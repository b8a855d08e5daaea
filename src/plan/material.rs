//! What a Secret holds beside its certificate: where the key comes from, the forms that the spec asks
//! for, and whether they stand there already.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use kube::ResourceExt;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use zeroize::Zeroizing;

use super::secret::key;
use crate::api::identity::Reason;
use crate::api::material::{
    AdditionalOutputFormat, KeyAlgorithm, KeyEncoding, OutputFormat, Pkcs12Keystore, Pkcs12Profile,
    PrivateKeySpec, RotationPolicy,
};
use crate::api::{ClientIdentity, ClientIdentitySpec};
use crate::pki::csr::{self, SigningRequest};
use crate::pki::inspect::certificates;
use crate::pki::key::Encoding;
use crate::pki::keystore::{self, KeyEntry, KeystoreError, Profile, Protection, Salt};
use crate::pki::{KeyType, PrivateKey, sha256_hex};

/// Where the key of a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// It is made for the certificate.
    Fresh(KeyType),
    /// It stays that of the Secret, or is made when there is none of this type.
    Kept(KeyType),
    /// It is the client's, and only its public half is known.
    Requested(SigningRequest),
}

impl KeySource {
    /// What a spec asks for, or why it can't be had.
    pub fn of(spec: &ClientIdentitySpec) -> Result<Self, (Reason, String)> {
        if let Some(request) = &spec.request {
            if spec.private_key.is_some()
                || spec.keystores.is_some()
                || !spec.additional_output_formats.is_empty()
            {
                let message = "spec.request leaves the key with the client: privateKey, keystores and additionalOutputFormats can't be set beside it";
                return Err((Reason::InvalidSpec, message.to_owned()));
            }
            return csr::read(request)
                .map(Self::Requested)
                .map_err(|error| (Reason::InvalidRequest, format!("spec.request: {error}")));
        }
        let default = PrivateKeySpec::default();
        let wanted = spec.private_key.as_ref().unwrap_or(&default);
        let key_type = key_type(wanted).map_err(|message| (Reason::InvalidSpec, message))?;
        Ok(match wanted.rotation_policy {
            RotationPolicy::Always => Self::Fresh(key_type),
            RotationPolicy::Never => Self::Kept(key_type),
        })
    }

    /// The type of the key.
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Fresh(key_type) | Self::Kept(key_type) => *key_type,
            Self::Requested(request) => request.key_type,
        }
    }
}

fn key_type(wanted: &PrivateKeySpec) -> Result<KeyType, String> {
    if wanted.algorithm == KeyAlgorithm::Ed25519 && wanted.encoding == KeyEncoding::Pkcs1 {
        return Err("spec.privateKey.encoding: PKCS8 is the only form of an Ed25519 key".to_owned());
    }
    Ok(match (wanted.algorithm, wanted.size) {
        (KeyAlgorithm::Ecdsa, None | Some(256)) => KeyType::EcdsaP256,
        (KeyAlgorithm::Ecdsa, Some(384)) => KeyType::EcdsaP384,
        (KeyAlgorithm::Ecdsa, Some(521)) => KeyType::EcdsaP521,
        (KeyAlgorithm::Ed25519, None) => KeyType::Ed25519,
        (KeyAlgorithm::Rsa, None | Some(2048)) => KeyType::Rsa2048,
        (KeyAlgorithm::Rsa, Some(3072)) => KeyType::Rsa3072,
        (KeyAlgorithm::Rsa, Some(4096)) => KeyType::Rsa4096,
        (algorithm, Some(size)) => {
            return Err(format!(
                "spec.privateKey.size: there is no {algorithm:?} key of {size} bits"
            ));
        }
    })
}

/// The password of the key stores, or why it can't be had and what to do.
pub type Password = Result<Zeroizing<String>, String>;

/// Checks what a Secret gives as a password: none when there is no Secret, `Some(None)` when it lacks the
/// key.
pub fn password(reference: &Pkcs12Keystore, value: Option<Option<&[u8]>>) -> Password {
    let (name, key) = (&reference.password_secret_ref.name, &reference.password_secret_ref.key);
    let field = "spec.keystores.pkcs12.passwordSecretRef";
    let Some(value) = value else {
        return Err(format!(
            "{field}: Secret {name:?} does not exist; create it, with the password under the key {key:?}"
        ));
    };
    let Some(value) = value else {
        return Err(format!("{field}: Secret {name:?} has no key {key:?}; put the password there"));
    };
    let text = String::from_utf8_lossy(value);
    match Protection::new(&text, Profile::default()) {
        Ok(_) => Ok(Zeroizing::new(text.into_owned())),
        Err(error) => Err(format!("{field}: key {key:?} of Secret {name:?}: {error}")),
    }
}

/// A pair of PKCS #12 files.
#[derive(Clone)]
pub struct Keystores {
    /// Key and chain.
    pub keystore: Vec<u8>,
    /// The trust bundle.
    pub truststore: Vec<u8>,
}

impl Keystores {
    /// Makes both files. The name of the identity is what the entry is called, in Java the alias.
    pub fn seal(
        identity: &ClientIdentity,
        material: &Material<'_>,
        password: &str,
        salt: Salt,
    ) -> Result<Self, String> {
        let stores = Stores::of(identity, material).ok_or("there is nothing to put into it")?;
        let say = |error: KeystoreError| error.to_string();
        let protection = Protection::new(password, stores.profile).map_err(say)?;
        Ok(Self {
            keystore: keystore::keystore(&stores.entry(), &protection, salt).map_err(say)?,
            truststore: keystore::truststore(&stores.bundle, &protection, salt).map_err(say)?,
        })
    }
}

/// What the two files hold.
struct Stores<'a> {
    key: &'a PrivateKey,
    chain: Vec<CertificateDer<'static>>,
    alias: String,
    bundle: Vec<CertificateDer<'static>>,
    profile: Profile,
}

impl<'a> Stores<'a> {
    fn of(identity: &ClientIdentity, material: &Material<'a>) -> Option<Self> {
        Some(Self {
            key: material.key?,
            chain: certificates(&material.chain).ok()?,
            alias: identity.name_any(),
            bundle: certificates(material.bundle.as_bytes()).ok()?,
            profile: match pkcs12(&identity.spec)?.profile {
                Pkcs12Profile::Modern => Profile::Modern,
                Pkcs12Profile::Legacy => Profile::Legacy,
            },
        })
    }

    fn entry(&self) -> KeyEntry<'_> {
        KeyEntry { key_pkcs8_der: self.key.pkcs8_der(), chain: &self.chain, alias: &self.alias }
    }
}

/// Are the key stores in this data those that would be made with the password?
pub fn is_sealed(
    identity: &ClientIdentity,
    data: &BTreeMap<String, ByteString>,
    material: &Material<'_>,
    password: &str,
) -> bool {
    let Some(stores) = Stores::of(identity, material) else { return false };
    let Ok(protection) = Protection::new(password, stores.profile) else { return false };
    let file = |key: &str| data.get(key).map(|file| file.0.as_slice()).unwrap_or_default();
    keystore::is_keystore(file(key::KEYSTORE), &stores.entry(), &protection)
        && keystore::is_truststore(file(key::TRUSTSTORE), &stores.bundle, &protection)
}

/// The PKCS #12 files that a spec asks for.
pub fn pkcs12(spec: &ClientIdentitySpec) -> Option<&Pkcs12Keystore> {
    spec.keystores.as_ref()?.pkcs12.as_ref().filter(|pkcs12| pkcs12.create)
}

/// What the data of a Secret is made from.
pub struct Material<'a> {
    /// The certificate and the CAs between it and the root, PEM.
    pub chain: Vec<u8>,
    /// Its key; none when the client keeps it.
    pub key: Option<&'a PrivateKey>,
    /// The trust bundle, PEM.
    pub bundle: &'a str,
    /// The key stores; none when they are not asked for or their password can't be had.
    pub keystores: Option<Keystores>,
}

/// The keys of a Secret that a spec may ask for beside the usual ones.
pub const ADDITIONAL: [&str; 4] = [key::COMBINED, key::DER, key::KEYSTORE, key::TRUSTSTORE];

/// The data of a Secret, as far as it is ours.
pub fn data(spec: &ClientIdentitySpec, material: &Material<'_>) -> BTreeMap<String, ByteString> {
    let mut data = BTreeMap::new();
    let mut put = |key: &str, value: &[u8]| {
        data.insert(key.to_owned(), ByteString(value.to_vec()));
    };
    put(key::CERTIFICATE, &material.chain);
    put(key::CA, material.bundle.as_bytes());
    if let Some(private_key) = material.key {
        let pem = private_key.to_pem(encoding(spec));
        put(key::KEY, pem.as_bytes());
        for AdditionalOutputFormat { type_ } in &spec.additional_output_formats {
            match type_ {
                OutputFormat::CombinedPem => {
                    let chain = certificates(&material.chain).unwrap_or_default();
                    put(key::COMBINED, keystore::combined_pem(&pem, &chain).as_bytes());
                }
                OutputFormat::Der => put(key::DER, &private_key.to_der(encoding(spec))),
            }
        }
    }
    if let Some(Keystores { keystore, truststore }) = &material.keystores {
        put(key::KEYSTORE, keystore);
        put(key::TRUSTSTORE, truststore);
    }
    data
}

fn encoding(spec: &ClientIdentitySpec) -> Encoding {
    match spec.private_key.as_ref().map(|key| key.encoding).unwrap_or_default() {
        KeyEncoding::Pkcs8 => Encoding::Pkcs8,
        KeyEncoding::Pkcs1 => Encoding::Traditional,
    }
}

/// Hash of what the data of a Secret is made from beside certificate, key and bundle; when it changes, the Secret
/// is written anew, with the same certificate. `complete` tells whether the key stores that were asked for
/// are there.
pub fn hash(spec: &ClientIdentitySpec, complete: bool) -> String {
    #[derive(Serialize)]
    struct Input<'a> {
        encoding: KeyEncoding,
        formats: Vec<OutputFormat>,
        pkcs12: Option<&'a Pkcs12Keystore>,
    }
    let mut formats: Vec<_> = spec.additional_output_formats.iter().map(|f| f.type_).collect();
    formats.sort_unstable();
    let input = Input {
        encoding: spec.private_key.as_ref().map(|key| key.encoding).unwrap_or_default(),
        formats,
        pkcs12: pkcs12(spec).filter(|_| complete),
    };
    let json = serde_json::to_vec(&input).expect("strings have a JSON form");
    sha256_hex(&json)[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::material::{Keystores as KeystoresSpec, PasswordReference};
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::issue::{IssueRequest, issue};
    use crate::pki::{CertificateAuthority, Serial, inspect};
    use crate::plan::allow::Policy;
    use crate::plan::identity::tests::identity;
    use crate::plan::identity::{AuthorityView, Decision, Signer, Trigger, World, decide};
    use crate::plan::ledger::CaKey;
    use crate::plan::secret::{
        Current, Published, Rendered, SecretView, present_chain, present_key, render_refresh,
        render_secret, view_metadata, view_secret,
    };
    use jiff::SignedDuration;
    use k8s_openapi::api::core::v1::Secret;
    use proptest::prelude::*;

    const NOW: &str = "2026-05-01T10:00:00Z";

    /// Does what the controller does, by the same functions.
    struct Desk {
        ca: CertificateAuthority,
        bundle: String,
        generation: u32,
        identity: ClientIdentity,
        secret: Option<Secret>,
        password: Password,
        revoked: bool,
    }

    impl Desk {
        fn new() -> Self {
            let ca = sample();
            let bundle = ca.certificate_pem();
            let (identity, password) = (identity(), Ok("correct horse".to_owned().into()));
            Self { ca, bundle, generation: 1, identity, secret: None, password, revoked: false }
        }

        fn view(&self) -> SecretView {
            let published = Published { trusted: &[&self.ca], bundle: &self.bundle };
            let password = pkcs12(&self.identity.spec).map(|_| &self.password);
            let secret = self.secret.as_ref();
            view_secret(&self.identity, secret, Some(published), password, instant(NOW))
        }

        fn decide(&self, secret: SecretView) -> Decision {
            let signer = Signer {
                key: &CaKey { generation: self.generation, ..CaKey::first("clients") },
                facts: self.ca.facts(),
                bundle_hash: &sha256_hex(self.bundle.as_bytes()),
                crl_base: None,
                active_since: instant(NOW),
                reissue_within: SignedDuration::ZERO,
                retiring: &[],
                policy: &Policy::compile(None).unwrap(),
            };
            decide(&World {
                identity: &self.identity,
                namespace: None,
                authority: AuthorityView::Ready(signer),
                secret,
                rival: None,
                hold: None,
                revoked: self.revoked,
                to_be_revoked: false,
                issued_at: None,
                dressed: true,
                last_revision: 0,
                now: instant(NOW),
            })
        }

        /// One pass; what was decided.
        fn pass(&mut self) -> Decision {
            let decision = self.decide(self.view());
            let spec = self.identity.spec.clone();
            let bundle = self.bundle.clone();
            match &decision {
                Decision::Issue(issuance) => {
                    let present = self.secret.take();
                    let made = match &issuance.key {
                        KeySource::Requested(_) => None,
                        KeySource::Fresh(key_type) => Some(PrivateKey::generate(*key_type)),
                        KeySource::Kept(key_type) => present
                            .as_ref()
                            .filter(|_| !self.revoked)
                            .and_then(present_key)
                            .filter(|key| key.key_type() == *key_type)
                            .or_else(|| Some(PrivateKey::generate(*key_type))),
                    };
                    let public_key_der = match &issuance.key {
                        KeySource::Requested(request) => request.public_key_der.clone(),
                        _ => made.as_ref().unwrap().public_key_der(),
                    };
                    let request = IssueRequest {
                        profile: &issuance.profile,
                        public_key_der: &public_key_der,
                        serial: Serial::random(),
                        not_before: issuance.not_before,
                        not_after: issuance.not_after,
                        crl_url: None,
                    };
                    let issued = issue(&self.ca, &request).unwrap();
                    let facts = inspect::inspect(&issued.der).unwrap();
                    let (keystores, lacks) = self.keystores(issued.pem().as_bytes(), made.as_ref());
                    let current = Current {
                        serial: facts.serial,
                        fingerprint: facts.fingerprint,
                        not_before: facts.not_before,
                        not_after: facts.not_after,
                        revision: issuance.revision,
                        spec_hash: issuance.spec_hash.clone(),
                        generation: self.generation,
                        bundle_hash: sha256_hex(bundle.as_bytes()),
                        data_hash: None,
                        public_key: None,
                        lacks,
                    };
                    let chain = self.ca.with_intermediates(&issued.der).into_bytes();
                    let key = made.as_ref();
                    let material = Material { chain, key, bundle: &bundle, keystores };
                    let rendered = Rendered { current: &current, material };
                    self.secret = Some(render_secret(&self.identity, present, &rendered));
                }
                Decision::Refresh(_) => {
                    let present = self.secret.take().unwrap();
                    let key = present_key(&present).filter(|_| spec.request.is_none());
                    let chain = present_chain(&present);
                    let (keystores, _) = self.keystores(&chain, key.as_ref());
                    let material =
                        Material { chain, key: key.as_ref(), bundle: &bundle, keystores };
                    self.secret = Some(render_refresh(&self.identity, present, &material));
                }
                _ => {}
            }
            decision
        }

        fn keystores(
            &self,
            chain: &[u8],
            key: Option<&PrivateKey>,
        ) -> (Option<Keystores>, Option<String>) {
            if pkcs12(&self.identity.spec).is_none() {
                return (None, None);
            }
            match &self.password {
                Err(why) => (None, Some(why.clone())),
                Ok(password) => {
                    let chain = chain.to_vec();
                    let material = Material { chain, key, bundle: &self.bundle, keystores: None };
                    (
                        Some(
                            Keystores::seal(&self.identity, &material, password, Salt::random())
                                .unwrap(),
                        ),
                        None,
                    )
                }
            }
        }

        fn data(&self) -> &BTreeMap<String, ByteString> {
            self.secret.as_ref().unwrap().data.as_ref().unwrap()
        }

        fn key(&self) -> PrivateKey {
            present_key(self.secret.as_ref().unwrap()).unwrap()
        }

        fn serial(&self) -> Serial {
            view_metadata(&self.secret.as_ref().unwrap().metadata).unwrap().serial
        }

        /// Nothing is left to do, by the data as by the metadata alone.
        fn assert_settled(&self) {
            let decision = self.decide(self.view());
            assert!(matches!(decision, Decision::Keep { .. }), "{decision:?}");
            let metadata = &self.secret.as_ref().unwrap().metadata;
            if self.password.is_ok() {
                let seen = SecretView::Good(view_metadata(metadata).unwrap());
                let decision = self.decide(seen);
                assert!(matches!(decision, Decision::Keep { .. }), "{decision:?}");
            }
        }
    }

    fn refusal(decision: Decision) -> (Reason, String) {
        match decision {
            Decision::Refuse { reason, message, .. } => (reason, message),
            other => panic!("{other:?}"),
        }
    }

    fn private_key(spec: &mut ClientIdentitySpec) -> &mut PrivateKeySpec {
        spec.private_key.get_or_insert_default()
    }

    fn ask_for_pkcs12(spec: &mut ClientIdentitySpec) -> &mut Pkcs12Keystore {
        let password_secret_ref = PasswordReference { name: "p12".into(), key: "password".into() };
        let profile = Pkcs12Profile::Modern;
        let keystores = KeystoresSpec {
            pkcs12: Some(Pkcs12Keystore { create: true, password_secret_ref, profile }),
        };
        spec.keystores.insert(keystores).pkcs12.as_mut().unwrap()
    }

    /// A CSR of a fresh key.
    fn csr() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["other.example.com".to_owned()]).unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn each_algorithm_and_size_gets_its_key_and_no_other_does() {
        use KeyAlgorithm::{Ecdsa, Ed25519, Rsa};
        for (algorithm, size, expected) in [
            (Ecdsa, None, Some(KeyType::EcdsaP256)),
            (Ecdsa, Some(256), Some(KeyType::EcdsaP256)),
            (Ecdsa, Some(384), Some(KeyType::EcdsaP384)),
            (Ecdsa, Some(521), Some(KeyType::EcdsaP521)),
            (Ecdsa, Some(2048), None),
            (Ed25519, None, Some(KeyType::Ed25519)),
            (Ed25519, Some(256), None),
            (Rsa, None, Some(KeyType::Rsa2048)),
            (Rsa, Some(3072), Some(KeyType::Rsa3072)),
            (Rsa, Some(4096), Some(KeyType::Rsa4096)),
            (Rsa, Some(1024), None),
        ] {
            let mut spec = identity().spec;
            *private_key(&mut spec) = PrivateKeySpec { algorithm, size, ..Default::default() };
            match (KeySource::of(&spec), expected) {
                (Ok(source), Some(expected)) => assert_eq!(source, KeySource::Fresh(expected)),
                (Err((Reason::InvalidSpec, message)), None) => {
                    assert!(message.starts_with("spec.privateKey.size: "), "{message}");
                }
                (other, _) => panic!("{algorithm:?} {size:?}: {other:?}"),
            }
        }
        let mut spec = identity().spec;
        private_key(&mut spec).algorithm = Ed25519;
        private_key(&mut spec).encoding = KeyEncoding::Pkcs1;
        assert!(KeySource::of(&spec).unwrap_err().1.starts_with("spec.privateKey.encoding: "));
    }

    #[test]
    fn another_type_of_key_is_a_new_certificate_and_another_encoding_is_not() {
        let mut desk = Desk::new();
        desk.pass();
        let (serial, public_key) = (desk.serial(), desk.key().public_key_der());
        private_key(&mut desk.identity.spec).encoding = KeyEncoding::Pkcs1;
        let seen = view_metadata(&desk.secret.as_ref().unwrap().metadata).unwrap();
        assert!(matches!(desk.decide(SecretView::Good(seen)), Decision::Refresh(_)));
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        assert!(desk.data()["tls.key"].0.starts_with(b"-----BEGIN EC PRIVATE KEY-----"));
        assert_eq!((desk.serial(), desk.key().public_key_der()), (serial, public_key));
        desk.assert_settled();

        private_key(&mut desk.identity.spec).size = Some(384);
        let Decision::Issue(issuance) = desk.pass() else { panic!("not issued") };
        assert_eq!(issuance.trigger, Trigger::Changed);
        assert_eq!(desk.key().key_type(), KeyType::EcdsaP384);
        assert_ne!(desk.serial(), serial);
        desk.assert_settled();
    }

    #[test]
    fn a_kept_key_stays_while_it_is_of_its_type_and_never_repeats_a_serial() {
        let mut desk = Desk::new();
        private_key(&mut desk.identity.spec).rotation_policy = RotationPolicy::Never;
        desk.pass();
        let public_key = desk.key().public_key_der();
        let mut serials = vec![desk.serial()];
        for number in 8..16 {
            desk.identity.spec.common_name = Some(format!("laptop-{number}"));
            assert!(matches!(desk.pass(), Decision::Issue(_)));
            assert_eq!(desk.key().public_key_der(), public_key);
            assert!(!serials.contains(&desk.serial()));
            serials.push(desk.serial());
        }
        // Over a CA that takes another's place, and a damaged certificate.
        desk.ca = sample();
        desk.bundle = desk.ca.certificate_pem();
        desk.generation = 2;
        assert!(matches!(desk.pass(), Decision::Issue(_)));
        desk.secret.as_mut().unwrap().data.as_mut().unwrap().remove("tls.crt");
        let Decision::Issue(issuance) = desk.pass() else { panic!("not issued") };
        assert_eq!(issuance.trigger, Trigger::Repair);
        assert_eq!(desk.key().public_key_der(), public_key);

        private_key(&mut desk.identity.spec).algorithm = KeyAlgorithm::Ed25519;
        desk.pass();
        assert_eq!(desk.key().key_type(), KeyType::Ed25519);
        // Whoever revoked it may have lost the key.
        let public_key = desk.key().public_key_der();
        desk.revoked = true;
        desk.pass();
        assert_ne!(desk.key().public_key_der(), public_key);
        // By default each certificate has its own.
        desk.revoked = false;
        let public_key = desk.key().public_key_der();
        private_key(&mut desk.identity.spec).rotation_policy = RotationPolicy::Always;
        desk.assert_settled();
        desk.identity.spec.common_name = Some("laptop-7".into());
        desk.pass();
        assert_ne!(desk.key().public_key_der(), public_key);
    }

    #[test]
    fn a_request_gives_its_key_and_nothing_else() {
        let mut desk = Desk::new();
        desk.identity.spec.request = Some(csr());
        assert!(matches!(desk.pass(), Decision::Issue(_)));
        let secret = desk.secret.clone().unwrap();
        assert_eq!(secret.type_.as_deref(), Some("Opaque"));
        assert_eq!(desk.data().keys().collect::<Vec<_>>(), ["ca.crt", "tls.crt"]);
        let chain = inspect::certificates(&desk.data()["tls.crt"].0).unwrap();
        let facts = inspect::inspect(&chain[0]).unwrap();
        let asked = csr::read(desk.identity.spec.request.as_ref().unwrap()).unwrap();
        assert_eq!(facts.public_key_der, asked.public_key_der);
        assert_eq!(facts.alternative_names, 1, "that of the spec, not that of the CSR");
        desk.assert_settled();

        let serial = desk.serial();
        desk.identity.spec.request = Some(csr());
        let Decision::Issue(issuance) = desk.pass() else { panic!("not issued") };
        assert_eq!(issuance.trigger, Trigger::Changed);
        assert_ne!(desk.serial(), serial);
        desk.assert_settled();

        // The same key would be certified again.
        desk.revoked = true;
        let (reason, message) = refusal(desk.pass());
        assert_eq!(reason, Reason::Revoked);
        assert!(message.contains("CSR of a new key"), "{message}");
        desk.identity.spec.request = Some(csr());
        assert!(matches!(desk.pass(), Decision::Issue(_)));
    }

    #[test]
    fn a_bad_request_is_told_and_the_present_certificate_stays() {
        let mut desk = Desk::new();
        desk.identity.spec.request = Some(csr());
        desk.pass();
        let before = desk.secret.clone();
        desk.identity.spec.request = Some("garbage".into());
        let (reason, message) = refusal(desk.pass());
        assert_eq!(reason, Reason::InvalidRequest);
        assert!(message.starts_with("spec.request: "), "{message}");
        assert_eq!(desk.secret, before);

        for change in [
            |spec: &mut ClientIdentitySpec| _ = ask_for_pkcs12(spec),
            |spec: &mut ClientIdentitySpec| _ = private_key(spec),
            |spec: &mut ClientIdentitySpec| {
                let type_ = OutputFormat::Der;
                spec.additional_output_formats = vec![AdditionalOutputFormat { type_ }];
            },
        ] {
            let mut desk = Desk::new();
            desk.identity.spec.request = Some(csr());
            change(&mut desk.identity.spec);
            let (reason, message) = refusal(desk.pass());
            assert_eq!(reason, Reason::InvalidSpec);
            assert!(message.starts_with("spec.request leaves the key"), "{message}");
        }
    }

    #[test]
    fn a_type_that_cannot_be_changed_is_told_both_ways() {
        let mut desk = Desk::new();
        desk.pass();
        desk.identity.spec.request = Some(csr());
        // By its metadata it is a new certificate; the Secret itself shows that it is not to be had.
        let seen = view_metadata(&desk.secret.as_ref().unwrap().metadata).unwrap();
        assert!(matches!(desk.decide(SecretView::Good(seen)), Decision::Issue(_)));
        let (reason, message) = refusal(desk.pass());
        assert_eq!(reason, Reason::SecretTypeConflict);
        assert!(message.contains("delete the Secret") && message.contains("Opaque"), "{message}");
        desk.secret = None;
        assert!(matches!(desk.pass(), Decision::Issue(_)));
        desk.identity.spec.request = None;
        assert_eq!(refusal(desk.pass()).0, Reason::SecretTypeConflict);
    }

    #[test]
    fn forms_come_and_go_with_the_spec_and_those_of_others_stay() {
        let mut desk = Desk::new();
        desk.pass();
        let serial = desk.serial();
        let data = desk.secret.as_mut().unwrap().data.as_mut().unwrap();
        data.insert("key.der".into(), ByteString(b"of another hand".to_vec()));
        desk.assert_settled();

        let format = |type_| AdditionalOutputFormat { type_ };
        desk.identity.spec.additional_output_formats = vec![format(OutputFormat::CombinedPem)];
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        let parts = [&desk.data()["tls.key"].0[..], &desk.data()["tls.crt"].0].concat();
        assert_eq!(desk.data()["tls-combined.pem"].0, parts);
        assert_eq!(desk.data()["key.der"].0, b"of another hand");
        desk.assert_settled();

        desk.identity.spec.additional_output_formats =
            vec![format(OutputFormat::Der), format(OutputFormat::CombinedPem)];
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        let read = PrivateKey::from_pkcs8_der(&desk.data()["key.der"].0).unwrap();
        assert_eq!(read.public_key_der(), desk.key().public_key_der());
        desk.assert_settled();
        desk.identity.spec.additional_output_formats.reverse();
        desk.assert_settled();

        desk.identity.spec.additional_output_formats.clear();
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        assert_eq!(desk.data().keys().collect::<Vec<_>>(), ["ca.crt", "tls.crt", "tls.key"]);
        desk.assert_settled();
        assert_eq!(desk.serial(), serial, "no new certificate for all that");
    }

    #[test]
    fn key_stores_open_with_their_password_and_wait_for_it() {
        let mut desk = Desk::new();
        ask_for_pkcs12(&mut desk.identity.spec);
        desk.password = Err("Secret \"p12\" does not exist".into());
        assert!(matches!(desk.pass(), Decision::Issue(_)));
        let serial = desk.serial();
        assert!(!desk.data().contains_key("keystore.p12"), "the certificate does not wait");
        desk.assert_settled();
        let Decision::Keep { current, .. } = desk.pass() else { panic!("not kept") };
        assert_eq!(current.lacks.as_deref(), Some("Secret \"p12\" does not exist"));
        let metadata = &desk.secret.as_ref().unwrap().metadata;
        assert!(!crate::plan::secret::is_complete(&desk.identity, metadata));

        desk.password = Ok("correct horse".to_owned().into());
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        let first = desk.data()["keystore.p12"].clone();
        desk.assert_settled();
        let Decision::Keep { current, .. } = desk.pass() else { panic!("not kept") };
        assert_eq!(current.lacks, None);

        // Another password, another profile, a file that somebody damaged or removed.
        desk.password = Ok("battery staple".to_owned().into());
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        assert_ne!(desk.data()["keystore.p12"], first);
        desk.assert_settled();
        ask_for_pkcs12(&mut desk.identity.spec).profile = Pkcs12Profile::Legacy;
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        desk.assert_settled();
        let data = desk.secret.as_mut().unwrap().data.as_mut().unwrap();
        data.insert("truststore.p12".into(), first);
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        desk.secret.as_mut().unwrap().data.as_mut().unwrap().remove("keystore.p12");
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        desk.assert_settled();
        assert_eq!(desk.serial(), serial);

        // Without its password what stands stays until there is a new certificate; an old one's store would not.
        desk.password = Err("gone".into());
        let Decision::Keep { current, .. } = desk.pass() else { panic!("not kept") };
        assert_eq!(current.lacks, None);
        desk.identity.spec.common_name = Some("laptop-8".into());
        assert!(matches!(desk.pass(), Decision::Issue(_)));
        assert!(!desk.data().contains_key("keystore.p12"));
        desk.assert_settled();

        desk.password = Ok("correct horse".to_owned().into());
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        desk.identity.spec.keystores.as_mut().unwrap().pkcs12.as_mut().unwrap().create = false;
        assert!(matches!(desk.pass(), Decision::Refresh(_)));
        assert!(!desk.data().contains_key("keystore.p12"));
        desk.assert_settled();
    }

    #[test]
    fn passwords_that_are_none_are_told_with_object_and_key() {
        let mut spec = identity().spec;
        let pkcs12 = ask_for_pkcs12(&mut spec);
        for (value, words) in [
            (None, "Secret \"p12\" does not exist"),
            (Some(None), "has no key \"password\""),
            (Some(Some(&b""[..])), "printable ASCII"),
            (Some(Some(b"hidden\n")), "no line end"),
            (Some(Some(b"hidden\xff")), "printable ASCII"),
        ] {
            let message = password(pkcs12, value).unwrap_err();
            assert!(message.contains(words), "{message}");
            assert!(message.starts_with("spec.keystores.pkcs12.passwordSecretRef: "), "{message}");
            assert!(!message.contains("hidden"), "{message}");
        }
        assert_eq!(**password(pkcs12, Some(Some(b"pass word"))).as_ref().unwrap(), "pass word");
    }

    fn specs() -> impl Strategy<Value = ClientIdentitySpec> {
        let key = (
            prop_oneof![
                Just((KeyAlgorithm::Ecdsa, None)),
                Just((KeyAlgorithm::Ecdsa, Some(384))),
                Just((KeyAlgorithm::Ecdsa, Some(521))),
                Just((KeyAlgorithm::Ed25519, None)),
            ],
            any::<bool>(),
            any::<bool>(),
        );
        let key = key.prop_map(|((algorithm, size), traditional, kept)| PrivateKeySpec {
            algorithm,
            size,
            encoding: if traditional && algorithm != KeyAlgorithm::Ed25519 {
                KeyEncoding::Pkcs1
            } else {
                KeyEncoding::Pkcs8
            },
            rotation_policy: if kept { RotationPolicy::Never } else { RotationPolicy::Always },
        });
        let forms = proptest::sample::subsequence(
            vec![OutputFormat::CombinedPem, OutputFormat::Der],
            0..=2,
        );
        let names = proptest::collection::vec("[a-z]{1,9}@[a-z]{1,9}", 0..3);
        let units = proptest::collection::vec("[a-zA-Z ]{1,64}", 0..8);
        let made = (proptest::option::of(key), forms, any::<bool>(), names.clone(), units);
        let made = made.prop_map(|(key, forms, stores, names, units)| {
            let mut spec = identity().spec;
            spec.private_key = key;
            let forms = forms.into_iter().map(|type_| AdditionalOutputFormat { type_ });
            spec.additional_output_formats = forms.collect();
            if stores {
                ask_for_pkcs12(&mut spec);
            }
            spec.user_principal_names = names;
            spec.subject.get_or_insert_default().organizational_units = units;
            spec
        });
        let requested = names.prop_map(|names| {
            let mut spec = identity().spec;
            spec.request = Some(csr());
            spec.email_addresses = names;
            spec
        });
        prop_oneof![4 => made, 1 => requested]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_was_written_is_left_alone_whatever_the_spec_changes_to(
            specs in proptest::collection::vec((specs(), any::<bool>()), 1..4),
        ) {
            let mut desk = Desk::new();
            for (spec, locked) in specs {
                desk.identity.spec = spec;
                desk.password = if locked { Err("none".into()) } else { Ok("x y".to_owned().into()) };
                if matches!(desk.view(), SecretView::OtherType { .. }) {
                    desk.secret = None;
                }
                let decision = desk.pass();
                let refused = matches!(decision, Decision::Refuse { .. } | Decision::Wait);
                prop_assert!(!refused, "{:?}", decision);
                desk.assert_settled();
            }
        }
    }
}
