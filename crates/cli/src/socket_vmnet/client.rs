//! vmlan in the place of `socket_vmnet_client`: a program gets a connection to a network's socket as
//! its descriptor 3.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::Failure;

/// The number that the program is told of, as in: qemu-system-x86_64 -netdev socket,id=n0,fd=3
const FD: i32 = 3;

/// Run a program with a connection to a network's socket as its descriptor 3.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The network's socket.
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,

    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let path = args.socket.display();
    let failed = |e| Failure::Failed(format!("{path}: {e}"));
    let stream = UnixStream::connect(&args.socket).map_err(failed)?;
    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::Usage("no program is named".into()));
    };
    let error = vmlan_netd::exec_with(stream.as_fd(), FD, Command::new(program).args(rest));
    Err(Failure::Failed(format!("{}: {error}", program.display())))
}
