//! From what a machine is to be to what it is made of: its networks joined, its seed and its disk
//! written. Nothing of it runs yet.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use vmlan_config::show_mac;
use vmlan_netd::managed::{Forwarded, Hello, Welcome};
use vmlan_netd::{DnsServer, SocketVmnetUser};
use vmlan_wire::Mac;

use super::super::event::{Events, Status};
use super::super::info;
use super::super::ssh;
use super::super::user::guest_user;
use super::card::{self, Joining};
use super::driver::Driver;
use super::state::State;
use super::{Network, Spec};
use crate::qemu::SLIRP_HOST;
use crate::seed::{Interface, LocalDns, Seed, Trust, env};
use crate::{agent, ports};

/// What a machine is started with.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) cards: Vec<Card>,
    pub(super) joined: Vec<(usize, Joining)>,
    pub(super) users: Vec<(usize, SocketVmnetUser)>,
    /// Where forwards lead to, if a network of vmlan's has them.
    pub(super) ports: Option<ports::Config>,
}

/// A network card.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) mac: Mac,
    pub(super) wire: Wire,
}

/// What a card is connected to. Not every driver has all of them.
#[derive(Debug)]
pub(super) enum Wire {
    /// The machine's end of a pair of datagram sockets, and the longest packet on the network.
    Datagram { socket: OwnedFd, mtu: u16 },
    /// An open TAP device.
    #[cfg(target_os = "linux")]
    Tap(OwnedFd),
    /// The socket of somebody's daemon, with QEMU's framing.
    Stream(PathBuf),
    /// QEMU's own network, with a port of the host that leads to the guest's ssh.
    Slirp { ssh: SocketAddr },
    /// macOS' own network.
    VzNat,
}

/// QEMU's own network.
const SLIRP_DNS: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 3);
const SLIRP_GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 15);

/// What there is of forwards on it.
const SLIRP_PORTS: &str = "on QEMU's own network, ssh forwards the machine's TCP ports and sockets; \
    UDP is not forwarded";

/// How long the agent is waited for before ssh stands in.
const AGENT: Duration = Duration::from_secs(60);

/// A random port that somebody has taken meanwhile is chosen anew this often.
const ATTEMPTS: usize = 5;

