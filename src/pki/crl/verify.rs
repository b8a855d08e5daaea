//! Checking a CRL before anyone sees it, by code that had no part in making it: rustls-webpki reads the
//! entries, one after the other and without a copy; the signature is checked over the octets as they
//! are.

use jiff::Timestamp;
use webpki::{BorrowedCertRevocationList, BorrowedRevokedCert};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::frame::Frame;
use super::lint::Crl;
use super::signed::check_signature;
use super::{CrlError, CrlFacts, CrlParams, Entry};
use crate::pki::{CertificateAuthority, Serial};

/// Reads a CRL and checks that it is signed by the CA, says what was asked, and keeps the rules of the
/// standards. `serials` are all that it must list, in their order; `added`, sorted by serial, are those
/// of which the rest is compared too, since they were encoded for this CRL.
pub fn verify(
    der: &[u8],
    authority: &CertificateAuthority,
    params: &CrlParams<'_>,
    serials: impl IntoIterator<Item = Serial>,
    added: &[Entry],
) -> Result<CrlFacts, CrlError> {
    let crl = Crl::new(Frame::read(der)?, authority.facts());
    // Every entry is read twice, by code that shares nothing, and all octets are hashed: of a long CRL
    // that takes a thread as long as all the rest does another.
    let (checked, serials) = std::thread::scope(|scope| {
        let apart = scope.spawn(|| {
            let unreadable = CrlError::Unusable("the CA certificate can't be read");
            let (_, ca) =
                X509Certificate::from_der(authority.certificate()).map_err(|_| unreadable)?;
            check_signature(&crl.frame, &ca)?;
            Ok::<_, CrlError>(crl.lint())
        });
        let serials = compare(der, params, serials, added);
        (apart.join().expect("no check of a CRL panics"), serials)
    });
    let (rules, serials) = (checked?, serials?);

    let frame = &crl.frame;
    let number = frame.number().ok_or(CrlError::Unusable("no CRL number"))?;
    let times = [Some(frame.this_update), frame.next_update];
    let times = times.map(|time| time.and_then(super::frame::time));
    let second = |time: Timestamp| Some(time.as_second());
    let checks = [
        ("number", number == params.number),
        ("base", frame.base() == params.base),
        (
            "issuing distribution point",
            frame.distribution_point() == params.distribution_point.map(str::as_bytes),
        ),
        ("freshest CRL", frame.freshest() == params.freshest.map(str::as_bytes)),
        ("thisUpdate", times[0].map(Timestamp::as_second) == second(params.this_update)),
        ("nextUpdate", times[1].map(Timestamp::as_second) == second(params.next_update)),
    ];
    if let Some((what, _)) = checks.into_iter().find(|(_, same)| !same) {
        return Err(CrlError::Differs(what));
    }
    rules?;
    Ok(CrlFacts {
        number,
        this_update: times[0].unwrap_or(params.this_update),
        next_update: times[1].unwrap_or(params.next_update),
        issuer_der: frame.issuer.to_vec(),
        authority_key_id: frame.authority_key_id().unwrap_or_default().to_vec(),
        serials,
    })
}

/// Reads the entries and compares them with what was asked for: the serials, in their order.
fn compare(
    der: &[u8],
    params: &CrlParams<'_>,
    serials: impl IntoIterator<Item = Serial>,
    added: &[Entry],
) -> Result<Vec<Serial>, CrlError> {
    let mut check = Comparison { serials: serials.into_iter(), added, read: Vec::new() };
    check.read.reserve_exact(check.serials.size_hint().0.max(added.len()));
    if params.base.is_some() {
        // rustls-webpki knows no delta CRLs; they are short.
        let (_, crl) = CertificateRevocationList::from_der(der)
            .map_err(|_| CrlError::Unusable("x509-parser can't read it"))?;
        for entry in crl.iter_revoked_certificates() {
            let reason = entry.reason_code().map(|(_, code)| code.0);
            check.take(entry.raw_serial(), entry.revocation_date.timestamp(), reason)?;
        }
        return check.finish();
    }
    let crl = BorrowedCertRevocationList::from_der(der)
        .map_err(|_| CrlError::Unusable("rustls-webpki can't read it"))?;
    for entry in &crl {
        let entry = entry.map_err(|_| CrlError::Unusable("rustls-webpki can't read an entry"))?;
        let BorrowedRevokedCert { serial_number, revocation_date, reason_code, .. } = entry;
        let revoked_at = i64::try_from(revocation_date.as_secs()).unwrap_or(i64::MAX);
        check.take(serial_number, revoked_at, reason_code.map(|reason| reason as u8))?;
    }
    check.finish()
}

/// What was read, beside what was asked for.
struct Comparison<'a, I> {
    serials: I,
    added: &'a [Entry],
    read: Vec<Serial>,
}

impl<I: Iterator<Item = Serial>> Comparison<'_, I> {
    fn take(&mut self, serial: &[u8], at: i64, reason: Option<u8>) -> Result<(), CrlError> {
        let serial = Serial::from_be_bytes(serial)
            .map_err(|_| CrlError::Unusable("a serial number is not positive"))?;
        if self.serials.next() != Some(serial) {
            return Err(CrlError::Differs("set of serials"));
        }
        self.read.push(serial);
        if let Some((first, rest)) = self.added.split_first()
            && first.serial == serial
        {
            self.added = rest;
            let asked = first.reason.filter(|code| super::REASONS.contains(code));
            if first.revoked_at.as_second() != at || asked != reason {
                return Err(CrlError::Differs("revocation date or reason"));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Serial>, CrlError> {
        if self.serials.next().is_some() || !self.added.is_empty() {
            return Err(CrlError::Differs("set of serials"));
        }
        Ok(self.read)
    }
}
