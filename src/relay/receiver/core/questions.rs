//! Up to the stream, and at a timeline's end: what the upstream is asked, and where its answers lead.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::{Output, Phase, Receiver, Reply, Role, Stored};
use crate::pg::protocol::frontend;
use crate::pg::wal::{History, WalSegmentSize};
use crate::pg::{ErrorFields, Lsn, SqlState, TimelineId};
use crate::relay::store::Change;
use crate::topology::{Refusal, StreamEnd, term_named};

/// From this version on READ_REPLICATION_SLOT exists.
const READ_SLOT_SINCE: u32 = 15;

/// What IDENTIFY_SYSTEM and TIMELINE_HISTORY said.
#[derive(Debug)]
pub(super) struct Upstream {
    timeline: TimelineId,
    position: Lsn,
    history: History,
    history_known: bool,
    /// Histories still to be asked for.
    missing: VecDeque<TimelineId>,
    contact: Contact,
    /// Where our slot holds WAL, if that is known.
    reserved: Option<Lsn>,
}

/// Whether the store knew the cluster before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contact {
    First,
    /// If there is no log it was to begin anew (`relay::reset`): our slot stands where the old one ended, and what it
    /// holds may be gone.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Names,
    Identify,
    SegmentSize,
    CreateSlot,
    ReadSlot,
    History(TimelineId),
    Stream { from: Lsn },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Identify,
    Slot,
    Histories,
    Plan,
}

impl Receiver {
    pub(super) fn ask(&mut self, question: Question) {
        let slot = &self.config.slot;
        let timeline = self.stored.timeline;
        let command = match question {
            Question::Names => "SHOW synchronous_standby_names".to_owned(),
            Question::Identify => "IDENTIFY_SYSTEM".to_owned(),
            Question::SegmentSize => "SHOW wal_segment_size".to_owned(),
            // The form without parentheses is understood by every version.
            Question::CreateSlot => format!("CREATE_REPLICATION_SLOT \"{slot}\" PHYSICAL RESERVE_WAL"),
            Question::ReadSlot => format!("READ_REPLICATION_SLOT \"{slot}\""),
            Question::History(timeline) => format!("TIMELINE_HISTORY {timeline}"),
            Question::Stream { from } => match self.config.role {
                Role::Named => {
                    format!("START_REPLICATION SLOT \"{slot}\" PHYSICAL {from} TIMELINE {timeline}")
                }
                Role::Source { .. } | Role::Substitute { .. } => {
                    format!("START_REPLICATION PHYSICAL {from} TIMELINE {timeline}")
                }
            },
        };
        let mut out = BytesMut::new();
        frontend::query(&command, &mut out);
        self.outputs.push_back(Output::Send(out.freeze()));
        self.phase = Phase::Asking { question, reply: Reply::default() };
    }

    fn change(&mut self, change: Change, then: Then) {
        self.outputs.push_back(Output::Change(change));
        self.phase = Phase::Changing(then);
    }

    pub(super) fn answered(&mut self, question: Question, reply: &Reply) {
        if let Some(error) = reply.error() {
            return self.denied(question, error);
        }
        match question {
            Question::Names => self.names(reply),
            Question::Identify => self.identified(reply),
            Question::SegmentSize => self.segment_size(reply),
            Question::CreateSlot => self.slot_made(),
            Question::ReadSlot => {
                let timeline = self.upstream.as_ref().map(|upstream| upstream.timeline);
                if let (Some(upstream), true) = (&mut self.upstream, reply.timeline(2) == timeline) {
                    upstream.reserved = reply.lsn(1);
                }
                self.ask_histories();
            }
            Question::History(timeline) => self.history(timeline, reply),
            // The timeline ends exactly where we would begin: there is a result, but no stream.
            Question::Stream { .. } => self.timeline_ended(self.stored.durable, reply),
        }
    }

