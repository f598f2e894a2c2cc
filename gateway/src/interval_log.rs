//! Interval logs: what was counted in each interval, appended to a file in HdrHistogram's format (V2,
//! deflated), which its tools and those of others read (`log.histograms`).
//!
//! ```text
//!   control thread  reads the histograms, takes the difference   -> a batch, at most one waiting
//!   writer thread   opens the file, appends the batch, closes it
//! ```
//!
//! The file is opened for each batch, so that whoever moves it away (logrotate) has to tell nobody. A
//! disk that hangs holds up the writer alone: the interval then grows until there is room for a batch,
//! so nothing is lost. A batch that cannot be written is; the log says so once, and once more when the
//! file is written again.
//!
//! Times are absolute (seconds since 1970), so that a file may have several lives of the gateway in it.
//! A line has a tag: the histogram's name and labels in the form of Graphite, as in
//! `forward_seconds;route=*/chat;direction=to_client`. Those that counted nothing have no line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use tracing::{error, info};

use crate::config::{Config, HistogramLog};
use crate::control::Control;
use crate::histogram::Snapshot;
use crate::totals::{Series, Totals, Unit};

/// Nanoseconds to what the third column is in, milliseconds: as the format's own tools have it.
const MAX_DIVISOR: f64 = 1e6;

/// The histograms of the shards' turns, which are one in the log.
const LOOP: &str = "loop_iteration_seconds";

/// How long the end of the process waits for the last batch.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// What came in an interval, to be appended to a file.
#[derive(Debug)]
pub struct Batch {
    /// Where to.
    pub path: PathBuf,
    /// The counts of the interval.
    pub since: Totals,
    /// The configuration that routes have their names from.
    pub config: Arc<Config>,
    /// When the interval began.
    pub start: SystemTime,
    /// How long it was.
    pub length: Duration,
}

/// Appends an interval for each `log.histograms_interval_ms`, as long as the process lives.
pub struct IntervalLog {
    batches: SyncSender<Batch>,
    written: Receiver<()>,
    /// What is in the file, or on its way there.
    last: Totals,
    last_at: Instant,
    /// Batches that the writer has not reported on.
    waiting: usize,
}

impl IntervalLog {
    /// One whose first interval begins with nothing counted, at `started`.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub fn new(started: Instant) -> io::Result<IntervalLog> {
        let (batches, to_write) = sync_channel::<Batch>(1);
        let (report, written) = sync_channel(2);
        std::thread::Builder::new().name("interval-log".to_owned()).spawn(move || {
            let mut state = Lost::default();
            for batch in to_write {
                state.on_written(&batch.path, append(&batch));
                // Nobody listens once the process ends.
                let _ = report.try_send(());
            }
        })?;
        Ok(IntervalLog { batches, written, last: Totals::default(), last_at: started, waiting: 0 })
    }

    /// Hands over what came since the last time; while the writer is behind, nothing, and the next
    /// interval is longer.
    fn take(&mut self, log: &HistogramLog, control: &Control) {
        self.waiting -= self.written.try_iter().count();
        let now = Instant::now();
        let totals = Totals::read(control.gateway.counters());
        let length = now - self.last_at;
        let batch = Batch {
            path: log.path.clone(),
            since: totals.since(&self.last),
            config: control.config(),
            start: SystemTime::now().checked_sub(length).unwrap_or(UNIX_EPOCH),
            length,
        };
        match self.batches.try_send(batch) {
            Ok(()) => {
                self.last = totals;
                self.last_at = now;
                self.waiting += 1;
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    /// Waits a second at most until what was handed over is written.
    fn finish(&mut self) {
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while self.waiting > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.written.recv_timeout(left).is_err() {
                return;
            }
            self.waiting -= 1;
        }
    }

    /// Begins anew: what was counted while there was no log is in none.
    fn skip(&mut self, control: &Control) {
        self.last = Totals::read(control.gateway.counters());
        self.last_at = Instant::now();
    }

    /// Appends what came since the last interval, before the process ends.
    pub fn end(&mut self, control: &Control) {
        if let Some(log) = &control.config().log.histograms {
            self.take(log, control);
            self.finish();
        }
    }
}

/// Keeps the log as the configuration wants it, until `stopped`, and writes the rest.
pub async fn keep(control: Arc<Control>, stopped: impl Future<Output = ()>) {
    let mut log = match IntervalLog::new(control.started) {
        Ok(log) => log,
        Err(error) => return error!("log.histograms: no thread to write with: {error}"),
    };
    let mut configs = control.configs();
    tokio::pin!(stopped);
    let mut on = true;
    loop {
        let wanted = configs.borrow_and_update().log.histograms.clone();
        let interval = wanted.as_ref().map_or(Duration::MAX, |wanted| wanted.interval);
        if wanted.is_some() && !on {
            log.skip(&control);
        }
        on = wanted.is_some();
        let due = log.last_at + interval.min(Duration::from_secs(86_400));
        // Where a batch waits for its turn, the next attempt is not made at once.
        let due = due.max(Instant::now() + Duration::from_millis(100));
        tokio::select! {
            () = tokio::time::sleep_until(due.into()), if on => {
                if let Some(wanted) = &wanted {
                    log.take(wanted, &control);
                }
            }
            changed = configs.changed() => if changed.is_err() { return },
            () = &mut stopped => return log.end(&control),
        }
    }
}

/// What could not be written, so that it is told once.
#[derive(Debug, Default)]
struct Lost {
    intervals: u64,
}

impl Lost {
    fn on_written(&mut self, path: &Path, result: io::Result<()>) {
        match result {
            Ok(()) if self.intervals > 0 => {
                let lost = std::mem::take(&mut self.intervals);
                info!(
                    "log.histograms: {} is written again; {lost} intervals are lost",
                    path.display()
                );
            }
            Ok(()) => {}
            Err(error) => {
                if self.intervals == 0 {
                    error!(
                        "log.histograms: {}: {error}; intervals are lost until it can be written: \
                         check the directory, its permissions and the space there",
                        path.display()
                    );
                }
                self.intervals += 1;
            }
        }
    }
}

/// Appends a batch to its file, which is made if there is none; all of it or nothing.
///
/// # Errors
///
/// The file's.
pub fn append(batch: &Batch) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).open(&batch.path)?;
    let before = file.metadata()?.len();
    let text = text(batch, before == 0)?;
    let mut bytes = Vec::with_capacity(text.len() + 1);
    if before > 0 && last_byte(&mut file)? != b'\n' {
        // Whoever wrote it did not come to the end of a line.
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(&text);
    file.write_all(&bytes).inspect_err(|_| {
        // Best effort: half a line is skipped by most readers.
        let _ = file.set_len(before);
    })
}

