//! `penstock top`: a running gateway, looked at every second.
//!
//! ```text
//!   asking thread   three requests a second          -> Answer, the last only
//!   main thread     keys, resizes, answers           -> Screen (view.rs), drawn when it changes
//! ```
//!
//! A gateway that does not answer holds up the asking thread alone: keys work meanwhile. `model.rs` makes
//! of two looks what is shown; neither it nor `view.rs` knows a clock, a socket or a terminal.

mod model;
mod view;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use clap::Args;
use gateway::admin::client;
use gateway::names::Escaped;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use super::{Ask, fail};
use model::{Sample, Shards, View};
use view::{Screen, draw, text};

/// From one look to the next.
const REFRESH: Duration = Duration::from_secs(1);

/// How often signals and answers are looked for while no key is pressed.
const POLL: Duration = Duration::from_millis(50);

/// `penstock top`.
#[derive(Args)]
pub(crate) struct Top {
    #[command(flatten)]
    ask: Ask,
    /// Print one picture, of one second, as text and end
    #[arg(long)]
    once: bool,
    /// With --once: how large the picture is
    #[arg(long, value_name = "COLUMNSxLINES", default_value = "80x24", value_parser = size)]
    size: (u16, u16),
}

/// `80x24`.
fn size(text: &str) -> Result<(u16, u16), String> {
    let parsed = text.split_once('x').and_then(|(columns, lines)| {
        let number = |text: &str| text.parse().ok().filter(|number| (1..=1000).contains(number));
        Some((number(columns)?, number(lines)?))
    });
    parsed.ok_or_else(|| format!("write it as 80x24, each from 1 to 1000, not \"{text}\""))
}

/// What came of a look.
type Answer = Result<Box<(Sample, Instant)>, String>;

impl Top {
    pub(super) fn run(&self) -> ExitCode {
        let result = match self.once {
            true => self.print(),
            false => self.watch(),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => fail(&why),
        }
    }

    fn print(&self) -> Result<(), String> {
        let (before, first) = *look(&self.ask.socket)?;
        std::thread::sleep(REFRESH);
        let (now, second) = *look(&self.ask.socket)?;
        let mut view = View::new(&before, &now, (second - first).as_secs_f64());
        let screen = Screen { place: self.place(), ..Screen::default() };
        view.sort(screen.sort);
        let (width, height) = self.size;
        print!("{}", text(&Screen { view: Some(view), ..screen }, width, height));
        Ok(())
    }

    fn watch(&self) -> Result<(), String> {
        if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
            return Err("this is no terminal; --once prints one picture".to_owned());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (answer, answers) = sync_channel(1);
        let (socket, asked) = (self.ask.socket.clone(), Arc::clone(&stop));
        std::thread::spawn(move || ask_on(&socket, &answer, &asked));
        stop_on_signals(Arc::clone(&stop))?;
        // It brings the terminal back when the program panics, too.
        let mut terminal =
            ratatui::try_init().map_err(|error| format!("the terminal cannot be used: {error}"))?;
        let screen = Screen { place: self.place(), ..Screen::default() };
        let result = show(&mut terminal, screen, &answers, &stop);
        stop.store(true, Ordering::Relaxed);
        ratatui::try_restore().map_err(|error| format!("the terminal is not restored: {error}"))?;
        result.map_err(|error| format!("the terminal is lost: {error}"))
    }

    fn place(&self) -> String {
        Escaped(&self.ask.socket.display().to_string()).to_string()
    }
}

/// Looks once a second until `stop`.
fn ask_on(socket: &Path, answers: &SyncSender<Answer>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        if answers.send(look(socket)).is_err() {
            return;
        }
        std::thread::sleep(REFRESH.saturating_sub(started.elapsed()));
    }
}

/// One look.
fn look(socket: &Path) -> Answer {
    let (status, body) = client::ask(socket, Method::GET, "/api/v1/status")?;
    let status = parse(status, &body)?;
    let at = Instant::now();
    let (code, body) = client::ask(socket, Method::GET, "/api/v1/histograms")?;
    let reading = parse(code, &body)?;
    let (code, body) = client::ask(socket, Method::GET, "/api/v1/shards")?;
    let Shards { shards } = parse(code, &body)?;
    Ok(Box::new((Sample { status, reading, shards }, at)))
}

fn parse<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, String> {
    if !status.is_success() {
        let why = String::from_utf8_lossy(body);
        return Err(format!("the gateway answers {status}: {}", why.trim()));
    }
    serde_json::from_slice(body)
        .map_err(|error| format!("the gateway is of another version: {error}"))
}

