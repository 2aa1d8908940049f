//! What an operator may ask for over HTTP: which request is which order. PURE.

use super::answer::{Answer, Request};
use super::pass_on::OrderError;
use super::reload::{ReloadError, Reloaded};
use crate::failover::{Command, Handover, Servers, Stragglers, Upkeep};
use crate::pg::SqlState;
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
    if !["failover", "switchover", "restart", "pause", "resume", "maintenance", "reload"].contains(&name) {
        return None;
    }
    if request.method != "POST" {
        let answer = Answer { allow: Some("POST"), ..Answer::text(405, "only POST") };
        return Some(Err(answer));
    }
    if origin == Origin::Page {
        return Some(Err(Answer::text(403, "not from a web page")));
    }
    if name == "maintenance" {
        return Some(maintenance(request.query));
    }
    if name == "restart" {
        return Some(restart(request.query).map(Order::Command));
    }
    Some(options(request.query).and_then(|Options { to, stragglers, run }| {
        let foresee = |handover| Order::Command(Command::Foresee { handover, to: to.clone() });
        let order = match name {
            _ if run == Run::Dry && stragglers == Stragglers::Cut => {
                return Err(Answer::text(400, "a dry run forces nothing"));
            }
            "switchover" if run == Run::Dry => foresee(Handover::Switchover),
            "failover" if run == Run::Dry => foresee(Handover::Failover),
            _ if run == Run::Dry => {
                return Err(Answer::text(400, "only a failover and a switchover have a dry run"));
            }
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
    run: Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Wet,
    /// It is only told what would happen.
    Dry,
}

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// With an `Origin` header.
    Page,
    Program,
}

pub(super) fn answer(result: Result<String, OrderError>) -> Answer {
    let error = match result {
        Ok(done) => return Answer::text(200, done),
        Err(error) => error,
    };
    let status = match error.code() {
        SqlState::UNDEFINED_OBJECT => 404,
        SqlState::OBJECT_IN_USE => 409,
        // Misdirected Request (RFC 9110): another instance answers it.
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => 421,
        SqlState::ADMIN_SHUTDOWN => 503,
        // Bad Gateway: it is the leader's answer that is not to be had, or not to be understood.
        _ => 502,
    };
    Answer::text(status, error.to_string())
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

/// `?to=NODE&force`, `?to=NODE&dry_run`.
fn options(query: &str) -> Result<Options, Answer> {
    let (mut to, mut stragglers, mut run) = (None, Stragglers::Spared, Run::Wet);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("to", name)) => {
                to = Some(name.parse().map_err(|_| Answer::text(400, "to is a node's name"))?);
            }
            None if pair == "dry_run" => run = Run::Dry,
            None if pair == "force" => stragglers = Stragglers::Cut,
            // A misspelt `to` must not become a failover to whoever is best.
            _ => return Err(Answer::text(400, "only to=NODE, force and dry_run are understood")),
        }
    }
    Ok(Options { to, stragglers, run })
}

/// `?node=NODE`, `?node=NODE&end`.
fn maintenance(query: &str) -> Result<Order, Answer> {
    let (mut node, mut upkeep) = (None, Upkeep::Begin);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("node", name)) => {
                node = Some(name.parse().map_err(|_| Answer::text(400, "node is a node's name"))?);
            }
            None if pair == "end" => upkeep = Upkeep::End,
            // A misspelt `end` must not begin one.
            _ => return Err(Answer::text(400, "only node=NODE and end are understood")),
        }
    }
    let node = node.ok_or_else(|| Answer::text(400, "node=NODE is missing"))?;
    Ok(Order::Command(Command::Maintenance { node, upkeep }))
}

