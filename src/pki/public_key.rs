//! Public keys: the types that are signed for, how they are told apart, and what they have signed.

use aws_lc_rs::signature::{
    self, RsaParameters, RsaPssSaltLength, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use x509_parser::der_parser::asn1_rs::BitString;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::signature_algorithm::RsaSsaPssParams;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use super::der::{self, OID, SEQUENCE};

/// The types of key that a certificate, or a CA, may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyType {
    /// ECDSA on NIST P-256 (RFC 5480).
    EcdsaP256,
    /// ECDSA on NIST P-384.
    EcdsaP384,
    /// ECDSA on NIST P-521.
    EcdsaP521,
    /// Ed25519 (RFC 8410).
    Ed25519,
    /// RSA with a modulus of 2048 bits.
    Rsa2048,
    /// RSA with a modulus of 3072 bits.
    Rsa3072,
    /// RSA with a modulus of 4096 bits.
    Rsa4096,
}

/// Why a public key is not one that is signed for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnsupportedKey {
    /// Not a SubjectPublicKeyInfo.
    #[error("the public key can't be read")]
    Unreadable,
    /// Another algorithm or curve.
    #[error(
        "public key algorithm {0} is not supported: use ECDSA P-256, P-384 or P-521, Ed25519 or RSA"
    )]
    Algorithm(String),
    /// Too short, too long, or odd.
    #[error("an RSA key of {0} bits is not supported: use 2048, 3072 or 4096")]
    RsaSize(usize),
    /// RFC 8017 section 3.1, and FIPS 186-5 appendix A.1.1.
    #[error("the RSA public exponent must be odd, above 2^16 and below 2^256")]
    RsaExponent,
    /// Not a point in uncompressed form.
    #[error("the public key is not a point of its curve in uncompressed form")]
    Point,
}

const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";
const ED25519: &str = "1.3.101.112";

impl KeyType {
    /// Every type, the default first.
    pub const ALL: [Self; 7] = [
        Self::EcdsaP256,
        Self::EcdsaP384,
        Self::EcdsaP521,
        Self::Ed25519,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
    ];

    /// The type of a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), DER.
    pub fn of(spki_der: &[u8]) -> Result<Self, UnsupportedKey> {
        let Ok(([], spki)) = SubjectPublicKeyInfo::from_der(spki_der) else {
            return Err(UnsupportedKey::Unreadable);
        };
        let algorithm = spki.algorithm.algorithm.to_id_string();
        match algorithm.as_str() {
            EC_PUBLIC_KEY => {
                let curve = spki.algorithm.parameters.as_ref();
                let curve = curve.and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string());
                let (key_type, octets) = match curve.as_deref() {
                    Some("1.2.840.10045.3.1.7") => (Self::EcdsaP256, 32),
                    Some("1.3.132.0.34") => (Self::EcdsaP384, 48),
                    Some("1.3.132.0.35") => (Self::EcdsaP521, 66),
                    other => {
                        let curve = other.unwrap_or("with parameters of its own");
                        return Err(UnsupportedKey::Algorithm(format!("ECDSA on curve {curve}")));
                    }
                };
                let point = &spki.subject_public_key.data;
                if point.len() == 1 + 2 * octets && point[0] == 4 {
                    Ok(key_type)
                } else {
                    Err(UnsupportedKey::Point)
                }
            }
            ED25519 if spki.subject_public_key.data.len() == 32 => Ok(Self::Ed25519),
            RSA_ENCRYPTION => {
                let Ok(PublicKey::RSA(key)) = spki.parsed() else {
                    return Err(UnsupportedKey::Unreadable);
                };
                let exponent = significant(key.exponent);
                let odd = exponent.last().is_some_and(|byte| byte & 1 == 1);
                if !odd || !(3..=32).contains(&exponent.len()) {
                    return Err(UnsupportedKey::RsaExponent);
                }
                let modulus = significant(key.modulus);
                let unused = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
                match modulus.len() * 8 - unused {
                    2048 => Ok(Self::Rsa2048),
                    3072 => Ok(Self::Rsa3072),
                    4096 => Ok(Self::Rsa4096),
                    bits => Err(UnsupportedKey::RsaSize(bits)),
                }
            }
            other => Err(UnsupportedKey::Algorithm(other.to_owned())),
        }
    }

    /// Its name, as policies, conditions and metrics have it: `ECDSA-256`, `Ed25519`, `RSA-2048`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ECDSA-256",
            Self::EcdsaP384 => "ECDSA-384",
            Self::EcdsaP521 => "ECDSA-521",
            Self::Ed25519 => "Ed25519",
            Self::Rsa2048 => "RSA-2048",
            Self::Rsa3072 => "RSA-3072",
            Self::Rsa4096 => "RSA-4096",
        }
    }

    /// The algorithm that a key of this type signs with: the hash as long as the curve, SHA-256 with
    /// RSA in PKCS #1 v1.5 padding, which every verifier knows.
    pub(super) fn signature_algorithm(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::EcdsaP521 => &rcgen::PKCS_ECDSA_P521_SHA512,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => &rcgen::PKCS_RSA_SHA256,
        }
    }

    /// The same as an AlgorithmIdentifier, DER (RFC 5758 section 3.2, RFC 8410 section 3, RFC 4055
    /// section 5).
    pub(super) fn signature_algorithm_der(self) -> Vec<u8> {
        const ECDSA_WITH_SHA2: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
        const SHA256_WITH_RSA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
        const NULL: [u8; 2] = [5, 0];
        let ecdsa = |hash: u8| der::tlv(OID, &[&ECDSA_WITH_SHA2[..], &[hash]].concat());
        let content = match self {
            Self::EcdsaP256 => ecdsa(2),
            Self::EcdsaP384 => ecdsa(3),
            Self::EcdsaP521 => ecdsa(4),
            Self::Ed25519 => der::tlv(OID, &[0x2b, 0x65, 0x70]),
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => {
                [der::tlv(OID, &SHA256_WITH_RSA), NULL.to_vec()].concat()
            }
        };
        der::tlv(SEQUENCE, &content)
    }
}

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignatureError {
    /// SHA-1 and older, or something that does not go with the key.
    #[error(
        "the signature algorithm is not supported: use SHA-256, SHA-384 or SHA-512 with the key's own algorithm"
    )]
    Algorithm,
    /// It was made by another key, or over something else.
    #[error("the signature is wrong")]
    Wrong,
}

