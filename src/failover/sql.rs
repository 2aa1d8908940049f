//! Text queries on our own connections to the nodes.

use tokio_postgres::{Error, SimpleQueryMessage, SimpleQueryRow};

use super::error::ActionError;
use crate::net::sql::SqlConnection;
use crate::pg::SlotName;
use crate::topology::NodeName;

/// The rows of a text query, of all its statements.
pub(super) async fn rows(sql: &SqlConnection, query: &str) -> Result<Vec<SimpleQueryRow>, Error> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    Ok(sql.simple_query(query).await?.into_iter().filter_map(row).collect())
}

/// As SQL literals, separated by commas.
pub(super) fn sql_names(slots: &[SlotName]) -> String {
    let quoted: Vec<String> = slots.iter().map(|slot| format!("'{slot}'")).collect();
    quoted.join(", ")
}

/// The one row that a query must give.
pub(super) async fn row(
    sql: &SqlConnection,
    node: &NodeName,
    query: &str,
) -> Result<SimpleQueryRow, ActionError> {
    let row = rows(sql, query).await?.into_iter().next_back();
    row.ok_or_else(|| ActionError::Answer { node: node.clone(), what: "no row".to_owned() })
}
