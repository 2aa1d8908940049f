// node-postgres. The server is the one that the PG* variables name.

const { deepStrictEqual: equal } = require('node:assert');
const { pipeline } = require('node:stream/promises');
const { Readable, Writable } = require('node:stream');
const { Client, Pool } = require('pg');
const Cursor = require('pg-cursor');
const copy = require('pg-copy-streams');
const { feature, absent, expectError, pause } = require('./features.cjs');

async function connected(body, options = {}) {
  const client = new Client(options);
  await client.connect();
  try {
    await body(client);
  } finally {
    await client.end();
  }
}

const one = async (client, text, values) => Object.values((await client.query(text, values)).rows[0])[0];

async function types(client) {
  const sql =
    'SELECT $1::int4 a, $2::int8 b, $3::numeric c, $4::text d, $5::bytea e, $6::bool f, $7::date::text g,' +
    ' $8::timestamptz h, $9::uuid i, $10::jsonb j, $11::int4[] k, $12::text l';
  const values = [
    -7, '1099511627776', '12345678901234567890.123456789', "grüße 🐑 'quoted'", Buffer.from([0, 255, 92]), true,
    '2024-02-29', new Date('2024-02-29T12:30:15.123Z'), '0188a6f8-0000-7000-8000-000000000001',
    { a: [1, null, 'ü'] }, [1, 2, 3], null,
  ];
  equal(Object.values((await client.query(sql, values)).rows[0]), values);
}

async function prepared(client) {
  await client.query('DROP TABLE IF EXISTS numbers');
  await client.query('CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n');
  const named = (name, text, values) => one(client, { name, text, values });
  for (let n = 1; n <= 20; n++) {
    equal(await named('numbers', 'SELECT n + $1 AS sum FROM numbers WHERE n = $2', [n, n]), 2 * n);
  }
  for (let text = 0; text < 120; text++) {
    for (let n = 0; n < 7; n++) equal(await named(`plus ${text}`, `SELECT $1::int + ${text}`, [n]), n + text);
  }
  await client.query('ALTER TABLE numbers ADD note text');
  for (let n = 1; n < 10; n++) {
    equal(await named('numbers', 'SELECT n + $1 AS sum FROM numbers WHERE n = $2', [n, n]), 2 * n);
  }
}

async function transactions(client) {
  await client.query('DROP TABLE IF EXISTS ledger');
  await client.query('CREATE TABLE ledger (n int)');
  for (const [n, end] of [[1, 'COMMIT'], [2, 'ROLLBACK']]) {
    await client.query('BEGIN');
    await client.query('INSERT INTO ledger VALUES ($1)', [n]);
    await client.query(end);
  }
  equal(await one(client, 'SELECT sum(n)::int FROM ledger'), 1);
  const results = await client.query('BEGIN; INSERT INTO ledger VALUES (3); COMMIT; SELECT sum(n)::int FROM ledger');
  equal(results.map((result) => result.command), ['BEGIN', 'INSERT', 'COMMIT', 'SELECT']);
  equal(results[3].rows[0].sum, 4);
  await client.query('BEGIN READ ONLY');
  await expectError('25006', client.query('INSERT INTO ledger VALUES (4)'));
  await client.query('ROLLBACK');
}

async function savepoints(client) {
  await client.query('DROP TABLE IF EXISTS saved');
  await client.query('CREATE TABLE saved (n int PRIMARY KEY)');
  await client.query('BEGIN');
  await client.query('INSERT INTO saved VALUES (1)');
  await client.query('SAVEPOINT s');
  await expectError('23505', client.query('INSERT INTO saved VALUES ($1)', [1]));
  await client.query('ROLLBACK TO s');
  await client.query('INSERT INTO saved VALUES ($1)', [2]);
  await client.query('RELEASE s');
  await client.query('COMMIT');
  equal(await one(client, 'SELECT sum(n)::int FROM saved'), 3);
}

async function copyBothWays(client) {
  await client.query('DROP TABLE IF EXISTS copied');
  await client.query('CREATE TABLE copied (n int, note text)');
  const lines = Array.from({ length: 20000 }, (_, n) => `${n}\tnote ${n}\n`);
  await pipeline(Readable.from(lines), client.query(copy.from('COPY copied FROM STDIN')));
  const parts = [];
  const collect = new Writable({ write: (part, _, done) => { parts.push(part); done(); } });
  await pipeline(client.query(copy.to('COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT')), collect);
  equal(Buffer.concat(parts).toString() === lines.join(''), true);
  const bad = pipeline(Readable.from(['none\tof the kind\n']), client.query(copy.from('COPY copied FROM STDIN')));
  await expectError('22P02', bad);
  equal(await one(client, 'SELECT count(*)::int FROM copied'), 20000);
}

async function cursors(client) {
  // Portals with a row limit: Execute and Flush, without a Sync in between.
  const cursor = client.query(new Cursor('SELECT generate_series(1, $1::int) AS n', [1000]));
  let sum = 0;
  for (;;) {
    const rows = await cursor.read(100);
    if (rows.length === 0) break;
    sum += rows.reduce((total, row) => total + row.n, 0);
  }
  equal(sum, 500500);
  await cursor.close();
  const early = client.query(new Cursor('SELECT generate_series(1, 1000) AS n'));
  equal((await early.read(3)).length, 3);
  await early.close();
  await client.query('DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10) AS n');
  equal((await client.query('FETCH 3 FROM kept')).rows.length, 3);
  equal(await one(client, 'FETCH kept'), 4);
  await client.query('CLOSE kept');
}

