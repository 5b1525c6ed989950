//! The path of one request, one line per stage. Start reading here.
//! Place on the path: called by the HTTP server for each request of an agent's connection; calls every other stage.
//! INVARIANT: `?` is the only exit, and one place turns a refusal into a response, a record and a metric.

use std::sync::Arc;
use std::time::Instant;

use audit::{IntentFacts, Outcome, Recorded, RefusalFacts, WorkloadFacts};
use http::header::HOST;
use http::{Method, Response, Version};
use hyper::body::Incoming;
use policies::{AgentId, Call, Decision, Digest, Facts, Grant, Held, Permit, Reason};
use vault::Armed;

use crate::accept::Connection;
use crate::approvals::Patience;
use crate::body::Body;
use crate::meter::{CallMeasure, Decided, Stage};
use crate::opaque::Opened;
use crate::refusal::Refusal;
use crate::request::Request;
use crate::response::ResponseBody;
use crate::settings::Settings;
use crate::share::Place;
use crate::upstream::Departure;
use crate::workload::Workload;
use crate::{Proxy, capability, clock, grpc};

impl Proxy {
    /// A request becomes a call, the call a decision, the decision a permit, the permit a record, the record a lent
    /// credential; only that leaves.
    async fn clear<'a>(
        &self,
        mut request: Request,
        connection: &'a Connection,
        settings: &'a Settings,
        notes: &Notes,
        place: Place,
    ) -> Result<(Armed<Body>, Departure<'a>), Refusal> {
        let call = self.map(connection, &mut request, settings).await?;
        let decision = self.decide(call, None, connection);
        let permit = self
            .settle(decision, connection, &mut request, settings)
            .await?;
        request.body.withhold(permit.call().strip());
        let recorded = self.record(permit, connection, &request, notes).await?;
        let departure = Departure::of(
            connection,
            &mut request,
            settings,
            notes.started,
            place,
            recorded.approval().is_some(),
        );
        let armed = self.lend(request.into_outbound(connection.default_port())?, recorded)?;
        Ok((armed, departure))
    }

    /// One request, and its answer.
    async fn serve(
        &self,
        connection: &Connection,
        incoming: http::Request<Incoming>,
        notes: &Notes,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let settings = self.settings();
        let place = connection.admit(&settings.limits)?;
        let request = Request::parse(incoming, connection, &settings.limits)?;
        let (armed, departure) = self
            .clear(request, connection, &settings, notes, place)
            .await?;
        self.upstream().send(armed, departure).await
    }

    /// A connection that is not read is one call, to connect: the same stages, and a tunnel instead of an answer.
    async fn open(&self, connection: &Connection, notes: &Notes) -> Result<Opened, Refusal> {
        let settings = self.settings();
        let place = connection.admit(&settings.limits)?;
        let request = Request::opaque(connection, &settings.limits)?;
        let (armed, departure) = self
            .clear(request, connection, &settings, notes, place)
            .await?;
        self.upstream().open(armed, departure).await
    }

    /// Opens the tunnel of a connection that is not read; a refusal closes it, since nobody there would understand more.
    pub(crate) async fn opened(&self, connection: &Connection) -> Option<Opened> {
        let notes = Notes::of_opaque(connection);
        match self.open(connection, &notes).await {
            Ok(opened) => Some(opened),
            Err(refusal) => {
                self.refuse(connection, &notes, refusal).await;
                None
            }
        }
    }

    /// Serves one request; the only place where a refusal becomes a response, a record and a metric.
    ///
    /// What few calls come to (a wait, a read-ahead, a refusal, a new connection) is in boxes of its own, here and in what is
    /// called: a connection keeps room for the whole of this future, and each request moves it.
    pub(crate) async fn answer(
        &self,
        connection: &Arc<Connection>,
        incoming: http::Request<Incoming>,
    ) -> Response<ResponseBody> {
        let notes = Notes::of(&incoming);
        match self.serve(connection, incoming, &notes).await {
            Ok(response) => response,
            Err(refusal) => Box::pin(self.refuse(connection, &notes, refusal)).await,
        }
    }

    async fn refuse(
        &self,
        connection: &Connection,
        notes: &Notes,
        refusal: Refusal,
    ) -> Response<ResponseBody> {
        let agent = &connection.workload.agent;
        let mut refusal = refusal;
        if !refusal.recorded && self.is_worth_a_record(agent, &mut refusal, connection) {
            let facts = notes.refusal(connection, &refusal);
            let ledger = self.ledger().clone();
            let _turn = connection.share.record().await;
            // Detached, so that an agent that hangs up does not take the record with it.
            let write = tokio::spawn(async move { ledger.refused(facts).await });
            if let Ok(Err(error)) = write.await {
                tracing::error!(%error, reason = %refusal.reason, "a refusal could not be recorded");
                refusal = error.into();
            }
        }
        self.meter()
            .refused(Some(&agent.tenant), Some(agent), refusal.reason);
        self.meter().stage(Stage::Whole, notes.started.elapsed());
        tracing::debug!(%agent, reason = %refusal.reason, detail = %refusal.detail, "refused");
        if notes.grpc {
            grpc::response(&refusal)
        } else {
            refusal.response(notes.version)
        }
    }

    /// A flood that is refused must not become a flood of records; the metric counts every one.
    fn is_worth_a_record(
        &self,
        agent: &AgentId,
        refusal: &mut Refusal,
        connection: &Connection,
    ) -> bool {
        if refusal.reason != Reason::Overloaded {
            return true;
        }
        let key = (
            Some(agent.clone()),
            refusal.reason,
            connection.host.to_string(),
        );
        match self.damper().admit(key, Instant::now()) {
            None => false,
            Some(0) => true,
            Some(left_out) => {
                let more = format!(" {left_out} more before it were not recorded.");
                refusal.detail.push_str(&more);
                true
            }
        }
    }

    /// Writes the intent, when it is this agent's turn.
    async fn record(
        &self,
        permit: Permit,
        connection: &Connection,
        request: &Request,
        notes: &Notes,
    ) -> Result<Recorded, Refusal> {
        let _turn = connection.share.record().await;
        let intent = notes.intent(connection, request);
        Ok(self.ledger().intent(permit, intent).await?)
    }

    /// Which capability this is, under the bundle of this moment.
    async fn map(
        &self,
        connection: &Connection,
        request: &mut Request,
        settings: &Settings,
    ) -> Result<Call, Refusal> {
        capability::map(&self.bundle(), connection, request, &settings.limits).await
    }

    /// Allow passes, deny refuses, hold waits for a person, and what was released is decided again.
    async fn settle(
        &self,
        decision: Decision,
        connection: &Connection,
        request: &mut Request,
        settings: &Settings,
    ) -> Result<Permit, Refusal> {
        let decision = match decision {
            Decision::Allow(permit) => return Ok(permit),
            other => other,
        };
        let patience = Patience {
            settings,
            meter: self.meter(),
        };
        let again = |held: Held, grant| self.decide(held.into_call(), Some(grant), connection);
        Box::pin(self.approvals().settle(decision, request, patience, again)).await
    }

    /// Decides under the bundle of this moment, and counts the decision; a released call is decided anew with its grant.
    fn decide(&self, call: Call, grant: Option<Grant>, connection: &Connection) -> Decision {
        let started = Instant::now();
        let connector = call.connector().clone();
        let capability = call.capability().clone();
        let decision = self.bundle().decide(call, &self.facts(connection), grant);
        self.meter().stage(Stage::Decision, started.elapsed());
        self.meter().call(&CallMeasure {
            agent: &connection.workload.agent,
            connector: &connector,
            capability: &capability,
            decision: match &decision {
                Decision::Allow(_) => Decided::Allow,
                Decision::Deny(_) => Decided::Deny,
                Decision::Hold(_) => Decided::Hold,
            },
        });
        decision
    }

    fn facts(&self, connection: &Connection) -> Facts {
        Facts {
            now: clock::now(),
            disabled: self.workloads().is_disabled(&connection.workload.agent),
        }
    }

    /// Lends the credential; a refusal here comes after the intent, so that it is recorded as its outcome.
    fn lend(
        &self,
        request: http::Request<Body>,
        recorded: Recorded,
    ) -> Result<Armed<Body>, Refusal> {
        self.vault().lend(request, recorded).map_err(|error| {
            let refusal = Refusal::new(error.reason(), error.to_string()).already_recorded();
            let outcome = Outcome {
                reason: Some(refusal.reason),
                detail: Some(refusal.detail.clone()),
                ..Outcome::new(clock::now())
            };
            self.ledger().outcome(error.into_owed(), outcome);
            refusal
        })
    }
}

