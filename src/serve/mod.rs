//! What is served over HTTP: health and metrics by every process; CRLs and the gate by the server.

mod certificate;
mod conditional;
pub mod confirmed;
mod copies;
pub mod crl;
mod document;
pub mod gate;
pub mod health;
mod intake;
pub mod listener;
pub mod policies;
pub mod published;
pub mod run;
mod tls_listener;
mod verified;
pub mod view;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

/// A time as HTTP writes it (RFC 9110 section 5.6.7).
fn http_date(time: Timestamp) -> String {
    DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&time)
        .unwrap_or_else(|_| String::from("Thu, 01 Jan 1970 00:00:00 GMT"))
}
