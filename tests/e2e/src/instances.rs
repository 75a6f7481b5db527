//! A host for instances: a network, accounts, a home and processes of its own, an ordinary user who
//! calls `vmlan start`, and the images that `scripts/machine-images` builds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::binary::{target_dir, vmlan};
use crate::netns::{Netns, SOON};
use crate::process::{capture, eventually, run};
use crate::world::host_and_outside;

/// How long a command may take that waits for an emulated machine beside others.
pub const PATIENT: Duration = Duration::from_secs(180);

const USER: u32 = 61234;

/// What the host is made of, below a home that is a directory of the test's. All of it, and every
/// process, goes with the first one.
const SETUP: &str = r#"
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/layers/etc /run/layers/work /run/machines /run/home /run/bin
    mount -t overlay -o lowerdir=/etc,upperdir=/run/layers/etc,workdir=/run/layers/work none /etc
    mount --bind "$MACHINES" /run/machines
    mount --bind "$HOME_DIR" /run/home
    rm -f /etc/resolv.conf
    echo 'nameserver 198.51.100.2' >/etc/resolv.conf
    echo 'vmlan-test:x:61234:61234::/run/home:/bin/sh' >>/etc/passwd
    echo 'vmlan-test:x:61234:' >>/etc/group
    install -m 755 "$VMLAN" /run/bin/vmlan
    # KVM's node may be there and not work.
    [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm
"#;

/// The first process waits for the end of all others, as its like do, and for its own.
const LIVE: &str = "exec 3<&0; echo ready; cat <&3 >/dev/null & wait $!";

/// The host, as long as this is there.
#[derive(Debug)]
pub struct MachineHost {
    supervisor: Child,
    /// Its first process.
    init: String,
    home: TempDir,
    pub net: Netns,
    /// The next machine beyond it.
    pub outside: Netns,
}

/// What an instance is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The machine in memory, up in seconds.
    Small,
    /// The whole Debian.
    Debian,
    /// The machine in memory, for another processor than tests run on.
    Arm,
}

