//! A server's or relay's WAL as a value: entries, each of them unique, and where timelines forked.

use crate::pg::{Lsn, TimelineId};

/// Never written twice, so what lies before it is the same wherever it is found at the same place.
pub(super) type Entry = u64;

const START: u64 = 0x0100_0000;
const BYTES: u64 = 0x10;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) timeline: TimelineId,
    /// Where the timelines before it ended, oldest first, in entries.
    pub(super) forks: Vec<(TimelineId, usize)>,
    pub(super) entries: Vec<Entry>,
}

/// Up to where somebody has it, and what comes last there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) timeline: TimelineId,
    pub(super) len: usize,
    pub(super) last: Option<Entry>,
}

/// What a source says to somebody who has WAL up to some end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// What comes behind it, on the source's timeline.
    More(Log),
    /// The timeline of the asker ended before; what comes next.
    Forked { next: TimelineId, at: usize },
    /// The asker has more; what there is.
    Ahead(End),
    /// At the same place on the same timeline it has something else.
    Diverged,
    /// The asker's timeline is not in the source's history, which is this one's.
    Foreign(Log),
}

pub(super) fn lsn(len: usize) -> Lsn {
    Lsn(START + BYTES * len as u64)
}

/// The whole entries before `lsn`.
pub(super) fn len(lsn: Lsn) -> usize {
    (lsn.0.saturating_sub(START) / BYTES) as usize
}

impl Log {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn lsn(&self) -> Lsn {
        lsn(self.len())
    }

    pub(super) fn end(&self) -> End {
        End { timeline: self.timeline, len: self.len(), last: self.entries.last().copied() }
    }

    pub(super) fn fork_of(&self, timeline: TimelineId) -> Option<usize> {
        self.forks.iter().find(|(of, _)| *of == timeline).map(|(_, at)| *at)
    }

    /// Which timeline follows on `timeline`.
    pub(super) fn next_of(&self, timeline: TimelineId) -> Option<TimelineId> {
        let index = self.forks.iter().position(|(of, _)| *of == timeline)?;
        Some(self.forks.get(index + 1).map_or(self.timeline, |(next, _)| *next))
    }

    pub(super) fn has(&self, end: End) -> bool {
        end.len <= self.len() && (end.len == 0 || self.entries.get(end.len - 1).copied() == end.last)
    }

    pub(super) fn starts_with(&self, other: &Log) -> bool {
        self.has(other.end())
    }

    /// How much of it the other has, too.
    pub(super) fn common(&self, other: &Log) -> usize {
        self.entries.iter().zip(&other.entries).take_while(|(a, b)| a == b).count()
    }

    /// From its beginning up to `len`, on the timeline that this is on.
    pub(super) fn up_to(&self, len: usize) -> Log {
        let mut log = self.clone();
        log.cut(len);
        log
    }

    pub(super) fn cut(&mut self, len: usize) {
        self.entries.truncate(len);
        if let Some(begun) = self.forks.iter().position(|(_, at)| *at > len) {
            self.timeline = self.forks[begun].0;
            self.forks.truncate(begun);
        }
    }

    /// Goes over to another timeline at `at`.
    pub(super) fn follow(&mut self, next: TimelineId, at: usize) {
        self.entries.truncate(at);
        self.forks.push((self.timeline, at));
        self.timeline = next;
    }

    /// Of what it has up to `limit`.
    pub(super) fn offer_up_to(&self, limit: usize, asker: End) -> Offer {
        if limit < self.len() { self.up_to(limit).offer(asker) } else { self.offer(asker) }
    }

    pub(super) fn offer(&self, asker: End) -> Offer {
        if asker.len == 0 && asker.timeline.0 == 0 {
            return Offer::More(self.clone());
        }
        let end = match self.fork_of(asker.timeline) {
            _ if asker.timeline == self.timeline => self.len(),
            Some(at) if at < asker.len => {
                let next = self.next_of(asker.timeline).unwrap_or(self.timeline);
                return Offer::Forked { next, at };
            }
            Some(at) => at,
            None => return Offer::Foreign(self.clone_head()),
        };
        match asker.len <= end {
            false => Offer::Ahead(self.up_to(end).end()),
            true if !self.has(asker) => Offer::Diverged,
            true => Offer::More(Log { entries: self.entries[asker.len..].to_vec(), ..self.clone_head() }),
        }
    }

