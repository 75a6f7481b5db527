//! Network namespaces: made with a name of their own, entered by threads, removed on drop.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::binary::unpacked_libraries;
use crate::process::{capture, run};

/// How long a step that should be quick may take, on a machine with other work.
pub const SOON: Duration = Duration::from_secs(20);

const PREFIX: &str = "vmlan-e2e";

/// Accounts that the daemons of the tests look for.
const PASSWD: &str = "root:x:0:0::/:/bin/sh\navahi:x:970:970::/:/bin/false\n\
    messagebus:x:971:971::/:/bin/false\nsystemd-resolve:x:972:972::/:/bin/false\n\
    nobody:x:65534:65534::/:/bin/false\n";
const GROUP: &str = "root:x:0:\navahi:x:970:\nmessagebus:x:971:\nsystemd-resolve:x:972:\n\
    netdev:x:973:\nnogroup:x:65534:\n";

/// A network namespace with its loopback up, and nothing else.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    files: Option<TempDir>,
}

impl Netns {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{count}", std::process::id());
        run(ip().args(["netns", "add", &name]), SOON);
        let path = Path::new("/run/netns").join(&name);
        let netns = Self { name, path, files: None };
        netns.ip("link set lo up");
        netns
    }

    /// The file that stands for the namespace, as `vmlan netd --netns` wants it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = ip();
        command.args(["netns", "exec", &self.name]);
        if let Some(files) = &self.files {
            // The mounts are those of a mount namespace that `ip` has made.
            let script = r#"
                mount --bind "$0/etc" /etc && mount --rbind /run/netns "$0/run/netns" &&
                mount --rbind "$0/run" /run && exec "$@""#;
            command.args(["sh", "-c", script]).arg(files.path());
            let mut libraries = unpacked_libraries();
            libraries.push(":");
            libraries.push(files.path().join("lib"));
            command.arg("env").arg(libraries);
        }
        command.arg(program);
        command
    }

    /// Runs a program to its end, whatever its exit code.
    #[track_caller]
    pub fn capture(&self, command_line: &str, within: Duration) -> Output {
        let mut words = command_line.split_whitespace();
        let program = words.next().expect("a program");
        capture(self.command(program).args(words), within)
    }

    /// Runs a program that has to succeed and returns what it wrote to stdout.
    #[track_caller]
    pub fn run(&self, command_line: &str) -> String {
        let mut words = command_line.split_whitespace();
        let program = words.next().expect("a program");
        run(self.command(program).args(words), SOON)
    }

    /// `ip ARGUMENTS` in the namespace, without another process between.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        run(ip().args(["-n", &self.name]).args(arguments.split_whitespace()), SOON)
    }

    /// Sets a sysctl of the namespace, named as below `/proc/sys`.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        self.enter(|| fs::write(&path, value))
            .unwrap_or_else(|error| panic!("cannot set {name}: {error}"));
    }

    /// What the namespace's processes find in /etc/resolv.conf.
    pub fn set_resolv_conf(&self, text: &str) {
        let dir = self.etc_dir();
        fs::create_dir_all(&dir).expect("/etc/netns can be written");
        fs::write(dir.join("resolv.conf"), text).expect("/etc/netns can be written");
    }

    /// Gives the namespace's processes an /etc and a /run of their own, with accounts and little
    /// else. Sources of nsswitch are found among those that were unpacked for the tests, and in
    /// `lib` beside the directory that is returned: what happens in it happens in /etc.
    pub fn own_files(&mut self) -> PathBuf {
        let files = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let etc = files.path().join("etc");
        fs::create_dir(&etc)
            .and_then(|()| fs::create_dir(files.path().join("lib")))
            .and_then(|()| fs::create_dir_all(files.path().join("run/netns")))
            .expect("directories in a temporary one");
        for file in ["ld.so.cache", "services", "protocols", "localtime"] {
            // Not every system has all of them.
            let _ = fs::copy(Path::new("/etc").join(file), etc.join(file));
        }
        for (file, text) in [
            ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
            ("nsswitch.conf", "hosts: files dns\n"),
            ("passwd", PASSWD),
            ("group", GROUP),
        ] {
            fs::write(etc.join(file), text).expect("a file in a temporary directory");
        }
        self.files = Some(files);
        etc
    }

    /// Calls `f` on a thread of the namespace. Sockets made there stay there.
    #[track_caller]
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let namespace = fs::File::open(&self.path).expect("the namespace is there");
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a namespace");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects from inside; the stream has deadlines.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        let stream = self.enter(move || TcpStream::connect_timeout(&to, SOON))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(stream)
    }

    #[track_caller]
    pub fn listen(&self, at: impl Into<SocketAddr>) -> TcpListener {
        let at = at.into();
        self.enter(move || TcpListener::bind(at))
            .unwrap_or_else(|error| panic!("cannot listen at {at}: {error}"))
    }

    /// A bound datagram socket with a deadline for reads.
    #[track_caller]
    pub fn udp(&self, at: impl Into<SocketAddr>) -> UdpSocket {
        let at = at.into();
        let socket = self
            .enter(move || UdpSocket::bind(at))
            .unwrap_or_else(|error| panic!("cannot bind {at}: {error}"));
        socket.set_read_timeout(Some(SOON)).expect("a deadline for reads");
        socket
    }

    fn etc_dir(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip().args(["netns", "del", &self.name]).status();
        let _ = fs::remove_dir_all(self.etc_dir());
    }
}

/// Joins two namespaces by a pair of interfaces.
pub fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str) {
    let (a_ns, b_ns) = (a.name(), b.name());
    a.ip(&format!("link add {a_name} type veth peer name {b_name} netns {b_ns}"));
    run(ip().args(["-n", a_ns, "link", "set", a_name, "up"]), SOON);
    run(ip().args(["-n", b_ns, "link", "set", b_name, "up"]), SOON);
}

/// Removes namespaces whose test was killed before it could.
fn sweep() {
    let Ok(names) = fs::read_dir("/run/netns") else { return };
    for name in names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        let gone = |pid: &str| !Path::new("/proc").join(pid).exists();
        if owner.is_some_and(gone) {
            drop(Netns { path: Path::new("/run/netns").join(&name), name, files: None });
        }
    }
}

fn ip() -> Command {
    Command::new("ip")
}
