//! A bar with rate and time left on standard error, where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use crate::relay::archive::Progress;

#[derive(Debug)]
pub(in crate::app) struct Bar(ProgressBar);

impl Bar {
    pub(in crate::app) fn new() -> Bar {
        let style = "{bytes:>12} of {total_bytes} {wide_bar} {binary_bytes_per_sec}, {eta} left";
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template(style).expect("a template that is written here"));
        Bar(bar)
    }
}

impl Progress for Bar {
    fn total(&self, bytes: u64) {
        self.0.set_length(bytes);
    }

    fn done(&self, bytes: u64) {
        self.0.set_position(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
