//! PgBouncer's `userlist.txt`: `"user" "password"` on each line, `""` for a quote inside. The password may be plain,
//! or as `pg_authid.rolpassword` holds it; an empty one is none. What follows it on its line is left out, as are
//! lines that begin with `;`.

/// The users in `text` with their secrets; or the number of the first line that is broken. A broken line ends
/// PgBouncer's reading, and would hide everybody below it.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, usize> {
    let mut users = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        let (user, secret) = user(line).filter(|(user, _)| !user.is_empty()).ok_or(number + 1)?;
        if !secret.is_empty() {
            users.push((user, secret));
        }
    }
    Ok(users)
}

fn user(line: &str) -> Option<(String, String)> {
    let (user, rest) = quoted(line)?;
    let (secret, _) = quoted(rest.trim_start())?;
    Some((user, secret))
}

/// A quoted text at the beginning, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut content = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        content.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                content.push('"');
                rest = more;
            }
            None => return Some((content, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lines() {
        let check = |text: &str, expected: Result<&[(&str, &str)], usize>| {
            let owned = |(user, secret): &(&str, &str)| ((*user).to_owned(), (*secret).to_owned());
            assert_eq!(parse(text), expected.map(|users| users.iter().map(owned).collect()), "{text}");
        };
        check("", Ok(&[]));
        check("\"joe\" \"pw\"", Ok(&[("joe", "pw")]));
        check(
            "\r\n; note\n \"joe\"\t\"pw\" more\n\"jim\" \"md5...\"\r\n",
            Ok(&[("joe", "pw"), ("jim", "md5...")]),
        );
        check(r#""jo""e" "a""""b""#, Ok(&[("jo\"e", "a\"\"b")]));
        check("\"joe\" \"\"", Ok(&[]));
        check("\"joe\"\"pw\"", Err(1));
        check("\"\" \"pw\"", Err(1));
        check("\"joe\" \"pw\"\njoe pw\n\"jim\" \"pw\"", Err(2));
        check("\"joe\" \"pw", Err(1));
        check("\"joe\"", Err(1));
    }
}
