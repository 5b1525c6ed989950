//! `[limits]`: bounds on time, number and size on the path of a call, each with its default, unit and range.
//! Read by `merge` into the path's own type, whose fields have the same names.
//! INVARIANT: a bound that would switch itself off, or let one agent take everything, is an error with its place.

use std::time::Duration;

use mitm_proxy::Limits;
use policies::Source;
use serde::Deserialize;
use toml::Spanned;

use super::duration::parse_duration;
use super::merge::Merge;

/// A value as written, before it is known whether it serves.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(i64),
    Text(String),
}

/// What a key may hold.
enum Kind {
    /// A number of things.
    Count(u64, u64),
    /// Bytes: `64KiB`, `1MiB`.
    Size(u64, u64),
    /// `10s`, in milliseconds here.
    Time(u64, u64),
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Every key once: its name, which is the field's, its kind, and the least and the most that it may be.
macro_rules! limits {
    ($($key:ident: $kind:ident($least:expr, $most:expr);)*) => {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct LimitsTable {
            $($key: Option<Spanned<Written>>,)*
        }

        impl Merge<'_> {
            pub(super) fn lay_limits(&mut self, place: &Source, table: LimitsTable) {
                $(
                    let key = concat!("limits.", stringify!($key));
                    if let Some(value) = self.limit(place, key, table.$key, &Kind::$kind($least, $most)) {
                        Amount(value).put(&mut self.config.limits.$key);
                    }
                )*
            }
        }
    };
}

limits! {
    answer: Time(SECOND, 24 * HOUR);
    body: Time(SECOND, HOUR);
    body_bytes: Size(KIB, 64 * MIB);
    buffered: Size(MIB, 64 * GIB);
    buffered_per_agent: Size(MIB, 64 * GIB);
    calls: Count(1, 1_000_000);
    calls_per_agent: Count(1, 1_000_000);
    connect: Time(100, 5 * MINUTE);
    connections: Count(1, 1_000_000);
    connections_per_agent: Count(1, 1_000_000);
    drain: Time(0, HOUR);
    handshake: Time(100, 5 * MINUTE);
    head: Time(100, HOUR);
    head_bytes: Size(4 * KIB, MIB);
    headers: Count(16, 1_000);
    idle: Time(SECOND, HOUR);
    idle_connections: Count(0, 100_000);
    names: Count(1, 1_000_000);
    names_kept: Time(MINUTE, 7 * 24 * HOUR);
    names_per_agent: Count(1, 1_000_000);
    pending_approvals: Count(1, 100_000);
    questions: Count(1, 1_000_000);
    questions_burst: Count(1, 1_000_000);
    questions_idle: Time(100, 5 * MINUTE);
    request_bytes: Size(MIB, 1_024 * GIB);
    resolved: Time(0, HOUR);
    silence: Time(SECOND, 24 * HOUR);
    stall: Time(100, HOUR);
    streams: Count(1, 10_000);
    tunnel_bytes: Size(KIB, 1_024 * GIB);
    tunnel_frames: Count(1, 1_000_000_000);
    tunnel_idle: Time(SECOND, 24 * HOUR);
    tunnel_time: Time(SECOND, 30 * 24 * HOUR);
    upstream_handshake: Time(100, 5 * MINUTE);
}

/// A checked value on its way into a field of whatever type.
struct Amount(u64);

trait Field {
    fn set(&mut self, amount: u64);
}

impl Amount {
    fn put(self, field: &mut impl Field) {
        field.set(self.0);
    }
}

impl Field for usize {
    fn set(&mut self, amount: u64) {
        *self = usize::try_from(amount).unwrap_or(usize::MAX);
    }
}

impl Field for u64 {
    fn set(&mut self, amount: u64) {
        *self = amount;
    }
}

impl Field for u32 {
    fn set(&mut self, amount: u64) {
        *self = u32::try_from(amount).unwrap_or(u32::MAX);
    }
}

impl Field for Duration {
    fn set(&mut self, amount: u64) {
        *self = Duration::from_millis(amount);
    }
}

impl Merge<'_> {
    fn limit(
        &mut self,
        place: &Source,
        key: &str,
        value: Option<Spanned<Written>>,
        kind: &Kind,
    ) -> Option<u64> {
        let value = self.once(place, key, value)?;
        match read(value.get_ref(), kind) {
            Ok(amount) => Some(amount),
            Err((message, hint)) => {
                let mut error = place.diagnostic(value.span(), message);
                error.hint = Some(hint);
                self.errors.push(error);
                None
            }
        }
    }
}

