//! What programs say before they end.

/// The last line that says something.
pub fn last_line(text: &str) -> Option<&str> {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_says_something() {
        assert_eq!(last_line("one\n two \n\n  \n"), Some("two"));
        assert_eq!(last_line(" \n\n"), None);
    }
}
