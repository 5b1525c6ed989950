//! Policy text to rules: parses Cedar, checks what Cedar does not (`@id`, `@approval`, names), and says where each fault is.
//! Load time only; the slices that decisions read are made of the rules that come out of here.
//! INVARIANT: every rule has its own id; only a forbid carries an approval, and its condition can be lifted by it.

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cedar_policy::{Effect, Policy, PolicySet};

use crate::diagnostic::did_you_mean;
use crate::{Diagnostic, Diagnostics, Group, PolicyId, Source};

/// The annotations a policy may carry.
const ANNOTATIONS: [&str; 6] = ["approval", "hint", "id", "quorum", "reason", "within"];
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
const LARGEST_QUORUM: u32 = 32;

/// One policy, with what its annotations say.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) id: PolicyId,
    /// The Cedar policy, under the same id.
    pub(crate) policy: Policy,
    pub(crate) approval: Option<Approve>,
    pub(crate) reason: Option<String>,
    pub(crate) hint: Option<String>,
    /// Where it stands, for diagnostics and explanations.
    pub(crate) source: Arc<Source>,
    pub(crate) span: Range<usize>,
    /// Compiled in, not the operator's.
    pub(crate) shipped: bool,
}

/// `@approval` with its `@within` and `@quorum`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Approve {
    pub(crate) group: Group,
    pub(crate) within: Option<Duration>,
    pub(crate) quorum: Option<u32>,
}

impl Rule {
    pub(crate) fn is_forbid(&self) -> bool {
        self.policy.effect() == Effect::Forbid
    }

    /// The rule under the name of its place, so that a second one of its id can be checked beside the first.
    pub(crate) fn renamed(self) -> Option<Self> {
        let id = stand_in(&self.source, &self.span)?;
        let policy = self.policy.new_id(cedar_policy::PolicyId::new(id.as_str()));
        Some(Self { id, policy, ..self })
    }

    /// A diagnostic at the policy's first line.
    pub(crate) fn diagnostic(&self, message: impl Into<String>) -> Diagnostic {
        self.source.diagnostic(self.span.clone(), message)
    }

    /// A diagnostic where `text` stands in the policy, or at its start.
    pub(crate) fn diagnostic_at(&self, text: &str, message: impl Into<String>) -> Diagnostic {
        let within = self
            .source
            .text
            .get(self.span.clone())
            .and_then(|policy| policy.find(text));
        let start = self.span.start + within.unwrap_or(0);
        self.source.diagnostic(start..self.span.end, message)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.source.path.clone()
    }

    pub(crate) fn line(&self) -> u32 {
        self.source.position(self.span.start).0
    }
}

/// Reads the policies of one file; whatever is wrong goes to `problems`, and then the rules are for looking for more.
pub(crate) fn parse(source: &Arc<Source>, shipped: bool, problems: &mut Diagnostics) -> Vec<Rule> {
    let set = match PolicySet::from_str(&source.text) {
        Ok(set) => set,
        Err(errors) => {
            problems.0.extend(
                errors
                    .iter()
                    .map(|error| located(source, error, error.to_string())),
            );
            return Vec::new();
        }
    };

    let mut rules = Vec::new();
    let mut cursor = 0;
    // Cedar numbers the policies and templates of a text together, in its order.
    for number in 0..set.num_of_policies() + set.num_of_templates() {
        let number = cedar_policy::PolicyId::new(format!("policy{number}"));
        let policy = set.policy(&number);
        let text = match policy {
            Some(policy) => policy.to_string(),
            None => set
                .template(&number)
                .map(ToString::to_string)
                .unwrap_or_default(),
        };
        let span = find(&source.text, cursor, &text);
        cursor = span.end;
        match policy {
            Some(policy) => rules.extend(rule(source, span, policy, shipped, problems)),
            None => problems.0.push(source.diagnostic(
                span,
                "policy templates (`?principal`, `?resource`) are not supported",
            )),
        }
    }
    rules
}

