use proptest::prelude::*;

use super::*;
use crate::networks::Mode;
use crate::testing::{networks, parse, platform};

fn lab() -> Network {
    let gateway = Some(("10.7.0.1".parse().unwrap(), 24));
    Network::new("lab", Mode::UserV2, gateway, None).unwrap()
}

const LAB: &str = "  lab:\n    mode: user-v2\n    gateway: 10.7.0.1\n    netmask: 255.255.255.0\n";

#[test]
fn a_network_is_added_at_the_end() {
    let default = crate::default_networks(&platform());
    assert_eq!(add(&default, &lab()).unwrap(), format!("{default}{LAB}"));
    let cases = [
        ("", format!("networks:\n{LAB}")),
        ("# mine\n", format!("# mine\nnetworks:\n{LAB}")),
        ("group: a", format!("group: a\nnetworks:\n{LAB}")),
        ("networks: # all\n# end\n", format!("networks: # all\n{LAB}# end\n")),
        ("networks:\ngroup: a\n", format!("networks:\n{LAB}group: a\n")),
        (
            "networks:\n  a:\n    mode: user-v2 # m\n    # inside\n# end\ngroup: a\n",
            format!("networks:\n  a:\n    mode: user-v2 # m\n    # inside\n{LAB}# end\ngroup: a\n"),
        ),
        (
            "networks: {} # none\n",
            "networks: {lab: {mode: user-v2, gateway: 10.7.0.1, netmask: 255.255.255.0}} # none\n"
                .into(),
        ),
        (
            "networks:\r\n  a: {}\r\n",
            format!("networks:\r\n  a: {{}}\r\n{}", LAB.replace('\n', "\r\n")),
        ),
    ];
    for (text, want) in cases {
        assert_eq!(add(text, &lab()).unwrap(), want, "{text:?}");
    }
}

#[test]
fn each_mode_has_its_fields() {
    let network = |mode, gateway: Option<&str>, interface| {
        let gateway = gateway.map(|text| crate::parse_gateway(text).unwrap());
        add("", &Network::new("n", mode, gateway, interface).unwrap()).unwrap()
    };
    let bridged = "networks:\n  n:\n    mode: bridged\n    interface: br0\n";
    assert_eq!(network(Mode::Bridged, None, Some("br0")), bridged);
    let shared = "networks:\n  n:\n    mode: shared\n    gateway: 10.1.0.1\n    \
                  dhcpEnd: 10.1.0.254\n    netmask: 255.255.0.0\n";
    assert_eq!(network(Mode::Shared, Some("10.1.0.1/16"), None), shared);
}

#[test]
fn names_that_look_like_something_else_stay_names() {
    for name in ["1", "null", "true", "1.5", "0x10", "no", "1e3", "2026-01-01"] {
        let network = Network { name: name.into(), ..lab() };
        let text = add("networks:\n  a: {}\n", &network).unwrap();
        let read = parse(&text.replace("a: {}", "a: {mode: host, gateway: 10.1.0.1}")).unwrap();
        assert!(read.networks.get(name).is_some(), "{text}");
        assert_eq!(remove(&text, name).unwrap(), "networks:\n  a: {}\n");
    }
}

#[test]
fn a_network_is_removed_with_what_is_inside() {
    let text = "\
# head
networks:
  # first
  a:
    mode: host # m

    gateway: 10.1.0.1
    # inside a
  # second
  b:
    mode: bridged
    interface: en0
# end
group: x # g
";
    let without_a = "\
# head
networks:
  # first
  # second
  b:
    mode: bridged
    interface: en0
# end
group: x # g
";
    assert_eq!(remove(text, "a").unwrap(), without_a);
    let without_b = text.replace("  b:\n    mode: bridged\n    interface: en0\n", "");
    assert_eq!(remove(text, "b").unwrap(), without_b);
    let neither = remove(&without_b, "a").unwrap();
    for comment in ["# head", "# first", "# second", "# end", "# g"] {
        assert!(neither.contains(comment), "{comment}: {neither}");
    }
    assert_eq!(networks(&neither).names().collect::<Vec<_>>(), ["user-v2"]);
    assert!(networks(&add(&neither, &lab()).unwrap()).get("lab").is_some());
}

#[test]
fn what_others_take_from_a_network_stays_theirs() {
    let text = "networks:\n  a: &a\n    mode: host\n  b:\n    <<: *a\n    gateway: 10.1.0.1\n";
    let read = networks(&remove(text, "a").unwrap());
    assert!(read.get("a").is_none());
    assert_eq!(read.get("b").unwrap().mode, Mode::Host);
}

