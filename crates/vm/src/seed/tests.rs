use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::*;

const AGENT: &[u8] = &[0x7f; 300_001];

fn seed() -> Seed {
    Seed {
        instance: "my.dev_box".into(),
        user: User {
            name: "ann".into(),
            uid: 501,
            home: "/home/ann.linux".into(),
            shell: "/bin/bash".into(),
        },
        keys: vec!["ssh-ed25519 AAAA ann@host".into()],
        interfaces: vec![
            Interface {
                mac: Mac([0x52, 0x55, 0x55, 1, 2, 3]),
                name: "eth0".into(),
                metric: 200,
                default_route: true,
            },
            Interface {
                mac: Mac([0x52, 0x55, 0x55, 1, 2, 4]),
                name: "lima0".into(),
                metric: 100,
                default_route: false,
            },
        ],
        dns: vec!["192.168.5.3".parse().unwrap()],
        host: Some("192.168.5.2".parse().unwrap()),
        env: vec![("A".into(), "b c".into())],
        ca_certs: Trust { remove_defaults: true, certs: vec!["-----BEGIN\n".into()] },
        provision: vec![
            Provision { as_user: false, script: "#!/bin/sh\necho ü\u{7f}\n".into() },
            Provision { as_user: true, script: "id -un\n".into() },
        ],
        agent: Some(AGENT),
        local_dns: None,
        plain: false,
    }
}

/// The image's files as another program sees them, and their modes.
fn unpack(seed: &Seed) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cidata.iso");
    seed.write(&image).unwrap();
    let mode = image.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let output = xorriso(&["-indev", image.to_str().unwrap(), "-pvd_info"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("Volume Id    : cidata"), "{said}");
    let to = dir.path().join("files");
    let words = [
        "-osirrox",
        "on",
        "-indev",
        image.to_str().unwrap(),
        "-extract",
        "/",
        to.to_str().unwrap(),
    ];
    xorriso(&words);
    dir
}

fn xorriso(words: &[&str]) -> Output {
    let output = Command::new("xorriso")
        .args(["-abort_on", "WARNING", "-return_with", "WARNING", "32"])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn json(dir: &tempfile::TempDir, name: &str) -> Value {
    let text = fs::read_to_string(dir.path().join("files").join(name)).unwrap();
    serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap_or(&text)).unwrap()
}

#[test]
fn another_program_reads_the_image() {
    let seed = seed();
    let dir = unpack(&seed);
    let files = dir.path().join("files");
    let mut names: Vec<_> = fs::read_dir(&files)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "environment",
        "hosts",
        "meta-data",
        "network-config",
        "provision-0000-system",
        "provision-0001-user",
        "user-data",
        "vmlan-agent",
        "vmlan-boot",
    ];
    assert_eq!(names, expected);
    assert_eq!(fs::read(files.join("vmlan-agent")).unwrap(), AGENT);
    let script = files.join("provision-0000-system");
    assert_eq!(script.metadata().unwrap().permissions().mode() & 0o777, 0o555);
    assert_eq!(fs::read_to_string(script).unwrap(), seed.provision[0].script);
    assert_eq!(fs::read_to_string(files.join("environment")).unwrap(), "A=b c\n");
    let hosts = fs::read_to_string(files.join("hosts")).unwrap();
    assert_eq!(hosts, "127.0.1.1\tlima-my-dev-box\n192.168.5.2\thost.lima.internal\n");
}

#[test]
fn documents_say_what_was_asked_for() {
    let dir = unpack(&seed());
    let network = json(&dir, "network-config");
    assert_eq!(network["version"], 2);
    let eth0 = &network["ethernets"]["eth0"];
    assert_eq!(eth0["match"]["macaddress"], "52:55:55:01:02:03");
    assert_eq!(eth0["set-name"], "eth0");
    assert_eq!(eth0["dhcp4"], true);
    assert_eq!(eth0["dhcp4-overrides"]["route-metric"], 200);
    assert_eq!(eth0["nameservers"]["addresses"], serde_json::json!(["192.168.5.3"]));
    let lima0 = &network["ethernets"]["lima0"];
    assert_eq!(lima0["dhcp4-overrides"]["use-routes"], false);
    assert!(lima0.get("nameservers").is_none());

    let data = json(&dir, "user-data");
    let user = &data["users"][0];
    assert_eq!((&user["name"], &user["uid"]), (&"ann".into(), &501.into()));
    assert_eq!(user["ssh_authorized_keys"][0], "ssh-ed25519 AAAA ann@host");
    assert_eq!(data["ca_certs"]["remove_defaults"], true);
    assert_eq!(data["ca_certs"]["trusted"][0], "-----BEGIN\n");
    assert_eq!(json(&dir, "meta-data")["local-hostname"], "lima-my-dev-box");
}

