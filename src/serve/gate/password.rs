//! Passwords beside certificates. Their hashes take long on purpose: so they are computed on few threads, who waits
//! for one is counted, and a password that was right is remembered for some minutes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aws_lc_rs::{hmac, rand::SystemRandom};
use axum::http::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::Refusal;
use crate::plan::gate::password::Hash;

/// So many hashes are computed at once: with the costliest they take 128 MiB.
const AT_ONCE: usize = 2;
/// So many requests wait for a hash or have one computed; further ones are refused.
const WAITING: usize = 64;
/// For so long a right password is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);
/// So many are remembered: about 8 MiB.
const ROOM: usize = 65_536;
/// The longest header that is looked at.
const LONGEST: usize = 4096;

/// What a right password is remembered by: a keyed hash over the trust, the user, the password and the hash in the
/// file, so that none of them is kept, and another hash in the file ends it.
type Tag = [u8; 32];

/// Checks passwords.
pub struct Passwords {
    key: hmac::Key,
    right: Mutex<HashMap<Tag, Instant>>,
    places: Arc<Semaphore>,
    threads: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Self {
            key: key.expect("the system has randomness"),
            right: Mutex::default(),
            places: Arc::new(Semaphore::new(WAITING)),
            threads: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Passwords {
    /// Has the client the password of one of these users of a trust? An unknown user costs what a wrong password
    /// costs.
    pub async fn check(
        &self,
        trust: &str,
        users: &BTreeMap<String, String>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), Refusal> {
        let said = authorization.and_then(basic).ok_or(Refusal::PasswordMissing)?;
        let (user, password) =
            said.split_at(said.iter().position(|octet| *octet == b':').unwrap_or(0));
        let known = std::str::from_utf8(user).ok().and_then(|user| users.get(user));
        let tag = known.map(|hash| self.tag(&[trust.as_bytes(), user, password, hash.as_bytes()]));
        if tag.is_some_and(|tag| self.remembers(&tag)) {
            return Ok(());
        }
        let place = self.places.clone().try_acquire_owned().map_err(|_| Refusal::Busy)?;
        let thread = self.threads.clone().acquire_owned().await.map_err(|_| Refusal::Busy)?;
        // Many requests come with the same password at the same moment.
        if tag.is_some_and(|tag| self.remembers(&tag)) {
            return Ok(());
        }
        let hash = known.or_else(|| users.values().next()).ok_or(Refusal::PasswordWrong)?;
        let hash = Hash::read(hash).map_err(|_| Refusal::UnknownPolicy)?;
        let password = Zeroizing::new(password[1..].to_vec());
        // Who goes meanwhile gives neither place nor thread back before the hash is done.
        let work = tokio::task::spawn_blocking(move || {
            let right = hash.is_of(&password);
            drop((thread, place));
            right
        });
        match (work.await, tag) {
            (Ok(true), Some(tag)) => {
                self.remember(tag);
                Ok(())
            }
            _ => Err(Refusal::PasswordWrong),
        }
    }

    fn tag(&self, parts: &[&[u8]]) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().expect("SHA-256 has 32 octets")
    }

    fn remembers(&self, tag: &Tag) -> bool {
        self.lock().get(tag).is_some_and(|at| at.elapsed() < REMEMBERED)
    }

    fn remember(&self, tag: Tag) {
        let mut right = self.lock();
        if right.len() >= ROOM {
            right.retain(|_, at| at.elapsed() < REMEMBERED);
        }
        if right.len() >= ROOM {
            right.clear();
        }
        right.insert(tag, Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tag, Instant>> {
        self.right.lock().expect("nothing panics that holds it")
    }
}

/// `user:password` of HTTP Basic authentication (RFC 7617 section 2).
fn basic(header: &HeaderValue) -> Option<Zeroizing<Vec<u8>>> {
    let text = header.to_str().ok().filter(|text| text.len() <= LONGEST)?;
    let (scheme, code) = text.split_once(' ')?;
    let said =
        scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(code.trim()).ok())??;
    let said = Zeroizing::new(said);
    said.contains(&b':').then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of "correct horse", by htpasswd.
    const HASH: &str = "$2y$04$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi";

    fn users() -> BTreeMap<String, String> {
        [("ada".to_owned(), HASH.to_owned())].into()
    }

    fn says(scheme: &str, text: &str) -> HeaderValue {
        format!("{scheme} {}", STANDARD.encode(text)).parse().unwrap()
    }

    #[tokio::test]
    async fn only_the_password_of_the_user_is_right() {
        let (passwords, users) = (Passwords::default(), users());
        for _ in 0..2 {
            for (header, answer) in [
                (says("Basic", "ada:correct horse"), Ok(())),
                (says("basic", "ada:correct horse"), Ok(())),
                (says("Basic", "ada:correct horsf"), Err(Refusal::PasswordWrong)),
                (says("Basic", "ada:"), Err(Refusal::PasswordWrong)),
                (says("Basic", ":correct horse"), Err(Refusal::PasswordWrong)),
                (says("Basic", "Ada:correct horse"), Err(Refusal::PasswordWrong)),
                (says("Basic", "bob:correct horse"), Err(Refusal::PasswordWrong)),
                (says("Basic", "ada"), Err(Refusal::PasswordMissing)),
                (says("Bearer", "ada:correct horse"), Err(Refusal::PasswordMissing)),
                ("Basic ada:correct".parse().unwrap(), Err(Refusal::PasswordMissing)),
                ("Basic".parse().unwrap(), Err(Refusal::PasswordMissing)),
                (
                    says("Basic", &format!("ada:{}", "x".repeat(LONGEST))),
                    Err(Refusal::PasswordMissing),
                ),
            ] {
                assert_eq!(passwords.check("t", &users, Some(&header)).await, answer, "{header:?}");
            }
            assert_eq!(passwords.check("t", &users, None).await, Err(Refusal::PasswordMissing));
        }
        assert_eq!(passwords.lock().len(), 1, "only right ones are remembered");
    }

    #[tokio::test]
    async fn what_is_remembered_is_of_one_trust_and_one_hash() {
        let (passwords, mut users) = (Passwords::default(), users());
        let header = says("Basic", "ada:correct horse");
        assert_eq!(passwords.check("t", &users, Some(&header)).await, Ok(()));
        assert_eq!(passwords.check("u", &users, Some(&header)).await, Ok(()));
        assert_eq!(passwords.lock().len(), 2);
        // With no place left only what is remembered passes.
        let all = passwords.places.clone().acquire_many_owned(WAITING as u32).await.unwrap();
        assert_eq!(passwords.check("t", &users, Some(&header)).await, Ok(()));
        let other = says("Basic", "ada:wrong");
        assert_eq!(passwords.check("t", &users, Some(&other)).await, Err(Refusal::Busy));
        drop(all);
        // Of "x": the file was changed.
        let changed = "$2b$04$9hjAfJXkJRtpghvK2MHTgeUnqOUdGymvAFDTB0zEbQFTajiwn.YN6".to_owned();
        users.insert("ada".into(), changed);
        let answer = passwords.check("t", &users, Some(&header)).await;
        assert_eq!(answer, Err(Refusal::PasswordWrong));
        users.clear();
        let answer = passwords.check("t", &users, Some(&header)).await;
        assert_eq!(answer, Err(Refusal::PasswordWrong));
    }
}
