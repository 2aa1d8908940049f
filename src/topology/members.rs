//! Several instances as one: what all relays and all proxies say together. PURE.
//!
//! Every instance asks each of the others, over and over, how it stands ([`Member`]). Two things follow from the answers.
//! What the control plane of the leading instance goes by: the whole of the evidence, and acknowledgements of which there
//! must be enough. And whether this instance may still believe the directive that it obeys: it is *vouched for* while, of
//! the relays, so many have promised nothing later that the rest are too few for an election. So a proxy that is cut off
//! stops by itself, and who leads knows when: [`VOUCH`] after the last such word that anybody gave it.
//!
//! Nothing here compares clocks of two hosts, but for how fast they run.

mod waited;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Acknowledgers, AlarmKind, ClientEvidence, Deed, Directive, Draining, Follower, Hearing, NodeName,
    Position, ProxyStatus, Quorum, Term, Told, Upstream, WalStatus,
};
use crate::pg::{Lsn, TimelineId};

pub use self::waited::{Waited, Waiting};

/// How long the word of enough relays that there is no later term is good for, from when they were asked.
pub const VOUCH: Duration = Duration::from_secs(2);
/// So long an answer may wait for something to tell, at the console of who gives it.
const ANSWER_WAITS: Duration = Duration::from_millis(250);
/// While a question waits, the answer before is as old as both, and as they are on their way.
pub const ANSWER_AGE: Duration = Duration::from_millis(750);
/// How much longer who leads waits: two clocks that run 5 % too fast and too slow are 210 ms apart by then, and whoever is
/// to stop looks at its clock every 100 ms.
const VOUCH_MARGIN: Duration = Duration::from_millis(400);

/// How one instance stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub instance: String,
    /// What it obeys.
    pub directive: Arc<Directive>,
    pub wal: Arc<WalStatus>,
    pub proxy: Arc<ProxyStatus>,
    /// The nodes whose servers it starts and stops.
    pub local: Vec<NodeName>,
    /// Those of them that its agent is at work on.
    pub at_work: Vec<NodeName>,
    /// What it has done to them of late, oldest first.
    pub deeds: Vec<Deed>,
    /// When each of the others that it knows was last told of an earlier promise than `wal.promised`. Who was told nothing
    /// yet may have been told by the process before this one, up to its start.
    pub last_words: BTreeMap<String, Instant>,
    /// Since when it speaks: whom it does not know was told nothing since then.
    pub speaks_since: Instant,
    /// All instances of the cluster by its configuration, in order.
    pub instances: Vec<String>,
}

/// A member's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// When the question left: what is in the answer held then or later.
    pub asked_at: Instant,
    pub member: Arc<Member>,
}

/// All instances of the cluster, as this one sees them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members {
    /// This instance; empty while it is alone.
    pub own: String,
    /// The others, those included that were never heard.
    pub others: BTreeMap<String, Option<Heard>>,
    /// This instance's own ([`Member::last_words`]).
    pub last_words: BTreeMap<String, Instant>,
    /// What the relay had promised as of `last_words`: of who was told of it before a later promise they say nothing yet.
    pub last_words_under: Term,
    /// [`Member::speaks_since`]; `None`: it does not yet.
    pub speaks_since: Option<Instant>,
}

/// One relay's log, which an election can go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Whose it is; `None`: this instance's own.
    pub source: Option<String>,
    /// In which it counts.
    pub term: Term,
    pub timeline: TimelineId,
    pub durable: Lsn,
    /// The end of the last whole record.
    pub verified: Lsn,
}

impl Members {
    pub fn alone() -> Members {
        Members::default()
    }

    pub fn is_alone(&self) -> bool {
        self.others.is_empty()
    }

    /// What the process before this one had heard; whoever was heard since then is known better.
    pub fn inherit(&mut self, heard: impl IntoIterator<Item = (String, Heard)>) {
        for (name, heard) in heard {
            if let Some(nobody @ None) = self.others.get_mut(&name) {
                *nobody = Some(heard);
            }
        }
    }