#[test]
fn what_cannot_be_done_is_said() {
    let error = |result: Result<String, EditError>| result.unwrap_err().to_string();
    assert_eq!(error(remove("networks: {}", "a")), "`networks` has no `a`");
    assert_eq!(error(remove("", "a")), "`networks` has no `a`");
    let twice = add("networks:\n  lab:\n", &lab());
    assert_eq!(error(twice), "network `lab` already exists");
    assert_eq!(
        error(add("networks: [a]", &lab())),
        "it is written in a way that cannot be changed safely; by hand, add to `networks`: lab: \
         {mode: user-v2, gateway: 10.7.0.1, netmask: 255.255.255.0}"
    );
}

#[derive(Clone, Debug)]
struct Written {
    name: String,
    subnet: u8,
    flow: bool,
    before: bool,
    inside: bool,
    after: bool,
}

fn written() -> impl Strategy<Value = Vec<Written>> {
    let name = prop_oneof!["[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,3})?", "[1-9][0-9]{0,2}"];
    let one = (name, any::<u8>(), any::<[bool; 4]>()).prop_map(|(name, subnet, [a, b, c, d])| {
        Written { name, subnet, flow: a, before: b, inside: c, after: d }
    });
    proptest::collection::vec(one, 0..6).prop_map(|mut all| {
        let mut seen = std::collections::BTreeSet::from(["lab".to_owned()]);
        all.retain(|network| seen.insert(network.name.clone()));
        all
    })
}

/// A file as people write them, with a comment at every place that there is.
fn text(all: &[Written], indent: usize, end: &str, head: bool, tail: bool) -> String {
    let one = " ".repeat(indent);
    let two = one.repeat(2);
    let mut text = String::new();
    if head {
        text += "# head\ngroup: me # who\n\n";
    }
    text += "networks: # all\n";
    for (i, w) in all.iter().enumerate() {
        let Written { name, subnet, .. } = w;
        if w.before {
            text += &format!("{one}# before {i}\n");
        }
        if w.flow {
            text +=
                &format!("{one}{name}: {{mode: host, gateway: 10.{i}.{subnet}.1}} # flow {i}\n");
        } else {
            text += &format!("{one}{name}:\n{two}mode: host\n");
            if w.inside {
                text += &format!("{two}# inside {i}\n");
            }
            text += &format!("{two}gateway: 10.{i}.{subnet}.1 # line {i}\n");
        }
        if w.after {
            text += "\n";
        }
    }
    if tail {
        text += "# tail\nother: [1, 2.50, ~] # list\n";
    }
    text.replace('\n', end)
}

proptest! {
    /// What is added is there, everything else is as before, and removing it gives the old text.
    #[test]
    fn add_and_remove(
        all in written(),
        indent in 1usize..5,
        crlf in any::<bool>(),
        head in any::<bool>(),
        tail in any::<bool>(),
    ) {
        let old = text(&all, indent, if crlf { "\r\n" } else { "\n" }, head, tail);
        let new = add(&old, &lab()).unwrap();
        let read = networks(&new);
        prop_assert_eq!(read.get("lab").map(|n| &n.link), Some(&lab().link));
        for w in &all {
            prop_assert!(read.get(&w.name).is_some(), "{}", w.name);
        }
        // Every old line is still there, in the old order.
        let mut lines = new.lines();
        for line in old.lines() {
            prop_assert!(lines.any(|l| l == line), "{line:?} in {new}");
        }
        let back = remove(&new, "lab").unwrap();
        if !all.is_empty() {
            prop_assert_eq!(&back, &old);
        }
        // Each can be removed, and what was outside of it stays.
        for (i, w) in all.iter().enumerate() {
            let without = remove(&old, &w.name).unwrap();
            let read = networks(&without);
            prop_assert!(w.name == crate::BUILT_IN || read.get(&w.name).is_none());
            let inside = format!("# inside {i}");
            prop_assert!(!without.contains(&inside), "{without}");
            let others = all.iter().enumerate().filter(|(j, _)| *j != i);
            for (j, other) in others {
                prop_assert!(read.get(&other.name).is_some());
                let (before, line) = (format!("# before {j}"), format!("# line {j}"));
                prop_assert!(!other.before || without.contains(&before));
                prop_assert!(other.flow || without.contains(&line));
            }
            prop_assert!(!tail || without.contains("# tail"));
            prop_assert!(!head || without.contains("# who"));
        }
    }

    /// Whatever the text is, a change is right or refused.
    #[test]
    fn any_text(text in "(?s)([a-z:{}\\[\\]&*#|>'\"\\- \\t\\n~!%@,?]|networks:|\n  |a: ){0,40}") {
        if let Ok(new) = add(&text, &lab()) {
            prop_assert!(value(&new).is_some());
        }
    }
}
