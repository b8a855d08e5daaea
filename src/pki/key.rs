//! Private keys. They can be used and stored, never printed.

use std::fmt;

use rcgen::{KeyPair, PublicKeyData, RsaKeySize};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::{Zeroize, Zeroizing};

use super::der::{self, INTEGER, OCTET_STRING, OID, SEQUENCE, Values};
use super::public_key::KeyType;

/// Something that signs as a CA: a key at hand, or one in a token that never leaves it.
pub trait Signer: fmt::Debug + Send + Sync {
    /// The type of its key; the signature algorithm follows from it.
    fn key_type(&self) -> KeyType;
    /// SubjectPublicKeyInfo, DER.
    fn public_key_der(&self) -> Vec<u8>;
    /// Signs a message, which is hashed as the signature algorithm says. ECDSA signatures are DER.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
    /// Can it sign now? A key at hand always can.
    fn check(&self) -> Result<(), SignError> {
        Ok(())
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
#[error("failed to sign: {0}")]
pub struct SignError(pub String);

/// Stands for a key that is not here.
#[derive(Clone, Copy, Debug)]
pub struct KeyElsewhere {
    /// Its type.
    pub key_type: KeyType,
}

impl Signer for KeyElsewhere {
    fn key_type(&self) -> KeyType {
        self.key_type
    }

    fn public_key_der(&self) -> Vec<u8> {
        Vec::new()
    }

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, SignError> {
        self.check().map(|()| Vec::new())
    }

    fn check(&self) -> Result<(), SignError> {
        Err(SignError("the key of this CA is kept elsewhere".into()))
    }
}

/// A private key with its public half.
pub struct PrivateKey {
    pair: KeyPair,
    key_type: KeyType,
}

/// How a key is written as PEM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// PKCS #8 (RFC 5958): `PRIVATE KEY`.
    #[default]
    Pkcs8,
    /// The form of before: PKCS #1 (RFC 8017) as `RSA PRIVATE KEY`, SEC 1 (RFC 5915) as `EC PRIVATE
    /// KEY`. Ed25519 has none and stays PKCS #8.
    Traditional,
}

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to read private key: expected an ECDSA P-256, P-384 or P-521, Ed25519 or RSA key of 2048, 3072 or 4096 bits as unencrypted PEM"
)]
pub struct InvalidKey;

impl PrivateKey {
    /// A fresh key from the operating system's random source. RSA takes its time: tens of
    /// milliseconds for 2048 bits, up to seconds for 4096.
    pub fn generate(key_type: KeyType) -> Self {
        let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
        let pair = match key_type {
            KeyType::Rsa2048 => rsa(RsaKeySize::_2048),
            KeyType::Rsa3072 => rsa(RsaKeySize::_3072),
            KeyType::Rsa4096 => rsa(RsaKeySize::_4096),
            other => KeyPair::generate_for(other.signature_algorithm()),
        };
        let pair = Self { pair: pair.expect("aws-lc-rs generates keys of each type"), key_type };
        Self::from_pkcs8_der(pair.pkcs8_der()).expect("what was generated can be read")
    }

    /// Reads a PEM block: PKCS #8, PKCS #1 or SEC 1.
    pub fn from_pem(text: &str) -> Result<Self, InvalidKey> {
        let block = pem::parse(text).map_err(|_| InvalidKey)?;
        let tag = block.tag().to_owned();
        let content = Zeroizing::new(block.into_contents());
        match tag.as_str() {
            "PRIVATE KEY" => Self::from_pkcs8_der(&content),
            "RSA PRIVATE KEY" => Self::from_pkcs8_der(&pkcs8(&rsa_encryption(), &content)),
            "EC PRIVATE KEY" => {
                let sec1 = Sec1::read(&content).ok_or(InvalidKey)?;
                let algorithm = ec_public_key(sec1.curve.ok_or(InvalidKey)?);
                // Without the curve, which stands in the algorithm: as it was before it became SEC 1.
                let bare = Sec1 { curve: None, ..sec1 };
                Self::from_pkcs8_der(&pkcs8(&algorithm, &bare.write()))
            }
            _ => Err(InvalidKey),
        }
    }

    /// Reads PKCS #8, DER.
    pub fn from_pkcs8_der(content: &[u8]) -> Result<Self, InvalidKey> {
        let content = version_1(content).ok_or(InvalidKey)?;
        let algorithms = [
            KeyType::EcdsaP256,
            KeyType::EcdsaP384,
            KeyType::EcdsaP521,
            KeyType::Ed25519,
            KeyType::Rsa2048,
        ];
        let content = PrivatePkcs8KeyDer::from(&content[..]);
        let pair = algorithms
            .iter()
            .find_map(|candidate| {
                let algorithm = candidate.signature_algorithm();
                KeyPair::from_pkcs8_der_and_sign_algo(&content, algorithm).ok()
            })
            .ok_or(InvalidKey)?;
        let key_type = KeyType::of(&pair.subject_public_key_info()).map_err(|_| InvalidKey)?;
        Ok(Self { pair, key_type })
    }

    /// PKCS #8, DER.
    pub fn pkcs8_der(&self) -> &[u8] {
        self.pair.serialized_der()
    }

    /// PEM, wiped when dropped.
    pub fn to_pem(&self, encoding: Encoding) -> Zeroizing<String> {
        let traditional = match encoding {
            Encoding::Pkcs8 => None,
            Encoding::Traditional => self.traditional(),
        };
        Zeroizing::new(match &traditional {
            Some((tag, content)) => super::pem_block(tag, content),
            None => super::pem_block("PRIVATE KEY", self.pkcs8_der()),
        })
    }

