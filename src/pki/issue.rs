//! Signing the certificate of a client.

use jiff::Timestamp;
use rcgen::{
    CertificateParams, CrlDistributionPoint, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;

use super::profile::Profile;
use super::{CertificateAuthority, Serial, offset_date_time, pem_block};

/// Everything that a certificate depends on beside the CA.
#[derive(Clone, Debug)]
pub struct IssueRequest<'a> {
    /// The client's names.
    pub profile: &'a Profile,
    /// The client's SubjectPublicKeyInfo, DER.
    pub public_key_der: &'a [u8],
    /// Serial number; stands in the ledger already.
    pub serial: Serial,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity; not after the CA's.
    pub not_after: Timestamp,
    /// URL of the CRL that would revoke it.
    pub crl_url: Option<&'a str>,
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// The certificate.
    pub der: CertificateDer<'static>,
}

impl IssuedCertificate {
    /// The certificate as PEM.
    pub fn pem(&self) -> String {
        pem_block("CERTIFICATE", &self.der)
    }
}

/// Why a certificate could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// rcgen failed.
    #[error("failed to sign certificate")]
    Sign(#[from] rcgen::Error),
    /// The certificate would outlive its CA.
    #[error("certificate would outlive its CA")]
    OutlivesAuthority,
}

/// Signs a client certificate: digitalSignature, clientAuth, no CA, AKI and SKI, a CRL distribution
/// point when there is one.
pub fn issue(
    authority: &CertificateAuthority,
    request: &IssueRequest<'_>,
) -> Result<IssuedCertificate, IssueError> {
    if request.not_after > authority.facts().not_after {
        return Err(IssueError::OutlivesAuthority);
    }
    // rcgen's defaults are a validity until 4096, no AKI and a serial that repeats with the key:
    // every field that matters is set here.
    let mut params = CertificateParams::default();
    params.distinguished_name = request.profile.distinguished_name();
    params.subject_alt_names = request.profile.san_types();
    params.serial_number = Some(SerialNumber::from_slice(request.serial.as_be_bytes()));
    params.not_before = offset_date_time(request.not_before);
    params.not_after = offset_date_time(request.not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.crl_distribution_points = request
        .crl_url
        .map(|url| CrlDistributionPoint { uris: vec![url.to_owned()] })
        .into_iter()
        .collect();

    let public_key = SubjectPublicKeyInfo::from_der(request.public_key_der)?;
    let certificate = params.signed_by(&public_key, &authority.issuer()?)?;
    Ok(IssuedCertificate { der: certificate.der().clone() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pki::PrivateKey;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::profile::AlternativeName;
    use crate::pki::verify::{VerifyError, verify_issued};

    fn profile() -> Profile {
        Profile {
            common_name: Some("laptop-7".into()),
            organization: Some("Example".into()),
            organizational_unit: None,
            alternative_names: vec![
                AlternativeName::Dns("laptop-7.example.com".try_into().unwrap()),
                AlternativeName::Uri("spiffe://example.com/laptop-7".try_into().unwrap()),
                AlternativeName::Email("ada@example.com".try_into().unwrap()),
                AlternativeName::Ip("10.0.0.7".parse().unwrap()),
            ],
        }
    }

    fn request<'a>(profile: &'a Profile, public_key_der: &'a [u8]) -> IssueRequest<'a> {
        IssueRequest {
            profile,
            public_key_der,
            serial: Serial::random(),
            not_before: instant("2026-05-01T10:00:00Z"),
            not_after: instant("2026-08-01T10:00:00Z"),
            crl_url: Some("http://crl.example.com/crl/test/1.crl"),
        }
    }

    pub(crate) fn sample_leaf(authority: &CertificateAuthority) -> CertificateDer<'static> {
        let (profile, key) = (profile(), PrivateKey::generate().public_key_der());
        issue(authority, &request(&profile, &key)).unwrap().der
    }

    #[test]
    fn a_certificate_passes_the_independent_check_of_what_was_asked() {
        let (authority, profile) = (sample(), profile());
        let key = PrivateKey::generate().public_key_der();
        let request = request(&profile, &key);
        let issued = issue(&authority, &request).unwrap();
        let trust = [authority.certificate().clone()];
        let now = instant("2026-06-01T00:00:00Z");
        let facts = verify_issued(&issued.der, &request, &trust, now).unwrap();
        assert_eq!(facts.serial, request.serial);
        assert_eq!(facts.authority_key_id, authority.facts().key_id);

        let other = IssueRequest { serial: Serial::random(), ..request.clone() };
        let refused = verify_issued(&issued.der, &other, &trust, now);
        assert!(matches!(refused, Err(VerifyError::Differs("serial number"))));
        let refused = verify_issued(&issued.der, &request, &[sample().certificate().clone()], now);
        assert!(matches!(refused, Err(VerifyError::Untrusted(_))));
        let late = instant("2026-09-01T00:00:00Z");
        let refused = verify_issued(&issued.der, &request, &trust, late);
        assert!(matches!(refused, Err(VerifyError::Untrusted(_))));
    }

    #[test]
    fn no_certificate_outlives_its_ca() {
        let (authority, profile) = (sample(), profile());
        let key = PrivateKey::generate().public_key_der();
        let late =
            IssueRequest { not_after: instant("2036-01-01T00:00:01Z"), ..request(&profile, &key) };
        assert!(matches!(issue(&authority, &late), Err(IssueError::OutlivesAuthority)));
    }
}
