//! The election: fence, elect, catch up, prepare, promote, verify, follow, marker. Writes are held throughout.

use std::cmp::Reverse;
use std::time::Duration;

use super::{
    Action, Agent, Election, EstablishStep, Fenced, Finding, Fired, NodeView, Now, Phase, Planned, Policy,
    Primary, Process, Promoted, Ready, RuleId, StartAs, State, Step, View, What, Why, establish, marker,
    marker_is_durable, steady,
};
use crate::failover::health::PrimaryVerdict;
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Durability, Election as Record, Floor, Follower, NodeName, Outcome, Role};

/// A running election, looked at once.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) state: &'a State,
    pub(super) policy: &'a Policy,
    /// Of `state`.
    pub(super) election: &'a Election,
    pub(super) now: Now,
}

impl Case<'_> {
    pub(super) fn advance(&self) -> Option<Fired> {
        if self.view.promised > self.state.term {
            // A state file from a backup: the relay obeys nothing below what it has promised.
            return self.fence_again(format!("the relay has promised term {}", self.view.promised));
        }
        match &self.election.step {
            Step::Checkpoint | Step::Drain | Step::ShutDown | Step::Settle => self.advance_in_peace(),
            Step::Fence => self.fenced().or_else(|| self.unfenced()),
            Step::Elect => self.elect(),
            Step::CatchUp { candidate } => self.catch_up(candidate),
            Step::Prepare { candidate } => self.prepare(candidate),
            Step::Promote { candidate } => self.promote(candidate),
            Step::Verify { candidate, found } => self.verify(candidate, *found),
            Step::Follow => self.follow(),
            Step::Marker => self.open(),
        }
    }

    /// E1. By acknowledgement, not by time.
    fn fenced(&self) -> Option<Fired> {
        let mut log = self.view.log.clone().filter(|_| self.view.confirmed >= self.state.term)?;
        // Without a quorum a relay may be asked alone that never heard of the last primary's timeline. What it has behind
        // that one's fork was given up then, and clients may have been told so.
        if let Some(fork) = self.state.primary.as_ref().and_then(|primary| primary.fork_of(log.timeline)) {
            (log.durable, log.verified) = (log.durable.min(fork), log.verified.min(fork));
        }
        let mut next = self.state.clone();
        if !next.quorums.is_empty() {
            let source = log.source.clone().unwrap_or_else(|| self.policy.instance.clone());
            next.floor = Some(Floor {
                timeline: log.timeline,
                end: log.verified,
                source: Some(source),
                log_term: log.term,
            });
        }
        let fenced = Fenced {
            timeline: log.timeline,
            durable: log.durable,
            verified: log.verified,
            upstream_end: self.view.wal.upstream_end,
            source: log.source,
        };
        let election = Election { fenced: Some(fenced), ..self.election.clone() };
        Fired::new(RuleId::E1, at(&next, election, Step::Elect, self.now))
    }

    /// E2, or W5 before it. How it comes about: (1) a relay's host is down; (2) the primary restarts, and an election begins;
    /// (3) the relays that are left can acknowledge, and are too few to promise. The old primary needs no promises, no more
    /// than after a restart that no election came between (S2). Nobody has taken its place, or the state would say so (E7);
    /// what was ever acknowledged is on its own disk, and was before any relay had it. A relay that has not heard of the
    /// term acknowledges in the name of one before, which the primary's setting has no more (P1), and no commit counts
    /// before enough have it from the new floor on (P3).
    fn unfenced(&self) -> Option<Fired> {
        if !self.is_unpromised() {
            return None;
        }
        if self.planned().is_some() && !self.is_given_up() {
            return self.take_back("too few relays promise the next term");
        }
        let (wal, primary) = (&self.view.wal, self.state.primary.as_ref()?);
        // By what the election began with, it would begin again.
        if matches!(self.view.verdict, PrimaryVerdict::Dead { .. }) || wal.timeline > primary.timeline {
            return None;
        }
        let held = if wal.timeline == primary.timeline { wal.verified } else { Lsn::INVALID };
        self.restore(held)
    }

    /// Too few relays have promised, and have had the time to.
    fn is_unpromised(&self) -> bool {
        self.view.log.is_none() && (self.is_given_up() || self.has_waited(self.policy.candidate_wait))
    }

    /// E3; E2 when there is nobody new and the old primary is back; without either, E3 for who has failed before.
    fn elect(&self) -> Option<Fired> {
        let fenced = self.fenced_at()?;
        if let Some(fired) = self.source_lost(fenced) {
            return Some(fired);
        }
        if self.planned().is_some() && !self.has_waited(self.policy.restore_timeout) {
            return self.elect_successor(fenced);
        }
        let waited = self.has_waited(self.policy.candidate_wait);
        let bearable = self.known_loss(fenced) <= self.policy.max_lost_bytes;
        if let Some(candidate) = self.candidate(waited).filter(|_| bearable) {
            return self.try_candidate(candidate);
        }
        if !waited {
            return None;
        }
        let failed = self.election.excluded.iter().find(|name| self.is_eligible(name));
        self.restore(fenced.verified).or_else(|| self.try_candidate(failed.filter(|_| bearable)?))
    }

    /// E3, W5 or E2: in a planned switchover nobody but the one that was prepared takes over, unless the old primary
    /// does not come back either. Once that is wanted back it writes WAL of its own, so there is no way back.
    fn elect_successor(&self, fenced: &Fenced) -> Option<Fired> {
        let Some(successor) = self.planned()?.successor.as_ref() else {
            return self.restore(fenced.verified);
        };
        let node = self.view.node(successor);
        let bearable = self.known_loss(fenced) <= self.policy.max_lost_bytes;
        if bearable && node.is_some_and(|n| self.is_fresh(n)) {
            return self.try_candidate(successor);
        }
        let lost = self.has_failed(successor) || node.is_none_or(|n| n.process == Process::Absent);
        let waited = self.has_waited(self.policy.candidate_wait);
        (lost || waited).then(|| format!("{successor} cannot take over")).and_then(|why| self.take_back(&why))
    }

    fn planned(&self) -> Option<&Planned> {
        self.election.planned.as_ref()
    }

    /// A planned switchover has failed, and its old primary is wanted back.
    fn is_given_up(&self) -> bool {
        self.planned().is_some_and(|planned| planned.successor.is_none())
    }

    /// W5.
    fn take_back(&self, why: &str) -> Option<Fired> {
        let election = self.election.clone().given_up(why);
        Fired::new(RuleId::W5, at(self.state, election, self.election.step.clone(), self.now))
    }

    fn try_candidate(&self, candidate: &NodeName) -> Option<Fired> {
        let election = Election { round: self.election.round.saturating_add(1), ..self.election.clone() };
        let step = Step::CatchUp { candidate: candidate.clone() };
        Fired::new(RuleId::E3, at(self.state, election, step, self.now))
    }

    fn candidate(&self, waited: bool) -> Option<&NodeName> {
        let wished = self.election.preferred.as_ref();
        let any = wished.is_none() || waited;
        let needed = self.fenced_at().map_or(Lsn::INVALID, |fenced| fenced.verified);
        let eligible = |n: &&NodeView<'_>| self.is_fresh(n) && (any || wished == Some(&n.node.name));
        best(self.view, self.state, needed, wished, self.view.nodes.iter().filter(eligible))
    }

    fn is_eligible(&self, name: &NodeName) -> bool {
        self.view.node(name).is_some_and(|n| self.follower(n).is_some())
    }

    /// It has not failed in this term.
    fn is_fresh(&self, node: &NodeView<'_>) -> bool {
        !self.has_failed(&node.node.name) && self.follower(node).is_some()
    }

    fn has_failed(&self, name: &NodeName) -> bool {
        self.election.excluded.contains(name)
    }

    pub(super) fn follower(&self, node: &NodeView<'_>) -> Option<&Follower> {
        follower(self.view, self.state, node).ok()
    }

    /// E2. Nobody was promoted, so the old primary still has the newest history; it gets the new term. `held`: by relays.
    fn restore(&self, held: Lsn) -> Option<Fired> {
        let primary = self.state.primary.as_ref()?;
        let node = self.view.node(&primary.node).filter(|n| n.is_up_as(Role::Primary))?;
        let facts = node.facts?;
        let unchanged = facts.system == primary.system && facts.timeline == primary.timeline;
        // A server that came back with less than it had sent has lost its disk's word.
        if !unchanged || facts.position < held {
            return None;
        }
        let mut next = self.state.clone();
        next.deposed.retain(|name| *name != primary.node);
        next.primary = Some(Primary {
            term: self.state.term,
            started_at: Some(facts.started_at.clone()),
            ..primary.clone()
        });
        next.acknowledged_by(self.policy.acknowledgers(node));
        let why = match self.planned() {
            Some(_) => format!("given up before anybody was promoted; {} is primary again", primary.node),
            None => "no standby could be promoted; the old primary is back".to_owned(),
        };
        Some(Fired {
            rule: RuleId::E2,
            next: establish::establishing(next, Why::Restore, EstablishStep::Prepare, self.now),
            concluded: Some(concluded(self.election, Outcome::Failed { why }, self.now)),
            left_behind: None,
        })
    }

    /// E4.
    fn catch_up(&self, candidate: &NodeName) -> Option<Fired> {
        let fenced = self.fenced_at()?;
        if let Some(fired) = self.source_lost(fenced) {
            return Some(fired);
        }
        let Some(follower) = self.view.node(candidate).and_then(|n| self.follower(n)) else {
            return self.next_candidate(candidate);
        };
        // Half a record behind the last whole one is shipped to nobody.
        if fenced.verified <= follower.flush && self.is_agreed(fenced) {
            let acknowledgers = self.view.node(candidate).and_then(|node| self.policy.acknowledgers(node));
            let election = Election { acknowledgers, ..self.election.clone() };
            let step = Step::Prepare { candidate: candidate.clone() };
            return Fired::new(RuleId::E4, at(self.state, election, step, self.now));
        }
        let too_slow = self.has_waited(self.policy.catch_up_timeout);
        if too_slow { self.next_candidate(candidate) } else { None }
    }

    /// The log that the election goes on with is where every later one finds it, under this term: before that, what is at
    /// its end may yet be superseded (figure 8 of Raft's paper).
    fn is_agreed(&self, fenced: &Fenced) -> bool {
        self.state.quorums.is_empty()
            || self.view.agreed.is_some_and(|agreed| (fenced.timeline, fenced.verified) <= agreed)
    }

    fn fenced_at(&self) -> Option<&Fenced> {
        self.election.fenced.as_ref()
    }

    /// E5.
    fn prepare(&self, candidate: &NodeName) -> Option<Fired> {
        let action = self.policy.prepare(self.state, candidate);
        let is_standby = self.view.node(candidate).is_some_and(|n| n.is_up_as(Role::Standby));
        if !is_standby || self.view.ledger.failures(&action) >= self.policy.attempts {
            return self.next_candidate(candidate);
        }
        if !self.is_prepared(candidate) {
            return None;
        }
        if !self.is_cleared(candidate) {
            return self.not_cleared(candidate);
        }
        let mut next = self.state.clone();
        // From now on it may be a primary, and if it is lost now it must not come back as one.
        next.depose(candidate);
        let step = Step::Promote { candidate: candidate.clone() };
        Fired::new(RuleId::E5, at(&next, self.election.clone(), step, self.now))
    }

    fn is_prepared(&self, candidate: &NodeName) -> bool {
        let action = self.policy.prepare(self.state, candidate);
        self.is_ready(candidate) || self.view.ledger.finding(&action).is_some()
    }

    /// It is the successor of a switchover, and was prepared before the drain for what is wanted now.
    fn is_ready(&self, candidate: &NodeName) -> bool {
        let acknowledgers = self.election.acknowledgers.clone();
        let needed = Ready { term: self.state.term, durability: self.policy.durability, acknowledgers };
        self.election.successor() == Some(candidate) && self.election.ready() == Some(&needed)
    }

    /// E11. Who has confirmed a term has sessions under it as far as is known, and when those ended is known for a term only
    /// that it has not confirmed: by the last word that it was given. A relay that has promised no later term gives its log
    /// to no election (`Members::recovery`), so the next goes on with another one's. What only the lost one has was never
    /// acknowledged: enough others promise that term.
    fn is_silent(&self, instance: &String) -> bool {
        self.view.waited.silent.contains(instance)
    }

    /// E11, while nobody else has what the election goes on with.
    fn source_lost(&self, fenced: &Fenced) -> Option<Fired> {
        let source = self.state.floor.as_ref()?.source.as_ref().filter(|source| self.is_silent(source))?;
        if self.is_agreed(fenced) {
            return None;
        }
        self.fence_again(format!("{source}, whose log the election goes on with, is not heard any more"))
    }

    fn is_cleared(&self, candidate: &NodeName) -> bool {
        let cleared = self.view.cleared.as_ref();
        cleared.is_some_and(|c| c.node == *candidate && c.round == self.election.round)
    }

    /// E12, E2 or E11. A session that the proxy cannot take from the candidate could write there once it is promoted. So
    /// another is tried, a new one or, when the old primary is not back, whoever failed longest ago. Without any the
    /// election waits (see [`Case::obstacle`]): held writes are better than two histories.
    fn not_cleared(&self, candidate: &NodeName) -> Option<Fired> {
        if let Some(instance) = self.view.waited.clearances.iter().find(|name| self.is_silent(name)) {
            return self.fence_again(format!("{instance} has confirmed the term, and is not heard any more"));
        }
        let waited = self.has_waited(self.policy.clear_timeout);
        let other = |n: &&NodeView<'_>| n.node.name != *candidate && self.follower(n).is_some();
        let mut others = self.view.nodes.iter().filter(other);
        let next = || {
            // An operator's wish is not tried again and again.
            let mut election = Election { preferred: None, ..self.excluding(candidate) };
            if !election.not_cleared.contains(candidate) {
                election.not_cleared.push(candidate.clone());
            }
            Fired::new(RuleId::E12, at(self.state, election, Step::Elect, self.now))
        };
        if waited && others.clone().any(|n| self.is_fresh(n)) {
            return next();
        }
        if !waited && !self.has_failed(candidate) {
            return None;
        }
        self.restore(self.fenced_at()?.verified)
            .or_else(|| others.next().filter(|_| waited).and_then(|_| next()))
    }

    /// E6, or E11: a candidate that was asked to promote may have done so unseen, with a timeline of its own. Only a
    /// higher term, which its relay connection can never have, makes it safe to choose another.
    fn promote(&self, candidate: &NodeName) -> Option<Fired> {
        let from = self.fenced_at()?.timeline;
        if let Some(Finding::Promoted(found)) =
            self.view.ledger.finding(&self.promote_action(candidate, from))
        {
            let step = Step::Verify { candidate: candidate.clone(), found: *found };
            return self.enter(RuleId::E6, step);
        }
        let lost = self.view.node(candidate).is_none_or(|n| n.is_lost(self.policy, self.now));
        let too_slow = self.has_waited(self.policy.promote_timeout);
        if !lost && !too_slow {
            return None;
        }
        let why = format!("{candidate} was lost while it was being promoted");
        self.fence_again(why)
    }

    /// E7. What does not fit stays here, with writes held: a primary that lacks acknowledged WAL is never opened.
    fn verify(&self, candidate: &NodeName, found: Promoted) -> Option<Fired> {
        let fenced = self.fenced_at()?;
        if self.mismatch(found).is_some() {
            let lost = self.view.node(candidate).is_none_or(|n| n.is_lost(self.policy, self.now));
            let why = format!("{candidate} was promoted, did not fit, and is gone");
            return if lost { self.fence_again(why) } else { None };
        }
        let mut election = self.election.clone();
        election.record.to = Some(candidate.clone());
        election.record.timeline = Some(found.timeline);
        election.record.switchpoint = found.switchpoint;
        let tail = found.switchpoint.map_or(0, |switchpoint| fenced.upstream_end.bytes_since(switchpoint));
        match self.state.durability {
            Durability::Quorum => election.record.unacknowledged_bytes = tail,
            Durability::Async => election.record.lost_bytes = tail,
        }
        let mut next = self.state.clone();
        next.deposed.retain(|name| name != candidate);
        // Before this no relay has followed it, so none has acknowledged.
        next.acknowledged_by(self.election.acknowledgers.clone());
        next.primary = Some(Primary {
            node: candidate.clone(),
            system: found.system,
            timeline: found.timeline,
            term: self.state.term,
            forks: self
                .state
                .primary
                .as_ref()
                .map_or_else(Vec::new, |p| p.forks_of_successor(found.switchpoint)),
            started_at: None,
        });
        Fired::new(RuleId::E7, at(&next, election, Step::Follow, self.now))
    }

    /// Why a promoted candidate is not what was expected.
    fn mismatch(&self, found: Promoted) -> Option<String> {
        let fenced = self.fenced_at()?;
        let expected = self.state.primary.as_ref().map(|p| p.system);
        if expected.is_some_and(|system| system != found.system) {
            return Some(format!("its system identifier is {}", found.system));
        }
        if found.timeline <= fenced.timeline {
            return Some(format!("its timeline {} does not follow {}", found.timeline, fenced.timeline));
        }
        match found.switchpoint {
            None => Some("it cannot tell where its timeline forked".to_owned()),
            Some(at) if at < fenced.verified => Some(format!(
                "its timeline forked at {at}, before {}, which may have been acknowledged",
                fenced.verified
            )),
            Some(_) => None,
        }
    }

    /// E8.
    fn follow(&self) -> Option<Fired> {
        let primary = self.state.primary.as_ref()?;
        if let Some(fired) = self.new_primary_lost() {
            return Some(fired);
        }
        let patience_over =
            self.state.durability == Durability::Async && self.has_waited(self.policy.follow_timeout);
        if !establish::relay_follows(self.view, primary) && !patience_over {
            return None;
        }
        self.enter(RuleId::E8, Step::Marker)
    }

    /// E9.
    fn open(&self) -> Option<Fired> {
        let primary = self.state.primary.as_ref()?;
        if let Some(fired) = self.new_primary_lost() {
            return Some(fired);
        }
        if !marker_is_durable(self.view, self.state, &primary.node) {
            return None;
        }
        Some(Fired {
            rule: RuleId::E9,
            // All the others have promised (E1).
            next: self.state.clone().opened().acknowledged_by_the_last(),
            concluded: Some(concluded(self.election, Outcome::Completed, self.now)),
            left_behind: None,
        })
    }

    fn new_primary_lost(&self) -> Option<Fired> {
        let primary = self.state.primary.as_ref()?;
        let lost = self.view.node(&primary.node).is_none_or(|n| n.is_lost(self.policy, self.now));
        let why = format!("{} was lost before writes opened", primary.node);
        if lost { self.fence_again(why) } else { None }
    }

    /// E10.
    fn next_candidate(&self, failed: &NodeName) -> Option<Fired> {
        Fired::new(RuleId::E10, at(self.state, self.excluding(failed), Step::Elect, self.now))
    }

    fn excluding(&self, failed: &NodeName) -> Election {
        let mut election = self.election.clone();
        election.excluded.retain(|name| name != failed);
        election.excluded.push(failed.clone());
        election
    }

    /// Why the election needs a person.
    pub(super) fn obstacle(&self) -> Option<String> {
        match &self.election.step {
            Step::Checkpoint | Step::Drain | Step::ShutDown | Step::Settle => None,
            Step::Fence => self.not_confirmed(),
            Step::Elect if self.planned().is_some() && !self.has_waited(self.policy.restore_timeout) => None,
            Step::Elect => self.nobody().or_else(|| self.all_have_failed()),
            Step::CatchUp { .. } => self.all_have_failed(),
            Step::Prepare { candidate } => {
                let waits = !self.is_cleared(candidate) && self.is_prepared(candidate);
                let waits = waits && self.has_waited(self.policy.clear_timeout);
                if waits { Some(self.in_use(candidate.as_str())) } else { self.all_have_failed() }
            }
            Step::Verify { candidate, found } => {
                self.mismatch(*found).map(|why| format!("{candidate} must not be opened: {why}"))
            }
            Step::Promote { .. } => None,
            Step::Follow => self.not_opened(EstablishStep::Follow),
            Step::Marker => self.not_opened(EstablishStep::Marker),
        }
    }

    fn not_opened(&self, step: EstablishStep) -> Option<String> {
        let obstacle = establish::obstacle_to_open(self.view, self.state, step);
        obstacle.filter(|_| self.has_waited(self.policy.open_timeout))
    }

    fn in_use(&self, candidates: &str) -> String {
        in_use(self.policy, &self.view.waited.clearances, candidates)
    }

    /// Whoever can be tried was, and is again: the same words all the time.
    fn all_have_failed(&self) -> Option<String> {
        let seen_since = self.election.record.started_at_ms.max(self.election.resumed_ms);
        let age = self.now.unix_ms.saturating_sub(seen_since);
        let young = u128::from(age) < self.policy.clear_timeout.as_millis();
        if young || self.election.excluded.is_empty() || self.view.nodes.iter().any(|n| self.is_fresh(n)) {
            return None;
        }
        let names = |nodes: &[NodeName]| nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
        Some(if self.election.not_cleared.is_empty() {
            format!("no standby can be promoted: {} failed", names(&self.election.excluded))
        } else {
            self.in_use(&names(&self.election.not_cleared))
        })
    }

    fn not_confirmed(&self) -> Option<String> {
        let term = self.state.term;
        let waited = &self.view.waited;
        let of_whom = |parts, instances: &[String]| of_whom(self.policy, parts, instances);
        let relay = self.view.log.is_none().then(|| of_whom(("relay", "relays"), &waited.promises));
        let proxy =
            (self.view.confirmed < term).then(|| of_whom(("proxy", "proxies"), &waited.confirmations));
        let missing: Vec<String> = relay.into_iter().chain(proxy).collect();
        let waits = !missing.is_empty() && self.has_waited(self.policy.clear_timeout);
        waits.then(|| {
            let missing = missing.join(" and ");
            format!("term {term} is not confirmed: {missing} may still use the old primary")
        })
    }

    fn nobody(&self) -> Option<String> {
        let fenced = self.fenced_at()?;
        if !self.has_waited(self.policy.candidate_wait * 3) {
            return None;
        }
        let loss = self.known_loss(fenced);
        Some(if loss > self.policy.max_lost_bytes {
            format!("{loss} bytes of WAL would be lost, {} are allowed", self.policy.max_lost_bytes)
        } else {
            "no standby can be promoted, and the old primary is not back".to_owned()
        })
    }

    pub(super) fn wanted(&self) -> Vec<Action> {
        match &self.election.step {
            Step::Checkpoint | Step::Drain | Step::ShutDown | Step::Settle => {
                self.wanted_in_peace().into_iter().collect()
            }
            Step::Verify { .. } => Vec::new(),
            Step::Fence => self.old_primary_start().filter(|_| self.is_unpromised()).into_iter().collect(),
            Step::Elect => {
                let waited = self.is_given_up() || self.has_waited(self.policy.candidate_wait);
                self.old_primary_start().filter(|_| waited).into_iter().collect()
            }
            Step::CatchUp { candidate } => {
                self.old_primary_start().filter(|_| self.has_failed(candidate)).into_iter().collect()
            }
            Step::Prepare { candidate } => {
                let due = self.has_failed(candidate) || self.has_waited(self.policy.clear_timeout);
                let old = self.old_primary_start().filter(|_| due);
                let prepare = (!self.is_ready(candidate)).then(|| self.policy.prepare(self.state, candidate));
                prepare.into_iter().chain(old).collect()
            }
            Step::Promote { candidate } => {
                let from = self.fenced_at().map(|f| f.timeline);
                from.map(|from| self.promote_action(candidate, from)).into_iter().collect()
            }
            // Its commit waits for the relay by itself, and is under way when that comes. Once: who fails again and again
            // is tried ever more seldom.
            Step::Follow => {
                let failed = |marker: &Action| self.view.ledger.failures(marker) > 0;
                self.marker().filter(|marker| !failed(marker)).into_iter().collect()
            }
            Step::Marker => self.marker().into_iter().collect(),
        }
    }

    /// With nobody to promote, or nobody who has not failed before, or without the promises for it, the old primary is the
    /// only hope: our agent starts it, for E2.
    fn old_primary_start(&self) -> Option<Action> {
        let node = self.view.node(&self.state.primary.as_ref()?.node)?;
        let startable = node.agent == Agent::Local && node.process == Process::Absent;
        startable.then(|| Action {
            term: self.state.term,
            node: node.node.name.clone(),
            what: What::Start { role: StartAs::ItIs },
        })
    }

    fn known_loss(&self, fenced: &Fenced) -> u64 {
        loss(self.state.durability, fenced.upstream_end, fenced.durable)
    }

    fn enter(&self, rule: RuleId, step: Step) -> Option<Fired> {
        Fired::new(rule, at(self.state, self.election.clone(), step, self.now))
    }

    fn fence_again(&self, why: String) -> Option<Fired> {
        steady::fence_again(self.view, self.state, self.election, why, self.now)
    }

    /// In this step.
    pub(super) fn has_waited(&self, limit: Duration) -> bool {
        // Another host's calendar, or this one's before it was set back: rather too soon than not before it is as late.
        let waited = self.now.unix_ms.abs_diff(self.election.since_ms);
        u128::from(waited) >= limit.as_millis()
    }

    fn marker(&self) -> Option<Action> {
        Some(marker(self.state.term, &self.state.primary.as_ref()?.node))
    }

    fn promote_action(&self, candidate: &NodeName, from: TimelineId) -> Action {
        Action { term: self.state.term, node: candidate.clone(), what: What::Promote { from } }
    }
}

