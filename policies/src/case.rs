//! Decision cases: one TOML file says who asks for what and what must come of it. Test and documentation at once.
//! Not on the path of a request; `sluice policy test DIR` and this crate's own tests run the same runner.
//! INVARIANT: a case goes through the catalogue and the engine that requests go through, and an unread key is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::bundle::{Bundle, Sources};
use crate::cedar::{Explanation, Ruling};
use crate::decision::Facts;
use crate::diagnostic::did_you_mean;
use crate::{
    Agent, AgentId, BodyNeed, Call, CapabilityId, Diagnostics, Endpoint, Group, PolicyId, Reason,
    Refused, RequestView, Source, Stage, Timestamp, Value,
};

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaseReport {
    /// The case's file.
    pub file: PathBuf,
    /// What the case is about, in its own words.
    pub about: String,
    /// What came out otherwise than the case says; empty where it passed.
    pub mismatches: Vec<Mismatch>,
    /// How the call was decided, if there was one.
    pub explanation: Option<Explanation>,
}

/// One thing that came out otherwise than the case says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// The key of `[expect]`.
    pub key: &'static str,
    /// What the case says.
    pub expected: String,
    /// What came out.
    pub found: String,
}

impl CaseReport {
    /// Whether everything came out as the case says.
    pub fn passed(&self) -> bool {
        self.mismatches.is_empty()
    }
}

/// Runs one case against a bundle.
///
/// A case file has these keys:
/// ```toml
/// about = "A refund of 120.00 is held for finance"   # one sentence
/// agent = "acme/support"                             # an agent of the bundle, or of `given.agents`
/// stage = "write"                                    # optional: as if the agent were at this stage
/// disabled = false                                   # optional: the kill switch
/// approved = ["finance"]                             # optional: groups that have approved the call
/// now = "2026-01-01T00:00:00.000Z"                   # optional: the time that policies see
/// [given]                                            # optional: files besides the bundle's, for this case only
/// agents = ['''..''']
/// connectors = ['''..''']
/// policies = ['''..''']
/// [request]
/// method = "POST"
/// url = "https://api.stripe.com/v1/refunds"
/// headers = { accept = "*/*" }                       # optional
/// form = "charge=ch_1&amount=12000"                  # or `json` or `body`; optional
/// [expect]                                           # `decision` and whatever else should be compared
/// decision = "hold"                                  # allow, deny, hold; refuse (no call); invalid (`given` must not load)
/// capability = "stripe/refunds.create"
/// params = { charge = "ch_1", amount = 12000 }
/// reason = "approval_required"
/// policies = ["risk-financial"]                      # the determining ones
/// groups = ["finance"]
/// within = 900                                       # seconds
/// quorum = 1
/// detail = "approval by finance"                     # part of the text for people, or of a load error
/// ```
///
/// # Errors
/// The case file, or what it gives, is itself wrong: with file, line, column and hint.
pub fn run_case(bundle: &Bundle, case: &Source) -> Result<CaseReport, Diagnostics> {
    let file: CaseFile = case.toml()?;
    if file.given.is_empty() {
        return file.run(bundle, case);
    }
    match file.given.add_to(bundle, case) {
        Ok(bundle) => file.run(&bundle, case),
        Err(problems) if file.expect.decision == Expected::Invalid => {
            Ok(file.report(case, None, Found::invalid(&problems)))
        }
        Err(problems) => Err(problems),
    }
}
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    about: String,
    agent: Spanned<AgentId>,
    stage: Option<Stage>,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    approved: BTreeSet<Group>,
    now: Option<Timestamp>,
    #[serde(default)]
    given: Given,
    request: RequestText,
    expect: Expect,
}

/// Files that a case adds to the bundle.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    agents: Vec<Spanned<String>>,
    connectors: Vec<Spanned<String>>,
    policies: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    method: String,
    url: Spanned<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    form: Option<Spanned<String>>,
    json: Option<Spanned<String>>,
    body: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    decision: Expected,
    capability: Option<CapabilityId>,
    params: Option<BTreeMap<String, Value>>,
    reason: Option<Reason>,
    policies: Option<BTreeSet<PolicyId>>,
    groups: Option<BTreeSet<Group>>,
    within: Option<u64>,
    quorum: Option<u32>,
    detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expected {
    Allow,
    Deny,
    Hold,
    Invalid,
    Refuse,
}

/// What came out, in the terms of [`Expect`].
struct Found {
    decision: Expected,
    capability: Option<CapabilityId>,
    params: BTreeMap<String, Value>,
    reason: Option<Reason>,
    policies: BTreeSet<PolicyId>,
    groups: BTreeSet<Group>,
    within: Option<u64>,
    quorum: Option<u32>,
    detail: String,
}

