//! What a machine is made of, in the framework's terms.

use std::fs;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::Path;

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_foundation::{NSArray, NSData, NSError, NSFileHandle, NSString, NSURL};
use objc2_virtualization::{
    VZBootLoader, VZDiskImageCachingMode, VZDiskImageStorageDeviceAttachment,
    VZDiskImageSynchronizationMode, VZEFIBootLoader, VZEFIVariableStore,
    VZEFIVariableStoreInitializationOptions, VZFileHandleNetworkDeviceAttachment,
    VZFileHandleSerialPortAttachment, VZGenericMachineIdentifier, VZGenericPlatformConfiguration,
    VZLinuxBootLoader, VZMACAddress, VZNATNetworkDeviceAttachment, VZNetworkDeviceConfiguration,
    VZStorageDeviceConfiguration, VZVirtioBlockDeviceConfiguration,
    VZVirtioConsoleDeviceConfiguration, VZVirtioConsoleDeviceSerialPortConfiguration,
    VZVirtioConsolePortConfiguration, VZVirtioEntropyDeviceConfiguration,
    VZVirtioNetworkDeviceConfiguration, VZVirtualMachineConfiguration,
};
use vmlan_agent::message::CHANNEL;
use vmlan_config::show_mac;

use super::super::{Boot, Card, Machine, Wire};
use super::text;
use crate::kernel::Kernel;

/// A configuration that the framework has found valid.
pub(super) fn make(machine: Machine) -> Result<Retained<VZVirtualMachineConfiguration>, String> {
    let Machine { cpus, memory, boot, identifier, disk, seed, cards, agent, serial_log } = machine;
    let loader = boot_loader(&boot)?;
    let platform = platform(&identifier)?;
    let storage = NSArray::from_retained_slice(&[block(&disk, false)?, block(&seed, true)?]);
    let cards: Result<Vec<_>, _> = cards.into_iter().map(network).collect();
    let cards = NSArray::from_retained_slice(&cards?);
    let serial = NSArray::from_retained_slice(&[serial_port(serial_log.into()).into_super()]);
    let console = NSArray::from_retained_slice(&[agent_port(agent.into()).into_super()]);
    // SAFETY: the configuration is this function's alone, and is given objects of the right classes.
    unsafe {
        let entropy = VZVirtioEntropyDeviceConfiguration::new().into_super();
        let made = VZVirtualMachineConfiguration::new();
        made.setCPUCount(usize::try_from(cpus).unwrap_or(1));
        // Whole megabytes are wanted.
        made.setMemorySize(memory >> 20 << 20);
        made.setBootLoader(Some(&loader));
        made.setPlatform(&platform);
        made.setStorageDevices(&storage);
        made.setNetworkDevices(&cards);
        made.setSerialPorts(&serial);
        made.setConsoleDevices(&console);
        made.setEntropyDevices(&NSArray::from_retained_slice(&[entropy]));
        made.validateWithError().map_err(|e| text(&e))?;
        Ok(made)
    }
}

fn boot_loader(boot: &Boot) -> Result<Retained<VZBootLoader>, String> {
    match boot {
        Boot::Efi(store) => {
            let store = variable_store(store)?;
            // SAFETY: the loader is this function's alone.
            unsafe {
                let loader = VZEFIBootLoader::new();
                loader.setVariableStore(Some(&store));
                Ok(loader.into_super())
            }
        }
        Boot::Kernel(Kernel { file, initrd, cmdline }) => {
            let initrd = initrd.as_deref().map(url);
            // SAFETY: the loader is this function's alone.
            unsafe {
                let loader =
                    VZLinuxBootLoader::initWithKernelURL(VZLinuxBootLoader::alloc(), &url(file));
                loader.setCommandLine(&NSString::from_str(cmdline));
                loader.setInitialRamdiskURL(initrd.as_deref());
                Ok(loader.into_super())
            }
        }
    }
}

fn variable_store(path: &Path) -> Result<Retained<VZEFIVariableStore>, String> {
    let url = url(path);
    let store = VZEFIVariableStore::alloc();
    if path.exists() {
        // SAFETY: the file is there; whether it is a store is looked at when the machine is made.
        return Ok(unsafe { VZEFIVariableStore::initWithURL(store, &url) });
    }
    let options = VZEFIVariableStoreInitializationOptions::empty();
    // SAFETY: the URL is a file's.
    unsafe {
        VZEFIVariableStore::initCreatingVariableStoreAtURL_options_error(store, &url, options)
    }
    .map_err(failed(path))
}