/// What is written down about a request whatever becomes of it.
struct Notes {
    started: Instant,
    version: Version,
    /// Whether the agent's client reads refusals as gRPC.
    grpc: bool,
    method: String,
    path: String,
    host: Option<String>,
    trace_id: String,
}

impl Notes {
    fn of(incoming: &http::Request<Incoming>) -> Self {
        let host = incoming.uri().authority().map(ToString::to_string);
        let header = || {
            incoming
                .headers()
                .get(HOST)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            started: Instant::now(),
            version: incoming.version(),
            grpc: grpc::asked(incoming.headers()),
            method: incoming.method().to_string(),
            path: incoming.uri().path().to_owned(),
            host: host.or_else(header),
            trace_id: trace_id(),
        }
    }

    fn of_opaque(connection: &Connection) -> Self {
        Self {
            started: Instant::now(),
            version: Version::HTTP_11,
            grpc: false,
            method: Method::CONNECT.to_string(),
            path: "/".to_owned(),
            host: Some(connection.endpoint().to_string()),
            trace_id: trace_id(),
        }
    }

    fn intent(&self, connection: &Connection, request: &Request) -> IntentFacts {
        IntentFacts {
            workload: workload_facts(&connection.workload),
            method: request.method().to_string(),
            path: request.path().to_owned(),
            host: connection.host.clone(),
            request_digest: request.body.read().map(|bytes| Digest::of(bytes)),
            at: clock::now(),
            trace_id: self.trace_id.clone(),
        }
    }

