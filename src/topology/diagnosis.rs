//! What ails the primary, by name, and from what that is known.
//!
//! A name is for people: no decision looks at it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ailment {
    ProcessDead,
    HostGone,
    ServerFrozen,
    DiskStalled,
    DiskFull,
    /// On this instance's side: others hear the primary.
    NetworkCutHere,
    /// On the primary's side: its host is there, and only those on it reach the server.
    NetworkCutThere,
    Overloaded,
    /// Nothing is heard of any server, so it may be our own ears.
    Blind,
    Restarting,
    InRecovery,
    /// It lives, and does not let us in.
    ShutOut,
    /// What is seen contradicts itself.
    Unclear,
}

/// An ailment, while it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    pub ailment: Ailment,
    /// What was seen here first.
    pub evidence: Vec<Evidence>,
    /// Why nobody is promoted for it; `None`: it is not for this instance to say, or somebody is.
    pub outlook: Option<String>,
}

/// One thing that is known, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub mark: Mark,
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// This instance has seen it: its probe, its relay's stream, its clients.
    FirstHand,
    /// Others have said it, or it follows from what they said.
    Inferred,
}

impl Ailment {
    pub const ALL: [Ailment; 13] = [
        Ailment::ProcessDead,
        Ailment::HostGone,
        Ailment::ServerFrozen,
        Ailment::DiskStalled,
        Ailment::DiskFull,
        Ailment::NetworkCutHere,
        Ailment::NetworkCutThere,
        Ailment::Overloaded,
        Ailment::Blind,
        Ailment::Restarting,
        Ailment::InRecovery,
        Ailment::ShutOut,
        Ailment::Unclear,
    ];

    /// As it is written in JSON, in labels and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Ailment::ProcessDead => "process_dead",
            Ailment::HostGone => "host_gone",
            Ailment::ServerFrozen => "server_frozen",
            Ailment::DiskStalled => "disk_stalled",
            Ailment::DiskFull => "disk_full",
            Ailment::NetworkCutHere => "network_cut_here",
            Ailment::NetworkCutThere => "network_cut_there",
            Ailment::Overloaded => "overloaded",
            Ailment::Blind => "blind",
            Ailment::Restarting => "restarting",
            Ailment::InRecovery => "in_recovery",
            Ailment::ShutOut => "shut_out",
            Ailment::Unclear => "unclear",
        }
    }

    /// In a sentence about the primary.
    pub fn sentence(self) -> &'static str {
        match self {
            Ailment::ProcessDead => "its process is dead: the host is there, and no server listens",
            Ailment::HostGone => "its host is gone, or cut off from all that are heard here",
            Ailment::ServerFrozen => {
                "the server is frozen: its host takes connections, and the server is mute"
            }
            Ailment::DiskStalled => "its disk is stalled: it answers, and its commits do not end",
            Ailment::DiskFull => "its disk is full",
            Ailment::NetworkCutHere => "the network is cut between this instance and it: others hear it",
            Ailment::NetworkCutThere => {
                "the network is cut in front of it: its host is there, and only from there it is heard, if at all"
            }
            Ailment::Overloaded => "it is overloaded: it lives, and answers late or not everybody",
            Ailment::Blind => "nothing is heard of any server here, so it may be our own blindness",
            Ailment::Restarting => "it is starting, stopping or recovering from a crash",
            Ailment::InRecovery => "it runs as a standby",
            Ailment::ShutOut => "it lives, and does not let this instance in",
            Ailment::Unclear => "what is seen of it contradicts itself",
        }
    }
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Evidence {
    pub fn first_hand(what: impl Into<String>) -> Evidence {
        Evidence { mark: Mark::FirstHand, what: what.into() }
    }

    pub fn inferred(what: impl Into<String>) -> Evidence {
        Evidence { mark: Mark::Inferred, what: what.into() }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.mark {
            Mark::FirstHand => "first-hand",
            Mark::Inferred => "inferred",
        };
        write!(f, "{mark}: {}", self.what)
    }
}