/// A platform with the machine's identity of last time, or with one that is kept for the next.
fn platform(path: &Path) -> Result<Retained<VZGenericPlatformConfiguration>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let known = fs::read(path).ok().and_then(|bytes| {
        let data = NSData::with_bytes(&bytes);
        // SAFETY: what is no identifier yields none.
        unsafe {
            VZGenericMachineIdentifier::initWithDataRepresentation(
                VZGenericMachineIdentifier::alloc(),
                &data,
            )
        }
    });
    let identifier = match known {
        Some(identifier) => identifier,
        None => {
            // SAFETY: it makes a new identifier.
            let new = unsafe { VZGenericMachineIdentifier::new() };
            // SAFETY: it only reads.
            let data = unsafe { new.dataRepresentation() };
            fs::write(path, data.to_vec()).map_err(failed)?;
            new
        }
    };
    // SAFETY: the platform is this function's alone.
    unsafe {
        let platform = VZGenericPlatformConfiguration::new();
        platform.setMachineIdentifier(&identifier);
        Ok(platform)
    }
}

/// A disk. The host's cache is used and flushed as the guest wants it.
fn block(path: &Path, read_only: bool) -> Result<Retained<VZStorageDeviceConfiguration>, String> {
    // SAFETY: the URL is a file's, which the framework opens itself.
    let attachment = unsafe {
        VZDiskImageStorageDeviceAttachment::initWithURL_readOnly_cachingMode_synchronizationMode_error(
            VZDiskImageStorageDeviceAttachment::alloc(),
            &url(path),
            read_only,
            VZDiskImageCachingMode::Cached,
            VZDiskImageSynchronizationMode::Fsync,
        )
    };
    let attachment = attachment.map_err(failed(path))?;
    let device = VZVirtioBlockDeviceConfiguration::alloc();
    // SAFETY: the attachment was made above.
    let device =
        unsafe { VZVirtioBlockDeviceConfiguration::initWithAttachment(device, &attachment) };
    Ok(device.into_super())
}

fn network(card: Card) -> Result<Retained<VZNetworkDeviceConfiguration>, String> {
    let mac = show_mac(card.mac);
    // SAFETY: what is no address yields none.
    let address =
        unsafe { VZMACAddress::initWithString(VZMACAddress::alloc(), &NSString::from_str(&mac)) };
    let address = address.ok_or_else(|| format!("{mac} is no MAC address"))?;
    // SAFETY: the attachment is this function's alone; the socket is a connected datagram socket, and
    // the length of packets one that the framework checks.
    let attachment = unsafe {
        match card.wire {
            Wire::Nat => VZNATNetworkDeviceAttachment::new().into_super(),
            Wire::Socket { socket, mtu } => {
                let attachment = VZFileHandleNetworkDeviceAttachment::initWithFileHandle(
                    VZFileHandleNetworkDeviceAttachment::alloc(),
                    &handle(socket),
                );
                attachment.setMaximumTransmissionUnit(isize::try_from(mtu).unwrap_or(1500));
                attachment.into_super()
            }
        }
    };
    // SAFETY: the device is this function's alone.
    unsafe {
        let device = VZVirtioNetworkDeviceConfiguration::new();
        device.setMACAddress(&address);
        device.setAttachment(Some(&attachment));
        Ok(device.into_super())
    }
}

/// A port that the guest only writes to.
fn serial_port(log: OwnedFd) -> Retained<VZVirtioConsoleDeviceSerialPortConfiguration> {
    // SAFETY: the port is this function's alone, and the attachment takes a file to write to.
    unsafe {
        let attachment =
            VZFileHandleSerialPortAttachment::initWithFileHandleForReading_fileHandleForWriting(
                VZFileHandleSerialPortAttachment::alloc(),
                None,
                Some(&handle(log)),
            );
        let port = VZVirtioConsoleDeviceSerialPortConfiguration::new();
        port.setAttachment(Some(&attachment));
        port
    }
}

/// The agent's port, which the guest finds by its name.
fn agent_port(agent: OwnedFd) -> Retained<VZVirtioConsoleDeviceConfiguration> {
    let socket = handle(agent);
    // SAFETY: device and port are this function's alone; the socket is read from and written to.
    unsafe {
        let attachment =
            VZFileHandleSerialPortAttachment::initWithFileHandleForReading_fileHandleForWriting(
                VZFileHandleSerialPortAttachment::alloc(),
                Some(&socket),
                Some(&socket),
            );
        let port = VZVirtioConsolePortConfiguration::new();
        port.setName(Some(&NSString::from_str(CHANNEL)));
        port.setAttachment(Some(&attachment));
        let device = VZVirtioConsoleDeviceConfiguration::new();
        let ports = device.ports();
        ports.setMaximumPortCount(1);
        ports.setObject_atIndexedSubscript(Some(&port), 0);
        device
    }
}

/// A file of the framework's, which closes it when it is done.
fn handle(fd: OwnedFd) -> Retained<NSFileHandle> {
    NSFileHandle::initWithFileDescriptor_closeOnDealloc(
        NSFileHandle::alloc(),
        fd.into_raw_fd(),
        true,
    )
}

fn url(path: &Path) -> Retained<NSURL> {
    NSURL::fileURLWithPath(&NSString::from_str(&path.to_string_lossy()))
}

fn failed(path: &Path) -> impl FnOnce(Retained<NSError>) -> String {
    move |error| format!("{}: {}", path.display(), text(&error))
}
