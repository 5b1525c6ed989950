//! What is wrong with a file, and where: file, line, column, message and, where one can be guessed, a hint.
//! Every parser of operator text (agents, connectors, policies, cases) reports through this one type.
//! INVARIANT: lines and columns are 1-based and inside the file; columns count characters, not bytes.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One text file, read by the caller: this crate does no I/O.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it came from; used in diagnostics only.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// A diagnostic at a byte range of this text.
    pub fn diagnostic(&self, span: Range<usize>, message: impl Into<String>) -> Diagnostic {
        let (line, column) = self.position(span.start);
        Diagnostic {
            file: self.path.clone(),
            line,
            column,
            message: message.into(),
            hint: None,
        }
    }

    /// The 1-based line and column of a byte offset; offsets past the end are the end.
    pub fn position(&self, offset: usize) -> (u32, u32) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        (
            u32::try_from(line).unwrap_or(u32::MAX),
            u32::try_from(column).unwrap_or(u32::MAX),
        )
    }

    pub(crate) fn place(&self, span: Range<usize>) -> Place {
        let (line, column) = self.position(span.start);
        Place {
            file: Arc::from(self.path.as_path()),
            line,
            column,
        }
    }

    /// Reads this text as TOML into `T`; an error keeps its place, an unknown word gets a "did you mean".
    pub fn toml<T: serde::de::DeserializeOwned>(&self) -> Result<T, Diagnostics> {
        toml::from_str(&self.text).map_err(|error| {
            let message = error.message().trim().to_owned();
            let hint = unknown_word_hint(&message);
            Diagnostics(vec![Diagnostic {
                hint,
                ..self.diagnostic(error.span().unwrap_or(0..0), message)
            }])
        })
    }
}

/// A place in a file, kept by what was parsed there so that later checks can point at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: Arc<Path>,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Place {
    pub(crate) fn diagnostic(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            file: self.file.to_path_buf(),
            line: self.line,
            column: self.column,
            message: message.into(),
            hint: None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// One thing that is wrong with one file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// The same diagnostic with this hint.
    pub fn hint(self, hint: impl Into<String>) -> Diagnostic {
        Diagnostic {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}: {}",
            self.file.display(),
            self.line,
            self.column,
            self.message
        )?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong, in file order. Display gives one block per diagnostic.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// `value`, unless something is wrong.
    pub fn or<T>(self, value: T) -> Result<T, Diagnostics> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }

    /// Keeps a failed part's diagnostics and gives its value otherwise.
    pub fn keep<T>(&mut self, part: Result<T, Diagnostics>) -> Option<T> {
        part.map_err(|mut problems| self.0.append(&mut problems.0))
            .ok()
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Diagnostics {
        Diagnostics(vec![diagnostic])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, diagnostic)| {
            let separator = if at > 0 { "\n" } else { "" };
            write!(f, "{separator}{diagnostic}")
        })
    }
}

impl std::error::Error for Diagnostics {}

/// The known word nearest to what was written, if it is near enough to be meant.
pub(crate) fn did_you_mean<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let near = known
        .into_iter()
        .map(|word| (edits(given, word), word))
        .min()?;
    let allowed = (given.chars().count() / 3).clamp(1, 3);
    (near.0 <= allowed).then(|| format!("did you mean `{}`?", near.1))
}

/// Serde says "unknown field `x`, expected one of `a`, `b`": the words are in the message.
fn unknown_word_hint(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let given = words.next()?;
    let known: Vec<&str> = words.collect();
    did_you_mean(given, known.iter().copied())
        .or_else(|| (!known.is_empty()).then(|| format!("known here: {}", known.join(", "))))
}

/// Edit distance with swaps of neighbours (optimal string alignment).
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let mut last = None;
    for (at, l) in left.chars().enumerate() {
        let mut next = vec![at + 1];
        for (column, r) in right.iter().enumerate() {
            let of =
                |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX - 1);
            let mut cost = (of(&row, column) + usize::from(l != *r))
                .min(of(&row, column + 1) + 1)
                .min(of(&next, column) + 1);
            let swapped = column > 0 && last == Some(*r) && right.get(column - 1) == Some(&l);
            if swapped {
                cost = cost.min(of(&before, column - 1) + 1);
            }
            next.push(cost);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(l);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_count_insertions_deletions_changes_and_swaps() {
        for (left, right, expected) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("risk", "rsk", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits(left, right), expected, "{left} {right}");
        }
    }

    #[test]
    fn an_unknown_key_is_reported_with_its_place_and_a_hint() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[expect(dead_code, reason = "only its name matters")]
            stage: String,
        }
        let source = Source {
            path: "agents.d/a.toml".into(),
            text: "\nstaeg = \"read\"\n".into(),
        };
        let problems = source.toml::<File>().unwrap_err();
        assert_eq!(
            problems.to_string(),
            "agents.d/a.toml:2:1: unknown field `staeg`, expected `stage`\n  hint: did you mean `stage`?"
        );
    }

    #[test]
    fn columns_count_characters() {
        let source = Source {
            path: "x".into(),
            text: "a\nää = 1".into(),
        };
        assert_eq!(source.position(6), (2, 3));
        assert_eq!(source.position(999), (2, 7));
    }
}
