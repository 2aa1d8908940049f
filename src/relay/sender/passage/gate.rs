//! What a client may ask a server whose connection it has been given: base backups. PURE.
//!
//! That connection is `server_login`'s, who may do far more than the client: drop slots, write the backup to a
//! directory of the server's own, or stream WAL that is not durable here. So each Query is looked at. One that does not
//! pass reaches the server as SQL, which a physical walsender refuses with 0A000 (`exec_replication_command` in
//! walsender.c): then the answer comes in its turn, whatever else is on its way. Nothing else that a client can send is a
//! command: other messages are data, or the server refuses them itself.

use bytes::BytesMut;

use crate::pg::protocol::frame::{HEADER_LEN, Header, InvalidLength};
use crate::pg::protocol::frontend;
use crate::pg::protocol::replication::Command;

/// A longer Query does not pass.
const MAX_QUERY: usize = 64 * 1024;
/// SQL, on a connection that runs none.
const REFUSED: &str = "SELECT";
/// What pg_basebackup asks of the server from which it has a backup.
const SETTINGS: [&str; 2] = ["wal_segment_size", "data_directory_mode"];

/// Where in the client's messages it is.
#[derive(Debug, Default)]
pub(super) struct Gate {
    within: Option<Within>,
}

/// Inside a message that is not looked at, with so many bytes to come.
#[derive(Clone, Copy, Debug)]
enum Within {
    Passing(usize),
    Dropping(usize),
}

impl Gate {
    /// Moves what may pass from `received` to `out`; leaves a header or a Query that is not complete.
    pub(super) fn pass(&mut self, received: &mut BytesMut, out: &mut BytesMut) -> Result<(), InvalidLength> {
        loop {
            self.go_on(received, out);
            if self.within.is_some() {
                return Ok(());
            }
            let Some(header) = Header::peek(received)? else { return Ok(()) };
            if header.tag != b'Q' {
                self.within = Some(Within::Passing(header.total));
            } else if header.total > MAX_QUERY {
                frontend::query(REFUSED, out);
                self.within = Some(Within::Dropping(header.total));
            } else if received.len() < header.total {
                return Ok(());
            } else {
                let message = received.split_to(header.total);
                if is_of_base_backup(&message[HEADER_LEN..]) {
                    out.extend_from_slice(&message);
                } else {
                    frontend::query(REFUSED, out);
                }
            }
        }
    }

    fn go_on(&mut self, received: &mut BytesMut, out: &mut BytesMut) {
        let Some(within) = self.within else { return };
        let (Within::Passing(left) | Within::Dropping(left)) = within;
        let taken = received.split_to(left.min(received.len()));
        let left = left - taken.len();
        let rest = match within {
            Within::Passing(_) => {
                out.extend_from_slice(&taken);
                Within::Passing(left)
            }
            Within::Dropping(_) => Within::Dropping(left),
        };
        self.within = (left > 0).then_some(rest);
    }
}

fn is_of_base_backup(payload: &[u8]) -> bool {
    let text = payload.strip_suffix(b"\0").unwrap_or(payload);
    match Command::parse(&String::from_utf8_lossy(text)) {
        Ok(Command::OfBaseBackup) => true,
        Ok(Command::Show { name }) => SETTINGS.contains(&name.as_str()),
        Ok(_) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{Gate, MAX_QUERY};
    use crate::pg::protocol::frontend;

    fn query(text: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        frontend::query(text, &mut out);
        out.to_vec()
    }

    /// What comes out of the gate when the client's bytes come in chunks.
    fn passed(bytes: &[u8], chunk: usize) -> Vec<u8> {
        let (mut gate, mut received, mut out) = (Gate::default(), BytesMut::new(), BytesMut::new());
        for chunk in bytes.chunks(chunk) {
            received.extend_from_slice(chunk);
            gate.pass(&mut received, &mut out).expect("possible lengths");
        }
        out.to_vec()
    }

    #[test]
    fn nothing_but_base_backups_is_asked_in_another_name() {
        let refused = query("SELECT");
        for text in ["BASE_BACKUP ( LABEL 'x', TARGET 'client')", "UPLOAD_MANIFEST", "SHOW wal_segment_size"]
        {
            assert_eq!(passed(&query(text), 7), query(text), "{text}");
        }
        let long = format!("BASE_BACKUP ( LABEL '{}')", "x".repeat(MAX_QUERY));
        for text in [
            "DROP_REPLICATION_SLOT \"bellwether_bw1\"",
            "CREATE_REPLICATION_SLOT \"mine\" PHYSICAL RESERVE_WAL",
            "START_REPLICATION 0/3000000 TIMELINE 1",
            "BASE_BACKUP ( LABEL 'x', TARGET 'server', TARGET_DETAIL '/tmp/x')",
            "base_backup (\"target\" 'blackhole')",
            "SHOW primary_conninfo",
            "DROP TABLE t",
            "",
            &long,
        ] {
            for chunk in [1, 1000, usize::MAX] {
                assert_eq!(passed(&query(text), chunk), refused, "{text:.80} in chunks of {chunk}");
            }
        }
    }

    #[test]
    fn the_gate_does_not_lose_its_place() {
        let manifest = [&b"d"[..], &1004_u32.to_be_bytes(), &b"Q\0\0\0\x04".repeat(200)].concat();
        let done = b"c\0\0\0\x04";
        let drop = query("DROP_REPLICATION_SLOT a");
        let said = [&query("UPLOAD_MANIFEST")[..], &manifest, done, &drop, &query("BASE_BACKUP")].concat();
        let heard = [&query("UPLOAD_MANIFEST")[..], &manifest, done, &query("SELECT"), &query("BASE_BACKUP")];
        for chunk in [1, 3, 64, usize::MAX] {
            assert_eq!(passed(&said, chunk), heard.concat(), "chunks of {chunk}");
        }
        let mut malformed = BytesMut::from(&b"Q\0\0\0\x01"[..]);
        assert!(Gate::default().pass(&mut malformed, &mut BytesMut::new()).is_err());
    }
}
