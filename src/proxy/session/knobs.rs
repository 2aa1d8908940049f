//! The session's `bellwether.*` settings, and the answers to commands about them.

use super::message::{put_complete, put_error, put_text_column, put_text_row};
use crate::pg::Lsn;
use crate::pg::error::ErrorFields;
use crate::proxy::route::{
    Consistency, InvalidKnob, Knob, KnobCommand, MaxLag, OwnWrite, Route, Scope, Shown,
};

/// What the routing of a statement depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Knobs {
    session: Values,
    /// SET LOCAL; on top until the transaction's end.
    local: Values,
    defaults: Defaults,
    pub(crate) write: OwnWrite,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Values {
    route: Option<Route>,
    consistency: Option<Consistency>,
    max_lag: Option<MaxLag>,
    min_lsn: Option<Lsn>,
}

/// The listener's and the configuration's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Defaults {
    pub(crate) route: Route,
    pub(crate) consistency: Consistency,
}

impl Knobs {
    /// With what the startup packet says.
    pub(crate) fn new(defaults: Defaults, startup: &[(String, String)]) -> Result<Knobs, InvalidKnob> {
        let mut knobs = Knobs { defaults, ..Knobs::default() };
        for (name, value) in startup {
            knobs.session.set(Knob::parse(name, Some(value))?);
        }
        Ok(knobs)
    }

    pub(crate) fn route(&self) -> Route {
        self.local.route.or(self.session.route).unwrap_or(self.defaults.route)
    }

    pub(crate) fn consistency(&self) -> Consistency {
        self.local.consistency.or(self.session.consistency).unwrap_or(self.defaults.consistency)
    }

    pub(crate) fn max_lag(&self) -> MaxLag {
        self.local.max_lag.or(self.session.max_lag).unwrap_or_default()
    }

    pub(crate) fn min_lsn(&self) -> Option<Lsn> {
        self.local.min_lsn.or(self.session.min_lsn)
    }

    pub(super) fn transaction_ended(&mut self) {
        self.local = Values::default();
    }

    /// Obeys `command`, and answers it without ReadyForQuery.
    pub(super) fn run(&mut self, command: &KnobCommand, rows: Rows, out: &mut Vec<u8>) {
        match command {
            KnobCommand::Set(Scope::Session, setting) => {
                self.session.set(*setting);
                put_complete(out, "SET");
            }
            KnobCommand::Set(Scope::Local, setting) => {
                self.local.set(*setting);
                put_complete(out, "SET");
            }
            KnobCommand::Reset(setting) => {
                self.session.set(*setting);
                put_complete(out, "RESET");
            }
            KnobCommand::Show(shown) => {
                if rows == Rows::Described {
                    put_text_column(out, shown.name());
                }
                put_text_row(out, &self.show(*shown));
                put_complete(out, "SHOW");
            }
            KnobCommand::Invalid(error) => {
                put_error(out, &ErrorFields::error(error.sqlstate(), error.to_string()));
            }
        }
    }

    fn show(&self, shown: Shown) -> String {
        match shown {
            Shown::Route => self.route().as_str().to_owned(),
            Shown::Consistency => self.consistency().as_str().to_owned(),
            Shown::MaxLag => {
                let max_lag = self.max_lag();
                let bytes = max_lag.bytes.map(|bytes| format!("{bytes}B"));
                let time = max_lag.time.map(|time| format!("{}ms", time.as_millis()));
                bytes.into_iter().chain(time).collect::<Vec<_>>().join(", ")
            }
            Shown::MinLsn => self.min_lsn().map(|lsn| lsn.to_string()).unwrap_or_default(),
            Shown::Lsn => match self.write {
                OwnWrite::At(lsn) => lsn.to_string(),
                OwnWrite::None | OwnWrite::Unknown => String::new(),
            },
        }
    }
}

/// Whether the rows' description goes in front of them (simple query), or was asked for separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    Described,
    Bare,
}

impl Values {
    fn set(&mut self, setting: Knob) {
        match setting {
            Knob::Route(route) => self.route = route,
            Knob::Consistency(consistency) => self.consistency = consistency,
            Knob::MaxLag(max_lag) => self.max_lag = max_lag,
            Knob::MinLsn(min_lsn) => self.min_lsn = min_lsn,
        }
    }
}
