//! macOS: the system's resolver, for every type. Its scoped nameservers (VPN, split DNS) are not in
//! resolv.conf, so that nobody else could be asked. `dns_sd.h` has the functions.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::IpAddr;
use std::ptr;
use std::time::{Duration, Instant};

use hickory_proto::rr::Name;

use super::libc_way;
use crate::core::{Found, FoundRecord, Wanted};
use crate::name;

/// The system's resolver knows records of every type.
pub(crate) const EVERY_TYPE: bool = true;

/// How long the system may look.
const PATIENCE: Duration = Duration::from_secs(10);

const MORE_COMING: u32 = 0x1;
const ADD: u32 = 0x2;
const RETURN_INTERMEDIATES: u32 = 0x1000;
const NO_SUCH_NAME: i32 = -65538;
const NO_SUCH_RECORD: i32 = -65554;

const CLASS_IN: u16 = 1;
const CNAME: u16 = 5;

type ServiceRef = *mut c_void;

type Reply = extern "C" fn(
    service: ServiceRef,
    flags: u32,
    interface: u32,
    error: i32,
    name: *const c_char,
    kind: u16,
    class: u16,
    len: u16,
    data: *const c_void,
    ttl: u32,
    context: *mut c_void,
);

unsafe extern "C" {
    fn DNSServiceQueryRecord(
        service: *mut ServiceRef,
        flags: u32,
        interface: u32,
        name: *const c_char,
        kind: u16,
        class: u16,
        reply: Reply,
        context: *mut c_void,
    ) -> i32;
    fn DNSServiceRefSockFD(service: ServiceRef) -> c_int;
    fn DNSServiceProcessResult(service: ServiceRef) -> i32;
    fn DNSServiceRefDeallocate(service: ServiceRef);
}

/// What the system has told so far.
struct Told {
    kind: u16,
    records: Vec<FoundRecord>,
    error: i32,
    done: bool,
}

/// A question that is being asked, ended with the value.
struct Question(ServiceRef);

pub(super) fn look_up(wanted: &Wanted) -> Found {
    match wanted {
        Wanted::Record(text, kind) => record(text, *kind),
        Wanted::Name(address) => pointer(*address),
        Wanted::Addresses(_) => libc_way::look_up(wanted),
    }
}

fn pointer(address: IpAddr) -> Found {
    libc_way::look_up(&Wanted::Name(address))
}

fn record(text: &str, kind: u16) -> Found {
    let Ok(text) = CString::new(text) else { return Found::Nothing };
    let mut told = Told { kind, records: Vec::new(), error: 0, done: false };
    let mut service = ptr::null_mut();
    // SAFETY: a C string, and a context that outlives the question, which ends with this function.
    let error = unsafe {
        DNSServiceQueryRecord(
            &raw mut service,
            RETURN_INTERMEDIATES,
            0,
            text.as_ptr(),
            kind,
            CLASS_IN,
            tell,
            (&raw mut told).cast(),
        )
    };
    if error != 0 {
        return Found::Failed;
    }
    let question = Question(service);
    let end = Instant::now() + PATIENCE;
    while !told_is_done(&raw const told) {
        if !question.wait(end.saturating_duration_since(Instant::now())) {
            return Found::Failed;
        }
        // SAFETY: the question is under way; its callback is given the context from above.
        if unsafe { DNSServiceProcessResult(question.0) } != 0 {
            return Found::Failed;
        }
    }
    drop(question);
    match told.error {
        0 | NO_SUCH_RECORD => Found::Records(told.records),
        NO_SUCH_NAME if told.records.is_empty() => Found::Nothing,
        NO_SUCH_NAME => Found::Records(told.records),
        _ => Found::Failed,
    }
}

/// The callback changes it behind the compiler's back.
fn told_is_done(told: *const Told) -> bool {
    // SAFETY: the pointer is to a live value, which nobody changes during the read.
    unsafe { ptr::read_volatile(&raw const (*told).done) }
}

impl Question {
    /// Whether there is something to be processed in time.
    fn wait(&self, time: Duration) -> bool {
        // SAFETY: the question is under way.
        let fd = unsafe { DNSServiceRefSockFD(self.0) };
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let time = c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: one valid entry.
        unsafe { libc::poll(&raw mut poll, 1, time) > 0 }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // SAFETY: it was begun and is not used afterwards.
        unsafe { DNSServiceRefDeallocate(self.0) }
    }
}

extern "C" fn tell(
    _service: ServiceRef,
    flags: u32,
    _interface: u32,
    error: i32,
    name: *const c_char,
    kind: u16,
    _class: u16,
    len: u16,
    data: *const c_void,
    ttl: u32,
    context: *mut c_void,
) {
    // SAFETY: the context is what the question was begun with, and alive; this runs within
    // `DNSServiceProcessResult`, while nobody else looks at it.
    let Some(told) = (unsafe { context.cast::<Told>().as_mut() }) else { return };
    if error != 0 {
        told.error = error;
        told.done = true;
        return;
    }
    if flags & ADD != 0 && !name.is_null() && !data.is_null() {
        // SAFETY: a C string and as many bytes as said, for the time of the call.
        let (owner, data) = unsafe {
            (CStr::from_ptr(name), std::slice::from_raw_parts(data.cast::<u8>(), usize::from(len)))
        };
        if let Some(owner) = owner.to_str().ok().and_then(wire) {
            told.records.push(FoundRecord { owner, kind, ttl, data: data.into() });
        }
    }
    // An alias comes before what it leads to.
    told.done |= flags & MORE_COMING == 0 && (kind == told.kind || told.kind == CNAME);
}

/// The wire form of a name that is written with escapes.
fn wire(text: &str) -> Option<Box<[u8]>> {
    let parsed = Name::from_ascii(text).ok()?;
    let mut wire = Vec::with_capacity(text.len() + 2);
    for label in parsed.iter() {
        wire.push(u8::try_from(label.len()).ok()?);
        wire.extend_from_slice(label);
    }
    wire.push(0);
    (wire.len() <= name::MAX_NAME).then(|| wire.into())
}
