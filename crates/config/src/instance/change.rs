//! Changes to the text of a `lima.yaml` by what a command line says: comments and order stay, except
//! inside of what is changed. The result is read again, and says what the old text said plus the
//! change.

use serde_json::{Map, Value};

use crate::yaml;

/// A value, and what becomes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    path: Vec<Step>,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
    /// After the last one.
    End,
}

/// Why a text has not been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("expected KEY=VALUE, got `{0}`")]
    Form(String),
    #[error("`{0}` is no key: keys are as cpus, ssh.localPort or networks[0].lima")]
    Key(String),
    #[error("the value of `{key}`: {why}")]
    Value { key: String, why: String },
    #[error("{0}")]
    Text(String),
    /// A value that has no parts where one was to be changed.
    #[error("`{0}` has no such part")]
    Part(String),
}

impl Change {
    /// What `--set` says: `KEY=VALUE`, where the value is YAML.
    pub fn from_flag(text: &str) -> Result<Self, ChangeError> {
        let form = || ChangeError::Form(text.into());
        let (key, value) = text.split_once('=').ok_or_else(form)?;
        // `.cpus = 2` is what others write.
        let key = key.trim().trim_start_matches('.');
        let path = path(key).ok_or_else(|| ChangeError::Key(key.into()))?;
        let value = yaml::parse(value.trim())
            .map_err(|e| ChangeError::Value { key: key.into(), why: e.message })?;
        Ok(Self { path, value })
    }

    /// A value for a key; the key is one.
    pub fn set(key: &str, value: impl Into<Value>) -> Self {
        Self { path: path(key).unwrap_or_default(), value: value.into() }
    }

    /// One more value of a list.
    pub fn push(key: &str, value: Value) -> Self {
        Self { path: vec![Step::Key(key.into()), Step::End], value }
    }

    fn apply(&self, root: &mut Map<String, Value>) -> Option<()> {
        let (Step::Key(first), rest) = self.path.split_first()? else { return None };
        let mut at = root.entry(first.clone()).or_insert(Value::Null);
        for step in rest {
            at = match (step, at) {
                (Step::Key(key), Value::Object(map)) => {
                    map.entry(key.clone()).or_insert(Value::Null)
                }
                (Step::Key(key), at @ Value::Null) => {
                    *at = Value::Object(Map::new());
                    at.as_object_mut()?.entry(key.clone()).or_insert(Value::Null)
                }
                (Step::Index(i), Value::Array(list)) => list.get_mut(*i)?,
                (Step::End, Value::Array(list)) => {
                    list.push(Value::Null);
                    list.last_mut()?
                }
                (Step::End, at @ Value::Null) => {
                    *at = Value::Array(vec![Value::Null]);
                    at.as_array_mut()?.last_mut()?
                }
                _ => return None,
            };
        }
        *at = self.value.clone();
        Some(())
    }

    fn name(&self) -> String {
        let mut name = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) if name.is_empty() => name.push_str(key),
                Step::Key(key) => name = format!("{name}.{key}"),
                Step::Index(i) => name = format!("{name}[{i}]"),
                Step::End => name.push_str("[]"),
            }
        }
        name
    }
}

/// The text with all of the changes.
pub fn change(text: &str, changes: &[Change]) -> Result<String, ChangeError> {
    let before = value(text)?;
    let mut want = before.clone();
    for change in changes {
        change.apply(&mut want).ok_or_else(|| ChangeError::Part(change.name()))?;
    }
    let mut edited = text.to_owned();
    for (key, value) in want.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
        edited = replace(&edited, key, &block(key, value));
    }
    if value(&edited).as_ref() == Ok(&want) {
        return Ok(edited);
    }
    Ok(want.iter().map(|(key, value)| block(key, value)).collect())
}

fn value(text: &str) -> Result<Map<String, Value>, ChangeError> {
    match yaml::parse::<Value>(text).map_err(|e| ChangeError::Text(e.message))? {
        Value::Null => Ok(Map::new()),
        Value::Object(map) => Ok(map),
        _ => Err(ChangeError::Text("it is not a mapping".into())),
    }
}

fn path(key: &str) -> Option<Vec<Step>> {
    let mut path = Vec::new();
    for part in key.split('.') {
        let (name, mut rest) = part.split_at(part.find('[').unwrap_or(part.len()));
        if name.is_empty() {
            return None;
        }
        path.push(Step::Key(name.trim_matches('"').into()));
        while !rest.is_empty() {
            let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
            path.push(if index.is_empty() { Step::End } else { Step::Index(index.parse().ok()?) });
            rest = after;
        }
    }
    Some(path)
}

