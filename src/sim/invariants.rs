//! The promises as checks, on what is known from outside: what the disk has synced, what went over the wire,
//! what the servers hold. Nothing here asks a core what it believes.

use std::collections::{BTreeMap, BTreeSet};

use super::log::{Log, SEGMENT, START};
use crate::failover::decide::{Action, Phase, State, Step, What};
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Directive, NodeName, Term};

/// The first promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) promise: Promise,
    pub(super) how: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    DurableBeforeShipped,
    OnePrimary,
    Bytes,
    Quorum,
    /// Visible to clients, but not on the quorum.
    VisibleIsDurable,
    /// A planned switchover loses no byte ...
    Complete,
    /// ... and cuts no transaction, unless it was told to.
    Drained,
    Liveness,
    /// A core or the store gave up.
    Panicked,
}

#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) broken: Option<Broken>,
    /// What the relay's disk has held of each timeline, from [`START`].
    stored: BTreeMap<TimelineId, Vec<u8>>,
    /// How far each timeline was ever synced.
    synced: BTreeMap<TimelineId, Lsn>,
    timeline: TimelineId,
    promised: Term,
    /// What the journal has.
    journaled: Option<State>,
    primaries: BTreeMap<Term, NodeName>,
    /// Tokens that clients were told are committed.
    pub(super) acknowledged: BTreeSet<u64>,
    pub(super) sent: u64,
    /// Planned switchovers that were completed.
    pub(super) switchovers: usize,
}

impl Checks {
    pub(super) fn fail(&mut self, promise: Promise, how: String) {
        self.broken.get_or_insert(Broken { promise, how });
    }

    // The disk.

    pub(super) fn appended(&mut self, timeline: TimelineId, at: Lsn, bytes: &[u8]) {
        let stored = self.stored.entry(timeline).or_default();
        let offset = usize::try_from(at.bytes_since(START)).expect("small");
        if stored.len() < offset {
            stored.resize(offset, 0);
        }
        // After a crash the lost tail is written again; on one timeline it may only be the same.
        let known = stored.len().min(offset + bytes.len()) - offset;
        let same = stored[offset..offset + known] == bytes[..known];
        stored.truncate(offset + known);
        stored.extend_from_slice(&bytes[known..]);
        if !same {
            self.fail(Promise::Bytes, format!("timeline {timeline} was received twice at {at}, differently"));
        }
    }

    pub(super) fn synced(&mut self, timeline: TimelineId, upto: Lsn) {
        if timeline.0 == 0 || !upto.is_valid() {
            return;
        }
        if self.timeline != timeline {
            let inherited = self.stored.get(&self.timeline).cloned().unwrap_or_default();
            let length = usize::try_from(upto.bytes_since(START)).expect("small");
            self.stored.entry(timeline).or_insert_with(|| inherited[..length.min(inherited.len())].to_vec());
            self.timeline = timeline;
        }
        let synced = self.synced.entry(timeline).or_default();
        *synced = (*synced).max(upto);
    }

    /// After a start: nothing synced may be missing but half a record.
    pub(super) fn recovered(&mut self, timeline: TimelineId, durable: Lsn, promised: Term) {
        if promised < self.promised {
            let how = format!("the relay promised {} and knows of {promised} only", self.promised);
            self.fail(Promise::OnePrimary, how);
        }
        let Some(synced) = self.synced.get(&self.timeline).copied() else { return };
        // The store syncs what it finds.
        self.synced.insert(timeline, durable.max(synced));
        let mut log = Log::new();
        log.write(START, &self.stored[&self.timeline]);
        log.truncate(synced);
        if timeline != self.timeline || durable < log.whole() {
            let how = format!(
                "timeline {} was synced up to {synced} (whole records up to {}), found is {timeline} up to {durable}",
                self.timeline,
                log.whole()
            );
            self.fail(Promise::DurableBeforeShipped, how);
        }
    }

    /// Old WAL, as a recycled segment holds it.
    pub(super) fn old_segment(&self) -> Option<Vec<u8>> {
        let mut segment = self.stored.values().next()?.get(..SEGMENT as usize / 2)?.to_vec();
        segment.resize(SEGMENT as usize, 0);
        Some(segment)
    }

    // The wire.

    /// A status update of the relay arrived at its upstream.
    pub(super) fn acknowledged_upstream(&mut self, timeline: TimelineId, flush: Lsn) {
        let synced = self.synced.get(&timeline).copied().unwrap_or_default();
        if flush > synced && flush > self.synced.get(&self.timeline).copied().unwrap_or_default() {
            let how = format!("the relay acknowledged {flush}, its disk has {synced} of timeline {timeline}");
            self.fail(Promise::DurableBeforeShipped, how);
        }
    }

