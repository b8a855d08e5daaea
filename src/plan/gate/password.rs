//! Files of users and the hashes of their passwords, as `htpasswd` makes them, and the check of a password.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordVerifier, Version};
use bcrypt::HashParts;

/// The longest name of a user, in octets.
pub const LONGEST_USER: usize = 255;
/// The costliest hash of bcrypt that is taken: about a second of a core.
const BCRYPT_COST: u32 = 14;
/// The costliest hash of argon2 that is taken: memory in KiB, passes, lanes.
const ARGON2_COST: (u32, u32, u32) = (64 * 1024, 16, 16);

/// The hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash(String);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(..)")
    }
}

impl Hash {
    /// Reads a hash; or tells, without it, why it can't be used.
    pub fn read(text: &str) -> Result<Self, String> {
        match text.split('$').nth(1).filter(|_| text.starts_with('$')) {
            Some("2y" | "2b" | "2a") => {
                let parts = HashParts::from_str(text).map_err(|_| "not a whole hash of bcrypt")?;
                if !(4..=BCRYPT_COST).contains(&parts.get_cost()) {
                    return Err(format!("the cost of bcrypt must be 4 to {BCRYPT_COST}"));
                }
            }
            Some("argon2id") => {
                let hash = argon2id(text).ok_or("not a whole hash of argon2id")?;
                let params = hash.params();
                let (memory, passes, lanes) = ARGON2_COST;
                if params.m_cost() > memory || params.t_cost() > passes || params.p_cost() > lanes {
                    return Err(format!(
                        "the cost of argon2id must be at most m={memory},t={passes},p={lanes}"
                    ));
                }
            }
            _ => return Err("not a hash of bcrypt ($2y$, $2b$, $2a$) or argon2id".to_owned()),
        }
        Ok(Self(text.to_owned()))
    }

    /// Is it the hash of this password? That takes its time.
    pub fn is_of(&self, password: &[u8]) -> bool {
        if self.0.starts_with("$argon2id$") {
            let hash = PasswordHash::new(&self.0).ok();
            let hash = hash.and_then(|hash| Some((argon2id(&self.0)?, hash)));
            return hash
                .is_some_and(|(argon2, hash)| argon2.verify_password(password, &hash).is_ok());
        }
        // As htpasswd does it: of a longer password the first 72 octets count.
        bcrypt::verify(password, &self.0).unwrap_or(false)
    }

    /// As the file has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The function that made the hash, with its costs.
fn argon2id(text: &str) -> Option<Argon2<'static>> {
    let hash = PasswordHash::new(text).ok()?;
    let whole = hash.salt.is_some() && hash.hash.is_some();
    let version = hash.version.map_or(Ok(Version::V0x10), Version::try_from).ok()?;
    let params = Params::try_from(&hash).ok().filter(|_| whole)?;
    Some(Argon2::new(Algorithm::Argon2id, version, params))
}

