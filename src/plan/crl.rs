//! When the next CRL is due, and whether it may be published.

use jiff::{SignedDuration, Timestamp};

use super::authority::Reason;
use super::ledger::{Ledger, Revoked};
use crate::pki::Serial;
use crate::pki::crl::{CrlFacts, CrlNumber, Entry};

/// thisUpdate lies this far in the past, so that a verifier whose clock is slow takes the CRL.
pub const BACKDATE: SignedDuration = SignedDuration::from_secs(60);

/// Revocations that follow a publication within this time share the next one.
pub const COALESCE: SignedDuration = SignedDuration::from_millis(1500);

/// What keeps a CRL from being published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// It would lack a serial that must stay.
    Shrink,
    /// The published one was made from a later state of the ledger.
    Freshness,
    /// The ledger is not whole.
    Ledger,
}

impl Guard {
    /// The reason in the authority's condition.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Shrink => Reason::ShrinkGuard,
            Self::Freshness => Reason::FreshnessGuard,
            Self::Ledger => Reason::LedgerDamaged,
        }
    }
}

/// Everything that the decision depends on.
pub struct World<'a> {
    /// The ledger of the CA.
    pub ledger: &'a Ledger,
    /// Why the ledger is not whole.
    pub trouble: Option<&'a str>,
    /// The position of its next record.
    pub position: u64,
    /// The position from which the published CRL was made.
    pub published_position: Option<u64>,
    /// The published CRL.
    pub published: Option<&'a CrlFacts>,
    /// Does it still stand in the cluster? If somebody deleted it, it is published anew.
    pub in_service: bool,
    /// When this process last published, if it did.
    pub published_at: Option<Timestamp>,
    /// nextUpdate lies this long after thisUpdate.
    pub validity: SignedDuration,
    /// A CRL is signed anew after this long.
    pub refresh: SignedDuration,
    /// Where the delta CRL to it is, if there is one.
    pub freshest: Option<&'a str>,
    /// End of the CA's validity: no CRL outlives it.
    pub ca_not_after: Timestamp,
    /// The time.
    pub now: Timestamp,
}

/// A CRL to be signed and published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its number.
    pub number: CrlNumber,
    /// Its thisUpdate.
    pub this_update: Timestamp,
    /// Its nextUpdate.
    pub next_update: Timestamp,
    /// Where the delta CRL to it is, if there is one.
    pub freshest: Option<String>,
    /// Entries that the published CRL does not have, sorted by serial.
    pub added: Vec<Entry>,
    /// Serials of the published CRL that it will not have, sorted.
    pub leaving: Vec<Serial>,
    /// The position of the ledger's next record.
    pub ledger_position: u64,
}

impl Publication {
    /// The serials that it lists, given those of the published CRL, in their order.
    pub fn serials<'a>(&'a self, published: &'a [Serial]) -> impl Iterator<Item = Serial> + 'a {
        let mut leaving = self.leaving.iter().peekable();
        let mut added = self.added.iter().map(|entry| entry.serial).peekable();
        let mut staying = published
            .iter()
            .filter(move |serial| leaving.next_if_eq(serial).is_none())
            .copied()
            .peekable();
        std::iter::from_fn(move || {
            let first = staying.peek().is_none_or(|staying| added.peek() < Some(staying));
            if first && added.peek().is_some() { added.next() } else { staying.next() }
        })
    }
}

/// What to do about the CRL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Sign and publish this one.
    Publish(Publication),
    /// The published one is good; look again then.
    WaitUntil(Timestamp),
    /// A guard says no: keep the published one in service. The message says why, and what to do.
    Refuse(Guard, String),
}

/// Decides whether a CRL must be published now.
pub fn decide(world: &World<'_>) -> Decision {
    if let Some(trouble) = world.trouble {
        return Decision::Refuse(Guard::Ledger, in_service(trouble));
    }
    if let Some(message) = freshness_guard(world) {
        return Decision::Refuse(Guard::Freshness, message);
    }
    let Some(published) = world.published else {
        let changes = Changes { added: world.ledger.crl_entries(None), ..Changes::default() };
        return Decision::Publish(publication(world, changes));
    };
    let CrlFacts { this_update, next_update, .. } = *published;
    let refresh = refresh_time(this_update, next_update, world.refresh, world.ca_not_after);
    let overdue = !world.in_service || published.this_update > world.now || world.now >= refresh;
    // A time that lies ahead is of a clock that was set back: nobody waits for it.
    let last = world.published_at.filter(|at| *at <= world.now);
    let shared = last.and_then(|at| at.checked_add(COALESCE).ok()).unwrap_or(world.now);
    if !overdue && world.now < shared {
        return Decision::WaitUntil(shared.min(refresh));
    }
    // A purge of expired serials alone is no reason to publish: it waits for the refresh.
    let changes = compare(world.ledger, published, overdue);
    if let Some(refusal) = shrink_guard(&changes.lost) {
        return Decision::Refuse(Guard::Shrink, refusal);
    }
    if !overdue && changes.added.is_empty() {
        return Decision::WaitUntil(refresh);
    }
    Decision::Publish(publication(world, changes))
}

