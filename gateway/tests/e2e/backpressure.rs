//! A side that does not read stops the side that writes; memory does not grow meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{
    ECHO_AND_ROOMS, Gateway, HEAD, PATIENCE, Peer, Program, Upstream, switching, to_upstream,
    upgrade,
};

const TOTAL_BYTES: usize = 200 << 20;
const PAYLOAD_BYTES: usize = 65_536;

/// What the kernel keeps on the way (two sockets a leg) and the gateway in an outbox and in
/// buffers, generously.
const ON_THE_WAY_BYTES_MAX: usize = 40 << 20;
const GROWTH_BYTES_MAX: u64 = 40 << 20;

#[test]
fn a_client_that_does_not_read_pauses_its_upstream() {
    let upstream = Upstream::listen();
    let gateway = Gateway::start(&format!("{HEAD}{}", to_upstream(upstream.address())));
    let (client, server) = upstream.join(&gateway);
    stall_and_drain(&gateway, (server.stream, FROM_SERVER), (client.stream, FROM_SERVER));
}

#[test]
fn an_upstream_that_does_not_read_pauses_its_client() {
    let upstream = Upstream::listen();
    let gateway = Gateway::start(&format!("{HEAD}{}", to_upstream(upstream.address())));
    let (client, server) = upstream.join(&gateway);
    stall_and_drain(&gateway, (client.stream, FROM_CLIENT), (server.stream, FROM_CLIENT));
}

/// Whoever does not read what comes back is such a side, too.
#[test]
fn a_client_that_does_not_read_its_echo_is_not_read_on() {
    let gateway = Gateway::start(&format!("{HEAD}{ECHO_AND_ROOMS}"));
    let client = Peer::open(gateway.address(), "/echo").stream;
    let write = client.try_clone().expect("a socket");
    stall_and_drain(&gateway, (write, FROM_CLIENT), (client, FROM_SERVER));
}

/// The reader is a process that is stopped, as by a debugger or a host that is suspended.
#[test]
fn a_client_that_is_stopped_pauses_its_upstream() {
    let upstream = Upstream::listen();
    let gateway = Gateway::start(&format!("{HEAD}{}", to_upstream(upstream.address())));
    let count = (TOTAL_BYTES / PAYLOAD_BYTES).to_string();
    let client = Program::node("bulk_reader.js", &["client", &gateway.url("/"), &count]);
    let (mut server, head) = upstream.accept();
    server.write(switching(&head, ""));
    stop_and_go_on(&gateway, client, (server.stream, FROM_SERVER));
}

#[test]
fn an_upstream_that_is_stopped_pauses_its_client() {
    let count = (TOTAL_BYTES / PAYLOAD_BYTES).to_string();
    let mut server = Program::node("bulk_reader.js", &["server", &count]);
    let gateway = Gateway::start(&format!("{HEAD}{}", to_upstream(server.listening())));
    let mut client = Peer::connect(gateway.address());
    client.write(upgrade("/", ""));
    client.head();
    stop_and_go_on(&gateway, server, (client.stream, FROM_CLIENT));
}

fn stop_and_go_on(
    gateway: &Gateway,
    mut reader: Program,
    (mut from, header): (TcpStream, &'static [u8]),
) {
    reader.line_with("open");
    let resident = gateway.resident_bytes();
    let mut frame = frames(header);
    reader.signal(Signal::STOP);
    let sent = stall(gateway, &mut from, resident, &mut frame);
    reader.signal(Signal::CONT);
    let writer = write_rest(from, sent, frame);
    // It has looked at every byte.
    reader.line_with("whole ");
    drop(writer.join().expect("all was written"));
    let growth = gateway.resident_bytes().saturating_sub(resident);
    assert!(growth <= GROWTH_BYTES_MAX, "{growth} bytes more, after {TOTAL_BYTES} were passed");
    println!("{TOTAL_BYTES} bytes have passed; {growth} bytes of memory more than before");
}

/// The header of every frame: binary, and 65,536 bytes in 64 bits.
const FROM_SERVER: &[u8] = b"\x82\x7F\0\0\0\0\0\x01\0\0";

/// The same with a mask of zeros, so that what is written is also what is read.
const FROM_CLIENT: &[u8] = b"\x82\xFF\0\0\0\0\0\x01\0\0\0\0\0\0";

/// Frames under this header; each payload begins with the number of its frame.
fn frames(header: &'static [u8]) -> impl FnMut(usize) -> Vec<u8> + Send {
    let mut frame = header.to_vec();
    frame.extend((0..PAYLOAD_BYTES).map(|index| (index * 7 + index / 256) as u8));
    move |number| {
        frame[header.len()..header.len() + 8].copy_from_slice(&(number as u64).to_be_bytes());
        frame.clone()
    }
}

/// Writes into one end until nothing more is taken, measures, then reads all of it at the other.
fn stall_and_drain(
    gateway: &Gateway,
    (mut from, header): (TcpStream, &'static [u8]),
    (mut to, header_read): (TcpStream, &'static [u8]),
) {
    let resident = gateway.resident_bytes();
    let (mut frame, mut want) = (frames(header), frames(header_read));
    let sent = stall(gateway, &mut from, resident, &mut frame);

    let count = TOTAL_BYTES / PAYLOAD_BYTES;
    let writer = write_rest(from, sent, frame);
    let mut got = vec![0; want(0).len()];
    for number in 0..count {
        to.read_exact(&mut got).expect("all of it");
        assert!(got == want(number), "frame {number} is not what was sent");
    }
    drop(writer.join().expect("all was written"));
    let growth = gateway.resident_bytes().saturating_sub(resident);
    assert!(growth <= GROWTH_BYTES_MAX, "{growth} bytes more, after {TOTAL_BYTES} were passed");
}

/// Writes all of it that is not written yet.
fn write_rest(
    mut from: TcpStream,
    sent: usize,
    mut frame: impl FnMut(usize) -> Vec<u8> + Send + 'static,
) -> JoinHandle<TcpStream> {
    from.set_write_timeout(Some(PATIENCE)).expect("a socket");
    std::thread::spawn(move || {
        let frame_bytes = frame(0).len();
        let mut written = sent % frame_bytes;
        for number in sent / frame_bytes..TOTAL_BYTES / PAYLOAD_BYTES {
            from.write_all(&frame(number)[written..]).expect("it is read now");
            written = 0;
        }
        from
    })
}

/// Writes until nothing more is taken, and holds that and the gateway's memory against their bounds.
/// Returns how many bytes were taken.
fn stall(
    gateway: &Gateway,
    from: &mut TcpStream,
    resident: u64,
    frame: &mut impl FnMut(usize) -> Vec<u8>,
) -> usize {
    let frame_bytes = frame(0).len();
    // Nothing taken for a second counts as a pause. On a machine that is busy otherwise that may be
    // too early, and then less is asserted, nothing wrong.
    from.set_write_timeout(Some(Duration::from_secs(1))).expect("a socket");
    let mut sent = 0;
    loop {
        match from.write(&frame(sent / frame_bytes)[sent % frame_bytes..]) {
            Ok(count) => sent += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent <= ON_THE_WAY_BYTES_MAX, "{sent} bytes were taken and nobody reads");
    }
    let growth = gateway.resident_bytes().saturating_sub(resident);
    assert!(growth <= GROWTH_BYTES_MAX, "{growth} bytes more, for one connection");
    println!("{sent} bytes were taken and nobody reads; {growth} bytes of memory more than before");
    sent
}
