//! CRLs that come from elsewhere: whether a CA has signed one, and what it says. What is not signed by the
//! CA says nothing.

use jiff::Timestamp;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::Serial;
use super::crl::{CrlError, Entry};
use super::public_key::verify_signature;

/// What a signed CRL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCrl {
    /// When it was made.
    pub this_update: Timestamp,
    /// Its entries, as they stand there.
    pub entries: Vec<Entry>,
}

/// Reads a CRL, DER or PEM, of which the CA, DER, must be the issuer.
pub fn import(bytes: &[u8], ca: &[u8]) -> Result<SignedCrl, CrlError> {
    let block;
    let der = if bytes.starts_with(b"-----BEGIN") {
        block = pem::parse(bytes).map_err(|_| CrlError::Unusable("not PEM"))?;
        block.contents()
    } else {
        bytes
    };
    let Ok(([], crl)) = CertificateRevocationList::from_der(der) else {
        return Err(CrlError::Unusable("not DER of a CertificateList"));
    };
    let (_, ca) = X509Certificate::from_der(ca)
        .map_err(|_| CrlError::Unusable("the CA certificate can't be read"))?;
    if crl.issuer().as_raw() != ca.subject().as_raw() {
        return Err(CrlError::Differs("issuer"));
    }
    verify_signature(
        ca.public_key(),
        &crl.signature_algorithm,
        &crl.signature_value,
        crl.tbs_cert_list.as_ref(),
    )
    .map_err(|_| CrlError::Signature)?;
    let instant = |seconds| {
        Timestamp::from_second(seconds).map_err(|_| CrlError::Unusable("a time is out of range"))
    };
    let entries = crl.iter_revoked_certificates().map(|revoked| {
        let serial = Serial::from_be_bytes(revoked.raw_serial())
            .map_err(|_| CrlError::Unusable("a serial number is not positive"))?;
        let reason = revoked.reason_code().map(|(_, reason)| reason.0);
        Ok(Entry {
            serial,
            revoked_at: instant(revoked.revocation_date.timestamp())?,
            // removeFromCRL stands in delta CRLs only.
            reason: reason.filter(|code| *code != 0 && *code <= 10),
        })
    });
    Ok(SignedCrl {
        this_update: instant(crl.last_update().timestamp())?,
        entries: entries.collect::<Result<_, CrlError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::{CrlNumber, sign, to_pem};
    use proptest::prelude::*;

    #[test]
    fn what_the_ca_signed_is_read_and_nothing_else() {
        let (ca, now) = (sample(), instant("2026-05-01T10:00:00Z"));
        let entry = |serial: &str, reason| Entry {
            serial: serial.parse().unwrap(),
            revoked_at: now,
            reason,
        };
        let entries = vec![entry("0a", None), entry("0b", Some(1)), entry("ff00", Some(9))];
        let der = sign(&ca, CrlNumber(7), now, now, &entries).unwrap();
        let expected = SignedCrl { this_update: now, entries };
        assert_eq!(import(&der, ca.certificate()).unwrap(), expected);
        assert_eq!(import(to_pem(&der).as_bytes(), ca.certificate()).unwrap(), expected);
        let refused = |bytes: &[u8], ca: &[u8]| import(bytes, ca).unwrap_err().to_string();
        assert!(refused(&der, sample().certificate()).contains("not signed by the CA"));
        let mut changed = der.clone();
        // The last entry's serial.
        let at = der.windows(2).position(|pair| pair == [0xff, 0x00]).unwrap();
        changed[at] = 0x7f;
        assert!(refused(&changed, ca.certificate()).contains("not signed by the CA"));
        assert!(refused(&der[1..], ca.certificate()).contains("not DER"));
        assert!(refused(b"-----BEGIN", ca.certificate()).contains("not PEM"));
        assert!(refused(&[der, vec![0]].concat(), ca.certificate()).contains("not DER"));
    }

    proptest! {
        #[test]
        fn reading_foreign_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = import(&bytes, &bytes);
        }
    }
}
