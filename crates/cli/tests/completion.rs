//! `vmlan completion`, asked as a shell asks.

use std::process::Command;

fn bash(script: &str) -> String {
    let vmlan = env!("CARGO_BIN_EXE_vmlan");
    let script = format!(
        "source <({vmlan} completion bash)
         complete_line() {{
             COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)) COMPREPLY=()
             _vmlan vmlan \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"
             echo \"${{COMPREPLY[*]}}\"
         }}
         {script}"
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_flags() {
    for (words, expected) in [
        ("vmlan tun", "tunnel\n"),
        ("vmlan tunnel st", "stop\n"),
        ("vmlan tunnel --so", "--socks-port\n"),
        ("vmlan network cr", "create\n"),
        ("vmlan completion fi", "fish\n"),
    ] {
        assert_eq!(bash(&format!("complete_line {words}")), expected, "{words}");
    }
    assert_eq!(bash("complete -p vmlan | grep -c _vmlan"), "1\n");
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = Command::new(env!("CARGO_BIN_EXE_vmlan")).args(["completion", shell]).output();
        let output = output.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("socks-port"), "{shell}: {text}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_vmlan")).args(["completion", "sh"]).output();
    assert_eq!(output.unwrap().status.code(), Some(2));
}
