//! From a statement text to its [`Verdict`], by PostgreSQL's own grammar (that of 18, which reads what 14 to 17
//! read).
//!
//! The grammar here must read what the server will read. It does for UTF-8 text under
//! `standard_conforming_strings = on`, PostgreSQL's default. With that off, or for text beyond ASCII under a
//! client encoding other than UTF-8, a quote may end elsewhere than it seems: then the caller takes
//! [`Verdict::unparsable`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use pg_query::protobuf::{ParseResult, RawStmt};

use super::knob::Route;
use super::statement::Statements;
use super::verdict::Verdict;

/// In bytes. Longer texts are not parsed: the primary's.
pub const MAX_TEXT: usize = 1 << 20;

/// Whether another text that differs in the values of its literals only would get the same verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Literals {
    #[default]
    Irrelevant,
    Matter,
}

/// Never fails: what is not understood belongs to the primary.
pub fn classify(sql: &str) -> Verdict {
    classify_with_literals(sql).0
}

pub(super) fn classify_with_literals(sql: &str) -> (Verdict, Literals) {
    let hint = hint(sql);
    let Some(tree) = parse(sql) else {
        return (unquoted_primary(sql).unwrap_or(Verdict::unparsable(hint)), Literals::Matter);
    };
    let mut statements = Statements::new(sql);
    for statement in &tree.stmts {
        let node = statement.stmt.as_ref().and_then(|statement| statement.node.as_ref());
        statements.add(node, text_of(sql, statement));
    }
    statements.verdict(hint)
}

/// One statement of several. A length of 0: the rest (`RawStmt` in parsenodes.h).
fn text_of<'a>(sql: &'a str, statement: &RawStmt) -> &'a str {
    let bound = |bytes: i32| usize::try_from(bytes).unwrap_or_default();
    let rest = sql.get(bound(statement.stmt_location)..).unwrap_or(sql);
    let text = match bound(statement.stmt_len) {
        0 => rest,
        length => rest.get(..length).unwrap_or(rest),
    };
    text.trim_ascii()
}

/// `None`: not SQL as this grammar knows it, a zero byte, too long, or nested beyond what the C stack or the
/// decoder of the tree follow (100 levels of messages, about 45 of nested expressions).
fn parse(sql: &str) -> Option<ParseResult> {
    if sql.len() > MAX_TEXT {
        return None;
    }
    // The library digests the tree once more for callers with other interests, with a few assertions on the way.
    // A tree that it does not expect must not cost the session.
    let parsed = catch_unwind(AssertUnwindSafe(|| pg_query::parse(sql, 0)));
    Some(parsed.ok()?.ok()?.protobuf)
}

/// `SET bellwether.route = primary` as people type it: PRIMARY is a reserved word, so that the grammar wants
/// quotes around it (and around none of the other values).
fn unquoted_primary(sql: &str) -> Option<Verdict> {
    const LONGEST: usize = 128;
    if sql.len() > LONGEST {
        return None;
    }
    let words = sql.trim_end_matches([';', ' ', '\n']).replace('=', " = ").to_ascii_lowercase();
    let scope = match words.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        ["set", "bellwether.route", "=" | "to", "primary"] => "SESSION",
        ["set", "session", "bellwether.route", "=" | "to", "primary"] => "SESSION",
        ["set", "local", "bellwether.route", "=" | "to", "primary"] => "LOCAL",
        _ => return None,
    };
    Some(classify(&format!("SET {scope} bellwether.route = 'primary'")))
}

/// The first `/* bellwether: ... */` among the comments before the first statement.
fn hint(sql: &str) -> Option<Route> {
    let mut rest = sql.trim_start();
    loop {
        if let Some(comment) = rest.strip_prefix("/*") {
            let (body, after) = comment.split_once("*/")?;
            if let Some(word) = body.trim_start().strip_prefix("bellwether:") {
                return Route::parse(word.trim());
            }
            rest = after.trim_start();
        } else if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n')?.1.trim_start();
        } else {
            return None;
        }
    }
}
