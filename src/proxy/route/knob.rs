//! The `bellwether.*` settings: a client's own say in the routing. The endpoint answers them itself; a server
//! never hears of them unless they come inside a text with other statements.

use std::time::Duration;

use crate::pg::{Lsn, SqlState};

/// `bellwether.route`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Reads to fresh standbys, the rest to the primary.
    #[default]
    Auto,
    Primary,
    /// A fresh standby or an error, never the primary.
    Standby,
}

impl Route {
    pub fn as_str(self) -> &'static str {
        match self {
            Route::Auto => "auto",
            Route::Primary => "primary",
            Route::Standby => "standby",
        }
    }

    pub fn parse(word: &str) -> Option<Route> {
        [Route::Auto, Route::Primary, Route::Standby]
            .into_iter()
            .find(|route| word.eq_ignore_ascii_case(route.as_str()))
    }
}

/// `bellwether.consistency`: what a read on a standby must have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever `max_lag` admits.
    Eventual,
    /// Also the session's own last write.
    #[default]
    Session,
    /// Also every commit that anybody was told of: only the primary has.
    Global,
}

impl Consistency {
    pub fn as_str(self) -> &'static str {
        match self {
            Consistency::Eventual => "eventual",
            Consistency::Session => "session",
            Consistency::Global => "global",
        }
    }

    pub fn parse(word: &str) -> Option<Consistency> {
        [Consistency::Eventual, Consistency::Session, Consistency::Global]
            .into_iter()
            .find(|consistency| word.eq_ignore_ascii_case(consistency.as_str()))
    }
}

/// `bellwether.max_lag`: `1s`, `16MiB`, or both (`16MiB, 1s`); what is not said stays as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaxLag {
    pub bytes: Option<u64>,
    pub time: Option<Duration>,
}

impl MaxLag {
    pub fn parse(text: &str) -> Option<MaxLag> {
        let mut max_lag = MaxLag::default();
        for part in text.split(',') {
            let part = part.trim();
            let unit_at = part.find(|c: char| !c.is_ascii_digit())?;
            let (number, unit) = (part[..unit_at].parse::<u64>().ok()?, part[unit_at..].trim_start());
            match (size_unit(unit), time_unit_millis(unit)) {
                (Some(factor), _) if max_lag.bytes.is_none() => {
                    max_lag.bytes = Some(number.checked_mul(factor)?);
                }
                (_, Some(factor)) if max_lag.time.is_none() => {
                    max_lag.time = Some(Duration::from_millis(number.checked_mul(factor)?));
                }
                _ => return None,
            }
        }
        Some(max_lag)
    }
}

/// PostgreSQL's memory units (1024 each, "kB" so spelled) and the IEC ones.
fn size_unit(unit: &str) -> Option<u64> {
    match unit {
        "B" => Some(1),
        "kB" | "KiB" => Some(1 << 10),
        "MB" | "MiB" => Some(1 << 20),
        "GB" | "GiB" => Some(1 << 30),
        _ => None,
    }
}

/// PostgreSQL's time units, from a millisecond up.
fn time_unit_millis(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    }
}

/// One setting with its value; `None`: back to the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knob {
    Route(Option<Route>),
    Consistency(Option<Consistency>),
    MaxLag(Option<MaxLag>),
    MinLsn(Option<Lsn>),
}

/// How long a SET lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Session,
    /// SET LOCAL: until the transaction's end.
    Local,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Route,
    Consistency,
    MaxLag,
    MinLsn,
    /// The session's last write position.
    Lsn,
}

impl Shown {
    /// The column's name in the answer.
    pub fn name(self) -> &'static str {
        match self {
            Shown::Route => "bellwether.route",
            Shown::Consistency => "bellwether.consistency",
            Shown::MaxLag => "bellwether.max_lag",
            Shown::MinLsn => "bellwether.min_lsn",
            Shown::Lsn => "bellwether.lsn",
        }
    }
}

/// A command about these settings, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnobCommand {
    Set(Scope, Knob),
    /// The same effect as SET ... TO DEFAULT, another command tag.
    Reset(Knob),
    Show(Shown),
    /// To be answered with this error.
    Invalid(InvalidKnob),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKnob {
    #[error("unrecognized configuration parameter \"{name}\"")]
    Name { name: Box<str> },
    #[error("invalid value for parameter \"{name}\": \"{value}\" ({expected} is expected)")]
    Value { name: Box<str>, value: Box<str>, expected: &'static str },
    #[error("parameter \"bellwether.lsn\" cannot be changed")]
    ReadOnly,
}

impl InvalidKnob {
    /// As guc.c answers.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            InvalidKnob::Name { .. } => SqlState::UNDEFINED_OBJECT,
            InvalidKnob::Value { .. } => SqlState::INVALID_PARAMETER_VALUE,
            InvalidKnob::ReadOnly => SqlState::CANT_CHANGE_RUNTIME_PARAM,
        }
    }
}

