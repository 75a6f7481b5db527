//! Which driver runs a machine. It is decided before anything is started, and a machine that asks for
//! what its driver cannot do is refused with the way out.

use vmlan_config::instance::{Arch, InstanceConfig, VmType};

use crate::disk::{self, Format};
use crate::instance::Files;

/// What a machine asks for that not every driver has.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    pub vm_type: Option<VmType>,
    pub arch: Arch,
    /// One of QEMU's accelerators is named.
    pub accel: bool,
    /// QEMU's own network.
    pub slirp: bool,
    /// macOS' own network.
    pub vz_nat: bool,
    /// Of the disk that it has already.
    pub disk: Option<Format>,
}

const VZ_NAT: &str = "vzNAT is for vmType vz on macOS: with QEMU, a network of mode shared does the \
                      like (`lima: shared`)";

impl Wants {
    /// What a machine asks for but for its networks.
    pub fn of(config: &InstanceConfig, files: &Files) -> Self {
        Self {
            vm_type: config.vm_type,
            arch: config.arch,
            accel: config.accel.is_some(),
            slirp: config.slirp,
            vz_nat: false,
            // A disk that cannot be read is the driver's to complain about.
            disk: disk::format_of(&files.disk()).ok(),
        }
    }
}

/// The driver of a machine: the one that is asked for, else vz where it can run the machine. `vz` is
/// why there is none on this host.
pub fn choose(wants: &Wants, vz: Result<(), String>) -> Result<VmType, String> {
    match (wants.vm_type, vz.and_then(|()| check_vz(wants))) {
        (Some(VmType::Vz), Err(why)) => Err(why),
        (Some(VmType::Vz) | None, Ok(())) => Ok(VmType::Vz),
        (None | Some(VmType::Qemu), _) if wants.vz_nat => Err(VZ_NAT.into()),
        (None | Some(VmType::Qemu), _) => Ok(VmType::Qemu),
    }
}

/// Whether vz can do what a machine asks for.
fn check_vz(wants: &Wants) -> Result<(), String> {
    let host = Arch::host();
    if wants.arch != host {
        return Err(format!(
            "vmType vz runs machines of this computer's architecture, {}, and this one is {}; use \
             vmType: qemu, which emulates it",
            host.name(),
            wants.arch.name()
        ));
    }
    if wants.accel {
        return Err(
            "an accelerator is named, and only QEMU has several; leave vmOpts.qemu.accel and \
                    VMLAN_ACCEL away, or use vmType: qemu"
                .into(),
        );
    }
    if wants.slirp {
        return Err("QEMU's own network (vmOpts.qemu.userNetwork) needs vmType: qemu".into());
    }
    if wants.disk == Some(Format::Qcow2) {
        return Err(
            "the machine has a disk of QEMU's, in qcow2, and vmType vz reads raw disks only; \
                    use vmType: qemu, or convert it in the machine's directory with `qemu-img \
                    convert -O raw diffdisk raw && mv raw diffdisk`"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(vm_type: Option<VmType>) -> Wants {
        let arch = Arch::host();
        Wants { vm_type, arch, accel: false, slirp: false, vz_nat: false, disk: None }
    }

    fn foreign() -> Arch {
        match Arch::host() {
            Arch::X86_64 => Arch::Aarch64,
            Arch::Aarch64 => Arch::X86_64,
        }
    }

    #[test]
    fn without_a_wish_it_is_vz_where_that_can_do_it() {
        let there = || Ok(());
        let none = || Err("it is not there".to_owned());
        let free = wants(None);
        assert_eq!(choose(&free, there()), Ok(VmType::Vz));
        assert_eq!(choose(&free, none()), Ok(VmType::Qemu));
        assert_eq!(choose(&wants(Some(VmType::Qemu)), there()), Ok(VmType::Qemu));
        for of_qemu in [
            Wants { arch: foreign(), ..free },
            Wants { accel: true, ..free },
            Wants { slirp: true, ..free },
            Wants { disk: Some(Format::Qcow2), ..free },
        ] {
            assert_eq!(choose(&of_qemu, there()), Ok(VmType::Qemu), "{of_qemu:?}");
        }
        let converted = Wants { disk: Some(Format::Raw), ..free };
        assert_eq!(choose(&converted, there()), Ok(VmType::Vz));
    }

    #[test]
    fn what_vz_cannot_do_is_refused_with_the_way_out() {
        let vz = wants(Some(VmType::Vz));
        assert_eq!(choose(&vz, Ok(())), Ok(VmType::Vz));
        assert_eq!(choose(&vz, Err("why".into())), Err("why".into()));
        for (refused, part) in [
            (Wants { arch: foreign(), ..vz }, "emulates"),
            (Wants { accel: true, ..vz }, "vmOpts.qemu.accel"),
            (Wants { slirp: true, ..vz }, "userNetwork"),
            (Wants { disk: Some(Format::Qcow2), ..vz }, "qemu-img convert -O raw"),
        ] {
            let why = choose(&refused, Ok(())).unwrap_err();
            assert!(why.contains(part) && why.contains("vmType: qemu"), "{why}");
        }
    }

    #[test]
    fn the_systems_own_nat_is_for_vz_only() {
        let nat = |vm_type| Wants { vz_nat: true, ..wants(vm_type) };
        assert_eq!(choose(&nat(None), Ok(())), Ok(VmType::Vz));
        for (vm_type, vz) in [(Some(VmType::Qemu), Ok(())), (None, Err("none".to_owned()))] {
            assert!(choose(&nat(vm_type), vz).unwrap_err().contains("lima: shared"));
        }
    }
}
