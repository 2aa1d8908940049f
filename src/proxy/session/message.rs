//! The few messages that the session looks into, and the few that it writes itself.

use bytes::BytesMut;

use crate::pg::error::ErrorFields;
use crate::pg::protocol::frame::HEADER_LEN;

/// Transaction status in ReadyForQuery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Status {
    #[default]
    Idle,
    Block,
    Failed,
}

impl Status {
    pub(crate) fn from_byte(byte: u8) -> Option<Status> {
        match byte {
            b'I' => Some(Status::Idle),
            b'T' => Some(Status::Block),
            b'E' => Some(Status::Failed),
            _ => None,
        }
    }

    pub(crate) fn byte(self) -> u8 {
        match self {
            Status::Idle => b'I',
            Status::Block => b'T',
            Status::Failed => b'E',
        }
    }
}

/// The text up to the next NUL, and what is behind it.
pub(crate) fn cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// A whole Parse message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parse<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) text: &'a [u8],
    /// Text, NUL and parameter types: what makes two statements the same.
    pub(crate) rest: &'a [u8],
}

impl<'a> Parse<'a> {
    pub(crate) fn read(message: &'a [u8]) -> Option<Parse<'a>> {
        let (name, rest) = cstr(message.get(HEADER_LEN..)?)?;
        let (text, types) = cstr(rest)?;
        let count = types.first_chunk::<2>().map(|count| usize::from(u16::from_be_bytes(*count)))?;
        (types.len() == 2 + 4 * count).then_some(Parse { name, text, rest })
    }
}

/// Portal and statement name at the start of a Bind; `None` while they are not wholly there.
pub(crate) fn bind_names(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (portal, rest) = cstr(message.get(HEADER_LEN..)?)?;
    let (statement, _) = cstr(rest)?;
    Some((portal, statement))
}

/// Name and value of a whole ParameterStatus.
pub(crate) fn parameter(message: &[u8]) -> Option<(&str, &str)> {
    let (name, rest) = cstr(message.get(HEADER_LEN..)?)?;
    let (value, _) = cstr(rest)?;
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
}

/// The value (`None`: NULL) of a whole DataRow that has one.
pub(crate) fn only_value(message: &[u8]) -> Option<Option<&[u8]>> {
    let (columns, rest) = message.get(HEADER_LEN..)?.split_first_chunk::<2>()?;
    let (length, value) = rest.split_first_chunk::<4>()?;
    match i32::from_be_bytes(*length) {
        _ if *columns != [0, 1] => None,
        -1 => Some(None),
        length => (usize::try_from(length) == Ok(value.len())).then_some(Some(value)),
    }
}

/// `S` or `P`, and the name, of a whole Describe or Close.
pub(crate) fn target(message: &[u8]) -> Option<(u8, &[u8])> {
    let (kind, name) = message.get(HEADER_LEN..)?.split_first()?;
    let (name, rest) = cstr(name)?;
    (rest.is_empty() && matches!(kind, b'S' | b'P')).then_some((*kind, name))
}

/// Appends tag, length and `parts`.
pub(crate) fn put(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    put_head(out, tag, parts.iter().map(|part| part.len()).sum());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends tag and length of a message whose payload follows.
pub(crate) fn put_head(out: &mut Vec<u8>, tag: u8, payload: usize) {
    out.push(tag);
    let length =
        u32::try_from(payload + 4).expect("a message that was within the protocol's bound, or our own");
    out.extend_from_slice(&length.to_be_bytes());
}

pub(crate) fn put_query(out: &mut Vec<u8>, text: &str) {
    put(out, b'Q', &[text.as_bytes(), b"\0"]);
}

/// Parse, Bind and Execute of a text without parameters, all unnamed.
pub(crate) fn put_statement(out: &mut Vec<u8>, text: &str) {
    put(out, b'P', &[b"\0", text.as_bytes(), b"\0\0\0"]);
    put(out, b'B', &[b"\0\0\0\0\0\0\0\0"]);
    put(out, b'E', &[b"\0\0\0\0\0"]);
}

/// FunctionCall without arguments, for a binary result.
pub(crate) fn put_call(out: &mut Vec<u8>, function: u32) {
    let (no_formats, no_arguments, binary) = ([0, 0], [0, 0], [0, 1]);
    put(out, b'F', &[&function.to_be_bytes(), &no_formats, &no_arguments, &binary]);
}

/// Of a whole FunctionCallResponse with eight bytes.
pub(crate) fn call_result(message: &[u8]) -> Option<u64> {
    let (length, value) = message.get(HEADER_LEN..)?.split_first_chunk::<4>()?;
    let value = value.try_into().ok().filter(|_| i32::from_be_bytes(*length) == 8)?;
    Some(u64::from_be_bytes(value))
}

pub(crate) fn put_ready(out: &mut Vec<u8>, status: Status) {
    put(out, b'Z', &[&[status.byte()]]);
}

pub(crate) fn put_complete(out: &mut Vec<u8>, tag: &str) {
    put(out, b'C', &[tag.as_bytes(), b"\0"]);
}

pub(crate) fn put_parameter(out: &mut Vec<u8>, name: &str, value: &str) {
    put(out, b'S', &[name.as_bytes(), b"\0", value.as_bytes(), b"\0"]);
}

pub(crate) fn put_error(out: &mut Vec<u8>, error: &ErrorFields) {
    let mut message = BytesMut::new();
    error.encode(&mut message);
    out.extend_from_slice(&message);
}

/// RowDescription of one column of type text.
pub(crate) fn put_text_column(out: &mut Vec<u8>, name: &str) {
    const TEXTOID: u32 = 25;
    let mut column = Vec::with_capacity(18);
    column.extend_from_slice(&[0; 6]);
    column.extend_from_slice(&TEXTOID.to_be_bytes());
    column.extend_from_slice(&(-1i16).to_be_bytes());
    column.extend_from_slice(&(-1i32).to_be_bytes());
    column.extend_from_slice(&[0; 2]);
    put(out, b'T', &[&[0, 1], name.as_bytes(), b"\0", &column]);
}

/// DataRow of one text.
pub(crate) fn put_text_row(out: &mut Vec<u8>, value: &str) {
    let length = u32::try_from(value.len()).expect("our own values are short");
    put(out, b'D', &[&[0, 1], &length.to_be_bytes(), value.as_bytes()]);
}

/// The server's function that reports, of a whole ErrorResponse or NoticeResponse.
pub(crate) fn routine(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message.get(HEADER_LEN..)?;
    while let Some((kind, tail)) = rest.split_first().filter(|(kind, _)| **kind != 0) {
        let (value, next) = cstr(tail)?;
        if *kind == b'R' {
            return Some(value);
        }
        rest = next;
    }
    None
}

/// A whole ErrorResponse with another text, without the hint to the old one, and with everything else as it was.
pub(crate) fn with_text(message: &[u8], text: &str) -> Option<Vec<u8>> {
    let mut fields = vec![];
    let mut rest = message.get(HEADER_LEN..)?;
    while let Some((kind, tail)) = rest.split_first().filter(|(kind, _)| **kind != 0) {
        let (value, next) = cstr(tail)?;
        rest = next;
        if *kind == b'H' {
            continue;
        }
        fields.push(*kind);
        fields.extend_from_slice(if *kind == b'M' { text.as_bytes() } else { value });
        fields.push(0);
    }
    let mut out = vec![];
    put(&mut out, b'E', &[&fields, b"\0"]);
    Some(out)
}

/// Severity, SQLSTATE and text of a whole ErrorResponse.
pub(crate) fn read_error(message: &[u8]) -> Option<ErrorFields> {
    use crate::pg::error::{Severity, SqlState};
    let mut rest = message.get(HEADER_LEN..)?;
    let mut fields = ErrorFields::error(SqlState::INTERNAL_ERROR, "");
    while let Some((kind, tail)) = rest.split_first().filter(|(kind, _)| **kind != 0) {
        let (value, next) = cstr(tail)?;
        match kind {
            b'V' if matches!(value, b"FATAL" | b"PANIC") => fields.severity = Severity::Fatal,
            b'C' => fields.code = SqlState::parse(value)?,
            b'M' => fields.message = String::from_utf8_lossy(value).into_owned(),
            b'D' => fields.detail = Some(String::from_utf8_lossy(value).into_owned()),
            b'H' => fields.hint = Some(String::from_utf8_lossy(value).into_owned()),
            _ => {}
        }
        rest = next;
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::{Parse, bind_names, put, put_error, read_error, target};
    use crate::pg::error::{ErrorFields, SqlState};

    #[test]
    fn parse_bind_describe() {
        let mut message = Vec::new();
        put(&mut message, b'P', &[b"s1\0select $1\0\0\x01\0\0\0\x17"]);
        let parse = Parse::read(&message);
        let expected = Parse { name: b"s1", text: b"select $1", rest: b"select $1\0\0\x01\0\0\0\x17" };
        assert_eq!(parse, Some(expected));
        message.pop();
        assert_eq!(Parse::read(&message), None, "a type is cut off");
        assert_eq!(bind_names(b"B\0\0\0\x20p\0st\0..."), Some((b"p".as_slice(), b"st".as_slice())));
        assert_eq!(bind_names(b"B\0\0\0\x20p\0st"), None);
        assert_eq!(target(b"D\0\0\0\x08Sst\0"), Some((b'S', b"st".as_slice())));
        assert_eq!(target(b"D\0\0\0\x08Xst\0"), None);
    }

    #[test]
    fn errors_are_read_as_they_are_written() {
        let error = ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, "bye").with_detail("d").with_hint("h");
        let mut message = Vec::new();
        put_error(&mut message, &error);
        assert_eq!(read_error(&message), Some(error));
    }
}
