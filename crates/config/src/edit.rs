//! Changes to the text of a `networks.yaml` that leave everything else as it is: comments, order,
//! indentation and line ends.
//!
//! The library that edits is young, and people's files are precious: its result is read again and
//! must say what the old text said plus the change, or there is no result.

use std::str::FromStr;

use serde_json::{Map, Value};
use yaml_edit::{Mapping, MappingBuilder, YamlFile, YamlNode};

use crate::networks::{Link, Network};
use crate::yaml;

/// Why a text cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("`networks` has no `{0}`")]
    Missing(String),
    #[error("network `{0}` already exists")]
    Exists(String),
    #[error("it is written in a way that cannot be changed safely; by hand, {0}")]
    ByHand(String),
}

/// The text with a network more, after those that are there.
pub fn add(text: &str, network: &Network) -> Result<String, EditError> {
    let fields = fields(network);
    let by_hand = || {
        let lines: Vec<_> = fields.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        EditError::ByHand(format!("add to `networks`: {}: {{{}}}", network.name, lines.join(", ")))
    };
    let mut want = value(text).ok_or_else(by_hand)?;
    let networks = want.entry("networks").or_insert_with(|| Value::Object(Map::new()));
    if networks.is_null() {
        *networks = Value::Object(Map::new());
    }
    let networks = networks.as_object_mut().ok_or_else(by_hand)?;
    if networks.contains_key(&network.name) {
        return Err(EditError::Exists(network.name.clone()));
    }
    let new = fields.iter().map(|(key, value)| ((*key).into(), value.as_str().into()));
    networks.insert(network.name.clone(), Value::Object(new.collect()));

    // An empty document has no mapping that could be edited.
    let text = match yaml::parse::<Value>(text) {
        Ok(Value::Null) => format!("{}networks:\n", ended(text)),
        _ => text.to_owned(),
    };
    let edited = edit(&text, |root| {
        let builder =
            |builder| fields.iter().fold(builder, |b: MappingBuilder, (k, v)| b.pair(*k, v));
        if let Some(networks) = root.get_mapping("networks") {
            let new = builder(MappingBuilder::new()).build_document();
            networks.set(network.name.as_str(), &new.as_mapping()?);
        } else {
            let new = MappingBuilder::new().mapping(network.name.as_str(), builder);
            root.set("networks", &new.build_document().as_mapping()?);
        }
        Some(())
    });
    let edited = edited.ok_or_else(by_hand)?;
    checked(after_comments(&text, edited), &want).ok_or_else(by_hand)
}

/// The text without a network, and without the comments inside it.
pub fn remove(text: &str, name: &str) -> Result<String, EditError> {
    let by_hand = || EditError::ByHand(format!("remove `{name}` from `networks`"));
    let mut want = value(text).ok_or_else(by_hand)?;
    let networks = want.get_mut("networks").and_then(Value::as_object_mut);
    if networks.and_then(|networks| networks.remove(name)).is_none() {
        return Err(EditError::Missing(name.into()));
    }
    let edited = edit(text, |root| {
        let networks = root.get_mapping("networks")?;
        // A key is a name, even if it looks like a number.
        let is_name = |key: &YamlNode| key.as_scalar().is_some_and(|key| key.as_string() == name);
        let key = networks.keys().find(is_name)?;
        networks.remove(&key).map(drop)
    });
    let edited = edited.ok_or_else(by_hand)?;
    checked(with_comments(text, edited), &want).ok_or_else(by_hand)
}

/// What a network's mapping says.
fn fields(network: &Network) -> Vec<(&'static str, String)> {
    let mut fields = vec![("mode", network.mode.to_string())];
    match &network.link {
        Link::Interface(interface) => fields.push(("interface", interface.clone())),
        Link::Subnet(subnet) => {
            fields.push(("gateway", subnet.gateway.to_string()));
            fields.extend(subnet.dhcp_end.map(|end| ("dhcpEnd", end.to_string())));
            fields.push(("netmask", subnet.netmask().to_string()));
        }
    }
    fields
}

fn edit(text: &str, change: impl FnOnce(&Mapping) -> Option<()>) -> Option<String> {
    let file = YamlFile::from_str(text).ok()?;
    change(&file.document()?.as_mapping()?)?;
    Some(ended(&file.to_string()))
}

/// The whole document, whatever it is about.
fn value(text: &str) -> Option<Map<String, Value>> {
    match yaml::parse::<Value>(text).ok()? {
        Value::Null => Some(Map::new()),
        Value::Object(map) => Some(map),
        _ => None,
    }
}

fn checked(text: String, want: &Map<String, Value>) -> Option<String> {
    let mut is = value(&text)?;
    // Nothing in it and not there are the same.
    if is.get("networks").is_some_and(Value::is_null) {
        is.insert("networks".into(), Value::Object(Map::new()));
    }
    (is == *want).then_some(text)
}

/// Ends with an end of line.
fn ended(text: &str) -> String {
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}")
}

/// Comments at the end of the last network belong to it, not to one that was added after it.
fn after_comments(old: &str, new: String) -> String {
    let (old, lines) = (lines(old), lines(&new));
    let Some((at, count)) = inserted(&old, &lines) else { return new };
    let Some(first) = lines.get(at) else { return new };
    let (added, rest) = (&lines[at..at + count], &lines[at + count..]);
    let comments = comments_deeper(rest, indent(first));
    [&lines[..at], &rest[..comments], added, &rest[comments..]].concat().concat()
}

/// Comments inside a network go with it.
fn with_comments(old: &str, new: String) -> String {
    let (old, lines) = (lines(old), lines(&new));
    let Some((at, _)) = inserted(&lines, &old) else { return new };
    let Some(first) = old.get(at) else { return new };
    let comments = comments_deeper(&lines[at..], indent(first));
    [&lines[..at], &lines[at + comments..]].concat().concat()
}

/// Where and how many lines `long` has more than `short`, if that is all.
fn inserted(short: &[&str], long: &[&str]) -> Option<(usize, usize)> {
    let count = long.len().checked_sub(short.len())?;
    let at = short.iter().zip(long).take_while(|(a, b)| a == b).count();
    (count > 0 && short[at..] == long[at + count..]).then_some((at, count))
}

fn comments_deeper(lines: &[&str], than: usize) -> usize {
    let inside = |line: &&&str| line.trim_start().starts_with('#') && indent(line) > than;
    lines.iter().take_while(inside).count()
}

fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
