//! The scenarios against the references and against servers that do wrong, on real sockets.

mod attack;
mod connect;
mod dialects;
mod echo;
mod fanout;
mod hold;
mod load;
mod relay;
pub(crate) mod results;
mod search;
mod slow;
mod storm;
mod sweep;
mod transport;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::options::tests::parse;
use crate::outcome::{Outcome, Watch};
use crate::serve;
use crate::websocket;

/// Long enough that only a hang ends by it.
const FOREVER: Duration = Duration::from_secs(60);
static NEVER: AtomicBool = AtomicBool::new(false);

/// Runs `body` beside the server that these options name, with its address; gives back what it
/// found too.
#[track_caller]
pub(crate) fn with_server<T>(line: &str, body: impl FnOnce(SocketAddr) -> T) -> (T, Value) {
    let options = parse(&format!("{line} --address 127.0.0.1:0 --seconds {}", FOREVER.as_secs()));
    let stop = &AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        // The sender goes with a server that fails, so that nobody waits for its address.
        let server = scope.spawn(move || {
            let on_listening = |address| sender.send(address).unwrap();
            serve::serve(&options, &Watch::new(stop), on_listening).unwrap()
        });
        // Stopped on a panic of the body too, or the scope would wait for the server.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let result = {
            let _stop = Stop(stop);
            body(receiver.recv().expect("the server listens"))
        };
        (result, Value::Object(server.join().expect("the server ends in order")))
    })
}

fn with_echo<T>(rings: u32, body: impl FnOnce(SocketAddr) -> T) -> T {
    with_server(&format!("--runtime ring-echo --rings {rings}"), body).0
}

fn with_relay<T>(upstream: SocketAddr, body: impl FnOnce(SocketAddr) -> T) -> T {
    with_server(&format!("--runtime ring-relay --upstream {upstream}"), body).0
}

/// Runs a command with the options on this line.
#[track_caller]
fn try_run<O: Args>(
    run: impl FnOnce(&O, &Watch<'_>) -> io::Result<Outcome>,
    line: &str,
    stop: &AtomicBool,
) -> io::Result<Value> {
    let outcome = run(&parse(line), &Watch::new(stop))?;
    Ok(Value::Object(outcome.figures))
}

/// The same, of a run that is not stopped and does not fail.
#[track_caller]
fn run<O: Args>(run: impl FnOnce(&O, &Watch<'_>) -> io::Result<Outcome>, line: &str) -> Value {
    try_run(run, line, &NEVER).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn figure(report: &Value, histogram: &str, name: &str) -> f64 {
    report[histogram][name].as_f64().unwrap_or_else(|| panic!("{histogram} {name} in {report:#}"))
}

/// A server of one connection, with ordinary sockets: upgrades, then does as told.
fn with_odd_server<T>(
    serve: impl FnOnce(TcpStream) + Send,
    body: impl FnOnce(SocketAddr) -> T,
) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            upgrade(&mut stream);
            serve(stream);
        });
        body(address)
    })
}

/// Answers the opening handshake of a client, a byte at a time: what is cut has to be put together.
fn upgrade(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let key = head.split("Sec-WebSocket-Key: ").nth(1).unwrap().lines().next().unwrap();
    let accept = websocket::accept(key);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    for byte in head.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
}

/// Reads the payload of the next small frame of a client.
fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut header = [0; 6];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0; usize::from(header[1] & 0x7F)];
    stream.read_exact(&mut payload).unwrap();
    websocket::apply_mask(&mut payload, header[2..].try_into().unwrap());
    (header[0] & 0x0F, payload)
}

/// Runs `body` beside the gateway with its embedded rooms, on two shards.
fn with_gateway<T>(body: impl FnOnce(SocketAddr) -> T) -> T {
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let overrides = gateway::config::Overrides { shards: Some(2), listen };
    let config = gateway::config::Config::embedded_with(&overrides).unwrap();
    let gateway = gateway::server::Gateway::start(config).unwrap();
    let result = body(gateway.addresses()[0]);
    gateway.stop();
    result
}
