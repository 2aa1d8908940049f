//! Which answer a request gets. PURE: method, path and query in, status and body out.

use std::time::Instant;

use super::view::{ClusterView, Identity, NodeView, Snapshot, WritesView, cluster};
use crate::topology::Role;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
    /// For 405.
    pub(super) allow: Option<&'static str>,
}

impl Answer {
    pub(super) fn text(status: u16, body: impl Into<String>) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", body: body.into() + "\n", allow: None }
    }

    fn json(value: &impl serde::Serialize) -> Answer {
        match serde_json::to_string(value) {
            Ok(body) => Answer { status: 200, content_type: "application/json", body, allow: None },
            Err(error) => Answer::text(500, error.to_string()),
        }
    }
}

const PAGE: &str = include_str!("page.html");
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The answer to one request. `metrics` is called only for `/metrics`.
pub(super) fn answer(
    request: Request<'_>,
    identity: &Identity,
    seen: &Snapshot,
    now: Instant,
    metrics: impl FnOnce() -> Result<String, String>,
) -> Answer {
    let view = || cluster(identity, seen, now);
    let found = match request.path {
        "/" => Answer {
            status: 200,
            content_type: "text/html; charset=utf-8",
            body: PAGE.to_owned(),
            allow: None,
        },
        "/metrics" => match metrics() {
            Ok(body) => Answer { status: 200, content_type: METRICS, body, allow: None },
            Err(error) => Answer::text(500, error),
        },
        "/live" => Answer::text(200, "live"),
        "/ready" => verdict(writable(&view())),
        "/api/v1/cluster" => Answer::json(&view()),
        "/api/v1/history" => Answer::json(&*seen.history),
        "/api/v1/restarts" => Answer::json(&*seen.restarts),
        "/api/v1/alarms" => Answer::json(&*seen.wal.alarms),
        path => match Question::at(path) {
            Some(question) => ask(question, request.query, &view()),
            None => {
                return Answer::text(404, "no such page; there are /metrics, /live, /ready, /api/v1/cluster");
            }
        },
    };
    match request.method {
        "GET" | "HEAD" => found,
        // HAProxy's default check.
        "OPTIONS" => Answer { body: String::new(), ..found },
        _ => Answer { allow: Some("GET, HEAD, OPTIONS"), ..Answer::text(405, "only GET, HEAD and OPTIONS") },
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
}

/// What a load balancer asks about a node, in Patroni's manner (its REST API's health check endpoints).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Primary,
    Standby,
    ReadOnly,
    Healthy,
}

impl Question {
    fn at(path: &str) -> Option<Question> {
        Some(match path {
            "/primary" | "/leader" | "/master" | "/read-write" => Question::Primary,
            "/standby" | "/replica" => Question::Standby,
            "/read-only" => Question::ReadOnly,
            "/health" => Question::Healthy,
            _ => return None,
        })
    }
}

/// With `?node=` about that node; without, whether any node answers the question with yes.
fn ask(question: Question, query: &str, view: &ClusterView) -> Answer {
    let mut limit = None;
    let mut wanted = None;
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match key {
            "node" => wanted = Some(value),
            "lag" => match lag_limit(value) {
                Some(bytes) => limit = Some(bytes),
                None => return Answer::text(400, "lag is a size, such as lag=16MiB or lag=1048576"),
            },
            // Whatever else a load balancer puts there.
            _ => {}
        }
    }
    let mut asked =
        view.nodes.iter().filter(|node| wanted.is_none_or(|name| node.name.as_str() == name)).peekable();
    if asked.peek().is_none() {
        return Answer::text(404, "no such node");
    }
    let refusals: Result<Vec<String>, String> = asked
        .map(|node| match holds(question, limit, node, view) {
            Ok(()) => Err(node.name.to_string()),
            Err(why) => Ok(format!("{}: {why}", node.name)),
        })
        .collect();
    match refusals {
        Err(yes) => Answer::text(200, yes),
        Ok(refusals) => Answer::text(503, refusals.join("\n")),
    }
}