    /// The names of all, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.others.keys().cloned().chain([self.own.clone()]).collect();
        names.sort_unstable();
        names
    }

    /// Who may be believed to be as it says: heard of late.
    fn present(&self, now: Instant) -> impl Iterator<Item = &Member> {
        let is_new = move |heard: &&Heard| now.saturating_duration_since(heard.asked_at) < VOUCH;
        self.heard().filter(is_new).map(|heard| &*heard.member)
    }

    /// With what its relay was told.
    fn present_and_told(&self, now: Instant) -> impl Iterator<Item = (&Member, Option<Told>)> {
        let is_new = move |heard: &&Heard| now.saturating_duration_since(heard.asked_at) < VOUCH;
        self.heard().filter(is_new).map(move |Heard { asked_at, member }| {
            let told = told(&member.wal, *asked_at);
            (&**member, told)
        })
    }

    /// The last word that any relay was told of how far the primary is: then or before. Whoever is gone may have heard more
    /// than all others.
    fn told(&self, own: &WalStatus) -> Option<Told> {
        let theirs = self.heard().map(|heard| heard.member.wal.told);
        theirs.chain([own.told]).flatten().max_by_key(|told| told.at)
    }

    /// How far the log is that an election would go on with, for all that was ever heard.
    fn longest(&self, own: &WalStatus) -> (Term, TimelineId, Lsn) {
        let theirs = self.heard().map(|heard| place(&heard.member.wal));
        theirs.fold(place(own), Ord::max)
    }

    fn heard(&self) -> impl Iterator<Item = &Heard> {
        self.others.values().flatten()
    }

    /// Of its relay, as it was last heard. What was promised and what is durable stays so.
    fn relay<'a>(&'a self, own: &'a WalStatus, instance: &str) -> Option<&'a WalStatus> {
        if instance == self.own {
            return Some(own);
        }
        Some(&*self.others.get(instance)?.as_ref()?.member.wal)
    }

    /// The highest term that any relay has promised.
    pub fn promised_by_any(&self, own: &WalStatus) -> Term {
        let theirs = self.heard().map(|heard| heard.member.wal.promised).max();
        theirs.unwrap_or_default().max(own.promised)
    }

    /// The highest term that enough relays have promised: who has not cannot acknowledge a commit any more without one of
    /// those, nor take part in another election without them.
    pub fn promised(&self, own: &WalStatus, quorums: &[Acknowledgers]) -> Term {
        let promise = |name: &String| self.relay(own, name).map_or(Term(0), |relay| relay.promised);
        promised_by_enough(quorums, promise).unwrap_or(own.promised)
    }

    /// Whether nobody is vouched for under a term before `term` any more: enough relays of each set have promised it, and
    /// all proxies have confirmed it, or stopped by themselves. Who is in nobody's list of instances has gone, by the
    /// operators' word.
    pub fn is_settled(
        &self,
        now: Instant,
        (own, wal): (&ProxyStatus, &WalStatus),
        quorums: &[Acknowledgers],
        term: Term,
    ) -> bool {
        let promise = |name: &String| match self.relay(wal, name) {
            Some(relay) => relay.promised,
            None if self.is_listed(name) => Term(0),
            None => term,
        };
        let promised = promised_by_enough(quorums, promise).unwrap_or(wal.promised);
        let confirms =
            |(_, theirs): (_, Option<&ProxyStatus>)| theirs.is_some_and(|theirs| theirs.confirmed >= term);
        promised >= term
            && own.confirmed >= term
            && self.proxies_in_use(now, wal, promised, term).into_iter().all(confirms)
    }

    /// By anybody.
    fn is_listed(&self, instance: &String) -> bool {
        self.others.contains_key(instance)
            || self.heard().any(|heard| heard.member.instances.contains(instance))
    }

    /// With whose log an election of `term` goes on; `None` until enough relays have promised it.
    pub fn recovery(&self, own: &WalStatus, quorums: &[Acknowledgers], term: Term) -> Option<Log> {
        if self.promised(own, quorums) < term {
            return None;
        }
        let log = |source: Option<&String>, wal: &WalStatus| {
            let log = Log {
                source: source.cloned(),
                term: wal.log_term,
                timeline: wal.timeline,
                durable: wal.durable,
                verified: wal.verified,
            };
            (Position { term: wal.log_term, end: (wal.timeline, wal.durable) }, log)
        };
        let theirs = self.others.iter().filter_map(|(name, heard)| {
            let wal = &heard.as_ref()?.member.wal;
            (wal.promised >= term).then(|| log(Some(name), wal))
        });
        let ours = (own.promised >= term).then(|| log(None, own));
        // Its own first where it is as good: nothing has to be fetched.
        theirs.chain(ours).max_by_key(|(position, _)| *position).map(|(_, log)| log)
    }

    /// Up to where enough of the relays that the primary's setting names have the WAL of the directive's term durably, those
    /// alone counted that have its floor; `None` while that is nowhere. What one has behind the floor, and not from this
    /// term's primary, is of an earlier term, and may be in nobody's history.
    pub fn durable(&self, own: &WalStatus, directive: &Directive) -> Option<(TimelineId, Lsn)> {
        let (floor, relays) = (directive.floor.as_ref()?, directive.quorums.last()?);
        let counts = |wal: &&WalStatus| wal.log_term == directive.term && wal.timeline >= floor.timeline;
        let ends = relays.relays.iter().filter_map(|name| self.relay(own, name)).filter(counts);
        let end = |wal: &WalStatus| match (wal.timeline, wal.durable) {
            end if Some(wal.timeline) == directive.timeline => end,
            end => end.min((floor.timeline, floor.end)),
        };
        relays.quorum().durable(ends.map(end))
    }

    /// Up to when it is certain that nobody was promoted in a later term than the directive's; `None`: it is not. By the
    /// relays that acknowledge: those before them may have been dropped since, in the same term, and an election that was
    /// not heard of may have done without them.
    pub fn vouched_until(&self, now: Instant, own: &WalStatus, directive: &Directive) -> Option<Instant> {
        let asked_at = self.vouched_at(now, own, directive)?;
        Some(asked_at + VOUCH).filter(|until| *until > now)
    }

    /// When those were asked, however long ago, who made that certain; `None`: it never was, or is not so any more.
    pub fn vouched_at(&self, now: Instant, own: &WalStatus, directive: &Directive) -> Option<Instant> {
        if self.is_alone() {
            return Some(now);
        }
        let by = |relays: &Acknowledgers| {
            let word = |name: &String| {
                if *name == self.own {
                    return (own.promised <= directive.term).then_some(now);
                }
                let heard = self.others.get(name)?.as_ref()?;
                (heard.member.wal.promised <= directive.term).then_some(heard.asked_at)
            };
            let mut words: Vec<Instant> = relays.relays.iter().filter_map(word).collect();
            words.sort_unstable_by(|a, b| b.cmp(a));
            // One more than an election can do without.
            let needed = relays.relays.len() - relays.quorum().recruits() + 1;
            words.into_iter().nth(needed - 1)
        };
        directive.quorums.last().and_then(by)
    }

    /// Whether an instance that does not confirm `term` has certainly stopped by itself: enough relays have promised, and
    /// the last that any of those told it of an earlier term is too long ago.
    fn has_lapsed(&self, now: Instant, own: &WalStatus, instance: &str, term: Term) -> bool {
        if own.promised >= term && self.last_words_under < term {
            return false;
        }
        let theirs = self.heard().map(|heard| &*heard.member).filter(|member| member.wal.promised >= term);
        let theirs = theirs.map(|member| (&member.last_words, Some(member.speaks_since)));
        let ours = (own.promised >= term).then_some((&self.last_words, self.speaks_since));
        let mut last = theirs.chain(ours).map(|(words, since)| words.get(instance).copied().or(since));
        last.all(|at| at.is_some_and(|at| now.saturating_duration_since(at) >= VOUCH + VOUCH_MARGIN))
    }

    /// Instances that others know and this one does not, while the configurations are not the same. They are not heard, and
    /// may use a primary because somebody tells them that they may.
    fn unknown(&self) -> BTreeSet<&String> {
        let known = |name: &&String| **name == self.own || self.others.contains_key(*name);
        let told = self.heard().flat_map(|heard| heard.member.last_words.keys());
        told.filter(|name| !known(name)).collect()
    }

    /// What all proxies say together about `term`. Who has stopped by itself has nothing in use.
    pub fn proxies(
        &self,
        now: Instant,
        (own, wal): (&ProxyStatus, &WalStatus),
        quorums: &[Acknowledgers],
        term: Term,
    ) -> ProxyStatus {
        let mut all = own.clone();
        for (_, theirs) in self.proxies_in_use(now, wal, self.promised(wal, quorums), term) {
            let Some(theirs) = theirs else {
                all = ProxyStatus { confirmed: Term(0), cleared: None, drained: None, ..all };
                continue;
            };
            all.confirmed = all.confirmed.min(theirs.confirmed);
            all.cleared = all.cleared.filter(|candidate| theirs.cleared.as_ref() == Some(candidate));
            all.drained = match (all.drained, &theirs.drained) {
                (Some(mut ours), Some(theirs)) if ours.round == theirs.round => {
                    ours.busy += theirs.busy;
                    for (reason, count) in &theirs.pinned {
                        *ours.pinned.entry(reason.clone()).or_default() += count;
                    }
                    Some(ours)
                }
                _ => None,
            };
            all.held += theirs.held;
            if all.draining == Draining::default() {
                all.draining = theirs.draining;
            }
        }
        for member in self.present(now) {
            member.proxy.evidence.iter().for_each(|evidence| add_evidence(&mut all.evidence, evidence));
        }
        all
    }

    /// The others, and what the proxy of each says, if it was ever heard; without those that have stopped by themselves.
    /// `promised`: by enough relays.
    fn proxies_in_use(
        &self,
        now: Instant,
        wal: &WalStatus,
        promised: Term,
        term: Term,
    ) -> Vec<(&String, Option<&ProxyStatus>)> {
        let fenced = promised >= term;
        let known = self.others.iter().map(|(name, heard)| (name, heard.as_ref()));
        let all = known.chain(self.unknown().into_iter().map(|name| (name, None)));
        let all = all.map(|(name, heard)| (name, heard.map(|heard| &*heard.member.proxy)));
        let in_use = |(name, theirs): &(&String, Option<&ProxyStatus>)| {
            let confirmed = theirs.map_or(Term(0), |theirs| theirs.confirmed);
            confirmed >= term || !fenced || !self.has_lapsed(now, wal, name, term)
        };
        all.filter(in_use).collect()
    }

    /// Whether all the others are heard, and go by the same list of instances as this one.
    pub fn are_agreed(&self, now: Instant) -> bool {
        let names = self.names();
        self.present(now).filter(|member| member.instances == names).count() == self.others.len()
    }

    /// When so many relays were asked last that one of them has whatever was acknowledged before; `None`: they never were.
    pub fn all_commits_at(&self, now: Instant, directive: &Directive) -> Option<Instant> {
        if self.is_alone() {
            return Some(now);
        }
        let relays = directive.quorums.last()?;
        let asked_at = |name: &String| match *name == self.own {
            true => Some(now),
            false => Some(self.others.get(name)?.as_ref()?.asked_at),
        };
        let mut asked: Vec<Instant> = relays.relays.iter().filter_map(asked_at).collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        asked.into_iter().nth(relays.relays.len() - relays.quorum().acks())
    }

    /// When another instance was asked last that then obeyed the same; `now` if there is none.
    pub fn obeyed_at(&self, now: Instant, directive: &Directive) -> Option<Instant> {
        if self.is_alone() {
            return Some(now);
        }
        let obeying = self.heard().filter(|heard| *heard.member.directive == *directive);
        obeying.map(|heard| heard.asked_at).max()
    }

    /// What all relays say together. `durable` is the quorum's, where the directive lets it be known.
    pub fn wal(&self, now: Instant, own: &WalStatus, directive: &Directive) -> WalStatus {
        let mut all = own.clone();
        all.promised = self.promised(own, &directive.quorums);
        all.told = self.told(own);
        let (last, longest) = (all.told, self.longest(own));
        // While nobody may write, whoever was primary last has told enough, and who lacks nothing needs no word.
        let hearing = |wal: &WalStatus, told: Option<Told>| match directive.writable() {
            Some(_) => told.filter(|told| told.term == directive.term),
            None if place(wal) == longest => last.or(told),
            None => told,
        };
        let hearing =
            |wal: &WalStatus, told| hearing(wal, told).map_or(Hearing::Never, |told| Hearing::At(told.at));
        let hears = hearing(own, own.told);
        all.followers.iter_mut().for_each(|follower| follower.hearing = hears);
        for (member, told) in self.present_and_told(now) {
            let wal = &*member.wal;
            if (wal.log_term, wal.timeline) > (all.log_term, all.timeline) {
                (all.log_term, all.timeline, all.verified) = (wal.log_term, wal.timeline, wal.verified);
            } else if wal.timeline == all.timeline {
                all.verified = all.verified.max(wal.verified);
            }
            all.system = all.system.or(wal.system);
            // Behind the end of an earlier term's stream there may be what was thrown away since.
            if member.directive.term == directive.term {
                all.received = all.received.max(wal.received);
                all.upstream_end = all.upstream_end.max(wal.upstream_end);
                if evidence_of_life(&wal.upstream) > evidence_of_life(&all.upstream) {
                    all.upstream = wal.upstream.clone();
                }
            }
            all.oldest = if all.oldest.is_valid() { all.oldest.min(wal.oldest) } else { wal.oldest };
            let hearing = hearing(wal, told);
            let followers = wal.followers.iter().map(|theirs| Follower { hearing, ..theirs.clone() });
            followers.for_each(|follower| add_follower(&mut all.followers, follower));
            if all.archive.is_none() {
                all.archive.clone_from(&wal.archive);
            }
        }
        // What a relay that is gone has heard of this log's end is still so. Of one that was left it says nothing.
        let newest = (all.log_term, all.timeline);
        let of_newest = self.heard().map(|heard| &heard.member.wal);
        let of_newest = of_newest.filter(|wal| (wal.log_term, wal.timeline) >= newest);
        all.upstream_end =
            of_newest.map(|wal| wal.upstream_end).max().max(Some(all.upstream_end)).unwrap_or_default();
        for follower in &mut all.followers {
            follower.count_lag_from(now, all.upstream_end);
        }
        // A standby can still get what it lacks from the others.
        let lost_elsewhere = |object: &str| {
            let lost = |alarm: &super::Alarm| {
                alarm.lasts() && alarm.kind == AlarmKind::LostSlot && alarm.object == object
            };
            self.present(now).all(|member| member.wal.alarms.iter().any(lost))
        };
        let keeps =
            |alarm: &&super::Alarm| alarm.kind != AlarmKind::LostSlot || lost_elsewhere(&alarm.object);
        all.alarms = Arc::new(own.alarms.iter().filter(keeps).cloned().collect());
        if let Some((_, durable)) = self.durable(own, directive) {
            all.durable = durable;
        }
        all
    }

    /// The other instances that are heard, and of those, who hears WAL from `node`: whose word speaks for its life.
    pub fn who_hears(&self, now: Instant, node: &NodeName) -> (Vec<&String>, Vec<&String>) {
        let hears = |member: &&Member| match &member.wal.upstream {
            Upstream::Streaming { node: from, last_message, .. } => {
                from == node && now.saturating_duration_since(*last_message) < VOUCH
            }
            Upstream::Idle | Upstream::Connecting { .. } | Upstream::Ended { .. } => false,
        };
        let all: Vec<&Member> = self.present(now).collect();
        let hearing = all.iter().copied().filter(hears).map(|member| &member.instance);
        (all.iter().map(|member| &member.instance).collect(), hearing.collect())
    }

    /// The instances whose relays stream from `node`.
    pub fn streaming(&self, now: Instant, own: &WalStatus, node: &NodeName) -> Vec<String> {
        let streams =
            |wal: &WalStatus| matches!(&wal.upstream, Upstream::Streaming { node: from, .. } if from == node);
        let theirs = self.present(now).filter(|member| streams(&member.wal)).map(|member| &member.instance);
        theirs.chain(streams(own).then_some(&self.own)).cloned().collect()
    }

    /// Of all agents but this instance's own.
    pub fn deeds(&self) -> impl Iterator<Item = &Deed> {
        self.heard().flat_map(|heard| &heard.member.deeds)
    }

    /// Whether a node streams from the relay of another instance.
    pub fn has_follower(&self, now: Instant, node: &NodeName) -> bool {
        self.present(now).any(|member| member.wal.follower(node).is_some_and(Follower::streams))
    }

    /// Whether another instance starts and stops the node's server, and was heard of late.
    pub fn has_agent(&self, now: Instant, node: &NodeName) -> bool {
        self.present(now).any(|member| member.local.contains(node))
    }

    /// The servers that other instances' agents are at work on, of those that were heard of late.
    pub fn at_work(&self, now: Instant) -> impl Iterator<Item = &NodeName> {
        self.present(now).flat_map(|member| &member.at_work)
    }

    /// Whether an instance that is heard has nothing to do with the host of `node`.
    pub fn has_one_apart_from(&self, now: Instant, node: &NodeName) -> bool {
        self.present(now).any(|member| !member.local.contains(node))
    }

    /// The instances beside a node, as far as they have ever said so: what befalls its host befalls them.
    pub fn beside<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a String> {
        let others = self.heard().filter(|heard| heard.member.local.contains(node));
        others.map(|heard| &heard.member.instance)
    }
}

