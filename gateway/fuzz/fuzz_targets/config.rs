//! The configuration file: whatever it holds, it is a configuration or has faults, each with a place in the
//! file; and what is a configuration can follow itself. Nobody is asked for names or tokens.
#![no_main]

use std::io;

use gateway::config::succession::succeed;
use gateway::config::{Config, Machine};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let machine = Machine {
        cpus: 2,
        descriptors: 20_000,
        memory_bytes: 1 << 34,
        resolve: |host, port| match host.len() % 3 {
            0 => Err(io::ErrorKind::NotFound.into()),
            count => Ok((0..count as u8).map(|it| ([10, 0, 0, it], port).into()).collect()),
        },
        read_token: |_| Err("no token here".to_owned()),
        mode: |_| None,
        credentials: None,
    };
    match Config::parse_on(&machine, "fuzz", text) {
        Ok(config) => {
            let next = succeed(&config, config.clone(), |_| true).expect("nothing has changed");
            assert!(next.changes.is_empty(), "{:?}", next.changes);
            let mut same = config.clone();
            same.generation = 1;
            assert_eq!(next.config, same);
        }
        Err(faults) => {
            assert!(!faults.list.is_empty());
            let lines = text.split('\n').count();
            for fault in &faults.list {
                assert!(fault.line <= lines, "{fault:?} of {lines} lines");
                assert!(!fault.message.is_empty());
            }
        }
    }
});
