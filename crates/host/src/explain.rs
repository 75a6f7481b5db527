//! Why a listener could not be had, in words: the address, the reason, and the holder or the way
//! out where the system tells.

use rustix::io::Errno;
use vmlan_engine::io::ListenAddr;

use crate::sys;

/// How a listener's address is written in messages.
pub(crate) fn name(at: &ListenAddr) -> String {
    match at {
        ListenAddr::Tcp(addr) => addr.to_string(),
        ListenAddr::Udp(addr) => format!("{addr}/udp"),
        ListenAddr::Unix(path) => path.display().to_string(),
    }
}

/// Why an address could not be listened on.
pub fn bind_failure(at: &ListenAddr, errno: Errno) -> String {
    let shown = name(at);
    match (at, errno) {
        (ListenAddr::Tcp(_) | ListenAddr::Udp(_), Errno::ADDRINUSE) => match sys::holder(at) {
            Some(holder) => format!("{shown} is already in use by {holder}"),
            None => format!("{shown} is already in use"),
        },
        (ListenAddr::Tcp(addr) | ListenAddr::Udp(addr), Errno::ACCESS) if addr.port() < 1024 => {
            format!("cannot listen on {shown}: {}", sys::privileged_port(addr.port()))
        }
        (ListenAddr::Tcp(addr) | ListenAddr::Udp(addr), Errno::ADDRNOTAVAIL) => {
            format!("cannot listen on {shown}: {} is none of this machine's addresses", addr.ip())
        }
        (_, Errno::MFILE) => {
            format!("cannot listen on {shown}: this process has too many files open")
        }
        (ListenAddr::Unix(_), Errno::NAMETOOLONG) => {
            format!("cannot listen on {shown}: the path is too long for a socket")
        }
        _ => format!("cannot listen on {shown}: {}", words(errno)),
    }
}

/// The system's words for an errno, without its number.
pub(crate) fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = words.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_way_out_of_a_privileged_port_is_told() {
        let at = ListenAddr::Udp("[::1]:53".parse().unwrap());
        let text = bind_failure(&at, Errno::ACCESS);
        assert!(text.starts_with("cannot listen on [::1]:53/udp: ports below "), "{text}");
        assert!(text.ends_with("`sysctl net.ipv4.ip_unprivileged_port_start=53` allows it"));
        let at = ListenAddr::Tcp("127.0.0.1:8080".parse().unwrap());
        let text = bind_failure(&at, Errno::ACCESS);
        assert_eq!(text, "cannot listen on 127.0.0.1:8080: permission denied");
    }
}
