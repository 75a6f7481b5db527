//! `vmlan shell`: a shell or a command in a machine, by ssh.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use vmlan_vm::instance::{Instance, Status, inspect, ssh};

use crate::Failure;

/// Run a shell or a command in a machine.
///
/// The exit code is the command's, or 255 if ssh fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance.
    name: String,

    /// Where in the machine to begin.
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,

    /// The command and its arguments, each one word of the machine's shell.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let instance = super::find(&store, &args.name)?;
    check(&instance)?;
    let mut command = Command::new("ssh");
    command.arg("-F").arg(instance.files.ssh_config());
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        command.arg("-t");
    }
    command.args(["--", &ssh::host(&instance.name)]);
    command.args(line(args.workdir.as_deref(), &args.command));
    let error = command.exec();
    Err(Failure::Failed(match error.kind() {
        std::io::ErrorKind::NotFound => "`ssh` is not installed: install openssh-client".into(),
        _ => format!("ssh: {error}"),
    }))
}

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
    let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
    match (workdir, words.is_empty()) {
        (None, true) => None,
        (None, false) => Some(words.join(" ")),
        (Some(dir), true) => Some(format!("cd {} && exec $SHELL -l", quoted(dir))),
        (Some(dir), false) => Some(format!("cd {} && {}", quoted(dir), words.join(" "))),
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let command = ["sh", "-c", "echo 'a b'", ""].map(ToOwned::to_owned);
        assert_eq!(line(None, &command).unwrap(), r"sh -c 'echo '\''a b'\''' ''");
        assert_eq!(line(Some("/a b"), &command[..1]).unwrap(), "cd '/a b' && sh");
        assert_eq!(line(None, &[]), None);
    }
}