/// One policy's annotations. A policy whose annotations are wrong comes back too, so that its names and types are
/// checked in the same run; what is wrong with it keeps the bundle from loading.
fn rule(
    source: &Arc<Source>,
    span: Range<usize>,
    policy: &Policy,
    shipped: bool,
    problems: &mut Diagnostics,
) -> Option<Rule> {
    let mut reader = Annotations {
        source,
        span: span.clone(),
        policy,
        problems: Diagnostics::default(),
    };
    reader.refuse_unknown();
    let id = reader.id();
    let approval = reader.approval();
    let text = |key| policy.annotation(key).map(str::to_owned);
    problems.0.append(&mut reader.problems.0);
    let id = id.or_else(|| stand_in(source, &span))?;
    Some(Rule {
        policy: policy.new_id(cedar_policy::PolicyId::new(id.as_str())),
        id,
        approval,
        reason: text("reason"),
        hint: text("hint"),
        source: Arc::clone(source),
        span,
        shipped,
    })
}

/// A name for a policy that has none of its own: where it stands. `None` if the file's name cannot be part of an id.
fn stand_in(source: &Source, span: &Range<usize>) -> Option<PolicyId> {
    let (line, column) = source.position(span.start);
    let file = source.path.file_name()?.to_string_lossy();
    format!("{file}:{line}:{column}").parse().ok()
}

/// Reads one policy's annotations and collects what is wrong with them.
struct Annotations<'a> {
    source: &'a Source,
    span: Range<usize>,
    policy: &'a Policy,
    problems: Diagnostics,
}

impl Annotations<'_> {
    fn refuse_unknown(&mut self) {
        for (name, _) in self.policy.annotations() {
            if !ANNOTATIONS.contains(&name) {
                let hint = did_you_mean(
                    &format!("@{name}"),
                    ["@approval", "@hint", "@id", "@quorum", "@reason", "@within"],
                )
                .unwrap_or_else(|| format!("known here: @{}", ANNOTATIONS.join(", @")));
                self.report(name, format!("unknown annotation `@{name}`"), hint);
            }
        }
    }

    fn id(&mut self) -> Option<PolicyId> {
        let Some(text) = self.policy.annotation("id") else {
            let hint = "write `@id(\"a-name-of-its-own\")` above it; decisions and records name policies by it";
            self.report("", "the policy has no `@id`".to_owned(), hint);
            return None;
        };
        match text.parse() {
            Ok(id) => Some(id),
            Err(error) => {
                self.report(
                    "id",
                    format!("{error}"),
                    "for example `@id(\"refund-over-50-needs-finance\")`",
                );
                None
            }
        }
    }

    fn approval(&mut self) -> Option<Approve> {
        let Some(group) = self.policy.annotation("approval") else {
            for name in ["quorum", "within"] {
                if self.policy.annotation(name).is_some() {
                    self.report(
                        name,
                        format!("`@{name}` without `@approval` means nothing"),
                        "name the group: `@approval(\"finance\")`",
                    );
                }
            }
            return None;
        };
        if self.policy.effect() == Effect::Permit {
            let hint = "turn it round: `forbid (..) unless { context.approvals.contains(Group::\"..\") }`, and let a permit without conditions allow it";
            self.report(
                "approval",
                "`@approval` on a permit: a broader permit would let the call go without asking"
                    .to_owned(),
                hint,
            );
            return None;
        }
        let group = self.group(group);
        let within = self.within();
        let quorum = self.quorum();
        let group = group?;
        self.can_be_lifted(&group);
        Some(Approve {
            group,
            within,
            quorum,
        })
    }

    fn group(&mut self, text: &str) -> Option<Group> {
        text.parse()
            .map_err(|error: crate::NameError| {
                self.report(
                    "approval",
                    error.to_string(),
                    "one group, for example `@approval(\"finance\")`",
                )
            })
            .ok()
    }

    /// A forbid that never looks at the approval is a plain forbid: asking people for it would be for nothing.
    fn can_be_lifted(&mut self, group: &Group) {
        let fact = super::names::group(group);
        if !self.policy.entity_literals().contains(&fact) {
            let message = format!(
                "`@approval(\"{group}\")`, but no condition looks for an approval of `{group}`"
            );
            let hint = format!("add `unless {{ context.approvals.contains(Group::\"{group}\") }}`");
            self.report("approval", message, hint);
        }
    }

    fn within(&mut self) -> Option<Duration> {
        let text = self.policy.annotation("within")?;
        let within = duration(text).filter(|time| !time.is_zero() && *time <= LONGEST);
        if within.is_none() {
            let message = format!(
                "`@within(\"{}\")` is not a time between 1s and 30d",
                text.escape_debug()
            );
            self.report(
                "within",
                message,
                "a number and s, m, h or d, for example `@within(\"15m\")`",
            );
        }
        within
    }

    fn quorum(&mut self) -> Option<u32> {
        let text = self.policy.annotation("quorum")?;
        let quorum = whole_number(text)
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| (1..=LARGEST_QUORUM).contains(n));
        if quorum.is_none() {
            let message = format!(
                "`@quorum(\"{}\")` is not a number from 1 to {LARGEST_QUORUM}",
                text.escape_debug()
            );
            self.report(
                "quorum",
                message,
                "how many different people must approve, for example `@quorum(\"2\")`",
            );
        }
        quorum
    }

    fn report(&mut self, annotation: &str, message: String, hint: impl Into<String>) {
        let policy = self.source.text.get(self.span.clone()).unwrap_or_default();
        let start = self.span.start + annotation_offset(policy, annotation).unwrap_or(0);
        self.problems.0.push(
            self.source
                .diagnostic(start..self.span.end, message)
                .hint(hint),
        );
    }
}

