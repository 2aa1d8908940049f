//! The replication commands that a Query may carry (`repl_gram.y`, `repl_scanner.l`).
//!
//! More liberal than PostgreSQL in one thing: keywords may be in lower case too. What does not begin with a
//! replication keyword is SQL, which a physical walsender does not run.

use std::iter::Peekable;
use std::str::Chars;

use crate::pg::{ErrorFields, Lsn, SqlState, TimelineId};

/// One command, its arguments parsed. Slot names are as written (unquoted ones in lower case): whether such a
/// slot can exist is for the one who looks it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    IdentifySystem,
    Show {
        name: String,
    },
    ReadReplicationSlot {
        slot: String,
    },
    CreateReplicationSlot {
        slot: String,
        options: SlotOptions,
    },
    DropReplicationSlot {
        slot: String,
        wait: Wait,
    },
    TimelineHistory {
        timeline: TimelineId,
    },
    StartReplication {
        slot: Option<String>,
        start: Lsn,
        timeline: Option<TimelineId>,
    },
    /// BASE_BACKUP to the client, or UPLOAD_MANIFEST: what else they say is for a server to read.
    OfBaseBackup,
    /// A command of PostgreSQL's that we know and do not serve, by its keyword.
    NotServed {
        keyword: &'static str,
    },
}

/// How a physical slot is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotOptions {
    pub lifetime: SlotLifetime,
    pub reserve_wal: ReserveWal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotLifetime {
    Persistent,
    /// Ends with its connection.
    Temporary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveWal {
    /// Hold WAL back from now on.
    Immediately,
    /// Only once a follower has used the slot.
    OnFirstUse,
}

/// What dropping a slot does while somebody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    UntilReleased,
    No,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("cannot execute SQL commands in WAL sender for physical replication")]
    Sql,
    #[error("syntax error")]
    Syntax,
    /// The grammar takes any `%X/%X`-like word, the value does not.
    #[error("invalid streaming start location")]
    StartLocation,
    #[error("invalid timeline {0}")]
    Timeline(u64),
}

impl CommandError {
    /// As PostgreSQL reports it.
    pub fn to_fields(&self) -> ErrorFields {
        let code = match self {
            CommandError::Sql => SqlState::FEATURE_NOT_SUPPORTED,
            CommandError::Syntax | CommandError::StartLocation | CommandError::Timeline(_) => {
                SqlState::SYNTAX_ERROR
            }
        };
        ErrorFields::error(code, self.to_string())
    }
}

impl Command {
    pub fn parse(text: &str) -> Result<Command, CommandError> {
        let mut words = Words { chars: text.chars().peekable() };
        let keyword = match words.next() {
            Ok(Some(Token::Word(word))) => word.to_ascii_uppercase(),
            // Also an empty query: PostgreSQL's scanner finds no replication keyword there.
            Ok(_) | Err(_) => return Err(CommandError::Sql),
        };
        let command = match keyword.as_str() {
            "IDENTIFY_SYSTEM" => Command::IdentifySystem,
            "SHOW" => Command::Show { name: words.dotted_name()? },
            "READ_REPLICATION_SLOT" => Command::ReadReplicationSlot { slot: words.identifier()? },
            "CREATE_REPLICATION_SLOT" => return words.create_slot(),
            "DROP_REPLICATION_SLOT" => {
                let slot = words.identifier()?;
                let wait = if words.accept("WAIT")? { Wait::UntilReleased } else { Wait::No };
                Command::DropReplicationSlot { slot, wait }
            }
            "TIMELINE_HISTORY" => Command::TimelineHistory { timeline: words.timeline()? },
            "START_REPLICATION" => return words.start_replication(),
            "BASE_BACKUP" => return words.base_backup(),
            "UPLOAD_MANIFEST" => Command::OfBaseBackup,
            "ALTER_REPLICATION_SLOT" => return Ok(Command::NotServed { keyword: "ALTER_REPLICATION_SLOT" }),
            _ => return Err(CommandError::Sql),
        };
        words.end()?;
        Ok(command)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A keyword, a name without quotes, a number, or an LSN.
    Word(String),
    Quoted(String),
    Sign(char),
}

/// The command's tokens.
#[derive(Clone)]
struct Words<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Words<'_> {
    fn next(&mut self) -> Result<Option<Token>, CommandError> {
        while self.chars.next_if(char::is_ascii_whitespace).is_some() {}
        let Some(first) = self.chars.next() else { return Ok(None) };
        match first {
            '"' | '\'' => Ok(Some(Token::Quoted(self.quoted(first)?))),
            c if is_word(c) => {
                let mut word = String::from(c);
                while let Some(c) = self.chars.next_if(|c| is_word(*c)) {
                    word.push(c);
                }
                Ok(Some(Token::Word(word)))
            }
            sign => Ok(Some(Token::Sign(sign))),
        }
    }