/// Reads a file of lines `user:hash`; what follows a further colon, empty lines and those that begin with `#` are
/// left out. Any other line makes the whole file useless: told is its number, and never the hash.
pub fn read_users(text: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    let mut users = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| format!("line {}: {why}", index + 1);
        let (user, rest) = line.split_once(':').ok_or_else(|| wrong("not user:hash"))?;
        if user.is_empty() || user.len() > LONGEST_USER || user.contains(char::is_control) {
            return Err(wrong(
                "the name of the user is empty, too long or holds control characters",
            ));
        }
        let hash = rest.split(':').next().unwrap_or_default();
        let hash = Hash::read(hash).map_err(|why| wrong(&why))?;
        if users.insert(user.to_owned(), hash.0).is_some() {
            return Err(wrong("the user has a line before"));
        }
    }
    if users.is_empty() { Err("it names no user".to_owned()) } else { Ok(users) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, proptest};

    /// Of "correct horse", by `htpasswd -nbBC 4` of Apache 2.4.71, crypt(3) of libxcrypt and `argon2` of the
    /// reference implementation.
    const OTHERS: [&str; 4] = [
        "$2y$04$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi",
        "$2b$04$i.W.IqraMXo8W3djtKog7u0EmTcQr7IjymHK6ThGvD0RoFOIQETgy",
        "$argon2id$v=19$m=256,t=2,p=1$c2FsdHNhbHRzYWx0$pwZ7sGME81TL89Hs/ia4qXIxzecJdXvdtALit/lGF0w",
        "$argon2id$v=16$m=256,t=2,p=2$c2FsdHNhbHRzYWx0$1//4fUBFODyqjEaWTRmecPBOzHbJANRvLTQWnaDpmWU",
    ];

    #[test]
    fn the_hashes_of_other_programs_are_understood() {
        for text in OTHERS {
            let hash = Hash::read(text).unwrap();
            assert!(hash.is_of(b"correct horse"), "{text}");
            for wrong in [&b"correct horsf"[..], b"correct horse ", b"Correct horse", b"", b"\0"] {
                assert!(!hash.is_of(wrong), "{text}: {wrong:?}");
            }
            assert!(!format!("{hash:?}").contains(&text[8..]));
        }
        // htpasswd, of "пароль:ü"; crypt(3), of 80 times x: bcrypt takes 72 octets.
        let hash = Hash::read("$2y$04$cptA6rXzRgOI7qjOXr38ju5M10OAIOxZrrlzd6jG329ZH8KB47s/S");
        assert!(hash.unwrap().is_of("пароль:ü".as_bytes()));
        let hash =
            Hash::read("$2b$04$9hjAfJXkJRtpghvK2MHTgeUnqOUdGymvAFDTB0zEbQFTajiwn.YN6").unwrap();
        assert!(hash.is_of(&[b'x'; 80]) && hash.is_of(&[b'x'; 72]) && !hash.is_of(&[b'x'; 71]));
    }

    #[test]
    fn other_hashes_and_too_costly_ones_are_refused() {
        for (text, why) in [
            ("{SHA}EfatjsUqKYSrqv18O1FlA3hcIHI=", "not a hash of"),
            ("$apr1$K7urAYhL$S0oFZQd53lymQtV/tixss1", "not a hash of"),
            ("$5$/WGwE", "not a hash of"),
            ("plain", "not a hash of"),
            ("", "not a hash of"),
            (
                "$argon2i$v=19$m=256,t=2,p=1$c2FsdHNhbHRzYWx0$D4Tv27gHww8CcGZMBAldTHiay2mPQZCvI0D62AnUOik",
                "not a hash of",
            ),
            ("$2x$04$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi", "not a hash of"),
            ("$2y$04$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWO", "not a whole"),
            ("$2y$15$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi", "4 to 14"),
            ("$2y$03$4I3P1N9FFyeguhg7VFQX5O2tMzoQiYp4oWXjJ3JZK2ZxCxMTTQWOi", "4 to 14"),
            ("$argon2id$v=19$m=256,t=2,p=1$c2FsdHNhbHRzYWx0", "not a whole"),
            (
                "$argon2id$v=19$m=65537,t=2,p=1$c2FsdHNhbHRzYWx0$pwZ7sGME81TL89Hs/ia4qXIxzecJdXvdtALit/lGF0w",
                "at most",
            ),
            (
                "$argon2id$v=19$m=256,t=17,p=1$c2FsdHNhbHRzYWx0$pwZ7sGME81TL89Hs/ia4qXIxzecJdXvdtALit/lGF0w",
                "at most",
            ),
            (
                "$argon2id$v=20$m=256,t=2,p=1$c2FsdHNhbHRzYWx0$pwZ7sGME81TL89Hs/ia4qXIxzecJdXvdtALit/lGF0w",
                "not a whole",
            ),
        ] {
            let told = Hash::read(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn a_file_is_read_as_htpasswd_writes_it() {
        let [one, two, ..] = OTHERS;
        let file = format!("# staff\n\nada:{one}\r\nbob: x:{two}\n");
        let told = read_users(file.as_bytes()).unwrap_err();
        assert!(told.starts_with("line 4: not a hash of"), "{told}");
        let file = format!("# staff\n\nada:{one}\r\nj\u{fc}rgen:{two}:on leave\n");
        let users = read_users(file.as_bytes()).unwrap();
        assert_eq!(users["ada"], one);
        assert_eq!(users["j\u{fc}rgen"], two);
        for (file, why) in [
            (String::new(), "it names no user"),
            ("# none\n".to_owned(), "it names no user"),
            ("ada\n".to_owned(), "line 1: not user:hash"),
            (format!(":{one}\n"), "line 1: the name"),
            (format!("ada:{one}\nada:{two}\n"), "line 2: the user has a line before"),
            (
                format!("ada:{one}\nbob:$apr1$K7urAYhL$S0oFZQd53lymQtV/tixss1\n"),
                "line 2: not a hash",
            ),
        ] {
            let told = read_users(file.as_bytes()).unwrap_err();
            assert!(told.starts_with(why) && !told.contains("$K7ur"), "{told}");
        }
        assert!(read_users(b"ada:\xff").is_err());
    }

    proptest! {
        #[test]
        fn foreign_files_never_panic(text in "[ -~]{0,80}\n?[$a-z0-9,=./]{0,80}") {
            prop_assert!(read_users(text.as_bytes()).is_err());
        }
    }
}
