//! Checking a certificate before anyone sees it, by code that had no part in making it.

use std::time::Duration;

use jiff::Timestamp;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::inspect::{InspectError, LeafFacts, certificates, inspect};
use super::issue::IssueRequest;
use super::lint::{Broken, lint};

/// Why a server's certificate is not taken although it is known.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    /// It can't be read, or holds another name.
    #[error(transparent)]
    Certificate(#[from] webpki::Error),
    /// It has expired, or is not valid yet.
    #[error("the certificate has expired or is not valid yet")]
    Validity,
}

/// Why servers can't be verified by a text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RootsError {
    /// Not PEM, or not of certificates.
    #[error("it must hold one or more whole certificates in PEM, and no other objects")]
    Pem,
    /// One of them is none.
    #[error("certificate {0} of it is not an X.509 certificate")]
    Certificate(usize),
    /// One of them is of a server or a client.
    #[error("certificate {0} of it is not of a CA")]
    NotCa(usize),
}

/// Why a certificate must not be published.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It can't be read back.
    #[error("failed to read certificate back")]
    Inspect(#[from] InspectError),
    /// It says something else than was asked for.
    #[error("certificate has another {0} than was asked for")]
    Differs(&'static str),
    /// It breaks a rule of the standards.
    #[error(transparent)]
    Lint(#[from] Broken),
    /// The published trust does not verify it.
    #[error("the trust bundle does not verify the certificate: {0}")]
    Untrusted(webpki::Error),
}

/// Is this certificate what was asked for, does it keep the rules of the standards, and does the trust
/// bundle verify it for client authentication at this moment? `chain` begins with the CA that signed it
/// and ends with the root.
pub fn verify_issued(
    der: &CertificateDer<'_>,
    request: &IssueRequest<'_>,
    chain: &[CertificateDer<'_>],
    trust: &[CertificateDer<'_>],
    now: Timestamp,
) -> Result<LeafFacts, VerifyError> {
    let facts = inspect(der)?;
    let checks = [
        ("serial number", facts.serial == request.serial),
        ("public key", facts.public_key_der == request.public_key_der),
        ("notBefore", facts.not_before.as_second() == request.not_before.as_second()),
        ("notAfter", facts.not_after.as_second() == request.not_after.as_second()),
        ("subject", facts.subject_der == request.profile.subject.to_der()),
        ("extended key usages", facts.usages == request.profile.usages),
        ("number of names", facts.alternative_names == request.profile.alternative_names.len()),
    ];
    if let Some((what, _)) = checks.into_iter().find(|(_, same)| !same) {
        return Err(VerifyError::Differs(what));
    }
    let [ca, above @ ..] = chain else { return Err(VerifyError::Differs("issuer")) };
    lint(der, ca)?;
    let intermediates = &chain[..above.len()];
    verify_client(der, intermediates, trust, now).map_err(VerifyError::Untrusted)?;
    Ok(facts)
}

/// Does the trust bundle, by way of the intermediates that the client presents, verify this certificate
/// for client authentication at this moment?
pub fn verify_client(
    der: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trust: &[CertificateDer<'_>],
    now: Timestamp,
) -> Result<(), webpki::Error> {
    let anchors =
        trust.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, webpki::Error>>()?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().max(0) as u64));
    EndEntityCert::try_from(der)?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            time,
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map(|_| ())
}

/// The CAs of a PEM text, by which servers are verified.
pub fn roots(pem_text: &str) -> Result<RootCertStore, RootsError> {
    let found = certificates(pem_text.as_bytes()).map_err(|_| RootsError::Pem)?;
    // What is cut short at the end is passed over by the reader.
    if pem_text.matches("-----BEGIN ").count() != found.len() {
        return Err(RootsError::Pem);
    }
    let mut roots = RootCertStore::empty();
    for (number, der) in (1..).zip(found) {
        let unreadable = || RootsError::Certificate(number);
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| unreadable())?;
        let constraints = certificate.basic_constraints().ok().flatten();
        if !constraints.is_some_and(|constraints| constraints.value.ca) {
            return Err(RootsError::NotCa(number));
        }
        roots.add(der).map_err(|_| unreadable())?;
    }
    Ok(roots)
}

/// Is a certificate that is trusted for itself, and may say of itself that it is a CA's, of this name and
/// valid at this moment?
pub fn verify_pinned_server(
    der: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), PinnedError> {
    EndEntityCert::try_from(der)?.verify_is_valid_for_subject_name(name)?;
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| webpki::Error::BadDer)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp() {
        Ok(())
    } else {
        Err(PinnedError::Validity)
    }
}
