//! What stands between every guest's link and its port: a capture, and faults for tests.

use vmlan_link::Link;
use vmlan_link::capture::Capture;
use vmlan_link::fault::{Faults, Faulty};

#[derive(Debug, Default)]
pub(crate) struct Wrappers {
    pub(crate) capture: Option<Capture>,
    pub(crate) faults: Option<Faults>,
    /// Links so far, for their names in the capture.
    count: u32,
}

impl Wrappers {
    pub(crate) fn wrap(&mut self, mut link: Box<dyn Link>) -> Box<dyn Link> {
        if let Some(faults) = &self.faults {
            link = Box::new(Faulty::new(link, *faults));
        }
        if let Some(capture) = &self.capture {
            link = Box::new(capture.wrap(link, &format!("guest{}", self.count)));
        }
        self.count += 1;
        link
    }
}
