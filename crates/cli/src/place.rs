//! `NETWORK|GUEST` on a command line: which running network is meant, and which guest on it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use vmlan_api::network::Guest;
use vmlan_api::{Client, ClientError};
use vmlan_config::{LimaHome, Mode};
use vmlan_netd::PidFile;

use crate::Failure;

/// A running network, and maybe one of its guests.
#[derive(Debug)]
pub(crate) struct Place {
    /// The network's name, or the path of its control socket.
    pub(crate) network: String,
    pub(crate) client: Client,
    pub(crate) guest: Option<Guest>,
}

/// A network with a daemon.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) client: Client,
}

/// Finds what `name` means: a network (also as `lima:NAME`), a guest of any running network, a
/// guest of one network as `NETWORK/GUEST`, or the path of a daemon's control socket.
pub(crate) fn find(name: &str) -> Result<Place, Failure> {
    if name.starts_with('/') || name.starts_with("./") || name.starts_with("../") {
        let client = Client::new(Path::new(name));
        return Ok(Place { network: name.into(), client, guest: None });
    }
    if let Some((network, guest)) = name.split_once('/') {
        return find_guest(network, guest);
    }
    let (home, names) = known()?;
    if names.iter().any(|known| known == name) || name.starts_with("lima:") {
        let Running { name, client } = running_network(name)?;
        return Ok(Place { network: name, client, guest: None });
    }
    let mut places = Vec::new();
    let mut others = Vec::new();
    for running in running_of(&home, &names) {
        let guests = running.guests()?;
        match guests.iter().find(|g| is(g, name)) {
            Some(guest) => {
                let Running { name: network, client } = running;
                places.push(Place { network, client, guest: Some(guest.clone()) });
            }
            None => others.extend(called(&guests)),
        }
    }
    match places.len() {
        0 => Err(Failure::Failed(nobody(&home, name, &names, &others))),
        1 => Ok(places.remove(0)),
        _ => {
            let all: Vec<_> = places.iter().map(|p| format!("{}/{name}", p.network)).collect();
            let text = format!("guest `{name}` is on several networks: say {}", all.join(" or "));
            Err(Failure::Failed(text))
        }
    }
}

/// Finds a guest of a network by its name or one of its addresses.
pub(crate) fn find_guest(network: &str, guest: &str) -> Result<Place, Failure> {
    let running = running_network(network)?;
    let guests = running.guests()?;
    let Some(found) = guests.iter().find(|g| is(g, guest)) else {
        let others = there(&called(&guests));
        let text = format!("no guest `{guest}` is on network `{}`: {others}", running.name);
        return Err(Failure::Failed(text));
    };
    let Running { name: network, client } = running;
    Ok(Place { network, client, guest: Some(found.clone()) })
}

/// Why nothing has this name: what there is in its place.
fn nobody(home: &LimaHome, name: &str, networks: &[String], guests: &[String]) -> String {
    let guests = there(guests);
    // Nothing but a name is an instance's directory.
    if vmlan_config::host_name(name).is_ok() && home.instance(name).join("lima.yaml").exists() {
        return match PidFile::holder(&home.instance(name).join("ha.pid")) {
            Ok(None) => format!("instance `{name}` is stopped, run `vmlan start {name}`; {guests}"),
            _ => format!("instance `{name}` is on no network with a daemon; {guests}"),
        };
    }
    let networks = networks.join(", ");
    format!("no network and no running guest is called `{name}`: there is {networks}; {guests}")
}

fn there(guests: &[String]) -> String {
    if guests.is_empty() {
        "no guest runs".into()
    } else {
        format!("the guests are {}", guests.join(", "))
    }
}

/// By which names guests can be meant.
fn called(guests: &[Guest]) -> Vec<String> {
    let name = |guest: &Guest| {
        let address = guest.addresses.first().map(ToString::to_string);
        guest.name.clone().or(address).or_else(|| guest.macs.first().cloned())
    };
    guests.iter().filter_map(name).collect()
}

/// The networks that have a daemon now.
pub(crate) fn running() -> Result<Vec<Running>, Failure> {
    let (home, names) = known()?;
    Ok(running_of(&home, &names))
}

impl Running {
    /// What its daemon says, or `None` if it has ended meanwhile.
    pub(crate) fn get<T: DeserializeOwned>(&self, target: &str) -> Result<Option<T>, Failure> {
        match self.client.get(target) {
            Err(ClientError::NoDaemon) => Ok(None),
            answer => answer.map(Some).map_err(failed(&self.name)),
        }
    }

    fn guests(&self) -> Result<Vec<Guest>, Failure> {
        Ok(self.get("/v1/guests")?.unwrap_or_default())
    }
}

/// A network that has to be there, by its name or by the path of its control socket.
pub(crate) fn running_network(name: &str) -> Result<Running, Failure> {
    if name.contains('/') {
        return Ok(Running { name: name.into(), client: Client::new(Path::new(name)) });
    }
    let name = name.strip_prefix("lima:").unwrap_or(name);
    let (home, names) = known()?;
    if !names.iter().any(|known| known == name) {
        let list = names.join(", ");
        return Err(Failure::Failed(format!(
            "no network `{name}` of mode user-v2: there is {list}"
        )));
    }
    let client = Client::new(&home.network(name).endpoint);
    if !client.is_there() {
        let text = format!(
            "network `{name}` has no daemon now: one comes with its first guest, or with `vmlan \
             network start {name}`"
        );
        return Err(Failure::Failed(text));
    }
    Ok(Running { name: name.into(), client })
}

/// What went wrong with a network that is there.
pub(crate) fn failed(network: &str) -> impl Fn(ClientError) -> Failure {
    move |error| match error {
        ClientError::NoDaemon => Failure::Failed(format!("network `{network}` has no daemon now")),
        ClientError::Refused { text, .. } => Failure::Failed(text),
        ClientError::Io(error) => {
            Failure::Failed(format!("network `{network}`: its daemon does not answer: {error}"))
        }
    }
}

/// A guest without a name has its addresses.
fn is(guest: &Guest, name: &str) -> bool {
    let ip = name.parse().is_ok_and(|ip| guest.addresses.contains(&ip));
    ip || guest.name.as_deref() == Some(name) || guest.macs.iter().any(|mac| mac == name)
}

/// Networks that are configured, or have been and may still have a daemon.
fn known() -> Result<(LimaHome, Vec<String>), Failure> {
    let (home, file) = crate::network::load()?;
    let user_mode = file.networks.iter().filter(|network| network.mode == Mode::UserV2);
    let mut names: Vec<String> = user_mode.map(|network| network.name.clone()).collect();
    let dirs = fs::read_dir(home.networks()).into_iter().flatten().flatten();
    let dirs = dirs.filter_map(|entry| entry.file_name().into_string().ok());
    names.extend(dirs.filter(|name| is_socket(&home.network(name).endpoint)));
    names.sort();
    names.dedup();
    Ok((home, names))
}

fn is_socket(path: &PathBuf) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

fn running_of(home: &LimaHome, names: &[String]) -> Vec<Running> {
    let all = names.iter().map(|name| Running {
        name: name.clone(),
        client: Client::new(&home.network(name).endpoint),
    });
    all.filter(|running| running.client.is_there()).collect()
}
