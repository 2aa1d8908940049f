//! Faults, done and undone.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::cluster::Cluster;
use super::faults::{During, Host, Kind, Server, Strike, Way};
use super::hosts::signal_all;

/// For the election, so that the killed primary is on its way back.
const ELECTION: Duration = Duration::from_secs(20);

/// What has to be undone.
enum Injury {
    /// It mends itself.
    None,
    Stopped(Vec<Pid>),
    /// Daemons, by their place in the list.
    Held(Vec<usize>),
    Cut,
    Slow(usize),
    Full(usize),
}

/// What goes on when the faults begin.
pub(crate) fn begin(cluster: &Cluster, during: During) -> Result<(), String> {
    match during {
        During::Load => Ok(()),
        // That one cannot be had now, because of what happened before, is no fault of the order's.
        During::Switchover => {
            let _ = cluster.order("/api/v1/switchover");
            Ok(())
        }
        During::Rejoin => depose(cluster),
        During::BaseBackup => {
            let old = cluster.primary().ok_or("no primary")?;
            fs::write(cluster.lan.hosts[old].no_rewind(), "").expect("a file");
            depose(cluster)
        }
        During::NewServer => {
            let primary = cluster.primary().ok_or("no primary")?;
            cluster.lose_data(host_of(cluster, Server::Standby, primary));
            Ok(())
        }
    }
}

/// Kills the primary, and waits for another one.
fn depose(cluster: &Cluster) -> Result<(), String> {
    let old = cluster.primary().ok_or("no primary")?;
    signal_all(&cluster.lan.hosts[old].servers_processes(), Signal::SIGKILL);
    let begin = Instant::now();
    while cluster.primary().is_none_or(|primary| primary == old) && begin.elapsed() < ELECTION {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What [`begin`] has left.
pub(crate) fn end(cluster: &Cluster) {
    for host in &cluster.lan.hosts {
        // There is none where it did not have to fail.
        let _ = fs::remove_file(host.no_rewind());
    }
}

/// Each at its time, and undone at its time; when this returns, nothing is left. `primary`: where it was last seen.
pub(crate) fn carry_out(cluster: &Cluster, strikes: &[Strike], primary: usize) {
    let begin = Instant::now();
    let wait_until = |at: Duration| thread::sleep(at.saturating_sub(begin.elapsed()));
    let mut strikes = strikes.to_vec();
    strikes.sort_by_key(|strike| strike.after);
    let mut injuries: Vec<(Duration, Injury)> = Vec::new();
    for strike in strikes {
        while let Some(healed) = injuries.iter().position(|(at, _)| *at <= strike.after) {
            let (at, injury) = injuries.swap_remove(healed);
            wait_until(at);
            heal(cluster, injury);
        }
        wait_until(strike.after);
        let primary = cluster.primary().unwrap_or(primary);
        injuries.push((begin.elapsed() + strike.lasts, injure(cluster, strike.kind, primary)));
    }
    injuries.sort_by_key(|(at, _)| *at);
    for (at, injury) in injuries {
        wait_until(at);
        heal(cluster, injury);
    }
}

fn injure(cluster: &Cluster, kind: Kind, primary: usize) -> Injury {
    let hosts = &cluster.lan.hosts;
    let place = |host: Host| match host {
        Host::Of(server) => host_of(cluster, server, primary),
        Host::Number(number) => number,
    };
    match kind {
        Kind::KillServer(server) => {
            signal_all(&hosts[host_of(cluster, server, primary)].servers_processes(), Signal::SIGKILL);
            Injury::None
        }
        Kind::CrashServer(server) => {
            let process = cluster.checkpointer(host_of(cluster, server, primary));
            signal_all(process.as_slice(), Signal::SIGKILL);
            Injury::None
        }
        Kind::FreezeServer(server) => stop(hosts[host_of(cluster, server, primary)].servers_processes()),
        Kind::KillInstance(host) => {
            hold(cluster, |daemon| daemon == (host, cluster.layout.hosts[host].instance))
        }
        Kind::FreezeInstance(host) => {
            let name = cluster.layout.hosts[host].instance;
            let daemon = cluster.daemons().iter().find(|daemon| Some(daemon.name.as_str()) == name);
            let pid = daemon.and_then(|daemon| i32::try_from(daemon.pid()?).ok());
            stop(pid.map(Pid::from_raw).into_iter().collect())
        }
        Kind::StopEtcd(host) => hold(cluster, |daemon| daemon == (host, cluster.layout.hosts[host].etcd)),
        Kind::StopAllEtcd => hold(cluster, |(host, name)| name == cluster.layout.hosts[host].etcd),
        Kind::KillHost(host) => {
            let host = place(host);
            let held = hold(cluster, |(of, _)| of == host);
            signal_all(&hosts[host].processes(), Signal::SIGKILL);
            held
        }
        Kind::FreezeHost(host) => stop(hosts[place(host)].processes()),
        Kind::Cut(one, other, way) => {
            cluster.lan.cut(one, other);
            if way == Way::Both {
                cluster.lan.cut(other, one);
            }
            Injury::Cut
        }
        Kind::Isolate(host) => isolate(cluster, place(host)),
        Kind::Unplug(host) => {
            cluster.lan.cut_from_applications(place(host));
            isolate(cluster, place(host))
        }
        Kind::SlowDisk(host, millis) => {
            hosts[place(host)].slow_disk(millis);
            Injury::Slow(place(host))
        }
        Kind::FullDisk(host) => {
            hosts[place(host)].fill_disk();
            Injury::Full(place(host))
        }
    }
}

fn heal(cluster: &Cluster, injury: Injury) {
    let hosts = &cluster.lan.hosts;
    match injury {
        Injury::None => {}
        Injury::Stopped(processes) => signal_all(&processes, Signal::SIGCONT),
        Injury::Held(daemons) => daemons.into_iter().for_each(|daemon| cluster.daemons()[daemon].release()),
        Injury::Cut => cluster.lan.join_all(),
        Injury::Slow(host) => hosts[host].quick_disk(),
        Injury::Full(host) => hosts[host].empty_disk(),
    }
}

/// The standby: the one whose host comes next.
fn host_of(cluster: &Cluster, server: Server, primary: usize) -> usize {
    let nodes: Vec<usize> = cluster.layout.nodes().map(|(host, _)| host).collect();
    match server {
        Server::Primary => primary,
        Server::Standby => {
            let place = nodes.iter().position(|host| *host == primary).unwrap_or_default();
            nodes[(place + 1) % nodes.len()]
        }
    }
}

fn stop(processes: Vec<Pid>) -> Injury {
    signal_all(&processes, Signal::SIGSTOP);
    Injury::Stopped(processes)
}

fn hold(cluster: &Cluster, concerns: impl Fn((usize, Option<&str>)) -> bool) -> Injury {
    let daemons = cluster.daemons().iter().enumerate();
    let concerned = daemons.filter(|(_, daemon)| concerns((daemon.host, Some(daemon.name.as_str()))));
    let concerned: Vec<usize> = concerned.map(|(place, _)| place).collect();
    concerned.iter().for_each(|place| cluster.daemons()[*place].hold());
    Injury::Held(concerned)
}

fn isolate(cluster: &Cluster, host: usize) -> Injury {
    for other in (0..cluster.lan.hosts.len()).filter(|other| *other != host) {
        cluster.lan.cut(host, other);
        cluster.lan.cut(other, host);
    }
    Injury::Cut
}
