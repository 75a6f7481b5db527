//! `vmlan sudoers`: the file by which networks that need root are started without a password.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use vmlan_config::{Networks, NetworksFile, Os, Platform, socket_vmnet, sudoers, vmnet};

use crate::Failure;

/// Print the sudoers file for networks that need root.
///
/// Install it with: vmlan sudoers >etc_sudoers.d_lima && sudo install -o root etc_sudoers.d_lima
/// /etc/sudoers.d/lima
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Say whether the installed file is up to date, and what differs.
    #[arg(long)]
    check: bool,

    /// The file to check [default: paths.sudoers of networks.yaml].
    #[arg(requires = "check")]
    file: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let (_, file) = crate::network::load()?;
    if args.check {
        let path = verify(&file, args.file.as_deref()).map_err(Failure::Failed)?;
        return crate::print(&format!("`{}` is up-to-date\n", path.display()));
    }
    crate::print(&text(&file, &Platform::detect()).map_err(Failure::Failed)?)
}

/// The installed file, if it is what it has to be and lets the caller, and else what is missing. Of
/// another one, only what is in it counts.
pub(crate) fn verify(file: &NetworksFile, path: Option<&Path>) -> Result<PathBuf, String> {
    let platform = Platform::detect();
    let wanted = text(file, &platform)?;
    let configured = file.networks.paths.sudoers.as_ref().map(|path| path.value.as_path());
    let default = match platform.os {
        Os::Linux => "/etc/sudoers.d/lima",
        Os::Macos => "/private/etc/sudoers.d/lima",
    };
    let installed = path.is_none();
    let path = path.or(configured).unwrap_or_else(|| Path::new(default));
    check(path, &wanted, &file.networks)?;
    let may = || rustix::process::geteuid().is_root() || allowed(&file.networks);
    if installed && platform.os == Os::Linux && !may() {
        return Err(format!(
            "`{}` is up-to-date, but sudo does not let you by it; it lets the members of group `{1}`: \
             sudo usermod -a -G {1} \"$USER\"",
            path.display(),
            file.networks.group
        ));
    }
    Ok(path.into())
}

/// Whether networks can be started: by the file, or because sudo lets this user do anything.
#[cfg(not(target_os = "linux"))]
pub(crate) fn may_start(file: &NetworksFile) -> Result<(), String> {
    match verify(file, None) {
        Err(_) if text(file, &Platform::detect()).is_ok() && allowed(&file.networks) => Ok(()),
        verified => verified.map(drop),
    }
}

/// What the file has to be, or why nobody should install one.
fn text(file: &NetworksFile, platform: &Platform) -> Result<String, String> {
    let networks = &file.networks;
    let wrong = vmlan_config::check_paths(networks, daemon_group(platform.os));
    if let Some(first) = wrong.first() {
        let help = first.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
        return Err(format!("{}{help}", first.message));
    }
    let group = &networks.group;
    if group_id(group).is_none() {
        let path = file.path().display();
        return Err(format!("there is no group `{group}`; name another as `group` in {path}"));
    }
    match platform.os {
        Os::Linux => linux(networks),
        Os::Macos => {
            let program = socket_vmnet::program(networks, platform);
            Ok(sudoers::macos(networks, &program, &socket_vmnet::var_run(networks)))
        }
    }
}

fn linux(networks: &Networks) -> Result<String, String> {
    let run = networks.paths.var_run.as_ref();
    if let Some(run) = run.filter(|run| run.value != Path::new(vmnet::VAR_RUN)) {
        let (run, only) = (run.value.display(), vmnet::VAR_RUN);
        return Err(format!("`paths.varRun` is {run}, but the helper's state is always in {only}"));
    }
    let helper = vmnet::helper();
    if let Err(e) = vmlan_config::check_program(&helper) {
        let path = helper.display();
        let install = install(&helper);
        return Err(match e.is_missing() {
            true => format!("`{path}` has to be installed; do it with: {install}"),
            false => {
                format!("{e}: whoever can replace it could become root; mend it with: {install}")
            }
        });
    }
    let digest = vmnet::digest(&helper).map_err(|e| format!("{}: {e}", helper.display()))?;
    Ok(sudoers::linux(networks, &helper, &digest))
}

/// The command that puts the helper where only root can write.
fn install(to: &Path) -> String {
    let ours = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(vmnet::HELPER)));
    let from = ours.unwrap_or_else(|| vmnet::HELPER.into());
    format!("sudo install -D -o root -g root -m 755 {} {}", from.display(), to.display())
}

/// The command that installs the file.
fn hint(path: &Path) -> String {
    format!(
        "vmlan sudoers >etc_sudoers.d_lima && sudo install -o root etc_sudoers.d_lima \"{}\"",
        path.display()
    )
}

/// Compares the installed file with what it has to be.
fn check(path: &Path, wanted: &str, networks: &Networks) -> Result<(), String> {
    let (shown, hint) = (path.display(), hint(path));
    match fs::read_to_string(path) {
        Ok(there) if there == wanted => Ok(()),
        Ok(there) => {
            let found = sudoers::differences(&there, wanted);
            if found.is_empty() {
                return Ok(());
            }
            let found = found.join("\n  ");
            Err(format!(
                "sudoers file `{shown}` is out of sync:\n  {found}\nregenerate it with: {hint}"
            ))
        }
        // Many systems let only root look there; sudo itself says what it would do.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && allowed(networks) => Ok(()),
        Err(e) => Err(format!("can't read `{shown}`: {e}; install it with: {hint}")),
    }
}

/// Whether sudo lets this user run every command without a password.
fn allowed(networks: &Networks) -> bool {
    let platform = Platform::detect();
    let of_helper = |network| {
        let helper = vec![vmnet::helper().display().to_string()];
        let commands = [vmnet::start(network)?, vmnet::attach(network), vmnet::stop(network)];
        Some(commands.map(|args| [helper.clone(), args].concat()))
    };
    let of_socket_vmnet = |network| {
        let commands = socket_vmnet::Commands::of(networks, &platform, network)?;
        Some([commands.mkdir, commands.start, commands.stop])
    };
    let commands = networks.iter().filter_map(|network| match platform.os {
        Os::Linux => of_helper(network),
        Os::Macos => of_socket_vmnet(network),
    });
    let group = match platform.os {
        Os::Linux => "--group=root",
        Os::Macos => "--group=wheel",
    };
    commands.flatten().all(|words| {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "--user=root", group, "--list", "--"]).args(words);
        sudo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sudo.status().is_ok_and(|status| status.success())
    })
}

/// The group that daemons run in where root's part is one of Lima's.
fn daemon_group(os: Os) -> Option<u32> {
    match os {
        Os::Linux => None,
        Os::Macos => group_id("daemon"),
    }
}

/// The number of a group, wherever the system has groups from.
pub(crate) fn group_id(name: &str) -> Option<u32> {
    let find = |text: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        })
    };
    let listed = fs::read_to_string("/etc/group").ok().and_then(|text| find(&text));
    listed.or_else(|| {
        let program = if cfg!(target_os = "macos") { "dscacheutil" } else { "getent" };
        let args: &[&str] = match cfg!(target_os = "macos") {
            true => &["-q", "group", "-a", "name", name],
            false => &["group", name],
        };
        let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        find(&text).or_else(|| text.lines().find_map(|l| l.strip_prefix("gid: ")?.parse().ok()))
    })
}