    /// The rest of a quoted name or string; a doubled quote stands for itself.
    fn quoted(&mut self, quote: char) -> Result<String, CommandError> {
        let mut text = String::new();
        loop {
            match self.chars.next() {
                None => return Err(CommandError::Syntax),
                Some(c) if c == quote && self.chars.next_if_eq(&quote).is_none() => return Ok(text),
                Some(c) => text.push(c),
            }
        }
    }

    /// Takes the next token when it is `keyword`.
    fn accept(&mut self, keyword: &str) -> Result<bool, CommandError> {
        self.accept_if(|token| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(keyword)))
    }

    fn accept_any(&mut self, keywords: [&str; 3]) -> Result<bool, CommandError> {
        self.accept_if(|token| {
            matches!(token, Token::Word(word) if keywords.iter().any(|keyword| word.eq_ignore_ascii_case(keyword)))
        })
    }

    fn accept_sign(&mut self, sign: char) -> Result<bool, CommandError> {
        self.accept_if(|token| *token == Token::Sign(sign))
    }

    fn accept_if(&mut self, wanted: impl FnOnce(&Token) -> bool) -> Result<bool, CommandError> {
        let before = self.clone();
        let found = self.next()?.is_some_and(|token| wanted(&token));
        if !found {
            *self = before;
        }
        Ok(found)
    }

    fn word(&mut self) -> Result<String, CommandError> {
        match self.next()? {
            Some(Token::Word(word)) => Ok(word),
            _ => Err(CommandError::Syntax),
        }
    }

    fn identifier(&mut self) -> Result<String, CommandError> {
        match self.next()? {
            Some(Token::Word(word)) if !word.starts_with(|c: char| c.is_ascii_digit()) => {
                Ok(word.to_ascii_lowercase())
            }
            Some(Token::Quoted(text)) => Ok(text),
            _ => Err(CommandError::Syntax),
        }
    }

    /// `SHOW` takes `extension.setting` too.
    fn dotted_name(&mut self) -> Result<String, CommandError> {
        let mut name = self.identifier()?;
        while self.accept_sign('.')? {
            name.push('.');
            name.push_str(&self.identifier()?);
        }
        Ok(name)
    }

    fn timeline(&mut self) -> Result<TimelineId, CommandError> {
        let word = self.word()?;
        let number: u64 = word.parse().map_err(|_| CommandError::Syntax)?;
        match u32::try_from(number) {
            Ok(id) if id > 0 => Ok(TimelineId(id)),
            _ => Err(CommandError::Timeline(number)),
        }
    }

    /// Nothing, or one semicolon, is left.
    fn end(&mut self) -> Result<(), CommandError> {
        self.accept_sign(';')?;
        if self.next()?.is_none() { Ok(()) } else { Err(CommandError::Syntax) }
    }

    fn create_slot(&mut self) -> Result<Command, CommandError> {
        let slot = self.identifier()?;
        let lifetime =
            if self.accept("TEMPORARY")? { SlotLifetime::Temporary } else { SlotLifetime::Persistent };
        if self.accept("LOGICAL")? {
            return Ok(Command::NotServed { keyword: "CREATE_REPLICATION_SLOT ... LOGICAL" });
        }
        if !self.accept("PHYSICAL")? {
            return Err(CommandError::Syntax);
        }
        let mut reserve_wal = ReserveWal::OnFirstUse;
        if self.accept_sign('(')? {
            reserve_wal = self.create_slot_options()?;
        } else if self.accept("RESERVE_WAL")? {
            reserve_wal = ReserveWal::Immediately;
        }
        self.end()?;
        Ok(Command::CreateReplicationSlot { slot, options: SlotOptions { lifetime, reserve_wal } })
    }

    /// The options of version 15 and later: `( RESERVE_WAL [true|false], ... )`, the last one counts.
    fn create_slot_options(&mut self) -> Result<ReserveWal, CommandError> {
        loop {
            // The only option that a physical slot takes.
            if !self.identifier()?.eq_ignore_ascii_case("reserve_wal") {
                return Err(CommandError::Syntax);
            }
            let reserve_wal = if self.accept_any(["false", "off", "0"])? {
                ReserveWal::OnFirstUse
            } else {
                self.accept_any(["true", "on", "1"])?;
                ReserveWal::Immediately
            };
            if self.accept_sign(')')? {
                return Ok(reserve_wal);
            }
            if !self.accept_sign(',')? {
                return Err(CommandError::Syntax);
            }
        }
    }

    /// The options of version 15 and later tell where the backup goes; those before know the client only.
    fn base_backup(&mut self) -> Result<Command, CommandError> {
        if !self.accept_sign('(')? {
            return Ok(Command::OfBaseBackup);
        }
        let mut command = Command::OfBaseBackup;
        loop {
            let name = self.identifier()?;
            let mut value = None;
            let mut sign = self.next()?;
            if let Some(Token::Word(text) | Token::Quoted(text)) = sign {
                value = Some(text);
                sign = self.next()?;
            }
            if name == "target" && value.as_deref() != Some("client") {
                command = Command::NotServed { keyword: "BASE_BACKUP ... TARGET" };
            }
            match sign {
                Some(Token::Sign(',')) => {}
                Some(Token::Sign(')')) => break,
                _ => return Err(CommandError::Syntax),
            }
        }
        self.end()?;
        Ok(command)
    }

    fn start_replication(&mut self) -> Result<Command, CommandError> {
        let slot = if self.accept("SLOT")? { Some(self.identifier()?) } else { None };
        if self.accept("LOGICAL")? {
            return Ok(Command::NotServed { keyword: "START_REPLICATION ... LOGICAL" });
        }
        self.accept("PHYSICAL")?;
        let start = self.word()?;
        if !start.contains('/') {
            return Err(CommandError::Syntax);
        }
        let start = start.parse().map_err(|_| CommandError::StartLocation)?;
        let timeline = if self.accept("TIMELINE")? { Some(self.timeline()?) } else { None };
        self.end()?;
        Ok(Command::StartReplication { slot, start, timeline })
    }
}

