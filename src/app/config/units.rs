//! Scalars as people write them: `500ms`, `16MiB`, `10.0.0.11:5432`, `on`. Each parser answers with what is
//! expected when it is not that.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_yaml::Value;

use super::reader::Parsed;

pub(super) fn text(value: &Value) -> Parsed<String> {
    match value {
        Value::String(text) if text.is_empty() => Err("must not be empty".to_owned()),
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Err("text is expected: put it in quotes".to_owned()),
        other => Err(format!("text is expected, not {}", kind(other))),
    }
}

/// A type that reads itself from text.
pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(value: &Value) -> Parsed<T> {
    text(value)?.parse().map_err(|error: T::Err| error.to_string())
}

/// Without a slash at its end: what lies beside a directory has its name with a suffix.
pub(super) fn path(value: &Value) -> Parsed<PathBuf> {
    text(value).map(|text| Path::new(&text).components().collect())
}

pub(super) fn texts(value: &Value) -> Parsed<Vec<String>> {
    let Value::Sequence(items) = value else { return Err("a list of names is expected".to_owned()) };
    items.iter().map(text).collect()
}

/// A whole number within `range`.
pub(super) fn number(range: std::ops::RangeInclusive<u32>) -> impl FnOnce(&Value) -> Parsed<u32> {
    move |value| {
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n));
        number.ok_or_else(|| format!("a whole number from {} to {} is expected", range.start(), range.end()))
    }
}

/// One of the given words.
pub(super) fn word<T: Clone>(words: &[(&str, T)]) -> impl FnOnce(&Value) -> Parsed<T> {
    move |value| {
        let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        found.map(|(_, meaning)| meaning.clone()).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("must be one of {}", words.join(", "))
        })
    }
}

/// `on` and `off`, or YAML's own booleans.
pub(super) fn on_off(value: &Value) -> Parsed<bool> {
    match value {
        Value::Bool(on) => Ok(*on),
        Value::String(text) if text == "on" => Ok(true),
        Value::String(text) if text == "off" => Ok(false),
        _ => Err("must be on or off".to_owned()),
    }
}

/// `500ms`, `30s`, `5min`, `1h`: a number without a unit is not guessed at. Zero is no duration.
pub(super) fn duration(value: &Value) -> Parsed<Duration> {
    let expected = || "a duration with its unit is expected, such as 500ms, 30s or 5min".to_owned();
    let text = value.as_str().ok_or_else(expected)?;
    let duration = humantime::parse_duration(text).map_err(|_| expected())?;
    if duration.is_zero() { Err("must be longer than zero".to_owned()) } else { Ok(duration) }
}

/// A limit that can be `off`.
pub(super) fn duration_or_off(value: &Value) -> Parsed<Option<Duration>> {
    let off = matches!(value, Value::Bool(false)) || value.as_str() == Some("off");
    if off { Ok(None) } else { duration(value).map(Some) }
}

/// `16MiB`, `64kB`, `8192B`. As in PostgreSQL, `MB` and `MiB` are both 1024 * 1024 bytes.
pub(super) fn size(value: &Value) -> Parsed<u64> {
    let expected = || "a size with its unit is expected, such as 64kB, 16MiB or 10GiB".to_owned();
    let text = value.as_str().ok_or_else(expected)?;
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "B" => 0,
        "kB" | "KB" | "KiB" => 10,
        "MB" | "MiB" => 20,
        "GB" | "GiB" => 30,
        "TB" | "TiB" => 40,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    number.checked_mul(1 << shift).ok_or_else(|| "is too large".to_owned())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a mapping",
        Value::Tagged(_) => "a tagged value",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_yaml::Value;

    use super::{duration, number, on_off, path, size};

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).expect("the test's own YAML")
    }

    #[test]
    fn durations() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("5min", 300_000), ("1h", 3_600_000)] {
            assert_eq!(duration(&yaml(text)), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["5", "1.5", "0s", "s", "soon", "-1s", "[1s]"] {
            assert!(duration(&yaml(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_ends_in_a_name() {
        for (text, expected) in [("/srv/pg1/", "/srv/pg1"), ("pg1//data/.", "pg1/data"), ("/", "/")] {
            // Two paths that differ only in that are equal.
            assert_eq!(path(&yaml(text)).map(std::path::PathBuf::into_os_string), Ok(expected.into()));
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0B", 0), ("64kB", 65_536), ("16MiB", 16 << 20), ("16MB", 16 << 20), ("1 GiB", 1 << 30)]
        {
            assert_eq!(size(&yaml(text)), Ok(bytes), "{text}");
        }
        for text in ["16", "MiB", "16mb", "-1MB", "1.5GiB", "99999999999TiB"] {
            assert!(size(&yaml(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_and_switches() {
        assert_eq!(number(1..=10)(&yaml("10")), Ok(10));
        for text in ["0", "11", "-1", "1.5", "'3'", "99999999999"] {
            assert!(number(1..=10)(&yaml(text)).is_err(), "{text}");
        }
        assert_eq!([on_off(&yaml("on")), on_off(&yaml("false"))], [Ok(true), Ok(false)]);
        assert!(on_off(&yaml("maybe")).is_err());
    }
}
