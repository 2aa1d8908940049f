//! What a statement text means for routing: whether a standby may run it, and what it does to the transaction
//! and to the session. Values only; [`super::classify()`] makes them, the session reads them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::knob::{KnobCommand, Route};

/// All there is to know about a statement text before it is sent. One text may hold several statements (a
/// simple query string); then this is their union: one write makes the text a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub access: Access,
    /// Statements in the text; 0 for an empty string or one of comments only (PostgreSQL answers
    /// EmptyQueryResponse), and for a text that cannot be parsed.
    pub statements: usize,
    pub transaction: TransactionEffect,
    /// What outlives the transaction at the server. In the order of the text, without repetitions of the same
    /// value.
    pub session: Vec<SessionEffect>,
    /// The same for each statement, so that a session can follow one after the other as the server completes
    /// them; empty when there is nothing to follow.
    pub steps: Vec<Step>,
    /// Commands about `bellwether.*` settings, in the order of the text.
    pub knobs: Vec<KnobCommand>,
    /// From a leading comment, `/* bellwether: standby */`.
    pub hint: Option<Route>,
    pub copy: CopyData,
    pub may_write: MayWrite,
    pub may_alter: MayAlter,
}

impl Verdict {
    /// Of what is not understood: the primary's, and it may do anything. Also for a text that the classifier
    /// must not be asked about, see [`super::classify()`].
    pub fn unparsable(hint: Option<Route>) -> Verdict {
        Verdict {
            access: Access::Write { reason: WriteReason::Unparsable },
            statements: 0,
            transaction: TransactionEffect::None,
            session: Vec::new(),
            steps: Vec::new(),
            knobs: Vec::new(),
            hint,
            copy: CopyData::None,
            may_write: MayWrite::Yes,
            may_alter: MayAlter::Yes,
        }
    }

    pub fn is_read(&self) -> bool {
        self.access == Access::Read
    }

    /// The text holds nothing but commands that the endpoint answers itself.
    pub fn is_own(&self) -> bool {
        self.statements > 0 && self.knobs.len() == self.statements
    }

    /// What a text deallocates that holds nothing but one DEALLOCATE.
    pub fn deallocates(&self) -> Option<Deallocated<'_>> {
        match (self.statements, self.session.as_slice()) {
            (1, [SessionEffect::Deallocate(name)]) => Some(Deallocated::One(name)),
            (1, [SessionEffect::DeallocateAll]) => Some(Deallocated::All),
            _ => None,
        }
    }

    /// The channels that the text listens to.
    pub fn listens_to(&self) -> impl Iterator<Item = &str> {
        self.session.iter().filter_map(|effect| match effect {
            SessionEffect::Listen(channel) => Some(&**channel),
            _ => None,
        })
    }

    /// What it means depends on what prepared statements are called.
    pub fn executes_by_name(&self) -> bool {
        self.session.iter().any(|effect| matches!(effect, SessionEffect::Execute(_)))
    }

    /// Together with what the statements do that it executes by name, where that is more. `known`: those that are
    /// prepared before it.
    pub fn with_executed(&self, known: impl Fn(&str) -> Option<Arc<Verdict>>) -> Option<Verdict> {
        // What the names mean behind the statements before; `None`: nothing.
        let mut here: HashMap<&str, Option<&SqlPrepare>> = HashMap::new();
        let mut known = Some(known);
        let mut steps = self.steps.clone();
        for (step, more) in self.steps.iter().zip(&mut steps) {
            for effect in &step.session {
                match effect {
                    SessionEffect::Prepare(prepare) => drop(here.insert(&prepare.name, Some(prepare))),
                    SessionEffect::Deallocate(name) => drop(here.insert(name, None)),
                    SessionEffect::DeallocateAll | SessionEffect::DiscardAll => {
                        here.clear();
                        known = None;
                    }
                    SessionEffect::Execute(name) => {
                        let executed = match here.get(&**name) {
                            Some(prepare) => prepare.map(|prepare| prepare.verdict.clone()),
                            None => known.as_ref().and_then(|known| known(name)),
                        };
                        let effects = executed.iter().flat_map(|verdict| &verdict.session);
                        more.session.extend(effects.map(by_name));
                    }
                    _ => {}
                }
            }
        }
        (steps != self.steps).then(|| Verdict { session: union(&steps), steps, ..self.clone() })
    }

    pub fn is_copy_in(&self) -> bool {
        self.copy == CopyData::In
    }

    /// Outside of a transaction block, the success of this text implies a commit that is in doubt when the
    /// server is lost before it has answered (08007 then, else 08006). Inside of one, only
    /// [`TransactionEffect::ends_with_commit`] counts.
    pub fn commits(&self) -> bool {
        self.may_write == MayWrite::Yes || self.transaction.ends_with_commit()
    }

    /// Commits would be told before they are durable on the quorum: by this text, or by what it prepares, which
    /// could be executed where its text is not at hand.
    pub fn weakens_commits(&self) -> bool {
        self.has_or_prepares(&SessionEffect::WeakCommit)
    }

    /// Commits would wait until they are replayed, in the same way.
    pub fn awaits_replay(&self) -> bool {
        self.has_or_prepares(&SessionEffect::ReplayedCommit)
    }

    fn has_or_prepares(&self, wanted: &SessionEffect) -> bool {
        self.session.iter().any(|effect| match effect {
            SessionEffect::Prepare(prepare) => prepare.verdict.has_or_prepares(wanted),
            effect => effect == wanted,
        })
    }
}

