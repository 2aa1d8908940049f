//! A base backup through the replication protocol (BASE_BACKUP, protocol-replication): our own client, since
//! not every package of the server's programs has pg_basebackup.
//!
//! Two grammars and two framings. Up to PostgreSQL 14 the options are bare keywords and every archive is a
//! COPY of its own; from 15 on the options are parenthesised and one COPY carries archives and manifest as
//! typed messages (basebackup_copy.c). The WAL that makes the copy consistent comes inside the archive, so the
//! copy needs nothing else to start. Clusters with tablespaces are refused.

use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::conversation::{Conversation, ConversationError};
use super::unpack::{ArchiveReader, Chunk, UnpackError, unpack};
use crate::net::{self, DialError, Target};
use crate::pg::{Lsn, TimelineId};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The server is silent while it makes its checkpoint, at most this long.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// Chunks between socket and disk. When full, the socket is not read: the server waits for our disk.
const QUEUED_CHUNKS: usize = 16;
/// As the label of pg_basebackup, it is in `backup_label` and in the server's log.
const LABEL: &str = "bellwether";

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
    #[error(
        "{source_address} has tablespaces ({locations:?}), which a base backup by Bellwether does not carry"
    )]
    Tablespaces { source_address: String, locations: Vec<String> },
    #[error("unpack the base backup")]
    Unpack(#[from] UnpackError),
    #[error("the thread that unpacks the base backup is gone")]
    Unpacker,
}

/// Where the copy begins to be consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseBackup {
    pub start: Lsn,
    pub timeline: TimelineId,
    pub end: Lsn,
}

/// Copies the cluster at `source` to `into`, an existing empty directory. Not yet durable when it returns.
pub(super) async fn receive(source: &Target, into: &Path) -> Result<BaseBackup, BaseBackupError> {
    let source_address = source.address.to_string();
    let mut target = source.clone();
    target.parameters.retain(|(key, _)| key != "replication");
    target.parameters.push(("replication".to_owned(), "true".to_owned()));
    let backend = net::dial(&target, CONNECT_LIMIT).await?;
    let version = backend.parameters.iter().find(|(name, _)| name == "server_version");
    let Some(major) = version.and_then(|(_, version)| major_of(version)) else {
        return Err(BaseBackupError::NoVersion { source_address });
    };
    let mut conversation = Conversation::new(backend, SILENCE_LIMIT);
    let failed = |source| BaseBackupError::Conversation { source_address: source_address.clone(), source };

    conversation.send_query(&command(major)).await.map_err(failed)?;
    let (start, timeline) = position(&conversation.rows().await.map_err(failed)?).map_err(failed)?;
    let tablespaces = conversation.rows().await.map_err(failed)?;
    let locations: Vec<String> = tablespaces.into_iter().filter_map(|row| row.into_iter().nth(1)?).collect();
    if !locations.is_empty() {
        return Err(BaseBackupError::Tablespaces { source_address, locations });
    }
    let framing = if major >= 15 { Framing::Typed } else { Framing::Plain };
    receive_archive(&mut conversation, framing, into, &failed).await?;
    let (end, _) = position(&conversation.rows().await.map_err(failed)?).map_err(failed)?;
    conversation.expect(b'C', "CommandComplete").await.map_err(failed)?;
    conversation.expect(b'Z', "ReadyForQuery").await.map_err(failed)?;
    Ok(BaseBackup { start, timeline, end })
}

/// How the archive is wrapped in CopyData.
#[derive(Clone, Copy, Debug)]
enum Framing {
    /// The archive's bytes.
    Plain,
    /// A type byte, then what it says.
    Typed,
}

/// `fast`: the checkpoint at once. No wait for the WAL archive: what is needed comes inside. No manifest: nobody
/// would compare it.
fn command(major: u32) -> String {
    if major >= 15 {
        format!(
            "BASE_BACKUP (LABEL '{LABEL}', CHECKPOINT 'fast', WAL true, WAIT false, MANIFEST 'no', TARGET 'client')"
        )
    } else {
        format!("BASE_BACKUP LABEL '{LABEL}' FAST WAL NOWAIT MANIFEST 'no'")
    }
}

fn major_of(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..end].parse().ok()
}

/// The one row of the first and of the last result set: an LSN and a timeline.
fn position(rows: &[Vec<Option<String>>]) -> Result<(Lsn, TimelineId), ConversationError> {
    let parsed = || {
        let [row] = rows else { return None };
        let [Some(lsn), Some(timeline)] = row.as_slice() else { return None };
        Some((lsn.parse().ok()?, TimelineId(timeline.parse().ok()?)))
    };
    parsed().ok_or(ConversationError::Content { what: "position of a base backup" })
}

