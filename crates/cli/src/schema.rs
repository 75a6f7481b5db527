//! `vmlan schema`: JSON schemas of the files, for editors.

use std::process::ExitCode;

use clap::ValueEnum;

use crate::Failure;

/// Print the JSON schema of a file, for editors.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(default_value = "networks")]
    file: File,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum File {
    /// networks.yaml
    Networks,
    /// lima.yaml, as far as it is about networks
    Lima,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let schema = match args.file {
        File::Networks => vmlan_config::schema::networks(),
        File::Lima => vmlan_config::schema::instance(),
    };
    crate::print(&format!("{schema:#}\n"))
}
