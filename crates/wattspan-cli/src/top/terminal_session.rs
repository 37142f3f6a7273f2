//! The terminal while `wattspan top` has it: alternate screen and raw mode, restored on every way out.

use std::io;
use std::panic;
use std::time::Instant;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::text::{Line, Text};

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

    /// Waits for a key until `due`. Returns early after a change of the terminal's size.
    pub fn wait_for_key(&self, due: Instant) -> io::Result<Option<KeyEvent>> {
        if !event::poll(due.saturating_duration_since(Instant::now()))? {
            return Ok(None);
        }
        match event::read()? {
            Event::Key(key) if key.kind != KeyEventKind::Release => Ok(Some(key)),
            _ => Ok(None),
        }
    }
}

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
