//! What a run found, and what a run is watched by.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use serde_json::{Map, Value};

use crate::options::Common;
use crate::progress::{Recorder, Recording, Sample};
use crate::workers;

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

    /// Adds what was recorded of the server's memory to what was found of its processor time. What
    /// the scenario has measured itself stays.
    pub(crate) fn add_server_memory(&mut self, recording: &Recording) {
        if let Some(Value::Object(server)) = self.figures.get_mut("server") {
            for (key, value) in &recording.server_memory {
                server.entry(key).or_insert_with(|| value.clone());
            }
        }
    }
}

/// Watches a run: whether it is to end early, with what there is, and how it goes on.
pub(crate) struct Watch<'a> {
    stop: &'a AtomicBool,
    /// Scenarios are one thread each, and none of them holds on to it.
    recorder: RefCell<Recorder>,
    /// There are others that begin to measure at the same time.
    is_worker: bool,
}

impl<'a> Watch<'a> {
    /// A watch that ends the run once `stop` becomes true, and shows nothing.
    pub(crate) fn new(stop: &'a AtomicBool) -> Watch<'a> {
        Watch { stop, recorder: RefCell::new(Recorder::new(false)), is_worker: false }
    }

    /// The same, with a line on standard error, if that is a terminal.
    pub(crate) fn with_progress(stop: &'a AtomicBool) -> Watch<'a> {
        Watch { recorder: RefCell::new(Recorder::new(true)), ..Watch::new(stop) }
    }

    /// The same as `new`, of one of several workers.
    pub(crate) fn of_worker(stop: &'a AtomicBool) -> Watch<'a> {
        Watch { is_worker: true, ..Watch::new(stop) }
    }

    /// Everything is open, and measuring can begin: a worker waits here for the others. Returns
    /// when the run is to end as well.
    pub(crate) fn ready(&self) -> io::Result<()> {
        if self.is_worker && !self.stopped() && !workers::wait_for_others()? {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the run is to end.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Begins a run, before anything is opened: keeps the thread on its CPU, and says which
    /// processes are the server, which are watched from here on.
    pub(crate) fn begin(&self, common: &Common) -> io::Result<Vec<u32>> {
        common.pin()?;
        let pids = common.processes()?;
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
