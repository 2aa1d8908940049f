//! Rows of text with named, typed columns, and how they go to a client. PURE.

use std::borrow::Cow;

use bytes::BytesMut;

use crate::pg::error::{ErrorFields, SqlState};
use crate::pg::protocol::backend::{self, Column, Format};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Int4,
    Int8,
    /// Without a fraction.
    Numeric,
    Float8,
}

pub(super) type Columns = &'static [(&'static str, Type)];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Columns,
    /// Each as long as `columns`.
    pub(super) rows: Vec<Vec<Option<String>>>,
}

/// A value of a row.
#[expect(clippy::needless_pass_by_value, reason = "callers have numbers and references alike")]
pub(super) fn value(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

impl Table {
    pub(super) fn new(columns: Columns, rows: impl IntoIterator<Item = Vec<Option<String>>>) -> Table {
        let rows: Vec<_> = rows.into_iter().collect();
        debug_assert!(rows.iter().all(|row| row.len() == columns.len()), "a value for each column");
        Table { columns, rows }
    }

    pub(super) fn describe(&self, formats: &Formats, out: &mut BytesMut) -> Result<(), ErrorFields> {
        let formats = formats.of(self.columns.len())?;
        let columns = self.columns.iter().zip(formats);
        let columns: Vec<Column<'_>> =
            columns.map(|((name, of), format)| Column { format, ..of.column(name) }).collect();
        backend::row_description(&columns, out);
        Ok(())
    }

    pub(super) fn put_rows(&self, formats: &Formats, out: &mut BytesMut) -> Result<(), ErrorFields> {
        let formats: Vec<Format> = formats.of(self.columns.len())?.collect();
        for row in &self.rows {
            let row: Vec<Option<Cow<'_, [u8]>>> = self
                .columns
                .iter()
                .zip(row)
                .zip(&formats)
                .map(|(((name, of), value), format)| encode(name, *of, *format, value.as_deref()))
                .collect::<Result<_, _>>()?;
            let row: Vec<Option<&[u8]>> = row.iter().map(Option::as_deref).collect();
            backend::data_row_bytes(&row, out);
        }
        Ok(())
    }
}

/// What a Bind asks the results' columns to be sent in: nothing (text), one format for all, or one for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Formats(Vec<Format>);

impl Formats {
    /// Of the end of a Bind: a count, and so many codes. `None`: it is malformed.
    pub(super) fn read(bytes: &[u8]) -> Option<Formats> {
        let (count, codes) = bytes.split_first_chunk()?;
        let codes = codes.as_chunks();
        let read = |code: &[u8; 2]| match u16::from_be_bytes(*code) {
            0 => Some(Format::Text),
            1 => Some(Format::Binary),
            _ => None,
        };
        let whole = codes.1.is_empty() && codes.0.len() == usize::from(u16::from_be_bytes(*count));
        codes.0.iter().map(read).collect::<Option<Vec<Format>>>().filter(|_| whole).map(Formats)
    }

    fn of(&self, columns: usize) -> Result<impl Iterator<Item = Format>, ErrorFields> {
        let given = self.0.len();
        if given > 1 && given != columns {
            let message = format!("bind message has {given} result formats but query has {columns} columns");
            return Err(ErrorFields::error(SqlState::PROTOCOL_VIOLATION, message));
        }
        let for_all = self.0.first().copied().unwrap_or_default();
        Ok((0..columns).map(move |at| if given > 1 { self.0[at] } else { for_all }))
    }
}

fn encode<'v>(
    name: &str,
    of: Type,
    format: Format,
    value: Option<&'v str>,
) -> Result<Option<Cow<'v, [u8]>>, ErrorFields> {
    let Some(value) = value else { return Ok(None) };
    if format == Format::Text {
        return Ok(Some(Cow::Borrowed(value.as_bytes())));
    }
    let binary = of.binary(value).ok_or_else(|| {
        ErrorFields::error(SqlState::INTERNAL_ERROR, format!("column {name}: {value} has no binary form"))
    })?;
    Ok(Some(binary))
}

