//! Timeline history files: where each ancestor of a timeline ended (`readTimeLineHistory` in timeline.c).

use super::{SegmentFile, SegmentNumber, WalSegmentSize};
use crate::pg::{Lsn, TimelineId};

/// An ancestor and where its WAL stops being ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    pub timeline: TimelineId,
    /// First byte that no longer belongs to `timeline`.
    pub switchpoint: Lsn,
}

/// The ancestry of one timeline. Numbers may be skipped (1, 2, 4): a promotion takes the next unused one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    timeline: TimelineId,
    /// Oldest first; timelines strictly rising and below `timeline`, switchpoints never falling.
    ancestors: Vec<HistoryEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    #[error("history of timeline {timeline}, line {line}: a timeline and an LSN are expected")]
    Syntax { timeline: TimelineId, line: usize },
    #[error("history of timeline {timeline}, line {line}: timeline {found} does not follow its ancestor")]
    Order { timeline: TimelineId, line: usize, found: TimelineId },
}

impl History {
    /// A timeline without ancestors, or one whose history is not known.
    pub fn without_ancestors(timeline: TimelineId) -> History {
        History { timeline, ancestors: Vec::new() }
    }

    /// Reads a history file. Lenient as PostgreSQL is: empty lines (it writes one between entries), `#` lines
    /// and everything behind the LSN are free text.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<History, HistoryError> {
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for (index, raw) in content.split(|b| *b == b'\n').enumerate() {
            let line = index + 1;
            let text = String::from_utf8_lossy(raw);
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let entry = parse_line(text).ok_or(HistoryError::Syntax { timeline, line })?;
            let follows = ancestors.last().is_none_or(|previous| {
                previous.timeline < entry.timeline && previous.switchpoint <= entry.switchpoint
            });
            if !follows || entry.timeline >= timeline {
                return Err(HistoryError::Order { timeline, line, found: entry.timeline });
            }
            ancestors.push(entry);
        }
        Ok(History { timeline, ancestors })
    }

    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    pub fn ancestors(&self) -> &[HistoryEntry] {
        &self.ancestors
    }

    /// Whether WAL of `timeline` can be a part of this history.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.switchpoint(timeline).is_some()
    }

    /// Where `timeline` ended; `None` for the latest timeline and for one that is no ancestor.
    pub fn switchpoint(&self, timeline: TimelineId) -> Option<Lsn> {
        self.ancestors.iter().find(|entry| entry.timeline == timeline).map(|entry| entry.switchpoint)
    }

    /// The timeline that forked from `timeline`, and where; `None` as in [`History::switchpoint`].
    pub fn next(&self, timeline: TimelineId) -> Option<(TimelineId, Lsn)> {
        let at = self.ancestors.iter().position(|entry| entry.timeline == timeline)?;
        let next = self.ancestors.get(at + 1).map_or(self.timeline, |entry| entry.timeline);
        Some((next, self.ancestors[at].switchpoint))
    }

    /// Where this history leaves `other`: what it holds behind that is not in `other`. `None`: it is a part of it, or
    /// they have nothing in common.
    pub fn leaves(&self, other: &History) -> Option<Lsn> {
        self.branches_off(other).map(|(_, lsn)| lsn)
    }

    /// The same, and on which timeline.
    pub fn branches_off(&self, other: &History) -> Option<(TimelineId, Lsn)> {
        let mut left_at = None;
        for ((timeline, ours), (theirs, end)) in self.ends().zip(other.ends()) {
            match (ours, end) {
                _ if timeline != theirs => return left_at,
                (Some(ours), Some(end)) if ours == end => left_at = Some((timeline, ours)),
                _ => return ours.into_iter().chain(end).min().map(|lsn| (timeline, lsn)),
            }
        }
        left_at
    }

    /// Each timeline, oldest first, and where it ended.
    fn ends(&self) -> impl Iterator<Item = (TimelineId, Option<Lsn>)> {
        let ancestors = self.ancestors.iter().map(|entry| (entry.timeline, Some(entry.switchpoint)));
        ancestors.chain([(self.timeline, None)])
    }

    /// Where `timeline` began; 0/0 for one without ancestors.
    pub fn begin_of(&self, timeline: TimelineId) -> Lsn {
        let before = self.ancestors.iter().rev().find(|past| past.timeline < timeline);
        before.map_or(Lsn::INVALID, |past| past.switchpoint)
    }

    /// The timelines whose segment `number` holds WAL of this history, the newest first: those that begin before its end
    /// and end behind its begin. In the segment of a fork the descendant's holds the ancestor's part, too. An ancestor's
    /// segments behind its switchpoint are another history's, although they may be there: whoever received them did not
    /// know of the fork yet.
    pub fn holders(
        &self,
        number: SegmentNumber,
        size: WalSegmentSize,
    ) -> impl Iterator<Item = TimelineId> + use<> {
        let begins =
            std::iter::once(Lsn::INVALID).chain(self.ancestors.iter().map(|entry| entry.switchpoint));
        let mut holders = Vec::new();
        for ((timeline, end), begin) in self.ends().zip(begins) {
            if size.segment(begin) <= number && end.is_none_or(|end| size.start(number) < end) {
                holders.push(timeline);
            }
        }
        holders.into_iter().rev()
    }

    /// Segment `number` of this history on the newest timeline of which it is there.
    pub fn segment(
        &self,
        number: SegmentNumber,
        size: WalSegmentSize,
        is_there: impl Fn(&SegmentFile) -> bool,
    ) -> Option<SegmentFile> {
        self.holders(number, size).map(|timeline| SegmentFile { timeline, number }).find(is_there)
    }

    /// Where the latest timeline began; `None` without ancestors.
    pub fn begin(&self) -> Option<Lsn> {
        self.ancestors.last().map(|entry| entry.switchpoint)
    }
}

