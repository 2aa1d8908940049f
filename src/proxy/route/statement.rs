//! What each kind of statement does. Queries are left to [`Findings`]; a kind that is not named here is DDL.

use std::sync::Arc;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    self as pg, CopyStmt, CreateTableAsStmt, DeclareCursorStmt, DiscardMode, ExplainStmt, Node,
    OnCommitAction, PrepareStmt, TransactionStmt, TransactionStmtKind, VariableSetKind, VariableSetStmt,
};

use super::catalog;
use super::classify::Literals;
use super::knob::{self, Knob, KnobCommand, Route, Scope, Shown};
use super::leftovers;
use super::listen;
use super::settings;
use super::verdict::{
    Access, CopyData, Isolation, MayAlter, MayWrite, NewValue, SessionEffect, SqlPrepare, Step,
    TransactionAccess, TransactionEffect, TransactionEnd, TransactionModes, Verdict, WriteReason, union,
};
use super::walk::{Findings, constant};

/// The statements of one text, as they are added up.
#[derive(Debug)]
pub(super) struct Statements<'a> {
    sql: &'a str,
    /// The statement being added, of `sql`.
    text: &'a str,
    count: usize,
    findings: Findings,
    steps: Vec<Step>,
    knobs: Vec<KnobCommand>,
    copy: CopyData,
}

