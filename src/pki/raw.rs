//! Keys and signatures in the forms of PKCS #11: a token speaks of curves, points and moduli where
//! certificates have SubjectPublicKeyInfo, and of two numbers where they have Ecdsa-Sig-Value.

use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};

use super::der::{self, BIT_STRING, OCTET_STRING, OID, SEQUENCE};
use super::key::{ec_public_key, rsa_encryption};
use super::public_key::{KeyType, UnsupportedKey};

/// The curve of a key as CKA_EC_PARAMS: its object identifier, DER. None for RSA.
pub fn curve_der(key_type: KeyType) -> Option<Vec<u8>> {
    let oid: &[u8] = match key_type {
        KeyType::EcdsaP256 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        KeyType::EcdsaP384 => &[0x2b, 0x81, 0x04, 0x00, 0x22],
        KeyType::EcdsaP521 => &[0x2b, 0x81, 0x04, 0x00, 0x23],
        KeyType::Ed25519 => &[0x2b, 0x65, 0x70],
        KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => return None,
    };
    Some(der::tlv(OID, oid))
}

/// SubjectPublicKeyInfo of CKA_EC_PARAMS and CKA_EC_POINT. The point should be wrapped in an OCTET STRING
/// (PKCS #11 v2.40 section 2.3.3), which some modules leave out.
pub fn ec_public_key_der(params: &[u8], point: &[u8]) -> Result<Vec<u8>, UnsupportedKey> {
    let key_type = [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::EcdsaP521, KeyType::Ed25519]
        .into_iter()
        .find(|candidate| curve_der(*candidate).as_deref() == Some(params))
        .ok_or_else(|| UnsupportedKey::Algorithm(format!("with curve {}", super::hex(params))))?;
    // The tag of OCTET STRING is also the first octet of a bare point. Only one reading has the right length.
    let spki = |point: &[u8]| {
        let algorithm = match key_type {
            KeyType::Ed25519 => der::tlv(SEQUENCE, params),
            _ => ec_public_key(params),
        };
        let spki = subject_public_key_info(&algorithm, point);
        KeyType::of(&spki).map(|_| spki)
    };
    match der::read(point, OCTET_STRING).map(&spki) {
        Some(Ok(spki)) => Ok(spki),
        _ => spki(point),
    }
}

/// SubjectPublicKeyInfo of CKA_MODULUS and CKA_PUBLIC_EXPONENT.
pub fn rsa_public_key_der(modulus: &[u8], exponent: &[u8]) -> Result<Vec<u8>, UnsupportedKey> {
    let mut numbers = Vec::new();
    der::unsigned(&mut numbers, modulus);
    der::unsigned(&mut numbers, exponent);
    let spki = subject_public_key_info(&rsa_encryption(), &der::tlv(SEQUENCE, &numbers));
    KeyType::of(&spki).map(|_| spki)
}

fn subject_public_key_info(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let bits = der::tlv(BIT_STRING, &[&[0], key].concat());
    der::tlv(SEQUENCE, &[algorithm, &bits].concat())
}

/// What the bare mechanisms sign for a message: a digest for CKM_ECDSA, DigestInfo (RFC 8017 section 9.2)
/// for CKM_RSA_PKCS, the message itself for CKM_EDDSA. A CRL of many megabytes so stays out of the token.
pub fn to_be_signed(key_type: KeyType, message: &[u8]) -> Vec<u8> {
    const SHA256_OID: [u8; 9] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
    let hash = |algorithm| digest(algorithm, message).as_ref().to_vec();
    match key_type {
        KeyType::EcdsaP256 => hash(&SHA256),
        KeyType::EcdsaP384 => hash(&SHA384),
        KeyType::EcdsaP521 => hash(&SHA512),
        KeyType::Ed25519 => message.to_vec(),
        KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => {
            let algorithm = [&der::tlv(OID, &SHA256_OID)[..], &[5, 0]].concat();
            let algorithm = der::tlv(SEQUENCE, &algorithm);
            let digest = der::tlv(OCTET_STRING, &hash(&SHA256));
            der::tlv(SEQUENCE, &[algorithm, digest].concat())
        }
    }
}

