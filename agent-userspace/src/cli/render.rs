//! Diagnostics for people: the line, a mark under the place, what is wrong and what to do.
//! Used by `check` and by every command that reads the configuration.
//! INVARIANT: a diagnostic is never lost because its file cannot be shown.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Severity,
};
use policies::{Diagnostic, Diagnostics};

use super::output::{Output, clean};
use super::{Format, Global};
use crate::config::read_one;

/// Prints diagnostics where errors go: rendered, or a JSON object per line.
pub(super) fn diagnostics_to_stderr(diagnostics: &Diagnostics, global: &Global) {
    for diagnostic in &diagnostics.0 {
        let text = match global.format {
            Format::Json => serde_json::to_string(diagnostic).unwrap_or_default(),
            Format::Text => render(diagnostic, Severity::Error, std::io::stderr().is_terminal()),
        };
        Output::complain(text.trim_end());
    }
}

/// One diagnostic with the piece of its file that it is about.
pub(super) fn render(diagnostic: &Diagnostic, severity: Severity, terminal: bool) -> String {
    let color = terminal && !crate::config::no_color_by_environment();
    let theme = if color {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let place = format!(
        "{}:{}:{}",
        diagnostic.file.display(),
        diagnostic.line,
        diagnostic.column
    );
    let Some((text, offset, length)) = locate(diagnostic) else {
        let hint = diagnostic
            .hint
            .as_ref()
            .map(|hint| format!("\n  help: {}", clean(hint)))
            .unwrap_or_default();
        // A file or directory that cannot be shown as a whole has no line one.
        let whole = diagnostic.line == 1 && diagnostic.column == 1;
        let place = if whole {
            diagnostic.file.display().to_string()
        } else {
            place
        };
        return format!("{place}: {}{hint}\n", clean(&diagnostic.message));
    };
    let mut report = MietteDiagnostic::new(clean(&diagnostic.message))
        .with_severity(severity)
        .with_label(LabeledSpan::new(None, offset, length));
    if let Some(hint) = &diagnostic.hint {
        report = report.with_help(clean(hint));
    }
    let report = miette::Report::new(report).with_source_code(NamedSource::new(
        diagnostic.file.display().to_string(),
        text,
    ));
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_links(false)
        .with_wrap_lines(false)
        .with_context_lines(1);
    let mut rendered = String::new();
    match handler.render_report(&mut rendered, report.as_ref()) {
        Ok(()) => rendered,
        Err(_) => {
            let mut plain = String::new();
            let _ = writeln!(plain, "{diagnostic}");
            plain
        }
    }
}

/// The text that a diagnostic is about, the byte offset of its place, and the length of the word there.
fn locate(diagnostic: &Diagnostic) -> Option<(String, usize, usize)> {
    let text = clean_source(&read_one(&diagnostic.file).ok()?.text);
    let line_index = usize::try_from(diagnostic.line).ok()?.checked_sub(1)?;
    let column = usize::try_from(diagnostic.column).ok()?.checked_sub(1)?;
    let start: usize = text
        .split_inclusive('\n')
        .take(line_index)
        .map(str::len)
        .sum();
    let line = text.get(start..)?.split('\n').next()?;
    let inside: usize = line.chars().take(column).map(char::len_utf8).sum();
    let rest = line.get(inside..)?;
    let word =
        |c: char| !c.is_whitespace() && !matches!(c, ',' | ';' | '(' | ')' | '[' | ']' | '{' | '}');
    let length: usize = rest
        .chars()
        .take_while(|c| word(*c))
        .map(char::len_utf8)
        .sum();
    Some((text.clone(), start + inside, length))
}

/// Tabs stay, since columns count them; other control characters become a visible stand-in of one character.
fn clean_source(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && !matches!(c, '\n' | '\t' | '\r') {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}
