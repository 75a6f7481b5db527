//! Networks as macOS 26 has them, by whose configuration alone DHCP can be switched off. The functions
//! are looked for at run time: older systems do not have them.

use std::ffi::{CStr, c_void};
use std::net::Ipv4Addr;

use dispatch2::DispatchQueue;

use crate::interface::StartError;
use crate::sys::{HOST_MODE, InterfaceRef, OnStart, SHARED_MODE, SUCCESS, Status, XpcObject};
use crate::{Mode, Options};

type Create = unsafe extern "C" fn(u32, *mut Status) -> *mut c_void;
type DisableDhcp = unsafe extern "C" fn(*mut c_void);
type SetSubnet =
    unsafe extern "C" fn(*mut c_void, *const libc::in_addr, *const libc::in_addr) -> Status;
type SetPrefix = unsafe extern "C" fn(*mut c_void, *const libc::in6_addr, u8) -> Status;
type Finish = unsafe extern "C" fn(*mut c_void, *mut Status) -> *mut c_void;
type Start = unsafe extern "C" fn(*mut c_void, XpcObject, &DispatchQueue, &OnStart) -> InterfaceRef;

/// A network without DHCP.
#[derive(Clone, Copy)]
pub(crate) struct Network {
    network: *mut c_void,
    start: Start,
}

impl Network {
    pub(crate) fn new(options: &Options) -> Result<Self, StartError> {
        let mode = match &options.mode {
            Mode::Shared => SHARED_MODE,
            Mode::Host { .. } => HOST_MODE,
            Mode::Bridged(_) => return Err(StartError::BridgedDhcp),
        };
        // SAFETY: each is a function of vmnet.framework of macOS 26 with these arguments.
        let (create, disable_dhcp, set_subnet, set_prefix, finish, start) = unsafe {
            (
                function::<Create>(c"vmnet_network_configuration_create")?,
                function::<DisableDhcp>(c"vmnet_network_configuration_disable_dhcp")?,
                function::<SetSubnet>(c"vmnet_network_configuration_set_ipv4_subnet")?,
                function::<SetPrefix>(c"vmnet_network_configuration_set_ipv6_prefix")?,
                function::<Finish>(c"vmnet_network_create")?,
                function::<Start>(c"vmnet_interface_start_with_network")?,
            )
        };
        let mut status = SUCCESS;
        // SAFETY: the status is written and no pointer kept.
        let configuration = unsafe { create(mode, &raw mut status) };
        if configuration.is_null() {
            return Err(StartError::Status(status));
        }
        // SAFETY: the configuration was made above.
        unsafe { disable_dhcp(configuration) };
        if let Some((gateway, _, mask)) = options.range {
            let subnet = gateway & mask;
            let first = Ipv4Addr::from_bits(subnet.to_bits() | 1);
            if gateway != first {
                return Err(StartError::Gateway(first));
            }
            let (subnet, mask) = (address(subnet), address(mask));
            // SAFETY: both addresses are read and no pointer is kept.
            check(unsafe { set_subnet(configuration, &raw const subnet, &raw const mask) })?;
        }
        if let Some(prefix) = options.nat66_prefix {
            let prefix = libc::in6_addr { s6_addr: prefix.octets() };
            // SAFETY: as above.
            check(unsafe { set_prefix(configuration, &raw const prefix, 64) })?;
        }
        // SAFETY: as for the configuration. The network lives as long as the process.
        let network = unsafe { finish(configuration, &raw mut status) };
        if network.is_null() {
            Err(StartError::Status(status))
        } else {
            Ok(Self { network, start })
        }
    }

    /// # Safety
    /// The description is a dictionary of XPC's.
    pub(crate) unsafe fn start(
        self,
        description: XpcObject,
        queue: &DispatchQueue,
        handler: &OnStart,
    ) -> InterfaceRef {
        // SAFETY: the network was made above; for the rest the caller answers.
        unsafe { (self.start)(self.network, description, queue, handler) }
    }
}

fn check(status: Status) -> Result<(), StartError> {
    if status == SUCCESS { Ok(()) } else { Err(StartError::Status(status)) }
}

fn address(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) }
}

/// # Safety
/// `F` is the type of the function.
unsafe fn function<F: Copy>(name: &CStr) -> Result<F, StartError> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the name is a string of C's.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        return Err(StartError::NeedsMacos26);
    }
    // SAFETY: a function's address, of the type for which the caller answers.
    Ok(unsafe { std::mem::transmute_copy(&found) })
}
