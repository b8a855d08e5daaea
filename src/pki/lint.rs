//! What a client certificate must look like, as a table: RFC 5280 and what stands on it. Every
//! certificate passes it before anyone sees it. Read by x509-parser, which had no part in encoding.

use std::collections::HashSet;

use x509_parser::der_parser::oid::Oid;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use super::der::{self, GENERALIZED_TIME, SEQUENCE, UTC_TIME, Values};
use super::name::is_printable;
use super::public_key::KeyType;
use super::syntax::{
    check_spiffe_id, is_absolute_uri, is_dns_name_or_wildcard, is_email_address, is_spiffe,
};

/// One rule.
pub struct Rule {
    /// Its name, for conditions and tests.
    pub name: &'static str,
    /// Where it stands.
    pub section: &'static str,
    /// Whether a certificate keeps it; if not, how it does not.
    pub check: fn(&Leaf<'_>) -> Result<(), String>,
}

/// A certificate and its CA's.
pub struct Leaf<'a> {
    certificate: X509Certificate<'a>,
    authority: X509Certificate<'a>,
}

/// Which rule a certificate breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate breaks rule {rule} ({section}): {detail}")]
pub struct Broken {
    /// Name of the rule.
    pub rule: &'static str,
    /// Where it stands.
    pub section: &'static str,
    /// How it is broken.
    pub detail: String,
}

const fn rule(name: &'static str, section: &'static str, check: fn(&Leaf<'_>) -> Check) -> Rule {
    Rule { name, section, check }
}

/// The rules, in the order in which a certificate has its fields.
pub const RULES: &[Rule] = &[
    rule("version", "RFC 5280 section 4.1.2.1", version),
    rule("serial_number", "RFC 5280 section 4.1.2.2", serial_number),
    rule("serial_number_entropy", "CA/B Baseline Requirements section 7.1", serial_number_entropy),
    rule("signature_algorithm", "RFC 5280 section 4.1.1.2", signature_algorithm),
    rule("issuer", "RFC 5280 section 4.1.2.4", issuer),
    rule("time_form", "RFC 5280 section 4.1.2.5", time_form),
    rule("validity", "RFC 5280 section 4.1.2.5", validity),
    rule("validity_of_ca", "RFC 5280 section 6.1.3 (a)(2)", validity_of_ca),
    rule("subject_strings", "RFC 5280 section 4.1.2.4", subject_strings),
    rule("subject_lengths", "RFC 5280 appendix A.1", subject_lengths),
    rule("country", "RFC 5280 appendix A.1", country),
    rule("public_key", "RFC 5280 section 4.1.2.7", public_key),
    rule("public_key_of_ca", "RFC 5280 section 4.2.1.9", public_key_of_ca),
    rule("unique_identifiers", "RFC 5280 section 4.1.2.8", unique_identifiers),
    rule("extension_once", "RFC 5280 section 4.2", extension_once),
    rule("extension_encoding", "RFC 5280 section 4.2", extension_encoding),
    rule("extension_critical", "RFC 5280 section 4.2", extension_critical),
    rule("authority_key_identifier", "RFC 5280 section 4.2.1.1", authority_key_identifier),
    rule("subject_key_identifier", "RFC 5280 section 4.2.1.2", subject_key_identifier),
    rule("key_usage", "RFC 5280 section 4.2.1.3", key_usage),
    rule("key_usage_of_ca", "RFC 5280 section 4.2.1.3", key_usage_of_ca),
    rule("key_usage_of_key", "RFC 3279 section 2.3, RFC 8410 section 5", key_usage_of_key),
    rule("names", "RFC 5280 section 4.1.2.6", names_present),
    rule("alternative_name_critical", "RFC 5280 section 4.2.1.6", alternative_name_critical),
    rule("alternative_name_empty", "RFC 5280 section 4.2.1.6", alternative_name_empty),
    rule("alternative_name_once", "RFC 5280 section 4.2.1.6", alternative_name_once),
    rule("alternative_name_kind", "RFC 5280 section 4.2.1.6", alternative_name_kind),
    rule("alternative_name_ia5", "RFC 5280 section 4.2.1.6", alternative_name_ia5),
    rule(
        "dns_name",
        "RFC 1034 section 3.5, RFC 1123 section 2.1, RFC 6125 section 6.4.3",
        dns_name,
    ),
    rule("email_address", "RFC 5280 section 4.2.1.6, RFC 5321 section 4.1.2", email_address),
    rule("uri", "RFC 5280 section 4.2.1.6, RFC 3986 section 3", uri),
    rule("spiffe_id", "SPIFFE-ID sections 2.1 to 2.4", spiffe_id),
    rule("spiffe_id_alone", "X509-SVID section 2", spiffe_id_alone),
    rule("ip_address", "RFC 5280 section 4.2.1.6", ip_address),
    rule("basic_constraints", "RFC 5280 section 4.2.1.9", basic_constraints),
    rule("extended_key_usage", "RFC 5280 section 4.2.1.12", extended_key_usage),
    rule("crl_distribution_points", "RFC 5280 section 4.2.1.13", crl_distribution_points),
];

/// Does a certificate keep every rule? `ca_der` is the certificate of the CA that signed it.
///
/// The signature itself is not looked at: [`super::verify`] does that.
pub fn lint(der: &[u8], ca_der: &[u8]) -> Result<(), Broken> {
    let leaf = Leaf { certificate: read(der)?, authority: read(ca_der)? };
    match leaf.broken().next() {
        Some(broken) => Err(broken),
        None => Ok(()),
    }
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, Broken> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("bytes follow it".to_owned()),
        Err(error) => Err(error.to_string()),
    }
    .map_err(|detail| Broken { rule: "encoding", section: "RFC 5280 section 4.1", detail })
}

