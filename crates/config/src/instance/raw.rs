//! What `lima.yaml` says about a machine, before it means anything.

use crate::yaml::{At, Entries, raw};

raw! {
    /// `lima.yaml`, as far as it is about the machine itself.
    #[schemars(rename = "Machine")]
    pub struct RawMachine {
        /// What runs the machine, `qemu` by default.
        "vmType" => vm_type: At<String>,
        /// The machine's architecture, the host's by default.
        "arch" => arch: At<String>,
        /// Disk images; the first one of the machine's architecture is used.
        "images" => images: Vec<At<RawImage>>,
        /// The number of processors.
        "cpus" => cpus: At<u32>,
        /// The size of the memory, as 4GiB.
        "memory" => memory: At<String>,
        /// The size of the disk, as 100GiB.
        "disk" => disk: At<String>,
        /// What leads from ports of the host to the guest's, the first one that fits.
        "portForwards" => port_forwards: Vec<At<RawForward>>,
        /// How ssh reaches the guest.
        "ssh" => ssh: RawSsh,
        /// Environment variables of the guest.
        "env" => env: Entries<At<String>>,
        /// Whether the host's proxy variables are the guest's as well, true by default.
        "propagateProxyEnv" => propagate_proxy_env: At<bool>,
        /// Certificates that the guest trusts.
        "caCerts" => ca_certs: RawCaCerts,
        /// Scripts that the guest runs at boot.
        "provision" => provision: Vec<At<RawProvision>>,
        /// No automatic port forwards.
        "plain" => plain: At<bool>,
        /// Options of drivers.
        "vmOpts" => vm_opts: RawVmOpts,
    }
}

raw! {
    /// Options of drivers.
    #[schemars(rename = "VmOpts")]
    pub struct RawVmOpts {
        "qemu" => qemu: RawQemu,
    }
}

raw! {
    /// Options of QEMU.
    #[schemars(rename = "Qemu")]
    pub struct RawQemu {
        /// `kvm`, `hvf` or `tcg`; what works by default.
        "accel" => accel: At<String>,
        /// `slirp` for QEMU's own network in the place of the default one.
        "userNetwork" => user_network: At<String>,
    }
}

raw! {
    /// A disk image.
    #[schemars(rename = "Image")]
    pub struct RawImage {
        /// A path or URL.
        "location" => location: At<String>,
        "arch" => arch: At<String>,
        /// `sha256:` or `sha512:` and the digest in hexadecimal digits.
        "digest" => digest: At<String>,
        /// A kernel to be booted without the image's boot loader.
        "kernel" => kernel: RawKernel,
        /// The initial RAM disk of that kernel.
        "initrd" => initrd: RawFile,
    }
}

raw! {
    /// A kernel.
    #[schemars(rename = "Kernel")]
    pub struct RawKernel {
        "location" => location: At<String>,
        "arch" => arch: At<String>,
        "digest" => digest: At<String>,
        /// The kernel's command line.
        "cmdline" => cmdline: At<String>,
    }
}

raw! {
    /// A file from somewhere.
    #[schemars(rename = "File")]
    pub struct RawFile {
        "location" => location: At<String>,
        "arch" => arch: At<String>,
        "digest" => digest: At<String>,
    }
}

raw! {
    /// What leads from a port of the host to one of the guest.
    #[schemars(rename = "PortForward")]
    pub struct RawForward {
        /// Only ports that listen on every address.
        "guestIPMustBeZero" => guest_ip_must_be_zero: At<bool>,
        "guestIP" => guest_ip: At<String>,
        "guestPort" => guest_port: At<i64>,
        "guestPortRange" => guest_port_range: At<Vec<i64>>,
        "guestSocket" => guest_socket: At<String>,
        "hostIP" => host_ip: At<String>,
        "hostPort" => host_port: At<i64>,
        "hostPortRange" => host_port_range: At<Vec<i64>>,
        "hostSocket" => host_socket: At<String>,
        /// `tcp`, `udp` or `any`, the default.
        "proto" => proto: At<String>,
        /// Lead to a socket of the host's instead.
        "reverse" => reverse: At<bool>,
        /// Do not lead anywhere, whatever later rules say.
        "ignore" => ignore: At<bool>,
        /// From the start, whether the guest listens or not.
        "static" => is_static: At<bool>,
    }
}

raw! {
    /// How ssh reaches the guest.
    #[schemars(rename = "Ssh")]
    pub struct RawSsh {
        /// The port of the host; 0 for any that is free, the default.
        "localPort" => local_port: At<i64>,
        /// Whether the public keys in ~/.ssh may log in as well.
        "loadDotSSHPubKeys" => load_dot_ssh_pub_keys: At<bool>,
        "forwardAgent" => forward_agent: At<bool>,
        "forwardX11" => forward_x11: At<bool>,
        "forwardX11Trusted" => forward_x11_trusted: At<bool>,
        "overVsock" => over_vsock: At<bool>,
    }
}

raw! {
    /// Certificates that the guest trusts.
    #[schemars(rename = "CaCerts")]
    pub struct RawCaCerts {
        "removeDefaults" => remove_defaults: At<bool>,
        /// Files of the host.
        "files" => files: Vec<At<String>>,
        /// The certificates themselves.
        "certs" => certs: Vec<At<String>>,
    }
}

raw! {
    /// A script that the guest runs at boot.
    #[schemars(rename = "Provision")]
    pub struct RawProvision {
        /// `system`, the default, as root; `user` as the user.
        "mode" => mode: At<String>,
        "script" => script: At<String>,
    }
}
