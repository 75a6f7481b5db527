//! A guest's card on a network that somebody else's daemon serves.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use vmlan_config::Attachment;
use vmlan_link::tap::InterfaceConfig;
use vmlan_netd::unmanaged::{self, Client, Lease, UnmanagedError};
use vmlan_vm::netns::Supervisor;

use super::Args;
use crate::Failure;

#[derive(Debug)]
pub(super) struct Unmanaged {
    path: PathBuf,
    client: Client,
    lease: Lease,
}

/// Of a network that does not say.
const MTU: u16 = 1500;

impl Unmanaged {
    /// Gets an address from the network's DHCP server.
    pub(super) fn ask(path: &Path, attachment: &Attachment, args: &Args) -> Result<Self, Failure> {
        let host_name = args.name.as_deref().map(vmlan_config::host_name).transpose();
        let [.., a, b, c, d] = attachment.mac.0;
        let client = Client {
            mac: attachment.mac,
            host_name: host_name.map_err(|e| Failure::Failed(e.to_string()))?,
            // Answers are known by the MAC address too.
            xid: u32::from_be_bytes([a, b, c, d]) ^ std::process::id(),
        };
        let lease = unmanaged::lease(path, &client);
        let lease = lease.map_err(|e| {
            let nobody = matches!(e, UnmanagedError::Connect { .. });
            let help = if nobody { "; its daemon has to run first" } else { "" };
            Failure::Failed(format!("--network socket:{e}{help}"))
        })?;
        Ok(Self { path: path.into(), client, lease })
    }

    pub(super) fn card(&self) -> InterfaceConfig {
        let lease = &self.lease;
        InterfaceConfig {
            mtu: Some(lease.mtu.unwrap_or(MTU)),
            addresses: vec![(lease.address.into(), lease.prefix)],
            gateways: lease.gateway.into_iter().map(IpAddr::V4).collect(),
            // IPv6 is as the network's router says, if it has one.
            accept_ra: true,
            ..InterfaceConfig::default()
        }
    }

    pub(super) fn serve(&self, card: OwnedFd, supervisor: &Supervisor) -> Result<(), String> {
        supervisor.ready().map_err(|e| e.to_string())?;
        let (path, lease) = (&self.path, self.lease.clone());
        let served = unmanaged::serve(card, path, &self.client, lease, supervisor.as_fd());
        served.map_err(|e| e.to_string())
    }
}
