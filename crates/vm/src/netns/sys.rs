//! The system calls that a supervisor and an init need and that safe wrappers do not offer:
//! processes, signal masks, and the replacement of a process by a command.
//!
//! Everything here is for a process with a single thread, which `vmlan run` is by design: only
//! then may a forked child go on to use the allocator and the standard library.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// How a child changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Exited(u8),
    Killed(i32),
    Stopped(i32),
    Continued,
}

/// Which side of a fork this is.
#[derive(Debug)]
pub(super) enum Fork {
    Parent(i32),
    Child,
}

/// A packet socket on an interface that sees what is sent to DHCP clients there, and sends frames.
pub(super) fn dhcp_socket(interface: &str) -> io::Result<OwnedFd> {
    // As `tcpdump -dd ip and udp dst port 68 and not ip[6:2] & 0x1fff` would have it, behind a
    // protocol that is IPv4 already.
    let code = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    };
    let mut filter = [
        code(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 23),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 6, 17),
        code(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 20),
        code(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 4, 0, 0x1fff),
        code(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 14),
        code(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 0, 0, 16),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 68),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let len = u16::try_from(filter.len()).unwrap_or(0);
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let (kind, ipv4) = (libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0x0800_u16.to_be());
    // No protocol: nothing comes before the filter is there.
    // SAFETY: plain integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = |size: usize| libc::socklen_t::try_from(size).unwrap_or(0);
    // SAFETY: `program` and the filter that it points to are valid for the call.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size(size_of_val(&program)),
        )
    })?;
    let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    address.sll_protocol = ipv4;
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: `address` is valid for the call.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), size(size_of_val(&address))) })?;
    Ok(socket)
}

/// Forks.
pub(super) fn fork() -> io::Result<Fork> {
    // SAFETY: the process has a single thread (see the head of this file).
    forked(unsafe { libc::fork() }.into())
}

/// Forks into new user, network, mount and PID namespaces; the child is PID 1 of the last.
pub(super) fn fork_into_namespaces() -> io::Result<Fork> {
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2) with namespaces, and the
    // process has a single thread. clone3(2) would do too, but container filters refuse it.
    forked(unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) })
}

fn forked(returned: libc::c_long) -> io::Result<Fork> {
    match i32::try_from(returned) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) if pid > 0 => Ok(Fork::Parent(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes one change of a child, or of any child with -1. `Ok(None)` when there is none, and an
/// error when there is no such child.
pub(super) fn wait(pid: i32, block: bool) -> io::Result<Option<(i32, Change)>> {
    let flags = libc::WUNTRACED | libc::WCONTINUED | if block { 0 } else { libc::WNOHANG };
    let mut status = 0;
    let pid = loop {
        // SAFETY: `status` is valid for the write.
        match unsafe { libc::waitpid(pid, &raw mut status, flags) } {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            0 => return Ok(None),
            pid => break pid,
        }
    };
    let change = if libc::WIFEXITED(status) {
        Change::Exited(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    } else if libc::WIFSTOPPED(status) {
        Change::Stopped(libc::WSTOPSIG(status))
    } else if libc::WIFCONTINUED(status) {
        Change::Continued
    } else {
        Change::Killed(libc::WTERMSIG(status))
    };
    Ok(Some((pid, change)))
}

/// Waits for the end of a child. `None` if there is no such child.
pub(super) fn reap(pid: i32) -> Option<Change> {
    loop {
        match wait(pid, true) {
            Ok(Some((_, change @ (Change::Exited(_) | Change::Killed(_))))) => return Some(change),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// Reaps children that have ended and are none of these: what the process had started before.
pub(super) fn reap_others(known: &[i32]) {
    loop {
        // SAFETY: a `siginfo_t` of zeros is valid, and it is valid for the write; nothing is reaped.
        let (found, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            (libc::waitid(libc::P_ALL, 0, &raw mut info, flags), info)
        };
        // SAFETY: what waitid has written tells of a child; without one, the number is 0.
        let pid = unsafe { info.si_pid() };
        if found != 0 || pid == 0 || known.contains(&pid) {
            return;
        }
        reap(pid);
    }
}

pub(super) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::kill(pid, signal) })
}

/// The process group of `pid`, 0 being the caller; 0 stands for a group outside the PID namespace.
pub(super) fn process_group(pid: i32) -> i32 {
    // SAFETY: a plain integer.
    unsafe { libc::getpgid(pid) }
}

/// Puts the calling process where it is already: in its process group.
pub(super) fn touch_process_group() {
    // SAFETY: plain integers.
    unsafe { libc::setpgid(0, process_group(0)) };
}

/// Whether a process group has any members.
pub(super) fn group_exists(group: i32) -> bool {
    // SAFETY: plain integers; signal 0 is not sent.
    let returned = unsafe { libc::killpg(group, 0) };
    returned == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// The foreground process group of a terminal; 0 if it is outside the PID namespace.
pub(super) fn foreground(terminal: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: an open descriptor.
    let group = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) };
    check(group).map(|()| group)
}

pub(super) fn set_foreground(terminal: BorrowedFd<'_>, group: i32) -> io::Result<()> {
    // SAFETY: an open descriptor and a plain integer.
    check(unsafe { libc::tcsetpgrp(terminal.as_raw_fd(), group) })
}

/// Ends the process without unwinding and without what the standard library does at exit.
pub(super) fn exit(code: u8) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code.into()) }
}

/// The signal mask and dispositions that this process was started with and its command shall have.
#[derive(Clone, Copy)]
pub(super) struct Inherited {
    mask: libc::sigset_t,
    child_ignored: bool,
}

