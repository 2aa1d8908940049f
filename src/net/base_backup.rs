//! The client's half of `BASE_BACKUP`, for all who copy a cluster: our own, since not every package of the server's
//! programs has pg_basebackup.
//!
//! It gives what comes, one [`BackupEvent`] after another; the socket is read only when the next is asked for, so that
//! whoever writes slowly makes the server wait and holds one message. Not here: what becomes of the bytes.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::{Backend, Conversation, ConversationError, DialError, Target, dial};
use crate::pg::protocol::replication::base_backup::{
    BackupContent, BackupMessage, BaseBackupOptions, Checkpoint, Framing, Manifest, archive_name,
    backup_content, backup_position,
};
use crate::pg::{Lsn, ServerMajor, TimelineId};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The server is silent while it makes its checkpoint, at most this long when it does so at once.
const FAST_SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// `checkpoint_timeout` is a day at most.
const SPREAD_SILENCE_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, thiserror::Error)]
pub enum BaseBackupError {
    #[error("connect for a base backup")]
    Dial(#[from] DialError),
    #[error("base backup from {source_address}")]
    Conversation {
        source_address: String,
        #[source]
        source: ConversationError,
    },
    #[error("{source_address} does not tell its version")]
    NoVersion { source_address: String },
}

/// A base backup that has begun. Dropped before its end, it is over for the server, too.
#[derive(Debug)]
pub struct BaseBackup {
    /// Where the copy begins: it needs all WAL from here to the end.
    pub start: Lsn,
    pub timeline: TimelineId,
    pub content: BackupContent,
    pub major: ServerMajor,
    /// Of the server, when it was asked.
    pub from_standby: bool,
    source_address: String,
    conversation: Conversation,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Up to 14: the archive or manifest that comes next is a COPY of its own.
    Between(VecDeque<Part>),
    /// In the COPY of one of them.
    Plain(VecDeque<Part>),
    /// From 15 on: the one COPY comes next.
    BeforeTyped,
    Typed,
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Archive(String),
    Manifest,
}

/// Archives come one after another, the data directory's last (`base.tar`), and then the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    /// `base.tar`, or `OID.tar` of a tablespace.
    Archive {
        name: String,
    },
    Manifest,
    /// Of the archive or manifest that has begun last.
    Data(Bytes),
    /// So many bytes of files the server has read; not from every version.
    Progress(u64),
    /// The whole backup is there. It is consistent once WAL up to here is replayed.
    End {
        end: Lsn,
        timeline: TimelineId,
    },
}

impl BaseBackup {
    /// Connects to `source` for replication and begins. Returns when the server has made its checkpoint.
    pub async fn begin(source: &Target, options: &BaseBackupOptions) -> Result<BaseBackup, BaseBackupError> {
        let backend = dial(&source.clone().for_replication(), CONNECT_LIMIT).await?;
        BaseBackup::of(backend, source.address.to_string(), options).await
    }

    async fn of(
        backend: Backend,
        source_address: String,
        options: &BaseBackupOptions,
    ) -> Result<BaseBackup, BaseBackupError> {
        let Some(major) = ServerMajor::of(&backend.parameters) else {
            return Err(BaseBackupError::NoVersion { source_address });
        };
        let from_standby = backend.is_standby();
        let silence = match options.checkpoint {
            Checkpoint::Fast => FAST_SILENCE_LIMIT,
            Checkpoint::Spread => SPREAD_SILENCE_LIMIT,
        };
        let mut conversation = Conversation::new(backend, silence);
        let begun = begin(&mut conversation, &options.command(major)).await;
        let (start, timeline, content) = begun.map_err(|source| BaseBackupError::Conversation {
            source_address: source_address.clone(),
            source,
        })?;
        let phase = match Framing::of(major) {
            Framing::Plain => Phase::Between(parts(&content, options.manifest)),
            Framing::Typed => Phase::BeforeTyped,
        };
        Ok(BaseBackup { start, timeline, content, major, from_standby, source_address, conversation, phase })
    }

    /// Whom it is of.
    pub fn source_address(&self) -> &str {
        &self.source_address
    }