/// The text with a top-level key's lines in the place of the old ones, or at the end.
fn replace(text: &str, key: &str, block: &str) -> String {
    let starts = |line: &str| {
        let rest = line.strip_prefix(key).or_else(|| {
            let rest = line.strip_prefix('"')?.strip_prefix(key)?;
            rest.strip_prefix('"')
        });
        rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let Some(begin) = lines.iter().position(|line| starts(line)) else {
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        return format!("{text}{end}{block}");
    };
    // What is indented, and the lists whose dashes are not.
    let of_key = |line: &&str| line.starts_with([' ', '\t', '-']) || line.trim().is_empty();
    let rest = lines.get(begin + 1..).unwrap_or_default();
    let mut len = 1 + rest.iter().take_while(|line| of_key(line)).count();
    let blank = |i: usize| lines.get(i).is_some_and(|line| line.trim().is_empty());
    while len > 1 && blank(begin + len - 1) {
        len -= 1;
    }
    let (before, after) = lines.split_at(begin);
    let after = after.get(len..).unwrap_or_default();
    format!("{}{block}{}", before.concat(), after.concat())
}

/// A key and its value, as lines.
fn block(key: &str, value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, &format!("{}:", scalar(&Value::String(key.into()))), value, 0);
    out
}

/// A value after `head`, which is a key or a dash.
fn write(out: &mut String, head: &str, value: &Value, indent: usize) {
    let spaces = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            if head == "-" {
                let mut inner = String::new();
                for (key, value) in map {
                    let head = format!("{}:", scalar(&Value::String(key.clone())));
                    write(&mut inner, &head, value, indent + 2);
                }
                // The first line follows the dash.
                let first = inner.get(indent + 2..).unwrap_or_default();
                out.push_str(&format!("{spaces}- {first}"));
            } else {
                out.push_str(&format!("{spaces}{head}\n"));
                for (key, value) in map {
                    let head = format!("{}:", scalar(&Value::String(key.clone())));
                    write(out, &head, value, indent + 2);
                }
            }
        }
        Value::Array(list) if !list.is_empty() && head != "-" => {
            out.push_str(&format!("{spaces}{head}\n"));
            for value in list {
                write(out, "-", value, indent);
            }
        }
        // What is empty or a list in a list is written as JSON, which is YAML.
        value => out.push_str(&format!("{spaces}{head} {}\n", scalar(value))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Whether a text is the same without quotes.
fn is_plain(text: &str) -> bool {
    const WORDS: &[&str] =
        &["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str, flags: &[&str]) -> Result<String, ChangeError> {
        let changes: Result<Vec<_>, _> = flags.iter().map(|flag| Change::from_flag(flag)).collect();
        change(text, &changes?)
    }

    const TEXT: &str = "\
# My machine.
cpus: 2 # enough
images:
- location: /i.raw # here

# Its networks.
networks:
- lima: shared
ssh: {localPort: 60022}
";

    #[test]
    fn comments_and_order_stay() {
        let text = set(TEXT, &["cpus=4", ".memory = \"2GiB\""]).unwrap();
        let want = TEXT.replace("cpus: 2 # enough", "cpus: 4") + "memory: \"2GiB\"\n";
        assert_eq!(text, want);
    }

    #[test]
    fn parts_of_values_are_reached() {
        let text = set(
            TEXT,
            &["networks[0].lima=user-v2", "networks[]={vzNAT: true, metric: 5}", "ssh.localPort=0"],
        );
        let text = text.unwrap();
        let want = "\n# Its networks.\nnetworks:\n- lima: user-v2\n- metric: 5\n  vzNAT: true\nssh:\n  localPort: 0\n";
        assert!(text.ends_with(want), "{text}");
        let text = set("", &["env.A_B=x y", "vmOpts.qemu.accel=tcg", "provision=[]"]).unwrap();
        assert!(text.contains("env:\n  A_B: \"x y\"\n"), "{text}");
        assert!(text.contains("vmOpts:\n  qemu:\n    accel: tcg\n"), "{text}");
        assert!(text.contains("provision: []\n"), "{text}");
    }

    #[test]
    fn a_text_written_otherwise_is_written_anew() {
        let text = set("{cpus: 2, arch: x86_64}\n", &["cpus=4"]).unwrap();
        assert!(text.contains("cpus: 4\n") && text.contains("arch: x86_64\n"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flag, want) in [
            ("cpus", "expected KEY=VALUE"),
            ("=2", "`` is no key"),
            ("a..b=1", "is no key"),
            ("a[x]=1", "is no key"),
            ("cpus.x=1", "`cpus.x` has no such part"),
            ("networks[3].lima=x", "`networks[3].lima` has no such part"),
            ("env={", "the value of `env`"),
        ] {
            let error = set(TEXT, &[flag]).unwrap_err().to_string();
            assert!(error.contains(want), "{flag}: {error}");
        }
    }

    #[test]
    fn words_keep_their_meaning() {
        for word in ["yes", "12", "1e3", "a: b", "#x", "", "on", "0x1", "- a", "x\ny"] {
            let text = change("", &[Change::set("key", word)]).unwrap();
            assert_eq!(value(&text).unwrap()["key"], word, "{text}");
        }
    }
}
