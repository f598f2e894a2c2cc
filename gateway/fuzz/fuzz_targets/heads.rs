//! Heads: the scanner finds the same end wherever the bytes are cut; what it accepts is parsed.
#![no_main]

use gateway::handshake::upgrade_of;
use gateway::http::{HeadLimits, HeadScanner, parse_request, parse_response};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&cut, head)) = input.split_first() else { return };
    let limits = HeadLimits { head_bytes_max: 2048, headers_max: 64, target_bytes_max: 512 };
    let once = HeadScanner::default().scan(head, &limits);
    let mut scanner = HeadScanner::default();
    let cut = usize::from(cut).min(head.len());
    let first = scanner.scan(&head[..cut], &limits);
    let twice = if first == Ok(None) { scanner.scan(head, &limits) } else { first };
    assert_eq!(once, twice);
    if let Ok(Some(end)) = once {
        if let Ok(request) = parse_request(&head[..end], &limits) {
            let _ = upgrade_of(&request);
        }
        let _ = parse_response(&head[..end], &limits);
    }
});
