//! What a statement leaves at its server beyond the transaction where another can take it back: temporary tables,
//! cursors WITH HOLD, advisory locks. What cannot be told by name, or counted by its answers, stays until all of
//! its kind goes.

use pg_query::NodeEnum;
use pg_query::protobuf::{DropStmt, Node, ObjectType, OnCommitAction, RangeVar, RenameStmt, SelectStmt};

use super::settings::is_bare;
use super::verdict::{AdvisoryCall, SessionEffect};
use super::walk::string;

/// A longer name is cut by the server (`NAMEDATALEN`).
const MAX_NAME: usize = 63;

/// Of a temporary table that is created with this ON COMMIT. `None`: it goes with its transaction.
pub(super) fn temporary_table(relation: &RangeVar, on_commit: OnCommitAction) -> Option<SessionEffect> {
    let name = &relation.relname;
    match on_commit {
        OnCommitAction::OncommitDrop => None,
        _ if name.len() > MAX_NAME => Some(SessionEffect::Temporary),
        _ => Some(SessionEffect::TemporaryTable(name.as_str().into())),
    }
}

/// Of DROP TABLE: the names under which temporary tables may be meant.
pub(super) fn dropped(drop: &DropStmt) -> impl Iterator<Item = SessionEffect> {
    let is_table = drop.remove_type() == ObjectType::ObjectTable;
    let names = drop.objects.iter().filter(move |_| is_table).filter_map(|object| match &object.node {
        Some(NodeEnum::List(list)) => Some(&list.items),
        _ => None,
    });
    names.filter_map(|name| match &name[..] {
        [name] => Some(SessionEffect::DropTable(string(name)?.into())),
        [schema, name] if string(schema) == Some("pg_temp") => {
            Some(SessionEffect::DropTemporaryTable(string(name)?.into()))
        }
        _ => None,
    })
}

/// Whether a relation is called otherwise afterwards. (ALTER INDEX does it to tables, too.)
pub(super) fn renames_relation(rename: &RenameStmt) -> bool {
    let part = [ObjectType::ObjectColumn, ObjectType::ObjectAttribute, ObjectType::ObjectTabconstraint];
    rename.relation.is_some() && !part.contains(&rename.rename_type())
}

/// The only effect of a SELECT that is nothing but one call about an advisory lock: it happens once for each row
/// that is answered, and the row says whether it did.
pub(super) fn resolve(select: &SelectStmt, effects: &mut [SessionEffect]) {
    if let [effect @ (SessionEffect::AdvisoryLock | SessionEffect::AdvisoryUnlock)] = effects
        && let Some(call) = only_call(select)
    {
        *effect = SessionEffect::Advisory(call);
    }
}

fn only_call(select: &SelectStmt) -> Option<AdvisoryCall> {
    let [Node { node: Some(NodeEnum::ResTarget(target)) }] = &select.target_list[..] else { return None };
    let Some(NodeEnum::FuncCall(call)) = &target.val.as_ref()?.node else { return None };
    let name = call.funcname.last().and_then(string)?;
    if !is_bare(select) {
        return None;
    }
    match name {
        "pg_advisory_lock" | "pg_advisory_lock_shared" => Some(AdvisoryCall::Lock),
        "pg_try_advisory_lock" | "pg_try_advisory_lock_shared" => Some(AdvisoryCall::TryLock),
        "pg_advisory_unlock" | "pg_advisory_unlock_shared" => Some(AdvisoryCall::Unlock),
        _ => None,
    }
}