fn publication(world: &World<'_>, changes: Changes) -> Publication {
    // thisUpdate does not fall, unless it lay in the future, where every verifier refuses it.
    let floor = world.published.map_or(Timestamp::MIN, |published| published.this_update);
    let floor = floor.min(world.now);
    let this_update = world.now.saturating_sub(BACKDATE).unwrap_or(world.now).max(floor);
    let next_update =
        world.now.saturating_add(world.validity).unwrap_or(Timestamp::MAX).min(world.ca_not_after);
    Publication {
        number: CrlNumber::next(world.published.map(|published| published.number), world.now),
        this_update: crate::api::condition::truncate(this_update),
        next_update: crate::api::condition::truncate(next_update),
        freshest: world.freshest.map(ToOwned::to_owned),
        added: changes.added,
        leaving: changes.leaving,
        ledger_position: world.position,
    }
}

/// How the ledger differs from the published CRL.
#[derive(Default)]
struct Changes {
    /// What the published CRL lacks.
    added: Vec<Entry>,
    /// What need not stay in it.
    leaving: Vec<Serial>,
    /// What it has and the ledger should have.
    lost: Vec<Serial>,
}

/// One pass over both, which are sorted. What may leave is looked for only in a `purge`: it costs a look
/// at the end of each certificate.
fn compare(ledger: &Ledger, published: &CrlFacts, purge: bool) -> Changes {
    let mut changes = Changes::default();
    let mut listed = published.serials.iter().peekable();
    let may_leave = |serial: &Serial| ledger.may_leave(serial, Some(published));
    for revoked in ledger.revoked() {
        while let Some(lost) = listed.next_if(|serial| **serial < revoked.serial) {
            changes.lost.extend((!may_leave(lost)).then_some(*lost));
            changes.leaving.push(*lost);
        }
        if listed.next_if_eq(&&revoked.serial).is_some() {
            changes.leaving.extend((purge && may_leave(&revoked.serial)).then_some(revoked.serial));
        } else if !may_leave(&revoked.serial) {
            let Revoked { serial, revoked_at, reason } = *revoked;
            changes.added.push(Entry { serial, revoked_at, reason });
        }
    }
    for lost in listed {
        changes.lost.extend((!may_leave(lost)).then_some(*lost));
        changes.leaving.push(*lost);
    }
    changes
}

/// Does the published CRL lack a certificate that is revoked and has not expired?
pub fn is_unpublished(ledger: &Ledger, published: Option<&CrlFacts>) -> bool {
    match published {
        Some(published) => !compare(ledger, published, false).added.is_empty(),
        None => ledger.revoked().next().is_some(),
    }
}

fn in_service(trouble: &str) -> String {
    format!("no CRL is published, the one in service stays: {trouble}")
}

/// A ledger that has fewer records than the published CRL was made from came back from a backup: it lacks
/// revocations, perhaps such that no CRL told yet.
fn freshness_guard(world: &World<'_>) -> Option<String> {
    let published = world.published_position.filter(|position| world.position < *position)?;
    Some(in_service(&format!(
        "the ledger ends before record {}, and the published CRL was made when it held {published}. Restore the \
         ConfigMaps labelled countersign.dev/component=ledger from a newer backup, or let it go on without what is \
         lost: countersign ledger recover --help",
        world.position
    )))
}

/// When a published CRL is to be signed anew: after `refresh`, and with a third of its own validity
/// left at the latest, whatever the spec says by now. One that ends with its CA can't be prolonged.
pub(super) fn refresh_time(
    this_update: Timestamp,
    next_update: Timestamp,
    refresh: SignedDuration,
    ca_not_after: Timestamp,
) -> Timestamp {
    let made = this_update.saturating_add(BACKDATE).unwrap_or(this_update);
    let due = made.saturating_add(refresh).unwrap_or(made);
    if next_update >= ca_not_after {
        return due;
    }
    let validity = next_update.duration_since(this_update);
    due.min(next_update.saturating_sub(validity / 3).unwrap_or(due))
}

