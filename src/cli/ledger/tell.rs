//! `show`, `find` and `export`.

use std::fmt::Write;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::books::Book;
use super::{FindArgs, Output, table};
use crate::api::revocation::RevocationReason;
use crate::pki::{Serial, hex, sha256_from_hex};
use crate::plan::ledger::{CaKey, Issued, Ledger, Record, Revoked};

/// Tells how much is recorded for each CA.
pub(super) fn show(books: &[Book], output: Output) -> Result<(), String> {
    let now = Timestamp::now();
    if output == Output::Json {
        let told = books.iter().map(|book| {
            let [live, revoked, expired] = book.counts(now);
            json!({
                "authority": &*book.key.authority,
                "generation": book.key.generation,
                "segments": book.segments.len(),
                "records": records(book),
                "position": book.chain.position,
                "publishedPosition": book.published.as_ref().and_then(|crl| crl.position),
                "live": live,
                "revoked": revoked,
                "expired": expired,
                "trouble": book.trouble(),
            })
        });
        return print_json(&told.collect());
    }
    if books.is_empty() {
        println!("nothing is recorded yet");
        return Ok(());
    }
    let rows: Vec<_> = books
        .iter()
        .map(|book| {
            let [live, revoked, expired] = book.counts(now).map(|count| count.to_string());
            [
                book.key.to_string(),
                book.segments.len().to_string(),
                records(book).to_string(),
                book.chain.position.to_string(),
                live,
                revoked,
                expired,
                if book.trouble().is_some() { "damaged" } else { "whole" }.to_owned(),
            ]
        })
        .collect();
    let header = ["CA", "SEGMENTS", "RECORDS", "POSITION", "LIVE", "REVOKED", "EXPIRED", "STATE"];
    table::print(header, &rows);
    for (book, trouble) in books.iter().filter_map(|book| Some((book, book.trouble()?))) {
        println!("{}: {trouble}", book.key);
    }
    Ok(())
}

fn records(book: &Book) -> usize {
    book.segments.iter().map(|segment| segment.records.len()).sum()
}

/// A certificate that was found: its CA, its serial, and what is recorded of it.
struct Found<'a> {
    ca: &'a CaKey,
    serial: Serial,
    issued: Option<&'a Issued>,
    revoked: Option<&'a Revoked>,
    fingerprint: Option<&'a [u8; 32]>,
}

/// Tells of every certificate for which all holds that is asked for; fails when there is none.
pub(super) fn find(books: &[Book], by: &FindArgs, output: Output) -> Result<(), String> {
    let query = Query::parse(by)?;
    let found: Vec<_> = books.iter().flat_map(|book| query.find(&book.key, &book.ledger)).collect();
    if found.is_empty() {
        return Err("no such certificate is recorded".to_owned());
    }
    let now = Timestamp::now();
    if output == Output::Json {
        return print_json(&found.iter().map(|one| one.to_json(now)).collect());
    }
    let rows: Vec<_> = found.iter().map(|one| one.to_row(now)).collect();
    table::print(["SERIAL", "CA", "IDENTITY", "REVISION", "NOT AFTER", "STATE", "SUBJECT"], &rows);
    Ok(())
}

#[derive(Default)]
struct Query {
    serial: Option<Serial>,
    fingerprint: Option<[u8; 32]>,
    identity: Option<(String, String)>,
    subject: Option<String>,
}

impl Query {
    fn parse(by: &FindArgs) -> Result<Self, String> {
        let plain = |text: &String| text.replace(':', "").to_lowercase();
        let serial = by
            .serial
            .as_ref()
            .map(|text| plain(text).parse().map_err(|error| format!("--serial {text}: {error}")));
        let fingerprint = by.fingerprint.as_ref().map(|text| {
            let wrong = || format!("--fingerprint {text}: expected 64 hex digits, a SHA-256");
            sha256_from_hex(&plain(text)).ok_or_else(wrong)
        });
        let identity = by.identity.as_ref().map(|text| match text.split_once('/') {
            Some((namespace, name)) => Ok((namespace.to_owned(), name.to_owned())),
            None => Err(format!("--identity {text}: expected NAMESPACE/NAME")),
        });
        Ok(Self {
            serial: serial.transpose()?,
            fingerprint: fingerprint.transpose()?,
            identity: identity.transpose()?,
            subject: by.subject.clone(),
        })
    }

