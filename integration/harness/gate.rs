//! A way to a server that can be closed: who comes is passed on, or sees the connection end at once.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    open: bool,
    /// In pairs: who came, and its way to the server.
    passing: Vec<TcpStream>,
}

impl Gate {
    /// In front of the server at `target`, open. It lasts as long as the test's process.
    pub(crate) fn open(target: u16) -> Gate {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let gate = Gate { port, state: Arc::new(Mutex::new(State { open: true, passing: Vec::new() })) };
        let of_thread = gate.clone();
        thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                of_thread.pass(&client, target);
            }
        });
        gate
    }

    fn pass(&self, client: &TcpStream, target: u16) {
        let mut state = self.state.lock().expect("nobody panics with it");
        if !state.open {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { return };
        let copy = |from: &TcpStream, to: &TcpStream| {
            let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
            thread::spawn(move || {
                // Whoever breaks off has its reasons; the other side hears of it.
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        };
        copy(client, &server);
        copy(&server, client);
        state.passing.extend([client.try_clone().expect("a socket"), server]);
    }

    pub(crate) fn close(&self) {
        let mut state = self.state.lock().expect("nobody panics with it");
        state.open = false;
        for socket in state.passing.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Ends the one connection that the server sees coming from `port`.
    pub(crate) fn cut(&self, port: u16) {
        let mut state = self.state.lock().expect("nobody panics with it");
        let pairs = state.passing.chunks_exact(2);
        let is_it = |pair: &[TcpStream]| pair[1].local_addr().is_ok_and(|address| address.port() == port);
        let at = pairs.into_iter().position(is_it).expect("a connection that passes here") * 2;
        for socket in state.passing.drain(at..at + 2) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn reopen(&self) {
        self.state.lock().expect("nobody panics with it").open = true;
    }
}
