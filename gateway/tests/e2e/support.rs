//! What the tests are written with: the gateway and other programs as children, a client and an
//! upstream that are nothing but bytes on a socket.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use gateway::handshake::accept_value;
use rustix::process::{Pid, Signal, kill_process};

/// What nothing here takes unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The head of most configurations: small tables, a port that the kernel chooses.
pub const HEAD: &str = "\
[server]
shards = 2
slots_per_shard = 4096
pin = false
[[listener]]
address = \"127.0.0.1:0\"
";

/// Echo at `/echo`, rooms at `/rooms`, where clients may choose their names.
pub const ECHO_AND_ROOMS: &str = "\
[[route]]
path = \"/echo\"
backend = \"echo\"
[[route]]
path = \"/rooms\"
backend = \"rooms\"
[backend.echo]
kind = \"echo\"
[backend.rooms]
kind = \"local\"
client_names = \"trusted\"
";

/// A route for everything to one upstream.
pub fn to_upstream(address: SocketAddr) -> String {
    format!(
        "[[route]]\nbackend = \"app\"\n[backend.app]\nkind = \"websocket\"\nurl = \"ws://{address}\"\n"
    )
}

/// A child that is killed when it is dropped, and whose lines are read as they come.
pub struct Program {
    name: String,
    child: Child,
    lines: Receiver<String>,
    error_lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Program {
    pub fn start(name: &str, command: &mut Command) -> Program {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let (line, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            for text in stdout.lines().map_while(Result::ok) {
                // Nobody may be interested any more.
                let _ = line.send(text);
            }
        });
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let (error_line, error_lines) = channel();
        let errors = std::thread::spawn(move || {
            let (mut text, mut line) = (String::new(), Vec::new());
            while stderr.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let words = String::from_utf8_lossy(&line);
                text.push_str(&words);
                let _ = error_line.send(words.trim_end().to_owned());
                line.clear();
            }
            text
        });
        Program { name: name.to_owned(), child, lines, error_lines, errors: Some(errors) }
    }

    /// A Node program of ours.
    pub fn node(file: &str, arguments: &[&str]) -> Program {
        let modules = installed("node_modules");
        let program = programs().join(file);
        Program::start(
            file,
            Command::new("node").arg(program).args(arguments).env("NODE_PATH", modules),
        )
    }

    /// A Python program of ours.
    pub fn python(file: &str, arguments: &[&str]) -> Program {
        let python = installed("venv").join("bin/python");
        let program = programs().join(file);
        Program::start(file, Command::new(python).arg("-B").arg(program).args(arguments))
    }

    /// A server that writes what happens to it to its standard error.
    pub fn daemon(
        program: impl AsRef<Path>,
        arguments: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Program {
        let program = program.as_ref();
        // Servers are often installed where only root looks.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
        // The shell becomes the program: it is the program that is killed.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(program).env("PATH", path);
        arguments(&mut command);
        Program::start(&program.display().to_string(), &mut command)
    }

    /// The next line of its output.
    #[track_caller]
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => {
                let _ = self.child.kill();
                let errors = self.errors();
                panic!("no line from {}: {error}; it said\n{errors}", self.name)
            }
        }
    }

    /// The first line to come that begins so.
    #[track_caller]
    pub fn line_with(&mut self, start: &str) -> String {
        loop {
            let line = self.line();
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// The first line to come with this in it.
    #[track_caller]
    pub fn line_containing(&mut self, words: &str) -> String {
        find_line(&self.lines, words).unwrap_or_else(|why| panic!("{}: {why}", self.name))
    }

    /// The first line to come on its standard error with this in it.
    #[track_caller]
    pub fn error_line_containing(&mut self, words: &str) -> String {
        find_line(&self.error_lines, words).unwrap_or_else(|why| panic!("{}: {why}", self.name))
    }

    /// Where a server program says that it listens: `listening PORT`.
    #[track_caller]
    pub fn listening(&mut self) -> SocketAddr {
        let line = self.line_with("listening ");
        let port: u16 = line["listening ".len()..].parse().expect("a port");
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Waits for the end of a program that is expected to succeed; returns its lines.
    #[track_caller]
    pub fn success(mut self) -> Vec<String> {
        let (status, lines) = self.end();
        let errors = self.errors();
        assert!(status.success(), "{}: {status}\n{}\n{errors}", self.name, lines.join("\n"));
        lines
    }

    /// Waits for its end; returns what it printed since.
    #[track_caller]
    fn end(&mut self) -> (ExitStatus, Vec<String>) {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => lines.push(line),
                // It has closed its output, as the last thing it did.
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(_) => {
                    self.kill();
                    let errors = self.errors();
                    panic!("{} hangs after\n{}\n{errors}", self.name, lines.join("\n"));
                }
            }
        }
        (self.child.wait().expect("it is our child"), lines)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn status(&mut self) -> ExitStatus {
        self.end().0
    }

    pub fn errors(&mut self) -> String {
        self.errors.take().map_or(String::new(), |errors| errors.join().unwrap_or_default())
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first line to come with this in it; else what came instead.
fn find_line(lines: &Receiver<String>, words: &str) -> Result<String, String> {
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(words) => return Ok(line),
            Ok(line) => seen.push(line),
            Err(error) => return Err(format!("no {words:?}: {error}, but\n{}", seen.join("\n"))),
        }
    }
}

pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/programs")
}

