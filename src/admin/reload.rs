//! Asking for the configuration to be read again, and what that came to. The reading is somebody else's.

use tokio::sync::{mpsc, oneshot};

/// Requests that wait for the one before them; more wait at their sender.
const QUEUE: usize = 4;

/// The keys that have changed, by what their new values hold for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Everybody.
    pub at_once: Vec<String>,
    /// Connections that are made from now on.
    pub new_connections: Vec<String>,
    /// Nobody yet. Told again by every reload until then.
    pub restart: Vec<String>,
    /// The configuration is in use, but somebody should know.
    pub warnings: Vec<String>,
}

impl Reloaded {
    /// For a person.
    pub fn lines(&self) -> Vec<String> {
        let named = [
            ("in effect", &self.at_once),
            ("in effect for new connections", &self.new_connections),
            ("needs a restart", &self.restart),
        ];
        let named = named.into_iter().filter(|(_, keys)| !keys.is_empty());
        let mut lines: Vec<String> =
            named.map(|(what, keys)| format!("{what}: {}", keys.join(", "))).collect();
        if lines.is_empty() {
            lines.push("nothing has changed".to_owned());
        }
        lines.extend(self.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// Nothing has changed. All that is wrong, each with its path.
    #[error("{0}")]
    Unusable(String),
    #[error("the endpoint is shutting down")]
    Stopped,
}

/// Whom a reload's outcome is told.
pub type Asked = oneshot::Sender<Result<Reloaded, ReloadError>>;

/// Asks whoever reads the configuration.
#[derive(Clone, Debug)]
pub struct Reload(mpsc::Sender<Asked>);

impl Reload {
    pub fn channel() -> (Reload, mpsc::Receiver<Asked>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Reload(sender), receiver)
    }

    pub async fn ask(&self) -> Result<Reloaded, ReloadError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| ReloadError::Stopped)?;
        answered.await.unwrap_or(Err(ReloadError::Stopped))
    }
}

#[cfg(test)]
mod tests {
    use super::Reloaded;

    #[test]
    fn what_is_told() {
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let check = |reloaded: Reloaded, expected: &[&str]| assert_eq!(reloaded.lines(), expected);
        check(Reloaded::default(), &["nothing has changed"]);
        check(
            Reloaded { restart: keys(&["listen", "workers"]), ..Reloaded::default() },
            &["needs a restart: listen, workers"],
        );
        check(
            Reloaded {
                at_once: keys(&["pool.size"]),
                new_connections: keys(&["auth.rules"]),
                restart: vec![],
                warnings: keys(&["auth.rules: let no follower in"]),
            },
            &[
                "in effect: pool.size",
                "in effect for new connections: auth.rules",
                "warning: auth.rules: let no follower in",
            ],
        );
    }
}
