//! `listen`: where clients and followers connect, and how.

use std::net::SocketAddr;
use std::path::Path;

use super::reader::Section;
use super::units::{number, parsed, path, texts, word};
use super::{Listen, ListenOn, ListenRoute};
use crate::net::authenticate::network;
use crate::net::{Proxies, SocketMode};

/// Whether connections begin with a PROXY header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProxyProtocol {
    Off,
    Required,
}

pub(super) fn listener(item: &mut Section<'_>, directory: &Path) -> Option<Listen> {
    let on = on(item, directory);
    let routes =
        [("auto", ListenRoute::Auto), ("primary", ListenRoute::Primary), ("standby", ListenRoute::Standby)];
    let route = item.or("route", ListenRoute::Auto, word(&routes));
    let proxies = proxies(item);
    Some(Listen { on: on?, route, proxies })
}

fn on(item: &mut Section<'_>, directory: &Path) -> Option<ListenOn> {
    let tcp = item.optional("address", parsed::<SocketAddr>).map(ListenOn::Tcp);
    let port = item.or("port", 6432, number(1..=65535));
    let mode = item.or("mode", SocketMode::default(), socket_mode);
    let unix = item.optional("unix", path).map(|unix| ListenOn::Unix {
        directory: directory.join(unix),
        port: u16::try_from(port).expect("within 1..=65535"),
        mode,
    });
    match (item.has("address"), item.has("unix")) {
        (true, true) => item.problem("", "has both address and unix; make it two items"),
        (false, false) => item.problem("", "needs address: HOST:PORT or unix: DIRECTORY"),
        _ => {}
    }
    if item.has("port") && !item.has("unix") {
        item.problem("port", "belongs to unix; with address it is HOST:PORT");
    }
    if item.has("mode") && !item.has("unix") {
        item.problem("mode", "belongs to unix");
    }
    tcp.or(unix)
}

/// Octal digits. YAML reads some ways to write them as other numbers.
fn socket_mode(value: &serde_yaml::Value) -> Result<SocketMode, String> {
    let mode = value.as_str().and_then(|text| u32::from_str_radix(text, 8).ok());
    mode.filter(|mode| *mode <= 0o777)
        .map(SocketMode)
        .ok_or_else(|| "octal digits in quotes are expected, such as '0770'".to_owned())
}

fn proxies(item: &mut Section<'_>) -> Option<Proxies> {
    let words = [("off", ProxyProtocol::Off), ("required", ProxyProtocol::Required)];
    let required = item.or("proxy_protocol", ProxyProtocol::Off, word(&words)) == ProxyProtocol::Required;
    let from = item.optional("proxy_from", |value| {
        let each = texts(value)?.into_iter().map(|text| {
            network(&text).ok_or_else(|| format!("{text}: ADDRESS/BITS or one address is expected"))
        });
        each.collect::<Result<Vec<_>, _>>()
    });
    match (required, item.has("proxy_from"), item.has("unix")) {
        (false, true, _) => item.problem("proxy_from", "belongs to proxy_protocol: required"),
        (true, true, true) => item.problem("proxy_from", "belongs to address; a unix socket has its mode"),
        (true, false, false) => item.problem(
            "proxy_from",
            "is missing: which addresses are the proxies'? Whoever else sent a header could claim any address",
        ),
        _ => {}
    }
    if from.iter().flatten().any(|network| network.prefix_len() == 0) {
        item.warning("proxy_from", "lets whoever reaches the listener claim any address");
    }
    required.then(|| Proxies::at(from.unwrap_or_default()))
}
