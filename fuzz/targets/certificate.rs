//! Certificates: from Secrets, and from headers of data planes.
#![no_main]

use countersign::pki::inspect::{certificates, inspect};
use countersign::pki::lint::lint;
use countersign::pki::verify::verify_client;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|data: &[u8]| {
    let _ = certificates(data);
    let der = CertificateDer::from(data);
    let read = inspect(&der);
    let good = lint(&der, &der);
    // As leaf and trust anchor at once it gets as far as it can; a CA passes for no client.
    let trusted = verify_client(&der, &[], &[der.clone()], Timestamp::UNIX_EPOCH);
    assert!(good.is_err(), "the lint table lets a certificate certify itself");
    assert!(read.is_ok() || trusted.is_err(), "trusted and not understood");
});
