//! What a run found, and what a run is watched by.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use serde_json::{Map, Value};

use crate::histogram;
use crate::options::Files;

/// What a run found.
pub(crate) struct Outcome {
    /// The figures, in the order in which they are told. Keys carry their units.
    pub(crate) figures: Map<String, Value>,
    /// Nanoseconds, by name; the first is the one to quote.
    pub(crate) histograms: Vec<(Cow<'static, str>, Histogram<u64>)>,
    /// When the measured time began.
    pub(crate) started_at: SystemTime,
    /// How long it was.
    pub(crate) measured: Duration,
}

impl Outcome {
    /// Figures alone, of a run without histograms.
    pub(crate) fn of_figures(figures: Map<String, Value>) -> Outcome {
        let started_at = SystemTime::now();
        Outcome { figures, histograms: Vec::new(), started_at, measured: Duration::ZERO }
    }

    /// Writes the files that were asked for, of a run that has histograms.
    pub(crate) fn write_files(&self, files: &Files) -> io::Result<()> {
        let Some((_, main)) = self.histograms.first() else { return Ok(()) };
        if let Some(path) = &files.hgrm {
            histogram::write_percentiles(path, main)?;
        }
        if let Some(path) = &files.hlog {
            let tagged = self.histograms.iter().enumerate();
            let tagged: Vec<_> =
                tagged.map(|(i, (name, h))| (if i == 0 { "" } else { &**name }, h)).collect();
            histogram::write_log(path, &tagged, self.started_at, self.measured)?;
        }
        Ok(())
    }
}

/// Watches a run: whether it is to end early, with what there is.
pub(crate) struct Watch<'a> {
    stop: &'a AtomicBool,
}

impl<'a> Watch<'a> {
    /// A watch that ends the run once `stop` becomes true.
    pub(crate) fn new(stop: &'a AtomicBool) -> Watch<'a> {
        Watch { stop }
    }

    /// Whether the run is to end.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
