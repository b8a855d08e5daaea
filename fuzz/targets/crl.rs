//! Published CRLs, as they come back from the API server.
#![no_main]

use countersign::pki::crl;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = crl::read(data);
});
