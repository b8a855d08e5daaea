//! Keystores and truststores (PKCS #12, RFC 7292), and key and chain in one PEM file.
//!
//! A store is a pure function of what it holds, its password and one random salt, from which the
//! salts and the IV within follow. So whether a store that is there is still the right one is found
//! by making it again with its salt: nothing foreign is ever decrypted, and whoever can write a store
//! can't make us work longer than for one of ours. Nor does the plain key stay in a buffer that nobody
//! wipes.

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::der::{self, INTEGER, OCTET_STRING, OID, SEQUENCE};
use super::{pem_block, sha256_hex};

/// How a store is encrypted and authenticated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// PBES2 with PBKDF2-HMAC-SHA256 and AES-256-CBC, MAC by HMAC-SHA256, 10,000 iterations each: what
    /// OpenSSL 3, Java 8u301, Windows Server 2019 and their successors write and read.
    #[default]
    Modern,
    /// Triple DES keyed by SHA-1, MAC by HMAC-SHA1, 2,048 iterations each, as OpenSSL 1 wrote it: for
    /// devices that read nothing else. It protects little: treat the file like the bare key.
    Legacy,
}

impl Profile {
    /// Java's and OpenSSL's own defaults. The password lies beside the store in the cluster, so the
    /// iterations only matter for copies that left it; more would delay each issuance.
    const fn iterations(self) -> u32 {
        match self {
            Self::Modern => 10_000,
            Self::Legacy => 2048,
        }
    }
}

/// Password and profile of a store.
#[derive(Clone, Copy)]
pub struct Protection<'a> {
    password: &'a str,
    profile: Profile,
}

/// Never shows the password.
impl fmt::Debug for Protection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { password: _, profile } = self;
        write!(f, "Protection({profile:?}, <redacted>)")
    }
}

/// The longest password.
const MAX_PASSWORD: usize = 256;

impl<'a> Protection<'a> {
    /// Takes passwords that every reader takes.
    pub fn new(password: &'a str, profile: Profile) -> Result<Self, KeystoreError> {
        let printable = password.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if password.is_empty() || password.len() > MAX_PASSWORD || !printable {
            return Err(KeystoreError::Password);
        }
        Ok(Self { password, profile })
    }
}

/// Why there is no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeystoreError {
    /// Java takes printable ASCII only; a line end is most often there by mistake.
    #[error(
        "the password of a keystore must be 1 to {MAX_PASSWORD} printable ASCII characters, with no line end"
    )]
    Password,
    /// friendlyName is a BMPString.
    #[error("the alias of a keystore entry must not be empty, nor hold characters beyond U+FFFF")]
    Alias,
    /// Nothing to put in.
    #[error("a keystore or truststore needs at least one certificate")]
    NoCertificates,
}

/// The random part of a store, which can be read off it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt([u8; 16]);

impl Salt {
    /// A fresh one from the operating system's random source.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has a random source");
        Self(bytes)
    }

    /// That of a store, which may be anything.
    fn of(store: &[u8]) -> Option<Self> {
        // PFX ::= SEQUENCE { version, authSafe, macData SEQUENCE { mac, macSalt, iterations } }
        let [_, _, mac_data] = der::parts(store, SEQUENCE)?;
        let [_, salt, _] = der::parts(mac_data, SEQUENCE)?;
        der::read(salt, OCTET_STRING)?.try_into().map(Self).ok()
    }

    /// A value of its own for each purpose.
    fn derive(&self, purpose: &str) -> [u8; 16] {
        let digest = digest::digest(&SHA256, &[&self.0, purpose.as_bytes()].concat());
        digest.as_ref()[..16].try_into().expect("SHA-256 has 32 octets")
    }
}

/// A private key with its chain.
#[derive(Clone, Copy)]
pub struct KeyEntry<'a> {
    /// The key as PKCS #8, DER.
    pub key_pkcs8_der: &'a [u8],
    /// The certificate of the key, then that of each CA above it.
    pub chain: &'a [CertificateDer<'a>],
    /// What the entry is called: `friendlyName`, in Java the alias.
    pub alias: &'a str,
}

/// Never shows the key.
impl fmt::Debug for KeyEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key_pkcs8_der: _, chain, alias } = self;
        write!(f, "KeyEntry({alias:?}, {} certificates, <redacted>)", chain.len())
    }
}

