//! The packet filter: a table of the network's own, and ways through the filters of others.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::args::{Bridge, Gateway, Network, PREFIX};

/// Where the program is on every system that has it; not where a caller's PATH says.
const NFT: [&str; 2] = ["/usr/sbin/nft", "/sbin/nft"];

/// A chain of somebody else's that forwarded packets come through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    family: String,
    table: String,
    name: String,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

impl Chain {
    /// Names that could be anything else in a rule are not taken.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let mut words = text.split(' ');
        let mut word = || words.next().filter(|w| !w.is_empty() && w.chars().all(fits));
        let chain =
            Self { family: word()?.into(), table: word()?.into(), name: word()?.to_owned() };
        words.next().is_none().then_some(chain)
    }
}

/// Runs `nft` on a text.
fn nft(args: &[&str], input: &str) -> Result<String, String> {
    let program = NFT.into_iter().find(|path| Path::new(path).exists()).ok_or(
        "nftables is missing; install it, on Debian and Ubuntu with: sudo apt-get install nftables",
    )?;
    let failed = |e| format!("cannot run {program}: {e}");
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It says itself why it did not read on.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    Err(format!("{program} refuses a rule: {line}"))
}

/// Makes or replaces the network's own table.
pub(super) fn set_table(bridge: &Bridge, network: &Network) -> Result<(), String> {
    match table(bridge.as_str(), network) {
        Some(table) => nft(&["-f", "-"], &table).map(drop),
        None => Ok(()),
    }
}

/// Removes the network's own table, if there is one.
pub(super) fn remove_table(bridge: &Bridge) -> Result<(), String> {
    let name = bridge.as_str();
    nft(&["-f", "-"], &format!("table inet {name}\ndelete table inet {name}\n")).map(drop)
}

/// Nothing for a network that the host only carries.
fn table(name: &str, network: &Network) -> Option<String> {
    let (gateway, chains) = match network {
        Network::Shared(gateway) => (gateway, shared(name, gateway)),
        Network::Host(gateway) => (gateway, host(name)),
        Network::Bridged(_) => return None,
    };
    let (net4, net6) = (gateway.net4(), gateway.net6());
    // Emptied before it is filled, in one transaction.
    Some(format!(
        "table inet {name}\n\
         delete table inet {name}\n\
         table inet {name} {{\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tiifname \"{name}\" oifname \"{name}\" accept\n\
         \t\tiifname \"{name}\" ip saddr != {net4} drop\n\
         \t\tiifname \"{name}\" ip6 saddr != {net6} drop\n\
         {chains}\
         }}\n"
    ))
}

/// Guests may go out, in their host's name, and nobody may come in but with answers.
fn shared(name: &str, gateway: &Gateway) -> String {
    let (net4, net6) = (gateway.net4(), gateway.net6());
    format!(
        "\t\toifname \"{name}\" ct state established,related accept\n\
         \t\toifname \"{name}\" reject with icmpx admin-prohibited\n\
         \t}}\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\toifname != \"{name}\" ip saddr {net4} masquerade\n\
         \t\toifname != \"{name}\" ip6 saddr {net6} masquerade\n\
         \t}}\n"
    )
}

/// Nobody goes through the host at all.
fn host(name: &str) -> String {
    format!(
        "\t\tiifname \"{name}\" reject with icmpx admin-prohibited\n\
         \t\toifname \"{name}\" reject with icmpx admin-prohibited\n\
         \t}}\n"
    )
}

/// Chains of others through which forwarded packets come, and might not come any further.
pub(super) fn foreign_chains() -> Result<Vec<Chain>, String> {
    Ok(base_chains(&nft(&["list", "chains"], "")?))
}

