//! What stands between every guest's link and its port: faults, for tests.

use vmlan_link::Link;
use vmlan_link::fault::{Faults, Faulty};

#[derive(Debug, Default)]
pub(crate) struct Wrappers {
    pub(crate) faults: Option<Faults>,
}

impl Wrappers {
    pub(crate) fn wrap(&self, mut link: Box<dyn Link>) -> Box<dyn Link> {
        if let Some(faults) = &self.faults {
            link = Box::new(Faulty::new(link, *faults));
        }
        link
    }
}