/// Makes a store with one private key and its chain, DER.
pub fn keystore(
    entry: &KeyEntry<'_>,
    protection: &Protection<'_>,
    salt: Salt,
) -> Result<Vec<u8>, KeystoreError> {
    let (leaf, above) = entry.chain.split_first().ok_or(KeystoreError::NoCertificates)?;
    // What ties key and leaf together; any octets would do.
    let key_id = &digest::digest(&SHA256, leaf).as_ref()[..20].to_vec();
    let attributes = [
        attribute(FRIENDLY_NAME, &der::tlv(BMP_STRING, &bmp(entry.alias)?)),
        attribute(LOCAL_KEY_ID, &der::tlv(OCTET_STRING, key_id)),
    ];
    let mut certificates = certificate_bag(leaf, &attributes);
    for certificate in above {
        certificates.extend(certificate_bag(certificate, &[]));
    }
    let cipher = Cipher { protection, salt };
    let (algorithm, encrypted) = cipher.encrypt("key", entry.key_pkcs8_der);
    let key = sequence(&[&algorithm, &der::tlv(OCTET_STRING, &encrypted)]);
    let key_bag = bag(PKCS8_SHROUDED_KEY_BAG, &key, &attributes);
    let key_safe = content_info(DATA, &der::tlv(OCTET_STRING, &der::tlv(SEQUENCE, &key_bag)));
    Ok(pfx(&[&encrypted_safe(&cipher, &certificates), &key_safe], &cipher))
}

/// Makes a store with certificates to trust, DER. Java lists them as trusted, other readers as
/// certificates without a key. The alias of each is `ca-` and the start of its SHA-256 fingerprint.
pub fn truststore(
    bundle: &[CertificateDer<'_>],
    protection: &Protection<'_>,
    salt: Salt,
) -> Result<Vec<u8>, KeystoreError> {
    if bundle.is_empty() {
        return Err(KeystoreError::NoCertificates);
    }
    let mut certificates = Vec::new();
    for (position, certificate) in bundle.iter().enumerate() {
        // One alias can't stand there twice.
        if bundle[..position].contains(certificate) {
            continue;
        }
        let alias = format!("ca-{}", &sha256_hex(certificate)[..16]);
        let attributes = [
            attribute(FRIENDLY_NAME, &der::tlv(BMP_STRING, &bmp(&alias)?)),
            attribute(TRUSTED_KEY_USAGE, &der::tlv(OID, ANY_EXTENDED_KEY_USAGE)),
        ];
        certificates.extend(certificate_bag(certificate, &attributes));
    }
    let cipher = Cipher { protection, salt };
    Ok(pfx(&[&encrypted_safe(&cipher, &certificates)], &cipher))
}

/// Do these bytes hold exactly this entry, under this password and profile?
pub fn is_keystore(store: &[u8], entry: &KeyEntry<'_>, protection: &Protection<'_>) -> bool {
    let again = Salt::of(store).map(|salt| keystore(entry, protection, salt));
    again.is_some_and(|again| again.is_ok_and(|again| again == store))
}

/// Do these bytes hold exactly these certificates, under this password and profile?
pub fn is_truststore(
    store: &[u8],
    bundle: &[CertificateDer<'_>],
    protection: &Protection<'_>,
) -> bool {
    let again = Salt::of(store).map(|salt| truststore(bundle, protection, salt));
    again.is_some_and(|again| again.is_ok_and(|again| again == store))
}

/// Key, leaf and intermediates in one PEM file, as HAProxy (`crt`) and MongoDB
/// (`certificateKeyFile`) want it; wiped when dropped. `key_pem` is a whole block.
pub fn combined_pem(key_pem: &str, chain: &[CertificateDer<'_>]) -> Zeroizing<String> {
    let certificates: String = chain.iter().map(|der| pem_block("CERTIFICATE", der)).collect();
    // Allocated once: growing would leave a copy of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(key_pem.len() + 1 + certificates.len()));
    text.push_str(key_pem);
    if !key_pem.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&certificates);
    text
}

const SET: u8 = 0x31;
const BMP_STRING: u8 = 0x1e;
const NULL: &[u8] = &[0x05, 0x00];

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x06];
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];
const LOCAL_KEY_ID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x15];
const X509_CERTIFICATE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01];
const PKCS8_SHROUDED_KEY_BAG: &[u8] =
    &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x02];
const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03];
/// Oracle's 2.16.840.1.113894.746875.1.1: without it Java does not trust a certificate.
const TRUSTED_KEY_USAGE: &[u8] =
    &[0x60, 0x86, 0x48, 0x01, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 0x01, 0x01];