/// The prefix of every setting of ours.
pub const PREFIX: &str = "bellwether.";

impl Knob {
    /// From SET, and from `-c name=value` in the startup packet's `options`. `value` is `None` for DEFAULT.
    /// `name` begins with [`PREFIX`], in any case.
    pub fn parse(name: &str, value: Option<&str>) -> Result<Knob, InvalidKnob> {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix(PREFIX) {
            Some("route") => {
                Self::value(&name, value, "auto, primary or standby", Route::parse).map(Knob::Route)
            }
            Some("consistency") => {
                Self::value(&name, value, "eventual, session or global", Consistency::parse)
                    .map(Knob::Consistency)
            }
            Some("max_lag") => {
                Self::value(&name, value, "a time, a size or both, as in '16MiB, 1s'", MaxLag::parse)
                    .map(Knob::MaxLag)
            }
            // The empty string clears the token, as it is what SHOW gives when none is set.
            Some("min_lsn") if value == Some("") => Ok(Knob::MinLsn(None)),
            Some("min_lsn") => {
                Self::value(&name, value, "an LSN as in 16/B374D848", |text| text.parse().ok())
                    .map(Knob::MinLsn)
            }
            Some("lsn") => Err(InvalidKnob::ReadOnly),
            _ => Err(InvalidKnob::Name { name: name.into() }),
        }
    }

    fn value<T>(
        name: &str,
        value: Option<&str>,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, InvalidKnob> {
        let Some(value) = value else { return Ok(None) };
        let parsed = parse(value.trim());
        parsed.map(Some).ok_or_else(|| InvalidKnob::Value {
            name: name.into(),
            value: value.into(),
            expected,
        })
    }
}

impl Shown {
    pub fn parse(name: &str) -> Result<Shown, InvalidKnob> {
        [Shown::Route, Shown::Consistency, Shown::MaxLag, Shown::MinLsn, Shown::Lsn]
            .into_iter()
            .find(|shown| name.eq_ignore_ascii_case(shown.name()))
            .ok_or_else(|| InvalidKnob::Name { name: name.to_ascii_lowercase().into() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Consistency, InvalidKnob, Knob, MaxLag, Route};
    use crate::pg::Lsn;

    #[test]
    fn values() {
        let lag = |bytes, millis: Option<u64>| {
            Ok(Knob::MaxLag(Some(MaxLag { bytes, time: millis.map(Duration::from_millis) })))
        };
        for (name, value, expected) in [
            ("bellwether.route", Some("standby"), Ok(Knob::Route(Some(Route::Standby)))),
            ("Bellwether.ROUTE", Some("PRIMARY"), Ok(Knob::Route(Some(Route::Primary)))),
            ("bellwether.route", None, Ok(Knob::Route(None))),
            ("bellwether.consistency", Some("global"), Ok(Knob::Consistency(Some(Consistency::Global)))),
            ("bellwether.max_lag", Some("500ms"), lag(None, Some(500))),
            ("bellwether.max_lag", Some("16MiB"), lag(Some(16 << 20), None)),
            ("bellwether.max_lag", Some("2 min, 1kB"), lag(Some(1024), Some(120_000))),
            ("bellwether.min_lsn", Some("16/B374D848"), Ok(Knob::MinLsn(Some(Lsn(0x16_B374_D848))))),
            ("bellwether.min_lsn", Some(""), Ok(Knob::MinLsn(None))),
            ("bellwether.lsn", Some("0/1"), Err(InvalidKnob::ReadOnly)),
        ] {
            assert_eq!(Knob::parse(name, value), expected, "{name} = {value:?}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        for (name, value) in [
            ("bellwether.route", "any"),
            ("bellwether.consistency", ""),
            ("bellwether.max_lag", "1"),
            ("bellwether.max_lag", "s"),
            ("bellwether.max_lag", "1s,2s"),
            ("bellwether.max_lag", "1s,"),
            ("bellwether.max_lag", "-1s"),
            ("bellwether.max_lag", "99999999999999999999s"),
            ("bellwether.max_lag", "18446744073709551615GiB"),
            ("bellwether.min_lsn", "16"),
        ] {
            let error = Knob::parse(name, Some(value)).expect_err(value);
            assert!(matches!(error, InvalidKnob::Value { .. }), "{name} = {value:?}: {error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        let unknown = Knob::parse("bellwether.fancy", Some("1")).expect_err("no such setting");
        assert_eq!(unknown.to_string(), "unrecognized configuration parameter \"bellwether.fancy\"");
    }
}
