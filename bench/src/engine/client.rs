//! One client of an engine: what it keeps, and what it makes of the bytes that it receives.

use std::borrow::Cow;
use std::time::Instant;

use super::{Counts, Ending, Manners, Request, Scenario};
use crate::deflate::{Agreement, Codec, Inflater};
use crate::target::Target;
use crate::tls::{Security, Tls};
use crate::websocket::{self, CLOSE, CONTINUATION, Frame, PING, PONG, RSV1};

/// One client: 72 bytes, and no memory elsewhere while it is quiet.
#[derive(Default)]
pub(super) struct Client {
    pub(super) phase: Phase,
    pub(super) manners: Manners,
    /// Times that it was opened; tells its connections apart.
    pub(super) connection: u32,
    /// Nothing is to be read for now.
    pub(super) reading_paused: bool,
    /// A send has failed while reading was paused: the end is told when it is read.
    pub(super) send_failed: bool,
    /// The close is to reset the connection.
    pub(super) abrupt: bool,
    /// The close is under way; nothing else is.
    pub(super) slot_closing: bool,
    pub(super) recv_armed: bool,
    pub(super) send_in_flight: bool,
    pub(super) connecting: bool,
    /// It is in `to_flush`.
    pub(super) flush_due: bool,
    /// What goes out with the next send.
    pub(super) outgoing: Vec<u8>,
    /// What few clients have, or for a short time.
    pub(super) session: Option<Box<Session>>,
}

// There may be millions.
const _: () = assert!(size_of::<Client>() <= 72);

/// What a client has while it opens, or while a message comes in pieces; with TLS, always.
#[derive(Default)]
pub(super) struct Session {
    pub(super) opening: Option<Opening>,
    /// What is sent and received goes through it.
    pub(super) tls: Option<Box<Tls>>,
    /// The first part of a head or frame that was cut.
    pub(super) partial: Vec<u8>,
    /// Messages may be compressed.
    pub(super) deflate: Option<Agreement>,
    /// What the server's next message refers to, when it does.
    pub(super) inflater: Option<Box<Inflater>>,
    /// The message that is coming in fragments is compressed.
    pub(super) message_compressed: bool,
    /// The opcode of the message that is coming in fragments, or 0.
    pub(super) message_opcode: u8,
    /// What has come of it: at most [`websocket::PAYLOAD_BYTES_MAX`].
    pub(super) message: Vec<u8>,
}

impl Session {
    pub(super) fn is_empty(&self) -> bool {
        self.opening.is_none()
            && self.tls.is_none()
            && self.deflate.is_none()
            && self.partial.is_empty()
            && self.message_opcode == 0
    }
}

/// What the connections of an engine have in common while one of them is looked at.
pub(super) struct Shared<'a> {
    pub(super) counts: &'a mut Counts,
    pub(super) codec: &'a mut Codec,
    pub(super) target: &'a Target,
}

/// When the steps of an open were done.
#[derive(Clone, Copy)]
pub(super) struct Opening {
    pub(super) begun: Instant,
    pub(super) connected: Instant,
    /// With TLS, when it was; else when connected.
    pub(super) secured: Instant,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is open in its slot.
    #[default]
    Unopened,
    Connecting,
    /// TLS is shaking hands.
    Securing,
    Upgrading,
    /// `Manners::HalfRequest`: we do not mean to go on, the server has not ended it yet.
    Stalled,
    Open,
    /// Our Close frame is on its way; the server's has not come.
    Closing,
    /// Both Close frames were exchanged; the server closes the connection (RFC 6455 §7.1.1).
    CloseAnswered,
    /// Over; what is outstanding is being ended, then the slot is closed.
    Ended,
}

impl Phase {
    /// Whether the connection is under way and not open yet.
    pub(super) fn is_opening(self) -> bool {
        matches!(self, Phase::Connecting | Phase::Securing | Phase::Upgrading)
    }
}

impl Client {
    pub(super) fn opening(&mut self) -> Option<&mut Opening> {
        self.session.as_mut()?.opening.as_mut()
    }