impl Acknowledgers {
    /// `acks` that cannot be are taken to the nearest that can.
    pub fn quorum(&self) -> Quorum {
        let relays = self.relays.len().max(1);
        Quorum::new(relays, self.acks.clamp(1, relays)).expect("within its bounds")
    }
}

/// `None`: no relay is named.
fn promised_by_enough(quorums: &[Acknowledgers], promise: impl Fn(&String) -> Term) -> Option<Term> {
    let by = |set: &Acknowledgers| nth_highest(set.relays.iter().map(&promise), set.quorum().recruits());
    quorums.iter().map(by).min()
}

/// 0 where there are fewer.
fn nth_highest(terms: impl IntoIterator<Item = Term>, n: usize) -> Term {
    let mut terms: Vec<Term> = terms.into_iter().collect();
    terms.sort_unstable_by(|a, b| b.cmp(a));
    terms.get(n - 1).copied().unwrap_or_default()
}

/// A stream is more than the end of one, and the later word more than the earlier.
fn evidence_of_life(upstream: &Upstream) -> (u8, Option<Instant>) {
    match upstream {
        Upstream::Streaming { last_message, .. } => (3, Some(*last_message)),
        Upstream::Ended { at, .. } => (2, Some(*at)),
        Upstream::Connecting { .. } => (1, None),
        Upstream::Idle => (0, None),
    }
}

