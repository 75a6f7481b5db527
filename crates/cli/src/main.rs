//! The `vmlan` command: networks for local virtual machines and for commands. One file for each
//! subcommand; here is only what they share, the way errors are told: one line, and status 2 when
//! the command line itself is wrong.
#![forbid(unsafe_code)]

mod capture;
mod completion;
mod dns;
mod doctor;
mod forward;
mod instance;
mod names;
mod netd;
mod network;
mod place;
mod run;
mod schema;
mod socket_vmnet;
mod sudoers;
mod table;
mod tunnel;
mod units;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

const AFTER: &str = "\
Examples:
  vmlan run -- COMMAND                             on a network of its own
  vmlan run --network lima:user-v2 --name web -- COMMAND
                                                   beside others, as lima-web.internal
  vmlan start template:debian && vmlan shell debian
                                                   a machine, and a shell in it
  vmlan doctor                                     what does not work here, and the mend

Networks and machines are kept below $LIMA_HOME (~/.lima unless set). The exit code is 0, or 1 if it
could not be done, or 2 if the command line is wrong; run and shell have their command's.";

/// Networks for local virtual machines and for commands.
#[derive(Debug, Parser)]
#[command(name = "vmlan", version, disable_help_subcommand = true, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Capture(capture::Args),
    Completion(completion::Args),
    Delete(instance::delete::Args),
    Dns(dns::Args),
    Doctor(doctor::Args),
    Edit(instance::edit::Args),
    Forward(forward::Args),
    #[command(hide = true)]
    Hostagent(instance::hostagent::Args),
    #[command(visible_alias = "ls")]
    List(instance::list::Args),
    Netd(Box<netd::Args>),
    Network(network::Args),
    Restart(instance::start::RestartArgs),
    Run(Box<run::Args>),
    Schema(schema::Args),
    #[command(name = "socket_vmnet", hide = true)]
    SocketVmnet(Box<socket_vmnet::Args>),
    #[command(name = "socket_vmnet_client", hide = true)]
    SocketVmnetClient(socket_vmnet::ClientArgs),
    Shell(instance::shell::Args),
    ShowSsh(instance::show_ssh::Args),
    Start(Box<instance::start::Args>),
    Stop(instance::stop::Args),
    Sudoers(sudoers::Args),
    Tunnel(tunnel::Args),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

fn main() -> ExitCode {
    let args = socket_vmnet::arguments(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Capture(args) => capture::run(&args),
        Command::Completion(args) => completion::run(&args),
        Command::Delete(args) => instance::delete::run(&args),
        Command::Dns(args) => dns::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Edit(args) => instance::edit::run(&args),
        Command::Forward(args) => forward::run(&args),
        Command::Hostagent(args) => instance::hostagent::run(&args),
        Command::List(args) => instance::list::run(&args),
        Command::Netd(args) => netd::run(&args),
        Command::Network(args) => network::run(&args),
        Command::Restart(args) => instance::start::restart(&args),
        Command::Run(args) => run::run(*args),
        Command::Schema(args) => schema::run(&args),
        Command::SocketVmnet(args) => socket_vmnet::run(&args),
        Command::SocketVmnetClient(args) => socket_vmnet::run_client(&args),
        Command::Shell(args) => instance::shell::run(&args),
        Command::ShowSsh(args) => instance::show_ssh::run(&args),
        Command::Start(args) => instance::start::run(&args),
        Command::Stop(args) => instance::stop::run(&args),
        Command::Sudoers(args) => sudoers::run(&args),
        Command::Tunnel(args) => tunnel::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            tell(&failure.to_string());
            match failure {
                Failure::Usage(_) => ExitCode::from(2),
                Failure::Failed(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// What was asked for, on standard output. Whoever closes it has seen enough.
fn print(text: &str) -> Result<ExitCode, Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("standard output: {e}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// One line on standard error, in one write.
fn tell(text: &str) {
    let line = format!("vmlan: {text}\n");
    // There is nobody to tell when standard error is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Help is printed whole; of an error, the paragraph that says what is wrong, in one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // There is nobody to tell when standard output is gone.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    let text = error.to_string();
    let paragraph = text.lines().take_while(|line| !line.trim().is_empty());
    let mut line = paragraph.map(str::trim).collect::<Vec<_>>().join(" ");
    if let Some(tip) = text.lines().find_map(|line| line.trim().strip_prefix("tip: ")) {
        line = format!("{line}; {tip}");
    }
    tell(line.strip_prefix("error: ").unwrap_or(&line));
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// Every command and all that can be given to it.
    #[test]
    fn everything_is_explained() {
        use clap::CommandFactory;
        fn look(command: &clap::Command) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let explained = !help.is_empty() || !arg.get_possible_values().is_empty();
                assert!(explained, "{name}: {}", arg.get_id());
                assert!(!help.ends_with('.'), "{name}: {}: {help}", arg.get_id());
            }
            command.get_subcommands().filter(|c| !c.is_hide_set()).for_each(look);
        }
        let mut command = Cli::command();
        command.build();
        look(&command);
    }
}
