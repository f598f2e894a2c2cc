//! How `penstock top` looks: a function of what there is to be shown.

use gateway::names::Escaped;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};

use super::model::{Route, ShardView, Sort, View, Way};
use crate::cli::reading::{duration, number};

/// Cells of a shard's bar.
const BAR: usize = 10;

/// Everything that the picture is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Screen {
    /// Where the gateway is.
    pub(super) place: String,
    /// The last that was heard of it.
    pub(super) view: Option<View>,
    /// Why there is nothing newer.
    pub(super) problem: Option<String>,
    pub(super) paused: bool,
    pub(super) sort: Sort,
    /// The route that is looked at, by name, as their order changes.
    pub(super) selected: Option<String>,
}

impl Screen {
    /// The place of the route that is looked at.
    pub(super) fn selected_index(&self) -> Option<usize> {
        let routes = &self.view.as_ref()?.routes;
        let selected = self.selected.as_ref();
        let found = selected.and_then(|name| routes.iter().position(|route| route.name == *name));
        found.or((!routes.is_empty()).then_some(0))
    }

    /// Looks at another route, so many further down; around at the ends.
    pub(super) fn select(&mut self, further: isize) {
        let (Some(view), Some(index)) = (&self.view, self.selected_index()) else { return };
        let count = view.routes.len() as isize;
        let index = (index as isize + further).rem_euclid(count) as usize;
        self.selected = Some(view.routes[index].name.clone());
    }
}

/// Draws it, as large as the terminal is; at 80 columns and 24 lines everything has its place.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let Some(view) = &screen.view else {
        return draw_nothing(frame, screen);
    };
    let lower = (view.shards.len().max(view.closes.len()) as u16 + 2).clamp(4, 10);
    let [head, routes, detail, lower, keys] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Min(4),
        Constraint::Length(1),
        Constraint::Length(lower),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, screen, view);
    draw_routes(frame, routes, screen, view);
    draw_detail(frame, detail, screen, view);
    let [shards, closes] =
        Layout::horizontal([Constraint::Min(44), Constraint::Percentage(45)]).areas(lower);
    draw_shards(frame, shards, &view.shards);
    draw_closes(frame, closes, view);
    let text = " q quit   p pause   s sort   arrows, tab: route";
    frame.render_widget(Paragraph::new(text).dim(), keys);
}

fn draw_nothing(frame: &mut Frame<'_>, screen: &Screen) {
    let text = match &screen.problem {
        Some(problem) => Escaped(problem).to_string(),
        None => format!("asking {}", screen.place),
    };
    let text = vec![
        Line::from(" penstock top".bold()),
        Line::default(),
        Line::from(format!(" {text}")),
        Line::from(" It is asked again every second; q quits.".dim()),
    ];
    let paragraph = Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: false });
    frame.render_widget(paragraph, frame.area());
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, screen: &Screen, view: &View) {
    let state = match (&screen.problem, screen.paused) {
        (Some(_), _) => Span::styled("NOT REACHED", alarm()),
        (None, true) => "PAUSED".yellow().bold(),
        (None, false) if view.phase == "serving" => "serving".green(),
        (None, false) => view.phase.clone().yellow().bold(),
    };
    let first = Line::from(vec![
        format!(" penstock {}", view.version).bold(),
        format!("  up {}  ", uptime(view.uptime_ms)).into(),
        state,
        format!("  configuration {}  process {}", view.config_generation, view.pid).into(),
    ]);
    let slow = match view.slow_consumers {
        0 => "slow 0".into(),
        slow => Span::from(format!("slow {slow}")).yellow(),
    };
    let second = Line::from(vec![
        format!(" clients {}", view.clients).bold(),
        format!("  opened {}/s  upstreams {}  ", number(view.opened_per_second), view.upstreams)
            .into(),
        slow,
        match view.rss_bytes {
            0 => Span::default(),
            bytes => format!("  resident {}", bytes_of(bytes as f64)).into(),
        },
    ]);
    let third = match &screen.problem {
        Some(problem) => Line::from(Span::styled(format!(" {}", Escaped(problem)), alarm())),
        None => Line::from(vec![
            " messages in ".into(),
            format!("{}/s", number(view.in_per_second)).bold(),
            "  out ".into(),
            format!("{}/s", number(view.out_per_second)).bold(),
            format!("  received {}/s", bytes_of(view.received_bytes_per_second)).into(),
        ]),
    };
    frame.render_widget(Paragraph::new(vec![first, second, third]), area);
}

fn alarm() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

