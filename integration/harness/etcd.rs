//! A real etcd, of one member or several, that can be frozen, killed and started again.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::guardian::Guardian;
use super::port::free_port;
use super::wait::eventually;

const LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Etcd {
    members: Vec<Member>,
    /// Where it has `ca.crt`, and the certificate and key of `server`, if clients are to come with TLS.
    tls: Option<PathBuf>,
    /// Ends what still runs when the test is killed.
    _guardian: Guardian,
    dir: TempDir,
}

struct Member {
    name: String,
    /// For clients; the next one is for the other members.
    port: u16,
    /// Where it says how it is, to anybody.
    health: u16,
    process: Option<Child>,
}

impl Etcd {
    /// When it returns all of them answer.
    pub(crate) fn start(members: usize) -> Etcd {
        Etcd::start_with(members, None)
    }

    /// One member, which lets in who shows a certificate of the authority in `tls`.
    pub(crate) fn with_tls(tls: PathBuf) -> Etcd {
        Etcd::start_with(1, Some(tls))
    }

    fn start_with(members: usize, tls: Option<PathBuf>) -> Etcd {
        let dir = tempfile::Builder::new().prefix("bellwether-etcd-").tempdir().expect("a directory");
        let guardian = Guardian::over(dir.path()).expect("a shell");
        let member =
            |n| Member { name: format!("etcd{n}"), port: free_port(), health: free_port(), process: None };
        let members_of = (0..members).map(member).collect();
        let mut etcd = Etcd { members: members_of, tls, _guardian: guardian, dir };
        (0..members).for_each(|n| etcd.spawn(n));
        (0..members).for_each(|n| etcd.await_health(n));
        etcd
    }

    pub(crate) fn port(&self, n: usize) -> u16 {
        self.members[n].port
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| self.endpoint(member)).collect()
    }

    fn endpoint(&self, member: &Member) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", member.port)
    }

    /// It goes on to exist, and does not answer.
    pub(crate) fn freeze(&self, n: usize) {
        self.signal(n, Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&self, n: usize) {
        self.signal(n, Signal::SIGCONT);
    }

    pub(crate) fn kill(&mut self, n: usize) {
        if let Some(mut process) = self.members[n].process.take() {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
    }

    /// With the data and the ports that it had.
    pub(crate) fn restart(&mut self, n: usize) {
        self.kill(n);
        self.spawn(n);
        self.await_health(n);
    }

    /// Kills it, and starts it with nothing.
    pub(crate) fn restart_empty(&mut self, n: usize) {
        self.kill(n);
        fs::remove_dir_all(self.data(n)).expect("its data");
        self.restart(n);
    }

    /// What the member's JSON gateway answers.
    pub(crate) async fn call(&self, n: usize, path: &str, request: &serde_json::Value) -> serde_json::Value {
        let url = format!("http://127.0.0.1:{}/v3/{path}", self.members[n].port);
        // The client asks for the process's provider, which the first to use TLS has made.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer =
            client.post(url).body(request.to_string()).timeout(LIMIT).send().await.expect("an answer");
        serde_json::from_str(&answer.text().await.expect("text")).expect("JSON")
    }

    fn spawn(&mut self, n: usize) {
        let peer = |member: &Member| format!("http://127.0.0.1:{}", member.port + 1);
        let cluster: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, peer(member))).collect();
        let Member { name, health, .. } = &self.members[n];
        let (client, peer) = (self.endpoint(&self.members[n]), peer(&self.members[n]));
        let log = File::options().create(true).append(true).open(self.dir.path().join(format!("{name}.log")));
        let mut command = Command::new("etcd");
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(tls.join("ca.crt"));
            command.arg("--cert-file").arg(tls.join("server.crt"));
            command.arg("--key-file").arg(tls.join("server.key"));
        }
        let process = command
            .args(["--name", name, "--initial-cluster", &cluster.join(",")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-metrics-urls", &format!("http://127.0.0.1:{health}")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--data-dir"])
            .arg(self.data(n))
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("etcd, which integration/setup.sh tools installs");
        fs::write(self.dir.path().join(format!("{name}.pid")), process.id().to_string()).expect("a pid file");
        self.members[n].process = Some(process);
    }

    fn await_health(&self, n: usize) {
        eventually("etcd answers", LIMIT, || {
            use std::io::{Read, Write};
            let ask = || {
                let mut stream = TcpStream::connect(("127.0.0.1", self.members[n].health))?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                std::io::Result::Ok(answer)
            };
            match ask() {
                Ok(answer) if answer.contains(r#""health":"true""#) => Ok(()),
                Ok(answer) => Err(answer),
                Err(error) => Err(error.to_string()),
            }
        });
    }

    fn signal(&self, n: usize, signal: Signal) {
        let process = self.members[n].process.as_ref().expect("it runs");
        kill(Pid::from_raw(i32::try_from(process.id()).expect("a pid")), signal).expect("it is ours");
    }

    fn data(&self, n: usize) -> PathBuf {
        self.dir.path().join(&self.members[n].name)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|n| self.kill(n));
    }
}
