//! A client's messages as lines of text, so that a script is data that one can read, and paste back.
//!
//! ```text
//! query SELECT 1; SELECT 2
//! parse s [23,25] SELECT $1, $2          a name of - is the unnamed one, the types may be left out
//! bind p s formats=1 results=0,1 \x00\x00\x00\x07 NULL
//! describe statement s                   or portal
//! execute p 5                            no number: all rows
//! close portal p
//! sync | flush | terminate | done
//! data 1\tone\n                          CopyData
//! fail changed my mind                   CopyFail
//! call 1598 result=0 VALUE ...           FunctionCall, by OID
//! raw Q\x00\x00\x00\x03
//! ```
//!
//! Everywhere `\n \t \s \\ \xHH` are escapes, `\e` is the empty value, and `{x*3000}` is `x` three thousand times.

use bellwether::pg::protocol::frontend::{self, Named};
use bytes::{BufMut, BytesMut};

/// One line's message, whole, with tag and length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded(pub(super) BytesMut);

impl Encoded {
    pub(super) fn tag(&self) -> u8 {
        self.0[0]
    }

    /// Of a Describe: `S` or `P`.
    pub(super) fn kind(&self) -> u8 {
        self.0.get(5).copied().unwrap_or_default()
    }
}

pub(super) fn encode(line: &str) -> Result<Encoded, String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut out = BytesMut::new();
    let mut words = rest.split_ascii_whitespace();
    match word {
        "query" => frontend::query(&text(rest)?, &mut out),
        "parse" => parse(rest, &mut out)?,
        "bind" => bind(&mut words, &mut out)?,
        "describe" => frontend::describe(named(&mut words)?, &mut out),
        "close" => frontend::close(named(&mut words)?, &mut out),
        "execute" => {
            let portal = name(words.next())?;
            let max_rows = words.next().map_or(Ok(0), str::parse).map_err(|_| "a number of rows")?;
            frontend::execute(portal, max_rows, &mut out);
        }
        "sync" => frontend::sync(&mut out),
        "flush" => frontend::flush(&mut out),
        "terminate" => frontend::terminate(&mut out),
        "data" => frontend::copy_data(&unescape(rest)?, &mut out),
        "done" => frontend::copy_done(&mut out),
        "fail" => frontend::copy_fail(&text(rest)?, &mut out),
        "call" => call(&mut words, &mut out)?,
        "raw" => out.put_slice(&unescape(rest)?),
        other => return Err(format!("no message is called {other:?}")),
    }
    if out.is_empty() { Err("nothing to send".to_owned()) } else { Ok(Encoded(out)) }
}

type Words<'a> = std::str::SplitAsciiWhitespace<'a>;

fn name(word: Option<&str>) -> Result<&str, String> {
    match word {
        Some("-") => Ok(""),
        Some(name) => Ok(name),
        None => Err("a name is missing".to_owned()),
    }
}

fn named<'a>(words: &mut Words<'a>) -> Result<Named<'a>, String> {
    match words.next() {
        Some("statement") => Ok(Named::Statement(name(words.next())?)),
        Some("portal") => Ok(Named::Portal(name(words.next())?)),
        other => Err(format!("statement or portal, not {other:?}")),
    }
}

fn parse(rest: &str, out: &mut BytesMut) -> Result<(), String> {
    let (statement, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let (types, sql) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((types, sql)) => (numbers(types)?, sql.trim_start()),
        None => (Vec::new(), rest),
    };
    frontend::parse(name(Some(statement))?, &text(sql)?, &types, out);
    Ok(())
}

fn numbers<T: std::str::FromStr>(list: &str) -> Result<Vec<T>, String> {
    let number = |item: &str| item.trim().parse().map_err(|_| format!("{item:?} is no number"));
    list.split(',').map(number).collect()
}

/// Formats, values and result formats, as Bind and FunctionCall have them.
#[derive(Default)]
struct Arguments {
    formats: Vec<i16>,
    values: Vec<Option<Vec<u8>>>,
    results: Vec<i16>,
}

impl Arguments {
    fn read(words: &mut Words<'_>) -> Result<Arguments, String> {
        let mut arguments = Arguments::default();
        for word in words {
            if let Some(formats) = word.strip_prefix("formats=") {
                arguments.formats = numbers(formats)?;
            } else if let Some(results) = word.strip_prefix("results=") {
                arguments.results = numbers(results)?;
            } else if word == "NULL" {
                arguments.values.push(None);
            } else {
                arguments.values.push(Some(unescape(word)?));
            }
        }
        Ok(arguments)
    }

    fn put_values(&self, out: &mut BytesMut) {
        put_formats(&self.formats, out);
        out.put_u16(u16::try_from(self.values.len()).expect("a script has few values"));
        for value in &self.values {
            match value {
                None => out.put_i32(-1),
                Some(bytes) => {
                    out.put_i32(i32::try_from(bytes.len()).expect("far below 2 GB"));
                    out.put_slice(bytes);
                }
            }
        }
    }
}