fn draw_routes(frame: &mut Frame<'_>, area: Rect, screen: &Screen, view: &View) {
    let header = ["ROUTE", "IN/s", "p50", "p99", "p99.9", "OUT/s", "p50", "p99", "p99.9"];
    let header = header.into_iter().enumerate().map(|(column, text)| match column {
        0 => Cell::from(text),
        _ => right(text.to_owned()),
    });
    let rows = view.routes.iter().map(|route| {
        let mut cells = vec![Cell::from(Escaped(&route.name).to_string())];
        for way in [&route.up, &route.down] {
            cells.push(right(number(way.per_second)));
            cells.extend(delays(way).into_iter().take(3).map(right));
        }
        let quiet = route.up.per_second + route.down.per_second == 0.0;
        Row::new(cells).style(if quiet { Style::new().dim() } else { Style::new() })
    });
    let widths = std::iter::once(Constraint::Min(12)).chain([Constraint::Length(6); 8]);
    let title = format!(" routes, by {} ", screen.sort.name());
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().bold()))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title(title));
    let mut state = TableState::default().with_selected(screen.selected_index());
    frame.render_stateful_widget(table, area, &mut state);
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// p50, p99, p99.9 and the longest.
fn delays(way: &Way) -> [String; 4] {
    match way.delays_ns {
        Some(delays) => delays.map(|ns| duration(ns as f64)),
        None => std::array::from_fn(|_| "-".to_owned()),
    }
}

/// What the table has no room for, of the route that is looked at.
fn draw_detail(frame: &mut Frame<'_>, area: Rect, screen: &Screen, view: &View) {
    let route = screen.selected_index().and_then(|index| view.routes.get(index));
    let text = route.map_or(" no client yet".to_owned(), |route: &Route| {
        let [[.., up], [.., down]] = [&route.up, &route.down].map(delays);
        let p99 = |ns: Option<u64>| ns.map_or("-".to_owned(), |ns| duration(ns as f64));
        format!(
            " max in {up} out {down}  mean {}, {}  p99 reply {} connect {}",
            bytes_of(route.up.mean_bytes),
            bytes_of(route.down.mean_bytes),
            p99(route.reply_p99_ns),
            p99(route.connect_p99_ns),
        )
    });
    frame.render_widget(Paragraph::new(text).cyan(), area);
}

