//! The CRLs of several CAs in one PEM text, as data planes read them.

use jiff::Timestamp;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::CertificateAuthority;
use super::crl::{CrlFacts, read, to_pem};
use super::public_key::verify_signature;

/// The wanted CRLs, but for each CA the one that is in service if that is the later one by its number, is
/// signed by the CA, and is good at this moment. Whoever has not seen the newest CRL yet must not put an
/// older one in its place.
pub fn keep_later(
    wanted: &[u8],
    in_service: &[u8],
    cas: &[&CertificateAuthority],
    now: Timestamp,
) -> Vec<u8> {
    let Ok(blocks) = pem::parse_many(wanted) else { return wanted.to_vec() };
    let present: Vec<_> = pem::parse_many(in_service)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|block| Some((read(block.contents()).ok()?, block)))
        .collect();
    let mut text = String::new();
    for block in &blocks {
        let later = read(block.contents()).ok().and_then(|facts| {
            let candidates = present.iter().filter(|(other, _)| is_later(other, &facts, now));
            let (other, later) = candidates.max_by_key(|(other, _)| other.number)?;
            let ca = cas.iter().find(|ca| ca.facts().key_id == other.authority_key_id)?;
            is_signed_by(later.contents(), ca).then_some(later)
        });
        text += &to_pem(later.unwrap_or(block).contents());
    }
    text.into_bytes()
}

/// Is it a later CRL of the same CA, and good at this moment?
fn is_later(other: &CrlFacts, facts: &CrlFacts, now: Timestamp) -> bool {
    other.authority_key_id == facts.authority_key_id
        && other.issuer_der == facts.issuer_der
        && other.number > facts.number
        && other.this_update <= now
        && now < other.next_update
}

fn is_signed_by(der: &[u8], ca: &CertificateAuthority) -> bool {
    let Ok(([], crl)) = CertificateRevocationList::from_der(der) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(ca.certificate()) else { return false };
    let message = crl.tbs_cert_list.as_ref();
    let (algorithm, value) = (&crl.signature_algorithm, &crl.signature_value);
    verify_signature(certificate.public_key(), algorithm, value, message).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::{CrlNumber, sign};
    use jiff::SignedDuration;

    fn pem(ca: &CertificateAuthority, number: u128, this_update: Timestamp) -> String {
        let next_update = this_update + SignedDuration::from_hours(1);
        to_pem(&sign(ca, CrlNumber(number), this_update, next_update, &[]).unwrap())
    }

    #[test]
    fn of_two_crls_of_a_ca_the_later_one_stays() {
        let (ca, other) = (sample(), sample());
        let now = instant("2026-05-01T10:00:00Z");
        let (old, new) = (pem(&ca, 7, now), pem(&ca, 8, now));
        let of_other = pem(&other, 5, now);
        let kept = |wanted: &str, present: &str| {
            let kept = keep_later(wanted.as_bytes(), present.as_bytes(), &[&ca, &other], now);
            String::from_utf8(kept).unwrap()
        };
        assert_eq!(kept(&old, &new), new);
        assert_eq!(kept(&new, &old), new);
        // Each CA for itself; one that is not wanted any more goes.
        assert_eq!(kept(&(old.clone() + &of_other), &new), new.clone() + &of_other);
        for nothing in ["", "garbage", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"] {
            assert_eq!(kept(&old, nothing), old);
        }
        assert_eq!(kept(&of_other, &(new + &of_other)), of_other);
    }

    #[test]
    fn a_later_crl_that_is_good_for_nothing_does_not_stay() {
        let ca = sample();
        let now = instant("2026-05-01T10:00:00Z");
        let hours = |count| now + SignedDuration::from_hours(count);
        let wanted = pem(&ca, 7, now);
        // Expired, of the future, and of one that only has the CA's name.
        let namesake = sample();
        for present in [pem(&ca, 8, hours(-2)), pem(&ca, 8, hours(1)), pem(&namesake, 8, now)] {
            let kept = keep_later(wanted.as_bytes(), present.as_bytes(), &[&ca], now);
            assert_eq!(kept, wanted.as_bytes());
        }
        // Bytes changed after it was signed.
        let mut der = sign(&ca, CrlNumber(8), now, hours(1), &[]).unwrap();
        *der.last_mut().unwrap() ^= 1;
        let kept = keep_later(wanted.as_bytes(), to_pem(&der).as_bytes(), &[&ca], now);
        assert_eq!(kept, wanted.as_bytes());
    }
}
