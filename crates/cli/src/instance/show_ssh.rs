//! `vmlan show-ssh`: how ssh(1) gets into a machine.

use std::fs;
use std::process::ExitCode;

use clap::ValueEnum;
use vmlan_vm::instance::ssh;

use crate::Failure;

/// Show how ssh gets into a machine.
///
/// The file that ssh -F takes is ssh.config in the instance's directory; it is there since the
/// first start.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance.
    #[arg(default_value = super::DEFAULT)]
    name: String,

    /// A whole command, its arguments, its -o options, or the lines of a configuration.
    #[arg(short, long, default_value = "cmd")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Cmd,
    Args,
    Options,
    Config,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let instance = super::find(&store, &args.name)?;
    let path = instance.files.ssh_config();
    let text = fs::read_to_string(&path).map_err(|e| {
        Failure::Failed(match e.kind() {
            std::io::ErrorKind::NotFound => {
                format!("instance `{}` has not been started yet", instance.name)
            }
            _ => format!("{}: {e}", path.display()),
        })
    })?;
    let options = text
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_once(' '))
        .map(|(key, value)| format!("{key}={value}"));
    let flags: Vec<_> = options.clone().map(|option| format!("-o '{option}'")).collect();
    let (flags, host) = (flags.join(" "), ssh::host(&instance.name));
    crate::print(&match args.format {
        Format::Cmd => format!("ssh {flags} {host}\n"),
        Format::Args => format!("{flags} {host}\n"),
        Format::Options => options.map(|option| format!("{option}\n")).collect(),
        Format::Config => text,
    })
}
