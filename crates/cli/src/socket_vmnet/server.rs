//! The part that has the frames: one network's loop, between the guests at the socket and the uplink,
//! without any rights. It ends with its keeper.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use vmlan_dns::{Ipv6, Names, Options, Source};
use vmlan_link::scm;
use vmlan_netd::{Daemon, Next};

use super::keeper::{READY, SERVING, SOCKET, UPLINK};
use super::settings::Settings;
use super::system;

pub(super) fn run(settings: &Settings) -> Result<(), String> {
    let keeper = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
    let mut keeper = UnixStream::from(keeper.map_err(|e| format!("standard input: {e}"))?);
    let uplink = match system::NEEDS_DESCRIPTOR {
        true => Some(hear(&keeper, UPLINK)?),
        false => None,
    };
    let (link, config) = system::open(settings, uplink)?;
    system::give_up_rights()?;
    // Without the right to more files, there are fewer guests.
    vmlan_host::raise_fd_limit();

    let dns = Options { source: Source::default(), names: Names::default(), ipv6: Ipv6::Auto };
    let mut daemon = Daemon::new(config, dns).map_err(|e| e.to_string())?;
    daemon.add_bridge(link).map_err(|e| e.to_string())?;
    say(&mut keeper, READY)?;
    let socket = UnixListener::from(hear(&keeper, SOCKET)?);
    daemon.serve_crowd(socket).map_err(|e| e.to_string())?;
    say(&mut keeper, SERVING)?;
    keeper.set_nonblocking(true).map_err(|e| e.to_string())?;
    daemon.watch(keeper, has_ended).map_err(|e| e.to_string())?;
    daemon.run().map_err(|e| e.to_string())
}

/// A descriptor that the keeper sends.
fn hear(keeper: &UnixStream, word: u8) -> Result<OwnedFd, String> {
    let mut said = [0];
    let (_, fds) = scm::recv_fds(keeper, &mut said).map_err(|e| format!("the keeper: {e}"))?;
    let fd = fds.into_iter().next().filter(|_| said == [word]);
    fd.ok_or_else(|| "the keeper at standard input has ended".into())
}

fn say(keeper: &mut UnixStream, word: u8) -> Result<(), String> {
    keeper.write_all(&[word]).map_err(|e| format!("the keeper: {e}"))
}

/// The keeper says nothing more.
fn has_ended(mut keeper: &UnixStream) -> Next {
    match keeper.read(&mut [0]) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Next::Continue,
        _ => Next::Stop,
    }
}
