//! `vmlan completion`: what a shell needs to complete vmlan's command lines.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, Failure};

/// Print the script by which a shell completes vmlan's command lines.
///
/// In bash: source <(vmlan completion bash). In zsh, with compinit loaded: source <(vmlan completion
/// zsh). In fish: vmlan completion fish | source. Put that line where your shell begins to have it
/// always.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vmlan", &mut script);
    crate::print(&String::from_utf8_lossy(&script))
}
