//! Machines as they are read.

use super::*;

fn read(text: &str) -> Result<Read, String> {
    InstanceConfig::parse(&Source::new("lima.yaml", text), Path::new("/i"))
        .map_err(|report| report.to_string())
}

#[test]
fn nothing_said_is_every_default() {
    let config = read("").unwrap().config;
    assert_eq!((config.vm_type, config.arch), (None, Arch::host()));
    assert_eq!((config.cpus, config.memory, config.disk), (None, None, 100 << 30));
    assert!(config.propagate_proxy_env && !config.plain && config.images.is_empty());
}

#[test]
fn a_machine_is_read_whole() {
    let config = read(
        "vmType: qemu\narch: aarch64\ncpus: 2\nmemory: 1.5GiB\ndisk: 10GiB\nplain: true\n\
         images:\n- {location: /x86.img, arch: x86_64}\n\
         - {location: /arm.img, arch: aarch64, kernel: {location: /k, cmdline: quiet}, initrd: {location: /i}}\n\
         - {location: /risc.img, arch: riscv64}\n\
         ssh: {localPort: 2222}\nenv: {A: b}\nnetworks: [{lima: user-v2}]\ndns: []\n\
         provision:\n- {script: date}\n- {mode: user, script: id}\n\
         caCerts: {removeDefaults: true, files: [/ca.pem]}\n",
    );
    let config = config.unwrap().config;
    assert_eq!((config.arch, config.cpus, config.ssh_port), (Arch::Aarch64, Some(2), Some(2222)));
    assert_eq!((config.memory, config.disk), (Some(3 << 29), 10 << 30));
    let [image] = config.images.as_slice() else { panic!("{:?}", config.images) };
    let kernel = image.kernel.as_ref().unwrap();
    assert_eq!((image.disk.location.as_str(), kernel.cmdline.as_str()), ("/arm.img", "quiet"));
    assert_eq!(kernel.initrd.as_ref().unwrap().location, "/i");
    assert_eq!(config.env, [("A".to_owned(), "b".to_owned())]);
    let as_user: Vec<_> = config.provision.iter().map(|script| script.as_user).collect();
    assert_eq!(as_user, [false, true]);
    assert!(config.plain && config.ca_certs.remove_defaults);
}

#[test]
fn keys_of_limas_are_one_warning_and_others_an_error() {
    let warnings = read("mounts: []\ncpus: 1\ncontainerd: {user: false}\n").unwrap().warnings;
    let warnings = warnings.unwrap().to_string();
    assert!(warnings.contains("`mounts`, `containerd`"), "{warnings}");
    let error = read("cpus: 1\nmemmory: 4GiB\n").unwrap_err();
    assert!(error.contains("unknown field `memmory`"), "{error}");
    assert!(error.contains("lima.yaml:2:1"), "{error}");
}

#[test]
fn what_cannot_be_is_said() {
    for (text, want) in [
        ("vmType: wsl2", "must be `qemu` or `vz`"),
        ("arch: mips", "must be `x86_64` or `aarch64`"),
        ("cpus: 0", "between 1 and 255"),
        ("cpus: two", "must be a whole number"),
        ("ssh: {localPort: x}", "must be a whole number"),
        ("plain: maybe", "must be `true` or `false`"),
        ("memory: lots", "is not a size"),
        ("memory: 1MiB", "at least 64MiB"),
        ("disk: -1", "is not a size"),
        ("images: [{arch: x86_64}]", "location` must be set"),
        ("images: [{location: /x, digest: 'md5:00'}]", "is no digest"),
        ("ssh: {localPort: 70000}", "between 0 and 65535"),
        ("provision: [{mode: system}]", "script` must be set"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(want) && error.contains(":1:"), "{text}: {error}");
    }
}

#[test]
fn a_misspelt_key_within_a_part_is_named_with_its_place() {
    let text = "ssh: {localport: 1}\ncaCerts: {cert: []}\nprovision: [{script: x, mod: user}]\n\
                images: [{location: /x, kernel: {location: /k, cmdLine: y}, initrd: {locaton: /i, location: /i}}]\n";
    let source = Source::new("lima.yaml", text);
    let read = InstanceConfig::parse(&source, Path::new("/i")).unwrap();
    let warnings = read.warnings.unwrap().to_string();
    for (name, of, at) in [
        ("localport", "ssh", "1:7"),
        ("cert", "caCerts", "2:11"),
        ("mod", "provision[0]", "3:25"),
        ("cmdLine", "images[0].kernel", "4:48"),
        ("locaton", "images[0].initrd", "4:70"),
    ] {
        let text = format!("unknown field `{name}` of `{of}` is ignored");
        assert!(warnings.contains(&text), "{text}: {warnings}");
        assert!(warnings.contains(&format!("lima.yaml:{at}")), "{at}: {warnings}");
    }
}
