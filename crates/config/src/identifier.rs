//! The rule for names that end up in commands, paths and host names.

/// Longest name.
const MAX: usize = 76;

/// The rule in the form that messages show.
pub(crate) const PATTERN: &str = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$";

/// Why a name is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    #[error("identifier must not be empty")]
    Empty,
    #[error("identifier `{0}` greater than maximum length ({MAX} characters)")]
    TooLong(String),
    #[error("identifier `{0}` must match {PATTERN}")]
    Pattern(String),
}

/// Letters and digits, in groups that one of `.`, `_` and `-` separates.
pub(crate) fn check(name: &str) -> Result<(), IdentifierError> {
    if name.is_empty() {
        return Err(IdentifierError::Empty);
    }
    if name.len() > MAX {
        return Err(IdentifierError::TooLong(name.into()));
    }
    let group = |g: &str| !g.is_empty() && g.bytes().all(|b| b.is_ascii_alphanumeric());
    if name.split(['.', '_', '-']).all(group) {
        Ok(())
    } else {
        Err(IdentifierError::Pattern(name.into()))
    }
}

/// The host name of an instance, which is also its name in the network, below `.internal`.
pub fn host_name(instance: &str) -> Result<String, IdentifierError> {
    check(instance)?;
    Ok(format!("lima-{}", instance.replace(['.', '_'], "-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_some() {
        for name in ["a", "user-v2", "A1.b_c-d", "0", &"x".repeat(76)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn host_names_of_instances() {
        assert_eq!(host_name("default").unwrap(), "lima-default");
        assert_eq!(host_name("a.b_c-d").unwrap(), "lima-a-b-c-d");
        assert!(host_name("a/b").is_err());
    }

    #[test]
    fn names_that_are_none() {
        let empty = "identifier must not be empty";
        assert_eq!(check("").unwrap_err().to_string(), empty);
        let bad = [
            "-a",
            "a-",
            "a--b",
            "a._b",
            "a b",
            "a/b",
            "..",
            "a\n",
            "ALL=(ALL)",
            "a,b",
            "ü",
            "a\0",
            "a%b",
            "$(id)",
            "a;b",
            "a\tb",
            "*",
            "#a",
        ];
        for name in bad {
            let want = format!("identifier `{name}` must match {PATTERN}");
            assert_eq!(check(name).unwrap_err().to_string(), want);
        }
        let long = "x".repeat(77);
        let want = format!("identifier `{long}` greater than maximum length (76 characters)");
        assert_eq!(check(&long).unwrap_err().to_string(), want);
    }
}
