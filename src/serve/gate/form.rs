//! The forms in which data planes hand over the certificate of the client whose handshake they have verified.

use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;

use super::Refusal;
use crate::pki::inspect::certificates;

/// Longest header that is looked at.
const LIMIT: usize = 64 * 1024;

/// Where a data plane puts the certificate, and how.
pub struct Form {
    /// Name of the header, lower case.
    pub header: &'static str,
    read: fn(&str) -> Option<CertificateDer<'static>>,
    // A header with its own verdict, and what that must be.
    verdict: Option<(&'static str, &'static str)>,
    // A header that says by which scheme the client came.
    scheme: Option<&'static str>,
    /// Headers of the request that the data plane can replace by those of a good answer, and not remove.
    pub emptied: &'static [&'static str],
}

/// Traefik's PassTLSClientCert: base64 of the DER without armour, the leaf first, a chain separated by commas;
/// some versions percent-encode it.
pub const TRAEFIK: Form = Form { header: "x-forwarded-tls-client-cert", read: bare, ..PLAIN };

/// nginx, by the names of ingress-nginx: `$ssl_client_escaped_cert`, which is percent-encoded PEM, and
/// `$ssl_client_verify`. Traefik, which takes the same annotations, leaves in what the client sent on a
/// connection without TLS, and says so in `x-forwarded-proto`.
pub const NGINX: Form = Form {
    header: "ssl-client-cert",
    read: escaped_pem,
    verdict: Some(("ssl-client-verify", "SUCCESS")),
    scheme: Some("x-forwarded-proto"),
    ..PLAIN
};

/// HAProxy Ingress' `auth-tls-cert-header`: base64 of the DER; empty when there is none.
pub const HAPROXY: Form = Form {
    header: "x-ssl-client-cert",
    read: base64_der,
    emptied: &["client-cert", "client-cert-chain", "authorization"],
    ..PLAIN
};

/// Envoy's x-forwarded-client-cert, of one element, with `Cert`: percent-encoded PEM.
pub const ENVOY: Form = Form { header: "x-forwarded-client-cert", read: xfcc, ..PLAIN };

const PLAIN: Form =
    Form { header: "", read: base64_der, verdict: None, scheme: None, emptied: &[] };

impl Form {
    /// The certificate, if the client showed one. A header that comes twice, or can't be read, is none that the
    /// data plane set.
    pub fn certificate(
        &self,
        headers: &HeaderMap,
    ) -> Result<Option<CertificateDer<'static>>, Refusal> {
        let plain = |header| headers.get_all(header).iter().any(|scheme| scheme == "http");
        if self.scheme.is_some_and(plain) {
            return Err(Refusal::NotVerified);
        }
        let mut values = headers.get_all(self.header).iter().filter(|value| !value.is_empty());
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() || value.len() > LIMIT {
            return Err(Refusal::BadCertificate);
        }
        let said = self.verdict.and_then(|(header, wanted)| Some((headers.get(header)?, wanted)));
        if said.is_some_and(|(said, wanted)| said != wanted) {
            return Err(Refusal::NotVerified);
        }
        let text = value.to_str().map_err(|_| Refusal::BadCertificate)?;
        (self.read)(text).map(Some).ok_or(Refusal::BadCertificate)
    }
}

/// The value of the header `Client-Cert` (RFC 9440): a byte sequence of RFC 8941.
pub fn client_cert(der: &CertificateDer<'_>) -> HeaderValue {
    format!(":{}:", STANDARD.encode(der)).try_into().expect("base64 is ASCII")
}

fn base64_der(text: &str) -> Option<CertificateDer<'static>> {
    STANDARD.decode(text).ok().map(CertificateDer::from)
}

fn bare(text: &str) -> Option<CertificateDer<'static>> {
    let leaf = unescape(text.split(',').next()?)?;
    STANDARD.decode(leaf.trim_ascii()).ok().map(CertificateDer::from)
}

/// Percent-encoded PEM; the first of several.
pub fn escaped_pem(text: &str) -> Option<CertificateDer<'static>> {
    certificates(&unescape(text)?).ok()?.into_iter().next()
}

/// The certificate of a list of `key=value;...` with one element. Several elements come from several proxies, or
/// from a client that wrote the first: the data plane is to replace what it was sent.
fn xfcc(text: &str) -> Option<CertificateDer<'static>> {
    let (mut rest, mut found) = (text, None);
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = closing_quote(quoted)?;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => after.split_at(after.find([';', ',']).unwrap_or(after.len())),
        };
        if key.eq_ignore_ascii_case("cert") && found.replace(value).is_some() {
            return None;
        }
        match after.strip_prefix(';') {
            Some(after) => rest = after,
            None if after.is_empty() => break,
            None => return None,
        }
    }
    escaped_pem(found?)
}

