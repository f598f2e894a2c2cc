//! Frame headers (RFC 6455 §5.2).

/// What a frame is (RFC 6455 §5.2). Reserved numbers do not exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// The next part of a fragmented message.
    Continuation = 0x0,
    /// A text message, or its first part.
    Text = 0x1,
    /// A binary message, or its first part.
    Binary = 0x2,
    /// The sender will send nothing more.
    Close = 0x8,
    /// Asks for a Pong with the same payload.
    Ping = 0x9,
    /// The answer to a Ping, or a sign of life.
    Pong = 0xA,
}

/// The most that a header can take: 2 bytes, a 64-bit length, a mask key.
pub const FRAME_HEADER_BYTES_MAX: usize = 14;

/// Appends the header of an unfragmented frame from the server, which is never masked (§5.1).
pub fn encode_server_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    out.push(0x80 | opcode as u8);
    match payload_bytes {
        0..=125 => out.push(payload_bytes as u8),
        126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}