async fn receive_archive(
    conversation: &mut Conversation,
    framing: Framing,
    into: &Path,
    failed: &impl Fn(ConversationError) -> BaseBackupError,
) -> Result<(), BaseBackupError> {
    conversation.expect(b'H', "CopyOutResponse").await.map_err(failed)?;
    let (chunks, received) = mpsc::channel(QUEUED_CHUNKS);
    let into = into.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || unpack(ArchiveReader::new(received), &into));
    match copy(conversation, framing, chunks).await {
        Ok(()) => done(unpacking).await,
        Err(CopyEnd::Refused) => match done(unpacking).await {
            Ok(()) => Err(failed(ConversationError::Content { what: "archive" })),
            refused => refused,
        },
        Err(CopyEnd::Failed(error)) => {
            // The directory is going to be removed: nobody may write to it any more.
            let _ = unpacking.await;
            Err(failed(error))
        }
    }
}

/// Why the archive did not come to its end.
enum CopyEnd {
    /// The unpacking thread wants no more: it has an error.
    Refused,
    Failed(ConversationError),
}

async fn copy(
    conversation: &mut Conversation,
    framing: Framing,
    chunks: mpsc::Sender<Chunk>,
) -> Result<(), CopyEnd> {
    loop {
        let message = conversation.next().await.map_err(CopyEnd::Failed)?;
        let data = match message.tag {
            b'd' => archive_bytes(framing, message.body).map_err(CopyEnd::Failed)?,
            b'c' => break,
            tag => return Err(CopyEnd::Failed(ConversationError::Unexpected { tag, expected: "CopyData" })),
        };
        if let Some(data) = data {
            chunks.send(Chunk::Data(data)).await.map_err(|_| CopyEnd::Refused)?;
        }
    }
    // A reader that has seen the archive's own end mark no longer listens.
    let _ = chunks.send(Chunk::End).await;
    Ok(())
}

/// `None`: a message about the archive. There is one only, since there are no tablespaces.
fn archive_bytes(framing: Framing, mut body: Bytes) -> Result<Option<Bytes>, ConversationError> {
    match framing {
        Framing::Plain => Ok(Some(body)),
        Framing::Typed => match body.try_get_u8() {
            Ok(b'd') => Ok(Some(body)),
            Ok(b'n' | b'p') => Ok(None),
            Ok(_) | Err(_) => Err(ConversationError::Content { what: "archive message" }),
        },
    }
}

async fn done(unpacking: JoinHandle<Result<(), UnpackError>>) -> Result<(), BaseBackupError> {
    match unpacking.await {
        Ok(unpacked) => Ok(unpacked?),
        Err(_panicked) => Err(BaseBackupError::Unpacker),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Framing, archive_bytes, command, major_of, position};
    use crate::pg::{Lsn, TimelineId};

    #[test]
    fn each_version_has_its_grammar() {
        assert_eq!(command(14), "BASE_BACKUP LABEL 'bellwether' FAST WAL NOWAIT MANIFEST 'no'");
        let modern = "BASE_BACKUP (LABEL 'bellwether', CHECKPOINT 'fast', WAL true, WAIT false, \
                      MANIFEST 'no', TARGET 'client')";
        assert_eq!(command(15), modern);
        assert_eq!(command(18), modern);
        assert_eq!(major_of("14.19 (Debian)"), Some(14));
        assert_eq!(major_of("18beta1"), Some(18));
        assert_eq!(major_of("devel"), None);
    }

    #[test]
    fn positions() {
        let row = |lsn: &str, timeline: &str| vec![Some(lsn.to_owned()), Some(timeline.to_owned())];
        assert_eq!(position(&[row("0/2000028", "3")]).ok(), Some((Lsn(0x200_0028), TimelineId(3))));
        assert!(position(&[]).is_err());
        assert!(position(&[row("0/2000028", "x")]).is_err());
        assert!(position(&[vec![None, None]]).is_err());
    }

    #[test]
    fn typed_messages() {
        let typed = |body: &'static [u8]| archive_bytes(Framing::Typed, Bytes::from_static(body)).ok();
        assert_eq!(typed(b"dabc"), Some(Some(Bytes::from_static(b"abc"))));
        assert_eq!(typed(b"nbase.tar\0\0"), Some(None));
        assert_eq!(typed(b"p\0\0\0\0\0\0\0\x01"), Some(None));
        assert_eq!(typed(b""), None);
        assert_eq!(typed(b"x"), None);
    }
}