    /// What comes next; `None` behind the end.
    pub async fn next(&mut self) -> Result<Option<BackupEvent>, BaseBackupError> {
        let event = self.receive().await;
        event.map_err(|source| BaseBackupError::Conversation {
            source_address: self.source_address.clone(),
            source,
        })
    }

    async fn receive(&mut self) -> Result<Option<BackupEvent>, ConversationError> {
        loop {
            match &mut self.phase {
                Phase::Over => return Ok(None),
                Phase::Between(parts) => match parts.pop_front() {
                    None => return self.end().await.map(Some),
                    Some(part) => {
                        self.conversation.expect(b'H', "CopyOutResponse").await?;
                        self.phase = Phase::Plain(std::mem::take(parts));
                        return Ok(Some(part.into()));
                    }
                },
                Phase::Plain(parts) => match self.conversation.copy_data().await? {
                    Some(data) => return Ok(Some(BackupEvent::Data(data))),
                    None => self.phase = Phase::Between(std::mem::take(parts)),
                },
                Phase::BeforeTyped => {
                    self.conversation.expect(b'H', "CopyOutResponse").await?;
                    self.phase = Phase::Typed;
                }
                Phase::Typed => {
                    let Some(body) = self.conversation.copy_data().await? else {
                        return self.end().await.map(Some);
                    };
                    let message = BackupMessage::decode(body)
                        .map_err(|_| ConversationError::Content { what: "message of a base backup" })?;
                    return Ok(Some(message.into()));
                }
            }
        }
    }

    async fn end(&mut self) -> Result<BackupEvent, ConversationError> {
        let (end, timeline) = position(&mut self.conversation).await?;
        self.conversation.expect(b'C', "CommandComplete").await?;
        self.conversation.expect(b'Z', "ReadyForQuery").await?;
        self.phase = Phase::Over;
        Ok(BackupEvent::End { end, timeline })
    }
}

async fn begin(
    conversation: &mut Conversation,
    command: &str,
) -> Result<(Lsn, TimelineId, BackupContent), ConversationError> {
    conversation.send_query(command).await?;
    let (start, timeline) = position(conversation).await?;
    let content = backup_content(&conversation.rows().await?)
        .ok_or(ConversationError::Content { what: "list of tablespaces" })?;
    Ok((start, timeline, content))
}

async fn position(conversation: &mut Conversation) -> Result<(Lsn, TimelineId), ConversationError> {
    let rows = conversation.rows().await?;
    backup_position(&rows).ok_or(ConversationError::Content { what: "position of a base backup" })
}

/// In the order in which 14 sends them.
fn parts(content: &BackupContent, manifest: Manifest) -> VecDeque<Part> {
    let archives = content.tablespaces.iter().map(Some).chain([None]).map(archive_name).map(Part::Archive);
    archives.chain((manifest == Manifest::Wanted).then_some(Part::Manifest)).collect()
}

impl From<Part> for BackupEvent {
    fn from(part: Part) -> BackupEvent {
        match part {
            Part::Archive(name) => BackupEvent::Archive { name },
            Part::Manifest => BackupEvent::Manifest,
        }
    }
}

