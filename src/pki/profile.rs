//! What a client's certificate says: names in, rcgen's parameters out.

use std::net::IpAddr;

use rcgen::string::Ia5String;
use rcgen::{DistinguishedName, DnType, SanType};

/// The names of a client, all of them valid in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Subject CN.
    pub common_name: Option<String>,
    /// Subject O.
    pub organization: Option<String>,
    /// Subject OU.
    pub organizational_unit: Option<String>,
    /// Subject alternative names, in the order in which they are encoded.
    pub alternative_names: Vec<AlternativeName>,
}

/// One subject alternative name (RFC 5280 section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AlternativeName {
    /// dNSName.
    Dns(Ascii),
    /// rfc822Name.
    Email(Ascii),
    /// uniformResourceIdentifier.
    Uri(Ascii),
    /// iPAddress.
    Ip(IpAddr),
}

/// A name that consists of printable ASCII only, as IA5String requires.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ascii(String);

/// Why a name can't stand in a certificate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} holds characters outside printable ASCII")]
pub struct NotAscii(String);

impl TryFrom<&str> for Ascii {
    type Error = NotAscii;

    fn try_from(text: &str) -> Result<Self, NotAscii> {
        if text.bytes().all(|b| b.is_ascii_graphic()) && !text.is_empty() {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAscii(text.to_owned()))
        }
    }
}

impl Ascii {
    fn ia5(&self) -> Ia5String {
        Ia5String::try_from(self.0.as_str()).expect("printable ASCII is IA5")
    }
}

impl Profile {
    pub(super) fn distinguished_name(&self) -> DistinguishedName {
        let mut name = DistinguishedName::new();
        let parts = [
            (DnType::OrganizationName, &self.organization),
            (DnType::OrganizationalUnitName, &self.organizational_unit),
            (DnType::CommonName, &self.common_name),
        ];
        for (kind, value) in parts {
            if let Some(value) = value {
                name.push(kind, value.as_str());
            }
        }
        name
    }

    pub(super) fn san_types(&self) -> Vec<SanType> {
        self.alternative_names
            .iter()
            .map(|name| match name {
                AlternativeName::Dns(dns) => SanType::DnsName(dns.ia5()),
                AlternativeName::Email(email) => SanType::Rfc822Name(email.ia5()),
                AlternativeName::Uri(uri) => SanType::URI(uri.ia5()),
                AlternativeName::Ip(ip) => SanType::IpAddress(*ip),
            })
            .collect()
    }
}