    /// The same, DER.
    pub fn to_der(&self, encoding: Encoding) -> Zeroizing<Vec<u8>> {
        let traditional = match encoding {
            Encoding::Pkcs8 => None,
            Encoding::Traditional => self.traditional(),
        };
        traditional
            .map_or_else(|| Zeroizing::new(self.pkcs8_der().to_vec()), |(_, content)| content)
    }

    fn traditional(&self) -> Option<(&'static str, Zeroizing<Vec<u8>>)> {
        // PrivateKeyInfo ::= SEQUENCE { version, algorithm, privateKey OCTET STRING, … }
        let mut info = Values(der::read(self.pkcs8_der(), SEQUENCE)?);
        let (_version, algorithm) = (info.next()?, info.next()?);
        let content = der::read(info.next()?, OCTET_STRING)?;
        match self.key_type {
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => {
                Some(("RSA PRIVATE KEY", Zeroizing::new(content.to_vec())))
            }
            KeyType::EcdsaP256 | KeyType::EcdsaP384 | KeyType::EcdsaP521 => {
                // Within PKCS #8 the curve stands in the algorithm; here it must stand in the key.
                let curve = Values(der::read(algorithm, SEQUENCE)?).nth(1)?;
                let sec1 = Sec1 { curve: Some(curve), ..Sec1::read(content)? };
                Some(("EC PRIVATE KEY", sec1.write()))
            }
            KeyType::Ed25519 => None,
        }
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn public_key_der(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// Its type.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }
}

impl Signer for PrivateKey {
    fn key_type(&self) -> KeyType {
        self.key_type
    }

    fn public_key_der(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        rcgen::SigningKey::sign(&self.pair, message).map_err(|error| SignError(error.to_string()))
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.pair.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Destructured, so that a new field forces a decision here.
        let Self { pair: _, key_type } = self;
        write!(f, "PrivateKey({}, <redacted>)", key_type.as_str())
    }
}

/// ECPrivateKey ::= SEQUENCE { 1, privateKey OCTET STRING, [0] curve, [1] publicKey } (RFC 5915
/// section 3); the parts as whole values.
struct Sec1<'a> {
    private_key: &'a [u8],
    curve: Option<&'a [u8]>,
    public_key: Option<&'a [u8]>,
}

const CURVE: u8 = 0xa0;
const PUBLIC_KEY: u8 = 0xa1;

impl<'a> Sec1<'a> {
    fn read(content: &'a [u8]) -> Option<Self> {
        let mut values = Values(der::read(content, SEQUENCE)?);
        let (_version, private_key) = (values.next()?, values.next()?);
        let (mut curve, mut public_key) = (None, None);
        for value in values {
            match value[0] {
                CURVE => curve = der::read(value, CURVE),
                PUBLIC_KEY => public_key = Some(value),
                _ => return None,
            }
        }
        Some(Self { private_key, curve, public_key })
    }

    fn write(&self) -> Zeroizing<Vec<u8>> {
        let mut content = Zeroizing::new(der::tlv(INTEGER, &[1]));
        content.extend_from_slice(self.private_key);
        if let Some(curve) = self.curve {
            der::value(&mut content, CURVE, curve);
        }
        content.extend_from_slice(self.public_key.unwrap_or_default());
        Zeroizing::new(der::tlv(SEQUENCE, &content))
    }
}

/// A PrivateKeyInfo without the public key that version 2 adds (RFC 5958 section 2): aws-lc-rs writes
/// it for Ed25519, and OpenSSL 3.0 can't read it.
fn version_1(content: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut info = Values(der::read(content, SEQUENCE)?);
    let (_version, algorithm, key) = (info.next()?, info.next()?, info.next()?);
    Some(pkcs8(algorithm, der::read(key, OCTET_STRING)?))
}

/// PrivateKeyInfo of an algorithm and a key (RFC 5958 section 2).
fn pkcs8(algorithm: &[u8], key: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut content = Zeroizing::new(der::tlv(INTEGER, &[0]));
    content.extend_from_slice(algorithm);
    der::value(&mut content, OCTET_STRING, key);
    Zeroizing::new(der::tlv(SEQUENCE, &content))
}

pub(super) fn rsa_encryption() -> Vec<u8> {
    let oid = der::tlv(OID, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01]);
    der::tlv(SEQUENCE, &[&oid[..], &[5, 0]].concat())
}

pub(super) fn ec_public_key(curve: &[u8]) -> Vec<u8> {
    let oid = der::tlv(OID, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01]);
    der::tlv(SEQUENCE, &[&oid[..], curve].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_each_type_survives_storage_in_both_encodings() {
        for key_type in KeyType::ALL {
            let key = PrivateKey::generate(key_type);
            assert_eq!(KeyType::of(&key.public_key_der()), Ok(key_type));
            for encoding in [Encoding::Pkcs8, Encoding::Traditional] {
                let pem = key.to_pem(encoding);
                let read = PrivateKey::from_pem(&pem).unwrap();
                assert_eq!(read.public_key_der(), key.public_key_der(), "{key_type:?}");
                assert_eq!(*read.to_pem(encoding), *pem, "{key_type:?}");
                assert_eq!(read.pkcs8_der(), key.pkcs8_der(), "{key_type:?}");
            }
        }
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let key = PrivateKey::generate(KeyType::EcdsaP256);
        assert_eq!(format!("{key:?}"), "PrivateKey(ECDSA-256, <redacted>)");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n",
        ] {
            assert!(PrivateKey::from_pem(text).is_err(), "{text:?}");
        }
    }
}
