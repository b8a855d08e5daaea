//! Signing the certificate of a client.

use jiff::Timestamp;
use rcgen::{CertificateParams, CrlDistributionPoint, IsCa, KeyUsagePurpose, SerialNumber};
use rustls_pki_types::CertificateDer;

use super::encode::{self, EncodeError};
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
    /// Encoding or signing failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The certificate would outlive its CA.
    #[error("certificate would outlive its CA")]
    OutlivesAuthority,
}

/// Signs a client certificate: digitalSignature, the usages that were asked for, no CA, AKI and SKI, a
/// CRL distribution point when there is one.
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
    params.subject_alt_names = request.profile.san_types();
    params.serial_number = Some(SerialNumber::from_slice(request.serial.as_be_bytes()));
    params.not_before = offset_date_time(request.not_before);
    params.not_after = offset_date_time(request.not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = request.profile.extended_key_usages();
    params.crl_distribution_points = request
        .crl_url
        .map(|url| CrlDistributionPoint { uris: vec![url.to_owned()] })
        .into_iter()
        .collect();

    let subject = request.profile.subject.to_der();
    let der = encode::certificate(
        params,
        &subject,
        request.public_key_der,
        &authority.issuer(),
        authority.signer(),
    )?;
    Ok(IssuedCertificate { der })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pki::authority::tests::{instant, sample, sample_of};
    use crate::pki::name::{Attribute, Name};
    use crate::pki::profile::{AlternativeName, Usage};
    use crate::pki::verify::{VerifyError, verify_issued};
    use crate::pki::{KeyType, PrivateKey};

    fn profile() -> Profile {
        Profile {
            subject: Name(vec![
                (Attribute::Organization, "Example".into()),
                (Attribute::OrganizationalUnit, "Laptops".into()),
                (Attribute::OrganizationalUnit, "Sales".into()),
                (Attribute::CommonName, "laptop-7".into()),
            ]),
            alternative_names: vec![
                AlternativeName::Dns("laptop-7.example.com".try_into().unwrap()),
                AlternativeName::Uri("spiffe://example.com/laptop-7".try_into().unwrap()),
                AlternativeName::Email("ada@example.com".try_into().unwrap()),
                AlternativeName::Ip("10.0.0.7".parse().unwrap()),
                AlternativeName::UserPrincipalName("ada@example.com".into()),
            ],
            usages: vec![Usage::ClientAuth],
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
        let (profile, key) = (profile(), PrivateKey::generate(KeyType::EcdsaP256).public_key_der());
        issue(authority, &request(&profile, &key)).unwrap().der
    }

    /// A certificate until this time, with its key.
    pub(crate) fn sample_pair(
        authority: &CertificateAuthority,
        not_after: Timestamp,
    ) -> (CertificateDer<'static>, PrivateKey) {
        let (profile, key) = (profile(), PrivateKey::generate(KeyType::EcdsaP256));
        let public = key.public_key_der();
        let request = IssueRequest { not_after, ..request(&profile, &public) };
        (issue(authority, &request).unwrap().der, key)
    }

    #[test]
    fn a_certificate_passes_the_independent_check_of_what_was_asked() {
        let (authority, profile) = (sample(), profile());
        let key = PrivateKey::generate(KeyType::EcdsaP256).public_key_der();
        let request = request(&profile, &key);
        let issued = issue(&authority, &request).unwrap();
        let trust = [authority.certificate().clone()];
        let now = instant("2026-06-01T00:00:00Z");
        let facts = verify_issued(&issued.der, &request, authority.chain(), &trust, now).unwrap();
        assert_eq!(facts.serial, request.serial);
        assert_eq!(facts.authority_key_id, authority.facts().key_id);

        let other = IssueRequest { serial: Serial::random(), ..request.clone() };
        let refused = verify_issued(&issued.der, &other, authority.chain(), &trust, now);
        assert!(matches!(refused, Err(VerifyError::Differs("serial number"))));
        let refused = verify_issued(
            &issued.der,
            &request,
            authority.chain(),
            &[sample().certificate().clone()],
            now,
        );
        assert!(matches!(refused, Err(VerifyError::Untrusted(_))));
        let late = instant("2026-09-01T00:00:00Z");
        let refused = verify_issued(&issued.der, &request, authority.chain(), &trust, late);
        assert!(matches!(refused, Err(VerifyError::Untrusted(_))));
    }

    #[test]
    fn a_certificate_that_breaks_a_rule_is_not_published() {
        let (authority, mut profile) = (sample(), profile());
        profile.alternative_names.push(profile.alternative_names[0].clone());
        let key = PrivateKey::generate(KeyType::EcdsaP256).public_key_der();
        let request = request(&profile, &key);
        let issued = issue(&authority, &request).unwrap();
        let trust = [authority.certificate().clone()];
        let refused =
            verify_issued(&issued.der, &request, authority.chain(), &trust, request.not_before);
        assert!(matches!(refused, Err(VerifyError::Lint(_))), "{refused:?}");
    }

    #[test]
    fn keys_of_each_type_are_signed_for_by_cas_of_each_type() {
        let profile = profile();
        for ca_type in KeyType::ALL {
            let authority = sample_of(ca_type);
            for key_type in
                [KeyType::EcdsaP256, KeyType::EcdsaP521, KeyType::Ed25519, KeyType::Rsa2048]
            {
                let key = PrivateKey::generate(key_type).public_key_der();
                let request = request(&profile, &key);
                let issued = issue(&authority, &request).unwrap();
                let trust = [authority.certificate().clone()];
                verify_issued(&issued.der, &request, authority.chain(), &trust, request.not_before)
                    .unwrap_or_else(|error| panic!("{key_type:?} by {ca_type:?}: {error:?}"));
            }
        }
    }

    #[test]
    fn no_certificate_outlives_its_ca() {
        let (authority, profile) = (sample(), profile());
        let key = PrivateKey::generate(KeyType::EcdsaP256).public_key_der();
        let late =
            IssueRequest { not_after: instant("2036-01-01T00:00:01Z"), ..request(&profile, &key) };
        assert!(matches!(issue(&authority, &late), Err(IssueError::OutlivesAuthority)));
    }
}
