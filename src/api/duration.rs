//! Durations as Kubernetes writes them: Go strings such as `2160h`, `90m` or `1h30m`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in whole seconds, written as a Go duration of hours, minutes and seconds.
///
/// The schema is a bounded string, which CEL's `duration()` and Go's `time.ParseDuration` both read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u32);

impl Duration {
    /// A duration of so many seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(seconds)
    }

    /// A duration of so many hours.
    pub const fn from_hours(hours: u32) -> Self {
        Self(hours * 3600)
    }

    /// Its length in seconds.
    pub const fn as_secs(self) -> i64 {
        self.0 as i64
    }
}

/// Why a string is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "invalid duration {0:?}: expected hours, minutes and seconds such as \"2160h\" or \"1h30m\""
)]
pub struct ParseDurationError(String);

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseDurationError(text.to_owned());
        let mut seconds = 0u32;
        let mut number = None;
        for character in text.chars() {
            let unit = match character {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                digit => {
                    let digit = digit.to_digit(10).ok_or_else(invalid)?;
                    let value = number.unwrap_or(0u32).checked_mul(10);
                    number = Some(value.and_then(|v| v.checked_add(digit)).ok_or_else(invalid)?);
                    continue;
                }
            };
            let part = number.take().and_then(|n| n.checked_mul(unit)).ok_or_else(invalid)?;
            seconds = seconds.checked_add(part).ok_or_else(invalid)?;
        }
        if text.is_empty() || number.is_some() {
            return Err(invalid());
        }
        Ok(Self(seconds))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, minutes, seconds) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        match (hours, minutes, seconds) {
            (0, 0, s) => write!(f, "{s}s"),
            (0, m, 0) => write!(f, "{m}m"),
            (0, m, s) => write!(f, "{m}m{s}s"),
            (h, 0, 0) => write!(f, "{h}h"),
            (h, m, 0) => write!(f, "{h}h{m}m"),
            (h, m, s) => write!(f, "{h}h{m}m{s}s"),
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Six digits an hour field: 999999h is 114 years, and no sum of the parts overflows u32.
        json_schema!({
            "type": "string",
            "minLength": 2,
            "maxLength": 20,
            "pattern": "^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read_and_written() {
        for (text, seconds) in [("2160h", 7_776_000), ("90m", 5400), ("1h30m", 5400), ("10s", 10)] {
            assert_eq!(text.parse::<Duration>().unwrap().as_secs(), seconds, "{text}");
        }
        assert_eq!(Duration::from_secs(5400).to_string(), "1h30m");
        assert_eq!(Duration::from_hours(24).to_string(), "24h");
        assert_eq!(Duration::from_secs(61).to_string(), "1m1s");
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in ["", "5", "h", "1d", "-1h", "1.5h", "99999999999h", "1h5"] {
            assert!(text.parse::<Duration>().is_err(), "{text:?}");
        }
    }
}