/// The amount, or what is wrong with it and what to write.
fn read(written: &Written, kind: &Kind) -> Result<u64, (String, String)> {
    match (kind, written) {
        (Kind::Count(least, most), Written::Number(number)) => {
            let amount = u64::try_from(*number).ok();
            let fits = amount.filter(|amount| (*least..=*most).contains(amount));
            fits.ok_or_else(|| {
                (
                    format!("{number} is out of range"),
                    format!("write a number from {least} to {most}"),
                )
            })
        }
        (Kind::Count(..), Written::Text(text)) => Err((
            format!("`{text}` is not a number"),
            "write it without quotes".to_owned(),
        )),
        (Kind::Size(least, most), written) => {
            let range = || format!("write a size from {} to {}", size(*least), size(*most));
            let amount = match written {
                Written::Text(text) => parse_size(text),
                Written::Number(_) => None,
            };
            let text = written.text();
            let amount = amount
                .ok_or_else(|| (format!("`{text}` is not a size such as \"64KiB\""), range()))?;
            if (*least..=*most).contains(&amount) {
                Ok(amount)
            } else {
                Err((format!("`{text}` is out of range"), range()))
            }
        }
        (Kind::Time(least, most), written) => {
            let range = || format!("write a time from {} to {}", time(*least), time(*most));
            let text = written.text();
            let amount = match written {
                Written::Text(text) => parse_duration(text).map_err(|error| error.to_string()),
                Written::Number(_) => Err(format!("`{text}` is not a time such as \"10s\"")),
            };
            let amount = amount.map_err(|message| (message, range()))?;
            let amount = u64::try_from(amount.as_millis()).unwrap_or(u64::MAX);
            if (*least..=*most).contains(&amount) {
                Ok(amount)
            } else {
                Err((format!("`{text}` is out of range"), range()))
            }
        }
    }
}

impl Written {
    fn text(&self) -> String {
        match self {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text.clone(),
        }
    }
}

const UNITS: [(&str, u64); 4] = [("KiB", KIB), ("MiB", MIB), ("GiB", GIB), ("B", 1)];

fn parse_size(text: &str) -> Option<u64> {
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number = text.strip_suffix(unit)?.trim_end();
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    number
        .parse::<u64>()
        .ok()
        .filter(|_| digits)?
        .checked_mul(*factor)
}

fn size(bytes: u64) -> String {
    let unit = UNITS
        .iter()
        .rev()
        .find(|(unit, factor)| *unit != "B" && bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(
        || format!("{bytes}B"),
        |(unit, factor)| format!("{}{unit}", bytes / factor),
    )
}

fn time(millis: u64) -> String {
    for (unit, factor) in [("h", HOUR), ("m", MINUTE), ("s", SECOND)] {
        if millis >= factor && millis.is_multiple_of(factor) {
            return format!("{}{unit}", millis / factor);
        }
    }
    format!("{millis}ms")
}

/// What two keys say together: `None`, or the two that make no sense, and why.
pub(super) fn contradiction(limits: &Limits) -> Option<([&'static str; 2], String)> {
    let pairs = [
        (
            "calls_per_agent",
            limits.calls_per_agent,
            "calls",
            limits.calls,
        ),
        (
            "connections_per_agent",
            limits.connections_per_agent,
            "connections",
            limits.connections,
        ),
        (
            "buffered_per_agent",
            limits.buffered_per_agent,
            "buffered",
            limits.buffered,
        ),
        (
            "body_bytes",
            limits.body_bytes,
            "buffered_per_agent",
            limits.buffered_per_agent,
        ),
        (
            "names_per_agent",
            limits.names_per_agent,
            "names",
            limits.names,
        ),
    ];
    pairs
        .into_iter()
        .find(|(_, part, _, whole)| part > whole)
        .map(|(key, part, other, whole)| {
            let why = format!("`limits.{key}` ({part}) is more than `limits.{other}` ({whole})");
            ([key, other], why)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_and_written() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("1 MiB", MIB),
            ("0B", 0),
            ("2GiB", 2 * GIB),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "64",
            "KiB",
            "-1KiB",
            "+1KiB",
            "1.5MiB",
            "64kb",
            "99999999999GiB",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(size(4 * KIB), "4KiB");
        assert_eq!(size(1_024 * GIB), "1024GiB");
        assert_eq!(size(1500), "1500B");
        assert_eq!(time(90_000), "90s");
        assert_eq!(time(24 * HOUR), "24h");
        assert_eq!(time(100), "100ms");
    }

    #[test]
    fn the_defaults_do_not_contradict_themselves() {
        assert_eq!(contradiction(&Limits::default()), None);
    }
}
