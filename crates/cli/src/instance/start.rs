//! `vmlan start`: makes an instance the first time, starts it, and waits until it answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use vmlan_config::instance::VmType;
use vmlan_vm::instance::info::{Health, Info};
use vmlan_vm::instance::{Instance, Status, Store, StoreError, inspect, ssh};
use vmlan_vm::qemu::program::{Program, ProgramError};
use vmlan_vm::{image, template};

use super::change::Changes;
use super::image::{EndOnInterrupt, Images};
use super::resolved::Resolved;
use super::{Interrupt, follow, stop};
use crate::Failure;

/// Longest `lima.yaml` that is loaded.
const MAX_TEXT: u64 = 1 << 20;

const AFTER: &str = "\
Examples:
  vmlan start template:debian                      make and start the machine `debian`
  vmlan start --name web --network lima:user-v2 --cpus 2 template:alpine
  vmlan start web                                  start it again";

/// Start a machine; make it the first time.
///
/// A machine is made from a lima.yaml: a file, a URL, or a template that comes with vmlan
/// (template:NAME). It has a directory below $LIMA_HOME (~/.lima unless set), and is started again
/// by its name. The command returns when the machine answers by ssh. Flags change the lima.yaml of
/// the instance.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER)]
pub(crate) struct Args {
    /// An instance, FILE.yaml, a URL or template:NAME [default: default].
    #[arg(value_name = "NAME|FILE|URL")]
    target: Option<String>,

    /// What a new instance is called, if not as its file.
    #[arg(long)]
    name: Option<String>,

    #[command(flatten)]
    changes: Changes,

    /// How many seconds to wait for the machine.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

/// Stop a machine and start it again.
#[derive(Debug, clap::Args)]
pub(crate) struct RestartArgs {
    /// The instance.
    #[arg(default_value = super::DEFAULT)]
    name: String,

    /// How many seconds to wait for the machine.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let target = args.target.as_deref().unwrap_or(super::DEFAULT);
    let origin = Origin::of(target);
    let name = match (&args.name, &origin) {
        (Some(name), _) => name.clone(),
        (None, Origin::Name(name)) => name.clone(),
        (None, Origin::File(path)) => stem(path),
        (None, Origin::Url(url)) => stem(Path::new(url.split(['?', '#']).next().unwrap_or(url))),
        (None, Origin::Template(name)) => stem(Path::new(name)),
    };
    let instance = match store.find(&name)? {
        Some(instance) => {
            if !matches!(origin, Origin::Name(_)) {
                return Err(Failure::Failed(format!(
                    "instance `{name}` exists already: start it with `vmlan start {name}`, or \
                     give the new one another name with --name"
                )));
            }
            if !args.changes.is_empty() {
                return Err(Failure::Failed(format!(
                    "instance `{name}` exists already: change it with `vmlan edit {name}` and the \
                     same flags"
                )));
            }
            instance
        }
        None => create(&store, &name, &origin, &args.changes)?,
    };
    boot(&instance, Duration::from_secs(args.timeout))
}

pub(crate) fn restart(args: &RestartArgs) -> Result<ExitCode, Failure> {
    let store = super::store()?;
    let instance = super::find(&store, &args.name)?;
    stop::stop(&instance, false)?;
    boot(&instance, Duration::from_secs(args.timeout))
}

/// Where the text of a new `lima.yaml` comes from.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// An instance, or the template of that name.
    Name(String),
    File(PathBuf),
    Url(String),
    Template(String),
}

impl Origin {
    fn of(target: &str) -> Self {
        let lower = target.to_ascii_lowercase();
        if let Some(name) = target.strip_prefix("template:") {
            return Self::Template(name.trim_start_matches('/').into());
        }
        if lower.starts_with("https://") || lower.starts_with("http://") {
            return Self::Url(target.into());
        }
        if let Some(path) = target.strip_prefix("file://") {
            return Self::File(path.into());
        }
        let is_file = lower.ends_with(".yaml") || lower.ends_with(".yml") || target.contains('/');
        if is_file { Self::File(target.into()) } else { Self::Name(target.into()) }
    }