/// A Cedar error, at the place Cedar names, with Cedar's help as the hint.
pub(super) fn located(
    source: &Source,
    error: &dyn miette::Diagnostic,
    message: String,
) -> Diagnostic {
    let offset = error
        .labels()
        .and_then(|mut labels| labels.next())
        .map_or(0, |label| label.offset());
    let diagnostic = source.diagnostic(offset..offset, message);
    match error.help() {
        Some(help) => diagnostic.hint(help.to_string()),
        None => diagnostic,
    }
}

/// Where the policy's own text stands in the file, looking from `cursor` on.
fn find(file: &str, cursor: usize, policy: &str) -> Range<usize> {
    let start = file
        .get(cursor..)
        .and_then(|rest| rest.find(policy))
        .map_or(cursor, |at| cursor + at);
    start..(start + policy.len()).min(file.len())
}

/// Where `@name` stands among a policy's annotations, past strings and comments.
fn annotation_offset(policy: &str, name: &str) -> Option<usize> {
    let mut rest = policy;
    while !rest.is_empty() {
        let at = policy.len() - rest.len();
        let mut chars = rest.chars();
        match chars.next()? {
            '@' => {
                let word = chars.as_str().trim_start();
                let end = word
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(word.len());
                if word.get(..end) == Some(name) {
                    return Some(at);
                }
                rest = chars.as_str();
            }
            '"' => rest = after_string(chars.as_str()),
            '/' if rest.starts_with("//") => {
                rest = rest.split_once('\n').map_or("", |(_, rest)| rest)
            }
            _ => rest = chars.as_str(),
        }
    }
    None
}

fn after_string(inside: &str) -> &str {
    let mut chars = inside.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            '"' => break,
            _ => {}
        }
    }
    chars.as_str()
}

/// `90s`, `15m`, `2h`, `1d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (digits, seconds) = match text.chars().last()? {
        's' => (text.strip_suffix('s')?, 1),
        'm' => (text.strip_suffix('m')?, 60),
        'h' => (text.strip_suffix('h')?, 3600),
        'd' => (text.strip_suffix('d')?, 86_400),
        _ => return None,
    };
    whole_number(digits)?
        .checked_mul(seconds)
        .map(Duration::from_secs)
}

/// Digits only: Rust's own parser also takes a sign.
fn whole_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_one_unit() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("2h", Some(7200)),
            ("1d", Some(86_400)),
        ] {
            assert_eq!(duration(text), seconds.map(Duration::from_secs), "{text}");
        }
        for bad in [
            "",
            "m",
            "15",
            "15 m",
            "+1m",
            "-1m",
            "1.5h",
            "15min",
            "99999999999999999999d",
            "1m30s",
            "١m",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn annotations_are_found_past_strings_and_comments() {
        let policy = "// @within\n@id(\"say @within \\\" @within\")\n@within(\"1m\")\nforbid (principal, action, resource);";
        assert_eq!(
            annotation_offset(policy, "within"),
            policy.find("@within(\"1m")
        );
        assert_eq!(annotation_offset(policy, "quorum"), None);
    }
}
