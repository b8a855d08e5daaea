//! Conditions, ranges and codings that a request for a CRL can carry (RFC 9110 sections 12.5.3, 13 and
//! 14). Whatever is not understood is as good as not there, which costs bytes and never freshness.

use std::ops::Range;
use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderName, header};

/// What the representation that was chosen is compared with.
pub struct Validators<'a> {
    /// Its strong entity tag, quoted.
    pub etag: &'a str,
    /// When it changed, in whole seconds.
    pub modified: Option<SystemTime>,
}

/// What a GET or HEAD is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it: 200.
    Whole,
    /// A part of it: 206.
    Part(Range<usize>),
    /// The client has it: 304.
    NotModified,
    /// The client wants another one: 412.
    PreconditionFailed,
    /// There is nothing in this range: 416.
    RangeNotSatisfiable,
}

/// Evaluates the conditions in the order of RFC 9110 section 13.2.2, then the range. `length` is that
/// of the representation.
pub fn evaluate(
    request: &HeaderMap,
    is_head: bool,
    validators: &Validators<'_>,
    length: usize,
) -> Outcome {
    let date = |name| request.get(name).and_then(|value| http_date(value.to_str().ok()?));
    let modified = validators.modified;
    if let Some(found) = matches(request, header::IF_MATCH, validators.etag, Comparison::Strong) {
        if !found {
            return Outcome::PreconditionFailed;
        }
    } else if let (Some(since), Some(modified)) = (date(header::IF_UNMODIFIED_SINCE), modified)
        && modified > since
    {
        return Outcome::PreconditionFailed;
    }
    if let Some(found) = matches(request, header::IF_NONE_MATCH, validators.etag, Comparison::Weak)
    {
        if found {
            return Outcome::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (date(header::IF_MODIFIED_SINCE), modified)
        && modified <= since
    {
        return Outcome::NotModified;
    }
    // Section 14.2: a range is defined for GET alone.
    if is_head || !range_applies(request, validators) {
        return Outcome::Whole;
    }
    match only(request, header::RANGE).and_then(|text| single_range(text, length)) {
        None => Outcome::Whole,
        Some(range) if range.is_empty() => Outcome::RangeNotSatisfiable,
        Some(range) => Outcome::Part(range),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Is our tag in the list? None when there is no such header.
fn matches(request: &HeaderMap, name: HeaderName, ours: &str, how: Comparison) -> Option<bool> {
    let mut lines = request.get_all(name).iter().peekable();
    lines.peek()?;
    Some(lines.any(|line| line.to_str().is_ok_and(|line| is_listed(line, ours, how))))
}

/// `*`, or a list of entity tags (section 8.8.3), which may hold commas.
fn is_listed(list: &str, ours: &str, how: Comparison) -> bool {
    let mut rest = list.trim_matches([' ', '\t']);
    if rest == ours || rest == "*" {
        return true;
    }
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (is_weak, tag) = match rest.strip_prefix("W/") {
            Some(tag) => (true, tag),
            None => (false, rest),
        };
        let Some(length) = tag.strip_prefix('"').and_then(|opaque| opaque.find('"')) else {
            return false;
        };
        let (tag, after) = tag.split_at(length + 2);
        if tag == ours && (how == Comparison::Weak || !is_weak) {
            return true;
        }
        rest = after;
    }
}

/// Does If-Range, if it is there, name what we have (section 13.1.5)? A date must be the very one.
fn range_applies(request: &HeaderMap, validators: &Validators<'_>) -> bool {
    if !request.contains_key(header::IF_RANGE) {
        return true;
    }
    only(request, header::IF_RANGE).is_some_and(|value| {
        let date = || http_date(value).filter(|date| validators.modified == Some(*date));
        value == validators.etag || date().is_some()
    })
}

/// The value of a header that is there once.
fn only(request: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut lines = request.get_all(name).iter();
    let line = lines.next()?.to_str().ok()?;
    lines.next().is_none().then(|| line.trim_matches([' ', '\t']))
}

/// Any of the three forms of section 5.6.7.
fn http_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// The range of `bytes=1-2`, `bytes=1-` or `bytes=-2` (section 14.1.2); an empty one when nothing of it
/// is there. None for what is not one single range: then the whole is the answer.
fn single_range(text: &str, length: usize) -> Option<Range<usize>> {
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    match (position(first)?, position(last)?) {
        (None, None) => None,
        (None, Some(suffix)) => Some(length.saturating_sub(suffix)..length),
        (Some(first), Some(last)) if last < first => None,
        (Some(first), last) => {
            let end = last.map_or(length, |last| last.saturating_add(1).min(length));
            Some(first.min(length)..end.max(first.min(length)))
        }
    }
}

/// A number, or nothing. One that no file reaches is as good as the largest.
fn position(text: &str) -> Option<Option<usize>> {
    if text.is_empty() {
        return Some(None);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Some(text.parse().unwrap_or(usize::MAX)))
}

/// Does the client rather take gzip than the bytes as they are (section 12.5.3)? One that says nothing
/// does not.
pub fn prefers_gzip(request: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for line in request.get_all(header::ACCEPT_ENCODING) {
        for item in line.to_str().unwrap_or_default().split(',') {
            let mut parts = item.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let weight = match parts.next() {
                None => 1000,
                Some(parameter) => thousandths(parameter).unwrap_or(0),
            };
            if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
                gzip = Some(weight);
            } else if coding.eq_ignore_ascii_case("identity") {
                identity = Some(weight);
            } else if coding == "*" {
                any = Some(weight);
            }
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// `q=0.5` as 500 (section 12.4.2).
fn thousandths(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    if !name.trim().eq_ignore_ascii_case("q") || !digits {
        return None;
    }
    let fraction = format!("{fraction:0<3}").parse::<u16>().ok()?;
    match (whole, fraction) {
        ("0", fraction) => Some(fraction),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use proptest::prelude::*;
    use std::time::Duration;

    const ETAG: &str = "\"abc\"";
    const DATE: &str = "Mon, 01 Jun 2026 00:00:00 GMT";
    const LATER: &str = "Mon, 01 Jun 2026 00:00:01 GMT";
    const EARLIER: &str = "Sun, 31 May 2026 23:59:59 GMT";
    const LENGTH: usize = 10;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    fn ask(lines: &[(&str, &str)]) -> Outcome {
        let modified = http_date(DATE);
        evaluate(&headers(lines), false, &Validators { etag: ETAG, modified }, LENGTH)
    }

    #[test]
    fn conditions_are_evaluated_in_their_order() {
        use Outcome::{NotModified, PreconditionFailed, Whole};
        let cases: &[(&[(&str, &str)], Outcome)] = &[
            (&[], Whole),
            (&[("if-none-match", "\"abc\"")], NotModified),
            (&[("if-none-match", "W/\"abc\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"x\", W/\"y,\\\",\"abc\"")], NotModified),
            (&[("if-none-match", "\"a,b\" , \"abc\"")], NotModified),
            (&[("if-none-match", "\"x\""), ("if-none-match", "\"abc\"")], NotModified),
            (&[("if-none-match", "\"x\"")], Whole),
            (&[("if-none-match", "abc")], Whole),
            (&[("if-none-match", "\"abc")], Whole),
            (&[("if-none-match", "")], Whole),
            // A tag within a tag is none.
            (&[("if-none-match", "\"x\"abc\"")], Whole),
            (&[("if-modified-since", DATE)], NotModified),
            (&[("if-modified-since", LATER)], NotModified),
            (&[("if-modified-since", EARLIER)], Whole),
            // The old forms, and what is none.
            (&[("if-modified-since", "Monday, 01-Jun-26 00:00:00 GMT")], NotModified),
            (&[("if-modified-since", "Mon Jun  1 00:00:00 2026")], NotModified),
            (&[("if-modified-since", "2026-06-01T00:00:00Z")], Whole),
            (&[("if-modified-since", "tomorrow")], Whole),
            // If-None-Match decides alone.
            (&[("if-none-match", "\"x\""), ("if-modified-since", LATER)], Whole),
            (&[("if-none-match", "\"abc\""), ("if-modified-since", EARLIER)], NotModified),
            (&[("if-match", "\"abc\"")], Whole),
            (&[("if-match", "*")], Whole),
            (&[("if-match", "\"x\"")], PreconditionFailed),
            (&[("if-match", "W/\"abc\"")], PreconditionFailed),
            (&[("if-match", "\"x\""), ("if-none-match", "\"abc\"")], PreconditionFailed),
            (&[("if-match", "\"abc\""), ("if-unmodified-since", EARLIER)], Whole),
            (&[("if-unmodified-since", EARLIER)], PreconditionFailed),
            (&[("if-unmodified-since", DATE)], Whole),
            (&[("if-unmodified-since", "never")], Whole),
            (&[("if-none-match", "\"abc\""), ("range", "bytes=0-1")], NotModified),
        ];
        for (lines, expected) in cases {
            assert_eq!(ask(lines), *expected, "{lines:?}");
        }
    }

    #[test]
    fn without_a_date_dates_say_nothing() {
        let request = headers(&[("if-modified-since", LATER), ("if-unmodified-since", EARLIER)]);
        let validators = Validators { etag: ETAG, modified: None };
        assert_eq!(evaluate(&request, false, &validators, LENGTH), Outcome::Whole);
    }

    #[test]
    fn ranges_are_single_ones() {
        use Outcome::{Part, RangeNotSatisfiable, Whole};
        for (range, expected) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=0-3", Part(0..4)),
            ("bytes=4-", Part(4..10)),
            ("bytes=-3", Part(7..10)),
            ("bytes=-30", Part(0..10)),
            ("bytes=9-9", Part(9..10)),
            ("bytes=8-99999999999999999999999999", Part(8..10)),
            ("Bytes=8-20", Part(8..10)),
            ("bytes=10-", RangeNotSatisfiable),
            ("bytes=10-12", RangeNotSatisfiable),
            ("bytes=99999999999999999999999999-", RangeNotSatisfiable),
            ("bytes=-0", RangeNotSatisfiable),
            // Not understood, or several: the whole.
            ("bytes=0-1,3-4", Whole),
            ("bytes=4-3", Whole),
            ("bytes=-", Whole),
            ("bytes=+1-3", Whole),
            ("bytes=a-b", Whole),
            ("bytes=", Whole),
            ("bytes", Whole),
            ("lines=0-1", Whole),
        ] {
            assert_eq!(ask(&[("range", range)]), expected, "{range}");
        }
        assert_eq!(ask(&[("range", "bytes=0-1"), ("range", "bytes=0-1")]), Whole);
        let head = headers(&[("range", "bytes=0-1")]);
        let validators = Validators { etag: ETAG, modified: None };
        assert_eq!(evaluate(&head, true, &validators, LENGTH), Whole);
    }

    #[test]
    fn a_range_of_something_else_is_the_whole() {
        use Outcome::{Part, Whole};
        for (if_range, expected) in [
            (ETAG, Part(0..2)),
            (DATE, Part(0..2)),
            ("\"x\"", Whole),
            ("W/\"abc\"", Whole),
            (LATER, Whole),
            (EARLIER, Whole),
            ("", Whole),
        ] {
            let lines = [("range", "bytes=0-1"), ("if-range", if_range)];
            assert_eq!(ask(&lines), expected, "{if_range}");
        }
    }

    #[test]
    fn gzip_is_for_whoever_rather_takes_it() {
        for (accept, expected) in [
            ("gzip", true),
            ("GZIP", true),
            ("x-gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", true),
            ("*", true),
            ("gzip;q=0.5, identity;q=0.5", true),
            ("gzip; q=1.000", true),
            ("identity;q=0, gzip;q=0.001", true),
            ("", false),
            ("identity", false),
            ("deflate, br", false),
            ("gzip;q=0", false),
            ("gzip;q=0.000", false),
            ("*;q=0", false),
            ("gzip;q=0, *", false),
            ("gzip;q=0.4, identity;q=0.5", false),
            ("gzip;q=2", false),
            ("gzip;q=", false),
            ("gzip;q=1.5", false),
            ("gzip;level=9", false),
            ("gzippy", false),
        ] {
            assert_eq!(
                prefers_gzip(&headers(&[("accept-encoding", accept)])),
                expected,
                "{accept}"
            );
        }
        assert!(!prefers_gzip(&HeaderMap::new()));
        let lines = [("accept-encoding", "br"), ("accept-encoding", "gzip")];
        assert!(prefers_gzip(&headers(&lines)));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_a_part_lies_within(
            range in "(bytes=)?[0-9,a-]{0,12}",
            tags in "[W/\"abc,* ]{0,16}",
            coding in "[gzip;q=.,* 01]{0,20}",
            length in 1usize..5000,
        ) {
            let request = headers(&[("range", &range), ("if-match", &tags), ("accept-encoding", &coding)]);
            let modified = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
            if let Outcome::Part(part) =
                evaluate(&request, false, &Validators { etag: ETAG, modified }, length)
            {
                prop_assert!(part.start < part.end && part.end <= length);
            }
            let _ = prefers_gzip(&request);
        }
    }
}
