//! A guest's card on a configured network. The process beside the guest lends the card to the
//! network's daemon, or has root's helper make it on the network's bridge; it brings up another
//! daemon, and joins again, when that one dies.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use vmlan_config::{Attachment, HostResolver, LimaHome, Network};
use vmlan_engine::Forward;
use vmlan_engine::io::ListenAddr;
use vmlan_link::tap::InterfaceConfig;
use vmlan_netd::managed::{self, Forwarded, Hello, Joined, Welcome};
use vmlan_netd::vmnet::Helper;
use vmlan_vm::netns::{Lan, Supervisor};
use vmlan_wire::Mac;

use super::Args;
use crate::Failure;
use crate::network::daemon::Daemon;

/// How long daemons may come and go until the card has been made.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Managed {
    daemon: Daemon,
    /// Makes the card, on a network with a bridge.
    helper: Option<Helper>,
    mac: Mac,
    interface: String,
    hello: Hello,
    welcome: Welcome,
    /// In place of the network's own name server.
    dns: Vec<IpAddr>,
}

impl Managed {
    /// Learns from the network's daemon, which is started if there is none, what the card is to be
    /// configured with.
    pub(super) fn ask(
        home: &LimaHome,
        network: &Network,
        attachment: &Attachment,
        args: &Args,
        first: bool,
    ) -> Result<Self, Failure> {
        let daemon = Daemon::of(home, network).map_err(Failure::Failed)?;
        let forwards = args.publish.iter().flat_map(|publish| &publish.0).filter(|_| first);
        let resolver = if first { args.names.of_guest(home)? } else { HostResolver::default() };
        let mut hello = Hello {
            addresses: None,
            hosts: resolver.hosts,
            ipv6: resolver.ipv6,
            plain: !resolver.enabled && resolver.dns.is_empty(),
            bridged: false,
            autoconf: false,
            mac: vmlan_config::show_mac(attachment.mac),
            name: args.name.clone(),
            forwards: forwards.map(forwarded).collect::<Result<_, _>>().map_err(Failure::Failed)?,
        };
        let welcome =
            managed::until_joined(|| connect(&daemon), |stream| managed::ask(stream, &hello));
        let welcome = welcome.map_err(Failure::Failed)?;
        for warning in &welcome.warnings {
            crate::tell(warning);
        }
        hello.addresses = Some((welcome.address, welcome.address6));
        let helper = Helper::of(network);
        hello.bridged = helper.is_some();
        let (mac, interface) = (attachment.mac, attachment.interface.clone());
        Ok(Self { daemon, helper, mac, interface, hello, welcome, dns: resolver.dns })
    }

    /// The card is made by root's helper.
    pub(super) fn is_bridged(&self) -> bool {
        self.helper.is_some()
    }

    /// The guest gets its addresses from the network that the host is on.
    pub(super) fn is_lan(&self) -> bool {
        self.welcome.lan
    }

    /// How it asks for them.
    pub(super) fn lan(&self) -> Option<Lan> {
        let host_name = self.hello.name.as_deref().and_then(|n| vmlan_config::host_name(n).ok());
        self.is_lan().then_some(Lan { host_name })
    }

    pub(super) fn resolvers(&self) -> Vec<IpAddr> {
        if self.dns.is_empty() { vec![self.welcome.dns.into()] } else { self.dns.clone() }
    }

    pub(super) fn card(&self) -> InterfaceConfig {
        let welcome = &self.welcome;
        if welcome.lan {
            return InterfaceConfig { accept_ra: true, ..InterfaceConfig::default() };
        }
        InterfaceConfig {
            mtu: Some(welcome.mtu),
            addresses: vec![
                (welcome.address.into(), welcome.prefix),
                (welcome.address6.into(), 64),
            ],
            gateways: match welcome.isolated {
                true => Vec::new(),
                false => vec![welcome.gateway.into(), welcome.gateway6.into()],
            },
            ..InterfaceConfig::default()
        }
    }

    pub(super) fn serve(&self, card: &OwnedFd, supervisor: &Supervisor) -> Result<(), String> {
        let mut first = true;
        let patience = Instant::now() + PATIENCE;
        loop {
            if !self.daemon.is_configured() {
                return Err(format!("network `{}` has been deleted", self.daemon.name));
            }
            let joined = managed::until_joined(
                || connect(&self.daemon),
                |stream| match self.helper {
                    Some(_) => managed::stay(stream, &self.hello),
                    None => managed::join(stream, &self.hello, card.as_fd()),
                },
            )?;
            if !joined.welcome.is_same_card(&self.welcome) {
                let (old, new) = (self.welcome.address, joined.welcome.address);
                return Err(format!("the network has the address {new} for the guest, not {old}"));
            }
            // The daemon before may have been a child.
            managed::reap();
            if first {
                // Only now: until a guest stays, the daemon may end, and the bridge with it.
                match self.attach(card.as_fd()) {
                    Err(_) if has_ended(&joined) && Instant::now() < patience => continue,
                    attached => attached?,
                }
                supervisor.ready().map_err(|e| e.to_string())?;
                first = false;
            }
            if guest_is_gone(supervisor, &joined).map_err(|e| e.to_string())? {
                return Ok(());
            }
        }
    }

    /// Has root's helper make the card in the guest's namespace, on a network with a bridge.
    fn attach(&self, namespace: BorrowedFd<'_>) -> Result<(), String> {
        let Some(helper) = &self.helper else { return Ok(()) };
        helper.attach(namespace, &self.interface, self.mac).map_err(|e| e.to_string())
    }
}

fn forwarded(forward: &Forward) -> Result<Forwarded, String> {
    let (local, udp) = match &forward.listen {
        ListenAddr::Tcp(local) => (local, false),
        ListenAddr::Udp(local) => (local, true),
        ListenAddr::Unix(path) => return Err(format!("{}: not a port", path.display())),
    };
    Ok(Forwarded { local: local.to_string(), port: forward.guest.port(), udp })
}

fn connect(daemon: &Daemon) -> Result<UnixStream, String> {
    daemon.ensure().map_err(|e| e.to_string())
}

/// Whether the daemon is there no more.
fn has_ended(joined: &Joined) -> bool {
    let mut fds = [PollFd::new(joined, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())) != Ok(0)
}

/// Waits for the end of the guest or of the daemon.
fn guest_is_gone(supervisor: &Supervisor, joined: &Joined) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::new(supervisor, PollFlags::IN), PollFd::new(joined, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