/// Reads `nft list chains`. Docker keeps a chain for others' rules, which its own come after.
fn base_chains(text: &str) -> Vec<Chain> {
    let mut found: Vec<Chain> = Vec::new();
    let (mut table, mut name) = ("", "");
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("table ") {
            table = rest.trim_end_matches(" {");
        } else if let Some(rest) = line.strip_prefix("chain ") {
            name = rest.trim_end_matches(" {");
        } else if line.starts_with("type filter hook forward ") {
            found.extend(Chain::parse(&format!("{table} {name}")));
        }
    }
    let ours = |chain: &Chain| chain.table.starts_with(PREFIX);
    let known = |chain: &Chain| matches!(chain.family.as_str(), "ip" | "ip6" | "inet");
    found.retain(|chain| known(chain) && !ours(chain));
    for chain in &mut found {
        let table = format!("table {} {} {{", chain.family, chain.table);
        let block = text.lines().skip_while(|line| *line != table).skip(1);
        let mut block = block.take_while(|line| !line.starts_with('}'));
        if block.any(|line| line.trim() == "chain DOCKER-USER {") {
            chain.name = "DOCKER-USER".into();
        }
    }
    found
}

/// Which packets a chain is to let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Through {
    /// All that come from the network or go there; what may come in at all, our own table says.
    All,
    /// Those that the bridge passes from one of its ports to another.
    Between,
}

/// Whether a network's packets come through the chains of others.
pub(super) fn concerns(network: &Network) -> bool {
    matches!(network, Network::Shared(_)) || filters_bridges()
}

/// Whether the network's table is there, and a way through all chains of others: who starts a
/// firewall anew may have removed them. `chains` are those in which ways were opened.
pub(super) fn is_passed(
    bridge: &Bridge,
    network: &Network,
    chains: &[Chain],
) -> Result<bool, String> {
    let ruleset = nft(&["list", "ruleset"], "")?;
    let others = if concerns(network) { base_chains(&ruleset) } else { Vec::new() };
    let name = bridge.as_str();
    let has_table = network.gateway().is_none()
        || ruleset.lines().any(|line| line == format!("table inet {name} {{"));
    Ok(has_table && others == chains && chains.iter().all(|chain| is_open(&ruleset, chain, name)))
}

/// Whether a chain has a rule with our mark.
fn is_open(ruleset: &str, chain: &Chain, name: &str) -> bool {
    let table = format!("table {} {} {{", chain.family, chain.table);
    let table = ruleset.lines().skip_while(|line| *line != table);
    let table = table.take_while(|line| !line.starts_with('}'));
    let head = format!("chain {} {{", chain.name);
    let mut rules = table.skip_while(|line| line.trim() != head).take_while(|l| l.trim() != "}");
    let mark = format!("comment \"{name}\"");
    rules.any(|rule| rule.ends_with(&mark))
}

/// Whether the kernel shows frames on a bridge to the packet filter, as it does with Docker.
fn filters_bridges() -> bool {
    ["iptables", "ip6tables"].iter().any(|name| {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{name}");
        fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
    })
}

/// Lets packets of a network through a chain: those of `interface`, which has the network's name if
/// it is our own.
pub(super) fn open_chain(
    bridge: &Bridge,
    interface: &str,
    through: Through,
    chain: &Chain,
) -> Result<(), String> {
    let mark = format!("comment \"{}\"", bridge.as_str());
    let rules = match through {
        // Each is inserted before the one above it.
        Through::All => format!(
            "insert rule {chain} oifname \"{interface}\" accept {mark}\n\
             insert rule {chain} iifname \"{interface}\" accept {mark}\n"
        ),
        Through::Between => format!(
            "insert rule {chain} iifname \"{interface}\" oifname \"{interface}\" accept {mark}\n"
        ),
    };
    nft(&["-f", "-"], &rules).map(drop)
}

/// Takes away what [`open_chain`] has added, however often. The chain may be gone.
pub(super) fn close_chain(bridge: &Bridge, chain: &Chain) -> Result<(), String> {
    let Ok(text) = nft(&["-a", "list", "chain", &chain.family, &chain.table, &chain.name], "")
    else {
        return Ok(());
    };
    let rules: String = handles(&text, bridge.as_str())
        .map(|handle| format!("delete rule {chain} handle {handle}\n"))
        .collect();
    if rules.is_empty() { Ok(()) } else { nft(&["-f", "-"], &rules).map(drop) }
}

