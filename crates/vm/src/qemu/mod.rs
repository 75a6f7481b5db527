//! Machines by QEMU: its command line, made of what a machine is to be. Which program and which
//! accelerator are [`program`]'s and [`accel`]'s business, what a running machine is told [`qmp`]'s.
//!
//! A network card is a datagram socket whose other end is the network's, so that a daemon that comes
//! back finds the machine without QEMU hearing of it.

pub mod accel;
pub mod program;
pub mod qmp;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use vmlan_agent::message::CHANNEL;
use vmlan_config::instance::Arch;
use vmlan_config::show_mac;
use vmlan_wire::Mac;

use accel::Accel;

use crate::disk::Format;
use crate::kernel::Kernel;

/// All that QEMU is told of a machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub arch: Arch,
    pub accel: Accel,
    pub cpus: u32,
    /// In bytes.
    pub memory: u64,
    pub disk: PathBuf,
    pub format: Format,
    pub seed: PathBuf,
    pub kernel: Option<Kernel>,
    /// Where the architecture has none of its own.
    pub firmware: Option<PathBuf>,
    pub cards: Vec<Card>,
    pub qmp: PathBuf,
    pub pidfile: PathBuf,
    /// Where the guest's agent is to be heard.
    pub agent: PathBuf,
    pub serial: PathBuf,
    pub serial_log: PathBuf,
}

/// A network card.
#[derive(Clone, Debug)]
pub struct Card {
    pub mac: Mac,
    pub wire: Wire,
}

/// What a card is connected to.
#[derive(Clone, Debug)]
pub enum Wire {
    /// An inherited datagram socket.
    Datagram(RawFd),
    /// An inherited TAP device.
    Tap(RawFd),
    /// The socket of somebody's daemon, tried again when the daemon is gone if that can be.
    Stream { path: PathBuf, again: Again },
    /// QEMU's own network, with a port of the host that leads to the guest's ssh.
    User { ssh: SocketAddr },
}

/// How QEMU is told to connect again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    Never,
    /// QEMU 8.0 and 9.1.
    Seconds,
    /// Since QEMU 9.2.
    Milliseconds,
}

/// The host on QEMU's own network.
pub const SLIRP_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 5, 2);

impl Machine {
    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Args::default();
        args.add("-name", format!("lima-{}", self.name));
        for flag in ["-nodefaults", "-no-user-config"] {
            args.0.push(flag.into());
        }
        args.add("-display", "none");
        args.add("-machine", format!("{},accel={}", board(self.arch), self.accel.name()));
        args.add("-cpu", self.accel.cpu());
        args.add("-smp", self.cpus.to_string());
        args.add("-m", (self.memory >> 20).to_string());
        if let Some(firmware) = &self.firmware {
            args.add("-bios", firmware.clone());
        }
        if let Some(kernel) = &self.kernel {
            args.add("-kernel", kernel.file.clone());
            if let Some(initrd) = &kernel.initrd {
                args.add("-initrd", initrd.clone());
            }
            args.add("-append", kernel.cmdline.clone());
        }
        args.add("-device", "virtio-rng-pci");
        let format = self.format.name();
        let drive = format!("if=none,id=disk,format={format},discard=unmap,file=");
        args.path("-drive", &drive, &self.disk, "");
        args.add("-device", "virtio-blk-pci,drive=disk,bootindex=1");
        args.path("-drive", "if=none,id=seed,format=raw,readonly=on,file=", &self.seed, "");
        args.add("-device", "virtio-blk-pci,drive=seed");
        for (i, card) in self.cards.iter().enumerate() {
            self.card(&mut args, i, card);
        }
        args.path("-chardev", "socket,id=serial,server=on,wait=off,path=", &self.serial, "");
        args.join(",logfile=", &self.serial_log);
        args.add("-serial", "chardev:serial");
        args.path("-chardev", "socket,id=agent,server=on,wait=off,path=", &self.agent, "");
        args.add("-device", "virtio-serial-pci");
        args.add("-device", format!("virtserialport,chardev=agent,name={CHANNEL}"));
        args.path("-qmp", "unix:", &self.qmp, ",server=on,wait=off");
        args.add("-pidfile", self.pidfile.clone());
        args.0
    }

    fn card(&self, args: &mut Args, i: usize, card: &Card) {
        match &card.wire {
            Wire::Datagram(fd) => {
                args.add("-netdev", format!("dgram,id=net{i},local.type=fd,local.str={fd}"));
            }
            Wire::Tap(fd) => args.add("-netdev", format!("tap,id=net{i},fd={fd},vhost=off")),
            Wire::Stream { path, again } => {
                let again = match again {
                    Again::Never => "",
                    Again::Seconds => ",reconnect=1",
                    Again::Milliseconds => ",reconnect-ms=500",
                };
                let head = format!("stream,id=net{i},server=off,addr.type=unix,addr.path=");
                args.path("-netdev", &head, path, again);
            }
            Wire::User { ssh } => args.add(
                "-netdev",
                format!(
                    "user,id=net{i},net=192.168.5.0/24,dhcpstart=192.168.5.15,hostfwd=tcp:{ssh}-:22"
                ),
            ),
        }
        // With event indexes, QEMU can miss the guest's word that there is more to send while its
        // socket is full; then the guest's queue stands still for ever.
        let mac = show_mac(card.mac);
        args.add(
            "-device",
            format!("virtio-net-pci,netdev=net{i},mac={mac},romfile=,event_idx=off"),
        );
    }
}

