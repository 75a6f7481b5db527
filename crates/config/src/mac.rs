//! MAC addresses: how they are written, and the rule that gives guests theirs.

use std::fmt::Write;

use sha2::{Digest, Sha256};
use vmlan_wire::Mac;

/// Why a text is no MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    #[error("`{0}` is not a MAC address")]
    Syntax(String),
    #[error("must be a 48 bit (6 bytes) MAC address; actual length of `{text}` is {len} bytes")]
    Length { text: String, len: usize },
    #[error("`{0}` is the address of a group: the lowest bit of the first byte must be 0")]
    Group(String),
}

/// The address of a guest's interface: `machine` is the machine's identity, `interface` the
/// instance's directory for its first interface, and the path of its `lima.yaml`, `#` and the
/// position in `networks` for the others.
pub fn mac_address(machine: &str, interface: &str) -> Mac {
    let digest = Sha256::new().chain_update(machine).chain_update(interface).finalize();
    let [a, b, c, ..] = digest.0;
    Mac([0x52, 0x55, 0x55, a, b, c])
}

/// As people write it: pairs of hexadecimal digits between colons or hyphens, or groups of four
/// between dots.
pub fn parse_mac(text: &str) -> Result<Mac, MacError> {
    let wrong = || MacError::Syntax(text.into());
    let (separator, digits) = match text {
        _ if text.contains(':') => (':', 2),
        _ if text.contains('-') => ('-', 2),
        _ => ('.', 4),
    };
    let mut bytes = Vec::new();
    for group in text.split(separator) {
        if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let number = u16::from_str_radix(group, 16).map_err(|_| wrong())?;
        let [high, low] = number.to_be_bytes();
        bytes.extend((digits == 4).then_some(high));
        bytes.push(low);
    }
    let Ok(mac) = <[u8; 6]>::try_from(bytes.as_slice()) else {
        return Err(MacError::Length { text: text.into(), len: bytes.len() });
    };
    if mac[0] & 1 != 0 {
        return Err(MacError::Group(text.into()));
    }
    Ok(Mac(mac))
}

/// With colons and small letters.
pub fn show_mac(mac: Mac) -> String {
    let mut text = String::with_capacity(17);
    for (i, byte) in mac.0.iter().enumerate() {
        let separator = if i == 0 { "" } else { ":" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `printf %s MACHINE INTERFACE | sha256sum`.
    #[test]
    fn the_rule() {
        let mac = |machine, interface| show_mac(mac_address(machine, interface));
        assert_eq!(mac("", ""), "52:55:55:e3:b0:c4");
        assert_eq!(mac("abc", ""), "52:55:55:ba:78:16");
        assert_eq!(mac("a", "bc"), "52:55:55:ba:78:16");
        assert_eq!(
            mac("2f5b2b3a4c5d6e7f8091a2b3c4d5e6f7", "/home/me/.lima/default"),
            "52:55:55:f7:1b:79"
        );
    }

    #[test]
    fn every_way_to_write_one() {
        let want = Mac([0x52, 0x55, 0x55, 0xab, 0xcd, 0xef]);
        for text in ["52:55:55:ab:cd:ef", "52-55-55-AB-CD-EF", "5255.55ab.cdef"] {
            assert_eq!(parse_mac(text), Ok(want));
        }
        assert_eq!(show_mac(want), "52:55:55:ab:cd:ef");
    }

    #[test]
    fn what_is_none() {
        for text in [
            "",
            "x",
            "52:55:55:ab:cd:e",
            "52:55:55:ab:cd:eg",
            "52:55-55:ab:cd:ef",
            "+2:55:55:ab:cd:ef",
        ] {
            let want = format!("`{text}` is not a MAC address");
            assert_eq!(parse_mac(text).unwrap_err().to_string(), want);
        }
        let long = "52:55:55:ab:cd:ef:00:01";
        let want =
            format!("must be a 48 bit (6 bytes) MAC address; actual length of `{long}` is 8 bytes");
        assert_eq!(parse_mac(long).unwrap_err().to_string(), want);
        assert!(parse_mac("ff:ff:ff:ff:ff:ff").unwrap_err().to_string().contains("group"));
    }
}