impl From<BackupMessage> for BackupEvent {
    fn from(message: BackupMessage) -> BackupEvent {
        match message {
            BackupMessage::Archive { name } => BackupEvent::Archive { name },
            BackupMessage::Manifest => BackupEvent::Manifest,
            BackupMessage::Data(data) => BackupEvent::Data(data),
            BackupMessage::Progress(bytes) => BackupEvent::Progress(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::{BackupEvent, BaseBackup, BaseBackupError};
    use crate::net::{Backend, ConversationError, Stream};
    use crate::pg::protocol::backend::{self, Column, TransactionStatus};
    use crate::pg::protocol::replication::base_backup::{BaseBackupOptions, Manifest};
    use crate::pg::{ErrorFields, Lsn, SqlState, TimelineId};

    fn rows(names: &[&str], rows: &[&[Option<&str>]], out: &mut BytesMut) {
        let columns: Vec<Column<'_>> = names.iter().copied().map(Column::text).collect();
        backend::row_description(&columns, out);
        for row in rows {
            backend::data_row(row, out);
        }
        backend::command_complete("SELECT", out);
    }

    fn position(lsn: &str, out: &mut BytesMut) {
        rows(&["recptr", "tli"], &[&[Some(lsn), Some("1")]], out);
    }

    fn begun(out: &mut BytesMut) {
        position("0/2000028", out);
        let tablespace = &[Some("16384"), Some("/mnt"), Some("1")][..];
        rows(&["spcoid", "spclocation", "size"], &[tablespace, &[None, None, Some("3")]], out);
    }

    fn copy(messages: &[&[u8]], out: &mut BytesMut) {
        out.extend_from_slice(b"H\0\0\0\x07\0\0\0");
        for message in messages {
            backend::copy_data(message, out);
        }
        backend::copy_done(out);
    }

    fn ended(out: &mut BytesMut) {
        position("0/2000138", out);
        backend::command_complete("BASE_BACKUP", out);
        backend::ready_for_query(TransactionStatus::Idle, out);
    }

    /// What a server of that version's answer amounts to.
    async fn heard(version: &str, answer: &[u8]) -> Result<Vec<BackupEvent>, BaseBackupError> {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.write_all(answer).await.expect("it fits the socket");
        let backend = Backend {
            stream: Stream::Unix(ours),
            received: BytesMut::new(),
            parameters: vec![("server_version".to_owned(), version.to_owned())],
            pid: 1,
            cancel_key: Vec::new(),
        };
        let options = BaseBackupOptions { manifest: Manifest::Wanted, ..BaseBackupOptions::new("test") };
        let mut backup = BaseBackup::of(backend, "there".to_owned(), &options).await?;
        assert_eq!((backup.start, backup.timeline), (Lsn(0x200_0028), TimelineId(1)));
        assert_eq!(backup.content.total_bytes, 4096);
        let mut events = Vec::new();
        while let Some(event) = backup.next().await? {
            events.push(event);
        }
        Ok(events)
    }

    #[tokio::test]
    async fn both_framings_say_the_same() {
        let archive = |name: &str| BackupEvent::Archive { name: name.to_owned() };
        let data = |data: &'static [u8]| BackupEvent::Data(Bytes::from_static(data));
        let expected = vec![
            archive("16384.tar"),
            data(b"one"),
            archive("base.tar"),
            data(b"two"),
            data(b"three"),
            BackupEvent::Manifest,
            data(b"{}"),
            BackupEvent::End { end: Lsn(0x200_0138), timeline: TimelineId(1) },
        ];

        let mut plain = BytesMut::new();
        begun(&mut plain);
        copy(&[b"one"], &mut plain);
        copy(&[b"two", b"three"], &mut plain);
        copy(&[b"{}"], &mut plain);
        ended(&mut plain);
        assert_eq!(heard("14.23", &plain).await.expect("well-formed"), expected);

        let mut typed = BytesMut::new();
        begun(&mut typed);
        let messages: [&[u8]; 7] =
            [b"n16384.tar\0/mnt\0", b"done", b"nbase.tar\0\0", b"dtwo", b"dthree", b"m", b"d{}"];
        copy(&messages, &mut typed);
        ended(&mut typed);
        assert_eq!(heard("18.4", &typed).await.expect("well-formed"), expected);
    }

    #[tokio::test]
    async fn the_servers_error_is_told_wherever_it_comes() {
        let mut amid = BytesMut::new();
        begun(&mut amid);
        amid.extend_from_slice(b"H\0\0\0\x07\0\0\0");
        let disk_full = ErrorFields::error(SqlState::DISK_FULL, "no room");
        disk_full.encode(&mut amid);
        let mut at_once = BytesMut::new();
        disk_full.encode(&mut at_once);
        for answer in [amid, at_once] {
            let error = heard("15.1", &answer).await.expect_err("no backup");
            assert!(
                matches!(&error, BaseBackupError::Conversation { source: ConversationError::Server(fields), .. }
                    if fields.code == SqlState::DISK_FULL),
                "{error:?}"
            );
        }
    }
}