impl Type {
    /// OIDs and lengths as in `pg_type.dat`.
    fn column(self, name: &str) -> Column<'_> {
        match self {
            Type::Text => Column::text(name),
            Type::Int4 => Column::int4(name),
            Type::Int8 => Column::int8(name),
            Type::Numeric => Column::of_type(name, 1700, -1),
            Type::Float8 => Column::of_type(name, 701, 8),
        }
    }

    /// As the types' send functions do (int.c, float.c, numeric.c). `None`: it is no value of this type.
    fn binary(self, value: &str) -> Option<Cow<'_, [u8]>> {
        Some(match self {
            Type::Text => Cow::Borrowed(value.as_bytes()),
            Type::Int4 => Cow::Owned(value.parse::<i32>().ok()?.to_be_bytes().into()),
            Type::Int8 => Cow::Owned(value.parse::<i64>().ok()?.to_be_bytes().into()),
            Type::Float8 => Cow::Owned(value.parse::<f64>().ok()?.to_be_bytes().into()),
            Type::Numeric => Cow::Owned(numeric(value.parse().ok()?)),
        })
    }
}

/// Count of digits, weight of the first, sign, digits behind the point; then the digits, to the base of 10,000.
fn numeric(mut value: u64) -> Vec<u8> {
    let mut digits: Vec<u16> = vec![];
    while value > 0 {
        digits.push(u16::try_from(value % 10_000).expect("below 10,000"));
        value /= 10_000;
    }
    let count = u16::try_from(digits.len()).expect("five at most");
    let head = [count, count.saturating_sub(1), 0, 0];
    head.into_iter().chain(digits.into_iter().rev()).flat_map(u16::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::{Format, Formats, Type, numeric};

    #[test]
    fn binary_values() {
        let check = |of: Type, value: &str, expected: Option<&[u8]>| {
            assert_eq!(of.binary(value).as_deref(), expected, "{of:?} {value}");
        };
        check(Type::Text, "x", Some(b"x"));
        check(Type::Int4, "-2", Some(&[255, 255, 255, 254]));
        check(Type::Int4, "4294967295", None);
        check(Type::Int8, "4294967295", Some(&[0, 0, 0, 0, 255, 255, 255, 255]));
        check(Type::Float8, "0.5", Some(&[0x3f, 0xe0, 0, 0, 0, 0, 0, 0]));
        check(Type::Numeric, "1.5", None);
        // As `SELECT numeric_send(120003)` and so on.
        for (value, expected) in [
            (0, &[0, 0, 0, 0, 0, 0, 0, 0][..]),
            (7, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 7]),
            (120_003, &[0, 2, 0, 1, 0, 0, 0, 0, 0, 12, 0, 3]),
        ] {
            assert_eq!(numeric(value), expected, "{value}");
        }
    }

    #[test]
    fn formats() {
        use Format::{Binary, Text};
        let check = |bytes: &[u8], columns, expected: Option<Option<Vec<Format>>>| {
            let formats = Formats::read(bytes).map(|formats| formats.of(columns).ok().map(Iterator::collect));
            assert_eq!(formats, expected, "{bytes:?}");
        };
        check(&[0, 0], 2, Some(Some(vec![Text, Text])));
        check(&[0, 1, 0, 1], 2, Some(Some(vec![Binary, Binary])));
        check(&[0, 2, 0, 0, 0, 1], 2, Some(Some(vec![Text, Binary])));
        check(&[0, 2, 0, 0, 0, 1], 3, Some(None));
        check(&[0, 1, 0, 2], 1, None);
        check(&[0, 2, 0, 1], 2, None);
        check(&[0, 0, 0], 2, None);
        check(&[0], 2, None);
    }
}