    fn refusal(&self, connection: &Connection, refusal: &Refusal) -> RefusalFacts {
        let agent = &connection.workload.agent;
        let about = refusal.about.as_deref();
        let call = about.map(|about| &about.call);
        RefusalFacts {
            agent: Some(agent.clone()),
            workload: Some(workload_facts(&connection.workload)),
            connection: call.map(|call| call.connection().clone()),
            capability: call.map(|call| call.capability().clone()),
            params: call.map(|call| call.params().clone()).unwrap_or_default(),
            policies: about
                .map(|about| about.policies.clone())
                .unwrap_or_default(),
            policy_version: about.and_then(|about| about.version),
            approval: about.and_then(|about| about.approval),
            host: self.host.clone(),
            method: Some(self.method.clone()),
            path: Some(self.path.clone()),
            detail: refusal.detail.clone(),
            trace_id: self.trace_id.clone(),
            ..RefusalFacts::new(agent.tenant.clone(), refusal.reason, clock::now())
        }
    }
}

/// 32 hexadecimal digits, as W3C Trace Context wants them; empty where the kernel has no randomness.
fn trace_id() -> String {
    clock::entropy()
        .map(|bytes| format!("{:032x}", u128::from_be_bytes(bytes)))
        .unwrap_or_default()
}

/// The record's view of a workload.
pub(crate) fn workload_facts(workload: &Workload) -> WorkloadFacts {
    WorkloadFacts {
        id: workload.id,
        pid: workload.pid,
        exe: workload.exe.clone(),
        cgroup: Some(workload.cgroup.clone()),
    }
}