impl<'a> Statements<'a> {
    pub(super) fn new(sql: &'a str) -> Statements<'a> {
        Statements {
            sql,
            text: "",
            count: 0,
            findings: Findings::default(),
            steps: Vec::new(),
            knobs: Vec::new(),
            copy: CopyData::None,
        }
    }

    /// The next statement; `text` is it alone.
    pub(super) fn add(&mut self, statement: Option<&NodeEnum>, text: &'a str) {
        self.count += 1;
        self.text = text;
        self.steps.push(Step::default());
        match statement {
            Some(statement) => self.statement(statement),
            None => self.findings.write(WriteReason::UnknownNode),
        }
        let mut session = std::mem::take(&mut self.findings.session);
        if let Some(NodeEnum::SelectStmt(select)) = statement {
            settings::resolve(select, &mut session);
            leftovers::resolve(select, &mut session);
        }
        self.step().session = session;
    }

    /// The statement being added.
    fn step(&mut self) -> &mut Step {
        self.steps.last_mut().expect("`add` has begun with it")
    }

    pub(super) fn verdict(mut self, hint: Option<Route>) -> (Verdict, Literals) {
        if !self.knobs.is_empty() && self.knobs.len() < self.count {
            // The text is sent as it is; a server keeps what it does not know as a placeholder.
            self.findings.session(SessionEffect::Set("bellwether".into(), NewValue::Unknown));
            let placeholder = std::mem::take(&mut self.findings.session);
            self.step().session.extend(placeholder);
        }
        let Findings { reason, may_write, may_alter, session: _, literals } = self.findings;
        if self.steps.iter().all(|step| *step == Step::default()) {
            self.steps.clear();
        }
        let verdict = Verdict {
            access: reason.map_or(Access::Read, |reason| Access::Write { reason }),
            statements: self.count,
            transaction: united(&self.steps),
            session: union(&self.steps),
            steps: self.steps,
            knobs: self.knobs,
            hint,
            copy: self.copy,
            may_write,
            may_alter,
        };
        (verdict, literals)
    }

    fn statement(&mut self, statement: &NodeEnum) {
        let is_query = matches!(
            statement,
            NodeEnum::SelectStmt(_)
                | NodeEnum::InsertStmt(_)
                | NodeEnum::UpdateStmt(_)
                | NodeEnum::DeleteStmt(_)
                | NodeEnum::MergeStmt(_)
        );
        if !is_query && !matches!(statement, NodeEnum::ExecuteStmt(_)) {
            // Names, values of settings, file names: what a command says of itself.
            self.findings.literals = Literals::Matter;
        }
        match statement {
            NodeEnum::SelectStmt(select) => self.findings.select(select),
            NodeEnum::InsertStmt(_)
            | NodeEnum::UpdateStmt(_)
            | NodeEnum::DeleteStmt(_)
            | NodeEnum::MergeStmt(_) => {
                self.findings.write(WriteReason::Dml);
                self.findings.modification(statement);
            }
            NodeEnum::ExplainStmt(explain) => self.explain(explain),
            NodeEnum::CopyStmt(copy) => self.copy(copy),
            NodeEnum::TransactionStmt(transaction) => self.transaction(transaction),
            NodeEnum::VariableSetStmt(set) => self.set(set),
            NodeEnum::VariableShowStmt(pg::VariableShowStmt { name }) => self.show(name),
            NodeEnum::CreateTableAsStmt(create) => self.create_table_as(create),
            NodeEnum::CreateStmt(create) => self.create_table(create.relation.as_ref(), create.oncommit()),
            NodeEnum::CreateSeqStmt(create) => self.create(create.sequence.as_ref()),
            NodeEnum::ViewStmt(create) => self.create(create.view.as_ref()),
            NodeEnum::DeclareCursorStmt(declare) => self.declare(declare),
            NodeEnum::ClosePortalStmt(close) if close.portalname.is_empty() => {
                self.findings.session(SessionEffect::CloseAll);
            }
            NodeEnum::ClosePortalStmt(close) => {
                self.findings.session(SessionEffect::CloseCursor(close.portalname.as_str().into()));
            }
            NodeEnum::FetchStmt(_) => self.findings.session(SessionEffect::Cursor),
            _ => self.utility(statement),
        }
    }

    fn utility(&mut self, statement: &NodeEnum) {
        let findings = &mut self.findings;
        match statement {
            NodeEnum::PrepareStmt(prepare) => {
                let prepare = self.prepare(prepare);
                self.findings.session(SessionEffect::Prepare(Arc::new(prepare)));
            }
            NodeEnum::ExecuteStmt(execute) => {
                findings.nodes(&execute.params);
                findings.session(SessionEffect::Execute(execute.name.as_str().into()));
                findings.may_write = MayWrite::Yes;
            }
            NodeEnum::DeallocateStmt(deallocate) if deallocate.isall => {
                findings.session(SessionEffect::DeallocateAll);
            }
            NodeEnum::DeallocateStmt(deallocate) => {
                findings.session(SessionEffect::Deallocate(deallocate.name.as_str().into()));
            }
            NodeEnum::DiscardStmt(discard) => findings.session(match discard.target() {
                DiscardMode::DiscardAll => SessionEffect::DiscardAll,
                DiscardMode::DiscardTemp => SessionEffect::DiscardTemporary,
                _ => SessionEffect::Discard,
            }),
            NodeEnum::ListenStmt(listen) => {
                findings.session(SessionEffect::Listen(listen.conditionname.as_str().into()));
            }
            NodeEnum::UnlistenStmt(unlisten) if unlisten.conditionname.is_empty() => {
                findings.session(SessionEffect::UnlistenAll);
            }
            NodeEnum::UnlistenStmt(unlisten) => {
                let channel = unlisten.conditionname.as_str().into();
                findings.session(match listen::stands_in(self.sql) {
                    true => SessionEffect::Listen(channel),
                    false => SessionEffect::Unlisten(channel),
                });
            }
            NodeEnum::LoadStmt(_) => findings.session(SessionEffect::Load),
            NodeEnum::DoStmt(_) => {
                findings.write(WriteReason::Utility);
                findings.may_alter = MayAlter::Yes;
                findings.pin(SessionEffect::Do);
            }
            NodeEnum::CallStmt(_) => {
                findings.write(WriteReason::Utility);
                findings.may_alter = MayAlter::Yes;
                findings.pin(SessionEffect::Call);
            }
            NodeEnum::DropStmt(drop) => {
                findings.write(WriteReason::Ddl);
                findings.may_alter = MayAlter::Yes;
                findings.session.extend(leftovers::dropped(drop));
            }
            NodeEnum::RenameStmt(rename) if leftovers::renames_relation(rename) => {
                findings.pin(SessionEffect::RenameRelation);
                self.create(None);
            }
            NodeEnum::LockStmt(_) => findings.primary(WriteReason::Lock),
            NodeEnum::ConstraintsSetStmt(_) | NodeEnum::CheckPointStmt(_) => {
                findings.primary(WriteReason::Utility);
            }
            NodeEnum::NotifyStmt(_)
            | NodeEnum::VacuumStmt(_)
            | NodeEnum::ClusterStmt(_)
            | NodeEnum::ReindexStmt(_)
            | NodeEnum::RefreshMatViewStmt(_)
            | NodeEnum::AlterSystemStmt(_) => findings.write(WriteReason::Utility),
            _ => self.create(None),
        }
    }

    fn create_table(&mut self, relation: Option<&pg::RangeVar>, on_commit: OnCommitAction) {
        self.create(None);
        relation.into_iter().for_each(|relation| self.findings.created_table(relation, on_commit));
    }

    fn prepare(&self, prepare: &PrepareStmt) -> SqlPrepare {
        let PrepareStmt { name, argtypes: _, query } = prepare;
        let mut prepared = Statements::new(self.sql);
        prepared.add(query.as_ref().and_then(|query| query.node.as_ref()), "");
        let (verdict, _) = prepared.verdict(None);
        SqlPrepare { name: name.as_str().into(), text: self.text.into(), verdict: Arc::new(verdict) }
    }

    fn create(&mut self, relation: Option<&pg::RangeVar>) {
        self.findings.write(WriteReason::Ddl);
        self.findings.may_alter = MayAlter::Yes;
        relation.into_iter().for_each(|relation| self.findings.created(relation));
        // Functions, types and operators of this session live in pg_temp, too; their names are spelled in as
        // many ways as there are statements.
        if contains_ignoring_case(self.sql, "pg_temp") {
            self.findings.primary(WriteReason::Temporary);
            self.findings.pin(SessionEffect::Temporary);
        }
    }

    fn create_table_as(&mut self, create: &CreateTableAsStmt) {
        let into = create.into.as_ref();
        let on_commit = into.map_or(OnCommitAction::OncommitNoop, |into| into.on_commit());
        self.create_table(into.and_then(|into| into.rel.as_ref()), on_commit);
        self.query(&create.query);
    }

    /// A statement inside of another; queries and DML only.
    fn query(&mut self, query: &Option<Box<Node>>) {
        if let Some(query) = query.as_ref().and_then(|query| query.node.as_ref()) {
            self.statement(query);
        }
    }

    fn explain(&mut self, explain: &ExplainStmt) {
        let ExplainStmt { query, options } = explain;
        let analyze = |option: &Node| matches!(&option.node, Some(NodeEnum::DefElem(option)) if option.defname == "analyze");
        let before = self.findings.may_write;
        self.query(query);
        if !options.iter().any(analyze) {
            // Planned, not run.
            self.findings.may_write = before;
        }
    }

    fn copy(&mut self, copy: &CopyStmt) {
        let CopyStmt { relation, query, attlist: _, is_from, is_program, filename, options: _, where_clause } =
            copy;
        let with_client = filename.is_empty() && !is_program;
        if *is_from {
            self.findings.write(WriteReason::CopyFrom);
            self.findings.child(where_clause);
        } else {
            relation.iter().for_each(|relation| self.findings.relation(relation));
            self.query(query);
        }
        match (with_client, *is_from) {
            (true, true) => self.copy = CopyData::In,
            (true, false) if self.copy == CopyData::None => self.copy = CopyData::Out,
            (true, false) => {}
            // A file or a program of the server.
            (false, _) => self.findings.write(WriteReason::Utility),
        }
    }

    fn declare(&mut self, declare: &DeclareCursorStmt) {
        /// `CURSOR_OPT_HOLD` in parsenodes.h.
        const HOLD: i32 = 0x20;
        self.query(&declare.query);
        if declare.options & HOLD != 0 {
            self.findings.session(SessionEffect::DeclareHold(declare.portalname.as_str().into()));
        }
    }

    fn transaction(&mut self, statement: &TransactionStmt) {
        let TransactionStmt { kind: _, options, savepoint_name, gid, chain, location: _ } = statement;
        let effect = match (statement.kind(), chain) {
            (TransactionStmtKind::TransStmtBegin | TransactionStmtKind::TransStmtStart, _) => {
                let modes = modes(options);
                self.transaction_modes(modes);
                TransactionEffect::Begin(modes)
            }
            (TransactionStmtKind::TransStmtCommit, false) => TransactionEffect::Commit,
            (TransactionStmtKind::TransStmtCommit, true) => TransactionEffect::CommitAndChain,
            (TransactionStmtKind::TransStmtRollback, false) => TransactionEffect::Rollback,
            (TransactionStmtKind::TransStmtRollback, true) => TransactionEffect::RollbackAndChain,
            (TransactionStmtKind::TransStmtSavepoint, _) => {
                TransactionEffect::Savepoint(savepoint_name.as_str().into())
            }
            (TransactionStmtKind::TransStmtRelease, _) => {
                TransactionEffect::ReleaseSavepoint(savepoint_name.as_str().into())
            }
            (TransactionStmtKind::TransStmtRollbackTo, _) => {
                TransactionEffect::RollbackToSavepoint(savepoint_name.as_str().into())
            }
            (TransactionStmtKind::TransStmtPrepare, _) => {
                self.findings.primary(WriteReason::Transaction);
                TransactionEffect::Prepare(gid.as_str().into())
            }
            (TransactionStmtKind::TransStmtCommitPrepared, _) => {
                self.findings.write(WriteReason::Transaction);
                TransactionEffect::CommitPrepared(gid.as_str().into())
            }
            (TransactionStmtKind::TransStmtRollbackPrepared, _) => {
                self.findings.write(WriteReason::Transaction);
                TransactionEffect::RollbackPrepared(gid.as_str().into())
            }
            (TransactionStmtKind::Undefined, _) => {
                self.findings.write(WriteReason::UnknownNode);
                TransactionEffect::None
            }
        };
        self.step().transaction = effect;
    }

    fn transaction_modes(&mut self, modes: TransactionModes) {
        if modes.isolation == Some(Isolation::Serializable) {
            self.findings.primary(WriteReason::Serializable);
        } else if !modes.fit_for_standby() {
            self.findings.primary(WriteReason::Transaction);
        }
    }

    fn set(&mut self, set: &VariableSetStmt) {
        let VariableSetStmt { kind: _, name, args, jumble_args: _, is_local, location: _ } = set;
        let lower = name.to_ascii_lowercase();
        match set.kind() {
            VariableSetKind::VarSetMulti => self.set_several(name, args),
            VariableSetKind::VarResetAll => self.findings.session(SessionEffect::ResetAll),
            _ if lower.starts_with(knob::PREFIX) => self.set_own(set),
            VariableSetKind::VarReset => self.findings.session(SessionEffect::Reset(lower.into())),
            VariableSetKind::VarSetValue if lower == "synchronous_commit" => {
                self.findings.session(match is_local {
                    true => SessionEffect::SetLocal(lower.into()),
                    false => settings::set(&lower, args),
                });
                if !args.iter().map(settings::text).all(|value| catalog::waits_for_quorum(&value)) {
                    self.findings.pin(SessionEffect::WeakCommit);
                } else if args.iter().any(|value| settings::text(value).eq_ignore_ascii_case("remote_apply"))
                {
                    self.findings.pin(SessionEffect::ReplayedCommit);
                }
            }
            // Of the current transaction, whatever the spelling (guc_tables.c: GUC_NO_RESET_ALL, reset at its end).
            _ if *is_local || is_of_transaction(&lower) => {
                // What is created without a schema is then temporary, and stays.
                let names_temporary = |value: &Node| settings::text(value).eq_ignore_ascii_case("pg_temp");
                if lower == "search_path" && args.first().is_some_and(names_temporary) {
                    self.findings.pin(SessionEffect::Temporary);
                }
                self.findings.session(SessionEffect::SetLocal(lower.into()));
            }
            VariableSetKind::VarSetValue => self.findings.session(settings::set(&lower, args)),
            VariableSetKind::VarSetDefault => {
                self.findings.session(SessionEffect::Set(lower.into(), NewValue::Default));
            }
            _ => self.findings.session(SessionEffect::Set(lower.into(), NewValue::Unknown)),
        }
    }

    /// `SET TRANSACTION ...` and its relatives, by the names that gram.y gives them.
    fn set_several(&mut self, name: &str, options: &[Node]) {
        let modes = modes(options);
        match name {
            "TRANSACTION" => {
                self.transaction_modes(modes);
                self.step().transaction = TransactionEffect::SetTransaction(modes);
            }
            "SESSION CHARACTERISTICS" => {
                for effect in settings::characteristics(options) {
                    self.findings.session(effect);
                }
            }
            // TRANSACTION SNAPSHOT: exported by a session of one server, so nobody else has it.
            _ => {
                self.findings.primary(WriteReason::Transaction);
                self.step().transaction = TransactionEffect::SetTransaction(TransactionModes::default());
            }
        }
    }

    fn set_own(&mut self, set: &VariableSetStmt) {
        let value = match set.kind() {
            VariableSetKind::VarSetValue => {
                Some(set.args.iter().map(settings::text).collect::<Vec<_>>().join(", "))
            }
            _ => None,
        };
        let scope = if set.is_local { Scope::Local } else { Scope::Session };
        let command = match (Knob::parse(&set.name, value.as_deref()), set.kind()) {
            (Ok(setting), VariableSetKind::VarReset) => KnobCommand::Reset(setting),
            (Ok(setting), _) => KnobCommand::Set(scope, setting),
            (Err(invalid), _) => KnobCommand::Invalid(invalid),
        };
        self.knobs.push(command);
    }

    fn show(&mut self, name: &str) {
        if name.to_ascii_lowercase().starts_with(knob::PREFIX) {
            self.knobs.push(Shown::parse(name).map_or_else(KnobCommand::Invalid, KnobCommand::Show));
        } else if !catalog::is_common_setting(name) {
            self.findings.primary(WriteReason::ServerState);
        }
    }
}

fn modes(options: &[Node]) -> TransactionModes {
    let mut modes = TransactionModes::default();
    for option in options {
        let Some(NodeEnum::DefElem(option)) = &option.node else { continue };
        let Some(arg) = &option.arg else { continue };
        match option.defname.as_str() {
            "transaction_isolation" => modes.isolation = constant(arg).and_then(isolation),
            "transaction_read_only" if settings::text(arg) == "0" => {
                modes.access = Some(TransactionAccess::ReadWrite);
            }
            "transaction_read_only" => modes.access = Some(TransactionAccess::ReadOnly),
            // DEFERRABLE means something for SERIALIZABLE READ ONLY alone.
            _ => {}
        }
    }
    modes
}

fn isolation(level: &str) -> Option<Isolation> {
    match level {
        "read uncommitted" => Some(Isolation::ReadUncommitted),
        "read committed" => Some(Isolation::ReadCommitted),
        "repeatable read" => Some(Isolation::RepeatableRead),
        "serializable" => Some(Isolation::Serializable),
        _ => None,
    }
}

/// Not all that are called so: `transaction_timeout` is the session's.
fn is_of_transaction(setting: &str) -> bool {
    matches!(setting, "transaction_isolation" | "transaction_read_only" | "transaction_deferrable")
}

/// The transaction control of a text: that of its only statement, or where all of them lead.
fn united(steps: &[Step]) -> TransactionEffect {
    let mut effects =
        steps.iter().map(|step| &step.transaction).filter(|effect| **effect != TransactionEffect::None);
    match steps {
        [] => return TransactionEffect::None,
        [only] => return only.transaction.clone(),
        _ if effects.clone().next().is_none() => return TransactionEffect::None,
        _ => {}
    }
    let ends = effects.clone().rev().find_map(end).unwrap_or(TransactionEnd::Unchanged);
    let commits = if effects.any(TransactionEffect::ends_with_commit) { MayWrite::Yes } else { MayWrite::No };
    TransactionEffect::Several { ends, commits }
}

fn end(effect: &TransactionEffect) -> Option<TransactionEnd> {
    match effect {
        TransactionEffect::Begin(_)
        | TransactionEffect::CommitAndChain
        | TransactionEffect::RollbackAndChain => Some(TransactionEnd::InBlock),
        TransactionEffect::Commit | TransactionEffect::Rollback | TransactionEffect::Prepare(_) => {
            Some(TransactionEnd::Idle)
        }
        TransactionEffect::Several { ends, .. } => Some(*ends),
        TransactionEffect::None
        | TransactionEffect::SetTransaction(_)
        | TransactionEffect::Savepoint(_)
        | TransactionEffect::RollbackToSavepoint(_)
        | TransactionEffect::ReleaseSavepoint(_)
        | TransactionEffect::CommitPrepared(_)
        | TransactionEffect::RollbackPrepared(_) => None,
    }
}

fn contains_ignoring_case(text: &str, lower: &str) -> bool {
    text.as_bytes().windows(lower.len()).any(|window| window.eq_ignore_ascii_case(lower.as_bytes()))
}
