//! Where the endpoint consciously differs from a server, and why. A script of this list must differ, and just as
//! it says: one that no longer does fails the test, so that the list stays true.

use super::judge::Difference;
use super::script::Script;
use super::world::Mode;

#[derive(Debug)]
pub(super) struct Known {
    /// The script's name.
    pub(super) script: &'static str,
    pub(super) modes: &'static [Mode],
    /// How the first line that differs begins, at the server and through the endpoint.
    pub(super) direct: &'static str,
    pub(super) endpoint: &'static str,
    pub(super) because: &'static str,
}

const BOTH: &[Mode] = &[Mode::Session, Mode::Transaction];
const TRANSACTION: &[Mode] = &[Mode::Transaction];

const OURS: &str = "An error of our own has no place in PostgreSQL's source.";
const MALFORMED: &str = "Behind a message that contradicts itself we do not trust the stream.";

/// What begins with BUG is to be mended, and its entry to go.
pub(super) const KNOWN: &[Known] = &[
    Known {
        script: "an unknown message type",
        modes: BOTH,
        direct: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid frontend message type 1 F=",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid frontend message type 1",
        because: OURS,
    },
    Known {
        script: "a password in the middle",
        modes: BOTH,
        direct: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid frontend message type 112 F=",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid frontend message type 112",
        because: OURS,
    },
    Known {
        script: "a length below its own",
        modes: BOTH,
        direct: "closed",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid message length 3",
        because: "A server logs this and says nothing; we say it.",
    },
    Known {
        script: "a sync with something in it",
        modes: BOTH,
        direct: "ErrorResponse S=ERROR V=ERROR C=08P01 M=invalid message format",
        endpoint: "ReadyForQuery [I]",
        because: "What is in a message that has nothing in it is not looked at when no server is needed.",
    },
    Known {
        script: "a query without its end",
        modes: BOTH,
        direct: "ErrorResponse S=ERROR V=ERROR C=08P01 M=invalid string in message",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid message format",
        because: MALFORMED,
    },
    Known {
        script: "a query with more behind its end",
        modes: BOTH,
        direct: "ErrorResponse S=ERROR V=ERROR C=08P01 M=invalid message format",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid message format",
        because: MALFORMED,
    },
    Known {
        script: "a parse that stops short",
        modes: BOTH,
        direct: "ErrorResponse S=ERROR V=ERROR C=08P01 M=insufficient data left",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid message format",
        because: MALFORMED,
    },
    Known {
        script: "a describe of neither",
        modes: BOTH,
        direct: "ErrorResponse S=ERROR V=ERROR C=08P01 M=invalid DESCRIBE message subtype 88",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid message format",
        because: MALFORMED,
    },
    Known {
        script: "a close of neither",
        modes: BOTH,
        direct: "ErrorResponse S=ERROR V=ERROR C=08P01 M=invalid CLOSE message subtype 88",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid message format",
        because: MALFORMED,
    },
    Known {
        script: "an execute that stops short",
        modes: BOTH,
        direct: "ErrorResponse S=ERROR V=ERROR C=08P01 M=insufficient data left",
        endpoint: "ErrorResponse S=FATAL V=FATAL C=08P01 M=invalid message format",
        because: MALFORMED,
    },
    Known {
        script: "a wrong bind of a named statement",
        modes: BOTH,
        direct: "ErrorResponse S=ERROR V=ERROR C=08P01 M=bind message supplies 0 parameters, but prepared statement \"s1\"",
        endpoint: "ErrorResponse S=ERROR V=ERROR C=08P01 M=bind message supplies 0 parameters, but prepared statement \"bw_",
        because: "Statements have other names at the servers, and messages of theirs are not rewritten.",
    },
    Known {
        script: "a read only block copies",
        modes: TRANSACTION,
        direct: "ErrorResponse S=ERROR V=ERROR C=25006 M=cannot execute COPY FROM in a read-only transaction",
        endpoint: "ErrorResponse S=ERROR V=ERROR C=25006 M=cannot execute COPY during recovery",
        because: "A standby runs it, and has another reason.",
    },
    Known {
        script: "a read only block fails and is chained",
        modes: TRANSACTION,
        direct: "CommandComplete",
        endpoint: "ErrorResponse S=ERROR V=ERROR C=25006",
        because: "What follows a failed block AND CHAIN is none that is read only, but stays at the standby.",
    },
    Known {
        script: "sequences of the session",
        modes: TRANSACTION,
        direct: "DataRow [1] [1]",
        endpoint: "ErrorResponse S=ERROR V=ERROR C=55000",
        because: "nextval does not keep the server, or every INSERT into a table with a serial column would: currval and lastval belong into the same transaction.",
    },
    Known {
        script: "what a session listens to",
        modes: TRANSACTION,
        direct: "DataRow",
        endpoint: "CommandComplete SELECT 0",
        because: "Another connection listens for the session; the server at hand knows nothing of it.",
    },
];

/// These differ or not, by the server that the transaction gets, and by what the other lane has heard meanwhile.
const AT_TIMES: &[Known] = &[Known {
    script: "the result type changes under a statement",
    modes: BOTH,
    direct: "ErrorResponse S=ERROR V=ERROR C=0A000",
    endpoint: "BindComplete",
    because: "A server that did not have the statement yet prepares it behind the change; so does one whose copy another client of the same text, the other lane's, has found to fail.",
}];

/// What a standby says to who writes.
const REFUSED: &str = "ErrorResponse S=ERROR V=ERROR C=25006";

/// Scripts put together at random come upon these two of [`KNOWN`] as well: a block that is read only is a standby's.
pub(super) fn is_of_read_only_block(script: &Script, difference: &Difference) -> bool {
    let text = script.to_string();
    let [direct, endpoint] = difference.lines();
    text.contains("READ ONLY")
        && endpoint.starts_with(REFUSED)
        && (direct.starts_with(REFUSED) || text.contains("AND CHAIN"))
}

pub(super) fn is_known(script: &str, mode: Mode) -> bool {
    KNOWN.iter().any(|known| known.script == script && known.modes.contains(&mode))
}

/// What is wrong about a script's outcome: a difference that is not in the list, or one that is and did not come.
pub(super) fn judge(script: &str, mode: Mode, found: Option<&Difference>) -> Result<(), String> {
    let is_meant = |known: &&Known| known.script == script && known.modes.contains(&mode);
    let known = KNOWN.iter().find(is_meant);
    let at_times = AT_TIMES.iter().find(is_meant);
    match (known.or(at_times), found) {
        (None, None) => Ok(()),
        (Some(_), None) if known.is_none() => Ok(()),
        (None, Some(difference)) => Err(format!("{mode:?} mode differs: {script}\n{difference}")),
        (Some(known), None) => Err(format!(
            "{mode:?} mode: {script}: no longer differs, although the list says {:?}",
            known.because
        )),
        (Some(known), Some(found)) => {
            let [direct, endpoint] = found.lines();
            if direct.starts_with(known.direct) && endpoint.starts_with(known.endpoint) {
                return Ok(());
            }
            Err(format!("{mode:?} mode: {script}: differs in another way than the list says\n{found}"))
        }
    }
}
