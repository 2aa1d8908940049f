//! `bellwether route 'SQL'`: a verdict in sentences.

use std::fmt::Write;

use super::verdict::{
    Access, CopyData, Isolation, SessionEffect, TransactionAccess, TransactionEffect, TransactionEnd,
    TransactionModes, Verdict, WriteReason,
};
use super::{KnobCommand, Route, classify};

/// A few lines, one topic each, the first of them the answer.
pub fn explain(sql: &str) -> String {
    let verdict = classify(sql);
    let mut lines = String::new();
    line(&mut lines, "route", &route(&verdict));
    if verdict.statements != 1 && verdict.access != (Access::Write { reason: WriteReason::Unparsable }) {
        line(&mut lines, "statements", &verdict.statements.to_string());
    }
    for text in [transaction(&verdict.transaction), copy(verdict.copy)].into_iter().flatten() {
        line(&mut lines, "effect", &text);
    }
    for effect in &verdict.session {
        line(&mut lines, "session", &session(effect));
    }
    for command in &verdict.knobs {
        line(&mut lines, "answered", &knob(command));
    }
    if verdict.commits() {
        line(
            &mut lines,
            "commit",
            "success implies a commit; it is in doubt (08007) if the server is lost before it answers",
        );
    }
    lines
}

fn line(lines: &mut String, topic: &str, text: &str) {
    writeln!(lines, "{:<12}{text}", format!("{topic}:")).expect("writing to a string cannot fail");
}

fn route(verdict: &Verdict) -> String {
    if verdict.is_own() {
        return "nowhere: the endpoint answers it itself".to_owned();
    }
    match (verdict.hint, &verdict.access) {
        (Some(Route::Primary), _) => "primary, as its comment asks".to_owned(),
        (Some(Route::Standby), Access::Write { reason }) if reason.certainly_writes() => {
            format!("refused (25006): its comment asks for a standby, but it {}", why(reason))
        }
        (Some(Route::Standby), _) => "a fresh standby or an error, as its comment asks".to_owned(),
        (Some(Route::Auto) | None, Access::Read) => "a fresh standby, else the primary (read)".to_owned(),
        (Some(Route::Auto) | None, Access::Write { reason }) => {
            format!("primary ({}): it {}", reason.as_str(), why(reason))
        }
    }
}

/// Completes "it ...".
fn why(reason: &WriteReason) -> String {
    match reason {
        WriteReason::Dml => "changes rows",
        WriteReason::ModifyingCte => "changes rows inside WITH",
        WriteReason::Ddl => "changes the schema",
        WriteReason::LockingClause => "locks rows",
        WriteReason::SelectInto => "creates a table",
        WriteReason::CopyFrom => "loads rows",
        WriteReason::Lock => "locks tables",
        WriteReason::Function(name) => {
            return format!("calls {name}, which is not on the list of functions that are safe on a standby");
        }
        WriteReason::AdvisoryLock => "takes an advisory lock, which must be one lock for everybody",
        WriteReason::Operator => "uses an operator outside pg_catalog, whose function may write",
        WriteReason::ServerState => "asks about the server itself, and a standby would answer about itself",
        WriteReason::Sequence => "reads a sequence, which runs ahead on a standby",
        WriteReason::Temporary => "is about temporary objects, which live on one server",
        WriteReason::Session => "changes the session, which the primary serves",
        WriteReason::Transaction => "controls a transaction that is not READ ONLY",
        WriteReason::Serializable => "asks for SERIALIZABLE, which a standby does not have",
        WriteReason::Utility => "is a command that a standby refuses, or that works on one server only",
        WriteReason::UnknownNode => "holds something that is not known to be harmless",
        WriteReason::Unparsable => "cannot be parsed here: not SQL, too long or nested too deep",
    }
    .to_owned()
}

