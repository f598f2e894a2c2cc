//! The floor for fan-out: each message of a client goes to every client, with one plain `send()`
//! to each, one after the other. No rooms, no queues: a client whose socket does not take a frame
//! whole is dropped.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::net::SocketAddr;

use rustix::event::{Timespec, epoll};
use serde_json::{Value, json};
use socket2::Socket;

use super::ring_echo::{echo_in_place, find_key};
use super::{Options, TURN, Turns};
use crate::websocket::{CLOSE, PONG, RESPONSE_BYTES_MAX, accept, decode_frame, encode_upgrade};

/// Serves until told to stop or out of time.
pub(super) fn run(
    options: &Options,
    turns: &mut Turns<'_>,
    on_listening: impl FnOnce(SocketAddr),
) -> io::Result<Value> {
    let (listener, address) = options.listen_alone()?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let listening = epoll::EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, listening, epoll::EventFlags::IN)?;
    on_listening(address);
    let mut server = Server::default();
    let mut events = [const { MaybeUninit::uninit() }; 1024];
    let timeout = Timespec { tv_sec: 0, tv_nsec: TURN.subsec_nanos().into() };
    let mut idle = true;
    while turns.next(idle) {
        let ready = match epoll::wait(&epoll, &mut events, Some(&timeout)) {
            Ok((ready, _)) => &*ready,
            Err(rustix::io::Errno::INTR) => &[],
            Err(error) => return Err(error.into()),
        };
        idle = ready.is_empty();
        for event in ready {
            match event.data.u64() {
                LISTENER => server.accept(&listener, &epoll)?,
                slot => server.on_readable(slot as usize),
            }
        }
    }
    Ok(json!({
        "accepted_count": server.accepted,
        "received_count": server.received,
        "sent_count": server.sent,
        "dropped_as_too_slow_count": server.too_slow,
    }))
}

/// What epoll says for the listener; anything else is a slot.
const LISTENER: u64 = u64::MAX;

/// The largest frame that is put together when it comes in pieces; above, the client is dropped.
const FRAME_BYTES_MAX: usize = 16 << 20;

struct Server {
    /// By slot. Bounded by RLIMIT_NOFILE.
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    buffer: Box<[u8]>,
    accepted: u64,
    received: u64,
    sent: u64,
    too_slow: u64,
}

struct Client {
    socket: Socket,
    upgraded: bool,
    /// What has come and is not whole.
    partial: Vec<u8>,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            clients: Vec::new(),
            free: Vec::new(),
            buffer: vec![0; 64 * 1024].into(),
            accepted: 0,
            received: 0,
            sent: 0,
            too_slow: 0,
        }
    }
}

impl Server {
    fn accept(&mut self, listener: &Socket, epoll: &impl std::os::fd::AsFd) -> io::Result<()> {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Gone before we came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            socket.set_nonblocking(true)?;
            let slot = self.free.pop().unwrap_or_else(|| {
                self.clients.push(None);
                self.clients.len() - 1
            });
            let data = epoll::EventData::new_u64(slot as u64);
            epoll::add(epoll, &socket, data, epoll::EventFlags::IN)?;
            self.clients[slot] = Some(Client { socket, upgraded: false, partial: Vec::new() });
            self.accepted += 1;
        }
    }

    fn on_readable(&mut self, slot: usize) {
        // An earlier event of the same wait may have dropped it.
        let Some(client) = &mut self.clients[slot] else { return };
        match (&client.socket).read(&mut self.buffer) {
            Ok(len @ 1..) => client.partial.extend_from_slice(&self.buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(0) | Err(_) => return self.drop_client(slot),
        }
        let mut bytes = std::mem::take(&mut client.partial);
        if !client.upgraded {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                client.partial = bytes;
                if client.partial.len() > RESPONSE_BYTES_MAX {
                    self.drop_client(slot);
                }
                return;
            };
            let Some(key) = find_key(&bytes[..end]) else { return self.drop_client(slot) };
            let mut head = Vec::new();
            encode_upgrade(&mut head, &accept(key));
            client.upgraded = true;
            bytes.drain(..end + 4);
            if !self.send(slot, &head) {
                return;
            }
        }
        self.on_frames(slot, bytes);
    }

    fn on_frames(&mut self, slot: usize, mut bytes: Vec<u8>) {
        let Ok(echoed) = echo_in_place(&mut bytes) else { return self.drop_client(slot) };
        let mut frames = &bytes[echoed.reply];
        while let Ok(Some((frame, len))) = decode_frame(frames) {
            let wire = &frames[..len];
            match frame.opcode {
                PONG => {
                    self.send(slot, wire);
                }
                CLOSE => {
                    self.send(slot, wire);
                    return self.drop_client(slot);
                }
                _ => self.send_to_all(wire),
            }
            frames = &frames[len..];
        }
        // Its own message may have found it too slow.
        let Some(client) = &mut self.clients[slot] else { return };
        if echoed.taken < bytes.len() {
            bytes.drain(..echoed.taken);
            client.partial = bytes;
        }
        if client.partial.len() > FRAME_BYTES_MAX {
            self.drop_client(slot);
        }
    }

    /// The loop that all this is for.
    fn send_to_all(&mut self, frame: &[u8]) {
        self.received += 1;
        for slot in 0..self.clients.len() {
            if self.clients[slot].as_ref().is_some_and(|client| client.upgraded) {
                self.sent += u64::from(self.send(slot, frame));
            }
        }
    }

    fn send(&mut self, slot: usize, bytes: &[u8]) -> bool {
        let Some(client) = &self.clients[slot] else { return false };
        let sent = client.socket.send_with_flags(bytes, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        let is_whole = sent.is_ok_and(|len| len == bytes.len());
        if !is_whole {
            self.too_slow += 1;
            self.drop_client(slot);
        }
        is_whole
    }

    fn drop_client(&mut self, slot: usize) {
        // Closing the socket takes it out of the epoll.
        if self.clients[slot].take().is_some() {
            self.free.push(slot);
        }
    }
}
