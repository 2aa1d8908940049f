// postgres.js. The server is the one that the PG* variables name.

const { deepStrictEqual: equal } = require('node:assert');
const postgres = require('postgres');
const { feature, absent, expectError, pause } = require('./features.cjs');

const connection = { work_mem: '7MB', application_name: 'from startup' };

/** `body` with a pool of one connection, which is a session. */
async function connected(body, options = {}) {
  const sql = postgres({ max: 1, onnotice: () => {}, connection, ...options });
  try {
    await body(sql);
  } finally {
    await sql.end({ timeout: 5 });
  }
}

const one = async (query) => Object.values((await query)[0])[0];

async function types(sql) {
  const row = await sql`
    SELECT ${-7}::int4 a, ${'1099511627776'}::int8 b, ${'12345678901234567890.123456789'}::numeric c,
      ${"grüße 🐑 'quoted'"}::text d, ${Buffer.from([0, 255, 92])}::bytea e, ${true}::bool f,
      ${new Date('2024-02-29T12:30:15.123Z')}::timestamptz g, ${'0188a6f8-0000-7000-8000-000000000001'}::uuid h,
      ${sql.json({ a: [1, null, 'ü'] })}::jsonb i, ${[1, 2, 3]}::int4[] j, ${null}::text k`;
  equal(Object.values(row[0]), [
    -7, '1099511627776', '12345678901234567890.123456789', "grüße 🐑 'quoted'", Buffer.from([0, 255, 92]), true,
    new Date('2024-02-29T12:30:15.123Z'), '0188a6f8-0000-7000-8000-000000000001', { a: [1, null, 'ü'] }, [1, 2, 3], null,
  ]);
}

async function prepared(sql) {
  await sql`DROP TABLE IF EXISTS numbers`;
  await sql`CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n`;
  for (let n = 1; n <= 20; n++) equal(await one(sql`SELECT n + ${n}::int FROM numbers WHERE n = ${n}`), 2 * n);
  for (let text = 0; text < 120; text++) {
    for (let n = 0; n < 7; n++) equal(await one(sql.unsafe(`SELECT $1::int + ${text}`, [n], { prepare: true })), n + text);
  }
  await sql`ALTER TABLE numbers ADD note text`;
  for (let n = 1; n < 10; n++) equal(await one(sql`SELECT n + ${n}::int FROM numbers WHERE n = ${n}`), 2 * n);
}

async function transactions(sql) {
  await sql`DROP TABLE IF EXISTS ledger`;
  await sql`CREATE TABLE ledger (n int)`;
  await sql.begin((sql) => sql`INSERT INTO ledger VALUES (${1})`);
  const undone = sql.begin(async (sql) => {
    await sql`INSERT INTO ledger VALUES (${2})`;
    throw Object.assign(new Error('undone'), { code: 'undone' });
  });
  await expectError('undone', undone);
  equal(await one(sql`SELECT sum(n)::int FROM ledger`), 1);
  await expectError('25006', sql.begin('read only', (sql) => sql`INSERT INTO ledger VALUES (3)`));
}

async function savepoints(sql) {
  await sql`DROP TABLE IF EXISTS saved`;
  await sql`CREATE TABLE saved (n int PRIMARY KEY)`;
  await sql.begin(async (sql) => {
    await sql`INSERT INTO saved VALUES (1)`;
    await expectError('23505', sql.savepoint((sql) => sql`INSERT INTO saved VALUES (${1})`));
    await sql.savepoint((sql) => sql`INSERT INTO saved VALUES (${2})`);
  });
  equal(await one(sql`SELECT sum(n)::int FROM saved`), 3);
}

async function cursors(sql) {
  let sum = 0;
  await sql`SELECT generate_series(1, ${1000}::int) AS n`.cursor(100, (rows) => {
    for (const row of rows) sum += row.n;
  });
  equal(sum, 500500);
  let seen = 0;
  for await (const rows of sql`SELECT generate_series(1, 1000) AS n`.cursor(10)) {
    seen += rows.length;
    if (seen === 30) break;
  }
  equal(await one(sql`SELECT 1`), 1);
}

async function notify(sql) {
  const heard = [];
  const listening = await sql.listen('postgres_js', (payload) => heard.push(payload));
  await sql.notify('postgres_js', 'one');
  await sql`SELECT pg_notify('postgres_js', ${'two'})`;
  for (let waited = 0; heard.length < 2 && waited < 100; waited++) await pause(50);
  equal(heard, ['one', 'two']);
  await listening.unlisten();
  await sql.notify('postgres_js', 'three');
  await pause(200);
  equal(heard, ['one', 'two']);
}