/// Executed by name, a lock's answer may be told in other rows (EXPLAIN) or none (CREATE TABLE AS).
fn by_name(effect: &SessionEffect) -> SessionEffect {
    match effect {
        SessionEffect::Advisory(_) => SessionEffect::AdvisoryLock,
        other => other.clone(),
    }
}

/// Of the session, in the order of the text, without repetitions.
pub(super) fn union(steps: &[Step]) -> Vec<SessionEffect> {
    let mut union = Vec::new();
    for effect in steps.iter().flat_map(|step| &step.session) {
        if !union.contains(effect) {
            union.push(effect.clone());
        }
    }
    union
}

/// What one statement of a text does beyond its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub transaction: TransactionEffect,
    pub session: Vec<SessionEffect>,
}

/// Whether a standby may run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Proven by the grammar: it writes nothing, locks no row, and answers the same on a standby that has
    /// replayed the same WAL.
    Read,
    /// Everything else: the primary's.
    Write { reason: WriteReason },
}

/// Why a text belongs to the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteReason {
    /// INSERT, UPDATE, DELETE, MERGE.
    Dml,
    /// The same inside WITH, at any depth.
    ModifyingCte,
    Ddl,
    /// `SELECT ... FOR UPDATE | NO KEY UPDATE | SHARE | KEY SHARE`.
    LockingClause,
    SelectInto,
    CopyFrom,
    /// LOCK TABLE.
    Lock,
    /// A function outside the list of safe ones.
    Function(Box<str>),
    /// `pg_advisory_*`: a lock that only excludes on the server where all take it.
    AdvisoryLock,
    /// `OPERATOR(schema.op)` outside `pg_catalog`.
    Operator,
    /// A view or a setting that tells of the server itself (`pg_stat_*`, `pg_locks`, ...).
    ServerState,
    /// A sequence read as a table: a standby sees up to 32 values ahead (SEQ_LOG_VALS in sequence.c).
    Sequence,
    /// Temporary objects live on one server; `pg_temp` names one.
    Temporary,
    /// SET, LISTEN, PREPARE and the like: they change the session, which the primary serves.
    Session,
    /// BEGIN without READ ONLY, and the rest of transaction control.
    Transaction,
    /// SERIALIZABLE does not exist on a standby.
    Serializable,
    /// Any other utility statement.
    Utility,
    /// A node of the grammar that is not known to be harmless.
    UnknownNode,
    /// Not SQL as this grammar knows it, or larger than [`super::classify::MAX_TEXT`], or nested too deep.
    Unparsable,
}

impl WriteReason {
    /// The label in `bellwether_statements_total{reason}`.
    pub fn as_str(&self) -> &'static str {
        match self {
            WriteReason::Dml => "dml",
            WriteReason::ModifyingCte => "modifying_cte",
            WriteReason::Ddl => "ddl",
            WriteReason::LockingClause => "locking_clause",
            WriteReason::SelectInto => "select_into",
            WriteReason::CopyFrom => "copy_from",
            WriteReason::Lock => "lock",
            WriteReason::Function(_) => "function",
            WriteReason::AdvisoryLock => "advisory_lock",
            WriteReason::Operator => "operator",
            WriteReason::ServerState => "server_state",
            WriteReason::Sequence => "sequence",
            WriteReason::Temporary => "temporary",
            WriteReason::Session => "session",
            WriteReason::Transaction => "transaction",
            WriteReason::Serializable => "serializable",
            WriteReason::Utility => "utility",
            WriteReason::UnknownNode => "unknown_node",
            WriteReason::Unparsable => "unparsable",
        }
    }

    /// Whether somebody who asks for a standby may have it there all the same. What certainly writes or locks
    /// is refused (25006); where the grammar only could not tell (an unknown function, a view of the server's
    /// state), the client has taken the answer upon itself, and the standby refuses a write by itself.
    pub fn certainly_writes(&self) -> bool {
        match self {
            WriteReason::Dml
            | WriteReason::ModifyingCte
            | WriteReason::Ddl
            | WriteReason::LockingClause
            | WriteReason::SelectInto
            | WriteReason::CopyFrom
            | WriteReason::Lock
            | WriteReason::AdvisoryLock
            | WriteReason::Temporary
            | WriteReason::Serializable
            | WriteReason::Utility => true,
            WriteReason::Function(_)
            | WriteReason::Operator
            | WriteReason::ServerState
            | WriteReason::Sequence
            | WriteReason::Session
            | WriteReason::Transaction
            | WriteReason::UnknownNode
            | WriteReason::Unparsable => false,
        }
    }
}