/// `parts`: one, and several. Who is alone waits for itself.
fn of_whom(policy: &Policy, (one, several): (&str, &str), instances: &[String]) -> String {
    match instances {
        [] => format!("the {one} of {}", policy.instance),
        [only] => format!("the {one} of {only}"),
        [first @ .., last] => format!("the {several} of {} and {last}", first.join(", ")),
    }
}

/// Between two attempts no proxy is asked: then nobody is known to hold it up.
fn in_use(policy: &Policy, clearances: &[String], candidates: &str) -> String {
    if clearances.is_empty() && !policy.members.is_empty() {
        return format!(
            "nobody is promoted: not every proxy has said that no session uses {candidates} any more; they are asked again"
        );
    }
    let proxy = of_whom(policy, ("proxy", "proxies"), clearances);
    let does = if clearances.len() > 1 { "do" } else { "does" };
    format!(
        "nobody is promoted: {proxy} {does} not say that no session uses {candidates} any more; a restart of that \
         instance ends its sessions"
    )
}

/// Quorum: what relays do not hold was never acknowledged.
pub(super) fn loss(durability: Durability, upstream_end: Lsn, held: Lsn) -> u64 {
    match durability {
        Durability::Quorum => 0,
        Durability::Async => upstream_end.bytes_since(held),
    }
}