    fn denied(&mut self, question: Question, error: &ErrorFields) {
        let is_current = |t| self.upstream.as_ref().is_some_and(|upstream| upstream.timeline == t);
        match question {
            Question::CreateSlot if error.code == SqlState::DUPLICATE_OBJECT => self.slot_made(),
            // A number that was skipped, or a history that the server never had.
            Question::History(timeline)
                if error.code == SqlState::UNDEFINED_FILE && !is_current(timeline) =>
            {
                self.ask_histories();
            }
            _ => self.fail(error),
        }
    }

    /// Who prepares a server for a term names the relays of that, and then ends the streams of terms before
    /// (`failover/execute`). What it writes from then on is not ours before we have promised that term: under the old one
    /// we might take it for agreed, and ship it.
    fn names(&mut self, reply: &Reply) {
        let Some(setting) = reply.setting() else {
            return self.lose("SHOW synchronous_standby_names was not answered".to_owned());
        };
        let own = self.config.term;
        match term_named(setting).filter(|named| *named > own) {
            Some(named) => {
                // No fault: it will be heard of.
                self.lose(format!("it was prepared for term {named}, and this is a relay of {own}"));
            }
            None => self.ask(Question::Identify),
        }
    }

    fn identified(&mut self, reply: &Reply) {
        let (Some(system), Some(timeline), Some(position)) =
            (reply.system(0), reply.timeline(1), reply.lsn(2))
        else {
            return self.lose("IDENTIFY_SYSTEM was not answered".to_owned());
        };
        if let Some(own) = self.stored.system.filter(|own| *own != system) {
            return self.refuse(format!("system identifier {system} instead of {own}: another cluster"));
        }
        if let Role::Source { timeline: elected } = self.config.role
            && timeline != elected
        {
            return self.lose(format!("it is on timeline {timeline}, not on {elected} any more, or not yet"));
        }
        if self.config.role != Role::Named && !self.stored.durable.is_valid() {
            return self.refuse("a log begins with WAL of the primary only".to_owned());
        }
        let contact = if self.stored.system.is_none() { Contact::First } else { Contact::Again };
        self.stored.system = Some(system);
        self.upstream_end = self.upstream_end.max(position);
        self.upstream = Some(Upstream {
            timeline,
            position,
            history: History::without_ancestors(timeline),
            // The first timeline has none.
            history_known: timeline.0 <= 1,
            missing: VecDeque::new(),
            contact,
            reserved: None,
        });
        if self.slot_made && contact == Contact::Again {
            self.ask_histories();
        } else {
            self.ask(Question::SegmentSize);
        }
    }

    fn segment_size(&mut self, reply: &Reply) {
        let Some(size) = reply.setting().and_then(WalSegmentSize::parse_setting) else {
            return self.lose("SHOW wal_segment_size was not answered".to_owned());
        };
        if size == self.stored.segment_size && self.stored.durable.is_valid() {
            return match self.config.role {
                Role::Named => self.ask(Question::CreateSlot),
                Role::Source { .. } | Role::Substitute { .. } => self.ask_histories(),
            };
        }
        if self.stored.durable.is_valid() {
            let own = self.stored.segment_size;
            return self.refuse(format!("WAL segments of {size} instead of {own}"));
        }
        self.stored.segment_size = size;
        let system = self.stored.system.expect("set when the upstream identified itself");
        self.change(Change::Adopt { system, segment_size: size }, Then::Slot);
    }

    fn slot_made(&mut self) {
        self.slot_made = true;
        let is_first = self.upstream.as_ref().is_some_and(|upstream| upstream.contact == Contact::First);
        let empty = !self.stored.durable.is_valid();
        if empty && is_first && self.config.upstream_major >= READ_SLOT_SINCE {
            self.ask(Question::ReadSlot);
        } else {
            self.ask_histories();
        }
    }

    /// The upstream's own history comes first and always: one with the same number and another content is
    /// another timeline.
    fn ask_histories(&mut self) {
        let Some(upstream) = &mut self.upstream else { return };
        if !upstream.history_known {
            let timeline = upstream.timeline;
            return self.ask(Question::History(timeline));
        }
        match upstream.missing.pop_front() {
            Some(timeline) => self.ask(Question::History(timeline)),
            None => self.plan(),
        }
    }

