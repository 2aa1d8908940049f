# Ruby's pg. The server is the one that the PG* variables name.

require 'pg'

def feature(name)
  connection = PG.connect
  yield connection
  puts "#{name} ok"
rescue StandardError => e
  puts "#{name} FAIL #{e.class}: #{e.message.split.join(' ')[0, 300]}"
  warn e.full_message
ensure
  $stdout.flush
  connection&.close
end

def absent(name) = puts("#{name} -")

def equal(found, expected)
  raise "#{found.inspect[0, 100]} instead of #{expected.inspect[0, 100]}" unless found == expected
end

def expect(sqlstate)
  yield
  raise "no #{sqlstate}"
rescue PG::Error => e
  equal(e.result.error_field(PG::Result::PG_DIAG_SQLSTATE), sqlstate)
  e
end

def one(connection, sql, *parameters) = connection.exec_params(sql, parameters).getvalue(0, 0)

feature('types') do |connection|
  connection.type_map_for_results = PG::BasicTypeMapForResults.new(connection)
  raw = "\x00\xFF\\".b
  row = connection.exec_params(
    'SELECT $1::int4, $2::int8, $3::text, $4::bytea, $5::bool, $6::numeric::text, $7::uuid::text, $8::int4[], $9::text',
    [-7, 2**40, "grüße 🐑 'quoted'", { value: raw, format: 1 }, true, '12345678901234567890.123456789',
     '0188a6f8-0000-7000-8000-000000000001', '{1,2,3}', nil]
  ).values[0]
  equal(row, [-7, 2**40, "grüße 🐑 'quoted'", raw, true, '12345678901234567890.123456789',
              '0188a6f8-0000-7000-8000-000000000001', [1, 2, 3], nil])
end

feature('prepared') do |connection|
  connection.exec('DROP TABLE IF EXISTS numbers')
  connection.exec('CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) n')
  connection.prepare('sum', 'SELECT n + $1 FROM numbers WHERE n = $1')
  (1..20).each { |n| equal(connection.exec_prepared('sum', [n]).getvalue(0, 0), (2 * n).to_s) }
  equal(connection.describe_prepared('sum').nfields, 1)
  120.times do |text|
    connection.prepare("plus #{text}", "SELECT $1::int + #{text}")
    7.times { |n| equal(connection.exec_prepared("plus #{text}", [n]).getvalue(0, 0), (n + text).to_s) }
  end
  connection.exec('ALTER TABLE numbers ADD note text')
  (1..9).each { |n| equal(connection.exec_prepared('sum', [n]).getvalue(0, 0), (2 * n).to_s) }
  # As ActiveRecord's pool of statements does it.
  connection.exec('DEALLOCATE sum')
  expect('26000') { connection.exec_prepared('sum', [1]) }
  connection.exec('DEALLOCATE "plus 1"')
  connection.prepare('plus 1', 'SELECT 7')
  equal(connection.exec_prepared('plus 1').getvalue(0, 0), '7')
  connection.exec('DEALLOCATE ALL')
  expect('26000') { connection.exec_prepared('plus 2', [1]) }
end

feature('transactions') do |connection|
  connection.exec('DROP TABLE IF EXISTS ledger')
  connection.exec('CREATE TABLE ledger (n int)')
  connection.transaction { |inside| inside.exec('INSERT INTO ledger VALUES (1)') }
  begin
    connection.transaction do |inside|
      inside.exec('INSERT INTO ledger VALUES (2)')
      raise KeyError
    end
  rescue KeyError
    equal(connection.transaction_status, PG::PQTRANS_IDLE)
  end
  equal(one(connection, 'SELECT sum(n) FROM ledger'), '1')
  connection.exec('BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY')
  expect('25006') { connection.exec('INSERT INTO ledger VALUES (3)') }
  equal(connection.transaction_status, PG::PQTRANS_INERROR)
  connection.exec('ROLLBACK')
end

feature('savepoints') do |connection|
  connection.exec('DROP TABLE IF EXISTS saved')
  connection.exec('CREATE TABLE saved (n int PRIMARY KEY)')
  connection.transaction do
    connection.exec('INSERT INTO saved VALUES (1)')
    connection.exec('SAVEPOINT s')
    expect('23505') { connection.exec_params('INSERT INTO saved VALUES ($1)', [1]) }
    connection.exec('ROLLBACK TO s')
    connection.exec_params('INSERT INTO saved VALUES ($1)', [2])
    connection.exec('RELEASE s')
  end
  equal(one(connection, 'SELECT sum(n) FROM saved'), '3')
end

feature('copy') do |connection|
  connection.exec('DROP TABLE IF EXISTS copied')
  connection.exec('CREATE TABLE copied (n int, note text)')
  lines = (0...20_000).map { |n| "#{n}\tnote #{n}\n" }
  connection.copy_data('COPY copied FROM STDIN') { lines.each { |line| connection.put_copy_data(line) } }
  out = []
  connection.copy_data('COPY (SELECT n, note FROM copied ORDER BY n) TO STDOUT') do
    while (line = connection.get_copy_data)
      out << line
    end
  end
  equal(out == lines, true)
  expect('22P02') { connection.copy_data('COPY copied FROM STDIN') { connection.put_copy_data("none\tof it\n") } }
  equal(one(connection, 'SELECT count(*) FROM copied'), '20000')
end

