//! When a delta CRL is signed, and to which complete CRL it adds (RFC 5280 section 5.2.4).

use jiff::{SignedDuration, Timestamp};

use super::crl::BACKDATE;
use crate::api::authority::CrlSpec;
use crate::pki::crl::CrlNumber;

/// Why there can't be a delta CRL.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidDelta {
    /// Its URL is not known.
    #[error("spec.crl.delta needs spec.crl.distributionPointBaseURL: the CRL names its URL")]
    NoBaseUrl,
    /// It would be to a CRL that no certificate names.
    #[error(
        "spec.crl.delta can't go with spec.crl.shards: certificates name their shard, to which there is none"
    )]
    Shards,
}

/// The base of the URLs of delta CRLs; none when there are none.
pub fn url_base(spec: &CrlSpec) -> Result<Option<&str>, InvalidDelta> {
    if !spec.delta {
        return Ok(None);
    }
    if spec.shards.is_some() {
        return Err(InvalidDelta::Shards);
    }
    spec.distribution_point_base_url.as_deref().ok_or(InvalidDelta::NoBaseUrl).map(Some)
}

/// A published delta CRL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Its number.
    pub number: CrlNumber,
    /// The complete CRL to which it adds.
    pub base: CrlNumber,
}

/// What to do about the delta CRL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave it as it is.
    Wait,
    /// Sign one to the same base: with what the published one lists, and what came since.
    Extend(CrlNumber),
    /// Sign one to this base, with what came since.
    Begin(CrlNumber),
}

/// Decides what a new complete CRL of number `full` makes of the published delta CRL. `before` is the
/// complete one that it followed: what came between them is known. The base moves on to the one that was made
/// when the base before was `refresh` old, the last that was not made for a revocation.
pub fn decide(
    delta: Option<Delta>,
    before: Option<CrlNumber>,
    full: CrlNumber,
    refresh: SignedDuration,
) -> Decision {
    let Some(before) = before.filter(|before| *before < full) else { return Decision::Wait };
    let Some(Delta { number, base }) = delta else { return Decision::Begin(before) };
    // One that follows an earlier complete CRL lacks what came between: nobody knows it any more.
    if number >= full {
        Decision::Wait
    } else if number == before && before.age(base) < refresh {
        Decision::Extend(base)
    } else {
        Decision::Begin(before)
    }
}

/// nextUpdate of a delta CRL to a complete one with these times. The next one comes after `refresh` at the
/// latest.
pub fn next_update(
    this_update: Timestamp,
    next_update: Timestamp,
    refresh: SignedDuration,
) -> Timestamp {
    let twice = this_update.saturating_add(BACKDATE + refresh + refresh);
    twice.map_or(next_update, |twice| twice.min(next_update))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    /// The number of a CRL that was made after so many minutes.
    fn number(minutes: u128) -> CrlNumber {
        CrlNumber(1_700_000_000_000_000_000 + minutes * 60_000_000_000)
    }

    #[test]
    fn the_base_stays_until_a_complete_crl_was_made_for_its_age() {
        let decided = |delta: Option<(u128, u128)>, before: Option<u128>, full| {
            let delta = delta.map(|(at, base)| Delta { number: number(at), base: number(base) });
            decide(delta, before.map(number), number(full), HOUR)
        };
        for (delta, before, full, expected) in [
            // The first complete one, and one that an earlier process published.
            (None, None, 0, Decision::Wait),
            (Some((10, 0)), None, 10, Decision::Wait),
            (None, Some(0), 10, Decision::Begin(number(0))),
            (Some((10, 0)), Some(10), 20, Decision::Extend(number(0))),
            // The refresh itself, and the first after it.
            (Some((20, 0)), Some(20), 80, Decision::Extend(number(0))),
            (Some((80, 0)), Some(80), 90, Decision::Begin(number(80))),
            // It is there already.
            (Some((20, 0)), Some(10), 20, Decision::Wait),
            // One in between was missed.
            (Some((10, 0)), Some(20), 30, Decision::Begin(number(20))),
            // A complete one of before came back.
            (Some((30, 0)), Some(10), 20, Decision::Wait),
        ] {
            assert_eq!(decided(delta, before, full), expected, "{delta:?} {before:?} {full}");
        }
    }

    #[test]
    fn it_lasts_twice_as_long_as_it_takes_to_the_next_and_no_longer_than_the_complete_one() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(next_update(at(0), at(99_999), HOUR), at(7260));
        assert_eq!(next_update(at(0), at(5000), HOUR), at(5000));
    }

    #[test]
    fn it_needs_a_url_and_a_crl_without_shards() {
        let url = Some("http://crl.example.com".to_owned());
        for (delta, url, shards, expected) in [
            (false, None, Some(2), Ok(None)),
            (true, url.clone(), None, Ok(Some("http://crl.example.com"))),
            (true, url, Some(2), Err(InvalidDelta::Shards)),
            (true, None, None, Err(InvalidDelta::NoBaseUrl)),
        ] {
            let spec =
                CrlSpec { delta, shards, distribution_point_base_url: url, ..CrlSpec::default() };
            assert_eq!(url_base(&spec), expected);
        }
    }
}
