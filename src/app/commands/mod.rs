//! What the command line's larger commands do, one file for each.

use std::path::{Path, PathBuf};

pub(super) mod backup;
pub(super) mod follower;
mod inspect;
mod passfile;
mod progress;
pub(super) mod restart;
pub(super) mod switchover;
pub(super) mod wal;

/// Absolute, and without a slash at its end: what lies beside it has its name with a suffix.
fn directory(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components().collect()
}

/// One word for a shell.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{directory, shell_word};

    #[test]
    fn a_directory_ends_in_its_name() {
        // Two paths that differ only in a slash at the end are equal.
        assert_eq!(directory(Path::new("/srv/pg1/")).as_os_str(), "/srv/pg1");
        assert!(directory(Path::new("pg1/")).is_absolute());
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(shell_word("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(shell_word(r#"$x "y""#), r#"'$x "y"'"#);
    }
}
