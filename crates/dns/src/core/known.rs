//! Answers about names that no nameserver has to be asked for.

use std::net::IpAddr;

use super::lookup::FoundRecord;
use super::{Asker, Client};
use crate::answers::{Answers, Origin};
use crate::message::{ANY, Alias, Builder, CNAME, PTR, Query, Rcode};
use crate::names;

/// What is known of a name by other means than a nameserver.
pub(super) enum Known<'a> {
    Addresses(&'a [IpAddr]),
    Name(&'a [u8]),
    Records(&'a [FoundRecord]),
    /// There is no such name.
    Nothing,
}

/// Answers with what is known of the last name of a chain.
pub(super) fn tell(
    answers: &mut Answers<Client>,
    asker: Asker,
    query: &Query<'_>,
    alias: &Alias,
    known: &Known<'_>,
    origin: Origin,
) {
    let own = origin == Origin::Static;
    answers.write(asker.client, origin, |out| {
        let mut builder = Builder::new(query, query.limit(asker.is_udp()), out);
        let records = query.edns.is_none_or(|edns| edns.version == 0);
        for target in alias.iter().skip(1).filter(|_| records) {
            builder.alias(target);
        }
        let rcode = match known {
            Known::Nothing => Rcode::NxDomain,
            _ => Rcode::NoError,
        };
        match known {
            Known::Addresses(addresses) if records => builder.addresses(addresses),
            Known::Name(name) if records => builder.pointer(name),
            Known::Records(list) if records => {
                for found in *list {
                    builder.foreign(&found.owner, found.kind, found.ttl, &found.data);
                }
            }
            _ => {}
        }
        builder.finish(rcode, own);
        true
    });
}

/// Answers from the network's own names.
pub(super) fn own(
    answers: &mut Answers<Client>,
    asker: Asker,
    query: &Query<'_>,
    found: &names::Found<'_>,
) {
    let kind = query.kind();
    let none = Alias::new();
    let (alias, known) = match found {
        _ if !query.is_internet() => (&none, Known::Addresses(&[])),
        names::Found::Missing => (&none, Known::Nothing),
        names::Found::Addresses(alias, addresses) => (alias, Known::Addresses(addresses)),
        names::Found::Elsewhere(alias) => (alias, Known::Addresses(&[])),
        names::Found::Name(name) if matches!(kind, PTR | ANY) => (&none, Known::Name(name)),
        names::Found::Name(_) => (&none, Known::Addresses(&[])),
    };
    if matches!(kind, CNAME | ANY) && alias.len() > 2 {
        // Where the alias leads is another question.
        let first = alias.iter().take(2).cloned().collect();
        return tell(answers, asker, query, &first, &Known::Addresses(&[]), Origin::Static);
    }
    tell(answers, asker, query, alias, &known, Origin::Static);
}
