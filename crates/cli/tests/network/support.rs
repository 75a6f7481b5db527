//! A home, and what vmlan says and does there.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub(crate) struct Home {
    dir: TempDir,
}

pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Standard output of a command that went well without a word on standard error.
    #[track_caller]
    pub(crate) fn quiet(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self.out
    }

    /// Standard error of a command that failed with this status.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{}", self.err);
        assert!(self.err.starts_with("vmlan: "), "{}", self.err);
        self.err
    }
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A home whose networks.yaml says this.
    pub(crate) fn with(text: &str) -> Self {
        let home = Self::new();
        fs::create_dir_all(home.networks_yaml().parent().unwrap()).unwrap();
        fs::write(home.networks_yaml(), text).unwrap();
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(name)
    }

    pub(crate) fn networks_yaml(&self) -> PathBuf {
        self.path("_config/networks.yaml")
    }

    pub(crate) fn text(&self) -> String {
        fs::read_to_string(self.networks_yaml()).unwrap()
    }

    pub(crate) fn instance(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name)).unwrap();
        fs::write(self.path(name).join("lima.yaml"), text).unwrap();
    }

    pub(crate) fn network(&self, args: &[&str]) -> Said {
        self.vmlan(&[&["network"], args].concat(), "")
    }

    pub(crate) fn vmlan(&self, args: &[&str], input: &str) -> Said {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vmlan"))
            .args(args)
            .env("LIMA_HOME", self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who has read enough may be gone.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) const NETWORKS: &str = "\
# mine
networks:
  lab: # the lab
    mode: user-v2
    gateway: 10.71.0.1
  lan:
    mode: bridged
    interface: br0
  old:
    mode: shared
    gateway: 10.72.0.1
    netmask: 255.255.0.0
    # the old one
";
