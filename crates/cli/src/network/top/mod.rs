//! `vmlan network top`: what networks and their guests do, once or as it changes.

mod prometheus;
mod table;
mod terminal;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vmlan_api::network::Network;

use crate::Failure;
use crate::place;
use terminal::{Key, Terminal};

/// Watch guests, their traffic, flows, leases and drops.
///
/// On a terminal it goes on until q or Ctrl-C; elsewhere it is printed once.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these networks.
    #[arg(value_name = "NETWORK")]
    network: Vec<String>,

    /// Print it once as JSON.
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,

    /// Print it once in Prometheus' text format.
    #[arg(long)]
    prometheus: bool,

    /// Seconds from one look to the next.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.1..=3600.0).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "not from 0.1 to 3600 seconds".into())
}

/// Networks at one moment.
#[derive(Debug, Serialize)]
struct Snapshot {
    /// Unix time in seconds.
    time: u64,
    networks: Vec<Seen>,
    #[serde(skip)]
    at: Instant,
}

/// A network and what it is called.
#[derive(Debug, Serialize)]
struct Seen {
    name: String,
    #[serde(flatten)]
    network: Network,
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let first = Snapshot::take(&args.network)?;
    if args.json {
        let text = serde_json::to_string_pretty(&first);
        return text.map(|text| text + "\n").map_err(|e| Failure::Failed(e.to_string()));
    }
    if args.prometheus {
        return Ok(prometheus::text(&first));
    }
    if !io::stdout().is_terminal() {
        return Ok(table::lines(&first, None).concat());
    }
    watch(args, first).map_err(|e| Failure::Failed(format!("the terminal: {e}")))?;
    Ok(String::new())
}

fn watch(args: &Args, mut now: Snapshot) -> io::Result<()> {
    let mut terminal = Terminal::enter()?;
    let mut before: Option<Snapshot> = None;
    let mut problem = None;
    loop {
        let mut lines = table::lines(&now, before.as_ref());
        if let Some(problem) = &problem {
            lines.insert(0, format!("{problem}\n"));
        }
        terminal.draw(&lines)?;
        match terminal.wait(now.at + args.interval)? {
            Key::Quit => return Ok(()),
            Key::Redraw => continue,
            Key::None => {}
        }
        match Snapshot::take(&args.network) {
            Ok(next) => {
                before = Some(std::mem::replace(&mut now, next));
                problem = None;
            }
            // It may come back.
            Err(failure) => {
                now = Snapshot { at: Instant::now(), networks: Vec::new(), time: now.time };
                before = None;
                problem = Some(failure);
            }
        }
    }
}

impl Snapshot {
    fn take(names: &[String]) -> Result<Self, Failure> {
        let running = if names.is_empty() {
            place::running()?
        } else {
            names.iter().map(|name| place::running_network(name)).collect::<Result<_, _>>()?
        };
        let mut networks = Vec::new();
        for running in running {
            // Without one, it has just ended.
            if let Some(network) = running.get("/v1/network")? {
                networks.push(Seen { name: running.name, network });
            }
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Self { time, networks, at: Instant::now() })
    }

    /// The same network in this snapshot, and how long before another that was.
    fn earlier(&self, seen: &Seen, at: Instant) -> Option<(&Network, Duration)> {
        let same = |other: &&Seen| {
            let (old, new) = (&other.network.daemon, &seen.network.daemon);
            other.name == seen.name && (old.pid, old.since) == (new.pid, new.since)
        };
        let found = self.networks.iter().find(same)?;
        Some((&found.network, at.saturating_duration_since(self.at)))
    }
}
