//! Where a key lies, as a `pkcs11:` URI (RFC 7512). Never with a PIN.

use std::fmt;
use std::str::FromStr;

/// The longest that is read.
const LIMIT: usize = 1024;

/// One private key of one token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyUri {
    /// Label of the token.
    pub token: String,
    /// CKA_LABEL of the key.
    pub object: String,
    /// CKA_ID of the key: it stays unique where labels might not.
    pub id: Vec<u8>,
}

/// Why a text is not where a key lies.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidUri {
    /// Another scheme, or no URI.
    #[error("a key in a token is named by a URI that starts with \"pkcs11:\"")]
    Scheme,
    /// `?pin-value=…` and the like.
    #[error(
        "the part after \"?\" of a pkcs11 URI is not read: PIN and module are the operator's configuration"
    )]
    Query,
    /// Something that is not read, or stands there twice.
    #[error(
        "attribute {0:?} of a pkcs11 URI: only token, object, id and type=private are read, once each"
    )]
    Attribute(String),
    /// Not `%` and two hexadecimal digits, or not UTF-8.
    #[error("the value of attribute {0:?} of a pkcs11 URI can't be read")]
    Value(&'static str),
    /// Something is missing.
    #[error("a pkcs11 URI needs {0}")]
    Missing(&'static str),
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |f: &mut fmt::Formatter<'_>, text: &str| {
            text.bytes().try_for_each(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    write!(f, "{}", char::from(byte))
                }
                _ => write!(f, "%{byte:02X}"),
            })
        };
        f.write_str("pkcs11:token=")?;
        text(f, &self.token)?;
        f.write_str(";object=")?;
        text(f, &self.object)?;
        // Section 2.3: an id that is binary data should be percent-encoded as a whole.
        f.write_str(";id=")?;
        self.id.iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
        f.write_str(";type=private")
    }
}

impl FromStr for KeyUri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        let path = text.strip_prefix("pkcs11:").ok_or(InvalidUri::Scheme)?;
        if text.len() > LIMIT {
            return Err(InvalidUri::Scheme);
        }
        if path.contains('?') {
            return Err(InvalidUri::Query);
        }
        let (mut token, mut object, mut id, mut kind) = (None, None, None, None);
        for attribute in path.split(';') {
            let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
            let (name, slot) = match name {
                "token" => ("token", &mut token),
                "object" => ("object", &mut object),
                "id" => ("id", &mut id),
                "type" if value == "private" => ("type", &mut kind),
                _ => return Err(InvalidUri::Attribute(name.to_owned())),
            };
            let value = decode(value).ok_or(InvalidUri::Value(name))?;
            if slot.replace(value).is_some() {
                return Err(InvalidUri::Attribute(name.to_owned()));
            }
        }
        let text = |name, value: Option<Vec<u8>>| {
            let value = value.filter(|value| !value.is_empty()).ok_or(InvalidUri::Missing(name))?;
            String::from_utf8(value).map_err(|_| InvalidUri::Value(name))
        };
        kind.ok_or(InvalidUri::Missing("type=private"))?;
        Ok(Self {
            token: text("token", token)?,
            object: text("object", object)?,
            id: id.filter(|id| !id.is_empty()).ok_or(InvalidUri::Missing("id"))?,
        })
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            (digit()? << 4 | digit()?) as u8
        } else {
            byte
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> KeyUri {
        KeyUri { token: "Main HSM; 100%".into(), object: "ca/ü?".into(), id: vec![0, 0x3b, 0xff] }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = sample().to_string();
        assert_eq!(
            text,
            "pkcs11:token=Main%20HSM%3B%20100%25;object=ca%2F%C3%BC%3F;id=%00%3B%FF;type=private"
        );
        assert_eq!(text.parse(), Ok(sample()));
    }

    #[test]
    fn the_order_is_free_and_harmless_characters_may_stand_as_they_are() {
        let uri: KeyUri = "pkcs11:type=private;id=ab%01;object=ca:1;token=T".parse().unwrap();
        let expected = KeyUri { token: "T".into(), object: "ca:1".into(), id: vec![b'a', b'b', 1] };
        assert_eq!(uri, expected);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        use InvalidUri::{Attribute, Missing, Query, Scheme, Value};
        for (text, expected) in [
            ("", Scheme),
            ("file:///key", Scheme),
            ("pkcs11:", Attribute(String::new())),
            ("pkcs11:token=T;object=o;id=%01;type=private?pin-value=1234", Query),
            ("pkcs11:token=T;object=o;id=%01;type=public", Attribute("type".into())),
            ("pkcs11:token=T;object=o;id=%01", Missing("type=private")),
            ("pkcs11:token=T;token=U;object=o;id=%01;type=private", Attribute("token".into())),
            ("pkcs11:token=T;serial=7;object=o;id=%01;type=private", Attribute("serial".into())),
            ("pkcs11:token=T;object=o;id=%1;type=private", Value("id")),
            ("pkcs11:token=T;object=o;id=%zz;type=private", Value("id")),
            ("pkcs11:token=T;object=%ff;id=%01;type=private", Value("object")),
            ("pkcs11:token=T;object=o;id=;type=private", Missing("id")),
            ("pkcs11:object=o;id=%01;type=private", Missing("token")),
        ] {
            assert_eq!(text.parse::<KeyUri>(), Err(expected), "{text}");
        }
    }
}
