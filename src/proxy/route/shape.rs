//! A text without the values of its literals: the key under which `... WHERE id = 1` and `... WHERE id = 2`
//! find the same verdict, so that clients which write values into their texts need no parse for each.
//!
//! Two texts of one shape must be the same tokens to PostgreSQL, up to values. That is easy to see as long as
//! nothing but plain quotes can hide a quote: at a backslash, a dollar sign or a comment there is no shape, and
//! the text stands for itself.

/// Stands for a number; between quotes, for a string. No text from a client holds a zero byte.
const VALUE: u8 = 0;

/// Writes the shape of `sql` to `shape`; `false` when `sql` has none. The bytes copied are the text's own but
/// for whole literals, so `shape` stays valid UTF-8.
pub(super) fn write(sql: &str, shape: &mut Vec<u8>) -> bool {
    shape.clear();
    let text = sql.as_bytes();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let next = text.get(at + 1);
        match byte {
            b'\\' | b'$' | VALUE => return false,
            b'-' if next == Some(&b'-') => return false,
            b'/' if next == Some(&b'*') => return false,
            b'\'' => {
                let Some(end) = end_of_quoted(text, at) else { return false };
                if text[at..end].contains(&b'\\') {
                    return false;
                }
                shape.extend([b'\'', VALUE, b'\'']);
                at = end;
            }
            b'"' => {
                let Some(end) = end_of_quoted(text, at) else { return false };
                shape.extend_from_slice(&text[at..end]);
                at = end;
            }
            b'0'..=b'9' if !continues_word(text, at) => {
                shape.push(VALUE);
                at += text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            }
            _ => {
                shape.push(byte);
                at += 1;
            }
        }
    }
    true
}

/// Behind the closing quote of what is opened at `start`; a doubled quote does not close.
fn end_of_quoted(text: &[u8], start: usize) -> Option<usize> {
    let quote = text[start];
    let mut at = start + 1;
    loop {
        at += text[at..].iter().position(|byte| *byte == quote)? + 1;
        if text.get(at) != Some(&quote) {
            return Some(at);
        }
        at += 1;
    }
}

/// The byte at `at` belongs to an identifier (`t1`) or to the number before it (`1e5`, `0x1f`).
fn continues_word(text: &[u8], at: usize) -> bool {
    let before = at.checked_sub(1).map(|before| text[before]);
    before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii())
}

#[cfg(test)]
mod tests {
    use super::write;

    /// `?` stands for a value.
    fn check(sql: &str, expected: Option<&str>) {
        let mut shape = b"left from before".to_vec();
        let written = write(sql, &mut shape);
        let shape = String::from_utf8(shape).expect("UTF-8").replace('\0', "?");
        assert_eq!(written.then_some(shape.as_str()), expected, "{sql}");
    }

    #[test]
    fn values_go_and_names_stay() {
        check("", Some(""));
        check("SELECT a FROM t1 WHERE id = 4711;", Some("SELECT a FROM t1 WHERE id = ?;"));
        check("VALUES (1,-2.50,.5,1e5,0x1F,1_000)", Some("VALUES (?,-?.?,.?,?e5,?x1F,?_000)"));
        check("SELECT md5('a''b'), \"f1\"\"'2\"(3)", Some("SELECT md5('?'), \"f1\"\"'2\"(?)"));
        check("SELECT 'a' 'b', é1, a[1:2]", Some("SELECT '?' '?', é1, a[?:?]"));
        check("SELECT '--', '/*', '\"', \"'\", \"$\"", Some("SELECT '?', '?', '?', \"'\", \"$\""));
        check("SELECT 'ünï' - 1 / 2", Some("SELECT '?' - ? / ?"));
    }

    #[test]
    fn what_may_hide_a_quote_has_no_shape() {
        for sql in [
            "SELECT $1",
            "SELECT $$'$$",
            "SELECT E'\\''",
            "SELECT '\\'",
            "SELECT 1 -- '",
            "SELECT /* ' */ 1",
            "SELECT 'open",
            "SELECT \"open",
            "SELECT 'open''",
            "\\",
            "SELECT \0",
        ] {
            check(sql, None);
        }
    }
}
