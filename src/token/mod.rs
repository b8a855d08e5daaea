//! CA keys in a token: a hardware security module, or whatever else speaks PKCS #11. Keys are made in
//! the token and never leave it.

#[cfg(not(target_feature = "crt-static"))]
mod module;
#[cfg(target_feature = "crt-static")]
#[path = "static_build.rs"]
mod module;
mod uri;
mod worker;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::pki::KeyType;
use crate::pki::key::{SignError, Signer};
use crate::pki::raw::{signature_der, to_be_signed};

pub use uri::{InvalidUri, KeyUri};

use module::Module;
use worker::{Hung, Worker};

/// A call that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// The same for making a key: 4096 bits of RSA take some modules their time.
const GENERATION_LIMIT: Duration = Duration::from_secs(60);

/// Which token holds the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// The PKCS #11 module: a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub label: String,
    /// The file that holds the user's PIN; white space at its end does not count. It is read at each login,
    /// so that it may change.
    pub pin_file: PathBuf,
}

/// A token, or the hope for one: it may be absent, come back, and be restarted, and whatever is asked of it
/// then logs in anew. One for each module in a process, since a module has one state for all of a process.
#[derive(Clone)]
pub struct Token {
    label: String,
    worker: Arc<Worker<Module>>,
}

/// A private key in a token, which need not be there now.
#[derive(Clone)]
pub struct TokenKey {
    /// None when the operator has none.
    token: Option<Token>,
    uri: KeyUri,
    key_type: KeyType,
    public_key_der: Vec<u8>,
}

/// Why a token did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nothing is loaded in a process that was linked statically.
    #[error(
        "this build can't load PKCS#11 modules, since it is linked statically: use the image variant for PKCS#11 (docs/custody.md)"
    )]
    StaticBuild,
    /// There is no configuration.
    #[error(
        "the operator has no PKCS#11 token: set --pkcs11-module, --pkcs11-token-label and --pkcs11-pin-file (docs/custody.md)"
    )]
    NotConfigured,
    /// The module is not there, or not a PKCS #11 module.
    #[error("failed to load PKCS#11 module {path}: {why}")]
    Module {
        /// Its path.
        path: String,
        /// What the loader says.
        why: String,
    },
    /// The module sees no such token.
    #[error("token {label:?} is not there: the module sees {found}")]
    Absent {
        /// The one looked for.
        label: String,
        /// The labels of the others.
        found: String,
    },
    /// Several tokens have the label.
    #[error("{count} tokens have the label {label:?}: give the right one a label of its own")]
    SeveralTokens {
        /// The label.
        label: String,
        /// How many.
        count: usize,
    },
    /// The PIN can't be read.
    #[error("failed to read the PIN of token {label:?} from {path}: {why}")]
    PinFile {
        /// The token's label.
        label: String,
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The PIN is wrong, or was: it is not tried twice, since tokens lock themselves after a few wrong PINs.
    #[error(
        "token {label:?} refused the PIN ({why}): it is not tried again until the content of {path} changes"
    )]
    PinRefused {
        /// The token's label.
        label: String,
        /// The file it stands in.
        path: String,
        /// What the token says.
        why: String,
    },
    /// No answer in time.
    #[error(
        "token {label:?} does not answer: its module has been at work for {seconds} s. If that goes on, restart the device or its service, then the operator"
    )]
    NoAnswer {
        /// The token's label.
        label: String,
        /// For how long.
        seconds: u64,
    },
    /// There is no such key.
    #[error("token {label:?} holds no private key {uri} with its public key")]
    NoKey {
        /// The token's label.
        label: String,
        /// The key.
        uri: String,
    },
    /// The key lies in another token.
    #[error("key {uri} lies in another token than {label:?}, the one this operator uses")]
    OtherToken {
        /// The token's label.
        label: String,
        /// The key.
        uri: String,
    },
    /// There is a key of that label, but not one to use.
    #[error("key {object:?} in token {label:?} can't be used: {why}")]
    Unusable {
        /// The token's label.
        label: String,
        /// The key's label.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// The token does not know the kind of key.
    #[error("token {label:?} does not support {key_type} keys ({why})")]
    Unsupported {
        /// The token's label.
        label: String,
        /// The kind.
        key_type: &'static str,
        /// What the token says.
        why: String,
    },
    /// Anything else that the token says.
    #[error("token {label:?} failed: {why}")]
    Failed {
        /// The token's label.
        label: String,
        /// The function and its return value.
        why: String,
    },
}