const ANY_EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

const PBE_WITH_SHA1_AND_3DES: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01, 0x03];
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const HMAC_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09];
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
const ID_SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
const ID_SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der::tlv(SEQUENCE, &parts.concat())
}

fn oid(oid: &[u8]) -> Vec<u8> {
    der::tlv(OID, oid)
}

/// A BMPString's content: UTF-16, which must be UCS-2.
fn bmp(text: &str) -> Result<Vec<u8>, KeystoreError> {
    if text.is_empty() || text.chars().any(|c| u32::from(c) > 0xffff) {
        return Err(KeystoreError::Alias);
    }
    Ok(text.encode_utf16().flat_map(u16::to_be_bytes).collect())
}

fn attribute(kind: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[&oid(kind), &der::tlv(SET, value)])
}

/// SafeBag ::= SEQUENCE { bagId, bagValue [0], bagAttributes SET OF PKCS12Attribute OPTIONAL }
fn bag(kind: &[u8], value: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut attributes = attributes.to_vec();
    attributes.sort(); // X.690 section 11.6
    let attributes = match attributes.concat() {
        none if none.is_empty() => none,
        some => der::tlv(SET, &some),
    };
    sequence(&[&oid(kind), &der::tlv(0xa0, value), &attributes])
}

fn certificate_bag(certificate: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let value = der::tlv(0xa0, &der::tlv(OCTET_STRING, certificate));
    bag(CERT_BAG, &sequence(&[&oid(X509_CERTIFICATE), &value]), attributes)
}

fn content_info(kind: &[u8], content: &[u8]) -> Vec<u8> {
    sequence(&[&oid(kind), &der::tlv(0xa0, content)])
}

/// ContentInfo of EncryptedData ::= SEQUENCE { version, SEQUENCE { type, algorithm, content [0] } }
fn encrypted_safe(cipher: &Cipher<'_>, bags: &[u8]) -> Vec<u8> {
    let (algorithm, encrypted) = cipher.encrypt("certificates", &der::tlv(SEQUENCE, bags));
    let info = sequence(&[&oid(DATA), &algorithm, &der::tlv(0x80, &encrypted)]);
    content_info(ENCRYPTED_DATA, &sequence(&[&[INTEGER, 1, 0], &info]))
}

/// PFX ::= SEQUENCE { version, authSafe, macData }
fn pfx(safes: &[&[u8]], cipher: &Cipher<'_>) -> Vec<u8> {
    let content = sequence(safes);
    let mac = cipher.mac_data(&content);
    let auth_safe = content_info(DATA, &der::tlv(OCTET_STRING, &content));
    sequence(&[&[INTEGER, 1, 3], &auth_safe, &mac])
}

struct Cipher<'a> {
    protection: &'a Protection<'a>,
    salt: Salt,
}