/// SIGTERM, SIGINT and SIGHUP end the program as `q` does.
fn stop_on_signals(stop: Arc<AtomicBool>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let failed = |error: io::Error| format!("signals cannot be received: {error}");
    let runtime = runtime.map_err(failed)?;
    let entered = runtime.enter();
    let [mut terminate, mut interrupt, mut hangup] = [
        signal(SignalKind::terminate()).map_err(failed)?,
        signal(SignalKind::interrupt()).map_err(failed)?,
        signal(SignalKind::hangup()).map_err(failed)?,
    ];
    drop(entered);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Draws what changes until somebody has had enough.
fn show(
    terminal: &mut DefaultTerminal,
    mut screen: Screen,
    answers: &Receiver<Answer>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut last: Option<Box<(Sample, Instant)>> = None;
    let mut changed = true;
    while !stop.load(Ordering::Relaxed) {
        if std::mem::take(&mut changed) {
            terminal.draw(|frame| draw(frame, &screen))?;
        }
        if event::poll(POLL)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    match on_key(&mut screen, key) {
                        Next::Quit => return Ok(()),
                        Next::Draw => changed = true,
                    }
                }
                Event::Resize(..) => changed = true,
                _ => {}
            }
        }
        if let Ok(answer) = answers.try_recv() {
            on_answer(&mut screen, &mut last, answer);
            changed = true;
        }
    }
    Ok(())
}

enum Next {
    Draw,
    Quit,
}

fn on_key(screen: &mut Screen, key: KeyEvent) -> Next {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Quit,
        KeyCode::Char('p' | ' ') => screen.paused = !screen.paused,
        KeyCode::Char('s') => {
            screen.sort = screen.sort.next();
            let sort = screen.sort;
            // What is looked at stays so.
            screen.select(0);
            if let Some(view) = &mut screen.view {
                view.sort(sort);
            }
        }
        KeyCode::Down | KeyCode::Tab | KeyCode::Char('j') => screen.select(1),
        KeyCode::Up | KeyCode::BackTab | KeyCode::Char('k') => screen.select(-1),
        _ => {}
    }
    Next::Draw
}

/// Shows what was heard, unless that is paused; then the interval grows.
fn on_answer(screen: &mut Screen, last: &mut Option<Box<(Sample, Instant)>>, answer: Answer) {
    match answer {
        Ok(_) if screen.paused => screen.problem = None,
        Ok(now) => {
            screen.problem = None;
            let (sample, at) = &*now;
            let mut view = match last {
                Some(last) => View::new(&last.0, sample, (*at - last.1).as_secs_f64()),
                None => View::new(&Sample::default(), sample, 1.0),
            };
            view.sort(screen.sort);
            screen.view = Some(view);
            *last = Some(now);
        }
        Err(why) => screen.problem = Some(why),
    }
}

#[cfg(test)]
mod tests {
    use super::model::tests::sample;
    use super::*;

    fn press(screen: &mut Screen, code: KeyCode) -> bool {
        matches!(on_key(screen, KeyEvent::new(code, KeyModifiers::NONE)), Next::Quit)
    }

    #[test]
    fn keys_do_what_the_last_line_says() {
        let (mut screen, mut last) = (Screen::default(), None);
        let start = Instant::now();
        let at = |second: u64| Ok(Box::new((sample(second), start + Duration::from_secs(second))));
        on_answer(&mut screen, &mut last, at(10));
        on_answer(&mut screen, &mut last, at(11));
        let opened = |screen: &Screen| screen.view.as_ref().map(|view| view.opened_per_second);
        assert_eq!(opened(&screen), Some(20.0));
        assert!(!press(&mut screen, KeyCode::Down));
        assert_eq!(screen.selected.as_deref(), Some("*/echo"));
        press(&mut screen, KeyCode::BackTab);
        assert_eq!(screen.selected.as_deref(), Some("*/chat"));
        press(&mut screen, KeyCode::Char('s'));
        assert_eq!(screen.selected_index(), Some(1), "it is looked at where it went");

        press(&mut screen, KeyCode::Char('p'));
        on_answer(&mut screen, &mut last, at(12));
        let uptime = |screen: &Screen| screen.view.as_ref().map(|view| view.uptime_ms);
        assert_eq!(uptime(&screen), Some(11_000), "paused");
        press(&mut screen, KeyCode::Char('p'));
        on_answer(&mut screen, &mut last, at(21));
        assert_eq!((uptime(&screen), opened(&screen)), (Some(21_000), Some(20.0)));

        // The gateway is gone, and comes back.
        on_answer(&mut screen, &mut last, Err("gone".to_owned()));
        assert_eq!(screen.problem.as_deref(), Some("gone"));
        assert!(screen.view.is_some());
        on_answer(&mut screen, &mut last, at(2));
        assert_eq!((screen.problem.as_deref(), uptime(&screen)), (None, Some(2000)));

        assert!(press(&mut screen, KeyCode::Char('q')) && press(&mut screen, KeyCode::Esc));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(matches!(on_key(&mut screen, interrupt), Next::Quit));
    }

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!(size("120x40"), Ok((120, 40)));
        for wrong in ["", "80", "80x", "0x24", "80x1001", "ax1", "80x24x1"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_that_is_none_says_why() {
        let why = |status, body: &[u8]| parse::<Shards>(status, body).map(drop).unwrap_err();
        let refused = why(StatusCode::NOT_FOUND, b"no such\n");
        assert_eq!(refused, "the gateway answers 404 Not Found: no such");
        assert!(why(StatusCode::OK, b"{}").starts_with("the gateway is of another version: "));
    }
}
