//! A CRL taken apart, without a copy: the fields, and the entries one after the other. Nothing of it is
//! shared with the encoder.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{CrlError, CrlNumber};
use crate::pki::Serial;
use crate::pki::der::{
    self, BIT_STRING, BOOLEAN, ENUMERATED, GENERALIZED_TIME, INTEGER, OCTET_STRING, OID, SEQUENCE,
    UTC_TIME, Values,
};

pub(super) const ID_CE_CRL_NUMBER: &[u8] = &[0x55, 0x1d, 0x14];
pub(super) const ID_CE_CRL_REASONS: &[u8] = &[0x55, 0x1d, 0x15];
pub(super) const ID_CE_DELTA_CRL_INDICATOR: &[u8] = &[0x55, 0x1d, 0x1b];
pub(super) const ID_CE_ISSUING_DISTRIBUTION_POINT: &[u8] = &[0x55, 0x1d, 0x1c];
pub(super) const ID_CE_AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];
pub(super) const ID_CE_FRESHEST_CRL: &[u8] = &[0x55, 0x1d, 0x2e];

/// The fields of a CRL; each one with its header, unless said otherwise.
pub(super) struct Frame<'a> {
    /// TBSCertList: what is signed.
    pub(super) tbs: &'a [u8],
    pub(super) version: Option<&'a [u8]>,
    pub(super) inner_algorithm: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) this_update: &'a [u8],
    pub(super) next_update: Option<&'a [u8]>,
    /// The content of revokedCertificates, if it is there.
    pub(super) revoked: Option<&'a [u8]>,
    pub(super) extensions: Vec<Extension<'a>>,
    pub(super) outer_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// An extension of a CRL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extension<'a> {
    /// The object identifier, content only.
    pub(super) oid: &'a [u8],
    pub(super) critical: bool,
    /// What the OCTET STRING holds.
    pub(super) value: &'a [u8],
}

/// One entry of revokedCertificates.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawEntry<'a> {
    /// userCertificate, content only.
    pub(super) serial: &'a [u8],
    pub(super) revoked_at: &'a [u8],
    /// crlEntryExtensions.
    pub(super) extensions: Option<&'a [u8]>,
}

impl<'a> Frame<'a> {
    pub(super) fn read(crl: &'a [u8]) -> Result<Self, CrlError> {
        Self::parse(crl).ok_or(CrlError::Unusable("not DER of a CertificateList"))
    }

    fn parse(crl: &'a [u8]) -> Option<Self> {
        let [tbs, outer_algorithm, signature] = der::parts(crl, SEQUENCE)?;
        der::read(signature, BIT_STRING)?;
        let mut fields = Fields(der::read(tbs, SEQUENCE)?);
        let version = fields.take(&[INTEGER]);
        let inner_algorithm = fields.take(&[SEQUENCE])?;
        let issuer = fields.take(&[SEQUENCE])?;
        let this_update = fields.take(&[UTC_TIME, GENERALIZED_TIME])?;
        let next_update = fields.take(&[UTC_TIME, GENERALIZED_TIME]);
        let revoked = match fields.take(&[SEQUENCE]) {
            Some(list) => Some(der::read(list, SEQUENCE)?),
            None => None,
        };
        let mut extensions = Vec::new();
        if let Some(explicit) = fields.take(&[0xa0]) {
            let mut list = Fields(der::read(der::read(explicit, 0xa0)?, SEQUENCE)?);
            while let Some(extension) = list.take(&[SEQUENCE]) {
                extensions.push(Extension::parse(extension)?);
            }
            list.end()?;
        }
        fields.end()?;
        Some(Self {
            tbs,
            version,
            inner_algorithm,
            issuer,
            this_update,
            next_update,
            revoked,
            extensions,
            outer_algorithm,
            signature,
        })
    }

    /// The entries, as far as they can be read; an error ends them.
    pub(super) fn entries(&self) -> Entries<'a> {
        Entries(self.revoked.unwrap_or_default())
    }

    /// cRLNumber.
    pub(super) fn number(&self) -> Option<CrlNumber> {
        let value = self.extension(ID_CE_CRL_NUMBER)?.value;
        integer(value).map(CrlNumber)
    }

    /// deltaCRLIndicator.
    pub(super) fn base(&self) -> Option<CrlNumber> {
        integer(self.extension(ID_CE_DELTA_CRL_INDICATOR)?.value).map(CrlNumber)
    }

    /// The URL in issuingDistributionPoint.
    pub(super) fn distribution_point(&self) -> Option<&'a [u8]> {
        one_url(self.extension(ID_CE_ISSUING_DISTRIBUTION_POINT)?.value)
    }

    /// The URL in freshestCRL.
    pub(super) fn freshest(&self) -> Option<&'a [u8]> {
        one_url(der::read(self.extension(ID_CE_FRESHEST_CRL)?.value, SEQUENCE)?)
    }

    /// The key identifier in authorityKeyIdentifier.
    pub(super) fn authority_key_id(&self) -> Option<&'a [u8]> {
        let value = self.extension(ID_CE_AUTHORITY_KEY_IDENTIFIER)?.value;
        Fields(der::read(value, SEQUENCE)?).take(&[0x80]).and_then(|id| der::read(id, 0x80))
    }

    /// The extension of this object identifier.
    pub(super) fn extension(&self, oid: &[u8]) -> Option<&Extension<'a>> {
        self.extensions.iter().find(|extension| extension.oid == oid)
    }
}