/// Names, numbers, and the slash of an LSN.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || c == '/' || !c.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::{Command, CommandError, ReserveWal, SlotLifetime, SlotOptions, Wait};
    use crate::pg::{Lsn, TimelineId};

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "the expectation is written down where it is checked")]
    fn check(text: &str, expected: Result<Command, CommandError>) {
        assert_eq!(Command::parse(text), expected, "{text}");
    }

    fn create(slot: &str, lifetime: SlotLifetime, reserve_wal: ReserveWal) -> Result<Command, CommandError> {
        let options = SlotOptions { lifetime, reserve_wal };
        Ok(Command::CreateReplicationSlot { slot: slot.to_owned(), options })
    }

    fn start(slot: Option<&str>, start: u64, timeline: Option<u32>) -> Result<Command, CommandError> {
        let timeline = timeline.map(TimelineId);
        Ok(Command::StartReplication { slot: slot.map(str::to_owned), start: Lsn(start), timeline })
    }

    #[test]
    fn what_walreceivers_of_13_to_18_send() {
        use ReserveWal::{Immediately, OnFirstUse};
        use SlotLifetime::{Persistent, Temporary};
        check("IDENTIFY_SYSTEM", Ok(Command::IdentifySystem));
        check("SHOW wal_segment_size", Ok(Command::Show { name: "wal_segment_size".to_owned() }));
        check("TIMELINE_HISTORY 2", Ok(Command::TimelineHistory { timeline: TimelineId(2) }));
        let name = "pg_walreceiver_1457";
        check(
            r#"CREATE_REPLICATION_SLOT "pg_walreceiver_1457" TEMPORARY PHYSICAL (RESERVE_WAL)"#,
            create(name, Temporary, Immediately),
        );
        check(
            r#"CREATE_REPLICATION_SLOT "pg_walreceiver_1457" TEMPORARY PHYSICAL RESERVE_WAL"#,
            create(name, Temporary, Immediately),
        );
        check(
            r#"CREATE_REPLICATION_SLOT "pg_basebackup_27152" TEMPORARY PHYSICAL ( RESERVE_WAL)"#,
            create("pg_basebackup_27152", Temporary, Immediately),
        );
        check(r#"CREATE_REPLICATION_SLOT "x" PHYSICAL"#, create("x", Persistent, OnFirstUse));
        check(
            r#"CREATE_REPLICATION_SLOT x PHYSICAL (RESERVE_WAL false);"#,
            create("x", Persistent, OnFirstUse),
        );
        check("READ_REPLICATION_SLOT \"nope\"", Ok(Command::ReadReplicationSlot { slot: "nope".to_owned() }));
        check("START_REPLICATION 9/0 TIMELINE 1", start(None, 0x9_0000_0000, Some(1)));
        check(
            r#"START_REPLICATION SLOT "slota" 0/2000000 TIMELINE 1"#,
            start(Some("slota"), 0x200_0000, Some(1)),
        );
        check("START_REPLICATION PHYSICAL 1/00000A0F", start(None, 0x1_0000_0A0F, None));
    }

    #[test]
    fn liberal_in_case_quotes_and_semicolon() {
        check("identify_system;", Ok(Command::IdentifySystem));
        check("  Show  Data_Directory_Mode ; ", Ok(Command::Show { name: "data_directory_mode".to_owned() }));
        check("SHOW a.b", Ok(Command::Show { name: "a.b".to_owned() }));
        check("start_replication slot \"a\"\"B\" 0/0", start(Some("a\"B"), 0, None));
        let drop = |slot: &str, wait| Ok(Command::DropReplicationSlot { slot: slot.to_owned(), wait });
        check("DROP_REPLICATION_SLOT Upper WAIT", drop("upper", Wait::UntilReleased));
        check("DROP_REPLICATION_SLOT \"Upper\";", drop("Upper", Wait::No));
    }

    #[test]
    fn sql_is_told_from_a_bad_command() {
        for sql in ["SELECT 1", "BEGIN", "", ";", "-- nothing", "\"IDENTIFY_SYSTEM\"", "VACUUM\0"] {
            check(sql, Err(CommandError::Sql));
        }
        for bad in [
            "IDENTIFY_SYSTEM now",
            "IDENTIFY_SYSTEM;;",
            "SHOW",
            "TIMELINE_HISTORY",
            "TIMELINE_HISTORY two",
            "TIMELINE_HISTORY -1",
            "START_REPLICATION",
            "START_REPLICATION SLOT \"open 0/0",
            "START_REPLICATION 0/0 TIMELINE",
            "START_REPLICATION 12",
            "CREATE_REPLICATION_SLOT \"x\"",
            "CREATE_REPLICATION_SLOT \"x\" PHYSICAL (RESERVE_WAL",
            "CREATE_REPLICATION_SLOT \"x\" PHYSICAL (FAILOVER)",
        ] {
            check(bad, Err(CommandError::Syntax));
        }
        check("START_REPLICATION 0/XYZ", Err(CommandError::StartLocation));
        check("TIMELINE_HISTORY 0", Err(CommandError::Timeline(0)));
        check("START_REPLICATION 0/0 TIMELINE 4294967296", Err(CommandError::Timeline(1 << 32)));
    }

    #[test]
    fn what_is_known_and_not_served() {
        let not_served = |keyword| Ok(Command::NotServed { keyword });
        check("ALTER_REPLICATION_SLOT s (FAILOVER)", not_served("ALTER_REPLICATION_SLOT"));
        check("BASE_BACKUP ( LABEL 'x',  PROGRESS)", Ok(Command::OfBaseBackup));
        check("BASE_BACKUP LABEL 'target' PROGRESS", Ok(Command::OfBaseBackup));
        check("BASE_BACKUP ( LABEL 'target', TARGET 'client', CHECKPOINT 'fast')", Ok(Command::OfBaseBackup));
        let elsewhere = || Ok(Command::NotServed { keyword: "BASE_BACKUP ... TARGET" });
        check("BASE_BACKUP ( LABEL 'x', TARGET 'server', TARGET_DETAIL '/tmp/x')", elsewhere());
        check("base_backup (\"target\" 'blackhole', LABEL 'x');", elsewhere());
        check("BASE_BACKUP (TARGET server, TARGET 'client')", elsewhere());
        check("BASE_BACKUP (TARGET)", elsewhere());
        check("BASE_BACKUP (LABEL 'x'", Err(CommandError::Syntax));
        check("BASE_BACKUP (LABEL 'x'); DROP_REPLICATION_SLOT a", Err(CommandError::Syntax));
        check("UPLOAD_MANIFEST", Ok(Command::OfBaseBackup));
        check("START_REPLICATION SLOT \"s\" LOGICAL 0/0", not_served("START_REPLICATION ... LOGICAL"));
        check("CREATE_REPLICATION_SLOT s LOGICAL p", not_served("CREATE_REPLICATION_SLOT ... LOGICAL"));
    }
}
