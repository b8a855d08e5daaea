//! Why a reconcile failed, and how soon it is tried again.

use crate::cluster::apply::WriteError;
use crate::cluster::ledger::LedgerError;
use crate::pki::authority::AuthorityError;
use crate::pki::crl::CrlError;
use crate::pki::encode::EncodeError;
use crate::pki::issue::IssueError;
use crate::pki::verify::VerifyError;
use crate::plan::authority::Reason;
use crate::plan::delta::InvalidDelta;
use crate::plan::retry::FailureReason;
use crate::plan::shard::InvalidShards;
use crate::token::TokenError;

/// A failed reconcile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A write was refused.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A read failed.
    #[error("failed to read {object}")]
    Read {
        /// Kind and name.
        object: String,
        /// Why.
        source: kube::Error,
    },
    /// The ledger could not be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Making a CA failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The root that must sign a CA can't.
    #[error(
        "the root of the authority can't sign: {0}; put its key back into its Secret for the rotation"
    )]
    Root(String),
    /// The token that shall hold a CA's key does not work.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Signing a certificate failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A signed certificate failed its check and was thrown away.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A guard keeps the first CRL of a CA from being published.
    #[error("{message}")]
    Guard {
        /// Which.
        reason: Reason,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Making a CRL failed.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// A CRL can't be divided into shards.
    #[error(transparent)]
    Shards(#[from] InvalidShards),
    /// There can't be a delta CRL.
    #[error(transparent)]
    Delta(#[from] InvalidDelta),
    /// A certificate can't be shown.
    #[error("failed to set up a TLS client: {0}")]
    Tls(String),
}

impl Error {
    /// The category, as metrics carry it.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Write(WriteError::Conflict { .. }) => "conflict",
            Self::Write(WriteError::NotOwned(_)) => "not_owned",
            Self::Write(WriteError::Api { .. }) => "write",
            Self::Read { .. } => "read",
            Self::Ledger(_) => "ledger",
            Self::Authority(_) | Self::Root(_) => "authority",
            Self::Token(_) => "token",
            Self::Issue(_) => "issue",
            Self::Verify(_) => "verify",
            Self::Guard { .. } => "guard",
            Self::Crl(_) | Self::Shards(_) | Self::Delta(_) => "crl",
            Self::Tls(_) => "tls",
        }
    }

    /// Did somebody else write in between? Then it costs milliseconds, not a backoff.
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Write(WriteError::Conflict { .. }))
    }

    /// What kind of failure it is to an identity.
    pub const fn failure(&self) -> FailureReason {
        match self {
            _ if self.is_signing() => FailureReason::Unavailable,
            Self::Authority(_)
            | Self::Root(_)
            | Self::Issue(_)
            | Self::Verify(_)
            | Self::Crl(_) => FailureReason::SigningFailed,
            _ if self.is_refusal() => FailureReason::Refused,
            _ => FailureReason::Unavailable,
        }
    }

    /// Did the CA's key not sign, which is to say that its token is away?
    pub const fn is_signing(&self) -> bool {
        matches!(self, Self::Issue(IssueError::Encode(EncodeError::Sign(_))))
    }

    /// Did the API server refuse what we wrote, so that repeating it alone will not help?
    pub const fn is_refusal(&self) -> bool {
        matches!(self.write_status(), Some(400 | 403 | 413 | 422))
    }

    /// Does the API server not know the kind that we wrote, or its namespace?
    pub const fn is_unknown(&self) -> bool {
        matches!(self.write_status(), Some(404))
    }

    /// The HTTP status by which the API server declined what we wrote, if it did.
    const fn write_status(&self) -> Option<u16> {
        match self {
            Self::Write(WriteError::Api { source: kube::Error::Api(status), .. }) => {
                Some(status.code)
            }
            _ => None,
        }
    }
}

/// An error with its causes, in one line. Of an answer of the API server only its message.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let answer = match cause.downcast_ref() {
            Some(kube::Error::Api(status)) => Some(&status.message),
            _ => None,
        };
        let told = answer.map_or_else(|| cause.to_string(), Clone::clone);
        if text.is_empty() {
            text = told;
        } else if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source().filter(|_| answer.is_none());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn the_words_of_the_api_server_are_told_once_and_plainly() {
        let status = Status::failure("secrets \"a\" is forbidden: exceeded quota", "Forbidden");
        let source = kube::Error::Api(Box::new(status.with_code(403)));
        let error = Error::Write(WriteError::Api { object: "Secret team/a".into(), source });
        let told = "failed to write Secret team/a: secrets \"a\" is forbidden: exceeded quota";
        assert_eq!(chain(&error), told);
        assert_eq!(error.failure(), FailureReason::Refused);
    }
}