/// Where a quoted value ends.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Undoes percent-encoding (RFC 3986 section 2.1).
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let code = part.get(..2).filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::sample;
    use crate::pki::certificate_pem;
    use crate::pki::issue::tests::sample_leaf;
    use proptest::prelude::{prop_assert, proptest};

    fn escape(text: &str) -> String {
        let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        let one = |byte| {
            if kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
        };
        text.bytes().map(one).collect()
    }

    fn read(form: &Form, values: &[&str]) -> Result<Option<CertificateDer<'static>>, Refusal> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(form.header, HeaderValue::from_str(value).unwrap());
        }
        form.certificate(&headers)
    }

    #[test]
    fn each_data_planes_header_is_read() {
        let leaf = sample_leaf(&sample());
        let (der, pem) = (STANDARD.encode(&leaf), escape(&certificate_pem(&leaf)));
        let good = Ok(Some(leaf));
        for (form, value) in [
            (&TRAEFIK, der.clone()),
            (&TRAEFIK, escape(&der)),
            (&TRAEFIK, format!("{der},AAAA")),
            (&HAPROXY, der.clone()),
            (&NGINX, pem.clone()),
            (&ENVOY, format!("Hash=00;Cert=\"{pem}\";Subject=\"CN=a\\\"b,O=c;d\";URI=")),
            (&ENVOY, format!("By=spiffe://a;Hash=00;cert={pem}")),
        ] {
            assert_eq!(read(form, &[&value]), good, "{value}");
            assert_eq!(read(form, &[""]), Ok(None));
            assert_eq!(read(form, &[]), Ok(None));
            assert_eq!(read(form, &[&value, &value]), Err(Refusal::BadCertificate), "twice");
        }
    }

    #[test]
    fn what_is_not_of_the_form_is_refused() {
        let leaf = sample_leaf(&sample());
        let (der, pem) = (STANDARD.encode(&leaf), escape(&certificate_pem(&leaf)));
        for (form, value) in [
            (&TRAEFIK, pem.clone()),
            (&TRAEFIK, "%%%".to_owned()),
            (&TRAEFIK, "%4".to_owned()),
            (&HAPROXY, format!("{der}, {der}")),
            (&HAPROXY, escape(&pem)),
            (&NGINX, der),
            (&NGINX, "%2D%2D".to_owned()),
            (&ENVOY, pem.clone()),
            (&ENVOY, "Hash=00;Subject=\"CN=a\"".to_owned()),
            (&ENVOY, format!("Hash=00;Cert=\"{pem}\",Hash=11;Cert=\"{pem}\"")),
            (&ENVOY, format!("Cert=\"{pem}\";Cert=\"{pem}\"")),
            (&ENVOY, format!("Subject=\"CN=a;Cert=\"{pem}\"")),
            (&ENVOY, format!("Subject=\"CN=a\\\";Cert={pem}")),
            (&ENVOY, format!("Cert=\"{pem}\"x;Hash=00")),
            (&NGINX, "A".repeat(LIMIT + 1)),
        ] {
            assert_eq!(read(form, &[&value]), Err(Refusal::BadCertificate), "{value}");
        }
    }

    #[test]
    fn nginx_must_have_verified_it() {
        let pem = escape(&certificate_pem(&sample_leaf(&sample())));
        for (verdict, good) in
            [("SUCCESS", true), ("FAILED:certificate revoked", false), ("NONE", false), ("", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert("ssl-client-cert", pem.parse().unwrap());
            headers.insert("ssl-client-verify", verdict.parse().unwrap());
            let found = NGINX.certificate(&headers);
            assert_eq!(found.is_ok(), good, "{verdict}");
        }
    }

    #[test]
    fn nobody_shows_nginx_a_certificate_without_tls() {
        let pem = escape(&certificate_pem(&sample_leaf(&sample())));
        for certificate in ["", &*pem] {
            let mut headers = HeaderMap::new();
            headers.insert("ssl-client-cert", certificate.parse().unwrap());
            assert!(NGINX.certificate(&headers).is_ok());
            headers.append("x-forwarded-proto", HeaderValue::from_static("https"));
            assert!(NGINX.certificate(&headers).is_ok());
            headers.append("x-forwarded-proto", HeaderValue::from_static("http"));
            assert_eq!(NGINX.certificate(&headers), Err(Refusal::NotVerified));
        }
    }

    #[test]
    fn client_cert_is_a_byte_sequence() {
        let der = CertificateDer::from(&b"\x00\xff\xfe"[..]);
        assert_eq!(client_cert(&der), ":AP/+:");
    }

    proptest! {
        #[test]
        fn foreign_headers_never_panic(text in "[ -~]{0,60}") {
            for form in [&TRAEFIK, &NGINX, &HAPROXY, &ENVOY] {
                let _ = read(form, &[&text]);
            }
            prop_assert!(xfcc(&text).is_none());
        }
    }
}