impl fmt::Display for WriteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteReason::Function(name) => write!(f, "function {name}"),
            other => f.write_str(other.as_str()),
        }
    }
}

/// Whether rows of COPY follow the text, and in which direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyData {
    #[default]
    None,
    /// `COPY ... FROM STDIN`.
    In,
    /// `COPY ... TO STDOUT`.
    Out,
}

/// Whether the text may leave something behind in the database. Reading `pg_stat_activity` is the primary's,
/// yet nothing is in doubt when it fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MayWrite {
    #[default]
    No,
    Yes,
}

/// Whether another text may mean something else behind it: DDL, and procedural code that may hold it. (Functions and
/// triggers are taken to hold none.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MayAlter {
    #[default]
    No,
    Yes,
}

/// Transaction control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TransactionEffect {
    #[default]
    None,
    Begin(TransactionModes),
    /// `SET TRANSACTION ...`; an imported snapshot is told by `access` (it belongs to the primary).
    SetTransaction(TransactionModes),
    Commit,
    /// `COMMIT AND CHAIN`: the next transaction has begun, with the same modes.
    CommitAndChain,
    Rollback,
    RollbackAndChain,
    Savepoint(Box<str>),
    RollbackToSavepoint(Box<str>),
    ReleaseSavepoint(Box<str>),
    /// `PREPARE TRANSACTION 'gid'`: the block ends, its outcome waits for a second phase.
    Prepare(Box<str>),
    CommitPrepared(Box<str>),
    RollbackPrepared(Box<str>),
    /// Transaction control among other statements in one text (`BEGIN; UPDATE ...; COMMIT`).
    Several {
        ends: TransactionEnd,
        commits: MayWrite,
    },
}

impl TransactionEffect {
    /// Success means that something was committed (or prepared, which is as durable).
    pub fn ends_with_commit(&self) -> bool {
        match self {
            TransactionEffect::Commit
            | TransactionEffect::CommitAndChain
            | TransactionEffect::Prepare(_)
            | TransactionEffect::CommitPrepared(_)
            | TransactionEffect::RollbackPrepared(_) => true,
            TransactionEffect::Several { commits, .. } => *commits == MayWrite::Yes,
            TransactionEffect::None
            | TransactionEffect::Begin(_)
            | TransactionEffect::SetTransaction(_)
            | TransactionEffect::Rollback
            | TransactionEffect::RollbackAndChain
            | TransactionEffect::Savepoint(_)
            | TransactionEffect::RollbackToSavepoint(_)
            | TransactionEffect::ReleaseSavepoint(_) => false,
        }
    }
}

/// Where a text with several statements leaves the session if all of them succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// As it was before.
    Unchanged,
    InBlock,
    Idle,
}

/// The options of BEGIN and SET TRANSACTION; `None`: not said, the session's default holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionModes {
    pub access: Option<TransactionAccess>,
    pub isolation: Option<Isolation>,
}

