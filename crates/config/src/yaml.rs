//! YAML into raw types, and values that know where they stand. The one place that knows the
//! library.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_saphyr::{Error, MessageFormatter, Options, Spanned, UserMessageFormatter};

use crate::source::{Diagnostic, Span};

/// A value and where it was read.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    /// `None` for what came from a command line.
    pub span: Option<Span>,
}

impl<T> At<T> {
    /// A value that stands in no file.
    pub fn nowhere(value: T) -> Self {
        Self { value, span: None }
    }

    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At { value: f(self.value), span: self.span }
    }
}

impl<T: Default> Default for At<T> {
    fn default() -> Self {
        Self::nowhere(T::default())
    }
}

impl<T: PartialEq> PartialEq for At<T> {
    /// The place does not count.
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::deserialize(deserializer)?;
        Ok(Self { value, span: span(&referenced.span()) })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// A mapping whose keys the user chooses, in the file's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Entries<T>(pub Vec<(At<String>, T)>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for EntriesVisitor<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key()? {
                    // A name with nothing after it has every default.
                    let value: Option<T> = map.next_value()?;
                    entries.push((key, value.unwrap_or_default()));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor(std::marker::PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Entries<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Map_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        <std::collections::BTreeMap<String, T>>::json_schema(generator)
    }
}

/// What was read from a file, and can be had without the places in it.
pub(crate) trait Places {
    /// Forgets where everything stands, and the keys that mean nothing: in a report about another
    /// file, both would be taken for that one's.
    fn forget(&mut self);
}

/// A mapping that can be laid over another one.
pub(crate) trait Layer {
    /// Every key as it is here, or else as it is in `under`.
    fn or(self, under: Self) -> Self;
}

impl<T: Places> Places for At<T> {
    fn forget(&mut self) {
        self.span = None;
        self.value.forget();
    }
}

impl<T: Places> Places for Option<T> {
    fn forget(&mut self) {
        self.iter_mut().for_each(T::forget);
    }
}

impl<T: Places> Places for Vec<T> {
    fn forget(&mut self) {
        self.iter_mut().for_each(T::forget);
    }
}

impl<T: Places> Places for Entries<T> {
    fn forget(&mut self) {
        for (key, value) in &mut self.0 {
            key.forget();
            value.forget();
        }
    }
}

macro_rules! without_places {
    ($($Type:ty),*) => {
        $( impl Places for $Type {
            fn forget(&mut self) {}
        } )*
    };
}
without_places!(bool, i64, u32, String);

/// Makes a raw type of a mapping: every key is optional, and a key that is none of these is kept
/// by name, so that a warning can say where it stands.
macro_rules! raw {
    (
        $(#[$meta:meta])*
        pub struct $Type:ident {
            $( $(#[$field_meta:meta])* $key:literal => $field:ident: $Value:ty, )*
        }
    ) => {
        #[derive(Clone, Debug, Default, PartialEq, ::schemars::JsonSchema)]
        $(#[$meta])*
        #[schemars(deny_unknown_fields)]
        pub struct $Type {
            $( $(#[$field_meta])* #[schemars(rename = $key)] pub $field: Option<$Value>, )*
            /// Keys that mean nothing here.
            #[schemars(skip)]
            pub unknown: Vec<$crate::yaml::At<String>>,
        }

        impl<'de> ::serde::Deserialize<'de> for $Type {
            fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct RawVisitor;

                impl<'de> ::serde::de::Visitor<'de> for RawVisitor {
                    type Value = $Type;

                    fn expecting(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                        f.write_str("a mapping")
                    }

                    fn visit_map<A>(self, mut map: A) -> Result<$Type, A::Error>
                    where
                        A: ::serde::de::MapAccess<'de>,
                    {
                        let mut raw = $Type::default();
                        while let Some(key) = map.next_key::<$crate::yaml::At<String>>()? {
                            match key.value.as_str() {
                                $( $key => raw.$field = map.next_value()?, )*
                                _ => {
                                    map.next_value::<::serde::de::IgnoredAny>()?;
                                    raw.unknown.push(key);
                                }
                            }
                        }
                        Ok(raw)
                    }
                }

                from.deserialize_map(RawVisitor)
            }
        }

        impl $crate::yaml::Places for $Type {
            fn forget(&mut self) {
                $( $crate::yaml::Places::forget(&mut self.$field); )*
                self.unknown.clear();
            }
        }

        impl $crate::yaml::Layer for $Type {
            fn or(self, under: Self) -> Self {
                Self {
                    $( $field: self.$field.or(under.$field), )*
                    unknown: under.unknown.into_iter().chain(self.unknown).collect(),
                }
            }
        }

        impl $Type {
            /// The keys that mean something here.
            pub const KEYS: &[&str] = &[$($key),*];
        }
    };
}
pub(crate) use raw;

/// Reads a document; an empty one has every default.
pub(crate) fn parse<T: DeserializeOwned + Default>(text: &str) -> Result<T, Diagnostic> {
    if text.len() > MAX_TEXT {
        let message = format!("{} bytes are too many: at most {MAX_TEXT} are read", text.len());
        return Err(Diagnostic::error(message, None));
    }
    let parsed = serde_saphyr::from_str_with_options::<Option<T>>(text, options());
    Ok(parsed.map_err(|e| diagnostic(&e, text))?.unwrap_or_default())
}

/// Far more than anybody writes by hand.
const MAX_TEXT: usize = 1024 * 1024;

fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: 32, max_events: 100_000 },
    }
}

fn diagnostic(error: &Error, text: &str) -> Diagnostic {
    let at = error.location().and_then(|at| {
        let (line, column) = (usize::try_from(at.line()).ok()?, usize::try_from(at.column()).ok()?);
        span(&at.span()).or_else(|| Some(point(text, line, column)))
    });
    // The end of a file is behind its last line, and what is missing there belongs to that.
    let end = text.trim_end().len();
    let at = at.map(|at| if at.start < end { at } else { Span { start: end, end } });
    let message = UserMessageFormatter.format_message(error);
    match message.as_ref() {
        "expected mapping start" => {
            Diagnostic::error("this must be a mapping", at).help("lines of the form `name: value`")
        }
        "expected string scalar" => Diagnostic::error("this must be a single value", at),
        "invalid boolean" => Diagnostic::error("this must be `true` or `false`", at),
        "invalid u32" | "invalid i64" => Diagnostic::error("this must be a whole number", at),
        _ => Diagnostic::error(message, at),
    }
}

/// The place of a line and column, both from 1.
fn point(text: &str, line: usize, column: usize) -> Span {
    let lines = text.split_inclusive('\n');
    let before: usize = lines.clone().take(line.saturating_sub(1)).map(str::len).sum();
    let line = lines.clone().nth(line.saturating_sub(1)).unwrap_or_default();
    let within: usize = line.chars().take(column.saturating_sub(1)).map(char::len_utf8).sum();
    Span { start: before + within, end: before + within }
}

fn span(span: &serde_saphyr::Span) -> Option<Span> {
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let len = usize::try_from(span.byte_len()?).ok()?;
    Some(Span { start, end: start + len })
}
