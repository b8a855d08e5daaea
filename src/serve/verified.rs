//! Verification of a client's certificate, remembered: checking a signature takes ten times as long as all else
//! that the gate does, and the same clients come again and again.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use crate::pki::inspect::LeafFacts;
use crate::pki::verify::verify_client;

/// So many certificates of a CA are remembered at least, and twice as many at most: about 8 MiB.
const ROOM: usize = 32_768;

/// SHA-256 of the certificates that one CA was seen to have signed. Only good ones are remembered, so nobody can
/// crowd them out by others. What is remembered does not change with time; validity is looked at each time.
#[derive(Default)]
pub struct Verified(Mutex<Generations>);

/// When the young ones have taken all the room they are the old ones, and who was old and is not asked for goes.
#[derive(Default)]
struct Generations {
    young: HashSet<String>,
    old: HashSet<String>,
}

impl Verified {
    /// Is this a client's certificate of the CA, whose memory this is, and valid now?
    pub fn verify(
        &self,
        der: &CertificateDer<'_>,
        facts: &LeafFacts,
        ca: &CertificateDer<'_>,
        now: Timestamp,
    ) -> bool {
        if self.knows(&facts.fingerprint) {
            return facts.not_before <= now && now.as_second() <= facts.not_after.as_second();
        }
        let good = verify_client(der, &[], std::slice::from_ref(ca), now).is_ok();
        if good {
            self.lock().put(facts.fingerprint.clone());
        }
        good
    }

    fn knows(&self, fingerprint: &str) -> bool {
        let mut generations = self.lock();
        if generations.young.contains(fingerprint) {
            return true;
        }
        let known = generations.old.take(fingerprint);
        known.map(|fingerprint| generations.put(fingerprint)).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().expect("nothing panics that holds it")
    }
}

impl Generations {
    fn put(&mut self, fingerprint: String) {
        if self.young.len() == ROOM {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(fingerprint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::inspect::inspect;
    use crate::pki::issue::tests::sample_leaf;
    use jiff::SignedDuration;

    #[test]
    fn what_is_remembered_is_no_better_than_what_is_verified() {
        let ca = sample();
        let (der, now) = (sample_leaf(&ca), instant("2026-06-01T00:00:00Z"));
        let (ca, facts) = (ca.certificate(), inspect(&der).unwrap());
        let second = SignedDuration::from_secs(1);
        for (at, expected) in [
            (now, true),
            (facts.not_before - second, false),
            (facts.not_before, true),
            (facts.not_after, true),
            (facts.not_after + second, false),
        ] {
            let verified = Verified::default();
            assert_eq!(verified.verify(&der, &facts, ca, at), expected, "{at}");
            assert!(verified.verify(&der, &facts, ca, now));
            assert_eq!(verified.verify(&der, &facts, ca, at), expected, "remembered: {at}");
        }
    }

    #[test]
    fn only_good_ones_are_remembered() {
        let (der, now) = (sample_leaf(&sample()), instant("2026-06-01T00:00:00Z"));
        let (facts, other, verified) = (inspect(&der).unwrap(), sample(), Verified::default());
        for _ in 0..2 {
            assert!(!verified.verify(&der, &facts, other.certificate(), now));
        }
        assert!(!verified.knows(&facts.fingerprint));
    }

    #[test]
    fn who_is_not_asked_for_is_forgotten() {
        let verified = Verified::default();
        for at in 0..5 * ROOM {
            verified.lock().put(at.to_string());
            assert!(verified.knows("0"), "{at}");
            assert!(verified.lock().old.len() <= ROOM, "{at}");
        }
        assert!(!verified.knows("1") && verified.knows(&(5 * ROOM - 1).to_string()));
    }
}
