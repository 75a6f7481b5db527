//! The disk from which a machine configures itself at its first boot and at each that follows: an
//! ISO 9660 image labelled `cidata` with what cloud-init's data source NoCloud reads, the scripts
//! of `provision:`, and the agent. The network works by what is here and in the image: no package
//! is installed for it.
//!
//! What differs between machines is [`Seed`]; what all do at boot is `boot.sh` beside this file.

mod documents;
pub mod env;
mod iso;

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use vmlan_config::instance::{CaCerts, Provision};
use vmlan_wire::Mac;

use crate::shell::quoted;

/// What a machine is told about itself.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    /// The instance's name; the guest's own begins with `lima-`.
    pub instance: String,
    pub user: User,
    /// Public keys with which the user may log in.
    pub keys: Vec<String>,
    /// The first one's is the default network.
    pub interfaces: Vec<Interface>,
    /// Name servers, if not those that DHCP tells.
    pub dns: Vec<IpAddr>,
    /// The host as the guest sees it: `host.lima.internal`.
    pub host: Option<IpAddr>,
    /// Environment variables of every login; see [`mod@env`] for the proxies.
    pub env: Vec<(String, String)>,
    pub ca_certs: Trust,
    /// Run in this order at the end of each boot.
    pub provision: Vec<Provision>,
    /// The program that runs in the guest, for its architecture.
    pub agent: Option<&'static [u8]>,
    pub local_dns: Option<LocalDns>,
    /// Without agent and scripts.
    pub plain: bool,
}

/// The user of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub home: String,
    pub shell: String,
}

/// A network card of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub mac: Mac,
    pub name: String,
    /// Of the routes that DHCP tells: less is preferred.
    pub metric: u32,
    /// Whether routes that DHCP tells are wanted at all.
    pub default_route: bool,
}

/// Certificates that a guest trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    pub remove_defaults: bool,
    /// In PEM.
    pub certs: Vec<String>,
}

/// Where the host agent answers names for a network that is not vmlan's own: questions to `server`
/// go to these ports of `host`. A port that is 0 is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalDns {
    pub server: Ipv4Addr,
    pub host: Ipv4Addr,
    pub udp: u16,
    pub tcp: u16,
}

impl Trust {
    /// Reads the files that a configuration names.
    pub fn read(config: &CaCerts) -> io::Result<Self> {
        let mut certs = config.certs.clone();
        for path in &config.files {
            let text = fs::read_to_string(path).map_err(|e| {
                io::Error::new(
                    e.kind(),
                    format!("cannot read the certificate {}: {e}", path.display()),
                )
            })?;
            certs.push(text);
        }
        Ok(Self { remove_defaults: config.remove_defaults, certs })
    }
}

impl Seed {
    /// Writes the image, in the place of an older one. There is never half of one: what is at `path`
    /// is the old or the new. Only its owner may read it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("iso.new");
        let written = self.write_new(&new).and_then(|()| fs::rename(&new, path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut file = BufWriter::new(file);
        self.image(&mut file)?;
        file.into_inner()?.sync_all()
    }

    fn image(&self, to: &mut impl io::Write) -> io::Result<()> {
        let user_data = documents::user_data(self);
        let network = documents::network_config(self);
        let name = vmlan_config::host_name(&self.instance)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let meta_data = documents::meta_data(&name, &[&user_data, &network]);
        let (boot, environment) = (self.boot(), self.environment()?);
        let hosts = self.hosts(&name);
        let text = |name, content| iso::File { name, mode: 0o444, content };
        let mut files = vec![
            text("user-data", user_data.as_bytes()),
            text("meta-data", meta_data.as_bytes()),
            text("network-config", network.as_bytes()),
            text("environment", environment.as_bytes()),
            text("hosts", hosts.as_bytes()),
            text("vmlan-boot", boot.as_bytes()),
        ];
        let scripts = if self.plain { &[] } else { self.provision.as_slice() };
        let name = |(i, script): (usize, &Provision)| {
            format!("provision-{i:04}-{}", if script.as_user { "user" } else { "system" })
        };
        let names: Vec<_> = scripts.iter().enumerate().map(name).collect();
        for (name, script) in names.iter().zip(scripts) {
            files.push(iso::File { name, mode: 0o555, content: script.script.as_bytes() });
        }
        if let Some(content) = self.agent.filter(|_| !self.plain) {
            files.push(iso::File { name: "vmlan-agent", mode: 0o555, content });
        }
        iso::write(to, "cidata", &files)
    }

    /// What the guest runs at boot.
    fn boot(&self) -> String {
        let dns = self.local_dns;
        let server = dns.map_or_else(String::new, |dns| dns.server.to_string());
        let host = dns.map_or_else(String::new, |dns| dns.host.to_string());
        let (udp, tcp) = dns.map_or((0, 0), |dns| (dns.udp, dns.tcp));
        let user = quoted(&self.user.name);
        format!(
            "user={user}\ndns_server={server}\ndns_host={host}\ndns_udp={udp}\ndns_tcp={tcp}\n{BOOT}"
        )
    }

    /// The lines of `/etc/environment`.
    fn environment(&self) -> io::Result<String> {
        let mut lines = String::new();
        for (name, value) in &self.env {
            let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(named) || value.contains(['\n', '\0']) {
                let text = format!(
                    "the variable `{name}` cannot be set: a name is letters, digits and `_`, a value one line"
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            let _ = writeln!(lines, "{name}={value}");
        }
        Ok(lines)
    }

    /// The lines of `/etc/hosts`: without its own, `sudo` complains in a guest whose network is
    /// not there.
    fn hosts(&self, name: &str) -> String {
        let mut lines = format!("127.0.1.1\t{name}\n");
        if let Some(host) = self.host {
            let _ = writeln!(lines, "{host}\thost.lima.internal");
        }
        lines
    }
}

const BOOT: &str = include_str!("boot.sh");

#[cfg(test)]
mod tests;
