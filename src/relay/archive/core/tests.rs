use std::time::{Duration, Instant};

use super::{BackOff, Due, Hole, Line, Partial, Shipping, Stretch, StretchState};
use crate::pg::wal::{SegmentFile, SegmentNumber, WalSegmentSize};
use crate::pg::{Lsn, TimelineId};
use crate::relay::archive::layout::Inventory;

const INTERVAL: Duration = Duration::from_secs(5);

fn segment(timeline: u32, number: u64) -> SegmentFile {
    SegmentFile { timeline: TimelineId(timeline), number: SegmentNumber(number) }
}

fn partial(timeline: u32, number: u64, upto: u64) -> Due {
    Due::Partial(Partial { segment: segment(timeline, number), upto: Lsn(upto) })
}

fn stretch(timeline: u32, oldest: u64, end: u64, state: StretchState) -> Stretch {
    let (history, oldest) = (timeline > 1, Some(Lsn(oldest)));
    Stretch { timeline: TimelineId(timeline), history, oldest, end: Lsn(end), state }
}

fn line(stretches: &[Stretch]) -> Line {
    let size = WalSegmentSize::new(1 << 20).expect("valid");
    Line { size, stretches: stretches.to_vec() }
}

/// One timeline, whose segments of 1 MiB begin with number 3, up to `end`.
fn one(end: u64) -> Line {
    line(&[stretch(1, 0x30_0000, end, StretchState::Open)])
}

/// It ended in segment 4; its descendant is in segment 6.
fn forked() -> Line {
    line(&[
        stretch(1, 0x30_0000, 0x48_0000, StretchState::Ended),
        stretch(2, 0x40_0000, 0x61_0000, StretchState::Open),
    ])
}

fn shipping(segments: &[SegmentFile], line: &Line) -> Shipping {
    let found = Inventory { segments: segments.iter().copied().collect(), ..Inventory::default() };
    Shipping::new(INTERVAL, &found, line)
}

/// Does everything that is due, as if each worked at once, and tells it.
fn all(shipping: &mut Shipping, now: Instant, line: &Line) -> Vec<Due> {
    let mut done = Vec::new();
    loop {
        let due = shipping.due(now, line);
        match &due {
            Due::Nothing { .. } => return done,
            Due::History(timeline) => shipping.archived_history(*timeline),
            Due::Segments(segments) => {
                segments.iter().for_each(|segment| shipping.archived_segment(*segment));
            }
            Due::Partial(partial) => shipping.archived_partial(now, *partial),
            Due::Removal(segment) => shipping.removed(*segment),
        }
        done.push(due);
    }
}

#[test]
fn finished_segments_come_first_and_some_at_a_time() {
    let now = Instant::now();
    let mut shipping = shipping(&[], &one(0x95_0000));
    let numbers = |from, to| Due::Segments((from..=to).map(|number| segment(1, number)).collect());
    let line = one(0x95_0000);
    assert_eq!(shipping.kept_from(&line), Some(Lsn(0x30_0000)));
    assert_eq!(all(&mut shipping, now, &line), [numbers(3, 6), numbers(7, 8), partial(1, 9, 0x95_0000)]);
    assert_eq!(shipping.kept_from(&line), Some(Lsn(0x90_0000)), "the begun one is no reason to forget it");
    assert_eq!(shipping.archived_up_to(&line), Lsn(0x95_0000));
}

#[test]
fn what_the_archive_has_is_not_put_again() {
    let now = Instant::now();
    let line = one(0x50_0000);
    let mut all_there = shipping(&[segment(1, 2), segment(1, 3), segment(1, 4)], &line);
    assert_eq!(all(&mut all_there, now, &line), []);
    let mut retained = shipping(&[segment(1, 4)], &line);
    assert_eq!(all(&mut retained, now, &line), [], "3 was removed by retention");
    let mut one_lacks = shipping(&[segment(1, 3), segment(1, 5)], &one(0x60_0000));
    assert_eq!(
        all(&mut one_lacks, now, &one(0x60_0000)),
        [Due::Segments(vec![segment(1, 4), segment(1, 5)])],
        "what is there already is compared"
    );
    let mut descendant = shipping(&[segment(2, 5)], &forked());
    assert_eq!(
        all(&mut descendant, now, &forked()),
        [Due::History(TimelineId(2)), partial(2, 6, 0x61_0000)],
        "timeline 1 was whole before"
    );
}

