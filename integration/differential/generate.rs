//! Scripts put together at random: the same seed gives the same script. What [`super::known`] lists is left out, so
//! that every difference is a new one.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::script::{Line, Script};

pub(super) fn generate(seed: u64) -> Script {
    let mut generator = Generator {
        random: StdRng::seed_from_u64(seed),
        batches: vec![Vec::new()],
        statements: Vec::new(),
        portals: 0,
        names: 0,
    };
    let phrases = generator.random.random_range(5..=14);
    for _ in 0..phrases {
        generator.phrase();
        if generator.random.random_bool(0.7) {
            generator.pause();
        }
    }
    generator.batches.retain(|batch| !batch.is_empty());
    Script { name: format!("seed {seed}"), batches: generator.batches }
}

struct Generator {
    random: StdRng,
    batches: Vec<Vec<Line>>,
    /// Prepared by Parse: the name, and values that fit.
    statements: Vec<(String, &'static str)>,
    portals: u32,
    names: u32,
}

const READS: &[&str] = &[
    "SELECT 1",
    "SELECT id, name FROM items ORDER BY id",
    "SELECT count(*), sum(price) FROM items",
    "SELECT n, repeat('x', n) FROM generate_series(1, 40) n",
    "SELECT FROM items WHERE id = 2",
    "SELECT NULL, ''",
    "SELECT repeat('long', 4000)",
    "TABLE notes",
    "VALUES (1, 'a'), (2, NULL)",
    "SHOW work_mem",
    "SHOW statement_timeout",
    "SELECT current_setting('work_mem'), current_user",
    "SELECT warn('hear this')",
    "EXPLAIN (COSTS OFF) SELECT name FROM items WHERE id = 1",
    "WITH a AS (SELECT 1 AS n) SELECT n + 1 FROM a",
    "SELECT mood FROM items WHERE mood IS NOT NULL ORDER BY id",
    "",
];

const WRITES: &[&str] = &[
    "INSERT INTO items VALUES ((SELECT max(id) + 1 FROM items), 'new')",
    "UPDATE items SET price = price + 1 WHERE id = 1",
    "UPDATE items SET name = 'both' WHERE id < 3 RETURNING id, price",
    "DELETE FROM items WHERE id = 3",
    "INSERT INTO notes VALUES (1, 'note') ON CONFLICT DO NOTHING",
    "TRUNCATE notes",
    "SELECT id FROM items WHERE id = 1 FOR UPDATE",
    "LOCK TABLE items IN SHARE MODE",
    "DO $$ BEGIN RAISE NOTICE 'done'; INSERT INTO notes VALUES (2, 'by do') ON CONFLICT DO NOTHING; END $$",
    "WITH gone AS (DELETE FROM notes RETURNING id) SELECT count(*) FROM gone",
    "ANALYZE items",
    "SELECT set_config('work_mem', '5MB', true)",
];

const ERRORS: &[&str] = &[
    "SELECT 1/0",
    "SELEC 1",
    "SELECT * FROM nowhere",
    "SELECT nothing FROM items",
    "INSERT INTO items VALUES (1, 'again')",
    "INSERT INTO notes VALUES (77, 'refers to nothing')",
    "SELECT 'x'::int",
    "SELECT fails('AB123')",
    "SELECT 10 / (5 - n) FROM generate_series(1, 9) n",
    "SELECT 'unterminated",
    "VACUUM nowhere",
    "SET work_mem = 'nonsense'",
    "EXECUTE nobody_prepared",
    "FETCH 1 FROM nobody_declared",
];

const BLOCKS: &[&str] = &[
    "BEGIN",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "START TRANSACTION READ ONLY",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "SAVEPOINT a",
    "SAVEPOINT b",
    "ROLLBACK TO a",
    "ROLLBACK TO b",
    "RELEASE a",
    "END",
    "ABORT",
];

const STATE: &[&str] = &[
    "SET work_mem = '5MB'",
    "SET work_mem = '6MB'",
    "SET SESSION work_mem TO DEFAULT",
    "SET LOCAL work_mem = '7MB'",
    "RESET work_mem",
    "SET statement_timeout = '70s'",
    "RESET statement_timeout",
    "SELECT set_config('work_mem', '8MB', false)",
    "SET extra_float_digits = 0",
    "SELECT pg_advisory_lock(7)",
    "SELECT pg_advisory_unlock(7)",
    "SELECT pg_advisory_xact_lock(8)",
    "CREATE TEMP TABLE scratch (n int)",
    "INSERT INTO scratch VALUES (1), (2)",
    "SELECT sum(n) FROM scratch",
    "DROP TABLE scratch",
    "CREATE TEMP TABLE dropped ON COMMIT DROP AS SELECT 1 AS n",
    "PREPARE q1 (int) AS SELECT name FROM items WHERE id = $1",
    "EXECUTE q1 (1)",
    "EXECUTE q1 (2)",
    "DEALLOCATE q1",
    "PREPARE q2 AS UPDATE items SET price = price + 1 WHERE id = 1 RETURNING price",
    "EXECUTE q2",
    "DEALLOCATE q2",
    "EXPLAIN (COSTS OFF) EXECUTE q1 (1)",
    "PREPARE q3 AS SELECT set_config('work_mem', '3MB', false)",
    "EXECUTE q3",
    "PREPARE s1 AS SELECT 'by SQL', $1",
    "DEALLOCATE s1",
    "DEALLOCATE s2",
    "ALTER TABLE items ALTER price TYPE numeric(12,2)",
    "DECLARE c CURSOR FOR SELECT id FROM items ORDER BY id",
    "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM items ORDER BY id",
    "FETCH 1 FROM c",
    "FETCH 1 FROM h",
    "CLOSE h",
    "CLOSE ALL",
    "DEALLOCATE ALL",
    "DISCARD PLANS",
    "DISCARD TEMP",
];

/// A text for Parse, and the values of its Bind.
const PARAMETERISED: &[(&str, &str)] = &[
    ("SELECT $1::int + 1", "41"),
    ("SELECT name FROM items WHERE id = $1", "2"),
    ("SELECT $1::text, $2::int", "text 7"),
    ("SELECT n FROM generate_series(1, $1::int) n", "9"),
    ("SELECT 10 / $1::int", "0"),
    ("SELECT length($1::text)", "{x*9000}"),
    ("UPDATE items SET price = $1 WHERE id = $2", "5 1"),
    ("INSERT INTO items VALUES ((SELECT max(id) + 1 FROM items), $1) RETURNING id", "bound"),
    ("SELECT $1::mood", "calm"),
    ("SELECT warn($1)", "bound"),
    ("SHOW work_mem", ""),
    ("SET work_mem = '9MB'", ""),
    ("SELECT $1::int[]", "{1,NULL,3}"),
];

impl Generator {
    fn say(&mut self, line: &str) {
        let line = line.trim_end();
        let line = Line::read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        self.batches.last_mut().expect("there is a batch").push(line);
    }

