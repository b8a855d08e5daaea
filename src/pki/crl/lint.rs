//! What a CRL must look like, as a table: RFC 5280 section 5, and what verifiers and the practice of
//! public CAs add. Every CRL passes it before anyone sees it. One pass over the entries, nothing is
//! copied.

use super::frame::{
    self, Frame, ID_CE_AUTHORITY_KEY_IDENTIFIER, ID_CE_CRL_NUMBER, ID_CE_DELTA_CRL_INDICATOR,
    ID_CE_FRESHEST_CRL, ID_CE_ISSUING_DISTRIBUTION_POINT, RawEntry,
};
use super::{CrlError, REASONS};
use crate::pki::authority::CaFacts;
use crate::pki::der::{self, GENERALIZED_TIME, INTEGER, SEQUENCE, UTC_TIME};
use crate::pki::{Serial, hex};

/// One rule.
pub struct Rule {
    /// Its name, for conditions and tests.
    pub name: &'static str,
    /// Where it stands.
    pub section: &'static str,
    /// Whether a CRL keeps it; if not, how it does not.
    pub check: fn(&Crl<'_>) -> Check,
}

/// A CRL and its CA.
pub struct Crl<'a> {
    pub(super) frame: Frame<'a>,
    authority: &'a CaFacts,
}

/// What a check says.
pub type Check = Result<(), String>;

/// Which rule a CRL breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the CRL breaks rule {rule} ({section}): {detail}")]
pub struct Broken {
    /// Name of the rule.
    pub rule: &'static str,
    /// Where it stands.
    pub section: &'static str,
    /// How it is broken.
    pub detail: String,
}

