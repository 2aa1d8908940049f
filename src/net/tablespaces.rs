//! Where the tablespaces of a copy go: to the directories that they have at their source, or to others, which
//! `--tablespace-mapping OLD=NEW` names as pg_basebackup's does.
//!
//! Here it is decided which directory is whose, and the links in `pg_tblspc` are made. Whether a directory may be
//! taken, and to whom it belongs, is for those who copy to say.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::make_private_directory;
use crate::pg::protocol::replication::base_backup::Tablespace;

/// Of the data directory, where PostgreSQL has a link to each tablespace, named by its OID.
pub(super) const LINKS: &str = "pg_tblspc";

/// A tablespace that is at `old` comes to `new`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceMapping {
    old: PathBuf,
    new: PathBuf,
}

/// The directory of a copy's tablespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTablespace {
    pub oid: u32,
    /// At the source, as it is told.
    pub location: String,
    pub directory: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacingError {
    #[error("tablespace {oid} is at {location:?}, which is no path")]
    NoPath { oid: u32, location: String },
    #[error("tablespace {oid} would be inside the data directory, in {}", directory.display())]
    Inside { oid: u32, directory: PathBuf },
    #[error("tablespaces {} and {} would share {}", oids.0, oids.1, directory.display())]
    Shared { oids: (u32, u32), directory: PathBuf },
}

/// `OLD=NEW`, where `\=` is an equals sign of a path (`tablespace_list_append`, pg_basebackup.c).
impl FromStr for TablespaceMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<TablespaceMapping, String> {
        let mut sides = vec![String::new()];
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            let escaped = if c == '\\' { rest.next_if_eq(&'=') } else { None };
            match (escaped, sides.last_mut()) {
                (None, _) if c == '=' => sides.push(String::new()),
                (_, side) => side.into_iter().for_each(|side| side.push(escaped.unwrap_or(c))),
            }
        }
        let [old, new] = sides.as_slice() else {
            return Err("OLD=NEW is expected, with \\= for an equals sign in a path".to_owned());
        };
        let absolute = |side: &str| match plain(Path::new(side)) {
            path if path.is_absolute() => Ok(path),
            _ => Err(format!("{side:?} is not an absolute path")),
        };
        Ok(TablespaceMapping { old: absolute(old)?, new: absolute(new)? })
    }
}

impl fmt::Display for PlacedTablespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tablespace {} of {} is in {}", self.oid, self.location, self.directory.display())
    }
}

/// The directories of `tablespaces` for a copy in `data_dir`, by the first mapping that names each. Those that are in
/// the data directory itself (`allow_in_place_tablespaces`) stay there.
pub fn place(
    tablespaces: &[Tablespace],
    mappings: &[TablespaceMapping],
    data_dir: &Path,
) -> Result<Vec<PlacedTablespace>, PlacingError> {
    let mut placed: Vec<PlacedTablespace> = Vec::new();
    for Tablespace { oid, location } in tablespaces {
        let (oid, old) = (*oid, plain(Path::new(location)));
        if old == Path::new(LINKS).join(oid.to_string()) {
            placed.push(PlacedTablespace { oid, location: location.clone(), directory: data_dir.join(old) });
            continue;
        }
        if !old.is_absolute() {
            return Err(PlacingError::NoPath { oid, location: location.clone() });
        }
        let mapping = mappings.iter().find(|mapping| mapping.old == old);
        let directory = mapping.map_or(old, |mapping| mapping.new.clone());
        if directory.starts_with(data_dir) {
            return Err(PlacingError::Inside { oid, directory });
        }
        if let Some(other) = placed.iter().find(|other| other.directory == directory) {
            return Err(PlacingError::Shared { oids: (other.oid, oid), directory });
        }
        placed.push(PlacedTablespace { oid, location: location.clone(), directory });
    }
    Ok(placed)
}

impl PlacedTablespace {
    /// Makes its directory, and the link to it in a data directory that has none of it yet.
    pub fn make(&self, data_dir: &Path) -> io::Result<()> {
        make_private_directory(&self.directory)?;
        let links = data_dir.join(LINKS);
        make_private_directory(&links)?;
        let link = links.join(self.oid.to_string());
        if link == self.directory { Ok(()) } else { symlink(&self.directory, link) }
    }
}

