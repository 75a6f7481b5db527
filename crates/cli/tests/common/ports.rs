//! Ports of the host for tests that name them to a program.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that systems pick themselves, so that nobody else gets one between this look and
/// its use.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// Ports next to each other that nobody listens on; the first of them.
pub(crate) fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs that run side by side look in different places.
    let start = process::id() % 100 * 100;
    loop {
        let next = start + u32::from(NEXT.fetch_add(count, Ordering::Relaxed));
        let first = FIRST + u16::try_from(next % u32::from(COUNT)).unwrap();
        let listen = |port| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
                && TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok()
        };
        if (first..first + count).all(listen) {
            return first;
        }
    }
}
