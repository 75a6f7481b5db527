//! `vmlan network`: the networks that are configured in `networks.yaml`.

mod choose;
mod create;
pub(crate) mod daemon;
mod delete;
mod list;
mod live;
mod show;
mod top;
pub(crate) mod watch;

use std::process::ExitCode;

use vmlan_config::{FileError, HomeError, LimaHome, NetworksFile, Platform, Report};

use crate::{Failure, tell};

/// Configure the networks that guests can join.
///
/// They are in _config/networks.yaml below $LIMA_HOME (~/.lima unless set), which is made with
/// defaults the first time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Choose(choose::Args),
    Create(create::Args),
    #[command(visible_aliases = ["remove", "rm"])]
    Delete(delete::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
    Start(daemon::StartArgs),
    Stop(daemon::StopArgs),
    Top(top::Args),
    #[command(hide = true)]
    Watch(watch::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let text = match &args.command {
        Command::Choose(args) => choose::run(args),
        Command::Create(args) => create::run(args),
        Command::Delete(args) => delete::run(args),
        Command::List(args) => list::run(args),
        Command::Show(args) => show::run(args),
        Command::Start(args) => daemon::start(args),
        Command::Stop(args) => daemon::stop(args),
        Command::Top(args) => top::run(args),
        Command::Watch(args) => watch::run(args),
    }?;
    crate::print(&text)
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::Failed(match error {
            FileError::Report(report) => shown(&report),
            error => error.to_string(),
        })
    }
}

impl From<HomeError> for Failure {
    fn from(error: HomeError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Reads `networks.yaml` and tells what is to be said about it.
pub(crate) fn load() -> Result<(LimaHome, NetworksFile), Failure> {
    let home = LimaHome::from_env()?;
    let file = NetworksFile::load(&home, &Platform::detect())?;
    warn(&file);
    Ok((home, file))
}

fn warn(file: &NetworksFile) {
    if let Some(report) = &file.warnings {
        tell(&report.to_string());
    }
}

/// A line of vmlan's says by itself that it is about an error.
pub(crate) fn shown(report: &Report) -> String {
    let text = report.to_string();
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

/// A network by name, or who there is.
pub(crate) fn find<'a>(
    file: &'a NetworksFile,
    name: &str,
) -> Result<&'a vmlan_config::Network, Failure> {
    file.networks.get(name).ok_or_else(|| {
        let names: Vec<_> = file.networks.names().collect();
        let path = file.path().display();
        Failure::Failed(format!("no network `{name}` in {path}: there is {}", names.join(", ")))
    })
}