/// A token's signature as X.509 has it: r and s of CKM_ECDSA, one after the other and of equal length,
/// become Ecdsa-Sig-Value (RFC 5480 appendix A); the others stay as they are. None for what is no signature.
pub fn signature_der(key_type: KeyType, raw: Vec<u8>) -> Option<Vec<u8>> {
    let octets = match key_type {
        KeyType::EcdsaP256 => 32,
        KeyType::EcdsaP384 => 48,
        KeyType::EcdsaP521 => 66,
        KeyType::Ed25519 => return (raw.len() == 64).then_some(raw),
        KeyType::Rsa2048 => return (raw.len() == 256).then_some(raw),
        KeyType::Rsa3072 => return (raw.len() == 384).then_some(raw),
        KeyType::Rsa4096 => return (raw.len() == 512).then_some(raw),
    };
    if raw.is_empty() || !raw.len().is_multiple_of(2) || raw.len() > 2 * octets {
        return None;
    }
    let (r, s) = raw.split_at(raw.len() / 2);
    let mut numbers = Vec::new();
    der::unsigned(&mut numbers, r);
    der::unsigned(&mut numbers, s);
    Some(der::tlv(SEQUENCE, &numbers))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_ASN1,
        ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_ASN1, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    };
    use x509_parser::prelude::FromDer;
    use x509_parser::x509::SubjectPublicKeyInfo;

    use super::*;
    use crate::pki::PrivateKey;

    fn bits(spki: &[u8]) -> Vec<u8> {
        SubjectPublicKeyInfo::from_der(spki).unwrap().1.subject_public_key.data.into_owned()
    }

    #[test]
    fn a_point_is_read_bare_and_wrapped() {
        for key_type in
            [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::EcdsaP521, KeyType::Ed25519]
        {
            let expected = PrivateKey::generate(key_type).public_key_der();
            let point = bits(&expected);
            let params = curve_der(key_type).unwrap();
            let wrapped = der::tlv(OCTET_STRING, &point);
            assert_eq!(ec_public_key_der(&params, &point).as_ref(), Ok(&expected));
            assert_eq!(ec_public_key_der(&params, &wrapped).as_ref(), Ok(&expected));
            assert!(ec_public_key_der(&params, &point[1..]).is_err());
        }
        let brainpool = der::tlv(OID, &[0x2b, 0x24, 3, 3, 2, 8, 1, 1, 7]);
        let error = ec_public_key_der(&brainpool, &[4; 65]).unwrap_err();
        assert!(matches!(error, UnsupportedKey::Algorithm(_)), "{error}");
    }

    #[test]
    fn a_modulus_becomes_the_public_key_it_came_from() {
        let expected = PrivateKey::generate(KeyType::Rsa2048).public_key_der();
        let key = bits(&expected);
        let numbers: Vec<&[u8]> = der::Values(der::read(&key, SEQUENCE).unwrap())
            .map(|value| der::read(value, der::INTEGER).unwrap())
            .collect();
        assert_eq!(rsa_public_key_der(numbers[0], numbers[1]), Ok(expected));
        // CKA_MODULUS has no sign octet.
        assert!(rsa_public_key_der(&numbers[0][1..], numbers[1]).is_ok());
        assert!(rsa_public_key_der(&numbers[0][2..], numbers[1]).is_err());
    }

    #[test]
    fn two_numbers_become_a_signature_that_verifies() {
        for (key_type, signing, verifying) in [
            (KeyType::EcdsaP256, &ECDSA_P256_SHA256_FIXED_SIGNING, &ECDSA_P256_SHA256_ASN1),
            (KeyType::EcdsaP384, &ECDSA_P384_SHA384_FIXED_SIGNING, &ECDSA_P384_SHA384_ASN1),
            (KeyType::EcdsaP521, &ECDSA_P521_SHA512_FIXED_SIGNING, &ECDSA_P521_SHA512_ASN1),
        ] {
            let pair = EcdsaKeyPair::generate(signing).unwrap();
            let verifier = UnparsedPublicKey::new(verifying, pair.public_key().as_ref());
            // Often enough that leading zeros and set top bits come up.
            for _ in 0..300 {
                let raw = pair.sign(&SystemRandom::new(), b"message").unwrap().as_ref().to_vec();
                let signature = signature_der(key_type, raw).unwrap();
                verifier.verify(b"message", &signature).unwrap();
            }
        }
    }

    #[test]
    fn what_is_no_signature_is_refused() {
        for (key_type, length) in [
            (KeyType::EcdsaP256, 0),
            (KeyType::EcdsaP256, 63),
            (KeyType::EcdsaP256, 66),
            (KeyType::Ed25519, 63),
            (KeyType::Rsa2048, 255),
        ] {
            assert_eq!(signature_der(key_type, vec![1; length]), None, "{key_type:?} {length}");
        }
    }
}
