//! Private keys: of imported CAs, and in Secrets that anybody may have written.
#![no_main]

use countersign::pki::PrivateKey;
use countersign::pki::key::Encoding;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for label in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"] {
        let text = pem::encode(&pem::Pem::new(label, data));
        let Ok(key) = PrivateKey::from_pem(&text) else { continue };
        for encoding in [Encoding::Pkcs8, Encoding::Traditional] {
            let again = PrivateKey::from_pem(&key.to_pem(encoding)).expect("what we write we read");
            assert_eq!(again.public_key_der(), key.public_key_der());
        }
    }
    let _ = std::str::from_utf8(data).map(PrivateKey::from_pem);
});