fn put_formats(formats: &[i16], out: &mut BytesMut) {
    out.put_u16(u16::try_from(formats.len()).expect("a script has few formats"));
    formats.iter().for_each(|format| out.put_i16(*format));
}

/// The room's own encoder knows text only.
fn bind(words: &mut Words<'_>, out: &mut BytesMut) -> Result<(), String> {
    let (portal, statement) = (name(words.next())?, name(words.next())?);
    let arguments = Arguments::read(words)?;
    let mut body = BytesMut::new();
    for name in [portal, statement] {
        body.put_slice(name.as_bytes());
        body.put_u8(0);
    }
    arguments.put_values(&mut body);
    put_formats(&arguments.results, &mut body);
    put(frontend::BIND, &body, out);
    Ok(())
}

fn call(words: &mut Words<'_>, out: &mut BytesMut) -> Result<(), String> {
    let function: u32 = words.next().and_then(|oid| oid.parse().ok()).ok_or("an OID is missing")?;
    let arguments = Arguments::read(words)?;
    let mut body = BytesMut::new();
    body.put_u32(function);
    arguments.put_values(&mut body);
    body.put_i16(arguments.results.first().copied().unwrap_or(0));
    put(frontend::FUNCTION_CALL, &body, out);
    Ok(())
}

fn put(tag: u8, body: &[u8], out: &mut BytesMut) {
    out.put_u8(tag);
    out.put_u32(u32::try_from(body.len() + 4).expect("far below 4 GB"));
    out.put_slice(body);
}

fn text(escaped: &str) -> Result<String, String> {
    String::from_utf8(unescape(escaped)?).map_err(|_| format!("not UTF-8: {escaped:?}"))
}

fn unescape(escaped: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = escaped;
    while let Some(first) = rest.chars().next() {
        let (value, taken) = match first {
            '\\' => escape(rest)?,
            '{' => repeated(rest).unwrap_or_else(|| (b"{".to_vec(), 1)),
            other => (other.to_string().into_bytes(), other.len_utf8()),
        };
        bytes.extend_from_slice(&value);
        rest = &rest[taken..];
    }
    Ok(bytes)
}

/// What the escape in front stands for, and its length.
fn escape(text: &str) -> Result<(Vec<u8>, usize), String> {
    let byte = match text.as_bytes().get(1) {
        Some(b'n') => b'\n',
        Some(b't') => b'\t',
        Some(b's') => b' ',
        Some(b'\\') => b'\\',
        Some(b'e') => return Ok((Vec::new(), 2)),
        Some(b'x') => {
            let digits = text.get(2..4).ok_or("two digits behind \\x")?;
            let byte = u8::from_str_radix(digits, 16).map_err(|_| format!("\\x{digits}"))?;
            return Ok((vec![byte], 4));
        }
        _ => return Err(format!("unknown escape in {text:?}")),
    };
    Ok((vec![byte], 2))
}

/// `{x*3000}`, and its length in the text.
fn repeated(text: &str) -> Option<(Vec<u8>, usize)> {
    let end = text.find('}')?;
    let (what, times) = text[1..end].split_once('*')?;
    Some((what.repeat(times.parse().ok()?).into_bytes(), end + 1))
}

#[test]
fn lines_and_bytes() {
    let check = |line: &str, expected: &[u8]| {
        assert_eq!(encode(line).map(|Encoded(bytes)| bytes.to_vec()), Ok(expected.to_vec()), "{line}");
    };
    check("query SELECT '{ab*2}{1}\\n'", b"Q\0\0\0\x16SELECT 'abab{1}\n'\0");
    check("parse - [23,0] SELECT $1", b"P\0\0\0\x19\0SELECT $1\0\0\x02\0\0\0\x17\0\0\0\0");
    check("parse s SELECT", b"P\0\0\0\x0fs\0SELECT\0\0\0");
    check(
        "bind - s formats=1 results=0,1 \\x07 NULL \\e",
        b"B\0\0\0\x20\0s\0\0\x01\0\x01\0\x03\0\0\0\x01\x07\xff\xff\xff\xff\0\0\0\0\0\x02\0\0\0\x01",
    );
    check("describe portal -", b"D\0\0\0\x06P\0");
    check("execute - 5", b"E\0\0\0\x09\0\0\0\0\x05");
    check("data 1\\tone\\n", b"d\0\0\0\x0a1\tone\n");
    check("call 1598 results=1 a\\sb", b"F\0\0\0\x15\0\0\x06\x3e\0\0\0\x01\0\0\0\x03a b\0\x01");
    check("raw \\x00x", b"\0x");
    for wrong in ["select 1", "describe s", "execute - five", "bind -", "data \\y", "raw ", "call x"] {
        assert!(encode(wrong).is_err(), "{wrong}");
    }
}
