//! Names that guests bring to their network, there as long as the guest that was first with them.

use vmlan_dns::{Names, Target};

/// Names, and the address or the other name that each stands for.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    accepted: Vec<(String, Target)>,
    /// Why others are not.
    pub(super) warnings: Vec<String>,
}

impl Hosts {
    /// Sees which of a guest's names it may bring. An error is a name that is none.
    pub(super) fn new(wanted: &[(String, String)], names: &Names) -> Result<Self, String> {
        let mut hosts = Self::default();
        for (name, target) in wanted {
            let target = match target.parse() {
                Ok(address) => Target::Address(address),
                Err(_) => Target::Alias(target.clone()),
            };
            Names::default().add(name, &target).map_err(|e| e.to_string())?;
            if names.has(name) {
                let warning =
                    format!("the name `{name}` is on the network already, and stays what it is");
                if !hosts.warnings.contains(&warning) {
                    hosts.warnings.push(warning);
                }
            } else {
                hosts.accepted.push((name.clone(), target));
            }
        }
        Ok(hosts)
    }

    pub(super) fn add_to(&self, names: &mut Names) {
        for (name, target) in &self.accepted {
            // The name has been checked.
            let _ = names.add(name, target);
        }
    }

    pub(super) fn remove_from(&self, names: &mut Names) {
        for (name, _) in &self.accepted {
            names.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, target: &str) -> (String, String) {
        (name.into(), target.into())
    }

    #[test]
    fn who_is_first_keeps_a_name() {
        let mut names = Names::default();
        let wanted =
            [pair("a.test", "10.0.0.1"), pair("a.test", "fd00::1"), pair("b.test", "a.test")];
        let first = Hosts::new(&wanted, &names).unwrap();
        assert!(first.warnings.is_empty());
        first.add_to(&mut names);
        let wanted = [pair("A.test", "10.0.0.9"), pair("c.test", "10.0.0.3")];
        let second = Hosts::new(&wanted, &names).unwrap();
        assert_eq!(second.accepted.len(), 1);
        assert!(second.warnings[0].contains("`A.test` is on the network already"));
        second.add_to(&mut names);
        first.remove_from(&mut names);
        assert!(names.has("c.test") && !names.has("a.test") && !names.has("b.test"));
        // Names of vmlan's are nobody else's.
        let own = Hosts::new(&[pair("lima-web.internal", "10.0.0.1")], &names).unwrap();
        assert_eq!((own.accepted.len(), own.warnings.len()), (0, 1));
        assert!(Hosts::new(&[pair("..", "10.0.0.1")], &names).is_err());
    }
}