fn holds(
    question: Question,
    lag_limit: Option<u64>,
    node: &NodeView,
    view: &ClusterView,
) -> Result<(), String> {
    if node.state != "up" {
        return Err(node.why.clone().unwrap_or_else(|| node.state.clone()));
    }
    let is_primary = view.directive.primary.as_ref() == Some(&node.name);
    match question {
        Question::Healthy => Ok(()),
        Question::Primary if is_primary => writable(view),
        Question::Primary => Err("is not the primary".to_owned()),
        Question::ReadOnly if is_primary => Ok(()),
        Question::Standby | Question::ReadOnly if node.maintenance => Err("is in maintenance".to_owned()),
        Question::Standby | Question::ReadOnly if node.role != Some(Role::Standby) => {
            Err("is no standby".to_owned())
        }
        Question::Standby | Question::ReadOnly => match (lag_limit, node.lag_bytes) {
            (None, _) => Ok(()),
            (Some(limit), Some(lag)) if lag <= limit => Ok(()),
            (Some(limit), Some(lag)) => Err(format!("lags {lag} bytes, more than {limit}")),
            (Some(_), None) => Err("its lag is not known".to_owned()),
        },
    }
}

fn writable(view: &ClusterView) -> Result<(), String> {
    match (&view.directive.writes, &view.directive.primary) {
        (WritesView::Open, Some(_)) => Ok(()),
        (WritesView::Open, None) => Err("no primary".to_owned()),
        (WritesView::Held { reason }, _) => Err(format!("writes are held: {reason}")),
    }
}

fn verdict(result: Result<(), String>) -> Answer {
    match result {
        Ok(()) => Answer::text(200, "ready"),
        Err(why) => Answer::text(503, why),
    }
}

/// Bytes, or with one of Patroni's and our units.
fn lag_limit(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "kB" | "KiB" => 10,
        "MB" | "MiB" => 20,
        "GB" | "GiB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::view::tests::{identity, snapshot};
    use super::{Answer, Request, answer};
    use crate::topology::Writes;

    fn get(uri: &str, change: impl FnOnce(&mut super::Snapshot)) -> Answer {
        let now = Instant::now();
        let mut seen = snapshot(now);
        change(&mut seen);
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let request = Request { method: "GET", path, query };
        answer(request, &identity(), &seen, now, || Ok("metrics\n".to_owned()))
    }

    #[test]
    fn load_balancers_get_200_or_503() {
        for (uri, status) in [
            ("/live", 200),
            ("/ready", 200),
            ("/metrics", 200),
            ("/", 200),
            ("/primary", 200),
            ("/primary?node=pg1", 200),
            ("/leader?node=pg2", 503),
            ("/standby", 200),
            ("/standby?node=pg1", 503),
            ("/replica?node=pg2&lag=100", 200),
            ("/replica?node=pg2&lag=99B", 503),
            ("/standby?node=pg3&lag=1kB", 200),
            ("/standby?node=pg4", 503),
            ("/standby?node=pg9", 404),
            ("/standby?lag=much", 400),
            ("/standby?lag=99999999999GiB", 400),
            ("/read-only?node=pg1", 200),
            ("/read-write?node=pg1", 200),
            ("/health?node=pg3", 200),
            ("/health?node=pg4", 503),
            ("/api/v1/cluster", 200),
            ("/api/v1/history", 200),
            ("/api/v1/alarms", 200),
            ("/api/v1/restarts", 200),
            ("/api/v1", 404),
            ("//", 404),
        ] {
            assert_eq!(get(uri, |_| {}).status, status, "{uri}");
        }
    }

    #[test]
    fn while_writes_are_held_nothing_is_ready_or_primary_and_it_says_why() {
        let held = |uri| {
            get(uri, |seen| {
                Arc::make_mut(&mut seen.directive).writes = Writes::Held { reason: "election".to_owned() };
            })
        };
        for (uri, status) in
            [("/ready", 503), ("/primary", 503), ("/live", 200), ("/read-only?node=pg1", 200)]
        {
            assert_eq!(held(uri).status, status, "{uri}");
        }
        assert_eq!(held("/ready").body, "writes are held: election\n");
    }

    #[test]
    fn methods_other_than_reading_are_refused() {
        let now = Instant::now();
        let ask = |method, path| {
            let request = Request { method, path, query: "" };
            answer(request, &identity(), &snapshot(now), now, || Ok(String::new()))
        };
        assert_eq!(ask("POST", "/live").allow, Some("GET, HEAD, OPTIONS"));
        assert_eq!(ask("DELETE", "/api/v1/cluster").status, 405);
        assert_eq!((ask("OPTIONS", "/primary").status, ask("HEAD", "/ready").status), (200, 200));
        assert_eq!(ask("POST", "/nowhere").status, 404);
    }
}
