//! Serial numbers (RFC 5280 section 4.1.2.2): positive, at most 20 octets.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A serial number in its shortest form. Ours are 16 random octets; foreign ones have up to 20.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Serial {
    length: u8,
    bytes: [u8; 20],
}

/// Why something is not a serial number.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid serial number: expected 1 to 20 octets, positive, in hex")]
pub struct InvalidSerial;

impl Serial {
    /// 127 random bits from the operating system, the first octet neither zero nor above 0x7f, so
    /// that the DER form is always 16 octets.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        loop {
            aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has a random source");
            bytes[0] &= 0x7f;
            if bytes[0] != 0 {
                return Self::from_be_bytes(&bytes).expect("16 octets, positive");
            }
        }
    }

    /// From big-endian octets; leading zeros are dropped.
    pub fn from_be_bytes(bytes: &[u8]) -> Result<Self, InvalidSerial> {
        let digits = match bytes {
            [0, ..] => &bytes[bytes.iter().take_while(|b| **b == 0).count()..],
            _ => bytes,
        };
        if digits.is_empty() || digits.len() > 20 {
            return Err(InvalidSerial);
        }
        let mut serial = Self { length: digits.len() as u8, bytes: [0; 20] };
        // Nearly all have 16 octets: a copy of known length is no call.
        match digits.first_chunk::<16>().filter(|_| digits.len() == 16) {
            Some(digits) => serial.bytes[..16].copy_from_slice(digits),
            None => serial.bytes[..digits.len()].copy_from_slice(digits),
        }
        Ok(serial)
    }

    /// Big-endian octets, no leading zeros.
    pub fn as_be_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The numeric order.
impl Ord for Serial {
    fn cmp(&self, other: &Self) -> Ordering {
        // As numbers: a million of them are sorted and compared for a CRL.
        let key = |serial: &Self| {
            let [first @ .., a, b, c, d] = serial.bytes;
            (serial.length, u128::from_be_bytes(first), u32::from_be_bytes([a, b, c, d]))
        };
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Serial {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_be_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Serial {
    type Err = InvalidSerial;

    fn from_str(text: &str) -> Result<Self, InvalidSerial> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).map(|d| d as u8).ok_or(InvalidSerial))
            .collect::<Result<_, _>>()?;
        if !digits.len().is_multiple_of(2) {
            return Err(InvalidSerial);
        }
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        Self::from_be_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_colons_are_ignored() {
        let serial = Serial::random();
        assert_eq!(serial.to_string().parse(), Ok(serial));
        assert_eq!("0A:ff:01".parse::<Serial>().unwrap().to_string(), "0aff01");
    }

    #[test]
    fn what_is_not_a_serial_is_refused() {
        for text in ["", "00", "0", "xy", "001122334455667788990011223344556677889900112233"] {
            assert_eq!(text.parse::<Serial>(), Err(InvalidSerial), "{text:?}");
        }
    }

    #[test]
    fn random_serials_are_sixteen_octets_and_positive() {
        for _ in 0..1000 {
            let serial = Serial::random();
            assert_eq!(serial.as_be_bytes().len(), 16);
            assert!((1..0x80).contains(&serial.as_be_bytes()[0]));
        }
    }

    #[test]
    fn order_is_numeric() {
        let small: Serial = "ff".parse().unwrap();
        let large: Serial = "0100".parse().unwrap();
        assert!(small < large);
    }
}
