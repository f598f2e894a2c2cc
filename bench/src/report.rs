//! A result, for people and for programs: one JSON object, and the same as indented text. Keys
//! carry their units, so the text needs nothing of its own.

use serde_json::Value;

/// The text of a report. When the tool was its own limit, a last line says so, `colour`ed red.
pub(crate) fn text(report: &Value, colour: bool) -> String {
    let mut out = String::new();
    write_value(&mut out, report, 0);
    if report["saturated"] == true {
        let reason = report["saturated_reason"].as_str().unwrap_or_default();
        let line = format!("SATURATED: these figures are about this tool: {reason}");
        out.push_str(&if colour { format!("\x1B[1;31m{line}\x1B[0m\n") } else { line + "\n" });
    }
    out
}

fn write_value(out: &mut String, value: &Value, depth: usize) {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => return,
    };
    let width = entries.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in entries {
        let key = key.replace('_', " ");
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(_) | Value::Array(_) => {
                out.push_str(&format!("{indent}{key}\n"));
                write_value(out, value, depth + 1);
            }
            Value::String(text) => out.push_str(&format!("{indent}{key:width$}  {text}\n")),
            Value::Null => out.push_str(&format!("{indent}{key:width$}  -\n")),
            other => out.push_str(&format!("{indent}{key:width$}  {other}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_what_the_json_says() {
        let report = serde_json::json!({
            "opened_count": 3, "cpu": { "us": 1.5, "none": null }, "list": ["a"]
        });
        let want = "opened count  3\ncpu\n  us    1.5\n  none  -\nlist\n  0  a\n";
        assert_eq!(text(&report, true), want);
    }

    #[test]
    fn a_tool_that_was_its_own_limit_says_so_in_red_where_there_are_colours() {
        let report = serde_json::json!({ "saturated": true, "saturated_reason": "busy" });
        let want = "SATURATED: these figures are about this tool: busy";
        assert_eq!(text(&report, false).lines().last(), Some(want));
        let want = format!("\x1B[1;31m{want}\x1B[0m");
        assert_eq!(text(&report, true).lines().last(), Some(&*want));
    }
}
