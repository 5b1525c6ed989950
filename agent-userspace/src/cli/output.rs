//! How answers are printed: lines of JSON for programs; aligned text, coloured on a terminal, for people.
//! Every command prints through here.
//! INVARIANT: in text, nothing that an agent wrote reaches the terminal as a control or direction character.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::{Failure, Format, Global};

/// Where a command's answer goes.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
    color: bool,
}

/// What a piece of text means to the reader.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tone {
    /// Needs attention.
    Bad,
    /// As it should be.
    Good,
    /// A title or a name.
    Strong,
    /// Of less weight.
    Weak,
    /// Worth a look.
    Warning,
}

impl Output {
    /// The output that the global flags ask for.
    #[must_use]
    pub fn new(global: &Global) -> Output {
        let color = io::stdout().is_terminal() && !crate::config::no_color_by_environment();
        Output {
            format: global.format,
            color,
        }
    }

    /// True if the answer is for programs.
    #[must_use]
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints one object: as a line of JSON, or as the text that `text` makes of it.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn object<T: Serialize>(
        self,
        object: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => {
                let line =
                    serde_json::to_string(object).map_err(|error| Failure::Output(error.into()))?;
                self.line(&line)
            }
            Format::Text => self.line(&text(object)),
        }
    }

    /// Prints a list: a line of JSON per object, or an aligned table with a header. `none` is said of an empty one.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn table<T: Serialize>(
        self,
        objects: &[T],
        header: &[&str],
        none: &str,
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failure> {
        if self.is_json() {
            return objects
                .iter()
                .try_for_each(|object| self.object(object, |_| String::new()));
        }
        if objects.is_empty() {
            return self.line(none);
        }
        let rows: Vec<Vec<String>> = objects.iter().map(row).collect();
        self.line(&self.align(header, &rows))
    }

    /// Prints one line, or several at once.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn line(self, text: &str) -> Result<(), Failure> {
        writeln!(io::stdout().lock(), "{text}").map_err(Failure::Output)
    }

    /// Prints text as it is.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn raw(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(Failure::Output)
    }

    /// Prints a line on standard error; if that is closed, nobody is there to read it.
    pub(super) fn complain(line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// `text` in the colour of its tone, where colours are shown.
    pub(super) fn tone(self, tone: Tone, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Bad => "31",
            Tone::Good => "32",
            Tone::Strong => "1",
            Tone::Warning => "33",
            Tone::Weak => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// Columns of equal width, the header in weak letters. Cells are cleaned here.
    pub(super) fn align(self, header: &[&str], rows: &[Vec<String>]) -> String {
        let head: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| clean(cell)).collect())
            .collect();
        let width = |column: usize| {
            let cell = |row: &Vec<String>| row.get(column).map_or(0, |cell| cell.chars().count());
            rows.iter()
                .map(cell)
                .chain([cell(&head)])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let line = |row: &[String]| {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let mut lines = vec![self.tone(Tone::Weak, &line(&head))];
        lines.extend(rows.iter().map(|row| line(row)));
        lines.join("\n")
    }
}

/// `text` with everything replaced that could move the cursor, change colours or reorder what is read.
pub(super) fn clean(text: &str) -> String {
    let dangerous = |c: char| {
        let direction = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        (c.is_control() && c != '\n') || direction
    };
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if dangerous(c) {
            cleaned.extend(c.escape_unicode());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

/// `1 agent`, `2 agents`: for words with a regular plural.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// As [`clean`], and on one line.
pub(super) fn clean_line(text: &str) -> String {
    clean(text).replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_wrote_cannot_steer_the_terminal() {
        assert_eq!(clean("plain ä 漢"), "plain ä 漢");
        assert_eq!(clean("\u{1b}[2Jgone"), "\\u{1b}[2Jgone");
        assert_eq!(clean("usd\u{202e}dne"), "usd\\u{202e}dne");
        assert_eq!(clean_line("a\nb\r"), "a\\nb\\u{d}");
    }

    #[test]
    fn columns_are_aligned_without_trailing_space() {
        let output = Output {
            format: Format::Text,
            color: false,
        };
        let rows = vec![
            vec!["a".to_owned(), "bb".to_owned()],
            vec!["ccc".to_owned(), String::new()],
        ];
        assert_eq!(output.align(&["ID", "X"], &rows), "ID   X\na    bb\nccc");
    }
}
