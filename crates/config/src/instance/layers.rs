//! The machines of `_config/default.yaml`, an instance's own `lima.yaml` and `_config/override.yaml`
//! as one.

use super::raw::{RawCaCerts, RawMachine};
use crate::yaml::{At, Entries, Layer, Places};

/// What is in force for an instance whose own file says `own`. Places in the other files are
/// forgotten.
pub(crate) fn apply(default: RawMachine, own: RawMachine, overriding: RawMachine) -> RawMachine {
    merge(merge(nowhere(default), own), nowhere(overriding))
}

/// Of single values the one in `over` counts. Lists are one list, in which what counts more comes
/// first: of images and forwards the first that fits is taken.
fn merge(mut under: RawMachine, mut over: RawMachine) -> RawMachine {
    let images = joined(over.images.take(), under.images.take());
    let port_forwards = joined(over.port_forwards.take(), under.port_forwards.take());
    let provision = joined(over.provision.take(), under.provision.take());
    let env = both(over.env.take(), under.env.take(), merge_env);
    let ssh = both(over.ssh.take(), under.ssh.take(), Layer::or);
    let ca_certs = both(over.ca_certs.take(), under.ca_certs.take(), merge_certs);
    RawMachine { images, port_forwards, provision, env, ssh, ca_certs, ..over.or(under) }
}

fn merge_env(over: Entries<At<String>>, under: Entries<At<String>>) -> Entries<At<String>> {
    let Entries(mut all) = under;
    all.retain(|(known, _)| over.0.iter().all(|(new, _)| new.value != known.value));
    all.extend(over.0);
    Entries(all)
}

/// All certificates are trusted, and each is said once.
fn merge_certs(mut over: RawCaCerts, mut under: RawCaCerts) -> RawCaCerts {
    let files = distinct(joined(under.files.take(), over.files.take()));
    let certs = distinct(joined(under.certs.take(), over.certs.take()));
    RawCaCerts { files, certs, ..over.or(under) }
}

fn both<T>(over: Option<T>, under: Option<T>, merge: impl FnOnce(T, T) -> T) -> Option<T> {
    match (over, under) {
        (Some(over), Some(under)) => Some(merge(over, under)),
        (over, under) => over.or(under),
    }
}

fn joined<T>(first: Option<Vec<T>>, second: Option<Vec<T>>) -> Option<Vec<T>> {
    both(first, second, |first, second| first.into_iter().chain(second).collect())
}

fn distinct<T: PartialEq>(list: Option<Vec<T>>) -> Option<Vec<T>> {
    list.map(|list| {
        list.into_iter().fold(Vec::new(), |mut all, item| {
            if !all.contains(&item) {
                all.push(item);
            }
            all
        })
    })
}

fn nowhere<T: Places>(mut raw: T) -> T {
    raw.forget();
    raw
}
