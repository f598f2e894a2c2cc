//! A long answer: one frame in pieces, the large ones of which are the history's own.
//!
//! ```text
//!   own: header, {"ack":1,…"messages":[ │ shared: {…}, │ shared: {…}, │ own: small ones, ]} │
//! ```
//!
//! An answer to one client is a few hundred bytes and a list, however long it is, and thousands that ask
//! for the same messages hold them once. A history may forget a message meanwhile: whoever still has to
//! send it keeps it alive.

use bytes::{Buf, Bytes};

use super::protocol::{Heading, heading};

/// One frame for one client. `own_bytes <= bytes`
#[derive(Debug)]
pub struct Answer {
    /// Those before `next` are empty, the others are not.
    pieces: Box<[Bytes]>,
    next: u32,
    bytes: u32,
    own_bytes: u32,
}

impl Answer {
    /// An answer of these pieces, none of them empty. The first begins with the frame's header.
    /// `own_bytes` of them nobody else holds.
    ///
    /// # Panics
    ///
    /// When it is longer than 4 GiB: `answer_bytes_max` is less.
    pub(crate) fn new(pieces: Vec<Bytes>, own_bytes: usize) -> Answer {
        debug_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        let in_32_bits = |bytes: usize| u32::try_from(bytes).expect("an answer is bounded");
        Answer {
            pieces: pieces.into(),
            next: 0,
            bytes: in_32_bits(bytes),
            own_bytes: in_32_bits(own_bytes),
        }
    }

    /// Bytes of the whole frame, those that were sent included.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Bytes on the heap that are this answer's alone: its list, and the pieces that are nobody else's.
    pub fn held_bytes(&self) -> usize {
        self.pieces.len() * size_of::<Bytes>() + self.own_bytes as usize
    }

    /// What has not been sent, in order.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces[self.next as usize..].iter().map(|piece| &piece[..])
    }

    /// `count` bytes more have been sent; at most what is left.
    pub fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let piece = &mut self.pieces[self.next as usize];
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            *piece = Bytes::new();
            self.next += 1;
        }
    }

    /// What it answers, as long as none of it has been sent.
    pub fn heading(&self) -> Heading<'_> {
        self.pieces.first().map_or(Heading::Other, |first| heading(first))
    }
}

/// A frame in one piece.
impl From<Bytes> for Answer {
    fn from(frame: Bytes) -> Answer {
        let own_bytes = frame.len();
        Answer::new(vec![frame], own_bytes)
    }
}
