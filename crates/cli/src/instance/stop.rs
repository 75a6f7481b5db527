//! `vmlan stop`: by the machine's power button, or by its plug.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmlan_netd::PidFile;
use vmlan_vm::instance::{Instance, Status, inspect};
use vmlan_vm::qemu::qmp;

use super::follow::client;
use crate::Failure;

/// Stop a machine.
///
/// The machine is asked to shut down, and waited for: 3 minutes, or 20 seconds if it is still
/// booting. Then it is ended as with --force.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance.
    #[arg(default_value = super::DEFAULT)]
    name: String,

    /// End it at once, whatever it is doing.
    #[arg(short, long)]
    force: bool,
}

const LOOK: Duration = Duration::from_millis(25);

/// For a host agent that was told to pull the plug.
const AT_ONCE: Duration = Duration::from_secs(10);

/// For a machine without a host agent to shut down, and how often it is told.
const ORPHAN: Duration = Duration::from_secs(60);
const REMIND: Duration = Duration::from_secs(4);

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let instance = super::find(&store, &args.name)?;
    if !stop(&instance, args.force)? {
        crate::tell(&format!("{}: is stopped already", instance.name));
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops an instance. False if it was stopped already.
pub(super) fn stop(instance: &Instance, force: bool) -> Result<bool, Failure> {
    let is = inspect(instance);
    match is.status {
        Status::Stopped => return Ok(false),
        Status::Broken if is.host_agent.is_none() => return stop_orphan(instance, force),
        Status::Broken if !force => {
            return Err(Failure::Failed(format!("{}: {}", instance.name, is.errors.join("; "))));
        }
        Status::Broken | Status::Running => {}
    }
    let path = if force { "/v1/stop?force=true" } else { "/v1/stop" };
    let told = client(instance).post(path, &());
    let agent = is.host_agent.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if told.is_err()
        && let Some(pid) = agent
    {
        // It comes or goes, or hangs.
        let _ = kill_process(pid, if force { Signal::KILL } else { Signal::TERM });
    }
    let end = Instant::now() + AT_ONCE;
    while PidFile::holder(&instance.files.host_pid()).ok().flatten().is_some() {
        if force
            && Instant::now() > end
            && let Some(pid) = agent
        {
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(LOOK);
    }
    if force {
        stop_orphan(instance, true)?;
    }
    Ok(true)
}

/// Stops a machine whose host agent is gone, and its own network.
pub(super) fn stop_orphan(instance: &Instance, force: bool) -> Result<bool, Failure> {
    let files = &instance.files;
    let end = Instant::now() + ORPHAN;
    let mut remind = Instant::now();
    let mut was_there = false;
    while let Some(pid) = qmp::holder(&files.qmp()) {
        was_there = true;
        let now = Instant::now();
        if force || now > end {
            let _ = kill_process(pid, Signal::KILL);
        } else if now >= remind {
            remind = now + REMIND;
            // It may be about to end.
            let _ = qmp::execute(&files.qmp(), "system_powerdown");
        }
        thread::sleep(LOOK);
    }
    vmlan_netd::managed::end(&files.network().pidfile)
        .map_err(|e| Failure::Failed(e.to_string()))?;
    files.clean();
    Ok(was_there)
}
