//! A host of the test's own for networks with a bridge: network, mounts, accounts and sudo of its own,
//! an ordinary user, the helper where it belongs and the sudoers file that `vmlan sudoers` prints.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::binary::{helper, vmlan};
use crate::process::{Process, capture, eventually};

/// How long a step that should be quick may take, on a machine with other work.
const SOON: Duration = Duration::from_secs(30);

/// Puts a namespace beside a host that is the outside: it knows no way back but to the host.
pub const ADD_OUTSIDE: &str = "
    ip netns add outside
    ip link add up0 type veth peer name out0 netns outside
    ip addr add 203.0.113.1/24 dev up0
    ip addr add fd00:77::1/64 dev up0 nodad
    ip link set up0 up
    ip -n outside addr add 203.0.113.2/24 dev out0
    ip -n outside addr add fd00:77::2/64 dev out0 nodad
    ip -n outside link set out0 up
    until [ -n \"$(ip -6 addr show dev up0 scope link -tentative)\" ]; do sleep 0.05; done
    until [ -n \"$(ip -n outside -6 addr show dev out0 scope link -tentative)\" ]; do sleep 0.05; done
";

/// What the host is made of. Everything goes with its last process.
const SETUP: &str = r#"
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/layers/etc /run/layers/etc-work /run/layers/local /run/layers/local-work
    mount -t overlay -o lowerdir=/etc,upperdir=/run/layers/etc,workdir=/run/layers/etc-work none /etc
    mount -t overlay \
        -o lowerdir=/usr/local,upperdir=/run/layers/local,workdir=/run/layers/local-work none /usr/local
    mount -t sysfs sysfs /sys
    mknod -m 666 /run/tun c 10 200
    mount --bind /run/tun /dev/net/tun
    ip link set lo up
    echo 'vmlan-test:x:61234:61234::/run/home:/bin/sh' >>/etc/passwd
    echo 'other-test:x:61235:61235::/run/other:/bin/sh' >>/etc/passwd
    echo 'vmlan-test:*:19000:0:99999:7:::' >>/etc/shadow
    echo 'vmlan-admins:x:61236:vmlan-test' >>/etc/group
    printf 'Defaults use_pty\nroot ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n' >/etc/sudoers
    mkdir -p /run/home/.lima/_config /run/other
    install -D -m 755 "$VMLAN" /usr/local/bin/vmlan
    install -D -o root -g root -m 755 "$HELPER" /usr/local/libexec/vmlan-helper
    cat >/run/home/.lima/_config/networks.yaml <<'END'
paths: {varRun: /run/lima, sudoers: /etc/sudoers.d/lima}
group: vmlan-admins
networks:
  shared: {mode: shared, gateway: 192.168.105.1}
  host: {mode: host, gateway: 192.168.106.1}
END
    chown -R 61234:61234 /run/home
    cp -r /run/home/.lima /run/other
    chown -R 61235:61235 /run/other
"#;

/// The host, as long as this is there.
#[derive(Debug)]
pub struct BridgeHost(Child);

/// Who does something on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    Root,
    /// A member of the group that may start networks.
    User,
    /// An ordinary user otherwise.
    Other,
}

impl BridgeHost {
    /// A host whose administrator has installed the sudoers file.
    pub fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-ec"])
            .arg(format!("{SETUP}\necho ready\nexec cat >/dev/null"))
            .env("VMLAN", vmlan())
            .env("HELPER", helper())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "the host could not be set up");
        let host = Self(child);
        host.install_sudoers();
        host
    }

    /// Does what an administrator does after a change of networks.yaml.
    #[track_caller]
    pub fn install_sudoers(&self) {
        let text = self.run(As::User, "vmlan sudoers");
        std::fs::write(self.path("/run/sudoers"), text).expect("the host's /run can be written");
        self.run(
            As::Root,
            "visudo -cf /run/sudoers && install -o root /run/sudoers /etc/sudoers.d/lima",
        );
    }

    /// A path of the host's as it is seen from outside.
    pub fn path(&self, path: &str) -> String {
        format!("/proc/{}/root{path}", self.0.id())
    }

    /// The process that holds the host's namespaces.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether a process sees the host's files.
    pub fn is_home_of(&self, pid: &str) -> bool {
        let files = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        files(pid).is_some_and(|own| Some(own) == files(&self.0.id().to_string()))
    }

    /// The command that runs a shell's words on the host.
    pub fn command(&self, who: As, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.0.id().to_string(), "-n", "-m", "--"]);
        let account = match who {
            As::Root => None,
            As::User => Some(("vmlan-test", "61234", "/run/home")),
            As::Other => Some(("other-test", "61235", "/run/other")),
        };
        if let Some((name, number, home)) = account {
            command.args(["setpriv", "--reuid", name, "--regid", number, "--init-groups"]);
            command.args(["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]);
            command.arg(format!("HOME={home}"));
        }
        command.args(["sh", "-ec", script]);
        command
    }

    pub fn output(&self, who: As, script: &str) -> Output {
        capture(&mut self.command(who, script), SOON)
    }

    /// What a shell's words say on standard output; they must succeed.
    #[track_caller]
    pub fn run(&self, who: As, script: &str) -> String {
        crate::process::run(&mut self.command(who, script), SOON)
    }

    /// What a shell's words say on standard error; they must fail.
    #[track_caller]
    pub fn fail(&self, who: As, script: &str) -> String {
        let output = self.output(who, script);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{script} should fail, and says {said}");
        said
    }

    /// A guest that runs until this is dropped; `network` as for `--network`.
    #[track_caller]
    pub fn guest(&self, network: &str, name: &str) -> RunningGuest {
        let script = format!(
            "exec vmlan run --network {network} --name {name} -- \
             sh -c 'ip -4 -o addr show lima0; exec cat >/dev/null'"
        );
        let mut command = self.command(As::User, &script);
        let mut process = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let out = process.child().stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).expect("a line");
        let word = line.split_whitespace().find(|word| word.contains('/'));
        let address = word.and_then(|word| word.split('/').next());
        let address = address.unwrap_or_else(|| panic!("no address: {}", process.stderr()));
        RunningGuest { address: address.to_owned(), process }
    }

    /// A machine's card on a network that is there, as whoever starts machines for the ordinary user
    /// asks for it.
    #[track_caller]
    pub fn tap(&self, bridge: &str, mac: &str) -> OwnedFd {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let (ours, mut helper) = self.helper(bridge, log.as_file());
        vmlan_link::scm::send_fds(&ours, format!("tap {mac}").as_bytes(), &[]).expect("a request");
        let ended = helper.wait(SOON);
        let said = std::fs::read_to_string(log.path()).expect("a file");
        assert!(ended.success(), "{said}");
        let (_, fds) = vmlan_link::scm::recv_fds(&ours, &mut [0; 64]).expect("an answer");
        fds.into_iter().next().expect("a card")
    }

    /// Has sudo run the helper for the ordinary user, who wants a card on a network that is there and has
    /// yet to say which. What it says goes to `log`.
    #[track_caller]
    pub fn helper(&self, bridge: &str, log: &File) -> (OwnedFd, Process) {
        // The helper wants to see the user's own socket.
        let pair = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let uid = rustix::fs::Uid::from_raw(61234);
                rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
                let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
                socketpair(family, SocketType::SEQPACKET, flags, None).expect("a socket pair")
            });
            made.join().expect("a thread")
        });
        let (ours, theirs) = pair;
        let helper = "exec sudo -n -u root -g root -- /usr/local/libexec/vmlan-helper";
        let mut command =
            self.command(As::User, &format!("{helper} attach --bridge={bridge} 2>&1"));
        let log = log.try_clone().expect("a second handle of the file");
        (ours, Process::spawn(command.stdin(theirs).stdout(log)))
    }

    /// Everything that a network may change, a fact in a line; less what passes with time.
    pub fn listing(&self) -> Vec<String> {
        let text = self.run(
            As::Root,
            "ip -d link; ip addr; ip route; ip -6 route; nft list ruleset
             sysctl -a 2>/dev/null -r '^net\\.ipv[46]\\.(conf|ip_forward)' | sort
             find /run -mindepth 1 -path /run/home -prune -o -path /run/other -prune -o -path /run/layers -prune -o \
                -path '/run/sudo*' -prune -o -printf '%p %M %U %G %s %l\\n' | sort",
        );
        let stays = |line: &str| {
            let words: Vec<_> = line.split_whitespace().filter(|w| *w != "tentative").collect();
            let passes =
                |word: &str| word.contains("_timer") || matches!(word, "state" | "expires");
            let after = |at: usize| at > 0 && passes(words[at - 1]);
            let words = words.iter().enumerate().filter(|(at, _)| !after(*at)).map(|(_, w)| *w);
            words.collect::<Vec<_>>().join(" ")
        };
        text.lines().map(stays).collect()
    }

    /// Waits until the last daemon has ended and everything is as it was.
    #[track_caller]
    pub fn await_listing(&self, before: &[String]) {
        let mut now = Vec::new();
        let same = || {
            now = self.listing();
            (now == before).then_some(())
        };
        let end = std::time::Instant::now() + SOON;
        let mut same = same;
        while same().is_none() {
            if std::time::Instant::now() > end {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let only = |a: &[String], b: &[String]| {
            a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>()
        };
        assert!(now == before, "new: {:#?}\nlost: {:#?}", only(&now, before), only(before, &now));
    }

    /// Waits until a shell's words succeed.
    #[track_caller]
    pub fn eventually(&self, script: &str) {
        self.eventually_within(SOON, script);
    }

    #[track_caller]
    pub fn eventually_within(&self, time: Duration, script: &str) {
        let ask = || self.output(As::Root, script).status.success().then_some(());
        eventually(script, time, ask);
    }
}

impl Default for BridgeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for BridgeHost {
    fn drop(&mut self) {
        // Daemons that are still there end by themselves, without guests.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A command in a namespace guest.
#[derive(Debug)]
pub struct RunningGuest {
    pub address: String,
    pub process: Process,
}

impl RunningGuest {
    /// A shell's words in the guest's network namespace, with the host's files.
    #[track_caller]
    pub fn can(&self, script: &str) -> bool {
        self.can_within(SOON, script)
    }

    #[track_caller]
    pub fn can_within(&self, time: Duration, script: &str) -> bool {
        capture(&mut self.command(script), time).status.success()
    }

    /// What a shell's words say on standard output; they must succeed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        crate::process::run(&mut self.command(script), SOON)
    }

    /// The command that runs a shell's words in the guest's network and mount namespaces.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init(), "-n", "-m", "--", "sh", "-ec", script]);
        command
    }

    /// A process of the guest's.
    fn init(&self) -> String {
        let own = std::fs::read_link("/proc/self/ns/pid").expect("a namespace");
        for pid in self.processes() {
            let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid"));
            if namespace.is_ok_and(|namespace| namespace != own) {
                return pid;
            }
        }
        panic!("the guest has no process: {}", self.process.stderr())
    }

    /// `vmlan run`, and all that it has started.
    pub fn processes(&self) -> Vec<String> {
        family(self.process.id())
    }
}

/// A process, and all that it has started.
pub fn family(pid: u32) -> Vec<String> {
    let mut found = vec![pid.to_string()];
    let mut looked_at = 0;
    while let Some(pid) = found.get(looked_at) {
        looked_at += 1;
        // Each of its threads has children of its own.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
        let children = threads.flatten().map(|thread| {
            std::fs::read_to_string(thread.path().join("children")).unwrap_or_default()
        });
        let children: Vec<String> = children.collect();
        found.extend(children.iter().flat_map(|c| c.split_whitespace()).map(str::to_owned));
    }
    found
}