/// Why a node cannot take over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it is configured with no_failover")]
    NoFailover,
    #[error("it is in maintenance")]
    Maintenance,
    #[error("it is not up")]
    NotUp,
    #[error("it runs as a primary, and is none")]
    NoStandby,
    #[error("it belongs to another cluster")]
    Stranger,
    #[error("it does not stream from a relay")]
    DoesNotStream,
    #[error("it is on timeline {0}, not {1}")]
    Elsewhere(TimelineId, TimelineId),
    #[error("it holds WAL that was given up at {0}")]
    Stranded(Lsn),
}

/// The node as the relay sees it, when it may be promoted: a live standby of this cluster that streams from the relay on
/// the relay's timeline. One on another timeline either has not followed yet or never can; one that is refused, because
/// what it needs next is kept no more, has nothing to catch up with.
pub(super) fn follower<'a>(
    view: &'a View<'_>,
    state: &State,
    node: &NodeView<'_>,
) -> Result<&'a Follower, Unfit> {
    if node.node.no_failover {
        return Err(Unfit::NoFailover);
    }
    if state.is_in_maintenance(&node.node.name) {
        return Err(Unfit::Maintenance);
    }
    let facts = node.facts.filter(|_| node.health.state.is_up()).ok_or(Unfit::NotUp)?;
    if facts.role != Role::Standby {
        return Err(Unfit::NoStandby);
    }
    if state.primary.as_ref().is_some_and(|primary| primary.system != facts.system) {
        return Err(Unfit::Stranger);
    }
    let follower = view.wal.follower(&node.node.name).filter(|f| f.streams() && f.flush.is_valid());
    let follower = follower.ok_or(Unfit::DoesNotStream)?;
    if follower.timeline != view.wal.timeline {
        return Err(Unfit::Elsewhere(follower.timeline, view.wal.timeline));
    }
    let fork = state.primary.as_ref().and_then(|primary| primary.fork_of(follower.timeline));
    match fork.filter(|fork| *fork < follower.flush) {
        Some(fork) => Err(Unfit::Stranded(fork)),
        None => Ok(follower),
    }
}

