//! Who one is in a guest.

use std::env;
use std::ffi::CStr;

use crate::seed::User;

/// The user of a guest: the caller, or `lima` where the caller's name is none for a new user.
pub fn guest_user() -> User {
    let uid = rustix::process::getuid().as_raw();
    // The host's accounts first: they say the same at each start, whatever starts the machine.
    let name = account(uid).or_else(|| env::var("USER").or_else(|_| env::var("LOGNAME")).ok());
    of(&name.unwrap_or_default(), uid)
}

/// The name of an account of the host's.
fn account(uid: u32) -> Option<String> {
    const MOST: usize = 1 << 20;
    let mut text = vec![0; 1024];
    loop {
        // SAFETY: all of the structure are numbers and pointers, for which zero is a value.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: the pointers are valid for the call, and the length is that of the buffer.
        let error = unsafe {
            libc::getpwuid_r(uid, &raw mut entry, text.as_mut_ptr(), text.len(), &raw mut found)
        };
        if error == libc::ERANGE && text.len() < MOST {
            text.resize(text.len() * 4, 0);
            continue;
        }
        if error != 0 || found.is_null() || entry.pw_name.is_null() {
            return None;
        }
        // SAFETY: the name ends with a zero, in the buffer that is still there.
        let name = unsafe { CStr::from_ptr(entry.pw_name) };
        return name.to_str().ok().map(ToOwned::to_owned);
    }
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
        for (name, uid, want) in [
            ("root", 0, 1000),
            ("", 501, 501),
            ("Ada", 7, 7),
            ("ada.lovelace", 7, 7),
            ("admin", 7, 7),
        ] {
            let user = of(name, uid);
            assert_eq!((user.name.as_str(), user.uid), ("lima", want), "{name}");
        }
    }

    #[test]
    fn accounts() {
        assert_eq!(account(0).as_deref(), Some("root"));
        assert_eq!(account(u32::MAX - 7), None);
    }
}