    fn find<'a>(&self, ca: &'a CaKey, ledger: &'a Ledger) -> Vec<Found<'a>> {
        let serials: Vec<Serial> = match self {
            Self { serial: Some(serial), .. } => vec![*serial],
            Self { fingerprint: Some(wanted), .. } => {
                ledger.find_fingerprint(wanted).into_iter().collect()
            }
            Self { identity: Some((namespace, name)), .. } => {
                ledger.of_name(namespace, name).map(|issued| issued.serial).collect()
            }
            Self { subject, .. } => {
                let text = subject.as_deref().unwrap_or_default();
                ledger.of_subject(text).map(|issued| issued.serial).collect()
            }
        };
        let found = serials.into_iter().map(|serial| Found {
            ca,
            serial,
            issued: ledger.find(&serial),
            revoked: ledger.revocation(&serial),
            fingerprint: ledger.fingerprint(&serial),
        });
        found.filter(|found| self.holds_for(found)).collect()
    }

    fn holds_for(&self, found: &Found<'_>) -> bool {
        let is_recorded = found.issued.is_some() || found.revoked.is_some();
        let fingerprint = self.fingerprint.is_none_or(|wanted| found.fingerprint == Some(&wanted));
        let identity = self.identity.as_ref().is_none_or(|(namespace, name)| {
            let holder = found.issued.map(|issued| &issued.holder);
            holder.is_some_and(|holder| *holder.namespace == **namespace && *holder.name == **name)
        });
        let subject = self.subject.as_ref().is_none_or(|text| {
            let subject = found.issued.and_then(|issued| issued.subject.as_ref());
            subject.is_some_and(|subject| subject.contains(text.as_str()))
        });
        is_recorded && fingerprint && identity && subject
    }
}

impl Found<'_> {
    fn state(&self, now: Timestamp) -> String {
        let expired = self.issued.is_some_and(|issued| issued.not_after <= now);
        match self.revoked {
            Some(revoked) => {
                let mut text = format!("revoked {}", revoked.revoked_at);
                if let Some(reason) = reason(revoked) {
                    let _ = write!(text, " {reason}");
                }
                text
            }
            None if expired => "expired".to_owned(),
            None => "live".to_owned(),
        }
    }

    fn to_row(&self, now: Timestamp) -> [String; 7] {
        let of = |tell: &dyn Fn(&Issued) -> String| self.issued.map_or("?".to_owned(), tell);
        [
            self.serial.to_string(),
            self.ca.to_string(),
            of(&|issued| format!("{}/{}", issued.holder.namespace, issued.holder.name)),
            of(&|issued| issued.revision.to_string()),
            of(&|issued| issued.not_after.to_string()),
            self.state(now),
            of(&|issued| issued.subject.as_deref().unwrap_or("?").to_owned()),
        ]
    }

    fn to_json(&self, now: Timestamp) -> Value {
        let mut told = match self.issued {
            Some(issued) => issued_json(issued),
            None => json!({"serialNumber": self.serial.to_string()}),
        };
        told["authority"] = json!(&*self.ca.authority);
        told["generation"] = json!(self.ca.generation);
        told["fingerprint"] = json!(self.fingerprint.map(|fingerprint| hex(fingerprint)));
        told["state"] = json!(match self.revoked {
            Some(_) => "Revoked",
            None if self.issued.is_some_and(|issued| issued.not_after <= now) => "Expired",
            None => "Live",
        });
        if let Some(revoked) = self.revoked {
            told["revocationTime"] = json!(revoked.revoked_at.to_string());
            told["revocationReason"] = json!(reason(revoked));
        }
        told
    }
}

fn reason(revoked: &Revoked) -> Option<String> {
    let code = revoked.reason?;
    let known = RevocationReason::from_code(code);
    Some(known.map_or(code.to_string(), |reason| format!("{reason:?}")))
}

fn issued_json(issued: &Issued) -> Value {
    json!({
        "serialNumber": issued.serial.to_string(),
        "namespace": &*issued.holder.namespace,
        "name": &*issued.holder.name,
        "uid": &*issued.holder.uid,
        "subject": issued.subject.as_deref(),
        "revision": issued.revision,
        "supersedes": issued.supersedes,
        "issuanceTime": issued.issued_at.map(|time| time.to_string()),
        "notAfter": issued.not_after.to_string(),
        "retain": issued.retain,
    })
}

