//! The one way to a signed certificate: recorded, signed, checked, and only then seen by anyone.

use jiff::Timestamp;

use super::context::Signing;
use super::error::Error;
use crate::cluster::ledger::LedgerHandle;
use crate::pki::inspect::LeafFacts;
use crate::pki::issue::{IssueRequest, IssuedCertificate, issue};
use crate::pki::profile::Profile;
use crate::pki::verify::verify_issued;
use crate::plan::authority::crl_url;
use crate::plan::ledger::{Issued, Record};
use crate::plan::publication::Scope;

/// Records an issuance, signs the certificate by the active CA and checks it by independent code.
pub(super) async fn sign(
    ledger: &LedgerHandle,
    signing: &Signing,
    issued: Issued,
    profile: &Profile,
    public_key_der: &[u8],
    not_before: Timestamp,
    now: Timestamp,
) -> Result<(IssuedCertificate, LeafFacts), Error> {
    let (serial, not_after) = (issued.serial, issued.not_after);
    let active = signing.active();
    // Before the signature exists: a certificate that nobody recorded could not be revoked.
    ledger.record(&active.key, vec![Record::Issued(issued)]).await?;

    let scope = Scope::of_serial(&serial, signing.shards);
    let url = signing.crl_base.as_ref().map(|base| crl_url(base, &active.key, scope));
    let request = IssueRequest {
        profile,
        public_key_der,
        serial,
        not_before,
        not_after,
        crl_url: url.as_deref(),
    };
    let issued = issue(&active.ca, &request)?;
    let facts = verify_issued(&issued.der, &request, active.ca.chain(), &signing.roots, now)?;
    Ok((issued, facts))
}
