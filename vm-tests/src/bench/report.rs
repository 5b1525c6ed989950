//! What the benchmark found, as a table for people and as JSON for later runs.
//! Invariant: medians over rounds of one run; ratios are made of medians, and never compare two runs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::load::{Measured, Mode};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum System {
    Direct,
    Haproxy,
    Nginx,
    Relay,
    Sluice,
    SluiceGrouped,
    SluiceLarge,
    Squid,
}

impl System {
    /// In the order of the table.
    const ALL: [System; 8] = [
        System::Direct,
        System::Relay,
        System::Nginx,
        System::Haproxy,
        System::Squid,
        System::Sluice,
        System::SluiceGrouped,
        System::SluiceLarge,
    ];

    /// The name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Relay => "relay",
            Self::Sluice => "sluice",
            Self::SluiceGrouped => "grouped",
            Self::SluiceLarge => "large",
            Self::Squid => "squid",
        }
    }
}

/// One run of the generator against one system.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    system: System,
    mode: Mode,
    per_second: f64,
    mb_per_second: f64,
    /// CPU time of the system under test per request, microseconds; None for direct.
    cpu_us: Option<f64>,
    /// By how much the system grew for each open connection; in `Idle` only.
    kib: Option<f64>,
    #[serde(flatten)]
    measured: Measured,
}

impl Round {
    pub(super) fn new(
        system: System,
        mode: Mode,
        measured: Measured,
        cpu: Option<Duration>,
    ) -> Self {
        let seconds = measured.seconds.max(1e-9);
        // The generator's warm-up is a tenth more work than it counts.
        let cpu_us =
            cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / (measured.requests.max(1) as f64 * 1.1));
        Self {
            system,
            mode,
            per_second: measured.requests as f64 / seconds,
            mb_per_second: measured.bytes as f64 / seconds / 1e6,
            cpu_us,
            kib: None,
            measured,
        }
    }

    pub(super) fn idle(system: System, mode: Mode, measured: Measured, kib: f64) -> Self {
        Self {
            kib: Some(kib),
            ..Self::new(system, mode, measured, None)
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured {
            requests,
            errors,
            p50_us,
            p99_us,
            ..
        } = &self.measured;
        write!(
            f,
            "{requests} done, {errors} errors, p50 {p50_us} us, p99 {p99_us} us"
        )
    }
}

/// One line of the table.
pub(super) struct Row {
    pub(super) title: &'static str,
    mode: Mode,
    digits: usize,
    pick: fn(&Round) -> Option<f64>,
}

impl Row {
    pub(super) fn number(&self, value: f64) -> String {
        format!("{value:.*}", self.digits)
    }
}

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: String,
    build: &'static str,
    method: String,
    pub(super) reduced: bool,
    /// Records in each daemon's logs at the end.
    pub(super) records: BTreeMap<&'static str, u64>,
    /// What was measured in other ways.
    pub(super) further: BTreeMap<&'static str, serde_json::Value>,
    pub(super) rounds: Vec<Round>,
}

impl Report {
    pub(super) fn new(rounds: u32, quick: bool, reduced: bool) -> Result<Self> {
        let build = if cfg!(debug_assertions) {
            "dev profile: not a measurement"
        } else {
            "release"
        };
        let seconds = |mode| super::milliseconds(mode, quick) as f64 / 1000.0;
        let method = format!(
            "medians of {rounds} interleaved rounds of {} s for requests and connections (32 loops, HTTP/1.1 and TLS 1.3 on both legs, a 118-byte answer, \
             no resumption) and {} s for the rest; load generator and upstream on CPU 0, system under test alone on CPU 1; sluice writes a durable intent \
             per request, grouped is [audit] reads = \"grouped\", large has 1,000 agents and 2,000 policies; squid (ssl-bump) is asked by CONNECT",
            seconds(Mode::Requests),
            seconds(Mode::Latency),
        );
        Ok(Self {
            machine: machine()?,
            build,
            method,
            reduced,
            records: BTreeMap::new(),
            further: BTreeMap::new(),
            rounds: Vec::new(),
        })
    }

    /// Machine and build, in a line.
    pub(super) fn heading(&self) -> String {
        let mode = if self.reduced {
            ", Sluice in reduced mode"
        } else {
            ""
        };
        format!("{}; {} build{mode}", self.machine, self.build)
    }

