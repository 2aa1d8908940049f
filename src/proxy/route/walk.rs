//! One pass over a statement's tree that looks for what a standby may not run.
//!
//! It knows the kinds of nodes by name and what each holds; one that it does not know is refused. Every struct
//! is taken apart completely, so that a field which a later grammar adds fails to compile instead of going
//! unseen. The depth is bounded by the decoder of the tree, which follows 100 levels and fails beyond.

mod json;
mod modification;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    self as pg, CommonTableExpr, CteCycleClause, CteSearchClause, FuncCall, IntoClause, Node, OnCommitAction,
    RangeVar, SelectStmt, TypeName, WindowDef, WithClause,
};

use super::catalog;
use super::classify::Literals;
use super::leftovers;
use super::settings;
use super::verdict::{MayAlter, MayWrite, SessionEffect, WriteReason};

/// What the walk has found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The first reason against a standby; a certain write before an uncertain one.
    pub(super) reason: Option<WriteReason>,
    pub(super) may_write: MayWrite,
    pub(super) may_alter: MayAlter,
    pub(super) session: Vec<SessionEffect>,
    pub(super) literals: Literals,
}

impl Findings {
    /// Belongs to the primary, and leaves nothing behind.
    pub(super) fn primary(&mut self, reason: WriteReason) {
        let stronger = |found: &WriteReason| !found.certainly_writes() && reason.certainly_writes();
        if self.reason.as_ref().is_none_or(stronger) {
            self.reason = Some(reason);
        }
    }

    pub(super) fn write(&mut self, reason: WriteReason) {
        self.may_write = MayWrite::Yes;
        self.primary(reason);
    }

    /// Changes the session, which is served by the primary.
    pub(super) fn session(&mut self, effect: SessionEffect) {
        self.primary(WriteReason::Session);
        self.pin(effect);
    }

    /// Keeps something at the server, for a reason that is told elsewhere.
    pub(super) fn pin(&mut self, effect: SessionEffect) {
        self.session.push(effect);
    }

    pub(super) fn nodes(&mut self, nodes: &[Node]) {
        nodes.iter().filter_map(|node| node.node.as_ref()).for_each(|node| self.node(node));
    }

    pub(super) fn child(&mut self, node: &Option<Box<Node>>) {
        if let Some(node) = node.as_ref().and_then(|node| node.node.as_ref()) {
            self.node(node);
        }
    }