feature('cursors') do |connection|
  connection.transaction do
    connection.exec('DECLARE walk CURSOR FOR SELECT generate_series(1, 1000)')
    sum = 0
    until (rows = connection.exec('FETCH 100 FROM walk')).ntuples.zero?
      sum += rows.column_values(0).sum(&:to_i)
    end
    equal(sum, 500_500)
  end
  connection.exec('DECLARE kept CURSOR WITH HOLD FOR SELECT generate_series(1, 10)')
  equal(connection.exec('FETCH 3 FROM kept').ntuples, 3)
  equal(connection.exec('FETCH kept').getvalue(0, 0), '4')
  connection.exec('CLOSE kept')
  # Single-row mode.
  connection.send_query('SELECT generate_series(1, 1000)')
  connection.set_single_row_mode
  seen = 0
  connection.get_result.stream_each { seen += 1 }
  connection.get_result
  equal(seen, 1000)
end

feature('notify') do |listener|
  sender = PG.connect
  listener.exec('LISTEN ruby')
  equal(one(listener, 'SELECT 1'), '1')
  sender.exec("NOTIFY ruby, 'one'")
  sender.exec("BEGIN; NOTIFY ruby, 'never'; ROLLBACK")
  sender.exec_params("SELECT pg_notify('ruby', $1)", ['two'])
  heard = []
  2.times { listener.wait_for_notify(10) { |_channel, _pid, payload| heard << payload } }
  equal(heard, %w[one two])
  listener.exec('UNLISTEN ruby')
  sender.exec("NOTIFY ruby, 'three'")
  equal(listener.wait_for_notify(0.2), nil)
  sender.close
end

feature('cancel') do |connection|
  2.times do
    canceller = Thread.new do
      sleep 0.3
      connection.cancel
    end
    expect('57014') { connection.exec('SELECT pg_sleep(20)') }
    canceller.join
    equal(one(connection, 'SELECT 1'), '1')
  end
end

feature('errors') do |connection|
  connection.exec('DROP TABLE IF EXISTS strict')
  connection.exec('CREATE TABLE strict (n int CONSTRAINT only_one PRIMARY KEY)')
  connection.exec('INSERT INTO strict VALUES (1)')
  error = expect('23505') { connection.exec_params('INSERT INTO strict VALUES ($1)', [1]) }
  equal(error.result.error_field(PG::Result::PG_DIAG_CONSTRAINT_NAME), 'only_one')
  expect('42601') { connection.exec('SELEC 1') }
  expect('42P01') { connection.exec('SELECT * FROM nowhere') }
  connection.exec('BEGIN')
  expect('22012') { connection.exec('SELECT 1 / 0') }
  expect('25P02') { connection.exec('SELECT 1') }
  connection.exec('ROLLBACK')
  notices = []
  connection.set_notice_processor { |notice| notices << notice.strip }
  connection.exec("DO $$ BEGIN RAISE NOTICE 'hear this'; END $$")
  equal(notices, ['NOTICE:  hear this'])
end

feature('big') do |connection|
  text = 'ü' * 5_000_000
  raw = (0..255).to_a.pack('C*') * 40_000
  equal(one(connection, 'SELECT $1::text', text) == text, true)
  result = connection.exec_params('SELECT $1::bytea', [{ value: raw, format: 1 }], 1)
  equal(result.getvalue(0, 0) == raw, true)
end

feature('pipeline') do |connection|
  connection.enter_pipeline_mode
  100.times do |n|
    connection.send_query_params('SELECT 100 / $1::int', [n % 10])
    connection.pipeline_sync
  end
  100.times do |n|
    result = connection.get_result
    if (n % 10).zero?
      equal(result.error_field(PG::Result::PG_DIAG_SQLSTATE), '22012')
    else
      equal(result.getvalue(0, 0), (100 / (n % 10)).to_s)
    end
    equal(connection.get_result, nil)
    equal(connection.get_result.result_status, PG::PGRES_PIPELINE_SYNC)
  end
  connection.exit_pipeline_mode
  equal(one(connection, 'SELECT 1'), '1')
end

feature('settings') do
  connection = PG.connect(options: '-c work_mem=7MB', application_name: 'from startup')
  usual = one(connection, 'SHOW statement_timeout')
  connection.exec('CREATE SCHEMA IF NOT EXISTS aside')
  connection.exec('DROP TABLE IF EXISTS aside.here; CREATE TABLE aside.here AS SELECT 42 AS n')
  connection.exec("SET search_path TO aside, public; SET TIME ZONE 'Asia/Tokyo'")
  connection.exec_params("SELECT set_config('lock_timeout', $1, false)", ['1234ms'])
  connection.transaction do
    connection.exec("SET LOCAL statement_timeout = '9s'")
    equal(one(connection, 'SHOW statement_timeout'), '9s')
  end
  connection.exec('BEGIN; SET search_path TO nowhere; ROLLBACK')
  10.times do
    equal(one(connection, 'SHOW statement_timeout'), usual)
    equal(one(connection, 'SELECT n FROM here'), '42')
    equal(one(connection, 'SHOW work_mem'), '7MB')
    equal(one(connection, 'SHOW TimeZone'), 'Asia/Tokyo')
    equal(one(connection, "SELECT current_setting('lock_timeout')"), '1234ms')
    equal(one(connection, 'SHOW application_name'), 'from startup')
  end
  equal(connection.parameter_status('TimeZone'), 'Asia/Tokyo')
  connection.set_client_encoding('LATIN1')
  equal(one(connection, "SELECT U&'\\00fc'").b, "\xFC".b)
  connection.exec('RESET ALL')
  equal(one(connection, 'SHOW work_mem'), '7MB')
  connection.exec('DISCARD ALL')
  equal(one(connection, 'SHOW lock_timeout'), '0')
end

# Its pools are those of frameworks.
absent('pool')