    fn history(&mut self, timeline: TimelineId, reply: &Reply) {
        let Some(content) = reply.bytes(1).cloned() else {
            return self.lose(format!("TIMELINE_HISTORY {timeline} was not answered"));
        };
        let history = match History::parse(timeline, &content) {
            Ok(history) => history,
            Err(error) => return self.refuse(error.to_string()),
        };
        let stored = self.stored.histories.get(&timeline);
        let is_new = stored.is_none_or(|stored| *stored != content);
        let is_believed = !matches!(self.config.role, Role::Substitute { .. });
        // A candidate that is gone may have told of a timeline of its own under this number.
        let is_another = is_new && stored.is_some() && !(is_believed && self.stored.is_ahead(timeline));
        if is_another {
            let why = format!("its history of timeline {timeline} is not the one stored: another branch");
            return match self.own_history().and_then(|own| own.branches_off(&history)) {
                Some(fork) => self.refuse_for(why, Refusal::Branched { theirs: timeline, fork }),
                None => self.refuse(why),
            };
        }
        if let Some(upstream) = self.upstream.as_mut().filter(|upstream| upstream.timeline == timeline) {
            if is_believed {
                upstream.missing = missing_histories(&history, &self.stored);
            }
            upstream.history = history;
            upstream.history_known = true;
        }
        if is_new && is_believed {
            self.stored.histories.insert(timeline, content.clone());
            self.change(Change::KeepHistory { timeline, content }, Then::Histories);
        } else {
            self.ask_histories();
        }
    }

    pub(super) fn changed(&mut self) {
        let Phase::Changing(then) = self.phase else { return };
        match then {
            Then::Identify => self.ask(Question::Identify),
            Then::Slot => self.ask(Question::CreateSlot),
            Then::Histories => self.ask_histories(),
            Then::Plan => self.plan(),
        }
    }

    /// Everything about the upstream is known: where to go on?
    fn plan(&mut self) {
        let Some(upstream) = &self.upstream else { return };
        let size = self.stored.segment_size;
        if !self.stored.durable.is_valid() {
            let start = size.segment_start(upstream.reserved.unwrap_or(upstream.position));
            let timeline = upstream.timeline;
            (self.stored.timeline, self.stored.durable) = (timeline, start);
            return self.change(Change::Begin { timeline, start }, Then::Plan);
        }
        let (own, theirs) = (self.stored.timeline, upstream.timeline);
        let fork = self.own_history().and_then(|history| history.branches_off(&upstream.history));
        if let Some(fork) = fork.filter(|(timeline, _)| *timeline != own) {
            let why = format!("its timeline {theirs} does not descend from ours, {own}");
            return self.refuse_for(why, Refusal::Branched { theirs, fork });
        }
        if !upstream.history.contains(own) {
            return self.refuse(format!("its timeline {theirs} has nothing in common with ours, {own}"));
        }
        let next = match self.config.role {
            Role::Named | Role::Source { .. } => upstream.history.next(own),
            // What it says of later timelines is not believed.
            Role::Substitute { .. } => self.known_next(),
        };
        match next {
            Some((next, switchpoint)) if switchpoint <= self.stored.durable => self.follow(next, switchpoint),
            _ => self.ask(Question::Stream { from: self.begin() }),
        }
    }

    /// The start of a segment. A log in doubt goes back to one in front of what has to be shown, or nothing would be
    /// compared: it may end just where a segment does, or in a later one than the upstream's.
    fn begin(&self) -> Lsn {
        let Stored { segment_size, oldest, to_show, .. } = self.stored;
        let whole = self.whole();
        let shows = matches!(self.config.role, Role::Named | Role::Source { .. });
        let Some(to_show) = to_show.filter(|_| shows) else { return segment_size.segment_start(whole) };
        let compared = Lsn(whole.min(to_show).0.saturating_sub(1));
        // There is nothing of this timeline before.
        let fork = self.own_history().and_then(|history| history.begin()).unwrap_or(Lsn::INVALID);
        segment_size.segment_start(compared.max(fork).max(oldest.unwrap_or(whole)))
    }

