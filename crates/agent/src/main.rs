//! The agent inside a machine: tells the host what listens here, and leads the network to what it
//! cannot reach by itself. One thread, one loop; see `message` for what is said to the host.
//!
//! It is statically linked, since the machine may be of any make, and is put there by whoever
//! prepares the machine. Without arguments it speaks on the virtio port with its name; with `-` on
//! standard input, which has to be a socket.

#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod agent;
#[cfg(target_os = "linux")]
mod cards;
#[cfg(target_os = "linux")]
mod channel;
#[cfg(target_os = "linux")]
mod connect;
#[cfg(target_os = "linux")]
mod datagrams;
#[cfg(target_os = "linux")]
mod lifts;
#[cfg(target_os = "linux")]
mod listeners;
#[cfg(target_os = "linux")]
mod notes;
#[cfg(target_os = "linux")]
mod poll;
#[cfg(target_os = "linux")]
mod relay;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let channel = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => channel::Channel::find(),
        ["-"] => channel::Channel::stdin(),
        _ => {
            eprintln!("usage: vmlan-agent [-]");
            return ExitCode::from(2);
        }
    };
    let ended = channel.and_then(|channel| agent::Agent::new(channel)?.run());
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmlan-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("vmlan-agent runs in Linux machines");
    ExitCode::FAILURE
}
