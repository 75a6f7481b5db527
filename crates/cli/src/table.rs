//! Listings on a terminal: columns under headings, which are there even when nothing else is.

/// A line for the headings and one for each row. The last column is as wide as it is.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut lines = vec![headings.map(String::from)];
    lines.extend(rows);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0) + 4);
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < N {
                let gap = widths[column].saturating_sub(cell.chars().count());
                text.extend(std::iter::repeat_n(' ', gap));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        assert_eq!(table(["A", "B"], []), "A    B\n");
        let rows = [["long".into(), "x y".into()], ["\u{fc}".into(), "-".into()]];
        assert_eq!(table(["A", "B"], rows), "A       B\nlong    x y\n\u{fc}       -\n");
    }
}
