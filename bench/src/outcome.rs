//! What a run found, and what a run is watched by.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use serde_json::{Map, Value};

use crate::histogram;
use crate::options::{Common, Files};
use crate::progress::{Recorder, Recording, Sample};

/// What a run found.
pub(crate) struct Outcome {
    /// The figures, in the order in which they are told. Keys carry their units.
    pub(crate) figures: Map<String, Value>,
    /// Nanoseconds, by name; the first is the one to quote.
    pub(crate) histograms: Vec<(&'static str, Histogram<u64>)>,
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
                tagged.map(|(i, (name, h))| (if i == 0 { "" } else { *name }, h)).collect();
            histogram::write_log(path, &tagged, self.started_at, self.measured)?;
        }
        Ok(())
    }
}

/// Watches a run: whether it is to end early, with what there is, and how it goes on.
pub(crate) struct Watch<'a> {
    stop: &'a AtomicBool,
    /// Scenarios are one thread each, and none of them holds on to it.
    recorder: RefCell<Recorder>,
}

impl<'a> Watch<'a> {
    /// A watch that ends the run once `stop` becomes true, and shows nothing.
    pub(crate) fn new(stop: &'a AtomicBool) -> Watch<'a> {
        Watch { stop, recorder: RefCell::new(Recorder::new(false)) }
    }

    /// The same, with a line on standard error, if that is a terminal.
    pub(crate) fn with_progress(stop: &'a AtomicBool) -> Watch<'a> {
        Watch { stop, recorder: RefCell::new(Recorder::new(true)) }
    }

    /// Whether the run is to end.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Begins a run, before anything is opened: keeps the thread on its CPU, and says which
    /// processes are the server, which are watched from here on.
    pub(crate) fn begin(&self, common: &Common) -> io::Result<Vec<u32>> {
        common.pin()?;
        let pids = common.pids.clone();
        self.recorder.borrow_mut().observe(&pids);
        Ok(pids)
    }

    /// Takes note of how the run stands: at most once a turn, and once when a phase begins, with
    /// `CLOSING` before connections are closed.
    pub(crate) fn tick(&self, sample: &Sample<'_>) {
        self.recorder.borrow_mut().tick(sample);
    }

    /// What was recorded.
    pub(crate) fn finish(self) -> Recording {
        self.recorder.into_inner().finish()
    }
}