    /// Every line of the table.
    pub(super) fn rows(&self) -> Vec<Row> {
        let row = |title, mode, digits, pick| Row {
            title,
            mode,
            digits,
            pick,
        };
        vec![
            row("requests/s", Mode::Requests, 0, rate),
            row("  CPU us per request", Mode::Requests, 1, cpu),
            row("requests/s, HTTP/2", Mode::RequestsH2, 0, rate),
            row("  CPU us per request", Mode::RequestsH2, 1, cpu),
            row("new connections/s", Mode::Connections, 0, rate),
            row("  CPU us per connection", Mode::Connections, 0, cpu),
            row("at a low rate: p50 us", Mode::Latency, 0, p50),
            row("at a low rate: p99 us", Mode::Latency, 0, p99),
            row("download MB/s", Mode::Download, 0, megabytes),
            row("upload MB/s", Mode::Upload, 0, megabytes),
            row("event delay: p50 us", Mode::Events, 0, p50),
            row("event delay: p99 us", Mode::Events, 0, p99),
            row("KiB each of 1,000 open", Mode::Idle, 1, kib),
            row("KiB each of 10,000 open", Mode::IdleMany, 1, kib),
        ]
    }

    /// The medians and ratios.
    pub(super) fn table(&self) -> String {
        let systems: Vec<System> = System::ALL
            .into_iter()
            .filter(|system| self.rounds.iter().any(|round| round.system == *system))
            .collect();
        let mut head = format!("{:<26}", "");
        for system in &systems {
            head.push_str(&format!("{:>10}", system.name()));
        }
        let mut lines = vec![
            self.heading(),
            self.method.clone(),
            String::new(),
            head + "  sluice/nginx  grouped/nginx  large/sluice  sluice/squid",
        ];
        for row in self.rows() {
            let medians: Vec<Option<f64>> = systems
                .iter()
                .map(|system| self.median(*system, &row))
                .collect();
            if medians.iter().all(Option::is_none) {
                continue;
            }
            let mut line = format!("{:<26}", row.title);
            for median in medians {
                let number = median.map_or("-".into(), |value| row.number(value));
                line.push_str(&format!("{number:>10}"));
            }
            for (one, other, width) in [
                (System::Sluice, System::Nginx, 14),
                (System::SluiceGrouped, System::Nginx, 15),
                (System::SluiceLarge, System::Sluice, 14),
                (System::Sluice, System::Squid, 14),
            ] {
                let ratio = match (self.median(one, &row), self.median(other, &row)) {
                    (Some(one), Some(other)) if other > 0.0 => format!("{:.2}", one / other),
                    _ => "-".into(),
                };
                line.push_str(&format!("{ratio:>width$}"));
            }
            lines.push(line);
        }
        lines.push(format!("audit records at the end: {:?}", self.records));
        let errors: u64 = self.rounds.iter().map(|round| round.measured.errors).sum();
        let first = self.rounds.iter().find_map(|round| {
            let error = round.measured.first_error.as_deref()?;
            Some(format!(" (first: {}: {error})", round.system.name()))
        });
        lines.push(format!("errors: {errors}{}", first.unwrap_or_default()));
        lines.join("\n")
    }

    /// The median over the rounds of one system.
    pub(super) fn median(&self, system: System, row: &Row) -> Option<f64> {
        let rounds = self
            .rounds
            .iter()
            .filter(|round| round.system == system && round.mode == row.mode);
        median(rounds.filter_map(row.pick).collect())
    }
}

/// The one in the middle.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn rate(round: &Round) -> Option<f64> {
    Some(round.per_second)
}

fn megabytes(round: &Round) -> Option<f64> {
    Some(round.mb_per_second)
}

fn cpu(round: &Round) -> Option<f64> {
    round.cpu_us
}

fn kib(round: &Round) -> Option<f64> {
    round.kib
}

fn p50(round: &Round) -> Option<f64> {
    Some(round.measured.p50_us as f64)
}

fn p99(round: &Round) -> Option<f64> {
    Some(round.measured.p99_us as f64)
}

/// How many CPUs the machine has, whatever this process may use.
pub(super) fn cpus() -> Result<usize> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    Ok(cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count())
}

/// CPU, count, memory and kernel: what a number means nothing without.
fn machine() -> Result<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim());
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_default();
    Ok(format!(
        "{}, {} CPUs, {} GiB, Linux {}",
        model.unwrap_or("unknown CPU"),
        cpus()?,
        kib / 1024 / 1024,
        std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_made_of_medians() {
        let mut report = Report::new(3, true, false).unwrap();
        for (system, counts) in [
            (System::Nginx, [100, 200, 900]),
            (System::Sluice, [50, 100, 10]),
        ] {
            for requests in counts {
                let measured = Measured {
                    requests,
                    seconds: 1.0,
                    ..Measured::default()
                };
                report
                    .rounds
                    .push(Round::new(system, Mode::Requests, measured, None));
            }
        }
        let table = report.table();
        let line = table
            .lines()
            .find(|line| line.starts_with("requests/s"))
            .unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["requests/s", "200", "50", "0.25", "-", "-", "-"]);
    }
}
