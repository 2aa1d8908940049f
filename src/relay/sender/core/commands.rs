//! Every command but START_REPLICATION, and the slots.

use bytes::Bytes;

use crate::pg::TimelineId;
use crate::pg::protocol::replication::{Command, CommandError, ReserveWal, SlotLifetime, SlotOptions, Wait};
use crate::relay::sender::error::Refusal;
use crate::relay::sender::reply::Reply;
use crate::relay::slots::{RestartPoint, SlotError};
use crate::relay::store::Tail;

use super::{Now, Outcome, Output, Phase, SlotsNotSaved, WalSource, Walsender};

impl<S: WalSource> Walsender<S> {
    /// `text` is the command's own.
    pub(super) fn command(&mut self, now: Now, command: Command, text: &[u8]) -> Outcome {
        match command {
            Command::IdentifySystem => self.identify_system(now),
            Command::Show { name } => self.show(now, &name),
            Command::ReadReplicationSlot { slot } => self.read_slot(now, &slot),
            Command::CreateReplicationSlot { slot, options } => self.create_slot(now, &slot, options),
            Command::DropReplicationSlot { slot, wait } => self.drop_slot(now, slot, wait),
            Command::TimelineHistory { timeline } => self.timeline_history(now, timeline),
            Command::StartReplication { slot, start, timeline } => {
                self.start_replication(now, slot.as_deref(), start, timeline)
            }
            Command::OfBaseBackup => {
                self.phase = Phase::PassedOn;
                self.outputs.push_back(Output::PassOn(Bytes::copy_from_slice(text)));
                Ok(())
            }
            Command::NotServed { keyword } => Err(Refusal::NotServed { keyword }),
        }
    }

    fn identify_system(&mut self, now: Now) -> Outcome {
        let system = self.source.system().expect("only a relay that knows its cluster greets");
        let Tail { timeline, durable } = self.tail;
        let reply = Reply::default().identify_system(self.major(), system, timeline, durable);
        self.send(reply.ready_for_query(), now);
        Ok(())
    }

    fn show(&mut self, now: Now, name: &str) -> Outcome {
        let parameters = self.source.server_parameters();
        let reply = match name {
            "wal_segment_size" => Reply::default().show(name, &self.source.segment_size().to_string()),
            // The store's files are its owner's alone.
            "data_directory_mode" => Reply::default().show(name, "0700"),
            _ => {
                let known = parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                let (name, value) = known.ok_or_else(|| Refusal::UnknownSetting(name.to_owned()))?;
                Reply::default().show(name, value)
            }
        };
        self.send(reply.ready_for_query(), now);
        Ok(())
    }

    fn timeline_history(&mut self, now: Now, timeline: TimelineId) -> Outcome {
        // A server describes the row before it looks for the file.
        let description = Reply::default().history_description(self.major());
        let Some(content) = self.source.history_file(timeline) else {
            self.send(description, now);
            return Err(Refusal::NoHistory(timeline));
        };
        self.send(description.history_content(timeline, &content).ready_for_query(), now);
        Ok(())
    }

    fn read_slot(&mut self, now: Now, slot: &str) -> Outcome {
        if !self.major().reads_slots() {
            return Err(Refusal::Command(CommandError::Sql));
        }
        let status = slot.parse().ok().and_then(|name| self.slots.status(&name));
        self.send(Reply::default().slot(status.map(|status| status.restart)).ready_for_query(), now);
        Ok(())
    }

    fn create_slot(&mut self, now: Now, slot: &str, options: SlotOptions) -> Outcome {
        let timeline = self.tail.timeline;
        // A server reserves from its last checkpoint on, where a base backup may begin. The relay knows no
        // checkpoint: it keeps all it has, until the first flush report tells more.
        let oldest =
            || RestartPoint { timeline, lsn: self.source.oldest(timeline).unwrap_or(self.tail.durable) };
        let restart = match options.reserve_wal {
            ReserveWal::Immediately => Some(oldest()),
            ReserveWal::OnFirstUse => None,
        };
        self.slots.create(slot, options.lifetime, restart, self.pid)?;
        let reply = Reply::default().slot_created(slot).ready_for_query();
        match options.lifetime {
            SlotLifetime::Temporary => self.send(reply, now),
            SlotLifetime::Persistent => self.save_slots(reply, Some(slot)),
        }
        Ok(())
    }

    pub(super) fn drop_slot(&mut self, now: Now, slot: String, wait: Wait) -> Outcome {
        match self.slots.drop_slot(&slot, self.pid) {
            Ok(()) => {
                let reply = Reply::default().command_complete("DROP_REPLICATION_SLOT");
                self.save_slots(reply.ready_for_query(), None);
            }
            Err(SlotError::Active { .. }) if wait == Wait::UntilReleased => {
                self.phase = Phase::Dropping { slot, retry_at: now.at + Self::DROP_RETRY_INTERVAL };
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn save_slots(&mut self, reply: Reply, made: Option<&str>) {
        self.phase = Phase::Saving { reply: reply.finish(), made: made.map(str::to_owned) };
        self.outputs.push_back(Output::SaveSlots);
    }

    pub(super) fn slots_saved(&mut self, now: Now, result: Result<(), SlotsNotSaved>) {
        let Phase::Saving { reply, made } = std::mem::replace(&mut self.phase, Phase::Command) else {
            return;
        };
        match result {
            Ok(()) => {
                self.unwritten.stuck_since.get_or_insert(now.at);
                self.outputs.push_back(Output::Send(reply));
            }
            Err(why) => {
                // Whoever uses it by now keeps it: then it is saved with the next change.
                if let Some(made) = made {
                    let _ = self.slots.drop_slot(&made, self.pid);
                }
                self.refuse(&Refusal::SlotsNotSaved(why), now);
            }
        }
    }
}
