//! Starting a machine's host agent, and following what it tells until the machine is ready.

use std::fs::{self, File};
use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vmlan_api::Client;
use vmlan_netd::PidFile;
use vmlan_vm::instance::event::Follower;
use vmlan_vm::instance::info::{Health, Info};
use vmlan_vm::instance::{Instance, Status, inspect};

use super::Interrupt;
use crate::Failure;

const LOOK: Duration = Duration::from_millis(25);

/// For a host agent to say that it is there.
const PATIENCE: Duration = Duration::from_secs(30);

/// For the machine to tell the addresses that others give it.
const TOLD: Duration = Duration::from_secs(3);

/// Starts the host agent, if the instance does not run. The caller has the instance's lock. Returns
/// whether it did.
pub(super) fn spawn(instance: &Instance) -> Result<bool, Failure> {
    let files = &instance.files;
    if inspect(instance).status == Status::Running {
        return Ok(false);
    }
    let failed = |what: &std::path::Path| {
        let what = what.display().to_string();
        move |e: io::Error| Failure::Failed(format!("{what}: {e}"))
    };
    // Events of this machine's, and not of its last life.
    let events = File::create(files.host_events()).map_err(failed(&files.host_events()))?;
    let log = File::create(files.host_log()).map_err(failed(&files.host_log()))?;
    let program = std::env::current_exe().map_err(|e| Failure::Failed(e.to_string()))?;
    let mut child = Command::new(&program)
        .args(["hostagent", &instance.name])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(events)
        .stderr(log)
        .spawn()
        .map_err(failed(&program))?;
    let end = Instant::now() + PATIENCE;
    while holder(instance).is_none() {
        if has_ended(&mut child) {
            return Err(ended(instance));
        }
        if Instant::now() > end {
            let _ = child.kill();
            return Err(Failure::Failed("the host agent does not come up".into()));
        }
        thread::sleep(LOOK);
    }
    Ok(true)
}

/// What is known of a machine that runs as soon as each of its cards has an address, or a moment later.
pub(super) fn with_addresses(instance: &Instance, mut info: Info) -> Info {
    let end = Instant::now() + TOLD;
    let is_awaited =
        |info: &Info| info.networks.iter().any(|n| n.addresses.is_empty() && n.problem.is_none());
    while is_awaited(&info) && Instant::now() < end {
        thread::sleep(LOOK);
        // Whoever does not answer any more has nothing new to say.
        let Ok(newer) = Info::ask(&instance.files) else { break };
        info = newer;
    }
    info
}

fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

fn holder(instance: &Instance) -> Option<rustix::process::Pid> {
    PidFile::holder(&instance.files.host_pid()).ok().flatten()
}

/// Follows a host agent until the machine is ready. An interruption stops the machine, if it was
/// started here.
pub(super) fn follow(
    instance: &Instance,
    own: bool,
    interrupt: &Interrupt,
    timeout: Duration,
) -> Result<Info, Failure> {
    let path = instance.files.host_events();
    let opened = Follower::open(&path);
    let mut events = opened.map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))?;
    let end = Instant::now() + timeout;
    let mut stopping = false;
    loop {
        let is_there = holder(instance).is_some();
        for event in events.read().unwrap_or_default() {
            let status = event.status;
            for text in status.progress.iter().chain(&status.warning) {
                crate::tell(&format!("{}: {text}", instance.name));
            }
            if let Some(why) = status.errors.first() {
                return Err(Failure::Failed(format!("{}: {why}", instance.name)));
            }
        }
        match Info::ask(&instance.files) {
            Ok(info) if matches!(info.health, Health::Ready | Health::Degraded) => return Ok(info),
            _ => {}
        }
        if !is_there {
            return Err(match stopping {
                true => Failure::Failed(format!(
                    "interrupted; the machine has been stopped, and boots again with: vmlan start {}",
                    instance.name
                )),
                false => ended(instance),
            });
        }
        if interrupt.came() {
            if !own {
                return Err(Failure::Failed("interrupted; the machine goes on booting".into()));
            }
            let again = if stopping { "?force=true" } else { "" };
            let _ = client(instance).post(&format!("/v1/stop{again}"), &());
            if !std::mem::replace(&mut stopping, true) {
                crate::tell(&format!(
                    "{}: stopping the machine; once more ends it at once",
                    instance.name
                ));
            }
        }
        if Instant::now() > end && !stopping {
            return Err(Failure::Failed(format!(
                "{name}: the machine has not answered by ssh within {} s, and goes on; see {}, \
                 and stop it with: vmlan stop {name}",
                timeout.as_secs(),
                instance.files.serial_log().display(),
                name = instance.name
            )));
        }
        thread::sleep(LOOK);
    }
}

/// The host agent's socket.
pub(super) fn client(instance: &Instance) -> Client {
    Client::new(&instance.files.host_socket())
}

/// Why a host agent is gone that has said nothing as an event.
fn ended(instance: &Instance) -> Failure {
    let log = instance.files.host_log();
    let text = fs::read_to_string(&log).unwrap_or_default();
    let mut events = Follower::open(&instance.files.host_events());
    let events = events.as_mut().map(|events| events.read().unwrap_or_default());
    let errors = events.unwrap_or_default().into_iter().flat_map(|event| event.status.errors);
    let said = errors.last().or_else(|| {
        let line = vmlan_netd::last_line(&text)?;
        Some(line.strip_prefix("vmlan: ").unwrap_or(line).to_owned())
    });
    Failure::Failed(match said {
        Some(said) => format!("{}: {said}", instance.name),
        None => {
            format!("{}: the host agent has ended; see {}", instance.name, log.display())
        }
    })
}