pub(super) fn make(
    spec: &Spec,
    driver: &Driver,
    state: &State,
    events: &Events,
) -> Result<Plan, String> {
    let mut plan = Plan { cards: Vec::new(), joined: Vec::new(), users: Vec::new(), ports: None };
    let (mut host, mut local_dns) = (None, None);
    for (i, card) in spec.cards.iter().enumerate() {
        let attachment = &card.attachment;
        let (wire, addresses) = match &card.network {
            Network::Managed(lan) => {
                let (ours, socket) = card::pair()?;
                let join = |forwards: Vec<Forwarded>, ours: OwnedFd| {
                    let hello = Hello {
                        mac: show_mac(attachment.mac),
                        name: Some(spec.instance.name.clone()),
                        hosts: if i == 0 { spec.resolver.hosts.clone() } else { Vec::new() },
                        ipv6: spec.resolver.ipv6.filter(|_| i == 0),
                        plain: i == 0 && !spec.resolver.enabled && spec.resolver.dns.is_empty(),
                        forwards,
                        autoconf: true,
                        ..Hello::default()
                    };
                    Joining::new(lan.clone(), hello, Some(ours))
                };
                let joining = if i == 0 {
                    with_ssh_port(spec, state, &ours, &join)
                } else {
                    join(Vec::new(), ours)
                };
                let joining = joining.map_err(|e| format!("network {}: {e}", lan.label()))?;
                let welcome = joining.welcome();
                for warning in &welcome.warnings {
                    let warning = Some(warning.clone());
                    events.tell(Status { warning, ..Status::default() });
                }
                if i == 0 {
                    host = Some(IpAddr::V4(welcome.gateway));
                    plan.ports = Some(ports::Config {
                        gateways: vec![welcome.gateway.into(), welcome.gateway6.into()],
                        control: Some(lan.control()),
                        name: Some(spec.instance.name.clone()),
                        ..forwards(spec, state, welcome.address)
                    });
                }
                let addresses = given(welcome);
                let wire = Wire::Datagram { socket, mtu: welcome.mtu };
                plan.joined.push((i, joining));
                (wire, addresses)
            }
            #[cfg(target_os = "linux")]
            Network::Bridged { lan, helper } => {
                let hello = Hello {
                    mac: show_mac(attachment.mac),
                    name: Some(spec.instance.name.clone()),
                    bridged: true,
                    autoconf: true,
                    ..Hello::default()
                };
                let failed = |e: String| format!("network {}: {e}", lan.label());
                let joining = Joining::new(lan.clone(), hello, None).map_err(failed)?;
                let tap = helper.tap(attachment.mac).map_err(|e| failed(e.to_string()))?;
                let addresses = given(joining.welcome());
                plan.joined.push((i, joining));
                (Wire::Tap(tap), addresses)
            }
            Network::Vmnet { label, network } => {
                let user = network.join().map_err(|e| format!("network {label}: {e}"))?;
                plan.users.push((i, user));
                (Wire::Stream(network.socket().to_owned()), Vec::new())
            }
            Network::Socket(path) => {
                // It would go on in silence, without a network.
                if !driver.connects_again()
                    && let Err(e) = UnixStream::connect(path)
                {
                    return Err(format!("socket {}: nobody is there: {e}", path.display()));
                }
                (Wire::Stream(path.clone()), Vec::new())
            }
            Network::Slirp(options) => {
                let port = free_port(spec, state)?;
                let ssh = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                local_dns = Some(serve_dns(options.clone())?);
                host = Some(SLIRP_HOST.into());
                plan.ports = Some(forwards(spec, state, SLIRP_GUEST));
                let warning = (!spec.config.plain).then(|| SLIRP_PORTS.into());
                events.tell(Status { warning, ..Status::default() });
                (Wire::Slirp { ssh }, vec![SLIRP_GUEST.into()])
            }
            Network::VzNat => (Wire::VzNat, Vec::new()),
        };
        plan.cards.push(Card { mac: attachment.mac, wire });
        state.add_network(info::Network {
            network: label(&card.network),
            interface: attachment.interface.clone(),
            mac: show_mac(attachment.mac),
            addresses,
            problem: None,
        });
    }
    write_seed(spec, state, events, host, local_dns)?;
    driver.make_disk(spec)?;
    Ok(plan)
}

/// The addresses that a network gives. On one that the host is on, others do.
fn given(welcome: &Welcome) -> Vec<IpAddr> {
    if welcome.lan { Vec::new() } else { vec![welcome.address.into()] }
}

/// What leads to the machine's servers where no daemon of vmlan's does.
fn forwards(spec: &Spec, state: &State, guest: Ipv4Addr) -> ports::Config {
    let files = &spec.instance.files;
    let agent = agent::binary(spec.config.arch.name());
    let stand_in = || ports::Ssh {
        config: files.ssh_config(),
        host: ssh::host(&spec.instance.name),
        after: if agent.is_some() { AGENT } else { Duration::ZERO },
    };
    ports::Config {
        channel: files.agent(),
        forwards: spec.config.forwards.clone().in_force(state.ssh_port()),
        guest,
        gateways: Vec::new(),
        control: None,
        ssh: (!spec.config.plain).then(stand_in),
        name: None,
        uid: guest_user().uid,
    }
}

fn label(network: &Network) -> String {
    match network {
        Network::Socket(path) => format!("socket:{}", path.display()),
        Network::Vmnet { label, .. } => label.clone(),
        Network::VzNat => "vzNAT".into(),
        network => network.lan().map_or_else(|| "slirp".into(), |lan| lan.label()),
    }
}