/// An unexpired serial of the published CRL that the next one lacks means that the ledger lost a
/// record. A CRL without it would let a revoked client in.
fn shrink_guard(lost: &[Serial]) -> Option<String> {
    let first = lost.first()?;
    Some(format!(
        "the ledger lost {} revoked serial(s) of the published CRL, {first} among them; the published CRL stays in service. \
         Restore the ConfigMaps labelled countersign.dev/component=ledger from a backup",
        lost.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ledger::Record;
    use crate::plan::ledger::tests::{issued, revoked};

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn second(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn ledger(revocations: &[&str]) -> Ledger {
        let mut ledger = Ledger::default();
        for serial in revocations {
            ledger.apply(Record::Issued(issued(serial, "uid", 1, 1_000_000)));
            ledger.apply(Record::Revoked(revoked(serial, 100)));
        }
        ledger
    }

    fn published(made: i64, serials: &[&str]) -> CrlFacts {
        CrlFacts {
            number: CrlNumber(7),
            this_update: second(made) - BACKDATE,
            next_update: second(made) + HOUR * 10,
            issuer_der: vec![],
            authority_key_id: vec![],
            serials: serials.iter().map(|serial| serial.parse().unwrap()).collect(),
        }
    }

    fn world<'a>(ledger: &'a Ledger, published: Option<&'a CrlFacts>, now: i64) -> World<'a> {
        World {
            ledger,
            trouble: None,
            position: 7,
            published_position: published.map(|_| 7),
            published,
            in_service: true,
            published_at: None,
            validity: HOUR * 10,
            refresh: HOUR,
            freshest: None,
            ca_not_after: second(500_000),
            now: second(now),
        }
    }

    fn serials(publication: &Publication, published: &CrlFacts) -> Vec<String> {
        publication.serials(&published.serials).map(|serial| serial.to_string()).collect()
    }

    #[test]
    fn what_comes_and_what_goes_make_the_next_list() {
        for (published, added, leaving, expected) in [
            ("", "", "", ""),
            ("", "01 02", "", "01 02"),
            ("01 02 03", "", "02", "01 03"),
            ("02 04", "01 03 05", "", "01 02 03 04 05"),
            ("02 04", "01 03 05", "02 04", "01 03 05"),
            ("02", "03", "02", "03"),
        ] {
            let list = |text: &str| text.split_whitespace().map(|s| s.parse().unwrap()).collect();
            let (published, leaving, added): (Vec<Serial>, _, Vec<Serial>) =
                (list(published), list(leaving), list(added));
            let entry = |serial| Entry { serial, revoked_at: second(1), reason: None };
            let publication = Publication {
                freshest: None,
                number: CrlNumber(1),
                this_update: second(1),
                next_update: second(2),
                added: added.into_iter().map(entry).collect(),
                leaving,
                ledger_position: 0,
            };
            let listed: Vec<Serial> = publication.serials(&published).collect();
            assert_eq!(listed, list(expected), "{published:?}");
        }
    }

    /// The sign of it was wrong at Let's Encrypt once: entries left before their certificates had expired
    /// (bugzilla 1954861).
    #[test]
    fn a_serial_leaves_only_after_it_stood_in_a_crl_that_was_made_after_it_expired() {
        let mut ledger = Ledger::default();
        ledger.apply(Record::Issued(issued("0a", "uid", 1, 10_000)));
        ledger.apply(Record::Revoked(revoked("0a", 100)));
        let next = |made: i64, now: i64| {
            let crl = published(made, &["0a"]);
            match decide(&world(&ledger, Some(&crl), now)) {
                Decision::Publish(publication) => Some(serials(&publication, &crl)),
                Decision::WaitUntil(_) => None,
                Decision::Refuse(_, why) => panic!("{why}"),
            }
        };
        let (stays, leaves) = (Some(vec!["0a".to_owned()]), Some(vec![]));
        // Not expired.
        assert_eq!(next(6_000, 9_999), stays);
        // Expired, but in no CRL that says so: a verifier with a slow clock may still take it.
        assert_eq!(next(6_000, 20_000), stays);
        assert_eq!(next(10_060, 20_000), stays, "thisUpdate is the very end of validity");
        assert_eq!(next(10_061, 20_000), leaves);
        // That alone is no reason to publish.
        assert_eq!(next(10_061, 10_062), None);
    }

    #[test]
    fn an_empty_crl_exists_before_the_first_certificate() {
        let Decision::Publish(Publication { added, next_update, this_update, .. }) =
            decide(&world(&ledger(&[]), None, 1000))
        else {
            panic!("not published")
        };
        assert!(added.is_empty());
        assert_eq!((this_update, next_update), (second(940), second(37_000)));
    }

    #[test]
    fn a_fresh_crl_stays_until_its_refresh() {
        let (ledger, crl) = (ledger(&["0a"]), published(1000, &["0a"]));
        assert_eq!(decide(&world(&ledger, Some(&crl), 1001)), Decision::WaitUntil(second(4600)));
        assert!(matches!(decide(&world(&ledger, Some(&crl), 4600)), Decision::Publish(_)));
    }

    #[test]
    fn the_first_revocation_publishes_at_once_and_the_next_ones_share() {
        let (ledger, crl) = (ledger(&["0a", "0b"]), published(1000, &["0a"]));
        let mut world = world(&ledger, Some(&crl), 1001);
        assert!(matches!(decide(&world), Decision::Publish(_)));
        world.published_at = Some(second(1000));
        assert_eq!(decide(&world), Decision::WaitUntil(second(1000) + COALESCE));
    }

    #[test]
    fn a_crl_that_somebody_deleted_is_published_anew_with_a_higher_number() {
        let (ledger, crl) = (ledger(&["0a"]), published(1000, &["0a"]));
        let world = World { in_service: false, ..world(&ledger, Some(&crl), 1001) };
        let Decision::Publish(publication) = decide(&world) else { panic!("not published") };
        assert!(publication.number > crl.number);
        assert_eq!(serials(&publication, &crl), ["0a"]);
    }

    #[test]
    fn a_lost_revocation_stops_the_publication() {
        let (ledger, crl) = (ledger(&["0a"]), published(1000, &["0a", "0b"]));
        let Decision::Refuse(Guard::Shrink, message) = decide(&world(&ledger, Some(&crl), 9000))
        else {
            panic!("published a CRL that lacks 0b")
        };
        assert!(message.contains("0b among them"), "{message}");
    }

    #[test]
    fn a_ledger_that_is_behind_or_not_whole_stops_the_publication() {
        let (ledger, crl) = (ledger(&["0a", "0b"]), published(1000, &["0a"]));
        let due = || world(&ledger, Some(&crl), 9000);
        let refusal = |world: World<'_>| match decide(&world) {
            Decision::Refuse(guard, message) => Some((guard, message)),
            Decision::Publish(publication) => {
                assert_eq!(publication.ledger_position, world.position);
                None
            }
            Decision::WaitUntil(_) => panic!("a CRL is due"),
        };
        assert_eq!(refusal(due()), None);
        assert_eq!(refusal(World { position: 8, ..due() }), None);
        assert_eq!(refusal(World { published_position: None, position: 0, ..due() }), None);
        let (guard, message) = refusal(World { position: 6, ..due() }).unwrap();
        assert_eq!(guard, Guard::Freshness);
        assert!(message.contains("before record 6") && message.contains("held 7"), "{message}");
        let (guard, message) = refusal(World { trouble: Some("a gap"), ..due() }).unwrap();
        assert_eq!(guard, Guard::Ledger);
        assert!(message.contains("a gap"), "{message}");
        // Also where there is no CRL yet: it would say that nothing is revoked.
        let nothing = Ledger::default();
        let first = World { trouble: Some("a gap"), ..world(&nothing, None, 9000) };
        assert!(refusal(first).is_some());
    }

    #[test]
    fn the_number_rises_and_this_update_never_falls_when_the_clock_goes_back() {
        let (ledger, crl) = (ledger(&["0a", "0b"]), published(5000, &["0a"]));
        let Decision::Publish(Publication { number, this_update, .. }) =
            decide(&world(&ledger, Some(&crl), 4970))
        else {
            panic!("not published")
        };
        assert!(number > crl.number);
        assert_eq!(this_update, crl.this_update);
    }

    #[test]
    fn a_crl_is_signed_anew_long_before_it_expires_whatever_the_spec_says_now() {
        let (ledger, crl) = (ledger(&["0a"]), published(1000, &["0a"]));
        let world =
            World { refresh: HOUR * 100, validity: HOUR * 200, ..world(&ledger, Some(&crl), 1001) };
        let Decision::WaitUntil(due) = decide(&world) else { panic!("published at once") };
        assert!(crl.next_update.duration_since(due) > HOUR * 3, "{due}");
    }

    #[test]
    fn a_clock_that_was_ahead_delays_nothing() {
        let ledger = ledger(&["0a", "0b"]);
        let crl = published(9000, &["0a"]);
        let world = World { published_at: Some(second(9000)), ..world(&ledger, Some(&crl), 1000) };
        let Decision::Publish(publication) = decide(&world) else { panic!("not published") };
        assert!(publication.this_update <= second(1000), "no verifier takes a CRL of the future");
        assert!(publication.number > crl.number);
    }

    #[test]
    fn no_crl_outlives_its_ca() {
        let ledger = ledger(&[]);
        let Decision::Publish(Publication { next_update, .. }) =
            decide(&world(&ledger, None, 499_000))
        else {
            panic!("not published")
        };
        assert_eq!(next_update, second(500_000));
    }
}
