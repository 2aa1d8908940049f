//! Messages of a client: encoders of those we send to servers, decoders of those we look into.

use bytes::{BufMut, BytesMut};

use super::payload::{Malformed, Reader, put, put_count, put_str, put_value};

pub const QUERY: u8 = b'Q';
pub const PARSE: u8 = b'P';
pub const BIND: u8 = b'B';
pub const DESCRIBE: u8 = b'D';
pub const EXECUTE: u8 = b'E';
pub const CLOSE: u8 = b'C';
pub const SYNC: u8 = b'S';
pub const FLUSH: u8 = b'H';
pub const TERMINATE: u8 = b'X';
pub const FUNCTION_CALL: u8 = b'F';
/// PasswordMessage, SASLInitialResponse, SASLResponse: told apart by what was asked for.
pub const PASSWORD: u8 = b'p';
pub const COPY_DATA: u8 = b'd';
pub const COPY_DONE: u8 = b'c';
pub const COPY_FAIL: u8 = b'f';

/// What Describe and Close name; the empty name is the unnamed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    Statement(&'a str),
    Portal(&'a str),
}

impl Named<'_> {
    fn put(self, out: &mut BytesMut) {
        let (kind, name) = match self {
            Named::Statement(name) => (b'S', name),
            Named::Portal(name) => (b'P', name),
        };
        out.put_u8(kind);
        put_str(out, name);
    }
}

pub fn query(sql: &str, out: &mut BytesMut) {
    put(out, QUERY, |out| put_str(out, sql));
}

/// `parameter_types`: type OIDs; 0 or none leaves the type to the server.
pub fn parse(statement: &str, sql: &str, parameter_types: &[u32], out: &mut BytesMut) {
    put(out, PARSE, |out| {
        put_str(out, statement);
        put_str(out, sql);
        put_count(out, parameter_types.len());
        for oid in parameter_types {
            out.put_u32(*oid);
        }
    });
}

/// Values in text format, results in text format.
pub fn bind(portal: &str, statement: &str, values: &[Option<&str>], out: &mut BytesMut) {
    put(out, BIND, |out| {
        put_str(out, portal);
        put_str(out, statement);
        put_count(out, 0);
        put_count(out, values.len());
        for value in values {
            put_value(out, value.map(str::as_bytes));
        }
        put_count(out, 0);
    });
}

pub fn describe(what: Named<'_>, out: &mut BytesMut) {
    put(out, DESCRIBE, |out| what.put(out));
}

pub fn close(what: Named<'_>, out: &mut BytesMut) {
    put(out, CLOSE, |out| what.put(out));
}

/// `max_rows`: 0 for all.
pub fn execute(portal: &str, max_rows: u32, out: &mut BytesMut) {
    put(out, EXECUTE, |out| {
        put_str(out, portal);
        out.put_u32(max_rows);
    });
}

pub fn sync(out: &mut BytesMut) {
    put(out, SYNC, |_| ());
}

pub fn flush(out: &mut BytesMut) {
    put(out, FLUSH, |_| ());
}

pub fn terminate(out: &mut BytesMut) {
    put(out, TERMINATE, |_| ());
}

/// A clear-text password or an md5 answer.
pub fn password(password: &str, out: &mut BytesMut) {
    put(out, PASSWORD, |out| put_str(out, password));
}

pub fn sasl_initial_response(mechanism: &str, data: &str, out: &mut BytesMut) {
    put(out, PASSWORD, |out| {
        put_str(out, mechanism);
        put_value(out, Some(data.as_bytes()));
    });
}

pub fn sasl_response(data: &str, out: &mut BytesMut) {
    put(out, PASSWORD, |out| out.put_slice(data.as_bytes()));
}

pub fn copy_data(data: &[u8], out: &mut BytesMut) {
    put(out, COPY_DATA, |out| out.put_slice(data));
}

pub fn copy_done(out: &mut BytesMut) {
    put(out, COPY_DONE, |_| ());
}

pub fn copy_fail(why: &str, out: &mut BytesMut) {
    put(out, COPY_FAIL, |out| put_str(out, why));
}

/// The text of a Query, in the client's encoding.
pub fn decode_query(payload: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = Reader(payload);
    let sql = reader.c_str()?;
    reader.end()?;
    Ok(sql)
}

/// A Parse, borrowed. Names and text are in the client's encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    pub statement: &'a [u8],
    pub sql: &'a [u8],
    /// The count of parameter types and the types, as sent.
    pub types: &'a [u8],
}

pub fn decode_parse(payload: &[u8]) -> Result<Parse<'_>, Malformed> {
    let mut reader = Reader(payload);
    let (statement, sql) = (reader.c_str()?, reader.c_str()?);
    let types = reader.0;
    let count = reader.u16()?;
    reader.bytes(usize::from(count) * 4)?;
    reader.end()?;
    Ok(Parse { statement, sql, types })
}

/// A Bind, borrowed, values not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
    /// Formats, values and result formats, as sent and unchecked.
    pub rest: &'a [u8],
}

