//! Which instances name a network in their `lima.yaml`.

use std::fs;
use std::io;

use crate::home::LimaHome;
use crate::raw::RawInstance;
use crate::source::Source;

/// The instances that name a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    pub instances: Vec<String>,
    /// Instances whose `lima.yaml` cannot be read: they may name it too.
    pub unreadable: Vec<String>,
}

/// Looks through the instances of a home.
pub fn users_of(home: &LimaHome, network: &str) -> io::Result<Users> {
    let mut users = Users::default();
    let entries = match fs::read_dir(home.path()) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(users),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if name.starts_with(['_', '.']) {
            continue;
        }
        let text = match fs::read_to_string(home.instance(&name).join("lima.yaml")) {
            Ok(text) => text,
            Err(e) if is_no_instance(&e) => continue,
            Err(_) => {
                users.unreadable.push(name);
                continue;
            }
        };
        match RawInstance::parse(&Source::new("lima.yaml", text)) {
            Ok(instance) => {
                let entries = instance.networks.unwrap_or_default();
                let names = entries.iter().filter_map(|entry| entry.value.lima.as_ref());
                if names.into_iter().any(|name| name.value == network) {
                    users.instances.push(name);
                }
            }
            Err(_) => users.unreadable.push(name),
        }
    }
    users.instances.sort();
    users.unreadable.sort();
    Ok(users)
}

fn is_no_instance(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_that_name_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = LimaHome::new(dir.path()).unwrap();
        let instance = |name: &str, text: &str| {
            fs::create_dir_all(home.instance(name)).unwrap();
            fs::write(home.instance(name).join("lima.yaml"), text).unwrap();
        };
        instance("b", "images: []\nnetworks:\n- lima: shared\n- lima: user-v2\n");
        instance("a", "networks: [{lima: shared, metric: 5}, {vzNAT: true}]\n");
        instance("c", "networks:\n- lima: host\n");
        instance("d", "# nothing\n");
        instance("broken", "networks: [\n");
        instance("_config", "networks: [{lima: shared}]\n");
        fs::create_dir(home.instance("empty")).unwrap();
        fs::write(home.instance("file"), "").unwrap();
        let users = users_of(&home, "shared").unwrap();
        assert_eq!(users.instances, ["a", "b"]);
        assert_eq!(users.unreadable, ["broken"]);
        let nowhere = LimaHome::new(&dir.path().join("none")).unwrap();
        assert_eq!(users_of(&nowhere, "shared").unwrap(), Users::default());
    }
}