/// `?all&force`, `?node=NODE&dry_run`, `?cancel`.
fn restart(query: &str) -> Result<Command, Answer> {
    let mut options: Vec<&str> = query.split('&').filter(|option| !option.is_empty()).collect();
    options.sort_unstable();
    let which = options.iter().position(|option| *option == "all" || option.starts_with("node="));
    let servers = match which.map(|at| options.remove(at)) {
        Some("all") => Some(Servers::All),
        Some(node) => {
            let name = node.trim_start_matches("node=").parse();
            Some(Servers::One(name.map_err(|_| Answer::text(400, "node is a node's name"))?))
        }
        None => None,
    };
    match (servers, options.as_slice()) {
        (Some(servers), []) => Ok(Command::Restart { servers, stragglers: Stragglers::Spared }),
        (Some(servers), ["force"]) => Ok(Command::Restart { servers, stragglers: Stragglers::Cut }),
        (Some(servers), ["dry_run"]) => Ok(Command::ForeseeRestart { servers }),
        (None, ["cancel"]) => Ok(Command::CancelRestart),
        _ => Err(Answer::text(400, "it is all or node=NODE, with force or dry_run or neither; or cancel")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Order, OrderError, Origin, answer, order};
    use crate::admin::answer::Request;
    use crate::failover::{Command, CommandError, Handover, Servers, Stragglers, Upkeep};
    use crate::pg::error::{ErrorFields, SqlState};

    #[test]
    fn what_is_not_taken_has_a_status() {
        let at_leader = |code| OrderError::Refused {
            leader: "bw2".to_owned(),
            said: Box::new(ErrorFields::error(code, "not now")),
        };
        for (error, status) in [
            (CommandError::NotNow("later".to_owned()).into(), 409),
            (CommandError::Elsewhere { leader: None }.into(), 421),
            (CommandError::Stopped.into(), 503),
            (at_leader(SqlState::UNDEFINED_OBJECT), 404),
            (at_leader(SqlState::OBJECT_IN_USE), 409),
            (at_leader(SqlState::INSUFFICIENT_PRIVILEGE), 502),
        ] {
            assert_eq!(answer(Err(error)).status, status);
        }
    }

    #[test]
    fn commands_are_posted_by_programs() {
        let ask = |method, uri: &'static str, origin| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            order(Request { method, path, query }, origin).map(|order| order.map_err(|answer| answer.status))
        };
        let pg2 = "pg2".parse().ok();
        let maintenance = |upkeep| {
            let node = "pg2".parse().expect("a name");
            Some(Ok(Order::Command(Command::Maintenance { node, upkeep })))
        };
        let switchover = |to, stragglers| Some(Ok(Order::Command(Command::Switchover { to, stragglers })));
        let one = || Servers::One("pg2".parse().expect("a node's name"));
        let restart =
            |servers, stragglers| Some(Ok(Order::Command(Command::Restart { servers, stragglers })));
        for (uri, expected) in [
            ("/api/v1/failover", Some(Ok(Order::Command(Command::Failover { to: None })))),
            ("/api/v1/failover?to=pg2", Some(Ok(Order::Command(Command::Failover { to: pg2.clone() })))),
            ("/api/v1/switchover?to=pg2", switchover(pg2.clone(), Stragglers::Spared)),
            ("/api/v1/switchover?force&to=pg2", switchover(pg2, Stragglers::Cut)),
            (
                "/api/v1/failover?dry_run",
                Some(Ok(Order::Command(Command::Foresee { handover: Handover::Failover, to: None }))),
            ),
            ("/api/v1/switchover?dry_run&force", Some(Err(400))),
            ("/api/v1/pause?dry_run", Some(Err(400))),
            ("/api/v1/failover?force", Some(Err(400))),
            ("/api/v1/switchover?force=no", Some(Err(400))),
            ("/api/v1/pause", Some(Ok(Order::Command(Command::Pause)))),
            ("/api/v1/resume", Some(Ok(Order::Command(Command::Resume)))),
            ("/api/v1/reload", Some(Ok(Order::Reload))),
            ("/api/v1/maintenance?node=pg2", maintenance(Upkeep::Begin)),
            ("/api/v1/maintenance?end&node=pg2", maintenance(Upkeep::End)),
            ("/api/v1/maintenance", Some(Err(400))),
            ("/api/v1/maintenance?node=pg2&ended", Some(Err(400))),
            ("/api/v1/maintenance?to=pg2", Some(Err(400))),
            ("/api/v1/failover?too=pg2", Some(Err(400))),
            ("/api/v1/failover?to=PG%202", Some(Err(400))),
            ("/api/v1/restart?all", restart(Servers::All, Stragglers::Spared)),
            ("/api/v1/restart?force&all", restart(Servers::All, Stragglers::Cut)),
            ("/api/v1/restart?node=pg2", restart(one(), Stragglers::Spared)),
            (
                "/api/v1/restart?node=pg2&dry_run",
                Some(Ok(Order::Command(Command::ForeseeRestart { servers: one() }))),
            ),
            ("/api/v1/restart?cancel", Some(Ok(Order::Command(Command::CancelRestart)))),
            ("/api/v1/restart", Some(Err(400))),
            ("/api/v1/restart?to=pg2", Some(Err(400))),
            ("/api/v1/restart?all&node=pg2", Some(Err(400))),
            ("/api/v1/restart?all&cancel", Some(Err(400))),
            ("/api/v1/restart?node=PG2", Some(Err(400))),
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
