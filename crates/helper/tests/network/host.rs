//! A host of the test's own: network, mount and /run of its own, held by a process; guests'
//! namespaces; and the helper, as a user would start it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// A user that is nobody on this machine.
pub(crate) const USER: u32 = 61_234;
pub(crate) const OTHER: u32 = 61_235;

/// Something that holds namespaces until it is dropped.
pub(crate) struct Holder(Child);

impl Holder {
    /// Waits until the namespaces are as they should be.
    fn new(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a holder");
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn enter(&self, kinds: &[&str], program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.0.id().to_string()]).args(kinds).arg("--").arg(program);
        command
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn network(&self) -> OwnedFd {
        std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap().into()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends with its standard input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub(crate) struct Host(Holder);

impl Host {
    pub(crate) fn new() -> Self {
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs tmpfs /run && mount -t sysfs sysfs /sys && \
                      ip link set lo up && echo ready && exec cat >/dev/null";
        command.args(["--net", "--mount", "sh", "-c", script]);
        Self(Holder::new(command))
    }

    pub(crate) fn network(&self) -> OwnedFd {
        self.0.network()
    }

    /// A shell's words on the host, which must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.0.enter(&["-n", "-m"], "sh").args(["-ec", script]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{script}: {}", text(output.stderr));
        text(output.stdout)
    }

    pub(crate) fn can(&self, script: &str) -> bool {
        let mut command = self.0.enter(&["-n", "-m"], "sh");
        command.args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    /// Everything that a network may change.
    pub(crate) fn listing(&self) -> Listing {
        let text = self.sh("ip -d link; ip addr; ip route; ip -6 route; nft list ruleset; \
             sysctl -a -r '^net\\.ipv[46]\\.(conf|ip_forward)' | sort; find /run -printf '%p %M %U %G %s %l\\n' | sort");
        // Less what passes with time.
        let stays = |line: &str| {
            let words: Vec<_> = line.split_whitespace().filter(|w| *w != "tentative").collect();
            let known = |word: &str| word.contains("_timer") || word == "state";
            let after = |at: usize| at > 0 && known(words[at - 1]);
            let words = words.iter().enumerate().filter(|(at, _)| !after(*at)).map(|(_, w)| *w);
            words.collect::<Vec<_>>().join(" ")
        };
        Listing(text.lines().map(stays).collect())
    }

    /// Starts the helper for a user; its standard input is the other end of the socket.
    pub(crate) fn helper(&self, uid: u32, args: &str) -> Helper {
        let (ours, theirs) = as_user(uid, || {
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap()
        });
        set_socket_timeout(&ours, Timeout::Recv, Some(Duration::from_secs(20))).unwrap();
        let child = self.command(uid, args).stdin(theirs).spawn().unwrap();
        Helper { child, socket: ours }
    }

    /// The helper with any standard input.
    pub(crate) fn command(&self, uid: u32, args: &str) -> Command {
        let mut command = self.0.enter(&["-n", "-m"], env!("CARGO_BIN_EXE_vmlan-helper"));
        command.args(args.split(' ')).env("SUDO_UID", uid.to_string()).stderr(Stdio::piped());
        command
    }

    /// What the helper says to arguments that need no socket.
    pub(crate) fn run(&self, uid: u32, args: &str) -> Result<(), String> {
        told(&self.command(uid, args).stdin(Stdio::null()).output().unwrap())
    }

    /// Starts a network; the TAP is who serves there.
    #[track_caller]
    pub(crate) fn start(&self, uid: u32, args: &str) -> OwnedFd {
        let started = self.helper(uid, &format!("start {args}")).end();
        let (text, tap) = started.unwrap();
        assert_eq!(text, "ready");
        tap.expect("a TAP")
    }

    /// Gives a guest a card with addresses on it.
    #[track_caller]
    pub(crate) fn attach(&self, uid: u32, bridge: &str, guest: &Guest, mac: &str, address: &str) {
        let helper = self.helper(uid, &format!("attach --bridge={bridge}"));
        helper.say(&format!("veth eth0 {mac}"), Some(guest.0.network().as_fd()));
        assert_eq!(helper.end().unwrap().0, "attached");
        guest.sh(&format!("ip link set eth0 up; ip addr add {address}/24 dev eth0"));
    }
}

/// Everything that a network may change, a fact in a line.
#[derive(Debug)]
pub(crate) struct Listing(Vec<String>);

impl Listing {
    #[track_caller]
    pub(crate) fn assert_same(&self, before: &Self) {
        let only = |a: &Self, b: &Self| {
            a.0.iter().filter(|line| !b.0.contains(line)).cloned().collect::<Vec<_>>()
        };
        let (new, lost) = (only(self, before), only(before, self));
        assert!(new.is_empty() && lost.is_empty(), "new: {new:#?}\nlost: {lost:#?}");
        assert_eq!(self.0.len(), before.0.len());
    }
}

/// A network namespace that an ordinary user has made.
pub(crate) struct Guest(pub(crate) Holder);

impl Guest {
    pub(crate) fn new(uid: u32) -> Self {
        let mut command = Command::new("setpriv");
        let script = "ip link set lo up && echo ready && exec cat >/dev/null";
        command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups"]);
        command.args(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script]);
        Self(Holder::new(command))
    }

    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.0.enter(&["-n"], "sh").args(["-ec", script]).output();
        let output = output.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{script}: {}", text(output.stderr));
        text(output.stdout)
    }

    pub(crate) fn can(&self, script: &str) -> bool {
        let mut command = self.0.enter(&["-n"], "sh");
        command.args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }
}

/// A run of the helper.
pub(crate) struct Helper {
    child: Child,
    socket: OwnedFd,
}

impl Helper {
    pub(crate) fn say(&self, text: &str, fd: Option<BorrowedFd<'_>>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            beside.push(SendAncillaryMessage::ScmRights(fds));
        }
        let bytes = [IoSlice::new(text.as_bytes())];
        sendmsg(&self.socket, &bytes, &mut beside, SendFlags::NOSIGNAL).unwrap();
    }

    /// Kills it after a while, unless it has ended.
    pub(crate) fn kill_after(mut self, time: Duration) {
        std::thread::sleep(time);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it answers, or why it failed.
    pub(crate) fn end(self) -> Result<(String, Option<OwnedFd>), String> {
        told(&self.child.wait_with_output().unwrap())?;
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let n = recvmsg(&self.socket, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC);
        let n = n.unwrap().bytes;
        let fd = beside.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((String::from_utf8(bytes[..n].to_vec()).unwrap(), fd))
    }
}

fn told(output: &Output) -> Result<(), String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}

/// Calls `f` in a thread of another user's.
fn as_user<T: Send>(uid: u32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let uid = rustix::fs::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            f()
        });
        thread.join().unwrap()
    })
}