impl TransactionModes {
    /// A transaction that said these modes may run on a standby.
    pub fn fit_for_standby(&self) -> bool {
        self.access == Some(TransactionAccess::ReadOnly) && self.isolation != Some(Isolation::Serializable)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionAccess {
    ReadOnly,
    ReadWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

/// What a setting is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewValue {
    /// The text that `set_config` would take.
    Value(Box<str>),
    Default,
    /// The text does not say.
    Unknown,
}

/// What stays at the server when the transaction is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEffect {
    /// `SET name = ...`, `set_config(name, ...)`; also `SET SESSION CHARACTERISTICS` (as `default_transaction_*`), `SET ROLE` (`role`),
    /// `SET SESSION AUTHORIZATION` (`session_authorization`). Names in lower case.
    Set(Box<str>, NewValue),
    /// `SET LOCAL`: gone with the transaction. Not a pin.
    SetLocal(Box<str>),
    Reset(Box<str>),
    ResetAll,
    DiscardAll,
    /// `DISCARD PLANS | SEQUENCES`.
    Discard,
    DiscardTemporary,
    /// Of this channel, as the server calls it: folded, and cut to 63 bytes.
    Listen(Box<str>),
    /// LISTEN by way of the connection that all share: noted by a session, not read from a text.
    ListenShared(Box<str>),
    Unlisten(Box<str>),
    UnlistenAll,
    /// A temporary object was created, or `pg_temp` named.
    Temporary,
    /// A temporary table that outlives its transaction, by its name.
    TemporaryTable(Box<str>),
    /// `DROP TABLE name`: a temporary one, if `search_path` does not say otherwise.
    DropTable(Box<str>),
    /// `DROP TABLE pg_temp.name`.
    DropTemporaryTable(Box<str>),
    /// A table may be called otherwise from here on.
    RenameRelation,
    /// `PREPARE name AS ...`.
    Prepare(Arc<SqlPrepare>),
    /// `EXECUTE name`, also behind EXPLAIN and CREATE TABLE AS.
    Execute(Box<str>),
    Deallocate(Box<str>),
    DeallocateAll,
    /// `DECLARE name ... WITH HOLD`.
    DeclareHold(Box<str>),
    /// FETCH, MOVE: of a cursor that is the transaction's, or WITH HOLD. Not a pin.
    Cursor,
    /// `CLOSE name`.
    CloseCursor(Box<str>),
    CloseAll,
    /// A session-level advisory lock may be taken (transaction-level ones go with the transaction).
    AdvisoryLock,
    /// One may be released.
    AdvisoryUnlock,
    /// The same once for each row of the answer, which tells.
    Advisory(AdvisoryCall),
    /// All are.
    AdvisoryUnlockAll,
    Load,
    /// DO and CALL: procedural code that may do any of these.
    Do,
    Call,
    /// State by function call: `setseed`.
    Function(Box<str>),
    /// `synchronous_commit` is set to a value under which a commit does not wait to be flushed on the synchronous
    /// standbys. Beside the effect of setting it; not a pin by itself.
    WeakCommit,
    /// To `remote_apply`, in the same way: a commit waits until it is replayed.
    ReplayedCommit,
}

/// A call about a session-level advisory lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdvisoryCall {
    Lock,
    /// True: it was taken.
    TryLock,
    /// True: it was held, and is so once less.
    Unlock,
}

/// A PREPARE of SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlPrepare {
    pub name: Box<str>,
    /// It alone, of a text with several statements.
    pub text: Box<str>,
    /// On the statement that it prepares.
    pub verdict: Arc<Verdict>,
}

/// What a DEALLOCATE is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deallocated<'a> {
    One(&'a str),
    All,
}

impl SessionEffect {
    pub fn is_prepare(&self) -> bool {
        matches!(self, SessionEffect::Prepare(_))
    }

    /// It concerns nothing but the names of prepared statements.
    pub fn is_of_names(&self) -> bool {
        matches!(
            self,
            SessionEffect::Prepare(_)
                | SessionEffect::Execute(_)
                | SessionEffect::Deallocate(_)
                | SessionEffect::DeallocateAll
        )
    }

    /// The label of a pin's reason.
    pub fn as_str(&self) -> &'static str {
        match self {
            SessionEffect::Set(..) => "set",
            SessionEffect::SetLocal(_) => "set_local",
            SessionEffect::Reset(_) => "reset",
            SessionEffect::ResetAll => "reset_all",
            SessionEffect::DiscardAll => "discard_all",
            SessionEffect::Discard => "discard",
            SessionEffect::DiscardTemporary => "discard_temporary",
            SessionEffect::Listen(_) | SessionEffect::ListenShared(_) => "listen",
            SessionEffect::Unlisten(_) => "unlisten",
            SessionEffect::UnlistenAll => "unlisten_all",
            SessionEffect::Temporary | SessionEffect::TemporaryTable(_) => "temporary",
            SessionEffect::DropTable(_) | SessionEffect::DropTemporaryTable(_) => "drop_table",
            SessionEffect::RenameRelation => "rename",
            SessionEffect::Prepare(_) => "prepare",
            SessionEffect::Execute(_) => "execute",
            SessionEffect::Deallocate(_) => "deallocate",
            SessionEffect::DeallocateAll => "deallocate_all",
            SessionEffect::DeclareHold(_) => "declare_hold",
            SessionEffect::Cursor => "cursor",
            SessionEffect::CloseCursor(_) => "close_cursor",
            SessionEffect::CloseAll => "close_all",
            SessionEffect::AdvisoryLock => "advisory_lock",
            SessionEffect::AdvisoryUnlock => "advisory_unlock",
            SessionEffect::Advisory(_) => "advisory_lock",
            SessionEffect::AdvisoryUnlockAll => "advisory_unlock_all",
            SessionEffect::Load => "load",
            SessionEffect::Do => "do",
            SessionEffect::Call => "call",
            SessionEffect::Function(_) => "function",
            SessionEffect::WeakCommit => "weak_commit",
            SessionEffect::ReplayedCommit => "replayed_commit",
        }
    }
}