/// `%08X.history` (`TLHistoryFileName`).
pub fn history_file_name(timeline: TimelineId) -> String {
    format!("{:08X}.history", timeline.0)
}

/// The timeline whose history file `name` is.
pub fn parse_history_file_name(name: &str) -> Option<TimelineId> {
    let digits = name.strip_suffix(".history")?;
    let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    let well_formed = digits.len() == 8 && digits.bytes().all(upper_hex);
    well_formed.then(|| u32::from_str_radix(digits, 16).ok()).flatten().map(TimelineId)
}

fn parse_line(text: &str) -> Option<HistoryEntry> {
    let mut words = text.split_ascii_whitespace();
    let timeline = TimelineId(words.next()?.parse().ok()?);
    let switchpoint = words.next()?.parse().ok()?;
    Some(HistoryEntry { timeline, switchpoint })
}

#[cfg(test)]
mod tests {
    use super::{History, HistoryError, history_file_name, parse_history_file_name};
    use crate::pg::wal::{SegmentFile, SegmentNumber, WalSegmentSize};
    use crate::pg::{Lsn, TimelineId};

    fn ends(timeline: u32, content: &str) -> Result<Vec<(u32, u64)>, HistoryError> {
        let history = History::parse(TimelineId(timeline), content.as_bytes())?;
        Ok(history.ancestors().iter().map(|e| (e.timeline.0, e.switchpoint.0)).collect())
    }

    #[test]
    fn histories_part() {
        let history = |timeline, content: &str| {
            History::parse(TimelineId(timeline), content.as_bytes()).expect("a history")
        };
        let check = |ours: (u32, &str), theirs: (u32, &str), expected: Option<u64>| {
            let left = history(ours.0, ours.1).leaves(&history(theirs.0, theirs.1));
            assert_eq!(left, expected.map(Lsn), "{ours:?} {theirs:?}");
        };
        check((1, ""), (1, ""), None);
        check((1, ""), (2, "1 0/200"), Some(0x200));
        check((2, "1 0/100"), (1, ""), Some(0x100));
        check((2, "1 0/200"), (2, "1 0/200"), None);
        check((2, "1 0/300"), (2, "1 0/200"), Some(0x200));
        check((2, "1 0/200"), (3, "1 0/200"), Some(0x200));
        check((2, "1 0/200"), (3, "1 0/200\n2 0/300"), Some(0x300));
        check((3, "1 0/200\n2 0/400"), (4, "1 0/200\n2 0/300"), Some(0x300));
        check((5, ""), (1, ""), None);
    }

