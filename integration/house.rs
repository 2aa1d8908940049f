//! The walls of the house. A single crate gives no other: this test reads every import and every path in
//! `src/` and fails when a room looks where it must not (the table in `ARCHITECTURE.md`).
//!
//! It reads text, not types: comments and literals are blanked first, `super` is resolved against the file's
//! and the inline modules' place, `use` trees are expanded, and any `crate::room` path counts, imported or
//! not. What a macro assembles from pieces it cannot see.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// Which rooms each room may import. `app` and `sim` may import all.
const ROOMS: &[(&str, &[&str])] = &[
    ("pg", &[]),
    ("topology", &["pg"]),
    ("net", &["pg", "topology"]),
    ("proxy", &["pg", "topology", "net"]),
    ("relay", &["pg", "topology", "net"]),
    ("failover", &["pg", "topology", "net"]),
    ("admin", &["pg", "topology", "net", "proxy", "relay", "failover"]),
    ("app", &["pg", "topology", "net", "proxy", "relay", "failover", "admin"]),
    ("sim", &["pg", "topology", "net", "proxy", "relay", "failover", "admin", "app"]),
];

/// No clock, socket, file, environment, randomness or task.
const PURE: &[&str] = &["pg", "topology"];

/// What would make a pure room impure. A path is forbidden with everything below it. `Instant` as a value is
/// welcome; reading the clock is not.
const IMPURE: &[&str] = &[
    "std::net",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "std::os",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::time::Instant::now",
    "std::time::SystemTime",
    "tokio",
    "tokio_util",
    "tokio_postgres",
    "hyper",
    "socket2",
    "nix",
    "rand",
    "tracing",
    "prometheus",
    "parking_lot",
];

/// A pure room's unit tests may read it: an arbitrary instant is to be had nowhere else.
const CLOCK: &str = "std::time::Instant::now";

/// They are the end of a file. Values that others' unit tests use are in some.
const TESTS: [&str; 2] = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(crate) mod tests {"];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Breach {
    file: String,
    path: String,
    rule: &'static str,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.file, self.path, self.rule)
    }
}

#[test]
fn every_room_looks_only_where_it_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&src);
    assert!(files.len() > 10, "the sources are read");
    let mut breaches = BTreeSet::new();
    for file in files {
        let name = file.strip_prefix(&src).expect("listed below src").to_string_lossy().replace('\\', "/");
        let source = std::fs::read_to_string(&file).expect("a source file is readable");
        breaches.extend(check(&name, &source));
    }
    let lines: Vec<String> = breaches.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "imports that go through a wall:\n{}", lines.join("\n"));
}