    /// What was said so far is answered before anything more is said.
    fn pause(&mut self) {
        self.batches.push(Vec::new());
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices.choose(&mut self.random).expect("there is a choice")
    }

    fn text(&mut self) -> &'static str {
        let kind = self.one_of(&[READS, READS, WRITES, ERRORS, BLOCKS, BLOCKS, STATE, STATE]);
        self.one_of(kind)
    }

    fn phrase(&mut self) {
        match self.random.random_range(0..20) {
            0..6 => self.query(),
            6..8 => self.several_in_one_query(),
            8..12 => self.unnamed(),
            12..15 => self.named(),
            15 => self.portal(),
            16 => self.flush(),
            17 => self.copy(),
            18 => {
                let call = self.one_of(&["84 2", "1 0", "x 1", "1"]);
                self.say(&format!("call 154 {call}"));
            }
            _ => self.say("sync"),
        }
    }

    fn query(&mut self) {
        let text = self.text();
        self.say(&format!("query {text}"));
    }

    fn several_in_one_query(&mut self) {
        let count = self.random.random_range(2..=4);
        let texts: Vec<&str> = (0..count).map(|_| self.text()).collect();
        self.say(&format!("query {}", texts.join("; ")));
    }

    fn unnamed(&mut self) {
        for _ in 0..self.random.random_range(1..=3) {
            let (text, values) =
                if self.random.random_bool(0.5) { self.one_of(PARAMETERISED) } else { (self.text(), "") };
            self.say(&format!("parse - {text}"));
            self.maybe("describe statement -");
            self.bind_and_execute("-", "-", values);
        }
        self.say("sync");
    }

