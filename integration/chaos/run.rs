//! The run: round after round until the faults of the plan are used up, or the cluster needs a hand.

use std::collections::HashSet;
use std::env;
use std::fmt::Debug;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::check::append::{self, Lists};
use super::check::bank::{self, Books};
use super::check::writable;
use super::cluster::{Cluster, View};
use super::faults::{self, Round};
use super::hosts::Lan;
use super::inject;
use super::layout::Layout;
use super::load::{Histories, INITIAL, Load};
use super::report::{self, Line, Tally, without_writes};
use super::sampler::{Sampler, Seen};

const FAULTS: usize = 100;
const LAYOUT: &str = "three";
/// All servers are made by then.
const BEGIN: Duration = Duration::from_secs(120);
/// Everything serves again, so long after the last fault's end: otherwise the cluster needs a hand.
const WHOLE: Duration = Duration::from_secs(60);
/// A client may be in the middle of the longest wait that it puts up with.
const PROGRESS: Duration = Duration::from_secs(45);
const REPLAY: Duration = Duration::from_secs(30);
/// A question about everything there is.
const LONG: Duration = Duration::from_secs(30);
/// Of a kind of violation so many are shown.
const SHOWN: usize = 5;

/// `FAULTS=20 SEED=7 LAYOUT=three`.
#[test]
#[ignore = "`make chaos`"]
fn a_cluster_survives() {
    let number = |name: &str| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let count = number("FAULTS").map_or(FAULTS, |count| usize::try_from(count).expect("a count"));
    let layout = env::var("LAYOUT").ok().filter(|name| !name.is_empty());
    let layout = Layout::named(layout.as_deref().unwrap_or(LAYOUT)).expect("LAYOUT is one of the layouts");
    println!("SEED={seed} FAULTS={count} LAYOUT={}\n\n{}", layout.name, report::HEAD);

    // Before any other thread is made: they are where we are.
    let lan = Lan::build(&layout.hosts.iter().map(|host| host.name).collect::<Vec<_>>());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut run = Run {
        cluster: Cluster::start(layout, runtime.handle().clone(), lan),
        lines: Vec::new(),
        past: Vec::new(),
        wrong: Vec::new(),
    };
    run.all(&faults::plan(layout, seed, count));
    let told = run.cluster.logs();
    println!(
        "\n{}{}",
        report::summary(&run.lines, count),
        report::said(told.iter().flat_map(|log| log.lines()))
    );
    let panics = told.iter().flat_map(|log| log.lines()).filter(|line| line.contains("panicked at"));
    run.wrong.extend(panics.map(str::to_owned));
    let logs = format!("{}/target/chaos/{seed}", env!("CARGO_MANIFEST_DIR"));
    if !run.wrong.is_empty() {
        run.cluster.keep_logs(Path::new(&logs));
    }
    assert!(run.wrong.is_empty(), "SEED={seed}, logs in {logs}:\n{}", run.wrong.join("\n"));
}

struct Run {
    cluster: Cluster,
    lines: Vec<Line>,
    /// What clients were told in earlier rounds: it stays true.
    past: Vec<Past>,
    wrong: Vec<String>,
}

struct Past {
    round: i32,
    histories: Histories,
}

impl Run {
    fn all(&mut self, rounds: &[Round]) {
        if let Err(why) = self.cluster.await_whole(BEGIN) {
            self.wrong.push(format!("the cluster does not begin: {why}"));
            return;
        }
        for (number, round) in (1..).zip(rounds) {
            let before = self.wrong.len();
            let outcome = self.round(number, round);
            if let Err(why) = outcome {
                self.wrong.push(format!("round {number} ({round}): the cluster needs a hand: {why}"));
                return;
            }
            for wrong in &self.wrong[before..] {
                println!("{wrong}");
            }
        }
        for past in std::mem::take(&mut self.past) {
            self.check_again(&past);
        }
    }

    fn round(&mut self, number: i32, round: &Round) -> Result<(), String> {
        let load = Load::start(&self.cluster.runtime, self.cluster.endpoints(), number)?;
        await_progress(&load, Duration::ZERO)?;
        let cluster = &self.cluster;
        let disturbed = thread::scope(|scope| {
            let sampler = Sampler::start(scope, cluster, number);
            let disturbed = disturb(cluster, round, &load);
            (disturbed, sampler.finish())
        });
        let (Disturbed { since, whole_after }, seen) = match disturbed {
            (Ok(disturbed), seen) => (disturbed, seen),
            (Err(why), _) => return Err(why),
        };
        let histories = load.finish();
        let before = self.wrong.len();
        self.check(number, round, &histories, &seen)?;
        let line = Line {
            number: usize::try_from(number).expect("counted up"),
            what: round.to_string(),
            without_writes: without_writes(&histories.acknowledged, since),
            whole_after,
            tally: Tally::of(&histories),
            probes: seen.probes.len(),
            wrong: self.wrong.len() - before,
        };
        println!("{}", line.text());
        self.lines.push(line);
        self.past.push(Past { round: number, histories: without_reads(histories) });
        Ok(())
    }

