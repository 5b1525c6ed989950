//! What the benchmark found, as a table for people and as JSON for later runs.
//! Invariant: medians over rounds of one run; ratios are made of medians, and never compare two runs.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::load::{Measured, Mode};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum System {
    Direct,
    Nginx,
    Sluice,
}

/// One run of the generator against one system.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    system: System,
    mode: Mode,
    per_second: f64,
    /// CPU time of the system under test per request, microseconds; None for direct.
    cpu_us: Option<f64>,
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
        let per_second = measured.requests as f64 / measured.seconds;
        // The generator's warm-up is a tenth more work than it counts.
        let cpu_us =
            cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / (measured.requests.max(1) as f64 * 1.1));
        Self {
            system,
            mode,
            per_second,
            cpu_us,
            measured,
        }
    }
}

/// The whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: String,
    build: &'static str,
    method: String,
    reduced: bool,
    pub(super) rounds: Vec<Round>,
}

impl Report {
    pub(super) fn new(rounds: u32, milliseconds: u64, reduced: bool) -> Result<Self> {
        let build = if cfg!(debug_assertions) {
            "dev profile: not a measurement"
        } else {
            "release"
        };
        let method = format!(
            "medians of {rounds} interleaved rounds of {:.1} s each, 32 loops, GET of a 130-byte answer, HTTP/1.1 over TLS 1.3 on both legs, \
             no resumption; load generator and upstream on CPU 0, system under test on CPU 1; Sluice writes a durable intent per request",
            milliseconds as f64 / 1000.0
        );
        Ok(Self {
            machine: machine()?,
            build,
            method,
            reduced,
            rounds: Vec::new(),
        })
    }

    /// The medians and ratios.
    pub(super) fn table(&self) -> String {
        let mut lines = vec![
            format!("machine: {}", self.machine),
            format!(
                "build:   {}{}",
                self.build,
                if self.reduced {
                    ", Sluice in reduced mode"
                } else {
                    ""
                }
            ),
            format!("method:  {}", self.method),
            String::new(),
            format!(
                "{:<30}{:>10}{:>10}{:>10}{:>16}{:>15}",
                "", "direct", "sluice", "nginx", "sluice/direct", "sluice/nginx"
            ),
        ];
        type Pick = fn(&Round) -> Option<f64>;
        let rows: [(&str, Mode, Pick); 8] = [
            ("kept connections: requests/s", Mode::Requests, |round| {
                Some(round.per_second)
            }),
            ("  p50 us", Mode::Requests, |round| {
                Some(round.measured.p50_us as f64)
            }),
            ("  p99 us", Mode::Requests, |round| {
                Some(round.measured.p99_us as f64)
            }),
            ("  CPU us per request", Mode::Requests, |round| round.cpu_us),
            ("new connections/s", Mode::Connections, |round| {
                Some(round.per_second)
            }),
            ("  p50 us", Mode::Connections, |round| {
                Some(round.measured.p50_us as f64)
            }),
            ("  p99 us", Mode::Connections, |round| {
                Some(round.measured.p99_us as f64)
            }),
            ("  CPU us per connection", Mode::Connections, |round| {
                round.cpu_us
            }),
        ];
        for (title, mode, pick) in rows {
            let of = |system| self.median(system, mode, pick);
            let (direct, sluice, nginx) =
                (of(System::Direct), of(System::Sluice), of(System::Nginx));
            let number =
                |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
            let ratio = |base: Option<f64>| match (sluice, base) {
                (Some(sluice), Some(base)) if base > 0.0 => format!("{:.2}", sluice / base),
                _ => "-".into(),
            };
            lines.push(format!(
                "{title:<30}{:>10}{:>10}{:>10}{:>16}{:>15}",
                number(direct),
                number(sluice),
                number(nginx),
                ratio(direct),
                ratio(nginx)
            ));
        }
        let errors: u64 = self.rounds.iter().map(|round| round.measured.errors).sum();
        let first = self.rounds.iter().find_map(|round| {
            let error = round.measured.first_error.as_deref()?;
            Some(format!(" (first: {:?}: {error})", round.system))
        });
        lines.push(format!("errors: {errors}{}", first.unwrap_or_default()));
        lines.join("\n")
    }

    fn median(&self, system: System, mode: Mode, pick: fn(&Round) -> Option<f64>) -> Option<f64> {
        let rounds = self
            .rounds
            .iter()
            .filter(|round| round.system == system && round.mode == mode);
        let mut values: Vec<f64> = rounds.filter_map(pick).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }
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
        let mut report = Report::new(3, 2_000, false).unwrap();
        for (system, counts) in [
            (System::Direct, [100, 200, 900]),
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
        let line = table.lines().find(|line| line.starts_with("kept")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words,
            [
                "kept",
                "connections:",
                "requests/s",
                "200",
                "50",
                "-",
                "0.25",
                "-"
            ]
        );
    }
}
