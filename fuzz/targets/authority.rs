//! An imported CA: a Secret with a chain and a key.
#![no_main]

use countersign::pki::CertificateAuthority;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = CertificateAuthority::without_key(vec![data.to_vec().into()]);
    let Ok(text) = std::str::from_utf8(data) else { return };
    // The seeds are a chain and a key in one file.
    let at = text.find("-----BEGIN PRIVATE KEY").unwrap_or(text.len());
    let (chain, key) = text.split_at(at);
    if let Ok(authority) = CertificateAuthority::from_pem(chain, key) {
        assert!(authority.facts().not_before <= authority.facts().not_after);
    }
});