    /// What has been written so far of a handshake, as it is sent.
    pub(super) fn outgoing_to_the_wire(&mut self) -> &mut Vec<u8> {
        match self.session.as_mut().and_then(|session| session.tls.as_mut()) {
            Some(tls) => &mut tls.outgoing,
            None => &mut self.outgoing,
        }
    }

    pub(super) fn has_outgoing(&self) -> bool {
        let tls = self.session.as_ref().and_then(|session| session.tls.as_ref());
        !self.outgoing.is_empty() || tls.is_some_and(|tls| !tls.outgoing.is_empty())
    }

    /// What goes out with one send, as it goes over the wire. It may be nothing: a frame of which
    /// only the beginning was said is not compressed yet.
    pub(super) fn take_outgoing(
        &mut self,
        codec: &mut Codec,
        keep_buffers: bool,
    ) -> Result<Vec<u8>, String> {
        let mut plain = std::mem::take(&mut self.outgoing);
        let Some(session) = &mut self.session else { return Ok(plain) };
        if let Some(agreement) = session.deflate {
            let mut frames = Vec::with_capacity(plain.len().min(4096));
            codec.compress_frames(agreement, &mut plain, &mut frames);
            // What is left over is not whole.
            self.outgoing = plain;
            plain = frames;
        }
        let Some(tls) = &mut session.tls else { return Ok(plain) };
        if !plain.is_empty() {
            tls.seal(&plain).map_err(|error| format!("TLS: {error}"))?;
        }
        let sealed = std::mem::take(&mut tls.outgoing);
        if keep_buffers && session.deflate.is_none() {
            plain.clear();
            self.outgoing = plain;
        }
        Ok(sealed)
    }

    /// Begins the TLS handshake.
    pub(super) fn start_tls(&mut self, security: &Security) -> Result<(), String> {
        self.phase = Phase::Securing;
        let tls = Tls::new(security).map_err(|error| format!("TLS handshake: {error}"))?;
        self.session.get_or_insert_default().tls = Some(Box::new(tls));
        Ok(())
    }

    /// Begins the WebSocket handshake.
    pub(super) fn start_upgrade(
        &mut self,
        target: &Target,
        scenario: &impl Scenario,
        client: u32,
    ) -> Result<(), String> {
        self.phase = Phase::Upgrading;
        encode_request(&mut self.outgoing, target, scenario, client)
    }

    /// Takes what was received: decrypts it if need be, joins it to what was left over, and keeps
    /// what is not whole. `plain` is room for what is decrypted.
    pub(super) fn on_bytes(
        &mut self,
        shared: &mut Shared<'_>,
        plain: &mut Vec<u8>,
        scenario: &mut impl Scenario,
        client: u32,
        bytes: &mut [u8],
        now: Instant,
    ) -> Result<(), Ending> {
        let Some(session) = &mut self.session else {
            // Most receives of a plain client: nothing is left over and nothing to decrypt.
            let taken = self.consume(shared, scenario, client, bytes, now)?;
            self.keep_partial(&bytes[taken..]);
            return Ok(());
        };
        let Some(tls) = &mut session.tls else {
            return self.on_plain(shared, scenario, client, bytes, now);
        };
        plain.clear();
        let received = tls.on_received(bytes, plain);
        let (is_open, is_over) = (tls.is_open(), tls.is_over);
        if let Err(error) = received {
            return Err(match self.phase {
                Phase::Securing => Ending::Failed(format!("TLS handshake: {error}")),
                _ => Ending::Early(format!("TLS: {error}")),
            });
        }
        if self.phase == Phase::Securing && is_open {
            if let Some(opening) = self.opening() {
                opening.secured = now;
            }
            self.start_upgrade(shared.target, scenario, client).map_err(Ending::Failed)?;
        }
        if !plain.is_empty() {
            self.on_plain(shared, scenario, client, plain, now)?;
        }
        match self.phase {
            _ if !is_over => Ok(()),
            // The stream ends with this alert (RFC 8446 §6.1); TCP's own end says no more.
            Phase::CloseAnswered => Err(Ending::Closed),
            Phase::Securing | Phase::Upgrading => {
                Err(Ending::Failed("closed during the handshake".into()))
            }
            _ => Err(Ending::Early("end of stream without a Close frame".into())),
        }
    }

