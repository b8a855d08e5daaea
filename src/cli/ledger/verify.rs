//! `countersign ledger verify`.

use super::books::{Book, Published};
use crate::plan::ledger::segment::advice;

/// As many serials are named.
const NAMED: usize = 3;

/// Tells of each ledger whether it is whole; fails when one is not.
pub(super) fn verify(books: &[Book]) -> Result<(), String> {
    let mut failed = 0;
    for book in books {
        let problems = problems(book);
        for problem in &problems {
            println!("{}: {problem}", book.key);
        }
        if problems.is_empty() {
            let (segments, position) = (book.segments.len(), book.chain.position);
            let published =
                book.published.as_ref().and_then(|published| published.crl.as_ref().ok());
            let crl = published.map_or("no CRL is published".to_owned(), |crl| {
                format!("the {} serial(s) of the published CRL are recorded", crl.entries.len())
            });
            println!("{}: whole: {position} position(s) in {segments} segment(s); {crl}", book.key);
        }
        failed += usize::from(!problems.is_empty());
    }
    match failed {
        0 => Ok(()),
        failed => Err(format!("{failed} of {} ledgers are not whole", books.len())),
    }
}

/// What is wrong with a ledger, each with what to do.
fn problems(book: &Book) -> Vec<String> {
    let mut problems: Vec<String> = book.trouble().into_iter().collect();
    let Some(Published { position, crl }) = &book.published else { return problems };
    let advice = advice(&book.key);
    if let Some(noted) = position.filter(|noted| book.chain.position < *noted) {
        problems.push(format!(
            "it ends before record {}, and the published CRL was made when it held {noted}. {advice}",
            book.chain.position
        ));
    }
    let entries = match crl {
        Ok(crl) => &crl.entries,
        Err(why) => {
            problems.push(format!("the published CRL can't be compared: {why}"));
            return problems;
        }
    };
    let unknown: Vec<_> = entries
        .iter()
        .filter(|entry| book.ledger.revocation(&entry.serial).is_none())
        .map(|entry| entry.serial.to_string())
        .collect();
    if !unknown.is_empty() {
        problems.push(format!(
            "{} serial(s) of the published CRL are not recorded as revoked, {} among them. {advice}",
            unknown.len(),
            unknown[..unknown.len().min(NAMED)].join(", ")
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::crl::Entry;
    use crate::pki::crl_import::SignedCrl;
    use crate::plan::ledger::CaKey;
    use crate::plan::ledger::segment::tests::segment;
    use jiff::Timestamp;

    fn of(numbers: &[(u32, u64, u64)], position: u64, serials: &[&str]) -> Book {
        let segments: Vec<_> =
            numbers.iter().map(|(number, first, next)| segment(*number, *first..*next)).collect();
        let entry = |serial: &&str| Entry {
            serial: serial.parse().unwrap(),
            revoked_at: Timestamp::UNIX_EPOCH,
            reason: None,
        };
        let crl = SignedCrl {
            this_update: Timestamp::UNIX_EPOCH,
            entries: serials.iter().map(entry).collect(),
        };
        let published = Published { position: Some(position), crl: Ok(crl) };
        Book::of(CaKey::first("clients"), segments, Some(published))
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        let numbers = [(1, 0, 2), (2, 2, 4)];
        assert_eq!(problems(&of(&numbers, 4, &["01", "04"])), Vec::<String>::new());
        assert!(verify(&[of(&numbers, 4, &["01"])]).is_ok());
        for (book, words) in [
            (of(&numbers[1..], 4, &[]), "record(s) 0 to 1 are missing"),
            (of(&numbers[..1], 4, &[]), "held 4"),
            (of(&numbers, 4, &["01", "99"]), "1 serial(s) of the published CRL"),
        ] {
            let told = problems(&book);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains(words) && told[0].contains("ledger recover"), "{told:?}");
            assert_eq!(verify(&[book]), Err("1 of 1 ledgers are not whole".to_owned()));
        }
    }
}