/// Checks a signature. Unlike x509-parser's own check this one knows P-521 and every SHA-2 on each
/// curve, and refuses SHA-1.
pub(super) fn verify_signature(
    public_key: &SubjectPublicKeyInfo<'_>,
    algorithm: &AlgorithmIdentifier<'_>,
    value: &BitString<'_>,
    message: &[u8],
) -> Result<(), SignatureError> {
    const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";
    let key_type = KeyType::of(public_key.raw).map_err(|_| SignatureError::Algorithm)?;
    let oid = algorithm.algorithm.to_id_string();
    if let (RSASSA_PSS, Ok(PublicKey::RSA(key))) = (oid.as_str(), public_key.parsed()) {
        let key =
            RsaPublicKeyComponents { n: significant(key.modulus), e: significant(key.exponent) };
        let parameters = pss(algorithm).ok_or(SignatureError::Algorithm)?;
        return key.verify(&parameters, message, &value.data).map_err(|_| SignatureError::Wrong);
    }
    use KeyType::{EcdsaP256, EcdsaP384, EcdsaP521, Ed25519, Rsa2048, Rsa3072, Rsa4096};
    let verification: &dyn VerificationAlgorithm = match (key_type, oid.as_str()) {
        (EcdsaP256, "1.2.840.10045.4.3.2") => &signature::ECDSA_P256_SHA256_ASN1,
        (EcdsaP256, "1.2.840.10045.4.3.3") => &signature::ECDSA_P256_SHA384_ASN1,
        (EcdsaP256, "1.2.840.10045.4.3.4") => &signature::ECDSA_P256_SHA512_ASN1,
        (EcdsaP384, "1.2.840.10045.4.3.2") => &signature::ECDSA_P384_SHA256_ASN1,
        (EcdsaP384, "1.2.840.10045.4.3.3") => &signature::ECDSA_P384_SHA384_ASN1,
        (EcdsaP384, "1.2.840.10045.4.3.4") => &signature::ECDSA_P384_SHA512_ASN1,
        (EcdsaP521, "1.2.840.10045.4.3.2") => &signature::ECDSA_P521_SHA256_ASN1,
        (EcdsaP521, "1.2.840.10045.4.3.3") => &signature::ECDSA_P521_SHA384_ASN1,
        (EcdsaP521, "1.2.840.10045.4.3.4") => &signature::ECDSA_P521_SHA512_ASN1,
        (Ed25519, ED25519) => &signature::ED25519,
        (Rsa2048 | Rsa3072 | Rsa4096, "1.2.840.113549.1.1.11") => {
            &signature::RSA_PKCS1_2048_8192_SHA256
        }
        (Rsa2048 | Rsa3072 | Rsa4096, "1.2.840.113549.1.1.12") => {
            &signature::RSA_PKCS1_2048_8192_SHA384
        }
        (Rsa2048 | Rsa3072 | Rsa4096, "1.2.840.113549.1.1.13") => {
            &signature::RSA_PKCS1_2048_8192_SHA512
        }
        _ => return Err(SignatureError::Algorithm),
    };
    UnparsedPublicKey::new(verification, &public_key.subject_public_key.data)
        .verify(message, &value.data)
        .map_err(|_| SignatureError::Wrong)
}

/// The octets of a positive INTEGER without the zero that keeps it positive.
fn significant(bytes: &[u8]) -> &[u8] {
    let skip = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[skip..]
}

/// RSASSA-PSS-params (RFC 4055 section 3.1): a hash, the same one for MGF1, and a salt of any length,
/// which OpenSSL makes as long as fits.
fn pss(algorithm: &AlgorithmIdentifier<'_>) -> Option<RsaParameters> {
    const MGF1: &str = "1.2.840.113549.1.1.8";
    let parameters = RsaSsaPssParams::try_from(algorithm.parameters.as_ref()?).ok()?;
    let mask = parameters.mask_gen_algorithm().ok()?;
    let hash = parameters.hash_algorithm_oid();
    let same = mask.mgf.to_id_string() == MGF1 && mask.hash == *hash;
    if !same || parameters.trailer_field() != 1 {
        return None;
    }
    let verification = match hash.to_id_string().as_str() {
        "2.16.840.1.101.3.4.2.1" => signature::RSA_PSS_2048_8192_SHA256,
        "2.16.840.1.101.3.4.2.2" => signature::RSA_PSS_2048_8192_SHA384,
        "2.16.840.1.101.3.4.2.3" => signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    };
    let salt = u16::try_from(parameters.salt_length()).ok()?;
    Some(verification.with_pss_salt_length(RsaPssSaltLength::Custom(salt)))
}
