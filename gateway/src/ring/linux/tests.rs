use std::net::TcpStream;

use super::*;

/// A backlog of which nobody may be accepted does not keep the ring awake.
#[test]
fn a_backlog_without_allowance_lets_the_ring_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("it is bound");
    let options = Options { slots: 8, buffers: 4, buffer_bytes: 4096, incremental: false };
    let mut ring = LinuxRing::new(&options, vec![listener]).expect("a ring");
    ring.arm_accept(0);
    let _client = TcpStream::connect(address).expect("it listens");
    let deadline = ring.now() + Duration::from_millis(50);
    let mut turns = 0;
    while ring.now() < deadline {
        ring.allow_accepts(0);
        ring.submit_and_wait(Wait::Until(deadline));
        assert!(ring.next_completion().is_none());
        turns += 1;
    }
    // One for the poll, one for the deadline, and some to spare.
    assert!(turns <= 8, "{turns} turns");
    let deadline = ring.now() + Duration::from_secs(10);
    while ring.now() < deadline {
        ring.allow_accepts(1);
        ring.submit_and_wait(Wait::Until(deadline));
        if let Some(Completion::Accepted { .. }) = ring.next_completion() {
            return;
        }
    }
    panic!("it was not accepted");
}

/// A listener that goes on failing says so, and is left alone until it is armed again.
#[test]
fn a_broken_listener_ends_its_accept() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let broken = Socket::from(listener.try_clone().expect("a descriptor"));
    let options = Options { slots: 8, buffers: 4, buffer_bytes: 4096, incremental: false };
    let mut ring = LinuxRing::new(&options, vec![listener]).expect("a ring");
    broken.shutdown(std::net::Shutdown::Both).expect("it listens");
    for _ in 0..2 {
        ring.allow_accepts(4);
        ring.arm_accept(0);
        let taken = ring.wait_for_one();
        assert!(
            matches!(
                taken,
                Some(Completion::AcceptEnded {
                    listener: 0,
                    failure: Some(Failure::Other(libc::EINVAL))
                })
            ),
            "{taken:?}"
        );
    }
}

/// The queue of submissions is full when a send in parts, or a connect, comes: each still goes out with
/// what it was given, and not with what those behind it were.
#[test]
fn what_is_gathered_keeps_its_own_where_the_queue_is_full() {
    let options = Options { slots: 8, buffers: 4, buffer_bytes: 4096, incremental: false };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = UpstreamAddress::Tcp(listener.local_addr().expect("it is bound"));
    let mut ring = LinuxRing::new(&options, Vec::new()).expect("a ring");
    let moved = |ring: &mut LinuxRing, socket: OwnedFd| {
        ring.start_move(socket, Move::SelfTest);
        let Some(Completion::Accepted { slot, .. }) = ring.wait_for_one() else {
            panic!("not moved")
        };
        ConnId { slot, generation: 1 }
    };
    for queued in SUBMISSIONS - 4..=SUBMISSIONS {
        let mut pairs = Vec::new();
        for _ in 0..3 {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            theirs.set_nonblocking(true).expect("it is open");
            pairs.push((moved(&mut ring, OwnedFd::from(ours)), theirs));
        }
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let opened = moved(&mut ring, OwnedFd::from(socket));
        ring.enter(0, None);
        let nobody = ConnId { slot: 7, generation: 9 };
        (0..queued).for_each(|_| ring.cancel_recv(nobody));
        ring.submit_connect(opened, &address);
        let sent: Vec<String> = (0..3).map(|i| i.to_string().repeat(10 + i)).collect();
        for ((id, _), text) in pairs.iter().zip(&sent) {
            let (first, rest) = text.as_bytes().split_at(4);
            let parts = [IoSlice::new(first), IoSlice::new(rest)];
            // SAFETY: `sent` outlives the sends, which are waited for below.
            unsafe { ring.submit_send(*id, &parts, SendMode::TryNow) };
        }
        for _ in 0..4 {
            match ring.wait_for_one() {
                Some(Completion::Sent { id, result }) => {
                    let pair = pairs.iter().position(|(of, _)| *of == id).expect("one of ours");
                    assert_eq!(result, Ok(sent[pair].len()), "{queued}, {pair}");
                }
                Some(Completion::Connected { id, result: Ok(()) }) => assert_eq!(id, opened),
                other => panic!("{queued}: {other:?}"),
            }
        }
        for ((_, theirs), text) in pairs.iter_mut().zip(&sent) {
            let mut got = vec![0; 64];
            let count = io::Read::read(theirs, &mut got).expect("it was sent");
            assert_eq!(&got[..count], text.as_bytes(), "{queued}");
        }
        let used = pairs.iter().map(|(id, _)| *id).chain([opened]);
        for id in used {
            ring.submit_close(id);
            assert!(matches!(ring.wait_for_one(), Some(Completion::Closed { .. })));
        }
    }
}

/// A reset is told without a receive; the end of a stream is not, and is no reason to wake again.
#[test]
fn a_watch_tells_of_a_reset_and_of_no_end_of_a_stream() {
    let options = Options { slots: 8, buffers: 4, buffer_bytes: 4096, incremental: false };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("it is bound");
    let mut ring = LinuxRing::new(&options, vec![listener]).expect("a ring");
    ring.arm_accept(0);
    for ends_first in [false, true] {
        let mut client = TcpStream::connect(address).expect("it listens");
        ring.allow_accepts(1);
        let Some(Completion::Accepted { slot, .. }) = ring.wait_for_one() else {
            panic!("not accepted")
        };
        let id = ConnId { slot, generation: 1 };
        ring.arm_watch(id);
        io::Write::write_all(&mut client, b"unread").expect("room");
        if ends_first {
            client.shutdown(std::net::Shutdown::Write).expect("it is connected");
        }
        let deadline = ring.now() + Duration::from_millis(50);
        let mut turns = 0;
        while ring.now() < deadline {
            ring.submit_and_wait(Wait::Until(deadline));
            let taken = ring.next_completion();
            assert!(taken.is_none(), "{taken:?}");
            turns += 1;
        }
        // One for each event, one for the deadline, and some to spare.
        assert!(turns <= 8, "{turns} turns");
        Socket::from(client).set_linger(Some(Duration::ZERO)).expect("it is open");
        let taken = ring.wait_for_one();
        let Some(Completion::Watched { id: of, gone: true, more }) = taken else {
            panic!("{taken:?}")
        };
        assert_eq!(of, id);
        if more {
            ring.cancel_watch(id);
            let taken = ring.wait_for_one();
            let Some(Completion::Watched { more: false, .. }) = taken else { panic!("{taken:?}") };
        }
        ring.submit_close(id);
        assert!(matches!(ring.wait_for_one(), Some(Completion::Closed { .. })));
    }
}
