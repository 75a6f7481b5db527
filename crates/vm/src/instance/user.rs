//! Who one is in a guest.

use std::env;

use crate::seed::User;

/// The user of a guest: the caller, or `lima` where the caller's name is none for a new user.
pub fn guest_user() -> User {
    let name = env::var("USER").or_else(|_| env::var("LOGNAME")).unwrap_or_default();
    of(&name, rustix::process::getuid().as_raw())
}

fn of(name: &str, uid: u32) -> User {
    const NOBODYS: u32 = 1000;
    let own = name != "root" && !SYSTEM.contains(&name) && is_name(name);
    let name = if own { name } else { "lima" };
    User {
        name: name.into(),
        uid: if uid == 0 { NOBODYS } else { uid },
        // Not the host's, which may be mounted there.
        home: format!("/home/{name}.guest"),
        shell: "/bin/bash".into(),
    }
}

/// Users that guests have for something else.
const SYSTEM: &[&str] = &["admin", "bin", "daemon", "lima", "nobody", "operator", "sync", "sys"];

/// useradd(8)
fn is_name(name: &str) -> bool {
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    first && name.len() <= 32 && name.chars().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let user = of("ada", 1001);
        assert_eq!((user.name.as_str(), user.uid), ("ada", 1001));
        assert_eq!(user.home, "/home/ada.guest");
        for (name, uid, want) in [("root", 0, 1000), ("", 501, 501), ("Ada Lovelace", 7, 7)] {
            let user = of(name, uid);
            assert_eq!((user.name.as_str(), user.uid), ("lima", want), "{name}");
        }
    }
}
