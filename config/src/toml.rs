//! TOML: the file's other form, and that of containerd's runtime options.
//!
//! The parser is a crate's, without its serde half, and it is touched only where there is TOML: the shim of a host with
//! JSON, or without a file, never loads these pages.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::file::Values;
use crate::value::{Problem, Value};

/// Our part of the runtime options: a table, or what stands in front of dotted names.
pub const OPTIONS_TABLE: &str = "cedana";

/// The deepest table: a setting's name has two parts, and in runtime options `cedana` is one more.
const DEPTH_MAX: usize = 3;

/// The dotted names and values of a text, in the order of their names.
///
/// # Errors
/// Where the text is no TOML.
pub(crate) fn parse(text: &str) -> Result<Values, String> {
    let table = DeTable::parse(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
        format!("line {line}: {}", error.message())
    })?;
    let mut values = Vec::new();
    flatten(table.get_ref(), "", 1, &mut values);
    Ok(values)
}

/// The settings in a table of runtime options: those below `cedana`. The rest is the shim's and containerd's.
///
/// # Errors
/// Where the table is no TOML.
pub(crate) fn parse_runtime_options(text: &str) -> Result<Values, String> {
    if !text.contains(OPTIONS_TABLE) {
        return Ok(Vec::new());
    }
    let ours = |(name, value): (String, _)| {
        let name = name.strip_prefix(OPTIONS_TABLE)?.strip_prefix('.')?;
        Some((name.to_owned(), value))
    };
    Ok(parse(text)?.into_iter().filter_map(ours).collect())
}

fn flatten(table: &DeTable<'_>, prefix: &str, depth: usize, values: &mut Values) {
    for (name, value) in table {
        let name = format!("{prefix}{}", name.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if depth < DEPTH_MAX => {
                flatten(inner, &format!("{name}."), depth + 1, values);
            }
            other => values.push((name, value_of(other))),
        }
    }
}

fn value_of(toml: &DeValue<'_>) -> Result<Value, Problem> {
    match toml {
        DeValue::Boolean(value) => Ok(Value::Boolean(*value)),
        DeValue::String(text) => Value::text(text),
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
            .map(Value::Number)
            .map_err(|_| format!("{}, not a whole number", number.as_str())),
        DeValue::Array(entries) => {
            let text = |entry: &Spanned<DeValue<'_>>| match entry.get_ref() {
                DeValue::String(text) => Value::text(text).ok(),
                _ => None,
            };
            Value::texts(entries.iter().map(text))
        }
        other => Err(format!(
            "a TOML {}, not a boolean, a number, a short text or a list of them",
            other.type_str()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(values: Values) -> Vec<String> {
        let one = |(name, value): (String, Result<Value, Problem>)| match value {
            Ok(value) => format!("{name}={value:?}"),
            Err(problem) => format!("{name}: {problem}"),
        };
        values.into_iter().map(one).collect()
    }

    #[test]
    fn every_way_to_write_a_setting_is_the_same() {
        for text in [
            "[dump]\ntcp = \"close\"",
            "dump.tcp = 'close'",
            "dump = { tcp = \"close\" } # a comment",
            "\"dump.tcp\" = \"\"\"close\"\"\"",
        ] {
            assert_eq!(
                told(parse(text).expect(text)),
                [r#"dump.tcp=Text("close")"#],
                "{text}"
            );
        }
    }

    #[test]
    fn values_are_what_json_has_too() {
        let text = "b = true\ni = 1_024\nh = 0x10\nl = [\n 'a',\n 'b',\n]\nn = -1\nf = 1.5\nm = ['a', 1]\nd = 2026-01-01";
        assert_eq!(
            told(parse(text).expect("TOML")),
            [
                "b=Boolean(true)",
                "d: a TOML datetime, not a boolean, a number, a short text or a list of them",
                "f: a TOML float, not a boolean, a number, a short text or a list of them",
                "h=Number(16)",
                "i=Number(1024)",
                r#"l=List(["a", "b"])"#,
                "m: a list of something else than short texts",
                "n: -1, not a whole number",
            ]
        );
    }

    #[test]
    fn what_is_no_toml_is_said_with_its_line() {
        for text in ["[dump]\n\ntcp close", "[dump]\n\ntcp = ", "a=1\nb=1\na=2"] {
            let problem = parse(text).expect_err(text);
            assert!(problem.starts_with("line 3: "), "{text:?}: {problem}");
        }
    }

    #[test]
    fn of_runtime_options_only_our_part_counts() {
        let options = "TypeUrl = 'x'\nSystemdCgroup = true\n";
        assert!(parse_runtime_options(options).expect("options").is_empty());
        for ours in [
            "'cedana.dump.tcp' = 'close'",
            "cedana.dump.tcp = 'close'",
            "[cedana]\n  'dump.tcp' = 'close'",
            "[cedana]\n  [cedana.dump]\n    tcp = 'close'",
        ] {
            let values = parse_runtime_options(&format!("{options}{ours}")).expect(ours);
            assert_eq!(told(values), [r#"dump.tcp=Text("close")"#], "{ours}");
        }
    }

    #[test]
    fn a_table_too_deep_to_be_ours_is_no_value() {
        let deep = format!("[{}]\nx = 1", vec!["a"; 60].join("."));
        let values = told(parse(&deep).expect("TOML"));
        assert!(values[0].starts_with("a.a.a: a TOML table"), "{values:?}");
    }
}
