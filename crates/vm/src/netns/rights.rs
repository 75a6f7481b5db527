//! What the caller may lack, found out after the system has refused, and the way to get it. Each
//! text is one line.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use vmlan_link::tap::TapLink;

use super::files::MountError;

/// Why user, network, mount and PID namespaces were refused.
pub(super) fn namespaces(error: &io::Error) -> String {
    namespaces_on(error, &setting)
}

/// Why a mount in the guest's own namespace was refused.
pub(super) fn mount(error: &MountError) -> String {
    if let Some(why) = confined(&error.source, &setting) {
        return why;
    }
    error.to_string()
}

/// Why the caller could not be mapped into the user namespace.
pub(super) fn mapping(error: &io::Error) -> String {
    confined(error, &setting)
        .unwrap_or_else(|| format!("cannot map the caller into a user namespace: {error}"))
}

/// Opens the guest's network card.
pub(super) fn tap(name: &str) -> Result<OwnedFd, String> {
    TapLink::create(name).map_err(|error| tap_on(&error, &setting))
}

type Setting<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The text of a setting, named as for sysctl(8), or a line of `status` of this process.
fn setting(name: &str) -> Option<String> {
    if let Some(field) = name.strip_prefix("status.") {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        return Some(line.trim().to_owned());
    }
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn namespaces_on(error: &io::Error, setting: Setting<'_>) -> String {
    let is = |name, value: &str| setting(name).as_deref() == Some(value);
    if is("kernel.unprivileged_userns_clone", "0") {
        return "user namespaces are not allowed: kernel.unprivileged_userns_clone is 0; allow \
                them with: sudo sysctl -w kernel.unprivileged_userns_clone=1"
            .into();
    }
    for kind in ["user", "net", "mnt", "pid"] {
        let name = format!("user.max_{kind}_namespaces");
        if setting(&name).as_deref() == Some("0") {
            return format!(
                "namespaces are not allowed: {name} is 0; allow them with: sudo sysctl -w \
                 {name}=15000"
            );
        }
    }
    if let Some(why) = confined(error, setting) {
        return why;
    }
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => {
            "too many namespaces: a limit of user.max_*_namespaces is reached, or they are nested \
             too deep; raise it with: sudo sysctl -w user.max_user_namespaces=100000"
                .into()
        }
        Some(libc::EINVAL) => {
            "this kernel has no user namespaces: it needs CONFIG_USER_NS, CONFIG_NET_NS and \
             CONFIG_PID_NS"
                .into()
        }
        Some(libc::EPERM) => {
            "user namespaces are not allowed here (a chroot, or a security module); run vmlan \
             outside of it, or allow them there"
                .into()
        }
        _ => format!("cannot make namespaces: {error}"),
    }
}

/// What takes rights from a process beside the sysctls: AppArmor and seccomp.
fn confined(error: &io::Error, setting: Setting<'_>) -> Option<String> {
    if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) {
        return None;
    }
    if setting("kernel.apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return Some(
            "AppArmor takes the rights from user namespaces: \
             kernel.apparmor_restrict_unprivileged_userns is 1; allow them with: sudo sysctl -w \
             kernel.apparmor_restrict_unprivileged_userns=0"
                .into(),
        );
    }
    if setting("status.Seccomp").as_deref() == Some("2") {
        return Some(
            "a seccomp filter forbids namespaces, as those of containers do; start the container \
             with: --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
                .into(),
        );
    }
    None
}

fn tap_on(error: &io::Error, setting: Setting<'_>) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "/dev/net/tun is missing; make it with: sudo modprobe tun (in a container: start it \
             with --device /dev/net/tun)"
                .into()
        }
        Some(libc::EACCES) => {
            "/dev/net/tun may not be opened; allow it with: sudo chmod 0666 /dev/net/tun".into()
        }
        Some(libc::EPERM) => confined(error, setting).unwrap_or_else(|| {
            "/dev/net/tun is not permitted, as in a container without it; start the container \
             with: --device /dev/net/tun"
                .into()
        }),
        _ => format!("cannot make the guest's network card: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> impl Fn(&str) -> Option<String> {
        move |asked| (asked == name).then(|| value.to_owned())
    }

    fn refused(errno: i32, name: &'static str, value: &'static str) -> String {
        namespaces_on(&io::Error::from_raw_os_error(errno), &with(name, value))
    }

    #[test]
    fn the_setting_that_forbids_namespaces_is_named() {
        let debian = refused(libc::EPERM, "kernel.unprivileged_userns_clone", "0");
        assert!(debian.contains("sysctl -w kernel.unprivileged_userns_clone=1"), "{debian}");
        let limit = refused(libc::ENOSPC, "user.max_user_namespaces", "0");
        assert!(limit.contains("sysctl -w user.max_user_namespaces=15000"), "{limit}");
        let limit = refused(libc::ENOSPC, "user.max_net_namespaces", "0");
        assert!(limit.contains("user.max_net_namespaces is 0"), "{limit}");
        let ubuntu = refused(libc::EPERM, "kernel.apparmor_restrict_unprivileged_userns", "1");
        assert!(ubuntu.contains("unprivileged_userns=0"), "{ubuntu}");
        let container = refused(libc::EPERM, "status.Seccomp", "2");
        assert!(container.contains("seccomp=unconfined"), "{container}");
        let full = refused(libc::ENOSPC, "user.max_user_namespaces", "1000");
        assert!(full.contains("limit"), "{full}");
    }

    #[test]
    fn a_missing_tun_device_is_named() {
        let none = |_: &str| None;
        let text = |errno| tap_on(&io::Error::from_raw_os_error(errno), &none);
        assert!(text(libc::ENOENT).contains("modprobe tun"));
        assert!(text(libc::EACCES).contains("chmod 0666 /dev/net/tun"));
        assert!(text(libc::EPERM).contains("--device /dev/net/tun"));
    }

    #[test]
    fn settings_are_read_from_the_system() {
        assert!(setting("kernel.ostype").is_some_and(|s| s == "Linux"));
        assert!(setting("status.Seccomp").is_some());
        assert_eq!(setting("kernel.no_such_thing"), None);
    }
}
