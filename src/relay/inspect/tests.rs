//! Directories of made-up segments, damaged in one place each.

use std::path::{Path, PathBuf};

use super::{Problem, Verified, list, verify};
use crate::pg::wal::build::{SYSTEM, WalBuilder};
use crate::pg::wal::{SegmentFile, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

const START: Lsn = Lsn(0x30_0000);
const MIB: usize = 1 << 20;

struct World {
    directory: tempfile::TempDir,
    wal: WalBuilder,
}

impl World {
    /// Three segments and the beginning of a fourth.
    fn new() -> World {
        let mut wal = WalBuilder::new(START, TimelineId(1));
        for len in [10, 20_000, 900_000, 5, 800_000, 77, 1_200_000, 300_000, 40, 50, 60_000, 3000] {
            wal.record(len);
        }
        let world = World { directory: tempfile::tempdir().expect("a temporary directory"), wal };
        world.write(1, START, world.wal.bytes(), 0);
        world
    }

    /// As segments, the last one filled up with `filler`.
    fn write(&self, timeline: u32, from: Lsn, bytes: &[u8], filler: u8) {
        for (index, content) in bytes.chunks(MIB).enumerate() {
            let mut segment = content.to_vec();
            segment.resize(MIB, filler);
            let path = self.path(timeline, from.advanced((index * MIB) as u64));
            std::fs::write(path, segment).expect("a writable directory");
        }
    }

    fn path(&self, timeline: u32, lsn: Lsn) -> PathBuf {
        self.directory.path().join(self.name(timeline, lsn))
    }

    fn name(&self, timeline: u32, lsn: Lsn) -> String {
        let size = self.wal.segment_size();
        SegmentFile { timeline: TimelineId(timeline), number: size.segment(lsn) }.name(size)
    }

    fn record(&self, index: usize) -> (Lsn, usize) {
        let offset = self.wal.record_range(index).0;
        (START.advanced(offset as u64), offset)
    }

    /// The problems, and each timeline's end.
    fn verified(&self) -> (Vec<Problem>, Vec<(u32, Lsn)>) {
        let mut last = (0, 0);
        let found = verify(self.directory.path(), &mut |read, all| last = (read, all)).expect("segments");
        assert!(last.0 <= last.1, "{last:?}");
        let ends = |verified: &Verified| (verified.timeline.0, verified.end);
        (found.problems, found.timelines.iter().map(ends).collect())
    }

    fn flip(&self, timeline: u32, lsn: Lsn) {
        let path = self.path(timeline, lsn);
        let mut content = std::fs::read(&path).expect("a segment");
        content[lsn.0 as usize % MIB] ^= 1;
        std::fs::write(path, content).expect("a writable directory");
    }
}

#[test]
fn whole_is_whole_whatever_lies_behind_the_end() {
    let world = World::new();
    let end = world.wal.end();
    let last = |bytes: &[u8]| std::fs::write(world.path(1, end), bytes).expect("writable");
    let original = std::fs::read(world.path(1, end)).expect("a segment");
    let used = end.0 as usize % MIB;
    let filled = |filler: &dyn Fn(usize) -> u8| {
        let mut content = original.clone();
        (used..MIB).for_each(|at| content[at] = filler(at));
        content
    };
    let older = std::fs::read(world.path(1, START)).expect("a segment");
    for content in [filled(&|_| 0), filled(&|_| 0xFF), filled(&|at| older[at])] {
        last(&content);
        assert_eq!(world.verified(), (vec![], vec![(1, end)]));
    }
    // What a promoted server leaves behind the fork: the page of the fork, again and again (pitfall 9).
    let page = used / 8192 * 8192;
    last(&filled(&|at| original[page + at % 8192]));
    assert_eq!(world.verified(), (vec![], vec![(1, end)]));
    // Segments named ahead, with zeros or old pages.
    let ahead = [1, 2].map(|n| world.path(1, end.advanced(n * MIB as u64)));
    std::fs::write(&ahead[0], &older).expect("writable");
    std::fs::write(&ahead[1], vec![0; MIB]).expect("writable");
    assert_eq!(world.verified(), (vec![], vec![(1, end)]));
    let listed = list(world.directory.path()).expect("a directory");
    let line = &listed.timelines[0];
    assert_eq!((line.start, line.end, line.segments, line.unused_segments), (START, end, 4, 2));
    assert_eq!((listed.system, listed.segment_bytes), (Some(SYSTEM), MIB as u64));
}

#[test]
fn a_flipped_byte_is_found_in_its_record() {
    for index in 0..11 {
        let world = World::new();
        let (lsn, _) = world.record(index);
        world.flip(1, lsn.advanced(20));
        let (problems, _) = world.verified();
        let [
            Problem::Corrupt { file, offset, lsn: found, .. }
            | Problem::Hole { file, offset, lsn: found, .. },
        ] = &problems[..]
        else {
            panic!("record {index}: {problems:?}");
        };
        assert_eq!((file, *offset, *found), (&world.name(1, lsn), lsn.0 % MIB as u64, lsn), "record {index}");
    }
}

#[test]
fn a_missing_segment_is_a_gap() {
    let world = World::new();
    let missing = Lsn(START.0 + MIB as u64);
    std::fs::remove_file(world.path(1, missing)).expect("a segment");
    let name = world.name(1, missing);
    let gap = Problem::Gap {
        timeline: TimelineId(1),
        first: name.clone(),
        last: name,
        from: missing,
        to: missing.advanced(MIB as u64),
    };
    assert_eq!(world.verified(), (vec![gap], vec![(1, world.wal.end())]));
}

#[test]
fn foreign_and_short_segments_are_named() {
    let world = World::new();
    let (foreign, short) = (Lsn(START.0 + MIB as u64), Lsn(START.0 + 2 * MIB as u64));
    let path = world.path(1, foreign);
    let mut content = std::fs::read(&path).expect("a segment");
    content[24..32].copy_from_slice(&7_u64.to_le_bytes());
    std::fs::write(path, content).expect("writable");
    let content = std::fs::read(world.path(1, short)).expect("a segment");
    std::fs::write(world.path(1, short), &content[..MIB / 2]).expect("writable");
    let (problems, _) = world.verified();
    let of_another =
        Problem::Foreign { file: world.name(1, foreign), found: SystemIdentifier(7), expected: SYSTEM };
    assert_eq!(problems[0], of_another);
    let cut = Problem::Short { file: world.name(1, short), bytes: MIB as u64 / 2, expected: MIB as u64 };
    assert_eq!(problems[1], cut);
}

#[test]
fn timelines_part_where_their_history_says() {
    let world = World::new();
    // Timeline 2 forks in the last segment; timeline 1 goes on a little.
    let fork = world.wal.end();
    let mut second = world.wal.clone();
    second.fork(TimelineId(2));
    let mut first = world.wal.clone();
    first.record(500);
    for len in [70_000, 1_000_000, 30] {
        second.record(len);
    }
    let size = WalSegmentSize::new(MIB as u64).expect("a size");
    let begin = size.segment_start(fork);
    let offset = usize::try_from(begin.bytes_since(START)).expect("small");
    world.write(1, START, first.bytes(), 0);
    world.write(2, begin, &second.bytes()[offset..], 0);
    let history = format!("1\t{fork}\tno recovery target specified\n");
    std::fs::write(world.directory.path().join("00000002.history"), history).expect("writable");
    let ends = vec![(1, first.end()), (2, second.end())];
    assert_eq!(world.verified(), (vec![], ends.clone()));

    // The server that was promoted has the fork's segment on the new timeline only.
    let kept = std::fs::read(world.path(1, fork)).expect("a segment");
    std::fs::remove_file(world.path(1, fork)).expect("a segment");
    let (problems, found) = world.verified();
    assert_eq!((problems, found[1]), (vec![], ends[1]));
    std::fs::write(world.path(1, fork), kept).expect("writable");

    // Two bytes of page headers that no checksum covers: only the comparison finds it.
    world.flip(2, begin.advanced(20));
    let (problems, _) = world.verified();
    let differs = |problem: &Problem| matches!(problem, Problem::ForkDiffers { .. });
    assert!(problems.iter().any(differs), "{problems:?}");
    world.flip(2, begin.advanced(20));

    // What the new timeline needs of the old one is damaged.
    let (lsn, _) = world.record(10);
    world.flip(1, lsn.advanced(20));
    world.flip(2, lsn.advanced(20));
    let (problems, _) = world.verified();
    assert_eq!(problems.len(), 2, "{problems:?}");
    let is_there = |problem: &Problem| match problem {
        Problem::Corrupt { lsn: found, .. } | Problem::Hole { lsn: found, .. } => *found == lsn,
        _ => false,
    };
    assert!(problems.iter().all(is_there), "{problems:?}");
}

#[test]
fn a_directory_without_segments_has_nothing_to_verify() {
    let empty = tempfile::tempdir().expect("a temporary directory");
    assert!(verify(empty.path(), &mut |_, _| {}).is_err());
    assert!(verify(Path::new("/nowhere"), &mut |_, _| {}).is_err());
    assert_eq!(list(empty.path()).map(|found| found.timelines.len()).ok(), Some(0));
}
