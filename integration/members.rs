//! What the instances of a cluster tell each other, as people see it.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Instances, Options, eventually};

const LIMIT: Duration = Duration::from_secs(120);

fn ask(instances: &Instances, n: usize, command: &str) -> Result<String, String> {
    instances.cluster.psql_at(&instances.console_of(n), command)
}

/// The row of `SHOW MEMBERS` about the other one of two.
fn other(instances: &Instances, n: usize) -> Vec<String> {
    let rows = ask(instances, n, "SHOW MEMBERS").expect("the console");
    let rows: Vec<&str> = rows.lines().collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0].split('|').map(str::to_owned).collect()
}

fn is_up(instances: &Instances, n: usize, name: &str) -> Result<f64, String> {
    instances.metric(n, &format!("bellwether_member_up{{instance=\"{name}\"}}")).ok_or("no metric".to_owned())
}

fn await_up(instances: &Instances, n: usize, name: &str, expected: f64) {
    eventually(&format!("{name} is up: {expected}"), LIMIT, || match is_up(instances, n, name)? {
        up if (up - expected).abs() < 0.5 => Ok(()),
        up => Err(up.to_string()),
    });
}

fn term(instances: &Instances, n: usize) -> String {
    instances.state(n).expect("its state")["directive"]["term"].to_string()
}

#[test]
fn each_hears_the_other_until_it_falls_silent() {
    let instances = Instances::start(Options { nodes: 2, ..Options::default() });
    for (n, name, other_name) in [(0, "bw1", "bw2"), (1, "bw2", "bw1")] {
        await_up(&instances, n, other_name, 1.0);
        let seen = other(&instances, n);
        assert_eq!((seen[0].as_str(), &seen[2]), (other_name, &term(&instances, n)), "{seen:?}");
        eventually("it is heard", LIMIT, || {
            let seen = other(&instances, n);
            if seen[1].parse::<f64>().is_ok_and(|age| age < 2.0) { Ok(()) } else { Err(format!("{seen:?}")) }
        });

        let said: Value =
            serde_json::from_str(&ask(&instances, n, "SHOW MEMBER").expect("the console")).expect("JSON");
        assert_eq!(said["instance"], name);
        assert_eq!(said["member"]["directive"]["term"].to_string(), term(&instances, n));
        assert!(said["member"]["last_words"][other_name].is_object(), "{said}");
        let next = ask(&instances, n, &format!("SHOW MEMBER AFTER {}", said["serial"]));
        assert!(next.is_ok_and(|next| next.contains("\"serial\"")));
        let stranger = ask(&instances, n, "SHOW MEMBER FOR 'bw9'").expect_err("nobody's name");
        assert!(stranger.contains("42704"), "{stranger}");
    }

    instances.signal(1, Signal::SIGSTOP);
    await_up(&instances, 0, "bw2", 0.0);
    let seen = other(&instances, 0);
    assert!(seen[1].parse::<f64>().is_ok_and(|age| age >= 2.0), "{seen:?}");
    instances.signal(1, Signal::SIGCONT);
    await_up(&instances, 0, "bw2", 1.0);
    let primary = instances.await_steady();

    let before = term(&instances, 0);
    instances.cluster.lose_machine(&primary);
    eventually("both know of another term", LIMIT, || {
        let seen = [other(&instances, 0), other(&instances, 1)];
        if seen.iter().all(|row| row[2] != before) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}