    /// The same, when there is a session and nothing to decrypt.
    pub(super) fn on_plain(
        &mut self,
        shared: &mut Shared<'_>,
        scenario: &mut impl Scenario,
        client: u32,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Ending> {
        let mut whole = match &mut self.session {
            Some(session) => std::mem::take(&mut session.partial),
            None => Vec::new(),
        };
        if whole.is_empty() {
            let taken = self.consume(shared, scenario, client, bytes, now)?;
            self.keep_partial(&bytes[taken..]);
            return Ok(());
        }
        whole.extend_from_slice(bytes);
        let taken = self.consume(shared, scenario, client, &whole, now)?;
        if taken < whole.len() {
            whole.drain(..taken);
            self.session.get_or_insert_default().partial = whole;
        } else if self.session.as_ref().is_some_and(|session| session.is_empty()) {
            // Emptied, it keeps no memory: an idle client has to be small.
            self.session = None;
        }
        Ok(())
    }

    pub(super) fn keep_partial(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.session.get_or_insert_default().partial.extend_from_slice(bytes);
        }
    }

    /// Handles everything whole at the front of `bytes`; says how much that was.
    pub(super) fn consume(
        &mut self,
        shared: &mut Shared<'_>,
        scenario: &mut impl Scenario,
        client: u32,
        bytes: &[u8],
        now: Instant,
    ) -> Result<usize, Ending> {
        let Shared { counts, codec, target } = shared;
        let mut taken = 0;
        if self.phase == Phase::Upgrading {
            let accept = websocket::accept(&websocket::key(u64::from(client)));
            let request = scenario.request(client);
            let subprotocols = request.subprotocols.as_deref().unwrap_or(&target.subprotocols);
            let deflate = target.deflate;
            let offer = websocket::Offer { accept: &accept, subprotocols, deflate };
            match websocket::decode_response(bytes, &offer) {
                Ok(None) => return Ok(0),
                Err(reason) => return Err(Ending::Failed(format!("handshake: {reason}"))),
                Ok(Some(answer)) => {
                    taken = answer.head_bytes;
                    if let Some(agreement) = answer.deflate {
                        let session = self.session.get_or_insert_default();
                        session.deflate = Some(agreement);
                        session.inflater = agreement.server_takes_over.then(Box::default);
                    }
                }
            }
            self.phase = Phase::Open;
            scenario.on_open(client, now, &mut self.outgoing);
        }
        let allowed = match &self.session {
            Some(session) if session.deflate.is_some() => RSV1,
            _ => 0,
        };
        while let Some((frame, len)) =
            websocket::decode_extended_frame(&bytes[taken..], allowed).map_err(Ending::Early)?
        {
            let compressed = bytes[taken] & RSV1 != 0;
            taken += len;
            match (frame.opcode, self.phase) {
                // RFC 6455 §5.5.1: nothing that follows a Close frame counts.
                (_, Phase::CloseAnswered) => {}
                (CLOSE, Phase::Closing) => self.phase = Phase::CloseAnswered,
                (CLOSE, Phase::Open) if self.manners == Manners::Mute => scenario
                    .on_frame(client, &frame, now, &mut self.outgoing)
                    .map_err(Ending::Early)?,
                (CLOSE, _) => return Err(Ending::Early(close_reason(frame.payload))),
                (PING, Phase::Open) if self.manners == Manners::Mute => {}
                (PING, Phase::Open) => {
                    let mask = websocket::scramble(counts.pings_answered) as u32;
                    websocket::encode_frame(&mut self.outgoing, PONG, frame.payload, mask);
                    counts.pings_answered += 1;
                }
                // §5.5.1: we have sent our Close frame and may send nothing more.
                (PING, _) => {}
                (_, Phase::Open) if frame.opcode == PONG || self.is_whole(&frame) => scenario
                    .on_frame(client, &frame, now, &mut self.outgoing)
                    .map_err(Ending::Early)?,
                (_, Phase::Open) => {
                    let message = self.on_fragment(codec, &frame, compressed);
                    let Some((opcode, payload)) = message.map_err(Ending::Early)? else {
                        continue;
                    };
                    let message = Frame { opcode, fin: true, payload: &payload };
                    scenario
                        .on_frame(client, &message, now, &mut self.outgoing)
                        .map_err(Ending::Early)?;
                }
                (_, _) => {}
            }
        }
        Ok(taken)
    }