async function cancel(sql) {
  const query = sql`SELECT pg_sleep(20)`;
  setTimeout(() => query.cancel(), 300);
  await expectError('57014', query);
  equal(await one(sql`SELECT 1`), 1);
}

async function errors(sql) {
  await sql`DROP TABLE IF EXISTS strict`;
  await sql`CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)`;
  await sql`INSERT INTO strict VALUES (1)`;
  equal((await expectError('23505', sql`INSERT INTO strict VALUES (${1})`)).constraint_name, 'only_one');
  await expectError('42601', sql`SELEC 1`);
  await expectError('42P01', sql`SELECT * FROM nowhere`);
  await expectError('22012', sql`SELECT 1 / ${0}::int`);
  equal(await one(sql`SELECT 1`), 1);
}

async function big(sql) {
  const text = 'ü'.repeat(5_000_000);
  const raw = Buffer.alloc(10_000_000, Buffer.from([0, 1, 2, 254, 255]));
  equal((await one(sql`SELECT ${text}::text`)) === text, true);
  equal((await one(sql`SELECT ${raw}::bytea`)).equals(raw), true);
}

/** postgres.js sends what it is asked for without waiting for earlier answers. */
async function requestsAtOnce(sql) {
  const queries = Array.from({ length: 200 }, (_, n) => one(sql`SELECT 100 / ${n % 10}::int AS n`));
  const results = await Promise.allSettled(queries);
  results.forEach((result, n) => {
    if (n % 10 === 0) equal(result.reason.code, '22012');
    else equal(result.value, Math.trunc(100 / (n % 10)));
  });
}

async function settings(sql) {
  const usual = await one(sql`SHOW statement_timeout`);
  await sql`CREATE SCHEMA IF NOT EXISTS aside`;
  await sql`DROP TABLE IF EXISTS aside.here`;
  await sql`CREATE TABLE aside.here AS SELECT 42 AS n`;
  await sql`SET search_path TO aside, public`;
  await sql`SET TIME ZONE 'Asia/Tokyo'`;
  await sql`SELECT set_config('lock_timeout', ${'1234ms'}, false)`;
  await sql.begin(async (sql) => {
    await sql`SET LOCAL statement_timeout = '9s'`;
    equal(await one(sql`SHOW statement_timeout`), '9s');
  });
  await sql.unsafe('BEGIN; SET search_path TO nowhere; ROLLBACK');
  for (let round = 0; round < 10; round++) {
    equal(await one(sql`SHOW statement_timeout`), usual);
    equal(await one(sql`SELECT n FROM here`), 42);
    equal(await one(sql`SHOW work_mem`), '7MB');
    equal(await one(sql`SHOW TimeZone`), 'Asia/Tokyo');
    equal(await one(sql`SELECT current_setting('lock_timeout')`), '1234ms');
    equal(await one(sql`SHOW application_name`), 'from startup');
  }
  await sql`RESET ALL`;
  equal(await one(sql`SHOW work_mem`), '7MB');
}

async function pool(sql) {
  await sql`DROP TABLE IF EXISTS counter`;
  await sql`CREATE TABLE counter AS SELECT 0 AS n`;
  await connected(async (sql) => {
    const count = () => sql.begin((sql) => one(sql`UPDATE counter SET n = n + ${1} RETURNING n`));
    const counts = await Promise.all(Array.from({ length: 80 }, count));
    equal(counts.sort((a, b) => a - b), Array.from({ length: 80 }, (_, n) => n + 1));
  }, { max: 4 });
}

async function main() {
  await feature('types', () => connected(types));
  await feature('prepared', () => connected(prepared));
  await feature('transactions', () => connected(transactions));
  await feature('savepoints', () => connected(savepoints));
  // Its COPY streams now and then wait for ever at the server itself, too.
  absent('copy');
  await feature('cursors', () => connected(cursors));
  await feature('notify', () => connected(notify));
  await feature('cancel', () => connected(cancel));
  await feature('errors', () => connected(errors));
  await feature('big', () => connected(big));
  await feature('pipeline', () => connected(requestsAtOnce));
  await feature('settings', () => connected(settings));
  await feature('pool', () => connected(pool));
}

main();