/// What a relay that was asked then was told. Its answer may have waited for as long as answers do, and no longer: what was
/// on its way longer is as old as if it had been said at once.
fn told(wal: &WalStatus, asked_at: Instant) -> Option<Told> {
    wal.told.map(|told| Told { at: told.at.min(asked_at + ANSWER_WAITS), ..told })
}

/// Which of two logs is the longer one.
fn place(wal: &WalStatus) -> (Term, TimelineId, Lsn) {
    (wal.log_term, wal.timeline, wal.durable)
}

fn add_evidence(all: &mut Vec<ClientEvidence>, theirs: &ClientEvidence) {
    match all.iter_mut().find(|ours| ours.node == theirs.node) {
        Some(ours) => {
            ours.answered_at = ours.answered_at.max(theirs.answered_at);
            ours.refused_at = ours.refused_at.max(theirs.refused_at);
            ours.broken_at = ours.broken_at.max(theirs.broken_at);
        }
        None => all.push(theirs.clone()),
    }
}

/// A standby that has changed from one relay to another may be known to both for a while.
fn add_follower(all: &mut Vec<Follower>, theirs: Follower) {
    let rank = |follower: &Follower| (follower.streams(), follower.timeline, follower.reported_at);
    match all.iter_mut().find(|ours| ours.application_name == theirs.application_name) {
        Some(ours) if rank(ours) < rank(&theirs) => *ours = theirs,
        Some(_) => {}
        None => all.push(theirs),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Heard, Log, Member, Members, VOUCH, VOUCH_MARGIN};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{
        Acknowledgers, Directive, Durability, Floor, Follower, FollowerState, Hearing, Lag, NodeName,
        ProxyStatus, StreamEnd, Term, Told, Upstream, WalStatus, Writes,
    };

    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    pub(crate) fn start() -> Instant {
        Instant::now() + Duration::from_secs(100)
    }

    /// `promised log_term timeline durable`.
    pub(crate) fn relay(text: &str) -> WalStatus {
        let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().expect("a number")).collect();
        WalStatus {
            promised: Term(numbers[0]),
            log_term: Term(numbers[1]),
            timeline: TimelineId(u32::try_from(numbers[2]).expect("small")),
            durable: Lsn(numbers[3]),
            verified: Lsn(numbers[3]),
            ..WalStatus::starting()
        }
    }

    /// That has all up to there.
    fn follower(name: &str, lsn: u64, reported_at: Instant) -> Follower {
        Follower {
            application_name: name.to_owned(),
            pid: 1,
            timeline: TimelineId(1),
            state: FollowerState::Streaming,
            sent: Lsn(lsn),
            write: Lsn(lsn),
            flush: Lsn(lsn),
            replay: Lsn(lsn),
            lag: Lag::default(),
            reported_at,
            hearing: Hearing::ByStream,
        }
    }

    pub(crate) fn member(instance: &str, wal: WalStatus, confirmed: u64) -> Member {
        Member {
            instance: instance.to_owned(),
            directive: Arc::new(Directive { term: wal.promised, ..Directive::starting(Durability::Quorum) }),
            wal: Arc::new(wal),
            proxy: Arc::new(ProxyStatus { confirmed: Term(confirmed), ..ProxyStatus::default() }),
            local: Vec::new(),
            at_work: Vec::new(),
            deeds: Vec::new(),
            last_words: BTreeMap::new(),
            speaks_since: start(),
            instances: Vec::new(),
        }
    }

    /// `a`, which sees the others so: `b promised log_term timeline durable`.
    pub(crate) fn members(asked_at: Instant, others: &[&str]) -> Members {
        let heard = |text: &&str| {
            let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
            let member = (!rest.is_empty()).then(|| Arc::new(member(name, relay(rest), 0)));
            (name.to_owned(), member.map(|member| Heard { asked_at, member }))
        };
        Members { own: "a".to_owned(), others: others.iter().map(heard).collect(), ..Members::default() }
    }

    pub(crate) fn any(acks: usize, relays: &str) -> Acknowledgers {
        Acknowledgers { relays: relays.split(' ').map(str::to_owned).collect(), acks }
    }

    fn directive(term: u64, floor: (u32, u64), quorums: Vec<Acknowledgers>) -> Directive {
        let floor =
            Floor { timeline: TimelineId(floor.0), end: Lsn(floor.1), source: None, log_term: Term(0) };
        let starting = Directive::starting(Durability::Quorum);
        Directive { term: Term(term), floor: Some(floor), quorums, ..starting }
    }

    #[test]
    fn an_election_goes_on_when_enough_have_promised_with_the_log_of_the_latest_term() {
        let check = |own: &str, others: &[&str], quorums: &[Acknowledgers], expected: Option<(&str, u64)>| {
            let log = members(start(), others).recovery(&relay(own), quorums, Term(7));
            let log =
                log.map(|Log { source, durable, .. }| (source.unwrap_or_else(|| "a".to_owned()), durable.0));
            let expected = expected.map(|(source, durable)| (source.to_owned(), durable));
            assert_eq!(log, expected, "{own}, {others:?}");
        };
        let three = [any(2, "a b c")];
        let log = members(start(), &["b 7 5 1 60"]).recovery(&relay("7 6 1 50"), &three, Term(7));
        assert_eq!(log.map(|log| log.term), Some(Term(6)), "of the floor that the others are told");
        check("7 6 1 50", &["b", "c"], &three, None);
        check("7 6 1 50", &["b 6 6 1 60", "c 6 6 1 60"], &three, None);
        check("7 6 1 50", &["b 7 6 1 60", "c 6 6 1 70"], &three, Some(("b", 60)));
        check("7 6 1 50", &["b 7 5 2 60", "c 6 6 1 70"], &three, Some(("a", 50)));
        check("7 6 1 50", &["b 7 6 2 40", "c 6 6 1 70"], &three, Some(("b", 40)));
        check("6 6 1 50", &["b 7 6 1 60", "c 7 6 1 70"], &three, Some(("c", 70)));
        check("7 6 1 50", &["b 7 6 1 50", "c 7 6 1 50"], &three, Some(("a", 50)));
        // All must acknowledge: one promise would stop them, but not another election.
        check("7 6 1 50", &["b 6 6 1 50", "c 6 6 1 50"], &[any(3, "a b c")], None);
        // One of two must acknowledge: both may have what the other has not.
        check("7 6 1 50", &["b 7 6 1 60", "c 6 6 1 60"], &[any(1, "a c")], None);
        // While the primary's setting changes, enough of each.
        check("7 6 1 50", &["b 7 6 1 60", "c 6 6 1 70"], &[any(2, "a b c"), any(1, "b c")], None);
        check("7 6 1 50", &["b 7 6 1 60", "c 7 6 1 70"], &[any(2, "a b c"), any(1, "b c")], Some(("c", 70)));
    }

    #[test]
    fn durable_is_what_enough_relays_have_that_have_the_terms_floor() {
        let check = |own: &str, others: &[&str], quorums: &[Acknowledgers], expected: Option<u64>| {
            let order =
                Directive { timeline: Some(TimelineId(1)), ..directive(7, (1, 40), quorums.to_vec()) };
            let durable = members(start(), others).durable(&relay(own), &order);
            assert_eq!(durable, expected.map(|end| (TimelineId(1), Lsn(end))), "{own}, {others:?}");
        };
        let three = [any(2, "a b c")];
        check("7 7 1 50", &["b 7 7 1 60", "c 7 7 1 70"], &three, Some(60));
        check("7 7 1 50", &["b 7 7 1 60", "c"], &three, Some(50));
        check("7 7 1 50", &["b 7 6 1 60", "c 6 6 1 70"], &three, None);
        check("7 7 1 50", &["b 7 7 1 60", "c 7 7 1 70"], &[any(2, "a b c"), any(1, "a b")], Some(60));
        check("7 7 1 50", &["b 7 7 1 60", "c 7 7 1 70"], &[any(2, "a b c"), any(2, "a b")], Some(50));
        check("7 7 1 50", &["b 7 7 1 60", "c 7 7 1 70"], &[any(3, "a b c"), any(1, "b c")], Some(70));
    }

    /// Relay `a` has the end of a term before, which nobody has acknowledged; the floor is at 40 of timeline 1.
    #[test]
    fn what_is_behind_the_floor_counts_only_where_the_terms_primary_is() {
        let check = |timeline: Option<u32>, others: &[&str], expected: (u32, u64)| {
            let timeline = timeline.map(TimelineId);
            let order = Directive { timeline, ..directive(7, (1, 40), vec![any(1, "a b c")]) };
            let durable = members(start(), others).durable(&relay("7 7 1 50"), &order);
            let (timeline, end) = expected;
            assert_eq!(durable, Some((TimelineId(timeline), Lsn(end))), "{timeline:?}, {others:?}");
        };
        // The election goes on, then timeline 2 is the primary's; or the primary is the one of before.
        check(None, &["b 7 7 1 40"], (1, 40));
        check(Some(2), &["b 7 7 1 40"], (1, 40));
        check(Some(2), &["b 7 7 2 45"], (2, 45));
        check(Some(1), &["b 7 7 1 40"], (1, 50));
    }

    #[test]
    fn a_term_is_vouched_for_while_too_few_for_another_may_have_promised() {
        let now = start();
        let check = |own: &str, others: &[(&str, u64)], quorum: Acknowledgers, left: Option<u64>| {
            let mut all = members(now, &[]);
            for (text, asked_ms) in others {
                all.others.extend(members(now - Duration::from_millis(*asked_ms), &[text]).others);
            }
            let until = all.vouched_until(now, &relay(own), &directive(7, (1, 40), vec![quorum]));
            assert_eq!(until, left.map(|ms| now + Duration::from_millis(ms)), "{own}, {others:?}");
        };
        let vouch = u64::try_from(VOUCH.as_millis()).expect("seconds");
        let three = || any(2, "a b c");
        check("7 7 1 50", &[("b", 0), ("c", 0)], three(), None);
        check("7 7 1 50", &[("b 7 7 1 50", 300), ("c 7 7 1 50", 100)], three(), Some(vouch - 100));
        check("7 7 1 50", &[("b 7 7 1 50", 300), ("c 8 7 1 50", 100)], three(), Some(vouch - 300));
        check("7 7 1 50", &[("b 7 7 1 50", vouch), ("c", 0)], three(), None);
        check("8 7 1 50", &[("b 7 7 1 50", 300), ("c", 100)], three(), None);
        check("8 7 1 50", &[("b 7 7 1 50", 300), ("c 7 7 1 50", 100)], three(), Some(vouch - 300));
        // Both of two are needed for an election: its own word is enough.
        check("7 7 1 50", &[("b", 0)], any(2, "a b"), Some(vouch));
        assert!(
            Members::alone()
                .vouched_until(now, &relay("0 0 0 0"), &Directive::starting(Durability::Async))
                .is_some()
        );
    }

    #[test]
    fn a_term_is_vouched_for_by_the_last_of_its_relays() {
        // The election that it has not heard of needed those of before no more: they were dropped in its own term.
        let order = || directive(7, (1, 40), vec![any(2, "a b"), any(2, "a b c")]);
        let check = |others: &[&str], expected: bool| {
            let until = members(start(), others).vouched_until(start(), &relay("7 7 1 50"), &order());
            assert_eq!(until.is_some(), expected, "{others:?}");
        };
        check(&["b 8 7 1 50", "c 8 7 1 50"], false);
        check(&["b", "c"], false);
        check(&["b", "c 7 7 1 50"], true);
    }

    #[test]
    fn who_does_not_confirm_is_waited_out_by_the_last_word_that_it_was_given() {
        let now = start();
        // By `a`, and by `b` to `c`, so long ago; who of them has promised term 7.
        let check_under = |under: Term, promised: [u64; 2], told_ms: [Option<u64>; 2], confirmed: u64| {
            let told = |ms: Option<u64>| {
                ms.map(|ms| ("c".to_owned(), now - Duration::from_millis(ms)))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>()
            };
            let own = relay(&format!("{} 6 1 50", promised[0]));
            let mut b = member("b", relay(&format!("{} 6 1 50", promised[1])), 7);
            b.last_words = told(told_ms[1]);
            let mut all = members(now, &["c"]);
            all.others.insert("b".to_owned(), Some(Heard { asked_at: now, member: Arc::new(b) }));
            all.last_words = told(told_ms[0]);
            all.last_words_under = under;
            let ours = ProxyStatus { confirmed: Term(7), ..ProxyStatus::default() };
            let together = all.proxies(now, (&ours, &own), &[any(2, "a b c")], Term(7));
            assert_eq!(together.confirmed, Term(confirmed), "{promised:?}, {told_ms:?}");
        };
        let check = |promised: [u64; 2], told_ms, confirmed| {
            check_under(Term(promised[0]), promised, told_ms, confirmed);
        };
        let over = u64::try_from((VOUCH + VOUCH_MARGIN).as_millis()).expect("seconds");
        check([7, 7], [Some(over), Some(over)], 7);
        check([7, 7], [Some(over), Some(over - 1)], 0);
        check([7, 7], [Some(over), None], 0);
        check([7, 6], [Some(over), Some(over)], 0);
        // `a` may have told it of its earlier promise since then.
        check_under(Term(6), [7, 7], [Some(over), Some(over)], 0);
    }

    #[test]
    fn who_is_not_in_the_list_is_waited_out_too() {
        let now = start();
        let ago = |ms| now - Duration::from_millis(ms);
        let over = u64::try_from((VOUCH + VOUCH_MARGIN).as_millis()).expect("seconds");
        // `d` is in the list of `b` alone, which has told it last so long ago; `a` speaks since.
        let check = |told_ms: u64, speaks_ms: u64, confirmed: u64| {
            let mut b = member("b", relay("7 6 1 50"), 7);
            b.last_words = [("a".to_owned(), now), ("d".to_owned(), ago(told_ms))].into();
            let mut all = members(now, &[]);
            all.others.insert("b".to_owned(), Some(Heard { asked_at: now, member: Arc::new(b) }));
            (all.last_words_under, all.speaks_since) = (Term(7), Some(ago(speaks_ms)));
            let ours = ProxyStatus { confirmed: Term(7), ..ProxyStatus::default() };
            let together = all.proxies(now, (&ours, &relay("7 6 1 50")), &[any(1, "a b")], Term(7));
            assert_eq!(together.confirmed, Term(confirmed), "{told_ms}, {speaks_ms}");
        };
        check(over, over, 7);
        check(over - 1, over, 0);
        // The process before this one may have had it in its list.
        check(over, over - 1, 0);
    }

    #[test]
    fn a_term_is_settled_when_nobody_goes_by_an_earlier_one() {
        let now = start();
        let over = u64::try_from((VOUCH + VOUCH_MARGIN).as_millis()).expect("seconds");
        // `b` and `c`: what the relay has promised and the proxy confirmed; how long ago each was told of term 6; and who
        // else, `z`, acknowledged before.
        let check = |others: &[(&str, u64, u64)], told_ms: u64, before: &str, settled: bool| {
            let told: BTreeMap<_, _> =
                ["a", "b", "c"].map(|name| (name.to_owned(), now - Duration::from_millis(told_ms))).into();
            let mut all = members(now, &[]);
            for (name, promised, confirmed) in others {
                let mut member = member(name, relay(&format!("{promised} 6 1 50")), *confirmed);
                member.last_words = told.clone();
                all.others
                    .insert((*name).to_owned(), Some(Heard { asked_at: now, member: Arc::new(member) }));
            }
            (all.last_words, all.last_words_under) = (told, Term(7));
            let ours = ProxyStatus { confirmed: Term(7), ..ProxyStatus::default() };
            let (wal, quorums) = (relay("7 6 1 50"), [any(2, before), any(2, "a b c")]);
            let is_settled = all.is_settled(now, (&ours, &wal), &quorums, Term(7));
            assert_eq!(is_settled, settled, "{others:?}, {told_ms}, {before}");
        };
        check(&[("b", 7, 7), ("c", 7, 7)], 0, "a b", true);
        check(&[("b", 7, 6), ("c", 7, 7)], 0, "a b", false);
        // It cannot be vouched for by itself alone.
        check(&[("b", 7, 7), ("c", 6, 6)], over, "a b", true);
        check(&[("b", 7, 7), ("c", 6, 6)], over - 1, "a b", false);
        // It can.
        check(&[("b", 6, 6), ("c", 7, 7)], over, "a b", false);
        // Nobody has it in the list any more.
        check(&[("b", 7, 7), ("c", 7, 7)], 0, "a z", true);
        check(&[("b", 6, 7), ("c", 7, 7)], 0, "b z", false);
    }

    #[test]
    fn a_list_is_agreed_upon_when_all_have_the_same() {
        let now = start();
        let check = |lists: [&str; 2], asked_ms: u64, agreed: bool| {
            let mut all = members(now, &[]);
            for (name, list) in ["b", "c"].into_iter().zip(lists) {
                let mut member = member(name, relay("7 6 1 50"), 7);
                member.instances = list.split(' ').map(str::to_owned).collect();
                let asked_at = now - Duration::from_millis(asked_ms);
                all.others.insert(name.to_owned(), Some(Heard { asked_at, member: Arc::new(member) }));
            }
            assert_eq!(all.are_agreed(now), agreed, "{lists:?}");
        };
        let vouch = u64::try_from(VOUCH.as_millis()).expect("seconds");
        check(["a b c", "a b c"], 0, true);
        check(["a b c", "a b c d"], 0, false);
        check(["a b", "a b"], 0, false);
        check(["a b c", "a b c"], vouch, false);
        assert!(!members(now, &["b"]).are_agreed(now), "nothing is known of it");
    }

    /// `b` has heard more, in its term.
    #[test]
    fn what_others_have_heard_counts_in_the_same_term() {
        let now = start();
        let (node, order) = (|| "pg1".parse().expect("a name"), directive(7, (1, 40), vec![any(2, "a b c")]));
        let check = |term: u64, expected: (u64, u64, bool)| {
            let (received, upstream_end) = (Lsn(90), Lsn(100));
            let upstream = Upstream::Streaming { node: node(), since: now, last_message: now };
            let heard = relay(&format!("{term} {term} 1 50"));
            let b = member("b", WalStatus { received, upstream_end, upstream, ..heard }, term);
            let mut all = members(now, &["c"]);
            all.others.insert("b".to_owned(), Some(Heard { asked_at: now, member: Arc::new(b) }));
            let (received, upstream_end) = (Lsn(50), Lsn(60));
            let own = WalStatus { received, upstream_end, ..relay("7 7 1 50") };
            let WalStatus { received, upstream_end, upstream, .. } = all.wal(now, &own, &order);
            let streams = matches!(upstream, Upstream::Streaming { .. });
            assert_eq!((received.0, upstream_end.0, streams), expected, "{term}");
        };
        check(7, (90, 100, true));
        check(6, (50, 60, false));
        // How far the log of a later term goes counts as that.
        check(8, (50, 100, false));
    }

    /// The primary is at 500, which one of two relays has heard just now; the follower of each has replayed up to 300, and each
    /// says that it lacks nothing.
    #[test]
    fn how_late_a_follower_is_depends_on_when_its_own_relay_has_heard_the_primary() {
        let now = start();
        let ago = |ms| now - Duration::from_millis(ms);
        let held = directive(7, (1, 40), vec![any(2, "a b c")]);
        let pg1 = "pg1".parse().expect("a name");
        let open = Directive { primary: Some(pg1), writes: Writes::Open, ..held.clone() };
        let wal = |name: &str, end: u64, told: Option<Told>| WalStatus {
            upstream_end: Lsn(end),
            told,
            followers: vec![follower(name, 300, now)],
            ..relay("7 7 1 300")
        };
        // When its relay was told how far the primary is, of which term; how long ago that counts as, and by how many bytes.
        let check_under =
            |order: &Directive, own: bool, told: Option<(u64, u64)>, asked_ms: u64, expected| {
                let told = told.map(|(ms, term)| Told { term: Term(term), at: ago(ms) });
                // It lacks something, too.
                let late = WalStatus { durable: Lsn(299), ..wal("pg2", 300, told) };
                let well = wal("pg3", 500, Some(Told { term: Term(7), at: now }));
                let (ours, theirs) = if own { (late, well) } else { (well, late) };
                let mut all = members(now, &["c"]);
                let b = Arc::new(member("b", theirs, 7));
                all.others.insert("b".to_owned(), Some(Heard { asked_at: ago(asked_ms), member: b }));
                let together = all.wal(now, &ours, order);
                assert_eq!(together.told.map(|told| told.at), Some(now), "the latest word");
                let pg2 = together.follower(&"pg2".parse().expect("a name")).expect("it follows");
                assert_eq!((pg2.hearing, pg2.lag.bytes), expected, "{own}, {told:?}, {asked_ms}");
            };
        let check = |own, told, asked_ms, expected| check_under(&open, own, told, asked_ms, expected);
        let at = |ms| Hearing::At(ago(ms));
        for own in [true, false] {
            check(own, Some((300, 7)), 0, (at(300), 0));
            check(own, Some((1000, 7)), 0, (at(1000), 200));
            check(own, None, 0, (Hearing::Never, 200));
            // By the primary before.
            check(own, Some((300, 6)), 0, (Hearing::Never, 200));
            check_under(&held, own, Some((300, 6)), 0, (at(300), 0));
        }
        // An answer that waited for something to tell, and one that was on its way for longer than that.
        check(false, Some((300, 7)), 500, (at(300), 0));
        check(false, Some((300, 7)), 1300, (at(1050), 200));
    }

    #[test]
    fn while_nobody_may_write_who_lacks_nothing_needs_no_word() {
        let now = start();
        let ago = |ms| now - Duration::from_millis(ms);
        let told = |ms| Some(Told { term: Term(7), at: ago(ms) });
        let held = directive(7, (1, 40), vec![any(2, "a b c")]);
        let pg1 = "pg1".parse().expect("a name");
        let open = Directive { primary: Some(pg1), writes: Writes::Open, ..held.clone() };
        // What this relay was told, and what one has that is gone, and was told 6 s ago.
        let check = |order: &Directive, own_told, theirs: &str, expected| {
            let mut all = members(now, &["c"]);
            let b = Arc::new(member("b", WalStatus { told: told(6000), ..relay(theirs) }, 7));
            all.others.insert("b".to_owned(), Some(Heard { asked_at: ago(5000), member: b }));
            let pg2 = follower("pg2", 300, now);
            let own = WalStatus { told: own_told, followers: vec![pg2], ..relay("7 7 1 300") };
            let together = all.wal(now, &own, order);
            assert_eq!(together.told, told(6000), "{own_told:?}, {theirs}");
            assert_eq!(together.followers[0].hearing, expected, "{own_told:?}, {theirs}");
        };
        check(&held, None, "7 7 1 300", Hearing::At(ago(6000)));
        check(&held, None, "7 7 1 301", Hearing::Never);
        check(&held, told(9000), "7 7 1 301", Hearing::At(ago(9000)));
        check(&held, told(9000), "7 7 1 299", Hearing::At(ago(6000)));
        check(&open, None, "7 7 1 300", Hearing::Never);
    }

    #[test]
    fn what_a_relay_that_is_gone_has_told_of_the_end_still_counts() {
        let now = start();
        // `a` at term 7; `b` was heard long ago.
        let check = |b: &str, end: u64, expected: u64| {
            let mut all = members(now, &[]);
            let wal = WalStatus { upstream_end: Lsn(end), ..relay(b) };
            let heard = Heard { asked_at: now - VOUCH, member: Arc::new(member("b", wal, 7)) };
            all.others.insert("b".to_owned(), Some(heard));
            let own = WalStatus { upstream_end: Lsn(60), ..relay("7 7 1 50") };
            let order = directive(7, (1, 40), vec![any(1, "a b")]);
            assert_eq!(all.wal(now, &own, &order).upstream_end, Lsn(expected), "{b}");
        };
        check("7 7 1 50", 70, 70);
        check("7 7 1 50", 50, 60);
        check("8 8 1 50", 70, 70);
        check("6 6 1 50", 70, 60);
    }

    #[test]
    fn a_primary_that_one_relay_hears_is_not_gone() {
        let now = start();
        let pg1: NodeName = "pg1".parse().expect("a name");
        let how = StreamEnd::Lost { why: "reset".to_owned() };
        let own =
            WalStatus { upstream: Upstream::Ended { node: pg1.clone(), at: now, how }, ..relay("7 7 1 50") };
        let streaming = Upstream::Streaming { node: pg1, since: now, last_message: now };
        let mut all = members(now, &["b 7 7 1 60", "c"]);
        let heard = |wal| Some(Heard { asked_at: now, member: Arc::new(member("b", wal, 7)) });
        all.others
            .insert("b".to_owned(), heard(WalStatus { upstream: streaming.clone(), ..relay("7 7 1 60") }));
        let order = directive(7, (1, 40), vec![any(2, "a b c")]);
        assert_eq!(all.wal(now, &own, &order).upstream, streaming);
        assert_eq!(all.wal(now + VOUCH, &own, &order).upstream, own.upstream, "what it said is too old");
        let pg1 = "pg1".parse().expect("a name");
        let (b, nobody) = ("b".to_owned(), Vec::<&String>::new());
        assert_eq!(all.who_hears(now, &pg1), (vec![&b], vec![&b]));
        assert_eq!(all.who_hears(now + VOUCH, &pg1), (nobody.clone(), nobody));
    }
}
