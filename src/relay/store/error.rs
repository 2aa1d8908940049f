//! What can go wrong with the files.

/// Why WAL could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Retention has removed it, or it was never received.
    #[error("WAL segment {segment} is not kept here any more")]
    Removed { segment: String },
    #[error("{operation} {file}")]
    Io {
        operation: &'static str,
        file: String,
        #[source]
        source: std::io::Error,
    },
}
