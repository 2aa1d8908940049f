//! Messages of a server: encoders of those we send to clients ourselves, decoders of those we look into.
//! ErrorResponse and NoticeResponse are encoded by [`ErrorFields::encode`].

use bytes::{BufMut, BytesMut};

use super::payload::{Malformed, Reader, put, put_count, put_str, put_value};
use super::startup::MAX_CANCEL_KEY_LEN;
use crate::pg::error::{ErrorFields, Severity, SqlState};

pub const AUTHENTICATION: u8 = b'R';
pub const PARAMETER_STATUS: u8 = b'S';
pub const BACKEND_KEY_DATA: u8 = b'K';
pub const READY_FOR_QUERY: u8 = b'Z';
pub const ROW_DESCRIPTION: u8 = b'T';
pub const DATA_ROW: u8 = b'D';
pub const COMMAND_COMPLETE: u8 = b'C';
pub const EMPTY_QUERY_RESPONSE: u8 = b'I';
pub const PARSE_COMPLETE: u8 = b'1';
pub const BIND_COMPLETE: u8 = b'2';
pub const CLOSE_COMPLETE: u8 = b'3';
pub const NO_DATA: u8 = b'n';
pub const PORTAL_SUSPENDED: u8 = b's';
pub const PARAMETER_DESCRIPTION: u8 = b't';
pub const COPY_IN_RESPONSE: u8 = b'G';
pub const COPY_OUT_RESPONSE: u8 = b'H';
pub const COPY_BOTH_RESPONSE: u8 = b'W';
pub const COPY_DATA: u8 = b'd';
pub const COPY_DONE: u8 = b'c';
pub const ERROR_RESPONSE: u8 = b'E';
pub const NOTICE_RESPONSE: u8 = b'N';
pub const NOTIFICATION_RESPONSE: u8 = b'A';
pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
pub const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';

/// The transaction status in ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    Idle,
    InTransaction,
    Failed,
}

impl TransactionStatus {
    pub fn from_byte(byte: u8) -> Option<TransactionStatus> {
        match byte {
            b'I' => Some(TransactionStatus::Idle),
            b'T' => Some(TransactionStatus::InTransaction),
            b'E' => Some(TransactionStatus::Failed),
            _ => None,
        }
    }

    pub fn as_byte(self) -> u8 {
        match self {
            TransactionStatus::Idle => b'I',
            TransactionStatus::InTransaction => b'T',
            TransactionStatus::Failed => b'E',
        }
    }
}

/// A column of a RowDescription, in text format and of no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    pub name: &'a str,
    pub type_oid: u32,
    /// Bytes of the type; -1 when it varies.
    pub type_len: i16,
    /// -1: none.
    pub type_modifier: i32,
    pub format: Format,
}

/// Of values on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Binary,
}