/// Something that `scripts/test-tools` has installed.
pub fn installed(name: &str) -> PathBuf {
    let home = std::env::var_os("PENSTOCK_TEST_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/penstock-test"),
        PathBuf::from,
    );
    let path = home.join(name);
    assert!(path.exists(), "{} is not there; run scripts/test-tools", path.display());
    path
}

/// A loopback address that no connection comes from by itself.
pub const QUIET: [u8; 4] = [127, 77, 0, 1];

/// An address that nobody listens at, for a server that has to be told one. Its port is below those that
/// the kernel hands out (`ip_local_port_range` begins at 32,768), so nobody takes it meanwhile; and it is
/// free on every address, as some servers listen on more than they are told.
pub fn free_address(ip: [u8; 4]) -> SocketAddr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // Other processes of these tests begin elsewhere.
    let first = std::process::id().wrapping_mul(131) % 10_000;
    for _ in 0..10_000 {
        let next = (first + COUNT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let port = 20_000 + u16::try_from(next).expect("below 10,000");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return SocketAddr::from((ip, port));
        }
    }
    panic!("no port from 20,000 to 30,000 is free");
}

/// A directory that is removed when it is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e-{}-{name}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir(&path).expect("a scratch directory");
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file, in directories of its own if the name says so; returns where it is.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.join(name);
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        std::fs::write(&file, text).expect("a scratch file");
        file
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `PENSTOCK_E2E_CLIENTS`.
pub fn clients() -> String {
    std::env::var("PENSTOCK_E2E_CLIENTS").unwrap_or_else(|_| "200".to_owned())
}

/// The gateway, running. Dropped without [`Gateway::stop`] it is killed.
pub struct Gateway {
    program: Program,
    address: SocketAddr,
    file: Option<PathBuf>,
}

/// How a gateway ended.
pub struct Stopped {
    pub status: ExitStatus,
    /// Clients closed, by cause.
    pub closed: BTreeMap<String, u64>,
    /// What it printed at the end.
    pub lines: Vec<String>,
    /// Its log.
    pub errors: String,
}

impl Gateway {
    /// Starts with this configuration.
    #[track_caller]
    pub fn start(config: &str) -> Gateway {
        Gateway::start_with(config, &[])
    }

