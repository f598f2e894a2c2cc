//! Frames: whatever the cut, a scanner forwards the same prefix, and a decoder never panics.
#![no_main]

use gateway::spares::Spares;
use gateway::ws::scan::{Direction, Scanner};
use gateway::ws::{Decoder, Limits};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&cut, wire)) = input.split_first() else { return };
    let limits = Limits { message_bytes_max: 4096, frame_bytes_max: 1024 };
    let cut = usize::from(cut).min(wire.len());
    let forwarded = |parts: &[&[u8]]| {
        let (mut scanner, mut out) =
            (Scanner::new(Direction::ClientToUpstream, false), Vec::new());
        for part in parts {
            let scanned = scanner.scan(part, &limits);
            out.extend_from_slice(&scanned.carried);
            out.extend_from_slice(&part[..scanned.forward]);
        }
        out
    };
    let whole = forwarded(&[wire, b""]);
    assert!(wire.starts_with(&whole));
    assert_eq!(whole, forwarded(&[&wire[..cut], &wire[cut..]]));
    let (mut decoder, mut spares) = (Decoder::default(), Spares::default());
    for part in [&wire[..cut], &wire[cut..]] {
        let (mut buffer, mut consumed) = (part.to_vec(), 0);
        while let Ok(Some(_)) = decoder.next(&mut buffer, &mut consumed, &limits, &mut spares) {}
    }
});
