//! A guest with its network cards: what each is connected to, and who serves it.

use std::ffi::{CString, OsString};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use vmlan_config::raw::{At, RawEntry};
use vmlan_config::{Attachment, LimaHome, NetworksFile, Target};
use vmlan_netd::vmnet::Helper;
use vmlan_vm::netns::{self, Card, Supervisor};

use super::Args;
use super::managed::Managed;
use super::own::Own;
use super::unmanaged::Unmanaged;
use crate::Failure;

/// The guest's side of its networks.
#[derive(Debug)]
pub(super) struct Cards {
    cards: Vec<Card>,
    places: Vec<Place>,
    resolvers: Vec<IpAddr>,
}

/// What serves a card.
#[derive(Debug)]
enum Place {
    Own(Box<Own>),
    Managed(Box<Managed>),
    Unmanaged(Box<Unmanaged>),
}

/// A guest on the default network and no other.
pub(super) fn alone(args: &Args) -> Result<Cards, Failure> {
    let own = Own::new(args)?;
    let card = Card { config: own.card(), given: false, lan: None };
    let (cards, resolvers) = (vec![card], vec![own.resolver()]);
    Ok(Cards { cards, resolvers, places: vec![Place::Own(Box::new(own))] })
}

/// A guest on the networks that were asked for.
pub(super) fn joined(args: &Args) -> Result<Cards, Failure> {
    let (home, file) = crate::network::load()?;
    let attachments = attachments(&home, &file, &args.network, args.name.as_deref())?;
    let managed = refuse_what_cannot_be(&file, &attachments)?;
    if managed {
        refuse_flags(args)?;
    }
    let mut names = None;
    let mut cards = Cards { cards: Vec::new(), places: Vec::new(), resolvers: Vec::new() };
    for (i, attachment) in attachments.iter().enumerate() {
        let (mut card, place) = match &attachment.target {
            Target::Lima(name) => {
                let network = crate::network::find(&file, name)?;
                let managed = Managed::ask(&home, network, attachment, args, i == 0)?;
                // It knows the names of the guests there, which the default network's does not. The
                // host's own network has names that the host knows too.
                if !managed.is_lan() {
                    names.get_or_insert_with(|| managed.resolvers());
                }
                (managed.card(), Place::Managed(Box::new(managed)))
            }
            Target::Socket(path) => {
                let unmanaged = Unmanaged::ask(path, attachment, args)?;
                (unmanaged.card(), Place::Unmanaged(Box::new(unmanaged)))
            }
            Target::Default | Target::VzNat => {
                let own = Own::new(args)?;
                cards.resolvers = vec![own.resolver()];
                (own.card(), Place::Own(Box::new(own)))
            }
        };
        card.name.clone_from(&attachment.interface);
        card.mac = Some(attachment.mac.0);
        card.metric = Some(attachment.metric);
        let (given, lan) = match &place {
            Place::Managed(managed) => (managed.is_bridged(), managed.lan()),
            Place::Own(_) | Place::Unmanaged(_) => (false, None),
        };
        cards.cards.push(Card { config: card, given, lan });
        cards.places.push(place);
    }
    if let Some(names) = names {
        cards.resolvers = names;
    }
    Ok(cards)
}

pub(super) fn run(command: Vec<OsString>, root: bool, cards: Cards) -> Result<ExitCode, Failure> {
    let command = command.into_iter().map(|arg| CString::new(arg.into_vec()));
    let guest = netns::Guest {
        command: command.collect::<Result<_, _>>().map_err(|e| Failure::Failed(e.to_string()))?,
        root,
        cards: cards.cards,
        resolvers: cards.resolvers,
        hidden: control_sockets(),
    };
    let places = cards.places;
    let serve = |index: usize, card: OwnedFd, supervisor: &Supervisor| match places.get(index) {
        Some(Place::Own(own)) => own.serve(card, supervisor),
        Some(Place::Managed(managed)) => managed.serve(&card, supervisor),
        Some(Place::Unmanaged(unmanaged)) => unmanaged.serve(card, supervisor),
        None => Err("there is no such card".into()),
    };
    match netns::run(&guest, &serve) {
        Ok(ending) => ending.pass_on(),
        Err(e) => Err(Failure::Failed(e.to_string())),
    }
}

