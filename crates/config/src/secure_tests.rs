use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::testing::networks;

/// A directory that is trusted, whose files belong to whoever runs the tests.
struct Root {
    dir: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let root = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(root.path("bin")).unwrap();
        root.file("bin/program", 0o755);
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(name)
    }

    fn file(&self, name: &str, mode: u32) {
        fs::write(self.path(name), "").unwrap();
        self.mode(name, mode);
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn owner(&self) -> u32 {
        fs::metadata(self.dir.path()).unwrap().uid()
    }

    /// What is said about `field: NAME`, with this group as the daemons'.
    fn said(&self, field: &str, name: &str, daemon: Option<u32>) -> String {
        let path = self.path(name);
        let text = format!("paths: {{{field}: \"{}\"}}", path.display());
        let networks = networks(&text);
        let above = fs::canonicalize(self.dir.path()).unwrap();
        let found = check(&networks, Trust { above: &above, owner: self.owner(), daemon });
        let said: Vec<_> = found.into_iter().map(|d| d.message).collect();
        said.join("; ").replace(&format!("{}/", above.display()), "/R/")
    }

    /// What would be right, of what is wrong with a program.
    fn mend(&self, name: &str) -> String {
        let text = format!("paths: {{socketVMNet: \"{}\"}}", self.path(name).display());
        let above = fs::canonicalize(self.dir.path()).unwrap();
        let trust = Trust { above: &above, owner: self.owner(), daemon: None };
        let help = check(&networks(&text), trust).remove(0).help.unwrap();
        help.replace(&format!("{}/", above.display()), "/R/")
    }

    fn program(&self, name: &str) -> String {
        self.said("socketVMNet", name, None)
    }
}

#[test]
fn a_safe_program() {
    let root = Root::new();
    assert_eq!(root.program("bin/program"), "");
}

#[test]
fn programs_that_somebody_could_replace() {
    let root = Root::new();
    let error = |what: &str| format!("networks.yaml field `paths.socketVMNet` error: {what}");
    let missing = "networks.yaml: `/R/bin/none` (`paths.socketVMNet`) has to be installed";
    assert_eq!(root.program("bin/none"), missing);
    root.file("bin/a b", 0o755);
    assert_eq!(root.program("bin/a b"), error("path `/R/bin/a b` contains whitespace"));
    let up = error("path `/R/bin/../bin/program` goes up again by `..`");
    assert_eq!(root.program("bin/../bin/program"), up);
    symlink(root.path("bin/program"), root.path("link")).unwrap();
    assert_eq!(root.program("link"), error("file `/R/link` is a symlink"));
    symlink(root.path("bin"), root.path("dir")).unwrap();
    assert_eq!(root.program("dir/program"), error("file `/R/dir` is a symlink"));
    root.mode("bin/program", 0o757);
    assert_eq!(root.program("bin/program"), error("file `/R/bin/program` is world-writable"));
    root.mode("bin", 0o757);
    assert_eq!(root.program("bin/program"), error("dir `/R/bin` is world-writable"));
    let relative = networks("paths: {socketVMNet: bin/program}");
    let found = check_paths(&relative, None);
    assert_eq!(found[0].message, error("path `bin/program` is not an absolute path"));
}

#[test]
fn every_fault_has_a_mend() {
    let root = Root::new();
    assert!(root.mend("bin/none").contains("install it there"));
    assert!(root.mend("bin/a b").contains("without whitespace"));
    assert!(root.mend("bin/../bin/program").contains("without `..`"));
    symlink(root.path("bin"), root.path("dir")).unwrap();
    assert_eq!(root.mend("dir/program"), "write the path that it leads to: /R/bin");
    root.mode("bin/program", 0o757);
    assert_eq!(root.mend("bin/program"), "mend it with: sudo chmod o-w /R/bin/program");
    root.mode("bin/program", 0o700);
    let own = |uid, gid| std::os::unix::fs::chown(root.path("bin"), Some(uid), Some(gid)).unwrap();
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    own(4321, 0);
    assert_eq!(root.mend("bin/program"), "mend it with: sudo chown root /R/bin");
    own(0, 4321);
    root.mode("bin", 0o775);
    assert_eq!(root.mend("bin/program"), "mend it with: sudo chmod g-w /R/bin");
    let found = check_paths(&networks("paths: {socketVMNet: bin/program}"), None);
    assert_eq!(found[0].help.as_deref(), Some("write the whole path, from `/`"));
}

#[test]
fn owners_and_groups() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let root = Root::new();
    let own = |uid, gid| std::os::unix::fs::chown(root.path("bin"), Some(uid), Some(gid)).unwrap();
    own(4321, 0);
    let error = "networks.yaml field `paths.socketVMNet` error: dir `/R/bin` is not owned by \
                 `root` (uid: 0), but by uid 4321";
    assert_eq!(root.program("bin/program"), error);
    own(0, 4321);
    assert_eq!(root.program("bin/program"), "");
    root.mode("bin", 0o775);
    let error = "networks.yaml field `paths.socketVMNet` error: dir `/R/bin` is group-writable \
                 and group is not `root` (gid: 0), but is gid: 4321";
    assert_eq!(root.program("bin/program"), error);
    // The daemons' own group may write, but only where they keep their files.
    assert_eq!(root.said("varRun", "bin/run", Some(4321)), "");
    assert_eq!(root.said("socketVMNet", "bin/program", Some(4321)), error);
    let error = "networks.yaml field `paths.varRun` error: dir `/R/bin` is group-writable and \
                 group is neither `root` (gid: 0) nor `daemon` (gid: 1), but is gid: 4321";
    assert_eq!(root.said("varRun", "bin/run", Some(1)), error);
    own(0, 0);
    root.mode("bin", 0o750);
    let error = "networks.yaml field `paths.varRun` error: dir `/R/bin` is not executable by the \
                 `daemon` (gid: 1) group";
    assert_eq!(root.said("varRun", "bin/run", Some(1)), error);
}

#[test]
fn what_need_not_be_there() {
    let root = Root::new();
    assert_eq!(root.said("sudoers", "bin/none", None), "");
    assert_eq!(root.said("varRun", "bin/run/lima", None), "");
    root.mode("bin", 0o757);
    let error = "networks.yaml field `paths.sudoers` error: dir `/R/bin` is world-writable";
    assert_eq!(root.said("sudoers", "bin/none", None), error);
}
