//! The guest's card on the network that the host is on: its IPv4 address comes from there by DHCP
//! (RFC 2131), and is kept by init as long as the guest is there. IPv6 is the kernel's own business.
//!
//! Questions and answers pass by a packet socket, because before there is an address nothing else
//! does. It is open only while an answer is awaited, and sees nothing but answers.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};
use vmlan_link::tap::{InterfaceConfig, configure_interface, remove_address};
use vmlan_netd::unmanaged::{Answer, Client, Lease};
use vmlan_wire::Mac;

use super::{sys, tell};

/// How a guest asks for its address.
#[derive(Clone, Debug)]
pub struct Lan {
    /// What the network's DHCP server is told that the guest is called.
    pub host_name: Option<String>,
}

/// How long a DHCP server may take for a guest that starts.
const PATIENCE: Duration = Duration::from_secs(15);

/// Least wait between questions, which doubles.
const AGAIN: Duration = Duration::from_secs(2);

/// Longest wait between questions of a guest that has no address.
const RARELY: Duration = Duration::from_secs(60);

/// Of networks with less the card has to be told, others have the card's.
const USUAL_MTU: u16 = 1500;

/// Longest answer that is read.
const FRAME: usize = 2048;

/// A card whose address is kept.
#[derive(Debug)]
pub(super) struct Tenant {
    config: InterfaceConfig,
    client: Client,
    lease: Option<Lease>,
    /// Since when the lease runs.
    since: Instant,
    /// The offer that was taken up.
    offer: Option<Lease>,
    /// While an answer is awaited.
    socket: Option<OwnedFd>,
    next: Instant,
    pause: Duration,
}

impl Tenant {
    /// Gets the card its address. The interface is up.
    pub(super) fn new(lan: &Lan, config: &InterfaceConfig) -> Result<Self, String> {
        let now = Instant::now();
        let mac = Mac(config.mac.ok_or("the card has no MAC address")?);
        let mut tenant = Self {
            config: config.clone(),
            client: Client { mac, host_name: lan.host_name.clone(), xid: random() },
            lease: None,
            since: now,
            offer: None,
            socket: None,
            next: now,
            pause: AGAIN,
        };
        let end = now + PATIENCE;
        while tenant.lease.is_none() {
            let now = Instant::now();
            if now >= end {
                return Err(format!(
                    "nobody on the network of {} has given the guest an address by DHCP within {} s",
                    config.name,
                    PATIENCE.as_secs()
                ));
            }
            tenant.turn(now)?;
            if tenant.lease.is_some() {
                break;
            }
            let left = tenant.next.min(end).saturating_duration_since(Instant::now());
            let mut fds: Vec<_> = tenant
                .fd()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .into_iter()
                .collect();
            let _ = rustix::event::poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
        Ok(tenant)
    }

    /// What becomes readable with an answer.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// When [`turn`](Self::turn) wants to be called, if nothing can be read before.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Looks after the address of a guest that is there already.
    pub(super) fn keep(&mut self) {
        if let Err(why) = self.turn(Instant::now()) {
            tell(&why);
        }
    }

    fn turn(&mut self, now: Instant) -> Result<(), String> {
        self.hear(now)?;
        if now < self.next {
            return Ok(());
        }
        if self.lease.as_ref().is_some_and(|lease| now >= self.since + lease.time) {
            self.lose()?;
        }
        let (question, next) = match &self.lease {
            // First at half of the time, then at half of what is left.
            Some(lease) => {
                let left = (self.since + lease.time).saturating_duration_since(now);
                (self.client.renew(lease), now + (left / 2).max(AGAIN).min(left.max(AGAIN)))
            }
            None => {
                // An offer that is not confirmed is forgotten.
                let question = match self.offer.take() {
                    Some(offer) => self.client.request(&offer),
                    None => self.client.discover(),
                };
                let next = now + self.pause;
                self.pause = (self.pause * 2).min(RARELY);
                (question, next)
            }
        };
        self.next = next;
        self.ask(&question)
    }

    fn ask(&mut self, question: &[u8]) -> Result<(), String> {
        let failed = |e: io::Error| format!("cannot ask for an address: {e}");
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => sys::dhcp_socket(&self.config.name).map_err(failed)?,
        };
        // What is not sent now is sent again.
        let _ = rustix::net::send(&socket, question, SendFlags::DONTWAIT);
        self.socket = Some(socket);
        Ok(())
    }

    fn hear(&mut self, now: Instant) -> Result<(), String> {
        let mut frame = [0; FRAME];
        while let Some(socket) = &self.socket {
            let Ok((n, _)) = rustix::net::recv(socket, &mut frame[..], RecvFlags::DONTWAIT) else {
                return Ok(());
            };
            match frame.get(..n).and_then(|frame| self.client.answer(frame)) {
                Some(Answer::Offer(offer)) if self.lease.is_none() => {
                    let question = self.client.request(&offer);
                    self.offer = Some(offer);
                    self.ask(&question)?;
                }
                Some(Answer::Ack(lease)) => self.take(lease, now)?,
                Some(Answer::Nak) => {
                    self.lose()?;
                    self.next = now;
                }
                Some(Answer::Offer(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Has the card be what the server says.
    fn take(&mut self, lease: Lease, now: Instant) -> Result<(), String> {
        self.socket = None;
        self.offer = None;
        self.pause = AGAIN;
        self.since = now;
        self.next = now + (lease.time / 2).max(AGAIN);
        if self.lease.as_ref().is_some_and(|old| is_same(old, &lease)) {
            self.lease = Some(lease);
            return Ok(());
        }
        self.lose()?;
        let config = InterfaceConfig {
            addresses: vec![(lease.address.into(), lease.prefix)],
            gateways: lease.gateway.into_iter().map(IpAddr::V4).collect(),
            mtu: lease.mtu.filter(|mtu| *mtu < USUAL_MTU),
            mac: None,
            ..self.config.clone()
        };
        configure_interface(&config).map_err(|e| e.to_string())?;
        self.lease = Some(lease);
        Ok(())
    }

    /// Gives up the address, if there is one.
    fn lose(&mut self) -> Result<(), String> {
        let Some(lease) = self.lease.take() else { return Ok(()) };
        let removed = remove_address(&self.config.name, lease.address.into(), lease.prefix);
        removed.map_err(|e| e.to_string())
    }
}

/// Whether the card stays as it is.
fn is_same(old: &Lease, new: &Lease) -> bool {
    let card = |lease: &Lease| (lease.address, lease.prefix, lease.gateway, lease.mtu);
    card(old) == card(new)
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Answers are known by the MAC address too.
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::NONBLOCK);
    u32::from_ne_bytes(bytes)
}
