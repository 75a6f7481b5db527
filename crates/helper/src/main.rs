//! `vmlan-helper`: the part of vmlan's networks that needs root, and nothing else. It makes and
//! removes interfaces and firewall rules, hands out descriptors, and ends. No frame, no name, no
//! address of a guest and no file of a user's is ever its business.
//!
//! Users run it by sudo, with one of the command lines that `vmlan sudoers` has written down. What
//! varies from guest to guest comes over a socket that is its standard input, because sudo closes
//! every other descriptor.

#[cfg(target_os = "linux")]
mod args;
#[cfg(target_os = "linux")]
mod linux;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    use args::{ArgsError, Command};

    let args: Result<Vec<_>, _> = std::env::args_os().skip(1).map(|a| a.into_string()).collect();
    let command = args.map_err(|_| ArgsError::Encoding).and_then(|args| Command::parse(&args));
    match command {
        Ok(command) => match linux::run(&command) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("vmlan-helper: {why}");
                ExitCode::FAILURE
            }
        },
        Err(e) => {
            eprintln!("vmlan-helper: {e}");
            ExitCode::from(2)
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("vmlan-helper: this system's networks are not made of bridges");
    ExitCode::FAILURE
}
