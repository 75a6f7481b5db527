//! A user's side of root's helper: networks with a bridge of the host's kernel are started, joined and
//! stopped by it, through sudo, with command lines that `vmlan sudoers` has written down.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmlan_config::{Network, show_mac, vmnet};
use vmlan_link::scm;
use vmlan_wire::Mac;

use crate::core::Cards;

/// Longest answer.
const MAX_ANSWER: usize = 256;

/// Why the helper has not done something.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error("cannot run {program}: {source}")]
    Run { program: String, source: io::Error },
    #[error("`{0}` has to be installed; see how with: vmlan sudoers")]
    Missing(String),
    /// sudo wants a password, or does not know the command.
    #[error(
        "sudo does not let you start this network ({0}); see what it needs with: vmlan sudoers --check"
    )]
    Forbidden(String),
    /// The helper's word.
    #[error("{0}")]
    Refused(String),
    #[error("the helper has answered what makes no sense")]
    Answer,
}

/// Root's helper, for one network.
#[derive(Clone, Debug)]
pub struct Helper {
    start: Vec<String>,
    attach: Vec<String>,
    stop: Vec<String>,
}

/// A network that has been started. It is undone when this is dropped.
#[derive(Debug)]
pub struct Started {
    helper: Helper,
    pub kind: Kind,
}

/// What a network that has been started is like.
#[derive(Debug)]
pub enum Kind {
    /// Addresses and names are to be served on this card, which is on the network's bridge, until it
    /// is taken.
    Served(Option<OwnedFd>),
    /// The network is the one that the host is on. Addresses and names are there already.
    Lan {
        /// Guests and host have the interface side by side, and do not see each other.
        beside: bool,
    },
}

impl Helper {
    /// `None` for a network that needs no root.
    pub fn of(network: &Network) -> Option<Self> {
        let start = vmnet::start(network)?;
        Some(Self { start, attach: vmnet::attach(network), stop: vmnet::stop(network) })
    }

    /// For a bridge that nobody but the caller attaches guests to. `settings` are the helper's
    /// arguments that say what the network is.
    pub fn for_bridge(bridge: &str, settings: &[String]) -> Self {
        let on = |verb: &str| vec![verb.to_owned(), format!("--bridge={bridge}")];
        let start = [on("start"), settings.to_vec()].concat();
        Self { start, attach: on("attach"), stop: on("stop") }
    }

    /// Whether there is a helper at all.
    pub fn check(&self) -> Result<(), HelperError> {
        let helper = vmnet::helper();
        if helper.exists() {
            return Ok(());
        }
        Err(HelperError::Missing(helper.display().to_string()))
    }

    /// Makes the network, or takes over what is left of it.
    pub fn start(&self) -> Result<Started, HelperError> {
        self.check()?;
        let kind = match run(&self.start, None)? {
            (_, Some(card)) => Kind::Served(Some(card)),
            (text, None) if text == "lan" => Kind::Lan { beside: false },
            (text, None) if text == "beside" => Kind::Lan { beside: true },
            _ => return Err(HelperError::Answer),
        };
        Ok(Started { helper: self.clone(), kind })
    }

    /// Makes a card in a network namespace of the caller's. It may be there already.
    pub fn attach(
        &self,
        namespace: BorrowedFd<'_>,
        name: &str,
        mac: Mac,
    ) -> Result<(), HelperError> {
        self.check()?;
        let request = format!("veth {name} {}", show_mac(mac));
        run(&self.attach, Some((&request, Some(namespace)))).map(drop)
    }

    /// Makes a virtual machine's card on the network: an open TAP device that lives as long as its
    /// descriptor, with a `virtio_net_hdr` before each frame. QEMU takes it as
    /// `-netdev tap,id=n0,fd=N,vhost=off` with a card of this MAC address.
    ///
    /// The network has to be there, and stays only as long as it has guests: whoever asks has joined
    /// before ([`stay`](crate::managed::stay), with [`bridged`](crate::managed::Hello::bridged) set),
    /// and holds the connection until the machine is gone. When the daemon dies and another takes
    /// its place, the machine keeps this card, and only the connection is made anew.
    pub fn tap(&self, mac: Mac) -> Result<OwnedFd, HelperError> {
        self.check()?;
        let (_, tap) = run(&self.attach, Some((&format!("tap {}", show_mac(mac)), None)))?;
        tap.ok_or(HelperError::Answer)
    }
}

/// Where guests are beside the host, a machine's card does not go with its descriptor.
impl Cards for Helper {
    fn remove(&self, mac: Mac) -> Result<(), String> {
        let done = run(&self.attach, Some((&format!("gone {}", show_mac(mac)), None)));
        done.map(drop).map_err(|e| e.to_string())
    }
}

impl Started {
    /// The card of whoever serves the network, once.
    pub fn take_card(&mut self) -> Option<OwnedFd> {
        match &mut self.kind {
            Kind::Served(card) => card.take(),
            Kind::Lan { .. } => None,
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Where it is read, in the daemon's log.
        if let Err(e) = run(&self.helper.stop, None) {
            let _ = writeln!(io::stderr(), "vmlan: the network cannot be undone: {e}");
        }
    }
}

/// Runs the helper, with something to say to it. Root needs no sudo.
fn run(
    args: &[String],
    request: Option<(&str, Option<BorrowedFd<'_>>)>,
) -> Result<(String, Option<OwnedFd>), HelperError> {
    let helper = vmnet::helper();
    let failed =
        |source: io::Error| HelperError::Run { program: helper.display().to_string(), source };
    let kind = SocketType::SEQPACKET;
    let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|e| failed(e.into()))?;
    if let Some((text, fd)) = request {
        let fds: Vec<_> = fd.into_iter().collect();
        scm::send_fds(&ours, text.as_bytes(), &fds).map_err(failed)?;
    }
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new(&helper);
        command.env_remove("SUDO_UID");
        command
    } else {
        let mut command = Command::new("sudo");
        command.args(["--non-interactive", "--user", "root", "--group", "root", "--"]);
        command.arg(&helper);
        command
    };
    command.args(args).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| HelperError::Run {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    // Of ours, no copy is left that would keep the socket open.
    drop(command);
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(1 << 16).read_to_string(&mut said).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(refusal(&said));
    }
    let mut answer = [0; MAX_ANSWER];
    let (n, fds) = scm::recv_fds(ours.as_fd(), &mut answer).map_err(failed)?;
    let text = answer.get(..n).and_then(|text| std::str::from_utf8(text).ok());
    Ok((text.ok_or(HelperError::Answer)?.to_owned(), fds.into_iter().next()))
}

/// What was said on standard error, by the helper or by sudo in its place.
fn refusal(said: &str) -> HelperError {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next_back().unwrap_or("it does not say why");
    match lines.find_map(|line| line.strip_prefix("vmlan-helper: ")) {
        Some(why) => HelperError::Refused(why.to_owned()),
        None => HelperError::Forbidden(last.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_word_it_is() {
        let text = refusal("sudo: unable to resolve host\nvmlan-helper: no\n").to_string();
        assert_eq!(text, "no");
        let text = refusal("sudo: a password is required\n").to_string();
        assert!(text.contains("(sudo: a password is required)"), "{text}");
        assert!(matches!(refusal(""), HelperError::Forbidden(_)));
    }
}
