//! The service of a second factor: where it is asked, and by which CAs it is verified.

use rustls::RootCertStore;

use crate::api::gate::Authorizer;
use crate::pki::verify;
use crate::plan::destination::Destination;

/// Where a service is asked, and the CAs that verify it there; without them it is asked over plain HTTP. The CRD
/// checks what is said of it first, but for ports and the certificates.
pub fn read(service: &Authorizer) -> Result<(Destination, Option<RootCertStore>), String> {
    let Authorizer { endpoint, ca_bundle, .. } = service;
    let wrong = |field: &str, why: &str| format!("spec.secondFactor.url.{field}: {why}");
    let over_tls = endpoint.starts_with("https://");
    let (scheme, port) = if over_tls { ("https", 443) } else { ("http", 80) };
    let destination = Destination::of_url(endpoint, scheme, port)
        .map_err(|why| wrong("endpoint", &format!("{endpoint:?}: {why}")))?;
    let roots = match ca_bundle {
        Some(bundle) if over_tls => {
            let roots = verify::roots(bundle);
            Some(roots.map_err(|why| wrong("caBundle", &why.to_string()))?)
        }
        None if over_tls => {
            let why = "it must hold the CA certificates that verify the service; no public roots are trusted";
            return Err(wrong("caBundle", why));
        }
        Some(_) => return Err(wrong("caBundle", "it verifies nobody at an http:// endpoint")),
        None => None,
    };
    Ok((destination, roots))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::duration::Duration;
    use crate::pki::authority::tests::sample;
    use crate::pki::certificate_pem;
    use crate::pki::issue::tests::sample_leaf;
    use crate::pki::key::Encoding;
    use crate::pki::{KeyType, PrivateKey};

    fn told(endpoint: &str, ca_bundle: Option<&str>) -> Result<(u16, Option<usize>), String> {
        let service = Authorizer {
            endpoint: endpoint.into(),
            ca_bundle: ca_bundle.map(Into::into),
            timeout: Duration::from_secs(1),
        };
        read(&service).map(|(found, roots)| (found.port, roots.map(|roots| roots.len())))
    }

    #[test]
    fn a_service_is_verified_by_the_bundle_where_it_is_asked_over_tls() {
        let (one, other) = (sample().certificate_pem(), sample().certificate_pem());
        let two = format!("the old one\n{one}\n# the new one\n{other}");
        assert_eq!(told("http://login.shop.svc/check", None), Ok((80, None)));
        assert_eq!(told("http://login.shop.svc:8080/", None), Ok((8080, None)));
        assert_eq!(told("https://login.shop.svc/", Some(&one)), Ok((443, Some(1))));
        assert_eq!(told("https://[fd00::1]:8443/", Some(&two)), Ok((8443, Some(2))));
    }

    #[test]
    fn what_verifies_nobody_is_told_with_its_field_and_without_its_content() {
        let ca = sample();
        let (good, leaf) = (ca.certificate_pem(), certificate_pem(&sample_leaf(&ca)));
        let no_certificate = certificate_pem(b"\x30\x03\x02\x01\x01");
        let key = PrivateKey::generate(KeyType::EcdsaP256).to_pem(Encoding::Pkcs8);
        let cut_short = format!("{good}{}", &good[..200]);
        let whole = "one or more whole certificates in PEM";
        for (bundle, why) in [
            ("", whole),
            ("\n", whole),
            ("MIIB", whole),
            (&good[..200], whole),
            (&cut_short, whole),
            (&good.replace("CERTIFICATE", "TRUSTED CERTIFICATE"), whole),
            (&format!("{good}{}", &**key), whole),
            (&no_certificate, "certificate 1 of it is not an X.509"),
            (&format!("{good}{no_certificate}"), "certificate 2 of it is not an X.509"),
            (&format!("{good}{leaf}"), "certificate 2 of it is not of a CA"),
        ] {
            let told = told("https://a/", Some(bundle)).expect_err(bundle);
            assert!(told.starts_with("spec.secondFactor.url.caBundle: "), "{told}");
            assert!(told.contains(why) && !told.contains("-----"), "{bundle}\n{told}");
        }
        for (endpoint, bundle, why) in [
            ("https://a/", None, "url.caBundle: it must hold the CA certificates"),
            ("http://a/", Some(&*good), "url.caBundle: it verifies nobody at an http://"),
            ("ftp://a/", None, "url.endpoint: \"ftp://a/\": it must begin with http://"),
            ("https://a:99999/", Some(&good), "url.endpoint: \"https://a:99999/\": its port"),
            ("http://a:0/", None, "url.endpoint: \"http://a:0/\": its port"),
            ("https://a..b/", Some(&good), "neither a DNS name nor an IP address"),
            ("x", None, "it must begin with http://"),
            ("http:///check", None, "url.endpoint: \"http:///check\": it is not a URL"),
        ] {
            let told = told(endpoint, bundle).expect_err(endpoint);
            assert!(told.contains(why), "{told}");
        }
    }
}
