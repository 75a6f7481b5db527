//! What a `lima.yaml` comes to: machine, networks and names, checked against what the driver can do
//! before anything is started.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use vmlan_config::instance::{InstanceConfig, VmType};
use vmlan_config::layers::Layers;
use vmlan_config::raw::{RawEntry, RawInstance};
use vmlan_config::{Attachment, HostResolver, LimaHome, NetworksFile, Report, Source, Target};
use vmlan_dns::Options;
use vmlan_vm::driver::{self, Wants};
use vmlan_vm::instance::Instance;
use vmlan_vm::instance::host::{Card, Network, Spec};
use vmlan_vm::qemu::accel::Accel;
use vmlan_vm::vz;

use super::lan::{Configured, Own};
use crate::Failure;
use crate::network::shown;

/// A `lima.yaml` that a machine can be made of.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) config: InstanceConfig,
    pub(super) driver: VmType,
    resolver: HostResolver,
    attachments: Vec<Attachment>,
    networks: NetworksFile,
}

/// The `networks:` of a `lima.yaml`, as JSON.
pub(super) fn networks_of(source: &Source) -> Vec<Value> {
    let raw = RawInstance::parse(source).unwrap_or_default();
    let entry = |entry: &RawEntry| {
        let mut map = serde_json::Map::new();
        let texts = [
            ("lima", &entry.lima),
            ("socket", &entry.socket),
            ("macAddress", &entry.mac_address),
            ("interface", &entry.interface),
        ];
        for (key, value) in texts {
            map.extend(value.as_ref().map(|at| (key.to_owned(), at.value.clone().into())));
        }
        map.extend(entry.vz_nat.as_ref().map(|at| ("vzNAT".to_owned(), at.value.into())));
        map.extend(entry.metric.as_ref().map(|at| ("metric".to_owned(), at.value.into())));
        Value::Object(map)
    };
    raw.networks.iter().flatten().map(|at| entry(&at.value)).collect()
}

/// The accelerator that is asked for.
pub(super) fn accel(config: &InstanceConfig) -> Result<Option<Accel>, Failure> {
    match asked_accel() {
        Some(name) => Accel::named(&name).map(Some).ok_or_else(|| {
            Failure::Failed(format!("VMLAN_ACCEL must be kvm, hvf or tcg, got `{name}`"))
        }),
        None => Ok(config.accel.as_deref().and_then(Accel::named)),
    }
}

impl Resolved {
    /// Reads the text of an instance's `lima.yaml`, which errors call `path`. What is to be said
    /// about it is told if `aloud`.
    pub(super) fn new(
        home: &LimaHome,
        instance: &Instance,
        path: &Path,
        text: &str,
        aloud: bool,
    ) -> Result<Self, Failure> {
        let source = Source::new(path, text);
        let failed = |report: Report| Failure::Failed(shown(&report));
        let layers = Layers::load(home)?;
        let read = layers.machine(&source, &instance.files.dir).map_err(failed)?;
        let networks = NetworksFile::load(home, &vmlan_config::Platform::detect())?;
        let raw = layers.apply(RawInstance::parse(&source).map_err(failed)?);
        let report = |diagnostics| Report { file: source.clone(), diagnostics };
        let place = vmlan_config::Instance {
            networks: &networks.networks,
            machine: &vmlan_config::machine::id(),
            dir: &instance.files.dir,
        };
        let entries = raw.networks.as_deref().unwrap_or_default();
        let attachments = vmlan_config::attachments(entries, place);
        let (attachments, about_networks) = attachments.map_err(|found| failed(report(found)))?;
        let resolver = HostResolver::of(&raw);
        let (resolver, about_names) = resolver.map_err(|found| failed(report(found)))?;
        if aloud {
            let warnings: Vec<_> = about_networks.into_iter().chain(about_names).collect();
            let mut reports: Vec<Report> = read.warnings.into_iter().collect();
            if !warnings.is_empty() {
                reports.push(report(warnings));
            }
            for report in reports {
                crate::tell(&report.to_string());
            }
        }
        let mut wants = Wants::of(&read.config, &instance.files);
        wants.accel |= asked_accel().is_some();
        wants.vz_nat = attachments.iter().any(|attachment| attachment.target == Target::VzNat);
        let driver = driver::choose(&wants, vz::available())
            .map_err(|why| Failure::Failed(format!("{}: {why}", path.display())))?;
        let resolved = Self { config: read.config, driver, resolver, attachments, networks };
        resolved.refuse_what_cannot_be(path)?;
        Ok(resolved)
    }

