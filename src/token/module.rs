//! The only code that calls a PKCS #11 module. It lives in one thread, which owns the module's state.

use std::collections::HashMap;
use std::fs;
use std::io::Read;

use aws_lc_rs::digest::{Digest, SHA256, digest};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::RawAuthPin;
use zeroize::Zeroizing;

use super::{KeyUri, TokenConfig, TokenError};
use crate::pki::KeyType;
use crate::pki::raw::{curve_der, ec_public_key_der, rsa_public_key_der};

/// No PIN is longer.
const PIN_LIMIT: u64 = 1024;
/// Octets of a CKA_ID: drawn at random, so that it never repeats.
const ID_OCTETS: usize = 16;

/// A loaded module, and what is open in it.
pub(super) struct Module {
    config: TokenConfig,
    library: Pkcs11,
    open: Option<Open>,
    /// SHA-256 of the PIN that the token refused.
    refused: Option<Digest>,
}

/// A session that is logged in.
struct Open {
    session: Session,
    slot: Slot,
    /// Private keys by id.
    keys: HashMap<Vec<u8>, ObjectHandle>,
}

impl Module {
    pub(super) fn load(config: TokenConfig) -> Result<Self, TokenError> {
        let library = Pkcs11::new(&config.module).map_err(|error| TokenError::Module {
            path: config.module.display().to_string(),
            why: match error {
                Error::LibraryLoading(error) => error.to_string(),
                Error::MissingSymbol(symbol) => format!("it has no function {symbol}"),
                other => words(&other),
            },
        })?;
        Ok(Self { config, library, open: None, refused: None })
    }

    pub(super) fn check(&mut self) -> Result<(), TokenError> {
        self.in_session(|this, open| {
            open.session.get_session_info().map(|_| ()).map_err(|error| this.failed(&error))
        })
    }

    pub(super) fn generate(
        &mut self,
        object: &str,
        key_type: KeyType,
    ) -> Result<(KeyUri, KeyType, Vec<u8>), TokenError> {
        let id = random_id();
        self.in_session(|this, open| {
            // Nothing is ever destroyed: should two operators make a key in the same moment, both go on with the
            // same one of the two, the other lies idle.
            let mut uri = this.first(open, object)?;
            if uri.is_none() {
                this.make(open, object, &id, key_type)?;
                uri = this.first(open, object)?;
            }
            let wanted = KeyUri { token: this.label(), object: object.to_owned(), id: id.clone() };
            let found = this.read(open, &uri.unwrap_or(wanted))?;
            if found.1 != key_type {
                let why = format!(
                    "it is an {} key, and an {} key is asked for",
                    found.1.as_str(),
                    key_type.as_str()
                );
                return Err(this.unusable(object, &why));
            }
            Ok(found)
        })
    }

    pub(super) fn find(&mut self, uri: &KeyUri) -> Result<(KeyUri, KeyType, Vec<u8>), TokenError> {
        self.in_session(|this, open| this.read(open, uri))
    }

