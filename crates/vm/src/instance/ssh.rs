//! How one gets into a guest: the key pair of all instances, the configuration for ssh(1), and
//! whether the guest answers.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use vmlan_config::LimaHome;

use super::files::Files;
use crate::qemu::program::search;

/// Longest wait for the guest's greeting once the port is open.
const GREETING: Duration = Duration::from_secs(5);

/// RFC 4253, 4.2
const LONGEST: u64 = 255;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("`{program}` is not installed: install openssh-client")]
    Missing { program: &'static str },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("ssh-keygen: {0}")]
    Failed(String),
}

/// Whether the programs are there that a machine is waited for with.
pub fn installed() -> Result<(), KeyError> {
    let path = std::env::var_os("PATH");
    let missing = |program: &&str| search(Path::new(program), path.as_ref()).is_none();
    match ["ssh", "ssh-keygen"].into_iter().find(missing) {
        Some(program) => Err(KeyError::Missing { program }),
        None => Ok(()),
    }
}

/// The private key of all instances, which is made if there is none, and the public one.
pub fn keys(home: &LimaHome) -> Result<(PathBuf, String), KeyError> {
    let dir = home.path().join("_config");
    let key = dir.join("user");
    let public = dir.join("user.pub");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| KeyError::Io { path, source }
    };
    fs::create_dir_all(&dir).map_err(failed(&dir))?;
    // Two machines may be made at once.
    let lock = File::open(&dir).map_err(failed(&dir))?;
    lock.lock().map_err(failed(&dir))?;
    if !key.exists() || !public.exists() {
        let new = dir.join("user.new");
        let _ = fs::remove_file(&new);
        let output = Command::new("ssh-keygen")
            .args(["-t", "ed25519", "-q", "-N", "", "-C", "vmlan", "-f"])
            .arg(&new)
            .stdin(Stdio::null())
            .output();
        let output = match output {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::Missing { program: "ssh-keygen" });
            }
            output => output.map_err(failed(Path::new("ssh-keygen")))?,
        };
        if !output.status.success() {
            return Err(KeyError::Failed(String::from_utf8_lossy(&output.stderr).trim().into()));
        }
        fs::rename(dir.join("user.new.pub"), &public).map_err(failed(&public))?;
        fs::rename(&new, &key).map_err(failed(&key))?;
    }
    let text = fs::read_to_string(&public).map_err(failed(&public))?;
    Ok((key, text.trim().to_owned()))
}

/// The public keys of the user's own.
pub fn own_keys() -> Vec<String> {
    let Some(home) = std::env::home_dir() else { return Vec::new() };
    let entries = fs::read_dir(home.join(".ssh")).into_iter().flatten().flatten();
    let mut keys: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "pub"))
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty() && !text.contains('\n'))
        .collect();
    keys.sort();
    keys
}

/// Settings for ssh(1), one for each line of its configuration.
pub fn options(key: &Path, user: &str, port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("IdentityFile", quoted(key)),
        ("StrictHostKeyChecking", "no".into()),
        ("UserKnownHostsFile", "/dev/null".into()),
        ("NoHostAuthenticationForLocalhost", "yes".into()),
        ("PreferredAuthentications", "publickey".into()),
        ("Compression", "no".into()),
        ("BatchMode", "yes".into()),
        ("IdentitiesOnly", "yes".into()),
        ("GSSAPIAuthentication", "no".into()),
        ("LogLevel", "ERROR".into()),
        ("User", user.into()),
        ("Hostname", Ipv4Addr::LOCALHOST.to_string()),
        ("Port", port.to_string()),
    ]
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// What ssh(1) calls an instance.
pub fn host(name: &str) -> String {
    // The name of an instance has been checked.
    vmlan_config::host_name(name).unwrap_or_else(|_| name.to_owned())
}

/// The text of `ssh.config`.
pub fn config(name: &str, options: &[(&str, String)]) -> String {
    let lines: String = options.iter().map(|(key, value)| format!("  {key} {value}\n")).collect();
    format!(
        "# `ssh -F` with this file reaches the instance as {host}; vmlan writes it at each start.\n\
         Host {host}\n{lines}",
        host = host(name)
    )
}

/// The port that the instance had last.
pub fn last_port(files: &Files) -> Option<u16> {
    let text = fs::read_to_string(files.ssh_config()).ok()?;
    text.lines().find_map(|line| line.trim().strip_prefix("Port ")?.parse().ok())
}

/// Whether somebody who speaks ssh greets at the port.
pub fn greets(port: u16) -> bool {
    greeting(port).is_some_and(|line| line.starts_with("SSH-"))
}

/// Whether the instance's server ends what a command writes when nobody reads that here: only
/// OpenSSH's understands `eow@openssh.com`.
pub fn hears_of_closed_outputs(files: &Files) -> bool {
    let line = last_port(files).and_then(greeting);
    line.is_some_and(|line| line.starts_with("SSH-2.0-OpenSSH"))
}

/// How somebody greets at the port.
fn greeting(port: u16) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, GREETING).ok()?;
    stream.set_read_timeout(Some(GREETING)).ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line).ok()?;
    Some(line)
}

/// Whether the user can log in. What the machine says to that is not read: it has no end if it likes.
pub fn logs_in(files: &Files, name: &str) -> bool {
    let mut command = Command::new("ssh");
    command.arg("-F").arg(files.ssh_config()).args([
        "-o",
        "ConnectTimeout=20",
        &host(name),
        "true",
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn keys_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let home = LimaHome::new(dir.path()).unwrap();
        let (key, public) = keys(&home).unwrap();
        assert!(public.starts_with("ssh-ed25519 "), "{public}");
        assert_eq!(key, home.path().join("_config/user"));
        assert_eq!(keys(&home).unwrap().1, public);
        let left: Vec<_> = fs::read_dir(dir.path().join("_config")).unwrap().collect();
        assert_eq!(left.len(), 2);
    }

    #[test]
    fn the_configuration_is_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        assert_eq!(last_port(&files), None);
        let options = options(Path::new("/h o/user"), "ada", 60022);
        fs::write(files.ssh_config(), config("my.vm", &options)).unwrap();
        assert_eq!(last_port(&files), Some(60022));
        let output = Command::new("ssh")
            .args(["-G", "-F"])
            .arg(files.ssh_config())
            .arg("lima-my-vm")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for line in ["user ada", "port 60022", "hostname 127.0.0.1", "identityfile /h o/user"] {
            assert!(text.lines().any(|is| is == line), "{line} in {text}");
        }
    }

    #[test]
    fn who_greets_otherwise_is_no_ssh() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            for greeting in [&b"SSH-2.0-x\r\n"[..], b"HTTP/1.1", b""] {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(greeting).unwrap();
            }
        });
        assert!(greets(port));
        assert!(!greets(port));
        assert!(!greets(port));
        server.join().unwrap();
        assert!(!greets(port));
    }
}
