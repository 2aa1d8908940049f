//! Rows of text with named, typed columns, and how they go to a client. PURE.

use bytes::BytesMut;

use crate::pg::protocol::backend::{self, Column};

/// Values are sent in text format whatever their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Int4,
    Int8,
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

    pub(super) fn describe(&self, out: &mut BytesMut) {
        let columns: Vec<Column<'_>> = self.columns.iter().map(|(name, of)| of.column(name)).collect();
        backend::row_description(&columns, out);
    }

    pub(super) fn put_rows(&self, out: &mut BytesMut) {
        for row in &self.rows {
            let row: Vec<Option<&str>> = row.iter().map(Option::as_deref).collect();
            backend::data_row(&row, out);
        }
    }
}

impl Type {
    /// OIDs and lengths as in `pg_type.dat`.
    fn column(self, name: &str) -> Column<'_> {
        let of = |type_oid, type_len| Column { name, type_oid, type_len, type_modifier: -1 };
        match self {
            Type::Text => Column::text(name),
            Type::Int4 => Column::int4(name),
            Type::Int8 => Column::int8(name),
            Type::Numeric => of(1700, -1),
            Type::Float8 => of(701, 8),
        }
    }
}