/// The first extension of a kind, with what it says.
macro_rules! extension {
    ($leaf:expr, $kind:ident) => {
        $leaf.certificate.iter_extensions().find_map(|extension| {
            match extension.parsed_extension() {
                ParsedExtension::$kind(value) => Some((extension, value)),
                _ => None,
            }
        })
    };
}
impl Leaf<'_> {
    fn broken(&self) -> impl Iterator<Item = Broken> {
        RULES.iter().filter_map(|rule| {
            let detail = (rule.check)(self).err()?;
            Some(Broken { rule: rule.name, section: rule.section, detail })
        })
    }

    fn names(&self) -> &[GeneralName<'_>] {
        extension!(self, SubjectAlternativeName)
            .map_or(&[], |(_, names)| names.general_names.as_slice())
    }

    fn uris(&self) -> impl Iterator<Item = &str> {
        self.names().iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
    }
}

type Check = Result<(), String>;

fn require(kept: bool, detail: impl Into<String>) -> Check {
    if kept { Ok(()) } else { Err(detail.into()) }
}

fn version(leaf: &Leaf<'_>) -> Check {
    let version = leaf.certificate.version();
    require(version == X509Version::V3, format!("version is {version}"))
}

fn serial_number(leaf: &Leaf<'_>) -> Check {
    let serial = leaf.certificate.raw_serial();
    let positive = serial.first().is_some_and(|first| first & 0x80 == 0)
        && serial.iter().any(|octet| *octet != 0);
    require(positive, "it is not positive")?;
    require(serial.len() <= 20, format!("it has {} octets", serial.len()))
}

fn serial_number_entropy(leaf: &Leaf<'_>) -> Check {
    let octets = leaf.certificate.raw_serial().len();
    require(octets >= 8, format!("{octets} octets can't hold 64 random bits"))
}

fn signature_algorithm(leaf: &Leaf<'_>) -> Check {
    let same = leaf.certificate.signature_algorithm == leaf.certificate.tbs_certificate.signature;
    require(same, "it differs from the one within the signed part")
}

fn issuer(leaf: &Leaf<'_>) -> Check {
    let issuer = leaf.certificate.issuer();
    require(issuer.iter().next().is_some(), "it is empty")?;
    let same = issuer.as_raw() == leaf.authority.subject().as_raw();
    require(
        same,
        format!("{issuer} is not byte for byte the CA's subject {}", leaf.authority.subject()),
    )
}

/// UTCTime until 2049 and GeneralizedTime from 2050, to the second, in Zulu.
fn time_form(leaf: &Leaf<'_>) -> Check {
    const VALIDITY: usize = 4;
    let tbs = der::read(leaf.certificate.tbs_certificate.as_ref(), SEQUENCE);
    let validity = tbs.and_then(|tbs| Values(tbs).nth(VALIDITY));
    let times = validity.and_then(|validity| der::parts::<2>(validity, SEQUENCE));
    for time in times.ok_or("they can't be read")? {
        let (text, digits) = match (der::read(time, UTC_TIME), der::read(time, GENERALIZED_TIME)) {
            (Some(text), _) => (text, 12),
            (_, Some(text)) => {
                let late = text.get(..4).is_some_and(|year| year >= &b"2050"[..]);
                require(late, "a GeneralizedTime before 2050")?;
                (text, 14)
            }
            _ => return Err("neither UTCTime nor GeneralizedTime".into()),
        };
        let plain = text.len() == digits + 1
            && text[..digits].iter().all(u8::is_ascii_digit)
            && text[digits] == b'Z';
        require(plain, format!("{:?}", String::from_utf8_lossy(text)))?;
    }
    Ok(())
}

fn validity(leaf: &Leaf<'_>) -> Check {
    let validity = leaf.certificate.validity();
    let ordered = validity.not_before < validity.not_after;
    require(ordered, format!("from {} to {}", validity.not_before, validity.not_after))
}

fn validity_of_ca(leaf: &Leaf<'_>) -> Check {
    let (own, ca) = (leaf.certificate.validity(), leaf.authority.validity());
    require(own.not_before >= ca.not_before, format!("the CA is valid from {}", ca.not_before))?;
    require(own.not_after <= ca.not_after, format!("the CA is valid to {}", ca.not_after))
}

const COUNTRY: &str = "2.5.4.6";
const SERIAL_NUMBER: &str = "2.5.4.5";
/// Attribute types with what they are called and how many characters they may have.
const UPPER_BOUNDS: &[(&str, &str, usize)] = &[
    ("2.5.4.3", "CN", 64),
    (SERIAL_NUMBER, "serialNumber", 64),
    ("2.5.4.7", "L", 128),
    ("2.5.4.8", "ST", 128),
    ("2.5.4.10", "O", 64),
    ("2.5.4.11", "OU", 64),
];
const PRINTABLE_STRING: u32 = 19;
const UTF8_STRING: u32 = 12;