fn transaction(effect: &TransactionEffect) -> Option<String> {
    Some(match effect {
        TransactionEffect::None => return None,
        TransactionEffect::Begin(modes) => format!("begins a transaction{}", modes_said(modes)),
        TransactionEffect::SetTransaction(modes) => {
            format!("sets the transaction's modes{}", modes_said(modes))
        }
        TransactionEffect::Commit => "commits".to_owned(),
        TransactionEffect::CommitAndChain => "commits and begins the next transaction".to_owned(),
        TransactionEffect::Rollback => "rolls back".to_owned(),
        TransactionEffect::RollbackAndChain => "rolls back and begins the next transaction".to_owned(),
        TransactionEffect::Savepoint(_) => "sets a savepoint".to_owned(),
        TransactionEffect::RollbackToSavepoint(_) => "rolls back to a savepoint".to_owned(),
        TransactionEffect::ReleaseSavepoint(_) => "releases a savepoint".to_owned(),
        TransactionEffect::Prepare(gid) => format!("prepares the transaction as {gid:?}"),
        TransactionEffect::CommitPrepared(gid) => format!("commits the prepared transaction {gid:?}"),
        TransactionEffect::RollbackPrepared(gid) => format!("rolls back the prepared transaction {gid:?}"),
        TransactionEffect::Several { ends, .. } => match ends {
            TransactionEnd::Unchanged => "controls the transaction that it is in".to_owned(),
            TransactionEnd::InBlock => "controls transactions and ends inside of one".to_owned(),
            TransactionEnd::Idle => "controls transactions and ends outside of any".to_owned(),
        },
    })
}

fn modes_said(modes: &TransactionModes) -> String {
    let access = modes.access.map(|access| match access {
        TransactionAccess::ReadOnly => "READ ONLY",
        TransactionAccess::ReadWrite => "READ WRITE",
    });
    let isolation = modes.isolation.map(|isolation| match isolation {
        Isolation::ReadUncommitted => "READ UNCOMMITTED",
        Isolation::ReadCommitted => "READ COMMITTED",
        Isolation::RepeatableRead => "REPEATABLE READ",
        Isolation::Serializable => "SERIALIZABLE",
    });
    let said: Vec<&str> = access.into_iter().chain(isolation).collect();
    if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) }
}

fn copy(copy: CopyData) -> Option<String> {
    match copy {
        CopyData::None => None,
        CopyData::In => Some("takes rows from the client".to_owned()),
        CopyData::Out => Some("sends rows to the client".to_owned()),
    }
}

fn session(effect: &SessionEffect) -> String {
    match effect {
        SessionEffect::Set(name, _)
        | SessionEffect::SetLocal(name)
        | SessionEffect::Reset(name)
        | SessionEffect::Execute(name)
        | SessionEffect::Deallocate(name)
        | SessionEffect::Function(name) => format!("{} {name}", effect.as_str()),
        SessionEffect::Prepare(prepare) => format!("{} {}", effect.as_str(), prepare.name),
        other => other.as_str().to_owned(),
    }
}

fn knob(command: &KnobCommand) -> String {
    match command {
        KnobCommand::Set(scope, setting) => format!("set, {scope:?}: {setting:?}"),
        KnobCommand::Reset(setting) => format!("reset: {setting:?}"),
        KnobCommand::Show(shown) => format!("show {}", shown.name()),
        KnobCommand::Invalid(invalid) => format!("error {}: {invalid}", invalid.sqlstate()),
    }
}

#[cfg(test)]
mod tests {
    use super::explain;

    fn check(sql: &str, expected: &[&str]) {
        assert_eq!(explain(sql).lines().collect::<Vec<_>>(), expected, "{sql}");
    }

    #[test]
    fn sentences() {
        let commit = "commit:     success implies a commit; it is in doubt (08007) if the server is lost before it answers";
        check("SELECT 1", &["route:      a fresh standby, else the primary (read)"]);
        check("DELETE FROM t", &["route:      primary (dml): it changes rows", commit]);
        check(
            "SELECT s.f()",
            &[
                "route:      primary (function): it calls s.f, which is not on the list of functions that are safe \
                 on a standby",
                commit,
            ],
        );
        check(
            "/* bellwether: standby */ SELECT f()",
            &["route:      a fresh standby or an error, as its comment asks", commit],
        );
        check(
            "BEGIN READ ONLY; SELECT 1",
            &[
                "route:      a fresh standby, else the primary (read)",
                "statements: 2",
                "effect:     controls transactions and ends inside of one",
            ],
        );
        check(
            "SET search_path = a",
            &[
                "route:      primary (session): it changes the session, which the primary serves",
                "session:    set search_path",
            ],
        );
        check(
            "SHOW bellwether.lsn",
            &["route:      nowhere: the endpoint answers it itself", "answered:   show bellwether.lsn"],
        );
        check(
            "SELEC",
            &[
                "route:      primary (unparsable): it cannot be parsed here: not SQL, too long or nested too deep",
                commit,
            ],
        );
    }
}
