//! The functions and constants of `vmnet/vmnet.h` and `xpc/xpc.h` that are used here, as the headers
//! have them. Handles are opaque pointers.

use std::ffi::{c_char, c_int, c_void};

use block2::Block;
use dispatch2::DispatchQueue;

pub(crate) type InterfaceRef = *mut c_void;
pub(crate) type XpcObject = *mut c_void;

/// `vmnet_return_t`
pub(crate) type Status = u32;

pub(crate) const SUCCESS: Status = 1000;
pub(crate) const FAILURE: Status = 1001;
pub(crate) const SETUP_INCOMPLETE: Status = 1004;

/// `operating_modes_t`
pub(crate) const HOST_MODE: u32 = 1000;
pub(crate) const SHARED_MODE: u32 = 1001;
pub(crate) const BRIDGED_MODE: u32 = 1002;

/// `VMNET_INTERFACE_PACKETS_AVAILABLE` of `interface_event_t`
pub(crate) const PACKETS_AVAILABLE: u32 = 1;

/// `struct vmpktdesc`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) size: usize,
    pub(crate) iov: *mut libc::iovec,
    pub(crate) iovcnt: u32,
    pub(crate) flags: u32,
}

pub(crate) type OnStart = Block<dyn Fn(Status, XpcObject)>;
pub(crate) type OnStop = Block<dyn Fn(Status)>;
pub(crate) type OnEvent = Block<dyn Fn(u32, XpcObject)>;

#[link(name = "vmnet", kind = "framework")]
unsafe extern "C" {
    pub(crate) static vmnet_operation_mode_key: *const c_char;
    pub(crate) static vmnet_shared_interface_name_key: *const c_char;
    pub(crate) static vmnet_start_address_key: *const c_char;
    pub(crate) static vmnet_end_address_key: *const c_char;
    pub(crate) static vmnet_subnet_mask_key: *const c_char;
    pub(crate) static vmnet_nat66_prefix_key: *const c_char;
    pub(crate) static vmnet_interface_id_key: *const c_char;
    pub(crate) static vmnet_network_identifier_key: *const c_char;
    pub(crate) static vmnet_max_packet_size_key: *const c_char;
    pub(crate) static vmnet_mtu_key: *const c_char;

    pub(crate) fn vmnet_start_interface(
        description: XpcObject,
        queue: &DispatchQueue,
        handler: &OnStart,
    ) -> InterfaceRef;

    pub(crate) fn vmnet_stop_interface(
        interface: InterfaceRef,
        queue: &DispatchQueue,
        handler: &OnStop,
    ) -> Status;

    pub(crate) fn vmnet_interface_set_event_callback(
        interface: InterfaceRef,
        events: u32,
        queue: Option<&DispatchQueue>,
        callback: Option<&OnEvent>,
    ) -> Status;

    pub(crate) fn vmnet_read(
        interface: InterfaceRef,
        packets: *mut Packet,
        count: *mut c_int,
    ) -> Status;

    pub(crate) fn vmnet_write(
        interface: InterfaceRef,
        packets: *mut Packet,
        count: *mut c_int,
    ) -> Status;
}

// Of libSystem, which every program has.
unsafe extern "C" {
    pub(crate) fn xpc_dictionary_create(
        keys: *const *const c_char,
        values: *const XpcObject,
        count: usize,
    ) -> XpcObject;
    pub(crate) fn xpc_dictionary_set_uint64(dictionary: XpcObject, key: *const c_char, value: u64);
    pub(crate) fn xpc_dictionary_set_string(
        dictionary: XpcObject,
        key: *const c_char,
        value: *const c_char,
    );
    pub(crate) fn xpc_dictionary_set_uuid(
        dictionary: XpcObject,
        key: *const c_char,
        value: *const u8,
    );
    pub(crate) fn xpc_dictionary_get_uint64(dictionary: XpcObject, key: *const c_char) -> u64;
    pub(crate) fn xpc_release(object: XpcObject);
}

/// What a status is called.
pub(crate) fn name(status: Status) -> &'static str {
    match status {
        1000 => "VMNET_SUCCESS",
        1001 => "VMNET_FAILURE",
        1002 => "VMNET_MEM_FAILURE",
        1003 => "VMNET_INVALID_ARGUMENT",
        1004 => "VMNET_SETUP_INCOMPLETE",
        1005 => "VMNET_INVALID_ACCESS",
        1006 => "VMNET_PACKET_TOO_BIG",
        1007 => "VMNET_BUFFER_EXHAUSTED",
        1008 => "VMNET_TOO_MANY_PACKETS",
        1009 => "VMNET_SHARING_SERVICE_BUSY",
        1010 => "VMNET_NOT_AUTHORIZED",
        _ => "a status without a name",
    }
}
