//! When a shard of a CRL is signed anew. It is made of the entries of the complete CRL, under its number
//! and with its times.

use jiff::{SignedDuration, Timestamp};

use super::crl::refresh_time;
use crate::api::authority::CrlSpec;
use crate::pki::crl::{CrlFacts, CrlNumber};

/// More shards are more to sign and to serve, and a CRL that is divided so is small.
pub const MOST: u32 = 64;

/// Why a CRL can't be divided.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidShards {
    /// Too few, or too many.
    #[error("spec.crl.shards must be from 2 to {MOST}")]
    Number,
    /// Their URLs are not known.
    #[error(
        "spec.crl.shards needs spec.crl.distributionPointBaseURL: certificates name the URL of their shard"
    )]
    NoBaseUrl,
}

/// Into how many shards a CRL is divided, and the base of their URLs; none when it is not divided.
pub fn division(spec: &CrlSpec) -> Result<Option<(u32, &str)>, InvalidShards> {
    let Some(of) = spec.shards else { return Ok(None) };
    if !(2..=MOST).contains(&of) {
        return Err(InvalidShards::Number);
    }
    let base = spec.distribution_point_base_url.as_deref().ok_or(InvalidShards::NoBaseUrl)?;
    Ok(Some((of, base)))
}

/// A shard as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its number.
    pub number: CrlNumber,
    /// When it was made.
    pub this_update: Timestamp,
    /// When it expires.
    pub next_update: Timestamp,
    /// SHA-256 over its encoded entries, lower-case hex.
    pub entries: String,
}

/// What to do about a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Sign it from the complete CRL.
    Sign,
    /// It is good until then.
    WaitUntil(Timestamp),
}

/// Decides whether a shard must be signed now. `shard` is the published one, if one can be used; `full` the
/// complete CRL, and `entries` what of its entries belongs to the shard, as [`Shard::entries`] has it. A
/// shard is signed anew after `refresh`, and before that only when its own entries changed.
pub fn decide(
    shard: Option<&Shard>,
    full: &CrlFacts,
    entries: &str,
    refresh: SignedDuration,
    ca_not_after: Timestamp,
    now: Timestamp,
) -> Decision {
    let Some(shard) = shard else { return Decision::Sign };
    let due = refresh_time(shard.this_update, shard.next_update, refresh, ca_not_after);
    // Two of one number would not be told apart: then the next complete CRL comes first.
    let is_behind = shard.number < full.number;
    if is_behind && (shard.entries != entries || now >= due) {
        return Decision::Sign;
    }
    Decision::WaitUntil(due)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn decided(shard: Option<(u128, &str)>, now: i64) -> Decision {
        let full = CrlFacts {
            number: CrlNumber(7),
            this_update: at(10_000),
            next_update: at(10_000) + HOUR * 10,
            issuer_der: vec![],
            authority_key_id: vec![],
            serials: vec![],
        };
        let shard = shard.map(|(number, entries)| Shard {
            number: CrlNumber(number),
            this_update: at(0),
            next_update: at(0) + HOUR * 10,
            entries: entries.to_owned(),
        });
        decide(shard.as_ref(), &full, "same", HOUR * 4, at(500_000), at(now))
    }

    #[test]
    fn a_division_needs_a_good_number_and_a_url() {
        let url = Some("http://crl.example.com".to_owned());
        for (shards, url, expected) in [
            (None, None, Ok(None)),
            (Some(2), url.clone(), Ok(Some((2, "http://crl.example.com")))),
            (Some(64), url.clone(), Ok(Some((64, "http://crl.example.com")))),
            (Some(1), url.clone(), Err(InvalidShards::Number)),
            (Some(65), url, Err(InvalidShards::Number)),
            (Some(2), None, Err(InvalidShards::NoBaseUrl)),
        ] {
            let spec = CrlSpec { shards, distribution_point_base_url: url, ..CrlSpec::default() };
            assert_eq!(division(&spec), expected, "{shards:?}");
        }
    }

    #[test]
    fn a_shard_is_signed_when_its_entries_changed_or_its_time_has_come() {
        // BACKDATE lies between thisUpdate and the time at which it was made.
        let due = 4 * 3600 + 60;
        let wait = Decision::WaitUntil(at(due));
        for (shard, now, expected) in [
            (None, 10_100, Decision::Sign),
            (Some((5, "other")), 10_100, Decision::Sign),
            (Some((5, "same")), 10_100, wait),
            (Some((5, "same")), due - 1, wait),
            (Some((5, "same")), due, Decision::Sign),
            // Made of this complete CRL, or of a later one that somebody took back.
            (Some((7, "same")), due, wait),
            (Some((7, "other")), 10_100, wait),
            (Some((9, "other")), due, wait),
        ] {
            assert_eq!(decided(shard, now), expected, "{shard:?} at {now}");
        }
    }
}