impl Token {
    /// Loads the module. That it is one is checked at once; a token that is absent, or its PIN wrong, is not an
    /// error yet: see [`Token::check`].
    pub fn open(config: TokenConfig) -> Result<Self, TokenError> {
        let label = config.label.clone();
        let module = Module::load(config)?;
        let worker = Worker::start(module).map_err(|error| TokenError::Failed {
            label: label.clone(),
            why: format!("no thread for it could be started: {error}"),
        })?;
        Ok(Self { label, worker: Arc::new(worker) })
    }

    /// Fails unless the token is there and takes the PIN.
    pub fn check(&self) -> Result<(), TokenError> {
        self.call(LIMIT, Module::check)
    }

    /// The key of this label, made if there is none yet: whoever asks twice, or again after a crash, gets one
    /// key. A key of another type, or one that could leave the token, is refused.
    pub fn generate(&self, object: &str, key_type: KeyType) -> Result<TokenKey, TokenError> {
        let object = object.to_owned();
        let work = move |module: &mut Module| module.generate(&object, key_type);
        self.call(GENERATION_LIMIT, work).map(|found| self.key(found))
    }

    /// A key that [`TokenKey::uri`] named.
    pub fn find(&self, uri: &KeyUri) -> Result<TokenKey, TokenError> {
        if uri.token != self.label {
            return Err(TokenError::OtherToken { label: self.label.clone(), uri: uri.to_string() });
        }
        let uri = uri.clone();
        self.call(LIMIT, move |module| module.find(&uri)).map(|found| self.key(found))
    }

    fn key(&self, (uri, key_type, public_key_der): (KeyUri, KeyType, Vec<u8>)) -> TokenKey {
        TokenKey { token: Some(self.clone()), uri, key_type, public_key_der }
    }

    fn call<R: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&mut Module) -> Result<R, TokenError> + Send + 'static,
    ) -> Result<R, TokenError> {
        self.worker.call(limit, work).unwrap_or_else(|Hung(since)| {
            Err(TokenError::NoAnswer { label: self.label.clone(), seconds: since.as_secs() })
        })
    }
}

impl TokenKey {
    /// A key that was made before. The token is not asked; [`Signer::check`] does that.
    pub fn known(
        token: Option<Token>,
        uri: KeyUri,
        key_type: KeyType,
        public_key_der: Vec<u8>,
    ) -> Self {
        Self { token, uri, key_type, public_key_der }
    }

    fn token(&self) -> Result<&Token, TokenError> {
        let token = self.token.as_ref().ok_or(TokenError::NotConfigured)?;
        if self.uri.token == token.label {
            Ok(token)
        } else {
            let (label, uri) = (token.label.clone(), self.uri.to_string());
            Err(TokenError::OtherToken { label, uri })
        }
    }

    fn look(&self) -> Result<(), TokenError> {
        let token = self.token()?;
        if token.find(&self.uri)?.public_key_der == self.public_key_der {
            return Ok(());
        }
        let why = "it is not the one that was there when its certificate was made".to_owned();
        let (label, object) = (token.label.clone(), self.uri.object.clone());
        Err(TokenError::Unusable { label, object, why })
    }

    /// Where the key lies.
    pub fn uri(&self) -> &KeyUri {
        &self.uri
    }
}

impl Signer for TokenKey {
    fn key_type(&self) -> KeyType {
        self.key_type
    }

    fn public_key_der(&self) -> Vec<u8> {
        self.public_key_der.clone()
    }

    /// Waits for the token, ten seconds at most. May be called on a thread of a multi-threaded runtime.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let (uri, key_type) = (self.uri.clone(), self.key_type);
        let input = to_be_signed(key_type, message);
        let raw = self
            .token()
            .and_then(|token| token.call(LIMIT, move |module| module.sign(&uri, key_type, &input)))
            .map_err(|error| SignError(error.to_string()))?;
        signature_der(key_type, raw)
            .ok_or_else(|| SignError(format!("what key {} returned is no signature", self.uri)))
    }

    /// Asks the token whether the key is there, and still the same.
    fn check(&self) -> Result<(), SignError> {
        self.look().map_err(|error| SignError(error.to_string()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, worker: _ } = self;
        write!(f, "Token({label})")
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _, uri, key_type, public_key_der: _ } = self;
        write!(f, "TokenKey({}, {uri})", key_type.as_str())
    }
}
