DROP SCHEMA IF EXISTS public CASCADE;
CREATE SCHEMA public AUTHORIZATION app;
SET ROLE app;
CREATE TYPE mood AS ENUM ('calm', 'wild');
CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, price numeric(10,2), mood mood);
INSERT INTO items VALUES (1, 'ewe', 10.50, 'calm'), (2, 'ram', 99.99, 'wild'), (3, 'bell', 0.05, NULL);
CREATE TABLE notes (id int PRIMARY KEY REFERENCES items DEFERRABLE INITIALLY DEFERRED, note text);
CREATE SEQUENCE numbers;
CREATE FUNCTION warn(what text) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'told %', what USING DETAIL = 'a detail', HINT = 'a hint';
    RETURN length(what);
END $$;
CREATE FUNCTION fails(code text) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'failed on purpose' USING ERRCODE = code, DETAIL = 'where and why', TABLE = 'items';
END $$;
CREATE PROCEDURE twice(what text) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO notes VALUES (1, what);
    COMMIT;
    INSERT INTO notes VALUES (2, what);
END $$;
CREATE FUNCTION prepares(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('PREPARE %I AS SELECT ''of a function''', name);
EXCEPTION WHEN duplicate_prepared_statement THEN
    NULL;
END $$;
RESET ROLE;