impl Cipher<'_> {
    fn iterations(&self) -> Vec<u8> {
        let mut out = Vec::new();
        der::unsigned(&mut out, &self.protection.profile.iterations().to_be_bytes());
        out
    }

    /// Encrypts; the AlgorithmIdentifier and the ciphertext.
    fn encrypt(&self, purpose: &str, plain: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let salt = self.salt.derive(purpose);
        let iterations = self.iterations();
        match self.protection.profile {
            Profile::Modern => {
                let iv = self.salt.derive(&format!("{purpose} iv"));
                let prf = sequence(&[&oid(HMAC_WITH_SHA256), NULL]);
                let kdf = sequence(&[&der::tlv(OCTET_STRING, &salt), &iterations, &prf]);
                let parameters = sequence(&[
                    &sequence(&[&oid(PBKDF2), &kdf]),
                    &sequence(&[&oid(AES_256_CBC), &der::tlv(OCTET_STRING, &iv)]),
                ]);
                (sequence(&[&oid(PBES2), &parameters]), self.aes(&salt, iv, plain))
            }
            Profile::Legacy => {
                let salt = &salt[..8]; // some old readers take no more
                let parameters = sequence(&[&der::tlv(OCTET_STRING, salt), &iterations]);
                let algorithm = sequence(&[&oid(PBE_WITH_SHA1_AND_3DES), &parameters]);
                (algorithm, self.triple_des(salt, plain))
            }
        }
    }

    fn aes(&self, salt: &[u8], iv: [u8; 16], plain: &[u8]) -> Vec<u8> {
        let iterations = NonZeroU32::new(self.protection.profile.iterations()).expect("not zero");
        let password = self.protection.password.as_bytes();
        let mut key = Zeroizing::new([0; 32]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut *key);
        // Room for the padding, so that the plain text is not copied, and is overwritten.
        let mut buffer = Vec::with_capacity(plain.len() + 16);
        buffer.extend_from_slice(plain);
        UnboundCipherKey::new(&AES_256, &*key)
            .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
            .and_then(|cipher| {
                let context = EncryptionContext::Iv128(FixedLength::from(iv));
                cipher.less_safe_encrypt(&mut buffer, context)
            })
            .expect("key and IV have the lengths of AES-256-CBC");
        buffer
    }

    fn triple_des(&self, salt: &[u8], plain: &[u8]) -> Vec<u8> {
        let key = self.derive(Purpose::Key, salt, 24);
        let iv = self.derive(Purpose::Iv, salt, 8);
        let mut buffer = vec![0; plain.len() + 8 - plain.len() % 8];
        buffer[..plain.len()].copy_from_slice(plain);
        cbc::Encryptor::<des::TdesEde3>::new_from_slices(&key, &iv)
            .expect("key and IV have the lengths of 3DES")
            .encrypt_padded::<Pkcs7>(&mut buffer, plain.len())
            .expect("there is room for the padding");
        buffer
    }

    /// MacData ::= SEQUENCE { SEQUENCE { algorithm, digest }, macSalt, iterations }
    fn mac_data(&self, content: &[u8]) -> Vec<u8> {
        let (hash, algorithm, length) = match self.protection.profile {
            Profile::Modern => (ID_SHA256, hmac::HMAC_SHA256, 32),
            Profile::Legacy => (ID_SHA1, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, 20),
        };
        let key = self.derive(Purpose::Mac, &self.salt.0, length);
        let tag = hmac::sign(&hmac::Key::new(algorithm, &key), content);
        let digest = der::tlv(OCTET_STRING, tag.as_ref());
        let mac = sequence(&[&sequence(&[&oid(hash), NULL]), &digest]);
        sequence(&[&mac, &der::tlv(OCTET_STRING, &self.salt.0), &self.iterations()])
    }

    /// Octets from the password, as RFC 7292 appendix B has it. The names are the RFC's.
    fn derive(&self, purpose: Purpose, salt: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
        const V: usize = 64; // the block length of SHA-1 and of SHA-256
        let hash = match self.protection.profile {
            Profile::Modern => &SHA256,
            Profile::Legacy => &SHA1_FOR_LEGACY_USE_ONLY,
        };
        // A BMPString that ends in a zero character (RFC 7292 appendix B.1); it is ASCII.
        let password = self.protection.password.bytes().chain([0]);
        let password: Zeroizing<Vec<u8>> =
            Zeroizing::new(password.flat_map(|octet| [0, octet]).collect());
        let fill = |bytes: &[u8]| -> Zeroizing<Vec<u8>> {
            let whole = bytes.len().div_ceil(V) * V;
            Zeroizing::new(bytes.iter().copied().cycle().take(whole).collect())
        };
        let (salt, password) = (fill(salt), fill(&password));
        let mut i = Zeroizing::new([&salt[..], &password].concat());
        let mut out = Zeroizing::new(Vec::with_capacity(length + hash.output_len()));
        while out.len() < length {
            let mut a =
                digest::digest(hash, &Zeroizing::new([&[purpose as u8; V], &i[..]].concat()));
            for _ in 1..self.protection.profile.iterations() {
                a = digest::digest(hash, a.as_ref());
            }
            out.extend_from_slice(a.as_ref());
            let b = fill(a.as_ref());
            // I_j = (I_j + B + 1) mod 2^(8 V)
            for block in i.chunks_exact_mut(V) {
                let mut carry = 1;
                for (octet, add) in block.iter_mut().zip(b.iter()).rev() {
                    let sum = u16::from(*octet) + u16::from(*add) + carry;
                    *octet = sum as u8;
                    carry = sum >> 8;
                }
            }
        }
        out.truncate(length);
        out
    }
}

/// The diversifier ID (RFC 7292 appendix B.3).
#[derive(Clone, Copy)]
enum Purpose {
    Key = 1,
    Iv = 2,
    Mac = 3,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::sample;
    use crate::pki::issue::tests::sample_leaf;
    use crate::pki::key::Encoding;
    use crate::pki::{KeyType, PrivateKey};
    use proptest::prelude::*;

