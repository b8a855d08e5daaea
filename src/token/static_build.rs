//! In place of `module.rs` where the program is linked statically: such a program has no loader for
//! shared libraries that could be relied on, and its image holds none.

use std::convert::Infallible;

use super::{KeyUri, TokenConfig, TokenError};
use crate::pki::KeyType;

/// There is none.
pub(super) struct Module(Infallible);

impl Module {
    pub(super) fn load(_: TokenConfig) -> Result<Self, TokenError> {
        Err(TokenError::StaticBuild)
    }

    pub(super) fn check(&mut self) -> Result<(), TokenError> {
        match self.0 {}
    }

    pub(super) fn generate(
        &mut self,
        _: &str,
        _: KeyType,
    ) -> Result<(KeyUri, KeyType, Vec<u8>), TokenError> {
        match self.0 {}
    }

    pub(super) fn find(&mut self, _: &KeyUri) -> Result<(KeyUri, KeyType, Vec<u8>), TokenError> {
        match self.0 {}
    }

    pub(super) fn sign(&mut self, _: &KeyUri, _: KeyType, _: &[u8]) -> Result<Vec<u8>, TokenError> {
        match self.0 {}
    }
}
