//! The part of `lima.yaml` that is about the machine itself: what it is made of, and what of it is
//! to be reached on the host. Its networks and names are [`crate::raw::RawInstance`]'s.

pub mod change;
pub mod forwards;
mod layers;
pub mod raw;
mod resolve_forward;
mod size;

use std::fmt;
use std::path::{Path, PathBuf};

use self::forwards::Forwards;
use self::raw::{
    RawCaCerts, RawFile, RawForward, RawImage, RawKernel, RawMachine, RawProvision, RawSsh,
};
use crate::networks::unknown_field;
use crate::raw::RawInstance;
use crate::source::{Diagnostic, Report, Severity, Source, Span};
use crate::yaml::{self, At};

/// What runs a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmType {
    Qemu,
    /// Apple's Virtualization.framework.
    Vz,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    Aarch64,
}

/// A file, from a path or URL, and its digest if it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub location: String,
    pub digest: Option<Digest>,
}

/// The digest that a file must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    Sha256(String),
    Sha512(String),
}

/// A disk image, and the kernel that is booted in place of what it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub disk: Remote,
    pub kernel: Option<Kernel>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub file: Remote,
    pub cmdline: String,
    pub initrd: Option<Remote>,
}

/// A script that the guest runs at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provision {
    /// As the user, not as root.
    pub as_user: bool,
    pub script: String,
}

/// Certificates that the guest trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaCerts {
    pub remove_defaults: bool,
    pub files: Vec<PathBuf>,
    pub certs: Vec<String>,
}

/// A machine as it is asked for; `None` where the driver chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceConfig {
    /// `None` where the host decides.
    pub vm_type: Option<VmType>,
    pub arch: Arch,
    /// Those of the architecture, in the order in which they are tried.
    pub images: Vec<Image>,
    pub cpus: Option<u32>,
    pub memory: Option<u64>,
    pub disk: u64,
    pub forwards: Forwards,
    pub ssh_port: Option<u16>,
    pub load_public_keys: bool,
    pub env: Vec<(String, String)>,
    pub propagate_proxy_env: bool,
    pub ca_certs: CaCerts,
    pub provision: Vec<Provision>,
    pub plain: bool,
    /// What runs the guest's instructions, by QEMU's name.
    pub accel: Option<String>,
    /// QEMU's own network takes the place of the default one.
    pub slirp: bool,
}

/// A machine, and what is to be said although it can be made.
#[derive(Clone, Debug)]
pub struct Read {
    pub config: InstanceConfig,
    pub warnings: Option<Report>,
}

/// Keys of Lima's that are about something else, and change nothing here.
const OTHERS: &[&str] = &[
    "additionalDisks",
    "audio",
    "base",
    "containerd",
    "copyToHost",
    "cpuType",
    "firmware",
    "guestInstallPrefix",
    "message",
    "minimumLimaVersion",
    "mountInotify",
    "mountType",
    "mountTypesUnsupported",
    "mounts",
    "nestedVirtualization",
    "os",
    "param",
    "probes",
    "rosetta",
    "saveHostKeys",
    "timezone",
    "upgradePackages",
    "user",
    "video",
];

const DISK: u64 = 100 << 30;

/// Less memory than this boots nothing.
const LEAST_MEMORY: u64 = 64 << 20;

impl InstanceConfig {
    /// Reads what a `lima.yaml` says about the machine whose directory is `dir`. All errors are
    /// told at once.
    pub fn parse(source: &Source, dir: &Path) -> Result<Read, Report> {
        Self::layered("", source, "", dir)
    }

    /// The same with what holds for all instances: texts in which nothing is wrong.
    pub(crate) fn layered(
        default: &str,
        source: &Source,
        overriding: &str,
        dir: &Path,
    ) -> Result<Read, Report> {
        let report = |diagnostics| Report { file: source.clone(), diagnostics };
        let parse = |text| yaml::parse::<RawMachine>(text).map_err(|e| report(vec![e]));
        let raw = layers::apply(parse(default)?, parse(source.text())?, parse(overriding)?);
        let mut resolve = Resolve::default();
        let config = resolve.machine(raw, dir);
        let found = resolve.found;
        match config {
            Some(config) if found.iter().all(|d| d.severity == Severity::Warning) => {
                let warnings = (!found.is_empty()).then(|| report(found));
                Ok(Read { config, warnings })
            }
            _ => Err(report(found)),
        }
    }
}

impl VmType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Vz => "vz",
        }
    }
}