fn board(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "q35",
        Arch::Aarch64 => "virt",
    }
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn add(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.push(flag.into());
        self.0.push(value.into());
    }

    /// A path among an option's settings, where a comma is the end of it unless it is doubled.
    fn path(&mut self, flag: &str, before: &str, path: &Path, after: &str) {
        let mut value = OsString::from(before);
        value.push(escaped(path));
        value.push(after);
        self.add(flag, value);
    }

    /// More of the last option.
    fn join(&mut self, before: &str, path: &Path) {
        if let Some(last) = self.0.last_mut() {
            last.push(before);
            last.push(escaped(path));
        }
    }
}

fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes().iter();
    let doubled = bytes.flat_map(|byte| std::iter::repeat_n(*byte, 1 + usize::from(*byte == b',')));
    OsString::from_vec(doubled.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let file = |name: &str| PathBuf::from("/h,1/m").join(name);
        Machine {
            name: "m".into(),
            arch: Arch::X86_64,
            accel: Accel::Tcg,
            cpus: 2,
            memory: 512 << 20,
            disk: file("diffdisk"),
            format: Format::Qcow2,
            seed: file("cidata.iso"),
            kernel: None,
            firmware: None,
            cards: vec![Card { mac: Mac([2, 0, 0, 0, 0, 1]), wire: Wire::Datagram(7) }],
            qmp: file("qmp.sock"),
            pidfile: file("qemu.pid"),
            agent: file("agent.sock"),
            serial: file("serial.sock"),
            serial_log: file("serial.log"),
        }
    }

    fn line(machine: &Machine) -> String {
        let args = machine.arguments();
        args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_qemu_is_told() {
        let text = line(&machine());
        for part in [
            "-machine q35,accel=tcg -cpu max -smp 2 -m 512 ",
            "format=qcow2,discard=unmap,file=/h,,1/m/diffdisk ",
            "-netdev dgram,id=net0,local.type=fd,local.str=7 ",
            "netdev=net0,mac=02:00:00:00:00:01,romfile=,event_idx=off",
            "path=/h,,1/m/serial.sock,logfile=/h,,1/m/serial.log ",
            "-qmp unix:/h,,1/m/qmp.sock,server=on,wait=off",
            "virtserialport,chardev=agent,name=dev.vmlan.agent",
            // No option of its own: a comma is a comma.
            "-pidfile /h,1/m/qemu.pid",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("-kernel") && !text.contains("-bios"), "{text}");
    }

    #[test]
    fn cards_of_other_networks() {
        let mac = Mac([2, 0, 0, 0, 0, 2]);
        let stream = |again| Wire::Stream { path: "/run/s".into(), again };
        let ssh = "127.0.0.1:60022".parse().unwrap();
        for (wire, part) in [
            (Wire::Tap(9), "tap,id=net1,fd=9,vhost=off "),
            (stream(Again::Never), "addr.path=/run/s -device"),
            (stream(Again::Seconds), "addr.path=/run/s,reconnect=1 "),
            (stream(Again::Milliseconds), "addr.path=/run/s,reconnect-ms=500 "),
            (Wire::User { ssh }, "dhcpstart=192.168.5.15,hostfwd=tcp:127.0.0.1:60022-:22 "),
        ] {
            let mut machine = machine();
            machine.cards.push(Card { mac, wire });
            let text = line(&machine);
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_kernel_and_another_architecture() {
        let kernel = Kernel {
            file: "/k".into(),
            initrd: Some("/i".into()),
            cmdline: "console=ttyS0 quiet".into(),
        };
        let text = line(&Machine {
            kernel: Some(kernel),
            arch: Arch::Aarch64,
            accel: Accel::Hvf,
            firmware: Some("/fw".into()),
            ..machine()
        });
        assert!(text.contains("-machine virt,accel=hvf -cpu host "), "{text}");
        assert!(text.contains("-bios /fw -kernel /k -initrd /i -append console=ttyS0 quiet "));
    }
}