#[test]
fn the_begun_segment_is_put_again_when_it_has_grown_and_not_too_often() {
    let now = Instant::now();
    let mut shipping = shipping(&[], &one(0x31_0000));
    assert_eq!(all(&mut shipping, now, &one(0x31_0000)), [partial(1, 3, 0x31_0000)]);
    let grown = one(0x32_0000);
    assert_eq!(shipping.due(now, &grown), Due::Nothing { until: Some(now + INTERVAL) });
    assert_eq!(shipping.due(now + INTERVAL, &grown), partial(1, 3, 0x32_0000));
    assert_eq!(shipping.due(now + INTERVAL, &one(0x31_0000)), Due::Nothing { until: None });
    // Finished, it is put at once, and so is the first part of the next one.
    let finished = one(0x40_1000);
    assert_eq!(shipping.due(now, &finished), Due::Segments(vec![segment(1, 3)]));
    shipping.archived_segment(segment(1, 3));
    assert_eq!(all(&mut shipping, now, &finished), [partial(1, 4, 0x40_1000), Due::Removal(segment(1, 3))]);
}

#[test]
fn a_begun_part_is_forgotten_when_it_is_removed() {
    let now = Instant::now();
    let line = one(0x40_0000);
    let found = Inventory {
        segments: [segment(1, 3)].into(),
        partials: [segment(1, 2), segment(1, 3)].into(),
        ..Inventory::default()
    };
    let mut shipping = Shipping::new(INTERVAL, &found, &line);
    assert_eq!(shipping.due(now, &line), Due::Removal(segment(1, 3)), "2 is all that there is of it");
    assert_eq!(shipping.not_removed(now), 0);
    let again = now + Duration::from_secs(1);
    assert_eq!(shipping.due(now, &line), Due::Nothing { until: Some(again) });
    // What is due otherwise is not kept by it.
    let longer = one(0x51_0000);
    assert_eq!(shipping.due(now, &longer), Due::Segments(vec![segment(1, 4)]));
    shipping.archived_segment(segment(1, 4));
    shipping.archived_partial(now, Partial { segment: segment(1, 5), upto: Lsn(0x51_0000) });
    assert_eq!(shipping.due(now, &longer), Due::Nothing { until: Some(again) });
    assert_eq!(shipping.due(now, &one(0x52_0000)), Due::Nothing { until: Some(again) });
    assert_eq!(shipping.due(again, &longer), Due::Removal(segment(1, 3)));
    assert_eq!(shipping.not_removed(again), 1);
    shipping.removed(segment(1, 3));
    assert_eq!(shipping.due(again, &longer), Due::Nothing { until: None });
}

#[test]
fn nothing_of_a_segment_without_a_whole_record() {
    let now = Instant::now();
    let line = one(0x30_0000);
    assert_eq!(shipping(&[], &line).due(now, &line), Due::Nothing { until: None });
}

#[test]
fn a_timeline_ends_before_its_descendant_begins() {
    let now = Instant::now();
    let mut shipping = shipping(&[], &forked());
    assert_eq!(
        all(&mut shipping, now, &forked()),
        [
            Due::Segments(vec![segment(1, 3)]),
            partial(1, 4, 0x48_0000),
            Due::History(TimelineId(2)),
            Due::Segments(vec![segment(2, 4), segment(2, 5)]),
            partial(2, 6, 0x61_0000),
        ]
    );
    assert_eq!(shipping.kept_from(&forked()), Some(Lsn(0x60_0000)));
    // A fork at a segment's border leaves no half.
    let line = line(&[
        stretch(1, 0x30_0000, 0x40_0000, StretchState::Ended),
        stretch(2, 0x40_0000, 0x40_0000, StretchState::Open),
    ]);
    let mut shipping = self::shipping(&[], &line);
    assert_eq!(
        all(&mut shipping, now, &line),
        [Due::Segments(vec![segment(1, 3)]), Due::History(TimelineId(2))]
    );
}

