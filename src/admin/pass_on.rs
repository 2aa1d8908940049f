//! An operator's order, at whichever instance it is given: carried out here where this one leads, else handed to the
//! one that does, over its console, and its answer handed back. Never further than that: who is asked [`Reach::Here`]
//! and does not lead says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::failover::{Command, CommandError, Commands, Handover, Servers, Stragglers, Upkeep};
use crate::net::{self, Conversation, ConversationError, DialError, Target};
use crate::pg::error::{ErrorFields, SqlState};

/// Connecting to the leader and logging in, and its answer, take no longer. What was accepted has begun, not ended, so
/// this is the time in which the leader journals it.
const LIMIT: Duration = Duration::from_secs(5);

/// Who takes orders.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// This instance's control plane. `None`: it has none.
    pub here: Option<Commands>,
    /// The other instances' consoles.
    pub others: Arc<BTreeMap<String, Target>>,
}

/// How far an order may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// To whoever leads.
    Cluster,
    /// No further than this instance: it was handed here.
    Here,
}

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("{leader} leads, and says: {}", said.message)]
    Refused { leader: String, said: Box<ErrorFields> },
    #[error("{leader} leads, and cannot be reached: {source}")]
    Unreached { leader: String, source: Box<DialError> },
    #[error("{leader} leads, and has not answered: {source}; the history tells whether it took the order")]
    Unanswered { leader: String, source: Box<ConversationError> },
}

impl Orders {
    /// What whoever leads says to it.
    pub(super) async fn give(&self, command: Command, reach: Reach) -> Result<String, OrderError> {
        let here = self.here.as_ref().ok_or(CommandError::Stopped)?;
        let refused = match here.send(command.clone()).await {
            Ok(said) => return Ok(said),
            Err(refused) => refused,
        };
        let Some((leader, target)) = self.elsewhere(&refused).filter(|_| reach == Reach::Cluster) else {
            return Err(refused.into());
        };
        tracing::info!(leader, "the order is handed to the instance that leads");
        hand_over(leader, target, &command).await
    }

    fn elsewhere(&self, refused: &CommandError) -> Option<(&str, &Target)> {
        let CommandError::Elsewhere { leader: Some(leader) } = refused else { return None };
        self.others.get_key_value(leader).map(|(leader, target)| (leader.as_str(), target))
    }
}

async fn hand_over(leader: &str, target: &Target, command: &Command) -> Result<String, OrderError> {
    let backend = net::dial(target, LIMIT)
        .await
        .map_err(|source| OrderError::Unreached { leader: leader.to_owned(), source: Box::new(source) })?;
    let said = Conversation::new(backend, LIMIT).notices(&in_words(command)).await;
    said.map(|said| said.join("\n")).map_err(|error| match error {
        ConversationError::Server(said) => {
            OrderError::Refused { leader: leader.to_owned(), said: Box::new(said) }
        }
        source => OrderError::Unanswered { leader: leader.to_owned(), source: Box::new(source) },
    })
}

/// As the console reads it.
pub(super) fn in_words(command: &Command) -> String {
    let to = |to: &Option<crate::topology::NodeName>| {
        to.as_ref().map(|node| format!(" TO \"{node}\"")).unwrap_or_default()
    };
    let which = |servers: &Servers| match servers {
        Servers::One(node) => format!("NODE \"{node}\""),
        Servers::All => "ALL".to_owned(),
    };
    match command {
        Command::Failover { to: node } => format!("FAILOVER{} HERE", to(node)),
        Command::Switchover { to: node, stragglers: Stragglers::Spared } => {
            format!("SWITCHOVER{} HERE", to(node))
        }
        Command::Switchover { to: node, stragglers: Stragglers::Cut } => {
            format!("SWITCHOVER{} FORCE HERE", to(node))
        }
        Command::Foresee { handover: Handover::Failover, to: node } => {
            format!("FAILOVER{} DRY_RUN HERE", to(node))
        }
        Command::Foresee { handover: Handover::Switchover, to: node } => {
            format!("SWITCHOVER{} DRY_RUN HERE", to(node))
        }
        Command::Maintenance { node, upkeep: Upkeep::Begin } => format!("MAINTENANCE \"{node}\" HERE"),
        Command::Maintenance { node, upkeep: Upkeep::End } => format!("MAINTENANCE \"{node}\" END HERE"),
        Command::Restart { servers, stragglers: Stragglers::Spared } => {
            format!("RESTART {} HERE", which(servers))
        }
        Command::Restart { servers, stragglers: Stragglers::Cut } => {
            format!("RESTART {} FORCE HERE", which(servers))
        }
        Command::ForeseeRestart { servers } => format!("RESTART {} DRY_RUN HERE", which(servers)),
        Command::CancelRestart => "RESTART CANCEL HERE".to_owned(),
        Command::Pause => "FAILOVER PAUSE HERE".to_owned(),
        Command::Resume => "FAILOVER RESUME HERE".to_owned(),
    }
}

