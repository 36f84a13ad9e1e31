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

/// A duration that can be none.
pub(super) fn duration_or_off(text: &str) -> Result<Duration, String> {
    match text {
        "off" => Ok(Duration::ZERO),
        _ => any_duration(text),
    }
}

/// A number of bytes: `500M`, `2 GiB`; a plain number is bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>();
    let size = size.map_err(|_| "expected a size such as 500M, 2GiB or a number of bytes")?;
    Ok(size.as_u64())
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

    #[test]
    fn sizes_have_units_or_are_bytes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        assert_eq!(size("500MB"), Ok(500_000_000));
        assert_eq!(size("0"), Ok(0));
        for text in ["", "-1", "many", "1 GiX"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
