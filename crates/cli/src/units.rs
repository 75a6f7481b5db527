//! Amounts as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes, to three digits.
pub(crate) fn bytes(count: u64) -> String {
    let (step, units) = (1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]);
    let mut whole = count;
    let mut tenths = 0;
    let mut unit = 0;
    while whole >= step && unit + 1 < units.len() {
        tenths = whole % step * 10 / step;
        whole /= step;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit > 0 && whole < 100 {
        format!("{whole}.{tenths} {name}")
    } else {
        format!("{whole} {name}")
    }
}

/// How long ago a Unix time was.
pub(crate) fn since(unix: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    span(Duration::from_secs(now.as_secs().saturating_sub(unix)))
}

/// A time span, to its two largest units.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let [days, hours, minutes] = [seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60];
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        for (count, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (150 * 1024, "150 KiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), want);
        }
    }

    #[test]
    fn spans_have_two_units() {
        for (seconds, want) in
            [(0, "0s"), (59, "59s"), (61, "1m01s"), (3660, "1h01m"), (90_000, "1d01h")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), want);
        }
    }
}