    pub(super) fn sign(
        &mut self,
        uri: &KeyUri,
        key_type: KeyType,
        input: &[u8],
    ) -> Result<Vec<u8>, TokenError> {
        let mechanism = match key_type {
            KeyType::EcdsaP256 | KeyType::EcdsaP384 | KeyType::EcdsaP521 => Mechanism::Ecdsa,
            KeyType::Ed25519 => Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519)),
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => Mechanism::RsaPkcs,
        };
        self.in_session(|this, open| {
            let key = this.private_key(open, uri)?;
            open.session.sign(&mechanism, key, input).map_err(|error| this.failed(&error))
        })
    }

    /// Works in the open session. If the token fails there, or a key is not found, once more in a new one: a
    /// token that was restarted, reset or plugged in anew shows itself in many ways.
    fn in_session<R>(
        &mut self,
        work: impl Fn(&Self, &mut Open) -> Result<R, TokenError>,
    ) -> Result<R, TokenError> {
        if let Some(mut open) = self.open.take() {
            let result = work(self, &mut open);
            if !matches!(result, Err(TokenError::Failed { .. } | TokenError::NoKey { .. })) {
                self.open = Some(open);
                return result;
            }
        }
        let mut open = self.connect()?;
        let result = work(self, &mut open);
        self.open = Some(open);
        result
    }

    /// Starts from nothing: the module forgets tokens that went and sees those that came.
    fn connect(&mut self) -> Result<Open, TokenError> {
        // Fails when the module has not been in use.
        let _ = self.library.clone().finalize();
        let args = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        self.library.initialize(args).map_err(|error| self.failed(&error))?;
        let slot = self.slot()?;
        // C_Finalize closes it.
        let session = self.library.open_ro_session_no_drop(slot);
        let session = session.map_err(|error| self.failed(&error))?;
        self.log_in(&session)?;
        Ok(Open { session, slot, keys: HashMap::new() })
    }

    fn slot(&self) -> Result<Slot, TokenError> {
        let slots = self.library.get_slots_with_token().map_err(|error| self.failed(&error))?;
        let (mut matching, mut others) = (Vec::new(), Vec::new());
        for slot in slots {
            // A slot that can't be read is not the one.
            match self.library.get_token_info(slot) {
                Ok(info) if !info.token_initialized() => {}
                Ok(info) if info.label() == self.config.label => matching.push(slot),
                Ok(info) => others.push(format!("{:?}", info.label())),
                Err(_) => {}
            }
        }
        match matching[..] {
            [slot] => Ok(slot),
            [] if others.is_empty() => {
                Err(TokenError::Absent { label: self.label(), found: "none".into() })
            }
            [] => Err(TokenError::Absent { label: self.label(), found: others.join(", ") }),
            _ => Err(TokenError::SeveralTokens { label: self.label(), count: matching.len() }),
        }
    }

    fn log_in(&mut self, session: &Session) -> Result<(), TokenError> {
        let path = self.config.pin_file.display().to_string();
        let pin = self.pin().map_err(|why| TokenError::PinFile {
            label: self.label(),
            path: path.clone(),
            why,
        })?;
        let fingerprint = digest(&SHA256, &pin);
        let refused = |why: &str| TokenError::PinRefused {
            label: self.config.label.clone(),
            path: path.clone(),
            why: why.to_owned(),
        };
        if self.refused.as_ref().is_some_and(|known| known.as_ref() == fingerprint.as_ref()) {
            return Err(refused("it was refused before"));
        }
        let pin = RawAuthPin::new(Box::new(pin.to_vec()));
        match session.login_with_raw(UserType::User, &pin) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                self.refused = None;
                Ok(())
            }
            Err(Error::Pkcs11(
                why @ (RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked),
                _,
            )) => {
                let error = refused(&format!("{why:?}"));
                self.refused = Some(fingerprint);
                Err(error)
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn pin(&self) -> Result<Zeroizing<Vec<u8>>, String> {
        let mut content = Zeroizing::new(Vec::with_capacity(PIN_LIMIT as usize + 1));
        fs::File::open(&self.config.pin_file)
            .and_then(|file| file.take(PIN_LIMIT + 1).read_to_end(&mut content))
            .map_err(|error| error.to_string())?;
        if content.len() as u64 > PIN_LIMIT {
            return Err(format!("it is longer than {PIN_LIMIT} bytes"));
        }
        let end = content.trim_ascii_end().len();
        content.truncate(end);
        if content.is_empty() { Err("it is empty".into()) } else { Ok(content) }
    }

    /// Makes a key pair that can sign and never leaves the token.
    fn make(
        &self,
        open: &Open,
        object: &str,
        id: &[u8],
        key_type: KeyType,
    ) -> Result<(), TokenError> {
        let names = [Attribute::Label(object.into()), Attribute::Id(id.to_vec())];
        let mut public =
            vec![Attribute::Token(true), Attribute::Private(false), Attribute::Verify(true)];
        let rsa = |bits: u64| {
            [Attribute::ModulusBits(bits.into()), Attribute::PublicExponent(vec![1, 0, 1])]
        };
        let mechanism = match key_type {
            KeyType::EcdsaP256 | KeyType::EcdsaP384 | KeyType::EcdsaP521 => {
                Mechanism::EccKeyPairGen
            }
            KeyType::Ed25519 => Mechanism::EccEdwardsKeyPairGen,
            KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => Mechanism::RsaPkcsKeyPairGen,
        };
        match key_type {
            KeyType::Rsa2048 => public.extend(rsa(2048)),
            KeyType::Rsa3072 => public.extend(rsa(3072)),
            KeyType::Rsa4096 => public.extend(rsa(4096)),
            curve => public.extend(curve_der(curve).map(Attribute::EcParams)),
        }
        public.extend(names.clone());
        let mut private = vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::Decrypt(false),
            Attribute::Unwrap(false),
            Attribute::Derive(false),
        ];
        private.extend(names);
        // The login holds for every session of the process.
        let session =
            self.library.open_rw_session(open.slot).map_err(|error| self.failed(&error))?;
        match session.generate_key_pair(&mechanism, &public, &private) {
            Ok(_) => Ok(()),
            Err(Error::Pkcs11(
                why @ (RvError::MechanismInvalid
                | RvError::MechanismParamInvalid
                | RvError::CurveNotSupported
                | RvError::KeySizeRange
                | RvError::FunctionNotSupported),
                _,
            )) => Err(TokenError::Unsupported {
                label: self.label(),
                key_type: key_type.as_str(),
                why: format!("{why:?}"),
            }),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// The key of a label; of several the one with the lowest id.
    fn first(&self, open: &Open, object: &str) -> Result<Option<KeyUri>, TokenError> {
        let template =
            [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(object.into())];
        let mut ids = Vec::new();
        for handle in self.objects(open, &template)? {
            ids.extend(
                self.attributes(open, handle, &[AttributeType::Id])?.into_iter().filter_map(
                    |attribute| match attribute {
                        Attribute::Id(id) if !id.is_empty() => Some(id),
                        _ => None,
                    },
                ),
            );
        }
        let token = self.label();
        Ok(ids.into_iter().min().map(|id| KeyUri { token, object: object.to_owned(), id }))
    }

    /// The handle of a private key.
    fn private_key(&self, open: &mut Open, uri: &KeyUri) -> Result<ObjectHandle, TokenError> {
        if let Some(handle) = open.keys.get(&uri.id) {
            return Ok(*handle);
        }
        let handle = self.object(open, uri, ObjectClass::PRIVATE_KEY)?;
        open.keys.insert(uri.id.clone(), handle);
        Ok(handle)
    }

    /// Checks that a private key is one to rely on, and reads the public one beside it.
    fn read(
        &self,
        open: &mut Open,
        uri: &KeyUri,
    ) -> Result<(KeyUri, KeyType, Vec<u8>), TokenError> {
        let private = self.private_key(open, uri)?;
        let guards = [AttributeType::Sensitive, AttributeType::Extractable];
        let guarded = self.attributes(open, private, &guards)?.into_iter().filter(|attribute| {
            matches!(attribute, Attribute::Sensitive(true) | Attribute::Extractable(false))
        });
        if guarded.count() != guards.len() {
            let why =
                "it may leave the token (CKA_SENSITIVE must be true and CKA_EXTRACTABLE false)";
            return Err(self.unusable(&uri.object, why));
        }
        let public = self.object(open, uri, ObjectClass::PUBLIC_KEY)?;
        let wanted = [
            AttributeType::EcParams,
            AttributeType::EcPoint,
            AttributeType::Modulus,
            AttributeType::PublicExponent,
        ];
        let (mut params, mut point, mut modulus, mut exponent) = (None, None, None, None);
        for attribute in self.attributes(open, public, &wanted)? {
            match attribute {
                Attribute::EcParams(value) => params = Some(value),
                Attribute::EcPoint(value) => point = Some(value),
                Attribute::Modulus(value) => modulus = Some(value),
                Attribute::PublicExponent(value) => exponent = Some(value),
                _ => {}
            }
        }
        let public_key_der = match (params, point, modulus, exponent) {
            (Some(params), Some(point), ..) => ec_public_key_der(&params, &point),
            (_, _, Some(modulus), Some(exponent)) => rsa_public_key_der(&modulus, &exponent),
            _ => return Err(self.unusable(&uri.object, "its public key can't be read")),
        }
        .map_err(|error| self.unusable(&uri.object, &error.to_string()))?;
        let key_type = KeyType::of(&public_key_der)
            .map_err(|error| self.unusable(&uri.object, &error.to_string()))?;
        Ok((uri.clone(), key_type, public_key_der))
    }

    fn object(
        &self,
        open: &Open,
        uri: &KeyUri,
        class: ObjectClass,
    ) -> Result<ObjectHandle, TokenError> {
        let label = Attribute::Label(uri.object.clone().into_bytes());
        let template = [Attribute::Class(class), label, Attribute::Id(uri.id.clone())];
        match self.objects(open, &template)?[..] {
            [handle] => Ok(handle),
            [] => Err(TokenError::NoKey { label: self.label(), uri: uri.to_string() }),
            _ => Err(self.unusable(&uri.object, "several objects have its label and id")),
        }
    }

    fn objects(
        &self,
        open: &Open,
        template: &[Attribute],
    ) -> Result<Vec<ObjectHandle>, TokenError> {
        open.session.find_objects(template).map_err(|error| self.failed(&error))
    }

    fn attributes(
        &self,
        open: &Open,
        object: ObjectHandle,
        wanted: &[AttributeType],
    ) -> Result<Vec<Attribute>, TokenError> {
        open.session.get_attributes(object, wanted).map_err(|error| self.failed(&error))
    }

    fn label(&self) -> String {
        self.config.label.clone()
    }

    fn failed(&self, error: &Error) -> TokenError {
        TokenError::Failed { label: self.label(), why: words(error) }
    }

    fn unusable(&self, object: &str, why: &str) -> TokenError {
        TokenError::Unusable { label: self.label(), object: object.to_owned(), why: why.to_owned() }
    }
}

/// The function and its return value, as `C_Sign: DeviceRemoved`. cryptoki's own words quote paragraphs of
/// the specification.
fn words(error: &Error) -> String {
    match error {
        Error::Pkcs11(value, function) => format!("C_{function:?}: {value:?}"),
        other => other.to_string(),
    }
}

fn random_id() -> Vec<u8> {
    let mut id = vec![0; ID_OCTETS];
    aws_lc_rs::rand::fill(&mut id).expect("the operating system gives random bytes");
    id
}
