//! What strangers' bytes go through first, one function per target. None may panic, and none may allocate more than
//! a small multiple of what came.

use bellwether::net::proxy_header;
use bellwether::pg::protocol::frame::{HEADER_LEN, Header};
use bellwether::pg::protocol::{backend, frontend, startup};
use bellwether::proxy::fuzzing;
use bellwether::proxy::route::classify;

pub(crate) fn first_packet(bytes: &[u8]) {
    if let Ok(Some(length)) = startup::length(bytes)
        && let Some(packet) = bytes.get(..length)
    {
        let _ = startup::parse(packet);
    }
    let _ = startup::parse(bytes);
}

pub(crate) fn proxy_header(bytes: &[u8]) {
    if let Ok(more) = proxy_header::missing(bytes) {
        assert!(more <= proxy_header::MAX_LEN, "{more} bytes are asked for");
    }
    let _ = proxy_header::parse(bytes);
}

pub(crate) fn of_a_client(bytes: &[u8]) {
    each_message(bytes, |payload| {
        let _ = frontend::decode_query(payload);
        let _ = frontend::decode_parse(payload);
        let _ = frontend::decode_bind(payload);
        let _ = frontend::decode_named(payload);
        let _ = frontend::decode_execute(payload);
        let _ = frontend::decode_password(payload);
        let _ = frontend::decode_sasl_initial(payload);
    });
}

pub(crate) fn of_a_server(bytes: &[u8]) {
    each_message(bytes, |payload| {
        let _ = backend::decode_authentication(payload);
        let _ = backend::decode_parameter_status(payload);
        let _ = backend::decode_backend_key_data(payload);
        let _ = backend::decode_ready_for_query(payload);
        let _ = backend::decode_data_row(payload);
        let _ = backend::decode_command_complete(payload);
        let _ = backend::decode_error(payload);
    });
}

/// What a text does, to data and to the session.
pub(crate) fn sql(bytes: &[u8]) {
    let _ = classify(&String::from_utf8_lossy(bytes));
}

/// What a client and a server say to a session, and what a client's startup packet sets.
pub(crate) fn session(bytes: &[u8]) {
    fuzzing::converse(bytes);
    fuzzing::startup_options(&String::from_utf8_lossy(bytes));
}

/// The payloads of the messages that `bytes` make, and `bytes` as one.
fn each_message(bytes: &[u8], look: impl Fn(&[u8])) {
    look(bytes);
    let mut rest = bytes;
    while let Ok(Some(header)) = Header::peek(rest) {
        let Some((message, behind)) = rest.split_at_checked(header.total) else { break };
        look(&message[HEADER_LEN..]);
        rest = behind;
    }
}
