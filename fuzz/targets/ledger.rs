//! Segments of the ledger, as they come back from the API server.
#![no_main]

use countersign::plan::ledger::Record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(records) = Record::decode_all(data) else { return };
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.encode(&mut bytes));
    assert_eq!(Record::decode_all(&bytes).as_ref(), Ok(&records));
});
