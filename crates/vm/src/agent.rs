//! The agent for guests, which this binary carries.

static X86_64: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/agent-x86_64.rs"));
static AARCH64: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/agent-aarch64.rs"));

/// A static Linux program for guests of an architecture (`x86_64`, `aarch64`), if this binary was
/// built where it could be had.
pub fn binary(arch: &str) -> Option<&'static [u8]> {
    match arch {
        "x86_64" => X86_64,
        "aarch64" => AARCH64,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn guests_like_this_machine_have_one() {
        let agent = binary(std::env::consts::ARCH).expect("it was built with this crate");
        assert_eq!(agent.get(..4), Some(&b"\x7fELF"[..]));
        // Without an interpreter (PT_INTERP names one) nothing has to be there in the guest.
        assert!(!agent.windows(8).any(|bytes| bytes == b"/lib64/l" || bytes == b"/lib/ld-"));
        assert_eq!(binary("s390x"), None);
    }
}
