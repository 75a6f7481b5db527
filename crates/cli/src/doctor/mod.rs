//! `vmlan doctor`: what works on this machine and what does not, why, and the mend. Each check is
//! a function from the machine to findings; what can be tried is tried, not guessed.

#[cfg(target_os = "linux")]
mod bridges;
mod guests;
mod machines;
mod names;
mod networks;
mod system;

use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;
use vmlan_config::{LimaHome, NetworksFile, Platform};

use crate::Failure;

/// Say what works on this machine and what does not, why, and how to mend it.
///
/// A fault is what keeps `vmlan run -- COMMAND` from working, and makes the exit status 1. A
/// warning is about something that less than everybody needs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One line of JSON for each finding.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Fault,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What works, or does not.
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

/// What checks have in common.
struct Machine {
    home: Result<LimaHome, String>,
    /// `None` while there is no networks.yaml: a check makes no files.
    networks: Option<Result<NetworksFile, String>>,
}

type Check = fn(&Machine) -> Vec<Finding>;

const CHECKS: &[Check] = &[
    guests::commands,
    guests::ping,
    system::open_files,
    system::ipv6,
    names::nameservers,
    names::sources,
    system::home,
    networks::configured,
    networks::addresses,
    networks::daemons,
    networks::root,
    #[cfg(target_os = "linux")]
    bridges::interfaces,
    #[cfg(target_os = "linux")]
    bridges::firewalls,
    machines::qemu,
    machines::acceleration,
    machines::agents,
];

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, text: text.into(), why: None, mend: None }
    }

    fn warning(check: &'static str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, ..Self::ok(check, text) }
    }

    #[cfg(any(target_os = "linux", test))]
    fn fault(check: &'static str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fault, ..Self::ok(check, text) }
    }

    fn why(self, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..self }
    }

    fn mend(self, mend: impl Into<String>) -> Self {
        Self { mend: Some(mend.into()), ..self }
    }

    /// A reason of vmlan's own, which says the mend after a semicolon.
    #[cfg(any(target_os = "linux", test))]
    fn told(self, line: &str) -> Self {
        match line.split_once("; ") {
            Some((why, mend)) => self.why(why).mend(mend),
            None => self.why(line),
        }
    }
}

impl Machine {
    fn look() -> Self {
        let home = LimaHome::from_env().map_err(|e| e.to_string());
        let there = home.as_ref().ok().filter(|home| home.networks_yaml().exists());
        let networks = there.map(|home| {
            let file = NetworksFile::load(home, &Platform::detect());
            file.map_err(|e| Failure::from(e).to_string())
        });
        Self { home, networks }
    }

    /// The networks, where they can be read.
    fn file(&self) -> Option<&NetworksFile> {
        self.networks.as_ref()?.as_ref().ok()
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let machine = Machine::look();
    let mut faults = false;
    for check in CHECKS {
        // Some take seconds: what is known is told.
        for finding in check(&machine) {
            faults |= finding.verdict == Verdict::Fault;
            let text = if args.json { json(&finding)? } else { text(&finding) };
            crate::print(&text)?;
        }
    }
    Ok(if faults { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn json(finding: &Finding) -> Result<String, Failure> {
    let text = serde_json::to_string(finding).map_err(|e| Failure::Failed(e.to_string()))?;
    Ok(text + "\n")
}

fn text(finding: &Finding) -> String {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Fault => "fault",
    };
    let mut out = format!("{verdict:<9}{:<13}{}\n", finding.check, finding.text);
    for (name, lines) in [("why:", &finding.why), ("mend:", &finding.mend)] {
        for (i, line) in lines.iter().flat_map(|lines| lines.lines()).enumerate() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{:<9}{:<6}{line}", "", if i == 0 { name } else { "" });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_shown_with_reason_and_mend() {
        let finding = Finding::fault("commands", "none runs").told("it is so; sudo mend it");
        let expected = "fault    commands     none runs\n\
                        \x20        why:  it is so\n\
                        \x20        mend: sudo mend it\n";
        assert_eq!(text(&finding), expected);
        assert_eq!(text(&Finding::ok("ping", "works")), "ok       ping         works\n");
    }
}