impl MachineHost {
    #[track_caller]
    pub fn new() -> Self {
        let machines = target_dir().join("machines");
        let built = machines.join("small.initramfs").exists();
        assert!(built, "no machines to boot: run scripts/machine-images first");
        let home = tempfile::tempdir().expect("a temporary directory");
        chown(home.path(), Some(USER), Some(USER)).expect("root may give directories away");
        let (net, outside) = host_and_outside();
        let mut command = net.command("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"])
            .arg(format!("{SETUP}\n{LIVE}"))
            .env("VMLAN", vmlan())
            .env("MACHINES", machines)
            .env("HOME_DIR", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut supervisor = command.spawn().expect("unshare runs");
        let mut line = String::new();
        let out = supervisor.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "the host could not be set up");
        let children = format!("/proc/{0}/task/{0}/children", supervisor.id());
        let init = fs::read_to_string(children).expect("unshare is there").trim().to_owned();
        Self { supervisor, init, home, net, outside }
    }

    /// A directory of the host's as it is seen from outside.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The directory of an instance.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.home().join(".lima").join(name)
    }

    /// The command that runs a shell's words on the host as the ordinary user.
    pub fn command(&self, script: &str) -> Command {
        let id = USER.to_string();
        let mut command = self.as_root();
        command.args(["setpriv", "--reuid", &id, "--regid", &id, "--init-groups"]);
        command.args(["env", "-i", "PATH=/run/bin:/usr/bin:/bin:/usr/sbin:/sbin"]);
        command.args(["HOME=/run/home", "USER=vmlan-test", "sh", "-ec", &format!("cd; {script}")]);
        command
    }

    /// The command that runs one as root.
    fn as_root(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "-n", "-m", "-p", "--"]);
        command
    }

    pub fn output(&self, script: &str) -> Output {
        capture(&mut self.command(script), PATIENT)
    }

    /// What a shell's words say on standard output; they must succeed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        run(&mut self.command(script), PATIENT).trim().to_owned()
    }

    /// What a shell's words say on standard output, as root; they must succeed.
    #[track_caller]
    pub fn root(&self, script: &str) -> String {
        run(self.as_root().args(["sh", "-ec", script]), PATIENT).trim().to_owned()
    }

    /// What a shell's words say on standard error; they must fail.
    #[track_caller]
    pub fn fail(&self, script: &str) -> String {
        let output = self.output(script);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{script} should fail, and says {said}");
        said
    }

    /// Waits until a shell's words succeed, and returns what they say.
    #[track_caller]
    pub fn until(&self, script: &str, within: Duration) -> String {
        eventually(script, within, || {
            let output = self.output(script);
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success().then_some(said)
        })
    }

    /// Writes NAME.yaml: a machine of an image, and these lines besides.
    #[track_caller]
    pub fn describe(&self, name: &str, image: Image, lines: &str) {
        let (files, memory, disk) = match image {
            Image::Small => ("small", "256MiB", "16MiB"),
            Image::Debian => ("debian", "768MiB", "3GiB"),
            Image::Arm => ("arm", "256MiB", "16MiB"),
        };
        let (arch, kernel, console) = match image {
            Image::Small | Image::Debian => ("x86_64", "vmlinuz", "ttyS0"),
            Image::Arm => ("aarch64", "arm.vmlinuz", "ttyAMA0"),
        };
        let text = format!(
            "arch: {arch}\n\
             images:\n\
             - location: /run/machines/{files}.raw\n  \
               arch: {arch}\n  \
               kernel:\n    location: /run/machines/{kernel}\n    \
                 cmdline: console={console} {CMDLINE}\n  \
               initrd:\n    location: /run/machines/{files}.initramfs\n\
             cpus: 1\nmemory: {memory}\ndisk: {disk}\n{lines}\n"
        );
        fs::write(self.home().join(format!("{name}.yaml")), text).expect("a file in the home");
    }

    /// Makes an instance of the small machine and starts it; what that says.
    #[track_caller]
    pub fn start(&self, name: &str, lines: &str) -> String {
        self.describe(name, Image::Small, lines);
        self.run(&format!("vmlan start {name}.yaml 2>&1"))
    }

    /// What a shell's words say in a machine, where they are root's.
    #[track_caller]
    pub fn guest(&self, name: &str, script: &str) -> String {
        let words = script.replace('\'', r"'\''");
        self.run(&format!("ssh -F .lima/{name}/ssh.config -l root lima-{name} '{words}' 2>&1"))
    }

    /// What `vmlan list --json` says of an instance.
    #[track_caller]
    pub fn listed(&self, name: &str) -> Option<Value> {
        let lines = self.run("vmlan list --json");
        let all = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        all.into_iter().find(|one| one["name"] == name)
    }

    /// The state of an instance in `vmlan list`.
    #[track_caller]
    pub fn status(&self, name: &str) -> String {
        let one = self.listed(name).unwrap_or_else(|| panic!("no instance {name} is listed"));
        one["status"].as_str().expect("a state").to_owned()
    }

    /// The number of a process of an instance's, on the host.
    #[track_caller]
    pub fn pid(&self, name: &str, file: &str) -> String {
        let text = fs::read_to_string(self.dir(name).join(file));
        text.expect("a file with the number of a process").trim().to_owned()
    }

    /// The processes on the host whose command lines have this word.
    #[track_caller]
    pub fn processes(&self, word: &str) -> Vec<String> {
        let all = self.root("ps -N -p 1 -o pid= -o args= -ww");
        all.lines().filter(|line| line.contains(word)).map(|line| line.trim().to_owned()).collect()
    }

    /// Waits until there is no such process.
    #[track_caller]
    pub fn await_end(&self, word: &str) {
        let deadline = Instant::now() + SOON;
        while let left @ [_, ..] = &self.processes(word)[..] {
            assert!(Instant::now() < deadline, "still there: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

const CMDLINE: &str = "quiet panic=-1 random.trust_cpu=on mitigations=off systemd.show_status=0";

impl Default for MachineHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MachineHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs =
                self.output("vmlan list; tail -n 30 .lima/*/ha.std*.log .lima/*/serial*.log");
            eprintln!("--- the host\n{}---", String::from_utf8_lossy(&logs.stdout));
        }
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}