    /// Whether a data frame is a message by itself, on a connection where none is unfinished and
    /// none compressed.
    pub(super) fn is_whole(&self, frame: &Frame<'_>) -> bool {
        let is_plain = match &self.session {
            Some(session) => session.message_opcode == 0 && session.deflate.is_none(),
            None => true,
        };
        frame.fin && frame.opcode != CONTINUATION && is_plain
    }

    /// Puts a data frame to those before it; with the last one, the message that they are (RFC 6455
    /// §5.4, RFC 7692 §6.2).
    pub(super) fn on_fragment(
        &mut self,
        codec: &mut Codec,
        frame: &Frame<'_>,
        compressed: bool,
    ) -> Result<Option<(u8, Vec<u8>)>, String> {
        let session = self.session.get_or_insert_default();
        match (frame.opcode, session.message_opcode) {
            (CONTINUATION, 0) => {
                return Err("continuation of no message (RFC 6455 §5.4)".into());
            }
            (CONTINUATION, _) => {}
            (opcode, 0) => {
                session.message_opcode = opcode;
                session.message_compressed = compressed;
            }
            (..) => return Err("a message within a message (RFC 6455 §5.4)".into()),
        }
        let message_bytes = (session.message.len() + frame.payload.len()) as u64;
        if message_bytes > websocket::PAYLOAD_BYTES_MAX {
            return Err(format!("message above {} bytes", websocket::PAYLOAD_BYTES_MAX));
        }
        session.message.extend_from_slice(frame.payload);
        if !frame.fin {
            return Ok(None);
        }
        let opcode = std::mem::take(&mut session.message_opcode);
        let mut payload = std::mem::take(&mut session.message);
        let wire_bytes = payload.len() as u64;
        if session.message_compressed {
            let mut inflated = Vec::with_capacity(payload.len().saturating_mul(2).min(64 * 1024));
            match &mut session.inflater {
                Some(inflater) => inflater.inflate(&payload, &mut inflated)?,
                None => codec.inflate(&payload, &mut inflated)?,
            }
            payload = inflated;
        }
        if session.deflate.is_some() {
            codec.volume.received_wire_bytes += wire_bytes;
            codec.volume.received_payload_bytes += payload.len() as u64;
        }
        if session.is_empty() {
            self.session = None;
        }
        Ok(Some((opcode, payload)))
    }
}

/// Appends the handshake of a client. An error is the scenario's: it asks for what cannot be sent.
fn encode_request(
    out: &mut Vec<u8>,
    target: &Target,
    scenario: &impl Scenario,
    client: u32,
) -> Result<(), String> {
    let Request { path_suffix, subprotocols } = scenario.request(client);
    let path = match &*path_suffix {
        "" => Cow::Borrowed(&*target.path),
        suffix => Cow::Owned(websocket::join_path(&target.path, suffix)),
    };
    if !websocket::is_path(&path) {
        return Err(format!("request: {path:?} is not a path that could stand in one"));
    }
    let subprotocols = subprotocols.as_deref().unwrap_or(&target.subprotocols);
    if !subprotocols.is_empty() && !subprotocols.split(", ").all(websocket::is_token) {
        return Err(format!("request: {subprotocols:?} is not a list of subprotocols"));
    }
    let request = websocket::Request {
        host: &target.host,
        path: &path,
        key: &websocket::key(u64::from(client)),
        subprotocols,
        deflate: target.deflate,
        headers: &target.headers,
    };
    websocket::encode_request(out, &request);
    Ok(())
}

/// How the end by a server's Close frame is told.
pub(crate) fn close_reason(payload: &[u8]) -> String {
    match payload.first_chunk() {
        Some(code) => format!("Close frame {}", u16::from_be_bytes(*code)),
        None => "Close frame without a code".into(),
    }
}
