//! The `networks:` list of an instance: each entry one interface in the guest.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use vmlan_wire::Mac;

use crate::mac::{MacError, mac_address, parse_mac};
use crate::networks::{Mode, Networks, unknown_field};
use crate::raw::{At, RawEntry, RawInstance};
use crate::source::{Diagnostic, Report, Severity, Source, Span};
use crate::yaml;

/// What an interface is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The user-mode network that every guest has without another one.
    Default,
    /// A network of `networks.yaml`.
    Lima(String),
    /// The socket of somebody else's daemon.
    Socket(PathBuf),
    /// Apple's own NAT.
    VzNat,
}

/// An interface of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub target: Target,
    pub interface: String,
    pub mac: Mac,
    /// The metric of the interface's routes.
    pub metric: u32,
}

/// What entries are resolved with.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    pub networks: &'a Networks,
    /// The machine's identity, see [`crate::machine::id`].
    pub machine: &'a str,
    /// The instance's directory; it need not exist.
    pub dir: &'a Path,
}

/// The first interface: the default network's, or that of the user-v2 network in its place.
pub const FIRST_INTERFACE: &str = "eth0";
/// The metric of the first interface.
pub const FIRST_METRIC: u32 = 200;
/// The metric of the others.
pub const METRIC: u32 = 100;

/// Most bytes of an interface's name, with the zero at its end.
const IFNAMSIZ: usize = 16;

impl RawInstance {
    /// Reads what a `lima.yaml` says about networks.
    pub fn parse(source: &Source) -> Result<Self, Report> {
        let report = |error| Report { file: source.clone(), diagnostics: vec![error] };
        yaml::parse(source.text()).map_err(report)
    }
}

impl RawEntry {
    /// What `--network` says: `lima:NAME`, `socket:PATH` or `vzNAT`.
    pub fn from_flag(text: &str) -> Result<Self, String> {
        let at = |value: &str| Some(At::nowhere(value.to_owned()));
        match text.split_once(':') {
            _ if text == "vzNAT" => Ok(Self { vz_nat: Some(At::nowhere(true)), ..Self::default() }),
            Some(("lima", name)) if !name.is_empty() => {
                Ok(Self { lima: at(name), ..Self::default() })
            }
            Some(("socket", path)) if !path.is_empty() => {
                Ok(Self { socket: at(path), ..Self::default() })
            }
            _ => Err(format!("network name must be `vzNAT`, `lima:*` or `socket:*`, got `{text}`")),
        }
    }
}

/// The interfaces of an instance, the first one `eth0`, and what is to be said about the entries
/// although they can be used. All errors are told at once, warnings with them.
pub fn attachments(
    entries: &[At<RawEntry>],
    instance: Instance<'_>,
) -> Result<(Vec<Attachment>, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut resolve = Resolve { instance, found: Vec::new(), names: Vec::new(), first: None };
    let mut others = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        others.extend(resolve.entry(i, &entry.value, entry.span));
    }
    if resolve.found.iter().any(|d| d.severity == Severity::Error) {
        return Err(resolve.found);
    }
    let mut all = vec![resolve.first.take().unwrap_or_else(|| Attachment {
        target: Target::Default,
        interface: FIRST_INTERFACE.into(),
        mac: first_mac(instance),
        metric: FIRST_METRIC,
    })];
    all.append(&mut others);
    Ok((all, resolve.found))
}

struct Resolve<'a> {
    instance: Instance<'a>,
    found: Vec<Diagnostic>,
    /// Names of interfaces so far, and whose they are.
    names: Vec<(String, usize)>,
    first: Option<Attachment>,
}

