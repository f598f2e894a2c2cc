//! The documentation, the examples and the unit held to the reader.

use super::*;

/// The annotated file, which is also the reference of all keys.
const DOCUMENTED: &str = include_str!("../../../../docs/penstock.toml");

#[test]
fn the_examples_are_in_order() {
    good(include_str!("../../../../docs/examples/front-node-chat.toml"));
    good(include_str!("../../../../docs/examples/echo-load-test.toml"));
}

/// The annotated file with the keys that stand behind a `#` as well.
fn documented_in_full() -> String {
    let uncomment = |line: &'static str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|first: char| first.is_ascii_lowercase()) => key,
        _ => line,
    };
    DOCUMENTED.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_documentation_has_the_keys_that_the_reader_asks_for() {
    let text = documented_in_full();
    let (result, asked) = check("docs/penstock.toml", &text, &machine(), &Overrides::default());
    if let Err(faults) = result {
        panic!("{faults}");
    }
    let mut documented = BTreeSet::new();
    let mut scope = "";
    for line in text.lines() {
        match line {
            "[backend.app]" => scope = "backend.websocket",
            "[backend.chat]" => scope = "backend.websocket",
            "[[backend.chat.upstream]]" => {
                scope = "backend.websocket.upstream";
                documented.insert(scope.to_owned());
            }
            "[backend.rooms]" => scope = "backend.local",
            "[backend.echo]" => scope = "backend",
            "[backend.closed]" => scope = "backend.refuse",
            _ if line.starts_with('[') => scope = line.trim_matches(['[', ']']),
            _ => {}
        }
        if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let scope = if key == "kind" { "backend" } else { scope };
            documented.insert(format!("{scope}.{key}"));
        }
    }
    assert_eq!(asked.into_keys().collect::<BTreeSet<_>>(), documented);
}

#[test]
fn the_documented_values_are_the_defaults() {
    let whole = good(DOCUMENTED);
    let lines: Vec<&str> = DOCUMENTED.lines().collect();
    let mut tried = 0;
    for (index, line) in lines.iter().enumerate() {
        let is_key = line.contains(" = ") && !line.starts_with('#');
        if !is_key || line.ends_with("# required") || line.ends_with("# example") {
            continue;
        }
        let mut without = lines.clone();
        without.remove(index);
        let without = good(&without.join("\n"));
        let changes = succession::changes(&without, &whole);
        assert_eq!(changes, [], "a default written out is no change: see Section::settle");
        assert_eq!(without, whole, "without {line}");
        tried += 1;
    }
    assert!(tried > 20, "only {tried} lines with a default");
}

/// The value of `key` in a unit or a sysctl file.
fn setting<'f>(file: &'f str, key: &str) -> &'f str {
    let line = file.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    line.unwrap_or_else(|| panic!("{key} is not set")).trim()
}

#[test]
fn the_unit_and_the_kernel_settings_fit_the_defaults() {
    let unit = include_str!("../../../../systemd/penstock.service");
    let stop = setting(unit, "TimeoutStopSec").strip_suffix('s').expect("seconds");
    assert!(good(GOOD).server.stop_timeout.as_secs() < stop.parse().expect("a number"));
    let slots = crate::limits::SLOTS_PER_SHARD_MAX.to_string();
    assert_eq!(setting(unit, "LimitNOFILE"), slots);

    let kernel = include_str!("../../../../tuning/90-penstock.conf");
    assert_eq!(setting(kernel, "fs.nr_open"), slots);
    let granted: u32 = setting(kernel, "net.core.wmem_max").parse().expect("a number");
    assert!(granted >= Limits::default().send_buffer_bytes);
    let ports = setting(kernel, "net.ipv4.ip_local_port_range");
    let (low, high) = ports.split_once(' ').expect("two numbers");
    let ports = low.parse().expect("a port")..=high.parse().expect("a port");
    assert!(!ports.contains(&Config::embedded().listeners[0].address.port()));
}
