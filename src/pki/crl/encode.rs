//! A CRL as bytes: header, entries, extensions and one signature, written into one buffer.

use super::frame::{
    ID_CE_AUTHORITY_KEY_IDENTIFIER, ID_CE_CRL_NUMBER, ID_CE_DELTA_CRL_INDICATOR,
    ID_CE_FRESHEST_CRL, ID_CE_ISSUING_DISTRIBUTION_POINT,
};
use super::{CrlError, CrlNumber, CrlParams, Entry, Index};
use crate::pki::CertificateAuthority;
use crate::pki::der::{
    self, BIT_STRING, BOOLEAN, ENUMERATED, INTEGER, OCTET_STRING, OID, SEQUENCE,
};

/// The header of an outermost SEQUENCE has at most so many octets below 4 GiB.
const LONGEST_HEADER: usize = 6;

/// crlEntryExtensions with one reasonCode; the code itself follows (RFC 5280 section 5.3.1).
const REASON: [u8; 13] =
    [0x30, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x55, 0x1d, 0x15, 0x04, 0x03, ENUMERATED, 1];

/// A CRL, and where its chunks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The CRL, DER.
    pub der: Vec<u8>,
    /// The offsets at which a chunk begins, and the one at which the last of them ends.
    pub cuts: Vec<usize>,
}

/// Encodes and signs.
pub fn encode(
    authority: &CertificateAuthority,
    params: &CrlParams<'_>,
    index: &Index,
) -> Result<Encoded, CrlError> {
    let signer = authority.signer();
    let algorithm = signer.key_type().signature_algorithm_der();
    let facts = authority.facts();
    let mut head = Vec::with_capacity(512);
    der::value(&mut head, INTEGER, &[1]);
    head.extend_from_slice(&algorithm);
    head.extend_from_slice(&facts.subject_der);
    der::time(&mut head, params.this_update);
    der::time(&mut head, params.next_update);
    // RFC 5280 section 5.1.2.6: when there are no revoked certificates the list MUST be absent.
    if !index.is_empty() {
        der::header(&mut head, SEQUENCE, index.bytes());
    }
    let extensions = der::tlv(SEQUENCE, &extensions(&facts.key_id, params));
    let tail = der::tlv(0xa0, &extensions);
    let tbs_length = head.len() + index.bytes() + tail.len();

    // The length of an ECDSA signature is known only when it is made: the outermost header is put before
    // the rest at the end. A signature of RSA-4096 has 512 octets.
    let mut out = Vec::with_capacity(LONGEST_HEADER * 2 + tbs_length + algorithm.len() + 600);
    out.resize(LONGEST_HEADER, 0);
    der::header(&mut out, SEQUENCE, tbs_length);
    out.extend_from_slice(&head);
    let mut cuts = Vec::new();
    for chunk in index.chunks() {
        cuts.push(out.len());
        out.extend_from_slice(chunk);
    }
    cuts.push(out.len());
    out.extend_from_slice(&tail);

    let signature = signer.sign(&out[LONGEST_HEADER..])?;
    out.extend_from_slice(&algorithm);
    der::header(&mut out, BIT_STRING, signature.len() + 1);
    out.push(0);
    out.extend_from_slice(&signature);

    let mut header = Vec::with_capacity(LONGEST_HEADER);
    der::header(&mut header, SEQUENCE, out.len() - LONGEST_HEADER);
    let unused = LONGEST_HEADER - header.len();
    out[unused..LONGEST_HEADER].copy_from_slice(&header);
    out.drain(..unused);
    cuts.iter_mut().for_each(|cut| *cut -= unused);
    Ok(Encoded { der: out, cuts })
}

/// Appends an entry.
pub(super) fn encode_entry(out: &mut Vec<u8>, entry: &Entry) {
    let serial = entry.serial.as_be_bytes();
    let length = entry_length(entry);
    out.reserve(length);
    // A set top bit would read as a negative number (X.690 section 8.3).
    let pad = usize::from(serial[0] & 0x80 != 0);
    let header = [SEQUENCE, (length - 2) as u8, INTEGER, (serial.len() + pad) as u8, 0];
    out.extend_from_slice(&header[..4 + pad]);
    out.extend_from_slice(serial);
    der::time(out, entry.revoked_at);
    if let Some(reason) = allowed(entry.reason) {
        out.extend_from_slice(&REASON);
        out.push(reason);
    }
}

/// How many octets an entry has: at most 56.
pub(super) fn entry_length(entry: &Entry) -> usize {
    let serial = entry.serial.as_be_bytes();
    let pad = usize::from(serial[0] & 0x80 != 0);
    let reason = allowed(entry.reason).map_or(0, |_| REASON.len() + 1);
    2 + 2 + pad + serial.len() + der::time_length(entry.revoked_at) + reason
}

/// A reason that a CRL may name. A serial with another one is listed without: better no reason than no
/// entry.
fn allowed(reason: Option<u8>) -> Option<u8> {
    reason.filter(|code| super::REASONS.contains(code))
}

fn extensions(key_id: &[u8], params: &CrlParams<'_>) -> Vec<u8> {
    // AuthorityKeyIdentifier ::= SEQUENCE { keyIdentifier [0] IMPLICIT OCTET STRING }
    let key_identifier = der::tlv(SEQUENCE, &der::tlv(0x80, key_id));
    let integer = |number: CrlNumber| {
        let mut integer = Vec::new();
        der::unsigned(&mut integer, &number.0.to_be_bytes());
        integer
    };
    let mut out = extension(ID_CE_AUTHORITY_KEY_IDENTIFIER, false, &key_identifier);
    out.extend(extension(ID_CE_CRL_NUMBER, false, &integer(params.number)));
    if let Some(base) = params.base {
        out.extend(extension(ID_CE_DELTA_CRL_INDICATOR, true, &integer(base)));
    }
    if let Some(url) = params.distribution_point {
        // Without onlyContainsUserCerts, over which verifiers stumble.
        out.extend(extension(ID_CE_ISSUING_DISTRIBUTION_POINT, true, &point(url)));
    }
    if let Some(url) = params.freshest {
        // FreshestCRL ::= SEQUENCE OF DistributionPoint
        out.extend(extension(ID_CE_FRESHEST_CRL, false, &der::tlv(SEQUENCE, &point(url))));
    }
    out
}

/// What IssuingDistributionPoint and DistributionPoint are when they hold nothing but a URL: SEQUENCE {
/// distributionPoint [0] { fullName [0] GeneralNames { uniformResourceIdentifier [6] } } }
fn point(url: &str) -> Vec<u8> {
    let full_name = der::tlv(0xa0, &der::tlv(0x86, url.as_bytes()));
    der::tlv(SEQUENCE, &der::tlv(0xa0, &full_name))
}

fn extension(oid: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let mut body = der::tlv(OID, oid);
    if critical {
        der::value(&mut body, BOOLEAN, &[0xff]);
    }
    der::value(&mut body, OCTET_STRING, content);
    der::tlv(SEQUENCE, &body)
}
