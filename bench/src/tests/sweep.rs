//! One rate after the other.

use super::search::throttled_echo;
use super::*;
use crate::options::Files;
use crate::result_file::ResultFile;
use crate::sweep::run as sweep;

#[test]
fn sweep_reports_every_point_and_a_histogram_of_each() {
    with_echo(1, |address| {
        let line = format!(
            "--url ws://{address}/ --connections 3 --from 100 --to 400 --steps 3 --seconds 0.2 \
             --warm-up-seconds 0.05 --size 16:1,200:1 --mixed --past-knee-max 100 --cpu 0 --pid {}",
            std::process::id()
        );
        let watch = Watch::new(&NEVER);
        let outcome = sweep(&parse(&line), &watch).unwrap();
        let path =
            std::env::temp_dir().join(format!("penstock-bench-{}-sweep.hlog", std::process::id()));
        let request = results::request(&format!("sweep {line}"));
        let result = ResultFile::new(&request, &outcome, &watch.finish());
        let files = Files { hlog: Some(path.clone()), ..Files::default() };
        result.write_files(&files).unwrap();
        let log = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(log.matches("HISTFAAA").count(), 3, "{log}");
        assert!(log.contains("Tag=200/s,") && log.contains("Tag=400/s,"), "{log}");
        let names: Vec<&str> = outcome.histograms.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["100/s", "200/s", "400/s"]);
        let report = Value::Object(outcome.figures);
        assert_eq!(report["complete"], true, "{report:#}");
        let points = report["points"].as_array().unwrap();
        assert_eq!(points.len(), 3, "{report:#}");
        for (point, (rate, due)) in points.iter().zip([(100, 20), (200, 40), (400, 80)]) {
            assert_eq!(point["offered_per_second"], rate, "{report:#}");
            assert_eq!(point["due_count"], due, "{report:#}");
            assert_eq!(point["back_count"], due, "{report:#}");
            assert_eq!(point["latency_us"]["count"], due, "{report:#}");
            assert!(figure(point, "server", "cpu_us_per_message") > 0.0, "{report:#}");
        }
        let by_size = &report["messages"]["count_by_bytes"];
        let counts = ["16..31", "128..255"].map(|range| by_size[range].as_u64().unwrap());
        // Warm-ups are sent too: 25 + 50 + 100.
        assert_eq!(counts[0] + counts[1], 175, "{report:#}");
    });
}

#[test]
fn sweep_ends_past_the_knee() {
    with_odd_server(throttled_echo(100), |address| {
        let line = format!(
            "--url ws://{address}/ --connections 1 --rates 20,400,500,600,700 --seconds 0.4 \
             --warm-up-seconds 0.1"
        );
        let report = run(sweep, &line);
        let rates = |value: &Value| -> Vec<u64> {
            value.as_array().unwrap().iter().map(|rate| rate.as_u64().unwrap()).collect()
        };
        assert_eq!(rates(&report["rates_not_played_per_second"]), [600, 700], "{report:#}");
        assert_eq!(report["rate_kept_up_per_second"], 20, "{report:#}");
        assert_eq!(report["ended_by"], "2 rates past the knee", "{report:#}");
        assert_eq!(report["complete"], true, "{report:#}");
        let points = report["points"].as_array().unwrap();
        let past: Vec<bool> =
            points.iter().map(|point| point["past_knee"].as_bool().unwrap()).collect();
        assert_eq!(past, [false, true, true], "{report:#}");
    });
}

#[test]
fn sweep_that_is_told_to_stop_reports_what_there_is() {
    with_echo(1, |address| {
        let stopped = AtomicBool::new(false);
        let line = format!(
            "--url ws://{address}/ --connections 2 --rates 100,200 --seconds 60 --warm-up-seconds 0"
        );
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(500));
                stopped.store(true, Ordering::Relaxed);
            });
            try_run(sweep, &line, &stopped).unwrap()
        });
        assert_eq!((&report["complete"], &report["ended_by"]), (&false.into(), &"stopped".into()));
        let points = report["points"].as_array().unwrap();
        assert_eq!(points.len(), 1, "{report:#}");
        assert_eq!(points[0]["complete"], false, "{report:#}");
        assert_eq!(report["rates_not_played_per_second"].as_array().unwrap().len(), 1);
    });
}
