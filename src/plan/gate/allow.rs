//! Is this client among those that `spec.allow` of a `ClientTrust` names? By exact comparison, but for the two
//! wildcards that its documentation tells of.

use crate::api::gate::AllowedClients;
use crate::pki::inspect::ClientNames;

/// Does any entry name the client?
pub fn admits(allow: &AllowedClients, names: &ClientNames) -> bool {
    let any = |allowed: &[String], found: &[String], matches: fn(&str, &str) -> bool| {
        allowed.iter().any(|allowed| found.iter().any(|name| matches(allowed, name)))
    };
    let same = |allowed: &str, name: &str| allowed == name;
    any(&allow.uris, &names.uris, uri)
        || any(&allow.dns_names, &names.dns_names, dns_name)
        || any(&allow.email_addresses, &names.email_addresses, email_address)
        || any(&allow.common_names, &names.common_names, same)
        || any(&allow.organizational_units, &names.organizational_units, same)
}

fn uri(allowed: &str, name: &str) -> bool {
    let Some(prefix) = allowed.strip_suffix('*') else { return allowed == name };
    // Whoever reads `/a/../b` as `/b` would see another client than the one that the prefix stands for.
    let path = name.split(['?', '#']).next().unwrap_or_default();
    let steps = path.split('/').any(|segment| {
        let dots = segment.to_ascii_lowercase().replace("%2e", ".");
        dots == "." || dots == ".."
    });
    name.len() > prefix.len() && name.starts_with(prefix) && !steps
}

fn dns_name(allowed: &str, name: &str) -> bool {
    match allowed.strip_prefix("*.") {
        Some(parent) => name
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
        None => allowed.eq_ignore_ascii_case(name),
    }
}

fn email_address(allowed: &str, name: &str) -> bool {
    match (allowed.rsplit_once('@'), name.rsplit_once('@')) {
        (Some((local, host)), Some((found, its))) => {
            local == found && host.eq_ignore_ascii_case(its)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    #[test]
    fn uris_are_compared_octet_by_octet_or_up_to_the_asterisk() {
        for (allowed, name, passes) in [
            ("spiffe://a.example/shop/till", "spiffe://a.example/shop/till", true),
            ("spiffe://a.example/shop/till", "spiffe://a.example/shop/till/2", false),
            ("spiffe://a.example/shop/till", "spiffe://a.example/shop/Till", false),
            ("spiffe://a.example/shop/*", "spiffe://a.example/shop/till", true),
            ("spiffe://a.example/shop/*", "spiffe://a.example/shop/till/2", true),
            ("spiffe://a.example/shop/*", "spiffe://a.example/shop/", false),
            ("spiffe://a.example/shop/*", "spiffe://a.example/shop", false),
            ("spiffe://a.example/shop/*", "spiffe://a.example/shops/till", false),
            ("spiffe://a.example/shop/*", "spiffe://a.example/shop/../admin", false),
            ("spiffe://a.example/shop/*", "spiffe://a.example/shop/%2E%2e/admin", false),
            ("spiffe://a.example/shop/*", "spiffe://a.example/shop/..", false),
            ("spiffe://a.example/*", "spiffe://a.example.evil.example/", false),
            ("urn:device:*", "urn:device:7", true),
            ("urn:device:*", "urn:devices:7", false),
        ] {
            assert_eq!(uri(allowed, name), passes, "{allowed} {name}");
        }
    }

    #[test]
    fn an_asterisk_in_a_dns_name_stands_for_one_label() {
        for (allowed, name, passes) in [
            ("till.example.com", "till.example.com", true),
            ("till.example.com", "TILL.Example.com", true),
            ("till.example.com", "other.example.com", false),
            ("*.example.com", "till.example.com", true),
            ("*.Example.com", "till.eXample.com", true),
            ("*.example.com", "a.till.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "tillexample.com", false),
            ("*.com", "example.com", true),
            ("till.example.com", "*.example.com", false),
        ] {
            assert_eq!(dns_name(allowed, name), passes, "{allowed} {name}");
        }
    }

    #[test]
    fn the_host_of_an_address_is_compared_in_either_case() {
        for (allowed, name, passes) in [
            ("ada@example.com", "ada@example.com", true),
            ("ada@example.com", "ada@EXAMPLE.com", true),
            ("ada@example.com", "Ada@example.com", false),
            ("ada@example.com", "x@ada@example.com", false),
            ("ada@example.com", "example.com", false),
        ] {
            assert_eq!(email_address(allowed, name), passes, "{allowed} {name}");
        }
    }

    #[test]
    fn any_entry_lets_a_client_in_and_none_nobody() {
        let names = ClientNames {
            uris: one("spiffe://a.example/till"),
            dns_names: one("till.example.com"),
            email_addresses: one("till@example.com"),
            common_names: one("till"),
            organizational_units: vec!["Shops".into(), "Berlin".into()],
        };
        let nobody = AllowedClients::default();
        assert!(!admits(&nobody, &names));
        for (allow, passes) in [
            (AllowedClients { uris: one("spiffe://a.example/*"), ..nobody.clone() }, true),
            (AllowedClients { dns_names: one("*.example.com"), ..nobody.clone() }, true),
            (AllowedClients { email_addresses: one("till@example.com"), ..nobody.clone() }, true),
            (
                AllowedClients { common_names: vec!["x".into(), "till".into()], ..nobody.clone() },
                true,
            ),
            (AllowedClients { organizational_units: one("Berlin"), ..nobody.clone() }, true),
            // What stands in another field of the certificate is not what is allowed.
            (AllowedClients { common_names: one("till.example.com"), ..nobody.clone() }, false),
            (AllowedClients { dns_names: one("till"), ..nobody.clone() }, false),
            (AllowedClients { common_names: one("TILL"), ..nobody }, false),
        ] {
            assert_eq!(admits(&allow, &names), passes, "{allow:?}");
            assert!(!admits(&allow, &ClientNames::default()));
        }
    }
}