    /// The same, with more of a command line.
    #[track_caller]
    pub fn start_with(config: &str, arguments: &[&str]) -> Gateway {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e-{}-{number}.toml", std::process::id());
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&file, config).expect("a scratch file");
        let path = file.to_str().expect("UTF-8").to_owned();
        let mut gateway = Gateway::run(&[&["run", &path], arguments].concat());
        gateway.file = Some(file);
        gateway
    }

    /// Starts with this command line.
    #[track_caller]
    pub fn run(arguments: &[&str]) -> Gateway {
        Gateway::run_as(Command::new(binary()).args(arguments))
    }

    /// Starts with this command.
    #[track_caller]
    pub fn run_as(command: &mut Command) -> Gateway {
        // An admin socket of its own, where the file names none.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("e2e-{}-{number}", std::process::id()));
        let command = command.env("RUNTIME_DIRECTORY", &directory);
        let mut program = Program::start("penstock", command);
        // "listening on ADDRESS", and " (NAME)" where that is another.
        let line = program.line_with("listening on ");
        let address = line.split(' ').nth(2).expect("an address");
        let address = address.parse().expect("an address");
        Gateway { program, address, file: None }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of its next listener, in the order of the file.
    #[track_caller]
    pub fn next_address(&mut self) -> SocketAddr {
        let line = self.program.line_with("listening on ");
        line.split(' ').nth(2).expect("an address").parse().expect("an address")
    }

    /// The first line to come in its log with this in it.
    #[track_caller]
    pub fn log_line_containing(&mut self, words: &str) -> String {
        self.program.error_line_containing(words)
    }

    /// The first line to come that it prints with this in it.
    #[track_caller]
    pub fn line_containing(&mut self, words: &str) -> String {
        self.program.line_containing(words)
    }

    pub fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.address)
    }

    /// Memory that it occupies.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.program.child.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
        let kilobytes: u64 = line.split_whitespace().nth(1).expect("a size").parse().expect("it");
        kilobytes * 1024
    }

    pub fn signal(&self, signal: Signal) {
        self.program.signal(signal);
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to stop and waits until it has.
    #[track_caller]
    pub fn stop(self) -> Stopped {
        self.terminate();
        self.stopped()
    }

    /// Waits until it has stopped.
    #[track_caller]
    pub fn stopped(mut self) -> Stopped {
        let (status, lines) = self.program.end();
        let closed = |line| str::strip_prefix(line, "connections closed, by cause: ");
        let Some(closed) = lines.iter().find_map(|line| closed(line)) else {
            panic!("{status}, no counts in\n{}\n{}", lines.join("\n"), self.program.errors());
        };
        // "cause count, cause count", or "none"
        let closed = closed.split(", ").filter_map(|pair| {
            let (cause, count) = pair.split_once(' ')?;
            Some((cause.to_owned(), count.parse().expect("a count")))
        });
        let closed = closed.collect();
        let errors = self.program.errors();
        Stopped { status, closed, lines, errors }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Stopped {
    /// Asserts a clean end, and why its clients were closed: `"client_close 2, too_big 1"`.
    #[track_caller]
    pub fn expect(&self, closed: &str) {
        let got: Vec<String> =
            self.closed.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        assert_eq!(got.join(", "), closed);
        assert_eq!(self.status.code(), Some(0));
    }
}

pub fn binary() -> PathBuf {
    std::env::var_os("PENSTOCK_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_penstock").into(), PathBuf::from)
}

/// One end of a TCP connection, with what was read beyond what was asked for.
pub struct Peer {
    pub stream: TcpStream,
    read: Vec<u8>,
    /// Bytes written and read so far.
    pub wrote: u64,
    pub got: u64,
}

/// A frame as it was received, unmasked.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, RSV and opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

/// The key of RFC 6455 §1.3, and what it is answered with.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A request to upgrade, with more header lines (each ending with CRLF).
pub fn upgrade(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

impl Peer {
    pub fn new(stream: TcpStream) -> Peer {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Peer { stream, read: Vec::new(), wrote: 0, got: 0 }
    }

    pub fn connect(address: SocketAddr) -> Peer {
        Peer::new(TcpStream::connect(address).expect("it listens"))
    }

    /// A client with its 101.
    #[track_caller]
    pub fn open(address: SocketAddr, target: &str) -> Peer {
        let mut peer = Peer::connect(address);
        peer.write(upgrade(target, ""));
        let head = peer.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_ascii_lowercase().contains(&ACCEPT.to_ascii_lowercase()), "{head}");
        peer
    }

    #[track_caller]
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("it is read");
        self.wrote += bytes.as_ref().len() as u64;
    }

    /// A head of HTTP, with its empty line.
    #[track_caller]
    pub fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let rest = self.read.split_off(end + 4);
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).expect("ASCII");
            }
            assert!(self.fill(), "the end, after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// An answer of HTTP that ends with the stream.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        String::from_utf8(self.rest()).expect("text")
    }

    /// Sends one masked frame.
    #[track_caller]
    pub fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(masked(first, payload));
    }

    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        let head = self.bytes(2);
        let (first, mut len) = (head[0], u64::from(head[1] & 0x7F));
        if len == 126 {
            len = u64::from(u16::from_be_bytes(self.bytes(2).try_into().expect("two")));
        } else if len == 127 {
            len = u64::from_be_bytes(self.bytes(8).try_into().expect("eight"));
        }
        let mask = if head[1] & 0x80 == 0 { vec![0; 4] } else { self.bytes(4) };
        let mut payload = self.bytes(len as usize);
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte ^= mask[index % 4];
        }
        Frame { first, payload }
    }

    /// A Close frame: its code and reason. Other frames before it are skipped.
    #[track_caller]
    pub fn close_frame(&mut self) -> (u16, String) {
        loop {
            let Frame { first, payload } = self.frame();
            if first == 0x88 {
                assert!(payload.len() >= 2, "a Close frame without a code");
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return (code, String::from_utf8(payload[2..].to_vec()).expect("UTF-8"));
            }
        }
    }

    /// Whether something can be read, without waiting for it.
    pub fn has_bytes(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket");
        let found = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("a socket");
        !self.read.is_empty() || found.is_ok()
    }

    /// Nothing follows but the end of the stream.
    #[track_caller]
    pub fn end(&mut self) {
        assert!(!self.fill(), "{} bytes instead of the end", self.read.len());
        assert!(self.read.is_empty(), "{} bytes before the end", self.read.len());
    }

    /// Everything up to the end of the stream.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.read)
    }

    /// Whether there are so many bytes to read, or there is the end before.
    #[track_caller]
    pub fn has(&mut self, count: usize) -> bool {
        while self.read.len() < count {
            if !self.fill() {
                return false;
            }
        }
        true
    }

    #[track_caller]
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.fill(), "the end, {} of {count} bytes", self.read.len());
        }
        let rest = self.read.split_off(count);
        std::mem::replace(&mut self.read, rest)
    }

    /// Reads more; `false` at the end, which a reset is too.
    #[track_caller]
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 65_536];
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                self.read.extend_from_slice(&buffer[..count]);
                self.got += count as u64;
                count > 0
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no bytes: {error}"),
        }
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        let socket = socket2::Socket::from(self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("a socket");
    }
}