    /// The text, and what errors call it.
    fn read(&self) -> Result<(PathBuf, String), Failure> {
        match self {
            Self::File(path) => {
                let text = fs::read_to_string(path);
                let text = text.map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))?;
                Ok((path.clone(), text))
            }
            Self::Url(url) => {
                let text = image::fetch_text(url, MAX_TEXT);
                Ok((url.into(), text.map_err(|e| Failure::Failed(e.to_string()))?))
            }
            Self::Name(name) | Self::Template(name) => {
                let text = template::named(name).ok_or_else(|| {
                    let names: Vec<_> = template::names().collect();
                    let none = match self {
                        Self::Name(_) => "instance and no template",
                        _ => "template",
                    };
                    let names = names.join(", ");
                    Failure::Failed(format!("there is no {none} `{name}`; templates are {names}"))
                })?;
                Ok((format!("template:{name}").into(), text.to_owned()))
            }
        }
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Makes an instance: checks everything first, then loads the image, and has the directory last.
fn create(
    store: &Store,
    name: &str,
    origin: &Origin,
    changes: &Changes,
) -> Result<Instance, Failure> {
    let instance = store.named(name)?;
    instance.files.check().map_err(StoreError::from)?;
    let (path, text) = origin.read()?;
    let text = changes.apply(&text)?;
    let resolved = Resolved::new(store.home(), &instance, &path, &text, true)?;
    let config = &resolved.config;
    ssh::installed().map_err(|e| Failure::Failed(e.to_string()))?;
    let failed = |e: ProgramError| Failure::Failed(e.to_string());
    let qemu = match resolved.driver {
        VmType::Qemu => Some(Program::find(config.arch).map_err(failed)?),
        VmType::Vz => None,
    };
    if config.images.is_empty() {
        return Err(Failure::Failed(format!(
            "{}: field `images` has none for {}",
            path.display(),
            config.arch.name()
        )));
    }
    if let Some(qemu) = qemu
        && config.images.iter().all(|image| image.kernel.is_none())
    {
        qemu.firmware(config.arch).map_err(failed)?;
    }
    let images = Images::new(&path)?;
    let interrupt = Interrupt::watch()?;
    let mut why: Option<Failure> = None;
    for image in &config.images {
        let loading = EndOnInterrupt::new(&interrupt);
        let fetched = images.fetch(image);
        drop(loading);
        match fetched {
            Ok(base) => {
                crate::tell(&format!("{name}: making the instance"));
                let finished = store.begin(name).and_then(|d| d.finish(&text, &base, &interrupt.0));
                return match finished {
                    // Somebody else has made it meanwhile.
                    Err(StoreError::Exists(_)) if instance.is_there() => Ok(instance),
                    finished => Ok(finished?),
                };
            }
            // The next one may be had.
            Err(e) => {
                if let Some(before) = why.replace(e) {
                    crate::tell(&before.to_string());
                }
            }
        }
    }
    Err(why.unwrap_or_else(|| Failure::Failed("there is no image".into())))
}

/// Starts an instance and follows it until it answers.
fn boot(instance: &Instance, timeout: Duration) -> Result<ExitCode, Failure> {
    ssh::installed().map_err(|e| Failure::Failed(e.to_string()))?;
    let interrupt = Interrupt::watch()?;
    let lock = instance.lock()?;
    let is = inspect(instance);
    match is.status {
        Status::Running => {}
        Status::Stopped => crate::tell(&format!("{}: starting", instance.name)),
        Status::Broken if is.host_agent.is_some() => {
            return Err(Failure::Failed(format!("{}: {}", instance.name, is.errors.join("; "))));
        }
        Status::Broken => {
            crate::tell(&format!(
                "{}: the host agent has died; the machine it has left is stopped first",
                instance.name
            ));
            stop::stop_orphan(instance, false)?;
        }
    }
    let own = follow::spawn(instance)?;
    drop(lock);
    let info = follow::follow(instance, own, &interrupt, timeout)?;
    if !own && is.info.is_some_and(|info| info.health != Health::Booting) {
        crate::tell(&format!("{}: runs already", instance.name));
    }
    crate::print(&summary(instance, &follow::with_addresses(instance, info)))
}

/// A line for each network, and how one gets in.
fn summary(instance: &Instance, info: &Info) -> String {
    let mut text = String::new();
    for network in &info.networks {
        let addresses: Vec<_> = network.addresses.iter().map(ToString::to_string).collect();
        let addresses = if addresses.is_empty() { "-".into() } else { addresses.join(" ") };
        let problem = network.problem.as_ref().map(|why| format!("  ({why})")).unwrap_or_default();
        text += &format!("{}\t{}\t{addresses}{problem}\n", network.interface, network.network);
    }
    text + &format!("ssh\t127.0.0.1:{}\tvmlan shell {}\n", info.ssh_local_port, instance.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_target_means() {
        for (target, want) in [
            ("web", Origin::Name("web".into())),
            ("./web", Origin::File("./web".into())),
            ("web.YAML", Origin::File("web.YAML".into())),
            ("file:///a/b", Origin::File("/a/b".into())),
            ("https://x.test/a.yaml", Origin::Url("https://x.test/a.yaml".into())),
            ("template:debian", Origin::Template("debian".into())),
            ("template://debian", Origin::Template("debian".into())),
        ] {
            assert_eq!(Origin::of(target), want);
        }
    }
}
