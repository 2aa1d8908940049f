//! The first thing a user does: connect, write, read, look.

use crate::harness::{Cluster, Options};

#[test]
fn connect_write_read_look() {
    let cluster = Cluster::start(Options::default());
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, note text)").expect("create");
    cluster.psql("INSERT INTO t SELECT i, 'n' || i FROM generate_series(1, 100) i").expect("insert");
    assert_eq!(cluster.psql("/* bellwether: primary */ SELECT count(*) FROM t"), Ok("100".to_owned()));
    assert_eq!(cluster.metric("bellwether_term"), Some(1.0));
    assert_eq!(cluster.http("GET", "/live").map(|(status, _)| status), Ok(200));
    assert_eq!(cluster.http("GET", "/ready").map(|(status, _)| status), Ok(200));
    assert_eq!(cluster.standbys().len(), 2);
}