/// Whether a copy can be made in `directory`: it is missing, or there is nothing in it.
pub fn is_vacant(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Without doubled and trailing slashes, as `canonicalize_path` has it.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{PlacedTablespace, PlacingError, TablespaceMapping, is_vacant, place};
    use crate::pg::protocol::replication::base_backup::Tablespace;

    #[test]
    fn mappings_are_pg_basebackups() {
        let check = |text: &str, expected: Result<(&str, &str), &str>| {
            let parsed = text.parse::<TablespaceMapping>();
            let sides = parsed.as_ref().map(|mapping| (mapping.old.as_path(), mapping.new.as_path()));
            match expected {
                Ok((old, new)) => assert_eq!(sides, Ok((Path::new(old), Path::new(new))), "{text}"),
                Err(why) => {
                    assert!(parsed.as_ref().is_err_and(|said| said.contains(why)), "{text}: {parsed:?}");
                }
            }
        };
        check("/a=/b", Ok(("/a", "/b")));
        check("//a/b/=/c//d/.", Ok(("/a/b", "/c/d")));
        check(r"/a\=b=/c", Ok(("/a=b", "/c")));
        check(r"/a\b=/c", Ok((r"/a\b", "/c")));
        for wrong in ["/a", "/a=/b=/c", r"/a\=/b"] {
            check(wrong, Err("OLD=NEW is expected"));
        }
        for wrong in ["a=/b", "/a=b", "=/b", "/a=", ""] {
            check(wrong, Err(if wrong.is_empty() { "OLD=NEW" } else { "not an absolute path" }));
        }
    }

    fn placed(locations: &[&str], mappings: &[&str]) -> Result<Vec<PathBuf>, PlacingError> {
        let oids = 16384..;
        let tablespaces: Vec<Tablespace> = oids
            .zip(locations)
            .map(|(oid, location)| Tablespace { oid, location: (*location).to_owned() })
            .collect();
        let mappings: Vec<TablespaceMapping> =
            mappings.iter().map(|text| text.parse().expect("a mapping")).collect();
        let placed = place(&tablespaces, &mappings, Path::new("/data/pg"))?;
        Ok(placed.into_iter().map(|placed| placed.directory).collect())
    }

    #[test]
    fn each_has_a_directory_of_its_own() {
        let paths = |paths: &[&str]| Ok(paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(placed(&[], &["/a=/b"]), paths(&[]));
        assert_eq!(placed(&["/fast", "/slow"], &[]), paths(&["/fast", "/slow"]));
        assert_eq!(placed(&["/fast", "/slow"], &["/slow/=/new", "/x=/y"]), paths(&["/fast", "/new"]));
        assert_eq!(placed(&["pg_tblspc/16384"], &[]), paths(&["/data/pg/pg_tblspc/16384"]), "in place");
        let refused =
            |locations: &[&str], mappings: &[&str]| placed(locations, mappings).expect_err("refused");
        assert!(matches!(refused(&["pg_tblspc/1"], &[]), PlacingError::NoPath { .. }));
        assert!(matches!(refused(&["/fast"], &["/fast=/data/pg/fast"]), PlacingError::Inside { .. }));
        assert!(matches!(
            refused(&["/fast", "/slow"], &["/slow=/fast"]),
            PlacingError::Shared { oids: (16384, 16385), .. }
        ));
    }

    #[test]
    fn links_lead_to_the_directories() {
        let place = tempfile::tempdir().expect("a directory");
        let (data, fast) = (place.path().join("data"), place.path().join("fast"));
        assert!(is_vacant(&data).expect("readable"));
        let tablespace = |oid, directory: &Path| PlacedTablespace {
            oid,
            location: String::new(),
            directory: directory.to_owned(),
        };
        tablespace(16384, &fast).make(&data).expect("made");
        assert_eq!(std::fs::read_link(data.join("pg_tblspc/16384")).expect("a link"), fast);
        let in_place = data.join("pg_tblspc/16385");
        tablespace(16385, &in_place).make(&data).expect("made");
        assert!(in_place.is_dir() && !in_place.is_symlink());
        assert!(!is_vacant(&data).expect("readable") && is_vacant(&fast).expect("readable"));
        tablespace(16384, &fast).make(&data).expect_err("there is a link already");
    }
}
