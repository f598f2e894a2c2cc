//! UTF-8 of a text message, checked as its bytes arrive (RFC 6455 §8.1).

/// Validates a stream of bytes that may be cut inside a character.
///
/// A sequence that can no longer become a character fails with its first impossible byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct Utf8 {
    /// The beginning of a character whose end has not arrived: at most three of its four bytes.
    partial: [u8; 3],
    partial_bytes: u8,
}

/// The bytes are not UTF-8, whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

impl Utf8 {
    /// Reads on.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), NotUtf8> {
        while self.partial_bytes > 0 {
            let Some((&byte, rest)) = bytes.split_first() else { return Ok(()) };
            bytes = rest;
            let end = usize::from(self.partial_bytes);
            let [first, second, third] = self.partial;
            let mut character = [first, second, third, 0];
            character[end] = byte;
            match std::str::from_utf8(&character[..=end]) {
                Ok(_) => self.partial_bytes = 0,
                Err(error) if error.error_len().is_some() => return Err(NotUtf8),
                // Four bytes are always a character or an error, so `end` is below 3 here.
                Err(_) => {
                    self.partial[end] = byte;
                    self.partial_bytes += 1;
                }
            }
        }
        match simdutf8::compat::from_utf8(bytes) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(NotUtf8),
            Err(error) => {
                let tail = &bytes[error.valid_up_to()..];
                self.partial[..tail.len()].copy_from_slice(tail);
                self.partial_bytes = tail.len() as u8;
                Ok(())
            }
        }
    }

    /// Whether the bytes end with a whole character, so that the message may end here.
    pub fn is_complete(&self) -> bool {
        self.partial_bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails at the same byte as the standard library, wherever the bytes are cut.
    #[track_caller]
    fn check(bytes: &[u8]) {
        let failed_at = |read: &mut dyn FnMut(&[u8]) -> bool| {
            (1..=bytes.len()).find(|&end| !read(&bytes[end - 1..end])).unwrap_or(0)
        };
        let mut utf8 = Utf8::default();
        let by_byte = failed_at(&mut |byte| utf8.push(byte).is_ok());
        let want = (1..=bytes.len())
            .find(|&end| {
                std::str::from_utf8(&bytes[..end]).is_err_and(|error| error.error_len().is_some())
            })
            .unwrap_or(0);
        assert_eq!(by_byte, want, "{bytes:x?}");
        for cut in 0..=bytes.len() {
            let mut utf8 = Utf8::default();
            let result = utf8.push(&bytes[..cut]).and_then(|()| utf8.push(&bytes[cut..]));
            assert_eq!(result.is_err(), want > 0, "{bytes:x?} cut at {cut}");
            let whole = result.is_ok() && utf8.is_complete();
            assert_eq!(whole, std::str::from_utf8(bytes).is_ok(), "{bytes:x?} cut at {cut}");
        }
    }

    #[test]
    fn every_sequence_of_two_interesting_bytes_and_more() {
        // The edges of the table in RFC 3629 §4.
        let edges = [
            0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1,
            0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF,
        ];
        for a in edges {
            for b in edges {
                for c in edges {
                    check(&[a, b, c]);
                    check(&[a, b, c, 0x80]);
                    check(&[a, b, c, b'x']);
                }
            }
        }
    }

    #[test]
    fn long_text() {
        let text = "κόσμε 😀 plain ascii in between, long enough for the vector path. ".repeat(4);
        check(text.as_bytes());
        check(&text.as_bytes()[..text.len() - 60]);
        let mut broken = text.clone().into_bytes();
        broken[150] = 0xC0;
        check(&broken);
    }

    #[test]
    fn autobahn_6_4_fails_with_the_first_impossible_byte() {
        let mut utf8 = Utf8::default();
        assert_eq!(utf8.push("κόσμε".as_bytes()), Ok(()));
        assert_eq!(utf8.push(b"\xf4"), Ok(()));
        assert!(!utf8.is_complete());
        assert_eq!(utf8.push(b"\x90"), Err(NotUtf8));
    }
}