/// The handles of the rules that carry our mark.
fn handles(text: &str, name: &str) -> impl Iterator<Item = u64> {
    let mark = format!("comment \"{name}\" # handle ");
    text.lines().filter_map(move |line| line.split_once(&mark)?.1.trim().parse().ok())
}

/// Whether somebody else leads packets through this host: by translating addresses, as containers'
/// and other machines' networks do.
pub(super) fn others_translate() -> bool {
    let old = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    let new = nft(&["list", "ruleset"], "").unwrap_or_default();
    old.lines().any(|table| table == "nat") || translates(&new)
}

fn translates(ruleset: &str) -> bool {
    let mut ours = false;
    ruleset.lines().any(|line| {
        if let Some(rest) = line.strip_prefix("table ") {
            ours = rest.split(' ').nth(1).is_some_and(|name| name.starts_with(PREFIX));
        }
        let mut words = line.split_whitespace();
        !ours && words.any(|word| matches!(word, "masquerade" | "snat" | "MASQUERADE" | "SNAT"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAINS: &str = "\
table inet vmlan-a {
\tchain forward {
\t\ttype filter hook forward priority filter; policy accept;
\t}
}
table ip filter {
\tchain DOCKER-USER {
\t}
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
\tchain INPUT {
\t\ttype filter hook input priority filter; policy drop;
\t}
}
table ip6 filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table bridge filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table inet firewalld {
\tchain filter_FORWARD {
\t\ttype filter hook forward priority filter + 10; policy accept;
\t}
}
table inet odd {
\tchain a;b {
\t\ttype filter hook forward priority filter; policy accept;
\t}
}
";

    #[test]
    fn chains_that_might_drop() {
        let found: Vec<_> = base_chains(CHAINS).iter().map(ToString::to_string).collect();
        let want = ["ip filter DOCKER-USER", "ip6 filter FORWARD", "inet firewalld filter_FORWARD"];
        assert_eq!(found, want);
    }

    #[test]
    fn only_rules_with_our_mark_are_ours() {
        let text = "table ip filter {\n\tchain FORWARD {\n\
                    \t\tiifname \"vmlan-a\" accept comment \"vmlan-a\" # handle 7\n\
                    \t\tiifname \"vmlan-ab\" accept comment \"vmlan-ab\" # handle 8\n\
                    \t\taccept comment \"x vmlan-a\" # handle 9\n\
                    \t\toifname \"vmlan-a\" accept comment \"vmlan-a\" # handle 10\n\t}\n}\n";
        assert_eq!(handles(text, "vmlan-a").collect::<Vec<_>>(), [7, 10]);
    }

    #[test]
    fn ways_that_are_still_open() {
        let ruleset = "table ip filter {\n\tchain DOCKER-USER {\n\
                       \t\toifname \"vmlan-a\" accept comment \"vmlan-a\"\n\t}\n\n\
                       \tchain FORWARD {\n\t\taccept comment \"vmlan-b\"\n\t}\n}\n\
                       table ip6 filter {\n\tchain DOCKER-USER {\n\t}\n}\n";
        let open = |chain, name| is_open(ruleset, &Chain::parse(chain).unwrap(), name);
        assert!(open("ip filter DOCKER-USER", "vmlan-a"));
        assert!(!open("ip filter DOCKER-USER", "vmlan-b"));
        assert!(!open("ip filter FORWARD", "vmlan-a"));
        assert!(!open("ip6 filter DOCKER-USER", "vmlan-a"));
        assert!(!open("inet filter FORWARD", "vmlan-b"));
    }

    #[test]
    fn translations_of_others() {
        assert!(!translates("table inet vmlan-a {\n\tmasquerade\n}\n"));
        assert!(translates("table ip nat {\n\t\toifname \"x\" masquerade\n}\n"));
        assert!(!translates("table ip nat {\n\t\tcomment \"no masquerading\"\n}\n"));
    }
}