/// Joins with a port of the host that leads to the guest's ssh: the one that was asked for, the one
/// of last time, or any.
fn with_ssh_port(
    spec: &Spec,
    state: &State,
    ours: &OwnedFd,
    join: &dyn Fn(Vec<Forwarded>, OwnedFd) -> Result<Joining, String>,
) -> Result<Joining, String> {
    let mut attempt = 0;
    loop {
        let port = free_port(spec, state)?;
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
        let ours = ours.try_clone().map_err(|e| e.to_string())?;
        attempt += 1;
        match join(vec![Forwarded { local, port: 22, udp: false }], ours) {
            Err(_) if spec.config.ssh_port.is_none() && attempt < ATTEMPTS && !is_free(port) => {}
            joined => return joined,
        }
    }
}

fn free_port(spec: &Spec, state: &State) -> Result<u16, String> {
    let port = match spec.config.ssh_port {
        Some(port) => port,
        None => match ssh::last_port(&spec.instance.files).filter(|port| is_free(*port)) {
            Some(port) => port,
            None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .and_then(|listener| listener.local_addr())
                .map_err(|e| format!("cannot find a free port: {e}"))?
                .port(),
        },
    };
    state.set_ssh_port(port);
    Ok(port)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Answers questions on two ports of the host until the process ends.
fn serve_dns(options: vmlan_dns::Options) -> Result<LocalDns, String> {
    let (tell, ports) = std::sync::mpsc::channel();
    let work = move || match DnsServer::open(0, 0, options) {
        Ok(mut server) => {
            let _ = tell.send(Ok((server.udp_addr().port(), server.tcp_addr().port())));
            let _ = server.run();
        }
        Err(e) => {
            let _ = tell.send(Err(e.to_string()));
        }
    };
    let thread = thread::Builder::new().name("dns".into()).spawn(work);
    thread.map_err(|e| format!("cannot start a thread: {e}"))?;
    let (udp, tcp) = ports.recv().map_err(|e| e.to_string())??;
    Ok(LocalDns { server: SLIRP_DNS, host: SLIRP_HOST, udp, tcp })
}

/// What the guest is told, and how one gets into it.
fn write_seed(
    spec: &Spec,
    state: &State,
    events: &Events,
    host: Option<IpAddr>,
    local_dns: Option<LocalDns>,
) -> Result<(), String> {
    let files = &spec.instance.files;
    let user = guest_user();
    let (key, public) = ssh::keys(&spec.home).map_err(|e| e.to_string())?;
    let options = ssh::options(&key, &user.name, state.ssh_port());
    fs::write(files.ssh_config(), ssh::config(&spec.instance.name, &options))
        .map_err(|e| format!("{}: {e}", files.ssh_config().display()))?;
    let mut keys = vec![public];
    if spec.config.load_public_keys {
        keys.extend(ssh::own_keys());
    }
    let propagate = spec.config.propagate_proxy_env;
    let of_host = |name: &str| std::env::var(name).ok().filter(|_| propagate);
    let env = env::guest(&spec.config.env, of_host);
    for warning in env.warnings {
        events.tell(Status { warning: Some(warning), ..Status::default() });
    }
    let dns = match &local_dns {
        Some(local) if spec.resolver.dns.is_empty() => vec![local.server.into()],
        _ => spec.resolver.dns.clone(),
    };
    let interfaces = spec.cards.iter().map(|card| Interface {
        mac: card.attachment.mac,
        name: card.attachment.interface.clone(),
        metric: card.attachment.metric,
        default_route: true,
    });
    let seed = Seed {
        instance: spec.instance.name.clone(),
        user,
        keys,
        interfaces: interfaces.collect(),
        dns,
        host,
        env: env.variables,
        ca_certs: Trust::read(&spec.config.ca_certs).map_err(|e| e.to_string())?,
        provision: spec.config.provision.clone(),
        agent: agent::binary(spec.config.arch.name()),
        local_dns,
        plain: spec.config.plain,
    };
    let path = files.seed();
    seed.write(&path).map_err(|e| format!("{}: {e}", path.display()))
}
