//! The control file: what the store knows beside the WAL itself. PURE: text in, text out.
//!
//! One line of JSON and one with its CRC-32C; small enough to look at, replaced as a whole by a durable rename.

use serde::{Deserialize, Serialize};

use super::discarded::Discarded;
use super::rewind::Rewind;
use super::standing::Standing;
use crate::pg::wal::WalSegmentSize;
use crate::pg::{SystemIdentifier, TimelineId};
use crate::topology::Term;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Control {
    format: u32,
    /// `None` until the first upstream was seen.
    pub(crate) system: Option<SystemIdentifier>,
    segment_size: u64,
    /// The timeline being received; its history file and fork segment were durable before it was written here.
    pub(crate) timeline: TimelineId,
    /// Never falls.
    pub(crate) promised: Term,
    /// In which term the log counts. Files of one instance alone do not have it.
    #[serde(default)]
    pub(crate) standing: Standing,
    /// Begun, and to be finished at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rewind: Option<Rewind>,
    /// By that rewind, and not kept aside yet: nothing is removed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unsaved: Option<Discarded>,
    /// The last upstream's ParameterStatus set, so that followers are greeted while no upstream is there.
    pub(super) parameters: Vec<(String, String)>,
}

const FORMAT: u32 = 1;

impl Default for Control {
    fn default() -> Control {
        Control {
            format: FORMAT,
            system: None,
            segment_size: WalSegmentSize::default().bytes(),
            timeline: TimelineId(0),
            promised: Term(0),
            standing: Standing::default(),
            rewind: None,
            unsaved: None,
            parameters: Vec::new(),
        }
    }
}

impl Control {
    pub(crate) const FILE_NAME: &str = "control.json";

    pub(crate) fn segment_size(&self) -> WalSegmentSize {
        WalSegmentSize::new(self.segment_size).expect("checked when it was set or read")
    }

    pub(super) fn set_segment_size(&mut self, size: WalSegmentSize) {
        self.segment_size = size.bytes();
    }

    /// There is none any more: it begins where the next upstream says. What was promised stays; an
    /// empty log is of no term.
    pub(crate) fn forget_log(&mut self) {
        self.timeline = TimelineId(0);
        self.standing = Standing::default();
        (self.rewind, self.unsaved) = (None, None);
    }

    /// The log is on the timeline to which it has gone back.
    pub(super) fn rewound(&mut self, rewind: Rewind) {
        self.timeline = rewind.timeline;
        self.rewind = None;
    }

    pub(crate) fn encode(&self) -> String {
        let json = serde_json::to_string(self).expect("a struct of plain values is JSON");
        format!("{json}\ncrc32c {:08x}\n", crc32c::crc32c(json.as_bytes()))
    }

    pub(crate) fn decode_bytes(content: &[u8]) -> Result<Control, String> {
        Control::decode(std::str::from_utf8(content).map_err(|e| e.to_string())?)
    }

    pub(super) fn decode(text: &str) -> Result<Control, String> {
        let (json, rest) = text.split_once('\n').ok_or("it ends before its checksum")?;
        let found = format!("crc32c {:08x}\n", crc32c::crc32c(json.as_bytes()));
        if rest != found {
            return Err("its checksum is wrong".to_owned());
        }
        let control: Control = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if control.format != FORMAT {
            return Err(format!("format {} was written by another version", control.format));
        }
        WalSegmentSize::new(control.segment_size).map_err(|e| e.to_string())?;
        Ok(control)
    }
}

#[cfg(test)]
mod tests {
    use super::{Control, Standing};
    use crate::pg::{Lsn, SystemIdentifier, TimelineId};
    use crate::topology::{Floor, Term};

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let control = Control {
            system: Some(SystemIdentifier(u64::MAX)),
            timeline: TimelineId(3),
            promised: Term(7),
            standing: standing(7),
            parameters: vec![("server_version".into(), "15.20".into())],
            ..Control::default()
        };
        let text = control.encode();
        assert_eq!(Control::decode(&text), Ok(control));
        for cut in 0..text.len() {
            assert!(Control::decode(&text[..cut]).is_err(), "torn after {cut} bytes");
        }
        assert!(Control::decode(&text.replace("15.20", "15.21")).is_err());
    }

    fn standing(term: u64) -> Standing {
        let floor = Floor { timeline: TimelineId(3), end: Lsn(100), source: None, log_term: Term(0) };
        Standing::default().with(Term(term), &floor, (TimelineId(3), Lsn(100)))
    }

    #[test]
    fn a_file_of_before_several_instances_is_read() {
        let json =
            r#"{"format":1,"system":null,"segment_size":16777216,"timeline":2,"promised":5,"parameters":[]}"#;
        let text = format!("{json}\ncrc32c {:08x}\n", crc32c::crc32c(json.as_bytes()));
        let control = Control::decode(&text).expect("it is whole");
        assert_eq!((control.promised, control.standing), (Term(5), Standing::default()));
    }

    #[test]
    fn a_log_that_begins_anew_is_of_no_term() {
        let mut control = Control { timeline: TimelineId(3), standing: standing(7), ..Control::default() };
        let end = (TimelineId(3), Lsn(100));
        assert_eq!(control.standing.term(end), Term(7));
        control.forget_log();
        assert_eq!(control.standing.term(end), Term(0));
    }
}
