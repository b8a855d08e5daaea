//! Tables on a terminal.

/// Prints rows in columns that are as wide as their widest cell.
pub(super) fn print<const N: usize>(header: [&str; N], rows: &[[String; N]]) {
    print!("{}", render(header, rows));
}

fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line += &format!("{cell:width$}   ");
        }
        format!("{}\n", line.trim_end())
    };
    let rows = rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str())));
    std::iter::once(line(header)).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["clients/1".to_owned(), "7".to_owned()], ["ä".to_owned(), String::new()]];
        assert_eq!(render(["CA", "LIVE"], &rows), "CA          LIVE\nclients/1   7\nä\n");
    }
}
