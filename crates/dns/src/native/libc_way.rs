//! getaddrinfo(3) and getnameinfo(3): whatever the machine's nsswitch.conf(5) has.

use std::ffi::{CStr, CString, c_char, c_int};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{mem, ptr};

use crate::core::{Found, Wanted};

/// These functions know names and addresses.
#[cfg(not(target_os = "macos"))]
pub(crate) const EVERY_TYPE: bool = false;

/// A name in a C string.
const MAX_TEXT: usize = 1025;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
const EAI_ADDRFAMILY: c_int = -9;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const EAI_NODATA: c_int = -5;

pub(super) fn look_up(wanted: &Wanted) -> Found {
    no_search();
    match wanted {
        Wanted::Addresses(name) => addresses(name),
        Wanted::Name(address) => name(*address),
        Wanted::Record(..) => Found::Failed,
    }
}

fn addresses(name: &str) -> Found {
    let Ok(name) = CString::new(name) else { return Found::Nothing };
    // SAFETY: all-zero is a valid `addrinfo`.
    let mut hints: libc::addrinfo = unsafe { mem::zeroed() };
    // Both at once: only so is a name without addresses of one family told from one that is not.
    hints.ai_family = libc::AF_UNSPEC;
    // Each address once.
    hints.ai_socktype = libc::SOCK_DGRAM;
    let mut list = ptr::null_mut();
    // SAFETY: a C string and valid hints; the list is freed below and not used afterwards.
    let code =
        unsafe { libc::getaddrinfo(name.as_ptr(), ptr::null(), &raw const hints, &raw mut list) };
    if code != 0 {
        return failure(code);
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: the entries of the list are valid until it is freed.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: the entry's address is of its family, as the function promises.
        let address = unsafe { address_of(entry.ai_addr) };
        if let Some(address) = address.filter(|address| is_useful(*address))
            && !found.contains(&address)
        {
            found.push(address);
        }
        next = entry.ai_next;
    }
    // SAFETY: the list came from getaddrinfo, and nothing refers to it any more.
    unsafe { libc::freeaddrinfo(list) };
    Found::Addresses(found)
}

fn name(address: IpAddr) -> Found {
    let mut text: [c_char; MAX_TEXT] = [0; MAX_TEXT];
    let capacity = libc::socklen_t::try_from(text.len()).unwrap_or(0);
    let ask = |raw: *const libc::sockaddr, len: usize, text: &mut [c_char; MAX_TEXT]| {
        let len = libc::socklen_t::try_from(len).unwrap_or(0);
        // SAFETY: an address of that length and a buffer of that capacity; no service is asked for.
        unsafe {
            libc::getnameinfo(
                raw,
                len,
                text.as_mut_ptr(),
                capacity,
                ptr::null_mut(),
                0,
                libc::NI_NAMEREQD,
            )
        }
    };
    let code = match address {
        IpAddr::V4(ip) => {
            // SAFETY: all-zero is a valid `sockaddr_in`.
            let mut raw: libc::sockaddr_in = unsafe { mem::zeroed() };
            raw.sin_family = family(libc::AF_INET);
            raw.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
            ask((&raw const raw).cast(), size_of_val(&raw), &mut text)
        }
        IpAddr::V6(ip) => {
            // SAFETY: all-zero is a valid `sockaddr_in6`.
            let mut raw: libc::sockaddr_in6 = unsafe { mem::zeroed() };
            raw.sin6_family = family(libc::AF_INET6);
            raw.sin6_addr.s6_addr = ip.octets();
            ask((&raw const raw).cast(), size_of_val(&raw), &mut text)
        }
    };
    if code != 0 {
        return failure(code);
    }
    // SAFETY: the function ends what it writes with a zero within the buffer.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    text.to_str().map_or(Found::Nothing, |text| Found::Name(text.to_owned()))
}

/// The address in a socket address.
///
/// # Safety
///
/// The pointer is null or leads to a socket address that is as long as its family says.
unsafe fn address_of(raw: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller's promise.
    let family = unsafe { raw.as_ref() }?.sa_family;
    match c_int::from(family) {
        libc::AF_INET => {
            // SAFETY: the caller's promise.
            let raw = unsafe { raw.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the caller's promise.
            let raw = unsafe { raw.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(raw.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// A link-local address means nothing without its link, and a message has no place for that.
fn is_useful(address: IpAddr) -> bool {
    !matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn failure(code: c_int) -> Found {
    match code {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        EAI_NODATA | EAI_ADDRFAMILY => Found::Addresses(Vec::new()),
        libc::EAI_NONAME => Found::Nothing,
        _ => Found::Failed,
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2, 10 or 30")]
fn family(family: c_int) -> libc::sa_family_t {
    family as libc::sa_family_t
}

/// Keeps this thread's resolver from trying names in the machine's search domains: the guest has
/// them too, and does so itself.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn no_search() {
    /// The start of glibc's `struct __res_state` (resolv.h).
    #[repr(C)]
    struct ResState {
        retrans: c_int,
        retry: c_int,
        options: std::ffi::c_ulong,
    }
    const RES_DEFNAMES: std::ffi::c_ulong = 0x80;
    const RES_DNSRCH: std::ffi::c_ulong = 0x200;
    unsafe extern "C" {
        fn __res_init() -> c_int;
        fn __res_state() -> *mut ResState;
    }
    // SAFETY: `__res_init` reads resolv.conf into this thread's own state, which `__res_state`
    // leads to for as long as the thread lives.
    unsafe {
        if __res_init() == 0
            && let Some(state) = __res_state().as_mut()
        {
            state.options &= !(RES_DEFNAMES | RES_DNSRCH);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn no_search() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_known_everywhere() {
        let Found::Addresses(found) = look_up(&Wanted::Addresses("localhost".into())) else {
            panic!("no localhost");
        };
        assert!(found.contains(&Ipv4Addr::LOCALHOST.into()), "{found:?}");
        let found = look_up(&Wanted::Name(Ipv4Addr::LOCALHOST.into()));
        assert!(matches!(found, Found::Name(_)), "{found:?}");
    }
}