impl OrderError {
    /// The console's error.
    pub(super) fn fields(&self) -> ErrorFields {
        ErrorFields::error(self.code(), self.to_string())
    }

    pub(super) fn code(&self) -> SqlState {
        match self {
            OrderError::Command(CommandError::UnknownNode(_)) => SqlState::UNDEFINED_OBJECT,
            OrderError::Command(
                CommandError::Unfit(..)
                | CommandError::Primary(_)
                | CommandError::NotRestarted(..)
                | CommandError::NotNow(_),
            ) => SqlState::OBJECT_IN_USE,
            OrderError::Command(CommandError::Elsewhere { .. }) => SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            OrderError::Command(CommandError::Stopped) => SqlState::ADMIN_SHUTDOWN,
            OrderError::Refused { said, .. } => said.code,
            OrderError::Unreached { .. } | OrderError::Unanswered { .. } => SqlState::CANNOT_CONNECT_NOW,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OrderError, Orders, in_words};
    use crate::admin::console::tests::understood;
    use crate::failover::{Command, CommandError, Handover, Servers, Stragglers, Upkeep};
    use crate::pg::error::{ErrorFields, SqlState};

    /// The leader's console reads what it is told as what was ordered, and passes nothing on.
    #[test]
    fn an_order_arrives_as_it_was_given() {
        let pg2 = "pg2".parse().ok();
        let one = |name: &str| Servers::One(name.parse().expect("a node's name"));
        for (command, words) in [
            (Command::Failover { to: None }, "FAILOVER HERE"),
            (Command::Failover { to: pg2.clone() }, "FAILOVER TO \"pg2\" HERE"),
            (Command::Switchover { to: None, stragglers: Stragglers::Spared }, "SWITCHOVER HERE"),
            (
                Command::Switchover { to: pg2, stragglers: Stragglers::Cut },
                "SWITCHOVER TO \"pg2\" FORCE HERE",
            ),
            (
                // A node may be called that.
                Command::Switchover { to: "here".parse().ok(), stragglers: Stragglers::Spared },
                "SWITCHOVER TO \"here\" HERE",
            ),
            (Command::Foresee { handover: Handover::Failover, to: None }, "FAILOVER DRY_RUN HERE"),
            (
                Command::Foresee { handover: Handover::Switchover, to: "pg3".parse().ok() },
                "SWITCHOVER TO \"pg3\" DRY_RUN HERE",
            ),
            (
                Command::Maintenance { node: "here".parse().expect("a name"), upkeep: Upkeep::Begin },
                "MAINTENANCE \"here\" HERE",
            ),
            (
                Command::Maintenance { node: "pg3".parse().expect("a name"), upkeep: Upkeep::End },
                "MAINTENANCE \"pg3\" END HERE",
            ),
            (Command::Pause, "FAILOVER PAUSE HERE"),
            (Command::Restart { servers: Servers::All, stragglers: Stragglers::Spared }, "RESTART ALL HERE"),
            (
                Command::Restart { servers: one("here"), stragglers: Stragglers::Cut },
                "RESTART NODE \"here\" FORCE HERE",
            ),
            (Command::ForeseeRestart { servers: one("all") }, "RESTART NODE \"all\" DRY_RUN HERE"),
            (Command::CancelRestart, "RESTART CANCEL HERE"),
            (Command::Resume, "FAILOVER RESUME HERE"),
        ] {
            assert_eq!(in_words(&command), words);
            assert_eq!(understood(words), Some((command, super::Reach::Here)), "{words}");
        }
    }

    #[test]
    fn only_to_a_leader_that_is_known() {
        let orders = Orders::default();
        let nobody = CommandError::Elsewhere { leader: None };
        let stranger = CommandError::Elsewhere { leader: Some("bw9".to_owned()) };
        for refused in [nobody, stranger, CommandError::Stopped] {
            assert!(orders.elsewhere(&refused).is_none(), "{refused}");
        }
    }

    /// Scripts go by the code, wherever the order was given.
    #[test]
    fn a_refusal_keeps_its_code() {
        let said = ErrorFields::error(SqlState::OBJECT_IN_USE, "not now: an election is under way");
        let refused = OrderError::Refused { leader: "bw2".to_owned(), said: Box::new(said) };
        assert_eq!(refused.code(), SqlState::OBJECT_IN_USE);
        assert_eq!(refused.to_string(), "bw2 leads, and says: not now: an election is under way");
    }
}