pub fn decode_bind(payload: &[u8]) -> Result<Bind<'_>, Malformed> {
    let mut reader = Reader(payload);
    Ok(Bind { portal: reader.c_str()?, statement: reader.c_str()?, rest: reader.0 })
}

/// Of a Describe or Close: `S` or `P`, and the name.
pub fn decode_named(payload: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let mut reader = Reader(payload);
    let kind = reader.u8()?;
    let name = reader.c_str()?;
    reader.end()?;
    if matches!(kind, b'S' | b'P') { Ok((kind, name)) } else { Err(Malformed::TRAILING) }
}

/// Of an Execute: the portal and the row limit (0: none).
pub fn decode_execute(payload: &[u8]) -> Result<(&[u8], u32), Malformed> {
    let mut reader = Reader(payload);
    let portal = reader.c_str()?;
    let max_rows = reader.u32()?;
    reader.end()?;
    Ok((portal, max_rows))
}

/// Of a PasswordMessage: the password.
pub fn decode_password(payload: &[u8]) -> Result<&[u8], Malformed> {
    decode_query(payload)
}

/// Of a SASLInitialResponse: the mechanism and what came with it.
pub fn decode_sasl_initial(payload: &[u8]) -> Result<(&[u8], Option<&[u8]>), Malformed> {
    let mut reader = Reader(payload);
    let mechanism = reader.c_str()?;
    let data = reader.value()?;
    reader.end()?;
    Ok((mechanism, data))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{Bind, Malformed, Named, Parse};

    fn encoded(encode: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        encode(&mut out);
        out
    }

    #[test]
    fn golden_bytes() {
        let check = |encode: &dyn Fn(&mut BytesMut), expected: &[u8]| {
            assert_eq!(&encoded(|out| encode(out))[..], expected);
        };
        check(&|out| super::query("SELECT 1", out), b"Q\0\0\0\x0dSELECT 1\0");
        check(
            &|out| super::parse("s", "SELECT $1", &[25], out),
            b"P\0\0\0\x16s\0SELECT $1\0\0\x01\0\0\0\x19",
        );
        check(
            &|out| super::bind("", "s", &[Some("x"), None], out),
            b"B\0\0\0\x16\0s\0\0\0\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\0",
        );
        check(&|out| super::describe(Named::Statement("s"), out), b"D\0\0\0\x07Ss\0");
        check(&|out| super::close(Named::Portal(""), out), b"C\0\0\0\x06P\0");
        check(&|out| super::execute("", 5, out), b"E\0\0\0\x09\0\0\0\0\x05");
        check(&|out| super::sync(out), b"S\0\0\0\x04");
        check(&|out| super::flush(out), b"H\0\0\0\x04");
        check(&|out| super::terminate(out), b"X\0\0\0\x04");
        check(&|out| super::password("pw", out), b"p\0\0\0\x07pw\0");
        check(
            &|out| super::sasl_initial_response("SCRAM-SHA-256", "n,,", out),
            b"p\0\0\0\x19SCRAM-SHA-256\0\0\0\0\x03n,,",
        );
        check(&|out| super::sasl_response("c=biws", out), b"p\0\0\0\x0ac=biws");
        check(&|out| super::copy_data(b"r\0", out), b"d\0\0\0\x06r\0");
        check(&|out| super::copy_done(out), b"c\0\0\0\x04");
        check(&|out| super::copy_fail("no", out), b"f\0\0\0\x07no\0");
    }

    #[test]
    fn decoders_read_whole_messages_only() {
        assert_eq!(super::decode_query(b"SELECT 1\0"), Ok(b"SELECT 1".as_slice()));
        assert_eq!(super::decode_query(b"SELECT 1"), Err(Malformed::STRING));
        assert_eq!(super::decode_query(b"SELECT 1\0;"), Err(Malformed::TRAILING));
        let parse = b"s\0SELECT $1\0\0\x01\0\0\0\x19";
        assert_eq!(
            super::decode_parse(parse),
            Ok(Parse { statement: b"s", sql: b"SELECT $1", types: b"\0\x01\0\0\0\x19" })
        );
        for end in 0..parse.len() {
            assert!(super::decode_parse(&parse[..end]).is_err(), "{end}");
        }
        assert_eq!(
            super::decode_bind(b"p\0s\0\0\0\0\0\0\0"),
            Ok(Bind { portal: b"p", statement: b"s", rest: &[0; 6] })
        );
        assert_eq!(super::decode_named(b"Ss\0"), Ok((b'S', b"s".as_slice())));
        assert_eq!(super::decode_named(b"Xs\0"), Err(Malformed::TRAILING));
        assert_eq!(super::decode_execute(b"\0\0\0\0\x05"), Ok((b"".as_slice(), 5)));
        assert_eq!(super::decode_sasl_initial(b"M\0\xff\xff\xff\xff"), Ok((b"M".as_slice(), None)));
        assert_eq!(super::decode_sasl_initial(b"M\0\0\0\0\x02x"), Err(Malformed::TRUNCATED));
    }
}