/// As many as there is room for, the busiest of them; in the order of their numbers.
fn draw_shards(frame: &mut Frame<'_>, area: Rect, shards: &[ShardView]) {
    let room = usize::from(area.height.saturating_sub(2));
    let mut shown: Vec<&ShardView> = shards.iter().collect();
    shown.sort_by(|one, other| other.busy.total_cmp(&one.busy));
    shown.truncate(room);
    shown.sort_by_key(|shard| shard.shard);
    let title = match shards.len() - shown.len() {
        0 => " shards: busy, clients, p99, stalls ".to_owned(),
        hidden => format!(" shards: the busiest; {hidden} more "),
    };
    let lines = shown.into_iter().map(|shard| {
        let filled = (shard.busy * BAR as f64).round() as usize;
        let color = match shard.busy {
            ..0.7 => Color::Green,
            ..0.9 => Color::Yellow,
            _ => Color::Red,
        };
        let stalls = Span::from(format!("{:>5}", shard.stalls));
        Line::from(vec![
            format!("{:>3} ", shard.shard).into(),
            Span::styled("█".repeat(filled), Style::new().fg(color)),
            "░".repeat(BAR - filled.min(BAR)).dim(),
            format!(
                "{:>4.0}% {:>7} {:>6} ",
                shard.busy * 100.0,
                number(shard.clients as f64),
                duration(shard.turn_p99_ns as f64),
            )
            .into(),
            if shard.stalls > 0 { stalls.yellow().bold() } else { stalls },
        ])
    });
    let lines: Vec<Line<'_>> = lines.collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

fn draw_closes(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let wide = usize::from(area.width).saturating_sub(16);
    let lines = view.closes.iter().map(|close| {
        let line = Line::from(format!(
            "{:<wide$.wide$} {:>5}/s {:>5}",
            close.cause,
            number(close.per_second),
            number(close.total as f64)
        ));
        if close.per_second == 0.0 { line.dim() } else { line }
    });
    let lines: Vec<Line<'_>> = lines.collect();
    let block = Block::bordered().title(" closed, by cause ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn bytes_of(bytes: f64) -> String {
    match bytes {
        ..1024.0 => format!("{bytes:.0} B"),
        ..1_048_576.0 => format!("{:.1} KiB", bytes / 1024.0),
        ..1_073_741_824.0 => format!("{:.1} MiB", bytes / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes / 1_073_741_824.0),
    }
}

fn uptime(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {:02}h", hours % 24),
    }
}

/// The picture as text, without its colours and what is empty at the right.
pub(super) fn text(screen: &Screen, width: u16, height: u16) -> String {
    let backend = ratatui::backend::TestBackend::new(width, height);
    let Ok(mut terminal) = ratatui::Terminal::new(backend);
    if terminal.draw(|frame| draw(frame, screen)).is_err() {
        return String::new();
    }
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::sample;
    use super::*;

    fn screen() -> Screen {
        let mut view = View::new(&sample(3598), &sample(3600), 2.0);
        view.sort(Sort::Messages);
        Screen { place: "/run/x.sock".to_owned(), view: Some(view), ..Screen::default() }
    }

    /// Lines as they are without trailing spaces, against those that are wanted.
    #[track_caller]
    fn check(text: &str, want: &[&str]) {
        let got: Vec<&str> = text.lines().collect();
        assert_eq!(got, want, "\n{text}");
    }

    #[test]
    fn a_picture_of_80_by_24() {
        let text = text(&screen(), 80, 24);
        check(
            &text,
            &[
                " penstock 0.1.0  up 1h 00m  serving  configuration 2  process 7",
                " clients 1200  opened 20/s  upstreams 1000  slow 3  resident 150.0 MiB",
                " messages in 1050/s  out 3050/s  received 1.9 MiB/s",
                "┌ routes, by messages ─────────────────────────────────────────────────────────┐",
                "│ROUTE                    IN/s    p50    p99  p99.9  OUT/s    p50    p99  p99.9│",
                "│*/chat                   1000 12.0us 12.0us 12.0us   3000 85.0us 85.0us 85.0us│",
                "│*/echo                     50      -      -      -     50 2.50ms 2.50ms 2.50ms│",
                "│h.example.org/idle          0      -      -      -      0      -      -      -│",
                "│                                                                              │",
                "│                                                                              │",
                "│                                                                              │",
                "│                                                                              │",
                "│                                                                              │",
                "│                                                                              │",
                "│                                                                              │",
                "│                                                                              │",
                "└──────────────────────────────────────────────────────────────────────────────┘",
                " max in 12.0us out 85.0us  mean 120 B, 300 B  p99 reply 7.00ms connect 95.0us",
                "┌ shards: busy, clients, p99, stalls ──────┐┌ closed, by cause ────────────────┐",
                "│  0 █████░░░░░  50%     700  500us     4  ││client_close            15/s 54.0k│",
                "│  1 ███░░░░░░░  25%     500  250us     0  ││slow_consumer            1/s  3600│",
                "│                                          ││drain                    0/s     4│",
                "└──────────────────────────────────────────┘└──────────────────────────────────┘",
                " q quit   p pause   s sort   arrows, tab: route",
            ],
        );
    }

    #[test]
    fn what_is_looked_at_moves_and_stays_with_its_route() {
        let mut screen = screen();
        assert_eq!(screen.selected_index(), Some(0));
        screen.select(1);
        assert_eq!(screen.selected.as_deref(), Some("*/echo"));
        screen.view.as_mut().expect("a view").sort(Sort::Slowest);
        assert_eq!(screen.selected_index(), Some(0), "it has moved up");
        screen.select(-1);
        assert_eq!(screen.selected.as_deref(), Some("h.example.org/idle"));
        screen.select(1);
        assert_eq!(screen.selected.as_deref(), Some("*/echo"));
        // It is gone.
        screen.selected = Some("*/gone".to_owned());
        assert_eq!(screen.selected_index(), Some(0));
        screen.view = None;
        screen.select(1);
        assert_eq!(screen.selected_index(), None);
    }

    #[test]
    fn it_says_when_there_is_no_gateway() {
        let mut screen = screen();
        screen.problem = Some("no gateway at /run/x.sock: gone".to_owned());
        let shown = text(&screen, 80, 24);
        assert!(shown.contains("NOT REACHED") && shown.contains("no gateway at /run/x"), "{shown}");
        assert!(shown.contains("*/chat"), "what was known stays: {shown}");
        screen.view = None;
        let shown = text(&screen, 80, 24);
        assert!(shown.contains("no gateway at /run/x") && shown.contains("q quits"), "{shown}");
        screen.problem = None;
        assert!(text(&screen, 80, 24).contains("asking /run/x.sock"));
    }

    #[test]
    fn a_pause_and_a_drain_are_seen() {
        let mut screen = screen();
        screen.paused = true;
        assert!(text(&screen, 80, 24).contains("PAUSED"));
        screen.paused = false;
        screen.view.as_mut().expect("a view").phase = "draining".to_owned();
        assert!(text(&screen, 80, 24).contains("draining"));
    }

    #[test]
    fn any_size_is_drawn_and_many_fit() {
        let mut screen = screen();
        let view = screen.view.as_mut().expect("a view");
        let route = view.routes[0].clone();
        view.routes =
            (0..65).map(|it| Route { name: format!("*/{it}"), ..route.clone() }).collect();
        let busy = |shard: usize| (shard % 10) as f64 / 10.0;
        view.shards = (0..1024)
            .map(|shard| ShardView { shard, busy: busy(shard), ..ShardView::default() })
            .collect();
        for (width, height) in [(1, 1), (20, 5), (80, 24), (200, 60), (400, 100), (80, 3)] {
            text(&screen, width, height);
        }
        let shown = text(&screen, 120, 40);
        assert!(shown.contains("the busiest; 1016 more") && shown.contains(" 90% "), "{shown}");
        // The one that is looked at is in sight.
        screen.select(-1);
        assert!(text(&screen, 80, 24).contains("*/64"));
    }

    #[test]
    fn times_and_sizes_are_short() {
        for (ms, want) in
            [(999, "0s"), (61_000, "1m 01s"), (3_660_000, "1h 01m"), (90_000_000, "1d 01h")]
        {
            assert_eq!(uptime(ms), want);
        }
        for (bytes, want) in [(0.0, "0 B"), (1536.0, "1.5 KiB"), (3.5e9, "3.26 GiB")] {
            assert_eq!(bytes_of(bytes), want);
        }
    }
}
