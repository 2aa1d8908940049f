//! What an operator may ask for over HTTP: which request is which order. PURE.

use super::answer::{Answer, Request};
use super::reload::{ReloadError, Reloaded};
use crate::failover::{Command, CommandError, Stragglers};
use crate::topology::NodeName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The control plane's.
    Command(Command),
    /// Read the configuration again.
    Reload,
}

/// `None`: not one of the orders' paths. `origin`: whether a browser says that a page of somebody's sends
/// this; such a page may be anybody's, and its visitor an operator, so it is refused.
pub(super) fn order(request: Request<'_>, origin: Origin) -> Option<Result<Order, Answer>> {
    let name = request.path.strip_prefix("/api/v1/")?;
    if !["failover", "switchover", "pause", "resume", "reload"].contains(&name) {
        return None;
    }
    if request.method != "POST" {
        let answer = Answer { allow: Some("POST"), ..Answer::text(405, "only POST") };
        return Some(Err(answer));
    }
    if origin == Origin::Page {
        return Some(Err(Answer::text(403, "not from a web page")));
    }
    Some(options(request.query).and_then(|Options { to, stragglers }| {
        let order = match name {
            "switchover" => Order::Command(Command::Switchover { to, stragglers }),
            _ if stragglers == Stragglers::Cut => {
                return Err(Answer::text(400, "only a switchover is forced"));
            }
            "failover" => Order::Command(Command::Failover { to }),
            "pause" => Order::Command(Command::Pause),
            "resume" => Order::Command(Command::Resume),
            _ => Order::Reload,
        };
        Ok(order)
    }))
}

struct Options {
    to: Option<NodeName>,
    stragglers: Stragglers,
}

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// With an `Origin` header.
    Page,
    Program,
}

pub(super) fn answer(result: Result<String, CommandError>) -> Answer {
    match result {
        Ok(done) => Answer::text(200, done),
        Err(error @ CommandError::UnknownNode(_)) => Answer::text(404, error.to_string()),
        Err(error @ (CommandError::Unfit(..) | CommandError::NotNow(_))) => {
            Answer::text(409, error.to_string())
        }
        Err(error @ CommandError::Stopped) => Answer::text(503, error.to_string()),
    }
}

pub(super) fn reloaded(result: Result<Reloaded, ReloadError>) -> Answer {
    match result {
        Ok(reloaded) => Answer::text(200, reloaded.lines().join("\n")),
        Err(ReloadError::Unusable(why)) => {
            Answer::text(422, format!("the configuration stays as it was: {why}"))
        }
        Err(error @ ReloadError::Stopped) => Answer::text(503, error.to_string()),
    }
}

/// `?to=NODE&force`.
fn options(query: &str) -> Result<Options, Answer> {
    let (mut to, mut stragglers) = (None, Stragglers::Spared);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("to", name)) => {
                to = Some(name.parse().map_err(|_| Answer::text(400, "to is a node's name"))?);
            }
            None if pair == "force" => stragglers = Stragglers::Cut,
            // A misspelt `to` must not become a failover to whoever is best.
            _ => return Err(Answer::text(400, "only to=NODE and force are understood")),
        }
    }
    Ok(Options { to, stragglers })
}

#[cfg(test)]
mod tests {
    use super::{Order, Origin, order};
    use crate::admin::answer::Request;
    use crate::failover::{Command, Stragglers};

    #[test]
    fn commands_are_posted_by_programs() {
        let ask = |method, uri: &'static str, origin| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            order(Request { method, path, query }, origin).map(|order| order.map_err(|answer| answer.status))
        };
        let pg2 = "pg2".parse().ok();
        let switchover = |to, stragglers| Some(Ok(Order::Command(Command::Switchover { to, stragglers })));
        for (uri, expected) in [
            ("/api/v1/failover", Some(Ok(Order::Command(Command::Failover { to: None })))),
            ("/api/v1/failover?to=pg2", Some(Ok(Order::Command(Command::Failover { to: pg2.clone() })))),
            ("/api/v1/switchover?to=pg2", switchover(pg2.clone(), Stragglers::Spared)),
            ("/api/v1/switchover?force&to=pg2", switchover(pg2, Stragglers::Cut)),
            ("/api/v1/failover?force", Some(Err(400))),
            ("/api/v1/switchover?force=no", Some(Err(400))),
            ("/api/v1/pause", Some(Ok(Order::Command(Command::Pause)))),
            ("/api/v1/resume", Some(Ok(Order::Command(Command::Resume)))),
            ("/api/v1/reload", Some(Ok(Order::Reload))),
            ("/api/v1/failover?too=pg2", Some(Err(400))),
            ("/api/v1/failover?to=PG%202", Some(Err(400))),
            ("/api/v1/cluster", None),
            ("/failover", None),
        ] {
            assert_eq!(ask("POST", uri, Origin::Program), expected, "{uri}");
        }
        assert_eq!(ask("GET", "/api/v1/pause", Origin::Program), Some(Err(405)));
        assert_eq!(ask("GET", "/api/v1/reload", Origin::Program), Some(Err(405)));
        assert_eq!(ask("POST", "/api/v1/failover", Origin::Page), Some(Err(403)));
        assert_eq!(ask("POST", "/api/v1/reload", Origin::Page), Some(Err(403)));
    }
}
