//! CEL expressions of `ClientAuthority.spec.allow`.
#![no_main]

use countersign::api::allow::{Allow, AllowRule};
use countersign::plan::allow::Policy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let expression: String = text.chars().take(1024).collect();
    let rule = AllowRule { expression, message: None };
    let _ = Policy::compile(Some(&Allow { rules: vec![rule], ..Allow::default() }));
});
