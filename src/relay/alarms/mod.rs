//! The alarms of the plane, as they are remembered: which there were, from when to when. PURE, but for [`keeper`].
//!
//! What is wrong is known to whoever met it: the stream, the slots, the store. Here it becomes a list for people and
//! for the control plane, which survives restarts in `alarms.json` beside the WAL. An alarm that lasted when the
//! process ended is over; it is raised again when its cause is met again.

pub(super) mod keeper;

use std::sync::Arc;

use crate::topology::{Alarm, AlarmKind};

/// Alarms remembered. When full, the oldest that is over goes; what lasts stays.
const MAX_ALARMS: usize = 200;

/// What is wrong now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) kind: AlarmKind,
    /// See [`Alarm::object`].
    pub(super) object: String,
    pub(super) what: String,
}

#[derive(Debug, Default)]
pub(super) struct AlarmLog {
    /// In the order in which they were raised.
    alarms: Arc<Vec<Alarm>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observed {
    Nothing,
    News,
}

impl AlarmLog {
    /// `saved`: of an earlier process, which ended before `now_ms`.
    pub(super) fn restored(mut saved: Vec<Alarm>, now_ms: u64) -> AlarmLog {
        saved.iter_mut().for_each(|alarm| alarm.over_at_ms = alarm.over_at_ms.or(Some(now_ms)));
        AlarmLog { alarms: Arc::new(saved) }
    }

    pub(super) fn alarms(&self) -> Arc<Vec<Alarm>> {
        self.alarms.clone()
    }

    /// `troubles`: all there are. One that goes on keeps the words with which it began.
    pub(super) fn observe(&mut self, troubles: &[Trouble], now_ms: u64) -> Observed {
        let is = |trouble: &Trouble, alarm: &Alarm| {
            alarm.lasts() && alarm.kind == trouble.kind && alarm.object == trouble.object
        };
        let begun = |trouble: &&Trouble| !self.alarms.iter().any(|alarm| is(trouble, alarm));
        let ended = |alarm: &Alarm| alarm.lasts() && !troubles.iter().any(|trouble| is(trouble, alarm));
        let new: Vec<Alarm> = troubles.iter().filter(begun).map(|trouble| raised(trouble, now_ms)).collect();
        if new.is_empty() && !self.alarms.iter().any(ended) {
            return Observed::Nothing;
        }
        let alarms = Arc::make_mut(&mut self.alarms);
        for alarm in alarms.iter_mut().filter(|alarm| ended(alarm)) {
            alarm.over_at_ms = Some(now_ms);
        }
        alarms.extend(new);
        while alarms.len() > MAX_ALARMS
            && let Some(oldest) = alarms.iter().position(|alarm| !alarm.lasts())
        {
            alarms.remove(oldest);
        }
        Observed::News
    }
}

fn raised(trouble: &Trouble, now_ms: u64) -> Alarm {
    let Trouble { kind, object, what } = trouble.clone();
    Alarm { kind, object, what, raised_at_ms: now_ms, over_at_ms: None }
}

#[cfg(test)]
mod tests {
    use super::{AlarmLog, MAX_ALARMS, Observed, Trouble};
    use crate::topology::AlarmKind;

    fn slot(name: &str) -> Trouble {
        Trouble { kind: AlarmKind::LostSlot, object: name.to_owned(), what: format!("{name} is lost") }
    }

    fn full() -> Trouble {
        Trouble { kind: AlarmKind::DiskFull, object: String::new(), what: "full".to_owned() }
    }

    /// `pg2 1-4` for each.
    fn told(log: &AlarmLog) -> Vec<String> {
        let told = |alarm: &crate::topology::Alarm| {
            let over = alarm.over_at_ms.map_or_else(String::new, |at| at.to_string());
            format!("{}{} {}-{over}", alarm.kind.as_str(), alarm.object, alarm.raised_at_ms)
        };
        log.alarms().iter().map(told).collect()
    }

    #[test]
    fn each_lasts_as_long_as_its_cause() {
        let mut log = AlarmLog::default();
        let mut check = |now, troubles: &[Trouble], observed, expected: &[&str]| {
            assert_eq!(log.observe(troubles, now), observed, "at {now}");
            assert_eq!(told(&log), expected, "at {now}");
        };
        check(1, &[], Observed::Nothing, &[]);
        check(2, &[slot("a")], Observed::News, &["lost_slota 2-"]);
        check(3, &[slot("a")], Observed::Nothing, &["lost_slota 2-"]);
        check(4, &[full(), slot("a")], Observed::News, &["lost_slota 2-", "disk_full 4-"]);
        check(5, &[full()], Observed::News, &["lost_slota 2-5", "disk_full 4-"]);
        check(6, &[slot("a"), full()], Observed::News, &["lost_slota 2-5", "disk_full 4-", "lost_slota 6-"]);
        let restored = AlarmLog::restored(log.alarms().to_vec(), 9);
        assert_eq!(told(&restored), ["lost_slota 2-5", "disk_full 4-9", "lost_slota 6-9"]);
    }

    #[test]
    fn what_is_over_gives_way() {
        let mut log = AlarmLog::default();
        log.observe(&[full()], 0);
        for now in 1..=(MAX_ALARMS as u64) {
            log.observe(&[full(), slot(&format!("s{now}"))], now);
        }
        let told = told(&log);
        assert_eq!(told.len(), MAX_ALARMS);
        assert_eq!(told[0], "disk_full 0-");
        assert_eq!(told[1], "lost_slots2 2-3");
    }
}
