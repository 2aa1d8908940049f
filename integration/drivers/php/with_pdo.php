<?php
// PHP's PDO. The server is the one that the PG* variables name.

function connect(string $more = ''): PDO
{
    $address = sprintf('pgsql:host=%s;port=%s;dbname=%s', getenv('PGHOST'), getenv('PGPORT'), getenv('PGDATABASE'));
    return new PDO($address . $more, getenv('PGUSER'), getenv('PGPASSWORD'));
}

function feature(string $name, callable $body): void
{
    try {
        $body(connect());
        echo "$name ok\n";
    } catch (Throwable $error) {
        echo "$name FAIL ", substr(preg_replace('/\s+/', ' ', $error->getMessage()), 0, 300), "\n";
        fwrite(STDERR, "$name: $error\n");
    }
}

function absent(string $name): void
{
    echo "$name -\n";
}

function equal(mixed $found, mixed $expected): void
{
    if ($found !== $expected) {
        $short = fn ($value) => substr(var_export($value, true), 0, 100);
        throw new Exception($short($found) . ' instead of ' . $short($expected));
    }
}

function one(PDO $connection, string $sql, array $parameters = []): mixed
{
    $statement = $connection->prepare($sql);
    $statement->execute($parameters);
    return $statement->fetchColumn();
}

function expect(string $sqlstate, callable $body): PDOException
{
    try {
        $body();
    } catch (PDOException $error) {
        equal((string) $error->errorInfo[0], $sqlstate);
        return $error;
    }
    throw new Exception("no $sqlstate");
}

feature('types', function (PDO $connection) {
    $statement = $connection->prepare('SELECT ?::int4, ?::int8, ?::numeric, ?::text, ?::bytea, ?::bool, ?::uuid, ?::text');
    $values = [
        [-7, PDO::PARAM_INT], [2 ** 40, PDO::PARAM_INT], ['12345678901234567890.123456789', PDO::PARAM_STR],
        ["grüße 🐑 'quoted'", PDO::PARAM_STR], ["\x00\xff\\", PDO::PARAM_LOB], [true, PDO::PARAM_BOOL],
        ['0188a6f8-0000-7000-8000-000000000001', PDO::PARAM_STR], [null, PDO::PARAM_NULL],
    ];
    foreach ($values as $at => [$value, $type]) {
        $statement->bindValue($at + 1, $value, $type);
    }
    $statement->execute();
    $row = $statement->fetch(PDO::FETCH_NUM);
    $row[4] = stream_get_contents($row[4]);
    equal($row, array_column($values, 0));
});

feature('prepared', function (PDO $connection) {
    $connection->exec('DROP TABLE IF EXISTS numbers');
    $connection->exec('CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n');
    $sum = $connection->prepare('SELECT n + ?::int FROM numbers WHERE n = ?::int');
    $double = function (int $from, int $to) use ($sum) {
        for ($n = $from; $n <= $to; $n++) {
            $sum->execute([$n, $n]);
            equal($sum->fetchColumn(), 2 * $n);
        }
    };
    $double(1, 20);
    // Every statement that goes out of scope is deallocated by SQL.
    for ($text = 0; $text < 120; $text++) {
        $statement = $connection->prepare("SELECT ?::int + $text");
        for ($n = 0; $n < 7; $n++) {
            $statement->execute([$n]);
            equal($statement->fetchColumn(), $n + $text);
        }
    }
    $connection->exec('ALTER TABLE numbers ADD note text');
    $double(1, 9);
});

feature('transactions', function (PDO $connection) {
    $connection->exec('DROP TABLE IF EXISTS ledger');
    $connection->exec('CREATE TABLE ledger (n int)');
    $connection->beginTransaction();
    $connection->prepare('INSERT INTO ledger VALUES (?)')->execute([1]);
    $connection->commit();
    $connection->beginTransaction();
    $connection->prepare('INSERT INTO ledger VALUES (?)')->execute([2]);
    equal($connection->inTransaction(), true);
    $connection->rollBack();
    equal($connection->inTransaction(), false);
    equal((int) one($connection, 'SELECT sum(n) FROM ledger'), 1);
    $connection->exec('BEGIN READ ONLY');
    expect('25006', fn () => $connection->exec('INSERT INTO ledger VALUES (3)'));
    $connection->exec('ROLLBACK');
});

feature('savepoints', function (PDO $connection) {
    $connection->exec('DROP TABLE IF EXISTS saved');
    $connection->exec('CREATE TABLE saved (n int PRIMARY KEY)');
    $connection->beginTransaction();
    $insert = $connection->prepare('INSERT INTO saved VALUES (?)');
    $insert->execute([1]);
    $connection->exec('SAVEPOINT s');
    expect('23505', fn () => $insert->execute([1]));
    $connection->exec('ROLLBACK TO s');
    $insert->execute([2]);
    $connection->exec('RELEASE s');
    $connection->commit();
    equal((int) one($connection, 'SELECT sum(n) FROM saved'), 3);
});

feature('copy', function (PDO $connection) {
    $connection->exec('DROP TABLE IF EXISTS copied');
    $connection->exec('CREATE TABLE copied (n int, note text)');
    $lines = array_map(fn ($n) => "$n\tnote $n", range(0, 19999));
    equal($connection->pgsqlCopyFromArray('copied', $lines), true);
    $out = array_map('trim', $connection->pgsqlCopyToArray('copied'));
    sort($out);
    sort($lines);
    equal($out === $lines, true);
    expect('22P02', fn () => $connection->pgsqlCopyFromArray('copied', ["none\tof the kind"]));
    equal((int) one($connection, 'SELECT count(*) FROM copied'), 20000);
});

