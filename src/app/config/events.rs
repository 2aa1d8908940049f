//! The section `events`: who is told of elections, roles and alarms.

use std::time::Duration;

use super::Events;
use super::reader::Section;
use super::units::{duration, text, texts};

const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn events(events: &mut Section<'_>) -> Events {
    Events {
        command: events.or("command", Vec::new(), command),
        webhook: events.optional("webhook", webhook),
        timeout: events.or("timeout", TIMEOUT, duration),
    }
}

/// A program and its arguments: no shell reads them.
fn command(value: &serde_yaml::Value) -> Result<Vec<String>, String> {
    match texts(value)? {
        words if words.first().is_none_or(String::is_empty) => {
            Err("a list is expected: a program, and its arguments".to_owned())
        }
        words => Ok(words),
    }
}

fn webhook(value: &serde_yaml::Value) -> Result<reqwest::Url, String> {
    let url: reqwest::Url = text(value)?.parse().map_err(|error| format!("is no URL: {error}"))?;
    match (url.scheme(), url.has_host()) {
        ("http" | "https", true) => Ok(url),
        _ => Err("a URL is expected: http://... or https://...".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{command, webhook};

    #[test]
    fn who_is_told() {
        let value = |yaml: &str| serde_yaml::from_str(yaml).expect("YAML");
        let words = command(&value("[/usr/bin/notify, --cluster, 'a b']")).expect("a command");
        assert_eq!(words, ["/usr/bin/notify", "--cluster", "a b"]);
        for refused in ["[]", "['']", "notify"] {
            assert!(command(&value(refused)).is_err(), "{refused}");
        }
        assert!(webhook(&value("https://example.com/hook?token=1")).is_ok());
        for refused in ["example.com", "ftp://example.com/x", "file:///x", "7"] {
            assert!(webhook(&value(refused)).is_err(), "{refused}");
        }
    }
}