/// Of those that are fit: whoever has all that is `needed`, or most of it; then by the operator's priority, the zone that
/// the primary was in, and how soon it has replayed what there is, in tenths of a second, where of all of them it is known
/// how fast they replay; then how little that is. The name is for two observers of the same world to choose the same.
pub(super) fn best<'a>(
    view: &View<'_>,
    state: &State,
    needed: Lsn,
    wished: Option<&NodeName>,
    fit: impl Iterator<Item = &'a NodeView<'a>> + Clone,
) -> Option<&'a NodeName> {
    let of = state.primary.as_ref().and_then(|primary| view.node(&primary.node));
    let zone = of.and_then(|n| n.node.zone.as_ref());
    let is_timed = fit.clone().all(|n| n.replay.is_some());
    let rank = |n: &&NodeView<'_>| {
        let follower = follower(view, state, n);
        let (flush, replay) = follower.map_or_else(|_| Default::default(), |f| (f.flush, f.replay));
        let near = zone.is_some() && n.node.zone.as_ref() == zone;
        let backlog = needed.bytes_since(replay.min(needed));
        let time = n.replay.filter(|_| is_timed).map_or(0, |speed| speed.time(backlog).as_millis() / 100);
        let name = Reverse(n.node.name.clone());
        (
            wished == Some(&n.node.name),
            flush.min(needed),
            n.node.priority,
            near,
            Reverse(time),
            Reverse(backlog),
            name,
        )
    };
    fit.max_by_key(rank).map(|n| &n.node.name)
}

