//! Certificate signing requests (PKCS #10, RFC 2986) of clients that keep their key.
//!
//! A request proves that its sender holds the key, and that is all it is good for: what names,
//! usages and extensions it asks for is never even parsed, so none of it can reach a certificate.

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use x509_parser::der_parser::asn1_rs::BitString;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use super::der::{self, BIT_STRING, INTEGER, OID, SEQUENCE, Values};
use super::public_key::{KeyType, SignatureError, UnsupportedKey, verify_signature};
use super::sha256_hex;

/// Longest OID that may end up in a message. None that anybody uses has half of it.
const MAX_OID: usize = 32;

/// Longest request that is looked at, PEM. RSA 4096 with a dozen names needs 3 KiB.
pub const MAX_PEM: usize = 16 * 1024;

/// A request whose signature was verified by its own key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    /// SubjectPublicKeyInfo, DER.
    pub public_key_der: Vec<u8>,
    /// The type of the key.
    pub key_type: KeyType,
    /// SHA-256 of the request (DER), lower-case hex: another one asks for another certificate.
    pub fingerprint: String,
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// More than [`MAX_PEM`].
    #[error("the CSR has {0} bytes, and at most {MAX_PEM} are taken: send the PEM block alone")]
    TooLarge(usize),
    /// No PEM block, or a damaged one.
    #[error(
        "the CSR is not PEM: send one block that begins with -----BEGIN CERTIFICATE REQUEST-----"
    )]
    NotPem,
    /// Several.
    #[error("the CSR has {0} PEM blocks: send exactly one")]
    Blocks(usize),
    /// Something else, perhaps a certificate.
    #[error("the PEM block is a {0:?}: send a CERTIFICATE REQUEST, as `openssl req -new` makes it")]
    Label(String),
    /// A private key, which nobody else should ever see.
    #[error(
        "this is a private key, and no longer secret now that it was sent: make a new key, and send its CSR alone"
    )]
    PrivateKey,
    /// The bytes are no request.
    #[error("the CSR is not DER of a CertificationRequest (RFC 2986 section 4.2): make it anew")]
    Der,
    /// Bytes after the request.
    #[error("{0} bytes follow the CSR within its PEM block: make it anew")]
    TrailingBytes(usize),
    /// No key at all.
    #[error("the CSR has no public key: make it anew, with a key")]
    EmptyKey,
    /// A curve that is described instead of named; RFC 5480 section 2.1.1 forbids it.
    #[error(
        "the elliptic curve is described by its parameters: make a key with a named curve (openssl: -pkeyopt ec_param_enc:named_curve)"
    )]
    ExplicitCurve,
    /// RFC 3279 section 2.3.1, RFC 8410 section 3.
    #[error(
        "the public key has parameters that do not belong to its algorithm: make the CSR with current software"
    )]
    KeyParameters,
    /// Another type of key than those that are signed for.
    #[error(transparent)]
    Key(#[from] UnsupportedKey),
    /// Not on its curve; an even modulus; an exponent beyond all bounds.
    #[error("the public key is no valid {} key: make a new one", .0.as_str())]
    InvalidKey(KeyType),
    /// SHA-1 and older.
    #[error(
        "the CSR is signed with {0}, which is broken: sign it with SHA-256 or better (openssl: -sha256)"
    )]
    WeakHash(&'static str),
    /// Not one of the key, or not known.
    #[error(
        "signature algorithm {0} is not supported with this key: sign with SHA-256, SHA-384 or SHA-512, for RSA-PSS also in MGF1 (RFC 4055)"
    )]
    SignatureAlgorithm(String),
    /// The proof of possession fails.
    #[error(
        "the signature of the CSR was not made by its own key, or the CSR was changed since: make it anew"
    )]
    Signature,
}

/// Signature algorithms whose hash is broken.
const WEAK: &[(&str, &str)] = &[
    ("1.2.840.113549.1.1.2", "MD2"),
    ("1.2.840.113549.1.1.4", "MD5"),
    ("1.2.840.113549.1.1.5", "SHA-1"),
    ("1.3.14.3.2.29", "SHA-1"),
    ("1.2.840.10045.4.1", "SHA-1"),
];

