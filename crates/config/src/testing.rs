//! What the tests of several modules need.

use crate::networks::{Networks, Resolved};
use crate::platform::{Os, Platform};
use crate::source::{Report, Source};

pub(crate) fn platform() -> Platform {
    Platform {
        os: Os::Linux,
        group: "sudo".into(),
        interface: "eth0".into(),
        socket_vmnet: "/opt/socket_vmnet/bin/socket_vmnet".into(),
    }
}

pub(crate) fn parse(text: &str) -> Result<Resolved, Report> {
    Networks::parse(&Source::new("networks.yaml", text), &platform())
}

pub(crate) fn networks(text: &str) -> Networks {
    parse(text).unwrap_or_else(|e| panic!("{e}")).networks
}
