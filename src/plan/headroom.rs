//! Whether the CRLs of an authority fit the objects that carry them to data planes.

use crate::api::condition::{CRL_FITS, Wanted};

/// As many bytes of data fit a Secret or a ConfigMap (Kubernetes API, `MaxSecretSize`).
pub const SECRET_LIMIT: usize = 1024 * 1024;

/// From so many percent on the authority warns.
const WARN_PERCENT: usize = 75;

/// Why the CRLs fit, or do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// There is room.
    Fits,
    /// They fit, and soon will not.
    NearLimit,
    /// They do not fit.
    TooLarge,
}

impl Reason {
    /// The reason as conditions and events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fits => "Fits",
            Self::NearLimit => "NearLimit",
            Self::TooLarge => "TooLarge",
        }
    }
}

/// How much of a Secret is left, in percent, when `bytes` are in it; 0 when they do not fit.
pub fn percent_left(bytes: usize) -> usize {
    SECRET_LIMIT.saturating_sub(bytes) * 100 / SECRET_LIMIT
}

/// How many bytes of a Secret are left when `bytes` are in it; negative when they do not fit.
pub fn bytes_left(bytes: usize) -> i64 {
    SECRET_LIMIT as i64 - bytes as i64
}

/// The `CRLFits` condition of an authority whose CA certificates and CRLs take `bytes` in the Secret of
/// a `ClientTrust`. `max_entries` is what `spec.crl.maxEntries` says.
pub fn condition(bytes: usize, max_entries: Option<u32>) -> Wanted {
    let size = format!(
        "CA certificates and CRLs take {} KiB of the {} KiB that the Secret of a ClientTrust holds",
        bytes.div_ceil(1024),
        SECRET_LIMIT / 1024
    );
    let remedy = match max_entries {
        Some(_) => "lower spec.crl.maxEntries, or shorten the lifetime of certificates",
        None => {
            "set spec.crl.maxEntries, so that another CA with a CRL of its own takes over, or shorten the lifetime of certificates"
        }
    };
    if bytes > SECRET_LIMIT {
        let message = format!(
            "{size}: Secrets of ClientTrusts keep the CRLs that they have, which expire. The CRL server and the gate go on with the new ones. To mend it, {remedy}"
        );
        Wanted::no(CRL_FITS, Reason::TooLarge.as_str(), message)
    } else if bytes * 100 >= SECRET_LIMIT * WARN_PERCENT {
        let reason = Reason::NearLimit.as_str();
        Wanted::yes(CRL_FITS, reason, format!("{size}. Before it is full, {remedy}"))
    } else {
        // Without the figure, which would have the status written with each revocation.
        let message = "CA certificates and CRLs fit the Secret of a ClientTrust";
        Wanted::yes(CRL_FITS, Reason::Fits.as_str(), message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_before_it_happens() {
        let at = |percent: usize, more: usize| {
            let wanted = condition(SECRET_LIMIT * percent / 100 + more, None);
            (wanted.status, wanted.reason)
        };
        assert_eq!(at(0, 0), (true, "Fits"));
        assert_eq!(at(74, 0), (true, "Fits"));
        assert_eq!(at(75, 0), (true, "NearLimit"));
        assert_eq!(at(100, 0), (true, "NearLimit"));
        assert_eq!(at(100, 1), (false, "TooLarge"));
        assert!(condition(SECRET_LIMIT, None).message.contains("set spec.crl.maxEntries"));
        assert!(condition(SECRET_LIMIT, Some(9)).message.contains("lower spec.crl.maxEntries"));
    }

    #[test]
    fn what_is_left_is_told_in_percent() {
        for (bytes, left) in
            [(0, 100), (SECRET_LIMIT / 4, 75), (SECRET_LIMIT, 0), (3 * SECRET_LIMIT, 0)]
        {
            assert_eq!(percent_left(bytes), left);
        }
    }
}