const notify = (listener) => connected(async (sender) => {
  const heard = [];
  listener.on('notification', (message) => heard.push(message.payload));
  await listener.query('LISTEN node_postgres');
  equal(await one(listener, 'SELECT 1'), 1);
  await sender.query("NOTIFY node_postgres, 'one'");
  await sender.query("BEGIN; NOTIFY node_postgres, 'never'; ROLLBACK");
  await sender.query('SELECT pg_notify($1, $2)', ['node_postgres', 'two']);
  for (let waited = 0; heard.length < 2 && waited < 100; waited++) await pause(50);
  equal(heard, ['one', 'two']);
  await listener.query('UNLISTEN node_postgres');
  await sender.query("NOTIFY node_postgres, 'three'");
  await pause(200);
  equal(heard, ['one', 'two']);
});

async function cancel(client) {
  const sleeping = expectError('57014', client.query('SELECT pg_sleep(20)'));
  await pause(300);
  // What node-postgres has for it: a second connection that sends nothing but the key.
  const canceller = new Client();
  const connection = canceller.connection;
  connection.on('connect', () => connection.cancel(client.processID, client.secretKey));
  connection.on('error', () => {});
  connection.connect(client.port, client.host);
  await sleeping;
  equal(await one(client, 'SELECT 1'), 1);
}

async function errors(client) {
  await client.query('DROP TABLE IF EXISTS strict');
  await client.query('CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)');
  await client.query('INSERT INTO strict VALUES (1)');
  equal((await expectError('23505', client.query('INSERT INTO strict VALUES ($1)', [1]))).constraint, 'only_one');
  equal((await expectError('42601', client.query('SELEC 1'))).position, '1');
  await expectError('42P01', client.query('SELECT * FROM nowhere'));
  await expectError('22012', client.query('SELECT 1 / $1::int', [0]));
  await client.query('BEGIN');
  await expectError('22012', client.query('SELECT 1 / 0'));
  await expectError('25P02', client.query('SELECT 1'));
  await client.query('ROLLBACK');
  const notices = [];
  client.on('notice', (notice) => notices.push(notice.message));
  await client.query("DO $$ BEGIN RAISE NOTICE 'hear this'; END $$");
  equal(notices, ['hear this']);
}

async function big(client) {
  const text = 'ü'.repeat(5_000_000);
  const raw = Buffer.alloc(10_000_000, Buffer.from([0, 1, 2, 254, 255]));
  equal((await one(client, 'SELECT $1::text', [text])) === text, true);
  equal((await one(client, 'SELECT $1::bytea', [raw])).equals(raw), true);
}

async function settings(client) {
  const usual = await one(client, 'SHOW statement_timeout');
  await client.query('CREATE SCHEMA IF NOT EXISTS aside');
  await client.query('DROP TABLE IF EXISTS aside.here; CREATE TABLE aside.here AS SELECT 42 AS n');
  await client.query("SET search_path TO aside, public; SET TIME ZONE 'Asia/Tokyo'");
  await client.query("SELECT set_config('lock_timeout', $1, false)", ['1234ms']);
  await client.query('BEGIN');
  await client.query("SET LOCAL statement_timeout = '9s'");
  equal(await one(client, 'SHOW statement_timeout'), '9s');
  await client.query('COMMIT');
  await client.query('BEGIN; SET search_path TO nowhere; ROLLBACK');
  for (let round = 0; round < 10; round++) {
    equal(await one(client, 'SHOW statement_timeout'), usual);
    equal(await one(client, 'SELECT n FROM here'), 42);
    equal(await one(client, 'SHOW work_mem'), '7MB');
    equal(await one(client, 'SHOW TimeZone'), 'Asia/Tokyo');
    equal(await one(client, "SELECT current_setting('lock_timeout')"), '1234ms');
    equal(await one(client, 'SHOW application_name'), 'from startup');
  }
  await client.query('RESET ALL');
  equal(await one(client, 'SHOW work_mem'), '7MB');
  equal(await one(client, 'SHOW lock_timeout'), '0');
}

async function pool(client) {
  await client.query('DROP TABLE IF EXISTS counter');
  await client.query('CREATE TABLE counter AS SELECT 0 AS n');
  const pool = new Pool({ max: 4 });
  const counts = await Promise.all(
    Array.from({ length: 80 }, async () => {
      const client = await pool.connect();
      try {
        await client.query('BEGIN');
        const n = await one(client, 'UPDATE counter SET n = n + $1 RETURNING n', [1]);
        await client.query('COMMIT');
        return n;
      } finally {
        client.release();
      }
    }),
  );
  await pool.end();
  equal(counts.sort((a, b) => a - b), Array.from({ length: 80 }, (_, n) => n + 1));
}

async function main() {
  await feature('types', () => connected(types));
  await feature('prepared', () => connected(prepared));
  await feature('transactions', () => connected(transactions));
  await feature('savepoints', () => connected(savepoints));
  await feature('copy', () => connected(copyBothWays));
  await feature('cursors', () => connected(cursors));
  await feature('notify', () => connected(notify));
  await feature('cancel', () => connected(cancel));
  await feature('errors', () => connected(errors));
  await feature('big', () => connected(big));
  absent('pipeline');
  await feature('settings', () => connected(settings, { options: '-c work_mem=7MB', application_name: 'from startup' }));
  await feature('pool', () => connected(pool));
}

main();
