//! Backend messages as lines that can be compared. What cannot be equal is made so: OIDs of created objects become
//! numbers in the order of their appearance, a notification's pid becomes the session's own or another's. All
//! else is kept, an error's file, line and routine too.

use std::fmt::Write as _;

/// Values up to this many bytes are shown, longer ones by length and checksum.
const SHOWN: usize = 120;

/// OIDs below are the system's and the same everywhere (FirstNormalObjectId in transam.h).
const FIRST_NORMAL_OID: u32 = 16_384;

#[derive(Debug)]
pub(super) struct Normalise {
    /// The session's own, as its BackendKeyData said.
    pid: u32,
    oids: Vec<u32>,
}

impl Normalise {
    pub(super) fn of_session(pid: u32) -> Normalise {
        Normalise { pid, oids: Vec::new() }
    }

    pub(super) fn render(&mut self, tag: u8, payload: &[u8]) -> String {
        let mut fields = Fields(payload);
        let mut line = name(tag).map_or_else(|| format!("0x{tag:02x}"), str::to_owned);
        let complete = match tag {
            b'T' => self.columns(&mut fields, &mut line),
            b't' => self.types(&mut fields, &mut line),
            b'D' => values(&mut fields, &mut line),
            b'V' => fields.value().map(|value| line.push_str(&shown(value))),
            b'E' | b'N' => error(&mut fields, &mut line),
            b'A' => self.notification(&mut fields, &mut line),
            b'G' | b'H' | b'W' => formats(&mut fields, &mut line),
            b'S' => [fields.text(), fields.text()].into_iter().try_for_each(|text| {
                let _ = write!(line, " {}", text?);
                Some(())
            }),
            b'C' => fields.text().map(|text| line.push_str(&format!(" {text}"))),
            _ => {
                line.push_str(&shown(Some(std::mem::take(&mut fields.0))));
                Some(())
            }
        };
        if complete.is_none() || !fields.0.is_empty() {
            let _ = write!(line, " MALFORMED {payload:02x?}");
        }
        line
    }

    fn oid(&mut self, oid: u32) -> String {
        if oid < FIRST_NORMAL_OID {
            return oid.to_string();
        }
        let known = self.oids.iter().position(|known| *known == oid);
        let number = known.unwrap_or_else(|| {
            self.oids.push(oid);
            self.oids.len() - 1
        });
        format!("new-{number}")
    }

    fn columns(&mut self, fields: &mut Fields<'_>, line: &mut String) -> Option<()> {
        for _ in 0..fields.u16()? {
            let name = fields.text()?;
            let (table, attribute, type_oid) = (fields.u32()?, fields.u16()?, fields.u32()?);
            let (length, modifier, format) = (fields.u16()? as i16, fields.u32()? as i32, fields.u16()?);
            let (table, type_oid) = (self.oid(table), self.oid(type_oid));
            let _ = write!(line, " {name}({table}.{attribute} {type_oid} {length} {modifier} {format})");
        }
        Some(())
    }

    fn types(&mut self, fields: &mut Fields<'_>, line: &mut String) -> Option<()> {
        for _ in 0..fields.u16()? {
            let oid = fields.u32()?;
            let _ = write!(line, " {}", self.oid(oid));
        }
        Some(())
    }

    fn notification(&mut self, fields: &mut Fields<'_>, line: &mut String) -> Option<()> {
        let sender = if fields.u32()? == self.pid { "own" } else { "another's" };
        let _ = write!(line, " {sender} {} {}", fields.text()?, fields.text()?);
        Some(())
    }
}

fn values(fields: &mut Fields<'_>, line: &mut String) -> Option<()> {
    for _ in 0..fields.u16()? {
        line.push_str(&shown(fields.value()?));
    }
    Some(())
}

/// In a failed block a statement that is brought along is denied in place of the message that needs it: the place in
/// PostgreSQL's source is another then.
fn error(fields: &mut Fields<'_>, line: &mut String) -> Option<()> {
    const IN_FAILED_SQL_TRANSACTION: &str = "25P02";
    let mut anywhere = false;
    loop {
        let kind = fields.u8()?;
        if kind == 0 {
            return Some(());
        }
        let text = fields.text()?;
        anywhere |= kind == b'C' && text == IN_FAILED_SQL_TRANSACTION;
        if !(anywhere && matches!(kind, b'F' | b'L' | b'R')) {
            let _ = write!(line, " {}={text}", char::from(kind));
        }
    }
}

