//! The control file: what the store knows beside the WAL itself. PURE: text in, text out.
//!
//! One line of JSON and one with its CRC-32C; small enough to look at, replaced as a whole by a durable rename.

use serde::{Deserialize, Serialize};

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

    /// There is none any more: it begins where the next upstream says. What was promised stays.
    pub(crate) fn forget_log(&mut self) {
        self.timeline = TimelineId(0);
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
    use super::Control;
    use crate::pg::{SystemIdentifier, TimelineId};
    use crate::topology::Term;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let control = Control {
            system: Some(SystemIdentifier(u64::MAX)),
            timeline: TimelineId(3),
            promised: Term(7),
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
}
