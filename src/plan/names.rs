//! The names of an identity: from its spec to what a certificate can hold.

use std::collections::HashSet;

use super::identity::SHORTEST;
use crate::api::ClientIdentitySpec;
use crate::api::allow;
use crate::api::identity::Subject;
use crate::pki::name::{Attribute, Name, is_printable};
use crate::pki::profile::{AlternativeName, Ascii, Profile, Usage};
use crate::pki::syntax::{
    check_spiffe_id, is_absolute_uri, is_dns_name_or_wildcard, is_email_address, is_spiffe,
};

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
        let name = ascii("spec.dnsNames", dns)?;
        if !is_dns_name_or_wildcard(dns) {
            let why = format!("{dns:?} is not a DNS name such as laptop-7.example.com");
            return Err(invalid("spec.dnsNames", why));
        }
        names.push(AlternativeName::Dns(name));
    }
    for email in &spec.email_addresses {
        let name = ascii("spec.emailAddresses", email)?;
        if !is_email_address(email) {
            let why = format!("{email:?} is not an e-mail address such as ada@example.com");
            return Err(invalid("spec.emailAddresses", why));
        }
        names.push(AlternativeName::Email(name));
    }
    for uri in &spec.uris {
        let name = ascii("spec.uris", uri)?;
        if !is_absolute_uri(uri) {
            let why =
                format!("{uri:?} is not an absolute URI such as spiffe://example.com/laptop-7");
            return Err(invalid("spec.uris", why));
        }
        if is_spiffe(uri) {
            let spiffe_id = |why: String| invalid("spec.uris", format!("SPIFFE ID {uri:?}: {why}"));
            check_spiffe_id(uri).map_err(spiffe_id)?;
            if spec.uris.iter().any(|other| other != uri) {
                let why = "it must be the only URI: verifiers of SPIFFE refuse a certificate with several (X509-SVID section 2)";
                return Err(spiffe_id(why.to_owned()));
            }
        }
        names.push(AlternativeName::Uri(name));
    }
    for address in &spec.ip_addresses {
        let ip = address.parse().map_err(|_| {
            invalid("spec.ipAddresses", format!("{address:?} is not an IP address"))
        })?;
        names.push(AlternativeName::Ip(ip));
    }
    for name in &spec.user_principal_names {
        let parts = name.split('@').filter(|part| !part.is_empty()).count();
        let odd = |c: char| c.is_control() || c == ' ';
        if parts != 2 || name.matches('@').count() != 1 || name.contains(odd) {
            let why = format!("{name:?} is not a name such as ada@example.com");
            return Err(invalid("spec.userPrincipalNames", why));
        }
        names.push(AlternativeName::UserPrincipalName(name.clone()));
    }
    if names.is_empty() && spec.common_name.is_none() {
        let why = "the client has no name: set commonName, dnsNames, emailAddresses, uris, ipAddresses or userPrincipalNames";
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
    let mut usages: Vec<Usage> = spec.usages.iter().map(|usage| usage_of(*usage)).collect();
    usages.sort_unstable();
    usages.dedup();
    if !usages.contains(&Usage::ClientAuth) {
        return Err(invalid("spec.usages", "\"client auth\" must be among them".to_owned()));
    }
    // A name that is listed twice stands in the certificate once.
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(Profile { subject: subject(spec)?, alternative_names: names, usages })
}

fn usage_of(usage: allow::Usage) -> Usage {
    match usage {
        allow::Usage::ClientAuth => Usage::ClientAuth,
        allow::Usage::ServerAuth => Usage::ServerAuth,
    }
}

