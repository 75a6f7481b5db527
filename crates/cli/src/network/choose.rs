//! `vmlan network choose`

use std::fmt::Write as _;
use std::io::{BufRead, Write as _};

use clap::ValueEnum;
use vmlan_config::choose::{self, Choice};

use crate::Failure;

/// Find the right network by answering two questions.
///
/// What is not given as a flag is asked for on the terminal.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// From where you want to reach the VM.
    #[arg(long)]
    from: Option<From>,

    /// How the VM is run.
    #[arg(long)]
    vm_type: Option<VmType>,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// this host, through ports of localhost
    Localhost,
    /// this host, by the VM's IP address
    Host,
    /// other VMs
    Vms,
    /// other hosts
    Hosts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VmType {
    /// QEMU
    Qemu,
    /// Apple's Virtualization framework
    Vz,
}

pub(super) fn run(args: &Args) -> Result<String, Failure> {
    let (_, file) = super::load()?;
    let from = match args.from {
        Some(from) => from,
        None => ask("From where do you want to reach the VM?", "--from")?,
    };
    let from = match from {
        From::Localhost => choose::From::Localhost,
        From::Host => choose::From::Host,
        From::Vms => choose::From::Vms,
        From::Hosts => choose::From::Hosts,
    };
    let vm_type = match args.vm_type {
        Some(vm_type) => vm_type,
        None if from.depends_on_vm_type() => ask("Which VM type?", "--vm-type")?,
        None => VmType::Qemu,
    };
    let vm_type = match vm_type {
        VmType::Qemu => choose::VmType::Qemu,
        VmType::Vz => choose::VmType::Vz,
    };
    let choice = choose::choose(from, vm_type, &file.networks);
    if args.json {
        let text = serde_json::to_string(&choice);
        return text.map(|text| text + "\n").map_err(|e| Failure::Failed(e.to_string()));
    }
    Ok(text(&choice))
}

fn text(choice: &Choice) -> String {
    let mut out = format!("network: {}\n", choice.network);
    // Writing to a string cannot fail.
    let _ = match &choice.flag {
        Some(flag) => writeln!(out, "flag:    {flag}"),
        None => writeln!(out, "flag:    none, it is always there"),
    };
    for note in &choice.notes {
        let _ = writeln!(out, "note:    {note}");
    }
    if let Some(yaml) = &choice.yaml {
        let _ = write!(out, "yaml:\n{yaml}");
    }
    out
}

/// Asks until one of the answers is given, by number or name.
fn ask<T: ValueEnum>(question: &str, flag: &str) -> Result<T, Failure> {
    let answers = T::value_variants();
    let mut text = format!("{question}\n");
    for (i, answer) in answers.iter().enumerate() {
        let answer = answer.to_possible_value().unwrap_or_default();
        let help = answer.get_help().map(ToString::to_string).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}. {help} ({})", i + 1, answer.get_name());
    }
    loop {
        let mut stderr = std::io::stderr();
        let asked = write!(stderr, "{text}> ").and_then(|()| stderr.flush());
        let mut line = String::new();
        let read = asked.and_then(|()| std::io::stdin().lock().read_line(&mut line));
        if read.map_err(|e| Failure::Failed(e.to_string()))? == 0 {
            return Err(Failure::Usage(format!("there is no answer; give {flag}")));
        }
        let line = line.trim();
        let number = line.parse().ok().and_then(|n: usize| answers.get(n.checked_sub(1)?));
        if let Some(answer) = number.cloned().or_else(|| T::from_str(line, true).ok()) {
            return Ok(answer);
        }
    }
}
