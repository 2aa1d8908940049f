//! A bounded run of the fuzz targets' entries (`fuzz/entries.rs`) on a stable compiler: real messages and texts,
//! changed at random. `SEED=n` repeats a run, `SEEDS=n` makes it longer.

use std::{env, fs};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

#[path = "../fuzz/entries.rs"]
mod entries;

/// Of each target.
const ROUNDS: u64 = 100_000;

/// An input has a few kilobytes; so may what it makes one allocate, not this.
const MOST_ALLOCATED: u64 = 64 << 20;

const MESSAGES: &[&[u8]] = &[
    b"\0\0\0\x23\0\x03\0\0user\0app\0database\0app\0\0",
    b"\0\0\0\x08\x04\xd2\x16\x2f",
    b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd",
    b"Q\0\0\0\x0dSELECT 1\0",
    b"P\0\0\0\x16s\0SELECT $1\0\0\x01\0\0\0\x19",
    b"B\0\0\0\x16\0s\0\0\0\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\0",
    b"D\0\0\0\x07Ss\0E\0\0\0\x09\0\0\0\0\x05S\0\0\0\x04",
    b"p\0\0\0\x19SCRAM-SHA-256\0\0\0\0\x03n,,",
    b"R\0\0\0\x0b\0\0\0\x0aM\0\0K\0\0\0\x0c\0\0\0\x07abcdZ\0\0\0\x05I",
    b"S\0\0\0\x08a\0b\0D\0\0\0\x0f\0\x02\0\0\0\x01x\xff\xff\xff\xffC\0\0\0\x0dSELECT 1\0",
    b"E\0\0\0\x1bSERROR\0C42601\0Mno\0\0",
];

const PROXY_HEADERS: &[&[u8]] = &[
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\xc0\x01\x19\x20",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x2b                                    \x03\0\x04crc3",
];

const TEXTS: &[&[u8]] = &[
    b"SELECT a, b FROM t WHERE c = $1 AND d IN (1, 2) ORDER BY 1 LIMIT 3 FOR UPDATE",
    b"/* bellwether: primary */ SET LOCAL work_mem = '5MB'; SHOW bellwether.lsn -- done",
    b"WITH x AS (INSERT INTO t VALUES (1, E'\\n') RETURNING *) SELECT count(*) FROM x",
    b"BEGIN; SAVEPOINT a; ROLLBACK TO a; COMMIT AND CHAIN; RESET ALL; DISCARD ALL",
    b"DO $x$ BEGIN PERFORM set_config('a.b', 'c', false); END $x$",
    b"PREPARE p (int) AS SELECT set_config('TimeZone', $1::text, true); EXECUTE p (1); DEALLOCATE p",
    b"COPY t FROM STDIN WITH (FORMAT csv); LISTEN c; NOTIFY c, 'x'; DECLARE h CURSOR WITH HOLD FOR TABLE t",
    b"CREATE TEMP TABLE s (n int) ON COMMIT DROP; SELECT pg_advisory_lock(1), nextval('s')",
];

/// As `proxy::fuzzing` reads them: the pool's mode, then who says it (2 and 3: a message of the client or of the server),
/// a length, the message.
const CONVERSATIONS: &[&[u8]] = &[
    b"\0\x02\x0aQSELECT 1\0\x03\x04T\0\0\0\x03\x0aCSELECT 0\0\x03\x02ZI",
    b"\0\x02\x1bQSET work_mem = 1; BEGIN; x\0\x03\x05CSET\0\x03\x0eSwork_mem\x001kB\0\x03\x07CBEGIN\0\x03\x02ZT",
    b"\x01\x02\x12Ps\0SELECT $1::int\0\0\0\x02\x0bB\0s\0\0\0\0\0\0\0\0\x02\x06E\0\0\0\0\0\x02\x01S\x03\x011\x03\x012\x03\x02ZI",
    b"\0\x02\x1cQPREPARE p AS SELECT 1; COPY\0\x03\x09CPREPARE\0\x03\x0aEC42601\0M\0\0\x03\x02ZI",
    b"\x02\x02\x08QLISTEN\0\x03\x0aA\0\0\0\x01c\0x\0\0\x03\x04G\0\0\0\x02\x04dxyz\x02\x01c\x03\x02ZI",
];

#[test]
fn nothing_that_comes_panics_or_swells() {
    let seed = env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    let rounds = env::var("SEEDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let before = most_resident();
    for _ in 0..rounds {
        let message = changed(&mut random, MESSAGES);
        entries::first_packet(&message);
        entries::of_a_client(&message);
        entries::of_a_server(&message);
        entries::proxy_header(&changed(&mut random, PROXY_HEADERS));
        entries::sql(&changed(&mut random, TEXTS));
        entries::session(&changed(&mut random, CONVERSATIONS));
    }
    let swollen = most_resident() - before;
    assert!(swollen < MOST_ALLOCATED, "SEED={seed}: {swollen} bytes more than before");
}

/// Of this process so far, in bytes.
fn most_resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// One of `examples`, or some of them, with bytes changed, left out, repeated.
fn changed(random: &mut StdRng, examples: &[&[u8]]) -> Vec<u8> {
    let some = |random: &mut StdRng| examples.choose(random).expect("there are examples").to_vec();
    let mut bytes = some(random);
    for _ in 0..random.random_range(0..6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 => bytes.extend(some(random)),
            3 => {
                let other = some(random);
                bytes.splice(at..at, other);
            }
            4 => {
                // Lengths like the edges of their range.
                let edge: [u8; 4] = *[[0xff; 4], [0x7f, 0xff, 0xff, 0xff], [0; 4], [0x80, 0, 0, 0]]
                    .choose(random)
                    .expect("four");
                bytes.splice(at..at, edge);
            }
            _ => {
                let piece = bytes[at..].iter().take(40).copied().collect::<Vec<_>>();
                let times = random.random_range(1..40);
                bytes.splice(at..at, piece.repeat(times));
            }
        }
    }
    bytes
}
