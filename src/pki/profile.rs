//! What a client's certificate says: names in, rcgen's parameters out.

use std::fmt;
use std::net::IpAddr;

use rcgen::string::Ia5String;
use rcgen::{ExtendedKeyUsagePurpose, OtherNameValue, SanType};

use super::name::Name;

/// id-ms-san-upn: a user principal name, as Active Directory has it (MS-WCCE section 2.2.2.7.7.2).
const USER_PRINCIPAL_NAME: [u64; 10] = [1, 3, 6, 1, 4, 1, 311, 20, 2, 3];

/// What of a certificate is the client's: names and usages, all of them valid in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// The subject; may be empty when there are alternative names.
    pub subject: Name,
    /// Subject alternative names, in the order in which they are encoded.
    pub alternative_names: Vec<AlternativeName>,
    /// Extended key usages.
    pub usages: Vec<Usage>,
}

/// What a certificate may be used for (RFC 5280 section 4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Usage {
    /// id-kp-clientAuth.
    ClientAuth,
    /// id-kp-serverAuth.
    ServerAuth,
}

impl Usage {
    /// The usage in cert-manager's words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientAuth => "client auth",
            Self::ServerAuth => "server auth",
        }
    }
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
    /// otherName of type user principal name, a UTF8String.
    UserPrincipalName(String),
}

/// The form that OpenSSL prints.
impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(dns) => write!(f, "DNS:{}", dns.0),
            Self::Email(email) => write!(f, "email:{}", email.0),
            Self::Uri(uri) => write!(f, "URI:{}", uri.0),
            Self::Ip(ip) => write!(f, "IP Address:{ip}"),
            Self::UserPrincipalName(name) => write!(f, "othername:UPN:{name}"),
        }
    }
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
    pub(super) fn san_types(&self) -> Vec<SanType> {
        self.alternative_names
            .iter()
            .map(|name| match name {
                AlternativeName::Dns(dns) => SanType::DnsName(dns.ia5()),
                AlternativeName::Email(email) => SanType::Rfc822Name(email.ia5()),
                AlternativeName::Uri(uri) => SanType::URI(uri.ia5()),
                AlternativeName::Ip(ip) => SanType::IpAddress(*ip),
                AlternativeName::UserPrincipalName(name) => SanType::OtherName((
                    USER_PRINCIPAL_NAME.to_vec(),
                    OtherNameValue::Utf8String(name.clone()),
                )),
            })
            .collect()
    }

    pub(super) fn extended_key_usages(&self) -> Vec<ExtendedKeyUsagePurpose> {
        self.usages
            .iter()
            .map(|usage| match usage {
                Usage::ClientAuth => ExtendedKeyUsagePurpose::ClientAuth,
                Usage::ServerAuth => ExtendedKeyUsagePurpose::ServerAuth,
            })
            .collect()
    }
}
