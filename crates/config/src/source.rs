//! Where in a file something stands, and how what is wrong with it is told: file, line, column, the
//! line itself, and what would be right.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// A file's text, and its name in messages.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column, both from 1, of a byte; columns are characters.
    pub fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        (before.matches('\n').count() + 1, line.chars().count() + 1)
    }

    /// A span that slices of the text can be made of, whatever a parser says.
    fn clamp(&self, span: Span) -> Range<usize> {
        let boundary = |mut at: usize| {
            at = at.min(self.text.len());
            while !self.text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = boundary(span.start);
        // Of a value of several lines, the first is shown.
        let line =
            self.text.get(start..).map_or(0, |rest| rest.find(['\n', '\r']).unwrap_or(rest.len()));
        start..boundary(span.end).clamp(start, start + line)
    }
}

/// The bytes of a file that something was read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Warning,
    Error,
}

/// Something that is wrong with a file, or soon will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub message: String,
    /// Where; `None` for what did not come from the file.
    pub span: Option<Span>,
    /// What would be right.
    pub help: Option<String>,
}

impl Diagnostic {
    pub fn error(message: impl Into<String>, span: Option<Span>) -> Self {
        Self { severity: Severity::Error, message: message.into(), span, help: None }
    }

    pub fn warning(message: impl Into<String>, span: Option<Span>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message, span) }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The message with its place in `source`, without an end of line.
    pub fn render(&self, source: &Source) -> String {
        let (level, name) = match self.severity {
            Severity::Warning => (Level::WARNING, "warning"),
            Severity::Error => (Level::ERROR, "error"),
        };
        let path = source.path.display().to_string();
        let message = printable(&self.message);
        let help = self.help.as_deref().map(printable);
        let Some(span) = self.span else {
            let help = help.map(|h| format!("\n  = help: {h}")).unwrap_or_default();
            return format!("{name}: {message}\n --> {path}{help}");
        };
        let snippet = Snippet::source(source.text.as_str())
            .path(path)
            .annotation(AnnotationKind::Primary.span(source.clamp(span)));
        let group = Group::with_title(level.primary_title(message)).element(snippet);
        let group = match help {
            Some(help) => group.element(Level::HELP.message(help)),
            None => group,
        };
        Renderer::plain().render(&[group])
    }
}

/// Everything that is wrong with one file.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Report {
    pub file: Source,
    pub diagnostics: Vec<Diagnostic>,
}

impl Report {
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n\n" };
            write!(f, "{separator}{}", diagnostic.render(&self.file))?;
        }
        Ok(())
    }
}

/// A file's bytes must not speak to the terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_debug()) } else { out.push(c) }
    }
    out
}
