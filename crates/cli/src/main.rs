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

/// Networks for local virtual machines and for commands.
#[derive(Debug, Parser)]
#[command(name = "vmlan", version, disable_help_subcommand = true)]
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
}
