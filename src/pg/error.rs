//! Errors as clients see them: severity, SQLSTATE, message, detail, hint (protocol-error-fields).

use std::fmt;

use bytes::{BufMut, BytesMut};

/// Five characters that tell programs what happened (`errcodes.txt`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

macro_rules! sqlstates {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState { $($(#[$doc])* pub const $name: SqlState = SqlState(*$code);)* }
    };
}

sqlstates! {
    SUCCESSFUL_COMPLETION = b"00000";
    WARNING = b"01000";
    /// Server lost, nothing in doubt.
    CONNECTION_FAILURE = b"08006";
    /// Server lost with a COMMIT in flight: it may or may not have happened.
    TRANSACTION_RESOLUTION_UNKNOWN = b"08007";
    PROTOCOL_VIOLATION = b"08P01";
    FEATURE_NOT_SUPPORTED = b"0A000";
    INVALID_PARAMETER_VALUE = b"22023";
    IN_FAILED_SQL_TRANSACTION = b"25P02";
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = b"25P03";
    TRANSACTION_TIMEOUT = b"25P04";
    READ_ONLY_SQL_TRANSACTION = b"25006";
    INVALID_SQL_STATEMENT_NAME = b"26000";
    INVALID_AUTHORIZATION_SPECIFICATION = b"28000";
    INVALID_PASSWORD = b"28P01";
    INVALID_CATALOG_NAME = b"3D000";
    /// A transaction cut by a failover before its COMMIT: safe to run again.
    SERIALIZATION_FAILURE = b"40001";
    SYNTAX_ERROR = b"42601";
    INVALID_NAME = b"42602";
    INSUFFICIENT_PRIVILEGE = b"42501";
    UNDEFINED_OBJECT = b"42704";
    DUPLICATE_OBJECT = b"42710";
    DUPLICATE_PREPARED_STATEMENT = b"42P05";
    TOO_MANY_CONNECTIONS = b"53300";
    CONFIGURATION_LIMIT_EXCEEDED = b"53400";
    DISK_FULL = b"53100";
    PROGRAM_LIMIT_EXCEEDED = b"54000";
    OBJECT_NOT_IN_PREREQUISITE_STATE = b"55000";
    OBJECT_IN_USE = b"55006";
    CANT_CHANGE_RUNTIME_PARAM = b"55P02";
    QUERY_CANCELED = b"57014";
    ADMIN_SHUTDOWN = b"57P01";
    CANNOT_CONNECT_NOW = b"57P03";
    IDLE_SESSION_TIMEOUT = b"57P05";
    CONFIG_FILE_ERROR = b"F0000";
    IO_ERROR = b"58030";
    UNDEFINED_FILE = b"58P01";
    INTERNAL_ERROR = b"XX000";
    DATA_CORRUPTED = b"XX001";
}

impl SqlState {
    /// `None` unless `code` is five digits or upper-case letters.
    pub fn parse(code: &[u8]) -> Option<SqlState> {
        let code: [u8; 5] = code.try_into().ok()?;
        code.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()).then_some(SqlState(code))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("made of digits and upper-case letters only")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the connection goes on.
    Error,
    /// The connection ends.
    Fatal,
    Warning,
    Notice,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }
}

/// What an ErrorResponse or NoticeResponse says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorFields {
    pub severity: Severity,
    pub code: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ErrorFields {
    pub fn new(severity: Severity, code: SqlState, message: impl Into<String>) -> ErrorFields {
        ErrorFields { severity, code, message: message.into(), detail: None, hint: None }
    }

    pub fn error(code: SqlState, message: impl Into<String>) -> ErrorFields {
        ErrorFields::new(Severity::Error, code, message)
    }

    pub fn fatal(code: SqlState, message: impl Into<String>) -> ErrorFields {
        ErrorFields::new(Severity::Fatal, code, message)
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> ErrorFields {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> ErrorFields {
        self.hint = Some(hint.into());
        self
    }

    /// Appends the whole message, tag and length included: `N` for warnings and notices, else `E`.
    pub fn encode(&self, out: &mut BytesMut) {
        let tag = match self.severity {
            Severity::Error | Severity::Fatal => b'E',
            Severity::Warning | Severity::Notice => b'N',
        };
        out.put_u8(tag);
        let length_at = out.len();
        out.put_u32(0);
        let severity = self.severity.as_str();
        let fields = [
            (b'S', Some(severity)),
            (b'V', Some(severity)),
            (b'C', Some(self.code.as_str())),
            (b'M', Some(self.message.as_str())),
            (b'D', self.detail.as_deref()),
            (b'H', self.hint.as_deref()),
        ];
        for (kind, text) in fields {
            let Some(text) = text else { continue };
            out.put_u8(kind);
            // A NUL would end the field early and let text pose as another field.
            out.extend(text.bytes().map(|b| if b == 0 { b' ' } else { b }));
            out.put_u8(0);
        }
        out.put_u8(0);
        let length = u32::try_from(out.len() - length_at).expect("our own messages are short");
        out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

impl fmt::Display for ErrorFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.severity.as_str(), self.message, self.code)
    }
}