impl CaseFile {
    fn run(&self, bundle: &Bundle, case: &Source) -> Result<CaseReport, Diagnostics> {
        let agent = self.agent(bundle, case)?;
        let call = match self.request.call(bundle, agent.id(), case)? {
            Ok(call) => call,
            Err(refused) => return Ok(self.report(case, None, Found::refused(refused))),
        };
        let now = self.now.unwrap_or(Timestamp::from_millis(0));
        let facts = Facts {
            now,
            disabled: self.disabled,
        };
        let stage = self.stage.unwrap_or(agent.stage());
        let explanation = bundle.explain_as(agent, &call, &facts, stage, &self.approved);
        let found = Found::decided(&explanation);
        Ok(self.report(case, Some(explanation), found))
    }

    fn agent<'b>(&self, bundle: &'b Bundle, case: &Source) -> Result<&'b Agent, Diagnostics> {
        bundle.agent(self.agent.get_ref()).ok_or_else(|| {
            let id = self.agent.get_ref().to_string();
            let problem = case.diagnostic(self.agent.span(), format!("there is no agent `{id}`"));
            let known: Vec<String> = bundle
                .agents()
                .map(|agent| agent.id().to_string())
                .collect();
            match did_you_mean(&id, known.iter().map(String::as_str)) {
                Some(hint) => problem.hint(hint).into(),
                None => problem.into(),
            }
        })
    }

    fn report(&self, case: &Source, explanation: Option<Explanation>, found: Found) -> CaseReport {
        let expect = &self.expect;
        let mut compare = Compare(Vec::new());
        compare.always("decision", &expect.decision, &found.decision);
        compare.if_told(
            "capability",
            expect.capability.as_ref().map(Some).as_ref(),
            &found.capability.as_ref(),
        );
        compare.if_told("params", expect.params.as_ref(), &found.params);
        compare.if_told("reason", expect.reason.map(Some).as_ref(), &found.reason);
        compare.if_told("policies", expect.policies.as_ref(), &found.policies);
        compare.if_told("groups", expect.groups.as_ref(), &found.groups);
        compare.if_told("within", expect.within.map(Some).as_ref(), &found.within);
        compare.if_told("quorum", expect.quorum.map(Some).as_ref(), &found.quorum);
        if let Some(part) = expect
            .detail
            .as_ref()
            .filter(|part| !found.detail.contains(part.as_str()))
        {
            compare.0.push(Mismatch {
                key: "detail",
                expected: part.clone(),
                found: found.detail,
            });
        }
        CaseReport {
            file: case.path.clone(),
            about: self.about.clone(),
            mismatches: compare.0,
            explanation,
        }
    }
}

struct Compare(Vec<Mismatch>);

impl Compare {
    fn always<T: PartialEq + fmt::Debug>(&mut self, key: &'static str, expected: &T, found: &T) {
        if expected != found {
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            self.0.push(Mismatch {
                key,
                expected,
                found,
            });
        }
    }

    fn if_told<T: PartialEq + fmt::Debug>(
        &mut self,
        key: &'static str,
        expected: Option<&T>,
        found: &T,
    ) {
        if let Some(expected) = expected {
            self.always(key, expected, found);
        }
    }
}

impl Given {
    fn is_empty(&self) -> bool {
        self.agents.is_empty() && self.connectors.is_empty() && self.policies.is_empty()
    }

    fn add_to(&self, bundle: &Bundle, case: &Source) -> Result<Bundle, Diagnostics> {
        let policies = self.policies.iter().map(|text| inner_source(case, text));
        if self.agents.is_empty() && self.connectors.is_empty() {
            return bundle.with_policies(policies);
        }
        let mut sources: Sources = bundle.sources().clone();
        sources
            .agents
            .extend(self.agents.iter().map(|text| inner_source(case, text)));
        sources
            .connectors
            .extend(self.connectors.iter().map(|text| inner_source(case, text)));
        sources.policies.extend(policies);
        Bundle::load(&sources)
    }
}

/// A file inside the case file, moved down by empty lines so that its diagnostics point into the case file.
fn inner_source(case: &Source, text: &Spanned<String>) -> Source {
    let span = text.span();
    let content = text.get_ref();
    let start = case
        .text
        .get(span.clone())
        .and_then(|raw| raw.find(content.as_str()))
        .unwrap_or(0);
    let (line, _) = case.position(span.start + start);
    let above = "\n".repeat(usize::try_from(line).map_or(0, |line| line.saturating_sub(1)));
    Source {
        path: case.path.clone(),
        text: above + content,
    }
}

