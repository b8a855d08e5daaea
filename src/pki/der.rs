//! The few DER forms (X.690) that names, keys and CRLs need. Everything else is encoded by rcgen.

use jiff::Timestamp;
use jiff::tz::Offset;

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const ENUMERATED: u8 = 0x0a;
pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;

/// Appends the header of a value: its tag and the length of what follows.
pub(super) fn header(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    if length < 0x80 {
        out.push(length as u8);
        return;
    }
    let bytes = length.to_be_bytes();
    let skip = bytes.iter().take_while(|b| **b == 0).count();
    out.push(0x80 | (bytes.len() - skip) as u8);
    out.extend_from_slice(&bytes[skip..]);
}

/// Appends a whole value.
pub(super) fn value(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    header(out, tag, content.len());
    out.extend_from_slice(content);
}

/// A whole value on its own.
pub(super) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    value(&mut out, tag, content);
    out
}

/// Appends a non-negative INTEGER, shortest form (X.690 section 8.3).
pub(super) fn unsigned(out: &mut Vec<u8>, big_endian: &[u8]) {
    let skip = big_endian.iter().take_while(|b| **b == 0).count();
    let digits = &big_endian[skip..];
    // A set top bit would read as a negative number.
    let pad = digits.first().is_none_or(|b| b & 0x80 != 0);
    header(out, INTEGER, digits.len() + usize::from(pad));
    if pad {
        out.push(0);
    }
    out.extend_from_slice(digits);
}

/// Appends a Time: UTCTime until 2049, GeneralizedTime from 2050 (RFC 5280 section 5.1.2.4).
pub(super) fn time(out: &mut Vec<u8>, time: Timestamp) {
    let civil = Offset::UTC.to_datetime(time);
    let year = civil.year().unsigned_abs();
    let (tag, century) = match year {
        ..2050 => (UTC_TIME, None),
        _ => (GENERALIZED_TIME, Some(year / 100)),
    };
    // Formatted by hand: a CRL has a million of them.
    let fields = [year % 100, civil.month() as u16, civil.day() as u16]
        .into_iter()
        .chain([civil.hour(), civil.minute(), civil.second()].map(|field| field as u16));
    out.extend_from_slice(&[tag, (time_length(time) - 2) as u8]);
    for field in century.into_iter().chain(fields) {
        out.extend_from_slice(&[b'0' + (field / 10) as u8, b'0' + (field % 10) as u8]);
    }
    out.push(b'Z');
}

/// How many octets [`time`] appends.
pub(super) fn time_length(time: Timestamp) -> usize {
    // 2050-01-01T00:00:00Z.
    const GENERALIZED_FROM: i64 = 2_524_608_000;
    if time.as_second() < GENERALIZED_FROM { 15 } else { 17 }
}

/// The content of a value that has this tag and is all there is.
pub(super) fn read(value: &[u8], tag: u8) -> Option<&[u8]> {
    let (whole, content) = split(value)?;
    (whole.len() == value.len() && value[0] == tag).then_some(content)
}

/// The values that a value of this tag consists of, exactly so many, each with its header.
pub(super) fn parts<const N: usize>(value: &[u8], tag: u8) -> Option<[&[u8]; N]> {
    let mut values = Values(read(value, tag)?);
    let mut parts = [&[][..]; N];
    for part in &mut parts {
        *part = values.next()?;
    }
    values.0.is_empty().then_some(parts)
}

/// The values that follow each other, each with its header. Ends where none can be read.
pub(super) struct Values<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (whole, _) = split(self.0)?;
        self.0 = &self.0[whole.len()..];
        Some(whole)
    }
}

/// The first value: with its header, and its content alone. Tags have one octet here, and lengths
/// their shortest form (X.690 section 10.1).
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.get(1..)?.split_first()?;
    if bytes[0] & 0x1f == 0x1f {
        return None;
    }
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if octets.len() > 4 || matches!(octets, [] | [0, ..] | [..=0x7f]) {
            return None;
        }
        (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), rest)
    };
    let content = rest.get(..length)?;
    Some((&bytes[..bytes.len() - rest.len() + length], content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (length, expected) in [
            (0x7f, vec![SEQUENCE, 0x7f]),
            (0x80, vec![SEQUENCE, 0x81, 0x80]),
            (0x1234, vec![SEQUENCE, 0x82, 0x12, 0x34]),
        ] {
            let mut out = Vec::new();
            header(&mut out, SEQUENCE, length);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn values_are_read_as_they_were_written_and_nothing_is_read_past_the_end() {
        let long = tlv(OCTET_STRING, &[7; 300]);
        let both = [&tlv(INTEGER, &[1])[..], &long].concat();
        let read_back: Vec<&[u8]> = Values(&both).collect();
        assert_eq!(read_back, [&tlv(INTEGER, &[1])[..], &long]);
        assert_eq!(read(&long, OCTET_STRING), Some(&[7; 300][..]));
        assert_eq!(read(&long, SEQUENCE), None);
        assert_eq!(read(&both, INTEGER), None);
        for end in 0..long.len() {
            assert_eq!(Values(&long[..end]).next(), None);
        }
    }

    #[test]
    fn what_is_not_der_is_not_read() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x30, 1],
            // Indefinite, longer than need be, leading zero, longer than what is there.
            &[0x30, 0x80, 0, 0],
            &[0x04, 0x81, 1, 7],
            &[0x04, 0x82, 0, 0x80],
            &[0x04, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x04, 0x85, 1, 0, 0, 0, 0],
            // A tag of two octets.
            &[0x3f, 0x01, 0x00],
        ] {
            assert_eq!(Values(bytes).next(), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn parts_are_all_of_them() {
        let three = tlv(SEQUENCE, &[2, 1, 7, 4, 0, 5, 0]);
        assert_eq!(parts(&three, SEQUENCE), Some([&[2, 1, 7][..], &[4, 0], &[5, 0]]));
        assert_eq!(parts::<2>(&three, SEQUENCE), None);
        assert_eq!(parts::<4>(&three, SEQUENCE), None);
        assert_eq!(parts::<2>(&tlv(SEQUENCE, &[2, 1, 7, 4]), SEQUENCE), None);
    }

    #[test]
    fn integers_are_minimal_and_never_negative() {
        for (bytes, expected) in [
            (&[0u8, 0][..], vec![2, 1, 0]),
            (&[0, 5], vec![2, 1, 5]),
            (&[0x80], vec![2, 2, 0, 0x80]),
        ] {
            let mut out = Vec::new();
            unsigned(&mut out, bytes);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn the_form_of_a_time_changes_with_2050() {
        let mut out = Vec::new();
        time(&mut out, "2049-12-31T23:59:59.999Z".parse().unwrap());
        assert_eq!(&out[2..], b"491231235959Z");
        out.clear();
        time(&mut out, "2050-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(&out[2..], b"20500101000000Z");
    }
}
