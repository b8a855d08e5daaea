//! The syntax of names that stand in certificates: DNS, e-mail, URI, SPIFFE.
//!
//! Only syntax: that they are ASCII is a rule of its own, since it has a cause, and an answer, of its own.

use std::net::IpAddr;

/// A DNS name without a final dot (RFC 1034 section 3.5, RFC 1123 section 2.1): labels of letters,
/// digits, hyphens within, and the underscores that DNS itself does not mind (RFC 2181
/// section 11).
pub fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_' || !c.is_ascii())
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// A DNS name, or one whose first label is a wildcard; a wildcard stands for one whole label, and never
/// alone (RFC 6125 section 6.4.3).
pub fn is_dns_name_or_wildcard(name: &str) -> bool {
    is_dns_name(name.strip_prefix("*.").unwrap_or(name))
}

/// A mailbox (RFC 5321 section 4.1.2): local part as a dot-string, and a domain; neither quotes nor
/// comments nor address literals.
pub fn is_email_address(address: &str) -> bool {
    let text = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii();
    let atom = |atom: &str| !atom.is_empty() && atom.chars().all(text);
    address.rsplit_once('@').is_some_and(|(local, domain)| {
        local.len() <= 64 && local.split('.').all(atom) && is_dns_name(domain)
    })
}

/// An absolute URI (RFC 3986 section 3): a scheme and something after it; an authority, if there is one,
/// with a host name or an address, as RFC 5280 section 4.2.1.6 wants it.
pub fn is_absolute_uri(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once(':') else { return false };
    let scheme_good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let allowed =
        |c: char| c.is_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(c) || !c.is_ascii();
    let mut escapes = rest.split('%').skip(1);
    let escaped = escapes.all(|part| {
        part.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    });
    let host_good = rest.strip_prefix("//").is_none_or(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        is_host(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
    });
    scheme_good && !rest.is_empty() && rest.chars().all(allowed) && escaped && host_good
}

fn is_host(host_and_port: &str) -> bool {
    if let Some(literal) = host_and_port.strip_prefix('[') {
        let address = literal.split(']').next().unwrap_or_default();
        return matches!(address.parse(), Ok(IpAddr::V6(_)));
    }
    is_dns_name(host_and_port.split(':').next().unwrap_or_default())
}

/// Does a URI mean to be a SPIFFE ID?
pub fn is_spiffe(uri: &str) -> bool {
    uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}

/// Is a URI a SPIFFE ID (SPIFFE-ID sections 2.1 to 2.4)? If not, what is wrong with it.
pub fn check_spiffe_id(id: &str) -> Result<(), String> {
    let Some(rest) = id.strip_prefix("spiffe://") else {
        return Err(format!("{id:?} does not begin with spiffe://"));
    };
    let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // No port, user, query, fragment or escape passes these two lists of characters.
    let of_domain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    let of_path = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let segment =
        |text: &str| !text.is_empty() && ![".", ".."].contains(&text) && text.chars().all(of_path);
    if !(1..=255).contains(&trust_domain.len()) || !trust_domain.chars().all(of_domain) {
        return Err(format!(
            "trust domain {trust_domain:?} is not 1 to 255 lower-case letters, digits, '.', '-' and '_'"
        ));
    }
    if !path.split('/').skip(1).all(segment) {
        return Err(format!(
            "path {path:?} has a segment that is empty, '.', '..' or not of letters, digits, '.', '-' and '_'"
        ));
    }
    if id.len() > 2048 {
        return Err(format!("it has {} octets, and 2048 are the limit", id.len()));
    }
    Ok(())
}