fn last_byte(file: &mut File) -> io::Result<u8> {
    file.seek(SeekFrom::End(-1))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// A line for each histogram that has counted something, after the head if there is to be one.
fn text(batch: &Batch, head: bool) -> io::Result<Vec<u8>> {
    let Batch { since, config, start, length, .. } = batch;
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("[Nanoseconds; the third column in milliseconds]")
        .with_start_time(*start)
        .with_max_value_divisor(MAX_DIVISOR);
    let mut bytes = Vec::new();
    drop(builder.begin_log_with(&mut bytes, &mut serializer)?);
    let head_bytes = bytes.len();
    bytes.clear();
    let mut log = builder.begin_log_with(&mut bytes, &mut serializer)?;
    let start = start.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut turns = Snapshot::default();
    since.turns.iter().for_each(|shard| turns.add(shard));
    let turns =
        Series { name: LOOP, labels: Vec::new(), unit: Unit::Nanoseconds, snapshot: &turns };
    let others = since.series(config).filter(|series| series.name != LOOP);
    for series in others.chain([turns]) {
        if series.unit != Unit::Nanoseconds || series.snapshot.count() == 0 {
            continue;
        }
        let tag = tag(&series);
        log.write_histogram(&series.snapshot.to_hdr(), start, *length, Tag::new(&tag))
            .map_err(|error| io::Error::other(error.to_string()))?;
    }
    if !head {
        bytes.drain(..head_bytes);
    }
    Ok(bytes)
}

/// The name and labels, without what a tag must not have: space, comma, line ends.
fn tag(series: &Series<'_>) -> String {
    let mut tag = series.name.to_owned();
    for (key, value) in &series.labels {
        tag.extend([";", key, "="]);
        for character in value.chars() {
            match character {
                ',' | ' ' | ';' | '\r' | '\n' => {
                    tag.push_str(&format!("%{:02X}", character as u32));
                }
                other => tag.push(other),
            }
        }
    }
    tag
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::metrics::Counters;

    /// A file of its own, removed when this is dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            Scratch(
                std::env::temp_dir().join(format!("penstock-{name}-{}.hlog", std::process::id())),
            )
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn batch(path: &Path, counters: &[Arc<Counters>], before: &Totals, second: u64) -> Batch {
        Batch {
            path: path.to_owned(),
            since: Totals::read(counters).since(before),
            config: Arc::new(Config::embedded()),
            start: UNIX_EPOCH + Duration::from_secs(second),
            length: Duration::from_secs(10),
        }
    }

    /// Tag, start and histogram of each line, and how many heads there are.
    fn read(path: &Path) -> (Vec<(String, u64, Histogram<u64>)>, usize) {
        let bytes = std::fs::read(path).expect("it was written");
        let (mut lines, mut heads) = (Vec::new(), 0);
        for entry in IntervalLogIterator::new(&bytes) {
            match entry.expect("in order") {
                LogEntry::Interval(interval) => {
                    let tag = interval.tag().expect("all have one").as_str().to_owned();
                    let bytes = STANDARD.decode(interval.encoded_histogram()).expect("base64");
                    let histogram = Deserializer::new().deserialize(&mut &bytes[..]);
                    assert_eq!(interval.duration(), Duration::from_secs(10));
                    let histogram: Histogram<u64> = histogram.expect("a histogram");
                    assert!((interval.max() - histogram.max() as f64 / 1e6).abs() < 0.001);
                    lines.push((tag, interval.start_timestamp().as_secs(), histogram));
                }
                LogEntry::StartTime(_) => heads += 1,
                LogEntry::BaseTime(_) => panic!("times are absolute"),
            }
        }
        (lines, heads)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let scratch = Scratch::new("read-back");
        let counters: Vec<Arc<Counters>> = (0..2).map(|_| Arc::default()).collect();
        let route = counters[0].recorder.route(0);
        route.to_client.record(1_000_000, 99);
        route.to_client.record(50_000_000, 1);
        // A size is no duration.
        route.from_client_sizes.record(1, 1);
        counters.iter().for_each(|shard| shard.recorder.turn.record(20_000, 3));
        append(&batch(&scratch.0, &counters, &Totals::default(), 1_800_000_000)).expect("a file");

        let before = Totals::read(&counters);
        counters[1].recorder.route(0).to_client.record(2_000_000, 5);
        append(&batch(&scratch.0, &counters, &before, 1_800_000_010)).expect("a file");

        let (lines, heads) = read(&scratch.0);
        let told: Vec<_> =
            lines.iter().map(|(tag, start, it)| (&tag[..], *start, it.len())).collect();
        let name = crate::totals::name_of_place(&Config::embedded(), 0);
        let forward = format!("forward_seconds;route={name};direction=to_client");
        let first = 1_800_000_000;
        assert_eq!(
            told,
            [
                (&forward[..], first, 100),
                ("loop_iteration_seconds", first, 6),
                (&forward[..], first + 10, 5)
            ]
        );
        assert_eq!(heads, 1, "one head for a file");
        let quantile = lines[0].2.value_at_quantile(0.99) as f64;
        assert!((quantile / 1e6 - 1.0).abs() < 0.02, "{quantile}");
        assert!((lines[0].2.max() as f64 / 5e7 - 1.0).abs() < 0.02);
    }

    #[test]
    fn a_file_that_is_moved_away_is_begun_anew_and_half_a_line_is_ended() {
        let scratch = Scratch::new("rotate");
        let moved = Scratch::new("rotate-moved");
        let counters = [Arc::<Counters>::default()];
        counters[0].recorder.ping.record(1_000_000, 1);
        let append_one = || {
            let batch = batch(&scratch.0, &counters, &Totals::default(), 1_800_000_000);
            append(&batch).expect("a file");
        };
        append_one();
        std::fs::rename(&scratch.0, &moved.0).expect("it is there");
        append_one();
        append_one();
        assert_eq!((read(&moved.0).0.len(), read(&moved.0).1), (1, 1));
        assert_eq!((read(&scratch.0).0.len(), read(&scratch.0).1), (2, 1));

        let mut text = std::fs::read(&scratch.0).expect("it is there");
        let whole = text.len();
        text.extend_from_slice(b"#half a");
        std::fs::write(&scratch.0, &text).expect("it is ours");
        append_one();
        let text = std::fs::read_to_string(&scratch.0).expect("text");
        assert!(text[whole..].starts_with("#half a\nTag=rtt_seconds,1800000000.000,"), "{text}");
        assert_eq!(read(&scratch.0).0.len(), 3);
    }

    #[test]
    fn a_disk_that_takes_nothing_is_an_error() {
        let counters = [Arc::<Counters>::default()];
        counters[0].recorder.ping.record(1, 1);
        for path in ["/dev/full", "/proc/no/such/directory.hlog"] {
            let batch = batch(Path::new(path), &counters, &Totals::default(), 1_800_000_000);
            assert!(append(&batch).is_err(), "{path}");
        }
        let mut lost = Lost::default();
        let path = Path::new("x");
        lost.on_written(path, Err(io::Error::other("full")));
        lost.on_written(path, Err(io::Error::other("full")));
        assert_eq!(lost.intervals, 2);
        lost.on_written(path, Ok(()));
        assert_eq!(lost.intervals, 0);
    }

    #[test]
    fn a_tag_has_no_comma_and_no_space() {
        let snapshot = Snapshot::default();
        let labels = vec![("route", "*/a,b;c d".to_owned()), ("direction", "x".to_owned())];
        let series = Series { name: "n", labels, unit: Unit::Nanoseconds, snapshot: &snapshot };
        let tag = tag(&series);
        assert_eq!(tag, "n;route=*/a%2Cb%3Bc%20d;direction=x");
        assert!(Tag::new(&tag).is_some());
    }
}
