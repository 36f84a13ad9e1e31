//! The values that options take, read alike from a long option and from `-o`.

use std::time::Duration;

use crate::config::parse_duration;

/// A duration: `10s`, `1m 30s`, `500ms`; a plain number is seconds.
pub(super) fn any_duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
}

/// A duration for a wait, which must be possible at all.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match any_duration(text)? {
        Duration::ZERO => Err("the time must be longer than 0".to_owned()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_or_are_seconds() {
        assert_eq!(any_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(any_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(any_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(any_duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(any_duration("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(any_duration("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn nonsense_is_no_duration() {
        for text in [
            "",
            "abc",
            "-1",
            "nan",
            "inf",
            "10x",
            "1e300",
            "400d",
            "99999999999999999999y",
        ] {
            assert!(any_duration(text).is_err(), "{text}");
        }
        for text in ["0", "0s", "0.0000000001"] {
            assert!(positive_duration(text).is_err(), "{text}");
        }
    }
}
