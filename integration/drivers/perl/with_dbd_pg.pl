# Perl's DBD::Pg. The server is the one that the PG* variables name.

use strict;
use warnings;
use utf8;

use DBI;
use DBD::Pg qw(:pg_types :async);
use Time::HiRes qw(sleep time);

$| = 1;

sub connected {
    return DBI->connect('dbi:Pg:', '', '', { RaiseError => 1, PrintError => 0, PrintWarn => 0, AutoCommit => 1, @_ });
}

sub feature {
    my ($name, $body) = @_;
    if (eval { my $connection = connected(); $body->($connection); $connection->disconnect; 1 }) {
        print "$name ok\n";
        return;
    }
    my $reason = join ' ', split ' ', $@;
    print "$name FAIL ", substr($reason, 0, 300), "\n";
    print STDERR "$name: $@\n";
}

sub equal {
    my ($found, $expected) = @_;
    return if !defined $found && !defined $expected;
    die "undefined\n" if !defined $found || !defined $expected;
    die substr($found, 0, 100), ' instead of ', substr($expected, 0, 100), "\n" if $found ne $expected;
}

sub expect {
    my ($sqlstate, $connection, $body) = @_;
    die "no $sqlstate\n" if eval { $body->(); 1 };
    equal($connection->state, $sqlstate);
}

sub one {
    my ($connection, $sql, @parameters) = @_;
    return $connection->selectrow_array($sql, undef, @parameters);
}

feature types => sub {
    my ($connection) = @_;
    my $statement = $connection->prepare(
        'SELECT ?::int4, ?::int8, ?::numeric, ?::text, ?::bytea, ?::bool, ?::uuid, ?::int4[], ?::text');
    my @values = (-7, 2**40, '12345678901234567890.123456789', "grüße 🐑 'quoted'", "\x00\xff\\", 1,
        '0188a6f8-0000-7000-8000-000000000001');
    for my $at (0 .. $#values) {
        $statement->bind_param($at + 1, $values[$at], $at == 4 ? { pg_type => PG_BYTEA } : undef);
    }
    $statement->bind_param(8, [1, 2, 3]);
    $statement->bind_param(9, undef);
    $statement->execute;
    my @row = $statement->fetchrow_array;
    equal($row[$_], $values[$_]) for 0 .. $#values;
    equal("@{$row[7]}", '1 2 3');
    equal($row[8], undef);
};

feature prepared => sub {
    my ($connection) = @_;
    $connection->do('DROP TABLE IF EXISTS numbers');
    $connection->do('CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n');
    my $sum = $connection->prepare('SELECT n + ?::int FROM numbers WHERE n = ?::int');
    my $double = sub {
        for my $n (@_) {
            $sum->execute($n, $n);
            equal($sum->fetchrow_array, 2 * $n);
            $sum->finish;
        }
    };
    $double->(1 .. 20);
    # Every statement that goes out of scope is deallocated by SQL.
    for my $text (0 .. 119) {
        my $statement = $connection->prepare("SELECT ?::int + $text");
        for my $n (0 .. 6) {
            $statement->execute($n);
            equal($statement->fetchrow_array, $n + $text);
            $statement->finish;
        }
    }
    $connection->do('ALTER TABLE numbers ADD note text');
    $double->(1 .. 9);
};

feature transactions => sub {
    my ($connection) = @_;
    $connection->do('DROP TABLE IF EXISTS ledger');
    $connection->do('CREATE TABLE ledger (n int)');
    $connection->begin_work;
    $connection->do('INSERT INTO ledger VALUES (?)', undef, 1);
    $connection->commit;
    $connection->begin_work;
    $connection->do('INSERT INTO ledger VALUES (?)', undef, 2);
    $connection->rollback;
    equal(one($connection, 'SELECT sum(n) FROM ledger'), 1);
    $connection->{ReadOnly} = 1;
    $connection->begin_work;
    expect('25006', $connection, sub { $connection->do('INSERT INTO ledger VALUES (3)') });
    $connection->rollback;
};

feature savepoints => sub {
    my ($connection) = @_;
    $connection->do('DROP TABLE IF EXISTS saved');
    $connection->do('CREATE TABLE saved (n int PRIMARY KEY)');
    $connection->begin_work;
    $connection->do('INSERT INTO saved VALUES (1)');
    $connection->pg_savepoint('s');
    expect('23505', $connection, sub { $connection->do('INSERT INTO saved VALUES (?)', undef, 1) });
    $connection->pg_rollback_to('s');
    $connection->do('INSERT INTO saved VALUES (?)', undef, 2);
    $connection->pg_release('s');
    $connection->commit;
    equal(one($connection, 'SELECT sum(n) FROM saved'), 3);
};

feature copy => sub {
    my ($connection) = @_;
    $connection->do('DROP TABLE IF EXISTS copied');
    $connection->do('CREATE TABLE copied (n int, note text)');
    $connection->do('COPY copied FROM STDIN');
    $connection->pg_putcopydata("$_\tnote $_\n") for 0 .. 19999;
    $connection->pg_putcopyend;
    $connection->do('COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT');
    my ($line, $lines) = ('', 0);
    while ($connection->pg_getcopydata($line) >= 0) {
        equal($line, "$lines\tnote $lines\n");
        $lines++;
    }
    equal($lines, 20000);
    $connection->do('COPY copied FROM STDIN');
    $connection->pg_putcopydata("none\tof the kind\n");
    expect('22P02', $connection, sub { $connection->pg_putcopyend });
    equal(one($connection, 'SELECT count(*) FROM copied'), 20000);
};