const fn rule(name: &'static str, section: &'static str, check: fn(&Crl<'_>) -> Check) -> Rule {
    Rule { name, section, check }
}

/// The rules, in the order in which a CRL has its fields.
pub const RULES: &[Rule] = &[
    rule("version", "RFC 5280 section 5.1.2.1", version),
    rule("signature_algorithm", "RFC 5280 section 5.1.1.2", signature_algorithm),
    rule("issuer", "RFC 5280 section 5.1.2.3", issuer),
    rule("time_form", "RFC 5280 section 5.1.2.4", time_form),
    rule("next_update", "RFC 5280 section 5.1.2.5", next_update),
    rule("next_update_of_ca", "RFC 5280 section 6.3.3 (f)", next_update_of_ca),
    rule("entries_absent", "RFC 5280 section 5.1.2.6", entries_absent),
    rule("entries", "RFC 5280 sections 5.1.2.6 and 5.3, X.690 section 8.3", entries),
    rule("extensions", "RFC 5280 section 5.2", extensions),
    rule("authority_key_identifier", "RFC 5280 section 5.2.1", authority_key_identifier),
    rule("crl_number", "RFC 5280 section 5.2.3", crl_number),
    rule("delta_crl_indicator", "RFC 5280 section 5.2.4", delta_crl_indicator),
    rule("issuing_distribution_point", "RFC 5280 section 5.2.5", issuing_distribution_point),
    rule("freshest_crl", "RFC 5280 section 5.2.6", freshest_crl),
];

/// Does a CRL keep every rule? The signature itself is not looked at: [`super::verify()`] does that.
pub fn lint(der: &[u8], authority: &CaFacts) -> Result<(), CrlError> {
    Ok(Crl { frame: Frame::read(der)?, authority }.lint()?)
}

impl<'a> Crl<'a> {
    pub(super) fn new(frame: Frame<'a>, authority: &'a CaFacts) -> Self {
        Self { frame, authority }
    }

    pub(super) fn lint(&self) -> Result<(), Broken> {
        RULES.iter().try_for_each(|Rule { name, section, check }| {
            check(self).map_err(|detail| Broken { rule: name, section, detail })
        })
    }
}

fn require(kept: bool, detail: impl FnOnce() -> String) -> Check {
    if kept { Ok(()) } else { Err(detail()) }
}

fn version(crl: &Crl<'_>) -> Check {
    let version = crl.frame.version;
    require(version == Some(&[INTEGER, 1, 1]), || format!("version is {version:02x?}, not v2"))
}

fn signature_algorithm(crl: &Crl<'_>) -> Check {
    let Frame { inner_algorithm, outer_algorithm, .. } = &crl.frame;
    require(inner_algorithm == outer_algorithm, || {
        "the signed algorithm is not the one outside".to_owned()
    })
}

fn issuer(crl: &Crl<'_>) -> Check {
    require(crl.frame.issuer == crl.authority.subject_der, || {
        format!("{} is not the CA's subject, octet for octet", hex(crl.frame.issuer))
    })
}

/// UTCTime through 2049, GeneralizedTime from 2050, whole seconds, Z.
fn good_time(field: &[u8]) -> Check {
    let time = frame::time(field).ok_or_else(|| format!("{} is no Time", hex(field)))?;
    let form = if field[0] == UTC_TIME { UTC_TIME } else { GENERALIZED_TIME };
    // What a UTCTime says lies between 1950 and 2049 in any case.
    let generalized = jiff::tz::Offset::UTC.to_datetime(time).year() >= 2050;
    require((form == GENERALIZED_TIME) == generalized, || format!("{time} has the wrong form"))
}

fn time_form(crl: &Crl<'_>) -> Check {
    good_time(crl.frame.this_update)?;
    crl.frame.next_update.map_or(Ok(()), good_time)
}

fn next_update(crl: &Crl<'_>) -> Check {
    let next_update = crl.frame.next_update.ok_or("there is none")?;
    let (this, next) = (frame::time(crl.frame.this_update), frame::time(next_update));
    require(this < next, || "it is not after thisUpdate".to_owned())
}

fn next_update_of_ca(crl: &Crl<'_>) -> Check {
    let next = crl.frame.next_update.and_then(frame::time);
    let end = crl.authority.not_after;
    require(next.is_none_or(|next| next <= end), || format!("nextUpdate is after the CA's {end}"))
}

fn entries_absent(crl: &Crl<'_>) -> Check {
    require(crl.frame.revoked != Some(&[]), || "revokedCertificates is there and empty".to_owned())
}

/// Of each entry: serial, time and reason; of all: their order.
fn entries(crl: &Crl<'_>) -> Check {
    let mut last: Option<Serial> = None;
    let mut last_time: &[u8] = &[];
    for entry in crl.frame.entries() {
        let entry = entry.map_err(|error| error.to_string())?;
        let serial = good_serial(&entry)?;
        require(last < Some(serial), || {
            format!("{serial} comes after a serial that is not lower")
        })?;
        last = Some(serial);
        // Many certificates are revoked in the same second.
        if entry.revoked_at != last_time {
            good_time(entry.revoked_at).map_err(|why| format!("{serial}: {why}"))?;
            last_time = entry.revoked_at;
        }
        let reason = entry.reason();
        let good = reason.is_ok_and(|reason| reason.is_none_or(|code| REASONS.contains(&code)));
        require(good, || format!("{serial} has other extensions than one good reasonCode"))?;
    }
    Ok(())
}

fn good_serial(entry: &RawEntry<'_>) -> Result<Serial, String> {
    let octets = entry.serial;
    let padded = matches!(octets, [0, next, ..] if next & 0x80 == 0);
    let serial = entry.serial().map_err(|error| error.to_string())?;
    require(!padded && octets.len() <= 20, || {
        format!("{serial} is longer than 20 octets, or not in its shortest form")
    })?;
    Ok(serial)
}

/// Nothing that a verifier may not know, each once, and none critical: a critical one would say that the
/// CRL speaks of some certificates alone (RFC 5280 sections 5.2.4 and 5.2.5).
fn extensions(crl: &Crl<'_>) -> Check {
    let known = [
        (ID_CE_AUTHORITY_KEY_IDENTIFIER, false),
        (ID_CE_CRL_NUMBER, false),
        (ID_CE_DELTA_CRL_INDICATOR, true),
        (ID_CE_ISSUING_DISTRIBUTION_POINT, true),
        (ID_CE_FRESHEST_CRL, false),
    ];
    for extension in &crl.frame.extensions {
        let oid = extension.oid;
        let times = crl.frame.extensions.iter().filter(|other| other.oid == oid).count();
        require(times == 1, || format!("extension {} is there {times} times", hex(oid)))?;
        let rule = known.iter().find(|(known, _)| *known == oid);
        let critical = rule.ok_or_else(|| format!("extension {} has no place here", hex(oid)))?.1;
        require(extension.critical == critical, || {
            format!("extension {} must {}be critical", hex(oid), if critical { "" } else { "not " })
        })?;
    }
    Ok(())
}

fn authority_key_identifier(crl: &Crl<'_>) -> Check {
    let value = crl.frame.extension(ID_CE_AUTHORITY_KEY_IDENTIFIER).ok_or("there is none")?.value;
    // Without issuer and serial number: those name one certificate of the CA.
    let [key_id] = der::parts(value, SEQUENCE).ok_or("it holds more than the key identifier")?;
    let key_id = der::read(key_id, 0x80).ok_or("it has no key identifier")?;
    require(key_id == crl.authority.key_id, || {
        format!("{} is not the CA's subject key identifier", hex(key_id))
    })
}

fn crl_number(crl: &Crl<'_>) -> Check {
    let value = crl.frame.extension(ID_CE_CRL_NUMBER).ok_or("there is none")?.value;
    frame::integer(value)
        .map(drop)
        .ok_or_else(|| format!("{} is not a number below 2^128 that is not negative", hex(value)))
}

fn delta_crl_indicator(crl: &Crl<'_>) -> Check {
    let Some(extension) = crl.frame.extension(ID_CE_DELTA_CRL_INDICATOR) else { return Ok(()) };
    let base = frame::integer(extension.value).ok_or("the base number can't be read")?;
    let number = crl.frame.number().map(|number| number.0);
    require(number.is_some_and(|number| base < number), || "the base is not older".to_owned())?;
    // Only the complete CRL has one.
    let shard = crl.frame.extension(ID_CE_ISSUING_DISTRIBUTION_POINT);
    require(shard.is_none(), || "there is an issuingDistributionPoint beside it".to_owned())
}

/// One URL, as the distribution point of the certificates has it, and no onlyContains...: verifiers
/// stumble over those.
fn issuing_distribution_point(crl: &Crl<'_>) -> Check {
    let extension = crl.frame.extension(ID_CE_ISSUING_DISTRIBUTION_POINT);
    let Some(extension) = extension else { return Ok(()) };
    frame::one_url(extension.value)
        .map(drop)
        .ok_or_else(|| "it is not one http:// URL and nothing else".to_owned())
}

/// One URL, in a complete CRL alone.
fn freshest_crl(crl: &Crl<'_>) -> Check {
    if crl.frame.extension(ID_CE_FRESHEST_CRL).is_none() {
        return Ok(());
    }
    require(crl.frame.extensions.iter().all(|extension| !extension.critical), || {
        "it stands in a CRL that is not complete".to_owned()
    })?;
    crl.frame.freshest().map(drop).ok_or_else(|| "it is not one http:// URL".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::CertificateAuthority;
    use crate::pki::authority::tests::{instant, sample};
    use crate::pki::crl::{CrlNumber, CrlParams, Entry, Index, encode};
    use crate::pki::der::{BIT_STRING, ENUMERATED, OCTET_STRING, OID};

    const URL: &str = "http://crl.example.com/crl/staff/1/0-of-4.crl";

    fn encoded(authority: &CertificateAuthority, change: fn(&mut CrlParams<'_>)) -> Vec<u8> {
        let serials = ["0a", "ff00", "7f".repeat(20).as_str()].map(|s| s.parse().unwrap());
        let dates = ["2026-05-01T10:00:00Z", "2049-12-31T23:59:59Z", "2050-01-01T00:00:00Z"];
        let entries = [0, 1, 2].map(|at| Entry {
            serial: serials[at],
            revoked_at: instant(dates[at]),
            reason: [None, Some(1), Some(9)][at],
        });
        let (this, next) = (instant("2026-05-01T10:00:00Z"), instant("2026-05-08T10:00:00Z"));
        let mut params = CrlParams::complete(CrlNumber(7), this, next);
        change(&mut params);
        encode(authority, &params, &Index::of(&entries)).unwrap().der
    }

    #[test]
    fn what_is_encoded_keeps_every_rule() {
        let authority = sample();
        for change in [
            (|_| {}) as fn(&mut CrlParams<'_>),
            |params| params.number = CrlNumber(0),
            |params| params.number = CrlNumber(0x80),
            |params| params.number = CrlNumber(u128::MAX),
            |params| params.distribution_point = Some(URL),
            |params| params.freshest = Some(URL),
            |params| params.base = Some(CrlNumber(3)),
        ] {
            lint(&encoded(&authority, change), authority.facts()).unwrap();
        }
    }

    /// The fields of a CRL, to be spoilt one by one.
    struct Fields {
        version: Vec<u8>,
        inner: Vec<u8>,
        issuer: Vec<u8>,
        times: Vec<u8>,
        revoked: Option<Vec<u8>>,
        extensions: Vec<Vec<u8>>,
        outer: Vec<u8>,
    }

    fn time(text: &str) -> Vec<u8> {
        der::tlv(if text.len() == 13 { UTC_TIME } else { GENERALIZED_TIME }, text.as_bytes())
    }

    fn extension(last: u8, critical: bool, value: &[u8]) -> Vec<u8> {
        let mut body = der::tlv(OID, &[0x55, 0x1d, last]);
        if critical {
            der::value(&mut body, 1, &[0xff]);
        }
        der::value(&mut body, OCTET_STRING, value);
        der::tlv(SEQUENCE, &body)
    }

    fn entry(serial: &[u8], date: &str, extensions: &[u8]) -> Vec<u8> {
        let serial = der::tlv(INTEGER, serial);
        der::tlv(SEQUENCE, &[&serial[..], &time(date), extensions].concat())
    }

    fn point(url: &str) -> Vec<u8> {
        let name = der::tlv(0xa0, &der::tlv(0xa0, &der::tlv(0x86, url.as_bytes())));
        der::tlv(SEQUENCE, &name)
    }

    fn freshest() -> Vec<u8> {
        der::tlv(SEQUENCE, &point(URL))
    }

    fn base(number: u8) -> Vec<u8> {
        extension(0x1b, true, &der::tlv(INTEGER, &[number]))
    }

    fn reason(code: u8, critical: bool) -> Vec<u8> {
        let value = der::tlv(ENUMERATED, &[code]);
        der::tlv(SEQUENCE, &extension(0x15, critical, &value))
    }

    impl Fields {
        fn good(authority: &CertificateAuthority) -> Self {
            let key_id = der::tlv(SEQUENCE, &der::tlv(0x80, &authority.facts().key_id));
            let algorithm = authority.signer().key_type().signature_algorithm_der();
            Self {
                version: der::tlv(INTEGER, &[1]),
                inner: algorithm.clone(),
                issuer: authority.facts().subject_der.clone(),
                times: [time("260501100000Z"), time("260508100000Z")].concat(),
                revoked: Some(entry(&[5], "260501100000Z", &reason(1, false))),
                extensions: vec![
                    extension(0x23, false, &key_id),
                    extension(0x14, false, &der::tlv(INTEGER, &[7])),
                ],
                outer: algorithm,
            }
        }

        fn der(&self) -> Vec<u8> {
            let mut tbs = [&self.version[..], &self.inner, &self.issuer, &self.times].concat();
            if let Some(revoked) = &self.revoked {
                der::value(&mut tbs, SEQUENCE, revoked);
            }
            let extensions = der::tlv(SEQUENCE, &self.extensions.concat());
            der::value(&mut tbs, 0xa0, &extensions);
            let mut crl = der::tlv(SEQUENCE, &tbs);
            crl.extend_from_slice(&self.outer);
            der::value(&mut crl, BIT_STRING, &[0]);
            der::tlv(SEQUENCE, &crl)
        }
    }

    #[test]
    fn each_rule_stops_what_breaks_it() {
        let authority = sample();
        let check = |fields: &Fields| lint(&fields.der(), authority.facts());
        check(&Fields::good(&authority)).unwrap();
        let e = |serial: &[u8]| entry(serial, "260501100000Z", &[]);
        let many = |entries: &[Vec<u8>]| Some(entries.concat());
        let with = |extensions: &[u8]| many(&[entry(&[5], "260501100000Z", extensions)]);
        let dated = |date: &str| many(&[entry(&[5], date, &[])]);
        type Spoil<'a> = Box<dyn Fn(&mut Fields) + 'a>;
        let with_point = |value: Vec<u8>| -> Spoil<'_> {
            Box::new(move |f| f.extensions.push(extension(0x1c, true, &value)))
        };
        let only_users = |mut point: Vec<u8>| {
            point[1] += 3;
            [&point[..], &[0x81, 1, 0xff]].concat()
        };
        let cases: Vec<(&str, Spoil<'_>)> = vec![
            ("version", Box::new(|f| f.version = der::tlv(INTEGER, &[0]))),
            ("version", Box::new(|f| f.version.clear())),
            ("signature_algorithm", Box::new(|f| f.outer = der::tlv(SEQUENCE, &[5, 0]))),
            ("issuer", Box::new(|f| f.issuer = der::tlv(SEQUENCE, &[]))),
            (
                "time_form",
                Box::new(|f| f.times = [time("260501100000Z"), time("20260508100000Z")].concat()),
            ),
            (
                "time_form",
                Box::new(|f| f.times = [time("260501100000Z"), time("26050810000Z0")].concat()),
            ),
            (
                "time_form",
                Box::new(|f| f.times = [time("261301100000Z"), time("260508100000Z")].concat()),
            ),
            ("next_update", Box::new(|f| f.times = time("260501100000Z"))),
            (
                "next_update",
                Box::new(|f| f.times = [time("260501100000Z"), time("260501100000Z")].concat()),
            ),
            (
                "next_update_of_ca",
                Box::new(|f| f.times = [time("260501100000Z"), time("20991231235959Z")].concat()),
            ),
            ("entries_absent", Box::new(|f| f.revoked = Some(vec![]))),
            ("entries", Box::new(|f| f.revoked = many(&[e(&[6]), e(&[5])]))),
            ("entries", Box::new(|f| f.revoked = many(&[e(&[5]), e(&[5])]))),
            ("entries", Box::new(|f| f.revoked = many(&[e(&[0])]))),
            ("entries", Box::new(|f| f.revoked = many(&[e(&[0x80])]))),
            ("entries", Box::new(|f| f.revoked = many(&[e(&[0, 5])]))),
            ("entries", Box::new(|f| f.revoked = many(&[e(&[0x7f; 21])]))),
            ("entries", Box::new(|f| f.revoked = dated("20260501100000Z"))),
            ("entries", Box::new(|f| f.revoked = dated("20500101000000+"))),
            ("entries", Box::new(|f| f.revoked = with(&der::tlv(SEQUENCE, &[])))),
            ("entries", Box::new(|f| f.revoked = with(&reason(1, true)))),
            ("entries", Box::new(|f| f.revoked = with(&reason(0, false)))),
            ("entries", Box::new(|f| f.revoked = with(&reason(6, false)))),
            ("entries", Box::new(|f| f.revoked = with(&reason(8, false)))),
            ("extensions", Box::new(|f| f.extensions.push(extension(0x12, false, &[5, 0])))),
            ("extensions", Box::new(|f| f.extensions.push(f.extensions[0].clone()))),
            ("extensions", Box::new(|f| f.extensions[1] = extension(0x14, true, &[2, 1, 7]))),
            // deltaCRLIndicator and issuingDistributionPoint that are not critical, freshestCRL that is.
            ("extensions", Box::new(|f| f.extensions.push(extension(0x1b, false, &[2, 1, 1])))),
            ("extensions", Box::new(|f| f.extensions.push(extension(0x1c, false, &point(URL))))),
            ("extensions", Box::new(|f| f.extensions.push(extension(0x2e, true, &freshest())))),
            // A base that is not older, or no number; with a shard, or with another delta.
            ("delta_crl_indicator", Box::new(|f| f.extensions.push(base(7)))),
            ("delta_crl_indicator", Box::new(|f| f.extensions.push(base(0xff)))),
            (
                "delta_crl_indicator",
                Box::new(|f| f.extensions.extend([base(1), extension(0x1c, true, &point(URL))])),
            ),
            (
                "freshest_crl",
                Box::new(|f| f.extensions.extend([base(1), extension(0x2e, false, &freshest())])),
            ),
            (
                "freshest_crl",
                Box::new(|f| {
                    let shard = extension(0x1c, true, &point(URL));
                    f.extensions.extend([shard, extension(0x2e, false, &freshest())]);
                }),
            ),
            ("freshest_crl", Box::new(|f| f.extensions.push(extension(0x2e, false, &point(URL))))),
            ("authority_key_identifier", Box::new(|f| drop(f.extensions.remove(0)))),
            (
                "authority_key_identifier",
                Box::new(|f| {
                    f.extensions[0] = extension(0x23, false, &der::tlv(SEQUENCE, &[0x80, 1, 7]));
                }),
            ),
            ("issuing_distribution_point", with_point(der::tlv(SEQUENCE, &[]))),
            // onlyContainsUserCerts: alone, and beside the URL.
            ("issuing_distribution_point", with_point(der::tlv(SEQUENCE, &[0x81, 1, 0xff]))),
            ("issuing_distribution_point", with_point(only_users(point(URL)))),
            ("issuing_distribution_point", with_point(point("https://x/1.crl"))),
            ("crl_number", Box::new(|f| drop(f.extensions.pop()))),
            ("crl_number", Box::new(|f| f.extensions[1] = extension(0x14, false, &[2, 1, 0xff]))),
        ];
        for (rule, spoil) in &cases {
            let mut fields = Fields::good(&authority);
            spoil(&mut fields);
            match check(&fields) {
                Err(CrlError::Lint(broken)) => assert_eq!(broken.rule, *rule, "{broken}"),
                other => panic!("{rule}: {other:?} {}", hex(&fields.der())),
            }
        }
        for rule in RULES {
            assert!(cases.iter().any(|(name, _)| *name == rule.name), "{} has no case", rule.name);
        }
    }
}
