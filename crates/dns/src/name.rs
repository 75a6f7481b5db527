//! Domain names in wire form (RFC 1035 section 3.1): folding, making them from text, and the
//! addresses that names below `in-addr.arpa` and `ip6.arpa` stand for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arrayvec::ArrayVec;

/// Bytes of a name in wire form.
pub(crate) const MAX_NAME: usize = 255;

/// A name in wire form and lower case.
pub(crate) type Folded = ArrayVec<u8, MAX_NAME>;

/// Why text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("`{0}` is empty or has an empty label")]
    Empty(String),
    #[error("`{0}` is longer than 253 characters, or a label of it than 63")]
    Long(String),
    #[error("`{0}` is not written in ASCII: give the name in its xn-- form")]
    NotAscii(String),
}

/// Whether text is a name, in the way people write it.
pub fn check_name(text: &str) -> Result<(), NameError> {
    from_text(text).map(drop)
}

/// A name in lower case; letters only, since no others have a case in DNS.
pub(crate) fn fold(name: &[u8]) -> Folded {
    let mut folded: Folded = name.iter().copied().take(MAX_NAME).collect();
    folded.make_ascii_lowercase();
    folded
}

/// The wire form of a name, folded.
pub(crate) fn from_text(text: &str) -> Result<Box<[u8]>, NameError> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if !name.is_ascii() {
        return Err(NameError::NotAscii(text.into()));
    }
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        match u8::try_from(label.len()) {
            Ok(0) => return Err(NameError::Empty(text.into())),
            Ok(len @ 1..=63) => wire.push(len),
            _ => return Err(NameError::Long(text.into())),
        }
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    wire.push(0);
    if wire.len() > MAX_NAME {
        return Err(NameError::Long(text.into()));
    }
    Ok(wire.into())
}

/// The labels of a name, the root not among them.
pub(crate) fn labels(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let (&len, after) = rest.split_first()?;
        let (label, next) = after.split_at_checked(usize::from(len)).filter(|_| len > 0)?;
        rest = next;
        Some(label)
    })
}

/// A name as the system's own functions want it: without the last dot. `None` for one that they
/// could not tell from another: with a dot or a zero in a label.
pub(crate) fn to_text(name: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in labels(name) {
        if !text.is_empty() {
            text.push('.');
        }
        let plain = |b: &u8| b.is_ascii_graphic() && *b != b'.';
        if !label.iter().all(plain) {
            return None;
        }
        text.extend(label.iter().map(|&b| char::from(b)));
    }
    (!text.is_empty()).then_some(text)
}

/// The last label of a name.
pub(crate) fn top(name: &[u8]) -> Option<&[u8]> {
    labels(name).last()
}

/// The address whose reverse name this is, if it is a whole one. The name is folded.
pub(crate) fn reverse(name: &[u8]) -> Option<IpAddr> {
    if !name.ends_with(b"\x04arpa\0") {
        return None;
    }
    let labels: ArrayVec<&[u8], 34> = {
        let mut all = ArrayVec::new();
        for label in labels(name) {
            all.try_push(label).ok()?;
        }
        all
    };
    match labels.as_slice() {
        [a, b, c, d, b"in-addr", b"arpa"] => {
            let byte = |label: &[u8]| {
                let text = std::str::from_utf8(label).ok()?;
                let plain = text.bytes().all(|b| b.is_ascii_digit())
                    && !(text.len() > 1 && text.starts_with('0'));
                text.parse::<u8>().ok().filter(|_| plain)
            };
            Some(Ipv4Addr::new(byte(d)?, byte(c)?, byte(b)?, byte(a)?).into())
        }
        [nibbles @ .., b"ip6", b"arpa"] if nibbles.len() == 32 => {
            let mut value = 0_u128;
            for label in nibbles.iter().rev() {
                let [digit] = label else { return None };
                value = value << 4 | u128::from(char::from(*digit).to_digit(16)?);
            }
            Some(Ipv6Addr::from(value).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folded_and_checked() {
        assert_eq!(&*from_text("Host.Lima.").unwrap(), b"\x04host\x04lima\x00");
        assert_eq!(fold(b"\x04HOST\x00").as_slice(), b"\x04host\x00");
        assert_eq!(to_text(b"\x04host\x04lima\x00").unwrap(), "host.lima");
        assert_eq!(to_text(b"\x03a.b\x00"), None);
        assert_eq!(to_text(b"\x00"), None);
        for wrong in ["", ".", "a..b", &"a".repeat(64), &"a.".repeat(128), "b\u{fc}cher.example"] {
            assert!(from_text(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn reverse_names_are_addresses() {
        let of = |text: &str| reverse(&from_text(text).unwrap());
        assert_eq!(of("2.5.168.192.in-addr.arpa"), Some("192.168.5.2".parse().unwrap()));
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(of(six), Some("fd00::2".parse().unwrap()));
        for wrong in [
            "5.168.192.in-addr.arpa",
            "256.5.168.192.in-addr.arpa",
            "02.5.168.192.in-addr.arpa",
            "x.ip6.arpa",
            "arpa",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
