//! Close codes and the payload of a Close frame (RFC 6455 §5.5.1, §7.4).

use super::ProtocolError;

/// The code and the reason of a Close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseFrame<'a> {
    /// Why; always one that [`is_sendable`].
    pub code: u16,
    /// For humans, at most 123 bytes.
    pub reason: &'a str,
}

/// The most that a reason can take: a control payload without the code.
pub const REASON_BYTES_MAX: usize = 123;

/// Whether a Close frame may carry `code` (§7.4.1 and the registry that §11.7 opened, which has
/// added 1012 to 1014). 1004, 1005, 1006 and 1015 exist, but never on the wire.
pub fn is_sendable(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Reads the payload of a Close frame. `None`: it is empty and gives no reason.
pub fn decode_close(payload: &[u8]) -> Result<Option<CloseFrame<'_>>, ProtocolError> {
    match payload {
        [] => Ok(None),
        [_] => Err(ProtocolError::ClosePayloadOfOneByte),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !is_sendable(code) {
                return Err(ProtocolError::CloseCode(code));
            }
            let reason =
                std::str::from_utf8(reason).map_err(|_| ProtocolError::CloseReasonNotUtf8)?;
            Ok(Some(CloseFrame { code, reason }))
        }
    }
}

/// Writes the payload of a Close frame and says how long it is. A reason is cut to what fits, at
/// a whole character. A code that may not be sent (1005 and 1006 are what we note ourselves when a
/// peer gave none) becomes what it stands for: an empty payload.
pub fn encode_close_payload(out: &mut [u8; 125], code: Option<u16>, reason: &str) -> usize {
    let Some(code) = code.filter(|&code| is_sendable(code)) else { return 0 };
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = &reason.as_bytes()[..end];
    out[..2].copy_from_slice(&code.to_be_bytes());
    out[2..2 + reason.len()].copy_from_slice(reason);
    2 + reason.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_7_4_the_table_of_codes() {
        let sendable: Vec<u16> = (0..=u16::MAX).filter(|&code| is_sendable(code)).collect();
        let mut want: Vec<u16> = (1000..=1003).chain(1007..=1014).collect();
        want.extend(3000..=4999);
        assert_eq!(sendable, want);
    }

    #[test]
    fn payloads_there_and_back() {
        let mut payload = [0; 125];
        for reason in ["", "bye", &"x".repeat(123)] {
            let length = encode_close_payload(&mut payload, Some(4001), reason);
            assert_eq!(length, 2 + reason.len());
            assert_eq!(
                decode_close(&payload[..length]),
                Ok(Some(CloseFrame { code: 4001, reason }))
            );
        }
        for code in [None, Some(0), Some(1005), Some(1006), Some(1015), Some(5000)] {
            assert_eq!(encode_close_payload(&mut payload, code, "lost"), 0);
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let mut payload = [0; 125];
        let length = encode_close_payload(&mut payload, Some(1000), &"€".repeat(60));
        assert_eq!(length, 125);
        let length = encode_close_payload(&mut payload, Some(1000), &"ü".repeat(80));
        assert_eq!(length, 2 + 122);
        assert!(decode_close(&payload[..length]).is_ok());
    }

    #[test]
    fn section_5_5_1_and_7_4_illegal_payloads() {
        assert_eq!(decode_close(b"\x03"), Err(ProtocolError::ClosePayloadOfOneByte));
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535u16] {
            assert_eq!(decode_close(&code.to_be_bytes()), Err(ProtocolError::CloseCode(code)));
        }
        assert_eq!(decode_close(b"\x03\xe8\xce\xba\xe1"), Err(ProtocolError::CloseReasonNotUtf8));
    }
}
