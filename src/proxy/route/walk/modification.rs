//! INSERT, UPDATE, DELETE, MERGE.

use pg_query::NodeEnum;
use pg_query::protobuf::{self as pg, Node, ReturningClause};

use super::Findings;
use crate::proxy::route::verdict::WriteReason;

impl Findings {
    /// INSERT, UPDATE, DELETE and MERGE, after their reason has been noted: what their expressions do to the
    /// session (`UPDATE ... WHERE pg_try_advisory_lock(id)`).
    pub(in crate::proxy::route) fn modification(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::InsertStmt(insert) => {
                let pg::InsertStmt {
                    relation: _,
                    cols: _,
                    select_stmt,
                    on_conflict_clause,
                    returning_clause,
                    with_clause,
                    r#override: _,
                } = insert.as_ref();
                with_clause.iter().for_each(|with| self.with(with));
                self.child(select_stmt);
                if let Some(conflict) = on_conflict_clause {
                    let pg::OnConflictClause { action: _, infer: _, target_list, where_clause, location: _ } =
                        conflict.as_ref();
                    self.nodes(target_list);
                    self.child(where_clause);
                }
                self.returning(returning_clause);
            }
            NodeEnum::UpdateStmt(update) => {
                let pg::UpdateStmt {
                    relation: _,
                    target_list,
                    where_clause,
                    from_clause,
                    returning_clause,
                    with_clause,
                } = update.as_ref();
                with_clause.iter().for_each(|with| self.with(with));
                self.nodes(target_list);
                self.nodes(from_clause);
                self.child(where_clause);
                self.returning(returning_clause);
            }
            NodeEnum::DeleteStmt(delete) => {
                let pg::DeleteStmt { relation: _, using_clause, where_clause, returning_clause, with_clause } =
                    delete.as_ref();
                with_clause.iter().for_each(|with| self.with(with));
                self.nodes(using_clause);
                self.child(where_clause);
                self.returning(returning_clause);
            }
            NodeEnum::MergeStmt(merge) => {
                let pg::MergeStmt {
                    relation: _,
                    source_relation,
                    join_condition,
                    merge_when_clauses,
                    returning_clause,
                    with_clause,
                } = merge.as_ref();
                with_clause.iter().for_each(|with| self.with(with));
                self.child(source_relation);
                self.child(join_condition);
                merge_when_clauses.iter().for_each(|clause| self.merge_when(clause));
                self.returning(returning_clause);
            }
            _ => self.write(WriteReason::UnknownNode),
        }
    }

    fn merge_when(&mut self, clause: &Node) {
        let Some(NodeEnum::MergeWhenClause(when)) = &clause.node else { return };
        let pg::MergeWhenClause {
            match_kind: _,
            command_type: _,
            r#override: _,
            condition,
            target_list,
            values,
        } = when.as_ref();
        self.child(condition);
        self.nodes(target_list);
        self.nodes(values);
    }

    fn returning(&mut self, clause: &Option<ReturningClause>) {
        let Some(ReturningClause { options: _, exprs }) = clause else { return };
        self.nodes(exprs);
    }
}
