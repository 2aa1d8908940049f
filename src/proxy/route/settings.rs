//! What a text sets PostgreSQL's settings (GUCs) to, so that a session can take them from server to server.
//!
//! Only what the text says for certain is [`NewValue::Value`]. A `set_config` that may run or not, a value that
//! is computed, and settings under which texts are read otherwise than here ([`super::classify()`]), are
//! [`NewValue::Unknown`]: they stay with the server where they were made.

use pg_query::NodeEnum;
use pg_query::protobuf::{self as pg, Node, SelectStmt, a_const::Val};

use super::verdict::{NewValue, SessionEffect};
use super::walk::{constant, string};

/// A longer value stays with its server, in bytes.
const MAX_VALUE: usize = 4096;

/// `SET name TO args`; `name` in lower case.
pub(super) fn set(name: &str, args: &[Node]) -> SessionEffect {
    SessionEffect::Set(
        name.into(),
        flattened(name, args).map_or(NewValue::Unknown, |text| value(name, &text)),
    )
}

/// A call of `set_config` as the walk meets it: somewhere in the text. [`resolve`] knows more.
pub(super) fn set_config(name: &str, is_local: Option<&Node>) -> SessionEffect {
    let name: Box<str> = name.to_ascii_lowercase().into();
    match is_local.and_then(boolean) {
        Some(true) => SessionEffect::SetLocal(name),
        Some(false) | None => SessionEffect::Set(name, NewValue::Unknown),
    }
}

/// `SET SESSION CHARACTERISTICS AS TRANSACTION` (variable.c): the modes by the names that gram.y gives them.
pub(super) fn characteristics(options: &[Node]) -> impl Iterator<Item = SessionEffect> {
    options.iter().filter_map(|option| {
        let Some(NodeEnum::DefElem(option)) = &option.node else { return None };
        let value = match option.arg.as_ref().map(|arg| text(arg)).as_deref() {
            None | Some("") => NewValue::Unknown,
            Some(said) => NewValue::Value(said.into()),
        };
        Some(SessionEffect::Set(format!("default_{}", option.defname).into(), value))
    })
}

/// The effects of a SELECT without a FROM: there each item of the list is evaluated exactly once, so that the
/// values of its calls of `set_config` are those of the settings afterwards.
pub(super) fn resolve(select: &SelectStmt, effects: &mut [SessionEffect]) {
    if !is_bare(select) {
        return;
    }
    let known: Vec<_> = select.target_list.iter().filter_map(call_of_set_config).collect();
    let mut met: Vec<_> = effects
        .iter_mut()
        .filter(|effect| matches!(effect, SessionEffect::Set(_, NewValue::Unknown)))
        .collect();
    // Others are inside of expressions, which may leave them out.
    if met.len() == known.len() {
        for (effect, known) in met.iter_mut().zip(known) {
            **effect = known;
        }
    }
}

/// Nothing but a list of expressions.
pub(super) fn is_bare(select: &SelectStmt) -> bool {
    let lists = [
        &select.distinct_clause,
        &select.from_clause,
        &select.group_clause,
        &select.window_clause,
        &select.values_lists,
        &select.sort_clause,
        &select.locking_clause,
    ];
    let expressions =
        [&select.where_clause, &select.having_clause, &select.limit_offset, &select.limit_count];
    lists.iter().all(|list| list.is_empty())
        && expressions.iter().all(|expression| expression.is_none())
        && select.into_clause.is_none()
        && select.with_clause.is_none()
        && select.larg.is_none()
        && select.rarg.is_none()
}

/// An item of the list that is a call for the session (`is_local` false) with constants.
fn call_of_set_config(item: &Node) -> Option<SessionEffect> {
    let Some(NodeEnum::ResTarget(target)) = &item.node else { return None };
    let Some(NodeEnum::FuncCall(call)) = &target.val.as_ref()?.node else { return None };
    if call.funcname.last().and_then(string) != Some("set_config") {
        return None;
    }
    let [name, new, is_local] = &call.args[..] else { return None };
    if boolean(is_local)? {
        return None;
    }
    let name = constant(name)?.to_ascii_lowercase();
    let new = match constant(new) {
        Some(text) => value(&name, text),
        None if is_null(new) => NewValue::Default,
        None => NewValue::Unknown,
    };
    Some(SessionEffect::Set(name.into(), new))
}

fn value(name: &str, text: &str) -> NewValue {
    if text.is_ascii() && text.len() <= MAX_VALUE && name.is_ascii() && !is_read_otherwise(name, text) {
        NewValue::Value(text.into())
    } else {
        NewValue::Unknown
    }
}

/// Settings under which a quote may end elsewhere than it seems here, or a name means what the server alone has; and
/// the state of `random()`.
fn is_read_otherwise(name: &str, text: &str) -> bool {
    /// Encodings with ASCII bytes inside of characters (`pg_wchar.h`, "client-side only").
    const UNSAFE: [&str; 9] =
        ["sjis", "shiftjis", "mskanji", "big5", "gbk", "uhc", "gb18030", "johab", "win9"];
    let word: String = text.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    match name {
        // What is created, or dropped, without a schema may then be the session's own.
        "search_path" => text.to_ascii_lowercase().contains("pg_temp"),
        "standard_conforming_strings" => word != "on" && word != "true",
        "client_encoding" => UNSAFE.iter().any(|encoding| word.contains(encoding)),
        "seed" => true,
        _ => false,
    }
}

/// As `flatten_set_variable_args` in guc_funcs.c.
fn flattened(name: &str, args: &[Node]) -> Option<String> {
    /// GUC_LIST_QUOTE in guc_tables.c, of those that a session can set.
    const QUOTED: [&str; 3] = ["search_path", "temp_tablespaces", "local_preload_libraries"];
    let quoted = QUOTED.contains(&name);
    let mut texts = Vec::with_capacity(args.len());
    for arg in args {
        let Some(NodeEnum::AConst(found)) = &arg.node else { return None };
        let text = constant_text(found)?;
        texts.push(if quoted { quote_identifier(&text) } else { text });
    }
    Some(texts.join(", "))
}

/// As in ruleutils.c, but that keywords stay bare: a list of names is read the same with them.
fn quote_identifier(name: &str) -> String {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if first && name.bytes().all(rest) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// A constant as SET takes it; empty when it is none.
pub(super) fn text(node: &Node) -> String {
    let Some(NodeEnum::AConst(found)) = &node.node else { return String::new() };
    constant_text(found).unwrap_or_default()
}

fn constant_text(constant: &pg::AConst) -> Option<String> {
    Some(match constant.val.as_ref()? {
        Val::Ival(number) => number.ival.to_string(),
        Val::Fval(number) => number.fval.clone(),
        Val::Boolval(boolean) => boolean.boolval.to_string(),
        Val::Sval(text) => text.sval.clone(),
        Val::Bsval(bits) => bits.bsval.clone(),
    })
}

fn boolean(node: &Node) -> Option<bool> {
    match &node.node {
        Some(NodeEnum::AConst(pg::AConst { val: Some(Val::Boolval(boolean)), .. })) => Some(boolean.boolval),
        _ => None,
    }
}

fn is_null(node: &Node) -> bool {
    matches!(&node.node, Some(NodeEnum::AConst(constant)) if constant.isnull)
}
