//! The relay: byte for byte the primary's WAL.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::wal::{SEGMENT_BYTES, compare_with_primary, segment_start, segments};
use crate::harness::{Cluster, Options, eventually};

/// Two gigabytes with a timeline switch in the middle.
#[test]
fn bytes() {
    let mut cluster = Cluster::start(Options::default());
    let first = cluster.primary();
    keep_all_wal(&cluster);
    write_gigabyte(&cluster);
    let mut compared = compare_with_primary(&cluster, &first);

    cluster.signal(&first, Signal::SIGKILL);
    eventually("another primary", Duration::from_secs(60), || {
        let state = cluster.api("/api/v1/cluster")?;
        let moved = state["directive"]["writes"]["state"] == "open"
            && state["directive"]["primary"] != first.name.as_str();
        if moved { Ok(()) } else { Err(state.to_string()) }
    });
    cluster.await_steady();
    assert_eq!(waldump_reads_all(&cluster), 2, "timelines");
    write_gigabyte(&cluster);
    let second = cluster.primary();
    compared += compare_with_primary(&cluster, &second);
    println!("compared {} MiB of segments with the primaries'", compared >> 20);
    assert!(compared >= 2 << 30, "only {compared} bytes were compared");
    waldump_reads_all(&cluster);
}

fn keep_all_wal(cluster: &Cluster) {
    for server in cluster.servers() {
        let conninfo = cluster.direct_conninfo(&server, "postgres");
        cluster.psql_at(&conninfo, "ALTER SYSTEM SET wal_keep_size = '4GB'").expect("wal_keep_size");
        cluster.psql_at(&conninfo, "SELECT pg_reload_conf()").expect("reload");
    }
}

fn write_gigabyte(cluster: &Cluster) {
    let message = "SELECT count(pg_logical_emit_message(false, 'filler', repeat(md5(i::text), 8192))) FROM generate_series(1, 1050 * 4) i";
    let conninfo = cluster.direct_conninfo(&cluster.primary(), "app");
    cluster.psql_at(&conninfo, message).expect("a gigabyte of WAL");
}

/// pg_waldump reads each timeline from its first kept segment to its end, without a hole; how many there are.
fn waldump_reads_all(cluster: &Cluster) -> usize {
    let store = cluster.wal_dir();
    let names: Vec<String> = segments(&store).into_keys().collect();
    let timelines: BTreeSet<&str> = names.iter().map(|name| &name[..8]).collect();
    for timeline in &timelines {
        let of: Vec<&String> = names.iter().filter(|name| name.starts_with(*timeline)).collect();
        let (Some(first), Some(last)) = (of.first(), of.last()) else { continue };
        let span = (segment_start(last) - segment_start(first)) / SEGMENT_BYTES + 1;
        assert_eq!(span, of.len() as u64, "a hole in timeline {timeline}");
        let number = u32::from_str_radix(timeline, 16).expect("hexadecimal");
        let start = segment_start(first);
        let output = cluster
            .program("pg_waldump")
            .args([
                "-q",
                "-t",
                &number.to_string(),
                "-s",
                &format!("{:X}/{:X}", start >> 32, start & 0xFFFF_FFFF),
            ])
            .args(["-e", &end_of_timeline(cluster, number), "-p"])
            .arg(&store)
            .output()
            .expect("pg_waldump");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaint.is_empty(), "timeline {number}: {complaint}");
    }
    timelines.len()
}

/// Where the next timeline forked; of the newest, the end of the last whole record that the relay holds.
fn end_of_timeline(cluster: &Cluster, timeline: u32) -> String {
    let history = cluster.api("/api/v1/history").expect("history");
    let next = history.as_array().expect("elections").iter().find(|e| e["timeline"] == timeline + 1);
    let end = match next {
        Some(election) => election["switchpoint"].clone(),
        None => cluster.api("/api/v1/cluster").expect("state")["wal"]["verified"].clone(),
    };
    end.as_str().expect("an LSN").to_owned()
}
