//! Whether this machine has an IPv6 address with which it is reachable from everywhere.

use std::net::Ipv6Addr;
use std::ptr;

/// One of its interfaces has a global address.
pub(crate) fn is_global() -> bool {
    let mut list = ptr::null_mut();
    // SAFETY: the list is freed below and not used afterwards.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return false;
    }
    let mut found = false;
    let mut next = list;
    // SAFETY: the entries of the list are valid until it is freed.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: the entry's address is null or a valid one of its family.
        let family = unsafe { entry.ifa_addr.as_ref() }.map(|address| address.sa_family);
        if family.map(i32::from) == Some(libc::AF_INET6) {
            // SAFETY: the family says what it is.
            let raw = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
            found |= is_unicast_global(Ipv6Addr::from(raw.sin6_addr.s6_addr));
        }
    }
    // SAFETY: the list came from getifaddrs, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// What the world's registries give out (2000::/3).
fn is_unicast_global(ip: Ipv6Addr) -> bool {
    ip.octets()[0] >> 5 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_routed_everywhere_counts() {
        for (text, global) in [
            ("::1", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("2001:db8::1", true),
            ("2a00::1", true),
        ] {
            assert_eq!(is_unicast_global(text.parse().unwrap()), global, "{text}");
        }
        is_global();
    }
}
