//! How a long command tells of its progress: a bar on a terminal, lines elsewhere; and tables.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// Without a terminal a line is written at most this often, and at the end.
const LINE: Duration = Duration::from_secs(5);

/// The progress of one step.
pub(super) struct Progress {
    what: &'static str,
    total: usize,
    done: usize,
    bar: Option<ProgressBar>,
    told: Option<(Instant, usize)>,
}

impl Progress {
    /// A step with so many parts; `what` they are, done.
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let style = "{msg:12} [{bar:40}] {pos}/{len} {elapsed}";
            let style = ProgressStyle::with_template(style).expect("a valid template");
            bar.set_style(style.progress_chars("=> "));
            bar.set_message(what);
            bar
        });
        Self { what, total, done: 0, bar, told: None }
    }

    /// So many parts are done by now.
    pub(super) fn set(&mut self, done: usize) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        } else if done < self.total && self.told.is_none_or(|(at, _)| at.elapsed() >= LINE) {
            self.line();
        }
    }

    /// The step is over, whatever came of it.
    pub(super) fn end(mut self) {
        match &self.bar {
            Some(bar) => bar.abandon(),
            None => self.line(),
        }
    }

    fn line(&mut self) {
        if self.told.is_none_or(|(_, told)| told != self.done) {
            eprintln!("{} {}/{}", self.what, self.done, self.total);
        }
        self.told = Some((Instant::now(), self.done));
    }
}

/// A table with a heading, its columns as wide as they must be.
pub(super) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let heading = heading.map(str::to_owned);
    let lines = || std::iter::once(&heading).chain(rows);
    let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for line in lines() {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let cells: Vec<String> = cells.collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [["a".into(), "1".into()], ["longer".into(), String::new()]];
        assert_eq!(table(["NAME", "N"], &rows), "NAME    N\na       1\nlonger\n");
    }
}
