//! `bellwether route`: where a statement would go, and why. The proxy's own classifier, in sentences.

use crate::proxy::route::{Access, Route, TransactionEffect, Verdict, classify};

/// The verdict on `sql`, for people: first where, then why, then what else is to know.
pub(super) fn route(sql: &str) -> String {
    let verdict = classify(sql);
    let mut text = format!("{}\n", destination(&verdict));
    if let TransactionEffect::Begin(modes) = &verdict.transaction
        && !modes.fit_for_standby()
    {
        text += "  an explicit transaction that is not READ ONLY runs on the primary as a whole\n";
    }
    if let Some(pin) = verdict.pin() {
        text += &format!("  session state: {}\n", pin.as_str());
    }
    if verdict.commits() && !verdict.is_own() {
        text += "  in doubt (08007) if its server is lost before it answers\n";
    }
    text
}

fn destination(verdict: &Verdict) -> String {
    if verdict.is_own() {
        return "answered by bellwether itself: a bellwether.* setting".to_owned();
    }
    match (&verdict.access, verdict.hint) {
        (_, Some(Route::Primary)) => "primary: the comment says so".to_owned(),
        (Access::Read, Some(Route::Standby)) => "standby: the comment says so, and it is a read".to_owned(),
        (Access::Read, None | Some(Route::Auto)) => {
            "standby, if one is fresh enough, else primary: it is a read".to_owned()
        }
        (Access::Write { reason }, Some(Route::Standby)) if reason.certainly_writes() => {
            format!("refused (25006): the comment asks for a standby, but {reason}")
        }
        (Access::Write { reason }, Some(Route::Standby)) => {
            format!("standby: the comment says so; the primary's otherwise, because of {reason}")
        }
        (Access::Write { reason }, None | Some(Route::Auto)) => format!("primary: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::route;

    #[test]
    fn where_and_why() {
        for (sql, start) in [
            ("SELECT 1", "standby, if one is fresh enough"),
            ("INSERT INTO t VALUES (1)", "primary: dml"),
            ("SELECT f()", "primary: function f"),
            ("SELECT * FROM t FOR UPDATE", "primary: locking_clause"),
            ("/* bellwether: primary */ SELECT 1", "primary: the comment"),
            ("/* bellwether: standby */ DELETE FROM t", "refused (25006)"),
            ("SELEC 1", "primary: unparsable"),
        ] {
            let text = route(sql);
            assert!(text.starts_with(start), "{sql}: {text}");
        }
    }
}
