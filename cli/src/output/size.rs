//! Sizes as people read them.

const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Bytes in the largest unit that holds one, without a fraction: `12 MiB`.
pub fn whole(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{} {name}", (bytes + unit / 2) / unit),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1535, "1 KiB"),
            (1536, "2 KiB"),
            (12 << 20, "12 MiB"),
            (3 << 30, "3 GiB"),
            ((1 << 40) + 1, "1 TiB"),
            (u64::MAX >> 1, "8388608 TiB"),
        ] {
            assert_eq!(whole(bytes), shown);
        }
    }
}
