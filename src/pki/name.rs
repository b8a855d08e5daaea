//! Distinguished names (RFC 5280 section 4.1.2.4). Encoded here, since rcgen's are maps and lose a
//! second organizational unit; a CA's own name is always copied byte for byte.

use super::der::{self, OID, SEQUENCE};

const SET: u8 = 0x31;
const PRINTABLE_STRING: u8 = 0x13;
const UTF8_STRING: u8 = 0x0c;

/// A name: its attributes in the order in which they are encoded, each an RDN of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Name(pub Vec<(Attribute, String)>);

/// The type of an attribute (RFC 5280 appendix A.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// C: two letters of ISO 3166.
    Country,
    /// ST.
    StateOrProvince,
    /// L.
    Locality,
    /// O.
    Organization,
    /// OU.
    OrganizationalUnit,
    /// CN.
    CommonName,
    /// serialNumber, of a device or person, not of the certificate.
    SerialNumber,
}

impl Attribute {
    /// The longest value, in characters (the upper bounds of RFC 5280 appendix A.1).
    pub const fn upper_bound(self) -> usize {
        match self {
            Self::Country => 2,
            Self::StateOrProvince | Self::Locality => 128,
            Self::Organization
            | Self::OrganizationalUnit
            | Self::CommonName
            | Self::SerialNumber => 64,
        }
    }

    /// May it hold PrintableString only?
    pub const fn is_printable(self) -> bool {
        matches!(self, Self::Country | Self::SerialNumber)
    }

    /// Its descriptor (RFC 4514 section 3, RFC 4519).
    const fn keyword(self) -> &'static str {
        match self {
            Self::Country => "C",
            Self::StateOrProvince => "ST",
            Self::Locality => "L",
            Self::Organization => "O",
            Self::OrganizationalUnit => "OU",
            Self::CommonName => "CN",
            Self::SerialNumber => "serialNumber",
        }
    }

    /// id-at, then one octet.
    const fn oid(self) -> [u8; 3] {
        let last = match self {
            Self::CommonName => 3,
            Self::SerialNumber => 5,
            Self::Country => 6,
            Self::Locality => 7,
            Self::StateOrProvince => 8,
            Self::Organization => 10,
            Self::OrganizationalUnit => 11,
        };
        [0x55, 0x04, last]
    }
}

/// Does it consist of the characters of PrintableString (X.680 section 41.4)?
pub fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte))
}

/// A value with the escapes of RFC 4514 section 2.4.
fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(text.len());
    for (place, character) in text.chars().enumerate() {
        let at_the_edge =
            (place == 0 && [' ', '#'].contains(&character)) || (place == last && character == ' ');
        if character == '\0' {
            out.push_str("\\00");
            continue;
        }
        if at_the_edge || "\"+,;<>\\".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

impl Name {
    /// The Name as text (RFC 4514 section 2): the last attribute comes first.
    pub fn to_rfc4514(&self) -> String {
        let pair = |(attribute, text): &(Attribute, String)| {
            format!("{}={}", attribute.keyword(), escaped(text))
        };
        self.0.iter().rev().map(pair).collect::<Vec<_>>().join(",")
    }

    /// The Name, DER.
    pub fn to_der(&self) -> Vec<u8> {
        let mut names = Vec::new();
        for (attribute, text) in &self.0 {
            let tag = if attribute.is_printable() { PRINTABLE_STRING } else { UTF8_STRING };
            let mut pair = der::tlv(OID, &attribute.oid());
            der::value(&mut pair, tag, text.as_bytes());
            der::value(&mut names, SET, &der::tlv(SEQUENCE, &pair));
        }
        der::tlv(SEQUENCE, &names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509Name};

    #[test]
    fn as_text_the_last_attribute_comes_first_and_specials_are_escaped() {
        let name = Name(vec![
            (Attribute::Organization, "Sue, Grabbit and Runn".into()),
            (Attribute::SerialNumber, " A 7 ".into()),
            (Attribute::CommonName, "#1 \"Lučić\" <a+b;c\\d=e>\0".into()),
        ]);
        let told = "CN=\\#1 \\\"Lučić\\\" \\<a\\+b\\;c\\\\d=e\\>\\00,serialNumber=\\ A 7\\ ,O=Sue\\, Grabbit and Runn";
        assert_eq!(name.to_rfc4514(), told);
        assert_eq!(Name::default().to_rfc4514(), "");
    }

    #[test]
    fn every_attribute_is_read_back_several_of_a_kind_too() {
        let name = Name(vec![
            (Attribute::Country, "DE".into()),
            (Attribute::StateOrProvince, "Bayern".into()),
            (Attribute::Locality, "München".into()),
            (Attribute::Organization, "Example".into()),
            (Attribute::OrganizationalUnit, "Laptops".into()),
            (Attribute::OrganizationalUnit, "Sales".into()),
            (Attribute::CommonName, "laptop-7".into()),
            (Attribute::SerialNumber, "A 7".into()),
        ]);
        let der = name.to_der();
        let (rest, read) = X509Name::from_der(&der).unwrap();
        assert!(rest.is_empty());
        assert_eq!(
            read.to_string(),
            "C=DE, ST=Bayern, L=München, O=Example, OU=Laptops, OU=Sales, CN=laptop-7, serialNumber=A 7"
        );
    }
}