/// Reads a request and verifies that its own key signed it.
pub fn read(pem: &str) -> Result<SigningRequest, CsrError> {
    let der = decode(pem)?;
    let request = Values(&der).next().ok_or(CsrError::Der)?;
    if request.len() < der.len() {
        return Err(CsrError::TrailingBytes(der.len() - request.len()));
    }
    // CertificationRequest ::= SEQUENCE { certificationRequestInfo, signatureAlgorithm, signature }
    let [info, algorithm, signature] = der::parts(request, SEQUENCE).ok_or(CsrError::Der)?;
    let public_key_der = public_key(info).ok_or(CsrError::Der)?;
    let key_type = key_type(public_key_der)?;
    verify(public_key_der, algorithm, signature, info)?;
    Ok(SigningRequest {
        public_key_der: public_key_der.to_vec(),
        key_type,
        fingerprint: sha256_hex(&der),
    })
}

fn decode(text: &str) -> Result<Vec<u8>, CsrError> {
    if text.len() > MAX_PEM {
        return Err(CsrError::TooLarge(text.len()));
    }
    let blocks = text.matches("-----BEGIN ").count();
    if blocks > 1 {
        return Err(CsrError::Blocks(blocks));
    }
    let block = pem::parse(text).map_err(|_| CsrError::NotPem)?;
    match block.tag() {
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Ok(block.into_contents()),
        label if label.ends_with("PRIVATE KEY") => Err(CsrError::PrivateKey),
        label => Err(CsrError::Label(label.chars().take(40).collect())),
    }
}

/// CertificationRequestInfo ::= SEQUENCE { version, subject, subjectPKInfo, attributes [0] }, of which
/// some software leaves out the attributes when there are none.
fn public_key(info: &[u8]) -> Option<&[u8]> {
    let without = || der::parts(info, SEQUENCE).map(|[version, _, key]| [version, key]);
    let [version, key] = der::parts(info, SEQUENCE)
        .and_then(|[version, _, key, attributes]| {
            der::read(attributes, 0xa0).map(|_| [version, key])
        })
        .or_else(without)?;
    (der::read(version, INTEGER)? == [0]).then_some(key)
}

/// What kind of key it is, and whether it can be one at all. KeyType::of is more lenient with what
/// stands around the key.
fn key_type(spki: &[u8]) -> Result<KeyType, CsrError> {
    const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
    const NULL: &[u8] = &[0x05, 0x00];

    if der::read(spki, SEQUENCE).is_some_and(<[u8]>::is_empty) {
        return Err(CsrError::EmptyKey);
    }
    // SubjectPublicKeyInfo ::= SEQUENCE { algorithm AlgorithmIdentifier, subjectPublicKey BIT STRING }
    let [algorithm, key] = der::parts(spki, SEQUENCE).ok_or(CsrError::Der)?;
    let key = match der::read(key, BIT_STRING).ok_or(CsrError::Der)? {
        [] | [0] => return Err(CsrError::EmptyKey),
        [0, key @ ..] => key,
        // A part of an octet: no key has that.
        _ => return Err(CsrError::Der),
    };
    let (oid, parameters) = algorithm_parts(algorithm).ok_or(CsrError::Der)?;
    match oid {
        EC_PUBLIC_KEY if parameters.first() == Some(&SEQUENCE) => {
            return Err(CsrError::ExplicitCurve);
        }
        RSA_ENCRYPTION if parameters != NULL => return Err(CsrError::KeyParameters),
        ED25519 if !parameters.is_empty() => return Err(CsrError::KeyParameters),
        EC_PUBLIC_KEY if parameters.len() > MAX_OID => return Err(CsrError::KeyParameters),
        _ => {}
    }
    let key_type = KeyType::of(spki)?;
    let algorithm: &dyn VerificationAlgorithm = match key_type {
        KeyType::EcdsaP256 => &signature::ECDSA_P256_SHA256_ASN1,
        KeyType::EcdsaP384 => &signature::ECDSA_P384_SHA384_ASN1,
        KeyType::EcdsaP521 => &signature::ECDSA_P521_SHA512_ASN1,
        KeyType::Ed25519 => &signature::ED25519,
        KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => {
            &signature::RSA_PKCS1_2048_8192_SHA256
        }
    };
    match ParsedPublicKey::new(algorithm, key) {
        Ok(_) => Ok(key_type),
        Err(_) => Err(CsrError::InvalidKey(key_type)),
    }
}