impl<'a> Column<'a> {
    /// In text format.
    pub fn of_type(name: &'a str, type_oid: u32, type_len: i16) -> Column<'a> {
        Column { name, type_oid, type_len, type_modifier: -1, format: Format::Text }
    }

    pub fn text(name: &'a str) -> Column<'a> {
        Column::of_type(name, 25, -1)
    }

    pub fn int4(name: &'a str) -> Column<'a> {
        Column::of_type(name, 23, 4)
    }

    pub fn int8(name: &'a str) -> Column<'a> {
        Column::of_type(name, 20, 8)
    }

    pub fn bytea(name: &'a str) -> Column<'a> {
        Column::of_type(name, 17, -1)
    }
}

pub fn authentication_ok(out: &mut BytesMut) {
    put(out, AUTHENTICATION, |out| out.put_u32(0));
}

pub fn authentication_cleartext(out: &mut BytesMut) {
    put(out, AUTHENTICATION, |out| out.put_u32(3));
}

pub fn authentication_md5(salt: [u8; 4], out: &mut BytesMut) {
    put(out, AUTHENTICATION, |out| {
        out.put_u32(5);
        out.put_slice(&salt);
    });
}

pub fn authentication_sasl(mechanisms: &[&str], out: &mut BytesMut) {
    put(out, AUTHENTICATION, |out| {
        out.put_u32(10);
        for mechanism in mechanisms {
            put_str(out, mechanism);
        }
        out.put_u8(0);
    });
}

pub fn authentication_sasl_continue(data: &str, out: &mut BytesMut) {
    put(out, AUTHENTICATION, |out| {
        out.put_u32(11);
        out.put_slice(data.as_bytes());
    });
}

pub fn authentication_sasl_final(data: &str, out: &mut BytesMut) {
    put(out, AUTHENTICATION, |out| {
        out.put_u32(12);
        out.put_slice(data.as_bytes());
    });
}

pub fn parameter_status(name: &str, value: &str, out: &mut BytesMut) {
    put(out, PARAMETER_STATUS, |out| {
        put_str(out, name);
        put_str(out, value);
    });
}

/// Clients of protocol 3.0 take a secret of exactly 4 bytes.
pub fn backend_key_data(pid: u32, secret: &[u8], out: &mut BytesMut) {
    put(out, BACKEND_KEY_DATA, |out| {
        out.put_u32(pid);
        out.put_slice(secret);
    });
}

pub fn ready_for_query(status: TransactionStatus, out: &mut BytesMut) {
    put(out, READY_FOR_QUERY, |out| out.put_u8(status.as_byte()));
}

pub fn row_description(columns: &[Column<'_>], out: &mut BytesMut) {
    put(out, ROW_DESCRIPTION, |out| {
        put_count(out, columns.len());
        for column in columns {
            put_str(out, column.name);
            // Of no table: OID and attribute number 0.
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(column.type_oid);
            out.put_i16(column.type_len);
            out.put_i32(column.type_modifier);
            out.put_u16(match column.format {
                Format::Text => 0,
                Format::Binary => 1,
            });
        }
    });
}

/// Values in text format; `None` is NULL.
pub fn data_row(values: &[Option<&str>], out: &mut BytesMut) {
    put(out, DATA_ROW, |out| {
        put_count(out, values.len());
        for value in values {
            put_value(out, value.map(str::as_bytes));
        }
    });
}

/// Like [`data_row`], for values that are not UTF-8 text (a timeline history file, `bytea`).
pub fn data_row_bytes(values: &[Option<&[u8]>], out: &mut BytesMut) {
    put(out, DATA_ROW, |out| {
        put_count(out, values.len());
        for value in values {
            put_value(out, *value);
        }
    });
}

pub fn command_complete(tag: &str, out: &mut BytesMut) {
    put(out, COMMAND_COMPLETE, |out| put_str(out, tag));
}

pub fn empty_query_response(out: &mut BytesMut) {
    put(out, EMPTY_QUERY_RESPONSE, |_| ());
}

pub fn parse_complete(out: &mut BytesMut) {
    put(out, PARSE_COMPLETE, |_| ());
}

pub fn bind_complete(out: &mut BytesMut) {
    put(out, BIND_COMPLETE, |_| ());
}

pub fn close_complete(out: &mut BytesMut) {
    put(out, CLOSE_COMPLETE, |_| ());
}

pub fn no_data(out: &mut BytesMut) {
    put(out, NO_DATA, |_| ());
}

pub fn portal_suspended(out: &mut BytesMut) {
    put(out, PORTAL_SUSPENDED, |_| ());
}

pub fn parameter_description(type_oids: &[u32], out: &mut BytesMut) {
    put(out, PARAMETER_DESCRIPTION, |out| {
        put_count(out, type_oids.len());
        for oid in type_oids {
            out.put_u32(*oid);
        }
    });
}

/// No columns, text format: what a walsender says before it streams WAL.
pub fn copy_both_response(out: &mut BytesMut) {
    put(out, COPY_BOTH_RESPONSE, copy_without_columns);
}

/// No columns, text format: what a base backup sends.
pub fn copy_out_response(out: &mut BytesMut) {
    put(out, COPY_OUT_RESPONSE, copy_without_columns);
}

fn copy_without_columns(out: &mut BytesMut) {
    out.put_u8(0);
    out.put_u16(0);
}

pub fn copy_data(data: &[u8], out: &mut BytesMut) {
    put(out, COPY_DATA, |out| out.put_slice(data));
}

pub fn copy_done(out: &mut BytesMut) {
    put(out, COPY_DONE, |_| ());
}

/// What a server asks of us while we log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    Ok,
    Cleartext,
    Md5 {
        salt: [u8; 4],
    },
    Sasl {
        mechanisms: Vec<&'a str>,
    },
    SaslContinue(&'a [u8]),
    SaslFinal(&'a [u8]),
    /// Kerberos, GSSAPI, SSPI and whatever comes: its number.
    Unsupported(u32),
}

pub fn decode_authentication(payload: &[u8]) -> Result<Authentication<'_>, Malformed> {
    let mut reader = Reader(payload);
    Ok(match reader.u32()? {
        0 => Authentication::Ok,
        3 => Authentication::Cleartext,
        5 => Authentication::Md5 { salt: reader.u32()?.to_be_bytes() },
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                match reader.text()? {
                    "" => break,
                    mechanism => mechanisms.push(mechanism),
                }
            }
            Authentication::Sasl { mechanisms }
        }
        11 => Authentication::SaslContinue(reader.0),
        12 => Authentication::SaslFinal(reader.0),
        other => Authentication::Unsupported(other),
    })
}

pub fn decode_parameter_status(payload: &[u8]) -> Result<(&str, &str), Malformed> {
    let mut reader = Reader(payload);
    let pair = (reader.text()?, reader.text()?);
    reader.end()?;
    Ok(pair)
}

/// The process id and the secret, 4 to 256 bytes.
pub fn decode_backend_key_data(payload: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let mut reader = Reader(payload);
    let pid = reader.u32()?;
    let secret = reader.0;
    let in_range = (4..=MAX_CANCEL_KEY_LEN).contains(&secret.len());
    if in_range { Ok((pid, secret)) } else { Err(Malformed::TRUNCATED) }
}

pub fn decode_ready_for_query(payload: &[u8]) -> Result<TransactionStatus, Malformed> {
    match payload {
        &[byte] => TransactionStatus::from_byte(byte).ok_or(Malformed::TRAILING),
        _ => Err(Malformed::TRAILING),
    }
}

/// The columns of a DataRow; `None` is NULL.
pub fn decode_data_row(payload: &[u8]) -> Result<Vec<Option<&[u8]>>, Malformed> {
    let mut reader = Reader(payload);
    let count = reader.u16()?;
    let columns = (0..count).map(|_| reader.value()).collect::<Result<Vec<_>, _>>()?;
    reader.end()?;
    Ok(columns)
}

/// The tag of a CommandComplete, such as `INSERT 0 1`.
pub fn decode_command_complete(payload: &[u8]) -> Result<&str, Malformed> {
    let mut reader = Reader(payload);
    let tag = reader.text()?;
    reader.end()?;
    Ok(tag)
}

/// What an ErrorResponse or NoticeResponse says. Lenient, because a half-understood error is better than none:
/// unknown fields are skipped, invalid UTF-8 is replaced, an unknown severity is an error, a missing code is
/// XX000, and a message that stops short gives what it had.
pub fn decode_error(payload: &[u8]) -> ErrorFields {
    let mut fields = ErrorFields::error(SqlState::INTERNAL_ERROR, "");
    let mut reader = Reader(payload);
    while let Ok(kind @ 1..) = reader.u8() {
        let Ok(text) = reader.c_str() else { break };
        let owned = || String::from_utf8_lossy(text).into_owned();
        match kind {
            // `S` may be translated; `V` (since 9.6) never is and follows it.
            b'S' | b'V' => fields.severity = severity(text).unwrap_or(fields.severity),
            b'C' => fields.code = SqlState::parse(text).unwrap_or(fields.code),
            b'M' => fields.message = owned(),
            b'D' => fields.detail = Some(owned()),
            b'H' => fields.hint = Some(owned()),
            _ => {}
        }
    }
    fields
}

fn severity(text: &[u8]) -> Option<Severity> {
    match text {
        b"ERROR" => Some(Severity::Error),
        b"FATAL" | b"PANIC" => Some(Severity::Fatal),
        b"WARNING" => Some(Severity::Warning),
        b"NOTICE" | b"INFO" | b"LOG" | b"DEBUG" => Some(Severity::Notice),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{Authentication, Column, TransactionStatus};
    use crate::pg::error::{ErrorFields, Severity, SqlState};
    use crate::pg::protocol::Malformed;

    #[test]
    fn golden_bytes() {
        let check = |encode: &dyn Fn(&mut BytesMut), expected: &[u8]| {
            let mut out = BytesMut::new();
            encode(&mut out);
            assert_eq!(&out[..], expected);
        };
        check(&|out| super::authentication_ok(out), b"R\0\0\0\x08\0\0\0\0");
        check(&|out| super::authentication_md5(*b"salt", out), b"R\0\0\0\x0c\0\0\0\x05salt");
        check(&|out| super::authentication_sasl(&["M"], out), b"R\0\0\0\x0b\0\0\0\x0aM\0\0");
        check(&|out| super::authentication_sasl_continue("r=", out), b"R\0\0\0\x0a\0\0\0\x0br=");
        check(&|out| super::authentication_sasl_final("v=", out), b"R\0\0\0\x0a\0\0\0\x0cv=");
        check(&|out| super::parameter_status("a", "b", out), b"S\0\0\0\x08a\0b\0");
        check(&|out| super::backend_key_data(7, b"abcd", out), b"K\0\0\0\x0c\0\0\0\x07abcd");
        check(&|out| super::ready_for_query(TransactionStatus::Idle, out), b"Z\0\0\0\x05I");
        check(
            &|out| super::row_description(&[Column::int8("n")], out),
            b"T\0\0\0\x1a\0\x01n\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0",
        );
        check(
            &|out| super::data_row(&[Some("x"), None], out),
            b"D\0\0\0\x0f\0\x02\0\0\0\x01x\xff\xff\xff\xff",
        );
        check(&|out| super::command_complete("SELECT 1", out), b"C\0\0\0\x0dSELECT 1\0");
        check(&|out| super::copy_both_response(out), b"W\0\0\0\x07\0\0\0");
        check(&|out| super::empty_query_response(out), b"I\0\0\0\x04");
        check(&|out| super::parameter_description(&[25], out), b"t\0\0\0\x0a\0\x01\0\0\0\x19");
    }

    #[test]
    fn authentication_requests() {
        let check = |payload: &[u8], expected| assert_eq!(super::decode_authentication(payload), expected);
        check(b"\0\0\0\0", Ok(Authentication::Ok));
        check(b"\0\0\0\x05salt", Ok(Authentication::Md5 { salt: *b"salt" }));
        check(b"\0\0\0\x05sal", Err(Malformed::TRUNCATED));
        check(b"\0\0\0\x0aA\0B\0\0", Ok(Authentication::Sasl { mechanisms: vec!["A", "B"] }));
        check(b"\0\0\0\x0aA\0B\0", Err(Malformed::STRING));
        check(b"\0\0\0\x0bdata", Ok(Authentication::SaslContinue(b"data")));
        check(b"\0\0\0\x07", Ok(Authentication::Unsupported(7)));
        check(b"\0\0\0", Err(Malformed::TRUNCATED));
    }

    #[test]
    fn rows_and_keys_must_be_whole() {
        let row = b"\0\x02\0\0\0\x01x\xff\xff\xff\xff";
        assert_eq!(super::decode_data_row(row), Ok(vec![Some(b"x".as_slice()), None]));
        for end in 0..row.len() {
            assert!(super::decode_data_row(&row[..end]).is_err(), "{end}");
        }
        assert_eq!(super::decode_backend_key_data(b"\0\0\0\x07abcd"), Ok((7, b"abcd".as_slice())));
        assert!(super::decode_backend_key_data(b"\0\0\0\x07abc").is_err());
        assert_eq!(super::decode_ready_for_query(b"T"), Ok(TransactionStatus::InTransaction));
        assert!(super::decode_ready_for_query(b"?").is_err());
        assert_eq!(super::decode_parameter_status(b"a\0b\0"), Ok(("a", "b")));
        assert_eq!(super::decode_command_complete(b"BEGIN\0"), Ok("BEGIN"));
    }

    #[test]
    fn errors_are_read_leniently() {
        let check =
            |payload: &[u8], expected: ErrorFields| assert_eq!(super::decode_error(payload), expected);
        let starting = ErrorFields::fatal(SqlState::CANNOT_CONNECT_NOW, "starting").with_detail("soon");
        check(b"SFATAL\0VFATAL\0C57P03\0Mstarting\0Dsoon\0Fpostmaster.c\0\0", starting.clone());
        // Translated severity; nothing behind the terminator counts.
        check("SFATALE\0VFATAL\0C57P03\0Mstarting\0Dsoon\0\0Mother\0".as_bytes(), starting);
        check(b"", ErrorFields::error(SqlState::INTERNAL_ERROR, ""));
        check(b"C57P03\0Mcut of", ErrorFields::error(SqlState::CANNOT_CONNECT_NOW, ""));
        check(
            b"VNOTICE\0C00000\0M\xff\0",
            ErrorFields::new(Severity::Notice, SqlState::SUCCESSFUL_COMPLETION, "\u{fffd}"),
        );
    }

    #[test]
    fn what_we_encode_we_can_read() {
        let sent = ErrorFields::fatal(SqlState::INVALID_PASSWORD, "no").with_hint("try");
        let mut out = BytesMut::new();
        sent.encode(&mut out);
        assert_eq!(super::decode_error(&out[5..]), sent);
    }
}
