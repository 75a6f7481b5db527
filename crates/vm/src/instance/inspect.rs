//! What an instance is doing, from the processes that are there and not from what files say.

use vmlan_netd::PidFile;

use super::info::Info;
use super::store::Instance;
use crate::qemu::qmp;

/// What an instance is doing, by Lima's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Running,
    Stopped,
    /// Something has gone wrong with it.
    Broken,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Stopped => "Stopped",
            Self::Broken => "Broken",
        }
    }
}

/// An instance at one moment.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub status: Status,
    /// What is wrong, and the way out.
    pub errors: Vec<String>,
    pub host_agent: Option<u32>,
    pub driver: Option<u32>,
    /// What the host agent says.
    pub info: Option<Info>,
}

/// Looks at an instance.
pub fn inspect(instance: &Instance) -> Inspection {
    let files = &instance.files;
    let mut is = Inspection {
        status: Status::Stopped,
        errors: Vec::new(),
        host_agent: None,
        driver: None,
        info: None,
    };
    let number = |pid: rustix::process::Pid| pid.as_raw_nonzero().get().unsigned_abs();
    match PidFile::holder(&files.host_pid()) {
        Ok(Some(pid)) => {
            is.status = Status::Running;
            is.host_agent = Some(number(pid));
            match Info::ask(files) {
                Ok(info) => {
                    is.driver = Some(info.driver_pid).filter(|pid| *pid != 0);
                    is.info = Some(info);
                }
                // It comes or goes.
                Err(vmlan_api::ClientError::NoDaemon) => {}
                Err(_) => {
                    is.status = Status::Broken;
                    is.errors.push(format!(
                        "the host agent (process {}) does not answer; end it with: vmlan stop \
                         --force {}",
                        number(pid),
                        instance.name
                    ));
                }
            }
        }
        Ok(None) => {
            if let Some(pid) = qmp::holder(&files.qmp()) {
                is.status = Status::Broken;
                is.driver = Some(number(pid));
                is.errors.push(format!(
                    "the host agent has died, and the machine (process {}) runs without a network; \
                     `vmlan start {name}` boots it anew, `vmlan stop {name}` stops it",
                    number(pid),
                    name = instance.name
                ));
            }
        }
        Err(e) => {
            is.status = Status::Broken;
            is.errors.push(e.to_string());
        }
    }
    is
}