    const PROFILES: [Profile; 2] = [Profile::Modern, Profile::Legacy];

    fn chain() -> Vec<CertificateDer<'static>> {
        let authority = sample();
        vec![sample_leaf(&authority), authority.certificate().clone()]
    }

    #[test]
    fn a_store_is_known_again_and_none_with_anything_else_in_it() {
        let (key, other) =
            (PrivateKey::generate(KeyType::EcdsaP256), PrivateKey::generate(KeyType::Ed25519));
        let (chain, foreign) = (chain(), self::chain());
        for profile in PROFILES {
            let protection = Protection::new("changeit", profile).unwrap();
            let entry =
                KeyEntry { key_pkcs8_der: key.pkcs8_der(), chain: &chain, alias: "laptop-7" };
            let store = keystore(&entry, &protection, Salt::random()).unwrap();
            assert!(is_keystore(&store, &entry, &protection));
            assert_ne!(store, keystore(&entry, &protection, Salt::random()).unwrap());

            for wrong in [
                KeyEntry { key_pkcs8_der: other.pkcs8_der(), ..entry },
                KeyEntry { chain: &foreign, ..entry },
                KeyEntry { chain: &chain[..1], ..entry },
                KeyEntry { alias: "laptop-8", ..entry },
            ] {
                assert!(!is_keystore(&store, &wrong, &protection), "{wrong:?}");
            }
            let profiles = PROFILES.into_iter().filter(|other| *other != profile);
            for (password, profile) in
                profiles.map(|p| ("changeit", p)).chain([("changeme", profile)])
            {
                let wrong = Protection::new(password, profile).unwrap();
                assert!(!is_keystore(&store, &entry, &wrong), "{wrong:?}");
            }
            for at in (0..store.len()).step_by(7) {
                let mut changed = store.clone();
                changed[at] ^= 1;
                assert!(!is_keystore(&changed, &entry, &protection), "{at}");
            }
        }
    }

    #[test]
    fn a_truststore_is_known_again() {
        let bundle = chain();
        for profile in PROFILES {
            let protection = Protection::new("changeit", profile).unwrap();
            let store = truststore(&bundle, &protection, Salt::random()).unwrap();
            assert!(is_truststore(&store, &bundle, &protection));
            assert!(!is_truststore(&store, &bundle[1..], &protection));
            let twice = [&bundle[..], &bundle].concat();
            assert!(is_truststore(&store, &twice, &protection), "each stands there once");
        }
    }

    #[test]
    fn what_not_every_reader_takes_is_refused() {
        let long = "x".repeat(257);
        for password in ["", "secret\n", "geheim-ä", "a\tb", &long] {
            let refused = Protection::new(password, Profile::Modern);
            assert_eq!(refused.unwrap_err(), KeystoreError::Password);
        }
        let protection = Protection::new("changeit", Profile::Modern).unwrap();
        assert_eq!(format!("{protection:?}"), "Protection(Modern, <redacted>)");
        let chain = chain();
        let key = PrivateKey::generate(KeyType::EcdsaP256);
        let entry = KeyEntry { key_pkcs8_der: key.pkcs8_der(), chain: &chain, alias: "" };
        for (entry, error) in [
            (entry, KeystoreError::Alias),
            (KeyEntry { alias: "🦀", ..entry }, KeystoreError::Alias),
            (KeyEntry { chain: &[], alias: "a", ..entry }, KeystoreError::NoCertificates),
        ] {
            assert_eq!(keystore(&entry, &protection, Salt::random()), Err(error));
        }
        let none = truststore(&[], &protection, Salt::random());
        assert_eq!(none, Err(KeystoreError::NoCertificates));
    }

    #[test]
    fn a_combined_file_has_the_key_the_leaf_and_what_is_above() {
        let (key, chain) = (PrivateKey::generate(KeyType::EcdsaP256), chain());
        let key_pem = key.to_pem(Encoding::Pkcs8);
        for key_pem in [key_pem.as_str(), key_pem.trim_end()] {
            let blocks = pem::parse_many(&*combined_pem(key_pem, &chain)).unwrap();
            let contents: Vec<&[u8]> = blocks.iter().map(|block| block.contents()).collect();
            assert_eq!(contents, [key.pkcs8_der(), &chain[0], &chain[1]]);
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let protection = Protection::new("changeit", Profile::Legacy).unwrap();
            prop_assert!(!is_truststore(&bytes, &[CertificateDer::from(vec![0])], &protection));
        }
    }
}