/// UTF8String or PrintableString, of characters that it may hold, and not empty.
fn subject_strings(leaf: &Leaf<'_>) -> Check {
    for attribute in leaf.certificate.subject().iter_attributes() {
        let (value, oid) = (attribute.attr_value(), attribute.attr_type().to_id_string());
        let good = match value.tag().0 {
            PRINTABLE_STRING => std::str::from_utf8(value.data).is_ok_and(is_printable),
            UTF8_STRING => std::str::from_utf8(value.data).is_ok() && oid != SERIAL_NUMBER,
            _ => false,
        };
        require(good && !value.data.is_empty(), format!("attribute {oid}"))?;
    }
    Ok(())
}

fn subject_lengths(leaf: &Leaf<'_>) -> Check {
    for attribute in leaf.certificate.subject().iter_attributes() {
        let oid = attribute.attr_type().to_id_string();
        let length = String::from_utf8_lossy(attribute.attr_value().data).chars().count();
        if let Some((_, name, limit)) = UPPER_BOUNDS.iter().find(|(known, ..)| *known == oid) {
            require(length <= *limit, format!("{name} has {length} characters, of {limit}"))?;
        }
    }
    Ok(())
}

fn country(leaf: &Leaf<'_>) -> Check {
    let attributes = leaf.certificate.subject().iter_attributes();
    for country in attributes.filter(|attribute| attribute.attr_type().to_id_string() == COUNTRY) {
        let value = country.attr_value();
        let two_letters = value.tag().0 == PRINTABLE_STRING
            && value.data.len() == 2
            && value.data.iter().all(u8::is_ascii_alphabetic);
        require(two_letters, "it is not a PrintableString of two letters")?;
    }
    Ok(())
}

fn public_key(leaf: &Leaf<'_>) -> Check {
    KeyType::of(leaf.certificate.public_key().raw).map(|_| ()).map_err(|error| error.to_string())
}

fn public_key_of_ca(leaf: &Leaf<'_>) -> Check {
    let own = leaf.certificate.public_key().raw;
    require(own != leaf.authority.public_key().raw, "it is the CA's own key")
}

fn unique_identifiers(leaf: &Leaf<'_>) -> Check {
    let tbs = &leaf.certificate.tbs_certificate;
    require(tbs.issuer_uid.is_none() && tbs.subject_uid.is_none(), "there is one")
}

fn extension_once(leaf: &Leaf<'_>) -> Check {
    let mut seen = HashSet::new();
    let twice = leaf.certificate.iter_extensions().find(|extension| !seen.insert(&extension.oid));
    twice.map_or(Ok(()), |extension| Err(format!("{} stands there twice", extension.oid)))
}

fn extension_encoding(leaf: &Leaf<'_>) -> Check {
    for extension in leaf.certificate.iter_extensions() {
        let whole =
            Values(extension.value).next().is_some_and(|v| v.len() == extension.value.len());
        let read = extension.parsed_extension().error().is_none();
        require(whole && read, format!("{} can't be read", extension.oid))?;
    }
    Ok(())
}

/// A verifier refuses what it does not know and is critical (RFC 5280 section 4.2), so none may be.
fn extension_critical(leaf: &Leaf<'_>) -> Check {
    let known = |extension: &ParsedExtension<'_>| {
        matches!(
            extension,
            ParsedExtension::KeyUsage(_)
                | ParsedExtension::SubjectAlternativeName(_)
                | ParsedExtension::BasicConstraints(_)
                | ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::ParseError { .. }
        )
    };
    let mut extensions = leaf.certificate.iter_extensions();
    let bad =
        extensions.find(|extension| extension.critical && !known(extension.parsed_extension()));
    bad.map_or(Ok(()), |extension| Err(format!("{} is critical", extension.oid)))
}

fn authority_key_identifier(leaf: &Leaf<'_>) -> Check {
    let (_, own) = extension!(leaf, AuthorityKeyIdentifier).ok_or("there is none")?;
    let ca =
        leaf.authority.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id),
            _ => None,
        });
    require(own.key_identifier.is_some(), "it has no keyIdentifier")?;
    require(own.key_identifier.as_ref() == ca, "it is not the CA's subjectKeyIdentifier")
}

fn subject_key_identifier(leaf: &Leaf<'_>) -> Check {
    let (_, id) = extension!(leaf, SubjectKeyIdentifier).ok_or("there is none")?;
    require(!id.0.is_empty(), "it is empty")
}

fn key_usage(leaf: &Leaf<'_>) -> Check {
    let (extension, usage) = extension!(leaf, KeyUsage).ok_or("there is none")?;
    require(extension.critical, "it is not critical")?;
    require(usage.digital_signature(), "it lacks digitalSignature")
}

fn key_usage_of_ca(leaf: &Leaf<'_>) -> Check {
    let usage = extension!(leaf, KeyUsage).map(|(_, usage)| usage);
    let of_ca = usage.is_some_and(|usage| usage.key_cert_sign() || usage.crl_sign());
    require(!of_ca, "keyCertSign and cRLSign are for CAs")
}

fn key_usage_of_key(leaf: &Leaf<'_>) -> Check {
    let Some((_, usage)) = extension!(leaf, KeyUsage) else { return Ok(()) };
    let algorithm = leaf.certificate.public_key().algorithm.algorithm.to_id_string();
    let enciphers = usage.key_encipherment() || usage.data_encipherment();
    let agrees = usage.key_agreement() || usage.encipher_only() || usage.decipher_only();
    require(!enciphers || algorithm == "1.2.840.113549.1.1.1", "only RSA keys encipher")?;
    require(!agrees || algorithm == "1.2.840.10045.2.1", "only EC keys agree on keys")
}