impl Arch {
    /// The architecture of this machine.
    pub fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "default" => Some(Self::host()),
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Resolve {
    found: Vec<Diagnostic>,
}

impl Resolve {
    fn machine(&mut self, raw: RawMachine, dir: &Path) -> Option<InstanceConfig> {
        self.unknown(&raw.unknown);
        let vm_type = self.vm_type(raw.vm_type.as_ref());
        let arch = match &raw.arch {
            Some(at) => self.arch("arch", at),
            None => Some(Arch::host()),
        };
        let images = raw.images.unwrap_or_default();
        let images: Vec<_> =
            images.iter().enumerate().map(|(i, at)| self.image(i, &at.value, at.span)).collect();
        let memory = raw.memory.as_ref().and_then(|at| self.size("memory", at));
        if memory.is_some_and(|bytes| bytes < LEAST_MEMORY) {
            let at = raw.memory.as_ref().and_then(|at| at.span);
            self.wrong("field `memory` must be at least 64MiB", at);
        }
        let disk = raw.disk.as_ref().and_then(|at| self.size("disk", at)).unwrap_or(DISK);
        let cpus = raw.cpus.as_ref();
        if let Some(at) = cpus.filter(|at| !(1..=255).contains(&at.value)) {
            self.wrong("field `cpus` must be between 1 and 255", at.span);
        }
        let entries = raw.port_forwards.unwrap_or_default();
        let forwards = self.forwards(&entries, dir);
        let ssh = raw.ssh.unwrap_or_default();
        self.without_effect(&ssh.unknown, RawSsh::KEYS, " of `ssh`");
        let port = ssh.local_port.as_ref().filter(|at| at.value != 0);
        let ssh_port = port.and_then(|at| match u16::try_from(at.value) {
            Ok(port) => Some(port),
            Err(_) => {
                self.wrong("field `ssh.localPort` must be between 0 and 65535", at.span);
                None
            }
        });
        let certs = raw.ca_certs.unwrap_or_default();
        self.without_effect(&certs.unknown, RawCaCerts::KEYS, " of `caCerts`");
        let env = raw.env.unwrap_or_default().0;
        let qemu = raw.vm_opts.unwrap_or_default().qemu.unwrap_or_default();
        let accel = self.one_of("vmOpts.qemu.accel", qemu.accel, &["kvm", "hvf", "tcg"]);
        let field = "vmOpts.qemu.userNetwork";
        let slirp = self.one_of(field, qemu.user_network, &["slirp", "vmlan"]);
        let arch = arch?;
        let of_arch = images.into_iter().flatten().filter(|(of, _)| *of == arch);
        Some(InstanceConfig {
            vm_type,
            arch,
            images: of_arch.map(|(_, image)| image).collect(),
            cpus: cpus.map(|at| at.value),
            memory,
            disk,
            forwards,
            ssh_port,
            load_public_keys: ssh.load_dot_ssh_pub_keys.is_some_and(|at| at.value),
            env: env.into_iter().map(|(name, text)| (name.value, text.value)).collect(),
            propagate_proxy_env: raw.propagate_proxy_env.is_none_or(|at| at.value),
            ca_certs: ca_certs(certs),
            provision: self.provision(raw.provision.unwrap_or_default()),
            plain: raw.plain.is_some_and(|at| at.value),
            accel,
            slirp: slirp.is_some_and(|network| network == "slirp"),
        })
    }

    fn wrong(&mut self, message: impl Into<String>, span: Option<Span>) {
        self.found.push(Diagnostic::error(message, span));
    }

    /// Keys of Lima's are named in one warning; what is nobody's is an error.
    fn unknown(&mut self, keys: &[At<String>]) {
        let (known, nobodys): (Vec<_>, Vec<_>) = keys
            .iter()
            .filter(|key| !RawInstance::KEYS.contains(&key.value.as_str()))
            .partition(|key| OTHERS.contains(&key.value.as_str()));
        if let Some(first) = known.first() {
            let names: Vec<_> = known.iter().map(|key| format!("`{}`", key.value)).collect();
            let message = format!("not vmlan's, and without effect here: {}", names.join(", "));
            self.found.push(Diagnostic::warning(message, first.span));
        }
        for key in nobodys {
            self.wrong(format!("unknown field `{}`", key.value), key.span);
        }
    }

    /// Keys that mean nothing within a part of the file.
    fn without_effect(&mut self, keys: &[At<String>], known: &[&str], of: &str) {
        self.found.extend(keys.iter().map(|key| unknown_field(key, known, of)));
    }

    fn vm_type(&mut self, at: Option<&At<String>>) -> Option<VmType> {
        let at = at?;
        match at.value.as_str() {
            "" | "default" => None,
            "qemu" => Some(VmType::Qemu),
            "vz" => Some(VmType::Vz),
            other => {
                let message = format!("field `vmType` must be `qemu` or `vz`, got `{other}`");
                self.wrong(message, at.span);
                None
            }
        }
    }

    /// One of several words, if any.
    fn one_of(&mut self, field: &str, at: Option<At<String>>, words: &[&str]) -> Option<String> {
        let at = at.filter(|at| !at.value.is_empty())?;
        if words.contains(&at.value.as_str()) {
            return Some(at.value);
        }
        let message = format!("field `{field}` must be {}, got `{}`", words.join(" or "), at.value);
        self.wrong(message, at.span);
        None
    }

    fn arch(&mut self, field: &str, at: &At<String>) -> Option<Arch> {
        let arch = Arch::named(&at.value);
        if arch.is_none() {
            let message =
                format!("field `{field}` must be `x86_64` or `aarch64`, got `{}`", at.value);
            self.wrong(message, at.span);
        }
        arch
    }

