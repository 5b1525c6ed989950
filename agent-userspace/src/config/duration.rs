//! Durations as people write them: `10s`, `1m30s`, `500ms`. Used by the settings and the command line.
//! Parsed once at the edge into `std::time::Duration`.
//! INVARIANT: a number without a unit is refused, so that nobody has to guess.

use std::time::Duration;

/// Reads `1h30m`, `10s`, `500ms`; units are `ms`, `s`, `m`, `h`, `d`.
///
/// # Errors
/// Says what was wrong, for a diagnostic.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(DurationError::Empty);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or(DurationError::NoUnit)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        let number: u64 = number.parse().map_err(|_| DurationError::Number)?;
        let millis = number
            .checked_mul(unit_millis(unit)?)
            .ok_or(DurationError::TooLong)?;
        total = total
            .checked_add(Duration::from_millis(millis))
            .ok_or(DurationError::TooLong)?;
        rest = next;
    }
    Ok(total)
}

fn unit_millis(unit: &str) -> Result<u64, DurationError> {
    match unit {
        "ms" => Ok(1),
        "s" => Ok(1_000),
        "m" => Ok(60_000),
        "h" => Ok(3_600_000),
        "d" => Ok(86_400_000),
        _ => Err(DurationError::Unit),
    }
}

/// Why a text is not a duration.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum DurationError {
    /// Nothing there.
    #[error("the duration is empty")]
    Empty,
    /// A number without a unit.
    #[error("the duration has no unit; write for example 10s")]
    NoUnit,
    /// Something that should have been a number.
    #[error("the duration does not start with a whole number; write for example 10s")]
    Number,
    /// More than fits.
    #[error("the duration is too long")]
    TooLong,
    /// A unit that does not exist.
    #[error("the unit is not one of ms, s, m, h, d")]
    Unit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn refuses_what_could_mean_two_things() {
        assert_eq!(parse_duration(""), Err(DurationError::Empty));
        assert_eq!(parse_duration("10"), Err(DurationError::NoUnit));
        assert_eq!(parse_duration("s"), Err(DurationError::Number));
        assert_eq!(parse_duration("10 s"), Err(DurationError::Unit));
        assert_eq!(parse_duration("-1s"), Err(DurationError::Number));
        assert_eq!(
            parse_duration("99999999999999999999d"),
            Err(DurationError::Number)
        );
        assert_eq!(
            parse_duration("18446744073709551615d"),
            Err(DurationError::TooLong)
        );
    }
}
