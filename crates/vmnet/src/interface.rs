//! An interface from its start to its end.

use std::ffi::{CString, c_char};
use std::net::Ipv4Addr;
use std::ptr::null;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::sleep;
use std::time::Duration;

use block2::RcBlock;
use dispatch2::{DispatchQueue, DispatchRetained};

use crate::network::Network;
use crate::sys::{self, InterfaceRef, Status, XpcObject};
use crate::{Mode, Options};

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("vmnet.framework: {}", sys::name(*.0))]
    Status(u32),
    #[error("vmnet.framework has not answered within {} s", ANSWER.as_secs())]
    Silent,
    #[error("a network without DHCP needs macOS 26")]
    NeedsMacos26,
    #[error("on a network of mode bridged, DHCP is somebody else's: there is none to switch off")]
    BridgedDhcp,
    #[error("on a network without DHCP, macOS is the first address, {0}, and no other")]
    Gateway(Ipv4Addr),
    #[error("the name of the interface has a zero in it")]
    Name,
    #[error("no randomness: {0}")]
    Random(getrandom::Error),
}

/// How long the framework may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// While the system comes up, the framework fails at first. It is asked again after these times.
const AGAIN: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// A running interface. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Interface {
    pub(crate) handle: InterfaceRef,
    pub(crate) queue: DispatchRetained<DispatchQueue>,
    /// Largest frame.
    pub(crate) max_packet: usize,
    /// Largest IP packet.
    pub mtu: u16,
}

// SAFETY: the framework's functions may be called from any thread, one at a time, which exclusive
// ownership of the handle sees to.
unsafe impl Send for Interface {}

/// What the framework says of an interface that it has started.
struct Started {
    status: Status,
    max_packet: u64,
    mtu: u64,
}

impl Interface {
    /// Starts an interface. Waits while the framework is not ready yet.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let mut pauses = AGAIN.into_iter();
        loop {
            let error = match Self::try_start(options) {
                Ok(interface) => return Ok(interface),
                Err(error) => error,
            };
            let early = matches!(error, StartError::Status(sys::FAILURE | sys::SETUP_INCOMPLETE));
            match pauses.next().filter(|_| early) {
                Some(pause) => sleep(pause),
                None => return Err(error),
            }
        }
    }

    fn try_start(options: &Options) -> Result<Self, StartError> {
        let queue = DispatchQueue::new("vmlan.vmnet", None);
        let isolated = matches!(options.mode, Mode::Host { identifier: Some(_) });
        let network = match options.dhcp || isolated {
            true => None,
            false => Some(Network::new(options)?),
        };
        let description = Description::of(options, network.is_some())?;
        let (tell, answer) = mpsc::channel();
        let on_start = RcBlock::new(move |status: Status, parameters: XpcObject| {
            let mut started = Started { status, max_packet: 0, mtu: 0 };
            if status == sys::SUCCESS && !parameters.is_null() {
                // SAFETY: the parameters are a dictionary, and the keys the framework's own.
                unsafe {
                    let get = |key| sys::xpc_dictionary_get_uint64(parameters, key);
                    started.max_packet = get(sys::vmnet_max_packet_size_key);
                    started.mtu = get(sys::vmnet_mtu_key);
                }
            }
            // Who has stopped waiting does not need it.
            let _ = tell.send(started);
        });
        // SAFETY: the description is a dictionary, and queue and block are retained as long as they
        // are needed.
        let handle = unsafe {
            match network {
                Some(network) => network.start(description.0, &queue, &on_start),
                None => sys::vmnet_start_interface(description.0, &queue, &on_start),
            }
        };
        let started = match answer.recv_timeout(ANSWER) {
            Ok(started) => started,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(StartError::Silent);
            }
        };
        if started.status != sys::SUCCESS || handle.is_null() {
            return Err(StartError::Status(match started.status {
                sys::SUCCESS => sys::FAILURE,
                status => status,
            }));
        }
        Ok(Self {
            handle,
            queue,
            max_packet: usize::try_from(started.max_packet).unwrap_or(0).clamp(1514, 65_553),
            mtu: u16::try_from(started.mtu).unwrap_or(1500).max(576),
        })
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let (tell, stopped) = mpsc::channel();
        let on_stop = RcBlock::new(move |_: Status| {
            let _ = tell.send(());
        });
        // SAFETY: the handle is a started interface's, and is used no more.
        unsafe {
            let _ = sys::vmnet_interface_set_event_callback(
                self.handle,
                sys::PACKETS_AVAILABLE,
                None,
                None,
            );
            sys::vmnet_stop_interface(self.handle, &self.queue, &on_stop);
        }
        let _ = stopped.recv_timeout(ANSWER);
    }
}

/// The dictionary that describes an interface.
struct Description(XpcObject);

impl Description {
    /// What a network of its own says is left out.
    fn of(options: &Options, of_network: bool) -> Result<Self, StartError> {
        // SAFETY: an empty dictionary needs no keys and values.
        let made = Self(unsafe { sys::xpc_dictionary_create(null(), null(), 0) });
        // SAFETY: the framework's constants are there as long as the process.
        unsafe {
            if !of_network {
                made.network(options)?;
            }
            let mut id = options.interface_id.unwrap_or_default();
            if options.interface_id.is_none() {
                getrandom::fill(&mut id).map_err(StartError::Random)?;
                // Version 4, variant 1 (RFC 9562).
                id[6] = id[6] & 0x0f | 0x40;
                id[8] = id[8] & 0x3f | 0x80;
            }
            made.set_uuid(sys::vmnet_interface_id_key, &id);
        }
        Ok(made)
    }

    /// # Safety
    /// The framework's constants are read.
    unsafe fn network(&self, options: &Options) -> Result<(), StartError> {
        // SAFETY: for the constants the caller answers.
        unsafe {
            let mode = match &options.mode {
                Mode::Shared => sys::SHARED_MODE,
                Mode::Host { identifier } => {
                    if let Some(id) = identifier {
                        self.set_uuid(sys::vmnet_network_identifier_key, id);
                    }
                    sys::HOST_MODE
                }
                Mode::Bridged(interface) => {
                    self.set_string(sys::vmnet_shared_interface_name_key, interface)?;
                    sys::BRIDGED_MODE
                }
            };
            sys::xpc_dictionary_set_uint64(self.0, sys::vmnet_operation_mode_key, mode.into());
            if let Some((gateway, last, mask)) = options.range {
                self.set_string(sys::vmnet_start_address_key, &gateway.to_string())?;
                self.set_string(sys::vmnet_end_address_key, &last.to_string())?;
                self.set_string(sys::vmnet_subnet_mask_key, &mask.to_string())?;
            }
            if let Some(prefix) = options.nat66_prefix {
                self.set_string(sys::vmnet_nat66_prefix_key, &prefix.to_string())?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// The key is a string of C's.
    unsafe fn set_string(&self, key: *const c_char, value: &str) -> Result<(), StartError> {
        let value = CString::new(value).map_err(|_| StartError::Name)?;
        // SAFETY: the value is copied; for the key the caller answers.
        unsafe { sys::xpc_dictionary_set_string(self.0, key, value.as_ptr()) };
        Ok(())
    }

    /// # Safety
    /// The key is a string of C's.
    unsafe fn set_uuid(&self, key: *const c_char, value: &[u8; 16]) {
        // SAFETY: the value is copied; for the key the caller answers.
        unsafe { sys::xpc_dictionary_set_uuid(self.0, key, value.as_ptr()) };
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was made by this, and the framework has retained what it needs.
        unsafe { sys::xpc_release(self.0) };
    }
}
