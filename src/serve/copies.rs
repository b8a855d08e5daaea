//! Copies of the last good CRLs on the disk, so that a server that starts while the API server is down
//! serves them and answers the gate.
//!
//! A copy is the ConfigMap that published the CRL, as JSON, whole also when it lay in parts. It is read by
//! what reads ConfigMaps, with all its checks. Who can write into the folder can put an older CRL there, or
//! another CA with a CRL of its own: both are in force no longer than until the API server answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use tracing::error;

use super::published::{Published, Source};
use super::view::View;
use crate::api::annotation;
use crate::api::authority::CaState;
use crate::plan::authority::labels;
use crate::plan::publication::{COMPONENT, Scope, crl_key, head_name};

/// Ending of a file that is being written.
const UNFINISHED: &str = "unfinished";

/// A folder of copies.
pub struct Copies {
    folder: PathBuf,
    // What our files hold.
    written: HashMap<String, Held>,
}

/// What a file holds: digest of the CRL, its CA, and whether nobody trusts that any more.
#[derive(PartialEq, Eq)]
struct Held(String, CertificateDer<'static>, bool);

impl Held {
    fn of(one: &Published) -> Self {
        Self(one.document().sha256().to_owned(), one.ca.clone(), one.removed)
    }
}

impl Copies {
    /// A folder, which is made if it is not there.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), written: HashMap::new() })
    }

    /// The view that the copies give. One that is damaged, or whose signature is wrong, is left out.
    pub fn read(&mut self) -> io::Result<View> {
        let mut view = View::default();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let ending = path.extension().and_then(|extension| extension.to_str());
            match ending {
                Some("json") => match read(&path) {
                    Ok(head) => view = view.with_parts(&head, &HashMap::new(), Source::Disk),
                    Err(error) => error!(path = %path.display(), %error, "a copy can't be read"),
                },
                // Of a process that ended while it wrote.
                Some(UNFINISHED) => fs::remove_file(&path)?,
                _ => {}
            }
        }
        self.written = view.all().map(|one| (file_name(one), Held::of(one))).collect();
        Ok(view)
    }

    /// Writes what the view has and the disk has not, and removes what is published no more.
    pub fn keep(&mut self, view: &View) -> io::Result<()> {
        let mut gone: HashSet<String> = self.written.keys().cloned().collect();
        for one in view.all() {
            let name = file_name(one);
            gone.remove(&name);
            let held = Held::of(one);
            if self.written.get(&name) != Some(&held) {
                write(&self.folder, &name, one)?;
                self.written.insert(name, held);
            }
        }
        for name in gone {
            match fs::remove_file(self.folder.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.written.remove(&name),
            };
        }
        Ok(())
    }
}

fn file_name(one: &Published) -> String {
    format!("{}.json", head_name(&one.key, one.scope))
}

fn read(path: &Path) -> io::Result<ConfigMap> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Whoever reads the folder finds the old copy or the new one, also after the power failed.
fn write(folder: &Path, name: &str, one: &Published) -> io::Result<()> {
    let (path, unfinished) = (folder.join(name), folder.join(name).with_extension(UNFINISHED));
    let mut out = BufWriter::with_capacity(128 * 1024, File::create(&unfinished)?);
    serde_json::to_writer(&mut out, &Copy::of(one))?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(unfinished, path)?;
    File::open(folder)?.sync_all()
}

/// A ConfigMap whose bytes are encoded as they are written: a large CRL is not copied in memory.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Copy<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: ObjectMeta,
    data: BTreeMap<&'static str, String>,
    binary_data: BTreeMap<&'static str, Base64<'a>>,
}

struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

