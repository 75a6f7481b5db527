//! Names that the user gives, and the network's own: they are answered and never asked of anybody,
//! and no other name suffers from them.

use std::time::Instant;

use vmlan_e2e::dns_client::{Client, Transport};
use vmlan_e2e::dns_message::{
    A, AAAA, ANY, CAA, CNAME, DNSKEY, HTTPS, MX, Message, NOERROR, NS, NXDOMAIN, PTR, Query,
    SERVFAIL, SOA, SRV, TXT, answer, wire_name,
};
use vmlan_e2e::netns::SOON;
use vmlan_e2e::process::eventually;
use vmlan_e2e::upstream::Asked;
use vmlan_e2e::world::{DNS, OUTSIDE, host_and_outside};
use vmlan_e2e::{Upstream, World};

const TYPES: &[u16] =
    &[A, AAAA, ANY, CAA, CNAME, DNSKEY, HTTPS, MX, NS, PTR, SOA, SRV, TXT, 43, 64, 99, 65280];

/// A guest on a network with these names, and a nameserver that knows every other one.
struct Scene {
    world: World,
    upstream: Upstream,
}

impl Scene {
    #[track_caller]
    fn new(names: &[&str]) -> Self {
        Self::with(names, &[])
    }

    #[track_caller]
    fn with(names: &[&str], more: &[&str]) -> Self {
        let hosts = names.iter().flat_map(|name| ["--dns-host", name]);
        let arguments: Vec<_> = hosts.chain(more.iter().copied()).collect();
        let world = World::with(&arguments);
        let upstream = Upstream::serve(&world.outside, OUTSIDE, knows_everything);
        Self { world, upstream }
    }

    #[track_caller]
    fn ask(&self, name: &str, kind: u16) -> Message {
        Client::new(&self.world.guest, DNS).udp(name, kind)
    }

    #[track_caller]
    fn expect(&self, name: &str, kind: u16, addresses: &[&str]) {
        let reply = self.ask(name, kind);
        assert_eq!(reply.rcode, NOERROR, "{name} {kind}");
        assert_eq!(reply.addresses(), addresses, "{name} {kind}: {reply:?}");
    }