/// AlgorithmIdentifier ::= SEQUENCE { algorithm OBJECT IDENTIFIER, parameters ANY OPTIONAL }: the OID's
/// content, which ends where its last number does (X.690 section 8.19.2), and the parameters.
fn algorithm_parts(algorithm: &[u8]) -> Option<(&[u8], &[u8])> {
    let without = || der::parts(algorithm, SEQUENCE).map(|[oid]| [oid, &[]]);
    let [oid, parameters] = der::parts(algorithm, SEQUENCE).or_else(without)?;
    let oid = der::read(oid, OID)?;
    let ends = oid.last().is_some_and(|octet| octet & 0x80 == 0);
    (ends && oid.len() <= MAX_OID).then_some((oid, parameters))
}

fn verify(spki: &[u8], algorithm: &[u8], value: &[u8], message: &[u8]) -> Result<(), CsrError> {
    // x509-parser does not look at the class of a tag, nor whether an OID ends.
    algorithm_parts(algorithm).ok_or(CsrError::Der)?;
    let Some([0, ..]) = der::read(value, BIT_STRING) else { return Err(CsrError::Der) };
    let parsed = (
        SubjectPublicKeyInfo::from_der(spki),
        AlgorithmIdentifier::from_der(algorithm),
        BitString::from_der(value),
    );
    let (Ok((_, key)), Ok((_, algorithm)), Ok((_, value))) = parsed else {
        return Err(CsrError::Der);
    };
    let oid = algorithm.algorithm.to_id_string();
    if let Some((_, hash)) = WEAK.iter().find(|(weak, _)| *weak == oid) {
        return Err(CsrError::WeakHash(hash));
    }
    verify_signature(&key, &algorithm, &value, message).map_err(|error| match error {
        SignatureError::Algorithm => CsrError::SignatureAlgorithm(oid),
        SignatureError::Wrong => CsrError::Signature,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pki::key::{PrivateKey, Signer};
    use crate::pki::pem_block;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa;
    use aws_lc_rs::signature::{EcdsaKeyPair, RsaPssSaltLength};
    use proptest::prelude::*;

    const ECDSA_WITH_SHA2: [u8; 7] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    const PKCS1: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const NULL: &[u8] = &[5, 0];

    fn sequence(parts: &[&[u8]]) -> Vec<u8> {
        der::tlv(SEQUENCE, &parts.concat())
    }

    fn oid(start: &[u8], last: u8) -> Vec<u8> {
        der::tlv(OID, &[start, &[last]].concat())
    }

    fn ecdsa_with(last: u8) -> Vec<u8> {
        sequence(&[&oid(&ECDSA_WITH_SHA2, last)])
    }

    fn rsa_with(last: u8) -> Vec<u8> {
        sequence(&[&oid(&PKCS1, last), NULL])
    }

    fn bits(content: &[u8]) -> Vec<u8> {
        der::tlv(BIT_STRING, &[&[0], content].concat())
    }

    /// CertificationRequestInfo with a subject and whatever attributes.
    fn info(spki: &[u8], attributes: &[u8]) -> Vec<u8> {
        let subject = sequence(&[]);
        sequence(&[&[2, 1, 0], &subject, spki, &der::tlv(0xa0, attributes)])
    }

    fn request(info: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
        sequence(&[info, algorithm, &bits(signature)])
    }

    fn pem(der: &[u8]) -> String {
        pem_block("CERTIFICATE REQUEST", der)
    }

    /// A request that the key itself signed.
    fn signed(key: &PrivateKey, attributes: &[u8]) -> Vec<u8> {
        let info = info(&key.public_key_der(), attributes);
        request(&info, &key.key_type().signature_algorithm_der(), &key.sign(&info).unwrap())
    }

    pub(crate) fn sample() -> String {
        pem(&signed(&PrivateKey::generate(KeyType::EcdsaP256), &[]))
    }

    /// A request with this key and a signature that nobody made.
    fn unsigned(spki: &[u8]) -> String {
        pem(&request(&info(spki, &[]), &ecdsa_with(2), &[1]))
    }

    fn spki(algorithm: &[&[u8]], key: &[u8]) -> Vec<u8> {
        sequence(&[&sequence(algorithm), &bits(key)])
    }

    fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
        let mut key = Vec::new();
        der::unsigned(&mut key, modulus);
        der::unsigned(&mut key, exponent);
        spki(&[&oid(&PKCS1, 1), NULL], &der::tlv(SEQUENCE, &key))
    }

    #[test]
    fn a_key_of_each_type_is_read_and_nothing_else() {
        for key_type in KeyType::ALL {
            let key = PrivateKey::generate(key_type);
            let der = signed(&key, &[]);
            let expected = SigningRequest {
                public_key_der: key.public_key_der(),
                key_type,
                fingerprint: sha256_hex(&der),
            };
            assert_eq!(read(&pem(&der)), Ok(expected.clone()));
            let old = pem_block("NEW CERTIFICATE REQUEST", &der).replace('\n', "\r\n");
            assert_eq!(read(&format!("Subject: CN=x\n{old}")), Ok(expected));
        }
    }

    #[test]
    fn what_is_asked_for_is_not_even_parsed() {
        let key = PrivateKey::generate(KeyType::EcdsaP256);
        let garbage = der::tlv(SEQUENCE, &[0xff; 40]);
        for attributes in [&[][..], &garbage, &[&garbage[..], &garbage].concat()] {
            let read = read(&pem(&signed(&key, attributes))).unwrap();
            assert_eq!(read.public_key_der, key.public_key_der());
        }
    }

    #[test]
    fn attributes_may_be_left_out() {
        let key = PrivateKey::generate(KeyType::EcdsaP256);
        let info = sequence(&[&[2, 1, 0], &sequence(&[]), &key.public_key_der()]);
        let der = request(&info, &ecdsa_with(2), &key.sign(&info).unwrap());
        assert!(read(&pem(&der)).is_ok());
    }

    #[test]
    fn any_sha2_goes_with_any_curve() {
        let random = SystemRandom::new();
        for (algorithm, last) in [
            (&signature::ECDSA_P521_SHA256_ASN1_SIGNING, 2),
            (&signature::ECDSA_P521_SHA384_ASN1_SIGNING, 3),
            (&signature::ECDSA_P521_SHA512_ASN1_SIGNING, 4),
        ] {
            let key = PrivateKey::generate(KeyType::EcdsaP521);
            let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.pkcs8_der()).unwrap();
            let info = info(&key.public_key_der(), &[]);
            let signature = pair.sign(&random, &info).unwrap();
            let der = request(&info, &ecdsa_with(last), signature.as_ref());
            assert_eq!(read(&pem(&der)).unwrap().key_type, KeyType::EcdsaP521);
        }
    }

    #[test]
    fn rsa_pss_with_any_salt_and_nothing_but_one_sha2() {
        const SHA2: [u8; 8] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
        let key = PrivateKey::generate(KeyType::Rsa2048);
        let pair = rsa::KeyPair::from_pkcs8(key.pkcs8_der()).unwrap();
        let info = info(&key.public_key_der(), &[]);
        let ask = |hash: u8, mask: u8, salt: u8| {
            let salt_length = RsaPssSaltLength::Custom(salt.into());
            let encoding =
                Box::leak(Box::new(signature::RSA_PSS_SHA256.with_pss_salt_length(salt_length)));
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), &info, &mut signature).unwrap();
            let hash = sequence(&[&oid(&SHA2, hash), NULL]);
            let mask = sequence(&[&oid(&PKCS1, 8), &sequence(&[&oid(&SHA2, mask), NULL])]);
            let mut length = Vec::new();
            der::unsigned(&mut length, &[salt]);
            let parameters = sequence(&[
                &der::tlv(0xa0, &hash),
                &der::tlv(0xa1, &mask),
                &der::tlv(0xa2, &length),
            ]);
            let algorithm = sequence(&[&oid(&PKCS1, 10), &parameters]);
            read(&pem(&request(&info, &algorithm, &signature))).map(|read| read.key_type)
        };
        for salt in [0, 20, 32, 222] {
            assert_eq!(ask(1, 1, salt), Ok(KeyType::Rsa2048), "{salt}");
        }
        let refused = Err(CsrError::SignatureAlgorithm("1.2.840.113549.1.1.10".into()));
        assert_eq!(ask(1, 2, 32), refused);
        assert_eq!(ask(4, 4, 32), refused);
        assert_eq!(ask(3, 3, 32), Err(CsrError::Signature));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let good = sample();
        let der = pem::parse(&good).unwrap().into_contents();
        let trailing = [&der[..], &[0, 0]].concat();
        let label = |label: &str| pem_block(label, &der);
        let damaged = good.replacen("MI", "!!", 1);
        for (text, error) in [
            (String::new(), CsrError::NotPem),
            ("CN=laptop-7".into(), CsrError::NotPem),
            (damaged, CsrError::NotPem),
            (format!("{}{good}", " ".repeat(MAX_PEM)), CsrError::TooLarge(MAX_PEM + good.len())),
            (format!("{good}{good}"), CsrError::Blocks(2)),
            (label("CERTIFICATE"), CsrError::Label("CERTIFICATE".into())),
            (label(&"X".repeat(300)), CsrError::Label("X".repeat(40))),
            (label("EC PRIVATE KEY"), CsrError::PrivateKey),
            (pem(b"garbage"), CsrError::Der),
            (pem(&[]), CsrError::Der),
            (pem(&der[..der.len() - 1]), CsrError::Der),
            (pem(&trailing), CsrError::TrailingBytes(2)),
        ] {
            assert_eq!(read(&text), Err(error), "{text}");
        }
    }

    #[test]
    fn keys_that_are_not_signed_for_are_refused() {
        let dsa = [0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01];
        let ec = oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02], 1);
        let p256 = oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01], 7);
        let secp256k1 = der::tlv(OID, &[0x2b, 0x81, 0x04, 0x00, 0x0a]);
        let ed25519 = der::tlv(OID, &[0x2b, 0x65, 0x70]);
        let point = [&[4][..], &[7; 64]].concat();
        let compressed = [&[2][..], &[7; 32]].concat();
        let usual = [1, 0, 1];
        let unsupported = |what: &str| CsrError::Key(UnsupportedKey::Algorithm(what.into()));
        for (spki, error) in [
            (sequence(&[]), CsrError::EmptyKey),
            (spki(&[&ec, &p256], &[]), CsrError::EmptyKey),
            (sequence(&[&sequence(&[&ec, &p256]), &der::tlv(BIT_STRING, &[])]), CsrError::EmptyKey),
            (spki(&[&der::tlv(OID, &dsa)], &[1]), unsupported("1.2.840.10040.4.1")),
            (spki(&[&ec, &secp256k1], &point), unsupported("ECDSA on curve 1.3.132.0.10")),
            (spki(&[&ec, &sequence(&[&[2, 1, 1]])], &point), CsrError::ExplicitCurve),
            (spki(&[&ec, &p256], &point), CsrError::InvalidKey(KeyType::EcdsaP256)),
            (spki(&[&ec, &p256], &compressed), UnsupportedKey::Point.into()),
            (spki(&[&ed25519, NULL], &[7; 32]), CsrError::KeyParameters),
            (spki(&[&ec, &der::tlv(OID, &[9; 999])], &point), CsrError::KeyParameters),
            (spki(&[&der::tlv(OID, &[9; 999])], &point), CsrError::Der),
            (spki(&[&oid(&PKCS1, 1)], &[7; 32]), CsrError::KeyParameters),
            (rsa_spki(&[0xff; 128], &usual), UnsupportedKey::RsaSize(1024).into()),
            (rsa_spki(&[0x7f; 256], &usual), UnsupportedKey::RsaSize(2047).into()),
            (rsa_spki(&[0xff; 320], &usual), UnsupportedKey::RsaSize(2560).into()),
            (rsa_spki(&[0xff; 1024], &usual), UnsupportedKey::RsaSize(8192).into()),
            (rsa_spki(&[0xff; 256], &[1]), UnsupportedKey::RsaExponent.into()),
            (rsa_spki(&[0xff; 256], &[3]), UnsupportedKey::RsaExponent.into()),
            (rsa_spki(&[0xff; 256], &[1, 0, 0]), UnsupportedKey::RsaExponent.into()),
            (rsa_spki(&[0xff; 256], &[0xff; 40]), UnsupportedKey::RsaExponent.into()),
            (rsa_spki(&[0xff; 256], &[0xff; 30]), CsrError::InvalidKey(KeyType::Rsa2048)),
            (rsa_spki(&[0xfe; 256], &usual), CsrError::InvalidKey(KeyType::Rsa2048)),
        ] {
            assert_eq!(read(&unsigned(&spki)), Err(error), "{spki:02x?}");
        }
    }

    #[test]
    fn a_signature_of_another_key_or_of_other_words_is_refused() {
        let key = PrivateKey::generate(KeyType::EcdsaP256);
        let other = PrivateKey::generate(KeyType::EcdsaP256);
        let info = info(&key.public_key_der(), &[]);
        let signature = other.sign(&info).unwrap();
        let wrong = request(&info, &ecdsa_with(2), &signature);
        assert_eq!(read(&pem(&wrong)), Err(CsrError::Signature));

        let mut changed = signed(&key, &sequence(&[&[2, 1, 7]]));
        let place = changed.windows(3).position(|window| window == [2, 1, 7]).unwrap();
        changed[place + 2] = 8;
        assert_eq!(read(&pem(&changed)), Err(CsrError::Signature));
    }

    #[test]
    fn broken_and_unknown_signature_algorithms_are_refused_by_name() {
        let ec = PrivateKey::generate(KeyType::EcdsaP256);
        let rsa = PrivateKey::generate(KeyType::Rsa2048);
        let ecdsa_sha1 = sequence(&[&oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04], 1)]);
        let unknown = |oid: &str| CsrError::SignatureAlgorithm(oid.into());
        for (key, algorithm, error) in [
            (&rsa, rsa_with(5), CsrError::WeakHash("SHA-1")),
            (&rsa, rsa_with(4), CsrError::WeakHash("MD5")),
            (&ec, ecdsa_sha1, CsrError::WeakHash("SHA-1")),
            (&ec, ecdsa_with(1), unknown("1.2.840.10045.4.3.1")),
            (&ec, rsa_with(11), unknown("1.2.840.113549.1.1.11")),
            (&rsa, ecdsa_with(2), unknown("1.2.840.10045.4.3.2")),
            (&ec, sequence(&[&der::tlv(OID, &[9; 999])]), CsrError::Der),
        ] {
            let info = info(&key.public_key_der(), &[]);
            let der = request(&info, &algorithm, &key.sign(&info).unwrap());
            assert_eq!(read(&pem(&der)), Err(error));
        }
    }

    #[test]
    fn a_request_with_another_bit_is_refused() {
        let good = pem::parse(sample()).unwrap().into_contents();
        for bit in 0..good.len() * 8 {
            let mut der = good.clone();
            der[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&pem(&der)).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(read(&pem(&bytes)).is_err());
            prop_assert!(read(&String::from_utf8_lossy(&bytes)).is_err());
        }
    }
}