    /// WAL of the relay arrived at a follower.
    pub(super) fn shipped(&mut self, timeline: TimelineId, at: Lsn, bytes: &[u8]) {
        let end = at.advanced(bytes.len() as u64);
        let synced = self.synced.get(&timeline).copied().unwrap_or_default();
        if end > synced {
            let how = format!("shipped up to {end}, the relay's disk has {synced} of timeline {timeline}");
            return self.fail(Promise::DurableBeforeShipped, how);
        }
        let offset = usize::try_from(at.bytes_since(START)).expect("small");
        let stored = &self.stored[&timeline];
        if stored.get(offset..offset + bytes.len()) != Some(bytes) {
            self.fail(Promise::Bytes, format!("what was shipped at {at} is not what was received"));
        }
    }

    /// The store takes WAL that came over a connection of `term`.
    pub(super) fn taken(&mut self, term: Term) {
        if term < self.promised {
            let how = format!("WAL of term {term} was taken after {} was promised", self.promised);
            self.fail(Promise::OnePrimary, how);
        }
    }

    pub(super) fn promised(&mut self, term: Term) {
        self.promised = self.promised.max(term);
    }

    // The control plane and the proxy.

    pub(super) fn journaled(&mut self, state: &State) {
        if let Some(last) = self.journaled.as_ref().map(|last| last.term).filter(|last| state.term < *last) {
            self.fail(Promise::OnePrimary, format!("term {} after term {last}", state.term));
        }
        self.journaled = Some(state.clone());
    }

    /// Terms are durable before anybody hears of them, and so is all else that a directive says.
    pub(super) fn directed(&mut self, directive: &Directive) {
        let journaled = self.journaled.as_ref().map(State::directive);
        if journaled.as_ref() != Some(directive) {
            self.fail(Promise::OnePrimary, format!("{directive:?} went out, the journal has {journaled:?}"));
        }
    }

    /// An action begins: its term is journaled, and a promotion with the one who is to be promoted.
    pub(super) fn started(&mut self, action: &Action) {
        let Some(journaled) = &self.journaled else { return };
        let candidate = match &journaled.phase {
            Phase::Election(election) => match &election.step {
                Step::Promote { candidate } => Some(candidate),
                _ => None,
            },
            _ => None,
        };
        let promotes_another = matches!(action.what, What::Promote { .. }) && candidate != Some(&action.node);
        if action.term != journaled.term || promotes_another {
            let how = format!("{action:?} began, the journal has term {}, {candidate:?}", journaled.term);
            self.fail(Promise::OnePrimary, how);
        }
    }

    /// A write goes to `node` in the name of `term`.
    pub(super) fn served(&mut self, term: Term, node: &NodeName) {
        let first = self.primaries.entry(term).or_insert_with(|| node.clone()).clone();
        if first != *node {
            self.fail(Promise::OnePrimary, format!("in term {term} both {first} and {node} take writes"));
        }
    }

    /// Writes are open to a server that holds this log, of which all up to `recovered` is visible.
    pub(super) fn opened(&mut self, node: &NodeName, log: &Log, recovered: Lsn) {
        let synced = self.synced.get(&log.timeline).copied().unwrap_or_default();
        if synced < recovered {
            let how = format!("{node} shows commits up to {recovered}, the relay's disk has {synced}");
            self.fail(Promise::VisibleIsDurable, how);
        }
        self.holds_all(node, log);
    }

    /// Every acknowledged token is there, and once.
    pub(super) fn holds_all(&mut self, node: &NodeName, log: &Log) {
        let mut found = BTreeMap::new();
        for (_, token) in log.tokens() {
            *found.entry(*token).or_insert(0) += 1;
        }
        if let Some(lost) = self.acknowledged.iter().find(|token| !found.contains_key(token)) {
            self.fail(Promise::Quorum, format!("{node} does not have the acknowledged token {lost}"));
        }
        if let Some((twice, _)) = found.iter().find(|(_, count)| **count > 1) {
            self.fail(Promise::Quorum, format!("{node} has token {twice} more than once"));
        }
    }

    /// A server's WAL against what the relay stored of the same timeline.
    pub(super) fn same_bytes(&mut self, node: &NodeName, log: &Log) {
        let Some(stored) = self.stored.get(&log.timeline) else { return };
        let common = stored.len().min(log.bytes.len());
        let same = stored.iter().zip(&log.bytes).take_while(|(a, b)| a == b).count();
        if same < common {
            let at = START.advanced(same as u64);
            self.fail(
                Promise::Bytes,
                format!("{node} and the relay differ at {at} of timeline {}", log.timeline),
            );
        }
    }
}