fn names_present(leaf: &Leaf<'_>) -> Check {
    let subject = leaf.certificate.subject().iter().next().is_some();
    let san = extension!(leaf, SubjectAlternativeName).is_some();
    require(subject || san, "neither subject nor subjectAltName")
}

fn alternative_name_critical(leaf: &Leaf<'_>) -> Check {
    let Some((san, _)) = extension!(leaf, SubjectAlternativeName) else { return Ok(()) };
    let subject = leaf.certificate.subject().iter().next().is_some();
    require(subject || san.critical, "the subject is empty, and subjectAltName is not critical")?;
    require(!(subject && san.critical), "there is a subject, and subjectAltName is critical")
}

fn alternative_name_empty(leaf: &Leaf<'_>) -> Check {
    let san = extension!(leaf, SubjectAlternativeName);
    require(san.is_none() || !leaf.names().is_empty(), "it holds no name")
}

fn alternative_name_once(leaf: &Leaf<'_>) -> Check {
    let names = leaf.names();
    let twice = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name));
    twice.map_or(Ok(()), |(_, name)| Err(format!("{name} stands there twice")))
}

/// DNS, email, URI, IP and user principal names are what we sign; the last is a UTF8String.
fn alternative_name_kind(leaf: &Leaf<'_>) -> Check {
    for name in leaf.names() {
        let good = match name {
            GeneralName::OtherName(oid, value) => is_user_principal_name(oid, value),
            // Text that is not even UTF-8 is no other kind of name.
            GeneralName::Invalid(tag, _) => [1, 2, 6].contains(&tag.0),
            name => is_text(name).is_some() || matches!(name, GeneralName::IPAddress(_)),
        };
        require(good, format!("{name} is none that is signed"))?;
    }
    Ok(())
}

fn is_user_principal_name(oid: &Oid<'_>, value: &[u8]) -> bool {
    let text = der::read(value, 0xa0).and_then(|inner| der::read(inner, UTF8_STRING as u8));
    oid.to_id_string() == "1.3.6.1.4.1.311.20.2.3"
        && text.is_some_and(|text| !text.is_empty() && std::str::from_utf8(text).is_ok())
}

fn is_text<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
            Some(text)
        }
        _ => None,
    }
}

fn alternative_name_ia5(leaf: &Leaf<'_>) -> Check {
    for name in leaf.names() {
        let ascii = is_text(name).is_none_or(str::is_ascii);
        require(
            ascii && !matches!(name, GeneralName::Invalid(..)),
            format!("{name} is not ASCII"),
        )?;
    }
    Ok(())
}

fn dns_name(leaf: &Leaf<'_>) -> Check {
    for name in leaf.names() {
        let GeneralName::DNSName(name) = name else { continue };
        require(is_dns_name_or_wildcard(name), format!("{name:?}"))?;
    }
    Ok(())
}

fn email_address(leaf: &Leaf<'_>) -> Check {
    for name in leaf.names() {
        let GeneralName::RFC822Name(address) = name else { continue };
        require(is_email_address(address), format!("{address:?}"))?;
    }
    Ok(())
}

fn uri(leaf: &Leaf<'_>) -> Check {
    leaf.uris().try_for_each(|uri| require(is_absolute_uri(uri), format!("{uri:?}")))
}

fn spiffe_id(leaf: &Leaf<'_>) -> Check {
    leaf.uris().filter(|uri| is_spiffe(uri)).try_for_each(check_spiffe_id)
}

fn spiffe_id_alone(leaf: &Leaf<'_>) -> Check {
    let alone = !leaf.uris().any(is_spiffe) || leaf.uris().count() == 1;
    require(alone, "a SPIFFE ID must be the only URI")
}

fn ip_address(leaf: &Leaf<'_>) -> Check {
    for name in leaf.names() {
        let GeneralName::IPAddress(octets) = name else { continue };
        require([4, 16].contains(&octets.len()), format!("it has {} octets", octets.len()))?;
    }
    Ok(())
}

fn basic_constraints(leaf: &Leaf<'_>) -> Check {
    let Some((extension, constraints)) = extension!(leaf, BasicConstraints) else { return Ok(()) };
    require(!constraints.ca, "it says cA")?;
    require(constraints.path_len_constraint.is_none(), "it has a path length and is no CA")?;
    require(extension.critical, "it is not critical")
}

fn extended_key_usage(leaf: &Leaf<'_>) -> Check {
    let (_, usage) = extension!(leaf, ExtendedKeyUsage).ok_or("there is none")?;
    let other = usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing
        || !usage.other.is_empty();
    require(usage.client_auth, "it lacks clientAuth")?;
    require(!usage.any, "it has anyExtendedKeyUsage")?;
    require(!other, "it has more than clientAuth and serverAuth")
}