#[test]
fn the_same_machine_is_the_same_instance_until_it_is_changed() {
    let id =
        |seed: &Seed| json(&unpack(seed), "meta-data")["instance-id"].as_str().unwrap().to_owned();
    let mut seed = seed();
    let first = id(&seed);
    // What each boot does anyway needs no new instance.
    seed.env.clear();
    seed.provision.clear();
    assert_eq!(id(&seed), first);
    seed.interfaces[1].metric = 50;
    assert_ne!(id(&seed), first);
}

#[test]
fn a_plain_machine_has_neither_agent_nor_scripts() {
    let dir = unpack(&Seed { plain: true, ..seed() });
    let has = |name: &str| dir.path().join("files").join(name).exists();
    assert!(has("user-data") && has("vmlan-boot") && has("environment"));
    assert!(!has("vmlan-agent") && !has("provision-0000-system"));
}

#[test]
fn more_files_than_a_sector_of_the_directory_holds() {
    let script = Provision { as_user: true, script: "true".into() };
    let dir = unpack(&Seed { provision: vec![script; 300], ..seed() });
    assert_eq!(fs::read_dir(dir.path().join("files")).unwrap().count(), 307);
}

#[test]
fn what_cannot_be_said_is_refused_and_an_older_image_stays() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("cidata.iso");
    seed().write(&image).unwrap();
    let before = fs::read(&image).unwrap();
    for (name, value) in [("A", "b\nc"), ("A B", "c"), ("", "c")] {
        let seed = Seed { env: vec![(name.into(), value.into())], ..seed() };
        assert_eq!(seed.write(&image).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(fs::read(&image).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Other programs read YAML, in which some characters of JSON are forbidden.
#[test]
fn no_character_is_forbidden_in_yaml() {
    let odd = "a\u{7f}\u{85}\u{90}\u{a0}\u{feff}\u{ffff}\u{2028}😀\t\u{1}\"\\";
    let seed = Seed { keys: vec![odd.into()], ..seed() };
    let text = documents::user_data(&seed);
    let forbidden =
        |c: char| matches!(c, '\u{7f}'..='\u{84}' | '\u{86}'..='\u{9f}' | '\u{feff}' | '\u{ffff}');
    assert!(!text.contains(forbidden));
    let body = text.strip_prefix("#cloud-config\n").unwrap();
    let read: Value = serde_json::from_str(body).unwrap();
    assert_eq!(read["users"][0]["ssh_authorized_keys"][0], odd);
}

/// A name that is more than a word to the shell.
#[test]
fn a_name_stays_one_word() {
    let mut seed = seed();
    seed.user.name = "a'; touch /tmp/x; '".into();
    let boot = seed.boot();
    let line = boot.lines().next().unwrap();
    let output =
        Command::new("sh").args(["-c", &format!("{line}; printf %s \"$user\"")]).output().unwrap();
    assert_eq!(output.stdout, seed.user.name.as_bytes());
}

/// What the boot script does to a file of the guest, at one boot and the next.
#[test]
fn own_lines_take_each_others_place_and_leave_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (file, source, boot) =
        (dir.path().join("file"), dir.path().join("source"), dir.path().join("boot"));
    fs::write(&boot, BOOT).unwrap();
    let own_lines = |text: &str| {
        fs::write(&source, text).unwrap();
        let words = [
            "-c",
            "boot=$1; file=$2; source=$3; set --; . \"$boot\"; own_lines \"$file\" \"$source\"",
            "sh",
        ];
        let run = Command::new("sh").args(words).args([&boot, &file, &source]).status().unwrap();
        assert!(run.success());
        fs::read_to_string(&file).unwrap_or_default()
    };
    assert_eq!(own_lines(""), "");
    assert!(!file.exists());
    fs::write(&file, "theirs\n").unwrap();
    assert_eq!(own_lines("A=1\nB=2\n"), "theirs\n#LIMA-START\nA=1\nB=2\n#LIMA-END\n");
    assert_eq!(own_lines("C=3\n"), "theirs\n#LIMA-START\nC=3\n#LIMA-END\n");
    assert_eq!(own_lines(""), "theirs\n#LIMA-START\n#LIMA-END\n");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

/// A guest of busybox without systemd, as far as the boot script sees of one.
struct Guest {
    root: tempfile::TempDir,
}

impl Guest {
    fn new(seed: &Seed) -> Self {
        let guest = Self { root: tempfile::tempdir().unwrap() };
        for dir in ["bin", "dev", "etc/init.d", "tmp", "run/vmlan"] {
            fs::create_dir_all(guest.at(dir)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists()).unwrap();
        fs::copy(busybox, guest.at("bin/busybox")).unwrap();
        let applets = Command::new(busybox).arg("--list").output().unwrap();
        for applet in String::from_utf8(applets.stdout).unwrap().lines() {
            if applet != "busybox" {
                std::os::unix::fs::symlink("busybox", guest.at("bin").join(applet)).unwrap();
            }
        }
        let image = unpack(seed);
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(image.path().join("files")).arg(guest.at("run/vmlan/seed"));
        assert!(copy.status().unwrap().success());
        guest.write("dev/null", "", 0o666);
        guest
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str, mode: u32) {
        let _ = fs::remove_file(self.at(path));
        fs::write(self.at(path), text).unwrap();
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_default()
    }

    fn boot(&self, when: &str) {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--root"]).arg(self.root.path());
        command.args(["/bin/sh", "/run/vmlan/seed/vmlan-boot", when]);
        let output = command.env("PATH", "/bin").stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{when}: {said}");
    }
}

#[test]
fn a_guest_with_openrc_has_the_agent_as_a_service() {
    let guest = Guest::new(&seed());
    guest.write("bin/openrc-run", "", 0o755);
    guest.write("bin/supervise-daemon", "", 0o755);
    guest.write("bin/rc-service", "#!/bin/sh\necho \"$@\" >>/told\n", 0o755);
    guest.write("etc/hosts", "127.0.0.1 localhost\n", 0o644);
    for boot in 1..3 {
        guest.boot("early");
        let service = guest.read("etc/init.d/vmlan-agent");
        assert!(service.starts_with("#!/bin/openrc-run\n"), "{service}");
        assert!(service.contains("\ncommand=/usr/local/bin/vmlan-agent\n"), "{service}");
        let mode = |path| guest.at(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("etc/init.d/vmlan-agent"), 0o755);
        assert_eq!(mode("usr/local/bin/vmlan-agent"), 0o755);
        assert_eq!(fs::read(guest.at("usr/local/bin/vmlan-agent")).unwrap(), AGENT);
        assert_eq!(guest.read("told"), "vmlan-agent start\n".repeat(boot));
        let hosts = guest.read("etc/hosts");
        assert!(hosts.starts_with("127.0.0.1 localhost\n"), "{hosts}");
        assert_eq!(hosts.matches("192.168.5.2\thost.lima.internal\n").count(), 1, "{hosts}");
        assert_eq!(guest.read("etc/environment"), "#LIMA-START\nA=b c\n#LIMA-END\n");
    }
}

#[test]
fn a_guest_with_busybox_alone_keeps_the_agent_running() {
    // It tells that it has run, and at the second time ends who starts it.
    const AGENT: &[u8] =
        b"#!/bin/sh\necho ran >>/ran\n[ \"$(grep -c ran /ran)\" != 2 ] || kill $PPID\n";
    let script = "#!/bin/sh\nid -u >/provisioned\n".to_owned();
    let seed = Seed {
        agent: Some(AGENT),
        provision: vec![Provision { as_user: false, script }],
        ..seed()
    };
    let guest = Guest::new(&seed);
    guest.write("etc/passwd", "root:x:0:0::/:/bin/sh\nann:x:501:501::/home/ann:/bin/bash\n", 0o644);
    guest.write("etc/shadow", "ann:!:1::::::\n", 0o600);
    guest.boot("early");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while guest.read("ran") != "ran\nran\n" {
        assert!(std::time::Instant::now() < deadline, "{}", guest.read("ran"));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    guest.boot("late");
    assert_eq!(guest.read("provisioned"), "0\n");
    assert_eq!(guest.read("etc/shadow"), "ann:*:1::::::\n");
    assert!(guest.read("etc/passwd").ends_with(":/home/ann:/bin/sh\n"));
}

#[test]
fn a_disk_that_is_not_made_use_of_is_noted() {
    let guest = Guest::new(&Seed { provision: Vec::new(), ..seed() });
    guest.write("etc/passwd", "ann:x:501:501::/home/ann:/bin/sh\n", 0o644);
    let note = || {
        guest.boot("late");
        guest.read("run/vmlan/notes/disk")
    };
    assert_eq!(note(), "");
    let disk = |parts: &[(&str, u32)]| {
        for (path, number) in parts {
            let path = format!("sys/class/block/vda/{path}");
            fs::create_dir_all(guest.at(&path).parent().unwrap()).unwrap();
            guest.write(&path, &format!("{number}\n"), 0o444);
        }
    };
    // A file system without a table, and one whose last partition is not the last in number.
    disk(&[("size", 3 << 21)]);
    assert_eq!(note(), "");
    disk(&[("vda1/start", 2048 * 16), ("vda1/size", 2048 * 3000)]);
    disk(&[("vda14/start", 2048), ("vda14/size", 2048)]);
    assert_eq!(note(), "");
    disk(&[("vda1/size", 2048 * 1008)]);
    let said = note();
    assert!(
        said.starts_with("only 1024 of the disk's 3072 MiB") && said.contains("growpart"),
        "{said}"
    );
}
