//! The terminal while `wattspan top` has it: alternate screen and raw mode, restored on every way out.

use std::io;
use std::panic;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::text::{Line, Text};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::draw::FrameSize;
use crate::output::{TerminalWriter, terminal_writer};

/// The terminal. Dropping the value restores it.
pub struct TerminalSession {
    terminal: Terminal<CrosstermBackend<TerminalWriter>>,
}

impl TerminalSession {
    pub fn open() -> io::Result<Self> {
        // A release build ends at a panic without dropping values.
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            report(info);
        }));
        enable_raw_mode()?;
        let opened = execute!(terminal_writer(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(terminal_writer())));
        match opened {
            Ok(terminal) => Ok(TerminalSession { terminal }),
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }

    /// Draws the lines for the present size. Only cells that changed are sent.
    pub fn draw(&mut self, lines: impl FnOnce(FrameSize) -> Vec<Line<'static>>) -> io::Result<()> {
        self.terminal.draw(|frame| {
            let area = frame.area();
            let size = FrameSize { width: area.width.into(), height: Some(area.height.into()) };
            frame.render_widget(Text::from(lines(size)), area);
        })?;
        Ok(())
    }

    /// Waits for a key until `due`. Returns early after a change of the terminal's size, or when the terminal is gone.
    pub fn wait_for_key(&self, due: Instant) -> io::Result<Option<KeyEvent>> {
        for timeout in [Duration::ZERO, due.saturating_duration_since(Instant::now())] {
            // Crossterm reads a terminal that was closed forever, so it must not be asked about one.
            if self.wait_for_input(timeout)?.intersects(CLOSED) {
                return Ok(None);
            }
            // It may also hold keys that came with earlier ones.
            if event::poll(Duration::ZERO)? {
                return match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => Ok(Some(key)),
                    _ => Ok(None),
                };
            }
        }
        Ok(None)
    }

    /// Whether the terminal was closed: its window, or the connection to it.
    pub fn is_closed(&self) -> io::Result<bool> {
        Ok(self.wait_for_input(Duration::ZERO)?.intersects(CLOSED))
    }

    fn wait_for_input(&self, timeout: Duration) -> io::Result<PollFlags> {
        let terminal = io::stdin();
        let mut polled = [PollFd::new(&terminal, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            // A signal, for instance for a change of the size.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(polled[0].revents()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What poll(2) reports of a terminal that was closed.
const CLOSED: PollFlags = PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);

impl Drop for TerminalSession {
    fn drop(&mut self) {
        restore();
    }
}

/// A failure cannot be reported anywhere: the terminal is gone.
fn restore() {
    let _ = execute!(terminal_writer(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
