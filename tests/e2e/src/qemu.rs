//! A whole guest kernel: Debian's, emulated by QEMU, with busybox and a shell that the test
//! drives. `scripts/guest-image` builds what it boots and documents the shell's protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::binary::target_dir;
use crate::process::Process;

/// An emulated boot takes three seconds alone, and several share two processors.
const BOOT: Duration = Duration::from_secs(90);

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// A booted machine. Killed on drop.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    shell: ChildStdin,
    lines: Receiver<String>,
    console: tempfile::NamedTempFile,
}

/// What a command in the guest came to.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: i32,
    pub text: String,
}

impl Machine {
    /// Boots with one network card behind `-netdev NETDEV,id=n0`.
    #[track_caller]
    pub fn boot(netdev: &str, mac: &str) -> Self {
        Self::boot_by(Command::new(QEMU), netdev, mac)
    }

    /// Boots by a command that takes QEMU's arguments after its own.
    #[track_caller]
    pub fn boot_by(mut command: Command, netdev: &str, mac: &str) -> Self {
        let image = image();
        let console = tempfile::NamedTempFile::new().expect("a temporary file for the console");
        // The device node of KVM may be there and not work: always emulate.
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256"])
            .arg("-kernel")
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initramfs"))
            .args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off"])
            .args(["-serial", &format!("file:{}", console.path().display())])
            .args(["-serial", "stdio"])
            .args(["-netdev", &format!("{netdev},id=n0")])
            .args(["-device", &card(mac)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let shell = process.child().stdin.take().expect("stdin is a pipe");
        let stdout = process.child().stdout.take().expect("stdout is a pipe");
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let machine = Self { process, shell, lines, console };
        machine.reply("boot", BOOT);
        machine
    }

    /// Boots with a card that is an open TAP device.
    #[track_caller]
    pub fn boot_on(tap: &OwnedFd, mac: &str) -> Self {
        // A copy that outlives the start of QEMU.
        let copy = rustix::io::dup(tap).expect("a copy");
        Self::boot(&format!("tap,fd={},vhost=off", copy.as_raw_fd()), mac)
    }

    /// Runs a line of shell in the guest and returns what came of it.
    #[track_caller]
    pub fn try_sh(&mut self, line: &str, within: Duration) -> Reply {
        assert!(!line.contains('\n'), "one line at a time");
        writeln!(self.shell, "{line}").expect("the machine is running");
        self.reply(line, within)
    }

    /// Runs a line of shell that has to succeed and returns its output.
    #[track_caller]
    pub fn sh(&mut self, line: &str, within: Duration) -> String {
        let reply = self.try_sh(line, within);
        assert_eq!(reply.status, 0, "`{line}` in the guest:\n{}", reply.text);
        reply.text
    }

    /// Asks for an address by DHCP and sets up the card with it.
    #[track_caller]
    pub fn dhcp(&mut self) -> String {
        self.sh("ip link set eth0 up", BOOT);
        self.sh("udhcpc -i eth0 -n -q -t 10 -T 1 -O search -O mtu -s /etc/udhcpc.script", BOOT)
    }

    #[track_caller]
    fn reply(&self, line: &str, within: Duration) -> Reply {
        let deadline = Instant::now() + within;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(next) = self.lines.recv_timeout(left) else {
                let console = std::fs::read_to_string(self.console.path()).unwrap_or_default();
                panic!("`{line}` in the guest did not end within {within:?}:\n{text}\n{console}");
            };
            if let Some(status) = next.strip_prefix("@@ ") {
                let status = status.trim().parse().expect("a status");
                return Reply { status, text: text.trim().to_owned() };
            }
            text.push_str(next.trim_end_matches('\r'));
            text.push('\n');
        }
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Without event indexes, because with them QEMU can miss the guest's word that there is more to
/// send: while its socket is full it looks for new buffers without a barrier after it has told
/// where to be woken. Then the guest's transmit queue stands still for ever.
fn card(mac: &str) -> String {
    format!("virtio-net-pci,netdev=n0,mac={mac},romfile=,event_idx=off")
}

#[track_caller]
fn image() -> PathBuf {
    let image = target_dir().join("guest-image");
    assert!(image.join("initramfs").exists(), "no guest to boot: run scripts/guest-image first");
    image
}