/// One frame from a client.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A server behind the gateway that is nothing but a listening socket.
pub struct Upstream(pub TcpListener);

impl Upstream {
    pub fn listen() -> Upstream {
        Upstream(TcpListener::bind("127.0.0.1:0").expect("loopback"))
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("it is bound")
    }

    /// The next connection, and the head of its request.
    #[track_caller]
    pub fn accept(&self) -> (Peer, String) {
        let (stream, _) = self.0.accept().expect("a connection");
        let mut peer = Peer::new(stream);
        let head = peer.head();
        (peer, head)
    }

    /// A client of the gateway and its connection to this upstream, joined.
    #[track_caller]
    pub fn join(&self, gateway: &Gateway) -> (Peer, Peer) {
        self.join_by(gateway.address(), "/")
    }

    /// The same of a client that comes to this address, and asks for this.
    #[track_caller]
    pub fn join_by(&self, address: SocketAddr, target: &str) -> (Peer, Peer) {
        let mut client = Peer::connect(address);
        client.write(upgrade(target, ""));
        let (mut upstream, head) = self.accept();
        upstream.write(switching(&head, ""));
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        (client, upstream)
    }
}

/// The milliseconds of a Close frame that says when to come back.
#[track_caller]
pub fn retry_after_ms(reason: &str) -> u64 {
    let ms = reason.strip_prefix("retry-after=").unwrap_or_else(|| panic!("{reason:?}"));
    ms.parse().expect("milliseconds")
}

/// The value of a header line.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The 101 to a request, with more header lines (each ending with CRLF).
pub fn switching(request: &str, more: &str) -> String {
    let key = header(request, "sec-websocket-key").expect("a key");
    let accept = accept_value(key);
    let accept = String::from_utf8_lossy(accept.as_ref());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
    )
}