/// One place, over plain HTTP: verifiers stumble over more, and over TLS they would go in circles.
fn crl_distribution_points(leaf: &Leaf<'_>) -> Check {
    let Some((_, points)) = extension!(leaf, CRLDistributionPoints) else { return Ok(()) };
    let [point] = points.points.as_slice() else {
        return Err(format!("it has {} points", points.points.len()));
    };
    require(
        point.reasons.is_none() && point.crl_issuer.is_none(),
        "it has reasons or a cRLIssuer",
    )?;
    let Some(DistributionPointName::FullName(names)) = &point.distribution_point else {
        return Err("it has no fullName".into());
    };
    match names.as_slice() {
        [GeneralName::URI(uri)] if uri.starts_with("http://") && is_absolute_uri(uri) => Ok(()),
        names => Err(format!("not one http URI: {names:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::sample;
    use crate::pki::der::{BIT_STRING, INTEGER, OCTET_STRING, OID, tlv};
    use crate::pki::issue::tests::sample_leaf;
    use crate::pki::{CertificateAuthority, PrivateKey};

    /// The fields of a certificate as DER, each of which a test can spoil.
    struct Draft {
        version: Vec<u8>,
        serial: Vec<u8>,
        inner_algorithm: Vec<u8>,
        outer_algorithm: Vec<u8>,
        issuer: Vec<u8>,
        validity: Vec<u8>,
        subject: Vec<u8>,
        public_key: Vec<u8>,
        unique_identifier: Vec<u8>,
        /// The last octet of id-ce, whether critical, and the value.
        extensions: Vec<(u8, bool, Vec<u8>)>,
    }

    const KEY_IDENTIFIER: u8 = 14;
    const KEY_USAGE: u8 = 15;
    const NAMES: u8 = 17;
    const BASIC_CONSTRAINTS: u8 = 19;
    const DISTRIBUTION_POINTS: u8 = 31;
    const AUTHORITY_KEY_IDENTIFIER: u8 = 35;
    const EXTENDED_KEY_USAGE: u8 = 37;

    fn sequence(parts: &[&[u8]]) -> Vec<u8> {
        tlv(SEQUENCE, &parts.concat())
    }

    fn algorithm(hash: u8) -> Vec<u8> {
        sequence(&[&tlv(OID, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, hash])])
    }

    fn attribute(last: u8, tag: u8, value: &str) -> Vec<u8> {
        let pair = [tlv(OID, &[0x55, 0x04, last]), tlv(tag, value.as_bytes())].concat();
        tlv(0x31, &tlv(SEQUENCE, &pair))
    }

    fn utc(from: &str, to: &str) -> Vec<u8> {
        sequence(&[&tlv(UTC_TIME, from.as_bytes()), &tlv(UTC_TIME, to.as_bytes())])
    }

    fn dns(name: &str) -> Vec<u8> {
        tlv(0x82, name.as_bytes())
    }

    fn email(name: &str) -> Vec<u8> {
        tlv(0x81, name.as_bytes())
    }

    fn uri(name: &str) -> Vec<u8> {
        tlv(0x86, name.as_bytes())
    }

    fn usages(last: &[u8]) -> Vec<u8> {
        let oids = last.iter().map(|last| tlv(OID, &[0x2b, 6, 1, 5, 5, 7, 3, *last]));
        tlv(SEQUENCE, &oids.collect::<Vec<_>>().concat())
    }

    fn point(uri: &str) -> Vec<u8> {
        sequence(&[&tlv(0xa0, &tlv(0xa0, &tlv(0x86, uri.as_bytes())))])
    }

    fn rsa_key(bits: usize) -> Vec<u8> {
        let mut numbers = Vec::new();
        der::unsigned(&mut numbers, &vec![0xff; bits / 8]);
        der::unsigned(&mut numbers, &[1, 0, 1]);
        let oid = tlv(OID, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01]);
        let key = [&[0][..], &tlv(SEQUENCE, &numbers)].concat();
        sequence(&[&sequence(&[&oid, &[5, 0]]), &tlv(BIT_STRING, &key)])
    }

    impl Draft {
        fn new(authority: &CertificateAuthority) -> Self {
            let key_id = tlv(0x80, &authority.facts().key_id);
            Self {
                version: tlv(0xa0, &[INTEGER, 1, 2]),
                serial: tlv(INTEGER, &[7; 16]),
                inner_algorithm: algorithm(2),
                outer_algorithm: algorithm(2),
                issuer: authority.facts().subject_der.clone(),
                validity: utc("260501100000Z", "260801100000Z"),
                subject: tlv(SEQUENCE, &attribute(3, 12, "laptop-7")),
                public_key: PrivateKey::generate(KeyType::EcdsaP256).public_key_der(),
                unique_identifier: Vec::new(),
                extensions: vec![
                    (KEY_IDENTIFIER, false, tlv(OCTET_STRING, &[7; 20])),
                    (KEY_USAGE, true, vec![BIT_STRING, 2, 7, 0x80]),
                    (NAMES, false, tlv(SEQUENCE, &dns("laptop-7.example.com"))),
                    (BASIC_CONSTRAINTS, true, sequence(&[])),
                    (
                        DISTRIBUTION_POINTS,
                        false,
                        tlv(SEQUENCE, &point("http://crl.example.com/1.crl")),
                    ),
                    (AUTHORITY_KEY_IDENTIFIER, false, tlv(SEQUENCE, &key_id)),
                    (EXTENDED_KEY_USAGE, false, usages(&[2])),
                ],
            }
        }

        fn extension(&mut self, last: u8) -> &mut (u8, bool, Vec<u8>) {
            self.extensions.iter_mut().find(|extension| extension.0 == last).unwrap()
        }

        fn without(&mut self, last: u8) {
            self.extensions.retain(|extension| extension.0 != last);
        }

        fn names(&mut self, names: &[Vec<u8>]) {
            self.extension(NAMES).2 = tlv(SEQUENCE, &names.concat());
        }

        fn subject(&mut self, attributes: &[Vec<u8>]) {
            self.subject = tlv(SEQUENCE, &attributes.concat());
        }

        fn der(&self) -> Vec<u8> {
            let extensions: Vec<u8> = self
                .extensions
                .iter()
                .flat_map(|(last, critical, value)| {
                    let oid = tlv(OID, &[0x55, 0x1d, *last]);
                    let critical: &[u8] = if *critical { &[1, 1, 0xff] } else { &[] };
                    sequence(&[&oid, critical, &tlv(OCTET_STRING, value)])
                })
                .collect();
            let tbs = sequence(&[
                &self.version,
                &self.serial,
                &self.inner_algorithm,
                &self.issuer,
                &self.validity,
                &self.subject,
                &self.public_key,
                &self.unique_identifier,
                &tlv(0xa3, &tlv(SEQUENCE, &extensions)),
            ]);
            sequence(&[&tbs, &self.outer_algorithm, &tlv(BIT_STRING, &[0, 0x30, 0])])
        }
    }

    /// The names of all rules that a draft breaks.
    fn broken(draft: &Draft, authority: &CertificateAuthority) -> Vec<&'static str> {
        let der = draft.der();
        match (read(&der), read(authority.certificate())) {
            (Ok(certificate), Ok(authority)) => {
                Leaf { certificate, authority }.broken().map(|broken| broken.rule).collect()
            }
            (certificate, _) => vec![certificate.unwrap_err().rule],
        }
    }

    type Spoil = fn(&mut Draft);

    /// Each rule, and what breaks it and nothing else.
    const SPOILT: &[(&str, Spoil)] = &[
        ("version", |draft| draft.version = tlv(0xa0, &[INTEGER, 1, 1])),
        ("serial_number", |draft| draft.serial = tlv(INTEGER, &[0xff; 16])),
        ("serial_number", |draft| draft.serial = tlv(INTEGER, &[0; 16])),
        ("serial_number", |draft| draft.serial = tlv(INTEGER, &[7; 21])),
        ("serial_number_entropy", |draft| draft.serial = tlv(INTEGER, &[7; 7])),
        ("signature_algorithm", |draft| draft.outer_algorithm = algorithm(3)),
        ("issuer", |draft| draft.issuer = sequence(&[])),
        ("issuer", |draft| draft.issuer = tlv(SEQUENCE, &attribute(3, 12, "Other CA"))),
        ("time_form", |draft| {
            let (from, to) = (b"20260501100000Z", b"260801100000Z");
            draft.validity = sequence(&[&tlv(GENERALIZED_TIME, from), &tlv(UTC_TIME, to)]);
        }),
        ("validity", |draft| draft.validity = utc("260801100000Z", "260801100000Z")),
        ("validity_of_ca", |draft| draft.validity = utc("251231235959Z", "260801100000Z")),
        ("validity_of_ca", |draft| draft.validity = utc("260501100000Z", "360101000001Z")),
        ("subject_strings", |draft| draft.subject(&[attribute(3, 20, "laptop-7")])),
        ("subject_strings", |draft| draft.subject(&[attribute(3, 19, "laptop_7")])),
        ("subject_strings", |draft| draft.subject(&[attribute(3, 12, "")])),
        ("subject_strings", |draft| draft.subject(&[attribute(5, 12, "7")])),
        ("subject_lengths", |draft| draft.subject(&[attribute(3, 12, &"x".repeat(65))])),
        ("subject_lengths", |draft| draft.subject(&[attribute(10, 12, &"x".repeat(65))])),
        ("subject_lengths", |draft| draft.subject(&[attribute(11, 12, &"x".repeat(65))])),
        ("subject_lengths", |draft| draft.subject(&[attribute(7, 12, &"x".repeat(129))])),
        ("country", |draft| draft.subject(&[attribute(6, 19, "DEU")])),
        ("country", |draft| draft.subject(&[attribute(6, 12, "DE")])),
        ("public_key", |draft| draft.public_key = rsa_key(1024)),
        ("public_key", |draft| {
            let algorithm = sequence(&[&tlv(OID, &[0x2b, 0x65, 0x71])]);
            draft.public_key = sequence(&[&algorithm, &tlv(BIT_STRING, &[0; 58])]);
        }),
        ("unique_identifiers", |draft| draft.unique_identifier = tlv(0x82, &[0, 7])),
        ("extension_once", |draft| {
            let again = draft.extension(KEY_USAGE).clone();
            draft.extensions.push(again);
        }),
        ("extension_encoding", |draft| draft.extension(NAMES).2.push(0)),
        ("extension_encoding", |draft| draft.extensions.push((36, false, vec![0x04, 9]))),
        ("extension_critical", |draft| draft.extensions.push((99, true, vec![5, 0]))),
        ("extension_critical", |draft| draft.extension(KEY_IDENTIFIER).1 = true),
        ("extension_critical", |draft| draft.extension(AUTHORITY_KEY_IDENTIFIER).1 = true),
        ("extension_critical", |draft| draft.extension(DISTRIBUTION_POINTS).1 = true),
        ("authority_key_identifier", |draft| draft.without(AUTHORITY_KEY_IDENTIFIER)),
        ("authority_key_identifier", |draft| {
            draft.extension(AUTHORITY_KEY_IDENTIFIER).2 = sequence(&[]);
        }),
        ("authority_key_identifier", |draft| {
            draft.extension(AUTHORITY_KEY_IDENTIFIER).2 = tlv(SEQUENCE, &tlv(0x80, &[7; 20]));
        }),
        ("subject_key_identifier", |draft| draft.without(KEY_IDENTIFIER)),
        ("key_usage", |draft| draft.without(KEY_USAGE)),
        ("key_usage", |draft| draft.extension(KEY_USAGE).1 = false),
        ("key_usage", |draft| draft.extension(KEY_USAGE).2 = vec![BIT_STRING, 2, 6, 0x40]),
        ("key_usage_of_ca", |draft| draft.extension(KEY_USAGE).2 = vec![BIT_STRING, 2, 2, 0x84]),
        ("key_usage_of_ca", |draft| draft.extension(KEY_USAGE).2 = vec![BIT_STRING, 2, 1, 0x82]),
        ("key_usage_of_key", |draft| draft.extension(KEY_USAGE).2 = vec![BIT_STRING, 2, 5, 0xa0]),
        ("key_usage_of_key", |draft| {
            draft.public_key = rsa_key(2048);
            draft.extension(KEY_USAGE).2 = vec![BIT_STRING, 2, 3, 0x88];
        }),
        ("names", |draft| {
            draft.subject(&[]);
            draft.without(NAMES);
        }),
        ("alternative_name_critical", |draft| draft.subject(&[])),
        ("alternative_name_critical", |draft| draft.extension(NAMES).1 = true),
        ("alternative_name_empty", |draft| draft.names(&[])),
        ("alternative_name_once", |draft| draft.names(&[dns("a"), dns("b"), dns("a")])),
        ("alternative_name_kind", |draft| draft.names(&[tlv(0x88, &[0x2a, 3])])),
        ("alternative_name_kind", |draft| draft.names(&[tlv(0xa4, &sequence(&[]))])),
        ("alternative_name_kind", |draft| {
            let upn = tlv(OID, &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 20, 2, 3]);
            draft.names(&[tlv(0xa0, &[upn, tlv(0xa0, &tlv(22, b"ada@example.com"))].concat())]);
        }),
        ("alternative_name_ia5", |draft| draft.names(&[dns("ä.example.com")])),
        ("alternative_name_ia5", |draft| draft.names(&[email("ä@example.com")])),
        ("alternative_name_ia5", |draft| draft.names(&[uri("https://example.com/ä")])),
        ("alternative_name_ia5", |draft| draft.names(&[tlv(0x82, &[0xff, 0xfe])])),
        ("dns_name", |draft| draft.names(&[dns("")])),
        ("dns_name", |draft| draft.names(&[dns("a..b")])),
        ("dns_name", |draft| draft.names(&[dns("a.b.")])),
        ("dns_name", |draft| draft.names(&[dns("-a.b")])),
        ("dns_name", |draft| draft.names(&[dns("a b")])),
        ("dns_name", |draft| draft.names(&[dns("*")])),
        ("dns_name", |draft| draft.names(&[dns("a.*.b")])),
        ("dns_name", |draft| draft.names(&[dns("a*.b")])),
        ("dns_name", |draft| draft.names(&[dns(&"x".repeat(64))])),
        ("dns_name", |draft| draft.names(&[dns(&["abcdefg"; 32].join("."))])),
        ("email_address", |draft| draft.names(&[email("ada")])),
        ("email_address", |draft| draft.names(&[email("@example.com")])),
        ("email_address", |draft| draft.names(&[email("ada@")])),
        ("email_address", |draft| draft.names(&[email("a..b@example.com")])),
        ("email_address", |draft| draft.names(&[email("Ada <ada@example.com>")])),
        ("uri", |draft| draft.names(&[uri("/laptop-7")])),
        ("uri", |draft| draft.names(&[uri("urn:")])),
        ("uri", |draft| draft.names(&[uri("7up:x")])),
        ("uri", |draft| draft.names(&[uri("https:///x")])),
        ("uri", |draft| draft.names(&[uri("https://exa mple/x")])),
        ("uri", |draft| draft.names(&[uri("https://example.com/%zz")])),
        ("uri", |draft| draft.names(&[uri("https://[::g]/x")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe:x")])),
        ("spiffe_id", |draft| draft.names(&[uri("SPIFFE://example.com/x")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe://Example.com/x")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe://example.com:8443/x")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe://me@example.com/x")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe://example.com/x?y=z")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe://example.com/x#y")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe://example.com/x%20y")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe://example.com/")])),
        ("spiffe_id", |draft| draft.names(&[uri("spiffe://example.com/x/../y")])),
        ("spiffe_id", |draft| {
            draft.names(&[uri(&format!("spiffe://example.com/{}", "x".repeat(2048)))]);
        }),
        ("spiffe_id_alone", |draft| {
            draft.names(&[uri("spiffe://example.com/x"), uri("https://example.com/x")]);
        }),
        ("ip_address", |draft| draft.names(&[tlv(0x87, &[10, 0, 0])])),
        ("basic_constraints", |draft| {
            draft.extension(BASIC_CONSTRAINTS).2 = tlv(SEQUENCE, &[1, 1, 0xff]);
        }),
        ("basic_constraints", |draft| draft.extension(BASIC_CONSTRAINTS).1 = false),
        ("basic_constraints", |draft| {
            draft.extension(BASIC_CONSTRAINTS).2 = tlv(SEQUENCE, &[INTEGER, 1, 0]);
        }),
        ("extended_key_usage", |draft| draft.without(EXTENDED_KEY_USAGE)),
        ("extended_key_usage", |draft| draft.extension(EXTENDED_KEY_USAGE).2 = usages(&[1])),
        ("extended_key_usage", |draft| draft.extension(EXTENDED_KEY_USAGE).2 = usages(&[2, 3])),
        ("extended_key_usage", |draft| draft.extension(EXTENDED_KEY_USAGE).2 = usages(&[2, 17])),
        ("extended_key_usage", |draft| {
            let any = tlv(OID, &[0x55, 0x1d, 37, 0]);
            let client = tlv(OID, &[0x2b, 6, 1, 5, 5, 7, 3, 2]);
            draft.extension(EXTENDED_KEY_USAGE).2 = sequence(&[&client, &any]);
        }),
        ("crl_distribution_points", |draft| {
            draft.extension(DISTRIBUTION_POINTS).2 = tlv(SEQUENCE, &point("ldap://example.com/x"));
        }),
        ("crl_distribution_points", |draft| {
            let point = point("http://crl.example.com/1.crl");
            draft.extension(DISTRIBUTION_POINTS).2 = sequence(&[&point, &point]);
        }),
        ("crl_distribution_points", |draft| {
            let uri = tlv(0x86, b"http://crl.example.com/1.crl");
            let names = tlv(0xa0, &tlv(0xa0, &[&uri[..], &uri].concat()));
            draft.extension(DISTRIBUTION_POINTS).2 = sequence(&[&sequence(&[&names])]);
        }),
    ];

    #[test]
    fn what_breaks_one_rule_is_refused_by_its_name() {
        let authority = sample();
        for (index, (rule, spoil)) in SPOILT.iter().enumerate() {
            let mut draft = Draft::new(&authority);
            spoil(&mut draft);
            assert_eq!(broken(&draft, &authority), [*rule], "row {index}");
            let error = lint(&draft.der(), authority.certificate()).unwrap_err();
            assert_eq!(error.rule, *rule);
        }
    }

    #[test]
    fn the_cas_own_key_is_refused() {
        let authority = sample();
        let public_key = authority.signer().public_key_der();
        let draft = Draft { public_key, ..Draft::new(&authority) };
        assert_eq!(broken(&draft, &authority), ["public_key_of_ca"]);
    }

    #[test]
    fn every_rule_has_a_certificate_that_breaks_it() {
        for rule in RULES.iter().filter(|rule| rule.name != "public_key_of_ca") {
            assert!(SPOILT.iter().any(|(name, _)| *name == rule.name), "{}", rule.name);
        }
        let names: HashSet<&str> = RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), RULES.len(), "a name stands there twice");
    }

    #[test]
    fn what_can_not_be_read_is_refused() {
        let authority = sample();
        let mut der = Draft::new(&authority).der();
        let refused = |der: &[u8]| lint(der, authority.certificate()).unwrap_err().rule;
        assert_eq!(refused(&der[..der.len() - 1]), "encoding");
        der.push(0);
        assert_eq!(refused(&der), "encoding");
        assert_eq!(refused(b"garbage"), "encoding");
    }

    #[test]
    fn times_are_whole_seconds_in_zulu() {
        let authority = sample();
        for (from, to) in [("2605011000Z", "260801100000Z"), ("260501100000Z", "260801100000+0200")]
        {
            let draft = Draft { validity: utc(from, to), ..Draft::new(&authority) };
            let broken = broken(&draft, &authority);
            assert!(broken == ["time_form"] || broken == ["encoding"], "{from} {to} {broken:?}");
        }
    }

    #[test]
    fn good_certificates_pass() {
        let authority = sample();
        lint(&sample_leaf(&authority), authority.certificate()).unwrap();
        let good: &[Spoil] = &[
            |_| {},
            |draft| draft.without(NAMES),
            |draft| draft.without(DISTRIBUTION_POINTS),
            |draft| draft.without(BASIC_CONSTRAINTS),
            |draft| {
                draft.subject(&[]);
                draft.extension(NAMES).1 = true;
            },
            |draft| {
                draft.subject(&[
                    attribute(6, 19, "DE"),
                    attribute(3, 12, "Zoë"),
                    attribute(5, 19, "7"),
                ]);
            },
            |draft| draft.subject(&[attribute(3, 12, &"ä".repeat(64))]),
            |draft| draft.extension(EXTENDED_KEY_USAGE).2 = usages(&[1, 2]),
            |draft| draft.names(&[dns("*.example.com"), dns("_x.a-b.c"), dns(&"x".repeat(63))]),
            |draft| {
                draft.names(&[
                    email("ada.l+x@example.com"),
                    tlv(0x87, &[7; 16]),
                    tlv(0x87, &[7; 4]),
                ]);
            },
            |draft| draft.names(&[uri("spiffe://example.com")]),
            |draft| {
                draft.names(&[
                    uri("urn:uuid:6e8bc430-9c3a-11d9"),
                    uri("https://u@[::1]:8443/a%20b?c#d"),
                ]);
            },
            |draft| {
                draft.public_key = rsa_key(3072);
                draft.extension(KEY_USAGE).2 = vec![BIT_STRING, 2, 5, 0xa0];
            },
        ];
        for (index, change) in good.iter().enumerate() {
            let mut draft = Draft::new(&authority);
            change(&mut draft);
            assert_eq!(broken(&draft, &authority), [""; 0], "row {index}");
        }
    }
}