    fn refuse_what_cannot_be(&self, path: &Path) -> Result<(), Failure> {
        let refused = |why: String| Err(Failure::Failed(format!("{}: {why}", path.display())));
        let mut names: Vec<&str> = Vec::new();
        for attachment in &self.attachments {
            match &attachment.target {
                Target::Default | Target::Socket(_) | Target::VzNat => {}
                Target::Lima(name) => {
                    let network = crate::network::find(&self.networks, name)?;
                    if let Err(why) = imp::check(&self.networks, network) {
                        return refused(format!("network `{name}`: {why}"));
                    }
                    if names.contains(&name.as_str()) {
                        return refused(format!("network `{name}` is given twice"));
                    }
                    names.push(name);
                }
            }
        }
        let first = self.attachments.first().map(|attachment| &attachment.target);
        if self.config.slirp && first != Some(&Target::Default) {
            return refused(
                "QEMU's own network has no place beside a network of mode user-v2".into(),
            );
        }
        Ok(())
    }

    /// What the host agent is to run.
    pub(super) fn spec(self, home: &LimaHome, instance: Instance) -> Result<Spec, Failure> {
        let accel = accel(&self.config)?;
        let mut cards = Vec::new();
        for attachment in &self.attachments {
            let network = match &attachment.target {
                Target::Default if self.config.slirp => Network::Slirp(self.names()?),
                Target::Default => Network::Managed(Arc::new(Own::new(&instance.files))),
                Target::VzNat => Network::VzNat,
                Target::Socket(path) => Network::Socket(path.clone()),
                Target::Lima(name) => {
                    let network = crate::network::find(&self.networks, name)?;
                    imp::connected(home, &self.networks, network).map_err(Failure::Failed)?
                }
            };
            cards.push(Card { attachment: attachment.clone(), network });
        }
        let Self { config, driver, resolver, .. } = self;
        Ok(Spec { home: home.clone(), instance, config, driver, resolver, cards, accel })
    }

    /// What names mean where the resolver is not a network's own.
    fn names(&self) -> Result<Options, Failure> {
        let mut options = crate::names::options_of(&self.resolver)?;
        // Vmlan's own names stay what they are.
        let host = vmlan_dns::Target::Address(vmlan_vm::qemu::SLIRP_HOST.into());
        options.names.remove("host.lima.internal");
        let _ = options.names.add("host.lima.internal", &host);
        Ok(options)
    }
}

/// The accelerator that the environment names.
fn asked_accel() -> Option<String> {
    std::env::var("VMLAN_ACCEL").ok().filter(|name| !name.is_empty())
}

/// A network with a daemon of vmlan's.
fn managed(home: &LimaHome, network: &vmlan_config::Network) -> Result<Arc<Configured>, String> {
    Configured::new(home, network).map(Arc::new)
}

#[cfg(target_os = "linux")]
mod imp {
    use vmlan_config::{LimaHome, Network as Configured, NetworksFile};
    use vmlan_netd::vmnet::Helper;
    use vmlan_vm::instance::host::Network;

    use super::managed;

    /// Whether root's part of the network is there, if it has one.
    pub(super) fn check(_: &NetworksFile, network: &Configured) -> Result<(), String> {
        Helper::of(network).map_or(Ok(()), |helper| helper.check()).map_err(|e| e.to_string())
    }

    pub(super) fn connected(
        home: &LimaHome,
        _: &NetworksFile,
        network: &Configured,
    ) -> Result<Network, String> {
        let lan = managed(home, network)?;
        Ok(match Helper::of(network) {
            Some(helper) => Network::Bridged { lan, helper },
            None => Network::Managed(lan),
        })
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use vmlan_config::socket_vmnet::Commands;
    use vmlan_config::{LimaHome, Network as Configured, NetworksFile, Platform};
    use vmlan_netd::SocketVmnet;
    use vmlan_vm::instance::host::Network;

    use super::managed;

    /// Whether sudo starts the network, if it needs root.
    pub(super) fn check(file: &NetworksFile, network: &Configured) -> Result<(), String> {
        match commands(file, network) {
            Some(_) => crate::sudoers::may_start(file),
            None => Ok(()),
        }
    }

    pub(super) fn connected(
        home: &LimaHome,
        file: &NetworksFile,
        network: &Configured,
    ) -> Result<Network, String> {
        let Some(commands) = commands(file, network) else {
            return managed(home, network).map(|lan| Network::Managed(lan));
        };
        vmlan_config::socket_path(&commands.socket).map_err(|e| e.to_string())?;
        let name = &network.name;
        let label = format!("lima:{name}");
        let network = SocketVmnet::new(commands, name, &home.networks());
        Ok(Network::Vmnet { label, network })
    }

    fn commands(file: &NetworksFile, network: &Configured) -> Option<Commands> {
        Commands::of(&file.networks, &Platform::detect(), network)
    }
}