impl<'a> Copy<'a> {
    fn of(one: &'a Published) -> Self {
        let mut annotations = BTreeMap::new();
        let mut note = |name: &str, value: String| annotations.insert(name.to_owned(), value);
        note(annotation::CRL_NUMBER, one.number.0.to_string());
        if one.removed {
            note(annotation::STATE, CaState::Removed.as_str().to_owned());
        }
        if one.scope != Scope::Full {
            note(annotation::CRL_SCOPE, one.scope.to_string());
        }
        Self {
            api_version: "v1",
            kind: "ConfigMap",
            metadata: ObjectMeta {
                name: Some(head_name(&one.key, one.scope)),
                labels: Some(labels(&one.key, COMPONENT)),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            data: BTreeMap::from([(crl_key::CA, one.ca_pem())]),
            binary_data: BTreeMap::from([(crl_key::DER, Base64(one.der()))]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::CertificateAuthority;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::{CrlNumber, CrlParams, Index, encode, sign};
    use crate::plan::ledger::CaKey;
    use crate::plan::publication::render;

    fn published(ca: &CertificateAuthority, authority: &str, number: u128) -> ConfigMap {
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant("2026-06-07T00:00:00Z"));
        let der = sign(ca, CrlNumber(number), this, next, &[]).unwrap();
        let key = CaKey::first(authority);
        render(&key, Scope::Full, &ca.certificate_pem(), &der, &[], CrlNumber(number)).head
    }

    fn read_back(folder: &Path) -> View {
        Copies::open(folder).unwrap().read().unwrap()
    }

    #[test]
    fn a_shard_is_kept_beside_the_complete_one() {
        let (folder, ca) = (tempfile::tempdir().unwrap(), sample());
        let (this, next) = (instant("2026-05-31T00:00:00Z"), instant("2026-06-07T00:00:00Z"));
        let (key, scope) = (CaKey::first("staff"), Scope::Shard { index: 1, of: 4 });
        let url = format!("http://crl.example.com{}", scope.path(&key));
        let complete = CrlParams::complete(CrlNumber(7), this, next);
        let params = CrlParams { distribution_point: Some(&url), ..complete };
        let der = encode(&ca, &params, &Index::default()).unwrap().der;
        let shard = render(&key, scope, &ca.certificate_pem(), &der, &[], CrlNumber(7)).head;
        let view = View::default().with(&published(&ca, "staff", 7)).with(&shard);
        Copies::open(folder.path()).unwrap().keep(&view).unwrap();

        let found = read_back(folder.path());
        assert_eq!(found.all().count(), 2);
        assert_eq!(found.scoped(&key, scope).unwrap().der(), &der);
        assert_ne!(found.get(&key).unwrap().der(), &der);
    }

    fn describe(view: &View) -> Vec<(String, u128, bool, bool)> {
        let one = |one: &std::sync::Arc<Published>| {
            (one.key.to_string(), one.number.0, one.removed, one.from_disk)
        };
        view.all().map(one).collect()
    }

    #[test]
    fn what_was_served_is_served_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (staff, devices) = (sample(), sample());
        let mut retired = published(&devices, "devices", 3);
        let note = (annotation::STATE.to_owned(), "Removed".to_owned());
        retired.metadata.annotations.get_or_insert_default().extend([note]);
        let view = View::default().with(&published(&staff, "staff", 7)).with(&retired);
        let mut copies = Copies::open(folder.path()).unwrap();
        copies.keep(&view).unwrap();

        let found = read_back(folder.path());
        let expected =
            [("devices/1".to_owned(), 3, true, true), ("staff/1".to_owned(), 7, false, true)];
        assert_eq!(describe(&found), expected);
        let der = |view: &View| view.get(&CaKey::first("staff")).unwrap().der().clone();
        assert_eq!(der(&found), der(&view));

        // Newer ones take the place of older ones, and what is published no more goes.
        let view = view.with(&published(&staff, "staff", 8)).without(&retired);
        copies.keep(&view).unwrap();
        assert_eq!(describe(&read_back(folder.path())), [("staff/1".to_owned(), 8, false, true)]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_copy_that_was_tampered_with_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let view = View::default().with(&published(&sample(), "staff", 7));
        Copies::open(folder.path()).unwrap().keep(&view).unwrap();
        let path = folder.path().join("crl-staff-1.json");
        let text = fs::read_to_string(&path).unwrap();
        let crl = text.find("crl.der").unwrap() + 40;
        for at in crl..crl + 40 {
            let mut damaged = text.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            fs::write(&path, damaged).unwrap();
            assert_eq!(read_back(folder.path()).all().count(), 0, "octet {at}");
        }
        for damaged in ["", "{}", &text[..text.len() / 2]] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read_back(folder.path()).all().count(), 0);
        }
    }

    #[test]
    fn what_a_killed_process_left_behind_is_swept_up() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("crl-staff-1.unfinished"), "{").unwrap();
        fs::write(folder.path().join("note.txt"), "not ours").unwrap();
        assert_eq!(read_back(folder.path()).all().count(), 0);
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["note.txt"]);
    }
}
