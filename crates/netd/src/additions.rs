//! Forwards and zones that clients of the control API have added: kept in a file for the daemon that
//! follows one that was killed, and gone when the network ends.

use std::time::{Duration, Instant as SystemInstant};

use vmlan_api::{Added, colons, listen_text, protocol_name};
use vmlan_config::parse_mac;

use crate::core::{Core, Label};
use crate::state::{AddedForward, Additions, StateFile};

/// How long forwards wait for a guest that was there under the daemon before this one.
const RETURN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct AdditionsFile {
    file: StateFile<Additions>,
    /// The count of changes that the file has.
    saved: u64,
    /// Until when guests may come back.
    return_by: Option<SystemInstant>,
}

impl AdditionsFile {
    /// Does what the file says. What cannot be done any more is told of.
    pub(crate) fn new(file: StateFile<Additions>, core: &mut Core) -> Self {
        let names = core.sockets.resolver().names_mut();
        for zone in file.saved().zones.clone() {
            let added = zone.resolved().and_then(|z| names.add_zone(z).map_err(|e| e.to_string()));
            if let Err(why) = added {
                eprintln!("vmlan: a zone of names is gone: {why}");
            }
        }
        let mut waits = false;
        for AddedForward { forward, local, mac } in file.saved().forwards.clone() {
            let guest = mac.and_then(|mac| parse_mac(&mac).ok());
            let label = Label { local, guest };
            let added = Added::new(forward);
            match added.and_then(|added| core.add_labelled(added.forward, label)) {
                Ok(_) => waits |= guest.is_some(),
                Err(why) => eprintln!("vmlan: a forward is gone: {why}"),
            }
        }
        let return_by = waits.then(|| SystemInstant::now() + RETURN);
        // Those that are gone are to be gone from the file, too.
        Self { file, saved: core.additions.wrapping_sub(1), return_by }
    }

    /// Saves what has changed since the last time.
    pub(crate) fn update(&mut self, core: &mut Core) {
        if std::mem::replace(&mut self.saved, core.additions) != core.additions {
            self.file.update(additions(core));
        }
    }

    /// The network ends, and what was added to it.
    pub(crate) fn finish(&mut self) {
        self.file.update(Additions::default());
    }

    pub(crate) fn next_timeout(&self) -> Option<SystemInstant> {
        self.return_by
    }

    /// Closes the forwards of guests that have not come back.
    pub(crate) fn handle_timeout(&mut self, core: &mut Core, now: SystemInstant) {
        if self.return_by.is_none_or(|by| by > now) {
            return;
        }
        self.return_by = None;
        let is_there = |mac| core.guests.iter().any(|guest| guest.mac == mac);
        let gone = core.labels.iter().filter(|(_, l)| l.guest.is_some_and(|mac| !is_there(mac)));
        let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
        for id in gone {
            core.remove_forward(id);
        }
    }
}

fn additions(core: &mut Core) -> Additions {
    let Core { engine, labels, sockets, .. } = core;
    let forwards = engine.forwards().filter_map(|(id, forward)| {
        let label = labels.get(&id)?;
        Some(AddedForward {
            forward: vmlan_api::network::Forward {
                protocol: protocol_name(&forward.listen).into(),
                listen: listen_text(&forward.listen),
                target: forward.guest.to_string(),
                keep_source: forward.keep_source,
                guest: None,
            },
            local: label.local.clone(),
            mac: label.guest.map(colons),
        })
    });
    let mut forwards: Vec<_> = forwards.collect();
    let place = |f: &AddedForward| (f.forward.listen.clone(), f.forward.protocol.clone());
    forwards.sort_by_key(place);
    let zones = sockets.resolver().names_mut().zones().map(Into::into).collect();
    Additions { forwards, zones }
}