#[test]
fn a_hole_is_told_once_and_left_behind() {
    let line = one(0x65_0000);
    let mut shipping = shipping(&[segment(1, 1)], &line);
    let hole = Hole { timeline: TimelineId(1), from: Lsn(0x20_0000), to: Lsn(0x30_0000) };
    assert_eq!(shipping.hole(&line), Some(hole));
    assert_eq!(shipping.hole(&line), None);
    assert!(
        matches!(shipping.due(Instant::now(), &line), Due::Segments(segments) if segments[0] == segment(1, 3))
    );
    // The store had to give up more, meanwhile.
    let later = super::Line { stretches: vec![stretch(1, 0x50_0000, 0x65_0000, StretchState::Open)], ..line };
    assert!(shipping.hole(&later).is_some());
    assert_eq!(shipping.due(Instant::now(), &later), Due::Segments(vec![segment(1, 5)]));
}

#[test]
fn what_lies_behind_a_fork_is_no_hole() {
    let now = Instant::now();
    let mut shipping = shipping(&[], &forked());
    all(&mut shipping, now, &forked());
    // The relay had received timeline 1 beyond the fork, and has removed the fork's segment, but not that yet.
    let beyond = |oldest| {
        line(&[
            stretch(1, oldest, 0x48_0000, StretchState::Ended),
            stretch(2, 0x60_0000, 0x61_0000, StretchState::Open),
        ])
    };
    assert_eq!(shipping.hole(&beyond(0x50_0000)), None);
    assert_eq!(shipping.hole(&beyond(0x60_0000)), None);
    assert_eq!(shipping.kept_from(&beyond(0x50_0000)), Some(Lsn(0x60_0000)));
    // The same, found by another process.
    let found = Inventory {
        segments: [segment(1, 3)].into(),
        partials: [segment(1, 4)].into(),
        histories: [TimelineId(2)].into(),
    };
    let mut later = Shipping::new(INTERVAL, &found, &beyond(0x50_0000));
    assert_eq!(later.hole(&beyond(0x50_0000)), None);
    assert_eq!(
        all(&mut later, now, &beyond(0x50_0000)),
        [partial(2, 6, 0x61_0000)],
        "and nothing of what is beyond the fork"
    );
    // What lacks before the fork is one, up to the fork.
    let mut lost = self::shipping(&[segment(1, 2)], &beyond(0x50_0000));
    let hole = Hole { timeline: TimelineId(1), from: Lsn(0x30_0000), to: Lsn(0x48_0000) };
    assert_eq!(lost.hole(&beyond(0x50_0000)), Some(hole));
    assert_eq!(lost.hole(&beyond(0x50_0000)), None);
}

#[test]
fn how_far_the_archive_is() {
    let now = Instant::now();
    let before = one(0x48_0000);
    let mut shipping = shipping(&[], &before);
    let ended = |end| {
        line(&[
            stretch(1, 0x30_0000, 0x48_0000, StretchState::Ended),
            stretch(2, 0x40_0000, end, StretchState::Open),
        ])
    };
    assert_eq!(shipping.archived_up_to(&ended(0x48_0000)), Lsn(0x30_0000), "nothing yet");
    all(&mut shipping, now, &before);
    assert_eq!(shipping.archived_up_to(&ended(0x48_0000)), Lsn(0x48_0000), "just promoted");
    assert_eq!(shipping.archived_up_to(&ended(0x4A_0000)), Lsn(0x48_0000));
    all(&mut shipping, now, &ended(0x4A_0000));
    assert_eq!(shipping.archived_up_to(&ended(0x4A_0000)), Lsn(0x4A_0000));
    // What an ancestor lacks comes before what its descendant has.
    let behind = self::shipping(&[], &ended(0x61_0000));
    assert_eq!(behind.archived_up_to(&ended(0x61_0000)), Lsn(0x30_0000));
}

#[test]
fn failures_are_tried_again_later_and_later() {
    let now = Instant::now();
    let line = one(0x45_0000);
    let mut shipping = shipping(&[], &line);
    shipping.failed(now);
    assert_eq!(shipping.due(now, &line), Due::Nothing { until: Some(now + Duration::from_secs(1)) });
    assert!(matches!(shipping.due(now + Duration::from_secs(1), &line), Due::Segments(_)));

    let mut back_off = BackOff::default();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        back_off.failed(now);
        pauses.push(back_off.until(now).expect("later").duration_since(now).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    back_off.succeeded();
    assert_eq!(back_off.until(now), None);
}
