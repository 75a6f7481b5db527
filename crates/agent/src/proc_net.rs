//! Listeners as `/proc/net/tcp`, `tcp6`, `udp` and `udp6` show them: for kernels without sock_diag,
//! and for guests without an agent. What is not a listener, or makes no sense, is passed over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::message::{Listener, Proto};

/// The files, and the protocol that each is about.
pub const FILES: [(&str, Proto); 4] = [
    ("/proc/net/tcp", Proto::Tcp),
    ("/proc/net/tcp6", Proto::Tcp),
    ("/proc/net/udp", Proto::Udp),
    ("/proc/net/udp6", Proto::Udp),
];

/// The listeners in such a file's text.
pub fn listeners(text: &str, proto: Proto) -> impl Iterator<Item = Listener> {
    // TCP_LISTEN, and TCP_CLOSE, which for UDP means that it is not connected.
    let wanted = match proto {
        Proto::Tcp => "0A",
        Proto::Udp => "07",
    };
    text.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        let at = address(local)?;
        let is_listener = state == wanted && remote.ends_with(":0000") && at.port() != 0;
        // Whether IPv4 comes in at `::` as well is not told here.
        is_listener.then_some(Listener { proto, at, dual: false })
    })
}

/// `0100007F:1F90`, or with 32 digits: words in the machine's own order of bytes.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |i: usize| u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok();
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let mut octets = [0; 16];
            for (i, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i)?.to_ne_bytes());
            }
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_become_listeners() {
        let text = format!(
            "{HEAD}\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n\
             \u{20}  1: 0F05A8C0:0016 0205A8C0:8000 01 00000000:00000000\n\
             \u{20}  2: 00000000:0000 00000000:0000 0A\n\
             \u{20}  3: 0000ZZ00:0050 00000000:0000 0A\n\
             \u{20}  4: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A\n\
             \u{20}  5: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A\n\
             \u{20}  6\n",
        );
        let found: Vec<String> =
            listeners(&text, Proto::Tcp).map(|listener| listener.at.to_string()).collect();
        assert_eq!(found, ["127.0.0.1:8080", "[::1]:80", "127.0.0.1:81"]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn udp_listens_as_long_as_it_has_no_peer() {
        let text = "x 00000000:0035 00000000:0000 07\nx 00000000:0036 0205A8C0:0035 01\n\
                    x 00000000:0037 0205A8C0:0035 07";
        let found: Vec<u16> = listeners(text, Proto::Udp).map(|l| l.at.port()).collect();
        assert_eq!(found, [53]);
    }
}