impl std::fmt::Debug for Inherited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inherited").field("child_ignored", &self.child_ignored).finish()
    }
}

impl Inherited {
    /// Blocks every signal, so that each comes through [`Signals`] and none acts on this process.
    pub(super) fn block() -> io::Result<Self> {
        let mut mask = MaybeUninit::uninit();
        let all = every_signal();
        // SAFETY: both sets are valid; the call fills `mask`.
        check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const all, mask.as_mut_ptr()) })?;
        // With SIGCHLD ignored there would be nothing to wait for.
        let child_ignored = set_disposition(libc::SIGCHLD, libc::SIG_DFL)? == libc::SIG_IGN;
        // SAFETY: filled by the call above.
        Ok(Self { mask: unsafe { mask.assume_init() }, child_ignored })
    }

    /// Gives the calling process, a command to be, what it would have had without vmlan.
    pub(super) fn restore(&self) {
        // The Rust runtime ignores SIGPIPE, which commands do not expect.
        let _ = set_disposition(libc::SIGPIPE, libc::SIG_DFL);
        if self.child_ignored {
            let _ = set_disposition(libc::SIGCHLD, libc::SIG_IGN);
        }
        // SAFETY: a set that the system filled.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut()) };
    }
}

/// Blocked signals, to be read.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let all = every_signal();
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: a valid set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const all, flags) };
        check(fd)?;
        // SAFETY: just opened, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal, if one is pending.
    pub(super) fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            Ok(len) if len == info.len() => {
                let [a, b, c, d, ..] = info;
                i32::try_from(u32::from_ne_bytes([a, b, c, d])).ok()
            }
            _ => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets a signal act on this process, every signal being blocked: a stop signal stops it here until
/// it is continued, one that ends processes ends it, unless the system does not let it.
pub(super) fn suffer(signal: i32) -> io::Result<()> {
    if signal != libc::SIGKILL && signal != libc::SIGSTOP {
        set_disposition(signal, libc::SIG_DFL)?;
    }
    kill(rustix::process::getpid().as_raw_pid(), signal)?;
    let mut one = MaybeUninit::uninit();
    let all = every_signal();
    // SAFETY: sigemptyset fills the set that the others then use.
    unsafe {
        libc::sigemptyset(one.as_mut_ptr());
        libc::sigaddset(one.as_mut_ptr(), signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, one.as_ptr(), ptr::null_mut());
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
    }
    Ok(())
}

fn every_signal() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset fills the set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Makes a signal ignored or default and returns what it was.
fn set_disposition(signal: i32, handler: libc::sighandler_t) -> io::Result<libc::sighandler_t> {
    // SAFETY: only SIG_DFL and SIG_IGN are passed, so no handler of ours can run.
    let old = unsafe { libc::signal(signal, handler) };
    if old == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(old) }
}

/// Replaces the process by a command, found as a shell would find it. Returns only if it fails.
pub(super) fn exec(command: &[CString]) -> io::Error {
    let mut argv: Vec<*const libc::c_char> = command.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(ptr::null());
    // SAFETY: `argv` points to strings that outlive the call and ends with a null pointer, and is
    // not empty because of that.
    unsafe { libc::execvp(argv[0], argv.as_ptr()) };
    io::Error::last_os_error()
}

/// Closes every descriptor above the standard three but those in `keep`.
pub(super) fn close_all_but(keep: &[BorrowedFd<'_>]) {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if let (Ok(from), Ok(to)) = (u32::try_from(first), u32::try_from(fd - 1))
            && from <= to
        {
            close_range(from, to);
        }
        first = fd.saturating_add(1).max(first);
    }
}

/// Puts /dev/null in the place of standard input and output, and of standard error with `all`.
pub(super) fn detach_standard_streams(all: bool) {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let Ok(null) = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()) else { return };
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    if all {
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

fn close_range(from: u32, to: u32) {
    // SAFETY: what is closed is what the caller has said nobody uses.
    if unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } == 0 {
        return;
    }
    // Linux before 5.9.
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> =
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for fd in open {
        if u32::try_from(fd).is_ok_and(|fd| (from..=to).contains(&fd)) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// Leaves the removal of a TAP to the end of its network namespace, which the kernel sees to in the
/// background; as the last descriptor's close it would take tens of milliseconds.
pub(super) fn leave_to_namespace(tap: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an open descriptor, and an integer argument.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })
}

/// Renames the calling process, for ps(1) and whoever else looks for processes by name.
pub(super) fn set_title(name: &std::ffi::CStr) {
    let _ = rustix::thread::set_name(name);
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return };
    // Fields 48 and 49 of proc_pid_stat(5), counted from the third, which follows the last ')'.
    let mut fields = stat.rsplit(')').next().unwrap_or("").split_ascii_whitespace().skip(45);
    let mut field = || fields.next().and_then(|f| f.parse::<usize>().ok());
    let (Some(start), Some(end)) = (field(), field()) else { return };
    let (title, len) = (name.to_bytes(), end.saturating_sub(start));
    if start == 0 || len <= title.len() {
        return;
    }
    // SAFETY: the kernel says that this process's arguments lie between the two addresses: memory
    // at the bottom of the stack, writable, which only `std::env::args` ever reads, and not here.
    unsafe {
        let arguments = ptr::with_exposed_provenance_mut::<u8>(start);
        ptr::write_bytes(arguments, 0, len);
        ptr::copy_nonoverlapping(title.as_ptr(), arguments, title.len());
    }
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