/// The subject, from the largest to the smallest, as X.500 has it.
fn subject(spec: &ClientIdentitySpec) -> Result<Name, InvalidField> {
    let none = Subject::default();
    let subject = spec.subject.as_ref().unwrap_or(&none);
    let many: [(Attribute, &[String], &'static str); 5] = [
        (Attribute::Country, &subject.countries, "spec.subject.countries"),
        (Attribute::StateOrProvince, &subject.provinces, "spec.subject.provinces"),
        (Attribute::Locality, &subject.localities, "spec.subject.localities"),
        (Attribute::Organization, &subject.organizations, "spec.subject.organizations"),
        (
            Attribute::OrganizationalUnit,
            &subject.organizational_units,
            "spec.subject.organizationalUnits",
        ),
    ];
    let one = [
        (Attribute::CommonName, spec.common_name.as_slice(), "spec.commonName"),
        (Attribute::SerialNumber, subject.serial_number.as_slice(), "spec.subject.serialNumber"),
    ];
    let mut attributes = Vec::new();
    for (attribute, values, field) in many.into_iter().chain(one) {
        for value in values {
            check_attribute(attribute, value).map_err(|why| InvalidField { field, why })?;
            attributes.push((attribute, value.clone()));
        }
    }
    Ok(Name(attributes))
}

fn check_attribute(attribute: Attribute, value: &str) -> Result<(), String> {
    let most = attribute.upper_bound();
    let length = value.chars().count();
    if length == 0 || length > most {
        return Err(format!("{value:?} has {length} characters, and 1 to {most} are allowed"));
    }
    if attribute == Attribute::Country
        && !(length == 2 && value.bytes().all(|byte| byte.is_ascii_uppercase()))
    {
        return Err(format!("{value:?} is not a code of ISO 3166 such as DE"));
    }
    if attribute.is_printable() && !is_printable(value) {
        return Err(format!("{value:?} holds other characters than PrintableString has"));
    }
    if value.contains(char::is_control) {
        return Err(format!("{value:?} holds control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::duration::Duration;
    use crate::plan::identity::tests::identity;

    fn subject(spec: &mut ClientIdentitySpec) -> &mut Subject {
        spec.subject.get_or_insert_default()
    }

    #[test]
    fn spiffe_ids_are_checked_as_such() {
        for uri in [
            "SPIFFE://example.com/a",
            "spiffe:example.com",
            "spiffe://Example.com/a",
            "spiffe://example.com:80/a",
            "spiffe://ada@example.com/a",
            "spiffe://example.com/",
            "spiffe://example.com/a/../b",
            "spiffe://example.com/a?b=c",
        ] {
            let mut spec = identity().spec;
            spec.uris = vec![uri.into()];
            let error = parse(&spec).unwrap_err().to_string();
            assert!(error.starts_with("spec.uris: SPIFFE ID"), "{uri}: {error}");
        }
        let mut spec = identity().spec;
        spec.uris.push("https://example.com/a".into());
        assert!(parse(&spec).unwrap_err().to_string().contains("only URI"));
    }

    #[test]
    fn every_name_stands_in_the_certificate_in_its_order() {
        let mut spec = identity().spec;
        spec.subject = Some(Subject {
            countries: vec!["DE".into(), "FR".into()],
            provinces: vec!["Bayern".into()],
            localities: vec!["München".into()],
            organizations: vec!["Example".into()],
            organizational_units: vec!["Laptops".into(), "Sales".into()],
            serial_number: Some("A 7".into()),
        });
        spec.user_principal_names = vec!["jürgen@example.com".into()];
        spec.uris.extend_from_within(..);
        spec.usages = vec![allow::Usage::ServerAuth, allow::Usage::ClientAuth];
        let profile = parse(&spec).unwrap();
        use Attribute::{
            CommonName, Country, Locality, Organization, OrganizationalUnit, SerialNumber,
            StateOrProvince,
        };
        let expected = [
            (Country, "DE"),
            (Country, "FR"),
            (StateOrProvince, "Bayern"),
            (Locality, "München"),
            (Organization, "Example"),
            (OrganizationalUnit, "Laptops"),
            (OrganizationalUnit, "Sales"),
            (CommonName, "laptop-7"),
            (SerialNumber, "A 7"),
        ];
        assert_eq!(profile.subject.0, expected.map(|(kind, value)| (kind, value.to_owned())));
        let names: Vec<_> = profile.alternative_names.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            ["URI:spiffe://example.com/laptop-7", "othername:UPN:jürgen@example.com"]
        );
        assert_eq!(profile.usages, [Usage::ClientAuth, Usage::ServerAuth]);
    }

    #[test]
    fn invalid_names_are_refused_by_field() {
        type Change = fn(&mut ClientIdentitySpec);
        let changes: &[(&str, Change)] = &[
            ("spec.uris", |spec| spec.uris = vec!["no scheme".into()]),
            ("spec.uris", |spec| spec.uris = vec!["spiffe://example.com/ä".into()]),
            ("spec.emailAddresses", |spec| spec.email_addresses = vec!["ada".into()]),
            ("spec.emailAddresses", |spec| spec.email_addresses = vec!["a..b@example.com".into()]),
            ("spec.dnsNames", |spec| spec.dns_names = vec!["a.*.example.com".into()]),
            ("spec.ipAddresses", |spec| spec.ip_addresses = vec!["10.0.0".into()]),
            ("spec.dnsNames", |spec| spec.dns_names = vec!["ä.example.com".into()]),
            ("spec.userPrincipalNames", |spec| spec.user_principal_names = vec!["ada".into()]),
            ("spec.userPrincipalNames", |spec| spec.user_principal_names = vec!["a@b@c".into()]),
            ("spec.usages", |spec| spec.usages = vec![allow::Usage::ServerAuth]),
            ("spec.commonName", |spec| spec.common_name = Some("a\nb".into())),
            ("spec.commonName", |spec| spec.common_name = Some("a".repeat(65))),
            ("spec.subject.countries", |spec| subject(spec).countries = vec!["de".into()]),
            ("spec.subject.countries", |spec| subject(spec).countries = vec!["DEU".into()]),
            ("spec.subject.provinces", |spec| subject(spec).provinces = vec!["a".repeat(129)]),
            ("spec.subject.localities", |spec| subject(spec).localities = vec!["".into()]),
            ("spec.subject.serialNumber", |spec| {
                subject(spec).serial_number = Some("ä".into());
            }),
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