    /// Where it left the history of `other` for a timeline that this does not have.
    pub(super) fn branched_off(&self, other: &Log) -> Option<(TimelineId, usize)> {
        let mut left = None;
        for (ours, theirs) in self.ends().zip(other.ends()) {
            match (ours, theirs) {
                _ if ours.0 != theirs.0 => return left,
                ((of, Some(ours)), (_, Some(theirs))) if ours == theirs => left = Some((of, ours)),
                ((of, ours), (_, theirs)) => return ours.into_iter().chain(theirs).min().map(|at| (of, at)),
            }
        }
        left
    }

    fn ends(&self) -> impl Iterator<Item = (TimelineId, Option<usize>)> {
        let ended = self.forks.iter().map(|(of, at)| (*of, Some(*at)));
        ended.chain([(self.timeline, None)])
    }

    /// Goes back to `at` on an earlier timeline.
    pub(super) fn rewind(&mut self, (timeline, at): (TimelineId, usize)) {
        self.entries.truncate(at);
        let begun = self.forks.iter().position(|(of, _)| *of == timeline);
        self.forks.truncate(begun.expect("one of its own"));
        self.timeline = timeline;
    }

    pub(super) fn clone_head(&self) -> Log {
        Log { timeline: self.timeline, forks: self.forks.clone(), entries: Vec::new() }
    }

    /// Takes what was offered for the end of this.
    pub(super) fn take(&mut self, more: Log) {
        self.timeline = more.timeline;
        self.forks = more.forks;
        self.entries.extend(more.entries);
    }
}

#[cfg(test)]
mod tests {
    use super::{Log, Offer};
    use crate::pg::TimelineId;

    fn log(timeline: u32, forks: &[(u32, usize)], entries: &[u64]) -> Log {
        let forks = forks.iter().map(|(of, at)| (TimelineId(*of), *at)).collect();
        Log { timeline: TimelineId(timeline), forks, entries: entries.to_vec() }
    }

    #[test]
    fn what_a_source_offers() {
        let source = log(2, &[(1, 2)], &[1, 2, 30, 31]);
        let check =
            |asker: Log, offered: &Offer| assert_eq!(source.offer(asker.end()), *offered, "{asker:?}");
        check(Log::default(), &Offer::More(source.clone()));
        check(log(1, &[], &[1, 2]), &Offer::More(log(2, &[(1, 2)], &[30, 31])));
        check(log(1, &[], &[1, 2, 3]), &Offer::Forked { next: TimelineId(2), at: 2 });
        check(log(1, &[], &[1, 9]), &Offer::Diverged);
        check(log(2, &[(1, 2)], &[1, 2, 30, 40]), &Offer::Diverged);
        check(log(2, &[(1, 2)], &[1, 2, 30, 31, 32]), &Offer::Ahead(source.end()));
        check(log(3, &[(1, 2)], &[1, 2, 30, 31]), &Offer::Foreign(log(2, &[(1, 2)], &[])));
    }

    #[test]
    fn a_branch_is_left_where_it_began() {
        let check = |mut own: Log, theirs: Log, expected: Option<Log>| {
            let fork = own.branched_off(&theirs).filter(|(of, _)| *of != own.timeline);
            let left = fork.map(|fork| {
                own.rewind(fork);
                own.clone()
            });
            assert_eq!(left, expected, "{theirs:?}");
        };
        let own = log(3, &[(1, 2), (2, 4)], &[1, 2, 30, 31, 40]);
        check(own.clone(), log(4, &[(1, 2), (2, 3)], &[]), Some(log(2, &[(1, 2)], &[1, 2, 30])));
        check(own.clone(), log(1, &[], &[]), Some(log(1, &[], &[1, 2])));
        check(own.clone(), log(4, &[(1, 2)], &[]), Some(log(1, &[], &[1, 2])));
        check(own.clone(), log(4, &[(1, 2), (2, 4), (3, 5)], &[]), None);
        check(own, log(7, &[], &[]), None);
    }

    #[test]
    fn a_cut_goes_back_to_the_timeline_of_then() {
        let mut cut = log(3, &[(1, 2), (2, 4)], &[1, 2, 30, 31, 40]);
        cut.cut(4);
        assert_eq!(cut, log(3, &[(1, 2), (2, 4)], &[1, 2, 30, 31]));
        cut.cut(3);
        assert_eq!(cut, log(2, &[(1, 2)], &[1, 2, 30]));
    }
}
