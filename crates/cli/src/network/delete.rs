//! `vmlan network delete`

use vmlan_config::{BUILT_IN, LimaHome, NetworksFile, Platform, users_of};

use crate::{Failure, tell};

/// Remove networks from networks.yaml.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The networks to remove: all of them, or none if one cannot be.
    #[arg(required = true)]
    name: Vec<String>,

    /// Remove a network even if an instance uses it, and do not mind one that is not there.
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let home = LimaHome::from_env()?;
    let mut locked = NetworksFile::lock(&home, &Platform::detect())?;
    super::warn(&locked.file);
    let mut names: Vec<&str> = Vec::new();
    for name in &args.name {
        match super::find(&locked.file, name) {
            Ok(network) if network.span.is_none() => {
                let path = locked.file.path().display();
                let text = format!("network `{name}` is built in and not in {path}");
                return Err(Failure::Failed(text));
            }
            Ok(_) if !names.contains(&name.as_str()) => names.push(name),
            Ok(_) => {}
            Err(Failure::Failed(why)) if args.force => tell(&why),
            Err(failure) => return Err(failure),
        }
        if !args.force {
            refuse_in_use(&home, name)?;
        }
    }
    if !names.is_empty() {
        locked.remove(&names)?;
    }
    if names.contains(&BUILT_IN) && locked.file.networks.get(BUILT_IN).is_some() {
        tell(&format!("network `{BUILT_IN}` is still there, with its built-in defaults"));
    }
    Ok(String::new())
}

fn refuse_in_use(home: &LimaHome, name: &str) -> Result<(), Failure> {
    let users = users_of(home, name).map_err(|e| {
        Failure::Failed(format!("{}: who uses `{name}`: {e}", home.path().display()))
    })?;
    let list = |names: &[String]| names.join(", ");
    if !users.instances.is_empty() {
        let users = list(&users.instances);
        return Err(Failure::Failed(format!("network `{name}` is used by {users}; see --force")));
    }
    if !users.unreadable.is_empty() {
        let users = list(&users.unreadable);
        let text =
            format!("network `{name}` may be used by {users}, whose lima.yaml cannot be read");
        return Err(Failure::Failed(text + "; see --force"));
    }
    Ok(())
}