    /// The one list of the kinds that may appear in a query.
    fn node(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::SelectStmt(select) => self.select(select),
            NodeEnum::InsertStmt(_)
            | NodeEnum::UpdateStmt(_)
            | NodeEnum::DeleteStmt(_)
            | NodeEnum::MergeStmt(_) => {
                self.write(WriteReason::ModifyingCte);
                self.modification(node);
            }
            NodeEnum::RangeVar(relation) => self.relation(relation),
            NodeEnum::ColumnRef(pg::ColumnRef { fields, location: _ }) => self.column(fields),
            NodeEnum::FuncCall(call) => self.function_call(call),
            NodeEnum::WindowDef(window) => self.window(window),
            NodeEnum::TypeName(name) => self.type_name(name),
            NodeEnum::CommonTableExpr(cte) => self.common_table_expression(cte),
            NodeEnum::LockingClause(_) => self.primary(WriteReason::LockingClause),
            NodeEnum::List(pg::List { items }) => self.nodes(items),
            NodeEnum::AConst(_)
            | NodeEnum::Integer(_)
            | NodeEnum::Float(_)
            | NodeEnum::Boolean(_)
            | NodeEnum::String(_)
            | NodeEnum::BitString(_)
            | NodeEnum::ParamRef(_)
            | NodeEnum::AStar(_)
            | NodeEnum::Alias(_)
            | NodeEnum::SetToDefault(_)
            | NodeEnum::SqlvalueFunction(_)
            | NodeEnum::MergeSupportFunc(_)
            | NodeEnum::JsonFormat(_)
            | NodeEnum::JsonReturning(_) => {}
            _ => self.expression(node),
        }
    }

    fn expression(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::AExpr(expr) => {
                let pg::AExpr {
                    kind: _,
                    name,
                    lexpr,
                    rexpr,
                    rexpr_list_start: _,
                    rexpr_list_end: _,
                    location: _,
                } = expr.as_ref();
                self.operator(name);
                self.child(lexpr);
                self.child(rexpr);
            }
            NodeEnum::BoolExpr(expr) => {
                let pg::BoolExpr { xpr: _, boolop: _, args, location: _ } = expr.as_ref();
                self.nodes(args);
            }
            NodeEnum::TypeCast(cast) => {
                let pg::TypeCast { arg, type_name, location: _ } = cast.as_ref();
                self.child(arg);
                self.types(type_name);
            }
            NodeEnum::CollateClause(collate) => {
                let pg::CollateClause { arg, collname: _, location: _ } = collate.as_ref();
                self.child(arg);
            }
            NodeEnum::SubLink(link) => {
                let pg::SubLink {
                    xpr: _,
                    sub_link_type: _,
                    sub_link_id: _,
                    testexpr,
                    oper_name,
                    subselect,
                    location: _,
                } = link.as_ref();
                self.child(testexpr);
                self.operator(oper_name);
                self.child(subselect);
            }
            NodeEnum::CaseExpr(case) => {
                let pg::CaseExpr { xpr: _, casetype: _, casecollid: _, arg, args, defresult, location: _ } =
                    case.as_ref();
                self.child(arg);
                self.nodes(args);
                self.child(defresult);
            }
            NodeEnum::CaseWhen(when) => {
                let pg::CaseWhen { xpr: _, expr, result, location: _ } = when.as_ref();
                self.child(expr);
                self.child(result);
            }
            NodeEnum::CoalesceExpr(expr) => {
                let pg::CoalesceExpr { xpr: _, coalescetype: _, coalescecollid: _, args, location: _ } =
                    expr.as_ref();
                self.nodes(args);
            }
            NodeEnum::MinMaxExpr(expr) => {
                let pg::MinMaxExpr {
                    xpr: _,
                    minmaxtype: _,
                    minmaxcollid: _,
                    inputcollid: _,
                    op: _,
                    args,
                    location: _,
                } = expr.as_ref();
                self.nodes(args);
            }
            NodeEnum::NullTest(test) => {
                let pg::NullTest { xpr: _, arg, nulltesttype: _, argisrow: _, location: _ } = test.as_ref();
                self.child(arg);
            }
            NodeEnum::BooleanTest(test) => {
                let pg::BooleanTest { xpr: _, arg, booltesttype: _, location: _ } = test.as_ref();
                self.child(arg);
            }
            NodeEnum::NamedArgExpr(named) => {
                let pg::NamedArgExpr { xpr: _, arg, name: _, argnumber: _, location: _ } = named.as_ref();
                self.child(arg);
            }
            NodeEnum::RowExpr(row) => {
                let pg::RowExpr { xpr: _, args, row_typeid: _, row_format: _, colnames: _, location: _ } =
                    row.as_ref();
                self.nodes(args);
            }
            NodeEnum::AArrayExpr(pg::AArrayExpr { elements, list_start: _, list_end: _, location: _ }) => {
                self.nodes(elements);
            }
            NodeEnum::AIndirection(indirection) => {
                let pg::AIndirection { arg, indirection } = indirection.as_ref();
                self.child(arg);
                self.nodes(indirection);
            }
            NodeEnum::AIndices(indices) => {
                let pg::AIndices { is_slice: _, lidx, uidx } = indices.as_ref();
                self.child(lidx);
                self.child(uidx);
            }
            NodeEnum::GroupingFunc(grouping) => {
                let pg::GroupingFunc { xpr: _, args, refs: _, agglevelsup: _, location: _ } =
                    grouping.as_ref();
                self.nodes(args);
            }
            NodeEnum::GroupingSet(pg::GroupingSet { kind: _, content, location: _ }) => self.nodes(content),
            _ => self.clause(node),
        }
    }

    fn clause(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::ResTarget(target) => {
                let pg::ResTarget { name: _, indirection, val, location: _ } = target.as_ref();
                self.nodes(indirection);
                self.child(val);
            }
            NodeEnum::SortBy(sort) => {
                let pg::SortBy { node, sortby_dir: _, sortby_nulls: _, use_op, location: _ } = sort.as_ref();
                self.child(node);
                self.operator(use_op);
            }
            NodeEnum::JoinExpr(join) => {
                let pg::JoinExpr {
                    jointype: _,
                    is_natural: _,
                    larg,
                    rarg,
                    using_clause: _,
                    join_using_alias: _,
                    quals,
                    alias: _,
                    rtindex: _,
                } = join.as_ref();
                self.child(larg);
                self.child(rarg);
                self.child(quals);
            }
            NodeEnum::RangeSubselect(range) => {
                let pg::RangeSubselect { lateral: _, subquery, alias: _ } = range.as_ref();
                self.child(subquery);
            }
            NodeEnum::RangeFunction(range) => {
                let pg::RangeFunction {
                    lateral: _,
                    ordinality: _,
                    is_rowsfrom: _,
                    functions,
                    alias: _,
                    coldeflist,
                } = range;
                self.nodes(functions);
                self.nodes(coldeflist);
            }
            NodeEnum::ColumnDef(column) => self.column_definition(column),
            NodeEnum::RangeTableFunc(range) => {
                let pg::RangeTableFunc {
                    lateral: _,
                    docexpr,
                    rowexpr,
                    namespaces,
                    columns,
                    alias: _,
                    location: _,
                } = range.as_ref();
                self.child(docexpr);
                self.child(rowexpr);
                self.nodes(namespaces);
                self.nodes(columns);
            }
            NodeEnum::RangeTableFuncCol(column) => {
                let pg::RangeTableFuncCol {
                    colname: _,
                    type_name,
                    for_ordinality: _,
                    is_not_null: _,
                    colexpr,
                    coldefexpr,
                    location: _,
                } = column.as_ref();
                self.types(type_name);
                self.child(colexpr);
                self.child(coldefexpr);
            }
            NodeEnum::RangeTableSample(sample) => {
                let pg::RangeTableSample { relation, method, args, repeatable, location: _ } =
                    sample.as_ref();
                self.child(relation);
                self.sampling_method(method);
                self.nodes(args);
                self.child(repeatable);
            }
            _ => self.xml_or_json(node),
        }
    }

    pub(super) fn select(&mut self, select: &SelectStmt) {
        let SelectStmt {
            distinct_clause,
            into_clause,
            target_list,
            from_clause,
            where_clause,
            group_clause,
            group_distinct: _,
            having_clause,
            window_clause,
            values_lists,
            sort_clause,
            limit_offset,
            limit_count,
            limit_option: _,
            locking_clause,
            with_clause,
            op: _,
            all: _,
            larg,
            rarg,
        } = select;
        with_clause.iter().for_each(|with| self.with(with));
        into_clause.iter().for_each(|into| self.into(into));
        for nodes in [
            distinct_clause,
            target_list,
            from_clause,
            group_clause,
            window_clause,
            values_lists,
            sort_clause,
            locking_clause,
        ] {
            self.nodes(nodes);
        }
        for node in [where_clause, having_clause, limit_offset, limit_count] {
            self.child(node);
        }
        larg.iter().chain(rarg).for_each(|select| self.select(select));
    }

    fn with(&mut self, with: &WithClause) {
        let WithClause { ctes, recursive: _, location: _ } = with;
        self.nodes(ctes);
    }

    fn common_table_expression(&mut self, cte: &CommonTableExpr) {
        let CommonTableExpr {
            ctename: _,
            aliascolnames: _,
            ctematerialized: _,
            ctequery,
            search_clause,
            cycle_clause,
            location: _,
            cterecursive: _,
            cterefcount: _,
            ctecolnames: _,
            ctecoltypes: _,
            ctecoltypmods: _,
            ctecolcollations: _,
        } = cte;
        self.child(ctequery);
        if let Some(search) = search_clause {
            let CteSearchClause {
                search_col_list: _,
                search_breadth_first: _,
                search_seq_column: _,
                location: _,
            } = search;
        }
        if let Some(cycle) = cycle_clause {
            let CteCycleClause {
                cycle_col_list: _,
                cycle_mark_column: _,
                cycle_mark_value,
                cycle_mark_default,
                cycle_path_column: _,
                location: _,
                cycle_mark_type: _,
                cycle_mark_typmod: _,
                cycle_mark_collation: _,
                cycle_mark_neop: _,
            } = cycle.as_ref();
            self.child(cycle_mark_value);
            self.child(cycle_mark_default);
        }
    }

    /// `SELECT ... INTO`, and the table of CREATE TABLE AS.
    pub(super) fn into(&mut self, into: &IntoClause) {
        self.write(WriteReason::SelectInto);
        self.may_alter = MayAlter::Yes;
        into.rel.iter().for_each(|relation| self.created_table(relation, into.on_commit()));
    }

    /// A relation that the statement creates.
    pub(super) fn created(&mut self, relation: &RangeVar) {
        if is_temporary(relation) {
            self.primary(WriteReason::Temporary);
            self.pin(SessionEffect::Temporary);
        }
    }

    /// The same of a table.
    pub(super) fn created_table(&mut self, relation: &RangeVar, on_commit: OnCommitAction) {
        if is_temporary(relation) {
            self.primary(WriteReason::Temporary);
            self.session.extend(leftovers::temporary_table(relation, on_commit));
        }
    }

    pub(super) fn relation(&mut self, relation: &RangeVar) {
        let RangeVar {
            catalogname: _,
            schemaname,
            relname,
            inh: _,
            relpersistence: _,
            alias: _,
            location: _,
        } = relation;
        if schemaname.starts_with("pg_temp") {
            self.primary(WriteReason::Temporary);
        } else if relname.starts_with("pg_")
            && !schemaname.starts_with("pg_toast")
            && !catalog::is_replicated_relation(relname)
        {
            self.primary(WriteReason::ServerState);
        }
    }

    /// A sequence's own columns. (`SELECT * FROM a_sequence` cannot be told from a table.)
    fn column(&mut self, fields: &[Node]) {
        let last = fields.last().and_then(string);
        if matches!(last, Some("last_value" | "log_cnt" | "is_called")) {
            self.primary(WriteReason::Sequence);
        }
    }

    fn function_call(&mut self, call: &FuncCall) {
        let FuncCall {
            funcname,
            args,
            agg_order,
            agg_filter,
            over,
            agg_within_group: _,
            agg_star: _,
            agg_distinct: _,
            func_variadic: _,
            funcformat: _,
            location: _,
        } = call;
        self.function(funcname, args);
        self.nodes(args);
        self.nodes(agg_order);
        self.child(agg_filter);
        over.iter().for_each(|window| self.window(window));
    }

    fn function(&mut self, qualified: &[Node], args: &[Node]) {
        let name = match qualified {
            [name] => string(name),
            [schema, name] if string(schema) == Some("pg_catalog") => string(name),
            _ => None,
        };
        if matches!(name, Some("current_setting" | "set_config")) {
            self.literals = Literals::Matter;
        }
        match name {
            Some(name) if catalog::is_safe_function(name) => {}
            Some("current_setting")
                if args.first().and_then(constant).is_some_and(catalog::is_common_setting) => {}
            Some("set_config") => {
                let name = args.first().and_then(constant).unwrap_or("set_config");
                self.session(settings::set_config(name, args.get(2)));
                if name.eq_ignore_ascii_case("synchronous_commit") {
                    match args.get(1).and_then(constant).filter(|value| catalog::waits_for_quorum(value)) {
                        None => self.pin(SessionEffect::WeakCommit),
                        Some(value) if value.eq_ignore_ascii_case("remote_apply") => {
                            self.pin(SessionEffect::ReplayedCommit);
                        }
                        Some(_) => {}
                    }
                }
            }
            Some("setseed") => self.session(SessionEffect::Function("setseed".into())),
            Some(name) if name.starts_with("pg_advisory_") || name.starts_with("pg_try_advisory_") => {
                self.primary(WriteReason::AdvisoryLock);
                match name {
                    "pg_advisory_unlock_all" => self.pin(SessionEffect::AdvisoryUnlockAll),
                    "pg_advisory_unlock" | "pg_advisory_unlock_shared" => {
                        self.pin(SessionEffect::AdvisoryUnlock);
                    }
                    name if name.contains("_xact_") => {}
                    _ => self.pin(SessionEffect::AdvisoryLock),
                }
            }
            Some(name) if catalog::tells_of_server(name) => self.primary(WriteReason::ServerState),
            _ => {
                let parts: Vec<&str> = qualified.iter().filter_map(string).collect();
                self.write(WriteReason::Function(parts.join(".").into()));
            }
        }
    }

    /// An operator is looked up like a function. Unqualified ones are taken for PostgreSQL's own.
    fn operator(&mut self, qualified: &[Node]) {
        if let [schema, _] = qualified
            && string(schema) != Some("pg_catalog")
        {
            self.write(WriteReason::Operator);
        }
    }

    fn sampling_method(&mut self, qualified: &[Node]) {
        let name = match qualified {
            [name] => string(name),
            [schema, name] if string(schema) == Some("pg_catalog") => string(name),
            _ => None,
        };
        if !matches!(name, Some("system" | "bernoulli")) {
            self.write(WriteReason::Function(name.unwrap_or("tablesample").into()));
        }
    }

    fn window(&mut self, window: &WindowDef) {
        let WindowDef {
            name: _,
            refname: _,
            partition_clause,
            order_clause,
            frame_options: _,
            start_offset,
            end_offset,
            location: _,
        } = window;
        self.nodes(partition_clause);
        self.nodes(order_clause);
        self.child(start_offset);
        self.child(end_offset);
    }

    fn types(&mut self, name: &Option<TypeName>) {
        name.iter().for_each(|name| self.type_name(name));
    }

    fn type_name(&mut self, name: &TypeName) {
        let TypeName {
            names: _,
            type_oid: _,
            setof: _,
            pct_type: _,
            typmods,
            typemod: _,
            array_bounds,
            location: _,
        } = name;
        self.nodes(typmods);
        self.nodes(array_bounds);
    }

    /// Of `FROM f() AS t(a int)`: a name and a type only.
    fn column_definition(&mut self, column: &pg::ColumnDef) {
        self.types(&column.type_name);
        if column.raw_default.is_some() || !column.constraints.is_empty() {
            self.write(WriteReason::UnknownNode);
        }
    }
}

fn is_temporary(relation: &RangeVar) -> bool {
    relation.relpersistence == "t" || relation.schemaname.starts_with("pg_temp")
}

/// A part of a qualified name.
pub(super) fn string(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::String(pg::String { sval })) => Some(sval),
        _ => None,
    }
}

/// A string constant.
pub(super) fn constant(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::AConst(pg::AConst {
            val: Some(pg::a_const::Val::Sval(pg::String { sval })), ..
        })) => Some(sval),
        _ => None,
    }
}
