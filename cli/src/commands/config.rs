//! `cedana config`: every setting, its value, and where the value came from.

use config::{Shown, shown};
use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::output;
use crate::output::table::{Cell, Colour, Side, Table};

const COLUMNS: [(&str, Side); 3] = [
    ("SETTING", Side::Left),
    ("VALUE", Side::Left),
    ("SOURCE", Side::Left),
];

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// One setting, as it is told to a script.
#[derive(Debug, Serialize)]
struct Told<'a> {
    name: &'a str,
    value: &'a str,
    source: &'a str,
    what: &'a str,
}

/// Prints them.
///
/// # Errors
/// Standard output cannot be written.
#[expect(clippy::unused_async, reason = "every verb is called alike")]
pub async fn run(_args: Args, context: &Context) -> Result<(), Error> {
    let all = shown(&context.settings);
    if context.json {
        let told: Vec<Told<'_>> = all.iter().map(told).collect();
        return output::json(&told);
    }
    output::stdout(&table(&all).text(output::colours()))
}

fn told(shown: &Shown) -> Told<'_> {
    Told {
        name: shown.name,
        value: &shown.value,
        source: &shown.source,
        what: shown.what,
    }
}

fn table(all: &[Shown]) -> Table {
    let mut table = Table::new(&COLUMNS);
    for one in all {
        let colour = if one.source == "default" {
            Colour::Grey
        } else {
            Colour::Plain
        };
        table.row(vec![
            one.name.into(),
            (&one.value).into(),
            Cell::new(&one.source, colour),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_told_with_its_source() {
        let flags = [("dump.tcp".to_owned(), "close".to_owned())].into();
        let settings = config::Settings::default().with_flags(&flags).expect("settings");
        let text = table(&shown(&settings)).text(false);
        assert_eq!(text.lines().count(), config::KEYS.len() + 1);
        let words = |name: &str| -> Vec<String> {
            let line = text
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            line.split("  ")
                .filter(|word| !word.is_empty())
                .map(|word| word.trim().to_owned())
                .collect()
        };
        assert_eq!(words("dump.tcp "), ["dump.tcp", "close", "the command line"]);
        assert_eq!(
            words("db.path "),
            ["db.path", "/var/lib/cedana/jobs.db", "default"]
        );
    }
}
