//! What runs the guest's instructions: the processor itself, or QEMU in its place.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vmlan_config::instance::Arch;

use super::program::Program;
use crate::child::ended_within;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// Linux's.
    Kvm,
    /// Apple's.
    Hvf,
    /// QEMU emulates the processor.
    Tcg,
}

/// The accelerator that is used, and why no better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub accel: Accel,
    pub why: Option<String>,
}

/// How long an accelerator may take to say that it works.
const PATIENCE: Duration = Duration::from_secs(3);

impl Accel {
    pub fn named(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Hvf, Self::Tcg].into_iter().find(|accel| accel.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Hvf => "hvf",
            Self::Tcg => "tcg",
        }
    }

    pub(super) fn cpu(self) -> &'static str {
        match self {
            Self::Kvm | Self::Hvf => "host",
            Self::Tcg => "max",
        }
    }
}

/// The accelerator that was asked for, else the system's if it works, else none.
pub fn choose(program: &Program, arch: Arch, wanted: Option<Accel>) -> Choice {
    if let Some(accel) = wanted {
        return Choice { accel, why: None };
    }
    let emulated = |why: String| Choice { accel: Accel::Tcg, why: Some(why) };
    if arch != Arch::host() {
        return emulated(format!("this machine is no {}", arch.name()));
    }
    let accel = if cfg!(target_os = "macos") { Accel::Hvf } else { Accel::Kvm };
    match try_out(program, accel) {
        Ok(()) => Choice { accel, why: None },
        Err(why) => emulated(format!("{} does not work here: {why}", accel.name())),
    }
}

/// What `choose` will most likely find, by a look alone.
pub fn guess(arch: Arch, wanted: Option<Accel>) -> Accel {
    use rustix::fs::Access;
    let kvm = || rustix::fs::access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_ok();
    match wanted {
        Some(accel) => accel,
        None if arch != Arch::host() => Accel::Tcg,
        None if cfg!(target_os = "macos") => Accel::Hvf,
        None if kvm() => Accel::Kvm,
        None => Accel::Tcg,
    }
}

/// Has QEMU make a machine without anything in it, and end. A process of its own, because an
/// accelerator that is broken may not come back.
fn try_out(program: &Program, accel: Accel) -> Result<(), String> {
    if accel == Accel::Kvm
        && let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")
    {
        return Err(format!("/dev/kvm: {e}"));
    }
    let mut command = Command::new(&program.path);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-S", "-machine", "none"])
        .args(["-accel", accel.name(), "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    if let Some(mut monitor) = child.stdin.take() {
        use std::io::Write;
        // It may have ended; its status says so.
        let _ = monitor.write_all(b"quit\n");
    }
    match ended_within(&mut child, PATIENCE).map_err(|e| e.to_string())? {
        Some(status) if status.success() => Ok(()),
        Some(_) => Err(said(&mut child)),
        None => {
            // Not waited for: it may be stuck in the kernel.
            let _ = child.kill();
            Err("it does not answer".into())
        }
    }
}

fn said(child: &mut Child) -> String {
    use std::io::Read;
    let mut text = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut text);
    }
    let line = vmlan_netd::last_line(&text).unwrap_or("it ends without a word");
    line.rsplit(": ").next().unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_taken_and_a_foreign_machine_emulated() {
        let program = Program { path: "/nonexistent".into(), version: (10, 0) };
        let choice = choose(&program, Arch::host(), Accel::named("tcg"));
        assert_eq!(choice, Choice { accel: Accel::Tcg, why: None });
        let foreign = match Arch::host() {
            Arch::X86_64 => Arch::Aarch64,
            Arch::Aarch64 => Arch::X86_64,
        };
        let choice = choose(&program, foreign, None);
        assert_eq!(choice.accel, Accel::Tcg);
        assert!(choice.why.unwrap().contains(foreign.name()));
        assert_eq!(Accel::named("x"), None);
    }
}