    /// What is wrong is noted; `Err`: nobody can be asked.
    fn check(
        &mut self,
        number: i32,
        round: &Round,
        histories: &Histories,
        seen: &Seen,
    ) -> Result<(), String> {
        let primary = self.cluster.primary().ok_or("no primary to ask")?;
        let (lists, books) = (self.lists(primary, number)?, self.books(primary, number)?);
        let probes = self.cluster.ask_for(primary, "SELECT token FROM probes", LONG)?;
        let probes: HashSet<i64> = probes.iter().filter_map(|token| token.parse().ok()).collect();
        let what = format!("round {number} ({round})");
        self.note(&what, &append::check(&histories.transactions, &lists));
        self.note(&what, &bank::check(&histories.transfers, &histories.sums, INITIAL, &books));
        self.note(&what, &writable::check(&seen.probes, &seen.orders, &probes));
        let unequal = self.unequal(primary)?;
        self.note(&what, &unequal);
        Ok(())
    }

    /// What was true in an earlier round still is.
    fn check_again(&mut self, past: &Past) {
        let found = self
            .cluster
            .primary()
            .ok_or_else(|| "no primary to ask".to_owned())
            .and_then(|primary| Ok((self.lists(primary, past.round)?, self.books(primary, past.round)?)));
        let what = format!("round {}, looked at again", past.round);
        match found {
            Ok((lists, books)) => {
                self.note(&what, &append::check(&past.histories.transactions, &lists));
                self.note(&what, &bank::check(&past.histories.transfers, &[], INITIAL, &books));
            }
            Err(why) => self.wrong.push(format!("{what}: {why}")),
        }
    }

    fn note(&mut self, what: &str, wrong: &[impl Debug]) {
        self.wrong.extend(wrong.iter().take(SHOWN).map(|wrong| format!("{what}: {wrong:?}")));
        if wrong.len() > SHOWN {
            self.wrong.push(format!("{what}: and {} more", wrong.len() - SHOWN));
        }
    }

    fn lists(&self, host: usize, round: i32) -> Result<Lists, String> {
        let sql = format!("SELECT key, array_to_string(tokens, ' ') FROM lists WHERE round = {round}");
        let rows = self.cluster.ask_for(host, &sql, LONG)?;
        let list = |row: &String| {
            let (key, tokens) = row.split_once('|')?;
            let tokens = tokens.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
            Some((key.parse().ok()?, tokens))
        };
        rows.iter().map(list).collect::<Option<_>>().ok_or_else(|| format!("no lists: {rows:?}"))
    }

    fn books(&self, host: usize, round: i32) -> Result<Books, String> {
        let sql = format!("SELECT account, balance FROM accounts WHERE round = {round}");
        let rows = self.cluster.ask_for(host, &sql, LONG)?;
        let account = |row: &String| {
            let (account, balance) = row.split_once('|')?;
            Some((account.parse().ok()?, balance.parse().ok()?))
        };
        let balances = rows.iter().map(account).collect::<Option<_>>().ok_or("no balances")?;
        let sql = format!("SELECT token FROM transfers WHERE round = {round}");
        let transfers = self.cluster.ask_for(host, &sql, LONG)?;
        let transfers =
            transfers.iter().map(|token| token.parse().ok()).collect::<Option<_>>().ok_or("no tokens")?;
        Ok(Books { balances, transfers })
    }

    /// Standbys that do not come to hold what the primary holds.
    fn unequal(&self, primary: usize) -> Result<Vec<String>, String> {
        let digest = "SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (\
                      SELECT l::text AS line FROM lists l UNION ALL SELECT a::text FROM accounts a \
                      UNION ALL SELECT t::text FROM transfers t) AS lines";
        let nodes = self.cluster.layout.nodes().filter(|(host, _)| *host != primary);
        let mut unequal = Vec::new();
        for (host, node) in nodes {
            let begin = Instant::now();
            loop {
                // Somebody whose outcome is not known may still commit.
                let truth = self.cluster.ask_for(primary, digest, LONG)?;
                if self.cluster.ask_for(host, digest, LONG).is_ok_and(|there| there == truth) {
                    break;
                }
                if begin.elapsed() > REPLAY {
                    unequal.push(format!("{node} does not hold what the primary holds"));
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(unequal)
    }
}

struct Disturbed {
    /// When the first fault began.
    since: Duration,
    whole_after: Duration,
}

fn disturb(cluster: &Cluster, round: &Round, load: &Load) -> Result<Disturbed, String> {
    let primary = cluster.primary().ok_or("no primary before the fault")?;
    let since = load.now();
    inject::begin(cluster, round.during)?;
    inject::carry_out(cluster, &round.strikes, primary);
    let healed = load.now();
    let whole_after = cluster.await_whole(WHOLE).map_err(|why| {
        let said = cluster.view().map(|view: View| view.to_string()).unwrap_or_default();
        format!("{why}\n{said}")
    })?;
    inject::end(cluster);
    await_progress(load, healed + whole_after)?;
    Ok(Disturbed { since, whole_after })
}

fn await_progress(load: &Load, since: Duration) -> Result<(), String> {
    let begin = Instant::now();
    loop {
        match load.all_acknowledged(since) {
            Ok(()) => return Ok(()),
            Err(why) if begin.elapsed() > PROGRESS => return Err(why),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// For another look at the end; reads were compared.
fn without_reads(mut histories: Histories) -> Histories {
    histories.transactions.iter_mut().for_each(|transaction| transaction.reads.clear());
    histories.transactions.retain(|transaction| !transaction.appends.is_empty());
    histories
}