feature cursors => sub {
    my ($connection) = @_;
    $connection->begin_work;
    $connection->do('DECLARE walk CURSOR FOR SELECT generate_series(1, 1000)');
    my $sum = 0;
    while (my @some = @{ $connection->selectcol_arrayref('FETCH 100 FROM walk') }) {
        $sum += $_ for @some;
    }
    equal($sum, 500500);
    $connection->commit;
    $connection->do('DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10)');
    equal(scalar @{ $connection->selectcol_arrayref('FETCH 3 FROM kept') }, 3);
    equal(one($connection, 'FETCH kept'), 4);
    $connection->do('CLOSE kept');
};

feature notify => sub {
    my ($listener) = @_;
    my $sender = connected();
    $listener->do('LISTEN perl');
    equal(one($listener, 'SELECT 1'), 1);
    $sender->do("NOTIFY perl, 'one'");
    $sender->do("BEGIN; NOTIFY perl, 'never'; ROLLBACK");
    $sender->do("SELECT pg_notify('perl', ?)", undef, 'two');
    my @heard;
    for (my $end = time + 10; @heard < 2 && time < $end; sleep 0.05) {
        while (my $notification = $listener->pg_notifies) { push @heard, $notification->[2] }
    }
    equal("@heard", 'one two');
    $listener->do('UNLISTEN perl');
    $sender->do("NOTIFY perl, 'three'");
    sleep 0.2;
    equal($listener->pg_notifies, undef);
    $sender->disconnect;
};

feature cancel => sub {
    my ($connection) = @_;
    for (1 .. 2) {
        $connection->do('SELECT pg_sleep(20)', { pg_async => PG_ASYNC });
        sleep 0.3;
        $connection->pg_cancel;
        equal($connection->state, '57014');
        equal(one($connection, 'SELECT 1'), 1);
    }
};

feature errors => sub {
    my ($connection) = @_;
    $connection->do('DROP TABLE IF EXISTS strict');
    $connection->do('CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)');
    $connection->do('INSERT INTO strict VALUES (1)');
    expect('23505', $connection, sub { $connection->do('INSERT INTO strict VALUES (?)', undef, 1) });
    equal($connection->pg_error_field('constraint_name'), 'only_one');
    expect('42601', $connection, sub { $connection->do('SELEC 1') });
    expect('42P01', $connection, sub { one($connection, 'SELECT * FROM nowhere') });
    expect('22012', $connection, sub { one($connection, 'SELECT 1 / ?::int', 0) });
    $connection->begin_work;
    expect('22012', $connection, sub { $connection->do('SELECT 1 / 0') });
    expect('25P02', $connection, sub { $connection->do('SELECT 1') });
    $connection->rollback;
    my @notices;
    local $SIG{__WARN__} = sub { push @notices, $_[0] };
    $connection->{PrintWarn} = 1;
    $connection->do(q(DO $$ BEGIN RAISE NOTICE 'hear this'; END $$));
    equal("@notices" =~ /hear this/ ? 'heard' : "@notices", 'heard');
};

feature big => sub {
    my ($connection) = @_;
    my $text = 'ü' x 5_000_000;
    equal(one($connection, 'SELECT ?::text', $text) eq $text ? 'same' : 'other', 'same');
    my $raw = "\x00\x01\xfe\xff" x 2_500_000;
    my $statement = $connection->prepare('SELECT ?::bytea');
    $statement->bind_param(1, $raw, { pg_type => PG_BYTEA });
    $statement->execute;
    equal($statement->fetchrow_array eq $raw ? 'same' : 'other', 'same');
};

print "pipeline -\n";

feature settings => sub {
    local $ENV{PGOPTIONS} = '-c work_mem=7MB';
    local $ENV{PGAPPNAME} = 'from startup';
    my $connection = connected();
    my $usual = one($connection, 'SHOW statement_timeout');
    $connection->do('CREATE SCHEMA IF NOT EXISTS aside');
    $connection->do('DROP TABLE IF EXISTS aside.here; CREATE TABLE aside.here AS SELECT 42 AS n');
    $connection->do("SET search_path TO aside, public; SET TIME ZONE 'Asia/Tokyo'");
    $connection->do("SELECT set_config('lock_timeout', ?, false)", undef, '1234ms');
    $connection->begin_work;
    $connection->do("SET LOCAL statement_timeout = '9s'");
    equal(one($connection, 'SHOW statement_timeout'), '9s');
    $connection->commit;
    $connection->do('BEGIN; SET search_path TO nowhere; ROLLBACK');
    for (1 .. 10) {
        equal(one($connection, 'SHOW statement_timeout'), $usual);
        equal(one($connection, 'SELECT n FROM here'), 42);
        equal(one($connection, 'SHOW work_mem'), '7MB');
        equal(one($connection, 'SHOW TimeZone'), 'Asia/Tokyo');
        equal(one($connection, "SELECT current_setting('lock_timeout')"), '1234ms');
        equal(one($connection, 'SHOW application_name'), 'from startup');
    }
    $connection->do('RESET ALL');
    equal(one($connection, 'SHOW work_mem'), '7MB');
    $connection->disconnect;
};

feature pool => sub {
    # Perl's pool is the cached connection.
    my ($connection) = @_;
    $connection->do('DROP TABLE IF EXISTS counter');
    $connection->do('CREATE TABLE counter AS SELECT 0 AS n');
    for my $n (1 .. 80) {
        my $cached = DBI->connect_cached('dbi:Pg:', '', '', { RaiseError => 1, AutoCommit => 1 });
        equal(one($cached, 'UPDATE counter SET n = n + 1 RETURNING n'), $n);
    }
    DBI->connect_cached('dbi:Pg:', '', '', { RaiseError => 1, AutoCommit => 1 })->disconnect;
};
