//! `vmlan run --network`: a command on a network that others are on too. The process beside it holds
//! the guest's network card and lends it to the network's daemon; it brings up another daemon, and
//! joins again, when that one dies.

use std::ffi::OsString;
use std::process::ExitCode;

use vmlan_config::raw::RawEntry;
use vmlan_engine::Forward;

/// What the command is on its network.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such guest"))]
pub(super) struct Guest {
    pub(super) name: Option<String>,
    pub(super) forwards: Vec<Forward>,
}

pub(super) fn run(
    command: Vec<OsString>,
    root: bool,
    network: RawEntry,
    guest: Guest,
) -> Result<ExitCode, String> {
    imp::run(command, root, network, guest)
}

#[cfg(target_os = "linux")]
mod imp {
    use std::ffi::CString;
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::ffi::OsStringExt;
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use rustix::event::{PollFd, PollFlags};
    use vmlan_config::raw::At;
    use vmlan_config::{Attachment, LimaHome, Networks, Target};
    use vmlan_engine::io::ListenAddr;
    use vmlan_link::tap::InterfaceConfig;
    use vmlan_netd::managed::{self, Forwarded, Hello, JoinError, Joined, Welcome};
    use vmlan_vm::netns::{self, Supervisor};

    use super::super::imp::control_sockets;
    use super::{ExitCode, Forward, Guest, OsString, RawEntry};
    use crate::network::daemon::Daemon;

    /// How long daemons may come and go under a guest that wants to join.
    const PATIENCE: Duration = Duration::from_secs(20);

    pub(super) fn run(
        command: Vec<OsString>,
        root: bool,
        network: RawEntry,
        guest: Guest,
    ) -> Result<ExitCode, String> {
        let (home, file) = crate::network::load().map_err(|e| e.to_string())?;
        let card = card(&home, &file.networks, network, guest.name.as_deref())?;
        let Target::Lima(name) = &card.target else {
            return Err("run joins networks of mode user-v2 so far, as lima:NAME".into());
        };
        let network = crate::network::find(&file, name).map_err(|e| e.to_string())?;
        let daemon = Daemon::of(&home, network)?;
        let mut hello = Hello {
            addresses: None,
            mac: vmlan_config::show_mac(card.mac),
            name: guest.name,
            forwards: guest.forwards.iter().map(forwarded).collect::<Result<_, _>>()?,
        };
        let welcome = until_joined(&daemon, |stream| managed::ask(stream, &hello))?;
        hello.addresses = Some((welcome.address, welcome.address6));
        let command = command.into_iter().map(|arg| CString::new(arg.into_vec()));
        let guest = netns::Guest {
            command: command.collect::<Result<_, _>>().map_err(|e| e.to_string())?,
            root,
            card: InterfaceConfig {
                name: card.interface,
                mtu: Some(welcome.mtu),
                mac: Some(card.mac.0),
                addresses: vec![
                    (welcome.address.into(), welcome.prefix),
                    (welcome.address6.into(), 64),
                ],
                gateways: vec![welcome.gateway.into(), welcome.gateway6.into()],
            },
            resolver: welcome.dns.into(),
            hidden: control_sockets(),
        };
        let serve = |card: OwnedFd, supervisor: &Supervisor| {
            serve(&card, supervisor, &daemon, &hello, &welcome)
        };
        match netns::run(&guest, &serve) {
            Ok(ending) => ending.pass_on(),
            Err(e) => Err(e.to_string()),
        }
    }

    /// The guest's interface. Without a name it is a new guest each time.
    fn card(
        home: &LimaHome,
        networks: &Networks,
        entry: RawEntry,
        name: Option<&str>,
    ) -> Result<Attachment, String> {
        let dir = match name {
            Some(name) => {
                vmlan_config::host_name(name).map_err(|e| format!("--name {name}: {e}"))?;
                home.instance(name)
            }
            None => {
                let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
                home.instance(&format!("run#{}#{now}", std::process::id()))
            }
        };
        let machine = vmlan_config::machine::id();
        let instance = vmlan_config::Instance { networks, machine: &machine, dir: &dir };
        let resolved = vmlan_config::attachments(&[At::nowhere(entry)], instance);
        let (mut all, _) = resolved.map_err(|found| {
            let found: Vec<_> = found.into_iter().map(|d| d.message).collect();
            format!("--network: {}", found.join("; "))
        })?;
        all.pop().ok_or_else(|| "--network: there is no interface".to_owned())
    }

    fn forwarded(forward: &Forward) -> Result<Forwarded, String> {
        let (local, udp) = match &forward.listen {
            ListenAddr::Tcp(local) => (local, false),
            ListenAddr::Udp(local) => (local, true),
            ListenAddr::Unix(path) => return Err(format!("{}: not a port", path.display())),
        };
        Ok(Forwarded { local: local.to_string(), port: forward.guest.port(), udp })
    }

    /// What the process beside the guest does.
    fn serve(
        card: &OwnedFd,
        supervisor: &Supervisor,
        daemon: &Daemon,
        hello: &Hello,
        welcome: &Welcome,
    ) -> Result<(), String> {
        let mut first = true;
        loop {
            let joined = until_joined(daemon, |s| managed::join(s, hello, card.as_fd()))?;
            if joined.welcome != *welcome {
                let (old, new) = (welcome.address, joined.welcome.address);
                return Err(format!("the network has the address {new} for the guest, not {old}"));
            }
            if std::mem::take(&mut first) {
                supervisor.ready().map_err(|e| e.to_string())?;
            }
            if guest_is_gone(supervisor, &joined).map_err(|e| e.to_string())? {
                return Ok(());
            }
        }
    }

    /// Waits for the end of the guest or of the daemon.
    fn guest_is_gone(supervisor: &Supervisor, joined: &Joined) -> io::Result<bool> {
        loop {
            let mut fds =
                [PollFd::new(supervisor, PollFlags::IN), PollFd::new(joined, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Talks to the network's daemon, to its successor if it ends in between.
    fn until_joined<T>(
        daemon: &Daemon,
        talk: impl Fn(std::os::unix::net::UnixStream) -> Result<T, JoinError>,
    ) -> Result<T, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let stream = daemon.ensure().map_err(|e| e.to_string())?;
            match talk(stream) {
                Err(JoinError::Ended) if Instant::now() < end => {}
                talked => return talked.map_err(|e| e.to_string()),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::{ExitCode, Guest, OsString, RawEntry};

    pub(super) fn run(
        _command: Vec<OsString>,
        _root: bool,
        _network: RawEntry,
        _guest: Guest,
    ) -> Result<ExitCode, String> {
        Err("run needs Linux, whose namespaces it is made of".into())
    }
}
