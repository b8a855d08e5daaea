//! Signing requests of clients.
#![no_main]

use countersign::pki::{KeyType, csr};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", data));
    for text in [std::str::from_utf8(data).unwrap_or_default(), &pem] {
        if let Ok(request) = csr::read(text) {
            assert_eq!(KeyType::of(&request.public_key_der), Ok(request.key_type));
        }
    }
});
