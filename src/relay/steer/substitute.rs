//! Who may stand in for the upstream.

use crate::net::Backend;
use crate::relay::config::RelayInputs;
use crate::topology::{Address, NodeName};

/// Who may stand in for the upstream.
pub(super) struct Substitute {
    /// A node's, an instance's, or a relay's address.
    pub(super) name: String,
    pub(super) address: Address,
    kind: Kind,
    last_said: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Node,
    Relay,
}

impl Substitute {
    /// Another instance's relay.
    pub(super) fn peer((instance, address): &(String, Address)) -> Substitute {
        Substitute::new(instance.clone(), address, Kind::Relay)
    }

    fn new(name: String, address: &Address, kind: Kind) -> Substitute {
        Substitute { name, address: address.clone(), kind, last_said: None }
    }

    /// A node that is no standby writes what nobody has elected it to. A relay passes its upstream's word on; it looks
    /// at that itself.
    pub(super) fn accepts(&self, backend: Backend) -> Result<Backend, String> {
        match self.kind {
            Kind::Node if !backend.is_standby() => Err("it is no standby".to_owned()),
            Kind::Node | Kind::Relay => Ok(backend),
        }
    }

    /// Once for the same cause.
    pub(super) fn say(&mut self, why: &str) {
        if self.last_said.as_deref() != Some(why) {
            tracing::info!(source = self.name, why, "no more WAL from a substitute");
            self.last_said = Some(why.to_owned());
        }
    }
}

/// In the order in which they are asked where all are as good. A relay may be configured both as another instance's and
/// as one to ask.
pub(super) fn substitutes(inputs: &RelayInputs, upstream: &NodeName) -> Vec<Substitute> {
    let nodes = inputs.nodes.iter().filter(|node| node.name != *upstream);
    let is_peer = |relay: &&Address| inputs.peers.iter().any(|(_, peer)| peer == *relay);
    nodes
        .map(|node| Substitute::new(node.name.to_string(), &node.address, Kind::Node))
        .chain(inputs.peers.iter().map(Substitute::peer))
        .chain(
            inputs
                .relays
                .iter()
                .filter(|relay| !is_peer(relay))
                .map(|relay| Substitute::new(relay.to_string(), relay, Kind::Relay)),
        )
        .collect()
}