impl Resolve<'_> {
    /// One entry; `None` if it is wrong, or takes the place of the default network.
    fn entry(&mut self, i: usize, entry: &RawEntry, span: Option<Span>) -> Option<Attachment> {
        let unknown = entry.unknown.iter();
        let of = format!(" of `networks[{i}]`");
        self.found.extend(unknown.map(|key| unknown_field(key, RawEntry::KEYS, &of)));
        let target = self.target(i, entry, span);
        let mac = self.mac(i, entry);
        let interface = self.interface(i, entry, span);
        let (target, interface) = (target?, interface?);
        let first = self.first.is_none() && self.is_user_v2(&target);
        let mac = mac?.unwrap_or_else(|| match first {
            true => first_mac(self.instance),
            false => {
                let file = self.instance.dir.join("lima.yaml");
                mac_address(self.instance.machine, &format!("{}#{i}", file.display()))
            }
        });
        let metric = entry.metric.as_ref().map(|metric| metric.value);
        if first {
            let (interface, metric) = (FIRST_INTERFACE.into(), metric.unwrap_or(FIRST_METRIC));
            self.first = Some(Attachment { target, interface, mac, metric });
            return None;
        }
        Some(Attachment { target, interface, mac, metric: metric.unwrap_or(METRIC) })
    }

    fn is_user_v2(&self, target: &Target) -> bool {
        let Target::Lima(name) = target else { return false };
        self.instance.networks.get(name).is_some_and(|network| network.mode == Mode::UserV2)
    }

    fn target(&mut self, i: usize, entry: &RawEntry, span: Option<Span>) -> Option<Target> {
        let given = |at: &Option<At<String>>| at.clone().filter(|at| !at.value.is_empty());
        let (lima, socket) = (given(&entry.lima), given(&entry.socket));
        let vz_nat = entry.vz_nat.as_ref().filter(|at| at.value);
        let mut set = Vec::new();
        set.extend(lima.as_ref().map(|at| ("lima", at.span)));
        set.extend(socket.as_ref().map(|at| ("socket", at.span)));
        set.extend(vz_nat.map(|at| ("vzNAT", at.span)));
        if let [(a, _), (b, span), ..] = set.as_slice() {
            let message = format!(
                "field `networks[{i}].{a}` and field `networks[{i}].{b}` are mutually exclusive"
            );
            self.found.push(Diagnostic::error(message, *span).help("make an entry for each"));
            return None;
        }
        match (lima, socket, vz_nat) {
            (Some(name), _, _) => self.known(i, &name).map(Target::Lima),
            (_, Some(path), _) => self.socket(i, &path).map(Target::Socket),
            (_, _, Some(_)) => Some(Target::VzNat),
            (None, None, None) => {
                let message = format!(
                    "field `networks[{i}].lima`, `networks[{i}].socket` or `networks[{i}].vzNAT` \
                     must be set"
                );
                self.found.push(Diagnostic::error(message, span));
                None
            }
        }
    }

    fn known(&mut self, i: usize, name: &At<String>) -> Option<String> {
        if self.instance.networks.get(&name.value).is_some() {
            return Some(name.value.clone());
        }
        let message = format!(
            "field `networks[{i}].lima` references network `{}` which is not defined in \
             networks.yaml",
            name.value
        );
        let known: Vec<_> = self.instance.networks.names().collect();
        let help = format!("the networks are {}", known.join(", "));
        self.found.push(Diagnostic::error(message, name.span).help(help));
        None
    }

    /// A socket that is not there yet may come.
    fn socket(&mut self, i: usize, path: &At<String>) -> Option<PathBuf> {
        let is_other = fs::metadata(&path.value).is_ok_and(|meta| !meta.file_type().is_socket());
        if is_other {
            let message = format!(
                "field `networks[{i}].socket` `{}` points to a non-socket file",
                path.value
            );
            self.found.push(Diagnostic::error(message, path.span));
            return None;
        }
        Some(PathBuf::from(&path.value))
    }

    /// `Some(None)` where the default is asked for.
    fn mac(&mut self, i: usize, entry: &RawEntry) -> Option<Option<Mac>> {
        let Some(text) = entry.mac_address.as_ref().filter(|at| !at.value.is_empty()) else {
            return Some(None);
        };
        match parse_mac(&text.value) {
            Ok(mac) => Some(Some(mac)),
            Err(e) => {
                let field = format!("field `networks[{i}].macAddress`");
                let message = match &e {
                    MacError::Length { .. } => format!("{field} {e}"),
                    _ => format!("{field} invalid: {e}"),
                };
                let help = "for example 52:55:55:12:34:56";
                self.found.push(Diagnostic::error(message, text.span).help(help));
                None
            }
        }
    }

    fn interface(&mut self, i: usize, entry: &RawEntry, span: Option<Span>) -> Option<String> {
        let given = entry.interface.as_ref().filter(|at| !at.value.is_empty());
        let span = given.map_or(span, |at| at.span);
        let name = given.map_or_else(|| format!("lima{i}"), |at| at.value.clone());
        let field = format!("field `networks[{i}].interface`");
        let wrong = if name.len() >= IFNAMSIZ {
            let len = name.len();
            format!("{field} must be less than {IFNAMSIZ} bytes, but is {len} bytes: `{name}`")
        } else if name.contains(|c: char| c.is_whitespace() || c == '/') {
            format!("{field} must not contain whitespace or slashes")
        } else if name.contains([':', '\0']) || name == "." || name == ".." {
            format!("{field} `{name}` is not a name that the system would take")
        } else if name == FIRST_INTERFACE {
            format!("{field} must not be set to `{name}` because it is reserved for slirp")
        } else if let Some((_, other)) = self.names.iter().find(|(other, _)| *other == name) {
            format!(
                "{field} value `{name}` has already been used by field `networks[{other}].interface`"
            )
        } else {
            self.names.push((name.clone(), i));
            return Some(name);
        };
        let help = format!("for example lima{i}, the default");
        self.found.push(Diagnostic::error(wrong, span).help(help));
        None
    }
}

fn first_mac(instance: Instance<'_>) -> Mac {
    mac_address(instance.machine, &instance.dir.to_string_lossy())
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
