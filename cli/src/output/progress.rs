//! Progress of long work: a line that redraws itself on a terminal, and nothing in a pipe.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the line moves by itself, so that a phase that says nothing does not look dead.
const TICK: Duration = Duration::from_millis(200);

/// While there is nothing to count.
const PLAIN: &str = "{spinner} {prefix} {wide_msg}";

/// A line on standard error; it is gone when this is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins, unless standard error is no terminal or the caller wants quiet.
    pub fn start(what: &str, quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            // indicatif hides it by itself where there is no terminal.
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(style(PLAIN))
            .with_prefix(super::text::line(what).into_owned());
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar }
    }

    /// The phase, the bytes so far, and how many there will be (zero: unknown).
    pub fn set(&self, phase: &str, bytes: u64, total: u64) {
        if self.bar.is_hidden() {
            return;
        }
        let template = match (bytes, total) {
            (0, 0) => PLAIN,
            (_, 0) => "{spinner} {prefix} {binary_bytes} {binary_bytes_per_sec} {wide_msg}",
            _ => {
                "{spinner} {prefix} [{bar:24}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {wide_msg}"
            }
        };
        self.bar.set_style(style(template));
        if total > 0 {
            // The total is an estimate by the memory in use.
            self.bar.set_length(total.max(bytes));
        }
        self.bar.set_position(bytes);
        self.bar.set_message(super::text::line(phase).into_owned());
    }

    /// A word about what happens now.
    pub fn say(&self, word: &str) {
        self.bar.set_message(word.to_owned());
    }

    /// The work of the same call goes on with something else, counted anew.
    pub fn next(&self, what: &str) {
        self.bar.set_style(style(PLAIN));
        self.bar.unset_length();
        self.bar.set_message("");
        self.bar.set_prefix(super::text::line(what).into_owned());
        self.bar.reset();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are the ones above; a wrong one would only look plain.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