    /// What the nameserver was asked for, in lower case and without repetition.
    fn asked(&self) -> Vec<String> {
        let mut names: Vec<_> = self.upstream.asked().iter().map(Asked::name).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Every name has 203.0.113.1, 2001:db8::1, and a mail server; but for missing and failing ones.
fn knows_everything(asked: &Asked) -> Vec<Vec<u8>> {
    let name = asked.name();
    let record = match asked.kind() {
        _ if name.starts_with("missing.") => return vec![asked.code(NXDOMAIN)],
        _ if name.starts_with("failing.") => return vec![asked.code(SERVFAIL)],
        A => vec![203, 0, 113, 1],
        AAAA => [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1]].concat(),
        MX => [vec![0, 10], wire_name("mail.example.net")].concat(),
        PTR => wire_name("outside.example.net"),
        _ => return vec![asked.code(NOERROR)],
    };
    vec![answer(&asked.message, NOERROR, 60, &[record])]
}

#[test]
fn names_have_their_addresses() {
    let scene = Scene::new(&[
        "four.corp.example=10.1.2.3",
        "Six.Corp.Example.=fd00::3",
        "both.corp.example=10.1.2.4",
        "both.corp.example=10.1.2.5",
        "both.corp.example=fd00::4",
        "single=10.1.2.6",
    ]);
    for name in ["four.corp.example", "FOUR.corp.EXAMPLE"] {
        scene.expect(name, A, &["10.1.2.3"]);
        scene.expect(name, AAAA, &[]);
        scene.expect(name, ANY, &["10.1.2.3"]);
    }
    scene.expect("six.corp.example", AAAA, &["fd00::3"]);
    scene.expect("six.corp.example", A, &[]);
    scene.expect("both.corp.example", A, &["10.1.2.4", "10.1.2.5"]);
    scene.expect("both.corp.example", AAAA, &["fd00::4"]);
    scene.expect("both.corp.example", ANY, &["10.1.2.4", "10.1.2.5", "fd00::4"]);
    scene.expect("single", A, &["10.1.2.6"]);
    let mut guest = Client::new(&scene.world.guest, DNS);
    let reply = guest.ask(&Query::new("both.corp.example", A), Transport::Tcp);
    assert_eq!(reply.addresses(), ["10.1.2.4", "10.1.2.5"]);
    let query = Query::new("both.corp.example", A).edns(Some((1232, false)));
    let reply = guest.ask(&query, Transport::Udp);
    assert!(reply.edns.is_some() && reply.addresses().len() == 2, "{reply:?}");
    assert_eq!(scene.asked(), [] as [&str; 0]);
}

/// A name that exists has no other record, which is not the same as that it does not exist; and
/// nobody outside gets to know that it was asked for.
#[test]
fn no_type_is_leaked() {
    let scene = Scene::new(&["db.corp.example=10.1.2.3", "there=db.corp.example"]);
    for &kind in TYPES {
        for name in ["db.corp.example", "there", "host.lima.internal"] {
            let reply = scene.ask(name, kind);
            assert_eq!(reply.rcode, NOERROR, "{name} {kind}");
        }
        let reply = scene.ask("missing.lima.internal", kind);
        assert_eq!(reply.rcode, NXDOMAIN, "{kind}");
        let reply = scene.ask("lima-nobody.internal", kind);
        assert_eq!(reply.rcode, NXDOMAIN, "{kind}");
    }
    assert_eq!(scene.asked(), [] as [&str; 0]);
}

#[test]
fn other_names_are_the_nameservers() {
    let scene = Scene::new(&["local.example.dev=10.1.2.3"]);
    let others =
        ["dev", "example.dev", "other.example.dev", "x.local.example.dev", "local.example.dev.x"];
    for name in others {
        scene.expect(name, A, &["203.0.113.1"]);
        assert_eq!(scene.ask(name, MX).data(MX).len(), 1, "{name}");
    }
    assert_eq!(scene.ask("missing.example.dev", A).rcode, NXDOMAIN);
    assert!(!scene.asked().contains(&"local.example.dev".to_owned()));
}

#[test]
fn aliases_of_names_inside() {
    let scene = Scene::new(&[
        "one.test=two.test",
        "two.test=Three.Test",
        "three.test=10.1.2.3",
        "three.test=fd00::3",
        "thehost.test=host.lima.internal",
    ]);
    let reply = scene.ask("one.test", A);
    assert_eq!(reply.data(CNAME).len(), 2, "{reply:?}");
    assert_eq!(reply.addresses(), ["10.1.2.3"]);
    // Each record is of the name that the last one led to.
    let owners: Vec<_> = reply.answer.iter().map(|record| record.name.to_lowercase()).collect();
    assert_eq!(owners, ["one.test", "two.test", "three.test"]);
    scene.expect("ONE.test", AAAA, &["fd00::3"]);
    scene.expect("thehost.test", A, &["192.168.5.2"]);
    let reply = scene.ask("one.test", CNAME);
    assert_eq!(reply.data(CNAME).len(), 1, "{reply:?}");
    let reply = scene.ask("one.test", MX);
    assert_eq!((reply.rcode, reply.data(MX).len()), (NOERROR, 0));
    assert_eq!(scene.asked(), [] as [&str; 0]);
}

#[test]
fn aliases_of_names_outside() {
    let scene = Scene::new(&[
        "mirror.test=www.example.net",
        "again.test=mirror.test",
        "gone.test=missing.example.net",
        "broken.test=failing.example.net",
    ]);
    for (name, aliases) in [("mirror.test", 1), ("again.test", 2)] {
        let reply = scene.ask(name, A);
        assert_eq!(reply.rcode, NOERROR);
        assert_eq!(reply.data(CNAME).len(), aliases, "{reply:?}");
        assert_eq!(reply.addresses(), ["203.0.113.1"]);
        assert_eq!(reply.question[0].0, name);
        assert_eq!(scene.ask(name, AAAA).addresses(), ["2001:db8::1"]);
        let reply = scene.ask(name, MX);
        assert_eq!(reply.data(MX), ["000a mail.example.net."], "{reply:?}");
        // It exists, though not as a text.
        let reply = scene.ask(name, TXT);
        assert_eq!((reply.rcode, reply.data(TXT).len()), (NOERROR, 0), "{reply:?}");
    }
    assert_eq!(scene.ask("gone.test", A).rcode, NXDOMAIN);
    assert_eq!(scene.ask("broken.test", A).rcode, SERVFAIL);
    // Twice the same, now that it may be known.
    assert_eq!(scene.ask("again.test", A).addresses(), ["203.0.113.1"]);
    let asked = ["failing.example.net", "missing.example.net", "www.example.net"];
    assert_eq!(scene.asked(), asked);
}

#[test]
fn circles_come_to_an_end() {
    let mut names: Vec<String> = (0..100).map(|n| format!("n{n}.test=n{}.test", n + 1)).collect();
    names.extend(["a.test=b.test", "b.test=a.test", "self.test=self.test"].map(str::to_owned));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let scene = Scene::new(&names);
    let start = Instant::now();
    for name in ["a.test", "b.test", "self.test", "n0.test"] {
        for kind in [A, AAAA, MX, ANY, CNAME] {
            let reply = scene.ask(name, kind);
            assert!(reply.addresses().is_empty(), "{reply:?}");
            assert!([NOERROR, SERVFAIL].contains(&reply.rcode), "{reply:?}");
        }
    }
    assert!(start.elapsed() < SOON);
    scene.expect("other.test", A, &["203.0.113.1"]);
    assert!(!scene.asked().iter().any(|name| name.starts_with('n') || name == "a.test"));
}

#[test]
fn addresses_have_their_names() {
    let scene = Scene::new(&[
        "db.corp.example=10.1.2.3",
        "second.corp.example=10.1.2.3",
        "six.corp.example=fd00::3",
    ]);
    let reply = scene.ask("3.2.1.10.in-addr.arpa", PTR);
    assert!(reply.data(PTR).contains(&" db.corp.example."), "{reply:?}");
    let six = "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(scene.ask(six, PTR).data(PTR), [" six.corp.example."]);
    let reply = scene.ask("2.5.168.192.IN-ADDR.arpa", PTR);
    assert_eq!(reply.data(PTR), [" host.lima.internal."]);
    // The network knows its own addresses, and that nobody has this one.
    assert_eq!(scene.ask("200.5.168.192.in-addr.arpa", PTR).rcode, NXDOMAIN);
    assert_eq!(scene.asked(), [] as [&str; 0]);
    // And the nameserver those of others.
    let reply = scene.ask("4.2.1.10.in-addr.arpa", PTR);
    assert_eq!(reply.data(PTR), [" outside.example.net."]);
    assert_eq!(scene.asked(), ["4.2.1.10.in-addr.arpa"]);
}

/// Names outside have IPv6 addresses where the user says so, whatever the host has.
#[test]
fn ipv6_of_names_outside_as_told() {
    for (told, addresses) in [("true", &["2001:db8::1"][..]), ("false", &[])] {
        let names = ["six.test=fd00::3", "mirror.test=www.example.net"];
        let scene = Scene::with(&names, &["--dns-ipv6", told]);
        scene.expect("www.example.net", AAAA, addresses);
        scene.expect("mirror.test", AAAA, addresses);
        scene.expect("www.example.net", A, &["203.0.113.1"]);
        scene.expect("six.test", AAAA, &["fd00::3"]);
        assert_eq!(scene.ask("missing.example.net", A).rcode, NXDOMAIN);
        assert_eq!(scene.ask("www.example.net", MX).data(MX).len(), 1);
        let mut guest = Client::new(&scene.world.guest, DNS);
        let reply = guest.ask(&Query::new("www.example.net", AAAA), Transport::Tcp);
        assert_eq!((reply.rcode, reply.addresses().len()), (NOERROR, addresses.len()));
    }
}

/// Otherwise as long as the host has one that the whole world can reach.
#[test]
fn ipv6_of_names_outside_as_the_host_has_it() {
    let (host, outside) = host_and_outside();
    host.ip("-6 address flush dev up0 scope global");
    host.ip("-6 address add fd00::1/64 dev up0 nodad");
    let upstream = Upstream::serve(&outside, OUTSIDE, knows_everything);
    let world = World::on(host, outside, "ifname=tap0", &["--dns-host", "six.test=fd00::3"]);
    let scene = Scene { world, upstream };
    scene.expect("www.example.net", AAAA, &[]);
    scene.expect("www.example.net", A, &["203.0.113.1"]);
    scene.expect("six.test", AAAA, &["fd00::3"]);
    let comes = |addresses: usize| {
        eventually(format!("{addresses} addresses"), SOON, || {
            let reply = scene.ask("www.example.net", AAAA);
            assert_eq!(reply.rcode, NOERROR);
            (reply.addresses().len() == addresses).then_some(())
        });
    };
    scene.world.host.ip("-6 address add 2001:db8:1::1/64 dev up0 nodad");
    comes(1);
    scene.world.host.ip("-6 address delete 2001:db8:1::1/64 dev up0");
    comes(0);
}