fn formats(fields: &mut Fields<'_>, line: &mut String) -> Option<()> {
    let _ = write!(line, " {}", fields.u8()?);
    for _ in 0..fields.u16()? {
        let _ = write!(line, " {}", fields.u16()?);
    }
    Some(())
}

fn shown(value: Option<&[u8]>) -> String {
    match value {
        None => " NULL".to_owned(),
        Some(bytes) if bytes.len() <= SHOWN => format!(" [{}]", bytes.escape_ascii()),
        Some(bytes) => format!(" [{} bytes, crc {:08x}]", bytes.len(), crc32c::crc32c(bytes)),
    }
}

fn name(tag: u8) -> Option<&'static str> {
    Some(match tag {
        b'R' => "Authentication",
        b'S' => "ParameterStatus",
        b'K' => "BackendKeyData",
        b'Z' => "ReadyForQuery",
        b'T' => "RowDescription",
        b'D' => "DataRow",
        b'C' => "CommandComplete",
        b'I' => "EmptyQueryResponse",
        b'1' => "ParseComplete",
        b'2' => "BindComplete",
        b'3' => "CloseComplete",
        b'n' => "NoData",
        b's' => "PortalSuspended",
        b't' => "ParameterDescription",
        b'G' => "CopyInResponse",
        b'H' => "CopyOutResponse",
        b'W' => "CopyBothResponse",
        b'd' => "CopyData",
        b'c' => "CopyDone",
        b'E' => "ErrorResponse",
        b'N' => "NoticeResponse",
        b'A' => "NotificationResponse",
        b'V' => "FunctionCallResponse",
        _ => return None,
    })
}

/// A payload from front to back; `None` where it stops short.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.take(end)?;
        self.take(1)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn value(&mut self) -> Option<Option<&'a [u8]>> {
        match self.u32()? {
            u32::MAX => Some(None),
            length => self.take(length as usize).map(Some),
        }
    }
}

#[test]
fn messages_as_lines() {
    let mut normalise = Normalise::of_session(7);
    let mut check = |tag, payload: &[u8], expected| assert_eq!(normalise.render(tag, payload), expected);
    check(b'Z', b"I", "ReadyForQuery [I]");
    check(b'C', b"SELECT 1\0", "CommandComplete SELECT 1");
    check(b'D', b"\0\x02\0\0\0\x01x\xff\xff\xff\xff", "DataRow [x] NULL");
    check(b't', b"\0\x03\0\0\0\x19\0\x01\0\0\0\x01\0\x01", "ParameterDescription 25 new-0 new-1");
    check(b't', b"\0\x01\0\x01\0\0", "ParameterDescription new-0");
    check(b'E', b"SERROR\0C42601\0Mno\0\0", "ErrorResponse S=ERROR C=42601 M=no");
    check(b'A', b"\0\0\0\x07c\0p\0", "NotificationResponse own c p");
    check(b'A', b"\0\0\0\x08c\0\0", "NotificationResponse another's c ");
    check(b'G', b"\0\0\x01\0\0", "CopyInResponse 0 0");
    check(b'C', b"cut", "CommandComplete MALFORMED [63, 75, 74]");
    check(b'D', b"\0\0x", "DataRow MALFORMED [00, 00, 78]");
}

#[test]
fn no_changed_byte_goes_unseen() {
    let long = [&b"\0\x01\0\0\0\xc8"[..], &[b'x'; 200]].concat();
    for (tag, payload) in [
        (b'Z', &b"I"[..]),
        (b'S', b"TimeZone\0UTC\0"),
        (b'C', b"SELECT 1\0"),
        (b'T', b"\0\x01one\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"),
        (b't', b"\0\x01\0\0\0\x19"),
        (b'D', b"\0\x02\0\0\0\x01x\xff\xff\xff\xff"),
        (b'D', &long),
        (b'E', b"SERROR\0C42601\0Mno\0\0"),
        (b'G', b"\0\0\x01\0\0"),
        (b'd', b"1\tone\n"),
        (b'V', b"\0\0\0\x01x"),
    ] {
        let line = |payload: &[u8]| Normalise::of_session(7).render(tag, payload);
        for at in 0..payload.len() {
            for bit in [1, 0x80] {
                let mut changed = payload.to_vec();
                changed[at] ^= bit;
                assert_ne!(line(&changed), line(payload), "{} {at} {bit}", char::from(tag));
            }
        }
    }
}
