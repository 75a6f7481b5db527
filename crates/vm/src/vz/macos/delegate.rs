//! Hears from the framework that a machine has ended.

use objc2::rc::Retained;
use objc2::runtime::NSObject;
use objc2::{AnyThread, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSError, NSObjectProtocol};
use objc2_virtualization::{VZVirtualMachine, VZVirtualMachineDelegate};

use super::{Ended, OnEnd, text};

define_class!(
    // SAFETY: NSObject may be inherited from, and the class has no destructor of its own.
    #[unsafe(super(NSObject))]
    #[name = "VmlanMachineDelegate"]
    #[ivars = OnEnd]
    #[derive(Debug)]
    pub(super) struct Delegate;

    // SAFETY: it asks for nothing.
    unsafe impl NSObjectProtocol for Delegate {}

    // SAFETY: the methods have the arguments of the protocol.
    unsafe impl VZVirtualMachineDelegate for Delegate {
        #[unsafe(method(guestDidStopVirtualMachine:))]
        fn guest_did_stop(&self, _machine: &VZVirtualMachine) {
            (self.ivars().0)(Ok(()));
        }

        #[unsafe(method(virtualMachine:didStopWithError:))]
        fn did_stop_with_error(&self, _machine: &VZVirtualMachine, error: &NSError) {
            (self.ivars().0)(Err(text(error)));
        }
    }
);

impl Delegate {
    pub(super) fn new(ended: Ended) -> Retained<Self> {
        let this = Self::alloc().set_ivars(OnEnd(ended));
        // SAFETY: NSObject's initialiser takes no arguments.
        unsafe { msg_send![super(this), init] }
    }
}
