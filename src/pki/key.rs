//! Private keys: ECDSA P-256. They can be used and stored, never printed.

use std::fmt;

use rcgen::{KeyPair, PublicKeyData};
use zeroize::{Zeroize, Zeroizing};

/// A private key with its public half.
pub struct PrivateKey(KeyPair);

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to read private key: expected an ECDSA P-256 key as PKCS#8 PEM")]
pub struct InvalidKey;

impl PrivateKey {
    /// A fresh key from the operating system's random source.
    pub fn generate() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .expect("aws-lc-rs generates P-256 keys");
        Self(key)
    }

    /// Reads a PKCS#8 PEM block.
    pub fn from_pem(text: &str) -> Result<Self, InvalidKey> {
        KeyPair::from_pkcs8_pem_and_sign_algo(text, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| InvalidKey)
    }

    /// PKCS#8 PEM, wiped when dropped.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(super::pem_block("PRIVATE KEY", self.0.serialized_der()))
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn public_key_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    pub(super) fn key_pair(&self) -> &KeyPair {
        &self.0
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Destructured, so that a new field forces a decision here.
        let Self(_) = self;
        f.write_str("PrivateKey(<redacted>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_storage_and_does_not_show_itself() {
        let key = PrivateKey::generate();
        let read = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(read.public_key_der(), key.public_key_der());
        assert_eq!(format!("{key:?}"), "PrivateKey(<redacted>)");
        assert!(PrivateKey::from_pem("-----BEGIN PRIVATE KEY-----").is_err());
    }
}