#[test]
fn planted_breaches_are_caught() {
    for (file, source, expected) in [
        // Planes and each other, in every spelling.
        ("proxy/mod.rs", "use crate::relay::Store;", "crate::relay::Store"),
        ("proxy/pool/mod.rs", "use crate::{pg::Lsn, failover::decide};", "crate::failover::decide"),
        ("relay/mod.rs", "fn f() { crate::proxy::go(); }", "crate::proxy::go"),
        ("relay/store/file.rs", "use super::super::super::failover as control;", "crate::failover"),
        ("relay/mod.rs", "mod inner { use super::super::proxy::X; }", "crate::proxy::X"),
        ("relay/mod.rs", "mod a { mod b { } } use super::proxy::X;", "crate::proxy::X"),
        ("failover/mod.rs", "use bellwether::proxy::X;", "crate::proxy::X"),
        ("failover/mod.rs", "use crate as us;", "crate"),
        ("failover/mod.rs", "use crate::*;", "crate::*"),
        ("failover/mod.rs", "use crate::{self as us};", "crate"),
        ("relay/mod.rs", "use super::*;", "crate::*"),
        ("relay/mod.rs", "use r#crate::x; use crate :: proxy :: X;", "crate::proxy::X"),
        ("relay/mod.rs", "pub(crate) fn f(x: &crate\n    ::proxy::X) {}", "crate::proxy::X"),
        ("relay/mod.rs", "/* a comment */ use crate::/* hidden */proxy::X;", "crate::proxy::X"),
        ("relay/mod.rs", "const S: &str = \"\\\"\"; use crate::proxy::X;", "crate::proxy::X"),
        (
            "relay/mod.rs",
            "const C: char = '\"'; use crate::proxy::X; const D: char = '\"';",
            "crate::proxy::X",
        ),
        ("relay/mod.rs", "fn f() -> impl Sized + use<> { a; } use crate::proxy::X;", "crate::proxy::X"),
        ("relay/mod.rs", "macro_rules! m { () => { use {; } } } use crate::proxy::X;", "crate::proxy::X"),
        // Floors that look up, rooms that look at the root.
        ("net/mod.rs", "use crate::proxy::X;", "crate::proxy::X"),
        ("topology/mod.rs", "use crate::net::Stream;", "crate::net::Stream"),
        ("pg/types.rs", "use crate::topology::Term;", "crate::topology::Term"),
        ("admin/mod.rs", "use crate::app::config::Config;", "crate::app::config::Config"),
        ("relay/mod.rs", "use crate::sim::World;", "crate::sim::World"),
        // Purity.
        ("pg/wal/mod.rs", "use std::fs::File;", "std::fs::File"),
        ("pg/wal/mod.rs", "use std::{fmt, net::{IpAddr}};", "std::net::IpAddr"),
        ("pg/mod.rs", "fn f() { let x = ::std::env::var(\"X\"); }", "std::env::var"),
        (
            "topology/health.rs",
            "use std::time::Instant; fn f() { Instant::now(); }",
            "std::time::Instant::now",
        ),
        (
            "topology/health.rs",
            "use std::time::Instant as T; fn f() { T::now(); }",
            "std::time::Instant::now",
        ),
        ("topology/health.rs", "use std::time; fn f() { time::Instant::now(); }", "std::time::Instant::now"),
        (
            "topology/health.rs",
            "fn f() { std::time::Instant::now(); }\n#[cfg(test)]\nmod tests { use std::time::Instant; }",
            "std::time::Instant::now",
        ),
        ("topology/mod.rs", "#[cfg(test)]\nmod tests { use std::fs::File; }", "std::fs::File"),
        ("topology/mod.rs", "use std::time::{Duration, SystemTime};", "std::time::SystemTime"),
        ("topology/mod.rs", "fn f() { tokio::spawn(x); }", "tokio::spawn"),
        ("topology/mod.rs", "use std::*;", "std::*"),
        ("pg/auth/mod.rs", "use rand::random;", "rand::random"),
        ("pg/mod.rs", "fn f() { tracing::info!(\"x\"); }", "tracing::info"),
    ] {
        let caught = check(file, source);
        assert!(caught.iter().any(|b| b.path == expected), "{file}: {source}\ncaught: {caught:?}");
    }
}

#[test]
fn what_is_allowed_is_no_breach() {
    for (file, source) in [
        ("proxy/mod.rs", "use crate::{net::Client, pg::{Lsn, SqlState}, topology::*}; use super::pg;"),
        (
            "proxy/pool/mod.rs",
            "use super::super::proxy::Session; use super::session::X; use crate::proxy::Y;",
        ),
        ("proxy/pool/core.rs", "mod tests { use super::super::*; }"),
        (
            "proxy/mod.rs",
            "//! See [`crate::relay`].\n/* crate::relay /* nested */ */ const X: &str = \"crate::relay\";",
        ),
        ("proxy/mod.rs", "const X: &str = r#\"use crate::relay::X; \"quoted\" \"#; fn f<'a>(x: &'a str) {}"),
        ("proxy/mod.rs", "pub(crate) use self::session::Session; pub(in crate::proxy) struct S;"),
        ("topology/wal.rs", "use std::time::{Duration, Instant}; fn f(now: Instant) {}"),
        (
            "topology/wal.rs",
            "use std::fmt;\n#[cfg(test)]\npub(crate) mod tests { use std::time::Instant; fn f() { Instant::now(); } }",
        ),
        ("pg/mod.rs", "use std::io; fn f() -> io::ErrorKind { io::ErrorKind::NotFound } fn rand_like() {}"),
        ("app/run.rs", "use crate::{admin, failover, proxy, relay}; use std::fs;"),
        ("lib.rs", "pub mod relay;"),
        ("main.rs", "fn main() { bellwether::app::main(); }"),
    ] {
        assert_eq!(check(file, source), [], "{file}: {source}");
    }
}