feature('cursors', function (PDO $connection) {
    $connection->beginTransaction();
    $scroll = [PDO::ATTR_CURSOR => PDO::CURSOR_SCROLL];
    $cursor = $connection->prepare('SELECT n FROM generate_series(1, 1000) n', $scroll);
    $cursor->execute();
    equal($cursor->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_ABS, 500), [500]);
    equal($cursor->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_PRIOR), [499]);
    $cursor = null;
    $connection->commit();
    $connection->exec('DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10)');
    equal(count($connection->query('FETCH 3 FROM kept')->fetchAll()), 3);
    equal($connection->query('FETCH kept')->fetchColumn(), 4);
    $connection->exec('CLOSE kept');
});

feature('notify', function (PDO $listener) {
    $sender = connect();
    $listener->exec('LISTEN php');
    equal(one($listener, 'SELECT 1'), 1);
    $sender->exec("NOTIFY php, 'one'");
    $sender->exec("BEGIN; NOTIFY php, 'never'; ROLLBACK");
    one($sender, "SELECT pg_notify('php', ?)", ['two']);
    foreach (['one', 'two'] as $expected) {
        equal($listener->pgsqlGetNotify(PDO::FETCH_ASSOC, 10000)['payload'] ?? null, $expected);
    }
    $listener->exec('UNLISTEN php');
    $sender->exec("NOTIFY php, 'three'");
    equal($listener->pgsqlGetNotify(PDO::FETCH_ASSOC, 200), false);
});

absent('cancel');

feature('errors', function (PDO $connection) {
    $connection->exec('DROP TABLE IF EXISTS strict');
    $connection->exec('CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)');
    $connection->exec('INSERT INTO strict VALUES (1)');
    $error = expect('23505', fn () => one($connection, 'INSERT INTO strict VALUES (?)', [1]));
    equal(str_contains($error->getMessage(), 'only_one'), true);
    expect('42601', fn () => $connection->exec('SELEC 1'));
    expect('42P01', fn () => one($connection, 'SELECT * FROM nowhere'));
    expect('22012', fn () => one($connection, 'SELECT 1 / ?::int', [0]));
    $connection->beginTransaction();
    expect('22012', fn () => $connection->exec('SELECT 1 / 0'));
    expect('25P02', fn () => $connection->exec('SELECT 1'));
    $connection->rollBack();
    equal(one($connection, 'SELECT 1'), 1);
});

feature('big', function (PDO $connection) {
    $text = str_repeat('ü', 5_000_000);
    equal(one($connection, 'SELECT ?::text', [$text]) === $text, true);
    $raw = str_repeat("\x00\x01\xfe\xff", 2_500_000);
    $statement = $connection->prepare('SELECT ?::bytea');
    $statement->bindValue(1, $raw, PDO::PARAM_LOB);
    $statement->execute();
    equal(stream_get_contents($statement->fetchColumn()) === $raw, true);
});

absent('pipeline');

feature('settings', function () {
    $connection = connect(";options='-c work_mem=7MB -c application_name=startup'");
    $usual = one($connection, 'SHOW statement_timeout');
    $connection->exec('CREATE SCHEMA IF NOT EXISTS aside');
    $connection->exec('DROP TABLE IF EXISTS aside.here; CREATE TABLE aside.here AS SELECT 42 AS n');
    $connection->exec("SET search_path TO aside, public; SET TIME ZONE 'Asia/Tokyo'");
    one($connection, "SELECT set_config('lock_timeout', ?, false)", ['1234ms']);
    $connection->beginTransaction();
    $connection->exec("SET LOCAL statement_timeout = '9s'");
    equal(one($connection, 'SHOW statement_timeout'), '9s');
    $connection->commit();
    $connection->exec('BEGIN; SET search_path TO nowhere; ROLLBACK');
    for ($round = 0; $round < 10; $round++) {
        equal(one($connection, 'SHOW statement_timeout'), $usual);
        equal(one($connection, 'SELECT n FROM here'), 42);
        equal(one($connection, 'SHOW work_mem'), '7MB');
        equal(one($connection, 'SHOW TimeZone'), 'Asia/Tokyo');
        equal(one($connection, "SELECT current_setting('lock_timeout')"), '1234ms');
        equal(one($connection, 'SHOW application_name'), 'startup');
    }
    $connection->exec('RESET ALL');
    equal(one($connection, 'SHOW work_mem'), '7MB');
});

feature('pool', function (PDO $connection) {
    // PHP's pool is the persistent connection.
    $connection->exec('DROP TABLE IF EXISTS counter');
    $connection->exec('CREATE TABLE counter AS SELECT 0 AS n');
    $address = sprintf('pgsql:host=%s;port=%s;dbname=%s', getenv('PGHOST'), getenv('PGPORT'), getenv('PGDATABASE'));
    for ($n = 1; $n <= 80; $n++) {
        $kept = new PDO($address, getenv('PGUSER'), getenv('PGPASSWORD'), [PDO::ATTR_PERSISTENT => true]);
        equal(one($kept, 'UPDATE counter SET n = n + 1 RETURNING n'), $n);
        $kept = null;
    }
});
