//! A server's certificate and key as they stand in a folder, also when they are replaced there, or come later.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::cluster::tls;
use crate::pki::inspect::certificates;

/// The folder is looked into this often. The kubelet brings a changed Secret within a minute or two.
const PACE: Duration = Duration::from_secs(1);

/// The certificate in use; until there is one every handshake fails.
#[derive(Debug, Default)]
pub struct Certificate(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl Certificate {
    /// Follows `tls.crt` and `tls.key` of a folder for ever. What can't be used leaves the last good certificate in
    /// use, and is told once.
    pub async fn follow(self: Arc<Self>, folder: PathBuf) {
        let mut told = None;
        loop {
            let (certificate, path) = (self.clone(), folder.clone());
            let looked = tokio::task::spawn_blocking(move || certificate.look(&path)).await;
            // A panic of the reader is one of the process; and at its end nobody waits.
            let Ok(result) = looked else { return };
            match result {
                Ok(false) => told = None,
                Ok(true) => {
                    told = None;
                    info!(folder = %folder.display(), "took in the certificate of the gate");
                }
                Err(why) if told.as_ref() != Some(&why) => {
                    warn!(why, "the certificate of the gate can't be used; it is looked for again");
                    told = Some(why);
                }
                Err(_) => {}
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// Takes in what stands in the folder; false when it is in use already.
    fn look(&self, folder: &Path) -> Result<bool, String> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let chain = certificates(&read("tls.crt")?)
            .map_err(|error| format!("{}: {error}", folder.join("tls.crt").display()))?;
        if self.0.load().as_ref().is_some_and(|known| known.cert == chain) {
            return Ok(false);
        }
        let key = Zeroizing::new(read("tls.key")?);
        let bad = |why: String| format!("{}: {why}", folder.join("tls.key").display());
        // The parser's own words might quote what it can't read.
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|_| bad("it holds no private key in PEM".to_owned()))?;
        // Between two files of which one is new already, too.
        let certified = CertifiedKey::from_der(chain, key, &tls::provider())
            .map_err(|error| bad(error.to_string()))?;
        self.0.store(Some(Arc::new(certified)));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::fs;

    #[test]
    fn a_certificate_is_taken_in_when_it_comes_and_when_another_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = Certificate::default();
        let look = || certificate.look(folder.path());
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let new = || {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(["gate.example".to_owned()]).unwrap();
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        assert!(look().unwrap_err().contains("tls.crt"));
        let (first, second) = (new(), new());
        put("tls.crt", &first.0);
        assert!(look().unwrap_err().contains("tls.key"));
        put("tls.key", &second.1);
        assert!(look().unwrap_err().contains("tls.key"), "the key of another certificate");
        assert!(certificate.0.load().is_none());
        put("tls.key", &first.1);
        assert_eq!((look(), look()), (Ok(true), Ok(false)));
        let in_use = || certificate.0.load_full().unwrap().cert[0].clone();
        let before = in_use();

        // What can't be used changes nothing, and says nothing of the key.
        put("tls.crt", &second.0);
        for key in [&*first.1, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0!\n-----END", ""] {
            put("tls.key", key);
            let why = look().unwrap_err();
            assert!(!why.contains("c2Vj") && !why.contains("PRIVATE"), "{why}");
            assert_eq!(in_use(), before);
        }
        put("tls.key", &second.1);
        assert_eq!(look(), Ok(true));
        assert_ne!(in_use(), before);
        put("tls.crt", "");
        assert!(look().is_err());
        fs::remove_file(folder.path().join("tls.crt")).unwrap();
        assert!(look().is_err());
        assert_ne!(in_use(), before);
    }
}