impl RequestText {
    /// Maps the request as the proxy does: head first, the body only if mapping needs it.
    fn call(
        &self,
        bundle: &Bundle,
        agent: &AgentId,
        case: &Source,
    ) -> Result<Result<Call, Refused>, Diagnostics> {
        let (endpoint, path, query) = self.target(case)?;
        let headers = self.headers(case)?;
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let head = RequestView {
            method: &self.method,
            path,
            query,
            headers: &headers,
            body: None,
        };
        let body = match bundle.body_need(agent, &endpoint, &head) {
            BodyNeed::None => None,
            BodyNeed::Whole { .. } => Some(self.content().unwrap_or_default().as_bytes()),
        };
        Ok(bundle.call(agent, &endpoint, &RequestView { body, ..head }))
    }

    /// `https://host[:port]/path?query`, in parts; the path stays as written.
    fn target(&self, case: &Source) -> Result<(Endpoint, &str, Option<&str>), Diagnostics> {
        let problem = |message: String| {
            let hint = "for example `https://api.stripe.com/v1/refunds`";
            Diagnostics::from(case.diagnostic(self.url.span(), message).hint(hint))
        };
        let url = self.url.get_ref();
        let rest = url
            .strip_prefix("https://")
            .ok_or_else(|| problem(format!("`{url}` does not start with https://")))?;
        let end = rest
            .find('/')
            .ok_or_else(|| problem(format!("`{url}` has no path")))?;
        let (authority, target) = rest.split_at(end);
        let endpoint: Endpoint = authority
            .parse()
            .or_else(|_| format!("{authority}:443").parse())
            .map_err(|error: crate::NameError| problem(error.to_string()))?;
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        Ok((endpoint, path, query))
    }

    /// The headers, with the content type that `form` and `json` stand for.
    fn headers(&self, case: &Source) -> Result<Vec<(String, String)>, Diagnostics> {
        let contents = [&self.form, &self.json, &self.body];
        if let Some(second) = contents.into_iter().flatten().nth(1) {
            return Err(case
                .diagnostic(
                    second.span(),
                    "a request has one of `form`, `json` and `body`",
                )
                .into());
        }
        let kind = match (&self.form, &self.json) {
            (Some(_), _) => Some("application/x-www-form-urlencoded"),
            (_, Some(_)) => Some("application/json"),
            _ => None,
        };
        let kind = kind.map(|kind| ("content-type".to_owned(), kind.to_owned()));
        let given = self
            .headers
            .iter()
            .map(|(name, value)| (name.to_lowercase(), value.clone()));
        Ok(kind.into_iter().chain(given).collect())
    }

    fn content(&self) -> Option<&str> {
        let content = self
            .form
            .as_ref()
            .or(self.json.as_ref())
            .or(self.body.as_ref());
        content.map(|content| content.get_ref().as_str())
    }
}

impl Found {
    fn nothing(decision: Expected, detail: String) -> Self {
        Self {
            decision,
            capability: None,
            params: BTreeMap::new(),
            reason: None,
            policies: BTreeSet::new(),
            groups: BTreeSet::new(),
            within: None,
            quorum: None,
            detail,
        }
    }

    fn invalid(problems: &Diagnostics) -> Self {
        Self::nothing(Expected::Invalid, problems.to_string())
    }

    fn refused(refused: Refused) -> Self {
        Self {
            reason: Some(refused.reason),
            ..Self::nothing(Expected::Refuse, refused.detail)
        }
    }

    fn decided(explanation: &Explanation) -> Self {
        let decision = match explanation.decision {
            Ruling::Allow => Expected::Allow,
            Ruling::Deny => Expected::Deny,
            Ruling::Hold => Expected::Hold,
        };
        let approval = explanation.approval.as_ref();
        Self {
            capability: Some(explanation.capability.clone()),
            params: explanation.params.clone(),
            reason: explanation.reason,
            policies: explanation
                .policies
                .iter()
                .map(|policy| policy.id.clone())
                .collect(),
            groups: approval
                .map(|approval| approval.groups.iter().cloned().collect())
                .unwrap_or_default(),
            within: approval.map(|approval| approval.within_seconds),
            quorum: approval.map(|approval| approval.quorum),
            ..Self::nothing(decision, explanation.detail.clone())
        }
    }
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.passed() { "ok" } else { "FAILED" };
        write!(f, "{word} {}: {}", self.file.display(), self.about)?;
        for mismatch in &self.mismatches {
            let Mismatch {
                key,
                expected,
                found,
            } = mismatch;
            write!(f, "\n  {key}: expected {expected}, found {found}")?;
        }
        match &self.explanation {
            Some(explanation) if !self.passed() => {
                write!(f, "\n  {}", explanation.to_string().replace('\n', "\n  "))
            }
            _ => Ok(()),
        }
    }
}
