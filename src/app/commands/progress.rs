//! How far a command has come, on standard error, with rate and time left: a bar on a terminal, elsewhere a line now and
//! then.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use crate::relay::archive::Progress;

/// A line so often where nobody sees a bar.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Cleared when it is dropped.
pub(super) struct Display(Mutex<Shown>);

struct Shown {
    bar: ProgressBar,
    phase: &'static str,
    phase_began: Instant,
    total: u64,
    line_due: Instant,
}

impl Display {
    /// Of work that begins with `phase`, a word such as `copying`.
    pub(super) fn new(phase: &'static str) -> Display {
        let bar = ProgressBar::no_length();
        let template =
            "{msg:9} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a template that is written here"));
        bar.set_message(phase);
        let now = Instant::now();
        Display(Mutex::new(Shown { bar, phase, phase_began: now, total: 0, line_due: now + LINE_INTERVAL }))
    }

    /// Of `phase`, which begins when it is another one than before.
    pub(super) fn show(&self, phase: &'static str, done: u64, total: u64) {
        let mut shown = self.0.lock();
        shown.total = total;
        shown.show(phase, done, Instant::now());
    }

    pub(super) fn clear(&self) {
        self.0.lock().bar.finish_and_clear();
    }
}

/// Of one phase.
impl Progress for Display {
    fn total(&self, bytes: u64) {
        self.0.lock().total = bytes;
    }

    fn done(&self, bytes: u64) {
        let mut shown = self.0.lock();
        let phase = shown.phase;
        shown.show(phase, bytes, Instant::now());
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Shown {
    fn show(&mut self, phase: &'static str, done: u64, now: Instant) {
        if phase != self.phase {
            (self.phase, self.phase_began) = (phase, now);
            self.bar.reset();
            self.bar.set_message(phase);
        }
        // A server's total is an estimate.
        let total = self.total.max(done);
        self.bar.set_length(total);
        self.bar.set_position(done);
        if self.bar.is_hidden() && self.line_due <= now {
            self.line_due = now + LINE_INTERVAL;
            eprintln!("bellwether: {}", line(phase, done, total, now - self.phase_began));
        }
    }
}

fn line(phase: &str, done: u64, total: u64, took: Duration) -> String {
    let rate = done as f64 / took.as_secs_f64().max(0.001);
    let left = Duration::try_from_secs_f64(total.saturating_sub(done) as f64 / rate.max(1.0));
    let left = HumanDuration(left.unwrap_or(Duration::MAX));
    let rate = DecimalBytes(rate as u64);
    format!("{phase}: {} of {}, {rate}/s, {left} left", DecimalBytes(done), DecimalBytes(total))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::line;

    #[test]
    fn lines_for_logs() {
        let text = line("copying", 30_000_000, 90_000_000, Duration::from_secs(3));
        assert_eq!(text, "copying: 30.00 MB of 90.00 MB, 10.00 MB/s, 6 seconds left");
    }
}