/// The fields of a SEQUENCE, some of which may be absent.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next field, with its header, if it has one of these tags.
    fn take(&mut self, tags: &[u8]) -> Option<&'a [u8]> {
        let field = Values(self.0).next().filter(|field| tags.contains(&field[0]))?;
        self.0 = &self.0[field.len()..];
        Some(field)
    }

    /// Nothing is left.
    fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

impl<'a> Extension<'a> {
    fn parse(extension: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(der::read(extension, SEQUENCE)?);
        let oid = der::read(fields.take(&[OID])?, OID)?;
        let critical = match fields.take(&[BOOLEAN]) {
            Some(critical) => der::read(critical, BOOLEAN)? == [0xff],
            None => false,
        };
        let value = der::read(fields.take(&[OCTET_STRING])?, OCTET_STRING)?;
        fields.end()?;
        Some(Self { oid, critical, value })
    }
}

/// The entries of a CRL.
pub(super) struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = Result<RawEntry<'a>, CrlError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let entry = Values(self.0).next().and_then(|entry| {
            self.0 = &self.0[entry.len()..];
            RawEntry::parse(entry)
        });
        if entry.is_none() {
            self.0 = &[];
        }
        Some(entry.ok_or(CrlError::Unusable("an entry can't be read")))
    }
}

impl<'a> RawEntry<'a> {
    fn parse(entry: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(der::read(entry, SEQUENCE)?);
        let serial = der::read(fields.take(&[INTEGER])?, INTEGER)?;
        let revoked_at = fields.take(&[UTC_TIME, GENERALIZED_TIME])?;
        let extensions = fields.take(&[SEQUENCE]);
        fields.end()?;
        Some(Self { serial, revoked_at, extensions })
    }

    /// The serial number; leading zeros don't count.
    pub(super) fn serial(&self) -> Result<Serial, CrlError> {
        let positive = self.serial.first().is_some_and(|first| first & 0x80 == 0);
        Serial::from_be_bytes(self.serial)
            .ok()
            .filter(|_| positive)
            .ok_or(CrlError::Unusable("a serial number is not positive"))
    }

    /// The code of a reasonCode that is all there is. `Err` when the extensions are anything else.
    pub(super) fn reason(&self) -> Result<Option<u8>, ()> {
        let Some(extensions) = self.extensions else { return Ok(None) };
        // What nearly all entries of a long CRL have: SEQUENCE { SEQUENCE { 2.5.29.21, OCTET STRING {
        // ENUMERATED } } }.
        if let &[0x30, 12, 0x30, 10, 6, 3, 0x55, 0x1d, 0x15, 4, 3, 10, 1, code] = extensions {
            return Ok(Some(code));
        }
        let [extension] = der::parts(extensions, SEQUENCE).ok_or(())?;
        let Extension { oid, critical, value } = Extension::parse(extension).ok_or(())?;
        match der::read(value, ENUMERATED) {
            Some([code]) if oid == ID_CE_CRL_REASONS && !critical => Ok(Some(*code)),
            _ => Err(()),
        }
    }
}

/// An INTEGER that is not negative and has at most 16 octets.
pub(super) fn integer(value: &[u8]) -> Option<u128> {
    let digits = der::read(value, INTEGER)?;
    let digits = match digits {
        [0, rest @ ..] => rest,
        [first, ..] if first & 0x80 == 0 => digits,
        _ => return None,
    };
    (digits.len() <= 16)
        .then(|| digits.iter().fold(0, |number, octet| number << 8 | u128::from(*octet)))
}

/// The one http URL of an IssuingDistributionPoint, or a DistributionPoint, that says nothing but a fullName
/// with one URI.
pub(super) fn one_url(value: &[u8]) -> Option<&[u8]> {
    let [name] = der::parts(value, SEQUENCE)?;
    let [full_name] = der::parts(name, 0xa0)?;
    let [uri] = der::parts(full_name, 0xa0)?;
    der::read(uri, 0x86).filter(|uri| uri.starts_with(b"http://"))
}

/// Reads a Time in one of the two forms that RFC 5280 section 4.1.2.5 allows: whole seconds, Z.
pub(super) fn time(field: &[u8]) -> Option<Timestamp> {
    let (century, digits) = match *field.first()? {
        UTC_TIME => (None, der::read(field, UTC_TIME)?),
        GENERALIZED_TIME => {
            let content = der::read(field, GENERALIZED_TIME)?;
            let (century, rest) = content.split_at_checked(2)?;
            (Some(number(century)?), rest)
        }
        _ => return None,
    };
    let digits: &[u8; 13] = digits.try_into().ok()?;
    if digits[12] != b'Z' {
        return None;
    }
    let two = |at: usize| number(&digits[at..at + 2]);
    let year = i16::from(two(0)?);
    let year = match century {
        Some(century) => i16::from(century) * 100 + year,
        // RFC 5280 section 4.1.2.5.1.
        None if year >= 50 => 1900 + year,
        None => 2000 + year,
    };
    let time = DateTime::new(year, two(2)?, two(4)?, two(6)?, two(8)?, two(10)?, 0).ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}

fn number(digits: &[u8]) -> Option<i8> {
    digits.iter().try_fold(0i8, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + (digit - b'0') as i8)
    })
}
