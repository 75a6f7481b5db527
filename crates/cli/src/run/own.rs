//! The default network of a guest: an engine in the process beside it, for it alone.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use vmlan_engine::config::{HostLoopback, Ipv4Net};
use vmlan_engine::{Config, Forward};
use vmlan_link::tap::{InterfaceConfig, TapLink};
use vmlan_netd::{Daemon, Next};
use vmlan_vm::netns::Supervisor;

use super::{Args, GUEST};
use crate::Failure;

const SUBNET: Ipv4Net = Ipv4Net { network: Ipv4Addr::new(192, 168, 5, 0), prefix: 24 };

/// What the network's process is to do.
#[derive(Debug)]
pub(super) struct Own {
    config: Config,
    dns: vmlan_dns::Options,
    forwards: Vec<Forward>,
    capture: Option<PathBuf>,
}

impl Own {
    pub(super) fn new(args: &Args) -> Result<Self, Failure> {
        let network = vmlan_netd::network(SUBNET, None);
        let mut config = network.map_err(|e| Failure::Usage(e.to_string()))?;
        config.mtu = args.mtu.unwrap_or(config.mtu);
        if args.no_host_loopback {
            config.host_loopback = HostLoopback::None;
        }
        let dns = args.names.of_default_network()?;
        let forwards = args.publish.iter().flat_map(|publish| publish.0.clone()).collect();
        Ok(Self { config, dns, forwards, capture: args.capture.clone() })
    }

    pub(super) fn resolver(&self) -> IpAddr {
        self.config.dns.into()
    }

    pub(super) fn card(&self) -> InterfaceConfig {
        let config = &self.config;
        InterfaceConfig {
            name: vmlan_config::entry::FIRST_INTERFACE.into(),
            mtu: Some(config.mtu),
            addresses: vec![(GUEST.into(), config.ipv4.prefix), (config.ipv6.nth(0x15).into(), 64)],
            gateways: vec![config.gateway.into(), config.ipv6.gateway().into()],
            ..InterfaceConfig::default()
        }
    }

    pub(super) fn serve(&self, card: OwnedFd, supervisor: &Supervisor) -> Result<(), String> {
        self.try_serve(card, supervisor).map_err(|e| e.to_string())
    }

    fn try_serve(
        &self,
        card: OwnedFd,
        supervisor: &Supervisor,
    ) -> Result<(), Box<dyn std::error::Error>> {
        // Without the right to more files, the network serves fewer flows.
        vmlan_host::raise_fd_limit();
        let mut daemon = Daemon::new(self.config.clone(), self.dns.clone())?;
        for forward in &self.forwards {
            daemon.add_forward(forward.clone())?;
        }
        if let Some(path) = &self.capture {
            daemon.capture(path).map_err(|e| format!("--capture {e}"))?;
        }
        daemon.add_link(Box::new(TapLink::new(card)?))?;
        daemon.watch(supervisor.as_fd().try_clone_to_owned()?, |_| Next::Finish)?;
        supervisor.ready()?;
        Ok(daemon.run()?)
    }
}