/// Where vmlan's daemons keep their control sockets: a guest is not to command its own network.
fn control_sockets() -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
    let runtime = runtime.map(PathBuf::from).into_iter().chain([PathBuf::from("/run")]);
    // Without a home there is nothing below it.
    let networks = LimaHome::from_env().map(|home| home.networks());
    runtime.map(|runtime| runtime.join("vmlan")).chain(networks).collect()
}

/// The guest's interfaces. Without a name it is a new guest each time.
fn attachments(
    home: &LimaHome,
    file: &NetworksFile,
    entries: &[RawEntry],
    name: Option<&str>,
) -> Result<Vec<Attachment>, Failure> {
    let dir = match name {
        Some(name) => {
            vmlan_config::host_name(name)
                .map_err(|e| Failure::Failed(format!("--name {name}: {e}")))?;
            home.instance(name)
        }
        None => {
            let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
            home.instance(&format!("run#{}#{now}", std::process::id()))
        }
    };
    let machine = vmlan_config::machine::id();
    let instance =
        vmlan_config::Instance { networks: &file.networks, machine: &machine, dir: &dir };
    let entries: Vec<_> = entries.iter().cloned().map(At::nowhere).collect();
    let (all, warnings) = vmlan_config::attachments(&entries, instance).map_err(|found| {
        let found: Vec<_> = found.into_iter().map(|d| d.message).collect();
        Failure::Failed(format!("--network: {}", found.join("; ")))
    })?;
    for warning in warnings {
        crate::tell(&format!("--network: {}", warning.message));
    }
    Ok(all)
}

/// Refuses networks that a command cannot join, before anything is started. Returns whether eth0 is
/// on a network with a daemon.
fn refuse_what_cannot_be(file: &NetworksFile, attachments: &[Attachment]) -> Result<bool, Failure> {
    let refused = |text: String| Err(Failure::Failed(format!("--network {text}")));
    let mut names: Vec<&str> = Vec::new();
    for attachment in attachments {
        match &attachment.target {
            Target::Default | Target::Socket(_) => {}
            Target::VzNat => {
                let text = "vzNAT: it is for virtual machines of vmType vz on macOS; for a guest with \
                            an address that the host reaches, use lima:shared";
                return refused(text.into());
            }
            Target::Lima(name) => {
                let network = crate::network::find(file, name)?;
                if let Some(Err(why)) = Helper::of(network).map(|helper| helper.check()) {
                    return refused(format!("lima:{name}: {why}"));
                }
                if names.contains(&name.as_str()) {
                    return refused(format!("lima:{name}: given twice"));
                }
                names.push(name);
            }
        }
    }
    Ok(matches!(attachments.first().map(|a| &a.target), Some(Target::Lima(_))))
}

/// Refuses what only a network that is the guest's alone can have.
fn refuse_flags(args: &Args) -> Result<(), Failure> {
    let why = [
        (args.mtu.is_some(), "--mtu", "all guests of a user-v2 network have that of the network"),
        (
            args.no_host_loopback,
            "--no-host-loopback",
            "what a user-v2 network may reach is the same for all of its guests",
        ),
        (
            args.capture.is_some(),
            "--capture",
            "frames of a user-v2 network pass its daemon; see: vmlan capture NETWORK [GUEST]",
        ),
    ];
    match why.into_iter().find(|(given, ..)| *given) {
        Some((_, flag, why)) => Err(Failure::Usage(format!("{flag}: {why}"))),
        None => Ok(()),
    }
}