/// The breaches in one file, named by its path below `src/`.
fn check(file: &str, source: &str) -> Vec<Breach> {
    let module = module_of(file);
    let Some(room) = module.first().cloned() else { return Vec::new() };
    let paths = |text| paths(&module, &tokens(&blank_comments_and_literals(text)));
    let end = TESTS.iter().filter_map(|tests| source.find(tests)).min().unwrap_or(source.len());
    let untested = paths(&source[..end]);
    let all = paths(source);
    let counts = |path: &&String| *path != CLOCK || untested.contains(path);
    let breach = |path: &str| rule_against(&room, path);
    let broken = all.iter().filter(counts).filter_map(|path| breach(path).map(|rule| (path, rule)));
    broken.map(|(path, rule)| Breach { file: file.to_owned(), path: path.clone(), rule }).collect()
}

/// Which rule of the house `path`, seen in `room`, breaks.
fn rule_against(room: &str, path: &str) -> Option<&'static str> {
    let mut parts = path.split("::");
    if parts.next() == Some("crate") {
        let (_, allowed) = ROOMS.iter().find(|(name, _)| *name == room)?;
        return match parts.next() {
            None | Some("*") => Some("name the room, not the whole crate"),
            Some(target) if target == room || allowed.contains(&target) => None,
            Some(target) if ROOMS.iter().any(|(name, _)| *name == target) => {
                Some("this room may not import that one")
            }
            Some(_) => None,
        };
    }
    let impure = |forbidden: &&str| *path == **forbidden || path.starts_with(&format!("{forbidden}::"));
    let everything = ["std::*", "std::time::Instant::*"].contains(&path);
    (PURE.contains(&room) && (everything || IMPURE.iter().any(impure))).then_some("this room is pure")
}

/// `proxy/pool/core.rs` is the module `proxy::pool::core`; the crate's root and `main` are in no room.
fn module_of(file: &str) -> Vec<String> {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    if stem == "lib" || stem == "main" { Vec::new() } else { stem.split('/').map(str::to_owned).collect() }
}

/// Every path of the file, absolute where it can be told: `use` trees expanded, `self` and `super` resolved,
/// imported names replaced by what they stand for.
fn paths(file_module: &[String], tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut imported: Vec<(String, String)> = Vec::new();
    let mut plain: Vec<String> = Vec::new();
    // The inline modules that are open here, with the depth of braces outside of each.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        let module: Vec<String> =
            file_module.iter().cloned().chain(inline.iter().map(|(name, _)| name.clone())).collect();
        match tokens[at].as_str() {
            "mod" if tokens.get(at + 2).is_some_and(|t| t == "{") => {
                inline.push((tokens[at + 1].clone(), depth));
                at += 2;
            }
            "{" => {
                depth += 1;
                at += 1;
            }
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last().is_some_and(|(_, outside)| *outside == depth) {
                    inline.pop();
                }
                at += 1;
            }
            // `+ use<'a>` in a bound imports nothing.
            "use" if tokens.get(at + 1).is_none_or(|t| t != "<") => {
                at = use_tree(tokens, at + 1, &[], &mut |path, name| {
                    let absolute = absolute(&module, path);
                    imported.push((name.to_owned(), absolute.clone()));
                    found.push(absolute);
                });
            }
            _ => {
                let (path, next) = plain_path(tokens, at);
                if path.len() > 1 {
                    let first = path[0].as_str();
                    match first {
                        "crate" | "self" | "super" | "bellwether" => found.push(absolute(&module, &path)),
                        _ => plain.push(path.join("::")),
                    }
                }
                at = next;
            }
        }
    }
    for path in plain {
        let (first, rest) = path.split_once("::").unwrap_or((&path, ""));
        let stands_for = imported.iter().filter(|(name, _)| name == first);
        found.extend(stands_for.map(|(_, whole)| format!("{whole}::{rest}")));
        found.push(path);
    }
    found
}