    /// Where the store's last whole record ends, at which its log would end after a restart. With half a record behind
    /// it, which may be as long as many segments, it is asked for all of that again: its slot holds it, and its checksum
    /// needs it.
    pub(super) fn whole(&self) -> Lsn {
        let Stored { segment_size, durable, verified, .. } = self.stored;
        if !verified.is_valid() {
            return segment_size.segment_start(durable);
        }
        let fork = self.own_history().and_then(|history| history.begin());
        verified.max(fork.unwrap_or(Lsn::INVALID))
    }

    /// Of the timeline that the log is on; `None`: what is stored of it is none.
    fn own_history(&self) -> Option<History> {
        let timeline = self.stored.timeline;
        match self.stored.histories.get(&timeline) {
            Some(content) => History::parse(timeline, content).ok(),
            None => Some(History::without_ancestors(timeline)),
        }
    }

    /// With a substitute: what comes behind our timeline in the history of the newest one that is known.
    pub(super) fn known_next(&self) -> Option<(TimelineId, Lsn)> {
        let Role::Substitute { known } = self.config.role else { return None };
        let history = History::parse(known, self.stored.histories.get(&known)?).ok()?;
        history.next(self.stored.timeline)
    }

    /// Our timeline ended at `switchpoint`, and we have all of it. Half a record beyond is what the old primary
    /// did not finish. Whole records beyond may hold commits that were promised.
    fn follow(&mut self, next: TimelineId, switchpoint: Lsn) {
        let Stored { timeline, verified, .. } = self.stored;
        let promised = self.config.promised.of(timeline, verified);
        if promised > switchpoint {
            let lost = promised.bytes_since(switchpoint);
            return self.refuse(format!(
                "timeline {next} forked at {switchpoint}, {lost} bytes before the durable end of timeline {timeline}"
            ));
        }
        if verified > switchpoint {
            self.outputs.push_back(Output::LeftBehind { timeline, switchpoint, verified });
        }
        self.stored.timeline = next;
        self.stored.durable = switchpoint;
        self.stored.verified = verified.min(switchpoint);
        // What they have replayed beyond is nothing of what is there on the new timeline.
        self.replayed = self.replayed.min(switchpoint);
        self.change(Change::Follow { timeline: next, switchpoint }, Then::Plan);
    }

    /// The upstream has finished streaming our timeline and says what comes next; its histories may have
    /// changed since we asked.
    pub(super) fn timeline_ended(&mut self, end: Lsn, reply: &Reply) {
        if let Some(error) = reply.error() {
            return self.fail(error);
        }
        if !reply.has_row() {
            return self.lose("the upstream ended the stream".to_owned());
        }
        let (Some(next), Some(switchpoint)) = (reply.timeline(0), reply.lsn(1)) else {
            return self.lose("the end of the timeline was not explained".to_owned());
        };
        if switchpoint > end || next <= self.stored.timeline {
            return self
                .refuse(format!("timeline {next} begins at {switchpoint}, but WAL came up to {end} only"));
        }
        if matches!(self.config.role, Role::Substitute { .. }) {
            return self.end(StreamEnd::TimelineEnd { next, switchpoint });
        }
        self.stored.durable = end;
        self.change(Change::Settle, Then::Identify);
    }
}

/// Ancestors of the upstream's timeline whose history is not stored, or may be another one's; beside them the skipped
/// numbers, since a stock standby will ask for every number above its own.
fn missing_histories(history: &History, stored: &Stored) -> VecDeque<TimelineId> {
    /// A cluster with more promotions behind it than this hands on the histories of its ancestors only.
    const MAX_SKIPPED: u32 = 1000;
    let current = history.timeline();
    let above = stored.timeline.0.max(1);
    let every_number = (above + 1..current.0).take(MAX_SKIPPED as usize).map(TimelineId);
    let ancestors = history.ancestors().iter().map(|entry| entry.timeline);
    let mut missing: Vec<TimelineId> = ancestors
        .chain(every_number)
        .filter(|timeline| timeline.0 > 1)
        .filter(|timeline| stored.is_ahead(*timeline) || !stored.histories.contains_key(timeline))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing.into()
}
