//! Keystores in Secrets that anybody may have written. None that is made up is taken for ours.
#![no_main]

use countersign::pki::keystore::{KeyEntry, Profile, Protection, is_keystore, is_truststore};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let chain = [b"leaf".as_slice().into(), b"CA".as_slice().into()];
    let entry = KeyEntry { key_pkcs8_der: b"key", chain: &chain, alias: "laptop-7" };
    // The cheaper profile: the other one differs in the cipher, not in what is read.
    let protection = Protection::new("changeit", Profile::Legacy).unwrap();
    assert!(!is_keystore(data, &entry, &protection));
    assert!(!is_truststore(data, &chain, &protection));
});
