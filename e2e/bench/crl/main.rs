//! The CRL engine at a million entries: cold build, one revocation more, a restart. Prints seconds and
//! octets as JSON; `e2e/bench/crl/run` compares them with others and with the budgets.
//!
//! usage: crl <entries> <folder for crl.der and ca.pem>

#![allow(missing_docs)]

use std::ops::Sub;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use std::{env, fs};

use countersign::pki::authority::{CaParams, NameConstraints};
use countersign::pki::crl::{self, CrlNumber, CrlParams, Encoded, Entry, Index};
use countersign::pki::name::{Attribute, Name};
use countersign::pki::{CertificateAuthority, KeyType, PrivateKey, Serial};
use countersign::plan::crl::Publication;
use jiff::{SignedDuration, Timestamp};

const HOUR: SignedDuration = SignedDuration::from_hours(1);

fn main() {
    // `cargo bench` adds `--bench`.
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [count, folder] = args.as_slice() else { panic!("usage: crl <entries> <folder>") };
    let count: usize = count.parse().expect("a number of entries");
    let folder = PathBuf::from(folder);

    let now = Timestamp::from_second(Timestamp::now().as_second()).expect("now is a time");
    let authority = authority(now);
    // What the ledger holds: it is there anyway.
    let mut entries: Vec<Entry> = (0..count + 1).map(|number| entry(number, now)).collect();
    let later = [entries.pop().expect("one more than were asked for")];
    let params = CrlParams::complete(CrlNumber::next(None, now), now, now + HOUR);
    let before = memory("VmRSS");
    forget_peak();

    let start = Clock::start();
    entries.sort_unstable_by_key(|entry| entry.serial);
    let mut index = Index::of(&entries);
    let built = start.elapsed();
    let Encoded { der, .. } = crl::encode(&authority, &params, &index).expect("it can be signed");
    let signed = start.elapsed();
    let serials = entries.iter().map(|entry| entry.serial);
    let facts = crl::verify(&der, &authority, &params, serials, &entries).expect("it is good");
    let cold = start.elapsed();
    let (size, peak_cold) = (der.len(), memory("VmHWM"));
    fs::write(folder.join("crl.der"), &der).expect("the folder can be written");
    fs::write(folder.join("ca.pem"), authority.certificate_pem())
        .expect("the folder can be written");
    drop(der);

    // As long as its successor is not published, the facts of a CRL are kept.
    let params = CrlParams { number: CrlNumber(params.number.0 + 1), ..params };
    let publication = Publication {
        freshest: None,
        number: params.number,
        this_update: params.this_update,
        next_update: params.next_update,
        added: later.to_vec(),
        leaving: Vec::new(),
        ledger_position: 0,
    };
    let mut resigned = Vec::new();
    for _ in 0..5 {
        let mut index = index.clone();
        let start = Clock::start();
        index.insert(&later);
        let encoded = crl::encode(&authority, &params, &index).expect("it can be signed");
        let serials = publication.serials(&facts.serials);
        let again = crl::verify(&encoded.der, &authority, &params, serials, &later);
        resigned.push(start.elapsed());
        assert_eq!(again.expect("it is good").serials.len(), facts.serials.len() + 1);
    }
    resigned.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    index.insert(&later);
    let (peak, kept) = (memory("VmHWM"), memory("VmRSS"));

    let der = fs::read(folder.join("crl.der")).expect("it was written");
    let start = Clock::start();
    let read = crl::read(&der).expect("it is good");
    let taken_over = crl::index(&der).expect("it is ours");
    let restart = start.elapsed();
    assert_eq!((read.serials.len(), taken_over.len()), (count, count));

    let stages = [
        ("cold", cold),
        ("encode", built),
        ("sign", signed - built),
        ("verify", cold - signed),
        ("again", resigned[2]),
        ("again_worst", resigned[4]),
        ("restart", restart),
    ];
    let stages = stages.map(|(name, Time { wall, cpu })| format!(r#""{name}": [{wall}, {cpu}]"#));
    println!(
        r#"{{"entries": {count}, "bytes": {size}, {}, "memory": {}, "memory_cold": {}, "memory_kept": {}}}"#,
        stages.join(", "),
        peak - before,
        peak_cold - before,
        kept.saturating_sub(before),
    );
}

/// Seconds on the clock, and on a core: others may have had the cores meanwhile.
#[derive(Clone, Copy)]
struct Time {
    wall: f64,
    cpu: f64,
}

impl Sub for Time {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { wall: self.wall - other.wall, cpu: self.cpu - other.cpu }
    }
}

struct Clock {
    start: Instant,
    cpu: f64,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: Self::cpu() }
    }

    fn elapsed(&self) -> Time {
        Time { wall: self.start.elapsed().as_secs_f64(), cpu: Self::cpu() - self.cpu }
    }

    /// Seconds that the threads of this process, also those that ended, have been on a core (proc(5), stat).
    fn cpu() -> f64 {
        let text = fs::read_to_string("/proc/self/stat").expect("Linux");
        // What follows the name, which may hold anything; a tick is a hundredth of a second.
        let fields = text.rsplit(')').next().expect("a name in parentheses");
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks.map(|ticks| ticks.parse::<f64>().expect("a number of ticks")).sum::<f64>() / 100.0
    }
}

fn authority(now: Timestamp) -> CertificateAuthority {
    let params = CaParams {
        subject: &Name(vec![(Attribute::CommonName, "Benchmark CA".into())]),
        serial: Serial::random(),
        not_before: now - HOUR,
        not_after: now + HOUR * 24 * 365,
        path_length: 0,
        name_constraints: &NameConstraints::default(),
        crl_url: None,
    };
    let key = Arc::new(PrivateKey::generate(KeyType::EcdsaP256));
    CertificateAuthority::self_signed(&params, key).expect("a CA can be made")
}

/// Serials of 16 octets and a reason each: the longest that are usual.
fn entry(number: usize, now: Timestamp) -> Entry {
    let ago = SignedDuration::from_secs(number as i64 % 1_000_000);
    Entry { serial: Serial::random(), revoked_at: now - ago, reason: Some(1) }
}

/// Octets that Linux counts for this process.
fn memory(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(field)).expect("Linux counts it");
    let number = line.split_whitespace().nth(1).and_then(|number| number.parse::<usize>().ok());
    number.expect("a number of kB") * 1024
}

/// From here on the peak counts anew (proc(5), clear_refs).
fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").expect("Linux lets a process forget its own peak");
}