pub(super) fn at(state: &State, election: Election, step: Step, now: Now) -> State {
    State { phase: Phase::Election(Box::new(election.entered(step, now.unix_ms))), ..state.clone() }
}

pub(super) fn concluded(election: &Election, outcome: Outcome, now: Now) -> Record {
    let mut election = election.clone();
    election.note_time(now.unix_ms);
    Record { outcome, ..election.record }
}

#[cfg(test)]
mod tests {
    use super::{Policy, in_use};
    use crate::failover::decide::Mode;
    use crate::topology::Durability;

    #[test]
    fn who_holds_a_candidate_up_is_named_where_it_is_known() {
        let check = |members: &[&str], clearances: &[&str], expected: &str| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let policy = Policy::new("a", Mode::Automatic, Durability::Quorum);
            let policy = Policy { members: owned(members), ..policy };
            let told = in_use(&policy, &owned(clearances), "pg2");
            let named = told.strip_prefix("nobody is promoted: ").and_then(|told| told.split_once(" sa"));
            assert_eq!(named.map(|(named, _)| named), Some(expected), "{told}");
        };
        check(&[], &[], "the proxy of a does not");
        check(&["a", "b", "c"], &["b"], "the proxy of b does not");
        check(&["a", "b", "c"], &["a", "b"], "the proxies of a and b do not");
        check(&["a", "b", "c"], &[], "not every proxy has");
    }
}
