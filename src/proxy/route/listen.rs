//! LISTEN as a server is told of it that must not listen.
//!
//! A server that clients share must not be left listening for one of them: another connection does that. What the
//! server is to say of the statement (a block that has failed, a name that is cut) it says of UNLISTEN as well,
//! which does nothing where nobody listens (`Async_Unlisten` in async.c) and commits and rolls back the same.

use pg_query::protobuf::Token;

use super::verdict::{SessionEffect, Step, TransactionEffect, Verdict};

/// Says, in the server's log and in `pg_stat_activity`, what was asked for. Nobody's UNLISTEN is taken for another's
/// LISTEN: a text with this in it means LISTEN to us whoever sends it.
const STAND_IN: &str = "UNLISTEN /* bellwether: LISTEN */";

/// Whether the UNLISTEN of this text stands for a LISTEN.
pub(super) fn stands_in(sql: &str) -> bool {
    sql.contains(STAND_IN)
}

/// The same of a message that prepares it.
pub(crate) fn is_stand_in(parse: &[u8]) -> bool {
    parse.windows(STAND_IN.len()).any(|part| part == STAND_IN.as_bytes())
}

/// The same text with UNLISTEN in place of each LISTEN; `None` when it holds anything beside LISTEN, UNLISTEN and
/// transaction control: what the server says of other statements may name a place in the text.
pub(crate) fn stand_in(sql: &str, verdict: &Verdict) -> Option<String> {
    if verdict.listens_to().next().is_none() || !verdict.steps.iter().all(is_plain) {
        return None;
    }
    let tokens = pg_query::scan(sql).ok()?.tokens;
    let (mut text, mut copied, mut begins) = (String::with_capacity(sql.len() + 64), 0, true);
    for token in tokens {
        let (start, end) = (usize::try_from(token.start).ok()?, usize::try_from(token.end).ok()?);
        match token.token() {
            Token::SqlComment | Token::CComment => {}
            Token::Ascii59 => begins = true,
            Token::Listen if begins => {
                text.push_str(sql.get(copied..start)?);
                text.push_str(STAND_IN);
                (copied, begins) = (end, false);
            }
            _ => begins = false,
        }
    }
    text.push_str(sql.get(copied..)?);
    Some(text)
}

fn is_plain(step: &Step) -> bool {
    let about_channels = |effect: &SessionEffect| {
        matches!(effect, SessionEffect::Listen(_) | SessionEffect::Unlisten(_) | SessionEffect::UnlistenAll)
    };
    let is_control = step.transaction != TransactionEffect::None;
    (is_control || !step.session.is_empty()) && step.session.iter().all(about_channels)
}

#[cfg(test)]
mod tests {
    use super::stand_in;
    use crate::proxy::route::classify;

    fn check(sql: &str, expected: Option<&str>) {
        let text = stand_in(sql, &classify(sql));
        let short = text.as_ref().map(|text| text.replace(" /* bellwether: LISTEN */", "!"));
        assert_eq!(short.as_deref(), expected, "{sql}");
        // It means the same to us, so that it may stand for what is prepared.
        if let Some(text) = text {
            assert_eq!(classify(&text).session, classify(sql).session);
        }
    }

    #[test]
    fn another_connection_listens() {
        check("LISTEN a", Some("UNLISTEN! a"));
        check("listen \"A b\"", Some("UNLISTEN! \"A b\""));
        check(" /* x */ Listen/**/a ; ", Some(" /* x */ UNLISTEN!/**/a ; "));
        check("LISTEN listen;-- LISTEN\nLISTEN b", Some("UNLISTEN! listen;-- LISTEN\nUNLISTEN! b"));
        check("BEGIN; LISTEN \"ü\"; COMMIT", Some("BEGIN; UNLISTEN! \"ü\"; COMMIT"));
        check("UNLISTEN a", None);
        check("LISTEN a; SELECT 1", None);
        check("LISTEN a; RESET ALL", None);
        check("SELECT 1", None);
        check("LISTEN", None);
    }

    #[test]
    fn names_are_what_the_server_makes_of_them() {
        let long = "x".repeat(70);
        let channels = |sql: &str| classify(sql).listens_to().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(channels("LISTEN NewsFlash; LISTEN \"NewsFlash\""), ["newsflash", "NewsFlash"]);
        assert_eq!(channels(&format!("LISTEN {long}")), ["x".repeat(63)]);
    }
}
