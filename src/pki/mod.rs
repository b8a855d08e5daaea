//! Certificates and CRLs: pure functions over bytes. No Kubernetes, no async, no clock: times come in
//! as arguments, and randomness only where a function's name says so.

pub mod authority;
pub mod crl;
pub mod crl_bundle;
pub mod crl_import;
pub mod csr;
mod der;
pub mod encode;
pub mod inspect;
pub mod issue;
pub mod key;
pub mod keystore;
pub mod lint;
pub mod name;
pub mod profile;
pub mod public_key;
pub mod raw;
pub mod serial;
pub mod syntax;
pub mod verify;

pub use authority::CertificateAuthority;
pub use key::PrivateKey;
pub use public_key::KeyType;
pub use serial::Serial;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use time::OffsetDateTime;

/// SHA-256 as lower-case hex: the fingerprint of a certificate, the digest of a CRL.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String can't fail");
        text
    })
}

/// A SHA-256 from hex; nothing when the text is none.
pub fn sha256_from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(bytes)
}

/// The one place where our times become rcgen's. Whole seconds: X.509 knows no finer ones.
fn offset_date_time(time: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.as_second())
        .expect("jiff's range of years lies within that of the time crate")
}

/// A certificate as PEM.
pub fn certificate_pem(der: &[u8]) -> String {
    pem_block("CERTIFICATE", der)
}

/// A block of PEM with LF line ends.
fn pem_block(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}
