//! A message costs no allocation: the real gateway in this process, under an allocator that counts
//! what the shard's own thread asks for.
//!
//! One test in a binary of its own, because the allocator is everybody's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gateway::config::Config;
use gateway::handshake::accept_value;
use gateway::server::Gateway;

const CONNECTIONS: usize = 4;
const MESSAGES_WARM: usize = 2_000;
const MESSAGES: usize = 20_000;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is a shard; `None` until it has been asked.
    static IS_SHARD: Cell<Option<bool>> = const { Cell::new(None) };
}

impl Counting {
    fn count(&self) {
        if !COUNTING.load(Ordering::Relaxed) {
            return;
        }
        let is_shard = IS_SHARD.get().unwrap_or_else(|| {
            // Asking may allocate, and must not ask again.
            IS_SHARD.set(Some(false));
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
            let is_shard = name.starts_with("shard-");
            IS_SHARD.set(Some(is_shard));
            is_shard
        });
        if is_shard {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: everything is handed on to the system's allocator as it came; counting touches none of it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count();
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; it was allocated there.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count();
        // SAFETY: as above; it was allocated there.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[test]
fn a_message_allocates_nothing() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = upstream.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in upstream.incoming().map_while(Result::ok) {
            std::thread::spawn(move || echo(stream));
        }
    });
    let config = format!(
        "[server]\nshards = 1\nslots_per_shard = 256\npin = false\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[route]]\npath = \"/echo\"\nbackend = \"echo\"\n\
         [[route]]\npath = \"/app\"\nbackend = \"app\"\n\
         [backend.echo]\nkind = \"echo\"\n\
         [backend.app]\nkind = \"websocket\"\nurl = \"ws://{address}\"\n"
    );
    let config = Config::parse("test", &config).unwrap_or_else(|faults| panic!("{faults}"));
    let gateway = Gateway::start(config).unwrap_or_else(|why| panic!("{why}"));
    let address = gateway.addresses()[0];

    for path in ["/echo", "/app"] {
        // A masked frame and its answer: through the relay it comes back as the upstream sends it.
        let question = b"\x82\x84\x37\xFA\x21\x3D\x37\xFA\x21\x3D";
        let answer = b"\x82\x04\0\0\0\0";
        let mut clients: Vec<TcpStream> = (0..CONNECTIONS).map(|_| open(address, path)).collect();
        exchange(&mut clients, MESSAGES_WARM, question, answer);
        COUNTING.store(true, Ordering::Relaxed);
        exchange(&mut clients, MESSAGES, question, answer);
        COUNTING.store(false, Ordering::Relaxed);
        let count = ALLOCATIONS.swap(0, Ordering::Relaxed);
        // None is for a message. But a turn that answers more connections than any turn before it
        // takes one more vector for each than the pool of spares has seen, and that is chance.
        assert!(
            count <= CONNECTIONS as u64,
            "{count} allocations for {MESSAGES} messages at {path}"
        );

        // The counter counts: opening another connection does allocate.
        COUNTING.store(true, Ordering::Relaxed);
        drop(open(address, "/app"));
        COUNTING.store(false, Ordering::Relaxed);
        assert!(ALLOCATIONS.swap(0, Ordering::Relaxed) > 0, "nothing was counted at all");
    }
    assert!(gateway.stop().messages_received as usize >= MESSAGES + MESSAGES_WARM);
}

/// Sends one message on each connection, then takes the answers, until all are done.
fn exchange(clients: &mut [TcpStream], messages: usize, question: &[u8], answer: &[u8]) {
    let mut got = [0; 64];
    for _ in 0..messages / clients.len() {
        for client in &mut *clients {
            client.write_all(question).expect("it is read");
        }
        for client in &mut *clients {
            client.read_exact(&mut got[..answer.len()]).expect("an answer");
            assert_eq!(&got[..answer.len()], answer);
        }
    }
}

fn open(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    stream.set_nodelay(true).expect("a socket");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it is read");
    assert!(head(&mut stream).starts_with("HTTP/1.1 101 "));
    stream
}

/// The head of a request or an answer, which nothing follows yet.
fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("ASCII")
}

/// A server that sends each frame of four masked bytes back as a server does.
fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).expect("a socket");
    let request = head(&mut stream);
    let key = request
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .expect("the gateway sends a key");
    let accept = accept_value(key);
    let accept = String::from_utf8_lossy(&accept);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).expect("it is read");
    let mut frame = [0; 10];
    while stream.read_exact(&mut frame).is_ok() {
        let byte = |index: usize| frame[6 + index] ^ frame[2 + index];
        let answer = [0x82, 4, byte(0), byte(1), byte(2), byte(3)];
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}
