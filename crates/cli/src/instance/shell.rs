//! `vmlan shell`: a shell or a command in a machine, by ssh.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::process::{Pid, Signal, kill_process};

use vmlan_vm::instance::{Instance, Status, inspect, ssh};
use vmlan_vm::shell;

use crate::Failure;

/// Run a shell or a command in a machine.
///
/// The exit code is the command's, or 128 and the number of the signal that has ended it, or 255 if
/// ssh fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance.
    name: String,

    /// Where in the machine to begin.
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,

    /// The command and its arguments, which reach it as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let instance = super::find(&store, &args.name)?;
    check(&instance)?;
    let mut command = Command::new("ssh");
    command.arg("-F").arg(instance.files.ssh_config());
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        command.arg("-t");
    }
    command.args(["--", &ssh::host(&instance.name)]);
    command.args(line(args.workdir.as_deref(), &args.command));
    if has_reader(io::stdout()) {
        return relay(command, &instance).map_err(|e| failed(&e));
    }
    Err(failed(&command.exec()))
}

fn failed(error: &io::Error) -> Failure {
    Failure::Failed(match error.kind() {
        ErrorKind::NotFound => "`ssh` is not installed: install openssh-client".into(),
        _ => format!("ssh: {error}"),
    })
}

/// Whether what is written there is read by another process, which may go away.
fn has_reader(output: impl AsFd) -> bool {
    let is = fstat(output).map(|stat| FileType::from_raw_mode(stat.st_mode));
    matches!(is, Ok(FileType::Fifo | FileType::Socket))
}

/// Runs ssh and passes its output on. When nobody reads that any more, ssh would go on for as long
/// as the command does, unless the machine's server is told and ends the command's output.
fn relay(mut command: Command, instance: &Instance) -> io::Result<ExitCode> {
    let mut to = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut signals = vmlan_netd::termination()?;
    signals.set_nonblocking(false)?;
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let pid = Pid::from_child(&child);
    thread::spawn(move || {
        // Who ends this ends both.
        while matches!(signals.read(&mut [0]), Ok(1)) {
            let _ = kill_process(pid, Signal::TERM);
        }
    });
    let passed = child.stdout.take().map_or(Ok(()), |from| pass_on(from, &mut to));
    drop(to);
    if passed.is_err() && !ssh::hears_of_closed_outputs(&instance.files) {
        // It leaves the terminal as it was.
        let _ = kill_process(pid, Signal::TERM);
        let _ = child.wait();
        return Ok(ExitCode::from(SIGNALLED + SIGPIPE));
    }
    end(child)
}

/// An error if it is not to be had any more.
fn pass_on(mut from: impl Read, to: &mut File) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let mut rest = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => chunk.get(..n).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return Ok(()),
        };
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Whoever has given it to us has it so.
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(&*to, PollFlags::OUT)], None);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

fn end(mut child: Child) -> io::Result<ExitCode> {
    let status = child.wait()?;
    let by_signal = || status.signal().map_or(-1, |signal| i32::from(SIGNALLED) + signal);
    let code = status.code().unwrap_or_else(by_signal);
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What shells add to the number of a signal.
const SIGNALLED: u8 = 128;
const SIGPIPE: u8 = 13;

fn check(instance: &Instance) -> Result<(), Failure> {
    let is = inspect(instance);
    let name = &instance.name;
    match is.status {
        Status::Running => Ok(()),
        Status::Stopped => Err(Failure::Failed(format!(
            "instance `{name}` is stopped; start it with: vmlan start {name}"
        ))),
        Status::Broken => Err(Failure::Failed(format!("{name}: {}", is.errors.join("; ")))),
    }
}

/// What the machine's shell is to run, if not itself.
fn line(workdir: Option<&str>, command: &[String]) -> Option<String> {
    let cd = workdir.map(|dir| format!("cd {}", word(dir)));
    let words: Vec<_> = command.iter().map(|text| word(text)).collect();
    if words.is_empty() {
        return cd.map(|cd| format!("{cd} && exec $SHELL -l"));
    }
    // ssh says nothing of signals, but a shell that outlives the command does.
    let cd = cd.map(|cd| format!("{cd} || exit; ")).unwrap_or_default();
    let script = format!("{cd}trap : INT QUIT; {}; exit $?", words.join(" "));
    Some(format!("sh -c {}", word(&script)))
}

/// As it is where that is plain, for those who read it.
fn word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    shell::quoted(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words_and_ends_are_told() {
        let words = ["printf", "[%s]", "a b", "it's", "", "$HOME", "*", "\\", "\n", "~", "é"];
        let command = words.map(ToOwned::to_owned);
        let run = |line: Option<String>| {
            let output = Command::new("sh").args(["-c", &line.unwrap()]).output().unwrap();
            (String::from_utf8(output.stdout).unwrap(), output.status.code())
        };
        let all = words[2..].iter().map(|word| format!("[{word}]")).collect::<String>();
        assert_eq!(run(line(None, &command)), (all, Some(0)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a 'b'");
        let path = path.to_str().unwrap();
        let pwd = ["pwd".to_owned()];
        let (said, status) = run(line(Some(path), &pwd));
        assert!(said.is_empty() && status != Some(0));
        std::fs::create_dir(path).unwrap();
        assert_eq!(run(line(Some(path), &pwd)), (format!("{path}\n"), Some(0)));
        assert_eq!(line(Some("/a b"), &[]).unwrap(), "cd '/a b' && exec $SHELL -l");
        assert_eq!(line(None, &[]), None);
        let killed = ["sh", "-c", "kill -9 $$"].map(ToOwned::to_owned);
        assert_eq!(run(line(None, &killed)).1, Some(137));
    }
}
