//! A psql that stays connected.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use super::cluster::Cluster;

pub(crate) struct Psql(Child);

/// What psql prints behind every answer.
const END: &str = "-- end of the answer --";

impl Psql {
    pub(crate) fn open(cluster: &Cluster, conninfo: &str) -> Psql {
        let mut psql = cluster.program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", conninfo]);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped());
        Psql(psql.spawn().expect("psql starts"))
    }

    /// What it answers to `sql`; an error ends it, and the test.
    pub(crate) fn ask(&mut self, sql: &str) -> String {
        let input = self.0.stdin.as_mut().expect("a pipe");
        writeln!(input, "{sql};\n\\echo '{END}'").expect("psql reads");
        let output = self.0.stdout.as_mut().expect("a pipe");
        let mut answer = String::new();
        while !answer.contains(END) {
            let mut bytes = [0; 4096];
            let read = output.read(&mut bytes).expect("psql speaks");
            assert_ne!(read, 0, "psql has ended: {sql}: {answer}");
            answer += &String::from_utf8_lossy(&bytes[..read]);
        }
        answer.replace(END, "").trim().to_owned()
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
