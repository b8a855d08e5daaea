//! The names of an identity: from its spec to what a certificate can hold.

use super::identity::SHORTEST;
use crate::api::ClientIdentitySpec;
use crate::pki::name::{Attribute, Name};
use crate::pki::profile::{AlternativeName, Ascii, Profile, Usage};

/// A field of the spec that can't stand in a certificate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {why}")]
pub struct InvalidField {
    field: &'static str,
    why: String,
}

/// Parses the names of a spec. The CRD checks them first; objects that were stored before its rules
/// were come here all the same.
pub fn parse(spec: &ClientIdentitySpec) -> Result<Profile, InvalidField> {
    let invalid = |field, why: String| InvalidField { field, why };
    let ascii = |field, text: &String| {
        Ascii::try_from(text.as_str()).map_err(|error| invalid(field, error.to_string()))
    };
    let mut names = Vec::new();
    for dns in &spec.dns_names {
        names.push(AlternativeName::Dns(ascii("spec.dnsNames", dns)?));
    }
    for email in &spec.email_addresses {
        if !email.contains('@') {
            let why = format!("{email:?} is not an e-mail address");
            return Err(invalid("spec.emailAddresses", why));
        }
        names.push(AlternativeName::Email(ascii("spec.emailAddresses", email)?));
    }
    for uri in &spec.uris {
        let scheme = uri.split_once(':').map(|(scheme, _)| scheme).unwrap_or_default();
        let starts = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
        if !starts || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c)) {
            let why =
                format!("{uri:?} is not an absolute URI such as spiffe://example.com/laptop-7");
            return Err(invalid("spec.uris", why));
        }
        names.push(AlternativeName::Uri(ascii("spec.uris", uri)?));
    }
    for address in &spec.ip_addresses {
        let ip = address.parse().map_err(|_| {
            invalid("spec.ipAddresses", format!("{address:?} is not an IP address"))
        })?;
        names.push(AlternativeName::Ip(ip));
    }
    if names.is_empty() && spec.common_name.is_none() {
        let why =
            "the client has no name: set commonName, dnsNames, emailAddresses, uris or ipAddresses";
        return Err(invalid("spec", why.to_owned()));
    }
    if let Some(before) = spec.renew_before
        && before >= spec.duration
    {
        let why = format!("{before} is not shorter than spec.duration ({})", spec.duration);
        return Err(invalid("spec.renewBefore", why));
    }
    if spec.duration.as_secs() < SHORTEST.as_secs() {
        return Err(invalid("spec.duration", format!("{} is below 5m", spec.duration)));
    }
    let subject = spec.subject.clone().unwrap_or_default();
    let organizations = subject.organizations.into_iter().map(|o| (Attribute::Organization, o));
    let units = subject.organizational_units.into_iter();
    let units = units.map(|unit| (Attribute::OrganizationalUnit, unit));
    let common_name = spec.common_name.iter().map(|name| (Attribute::CommonName, name.clone()));
    Ok(Profile {
        subject: Name(organizations.chain(units).chain(common_name).collect()),
        alternative_names: names,
        usages: vec![Usage::ClientAuth],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::duration::Duration;
    use crate::plan::identity::tests::identity;

    #[test]
    fn invalid_names_are_refused_by_field() {
        type Change = fn(&mut ClientIdentitySpec);
        let changes: [(&str, Change); 7] = [
            ("spec.uris", |spec| spec.uris = vec!["no scheme".into()]),
            ("spec.uris", |spec| spec.uris = vec!["spiffe://example.com/ä".into()]),
            ("spec.emailAddresses", |spec| spec.email_addresses = vec!["ada".into()]),
            ("spec.ipAddresses", |spec| spec.ip_addresses = vec!["10.0.0".into()]),
            ("spec.dnsNames", |spec| spec.dns_names = vec!["ä.example.com".into()]),
            ("spec.renewBefore", |spec| spec.renew_before = Some(Duration::from_hours(24))),
            ("spec.duration", |spec| {
                spec.renew_before = None;
                spec.duration = Duration::from_secs(60);
            }),
        ];
        for (field, change) in changes {
            let mut spec = identity().spec;
            change(&mut spec);
            let error = parse(&spec).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{field}: {error}");
        }
    }
}
