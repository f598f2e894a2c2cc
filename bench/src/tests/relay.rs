//! What a proxy adds.

use std::time::Instant;

use super::*;
use crate::relay::run as relay;

/// A relay with ordinary sockets that hands bytes on to the upstream at once, and hands back each
/// answer so much later: in order, and without one waiting for the other.
fn with_slow_relay<T>(
    upstream: SocketAddr,
    delay: Duration,
    body: impl FnOnce(SocketAddr) -> T,
) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut server = TcpStream::connect(upstream).unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let mut from_client = client.try_clone().unwrap();
            let mut to_server = server.try_clone().unwrap();
            let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
            thread::scope(|scope| {
                scope.spawn(move || {
                    let _ = io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(std::net::Shutdown::Write);
                });
                scope.spawn(move || {
                    for (due, bytes) in receiver {
                        // The delay is what is tested.
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        if client.write_all(&bytes).is_err() {
                            break;
                        }
                    }
                    let _ = client.shutdown(std::net::Shutdown::Both);
                });
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(len @ 1..) = server.read(&mut buffer) {
                    sender.send((Instant::now() + delay, buffer[..len].to_vec())).unwrap();
                }
                drop(sender);
            });
        });
        body(address)
    })
}

#[test]
fn relay_tells_what_a_slow_one_adds() {
    with_echo(1, |backend| {
        with_slow_relay(backend, Duration::from_millis(60), |proxy| {
            let pid = std::process::id();
            let line = format!(
                "--url ws://{proxy}/ --direct ws://{backend}/ --connections 1 --rate 100 \
                 --seconds 0.6 --warm-up-seconds 0.1 --slice-ms 100 --lead-in-ms 10 \
                 --pid {pid} --direct-pid {pid} --size 16..100"
            );
            let report = run(relay, &line);
            assert_eq!((&report["complete"], &report["slices_count"]), (&true.into(), &6.into()));
            for path in ["proxied", "direct"] {
                // 100 ms of 100 a second in each slice, whatever the lead-in.
                assert_eq!(report[path]["due_count"], 60, "{report:#}");
                assert_eq!(report[path]["back_count"], 60, "{report:#}");
                for process in ["proxy", "backend"] {
                    let key = format!("{process}_cpu_us_per_message");
                    assert!(report[path][key].as_f64() > Some(0.0), "{report:#}");
                }
            }
            assert!(figure(&report["proxied"], "latency_us", "p50") >= 60_000.0, "{report:#}");
            // At least the delay, but for what the direct path had to wait itself.
            let p50 = figure(&report["direct"], "latency_us", "p50");
            let added = figure(&report, "added_us", "p50");
            assert!(added >= 59_900.0 - p50, "{report:#}");
            assert!(figure(&report, "ratio", "p50") > 1.0, "{report:#}");
            assert!(figure(&report, "added_p50_us_of_pairs", "max") >= added - 1.0, "{report:#}");
        });
    });
}

#[test]
fn relay_through_the_bare_one_loses_nothing_and_can_be_stopped() {
    with_echo(1, |backend| {
        with_relay(backend, |proxy| {
            let urls = format!("--url ws://{proxy}/ --direct ws://{backend}/ --connections 7");
            let line = format!("{urls} --rate 700 --seconds 0.3 --warm-up-seconds 0 --slice-ms 50");
            let report = run(relay, &line);
            for path in ["proxied", "direct"] {
                assert_eq!(report[path]["due_count"], 6 * 35, "{report:#}");
                assert_eq!(report[path]["lost_count"], 0, "{report:#}");
                assert_eq!(report[path]["proxy_cpu_us_per_message"], Value::Null, "{report:#}");
            }
            let stopped = AtomicBool::new(false);
            let report = thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(600));
                    stopped.store(true, Ordering::Relaxed);
                });
                let line = format!("{urls} --rate 700 --seconds 60 --warm-up-seconds 0");
                try_run(relay, &line, &stopped).unwrap()
            });
            assert_eq!(
                (&report["complete"], &report["ended_by"]),
                (&false.into(), &"stopped".into())
            );
            assert_eq!(report["proxied"]["lost_count"], 0, "{report:#}");
        });
    });
}