    #[test]
    fn what_servers_write_is_read() {
        // As a server wrote it: an empty line between the entries.
        let twice =
            "1\t0/303B720\tno recovery target specified\n\n2\t0/3060A80\tno recovery target specified\n";
        assert_eq!(ends(3, twice), Ok(vec![(1, 0x303_B720), (2, 0x306_0A80)]));
        assert_eq!(ends(1, ""), Ok(vec![]));
        assert_eq!(
            ends(5, "# note\n1 0/100\nhalf\n4\t1/0"),
            Err(HistoryError::Syntax { timeline: TimelineId(5), line: 3 })
        );
        assert_eq!(ends(5, "# note\r\n1 0/100\r\n4\t1/0"), Ok(vec![(1, 0x100), (4, 1 << 32)]));
    }

    #[test]
    fn contradictions_are_refused() {
        for content in ["2\t0/1\n1\t0/2\n", "1\t0/2\n2\t0/1\n", "3\t0/1\n", "1\t0/1\n1\t0/1\n"] {
            assert!(matches!(ends(3, content), Err(HistoryError::Order { .. })), "{content:?}");
        }
        for content in ["1\n", "x\t0/1\n", "1\t0\n"] {
            assert!(matches!(ends(3, content), Err(HistoryError::Syntax { .. })), "{content:?}");
        }
    }

    #[test]
    fn questions_about_ancestry() {
        let history = History::parse(TimelineId(4), b"1\t0/100\tx\n\n2\t0/200\ty\n").expect("well-formed");
        let next = |t: u32| history.next(TimelineId(t)).map(|(t, lsn)| (t.0, lsn.0));
        assert_eq!(next(1), Some((2, 0x100)));
        // 3 was somebody else's.
        assert_eq!(next(2), Some((4, 0x200)));
        assert_eq!(next(3), None);
        assert_eq!(next(4), None);
        assert!(
            history.contains(TimelineId(4))
                && history.contains(TimelineId(1))
                && !history.contains(TimelineId(3))
        );
        assert_eq!(history.begin(), Some(Lsn(0x200)));
    }

    #[test]
    fn a_segment_belongs_to_who_has_begun_and_not_ended() {
        let size = WalSegmentSize::new(1 << 20).expect("valid");
        // Timeline 1 up to 2.5 MiB, 3 up to 4 MiB, then 4.
        let history = History::parse(TimelineId(4), b"1\t0/280000\n3\t0/400000\n").expect("a history");
        let of = |number| -> Vec<u32> {
            history.holders(SegmentNumber(number), size).map(|timeline| timeline.0).collect()
        };
        assert_eq!(of(0), [1]);
        assert_eq!(of(1), [1]);
        assert_eq!(of(2), [3, 1], "the segment of the fork");
        assert_eq!(of(3), [3], "1 went on behind the fork, in another history");
        assert_eq!(of(4), [4], "a fork at a segment's begin");
        let there = |timelines: &[u32], number| {
            let is_there = |segment: &SegmentFile| timelines.contains(&segment.timeline.0);
            history.segment(SegmentNumber(number), size, is_there).map(|segment| segment.timeline.0)
        };
        assert_eq!(there(&[1, 3, 4], 2), Some(3));
        assert_eq!(there(&[1], 2), Some(1));
        assert_eq!(there(&[1], 3), None);
    }

    #[test]
    fn file_names() {
        assert_eq!(history_file_name(TimelineId(0x1A)), "0000001A.history");
        assert_eq!(parse_history_file_name("0000001A.history"), Some(TimelineId(0x1A)));
        for name in ["1.history", "0000001a.history", "0000001A.history.tmp", "+000001A.history"] {
            assert_eq!(parse_history_file_name(name), None, "{name:?}");
        }
    }
}