    fn named(&mut self) {
        if self.statements.is_empty() || self.random.random_bool(0.4) {
            self.names += 1;
            let (name, (text, values)) = (format!("s{}", self.names), self.one_of(PARAMETERISED));
            self.say(&format!("parse {name} {text}"));
            self.maybe(&format!("describe statement {name}"));
            self.statements.push((name, values));
        }
        for _ in 0..self.random.random_range(0..=3) {
            let (name, values) = self.statements.choose(&mut self.random).expect("one is there").clone();
            self.bind_and_execute("-", &name, values);
        }
        if self.random.random_bool(0.2) {
            self.say("sync");
            self.named_by_sql();
        }
        if self.random.random_bool(0.2) {
            let (name, _) = self.statements.choose(&mut self.random).expect("one is there").clone();
            self.say(&format!("close statement {name}"));
            self.statements.retain(|(other, _)| *other != name);
        }
        self.say("sync");
    }

    fn named_by_sql(&mut self) {
        let (name, values) = self.statements.choose(&mut self.random).expect("one is there").clone();
        let values: Vec<String> = values.split_ascii_whitespace().map(|value| format!("'{value}'")).collect();
        let values = if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) };
        let text = self.one_of(&["EXECUTE", "EXECUTE", "SELECT 1; EXECUTE", "EXPLAIN (COSTS OFF) EXECUTE"]);
        if self.random.random_bool(0.5) {
            self.say(&format!("query {text} {name}{values}"));
        } else {
            self.say(&format!("parse - EXECUTE {name}{values}"));
            self.bind_and_execute("-", "-", "");
            let sql = self.one_of(&["q1 1", "q2", "q3"]);
            self.maybe(&format!("bind - {sql}"));
            self.say("sync");
        }
    }

    /// One that may be gone on with, later.
    fn portal(&mut self) {
        if self.portals == 0 || self.random.random_bool(0.5) {
            self.portals += 1;
            let name = format!("p{}", self.portals);
            self.say("parse - SELECT n FROM generate_series(1, 9) n");
            self.say(&format!("bind {name} -"));
        }
        let name = format!("p{}", self.random.random_range(1..=self.portals));
        self.maybe(&format!("describe portal {name}"));
        self.say(&format!("execute {name} 2"));
        self.maybe(&format!("close portal {name}"));
        self.say("sync");
    }

    fn flush(&mut self) {
        let (text, values) = self.one_of(PARAMETERISED);
        self.say(&format!("parse - {text}"));
        self.maybe("flush");
        self.say(&format!("bind - - {values}"));
        self.say("execute - 1");
        self.say("flush");
        self.pause();
        self.maybe("execute -");
        self.say("sync");
    }

    fn copy(&mut self) {
        let extended = self.random.random_bool(0.5);
        let text = self.one_of(&[
            "COPY notes FROM STDIN",
            "COPY items TO STDOUT",
            "COPY (SELECT n FROM generate_series(1, 500) n) TO STDOUT",
        ]);
        if extended {
            for line in [&format!("parse - {text}"), "bind - -", "execute -"] {
                self.say(line);
            }
        } else {
            self.say(&format!("query {text}"));
        }
        if text.ends_with("FROM STDIN") {
            let data = self.one_of(&["data 1\\tcopied\\n", "data nonsense\\n", "data 1\\ta\\n1\\tb\\n"]);
            self.say(data);
            let end = self.one_of(&["done", "done", "fail on purpose"]);
            self.say(end);
        }
        if extended {
            self.say("sync");
        }
    }

    fn bind_and_execute(&mut self, portal: &str, statement: &str, values: &str) {
        let results = self.one_of(&["", "", "results=1 "]);
        self.say(&format!("bind {portal} {statement} {results}{values}"));
        self.maybe(&format!("describe portal {portal}"));
        let limit = self.one_of(&["", "", "", " 1", " 4"]);
        self.say(&format!("execute {portal}{limit}"));
    }

    fn maybe(&mut self, line: &str) {
        if self.random.random_bool(0.3) {
            self.say(line);
        }
    }
}

#[test]
fn a_seed_is_a_script() {
    let scripts: Vec<Script> = (0..50).map(generate).collect();
    assert_eq!(scripts, (0..50).map(generate).collect::<Vec<_>>());
    assert!(scripts.windows(2).all(|pair| pair[0].batches != pair[1].batches));
    for script in scripts {
        let printed = script.to_string();
        assert_eq!(super::script::read(&printed), Ok(vec![script]), "{printed}");
    }
}
