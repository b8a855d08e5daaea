//! Where a canary and the gate connect, and where they may: whoever writes a `ClientTrust` chooses the address, so
//! that the operator's own surroundings must be out of reach.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use rustls_pki_types::ServerName;

use crate::api::canary::Endpoint;

/// A URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The URL.
    pub url: String,
    /// The host to connect to: a name or an IP address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The name that is asked for in the handshake, and that the server's certificate must hold.
    pub server_name: ServerName<'static>,
    /// What stands in the header `Host`.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

impl Destination {
    /// Takes a canary's endpoint apart. The CRD checks it first, but for the ranges of ports.
    pub fn parse(endpoint: &Endpoint) -> Result<Self, String> {
        let Endpoint { url, address } = endpoint;
        let found = Self::of_url(url, "https", 443).map_err(|why| format!("url {url:?}: {why}"))?;
        let Some(address) = address else { return Ok(found) };
        let parts = address.rsplit_once(':').map(|(host, port)| (host, port.parse()));
        match parts {
            Some((host, Ok(port))) if !host.is_empty() && port != 0 => {
                Ok(Self { host: bare(host).to_owned(), port, ..found })
            }
            _ => Err(format!("address {address:?} is not a host and a port")),
        }
    }

    /// Takes a URL of this scheme apart, whose own port is this one.
    pub fn of_url(url: &str, scheme: &str, port: u16) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| "it is not a URL")?;
        let authority = uri.authority().ok_or("it has no host")?;
        if uri.scheme_str() != Some(scheme) || authority.as_str().contains('@') {
            return Err(format!("it must begin with {scheme}:// and name no user"));
        }
        let host = bare(authority.host());
        let server_name = ServerName::try_from(host.to_owned())
            .map_err(|_| "its host is neither a DNS name nor an IP address")?;
        // A port that can't be is no port, and must not be taken for the default one.
        let has_port = authority.as_str().len() > authority.host().len();
        let port = if has_port { authority.port_u16().unwrap_or(0) } else { port };
        if port == 0 {
            return Err("its port must be 1 to 65535".to_owned());
        }
        Ok(Self {
            url: url.to_owned(),
            host: host.to_owned(),
            port,
            server_name,
            authority: authority.to_string(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// A range of IP addresses, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

/// Why a text is not a range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a range of IP addresses such as 10.0.0.0/8")]
pub struct ParseNetworkError(String);

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || -> Option<Self> {
            let (address, prefix) = text.split_once('/')?;
            let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
            (prefix <= bits(address).1).then_some(Self { address, prefix })
        };
        read().ok_or_else(|| ParseNetworkError(text.to_owned()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    fn contains(&self, ip: IpAddr) -> bool {
        let ((ours, length), (theirs, other)) = (bits(self.address), bits(ip));
        length == other && (ours ^ theirs).checked_shr(length - self.prefix).unwrap_or(0) == 0
    }
}

/// An address as a number, and how many bits it has.
fn bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u32::from(ip).into(), 32),
        IpAddr::V6(ip) => (ip.into(), 128),
    }
}

/// May the operator connect there? To the networks that it was given; without any, everywhere but to
/// itself and its node: loopback, link-local addresses (cloud metadata among them), and what is no
/// single host.
pub fn may_reach(ip: IpAddr, networks: &[Network]) -> bool {
    let ip = ip.to_canonical();
    if !networks.is_empty() {
        return networks.iter().any(|network| network.contains(ip));
    }
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, proptest};

    fn parse(url: &str, address: Option<&str>) -> Result<Destination, String> {
        Destination::parse(&Endpoint { url: url.into(), address: address.map(Into::into) })
    }

    #[test]
    fn an_endpoint_is_taken_apart() {
        for (url, address, host, port, authority, path) in [
            ("https://shop.example.com", None, "shop.example.com", 443, "shop.example.com", "/"),
            ("https://a.example:8443/x?y=1", None, "a.example", 8443, "a.example:8443", "/x?y=1"),
            (
                "https://a.example/",
                Some("traefik.traefik.svc:443"),
                "traefik.traefik.svc",
                443,
                "a.example",
                "/",
            ),
            (
                "https://a.example:444/",
                Some("10.1.2.3:8443"),
                "10.1.2.3",
                8443,
                "a.example:444",
                "/",
            ),
            ("https://[fd00::1]:8443/", None, "fd00::1", 8443, "[fd00::1]:8443", "/"),
            ("https://[fd00::1]/", None, "fd00::1", 443, "[fd00::1]", "/"),
            ("https://a.example/", Some("[fd00::2]:9"), "fd00::2", 9, "a.example", "/"),
        ] {
            let found = parse(url, address).unwrap();
            let found = (&*found.host, found.port, &*found.authority, &*found.path);
            assert_eq!(found, (host, port, authority, path), "{url}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for (url, address) in [
            ("http://a.example/", None),
            ("https://", None),
            ("https://user@a.example/", None),
            ("https://a.example:0/", None),
            ("https://a.example:/", None),
            ("https://a.example:99999/", None),
            ("https://a b/", None),
            ("https://a.example/\r\nX: y", None),
            ("https://a.example/", Some("a.example")),
            ("https://a.example/", Some("a.example:0")),
            ("https://a.example/", Some("a.example:65536")),
            ("https://a.example/", Some(":443")),
        ] {
            assert!(parse(url, address).is_err(), "{url} {address:?}");
        }
    }

    #[test]
    fn the_operators_surroundings_are_out_of_reach_unless_they_are_named() {
        let reaches = |ip: &str, networks: &[&str]| {
            let networks: Vec<Network> = networks.iter().map(|n| n.parse().unwrap()).collect();
            may_reach(ip.parse().unwrap(), &networks)
        };
        for ip in ["10.96.0.1", "192.0.2.1", "172.17.0.1", "fd00::1", "2001:db8::1"] {
            assert!(reaches(ip, &[]), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "127.1.2.3",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(!reaches(ip, &[]), "{ip}");
        }
        assert!(reaches("127.0.0.1", &["127.0.0.0/8"]));
        assert!(!reaches("10.0.0.1", &["127.0.0.0/8"]), "then nothing else");
        assert!(reaches("10.0.0.1", &["127.0.0.0/8", "10.0.0.0/24"]));
        assert!(!reaches("10.0.1.1", &["10.0.0.0/24"]));
        assert!(reaches("::ffff:10.0.0.1", &["10.0.0.0/24"]));
        assert!(reaches("fd00::7", &["fd00::/8"]));
        assert!(!reaches("10.0.0.1", &["fd00::/8", "::/0"]));
        assert!(reaches("10.0.0.1", &["0.0.0.0/0"]));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "a/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text:?}");
        }
        assert_eq!("10.0.0.0/8".parse::<Network>().unwrap().to_string(), "10.0.0.0/8");
    }

    proptest! {
        #[test]
        fn foreign_texts_never_panic(url in any::<String>(), address in any::<Option<String>>()) {
            let found = Destination::parse(&Endpoint { url: format!("https://{url}"), address });
            if let Ok(found) = found {
                prop_assert!(found.path.bytes().all(|byte| byte > b' '), "{found:?}");
                prop_assert!(found.authority.bytes().all(|byte| byte > b' '), "{found:?}");
            }
        }
    }
}