    fn size(&mut self, field: &str, at: &At<String>) -> Option<u64> {
        let bytes = size::parse(&at.value);
        if bytes.is_none() {
            let message = format!("field `{field}` `{}` is not a size", at.value);
            self.found.push(Diagnostic::error(message, at.span).help("for example 4GiB"));
        }
        bytes
    }

    /// An image and its architecture. Those of architectures that vmlan does not know are passed
    /// over: files list all there are.
    fn image(&mut self, i: usize, raw: &RawImage, span: Option<Span>) -> Option<(Arch, Image)> {
        let of = format!(" of `images[{i}]`");
        self.without_effect(&raw.unknown, RawImage::KEYS, &of);
        let arch = match &raw.arch {
            Some(at) => Arch::named(&at.value)?,
            None => Arch::host(),
        };
        let field = format!("images[{i}]");
        let disk = self.remote(&field, raw.location.as_ref(), raw.digest.as_ref(), span)?;
        let kernel = match &raw.kernel {
            None => None,
            Some(kernel) => {
                let of = format!(" of `{field}.kernel`");
                self.without_effect(&kernel.unknown, RawKernel::KEYS, &of);
                let (at, digest) = (kernel.location.as_ref(), kernel.digest.as_ref());
                let file = self.remote(&format!("{field}.kernel"), at, digest, span)?;
                let initrd =
                    raw.initrd.as_ref().map(|RawFile { location, digest, unknown, .. }| {
                        let field = format!("{field}.initrd");
                        self.without_effect(unknown, RawFile::KEYS, &format!(" of `{field}`"));
                        self.remote(&field, location.as_ref(), digest.as_ref(), span)
                    });
                let initrd = initrd.map_or(Some(None), |file| file.map(Some))?;
                let cmdline = kernel.cmdline.as_ref().map(|at| at.value.clone());
                Some(Kernel { file, cmdline: cmdline.unwrap_or_default(), initrd })
            }
        };
        Some((arch, Image { disk, kernel }))
    }

    fn remote(
        &mut self,
        field: &str,
        location: Option<&At<String>>,
        digest: Option<&At<String>>,
        span: Option<Span>,
    ) -> Option<Remote> {
        let Some(location) = location.filter(|at| !at.value.is_empty()) else {
            self.wrong(format!("field `{field}.location` must be set"), span);
            return None;
        };
        let digest = match digest.filter(|at| !at.value.is_empty()) {
            None => None,
            Some(at) => match Digest::parse(&at.value) {
                Some(digest) => Some(digest),
                None => {
                    let message = format!("field `{field}.digest` `{}` is no digest", at.value);
                    let help = "sha256: or sha512: and its hexadecimal digits";
                    self.found.push(Diagnostic::error(message, at.span).help(help));
                    return None;
                }
            },
        };
        Some(Remote { location: location.value.clone(), digest })
    }

    fn forwards(&mut self, entries: &[At<RawForward>], dir: &Path) -> Forwards {
        resolve_forward::forwards(entries, dir, &mut self.found)
    }

    fn provision(&mut self, entries: Vec<At<RawProvision>>) -> Vec<Provision> {
        let mut scripts = Vec::new();
        for (i, At { value: raw, span }) in entries.into_iter().enumerate() {
            let mode = raw.mode.as_ref().map_or("system", |at| at.value.as_str());
            let as_user = match mode {
                "system" | "boot" => false,
                "user" => true,
                _ => {
                    let message =
                        format!("field `provision[{i}].mode` `{mode}` is not done by vmlan");
                    let help = "modes are `system`, `boot` and `user`";
                    self.found.push(Diagnostic::warning(message, span).help(help));
                    continue;
                }
            };
            self.without_effect(&raw.unknown, RawProvision::KEYS, &format!(" of `provision[{i}]`"));
            match raw.script {
                Some(at) => scripts.push(Provision { as_user, script: at.value }),
                None => self.wrong(format!("field `provision[{i}].script` must be set"), span),
            }
        }
        scripts
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digits) => write!(f, "sha256:{digits}"),
            Self::Sha512(digits) => write!(f, "sha512:{digits}"),
        }
    }
}

impl Digest {
    fn parse(text: &str) -> Option<Self> {
        let (kind, digits) = text.split_once(':')?;
        let digits = digits.to_ascii_lowercase();
        let whole = |len| digits.len() == len && digits.bytes().all(|b| b.is_ascii_hexdigit());
        match kind {
            "sha256" if whole(64) => Some(Self::Sha256(digits)),
            "sha512" if whole(128) => Some(Self::Sha512(digits)),
            _ => None,
        }
    }
}

fn ca_certs(raw: RawCaCerts) -> CaCerts {
    let texts = |list: Option<Vec<At<String>>>| {
        list.into_iter().flatten().map(|at| at.value).collect::<Vec<_>>()
    };
    CaCerts {
        remove_defaults: raw.remove_defaults.is_some_and(|at| at.value),
        files: texts(raw.files).into_iter().map(PathBuf::from).collect(),
        certs: texts(raw.certs),
    }
}

#[cfg(test)]
mod tests;
