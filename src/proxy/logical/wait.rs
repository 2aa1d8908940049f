//! Where a replication connection goes now, and how long it waits for that.

use std::time::Duration;

use crate::pg::error::{ErrorFields, SqlState};
use crate::topology::{Directive, NodeName, Term};

/// Why there is no server connection yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    NoPrimary,
    /// There is one, and it does not answer.
    Unreachable,
    /// Its database is, by an operator.
    Paused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    No,
    Yes,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a primary; then 57P03.
    pub(super) hold: Duration,
    /// For the end of a pause; then 53300.
    pub(super) wait: Duration,
}

/// The primary, and the term in which it is one.
pub(super) fn primary(order: &Directive, pause: Pause) -> Result<(NodeName, Term), Obstacle> {
    let node = order.writable().ok_or(Obstacle::NoPrimary)?;
    match pause {
        Pause::Yes => Err(Obstacle::Paused),
        Pause::No => Ok((node.clone(), order.term)),
    }
}

impl Patience {
    /// What is left of it, or the last word.
    pub(super) fn left(&self, obstacle: Obstacle, waited: Duration) -> Result<Duration, ErrorFields> {
        let no_primary = |reason| {
            ErrorFields::fatal(SqlState::CANNOT_CONNECT_NOW, "no primary can take this now")
                .with_detail(format!("Waited {:?}: {reason}.", self.hold))
        };
        let (limit, error) = match obstacle {
            Obstacle::NoPrimary => (self.hold, no_primary("there is none")),
            Obstacle::Unreachable => (self.hold, no_primary("it does not answer")),
            Obstacle::Paused => {
                let message = format!("the database was paused for longer than {:?}", self.wait);
                (self.wait, ErrorFields::fatal(SqlState::TOO_MANY_CONNECTIONS, message))
            }
        };
        let left = limit.saturating_sub(waited);
        if left.is_zero() { Err(error) } else { Ok(left) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Obstacle, Patience, Pause, primary};
    use crate::topology::{Directive, Durability, Term, Writes};

    #[test]
    fn only_an_open_primary_is_one() {
        let check = |primary_is: Option<&str>, writes: Writes, pause, expected: Result<&str, Obstacle>| {
            let order = Directive {
                term: Term(3),
                primary: primary_is.map(|name| name.parse().expect("a name")),
                writes,
                ..Directive::starting(Durability::Async)
            };
            let expected = expected.map(|name| (name.parse().expect("a name"), Term(3)));
            assert_eq!(primary(&order, pause), expected);
        };
        let held = || Writes::Held { reason: "election".to_owned() };
        check(Some("pg1"), Writes::Open, Pause::No, Ok("pg1"));
        check(Some("pg1"), held(), Pause::No, Err(Obstacle::NoPrimary));
        check(None, Writes::Open, Pause::Yes, Err(Obstacle::NoPrimary));
        check(Some("pg1"), Writes::Open, Pause::Yes, Err(Obstacle::Paused));
    }

    #[test]
    fn patience_ends() {
        let seconds = Duration::from_secs;
        let patience = Patience { hold: seconds(30), wait: seconds(60) };
        let check = |obstacle, waited, expected: Result<u64, &str>| {
            let left = patience.left(obstacle, seconds(waited));
            let left = left.map_err(|error| error.code.as_str().to_owned());
            assert_eq!(left, expected.map(seconds).map_err(str::to_owned), "{obstacle:?} {waited}");
        };
        check(Obstacle::NoPrimary, 0, Ok(30));
        check(Obstacle::NoPrimary, 29, Ok(1));
        check(Obstacle::NoPrimary, 30, Err("57P03"));
        check(Obstacle::Unreachable, 31, Err("57P03"));
        check(Obstacle::Paused, 31, Ok(29));
        check(Obstacle::Paused, 60, Err("53300"));
    }
}