/// The path that starts at `at`, and where it ends.
fn plain_path(tokens: &[String], mut at: usize) -> (Vec<String>, usize) {
    let mut path = Vec::new();
    while at < tokens.len() {
        if tokens[at] == "::" {
            at += 1;
        } else if is_name(&tokens[at]) {
            path.push(tokens[at].clone());
            at += 1;
            if tokens.get(at).is_none_or(|t| t != "::") {
                break;
            }
        } else {
            at += usize::from(path.is_empty());
            break;
        }
    }
    (path, at.max(1))
}

/// Expands the `use` tree that starts at `at`; `each` gets every leaf's path and the name it has here.
fn use_tree(
    tokens: &[String],
    mut at: usize,
    prefix: &[String],
    each: &mut impl FnMut(&[String], &str),
) -> usize {
    let mut path = prefix.to_vec();
    let mut renamed = None;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    at = match tokens[at].as_str() {
                        // A semicolon has no place here; where there is one, this is no import.
                        "," | ";" => at + 1,
                        _ => use_tree(tokens, at, &path, each),
                    };
                }
                return at + 1;
            }
            "as" => {
                renamed = tokens.get(at + 1).cloned();
                at += 2;
            }
            "," | "}" | ";" => break,
            "self" if !prefix.is_empty() && path.len() == prefix.len() => at += 1,
            name => {
                path.push(name.to_owned());
                at += 1;
            }
        }
    }
    let name = renamed.or_else(|| path.last().cloned()).unwrap_or_default();
    each(&path, &name);
    // A group's comma and brace are its own; the statement's semicolon is not needed any more.
    at
}

/// `super::x` in `proxy::pool` is `crate::proxy::x`.
fn absolute(module: &[String], path: &[String]) -> String {
    let mut base: Vec<String> = match path.first().map(String::as_str) {
        Some("self" | "super") => module.to_vec(),
        Some("crate" | "bellwether") => Vec::new(),
        _ => return path.join("::"),
    };
    for part in path {
        match part.as_str() {
            "super" => {
                base.pop();
            }
            "self" | "crate" | "bellwether" => {}
            name => base.push(name.to_owned()),
        }
    }
    std::iter::once("crate".to_owned()).chain(base).collect::<Vec<_>>().join("::")
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Names, `::`, and every other character on its own.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = source.trim_start();
    while let Some(first) = rest.chars().next() {
        let name_len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let len = match first {
            _ if name_len > 0 => name_len,
            ':' if rest.starts_with("::") => 2,
            other => other.len_utf8(),
        };
        tokens.push(rest[..len].to_owned());
        rest = rest[len..].trim_start();
    }
    tokens
}

/// Comments, strings and characters become spaces; lifetimes stay.
fn blank_comments_and_literals(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let hidden = comment_len(rest).or_else(|| raw_string_len(rest, &out)).or_else(|| quoted_len(rest));
        let len = hidden.unwrap_or(first.len_utf8());
        match hidden {
            Some(_) => out.push(' '),
            None => out.push(first),
        }
        rest = &rest[len..];
    }
    out
}

fn comment_len(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let here = &text.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
        } else {
            at += 1;
        }
        if depth == 0 {
            break;
        }
    }
    Some(at)
}

/// `r"..."`, `r#"..."#` and their byte and C forms, unless the `r` ends a name.
fn raw_string_len(text: &str, before: &str) -> Option<usize> {
    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let start =
        text.strip_prefix("br").or_else(|| text.strip_prefix("cr")).or_else(|| text.strip_prefix('r'))?;
    let opened = start.trim_start_matches('#');
    let hashes = &start[..start.len() - opened.len()];
    let body = opened.strip_prefix('"')?;
    let end = format!("\"{hashes}");
    let body_len = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(text.len() - body.len() + body_len)
}

/// A string or a character literal. `'a` without a closing quote is a lifetime.
fn quoted_len(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| *c == '"' || *c == '\'')?;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return Some(i + 1);
        } else if quote == '\'' && text[1..i].chars().count() >= 1 && !text[1..].starts_with('\\') {
            return None;
        }
    }
    (quote == '"').then_some(text.len())
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a source directory is readable") {
        let path = entry.expect("a directory entry is readable").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