/// Prints every record. Its position is told where nothing was taken out of its segment.
pub(super) fn export(books: &[Book]) -> Result<(), String> {
    let mut out = String::new();
    for book in books {
        for (segment, range) in book.segments.iter().zip(&book.chain.ranges) {
            let is_whole = segment.records.len() as u64 == range.end - range.start;
            for (at, record) in segment.records.iter().enumerate() {
                let position = is_whole.then_some(range.start + at as u64);
                let told = record_json(&book.key, &segment.name, position, record);
                let _ = writeln!(out, "{told}");
            }
        }
    }
    print!("{out}");
    Ok(())
}

fn record_json(ca: &CaKey, segment: &str, position: Option<u64>, record: &Record) -> Value {
    let (kind, mut told) = match record {
        Record::Issued(issued) => ("Issued", issued_json(issued)),
        Record::Revoked(revoked) => (
            "Revoked",
            json!({
                "serialNumber": revoked.serial.to_string(),
                "revocationTime": revoked.revoked_at.to_string(),
                "revocationReason": reason(revoked),
            }),
        ),
        Record::Signed(signed) => (
            "Signed",
            json!({
                "serialNumber": signed.serial.to_string(),
                "fingerprint": hex(&signed.fingerprint),
            }),
        ),
    };
    told["record"] = json!(kind);
    told["authority"] = json!(&*ca.authority);
    told["generation"] = json!(ca.generation);
    told["segment"] = json!(segment);
    told["position"] = json!(position);
    told
}

fn print_json(value: &Value) -> Result<(), String> {
    let text = serde_json::to_string_pretty(value).map_err(|error| error.to_string())?;
    println!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ledger::Signed;
    use crate::plan::ledger::tests::{issued, revoked};

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        let subject = Some("CN=laptop-7,O=Example".into());
        ledger.apply(Record::Issued(Issued { subject, ..issued("0a", "uid", 1, 1000) }));
        ledger.apply(Record::Issued(issued("0b", "uid", 2, 2000)));
        ledger.apply(Record::Revoked(revoked("0b", 500)));
        ledger.apply(Record::Revoked(revoked("0c", 500)));
        let serial = "0a".parse().unwrap();
        ledger.apply(Record::Signed(Signed { serial, fingerprint: [0xab; 32] }));
        ledger
    }

    fn asked(serial: &str, fingerprint: &str, identity: &str, subject: &str) -> FindArgs {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        FindArgs {
            serial: given(serial),
            fingerprint: given(fingerprint),
            identity: given(identity),
            subject: given(subject),
        }
    }

    #[test]
    fn everything_that_is_asked_for_must_hold() {
        let (ledger, ca) = (ledger(), CaKey::first("clients"));
        let found = |by: FindArgs| {
            let found = Query::parse(&by).unwrap().find(&ca, &ledger);
            found.iter().map(|one| one.serial.to_string()).collect::<Vec<_>>().join(" ")
        };
        let fingerprint = "AB:".repeat(32);
        let fingerprint = fingerprint.trim_end_matches(':');
        assert_eq!(found(asked("0B", "", "", "")), "0b");
        assert_eq!(
            found(asked("00:0c", "", "", "")),
            "0c",
            "also one of which only the end is known"
        );
        assert_eq!(found(asked("0d", "", "", "")), "");
        assert_eq!(found(asked("", fingerprint, "", "")), "0a");
        assert_eq!(found(asked("0b", fingerprint, "", "")), "");
        assert_eq!(found(asked("", "", "team/laptop", "")), "0a 0b");
        assert_eq!(found(asked("", "", "team/laptop", "CN=laptop-7")), "0a");
        assert_eq!(found(asked("", "", "team/desk", "")), "");
        for (by, words) in [
            (asked("xy", "", "", ""), "--serial xy: "),
            (asked("", "abcd", "", ""), "64 hex digits"),
            (asked("", "", "laptop", ""), "NAMESPACE/NAME"),
        ] {
            let error = Query::parse(&by).err().unwrap();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_record_as_json_says_all_that_it_holds() {
        let ca = CaKey::first("clients");
        let told = record_json(
            &ca,
            "ledger-clients-1-000001",
            Some(7),
            &Record::Revoked(revoked("0b", 500)),
        );
        let expected = json!({
            "record": "Revoked",
            "authority": "clients",
            "generation": 1,
            "segment": "ledger-clients-1-000001",
            "position": 7,
            "serialNumber": "0b",
            "revocationTime": "1970-01-01T00:08:20Z",
            "revocationReason": "KeyCompromise",
        });
        assert_eq!(told, expected);
    }
}
