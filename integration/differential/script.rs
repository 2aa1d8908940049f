//! A conversation's client side: batches of lines. What stands in one batch is sent without waiting; what it
//! calls for is heard before the next.
//!
//! In a file, `== name` begins a script, an empty line ends a batch, `#` begins a comment. Two lines are not the
//! client's own: `other SQL` is run by another client of the same database, and `hear A` waits for a message that
//! comes by itself.

use std::fmt;
use std::fs;
use std::path::Path;

use super::message::{Encoded, encode};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) batches: Vec<Vec<Line>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Send {
        text: String,
        message: Encoded,
    },
    Other(String),
    /// The tag of the message to wait for.
    Hear(u8),
}

impl Line {
    pub(super) fn read(text: &str) -> Result<Line, String> {
        if let Some(sql) = text.strip_prefix("other ") {
            return Ok(Line::Other(sql.to_owned()));
        }
        match text.strip_prefix("hear ").map(str::as_bytes) {
            Some(&[tag]) => Ok(Line::Hear(tag)),
            Some(_) => Err("hear takes one letter".to_owned()),
            None => Ok(Line::Send { text: text.to_owned(), message: encode(text)? }),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Send { text, .. } => f.write_str(text),
            Line::Other(sql) => write!(f, "other {sql}"),
            Line::Hear(tag) => write!(f, "hear {}", char::from(*tag)),
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== {}", self.name)?;
        for batch in &self.batches {
            batch.iter().try_for_each(|line| writeln!(f, "{line}"))?;
            if !batch.is_empty() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// A whole batch, or a line of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Batch(usize),
    Line(usize, usize),
}

impl Script {
    /// Where something could be left out: to be taken from behind, batches first.
    pub(super) fn places(&self) -> Vec<Place> {
        let lines =
            |(batch, lines): (usize, &Vec<Line>)| (0..lines.len()).map(move |line| Place::Line(batch, line));
        let batches = (0..self.batches.len()).map(Place::Batch);
        self.batches.iter().enumerate().flat_map(lines).chain(batches).collect()
    }

    /// `None` when it is not there, or all there is. An emptied batch stays, so that places keep their numbers.
    pub(super) fn without(&self, place: Place) -> Option<Script> {
        let mut less = self.clone();
        match place {
            Place::Batch(batch) => less.batches.get_mut(batch).filter(|lines| !lines.is_empty())?.clear(),
            Place::Line(batch, line) => {
                let lines = less.batches.get_mut(batch).filter(|lines| line < lines.len())?;
                lines.remove(line);
            }
        }
        less.batches.iter().any(|lines| !lines.is_empty()).then_some(less)
    }

    /// The first batch as often as it has bytes, so that each may be cut elsewhere.
    pub(super) fn once_for_each_byte(&self) -> Script {
        let batch = self.batches.first().cloned().unwrap_or_default();
        let length = |line: &Line| match line {
            Line::Send { message, .. } => message.0.len(),
            Line::Other(_) | Line::Hear(_) => 0,
        };
        let bytes = batch.iter().map(length).sum();
        Script { name: self.name.clone(), batches: vec![batch; bytes] }
    }
}

/// The scripts of one file.
pub(super) fn read(text: &str) -> Result<Vec<Script>, String> {
    let mut scripts: Vec<Script> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let at = |what: String| format!("line {}: {what}", number + 1);
        if let Some(name) = line.strip_prefix("== ") {
            scripts.push(Script { name: name.to_owned(), batches: vec![Vec::new()] });
        } else if !line.starts_with('#') {
            let script = scripts.last_mut();
            match line.trim_end() {
                "" => script.into_iter().for_each(|script| script.batches.push(Vec::new())),
                line => {
                    let script = script.ok_or_else(|| at("no == before it".to_owned()))?;
                    let line = Line::read(line).map_err(at)?;
                    script.batches.last_mut().expect("a script begins with a batch").push(line);
                }
            }
        }
    }
    scripts.iter_mut().for_each(|script| script.batches.retain(|batch| !batch.is_empty()));
    Ok(scripts)
}

/// All scripts that were written by hand, by file and place in it.
pub(super) fn written_by_hand() -> Vec<Script> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/differential/scripts");
    let mut files: Vec<_> =
        fs::read_dir(&dir).expect("scripts").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let of_file = |file: &std::path::PathBuf| {
        let text = fs::read_to_string(file).expect("a script");
        read(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    files.iter().flat_map(of_file).collect()
}

#[test]
fn what_is_printed_can_be_read() {
    let text = "== one\nparse - SELECT 1\nsync\n\nother NOTIFY n\nhear A\n\n== two\nquery SELECT 2\n\n";
    let scripts = read(text).expect("scripts");
    assert_eq!(scripts.iter().map(Script::to_string).collect::<String>(), text);
    let names: Vec<String> = written_by_hand().into_iter().map(|script| script.name).collect();
    let mut distinct = names.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), names.len(), "every script has a name of its own");
    assert!(read("sync").is_err() && read("== x\nhear all").is_err());
}
